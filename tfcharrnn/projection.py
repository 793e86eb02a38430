"""The products that enter a layer, x W + b, for all steps of a sequence at once."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfcharrnn.cells import Cell


@dataclasses.dataclass(frozen=True)
class Symbols:
    """The first layer's input: symbols, seen as one-hot vectors or through an embedding.

    Attributes:
        ids: `[time, batch]`.
        size: of the vocabulary.
        embedding: `[vocabulary, embedding]`, or None for one-hot vectors.
    """

    ids: tf.Tensor
    size: int
    embedding: tf.Tensor | None = None

    def dense(self, dtype: tf.DType) -> tf.Tensor:
        """The vectors themselves, `[time, batch, input]`; for code that can take nothing else."""
        if self.embedding is None:
            return tf.one_hot(self.ids, self.size, dtype=dtype)
        return tf.gather(self.embedding, self.ids)


def project(cell: Cell, inputs: Symbols | tf.Tensor) -> tf.Tensor:
    """The product x W + b of a whole sequence, `[time, batch, gates * hidden]`.

    A one-hot vector times W is a row of W, so symbols are looked up and never made into vectors. With an embedding E
    the rows are those of E W, which is also the shorter way as long as there are fewer symbols than there are places.

    Args:
        cell: has W and b.
        inputs: symbols, or vectors `[time, batch, input]`.
    """
    if isinstance(inputs, tf.Tensor):
        return _affine(inputs, cell)
    places = inputs.ids.shape.num_elements()
    if inputs.embedding is not None and places < inputs.size:
        return _affine(lookup(inputs.embedding, inputs.ids), cell)
    return lookup(symbol_table(cell, inputs.embedding), inputs.ids)


def symbol_table(cell: Cell, embedding: tf.Tensor | None) -> tf.Tensor:
    """The product x W + b for every symbol x of the vocabulary, `[vocabulary, gates * hidden]`."""
    kernel = tf.convert_to_tensor(cell.kernel)
    return (kernel if embedding is None else tf.linalg.matmul(embedding, kernel)) + cell.input_bias


def _affine(x: tf.Tensor, cell: Cell) -> tf.Tensor:
    """The product x W + b as one large product."""
    time, batch, size = x.shape
    rows = tf.linalg.matmul(tf.reshape(x, [-1, size]), cell.kernel) + cell.input_bias
    return tf.reshape(rows, [time, batch, rows.shape[1]])


# Up to this many symbols the gradient of a lookup is a product with a one-hot matrix, beyond it a scattered sum.
_MAX_ONE_HOT = 1024


@tf.custom_gradient
def lookup(table: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, object]:
    """Rows of a table, `[..., columns]`, with a gradient that is quick on every device.

    The gradient by the table is a sum of rows for each symbol. XLA scatters row after row on one core; a product with
    the transposed one-hot matrix is the same sum and runs on all of them.

    Args:
        table: `[symbols, columns]`.
        ids: integers `[...]`.
    """

    def gradient(d_rows: tf.Tensor) -> tuple[tf.Tensor, None]:
        symbols, columns = table.shape
        flat_ids, flat = tf.reshape(ids, [-1]), tf.reshape(d_rows, [-1, columns])
        if symbols > _MAX_ONE_HOT:
            return tf.math.unsorted_segment_sum(flat, flat_ids, symbols), None
        return tf.linalg.matmul(tf.one_hot(flat_ids, symbols, dtype=flat.dtype), flat, transpose_a=True), None

    return tf.gather(table, ids), gradient
