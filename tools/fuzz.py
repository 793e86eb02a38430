"""Damages every file that is read back, in every way it can think of, and checks what the readers say of it.

python tools/fuzz.py --reader=all --count=10000

Each damaged file must give a `UserError` in one line that names the file, or correct data; what is correct is said at
each reader below. A reader has a bound on its memory and its time. A case is made from the seed, the reader's name and
the case's number alone. Exits with 1 at the first failure, which it names, and keeps the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from tfcharrnn import cli, files
from tfcharrnn import config as config_lib
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.data import dataset
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.vocabulary import Vocabulary, is_symbol
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.preparation import corpora
from tfcharrnn.runs import run_folder as run_lib
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.serving import untrusted_files

_FLAGS = flags.FLAGS
# beyond what an undamaged file takes
_MEMORY = 2**29
_SECONDS = 20
Files = dict[str, bytes]


# Damage to any file


_SIZES = (0, 1, 2, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 10**12, 10**18, 2**63 - 1, 2**63, 2**64 - 1)


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """Does something to some bytes of a file, once or a few times."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + int(2 ** rng.uniform(0, 9)))
        kind = rng.randrange(11)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:at] + rng.randbytes(end - at) + data[at:]
        elif kind == 3:
            data = data[:end] + data[at:end] * rng.choice((1, 2, 50)) + data[end:]
        elif kind == 4:
            data = data[:at] + rng.randbytes(end - at) + data[end:]
        elif kind == 5:
            data = data[:at] + rng.choice((b"\0", b"\xff", b"\x80", b"0", b"[", b'"')) * (end - at) + data[end:]
        elif kind == 6:
            form = rng.choice(("<Q", ">Q", "<I", ">I", "<H"))
            number = struct.pack(form, rng.choice(_SIZES) % 2 ** (8 * struct.calcsize(form)))
            data = data[:at] + number + data[at + len(number) :]
        elif kind == 7:
            other = rng.randrange(len(data) + 1)
            data = data[:other] + data[at:end] + data[other:]
        elif kind == 8 and rng.random() < 0.2:
            data = rng.choice((b"", rng.randbytes(100), b"\0" * 1000, data[::-1], data * 2))
        else:
            for _ in range(rng.choice((1, 1, 2, 8))):
                if data:
                    at = rng.randrange(len(data))
                    data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data


class _Raw:
    """A piece of JSON that `json.dumps` would not write."""

    def __init__(self, text: str):
        self.text = text


def _junk(rng: random.Random) -> Any:
    """A value that does not belong where it is put."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice((0, -1, 1, 2, 65, 2**31, 2**63, 10**12, 10**18, 10**30, 0.5, -0.0, 1e300, 5e-324))
    if kind == 1:
        return _Raw(rng.choice(("1e400", "-1e400", "NaN", "Infinity", "1" * 400, "9" * 4300, "1" * 5000, "01", "'x'")))
    if kind == 2:
        depth = rng.choice((3, 50, 500, 900, 1000, 3000, 10_000, 100_000))
        opening, inside, closing = rng.choice((("[", "", "]"), ('{"a":', "1", "}"), ("[1,", "2", "]")))
        return _Raw(opening * depth + inside + closing * depth)
    if kind == 3:
        return rng.choice((None, True, False, [], {}, [[]], [None], [0] * 10_000, {"a": {"b": [1]}}, {"": 0}))
    texts = ("", "a", "\0", "a\0b", "\ud800", "\udcff", "<S>", "</S>", "é", "\U0001f600", "a\nb\x1b[2J", "nan", "1e400")
    tricks = (
        "..",
        ".",
        "/",
        "../x",
        "../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "C:\\x",
        "~",
        "x" * 300,
        "a" * 10**5,
    )
    return rng.choice((*texts, *tricks, "(a+)+$", "(" * 5000, "[", "x{99999999}", "\\1"))


def damage_json(rng: random.Random, data: bytes) -> bytes:
    """Changes some values and names of a JSON file."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        _collect(value, places)
        if not places:
            break
        # first where, then what, or the many symbols of a vocabulary would get all the damage
        parent, key = rng.choice([place for place in places if isinstance(place[0], dict)] or places)
        if isinstance(parent[key], list) and parent[key] and rng.random() < 0.6:
            parent, key = parent[key], rng.randrange(len(parent[key]))
        old = parent[key]
        kind = rng.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            name = _junk(rng)
            parent[name if isinstance(name, str) else f"{key}2"] = parent.pop(key)
        elif kind == 2 and isinstance(parent, dict):
            parent[key] = _Raw(f"{_text(old)}, {_text(key)}: {_text(_junk(rng))}")  # the name a second time
        elif kind == 2:
            parent.insert(rng.randrange(len(parent) + 1), old)
        elif kind == 3 and type(old) in (int, float):
            parent[key] = rng.choice((old + 1, old - 1, -old, old * 2, old * 10, float(old), str(old), bool(old)))
        elif kind == 4 and isinstance(old, list) and old:
            parent[key] = rng.choice((old[::-1], old * 2, old[:-1], [*old, _junk(rng)], old[0], [old]))
        elif kind == 5:
            other_parent, other = rng.choice(places)
            if not isinstance(parent[key], dict) and not isinstance(other_parent[other], dict):
                parent[key], other_parent[other] = other_parent[other], parent[key]
        else:
            parent[key] = _junk(rng)
    return _text(_junk(rng) if rng.random() < 0.02 else value).encode()


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    """Every place in a value, as what it is in and under which name."""
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        places.append((value, key))
        if isinstance(inner, (dict, list)):
            _collect(inner, places)


def _text(value: Any) -> str:
    """JSON, with pieces that are none."""
    raw: list[str] = []

    def default(piece: _Raw) -> str:
        raw.append(piece.text)
        return f"@{len(raw) - 1}@"

    return re.sub(r'"@(\d+)@"', lambda found: raw[int(found[1])], json.dumps(value, default=default))


def _either(
    rng: random.Random, data: bytes, share: float, structured: Callable[[random.Random, bytes], bytes]
) -> bytes:
    """Damages some bytes, or what they mean, or both."""
    if rng.random() < share:
        data = structured(rng, data)
        if rng.random() < 0.9:
            return data
    return damage_bytes(rng, data)


def _damaged_json(rng: random.Random, originals: Files, name: str) -> Files:
    return {name: _either(rng, originals[name], 0.6, damage_json)}


# The readers


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader, and how it is tried.

    Attributes:
        make: fills a folder with files that are whole.
        damage: the files to put in place of some of them.
        read: reads the folder.
        check: raises AssertionError where what was read, with these files, is not correct; the last argument is what
            was read of the whole ones.
    """

    make: Callable[[Path], None]
    damage: Callable[[random.Random, Files], Files]
    read: Callable[[Path], Any]
    check: Callable[[Any, Files, Any], None]


READERS: dict[str, Reader] = {}
_SYMBOLS = ("<S>", *"\t\n !,.0123456789abcdefghij", "é", "\u0301", "\u4e2d", "\U0001f600")


def _make_vocabulary(folder: Path) -> None:
    Vocabulary(_SYMBOLS).save(folder / "vocab.json")


def _check_vocabulary(vocabulary: Vocabulary, damaged: Files, whole: Any) -> None:
    """Correct: the symbols that stand in the file, once each, in their order; they encode and decode."""
    symbols = vocabulary.symbols
    if "vocab.json" in damaged:
        assert list(symbols) == json.loads(damaged["vocab.json"])["symbols"]
    characters = symbols[vocabulary.num_special :]
    assert len(set(symbols)) == len(symbols) and list(characters) == sorted(characters)
    assert all(is_symbol(symbol) for symbol in symbols) and all(len(character) == 1 for character in characters)
    text = "".join(characters)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode(text).tolist() == list(range(vocabulary.num_special, len(symbols)))


READERS["vocab.json"] = Reader(
    _make_vocabulary,
    lambda rng, originals: _damaged_json(rng, originals, "vocab.json"),
    lambda folder: Vocabulary.load(folder / "vocab.json"),
    _check_vocabulary,
)


_DATA_SETTINGS: dict[str, Any] = {"sequences": {"seq_length": 21, "overlap": 0.5}, "lines": {}}


def _make_data(layout: str, folder: Path) -> None:
    config = DataConfig(layout=layout, val_fraction=0.2, drop_chars="x", **_DATA_SETTINGS[layout])
    text = "the cat sat on the mat\n\n0123456789\né\u0301\u4e2d\U0001f600!\n" * 9
    corpus = corpora.Corpus("text", text, (corpora.Source("text", len(text), "0" * 64),))
    dataset.prepare_data(config, folder, overwrite=True, corpus=corpus)


def _make_lines(folder: Path) -> None:
    _make_data("lines", folder)


def _damage_data(rng: random.Random, originals: Files) -> Files:
    return _damaged_json(rng, originals, "dataset.json" if rng.random() < 0.9 else "vocab.json")


def _check_data(data: DataFolder, damaged: Files, whole: DataFolder) -> None:
    """Correct: settings within their bounds, counts that can be, and files of the folder itself; says what it has."""
    assert config_lib.from_dict(DataConfig, config_lib.to_dict(data.config), "x") == data.config
    for name, split in data.splits.items():
        assert 0 <= split.records <= split.characters < 10**13
        assert all(re.fullmatch(rf"{name}-\d{{5}}-of-\d{{5}}\.tfrecord", shard) for shard in split.shards)
    assert all(isinstance(kind, str) and 0 <= count < 10**13 for kind, count in data.dropped.items())
    assert re.fullmatch(r"[0-9a-f]{64}", data.fingerprint) and isinstance(data.name, str)
    assert data.describe() and data.characters >= 0
    _check_vocabulary(data.vocabulary, damaged, None)


READERS["dataset.json"] = Reader(_make_lines, _damage_data, dataset.open_data, _check_data)


def _make_run(folder: Path) -> None:
    training = TrainingConfig(optimizer="sgd", schedule="cosine", smoothing_start="uniform", steps=10)
    model = ModelConfig(cell="gru", hidden_size=4, embedding_size=3)
    data = DataConfig(input=("text.txt",), seq_length=9, drop_chars="\0", delimiter=r"\n")
    Run(folder, data, "data", "0" * 64, model, training, Vocabulary(_SYMBOLS)).save()


def _damage_run(rng: random.Random, originals: Files) -> Files:
    return _damaged_json(rng, originals, "config.json" if rng.random() < 0.9 else "vocab.json")


def _check_run(run: Run, damaged: Files, whole: Run) -> None:
    """Correct: settings within their bounds, which are the same when they are written and read again."""
    for config in (run.data, run.model, run.training):
        assert config_lib.from_dict(type(config), config_lib.to_dict(config), "x") == config
    again = run.path / "again"
    again.mkdir(exist_ok=True)
    dataclasses.replace(run, path=again).save()
    assert dataclasses.replace(run_lib.load(again), path=run.path) == run
    _check_vocabulary(run.vocabulary, damaged, None)


READERS["config.json"] = Reader(_make_run, _damage_run, run_lib.load, _check_run)


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def masked_crc(data: bytes) -> bytes:
    """The checksum of TFRecord and checkpoint files: CRC-32C, masked."""
    crc, table = 0xFFFFFFFF, _crc_table()
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _damage_record(rng: random.Random, data: bytes) -> bytes:
    """Changes one record, or its size, and makes the checksums right again."""
    records, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        records.append((size, data[at + 12 : at + 12 + size]))
        at += size + 16
    which = rng.randrange(len(records))
    size, record = records[which]
    kind = rng.randrange(5)
    if kind == 0:
        records[which] = (rng.choice((*_SIZES, size + 1, size - 1)), record)
    elif kind == 1:
        records.insert(which, records[rng.randrange(len(records))])
    elif kind == 2:
        del records[which]
    else:
        # the ids are the end; or anything
        record = record[:-3] + damage_bytes(rng, record[-3:]) if kind == 3 else damage_bytes(rng, record)
        records[which] = (len(record), record)
    framed = []
    for size, record in records:
        header = struct.pack("<Q", size)
        framed.append(header + masked_crc(header) + record + masked_crc(record))
    return b"".join(framed)


def _damage_records(rng: random.Random, originals: Files) -> Files:
    kind = rng.random()
    if kind < 0.1:
        return _damaged_json(rng, originals, rng.choice(("dataset.json", "vocab.json")))
    shards = sorted(name for name in originals if name.startswith("train-"))
    if kind < 0.15:
        return {shards[0]: originals[rng.choice(sorted(originals))]}
    name = rng.choice(shards)
    return {name: _either(rng, originals[name], 0.5, _damage_record)}


def _read_records(folder: Path) -> Any:
    data = dataset.open_data(folder)
    return data, data.read("train")


def _check_records(value: Any, damaged: Files, whole: Any) -> None:
    """Correct: as many records as the description says, each of its length, of ids in the vocabulary."""
    data, examples = value
    split, size = data.splits["train"], data.config.seq_length
    assert len(examples) == split.records and examples.ids.dtype == np.int32
    assert int(examples.lengths.sum()) == len(examples.ids)
    assert np.all(examples.lengths == size) if data.config.layout == "sequences" else np.all(examples.lengths > 0)
    assert examples.ids.min() >= 0 and examples.ids.max() < len(data.vocabulary)


def _make_sequences(folder: Path) -> None:
    _make_data("sequences", folder)


READERS["records"] = Reader(_make_sequences, _damage_records, _read_records, _check_records)


@functools.cache
def _model(seed: int) -> Any:
    from tfcharrnn.model.char_rnn import CharRNN

    return CharRNN(ModelConfig(cell="lstm", hidden_size=4), len(_SYMBOLS), seed=seed)


_STEP = "checkpoints/step-00000004"


def _make_checkpoint(folder: Path) -> None:
    from tfcharrnn.runs import checkpoints  # brings TensorFlow, which a process must not have when it starts others

    log = {"smooth_loss": 2.5, "window": [0.0] * 5, "sizes": {"metrics.jsonl": 10, "samples.txt": 10}}
    checkpoints.save(folder, {"model": _model(0)}, 4, checkpoints.Losses(2.5, 2.25), log)


def _damage_checkpoint(rng: random.Random, originals: Files) -> Files:
    description = f"{_STEP}/checkpoint.json"
    if rng.random() < 0.7:
        return _damaged_json(rng, originals, description)
    name = f"{_STEP}/" + rng.choice(("ckpt.index", "ckpt.data-00000-of-00001"))
    damaged = {name: damage_bytes(rng, originals[name])}
    if rng.random() < 0.5:  # with its sum, as no accident makes it
        value = json.loads(originals[description])
        value["files"][Path(name).name] = files.sha256(damaged[name])
        damaged[description] = json.dumps(value).encode()
    return damaged


def _read_checkpoint(folder: Path) -> Any:
    from tfcharrnn.runs import checkpoints
    from tfcharrnn.verification import numpy_reference

    found = checkpoints.find(folder / "checkpoints" / "..", str(folder / _STEP))
    listed = checkpoints.listed(folder)
    assert [checkpoint.path for checkpoint in listed] == [found.path]
    assert found.describe()
    if any(loss is not None for loss in found.losses):
        assert checkpoints.find(folder, "best") == found
    model = _model(1)
    checkpoints.restore(found, {"model": model})
    return found, {name: variable.numpy() for name, variable in numpy_reference.variables(model).items()}


def _check_checkpoint(value: Any, damaged: Files, whole: Any) -> None:
    """Correct: a step and losses that can be; the very weights, or where a file was changed with its sum, as many."""
    found, weights = value
    assert found.step >= 0
    assert all(loss is None or math.isfinite(loss) for loss in found.losses)
    assert {name: array.shape for name, array in weights.items()} == {n: a.shape for n, a in whole[1].items()}
    if not any("ckpt." in name for name in damaged):
        assert all(np.array_equal(array, whole[1][name]) for name, array in weights.items())


READERS["checkpoint"] = Reader(_make_checkpoint, _damage_checkpoint, _read_checkpoint, _check_checkpoint)


_ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "latin-1", "cp1252", "ascii")
_RARE = ("shift_jis", "gb18030", "big5", "euc_kr", "iso2022_jp", "hz", "unicode_escape", "raw_unicode_escape", "cp037")
_ODD = (
    "punycode",
    "idna",
    "base64",
    "rot13",
    "zlib",
    "undefined",
    "mbcs",
    "x",
    "",
    "a\0b",
    "\ud800",
    "../x",
    "a" * 999,
)


def _make_text(folder: Path) -> None:
    (folder / "text.txt").write_text("".join(_SYMBOLS[1:]) * 5 + "\r\n\0\x1b\x85\u2028", encoding="utf-8")
    (folder / "encoding").write_text("utf-8")


def _damage_text(rng: random.Random, originals: Files) -> Files:
    encoding = rng.choice(rng.choice((("utf-8",), _ENCODINGS, _RARE, _ODD)))
    data = originals["text.txt"]
    with contextlib.suppress(LookupError, ValueError):
        data = data.decode().encode(encoding, "ignore")
    return {"text.txt": damage_bytes(rng, data), "encoding": encoding.encode("utf-8", "surrogatepass")}


def _read_text(folder: Path) -> Any:
    encoding = (folder / "encoding").read_bytes().decode("utf-8", "surrogatepass")
    return corpora.load(DataConfig(input=(str(folder / "text.txt"),), encoding=encoding))


def _check_text(corpus: corpora.Corpus, damaged: Files, whole: Any) -> None:
    """Correct: text, which is UTF-8 when it is written, and the file's as its codec has it but for line ends."""
    assert corpus.text and corpus.text.encode("utf-8").decode("utf-8") == corpus.text
    text = damaged["text.txt"].decode(damaged["encoding"].decode("utf-8", "surrogatepass"))
    assert corpus.text == text.removeprefix("\ufeff").replace("\r\n", "\n")


READERS["text"] = Reader(_make_text, _damage_text, _read_text, _check_text)


class _NoClass(pickle._Unpickler):
    """Python's own reader, without a way to call anything; the one in C takes memory as a damaged file says."""

    def find_class(self, module: str, name: str) -> Any:
        raise AssertionError(f"{module}.{name} was let through")


def _make_pickle(folder: Path) -> None:
    ids = {symbol: index for index, symbol in enumerate(_SYMBOLS)}
    for protocol in range(6):
        (folder / f"{protocol}.pkl").write_bytes(pickle.dumps(ids, protocol))
    (folder / "vocab.pkl").write_bytes(b"(dp0\nS'a'\np1\nI0\nsS'\\n'\np2\nI1\nsVb\np3\nL2L\ns.")


def _damage_opcodes(rng: random.Random, data: bytes) -> bytes:
    """Puts whole opcodes into a pickle."""
    import pickletools

    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        code = rng.choice(pickletools.opcodes).code.encode("latin-1")
        number = struct.pack("<Q", rng.choice(_SIZES))[: rng.choice((1, 2, 4, 8))]
        argument = rng.choice((b"", number, b"1\n", b"-1\n", b"os\nsystem\n", b"'a'\n", b"9" * 5000 + b"\n"))
        data = data[:at] + code * rng.choice((1, 1, 1, 1000)) + argument + data[at:]
    return data


def _damage_pickle(rng: random.Random, originals: Files) -> Files:
    return {"vocab.pkl": _either(rng, originals[rng.choice(sorted(originals))], 0.4, _damage_opcodes)}


def _check_pickle(ids: dict[str, int], damaged: Files, whole: Any) -> None:
    """Correct: symbols with the ids 0 to n - 1, and just what Python's own reader makes of it."""
    assert list(ids.values()) == list(range(len(ids))) and all(is_symbol(symbol) for symbol in ids)
    try:
        assert _NoClass(io.BytesIO(damaged["vocab.pkl"])).load() == ids
    except pickle.UnpicklingError:  # its frames, which say only how much to read at once, must end with an opcode
        assert b"\x95" in damaged["vocab.pkl"]


READERS["pickle"] = Reader(
    _make_pickle,
    _damage_pickle,
    lambda folder: untrusted_files.read_pickled_vocabulary(folder / "vocab.pkl"),
    _check_pickle,
)


def _make_npy(folder: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for name, variant in {
        "array": array, "long": array.astype(">f8"), "turned": np.asfortranarray(array), "small": array.astype("i1"),
        "many": np.repeat(array, 50), "one": np.float16(1.0),
    }.items():  # fmt: skip
        np.save(folder / f"{name}.npy", variant)


def _damage_header(rng: random.Random, data: bytes) -> bytes:
    """Writes something else into the header of a `.npy` file, and mostly the header's right size before it."""
    size = struct.unpack_from("<H", data, 8)[0]
    header = data[10 : 10 + size].decode("latin-1")
    for _ in range(rng.choice((1, 1, 2))):
        found = rng.choice(list(re.finditer(r"'[^']*'|\d+|\(|\)|True|False|,|:|\{|\}", header)) or [None])
        if found is None:
            break
        number = str(rng.choice(_SIZES))
        types = ("'O'", "'|O'", "'<f8'", "'<c16'", "'|V8'", "'<U9'", "'<M8[s]'", "[('a', '<f4')]", "'|b1'", "'<f4,<f4'")
        words = (
            "'shape'",
            "'descr'",
            "None",
            "True",
            "1L",
            "1e400",
            "-1",
            "(",
            ")",
            "__import__('os')",
            "(" * 9999,
            "",
        )
        new = rng.choice((number, number, rng.choice(types), rng.choice(words), f"{number},", f"{number}, {number}"))
        header = header[: found.start()] + new + header[found.end() :]
    if rng.random() < 0.8:
        size = min(len(header), 65_535)
    return (
        data[:8]
        + struct.pack("<H", size)
        + header.encode("latin-1")
        + data[10 + struct.unpack_from("<H", data, 8)[0] :]
    )


def _damage_npy(rng: random.Random, originals: Files) -> Files:
    return {"array.npy": _either(rng, originals[rng.choice(sorted(originals))], 0.6, _damage_header)}


def _check_npy(array: Any, damaged: Files, whole: Any) -> None:
    """Correct: finite real numbers, which fill the file to its end, and are those that stand there."""
    data = damaged["array.npy"]
    assert array.dtype.kind in "fiu" and np.isfinite(array).all()
    content = data[len(data) - array.nbytes :]
    assert len(content) == array.nbytes and array.nbytes + 10 <= len(data)
    there = np.frombuffer(content, array.dtype)
    assert any(np.array_equal(np.sort(array, axis=None), np.sort(t)) for t in (there, there.byteswap()))


READERS["npy"] = Reader(
    _make_npy, _damage_npy, lambda folder: untrusted_files.read_npy(folder / "array.npy"), _check_npy
)


_KERAS_LAYERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("LSTM", {"units": 3, "batch_input_shape": [None, 9, 5], "return_sequences": True}),
    ("Dropout", {"rate": 0.5}),
    ("LSTM", {"units": 3, "recurrent_activation": "sigmoid"}),
    ("Dense", {"units": 5, "activation": "softmax"}),
)
_KERAS_SHAPES = {"lstm_0": ((5, 12), (3, 12), (12,)), "lstm_2": ((3, 12), (3, 12), (12,)), "dense_3": ((3, 5), (5,))}


def _keras_config() -> str:
    """The layers of a model as Keras describes them."""
    layers = [
        {"class_name": kind, "config": {"name": f"{kind.lower()}_{index}", **settings}}
        for index, (kind, settings) in enumerate(_KERAS_LAYERS)
    ]
    return json.dumps({"class_name": "Sequential", "config": {"name": "model", "layers": layers}})


def _make_h5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "model", "w") as file:
        file.attrs["keras_version"], file.attrs["model_config"] = "2.4.0", _keras_config()
        groups = file.create_group("model_weights")
        groups.attrs["layer_names"] = [name.encode() for name in _KERAS_SHAPES]
        for name, shapes in _KERAS_SHAPES.items():
            group = groups.create_group(name)
            group.attrs["weight_names"] = [f"{index}:0".encode() for index in range(len(shapes))]
            for index, shape in enumerate(shapes):
                group[f"{index}:0"] = np.full(shape, 0.5, np.float32)


def _make_zip(folder: Path) -> None:
    import h5py

    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        for name, shapes in zip(("lstm/cell", "lstm_1/cell", "dense"), _KERAS_SHAPES.values(), strict=True):
            for index, shape in enumerate(shapes):
                file[f"layers/{name}/vars/{index}"] = np.full(shape, 0.5, np.float32)
    _zip(
        folder / "model",
        {
            "metadata.json": json.dumps({"keras_version": "3.6.0"}).encode(),
            "config.json": _keras_config().encode(),
            "model.weights.h5": weights.getvalue(),
        },
    )


def _zip(target: Path | io.BytesIO, members: Files) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def _damage_h5_text(rng: random.Random, data: bytes) -> bytes:
    """Changes the layers' settings in place, where they take no more room."""
    found = re.search(rb"\{\"class_name.*\}", data, re.DOTALL)
    assert found is not None
    new = damage_json(rng, found[0]).replace(b", ", b",").replace(b": ", b":")
    return data[: found.start()] + new[: len(found[0])].ljust(len(found[0])) + data[found.end() :]


def _damage_zip(rng: random.Random, data: bytes) -> bytes:
    """Damages a member, or its name, and zips them again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    if rng.random() < 0.1:
        members[rng.choice(("../x", "/etc/x", "", "a" * 300, "config.json/x"))] = members.pop(name)
    else:
        members[name] = (
            _either(rng, members[name], 0.7, damage_json) if name[-1] == "n" else damage_bytes(rng, members[name])
        )
    target = io.BytesIO()
    _zip(target, members)
    return target.getvalue()


def _read_keras(folder: Path) -> Any:
    from tfcharrnn import import_keras
    from tfcharrnn.serving import keras_reader

    keras_reader.SECONDS = 3
    return import_keras.convert(keras_reader.read_guarded(folder / "model"))


def _check_keras(imported: Any, damaged: Files, whole: Any) -> None:
    """Correct: a network within its bounds, and the arrays that it needs."""
    config, arrays = imported.config, imported.variables
    assert config_lib.from_dict(ModelConfig, config_lib.to_dict(config), "x") == config
    assert set(arrays) >= {"output_kernel", "output_bias", "cells/0/kernel"}
    assert arrays["output_kernel"].shape == (config.hidden_size, imported.vocabulary_size)
    for layer in range(config.num_layers):
        assert arrays[f"cells/{layer}/recurrent_kernel"].shape[0] == config.hidden_size


READERS["keras-h5"] = Reader(
    _make_h5,
    lambda rng, originals: {"model": _either(rng, originals["model"], 0.4, _damage_h5_text)},
    _read_keras,
    _check_keras,
)
READERS["keras-zip"] = Reader(
    _make_zip,
    lambda rng, originals: {"model": _either(rng, originals["model"], 0.7, _damage_zip)},
    _read_keras,
    _check_keras,
)


# Trying them


@dataclasses.dataclass
class Tally:
    """What came of some cases; `failure` is the number of a case and what was wrong with it."""

    errors: int = 0
    correct: int = 0
    seconds: float = 0.0
    memory: int = 0
    failure: tuple[int, str] | None = None


class _TooLong(BaseException):
    """A reader took too long; no reader can take it for an error of its own."""


def _attempt(reader: Reader, folder: Path, damaged: Files, whole: Any) -> bool:
    """Reads damaged files; returns whether they gave data.

    Raises:
        AssertionError: an error or data that is not as it should be.
    """
    try:
        value = reader.read(folder)
    except UserError as error:
        message = str(error)
        named = [str(folder), "--encoding=", *(Path(file).name for file in damaged)]
        assert any(name in message for name in named), f"its message does not name the file: {message[:300]}"
        control = re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", message)
        assert not control, f"its message has several lines, or steers a terminal: {message[:300]!r}"
        is_flag = isinstance(error, ConfigError) and "--encoding" not in message
        assert not is_flag, f"it speaks of a wrong flag: {message[:300]}"
        return False
    reader.check(value, damaged, whole)
    return True


def run_cases(name: str, seed: int, cases: range, folder: Path, bound: int, progress: Any = None) -> Tally:
    """Tries a reader on some cases, in this process.

    Args:
        name: of the reader.
        seed: of the damage.
        cases: their numbers.
        folder: an empty folder; of a failure it keeps the damaged files.
        bound: bytes of memory that the reader may take more than for a whole file; 0: no bound.
        progress: where the number of the case is shown.
    """
    reader, tally = READERS[name], Tally()
    warnings.simplefilter("ignore")
    reader.make(folder)
    originals = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    whole = reader.read(folder)
    reader.check(whole, originals, whole)
    if bound:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + bound
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def stop(*_: object) -> None:
        raise _TooLong(f"took longer than {_SECONDS} seconds")

    signal.signal(signal.SIGALRM, stop)
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for case in cases:
        rng = random.Random(f"{seed}/{name}/{case}")
        damaged = reader.damage(rng, originals)
        for file, data in damaged.items():
            (folder / file).write_bytes(data)
        if progress is not None:
            progress.value = case
        signal.setitimer(signal.ITIMER_REAL, _SECONDS)
        try:
            if _attempt(reader, folder, damaged, whole):
                tally.correct += 1
            else:
                tally.errors += 1
        except (Exception, _TooLong) as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            lines = str(error).strip().splitlines() or [""]
            tally.failure = case, f"{type(error).__name__}: {lines[0][:400]}"
            break
        signal.setitimer(signal.ITIMER_REAL, 0)
        for file in damaged:
            (folder / file).write_bytes(originals[file])
    tally.seconds = time.perf_counter() - start
    tally.memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    return tally


def _work(name: str, seed: int, cases: range, folder: Path, bound: int, progress: Any, queue: Any) -> None:
    """What a process of its own does."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # TensorFlow's remarks on each damaged file
    queue.put(run_cases(name, seed, cases, folder, bound, progress))


def _watched(name: str, seed: int, cases: range, folder: Path, bound: int) -> Tally:
    """Runs cases in a process of its own, which may crash or hang."""
    context = multiprocessing.get_context("fork")
    progress, queue = context.Value("q", cases.start), context.Queue()
    process = context.Process(target=_work, args=(name, seed, cases, folder, bound, progress, queue))
    process.start()
    seen, since = -1, time.monotonic()
    while process.is_alive() or not queue.empty():
        try:
            tally: Tally = queue.get(timeout=1)
        except Exception:  # queue.Empty
            if progress.value != seen:
                seen, since = progress.value, time.monotonic()
            elif time.monotonic() - since > 6 * _SECONDS:
                process.kill()
                process.join()
                return Tally(failure=(seen, "hangs where no signal reaches it"))
            continue
        process.join()
        return tally
    return Tally(failure=(progress.value, f"the process ended with code {process.exitcode}"))


def fuzz(names: list[str], count: int, seed: int, jobs: int, first: int = 0) -> dict[str, Tally]:
    """Tries readers on so many cases each; prints a row for each and stops at the first failure.

    Raises:
        UserError: a reader failed; the message names the case, and where its files are kept.
    """
    import concurrent.futures

    table = "{:14} {:>9} {:>9} {:>9} {:>8} {:>9}".format
    print(table("reader", "tried", "errors", "correct", "seconds", "memory"), flush=True)
    results = {}
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as temporary:
        for name in names:
            size = max(1, -(-count // jobs))
            parts = [range(start, min(start + size, first + count)) for start in range(first, first + count, size)]
            folders = [Path(temporary) / f"{name}-{part.start}" for part in parts]
            for folder in folders:
                folder.mkdir()
            began = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                work = [
                    pool.submit(_watched, name, seed, part, folder, _MEMORY)
                    for part, folder in zip(parts, folders, strict=True)
                ]
                tallies = [part.result() for part in work]
            for tally, folder in zip(tallies, folders, strict=True):
                if tally.failure:
                    case, why = tally.failure
                    kept = Path(tempfile.gettempdir()) / f"fuzz-{name}-{seed}-{case}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(folder, kept)
                    raise UserError(
                        f"{name}: case {case} of seed {seed}: {why}; its files are kept in {kept}; "
                        f"again: python tools/fuzz.py --reader={name} --seed={seed} --first={case} --count=1"
                    )
            errors, correct = sum(t.errors for t in tallies), sum(t.correct for t in tallies)
            total = Tally(errors, correct, time.perf_counter() - began, max(t.memory for t in tallies))
            row = (name, errors + correct, errors, correct, f"{total.seconds:.1f}", f"{total.memory / 2**20:.1f} MiB")
            print(table(*row), flush=True)
            results[name] = total
            for folder in folders:
                shutil.rmtree(folder)
    return results


def main() -> None:
    """Reads the flags and tries the readers."""
    # HDF5 takes a process of its own for each file, and seconds where it loops: by name only
    quick = [name for name in READERS if not name.startswith("keras")]
    names = quick if _FLAGS.reader == "all" else [_FLAGS.reader]
    if sys.platform != "linux":
        raise UserError("tools/fuzz.py: bounds memory as Linux does; run it there")
    fuzz(names, _FLAGS.count, _FLAGS.seed, _FLAGS.jobs, _FLAGS.first)


if __name__ == "__main__":
    flags.DEFINE_enum("reader", "all", ["all", *READERS], "Which reader, or all.")
    flags.DEFINE_integer("count", 10_000, "Damaged files for each reader.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the damage.", lower_bound=0)
    flags.DEFINE_integer("jobs", os.cpu_count() or 1, "Processes.", lower_bound=1)
    flags.DEFINE_integer("first", 0, "Number of the first case.", lower_bound=0)
    cli.run(main)
