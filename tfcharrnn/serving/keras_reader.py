"""Reads the layers of a Keras model file: their settings and their arrays, and nothing that could run.

Both kinds of file hold the layers' settings as JSON and their weights as HDF5:

- `.h5`, of Keras 2.0 on: the attributes `model_config` and `keras_version`, and under `model_weights` a group for each
  layer, whose attribute `weight_names` gives its arrays in order;
- `.keras`, of Keras 2.12 on: a zip of `config.json`, `metadata.json` and `model.weights.h5`, where layers stand under
  their class's name, counted: `layers/lstm_1/cell/vars/0`.

Keras itself is not used: what it builds from a file may be code of the file's.
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

import h5py
import numpy as np
import numpy.typing as npt

from tfcharrnn.errors import UserError, first_line, short

Array = npt.NDArray[np.floating[Any]]

# More than any model of this kind has; a file that declares more is refused before it is read.
_MAX_NUMBERS = 2**28
_MAX_JSON_BYTES = 2**24
_MAX_WEIGHTS_BYTES = 2**32  # the optimizer's arrays stand there, too
_MAX_LAYERS = 1000
# The filters of HDF5 itself; for any other it would look for a plug-in.
_LAST_FILTER = 6
_BLOCK = 2**20
# that the child may take
SECONDS = 120
_FUNCTIONAL = ("Model", "Functional")
RECURRENT = ("SimpleRNN", "LSTM", "GRU")
_KINDS = ("InputLayer", "Embedding", *RECURRENT, "Dropout", "Dense", "Activation")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of a file.

    Attributes:
        kind: the class's name, such as `LSTM`; of a layer wrapped in `TimeDistributed`, its own.
        name: as the model calls it.
        settings: as the file has them; a missing one has the default of the Keras that wrote it.
        weights: its arrays, in Keras's order.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    weights: tuple[Array, ...] = ()

    def __str__(self) -> str:
        """As errors name it."""
        return f"layer {short(self.name)} ({self.kind[:100]})"


@dataclasses.dataclass(frozen=True)
class KerasModel:
    """A chain of layers.

    Attributes:
        path: the file.
        version: of the Keras that wrote it, such as `2.0.8`, `2.2.4-tf` or `3.6.0`.
        layers: from the input to the output.
    """

    path: Path
    version: str
    layers: tuple[Layer, ...]

    @property
    def release(self) -> tuple[int, int]:
        """The version's first two numbers."""
        return _release(self.version)


def read(path: str | Path) -> KerasModel:
    """Reads a model file.

    Args:
        path: an `.h5` or a `.keras` file.

    Raises:
        UserError: the file cannot be read, is damaged, or holds something else than a chain of layers.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            return _read_zip(path, file) if zipped else _read_h5(path, file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:  # also how h5py says that a file is no HDF5, or is cut short
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {first_line(error)})") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({first_line(error)})") from None


def read_guarded(path: str | Path) -> KerasModel:
    """Reads a model file as `read` does, but in a child process first: HDF5's library can crash on a damaged file.

    Raises:
        UserError: as `read`, or the child was killed by it.
    """
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the child even where it loops in the library
        signal.alarm(SECONDS)
        with contextlib.suppress(BaseException):
            read(path)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0:
        raise UserError(f"{path}: damaged (reading it kills the process)")
    return read(path)


def _read_h5(path: Path, file: IO[bytes]) -> KerasModel:
    with h5py.File(file, "r") as root:
        if "model_config" not in root.attrs:
            raise UserError("holds no model_config, only weights if anything; save the whole model with model.save()")
        version = _version(_text(root.attrs.get("keras_version", "")))
        layers = _chain(_json(_text(root.attrs["model_config"])))
        groups = _member(root, "model_weights")
        named = set(_names(groups, "layer_names"))
        budget = _Budget()
        read = []
        for layer in layers:
            arrays = []
            if layer.name in named:
                group = _member(groups, layer.name)
                arrays = [budget.read(_member(group, name), layer) for name in _names(group, "weight_names")]
            read.append(dataclasses.replace(layer, weights=tuple(arrays)))
    return KerasModel(path, version, tuple(read))


def _read_zip(path: Path, file: IO[bytes]) -> KerasModel:
    with zipfile.ZipFile(file) as archive:
        metadata = _json(_unpacked(archive, "metadata.json"))
        version = _version(str(metadata.get("keras_version", "")))
        layers = _chain(_json(_unpacked(archive, "config.json")))
        with _extracted(archive, "model.weights.h5") as weights, h5py.File(weights, "r") as root:
            # Keras 2 calls the folder by the attribute that it walked
            folder = next((name for name in ("layers", "_layer_checkpoint_dependencies") if name in root), "layers")
            groups = _member(root, folder)
            budget = _Budget()
            read, counts = [], dict[str, int]()
            for layer in layers:
                wrapped = layer.settings.get("wrapper") == "TimeDistributed"
                kind = _snake_case("TimeDistributed" if wrapped else layer.kind)
                count = counts[kind] = counts.get(kind, -1) + 1
                place = f"{kind}_{count}" if count else kind
                arrays = []
                if place in groups:
                    group = _member(groups, place)
                    stored = _member(group, "layer/vars" if wrapped else "cell/vars" if "cell" in group else "vars")
                    arrays = [budget.read(_member(stored, str(index)), layer) for index in range(len(stored))]
                read.append(dataclasses.replace(layer, weights=tuple(arrays)))
    return KerasModel(path, version, tuple(read))


class _Budget:
    """Reads arrays, as many numbers as a model may have."""

    def __init__(self) -> None:
        self._left = _MAX_NUMBERS

    def read(self, dataset: h5py.Dataset, layer: Layer) -> Array:
        """An array of one or two dimensions, once its declared type, shape and storage are found harmless."""
        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{layer}: its weights are not arrays")
        if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8) or dataset.ndim not in (1, 2):
            raise UserError(
                f"{layer}: an array of type {dataset.dtype} and shape {list(dataset.shape or ())} is not supported"
            )
        self._left -= dataset.size
        if self._left < 0:
            raise UserError(f"{layer}: the file declares more than {_MAX_NUMBERS:,} weights")
        # a deflated byte holds up to 1032 others, any other byte itself
        if dataset.nbytes > (1032 if dataset.compression else 1) * dataset.id.get_storage_size():
            raise UserError(f"{layer}: an array of shape {list(dataset.shape)} is not all there; the file is damaged")
        plist = dataset.id.get_create_plist()
        filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
        if dataset.external or dataset.is_virtual or any(number > _LAST_FILTER for number in filters):
            raise UserError(f"{layer}: its arrays are kept outside the file or by a plug-in, which is not supported")
        values = np.asarray(dataset[()], np.float64 if dataset.dtype.itemsize == 8 else np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{layer}: a weight is no finite number")
        return values


def _member(group: h5py.Group, path: str) -> Any:
    """What stands at a path below a group in the file itself; a link that leads elsewhere is not followed."""
    here: Any = group
    for part in path.split("/"):
        if not isinstance(here, h5py.Group) or not part or part not in here:
            raise UserError(f"{path!r} is missing in it; the file is damaged")
        if not isinstance(here.get(part, getlink=True), h5py.HardLink):
            raise UserError(f"{path!r} is a link to elsewhere, which is not supported")
        here = here[part]
    return here


def _names(group: h5py.Group, name: str) -> list[str]:
    """A list of names in an attribute; one too long for it is cut into `name0`, `name1` and so on."""
    parts = [name] if name in group.attrs else [f"{name}{i}" for i in range(_MAX_LAYERS) if f"{name}{i}" in group.attrs]
    names = [_text(value) for part in parts for value in np.ravel(group.attrs[part])]
    if len(names) > _MAX_LAYERS:
        raise UserError(f"it has more than {_MAX_LAYERS} layers")
    return names


def _text(value: Any) -> str:
    """An attribute's text, which h5py gives as bytes or as a string."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise UserError(f"an attribute is {type(value).__name__} in place of text; the file is damaged")
    return str(value)


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text) if len(text) <= _MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError("its description of the model is not the JSON that it should be; the file is damaged")
    return value


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    with _opened(archive, name, _MAX_JSON_BYTES) as file:
        return file.read(_MAX_JSON_BYTES)


@contextlib.contextmanager
def _extracted(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """A member of a zip as a temporary file, in which HDF5 can move about."""
    with _opened(archive, name, _MAX_WEIGHTS_BYTES) as source, tempfile.TemporaryFile() as target:
        while block := source.read(_BLOCK):  # never more than the size declared, which is checked
            target.write(block)
        target.seek(0)
        yield target


def _opened(archive: zipfile.ZipFile, name: str, limit: int) -> IO[bytes]:
    if name not in archive.namelist():
        raise UserError(f"it has no {name}, so it is not a .keras file")
    info = archive.getinfo(name)
    if info.file_size > limit:
        raise UserError(f"its {name} of {info.file_size:,} bytes is larger than supported")
    return archive.open(info)


def _version(version: str) -> str:
    """Checks that a version is one whose files are known."""
    if not re.match(r"\d{1,4}\.\d{1,4}(\D|$)", version):
        raise UserError("it does not say which version of Keras wrote it, so what its names mean is not known")
    if _release(version)[0] not in (2, 3):
        raise UserError(f"it was written by Keras {version}; versions 2 and 3 are supported")
    return version


def _release(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def _snake_case(name: str) -> str:
    """As Keras turns a class's name into that of its folder: `SimpleRNN` becomes `simple_rnn`."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _chain(model: dict[str, Any]) -> list[Layer]:
    """The layers of a model's description, which must follow one another."""
    kind, config = model.get("class_name"), model.get("config")
    if kind not in ("Sequential", *_FUNCTIONAL):
        raise UserError(f"a model of class {short(kind)} is not supported, only Sequential and Functional ones")
    # Keras up to 2.2 wrote the list of a Sequential model without its name
    entries = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(entries, list) or len(entries) > _MAX_LAYERS:
        raise UserError("its description has no list of layers, or one too long; the file is damaged")
    layers, before = [], None
    for entry in entries:
        layer = _layer(entry)
        if kind in _FUNCTIONAL:
            if _sources(entry) != ([] if before is None else [before]):
                raise UserError(f"{layer}: takes not just the layer before it; only chains of layers are supported")
            before = entry.get("name", layer.name)
        layers.append(layer)
    if kind in _FUNCTIONAL and _tensors(model["config"]["output_layers"]) != [before]:
        raise UserError("it has other outputs than its last layer; only chains of layers are supported")
    return layers


def _layer(entry: Any) -> Layer:
    """A layer from its description; one wrapped in TimeDistributed is taken out, since it works on each step anyway."""
    if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict):
        raise UserError("its description of a layer is not an object; the file is damaged")
    kind, settings = entry.get("class_name"), entry["config"]
    name = settings.get("name", entry.get("name"))
    if not isinstance(kind, str) or not isinstance(name, str):
        raise UserError("its description of a layer has no class or name; the file is damaged")
    if kind == "TimeDistributed":
        inner = settings.get("layer")
        if not isinstance(inner, dict) or inner.get("class_name") != "Dense":
            raise UserError(f"layer {name!r} (TimeDistributed) is supported only of a Dense layer")
        return Layer("Dense", name, {**inner["config"], "wrapper": "TimeDistributed"})
    if kind not in _KINDS:
        raise UserError(f"layer {name!r} ({kind}) is not supported; {', '.join(_KINDS)} are")
    return Layer(kind, name, settings)


def _sources(entry: dict[str, Any]) -> list[str]:
    """The names of the layers that a layer of a functional model takes its inputs from."""
    nodes = entry.get("inbound_nodes")
    if not isinstance(nodes, list) or len(nodes) > 1:
        raise UserError(f"layer {short(entry.get('name'))} is used twice; only chains of layers are supported")
    return _tensors(nodes)


def _tensors(value: Any) -> list[str]:
    """The layers of all tensors named in a value, by Keras 3 as objects, before as [layer, node, tensor, ...]."""
    if isinstance(value, dict):
        history = value["config"]["keras_history"] if value.get("class_name") == "__keras_tensor__" else None
        return _tensors(history or list(value.values()))
    if not isinstance(value, list):
        return []
    first = []
    if len(value) in (3, 4) and isinstance(value[0], str) and all(type(index) is int for index in value[1:3]):
        first, value = [value[0]], value[3:]
    return first + [name for inner in value for name in _tensors(inner)]
