"""Reads a text that may exceed memory in blocks, with the same result as reading it at once.

Blocks are read in any order, which requires uncompressed files in an encoding that can be decoded from the middle, such
as UTF-8. `write_plain_file` first converts any other input (a compressed file, a pipe, UTF-16, ...) to such a file.
"""

from __future__ import annotations

import bisect
import codecs
import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.errors import UserError
from tfcharrnn.preparation import corpora, input_files, notes
from tfcharrnn.preparation.corpora import InputFile, Source
from tfcharrnn.preparation.notes import FileContent

# largest size of a block in bytes
BLOCK_BYTES = 2**22
# a newline to end a block at is first searched for in this many bytes at its end
_TAIL_BYTES = 2**12
# encodings in which every character up to U+007F is a single byte, which occurs in no other character
_STATELESS = re.compile(r"utf-8|ascii|iso8859-\d+|cp125\d|koi8-\w")
# codecs whose incremental decoder gives another text
_NOT_INCREMENTAL = ("punycode", "idna")
# blocks kept in memory by a `LazyText`: overlapping sequences go back into the previous one
_CACHED_BLOCKS = 2


@dataclasses.dataclass(frozen=True)
class TextBlock:
    """A part of a plain file that is read at once.

    Attributes:
        path: the file.
        label: the file's name in error messages.
        encoding: the file's encoding.
        start: offset of its first byte.
        end: offset after its last byte.
        newline: whether a newline is added, since another file follows.
    """

    path: str
    label: str
    encoding: str
    start: int
    end: int
    newline: bool

    def read(self, config: DataConfig) -> str:
        """Reads its text, normalised.

        Raises:
            UserError: the file cannot be read, is not in its encoding, or has become shorter.
        """
        with input_files.report_input_errors(self.label), open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.end - self.start)
        if len(data) < self.end - self.start:
            raise changed_error(self.label)
        with corpora.report_decode_errors(self.encoding, self.label, self.end):
            text = data.decode(self.encoding)
        if not self.start:
            text = text.removeprefix("\ufeff")
        return corpora.normalise(text + "\n" * self.newline, config)


class LazyText:
    """A text, or a part of one, whose blocks are read when needed. Like a `str`, it has a length and can be sliced."""

    def __init__(self, blocks: Sequence[TextBlock], bounds: Sequence[int], config: DataConfig, start: int, stop: int):
        """Creates the text without reading it.

        Args:
            blocks: the blocks that contain it.
            bounds: position in the whole text of the start of each block and of the end of the last, in characters.
            config: how the blocks are normalised.
            start: position of its first character in the whole text.
            stop: position after its last character.
        """
        self._blocks, self._bounds, self._config = blocks, bounds, config
        self._start, self._stop = start, stop
        self._cache: dict[int, str] = {}

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, part: slice) -> str:
        """Reads a slice with a step of 1.

        Raises:
            UserError: a file cannot be read, or has changed.
        """
        start, stop = (self._start + position for position in part.indices(len(self))[:2])
        pieces = []
        for index in range(bisect.bisect_right(self._bounds, start) - 1, len(self._blocks)):
            block_start = self._bounds[index]
            if block_start >= stop:
                break
            pieces.append(self._read(index)[max(0, start - block_start) : stop - block_start])
        return "".join(pieces)

    def part(self, start: int, stop: int) -> LazyText:
        """Returns a part of it, with only the blocks that the part needs."""
        start, stop = self._start + start, self._start + stop
        first = max(0, bisect.bisect_right(self._bounds, start) - 1)
        last = max(first, bisect.bisect_left(self._bounds, stop))
        return LazyText(self._blocks[first:last], self._bounds[first : last + 1], self._config, start, stop)

    def _read(self, index: int) -> str:
        if index not in self._cache:
            text = self._blocks[index].read(self._config)
            if len(text) != self._bounds[index + 1] - self._bounds[index]:
                raise changed_error(self._blocks[index].label)
            if len(self._cache) == _CACHED_BLOCKS:
                del self._cache[min(self._cache)]
            self._cache[index] = text
        return self._cache[index]


def changed_error(label: str) -> UserError:
    """The error for a file that changed during preparation."""
    return UserError(f"{label}: changed while it was read; prepare it again once it is complete")


def divide_file(file: InputFile, config: DataConfig, newline: bool) -> list[TextBlock]:
    """Divides a plain file into blocks.

    A block ends after a newline if it contains one, else after a space, else between two characters that are
    normalised in the same way separately as together.

    Args:
        file: the file.
        config: how the text is normalised.
        newline: whether a newline is added at the end, since another file follows.

    Raises:
        UserError: the file cannot be read.
    """
    bounds = [0]
    with input_files.report_input_errors(file.label), open(file.path, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        while size - bounds[-1] > BLOCK_BYTES:
            width = min(_TAIL_BYTES, BLOCK_BYTES)
            opened.seek(bounds[-1] + BLOCK_BYTES - width)
            end = _find_line_end(opened.read(width))
            if not end:
                width = BLOCK_BYTES
                opened.seek(bounds[-1])
                data = opened.read(width + 1)[:width]
                end = _find_line_end(data) or _find_block_end(data, file.encoding, config)
            bounds.append(bounds[-1] + BLOCK_BYTES - width + end)
    bounds.append(size)
    return [
        TextBlock(file.path, file.label, file.encoding, start, end, newline and index == len(bounds) - 2)
        for index, (start, end) in enumerate(itertools.pairwise(bounds))
    ]


def _find_line_end(data: bytes) -> int:
    """Returns the offset after the last newline, or 0."""
    return data.rfind(b"\n") + 1


def _find_block_end(data: bytes, encoding: str, config: DataConfig) -> int:
    """Returns where a block without a newline ends: after a space, else between two characters."""
    if b" " in data:
        return data.rfind(b" ") + 1
    end = len(data) - data.endswith(b"\r")
    if codecs.lookup(encoding).name == "utf-8":
        for back in range(1, min(4, end) + 1):  # the last character may be incomplete; its first byte is not 10xxxxxx
            if data[end - back] & 0xC0 != 0x80:
                end -= back
                break
    end = end or len(data)
    if config.lowercase:
        tail = data[max(0, end - _TAIL_BYTES) : end].decode(encoding, "ignore")
        for position in range(len(tail) - 1, 0, -1):
            if _determines_sigma(tail[position - 1]) and _determines_sigma(tail[position]):
                return end - len(tail[position:].encode(encoding))
    return end


def _determines_sigma(character: str) -> bool:
    """Whether this character alone determines the lower case of a sigma beside it, whatever is on its other side.

    A sigma at the end of a word has a lower case of its own. A letter continues the word and most other characters end
    it, but a few, such as apostrophes, do neither.
    """
    within, final = "\N{GREEK SMALL LETTER SIGMA}", "\N{GREEK SMALL LETTER FINAL SIGMA}"
    continues, ends = f"aΣ{character}".lower()[1] == within, f"aΣ{character}a".lower()[1] == final
    return character != "Σ" and (continues or ends)


def is_plain(file: InputFile) -> bool:
    """Whether the file can be read in blocks as it is.

    Raises:
        ConfigError: the encoding is unknown.
        UserError: the file cannot be read.
    """
    with input_files.report_input_errors(file.label):
        return not file.member and input_files.is_uncompressed_file(file.path) and _is_stateless(file.encoding)


def write_plain_file(file: InputFile, path: Path) -> tuple[Source, str, FileContent]:
    """Writes the text of a compressed file, a pipe, or a file in a stateful encoding as a plain file.

    Args:
        file: the input.
        path: the file to make.

    Returns:
        The input as a source, and the encoding and the content of the new file.

    Raises:
        UserError: the input cannot be read or is not in its encoding, or the write fails.
    """
    keeps_encoding = _is_stateless(file.encoding)
    with input_files.open_decompressed(file.path, file.member) as (opened, hashing), files.create_file(path) as write:
        pieces: Iterator[bytes] = iter(lambda: opened.read(BLOCK_BYTES), b"")
        first = next(pieces, b"")
        if not first:
            raise corpora.empty_file_error(file.label)
        pieces = itertools.chain([first], pieces)
        for data in pieces if keeps_encoding else _recode(pieces, file):
            write(data)
    source = Source(file.name, hashing.size, hashing.sha256)
    return source, file.encoding if keeps_encoding else "utf-8", notes.describe_file(path)


def _is_stateless(encoding: str) -> bool:
    """Whether a text in this encoding can be decoded from the middle.

    Raises:
        ConfigError: the encoding is unknown.
    """
    with corpora.report_decode_errors(encoding, ""):
        return _STATELESS.fullmatch(codecs.lookup(encoding).name) is not None


def _recode(pieces: Iterator[bytes], file: InputFile) -> Iterator[bytes]:
    """Converts the content of a file to UTF-8."""
    with corpora.report_decode_errors(file.encoding, file.label):
        codec = codecs.lookup(file.encoding)
        "".encode(file.encoding)  # rejects codecs that are not text encodings
    if codec.incrementaldecoder is None or codec.name in _NOT_INCREMENTAL:
        yield corpora.decode(b"".join(pieces), file.encoding, file.label).encode()
        return
    decoder = codec.incrementaldecoder("strict")
    read = characters = 0
    for data in itertools.chain(pieces, [b""]):
        read += len(data)
        with corpora.report_decode_errors(file.encoding, file.label, read, characters):
            text = decoder.decode(data, not data)
            encoded = text.encode()  # rejects lone surrogates, which some codecs let through
        characters += len(text)
        yield encoded
