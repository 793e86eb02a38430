"""A text that may be larger than memory: read in blocks, the same as in one piece.

What can be read from any place, as plain files in UTF-8 can, is. Anything else (what is packed, a pipe, an encoding in
which a byte means nothing by itself) is first written as such a file; see `as_plain_file`.
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
from tfcharrnn.preparation import corpora, input_files
from tfcharrnn.preparation.corpora import Input, Source

# bytes of a file that are read together
BLOCK = 2**22
# at the end of a block its last newline is looked for in so many bytes, and if there is none in all of them
_NEAR = 2**12
# encodings in which every character up to U+007F is its one byte, and that byte is nothing else
_ANYWHERE = re.compile(r"utf-8|ascii|iso8859-\d+|cp125\d|koi8-\w")
# codecs that give something else for a text in pieces
_ONE_PIECE = ("punycode", "idna")


@dataclasses.dataclass(frozen=True)
class Block:
    """A piece of a plain file.

    Attributes:
        path: of the file.
        label: by which errors name it.
        encoding: the file's.
        start: its first byte.
        end: the byte after its last one.
        joint: another file follows, after a newline.
    """

    path: str
    label: str
    encoding: str
    start: int
    end: int
    joint: bool

    def read(self, config: DataConfig) -> str:
        """Its text, normalised.

        Raises:
            UserError: the file cannot be read, or is not in its encoding.
        """
        with input_files.reading(self.label), open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.end - self.start)
        if len(data) < self.end - self.start:
            raise changed(self.label)
        with corpora.decoding(self.encoding, self.label, self.end):
            text = data.decode(self.encoding)
        if not self.start:
            text = text.removeprefix("\ufeff")
        return corpora.normalise(text + "\n" * self.joint, config)


class BlockText:
    """A text in blocks, of which only those are read that are asked for. Like a `str` it has a length and slices."""

    def __init__(self, blocks: Sequence[Block], bounds: Sequence[int], config: DataConfig, span: tuple[int, int]):
        """Takes a part of a text.

        Args:
            blocks: those that the part touches.
            bounds: the characters of the text before each of them and after the last.
            config: how they are normalised.
            span: the part's first character, and the one after its last.
        """
        self._blocks, self._bounds, self._config, self._span = blocks, bounds, config, span
        self._kept: dict[int, str] = {}

    def __len__(self) -> int:
        return self._span[1] - self._span[0]

    def __getitem__(self, part: slice) -> str:
        """Some characters; slices of the end, or with a step, are not for a text of this size.

        Raises:
            UserError: a file cannot be read, or has changed.
        """
        start, stop = (self._span[0] + place for place in part.indices(len(self))[:2])
        pieces = []
        for index in range(bisect.bisect_right(self._bounds, start) - 1, len(self._blocks)):
            before = self._bounds[index]
            if before >= stop:
                break
            pieces.append(self._read(index)[max(0, start - before) : stop - before])
        return "".join(pieces)

    def part(self, start: int, stop: int) -> BlockText:
        """A part of it that has no more blocks than it needs."""
        start, stop = self._span[0] + start, self._span[0] + stop
        first = max(0, bisect.bisect_right(self._bounds, start) - 1)
        last = max(first, bisect.bisect_left(self._bounds, stop))
        return BlockText(self._blocks[first:last], self._bounds[first : last + 1], self._config, (start, stop))

    def _read(self, index: int) -> str:
        if index not in self._kept:
            text = self._blocks[index].read(self._config)
            if len(text) != self._bounds[index + 1] - self._bounds[index]:
                raise changed(self._blocks[index].label)
            if len(self._kept) == 2:  # sequences that overlap go back into the block before
                del self._kept[min(self._kept)]
            self._kept[index] = text
        return self._kept[index]


def part_of(text: str | BlockText, start: int, stop: int) -> str | BlockText:
    """A part of a text, which in blocks is not read yet."""
    return text[start:stop] if isinstance(text, str) else text.part(start, stop)


def changed(label: str) -> UserError:
    """What to tell of a file that is not as it was."""
    return UserError(f"{label}: changed while it was read; prepare it again once it is complete")


def can_be_read_anywhere(encoding: str) -> bool:
    """Whether a text in this encoding can be decoded from the middle.

    Raises:
        ConfigError: an unknown encoding.
    """
    with corpora.decoding(encoding, ""):
        return _ANYWHERE.fullmatch(codecs.lookup(encoding).name) is not None


def blocks_of(file: Input, config: DataConfig, joint: bool) -> list[Block]:
    """Divides a plain file into blocks.

    A block ends with a newline if it has one, else with a space, else between characters that are normalised alike
    apart and together.

    Args:
        file: the file.
        config: what is done with the text.
        joint: another file follows.

    Raises:
        UserError: it cannot be read.
    """
    ends = [0]
    with input_files.reading(file.label), open(file.path, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        while size - ends[-1] > BLOCK:
            width = min(_NEAR, BLOCK)
            opened.seek(ends[-1] + BLOCK - width)
            end = _newline_before_end(opened.read(width))
            if not end:
                width = BLOCK
                opened.seek(ends[-1])
                end = _newline_before_end(data := opened.read(width + 1)[:width]) or _end(data, file.encoding, config)
            ends.append(ends[-1] + BLOCK - width + end)
    ends.append(size)
    last = len(ends) - 2
    return [
        Block(file.path, file.label, file.encoding, ends[index], ends[index + 1], joint and index == last)
        for index in range(last + 1)
    ]


def _newline_before_end(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _end(data: bytes, encoding: str, config: DataConfig) -> int:
    """Where a block without a newline ends: after a space, else between two characters."""
    if b" " in data:
        return data.rfind(b" ") + 1
    end = len(data) - data.endswith(b"\r")
    if codecs.lookup(encoding).name == "utf-8":
        for back in range(1, min(4, end) + 1):  # the last character may be cut; it begins with no byte of 10xxxxxx
            if data[end - back] & 0xC0 != 0x80:
                end -= back
                break
    end = end or len(data)
    if config.lowercase:
        tail = data[max(0, end - _NEAR) : end].decode(encoding, "ignore")
        for place in range(len(tail) - 1, 0, -1):
            if _settles(tail[place - 1]) and _settles(tail[place]):
                return end - len(tail[place:].encode(encoding))
    return end


def _settles(character: str) -> bool:
    """Whether the lower case of a sigma on one side of a character is the same whatever stands on the other side.

    A sigma at the end of a word has a lower case of its own. A letter says that the word goes on, another character
    that it does not, and a few, such as apostrophes, say neither.
    """
    within, last = "\N{GREEK SMALL LETTER SIGMA}", "\N{GREEK SMALL LETTER FINAL SIGMA}"
    goes_on, ends = f"aΣ{character}".lower()[1] == within, f"aΣ{character}a".lower()[1] == last
    return character != "Σ" and (goes_on or ends)


def is_plain(file: Input) -> bool:
    """Whether a file can be read in blocks as it is.

    Raises:
        UserError: it cannot be read.
    """
    with input_files.reading(file.label):
        return not file.member and input_files.is_unpacked_file(file.path) and can_be_read_anywhere(file.encoding)


def as_plain_file(file: Input, path: Path) -> tuple[Source, str]:
    """Writes the text of a file that is not plain as one that is.

    Args:
        file: packed, a pipe, or in an encoding that must be decoded from its beginning.
        path: of the file to make.

    Returns:
        What was read, as it is on disk, and the encoding of what was written.

    Raises:
        UserError: it cannot be read or is not in its encoding, or the disk refuses.
    """
    as_it_is = can_be_read_anywhere(file.encoding)
    with input_files.unpacked(file.path, file.member) as (opened, read), files.new_file(path) as write:
        pieces: Iterator[bytes] = iter(lambda: opened.read(BLOCK), b"")
        first = next(pieces, b"")
        if not first:
            raise corpora.empty(file.label)
        pieces = itertools.chain([first], pieces)
        for data in pieces if as_it_is else _in_utf8(pieces, file):
            write(data)
    return Source(file.name, read.size, read.sha256), file.encoding if as_it_is else "utf-8"


def _in_utf8(pieces: Iterator[bytes], file: Input) -> Iterator[bytes]:
    """The text of a file in UTF-8."""
    with corpora.decoding(file.encoding, file.label):
        codec = codecs.lookup(file.encoding)
        "".encode(file.encoding)  # refuses codecs that are not of text
    if codec.incrementaldecoder is None or codec.name in _ONE_PIECE:
        yield corpora.decode(b"".join(pieces), file.encoding, file.label).encode()
        return
    decoder = codec.incrementaldecoder("strict")
    read = characters = 0
    for data in itertools.chain(pieces, [b""]):
        read += len(data)
        with corpora.decoding(file.encoding, file.label, read, characters):
            text = decoder.decode(data, not data)
            encoded = text.encode()  # refuses lone surrogates, which some codecs let through
        characters += len(text)
        yield encoded
