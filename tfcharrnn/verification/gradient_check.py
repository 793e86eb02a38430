"""The gradients that training uses against central differences of the same TensorFlow code, in float64.

A central difference knows nothing of backward passes: it runs the model forward twice with one number changed. So it
finds what is wrong with a gradient written by hand, whether in the formula or in the code.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.config import GradcheckConfig, ModelConfig
from tfcharrnn.data.input_pipeline import split_batch
from tfcharrnn.layouts import LAYOUTS, Layout
from tfcharrnn.model import input_projection, recurrence
from tfcharrnn.model.cells import State
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.verification import numpy_reference

# The formula's error grows as step^2 times the third derivative, that of rounding as 1e-16 / step times the loss. Were
# both factors 1, the best step would be near 6e-6; the third derivatives of these losses are smaller by two or three
# orders, which moves it here: the worst relative error of all cells is then about 1e-8, a tenth of that at 6e-6.
STEP = 5e-5
_VOCABULARY = 7
# A batch that `CharRNN.losses` divides into two halves on a CPU.
_HALVED_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss and what it is differentiated by.

    Attributes:
        loss: computes the scalar in float64 from the variables' values; anything else that it reads is constant.
        variables: by name.
    """

    loss: Callable[[], tf.Tensor]
    variables: dict[str, tf.Variable]


Builder = Callable[[GradcheckConfig, ModelConfig], Problem]
VariableState = tuple[tuple[tf.Variable, ...], ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table: a model's shape and what it is given to read; see `BUILDERS` for the kinds."""

    num_layers: int
    embedding_size: int
    kind: str


def cases(config: GradcheckConfig) -> list[Case]:
    """One layer and as many as the config says, each with one-hot input and with an embedding, each kind of text."""
    layers, sizes = sorted({1, config.num_layers}), sorted({0, config.embedding_size})
    return [Case(*case) for case in itertools.product(layers, sizes, BUILDERS)]


def applies(case: Case, implementation: str) -> bool:
    """Whether an implementation can do what a case asks for: Keras is never asked to skip steps."""
    return case.kind != "skipped" or implementation == "custom"


def build(config: GradcheckConfig, case: Case, cell: str, implementation: str) -> Problem:
    """What a case asks of a cell and an implementation."""
    model_config = ModelConfig(
        cell=cell,
        implementation=implementation,
        hidden_size=config.hidden_size,
        num_layers=case.num_layers,
        embedding_size=case.embedding_size,
    )
    return BUILDERS[case.kind](config, model_config)


def relative_errors(problem: Problem) -> dict[str, float]:
    """For each variable `reference.relative_error` between the tape's gradient and the central differences."""
    analytic = analytic_gradients(problem)
    numerical = numerical_gradients(problem)
    return {name: numpy_reference.relative_error(analytic[name], numerical[name]) for name in problem.variables}


def analytic_gradients(problem: Problem) -> dict[str, numpy_reference.Array]:
    """The gradients as training gets them, from a compiled `tf.GradientTape`; each in its variable's shape."""

    def gradients() -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = problem.loss()
        found = tape.gradient(loss, problem.variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return {name: tf.convert_to_tensor(gradient) for name, gradient in found.items()}

    compiled = tf.function(gradients, autograph=False).get_concrete_function()
    return {name: gradient.numpy() for name, gradient in compiled().items()}


def numerical_gradients(problem: Problem) -> dict[str, numpy_reference.Array]:
    """Central differences by every entry of every variable, each in its variable's shape; the values are put back."""
    # a graph is traced once and then costs a fraction of a millisecond, as often as there are numbers to change
    compiled = tf.function(problem.loss, autograph=False).get_concrete_function()
    gradients = {}
    for name, variable in problem.variables.items():
        values = variable.numpy().copy()

        def loss(variable: tf.Variable = variable, values: numpy_reference.Array = values) -> float:
            variable.assign(values)
            return float(compiled())

        gradients[name] = numpy_reference.central_differences(loss, values, STEP)
        variable.assign(values)
    return gradients


# The kinds of text


def whole_texts(config: GradcheckConfig, model_config: ModelConfig) -> Problem:
    """A batch as training reads it, from a state of zeros: `CharRNN.loss`."""
    rng = np.random.default_rng(config.seed)
    model = random_model(rng, model_config)
    ids = _random_ids(rng, config.batch_size, config.seq_length)
    return Problem(lambda: model.loss(ids), model.named_variables)


def learned_start(config: GradcheckConfig, model_config: ModelConfig) -> Problem:
    """From a learned state, with dropout, and a batch so large that on a CPU it is halved."""
    model_config = dataclasses.replace(model_config, learned_initial_state=True, dropout=0.5)
    generator = np.random.default_rng(config.seed)
    model = random_model(generator, model_config)
    ids = _random_ids(generator, max(_HALVED_BATCH, config.batch_size), config.seq_length)
    key = rng.key(config.seed, rng.Purpose.DROPOUT, 0)
    return Problem(lambda: model.loss(ids, dropout_key=key), model.named_variables)


def padded_texts(config: GradcheckConfig, model_config: ModelConfig) -> Problem:
    """Lines of several lengths, padded, that go on from a carried state; the loss is that of their real characters."""
    rng = np.random.default_rng(config.seed)
    model = random_model(rng, model_config, LAYOUTS["lines"])
    lengths = config.seq_length - np.arange(config.batch_size) % (config.seq_length - 1)  # the first is whole
    real = tf.sequence_mask(lengths, config.seq_length)
    ids = tf.where(real, _random_ids(rng, config.batch_size, config.seq_length), model.layout.pad_id)
    state = _random_state(rng, model, config.batch_size)

    def loss() -> tf.Tensor:
        losses, _ = model.losses(ids, _values(state))
        return tf.reduce_sum(losses) / model.num_targets(ids)

    return Problem(loss, model.named_variables | _named_state(state))


def skipped_steps(config: GradcheckConfig, model_config: ModelConfig) -> Problem:
    """Steps skipped by `recurrence.run_cell`'s mask, anywhere in a text; the last state is a part of the loss."""
    rng = np.random.default_rng(config.seed)
    model = random_model(rng, model_config)
    inputs, targets = (tf.transpose(ids) for ids in split_batch(_random_ids(rng, config.batch_size, config.seq_length)))
    mask = tf.constant(rng.random(inputs.shape) < 0.6)
    state, d_last = (_random_state(rng, model, config.batch_size) for _ in range(2))

    def loss() -> tf.Tensor:
        embedding = None if model.embedding is None else tf.convert_to_tensor(model.embedding)
        hidden: input_projection.Symbols | tf.Tensor = input_projection.Symbols(inputs, _VOCABULARY, embedding)
        total = tf.zeros([], tf.float64)
        for cell, before, d_after in zip(model.cells, _values(state), _values(d_last), strict=True):
            hidden, after = recurrence.run_cell(cell, input_projection.project(cell, hidden), before, mask)
            total += tf.add_n([tf.reduce_mean(a * d) for a, d in zip(after, d_after, strict=True)])
        logits = tf.tensordot(hidden, model.output_kernel, 1) + model.output_bias
        return total + tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits))

    return Problem(loss, model.named_variables | _named_state(state))


BUILDERS: dict[str, Builder] = {
    "whole": whole_texts,
    "learned": learned_start,
    "padded": padded_texts,
    "skipped": skipped_steps,
}


def random_model(rng: np.random.Generator, config: ModelConfig, layout: Layout = LAYOUTS["sequences"]) -> CharRNN:
    """A model in float64 none of whose numbers is zero, so that no gradient is hidden; sums stay small at any size."""
    model = CharRNN(config, _VOCABULARY, dtype=tf.float64, layout=layout)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.0, variable.shape[0] ** -0.5, variable.shape))
    return model


def _random_state(rng: np.random.Generator, model: CharRNN, batch_size: int) -> VariableState:
    """For each layer a tuple of variables `[batch, hidden]`."""
    return tuple(
        tuple(tf.Variable(rng.normal(0.0, 0.5, tensor.shape)) for tensor in layer)
        for layer in model.initial_state(batch_size)
    )


def _named_state(state: VariableState) -> dict[str, tf.Variable]:
    return {
        f"state/{layer}/{index}": variable for layer, part in enumerate(state) for index, variable in enumerate(part)
    }


def _values(state: VariableState) -> tuple[State, ...]:
    return tuple(tuple(map(tf.convert_to_tensor, part)) for part in state)


def _random_ids(rng: np.random.Generator, batch_size: int, seq_length: int) -> tf.Tensor:
    """Symbols, none of them the padding, `[batch, seq_length]`."""
    return tf.constant(rng.integers(1, _VOCABULARY, (batch_size, seq_length)), tf.int32)
