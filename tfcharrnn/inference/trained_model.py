"""Restores a trained model from a run folder and uses it: generation, evaluation, scoring."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from tfcharrnn import devices
from tfcharrnn.config import BYTES, GenerationConfig, read_settings
from tfcharrnn.data import chunking, evaluation_examples
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.inference import activations, eval_inputs
from tfcharrnn.inference.activations import Activations
from tfcharrnn.inference.dynamic_evaluation import DynamicEvaluator
from tfcharrnn.inference.eval_inputs import EvalInput
from tfcharrnn.inference.evaluation import Evaluation, Evaluator
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN, StreamState, variable_shapes
from tfcharrnn.preparation import cache, corpora
from tfcharrnn.preparation.corpora import Corpus
from tfcharrnn.runs import checkpoints, html_summary, logs, model_folder, pretrained
from tfcharrnn.runs import run_folder as run_lib
from tfcharrnn.runs.checkpoints import Checkpoint
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.settings import GenerationSettings
from tfcharrnn.symbols import text_to_symbols


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedModel:
    """A trained model, from `load_model`. It can be pickled and copied, with its weights as they are.

    Attributes:
        run: the run it comes from.
        checkpoint: the checkpoint its weights come from.
        model: the model.
        sampler: generates text.
        evaluator: measures its loss.
    """

    run: Run
    checkpoint: Checkpoint
    model: CharRNN
    sampler: Sampler
    evaluator: Evaluator

    def __repr__(self) -> str:
        val = "" if self.checkpoint.losses.val is None else f", validation loss {self.checkpoint.losses.val:.4f}"
        return (
            f"<TrainedModel {self.run.model.describe()}, {self.model.num_parameters:,} parameters, from "
            f"{pretrained.format_path(self.run.path)} at step {self.checkpoint.step:,}{val}>"
        )

    def _repr_html_(self) -> str:
        """Returns a table with the losses and their curve, which notebooks show."""
        rows = logs.read_intact_metrics(self.run.path).rows
        losses = [row["loss"] for row in rows if "loss" in row and row["step"] <= self.checkpoint.step]
        values = {
            "model": self.run.model.describe(),
            "parameters": f"{self.model.num_parameters:,}",
            "vocabulary": f"{len(self.run.vocabulary):,} symbols",
            "checkpoint": f"step {self.checkpoint.step:,}",
            "training loss": html_summary.format_loss(losses[-1] if losses else None),
            "validation loss": html_summary.format_loss(self.checkpoint.losses.val),
        }
        return html_summary.summarise(pretrained.format_path(self.run.path), values, rows)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prime: str = "", *, num_samples: Literal[1] = 1, **settings: Unpack[GenerationSettings]
    ) -> str: ...

    @overload
    def generate(self, prime: str = "", *, num_samples: int, **settings: Unpack[GenerationSettings]) -> list[str]: ...

    def generate(self, prime: str = "", *, num_samples: int = 1, **settings: Any) -> str | list[str]:
        """Generates a text, or several at once.

        Args:
            prime: the text that the model reads first and continues.
            num_samples: the number of texts.
            **settings: other fields of `GenerationConfig`, such as `length=200, temperature=0.8, seed=1`.

        Returns:
            The text, prime included; of a model of bytes decoded, as `Sampler.stream` says. With `num_samples` other
            than 1, a list of texts.

        Raises:
            UserError: a setting is out of bounds, or the prime has characters outside the vocabulary.
        """
        settings = read_settings(settings, GenerationConfig)
        texts = self.sampler.generate(GenerationConfig(prime=prime, num_samples=num_samples, **settings))
        return texts[0] if num_samples == 1 else texts

    def compute_activations(self, text: str, name: str = "text") -> Activations:
        """Reads a text in one piece and returns the states, logits and embeddings at each symbol as NumPy arrays.

        The text is normalised as in training, and read from the initial state, after `<S>` if the layout has it. So
        the layout `lines` takes one line; and with `windows`, where a prediction in training sees only the last
        symbols, the state is carried over here.

        Args:
            text: the text.
            name: the name of the text, for errors.

        Returns:
            `ids` `[time]`, `logits` `[time, vocabulary]`, `states` (for each layer its tensors `[time, hidden]`) and
            `embeddings` `[time, embedding]`, None with one-hot input; see `Activations`.

        Raises:
            UserError: the text is empty or has characters outside the vocabulary.
        """
        vocabulary = self.run.vocabulary
        ids = vocabulary.encode(self._to_symbols(text, name), name)
        if self.model.layout.start_id is not None:
            ids = np.concatenate([np.full(1, vocabulary.start_id, np.int32), ids])
        if not len(ids):
            raise UserError(f"{name}: is empty; there is nothing to read")
        return activations.compute_activations(self.model, ids)

    def __reduce__(self) -> tuple[Callable[..., TrainedModel], tuple[Any, ...]]:
        """Pickles and copies the weights themselves: the checkpoint may be gone by then, or the weights changed."""
        return _rebuild, (self.run, dataclasses.replace(self.checkpoint, files=None), *self.copy_weights())

    def copy_weights(self) -> model_folder.Weights:
        """Returns the weights, and where training stopped reading a stream, as NumPy arrays."""
        variables = {name: variable.numpy() for name, variable in self.model.named_variables.items()}
        carried = self.sampler.carried
        return model_folder.Weights(variables, [part.numpy() for part in carried.variables] if carried else [])

    def evaluate_split(
        self, split: str = "val", data_dir: str | Path = "", *, read: str = "", batch_size: int = 0
    ) -> Evaluation:
        """Measures the loss on a split of the run's own data.

        Args:
            split: `train`, `val` or `test`.
            data_dir: the data folder, if it has moved.
            read: `examples`: as in training, each from the initial state; `whole`: as one text, carrying the state
                over; empty: as in training.
            batch_size: examples in a batch, which affects only speed; 0: as in training.

        Raises:
            UserError: the data is missing or has changed, or the split is empty.
        """
        data = self._open_split(split, data_dir)
        if read not in ("", "whole" if data.layout.carries_state else "examples"):
            return self.evaluate(
                eval_inputs.make_split_input(data.read(split), self.run.vocabulary, data.config, read), batch_size
            )
        examples = evaluation_examples.load_evaluation_examples(data, split)  # they may not fit in memory
        result = self.evaluator(examples, batch_size or self.run.training.batch_size)
        return dataclasses.replace(result, unknown=0)

    def evaluate_text(
        self,
        text: str | Iterable[str],
        name: str = "text",
        *,
        read: str = "",
        unknown: str = "error",
        batch_size: int = 0,
    ) -> Evaluation:
        """Measures the loss on a text, normalised as in training; each character is predicted once.

        A model of bytes reads the UTF-8 of the text; a byte that is not valid is the lone surrogate that Python's error
        handler "surrogateescape" makes of it.

        Args:
            text: the text, or its pieces in order.
            name: the name of the text, for errors.
            read: `whole`: as one text, carrying the state over; `examples`: cut as in training; empty: whole, or for
                the layouts `lines` and `windows` as examples.
            unknown: `skip` ignores characters outside the vocabulary; `error` refuses them.
            batch_size: examples in a batch, which affects only speed; 0: as in training.

        Raises:
            UserError: the text is empty or has characters outside the vocabulary.
        """
        return self.evaluate(self.make_text_input(text, name, read=read, unknown=unknown), batch_size)

    def evaluate(self, eval_input: EvalInput, batch_size: int = 0) -> Evaluation:
        """Measures the loss on an input made by `make_split_input` or `make_text_input`."""
        size = batch_size or self.run.training.batch_size
        result = self.evaluator(eval_input.examples, size, in_order=eval_input.in_order)
        return dataclasses.replace(result, unknown=eval_input.unknown)

    def evaluate_windows(self, eval_input: EvalInput, size: int, batch_size: int = 0) -> Evaluation:
        """Measures the loss on a text cut into windows of `size` characters, each read from the initial state.

        Raises:
            ConfigError: the layout has no text to cut.
        """
        self._check_reads_whole("window")
        examples = chunking.make_window_examples(eval_input.ids, size, self.model.layout.start_id)
        result = self.evaluator(examples, batch_size or self.run.training.batch_size, in_order=False)
        return dataclasses.replace(result, unknown=eval_input.unknown)

    def evaluate_dynamic(
        self, eval_input: EvalInput, rate: float = 0.0, data_dir: str | Path = "", rule: str = "rms"
    ) -> tuple[Evaluation, float]:
        """Measures the loss on a text that a copy of the model goes on learning from as it reads.

        Args:
            eval_input: the text.
            rate: learning rate of the step after each piece; 0: the best on the validation split.
            data_dir: the data folder with that split, if it has moved.
            rule: how the weights follow the text, `rms` or `sgd`; see `tfcharrnn.inference.dynamic_evaluation`.

        Returns:
            The evaluation, and the rate.

        Raises:
            ConfigError: the layout cannot be read as one text.
            UserError: there is no validation split to choose the rate on.
        """
        self._check_reads_whole("dynamic")
        evaluator = DynamicEvaluator(self.model, rule)
        if not rate:
            try:
                rate = evaluator.choose_rate(self.make_split_input("val", data_dir, "whole").ids)
            except UserError as error:
                raise UserError(f"{error}; or give --dynamic_rate, which is chosen on the validation split") from None
        result = evaluator.evaluate(eval_input.ids, rate)
        return dataclasses.replace(result, unknown=eval_input.unknown), rate

    def _check_reads_whole(self, flag: str) -> None:
        layout = self.model.layout
        if not layout.is_continuous:
            raise ConfigError(f"--{flag}: reads one continuous text, for --layout=sequences|stream, not {layout.name}")

    def make_split_input(self, split: str = "val", data_dir: str | Path = "", read: str = "") -> EvalInput:
        """Makes the input of `evaluate_split`."""
        data = self._open_split(split, data_dir)
        return eval_inputs.make_split_input(data.read(split), self.run.vocabulary, data.config, read)

    def _open_split(self, split: str, data_dir: str | Path) -> DataFolder:
        data = open_run_data(self.run, data_dir)
        if split not in data.splits:
            raise ConfigError(f"--split must be one of {', '.join(data.splits)}. Received: {split!r}")
        if not data.splits[split].records:
            fraction = getattr(self.run.data, f"{split}_fraction", None)
            why = "" if fraction is None else f" (--{split}_fraction={fraction:g})"
            raise UserError(f"{self.run.path}: its data has no {split} split{why}; choose another --split, or --input")
        return data

    def make_text_input(
        self, text: str | Iterable[str], name: str = "text", *, read: str = "", unknown: str = "error"
    ) -> EvalInput:
        """Makes the input of `evaluate_text`."""
        symbols = self._to_symbols(text if isinstance(text, str) else "".join(text), name)
        return eval_inputs.make_text_input(
            symbols, self.run.vocabulary, self.run.data, name, read=read, unknown=unknown
        )

    def read_files(self, paths: Sequence[str], encoding: str = "utf-8") -> Corpus:
        """Reads the symbols of files, normalised and joined as in training; for a model of bytes, as they are.

        Args:
            paths: the files, as in `--input`.
            encoding: their encoding.

        Raises:
            ConfigError: the encoding is not that of the model's symbols.
            UserError: a file is unavailable, not in its encoding, or leaves no text.
        """
        if self.run.data.of_bytes and encoding not in ("utf-8", BYTES):
            raise ConfigError(f"--encoding={encoding}: {self.run.path} reads the bytes of any file; leave it out")
        if encoding == BYTES and not self.run.data.of_bytes:
            raise ConfigError(f"--encoding={BYTES}: {self.run.path} reads characters; name the encoding of the file")
        encoding = BYTES if self.run.data.of_bytes else encoding
        config = dataclasses.replace(self.run.data, input=tuple(paths), corpus="", encoding=encoding)
        return corpora.load(config)

    def score(self, lines: Sequence[str], name: str = "text") -> list[float]:
        """Returns log p(line | `<S>`) of each line in nats, including the end of the line if the layout has one.

        Args:
            lines: the lines, without delimiters.
            name: the name of the text, for errors.

        Raises:
            UserError: a line has characters outside the vocabulary, or the layout has no `<S>`.
        """
        return self.score_symbols([self._to_symbols(line, name) for line in lines], name)

    def score_symbols(self, lines: Sequence[str], name: str = "text") -> list[float]:
        """Scores lines of normalised symbols, like `score`."""
        layout = LAYOUTS[self.run.data.layout]
        if layout.start_id is None:
            able = "|".join(other.name for other in LAYOUTS.values() if other.start_id is not None)
            raise UserError(
                f"{self.run.path}: the layout {layout.name} has no <S> to score a line from; "
                f"train a model with --layout={able}"
            )
        examples = chunking.encode_lines(list(lines), self.run.vocabulary, name)
        return (0.0 - self.evaluator.sum_losses(examples, self.run.training.batch_size)).tolist()

    def _to_symbols(self, text: str, name: str) -> str:
        """Returns the symbols of a text, normalised as in training."""
        data = self.run.data
        return corpora.normalise(text_to_symbols(text, data.of_bytes, name), data)


def open_run_data(run: Run, data_dir: str | Path = "") -> DataFolder:
    """Opens the data that a run was trained on, in the ids of its vocabulary.

    Args:
        run: the run.
        data_dir: the data folder, if it has moved.

    Raises:
        UserError: the data is missing or has changed.
    """
    if not run.fingerprint:
        raise UserError(f"{run.path}: was imported and has no data of its own; pass --input")
    try:
        data = cache.find_data(run.data, data_dir or run.data_dir, run.fingerprint)
    except UserError as error:
        raise UserError(f"{run.path}: its data was not found ({error}); pass --data_dir") from None
    if data.fingerprint != run.fingerprint:
        raise UserError(f"{data.path}: not the data that {run.path} was trained on; pass its --data_dir")
    return data.with_vocabulary(run.vocabulary)


def load_model(run_dir: str | Path = "", checkpoint: str | int | Path = "latest") -> TrainedModel:
    """Restores a model from a run folder alone.

    Args:
        run_dir: the run folder, a folder that `export --format=safetensors` wrote, or `pretrained:NAME` for a model
            that comes with the package; empty: the newest in `runs/`.
        checkpoint: `latest`, `best` (lowest validation loss), a step, or the path of a checkpoint.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
    """
    devices.set_up()
    run = run_lib.load(run_dir or run_lib.find_newest_run(with_checkpoint=True))
    devices.set_numerics(tf32=run.model.tf32)
    if model_folder.is_model_folder(run.path):
        if str(checkpoint) not in ("latest", "best"):
            raise UserError(f"--checkpoint={checkpoint}: {run.path} has only one; leave the flag out")
        return _rebuild(run, model_folder.read_checkpoint(run.path), *model_folder.read_weights(run))
    found = checkpoints.find(run.path, str(checkpoint))
    # an imported model may have no text to continue
    is_carried = LAYOUTS[run.data.layout].carries_state and (
        bool(run.fingerprint) or checkpoints.has_object(found, "carried")
    )
    streams = {"carried/symbols": (run.training.batch_size,)} if is_carried else {}
    checkpoints.check_model(found, variable_shapes(run.model, len(run.vocabulary)), streams)
    model, carried = _make_model(run, with_stream=is_carried)
    checkpoints.restore_weights(found, model, **({"carried": carried} if carried else {}))
    found.close()
    return _assemble(run, found, model, carried)


def _make_model(run: Run, *, with_stream: bool) -> tuple[CharRNN, StreamState | None]:
    """Makes the model of a run, with new weights, and with `with_stream` where training stopped reading it."""
    layout = LAYOUTS[run.data.layout]
    # the backend is chosen for this machine, whatever the model was trained on
    model = CharRNN(dataclasses.replace(run.model, implementation="auto"), len(run.vocabulary), layout=layout)
    return model, StreamState(model, run.training.batch_size) if with_stream else None


def _assemble(run: Run, checkpoint: Checkpoint, model: CharRNN, carried: StreamState | None) -> TrainedModel:
    normalise = functools.partial(corpora.normalise, config=run.data)
    sampler = Sampler(model, run.vocabulary, run.data.seq_length, carried, normalise)
    return TrainedModel(run, checkpoint, model, sampler, Evaluator(model))


def _rebuild(
    run: Run,
    checkpoint: Checkpoint,
    weights: dict[str, npt.NDArray[Any]],
    carried_values: list[npt.NDArray[Any]],
) -> TrainedModel:
    """Makes a model from its weights; with no `carried_values` it has no text to continue."""
    model, carried = _make_model(run, with_stream=bool(carried_values))
    for name, variable in model.named_variables.items():
        variable.assign(weights[name].astype(variable.dtype.as_numpy_dtype))  # a file may have float16
    for variable, value in zip(carried.variables if carried else (), carried_values, strict=True):
        variable.assign(value.astype(variable.dtype.as_numpy_dtype))
    return _assemble(run, checkpoint, model, carried)
