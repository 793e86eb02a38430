"""Data larger than memory: blocks of it, each held in memory while it is trained on or evaluated.

Shuffling has two levels. The files of an epoch are put into a random order, and their records, in that order, are cut
into lanes: a lane is what some rows of all batches are made of, always the same rows. An epoch is divided into blocks
of steps. The records of a block are read lane by lane and put into a random order within the lane. So a process that
feeds some rows of the batches reads the files under their lanes and no others, and a batch is the same for any number
of processes. While a block is trained on the next one is read.
"""

from __future__ import annotations

import abc
import collections
import concurrent.futures
import dataclasses
import functools
import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tfcharrnn import rng
from tfcharrnn.config import TrainingConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.batching import Order, bucket_ends, in_rows, num_batches, streams
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.examples import Examples, gather

# A lane is read from a place of its own, so they should not be too many; but records far apart should meet in a batch.
_MAX_LANES = 256
# the one before, the one that is trained on, and the next
_BLOCKS_IN_MEMORY = 3
# symbols in place of which an example's start and length stand
_SPAN = 16
# blocks whose widths are remembered
_WIDTHS = 64
# a split of at most so many symbols is held in memory to be evaluated again and again, a larger one read in such blocks
_EVALUATED = 2**21
_KEPT = 2**24

# ids, and of each step and row where its example starts in them and how long it is; the length is 0 where there is none
_Lane = tuple[npt.NDArray[np.integer], npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclasses.dataclass(frozen=True)
class _Block:
    """The examples of some steps.

    Attributes:
        first: the first of the steps.
        ids: all symbols.
        starts: where each example begins, `[steps, rows]`.
        lengths: how many symbols it has, `[steps, rows]`; 0: there is none.
    """

    first: int
    ids: npt.NDArray[np.integer]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


class BlockOrder(Order):
    """An order whose examples are read block by block, by a thread of its own that is one block ahead."""

    def __init__(self, data: DataFolder, config: TrainingConfig, rows: range | None, lanes: int, example_size: float):
        """Takes, beside what training is asked for, how many lanes there are and how large an example is in memory.

        Args:
            data: the folder.
            config: the settings.
            rows: which rows of each batch are fed by this process; None: all.
            lanes: a divisor of the batch size.
            example_size: in symbols, of which the buffer holds so many.

        `steps_per_epoch` must be set before.
        """
        self.batch_size = config.batch_size
        self.rows = range(config.batch_size) if rows is None else rows
        self._data, self._config = data, config
        self._shards = data.shards("train")
        self._lane_rows = config.batch_size // lanes
        self._dtype = np.dtype(
            np.int32 if len(data.vocabulary) > 2**16 else np.min_scalar_type(len(data.vocabulary) - 1)
        )
        steps = max(1, int(config.shuffle_buffer / _BLOCKS_IN_MEMORY / (config.batch_size * example_size)))
        self._num_blocks = -(-self.steps_per_epoch // steps)
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "tfcharrnn-reader")
        self._lock = threading.Lock()
        self._blocks: collections.OrderedDict[int, concurrent.futures.Future[_Block]] = collections.OrderedDict()

    @abc.abstractmethod
    def _lane(self, lane: int, epoch: int, steps: range) -> _Lane:
        """A lane's examples of some steps of an epoch, counted from its beginning, `[steps, rows of the lane]`."""

    def batches(self, steps: range, width: int) -> npt.NDArray[np.int32]:
        """See `Order.batches`."""
        result = np.empty((len(steps), len(self.rows), width), np.int32)
        step = steps.start
        while step < steps.stop:
            block = self._block(self._block_of(step))
            part = slice(step - block.first, min(steps.stop - block.first, len(block.starts)))
            rows = gather(block.ids, block.starts[part], block.lengths[part], width)
            result[step - steps.start :][: len(rows)] = rows
            step += len(rows)
        return result

    def close(self) -> None:
        """See `Order.close`; the reader ends."""
        self._reader.shutdown(cancel_futures=True)
        super().close()

    def _block_of(self, step: int) -> int:
        """Which block a step is in, counted over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return epoch * self._num_blocks + ((position + 1) * self._num_blocks - 1) // self.steps_per_epoch

    def _steps(self, block: int) -> range:
        """Which steps of its epoch are in a block."""
        steps, number, index = self.steps_per_epoch, self._num_blocks, block % self._num_blocks
        return range(index * steps // number, (index + 1) * steps // number)

    def _block(self, block: int) -> _Block:
        """Waits for a block, and has the next one read."""
        with self._lock:
            for wanted in (block, block + 1):
                if wanted not in self._blocks:
                    self._blocks[wanted] = self._reader.submit(self._read, wanted)
            self._blocks.move_to_end(block)
            while len(self._blocks) > _BLOCKS_IN_MEMORY:
                self._blocks.popitem(last=False)
            future = self._blocks[block]
        return future.result()

    def _read(self, block: int) -> _Block:
        """Reads a block: those rows of its batches that this process feeds."""
        epoch, steps = block // self._num_blocks, self._steps(block)
        lanes = range(self.rows.start // self._lane_rows, -(-self.rows.stop // self._lane_rows))
        all_ids, all_starts, all_lengths, size = [], [], [], 0
        for lane in lanes:
            ids, starts, lengths = self._lane(lane, epoch, steps)
            all_ids.append(ids)
            all_starts.append(starts + size)
            all_lengths.append(lengths)
            size += len(ids)
        columns = slice(self.rows.start - lanes.start * self._lane_rows, self.rows.stop - lanes.start * self._lane_rows)
        starts, lengths = (np.concatenate(parts, axis=1)[:, columns] for parts in (all_starts, all_lengths))
        first = epoch * self.steps_per_epoch + steps.start
        all_ids.append(np.zeros(1, self._dtype))  # so that an empty row may begin somewhere
        return _Block(first, np.concatenate(all_ids), starts, lengths)

    def _stored(self, parts: Iterator[npt.NDArray[np.int32]]) -> npt.NDArray[np.integer]:
        """Symbols in the smallest type that holds them."""
        return np.concatenate([np.empty(0, self._dtype), *(part.astype(self._dtype) for part in parts)])


class ShuffledBlocks(BlockOrder):
    """Examples that stand alone in an order that is random in two levels; see the module."""

    def __init__(self, data: DataFolder, config: TrainingConfig, rows: range | None = None):
        """Takes a data folder, the settings, and which rows of each batch are fed by this process (None: all).

        Raises:
            UserError: fewer examples than one batch needs, or missing or damaged shards.
        """
        part, batch_size = data.splits["train"], config.batch_size
        self._num_examples = chunking.num_examples(part.characters, part.records, data.config)
        self.steps_per_epoch = num_batches(self._num_examples, config)
        # the first `rest` rows have an example more in an epoch than the others
        self._full, self._rest = divmod(self._num_examples, batch_size)
        self._is_windows = data.config.layout == "windows"
        lanes = max(lanes for lanes in range(1, min(_MAX_LANES, batch_size) + 1) if batch_size % lanes == 0)
        size = data.config.stride if self._is_windows else data.symbols("train") / part.records
        super().__init__(data, config, rows, lanes, size + _SPAN)
        lengths, counts = example_lengths(data, "train")
        self._ends = bucket_ends(lengths, counts)
        self._mean_width = float((self._ends[np.searchsorted(self._ends, lengths)] * counts).sum() / counts.sum())
        self._firsts = self._shards.starts
        if self._is_windows:  # those that begin in a file are the file's
            begins = self._shards.starts * chunking.PIECE
            self._firsts = np.minimum(-(-begins // data.config.stride), self._num_examples)
        self._widths = functools.lru_cache(_WIDTHS)(self._block_widths)
        self._order_of_steps = functools.lru_cache(2)(self._shuffled_steps)

    def _lane(self, lane: int, epoch: int, steps: range) -> _Lane:
        rows = range(lane * self._lane_rows, (lane + 1) * self._lane_rows)
        begin, end = (row * self._full + min(row, self._rest) for row in (rows.start, rows.stop))
        first, last = begin + steps.start * len(rows), begin + steps.stop * len(rows)
        if steps.stop == self.steps_per_epoch:  # which of them are dropped, if any, is a matter of chance
            last = end
        stretches = [self._examples(*stretch) for stretch in self._stretches(epoch, first, last)]
        before = np.cumsum([0, *(len(stretch.ids) for stretch in stretches)])
        ids = self._stored(stretch.ids for stretch in stretches)
        # behind the last one there is the empty example, which is that of the index -1
        starts = np.concatenate([*(stretch.starts + at for stretch, at in zip(stretches, before, strict=False)), [0]])
        lengths = np.concatenate([*(stretch.lengths for stretch in stretches), [0]])
        order = self._permutation(last - first, epoch, steps, lane + 1)[: len(steps) * len(rows)]
        if self._is_sorted:
            order = order[np.argsort(np.searchsorted(self._ends, lengths[order]), kind="stable")]
        indices = in_rows(order, len(steps), len(rows))[self._order_of_steps(epoch, steps)]
        return ids, starts[indices], lengths[indices]

    def _stretches(self, epoch: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Where the examples of an epoch from `first` to before `last` are: file, first and last in that file."""
        seed, key = self._config.seed, self._key(epoch)
        counts = np.diff(self._firsts)
        at = 0
        for file in rng.permutation(len(counts), seed, rng.Purpose.SHUFFLE, key, index=2).tolist():
            begin, end = max(first - at, 0), min(last - at, int(counts[file]))
            if begin < end:
                yield file, begin, end
            at += int(counts[file])

    def _examples(self, file: int, first: int, last: int) -> Examples:
        """Some of a file's examples."""
        first, last = (int(self._firsts[file]) + index for index in (first, last))
        if not self._is_windows:
            return self._shards.read(first, last)
        stride, seq_length = self._data.config.stride, self._data.config.seq_length
        ids = self._shards.text(first * stride, (last - 1) * stride + seq_length + 1)
        return chunking.windows(np.concatenate(list(ids)), seq_length, stride)

    @property
    def _is_sorted(self) -> bool:
        """Whether examples are of different lengths, so that those of like length are batched together."""
        return len(self._ends) > 1

    def _key(self, epoch: int) -> int:
        return epoch if self._config.shuffle == "epoch" else 0

    def _permutation(self, size: int, epoch: int, steps: range, index: int) -> npt.NDArray[np.int64]:
        step = self._key(epoch) * self.steps_per_epoch + steps.start
        return rng.permutation(size, self._config.seed, rng.Purpose.BLOCK, step, index)

    def _shuffled_steps(self, epoch: int, steps: range) -> npt.NDArray[np.int64]:
        """The order of a block's steps, the same for all lanes: in each they are sorted by the examples' lengths."""
        return self._permutation(len(steps), epoch, steps, 0) if self._is_sorted else np.arange(len(steps))

    def _block_widths(self, block: int) -> npt.NDArray[np.int64]:
        """The width of each step of a block, for the rows that this process feeds."""
        return self._ends[np.searchsorted(self._ends, self._block(block).lengths.max(axis=1))]

    def width(self, step: int) -> int:
        """See `Order.width`: the widest bucket of the rows that this process feeds."""
        if not self._is_sorted:
            return int(self._ends[0])
        block = self._block_of(step)
        return int(self._widths(block)[step % self.steps_per_epoch - self._steps(block).start])

    def size(self, step: int) -> int:
        """See `Order.size`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        steps = self._steps(self._block_of(step))
        if self._config.drop_remainder or not self._rest or steps.stop < self.steps_per_epoch:
            return self.batch_size
        rank = self._order_of_steps(epoch, steps)[position - steps.start]
        return self._rest if rank == len(steps) - 1 else self.batch_size

    @property
    def mean_width(self) -> float:
        """See `Order.mean_width`."""
        return self._mean_width


class StreamBlocks(BlockOrder):
    """`orders.StreamOrder` for a text that is read from disk, every stream on and on."""

    def __init__(self, data: DataFolder, config: TrainingConfig, rows: range | None = None):
        """Takes a data folder, the settings, and which rows of each batch are fed by this process (None: all).

        Raises:
            UserError: a stream would be shorter than one step, or missing shards.
        """
        self._seq_length = data.config.seq_length
        characters = data.splits["train"].characters
        self._stream_length, self.steps_per_epoch = streams(characters, self._seq_length, config.batch_size)
        super().__init__(data, config, rows, config.batch_size, self._seq_length)

    def _lane(self, lane: int, epoch: int, steps: range) -> _Lane:
        begin = lane * self._stream_length
        first, last = begin + steps.start * self._seq_length, begin + steps.stop * self._seq_length + 1
        ids = self._stored(self._shards.text(first, last))
        starts = np.arange(len(steps), dtype=np.int64)[:, np.newaxis] * self._seq_length
        return ids, starts, np.full_like(starts, self._seq_length + 1)

    def width(self, step: int) -> int:
        """See `Order.width`."""
        return self._seq_length + 1

    @property
    def mean_width(self) -> float:
        """See `Order.mean_width`."""
        return self._seq_length + 1.0


class EvaluationBlocks:
    """The examples of a split in which no character is predicted twice, block by block.

    They are those of `cutting.predicted_once`; iterating gives `Examples`, and may be done again and again.

    Attributes:
        ends: the widths that suit them all, as `orders.bucket_ends` gives them.
    """

    def __init__(self, data: DataFolder, split: str):
        """Takes a data folder and which of its splits, one that has records."""
        self._data, self._split = data, split
        self._shards = data.shards(split)
        lengths, counts = example_lengths(data, split)
        self.ends = bucket_ends(lengths, counts)
        self._size = max(1, int(_EVALUATED * data.splits[split].records / data.symbols(split)))

    def __len__(self) -> int:
        """Whether there are any: how many records they are made of."""
        return self._data.splits[self._split].records

    def __iter__(self) -> Iterator[Examples]:
        part, config = self._data.splits[self._split], self._data.config
        if config.layout in ("sequences", "lines"):
            for first in range(0, part.records, self._size):
                yield self._shards.read(first, min(first + self._size, part.records))
            return
        seen = 1 if self._data.layout.carries_state else config.seq_length
        for first in range(0, part.characters - seen, _EVALUATED):
            ids = np.concatenate(list(self._shards.text(first, min(first + _EVALUATED + seen, part.characters))))
            text = Examples.side_by_side(ids, np.array([len(ids)]))
            yield chunking.predicted_once(text, config)


def predicted_once(data: DataFolder, split: str) -> Examples | EvaluationBlocks:
    """The examples of a split for measuring a loss: in memory, or if they are many, block by block.

    Raises:
        UserError: missing or damaged shards.
    """
    if data.symbols(split) <= _KEPT:
        return chunking.predicted_once(data.read(split), data.config)
    return EvaluationBlocks(data, split)


def example_lengths(data: DataFolder, split: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The different lengths that the examples of a split have, ascending, and how many have each.

    Where `dataset.json` does not tell, as in a folder of lines that is old, all records are read.
    """
    config, part = data.config, data.splits[split]
    if config.layout != "lines":
        length = config.seq_length + (config.layout != "sequences")
        return np.array([length]), np.array([chunking.num_examples(part.characters, part.records, config)])
    if part.lengths:
        lengths, counts = np.array(sorted(part.lengths.items()), np.int64).T
        return lengths, counts
    counts = np.zeros(config.max_length + 1, np.int64)
    for chunk in data.shards(split).chunks(0, part.records):
        counts += np.bincount(chunk.lengths, minlength=len(counts))
    lengths = np.flatnonzero(counts)
    return lengths, counts[lengths]
