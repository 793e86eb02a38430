"""A trained model as a `tf.Module` for a SavedModel, whose graphs take and return text without this package.

The graphs are not compiled by XLA, which not every server has; `tfcharrnn.rng` draws the same numbers either way.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from tfcharrnn.config import DataConfig, GenerationConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.inference.inverse_cdf import sample_symbols
from tfcharrnn.inference.sampling import SAMPLE, Context, StepFunction, TextStart, draw_uniforms
from tfcharrnn.inference.trained_model import TrainedModel
from tfcharrnn.preparation import corpora
from tfcharrnn.symbols import symbols_to_text

# ids of characters that the normalisation drops, and of those outside the vocabulary
_DROPPED, _UNKNOWN = -1, -2
_MAX_NAMED = 10  # unknown characters that an error names
# each byte alone: ASCII as it is, others escaped
_BYTE_NAMES = [symbols_to_text(chr(byte), True) for byte in range(256)]

# the inputs of `generate` besides the prime: settings of the same names, with the same bounds
_NUMBERS = {
    "length": tf.int32,
    "temperature": tf.float32,
    "top_k": tf.int32,
    "top_p": tf.float32,
    "seed": tf.int64,
}
# each is a scalar, or `[batch]`
_NUMBER_SPECS = [tf.TensorSpec(None, dtype, name) for name, dtype in _NUMBERS.items()]


class Servable(tf.Module):
    """The functions and variables of a SavedModel.

    Attributes:
        model: the model.
        carried: where training stopped reading a stream, or None.
    """

    def __init__(self, trained: TrainedModel):
        super().__init__()
        self.model, self.carried = trained.model, trained.sampler.carried
        self._sampler = trained.sampler
        self._seq_length = trained.run.data.seq_length
        vocabulary, data = trained.run.vocabulary, trained.run.data
        self._codec = _ByteCodec(vocabulary, data) if data.of_bytes else _TextCodec(vocabulary, data)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "prime"), *_NUMBER_SPECS], autograph=False)
    def generate(self, prime: tf.Tensor, *numbers: tf.Tensor) -> dict[str, tf.Tensor]:
        """Continues texts; each is the text that `Sampler.generate` generates from the same settings.

        Args:
            prime: UTF-8 text, `[batch]`.
            *numbers: those of `_NUMBERS`, each a scalar or `[batch]`; `top_k=1` always takes the likeliest symbol.

        Returns:
            `text`, which begins with the prime as it was given, `[batch]`.
        """
        values = {name: tf.broadcast_to(value, tf.shape(prime)) for name, value in zip(_NUMBERS, numbers, strict=True)}
        with tf.control_dependencies(_assert_in_bounds(values)):
            primes = self._codec.encode(prime)
        step = self._sampler.make_step()

        def generate_row(row: tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]) -> tf.Tensor:
            given, ids, numbers_of_row = row
            return self._codec.decode(given, self._continue_text(step, ids, **numbers_of_row))

        rows = (prime, primes, values)
        return {"text": tf.map_fn(generate_row, rows, fn_output_signature=tf.TensorSpec([], tf.string))}

    def _continue_text(
        self,
        step: StepFunction,
        prime: tf.Tensor,
        length: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        top_p: tf.Tensor,
        seed: tf.Tensor,
    ) -> tf.Tensor:
        """Generates the ids `[symbols]` that follow those of a prime, `[symbols]`."""
        size, end_id = len(self._sampler.vocabulary), self._sampler.vocabulary.end_id
        top_k = tf.where((top_k > 0) & (top_k < size), top_k, size)
        filtered = (top_k < size) | (top_p < 1.0)

        def sample(logits: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
            return tf.cond(
                filtered,
                lambda: sample_symbols(logits, uniforms, temperature=temperature, top_k=top_k, top_p=top_p),
                lambda: sample_symbols(logits, uniforms, temperature=temperature),
            )

        start = self._start_text(prime)
        forced = tf.concat([prime[start.prime_length :], tf.fill([length], SAMPLE)], axis=0)
        count = tf.size(forced)
        uniforms = draw_uniforms(1, seed, tf.cast(start.prime_length, tf.int64), count, self.model.dtype)
        result = self._sampler.run_loop(
            step, sample, uniforms, forced, count, start.symbols, start.context, end_id=end_id
        )
        return result.symbols[tf.size(prime) - start.prime_length : result.num_steps, 0]

    def _start_text(self, prime: tf.Tensor) -> TextStart:
        """Starts a text, with or without a prime, which is only known when the graph runs."""
        if self.carried is None:
            if self.model.layout.carries_state:
                has_prime = tf.debugging.Assert(tf.size(prime) > 0, ["prime: this model needs one"])
                with tf.control_dependencies([has_prime]):
                    prime = tf.identity(prime)
                return self._sampler.start_texts(1, prime[0])
            return self._sampler.start_texts(1, None)
        return tf.cond(
            tf.size(prime) > 0,
            lambda: self._sampler.start_texts(1, prime[0]),
            lambda: self._sampler.start_texts(1, None),
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")], autograph=False)
    def score(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes the log-probabilities of texts.

        A layout with `<S>` predicts every character, one with `</S>` also the end of the text. Without `<S>`, the first
        character (in `windows`, the first window) is not predicted, and a stream starts from the initial state.

        Args:
            text: UTF-8 text, `[batch]`.

        Returns:
            `log_probability` in nats and `characters`, the number of predicted symbols, each `[batch]`.
        """
        layout, batch = self.model.layout, tf.shape(text)[0]
        parts: list[tf.Tensor | tf.RaggedTensor] = [self._codec.encode(text)]
        if layout.start_id is not None:
            parts.insert(0, tf.fill([batch, 1], layout.start_id))
        if layout.end_id is not None:
            parts.append(tf.fill([batch, 1], layout.end_id))
        rows = tf.concat(parts, axis=1)
        lengths, ids = tf.cast(rows.row_lengths(), tf.int32), rows.to_tensor()
        width = tf.shape(ids)[1]
        first = self._seq_length if layout.last_only else 1
        step = self._sampler.make_step()

        def body(t: tf.Tensor, context: Context, total: tf.Tensor) -> tuple[tf.Tensor, Context, tf.Tensor]:
            logits, context = step(ids[:, t], context)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, t + 1], logits)
            is_target = (t + 1 >= first) & (t + 1 < lengths)
            return t + 1, context, total - tf.where(is_target, tf.cast(loss, tf.float64), tf.zeros_like(total))

        _, _, total = tf.while_loop(
            lambda t, *_: t < width - 1,
            body,
            (tf.constant(0), self._sampler.empty_context(batch), tf.zeros([batch], tf.float64)),
        )
        return {"log_probability": total, "characters": tf.maximum(lengths - first, 0)}


class _TextCodec:
    """Converts between UTF-8 text and ids, with the normalisation of the training text."""

    def __init__(self, vocabulary: Vocabulary, config: DataConfig):
        self._lowercase = config.lowercase
        self._num_special = vocabulary.num_special
        characters = vocabulary.symbols[vocabulary.num_special :]
        self._code_points = np.array([ord(character) for character in characters], np.int32)
        ids = {character: vocabulary.num_special + index for index, character in enumerate(characters)}
        if config.lowercase or config.drop_digits:
            for character in map(chr, (*range(0xD800), *range(0xE000, 0x110000))):
                if config.drop_digits and character.isdecimal():
                    ids[character] = _DROPPED
                elif config.lowercase and character not in ids and character.lower() in ids:
                    # TensorFlow's Unicode version differs from Python's, so it leaves some capitals as they are
                    ids[character] = ids[character.lower()]
        ids |= dict.fromkeys(config.drop_chars, _DROPPED)
        self._known = np.array(sorted(map(ord, ids)), np.int32)
        self._ids = np.array([ids[chr(code_point)] for code_point in self._known], np.int32)

    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Normalises texts `[batch]` and returns their ids, int32 `[batch, (symbols)]`.

        Characters outside the vocabulary fail an assertion that names them.
        """
        texts = tf.strings.regex_replace(texts, "\r\n", "\n")
        if self._lowercase:
            # "I" first: in a Turkish locale, TensorFlow would turn it into a dotless i
            texts = tf.strings.lower(tf.strings.regex_replace(texts, "I", "i"), "utf-8")
        rows = tf.strings.unicode_decode(texts, "UTF-8", errors="strict")
        code_points = rows.flat_values
        indices = tf.minimum(tf.searchsorted(self._known, code_points), len(self._known) - 1)
        ids = tf.where(tf.gather(self._known, indices) == code_points, tf.gather(self._ids, indices), _UNKNOWN)
        unknown = tf.unique(tf.boolean_mask(code_points, ids == _UNKNOWN))[0][:_MAX_NAMED]
        names = tf.strings.unicode_encode(unknown[:, tf.newaxis], "UTF-8")
        message = ["the model's vocabulary does not have", tf.strings.reduce_join(names, separator=" ")]
        with tf.control_dependencies([tf.debugging.Assert(tf.size(unknown) == 0, message)]):
            return tf.ragged.boolean_mask(rows.with_flat_values(ids), rows.with_flat_values(ids != _DROPPED))

    def decode(self, prime: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        """Returns a prime and the text of ids `[symbols]` without special symbols as one text, a scalar."""
        ids = tf.boolean_mask(ids, ids >= self._num_special)
        text = tf.strings.unicode_encode(tf.gather(self._code_points, ids - self._num_special), "UTF-8")
        return tf.strings.join([prime, text])


class _ByteCodec:
    """Converts between text and ids of bytes, with the normalisation of the training text."""

    def __init__(self, vocabulary: Vocabulary, config: DataConfig):
        self._num_special = vocabulary.num_special
        characters = vocabulary.symbols[vocabulary.num_special :]
        self._bytes = [character.encode("latin-1") for character in characters]
        self._ids = np.full(256, _UNKNOWN, np.int32)
        for byte in range(256):
            symbol = corpora.normalise(chr(byte), config)
            if symbol in characters:
                self._ids[byte] = vocabulary.encode(symbol)[0]
            elif not symbol:
                self._ids[byte] = _DROPPED

    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Normalises texts `[batch]` and returns the ids of their bytes, int32 `[batch, (symbols)]`.

        Bytes outside the vocabulary fail an assertion that names them.
        """
        rows = tf.strings.bytes_split(texts)
        numbers = _number_bytes(rows.flat_values)
        ids = tf.gather(self._ids, numbers)
        unknown = tf.unique(tf.boolean_mask(numbers, ids == _UNKNOWN))[0][:_MAX_NAMED]
        names = tf.strings.reduce_join(tf.gather(_BYTE_NAMES, unknown), separator=" ")
        message = ["the model's vocabulary does not have", names]
        with tf.control_dependencies([tf.debugging.Assert(tf.size(unknown) == 0, message)]):
            return tf.ragged.boolean_mask(rows.with_flat_values(ids), rows.with_flat_values(ids != _DROPPED))

    def decode(self, prime: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        """Returns a prime and the text of ids `[symbols]` as one text, a scalar.

        Bytes that are not UTF-8 are escaped, as `generate` does.
        """
        ids = tf.boolean_mask(ids, ids >= self._num_special)
        data = tf.strings.join([prime, tf.strings.reduce_join(tf.gather(self._bytes, ids - self._num_special))])
        code_points, starts = tf.strings.unicode_decode_with_offsets(data, "UTF-8", errors="replace")
        starts = tf.cast(starts, tf.int32)
        sizes = tf.concat([starts[1:], [tf.strings.length(data)]], axis=0)[: tf.size(starts)] - starts
        parts = tf.strings.substr(tf.fill(tf.shape(starts), data), starts, sizes)
        # a replacement character stands for bytes that are not valid, or for itself
        is_invalid = (code_points == 0xFFFD) & (parts != "\ufffd".encode())
        names = tf.gather(_BYTE_NAMES, _number_bytes(tf.strings.bytes_split(parts).flat_values))
        escaped = tf.strings.reduce_join(tf.RaggedTensor.from_row_lengths(names, sizes), axis=1)
        return tf.strings.reduce_join(tf.where(is_invalid, escaped, parts))


def _number_bytes(strings: tf.Tensor) -> tf.Tensor:
    """Returns the numbers of strings of one byte each, int32 `[strings]`."""
    return tf.cast(tf.reshape(tf.io.decode_raw(strings, tf.uint8), [-1]), tf.int32)


def _assert_in_bounds(values: dict[str, tf.Tensor]) -> list[tf.Operation]:
    """Returns assertions that numbers are within the bounds of the settings with the same names."""
    comparisons = {
        "at_least": (tf.greater_equal, "at least"),
        "at_most": (tf.less_equal, "at most"),
        "above": (tf.greater, "greater than"),
    }
    assertions = []
    for field in dataclasses.fields(GenerationConfig):
        for bound, (compare, words) in comparisons.items():
            limit = field.metadata[bound]
            if field.name in values and limit is not None:
                message = f"{field.name} must be {words} {limit}. Received:"
                value = values[field.name]
                holds = tf.reduce_all(compare(value, tf.cast(limit, value.dtype)))
                assertions.append(tf.debugging.Assert(holds, [message, value]))
    return assertions
