"""Settings with which published notebooks can be repeated: a state carried through lines, and losses after updates."""

import itertools
import json

import notebook_loops
import numpy as np
import pytest
import tensorflow as tf

import tfcharrnn
from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.data.input_pipeline import Call
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs import checkpoints
from tfcharrnn.training.metrics import RunningMetrics
from tfcharrnn.training.train_step import RunLength, StepMetrics, Trainer

NAMES = ["rex", "brontosaurus", "iguana", "a", "bambiraptor", "diplo"]
HIDDEN, SYMBOLS = 7, sorted(set("".join(NAMES)))
SETTINGS = {"layout": "lines", "val_fraction": 0.0, "cell": "rnn", "hidden_size": HIDDEN, "zero_start": True}
SETTINGS |= {"optimizer": "sgd", "learning_rate": 0.05, "clip_norm": 0.0, "batch_size": 1, "reduction": "sum"}
SETTINGS |= {"log_every": 1, "eval_every": 0, "sample_every": 0, "sample_length": 5, "quiet": True}


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("".join(f"{name}\n" for name in NAMES))
    return path


def make_arrays(seed=0):
    rng, size = np.random.default_rng(seed), len(SYMBOLS) + 3
    shapes = {
        "cells/0/kernel": (size, HIDDEN),
        "cells/0/recurrent_kernel": (HIDDEN, HIDDEN),
        "cells/0/bias": (HIDDEN,),
        "output_kernel": (HIDDEN, size),
        "output_bias": (size,),
    }
    return {name: rng.normal(0.0, 0.3, shape) for name, shape in shapes.items()}


def train_by_hand(arrays, steps, learning_rate):
    """A notebook's loop in NumPy: one name a step, its state passed on; returns losses before and after each update."""
    loop = notebook_loops.NotebookLoop(arrays, learning_rate)
    examples = notebook_loops.iterate_lines(NAMES, SYMBOLS)
    before, after = zip(*(loop.step(example) for example in itertools.islice(examples, steps)), strict=True)
    return before, after


@pytest.mark.parametrize(("after", "precision", "tolerance"), [(False, "float32", 1e-4), (True, "float64", 1e-12)])
def test_a_notebooks_loop_over_names_is_repeated_to_the_digit(names, tmp_path, after, precision, tolerance):
    np.savez(tmp_path / "weights.npz", **make_arrays())
    tfcharrnn.train_model(
        tmp_path / "run",
        init_arrays=tmp_path / "weights.npz",
        input=[str(names)],
        **{**SETTINGS, "shuffle": "none", "carry_state": True, "loss_after_update": after, "steps": 20},
        precision=precision,
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lengths = [len(NAMES[step % len(NAMES)]) + 1 for step in range(20)]
    losses = [row["loss"] * length for row, length in zip(rows, lengths, strict=True)]
    want = train_by_hand(make_arrays(), 20, SETTINGS["learning_rate"])[after]
    np.testing.assert_allclose(losses, want, rtol=tolerance)
    assert abs(want[7] - train_by_hand(make_arrays(), 20, SETTINGS["learning_rate"])[not after][7]) > 0.01


@pytest.mark.parametrize("shuffle", ["none", "once"])
def test_a_run_that_carries_its_state_through_lines_resumes_bit_for_bit(names, tmp_path, shuffle):
    settings = {
        **SETTINGS,
        "cell": "lstm",
        "learned_initial_state": True,
        "loss_after_update": True,
        "zero_start": False,
    }
    for run, steps in (("whole", (15,)), ("stopped", (4, 11, 15))):
        for number, step in enumerate(steps):
            start = {"resume": True, "quiet": True} if number else settings | {"shuffle": shuffle, "carry_state": True}
            tfcharrnn.train_model(tmp_path / run, **start, **({} if number else {"input": [str(names)]}), steps=step)
    whole, stopped = (checkpoints.find(tmp_path / name).path for name in ("whole", "stopped"))
    assert (whole / "ckpt.data-00000-of-00001").read_bytes() == (stopped / "ckpt.data-00000-of-00001").read_bytes()
    weights = tf.train.load_checkpoint(str(whole / "ckpt"))
    assert np.any(weights.get_tensor("carried/state/0/0/.ATTRIBUTES/VARIABLE_VALUE"))


def test_a_loss_after_the_update_leaves_training_as_it_is():
    ids = tf.constant(np.random.default_rng(0).integers(0, 6, (4, 3, 6)), tf.int32)
    trained = {}
    for after in (False, True):
        config = TrainingConfig(batch_size=3, loss_after_update=after, optimizer="sgd", learning_rate=0.3)
        model = CharRNN(ModelConfig(hidden_size=5, output_dropout=0.3), 6, layout=LAYOUTS["stream"])
        trainer = Trainer(model, config, 6.0, RunLength(10, 100))
        rows = [row for results in trainer.run(Call(0, 4, None, ids, 0.0)) for row in results.per_step()]
        trained[after] = [variable.numpy() for variable in model.trainable_variables], [row.loss_sum for row in rows]
    for one, other in zip(trained[False][0], trained[True][0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(lower < higher for higher, lower in zip(trained[False][1], trained[True][1], strict=True))


def test_weights_of_float64_are_not_taken_for_float32(names, tmp_path):
    settings = {"input": [str(names)], **SETTINGS, "steps": 1}
    tfcharrnn.train_model(tmp_path / "run", **settings, precision="float64")
    assert tfcharrnn.load_model(tmp_path / "run").model.output_kernel.dtype == tf.float64
    with pytest.raises(UserError, match="--precision=float32 cannot use its weights"):
        tfcharrnn.train_model(tmp_path / "run", resume=True, steps=2, precision="float32", quiet=True)
    with pytest.raises(UserError, match=r"--precision=float32 cannot use its weights, .* --init_arrays"):
        tfcharrnn.train_model(tmp_path / "new", init_from=tmp_path / "run", precision="float32", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"carry_state": True}, "--carry_state: needs --batch_size=1 and --shuffle=once or none"),
        ({"carry_state": True, "shuffle": "none", "batch_size": 2}, "--batch_size=1"),
        ({"carry_state": True, "layout": "sequences", "seq_length": 5}, "--carry_state: applies to --layout=lines"),
        ({"shuffle": "none", "shuffle_buffer": 9}, "--shuffle=none: reads the whole training text into memory, 50 sym"),
        (
            {"loss_after_update": True, "strategy": "mirrored", "num_replicas": 1},
            "--loss_after_update: is measured on one device; not available",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(names, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        tfcharrnn.train_model(tmp_path / "run", input=[str(names)], steps=1, **{**SETTINGS, **settings})
    assert not (tmp_path / "run" / "checkpoints").exists()


# First weights from arrays


def train_from(path, names, tmp_path, **settings):
    return tfcharrnn.train_model(
        tmp_path / "run", init_arrays=path, input=[str(names)], overwrite=True, **{**SETTINGS, "steps": 1, **settings}
    )


def test_the_weights_of_an_export_are_those_that_a_run_starts_with(names, tmp_path):
    settings = {**SETTINGS, "cell": "gru", "num_layers": 2, "embedding_size": 4, "average": 0.9, "zero_start": False}
    tfcharrnn.train_model(tmp_path / "first", input=[str(names)], **{**settings, "steps": 3})
    tfcharrnn.export_model(tmp_path / "first", "npz", tmp_path / "export")
    train_from(tmp_path / "export" / "model.npz", names, tmp_path, **{**settings, "learning_rate": 1e-9})
    first, second = (tfcharrnn.load_model(tmp_path / name) for name in ("first", "run"))
    for name, variable in first.model.named_variables.items():
        np.testing.assert_allclose(variable, second.model.named_variables[name], atol=1e-6)


def test_other_arrays_than_those_of_the_model_are_refused(names, tmp_path):
    path, arrays = tmp_path / "weights.npz", make_arrays()
    cases = [
        (
            {name: array for name, array in arrays.items() if name != "output_bias"},
            "the array 'output_bias' is missing",
        ),
        ({**arrays, "more": np.zeros(3)}, "the array 'more' is unknown"),
        ({**arrays, "output_bias": np.zeros(3)}, r"output_bias: has shape \(3,\), but needs"),
        ({**arrays, "cells/0/bias": np.full(HIDDEN, np.nan)}, "cells/0/bias: has values that are not finite"),
        ({**arrays, "cells/0/bias": np.array([None] * HIDDEN)}, "an array of objects is not supported"),
        ({**arrays, "symbols": np.array(["<PAD>", "<S>", "</S>", *reversed(SYMBOLS)])}, "has other symbols than the"),
    ]
    for content, message in cases:
        np.savez(path, **content)
        with pytest.raises(UserError, match=message):
            train_from(path, names, tmp_path)
        assert not (tmp_path / "run").exists()
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-40], whole[:100] + b"x" + whole[101:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"weights\.npz"):
            train_from(path, names, tmp_path)
    with pytest.raises(UserError, match=r"none\.npz: no such file"):
        train_from(tmp_path / "none.npz", names, tmp_path)


# What is said of a run


def test_the_speed_of_a_row_is_that_of_all_its_steps():
    running = RunningMetrics(TrainingConfig(batch_size=1), 9)
    for seconds in (5.0, 1.0):  # the first call compiled
        running.add(StepMetrics(30.0, 10.0, 1.0, 0.1))
        running.add_time(10.0, seconds)
    running.waited = 2.0
    assert running.take_row(2, 0.5)["chars_per_second"] == 20 / 8
    running.add(StepMetrics(30.0, 10.0, 1.0, 0.1))
    running.add_time(10.0, 0.5)
    assert running.take_row(3, 0.5)["chars_per_second"] == 20.0


@pytest.mark.parametrize(("steps_per_call", "shows_speed"), [(6, False), (2, True)])
def test_no_speed_is_shown_before_a_call_that_only_trains(names, tmp_path, capsys, steps_per_call, shows_speed):
    settings = {**SETTINGS, "quiet": False, "steps": 6, "steps_per_call": steps_per_call, "log_every": 6}
    settings |= {"layout": "stream", "seq_length": 5, "drop_chars": "\nbx", "lowercase": True, "zero_start": False}
    tfcharrnn.train_model(tmp_path / "run", input=[str(names)], **settings)
    said = capsys.readouterr().err
    assert ("characters/s" in said) == shows_speed
    assert "text       in lower case, without U+000A b x\n" in said
