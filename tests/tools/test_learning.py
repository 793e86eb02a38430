"""The tool that measures what each part of training gives."""

import json

import learning
import pytest

PARTS = {**learning._PARTS, learning._DROPOUT: ({"locked_dropout": True, "output_dropout": 0.1}, {})}


def test_a_part_is_there_or_what_stands_in_its_place():
    everything, nothing = learning._merge(PARTS, PARTS), learning._merge(PARTS, ())
    assert everything["cell"] == "lnlstm" and nothing["cell"] == "gru"
    assert everything["average"] == 0.99 and "average" not in nothing
    for name, (with_it, without_it) in PARTS.items():
        alone = learning._merge(PARTS, (name,))
        without = learning._merge(PARTS, [other for other in PARTS if other != name])
        assert alone != nothing and without != everything
        assert not without.keys() & (with_it.keys() - without_it.keys()), name
        assert nothing == {key: value for key, value in alone.items() if key not in with_it} | without_it


def test_the_picture_shows_runs_and_published_points(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "a run").mkdir()
    rows = [{"step": 1, "seconds": 2.0, "loss": 3.0}, {"step": 2, "seconds": 4.0, "loss": 2.5, "val_loss": 2.0}]
    (tmp_path / "a run" / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    learning.draw_picture([tmp_path / "a run"], tmp_path / "loss.svg")
    shown = (tmp_path / "loss.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in shown for name in ("a run", *learning._NANOGPT))
