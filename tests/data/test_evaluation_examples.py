"""The examples of a split for evaluation: each target once, in memory or read in parts."""

import functools

import numpy as np
import pytest
from folders import LAYOUT_SETTINGS, numbered_lines, prepare
from hypothesis import given
from hypothesis import strategies as st

from tfcharrnn.config import ModelConfig
from tfcharrnn.data import batching, evaluation_examples
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.evaluation_examples import make_evaluation_batches
from tfcharrnn.data.examples import Examples
from tfcharrnn.inference import evaluation
from tfcharrnn.inference.evaluation import Evaluator
from tfcharrnn.model.char_rnn import CharRNN, split_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Makes a data folder of some lines, each prepared once."""

    @functools.cache
    def get(layout, lines):
        path = tmp_path_factory.mktemp("parts") / "data"
        return prepare(path, numbered_lines(lines), num_shards=3, **LAYOUT_SETTINGS[layout])

    return get


def padded(row, width):
    return (*row, *[0] * (width - len(row)))[:width]


@pytest.mark.parametrize("in_order", [False, True])
@given(st.integers(0, 12), st.integers(1, 7), st.integers(2, 30), st.data())
def test_evaluation_counts_each_target_once(in_order, num_records, batch_size, seq_length, data):
    sequences = np.arange(1, num_records * seq_length + 1, dtype=np.int32).reshape(num_records, seq_length)
    lengths = data.draw(st.lists(st.integers(1, seq_length), min_size=num_records, max_size=num_records))
    starts = np.arange(num_records, dtype=np.int64) * seq_length
    examples = Examples(sequences.ravel(), starts, np.array(lengths, np.int64))
    expected = [row[1:length].tolist() for row, length in zip(sequences, lengths, strict=True)]
    counted, order = [None] * num_records, []
    for ids, real, indices in make_evaluation_batches(examples, batch_size, in_order=in_order):
        assert ids.shape == (batch_size, real.shape[1] + 1)
        assert ids.shape[1] <= (max(2, 2 * examples.width - 1) if in_order and num_records == 1 else examples.width)
        assert not real[len(indices) :].any() and not ids[len(indices) :].any()
        _, targets = split_batch(ids)
        for row, which, index in zip(targets, real, indices, strict=False):
            assert counted[index] is None
            counted[index] = row[which].tolist()
        order.extend(indices.tolist())
    assert counted == expected
    assert not in_order or order == list(range(num_records))


def test_evaluation_of_one_length_counts_every_target():
    records = np.arange(23 * 5, dtype=np.int32).reshape(23, 5)
    batches = list(make_evaluation_batches(Examples.from_rows(records), 4))
    assert len(batches) == 6
    counted = np.concatenate([ids[:, 1:][real] for ids, real, _ in batches])
    assert counted.tolist() == records[:, 1:].ravel().tolist()
    assert batches[-1][1].sum(axis=1).tolist() == [4, 4, 4, 0]


@pytest.mark.parametrize("size", [500, 3000, 10**6])
@pytest.mark.parametrize("layout", LAYOUT_SETTINGS)
def test_a_split_read_in_parts_has_the_same_examples(folder, layout, size, monkeypatch):
    data: DataFolder = folder(layout, 900)
    monkeypatch.setattr(evaluation_examples, "_PART_SIZE", 1024 * max(1, size // 1024) if layout == "stream" else size)
    whole = evaluation_examples.load_evaluation_examples(data, "train")
    monkeypatch.setattr(evaluation_examples, "_MAX_IN_MEMORY", 0)
    parts = evaluation_examples.load_evaluation_examples(data, "train")
    assert isinstance(parts, evaluation_examples.OutOfCoreExamples)
    assert parts.num_examples == len(whole)
    for _ in range(2):
        rows = [row for part in parts for row in part.pad().tolist()]
        width = whole.width
        assert [padded(row, width) for row in rows] == [tuple(row) for row in whole.pad().tolist()]
    assert parts.widths.tolist() == np.unique(batching.assign_widths(whole.lengths)).tolist() or layout in ("stream",)


@pytest.mark.parametrize("layout", LAYOUT_SETTINGS)
def test_the_loss_of_a_split_read_in_parts_is_the_same(folder, layout, monkeypatch):
    data = folder(layout, 300)
    evaluator = Evaluator(CharRNN(ModelConfig(hidden_size=5), len(data.vocabulary), layout=data.layout))
    whole = evaluator(evaluation_examples.load_evaluation_examples(data, "train"), 16)
    monkeypatch.setattr(evaluation_examples, "_PART_SIZE", 1024)
    monkeypatch.setattr(evaluation_examples, "_MAX_IN_MEMORY", 0)
    monkeypatch.setattr(evaluation, "_MAX_PARTIAL_SUMS", 50)
    parts = evaluator(evaluation_examples.load_evaluation_examples(data, "train"), 16)
    assert parts.characters == whole.characters
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
