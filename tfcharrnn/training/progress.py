"""What a person sees of a training run, on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import time

import tensorflow as tf
import tqdm

from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.distributed.cluster import Cluster
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.training.train_step import Results

# Where there is no terminal to draw a bar on, a line at most this often, in seconds.
_LINE_EVERY = 5.0


def device_name() -> str:
    """The device that TensorFlow computes on, in words."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        tf32 = "on" if tf.config.experimental.tensor_float_32_execution_enabled() else "off"
        return f"GPU, {details.get('device_name', gpus[0].name)}, TF32 for float32 products {tf32}"
    return f"CPU, {os.cpu_count()} cores"


class Progress:
    """A progress bar with loss, speed and time left, or plain lines where standard error is no terminal."""

    def __init__(
        self,
        run: Run,
        data: DataFolder,
        model: CharRNN,
        steps_per_epoch: int,
        start: int,
        total: int,
        cluster: Cluster,
        *,
        quiet: bool,
    ):
        """Prints the first lines: device, corpus, model and length of the run; of several workers only the chief."""
        self._run_dir = run.path
        self._quiet = quiet or not cluster.is_chief
        self._steps_per_epoch = steps_per_epoch
        self._total = total
        self._bar: tqdm.tqdm | None = None
        self._start = start
        self._began = self._last_line = time.perf_counter()
        self._compiled: set[int] = set()
        config, special = run.model, data.vocabulary.num_special
        self._say(f"device     {device_name()}, TensorFlow {tf.__version__}")
        if cluster.strategy:
            rows = run.training.batch_size // cluster.num_replicas
            self._say(f"replicas   {cluster.num_replicas}, each with {rows} rows of a batch; {cluster.describe()}")
        self._say(
            f"corpus     {data.name}: {data.characters:,} characters, "
            f"vocabulary of {len(data.vocabulary) - special} characters and {special} special"
        )
        self._say(f"data       {data.describe()}")
        self._say(
            f"model      {config.cell}, {config.num_layers} x {config.hidden_size} units, "
            f"{model.num_parameters:,} parameters, implementation {model.implementation.name}, "
            f"products in {model.compute_dtype.name}"
        )
        self._say(f"training   steps {start:,} to {total:,}, {steps_per_epoch:,} an epoch, into {run.path}")
        if model.implementation.note:
            self._say(f"note       {model.implementation.note}")
        if run.model.dropout and run.model.num_layers == 1:
            self._say("note       --dropout acts between layers, and there is only one; after it acts --output_dropout")

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=self._total, initial=self._start, unit="step", file=sys.stderr, dynamic_ncols=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()

    def compiled(self, results: Results) -> None:
        """Says how long a call took that was the first for examples of a width, and so was compiled."""
        if results.width not in self._compiled:
            self._compiled.add(results.width)
            self._say(
                f"compiled   for examples of {results.width} symbols; first call done after {results.seconds:.1f} s"
            )

    def skipped(self, step: int, count: int, allowed: int) -> None:
        """Says that a step was left out."""
        self._say(f"skipped    step {step:,}: its loss or gradient was no finite number ({count} of {allowed} such)")

    def show(self, step: int, loss: float, speed: float, val_loss: float | None) -> None:
        """Shows where the run stands; a validation is always shown, other steps now and then."""
        now = time.perf_counter()
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} characters/s", refresh=False)
            with contextlib.suppress(OSError):
                self._bar.update(step - self._bar.n)
        if val_loss is None and (self._bar is not None or (now - self._last_line < _LINE_EVERY and step < self._total)):
            return
        self._last_line = now
        left = (now - self._began) / max(step - self._start, 1) * (self._total - step)
        line = f"step {step:>7,}  epoch {step / self._steps_per_epoch:.2f}  loss {loss:.4f}"
        if val_loss is not None:
            line += f"  val_loss {val_loss:.4f}"
        self._say(f"{line}  {speed:,.0f} characters/s  {_duration(left)} left")

    def sample(self, step: int, text: str) -> None:
        """Shows a generated text."""
        self._say(f"--- sample at step {step:,} ---\n{text}\n---")

    def finish(self, step: int, total: int, val_loss: float | None, *, interrupted: bool) -> None:
        """Says how the run ended and what can be done next."""
        if interrupted:
            self._say(
                f"stopped    at step {step:,} of {total:,} and saved; go on with\n"
                f"           python -m tfcharrnn.train --resume --run_dir={self._run_dir}"
            )
            return
        loss = "" if val_loss is None else f", validation loss {val_loss:.4f} nats a character"
        self._say(f"done       step {step:,} in {_duration(time.perf_counter() - self._began)}{loss}; sample with")
        self._say(f"           python -m tfcharrnn.generate --run_dir={self._run_dir}")

    def _say(self, text: str) -> None:
        if self._quiet:
            return
        try:
            if self._bar is not None:
                self._bar.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)
        except OSError:  # nobody is there to read it any more, which is no reason to stop training
            self._quiet, self._bar = True, None


def _duration(seconds: float) -> str:
    """Minutes and seconds, and hours if there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
