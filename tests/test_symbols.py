"""Text to symbols and back, for characters and for bytes."""

import itertools
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.symbols import (
    TextDecoder,
    choose_codec,
    group_characters,
    quote_symbols,
    symbols_to_bytes,
    symbols_to_text,
    text_to_symbols,
)

# valid characters of one to four bytes, and what is not valid: lone and overlong bytes, surrogates, beyond U+10FFFF
PIECES = [*(character.encode() for character in "a\r\né字🙂\ufffd\ufeff"), b"\xff", b"\x80", b"\xe2\x86", b"\xc0\xaf"]
BYTES = st.binary(max_size=20) | st.lists(st.sampled_from([*PIECES, b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])).map(
    b"".join
)


@given(BYTES)
@example(bytes(range(256)))
def test_every_byte_is_a_symbol_and_none_is_lost(data):
    symbols = data.decode(choose_codec("bytes"))
    assert [ord(symbol) for symbol in symbols] == list(data)
    assert symbols_to_bytes(symbols, True) == data
    assert symbols_to_text(symbols, True) == data.decode("utf-8", "backslashreplace")
    exact = symbols_to_text(symbols, True, "surrogateescape")
    assert text_to_symbols(exact, True) == symbols
    characters, sizes = group_characters(symbols, True)
    assert characters == exact and sum(sizes) == len(data)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_becomes_its_utf8_bytes_or_stays_as_it_is(text):
    assert symbols_to_bytes(text_to_symbols(text, True), True) == text.encode()
    assert symbols_to_text(text_to_symbols(text, True), True) == text
    assert text_to_symbols(text, False) == symbols_to_text(text, False) == TextDecoder(False).decode(text) == text
    assert symbols_to_bytes(text, False) == text.encode()
    assert group_characters(text, False) == (text, [1] * len(text))
    assert choose_codec("utf-16") == "utf-16"


@given(BYTES, st.lists(st.integers(0, 20)))
def test_pieces_are_decoded_as_the_whole(data, cuts):
    symbols, decoder = data.decode("latin-1"), TextDecoder(True)
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [decoder.decode(symbols[start:end]) for start, end in itertools.pairwise(bounds)]
    assert "".join([*pieces, decoder.decode("", is_last=True)]) == data.decode("utf-8", "backslashreplace")


def test_a_character_cut_in_two_waits_for_its_end():
    decoder = TextDecoder(True)
    assert [decoder.decode(byte) for byte in text_to_symbols("a字", True)] == ["a", "", "", "字"]
    assert (decoder.decode("\xe5\xad"), decoder.decode("", is_last=True)) == ("", r"\xe5\xad")


def test_bytes_of_a_command_line_are_themselves_and_other_surrogates_are_refused():
    assert text_to_symbols("a\udcff\udcc3", True) == "a\xff\xc3"
    with pytest.raises(UserError, match=r"^--prime: the lone surrogate '\\ud800' is not valid text$"):
        text_to_symbols("a\ud800", True, "--prime")


def test_symbols_are_quoted_as_text_if_they_are_text():
    assert quote_symbols(text_to_symbols("é\n", True), True) == r"'é\n'"
    assert quote_symbols("a\xff", True) == r"b'a\xff'"
    assert quote_symbols("a\xff", False) == "'aÿ'"


# the vocabulary


def test_a_vocabulary_of_bytes_names_bytes():
    vocabulary = Vocabulary(["<S>", *"ab\xc3"], of_bytes=True)
    with pytest.raises(UserError, match=r"does not have 'z', b'\\xa9'; it has b'ab\\xc3'$"):
        vocabulary.encode(text_to_symbols("éz", True))
    assert Vocabulary([chr(byte) for byte in range(256)], of_bytes=True).describe().startswith("256 bytes, ")
    with pytest.raises(UserError, match="is not a byte"):
        Vocabulary("ab\u0100", of_bytes=True)


def test_bytes_are_no_characters(tmp_path):
    vocabulary = Vocabulary("ab\xc3", of_bytes=True)
    vocabulary.save(tmp_path / "vocab.json")
    assert Vocabulary.load(tmp_path / "vocab.json", of_bytes=True) == vocabulary
    assert Vocabulary.load(tmp_path / "vocab.json") != vocabulary
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
