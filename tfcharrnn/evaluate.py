"""Measures how well a trained model predicts a text; prints one JSON object.

The text is a split of the model's own data (--split), or any files (--input), which are read one after another as one
text, with nothing between them. With --score=FILE it prints the log-probability of each line of a file instead, in
nats, one a line.

How the text is read (--read): 'whole': once, in order, with the state carried over from its beginning to its end,
after one <S> if the layout has it. 'examples': cut as in training, each example from its own beginning. A split is
read as the validation in training reads it, so of the layout 'sequences' as examples; any other text of the layouts
'sequences' and 'stream' is read whole. Lines and windows are always examples. However it is read, nothing
that fills up a batch counts, and each character counts once; but where the examples of a split overlap (--overlap), as
often as it stands in them. Without <S> the first character, or the first window, is not predicted.

The object: loss (nats a character), bits_per_char, perplexity, characters (how many were predicted), accuracy (the
share of them that the model held for the likeliest), unknown (characters left out by --unknown=skip), read, step;
with --by_character the loss of each kind of character; with --baselines what n-gram models, gzip and xz need for
the same text, in bits a character.
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags

from tfcharrnn import cli
from tfcharrnn.errors import ConfigError, UserError

_FLAGS = flags.FLAGS
# what means nothing with --score
_OF_A_LOSS = ("read", "unknown", "by_character", "baselines", "batch_size")


def main() -> None:
    """Reads the flags, restores the model and prints its loss."""
    if bool(_FLAGS.input) + _FLAGS["split"].present + bool(_FLAGS.score) > 1:
        raise ConfigError("--input, --split and --score exclude one another")
    for name in _OF_A_LOSS:
        if _FLAGS.score and _FLAGS[name].present:
            raise ConfigError(f"--{name} is not for --score")
    if _FLAGS["unknown"].present and not _FLAGS.input:
        raise ConfigError("--unknown is for --input; a split has no characters outside the vocabulary")
    cli.load_tensorflow()
    from tfcharrnn.analysis import baselines
    from tfcharrnn.inference import trained_model
    from tfcharrnn.preparation import corpora

    trained = trained_model.load_model(_FLAGS.run_dir, _FLAGS.checkpoint)
    vocabulary = trained.run.vocabulary
    if _FLAGS.input or _FLAGS.score:
        paths = tuple(_FLAGS.input) or (_FLAGS.score,)
        config = dataclasses.replace(trained.run.data, input=paths, corpus="", encoding=_FLAGS.encoding)
        corpus = corpora.load(config, between="")
        if _FLAGS.score:
            for score in trained.score(corpus.text.removesuffix("\n").split("\n"), corpus.name):
                print(score)
            return
        passage = trained.passage_of_text(corpus.text, corpus.name, read=_FLAGS.read, unknown=_FLAGS.unknown)
        evaluation, whole = trained.evaluate(passage, _FLAGS.batch_size), passage.in_order
    else:
        passage = None  # read only if it is needed: a split may be larger than memory
        asked = {"read": _FLAGS.read, "batch_size": _FLAGS.batch_size}
        evaluation = trained.evaluate_split(_FLAGS.split, _FLAGS.data_dir, **asked)
        whole = trained.model.layout.carries_state or _FLAGS.read == "whole"
    result = evaluation.to_dict() | {"read": "whole" if whole else "examples"}
    if _FLAGS.by_character:
        result["by_character"] = evaluation.by_class(vocabulary)
    if _FLAGS.baselines:
        training = None
        passage = passage or trained.passage_of_split(_FLAGS.split, _FLAGS.data_dir, _FLAGS.read)
        if _FLAGS.split != "train" or _FLAGS.input:
            try:
                training = trained.passage_of_split("train", _FLAGS.data_dir).ids
            except UserError as error:
                cli.say(f"note: no baselines after the training text: {error}")
        size = len(vocabulary) - trained.model.layout.num_unpredicted
        result["baselines"] = baselines.measure(passage.ids, passage.text(vocabulary), size, training)
    print(json.dumps({**result, "step": trained.checkpoint.step}))


if __name__ == "__main__":
    cli.define_trained_run()
    flags.DEFINE_enum("split", "val", ["train", "val", "test"], "The part of the run's own data to evaluate on.")
    flags.DEFINE_list("input", [], "Text files to evaluate on instead, one after another with nothing between them.")
    flags.DEFINE_string("score", "", "A text file; print the log-probability of each of its lines instead.")
    flags.DEFINE_string("encoding", "utf-8", "Encoding of the --input and --score files.")
    flags.DEFINE_string("data_dir", "", "The run's data folder, where it has moved.")
    flags.DEFINE_enum(
        "read",
        "",
        ["", "whole", "examples"],
        "whole: the text in one piece, the state carried over; examples: cut as in training. By default an --input of "
        "the layouts sequences and stream is read whole, a --split as in training.",
    )
    flags.DEFINE_enum("unknown", "error", ["error", "skip"], "What to do with characters outside the vocabulary.")
    flags.DEFINE_bool("by_character", False, "Also the loss of letters, digits, spaces, and so on, each kind alone.")
    flags.DEFINE_bool(
        "baselines",
        False,
        "Also what adaptive n-gram models of the orders 0 to 5 (Witten-Bell smoothing), gzip and xz need for the text.",
    )
    flags.DEFINE_integer(
        "batch_size",
        0,
        "Examples evaluated side by side, which changes nothing but the speed; 0: as in training.",
        lower_bound=0,
    )
    cli.run(main)
