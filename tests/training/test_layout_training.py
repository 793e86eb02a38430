"""Training on each layout: the carried state, exact resume, smoothed losses."""

import dataclasses
import gc
import json
import math
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf

import tfcharrnn
from tfcharrnn import rng
from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.data.batching import BatchSampler, StreamSampler
from tfcharrnn.data.input_pipeline import Call
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs import checkpoints
from tfcharrnn.training import metrics
from tfcharrnn.training.metrics import RunningMetrics
from tfcharrnn.training.train_step import RunLength, StepMetrics, Trainer

# A stream, step by step

VOCABULARY, BATCH, SEQ_LENGTH, STEPS = 6, 3, 4, 5


def stream():
    """A stream with three steps an epoch, and the batches of five steps."""
    ids = np.random.default_rng(4).integers(0, VOCABULARY, 40).astype(np.int32)
    order = StreamSampler(ids, SEQ_LENGTH, TrainingConfig(batch_size=BATCH))
    assert order.steps_per_epoch == 3
    batches = [[ids[start : start + SEQ_LENGTH + 1] for start in order.get_spans(step)[0]] for step in range(STEPS)]
    return order, tf.constant(np.array(batches))


def make_trainer(implementation="custom", learned=False, **settings):
    config = ModelConfig(
        cell="lstm", implementation=implementation, hidden_size=6, num_layers=2, learned_initial_state=learned
    )
    model, generator = CharRNN(config, VOCABULARY, layout=LAYOUTS["stream"]), np.random.default_rng(5)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0.0, 0.5, variable.shape))
    settings = {"optimizer": "sgd", "learning_rate": 0.3, "clip_norm": 0.0, "batch_size": BATCH, **settings}
    return Trainer(model, TrainingConfig(**settings), SEQ_LENGTH + 1, RunLength(3, 100))


def run(trainer, first, count, batches, sizes=None):
    return np.concatenate([results.per_step() for results in trainer.run(Call(first, count, sizes, batches, 0.0))])


def everything(trainer):
    return [variable.numpy() for variable in (*trainer.variables, *tf.nest.flatten(trainer.carried.state))]


@pytest.mark.parametrize(
    ("implementation", "reduction", "learned"),
    [("custom", "mean", False), ("custom", "sum", True), ("keras", "mean", True)],
)
def test_the_state_is_carried_within_an_epoch_and_begins_anew_with_it(implementation, reduction, learned):
    """By hand: one step after another, the state given on as numbers, so that no gradient flows through it."""
    trainer = make_trainer(implementation, learned, reduction=reduction)
    model, (_, batches) = make_trainer(implementation, learned).model, stream()
    results = run(trainer, 0, STEPS, batches)
    state = None
    for step, ids in enumerate(batches):
        with tf.GradientTape() as tape:
            losses, after = model.losses(ids, None if step % 3 == 0 else state)
            loss = tf.reduce_sum(losses) / (BATCH * SEQ_LENGTH if reduction == "mean" else BATCH)
        gradients = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.3 * gradient)
        state = tf.nest.map_structure(lambda tensor: tf.constant(tensor.numpy()), after)
        expected = [tf.reduce_sum(losses), BATCH * SEQ_LENGTH, tf.linalg.global_norm(gradients), 0.3]
        np.testing.assert_allclose(results[step], expected, rtol=1e-5)
    for got, want in zip(everything(trainer), [*model.trainable_variables, *tf.nest.flatten(state)], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert trainer.carried.symbols.numpy().tolist() == batches[-1, :, -1].numpy().tolist()


def test_some_rows_start_over_in_every_step():
    trainer, (_, batches) = make_trainer(reset_state=0.5, learning_rate=1e-9), stream()
    run(trainer, 0, STEPS, batches)
    model, state, num_resets = make_trainer().model, None, 0
    for step, ids in enumerate(batches):
        first = model.initial_state(BATCH)
        if state is not None:
            key = rng.key(trainer.config.seed, rng.Purpose.RESET, step)
            is_reset = (rng.uniform([BATCH, 1], key) < 0.5) | (step % 3 == 0)
            num_resets += int(tf.reduce_sum(tf.cast(is_reset, tf.int32)))
            first = tf.nest.map_structure(
                lambda new, old, is_reset=is_reset: tf.where(is_reset, new, old), first, state
            )
        _, state = model.losses(ids, first)
    assert 0 < num_resets < BATCH * (STEPS - 1)
    for got, want in zip(tf.nest.flatten(trainer.carried.state), tf.nest.flatten(state), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_steps_of_a_stream_are_the_same_in_one_call_or_several():
    together, apart = make_trainer(), make_trainer()
    _, batches = stream()
    expected, got = run(together, 0, STEPS, batches), []
    for first, count in [(0, 2), (2, 1), (3, 2)]:
        room = np.zeros_like(batches)
        room[:count] = batches[first : first + count]
        got.append(run(apart, first, count, tf.constant(room)))
    np.testing.assert_array_equal(np.concatenate(got), expected)
    for one, other in zip(everything(apart), everything(together), strict=True):
        np.testing.assert_array_equal(one, other)


# Stopped and resumed

LINES = "".join(f"{'ab ' * (n % 5)}{n}\n" for n in range(90))

CASES = {
    "stream": (
        {"layout": "stream", "seq_length": 11},
        {"cell": "lstm", "optimizer": "adagrad", "reduction": "sum", "smoothing_start": "uniform"},
    ),
    "lines": ({"layout": "lines", "max_length": 16}, {"cell": "gru", "shuffle": "epoch"}),
    "lines-once": ({"layout": "lines", "max_length": 16}, {"cell": "gru", "shuffle": "once", "zero_start": True}),
    "windows": (
        {"layout": "windows", "seq_length": 9, "stride": 8},
        {"cell": "rnn", "num_layers": 2, "dropout": 0.2, "output_dropout": 0.3},
    ),
    # read from disk a few steps at a time
    "sequences-blocks": ({"layout": "sequences", "seq_length": 12, "num_shards": 3}, {"shuffle_buffer": 500}),
    "stream-blocks": ({"layout": "stream", "seq_length": 11}, {"shuffle_buffer": 500}),
    "lines-blocks": (
        {"layout": "lines", "max_length": 16, "num_shards": 7},
        {"shuffle_buffer": 500, "drop_remainder": False, "reduction": "sum"},
    ),
    "windows-blocks": (
        {"layout": "windows", "seq_length": 9, "stride": 8},
        {"shuffle_buffer": 1, "drop_remainder": False},
    ),
}


def timeless(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in metrics.TIMING} for row in rows]


def final_weights(run_dir):
    return (checkpoints.find(run_dir).path / "ckpt.data-00000-of-00001").read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(case, tmp_path):
    cutting, settings = CASES[case]
    (tmp_path / "text.txt").write_text(LINES)
    config = tfcharrnn.DataConfig(input=(str(tmp_path / "text.txt"),), val_fraction=0.1, **cutting)
    data = tfcharrnn.prepare_data(config, tmp_path / "data")
    assert (data.count_symbols("train") > settings.get("shuffle_buffer", math.inf)) == case.endswith("-blocks")
    every = {"checkpoint_every": 3, "eval_every": 8, "sample_every": 0, "log_every": 2, "keep_checkpoints": 0}
    tfcharrnn.train_model(
        tmp_path / "whole",
        data_dir=data.path,
        steps=16,
        steps_per_call=4,
        batch_size=12,
        hidden_size=8,
        learning_rate=0.02,
        sample_length=20,
        quiet=True,
        **settings,
        **every,
    )
    written = timeless(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (12, 15, 16):  # as if it had been killed after a checkpoint and some steps more
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:08d}")
    assert checkpoints.find(tmp_path / "cut").step == 9
    per_epoch = round(8 / next(row["epoch"] for row in written if row["step"] == 8))
    assert 1 < per_epoch < 9 and 9 % per_epoch, "it stops within an epoch, and not the first"
    tfcharrnn.train_model(tmp_path / "cut", resume=True, quiet=True)
    assert timeless(tmp_path / "cut") == written
    assert final_weights(tmp_path / "cut") == final_weights(tmp_path / "whole")
    assert (tmp_path / "cut" / "samples.txt").read_bytes() == (tmp_path / "whole" / "samples.txt").read_bytes()
    assert written[-1]["loss"] < math.log(len(data.vocabulary)), "it has learned something"


def find_readers():
    return {thread for thread in threading.enumerate() if thread.name.startswith("tfcharrnn-reader")}


def find_samplers():
    return {id(thing) for thing in gc.get_objects() if isinstance(thing, BatchSampler)}


def test_of_data_on_disk_a_run_keeps_the_number_of_files_and_nothing_of_it_stays_in_memory(tmp_path):
    (tmp_path / "text.txt").write_text(LINES)
    config = tfcharrnn.DataConfig(input=(str(tmp_path / "text.txt"),), seq_length=12, num_shards=3)
    files = tfcharrnn.prepare_data(config, tmp_path / "three")
    one = tfcharrnn.prepare_data(dataclasses.replace(config, num_shards=1), tmp_path / "one")
    assert one.fingerprint == files.fingerprint
    settings = {"batch_size": 12, "hidden_size": 8, "sample_length": 20, "quiet": True}
    gc.collect()
    threads, samplers = find_readers(), find_samplers()  # of other tests
    tfcharrnn.train_model(tmp_path / "disk", data_dir=files.path, steps=3, shuffle_buffer=500, **settings)
    assert find_readers() <= threads
    gc.collect()
    assert find_samplers() <= samplers
    with pytest.raises(tfcharrnn.UserError, match=r"trained on 3 files .* has 1; .*--num_shards=3"):
        tfcharrnn.train_model(tmp_path / "disk", data_dir=one.path, resume=True, steps=6, quiet=True)
    tfcharrnn.train_model(tmp_path / "memory", data_dir=files.path, steps=3, **settings)
    assert tfcharrnn.train_model(tmp_path / "memory", data_dir=one.path, resume=True, steps=6, quiet=True).step == 6


# Incomplete batches


@pytest.mark.parametrize("implementation", ["custom", "keras"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("layout", ["sequences", "lines", "windows"])
def test_empty_rows_count_nothing(layout, reduction, implementation):
    """A step on an incomplete batch is one on its examples alone."""
    ids = np.random.default_rng(6).integers(1, VOCABULARY, (2, 5, 8)).astype(np.int32)
    sizes = [5, 2]
    ids[1, 2:] = 0
    if layout == "lines":
        ids[0, 0, 6:] = ids[1, 1, 4:] = 0

    def make(batch_size, drop_remainder):
        config = ModelConfig(cell="gru", implementation=implementation, hidden_size=6)
        model, generator = CharRNN(config, VOCABULARY, layout=LAYOUTS[layout]), np.random.default_rng(5)
        for variable in model.trainable_variables:
            variable.assign(generator.normal(0.0, 0.5, variable.shape))
        settings = {"optimizer": "sgd", "learning_rate": 0.3, "clip_norm": 0.0, "reduction": reduction}
        settings |= {"batch_size": batch_size, "drop_remainder": drop_remainder}
        return Trainer(model, TrainingConfig(**settings), 8, RunLength(2, 100))

    trainer, metrics_of_it = make(5, False), RunningMetrics(TrainingConfig(batch_size=5, reduction=reduction), 17)
    results = run(trainer, 0, 2, tf.constant(ids), tf.constant(sizes))
    alone = None
    for step, size in enumerate(sizes):
        before, alone = alone, make(size, True)
        if before is not None:
            for variable, value in zip(alone.variables, before.variables, strict=True):
                variable.assign(value)
        (expected,) = run(alone, step, 1, tf.constant(ids[step : step + 1, :size]))
        np.testing.assert_allclose(results[step], expected, rtol=1e-5)
        reference = RunningMetrics(TrainingConfig(batch_size=size, reduction=reduction), 17)
        reference.add(StepMetrics(*expected))
        metrics_of_it.smooth_loss = None
        metrics_of_it.add(StepMetrics(*results[step]), size)
        assert metrics_of_it.smooth_loss == pytest.approx(reference.smooth_loss, rel=1e-5)
    for got, want in zip(trainer.variables, alone.variables, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


# Smoothed losses

STEPS_DONE = [(40.0, 20.0), (30.0, 10.0), (66.0, 22.0), (5.0, 8.0)]  # sums of losses, characters


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("start", ["first", "uniform", "3.25", "-1e1"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_smoothed_loss_follows_its_formula(reduction, start, keep):
    """It is of what is minimised: a mean of a character, or a sum over an example in the mean over the batch."""
    config = TrainingConfig(batch_size=4, reduction=reduction, smoothing=keep, smoothing_start=start)
    running = RunningMetrics(config, 17)
    losses = [total / (characters if reduction == "mean" else 4) for total, characters in STEPS_DONE]
    if start == "first":
        expected, rest = losses[0], losses[1:]
    else:
        guess = math.log(17) * (1 if reduction == "mean" else 20.0 / 4)
        expected, rest = (guess if start == "uniform" else float(start)), losses
    for count, (total, characters) in enumerate(STEPS_DONE):
        running.add(StepMetrics(total, characters, 1.0, 0.1))
        if count or start != "first":
            expected = keep * expected + (1.0 - keep) * rest[count - (start == "first")]
        assert running.smooth_loss == pytest.approx(expected, rel=1e-14)
    row = running.take_row(4, 1.0)
    assert row["smooth_loss"] == running.smooth_loss
    assert row["loss"] == pytest.approx(141.0 / 60.0), "a row's loss is of a character, whatever is minimised"
