"""Makes a data folder from a text: completely, or not at all."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking, dataset
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.errors import UserError
from tfcharrnn.preparation import corpora, counting, sharding, staging
from tfcharrnn.preparation.corpora import Corpus
from tfcharrnn.preparation.counting import CountedText
from tfcharrnn.preparation.process_pool import Pool
from tfcharrnn.preparation.staging import StagingFolder

_DATA_FILE = re.compile(r"dataset\.json|vocab\.json|(train|val|test)-\d{5}-of-\d{5}\.tfrecord")


def prepare_data(
    config: DataConfig,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    corpus: Corpus | None = None,
    jobs: int = 0,
    quiet: bool = True,
) -> DataFolder:
    """Cuts a text into records and writes a data folder, completely or not at all.

    A text that may exceed memory is prepared by several processes in a staging folder beside it, `.NAME.partial`,
    where an interrupted preparation resumes. The result is the same.

    Args:
        config: the text and how it is cut.
        output_dir: the folder to make.
        overwrite: replace an existing data folder.
        corpus: the text, if it is already loaded.
        jobs: processes for a large text; 0: one per core.
        quiet: show no progress.

    Returns:
        The new folder, opened.

    Raises:
        UserError: the text is unavailable or too short, or the folder exists or cannot be written.
    """
    output_dir = Path(output_dir)
    check_replaceable(output_dir, overwrite)
    chunking.check_overlap(config)
    inputs = () if corpus else corpora.find_inputs(config)
    if staging.is_large(inputs):
        partial = output_dir.with_name(f".{output_dir.name}.partial")
        with staging.open_staging(partial, inputs, config, Pool(jobs, quiet=quiet)) as folder:
            write_from_files(folder, output_dir, config, overwrite)
    else:
        write_from_memory(corpus or corpora.load(config), output_dir, config, overwrite)
    return dataset.open_data(output_dir)


def write_from_memory(corpus: Corpus, path: Path, config: DataConfig, overwrite: bool) -> None:
    """Writes the data folder of a text in memory."""
    text = counting.count_corpus(corpus, config)
    sharding.check_long_enough(text, config)
    with files.create_folder(path, overwrite=overwrite) as folder:
        splits = sharding.write_shards(folder, text, config, Pool(1))
        files.write_json(folder / "dataset.json", _describe(config, text, splits))
        check_replaceable(path, overwrite)  # again: something may have been put there meanwhile


def write_from_files(folder: StagingFolder, path: Path, config: DataConfig, overwrite: bool) -> None:
    """Writes the data folder of a text in files, in its staging folder."""
    text = folder.count_text()
    sharding.check_long_enough(text, config)
    folder.mark_resumable()
    splits = sharding.write_shards(folder.data, text, config, folder.pool, folder)
    files.write_json(folder.data / "dataset.json", _describe(config, text, splits))
    check_replaceable(path, overwrite)  # again, as above
    folder.publish(path, [name for split in splits.values() for name in split["shards"]], overwrite=overwrite)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Checks that nothing but a data folder would be overwritten.

    Raises:
        UserError: something exists at `path`, and `overwrite` is false or it is not just a data folder.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(f"{path}: exists already; choose another --output_dir or pass --overwrite")
    try:
        foreign = [file.name for file in sorted(path.iterdir()) if not _DATA_FILE.fullmatch(file.name)]
    except OSError as error:
        raise UserError(
            f"{path}: --overwrite replaces only a data folder ({error.strerror}); choose another --output_dir"
        ) from None
    if path.name in ("", ".."):  # replacing renames, which is impossible for the current folder
        raise UserError(f"{path}: the current folder or its parent cannot be replaced; choose another --output_dir")
    if foreign:
        raise UserError(
            f"{path}: --overwrite would remove {foreign[0]}, which is not part of a data folder; "
            "choose another --output_dir"
        )


def _describe(config: DataConfig, text: CountedText, splits: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `dataset.json`."""
    sources = [dataclasses.asdict(source) for source in text.sources]
    described = dataset.describe_inputs(config, sources, text.characters, len(splits["train"]["shards"]))
    return described | {"splits": splits} | ({"dropped": text.dropped} if text.dropped else {})
