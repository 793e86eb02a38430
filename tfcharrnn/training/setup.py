"""Starting a training run, or taking up one that was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.data import batching, dataset
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.distributed import cluster
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model import backends
from tfcharrnn.model.char_rnn import check_suits
from tfcharrnn.runs import checkpoints
from tfcharrnn.runs import run_folder as run_lib
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.training import observers
from tfcharrnn.training.loop import Result, train

Settings = dict[str, Any]

# what of a model may change when training goes on, and when it begins anew with the model's weights
_HOW = ("implementation", "precision")
# on which devices it runs
_WHERE = ("strategy", "num_replicas")
_FREE = (*_HOW, "dropout", "output_dropout")
# what a run that goes on must keep, for its steps so far to mean the same
_KEPT = ("batch_size", "seed", "optimizer", "shuffle", "shuffle_buffer", "drop_remainder", "reduction")


def train_model(
    run_dir: str | Path = "",
    *,
    data_dir: str | Path = "",
    init_from: str | Path = "",
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Trains a model, as `python -m tfcharrnn.train` does.

    Args:
        run_dir: the run folder; empty: a new one in `runs/`, or with `resume` the newest there.
        data_dir: a data folder that `prepare_data` made, instead of `input` or `corpus` among the settings.
        init_from: a run whose model, vocabulary and last weights the new one begins with, on a text named now.
        resume: go on with the run from its last checkpoint.
        overwrite: replace an existing run.
        quiet: show nothing.
        **settings: the fields of `DataConfig`, `ModelConfig` and `TrainingConfig`, such as
            `input=["my.txt"], cell="gru", steps=500`.

    Returns:
        The run folder and how training ended.

    Raises:
        UserError: whatever a person can mend, in one line.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if resume and init_from:
        raise ConfigError("--resume and --init_from exclude each other: a resumed run has its own weights")
    if data_dir and ("input" in settings or "corpus" in settings):
        raise ConfigError("--data_dir excludes --input and --corpus: it is a text already prepared")
    if resume:
        run_dir = run_dir or run_lib.newest()
    source = run_lib.load(init_from) if init_from else None
    workers = _join(run_lib.load(run_dir).training if resume else TrainingConfig(), run_dir, settings, quiet)
    with workers.watching(str(run_dir)):
        weights = checkpoints.find(source.path) if source else None
        with workers.chief_first():
            if resume:
                run, data = resume_run(run_dir, data_dir, settings, quiet=quiet)
            else:
                run, data = start_run(run_dir, data_dir, settings, source, quiet=quiet)
            workers.rows(run.training.batch_size)  # for its check
            if workers.is_chief:
                if not resume:
                    run_lib.check_place(run.path, overwrite=overwrite)
                observers.check_available(run.training)
        with run_lib.locked(run.path) if workers.is_chief else contextlib.nullcontext():
            if workers.is_chief and not resume:
                run_lib.clear(run.path)
            return train(run, data, workers, resume=resume, weights=weights, quiet=quiet)


def _join(config: TrainingConfig, run_dir: str | Path, settings: Settings, quiet: bool) -> cluster.Cluster:
    """Joins the workers that the settings ask for, which must happen before anything is computed."""
    (config,) = _split({name: settings[name] for name in _WHERE if name in settings}, config)
    if config.strategy == "multi_worker" and not run_dir:
        raise ConfigError("--strategy=multi_worker: needs a --run_dir, one folder that all workers see")
    return cluster.start(config.strategy, config.num_replicas, quiet=quiet)


def start_run(
    run_dir: str | Path, data_dir: str | Path, settings: Settings, source: Run | None = None, *, quiet: bool = True
) -> tuple[Run, DataFolder]:
    """The settings and the data of a new run; whatever cannot work is told here, before anything is written of it.

    Args:
        run_dir: as `train_model` takes it, like `data_dir`.
        data_dir: see `run_dir`.
        settings: those that are given.
        source: the run whose model it begins with, if any.
        quiet: show nothing of how a large text is prepared.
    """
    data_config, model, training = _split(settings, *_defaults(source, run_dir, data_dir, settings), TrainingConfig())
    if source and dataclasses.replace(model, **_fields(source.model, _FREE)) != source.model:
        raise UserError(f"{source.path}: its model is kept by --init_from; leave out the settings of another")
    backends.choose(model.implementation, model.precision, recurrent_activation=model.recurrent_activation)
    if data_dir:
        data = dataset.open_data(data_dir)
        data_config = data.config
        for name in settings.keys() & {field.name for field in dataclasses.fields(DataConfig)}:
            if settings[name] != getattr(data_config, name):
                kept = getattr(data_config, name)
                raise ConfigError(f"--{name}: {data_dir} was prepared with {kept!r}; leave the flag out")
    else:
        data = dataset.cached(data_config, quiet=quiet)
    if source:
        if data_config.layout != source.data.layout:
            raise ConfigError(f"--layout: {source.path} has learned from the layout {source.data.layout}; keep it")
        data = data.with_vocabulary(source.vocabulary)
    check_suits(model, data.layout)
    part = data.splits["train"]
    batching.steps_per_epoch(part.characters, part.records, data_config, training)  # for its check: enough for a batch
    path = Path(run_dir) if run_dir else _free_name(model.cell)
    settled = (str(data_dir), data.fingerprint, model, training, data.vocabulary, len(part.shards))
    return Run(path, data_config, *settled), data


def resume_run(
    run_dir: str | Path, data_dir: str | Path, settings: Settings, *, quiet: bool = True
) -> tuple[Run, DataFolder]:
    """The settings and the data of a run that goes on: its own, but for those given now.

    Raises:
        UserError: a setting that a run cannot change on the way, or data that is not the same.
    """
    saved = run_lib.load(run_dir or run_lib.newest())
    if not saved.fingerprint:
        raise UserError(
            f"{saved.path}: was imported, so there is nothing to resume; begin with --init_from={saved.path}"
        )
    if "epochs" in settings and "steps" not in settings:
        settings = {**settings, "steps": 0}
    data_config, model, training = _split(settings, saved.data, saved.model, saved.training)
    if dataclasses.replace(model, **_fields(saved.model, _HOW)) != saved.model:
        raise UserError(
            f"{saved.path}: a resumed run keeps its model; leave out the settings of another, or start anew"
        )
    # lines are padded to the longest of the steps that may share a call, and sums depend on that in their last bit
    kept = _KEPT if LAYOUTS[saved.data.layout].pad_id is None else (*_KEPT, "steps_per_call")
    for name in kept:
        if getattr(training, name) != getattr(saved.training, name):
            raise UserError(f"{saved.path}: a resumed run keeps its --{name}={getattr(saved.training, name)}")
    backends.choose(model.implementation, model.precision, recurrent_activation=model.recurrent_activation)
    if data_config == saved.data:
        data_dir = data_dir or saved.data_dir
        data = dataset.find(data_config, data_dir, saved.fingerprint, quiet=quiet)
    else:
        data = dataset.open_data(data_dir) if data_dir else dataset.cached(data_config, quiet=quiet)
    if data.fingerprint != saved.fingerprint:
        raise UserError(
            f"{saved.path}: was trained on other data than {data.name}; give it the same text and data flags"
        )
    files = len(data.splits["train"].shards)
    if saved.num_files not in (0, files) and data.symbols("train") > training.shuffle_buffer:
        raise UserError(
            f"{saved.path}: was trained on {saved.num_files} files in a random order, and {data.path} has {files}; "
            f"prepare the text with --num_shards={saved.num_files}"
        )
    run = dataclasses.replace(saved, data=data_config, data_dir=str(data_dir), model=model, training=training)
    return run, data.with_vocabulary(saved.vocabulary)


def _defaults(
    source: Run | None, run_dir: str | Path, data_dir: str | Path, settings: Settings
) -> tuple[DataConfig, ModelConfig]:
    """What stands for settings of a new run that are not given: the defaults, or those of the run it begins with."""
    if source is None:
        return DataConfig(), ModelConfig()
    if not (data_dir or settings.get("input") or settings.get("corpus")):
        raise ConfigError("--init_from needs a text to go on with: --input, --corpus or --data_dir")
    if run_dir and Path(run_dir).resolve() == source.path.resolve():
        raise ConfigError(f"--run_dir must be another folder than --init_from. Received: {run_dir}")
    return dataclasses.replace(source.data, input=(), corpus=""), source.model


def _fields(config: ModelConfig, names: tuple[str, ...]) -> Settings:
    return {name: getattr(config, name) for name in names}


def _free_name(cell: str) -> Path:
    """A new folder in `runs/`, named after the time."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{cell}"
    path, number = run_lib.RUNS / name, 1
    while path.exists():
        number += 1
        path = run_lib.RUNS / f"{name}-{number}"
    return path


def _split(settings: Settings, *configs: Any) -> list[Any]:
    """The configs with the settings that belong to each."""
    changed, used = [], set()
    for config in configs:
        names = {field.name for field in dataclasses.fields(config)} & set(settings)
        changed.append(dataclasses.replace(config, **{name: settings[name] for name in names}))
        used |= names
    for name in settings:
        if name not in used:
            raise ConfigError(f"there is no setting {name!r}")
    return changed
