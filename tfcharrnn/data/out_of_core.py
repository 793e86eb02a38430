"""Samplers for training data larger than memory, of which one segment at a time is read.

Shuffling has two levels. The shards of an epoch are put into a random order, and their records, in that order, are
divided into lanes; each lane fills the same few rows of every batch. An epoch is also divided into segments of
consecutive steps. The records of a segment are read lane by lane and shuffled within their lane. So a process that
feeds some rows of the batches reads only the shards under their lanes, and a batch is the same for any number of
processes. While a segment is trained on, a thread reads the next one.
"""

from __future__ import annotations

import abc
import collections
import concurrent.futures
import dataclasses
import functools
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn import rng
from tfcharrnn.config import TrainingConfig
from tfcharrnn.data.batching import (
    BatchSampler,
    arrange_in_batches,
    choose_widths,
    count_batches,
    count_lengths,
    divide_into_streams,
    draw_ring_start,
    round_up,
)
from tfcharrnn.data.chunking import CHUNK_LENGTH, join_characters, sequence_stride
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.examples import Examples, count_training_examples, cut_windows, gather

# Few lanes mean few places to read from; many lanes mean that records far apart share a batch.
_MAX_LANES = 256
# the previous segment, the current one, and the next
_SEGMENTS_IN_MEMORY = 3
# symbols whose memory an example's start and length take
_SPAN_SIZE = 16
# segments whose step widths are cached
_CACHED_WIDTHS = 64


class _Lane(NamedTuple):
    """The examples of a lane in a segment.

    Attributes:
        ids: their symbols, `[symbols]`.
        starts: where each example begins, `[steps, rows of the lane]`.
        lengths: symbols in each, `[steps, rows of the lane]`; 0 marks an empty row.
    """

    ids: npt.NDArray[np.integer]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class _Segment:
    """The examples of consecutive steps, in the rows that this process feeds.

    Attributes:
        first_step: the first of the steps, counted over all epochs.
        ids: their symbols, `[symbols]`.
        starts: where each example begins, `[steps, rows]`.
        lengths: symbols in each, `[steps, rows]`; 0 marks an empty row.
    """

    first_step: int
    ids: npt.NDArray[np.integer]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


class OutOfCoreSampler(BatchSampler):
    """A sampler that reads its examples segment by segment; a thread reads one segment ahead."""

    def __init__(
        self,
        data: DataFolder,
        config: TrainingConfig,
        rows: range | None,
        *,
        steps_per_epoch: int,
        num_lanes: int,
        example_size: float,
    ):
        """Divides an epoch into lanes and segments.

        Args:
            data: the data folder.
            config: the training options.
            rows: the rows of each batch that this process feeds; None: all.
            steps_per_epoch: batches in an epoch.
            num_lanes: a divisor of the batch size.
            example_size: memory of an example, in symbols, of which `--shuffle_buffer` are held at a time.

        Raises:
            UserError: missing shards.
        """
        self.batch_size = config.batch_size
        self.rows = range(config.batch_size) if rows is None else rows
        self.steps_per_epoch = steps_per_epoch
        self._data, self._config = data, config
        self._shards = data.open_shards("train")
        self._lane_rows = config.batch_size // num_lanes
        self._dtype = np.dtype(
            np.int32 if len(data.vocabulary) > 2**16 else np.min_scalar_type(len(data.vocabulary) - 1)
        )
        steps = max(1, int(config.shuffle_buffer / _SEGMENTS_IN_MEMORY / (config.batch_size * example_size)))
        self._segments_per_epoch = -(-steps_per_epoch // steps)
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "tfcharrnn-reader")
        self._lock = threading.Lock()
        self._segments: collections.OrderedDict[int, concurrent.futures.Future[_Segment]] = collections.OrderedDict()

    @abc.abstractmethod
    def _read_lane(self, lane: int, epoch: int, steps: range) -> _Lane:
        """Reads a lane's examples of some steps, counted from the beginning of their epoch."""

    def load_batches(self, steps: range, width: int) -> npt.NDArray[np.int32]:
        """Gathers this process's rows of consecutive steps from their segments."""
        result = np.empty((len(steps), len(self.rows), width), np.int32)
        step = steps.start
        while step < steps.stop:
            segment = self._get_segment(self._find_segment(step))
            part = slice(step - segment.first_step, min(steps.stop - segment.first_step, len(segment.starts)))
            batches = gather(segment.ids, segment.starts[part], segment.lengths[part], width)
            result[step - steps.start :][: len(batches)] = batches
            step += len(batches)
        return result

    def close(self) -> None:
        """Ends the reading thread."""
        self._reader.shutdown(cancel_futures=True)

    def _find_segment(self, step: int) -> int:
        """Returns the segment that holds a step; both are counted over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        index = ((position + 1) * self._segments_per_epoch - 1) // self.steps_per_epoch
        return epoch * self._segments_per_epoch + index

    def _get_steps(self, segment: int) -> range:
        """Returns the steps of a segment, counted from the beginning of its epoch."""
        steps, count, index = self.steps_per_epoch, self._segments_per_epoch, segment % self._segments_per_epoch
        return range(index * steps // count, (index + 1) * steps // count)

    def _get_segment(self, segment: int) -> _Segment:
        """Waits for a segment, and starts reading the next one."""
        with self._lock:
            for index in (segment, segment + 1):
                if index not in self._segments:
                    self._segments[index] = self._reader.submit(self._read_segment, index)
            self._segments.move_to_end(segment)
            while len(self._segments) > _SEGMENTS_IN_MEMORY:
                self._segments.popitem(last=False)
            future = self._segments[segment]
        return future.result()

    def _read_segment(self, segment: int) -> _Segment:
        epoch, steps = segment // self._segments_per_epoch, self._get_steps(segment)
        lanes = range(self.rows.start // self._lane_rows, -(-self.rows.stop // self._lane_rows))
        all_ids, all_starts, all_lengths, size = [], [], [], 0
        for lane in lanes:
            ids, starts, lengths = self._read_lane(lane, epoch, steps)
            all_ids.append(ids)
            all_starts.append(starts + size)
            all_lengths.append(lengths)
            size += len(ids)
        columns = slice(self.rows.start - lanes.start * self._lane_rows, self.rows.stop - lanes.start * self._lane_rows)
        starts, lengths = (np.concatenate(parts, axis=1)[:, columns] for parts in (all_starts, all_lengths))
        all_ids.append(np.zeros(1, self._dtype))  # so that the span of an empty row starts inside the array
        return _Segment(epoch * self.steps_per_epoch + steps.start, np.concatenate(all_ids), starts, lengths)

    def _join(self, parts: Iterator[npt.NDArray[np.int32]]) -> npt.NDArray[np.integer]:
        """Joins symbols in the smallest type that holds them."""
        return np.concatenate([np.empty(0, self._dtype), *(part.astype(self._dtype) for part in parts)])


class _ShardRange(NamedTuple):
    """The examples of a shard from `first` to before `last`."""

    shard: int
    first: int
    last: int


class OutOfCoreShuffledSampler(OutOfCoreSampler):
    """Shuffles independent examples at two levels: shards, and examples within a segment of a lane."""

    def __init__(self, data: DataFolder, config: TrainingConfig, rows: range | None = None):
        """Plans the epochs.

        Args:
            data: the data folder.
            config: the training options.
            rows: the rows of each batch that this process feeds; None: all.

        Raises:
            UserError: fewer examples than one batch needs, or missing or damaged shards.
        """
        split, batch_size = data.splits["train"], config.batch_size
        num_examples = count_training_examples(split.characters, split.records, data.config)
        is_windows = data.config.layout == "windows"
        example_size = data.config.stride if is_windows else data.count_symbols("train") / split.records
        super().__init__(
            data,
            config,
            rows,
            steps_per_epoch=count_batches(num_examples, config),
            num_lanes=max(lanes for lanes in range(1, min(_MAX_LANES, batch_size) + 1) if batch_size % lanes == 0),
            example_size=example_size + _SPAN_SIZE,
        )
        # Over an epoch each row takes `quotient` examples, and each of the first `remainder` rows one more.
        self._quotient, self._remainder = divmod(num_examples, batch_size)
        lengths, counts = count_lengths(data, "train")
        self._widths = choose_widths(lengths, counts)
        self.mean_width = float((round_up(lengths, self._widths) * counts).sum() / counts.sum())
        # the first example of each shard, and the end of the last; a window belongs to the shard that it starts in
        self._shard_starts = self._shards.starts
        if is_windows:
            starts = self._shards.starts * CHUNK_LENGTH
            self._shard_starts = np.minimum(-(-starts // data.config.stride), num_examples)
        self._step_widths: dict[int, npt.NDArray[np.int64]] = {}
        self._cached_permutation = functools.lru_cache(2)(rng.permutation)

    def _read_lane(self, lane: int, epoch: int, steps: range) -> _Lane:
        rows = range(lane * self._lane_rows, (lane + 1) * self._lane_rows)
        begin, end = (row * self._quotient + min(row, self._remainder) for row in (rows.start, rows.stop))
        first, last = begin + steps.start * len(rows), begin + steps.stop * len(rows)
        if steps.stop == self.steps_per_epoch:
            last = end  # if examples are to be dropped, the shuffling decides which
        parts = [self._read_examples(shard_range, epoch) for shard_range in self._locate(epoch, first, last)]
        offsets = np.cumsum([0, *(len(part.ids) for part in parts)])
        ids = self._join(part.ids for part in parts)
        # the last span, of index -1, is that of an empty row
        starts = np.concatenate([*(part.starts + at for part, at in zip(parts, offsets, strict=False)), [0]])
        lengths = np.concatenate([*(part.lengths for part in parts), [0]])
        order = rng.permutation(last - first, *self._random_key(epoch, steps), lane + 1)[: len(steps) * len(rows)]
        if self._varies_in_length:
            order = order[np.argsort(np.searchsorted(self._widths, lengths[order]), kind="stable")]
        indices = arrange_in_batches(order, len(steps), len(rows))[self._shuffle_steps(epoch, steps)]
        return _Lane(ids, starts[indices], lengths[indices])

    def _locate(self, epoch: int, first: int, last: int) -> Iterator[_ShardRange]:
        """Locates the examples of an epoch from `first` to before `last` in the shards."""
        counts = np.diff(self._shard_starts)
        at = 0
        order = rng.permutation(len(counts), self._config.seed, rng.Purpose.SHUFFLE, self._order_key(epoch), index=2)
        for shard in order.tolist():
            begin, end = max(first - at, 0), min(last - at, int(counts[shard]))
            if begin < end:
                yield _ShardRange(shard, begin, end)
            at += int(counts[shard])

    def _read_examples(self, shard_range: _ShardRange, epoch: int) -> Examples:
        offset = int(self._shard_starts[shard_range.shard])
        first, last = offset + shard_range.first, offset + shard_range.last
        if self._config.random_start:
            return self._read_shifted(first, last, epoch)
        if self._data.config.layout != "windows":
            return self._shards.read(first, last)
        stride, seq_length = self._data.config.stride, self._data.config.seq_length
        ids = self._shards.read_text(first * stride, (last - 1) * stride + seq_length + 1)
        return cut_windows(np.concatenate(list(ids)), seq_length, stride)

    def _read_shifted(self, first: int, last: int, epoch: int) -> Examples:
        """Reads sequences that begin at another character in every epoch, up to where the next one begins otherwise.

        The very last sequence of the text, which no other follows, is read as it is.
        """
        data = self._data.config
        stride = sequence_stride(data.seq_length, data.overlap)
        shift = draw_ring_start(stride, self._config, epoch)
        num_records = self._data.splits["train"].records
        records = self._shards.read(first, min(last + 1, num_records))
        characters = join_characters(records, self._data.vocabulary, data)
        starts = np.arange(last - first) * stride + shift
        if last == num_records:
            starts[-1] -= shift
        rows = np.empty((last - first, data.seq_length), np.int32)
        rows[:, 0] = records.ids[0]  # `<S>`
        rows[:, 1:] = characters[starts[:, np.newaxis] + np.arange(data.seq_length - 1)]
        return Examples.from_rows(rows)

    @property
    def _varies_in_length(self) -> bool:
        """Whether examples differ in length, so that those of similar length share a batch."""
        return len(self._widths) > 1

    def _order_key(self, epoch: int) -> int:
        """Returns what the order of an epoch is a function of, besides the seed."""
        return epoch if self._config.shuffle == "epoch" else 0

    def _random_key(self, epoch: int, steps: range) -> tuple[int, rng.Purpose, int]:
        """Returns the first arguments of `rng.permutation` for what is shuffled in a segment."""
        return self._config.seed, rng.Purpose.BLOCK, self._order_key(epoch) * self.steps_per_epoch + steps.start

    def _shuffle_steps(self, epoch: int, steps: range) -> npt.NDArray[np.int64]:
        """Returns the order of a segment's steps, which each lane sorted by length; it is the same for all lanes."""
        if not self._varies_in_length:
            return np.arange(len(steps))
        return self._cached_permutation(len(steps), *self._random_key(epoch, steps), 0)

    def get_width(self, step: int) -> int:
        """Returns the width of a step, for the rows that this process feeds."""
        if not self._varies_in_length:
            return int(self._widths[0])
        segment = self._find_segment(step)
        return int(self._get_step_widths(segment)[step % self.steps_per_epoch - self._get_steps(segment).start])

    def _get_step_widths(self, segment: int) -> npt.NDArray[np.int64]:
        """Returns the width of each step of a segment, `[steps]`."""
        widths = self._step_widths.get(segment)
        if widths is None:
            widths = round_up(self._get_segment(segment).lengths.max(axis=1), self._widths)
            self._step_widths[segment] = widths
            for old in list(self._step_widths)[:-_CACHED_WIDTHS]:
                self._step_widths.pop(old, None)
        return widths

    def count_examples(self, step: int) -> int:
        """Returns the number of examples in the whole batch; one batch of an epoch may be incomplete."""
        epoch, position = divmod(step, self.steps_per_epoch)
        steps = self._get_steps(self._find_segment(step))
        if self._config.drop_remainder or not self._remainder or steps.stop < self.steps_per_epoch:
            return self.batch_size
        rank = self._shuffle_steps(epoch, steps)[position - steps.start]
        return self._remainder if rank == len(steps) - 1 else self.batch_size


class OutOfCoreStreamSampler(OutOfCoreSampler):
    """Reads a text from disk as `batch_size` parallel streams, each of which is a lane."""

    def __init__(self, data: DataFolder, config: TrainingConfig, rows: range | None = None):
        """Divides the training text into streams of equal length.

        Args:
            data: the data folder.
            config: the training options.
            rows: the rows of each batch that this process feeds; None: all.

        Raises:
            UserError: a stream would be shorter than one step, or missing shards.
        """
        seq_length, num_streams = data.config.seq_length, config.batch_size
        streams = divide_into_streams(data.splits["train"].characters, seq_length, num_streams)
        super().__init__(
            data, config, rows, steps_per_epoch=streams.steps, num_lanes=num_streams, example_size=seq_length
        )
        self.mean_width = seq_length + 1.0
        self._seq_length, self._stream_length = seq_length, streams.length
        self._size = data.splits["train"].characters

    def _read_lane(self, lane: int, epoch: int, steps: range) -> _Lane:
        begin = lane * self._stream_length
        if self._config.random_start:
            begin += draw_ring_start(self._size, self._config, epoch)
        first, last = begin + steps.start * self._seq_length, begin + steps.stop * self._seq_length + 1
        starts = np.arange(len(steps), dtype=np.int64)[:, np.newaxis] * self._seq_length
        return _Lane(self._join(self._read_ring(first, last)), starts, np.full_like(starts, self._seq_length + 1))

    def _read_ring(self, first: int, last: int) -> Iterator[npt.NDArray[np.int32]]:
        """Reads the symbols from `first` to before `last`, at most the whole text, of a text that repeats itself."""
        turns = first // self._size * self._size
        first, last = first - turns, last - turns
        yield from self._shards.read_text(first, min(last, self._size))
        if last > self._size:
            yield from self._shards.read_text(0, last - self._size)

    def get_width(self, step: int) -> int:
        """Returns the width of every step: its input and the symbol that follows."""
        return self._seq_length + 1
