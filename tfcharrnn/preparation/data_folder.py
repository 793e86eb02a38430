"""Makes a data folder from a text: completely, or not at all."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, overload

from typing_extensions import Unpack

from tfcharrnn import files
from tfcharrnn.config import DataConfig, check_exclusive, read_settings
from tfcharrnn.data import chunking, dataset
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.preparation import corpora, counting, sharding, staging
from tfcharrnn.preparation.corpora import Corpus
from tfcharrnn.preparation.counting import CountedText
from tfcharrnn.preparation.process_pool import Pool
from tfcharrnn.preparation.staging import StagingFolder
from tfcharrnn.settings import DataSettings

_DATA_FILE = re.compile(r"dataset\.json|vocab\.json|(train|val|test)-\d{5}-of-\d{5}\.tfrecord")


@overload
def prepare_data(
    output_dir: str | Path,
    /,
    *,
    text: str | None = None,
    overwrite: bool = False,
    jobs: int = 0,
    quiet: bool = True,
    **settings: Unpack[DataSettings],
) -> DataFolder: ...


@overload
def prepare_data(
    config: DataConfig,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    corpus: Corpus | None = None,
    jobs: int = 0,
    quiet: bool = True,
) -> DataFolder: ...


def prepare_data(
    config: DataConfig | str | Path = "",
    output_dir: str | Path | None = None,
    *,
    text: str | None = None,
    overwrite: bool = False,
    corpus: Corpus | str | None = None,
    jobs: int = 0,
    quiet: bool = True,
    **settings: Any,
) -> DataFolder:
    """Cuts a text into records and writes a data folder, completely or not at all.

    Either `prepare_data("data/mine", input="my.txt", seq_length=100)` or `prepare_data(DataConfig(...), "data/mine")`.

    A text that may exceed memory is prepared by several processes in a staging folder beside it, `.NAME.partial`,
    where an interrupted preparation resumes. The result is the same.

    Args:
        config: the text and how it is cut; or the folder to make, and then the settings say the rest.
        output_dir: the folder to make.
        text: the text itself, instead of `input` or `corpus` among the settings.
        overwrite: replace an existing data folder.
        corpus: the text, if it is already loaded; among settings the name of a corpus.
        jobs: processes for a large text; 0: one per core.
        quiet: show no progress.
        **settings: fields of `DataConfig`; `input` may also be a single name or path.

    Returns:
        The new folder, opened.

    Raises:
        UserError: the text is unavailable or too short, or the folder exists or cannot be written.
    """
    if not isinstance(config, DataConfig):
        if bool(config) == bool(output_dir):
            raise ConfigError("prepare_data takes a DataConfig and a folder, or a folder and settings")
        named = settings if corpus is None else {**settings, "corpus": corpus}
        output_dir, (config, corpus) = config or output_dir, read_text_settings(named, text)
    elif settings or text is not None or isinstance(corpus, str) or output_dir is None:
        raise ConfigError("prepare_data takes a DataConfig and a folder, or a folder and settings")
    output_dir = Path(output_dir or "")
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


def read_text_settings(settings: dict[str, Any], text: str | None) -> tuple[DataConfig, Corpus | None]:
    """Returns the data options that settings name, and the corpus of a text in memory, if there is one."""
    settings = read_settings(settings, DataConfig, others=("output_dir", "text", "overwrite", "jobs", "quiet"))
    check_exclusive(text=text is not None, input=settings.get("input"), corpus=settings.get("corpus"))
    if text is None:
        return DataConfig(**settings), None
    config = DataConfig(**{**settings, "input": (corpora.TEXT_NAME,)})
    return config, corpora.make_corpus(text, config)


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
