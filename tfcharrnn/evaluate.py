"""Measures how well a trained model predicts a text; prints one JSON object.

The text is a split of the model's own data (--split), or any files (--input), joined by newlines as in training. With
--score=FILE, the command instead prints the log-probability of each line of a file in nats, one per line.

--read=whole reads the text from start to end, carrying the state over, after one <S> if the layout has it.
--read=examples cuts it as in training and reads each example from the initial state. By default, a split is read as in
training, an --input of the layouts sequences and stream whole, and lines and windows always as examples. Padding does
not count, and each character counts once, except where the examples of a split overlap (--overlap). Without <S>, the
first character, or the first window, is not predicted.

--window=256 cuts the text into windows of 256 characters, each read from the initial state. --dynamic reads it whole,
and a copy of the model goes on learning from it: after each 64 characters, once they are counted, its weights take a
step (dynamic evaluation, Krause et al. 2018). Adaptive n-grams, gzip and xz learn from what they have read, too.

For a model of bytes (train --encoding=bytes), a character is a byte.

The object has loss (nats per character), bits_per_char, perplexity, characters (number predicted), accuracy (fraction
that the model ranked first), unknown (characters ignored by --unknown=skip), read and step; with --dynamic also
dynamic_rule and dynamic_rate, with --by_character the loss of each class of characters, and with --baselines the bits
per character of n-gram models, gzip and xz.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import check_exclusive
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.flag_help import FlagGroup

if TYPE_CHECKING:
    from tfcharrnn.inference.eval_inputs import EvalInput
    from tfcharrnn.inference.evaluation import Evaluation
    from tfcharrnn.inference.trained_model import TrainedModel

_FLAGS = flags.FLAGS
_GROUPS = (
    FlagGroup("Model", ("run_dir", "checkpoint"), ("cell_module",)),
    FlagGroup("Text", ("split", "input", "score"), ("encoding", "unknown", "data_dir")),
    FlagGroup(
        "How it is read", ("read", "window", "dynamic"), ("dynamic_rate", "dynamic_rule", "batch_size", "device")
    ),
    FlagGroup("What is written", ("baselines", "by_character")),
)
_NOT_WITH_SCORE = ("read", "window", "dynamic", "unknown", "by_character", "baselines", "batch_size")


def main() -> None:
    """Reads the flags, restores the model and prints its evaluation or scores."""
    check_exclusive(input=_FLAGS.input, split=_FLAGS["split"].present, score=_FLAGS.score)
    check_exclusive(read=_FLAGS.read, window=_FLAGS.window)
    check_exclusive(read=_FLAGS.read == "examples", window=_FLAGS.window, dynamic=_FLAGS.dynamic)
    if _FLAGS.dynamic_rate and not _FLAGS.dynamic:
        raise ConfigError("--dynamic_rate: is for --dynamic")
    for name in _NOT_WITH_SCORE:
        if _FLAGS.score and _FLAGS[name].present:
            raise ConfigError(f"--{name} has no effect with --score; leave it out")
    if _FLAGS["unknown"].present and not _FLAGS.input:
        raise ConfigError("--unknown is for --input; a split has no unknown characters")
    cli.load_tensorflow()
    cli.load_cells()
    from tfcharrnn.analysis import baselines
    from tfcharrnn.inference import eval_inputs, trained_model

    trained = trained_model.load_model(_FLAGS.run_dir, _FLAGS.checkpoint)
    vocabulary = trained.run.vocabulary
    if _FLAGS.input or _FLAGS.score:
        corpus = trained.read_files(_FLAGS.input or [_FLAGS.score], _FLAGS.encoding)
        if len(corpus.sources) > 1 and _FLAGS.unknown == "error":
            _check_knows_newline(trained)
        if _FLAGS.score:
            for score in trained.score_symbols(corpus.text.removesuffix("\n").split("\n"), corpus.name):
                print(score)
            return
        eval_input = eval_inputs.make_text_input(
            corpus.text, vocabulary, trained.run.data, corpus.name, read=_FLAGS.read, unknown=_FLAGS.unknown
        )
    elif _FLAGS.window or _FLAGS.dynamic:
        eval_input = trained.make_split_input(_FLAGS.split, _FLAGS.data_dir)
    else:
        eval_input = None  # loaded only if needed, since a split may be larger than memory
    evaluation, how = _evaluate(trained, eval_input)
    if not math.isfinite(evaluation.loss):
        raise UserError(
            f"{trained.checkpoint.path}: the loss is not finite, since the weights are too large; choose an earlier "
            "--checkpoint"
        )
    result = evaluation.to_dict() | how
    if _FLAGS.by_character:
        result["by_character"] = evaluation.by_class(vocabulary)
    if _FLAGS.baselines:
        training = None
        eval_input = eval_input or trained.make_split_input(_FLAGS.split, _FLAGS.data_dir, _FLAGS.read)
        if _FLAGS.split != "train" or _FLAGS.input:
            try:
                training = trained.make_split_input("train", _FLAGS.data_dir).ids
            except UserError as error:
                cli.print_status(f"note: no baselines trained on the training text: {error}")
        size = len(vocabulary) - trained.model.layout.num_unpredicted
        text, of_bytes = eval_input.text(vocabulary), vocabulary.of_bytes
        result["baselines"] = baselines.measure(eval_input.ids, text, size, training, of_bytes=of_bytes)
    print(json.dumps({**result, "step": trained.checkpoint.step}))


def _check_knows_newline(trained: TrainedModel) -> None:
    """Checks that the newlines between several files are symbols of the model, or separate its lines."""
    is_delimiter = trained.model.layout.end_id is not None and trained.run.data.compile_delimiter().fullmatch("\n")
    if not is_delimiter and "\n" not in trained.run.vocabulary.symbols:
        raise UserError(
            f"--input: several files are joined by newlines, and the vocabulary of {trained.run.path} has none; "
            "evaluate one file at a time, or pass --unknown=skip"
        )


def _evaluate(trained: TrainedModel, eval_input: EvalInput | None) -> tuple[Evaluation, dict[str, Any]]:
    """Measures a text, or without one the split, as the flags say; returns also what to report about how."""
    if eval_input and _FLAGS.window:
        evaluation = trained.evaluate_windows(eval_input, _FLAGS.window, _FLAGS.batch_size)
        return evaluation, {"read": f"windows of {_FLAGS.window}"}
    if eval_input and _FLAGS.dynamic:
        evaluation, rate = trained.evaluate_dynamic(
            eval_input, _FLAGS.dynamic_rate, _FLAGS.data_dir, _FLAGS.dynamic_rule
        )
        return evaluation, {"read": "whole", "dynamic_rule": _FLAGS.dynamic_rule, "dynamic_rate": rate}
    if eval_input:
        evaluation, is_whole = trained.evaluate(eval_input, _FLAGS.batch_size), eval_input.in_order
    else:
        evaluation = trained.evaluate_split(
            _FLAGS.split, _FLAGS.data_dir, read=_FLAGS.read, batch_size=_FLAGS.batch_size
        )
        is_whole = trained.model.layout.carries_state or _FLAGS.read == "whole"
    return evaluation, {"read": "whole" if is_whole else "examples"}


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_run_flags()
    cli.define_device_flag()
    flags.DEFINE_enum("split", "val", ["train", "val", "test"], "The split of the run's data to evaluate on.")
    cli.define_files_flag("input", "Text files to evaluate on instead, joined by newlines: FILE[,...].")
    flags.DEFINE_string("score", "", "A text file; print the log-probability of each line instead.")
    flags.DEFINE_string("encoding", "utf-8", "Encoding of the --input and --score files; a model of bytes reads any.")
    flags.DEFINE_string("data_dir", "", "The run's data folder if it has moved.")
    flags.DEFINE_enum(
        "read",
        "",
        ["", "whole", "examples"],
        "whole: the text in one piece, carrying the state over; examples: cut as in training. By default an --input of "
        "layouts sequences and stream is read whole, and a --split as in training.",
    )
    flags.DEFINE_integer(
        "window", 0, "Read the text in windows of this many characters, each from the initial state.", lower_bound=0
    )
    flags.DEFINE_bool("dynamic", False, "Let a copy of the model go on learning from the text as it is read.")
    flags.DEFINE_float(
        "dynamic_rate", 0.0, "Learning rate for --dynamic; 0: chosen on the validation split.", lower_bound=0.0
    )
    flags.DEFINE_enum(
        "dynamic_rule",
        "rms",
        ["rms", "sgd"],
        "How --dynamic learns: rms scales the step of each weight by its gradients so far and pulls it back to its "
        "trained value; sgd is plain gradient descent.",
    )
    flags.DEFINE_enum("unknown", "error", ["error", "skip"], "What to do with characters outside the vocabulary.")
    flags.DEFINE_bool("by_character", False, "Also report the loss by kind of character: letters, digits, spaces, ...")
    flags.DEFINE_bool(
        "baselines",
        False,
        "Also report what adaptive n-gram models of orders 0 to 5 (Witten-Bell smoothing), gzip and xz need.",
    )
    flags.DEFINE_integer(
        "batch_size",
        0,
        "Examples evaluated in parallel, which affects only the speed; 0: as in training.",
        lower_bound=0,
    )


if __name__ == "__main__":
    cli.run_command(define_flags, main, groups=_GROUPS)
