"""Drawing text from a model, in one compiled loop that reads the prime and samples what follows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfcharrnn import randomness
from tfcharrnn.cells import State
from tfcharrnn.config import GenerationConfig
from tfcharrnn.model import CharRNN
from tfcharrnn.vocabulary import Vocabulary

# Symbols in one compiled call at most. Text appears in pieces, the first ones short so that it appears at once.
CHUNK = 1024
_FIRST_CHUNK = 64

_SAMPLE = -1  # in place of a symbol that is given: draw one


class Sampler:
    """Draws text from a model.

    A text begins with `<S>`. Each step reads a symbol and gives the logits of the next one. As long as the prime
    lasts, the next symbol is the prime's; from then on it is drawn.
    """

    def __init__(self, model: CharRNN, vocabulary: Vocabulary):
        """Takes the model and its symbols."""
        self.model = model
        self.vocabulary = vocabulary
        self._compiled = functools.cache(self._compile)

    def stream(self, config: GenerationConfig) -> Iterator[list[str]]:
        """Generates text piece by piece.

        Args:
            config: how much of it and how it is drawn.

        Yields:
            The next piece of each of the `num_samples` texts; the prime belongs to the text.

        Raises:
            UserError: the prime has characters outside the vocabulary.
        """
        batch = config.num_samples
        prime = self.vocabulary.encode(config.prime, "--prime")
        symbols = tf.fill([batch], self.vocabulary.start_id)
        state = self.model.initial_state(batch)
        top_k = config.top_k if 0 < config.top_k < len(self.vocabulary) else len(self.vocabulary)
        run = self._compiled(config.greedy, top_k < len(self.vocabulary) or config.top_p < 1.0)
        total = len(prime) + config.length
        start, size = 0, min(_FIRST_CHUNK, CHUNK)
        while start < total:
            count = min(size, total - start)
            given = np.full(CHUNK, _SAMPLE, np.int32)
            piece = prime[start : start + count]
            given[: len(piece)] = piece
            texts, symbols, state = run(
                symbols,
                state,
                given,
                np.int32(count),
                np.int64(start),
                np.int64(config.seed),
                np.float64(config.temperature),
                np.int32(top_k),
                np.float64(config.top_p),
            )
            yield [self.vocabulary.decode(text) for text in texts.numpy()[:count].T]
            start, size = start + count, min(2 * size, CHUNK)

    def generate(self, config: GenerationConfig) -> list[str]:
        """Generates whole texts; see `stream`."""
        pieces = list(self.stream(config))
        return ["".join(parts) for parts in zip(*pieces, strict=True)] if pieces else [""] * config.num_samples

    def _compile(self, greedy: bool, filtered: bool) -> tf.types.experimental.GenericFunction:
        """The compiled loop for one way of drawing; see `pick`."""

        @tf.function(jit_compile=True)
        def run(
            symbols: tf.Tensor,
            state: tuple[State, ...],
            given: tf.Tensor,
            count: tf.Tensor,
            start: tf.Tensor,
            seed: tf.Tensor,
            temperature: tf.Tensor,
            top_k: tf.Tensor,
            top_p: tf.Tensor,
        ) -> tuple[tf.Tensor, tf.Tensor, tuple[State, ...]]:
            """From the last symbols `[batch]` and the state: `count` symbols more, `[CHUNK, batch]`, and both again."""
            step = self.model.stepper()
            texts = tf.TensorArray(tf.int32, CHUNK, element_shape=symbols.shape)
            shape = [symbols.shape[0], len(self.vocabulary)]

            def noise_of(index: tf.Tensor) -> tf.Tensor:
                position = start + tf.cast(index, tf.int64)
                return gumbel(shape, randomness.key(seed, randomness.Purpose.SAMPLING, position), self.model.dtype)

            def body(
                index: tf.Tensor, symbols: tf.Tensor, state: tuple[State, ...], noise: tf.Tensor, texts: tf.TensorArray
            ) -> tuple[tf.Tensor, tf.Tensor, tuple[State, ...], tf.Tensor, tf.TensorArray]:
                logits, state = step(symbols, state)
                # special symbols are no text
                logits = tf.where(tf.range(logits.shape[1]) < self.vocabulary.num_special, logits.dtype.min, logits)
                filters = {"top_k": top_k, "top_p": top_p} if filtered else {}
                drawn = pick(logits, None if greedy else noise, temperature=temperature, **filters)
                symbols = tf.where(given[index] == _SAMPLE, drawn, given[index])
                # the next step's noise depends on nothing in this one, so it is made beside it
                noise = noise if greedy else noise_of(index + 1)
                return index + 1, symbols, state, noise, texts.write(index, symbols)

            _, symbols, state, _, texts = tf.while_loop(
                lambda index, *_: index < count,
                body,
                (tf.constant(0), symbols, state, noise_of(tf.constant(0)), texts),
                maximum_iterations=CHUNK,
            )
            return texts.stack(), symbols, state

        return run


def draw(logits: tf.Tensor, key: tf.Tensor, *, greedy: bool = False, **settings: float | tf.Tensor) -> tf.Tensor:
    """Draws one symbol from each row of logits, as `pick` does, with noise of its own.

    Args:
        logits: `[batch, vocabulary]`.
        key: `[2]`, as `tfcharrnn.randomness.key` makes.
        greedy: take the likeliest; of several alike, the lowest id.
        **settings: `temperature`, `top_k` and `top_p`; see `pick`.

    Returns:
        int32 `[batch]`.
    """
    return pick(logits, None if greedy else gumbel(tf.shape(logits), key, logits.dtype), **settings)


def gumbel(shape: Sequence[int] | tf.Tensor, key: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Standard Gumbel noise, -log(-log(uniform)), this way round finest where it is large."""
    return -tf.math.log(-tf.math.log1p(-randomness.uniform(shape, key, dtype)))


def pick(
    logits: tf.Tensor,
    noise: tf.Tensor | None,
    *,
    temperature: float | tf.Tensor = 1.0,
    top_k: int | tf.Tensor = 0,
    top_p: float | tf.Tensor = 1.0,
) -> tf.Tensor:
    """Picks one symbol from each row of logits, at random as the noise is.

    The filters come after the temperature, first `top_k`, then `top_p` over what it leaves. It is the Gumbel-max
    trick: argmax(logits + Gumbel noise) is distributed as softmax(logits) (Gumbel 1954), and a symbol that is filtered
    out can never win.

    Args:
        logits: `[batch, vocabulary]`.
        noise: `[batch, vocabulary]`, as `gumbel` makes; None: take the likeliest.
        temperature: divides the logits.
        top_k: draw from the k likeliest symbols; 0: from all.
        top_p: draw from the fewest likeliest symbols that together have at least this probability.

    Returns:
        int32 `[batch]`.
    """
    if noise is None:
        return tf.argmax(logits, axis=-1, output_type=tf.int32)
    # the likeliest stands at 0, so that the smallest temperature makes no infinity of it
    logits = (logits - tf.reduce_max(logits, axis=-1, keepdims=True)) / tf.cast(temperature, logits.dtype)
    symbols = None
    if tf.is_tensor(top_k) or top_k or tf.is_tensor(top_p) or top_p < 1.0:  # else there is nothing to sort for
        top_k = top_k if tf.is_tensor(top_k) or top_k else logits.shape[1]
        logits, symbols = tf.math.top_k(logits, logits.shape[1])
        before = tf.cumsum(tf.nn.softmax(_first(logits, top_k)), axis=-1, exclusive=True)
        kept = tf.reduce_sum(tf.cast(before < tf.cast(top_p, logits.dtype), tf.int32), axis=-1, keepdims=True)
        logits = _first(logits, tf.minimum(kept, top_k))
    winner = tf.argmax(logits + noise, axis=-1, output_type=tf.int32)
    return winner if symbols is None else tf.gather(symbols, winner, batch_dims=1)


def _first(logits: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """The first `count` of each row; the others can no longer be drawn."""
    return tf.where(tf.range(logits.shape[1]) < count, logits, logits.dtype.min)
