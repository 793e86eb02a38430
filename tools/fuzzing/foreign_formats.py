"""Readers of files from other programs: pickled vocabularies, NumPy arrays and Keras models."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.damage import SIZES, Files, damage_bytes, damage_content, damage_json
from fuzzing.own_formats import SYMBOLS, Reader
from tfcharrnn import config as config_lib
from tfcharrnn import untrusted_files
from tfcharrnn.config import ModelConfig
from tfcharrnn.runs import safetensors_file
from tfcharrnn.symbols import is_symbol

FOREIGN_READERS: dict[str, Reader] = {}


class _DataUnpickler(pickle._Unpickler):
    """Python's own unpickler, which loads no class; the one in C allocates whatever sizes a damaged file claims."""

    def find_class(self, module: str, name: str) -> Any:
        raise AssertionError(f"{module}.{name} was not rejected")


def _make_pickle(folder: Path) -> None:
    ids = {symbol: index for index, symbol in enumerate(SYMBOLS)}
    for protocol in range(6):
        (folder / f"{protocol}.pkl").write_bytes(pickle.dumps(ids, protocol))
    (folder / "vocab.pkl").write_bytes(b"(dp0\nS'a'\np1\nI0\nsS'\\n'\np2\nI1\nsVb\np3\nL2L\ns.")


def _damage_opcodes(rng: random.Random, data: bytes) -> bytes:
    """Inserts opcodes into a pickle."""
    import pickletools

    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        code = rng.choice(pickletools.opcodes).code.encode("latin-1")
        number = struct.pack("<Q", rng.choice(SIZES))[: rng.choice((1, 2, 4, 8))]
        argument = rng.choice((b"", number, b"1\n", b"-1\n", b"os\nsystem\n", b"'a'\n", b"9" * 5000 + b"\n"))
        data = data[:at] + code * rng.choice((1, 1, 1, 1000)) + argument + data[at:]
    return data


def _damage_pickle(rng: random.Random, originals: Files) -> Files:
    return {"vocab.pkl": damage_content(rng, originals[rng.choice(sorted(originals))], 0.4, _damage_opcodes)}


def _check_pickle(ids: dict[str, int], damaged: Files, whole: Any) -> None:
    """Correct: symbols with the ids 0 to n - 1, the same as Python's own unpickler reads."""
    assert list(ids.values()) == list(range(len(ids))) and all(is_symbol(symbol) for symbol in ids)
    try:
        assert _DataUnpickler(io.BytesIO(damaged["vocab.pkl"])).load() == ids
    except (
        pickle.UnpicklingError
    ):  # Python requires a frame, only a hint of how much to read at once, to end with an opcode
        assert b"\x95" in damaged["vocab.pkl"]


FOREIGN_READERS["pickle"] = Reader(
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
    """Changes the header of a `.npy` file, in most cases with the right header size in front."""
    size = struct.unpack_from("<H", data, 8)[0]
    header = data[10 : 10 + size].decode("latin-1")
    for _ in range(rng.choice((1, 1, 2))):
        found = rng.choice(list(re.finditer(r"'[^']*'|\d+|\(|\)|True|False|,|:|\{|\}", header)) or [None])
        if found is None:
            break
        number = str(rng.choice(SIZES))
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
    return {"array.npy": damage_content(rng, originals[rng.choice(sorted(originals))], 0.6, _damage_header)}


def _check_npy(array: Any, damaged: Files, whole: Any) -> None:
    """Correct: finite real numbers, the ones in the file up to its end."""
    data = damaged["array.npy"]
    assert array.dtype.kind in "fiu" and np.isfinite(array).all()
    content = data[len(data) - array.nbytes :]
    assert len(content) == array.nbytes and array.nbytes + 10 <= len(data)
    there = np.frombuffer(content, array.dtype)
    assert any(np.array_equal(np.sort(array, axis=None), np.sort(t)) for t in (there, there.byteswap()))


FOREIGN_READERS["npy"] = Reader(
    _make_npy, _damage_npy, lambda folder: untrusted_files.read_npy(folder / "array.npy"), _check_npy
)


_SAFETENSORS_SHAPES = {"half": (3, 4), "kernel": (4, 6), "bias": (6,)}
_SAFETENSORS_TYPES = {"half": np.float16, "kernel": np.float32, "bias": np.float64}


def _make_safetensors(folder: Path) -> None:
    arrays = {
        name: np.arange(np.prod(shape)).reshape(shape).astype(_SAFETENSORS_TYPES[name])
        for name, shape in _SAFETENSORS_SHAPES.items()
    }
    safetensors_file.write_file(folder / "model.safetensors", arrays)


def _damage_safetensors_header(rng: random.Random, data: bytes) -> bytes:
    """Changes the header, in most cases with its right length in front."""
    size = int.from_bytes(data[:8], "little")
    header = damage_json(rng, data[8 : 8 + size])
    length = len(header) if rng.random() < 0.8 else rng.choice(SIZES)
    return struct.pack("<Q", length) + header + data[8 + size :]


def _damage_safetensors(rng: random.Random, originals: Files) -> Files:
    (data,) = originals.values()
    return {"model.safetensors": damage_content(rng, data, 0.6, _damage_safetensors_header)}


def _check_safetensors(arrays: dict[str, Any], damaged: Files, whole: Any) -> None:
    """Correct: finite real numbers of the right shapes, which are in the file."""
    assert {name: array.shape for name, array in arrays.items()} == _SAFETENSORS_SHAPES
    for array in arrays.values():
        assert array.dtype.kind in "fi" and np.isfinite(array).all()
        assert array.tobytes() in damaged["model.safetensors"]


FOREIGN_READERS["safetensors"] = Reader(
    _make_safetensors,
    _damage_safetensors,
    lambda folder: safetensors_file.read_file(folder / "model.safetensors", _SAFETENSORS_SHAPES),
    _check_safetensors,
)


_KERAS_LAYERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("LSTM", {"units": 3, "batch_input_shape": [None, 9, 5], "return_sequences": True}),
    ("Dropout", {"rate": 0.5}),
    ("LSTM", {"units": 3, "recurrent_activation": "sigmoid"}),
    ("Dense", {"units": 5, "activation": "softmax"}),
)
_KERAS_SHAPES = {"lstm_0": ((5, 12), (3, 12), (12,)), "lstm_2": ((3, 12), (3, 12), (12,)), "dense_3": ((3, 5), (5,))}


def _keras_config() -> str:
    """Returns the layers of a model as Keras describes them."""
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
    """Changes the layers' settings in place, without changing their size."""
    found = re.search(rb"\{\"class_name.*\}", data, re.DOTALL)
    assert found is not None
    new = damage_json(rng, found[0]).replace(b", ", b",").replace(b": ", b":")
    return data[: found.start()] + new[: len(found[0])].ljust(len(found[0])) + data[found.end() :]


def _damage_zip(rng: random.Random, data: bytes) -> bytes:
    """Damages a member of a zip file, or its name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    if rng.random() < 0.1:
        members[rng.choice(("../x", "/etc/x", "", "a" * 300, "config.json/x"))] = members.pop(name)
    else:
        members[name] = (
            damage_content(rng, members[name], 0.7, damage_json)
            if name[-1] == "n"
            else damage_bytes(rng, members[name])
        )
    target = io.BytesIO()
    _zip(target, members)
    return target.getvalue()


def _read_keras(folder: Path) -> Any:
    from tfcharrnn.serving import keras_import, keras_reader

    keras_reader.CHILD_SECONDS = 3
    return keras_import.convert_model(keras_reader.read_file_safely(folder / "model"))


def _check_keras(imported: Any, damaged: Files, whole: Any) -> None:
    """Correct: a network within its bounds, with all the arrays it needs."""
    config, arrays = imported.config, imported.variables
    assert config_lib.from_dict(ModelConfig, config_lib.to_dict(config), "x") == config
    assert set(arrays) >= {"output_kernel", "output_bias", "cells/0/kernel"}
    assert arrays["output_kernel"].shape == (config.hidden_size, imported.vocabulary_size)
    for layer in range(config.num_layers):
        assert arrays[f"cells/{layer}/recurrent_kernel"].shape[0] == config.hidden_size


FOREIGN_READERS["keras-h5"] = Reader(
    _make_h5,
    lambda rng, originals: {"model": damage_content(rng, originals["model"], 0.4, _damage_h5_text)},
    _read_keras,
    _check_keras,
)
FOREIGN_READERS["keras-zip"] = Reader(
    _make_zip,
    lambda rng, originals: {"model": damage_content(rng, originals["model"], 0.7, _damage_zip)},
    _read_keras,
    _check_keras,
)
