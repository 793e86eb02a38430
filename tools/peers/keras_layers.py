"""Keras 3 layers in a training step by hand, without XLA, which is Keras's quicker way on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from tfcharrnn.verification.workloads import Training, Work, text


def make(work: Work) -> tuple[Callable[[], object], int] | None:
    """Returns a function that does the work and the number of steps per call; None if this peer does not support it."""
    if not isinstance(work, Training):
        return None
    kind = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[work.cell]
    model = keras.Sequential([keras.Input((work.time, work.symbols), batch_size=work.batch)])
    for _ in range(work.layers):
        model.add(kind(work.hidden, return_sequences=True))
    model.add(keras.layers.Dense(work.symbols))
    rules = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD, "adagrad": keras.optimizers.Adagrad}
    optimizer = rules[work.optimizer](0.001)
    optimizer.build(model.trainable_variables)
    batch = tf.constant(text(work, 1)[0])

    @tf.function
    def step(ids: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(tf.one_hot(ids[:, :-1], work.symbols), training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return lambda: float(step(batch)), 1
