"""Writes a report of a run as one HTML file: settings, curves, samples, evaluation, and what its units do.

The file needs no network and nothing beside it. It shows a text, each character coloured by the activation of a unit,
those first that track quotes, brackets, the position in a line and the like, and what the model expected there. The
text is the beginning of the run's validation data; or of a file (--text); or what the model writes itself.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from tfcharrnn import cli
from tfcharrnn.errors import ConfigError

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags, restores the model and writes the report; its path goes to standard output."""
    if _FLAGS.text and _FLAGS.prime:
        raise ConfigError("--text and --prime exclude one another")
    cli.load_tensorflow()
    from tfcharrnn.analysis import html_report
    from tfcharrnn.inference import trained_model
    from tfcharrnn.preparation import corpora

    trained = trained_model.load_model(_FLAGS.run_dir, _FLAGS.checkpoint)
    text = None
    if _FLAGS.text:
        config = dataclasses.replace(trained.run.data, input=(_FLAGS.text,), corpus="", encoding=_FLAGS.encoding)
        corpus = corpora.load(config)
        text = html_report.Text(html_report.as_part(corpus.text, config), corpus.name)
    path = html_report.write_report(
        trained,
        _FLAGS.output,
        text=text,
        prime=cli.as_utf8(_FLAGS.prime),
        characters=_FLAGS.characters,
        split=_FLAGS.split,
        data_dir=_FLAGS.data_dir,
    )
    print(path)


if __name__ == "__main__":
    cli.define_trained_run()
    flags.DEFINE_string("output", "", "The file to write; by default report.html in the run's folder.")
    flags.DEFINE_string("text", "", "A text file to show the units on, from its beginning.")
    flags.DEFINE_string("encoding", "utf-8", "Encoding of the --text file.")
    flags.DEFINE_string("prime", "", "Let the model write the text, with this beginning.")
    flags.DEFINE_integer("characters", 1000, "Characters of the text to show.", 1, 20_000)
    flags.DEFINE_enum("split", "val", ["train", "val", "test", "none"], "The part of the run's own data to evaluate.")
    flags.DEFINE_string("data_dir", "", "The run's data folder, where it has moved.")
    cli.run(main)
