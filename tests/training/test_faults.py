"""What goes wrong around a training run, and what is left of it then; with real processes where that matters."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

import tfcharrnn
from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.data.input_pipeline import Call
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs import checkpoints, run_folder
from tfcharrnn.training.train_step import RunLength, Trainer

TEXT = "the cat sat on the mat; the dog sat on the log.\n" * 60
SMALL = {"cell": "gru", "hidden_size": 12, "seq_length": 21, "batch_size": 8, "sample_length": 20}
QUICK = {"eval_every": 0, "sample_every": 0}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    config = tfcharrnn.DataConfig(input=(str(folder / "text.txt"),), seq_length=21)
    tfcharrnn.prepare_data(config, folder / "data")
    return folder / "data"


@pytest.fixture
def train(data_dir):
    def go(run_dir, **settings):
        own = {name: value for name, value in SMALL.items() if name != "seq_length"}
        return tfcharrnn.train_model(run_dir, data_dir=data_dir, quiet=True, **{**own, **QUICK, **settings})

    return go


def start(data_dir, run_dir, *flags, **how):
    """Starts a training command whose steps are as small as those of `train`."""
    settings = {name: value for name, value in SMALL.items() if name != "seq_length"} | QUICK
    return subprocess.Popen(
        [sys.executable, "-m", "tfcharrnn.train", f"--data_dir={data_dir}", f"--run_dir={run_dir}"]
        + [f"--{name}={value}" for name, value in settings.items()]
        + list(flags),
        stdout=subprocess.PIPE,
        **{"stderr": subprocess.PIPE, **how},
    )


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(run_dir):
    reader = tf.train.load_checkpoint(str(checkpoints.find(run_dir).path / "ckpt"))
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map() if "model" in name}


# Damaged checkpoints


def damage(checkpoint_dir):
    path = next(checkpoint_dir.glob("ckpt.data*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(train, tmp_path, capsys):
    train(tmp_path / "whole", steps=12, checkpoint_every=4, keep_checkpoints=0)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000012")
    damage(tmp_path / "cut" / "checkpoints" / "step-00000008")
    assert tfcharrnn.load_model(tmp_path / "cut").checkpoint.step == 4
    assert re.search(
        r"^warning: .*step-00000008.*missing or damaged; the one before it is used", capsys.readouterr().err
    )
    tfcharrnn.train_model(tmp_path / "cut", resume=True, quiet=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert tfcharrnn.load_model(tmp_path / "cut", "8").checkpoint.step == 8, "it was written again"


def test_a_damaged_checkpoint_asked_for_by_name_is_an_error(train, tmp_path):
    train(tmp_path / "r", steps=8, checkpoint_every=4)
    damage(tmp_path / "r" / "checkpoints" / "step-00000004")
    with pytest.raises(tfcharrnn.UserError, match=r"step-00000004.*missing or damaged"):
        tfcharrnn.load_model(tmp_path / "r", "4")


def test_a_run_whose_checkpoints_are_all_damaged_is_an_error(train, tmp_path):
    train(tmp_path / "r", steps=8, checkpoint_every=4)
    for path in (tmp_path / "r" / "checkpoints").iterdir():
        damage(path)
    with pytest.raises(tfcharrnn.UserError, match="every checkpoint in it is damaged"):
        tfcharrnn.load_model(tmp_path / "r")


def test_a_run_does_not_begin_anew_where_no_checkpoint_can_be_read(train, tmp_path):
    train(tmp_path / "r", steps=8, checkpoint_every=4)
    for path in (tmp_path / "r" / "checkpoints").iterdir():
        (path / "checkpoint.json").write_text("{")
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    for use in (
        tfcharrnn.load_model,
        lambda run_dir: tfcharrnn.train_model(run_dir, resume=True, steps=12, quiet=True),
    ):
        with pytest.raises(tfcharrnn.UserError, match="every checkpoint in it is damaged"):
            use(tmp_path / "r")
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before


def test_checkpoints_are_kept_for_ever_at_multiples(train, tmp_path):
    train(tmp_path / "r", steps=30, checkpoint_every=3, keep_checkpoints=1, keep_every=9, eval_every=0)
    losses = [c.losses.smooth for c in checkpoints.list_checkpoints(tmp_path / "r")]
    steps = [c.step for c in checkpoints.list_checkpoints(tmp_path / "r")]
    assert {9, 18, 27, 30} <= set(steps)
    assert set(steps) - {9, 18, 27, 30} <= {steps[int(np.argmin(losses))]}, "and the best"


# Two at once


def test_a_second_trainer_is_refused_until_the_first_has_ended(train, tmp_path):
    train(tmp_path / "r", steps=4)
    with run_folder.lock_run_dir(tmp_path / "r"):
        for how in ({"resume": True, "steps": 8}, {"overwrite": True, "corpus": "unicode-names"}):
            with pytest.raises(
                tfcharrnn.UserError, match=rf"another process is training there \(process {os.getpid()} on"
            ):
                tfcharrnn.train_model(tmp_path / "r", quiet=True, **how)
    assert tfcharrnn.train_model(tmp_path / "r", resume=True, steps=8, quiet=True).step == 8


def test_a_lock_dies_with_its_process(train, tmp_path, data_dir):
    process = start(data_dir, tmp_path / "r", "--steps=1000000", "--checkpoint_every=50")
    wait_for(lambda: checkpoints.list_checkpoints(tmp_path / "r"), process)
    with pytest.raises(tfcharrnn.UserError, match=f"process {process.pid} on"):
        tfcharrnn.train_model(tmp_path / "r", resume=True, quiet=True)
    process.kill()
    process.communicate()
    step = checkpoints.find(tmp_path / "r").step + 10
    assert tfcharrnn.train_model(tmp_path / "r", resume=True, steps=step, quiet=True).step == step


# Numbers that are not finite


def test_a_step_that_is_not_finite_is_not_applied_and_stops_the_run(train, tmp_path):
    with pytest.raises(tfcharrnn.UserError) as caught:
        train(tmp_path / "r", steps=50, checkpoint_every=1, optimizer="sgd", learning_rate=3e38, clip_norm=0.0)
    message = str(caught.value)
    step = int(re.match(r"step (\d+): loss", message)[1])
    for part in (
        "learning rate 3e+38",
        "cells/0/recurrent_kernel ",
        "--skip_bad_steps",
        f"checkpoint of step {step - 1}",
    ):
        assert part in message
    assert "\n" not in message
    assert checkpoints.find(tmp_path / "r").step == step - 1


def test_a_last_step_that_overflows_the_weights_is_an_error(train, tmp_path):
    with pytest.raises(tfcharrnn.UserError, match=r"^step 1: the validation loss is not finite.*no checkpoint"):
        train(tmp_path / "r", steps=1, learning_rate=1e38)
    assert (tmp_path / "r" / "metrics.jsonl").read_text() == ""
    assert not checkpoints.list_checkpoints(tmp_path / "r")


def test_a_checkpoint_with_values_that_are_not_finite_is_neither_written_nor_read(tmp_path, monkeypatch):
    bad = {"model": CharRNN(ModelConfig(hidden_size=6), 7)}
    bad["model"].output_bias.assign([0, 0, np.nan, 0, np.inf, 0, 0])

    def save(step):
        checkpoints.save(tmp_path, bad, step, checkpoints.Losses(1.0, None), {})

    with pytest.raises(tfcharrnn.UserError, match=r"step-00000001: not written.* model/output_bias are not finite"):
        save(1)
    assert not checkpoints.list_checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_find_non_finite", lambda root: "")
        save(2)
    with pytest.raises(tfcharrnn.UserError, match=r"step-00000002: values of model/output_bias are not finite"):
        checkpoints.restore_weights(checkpoints.find(tmp_path), bad["model"])


def poisoned(**settings):
    """A trainer for which any batch that begins with symbol 5 has a loss that is no number."""
    model = CharRNN(ModelConfig(hidden_size=6), 7)
    losses = model.losses
    model.losses = lambda ids, *rest: tf.nest.map_structure(
        lambda x: tf.where(ids[0, 0] == 5, tf.constant(np.nan, x.dtype), x), losses(ids, *rest)
    )
    return Trainer(model, TrainingConfig(batch_size=2, **settings), 5, RunLength(10, 100))


BATCHES = np.random.default_rng(0).integers(0, 5, (6, 2, 5)).astype(np.int32)
BAD = BATCHES.copy()
BAD[[1, 3], 0, 0] = 5


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_skipped_steps_change_nothing(optimizer):
    trainer, other = poisoned(optimizer=optimizer), poisoned(optimizer=optimizer)
    (results,) = trainer.run(Call(0, 6, None, tf.constant(BAD), 0.0), skips_left=2)
    assert results.is_finite.tolist() == [True, False, True, False, True, True]
    for step in (0, 2, 4, 5):
        list(other.run(Call(step, 1, None, tf.constant(BAD[step : step + 1]), 0.0)))
    for ours, theirs in zip(trainer.variables, other.variables, strict=True):
        assert np.allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-7)


def test_the_step_after_the_last_that_may_be_skipped_ends_the_call():
    for skips in (0, 1):
        trainer = poisoned()
        (results,) = trainer.run(Call(0, 6, None, tf.constant(BAD), 0.0), skips_left=skips)
        assert results.num_steps == (2, 4)[skips]
        good = poisoned()
        for step in (0, 2)[: 1 + skips]:
            list(good.run(Call(step, 1, None, tf.constant(BAD[step : step + 1]), 0.0)))
        for ours, theirs in zip(trainer.variables, good.variables, strict=True):
            assert np.allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-7)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_of_a_long_call_is_heard_before_its_end(number, data_dir, tmp_path):
    process = start(data_dir, tmp_path / "r", "--steps=100000000", "--steps_per_call=10000", "--hidden_size=200")
    lines = []
    while not any(line.startswith(b"compiled") for line in lines):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    time.sleep(1.0)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert b"--resume" in said
    step = checkpoints.find(tmp_path / "r").step
    assert step % 10_000, "it did not wait for the end of the call"
    assert tfcharrnn.load_model(tmp_path / "r").generate(length=5)


def test_a_reader_that_goes_away_does_not_stop_training(data_dir, tmp_path):
    reading, writing = os.pipe()
    process = start(data_dir, tmp_path / "r", "--steps=3000", "--eval_every=10", stderr=writing)
    os.close(writing)
    os.read(reading, 10)
    os.close(reading)
    assert process.wait(timeout=120) == 0
    assert checkpoints.find(tmp_path / "r").step == 3000


# A disk that is full


@contextlib.contextmanager
def files_of_at_most(size):
    """Every write that would make a file larger than this fails, as it would on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)


def save_twice(run_dir, second):
    """Saves a model, then in `second()` the same with other weights; returns whether that was done, and the model."""
    model = CharRNN(ModelConfig(hidden_size=8), 7)
    checkpoints.save(run_dir, {"model": model}, 1, checkpoints.Losses(1.0, None), {})
    kept = [variable.numpy() for variable in model.trainable_variables]
    for variable in model.trainable_variables:
        variable.assign_add(tf.ones_like(variable))
    try:
        with second():
            checkpoints.save(run_dir, {"model": model}, 2, checkpoints.Losses(1.0, None), {})
        done = True
    except tfcharrnn.UserError as error:
        assert "cannot be written" in str(error)
        assert "\n" not in str(error)
        done = False
    found = checkpoints.find(run_dir)
    assert found.step == 1 + done
    assert [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")] == []
    checkpoints.restore(found, {"model": model})
    for variable, value in zip(model.trainable_variables, kept, strict=True):
        assert np.array_equal(variable.numpy(), value + done)
    return done


def test_a_save_that_fails_at_any_byte_leaves_the_checkpoint_before_it_whole(tmp_path):
    save_twice(tmp_path / "r", contextlib.nullcontext)
    largest = max(path.stat().st_size for path in (tmp_path / "r" / "checkpoints" / "step-00000002").iterdir())
    done = []
    for limit in np.unique(np.linspace(0, largest, 25).astype(int)):
        shutil.rmtree(tmp_path / "r")
        done.append(save_twice(tmp_path / "r", lambda limit=limit: files_of_at_most(int(limit))))
    assert done[-1]
    assert not any(done[:-1])


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(tmp_path):
    """A small file system, filled up but for k pages, for each k up to what a checkpoint takes."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here; another test lets writes fail at any byte")

    @contextlib.contextmanager
    def almost_full(pages):
        free = os.statvfs(tmp_path).f_bavail
        (tmp_path / "filler").write_bytes(b"x" * (max(free - pages, 0) * 4096))
        yield

    try:
        done = []
        for pages in range(12):
            done.append(save_twice(tmp_path / "r", lambda pages=pages: almost_full(pages)))
            shutil.rmtree(tmp_path / "r")
            (tmp_path / "filler").unlink()
        assert not done[0]
        assert done[-1]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_in_training_is_one_line(train, tmp_path):
    train(tmp_path / "r", steps=4)
    before = weights(tmp_path / "r")
    message = ""
    try:
        with files_of_at_most(2000):
            tfcharrnn.train_model(tmp_path / "r", resume=True, steps=8, quiet=True)
    except tfcharrnn.UserError as error:
        message = str(error)
    assert "cannot be written" in message
    assert "\n" not in message
    assert weights(tmp_path / "r") == before
    assert tfcharrnn.train_model(tmp_path / "r", resume=True, steps=8, quiet=True).step == 8


def test_a_folder_that_vanishes_stops_the_run_with_one_line(data_dir, tmp_path):
    process = start(data_dir, tmp_path / "r", "--steps=100000000", "--checkpoint_every=20", "--log_every=20")
    wait_for(lambda: checkpoints.list_checkpoints(tmp_path / "r"), process)
    os.rename(tmp_path / "r", tmp_path / "moved")
    _, said = process.communicate(timeout=60)
    message = said.decode().splitlines()[-1]
    assert process.returncode == 1, message
    assert message.startswith("train: "), message
    assert str(tmp_path / "r") in message
    assert tfcharrnn.load_model(tmp_path / "moved").generate(length=5)
    assert json.loads((tmp_path / "moved" / "config.json").read_text())
