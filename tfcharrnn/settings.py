"""Types of settings as keyword arguments of `train_model`, `prepare_data` and `TrainedModel.generate`.

Written by tools/make_settings.py from the config dataclasses, which have the defaults, the bounds and the help.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

Paths = str | Path | Sequence[str | Path]


class DataSettings(TypedDict, total=False):
    """Fields of `DataConfig`."""

    input: Paths
    corpus: str
    encoding: str
    lowercase: bool
    drop_digits: bool
    drop_chars: str
    layout: str
    seq_length: int
    overlap: float
    stride: int
    delimiter: str
    max_length: int
    val_fraction: float
    test_fraction: float
    num_shards: int
    compression: str


class TrainSettings(DataSettings, total=False):
    """Fields of `DataConfig`, `ModelConfig` and `TrainingConfig`."""

    cell: str
    implementation: str
    precision: str
    tf32: bool
    unroll: int
    recurrent_activation: str
    hidden_size: int
    num_layers: int
    embedding_size: int
    tie_embedding: bool
    residual: bool
    layer_norm: bool
    learned_initial_state: bool
    zero_start: bool
    dropout: float
    output_dropout: float
    input_dropout: float
    embedding_dropout: float
    weight_drop: float
    locked_dropout: bool
    initializer: str
    initializer_scale: float
    minutes: float
    batch_size: int
    epochs: int
    steps: int
    shuffle: str
    carry_state: bool
    reset_state: float
    random_start: bool
    shuffle_buffer: int
    drop_remainder: bool
    reduction: str
    loss_after_update: bool
    optimizer: str
    beta_1: float
    beta_2: float
    epsilon: float
    weight_decay: float
    average: float
    learning_rate: float
    schedule: str
    decay_rate: float
    decay_after: int
    warmup_steps: int
    decay_fraction: float
    final_rate: float
    clip_value: float
    clip_norm: float
    skip_bad_steps: int
    seed: int
    deterministic: bool
    steps_per_call: int
    strategy: str
    num_replicas: int
    rendezvous_timeout: float
    smoothing: float
    smoothing_start: str
    log_every: int
    eval_every: int
    patience: int
    sample_every: int
    sample_length: int
    checkpoint_every: int
    keep_checkpoints: int
    keep_every: int
    plot: bool
    tensorboard: bool


class GenerationSettings(TypedDict, total=False):
    """Fields of `GenerationConfig`, but for the prime and the number."""

    length: int
    temperature: float
    top_k: int
    top_p: float
    greedy: bool
    stop: str
    seed: int
