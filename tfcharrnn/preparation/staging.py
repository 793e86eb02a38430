"""The folder beside a data folder in which a large text is prepared, and found again after an interruption.

It is named after what is prepared, so that what one set of settings and files left is never taken for another's:

    .NAME.partial/KEY/plan.json            the settings and the files, for a person to read
    .NAME.partial/KEY/input-00000.text     a file that was packed, or had to be decoded from its beginning
    .NAME.partial/KEY/counts.json          what the first pass found
    .NAME.partial/KEY/data/                the data folder
    .NAME.partial/KEY/train-...json        for each shard that is whole there, what was written
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfcharrnn import config as config_lib
from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.errors import UserError, warn
from tfcharrnn.preparation import corpora, counting, input_files, text_blocks
from tfcharrnn.preparation.corpora import Input, Source
from tfcharrnn.preparation.line_blocks import FoundLines, LineBlock, WrittenLines, lengths_of
from tfcharrnn.preparation.process_pool import Pool
from tfcharrnn.preparation.sharding import Content
from tfcharrnn.preparation.text_blocks import Block, BlockText

# changed when what stands in such a folder is another thing
_FORMAT = 1
# up to so many bytes a text is prepared by this process alone, and if it is not packed in memory
SMALL = 2**25
# digits of a folder's name
_KEY = 16
# seconds after which nobody goes on with what was interrupted in a cache
_OLD = 7 * 24 * 3600


def is_large(found: Sequence[Input]) -> bool:
    """Whether a text is to be prepared here, because it is, or may be, too large for memory.

    What cannot be read is left to those who will read it, and will tell.
    """
    size = 0
    for file in found:
        try:
            size += os.stat(file.path).st_size
            if file.member or not input_files.is_unpacked_file(file.path):
                return True
        except (OSError, ValueError):
            return False
    return size > SMALL


class Workshop:
    """A place to prepare a text, given by `opened`.

    Attributes:
        data: the data folder in it.
        notes: the folder that notes which shards are whole.
        pool: who do the work.
        resumable: what is there is worth to be kept after an error.
    """

    def __init__(self, folder: Path, found: Sequence[Input], config: DataConfig, pool: Pool):
        self.data, self.notes = folder / "data", folder
        self.pool, self.resumable, self._small = pool, False, False
        self._found, self._config = found, config
        self._states = [_state(file) for file in found]

    @property
    def splits_file(self) -> Path:
        """Where to keep which part of the data each line goes to."""
        return self.notes / "splits"

    def content(self) -> Content:
        """What the text holds: found before, or by a first pass now.

        Raises:
            UserError: a file cannot be read, is not in its encoding, or leaves no text; or the disk refuses.
        """
        kept = self.notes / "counts.json"
        if not kept.exists() or not self._has_files_of(json.loads(kept.read_bytes())):
            files.write_bytes(kept, json.dumps(self._count()).encode())
        value = json.loads(kept.read_bytes())
        sources = tuple(Source(**source) for source in value["sources"])
        name = corpora.joined_name([source.name for source in sources])
        if not value["characters"]:
            raise corpora.nothing_left(name)
        self._small = value["bytes"] <= SMALL
        if self._small:
            self.pool = Pool(1)
        content = Content(name, sources, value["characters"], value["code_points"])
        blocks = [self._block(value["files"], *place) for place in value["blocks"]]
        if self._config.layout != "lines":
            bounds = list(itertools.accumulate(value["counts"], initial=0))
            return dataclasses.replace(content, text=BlockText(blocks, bounds, self._config, (0, bounds[-1])))
        line_blocks: list[LineBlock] = [FoundLines(self._lines_file, *place) for place in value["places"]]
        if not line_blocks:
            line_blocks += [WrittenLines(block, block is blocks[-1], self._config) for block in blocks]
        return dataclasses.replace(
            content,
            lines=line_blocks,
            line_counts=value["counts"],
            line_characters=value["line_characters"],
            dropped=value["dropped"],
        )

    def _has_files_of(self, value: dict[str, Any]) -> bool:
        """Whether all is there that the first pass wrote; some of it may be removed already."""
        plain = [self._plain(index) for index, (written, _) in enumerate(value["files"]) if written]
        found = [self._lines_file, lengths_of(self._lines_file)] if value["places"] else []
        return all(path.exists() for path in plain + found)

    def keep(self) -> None:
        """Says that what is there is worth to be kept after an error, if the text is not small."""
        self.resumable = not self._small

    def is_worth_keeping(self, error: BaseException) -> bool:
        """Whether what is there stays after an error, for the same command to go on from there."""
        if self._small or not all(map(_can_be_read_again, self._states)):
            return False
        if self.resumable or any(self.notes.glob("*.tfrecord.json")):
            return True
        if isinstance(error, UserError):  # which may be of the text, and the same the next time
            return False
        unpacked = [note.with_suffix(".text") for note in self.notes.glob("input-*.json")]
        size = sum(path.stat().st_size for path in unpacked if path.exists())
        return size > SMALL or (self.notes / "counts.json").exists()

    def check_unchanged(self) -> None:
        """Checks that the files are what they were when the work began.

        Raises:
            UserError: one has changed.
        """
        for file, state in zip(self._found, self._states, strict=True):
            if _state(file) != state:
                raise text_blocks.changed(file.label)

    def publish(self, path: Path, *, overwrite: bool) -> None:
        """Puts the data folder under its name.

        Args:
            path: the final place.
            overwrite: put it in the place of one that stands there.

        Raises:
            UserError: a file of the text has changed, `path` exists and `overwrite` is false, or the disk refuses.
        """
        self.check_unchanged()
        try:
            for file in self.data.glob(".*"):  # what a process that was killed began
                file.unlink()
            files.publish(self.data, path, overwrite=overwrite)
        except OSError as error:
            raise files.cannot_write(path, error) from error

    @property
    def _lines_file(self) -> Path:
        return self.notes / "lines"

    def _plain(self, file: int) -> Path:
        return self.notes / f"input-{file:05d}.text"

    def _block(self, plain: list[tuple[bool, str]], file: int, start: int, end: int, joint: bool) -> Block:
        written, encoding = plain[file]
        path = str(self._plain(file)) if written else self._found[file].path
        return Block(path, self._found[file].label, encoding, start, end, joint)

    def _count(self) -> dict[str, Any]:
        """The first pass: what `counts.json` says."""
        made = self._make_plain()
        places, is_plain = [], [source is None for source, _ in made]
        for index, file in enumerate(self._found):
            encoding = made[index][1]
            path = file.path if is_plain[index] else str(self._plain(index))
            with input_files.reading(file.label):
                if not os.stat(path).st_size:
                    raise corpora.empty(file.label)
            file = dataclasses.replace(file, path=path, encoding=encoding)
            for block in text_blocks.blocks_of(file, self._config, joint=index < len(self._found) - 1):
                places.append((index, block.start, block.end, block.joint))
        plain = [(not is_plain[index], encoding) for index, (_, encoding) in enumerate(made)]
        blocks = [self._block(plain, *place) for place in places]
        counted = counting.count(blocks, self._config, self.pool, self._lines_file)
        summed = iter(counting.sources(list(itertools.compress(self._found, is_plain)), self.pool))
        return {
            "sources": [dataclasses.asdict(source or next(summed)) for source, _ in made],
            "files": plain,
            "bytes": sum(block.end - block.start for block in blocks),
            "blocks": places,
            **dataclasses.asdict(counted),
        }

    def _make_plain(self) -> list[tuple[Source | None, str]]:
        """Writes what is not plain as it must be; gives for each file what was read, if it was, and its encoding."""
        made: list[tuple[Source | None, str]] = []
        notes = [self.notes / f"input-{index:05d}.json" for index in range(len(self._found))]
        todo = [
            index
            for index, file in enumerate(self._found)
            if not text_blocks.is_plain(file) and not (notes[index].exists() and self._plain(index).exists())
        ]
        # a pipe without a name is one of this process's descriptors, which the pool's have not
        pipes = [index for index in todo if not is_file(self._found[index])]
        rest = [index for index in todo if index not in pipes]
        for indices, pool in ((pipes, Pool(1, quiet=self.pool.quiet)), (rest, self.pool)):
            calls = [
                functools.partial(text_blocks.as_plain_file, self._found[index], self._plain(index))
                for index in indices
            ]
            sizes = [os.stat(self._found[index].path).st_size for index in indices]
            for index, (source, encoding) in zip(indices, pool.run(calls, "unpacking", sizes), strict=True):
                files.write_json(notes[index], [dataclasses.asdict(source), encoding])
        for file, note in zip(self._found, notes, strict=True):
            if note.exists():
                values, encoding = files.read_json(note)
                made.append((Source(**values), encoding))
            else:
                made.append((None, file.encoding))
        return made


@contextlib.contextmanager
def opened(
    partial: Path, found: Sequence[Input], config: DataConfig, pool: Pool, *, wait: bool = False
) -> Iterator[Workshop]:
    """Gives the place to prepare a text, new or as an interruption left it, and removes it at the end.

    After an error it stays if there is much in it that need not be done again.

    Args:
        partial: the folder.
        found: the files of the text.
        config: how it is cut.
        pool: who do the work; it is closed at the end.
        wait: for another process that is at work there, instead of an error.

    Raises:
        UserError: another process is at work there, or the disk refuses.
    """
    locked = lock_of(partial)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        descriptor = files.lock(locked, "prepare data", wait=wait)
    except BlockingIOError as error:
        raise UserError(
            f"{partial}: another process prepares this folder ({error}); wait for it, or choose another --output_dir"
        ) from None
    except OSError as error:
        raise files.cannot_write(partial, error) from error
    try:
        key = key_of(found, config)
        _discard_others(partial, key)
        folder = partial / key
        try:
            (folder / "data").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.cannot_write(partial, error) from error
        shop = Workshop(folder, found, config, pool)
        try:
            plan = {"settings": config_lib.to_dict(config), "files": [file.path for file in found]}
            files.write_json(folder / "plan.json", plan)
            for file in folder.glob(".*.tmp"):  # what a process that was killed began
                file.unlink()
            yield shop
        except BaseException as error:
            if shop.is_worth_keeping(error):
                warn(f"{partial}: keeps what was done; the same command goes on from there")
            else:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(partial, ignore_errors=True)
    finally:
        pool.close()
        files.unlock(locked, descriptor)


def lock_of(partial: Path) -> Path:
    """The file that is locked while a process is at work in such a folder."""
    return partial.with_name(f"{partial.name}.lock")


def remove_old(cache_dir: Path) -> None:
    """Removes from a cache what was begun long ago and is not gone on with, as after a change of settings."""
    for partial in cache_dir.glob(".*.partial"):
        with contextlib.suppress(OSError):  # another process may remove it, too, or be at work there
            newest = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
            if time.time() - newest < _OLD:
                continue
            descriptor = files.lock(lock_of(partial), "prepare data")
            try:
                shutil.rmtree(partial, ignore_errors=True)
            finally:
                files.unlock(lock_of(partial), descriptor)


def key_of(found: Sequence[Input], config: DataConfig) -> str:
    """A name for what is prepared of these files with these settings, as long as no file changes."""
    settings = {key: value for key, value in config_lib.to_dict(config).items() if key not in ("input", "corpus")}
    described = [_FORMAT, text_blocks.BLOCK, settings, list(map(_state, found))]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:_KEY]


def _can_be_read_again(state: list[Any]) -> bool:
    return len(state) > 2


def is_file(file: Input) -> bool:
    """Whether this is no pipe or device, and can be read again.

    Raises:
        UserError: it cannot be read.
    """
    with input_files.reading(file.label):
        return stat.S_ISREG(os.stat(file.path).st_mode)


def _state(file: Input) -> list[Any]:
    """What says that a file is the same as before; of a pipe, nothing does."""
    if not is_file(file):
        return [file.path, os.getpid()]
    with input_files.reading(file.label):
        status = os.stat(file.path)
    return [os.path.abspath(file.path), file.name, file.member, status.st_size, status.st_mtime_ns]


def _discard_others(partial: Path, key: str) -> None:
    """Removes what was begun with other settings or files."""
    if not partial.is_dir():
        return
    for folder in partial.iterdir():
        if re.fullmatch(rf"[0-9a-f]{{{_KEY}}}", folder.name) and folder.name != key:
            warn(f"{partial}: what is in it was begun with other settings or another text; it begins anew")
            shutil.rmtree(folder, ignore_errors=True)
