"""Data folders: a text, prepared once, that training reads again and again.

A data folder holds the splits as TFRecord shards, `vocab.json`, and `dataset.json`, which says how they were made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcharrnn import config as config_lib
from tfcharrnn import corpora, files
from tfcharrnn.config import DataConfig
from tfcharrnn.errors import UserError
from tfcharrnn.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FORMAT = 1
SPLITS = ("train", "val", "test")
# the settings that say how a text is cut, and how it is read
_CUT = ("layout", "seq_length", "overlap", "val_fraction", "test_fraction")
_NORMALISATION = ("lowercase", "drop_digits", "drop_chars", "encoding")
_INT_LIMIT = 10**12
# ids that are encoded, cut and serialised together
_BLOCK = 2**18


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of the data: its size in characters and records, and its files."""

    characters: int
    records: int
    shards: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DataFolder:
    """A prepared data folder, opened for reading.

    Attributes:
        path: where it is.
        name: the corpus, or the names of the files it was made from.
        fingerprint: a SHA-256 of all that decides the content; equal folders have equal fingerprints.
        config: how its text was read and cut; the texts themselves are not named.
        vocabulary: its symbols.
        splits: `train`, `val` and `test`; a split without records has no shards.
    """

    path: Path
    name: str
    fingerprint: str
    config: DataConfig
    vocabulary: Vocabulary
    splits: dict[str, Split]

    @property
    def seq_length(self) -> int:
        """Ids in a record."""
        return self.config.seq_length

    @property
    def characters(self) -> int:
        """Characters in all splits together."""
        return sum(split.characters for split in self.splits.values())

    def read(self, split: str) -> npt.NDArray[np.int32]:
        """All sequences of a split, `[records, seq_length]`.

        Raises:
            UserError: missing or damaged shards.
        """
        from tfcharrnn import records  # brings TensorFlow, which opening a folder does not need

        part = self.splits[split]
        paths = [self.path / name for name in part.shards]
        return records.read(paths, self.seq_length, len(self.vocabulary), part.records)


def prepare_data(
    config: DataConfig, output_dir: str | Path, *, overwrite: bool = False, corpus: corpora.Corpus | None = None
) -> DataFolder:
    """Cuts a text into sequences and writes a data folder, whole or not at all.

    Args:
        config: which text and how it is cut.
        output_dir: the folder to make.
        overwrite: replace an existing folder.
        corpus: the text, where it was loaded before.

    Returns:
        The new folder.

    Raises:
        UserError: the text cannot be had or is too short, or the folder exists or cannot be written.
    """
    from tfcharrnn import records

    output_dir = Path(output_dir)
    _check_place(output_dir, overwrite)
    corpus = corpus or corpora.load(config)
    vocabulary = Vocabulary.from_text(corpus.text)
    ends = _split_ends(len(corpus.text), config)
    with files.new_folder(output_dir, overwrite=overwrite) as folder:
        splits = {}
        start = 0
        for split, end in zip(SPLITS, ends, strict=True):
            count = records.num_sequences(end - start, config.seq_length, config.overlap)
            if split == "train" and not count:
                raise UserError(
                    f"{corpus.name}: its training part of {end} characters is shorter than one sequence; "
                    + (f"give more text, or a --seq_length of at most {end + 1}" if end else "give more text")
                )
            shards = shard_names(split, config.num_shards) if count else []
            if count:
                blocks = _sequences(corpus.text[start:end], vocabulary, config)
                examples = itertools.chain.from_iterable(map(records.serialise, blocks))
                records.write([folder / shard for shard in shards], examples, count)
            splits[split] = {"characters": end - start, "records": count, "shards": shards}
            start = end
        vocabulary.save(folder / "vocab.json")
        files.write_json(folder / "dataset.json", {**_description(config, corpus), "splits": splits})
    return open_data(output_dir)


def open_data(path: str | Path) -> DataFolder:
    """Opens a data folder and checks what its `dataset.json` says.

    Raises:
        UserError: it is missing, damaged, or of another format.
    """
    path = Path(path)
    where = path / "dataset.json"
    if not os.path.exists(where):  # false, where Path.exists would raise: for too long a name, or no permission
        raise UserError(
            f"{path}: not a data folder (it has no dataset.json); make one with python -m tfcharrnn.prepare"
        )
    value = files.read_json(where)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{where}: not of format {FORMAT}; was it written by a newer version?")
    try:
        settings = {name: value[name] for name in _CUT} | {
            name: value["normalisation"][name] for name in _NORMALISATION
        }
        config = config_lib.from_dict(DataConfig, settings, "settings")
        splits = {name: _split(value["splits"][name], name) for name in SPLITS}
        name = ", ".join(str(source["name"]) for source in value["inputs"])
        fingerprint = _fingerprint(value)
        if not splits["train"].records:
            raise ValueError("no training records")
    except (KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: damaged ({type(error).__name__}: {error}); prepare the data again") from None
    except (ValueError, UserError) as error:
        raise UserError(f"{where}: damaged ({error}); prepare the data again") from None
    vocabulary = Vocabulary.load(path / "vocab.json")
    return DataFolder(path, name, fingerprint, config, vocabulary, splits)


def find(config: DataConfig, data_dir: str | Path, fingerprint: str) -> DataFolder:
    """The data that a run was trained on, wherever it is: its data folder, the cache, or prepared again.

    Args:
        config: how the text was read and cut.
        data_dir: the data folder, or "" if the text was prepared on the fly.
        fingerprint: of the data; what is found may still have another one.

    Raises:
        UserError: it is nowhere.
    """
    if data_dir:
        return open_data(data_dir)
    kept = _cache_dir() / fingerprint[:32]
    return open_data(kept) if os.path.exists(kept / "dataset.json") else cached(config)


def _cache_dir() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("tfcharrnn") / "data"


def cached(config: DataConfig, cache_dir: Path | None = None) -> DataFolder:
    """Prepares a text on the fly, or opens the folder that an earlier call made of the same text and settings.

    Args:
        config: which text and how it is cut.
        cache_dir: where such folders are kept; by default the user's cache folder.

    Raises:
        UserError: as `prepare_data`.
    """
    cache_dir = cache_dir or _cache_dir()
    corpus = corpora.load(config)
    path = cache_dir / _fingerprint(_description(config, corpus))[:32]
    try:
        folder = open_data(path)
        for split in SPLITS:
            folder.read(split)
        return folder
    except UserError:  # not there, or damaged
        return prepare_data(config, path, overwrite=True, corpus=corpus)


def shard_names(split: str, num_shards: int) -> list[str]:
    """The file names of a split: `train-00000-of-00002.tfrecord`, ..."""
    return [f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord" for shard in range(num_shards)]


def _check_place(path: Path, overwrite: bool) -> None:
    """Refuses a place where something stands, but, to overwrite, a data folder and nothing else."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(f"{path}: exists already; choose another --output_dir or pass --overwrite")
    try:
        strangers = [file.name for file in sorted(path.iterdir()) if not _is_ours(file.name)]
    except OSError as error:
        raise UserError(
            f"{path}: --overwrite replaces a data folder ({error.strerror}); choose another --output_dir"
        ) from None
    if strangers:
        raise UserError(
            f"{path}: --overwrite would remove {strangers[0]}, which is no part of a data folder; "
            "choose another --output_dir"
        )


def _is_ours(name: str) -> bool:
    return re.fullmatch(r"dataset\.json|vocab\.json|(train|val|test)-\d{5}-of-\d{5}\.tfrecord", name) is not None


def _sequences(text: str, vocabulary: Vocabulary, config: DataConfig) -> Iterator[npt.NDArray[np.int32]]:
    """All sequences of a text, in blocks `[records, seq_length]`, so that the whole is never in memory."""
    from tfcharrnn import records

    step = records.stride(config.seq_length, config.overlap)
    count = records.num_sequences(len(text), config.seq_length, config.overlap)
    size = max(1, _BLOCK // config.seq_length)
    for first in range(0, count, size):
        last = min(first + size, count) - 1
        part = text[first * step : last * step + config.seq_length - 1]
        ids = vocabulary.encode(part)
        yield records.cut_sequences(ids, config.seq_length, config.overlap, vocabulary.start_id)


def _split_ends(characters: int, config: DataConfig) -> tuple[int, int, int]:
    """Where training, validation and test text end, by position in the text."""
    val = math.floor(characters * config.val_fraction)
    test = math.floor(characters * config.test_fraction)
    return characters - val - test, characters - test, characters


def _description(config: DataConfig, corpus: corpora.Corpus) -> dict[str, Any]:
    """All of `dataset.json` that is known before the text is cut; of the sources it has names and sums, no paths."""
    settings = config_lib.to_dict(config)
    return {
        "format": FORMAT,
        **{name: settings[name] for name in (*_CUT, "num_shards")},
        "normalisation": {name: settings[name] for name in _NORMALISATION},
        "inputs": [dataclasses.asdict(source) for source in corpus.sources],
        "characters": len(corpus.text),
    }


def _fingerprint(description: dict[str, Any]) -> str:
    """A SHA-256 over all in a description that decides the sequences: settings and texts, not names and shards."""
    settings = {name: description[name] for name in ("format", *_CUT, "normalisation", "characters")}
    settings["inputs"] = [source["sha256"] for source in description["inputs"]]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _split(value: dict[str, Any], name: str) -> Split:
    characters, records, shards = value["characters"], value["records"], value["shards"]
    for count in (characters, records):
        if type(count) is not int or not 0 <= count < _INT_LIMIT:
            raise ValueError(f"{name}: a count of {count!r} cannot be")
    if records > characters:
        raise ValueError(f"{name}: {records} records cannot come from {characters} characters")
    if not isinstance(shards, list) or shards != shard_names(name, len(shards)) or bool(shards) != bool(records):
        raise ValueError(f"{name}: 'shards' does not name the files of {records} records")
    return Split(characters, records, tuple(shards))
