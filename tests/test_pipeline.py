import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfcharrnn import pipeline
from tfcharrnn.errors import UserError
from tfcharrnn.pipeline import TrainingOrder, calls, evaluation_batches, training_batches

RECORDS = np.arange(23 * 5, dtype=np.int32).reshape(23, 5)
STEPS = st.integers(0, 300)


def epoch(order, index):
    steps = range(index * order.steps_per_epoch, (index + 1) * order.steps_per_epoch)
    return [order.records(step).tolist() for step in steps]


def batches(order, start, stop, intervals=(), steps_per_call=4):
    """The batch of each step, as the pipeline gives it."""
    planned = lambda: calls(start, stop, intervals, steps_per_call)  # noqa: E731
    result = []
    for first, count, ids in training_batches(RECORDS, order, planned, steps_per_call).as_numpy_iterator():
        assert first == start + len(result)
        assert not ids[count:].any(), "room that is left is empty"
        result.extend(ids[:count].tolist())
    return result


@given(st.integers(1, 10), st.integers(1, 30), st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_an_epoch_takes_every_record_once(steps, batch_size, seed, index):
    order = TrainingOrder(steps * batch_size, batch_size, seed)
    assert order.steps_per_epoch == steps
    assert sorted(itertools.chain(*epoch(order, index))) == list(range(steps * batch_size))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31 - 1))
def test_a_batch_that_does_not_divide_drops_the_rest(num_records, batch_size, seed):
    if batch_size > num_records:
        return
    order = TrainingOrder(num_records, batch_size, seed)
    taken = list(itertools.chain(*epoch(order, 0)))
    assert len(taken) == len(set(taken)) == num_records // batch_size * batch_size
    assert set(taken) <= set(range(num_records))


def test_dropped_records_are_not_the_same_in_each_epoch():
    order = TrainingOrder(23, 10, 0)
    taken = {record for index in range(20) for batch in epoch(order, index) for record in batch}
    assert taken == set(range(23))


def test_order_is_a_function_of_seed_and_step():
    first, second = TrainingOrder(100, 10, 7), TrainingOrder(100, 10, 7)
    forward = [first.records(step).tolist() for step in range(50)]
    backward = [second.records(step).tolist() for step in reversed(range(50))]
    assert forward == backward[::-1]


def test_order_differs_by_epoch_and_by_seed():
    epochs = [str(epoch(TrainingOrder(100, 10, seed), index)) for seed in range(5) for index in range(5)]
    assert len(set(epochs)) == 25


def test_order_is_random():
    order = TrainingOrder(10_000, 10_000, 0).records(0)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_order_stays_the_same_in_later_versions():
    assert TrainingOrder(8, 8, 0).records(0).tolist() == [1, 4, 0, 6, 3, 5, 2, 7]


def test_fewer_records_than_a_batch_are_one_error():
    with pytest.raises(UserError, match=r"^--batch_size=6 is more than the 5 training sequences there are; .*smaller"):
        TrainingOrder(5, 6, 0)


@given(STEPS, STEPS, st.lists(st.integers(0, 50), max_size=4), st.integers(1, 40))
def test_calls_cover_each_step_once_and_stop_at_intervals(start, stop, intervals, steps_per_call):
    planned = list(calls(start, stop, intervals, steps_per_call))
    steps = [step for first, count in planned for step in range(first, first + count)]
    assert steps == list(range(start, stop))
    for first, count in planned:
        assert 1 <= count <= steps_per_call
        assert not any(
            step % interval == 0 for interval in intervals if interval for step in range(first + 1, first + count)
        )


def test_calls_are_as_long_as_they_may_be():
    assert list(calls(3, 40, [0, 20], 8)) == [(3, 8), (11, 8), (19, 1), (20, 8), (28, 8), (36, 4)]
    assert list(calls(5, 5, [1], 8)) == []


def test_training_batches_are_the_records_of_their_steps():
    order = TrainingOrder(23, 4, 3)
    expected = []
    for step in range(13):
        expected.append([list(range(5 * record, 5 * record + 5)) for record in order.records(step)])
    assert batches(order, 0, 13) == expected


@pytest.mark.parametrize("start", [1, 4, 5, 6, 11])
def test_training_batches_started_in_the_middle_go_on_as_if_never_stopped(start):
    whole = batches(TrainingOrder(23, 4, 3), 0, 14, [5])
    assert batches(TrainingOrder(23, 4, 3), start, 14, [3], steps_per_call=2) == whole[start:]


def test_training_batches_have_one_static_shape():
    order = TrainingOrder(23, 4, 3)
    dataset = training_batches(RECORDS, order, lambda: calls(0, 9, [], 4), 4)
    assert [spec.shape for spec in dataset.element_spec] == [[], [], [4, 4, 5]]
    assert [spec.dtype for spec in dataset.element_spec] == [tf.int64, tf.int32, tf.int32]


@given(st.integers(0, 12), st.integers(1, 7), st.integers(2, 6), st.data())
def test_evaluation_counts_each_target_once(num_records, batch_size, seq_length, data):
    sequences = np.arange(1, num_records * seq_length + 1, dtype=np.int32).reshape(num_records, seq_length)
    lengths = data.draw(st.lists(st.integers(1, seq_length), min_size=num_records, max_size=num_records))
    expected = [row[position] for row, length in zip(sequences, lengths, strict=True) for position in range(1, length)]
    counted = []
    for ids, real in evaluation_batches(sequences, batch_size, np.array(lengths, np.int64)):
        assert ids.shape == (batch_size, seq_length)
        _, targets = pipeline.split_batch(ids)
        counted.extend(targets.numpy()[real.numpy()].tolist())
    assert counted == expected


def test_evaluation_without_lengths_counts_every_target():
    pairs = list(evaluation_batches(RECORDS, 4))
    assert len(pairs) == 6
    counted = np.concatenate([ids.numpy()[:, 1:][real.numpy()] for ids, real in pairs])
    assert counted.tolist() == RECORDS[:, 1:].ravel().tolist()
    assert pairs[-1][1].numpy().sum(axis=1).tolist() == [4, 4, 4, 0]


def test_split_batch_pairs_each_symbol_with_the_next():
    inputs, targets = pipeline.split_batch(tf.constant([[0, 1, 2], [0, 3, 4]]))
    assert inputs.numpy().tolist() == [[0, 1], [0, 3]]
    assert targets.numpy().tolist() == [[1, 2], [3, 4]]
