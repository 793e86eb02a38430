"""Training data larger than memory: the examples of each worker, and that reading in segments changes nothing."""

import collections
import dataclasses
import functools
import weakref

import numpy as np
import pytest
from folders import LAYOUT_SETTINGS, numbered_lines, prepare
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcharrnn.config import TrainingConfig
from tfcharrnn.data import batching, out_of_core, shards
from tfcharrnn.data.dataset import open_data
from tfcharrnn.data.examples import make_training_examples
from tfcharrnn.data.input_pipeline import BatchPipeline, make_sampler
from tfcharrnn.errors import UserError

WORKERS = [1, 2, 3, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gives data folders of so many lines, each prepared once."""

    @functools.cache
    def get(layout, lines, num_shards, compression="none"):
        path = tmp_path_factory.mktemp("blocks") / "data"
        return prepare(
            path, numbered_lines(lines), num_shards=num_shards, compression=compression, **LAYOUT_SETTINGS[layout]
        )

    return get


def sampler_of(data, rows=None, **config) -> batching.BatchSampler:
    return make_sampler(data, TrainingConfig(**config), rows)


def rows_of(worker, workers, batch_size):
    return range(batch_size * worker // workers, batch_size * (worker + 1) // workers)


def batches(sampler, start, stop):
    """Each step's rows without their padding, and how many rows are examples."""
    result = []
    for step in range(start, stop):
        (rows,) = sampler.load_batches(range(step, step + 1), sampler.get_width(step))
        size = sampler.count_examples(step)
        filled = np.array(sampler.rows) < size
        assert not rows[~filled].any()
        result.append(([row.tolist() for row in rows[filled]], size))
    return result


def examples_of(data):
    """All training examples, with how often each is there."""
    examples = make_training_examples(data.read("train"), data.config)
    return collections.Counter(map(tuple, examples.pad().tolist()))


def padded(row, width):
    return (*row, *[0] * (width - len(row)))[:width]


@settings(max_examples=25)
@given(
    st.sampled_from(["sequences", "lines", "windows"]),
    st.integers(1, 120),
    st.sampled_from([1, 3, 7]),
    st.integers(1, 23),
    st.sampled_from([1, 300, 2000, 10**9]),
    st.sampled_from(["epoch", "once"]),
    st.integers(0, 3),
)
def test_every_example_is_seen_once_an_epoch_by_one_worker(
    folder, layout, lines, num_shards, batch_size, buffer, shuffle, seed
):
    """And what the workers are given together is the batch of one process, row for row."""
    data = folder(layout, lines + 5, num_shards)
    config = {"batch_size": batch_size, "shuffle_buffer": buffer, "shuffle": shuffle, "seed": seed}
    config["drop_remainder"] = False
    whole = sampler_of(data, **config)
    assert isinstance(whole, out_of_core.OutOfCoreShuffledSampler) == (data.count_symbols("train") > buffer)
    expected = examples_of(data)
    width = max(map(len, expected))
    stop = 3 * whole.steps_per_epoch
    alone = batches(whole, 0, stop)
    for epoch in range(3):
        steps = alone[epoch * whole.steps_per_epoch : (epoch + 1) * whole.steps_per_epoch]
        assert collections.Counter(padded(row, width) for rows, _ in steps for row in rows) == expected
        assert sum(size for _, size in steps) == sum(expected.values())
    for workers in WORKERS:
        if workers > batch_size:
            continue
        parts = [
            batches(sampler_of(data, rows_of(worker, workers, batch_size), **config), 0, stop)
            for worker in range(workers)
        ]
        for step, (rows, size) in enumerate(alone):
            together = [row for part in parts for row in part[step][0]]
            assert [padded(row, width) for row in together] == [padded(row, width) for row in rows]
            assert all(part[step][1] == size for part in parts)


@pytest.mark.parametrize("buffer", [1, 10**9])
def test_every_character_of_a_stream_is_predicted_once_by_one_worker(folder, buffer):
    data = folder("stream", 300, 7)
    ids = data.read("train").ids
    config = {"batch_size": 5, "shuffle_buffer": buffer}
    whole = sampler_of(data, **config)
    assert isinstance(whole, out_of_core.OutOfCoreStreamSampler) == (buffer == 1)
    length = (len(ids) - 1) // 5
    for workers in WORKERS:
        parts = [sampler_of(data, rows_of(worker, workers, 5), **config) for worker in range(workers)]
        for step in range(3 * whole.steps_per_epoch):
            first = step % whole.steps_per_epoch * 30
            rows = [row for part in parts for row in part.load_batches(range(step, step + 1), 31)[0].tolist()]
            assert rows == [ids[at : at + 31].tolist() for at in range(first, 5 * length, length)]


@pytest.mark.parametrize("layout", LAYOUT_SETTINGS)
@pytest.mark.parametrize("drop_remainder", [True, False])
@pytest.mark.parametrize("buffer", [1, 2000])
def test_resuming_gives_what_running_through_gives(folder, layout, drop_remainder, buffer):
    data = folder(layout, 100 if layout != "stream" else 400, 7)
    config = {"batch_size": 6, "shuffle_buffer": buffer, "drop_remainder": drop_remainder}
    whole = sampler_of(data, **config)
    stop = 2 * whole.steps_per_epoch + 3
    through = batches(whole, 0, stop)
    for start in {1, stop // 3, whole.steps_per_epoch - 1, whole.steps_per_epoch, stop - 1}:
        assert batches(sampler_of(data, **config), start, stop) == through[start:]


@pytest.mark.parametrize("layout", LAYOUT_SETTINGS)
def test_calls_change_nothing(folder, layout):
    """Several steps at once, and their widths, which are those of a group of steps."""
    data = folder(layout, 100 if layout != "stream" else 400, 3)
    config = {"batch_size": 6, "shuffle_buffer": 700, "drop_remainder": False}
    plain = batches(sampler_of(data, **config), 0, 17)
    for start, intervals in [(0, []), (0, [5]), (7, [3])]:
        sampler = sampler_of(data, **config)
        waits, step, widths = [], start, {}
        for first, count, sizes, rows, wait in BatchPipeline(sampler, 4).iterate(start, 17, intervals):
            waits.append(wait)
            assert first == step and not rows[int(count) :].numpy().any()
            for size, batch in zip(sizes.numpy()[: int(count)], rows.numpy(), strict=False):
                width = batch.shape[1]
                assert [padded(row, width) for row in plain[step][0]] == [tuple(row) for row in batch[:size].tolist()]
                assert size == plain[step][1]
                widths.setdefault(step // 4, set()).add(width)
                step += 1
        assert step == 17 and all(len(each) == 1 for each in widths.values())
        assert min(waits) >= 0.0


@pytest.mark.parametrize("layout", LAYOUT_SETTINGS)
def test_compressed_files_give_the_same(folder, layout):
    lines = 100 if layout != "stream" else 400
    config = {"batch_size": 6, "shuffle_buffer": 900}
    plain, packed = (sampler_of(folder(layout, lines, 3, kind), **config) for kind in ("none", "gzip"))
    assert batches(packed, 0, 20) == batches(plain, 0, 20)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Gives data folders of so many sequences of eleven characters, which are its number."""

    @functools.cache
    def get(count, num_shards):
        path = tmp_path_factory.mktemp("numbered") / "data"
        return prepare(path, "".join(f"{n:011d}" for n in range(count)), num_shards=num_shards, seq_length=12)

    return get


def numbers(data, sampler, start, stop):
    """Which sequences are in each row of some steps, `[steps, rows]`."""
    rows = sampler.load_batches(range(start, stop), 12)[:, :, 1:]
    return np.array([[int(data.vocabulary.decode(row)) for row in batch] for batch in rows])


def test_the_order_is_random_in_two_levels(numbered):
    """Rows keep to a file in an epoch, not always the same; in it neighbours are apart; epochs and seeds differ."""
    data = numbered(8 * 200, 8)

    def epoch(index, seed=0, shuffle="epoch"):
        sampler = sampler_of(data, batch_size=8, shuffle_buffer=15_000, seed=seed, shuffle=shuffle)
        return numbers(data, sampler, 200 * index, 200 * index + 200)

    first, second = epoch(0), epoch(1)
    assert len({epoch(index, seed).tobytes() for index in range(2) for seed in range(3)}) == 6
    assert np.array_equal(epoch(0, shuffle="once"), epoch(1, shuffle="once"))
    for got in (first, second):
        assert sorted(got.ravel().tolist()) == list(range(8 * 200))
        assert np.all(got // 200 == got[0] // 200), "a lane is a file here"
        assert np.mean(np.abs(np.diff(got, axis=0)) == 1) < 0.2
    assert not np.array_equal(first[0] // 200, second[0] // 200)


def test_the_order_stays_the_same_in_later_versions(numbered):
    data = numbered(30, 3)
    sampler = sampler_of(data, batch_size=4, shuffle_buffer=500)
    assert numbers(data, sampler, 0, 9).tolist() == [
        *([25, 24, 15, 12], [21, 18, 10, 20], [27, 11, 1, 16], [14, 4, 0, 6], [28, 3, 26, 17], [5, 19, 13, 2]),
        *([7, 8, 29, 23], [11, 12, 9, 23], [14, 8, 19, 7]),
    ]


def test_lines_of_like_length_are_batched_together(folder):
    data = folder("lines", 3000, 4)
    sampler = sampler_of(data, batch_size=16, shuffle_buffer=60_000)
    widths = [sampler.get_width(step) for step in range(sampler.steps_per_epoch)]
    assert len(set(widths)) > 2 and widths != sorted(widths)
    assert sampler.mean_width == pytest.approx(np.mean(widths), rel=0.1)
    assert sampler.mean_width == pytest.approx(sampler_of(data, batch_size=16).mean_width)


def test_a_worker_opens_the_files_under_its_rows_and_no_others(numbered, monkeypatch):
    data = numbered(8 * 200, 8)
    opened, read = set(), shards._PlainFile.read
    monkeypatch.setattr(shards._PlainFile, "read", lambda self, *span: opened.add(self.path.name) or read(self, *span))
    by_worker = []
    for worker in range(4):
        sampler = sampler_of(data, rows_of(worker, 4, 8), batch_size=8, shuffle_buffer=10_000)
        opened.clear()
        numbers(data, sampler, 0, 150)
        sampler._reader.shutdown()
        by_worker.append(sorted(opened))
    assert [len(names) for names in by_worker] == [2] * 4
    assert sorted(name for names in by_worker for name in names) == sorted(data.splits["train"].shards)


def test_a_damaged_file_is_one_error(folder, tmp_path):
    prepare(tmp_path / "data", numbered_lines(500), num_shards=3, **LAYOUT_SETTINGS["sequences"])
    path = tmp_path / "data" / "train-00001-of-00003.tfrecord"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    data = open_data(tmp_path / "data")
    sampler = sampler_of(data, batch_size=4, shuffle_buffer=2000)
    with pytest.raises(UserError, match=r"train-00001-of-00003\.tfrecord: damaged") as caught:
        for _ in BatchPipeline(sampler, 8).iterate(0, sampler.steps_per_epoch):
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUT_SETTINGS)
def test_a_closed_pipeline_releases_what_was_read(folder, layout):
    sampler = sampler_of(folder(layout, 100 if layout != "stream" else 400, 3), batch_size=6, shuffle_buffer=700)
    released, reader = weakref.ref(sampler), sampler._reader
    with BatchPipeline(sampler, 4) as pipeline:
        for _ in pipeline.iterate(0, 17):
            break
    assert reader._shutdown
    del sampler
    assert released() is None


def test_too_little_data_is_one_error(folder):
    for layout in ("sequences", "stream"):
        with pytest.raises(UserError, match="--batch_size=100000"):
            sampler_of(folder(layout, 900, 3), batch_size=100_000, shuffle_buffer=1)


def test_lengths_that_nobody_counted_are_counted(folder):
    data = folder("lines", 900, 3)
    part = data.splits["train"]
    old = dataclasses.replace(data, splits={**data.splits, "train": dataclasses.replace(part, lengths={})})
    for got, want in zip(batching.count_lengths(old, "train"), batching.count_lengths(data, "train"), strict=True):
        assert got.tolist() == want.tolist()
