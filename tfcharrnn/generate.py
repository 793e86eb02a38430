"""Generates text from a trained model and writes nothing else to standard output.

Without flags, it generates a thousand characters from the newest run in runs/.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import GenerationConfig, check_exclusive
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.files import open_regular, report_read_errors
from tfcharrnn.flag_help import FlagGroup
from tfcharrnn.runs import pretrained
from tfcharrnn.symbols import escape_for

_FLAGS = flags.FLAGS
_GROUPS = (
    FlagGroup("Model", ("run_dir", "model", "checkpoint"), ("cell_module", "device")),
    FlagGroup("Text", ("prime", "length", "num_samples", "stop"), ("prime_file",)),
    FlagGroup("Choice of characters", ("temperature", "top_k", "seed"), ("top_p", "greedy")),
    FlagGroup("What is written", ("interactive",), ("json",)),
)
# every character of it is read by the model
_MAX_PRIME_BYTES = 10_000_000


def main() -> None:
    """Reads the flags, restores the model and prints its texts, or lists the checkpoints."""
    config = cli.parse_config(GenerationConfig)
    if _FLAGS.prime_file:
        check_exclusive(prime=config.prime, prime_file=_FLAGS.prime_file)
        config = dataclasses.replace(config, prime=_read_prime(_FLAGS.prime_file))
    run_dir = _FLAGS.run_dir
    if _FLAGS.model == "list":
        print("\n".join(pretrained.list_names()))
        return
    if _FLAGS.model:
        check_exclusive(run_dir=run_dir, model=_FLAGS.model)
        run_dir = str(pretrained.resolve(pretrained.PREFIX + _FLAGS.model))  # before TensorFlow is imported
    if _FLAGS.interactive and (_FLAGS.json or config.num_samples != 1):
        raise ConfigError("--interactive generates one text; leave out --json and --num_samples")
    cli.load_tensorflow()
    cli.load_cells()
    from tfcharrnn.inference import repl, trained_model
    from tfcharrnn.runs import checkpoints
    from tfcharrnn.runs import run_folder as run_lib

    if _FLAGS.checkpoint == "list":
        run = run_lib.load(run_dir or run_lib.find_newest_run(with_checkpoint=True))
        print(checkpoints.describe_checkpoints(run.path))
        return
    trained = trained_model.load_model(run_dir, _FLAGS.checkpoint)
    if _FLAGS.interactive:
        repl.converse(trained.sampler, config)
    elif _FLAGS.json:
        texts = trained.sampler.generate(config)
        run_dir = pretrained.format_path(trained.run.path)
        result = {"run_dir": run_dir, "step": trained.checkpoint.step, "texts": texts}
        print(escape_for(sys.stdout, json.dumps(result, ensure_ascii=False)))
    elif config.num_samples == 1:
        for (piece,) in trained.sampler.stream(config):
            print(escape_for(sys.stdout, piece), end="", flush=True)
        print()
    else:
        separator = "" if trained.sampler.vocabulary.is_of_lines else "-" * 8 + "\n"
        texts = trained.sampler.generate(config)
        print(separator.join(f"{escape_for(sys.stdout, text)}\n" for text in texts), end="")


def _read_prime(name: str) -> str:
    """Reads the beginning of the text from a file, or from standard input for `-`.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    with report_read_errors(Path(name)):
        if name == "-":
            data = sys.stdin.buffer.read()
        else:
            with open_regular(Path(name)) as file:
                data = file.read(_MAX_PRIME_BYTES + 1)
    if len(data) > _MAX_PRIME_BYTES:
        raise UserError(f"--prime_file={name}: longer than {_MAX_PRIME_BYTES:,} bytes; give the end of it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--prime_file={name}: not UTF-8 at byte {error.start}") from None


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config_flags(GenerationConfig)
    cli.define_run_flags("; list: list them")
    flags.DEFINE_string(
        "model", "", "Instead of --run_dir, a model that comes with the package, such as shakespeare; list: list them."
    )
    cli.define_device_flag()
    flags.DEFINE_string("prime_file", "", "A UTF-8 file with the prime, or - for standard input.")
    flags.DEFINE_bool("interactive", False, "Ask for the start of a text and continue it, repeatedly.")
    flags.DEFINE_bool("json", False, "Print the texts as one JSON object.")


if __name__ == "__main__":
    cli.run_command(define_flags, main, groups=_GROUPS)
