"""Texts that have a URL, from a server on this machine and from fsspec's memory."""

import functools
import http.server
import io
import json
import sys
import threading
import tracemalloc

import fsspec
import pytest
from backports import zstd

from tfcharrnn import files
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.preparation import cache, corpora, input_files, remote_files
from tfcharrnn.preparation.data_folder import prepare_data
from tfcharrnn.runs import run_folder
from tfcharrnn.runs.run_folder import Run

TEXT = "Some text, and more of it.\n" * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server, and the folder whose files it serves."""
    folder = tmp_path_factory.mktemp("served")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


@pytest.mark.parametrize("pack", [bytes, zstd.compress])
def test_a_text_is_read_from_a_server_as_from_disk(server, tmp_path, pack):
    address, folder = server
    data = pack(TEXT.encode())
    (folder / "my text.txt").write_bytes(data)
    url = f"{address}/my%20text.txt?token=SECRET"
    config = DataConfig(input=(url,), seq_length=9)
    remote = prepare_data(config, tmp_path / "remote")
    (tmp_path / "local.txt").write_bytes(data)
    local = prepare_data(DataConfig(input=(str(tmp_path / "local.txt"),), seq_length=9), tmp_path / "local")
    assert remote.fingerprint == local.fingerprint
    (source,) = json.loads((remote.path / "dataset.json").read_text())["inputs"]
    assert source == {"name": "my text.txt", "bytes": len(data), "sha256": files.sha256(data)}
    assert corpora.load(config).text == TEXT
    cached = [cache.prepare_cached(config, tmp_path / "cache") for _ in range(2)]
    assert cached[0].path == cached[1].path and cached[0].name == "my text.txt"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes()


def test_a_large_text_is_never_in_memory_as_a_whole(memory, tmp_path):
    line = b"0123456789abcdef" * 64 + b"\n"
    with memory.open("/large.txt", "wb") as file:
        for _ in range(20_000):
            file.write(line)
    tracemalloc.start()
    try:
        with input_files.open_decompressed("memory://large.txt") as (content, hashing):
            while content.read(2**20):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert hashing.size == 20_000 * len(line) and peak < 2**24


def test_local_and_remote_texts_are_joined(memory, tmp_path):
    memory.pipe("/a.txt", b"first")
    (tmp_path / "b.txt").write_text("second")
    assert corpora.load(DataConfig(input=("memory://a.txt", str(tmp_path / "b.txt")))).text == "first\nsecond"


def test_a_failed_download_is_one_line_without_secrets(server, tmp_path):
    address, _ = server
    with pytest.raises(UserError) as caught:
        corpora.load(DataConfig(input=(f"{address}/missing.txt?token=SECRET",)))
    message = str(caught.value)
    assert message.startswith(f"{address}/missing.txt: cannot be downloaded (FileNotFoundError); check")
    assert "SECRET" not in message
    with pytest.raises(UserError, match="cannot be downloaded"):
        prepare_data(DataConfig(input=("http://127.0.0.1:1/a.txt",)), tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_a_download_that_ends_early_is_an_error(memory, monkeypatch):
    class Short(io.BytesIO):
        size = 130

    monkeypatch.setattr(memory, "open", lambda path, mode: Short(b"x" * 100))
    with pytest.raises(UserError, match=r"^memory://a.txt: ended 30 bytes early"):
        corpora.load(DataConfig(input=("memory://a.txt",)))


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"^s3://bucket/a.txt: a package is missing .*s3fs"):
        corpora.load(DataConfig(input=("s3://bucket/a.txt",)))
    with pytest.raises(UserError, match=r"^nothing://a: no such kind of URL"):
        corpora.load(DataConfig(input=("nothing://a",)))
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"needs fsspec; pip install 'tfcharrnn\[remote\]'"):
        corpora.load(DataConfig(input=("memory://a.txt",)))


def test_zstd_that_is_not_installed_is_named(monkeypatch, tmp_path):
    (tmp_path / "a.zst").write_bytes(zstd.compress(b"text"))
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(UserError, match=r"a.zst: is compressed by zstd.*tfcharrnn\[zstd\]"):
        corpora.load(DataConfig(input=(str(tmp_path / "a.zst"),)))


def test_a_password_in_a_url_is_refused():
    with pytest.raises(ConfigError, match=r"^--input: https://host/a.txt has a user or a password in it"):
        corpora.load(DataConfig(input=("https://me:SECRET@host/a.txt",)))


def test_a_run_folder_has_no_secret(tmp_path):
    data = DataConfig(input=("https://host/a.txt?token=SECRET", "b.txt"))
    Run(tmp_path, data, "", "", ModelConfig(), TrainingConfig(), Vocabulary("ab")).save()
    assert run_folder.load(tmp_path).data.input == ("https://host/a.txt", "b.txt")


@pytest.mark.parametrize(
    ("url", "shown", "name"),
    [
        ("s3://bucket/folder/a.txt", "s3://bucket/folder/a.txt", "a.txt"),
        ("https://me:pw@host:1/a%20b.txt?x=/y#z", "https://host:1/a%20b.txt", "a b.txt"),
        ("hf://datasets/me/set@main/a.txt", "hf://datasets/me/set@main/a.txt", "a.txt"),
        ("https://host", "https://host", "host"),
        ("https://?x", "https://", "https"),
    ],
)
def test_urls_are_shown_without_secrets(url, shown, name):
    assert (remote_files.describe_url(url), remote_files.get_name(url)) == (shown, name)


def test_a_file_is_no_url():
    assert not any(map(remote_files.is_remote, ["a.txt", "/a/b", "C:\\a", "a://b"[1:], "./x://y", "1://x"]))
