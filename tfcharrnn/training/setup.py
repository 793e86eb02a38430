"""Sets up a training run, new or resumed, and trains it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from tfcharrnn import cell_registry, devices
from tfcharrnn import config as config_lib
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig, check_exclusive, read_settings, to_dict
from tfcharrnn.data import batching, dataset
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.distributed import cluster
from tfcharrnn.distributed.cluster import Cluster
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model import backends
from tfcharrnn.model.char_rnn import check_zero_start
from tfcharrnn.preparation import cache, corpora
from tfcharrnn.runs import initial_weights, model_folder, run_folder
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.settings import TrainSettings
from tfcharrnn.training import budget
from tfcharrnn.training import callbacks as callbacks_lib
from tfcharrnn.training.callbacks import Callback, Result
from tfcharrnn.training.loop import train

Settings = dict[str, Any]

# of `train_model`, for the hint at a misspelt one
_ARGUMENTS = (
    "run_dir",
    "data_dir",
    "text",
    "init_from",
    "init_arrays",
    "resume",
    "overwrite",
    "callbacks",
    "quiet",
)
# model settings that say how it is computed; a resumed run may change them
_COMPUTE_SETTINGS = ("implementation", "precision", "tf32", "unroll")
# model settings that a run which starts with another run's weights may change
_FREE_SETTINGS = (
    *_COMPUTE_SETTINGS,
    "dropout",
    "output_dropout",
    "input_dropout",
    "embedding_dropout",
    "weight_drop",
    "locked_dropout",
)
# settings that say on which devices a run trains
_DEVICE_SETTINGS = ("strategy", "num_replicas", "rendezvous_timeout")
# settings in which workers may differ: where a machine has the text, and what only the chief does
_WORKER_SETTINGS = (
    "input",
    "rendezvous_timeout",
    "sample_length",
    "keep_checkpoints",
    "keep_every",
    "smoothing",
    "smoothing_start",
    "plot",
    "tensorboard",
)
# settings that several devices do not have, and why
_SETTINGS_OF_ONE_DEVICE = {
    "minutes": "measures one device",
    "loss_after_update": "is measured on one device",
}
# training settings that a resumed run must keep, so that its steps mean the same
_FIXED_SETTINGS = (
    "minutes",
    "batch_size",
    "seed",
    "optimizer",
    "average",
    "shuffle",
    "carry_state",
    "random_start",
    "shuffle_buffer",
    "drop_remainder",
    "reduction",
)


def train_model(
    run_dir: str | Path = "",
    *,
    data_dir: str | Path = "",
    text: str | None = None,
    init_from: str | Path = "",
    init_arrays: str | Path = "",
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **settings: Unpack[TrainSettings],
) -> Result:
    """Trains a model, as `python -m tfcharrnn.train` does.

    Args:
        run_dir: the run folder; empty: a new one in `runs/`, or with `resume` the newest there.
        data_dir: a data folder made by `prepare_data`, instead of `input` or `corpus` among the settings.
        text: the text itself, instead of them. It is prepared like a file with this content, and stays in the user's
            cache, where `resume` and `evaluate_split` find it.
        init_from: a run, or `pretrained:NAME`, whose model, vocabulary and last weights the new run starts with, on
            another text.
        init_arrays: a `.npz` file with the weights that the new run starts with, named as `export --format=npz` does.
        resume: continue the run from its last checkpoint.
        overwrite: replace an existing run.
        callbacks: called at each step, validation, sample, checkpoint and at the end; see `Callback`.
        quiet: show nothing.
        **settings: fields of `DataConfig`, `ModelConfig` and `TrainingConfig`, such as
            `input="my.txt", cell="gru", steps=500`. `input` is a name, a `Path` or a list of them; a name may also be
            a pattern or a folder, but unlike in `--input` a comma is part of the name. A cell that an installed package
            declares is imported by name.

    Returns:
        The run folder and how training ended.

    Raises:
        UserError: anything the user can mend, in one line.
    """
    begun = time.monotonic()
    devices.set_up()
    given = read_settings(settings, DataConfig, ModelConfig, TrainingConfig, others=_ARGUMENTS)
    callbacks_lib.check_callbacks(callbacks)
    check_exclusive(resume=resume, overwrite=overwrite)
    check_exclusive(resume=resume, init_from=init_from, init_arrays=init_arrays)
    check_exclusive(data_dir=data_dir, text=text is not None, input=given.get("input"), corpus=given.get("corpus"))
    if isinstance(given.get("cell"), str):  # named by the caller, unlike a run folder's
        cell_registry.load_named_cell(given["cell"])
    if text is not None:
        given["input"] = (corpora.TEXT_NAME,)
    saved = run_folder.load(run_dir or run_folder.find_newest_run()) if resume else None
    source = run_folder.load(init_from) if init_from else None
    origin = {"resume": resume, "init_from": bool(init_from), "init_arrays": bool(init_arrays)}
    workers = _join_cluster(saved, source, run_dir, data_dir, given, origin, quiet)
    with workers.report_lost_workers(str(saved.path if saved else run_dir)):
        weights = None
        if source:
            weights = initial_weights.from_run(source)
        notes: list[str] = []
        with workers.chief_first():
            if saved:
                run, data = prepare_resume(saved, data_dir, given, text=text, quiet=quiet)
            else:
                run, data = prepare_run(
                    run_dir, data_dir, given, source, text=text, begun=begun, notes=notes, quiet=quiet
                )
            if init_arrays:
                weights = initial_weights.from_arrays(init_arrays, run.model, data.vocabulary)
            workers.check_batch_size(run.training.batch_size)
            if run.training.patience and workers.num_workers > 1:  # only the chief validates
                raise ConfigError("--patience: is not available with several workers; set --steps")
            if workers.is_chief:
                if not resume:
                    run_folder.check_new_run_dir(run.path, overwrite=overwrite)
                callbacks_lib.check_available(run.training)
        with run_folder.lock_run_dir(run.path) if workers.is_chief else contextlib.nullcontext():
            if workers.is_chief:
                (run_folder.check_own_files if resume else run_folder.clear_run_dir)(run.path)
            return train(
                run,
                data,
                workers,
                resume=resume,
                weights=weights,
                callbacks=callbacks,
                notes=notes,
                quiet=quiet,
            )


def _join_cluster(
    saved: Run | None,
    source: Run | None,
    run_dir: str | Path,
    data_dir: str | Path,
    settings: Settings,
    origin: Settings,
    quiet: bool,
) -> Cluster:
    """Joins the workers that the settings name, which must happen before TensorFlow computes anything.

    Args:
        saved: the run to resume, if any.
        source: the run that a new one starts with, if any.
        run_dir: the run folder.
        data_dir: a data folder, or "".
        settings: the settings that are given.
        origin: which flags say where the weights come from.
        quiet: print nothing.
    """
    names = (*_DEVICE_SETTINGS, *_SETTINGS_OF_ONE_DEVICE)
    (config,) = _apply_settings(
        {name: settings[name] for name in names if name in settings}, saved.training if saved else TrainingConfig()
    )
    for name, reason in _SETTINGS_OF_ONE_DEVICE.items():
        if config.strategy != "none" and getattr(config, name):
            raise ConfigError(f"--{name}: {reason}; not available with --strategy={config.strategy}")
    if config.strategy == "multi_worker" and not run_dir:
        raise ConfigError("--strategy=multi_worker: needs a --run_dir, one folder that all workers share")
    if config.strategy != "multi_worker":
        return cluster.join_cluster(config.strategy, config.num_replicas, quiet=quiet)
    if saved:
        configs = _apply_settings(settings, saved.data, saved.model, saved.training)
    else:
        defaults = _choose_defaults(source, run_dir, data_dir, settings)
        configs = _apply_settings(settings, *defaults)
    common = dict(origin)
    for one in configs:
        common |= {name: value for name, value in config_lib.to_dict(one).items() if name not in _WORKER_SETTINGS}
    return cluster.join_cluster(
        config.strategy,
        settings=common,
        run_dir=Path(run_dir),
        timeout=config.rendezvous_timeout,
        quiet=quiet,
    )


def prepare_run(
    run_dir: str | Path,
    data_dir: str | Path,
    settings: Settings,
    source: Run | None = None,
    *,
    text: str | None = None,
    begun: float | None = None,
    notes: list[str] | None = None,
    quiet: bool = True,
) -> tuple[Run, DataFolder]:
    """Returns the settings and the data of a new run, checked before anything of it is written.

    Args:
        run_dir: the run folder; empty: a new one in `runs/`.
        data_dir: a data folder, or "" to prepare the text that the settings name.
        settings: the settings that are given.
        source: the run whose model it starts with, if any.
        text: the text, if it was passed from memory.
        begun: when the time of `--minutes` began, by `time.monotonic`; None: now.
        notes: lines that say what was chosen for the user are appended to it.
        quiet: show no progress of preparing a large text.

    Raises:
        UserError: the settings contradict one another, the data or `source`.
    """
    begun = time.monotonic() if begun is None else begun
    notes = [] if notes is None else notes
    defaults = _choose_defaults(source, run_dir, data_dir, settings)
    data_config, model, training = _apply_settings(settings, *defaults)
    if source:
        if changed := _describe_changes(source.model, model, but=_FREE_SETTINGS):
            raise UserError(f"{source.path}: --init_from keeps its model, {changed}; leave the flag out")
        _check_keeps_float64(source, model)
    devices.set_numerics(tf32=model.tf32, deterministic=training.deterministic)
    backends.check_backend(model)
    if data_dir:
        data = dataset.open_data(data_dir)
        data_config = data.config
        for name in settings.keys() & {field.name for field in dataclasses.fields(DataConfig)}:
            if settings[name] != getattr(data_config, name):
                prepared = getattr(data_config, name)
                raise ConfigError(f"--{name}: {data_dir} was prepared with {prepared!r}; leave the flag out")
    else:
        data = cache.prepare_cached(data_config, text=text, quiet=quiet)
    if source:
        if data_config.layout != source.data.layout:
            raise ConfigError(f"--layout: {source.path} was trained on the layout {source.data.layout}; keep it")
        try:
            data = data.with_vocabulary(source.vocabulary)
        except UserError as error:
            raise UserError(f"{error}; prepare the text without other characters: --drop_chars, --lowercase") from None
    check_zero_start(model, data.layout)
    train_split = data.splits["train"]
    if training.minutes:
        model, training, chosen = budget.choose_settings(
            training.minutes, begun, data, model, training, settings, is_model_fixed=source is not None
        )
        notes += chosen
    elif "batch_size" not in settings:
        most = batching.count_rows(train_split.characters, train_split.records, data_config)
        if 0 < most < training.batch_size:
            notes.append(
                f"batches of {most}, since the text has no more examples; the default is {training.batch_size}"
            )
            training = dataclasses.replace(training, batch_size=most)
    batching.check_fits_layout(train_split.characters, train_split.records, data_config, training)
    path = Path(run_dir) if run_dir else _choose_run_dir(model.cell)
    num_files = len(train_split.shards)
    run = Run(path, data_config, str(data_dir), data.fingerprint, model, training, data.vocabulary, num_files)
    return run, data


def prepare_resume(
    saved: Run, data_dir: str | Path, settings: Settings, *, text: str | None = None, quiet: bool = True
) -> tuple[Run, DataFolder]:
    """Returns the settings and the data of a resumed run: its own, except for the settings given now.

    Args:
        saved: the run as it was saved.
        data_dir: a data folder, or "" for the data it was trained on.
        settings: the settings that are given.
        text: the text, if it was passed from memory again.
        quiet: show no progress of preparing a large text again.

    Raises:
        UserError: a setting that a resumed run cannot change, or other data.
    """
    if not saved.fingerprint or model_folder.is_model_folder(saved.path):
        what = "was imported" if not saved.fingerprint else "has no checkpoints"
        raise UserError(
            f"{saved.path}: {what}, so there is nothing to resume; start a run with --init_from={saved.path}"
        )
    if "epochs" in settings and "steps" not in settings:
        settings = {**settings, "steps": 0}
    data_config, model, training = _apply_settings(settings, saved.data, saved.model, saved.training)
    if changed := _describe_changes(saved.model, model, but=_COMPUTE_SETTINGS):
        raise UserError(
            f"{saved.path}: a resumed run keeps its model, {changed}; leave the flag out, or start a new run"
        )
    _check_keeps_float64(saved, model)
    # lines are padded to the longest of the steps that may share a call, and the last bits of sums depend on that
    fixed = _FIXED_SETTINGS if LAYOUTS[saved.data.layout].pad_id is None else (*_FIXED_SETTINGS, "steps_per_call")
    for name in fixed:
        was, now = getattr(saved.training, name), getattr(training, name)
        if now != was:
            raise UserError(f"{saved.path}: a resumed run keeps its --{name}={was}; leave --{name}={now} out")
    devices.set_numerics(tf32=model.tf32, deterministic=training.deterministic)
    backends.check_backend(model)
    if data_config == saved.data and text is None:
        data_dir = data_dir or saved.data_dir
        data = cache.find_data(data_config, data_dir, saved.fingerprint, quiet=quiet)
    else:
        data = dataset.open_data(data_dir) if data_dir else cache.prepare_cached(data_config, text=text, quiet=quiet)
    if data.fingerprint != saved.fingerprint:
        changed = _describe_changes(saved.data, data_config)
        remedy = f"its settings are {changed}" if changed else "pass the same text"
        raise UserError(f"{saved.path}: was trained on other data than {data.name}; {remedy}")
    num_files = len(data.splits["train"].shards)
    if saved.num_files not in (0, num_files) and data.count_symbols("train") > training.shuffle_buffer:
        raise UserError(
            f"{saved.path}: was trained on {saved.num_files} files in random order, and {data.path} has {num_files}; "
            f"prepare the text with --num_shards={saved.num_files}"
        )
    run = dataclasses.replace(saved, data=data_config, data_dir=str(data_dir), model=model, training=training)
    return run, data.with_vocabulary(saved.vocabulary)


def _choose_defaults(
    source: Run | None, run_dir: str | Path, data_dir: str | Path, settings: Settings
) -> tuple[DataConfig, ModelConfig, TrainingConfig]:
    """Returns the settings of a new run that are not given: the defaults, or those of the run it starts with.

    A run's training options are not those of the next one, except those that an import wrote, to go on as the program
    that trained the model would.
    """
    if source is None:
        # only the layout that is not given is chosen; its length is that of `seq_length`'s own flag
        is_free = settings.get("minutes") and not data_dir and "layout" not in settings
        return DataConfig(**(budget.DATA_SETTINGS if is_free else {})), ModelConfig(), TrainingConfig()
    if not (data_dir or settings.get("input") or settings.get("corpus")):
        raise ConfigError("--init_from: needs a text to continue with: --input, --corpus or --data_dir")
    if run_dir and Path(run_dir).resolve() == source.path.resolve():
        raise ConfigError(f"--run_dir: must differ from --init_from. Received: {run_dir}")
    training = TrainingConfig() if source.fingerprint else source.training
    return dataclasses.replace(source.data, input=(), corpus=""), source.model, training


def _describe_changes(saved: Any, config: Any, but: tuple[str, ...] = ()) -> str:
    """Names the settings that differ from the saved ones, with both values; "" if none does."""
    was, now = to_dict(saved), to_dict(config)
    return ", ".join(
        f"--{name}={was[name]} and not {now[name]}" for name in was if name not in but and was[name] != now[name]
    )


def _choose_run_dir(cell: str) -> Path:
    """Returns the path of a new folder in `runs/`, named after the time."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{cell}"
    path, number = run_folder.RUNS_DIR / name, 1
    while path.exists():
        number += 1
        path = run_folder.RUNS_DIR / f"{name}-{number}"
    return path


def _check_keeps_float64(saved: Run, model: ModelConfig) -> None:
    """Checks that weights of float32 are not to be used in float64, nor the other way round.

    Raises:
        UserError: they are.
    """
    if (saved.model.precision == "float64") != (model.precision == "float64"):
        raise UserError(
            f"{saved.path}: --precision={model.precision} cannot use its weights, which were trained with "
            f"--precision={saved.model.precision}; export them with --format=npz, and start another run with "
            "--init_arrays"
        )


def _apply_settings(settings: Settings, *configs: Any) -> list[Any]:
    """Returns the configs, each with the settings that belong to it."""
    changed = []
    for config in configs:
        names = {field.name for field in dataclasses.fields(config)} & set(settings)
        changed.append(dataclasses.replace(config, **{name: settings[name] for name in names}))
    return changed
