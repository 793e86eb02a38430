"""With --encoding=bytes, a data folder holds exactly the bytes of the input."""

import gzip
import json
import zipfile

import pytest
from folders import contents
from hypothesis import given
from hypothesis import strategies as st
from large_texts import check_same, in_blocks, write_texts

from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.dataset import open_data
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.preparation import corpora
from tfcharrnn.preparation.corpora import Download
from tfcharrnn.preparation.data_folder import prepare_data

ALL = bytes(range(256))
# what a text loses or changes: byte-order marks, Windows line ends, bytes that are not UTF-8
PIECES = [b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\r", b"\n", b"A1 ", "字Σ".encode(), b"\xff", b"\0", b"x" * 9]
BINARY = st.binary(min_size=9, max_size=200) | st.lists(st.sampled_from(PIECES), min_size=9).map(b"".join)
LAYOUTS = [
    {"layout": "stream", "seq_length": 3},
    {"layout": "windows", "seq_length": 3},
    {"layout": "sequences", "seq_length": 5},
    {"layout": "lines", "max_length": 300},
    {"layout": "lines", "max_length": 300, "delimiter": r"[\s1]|\xff"},
]


def read_bytes(data):
    """The bytes of the training records, one after another, and of each."""
    records = data.read("train")
    ends = [int(start + length) for start, length in zip(records.starts, records.lengths, strict=True)]
    parts = [
        data.vocabulary.decode(records.ids[start:end]).encode("latin-1")
        for start, end in zip(records.starts, ends, strict=True)
    ]
    return b"".join(parts), parts


def prepare(folder, data, **settings):
    settings = {"layout": "stream", "seq_length": 3, "val_fraction": 0.0, "encoding": "bytes", **settings}
    (path,) = write_texts(folder, data)
    return prepare_data(DataConfig(input=(path,), **settings), folder / "data")


@pytest.mark.parametrize("layout", ["stream", "windows", "sequences"])
@given(BINARY)
def test_what_is_read_back_is_what_was_in_the_file(tmp_path_factory, layout, binary):
    data = prepare(tmp_path_factory.mktemp("bytes"), binary, layout=layout)
    found, _ = read_bytes(data)
    if layout == "sequences":  # an incomplete last one is dropped
        assert found == binary[: len(binary) // 2 * 2]
    else:
        assert found == binary
    assert [ord(symbol) for symbol in data.vocabulary.symbols[data.vocabulary.num_special :]] == sorted(set(binary))


def test_all_bytes_are_symbols_in_their_order(tmp_path):
    data = prepare(tmp_path, ALL)
    assert json.loads((data.path / "vocab.json").read_text())["symbols"] == [chr(byte) for byte in ALL]
    assert data.read("train").ids.tolist() == list(ALL)
    assert data.config.encoding == "bytes" and data.vocabulary.of_bytes
    assert data.characters == 256


@pytest.mark.parametrize("compressed", [False, True])
def test_lines_end_at_newlines_alone(tmp_path, compressed):
    lines = [b"one\r", "zwölf\u2028\x85".encode(), b"\xff\xfe\0", b"\x1c\x0b"]
    text = b"\n".join(lines)
    (path,) = write_texts(tmp_path, gzip.compress(text) if compressed else text)
    config = DataConfig(input=(path,), layout="lines", val_fraction=0.0, encoding="bytes")
    assert read_bytes(prepare_data(config, tmp_path / "data"))[1] == lines


def test_a_delimiter_matches_bytes_and_its_classes_ascii(tmp_path):
    text = "à la — carte".encode()  # à ends in 0xa0, which is a space in Latin-1
    data = prepare(tmp_path, text, layout="lines", delimiter=r"\s+(\xe2\x80\x94)?", seq_length=200)
    assert read_bytes(data)[1] == ["à".encode(), b"la", b"carte"]


def test_normalisation_is_of_ascii(tmp_path):
    text = "AÉ1٣²\r\n".encode() + b"\xc0Z"
    settings = {"lowercase": True, "drop_digits": True, "drop_chars": "\r"}
    assert read_bytes(prepare(tmp_path, text, **settings))[0] == "aÉ٣²\n".encode() + b"\xc0z"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_chars": "aé"}, "--drop_chars='aé': --encoding=bytes takes only ASCII characters here"),
        ({"delimiter": "—", "layout": "lines"}, "--delimiter='—': --encoding=bytes takes only ASCII characters here"),
        ({"delimiter": "[", "layout": "lines"}, "--delimiter='[': not a regular expression"),
    ],
)
def test_what_stands_for_several_bytes_is_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        DataConfig(encoding="bytes", **settings)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_files_are_joined_by_a_newline_byte(tmp_path):
    paths = write_texts(tmp_path, b"\xef\xbb\xbfa\r", b"\xffb")
    corpus = corpora.load(DataConfig(input=paths, encoding="bytes"))
    assert corpus.text.encode("latin-1") == b"\xef\xbb\xbfa\r\n\xffb"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@given(
    st.lists(BINARY, min_size=1, max_size=3),
    st.sampled_from([{}, {"lowercase": True}, {"drop_digits": True, "drop_chars": "x\r"}]),
    st.integers(24, 60),
)
def test_blocks_do_not_show(tmp_path_factory, layout, parts, settings, block):
    folder = tmp_path_factory.mktemp("blocks")
    config = DataConfig(
        input=write_texts(folder, *parts), encoding="bytes", val_fraction=0.3, test_fraction=0.1, num_shards=2,
        **settings, **layout,
    )  # fmt: skip
    check_same(folder, config, block=block, jobs=1)


def test_a_large_text_is_read_as_it_is(tmp_path):
    binary = (b"\xef\xbb\xbf" + ALL + b"\r\n\xff ") * 9
    with in_blocks(100):
        data = prepare(tmp_path, gzip.compress(binary), num_shards=3)
        assert read_bytes(data)[0] == binary


# corpora


@pytest.mark.parametrize("member", ["", "enwik8"])
def test_a_downloaded_corpus_is_read_as_bytes(tmp_path, monkeypatch, member):
    text = "\ufeffGröße\r\n字".encode()
    path = tmp_path / "corpus"
    path.write_bytes(text)
    if member:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, text)
    monkeypatch.setitem(corpora.DOWNLOADS, "local", Download("http://localhost", "", member))
    monkeypatch.setattr(corpora, "_fetch", lambda name, download: path)
    assert corpora.load(DataConfig(corpus="local", encoding="bytes")).text.encode("latin-1") == text
    assert corpora.load(DataConfig(corpus="local")).text == "Größe\n字"
    settings = {"corpus": "local", "layout": "stream", "seq_length": 3, "val_fraction": 0.0, "encoding": "bytes"}
    whole = prepare_data(DataConfig(**settings), tmp_path / "whole")
    assert read_bytes(whole)[0] == text
    with in_blocks(24, piece=chunking.CHUNK_LENGTH):
        assert contents(prepare_data(DataConfig(**settings), tmp_path / "blocks").path) == contents(whole.path)


def test_embedded_corpora_have_the_same_symbols(tmp_path):
    for encoding in ("utf-8", "bytes"):
        config = DataConfig(corpus="unicode-names", encoding=encoding, seq_length=100)
        prepare_data(config, tmp_path / encoding)
    text, data = open_data(tmp_path / "utf-8"), open_data(tmp_path / "bytes")
    assert data.vocabulary.symbols == text.vocabulary.symbols
    assert data.fingerprint != text.fingerprint
    with pytest.raises(UserError, match=r"--encoding=utf-8, but the model's symbols are bytes; .* --encoding$"):
        text.with_vocabulary(data.vocabulary)


# other encodings


@pytest.mark.parametrize(
    ("settings", "fingerprint"),
    [
        ({}, "9f94132d7fe4420cb9d7f65b000fdad9f3a6a4d7b2b911ea690262ac4a7f3b1e"),
        ({"encoding": "utf-16"}, "a427d1d03ec2188894148d301fccb20850100e1de6f4ed26269a30b68979ccfd"),
        (
            {"lowercase": True, "drop_digits": True, "drop_chars": "—"},
            "4e9a2a52bc6cff4b8d914c18e0a87138191c8af0589628221f801a285c55c73a",
        ),
        (
            {"encoding": "latin-1", "layout": "lines"},
            "1790eb570994f5cf602eea436f6bac2a50e56788b195818915ffe590c5b8582a",
        ),
    ],
)
def test_fingerprints_of_text_are_those_of_earlier_versions(tmp_path, settings, fingerprint):
    settings = {"seq_length": 21, **settings} if "layout" not in settings else settings
    text = "Größe 1\r\n— 日本 2\n" * 40
    paths = write_texts(tmp_path, text.encode(settings.get("encoding", "utf-8"), "ignore"))
    assert prepare_data(DataConfig(input=paths, **settings), tmp_path / "data").fingerprint == fingerprint
