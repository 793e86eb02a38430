"""What a text has in common with another, against plain string search."""

import json

import commands
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tfcharrnn
from tfcharrnn.analysis import novelty


def tool(*arguments, cwd):
    return commands.run("novelty", *arguments, cwd=cwd)


@given(st.text("ab🙂", max_size=30), st.text("ab🙂", max_size=30))
def test_spans_are_those_that_a_search_finds(generated, training):
    found = novelty.measure(generated, training, tuple(range(1, 40)))
    longest = 0
    for n in range(1, 40):
        grams = [generated[at : at + n] for at in range(len(generated) - n + 1)]
        copied = [gram in training for gram in grams]
        assert found.copied[n] == (pytest.approx(np.mean(copied)) if grams else None)
        longest = n if any(copied) else longest
    assert found.longest == longest == len(found.span)
    assert generated[found.place :].startswith(found.span)
    assert training.find(found.span) == found.training_place


@given(st.text("abc", max_size=50), st.text("abc", min_size=60, max_size=200), st.data())
def test_a_copied_span_is_found_whatever_stands_around_it(generated, training, data):
    place = data.draw(st.integers(0, len(training) - 50))
    at = data.draw(st.integers(0, len(generated)))
    text = generated[:at] + training[place : place + 50] + generated[at:]
    found = novelty.measure(text, training)
    assert found.longest >= 50 and found.copied[50] >= 1 / (len(text) - 49)


def test_a_span_over_the_seam_of_the_two_texts_is_no_copy():
    found = novelty.measure("xyab", "cdab", (2, 3, 4))
    assert (found.longest, found.span, found.copied[3]) == (2, "ab", 0.0)
    assert novelty.measure("abc", "x").longest == 0 == novelty.measure("abc", "").longest


def test_a_text_against_itself_is_all_copied():
    text = "".join(np.random.default_rng(0).choice(list("abcdef"), 5000))
    found = novelty.measure(text, text)
    assert found.longest == 5000 and set(found.copied.values()) == {1.0}
    assert novelty.measure(text[::-1], text).longest < 20


def test_the_tool_prints_a_table_or_an_object(tmp_path):
    (tmp_path / "training.txt").write_text("the quick brown fox jumps over the lazy dog " * 3, encoding="utf-8")
    (tmp_path / "sample.txt").write_text("a quick brown cat jumps over the mat", encoding="utf-8")
    (tmp_path / "other.txt").write_text("nothing of the sort", encoding="utf-8")
    done = tool("--generated=sample.txt", "--training=training.txt", "--held_out=other.txt", cwd=tmp_path)
    printed = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    rows = [line.split() for line in printed.splitlines()]
    assert rows[0] == ["generated", "held", "out"] and rows[2] == ["longest", "copied", "span", "16", "5"]
    assert printed.endswith(
        "The longest copied span, at character 17 of the generated, 19 of the training text:\n' jumps over the '\n"
    )
    done = tool("--generated=sample.txt", "--training=training.txt", "--json", cwd=tmp_path)
    value = json.loads(done.stdout)
    assert (value["generated"]["longest"], value["generated"]["span"]) == (16, " jumps over the ")
    assert value["training_characters"] == 132 and "held_out" not in value
    assert tool("--generated=sample.txt", cwd=tmp_path).returncode == 2
    done = tool("--generated=none.txt", "--training=training.txt", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.decode().count("\n") == 1


@pytest.mark.parametrize(
    ("layout", "encoding"), [("sequences", "utf-8"), ("sequences", "bytes"), ("lines", "utf-8"), ("lines", "bytes")]
)
def test_the_training_text_of_a_run_is_found(tmp_path, layout, encoding):
    lines = "".join(f"{n}² = {n} · {n} is {n * n}\n" for n in range(300))
    (tmp_path / "text.txt").write_text(lines, encoding="utf-8")
    settings = {"seq_length": 22, "overlap": 0.4} if layout == "sequences" else {}
    settings["encoding"] = encoding
    config = tfcharrnn.DataConfig(input=(str(tmp_path / "text.txt"),), layout=layout, val_fraction=0.2, **settings)
    data = tfcharrnn.prepare_data(config, tmp_path / "data")
    tfcharrnn.train_model(tmp_path / "run", data_dir=data.path, steps=1, hidden_size=4, batch_size=4, quiet=True)
    (tmp_path / "sample.txt").write_text(lines, encoding="utf-8")
    done = tool("--generated=sample.txt", "--run_dir=run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    value = json.loads(done.stdout)
    assert value["training_characters"] == pytest.approx(0.8 * len(lines), rel=0.02)
    assert value["held_out"]["characters"] == pytest.approx(0.2 * len(lines), rel=0.1)
    assert value["generated"]["copied"]["4"] > value["held_out"]["copied"]["20"]
    if layout == "sequences":
        assert value["generated"]["longest"] == value["training_characters"]


def test_bytes_are_not_compared(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    done = tool("--generated=a.txt", "--training=a.txt", "--encoding=bytes", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.decode().count("\n") == 1
    assert "--encoding=bytes: texts are compared by characters" in done.stderr.decode()
