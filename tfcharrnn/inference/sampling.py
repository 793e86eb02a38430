"""Generates text from a model in one compiled loop that reads the prime and samples what follows it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.config import GenerationConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.inference.inverse_cdf import sample_symbols
from tfcharrnn.model.char_rnn import CharRNN, StreamState
from tfcharrnn.model.stepper import make_stepper
from tfcharrnn.symbols import TextDecoder, text_to_symbols

# Symbols of one compiled call at most. The first calls are shorter where text is shown as it appears or may end early.
CHUNK_SIZE = 1024
_FIRST_CHUNK_SIZE = 64

# Positions of a text whose random numbers have one key; texts of a seed depend on it.
_POSITIONS_PER_KEY = 1024

SAMPLE = -1  # among forced symbols: sample this one

# What the next symbol depends on: the model's state, or in the layout `windows` the last symbols.
Context = Any  # tuple[State, ...] | tf.Tensor
# Reads symbols `[batch]`; returns the logits of the next ones, `[batch, vocabulary]`, and the context after them.
StepFunction = Callable[[tf.Tensor, Context], tuple[tf.Tensor, Context]]


class TextStart(NamedTuple):
    """How texts start.

    Attributes:
        symbols: to be read first, `[batch]`.
        context: before them.
        prime_length: how many symbols of the prime they are, 0 or 1.
    """

    symbols: tf.Tensor
    context: Context
    prime_length: int | tf.Tensor


class LoopResult(NamedTuple):
    """Result of the sampling loop.

    Attributes:
        symbols: forced or sampled, `[size, batch]`; only the first `num_steps` are set.
        num_steps: loop iterations, a scalar.
        last: the last symbols, not read yet, `[batch]`.
        context: before them.
        logits: that they were sampled from, `[batch, vocabulary]`.
    """

    symbols: tf.Tensor
    num_steps: tf.Tensor
    last: tf.Tensor
    context: Context
    logits: tf.Tensor


class Sampler:
    """Generates text from a model.

    A text starts with `<S>` if the layout has it. A stream continues where training ended, or starts from the initial
    state if there is a prime. Each step reads a symbol and computes the logits of the next; within the prime that is
    the prime's next symbol, after it one is sampled. A text ends at `</S>` if the layout has it.

    Attributes:
        model: the model.
        vocabulary: its symbols.
        carried: where training stopped reading a stream, or None.
        normalise: normalises the symbols of a prime as those of the training text.
    """

    def __init__(
        self,
        model: CharRNN,
        vocabulary: Vocabulary,
        seq_length: int = 0,
        carried: StreamState | None = None,
        normalise: Callable[[str], str] = str,
    ):
        """Creates a sampler; it compiles its loop when it first generates.

        Args:
            model: the model.
            vocabulary: its symbols.
            seq_length: characters that a prediction sees in the layout `windows`.
            carried: where training stopped reading a stream; None: a stream needs a prime.
            normalise: normalises the symbols of a prime as those of the training text.
        """
        self.model = model
        self.vocabulary = vocabulary
        self._seq_length = seq_length
        self.carried = carried
        self.normalise = normalise
        self._compiled = functools.cache(self._compile)

    def stream(self, config: GenerationConfig, *, is_waited_for: bool = True) -> Iterator[list[str]]:
        r"""Generates text piece by piece.

        Bytes are decoded as UTF-8, and those that are not valid are escaped, as in `\xff`.

        Args:
            config: what to generate.
            is_waited_for: somebody waits for the first piece, so it is short.

        Yields:
            The next piece of each of the `num_samples` texts; a text begins with its prime.

        Raises:
            UserError: the prime has characters outside the vocabulary, or is missing where one is needed.
        """
        of_bytes = self.vocabulary.of_bytes
        decoders = [TextDecoder(of_bytes) for _ in range(config.num_samples)]
        prime = text_to_symbols(config.prime, of_bytes, "--prime")
        for pieces in self.stream_symbols(dataclasses.replace(config, prime=prime), is_waited_for=is_waited_for):
            yield [decoder.decode(piece) for decoder, piece in zip(decoders, pieces, strict=True)]
        rest = [decoder.decode("", is_last=True) for decoder in decoders]
        if any(rest):
            yield rest

    def stream_symbols(self, config: GenerationConfig, *, is_waited_for: bool = True) -> Iterator[list[str]]:
        """Generates the symbols of texts piece by piece, like `stream`, from the symbols of a prime.

        The model reads the prime normalised; a text begins with the prime as it was given.
        """
        given = config.prime
        config = dataclasses.replace(config, prime=self.normalise(given))
        end_id = self.vocabulary.end_id
        stop = text_to_symbols(config.stop, self.vocabulary.of_bytes, "--stop")
        filters = [_StopFilter(given, len(config.prime), stop) for _ in range(config.num_samples)]
        may_end = bool(stop) or end_id is not None
        first_chunk = _FIRST_CHUNK_SIZE if is_waited_for or may_end else CHUNK_SIZE
        for ids, _ in self._generate_ids(config, first_chunk):
            pieces = []
            for stop_filter, row in zip(filters, ids.T, strict=True):
                ends = np.flatnonzero(row == (-1 if end_id is None else end_id))
                text = self.vocabulary.decode(row[: ends[0]] if ends.size else row)
                pieces.append(stop_filter.feed(text, is_last=ends.size > 0))
            yield pieces
            if all(stop_filter.is_done for stop_filter in filters):
                return
        rest = [stop_filter.feed("", is_last=True) for stop_filter in filters]
        if any(rest):
            yield rest

    def generate(self, config: GenerationConfig) -> list[str]:
        """Generates whole texts, with the errors of `stream`."""
        return _join_pieces(self.stream(config, is_waited_for=False), config.num_samples)

    def generate_symbols(self, config: GenerationConfig) -> list[str]:
        """Generates the symbols of whole texts from the symbols of a prime, with the errors of `stream`."""
        return _join_pieces(self.stream_symbols(config, is_waited_for=False), config.num_samples)

    def predict_next(self, config: GenerationConfig, count: int) -> list[tuple[str, float]]:
        """Finds the likeliest symbols after a prime.

        Args:
            config: has the symbols of the prime, and the temperature.
            count: how many to return at most.

        Returns:
            The symbols, likeliest first, with their probabilities; "" is the end of the text.
        """
        prime = self.normalise(config.prime)
        *_, (_, logits) = self._generate_ids(dataclasses.replace(config, prime=prime, length=1, num_samples=1))
        probabilities = tf.nn.softmax(tf.cast(logits[0], tf.float64) / config.temperature).numpy()
        possible = len(self.vocabulary) - self.model.layout.num_unpredicted
        best = np.argsort(-probabilities, kind="stable")[: min(count, possible)]
        return [(self.vocabulary.decode([symbol]), float(probabilities[symbol])) for symbol in best]

    def _generate_ids(
        self, config: GenerationConfig, first_chunk: int = _FIRST_CHUNK_SIZE
    ) -> Iterator[tuple[npt.NDArray[np.int32], Any]]:
        """Generates the symbols of all texts, prime included, chunk by chunk; the first one has `first_chunk` symbols.

        Yields:
            Symbols `[time, num_samples]`, and the logits that the last of them was sampled from,
            `[num_samples, vocabulary]`.
        """
        batch, size = config.num_samples, len(self.vocabulary)
        prime = self.vocabulary.encode(config.prime, "--prime")
        total = len(prime) + config.length
        symbols, context, position = self.start_texts(batch, prime[0] if len(prime) else None)
        if total and position:
            yield np.tile(prime[:position, np.newaxis], [1, batch]), None
        top_k = config.top_k if 0 < config.top_k < size else size
        run = self._compiled(top_k < size or config.top_p < 1.0)
        draw = _make_draw(self.model.dtype)
        chunk_size = min(first_chunk, CHUNK_SIZE)
        while position < total:
            count = min(chunk_size, total - position)
            forced = np.full(CHUNK_SIZE, SAMPLE, np.int32)
            forced_prime = prime[position : position + count]
            forced[: len(forced_prime)] = forced_prime
            uniforms = None
            if not config.greedy:
                uniforms = draw(batch, np.int64(config.seed), np.int64(position), CHUNK_SIZE)
            result = run(
                symbols,
                context,
                uniforms,
                forced,
                np.int32(count),
                np.float64(config.temperature),
                np.int32(top_k),
                np.float64(config.top_p),
            )
            symbols, context = result.last, result.context
            yield result.symbols.numpy()[:count], result.logits
            position, chunk_size = position + count, min(2 * chunk_size, CHUNK_SIZE)

    def start_texts(self, batch: int, first: int | tf.Tensor | None) -> TextStart:
        """Starts texts as the layout demands.

        Args:
            batch: number of texts.
            first: the prime's first symbol; None: there is no prime.

        Raises:
            UserError: a stream has neither a prime nor a text to continue.
        """
        layout, context = self.model.layout, self.empty_context(batch)
        if layout.last_only:
            return TextStart(tf.fill([batch], len(self.vocabulary)), context, 0)
        if layout.start_id is not None:
            return TextStart(tf.fill([batch], self.vocabulary.start_id), context, 0)
        if first is not None:
            return TextStart(tf.fill([batch], first), context, 1)
        if self.carried is None:
            raise UserError("--prime is missing: this model has no text to continue; pass the beginning of one")
        rows = tf.range(batch) % self.carried.symbols.shape[0]
        symbols = tf.gather(self.carried.symbols, rows)
        state = tf.nest.map_structure(lambda variable: tf.gather(variable, rows), self.carried.state)
        return TextStart(symbols, state, 0)

    def empty_context(self, batch: int | tf.Tensor) -> Context:
        """Returns the context before the first symbol of a text."""
        if self.model.layout.last_only:
            return tf.fill([batch, self._seq_length], len(self.vocabulary))
        return self.model.initial_state(batch)

    def make_step(self, batch_size: int | None = None) -> StepFunction:
        """Returns the function that reads one symbol of each text and computes the logits of the next.

        Args:
            batch_size: number of texts, where it is known.
        """
        advance, logits = make_stepper(self.model, batch_size)

        def step(symbols: tf.Tensor, state: Context) -> tuple[tf.Tensor, Context]:
            state = advance(symbols, state)
            return logits(state), state

        def step_window(symbols: tf.Tensor, window: Context) -> tuple[tf.Tensor, Context]:
            """Reads the last `seq_length` symbols from the initial state, as in training."""
            window = tf.concat([window[:, 1:], symbols[:, tf.newaxis]], axis=1)
            _, state = tf.while_loop(
                lambda t, _: t < self._seq_length,
                lambda t, state: (t + 1, advance(window[:, t], state)),
                (tf.constant(0), self.model.initial_state(symbols.shape[0] or tf.shape(symbols)[0])),
                maximum_iterations=self._seq_length,
            )
            return logits(state), window

        return step_window if self.model.layout.last_only else step

    def run_loop(
        self,
        step: StepFunction,
        sample: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor],
        uniforms: tf.Tensor | None,
        forced: tf.Tensor,
        count: tf.Tensor,
        symbols: tf.Tensor,
        context: Context,
        end_id: int | None = None,
    ) -> LoopResult:
        """Alternately reads symbols and forces or samples the next ones.

        Args:
            step: from `make_step`.
            sample: samples symbols `[batch]` from logits `[batch, vocabulary]` and uniform numbers `[batch]`.
            uniforms: from `draw_uniforms`, `[size, batch]`; None: take the likeliest symbols.
            forced: symbols that are given, such as a prime's, and `SAMPLE` for the others, `[size]`.
            count: iterations, at most `size`.
            symbols: to be read first, `[batch]`.
            context: before them.
            end_id: stop once every text's last symbol is this one.
        """
        size = forced.shape[0] or tf.shape(forced)[0]
        array = tf.TensorArray(tf.int32, size, element_shape=symbols.shape)

        def is_unfinished(index: tf.Tensor, symbols: tf.Tensor, *_: object) -> tf.Tensor:
            below_count = index < count
            return below_count if end_id is None else below_count & tf.reduce_any(symbols != end_id)

        def body(
            index: tf.Tensor,
            symbols: tf.Tensor,
            context: Context,
            array: tf.TensorArray,
            logits: tf.Tensor,
        ) -> tuple[tf.Tensor, tf.Tensor, Context, tf.TensorArray, tf.Tensor]:
            logits, context = step(symbols, context)
            is_unpredicted = tf.range(logits.shape[1]) < self.model.layout.num_unpredicted
            logits = tf.where(is_unpredicted, logits.dtype.min, logits)
            sampled = sample(logits, None if uniforms is None else uniforms[index])
            symbols = tf.where(forced[index] == SAMPLE, sampled, forced[index])
            return index + 1, symbols, context, array.write(index, symbols), logits

        logits = tf.zeros([symbols.shape[0], len(self.vocabulary)], self.model.dtype)
        done, symbols, context, array, logits = tf.while_loop(
            is_unfinished, body, (tf.constant(0), symbols, context, array, logits), maximum_iterations=size
        )
        return LoopResult(array.stack(), done, symbols, context, logits)

    def _compile(self, filtered: bool) -> tf.types.experimental.GenericFunction:
        """Compiles the loop, with or without top-k and top-p."""

        @tf.function(jit_compile=True, autograph=False)
        def run(
            symbols: tf.Tensor,
            context: Context,
            uniforms: tf.Tensor | None,
            forced: tf.Tensor,
            count: tf.Tensor,
            temperature: tf.Tensor,
            top_k: tf.Tensor,
            top_p: tf.Tensor,
        ) -> LoopResult:
            filters = {"top_k": top_k, "top_p": top_p} if filtered else {}

            def sample(logits: tf.Tensor, uniforms: tf.Tensor | None) -> tf.Tensor:
                return sample_symbols(logits, uniforms, temperature=temperature, **filters)

            return self.run_loop(self.make_step(symbols.shape[0]), sample, uniforms, forced, count, symbols, context)

        return run


def draw_uniforms(
    batch: int | tf.Tensor, seed: tf.Tensor, start: tf.Tensor, count: int | tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
    """Draws the random numbers of `count` positions of each text from the position `start` on.

    The number at a position depends only on the seed, the text's row and the position.

    Returns:
        Uniform numbers in (0, 1), `[count, batch]`.
    """
    first_key = start // _POSITIONS_PER_KEY
    num_keys = (count + _POSITIONS_PER_KEY - 1) // _POSITIONS_PER_KEY + 1

    def draw(step: tf.Tensor) -> tf.Tensor:
        return rng.uniform([batch, _POSITIONS_PER_KEY], rng.key(seed, rng.Purpose.SAMPLING, step), dtype)

    steps = first_key + tf.range(num_keys, dtype=tf.int64)
    drawn = tf.map_fn(draw, steps, fn_output_signature=tf.TensorSpec([None, _POSITIONS_PER_KEY], dtype))
    rows = tf.reshape(tf.transpose(drawn, [0, 2, 1]), [-1, batch])
    return tf.slice(rows, [tf.cast(start - first_key * _POSITIONS_PER_KEY, tf.int32), 0], [count, batch])


@functools.cache
def _make_draw(dtype: tf.DType) -> tf.types.experimental.GenericFunction:
    """Returns `draw_uniforms` as a graph, apart from the compiled loop: XLA would fuse it into that, in minutes."""
    scalars = [tf.TensorSpec([], kind) for kind in (tf.int32, tf.int64, tf.int64, tf.int32)]
    return tf.function(functools.partial(draw_uniforms, dtype=dtype), input_signature=scalars, autograph=False)


def _join_pieces(pieces: Iterator[list[str]], num_samples: int) -> list[str]:
    return ["".join(parts) for parts in zip([""] * num_samples, *pieces, strict=True)]


class _StopFilter:
    """Cuts off a text that arrives in pieces at its last piece, or before the stop string.

    Args:
        prime: the prime as it was given; the text begins with it instead of what the model read.
        num_read: how many symbols of the text are the prime that the model read.
        stop: the stop string; "": none.

    Attributes:
        is_done: no more of the text will be shown.
    """

    def __init__(self, prime: str, num_read: int, stop: str):
        self.is_done = False
        self._stop = stop
        self._prime = prime
        self._prime_left = num_read  # a stop string within the prime does not count
        self._pending = ""

    def feed(self, piece: str, *, is_last: bool) -> str:
        """Takes the next piece; returns what can be shown, holding back what may be the start of the stop string."""
        if self.is_done:
            return ""
        num_read = min(len(piece), self._prime_left)
        self._pending += piece[num_read:]
        self._prime_left -= num_read
        split = num_read if self._prime_left else len(self._prime)
        prime, self._prime = self._prime[:split], self._prime[split:]
        stop_index = self._pending.find(self._stop) if self._stop else -1
        self.is_done = is_last or stop_index >= 0
        if stop_index >= 0:
            shown = stop_index
        elif self.is_done:
            shown = len(self._pending)
        else:
            shown = max(len(self._pending) - max(len(self._stop) - 1, 0), 0)
        text, self._pending = self._pending[:shown], self._pending[shown:]
        return prime + text
