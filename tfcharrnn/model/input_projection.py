"""What enters a layer: x W + b for every step of a sequence."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfcharrnn.model.cells import Cell

# Up to this many symbols the gradient of a lookup is a product with a one-hot matrix, beyond it a scattered sum.
_MAX_ONE_HOT = 1024


@dataclasses.dataclass(frozen=True)
class Symbols:
    """The first layer's input: symbols, seen as one-hot vectors or through an embedding.

    Attributes:
        ids: `[time, batch]`.
        size: of the vocabulary.
        embedding: `[vocabulary, embedding]`, or None for one-hot vectors.
        has_blank: an id equal to `size` stands for a vector of zeros.
    """

    ids: tf.Tensor
    size: int
    embedding: tf.Tensor | None = None
    has_blank: bool = False

    def dense(self, dtype: tf.DType) -> tf.Tensor:
        """The vectors themselves, `[time, batch, input]`; for code that can take nothing else."""
        if self.embedding is None:
            return tf.one_hot(self.ids, self.size, dtype=dtype)  # all zeros for an id outside
        return lookup(with_blank(self.embedding) if self.has_blank else self.embedding, self.ids)


@dataclasses.dataclass(frozen=True)
class Rows:
    """x W + b of a sequence of symbols, not yet looked up: the loop that needs a row reads it from the table itself.

    Attributes:
        table: x W + b of every symbol, `[vocabulary, gates * hidden]`.
        ids: `[time, batch]`.
    """

    table: tf.Tensor
    ids: tf.Tensor

    def dense(self) -> tf.Tensor:
        """All rows, `[time, batch, gates * hidden]`."""
        return lookup(self.table, self.ids)


def project(cell: Cell, inputs: Symbols | tf.Tensor) -> Rows | tf.Tensor:
    """The product x W + b of a whole sequence.

    A one-hot vector times W is a row of W, so symbols are looked up and never made into vectors. With an embedding E
    the rows are those of E W, which is also the shorter way as long as there are fewer symbols than there are places.

    Args:
        cell: has W and b.
        inputs: symbols, or vectors `[time, batch, input]`.

    Returns:
        `[time, batch, gates * hidden]`, or for symbols the rows to look up.
    """
    if isinstance(inputs, tf.Tensor):
        return _affine(inputs, cell)
    if inputs.embedding is not None and inputs.ids.shape.num_elements() < inputs.size:
        return _affine(inputs.dense(cell.kernel.dtype), cell)
    return Rows(symbol_table(cell, inputs.embedding, inputs.has_blank), inputs.ids)


def symbol_table(cell: Cell, embedding: tf.Tensor | None, has_blank: bool = False) -> tf.Tensor:
    """The product x W + b for every symbol x of the vocabulary, and last for the blank: `[vocabulary (+ 1), ...]`."""
    kernel = tf.convert_to_tensor(cell.kernel)
    rows = kernel if embedding is None else cell.product(embedding, kernel)
    return (with_blank(rows) if has_blank else rows) + cell.input_bias


def with_blank(table: tf.Tensor) -> tf.Tensor:
    """A table, `[symbols, columns]`, with a row of zeros after its last."""
    return tf.pad(table, [[0, 1], [0, 0]])


def _affine(x: tf.Tensor, cell: Cell) -> tf.Tensor:
    """The product x W + b of vectors, as one large product."""
    time, batch, size = x.shape
    rows = tf.nn.bias_add(cell.product(tf.reshape(x, [-1, size]), tf.convert_to_tensor(cell.kernel)), cell.input_bias)
    return tf.reshape(rows, [time, batch, rows.shape[1]])


@tf.custom_gradient
def lookup(table: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, object]:
    """Rows of a table, `[..., columns]`, with `lookup_gradient` for a gradient.

    Args:
        table: `[symbols, columns]`.
        ids: integers `[...]`.
    """

    def gradient(d_rows: tf.Tensor) -> tuple[tf.Tensor, None]:
        return lookup_gradient(d_rows, ids, table.shape[0]), None

    return tf.gather(table, ids), gradient


def lookup_gradient(d_rows: tf.Tensor, ids: tf.Tensor, symbols: int) -> tf.Tensor:
    """The gradient of a lookup by its table: for each symbol the sum of the gradients of the rows it gave.

    XLA would scatter row after row on one core. A product with the transposed one-hot matrix is the same sum and runs
    on all of them.

    Args:
        d_rows: `[..., columns]`.
        ids: `[...]`.
        symbols: rows of the table.

    Returns:
        `[symbols, columns]`.
    """
    ids, d_rows = tf.reshape(ids, [-1]), tf.reshape(d_rows, [-1, d_rows.shape[-1]])
    if symbols > _MAX_ONE_HOT:
        return tf.math.unsorted_segment_sum(d_rows, ids, symbols)
    return tf.linalg.matmul(tf.one_hot(ids, symbols, dtype=d_rows.dtype), d_rows, transpose_a=True)
