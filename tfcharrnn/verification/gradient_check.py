"""Checks the gradients that training uses against central differences of the same loss, in float64.

A central difference uses no backward pass: it runs the model forward four times with one number changed. So it finds
errors in a hand-written gradient, in the formula as well as in the code.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.config import GradcheckConfig, ModelConfig
from tfcharrnn.layouts import LAYOUTS, Layout
from tfcharrnn.model import backends
from tfcharrnn.model.cells import State, get_cell_class
from tfcharrnn.model.char_rnn import CharRNN, split_batch
from tfcharrnn.model.input_projection import SymbolInput
from tfcharrnn.verification import numpy_reference
from tfcharrnn.verification.reference_cells import Array

# The error of the formula grows as step^4 times the fifth derivative, that of rounding as 1e-16 / step times the loss.
# If both factors were 1, the best step would be near 6e-4, but the layer normalisation of a small cell state has large
# derivatives. Over all cells and kinds, the largest relative error is 1e-8 at 5e-5, 9e-9 at 1e-4, 8e-8 at 2e-4 and 4e-7
# at 3e-4. A formula of the second order, with two evaluations instead of four, is at best 1e-7 off.
STEP = 1e-4
_VOCABULARY = 7
# Enough rows for `CharRNN.losses` to split the batch in two halves on a CPU.
_HALVED_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss and the variables to differentiate it by.

    Attributes:
        loss: computes the loss, a float64 scalar, from the values of the variables; its other inputs are constant.
        variables: by name.
    """

    loss: Callable[[], tf.Tensor]
    variables: dict[str, tf.Variable]


Builder = Callable[[GradcheckConfig, ModelConfig], Problem]
VariableState = tuple[tuple[tf.Variable, ...], ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table: the shape of a model and the kind of texts it reads, a key of `BUILDERS`."""

    num_layers: int
    embedding_size: int
    kind: str


def list_cases(config: GradcheckConfig) -> list[Case]:
    """Lists one layer and the configured number, each with one-hot input and an embedding, each with every kind."""
    layers, sizes = sorted({1, config.num_layers}), sorted({0, config.embedding_size})
    return [Case(*case) for case in itertools.product(layers, sizes, BUILDERS)]


def list_implementations(config: GradcheckConfig, cell: str) -> list[str]:
    """Lists the implementations to check of a cell."""
    if config.implementation != "all":
        return [config.implementation]
    return ["custom", "keras"] if cell in backends.LIBRARY_CELLS else ["custom"]


def is_supported(case: Case, implementation: str) -> bool:
    """Whether an implementation can run a case: only the custom one can skip steps."""
    return case.kind != "skipped" or implementation == "custom"


def build_problem(config: GradcheckConfig, case: Case, cell: str, implementation: str) -> Problem:
    """Builds the model of a case and its loss."""
    model_config = ModelConfig(
        cell=cell,
        implementation=implementation,
        hidden_size=config.hidden_size,
        num_layers=case.num_layers,
        embedding_size=case.embedding_size,
    )
    return BUILDERS[case.kind](config, model_config)


def compute_relative_errors(problem: Problem) -> dict[str, float]:
    """Returns for each variable the relative error between the tape's gradient and the central differences."""
    analytic = compute_analytic_gradients(problem)
    numerical = compute_numerical_gradients(problem)
    return {name: numpy_reference.relative_error(analytic[name], numerical[name]) for name in problem.variables}


def compute_analytic_gradients(problem: Problem) -> dict[str, Array]:
    """Returns the gradients as training computes them, by a compiled `tf.GradientTape`."""

    def differentiate() -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = problem.loss()
        gradients = tape.gradient(loss, problem.variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return {name: tf.convert_to_tensor(gradient) for name, gradient in gradients.items()}

    compiled = tf.function(differentiate, autograph=False).get_concrete_function()
    return {name: gradient.numpy() for name, gradient in compiled().items()}


def compute_numerical_gradients(problem: Problem) -> dict[str, Array]:
    """Returns the central differences by every entry of every variable; restores the variables' values."""
    # the graph is traced once; each evaluation then takes a fraction of a millisecond
    compiled = tf.function(problem.loss, autograph=False).get_concrete_function()
    gradients = {}
    for name, variable in problem.variables.items():
        values = variable.numpy().copy()

        def loss(variable: tf.Variable = variable, values: Array = values) -> float:
            variable.assign(values)
            return float(compiled())

        gradients[name] = numpy_reference.central_differences(loss, values, STEP)
        variable.assign(values)
    return gradients


# The kinds of texts


def build_whole_texts(config: GradcheckConfig, model_config: ModelConfig) -> Problem:
    """Builds `CharRNN.loss` of a training batch, from a state of zeros."""
    generator = np.random.default_rng(config.seed)
    model = make_random_model(generator, model_config)
    ids = _make_random_ids(generator, config.batch_size, config.seq_length)
    return Problem(lambda: model.loss(ids), model.named_variables)


def build_learned_start(config: GradcheckConfig, model_config: ModelConfig) -> Problem:
    """Builds the loss from a learned initial state, with dropout, on a batch large enough to be halved on a CPU."""
    model_config = dataclasses.replace(model_config, learned_initial_state=True, dropout=0.5)
    generator = np.random.default_rng(config.seed)
    model = make_random_model(generator, model_config)
    ids = _make_random_ids(generator, max(_HALVED_BATCH, config.batch_size), config.seq_length)
    key = rng.key(config.seed, rng.Purpose.DROPOUT, 0)
    return Problem(lambda: model.loss(ids, dropout_key=key), model.named_variables)


def build_regularised(config: GradcheckConfig, model_config: ModelConfig) -> Problem:
    """Builds the loss with every kind of dropout, with one mask for all steps of a sequence and dropped weights."""
    on_input = 0.3 if model_config.embedding_size else 0.0
    has_kernel = get_cell_class(model_config.cell).num_recurrent_gates > 0
    model_config = dataclasses.replace(
        model_config,
        locked_dropout=True,
        dropout=0.3,
        output_dropout=0.3,
        input_dropout=on_input,
        embedding_dropout=on_input,
        weight_drop=0.3 if has_kernel else 0.0,
    )
    generator = np.random.default_rng(config.seed)
    model = make_random_model(generator, model_config)
    ids = _make_random_ids(generator, max(_HALVED_BATCH, config.batch_size), config.seq_length)
    key = rng.key(config.seed, rng.Purpose.DROPOUT, 0)
    return Problem(lambda: model.loss(ids, dropout_key=key), model.named_variables)


def build_residual(config: GradcheckConfig, model_config: ModelConfig) -> Problem:
    """Builds the loss of a model with residual connections and layer normalisation, with dropout between the layers."""
    model_config = dataclasses.replace(model_config, residual=True, layer_norm=True, dropout=0.3)
    generator = np.random.default_rng(config.seed)
    model = make_random_model(generator, model_config)
    ids = _make_random_ids(generator, config.batch_size, config.seq_length)
    key = rng.key(config.seed, rng.Purpose.DROPOUT, 0)
    return Problem(lambda: model.loss(ids, dropout_key=key), model.named_variables)


def build_padded_texts(config: GradcheckConfig, model_config: ModelConfig) -> Problem:
    """Builds the loss of padded lines of several lengths from a carried state; padding does not count."""
    generator = np.random.default_rng(config.seed)
    model = make_random_model(generator, model_config, LAYOUTS["lines"])
    lengths = config.seq_length - np.arange(config.batch_size) % (config.seq_length - 1)  # the first is not padded
    is_real = tf.sequence_mask(lengths, config.seq_length)
    ids = tf.where(is_real, _make_random_ids(generator, config.batch_size, config.seq_length), model.layout.pad_id)
    state = _make_random_state(generator, model, config.batch_size)

    def loss() -> tf.Tensor:
        losses, _ = model.losses(ids, _read_state(state))
        return tf.reduce_sum(losses) / model.count_targets(ids)

    return Problem(loss, model.named_variables | _name_state(state))


def build_skipped_steps(config: GradcheckConfig, model_config: ModelConfig) -> Problem:
    """Builds a loss of outputs and last state where a mask skips steps anywhere."""
    generator = np.random.default_rng(config.seed)
    model = make_random_model(generator, model_config)
    ids = _make_random_ids(generator, config.batch_size, config.seq_length)
    inputs, targets = map(tf.transpose, split_batch(ids))
    mask = tf.constant(generator.random(inputs.shape) < 0.6)
    state, d_last = (_make_random_state(generator, model, config.batch_size) for _ in range(2))

    def loss() -> tf.Tensor:
        embedding = None if model.embedding is None else tf.convert_to_tensor(model.embedding)
        hidden: SymbolInput | tf.Tensor = SymbolInput(inputs, _VOCABULARY, embedding)
        total = tf.zeros([], tf.float64)
        for cell, before, d_after in zip(model.cells, _read_state(state), _read_state(d_last), strict=True):
            kernel = None if cell.recurrent_kernel is None else tf.convert_to_tensor(cell.recurrent_kernel)
            hidden, after = model.backend.run_layer(cell, hidden, before, kernel, mask)
            total += tf.add_n([tf.reduce_mean(a * d) for a, d in zip(after, d_after, strict=True)])
        logits = tf.tensordot(hidden, model.output_weights, 1) + model.output_bias
        return total + tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits))

    return Problem(loss, model.named_variables | _name_state(state))


BUILDERS: dict[str, Builder] = {
    "whole": build_whole_texts,
    "learned": build_learned_start,
    "dropout": build_regularised,
    "residual": build_residual,
    "padded": build_padded_texts,
    "skipped": build_skipped_steps,
}


def make_random_model(
    generator: np.random.Generator, config: ModelConfig, layout: Layout = LAYOUTS["sequences"]
) -> CharRNN:
    """Makes a float64 model without zeros, which would hide gradients; the scale keeps sums small at any size."""
    model = CharRNN(config, _VOCABULARY, dtype=tf.float64, layout=layout)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0.0, variable.shape[0] ** -0.5, variable.shape))
    return model


def _make_random_state(generator: np.random.Generator, model: CharRNN, batch_size: int) -> VariableState:
    """Makes a state of variables `[batch, hidden]`."""
    return tuple(
        tuple(tf.Variable(generator.normal(0.0, 0.5, tensor.shape)) for tensor in layer)
        for layer in model.initial_state(batch_size)
    )


def _name_state(state: VariableState) -> dict[str, tf.Variable]:
    return {
        f"state/{layer}/{index}": variable for layer, part in enumerate(state) for index, variable in enumerate(part)
    }


def _read_state(state: VariableState) -> tuple[State, ...]:
    return tuple(tuple(map(tf.convert_to_tensor, part)) for part in state)


def _make_random_ids(generator: np.random.Generator, batch_size: int, seq_length: int) -> tf.Tensor:
    """Makes symbols other than padding, `[batch, seq_length]`."""
    return tf.constant(generator.integers(1, _VOCABULARY, (batch_size, seq_length)), tf.int32)
