"""The lines of a text in blocks."""

import itertools
import signal

import pytest
from folders import contents
from hypothesis import given
from hypothesis import strategies as st
from large_texts import in_blocks, write_texts

from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.dataset import SPLITS
from tfcharrnn.errors import UserError
from tfcharrnn.preparation import corpora, data_folder, line_blocks
from tfcharrnn.preparation.data_folder import prepare_data
from tfcharrnn.preparation.line_blocks import LineFinder


@pytest.mark.parametrize(
    "delimiter",
    [
        r"\n",
        r"\n\n+",
        r"[.!?]\s*",
        r"(a)(b)?",
        r"\s*",
        r"$",
        r"(?=b)",
        r"x^",
        r"\b",
        r"^a",
        r"(?<=b)\s",
        r"a|(?m:^)|\s?",
    ],
)
@given(st.text("aab \n\n.!?c", max_size=80), st.lists(st.integers(1, 9), max_size=30))
def test_lines_are_found_in_pieces_as_in_the_whole(delimiter, text, sizes):
    config = DataConfig(layout="lines", delimiter=delimiter, max_length=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_blocks, "MARGIN", 90 if "+" in delimiter or "*" in delimiter else 3)
        finder, found, dropped, at = LineFinder(config), [], {"empty": 0, "too_long": 0}, 0
        for size in [*sizes, len(text)]:
            _, kept, left_out = finder.add(text[at : at + size], is_last=at + size >= len(text))
            found += kept
            dropped = {kind: count + left_out[kind] for kind, count in dropped.items()}
            at += size
            if at >= len(text):
                break
    assert (found, dropped) == chunking.split_lines(text, config)


def test_a_line_that_is_too_long_is_not_kept_in_memory():
    config = DataConfig(layout="lines", delimiter=r";", max_length=100)
    finder, total = LineFinder(config), {"empty": 0, "too_long": 0}
    for index in range(50):
        _, kept, dropped = finder.add("x" * 100_000 + "; y;" * (index == 25), is_last=index == 49)
        total = {kind: count + dropped[kind] for kind, count in total.items()}
        assert kept in ([], [" y"])
        assert len(finder._text) + len(finder._head) < 6 * line_blocks.MARGIN
    assert total == {"empty": 0, "too_long": 2}


@pytest.mark.parametrize("jobs", [1, 2])
def test_very_many_lines_go_to_the_splits_without_being_sorted(tmp_path, jobs):
    text = "".join(f"line {index}\n\n" for index in range(500))
    config = DataConfig(input=write_texts(tmp_path, text.encode()), layout="lines", val_fraction=0.2, test_fraction=0.1)
    with in_blocks(block=300, sorted_lines=10):
        large = prepare_data(config, tmp_path / "large", jobs=jobs)
        assert [large.splits[split].records for split in SPLITS] == [350, 100, 50]
        numbers = {}
        for split in SPLITS:
            read = large.read(split)
            decoded = [large.vocabulary.decode(row[:size]) for row, size in zip(read.pad(), read.lengths, strict=True)]
            numbers[split] = [int(line.removeprefix("line ")) for line in decoded]
        assert sorted(itertools.chain(*numbers.values())) == list(range(500))
        assert all(part == sorted(part) for part in numbers.values())
        assert 20 < sum(number < 250 for number in numbers["val"]) < 80, "they are spread"
        small = corpora.load(config)
        data_folder.write_from_memory(small, tmp_path / "small", config, False)
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


SLOW = DataConfig(layout="lines", delimiter="(a+)+$")


@pytest.mark.parametrize("search", [LineFinder(SLOW).add, lambda text, **_: chunking.split_lines(text, SLOW)])
def test_a_delimiter_that_takes_for_ever_is_an_error(search, monkeypatch):
    monkeypatch.setattr(chunking, "_SEARCH_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"^--delimiter='\(a\+\)\+\$': searching 41 characters .* took too long"):
        search("a" * 40 + "b", is_last=True)
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL
