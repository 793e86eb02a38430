"""The settings that `--minutes` chooses: the rules, and runs that are made by them."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tfcharrnn
from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.runs import run_folder
from tfcharrnn.training import budget, setup
from tfcharrnn.training.budget import Speed

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(400))


def count_parameters(model):
    """Those of the kernels between units of an LSTM, which the sizes are chosen by."""
    return 4 * model.hidden_size**2 * (2 * model.num_layers - 1)


@given(st.floats(1e9, 1e18), st.integers(100, 10**9), st.integers(1, 10**7), st.floats(1e-5, 10.0), st.floats(0.0, 1e4))
def test_every_choice_is_a_valid_setting(flops, characters, seconds, step_seconds, validation_seconds):
    sizes = budget.choose_sizes(flops, characters)
    model = ModelConfig(**sizes.settings)
    steps, validations = budget.divide_time(seconds, Speed(1.0, step_seconds, validation_seconds))
    assert steps >= 1 and 1 <= validations <= 20
    steps_per_epoch = max(1, characters // 2048)
    schedule = budget.choose_schedule(steps, steps_per_epoch, validations, model.hidden_size)
    training = TrainingConfig(**schedule.settings)
    assert training.steps <= max(300, 16 * steps_per_epoch) and training.warmup_steps <= training.steps
    assert -(-training.steps // training.eval_every) <= validations
    dropout = budget.choose_dropout(training.steps / steps_per_epoch, model)
    dataclasses.replace(model, **dropout.settings)
    decay = budget.choose_weight_decay(training.steps / steps_per_epoch)
    assert 0.0 <= dataclasses.replace(training, **decay.settings).weight_decay <= 1.0
    assert "dropout" in dropout.settings or model.num_layers == 1
    for choice in (sizes, schedule, dropout, decay):
        assert choice.reasons.keys() <= choice.settings.keys()


def test_more_time_makes_larger_models_and_more_epochs_more_dropout():
    sizes = [ModelConfig(**budget.choose_sizes(flops, 10**8).settings) for flops in (1e12, 1e13, 1e14, 1e15)]
    parameters = [count_parameters(model) for model in sizes]
    assert parameters == sorted(set(parameters))
    rates = [budget.choose_dropout(epochs, sizes[-1]).settings["output_dropout"] for epochs in (1, 5, 10, 15, 60)]
    assert rates[0] == 0.0 and rates == sorted(rates) and rates[-1] == 0.5


@given(st.floats(1e9, 1e18), st.integers(20_000, 10**7))
def test_no_model_is_so_large_that_it_would_learn_the_text_by_heart(flops, characters):
    model = ModelConfig(**budget.choose_sizes(flops, characters).settings)
    assert count_parameters(model) < 1.35 * max(50_000, 3 * characters)  # sizes are rounded


def test_a_run_of_minutes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(budget, "measure_flops", lambda: 1e8)
    monkeypatch.setattr(budget, "measure_speed", lambda *_: Speed(0.1, 1.0, 0.5))
    (tmp_path / "text.txt").write_text(TEXT)
    settings = {"input": [str(tmp_path / "text.txt")], "minutes": 1.0, "hidden_size": 40, "val_fraction": 0.1}
    tfcharrnn.train_model(tmp_path / "r", **settings)
    shown = capsys.readouterr().err
    run = run_folder.load(tmp_path / "r")
    assert run.data.layout == "stream" and run.model.cell == "lnlstm" and run.model.hidden_size == 40
    assert 30 < run.training.steps < 55 and run.training.optimizer == "adamw" and run.training.average > 0.0
    assert "weight decay" in shown.split("\ntraining ")[0] and run.training.weight_decay > 0.1
    assert f"chosen     {run.training.steps} steps: as many as fit; 1000 ms a step on this machine\n" in shown
    assert "40 units" not in shown.split("\ntraining ")[1]  # what is given is not chosen
    more = tfcharrnn.train_model(tmp_path / "r", resume=True, steps=run.training.steps + 1, quiet=True)
    assert more.step == run.training.steps + 1
    with pytest.raises(UserError, match=r"a resumed run keeps its --minutes=1\.0"):
        tfcharrnn.train_model(tmp_path / "r", resume=True, minutes=2.0, quiet=True)


@pytest.mark.parametrize(("given", "embedding_size"), [({}, 0), ({"embedding_size": 8}, 8), ({"cell": "gru"}, 64)])
def test_what_is_given_decides_about_the_rest(given, embedding_size, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "measure_flops", lambda: 1e8)
    monkeypatch.setattr(budget, "measure_speed", lambda *_: Speed(0.1, 0.01, 0.01))
    (tmp_path / "text.txt").write_text(TEXT)
    notes: list[str] = []
    settings = {"input": (str(tmp_path / "text.txt"),), "minutes": 0.3, **given}
    model = setup.prepare_run("", "", settings, notes=notes)[0].model
    assert model.embedding_size == embedding_size
    assert notes[0].startswith(f"{model.cell}, {model.num_layers} x {model.hidden_size} units")


def test_minutes_that_are_too_few_are_said_in_one_line(tmp_path, monkeypatch, capsys):
    def choose(speed, source=None, **settings):
        monkeypatch.setattr(budget, "measure_speed", lambda *_: speed)
        settings |= {"input": (str(tmp_path / "text.txt"),), "minutes": 0.3}
        run, _ = setup.prepare_run("", "", settings, source)
        return run, capsys.readouterr().err

    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.setattr(budget, "measure_flops", lambda: 1e8)
    slow, fast = Speed(0.1, 1.0, 0.5), Speed(0.1, 0.01, 0.01)
    run, shown = choose(slow, hidden_size=40)
    assert run.training.steps < 11 and re.fullmatch(
        rf"warning: --minutes=0\.3: leaves time for only {run.training.steps} training steps?, too few to learn much "
        r"from: start-up and measuring took \d+ s, compiling takes 0 s, and a step 1000 ms; pass more --minutes, or a "
        r"--hidden_size below 40\n",
        shown,
    )
    assert choose(slow, run)[1].endswith("a step 1000 ms; pass more --minutes\n")  # the model is that of the run
    assert choose(slow, steps=2)[1] == choose(fast)[1] == ""


def test_the_machine_is_measured(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT[:3000])
    settings = {"input": [str(tmp_path / "text.txt")], "minutes": 0.05, "hidden_size": 8, "quiet": True}
    for layout in ("stream", "lines"):
        result = tfcharrnn.train_model(tmp_path / layout, layout=layout, steps=3, **settings)
        assert result.step == 3


@pytest.mark.parametrize("layout", ["stream", "sequences"])
def test_a_text_that_is_too_short_is_said_before_anything_is_measured(layout, tmp_path):
    (tmp_path / "text.txt").write_text("too short")
    with pytest.raises(UserError, match=r"--batch_size|--seq_length"):
        tfcharrnn.train_model(
            tmp_path / "r", input=[str(tmp_path / "text.txt")], minutes=1.0, layout=layout, quiet=True
        )


def test_minutes_measure_one_device(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    settings = {"input": [str(tmp_path / "text.txt")], "minutes": 1.0, "strategy": "mirrored", "num_replicas": 2}
    with pytest.raises(ConfigError, match="--minutes: measures one device"):
        tfcharrnn.train_model(tmp_path / "run", **settings)


def test_a_default_batch_gives_way_to_a_small_text(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT[:5000])
    settings = {"input": [str(tmp_path / "text.txt")], "hidden_size": 8, "steps": 2, "seq_length": 100}
    tfcharrnn.train_model(tmp_path / "r", **settings)
    batch_size = run_folder.load(tmp_path / "r").training.batch_size
    assert batch_size < 128
    assert f"chosen     batches of {batch_size}, since the text has no more examples" in capsys.readouterr().err
    with pytest.raises(UserError, match="--batch_size=128: there are only"):
        tfcharrnn.train_model(tmp_path / "given", batch_size=128, quiet=True, **settings)
