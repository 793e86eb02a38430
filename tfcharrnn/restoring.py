"""A trained model, restored from a run folder for use."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from tfcharrnn import checkpoints, corpora, cutting, dataset
from tfcharrnn import run as run_lib
from tfcharrnn.checkpoints import Checkpoint
from tfcharrnn.config import GenerationConfig
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.evaluation import Evaluation, Evaluator
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model import Carried, CharRNN
from tfcharrnn.run import Run
from tfcharrnn.sampling import Sampler


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

    def evaluate_split(self, split: str = "val", data_dir: str | Path = "") -> Evaluation:
        """Measures the loss on a part of the run's own data.

        Args:
            split: `train`, `val` or `test`.
            data_dir: the data folder, where it is no longer where the run found it.

        Raises:
            UserError: the data cannot be had, is another, or the part is empty.
        """
        if not self.run.fingerprint:
            raise UserError(f"{self.run.path}: was imported and has no text of its own; name an --input")
        try:
            data = dataset.find(self.run.data, data_dir or self.run.data_dir, self.run.fingerprint)
        except UserError as error:
            raise UserError(f"{self.run.path}: its data is not where it was ({error}); name its --data_dir") from None
        if data.fingerprint != self.run.fingerprint:
            raise UserError(f"{data.path}: is not the data that {self.run.path} was trained on; name its --data_dir")
        if split not in data.splits:
            raise ConfigError(f"--split must be one of {', '.join(data.splits)}. Received: {split!r}")
        if not data.splits[split].records:
            raise UserError(f"{data.path}: its part {split!r} is empty; choose another --split")
        data = data.with_vocabulary(self.run.vocabulary)
        examples = cutting.predicted_once(data.read(split), data.config)
        return self.evaluator(examples, self.run.training.batch_size)

    def evaluate_text(self, text: str, name: str = "text") -> Evaluation:
        """Measures the loss on a text, normalised and cut as in training; each character is predicted once.

        Args:
            text: what to predict.
            name: of the text, for errors.

        Raises:
            UserError: the text is empty or has characters outside the vocabulary.
        """
        text = corpora.normalise(text, self.run.data)
        examples = cutting.of_text(text, self.run.vocabulary, self.run.data, name)
        return self.evaluator(examples, self.run.training.batch_size)

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
        examples = cutting.lines_as_examples(lines, self.run.vocabulary, name)
        return (0.0 - self.evaluator.totals(examples, self.run.training.batch_size)[0]).tolist()


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
