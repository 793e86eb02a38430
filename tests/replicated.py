"""Trains some steps on a number of replicas, all in this process, and prints losses and weights of each setting.

A process of its own for each number, since TensorFlow's devices are set up once.
"""

import json
import sys

import numpy as np
import tensorflow as tf

from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.data.input_pipeline import Call
from tfcharrnn.distributed import cluster
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.training.data_parallel import DataParallelTrainer
from tfcharrnn.training.train_step import RunLength, Trainer

SYMBOLS, WIDTH, BATCH, STEPS, CALL = 23, 14, 16, 100, 10

# layout, model, training
SETTINGS = {
    "gru with dropout": ("sequences", {"cell": "gru", "num_layers": 2, "dropout": 0.3, "output_dropout": 0.2}, {}),
    "lstm on lines": ("lines", {"cell": "lstm", "embedding_size": 5}, {"reduction": "sum", "clip_value": 0.5}),
    "rnn on a stream": ("stream", {"cell": "rnn", "learned_initial_state": True}, {"optimizer": "adagrad"}),
    "regularised": (
        "stream",
        {
            "cell": "gru",
            "num_layers": 2,
            "embedding_size": 5,
            "locked_dropout": True,
            "dropout": 0.3,
            "output_dropout": 0.4,
            "input_dropout": 0.1,
            "embedding_dropout": 0.1,
            "weight_drop": 0.2,
        },
        {"optimizer": "adamw", "average": 0.9, "schedule": "wsd", "warmup_steps": 10, "reset_state": 0.2},
    ),
    # in float64, since the normalisation of its cell state enlarges rounding errors from step to step
    "normalised lstm": (
        "sequences",
        {
            "cell": "lnlstm",
            "num_layers": 2,
            "residual": True,
            "layer_norm": True,
            "dropout": 0.3,
            "precision": "float64",
        },
        {"steps": 30},
    ),
    "sru on lines": (
        "lines",
        {"cell": "sru", "num_layers": 2, "residual": True, "layer_norm": True, "output_dropout": 0.3},
        {"steps": 30, "optimizer": "adamw"},
    ),
    "keras on windows": ("windows", {"cell": "gru", "implementation": "keras"}, {"optimizer": "sgd"}),
    "incomplete batches": ("sequences", {"cell": "gru", "dropout": 0.3}, {"drop_remainder": False, "reduction": "sum"}),
    "incomplete of lines": ("lines", {"cell": "gru"}, {"drop_remainder": False}),
    # too large to be compiled as a whole
    "large lstm": ("sequences", {"cell": "lstm", "hidden_size": 700}, {"steps": 6}),
}


def batches(layout, rng):
    ids = rng.integers(len(layout.special), SYMBOLS, (CALL, BATCH, WIDTH)).astype(np.int32)
    if layout.pad_id is not None:
        lengths = rng.integers(3, WIDTH + 1, (CALL, BATCH, 1))
        ids[np.arange(WIDTH) >= lengths] = layout.pad_id
    return tf.constant(ids)


def make_config(training):
    return TrainingConfig(batch_size=BATCH, seed=3, learning_rate=0.01, **training)


def make_trainer(number, layout, model, training):
    layout, config = LAYOUTS[layout], make_config(training)

    def make_model():
        return CharRNN(ModelConfig(**{"hidden_size": 12, **model}), SYMBOLS, config.seed, layout=layout)

    lengths = (float(WIDTH), RunLength(13, training.get("steps", STEPS)))
    if number == 1:
        return Trainer(make_model(), config, *lengths)
    return DataParallelTrainer(make_model, config, *lengths, cluster.join_cluster("mirrored", number))


def make_calls(layout, model, training):
    """The calls of a run; the same each time."""
    layout, steps = LAYOUTS[layout], training.get("steps", STEPS)
    rng = np.random.default_rng(0)
    for first in range(0, steps, CALL):
        ids, sizes = batches(layout, rng), None
        if not make_config(training).drop_remainder:  # some replicas then have no example at all
            sizes = tf.constant(rng.integers(1, BATCH + 1, CALL).astype(np.int32))
            ids = tf.where(tf.range(BATCH)[:, tf.newaxis] < sizes[:, tf.newaxis, tf.newaxis], ids, 0)
        yield Call(first, min(CALL, steps - first), sizes, ids, 0.0)


def list_variables(trainer):
    variables = [*trainer.model.variables, *(trainer.average.model.variables if trainer.average else ())]
    return variables + (tf.nest.flatten([trainer.carried.state, trainer.carried.symbols]) if trainer.carried else [])


def train(number, *setting):
    trainer = make_trainer(number, *setting)
    rows = [row for call in make_calls(*setting) for results in trainer.run(call) for row in results.per_step()]
    return {
        "steps": rows,
        "weights": [v.numpy().astype(float).ravel().tolist()[:2000] for v in list_variables(trainer)],
    }


if __name__ == "__main__":
    print(json.dumps({name: train(int(sys.argv[1]), *setting) for name, setting in SETTINGS.items()}))
