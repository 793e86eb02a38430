"""How texts are divided, and cut into records and examples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcharrnn import cutting
from tfcharrnn.config import DataConfig
from tfcharrnn.errors import ConfigError
from tfcharrnn.vocabulary import Vocabulary


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
            cutting.cut_sequences(np.array(text, np.int32), seq_length, overlap, 0)
        return
    expected = cut_by_hand(text, seq_length, step)
    sequences = cutting.cut_sequences(np.array(text, np.int32), seq_length, overlap, 0)
    assert sequences.tolist() == expected
    assert sequences.shape == (len(expected), seq_length)
    assert sequences.dtype == np.int32
    assert cutting.num_sequences(len(text), seq_length, overlap) == len(expected)


@given(st.integers(0, 2000))
def test_sequences_without_overlap_number_characters_by_199(characters):
    sequences = cutting.cut_sequences(np.ones(characters, np.int32), 200, 0.0, 0)
    assert len(sequences) == characters // 199


@pytest.mark.parametrize(
    ("seq_length", "overlap", "step"),
    [(200, 0.0, 199), (101, 0.07, 93), (101, 0.29, 71), (4, 0.5, 1), (201, 0.5, 100), (11, 1e-5, 9), (101, 0.99, 1)],
)
def test_stride_takes_the_overlap_as_the_decimal_it_is_written(seq_length, overlap, step):
    assert cutting.stride(seq_length, overlap) == step
    assert cutting.stride(seq_length, np.float64(overlap)) == step


@given(st.text("abcdef", max_size=60), st.integers(2, 20))
def test_a_text_cut_for_evaluation_covers_each_character_once(text, seq_length):
    vocabulary = Vocabulary.from_text("abcdef")
    examples = cutting.of_text(text, vocabulary, DataConfig(seq_length=seq_length), "text")
    assert len(examples) == math.ceil(len(text) / (seq_length - 1))
    rows = examples.gather(np.arange(len(examples)), seq_length)
    assert np.all(rows[:, 0] == 0)
    pairs = list(zip(rows.tolist(), examples.lengths, strict=True))
    assert "".join(vocabulary.decode(row[1:length]) for row, length in pairs) == text
    assert [length for _, length in pairs[:-1]] == [seq_length] * (len(pairs) - 1)
    assert all(row[length:] == [0] * (seq_length - length) for row, length in pairs)
