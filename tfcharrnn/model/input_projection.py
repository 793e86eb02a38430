"""The input of a layer, projected for all steps at once: p = x W + b."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from tfcharrnn.model.cells import Cell

# Up to this many symbols the gradient of a row lookup is a product with a one-hot matrix, beyond it a scattered sum.
_MAX_ONE_HOT = 1024


@dataclasses.dataclass(frozen=True)
class SymbolInput:
    """Input of the first layer: symbols, which stand for one-hot vectors or for rows of an embedding.

    Attributes:
        ids: `[time, batch]`.
        vocabulary_size: number of symbols.
        embedding: `[vocabulary, embedding]`; None: one-hot vectors.
        has_zero_id: whether the id `vocabulary_size` may occur; it stands for a vector of zeros.
    """

    ids: tf.Tensor
    vocabulary_size: int
    embedding: tf.Tensor | None = None
    has_zero_id: bool = False

    def to_vectors(self, dtype: tf.DType) -> tf.Tensor:
        """Returns the vectors, `[time, batch, input]`."""
        if self.embedding is None:
            return tf.one_hot(self.ids, self.vocabulary_size, dtype=dtype)  # all zeros for the id `vocabulary_size`
        return gather_rows(append_zero_row(self.embedding) if self.has_zero_id else self.embedding, self.ids)


class Projection(NamedTuple):
    """p = x W + b of every step: p of step t is `source[t]`, or where there are ids the rows `source[ids[t]]`.

    The recurrent loop looks up the rows of each step itself, so that they need not be stored for all steps.

    Attributes:
        source: `[time, batch, gates * hidden]`, or a table `[symbols, gates * hidden]`.
        ids: None, or `[time, batch]`.
    """

    source: tf.Tensor
    ids: tf.Tensor | None


def project_inputs(cell: Cell, inputs: SymbolInput | tf.Tensor) -> Projection:
    """Computes p = x W + b for every step of a sequence.

    A one-hot vector times W is a row of W, so symbols are looked up and never made into vectors. With an embedding E
    they are rows of E W, unless the batch has fewer symbols than the vocabulary: then fewer rows of E are multiplied.

    Args:
        cell: provides W and b.
        inputs: symbols, or vectors `[time, batch, input]`.
    """
    if isinstance(inputs, tf.Tensor):
        return Projection(_project_vectors(cell, inputs), None)
    if inputs.embedding is not None and inputs.ids.shape.num_elements() < inputs.vocabulary_size:
        return Projection(_project_vectors(cell, inputs.to_vectors(cell.kernel.dtype)), None)
    return Projection(project_vocabulary(cell, inputs.embedding, inputs.has_zero_id), inputs.ids)


def project_vocabulary(cell: Cell, embedding: tf.Tensor | None, has_zero_id: bool = False) -> tf.Tensor:
    """Returns x W + b for every symbol, and with `has_zero_id` for x = 0 last, `[vocabulary (+ 1), gates * hidden]`."""
    kernel = tf.convert_to_tensor(cell.kernel)
    rows = kernel if embedding is None else cell.matmul(embedding, kernel)
    rows = append_zero_row(rows) if has_zero_id else rows
    return rows if cell.input_bias is None else rows + cell.input_bias


def append_zero_row(table: tf.Tensor) -> tf.Tensor:
    """Appends a row of zeros to a table `[symbols, columns]`."""
    return tf.pad(table, [[0, 1], [0, 0]])


def _project_vectors(cell: Cell, x: tf.Tensor) -> tf.Tensor:
    """Returns x W + b as one large product, `[time * batch, input]` times `[input, gates * hidden]`."""
    time, batch, size = x.shape
    rows = cell.project(tf.reshape(x, [-1, size]))
    return tf.reshape(rows, [time, batch, rows.shape[1]])


@tf.custom_gradient
def gather_rows(table: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, object]:
    """Looks up rows of a table; like `tf.gather`, but with `sum_row_gradients` as its gradient.

    Args:
        table: `[symbols, columns]`.
        ids: integers `[...]`.

    Returns:
        `[..., columns]`.
    """

    def gradient(d_rows: tf.Tensor) -> tuple[tf.Tensor, None]:
        return sum_row_gradients(d_rows, ids, table.shape[0]), None

    return tf.gather(table, ids), gradient


def sum_row_gradients(d_rows: tf.Tensor, ids: tf.Tensor, num_symbols: int) -> tf.Tensor:
    """Returns the gradient of a row lookup by its table: for each symbol the sum of the gradients of its rows.

    XLA would scatter row after row on one core. A product with the transposed one-hot matrix is the same sum and runs
    on all cores.

    Args:
        d_rows: `[..., columns]`.
        ids: `[...]`.
        num_symbols: rows of the table.

    Returns:
        `[symbols, columns]`.
    """
    ids, d_rows = tf.reshape(ids, [-1]), tf.reshape(d_rows, [-1, d_rows.shape[-1]])
    if num_symbols > _MAX_ONE_HOT:
        return tf.math.unsorted_segment_sum(d_rows, ids, num_symbols)
    return tf.linalg.matmul(tf.one_hot(ids, num_symbols, dtype=d_rows.dtype), d_rows, transpose_a=True)
