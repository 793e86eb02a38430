"""Runs that an earlier version made give what they gave then; see `tools/make_golden.py`.

Nothing in `tests/golden` is edited or made again. A new format gets folders of its own beside these.
"""

import json

import pytest
from paths import GOLDEN

import tfcharrnn
from tfcharrnn.cell_registry import BUILT_IN

RUNS = sorted(path.stem for path in GOLDEN.glob("*.json"))


@pytest.fixture(scope="module", params=RUNS)
def golden(request):
    """A run, and what it must give."""
    expected = json.loads((GOLDEN / f"{request.param}.json").read_text(encoding="utf-8"))
    return tfcharrnn.load_model(GOLDEN / request.param), expected


def test_there_is_one_for_every_cell():
    assert set(RUNS) >= set(BUILT_IN)


def test_it_is_at_its_step(golden):
    trained, expected = golden
    assert trained.checkpoint.step == expected["step"]


def test_it_generates_the_known_texts(golden):
    trained, expected = golden
    for entry in expected["texts"]:
        assert trained.generate(**entry["settings"]) == entry["text"]


def test_it_has_the_known_loss(golden):
    trained, expected = golden
    known = expected["evaluated"]
    evaluation = trained.evaluate_text(known["text"], read=known.get("read", ""))
    assert evaluation.characters == known["characters"]
    assert evaluation.loss == pytest.approx(known["loss"], rel=0.0, abs=1e-6)
