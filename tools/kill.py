"""Kills training repeatedly, resumes it each time, and compares the result with that of an uninterrupted run.

python tools/kill.py --kills=50

Every layout is trained, each with a different cell and update rule. A kill is a SIGKILL to a real process: while a
checkpoint is being written, at a random time after the run folder was locked, or at a random time after the process
started. In the end the weights must be equal bit for bit, the samples byte for byte, and `metrics.jsonl` in everything
but the times.
"""

from __future__ import annotations

import json
import random
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


def start_training(folder: Path, run_dir: Path, recipe: str, steps: int) -> subprocess.Popen[bytes]:
    """Starts training, or resumes it if the run exists."""
    command = [sys.executable, "-m", "tfcharrnn.train", f"--run_dir={run_dir}"]
    if (run_dir / "config.json").exists():
        command.append("--resume")
    else:
        command += [f"--input={folder / 'text.txt'}", f"--layout={recipe}", f"--steps={steps}"]
        command += [*RECIPES[recipe].split(), *_COMMON.split(), *_SIZES.split()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(folder / "errors.txt", "wb"))


def is_locked(process: subprocess.Popen[bytes], run_dir: Path) -> bool:
    """Returns whether the process holds the lock of the run folder."""
    lock = run_dir / ".lock"
    return lock.exists() and lock.read_text().startswith(f"process {process.pid} ")


def is_saving(run_dir: Path) -> bool:
    """Returns whether a checkpoint is being written."""
    return any((run_dir / "checkpoints").glob(".step-*.tmp"))


def kill_once(process: subprocess.Popen[bytes], run_dir: Path, rng: random.Random) -> str:
    """Kills the process at a random moment; returns the kind of moment, or "" if it had already ended."""
    kind = rng.choice(["in a save", "in a save", "in training", "in training", "anywhere"])
    if kind == "anywhere":
        deadline = time.monotonic() + rng.uniform(0, 12)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
    else:
        while not is_locked(process, run_dir) and process.poll() is None:
            time.sleep(0.005)
        deadline = time.monotonic() + rng.uniform(0, 6)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        while kind == "in a save" and not is_saving(run_dir) and process.poll() is None:
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


def main() -> None:
    """Reads the flags, trains, kills and compares; prints a summary."""
    rng = random.Random(_FLAGS.seed)
    cli.load_tensorflow()
    kinds: Counter[str] = Counter()
    recipes = _FLAGS.recipes or list(RECIPES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_text(folder / "text.txt", _FLAGS.seed)
        expected = {}
        for recipe in recipes:
            wait_for_success(start_training(folder, folder / f"{recipe}-whole", recipe, _FLAGS.steps), folder)
            expected[recipe] = read_outcome(folder / f"{recipe}-whole")
        runs = 0
        while kinds.total() < _FLAGS.kills:
            recipe = recipes[runs % len(recipes)]
            run_dir = folder / f"{recipe}-{runs}"
            wanted = kinds.total() + -(-_FLAGS.kills // len(recipes))
            while True:
                process = start_training(folder, run_dir, recipe, _FLAGS.steps)
                if kinds.total() >= min(wanted, _FLAGS.kills):
                    wait_for_success(process, folder)
                    break
                kind = kill_once(process, run_dir, rng)
                if not kind:
                    wait_for_success(process, folder)
                    break
                kinds[kind] += 1
            found = read_outcome(run_dir)
            wrong = [key for key in found if found[key] != expected[recipe][key]]
            if wrong:
                raise UserError(f"{recipe}: {', '.join(wrong)} differ after kills (seed {_FLAGS.seed}, run {runs})")
            runs += 1
            done = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            cli.print_status(f"{recipe}: equal; kills so far: {done}")
    print(f"{kinds.total()} kills ({done}), {runs} runs: all equal")


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_integer("kills", 50, "Number of kills.", lower_bound=1)
    flags.DEFINE_integer("steps", 1500, "Training steps per run.", lower_bound=20)
    flags.DEFINE_integer("seed", 0, "Seed of the text and the kills.")
    flags.DEFINE_multi_enum("recipes", None, list(RECIPES), "Only these recipes.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
