"""Sequences of ids, cut from a text and kept in TFRecord files.

A record is a `tf.train.Example` with one int64 feature, `seq`: the ids of one sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.errors import UserError

FEATURE = "seq"
_PARSE_BATCH = 4096


def stride(seq_length: int, overlap: float) -> int:
    """How many characters on the next sequence starts: seq_length - 1 - ceil(overlap * (seq_length - 1)).

    The product is taken of the decimal number that the user wrote, so that 0.07 of 100 is 7 and not a hair more.

    Raises:
        UserError: the overlap leaves no step forward.
    """
    characters = seq_length - 1
    step = characters - math.ceil(Fraction(repr(overlap)) * characters)
    if step < 1:
        raise UserError(f"--overlap={overlap}: with --seq_length={seq_length} the next sequence would not move on")
    return step


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


def shard_names(split: str, num_shards: int) -> list[str]:
    """The file names of a split: `train-00000-of-00002.tfrecord`, ..."""
    return [f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord" for shard in range(num_shards)]


def write(folder: Path, split: str, sequences: npt.NDArray[np.int32], num_shards: int) -> list[str]:
    """Writes sequences `[records, seq_length]` in order, spread evenly over `num_shards` files.

    Returns:
        The names of the files.
    """
    names = shard_names(split, num_shards)
    for name, part in zip(names, np.array_split(sequences, num_shards), strict=True):
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for sequence in part:
                writer.write(_serialise(sequence))
    return names


def _serialise(sequence: npt.NDArray[np.int32]) -> bytes:
    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=sequence))
    return tf.train.Example(features=tf.train.Features(feature={FEATURE: feature})).SerializeToString()


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
    try:
        size = sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); prepare the data again") from None
    if expected * seq_length > size:  # an id takes at least a byte; checked before memory is taken
        raise UserError(f"{paths[0].parent}: its files are too short for what dataset.json counts; prepare again")
    sequences = np.empty((expected, seq_length), np.int32)
    count = 0
    for path in paths:
        dataset = tf.data.TFRecordDataset(str(path)).batch(_PARSE_BATCH)
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
                f"{path}: damaged or not of this layout; prepare the data again ({error.message})"
            ) from None
    if count != expected:
        raise UserError(f"{paths[0].parent}: {count} records where dataset.json counts {expected}; prepare again")
    return sequences
