"""What XLA compiles in a run, whatever the lengths of its calls, texts and samples."""

import json
import subprocess
import sys

import pytest
from paths import TESTS


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """The compiled programs of each layout, as `compilations.py` counts them."""
    folder = tmp_path_factory.mktemp("compilations")
    done = subprocess.run([sys.executable, TESTS / "compilations.py", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("layout", "bound"),
    [
        ("stream", 3),  # training, validation, samples
        ("sequences", 3),
        ("windows", 3),
        ("incomplete", 3),
        ("lines", 6),
        ("carried", 6),
        ("mirrored", 6),
    ],
)
def test_training_compiles_once_for_each_width(counts, layout, bound):
    assert 1 <= counts[layout]["train"] <= bound


def test_neither_texts_nor_samples_of_other_lengths_compile_anew(counts):
    assert counts["stream"]["generate"] <= 2
    assert counts["stream"]["evaluate"] <= 2
