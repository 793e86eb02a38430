"""Reads and writes weights in the safetensors format, which holds named arrays and nothing that could be run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from tfcharrnn import files
from tfcharrnn.errors import UserError, first_line, shorten

Array = npt.NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]

_LENGTH_BYTES = 8  # of the number that the file begins with, the length of the header
_MAX_HEADER_BYTES = 2**20
_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4"}
_MAX_ITEM_BYTES = 8


def read_file(path: Path, shapes: Shapes, optional: Shapes | None = None) -> dict[str, Array]:
    """Reads the arrays of a file.

    Args:
        path: the file.
        shapes: the arrays that it must have, by name, with their shapes. No larger file is read.
        optional: arrays that it may have as well, all of them or none.

    Returns:
        The arrays by name, in the types of the file.

    Raises:
        UserError: the file is missing or damaged; an array is missing, unknown, of another shape, or not of finite
            real numbers.
    """
    known = {**shapes, **(optional or {})}
    limit = _LENGTH_BYTES + _MAX_HEADER_BYTES + sum(_MAX_ITEM_BYTES * math.prod(shape) for shape in known.values())
    with files.report_read_errors(path), files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UserError(f"{path}: {size:,} bytes are too many for the model that config.json describes")
        data = file.read(size)
    header_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise _damage_error(path, f"a header of {header_bytes} bytes")
    try:
        tensors = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise _damage_error(path, first_line(error)) from None
    expected = known if optional and tensors.keys() & optional.keys() else shapes
    for name in sorted(expected.keys() ^ tensors.keys()):
        what = "missing" if name in expected else "unknown"
        raise UserError(f"{path}: the array {shorten(name)} is {what}; it must have {', '.join(expected)}")
    return {name: _read_array(f"{path}: {name}", tensors[name], shape) for name, shape in expected.items()}


def _read_array(where: str, tensor: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
    if tuple(tensor["shape"]) != shape:
        raise UserError(f"{where}: has shape {shorten(tuple(tensor['shape']))}, but needs {shape}")
    if tensor["dtype"] not in _TYPES:
        raise UserError(f"{where}: holds {shorten(tensor['dtype'])}, not one of {', '.join(_TYPES)}; convert it first")
    array = np.frombuffer(tensor["data"], _TYPES[tensor["dtype"]]).reshape(shape)
    if not np.isfinite(array).all():
        raise UserError(f"{where}: has values that are not finite; use the weights of an earlier step")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def write_file(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes arrays to a file, atomically.

    Raises:
        UserError: the write fails.
    """
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    files.write_bytes(path, safetensors.numpy.save(contiguous))


def _damage_error(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: not a safetensors file, or damaged ({reason}); get the file again")
