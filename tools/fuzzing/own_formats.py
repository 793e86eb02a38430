"""Readers of this library's own files: vocabularies, data folders, run folders, checkpoints and texts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.damage import SIZES, Files, damage_bytes, damage_content, damage_json_file
from tfcharrnn import config as config_lib
from tfcharrnn import files
from tfcharrnn.config import BYTES, DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.data import dataset
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.preparation import corpora, data_folder
from tfcharrnn.runs import run_folder as run_lib
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.symbols import choose_codec, is_symbol


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of files and how it is tested.

    Attributes:
        make: fills a folder with valid files.
        damage: returns damaged versions of some of the files.
        read: reads the folder.
        check: raises AssertionError if what was read from the damaged files is wrong; its arguments are the result, the
            damaged files, and the result for the valid ones.
    """

    make: Callable[[Path], None]
    damage: Callable[[random.Random, Files], Files]
    read: Callable[[Path], Any]
    check: Callable[[Any, Files, Any], None]


OWN_READERS: dict[str, Reader] = {}
SYMBOLS = ("<S>", *"\t\n !,.0123456789abcdefghij", "é", "\u0301", "\u4e2d", "\U0001f600")


def _make_vocabulary(folder: Path) -> None:
    Vocabulary(SYMBOLS).save(folder / "vocab.json")


def check_vocabulary(vocabulary: Vocabulary, damaged: Files, whole: Any) -> None:
    """Correct: the symbols in the file, each once, in the same order; they encode and decode."""
    symbols = vocabulary.symbols
    if "vocab.json" in damaged:
        assert list(symbols) == json.loads(damaged["vocab.json"])["symbols"]
    characters = symbols[vocabulary.num_special :]
    assert len(set(symbols)) == len(symbols) and list(characters) == sorted(characters)
    assert all(is_symbol(symbol) for symbol in symbols) and all(len(character) == 1 for character in characters)
    text = "".join(characters)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode(text).tolist() == list(range(vocabulary.num_special, len(symbols)))


OWN_READERS["vocab.json"] = Reader(
    _make_vocabulary,
    lambda rng, originals: damage_json_file(rng, originals, "vocab.json"),
    lambda folder: Vocabulary.load(folder / "vocab.json"),
    check_vocabulary,
)


_DATA_SETTINGS: dict[str, Any] = {"sequences": {"seq_length": 21, "overlap": 0.5}, "lines": {}}


def _make_data(layout: str, folder: Path) -> None:
    config = DataConfig(layout=layout, val_fraction=0.2, drop_chars="x", **_DATA_SETTINGS[layout])
    text = "the cat sat on the mat\n\n0123456789\né\u0301\u4e2d\U0001f600!\n" * 9
    corpus = corpora.Corpus("text", text, (corpora.Source("text", len(text), "0" * 64),))
    data_folder.prepare_data(config, folder, overwrite=True, corpus=corpus)


def _make_lines(folder: Path) -> None:
    _make_data("lines", folder)


def _damage_data(rng: random.Random, originals: Files) -> Files:
    return damage_json_file(rng, originals, "dataset.json" if rng.random() < 0.9 else "vocab.json")


def _check_data(data: DataFolder, damaged: Files, whole: DataFolder) -> None:
    """Correct: settings within their bounds, possible counts, only files of this folder, and a description."""
    assert config_lib.from_dict(DataConfig, config_lib.to_dict(data.config), "x") == data.config
    for name, split in data.splits.items():
        assert 0 <= split.records <= split.characters < 10**13
        assert all(re.fullmatch(rf"{name}-\d{{5}}-of-\d{{5}}\.tfrecord", shard) for shard in split.shards)
    assert all(isinstance(kind, str) and 0 <= count < 10**13 for kind, count in data.dropped.items())
    assert re.fullmatch(r"[0-9a-f]{64}", data.fingerprint) and isinstance(data.name, str)
    assert data.describe() and data.characters >= 0
    check_vocabulary(data.vocabulary, damaged, None)


OWN_READERS["dataset.json"] = Reader(_make_lines, _damage_data, dataset.open_data, _check_data)


def _make_run(folder: Path) -> None:
    training = TrainingConfig(optimizer="sgd", schedule="cosine", smoothing_start="uniform", steps=10)
    model = ModelConfig(cell="gru", hidden_size=4, embedding_size=3)
    data = DataConfig(input=("text.txt",), seq_length=9, drop_chars="\0", delimiter=r"\n")
    Run(folder, data, "data", "0" * 64, model, training, Vocabulary(SYMBOLS)).save()


def _damage_run(rng: random.Random, originals: Files) -> Files:
    return damage_json_file(rng, originals, "config.json" if rng.random() < 0.9 else "vocab.json")


def _check_run(run: Run, damaged: Files, whole: Run) -> None:
    """Correct: settings within their bounds, the same after they are written and read again."""
    for config in (run.data, run.model, run.training):
        assert config_lib.from_dict(type(config), config_lib.to_dict(config), "x") == config
    again = run.path / "again"
    again.mkdir(exist_ok=True)
    dataclasses.replace(run, path=again).save()
    assert dataclasses.replace(run_lib.load(again), path=run.path) == run
    check_vocabulary(run.vocabulary, damaged, None)


OWN_READERS["config.json"] = Reader(_make_run, _damage_run, run_lib.load, _check_run)


@functools.cache
def _make_crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def masked_crc(data: bytes) -> bytes:
    """Returns the checksum of TFRecord and checkpoint files, the masked CRC-32C."""
    crc, table = 0xFFFFFFFF, _make_crc_table()
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _damage_record(rng: random.Random, data: bytes) -> bytes:
    """Changes one record, or its size, and corrects the checksums."""
    records, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        records.append((size, data[at + 12 : at + 12 + size]))
        at += size + 16
    which = rng.randrange(len(records))
    size, record = records[which]
    kind = rng.randrange(5)
    if kind == 0:
        records[which] = (rng.choice((*SIZES, size + 1, size - 1)), record)
    elif kind == 1:
        records.insert(which, records[rng.randrange(len(records))])
    elif kind == 2:
        del records[which]
    else:
        # damage the ids, which are at the end, or anything
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
        return damage_json_file(rng, originals, rng.choice(("dataset.json", "vocab.json")))
    shards = sorted(name for name in originals if name.startswith("train-"))
    if kind < 0.15:
        return {shards[0]: originals[rng.choice(sorted(originals))]}
    name = rng.choice(shards)
    return {name: damage_content(rng, originals[name], 0.5, _damage_record)}


def _read_records(folder: Path) -> Any:
    data = dataset.open_data(folder)
    return data, data.read("train")


def _check_records(value: Any, damaged: Files, whole: Any) -> None:
    """Correct: as many records as described, each of the right length, with ids in the vocabulary."""
    data, examples = value
    split, size = data.splits["train"], data.config.seq_length
    assert len(examples) == split.records and examples.ids.dtype == np.int32
    assert int(examples.lengths.sum()) == len(examples.ids)
    assert np.all(examples.lengths == size) if data.config.layout == "sequences" else np.all(examples.lengths > 0)
    assert examples.ids.min() >= 0 and examples.ids.max() < len(data.vocabulary)


def _make_sequences(folder: Path) -> None:
    _make_data("sequences", folder)


OWN_READERS["records"] = Reader(_make_sequences, _damage_records, _read_records, _check_records)


@functools.cache
def _make_model(seed: int) -> Any:
    from tfcharrnn.model.char_rnn import CharRNN

    return CharRNN(ModelConfig(cell="lstm", hidden_size=4), len(SYMBOLS), seed=seed)


_STEP = "checkpoints/step-00000004"


def _make_checkpoint(folder: Path) -> None:
    from tfcharrnn.runs import checkpoints  # imports TensorFlow, which must not be loaded in a process that forks

    log = {"smooth_loss": 2.5, "window": [0.0] * 5, "sizes": {"metrics.jsonl": 10, "samples.txt": 10}}
    checkpoints.save(folder, {"model": _make_model(0)}, 4, checkpoints.Losses(2.5, 2.25), log)


def _damage_checkpoint(rng: random.Random, originals: Files) -> Files:
    description = f"{_STEP}/checkpoint.json"
    if rng.random() < 0.7:
        return damage_json_file(rng, originals, description)
    name = f"{_STEP}/" + rng.choice(("ckpt.index", "ckpt.data-00000-of-00001"))
    damaged = {name: damage_bytes(rng, originals[name])}
    if rng.random() < 0.5:  # with a matching checksum, as in a deliberate change
        value = json.loads(originals[description])
        value["files"][Path(name).name] = files.sha256(damaged[name])
        damaged[description] = json.dumps(value).encode()
    return damaged


def _read_checkpoint(folder: Path) -> Any:
    from tfcharrnn.runs import checkpoints
    from tfcharrnn.verification import numpy_reference

    found = checkpoints.find(folder / "checkpoints" / "..", str(folder / _STEP))
    listed = checkpoints.list_checkpoints(folder)
    assert [checkpoint.path for checkpoint in listed] == [found.path]
    assert found.describe()
    if any(loss is not None for loss in found.losses):
        assert checkpoints.find(folder, "best") == found
    model = _make_model(1)
    checkpoints.restore(found, {"model": model})
    return found, {name: variable.numpy() for name, variable in numpy_reference.variables(model).items()}


def _check_checkpoint(value: Any, damaged: Files, whole: Any) -> None:
    """Correct: a possible step, finite losses, and the same weights, or the same shapes if a data file was changed."""
    found, weights = value
    assert found.step >= 0
    assert all(loss is None or math.isfinite(loss) for loss in found.losses)
    assert {name: array.shape for name, array in weights.items()} == {n: a.shape for n, a in whole[1].items()}
    if not any("ckpt." in name for name in damaged):
        assert all(np.array_equal(array, whole[1][name]) for name, array in weights.items())


OWN_READERS["checkpoint"] = Reader(_make_checkpoint, _damage_checkpoint, _read_checkpoint, _check_checkpoint)


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


_TEXT: Files = {
    "text.txt": ("".join(SYMBOLS[1:]) * 5 + "\r\n\0\x1b\x85\u2028").encode(),
    "encoding": b"utf-8",
}


def _make_text(folder: Path) -> None:
    for name, data in _TEXT.items():
        (folder / name).write_bytes(data)


def _decode_name(data: bytes) -> str:
    """Returns the name of an encoding."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _damage_text(rng: random.Random, originals: Files) -> Files:
    encoding = rng.choice(rng.choice((("utf-8",), _ENCODINGS, _RARE, _ODD)))
    data = originals["text.txt"]
    with contextlib.suppress(LookupError, ValueError):
        data = data.decode().encode(encoding, "ignore")
    return {"text.txt": damage_bytes(rng, data), "encoding": encoding.encode("utf-8", "surrogatepass")}


def _read_text(folder: Path) -> Any:
    encoding = _decode_name((folder / "encoding").read_bytes())
    return corpora.load(DataConfig(input=(str(folder / "text.txt"),), encoding=encoding))


def _check_text(corpus: corpora.Corpus, damaged: Files, whole: Any) -> None:
    """Correct: the file as its codec decodes it, apart from line ends; and it can be written as UTF-8."""
    assert corpus.text and corpus.text.encode("utf-8").decode("utf-8") == corpus.text
    found = _TEXT | damaged
    encoding = _decode_name(found["encoding"])
    text = found["text.txt"].decode(choose_codec(encoding))
    assert corpus.text == (text if encoding == BYTES else text.removeprefix("\ufeff").replace("\r\n", "\n"))


OWN_READERS["text"] = Reader(_make_text, _damage_text, _read_text, _check_text)
