"""Drawing text from a model, in one compiled loop that reads the prime and samples what follows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.config import GenerationConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.model.char_rnn import Carried, CharRNN

# Symbols in one compiled call at most. Text appears in pieces, the first ones short so that it appears at once.
CHUNK = 1024
_FIRST_CHUNK = 64

SAMPLE = -1  # in place of a symbol that is given: draw one

# What a model has read so far, as far as it matters for the next symbol: its state, or the last symbols themselves.
Reading = Any  # tuple[State, ...] | tf.Tensor
# Reads symbols, `[batch]`, and gives the logits of those that follow, `[batch, vocabulary]`.
Read = Callable[[tf.Tensor, Reading], tuple[tf.Tensor, Reading]]


class Sampler:
    """Draws text from a model.

    A text begins as the model's layout has it: with `<S>`; or a stream goes on where training ended, but begins anew
    with a prime. Each step reads a symbol and gives the logits of the next one. As long as the prime lasts, the next
    symbol is the prime's; from then on it is drawn. A text ends at `</S>` where there is one.

    Attributes:
        model: the model.
        vocabulary: its symbols.
        carried: what a stream has read last in training, or None.
        normalise: what is done to a prime, as it was to the text that the model learnt from.
    """

    def __init__(
        self,
        model: CharRNN,
        vocabulary: Vocabulary,
        seq_length: int = 0,
        carried: Carried | None = None,
        normalise: Callable[[str], str] = str,
    ):
        """Takes the model and its symbols.

        Args:
            model: the model.
            vocabulary: its symbols.
            seq_length: for a layout of windows, how many symbols a prediction sees.
            carried: what a stream has read last in training; None: it can only begin with a prime.
            normalise: what was done to the text that the model learnt from is done to a prime.
        """
        self.model = model
        self.vocabulary = vocabulary
        self._seq_length = seq_length
        self.carried = carried
        self.normalise = normalise
        self._compiled = functools.cache(self._compile)

    def stream(self, config: GenerationConfig) -> Iterator[list[str]]:
        """Generates text piece by piece.

        Args:
            config: how much of it and how it is drawn.

        Yields:
            The next piece of each of the `num_samples` texts; the prime belongs to the text.

        Raises:
            UserError: the prime has characters outside the vocabulary, or there is nothing to begin with.
        """
        config = dataclasses.replace(config, prime=self.normalise(config.prime))
        end_id = self.vocabulary.end_id
        endings = [_Ending(config.prime, config.stop) for _ in range(config.num_samples)]
        for ids, _ in self._ids(config):
            pieces = []
            for ending, row in zip(endings, ids.T, strict=True):
                ended = np.flatnonzero(row == (-1 if end_id is None else end_id))
                text = self.vocabulary.decode(row[: ended[0]] if ended.size else row)
                pieces.append(ending.take(text, is_last=ended.size > 0))
            yield pieces
            if all(ending.reached for ending in endings):
                return
        rest = [ending.take("", is_last=True) for ending in endings]
        if any(rest):
            yield rest

    def generate(self, config: GenerationConfig) -> list[str]:
        """Generates whole texts; see `stream`."""
        beginnings = [""] * config.num_samples
        return ["".join(parts) for parts in zip(beginnings, *self.stream(config), strict=True)]

    def likeliest(self, config: GenerationConfig, count: int) -> list[tuple[str, float]]:
        """What may follow a prime.

        Args:
            config: has the prime and the temperature.
            count: how many to give.

        Returns:
            The likeliest characters, each with its probability; "" is the end of the text.
        """
        prime = self.normalise(config.prime)
        *_, (_, logits) = self._ids(dataclasses.replace(config, prime=prime, length=1, num_samples=1))
        probabilities = tf.nn.softmax(tf.cast(logits[0], tf.float64) / config.temperature).numpy()
        best = np.argsort(-probabilities, kind="stable")[: min(count, len(self.vocabulary) - self._num_unpredicted)]
        return [(self.vocabulary.decode([symbol]), float(probabilities[symbol])) for symbol in best]

    @property
    def _num_unpredicted(self) -> int:
        return self.model.layout.num_unpredicted

    def _ids(self, config: GenerationConfig) -> Iterator[tuple[npt.NDArray[np.int32], Any]]:
        """The symbols of all texts, prime included, in pieces.

        Yields:
            `[time, num_samples]`; and the logits that the last of them was drawn from, `[num_samples, vocabulary]`.
        """
        batch, size = config.num_samples, len(self.vocabulary)
        prime = self.vocabulary.encode(config.prime, "--prime")
        total = len(prime) + config.length
        symbols, reading, first = self.begin(batch, prime[0] if len(prime) else None)
        if total and first:
            yield np.tile(prime[:first, np.newaxis], [1, batch]), None
        top_k = config.top_k if 0 < config.top_k < size else size
        run = self._compiled(config.greedy, top_k < size or config.top_p < 1.0)
        start, chunk = first, min(_FIRST_CHUNK, CHUNK)
        while start < total:
            count = min(chunk, total - start)
            given = np.full(CHUNK, SAMPLE, np.int32)
            piece = prime[start : start + count]
            given[: len(piece)] = piece
            texts, symbols, reading, logits = run(
                symbols,
                reading,
                given,
                np.int32(count),
                np.int64(start),
                np.int64(config.seed),
                np.float64(config.temperature),
                np.int32(top_k),
                np.float64(config.top_p),
            )
            yield texts.numpy()[:count], logits
            start, chunk = start + count, min(2 * chunk, CHUNK)

    def begin(self, batch: int, first: int | tf.Tensor | None) -> tuple[tf.Tensor, Reading, int]:
        """How texts begin.

        Args:
            batch: how many.
            first: the prime's first symbol; None: there is no prime.

        Returns:
            The first symbols to read, `[batch]`, what was read before them, and how much of the prime they are.

        Raises:
            UserError: there is nothing to begin with.
        """
        layout, reading = self.model.layout, self.nothing_read(batch)
        if layout.last_only:
            return tf.fill([batch], len(self.vocabulary)), reading, 0
        if layout.start_id is not None:
            return tf.fill([batch], self.vocabulary.start_id), reading, 0
        if first is not None:
            return tf.fill([batch], first), reading, 1
        if self.carried is None:
            raise UserError("--prime is missing: this model has no text to go on from; give it a beginning")
        rows = tf.range(batch) % self.carried.symbols.shape[0]
        return (
            tf.gather(self.carried.symbols, rows),
            tf.nest.map_structure(lambda variable: tf.gather(variable, rows), self.carried.state),
            0,
        )

    def nothing_read(self, batch: int | tf.Tensor) -> Reading:
        """What has been read before a text: nothing."""
        if self.model.layout.last_only:
            return tf.fill([batch, self._seq_length], len(self.vocabulary))
        return self.model.initial_state(batch)

    def reader(self) -> Read:
        """The function that reads one symbol more, `[batch]`, and gives the logits of the next one."""
        advance, logits = self.model.stepper()

        def read(symbols: tf.Tensor, state: Reading) -> tuple[tf.Tensor, Reading]:
            state = advance(symbols, state)
            return logits(state), state

        def read_window(symbols: tf.Tensor, window: Reading) -> tuple[tf.Tensor, Reading]:
            """A prediction sees the last `seq_length` symbols and nothing before them, as in training."""
            window = tf.concat([window[:, 1:], symbols[:, tf.newaxis]], axis=1)
            _, state = tf.while_loop(
                lambda t, _: t < self._seq_length,
                lambda t, state: (t + 1, advance(window[:, t], state)),
                (tf.constant(0), self.model.initial_state(symbols.shape[0] or tf.shape(symbols)[0])),
                maximum_iterations=self._seq_length,
            )
            return logits(state), window

        return read_window if self.model.layout.last_only else read

    def noise(self, batch: int, seed: tf.Tensor, start: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """The function that gives the noise for a symbol, `[batch, vocabulary]`, by its place after `start`."""

        def noise_of(index: tf.Tensor) -> tf.Tensor:
            position = start + tf.cast(index, tf.int64)
            key = rng.key(seed, rng.Purpose.SAMPLING, position)
            return gumbel([batch, len(self.vocabulary)], key, self.model.dtype)

        return noise_of

    def loop(
        self,
        read: Read,
        choose: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor],
        noise_of: Callable[[tf.Tensor], tf.Tensor] | None,
        given: tf.Tensor,
        count: tf.Tensor,
        symbols: tf.Tensor,
        reading: Reading,
        end_id: int | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, Reading, tf.Tensor]:
        """Reads symbols and draws those that follow, one after another.

        Args:
            read: as `reader` gives it.
            choose: draws symbols, `[batch]`, by logits and noise, `[batch, vocabulary]` each.
            noise_of: as `noise` gives it; None: no noise is made.
            given: the symbols that are given, as those of a prime, and `SAMPLE` for the others, `[size]`.
            count: how many of them, from the first, to go through.
            symbols: to be read first, `[batch]`.
            reading: what was read before them.
            end_id: go no further once all texts have had this symbol last.

        Returns:
            The symbols, `[size, batch]`, and how many of them were made; the last of them, what was read before it, and
            the logits that it was drawn from, `[batch, vocabulary]`.
        """
        size = given.shape[0] or tf.shape(given)[0]
        texts = tf.TensorArray(tf.int32, size, element_shape=symbols.shape)

        def goes_on(index: tf.Tensor, symbols: tf.Tensor, *_: object) -> tf.Tensor:
            goes_on = index < count
            return goes_on if end_id is None else goes_on & tf.reduce_any(symbols != end_id)

        def body(
            index: tf.Tensor,
            symbols: tf.Tensor,
            reading: Reading,
            noise: tf.Tensor,
            texts: tf.TensorArray,
            logits: tf.Tensor,
        ) -> tuple[tf.Tensor, tf.Tensor, Reading, tf.Tensor, tf.TensorArray, tf.Tensor]:
            logits, reading = read(symbols, reading)
            hidden = tf.range(logits.shape[1]) < self._num_unpredicted
            logits = tf.where(hidden, logits.dtype.min, logits)
            drawn = choose(logits, None if noise_of is None else noise)
            symbols = tf.where(given[index] == SAMPLE, drawn, given[index])
            # the next step's noise depends on nothing in this one, so it is made beside it
            noise = noise if noise_of is None else noise_of(index + 1)
            return index + 1, symbols, reading, noise, texts.write(index, symbols), logits

        first = tf.constant(0)
        noise = tf.constant(0.0) if noise_of is None else noise_of(first)
        logits = tf.zeros([symbols.shape[0], len(self.vocabulary)], self.model.dtype)
        made, symbols, reading, _, texts, logits = tf.while_loop(
            goes_on, body, (first, symbols, reading, noise, texts, logits), maximum_iterations=size
        )
        return texts.stack(), made, symbols, reading, logits

    def _compile(self, greedy: bool, filtered: bool) -> tf.types.experimental.GenericFunction:
        """The compiled loop for one way of drawing; see `pick`."""

        @tf.function(jit_compile=True)
        def run(
            symbols: tf.Tensor,
            reading: Reading,
            given: tf.Tensor,
            count: tf.Tensor,
            start: tf.Tensor,
            seed: tf.Tensor,
            temperature: tf.Tensor,
            top_k: tf.Tensor,
            top_p: tf.Tensor,
        ) -> tuple[tf.Tensor, tf.Tensor, Reading, tf.Tensor]:
            """From the last symbols `[batch]` and the reading: `count` symbols more, `[CHUNK, batch]`, and both again.

            Last come the logits of the last symbol, `[batch, vocabulary]`.
            """
            filters = {"top_k": top_k, "top_p": top_p} if filtered else {}

            def choose(logits: tf.Tensor, noise: tf.Tensor | None) -> tf.Tensor:
                return pick(logits, noise, temperature=temperature, **filters)

            noise_of = None if greedy else self.noise(symbols.shape[0], seed, start)
            texts, _, *after = self.loop(self.reader(), choose, noise_of, given, count, symbols, reading)
            return texts, *after

        return run


class _Ending:
    """Cuts a text that comes in pieces where it ends: at its last piece, or before `--stop`.

    Attributes:
        reached: the text is whole.
    """

    def __init__(self, prime: str, stop: str):
        self.reached = False
        self._stop = stop
        self._prime_left = len(prime)  # the stop is looked for in what follows the prime
        self._held = ""

    def take(self, piece: str, *, is_last: bool) -> str:
        """Takes the next piece and gives what can be shown: without an end of it that may be the start of a stop."""
        if self.reached:
            return ""
        prime, self._held = piece[: self._prime_left], self._held + piece[self._prime_left :]
        self._prime_left -= len(prime)
        place = self._held.find(self._stop) if self._stop else -1
        self.reached = is_last or place >= 0
        if place >= 0:
            shown = place
        elif self.reached:
            shown = len(self._held)
        else:
            shown = max(len(self._held) - max(len(self._stop) - 1, 0), 0)
        text, self._held = self._held[:shown], self._held[shown:]
        return prime + text


def draw(logits: tf.Tensor, key: tf.Tensor, *, greedy: bool = False, **settings: float | tf.Tensor) -> tf.Tensor:
    """Draws one symbol from each row of logits, as `pick` does, with noise of its own.

    Args:
        logits: `[batch, vocabulary]`.
        key: `[2]`, as `tfcharrnn.rng.key` makes.
        greedy: take the likeliest; of several alike, the lowest id.
        **settings: `temperature`, `top_k` and `top_p`; see `pick`.

    Returns:
        int32 `[batch]`.
    """
    return pick(logits, None if greedy else gumbel(tf.shape(logits), key, logits.dtype), **settings)


def gumbel(shape: Sequence[int] | tf.Tensor, key: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Standard Gumbel noise, -log(-log(uniform)), this way round finest where it is large."""
    return -tf.math.log(-tf.math.log1p(-rng.uniform(shape, key, dtype)))


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
