"""The reader of `metrics.jsonl`, of a run that is still training and of a damaged file."""

import json

import pytest

from tfcharrnn.errors import UserError
from tfcharrnn.runs import logs


def write(run_dir, text):
    (run_dir / "metrics.jsonl").write_text(text)
    return run_dir


def test_written_rows_and_samples_are_read_back(tmp_path):
    writer = logs.LogWriter(tmp_path)
    rows = [{"step": 1, "loss": 2.5}, {"step": 2, "val_loss": 1.5}]
    writer.write_rows(rows)
    writer.write_sample("step 2, smoothed loss 2.5", "two\n\nparagraphs\n")
    assert logs.read_metrics(tmp_path) == rows == logs.read_intact_metrics(tmp_path).rows
    assert logs.read_samples(tmp_path) == [{"title": "step 2, smoothed loss 2.5", "text": "two\n\nparagraphs\n"}]
    sizes = writer.sync()
    writer.write_rows(rows)
    assert logs.LogWriter(tmp_path, sizes).sync() == sizes
    assert logs.read_metrics(tmp_path) == rows


def test_metrics_are_json_whatever_was_measured(tmp_path):
    logs.LogWriter(tmp_path).write_rows([{"step": 1, "loss": float("inf"), "val_loss": float("nan"), "epoch": 0.5}])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "val_loss": null, "epoch": 0.5}\n'
    assert logs.read_metrics(tmp_path) == [{"step": 1, "epoch": 0.5}]


@pytest.mark.parametrize(
    "row",
    ["{", "[]", "1", '{"loss": 1}', '{"step": null}', '{"step": "1"}', '{"step": 1, "loss": []}',
     json.dumps({"step": 10**400}), "[" * 100_000],
    ids=lambda row: row[:20],
)  # fmt: skip
def test_both_readers_agree_on_what_is_damaged(tmp_path, row):
    write(tmp_path, f'{{"step": 1, "val_loss": null}}\n{row}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: damaged"):
        logs.read_metrics(tmp_path)
    metrics = logs.read_intact_metrics(tmp_path)
    assert metrics.rows == [{"step": 1}, {"step": 3}] and len(metrics.errors) == 1


def test_missing_logs_are_empty_or_an_error(tmp_path):
    assert logs.read_intact_metrics(tmp_path) == ([], [])
    assert logs.read_samples(tmp_path) == []
    with pytest.raises(UserError, match="no such file"):
        logs.read_metrics(tmp_path)
    with pytest.raises(UserError, match="has no rows yet"):
        logs.read_metrics(write(tmp_path, '{"step": 1'))
