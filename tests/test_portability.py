"""Systems without locks, descriptors of folders, timers or forks: the package does without them."""

import errno
import os
import shutil
import signal

import pytest

import tfcharrnn
from tfcharrnn import files, portability
from tfcharrnn.data import chunking
from tfcharrnn.errors import UserError

FLAGS = ("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK")
SMALL = {"hidden_size": 4, "seq_length": 10, "batch_size": 4, "sample_length": 5, "implementation": "custom"}


@pytest.fixture
def bare_system(monkeypatch):
    """Takes away what Windows does not have."""
    monkeypatch.setattr(portability, "fcntl", None)
    for name in FLAGS:
        monkeypatch.setattr(portability, name, 0)
        monkeypatch.delattr(os, name)
    for module, name in ((os, "fork"), (os, "pwrite"), (signal, "setitimer"), (signal, "SIGVTALRM")):
        monkeypatch.delattr(module, name)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    given = os.open

    def refuse_folders(path, flags, *args, **kwargs):
        if not isinstance(path, int) and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return given(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse_folders)


def test_a_bare_system_trains_resumes_and_generates(bare_system, tmp_path, capsys):
    run_dir, text = tmp_path / "rün", "some text to learn from\n" * 50
    data = tfcharrnn.prepare_data(tmp_path / "data", text=text, seq_length=10)
    tfcharrnn.train_model(run_dir, data_dir=data.path, **SMALL, steps=2, quiet=True)
    result = tfcharrnn.train_model(run_dir, data_dir=data.path, resume=True, steps=4, quiet=True)
    assert result.step == 4
    assert len(tfcharrnn.load_model(run_dir, "best").generate(length=5)) == 5
    assert f"{run_dir}: cannot be locked (this system has no locks of files)" in capsys.readouterr().err
    assert not [path.name for path in tmp_path.rglob("*") if ".tmp" in path.name or ".old" in path.name]


def test_a_bare_system_writes_folders_atomically(bare_system, tmp_path):
    with files.create_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), files.create_folder(tmp_path / "made", overwrite=True) as folder:
        raise RuntimeError
    assert (tmp_path / "made" / "a").read_text() == "1"
    with pytest.raises(UserError, match="exists already"), files.create_folder(tmp_path / "made"):
        pass
    files.write_bytes(tmp_path / "b", b"1\r\n\x1a2")
    assert files.read_bytes(tmp_path / "b") == b"1\r\n\x1a2"


def test_without_timers_a_search_has_no_limit(bare_system):
    with chunking.limit_search_time(tfcharrnn.DataConfig(layout="lines"), 10):
        pass


@pytest.mark.parametrize(("code", "is_refused"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_sync_folders_is_no_error(code, is_refused, tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(code, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    if is_refused:
        with pytest.raises(OSError, match="no"):
            portability.sync(tmp_path)
    else:
        portability.sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="no"):
        portability.sync(tmp_path / "file")
