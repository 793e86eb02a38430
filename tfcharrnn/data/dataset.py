"""Opens and reads data folders: TFRecord shards of each split, `vocab.json`, and the description `dataset.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfcharrnn import config as config_lib
from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.examples import count_training_examples
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError, command_line, first_line, shorten
from tfcharrnn.layouts import LAYOUTS, Layout

if TYPE_CHECKING:
    from tfcharrnn.data.examples import Examples
    from tfcharrnn.data.shards import Shards

FORMAT = 1
SPLITS = ("train", "val", "test")
# settings recorded in dataset.json for every layout, beside those of the layout itself
_COMMON_SETTINGS = ("layout", "val_fraction", "test_fraction")
_NORMALISATION = ("lowercase", "drop_digits", "drop_chars", "encoding")
_MAX_COUNT = 10**12
# a longer list of file names is abbreviated
_MAX_NAMES = 20


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of the data.

    Attributes:
        characters: number of characters.
        records: number of records.
        shards: file names of its shards.
        lengths: for the layout `lines`, the number of records by their length in symbols; else empty.
    """

    characters: int
    records: int
    shards: tuple[str, ...]
    lengths: dict[int, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, repr=False)
class DataFolder:
    """A prepared data folder, opened for reading.

    Attributes:
        path: its location.
        name: the corpus, or the names of the files it was made from.
        fingerprint: SHA-256 of everything that determines the content; equal folders have equal fingerprints.
        config: how the text was read and cut, without the paths of the text itself.
        vocabulary: the symbols and their ids.
        splits: `train`, `val` and `test`; a split without records has no shards.
        dropped: for the layout `lines`, the number of dropped lines by reason, `empty` or `too_long`.
        translation: the id in `vocabulary` of each id in the files, or None if they are the same.
    """

    path: Path
    name: str
    fingerprint: str
    config: DataConfig
    vocabulary: Vocabulary
    splits: dict[str, Split]
    dropped: dict[str, int]
    translation: npt.NDArray[np.int32] | None = None

    def __repr__(self) -> str:
        return f"<DataFolder {self.path}: {self.name}, {self.describe()}>"

    @property
    def layout(self) -> Layout:
        """The layout of its examples."""
        return LAYOUTS[self.config.layout]

    @property
    def characters(self) -> int:
        """Number of characters in all splits."""
        return sum(split.characters for split in self.splits.values())

    def describe(self) -> str:
        """Summarises the splits in one line."""
        counts = []
        for name, split in self.splits.items():
            if self.layout.carries_state:
                counts.append(f"{split.characters:,} characters {name}")
            else:
                counts.append(f"{count_training_examples(split.characters, split.records, self.config):,} {name}")
        dropped = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in self.dropped.items() if count)
        unit = {
            "sequences": f"sequences of {self.config.seq_length}: ",
            "stream": "one stream: ",
            "lines": "lines: ",
            "windows": f"windows of {self.config.seq_length}, {self.config.stride} apart: ",
        }[self.layout.name]
        return unit + ", ".join(counts) + (f" (dropped: {dropped})" if dropped else "")

    def describe_normalisation(self) -> str:
        """Says in one line how the text was changed, naming each dropped character; "" if it was not."""
        config, parts = self.config, []
        if config.lowercase:
            parts.append("in lower case")
        dropped = ["digits"] if config.drop_digits else []
        dropped += map(_name_character, dict.fromkeys(config.drop_chars))
        if dropped:
            parts.append(f"without {' '.join(dropped)}")
        return ", ".join(parts)

    def read(self, split: str) -> Examples:
        """Reads all records of a split into memory.

        Raises:
            UserError: missing or damaged shards.
        """
        from tfcharrnn.data import tfrecord_reader  # imports TensorFlow, which opening a folder does not need

        stored = tfrecord_reader.read_records(**self._shard_settings(split))
        return stored if self.translation is None else dataclasses.replace(stored, ids=self.translation[stored.ids])

    def open_shards(self, split: str) -> Shards:
        """Opens the shards of a non-empty split for reading a range of records at a time.

        Raises:
            UserError: missing shards.
        """
        from tfcharrnn.data import shards

        return shards.Shards(**self._shard_settings(split), translation=self.translation)

    def count_symbols(self, split: str) -> int:
        """Returns the number of symbols in all records of a split."""
        part = self.splits[split]
        return chunking.count_symbols(part.characters, part.records, self.config)

    def _shard_settings(self, split: str) -> dict[str, Any]:
        """Returns the shards of a split and what they must contain, as arguments of the readers."""
        low, high = chunking.record_length_bounds(self.config)
        counted = self.splits[split].lengths or (low, high)
        return {
            "paths": [self.path / name for name in self.splits[split].shards],
            "vocabulary_size": len(self.vocabulary if self.translation is None else self.translation),
            "num_records": self.splits[split].records,
            "num_symbols": self.count_symbols(split),
            "lengths": (max(low, min(counted)), min(high, max(counted))),
            "compression": self.config.compression,
        }

    def with_vocabulary(self, vocabulary: Vocabulary) -> DataFolder:
        """Returns the same data with the ids of another vocabulary.

        Raises:
            UserError: the vocabulary lacks a character of the data or has different special symbols, or only one of the
                two is of bytes.
        """
        if vocabulary == self.vocabulary:
            return self
        special = self.vocabulary.symbols[: self.vocabulary.num_special]
        if vocabulary.symbols[: vocabulary.num_special] != special:
            raise UserError(f"{self.name}: was prepared with other special symbols than the model's; prepare it again")
        if vocabulary.of_bytes != self.vocabulary.of_bytes:
            raise UserError(
                f"{self.name}: was prepared with --encoding={self.config.encoding}, but the model's symbols are "
                f"{'bytes' if vocabulary.of_bytes else 'characters'}; prepare it again with the model's --encoding"
            )
        characters = vocabulary.encode("".join(self.vocabulary.symbols[len(special) :]), self.name)
        translation = np.concatenate([np.arange(len(special), dtype=np.int32), characters])
        return dataclasses.replace(self, vocabulary=vocabulary, translation=translation)


def open_data(path: str | Path) -> DataFolder:
    """Opens a data folder and validates its `dataset.json`.

    Raises:
        UserError: the folder is missing, damaged, or of another format.
    """
    path = Path(path)
    where = path / "dataset.json"
    if not os.path.exists(where):  # Path.exists raises for a name that is too long or a folder without permission
        raise UserError(f"{path}: not a data folder (it has no dataset.json); make one with {command_line('prepare')}")
    description = files.read_json(where)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{where}: not of format {FORMAT}; was it written by a newer version?")
    try:
        config = _parse_config(description)
        splits = {name: _parse_split(description["splits"][name], name) for name in SPLITS}
        dropped = {kind: _parse_count(count, kind) for kind, count in description.get("dropped", {}).items()}
        name = join_names([_parse_name(source["name"]) for source in description["inputs"]], ", ")
        fingerprint = compute_fingerprint(description)
        if not splits["train"].records:
            raise ValueError("no training records")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: damaged ({reason}); prepare the data again") from None
    except (ValueError, UserError) as error:
        raise UserError(f"{where}: damaged ({first_line(error)}); prepare the data again") from None
    vocabulary = Vocabulary.load(path / "vocab.json", of_bytes=config.of_bytes)
    return DataFolder(path, name, fingerprint, config, vocabulary, splits, dropped)


def describe_inputs(
    config: DataConfig, inputs: Sequence[dict[str, Any]], characters: int, num_shards: int = 0
) -> dict[str, Any]:
    """Returns the content of `dataset.json` except for the splits.

    Args:
        config: how the text is read and cut.
        inputs: `name`, `bytes` and `sha256` of each input.
        characters: number of characters of the text.
        num_shards: number of training shards.
    """
    settings = config_lib.to_dict(config)
    return {
        "format": FORMAT,
        **{name: settings[name] for name in _recorded_settings(config.layout)},
        "num_shards": num_shards,
        "normalisation": {name: settings[name] for name in _NORMALISATION},
        "inputs": list(inputs),
        "characters": characters,
    } | ({} if config.compression == "none" else {"compression": config.compression})


def compute_fingerprint(description: dict[str, Any]) -> str:
    """Returns the SHA-256 of everything in `dataset.json` that determines the records; names and shards do not."""
    names = ("format", *_recorded_settings(description["layout"]), "normalisation", "characters")
    settings = {name: description[name] for name in names}
    settings["inputs"] = [source["sha256"] for source in description["inputs"]]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def shard_names(split: str, num_shards: int) -> list[str]:
    """The file names of a split: `train-00000-of-00002.tfrecord`, ..."""
    return [f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord" for shard in range(num_shards)]


def join_names(names: Sequence[str], separator: str = "+") -> str:
    """Joins the names of input files, abbreviating a long list."""
    return separator.join(names if len(names) <= _MAX_NAMES else [*names[:3], f"{len(names) - 3} more"])


def _name_character(character: str) -> str:
    """Returns a character, or the code point and name of one that cannot be seen."""
    if character.isprintable() and not character.isspace():
        return character
    return " ".join([f"U+{ord(character):04X}", unicodedata.name(character, "")]).strip()


def _recorded_settings(layout: str) -> tuple[str, ...]:
    return *_COMMON_SETTINGS, *LAYOUTS[layout].settings


def _parse_config(description: dict[str, Any]) -> DataConfig:
    layout = config_lib.from_dict(DataConfig, {"layout": description["layout"]}, "settings").layout
    settings = {name: description[name] for name in _recorded_settings(layout)}
    settings |= {name: description["normalisation"][name] for name in _NORMALISATION}
    settings["compression"] = description.get("compression", "none")
    return config_lib.from_dict(DataConfig, settings, "settings")


def _parse_split(value: dict[str, Any], name: str) -> Split:
    characters, records = _parse_count(value["characters"], name), _parse_count(value["records"], name)
    shards = value["shards"]
    if records > characters:
        raise ValueError(f"{name}: {records} records cannot come from {characters} characters")
    if not isinstance(shards, list) or shards != shard_names(name, len(shards)) or bool(shards) != bool(records):
        raise ValueError(f"{name}: 'shards' does not name the files of {records} records")
    lengths = {_parse_count(length, name): _parse_count(times, name) for length, times in value.get("lengths", [])}
    if lengths and sum(lengths.values()) != records:
        raise ValueError(f"{name}: 'lengths' does not add up to {records} records")
    return Split(characters, records, tuple(shards), lengths)


def _parse_count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise ValueError(f"{name}: {shorten(value)} is not a valid count")
    return value


def _parse_name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shorten(value)} is not a name")
    return value
