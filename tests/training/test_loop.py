"""The training loop: what it writes and when, and that stopping and resuming change nothing."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import tfcharrnn
from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.data import input_pipeline
from tfcharrnn.inference.evaluation import Evaluator
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs import checkpoints
from tfcharrnn.runs import run_folder as run_lib
from tfcharrnn.training import loop, metrics, optimizers, setup, train_step
from tfcharrnn.training.signals import StopSignals

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(400))
SMALL = {
    "cell": "rnn",
    "hidden_size": 12,
    "output_dropout": 0.2,
    "seq_length": 21,
    "batch_size": 8,
    "learning_rate": 0.01,
    "sample_length": 10,
    "log_every": 4,
    "quiet": True,
}

# for tests of the arithmetic; they take twice as long to compile
DEEP = {"num_layers": 2, "dropout": 0.2, "output_dropout": 0.0}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    config = tfcharrnn.DataConfig(input=(str(folder / "text.txt"),), seq_length=21, val_fraction=0.1)
    return tfcharrnn.prepare_data(config, folder / "data").path


@pytest.fixture
def train(data_dir):
    settings = {name: value for name, value in SMALL.items() if name != "seq_length"}

    def run(run_dir, **more):
        return tfcharrnn.train_model(run_dir, data_dir=data_dir, **{**settings, **more})

    return run


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def timeless(run_dir):
    return [{name: value for name, value in row.items() if name not in metrics.TIMING} for row in rows(run_dir)]


def final_weights(run_dir):
    return (checkpoints.find(run_dir).path / "ckpt.data-00000-of-00001").read_bytes()


def test_events_happen_exactly_where_they_were_asked_for(train, tmp_path):
    train(tmp_path / "r", steps=23, eval_every=7, sample_every=5, checkpoint_every=6, keep_checkpoints=0)
    written = rows(tmp_path / "r")
    assert [row["step"] for row in written] == [4, 7, 8, 12, 14, 16, 20, 21, 23]
    assert [row["step"] for row in written if "val_loss" in row] == [7, 14, 21, 23]
    assert all(0.0 <= row["data_wait"] <= 1.0 for row in written)
    samples = (tmp_path / "r" / "samples.txt").read_text()
    assert [f"step {step}," in samples for step in (5, 10, 15, 20, 23)] == [True] * 5
    assert samples.count("--- step") == 5
    lowest = {c.step for c in checkpoints.list_checkpoints(tmp_path / "r") if c.losses.val is not None}
    assert [c.step for c in checkpoints.list_checkpoints(tmp_path / "r")] == sorted({6, 12, 18, 23} | lowest)


def test_a_smoothed_loss_of_zero_is_not_taken_for_missing(train, tmp_path, monkeypatch):
    add = metrics.RunningMetrics.add

    def add_and_reset(self, *arguments):
        add(self, *arguments)
        self.smooth_loss = 0.0

    monkeypatch.setattr(metrics.RunningMetrics, "add", add_and_reset)
    train(tmp_path / "r", steps=2, sample_every=2)
    assert "--- step 2, smoothed loss 0.0000 ---" in (tmp_path / "r" / "samples.txt").read_text()


def test_a_resumed_run_is_loaded_once(train, tmp_path, monkeypatch):
    train(tmp_path / "r", steps=2)
    loaded, load = [], run_lib.load
    monkeypatch.setattr(run_lib, "load", lambda path: loaded.append(str(path)) or load(path))
    tfcharrnn.train_model(tmp_path / "r", resume=True, steps=3, quiet=True)
    assert loaded == [str(tmp_path / "r")]


def test_zero_means_never_but_for_the_end(train, tmp_path):
    train(tmp_path / "r", steps=9, eval_every=0, sample_every=0, checkpoint_every=0, log_every=0)
    assert [row["step"] for row in rows(tmp_path / "r")] == [9]
    assert "val_loss" in rows(tmp_path / "r")[0]
    assert [c.step for c in checkpoints.list_checkpoints(tmp_path / "r")] == [9]
    assert (tmp_path / "r" / "samples.txt").read_text().count("--- step") == 1


def test_epochs_say_how_long(train, tmp_path):
    result = train(tmp_path / "r", epochs=2, log_every=0)
    data = tfcharrnn.open_data(tfcharrnn.load_model(tmp_path / "r").run.data_dir)
    assert result.step == 2 * (data.splits["train"].records // 8)
    assert rows(tmp_path / "r")[-1]["epoch"] == 2.0


def test_the_newest_and_the_best_checkpoints_are_kept(train, tmp_path):
    # the learning rate is so high that the loss rises again
    train(tmp_path / "r", steps=40, eval_every=5, checkpoint_every=5, keep_checkpoints=2, learning_rate=0.3)
    losses = {row["step"]: row["val_loss"] for row in rows(tmp_path / "r") if "val_loss" in row}
    best = min(losses, key=losses.get)
    assert [c.step for c in checkpoints.list_checkpoints(tmp_path / "r")] == sorted({best, 35, 40})
    assert checkpoints.find(tmp_path / "r", "best").step == best
    assert checkpoints.find(tmp_path / "r", "best").losses.val == losses[best]


@pytest.fixture
def rising(monkeypatch):
    """Makes the validation loss fall until step 15 and rise from there on."""
    evaluate = Evaluator.__call__

    def call(self, *arguments, **settings):
        step = int(np.round(self._model.output_bias.numpy()[0]))  # set by the optimizer below
        return dataclasses.replace(evaluate(self, *arguments, **settings), loss=1.0 + abs(step - 15) / 7)

    def apply(self, variables, gradients, learning_rate, step, finite=None):
        for variable in variables:
            variable.assign(tf.ones_like(variable) * tf.cast(step + 1, variable.dtype))

    monkeypatch.setattr(Evaluator, "__call__", call)
    monkeypatch.setattr(optimizers.SGD, "apply", apply)
    return {"optimizer": "sgd", "eval_every": 5, "log_every": 5, "sample_every": 0}


@pytest.mark.parametrize("checkpoint_every", [0, 17])
def test_the_best_is_kept_whatever_checkpoint_every(checkpoint_every, train, rising, tmp_path):
    result = train(tmp_path / "r", steps=40, checkpoint_every=checkpoint_every, keep_checkpoints=1, **rising)
    assert result.best == (15, 1.0, 5) and result.val_loss == 1.0 + 25 / 7
    assert checkpoints.find(tmp_path / "r", "best").step == 15
    assert [c.step for c in checkpoints.list_checkpoints(tmp_path / "r")] == [15, 40]


def test_patience_ends_a_run_whose_validation_loss_rises(train, rising, tmp_path, capsys):
    settings = rising | {"checkpoint_every": 0, "keep_checkpoints": 1, "quiet": False}
    result = train(tmp_path / "r", steps=400, patience=3, **settings)
    assert result.step == 30 and result.best == (15, 1.0, 3) and not result.interrupted
    assert [c.step for c in checkpoints.list_checkpoints(tmp_path / "r")] == [15, 30]
    assert (tmp_path / "r" / "samples.txt").read_text().count("--- step") == 1  # at the end
    shown = capsys.readouterr().err
    assert shown.count("note       validation loss has not fallen since step 15; the best is kept\n") == 1
    assert "done       step 30 of 400, out of patience, in " in shown
    assert "; lowest 1.0000 after step 15; sample with\n" in shown
    assert shown.endswith(f" --run_dir={tmp_path / 'r'} --checkpoint=best\n")
    with pytest.raises(tfcharrnn.UserError, match=r"has not fallen since step 15; to continue, raise --patience"):
        tfcharrnn.train_model(tmp_path / "r", resume=True, quiet=True)
    assert tfcharrnn.train_model(tmp_path / "r", resume=True, patience=0, steps=35, quiet=True).step == 35


def test_patience_counts_on_across_a_resume(train, rising, tmp_path):
    settings = rising | {"checkpoint_every": 5, "keep_checkpoints": 0, "patience": 4}
    assert train(tmp_path / "whole", steps=400, **settings).step == 35
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (30, 35):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:08d}")
    assert tfcharrnn.train_model(tmp_path / "cut", resume=True, quiet=True).step == 35
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


def test_a_run_resumed_from_an_early_checkpoint_knows_its_best(train, tmp_path):
    train(tmp_path / "r", steps=20, eval_every=5, checkpoint_every=5, keep_checkpoints=0, learning_rate=0.3)
    losses = {c.step: c.losses.val for c in checkpoints.list_checkpoints(tmp_path / "r")}
    for path in (tmp_path / "r" / "checkpoints").glob("step-*/checkpoint.json"):
        value = json.loads(path.read_text())
        del value["log"]["best"]  # as earlier versions wrote it
        path.write_text(json.dumps(value))
    result = tfcharrnn.train_model(tmp_path / "r", resume=True, steps=21, quiet=True)
    assert result.best.loss == min(*losses.values(), result.val_loss)


REGULARISED = {
    "embedding_size": 5,
    "locked_dropout": True,
    "dropout": 0.2,
    "output_dropout": 0.3,
    "input_dropout": 0.1,
    "embedding_dropout": 0.1,
    "weight_drop": 0.2,
    "optimizer": "adamw",
    "average": 0.9,
    "schedule": "wsd",
    "warmup_steps": 5,
    "random_start": True,
}


@pytest.mark.parametrize(("layout", "shuffle_buffer"), [("sequences", 600), ("stream", 2**26)])
def test_a_resumed_run_with_every_regulariser_equals_an_undisturbed_one(layout, shuffle_buffer, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = {
        **SMALL,
        "cell": "gru",
        **DEEP,
        **REGULARISED,
        "layout": layout,
        "shuffle_buffer": shuffle_buffer,
        "val_fraction": 0.1,
        "reset_state": 0.1 if layout == "stream" else 0.0,
    }
    settings |= {"input": [str(tmp_path / "text.txt")], "keep_checkpoints": 0, "eval_every": 60, "checkpoint_every": 13}
    tfcharrnn.train_model(tmp_path / "whole", steps=130, **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (60, 65, 78, 91, 104, 117, 120, 130):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:08d}", ignore_errors=True)
    assert checkpoints.find(tmp_path / "cut").step == 52  # in the third epoch
    tfcharrnn.train_model(tmp_path / "cut", resume=True, quiet=True)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    assert final_weights(tmp_path / "cut") == final_weights(tmp_path / "whole")
    assert (tmp_path / "cut" / "samples.txt").read_bytes() == (tmp_path / "whole" / "samples.txt").read_bytes()


def test_the_average_is_what_is_validated_generated_from_and_started_with(train, tmp_path):
    result = train(tmp_path / "r", steps=30, average=0.9)
    trained = tfcharrnn.load_model(tmp_path / "r")
    reader = tf.train.load_checkpoint(str(trained.checkpoint.path / "ckpt"))
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    for name, variable in trained.model.named_variables.items():
        np.testing.assert_array_equal(variable, reader.get_tensor(f"average/{name}{suffix}"))
        assert np.any(variable.numpy() != reader.get_tensor(f"model/{name}{suffix}"))
    assert trained.evaluate_split("val").loss == pytest.approx(result.val_loss, abs=1e-9)
    train(tmp_path / "next", steps=1, init_from=tmp_path / "r", average=0.5, learning_rate=1e-30)
    started = tfcharrnn.load_model(tmp_path / "next", checkpoint="0").model
    for got, expected in zip(started.variables, trained.model.variables, strict=True):
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(tfcharrnn.UserError, match=r"a resumed run keeps its --average=0\.9"):
        tfcharrnn.train_model(tmp_path / "r", resume=True, steps=40, average=0.0, quiet=True)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "lnlstm", "sru"])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(cell, train, tmp_path):
    every = {"eval_every": 10, "sample_every": 10, "checkpoint_every": 5}
    settings = {"cell": cell, **DEEP, "schedule": "cosine", "keep_checkpoints": 0, **every}
    if cell in ("lnlstm", "sru"):
        settings |= {"residual": True, "layer_norm": True, "learned_initial_state": True}
    train(tmp_path / "whole", steps=30, **settings)
    train(tmp_path / "cut", steps=30, **settings, steps_per_call=1)
    for step in (20, 25, 30):  # as if it had been killed after a checkpoint and some steps more
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:08d}")
    assert checkpoints.find(tmp_path / "cut").step == 15
    tfcharrnn.train_model(tmp_path / "cut", resume=True, quiet=True)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    assert final_weights(tmp_path / "cut") == final_weights(tmp_path / "whole")
    assert (tmp_path / "cut" / "samples.txt").read_bytes() == (tmp_path / "whole" / "samples.txt").read_bytes()


def test_the_number_of_steps_in_a_call_changes_nothing(train, tmp_path):
    for size in (1, 7, 50):
        train(tmp_path / str(size), steps=20, steps_per_call=size, cell="gru", **DEEP)
    assert timeless(tmp_path / "1") == timeless(tmp_path / "7") == timeless(tmp_path / "50")


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(train, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, steps=8, seed=seed)
    assert final_weights(tmp_path / "a") == final_weights(tmp_path / "b") != final_weights(tmp_path / "c")


def test_both_implementations_train_alike_and_share_checkpoints(train, tmp_path):
    for name in ("custom", "keras"):
        train(tmp_path / name, steps=8, cell="gru", num_layers=2, output_dropout=0.0, implementation=name)
    losses = {name: [row["loss"] for row in rows(tmp_path / name)] for name in ("custom", "keras")}
    assert losses["custom"] == pytest.approx(losses["keras"], abs=1e-4)
    result = tfcharrnn.train_model(tmp_path / "custom", resume=True, steps=12, implementation="keras", quiet=True)
    assert result.step == 12
    text = tfcharrnn.load_model(tmp_path / "custom").generate(length=20)
    assert len(text) == 20


def test_what_a_resumed_run_cannot_change_is_refused(train, tmp_path, data_dir):
    train(tmp_path / "r", steps=4)
    for change in (
        {"hidden_size": 13},
        {"cell": "gru"},
        {"batch_size": 4},
        {"seed": 5},
        {"shuffle_buffer": 5},
        {"drop_remainder": False},
    ):
        with pytest.raises(tfcharrnn.UserError, match="keeps its"):
            tfcharrnn.train_model(tmp_path / "r", resume=True, quiet=True, **change)
    other = data_dir.parent / "other.txt"
    other.write_text(TEXT[::-1], encoding="utf-8")
    tfcharrnn.prepare_data(tfcharrnn.DataConfig(input=(str(other),), seq_length=21), tmp_path / "other")
    with pytest.raises(tfcharrnn.UserError, match="other data"):
        tfcharrnn.train_model(tmp_path / "r", resume=True, quiet=True, data_dir=tmp_path / "other")
    with pytest.raises(tfcharrnn.ConfigError, match="nonsense"):
        tfcharrnn.train_model(tmp_path / "s", quiet=True, nonsense=1)


def test_the_data_folder_says_how_its_text_is_cut(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT.upper(), encoding="utf-8")
    config = tfcharrnn.DataConfig(input=(str(tmp_path / "text.txt"),), seq_length=11, lowercase=True)
    tfcharrnn.prepare_data(config, tmp_path / "data")
    settings = {"data_dir": tmp_path / "data", "batch_size": 8, "hidden_size": 8, "steps": 1, "quiet": True}
    tfcharrnn.train_model(tmp_path / "r", **settings)
    model = tfcharrnn.load_model(tmp_path / "r")
    assert (model.run.data.seq_length, model.run.data.lowercase, model.run.data.input) == (11, True, ())
    for wrong in ({"seq_length": 21}, {"lowercase": False}):
        with pytest.raises(tfcharrnn.ConfigError, match="was prepared with"):
            tfcharrnn.train_model(tmp_path / "s", **settings, **wrong)
    with pytest.raises(tfcharrnn.ConfigError, match=r"^--data_dir and --corpus exclude each other"):
        tfcharrnn.train_model(tmp_path / "s", **settings, corpus="python")
    assert not (tmp_path / "s").exists()


def test_what_cannot_work_is_told_before_an_old_run_is_removed(train, tmp_path):
    train(tmp_path / "r", steps=4)
    before = final_weights(tmp_path / "r")
    with pytest.raises(tfcharrnn.UserError, match="cudnn"):
        train(tmp_path / "r", steps=4, overwrite=True, implementation="cudnn")
    with pytest.raises(tfcharrnn.UserError, match="--precision=bfloat16"):
        train(tmp_path / "r", steps=4, overwrite=True, implementation="keras", precision="bfloat16")
    assert final_weights(tmp_path / "r") == before


def test_a_run_is_used_by_whatever_code_there_is(train, tmp_path):
    """As after training by cuDNN on another machine."""
    train(tmp_path / "r", steps=4, output_dropout=0.0)
    text = tfcharrnn.load_model(tmp_path / "r").generate(length=20)
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    config["model"]["implementation"] = "cudnn"
    (tmp_path / "r" / "config.json").write_text(json.dumps(config))
    assert tfcharrnn.load_model(tmp_path / "r").generate(length=20) == text


def test_a_run_without_a_checkpoint_resumes_from_the_start(train, tmp_path):
    train(tmp_path / "whole", steps=6)
    train(tmp_path / "cut", steps=6)
    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    tfcharrnn.train_model(tmp_path / "cut", resume=True, quiet=True)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    assert final_weights(tmp_path / "cut") == final_weights(tmp_path / "whole")


def test_resuming_a_run_that_is_at_its_end_says_how_to_go_on(train, tmp_path, data_dir):
    train(tmp_path / "r", steps=4)
    with pytest.raises(tfcharrnn.UserError, match="is complete: step 4 of 4; to continue, raise --steps"):
        tfcharrnn.train_model(tmp_path / "r", resume=True, quiet=True)
    records = tfcharrnn.open_data(data_dir).splits["train"].records
    assert tfcharrnn.train_model(tmp_path / "r", resume=True, quiet=True, epochs=1).step == records // 8


def test_the_data_of_a_run_is_found_again_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    settings = {"batch_size": 8, "hidden_size": 8, "steps": 2, "seq_length": 21, "quiet": True}
    tfcharrnn.train_model(tmp_path / "r", input=(str(text),), **settings)
    loss = tfcharrnn.load_model(tmp_path / "r").evaluate_split("val").loss
    text.rename(tmp_path / "renamed.txt")
    assert tfcharrnn.load_model(tmp_path / "r").evaluate_split("val").loss == loss
    assert tfcharrnn.train_model(tmp_path / "r", resume=True, steps=3, quiet=True).step == 3
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(tfcharrnn.UserError, match=r"data was not found .* pass --data_dir"):
        tfcharrnn.load_model(tmp_path / "r").evaluate_split("val")
    with pytest.raises(tfcharrnn.ConfigError, match="--split must be one of train, val, test"):
        tfcharrnn.train_model(tmp_path / "r", resume=True, steps=4, quiet=True, input=(str(tmp_path / "renamed.txt"),))
        tfcharrnn.load_model(tmp_path / "r").evaluate_split("nope")


def test_a_request_to_stop_saves_and_says_so(train, tmp_path, monkeypatch):
    monkeypatch.setattr(StopSignals, "requested", True, raising=False)
    monkeypatch.setattr(StopSignals, "__init__", lambda self: setattr(self, "_previous_handlers", {}))
    result = train(tmp_path / "r", steps=50, steps_per_call=3)
    assert result.interrupted and result.step == 3
    assert checkpoints.find(tmp_path / "r").step == 3


def test_a_damaged_checkpoint_is_named(train, tmp_path, capsys):
    train(tmp_path / "r", steps=4)
    path = checkpoints.find(tmp_path / "r").path / "ckpt.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(tfcharrnn.UserError, match="every checkpoint in it is damaged"):
        tfcharrnn.load_model(tmp_path / "r")
    assert "step-00000004/ckpt.data-00000-of-00001: missing or damaged" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(train, tmp_path):
    settings = {"cell": "rnn", "optimizer": "sgd", "clip_norm": 0.0, "checkpoint_every": 1, "keep_checkpoints": 0}
    with pytest.raises(tfcharrnn.UserError, match=r"step \d+: loss .* and a smaller --learning_rate"):
        train(tmp_path / "r", steps=50, learning_rate=1e38, **settings)
    for checkpoint in checkpoints.list_checkpoints(tmp_path / "r"):
        weights = tf.train.load_checkpoint(str(checkpoint.path / "ckpt"))
        assert np.isfinite(weights.get_tensor("model/output_kernel/.ATTRIBUTES/VARIABLE_VALUE")).all()


def test_the_gradients_that_are_named_are_those_of_the_step_that_failed(train, tmp_path, monkeypatch):
    """Also where its call begins within a group of steps, as after an evaluation."""
    batches, measure = [], train_step.Trainer.gradient_norms
    monkeypatch.setattr(
        train_step.Trainer,
        "gradient_norms",
        lambda self, ids, step, size: batches.append((ids, step)) or measure(self, ids, step, size),
    )
    settings = {"cell": "rnn", "optimizer": "sgd", "clip_norm": 0.0, "eval_every": 1, "steps_per_call": 8}
    with pytest.raises(tfcharrnn.UserError, match=r"gradient norms: output_kernel "):
        train(tmp_path / "r", steps=50, learning_rate=1e38, **settings)
    ((ids, step),) = batches
    run, data = setup.prepare_run("", run_lib.load(tmp_path / "r").data_dir, {"batch_size": 8})
    sampler = input_pipeline.make_sampler(data, run.training)
    starts, _ = sampler.get_spans(step)
    assert step > 0
    assert ids.numpy().tolist() == [sampler.ids[start : start + 21].tolist() for start in starts]


def test_small_models_take_many_steps_a_call_and_large_ones_take_one():
    def size(units, seq_length, **config):
        model = CharRNN(ModelConfig(hidden_size=units), 68)
        length = train_step.RunLength(1, 1)
        return train_step.Trainer(model, TrainingConfig(**config), seq_length, length).steps_per_call

    assert size(50, 20, batch_size=1) == 1000
    assert 1 < size(100, 100, batch_size=1) < 1000
    assert size(512, 200) == 1
    assert size(512, 200, steps_per_call=3) == 3


def test_the_loss_of_an_untrained_model_is_near_that_of_guessing(data_dir):
    run, data = setup.prepare_run("", data_dir, {"hidden_size": 12})
    model = CharRNN(run.model, len(data.vocabulary))
    loss = float(model.loss(tf.constant(data.read("val").pad())))
    assert loss == pytest.approx(np.log(len(data.vocabulary)), rel=0.15)


# Beginning with the weights of another run


@pytest.fixture
def other_text(tmp_path):
    """Other characters than `TEXT` has, but none that it has not."""
    (tmp_path / "other.txt").write_text("".join(f"{n} is {n} times 1.\n" for n in range(0, 300, 7)))
    return str(tmp_path / "other.txt")


def test_a_run_begins_with_the_weights_of_another_and_keeps_its_vocabulary(train, tmp_path, other_text):
    """A resume in between changes nothing, and needs the other run no more."""
    train(tmp_path / "first", cell="rnn", num_layers=1, steps=4)
    settings = {"input": (other_text,), "init_from": tmp_path / "first", "batch_size": 4, "output_dropout": 0.1}
    more = {"keep_checkpoints": 0, "quiet": True}
    tfcharrnn.train_model(tmp_path / "whole", **settings, **more, steps=6)
    tfcharrnn.train_model(tmp_path / "parts", **settings, **more, steps=3)
    first, begun = tfcharrnn.load_model(tmp_path / "first"), tfcharrnn.load_model(tmp_path / "parts", "step-00000000")
    shutil.rmtree(tmp_path / "first")
    tfcharrnn.train_model(tmp_path / "parts", resume=True, steps=6, quiet=True)
    assert final_weights(tmp_path / "parts") == final_weights(tmp_path / "whole")
    assert begun.run.vocabulary == first.run.vocabulary
    assert (begun.run.model.cell, begun.run.model.output_dropout, begun.run.data.seq_length) == ("rnn", 0.1, 21)
    for got, expected in zip(begun.model.trainable_variables, first.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(got, expected)

    _, data = setup.prepare_run("", "", {"input": (other_text,), "batch_size": 4}, begun.run)
    with open(other_text) as file:
        assert file.read().startswith(data.vocabulary.decode(data.read("train").ids))
    assert begun.evaluate_split("train").characters == len(data.read("train")) * 20


def test_what_cannot_begin_with_another_run_is_told(train, tmp_path, other_text):
    train(tmp_path / "first", steps=1)
    (tmp_path / "greek.txt").write_text("§¶" * 100)

    def refused(match, error=tfcharrnn.UserError, run_dir="second", **settings):
        settings = {"init_from": tmp_path / "first", "quiet": True, "batch_size": 2} | settings
        with pytest.raises(error, match=match):
            tfcharrnn.train_model(tmp_path / run_dir, **settings)
        assert not (tmp_path / "second").exists()

    refused("--input, --corpus or --data_dir", tfcharrnn.ConfigError)
    refused("does not have '§', '¶'", input=(str(tmp_path / "greek.txt"),))
    refused("keeps its model, --hidden_size=12 and not 13; leave the flag out", input=(other_text,), hidden_size=13)
    refused("--layout", input=(other_text,), layout="windows")
    refused("exclude each other", tfcharrnn.ConfigError, resume=True)
    refused("must differ from --init_from", tfcharrnn.ConfigError, run_dir="first", overwrite=True, input=(other_text,))
    assert checkpoints.list_checkpoints(tmp_path / "first")
    refused("not a run folder", init_from=tmp_path, input=(other_text,))


def test_a_sample_of_a_model_of_lines_has_several(tmp_path):
    recorder = loop.Recorder.__new__(loop.Recorder)
    recorder._run = SimpleNamespace(training=TrainingConfig(sample_length=9, seed=2**31 - 1))
    asked = []

    def generate(config):
        asked.append(config)
        return ["abc", "ab", "abcd", "a"][: config.num_samples]

    for symbols, sample in ((["<PAD>", "<S>", "</S>", "a"], "abc\nab"), (["<S>", "a"], "abc")):
        recorder._sampler = SimpleNamespace(vocabulary=tfcharrnn.Vocabulary(symbols), generate=generate)
        assert recorder._generate_sample(3) == sample
    assert [(config.num_samples, config.length, config.seed) for config in asked] == [(10, 9, 2), (1, 9, 2)]
