"""Checks of what the methods of a cell return, whose errors name the cell and the line of its code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfcharrnn.errors import CellError, UserError, find_place, first_line

if TYPE_CHECKING:
    from tfcharrnn.model.cells.base import Cell, State


@contextlib.contextmanager
def name_cell(cell_class: type[Cell], method: str) -> Iterator[None]:
    """Makes an error in a method of a cell one that names the class, and the line if it is a user's.

    Raises:
        CellError: the body fails.
    """
    try:
        yield
    except (UserError, MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        place = find_place(error)
        where = f"{cell_class.__name__}.{method}" + (f" ({place})" if place else "")
        raise CellError(f"{where}: {type(error).__name__}: {first_line(error)}") from error


def check_tensors(cell_class: type[Cell], method: str, tensors: Any, like: Sequence[tf.Tensor], what: str) -> State:
    """Checks and returns what a method of a cell returned; a list becomes a tuple.

    Args:
        cell_class: the cell.
        method: the method.
        tensors: what it returned.
        like: tensors of the shapes and the dtype that it must return.
        what: what they are, for the error.

    Raises:
        CellError: it is something else.
    """
    number = "1 tensor" if len(like) == 1 else f"{len(like)} tensors"
    must = f"{cell_class.__name__}.{method} must return a tuple of {number} {_describe(like[0])}, {what}"
    if not isinstance(tensors, (tuple, list)):
        raise CellError(f"{must}. Received: {_describe(tensors)}")
    if len(tensors) != len(like):
        raise CellError(f"{must}. Received: {len(tensors)}")
    for tensor, other in zip(tensors, like, strict=True):
        if not _is_like(tensor, other):
            raise CellError(f"{must}. Received: {', '.join(map(_describe, tensors))}")
    return tuple(tensors)


def check_tensor(cell_class: type[Cell], method: str, tensor: Any, like: tf.Tensor) -> None:
    """Checks that a method of a cell returned a tensor of the shape and the dtype of another.

    Raises:
        CellError: it did not.
    """
    if not _is_like(tensor, like):
        raise CellError(
            f"{cell_class.__name__}.{method} must return a tensor {_describe(like)}. Received: {_describe(tensor)}"
        )


def _is_like(value: Any, tensor: tf.Tensor) -> bool:
    return tf.is_tensor(value) and value.dtype == tensor.dtype and value.shape.is_compatible_with(tensor.shape)


def _describe(value: Any) -> str:
    """Describes a tensor by its shape and dtype, and anything else by its type."""
    return f"{value.shape} {value.dtype.name}" if tf.is_tensor(value) else f"a {type(value).__name__}"
