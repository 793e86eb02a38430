import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from tfcharrnn import files
from tfcharrnn.errors import UserError


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_sha256_of_bytes_and_of_a_file_is_hashlibs(tmp_path):
    data = os.urandom(3 * 2**20 + 1)
    path = tmp_path / "data"
    path.write_bytes(data)
    assert files.sha256(data) == files.file_sha256(path) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, "é\x00\U0001f600"]}, [], "text", "\ud800"])
def test_json_is_read_as_it_was_written(tmp_path, value):
    path = tmp_path / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert path.read_bytes().isascii()
    assert contents(tmp_path) == ["value.json"]


def test_write_json_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    files.write_json(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"value\.json: cannot be written \(No space left on device\)"):
        files.write_json(path, "new")
    assert json.loads(path.read_text()) == "old"
    assert contents(tmp_path) == ["value.json"]


def test_write_json_under_a_file_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        files.write_json(tmp_path / "file" / "value.json", 1)


def test_write_json_interrupted_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(tmp_path / "value.json", 1)
    assert contents(tmp_path) == []


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": 1', b"\xff\xfe\x00", b"[" * 100_000, b"1" * 5000 + b"x"])
def test_damaged_json_is_one_error(tmp_path, data):
    path = tmp_path / "value.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"value\.json: not valid JSON; the file is damaged"):
        files.read_json(path)


def test_json_that_is_missing_a_folder_or_too_large_is_one_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        files.read_json(tmp_path / "value.json")
    with pytest.raises(UserError, match="Is a directory"):
        files.read_json(tmp_path)
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(2**40)  # a hole: it takes no disk, but reading it would take all memory
    with pytest.raises(UserError, match="it is damaged"):
        files.read_json(tmp_path / "large.json")


def test_create_folder_appears_whole_under_its_name(tmp_path):
    path = tmp_path / "some" / "where"
    with files.create_folder(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists()
    assert contents(path) == ["a"]
    assert contents(path.parent) == ["where", "where/a"]


def test_create_folder_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with files.create_folder(tmp_path / "x"):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o750


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UserError])
@pytest.mark.parametrize("overwrite", [False, True])
def test_create_folder_leaves_nothing_of_a_failure(tmp_path, error, overwrite):
    with pytest.raises(error), files.create_folder(tmp_path / "x", overwrite=overwrite) as folder:
        (folder / "a").write_text("1")
        raise error("stop")
    assert contents(tmp_path) == []


def test_create_folder_refuses_a_name_that_is_taken(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=r"x: exists already; .*--overwrite"), files.create_folder(tmp_path / "x"):
        pytest.fail("it was given out")


def test_create_folder_refuses_a_name_that_is_taken_meanwhile(tmp_path):
    with pytest.raises(UserError, match=r"x: exists already"), files.create_folder(tmp_path / "x"):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "thesis.txt").write_text("years of work")
    assert contents(tmp_path) == ["x", "x/thesis.txt"]


def test_create_folder_overwrites_when_it_is_whole(tmp_path):
    path = tmp_path / "x"
    for name in ("old", "new"):
        with files.create_folder(path, overwrite=True) as folder:
            (folder / name).write_text(name)
    assert contents(tmp_path) == ["x", "x/new"]


def test_create_folder_keeps_the_old_one_when_filling_fails(tmp_path):
    path = tmp_path / "x"
    with files.create_folder(path) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(UserError, match="No space left"), files.create_folder(path, overwrite=True) as folder:
        (folder / "new").write_text("new")
        raise OSError(28, "No space left on device")
    assert contents(tmp_path) == ["x", "x/old"]


def test_create_folder_puts_the_old_one_back_when_the_new_one_cannot_be_named(tmp_path, monkeypatch):
    path = tmp_path / "x"
    with files.create_folder(path) as folder:
        (folder / "old").write_text("old")
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UserError, match="Input/output error"), files.create_folder(path, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert contents(tmp_path) == ["x", "x/old"]


def test_create_folder_in_the_place_of_a_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept").write_text("")
    (tmp_path / "x").symlink_to(tmp_path / "target")
    with files.create_folder(tmp_path / "x", overwrite=True) as folder:
        (folder / "new").write_text("")
    assert contents(tmp_path) == ["target", "target/kept", "x", "x/new"]
    assert not (tmp_path / "x").is_symlink()


@pytest.mark.parametrize("name", ["n" * 300, "file/x"])
def test_create_folder_at_an_impossible_place_is_one_error(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), files.create_folder(tmp_path / name):
        pytest.fail("it was given out")
    assert contents(tmp_path) == ["file"]


def test_a_lock_whose_file_is_removed_meanwhile_is_taken_again(tmp_path, monkeypatch, capsys):
    path, stat_of, removed = tmp_path / "lock", os.stat, []

    def removing(*args, **how):
        if not removed:
            removed.append(path.unlink())
        return stat_of(*args, **how)

    monkeypatch.setattr(os, "stat", removing)
    descriptor = files.lock_file(path, "train")
    with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
        files.lock_file(path, "train")
    files.unlock_file(path, descriptor)
    assert not capsys.readouterr().err
    assert contents(tmp_path) == []


# what killed processes left

_HALF = """
import os, signal, sys
from pathlib import Path
from tfcharrnn import files
path, moment = Path(sys.argv[1]), sys.argv[2]
rename, renames = os.rename, []
def kill(*args):
    renames.append(args)
    if moment == "replacing" and len(renames) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*args)
os.rename = kill
with files.create_folder(path, overwrite=True) as folder:
    (folder / "new").write_text("")
    if moment == "filling":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def make_half(path, moment):
    killed = subprocess.run([sys.executable, "-c", _HALF, path, moment], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert [child for child in contents(path.parent) if child.startswith(f".{path.name}.")]


def test_the_next_attempt_removes_what_a_killed_one_left(tmp_path):
    make_half(tmp_path / "x", "filling")
    (tmp_path / ".x.y.abc123.tmp").mkdir()  # of another folder
    with files.create_folder(tmp_path / "x") as folder:
        (folder / "a").write_text("1")
    assert contents(tmp_path) == [".x.y.abc123.tmp", "x", "x/a"]


def test_a_folder_that_a_killed_process_was_replacing_comes_back(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").write_text("years of work")
    make_half(tmp_path / "x", "replacing")
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="exists already"), files.create_folder(tmp_path / "x"):
        pytest.fail("it was given out")
    assert contents(tmp_path) == ["x", "x/old"]


def test_what_another_process_is_at_is_no_leftover(tmp_path):
    with files.create_folder(tmp_path / "x") as one, files.create_file(tmp_path / "y") as write:
        with files.create_folder(tmp_path / "x"):
            pass
        files.remove_leftovers(tmp_path / "y")
        write(b"1")
        assert one.is_dir()
        os.rmdir(tmp_path / "x")
    assert contents(tmp_path) == ["x", "y"]


def test_a_half_written_file_is_a_leftover(tmp_path):
    for name in (".x.json.1234.tmp", ".x.json.0a1b2c3d.tmp"):
        (tmp_path / name).write_text("{")
    files.remove_leftovers(tmp_path / "x.json")
    files.remove_leftovers(tmp_path / "missing" / "x.json")
    assert contents(tmp_path) == []


@pytest.mark.parametrize("name", ["plain", "caf\xe9", os.fsdecode(b"caf\xe9")])
def test_a_folder_has_a_name_that_tensorflow_can_convert(tmp_path, name):
    (tmp_path / name).mkdir()
    with files.ascii_alias(tmp_path / name) as alias:
        assert alias.isascii()
        (Path(alias) / "a").write_text("1")
    assert contents(tmp_path / name) == ["a"]
