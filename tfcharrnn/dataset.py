"""Data folders: a text, prepared once, that training reads again and again.

A data folder holds the splits as TFRecord shards, `vocab.json`, and `dataset.json`, which says how they were made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
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
_INT_LIMIT = 10**12


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
        seq_length: ids in a record.
        vocabulary: its symbols.
        splits: `train`, `val` and `test`; a split without records has no shards.
    """

    path: Path
    name: str
    fingerprint: str
    seq_length: int
    vocabulary: Vocabulary
    splits: dict[str, Split]

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
    if output_dir.exists() and not overwrite:
        raise UserError(f"{output_dir}: exists already; choose another --output_dir or pass --overwrite")
    corpus = corpus or corpora.load(config)
    vocabulary = Vocabulary.from_text(corpus.text)
    ids = vocabulary.encode(corpus.text)
    ends = _split_ends(len(ids), config)
    with files.new_folder(output_dir, overwrite=overwrite) as folder:
        splits = {}
        start = 0
        for split, end in zip(SPLITS, ends, strict=True):
            sequences = records.cut_sequences(ids[start:end], config.seq_length, config.overlap, vocabulary.start_id)
            if split == "train" and not len(sequences):
                raise UserError(
                    f"{corpus.name}: its training part of {end} characters is shorter than one sequence; "
                    f"give more text, or a --seq_length of at most {end + 1}"
                )
            shards = records.write(folder, split, sequences, config.num_shards) if len(sequences) else []
            splits[split] = {"characters": end - start, "records": len(sequences), "shards": shards}
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
    if not where.exists():
        raise UserError(
            f"{path}: not a data folder (it has no dataset.json); make one with python -m tfcharrnn.prepare"
        )
    value = files.read_json(where)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{where}: not of format {FORMAT}; was it written by a newer version?")
    try:
        config = config_lib.from_dict(
            DataConfig, {"layout": value["layout"], "seq_length": value["seq_length"]}, str(where)
        )
        splits = {name: _split(value["splits"][name], name) for name in SPLITS}
        name = ", ".join(str(source["name"]) for source in value["inputs"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: damaged ({type(error).__name__}: {error}); prepare the data again") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}; prepare the data again") from None
    vocabulary = Vocabulary.load(path / "vocab.json")
    if not splits["train"].records:
        raise UserError(f"{where}: no training records; prepare the data again")
    return DataFolder(path, name, _fingerprint(value), config.seq_length, vocabulary, splits)


def cached(config: DataConfig, cache_dir: Path | None = None) -> DataFolder:
    """Prepares a text on the fly, or opens the folder that an earlier call made of the same text and settings.

    Args:
        config: which text and how it is cut.
        cache_dir: where such folders are kept; by default the user's cache folder.

    Raises:
        UserError: as `prepare_data`.
    """
    if cache_dir is None:
        import platformdirs

        cache_dir = platformdirs.user_cache_path("tfcharrnn") / "data"
    corpus = corpora.load(config)
    path = cache_dir / _fingerprint(_description(config, corpus))[:32]
    if path.exists():
        try:
            return open_data(path)
        except UserError:
            pass  # a damaged cache is only made again
    return prepare_data(config, path, overwrite=True, corpus=corpus)


def _split_ends(characters: int, config: DataConfig) -> tuple[int, int, int]:
    """Where training, validation and test text end, by position in the text."""
    val = math.floor(characters * config.val_fraction)
    test = math.floor(characters * config.test_fraction)
    return characters - val - test, characters - test, characters


def _description(config: DataConfig, corpus: corpora.Corpus) -> dict[str, Any]:
    """All of `dataset.json` that is known before the text is cut; it decides the content of the folder."""
    settings = config_lib.to_dict(config)
    normalisation = {name: settings.pop(name) for name in ("lowercase", "drop_digits", "drop_chars", "encoding")}
    for name in ("input", "corpus"):  # the sources' names and sums say it, without paths
        del settings[name]
    return {
        "format": FORMAT,
        **settings,
        "normalisation": normalisation,
        "inputs": [dataclasses.asdict(source) for source in corpus.sources],
        "characters": len(corpus.text),
    }


def _fingerprint(description: dict[str, Any]) -> str:
    """A SHA-256 over everything in a description but the splits, which follow from it."""
    settings = {name: value for name, value in description.items() if name != "splits"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _split(value: dict[str, Any], name: str) -> Split:
    characters, records, shards = value["characters"], value["records"], value["shards"]
    for count in (characters, records):
        if type(count) is not int or not 0 <= count < _INT_LIMIT:
            raise ValueError(f"{name}: a count of {count!r} cannot be")
    if records > characters:
        raise ValueError(f"{name}: {records} records cannot come from {characters} characters")
    if not isinstance(shards, list) or not all(isinstance(shard, str) for shard in shards):
        raise ValueError(f"{name}: 'shards' is not a list of names")
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".tfrecord"):
            raise ValueError(f"{name}: {shard!r} is not the name of a shard")
    return Split(characters, records, tuple(shards))
