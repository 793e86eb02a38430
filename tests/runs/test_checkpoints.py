"""Checkpoints: pruning them, and reading them meanwhile."""

import concurrent.futures
import itertools
import os
import threading

import pytest
import tensorflow as tf

from tfcharrnn.errors import UserError
from tfcharrnn.runs import checkpoint_files, checkpoints, run_folder


class Killed(BaseException):
    """Takes the place of a SIGKILL."""


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def save(run_dir):
    """A function that saves a checkpoint of one variable with the value of the step."""
    value = tf.Variable(0.0)

    def go(step, loss=None):
        value.assign(step)
        checkpoints.save(run_dir, {"value": value}, step, checkpoints.Losses(loss, None), {})

    return go


def test_the_list_marks_the_best_and_the_latest(save, run_dir):
    with pytest.raises(UserError, match="has no checkpoint yet"):
        checkpoints.describe_checkpoints(run_dir)
    for step, loss in ((1, 2.5), (2, 1.5), (3, 2.0)):
        save(step, loss)
    folder = run_dir / "checkpoints"
    assert checkpoints.describe_checkpoints(run_dir).splitlines() == [
        f"step 1  smoothed loss 2.5000  {folder / 'step-00000001'}",
        f"step 2  smoothed loss 1.5000  {folder / 'step-00000002'}  best",
        f"step 3  smoothed loss 2.0000  {folder / 'step-00000003'}  latest",
    ]
    save(4, 1.0)
    assert checkpoints.describe_checkpoints(run_dir).endswith("step-00000004  best, latest")


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("after", range(5))
def test_a_kill_in_pruning_leaves_no_half_checkpoint(save, run_dir, monkeypatch, capsys, after):
    for step in (1, 2, 3):
        save(step, loss=1 / step)
    calls = []

    def counting(call):
        def go(*args, **how):
            calls.append(call)
            if len(calls) > after:
                raise Killed
            return call(*args, **how)

        return go

    with monkeypatch.context() as patch, pytest.raises(Killed):
        for name in ("unlink", "rmdir"):
            patch.setattr(os, name, counting(getattr(os, name)))
        checkpoints.prune(run_dir, 1)
    left = [name for name in names(run_dir) if not name.startswith(".")]
    for name in left:
        assert len(list((run_dir / "checkpoints" / name).iterdir())) == 3
    assert checkpoints.find(run_dir).step == 3
    checkpoints.prune(run_dir, 1)
    assert names(run_dir) == ["step-00000003"]
    assert not capsys.readouterr().err


def test_what_an_early_version_left_half_removed_is_cleaned(save, run_dir, capsys):
    for step in (1, 2):
        save(step)
    (run_dir / "checkpoints/step-00000001/checkpoint.json").unlink()
    checkpoints.prune(run_dir, 0)
    assert names(run_dir) == ["step-00000002"]
    assert checkpoints.find(run_dir).step == 2
    assert not capsys.readouterr().err


def test_a_damaged_checkpoint_stays_for_the_user_to_see(save, run_dir):
    for step in (1, 2):
        save(step)
    (run_dir / "checkpoints/step-00000001/checkpoint.json").write_text("{")
    checkpoints.prune(run_dir, 1)
    assert names(run_dir) == ["step-00000001", "step-00000002"]


# a reader beside a trainer that keeps one checkpoint


@pytest.fixture
def train_step(save, run_dir):
    """A function that saves the next step and prunes, as a trainer does."""
    steps = itertools.count(1)

    def go(loss=None):
        save(next(steps), loss)
        checkpoints.prune(run_dir, 1)

    return go


def before(monkeypatch, owner, name, act, times=1):
    """Acts before each of the first calls of a function."""
    call, left, acting = getattr(owner, name), [act] * times, []

    def go(*args, **how):
        if left and not acting:  # what it does may call the function, too
            acting.append(1)
            left.pop()()
            acting.pop()
        return call(*args, **how)

    monkeypatch.setattr(owner, name, go)


def value_of(checkpoint):
    value = tf.Variable(0.0)
    checkpoints.restore(checkpoint, {"value": value})
    return value.numpy()


@pytest.mark.parametrize("which", ["latest", "best"])
@pytest.mark.parametrize(
    "place", [(checkpoints, "read_description"), (os, "listdir"), (checkpoint_files.files, "open_regular")]
)
@pytest.mark.parametrize("times", [1, 20])
def test_a_checkpoint_that_goes_while_it_is_opened_is_replaced_by_the_next(
    train_step, run_dir, monkeypatch, capsys, which, place, times
):
    train_step(1.0)
    before(monkeypatch, *place, lambda: train_step(1.0), times)
    found = checkpoints.find(run_dir, which)
    assert value_of(found) == found.step > 1
    assert not capsys.readouterr().err, "it was not damaged"


def test_a_checkpoint_that_was_found_is_restored_though_it_has_gone(train_step, run_dir):
    train_step()
    found = checkpoints.find(run_dir)
    train_step()
    assert names(run_dir) == ["step-00000002"]
    assert value_of(found) == 1
    found.close()
    with pytest.raises(UserError, match=r"step-00000001: no such folder"):
        value_of(found)


def test_checkpoints_that_always_go_are_one_error(train_step, run_dir, monkeypatch):
    monkeypatch.setattr(checkpoints, "_ATTEMPTS", 5)
    train_step()
    before(monkeypatch, checkpoints, "read_description", train_step, times=100)
    with pytest.raises(UserError, match="raise --keep_checkpoints"):
        checkpoints.find(run_dir)


def test_the_latest_is_not_missed_by_a_listing_that_is_not_atomic(train_step, run_dir, monkeypatch):
    train_step(0.5)  # the best, which stays
    train_step(1.0)
    real, calls = run_folder._list_checkpoint_folders, []

    def listing(run_dir):
        calls.append(1)
        paths = real(run_dir)
        return paths[:1] if len(calls) == 1 else paths

    monkeypatch.setattr(run_folder, "_list_checkpoint_folders", listing)
    assert checkpoints.find(run_dir).step == 2


def test_no_load_beside_a_trainer_fails(train_step, run_dir, capsys):
    train_step()
    ended = threading.Event()

    def train():
        while not ended.is_set():
            train_step()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        training = pool.submit(train)
        try:
            steps = [value_of(checkpoints.find(run_dir)) for _ in range(100)]
        finally:
            ended.set()
        training.result()
    assert steps == sorted(steps) and len(set(steps)) > 10
    assert not capsys.readouterr().err


def test_the_newest_run_is_found_while_its_checkpoints_go(train_step, run_dir, monkeypatch):
    (run_dir / "config.json").write_text("{}")
    train_step()
    before(monkeypatch, run_folder, "_get_time", train_step, times=3)
    assert run_folder.find_newest_run(run_dir.parent, with_checkpoint=True) == run_dir


def test_the_files_are_closed(save, run_dir):
    save(1)
    count = len(os.listdir("/proc/self/fd"))
    found = [checkpoints.find(run_dir) for _ in range(3)]
    assert len(os.listdir("/proc/self/fd")) > count
    for checkpoint in found[:2]:
        checkpoint.close()
    del found, checkpoint
    assert len(os.listdir("/proc/self/fd")) == count


# files too large to be weights


@pytest.mark.parametrize("name", ["ckpt.index", "ckpt.data-00000-of-00001"])
def test_a_file_that_is_larger_than_it_can_be_is_not_read(save, run_dir, name):
    save(1)
    os.truncate(run_dir / "checkpoints/step-00000001" / name, 2**40)  # reading the hole would take minutes
    with pytest.raises(UserError, match=rf"{name}: missing or damaged"):
        checkpoints.find(run_dir, "1")


@pytest.mark.parametrize("name", ["caf\xe9", os.fsdecode(b"caf\xe9"), "two\nlines"])
def test_a_folder_may_have_any_name(tmp_path, name):
    run_dir = tmp_path / name
    checkpoints.save(run_dir, {"value": tf.Variable(5.0)}, 1, checkpoints.Losses(None, None), {})
    assert value_of(checkpoints.find(run_dir)) == 5
    assert value_of(checkpoints.read_description(run_dir / "checkpoints/step-00000001")) == 5
