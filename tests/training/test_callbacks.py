"""Callbacks: what they are told and when, and that one that fails damages nothing."""

import json
import math
import re
import sys
import types

import pytest
from paths import ROOT

import tfcharrnn
from tfcharrnn.runs import html_summary, logs
from tfcharrnn.training import callbacks

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(200))
SMALL = {
    "hidden_size": 4,
    "seq_length": 21,
    "batch_size": 8,
    "log_every": 4,
    "eval_every": 5,
    "sample_every": 6,
    "sample_length": 7,
    "checkpoint_every": 8,
    "keep_checkpoints": 0,
    "quiet": True,
}


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    pass


class Recorder(tfcharrnn.Callback):
    """Keeps every report, by the method that got it."""

    def __init__(self):
        self.calls = []

    def on_step(self, step):
        self.calls.append(("step", step))

    def on_validation(self, validation):
        self.calls.append(("validation", validation))

    def on_sample(self, sample):
        self.calls.append(("sample", sample))

    def on_checkpoint(self, checkpoint):
        self.calls.append(("checkpoint", checkpoint))

    def on_end(self, result):
        self.calls.append(("end", result))

    def get(self, kind):
        return [report for name, report in self.calls if name == kind]


def test_every_event_is_told_once_and_agrees_with_what_is_written(tmp_path):
    recorder, run_dir = Recorder(), tmp_path / "run"
    result = tfcharrnn.train_model(run_dir, text=TEXT, steps=13, callbacks=[recorder], **SMALL)
    steps, validations = recorder.get("step"), recorder.get("validation")
    assert [step.step for step in steps] == list(range(1, 14))
    assert all(math.isfinite(step.loss) and step.is_applied and step.grad_norm > 0 for step in steps)
    written = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step.row for step in steps if step.row] == written
    assert written[0]["loss"] == pytest.approx(sum(step.loss for step in steps[:4]) / 4)
    assert [step.step for step in steps if step.val_loss is not None] == [5, 10, 13]
    assert [(v.step, v.loss) for v in validations] == [(s.step, s.val_loss) for s in steps if s.val_loss is not None]
    assert validations[-1].best == result.best
    assert [sample.step for sample in recorder.get("sample")] == [6, 12, 13]
    assert recorder.get("sample")[0].text + "\n" in (run_dir / "samples.txt").read_text()
    saved = recorder.get("checkpoint")
    assert [c.path for c in saved] == sorted((run_dir / "checkpoints").iterdir())
    assert tfcharrnn.load_model(run_dir, checkpoint=saved[0].path).checkpoint.step == saved[0].step
    assert recorder.get("end") == [result]
    at_the_end = [name for name, report in recorder.calls if report.step == 13]
    assert at_the_end == ["step", "validation", "sample", "checkpoint", "end"]


def test_callbacks_change_nothing_and_begin_where_a_run_is_resumed(tmp_path):
    recorder = Recorder()
    tfcharrnn.train_model(tmp_path / "a", text=TEXT, steps=6, **SMALL)
    tfcharrnn.train_model(tmp_path / "b", text=TEXT, steps=3, **SMALL)
    tfcharrnn.train_model(tmp_path / "b", resume=True, steps=6, quiet=True, callbacks=[recorder])
    assert [step.step for step in recorder.get("step")] == [4, 5, 6]
    a, b = (tfcharrnn.load_model(tmp_path / name).model.output_bias.numpy() for name in "ab")
    assert (a == b).all()


@pytest.mark.parametrize("event", ["on_step", "on_checkpoint", "on_end"])
def test_a_callback_that_fails_is_named_and_the_run_goes_on_from_its_checkpoint(event, tmp_path):
    def fail(self, report):
        if report.step >= 9:
            raise ValueError("no room\nat all")

    failing = type("Logger", (tfcharrnn.Callback,), {event: fail})()
    with pytest.raises(tfcharrnn.UserError) as caught:
        tfcharrnn.train_model(tmp_path / "run", text=TEXT, steps=12, callbacks=[failing], **SMALL)
    message = (
        rf"step \d+: the callback Logger\.{event} failed \(ValueError: no room\), and the checkpoint of step \d+ is"
    )
    assert re.match(message, str(caught.value))
    assert isinstance(caught.value.__cause__, ValueError)
    assert tfcharrnn.train_model(tmp_path / "run", resume=True, steps=14, quiet=True).step == 14


def test_what_is_no_callback_is_refused(tmp_path):
    for wrong in (print, tfcharrnn.Callback):
        with pytest.raises(tfcharrnn.ConfigError, match=r"^callbacks: .* is not an object of a class derived from"):
            tfcharrnn.train_model(tmp_path / "run", text=TEXT, callbacks=[wrong], **SMALL)
    assert not (tmp_path / "run").exists()


def test_the_documented_callback_logs_to_weights_and_biases(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- callback -->\n```python\n(.*?)```", page, re.DOTALL)
    logged = []
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **settings: logged.append(settings)
    wandb.log = lambda values, step: logged.append((step, values))
    wandb.finish = lambda: logged.append("finished")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/python.md", "exec"), {})
    assert logged[0] == {"project": "names"}
    assert logged[-1] == "finished"
    assert [step for step, values in logged[1:-1] if "loss" in values] == [10, 20]
    assert [step for step, values in logged[1:-1] if "sample" in values] == [20]


def test_a_notebook_draws_the_curve_while_it_trains_and_shows_the_result(tmp_path, monkeypatch):
    drawn = []

    def display(html, display_id):
        drawn.append(html)
        return types.SimpleNamespace(update=drawn.append)

    shell = types.SimpleNamespace(kernel=object())
    fake = types.SimpleNamespace(
        get_ipython=lambda: shell, display=types.SimpleNamespace(display=display, HTML=lambda text: text)
    )
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setattr(callbacks.NotebookCurve, "_pause", 0.0)
    quiet = tfcharrnn.train_model(tmp_path / "quiet", text=TEXT, steps=8, **SMALL)
    assert not drawn
    tfcharrnn.train_model(tmp_path / "shown", text=TEXT, steps=8, **{**SMALL, "quiet": False})
    assert drawn[-1] == html_summary.draw_losses(logs.read_metrics(tmp_path / "shown"))
    assert "validation loss" in drawn[-1]
    page = quiet._repr_html_()
    assert f"{quiet.loss:.4f} nats a character" in page and "<svg" in page and "lowest validation loss" in page
