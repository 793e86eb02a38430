"""Kills training and other commands repeatedly, repeats them, and compares the result with that of an undisturbed one.

python tools/kill.py --kills=1000 --steps=300

A kill is a SIGKILL to a real process. Training has a configuration at random; it is killed while a checkpoint is being
written or removed, at a random time after the run folder was locked, or at a random time after the process started, and
resumed each time. In the end the weights must be equal bit for bit, the samples byte for byte, and `metrics.jsonl` in
everything but the times. `prepare`, `export` and `report` are killed at a random time, and must then make what they
make undisturbed, and leave nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from absl import flags

from tfcharrnn import cli
from tfcharrnn.errors import UserError

_FLAGS = flags.FLAGS

_COMMON = "--val_fraction=0.1 --log_every=7 --eval_every=60 --sample_every=50 --sample_length=30 --checkpoint_every=12"
_SIZES = "--batch_size=8 --hidden_size=16 --seed=3"
RECIPES = {
    "sequences": "--seq_length=21 --cell=rnn --schedule=cosine --warmup_steps=20 --overlap=0.3",
    "stream": "--seq_length=20 --cell=lstm --optimizer=adagrad --reduction=sum --clip_value=5 --learning_rate=0.1",
    "lines": "--cell=gru --optimizer=sgd --learning_rate=0.1 --schedule=exponential --decay_after=1 --zero_start",
    "windows": "--seq_length=15 --stride=2 --cell=lstm --num_layers=2 --dropout=0.3 --output_dropout=0.3",
}
_WORDS = "the cat dog sat ran on under a mat log tree and; then, it they we saw heard nothing more"


def make_text(path: Path, seed: int) -> None:
    """Writes lines of different lengths."""
    rng = random.Random(seed)
    lines = (" ".join(rng.choices(_WORDS.split(), k=rng.randint(2, 9))) for _ in range(700))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def choose_flags(rng: random.Random, layout: str, base: Path) -> list[str]:
    """Returns the flags of a run at random; some combinations may be refused."""
    options = [
        ("--cell", "rnn", "lstm", "gru", "lnlstm", "mlstm", "mingru", "minlstm", "sru"), ("--num_layers", "1", "2"),
        ("--dropout", "0", "0.3"), ("--residual", "false", "false", "true"), ("--layer_norm", "false", "false", "true"),
        ("--learned_initial_state", "false", "false", "true"), ("--embedding_size", "0", "5"),
        ("--precision", "float32", "float32", "bfloat16"), ("--implementation", "auto", "custom", "keras"),
        ("--strategy", "none", "none", "mirrored"), ("--num_replicas", "0", "2"), ("--keep_every", "0", "36"),
        ("--keep_checkpoints", "1", "2", "3"), ("--steps_per_call", "0", "1", "5"),
        ("--optimizer", "adam", "sgd", "adamw"), ("--shuffle_buffer", "1000000", "2000"),
        ("--average", "0", "0", "0.99"), ("--locked_dropout", "false", "true"), ("--weight_drop", "0", "0", "0.2"),
        ("--random_start", "false", "false", "true"), ("--plot", "false", "false", "true"),
    ]  # fmt: skip
    chosen = [f"{name}={rng.choice(values)}" for name, *values in options]
    if "--strategy=none" in chosen:
        chosen = [flag for flag in chosen if not flag.startswith("--num_replicas")]
    if layout == "sequences" and rng.random() < 0.3:  # the model is that of the other run
        model = ("--cell", "--num_layers", "--dropout", "--learned", "--embedding", "--precision", "--implementation",
                 "--residual", "--layer_norm", "--locked_dropout", "--weight_drop")  # fmt: skip
        return [*(flag for flag in chosen if not flag.startswith(model)), f"--init_from={base}"]
    return chosen


# the parts of the training kit, all at once
_KIT = (
    "--layout=stream --seq_length=20 --cell=lnlstm --num_layers=2 --embedding_size=16 --tie_embedding --residual "
    "--layer_norm --dropout=0.2 --input_dropout=0.1 --output_dropout=0.2 --embedding_dropout=0.1 --weight_drop=0.2 "
    "--locked_dropout --optimizer=adamw --weight_decay=0.1 --beta_2=0.99 --average=0.99 --random_start "
    "--reset_state=0.05 --clip_norm=1 --schedule=cosine --warmup_steps=20 --keep_checkpoints=2 --patience=100"
)


def start_training(folder: Path, run_dir: Path, flags_: list[str], steps: int) -> subprocess.Popen[bytes]:
    """Starts training, or resumes it if the run exists."""
    command = ["train", f"--run_dir={run_dir}"]
    if (run_dir / "config.json").exists():
        command.append("--resume")
    else:
        command += [f"--input={folder / 'text.txt'}", f"--steps={steps}", *flags_]
    return start(folder, command)


def start(folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """Starts a command of this package."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "TF_NUM_INTRAOP_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", f"tfcharrnn.{command[0]}", *command[1:]],
        stdout=subprocess.DEVNULL,
        stderr=open(folder / "errors.txt", "wb"),
        env=environment,
    )


def is_locked(process: subprocess.Popen[bytes], run_dir: Path) -> bool:
    """Returns whether the process holds the lock of the run folder."""
    lock = run_dir / ".lock"
    return lock.exists() and lock.read_text().startswith(f"process {process.pid} ")


def is_at(kind: str, run_dir: Path) -> bool:
    """Returns whether a checkpoint is being written, or removed."""
    return any((run_dir / "checkpoints").glob(".step-*.tmp" if kind == "in a save" else ".step-*.old"))


def kill_once(process: subprocess.Popen[bytes], run_dir: Path, rng: random.Random) -> str:
    """Kills the process at a random moment; returns the kind of moment, or "" if it had already ended."""
    kind = rng.choice(["in a save", "in a save", "in pruning", "in pruning", "in training", "anywhere"])
    if kind == "anywhere":
        deadline = time.monotonic() + rng.uniform(0, 12)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
    else:
        while not is_locked(process, run_dir) and process.poll() is None:
            time.sleep(0.005)
        deadline = time.monotonic() + rng.uniform(0, 2)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        while kind != "in training" and not is_at(kind, run_dir) and process.poll() is None:
            pass
        time.sleep(rng.uniform(0, 0.02) if kind == "in a save" else 0)
    if process.poll() is not None:
        return ""
    process.send_signal(signal.SIGKILL)
    process.wait()
    return kind


def read_outcome(run_dir: Path) -> dict[str, Any]:
    """Returns what must be equal in the end."""
    import tensorflow as tf

    from tfcharrnn.runs import checkpoints
    from tfcharrnn.training import metrics

    checkpoint = checkpoints.find(run_dir)
    reader = tf.train.load_checkpoint(str(checkpoint.path / "ckpt"))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "step": checkpoint.step,
        "weights": {name: reader.get_tensor(name).tobytes() for name in names},
        "metrics": [{key: value for key, value in row.items() if key not in metrics.TIMING} for row in rows],
        "samples": (run_dir / "samples.txt").read_bytes(),
    }


def wait_for_success(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits for a process, which must succeed."""
    if process.wait():
        raise UserError("a run failed: " + (folder / "errors.txt").read_text(errors="replace").strip()[-500:])


def kill_training(folder: Path, name: str, rng: random.Random, kinds: Counter[str]) -> str:
    """Kills and resumes a run of a configuration at random; returns what it was.

    Raises:
        UserError: it does not end like an undisturbed one.
    """
    layout = "kit" if _FLAGS.kit else rng.choice(list(RECIPES))
    while True:
        if _FLAGS.kit:
            chosen, recipe = [], [*_KIT.split(), *_COMMON.split(), *_SIZES.split()]
        else:
            chosen = choose_flags(rng, layout, folder / "base")
            recipe = [f"--layout={layout}", *RECIPES[layout].split(), *_COMMON.split(), *_SIZES.split()]
        if f"--init_from={folder / 'base'}" in chosen:
            recipe = [flag for flag in recipe if not flag.startswith(("--cell", "--hidden_size"))]
        whole = folder / f"{name}-whole"
        process = start_training(folder, whole, [*recipe, *chosen], _FLAGS.steps)
        if process.wait() == 0:
            break
        error = (folder / "errors.txt").read_text(errors="replace").strip().splitlines()[-1]
        if process.returncode not in (1, 2) or "Error:" in error:
            raise UserError(f"{' '.join(chosen)}: {error}")
        shutil.rmtree(whole, ignore_errors=True)  # a combination that is refused
    described = " ".join([layout, *chosen])
    run_dir, wanted = folder / f"{name}-killed", rng.randint(3, 7)
    for _ in range(wanted):
        process = start_training(folder, run_dir, [*recipe, *chosen], _FLAGS.steps)
        kind = kill_once(process, run_dir, rng)
        if not kind:
            break
        kinds[kind] += 1
    if kind:
        process = start_training(folder, run_dir, [*recipe, *chosen], _FLAGS.steps)
    if process.wait() and b"is complete" not in (folder / "errors.txt").read_bytes():
        raise UserError(f"{described}: {(folder / 'errors.txt').read_text(errors='replace').strip()[-500:]}")
    expected, found = read_outcome(whole), read_outcome(run_dir)
    wrong = [key for key in found if found[key] != expected[key]]
    if wrong:
        raise UserError(f"{described}: {', '.join(wrong)} differ after kills (seed {_FLAGS.seed}, run {name})")
    for path in (whole, run_dir):
        shutil.rmtree(path)
    return described


def kill_command(folder: Path, name: str, rng: random.Random, kinds: Counter[str]) -> str:
    """Kills and repeats `prepare`, `export` or `report`; returns which.

    Raises:
        UserError: the last attempt does not make what an undisturbed one makes.
    """
    kind = rng.choice(["prepare", "export", "report"])
    results, duration = [], 0.0
    for place in ("whole", "killed"):
        output = folder / f"{name}-{place}" / "output"
        output.parent.mkdir()
        command = {
            "prepare": ["prepare", f"--input={folder / 'large.txt'}", "--num_shards=20", f"--output_dir={output}"],
            "export": ["export", "--format=npz", f"--run_dir={folder / 'base'}", f"--output={output}"],
            "report": ["report", f"--run_dir={folder / 'base'}", f"--output={output}"],
        }[kind]
        began = time.monotonic()
        for _ in range(rng.randint(2, 4) if place == "killed" else 0):
            process = start(folder, command)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, duration))
            if process.poll() is not None:
                break
            process.kill()
            process.wait()
            kinds[f"in {kind}"] += 1
        if not output.exists():
            wait_for_success(start(folder, command), folder)
        duration = time.monotonic() - began
        names = sorted(path.name for path in output.parent.iterdir())
        if names != ["output"]:
            raise UserError(f"{kind}: leaves {', '.join(names)} (seed {_FLAGS.seed}, run {name})")
        files_ = sorted(output.iterdir()) if output.is_dir() else [output]
        results.append({path.name: path.read_bytes() for path in files_})
        shutil.rmtree(output.parent)
    if results[0] != results[1]:
        raise UserError(f"{kind}: makes something else after kills (seed {_FLAGS.seed}, run {name})")
    return kind


def main() -> None:
    """Reads the flags, kills and compares; prints a summary."""
    rng = random.Random(_FLAGS.seed)
    cli.load_tensorflow()
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_text(folder / "text.txt", _FLAGS.seed)
        (folder / "large.txt").write_bytes((folder / "text.txt").read_bytes() * 2000)
        base = ["--layout=sequences", *RECIPES["sequences"].split(), *_COMMON.split(), *_SIZES.split()]
        wait_for_success(start_training(folder, folder / "base", base, _FLAGS.steps), folder)
        runs = 0
        while kinds.total() < _FLAGS.kills:
            what = (kill_command if not _FLAGS.kit and rng.random() < 0.25 else kill_training)(
                folder, str(runs), rng, kinds
            )
            runs += 1
            done = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            cli.print_status(f"{what}: equal; kills so far: {done}")
    print(f"{kinds.total()} kills ({done}), {runs} runs: all equal")


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_integer("kills", 50, "Number of kills.", lower_bound=1)
    flags.DEFINE_integer("steps", 300, "Training steps per run.", lower_bound=20)
    flags.DEFINE_bool("kit", False, "Kill only runs with all parts of the training kit at once.")
    flags.DEFINE_integer("seed", 0, "Seed of the text and the kills.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
