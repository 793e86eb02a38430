"""Data folders: a text, prepared once, that training reads again and again.

A data folder holds the splits as TFRecord shards, `vocab.json`, and `dataset.json`, which says how they were made.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfcharrnn import config as config_lib
from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking, tfrecord_writer
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError, first_line, short
from tfcharrnn.layouts import LAYOUTS, Layout
from tfcharrnn.preparation import corpora, sharding, staging
from tfcharrnn.preparation.process_pool import Pool
from tfcharrnn.preparation.sharding import SPLITS, Content, shard_names
from tfcharrnn.preparation.staging import Workshop

if TYPE_CHECKING:
    from tfcharrnn.data.examples import Examples
    from tfcharrnn.data.shards import Shards

FORMAT = 1
# the settings that say how a text is read, and those that say how it is divided, whatever the layout
_DIVIDED = ("layout", "val_fraction", "test_fraction")
_NORMALISATION = ("lowercase", "drop_digits", "drop_chars", "encoding")
_INT_LIMIT = 10**12


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of the data.

    Attributes:
        characters: how many it has.
        records: how many it has.
        shards: the names of its files.
        lengths: of lines, how many records have so many symbols, by their number of symbols; else empty.
    """

    characters: int
    records: int
    shards: tuple[str, ...]
    lengths: dict[int, int] = dataclasses.field(default_factory=dict)


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
        dropped: of lines, how many were `empty` or `too_long`.
        translation: for each id in the files that of `vocabulary`; None: they are the same.
    """

    path: Path
    name: str
    fingerprint: str
    config: DataConfig
    vocabulary: Vocabulary
    splits: dict[str, Split]
    dropped: dict[str, int]
    translation: npt.NDArray[np.int32] | None = None

    @property
    def layout(self) -> Layout:
        """What its examples are like."""
        return LAYOUTS[self.config.layout]

    @property
    def characters(self) -> int:
        """Characters in all splits together."""
        return sum(split.characters for split in self.splits.values())

    def describe(self) -> str:
        """What the splits hold, in words."""
        counts = []
        for name, split in self.splits.items():
            if self.layout.carries_state:
                counts.append(f"{split.characters:,} characters {name}")
            else:
                counts.append(f"{chunking.num_examples(split.characters, split.records, self.config):,} {name}")
        dropped = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in self.dropped.items() if count)
        what = {
            "sequences": f"sequences of {self.config.seq_length}: ",
            "stream": "one stream: ",
            "lines": "lines: ",
            "windows": f"windows of {self.config.seq_length}, {self.config.stride} apart: ",
        }[self.layout.name]
        return what + ", ".join(counts) + (f" (dropped: {dropped})" if dropped else "")

    def read(self, split: str) -> Examples:
        """All records of a split.

        Raises:
            UserError: missing or damaged shards.
        """
        from tfcharrnn.data import tfrecord_reader  # brings TensorFlow, which opening a folder does not need

        stored = tfrecord_reader.read(**self._files(split))
        return stored if self.translation is None else dataclasses.replace(stored, ids=self.translation[stored.ids])

    def shards(self, split: str) -> Shards:
        """The records of a split that has some, to be read a stretch at a time.

        Raises:
            UserError: missing shards.
        """
        from tfcharrnn.data import shards

        return shards.Shards(**self._files(split), translation=self.translation)

    def symbols(self, split: str) -> int:
        """How many symbols the records of a split have together."""
        part = self.splits[split]
        return chunking.num_symbols(part.characters, part.records, self.config)

    def _files(self, split: str) -> dict[str, Any]:
        """The files of a split and what must be in them."""
        low, high = chunking.record_lengths(self.config)
        counted = self.splits[split].lengths or (low, high)
        return {
            "paths": [self.path / name for name in self.splits[split].shards],
            "vocabulary_size": len(self.vocabulary if self.translation is None else self.translation),
            "count": self.splits[split].records,
            "num_symbols": self.symbols(split),
            "lengths": (max(low, min(counted)), min(high, max(counted))),
            "compression": self.config.compression,
        }

    def with_vocabulary(self, vocabulary: Vocabulary) -> DataFolder:
        """The same data in the ids of another vocabulary.

        Raises:
            UserError: it does not have a character of the data, or has other special symbols.
        """
        if vocabulary == self.vocabulary:
            return self
        special = self.vocabulary.symbols[: self.vocabulary.num_special]
        if vocabulary.symbols[: vocabulary.num_special] != special:
            raise UserError(f"{self.name}: was cut with other special symbols than the model has; prepare it again")
        characters = vocabulary.encode("".join(self.vocabulary.symbols[len(special) :]), self.name)
        translation = np.concatenate([np.arange(len(special), dtype=np.int32), characters])
        return dataclasses.replace(self, vocabulary=vocabulary, translation=translation)


def prepare_data(
    config: DataConfig,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    corpus: corpora.Corpus | None = None,
    jobs: int = 0,
    quiet: bool = True,
) -> DataFolder:
    """Cuts a text into records and writes a data folder, whole or not at all.

    A text that may be too large for memory is prepared by several processes in a folder beside it, `.NAME.partial`,
    where a preparation that was interrupted goes on. What is made is the same.

    Args:
        config: which text and how it is cut.
        output_dir: the folder to make.
        overwrite: replace an existing folder.
        corpus: the text, where it was loaded before.
        jobs: processes for a large text; 0: one for each core.
        quiet: show no progress.

    Returns:
        The new folder.

    Raises:
        UserError: the text cannot be had or is too short, or the folder exists or cannot be written.
    """
    output_dir = Path(output_dir)
    _check_place(output_dir, overwrite)
    chunking.num_records(0, config)  # an overlap that leaves no step is told before anything long begins
    found = () if corpus else corpora.inputs_of(config)
    if staging.is_large(found):
        partial = output_dir.with_name(f".{output_dir.name}.partial")
        with staging.opened(partial, found, config, Pool(jobs, quiet=quiet)) as shop:
            _make_large(shop, output_dir, config, overwrite)
    else:
        _make_small(sharding.content_of(corpus or corpora.load(config), config), output_dir, config, overwrite)
    return open_data(output_dir)


def _make_small(content: Content, path: Path, config: DataConfig, overwrite: bool) -> None:
    """Makes a data folder of a text in memory."""
    sharding.check_long_enough(content, config)
    with files.new_folder(path, overwrite=overwrite) as folder:
        splits = sharding.write(folder, content, config, Pool(1))
        files.write_json(folder / "dataset.json", _whole_description(config, content, splits))
        _check_place(path, overwrite)  # again, for something may have come there meanwhile


def _make_large(shop: Workshop, path: Path, config: DataConfig, overwrite: bool) -> None:
    """Makes a data folder of a text in files."""
    content = shop.content()
    sharding.check_long_enough(content, config)
    shop.keep()
    splits = sharding.write(shop.data, content, config, shop.pool, notes=shop.notes, splits_file=shop.splits_file)
    files.write_json(shop.data / "dataset.json", _whole_description(config, content, splits))
    _check_place(path, overwrite)  # as above
    shop.publish(path, overwrite=overwrite)


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
        layout = config_lib.from_dict(DataConfig, {"layout": value["layout"]}, "settings").layout
        settings = {name: value[name] for name in _cut_settings(layout)} | {
            name: value["normalisation"][name] for name in _NORMALISATION
        }
        settings["compression"] = value.get("compression", "none")
        config = config_lib.from_dict(DataConfig, settings, "settings")
        splits = {name: _split(value["splits"][name], name) for name in SPLITS}
        dropped = {kind: _count(count, kind) for kind, count in value.get("dropped", {}).items()}
        name = corpora.joined_name([_text(source["name"]) for source in value["inputs"]], ", ")
        fingerprint = _fingerprint(value)
        if not splits["train"].records:
            raise ValueError("no training records")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: damaged ({what}); prepare the data again") from None
    except (ValueError, UserError) as error:
        raise UserError(f"{where}: damaged ({first_line(error)}); prepare the data again") from None
    vocabulary = Vocabulary.load(path / "vocab.json")
    return DataFolder(path, name, fingerprint, config, vocabulary, splits, dropped)


def find(config: DataConfig, data_dir: str | Path, fingerprint: str, *, quiet: bool = True) -> DataFolder:
    """The data that a run was trained on, wherever it is: its data folder, the cache, or prepared again.

    Args:
        config: how the text was read and cut.
        data_dir: the data folder, or "" if the text was prepared on the fly.
        fingerprint: of the data; what is found may still have another one.
        quiet: show no progress where a large text is prepared again.

    Raises:
        UserError: it is nowhere.
    """
    if data_dir:
        return open_data(data_dir)
    kept = _cache_dir() / fingerprint[:32]
    return open_data(kept) if os.path.exists(kept / "dataset.json") else cached(config, quiet=quiet)


def _cache_dir() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("tfcharrnn") / "data"


def cached(config: DataConfig, cache_dir: Path | None = None, *, quiet: bool = True) -> DataFolder:
    """Prepares a text on the fly, or opens the folder that an earlier call made of the same text and settings.

    Args:
        config: which text and how it is cut.
        cache_dir: where such folders are kept; by default the user's cache folder.
        quiet: show no progress.

    Raises:
        UserError: as `prepare_data`.
    """
    cache_dir = cache_dir or _cache_dir()
    found = corpora.inputs_of(config)
    pool = Pool(quiet=quiet)
    if not staging.is_large(found):
        corpus = corpora.load(config)
        path = cache_dir / _fingerprint(_description(config, corpus.sources, len(corpus.text)))[:32]
        return _whole(path, Pool(1)) or _made(path, lambda: prepare_data(config, path, overwrite=True, corpus=corpus))
    key = staging.key_of(found, config)
    note = cache_dir / f".{key}.json"
    try:
        if kept := _noted(note, pool):
            return kept
    finally:
        pool.close()
    staging.remove_old(cache_dir)
    with staging.opened(cache_dir / f".{key}.partial", found, config, pool, wait=True) as shop:
        if kept := _noted(note, pool):  # another process made it meanwhile
            return kept
        content = shop.content()
        path = cache_dir / _fingerprint(_description(config, content.sources, content.characters))[:32]
        data = _whole(path, pool) or _made(path, lambda: _make_large(shop, path, config, overwrite=True))
        shop.check_unchanged()
        if all(map(staging.is_file, found)):  # the next pipe of this name has another text
            files.write_json(note, {"folder": path.name})
        return data


def _noted(note: Path, pool: Pool) -> DataFolder | None:
    """The folder of the cache that was made of the same files and settings, without reading the files."""
    try:
        value = files.read_json(note)
    except UserError:
        return None
    name = value.get("folder") if isinstance(value, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"[0-9a-f]{32}", name):
        return None
    return _whole(note.with_name(name), pool)


def _made(path: Path, make: Callable[[], object]) -> DataFolder:
    """A folder of the cache that is not there, or damaged; two processes that want it at once make it once."""
    place = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = files.lock(place, "prepare data", wait=True)
    except OSError as error:
        raise files.cannot_write(path, error) from error
    try:
        if not _whole(path, Pool(1)):
            make()
    finally:
        files.unlock(place, descriptor)
    return open_data(path)


def _whole(path: Path, pool: Pool) -> DataFolder | None:
    """A data folder all of whose records are there and as they were written, or None."""
    try:
        folder = open_data(path)
        for split in folder.splits.values():
            calls = [
                functools.partial(tfrecord_writer.check, path / name, folder.config.compression)
                for name in split.shards
            ]
            if sum(pool.run(calls)) != split.records:
                return None
    except UserError:
        return None
    return folder


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
    if path.name in ("", ".."):  # the folder that a process is in cannot be renamed, which is how one is replaced
        raise UserError(f"{path}: a data folder cannot be put in the place of this folder; choose another --output_dir")
    if strangers:
        raise UserError(
            f"{path}: --overwrite would remove {strangers[0]}, which is no part of a data folder; "
            "choose another --output_dir"
        )


def _is_ours(name: str) -> bool:
    return re.fullmatch(r"dataset\.json|vocab\.json|(train|val|test)-\d{5}-of-\d{5}\.tfrecord", name) is not None


def _cut_settings(layout: str) -> tuple[str, ...]:
    """The settings that say how a text is cut by a layout."""
    return *_DIVIDED, *LAYOUTS[layout].settings


def _description(
    config: DataConfig, sources: Sequence[corpora.Source], characters: int, num_shards: int = 0
) -> dict[str, Any]:
    """All of `dataset.json` but what the splits hold; of the sources it has names and sums, no paths."""
    settings = config_lib.to_dict(config)
    return {
        "format": FORMAT,
        **{name: settings[name] for name in _cut_settings(config.layout)},
        "num_shards": num_shards,
        "normalisation": {name: settings[name] for name in _NORMALISATION},
        "inputs": [dataclasses.asdict(source) for source in sources],
        "characters": characters,
    } | ({} if config.compression == "none" else {"compression": config.compression})


def _whole_description(config: DataConfig, content: Content, splits: dict[str, Any]) -> dict[str, Any]:
    """All of `dataset.json`."""
    return {
        **_description(config, content.sources, content.characters, len(splits["train"]["shards"])),
        "splits": splits,
    } | ({"dropped": content.dropped} if content.dropped else {})


def _fingerprint(description: dict[str, Any]) -> str:
    """A SHA-256 over all in a description that decides the sequences: settings and texts, not names and shards."""
    names = ("format", *_cut_settings(description["layout"]), "normalisation", "characters")
    settings = {name: description[name] for name in names}
    settings["inputs"] = [source["sha256"] for source in description["inputs"]]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _split(value: dict[str, Any], name: str) -> Split:
    characters, records, shards = value["characters"], value["records"], value["shards"]
    for count in (characters, records):
        _count(count, name)
    if records > characters:
        raise ValueError(f"{name}: {records} records cannot come from {characters} characters")
    if not isinstance(shards, list) or shards != shard_names(name, len(shards)) or bool(shards) != bool(records):
        raise ValueError(f"{name}: 'shards' does not name the files of {records} records")
    lengths = {_count(length, name): _count(times, name) for length, times in value.get("lengths", [])}
    if lengths and sum(lengths.values()) != records:
        raise ValueError(f"{name}: 'lengths' does not count {records} records")
    return Split(characters, records, tuple(shards), lengths)


def _count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < _INT_LIMIT:
        raise ValueError(f"{name}: a count of {short(value)} cannot be")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{short(value)} is no name")
    return value
