"""Interrupted preparations, and what comes in their way."""

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from folders import contents, names
from large_texts import LARGE, Stopped, in_blocks, prepare_contents, write_texts

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import tfrecord_writer
from tfcharrnn.errors import UserError
from tfcharrnn.preparation import corpora, counting, notes, sharding, staging, text_blocks
from tfcharrnn.preparation.data_folder import prepare_data
from tfcharrnn.preparation.process_pool import Pool


@pytest.mark.parametrize("settings", [LARGE, {"layout": "lines", "num_shards": 4, "delimiter": "[.]"}])
@pytest.mark.parametrize("after", range(9))
@pytest.mark.parametrize("packed", [False, True])
def test_an_interrupted_preparation_goes_on(tmp_path, monkeypatch, capsys, settings, after, packed):
    text = "".join(f"Line {index}. {'xyz' * (index % 7)}\n" for index in range(200)).encode()
    config = DataConfig(input=write_texts(tmp_path, gzip.compress(text) if packed else text), **settings)
    expected = prepare_contents(DataConfig(**{**vars(config), "num_shards": 4}), tmp_path / "whole" / "data")
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
    config = DataConfig(input=write_texts(tmp_path, b"Some text. " * 200), **LARGE)
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


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [os.unlink, truncate])
@pytest.mark.parametrize("gone", ["input-00000.text", "lines", "lines.lengths"])
def test_what_was_half_removed_is_made_again(tmp_path, monkeypatch, gone, damage):
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
        damage(removed)
        data = prepare_data(config, tmp_path / "data", jobs=1)
    assert contents(data.path) == contents(prepare_data(config, tmp_path / "whole").path)


def replace_by_fifo(path):
    path.unlink()
    os.mkfifo(path)


def change_number(path):
    start, digit, end = re.fullmatch(r"(.*)(\d)(\D*)", path.read_text()).groups()
    path.write_text(f"{start}{(int(digit) + 1) % 10}{end}")


@pytest.mark.parametrize("note", ["counts.json", "input-00000.json", "val-00000-of-00004.tfrecord.json"])
@pytest.mark.parametrize(
    "damage",
    [truncate, change_number, replace_by_fifo, lambda path: path.write_text("{}"), lambda path: path.write_text("[1]")],
)
def test_a_damaged_note_is_discarded_and_its_work_done_again(tmp_path, monkeypatch, note, damage):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"Some text. " * 200))
    config = DataConfig(input=(str(path),), **LARGE)
    write, began = tfrecord_writer.write_records, []

    def stop(target, *rest):
        if len(began) == 5:
            raise Stopped
        began.append(target)
        return write(target, *rest)

    with in_blocks(block=500):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(tfrecord_writer, "write_records", stop)
            prepare_data(config, tmp_path / "data", jobs=1)
        (noted,) = tmp_path.glob(f".data.partial/*/{note}")
        before = noted.read_bytes()
        damage(noted)
        assert not noted.is_file() or noted.read_bytes() != before
        data = prepare_data(config, tmp_path / "data", jobs=1)
    assert contents(data.path) == contents(prepare_data(DataConfig(**vars(config)), tmp_path / "whole").path)
    assert names(tmp_path) == ["data", "text.gz", "whole"]


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()
    (path / "x").write_text("")


def replace_by_link(path):
    data = path.read_bytes()
    path.unlink()
    target = path.parent.parent.parent / "target"
    target.write_bytes(data)
    path.symlink_to(target)


def replace_by_note_of_another_form(path):
    notes.write_note(path, {"unknown": 1})


@pytest.fixture
def interrupt(tmp_path, monkeypatch):
    """A function that prepares a text until some shards are written, and returns the staging folder of its key."""

    def go(config):
        write, written = tfrecord_writer.write_records, []

        def stop(target, *rest):
            if len(written) == 5:
                raise Stopped
            written.append(target)
            return write(target, *rest)

        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(tfrecord_writer, "write_records", stop)
            prepare_data(config, tmp_path / "data", jobs=1)
        (folder,) = (path for path in (tmp_path / ".data.partial").iterdir() if path.is_dir())
        return folder

    return go


_STAGED = ["plan.json", "counts.json", "input-00000.json", "input-00000.text", "lines", "lines.lengths"]
_STAGED += ["val-00000-of-00004.tfrecord.json", "data/val-00000-of-00004.tfrecord"]
_DAMAGE = [flip_bit, truncate, replace_by_fifo, replace_by_folder, replace_by_link, replace_by_note_of_another_form]


@pytest.mark.parametrize("name", _STAGED)
@pytest.mark.parametrize("damage", _DAMAGE)
def test_nothing_that_was_changed_is_published(tmp_path, interrupt, name, damage):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress("".join(f"Line {index} x. " for index in range(200)).encode()))
    config = DataConfig(input=(str(path),), layout="lines", delimiter="[.]", num_shards=4, val_fraction=0.2)
    with in_blocks(block=500):
        damage(interrupt(config) / name)
        data = prepare_data(config, tmp_path / "data", jobs=1)
        assert contents(data.path) == contents(prepare_data(config, tmp_path / "whole", jobs=1).path)
    assert not any(file.is_symlink() for file in data.path.iterdir())
    assert set(names(tmp_path)) - {"target"} == {"data", "text.gz", "whole"}


def test_a_number_of_a_note_with_another_checksum_is_not_used(tmp_path, interrupt):
    config = DataConfig(input=write_texts(tmp_path, b"Some text. " * 200), **LARGE)
    with in_blocks(block=500):
        note = interrupt(config) / "counts.json"
        value = json.loads(note.read_text())
        value["value"]["counts"]["characters"] += 1
        note.write_text(json.dumps(value))
        data = prepare_data(config, tmp_path / "data", jobs=1)
    assert contents(data.path) == prepare_contents(config, tmp_path / "whole" / "data")


@pytest.mark.parametrize("place", ["", "data", "0123456789abcdef"])
@pytest.mark.parametrize("is_link", [False, True])
def test_what_is_in_the_place_of_a_folder_is_removed_and_not_followed(tmp_path, interrupt, place, is_link):
    config = DataConfig(input=write_texts(tmp_path, b"Some text. " * 200), **LARGE)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.txt").write_text("years of work")
    with in_blocks(block=500):
        folder = interrupt(config)
        path = {"": folder.parent, "data": folder / "data"}.get(place, folder.parent / place)
        if path.exists():
            os.rename(path, tmp_path / "moved")
        path.symlink_to(tmp_path / "elsewhere") if is_link else path.write_text("no folder")
        data = prepare_data(config, tmp_path / "data", jobs=1)
    assert contents(data.path) == prepare_contents(config, tmp_path / "whole" / "data")
    assert contents(tmp_path / "elsewhere") == {"thesis.txt": b"years of work"}
    assert not list(tmp_path.glob(".data*"))


def test_foreign_files_are_not_published(tmp_path, interrupt):
    config = DataConfig(input=write_texts(tmp_path, b"Some text. " * 200), **LARGE)
    with in_blocks(block=500):
        folder = interrupt(config)
        for name in ("train-00000-of-00009.tfrecord", "thesis.txt"):
            (folder / "data" / name).write_text("foreign")
        data = prepare_data(config, tmp_path / "data", jobs=1)
    assert contents(data.path) == prepare_contents(config, tmp_path / "whole" / "data")


@pytest.mark.parametrize("change", ["settings", "text", "nothing"])
def test_what_was_begun_with_other_settings_is_not_gone_on_with(tmp_path, monkeypatch, capsys, change):
    (path,) = write_texts(tmp_path, b"Some text. " * 200)
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
            write_texts(tmp_path, b"Other text " * 200)
        capsys.readouterr()
        data = prepare_data(config, tmp_path / "data", jobs=1)
    assert ("starting from scratch" in capsys.readouterr().err) == (change != "nothing")
    assert contents(data.path) == prepare_contents(config, tmp_path / "whole" / "data")
    assert names(tmp_path) == ["data", "text0.txt", "whole"]


def test_a_text_that_changes_while_it_is_read_is_one_error(tmp_path, monkeypatch):
    (path,) = write_texts(tmp_path, b"Some text. " * 200)
    write = tfrecord_writer.write_records
    for change in (b"Some text, " * 200, b"Some", b"Smoe text. " * 200):
        write_texts(tmp_path, b"Some text. " * 200)

        def changing(target, *rest, change=change):
            write_texts(tmp_path, change)
            return write(target, *rest)

        monkeypatch.setattr(tfrecord_writer, "write_records", changing)
        with in_blocks(block=500), pytest.raises(UserError, match=r"changed while it was read|vocabulary"):
            prepare_data(DataConfig(input=(path,), **LARGE), tmp_path / "data", jobs=1)
        assert not (tmp_path / "data").exists()


def test_a_killed_command_goes_on(tmp_path):
    line = "The quick brown fox jumps over the lazy dog 0123456789.\n"
    path = tmp_path / "text.txt"
    path.write_text(line * 620_000)  # more than is prepared in memory
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
    config = DataConfig(input=write_texts(tmp_path, b"Some text. " * 200), **LARGE)
    with in_blocks(block=500):
        partial = tmp_path / ".data.partial"
        found = corpora.find_inputs(config)
        met = pytest.raises(UserError, match=rf"another process is preparing this folder \(process {os.getpid()} on")
        with staging.open_staging(partial, found, config, Pool(1)), met:
            prepare_data(config, tmp_path / "data", jobs=1)
        prepare_data(config, tmp_path / "data", jobs=1)
    assert names(tmp_path) == ["data", "text0.txt"]


def test_overwrite_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    config = DataConfig(input=write_texts(tmp_path, b"Some text. " * 200), **LARGE)
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
    config = DataConfig(input=write_texts(tmp_path, b"Some text. " * 200), **LARGE)
    write = sharding.write_shards

    def writing(*args, **how):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "thesis.txt").write_text("years of work")
        return write(*args, **how)

    monkeypatch.setattr(sharding, "write_shards", writing)
    with in_blocks(block=500, small=small), pytest.raises(UserError, match=r"data: (exists|--overwrite would remove)"):
        prepare_data(config, tmp_path / "data", jobs=1, overwrite=overwrite)
    assert contents(tmp_path / "data") == {"thesis.txt": b"years of work"}
