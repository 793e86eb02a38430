"""Files that older scripts wrote: what is right is read, and nothing else, and nothing is ever run."""

import collections
import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcharrnn.errors import UserError
from tfcharrnn.untrusted_files import read_npy, read_pickled_vocabulary

CHARACTERS = st.lists(st.characters(exclude_categories=["Cs"]), min_size=1, unique=True)
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def error_of(read, path):
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message and len(message) < 1000
    return message


def refuse_pickle(folder, data):
    path = folder / "vocab.pkl"
    path.write_bytes(data)
    return error_of(read_pickled_vocabulary, path)


def refuse_npy(folder, data):
    path = folder / "array.npy"
    path.write_bytes(data)
    return error_of(read_npy, path)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# vocabularies


@given(CHARACTERS, st.sampled_from(PROTOCOLS), st.booleans())
def test_pickled_vocabularies_are_read(tmp_path_factory, characters, protocol, special):
    path = tmp_path_factory.mktemp("pickle") / "vocab.pkl"
    symbols = [*(["<PAD>", "<S>", "</S>"] if special else []), *characters]
    path.write_bytes(pickle.dumps({symbol: index for index, symbol in enumerate(symbols)}, protocol))
    ids = read_pickled_vocabulary(path)
    assert list(ids.items()) == [(symbol, index) for index, symbol in enumerate(symbols)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_large_pickled_vocabularies_are_read_and_sorted_by_id(tmp_path, protocol):
    ids = {chr(0x4E00 + index): 69_999 - index for index in range(70_000) if not 0xD800 <= 0x4E00 + index < 0xE000}
    ids = {character: index for index, character in enumerate(reversed(ids))}
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(dict(reversed(ids.items())), protocol))
    read = read_pickled_vocabulary(tmp_path / "vocab.pkl")
    assert read == ids
    assert list(read.values()) == list(range(len(ids)))


@pytest.mark.parametrize(
    "data",
    [
        b"(dp0\nS'a'\np1\nI0\nsS'\\n'\np2\nI1\ns.",  # cPickle.dump(..., 0)
        b"}q\x01(U\x01aq\x02K\x00U\x01\nq\x03K\x01u.",  # protocol 1
        b"\x80\x02}q\x01(U\x01aq\x02K\x00U\x01\nq\x03K\x01u.",
        b"(dp0\nVa\np1\nL0L\nsV\\u000a\np2\nL1L\ns.",  # unicode keys, long values
        b"\x80\x02}(X\x01\x00\x00\x00a\x8a\x00T\x01\x00\x00\x00\n\x8a\x01\x01u.",
    ],
)
def test_what_python_2_pickled_is_read(tmp_path, data):
    (tmp_path / "vocab.pkl").write_bytes(data)
    assert read_pickled_vocabulary(tmp_path / "vocab.pkl") == {"a": 0, "\n": 1}


class Call:
    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_that_runs_a_command_runs_nothing(tmp_path, protocol):
    evil = pickle.dumps({"a": Call(os.system, f"touch {tmp_path / 'run'}")}, protocol)
    assert "GLOBAL" in refuse_pickle(tmp_path, evil)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "opcode"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "GLOBAL"),
        (b"(S'true'\nios\nsystem\n.", "INST"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "STACK_GLOBAL"),
        (b"(S'true'\no.", "OBJ"),
        (b"}(S'a'\nI0\nub.", "BUILD"),
        (b"\x80\x02}(X\x01\x00\x00\x00aK\x00u\x82\x01.", "EXT1"),
        (b"Pos.system\n.", "PERSID"),
        (b"}Q.", "BINPERSID"),
        (b"}R.", "REDUCE"),
        (b"})\x81.", "EMPTY_TUPLE"),
        (pickle.dumps([("a", 0)]), "EMPTY_LIST"),
        (pickle.dumps({"a": 0.0}), "BINFLOAT"),
        (pickle.dumps({"a": True}), "NEWTRUE"),
        (pickle.dumps({"a": None}), "NONE"),
        (pickle.dumps({b"a": 0}), "SHORT_BINBYTES"),
        (pickle.dumps({"a": bytearray(3)}, 5), "BYTEARRAY8"),
        (pickle.dumps({("a",): 0}), "TUPLE1"),
        (pickle.dumps({"a": np.int64(0)}), "GLOBAL"),
        (pickle.dumps(collections.OrderedDict(a=0)), "GLOBAL"),
        (pickle.dumps(collections.Counter("a")), "GLOBAL"),
    ],
)
def test_other_opcodes_are_refused_by_name(tmp_path, data, opcode):
    message = refuse_pickle(tmp_path, data)
    assert opcode in message
    assert "json.dump" in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "damaged"),
        (b".", "not a single dict"),
        (b"\xff\xff", "damaged"),
        (b"\x89PNG\r\n", "damaged"),
        (pickle.dumps({"a": 0})[:-1], "damaged"),
        (pickle.dumps({"a": 0}) + b"x", "data after its end"),
        (pickle.dumps({"a": 0}) * 2, "data after its end"),
        (pickle.dumps("a"), "not a single dict"),
        (pickle.dumps(7), "not a single dict"),
        (pickle.dumps({0: "a"}), "int to str instead of str to int"),
        (pickle.dumps({"a": "b"}), "str to str"),
        (pickle.dumps({"a": {}}), "str to dict"),
        (b"(dS'a'\nI01\ns.", "INT of b'01'"),
        (pickle.dumps({}), "its 0 ids"),
        (pickle.dumps({"a": 1}), "its 1 ids are not 0 to 0"),
        (pickle.dumps({"a": 0, "b": 0}), "its 2 ids are not"),
        (pickle.dumps({"a": 0, "b": -1}), "its 2 ids are not"),
        (pickle.dumps({"a": 0, "b": 10**18}), "its 2 ids are not"),
        (pickle.dumps({"a": 0, "b": 10**10_000}), "its 2 ids are not"),
        (b"(dS'a'\nL" + b"9" * 10_000 + b"L\ns.", "damaged"),
        (pickle.dumps({"ab": 0}), "'ab' is not a single character"),
        (pickle.dumps({"": 0}), "'' is not a single character"),
        (pickle.dumps({"a" * 10**6: 0}), "is not a single character"),
        (pickle.dumps({"\ud800": 0}), "ud800' is not a single character"),
        (b"}(U\x01aK\x00U\x01aK\x01u.", "'a' twice"),
        (b"}(U\x01\xe4K\x00u.", "bytes in an unknown encoding"),
        (b"}(U\x01au.", "a key without a value"),
        (b"}U\x01aK\x00u.", "SETITEMS without a mark"),
        (b"(U\x01aK\x00s.", "damaged"),
        (b"}s.", "damaged"),
        (b"s.", "SETITEM without a dict"),
        (b"d.", "DICT without a mark"),
        (b"q\x00.", "BINPUT without a value"),
        (b"(q\x00U\x01aK\x00d.", "BINPUT without a value"),
        (b"h\x00.", "BINGET of an unset memo entry"),
        (b"(dp-1\nS'a'\nI0\ns.", "PUT to the memo entry -1"),
        (b"}q\x00h\x00h\x00s.", "dict to dict"),
        (b"}(}}u.", "dict to dict"),
        (b"X\xff\xff\xff\xff.", "damaged"),
        (b"\x8d" + b"\xff" * 8 + b".", "damaged"),
        (b"\x8d" + (10**18).to_bytes(8, "little") + b"a.", "damaged"),
        (b"\x8b\xff\xff\xff\x7f.", "damaged"),
        (b"\x95" + b"\xff" * 8 + b"}.", "not a single dict|damaged|its 0 ids"),
        (b"X\x01\x00\x00\x00\xff.", "damaged"),
        (b"Ix\n.", "damaged"),
        (b"(dS'a'\nI010\ns.", "INT of b'010'"),
        (b"(dS'a'\nL0x1L\ns.", "damaged"),
        (b"p" + b"9" * 5000 + b"\n.", "damaged"),
        (b"(" * 10**6, "damaged"),
        (b"}" * 10**5 + b".", "not a single dict"),
        (b"V\\ud800\n.", "not a single dict|damaged"),
    ],
    ids=range(51),
)
def test_damaged_pickles_are_one_error(tmp_path, data, said):
    message = refuse_pickle(tmp_path, data)
    assert any(part in message for part in said.split("|")), message


def test_a_pickle_that_is_missing_too_large_or_a_pipe_is_one_error(tmp_path):
    assert "no such file" in error_of(read_pickled_vocabulary, tmp_path / "none.pkl")
    with open(tmp_path / "large.pkl", "wb") as file:
        file.truncate(2**40)
    assert "damaged" in error_of(read_pickled_vocabulary, tmp_path / "large.pkl")
    os.mkfifo(tmp_path / "pipe.pkl")
    assert "is not a regular file" in error_of(read_pickled_vocabulary, tmp_path / "pipe.pkl")


@given(st.binary(max_size=60))
def test_no_bytes_after_an_opcode_crash(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("pickle") / "vocab.pkl"
    path.write_bytes(b"\x80\x04" + data)
    try:
        ids = read_pickled_vocabulary(path)
    except UserError:
        return
    assert sorted(ids.values()) == list(range(len(ids)))


# arrays


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i8", "|i1", ">u2"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_real_numbers_are_read(tmp_path, dtype, shape, order):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape, order=order).astype(dtype, order=order)
    np.save(tmp_path / "array.npy", array)
    read = read_npy(tmp_path / "array.npy")
    assert np.array_equal(read, array)
    assert read.dtype == array.dtype.newbyteorder("=")
    assert read.dtype.isnative


def test_headers_of_other_writers_are_read(tmp_path):
    header = b"{'shape': (2L,), 'descr': '<f4','fortran_order':False}\n"
    data = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + np.float32([1, 2]).tobytes()
    (tmp_path / "array.npy").write_bytes(data)
    assert read_npy(tmp_path / "array.npy").tolist() == [1.0, 2.0]


def test_arrays_of_objects_are_refused_and_never_run(tmp_path):
    np.save(tmp_path / "array.npy", np.array([Call(os.system, f"touch {tmp_path / 'run'}")], object), allow_pickle=True)
    message = error_of(read_npy, tmp_path / "array.npy")
    assert "array of objects" in message
    assert "numpy.save(path, array.astype('float32'))" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    assert "not finite" in refuse_npy(tmp_path, npy(np.array([1.0, value])))


def with_header(header, data=b""):
    header = header.encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def shaped(shape, data=b"\0" * 8, descr="<f4"):
    return with_header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}", data)


GOOD = npy(np.float32([1, 2]))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no .npy signature"),
        (b"\x93NUMPY", "no .npy signature"),
        (pickle.dumps(np.ones(2)), "no .npy signature"),
        (GOOD[:-1], "needs a file of"),
        (GOOD + b"x", "needs a file of"),
        (GOOD[:40], "a truncated header"),
        (GOOD.replace(b"NUMPY\x01", b"NUMPY\x03"), "version 3.0"),
        (GOOD.replace(b"NUMPY\x01", b"NUMPY\x09"), "version 9.0"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "a header of 4294967295 bytes"),
        (shaped("(10000000000,)"), "needs a file of"),
        (shaped("(1000000000000000000,)"), "needs a file of"),
        (shaped("(1000000000, 1000000000, 1000000000)"), "needs a file of"),
        (shaped(f"({10**30},)"), "shape"),
        (shaped("(-2,)"), "an invalid header"),
        (shaped("(0, 1000000000000000000)"), "is empty"),
        (shaped("(0,)", b""), "is empty"),
        (shaped("(2)"), "an invalid shape"),
        (shaped("(,)"), "an invalid shape"),
        (shaped("2"), "an invalid header"),
        (shaped("(1, 1, 1, 1, 1, 1, 1, 1, 2)"), "too many dimensions"),
        (shaped("(" * 5000 + ")" * 5000), "an invalid header"),
        (shaped("(__import__('os').system('true'),)"), "an invalid header"),
        (shaped("(2,)", descr="O"), "array of objects"),
        (shaped("(2,)", descr="|O"), "array of objects"),
        (shaped("(2,)", descr="|V4"), "array of objects"),
        (shaped("(2,)", descr="<c8"), "holds '<c8', not real numbers"),
        (shaped("(2,)", descr="<U1"), "holds '<U1', not real numbers"),
        (shaped("(2,)", descr="<M8[ns]"), "not real numbers"),
        (shaped("(2,)", descr="<f16"), "not real numbers"),
        (shaped("(2,)", descr="nonsense"), "not real numbers"),
        (shaped("(8,)", descr="|b1"), "not real numbers"),
        (npy(np.zeros(2, [("a", "<f4")])), "array of objects"),
        (with_header("{'descr': '<f4', 'fortran_order': False}", b"\0" * 8), "an invalid header"),
        (
            with_header("{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (2,)}", b"\0" * 8),
            "an invalid header",
        ),
        (with_header("['descr']"), "an invalid header"),
        (with_header(""), "an invalid header"),
        (with_header("{"), "an invalid header"),
    ],
    ids=range(37),
)
def test_damaged_arrays_are_one_error(tmp_path, data, said):
    assert said in refuse_npy(tmp_path, data)


def test_an_array_that_is_missing_a_folder_or_a_pipe_is_one_error(tmp_path):
    assert "no such file" in error_of(read_npy, tmp_path / "none.npy")
    assert "cannot be read" in error_of(read_npy, tmp_path)
    os.mkfifo(tmp_path / "pipe.npy")
    assert "is not a regular file" in error_of(read_npy, tmp_path / "pipe.npy")
