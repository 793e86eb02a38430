"""The gradient check passes correct gradients and finds wrong ones, also as a command."""

import dataclasses
import math
import re

import commands
import numpy as np
import pytest
import tensorflow as tf
from paths import ROOT

from tfcharrnn import gradcheck
from tfcharrnn.cell_registry import BUILT_IN
from tfcharrnn.config import GradcheckConfig
from tfcharrnn.errors import UserError
from tfcharrnn.model.backends import LIBRARY_CELLS
from tfcharrnn.model.cells import get_cell_class
from tfcharrnn.model.cells.rnn import RNNCell
from tfcharrnn.verification import gradient_check, numpy_reference

SMALL = GradcheckConfig(hidden_size=2, embedding_size=2, batch_size=2, seq_length=4)
LARGE_CASE = {"num_layers": 2, "embedding_size": 2}


class WrongRNNCell(RNNCell):
    """Uses 1 - |tanh| as the derivative of tanh."""

    @staticmethod
    def backward(saved, before, after, d_after):
        (h,), (dh,) = after, d_after
        d_sum = dh * (1.0 - tf.abs(h))
        return d_sum, d_sum, (tf.zeros_like(h),)


# every kind for the cells of each code path; the others are checked by the command
CASES = [(cell, kind) for cell in ("rnn", "lstm", "gru", "mlstm") for kind in gradient_check.BUILDERS]
CASES += [
    ("lnlstm", "residual"),
    ("lnlstm", "padded"),
    ("mingru", "skipped"),
    ("minlstm", "learned"),
    ("sru", "skipped"),
]
CASES += [("sru", "dropout"), ("sru", "residual")]


@pytest.mark.parametrize(("cell", "kind"), CASES)
def test_correct_gradients_pass(cell, kind):
    """All parameters of a model and its carried state are checked; no gradient is zero on both sides."""
    # of two units, normalisation leaves only which is larger
    config = dataclasses.replace(SMALL, hidden_size=4) if kind == "residual" or cell == "lnlstm" else SMALL
    problem = gradient_check.build_problem(config, gradient_check.Case(**LARGE_CASE, kind=kind), cell, "custom")
    names = {"embedding", "output_kernel", "output_bias"}
    names |= {f"cells/{layer}/{name}" for layer in range(2) for name in get_cell_class(cell).variable_shapes(2, 2)}
    states = {"learned": "initial_states", "padded": "state", "skipped": "state"}
    if kind in states:
        tensors = get_cell_class(cell).num_state_tensors
        names |= {f"{states[kind]}/{layer}/{index}" for layer in range(2) for index in range(tensors)}
    if kind == "residual":
        names |= {f"norms/{layer}/{name}" for layer in range(2) for name in ("gain", "shift")}
    assert problem.variables.keys() == names
    before = {name: variable.numpy() for name, variable in problem.variables.items()}
    analytic, numerical = (
        gradient_check.compute_analytic_gradients(problem),
        gradient_check.compute_numerical_gradients(problem),
    )
    for name, variable in problem.variables.items():
        np.testing.assert_array_equal(variable, before[name])
        assert analytic[name].shape == numerical[name].shape == variable.shape
        assert np.linalg.norm(numerical[name]) > 1e-4, name
        assert numpy_reference.relative_error(analytic[name], numerical[name]) < 1e-7, name


@pytest.mark.parametrize("kind", ["learned", "padded"])
@pytest.mark.parametrize("cell", LIBRARY_CELLS)
def test_correct_gradients_of_keras_pass(cell, kind):
    problem = gradient_check.build_problem(SMALL, gradient_check.Case(**LARGE_CASE, kind=kind), cell, "keras")
    assert max(gradient_check.compute_relative_errors(problem).values()) < 1e-7


def test_every_variable_of_a_model_is_named():
    config = gradient_check.ModelConfig(cell="lstm", hidden_size=2, embedding_size=2, learned_initial_state=True)
    model = gradient_check.make_random_model(np.random.default_rng(0), config)
    named = {id(variable) for variable in model.named_variables.values()}
    assert named == {id(variable) for variable in model.trainable_variables}


def test_central_differences_of_a_sine():
    variable = tf.Variable([[0.3, -0.7]], dtype=tf.float64)
    problem = gradient_check.Problem(lambda: tf.reduce_sum(tf.sin(variable)), {"x": variable})
    np.testing.assert_allclose(
        gradient_check.compute_numerical_gradients(problem)["x"], np.cos([[0.3, -0.7]]), rtol=1e-11
    )
    assert gradient_check.compute_relative_errors(problem)["x"] < 1e-11


def test_a_gradient_that_does_not_reach_a_variable_is_found():
    variable = tf.Variable([1.0], dtype=tf.float64)
    problem = gradient_check.Problem(lambda: tf.reduce_sum(tf.stop_gradient(variable) ** 2), {"x": variable})
    assert gradient_check.compute_relative_errors(problem)["x"] == pytest.approx(1.0)


def test_the_default_cases_are_those_of_the_contract():
    found = {(case.num_layers, case.embedding_size, case.kind) for case in gradient_check.list_cases(GradcheckConfig())}
    assert found == {(layers, size, kind) for layers in (1, 2) for size in (0, 3) for kind in gradient_check.BUILDERS}
    least = gradient_check.list_cases(GradcheckConfig(num_layers=1, embedding_size=0))
    assert [case.kind for case in least] == list(gradient_check.BUILDERS)


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        ({}, [(cell, name) for cell in LIBRARY_CELLS for name in ("custom", "keras")]),
        ({"implementation": "keras"}, [(cell, "keras") for cell in LIBRARY_CELLS]),
        ({"implementation": "custom"}, [(cell, "custom") for cell in LIBRARY_CELLS]),
        ({"cell": "gru"}, [("gru", "custom"), ("gru", "keras")]),
        ({"cell": "sru"}, [("sru", "custom")]),
    ],
)
def test_the_columns_are_what_there_is(settings, columns):
    """Keras has three of the cells, so the others have one column."""
    others = [(cell, "custom") for cell in BUILT_IN[3:]]
    found = gradcheck.list_columns(GradcheckConfig(**settings))
    is_all = settings.get("cell", "all") == "all" and settings.get("implementation") != "keras"
    assert [column for column in found if column[0] in BUILT_IN] == columns + (others if is_all else [])


def test_a_wrong_backward_step_is_found(monkeypatch, capsys):
    monkeypatch.setattr("tfcharrnn.model.char_rnn.get_cell_class", lambda *_: WrongRNNCell)
    least = dataclasses.replace(SMALL, cell="rnn", implementation="custom", num_layers=1, embedding_size=0)
    with pytest.raises(
        UserError, match=r"above --tolerance=1e-07; the largest, .* \(rnn custom, layers 1, embedding 0, "
    ):
        gradcheck.check_gradients(least)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == len(gradient_check.BUILDERS)
    assert all(float(row.split()[-1]) > 1e-3 for row in rows)


def test_nan_does_not_pass(monkeypatch):
    errors = {"a": 0.5, "b": math.nan, "c": 0.0}
    monkeypatch.setattr(gradient_check, "compute_relative_errors", lambda problem: errors)
    with pytest.raises(UserError, match=r"12 of 18 .* the largest, nan, is that of b"):
        gradcheck.check_gradients(
            dataclasses.replace(SMALL, cell="rnn", implementation="custom", num_layers=1, embedding_size=0)
        )


# The command, as a process


def run(*arguments):
    return commands.run("gradcheck", *arguments, cwd=ROOT, env={"CUDA_VISIBLE_DEVICES": "-1"}, text=True)


LEAST = ["--cell=rnn", "--num_layers=1", "--embedding_size=0", "--hidden_size=2", "--batch_size=2", "--seq_length=3"]


def test_the_command_prints_a_table_and_exits_with_0():
    done = run(*LEAST)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    cells, implementations, *rows = done.stdout.splitlines()
    assert cells.split() == ["layers", "embedding", "texts", "rnn", "rnn"]
    assert implementations.split() == ["custom", "keras"] and len(implementations) == len(cells)
    assert [row.split()[:3] for row in rows] == [["1", "0", kind] for kind in gradient_check.BUILDERS]
    errors = [error for row in rows for error in row.split()[3:]]
    assert errors.count("-") == 1
    assert all(re.fullmatch(r"\d\.\de-\d\d", error) and float(error) < 1e-7 for error in errors if error != "-")


def test_an_error_above_the_tolerance_exits_with_1_after_the_table():
    done = run(*LEAST, "--implementation=custom", "--tolerance=1e-30", "--seed=3")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2 + len(gradient_check.BUILDERS)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("gradcheck: ") and "--tolerance=1e-30" in done.stderr


@pytest.mark.parametrize("flag", ["--cell=transformer", "--implementation=cudnn", "--tolerance=-1", "--seq_length=1"])
def test_wrong_flags_exit_with_2(flag):
    done = run(flag)
    assert done.returncode == 2
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1 and flag[2:].split("=")[0] in done.stderr
