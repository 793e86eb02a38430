"""The user's cache of texts prepared on the fly."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import dataset, tfrecord_writer
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.errors import UserError
from tfcharrnn.preparation import corpora, data_folder, staging
from tfcharrnn.preparation.corpora import Corpus, Source
from tfcharrnn.preparation.process_pool import Pool


def find_data(config: DataConfig, data_dir: str | Path, fingerprint: str, *, quiet: bool = True) -> DataFolder:
    """Finds the data that a run was trained on: in its data folder or the cache, or else prepares it again.

    Args:
        config: the text and how it was cut.
        data_dir: the data folder, or "" if the text was prepared on the fly.
        fingerprint: of the data to find; the result may have another one.
        quiet: show no progress while preparing a large text again.

    Raises:
        UserError: the data is unavailable.
    """
    if data_dir:
        return dataset.open_data(data_dir)
    entry = _default_dir() / fingerprint[:32]
    if os.path.exists(entry / "dataset.json"):
        return _name_after(dataset.open_data(entry), corpora.list_names(config))
    return prepare_cached(config, quiet=quiet)


def prepare_cached(
    config: DataConfig, cache_dir: Path | None = None, *, text: str | None = None, quiet: bool = True
) -> DataFolder:
    """Prepares a text on the fly, or opens the cache entry that an earlier call made of the same text and settings.

    The text has the name of its files now, whatever those of the earlier call were named.

    Args:
        config: the text and how it is cut.
        cache_dir: the cache; by default in the user's cache folder.
        text: the text, if it was passed from memory.
        quiet: show no progress.

    Raises:
        UserError: the text is unavailable or too short, or the cache cannot be written.
    """
    corpus = None if text is None else corpora.make_corpus(text, config)
    data = _prepare_entry(config, cache_dir or _default_dir(), corpus, quiet)
    return _name_after(data, corpora.list_names(config))


def _name_after(data: DataFolder, names: Sequence[str]) -> DataFolder:
    return dataclasses.replace(data, name=dataset.join_names(names, ", "))


def _prepare_entry(config: DataConfig, cache_dir: Path, corpus: Corpus | None, quiet: bool) -> DataFolder:
    inputs = () if corpus else corpora.find_inputs(config)
    pool = Pool(quiet=quiet)
    if not staging.is_large(inputs):
        corpus = corpus or corpora.load(config)
        entry = _entry_path(cache_dir, config, corpus.sources, len(corpus.text))
        return _open_intact(entry, Pool(1)) or _make_entry(
            entry, lambda: data_folder.prepare_data(config, entry, overwrite=True, corpus=corpus)
        )
    key = staging.compute_key(inputs, config)
    note = cache_dir / f".{key}.json"
    try:
        if noted := _open_noted(note, pool):
            return noted
    finally:
        pool.close()
    staging.remove_abandoned(cache_dir)
    with staging.open_staging(cache_dir / f".{key}.partial", inputs, config, pool, wait=True) as folder:
        if noted := _open_noted(note, pool):  # another process made it meanwhile
            return noted
        text = folder.count_text()
        entry = _entry_path(cache_dir, config, text.sources, text.characters)
        data = _open_intact(entry, pool) or _make_entry(
            entry, lambda: data_folder.write_from_files(folder, entry, config, overwrite=True)
        )
        folder.check_unchanged()
        if all(map(staging.is_regular_file, inputs)):  # a pipe of the same name will have another text
            files.write_json(note, {"folder": entry.name})
        return data


def _default_dir() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("tfcharrnn") / "data"


def _entry_path(cache_dir: Path, config: DataConfig, sources: tuple[Source, ...], characters: int) -> Path:
    inputs = [dataclasses.asdict(source) for source in sources]
    return cache_dir / dataset.compute_fingerprint(dataset.describe_inputs(config, inputs, characters))[:32]


def _open_noted(note: Path, pool: Pool) -> DataFolder | None:
    """Opens the entry that a note names for unchanged files and settings, without reading the files."""
    try:
        value = files.read_json(note)
    except UserError:
        return None
    name = value.get("folder") if isinstance(value, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"[0-9a-f]{32}", name):
        return None
    return _open_intact(note.with_name(name), pool)


def _make_entry(entry: Path, make: Callable[[], object]) -> DataFolder:
    """Makes a missing or damaged entry under a lock, so that concurrent processes make it only once."""
    lock = entry.with_name(f".{entry.name}.lock")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor = files.lock_file(lock, "prepare data", wait=True)
    except OSError as error:
        raise files.write_error(entry, error) from error
    try:
        if not _open_intact(entry, Pool(1)):
            make()
    finally:
        files.unlock_file(lock, descriptor)
    return dataset.open_data(entry)


def _open_intact(path: Path, pool: Pool) -> DataFolder | None:
    """Opens a data folder whose records all pass their checksums; returns None for any other."""
    try:
        folder = dataset.open_data(path)
        for split in folder.splits.values():
            calls = [
                functools.partial(tfrecord_writer.check_file, path / name, folder.config.compression)
                for name in split.shards
            ]
            if sum(pool.run(calls)) != split.records:
                return None
    except UserError:
        return None
    return folder
