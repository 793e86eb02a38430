"""Training on several devices is the training of one."""

import json
import subprocess
import sys

import numpy as np
import pytest
import replicated
from paths import TESTS


@pytest.fixture(scope="module")
def of_replicas():
    """What `replicated.py` prints for 1, 2 and 4 replicas."""
    processes = {
        number: subprocess.Popen(
            [sys.executable, TESTS / "replicated.py", str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for number in (1, 2, 4)
    }
    results = {}
    for number, process in processes.items():
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err.decode()
        results[number] = json.loads(out)
    return results


@pytest.mark.parametrize("name", list(replicated.SETTINGS))
@pytest.mark.parametrize("number", [2, 4])
def test_replicas_do_what_one_does(of_replicas, number, name):
    one, many = (of_replicas[n][name] for n in (1, number))
    expected, got = np.array(one["steps"]), np.array(many["steps"])
    assert len(got) == replicated.SETTINGS[name][2].get("steps", replicated.STEPS)
    np.testing.assert_array_equal(got[:, 1], expected[:, 1])
    np.testing.assert_allclose(got[:, 0] / got[:, 1], expected[:, 0] / expected[:, 1], atol=1e-5)
    np.testing.assert_allclose(got[:, 2:], expected[:, 2:], rtol=1e-4)
    for mine, other in zip(many["weights"], one["weights"], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)
