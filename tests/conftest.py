import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from pathlib import Path

import folders
import hypothesis
import pytest

from tfcharrnn import gpu_diagnosis

gpu_diagnosis.load_cusolver()  # before a module asks TensorFlow whether there is a GPU

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


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A data folder, to be read only."""
    path = tmp_path_factory.mktemp("good") / "data"
    return folders.prepare(path, folders.TEXT, seq_length=50, val_fraction=0.1, num_shards=2).path


@pytest.fixture
def folder(good, tmp_path):
    """A data folder to damage."""
    copy = tmp_path / "data"
    copy.mkdir()
    for name, data in folders.contents(good).items():
        (copy / name).write_bytes(data)
    return copy


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """A cache of texts of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
