"""The language model: symbols in, logits of the next symbol out."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.errors import ConfigError
from tfcharrnn.layouts import LAYOUTS, Layout
from tfcharrnn.model import backends
from tfcharrnn.model.cells import State, get_cell_class
from tfcharrnn.model.cells.base import get_initializers, matmul, normalise_layer
from tfcharrnn.model.dropout import Dropout
from tfcharrnn.model.input_projection import SymbolInput

if TYPE_CHECKING:
    from tfcharrnn.config import ModelConfig

# From this batch size on, two halves of a batch are faster than the whole.
_MIN_BATCH_TO_HALVE = 16


class CharRNN(tf.Module):
    """A stack of recurrent layers between an input of symbols and a softmax over the next symbol.

    Args:
        config: cell, sizes and backend.
        vocabulary_size: number of symbols.
        seed: seed of the initial weights.
        dtype: dtype of the variables and of all arithmetic; None: that of the configuration, float32 or float64.
        layout: the layout of the training examples; decides about padding and which symbols are predicted.

    Raises:
        ConfigError: the configuration does not suit the layout.
        UserError: the backend is not available, or does not support the configuration.

    Attributes:
        backend: the code that runs the layers, see `tfcharrnn.model.backends`.
        cells: one cell for each layer.
        embedding: `[vocabulary, embedding]`; None: one-hot input.
        initial_states: the learned initial state of each layer, variables `[hidden]`; None: zeros, not learned.
        norms: with `--layer_norm` the gain and shift of the normalisation after each layer; else None.
        output_kernel: `[hidden, vocabulary]`; None with `--tie_embedding`, see `output_weights`.
        output_bias: `[vocabulary]`.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        seed: int = 0,
        dtype: tf.DType | None = None,
        layout: Layout = LAYOUTS["sequences"],
    ):
        super().__init__()
        check_zero_start(config, layout)
        self.config = config
        self.vocabulary_size = vocabulary_size
        self.layout = layout
        self.dtype = dtype = dtype or (tf.float64 if config.precision == "float64" else tf.float32)
        self.compute_dtype = tf.bfloat16 if config.precision == "bfloat16" else dtype
        self.backend = backends.choose_backend(config, dtype)

        # a generator for each matrix or cell: 0 output kernel, 1 embedding, 2... cells
        generators = [rng.generator(seed, rng.Purpose.WEIGHTS, 0, index) for index in range(2 + config.num_layers)]
        initializers = get_initializers(config.initializer, config.initializer_scale)
        input_size = config.embedding_size or vocabulary_size
        self.embedding = None
        if config.embedding_size:
            values = initializers.embedding(generators[1], vocabulary_size, input_size)
            self.embedding = tf.Variable(values, dtype=dtype, name="embedding")
        cell_class = get_cell_class(config.cell, config.recurrent_activation)
        self.cells = []
        for generator in generators[2:]:
            cell = cell_class(input_size, config.hidden_size, generator, dtype, self.compute_dtype, initializers)
            self.cells.append(cell)
            input_size = config.hidden_size
        self.initial_states = None
        if config.learned_initial_state:
            self.initial_states = [
                [
                    tf.Variable(tf.zeros([config.hidden_size], dtype), name="initial_state")
                    for _ in range(cell.num_state_tensors)
                ]
                for cell in self.cells
            ]
        self.norms = None
        if config.layer_norm:
            self.norms = [LayerNorm(config.hidden_size, dtype) for _ in self.cells]
        values = initializers.kernel(generators[0], input_size, vocabulary_size)
        self.output_kernel = None
        if self.embedding is not None and config.tie_embedding:
            self.embedding.assign(values.T)  # an embedding's own initial values would be too large for logits
        else:
            self.output_kernel = tf.Variable(values, dtype=dtype, name="output_kernel")
        self.output_bias = tf.Variable(tf.zeros([vocabulary_size], dtype), name="output_bias")

    @property
    def num_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(variable.shape.num_elements() for variable in self.trainable_variables)

    @property
    def output_weights(self) -> tf.Tensor:
        """The weights of the output layer, `[hidden, vocabulary]`: its own, or the embedding (Press & Wolf 2017)."""
        if self.output_kernel is not None:
            return tf.convert_to_tensor(self.output_kernel)
        return tf.transpose(self.embedding)

    @property
    def named_variables(self) -> dict[str, tf.Variable]:
        """Every variable by its name in a checkpoint, without the prefix `model/`."""
        named = {} if self.output_kernel is None else {"output_kernel": self.output_kernel}
        named["output_bias"] = self.output_bias
        if self.embedding is not None:
            named["embedding"] = self.embedding
        for layer, cell in enumerate(self.cells):
            named |= {f"cells/{layer}/{name}": variable for name, variable in cell.named_variables.items()}
        for layer, norm in enumerate(self.norms or []):
            named |= {f"norms/{layer}/gain": norm.gain, f"norms/{layer}/shift": norm.shift}
        for layer, state in enumerate(self.initial_states or []):
            named |= {f"initial_states/{layer}/{index}": variable for index, variable in enumerate(state)}
        return named

    def copy(self) -> CharRNN:
        """Returns another model with the same configuration and the same weights."""
        other = CharRNN(self.config, self.vocabulary_size, dtype=self.dtype, layout=self.layout)
        for variable, value in zip(other.trainable_variables, self.trainable_variables, strict=True):
            variable.assign(value)
        return other

    def initial_state(self, batch_size: int) -> tuple[State, ...]:
        """Returns the state before the first symbol, zero or learned: for each layer tensors `[batch, hidden]`."""
        if self.initial_states is None:
            return tuple(cell.zero_state(batch_size) for cell in self.cells)
        return tuple(
            tuple(tf.tile(variable[tf.newaxis], [batch_size, 1]) for variable in state) for state in self.initial_states
        )

    def __call__(
        self, ids: tf.Tensor, state: Sequence[State] | None = None, dropout_key: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tuple[State, ...]]:
        """Computes the logits of the symbol after each symbol of a batch.

        Args:
            ids: symbols, `[batch, time]`.
            state: the state returned by an earlier call; None: `initial_state`.
            dropout_key: `[2]`, from `tfcharrnn.rng.key`; None: no dropout.

        Returns:
            The logits, `[batch, time, vocabulary]`, and the state after the last symbol.
        """
        batch_size = ids.shape[0]
        state = self.initial_state(batch_size) if state is None else state
        hidden, state = self._run_layers(ids, state, self._make_dropout(dropout_key, range(batch_size), batch_size))
        return tf.transpose(self._compute_logits(hidden), [1, 0, 2]), state

    def losses(
        self,
        ids: tf.Tensor,
        state: Sequence[State] | None = None,
        dropout_key: tf.Tensor | None = None,
        rows: range | None = None,
        batch_size: int = 0,
    ) -> tuple[tf.Tensor, tuple[State, ...]]:
        """Computes the cross-entropy of each next symbol, -log softmax(logits)[target], in nats.

        On a CPU the batch goes through the model in two halves, which TensorFlow runs side by side: while one half's
        loop does the arithmetic of a step on one core, the matrix product of the other half keeps the other core busy.

        Args:
            ids: whole examples, `[batch, width]`; the target of a symbol is the symbol that follows it.
            state: the state returned by an earlier call; None: `initial_state`.
            dropout_key: `[2]`, from `tfcharrnn.rng.key`; None: no dropout.
            rows: which rows of a larger batch `ids` are; they decide what dropout drops. None: `ids` is a whole batch.
            batch_size: the number of rows of the larger batch.

        Returns:
            The losses, `[batch, width - 1]`, zero where the target is padding, or `[batch, 1]` for a layout that
            predicts the last symbol only; and the state after the last symbol but one, where `state` is given without
            padding.
        """
        losses, _, state = self._predict(ids, state, dropout_key, rows, batch_size)
        return losses, state

    def losses_and_hits(
        self, ids: tf.Tensor, state: Sequence[State] | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, tuple[State, ...]]:
        """Computes `losses` without dropout, and for each whether its target is the most likely symbol.

        Symbols that are never predicted, such as `<S>`, are ignored; of equally likely symbols the first counts.

        Returns:
            The losses, the hits, bools of the same shape, and the state after the last symbol but one.
        """
        return self._predict(ids, state, with_hits=True)

    def _predict(
        self,
        ids: tf.Tensor,
        state: Sequence[State] | None = None,
        dropout_key: tf.Tensor | None = None,
        rows: range | None = None,
        batch_size: int = 0,
        with_hits: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor | None, tuple[State, ...]]:
        """Computes losses, hits (None unless asked for) and the state after; the arguments are those of `losses`."""
        batch = ids.shape[0]
        if rows is None:
            rows, batch_size = range(batch), batch
        is_carried, pad_id = state is not None, self.layout.pad_id
        state = self.initial_state(batch) if state is None else state
        is_halved = self.backend.halves_batch and batch >= _MIN_BATCH_TO_HALVE
        bounds = [0, batch // 2, batch] if is_halved else [0, batch]
        losses, hits, states = [], [], []
        for first, end in itertools.pairwise(bounds):
            inputs, targets = split_batch(ids[first:end])
            before = tf.nest.map_structure(lambda array, first=first, end=end: array[first:end], tuple(state))
            dropout = self._make_dropout(dropout_key, rows[first:end], batch_size)
            # only who passes a state on needs that after the last symbol of a row, not after its padding
            mask = None if pad_id is None or not is_carried else tf.transpose(targets != pad_id)
            hidden, after = self._run_layers(inputs, before, dropout, mask, is_training=not with_hits)
            if self.layout.last_only:
                hidden, targets = hidden[-1:], targets[:, -1:]
            logits = self._compute_logits(hidden)
            part = tf.transpose(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.transpose(targets), logits))
            if with_hits:
                first_id = self.layout.num_unpredicted
                likeliest = tf.argmax(logits[..., first_id:], axis=-1, output_type=targets.dtype) + first_id
                hits.append(tf.transpose(likeliest) == targets)
            if pad_id is not None:
                part = tf.where(targets == pad_id, tf.zeros_like(part), part)
            losses.append(part)
            states.append(after)
        after = tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *states)
        return tf.concat(losses, axis=0), tf.concat(hits, axis=0) if with_hits else None, after

    def count_targets(self, ids: tf.Tensor) -> tf.Tensor:
        """Counts the predicted symbols in examples `[batch, width]`; returns a scalar of the model's dtype."""
        batch, width = ids.shape
        if self.layout.pad_id is None:
            return tf.constant(batch * (1 if self.layout.last_only else width - 1), self.dtype)
        return tf.reduce_sum(tf.cast(split_batch(ids)[1] != self.layout.pad_id, self.dtype))

    def loss(self, ids: tf.Tensor, dropout_key: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the mean of `losses` over the predicted symbols, a scalar in nats a character."""
        return tf.reduce_sum(self.losses(ids, None, dropout_key)[0]) / self.count_targets(ids)

    def _make_dropout(self, key: tf.Tensor | None, rows: range, batch_size: int) -> Dropout:
        return Dropout(key, rows, batch_size, self.config.locked_dropout)

    def _run_layers(
        self,
        ids: tf.Tensor,
        state: Sequence[State],
        dropout: Dropout,
        mask: tf.Tensor | None = None,
        *,
        is_training: bool = True,
    ) -> tuple[tf.Tensor, tuple[State, ...]]:
        """Runs all layers on ids `[batch, time]`; unless `is_training`, the result has no gradient.

        Returns:
            The outputs of the last layer, `[time, batch, hidden]`, and the state after the last symbol.
        """
        config, embedding = self.config, None
        if self.embedding is not None:
            embedding = dropout.drop_symbols(tf.convert_to_tensor(self.embedding), config.embedding_dropout)
        symbols = self.replace_start(tf.transpose(ids))
        hidden: SymbolInput | tf.Tensor = SymbolInput(symbols, self.vocabulary_size, embedding, config.zero_start)
        if config.input_dropout and dropout.key is not None:
            hidden = dropout.drop_activations(hidden.to_vectors(self.dtype), 0, config.input_dropout)
        outputs: list[tf.Tensor] = []
        last = []
        for layer, cell in enumerate(self.cells):
            if layer:
                hidden = dropout.drop_activations(self.combine_outputs(outputs), layer, config.dropout)
            kernel = None if cell.recurrent_kernel is None else tf.convert_to_tensor(cell.recurrent_kernel)
            if kernel is not None:
                kernel = dropout.drop_recurrent_kernel(kernel, layer, config.weight_drop)
            run_layer = self.backend.run_layer if is_training else self.backend.infer_layer
            output, layer_state = run_layer(cell, hidden, state[layer], kernel, mask)
            outputs.append(output)
            last.append(layer_state)
        hidden = self.combine_outputs(outputs)
        return dropout.drop_activations(hidden, len(self.cells), config.output_dropout), tuple(last)

    def combine_outputs(self, outputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns what enters the next layer, or the output layer, from the outputs of the layers so far.

        That is the last output, with `--residual` the sum of all (He et al. 2016), and with `--layer_norm` that
        normalised (Ba et al. 2016; before each layer and after the last, as in Xiong et al. 2020).

        Args:
            outputs: tensors `[..., hidden]`.
        """
        hidden = outputs[-1]
        if self.config.residual:
            hidden = functools.reduce(operator.add, outputs)
        return hidden if self.norms is None else self.norms[len(outputs) - 1](hidden)

    def replace_start(self, ids: tf.Tensor) -> tf.Tensor:
        """Replaces `<S>` with the id of the zero vector if the model has `--zero_start`."""
        return tf.where(ids == self.layout.start_id, self.vocabulary_size, ids) if self.config.zero_start else ids

    def _compute_logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Applies the output layer, `[time, batch, hidden]` to `[time, batch, vocabulary]`, as one product."""
        time, batch, size = hidden.shape
        flat = matmul(tf.reshape(hidden, [-1, size]), self.output_weights, self.compute_dtype)
        return tf.reshape(tf.nn.bias_add(flat, self.output_bias), [time, batch, self.vocabulary_size])


class LayerNorm(tf.Module):
    """Normalises vectors over their last axis, with a gain and a shift (Ba et al. 2016, eq. 4).

    Attributes:
        gain: `[size]`, initially 1.
        shift: `[size]`, initially 0.
    """

    def __init__(self, size: int, dtype: tf.DType):
        super().__init__()
        self.gain = tf.Variable(tf.ones([size], dtype), name="gain")
        self.shift = tf.Variable(tf.zeros([size], dtype), name="shift")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns gain (x - mean) / sqrt(variance + 1e-5) + shift, `[..., size]`."""
        return self.gain * normalise_layer(x) + self.shift


class StreamState(tf.Module):
    """What training on a stream carries over from one step to the next.

    Args:
        model: provides the shapes and the initial state.
        batch_size: number of parallel streams.

    Attributes:
        state: the model's state after the symbols read so far, variables `[batch, hidden]`.
        symbols: the symbols to read next, int32 `[batch]`.
    """

    def __init__(self, model: CharRNN, batch_size: int):
        super().__init__()
        self.state = tf.nest.map_structure(
            lambda first: tf.Variable(first, trainable=False, name="state"), model.initial_state(batch_size)
        )
        self.symbols = tf.Variable(tf.zeros([batch_size], tf.int32), trainable=False, name="symbols")


def variable_shapes(config: ModelConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each of `CharRNN.named_variables`, without making a model, which may be too large."""
    cell = get_cell_class(config.cell, config.recurrent_activation)
    hidden, input_size = config.hidden_size, config.embedding_size or vocabulary_size
    shapes: dict[str, tuple[int, ...]] = {"output_bias": (vocabulary_size,)}
    if not config.tie_embedding:
        shapes["output_kernel"] = (hidden, vocabulary_size)
    if config.embedding_size:
        shapes["embedding"] = (vocabulary_size, input_size)
    for layer in range(config.num_layers):
        for name, shape in cell.variable_shapes(hidden if layer else input_size, hidden).items():
            shapes[f"cells/{layer}/{name}"] = shape
        for index in range(cell.num_state_tensors if config.learned_initial_state else 0):
            shapes[f"initial_states/{layer}/{index}"] = (hidden,)
        for name in ("gain", "shift") if config.layer_norm else ():
            shapes[f"norms/{layer}/{name}"] = (hidden,)
    return shapes


def check_zero_start(config: ModelConfig, layout: Layout) -> None:
    """Checks that a model with `--zero_start` has a layout with `<S>`.

    Raises:
        ConfigError: it has not.
    """
    if config.zero_start and layout.start_id is None:
        raise ConfigError(f"--zero_start replaces <S>, which --layout={layout.name} does not have")


def split_batch(ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits examples into inputs and targets; the target of a symbol is the symbol that follows it.

    Args:
        ids: `[batch, width]`.

    Returns:
        Two tensors `[batch, width - 1]`: all ids but the last, and all but the first.
    """
    return ids[:, :-1], ids[:, 1:]
