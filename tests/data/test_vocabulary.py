import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError

# any Unicode text: astral, combining, NUL and control characters, but no surrogates, which are no characters
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT)
def test_ids_of_a_text_are_positions_among_its_sorted_characters(text):
    vocabulary = Vocabulary.from_text(text)
    characters = sorted(set(text))
    assert list(vocabulary.symbols) == ["<S>", *characters]
    assert vocabulary.encode(text).tolist() == [1 + characters.index(character) for character in text]


@given(TEXT)
def test_decode_is_the_inverse_of_encode(text):
    vocabulary = Vocabulary.from_text(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(TEXT)
def test_saved_vocabulary_is_loaded_the_same(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.json"
    vocabulary = Vocabulary.from_text(text)
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert json.loads(path.read_text()) == {"format": 1, "symbols": ["<S>", *sorted(set(text))]}


def test_every_character_of_unicode_round_trips(tmp_path):
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    vocabulary = Vocabulary.from_text(text)
    assert len(vocabulary) == 1 + len(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    vocabulary.save(tmp_path / "vocab.json")
    assert Vocabulary.load(tmp_path / "vocab.json") == vocabulary


def test_long_texts_are_read_to_their_end():
    text = "ab" * 100_000 + "é\U0001f600"
    vocabulary = Vocabulary.from_text(text)
    assert vocabulary.symbols == ("<S>", "a", "b", "é", "\U0001f600")
    assert vocabulary.encode(text).tolist() == [1, 2] * 100_000 + [3, 4]


def test_special_symbols_come_first_and_are_no_text():
    vocabulary = Vocabulary.from_text("ab", ["<PAD>", "<S>", "</S>"])
    assert vocabulary.symbols == ("<PAD>", "<S>", "</S>", "a", "b")
    assert (vocabulary.num_special, vocabulary.start_id) == (3, 1)
    assert vocabulary.decode([1, 3, 4, 3, 2, 0, 0]) == "aba"


def test_empty_texts_have_no_ids_and_no_vocabulary():
    vocabulary = Vocabulary.from_text("a")
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.encode("").dtype == np.int32
    assert vocabulary.decode([]) == ""
    with pytest.raises(UserError, match="no characters"):
        Vocabulary.from_text("")


def test_equal_symbols_make_equal_vocabularies():
    assert Vocabulary.from_text("ab") == Vocabulary(["<S>", "a", "b"])
    assert hash(Vocabulary.from_text("ab")) == hash(Vocabulary(["<S>", "a", "b"]))
    assert Vocabulary.from_text("ab") != Vocabulary.from_text("abc")
    assert Vocabulary.from_text("ab") != ("<S>", "a", "b")


def test_encoding_an_unknown_character_names_it_and_what_is_known():
    with pytest.raises(UserError, match=r"^--prime: the model's vocabulary does not have 'X', 'é'; it has 'abc'$"):
        Vocabulary.from_text("abc").encode("aéXb", "--prime")


def test_encoding_many_unknown_characters_names_ten():
    with pytest.raises(UserError) as caught:
        Vocabulary.from_text("".join(map(chr, range(500, 600)))).encode("ABCDEFGHIJKLM" * 10_000)
    assert "'A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', 'I', 'J' and 3 more; it has 100 characters" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_lone_surrogates_are_refused():
    with pytest.raises(UserError, match="ud800"):
        Vocabulary.from_text("a\ud800")
    with pytest.raises(UserError, match="ud800"):
        Vocabulary.from_text("a").encode("\ud800")


@pytest.mark.parametrize("ids", [[3], [-1], [0, 1, 2**40]])
def test_decoding_an_id_outside_is_refused(ids):
    with pytest.raises(UserError, match="ids must be between 0 and 2"):
        Vocabulary.from_text("ab").decode(ids)


def test_start_id_of_a_vocabulary_without_start_is_one_error():
    with pytest.raises(UserError, match="it has no <S>"):
        _ = Vocabulary(["a", "b"]).start_id


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ([], "no characters"),
        (["<S>"], "no characters"),
        (["<S>", "<S>", "a"], "duplicate special symbol"),
        (["<S>", "a", "a"], "'a' after 'a'"),
        (["<S>", "b", "a"], "'a' after 'b'"),
        (["a", "<S>"], "'<S>' is neither a character"),
        (["<S>", "ab"], "'ab' is neither a character"),
        (["<S>", ""], "'' is neither a character"),
        (["<S>", "\ud800"], "is neither a character"),
        ([1, 2], "not a list of strings"),
        ("abc", "not a list of strings"),
        ({"a": 1}, "not a list of strings"),
        (None, "not a list of strings"),
        (10**18, "not a list of strings"),
    ],
)
def test_damaged_symbols_are_one_error_that_names_the_file(tmp_path, symbols, message):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"format": 1, "symbols": symbols}))
    with pytest.raises(UserError, match=message) as caught:
        Vocabulary.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("value", [[], 1, None, {}, {"format": 2, "symbols": ["a"]}, {"symbols": ["a"]}, {"format": 1}])
def test_file_that_is_no_vocabulary_is_one_error(tmp_path, value):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"vocab\.json: "):
        Vocabulary.load(path)


@given(st.integers(0, 10**6))
def test_vocabulary_file_cut_short_is_one_error(tmp_path_factory, size):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.json"
    Vocabulary.from_text("abcé").save(path)
    data = path.read_bytes()
    path.write_bytes(data[: size % (len(data) - 1)])  # without its last newline it would still be whole
    with pytest.raises(UserError, match="damaged"):
        Vocabulary.load(path)
