"""The training loop: what happens around the compiled steps of `tfcharrnn.training.train_step`."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.data import input_pipeline, out_of_core
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.distributed.cluster import Cluster
from tfcharrnn.errors import UserError, first_line
from tfcharrnn.inference.evaluation import Evaluator
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs import checkpoints
from tfcharrnn.runs.checkpoints import Checkpoint
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.training.callbacks import Recorder
from tfcharrnn.training.data_parallel import ReplicatedTrainer
from tfcharrnn.training.metrics import RunningMetrics
from tfcharrnn.training.progress import Progress
from tfcharrnn.training.signals import Interruption
from tfcharrnn.training.train_step import Results, Trainer


@dataclasses.dataclass(frozen=True)
class Result:
    """How a training run ended.

    Attributes:
        run_dir: the run folder.
        step: steps done in all.
        loss: training loss of the last steps, in nats a character.
        val_loss: last validation loss, or None if there was none.
        interrupted: stopped before its end, by a signal.
        is_shared: other workers took part.
    """

    run_dir: str
    step: int
    loss: float
    val_loss: float | None
    interrupted: bool
    is_shared: bool = False


def train(
    run: Run,
    data: DataFolder,
    cluster: Cluster,
    *,
    resume: bool = False,
    weights: Checkpoint | None = None,
    quiet: bool = False,
) -> Result:
    """Trains the model of a run on a data folder.

    Args:
        run: the settings and the run folder, which exists.
        data: what to train on.
        cluster: the workers that do it together; only the chief writes, and shows something.
        resume: go on from the newest checkpoint, or from the start if there is none yet.
        weights: a checkpoint of another run, with whose weights a new one begins.
        quiet: show nothing.

    Returns:
        How it ended. SIGINT (Ctrl-C), SIGTERM and SIGHUP end it within seconds, with a checkpoint.

    Raises:
        UserError: too little data for a batch, a run that is at its end already, no checkpoint that is whole, a loss
            that is no finite number, or a disk that refuses.
    """
    config = run.training
    mine = cluster.rows(config.batch_size)
    order = input_pipeline.training_order(data, config, range(mine[0].start, mine[-1].stop))
    validation = out_of_core.predicted_once(data, "val")
    total = config.steps or config.epochs * order.steps_per_epoch

    def make_model() -> CharRNN:
        return CharRNN(run.model, len(data.vocabulary), config.seed, layout=data.layout)

    lengths = (order.mean_width, order.steps_per_epoch, total)
    trainer = (
        ReplicatedTrainer(make_model, config, *lengths, cluster)
        if cluster.strategy
        else Trainer(make_model(), config, *lengths)
    )
    model = trainer.model
    evaluator, running = Evaluator(model), RunningMetrics(config, len(data.vocabulary))
    sampler = Sampler(model, data.vocabulary, data.config.seq_length, trainer.carried)
    step_variable = tf.Variable(0, dtype=tf.int64, trainable=False)
    state = {"model": model, "optimizer": trainer.optimizer, "step": step_variable}
    if trainer.carried is not None:
        state["carried"] = trainer.carried
    start = step = _restore(run, state, running) if resume else 0
    cluster.check_alike({"text": int(data.fingerprint[:12], 16), "first step": start, "number of steps": total})
    if start >= total:
        raise UserError(f"{run.path}: is at step {start:,} of {total:,} already; give more --steps or --epochs")
    progress = Progress(run, data, model, order.steps_per_epoch, start, total, cluster, quiet=quiet)
    recorder = None
    if cluster.is_chief:
        recorder = Recorder(run, state, validation, evaluator, sampler, running, progress, order.steps_per_epoch, total)
    if weights is not None:
        checkpoints.restore(weights, {"model": model})
    if recorder:
        if weights is not None:
            recorder.save(0)  # so that to resume needs no other run
        run.save()  # with the settings given now; from here on the folder is a run, which can be resumed

    def take(results: Results, first: int, sizes: npt.NDArray[np.int32], ids: tf.Tensor) -> list[dict[str, Any]]:
        """Counts some steps; returns the rows of metrics due before the last of them."""
        nonlocal step
        rows = []
        for index, result in enumerate(results.steps.tolist(), start=1):
            place, step = step - first, step + 1
            running.seconds += results.seconds / len(results.steps)
            if np.isfinite(result).all():
                total_loss, characters, norm, rate = result
                running.add(total_loss, characters, norm, rate, int(sizes[place]))
            else:
                running.skipped += 1
                if running.skipped > config.skip_bad_steps:
                    raise _diverged(run, trainer, ids[place], int(sizes[place]), step, result)
                progress.skipped(step, running.skipped, config.skip_bad_steps)
            is_due = config.log_every and step % config.log_every == 0 and index < len(results.steps)
            if is_due and not running.is_empty:
                rows.append(running.row(step, step / order.steps_per_epoch, results.speed))
        return rows

    size, loss = trainer.steps_per_call, float("nan")
    events = (config.eval_every, config.sample_every, config.checkpoint_every)
    batches = input_pipeline.training_batches(order, lambda: input_pipeline.calls(start, total, events, size), size)
    with Interruption() as interruption, progress, contextlib.closing(order):
        for first, count, sizes, ids in input_pipeline.taken(batches, order, running.wait):
            skips_left = config.skip_bad_steps - running.skipped
            for results in trainer.run(int(first), int(count), ids, skips_left, lambda: interruption.requested, sizes):
                progress.compiled(results)
                rows, loss = take(results, int(first), sizes.numpy(), ids), results.loss
                if recorder:
                    recorder.record(step, results, rows)
            if results.stopped:
                break
    cluster.wait()  # for the chief to have written the last of it
    val_loss = recorder.val_loss if recorder else None
    progress.finish(step, total, val_loss, interrupted=step < total)
    return Result(str(run.path), step, loss, val_loss, interrupted=step < total, is_shared=cluster.num_workers > 1)


def _diverged(
    run: Run, trainer: Trainer | ReplicatedTrainer, ids: tf.Tensor, size: int, step: int, result: list[float]
) -> UserError:
    """The error of a step in which a loss or a gradient was no finite number.

    Its batch is `[rows, width]`, of `size` examples.
    """
    total, characters, _, rate = result
    norms = ", ".join(f"{name} {norm:.3g}" for name, norm in trainer.gradient_norms(ids, step - 1, size).items())
    saved = checkpoints.listed(run.path)
    last = f"the checkpoint of step {saved[-1].step} is as it was" if saved else "no checkpoint was written yet"
    return UserError(
        f"step {step}: loss {total / characters:g} at learning rate {rate:g}; gradient norms: {norms}. The step was "
        f"not applied, and {last}. Go on from there with --resume and a smaller --learning_rate, with --clip_norm, or "
        "with --skip_bad_steps=N"
    )


def _restore(run: Run, state: dict[str, Any], running: RunningMetrics) -> int:
    """Reads the newest checkpoint into the objects of a training run and returns its step; 0 if there is none yet."""
    if not checkpoints.folders(run.path):
        return 0
    checkpoint = checkpoints.find(run.path)
    checkpoints.restore(checkpoint, state)
    if int(state["step"]) != checkpoint.step:
        raise UserError(f"{checkpoint.path}: its step is {int(state['step'])} in the weights' file; it is damaged")
    try:
        running.restore(checkpoint.log)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{checkpoint.path}: checkpoint.json is damaged ({what}); remove {checkpoint.path.name} "
            "to use the one before it"
        ) from None
    return checkpoint.step
