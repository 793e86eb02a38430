"""Every setting with its default, bounds and help: one dataclass per stage.

Command-line flags (`tfcharrnn.cli`), flagfiles and a run's `config.json` are views of these classes; defaults are
defined here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import textwrap
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from tfcharrnn import cell_registry
from tfcharrnn.errors import ConfigError, UserError, first_line, shorten
from tfcharrnn.layouts import LAYOUTS

ConfigT = TypeVar("ConfigT")

IMPLEMENTATIONS = ("auto", "custom", "keras", "cudnn")
PRECISIONS = ("float32", "bfloat16", "float64")
INITIALIZERS = ("glorot", "glorot_joint", "normal", "uniform")
RECURRENT_ACTIVATIONS = ("sigmoid", "hard_sigmoid", "hard_sigmoid_6")
OPTIMIZERS = ("adam", "adamw", "adagrad", "sgd")
# the value of --encoding with which each byte of a text is a symbol
BYTES = "bytes"
# the largest float32, the type of the weights: a larger setting would become infinite
MAX_FLOAT32 = (2 - 2**-23) * 2.0**127
COMPRESSIONS = ("none", "gzip")
EXPORT_FORMATS = ("saved_model", "keras", "npz", "safetensors", "onnx", "html")
STRATEGIES = ("none", "mirrored", "multi_worker")
SCHEDULES = ("constant", "exponential", "cosine", "linear", "wsd")


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Returns a dataclass field with the help of its flag and the bounds of its value."""
    bounds = {"choices": choices, "at_least": at_least, "at_most": at_most, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, **bounds})


class _CheckedConfig:
    """Checks the type and bounds of every field on construction."""

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _check_value(field, types[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def _check_value(field: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    """Returns `value` converted to the field's type, or raises a `ConfigError` that names the flag."""

    def refuse(what: str) -> ConfigError:
        return ConfigError(f"--{field.name} must be {what}. Received: {shorten(value)}")

    if kind == tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise refuse("a list of strings")
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise refuse("a finite number") from None
    if type(value) is not kind:
        raise refuse({int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind])
    if kind is float and not math.isfinite(value):
        raise refuse("a finite number")
    if kind is float and abs(value) > MAX_FLOAT32:
        raise refuse(f"within the range of float32, {MAX_FLOAT32:.4g}")
    bounds = field.metadata
    if bounds["choices"] is not None and value not in bounds["choices"]:
        raise refuse("one of " + ", ".join(bounds["choices"]))
    if bounds["at_least"] is not None and value < bounds["at_least"]:
        raise refuse(f"at least {bounds['at_least']}")
    if bounds["at_most"] is not None and value > bounds["at_most"]:
        raise refuse(f"at most {bounds['at_most']}")
    if bounds["above"] is not None and value <= bounds["above"]:
        raise refuse(f"greater than {bounds['above']}")
    if bounds["below"] is not None and value >= bounds["below"]:
        raise refuse(f"less than {bounds['below']}")
    return value


@dataclasses.dataclass(frozen=True)
class DataConfig(_CheckedConfig):
    """Data options: which text is read, and how it is normalised, cut and split."""

    input: tuple[str, ...] = option(
        (),
        "Text files to train on, joined by newlines: FILE|GLOB|FOLDER|URL[,...]. A folder means all files below it; "
        "gzip, xz and zstd files are decompressed; URLs (https, s3, gs, hf) are read through fsspec. "
        "A name with a comma is taken whole if it exists; beside others it needs double quotes.",
    )
    corpus: str = option("", "Name of a corpus, instead of --input; a wrong name lists the known ones.")
    encoding: str = option(
        "utf-8",
        "Encoding of the --input files; bytes: each byte is a symbol, also of a --corpus, whatever the file holds.",
    )
    lowercase: bool = option(False, "Convert the text to lower case; encoding=bytes: only the letters A to Z.")
    drop_digits: bool = option(False, "Remove every decimal digit from the text; encoding=bytes: only 0 to 9.")
    drop_chars: str = option(
        "", r"Remove each of these characters from the text; \uXXXX stands for the character of that code point."
    )
    layout: str = option(
        "sequences",
        "How the text is cut into training examples: independent sequences; one continuous stream that carries the "
        "state over; lines; or windows, each of which predicts the next character.",
        choices=tuple(LAYOUTS),
    )
    seq_length: int = option(
        200,
        "Symbols in a sequence, including the leading <S>; layout=stream: characters per training step; "
        "layout=windows: characters that a prediction sees.",
        at_least=2,
        at_most=1_000_000,
    )
    overlap: float = option(
        0.0,
        "layout=sequences: fraction of a sequence's characters that the next one repeats.",
        at_least=0.0,
        below=1.0,
    )
    stride: int = option(
        1,
        "layout=windows: characters from the start of one window to the start of the next.",
        at_least=1,
        at_most=1_000_000,
    )
    delimiter: str = option(r"\n", "layout=lines: regular expression that separates lines.")
    max_length: int = option(
        1000,
        "layout=lines: maximum length in symbols, including <S> and </S>; longer lines are dropped.",
        at_least=3,
        at_most=1_000_000,
    )
    val_fraction: float = option(
        0.05, "Fraction of the text for validation, after the training part.", at_least=0.0, below=1.0
    )
    test_fraction: float = option(0.0, "Fraction of the text for a final test, at its end.", at_least=0.0, below=1.0)
    num_shards: int = option(0, "TFRecord files per split; 0: one per 128 MB or so.", at_least=0, at_most=99_999)
    compression: str = option("none", "Compression of the TFRecord files.", choices=COMPRESSIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_fraction + self.test_fraction >= 1.0:
            raise ConfigError(
                "--val_fraction and --test_fraction must leave text to train on. "
                f"Received: {self.val_fraction} + {self.test_fraction}"
            )
        check_exclusive(input=self.input, corpus=self.corpus)
        try:
            self.compile_delimiter()
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(
                f"--delimiter={shorten(self.delimiter)}: not a regular expression ({first_line(error)})"
            ) from None
        self._check_bytes()
        self._check_layout()

    @property
    def of_bytes(self) -> bool:
        """Whether each byte of the text is a symbol; see `tfcharrnn.symbols`."""
        return self.encoding == BYTES

    def compile_delimiter(self) -> re.Pattern[str]:
        r"""Compiles `delimiter`; among bytes, \s, \w and \d match ASCII only, never parts of characters."""
        return re.compile(self.delimiter, re.ASCII if self.of_bytes else 0)

    def _check_bytes(self) -> None:
        """Checks that no character outside ASCII, which has several bytes, stands for one byte."""
        for name, remedy in (("drop_chars", "leave out others"), ("delimiter", r"write others as bytes, such as \xff")):
            if self.of_bytes and not getattr(self, name).isascii():
                value = shorten(getattr(self, name))
                raise ConfigError(f"--{name}={value}: --encoding=bytes takes only ASCII characters here; {remedy}")

    def _check_layout(self) -> None:
        """Checks that no setting of another layout is given, which would have no effect."""
        for field in dataclasses.fields(self):
            users = [layout.name for layout in LAYOUTS.values() if field.name in layout.settings]
            if users and self.layout not in users and getattr(self, field.name) != field.default:
                raise ConfigError(f"--{field.name}: applies to --layout={'|'.join(users)}, not to {self.layout}")


@dataclasses.dataclass(frozen=True)
class ModelConfig(_CheckedConfig):
    """Model options: the cell, its sizes, and the code that runs it."""

    cell: str = option(
        "rnn",
        "Recurrent cell: rnn (Elman, tanh), lstm, gru, lnlstm (layer-normalised), mlstm (multiplicative), mingru, "
        "minlstm, sru, or one that --cell_module registers.",
    )
    implementation: str = option(
        "auto",
        "Code that runs the cells: custom (by hand), keras, or cudnn; auto: cudnn on an NVIDIA GPU, else custom.",
        choices=IMPLEMENTATIONS,
    )
    precision: str = option(
        "float32",
        "Data type of the matrix products; weights and the rest are float32, and with float64 float64 as well.",
        choices=PRECISIONS,
    )
    tf32: bool = option(
        True,
        "Let an NVIDIA GPU (A100 and later) round the factors of float32 products to TF32, 10 bits of mantissa, as "
        "TensorFlow does by default.",
    )
    unroll: int = option(
        1,
        "implementation=custom: steps in a turn of the compiled loops; on a GPU, 8 or 16 may be "
        "faster. Compiling takes longer.",
        at_least=1,
        at_most=64,
    )
    recurrent_activation: str = option(
        "sigmoid",
        "Activation of the gates of an LSTM or GRU: sigmoid; hard_sigmoid, clip(0.2 a + 0.5, 0, 1), as in Keras 1 and "
        "2; hard_sigmoid_6, relu6(a + 3) / 6, which is Keras 3's hard_sigmoid.",
        choices=RECURRENT_ACTIVATIONS,
    )
    hidden_size: int = option(512, "Units in each recurrent layer.", at_least=1, at_most=65_536)
    num_layers: int = option(1, "Recurrent layers, stacked.", at_least=1, at_most=64)
    embedding_size: int = option(
        0, "Size of the learned character embedding; 0: one-hot input.", at_least=0, at_most=65_536
    )
    tie_embedding: bool = option(
        False,
        "Use the embedding as the weights of the output layer too; needs --embedding_size equal to --hidden_size.",
    )
    residual: bool = option(
        False, "Add the input of each layer from the second on to its output, so that many layers can be trained."
    )
    layer_norm: bool = option(
        False, "Normalise what enters each layer from the second on, and the output layer, over its units."
    )
    learned_initial_state: bool = option(False, "Learn the initial state, instead of zeros.")
    zero_start: bool = option(False, "Feed a vector of zeros in place of <S>.")
    dropout: float = option(
        0.0, "Fraction of activations dropped between recurrent layers in training.", at_least=0.0, below=1.0
    )
    output_dropout: float = option(
        0.0, "Fraction of activations dropped after the last recurrent layer in training.", at_least=0.0, below=1.0
    )
    input_dropout: float = option(
        0.0, "Fraction of the embedding's activations dropped in training.", at_least=0.0, below=1.0
    )
    embedding_dropout: float = option(
        0.0, "Fraction of the symbols whose embedding is dropped in a training step.", at_least=0.0, below=1.0
    )
    weight_drop: float = option(
        0.0, "Fraction of the recurrent kernels' weights dropped in a training step.", at_least=0.0, below=1.0
    )
    locked_dropout: bool = option(
        False, "Drop the same activations at every step of a sequence, instead of drawing them anew."
    )
    initializer: str = option(
        "glorot",
        "Initial weights: glorot (recurrent ones orthogonal), glorot_joint (a cell's two kernels drawn as one matrix, "
        "as in TensorFlow 1), normal(0, scale^2), or uniform in [0, scale).",
        choices=INITIALIZERS,
    )
    initializer_scale: float = option(0.01, "Scale of the normal and uniform initial weights.", above=0.0)

    def describe(self) -> str:
        """Returns cell and sizes, such as `gru, 1 x 128 units`."""
        return f"{self.cell}, {self.num_layers} x {self.hidden_size} units"

    def __post_init__(self) -> None:
        super().__post_init__()
        cell_registry.check_cell(self.cell)
        if self.cell not in ("lstm", "gru") and self.recurrent_activation != "sigmoid":
            raise ConfigError(
                f"--recurrent_activation={self.recurrent_activation}: --cell={self.cell} has no such choice of gates; "
                "use lstm or gru"
            )
        if self.tie_embedding and self.embedding_size != self.hidden_size:
            raise ConfigError(
                "--tie_embedding: needs --embedding_size equal to --hidden_size. "
                f"Received: {self.embedding_size} and {self.hidden_size}"
            )
        for name in ("input_dropout", "embedding_dropout"):
            if getattr(self, name) and not self.embedding_size:
                raise ConfigError(f"--{name}: acts on the embedding, and there is none; set --embedding_size")


@dataclasses.dataclass(frozen=True)
class TrainingConfig(_CheckedConfig):
    """Training options."""

    minutes: float = option(
        0.0,
        "Choose cell, sizes, batch, dropout, learning rate and steps so that the whole run takes about this many "
        "minutes on this machine, unless they are given; 0: do not choose.",
        at_least=0.0,
        at_most=100_000.0,
    )
    batch_size: int = option(128, "Sequences in a batch.", at_least=1, at_most=1_000_000)
    epochs: int = option(30, "Passes over the training text, unless --steps is given.", at_least=1, at_most=10_000_000)
    steps: int = option(0, "Training steps in total; 0: use --epochs.", at_least=0, at_most=10**12)
    shuffle: str = option(
        "epoch",
        "When the examples are shuffled: every epoch, once, or none: they are read in the order of the text.",
        choices=("epoch", "once", "none"),
    )
    carry_state: bool = option(
        False,
        "layout=lines: carry the state over from each line to the next, without end, as a stream does; needs "
        "--batch_size=1 and a fixed order, --shuffle=once|none.",
    )
    reset_state: float = option(
        0.0,
        "layout=stream: fraction of the parallel texts whose state starts over in a training step, so that the model "
        "also learns to begin in the middle of a text.",
        at_least=0.0,
        below=1.0,
    )
    random_start: bool = option(
        False,
        "layout=stream|sequences: read the text as a ring, and begin every epoch at a random character of it, so that "
        "no two epochs are cut alike.",
    )
    shuffle_buffer: int = option(
        2**26,
        "Symbols held in memory for shuffling. A larger training text is read from disk part by part: its files in "
        "random order, and the examples in memory at random.",
        at_least=1,
        at_most=10**12,
    )
    drop_remainder: bool = option(True, "Drop the incomplete last batch of an epoch; a stream's is always dropped.")
    reduction: str = option(
        "mean",
        "Training loss: the mean per character, or the sum per example, averaged over the batch.",
        choices=("mean", "sum"),
    )
    loss_after_update: bool = option(
        False,
        "Report the loss of each batch after its update instead of before it, which is lower and takes a second "
        "forward pass; training is the same.",
    )
    optimizer: str = option("adam", "Update rule.", choices=OPTIMIZERS)
    beta_1: float = option(
        0.9, "optimizer=adam|adamw: decay of the running mean of the gradients.", at_least=0.0, below=1.0
    )
    beta_2: float = option(
        0.999, "optimizer=adam|adamw: decay of the running mean of their squares.", at_least=0.0, below=1.0
    )
    epsilon: float = option(1e-7, "optimizer=adam|adamw: added to the root of that mean.", above=0.0)
    weight_decay: float = option(
        0.1, "optimizer=adamw: share of each matrix that a step at learning rate 1 would remove.", at_least=0.0
    )
    average: float = option(
        0.0,
        "Weight of the previous value in an exponential moving average of the weights, which validation, samples and "
        "generate then use; 0: off.",
        at_least=0.0,
        below=1.0,
    )
    learning_rate: float = option(0.001, "Peak learning rate.", above=0.0)
    schedule: str = option("constant", "Learning-rate schedule.", choices=SCHEDULES)
    decay_rate: float = option(
        0.97,
        "schedule=exponential: factor on the learning rate for each epoch after --decay_after.",
        above=0.0,
        at_most=1.0,
    )
    decay_after: int = option(10, "schedule=exponential: epochs at the full rate before the decay.", at_least=0)
    warmup_steps: int = option(
        0, "schedule=cosine|linear|wsd: steps of linear warm-up from zero to the full rate.", at_least=0
    )
    decay_fraction: float = option(
        0.2, "schedule=wsd: fraction of the steps, at the end, in which the rate decays.", above=0.0, at_most=1.0
    )
    final_rate: float = option(
        0.0,
        "schedule=cosine|linear|wsd: learning rate at the end, as a fraction of the peak.",
        at_least=0.0,
        at_most=1.0,
    )
    clip_value: float = option(0.0, "Clip each gradient value to [-clip_value, clip_value]; 0: off.", at_least=0.0)
    clip_norm: float = option(5.0, "Scale gradients down to this global norm; 0: off.", at_least=0.0)
    skip_bad_steps: int = option(0, "Non-finite steps to skip before stopping.", at_least=0)
    seed: int = option(0, "Seed of weights, data order, dropout and samples.", at_least=0, at_most=2**31 - 1)
    deterministic: bool = option(
        False,
        "Use only operations that give the same bits every time, also on a GPU, where that is slower. On a CPU, "
        "training repeats its bits without it, too.",
    )
    steps_per_call: int = option(
        0, "Training steps in one compiled call; 0: chosen from the sizes.", at_least=0, at_most=10_000
    )
    strategy: str = option(
        "none",
        "Data-parallel training: none, one device; mirrored, all GPUs of this machine, or virtual devices of its CPU; "
        "multi_worker, the machines that TF_CONFIG or Slurm names.",
        choices=STRATEGIES,
    )
    num_replicas: int = option(0, "strategy=mirrored: number of devices; 0: all GPUs.", at_least=0, at_most=1024)
    rendezvous_timeout: float = option(
        600.0, "strategy=multi_worker: seconds to wait for the other workers at the start.", above=0.0
    )
    smoothing: float = option(
        0.99, "Weight of the previous value in the exponential moving average smooth_loss.", at_least=0.0, below=1.0
    )
    smoothing_start: str = option(
        "first",
        "Initial value of smooth_loss: first (the first loss), uniform (that of a uniform guess), or a number.",
    )
    log_every: int = option(10, "Steps between rows of metrics.jsonl; 0: only the last.", at_least=0)
    eval_every: int = option(200, "Steps between validations; 0: only at the end.", at_least=0)
    patience: int = option(
        0,
        "Stop after this many validations in a row without a new lowest validation loss; 0: train to the end.",
        at_least=0,
    )
    sample_every: int = option(200, "Steps between samples of text; 0: only at the end.", at_least=0)
    sample_length: int = option(
        300,
        "Symbols in a sample during training; layout=lines: several lines of so many together.",
        at_least=1,
        at_most=1_000_000,
    )
    checkpoint_every: int = option(
        200,
        "Steps between checkpoints, besides one at each new lowest validation loss; 0: only at the end.",
        at_least=0,
    )
    keep_checkpoints: int = option(
        3, "Newest checkpoints to keep, besides the one with the lowest loss; 0: all.", at_least=0
    )
    keep_every: int = option(0, "Also keep checkpoints at multiples of this many steps; 0: none.", at_least=0)
    plot: bool = option(False, "Plot the loss to loss.png in the run folder (needs matplotlib).")
    tensorboard: bool = option(
        False,
        "Write metrics, samples and weight histograms for TensorBoard to tensorboard/ in the run folder.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smoothing_start not in ("first", "uniform"):
            try:
                finite = math.isfinite(float(self.smoothing_start))
            except ValueError:
                finite = False
            if not finite:
                raise ConfigError(
                    f"--smoothing_start must be first, uniform or a number. Received: {shorten(self.smoothing_start)}"
                )


@dataclasses.dataclass(frozen=True)
class GenerationConfig(_CheckedConfig):
    """Generation options."""

    length: int = option(
        1000,
        "Symbols to generate after the prime: characters, or bytes of a model with --encoding=bytes.",
        at_least=0,
        at_most=1_000_000_000,
    )
    prime: str = option(
        "", r"Text that the model reads first and continues; it is printed too. In the flag, \n is a line end."
    )
    temperature: float = option(
        1.0, "Divides the logits: below 1 more predictable text, above 1 more varied.", at_least=1e-6, at_most=1e6
    )
    top_k: int = option(0, "Sample from the k likeliest characters only; 0: from all.", at_least=0)
    top_p: float = option(
        1.0, "Sample from the smallest set of characters with at least this total probability.", above=0.0, at_most=1.0
    )
    greedy: bool = option(False, "Always choose the likeliest character.")
    num_samples: int = option(
        1,
        "Number of texts to generate in parallel; those of a model of lines are printed one a line.",
        at_least=1,
        at_most=100_000,
    )
    stop: str = option("", "End a text before the first occurrence of this string in the generated part.")
    seed: int = option(0, "Random seed; the same seed gives the same text.", at_least=0, at_most=2**31 - 1)


@dataclasses.dataclass(frozen=True)
class GradcheckConfig(_CheckedConfig):
    """Gradient-check options; cuDNN is not checked, since the check is in float64."""

    cell: str = option("all", "Recurrent cell, or all of them: those of --cell_module, else the built-in ones.")
    implementation: str = option("all", "Code that runs the cells, or both.", choices=("all", "custom", "keras"))
    hidden_size: int = option(5, "Units in each recurrent layer.", at_least=1, at_most=65_536)
    num_layers: int = option(2, "Recurrent layers, stacked; one layer is checked too.", at_least=1, at_most=64)
    embedding_size: int = option(
        3, "Size of the character embedding; one-hot input is checked too.", at_least=0, at_most=65_536
    )
    batch_size: int = option(3, "Sequences in a batch.", at_least=1, at_most=1_000_000)
    seq_length: int = option(7, "Symbols in a sequence.", at_least=2, at_most=1_000_000)
    seed: int = option(0, "Seed of weights, texts, states and masks.", at_least=0, at_most=2**31 - 1)
    tolerance: float = option(1e-7, "Largest relative error that passes.", at_least=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell != "all":
            cell_registry.check_cell(self.cell)


def _describe_fields(cls: type) -> str:
    """Returns the docstring of a config dataclass with type, default and help of every field."""
    lines = [cls.__doc__ or "", "", "Attributes:"]
    for field in dataclasses.fields(cls):
        choices = field.metadata["choices"]
        kind = " | ".join(map(repr, choices)) if choices else field.type
        text = f"{field.name} ({kind}, default {field.default!r}): {field.metadata['help']}"
        lines += textwrap.wrap(text, 112, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


# so that `help(tfcharrnn.ModelConfig)` explains every setting
for _cls in (DataConfig, ModelConfig, TrainingConfig, GenerationConfig, GradcheckConfig):
    _cls.__doc__ = _describe_fields(_cls)


def read_settings(settings: Mapping[str, Any], *classes: type, others: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns settings given as keyword arguments, with the names of files in the form of `DataConfig.input`.

    Args:
        settings: the arguments; `input` may be a name, a `Path` or a list of them.
        *classes: the config dataclasses whose fields they may be.
        others: further names, for the hint at a misspelt one.

    Raises:
        ConfigError: there is no such setting; the message says which one may be meant.
    """
    names = [field.name for cls in classes for field in dataclasses.fields(cls)]
    for name in settings:
        if name not in names:
            close = difflib.get_close_matches(name, [*names, *others], 1, 0.5)
            listed = " or ".join(f"help(tfcharrnn.{cls.__name__})" for cls in classes)
            hint = f"did you mean {close[0]}?" if close else f"{listed} lists them"
            raise ConfigError(f"there is no setting {shorten(name)}; {hint}")
    read = dict(settings)
    if isinstance(read.get("input"), (str, os.PathLike)):
        read["input"] = [read["input"]]
    if isinstance(read.get("input"), (list, tuple)):
        read["input"] = tuple(os.fspath(item) if isinstance(item, os.PathLike) else item for item in read["input"])
    return read


def check_settings(cls: type, values: dict[str, Any]) -> None:
    """Checks settings of a config dataclass.

    Raises:
        ConfigError: a value is out of bounds, or two contradict each other.
    """
    cls(**values)


def check_exclusive(**settings: Any) -> None:
    """Checks that at most one of the settings is given.

    Raises:
        ConfigError: several are; the message names their flags.
    """
    given = [f"--{name}" for name, value in settings.items() if value]
    if len(given) > 1:
        raise ConfigError(f"{', '.join(given[:-1])} and {given[-1]} exclude each other; leave out all but one")


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a config dataclass to a JSON-ready dict; tuples become lists."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(config).items()
    }


def from_dict(cls: type[ConfigT], values: Any, where: str) -> ConfigT:
    """Converts values read from disk back to a config dataclass, the inverse of `to_dict`.

    Args:
        cls: one of the config dataclasses.
        values: parsed JSON; missing names take their default.
        where: the file, for the error.

    Raises:
        UserError: an unknown name, a wrong type or a value out of bounds; the message names `where`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: {cls.__name__} must be an object. Received: {type(values).__name__}")
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UserError(f"{where}: unknown setting {shorten(name)}; was it written by a newer version?")
    try:
        return cls(**values)
    except ConfigError as error:
        raise UserError(f"{where}: {error}") from None
