"""Prepares a text for training: TFRecord shards, vocab.json and dataset.json in one folder.

python -m tfcharrnn.prepare --input=FILE --output_dir=DIR

The text may have any size: a large one is prepared in pieces on all cores, and running the command again after an
interruption resumes.
"""

from __future__ import annotations

import time

from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig, check_exclusive
from tfcharrnn.flag_help import FlagGroup

_FLAGS = flags.FLAGS
_GROUPS = (
    FlagGroup("Text", ("input", "corpus", "encoding"), ("lowercase", "drop_digits", "drop_chars", "recipe")),
    FlagGroup("Examples", ("layout", "seq_length", "val_fraction", "test_fraction"), (DataConfig,)),
    FlagGroup("Records of another program", (), ("from_records", "vocabulary")),
    FlagGroup("What is written", ("output_dir", "overwrite"), ("num_shards", "compression", "jobs")),
)


def main() -> None:
    """Reads the flags and makes the data folder; prints its path."""
    from tfcharrnn.preparation.data_folder import prepare_data

    settings, corpus = cli.parse_settings(DataConfig), None
    cli.require_flags(output_dir="the data folder to create")
    began = time.perf_counter()
    if _FLAGS.from_records or _FLAGS.vocabulary:
        cli.require_flags(from_records="the files of records", vocabulary="the file of their symbols")
        check_exclusive(from_records=True, input=settings.get("input"), corpus=settings.get("corpus"))
        from tfcharrnn.preparation.foreign_records import read_foreign_records

        cli.load_tensorflow()
        corpus, config = read_foreign_records(_FLAGS.from_records, _FLAGS.vocabulary, settings)
    else:
        config = DataConfig(**settings)
    data = prepare_data(
        config, _FLAGS.output_dir, overwrite=_FLAGS.overwrite, corpus=corpus, jobs=_FLAGS.jobs, quiet=False
    )
    speed = data.characters / (time.perf_counter() - began)
    cli.print_status(
        f"{data.name}: {data.characters:,} characters, {len(data.vocabulary)} symbols; {data.describe()}; "
        f"{speed:,.0f} characters/s"
    )
    if changes := data.describe_normalisation():
        cli.print_status(f"text {changes}")
    print(data.path)


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config_flags(DataConfig)
    cli.define_recipe_flag()
    flags.DEFINE_string("output_dir", "", "The data folder to create.")
    cli.define_files_flag(
        "from_records",
        "TFRecord files of another program, instead of a text: FILE[,...], each record a tf.train.Example with the "
        "int64 feature seq, which begins with <S>. Records of one length without </S> are sequences, others lines.",
    )
    flags.DEFINE_string(
        "vocabulary",
        "",
        "The symbols of --from_records: a JSON list in id order, a JSON object or a pickled dict of ids, or one symbol "
        "a line.",
    )
    flags.DEFINE_integer("jobs", 0, "Processes for a large text; 0: one per core.", lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Replace an existing data folder.")


if __name__ == "__main__":
    cli.run_command(define_flags, main, left_to_train=(ModelConfig, TrainingConfig), groups=_GROUPS)
