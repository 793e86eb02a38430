"""Sequences of ids, cut from a text and kept in TFRecord files.

A record is a `tf.train.Example` with one int64 feature, `seq`: the ids of one sequence.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.errors import ConfigError, UserError, first_line

FEATURE = "seq"
# ids that are parsed together; 64-bit numbers for a moment
_PARSED_IDS = 2**20


def stride(seq_length: int, overlap: float) -> int:
    """How many characters on the next sequence starts: seq_length - 1 - ceil(overlap * (seq_length - 1)).

    The product is taken of the decimal number that the user wrote, so that 0.07 of 100 is 7 and not a hair more.

    Raises:
        ConfigError: the overlap leaves no step forward.
    """
    characters = seq_length - 1
    step = characters - math.ceil(Fraction(repr(float(overlap))) * characters)
    if step < 1:
        raise ConfigError(
            f"--overlap={overlap}: of the {characters} characters of a sequence it leaves none to go on by; "
            "take a smaller one, or a larger --seq_length"
        )
    return step


def num_sequences(num_characters: int, seq_length: int, overlap: float) -> int:
    """How many sequences `cut_sequences` cuts from so many characters."""
    rest = num_characters - (seq_length - 1)
    return rest // stride(seq_length, overlap) + 1 if rest >= 0 else 0


def cut_sequences(ids: npt.NDArray[np.int32], seq_length: int, overlap: float, start_id: int) -> npt.NDArray[np.int32]:
    """Cuts a text into overlapping sequences, each with `<S>` before its characters.

    Args:
        ids: the text, `[characters]`.
        seq_length: symbols in a sequence, `<S>` included.
        overlap: share of the characters that the next sequence repeats.
        start_id: the id of `<S>`.

    Returns:
        `[sequences, seq_length]`; an incomplete last sequence is dropped.
    """
    characters, step = seq_length - 1, stride(seq_length, overlap)
    if len(ids) < characters:
        return np.zeros((0, seq_length), np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(ids, characters)[::step]
    return np.concatenate([np.full((len(windows), 1), start_id, np.int32), windows], axis=1)


def cut_whole(
    ids: npt.NDArray[np.int32], seq_length: int, start_id: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Cuts a text as `cut_sequences` does without overlap, but keeps the incomplete last sequence.

    Returns:
        The sequences, `[sequences, seq_length]`, the last one filled up with `<S>`; and how many symbols of each are
        real, `[sequences]`.
    """
    characters = seq_length - 1
    count = -(-len(ids) // characters)
    padded = np.full(count * characters, start_id, np.int32)
    padded[: len(ids)] = ids
    lengths = np.full(count, seq_length)
    if count:
        lengths[-1] -= count * characters - len(ids)
    return cut_sequences(padded, seq_length, 0.0, start_id), lengths


def write(paths: Sequence[Path], examples: Iterable[bytes], count: int) -> None:
    """Writes serialised records in order, spread evenly over TFRecord files.

    Args:
        paths: the files to make.
        examples: the records, as `serialise` makes them.
        count: how many records there are.

    Raises:
        UserError: the disk refuses.
    """
    examples = iter(examples)
    for index, path in enumerate(paths):
        size = count // len(paths) + (index < count % len(paths))
        try:
            with tf.io.TFRecordWriter(os.fsencode(path)) as writer:
                for example in itertools.islice(examples, size):
                    writer.write(example)
        except tf.errors.OpError as error:
            raise UserError(
                f"{path}: cannot be written ({first_line(error)}); free space or choose another folder"
            ) from error


def serialise(sequences: npt.NDArray[np.int32]) -> list[bytes]:
    """The `tf.train.Example` of each sequence, in its serialised form; made all at once, which is far quicker.

    An id is a varint: its bits in groups of seven, the lowest first, with 128 added to every byte but the last
    (https://protobuf.dev/programming-guides/encoding). Ids are the end of the record; what comes before them depends
    on their size in bytes alone.

    Args:
        sequences: `[records, seq_length]`, ids from 0 to 2^21 - 1.
    """
    count, seq_length = sequences.shape
    if sequences.max(initial=0) < 128:  # one byte each, so that all records are alike
        header = np.frombuffer(_header(seq_length), np.uint8)
        examples = np.empty((count, len(header) + seq_length), np.uint8)
        examples[:, : len(header)] = header
        examples[:, len(header) :] = sequences
        return examples.view(f"V{examples.shape[1]}").ravel().tolist()
    groups = np.stack([sequences, sequences >> 7, sequences >> 14], axis=-1)
    more = groups >= 128
    used = np.concatenate([np.ones_like(more[..., :1]), more[..., :-1]], axis=-1)
    ids = (groups & 127 | more << 7).astype(np.uint8)[used].tobytes()
    ends = np.cumsum(np.count_nonzero(used, axis=(1, 2))).tolist()
    return [_header(end - start) + ids[start:end] for start, end in itertools.pairwise([0, *ends])]


@functools.lru_cache(maxsize=1024)
def _header(size: int) -> bytes:
    """A serialised `tf.train.Example` up to its ids, which take `size` bytes."""
    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[0] * size))
    example = tf.train.Example(features=tf.train.Features(feature={FEATURE: feature}))
    return example.SerializeToString()[:-size]


def read(paths: Sequence[Path], seq_length: int, vocabulary_size: int, expected: int) -> npt.NDArray[np.int32]:
    """Reads every sequence of TFRecord files of one length, in order.

    Args:
        paths: the files.
        seq_length: ids in each record.
        vocabulary_size: ids must be below this.
        expected: how many records there must be.

    Returns:
        `[expected, seq_length]`.

    Raises:
        UserError: a missing or damaged file, a record of another length or with a wrong id, or a wrong count.
    """
    if not paths and not expected:
        return np.empty((0, seq_length), np.int32)
    folder = paths[0].parent
    try:
        size = sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); prepare the data again") from None
    if expected * seq_length > size:  # an id takes at least a byte; checked before memory is taken
        raise UserError(f"{folder}: its files are too short for what dataset.json counts; prepare the data again")
    sequences = np.empty((expected, seq_length), np.int32)
    count = 0
    for path in paths:
        dataset = tf.data.TFRecordDataset(os.fsencode(path)).batch(max(1, _PARSED_IDS // seq_length))
        dataset = dataset.map(
            lambda records: tf.io.parse_example(records, {FEATURE: tf.io.FixedLenFeature([seq_length], tf.int64)})
        )
        try:
            for example in dataset.as_numpy_iterator():
                batch = example[FEATURE]
                if batch.min() < 0 or batch.max() >= vocabulary_size:
                    raise UserError(f"{path}: holds ids outside the vocabulary; prepare the data again")
                if count + len(batch) > expected:
                    raise UserError(f"{path}: more records than dataset.json counts; prepare the data again")
                sequences[count : count + len(batch)] = batch
                count += len(batch)
        except tf.errors.NotFoundError:
            raise UserError(f"{path}: no such file; prepare the data again") from None
        except tf.errors.OpError as error:
            raise UserError(
                f"{path}: damaged or not of this layout ({first_line(error)}); prepare the data again"
            ) from None
    if count != expected:
        raise UserError(f"{folder}: {count} records where dataset.json counts {expected}; prepare the data again")
    return sequences
