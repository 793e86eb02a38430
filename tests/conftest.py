import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from pathlib import Path

import hypothesis
import pytest

# no deadline: the first example of a property may import or compile something; the same examples every time in CI
hypothesis.settings.register_profile("tfcharrnn", deadline=None, max_examples=50, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("tfcharrnn")

_CORPORA = Path(__file__).resolve().parents[2] / "shared" / "corpora"


@pytest.fixture(scope="session")
def shakespeare():
    path = _CORPORA / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip("../shared/corpora/tinyshakespeare.txt is not on this machine")
    return path
