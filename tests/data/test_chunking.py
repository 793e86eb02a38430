"""How texts are divided, and cut into records and examples."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.examples import (
    Examples,
    count_training_examples,
    cut_stream,
    make_evaluation_examples,
    make_training_examples,
)
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import ConfigError


def cut_by_hand(text, seq_length, step):
    sequences, start = [], 0
    while start + seq_length - 1 <= len(text):
        sequence = [0]
        for position in range(start, start + seq_length - 1):
            sequence.append(text[position])
        sequences.append(sequence)
        start += step
    return sequences


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(2, 20), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]))
def test_cut_sequences_reads_as_the_contract(text, seq_length, overlap):
    step = seq_length - 1 - math.ceil(overlap * (seq_length - 1))
    if step == 0:
        with pytest.raises(ConfigError, match=f"^--overlap={overlap}"):
            chunking.cut_sequences(np.array(text, np.int32), seq_length, overlap, 0)
        return
    expected = cut_by_hand(text, seq_length, step)
    sequences = chunking.cut_sequences(np.array(text, np.int32), seq_length, overlap, 0)
    assert sequences.tolist() == expected
    assert sequences.shape == (len(expected), seq_length)
    assert sequences.dtype == np.int32
    assert chunking.count_sequences(len(text), seq_length, overlap) == len(expected)


@given(st.integers(0, 2000))
def test_sequences_without_overlap_number_characters_by_199(characters):
    sequences = chunking.cut_sequences(np.ones(characters, np.int32), 200, 0.0, 0)
    assert len(sequences) == characters // 199


@pytest.mark.parametrize(
    ("seq_length", "overlap", "step"),
    [(200, 0.0, 199), (101, 0.07, 93), (101, 0.29, 71), (4, 0.5, 1), (201, 0.5, 100), (11, 1e-5, 9), (101, 0.99, 1)],
)
def test_stride_takes_the_overlap_as_the_decimal_it_is_written(seq_length, overlap, step):
    assert chunking.sequence_stride(seq_length, overlap) == step
    assert chunking.sequence_stride(seq_length, np.float64(overlap)) == step


@given(st.text("abcdef", max_size=60), st.integers(2, 20))
def test_a_text_cut_for_evaluation_covers_each_character_once(text, seq_length):
    vocabulary = Vocabulary.from_text("abcdef")
    examples = chunking.encode_text(text, vocabulary, DataConfig(seq_length=seq_length), "text")
    assert len(examples) == math.ceil(len(text) / (seq_length - 1))
    rows = examples.gather(np.arange(len(examples)), seq_length)
    assert np.all(rows[:, 0] == 0)
    pairs = list(zip(rows.tolist(), examples.lengths, strict=True))
    assert "".join(vocabulary.decode(row[1:length]) for row, length in pairs) == text
    assert [length for _, length in pairs[:-1]] == [seq_length] * (len(pairs) - 1)
    assert all(row[length:] == [0] * (seq_length - length) for row, length in pairs)


# Lines

DELIMITERS = [r"\n", r"\n\n+", r"[.!?]\s*", r"(a)(b)?", r"(?:\n|(\.))+", r"\s*", r"$", r"(?=b)", r"x^"]


def lines_config(**settings):
    return DataConfig(layout="lines", **settings)


def split_by_substitution(text, delimiter):
    """What stands between the matches, by way of a sign that no text here has."""
    return re.sub(delimiter, lambda match: "\0", text).split("\0")


@pytest.mark.parametrize("delimiter", DELIMITERS)
@given(st.text("aab \n\n.!?c", max_size=60), st.integers(3, 12))
def test_lines_stand_between_two_matches_of_the_delimiter(delimiter, text, max_length):
    lines, dropped = chunking.split_lines(text, lines_config(delimiter=delimiter, max_length=max_length))
    between = split_by_substitution(text, delimiter)
    assert lines == [line for line in between if 1 <= len(line) <= max_length - 2]
    assert dropped == {
        "empty": between.count(""),
        "too_long": sum(len(line) > max_length - 2 for line in between),
    }


def divide(text, config):
    """The lines of each part, and how many were dropped."""
    lines, dropped = chunking.split_lines(text, config)
    splits = chunking.assign_lines_to_splits(0, len(lines), len(lines), config)
    return [[line for line, split in zip(lines, splits, strict=True) if split == part] for part in range(3)], dropped


@given(st.integers(0, 60), st.floats(0.0, 0.49), st.floats(0.0, 0.49))
def test_every_line_goes_to_one_part_and_keeps_its_order_there(count, val, test):
    text = "".join(f"line {index}\n\n" for index in range(count))
    config = lines_config(val_fraction=val, test_fraction=test)
    parts, dropped = divide(text, config)
    numbers = [[int(line.removeprefix("line ")) for line in part] for part in parts]
    assert sorted(itertools.chain(*numbers)) == list(range(count))
    assert all(part == sorted(part) for part in numbers)
    assert [len(part) for part in numbers[1:]] == [math.floor(count * val), math.floor(count * test)]
    assert divide(text, config) == (parts, dropped)
    assert dropped == {"empty": count + 1, "too_long": 0}


def test_lines_that_are_sorted_are_in_every_part():
    lines = [f"{chr(97 + index // 50)}{index}" for index in range(1000)]  # fifty with each first letter
    parts, _ = divide("\n".join(lines), lines_config(val_fraction=0.2, test_fraction=0.2))
    assert [len({line[0] for line in part}) for part in parts] == [20, 20, 20]


# Windows and streams


def test_windows_of_a_text_as_long_as_a_known_one():
    """94,275 characters, in windows of 40 and a stride of 3, are 31,412 examples."""
    ids = np.random.default_rng(0).integers(0, 50, 94_275).astype(np.int32)
    config = DataConfig(layout="windows", seq_length=40, stride=3)
    records = Examples.from_lengths(ids, np.array([4096] * 23 + [67]))
    examples = make_training_examples(records, config)
    assert len(examples) == count_training_examples(94_275, len(records), config) == 31_412
    rows = examples.pad()
    assert rows.shape == (31_412, 41)
    for index in (0, 1, 2, 15_000, 31_411):
        assert rows[index].tolist() == ids[3 * index : 3 * index + 41].tolist()


@given(st.integers(1, 80), st.integers(2, 12), st.integers(1, 12))
def test_windows_are_cut_by_the_contract(size, seq_length, step):
    ids = np.arange(100, 100 + size, dtype=np.int32)
    expected, start = [], 0
    while start + seq_length < size:  # one character must follow
        expected.append([100 + start + offset for offset in range(seq_length + 1)])
        start += step
    config = DataConfig(layout="windows", seq_length=seq_length, stride=step)
    examples = make_training_examples(Examples.from_lengths(ids, np.array([size])), config)
    assert (examples.pad().tolist() if len(examples) else []) == expected
    assert count_training_examples(size, 1, config) == len(expected)


@given(st.integers(1, 80), st.integers(2, 12), st.integers(1, 5))
def test_windows_to_measure_a_loss_predict_each_character_once(size, seq_length, step):
    ids = np.arange(size, dtype=np.int32)
    config = DataConfig(layout="windows", seq_length=seq_length, stride=step)
    examples = make_evaluation_examples(Examples.from_lengths(ids, np.array([size])), config)
    assert (examples.starts + examples.lengths - 1).tolist() == list(range(seq_length, size))
    assert np.all(examples.lengths == seq_length + 1)


@given(st.integers(0, 80), st.integers(1, 30))
def test_pieces_of_a_stream_predict_each_character_once_and_in_order(size, piece):
    examples = cut_stream(np.arange(size, dtype=np.int32), piece)
    rows = [
        examples.ids[at : at + length].tolist() for at, length in zip(examples.starts, examples.lengths, strict=True)
    ]
    assert list(itertools.chain(*(row[1:] for row in rows))) == list(range(1, size))
    assert all(before[-1] == after[0] for before, after in itertools.pairwise(rows))
    assert all(len(row) == piece + 1 for row in rows[:-1])


@given(st.text("abcdefgh", min_size=1, max_size=60), st.integers(2, 12))
def test_a_text_to_evaluate_is_cut_as_in_training(text, seq_length):
    plain, special = Vocabulary.from_text("abcdefgh", ()), Vocabulary.from_text("abcdefgh", ("<PAD>", "<S>", "</S>"))

    def predicted(vocabulary, config):
        examples = chunking.encode_text(text, vocabulary, config, "text")
        return [row[:length] for row, length in zip(examples.pad().tolist(), examples.lengths, strict=True)]

    ids = plain.encode(text).tolist()
    windows = predicted(plain, DataConfig(layout="windows", seq_length=seq_length, stride=2))
    assert windows == [ids[at : at + seq_length + 1] for at in range(len(ids) - seq_length)]
    stream = predicted(plain, DataConfig(layout="stream", seq_length=seq_length))
    assert stream == ([ids] if len(ids) > 1 else [])
    lines = predicted(special, lines_config(delimiter="a"))
    assert lines == [[1, *special.encode(line).tolist(), 2] for line in text.split("a") if line]
