"""Texts that are prepared in blocks, by several processes: the same folders as of a text in one piece."""

import contextlib
import errno
import gzip
import itertools
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from folders import contents, names
from hypothesis import example, given
from hypothesis import strategies as st

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking, tfrecord_writer
from tfcharrnn.data.dataset import SPLITS
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.preparation import corpora, counting, data_folder, line_blocks, sharding, staging, text_blocks
from tfcharrnn.preparation.cache import prepare_cached
from tfcharrnn.preparation.data_folder import prepare_data
from tfcharrnn.preparation.line_blocks import LineFinder
from tfcharrnn.preparation.process_pool import Pool

LAYOUTS = [
    {"layout": "sequences", "seq_length": 5},
    {"layout": "sequences", "seq_length": 8, "overlap": 0.6},
    {"layout": "stream", "seq_length": 3},
    {"layout": "windows", "seq_length": 3},
    {"layout": "lines", "max_length": 9},
    {"layout": "lines", "max_length": 9, "delimiter": r"[.!?]\s*"},
    {"layout": "lines", "max_length": 9, "drop_chars": "\n"},
]
SETTINGS = [
    {},
    {"lowercase": True},
    {"drop_digits": True, "drop_chars": "a\r"},
    {"lowercase": True, "drop_chars": "b "},
]
# a sigma at a word's end has a lower case of its own, and what ends a word is told by what is around it
TEXT = st.lists(
    st.sampled_from(
        [
            "\n",
            "\r\n",
            "\r",
            " ",
            "AAΣ ",
            "AAΣAA",
            "AAΣ.",
            "AAΣ",
            "\ufeff",
            "AΣ'AA",
            "b",
            "é",
            "\U0001f600",
            "1",
            "٣",
            ". ",
            "!",
            "字",
            "x" * 9,
        ]
    )
).map("".join)


@contextlib.contextmanager
def in_blocks(block=16, small=0, shard_bytes=None, sorted_lines=None, piece=10):
    """Makes any text a large one, of blocks of so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "BLOCK_BYTES", block)
        patch.setattr(text_blocks, "_TAIL_BYTES", 16)
        patch.setattr(staging, "SMALL_BYTES", small)
        patch.setattr(line_blocks, "MARGIN", 8)
        patch.setattr(chunking, "CHUNK_LENGTH", piece)
        if shard_bytes:
            patch.setattr(sharding, "_SHARD_BYTES", shard_bytes)
        if sorted_lines is not None:
            patch.setattr(chunking, "SORTED_LINES", sorted_lines)
        yield patch


def made(config, path, **how):
    """The content of a data folder, or the error."""
    try:
        data = prepare_data(config, path, **how)
    except UserError as error:
        assert not path.exists()
        return str(error)
    assert names(path.parent) == sorted({path.name, *(name for name in names(path.parent) if name.startswith("text"))})
    return contents(data.path)


def check_same(folder, config, **how):
    piece = how.pop("piece", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "CHUNK_LENGTH", piece)
        whole = made(config, folder / "whole" / "data")
    with in_blocks(how.pop("block", 16), piece=piece):
        pieces = made(config, folder / "pieces" / "data", **how)
    assert pieces == whole
    return whole


def written(folder, *datas):
    paths = []
    for index, data in enumerate(datas):
        paths.append(folder / f"text{index}.txt")
        paths[-1].write_bytes(data)
    return tuple(map(str, paths))


# The same in blocks as in one piece


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@given(
    st.lists(TEXT.filter(bool), min_size=1, max_size=3),
    st.sampled_from(SETTINGS),
    st.sampled_from(["utf-8", "utf-16", "utf-16-be", "gb18030", "utf-8-sig", "utf-7", "latin-1"]),
    st.integers(24, 60),
    st.integers(1, 3),
    st.booleans(),
)
@example(["a b\r", "\nΣ A"], {"lowercase": True}, "utf-8", 24, 1, True)
def test_blocks_do_not_show(tmp_path_factory, layout, parts, settings, encoding, block, num_shards, mark):
    folder = tmp_path_factory.mktemp("blocks")
    mark = "\ufeff" * (mark and encoding.startswith("utf"))
    paths = written(folder, *((mark + part).encode(encoding, "ignore") for part in parts))
    layout = {**layout, "drop_chars": layout.get("drop_chars", "") + settings.get("drop_chars", "")}
    config = DataConfig(
        input=paths, encoding=encoding, val_fraction=0.3, test_fraction=0.1, num_shards=num_shards,
        **{**settings, **layout},
    )  # fmt: skip
    check_same(folder, config, block=block, jobs=1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "shift_jis"])
def test_processes_do_not_show(tmp_path, layout, encoding):
    text = "".join(f"Line {index}. It is\r\n{'o' * (index % 5)}! 12 {'A' * (index % 13)}\n" for index in range(60))
    config = DataConfig(
        input=written(tmp_path, *[text.encode(encoding)] * 3), encoding=encoding, lowercase=True, num_shards=3,
        val_fraction=0.3, **layout,
    )  # fmt: skip
    check_same(tmp_path, config, block=100, jobs=2, piece=chunking.CHUNK_LENGTH)


@pytest.mark.parametrize(
    "data", [b"text\x89PNG" * 9, "é".encode() * 50 + b"\xc3", b"a b\n" * 50 + b"\xff", b"\xff" * 99]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "ascii", "utf-32"])
def test_the_first_byte_that_is_no_text_is_named(tmp_path, data, encoding):
    good = "abc\n".encode(encoding) * 9
    error = check_same(tmp_path, DataConfig(input=written(tmp_path, good, good + data), encoding=encoding), jobs=1)
    if data.startswith(b"text") and encoding == "utf-16-le":
        assert "shorter than one example" in error, "it is as good a text as any"
        return
    assert re.search(f"^{tmp_path}/text1.txt: not {encoding} text: .* at byte \\d+; pass the right", error)


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (b"", {}),
        (b"123 ", {"drop_digits": True, "drop_chars": " "}),
        (b"\xef\xbb\xbf", {}),
        (b"\xef\xbb\xbf", {"encoding": "utf-8-sig"}),
        (b"\xff\xfe", {"encoding": "utf-16"}),
        (b"abc" * 9, {"seq_length": 99}),
        (b"abc" * 9, {"layout": "lines", "max_length": 4}),
        (b"abc" * 9, {"encoding": "no-such"}),
        (b"abc" * 9, {"encoding": "rot13"}),
        (b"abc" * 9, {"seq_length": 2, "overlap": 0.5}),
        (b"ab\\ud800", {"encoding": "unicode_escape"}),
    ],
)
def test_errors_are_the_same_and_leave_nothing(tmp_path, data, settings):
    error = check_same(tmp_path, DataConfig(input=written(tmp_path, data), **settings), jobs=1)
    assert isinstance(error, str)
    assert not any((tmp_path / "pieces").glob("*"))


def test_a_missing_file_is_the_same_error(tmp_path):
    config = DataConfig(input=(*written(tmp_path, b"abc" * 99), str(tmp_path / "none")))
    assert "No such file" in check_same(tmp_path, config)


@pytest.mark.parametrize("at", range(20, 30))
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_end_of_a_line_is_in_one_block(tmp_path, at, encoding):
    data = b"x" * at + b"\r\n" + b"y" * 50
    check_same(tmp_path, DataConfig(input=written(tmp_path, data), encoding=encoding, seq_length=5), block=24, jobs=1)


def test_a_block_without_a_place_to_end_is_cut_between_characters(tmp_path):
    data = ("字" * 100 + "ΑΣ" * 40 + "," + "é\U0001f600" * 30).encode()
    for block in range(4, 20):
        config = DataConfig(input=written(tmp_path, data), lowercase=False, seq_length=5)
        check_same(tmp_path / str(block), config, block=block, jobs=1)


# Lines


@pytest.mark.parametrize(
    "delimiter",
    [
        r"\n",
        r"\n\n+",
        r"[.!?]\s*",
        r"(a)(b)?",
        r"\s*",
        r"$",
        r"(?=b)",
        r"x^",
        r"\b",
        r"^a",
        r"(?<=b)\s",
        r"a|(?m:^)|\s?",
    ],
)
@given(st.text("aab \n\n.!?c", max_size=80), st.lists(st.integers(1, 9), max_size=30))
def test_lines_are_found_in_pieces_as_in_the_whole(delimiter, text, sizes):
    config = DataConfig(layout="lines", delimiter=delimiter, max_length=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_blocks, "MARGIN", 90 if "+" in delimiter or "*" in delimiter else 3)
        finder, found, dropped, at = LineFinder(config), [], {"empty": 0, "too_long": 0}, 0
        for size in [*sizes, len(text)]:
            _, kept, left_out = finder.add(text[at : at + size], is_last=at + size >= len(text))
            found += kept
            dropped = {kind: count + left_out[kind] for kind, count in dropped.items()}
            at += size
            if at >= len(text):
                break
    assert (found, dropped) == chunking.split_lines(text, config)


def test_a_line_that_is_too_long_is_not_kept_in_memory():
    config = DataConfig(layout="lines", delimiter=r";", max_length=100)
    finder, total = LineFinder(config), {"empty": 0, "too_long": 0}
    for index in range(50):
        _, kept, dropped = finder.add("x" * 100_000 + "; y;" * (index == 25), is_last=index == 49)
        total = {kind: count + dropped[kind] for kind, count in total.items()}
        assert kept in ([], [" y"])
        assert len(finder._text) + len(finder._head) < 6 * line_blocks.MARGIN
    assert total == {"empty": 0, "too_long": 2}


@pytest.mark.parametrize("jobs", [1, 2])
def test_very_many_lines_go_to_the_splits_without_being_sorted(tmp_path, jobs):
    text = "".join(f"line {index}\n\n" for index in range(500))
    config = DataConfig(input=written(tmp_path, text.encode()), layout="lines", val_fraction=0.2, test_fraction=0.1)
    with in_blocks(block=300, sorted_lines=10):
        large = prepare_data(config, tmp_path / "large", jobs=jobs)
        assert [large.splits[split].records for split in SPLITS] == [350, 100, 50]
        numbers = {}
        for split in SPLITS:
            read = large.read(split)
            decoded = [large.vocabulary.decode(row[:size]) for row, size in zip(read.pad(), read.lengths, strict=True)]
            numbers[split] = [int(line.removeprefix("line ")) for line in decoded]
        assert sorted(itertools.chain(*numbers.values())) == list(range(500))
        assert all(part == sorted(part) for part in numbers.values())
        assert 20 < sum(number < 250 for number in numbers["val"]) < 80, "they are spread"
        small = corpora.load(config)
        data_folder.write_from_memory(small, tmp_path / "small", config, False)
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


# What --input takes


@pytest.mark.parametrize("kind", ["gzip", "xz", "two members", "pipe"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_packed_files_are_unpacked(tmp_path, kind, encoding):
    text = "Some text, and more.\r\n" * 20
    data = text.encode(encoding)
    plain = prepare_data(DataConfig(input=written(tmp_path, data), encoding=encoding, seq_length=9), tmp_path / "plain")
    path = tmp_path / "packed"
    pack = {"gzip": gzip.compress, "xz": lzma.compress, "pipe": bytes}.get(
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


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20] + b"\xff" * 9 + data[29:]])
def test_damaged_packed_files_are_one_error(tmp_path, pack, damage):
    path = tmp_path / "packed"
    path.write_bytes(damage(pack(os.urandom(999).hex().encode())))
    with pytest.raises(UserError, match=f"^{path}: damaged .*; get the file again$"):
        prepare_data(DataConfig(input=(str(path),)), tmp_path / "data")
    with pytest.raises(UserError, match=f"^{path}: damaged .*; get the file again$"):
        corpora.load(DataConfig(input=(str(path),)))
    assert names(tmp_path) == ["packed"]


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
    written(tmp_path, b"text")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"/sub: cannot be read \(Permission denied\); check --input$"):
        corpora.load(DataConfig(input=(str(tmp_path),)))


# Processes


_POOL = """
import multiprocessing, os, pathlib, sys
from tfcharrnn.preparation import cache, data_folder, staging, text_blocks
from tfcharrnn.config import DataConfig
text_blocks.BLOCK_BYTES, staging.SMALL_BYTES = 500, 0
for folder in sys.argv[1:]:
    os.chdir(folder)
    data_folder.prepare_data(DataConfig(input=("text0.txt",), seq_length=11, num_shards=3), "data", jobs=2)
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    running = [pathlib.Path(f"/proc/{child}/cmdline").read_text() for child in children]
    assert not [command for command in running if "popen_loky" in command], running
"""


def test_processes_end_with_the_work(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        written(tmp_path / name, b"Some text. " * 5000)
    command = [sys.executable, "-W", "error", "-c", _POOL, str(tmp_path / "a"), str(tmp_path / "b")]
    subprocess.run(command, check=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_preparing_a_small_text_needs_no_joblib(tmp_path):
    code = "import sys, tfcharrnn as t; t.prepare_data(t.DataConfig(), sys.argv[1]); sys.exit('joblib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], check=True)


# Shards


def test_shards_have_about_the_size_that_is_asked_for(tmp_path):
    config = DataConfig(input=written(tmp_path, b"abc d" * 2000), seq_length=11, val_fraction=0.1)
    with in_blocks(shard_bytes=5000):
        data = prepare_data(config, tmp_path / "data", jobs=1)
    sizes = [(data.path / name).stat().st_size for name in data.splits["train"].shards]
    assert len(sizes) > 3
    assert all(2500 < size < 10_000 for size in sizes)
    assert len(data.splits["val"].shards) == round(sum(sizes) / 9 / 5000)
    assert json.loads((data.path / "dataset.json").read_text())["num_shards"] == len(sizes)
    assert data.vocabulary.decode(data.read("train").ids) == "abc d" * 1800


def test_a_file_is_checked_without_tensorflow(tmp_path):
    path = tmp_path / "x"
    data = prepare_data(DataConfig(input=written(tmp_path, b"abc d" * 200), seq_length=11), tmp_path / "data")
    shard = data.path / data.splits["train"].shards[0]
    whole = shard.read_bytes()
    assert tfrecord_writer.check_file(shard) == data.splits["train"].records
    for at in range(0, 200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(UserError, match="damaged"):
            tfrecord_writer.check_file(path)
    for size in range(1, len(whole) // data.splits["train"].records):
        path.write_bytes(whole[:-size])
        with pytest.raises(UserError, match="damaged"):
            tfrecord_writer.check_file(path)


# Interruptions


LARGE = {"seq_length": 11, "num_shards": 4, "val_fraction": 0.3}


class Stopped(BaseException):
    """As a kill is: nothing catches it."""


@pytest.mark.parametrize("settings", [LARGE, {"layout": "lines", "num_shards": 4, "delimiter": "[.]"}])
@pytest.mark.parametrize("after", range(9))
@pytest.mark.parametrize("packed", [False, True])
def test_an_interrupted_preparation_goes_on(tmp_path, monkeypatch, capsys, settings, after, packed):
    text = "".join(f"Line {index}. {'xyz' * (index % 7)}\n" for index in range(200)).encode()
    config = DataConfig(input=written(tmp_path, gzip.compress(text) if packed else text), **settings)
    expected = made(DataConfig(**{**vars(config), "num_shards": 4}), tmp_path / "whole" / "data")
    work = tmp_path / "work"
    write, began = tfrecord_writer.write_records, []

    def stopping(path, *rest):
        if len(began) == after:
            raise Stopped
        began.append(path.name)
        return write(path, *rest)

    with in_blocks(block=500):
        monkeypatch.setattr(tfrecord_writer, "write_records", stopping)
        with contextlib.suppress(Stopped):
            prepare_data(config, work / "data", jobs=1)
        stopped = not (work / "data").exists()
        assert stopped == (after < 8)
        if stopped:
            assert names(work) == [".data.partial"]
            assert "run the same command again to resume" in capsys.readouterr().err
            monkeypatch.setattr(
                tfrecord_writer, "write_records", lambda path, *rest: (began.append(path.name), write(path, *rest))[1]
            )
            monkeypatch.setattr(
                staging.StagingFolder, "_make_first_pass", lambda folder: pytest.fail("it was counted again")
            )
            prepare_data(config, work / "data", jobs=1)
    assert sorted(began) == sorted({name for name in expected if name.endswith("tfrecord")}), "each was written once"
    assert names(work) == ["data"]
    assert contents(work / "data") == expected


@pytest.mark.parametrize("resumed", [False, True])
def test_ctrl_c_keeps_what_was_unpacked(tmp_path, monkeypatch, resumed):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"Some text. " * 200))
    config = DataConfig(input=(str(path),), **LARGE)

    def interrupt(*_):
        raise KeyboardInterrupt

    with in_blocks(block=500):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(counting, "count_blocks", interrupt)
            prepare_data(config, tmp_path / "data", jobs=1)
        if resumed:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(staging.StagingFolder, "count_text", interrupt)
                prepare_data(config, tmp_path / "data", jobs=1)
        monkeypatch.setattr(text_blocks, "write_plain_file", lambda *rest: pytest.fail("it was unpacked again"))
        prepare_data(config, tmp_path / "data", jobs=1)
    assert names(tmp_path) == ["data", "text.gz"]


def test_an_error_in_the_first_moments_keeps_the_shards(tmp_path, monkeypatch):
    config = DataConfig(input=written(tmp_path, b"Some text. " * 200), **LARGE)
    write_json = files.write_json
    for failing in ("dataset.json", "plan.json"):

        def full(path, value, failing=failing):
            if path.name == failing:
                raise UserError("No space left")
            write_json(path, value)

        with in_blocks(block=500), monkeypatch.context() as patch, pytest.raises(UserError, match="No space"):
            patch.setattr(files, "write_json", full)
            prepare_data(config, tmp_path / "data", jobs=1)
    assert len(list(tmp_path.glob(".data.partial/*/data/*.tfrecord"))) == 8


@pytest.mark.parametrize("gone", ["input-00000.text", "lines", "lines.lengths"])
def test_what_was_half_removed_is_made_again(tmp_path, monkeypatch, gone):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"Some text. " * 200))
    config = DataConfig(input=(str(path),), layout="lines", delimiter="[.]")

    def stop(*_):
        raise Stopped

    with in_blocks(block=500):
        with monkeypatch.context() as patch, contextlib.suppress(Stopped):
            patch.setattr(tfrecord_writer, "write_records", stop)
            prepare_data(config, tmp_path / "data", jobs=1)
        (removed,) = tmp_path.glob(f".data.partial/*/{gone}")
        removed.unlink()
        data = prepare_data(config, tmp_path / "data", jobs=1)
    assert contents(data.path) == contents(prepare_data(config, tmp_path / "whole").path)


@pytest.mark.parametrize("change", ["settings", "text", "nothing"])
def test_what_was_begun_with_other_settings_is_not_gone_on_with(tmp_path, monkeypatch, capsys, change):
    (path,) = written(tmp_path, b"Some text. " * 200)
    config = DataConfig(input=(path,), **LARGE)
    write = tfrecord_writer.write_records

    def failing(path, *rest):
        if path.name.startswith("train-00002"):
            raise UserError("no space")
        return write(path, *rest)

    with in_blocks(block=500):
        with monkeypatch.context() as patch:
            patch.setattr(tfrecord_writer, "write_records", failing)
            with pytest.raises(UserError, match="no space"):
                prepare_data(config, tmp_path / "data", jobs=1)
        if change == "settings":
            config = DataConfig(input=(path,), **{**LARGE, "seq_length": 12})
        elif change == "text":
            written(tmp_path, b"Other text " * 200)
        capsys.readouterr()
        data = prepare_data(config, tmp_path / "data", jobs=1)
    assert ("starting from scratch" in capsys.readouterr().err) == (change != "nothing")
    assert contents(data.path) == made(config, tmp_path / "whole" / "data")
    assert names(tmp_path) == ["data", "text0.txt", "whole"]


def test_a_text_that_changes_while_it_is_read_is_one_error(tmp_path, monkeypatch):
    (path,) = written(tmp_path, b"Some text. " * 200)
    write = tfrecord_writer.write_records
    for change in (b"Some text, " * 200, b"Some", b"Smoe text. " * 200):
        written(tmp_path, b"Some text. " * 200)

        def changing(target, *rest, change=change):
            written(tmp_path, change)
            return write(target, *rest)

        monkeypatch.setattr(tfrecord_writer, "write_records", changing)
        with in_blocks(block=500), pytest.raises(UserError, match=r"changed while it was read|vocabulary"):
            prepare_data(DataConfig(input=(path,), **LARGE), tmp_path / "data", jobs=1)
        assert not (tmp_path / "data").exists()


def test_a_killed_command_goes_on(tmp_path):
    line = "The quick brown fox jumps over the lazy dog 0123456789.\n"
    path = tmp_path / "text.txt"
    path.write_text(line * 900_000)  # beyond what is prepared in memory
    flags = [f"--input={path}", "--seq_length=50", "--num_shards=40"]

    def start(folder):
        command = [sys.executable, "-m", "tfcharrnn.prepare", *flags, f"--output_dir={folder}", "--jobs=2"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    process = start(tmp_path / "data")
    deadline = time.monotonic() + 120
    partial = tmp_path / ".data.partial"
    while len(list(partial.glob("*/train-*.json"))) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "data").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("*/data/train-*")}
    assert kept
    again = start(tmp_path / "data")
    assert again.wait(timeout=300) == 0, again.communicate()
    again.communicate()
    assert names(tmp_path) == ["data", "text.txt"]
    noted = {name for name in kept if (tmp_path / "data" / name).stat().st_mtime_ns == kept[name]}
    assert len(noted) >= 5, "they were not written again"
    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=300) == 0
    whole.communicate()
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_two_that_prepare_one_folder_do_not_meet(tmp_path):
    config = DataConfig(input=written(tmp_path, b"Some text. " * 200), **LARGE)
    with in_blocks(block=500):
        partial = tmp_path / ".data.partial"
        found = corpora.find_inputs(config)
        met = pytest.raises(UserError, match=rf"another process is preparing this folder \(process {os.getpid()} on")
        with staging.open_staging(partial, found, config, Pool(1)), met:
            prepare_data(config, tmp_path / "data", jobs=1)
        prepare_data(config, tmp_path / "data", jobs=1)
    assert names(tmp_path) == ["data", "text0.txt"]


def test_overwrite_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    config = DataConfig(input=written(tmp_path, b"Some text. " * 200), **LARGE)
    with in_blocks(block=500):
        before = contents(prepare_data(config, tmp_path / "data", jobs=1).path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", lambda *paths: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            other = DataConfig(**{**vars(config), "seq_length": 13})
            with pytest.raises(UserError, match="cannot be written"):
                prepare_data(other, tmp_path / "data", jobs=1, overwrite=True)
        assert contents(tmp_path / "data") == before
        assert prepare_data(other, tmp_path / "data", jobs=1, overwrite=True).config.seq_length == 13
    assert names(tmp_path) == ["data", "text0.txt"]


@pytest.mark.parametrize("small", [0, 2**20])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_to_the_place_meanwhile_stays(tmp_path, monkeypatch, small, overwrite):
    config = DataConfig(input=written(tmp_path, b"Some text. " * 200), **LARGE)
    write = sharding.write_shards

    def writing(*args, **how):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "thesis.txt").write_text("years of work")
        return write(*args, **how)

    monkeypatch.setattr(sharding, "write_shards", writing)
    with in_blocks(block=500, small=small), pytest.raises(UserError, match=r"data: (exists|--overwrite would remove)"):
        prepare_data(config, tmp_path / "data", jobs=1, overwrite=overwrite)
    assert contents(tmp_path / "data") == {"thesis.txt": b"years of work"}


# The cache


def test_a_large_text_is_cached_like_a_small_one(tmp_path, monkeypatch):
    config = DataConfig(input=written(tmp_path, b"Some text. " * 200), **LARGE)
    small = prepare_cached(config, tmp_path / "small")
    with in_blocks(block=500):
        large = prepare_cached(config, tmp_path / "large")
        assert (large.path.name, contents(large.path)) == (small.path.name, contents(small.path))
        monkeypatch.setattr(data_folder, "write_from_files", lambda *rest: pytest.fail("it was made again"))
        assert prepare_cached(config, tmp_path / "large").path == large.path
    (note,) = (tmp_path / "large").glob(".*")
    assert re.fullmatch(r"\.[0-9a-f]{16}\.json", note.name)
    assert names(tmp_path / "large") == [note.name, large.path.name]


@pytest.mark.parametrize("damage", ["nothing", "text", "folder", "{", "[]", '{"folder": "../x"}', '{"folder": 1}'])
def test_a_cached_text_is_not_read_again(tmp_path, monkeypatch, damage):
    config = DataConfig(input=written(tmp_path, b"Some text. " * 200), **LARGE)
    with in_blocks(block=500):
        before = prepare_cached(config, tmp_path / "cache")
        expected = contents(before.path)
        (note,) = (tmp_path / "cache").glob(".*.json")
        if damage == "nothing":
            monkeypatch.setattr(staging, "open_staging", lambda *rest, **how: pytest.fail("it was read again"))
        elif damage == "text":
            written(tmp_path, b"Another one" * 200)
            assert prepare_cached(config, tmp_path / "cache").fingerprint != before.fingerprint
            return
        elif damage == "folder":
            (before.path / "vocab.json").unlink()
        else:
            note.write_text(damage)
        assert contents(prepare_cached(config, tmp_path / "cache").path) == expected


def test_a_pipe_is_not_remembered(tmp_path):
    for text in (b"Some text. ", b"And more. "):
        read, write = os.pipe()
        os.write(write, text * 20)
        os.close(write)
        data = prepare_cached(DataConfig(input=(f"/dev/fd/{read}",), seq_length=9), tmp_path / "cache")
        os.close(read)
        assert data.characters == 20 * len(text)


@pytest.mark.parametrize("days", [6, 8])
@pytest.mark.parametrize("at_work", [False, True])
def test_what_was_begun_long_ago_is_removed_from_the_cache(tmp_path, days, at_work):
    config = DataConfig(input=written(tmp_path, b"Some text. " * 200), **LARGE)
    old = tmp_path / "cache" / f".{'0' * 16}.partial"
    (old / "key").mkdir(parents=True)
    then = time.time() - days * 24 * 3600
    for folder in (old / "key", old):
        os.utime(folder, (then, then))
    with in_blocks(block=500):
        lock = files.lock_file(staging.lock_path(old), "prepare data") if at_work else None
        prepare_cached(config, tmp_path / "cache")
        if lock:
            files.unlock_file(staging.lock_path(old), lock)
    assert old.exists() == (at_work or days < 7)


_CACHE = """
import pathlib, sys
from tfcharrnn.preparation import cache, data_folder, staging, text_blocks
from tfcharrnn.config import DataConfig
text_blocks.BLOCK_BYTES, staging.SMALL_BYTES = 500, int(sys.argv[3])
print(cache.prepare_cached(DataConfig(input=(sys.argv[1],), seq_length=11), pathlib.Path(sys.argv[2])).path)
"""


@pytest.mark.parametrize("small", [0, 2**20])
def test_several_processes_that_fill_one_cache_end_well(tmp_path, small):
    (path,) = written(tmp_path, b"Some text. " * 5000)
    command = [sys.executable, "-c", _CACHE, path, str(tmp_path / "cache"), str(small)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    said = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(said) == 1
    assert len([name for name in names(tmp_path / "cache") if not name.startswith(".")]) == 1
    assert not list((tmp_path / "cache").glob(".*.lock")) + list((tmp_path / "cache").glob(".*.partial"))


def test_preparing_needs_no_tensorflow(tmp_path):
    code = (
        "import sys, tfcharrnn as t; t.prepare_data(t.DataConfig(), sys.argv[1]); sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], check=True)


def test_num_shards_may_be_chosen():
    with pytest.raises(ConfigError, match="at least 0"):
        DataConfig(num_shards=-1)
