import itertools
import weakref

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfcharrnn.config import TrainingConfig
from tfcharrnn.data.batching import ShuffledSampler, StreamSampler, assign_widths, choose_widths
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.input_pipeline import BatchPipeline, plan_calls
from tfcharrnn.errors import UserError

RECORDS = np.arange(23 * 5, dtype=np.int32).reshape(23, 5)
STEPS = st.integers(0, 300)


def shuffled(num_records, batch_size, seed, **settings):
    """The sampler of so many records of five symbols; of each the first symbol says which it is."""
    rows = np.arange(num_records * 5, dtype=np.int32).reshape(num_records, 5)
    return ShuffledSampler(Examples.from_rows(rows), TrainingConfig(batch_size=batch_size, seed=seed, **settings))


def records_of(sampler, step):
    starts, lengths = sampler.get_spans(step)
    assert np.all(lengths == 5) and sampler.get_width(step) == 5
    return sampler.ids[starts] // 5


def epoch(sampler, index):
    steps = range(index * sampler.steps_per_epoch, (index + 1) * sampler.steps_per_epoch)
    return [records_of(sampler, step).tolist() for step in steps]


def batches(sampler, start, stop, intervals=(), steps_per_call=4):
    """The batch of each step, as the pipeline gives it."""
    dataset = BatchPipeline(sampler, steps_per_call).make_dataset(start, stop, intervals)
    result = []
    for first, count, sizes, ids in dataset.as_numpy_iterator():
        assert first == start + len(result)
        assert sizes.tolist() == [sampler.batch_size] * count + [0] * (steps_per_call - count)
        assert not ids[count:].any(), "room that is left is empty"
        result.extend(ids[:count].tolist())
    return result


@given(st.integers(1, 10), st.integers(1, 30), st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_an_epoch_takes_every_record_once(steps, batch_size, seed, index):
    sampler = shuffled(steps * batch_size, batch_size, seed)
    assert sampler.steps_per_epoch == steps
    assert sorted(itertools.chain(*epoch(sampler, index))) == list(range(steps * batch_size))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31 - 1))
def test_a_batch_that_does_not_divide_drops_the_rest(num_records, batch_size, seed):
    if batch_size > num_records:
        return
    sampler = shuffled(num_records, batch_size, seed)
    taken = list(itertools.chain(*epoch(sampler, 0)))
    assert len(taken) == len(set(taken)) == num_records // batch_size * batch_size
    assert set(taken) <= set(range(num_records))


def test_dropped_records_are_not_the_same_in_each_epoch():
    sampler = shuffled(23, 10, 0)
    taken = {record for index in range(20) for batch in epoch(sampler, index) for record in batch}
    assert taken == set(range(23))


def test_order_is_a_function_of_seed_and_step():
    first, second = shuffled(100, 10, 7), shuffled(100, 10, 7)
    forward = [records_of(first, step).tolist() for step in range(50)]
    backward = [records_of(second, step).tolist() for step in reversed(range(50))]
    assert forward == backward[::-1]


def test_order_differs_by_epoch_and_by_seed():
    epochs = [str(epoch(shuffled(100, 10, seed), index)) for seed in range(5) for index in range(5)]
    assert len(set(epochs)) == 25


def test_order_is_random():
    order = records_of(shuffled(10_000, 10_000, 0), 0)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_order_stays_the_same_in_later_versions():
    assert records_of(shuffled(8, 8, 0), 0).tolist() == [1, 4, 0, 6, 3, 5, 2, 7]


def test_fewer_records_than_a_batch_are_one_error():
    with pytest.raises(UserError, match=r"^--batch_size=6: there are only 5 training examples; .*smaller"):
        shuffled(5, 6, 0)


@given(STEPS, STEPS, st.lists(st.integers(0, 50), max_size=4), st.integers(1, 40))
def test_calls_cover_each_step_once_and_stop_at_intervals(start, stop, intervals, steps_per_call):
    planned = list(plan_calls(start, stop, intervals, steps_per_call))
    steps = [step for first, count in planned for step in range(first, first + count)]
    assert steps == list(range(start, stop))
    for first, count in planned:
        assert 1 <= count <= steps_per_call
        inside = range(first + 1, first + count)
        assert not any(step % interval == 0 for interval in (*intervals, steps_per_call) if interval for step in inside)


def test_calls_are_as_long_as_they_may_be():
    assert list(plan_calls(3, 40, [0, 20], 8)) == [(3, 5), (8, 8), (16, 4), (20, 4), (24, 8), (32, 8)]
    assert list(plan_calls(5, 5, [1], 8)) == []


def test_training_batches_are_the_records_of_their_steps():
    sampler = shuffled(23, 4, 3)
    expected = []
    for step in range(13):
        expected.append([list(range(5 * record, 5 * record + 5)) for record in records_of(sampler, step)])
    assert batches(sampler, 0, 13) == expected


@pytest.mark.parametrize("start", [1, 4, 5, 6, 11])
def test_training_batches_started_in_the_middle_go_on_as_if_never_stopped(start):
    whole = batches(shuffled(23, 4, 3), 0, 14, [5])
    assert batches(shuffled(23, 4, 3), start, 14, [3], steps_per_call=2) == whole[start:]


def test_training_batches_of_one_length_have_one_shape():
    sampler = shuffled(23, 4, 3)
    dataset = BatchPipeline(sampler, 4).make_dataset(0, 9)
    assert [spec.shape.as_list() for spec in dataset.element_spec] == [[], [], [4], [4, 4, None]]
    assert [spec.dtype for spec in dataset.element_spec] == [tf.int64, tf.int32, tf.int32, tf.int32]
    assert [ids.shape for _, _, _, ids in dataset] == [[4, 4, 5]] * 3


def test_a_closed_pipeline_releases_its_sampler():
    """TensorFlow keeps the functions of a dataset, which must not keep the data; nor may a reference cycle."""
    sampler = shuffled(23, 4, 3)
    released = weakref.ref(sampler)
    pipeline = BatchPipeline(sampler, 4)
    with pipeline:
        assert [call.num_steps for call in pipeline.iterate(0, 9)] == [4, 4, 1]
    del sampler
    assert released() is None


# Streams


@given(st.integers(0, 300), st.integers(1, 12), st.integers(1, 8))
def test_every_step_of_a_stream_begins_where_the_one_before_ended(size, seq_length, batch_size):
    length = max(size - 1, 0) // batch_size
    if length < seq_length:
        with pytest.raises(UserError, match=rf"^--batch_size={batch_size}: .*--seq_length={seq_length}"):
            StreamSampler(np.arange(size, dtype=np.int32), seq_length, TrainingConfig(batch_size=batch_size))
        return
    sampler = StreamSampler(np.arange(size, dtype=np.int32), seq_length, TrainingConfig(batch_size=batch_size))
    assert sampler.steps_per_epoch == length // seq_length
    targets, ends = [], np.zeros(0)
    for step in range(2 * sampler.steps_per_epoch):
        starts, lengths = sampler.get_spans(step)
        assert len(starts) == batch_size and sampler.get_width(step) == sampler.mean_width == seq_length + 1
        assert np.all(lengths == seq_length + 1)
        if step % sampler.steps_per_epoch:
            assert starts.tolist() == (ends - 1).tolist()  # the last symbol that was predicted is read next
        else:
            assert starts.tolist() == [length * row for row in range(batch_size)]
        ends = starts + lengths
        assert np.all(ends <= (np.arange(batch_size) + 1) * length + 1)  # no stream runs into the next one
        targets.extend(position for start in starts for position in range(start + 1, start + seq_length + 1))
    once = targets[: len(targets) // 2]
    assert once == targets[len(targets) // 2 :]
    assert len(set(once)) == len(once) == sampler.steps_per_epoch * seq_length * batch_size
    assert max(once) < size
    assert length * batch_size - len(once) < seq_length * batch_size, "less than a step is left over"


def test_batches_of_a_stream_are_its_text_read_on_and_on():
    ids = np.random.default_rng(0).integers(0, 9, 95).astype(np.int32)
    sampler = StreamSampler(ids, 5, TrainingConfig(batch_size=3))  # streams of 31, six steps an epoch
    rows = np.array(steps_of(sampler, 0, 12, [5], 4))
    for row in range(3):
        text = np.concatenate([rows[:6, row, :-1].ravel(), rows[5, row, -1:]])
        assert text.tolist() == ids[31 * row : 31 * row + 31].tolist()
    assert np.array_equal(rows[6:], rows[:6])


# Examples of different lengths

LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=60)


def steps_of(sampler, start, stop, intervals, steps_per_call):
    """The batch of each step, with its padding."""
    pipeline = BatchPipeline(sampler, steps_per_call)
    return [
        batch
        for call in pipeline.iterate(start, stop, intervals)
        for batch in call.ids[: call.num_steps].numpy().tolist()
    ]


def of_lengths(lengths):
    """Examples of some lengths; each symbol stands in one of them, and none is 0."""
    return Examples.from_lengths(np.arange(1, sum(lengths) + 1, dtype=np.int32), np.array(lengths, np.int64))


@given(LENGTHS)
def test_examples_are_padded_to_a_handful_of_widths(lengths):
    widths = assign_widths(np.array(lengths))
    assert len(widths) == len(lengths)
    assert len(set(widths.tolist())) <= 5
    assert np.all(widths >= lengths)
    assert widths.max() == max(lengths)


@given(st.integers(1, 70), st.integers(1, 40))
def test_examples_of_one_length_are_not_padded(length, count):
    assert assign_widths(np.full(count, length)).tolist() == [length] * count


def test_the_widths_hold_about_equally_many_examples():
    lengths = np.random.default_rng(0).geometric(0.002, 10_000)
    _, counts = np.unique(assign_widths(lengths), return_counts=True)
    assert len(counts) == 5 and counts.min() > 1500


@given(LENGTHS, st.integers(1, 6), st.sampled_from(["epoch", "once"]), st.integers(0, 3))
def test_an_epoch_takes_every_example_once_whatever_its_length(lengths, batch_size, shuffle, index):
    lengths = lengths[: len(lengths) // batch_size * batch_size]
    if not lengths:
        return
    sampler = ShuffledSampler(of_lengths(lengths), TrainingConfig(batch_size=batch_size, shuffle=shuffle, seed=3))
    taken = []
    for step in range(index * sampler.steps_per_epoch, (index + 1) * sampler.steps_per_epoch):
        starts, sizes = sampler.get_spans(step)
        assert sampler.get_width(step) >= sizes.max()
        taken.extend(zip(starts.tolist(), sizes.tolist(), strict=True))
    expected = of_lengths(lengths)
    assert sorted(taken) == list(zip(expected.starts.tolist(), lengths, strict=True))


COUNTS = [72, 64, 64, 64, 56]


def test_examples_of_like_length_are_batched_together_and_batches_are_shuffled():
    lengths = np.random.default_rng(0).permutation(np.repeat([5, 20, 40, 60, 80], COUNTS)).tolist()
    sampler = ShuffledSampler(of_lengths(lengths), TrainingConfig(batch_size=8))
    widths = [sampler.get_width(step) for step in range(sampler.steps_per_epoch)]
    assert sorted(widths) == np.repeat([8, 24, 40, 64, 80], np.array(COUNTS) // 8).tolist()
    assert widths != sorted(widths)
    assert sampler.mean_width == np.mean(widths)


def test_one_order_for_all_epochs_if_asked_for():
    def epochs(shuffle):
        sampler = shuffled(30, 5, 2, shuffle=shuffle)
        return [epoch(sampler, index) for index in range(3)]

    once, anew = epochs("once"), epochs("epoch")
    assert once[0] == once[1] == once[2] == anew[0] != anew[1]


@pytest.mark.parametrize("cuts", [[], [1], [3], [4, 7]])
def test_steps_have_their_width_whichever_call_they_fall_in(cuts):
    lengths = np.random.default_rng(1).integers(3, 60, 100).tolist()
    sampler = ShuffledSampler(of_lengths(lengths), TrainingConfig(batch_size=4, seed=5))
    whole = steps_of(sampler, 0, 40, [], 6)
    widths = [len(batch[0]) for batch in whole]
    assert all(len(set(widths[group : group + 6])) == 1 for group in range(0, 40, 6))
    assert len(set(widths)) > 1
    for start in (0, 9):
        assert steps_of(sampler, start, 40, cuts, 6) == whole[start:]
    for step, batch in enumerate(whole):
        for row, start, length in zip(batch, *sampler.get_spans(step), strict=True):
            assert row == [*range(start + 1, start + length + 1), *[0] * (widths[step] - length)]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_widths_are_quantiles_of_the_lengths(lengths):
    shares = np.arange(1, 6) / 5
    wanted = -(-np.quantile(lengths, shares, method="higher") // 8) * 8
    wanted = np.unique(np.minimum(wanted, max(lengths)))
    assert choose_widths(*np.unique(lengths, return_counts=True)).tolist() == wanted.tolist()
