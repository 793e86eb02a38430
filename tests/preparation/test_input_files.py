"""What `--input` accepts."""

import errno
import gzip
import json
import lzma
import os
import subprocess

import pytest
from backports import zstd
from folders import contents, names
from large_texts import write_texts

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.errors import UserError
from tfcharrnn.preparation import corpora
from tfcharrnn.preparation.data_folder import prepare_data


@pytest.mark.parametrize("kind", ["gzip", "xz", "zstd", "two members", "pipe"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_packed_files_are_unpacked(tmp_path, kind, encoding):
    text = "Some text, and more.\r\n" * 20
    data = text.encode(encoding)
    plain = prepare_data(
        DataConfig(input=write_texts(tmp_path, data), encoding=encoding, seq_length=9), tmp_path / "plain"
    )
    path = tmp_path / "packed"
    pack = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd.compress, "pipe": bytes}.get(
        kind, lambda data: gzip.compress(data[:70]) + gzip.compress(data[70:]) + b"\0" * 9
    )
    if kind == "pipe":
        os.mkfifo(path)
        writer = subprocess.Popen(["sh", "-c", f"cat '{tmp_path}/text0.txt' > '{path}'"])
    else:
        path.write_bytes(pack(data))
    config = DataConfig(input=(str(path),), encoding=encoding, seq_length=9)
    packed = prepare_data(config, tmp_path / "data")
    (source,) = json.loads((packed.path / "dataset.json").read_text())["inputs"]
    if kind == "pipe":
        assert writer.wait(timeout=60) == 0
    else:
        assert source == {"name": "packed", "bytes": len(pack(data)), "sha256": files.file_sha256(path)}
        assert corpora.load(config).text == text.replace("\r\n", "\n")
    differing = {"dataset.json"}
    assert {name: data for name, data in contents(packed.path).items() if name not in differing} == {
        name: data for name, data in contents(plain.path).items() if name not in differing
    }


def test_several_pipes_without_names_are_read(tmp_path):
    ends = []
    for text in (b"Some text. ", b"And more. "):
        read, write = os.pipe()
        os.write(write, text * 20)
        os.close(write)
        ends.append(read)
    data = prepare_data(
        DataConfig(input=tuple(f"/dev/fd/{end}" for end in ends), seq_length=9), tmp_path / "data", jobs=2
    )
    assert data.characters == 20 * 11 + 1 + 20 * 10
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd.compress])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20] + b"\xff" * 9 + data[29:]])
def test_damaged_packed_files_are_one_error(tmp_path, pack, damage):
    path = tmp_path / "packed"
    path.write_bytes(damage(pack(os.urandom(999).hex().encode())))
    with pytest.raises(UserError, match=f"^{path}: damaged .*; get the file again$"):
        prepare_data(DataConfig(input=(str(path),)), tmp_path / "data")
    with pytest.raises(UserError, match=f"^{path}: damaged .*; get the file again$"):
        corpora.load(DataConfig(input=(str(path),)))
    assert names(tmp_path) == ["packed"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, zstd.compress])
def test_a_text_in_memory_is_bounded(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(corpora, "MAX_BYTES_IN_MEMORY", 3_000_000)
    paths = (str(tmp_path / "first"), str(tmp_path / "second"))
    for path in paths:
        with open(path, "wb") as file:
            file.write(pack(b"a" * 2_000_000))
    assert len(corpora.load(DataConfig(input=paths[:1])).text) == 2_000_000
    with pytest.raises(UserError, match=rf"^{paths[1]}: unpacks to more than the 1,000,000 bytes"):
        corpora.load(DataConfig(input=paths))


def test_a_device_that_never_ends_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(corpora, "MAX_BYTES_IN_MEMORY", 3_000_000)
    with pytest.raises(UserError, match=r"^/dev/zero: unpacks to more than the 3,000,000 bytes"):
        corpora.load(DataConfig(input=("/dev/zero",)))


def test_globs_and_folders_are_sorted_files(tmp_path):
    for name in ["b.txt", "a.txt", "sub/d.txt", "sub/c.txt", ".hidden", ".git/x.txt", "sub/.y", "[z].txt", "e.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")

    def found(*named):
        config = DataConfig(input=tuple(f"{tmp_path}/{name}" for name in named))
        return corpora.load(config).text.split("\n")

    assert found("") == ["[z].txt", "a.txt", "b.txt", "e.md", "sub/c.txt", "sub/d.txt"]
    assert found("*.txt") == ["[z].txt", "a.txt", "b.txt"]
    assert found("**/*.txt") == ["[z].txt", "a.txt", "b.txt", "sub/c.txt", "sub/d.txt"]
    assert found("**") == ["[z].txt", "a.txt", "b.txt", "e.md", "sub/c.txt", "sub/d.txt"]
    assert found("[z].txt") == ["[z].txt"], "it exists, so it is no pattern"
    assert found("e.md", "sub", "[ab].txt") == ["e.md", "sub/c.txt", "sub/d.txt", "a.txt", "b.txt"]
    with pytest.raises(UserError, match=r"none\*: no file with text found; check --input$"):
        found("a.txt", "none*")


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write_texts(tmp_path, b"text")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"/sub: cannot be read \(Permission denied\); check --input$"):
        corpora.load(DataConfig(input=(str(tmp_path),)))
