"""Reads the layers of a Keras model file, their settings and arrays, without running anything in it.

Both formats hold the settings as JSON and the weights as HDF5:

- `.h5` (Keras 2.0 and later): the attributes `model_config` and `keras_version`, and below `model_weights` a group for
  each layer, whose attribute `weight_names` lists its arrays in order;
- `.keras` (Keras 2.12 and later): a zip of `config.json`, `metadata.json` and `model.weights.h5`, where each layer is
  named by its class and a counter: `layers/lstm_1/cell/vars/0`.

Keras itself is not used, since loading a file with it may run code from the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from tfcharrnn import portability
from tfcharrnn.errors import UserError, first_line, shorten
from tfcharrnn.untrusted_files import Array

try:
    import h5py
except ModuleNotFoundError:
    raise UserError("importing a Keras model needs h5py; pip install 'tfcharrnn[hdf5]'") from None

# Far more than a character model needs; a file that declares more is rejected before it is read.
_MAX_WEIGHTS = 2**28
_MAX_JSON_BYTES = 2**24
_MAX_WEIGHTS_BYTES = 2**32  # includes the optimizer's arrays
_MAX_LAYERS = 1000
# Filters up to this number are built into HDF5; others would load a plug-in.
_LAST_BUILT_IN_FILTER = 6
_COPY_BYTES = 2**20
# Time limit of the child process that reads a file first.
CHILD_SECONDS = 120
_FUNCTIONAL = ("Model", "Functional")
RECURRENT = ("SimpleRNN", "LSTM", "GRU")
_KINDS = ("InputLayer", "Embedding", *RECURRENT, "Dropout", "Dense", "Activation")


@dataclasses.dataclass(frozen=True)
class KerasLayer:
    """A layer of a Keras model file.

    Attributes:
        kind: its class, such as `LSTM`; inside a `TimeDistributed` wrapper, the class of the wrapped layer.
        name: its name in the model.
        settings: those in the file; a missing one has the default of the Keras version that wrote it.
        weights: its arrays, in Keras's order.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    weights: tuple[Array, ...] = ()

    def __str__(self) -> str:
        """Returns the layer's description in error messages."""
        return f"layer {shorten(self.name)} ({self.kind[:100]})"


@dataclasses.dataclass(frozen=True)
class KerasFile:
    """A Keras model file: a chain of layers.

    Attributes:
        path: the file.
        version: the Keras version that wrote it, such as `2.0.8`, `2.2.4-tf` or `3.6.0`.
        layers: from input to output.
    """

    path: Path
    version: str
    layers: tuple[KerasLayer, ...]

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        return _parse_release(self.version)


def read_file(path: str | Path) -> KerasFile:
    """Reads a model file.

    Args:
        path: an `.h5` or `.keras` file.

    Raises:
        UserError: the file cannot be read, is damaged, or holds anything but a chain of layers.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            return _read_zip(path, file) if is_zip else _read_h5(path, file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:  # h5py also raises it for a file that is truncated or not HDF5
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {first_line(error)})") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({first_line(error)})") from None


def read_file_safely(path: str | Path) -> KerasFile:
    """Reads a model file in a child process first, if there can be one: a damaged file can crash the HDF5 library.

    Raises:
        UserError: the child was killed, or any error of `read_file`.
    """
    if not portability.can_fork():
        return read_file(path)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the child even while the library hangs
        signal.alarm(CHILD_SECONDS)
        with contextlib.suppress(BaseException):
            read_file(path)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0:
        raise UserError(f"{path}: damaged (reading it kills the process)")
    return read_file(path)


def _read_h5(path: Path, file: IO[bytes]) -> KerasFile:
    with h5py.File(file, "r") as root:
        if "model_config" not in root.attrs:
            raise UserError("has no model_config, perhaps only weights; save the whole model with model.save()")
        version = _check_version(_decode_text(root.attrs.get("keras_version", "")))
        layers = _parse_chain(_parse_json(_decode_text(root.attrs["model_config"])))
        groups = _get_member(root, "model_weights")
        names_with_weights = set(_read_names(groups, "layer_names"))
        reader = _ArrayReader()
        result = []
        for layer in layers:
            arrays = []
            if layer.name in names_with_weights:
                group = _get_member(groups, layer.name)
                arrays = [reader.read(_get_member(group, name), layer) for name in _read_names(group, "weight_names")]
            result.append(dataclasses.replace(layer, weights=tuple(arrays)))
    return KerasFile(path, version, tuple(result))


def _read_zip(path: Path, file: IO[bytes]) -> KerasFile:
    with zipfile.ZipFile(file) as archive:
        metadata = _parse_json(_read_json_member(archive, "metadata.json"))
        version = _check_version(str(metadata.get("keras_version", "")))
        layers = _parse_chain(_parse_json(_read_json_member(archive, "config.json")))
        with _extract_weights(archive, "model.weights.h5") as weights, h5py.File(weights, "r") as root:
            # Keras 2 names the folder after an attribute of the model
            folder = next((name for name in ("layers", "_layer_checkpoint_dependencies") if name in root), "layers")
            groups = _get_member(root, folder)
            reader = _ArrayReader()
            result, counts = [], dict[str, int]()
            for layer in layers:
                is_wrapped = layer.settings.get("wrapper") == "TimeDistributed"
                kind = _to_snake_case("TimeDistributed" if is_wrapped else layer.kind)
                count = counts[kind] = counts.get(kind, -1) + 1
                name = f"{kind}_{count}" if count else kind
                arrays = []
                if name in groups:
                    group = _get_member(groups, name)
                    path_below = "layer/vars" if is_wrapped else "cell/vars" if "cell" in group else "vars"
                    stored = _get_member(group, path_below)
                    arrays = [reader.read(_get_member(stored, str(index)), layer) for index in range(len(stored))]
                result.append(dataclasses.replace(layer, weights=tuple(arrays)))
    return KerasFile(path, version, tuple(result))


class _ArrayReader:
    """Reads arrays up to a limit on the weights of a whole model."""

    def __init__(self) -> None:
        self._left = _MAX_WEIGHTS

    def read(self, dataset: h5py.Dataset, layer: KerasLayer) -> Array:
        """Reads an array of one or two dimensions, after checking its declared type, shape and storage."""
        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{layer}: its weights are not arrays; the file is damaged")
        if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8) or dataset.ndim not in (1, 2):
            raise UserError(
                f"{layer}: an array of type {dataset.dtype} and shape {list(dataset.shape or ())} is not supported"
            )
        self._left -= dataset.size
        if self._left < 0:
            raise UserError(f"{layer}: the file declares more than {_MAX_WEIGHTS:,} weights")
        # deflate compresses by a factor of 1032 at most
        if dataset.nbytes > (1032 if dataset.compression else 1) * dataset.id.get_storage_size():
            raise UserError(f"{layer}: an array of shape {list(dataset.shape)} is incomplete; the file is damaged")
        plist = dataset.id.get_create_plist()
        filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
        if dataset.external or dataset.is_virtual or any(number > _LAST_BUILT_IN_FILTER for number in filters):
            raise UserError(f"{layer}: its arrays are outside the file or need a plug-in, which is not supported")
        values = np.asarray(dataset[()], np.float64 if dataset.dtype.itemsize == 8 else np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{layer}: a weight is not finite; save the model of an earlier step")
        return values


def _get_member(group: h5py.Group, path: str) -> Any:
    """Returns the group or dataset at a path below a group; follows no soft or external links."""
    member: Any = group
    for part in path.split("/"):
        if not isinstance(member, h5py.Group) or not part or part not in member:
            raise UserError(f"{path!r} is missing in it; the file is damaged")
        if not isinstance(member.get(part, getlink=True), h5py.HardLink):
            raise UserError(f"{path!r} is a link to elsewhere, which is not supported")
        member = member[part]
    return member


def _read_names(group: h5py.Group, name: str) -> list[str]:
    """Reads a list of names from an attribute; Keras splits a long one into `name0`, `name1`, ..."""
    parts = [name] if name in group.attrs else [f"{name}{i}" for i in range(_MAX_LAYERS) if f"{name}{i}" in group.attrs]
    names = [_decode_text(value) for part in parts for value in np.ravel(group.attrs[part])]
    if len(names) > _MAX_LAYERS:
        raise UserError(f"it has more than {_MAX_LAYERS} layers")
    return names


def _decode_text(value: Any) -> str:
    """Returns the text of an attribute, which h5py reads as bytes or as a string."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise UserError(f"an attribute is {type(value).__name__} instead of text; the file is damaged")
    return str(value)


def _parse_json(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text) if len(text) <= _MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError("its description of the model is not a JSON object; the file is damaged")
    return value


def _read_json_member(archive: zipfile.ZipFile, name: str) -> bytes:
    with _open_member(archive, name, _MAX_JSON_BYTES) as file:
        return file.read(_MAX_JSON_BYTES)


@contextlib.contextmanager
def _extract_weights(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """Extracts a member of a zip to a temporary file, in which HDF5 can seek."""
    with _open_member(archive, name, _MAX_WEIGHTS_BYTES) as source, tempfile.TemporaryFile() as target:
        while data := source.read(_COPY_BYTES):  # zipfile stops at the declared size, which was checked
            target.write(data)
        target.seek(0)
        yield target


def _open_member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> IO[bytes]:
    if name not in archive.namelist():
        raise UserError(f"it has no {name}, so it is not a .keras file")
    info = archive.getinfo(name)
    if info.file_size > max_bytes:
        raise UserError(f"its {name} of {info.file_size:,} bytes is larger than the supported {max_bytes:,} bytes")
    return archive.open(info)


def _check_version(version: str) -> str:
    """Checks that a Keras version is supported and returns it."""
    if not re.match(r"\d{1,4}\.\d{1,4}(\D|$)", version):
        raise UserError("it does not say which version of Keras wrote it, on which its meaning depends")
    if _parse_release(version)[0] not in (2, 3):
        raise UserError(f"it was written by Keras {version}; versions 2 and 3 are supported")
    return version


def _parse_release(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def _to_snake_case(name: str) -> str:
    """Turns a class name into the name of its folder as Keras does: `SimpleRNN` becomes `simple_rnn`."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _parse_chain(model: dict[str, Any]) -> list[KerasLayer]:
    """Parses the layers of a model's description and checks that they form a chain."""
    kind, config = model.get("class_name"), model.get("config")
    if kind not in ("Sequential", *_FUNCTIONAL):
        raise UserError(f"a model of class {shorten(kind)} is not supported, only Sequential and Functional ones")
    # up to Keras 2.2, the configuration of a Sequential model was just the list of its layers
    entries = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(entries, list) or len(entries) > _MAX_LAYERS:
        raise UserError("its description has no list of layers, or too long a list; the file is damaged")
    layers, previous = [], None
    for entry in entries:
        layer = _parse_layer(entry)
        if kind in _FUNCTIONAL:
            if _find_sources(entry) != ([] if previous is None else [previous]):
                raise UserError(f"{layer}: its input is not just the layer before; only chains of layers are supported")
            previous = entry.get("name", layer.name)
        layers.append(layer)
    if kind in _FUNCTIONAL and _find_tensors(model["config"]["output_layers"]) != [previous]:
        raise UserError("its output is not just its last layer; only chains of layers are supported")
    return layers


def _parse_layer(entry: Any) -> KerasLayer:
    """Parses a layer; unwraps `TimeDistributed`, since a Dense layer treats each time step separately anyway."""
    if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict):
        raise UserError("its description of a layer is not an object; the file is damaged")
    kind, settings = entry.get("class_name"), entry["config"]
    name = settings.get("name", entry.get("name"))
    if not isinstance(kind, str) or not isinstance(name, str):
        raise UserError("its description of a layer has no class or name; the file is damaged")
    if kind == "TimeDistributed":
        inner = settings.get("layer")
        if not isinstance(inner, dict) or inner.get("class_name") != "Dense":
            raise UserError(f"layer {name!r} (TimeDistributed) is supported only around a Dense layer")
        return KerasLayer("Dense", name, {**inner["config"], "wrapper": "TimeDistributed"})
    if kind not in _KINDS:
        raise UserError(f"layer {name!r} ({kind}) is not supported; only {', '.join(_KINDS)} are")
    return KerasLayer(kind, name, settings)


def _find_sources(entry: dict[str, Any]) -> list[str]:
    """Returns the names of the layers whose outputs are the inputs of a layer of a functional model."""
    nodes = entry.get("inbound_nodes")
    if not isinstance(nodes, list) or len(nodes) > 1:
        raise UserError(f"layer {shorten(entry.get('name'))} is used twice; only chains of layers are supported")
    return _find_tensors(nodes)


def _find_tensors(value: Any) -> list[str]:
    """Returns the layers of all tensors in a value: objects in Keras 3, lists [layer, node, tensor, ...] before."""
    if isinstance(value, dict):
        history = value["config"]["keras_history"] if value.get("class_name") == "__keras_tensor__" else None
        return _find_tensors(history or list(value.values()))
    if not isinstance(value, list):
        return []
    first = []
    if len(value) in (3, 4) and isinstance(value[0], str) and all(type(index) is int for index in value[1:3]):
        first, value = [value[0]], value[3:]
    return first + [name for inner in value for name in _find_tensors(inner)]
