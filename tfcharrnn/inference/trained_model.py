"""A trained model, restored from a run folder for use."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfcharrnn.config import GenerationConfig
from tfcharrnn.data import chunking, dataset, out_of_core
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.inference import eval_inputs
from tfcharrnn.inference.eval_inputs import Passage
from tfcharrnn.inference.evaluation import Evaluation, Evaluator
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import Carried, CharRNN
from tfcharrnn.preparation import corpora
from tfcharrnn.runs import checkpoints
from tfcharrnn.runs import run_folder as run_lib
from tfcharrnn.runs.checkpoints import Checkpoint
from tfcharrnn.runs.run_folder import Run


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model with its weights, and what can be done with it.

    Attributes:
        run: the run it comes from.
        checkpoint: which of its checkpoints.
        model: the model.
        sampler: draws text from it.
        evaluator: measures its loss.
    """

    run: Run
    checkpoint: Checkpoint
    model: CharRNN
    sampler: Sampler
    evaluator: Evaluator

    def generate(self, **settings: object) -> str:
        """Draws one text.

        Args:
            **settings: the fields of `GenerationConfig`, such as `length=200, prime="The ", temperature=0.8, seed=1`.

        Returns:
            The text, prime included.

        Raises:
            UserError: a setting out of bounds, or a prime with characters outside the vocabulary.
        """
        config = GenerationConfig(**settings)  # type: ignore[arg-type]
        if config.num_samples != 1:
            raise ConfigError("--num_samples: generate() gives one text; use sampler.generate for several")
        return self.sampler.generate(config)[0]

    def evaluate_split(
        self, split: str = "val", data_dir: str | Path = "", *, read: str = "", batch_size: int = 0
    ) -> Evaluation:
        """Measures the loss on a part of the run's own data.

        Args:
            split: `train`, `val` or `test`.
            data_dir: the data folder, where it is no longer where the run found it.
            read: `examples`: as the validation in training, each from its own beginning; `whole`: in one piece, with
                the state carried over; empty: as in training.
            batch_size: examples side by side; 0: as many as in training. It changes nothing but the speed.

        Raises:
            UserError: the data cannot be had, is another, or the part is empty.
        """
        data = self._data_with(split, data_dir)
        if read not in ("", "whole" if data.layout.carries_state else "examples"):
            return self.evaluate(
                eval_inputs.of_split(data.read(split), self.run.vocabulary, data.config, read), batch_size
            )
        examples = out_of_core.predicted_once(data, split)  # which need not be all in memory
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

        Args:
            text: what to predict; of pieces of a text the whole is read.
            name: of the text, for errors.
            read: `whole`: in one piece, with the state carried over from its beginning to its end; `examples`: cut as
                in training; empty: in one piece, or for the layouts `lines` and `windows` cut.
            unknown: `skip` leaves out characters outside the vocabulary.
            batch_size: examples side by side; 0: as many as in training. It changes nothing but the speed.

        Raises:
            UserError: the text is empty or has characters outside the vocabulary.
        """
        return self.evaluate(self.passage_of_text(text, name, read=read, unknown=unknown), batch_size)

    def evaluate(self, passage: Passage, batch_size: int = 0) -> Evaluation:
        """Measures the loss on a passage, which the methods below make."""
        size = batch_size or self.run.training.batch_size
        result = self.evaluator(passage.examples, size, in_order=passage.in_order)
        return dataclasses.replace(result, unknown=passage.unknown)

    def passage_of_split(self, split: str = "val", data_dir: str | Path = "", read: str = "") -> Passage:
        """A part of the run's own data, as `evaluate_split` takes it."""
        data = self._data_with(split, data_dir)
        return eval_inputs.of_split(data.read(split), self.run.vocabulary, data.config, read)

    def _data_with(self, split: str, data_dir: str | Path) -> DataFolder:
        data = data_of(self.run, data_dir)
        if split not in data.splits:
            raise ConfigError(f"--split must be one of {', '.join(data.splits)}. Received: {split!r}")
        if not data.splits[split].records:
            raise UserError(f"{data.path}: its part {split!r} is empty; choose another --split")
        return data

    def passage_of_text(
        self, text: str | Iterable[str], name: str = "text", *, read: str = "", unknown: str = "error"
    ) -> Passage:
        """A text, as `evaluate_text` takes it."""
        text = corpora.normalise(text if isinstance(text, str) else "".join(text), self.run.data)
        return eval_inputs.of_text(text, self.run.vocabulary, self.run.data, name, read=read, unknown=unknown)

    def score(self, lines: Sequence[str], name: str = "text") -> list[float]:
        """The log-probability of each line, in nats: log p(line | `<S>`), and that it ends there if the model has ends.

        Args:
            lines: each one text, without its delimiter.
            name: of the text, for errors.

        Raises:
            UserError: a line has characters outside the vocabulary, or the model cannot begin a text.
        """
        layout = LAYOUTS[self.run.data.layout]
        if layout.start_id is None:
            able = ", ".join(other.name for other in LAYOUTS.values() if other.start_id is not None)
            raise UserError(
                f"{self.run.path}: the layout {layout.name} has no <S>, after which to score a line; "
                f"train a model with --layout of {able}"
            )
        lines = [corpora.normalise(line, self.run.data) for line in lines]
        examples = chunking.lines_as_examples(lines, self.run.vocabulary, name)
        return (0.0 - self.evaluator.totals(examples, self.run.training.batch_size)[0]).tolist()


def data_of(run: Run, data_dir: str | Path = "") -> DataFolder:
    """The data that a run was trained on, in the ids of its vocabulary.

    Args:
        run: the run.
        data_dir: the data folder, where it is no longer where the run found it.

    Raises:
        UserError: the data cannot be had, or is another.
    """
    if not run.fingerprint:
        raise UserError(f"{run.path}: was imported and has no text of its own; name an --input")
    try:
        data = dataset.find(run.data, data_dir or run.data_dir, run.fingerprint)
    except UserError as error:
        raise UserError(f"{run.path}: its data is not where it was ({error}); name its --data_dir") from None
    if data.fingerprint != run.fingerprint:
        raise UserError(f"{data.path}: is not the data that {run.path} was trained on; name its --data_dir")
    return data.with_vocabulary(run.vocabulary)


def load_model(run_dir: str | Path = "", checkpoint: str = "latest") -> TrainedModel:
    """Restores a model from a run folder alone.

    Args:
        run_dir: the run folder; empty: the newest in `runs/`.
        checkpoint: `latest`, `best` (by validation loss), or the path of one.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
    """
    run = run_lib.load(run_dir or run_lib.newest(with_checkpoint=True))
    found = checkpoints.find(run.path, checkpoint)
    # whatever code trained it, on whatever machine, it is used on this one
    layout = LAYOUTS[run.data.layout]
    model = CharRNN(dataclasses.replace(run.model, implementation="auto"), len(run.vocabulary), layout=layout)
    carried = Carried(model, run.training.batch_size) if layout.carries_state else None
    checkpoints.restore(found, {"model": model} | ({"carried": carried} if carried else {}))
    normalise = functools.partial(corpora.normalise, config=run.data)
    sampler = Sampler(model, run.vocabulary, run.data.seq_length, carried, normalise)
    return TrainedModel(run, found, model, sampler, Evaluator(model))
