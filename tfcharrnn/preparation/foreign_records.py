"""Reads the TFRecord files of other programs: the text that they hold, to be prepared like any other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn import files, untrusted_files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.errors import ConfigError, UserError, first_line
from tfcharrnn.layouts import END, LAYOUTS, PAD, START
from tfcharrnn.preparation.corpora import Corpus, Source

# what no line of the text contains then separates its lines
_SEPARATORS = ("\n", "\x1e", *map(chr, range(0xE000, 0xF900)))
_BYTES_AT_A_TIME = 2**20


class ForeignRecords(NamedTuple):
    """What the records of another program hold.

    Attributes:
        corpus: their text.
        config: the settings with which `prepare_data` makes the same records of it.
    """

    corpus: Corpus
    config: DataConfig


def read_foreign_records(
    paths: Sequence[str | Path], vocabulary: str | Path, settings: dict[str, Any]
) -> ForeignRecords:
    """Reads records that another program wrote, and checks every one.

    A record is a `tf.train.Example` with one int64 feature, `seq`: `<S>` and the characters of a sequence, or of a
    line, whose end may be marked by `</S>` and filled up with `<PAD>`. Records of one length without `</S>` are
    sequences, others are lines.

    Args:
        paths: the TFRecord files, in order, plain or compressed with gzip.
        vocabulary: the file of its symbols, see `untrusted_files.read_vocabulary`.
        settings: the settings of `DataConfig` that are given.

    Raises:
        UserError: a file is missing or damaged, a record is none of the two, or the settings do not suit them.
    """
    symbols = untrusted_files.read_vocabulary(vocabulary)
    if START not in symbols:
        raise UserError(f"{vocabulary}: has no {START}, with which every record begins; add it under its id")
    texts: list[str] = []
    for path in map(Path, paths):
        for ids in _read_sequences(path, len(symbols)):
            texts.append(_decode(ids, symbols, f"{path}: record {len(texts) + 1}"))
    if not texts:
        raise UserError(f"{paths[0]}: has no records")
    is_lines = END in symbols or len({len(text) for text in texts}) > 1
    for name in ("lowercase", "drop_digits", "drop_chars", "encoding"):
        if settings.get(name) not in (None, False, "", "utf-8"):
            raise ConfigError(f"--{name}: the text of records is taken as it is; leave the flag out")
    if is_lines:
        present = set().union(*texts)
        separator = next(character for character in _SEPARATORS if character not in present)
        config = _make_lines_config(texts, settings, separator)
        text = separator.join([*texts, ""])
    else:
        config = _make_sequences_config(texts, settings)
        text = _join_sequences(texts, config)
    sources = tuple(_describe(Path(path)) for path in (*paths, vocabulary))
    names = "+".join(source.name for source in sources[:-1])
    return ForeignRecords(Corpus(names, text, sources), config)


def _read_sequences(path: Path, vocabulary_size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yields the ids of each record of a file."""
    from tfcharrnn.data import tfrecord_reader

    try:
        files.regular_file_size(path)  # a pipe would never end
        with open(path, "rb") as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    yield from tfrecord_reader.iterate_sequences(path, vocabulary_size, "gzip" if is_compressed else "none")


def _decode(ids: npt.NDArray[np.int64], symbols: Sequence[str], where: str) -> str:
    """Returns the characters of a record, without its special symbols."""
    sequence = [symbols[index] for index in ids.tolist()]
    while sequence[-1] == PAD:
        sequence.pop()
        if not sequence:
            raise UserError(f"{where}: is empty")
    if sequence[-1] == END:
        sequence.pop()
    if not sequence or sequence[0] != START:
        raise UserError(f"{where}: does not begin with {START}")
    for symbol in sequence[1:]:
        if len(symbol) > 1:
            raise UserError(f"{where}: has {symbol} among its characters")
    return "".join(sequence[1:])


def _make_sequences_config(texts: Sequence[str], given: dict[str, Any]) -> DataConfig:
    layout, width = given.get("layout", "sequences"), len(texts[0]) + 1
    if not LAYOUTS[layout].is_continuous and layout != "windows":
        raise ConfigError(f"--layout={layout}: the records are sequences, without an end; use sequences or stream")
    if layout == "sequences" and given.get("seq_length", width) != width:
        raise ConfigError(f"--seq_length={given['seq_length']}: the records have {width} symbols; leave the flag out")
    return DataConfig(**({"seq_length": width} | given if layout == "sequences" else given))


def _make_lines_config(texts: Sequence[str], given: dict[str, Any], separator: str) -> DataConfig:
    if given.get("layout", "lines") != "lines" or "delimiter" in given:
        name = "delimiter" if "delimiter" in given else "layout"
        raise ConfigError(f"--{name}={given[name]}: the records are lines already; leave the flag out")
    longest = max(3, 2 + max(map(len, texts)))
    return DataConfig(**{"max_length": longest, **given, "layout": "lines", "delimiter": re.escape(separator)})


def _join_sequences(texts: Sequence[str], config: DataConfig) -> str:
    """Returns the text of sequences, each of which repeats `--overlap` of the one before."""
    stride = chunking.sequence_stride(len(texts[0]) + 1, config.overlap)
    overlap = len(texts[0]) - stride
    if overlap:
        for index in range(1, len(texts)):
            if texts[index][:overlap] != texts[index - 1][stride:]:
                raise ConfigError(
                    f"--overlap={config.overlap}: record {index + 1} does not repeat {overlap} characters of the one "
                    "before; leave the flag out"
                )
    return texts[0][:overlap] + "".join(text[overlap:] for text in texts)


def _describe(path: Path) -> Source:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(_BYTES_AT_A_TIME):
            digest.update(block)
            size += len(block)
    return Source(path.name, size, digest.hexdigest())
