"""Run folders: which one is the newest, and names that are too long."""

import os
import shutil

import pytest
from paths import GOLDEN

from tfcharrnn.errors import UserError
from tfcharrnn.runs import run_folder as run_lib


def test_a_checkpoint_that_was_never_published_does_not_make_a_run_the_newest(tmp_path):
    for name in ("trained", "killed"):
        shutil.copytree(GOLDEN / "rnn", tmp_path / name)
    unpublished = tmp_path / "killed" / "checkpoints" / ".step-00000300.abc123.tmp"
    os.rename(tmp_path / "killed" / "checkpoints" / "step-00000300", unpublished)
    for path in tmp_path.rglob("*.json"):
        os.utime(path, (1000, 1000))
    os.utime(unpublished / "checkpoint.json", (2000, 2000))
    os.utime(tmp_path / "trained" / "config.json", (1001, 1001))
    assert run_lib.find_newest_run(tmp_path) == tmp_path / "trained"
    assert run_lib.find_newest_run(tmp_path, with_checkpoint=True) == tmp_path / "trained"
    shutil.rmtree(tmp_path / "trained")
    with pytest.raises(UserError, match="no trained run"):
        run_lib.find_newest_run(tmp_path, with_checkpoint=True)


def test_a_run_that_was_never_published_is_not_the_newest(tmp_path):
    shutil.copytree(GOLDEN / "rnn", tmp_path / "trained")
    shutil.copytree(GOLDEN / "rnn", tmp_path / ".imported.abc123.tmp")
    for path in tmp_path.rglob("*.json"):
        os.utime(path, (2000, 2000) if ".imported" in str(path) else (1000, 1000))
    assert run_lib.find_newest_run(tmp_path, with_checkpoint=True) == tmp_path / "trained"


def test_a_name_that_is_too_long_is_one_error(tmp_path):
    path = tmp_path / ("n" * 256)
    run_lib.check_new_run_dir(path)
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\); choose another --run_dir"):
        run_lib.lock_run_dir(path).__enter__()
    with pytest.raises(UserError, match="not a run folder"):
        run_lib.load(path)
