"""Samplers that choose the examples of each training step, for a split that fits in memory.

The choice is a function of (seed, step) alone, so a run is reproducible, and resumes in the middle of an epoch without
reading the epoch again.
"""

from __future__ import annotations

import abc
import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn import rng
from tfcharrnn.config import DataConfig, TrainingConfig
from tfcharrnn.data.chunking import sequence_stride
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.examples import Examples, Spans, count_training_examples, gather
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.layouts import LAYOUTS

# Examples of different lengths are padded to at most this many widths, each of which is compiled once.
_NUM_WIDTHS = 5
_WIDTH_MULTIPLE = 8
# id of `<S>` in the layout `sequences`
_START_ID = 0


class BatchSampler(abc.ABC):
    """Chooses the examples of each training step; steps are counted from 0.

    Attributes:
        batch_size: examples in a batch, over all processes.
        rows: the rows of each batch that this process feeds. The content of a row does not depend on them.
        steps_per_epoch: batches in an epoch.
        mean_width: mean length to which examples are padded, in symbols.
    """

    batch_size: int
    rows: range
    steps_per_epoch: int
    mean_width: float

    @abc.abstractmethod
    def load_batches(self, steps: range, width: int) -> npt.NDArray[np.int32]:
        """Loads this process's rows of consecutive steps, `[steps, rows, width]`, padded with zeros."""

    @abc.abstractmethod
    def get_width(self, step: int) -> int:
        """Returns the length to which the examples of a step are padded."""

    def count_examples(self, step: int) -> int:
        """Returns the number of examples in the whole batch; they are its first rows, and the others are empty."""
        return self.batch_size

    def close(self) -> None:  # noqa: B027
        """Ends the threads of the sampler, if it has any."""


class InMemorySampler(BatchSampler):
    """A sampler whose examples are spans of one array.

    Attributes:
        ids: all symbols, `[symbols]`.
        is_ring: the first symbol follows the last.
    """

    ids: npt.NDArray[np.int32]
    is_ring: bool = False

    @abc.abstractmethod
    def get_spans(self, step: int) -> Spans:
        """Returns the spans of `ids` in this process's rows of a step, `[rows]`."""

    def load_batches(self, steps: range, width: int) -> npt.NDArray[np.int32]:
        """Gathers the spans of consecutive steps."""
        starts, lengths = (np.stack(arrays) for arrays in zip(*map(self.get_spans, steps), strict=True))
        return gather(self.ids, starts, lengths, width, is_ring=self.is_ring)


class ShuffledSampler(InMemorySampler):
    """Shuffles independent examples, in a new order every epoch unless `--shuffle=once`; or reads them in order.

    When they are shuffled, examples of similar length share a batch, to keep padding low; which of them do changes with
    the order.
    """

    def __init__(self, examples: Examples, config: TrainingConfig, rows: range | None = None):
        """Plans the epochs.

        Args:
            examples: the training examples.
            config: batch size, seed and kind of shuffling.
            rows: the rows of each batch that this process feeds; None: all.

        Raises:
            UserError: fewer examples than one batch needs.
        """
        self.ids = examples.ids
        self.batch_size = config.batch_size
        self.rows = range(config.batch_size) if rows is None else rows
        self.steps_per_epoch = count_batches(len(examples), config)
        self._spans = Spans(examples.starts, examples.lengths)
        self._widths = assign_widths(examples.lengths)
        self.mean_width = float(self._widths.mean())
        self._config = config
        # The cached function holds no reference to the sampler: such a cycle would keep `ids` in memory.
        shuffle = functools.partial(_shuffle_epoch, self._widths, self.steps_per_epoch, config)
        self._shuffle_epoch = functools.lru_cache(maxsize=2)(shuffle)

    def _get_indices(self, step: int) -> npt.NDArray[np.int64]:
        """Returns the indices of the examples of a step, `[examples]`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        indices = self._shuffle_epoch(epoch)[position]
        return indices if self._config.drop_remainder else indices[indices >= 0]

    def get_spans(self, step: int) -> Spans:
        """Returns the spans of a step; an empty row has length 0."""
        indices = self._get_indices(step)[self.rows.start : self.rows.stop]
        spans = Spans(*np.zeros((2, len(self.rows)), np.int64))
        spans.starts[: len(indices)] = self._spans.starts[indices]
        spans.lengths[: len(indices)] = self._spans.lengths[indices]
        return spans

    def get_width(self, step: int) -> int:
        """Returns the greatest width of an example in the whole batch."""
        return int(self._widths[self._get_indices(step)].max())

    def count_examples(self, step: int) -> int:
        """Returns the number of examples in the whole batch, which is smaller at the end of an epoch."""
        return len(self._get_indices(step))


class RingSampler(ShuffledSampler):
    """Shuffles the sequences of a text that is read as a ring, and cut from another character on in every epoch."""

    def __init__(
        self,
        characters: npt.NDArray[np.int32],
        num_examples: int,
        data: DataConfig,
        config: TrainingConfig,
        rows: range | None = None,
    ):
        """Plans the epochs.

        Args:
            characters: the text, without `<S>`.
            num_examples: sequences in an epoch.
            data: the lengths of a sequence and of the overlap.
            config: batch size, seed and kind of shuffling.
            rows: the rows of each batch that this process feeds; None: all.

        Raises:
            UserError: fewer examples than one batch needs.
        """
        # a span starts one character early; `<S>` then replaces that character
        starts = np.arange(num_examples) * sequence_stride(data.seq_length, data.overlap) - 1
        super().__init__(Examples(characters, starts, np.full(num_examples, data.seq_length)), config, rows)
        self.is_ring = True

    def get_spans(self, step: int) -> Spans:
        """Returns the spans of a step."""
        starts, lengths = super().get_spans(step)
        return Spans(starts + draw_ring_start(len(self.ids), self._config, step // self.steps_per_epoch), lengths)

    def load_batches(self, steps: range, width: int) -> npt.NDArray[np.int32]:
        """Gathers the spans of consecutive steps and puts `<S>` before each; empty rows are zeros, too."""
        batches = super().load_batches(steps, width)
        batches[..., 0] = _START_ID
        return batches


def draw_ring_start(size: int, config: TrainingConfig, epoch: int) -> int:
    """Draws the character of a text of `size` characters at which an epoch with `--random_start` begins."""
    return rng.integer(size, config.seed, rng.Purpose.SHUFFLE, epoch, index=3)


class StreamSampler(InMemorySampler):
    """Reads a text as parallel streams: each step continues all of them where the last one ended."""

    def __init__(self, ids: npt.NDArray[np.int32], seq_length: int, config: TrainingConfig, rows: range | None = None):
        """Divides a text into streams of equal length; a few characters at its end may be left over.

        Args:
            ids: the text.
            seq_length: characters in a training step.
            config: the number of streams (batch size), and whether every epoch begins at a random character.
            rows: the rows of each batch that this process feeds; None: all.

        Raises:
            UserError: a stream would be shorter than one step.
        """
        self.ids = ids
        self.is_ring = config.random_start
        self.batch_size = config.batch_size
        self.rows = range(config.batch_size) if rows is None else rows
        self.mean_width = seq_length + 1.0
        self._config, self._seq_length = config, seq_length
        self._stream_length, self.steps_per_epoch = divide_into_streams(len(ids), seq_length, config.batch_size)

    def get_spans(self, step: int) -> Spans:
        """Returns the spans of a step; each ends with the first symbol of the next step's."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self._seq_length
        if self.is_ring:
            first += draw_ring_start(len(self.ids), self._config, epoch)
        starts = np.array(self.rows, np.int64) * self._stream_length + first
        return Spans(starts, np.full(len(starts), self._seq_length + 1, np.int64))

    def get_width(self, step: int) -> int:
        """Returns the width of every step: its input and the symbol that follows."""
        return self._seq_length + 1


def check_fits_layout(characters: int, records: int, data: DataConfig, config: TrainingConfig) -> None:
    """Checks that the layout has what the training options ask for, and that the training split fills a batch.

    Raises:
        ConfigError: the layout cannot begin an epoch at any character, or has no state to carry over or to reset.
        UserError: the split is too small.
    """
    if config.random_start and not LAYOUTS[data.layout].is_continuous:
        raise ConfigError(f"--random_start: applies to --layout=sequences|stream, not to {data.layout}")
    if config.reset_state and not (LAYOUTS[data.layout].carries_state or config.carry_state):
        raise ConfigError(f"--reset_state: applies to a carried state, --layout=stream, not to {data.layout}")
    if config.carry_state and data.layout != "lines":
        raise ConfigError(f"--carry_state: applies to --layout=lines, not to {data.layout}")
    if config.carry_state and (config.batch_size > 1 or config.shuffle == "epoch"):
        raise ConfigError(
            "--carry_state: needs --batch_size=1 and --shuffle=once or none, to be read in one fixed order"
        )
    if LAYOUTS[data.layout].carries_state:
        divide_into_streams(characters, data.seq_length, config.batch_size)
    else:
        count_batches(count_training_examples(characters, records, data), config)


def count_rows(characters: int, records: int, data: DataConfig) -> int:
    """Returns the largest batch that the training split fills."""
    if LAYOUTS[data.layout].carries_state:
        return max(characters - 1, 0) // data.seq_length
    return count_training_examples(characters, records, data)


class Streams(NamedTuple):
    """The size of parallel streams.

    Attributes:
        length: characters in each.
        steps: training steps in each.
    """

    length: int
    steps: int


def divide_into_streams(characters: int, seq_length: int, batch_size: int) -> Streams:
    """Divides a text into `batch_size` streams.

    Raises:
        UserError: a stream would be shorter than one step.
    """
    length = max(characters - 1, 0) // batch_size
    if length < seq_length:
        raise UserError(
            f"--batch_size={batch_size}: {characters} training characters make streams of {length}, shorter than "
            f"--seq_length={seq_length}; reduce one of the two or add text"
        )
    return Streams(length, length // seq_length)


def count_batches(num_examples: int, config: TrainingConfig) -> int:
    """Returns the number of batches in an epoch.

    Raises:
        UserError: too few examples for one batch.
    """
    if not config.drop_remainder and num_examples:
        return -(-num_examples // config.batch_size)
    if num_examples < config.batch_size:
        raise UserError(
            f"--batch_size={config.batch_size}: there are only {num_examples} training examples; "
            "use a smaller batch, shorter examples or more text"
        )
    return num_examples // config.batch_size


def _shuffle_epoch(
    widths: npt.NDArray[np.int64], steps: int, config: TrainingConfig, epoch: int
) -> npt.NDArray[np.int64]:
    """Returns the indices of the examples of each step of an epoch, `[steps, batch]`; -1 marks an empty row.

    Args:
        widths: the length to which each example is padded, `[examples]`.
        steps: batches in an epoch.
        config: batch size, seed and kind of shuffling.
        epoch: the epoch, counted from 0.
    """
    if config.shuffle == "none":
        return arrange_in_batches(np.arange(len(widths))[: steps * config.batch_size], steps, config.batch_size)
    seed, key = config.seed, epoch if config.shuffle == "epoch" else 0
    order = rng.permutation(len(widths), seed, rng.Purpose.SHUFFLE, key)[: steps * config.batch_size]
    if widths.min() == widths.max():
        return arrange_in_batches(order, steps, config.batch_size)
    order = order[np.argsort(widths[order], kind="stable")]
    batches = arrange_in_batches(order, steps, config.batch_size)
    return batches[rng.permutation(steps, seed, rng.Purpose.SHUFFLE, key, index=1)]


def arrange_in_batches(order: npt.NDArray[np.int64], steps: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Arranges indices as the rows of batches, `[steps, batch]`; -1 marks the empty rows at the end."""
    rows = np.full(steps * batch_size, -1, np.int64)
    rows[: len(order)] = order
    return rows.reshape(steps, batch_size)


def assign_widths(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns the length to which each example is padded, `[examples]`: one of a few, since each is compiled."""
    return round_up(lengths, choose_widths(*np.unique(lengths, return_counts=True)))


def round_up(lengths: npt.NDArray[np.int64], widths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns for each length the smallest of the ascending `widths` that holds it."""
    return widths[np.searchsorted(widths, lengths)]


class LengthCounts(NamedTuple):
    """The lengths of the examples of a split.

    Attributes:
        lengths: the distinct lengths, ascending, `[lengths]`.
        counts: how many examples have each length, `[lengths]`.
    """

    lengths: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def count_lengths(data: DataFolder, split: str) -> LengthCounts:
    """Counts the lengths of training examples; an old folder of lines does not record them, so all of it is read.

    Raises:
        UserError: damaged shards.
    """
    config, part = data.config, data.splits[split]
    if config.layout != "lines":
        length = config.seq_length + (config.layout != "sequences")
        count = count_training_examples(part.characters, part.records, config)
        return LengthCounts(np.array([length]), np.array([count]))
    if part.lengths:
        return LengthCounts(*np.array(sorted(part.lengths.items()), np.int64).T)
    counts = np.zeros(config.max_length + 1, np.int64)
    for examples in data.open_shards(split).read_parts(0, part.records):
        counts += np.bincount(examples.lengths, minlength=len(counts))
    lengths = np.flatnonzero(counts)
    return LengthCounts(lengths, counts[lengths])


def choose_widths(lengths: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Chooses a few widths, ascending, such that about equally many examples are padded to each.

    Args:
        lengths: the distinct lengths of the examples, ascending.
        counts: how many examples have each length.
    """
    # the quantiles of all lengths, rounded up to a length that occurs
    ranks = np.ceil((counts.sum() - 1) * (np.arange(1, _NUM_WIDTHS + 1) / _NUM_WIDTHS))
    quantiles = lengths[np.searchsorted(np.cumsum(counts), ranks, side="right")]
    return np.unique(np.minimum(-(-quantiles // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE, lengths[-1]))
