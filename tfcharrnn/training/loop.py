"""The training loop: what happens around the compiled steps, in the order in which it happens."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfcharrnn import files
from tfcharrnn.config import GenerationConfig
from tfcharrnn.data import evaluation_examples, input_pipeline
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.input_pipeline import Call
from tfcharrnn.distributed.cluster import Cluster
from tfcharrnn.errors import UserError, first_line
from tfcharrnn.inference.evaluation import Evaluator
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.model.char_rnn import CharRNN, variable_shapes
from tfcharrnn.runs import checkpoints, run_folder
from tfcharrnn.runs.checkpoints import Checkpoint
from tfcharrnn.runs.initial_weights import InitialWeights
from tfcharrnn.runs.logs import LogWriter
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.training.callbacks import (
    Callback,
    CheckpointReport,
    Result,
    SampleReport,
    StepReport,
    ValidationReport,
    make_callbacks,
)
from tfcharrnn.training.data_parallel import DataParallelTrainer
from tfcharrnn.training.metrics import RunningMetrics
from tfcharrnn.training.progress import Progress
from tfcharrnn.training.signals import StopSignals
from tfcharrnn.training.train_step import RunLength, StepResults, StepRunner, Trainer
from tfcharrnn.training.training_state import TrainingState

# lines of a sample at most
_SAMPLE_LINES = 10


def train(
    run: Run,
    data: DataFolder,
    cluster: Cluster,
    *,
    resume: bool = False,
    weights: InitialWeights | None = None,
    callbacks: Sequence[Callback] = (),
    notes: Sequence[str] = (),
    quiet: bool = False,
) -> Result:
    """Trains the model of a run on a data folder.

    Args:
        run: the settings and the run folder, which exists.
        data: the data to train on.
        cluster: the workers that train together; only the chief writes files and shows progress.
        resume: continue from the newest checkpoint, or from the start if there is none yet.
        weights: sets the weights that a new run starts with, instead of random ones.
        callbacks: called by the chief, after those that the training options ask for.
        notes: lines to show at the start: settings that were chosen for the user.
        quiet: show nothing.

    Returns:
        How the run ended. SIGINT (Ctrl-C), SIGTERM and SIGHUP end it within seconds, with a checkpoint.

    Raises:
        UserError: too little data for a batch, a run that is complete, no undamaged checkpoint, a loss that is not
            finite, a callback that fails, or a write that fails.
    """
    config = run.training
    own_rows = cluster.split_batch(config.batch_size)
    sampler = input_pipeline.make_sampler(data, config, range(own_rows[0].start, own_rows[-1].stop))
    length = RunLength(sampler.steps_per_epoch, config.steps or config.epochs * sampler.steps_per_epoch)
    checkpoint = _find_checkpoint(run) if resume else None
    runner = _make_runner(run, data, cluster, sampler.mean_width, length)
    state = TrainingState(runner, RunningMetrics(config, len(data.vocabulary)))
    if checkpoint:
        state.restore(checkpoint, run.path)
    start, total = state.step, length.total_steps
    cluster.check_consistent({"text": int(data.fingerprint[:12], 16), "first step": start, "number of steps": total})
    if start >= total:
        raise UserError(f"{run.path}: is complete: step {start:,} of {total:,}; to continue, raise --steps or --epochs")
    best = state.metrics.best
    if best and state.metrics.is_out_of_patience:
        raise UserError(
            f"{run.path}: is complete: its validation loss has not fallen since step {best.step:,}; to continue, "
            "raise --patience"
        )
    progress = Progress(run, data, runner.model, length, start, cluster, notes, quiet=quiet)
    recorder = None
    if cluster.is_chief:
        others = [*make_callbacks(run, runner.model, quiet=quiet), *callbacks]
        recorder = Recorder(run, data, runner, state, length, progress, others)
    if weights is not None:
        weights(runner.model)
        if runner.average is not None:
            weights(runner.average.model)
        cluster.check_consistent({"file of initial weights": _hash_weights(runner.model)})
    if recorder:
        if weights is not None:
            recorder.save()  # a resume then needs no other run
        run.save()  # with the settings given now; from here on the folder is a run that can be resumed

    events = (config.eval_every, config.sample_every, config.checkpoint_every)
    pipeline = input_pipeline.BatchPipeline(sampler, runner.steps_per_call)
    with StopSignals() as signals, progress, pipeline:
        for call in pipeline.iterate(start, total, events):
            state.metrics.waited += call.wait_seconds
            skips_left = config.skip_bad_steps - state.metrics.skipped
            sizes = call.sizes.numpy()
            for results in runner.run(call, skips_left, lambda: signals.requested):
                progress.show_compiled(results)
                rows = state.advance(results, sizes[state.step - call.first_step :], config, length, progress)
                if state.metrics.skipped > config.skip_bad_steps:
                    raise _divergence_error(run, runner, call, state.step, results)
                if recorder:
                    recorder.record(results, rows)
            if results.stopped or state.metrics.is_out_of_patience:
                break
    cluster.barrier()  # until the chief has written everything
    val_loss, best = recorder.val_loss if recorder else None, state.metrics.best
    interrupted = state.step < total and not state.metrics.is_out_of_patience
    is_shared = cluster.num_workers > 1
    result = Result(str(run.path), state.step, results.loss, val_loss, best, interrupted, is_shared=is_shared)
    if recorder:
        recorder.notify("on_end", result)
    return result


class Recorder:
    """Validates, logs, samples and saves, in this order, at the steps that the training options name and at the last.

    A new lowest validation loss is saved at once.

    Only the chief worker has one. A resumed run's log files are truncated to their sizes at its checkpoint.

    Attributes:
        val_loss: the last validation loss in nats a character, or None if there was none.
    """

    def __init__(
        self,
        run: Run,
        data: DataFolder,
        runner: StepRunner,
        state: TrainingState,
        length: RunLength,
        progress: Progress,
        callbacks: Sequence[Callback],
    ):
        self.val_loss: float | None = None
        self._run = run
        self._state = state
        self._length = length
        self._validation = evaluation_examples.load_evaluation_examples(data, "val")
        model = runner.average.model if runner.average else runner.model
        self._evaluate = Evaluator(model, progress.add_compilation)
        carried = runner.carried if data.layout.carries_state else None
        self._sampler = Sampler(model, data.vocabulary, data.config.seq_length, carried)
        self._logs = LogWriter(run.path, state.metrics.log_sizes)
        self._callbacks = [progress, *callbacks]

    def record(self, results: StepResults, rows: list[dict[str, Any]]) -> None:
        """Does what is due after some steps.

        Args:
            results: the steps.
            rows: the rows of metrics due before the last of these steps.
        """
        config, metrics, step = self._run.training, self._state.metrics, self._state.step
        val_loss, is_best = None, False
        if self._validation.num_examples and self._is_due(config.eval_every):
            val_loss = self.val_loss = self._evaluate(self._validation, config.batch_size).loss
            if not math.isfinite(val_loss):
                raise _overflow_error(self._run, step)
            is_best = metrics.add_validation(step, val_loss)

        if (val_loss is not None or self._is_due(config.log_every)) and not metrics.is_empty:
            epoch = step / self._length.steps_per_epoch
            rows = [*rows, metrics.take_row(step, epoch, val_loss)]
        self._logs.write_rows(rows)
        for report in self._report_steps(results, rows, val_loss):
            self.notify("on_step", report)
        if val_loss is not None and metrics.best is not None:
            self.notify("on_validation", ValidationReport(step, val_loss, metrics.best))

        if self._is_due(config.sample_every):
            text = self._generate_sample(step)
            smooth_loss = results.loss if metrics.smooth_loss is None else metrics.smooth_loss
            self._logs.write_sample(f"step {step}, smoothed loss {smooth_loss:.4f}", text)
            self.notify("on_sample", SampleReport(step, text))

        if self._is_due(config.checkpoint_every) or results.stopped or is_best:
            self.notify("on_checkpoint", CheckpointReport(step, self.save(val_loss)))

    def save(self, val_loss: float | None = None) -> Path:
        """Writes a checkpoint, with the validation loss if it was measured at this step, and prunes old ones."""
        config = self._run.training
        path = self._state.save(self._run.path, self._logs.sync(), val_loss)
        checkpoints.prune(self._run.path, config.keep_checkpoints, config.keep_every)
        return path

    def _generate_sample(self, step: int) -> str:
        """Generates a text, or from a model of lines as many as are about as long together, one a line."""
        length = self._run.training.sample_length
        settings = GenerationConfig(length=length, seed=(self._run.training.seed + step) % 2**31)
        if not self._sampler.vocabulary.is_of_lines:
            return self._sampler.generate(settings)[0]
        lines = self._sampler.generate(dataclasses.replace(settings, num_samples=_SAMPLE_LINES))
        ends = itertools.accumulate(len(line) + 1 for line in lines)
        return "\n".join(line for line, end in zip(lines, ends, strict=True) if line is lines[0] or end <= length)

    def notify(self, event: str, report: Any) -> None:
        """Calls a method of every callback.

        Raises:
            UserError: one fails; the message names it.
        """
        for callback in self._callbacks:
            try:
                getattr(callback, event)(report)
            except Exception as error:
                remedy = "" if event == "on_end" else "; mend it, and continue with --resume"
                raise UserError(
                    f"step {self._state.step}: the callback {type(callback).__name__}.{event} failed "
                    f"({type(error).__name__}: {first_line(error)}), and {_describe_last_checkpoint(self._run)}{remedy}"
                ) from error

    def _report_steps(
        self, results: StepResults, rows: list[dict[str, Any]], val_loss: float | None
    ) -> Iterator[StepReport]:
        """Yields the report of each step; the last one has the validation loss."""
        row_by_step = {row["step"]: row for row in rows}
        last = self._state.step
        steps = zip(results.per_step(), results.is_finite.tolist(), strict=True)
        for step, (metrics, is_applied) in enumerate(steps, last - results.num_steps + 1):
            yield StepReport(
                step=step,
                epoch=step / self._length.steps_per_epoch,
                loss=metrics.loss_sum / metrics.num_characters,
                mean_loss=results.loss,
                learning_rate=metrics.learning_rate,
                grad_norm=metrics.grad_norm,
                chars_per_second=None if results.is_first else results.chars_per_second,
                is_applied=is_applied,
                is_current=step == last,
                val_loss=val_loss if step == last else None,
                row=row_by_step.get(step),
            )

    def _is_due(self, interval: int) -> bool:
        """Returns whether something that happens every `interval` steps (0: never), and at the end, is due."""
        step = self._state.step
        is_end = step == self._length.total_steps or self._state.metrics.is_out_of_patience
        return is_end or (interval > 0 and step % interval == 0)


def _find_checkpoint(run: Run) -> Checkpoint | None:
    """Finds the checkpoint to resume from and checks that it is of this model; without any the run starts anew.

    Raises:
        UserError: every checkpoint is damaged, or the newest one is of another model.
    """
    if not run_folder.list_checkpoint_folders(run.path):
        return None
    checkpoint = checkpoints.find(run.path)
    checkpoints.check_model(checkpoint, variable_shapes(run.model, len(run.vocabulary)))
    return checkpoint


def _make_runner(run: Run, data: DataFolder, cluster: Cluster, width: float, length: RunLength) -> StepRunner:
    """Makes the model and what trains it: one device, or all devices of the cluster."""

    def make_model() -> CharRNN:
        return CharRNN(run.model, len(data.vocabulary), run.training.seed, layout=data.layout)

    if cluster.strategy:
        return DataParallelTrainer(make_model, run.training, width, length, cluster)
    return Trainer(make_model(), run.training, width, length)


def _hash_weights(model: CharRNN) -> int:
    """Returns the first 48 bits of the SHA-256 of the weights."""
    weights = b"".join(variable.numpy().tobytes() for variable in model.named_variables.values())
    return int(files.sha256(weights)[:12], 16)


def _overflow_error(run: Run, step: int) -> UserError:
    """Returns the error of a validation loss that is not finite after a step whose own loss was."""
    return UserError(
        f"step {step}: the validation loss is not finite, since this step made the weights too large; it was not "
        f"saved, and {_describe_last_checkpoint(run)}. Continue from there with --resume and a smaller --learning_rate"
    )


def _describe_last_checkpoint(run: Run) -> str:
    saved = checkpoints.list_checkpoints(run.path)
    return f"the checkpoint of step {saved[-1].step} is intact" if saved else "no checkpoint was written yet"


def _divergence_error(run: Run, runner: StepRunner, call: Call, step: int, results: StepResults) -> UserError:
    """Returns the error of a step whose loss or gradients are not finite.

    Args:
        run: the run.
        runner: holds the weights before the step.
        call: the call that the step belongs to.
        step: the step, counted from 1.
        results: steps of which this is the last.
    """
    metrics, index = results.per_step()[-1], step - 1 - call.first_step
    by_name = runner.gradient_norms(call.ids[index], step - 1, int(call.sizes[index]))
    norms = ", ".join(f"{name} {norm:.3g}" for name, norm in by_name.items())
    last = _describe_last_checkpoint(run)
    return UserError(
        f"step {step}: loss {metrics.loss_sum / metrics.num_characters:g} at learning rate {metrics.learning_rate:g}; "
        f"gradient norms: {norms}. The step was not applied, and {last}. Continue from there with --resume and a "
        "smaller --learning_rate, with --clip_norm, or with --skip_bad_steps=N"
    )
