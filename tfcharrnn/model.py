"""The language model: symbols in, logits of the next symbol out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfcharrnn import implementations, projection, randomness, recurrence
from tfcharrnn.cells import CELLS, State
from tfcharrnn.cells.base import glorot_uniform, product
from tfcharrnn.config import ModelConfig
from tfcharrnn.pipeline import split_batch
from tfcharrnn.projection import Symbols

# From this batch size on, two halves are worth more than one whole.
_MIN_BATCH_TO_HALVE = 16


class CharRNN(tf.Module):
    """A stack of recurrent layers between a lookup of symbols and a softmax over them.

    Attributes:
        config: the sizes.
        vocabulary_size: symbols.
        implementation: the code that runs the layers: see `tfcharrnn.implementations`.
        cells: one cell a layer.
        embedding: `[vocabulary, embedding]`, or None for one-hot input.
        initial_states: for each layer the learned state before a text begins, each `[hidden]`; None: zero, not learned.
        output_kernel: `[hidden, vocabulary]`.
        output_bias: `[vocabulary]`.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, seed: int = 0, dtype: tf.DType = tf.float32):
        """Makes the variables; the same seed gives the same weights.

        Args:
            config: cell, sizes and implementation.
            vocabulary_size: symbols.
            seed: of the weights.
            dtype: of the variables and of all arithmetic.
        """
        super().__init__()
        self.config = config
        self.vocabulary_size = vocabulary_size
        self.dtype = dtype
        self.compute_dtype = tf.bfloat16 if config.precision == "bfloat16" else dtype
        self.implementation = implementations.choose(config.implementation, config.precision, dtype)

        def rng(index: int) -> np.random.Generator:
            return randomness.generator(seed, randomness.Purpose.WEIGHTS, 0, index)

        input_size = config.embedding_size or vocabulary_size
        self.embedding = None
        if config.embedding_size:
            values = rng(1).standard_normal((vocabulary_size, input_size))
            self.embedding = tf.Variable(values, dtype=dtype, name="embedding")
        self.cells = []
        for layer in range(config.num_layers):
            self.cells.append(
                CELLS[config.cell](input_size, config.hidden_size, rng(2 + layer), dtype, self.compute_dtype)
            )
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
        self.output_kernel = tf.Variable(
            glorot_uniform(rng(0), input_size, vocabulary_size), dtype=dtype, name="output_kernel"
        )
        self.output_bias = tf.Variable(tf.zeros([vocabulary_size], dtype), name="output_bias")

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(variable.shape.num_elements() for variable in self.trainable_variables)

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
            dropout_key: `[2]`, as `tfcharrnn.randomness.key` makes; None: no dropout, as outside of training.

        Returns:
            The logits of the symbol that follows each, `[batch, time, vocabulary]`, and the state after the last.
        """
        rows = range(ids.shape[0])
        logits, state = self._time_major_logits(tf.transpose(ids), state, self._dropout(dropout_key, rows, len(rows)))
        return tf.transpose(logits, [1, 0, 2]), state

    def losses(self, ids: tf.Tensor, dropout_key: tf.Tensor | None = None) -> tf.Tensor:
        """Cross-entropy of each next symbol, -log softmax(logits)[target], in nats.

        On a CPU a batch goes through the model in two halves, which TensorFlow runs side by side: while one half's
        loop does its step's arithmetic on one core, the other half's product keeps the other core busy.

        Args:
            ids: whole sequences, `[batch, seq_length]`; each symbol but the first is the target of the one before.
            dropout_key: as in `__call__`.

        Returns:
            `[batch, seq_length - 1]`.
        """
        batch = ids.shape[0]
        halve = self.implementation.halves_batch and batch >= _MIN_BATCH_TO_HALVE
        bounds = [0, batch // 2, batch] if halve else [0, batch]
        losses = []
        for first, end in itertools.pairwise(bounds):
            inputs, targets = split_batch(ids[first:end])
            dropout = self._dropout(dropout_key, range(first, end), batch)
            logits, _ = self._time_major_logits(tf.transpose(inputs), None, dropout)
            part = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.transpose(targets), logits)
            losses.append(tf.transpose(part))
        return tf.concat(losses, axis=0)

    def loss(self, ids: tf.Tensor, dropout_key: tf.Tensor | None = None) -> tf.Tensor:
        """The mean of `losses`, a scalar in nats a character."""
        return tf.reduce_mean(self.losses(ids, dropout_key))

    def _time_major_logits(
        self, ids: tf.Tensor, state: Sequence[State] | None, dropout: Callable[[tf.Tensor, int], tf.Tensor]
    ) -> tuple[tf.Tensor, tuple[State, ...]]:
        """From ids `[time, batch]` to logits `[time, batch, vocabulary]`; `dropout(x, layer)` stands before a layer."""
        time, batch = ids.shape
        state = self.initial_state(batch) if state is None else state
        embedding = None if self.embedding is None else tf.convert_to_tensor(self.embedding)
        hidden: Symbols | tf.Tensor = Symbols(ids, self.vocabulary_size, embedding)
        last = []
        for layer, cell in enumerate(self.cells):
            if layer:
                hidden = dropout(hidden, layer)
            hidden, layer_state = self.implementation.run_layer(cell, hidden, state[layer])
            last.append(layer_state)
        flat = product(tf.reshape(hidden, [-1, self.config.hidden_size]), self.output_kernel, self.compute_dtype)
        logits = tf.reshape(tf.nn.bias_add(flat, self.output_bias), [time, batch, self.vocabulary_size])
        return logits, tuple(last)

    def _dropout(self, key: tf.Tensor | None, rows: range, batch: int) -> Callable[[tf.Tensor, int], tf.Tensor]:
        """Dropout for some rows of a batch; which values it drops does not depend on how the batch is divided.

        It zeroes a share of the values and scales the others up to keep the mean (Srivastava et al. 2014).
        """
        rate = self.config.dropout

        def dropout(x: tf.Tensor, layer: int) -> tf.Tensor:
            if not rate or key is None:
                return x
            time, _, size = x.shape
            uniform = randomness.uniform([time, batch, size], key + tf.constant([0, layer], tf.int64))
            return tf.where(uniform[:, rows.start : rows.stop] >= rate, x / (1.0 - rate), tf.zeros_like(x))

        return dropout

    def stepper(self) -> Callable[[tf.Tensor, Sequence[State]], tuple[tf.Tensor, tuple[State, ...]]]:
        """A function that reads one symbol more, for loops that choose the next symbol as they go.

        Returns:
            `step(ids, state) -> (logits, state)` with ids `[batch]` and logits `[batch, vocabulary]`. What is the same
            at every step is computed here, once.
        """
        embedding = None if self.embedding is None else tf.convert_to_tensor(self.embedding)
        table = projection.symbol_table(self.cells[0], embedding)

        def step(ids: tf.Tensor, state: Sequence[State]) -> tuple[tf.Tensor, tuple[State, ...]]:
            projected = tf.gather(table, ids)
            after: list[State] = []
            for layer, cell in enumerate(self.cells):
                if layer:
                    projected = cell.product(after[-1][0], tf.convert_to_tensor(cell.kernel)) + cell.input_bias
                after.append(recurrence.step_cell(cell, projected, state[layer]))
            return product(after[-1][0], self.output_kernel, self.compute_dtype) + self.output_bias, tuple(after)

        return step
