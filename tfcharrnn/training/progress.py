"""Progress of a training run, on standard error."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfcharrnn import cell_registry, devices, progress_bar
from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.distributed.cluster import Cluster
from tfcharrnn.errors import command_line
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.symbols import escape_for
from tfcharrnn.training.callbacks import Callback, Result, SampleReport, StepReport, ValidationReport
from tfcharrnn.training.train_step import RunLength, StepResults

# without a terminal for a progress bar, at most one line in this many seconds
_SECONDS_PER_LINE = 5.0
# the time left is not estimated from less than this
_MIN_TIMED_SECONDS = 2.0


def describe_optimizer(config: TrainingConfig) -> str:
    """Describes the update rule and the learning rate."""
    parts = [config.optimizer, f"learning rate {config.learning_rate:g}"]
    schedule = {
        "exponential": f"times {config.decay_rate:g} an epoch after {config.decay_after}",
        "cosine": f"falling to {config.final_rate:g} of it by a cosine",
        "linear": f"falling to {config.final_rate:g} of it linearly",
        "wsd": f"falling to {config.final_rate:g} of it in the last {config.decay_fraction:.0%} of the steps",
    }
    if config.schedule != "constant":
        parts[1] += f" {schedule[config.schedule]}"
    if config.warmup_steps and config.schedule in ("cosine", "linear", "wsd"):
        parts.append(f"{config.warmup_steps:,} steps of warm-up")
    if config.optimizer == "adamw":
        parts.append(f"weight decay {config.weight_decay:g}")
    if config.average:
        parts.append(f"average {config.average:g}")
    return ", ".join(parts)


def describe_dropout(config: ModelConfig) -> str:
    """Describes the dropout; "" if there is none."""
    names = {
        "input_dropout": "of the input",
        "dropout": "between layers",
        "output_dropout": "of the output",
        "embedding_dropout": "of symbols",
        "weight_drop": "of recurrent weights",
    }
    parts = [f"{getattr(config, name):g} {where}" for name, where in names.items() if getattr(config, name)]
    return ", ".join(parts) + (", locked" if parts and config.locked_dropout else "")


class Progress(Callback):
    """A progress bar with loss, speed and time left, or plain lines where standard error is no terminal.

    Args:
        run: the run.
        data: its data.
        model: its model.
        length: its length.
        start: updates done before.
        cluster: the workers; only the chief shows anything.
        notes: settings that were chosen for the user, a line each.
        quiet: show nothing.
    """

    def __init__(
        self,
        run: Run,
        data: DataFolder,
        model: CharRNN,
        length: RunLength,
        start: int,
        cluster: Cluster,
        notes: Sequence[str] = (),
        *,
        quiet: bool,
    ):
        # in commands to be pasted
        self._run_flags = f"--run_dir={shlex.quote(str(run.path))}{cell_registry.format_module_flag(run.model.cell)}"
        self._quiet = quiet or not cluster.is_chief
        self._length = length
        self._bar: Any | None = None
        self._first_step = start
        self._start_time = self._last_line_time = time.perf_counter()
        # of the calls that compiled, whose time says nothing about that of others; validation has no steps
        self._compile_seconds, self._compile_steps = 0.0, 0
        self._print_header(run, data, model, cluster)
        for note in notes:
            self._print(f"chosen     {note}")

    def _print_header(self, run: Run, data: DataFolder, model: CharRNN, cluster: Cluster) -> None:
        config, num_special = run.model, data.vocabulary.num_special
        self._print(f"device     {devices.describe()}, TensorFlow {tf.__version__}")
        if cluster.strategy:
            rows = run.training.batch_size // cluster.num_replicas
            self._print(f"replicas   {cluster.num_replicas}, each with {rows} rows of a batch; {cluster.describe()}")
        self._print(
            f"corpus     {data.name}: {data.characters:,} characters, "
            f"vocabulary of {len(data.vocabulary) - num_special} characters and {num_special} special"
        )
        if changes := data.describe_normalisation():
            self._print(f"text       {changes}")
        self._print(f"data       {data.describe()}")
        self._print(
            f"model      {config.describe()}, "
            f"{model.num_parameters:,} parameters, implementation {model.backend.name}, "
            f"products in {model.compute_dtype.name}"
        )
        self._print(f"optimizer  {describe_optimizer(run.training)}")
        if dropout := describe_dropout(config):
            self._print(f"dropout    {dropout}")
        steps_per_epoch, total = self._length
        self._print(
            f"training   steps {self._first_step:,} to {total:,}, {steps_per_epoch:,} an epoch, into {run.path}"
        )
        if model.backend.note:
            self._print(f"note       {model.backend.note}")
        if config.dropout and config.num_layers == 1:
            self._print("note       --dropout acts between layers, and there is only one; see --output_dropout")

    def __enter__(self) -> Progress:
        if not self._quiet:
            self._bar = progress_bar.make_bar(
                total=self._length.total_steps,
                initial=self._first_step,
                unit="step",
                dynamic_ncols=True,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",  # the time left is our own
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()

    def show_compiled(self, results: StepResults) -> None:
        """Shows the time of the first call for examples of a width, most of which is compilation."""
        if results.is_first:
            self.add_compilation(results.seconds)
            self._compile_steps += results.num_steps
            self._print(f"compiled   for examples of {results.width} symbols; first call took {results.seconds:.1f} s")

    def add_compilation(self, seconds: float) -> None:
        """Leaves the time of a call that compiled out of the estimate of the time left."""
        self._compile_seconds += seconds

    def show_skipped(self, step: int, count: int, allowed: int) -> None:
        """Shows that a step was skipped, the `count`th of `allowed`."""
        self._print(f"skipped    step {step:,}: its loss or gradients are not finite ({count} of {allowed} allowed)")

    def on_step(self, step: StepReport) -> None:
        """Shows where the run stands after a call: always with a validation loss, otherwise every few seconds."""
        if not step.is_current:
            return
        done, total = step.step, self._length.total_steps
        now = time.perf_counter()
        speed = f"{step.chars_per_second:,.0f} characters/s" if step.chars_per_second else ""
        left = self._estimate_time_left(done, now)
        if self._bar is not None:
            shown = filter(None, [f"loss {step.mean_loss:.4f}", speed, left])
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
            with contextlib.suppress(OSError):
                self._bar.update(done - self._bar.n)
        is_recent = now - self._last_line_time < _SECONDS_PER_LINE
        if step.val_loss is None and (self._bar is not None or (is_recent and done < total)):
            return
        self._last_line_time = now
        line = f"step {done:>7,}  epoch {step.epoch:.2f}  loss {step.mean_loss:.4f}"
        if step.val_loss is not None:
            line += f"  val_loss {step.val_loss:.4f}"
        self._print("  ".join(filter(None, [line, speed, left])))

    def _estimate_time_left(self, done: int, now: float) -> str:
        """Estimates the time left after so many steps; "" while too few of them have been timed."""
        timed_steps = done - self._first_step - self._compile_steps
        timed_seconds = now - self._start_time - self._compile_seconds
        is_over = done == self._length.total_steps
        if timed_steps <= 0 or (timed_seconds < _MIN_TIMED_SECONDS and not is_over):
            return ""
        return f"{_format_duration(timed_seconds / timed_steps * (self._length.total_steps - done))} left"

    def on_validation(self, validation: ValidationReport) -> None:
        """Shows that the validation loss has begun to rise."""
        best = validation.best
        if best.num_since == 1:
            self._print(f"note       validation loss has not fallen since step {best.step:,}; the best is kept")

    def on_sample(self, sample: SampleReport) -> None:
        """Shows a generated text."""
        self._print(f"--- sample at step {sample.step:,} ---\n{sample.text}\n---")

    def on_end(self, result: Result) -> None:
        """Shows how the run ended and how to continue."""
        step, val_loss, best = result.step, result.val_loss, result.best
        if result.interrupted:
            self._print(
                f"stopped    at step {step:,} of {self._length.total_steps:,}, saved; continue with\n"
                f"           {command_line('train')} --resume {self._run_flags}"
            )
            return
        loss = "" if val_loss is None else f", validation loss {val_loss:.4f} nats a character"
        which = ""
        if best is not None and best.num_since:
            loss += f"; lowest {best.loss:.4f} after step {best.step:,}"
            which = " --checkpoint=best"
        early = "" if step == self._length.total_steps else f" of {self._length.total_steps:,}, out of patience,"
        elapsed = _format_duration(time.perf_counter() - self._start_time)
        self._print(f"done       step {step:,}{early} in {elapsed}{loss}; sample with")
        self._print(f"           {command_line('generate')} {self._run_flags}{which}")

    def _print(self, text: str) -> None:
        if self._quiet:
            return
        text = escape_for(sys.stderr, text)
        try:
            if self._bar is not None:
                self._bar.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)
        except OSError:  # nobody reads it any more, which is no reason to stop training
            self._quiet, self._bar = True, None


def _format_duration(seconds: float) -> str:
    """Formats a duration as [hours:]minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
