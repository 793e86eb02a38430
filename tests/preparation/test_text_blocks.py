"""A text prepared in blocks gives the same data folder, or the same error, as in one piece."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from large_texts import check_same, write_texts

from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking

LAYOUTS = [
    {"layout": "sequences", "seq_length": 5},
    {"layout": "sequences", "seq_length": 8, "overlap": 0.6},
    {"layout": "stream", "seq_length": 3},
    {"layout": "windows", "seq_length": 3},
    {"layout": "lines", "max_length": 9},
    {"layout": "lines", "max_length": 9, "delimiter": r"[.!?]\s*"},
    {"layout": "lines", "max_length": 9, "drop_chars": "\n"},
]


SETTINGS = [
    {},
    {"lowercase": True},
    {"drop_digits": True, "drop_chars": "a\r"},
    {"lowercase": True, "drop_chars": "b "},
]


# a sigma at a word's end has a lower case of its own, and what ends a word is told by what is around it
TEXT = st.lists(
    st.sampled_from(
        [
            "\n",
            "\r\n",
            "\r",
            " ",
            "AAΣ ",
            "AAΣAA",
            "AAΣ.",
            "AAΣ",
            "\ufeff",
            "AΣ'AA",
            "b",
            "é",
            "\U0001f600",
            "1",
            "٣",
            ". ",
            "!",
            "字",
            "x" * 9,
        ]
    )
).map("".join)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@given(
    st.lists(TEXT.filter(bool), min_size=1, max_size=3),
    st.sampled_from(SETTINGS),
    st.sampled_from(["utf-8", "utf-16", "utf-16-be", "gb18030", "utf-8-sig", "utf-7", "latin-1"]),
    st.integers(24, 60),
    st.integers(1, 3),
    st.booleans(),
)
@example(["a b\r", "\nΣ A"], {"lowercase": True}, "utf-8", 24, 1, True)
def test_blocks_do_not_show(tmp_path_factory, layout, parts, settings, encoding, block, num_shards, mark):
    folder = tmp_path_factory.mktemp("blocks")
    mark = "\ufeff" * (mark and encoding.startswith("utf"))
    paths = write_texts(folder, *((mark + part).encode(encoding, "ignore") for part in parts))
    layout = {**layout, "drop_chars": layout.get("drop_chars", "") + settings.get("drop_chars", "")}
    config = DataConfig(
        input=paths, encoding=encoding, val_fraction=0.3, test_fraction=0.1, num_shards=num_shards,
        **{**settings, **layout},
    )  # fmt: skip
    check_same(folder, config, block=block, jobs=1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "shift_jis"])
def test_processes_do_not_show(tmp_path, layout, encoding):
    text = "".join(f"Line {index}. It is\r\n{'o' * (index % 5)}! 12 {'A' * (index % 13)}\n" for index in range(60))
    config = DataConfig(
        input=write_texts(tmp_path, *[text.encode(encoding)] * 3), encoding=encoding, lowercase=True, num_shards=3,
        val_fraction=0.3, **layout,
    )  # fmt: skip
    check_same(tmp_path, config, block=100, jobs=2, piece=chunking.CHUNK_LENGTH)


@pytest.mark.parametrize(
    "data", [b"text\x89PNG" * 9, "é".encode() * 50 + b"\xc3", b"a b\n" * 50 + b"\xff", b"\xff" * 99]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "ascii", "utf-32"])
def test_the_first_byte_that_is_no_text_is_named(tmp_path, data, encoding):
    good = "abc\n".encode(encoding) * 9
    error = check_same(tmp_path, DataConfig(input=write_texts(tmp_path, good, good + data), encoding=encoding), jobs=1)
    if data.startswith(b"text") and encoding == "utf-16-le":
        assert "shorter than one example" in error, "it is as good a text as any"
        return
    assert re.search(f"^{tmp_path}/text1.txt: not {encoding} text: .* at byte \\d+; pass the right", error)


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (b"", {}),
        (b"123 ", {"drop_digits": True, "drop_chars": " "}),
        (b"\xef\xbb\xbf", {}),
        (b"\xef\xbb\xbf", {"encoding": "utf-8-sig"}),
        (b"\xff\xfe", {"encoding": "utf-16"}),
        (b"abc" * 9, {"seq_length": 99}),
        (b"abc" * 9, {"layout": "lines", "max_length": 4}),
        (b"abc" * 9, {"encoding": "no-such"}),
        (b"abc" * 9, {"encoding": "rot13"}),
        (b"abc" * 9, {"seq_length": 2, "overlap": 0.5}),
        (b"ab\\ud800", {"encoding": "unicode_escape"}),
    ],
)
def test_errors_are_the_same_and_leave_nothing(tmp_path, data, settings):
    error = check_same(tmp_path, DataConfig(input=write_texts(tmp_path, data), **settings), jobs=1)
    assert isinstance(error, str)
    assert not any((tmp_path / "pieces").glob("*"))


def test_a_missing_file_is_the_same_error(tmp_path):
    config = DataConfig(input=(*write_texts(tmp_path, b"abc" * 99), str(tmp_path / "none")))
    assert "No such file" in check_same(tmp_path, config)


@pytest.mark.parametrize("at", range(20, 30))
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_end_of_a_line_is_in_one_block(tmp_path, at, encoding):
    data = b"x" * at + b"\r\n" + b"y" * 50
    check_same(
        tmp_path, DataConfig(input=write_texts(tmp_path, data), encoding=encoding, seq_length=5), block=24, jobs=1
    )


def test_a_block_without_a_place_to_end_is_cut_between_characters(tmp_path):
    data = ("字" * 100 + "ΑΣ" * 40 + "," + "é\U0001f600" * 30).encode()
    for block in range(4, 20):
        config = DataConfig(input=write_texts(tmp_path, data), lowercase=False, seq_length=5)
        check_same(tmp_path / str(block), config, block=block, jobs=1)
