"""Chooses settings for `--minutes`: sizes, regularisation and schedule, from the text's length and the machine's speed.

docs/learning.md has the measurements behind the rules.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfcharrnn import devices
from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.data.batching import check_fits_layout, count_lengths, count_rows
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.examples import STREAM_CHUNK, Examples
from tfcharrnn.data.input_pipeline import Call
from tfcharrnn.errors import warn
from tfcharrnn.inference.evaluation import Evaluator
from tfcharrnn.model.cells import get_cell_class
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.training.train_step import RunLength, Trainer

Settings = dict[str, Any]

# the layout and length that learn most in a given time, for a text that is still to be prepared
DATA_SETTINGS: Settings = {"layout": "stream", "seq_length": 64}

# Starting, the last sample and checkpoint, and a margin, as seconds and as a share of the time.
_RESERVED_SECONDS = 6.0
_RESERVED_SHARE = 0.08
# share of the time that validations may take
_VALIDATION_SHARE = 0.08
_MAX_VALIDATIONS = 20
# a model is read so many characters for each of its parameters, unless it reads the whole text so many times first
_CHARACTERS_PER_PARAMETER = 20
_EPOCHS = 12
# a run of fewer steps learns so little that a warning is due
_MIN_STEPS = 50
# what is read no more often than this is not learnt by heart
_FREE_EPOCHS = 2.0
# no run reads a text more often, unless it is so short that this is less than so many steps
_MAX_EPOCHS, _ENOUGH_STEPS = 16, 300
# parameters of the largest and the smallest model, and the most for each character of the text
_MIN_PARAMETERS, _MAX_PARAMETERS, _PARAMETERS_PER_CHARACTER = 50_000, 30_000_000, 3
# the part of the speed of large matrix products that training reaches
_TRAINING_EFFICIENCY = 0.7
# above this a model has two layers
_MAX_PARAMETERS_OF_ONE_LAYER = 900_000
_BATCH_SIZE = 32
_RESET_STATE = 0.02


class Choice(NamedTuple):
    """Settings, and a line for each group of them that says why.

    Attributes:
        settings: by name.
        reasons: what was chosen and why, by the name of the setting that decides about the line.
    """

    settings: Settings
    reasons: dict[str, str]


def choose_settings(
    minutes: float,
    begun: float,
    data: DataFolder,
    model: ModelConfig,
    training: TrainingConfig,
    given: Settings,
    *,
    is_model_fixed: bool,
) -> tuple[ModelConfig, TrainingConfig, list[str]]:
    """Chooses the settings of a run of so many minutes that are not given.

    Args:
        minutes: for how long to train.
        begun: when the run began, by `time.monotonic`.
        data: the text.
        model: the model settings that are given, with defaults for the others.
        training: the training settings that are given, with defaults for the others.
        given: names and values of the settings that are given.
        is_model_fixed: whether the sizes of the model are given by another run.

    Returns:
        The settings, and lines that say what was chosen and why.
    """
    reasons: dict[str, str] = {}
    train = data.splits["train"]
    characters, num_examples = train.characters, count_rows(train.characters, train.records, data.config)
    batch_size = max(1, min(_BATCH_SIZE, num_examples // 2))  # few, since more steps teach more than larger ones
    training = dataclasses.replace(training, **_without({"batch_size": batch_size, "optimizer": "adamw"}, given))
    check_fits_layout(characters, train.records, data.config, training)  # before anything is measured
    seconds = _left(minutes, begun)
    if not is_model_fixed:
        flops = _TRAINING_EFFICIENCY * measure_flops() * seconds
        sizes = choose_sizes(flops, characters, choose_cell(given))
        model = dataclasses.replace(model, **_without(sizes.settings, given))
        reasons |= sizes.reasons
    speed = measure_speed(*_add_costs(model, training, given), data)
    steps, num_validations = divide_time(_left(minutes, begun) - speed.compile_seconds, speed)
    steps_per_epoch = max(1, num_examples // training.batch_size)
    schedule = choose_schedule(training.steps or steps, steps_per_epoch, num_validations, model.hidden_size)
    schedule.settings["random_start"] = data.layout.is_continuous
    schedule.settings["reset_state"] = _RESET_STATE if data.layout.carries_state else 0.0
    reasons |= schedule.reasons
    reasons["steps"] += f"; {1000 * speed.step_seconds:.0f} ms a step on this machine"
    training = dataclasses.replace(training, **_without(schedule.settings, given))
    if "steps" not in given and steps < _MIN_STEPS:
        hidden_size = None if is_model_fixed else model.hidden_size
        warn(describe_shortage(minutes, time.monotonic() - begun, steps, speed, hidden_size))
    epochs = training.steps / steps_per_epoch
    if not is_model_fixed:
        dropout = choose_dropout(epochs, model)
        model = dataclasses.replace(model, **_without(dropout.settings, given))
        reasons |= dropout.reasons
    if training.optimizer == "adamw":
        decay = choose_weight_decay(epochs)
        training = dataclasses.replace(training, **_without(decay.settings, given))
        reasons |= decay.reasons
    return model, training, [text for name, text in reasons.items() if name not in given]


def _without(settings: Settings, given: Settings) -> Settings:
    return {name: value for name, value in settings.items() if name not in given}


def _add_costs(model: ModelConfig, training: TrainingConfig, given: Settings) -> tuple[ModelConfig, TrainingConfig]:
    """Returns the settings with what is chosen only after the measurement, and costs time in every step."""
    rates = _without(choose_dropout(10.0, model).settings, given)
    return dataclasses.replace(model, **rates), dataclasses.replace(training, **_without({"average": 0.99}, given))


def _left(minutes: float, begun: float) -> float:
    """Returns the seconds left for training and validation."""
    left = 60.0 * minutes * (1.0 - _RESERVED_SHARE) - _RESERVED_SECONDS - (time.monotonic() - begun)
    return max(left, 1.0)


def describe_shortage(minutes: float, seconds: float, steps: int, speed: Speed, hidden_size: int | None) -> str:
    """Describes what takes so much of the time that few steps fit in the rest, and the way out.

    Args:
        minutes: for how long to train.
        seconds: how long the run has taken so far.
        steps: training steps that fit in the rest.
        speed: the speed of the model.
        hidden_size: the size of the model; None: it is given by another run.
    """
    smaller = "" if hidden_size is None else f", or a --hidden_size below {hidden_size}"
    return (
        f"--minutes={minutes:g}: leaves time for only {steps} training step{'s' * (steps > 1)}, too few to learn much "
        f"from: start-up and measuring took {seconds:.0f} s, compiling takes {speed.compile_seconds:.0f} s, and a step "
        f"{1000 * speed.step_seconds:.0f} ms; pass more --minutes{smaller}"
    )


# The rules


def choose_cell(given: Settings) -> str:
    """Returns the cell that is given, or else the one that learns most in a given time (docs/cells.md).

    Where cuDNN or Keras is to run it, that is a GRU.
    """
    if "cell" in given:
        return given["cell"]
    if devices.list_gpus() or given.keys() & {"implementation", "recurrent_activation"}:
        return "gru"
    return "lnlstm"


def choose_sizes(flops: float, characters: int, cell: str = "lnlstm") -> Choice:
    """Chooses the sizes of the model.

    A larger model learns more from each character, and reads fewer of them in the same time. The best one reads about
    20 characters for each parameter; but once it would read the text more than some twelve times, a larger one, with
    dropout, is better, up to three parameters for each character: more of them learn the text by heart.

    Args:
        flops: operations that training may take.
        characters: length of the training text.
        cell: the cell.
    """
    wanted = max(math.sqrt(flops / (6 * _CHARACTERS_PER_PARAMETER)), flops / (6 * _EPOCHS * characters))
    num_gates = get_cell_class(cell).num_gates
    limit = min(_MAX_PARAMETERS, max(_MIN_PARAMETERS, _PARAMETERS_PER_CHARACTER * characters))
    parameters = min(max(wanted, _MIN_PARAMETERS), limit)
    num_layers = 1 if parameters <= _MAX_PARAMETERS_OF_ONE_LAYER else 2
    hidden_size = 32 * max(2, round(math.sqrt(parameters / (num_gates * (2 * num_layers - 1))) / 32))
    why = (
        f"{cell}, {num_layers} x {hidden_size} units: as large as {characters:,} characters can teach"
        if parameters < wanted
        else f"{cell}, {num_layers} x {hidden_size} units: what this machine can train well in the time"
    )
    # what lnlstm sums is normalised, which makes an embedding a hindrance
    embedding_size = 0 if cell == "lnlstm" else 64
    sizes = {"cell": cell, "hidden_size": hidden_size, "num_layers": num_layers, "embedding_size": embedding_size}
    return Choice(sizes, {"hidden_size": why})


def choose_dropout(epochs: float, model: ModelConfig) -> Choice:
    """Chooses dropout: the more often a text is read, the more there is to keep from being learnt by heart."""
    strength = min(max((epochs - _FREE_EPOCHS) / 12.0, 0.0), 1.0)
    rates = {"output_dropout": round(0.5 * strength, 2)}
    if model.num_layers > 1:
        rates["dropout"] = round(0.35 * strength, 2)
    if model.embedding_size:
        rates["input_dropout"] = round(0.1 * strength, 2)
    shown = ", ".join(f"--{name}={rate}" for name, rate in rates.items() if rate) or "no dropout"
    why = f"{shown}: it reads the text {epochs:.1f} times"
    return Choice({**rates, "locked_dropout": True}, {"output_dropout": why})


def choose_weight_decay(epochs: float) -> Choice:
    """Chooses AdamW's weight decay, for the reason that `choose_dropout` has."""
    weight_decay = round(min(max(0.08 * (epochs - _FREE_EPOCHS), 0.0), 1.0), 2)
    why = f"weight decay {weight_decay}: it reads the text {epochs:.1f} times"
    return Choice({"weight_decay": weight_decay}, {"weight_decay": why})


def choose_schedule(steps: int, steps_per_epoch: int, num_validations: int, hidden_size: int) -> Choice:
    """Chooses the number of steps, the learning rate and what depends on them.

    Args:
        steps: training steps that fit in the time.
        steps_per_epoch: training steps that read the text once.
        num_validations: validations that fit in the time.
        hidden_size: units in a layer.
    """
    most = max(_MAX_EPOCHS * steps_per_epoch, _ENOUGH_STEPS)
    enough = f"{most / steps_per_epoch:.0f} epochs are enough for this text"
    why = f"{min(steps, most):,} steps: " + ("as many as fit" if steps <= most else enough)
    steps = min(steps, most)
    rate = round(0.007 * min(1.0, (256 / hidden_size) ** 0.6), 5)
    settings = {
        "steps": steps,
        "learning_rate": rate,
        "schedule": "cosine",
        "warmup_steps": min(100, max(1, steps // 50)),
        "beta_2": 0.99,
        "average": round(1.0 - 1.0 / min(max(steps / 15, 5), 1000), 4),
        "eval_every": max(1, -(-steps // num_validations)),
        "sample_every": 0,
        "patience": 5,
    }
    return Choice(
        settings,
        {
            "steps": why,
            "learning_rate": f"learning rate {rate}, falling to zero by a cosine: larger models need smaller rates",
        },
    )


# What the machine can do


class Speed(NamedTuple):
    """What a model takes on this machine, in seconds.

    Attributes:
        compile_seconds: to compile its training step and its validation.
        step_seconds: for a training step.
        validation_seconds: for one validation.
    """

    compile_seconds: float
    step_seconds: float
    validation_seconds: float


def divide_time(seconds: float, speed: Speed) -> tuple[int, int]:
    """Divides the time between training and validation; returns training steps and validations."""
    affordable = int(_VALIDATION_SHARE * seconds / max(speed.validation_seconds, 1e-9))
    num_validations = min(max(affordable, 1), _MAX_VALIDATIONS)
    left = seconds - num_validations * speed.validation_seconds
    return max(1, int(left / speed.step_seconds)), num_validations


def measure_flops() -> float:
    """Measures the speed of matrix products of the size that training consists of, in operations a second."""
    rows, inner, columns = 2048, 512, 1536
    a, b = tf.ones([rows, inner]), tf.ones([inner, columns])
    tf.linalg.matmul(a, b).numpy()
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(5):
            product = tf.linalg.matmul(a, b)
        product.numpy()
        best = min(best, (time.perf_counter() - start) / 5)
    return 2 * rows * inner * columns / best


def measure_speed(model: ModelConfig, training: TrainingConfig, data: DataFolder) -> Speed:
    """Measures a model on random text; what it compiles is thrown away."""
    start = time.perf_counter()
    size = len(data.vocabulary)
    char_rnn = CharRNN(model, size, layout=data.layout)
    lengths, counts = count_lengths(data, "train")
    width = round(np.average(lengths, weights=counts))
    trainer = Trainer(char_rnn, training, float(width), RunLength(1000, 10**6))
    shape = [trainer.steps_per_call, training.batch_size, width]
    ids = tf.constant(np.random.default_rng(0).integers(len(data.layout.special), size, shape), tf.int32)
    sizes = tf.fill([trainer.steps_per_call], training.batch_size)

    def run(num_steps: int) -> float:
        began = time.perf_counter()
        for _ in trainer.run(Call(0, num_steps, sizes, ids, 0.0)):
            pass
        return (time.perf_counter() - began) / num_steps

    run(1)
    compile_seconds = time.perf_counter() - start
    step_seconds = statistics.median(run(min(trainer.steps_per_call, 20)) for _ in range(5))
    start = time.perf_counter()
    validation_seconds = _measure_validation(char_rnn, training, data, width)
    return Speed(compile_seconds + time.perf_counter() - start, step_seconds, validation_seconds)


def _measure_validation(model: CharRNN, training: TrainingConfig, data: DataFolder, width: int) -> float:
    """Measures some predictions on random text and returns the time that the whole validation split takes."""
    characters = data.splits["val"].characters
    in_order = data.layout.carries_state
    shape = (1, STREAM_CHUNK + 1) if in_order else (training.batch_size, width)
    rows = np.random.default_rng(0).integers(len(data.layout.special), model.vocabulary_size, shape).astype(np.int32)
    examples, evaluate = Examples.from_rows(rows), Evaluator(model)
    evaluate(examples, shape[0])
    start = time.perf_counter()
    result = evaluate(examples, shape[0])
    return (time.perf_counter() - start) * characters / result.characters
