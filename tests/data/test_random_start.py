"""`--random_start`: every epoch reads the same text, begun at another character, in memory and from disk."""

import itertools
import string

import numpy as np
import pytest
from folders import LAYOUT_SETTINGS, numbered_lines, prepare

import tfcharrnn
from tfcharrnn.config import TrainingConfig
from tfcharrnn.data.dataset import open_data
from tfcharrnn.data.input_pipeline import make_sampler
from tfcharrnn.errors import ConfigError

IN_MEMORY, ON_DISK = 10**6, 900
# in which no twelve characters occur twice
TEXT = "".join(np.random.default_rng(0).choice(list(string.ascii_letters), 3000))


@pytest.fixture(scope="module", params=["sequences", "overlapping", "stream"])
def data(request, tmp_path_factory):
    settings = LAYOUT_SETTINGS[request.param.replace("overlapping", "sequences")]
    if request.param == "overlapping":
        settings = settings | {"overlap": 0.5}
    folder = tmp_path_factory.mktemp("data") / "data"
    prepare(folder, TEXT, num_shards=4, **settings)
    return open_data(folder)


def make(data, buffer, rows=None, **settings):
    config = TrainingConfig(batch_size=4, random_start=True, shuffle_buffer=buffer, **settings)
    return make_sampler(data, config, rows)


def load_epoch(sampler, epoch):
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    return sampler.load_batches(steps, sampler.get_width(steps.start))


@pytest.mark.parametrize("buffer", [IN_MEMORY, ON_DISK])
def test_examples_are_parts_of_the_text_and_differ_between_epochs(data, buffer):
    sampler, letters = make(data, buffer), data.vocabulary.symbols
    epochs = [load_epoch(sampler, epoch) for epoch in range(3)]
    for batches in epochs:
        rows = batches.reshape(-1, batches.shape[-1])
        if not data.layout.carries_state:
            assert not rows[:, 0].any()  # `<S>`
            assert rows[:, 1:].all()
            rows = rows[:, 1:]
        parts = ["".join(letters[symbol] for symbol in row) for row in rows.tolist()]
        elsewhere = [part for part in parts if part not in TEXT]
        overlapping = 1 if data.layout.carries_state or not data.config.overlap else 2
        assert len(elsewhere) <= overlapping, "only where the text goes on with its beginning"
        assert len(set(parts)) == len(parts), "nothing is read twice"
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    starts = [{tuple(row) for row in batches.reshape(-1, batches.shape[-1]).tolist()} for batches in epochs]
    common = [len(one & other) for one, other in itertools.combinations(starts, 2)]
    assert min(common) < len(starts[0]) / 4, "the text is cut at other places"


@pytest.mark.parametrize("buffer", [IN_MEMORY, ON_DISK])
def test_a_step_is_the_same_however_it_is_reached(data, buffer):
    sampler = make(data, buffer, seed=5)
    steps = 2 * sampler.steps_per_epoch + 1
    whole = sampler.load_batches(range(steps), sampler.get_width(0))
    for first in (1, sampler.steps_per_epoch - 1, sampler.steps_per_epoch, steps - 1):
        again = make(data, buffer, seed=5)
        np.testing.assert_array_equal(again.load_batches(range(first, steps), again.get_width(first)), whole[first:])
    for rows in (range(2), range(2, 4)):
        part = make(data, buffer, rows, seed=5).load_batches(range(steps), sampler.get_width(0))
        np.testing.assert_array_equal(part, whole[:, rows.start : rows.stop])
    assert np.any(make(data, buffer, seed=6).load_batches(range(steps), sampler.get_width(0)) != whole)


def test_a_stream_from_disk_is_that_in_memory(data):
    if not data.layout.carries_state:
        pytest.skip("sequences are shuffled differently in memory and from disk")
    memory, disk = make(data, IN_MEMORY), make(data, ON_DISK)
    for epoch in range(3):
        batches = load_epoch(memory, epoch)
        np.testing.assert_array_equal(load_epoch(disk, epoch), batches)
        np.testing.assert_array_equal(batches[1:, :, 0], batches[:-1, :, -1])  # each step continues the one before


def test_incomplete_batches_have_empty_rows(data):
    if data.layout.carries_state:
        pytest.skip("a stream has no incomplete batches")
    for buffer in (IN_MEMORY, ON_DISK):
        sampler = make(data, buffer, drop_remainder=False)
        rows = load_epoch(sampler, 0).reshape(-1, data.config.seq_length)
        assert np.count_nonzero(rows.any(axis=1)) == data.splits["train"].records


@pytest.mark.parametrize("layout", ["lines", "windows"])
def test_other_layouts_are_refused(tmp_path, layout):
    (tmp_path / "text.txt").write_text(numbered_lines(100))
    settings = LAYOUT_SETTINGS[layout] | {"input": [str(tmp_path / "text.txt")], "hidden_size": 4}
    with pytest.raises(ConfigError, match=rf"--random_start: applies to .*, not to {layout}"):
        tfcharrnn.train_model(tmp_path / "r", random_start=True, steps=1, quiet=True, **settings)
    assert not (tmp_path / "r").exists()
