"""Training on several devices is the training of one."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import replicated
import replicated_calls
from paths import TESTS

# each replica compiles its own steps; unoptimised they are the same arithmetic, and ready in half the time
QUICKLY_COMPILED = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}


def run_replicas():
    """Returns what `replicated.py` prints for 1, 2 and 4 replicas."""
    processes = {
        number: subprocess.Popen(
            [sys.executable, TESTS / "replicated.py", str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=QUICKLY_COMPILED,
        )
        for number in (1, 2, 4)
    }
    results = {}
    for number, process in processes.items():
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err.decode()
        results[number] = json.loads(out)
    return results


def test_replicas_do_what_one_does():
    """All settings in one test: its processes take so long that no second worker of the tests should start them."""
    of_replicas = run_replicas()
    for name, number in itertools.product(replicated.SETTINGS, (2, 4)):
        one, many, what = of_replicas[1][name], of_replicas[number][name], f"{name}, {number} replicas"
        expected, got = np.array(one["steps"]), np.array(many["steps"])
        assert len(got) == replicated.SETTINGS[name][2].get("steps", replicated.STEPS), what
        np.testing.assert_array_equal(got[:, 1], expected[:, 1], what)
        np.testing.assert_allclose(got[:, 0] / got[:, 1], expected[:, 0] / expected[:, 1], atol=1e-5, err_msg=what)
        np.testing.assert_allclose(got[:, 2:], expected[:, 2:], rtol=1e-4, err_msg=what)
        for mine, other in zip(many["weights"], one["weights"], strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-4, err_msg=what)


@pytest.fixture(scope="module")
def of_calls():
    """What `replicated_calls.py` prints."""
    command = [sys.executable, TESTS / "replicated_calls.py"]
    done = subprocess.run(command, capture_output=True, timeout=600, env=QUICKLY_COMPILED)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def assert_equal_bits(one, other):
    np.testing.assert_array_equal(one["steps"], other["steps"])
    for mine, its in zip(one["values"], other["values"], strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("name", replicated_calls.NAMES)
def test_several_steps_in_a_call_are_the_same_steps(of_calls, name):
    single, several = of_calls[name]["single"], of_calls[name]["several"]
    assert single["sizes"] == [1] * 2 * replicated.CALL
    assert several["sizes"] == [replicated.CALL] * 2
    assert_equal_bits(single, several)


@pytest.mark.parametrize("name", replicated_calls.NAMES)
def test_a_stop_ends_a_call_after_a_step(of_calls, name):
    stopped = of_calls[name]["stopped"]
    assert stopped["sizes"] == [replicated.CALL]
    assert stopped["steps"] == of_calls[name]["single"]["steps"][:1]
    assert stopped["stopped"] and not of_calls[name]["several"]["stopped"]


@pytest.mark.parametrize("name", replicated_calls.NAMES)
@pytest.mark.parametrize("skips_left", [0, 1, 2])
def test_a_call_ends_with_the_step_that_may_not_be_skipped(of_calls, name, skips_left):
    single, several = of_calls[name]["skipped"][str(skips_left)]
    bad = [index for index, row in enumerate(several["steps"]) if not np.isfinite(row).all()]
    assert bad == list(replicated_calls.BAD_BATCHES[: skips_left + 1])
    assert len(several["steps"]) == (bad[-1] + 1 if len(bad) > skips_left else replicated.CALL)
    assert several["sizes"] == [replicated.CALL] and len(single["sizes"]) == len(single["steps"])
    assert_equal_bits(several, single)
