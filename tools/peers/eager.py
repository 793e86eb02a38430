"""TensorFlow without `tf.function`, step by step in Python, as notebooks write it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfcharrnn.verification.workloads import Preparation, Training, Work, text


def make(work: Work) -> tuple[Callable[[], object], int] | None:
    """Returns a function that does the work and the number of steps per call; only for one Elman layer."""
    if isinstance(work, Preparation) or work.cell != "rnn" or (isinstance(work, Training) and work.batch == 1):
        return None
    hidden, symbols = work.hidden, work.symbols
    shapes = ((symbols, hidden), (hidden, hidden), (hidden,), (hidden, symbols), (symbols,))
    w, u, b, v, c = variables = [tf.Variable(tf.random.normal(shape, stddev=0.05)) for shape in shapes]

    def step(x: tf.Tensor, h: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        h = tf.tanh(tf.matmul(tf.one_hot(x, symbols), w) + tf.matmul(h, u) + b)
        return h, tf.matmul(h, v) + c

    if not isinstance(work, Training):

        def generate() -> object:
            x, h, out = tf.zeros([work.streams], tf.int32), tf.zeros([work.streams, hidden]), []
            for _ in range(work.length):
                h, logits = step(x, h)
                x = tf.random.categorical(logits, 1, dtype=tf.int32)[:, 0]
                out.append(x)
            return np.array(out)

        return generate, 1
    optimizer = tf.keras.optimizers.Adam(0.001)
    optimizer.build(variables)
    batch = tf.constant(text(work, 1)[0])

    def train() -> object:
        with tf.GradientTape() as tape:
            h, losses = tf.zeros([work.batch, hidden]), []
            for t in range(work.time):
                h, logits = step(batch[:, t], h)
                losses.append(tf.nn.sparse_softmax_cross_entropy_with_logits(batch[:, t + 1], logits))
            loss = tf.reduce_mean(tf.stack(losses))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return float(loss)

    return train, 1
