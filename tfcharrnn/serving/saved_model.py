"""A trained model as functions from text to text, in graphs that need no Python of this project: for a SavedModel.

They are not compiled by XLA, which not every server has; `tfcharrnn.rng` makes the same noise either way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfcharrnn.config import DataConfig, GenerationConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.inference.sampling import SAMPLE, Read, Reading, pick
from tfcharrnn.inference.trained_model import TrainedModel

_DROPPED, _UNKNOWN = -1, -2  # in place of the id of a character that the normalisation removes, or that is not known
_SHOWN = 10  # unknown characters that an error names

# the inputs of `generate` beside the prime: settings of the same name, with the same bounds
NUMBERS = {
    "length": tf.int32,
    "temperature": tf.float32,
    "top_k": tf.int32,
    "top_p": tf.float32,
    "seed": tf.int64,
}
# a number may be one for all texts, or one for each
_NUMBER_SPECS = [tf.TensorSpec(None, dtype, name) for name, dtype in NUMBERS.items()]


class Servable(tf.Module):
    """What a SavedModel is made of.

    Attributes:
        model: the model, whose variables are saved.
        carried: where a text without a prime goes on, or None.
    """

    def __init__(self, trained: TrainedModel):
        """Takes a trained model."""
        super().__init__()
        self.model, self.carried = trained.model, trained.sampler.carried
        self._sampler = trained.sampler
        self._seq_length = trained.run.data.seq_length
        self._text = _Text(trained.run.vocabulary, trained.run.data)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "prime"), *_NUMBER_SPECS], autograph=False)
    def generate(self, prime: tf.Tensor, *numbers: tf.Tensor) -> dict[str, tf.Tensor]:
        """Goes on with texts; each is what `Sampler.generate` makes of the same settings, alone.

        Args:
            prime: UTF-8 text, `[batch]`.
            *numbers: as in `NUMBERS`, each a scalar or `[batch]`; `top_k=1` always takes the likeliest symbol.

        Returns:
            `text`, primes included, `[batch]`.
        """
        values = {name: tf.broadcast_to(value, tf.shape(prime)) for name, value in zip(NUMBERS, numbers, strict=True)}
        with tf.control_dependencies(_in_bounds(values)):
            primes = self._text.encode(prime)
        read = self._sampler.reader()

        def one(row: tuple[tf.Tensor, dict[str, tf.Tensor]]) -> tf.Tensor:
            return self._one(read, row[0], **row[1])

        return {"text": tf.map_fn(one, (primes, values), fn_output_signature=tf.TensorSpec([], tf.string))}

    def _one(
        self,
        read: Read,
        prime: tf.Tensor,
        length: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        top_p: tf.Tensor,
        seed: tf.Tensor,
    ) -> tf.Tensor:
        """One text, from the ids of its prime, `[symbols]`."""
        size, end_id = len(self._sampler.vocabulary), self._sampler.vocabulary.end_id
        top_k = tf.where((top_k > 0) & (top_k < size), top_k, size)
        filtered = (top_k < size) | (top_p < 1.0)

        def choose(logits: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
            return tf.cond(
                filtered,
                lambda: pick(logits, noise, temperature=temperature, top_k=top_k, top_p=top_p),
                lambda: pick(logits, noise, temperature=temperature),
            )

        symbols, reading, first = self._begin(prime)
        given = tf.concat([prime[first:], tf.fill([length], SAMPLE)], axis=0)
        noise = self._sampler.noise(1, seed, tf.cast(first, tf.int64))
        drawn, made, *_ = self._sampler.loop(
            read, choose, noise, given, tf.size(given), symbols, reading, end_id=end_id
        )
        return self._text.decode(tf.concat([prime[:first], drawn[:made, 0]], axis=0))

    def _begin(self, prime: tf.Tensor) -> tuple[tf.Tensor, Reading, int | tf.Tensor]:
        """As `Sampler.begin`, where it is not known yet whether there is a prime."""
        if self.carried is None:
            if self.model.layout.carries_state:
                missing = tf.debugging.Assert(tf.size(prime) > 0, ["prime: this model needs one to begin with"])
                with tf.control_dependencies([missing]):
                    prime = tf.identity(prime)
                return self._sampler.begin(1, prime[0])
            return self._sampler.begin(1, None)
        return tf.cond(
            tf.size(prime) > 0, lambda: self._sampler.begin(1, prime[0]), lambda: self._sampler.begin(1, None)
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")], autograph=False)
    def score(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """How likely texts are.

        Every symbol after `<S>` is predicted, and that the text ends, where the layout has `</S>`. Without a `<S>` the
        first character, or in `windows` the first window, is not predicted, and a stream is read from its beginning.

        Args:
            text: UTF-8 text, `[batch]`.

        Returns:
            `log_probability` in nats and `characters`, how many symbols were predicted, each `[batch]`.
        """
        layout, batch = self.model.layout, tf.shape(text)[0]
        parts: list[tf.Tensor | tf.RaggedTensor] = [self._text.encode(text)]
        if layout.start_id is not None:
            parts.insert(0, tf.fill([batch, 1], layout.start_id))
        if layout.end_id is not None:
            parts.append(tf.fill([batch, 1], layout.end_id))
        rows = tf.concat(parts, axis=1)
        lengths, ids = tf.cast(rows.row_lengths(), tf.int32), rows.to_tensor()
        width = tf.shape(ids)[1]
        first = self._seq_length if layout.last_only else 1
        read = self._sampler.reader()

        def body(t: tf.Tensor, reading: Reading, total: tf.Tensor) -> tuple[tf.Tensor, Reading, tf.Tensor]:
            logits, reading = read(ids[:, t], reading)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, t + 1], logits)
            real = (t + 1 >= first) & (t + 1 < lengths)
            return t + 1, reading, total - tf.where(real, tf.cast(loss, tf.float64), tf.zeros_like(total))

        _, _, total = tf.while_loop(
            lambda t, *_: t < width - 1,
            body,
            (tf.constant(0), self._sampler.nothing_read(batch), tf.zeros([batch], tf.float64)),
        )
        return {"log_probability": total, "characters": tf.maximum(lengths - first, 0)}


class _Text:
    """The way between UTF-8 text and ids."""

    def __init__(self, vocabulary: Vocabulary, config: DataConfig):
        """Makes tables of the vocabulary and of what is done to a text before it is looked up."""
        self._lowercase = config.lowercase
        characters = vocabulary.symbols[vocabulary.num_special :]
        self._num_special = vocabulary.num_special
        self._code_points = np.array([ord(character) for character in characters], np.int32)
        ids = {character: vocabulary.num_special + index for index, character in enumerate(characters)}
        every = map(chr, (*range(0xD800), *range(0xE000, 0x110000)))
        if config.lowercase or config.drop_digits:
            for character in every:
                if config.drop_digits and character.isdecimal():
                    ids[character] = _DROPPED
                elif config.lowercase and character not in ids and character.lower() in ids:
                    # what TensorFlow's own lower-casing leaves, since it knows Unicode as of another version
                    ids[character] = ids[character.lower()]
        ids |= dict.fromkeys(config.drop_chars, _DROPPED)
        self._known = np.array(sorted(map(ord, ids)), np.int32)
        self._ids = np.array([ids[chr(code_point)] for code_point in self._known], np.int32)

    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """The ids of texts `[batch]`, normalised as `corpora.normalise` does it: int32 `[batch, (symbols)]`.

        A character that the vocabulary does not have is an error, which names it.
        """
        texts = tf.strings.regex_replace(texts, "\r\n", "\n")
        if self._lowercase:
            # "I" by itself, since where the server's language is Turkish it would become another letter
            texts = tf.strings.lower(tf.strings.regex_replace(texts, "I", "i"), "utf-8")
        rows = tf.strings.unicode_decode(texts, "UTF-8", errors="strict")
        flat = rows.flat_values
        places = tf.minimum(tf.searchsorted(self._known, flat), len(self._known) - 1)
        ids = tf.where(tf.gather(self._known, places) == flat, tf.gather(self._ids, places), _UNKNOWN)
        unknown = tf.unique(tf.boolean_mask(flat, ids == _UNKNOWN))[0][:_SHOWN]
        shown = tf.strings.unicode_encode(unknown[:, tf.newaxis], "UTF-8")
        message = ["the model's vocabulary does not have", tf.strings.reduce_join(shown, separator=" ")]
        with tf.control_dependencies([tf.debugging.Assert(tf.size(unknown) == 0, message)]):
            return tf.ragged.boolean_mask(rows.with_flat_values(ids), rows.with_flat_values(ids != _DROPPED))

    def decode(self, ids: tf.Tensor) -> tf.Tensor:
        """The text of ids `[symbols]`, a scalar; special symbols are left out."""
        ids = tf.boolean_mask(ids, ids >= self._num_special)
        return tf.strings.unicode_encode(tf.gather(self._code_points, ids - self._num_special), "UTF-8")


def _in_bounds(values: dict[str, tf.Tensor]) -> Sequence[tf.Operation]:
    """Checks numbers against the bounds of the settings of the same names."""
    compare = {
        "at_least": (tf.greater_equal, "at least"),
        "at_most": (tf.less_equal, "at most"),
        "above": (tf.greater, "greater than"),
    }
    checks = []
    for field in dataclasses.fields(GenerationConfig):
        for bound, (holds, words) in compare.items():
            limit = field.metadata[bound]
            if field.name in values and limit is not None:
                message = f"{field.name} must be {words} {limit}. Received:"
                value = values[field.name]
                checks.append(
                    tf.debugging.Assert(tf.reduce_all(holds(value, tf.cast(limit, value.dtype))), [message, value])
                )
    return checks
