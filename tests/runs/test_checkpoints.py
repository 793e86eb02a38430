"""Checkpoints: pruning them, and reading them meanwhile."""

import os

import pytest
import tensorflow as tf

from tfcharrnn.runs import checkpoints


class Killed(BaseException):
    """Takes the place of a SIGKILL."""


@pytest.fixture
def save(tmp_path):
    """A function that saves a checkpoint of one variable with the value of the step."""
    value = tf.Variable(0.0)

    def go(step, loss=None):
        value.assign(step)
        checkpoints.save(tmp_path, {"value": value}, step, checkpoints.Losses(loss, None), {})

    return go


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("after", range(5))
def test_a_kill_in_pruning_leaves_no_half_checkpoint(save, tmp_path, monkeypatch, capsys, after):
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
        checkpoints.prune(tmp_path, 1)
    left = [name for name in names(tmp_path) if not name.startswith(".")]
    for name in left:
        assert len(list((tmp_path / "checkpoints" / name).iterdir())) == 3
    assert checkpoints.find(tmp_path).step == 3
    checkpoints.prune(tmp_path, 1)
    assert names(tmp_path) == ["step-00000003"]
    assert not capsys.readouterr().err


def test_what_an_early_version_left_half_removed_is_cleaned(save, tmp_path, capsys):
    for step in (1, 2):
        save(step)
    (tmp_path / "checkpoints/step-00000001/checkpoint.json").unlink()
    checkpoints.prune(tmp_path, 0)
    assert names(tmp_path) == ["step-00000002"]
    assert checkpoints.find(tmp_path).step == 2
    assert not capsys.readouterr().err


def test_a_damaged_checkpoint_stays_for_the_user_to_see(save, tmp_path):
    for step in (1, 2):
        save(step)
    (tmp_path / "checkpoints/step-00000001/checkpoint.json").write_text("{")
    checkpoints.prune(tmp_path, 1)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
