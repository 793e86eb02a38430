"""Plots of runs, and the training callbacks that draw and log them."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from paths import GOLDEN

import tfcharrnn
from tfcharrnn.config import TrainingConfig
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.runs import logs, plotting
from tfcharrnn.runs import run_folder as run_lib
from tfcharrnn.training import callbacks

SMALL = {"hidden_size": 8, "batch_size": 4, "sample_length": 10, "log_every": 2, "eval_every": 5, "quiet": True}


def make_run(folder, name, steps=8, *, reduction=None, **more):
    run_dir = folder / name
    run_dir.mkdir(parents=True)
    rows = [
        {"step": step, "epoch": step / 4, "loss": 3 / step, "smooth_loss": 30 / step, "seconds": 60.0 * step, **more}
        for step in range(1, steps + 1)
    ]
    rows[-1]["val_loss"] = 0.5
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if reduction:
        (run_dir / "config.json").write_text(json.dumps({"training": {"reduction": reduction}}))
    return run_dir


@pytest.fixture
def needs_matplotlib():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(200)))
    config = tfcharrnn.DataConfig(input=(str(tmp_path / "text.txt"),), seq_length=21, val_fraction=0.1)
    return tfcharrnn.prepare_data(config, tmp_path / "data").path


def drawn(monkeypatch, *arguments):
    """What `plotting.draw` puts on the axes: for each panel its title, and its lines by their labels; and the axis."""
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: kept.append(figure) or file.write(b"picture"))
    plotting.draw(*arguments)
    panels = [
        (axes.get_ylabel(), {line.get_label(): line.get_xydata().tolist() for line in axes.lines})
        for axes in kept[0].axes
    ]
    return panels, kept[0].axes[-1].get_xlabel()


def test_losses_share_a_panel_and_the_rest_have_their_own(tmp_path, monkeypatch, needs_matplotlib):
    one = make_run(tmp_path, "one", learning_rate=0.1)
    two = make_run(tmp_path, "two", 3, learning_rate=0.2)
    panels, label = drawn(monkeypatch, [one, two], tmp_path / "a.png", ["val_loss", "learning_rate", "loss"], "epoch")
    assert label == "epoch" and [title for title, _ in panels] == ["loss, nats per character", "learning rate"]
    losses, rates = panels[0][1], panels[1][1]
    assert set(losses) == {f"{run}, {kind} loss" for run in ("one", "two") for kind in ("training", "validation")}
    assert losses["two, training loss"] == [[0.25, 3.0], [0.5, 1.5], [0.75, 1.0]]
    assert losses["one, validation loss"] == [[2.0, 0.5]]
    assert rates["two"] == [[0.25, 0.2], [0.5, 0.2], [0.75, 0.2]]
    assert (tmp_path / "a.png").read_bytes() == b"picture"


def test_a_smoothed_sum_stands_apart_and_time_has_a_fitting_unit(tmp_path, monkeypatch, needs_matplotlib):
    run = make_run(tmp_path, "run", reduction="sum")
    panels, label = drawn(monkeypatch, [run], tmp_path / "a.svg", ["loss", "smooth_loss"], "time")
    assert [title for title, _ in panels] == ["loss, nats per character", "smoothed loss, nats per example"]
    assert label == "time in training steps, minutes" and panels[0][1]["run"][-1] == [8.0, 3 / 8]
    run = make_run(tmp_path, "mean", 300, reduction="mean")
    panels, label = drawn(monkeypatch, [run], tmp_path / "a.svg", ["loss", "smooth_loss"], "time")
    assert [title for title, _ in panels] == ["loss, nats per character"]
    assert label == "time in training steps, hours" and panels[0][1]["mean, smoothed loss"][-1] == [5.0, 0.1]


def test_the_tool_draws_png_and_svg(tmp_path, needs_matplotlib):
    make_run(tmp_path, "one"), make_run(tmp_path, "two")
    for output, begin in (("loss.png", b"\x89PNG"), ("loss.svg", b"<?xml")):
        done = subprocess.run(
            [sys.executable, "-m", "tfcharrnn.plot", "--run_dir=one,two", f"--output={output}"],
            cwd=tmp_path,
            capture_output=True,
            timeout=300,
        )
        assert (done.returncode, done.stdout.decode()) == (0, output + "\n"), done.stderr.decode()
        assert (tmp_path / output).read_bytes().startswith(begin)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "loss.svg", "one", "two"]
    for wrong in ("--y=", "--x=years"):
        done = subprocess.run([sys.executable, "-m", "tfcharrnn.plot", "--run_dir=one", wrong], cwd=tmp_path)
        assert done.returncode == 2


def test_what_cannot_be_drawn_is_named(tmp_path, needs_matplotlib):
    run, picture = make_run(tmp_path, "run"), tmp_path / "a.png"
    with pytest.raises(UserError, match="no such file"):
        plotting.draw([tmp_path], picture)
    with pytest.raises(UserError, match="no row has grad_norm and step"):
        plotting.draw([run], picture, ["loss", "grad_norm"])
    for arguments, message in (
        ((picture, ["lose"]), r"--y must be one of loss, .*'lose'"),
        ((picture, ["loss"], "years"), r"--x must be one of step, epoch, time.*'years'"),
        ((tmp_path / "a.bmp",), r"--output must end in \.png or \.svg"),
    ):
        with pytest.raises(ConfigError, match=message):
            plotting.draw([run], *arguments)
    assert not picture.exists()


def test_a_row_that_is_being_written_is_left_out(tmp_path):
    run = make_run(tmp_path, "run")
    whole = logs.read_metrics(run)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    assert logs.read_metrics(run) == whole
    with open(run / "metrics.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="damaged"):
        logs.read_metrics(run)


def test_training_keeps_its_picture_fresh(tmp_path, text, monkeypatch, needs_matplotlib):
    seen = []
    monkeypatch.setattr(plotting, "draw", lambda runs, output: seen.append((runs, output)))
    monkeypatch.setattr(callbacks, "_PLOTTING_SHARE", 1e9)
    run_dir = tmp_path / "run"
    tfcharrnn.train_model(run_dir, data_dir=text, steps=12, checkpoint_every=8, plot=True, **SMALL)
    assert seen == [([run_dir], run_dir / "loss.png")] * 4, "at 5, 8, 10 and 12"
    monkeypatch.setattr(callbacks, "_PLOTTING_SHARE", 1e-9)
    seen.clear()
    tfcharrnn.train_model(run_dir, resume=True, steps=30, quiet=True)
    assert len(seen) <= 2, "what takes long is drawn rarely, but at the end"


def test_a_picture_that_cannot_be_drawn_does_not_stop_training(tmp_path, text, monkeypatch, capsys, needs_matplotlib):
    def fail(*_):
        raise UserError("no room")

    monkeypatch.setattr(plotting, "draw", fail)
    assert tfcharrnn.train_model(tmp_path / "run", data_dir=text, steps=3, plot=True, **SMALL).step == 3
    assert capsys.readouterr().err == "warning: no room\n"


def test_a_run_is_replaced_with_its_picture_and_its_events(tmp_path, text, needs_matplotlib):
    run_dir = tmp_path / "run"
    tfcharrnn.train_model(run_dir, data_dir=text, steps=2, plot=True, **SMALL)
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    (run_dir / "tensorboard").mkdir()
    (run_dir / "tensorboard" / "events.out").write_text("")
    (run_dir / ".loss.png.123.tmp").write_text("")
    run_lib.clear_run_dir(run_dir)
    assert not list(run_dir.iterdir())


@pytest.mark.parametrize(("flag", "module"), [("plot", "matplotlib"), ("tensorboard", "tensorboard")])
def test_what_is_missing_is_told_before_training(tmp_path, text, monkeypatch, flag, module):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == module else find(name, *more))
    message = rf"^{module} is missing; install it with pip install 'tfcharrnn\[{flag}\]'$"
    with pytest.raises(UserError, match=message):
        tfcharrnn.train_model(tmp_path / "run", data_dir=text, **{flag: True}, **SMALL)
    assert not (tmp_path / "run").exists()
    callbacks.check_available(TrainingConfig())
    if flag == "plot":
        with pytest.raises(UserError, match=message):
            plotting.draw([make_run(tmp_path, "other")], tmp_path / "loss.png")


def test_tensorboard_gets_scalars_texts_and_histograms(tmp_path, text):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    import tensorflow as tf

    run_dir = tmp_path / "run"
    tfcharrnn.train_model(run_dir, data_dir=text, steps=6, sample_every=3, tensorboard=True, **SMALL)
    (events,) = (run_dir / "tensorboard").iterdir()
    found = {}
    for event in tf.compat.v1.train.summary_iterator(str(events)):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
    rows = logs.read_metrics(run_dir)
    for name in ("loss", "smooth_loss", "learning_rate", "grad_norm", "chars_per_second"):
        assert found[name] == {row["step"]: pytest.approx(row[name], rel=1e-6) for row in rows}
    assert list(found["val_loss"]) == [5, 6] and list(found["sample"]) == [3, 6]
    assert list(found["cells/0/recurrent_kernel"]) == [5, 6]


def test_seconds_go_on_after_a_resume(tmp_path, text):
    run_dir = tmp_path / "run"
    tfcharrnn.train_model(run_dir, data_dir=text, steps=6, **SMALL)
    before = logs.read_metrics(run_dir)
    tfcharrnn.train_model(run_dir, resume=True, steps=12, quiet=True)
    rows = logs.read_metrics(run_dir)
    assert rows[: len(before)] == before
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds) and seconds[0] > 0 and seconds[len(before) - 1] < seconds[-1]


def test_a_folder_whose_name_is_not_utf_8_can_be_plotted(tmp_path):
    run_dir = shutil.copytree(GOLDEN / "rnn", tmp_path / os.fsdecode(b"caf\xe9"))
    plotting.draw([run_dir], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size
