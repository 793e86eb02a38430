"""The staging folder beside a data folder, where a large text is prepared and an interrupted preparation resumes.

Its content is in a subfolder whose name, KEY, is a hash of the settings and the state of the input files, so that the
work of one preparation is never taken for another's:

    .NAME.partial/KEY/plan.json            the settings and the files, for people to read
    .NAME.partial/KEY/input-00000.text     an input converted to a plain file
    .NAME.partial/KEY/input-00000.json     a note on its source, once it is complete
    .NAME.partial/KEY/counts.json          a note with the results of the first pass
    .NAME.partial/KEY/data/                the data folder
    .NAME.partial/KEY/train-...json        a note on each shard, once it is complete

A note contains its checksum, and those of the files that it describes. What a missing or damaged note describes is made
again, and so is a damaged file.
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
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfcharrnn import config as config_lib
from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data.dataset import join_names
from tfcharrnn.errors import UserError, warn
from tfcharrnn.preparation import corpora, counting, input_files, line_blocks, notes, remote_files, text_blocks
from tfcharrnn.preparation.corpora import InputFile, Source
from tfcharrnn.preparation.counting import CountedText, TextCounts
from tfcharrnn.preparation.line_blocks import LineBlock, LineSpan, StoredLines, WholeLines
from tfcharrnn.preparation.notes import FileContent, read_note, write_note
from tfcharrnn.preparation.process_pool import Pool
from tfcharrnn.preparation.text_blocks import LazyText, TextBlock

# to be increased when the content of a staging folder changes its meaning
_FORMAT = 2
# a plain text of up to this many bytes is prepared in memory, by this process alone
SMALL_BYTES = 2**25
# hexadecimal digits of KEY
_KEY_LENGTH = 16
# seconds after which an interrupted preparation in the cache is abandoned
_MAX_AGE = 7 * 24 * 3600


class _PlainFile(NamedTuple):
    """An input as a plain file.

    Attributes:
        source: the input, if it had to be converted; None if it is read as it is.
        encoding: encoding of the plain file.
        size: its size in bytes.
        sha256: its SHA-256 if it was converted; else "".
    """

    source: Source | None
    encoding: str
    size: int
    sha256: str = ""

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> _PlainFile:
        source, encoding, size, sha256 = value
        return cls(source and Source(**source), encoding, size, sha256)

    @property
    def content(self) -> FileContent:
        return FileContent(self.size, self.sha256)


class _BlockSpan(NamedTuple):
    """A block of text: the index of its input, and `start`, `end` and `newline` of its `TextBlock`."""

    file: int
    start: int
    end: int
    newline: bool


@dataclasses.dataclass(frozen=True)
class _FirstPass:
    """Results of the first pass, as in `counts.json`; `line_files` describes the files of `write_lines`, if any."""

    sources: list[Source]
    plain_files: list[_PlainFile]
    blocks: list[_BlockSpan]
    counts: TextCounts
    line_files: list[FileContent]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> _FirstPass:
        counts = TextCounts(**value["counts"])
        counts.line_spans = [LineSpan(*span) for span in counts.line_spans]
        return cls(
            [Source(**source) for source in value["sources"]],
            [_PlainFile.from_json(plain) for plain in value["plain_files"]],
            [_BlockSpan(*block) for block in value["blocks"]],
            counts,
            [FileContent(*content) for content in value["line_files"]],
        )


def is_large(inputs: Sequence[InputFile]) -> bool:
    """Whether a text needs a staging folder, because it is, or may be, too large for memory.

    Returns false if a file cannot be read, since reading it will raise the error.
    """
    size = 0
    for file in inputs:
        if remote_files.is_remote(file.path):
            return True
        try:
            size += os.stat(file.path).st_size
            if file.member or not input_files.is_uncompressed_file(file.path):
                return True
        except (OSError, ValueError):
            return False
    return size > SMALL_BYTES


class StagingFolder:
    """A folder in which a text is prepared, made by `open_staging`.

    Attributes:
        path: the folder itself, which contains the notes.
        data: the data folder in it.
        splits_file: the file with the split of each line.
        pool: the workers.
    """

    def __init__(self, path: Path, inputs: Sequence[InputFile], config: DataConfig, pool: Pool):
        self.path, self.data, self.splits_file = path, path / "data", path / "splits"
        self.pool = pool
        self._inputs, self._config = inputs, config
        self._states = list(map(_file_state, inputs))
        self._lines_file, self._counts_note = path / "lines", path / "counts.json"
        self._is_small = self._is_resumable = False

    def count_text(self) -> CountedText:
        """Returns the text with the results of the first pass, which is made unless its results are already here.

        Raises:
            UserError: a file cannot be read, is not in its encoding, or leaves no text; or the write fails.
        """
        first_pass = self._read_first_pass()
        if first_pass is None:
            first_pass = self._make_first_pass()
            write_note(self._counts_note, dataclasses.asdict(first_pass))
        counts = first_pass.counts
        name = join_names([source.name for source in first_pass.sources])
        if not counts.characters:
            raise corpora.no_text_error(name)
        self._is_small = sum(plain.size for plain in first_pass.plain_files) <= SMALL_BYTES
        if self._is_small:
            self.pool = Pool(1)
        blocks = [self._text_block(first_pass.plain_files, span) for span in first_pass.blocks]
        text = CountedText(name, tuple(first_pass.sources), counts.characters, counts.code_points)
        if self._config.layout != "lines":
            bounds = list(itertools.accumulate(counts.block_sizes, initial=0))
            return dataclasses.replace(text, text=LazyText(blocks, bounds, self._config, 0, bounds[-1]))
        lines: list[LineBlock] = [StoredLines(self._lines_file, span) for span in counts.line_spans]
        if not lines:
            lines += [WholeLines(block, block is blocks[-1], self._config) for block in blocks]
        return dataclasses.replace(
            text,
            lines=lines,
            line_counts=counts.block_sizes,
            line_characters=counts.line_characters,
            dropped=counts.dropped,
        )

    def mark_resumable(self) -> None:
        """Keeps the folder after an error from now on, unless the text is small."""
        self._is_resumable = not self._is_small

    def is_worth_keeping(self, error: BaseException) -> bool:
        """Whether to keep the folder after an error, so that the same command can resume."""
        if self._is_small or not all(map(_is_rereadable, self._states)):
            return False
        if self._is_resumable or any(self.path.glob("*.tfrecord.json")):
            return True
        if isinstance(error, UserError):  # it may concern the text, and then recurs
            return False
        converted = [note.with_suffix(".text") for note in self.path.glob("input-*.json")]
        size = sum(path.stat().st_size for path in converted if path.exists())
        return size > SMALL_BYTES or self._counts_note.exists()

    def check_unchanged(self) -> None:
        """Checks that the input files are the same as at the start.

        Raises:
            UserError: one has changed.
        """
        for file, state in zip(self._inputs, self._states, strict=True):
            if _file_state(file) != state:
                raise text_blocks.changed_error(file.label)

    def publish(self, path: Path, shards: Collection[str], *, overwrite: bool) -> None:
        """Moves the data folder to its final place.

        Args:
            path: the final place.
            shards: the file names of its shards; whatever else is there is left out.
            overwrite: replace what is there.

        Raises:
            UserError: an input file has changed, `path` exists and `overwrite` is false, or the write fails.
        """
        self.check_unchanged()
        try:
            for file in self.data.iterdir():
                if file.name not in ("dataset.json", "vocab.json", *shards):
                    notes.remove(file)
            files.publish_folder(self.data, path, overwrite=overwrite)
        except OSError as error:
            raise files.write_error(path, error) from error

    def _converted_path(self, index: int) -> Path:
        return self.path / f"input-{index:05d}.text"

    def _text_block(self, plain_files: list[_PlainFile], span: _BlockSpan) -> TextBlock:
        file, plain = self._inputs[span.file], plain_files[span.file]
        path = file.path if plain.source is None else str(self._converted_path(span.file))
        return TextBlock(path, file.label, plain.encoding, span.start, span.end, span.newline)

    def _read_first_pass(self) -> _FirstPass | None:
        """Reads the results of the first pass; returns None if anything it wrote is missing or damaged."""
        first_pass = read_note(self._counts_note, _FirstPass.from_json)
        if first_pass is None:
            return None
        written = {self._converted_path(i): p.content for i, p in enumerate(first_pass.plain_files) if p.source}
        written |= dict(zip(line_blocks.line_paths(self._lines_file), first_pass.line_files, strict=False))
        return first_pass if all(self.are_intact(written)) else None

    def are_intact(self, contents: Mapping[Path, FileContent]) -> list[bool]:
        """Verifies for each of some files that it has this content."""
        calls = [functools.partial(notes.is_intact, path, content) for path, content in contents.items()]
        return list(self.pool.run(calls, "verifying", [content.size for content in contents.values()]))

    def _make_first_pass(self) -> _FirstPass:
        plain_files = self._make_plain_files()
        spans = []
        for index, (file, plain) in enumerate(zip(self._inputs, plain_files, strict=True)):
            if not plain.size:
                raise corpora.empty_file_error(file.label)
            path = file.path if plain.source is None else str(self._converted_path(index))
            file = dataclasses.replace(file, path=path, encoding=plain.encoding)
            for block in text_blocks.divide_file(file, self._config, newline=index < len(self._inputs) - 1):
                spans.append(_BlockSpan(index, block.start, block.end, block.newline))
        blocks = [self._text_block(plain_files, span) for span in spans]
        counts = counting.count_blocks(blocks, self._config, self.pool, self._lines_file)
        unconverted = [file for file, plain in zip(self._inputs, plain_files, strict=True) if plain.source is None]
        hashed = iter(counting.hash_files(unconverted, self.pool))
        sources = [plain.source or next(hashed) for plain in plain_files]
        line_files = map(notes.describe_file, line_blocks.line_paths(self._lines_file) if counts.line_spans else ())
        return _FirstPass(sources, plain_files, spans, counts, list(line_files))

    def _make_plain_files(self) -> list[_PlainFile]:
        """Converts the inputs that are not plain files, unless an earlier attempt did."""
        noted = {i: read_note(self._note_path(i), _PlainFile.from_json) for i in range(len(self._inputs))}
        plain_files = {index: plain for index, plain in noted.items() if plain}
        intact = self.are_intact({self._converted_path(i): plain.content for i, plain in plain_files.items()})
        plain_files = dict(itertools.compress(plain_files.items(), intact))
        pipes: list[int] = []
        others: list[int] = []
        for index, file in enumerate(self._inputs):
            if index in plain_files:
                continue
            if text_blocks.is_plain(file):
                with input_files.report_input_errors(file.label):
                    plain_files[index] = _PlainFile(None, file.encoding, os.stat(file.path).st_size)
            else:
                (others if is_regular_file(file) else pipes).append(index)
        # an unnamed pipe is a file descriptor of this process, which the workers do not have
        for indices, pool in ((pipes, Pool(1, quiet=self.pool.quiet)), (others, self.pool)):
            calls = [
                functools.partial(text_blocks.write_plain_file, self._inputs[index], self._converted_path(index))
                for index in indices
            ]
            sizes = [_get_size(self._inputs[index]) for index in indices]
            for index, (source, encoding, content) in zip(indices, pool.run(calls, "unpacking", sizes), strict=True):
                plain_files[index] = _PlainFile(source, encoding, *content)
                write_note(self._note_path(index), [dataclasses.asdict(source), encoding, *content])
        return [plain_files[index] for index in range(len(self._inputs))]

    def _note_path(self, index: int) -> Path:
        return self.path / f"input-{index:05d}.json"


@contextlib.contextmanager
def open_staging(
    partial: Path, inputs: Sequence[InputFile], config: DataConfig, pool: Pool, *, wait: bool = False
) -> Iterator[StagingFolder]:
    """Opens the staging folder of a text, new or as an interruption left it, and removes it at the end.

    After an error it is kept if that saves the next attempt much work.

    Args:
        partial: the folder.
        inputs: the files of the text.
        config: how the text is cut.
        pool: the workers, stopped at the end.
        wait: wait for another process that uses the folder, instead of raising an error.

    Raises:
        UserError: another process uses the folder, or the write fails.
    """
    lock = lock_path(partial)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        descriptor = files.lock_file(lock, "prepare data", wait=wait)
    except BlockingIOError as error:
        raise UserError(
            f"{partial}: another process is preparing this folder ({error}); "
            "wait for it, or choose another --output_dir"
        ) from None
    except OSError as error:
        raise files.write_error(partial, error) from error
    try:
        key = compute_key(inputs, config)
        folder = partial / key
        try:
            _discard_other_work(partial, key)
            notes.remove_all_but_files(folder, keep="data")
            notes.remove_all_but_files(folder / "data")
        except OSError as error:
            raise files.write_error(partial, error) from error
        staging = StagingFolder(folder, inputs, config, pool)
        try:
            plan = {"settings": config_lib.to_dict(config), "files": [file.label for file in inputs]}
            files.write_json(folder / "plan.json", plan)
            yield staging
        except BaseException as error:
            if staging.is_worth_keeping(error):
                warn(f"{partial}: the work so far is kept; run the same command again to resume")
            else:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(partial, ignore_errors=True)
    finally:
        pool.close()
        files.unlock_file(lock, descriptor)


def lock_path(partial: Path) -> Path:
    """The file that is locked while a process uses the staging folder `partial`."""
    return partial.with_name(f"{partial.name}.lock")


def remove_abandoned(cache_dir: Path) -> None:
    """Removes old staging folders from the cache, such as those of settings that were changed since."""
    for partial in cache_dir.glob(".*.partial"):
        with contextlib.suppress(OSError):  # another process may be removing it or using it
            newest = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
            if time.time() - newest < _MAX_AGE:
                continue
            descriptor = files.lock_file(lock_path(partial), "prepare data")
            try:
                shutil.rmtree(partial, ignore_errors=True)
            finally:
                files.unlock_file(lock_path(partial), descriptor)


def compute_key(inputs: Sequence[InputFile], config: DataConfig) -> str:
    """Returns a hash of the settings and the state of the input files."""
    settings = {key: value for key, value in config_lib.to_dict(config).items() if key not in ("input", "corpus")}
    described = [_FORMAT, text_blocks.BLOCK_BYTES, settings, list(map(_file_state, inputs))]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


def is_regular_file(file: InputFile) -> bool:
    """Whether this is a regular file, not a pipe, device or URL, so that it can be read again.

    Raises:
        UserError: it cannot be read.
    """
    if remote_files.is_remote(file.path):
        return False
    with input_files.report_input_errors(file.label):
        return stat.S_ISREG(os.stat(file.path).st_mode)


def _file_state(file: InputFile) -> list[Any]:
    """Returns what identifies the content of a file without reading it; for a pipe or URL, it differs each time."""
    if not is_regular_file(file):
        return [file.path, os.getpid()]
    with input_files.report_input_errors(file.label):
        status = os.stat(file.path)
    return [os.path.abspath(file.path), file.name, file.member, status.st_size, status.st_mtime_ns]


def _get_size(file: InputFile) -> int:
    """Returns the size of a file for the progress bar; 0 for a URL."""
    return 0 if remote_files.is_remote(file.path) else os.stat(file.path).st_size


def _is_rereadable(state: list[Any]) -> bool:
    return len(state) > 2


def _discard_other_work(partial: Path, key: str) -> None:
    """Removes the work of other settings or files, and whatever is in the place of the folder.

    Raises:
        OSError: it cannot be removed.
    """
    if partial.is_symlink() or not partial.is_dir():
        notes.remove(partial)
        return
    for folder in partial.iterdir():
        if re.fullmatch(rf"[0-9a-f]{{{_KEY_LENGTH}}}", folder.name) and folder.name != key:
            warn(f"{partial}: contains work with other settings or another text; starting from scratch")
            notes.remove(folder)
