"""This library, as its commands run it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from peers.work import Preparation, Training, Work, text
from tfcharrnn.config import DataConfig, GenerationConfig, ModelConfig, TrainingConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.preparation.data_folder import prepare_data
from tfcharrnn.training.train_step import RunLength, Trainer


def make(work: Work) -> tuple[Callable[[], object], int]:
    """Returns a function that does the work, and the number of steps per call."""
    if isinstance(work, Preparation):
        folder = Path(tempfile.mkdtemp())
        (folder / "text.txt").write_text(work.text, encoding="utf-8")
        data = DataConfig(input=(str(folder / "text.txt"),), val_fraction=0.0)
        return lambda: prepare_data(data, folder / "data", overwrite=True), 1
    config = ModelConfig(cell=work.cell, hidden_size=work.hidden, num_layers=work.layers)
    model = CharRNN(config, work.symbols)
    if not isinstance(work, Training):
        vocabulary = Vocabulary(["<S>", *(chr(65 + index) for index in range(work.symbols - 1))])
        sampler = Sampler(model, vocabulary)
        settings = GenerationConfig(length=work.length, num_samples=work.streams)
        return lambda: sampler.generate(settings), 1
    training = TrainingConfig(batch_size=work.batch, optimizer=work.optimizer, clip_norm=0.0)
    trainer = Trainer(model, training, work.time + 1.0, RunLength(1000, 1000))
    steps = trainer.steps_per_call
    batches = tf.constant(text(work, steps))
    return lambda: trainer.run_steps(np.int64(0), np.int32(0), np.int32(steps), batches, np.int32(0)).numpy(), steps
