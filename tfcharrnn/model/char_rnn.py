"""The language model: symbols in, logits of the next symbol out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.config import ModelConfig
from tfcharrnn.data.input_pipeline import split_batch
from tfcharrnn.errors import ConfigError
from tfcharrnn.layouts import LAYOUTS, Layout
from tfcharrnn.model import backends, input_projection, recurrence
from tfcharrnn.model.cells import State, cell_type
from tfcharrnn.model.cells.base import product
from tfcharrnn.model.initializers import initializers
from tfcharrnn.model.input_projection import Symbols

# From this batch size on, two halves are worth more than one whole.
_MIN_BATCH_TO_HALVE = 16


class CharRNN(tf.Module):
    """A stack of recurrent layers between a lookup of symbols and a softmax over them.

    Attributes:
        config: the sizes.
        vocabulary_size: symbols.
        layout: what the texts are like that it learns from.
        implementation: the code that runs the layers: see `tfcharrnn.model.backends`.
        cells: one cell a layer.
        embedding: `[vocabulary, embedding]`, or None for one-hot input.
        initial_states: for each layer the learned state before a text begins, each `[hidden]`; None: zero, not learned.
        output_kernel: `[hidden, vocabulary]`.
        output_bias: `[vocabulary]`.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        seed: int = 0,
        dtype: tf.DType = tf.float32,
        layout: Layout = LAYOUTS["sequences"],
    ):
        """Makes the variables; the same seed gives the same weights.

        Args:
            config: cell, sizes and implementation.
            vocabulary_size: symbols.
            seed: of the weights.
            dtype: of the variables and of all arithmetic.
            layout: what the texts are like; see `tfcharrnn.layouts`.

        Raises:
            ConfigError: the settings do not suit the layout.
        """
        super().__init__()
        check_suits(config, layout)
        self.config = config
        self.vocabulary_size = vocabulary_size
        self.layout = layout
        self.dtype = dtype
        self.compute_dtype = tf.bfloat16 if config.precision == "bfloat16" else dtype
        self.implementation = backends.choose(
            config.implementation, config.precision, dtype, config.recurrent_activation
        )

        def generator(index: int) -> np.random.Generator:
            return rng.generator(seed, rng.Purpose.WEIGHTS, 0, index)

        draw = initializers(config.initializer, config.initializer_scale)
        input_size = config.embedding_size or vocabulary_size
        self.embedding = None
        if config.embedding_size:
            values = draw.embedding(generator(1), vocabulary_size, input_size)
            self.embedding = tf.Variable(values, dtype=dtype, name="embedding")
        kind = cell_type(config.cell, config.recurrent_activation)
        self.cells = []
        for layer in range(config.num_layers):
            sizes = (input_size, config.hidden_size)
            self.cells.append(kind(*sizes, generator(2 + layer), dtype, self.compute_dtype, draw))
            input_size = config.hidden_size
        self.initial_states = None
        if config.learned_initial_state:
            self.initial_states = [
                [
                    tf.Variable(tf.zeros([config.hidden_size], dtype), name="initial_state")
                    for _ in range(cell.state_count)
                ]
                for cell in self.cells
            ]
        values = draw.kernel(generator(0), input_size, vocabulary_size)
        self.output_kernel = tf.Variable(values, dtype=dtype, name="output_kernel")
        self.output_bias = tf.Variable(tf.zeros([vocabulary_size], dtype), name="output_bias")

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(variable.shape.num_elements() for variable in self.trainable_variables)

    @property
    def named_variables(self) -> dict[str, tf.Variable]:
        """Every variable under the name that a checkpoint gives it below `model/`."""
        named = {"output_kernel": self.output_kernel, "output_bias": self.output_bias}
        if self.embedding is not None:
            named["embedding"] = self.embedding
        for layer, cell in enumerate(self.cells):
            named |= {f"cells/{layer}/{name}": getattr(cell, name) for name in ("kernel", "recurrent_kernel", "bias")}
        for layer, state in enumerate(self.initial_states or []):
            named |= {f"initial_states/{layer}/{index}": first for index, first in enumerate(state)}
        return named

    def initial_state(self, batch_size: int) -> tuple[State, ...]:
        """The state before a text begins, for each layer a tuple of tensors `[batch, hidden]`: zero, or as learned."""
        if self.initial_states is None:
            return tuple(cell.zero_state(batch_size) for cell in self.cells)
        return tuple(
            tuple(tf.tile(first[tf.newaxis], [batch_size, 1]) for first in state) for state in self.initial_states
        )

    def __call__(
        self, ids: tf.Tensor, state: Sequence[State] | None = None, dropout_key: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tuple[State, ...]]:
        """Runs a batch of texts through the model.

        Args:
            ids: symbols, `[batch, time]`.
            state: as `initial_state` gives, or as an earlier call left it; None: the initial one.
            dropout_key: `[2]`, as `tfcharrnn.rng.key` makes; None: no dropout, as outside of training.

        Returns:
            The logits of the symbol that follows each, `[batch, time, vocabulary]`, and the state after the last.
        """
        hidden, state = self._hidden(ids, state, self._dropout(dropout_key, range(ids.shape[0]), ids.shape[0]))
        return tf.transpose(self._logits(hidden), [1, 0, 2]), state

    def losses(
        self,
        ids: tf.Tensor,
        state: Sequence[State] | None = None,
        dropout_key: tf.Tensor | None = None,
        rows: range | None = None,
        batch_size: int = 0,
    ) -> tuple[tf.Tensor, tuple[State, ...]]:
        """Cross-entropy of each next symbol, -log softmax(logits)[target], in nats; 0 where the target is padding.

        On a CPU a batch goes through the model in two halves, which TensorFlow runs side by side: while one half's
        loop does its step's arithmetic on one core, the other half's product keeps the other core busy.

        Args:
            ids: whole examples, `[batch, width]`; each symbol but the first is the target of the one before.
            state: as in `__call__`, like `dropout_key`.
            dropout_key: see `state`.
            rows: of a larger batch, which are here; they decide what dropout drops. None: the batch is whole.
            batch_size: of that larger batch.

        Returns:
            The losses, `[batch, width - 1]`, or for a layout that predicts the last symbol only `[batch, 1]`; and the
            state after the last symbol but one.
        """
        place = (rows.start, batch_size) if rows else (0, ids.shape[0])
        losses, _, state = self._predict(ids, state, dropout_key, place)
        return losses, state

    def losses_and_hits(
        self, ids: tf.Tensor, state: Sequence[State] | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, tuple[State, ...]]:
        """The losses as `losses` gives them, and for each whether its target was the likeliest symbol.

        Symbols that are never predicted, such as `<S>`, are left out; of equally likely ones the first counts.

        Args:
            ids: as in `losses`, like `state`.
            state: see `ids`.

        Returns:
            The losses and the hits, a bool for each, and the state after the last symbol but one.
        """
        return self._predict(ids, state, None, (0, ids.shape[0]), with_hits=True)

    def _predict(
        self,
        ids: tf.Tensor,
        state: Sequence[State] | None,
        dropout_key: tf.Tensor | None,
        place: tuple[int, int],
        with_hits: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor | None, tuple[State, ...]]:
        """See `losses` and `losses_and_hits`; without hits there is None in their place.

        The batch stands in a larger one at `place`: its first row there, and how many rows that has.
        """
        batch = ids.shape[0]
        offset, all_rows = place
        state = self.initial_state(batch) if state is None else state
        halve = self.implementation.halves_batch and batch >= _MIN_BATCH_TO_HALVE
        bounds = [0, batch // 2, batch] if halve else [0, batch]
        losses, hits, states = [], [], []
        for first, end in itertools.pairwise(bounds):
            inputs, targets = split_batch(ids[first:end])
            before = tf.nest.map_structure(lambda array, first=first, end=end: array[first:end], tuple(state))
            dropout = self._dropout(dropout_key, range(offset + first, offset + end), all_rows)
            hidden, after = self._hidden(inputs, before, dropout)
            if self.layout.last_only:
                hidden, targets = hidden[-1:], targets[:, -1:]
            logits = self._logits(hidden)
            part = tf.transpose(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.transpose(targets), logits))
            if with_hits:
                first_id = self.layout.num_unpredicted
                likeliest = tf.argmax(logits[..., first_id:], axis=-1, output_type=targets.dtype) + first_id
                hits.append(tf.transpose(likeliest) == targets)
            if self.layout.pad_id is not None:
                part = tf.where(targets == self.layout.pad_id, tf.zeros_like(part), part)
            losses.append(part)
            states.append(after)
        after = tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *states)
        return tf.concat(losses, axis=0), tf.concat(hits, axis=0) if with_hits else None, after

    def num_targets(self, ids: tf.Tensor) -> tf.Tensor:
        """How many symbols of some examples are predicted: all but the first, or the last, and no padding.

        Args:
            ids: `[batch, width]`.

        Returns:
            A scalar of the model's type.
        """
        batch, width = ids.shape
        if self.layout.pad_id is None:
            return tf.constant(batch * (1 if self.layout.last_only else width - 1), self.dtype)
        return tf.reduce_sum(tf.cast(split_batch(ids)[1] != self.layout.pad_id, self.dtype))

    def loss(self, ids: tf.Tensor, dropout_key: tf.Tensor | None = None) -> tf.Tensor:
        """The mean of `losses` over the symbols that are predicted, a scalar in nats a character."""
        return tf.reduce_sum(self.losses(ids, None, dropout_key)[0]) / self.num_targets(ids)

    def _hidden(
        self, ids: tf.Tensor, state: Sequence[State] | None, dropout: Callable[[tf.Tensor, int, float], tf.Tensor]
    ) -> tuple[tf.Tensor, tuple[State, ...]]:
        """From ids `[batch, time]` to the last layer's outputs `[time, batch, hidden]`, and the state after them."""
        state = self.initial_state(ids.shape[0]) if state is None else state
        embedding = None if self.embedding is None else tf.convert_to_tensor(self.embedding)
        has_blank = self.config.zero_start
        hidden: Symbols | tf.Tensor = Symbols(
            self._with_zero_start(tf.transpose(ids)), self.vocabulary_size, embedding, has_blank
        )
        last = []
        for layer, cell in enumerate(self.cells):
            if layer:
                hidden = dropout(hidden, layer, self.config.dropout)
            hidden, layer_state = self.implementation.run_layer(cell, hidden, state[layer])
            last.append(layer_state)
        return dropout(hidden, len(self.cells), self.config.output_dropout), tuple(last)

    def _with_zero_start(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids in which, with `--zero_start`, the blank stands in place of `<S>`."""
        return tf.where(ids == self.layout.start_id, self.vocabulary_size, ids) if self.config.zero_start else ids

    def _logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """The output layer: from `[time, batch, hidden]` to `[time, batch, vocabulary]`, as one product."""
        time, batch, size = hidden.shape
        flat = product(tf.reshape(hidden, [-1, size]), self.output_kernel, self.compute_dtype)
        return tf.reshape(tf.nn.bias_add(flat, self.output_bias), [time, batch, self.vocabulary_size])

    def _dropout(self, key: tf.Tensor | None, rows: range, batch: int) -> Callable[[tf.Tensor, int, float], tf.Tensor]:
        """Dropout for some rows of a batch; which values it drops does not depend on how the batch is divided.

        It zeroes a share of the values and scales the others up to keep the mean (Srivastava et al. 2014).
        """

        def dropout(x: tf.Tensor, layer: int, rate: float) -> tf.Tensor:
            if not rate or key is None:
                return x
            time, _, size = x.shape
            own_key = key + tf.constant([0, layer], tf.int64)
            if len(rows) == batch:
                uniform = rng.uniform([time, batch, size], own_key)
            else:
                uniform = rng.uniform_rows(time, batch, size, rows)(own_key)
            return tf.where(uniform >= rate, x / (1.0 - rate), tf.zeros_like(x))

        return dropout

    def stepper(
        self,
    ) -> tuple[Callable[[tf.Tensor, Sequence[State]], tuple[State, ...]], Callable[[Sequence[State]], tf.Tensor]]:
        """Two functions to read one symbol more, for loops that choose the next symbol as they go.

        Returns:
            `advance(ids, state) -> state`, with ids `[batch]`, where an id equal to `vocabulary_size` stands for no
            symbol, a vector of zeros; and `logits(state)`, those of the symbol that follows, `[batch, vocabulary]`.
            What is the same at every step is computed here, once.
        """
        embedding = None if self.embedding is None else tf.convert_to_tensor(self.embedding)
        table = input_projection.symbol_table(self.cells[0], embedding, has_blank=True)

        def advance(ids: tf.Tensor, state: Sequence[State]) -> tuple[State, ...]:
            projected = tf.gather(table, self._with_zero_start(ids))
            after: list[State] = []
            for layer, cell in enumerate(self.cells):
                if layer:
                    projected = cell.product(after[-1][0], tf.convert_to_tensor(cell.kernel)) + cell.input_bias
                after.append(recurrence.step_cell(cell, projected, state[layer]))
            return tuple(after)

        def logits(state: Sequence[State]) -> tf.Tensor:
            return product(state[-1][0], self.output_kernel, self.compute_dtype) + self.output_bias

        return advance, logits


class Carried(tf.Module):
    """What a stream carries from one training step to the next.

    Attributes:
        state: the model's state after the symbols read so far, variables `[batch, hidden]`.
        symbols: the symbols that are read next, int32 `[batch]`.
    """

    def __init__(self, model: CharRNN, batch_size: int):
        """Makes the variables; each epoch sets them anew."""
        super().__init__()
        self.state = tf.nest.map_structure(
            lambda first: tf.Variable(first, trainable=False, name="state"), model.initial_state(batch_size)
        )
        self.symbols = tf.Variable(tf.zeros([batch_size], tf.int32), trainable=False, name="symbols")


def check_suits(config: ModelConfig, layout: Layout) -> None:
    """Checks that a network and a layout go together.

    Raises:
        ConfigError: they do not.
    """
    if config.zero_start and layout.start_id is None:
        raise ConfigError(f"--zero_start stands in place of <S>, which --layout={layout.name} does not have")
