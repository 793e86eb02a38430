"""Training in several processes is the training of one; and what is left when one of them dies."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.runs import checkpoints
from tfcharrnn.training.metrics import TIMING

LAUNCH = [sys.executable, "-m", "tfcharrnn.launch_local", "--workers=2", "--"]
TRAIN = [sys.executable, "-m", "tfcharrnn.train"]
RECIPES = {
    "gru": ["--cell=gru", "--seq_length=21", "--output_dropout=0.2"],
    "lstm": ["--cell=lstm", "--seq_length=21"],
    "lines": ["--cell=gru", "--layout=lines"],
    "from disk": ["--cell=gru", "--seq_length=21", "--num_shards=3", "--shuffle_buffer=2000", "--nodrop_remainder"],
}
STEPS = 200
COMMON = ["--hidden_size=16", "--batch_size=8", f"--steps={STEPS}", "--log_every=1", "--eval_every=60"]
COMMON += ["--sample_every=90", "--sample_length=30", "--checkpoint_every=40", "--keep_checkpoints=0"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = np.random.default_rng(1)
    words = ["the", "cat", "dog", "sat", "ran", "on", "under", "mat", "log", "tree", "and", "then", "nothing", "more"]
    lines = (" ".join(rng.choice(words, rng.integers(2, 9))) for _ in range(700))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def flags(text, run_dir, recipe):
    return [f"--input={text}", f"--run_dir={run_dir}", *RECIPES[recipe], *COMMON]


@pytest.fixture(scope="module")
def undisturbed(text, folder):
    """The run of a recipe by two workers, or one."""
    made = {}

    def of(recipe, workers):
        if (recipe, workers) not in made:
            path = folder / f"{recipe}-{workers}"
            launcher, strategy = (LAUNCH, ["--strategy=multi_worker"]) if workers == 2 else ([], [])
            done = subprocess.run(
                [*launcher, *TRAIN, *flags(text, path, recipe), *strategy], capture_output=True, timeout=300, text=True
            )
            assert done.returncode == 0, done.stderr
            assert f"done       step {STEPS}" in done.stderr
            made[recipe, workers] = path
        return made[recipe, workers]

    return of


def variables(run_dir, part="model"):
    reader = tf.train.load_checkpoint(str(checkpoints.find(run_dir).path / "ckpt"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name.startswith(part)}


def metrics(run_dir):
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_two_workers_do_what_one_process_does(undisturbed, recipe):
    one, two = (undisturbed(recipe, workers) for workers in (1, 2))
    rows, expected = metrics(two), metrics(one)
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == list(range(1, STEPS + 1))
    for name in ("loss", "smooth_loss"):
        np.testing.assert_allclose([row[name] for row in rows], [row[name] for row in expected], atol=1e-5)
    assert expected[-1]["loss"] < 0.9 * expected[0]["loss"], "it has learned"
    for name in ("model", "optimizer"):
        mine, other = variables(two, name), variables(one, name)
        assert mine.keys() == other.keys() and mine
        for key in mine:
            np.testing.assert_allclose(mine[key], other[key], atol=1e-5, err_msg=key)


def worker_pids(run_dir, count=2):
    """The processes of the workers, by their index."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if entry.name.isdigit() and f"--run_dir={run_dir}".encode() in command and b"tfcharrnn.train" in command:
                environment = dict(
                    line.split(b"=", 1) for line in (entry / "environ").read_bytes().split(b"\0") if b"=" in line
                )
                if b"TF_CONFIG" in environment:
                    found[json.loads(environment[b"TF_CONFIG"])["task"]["index"]] = int(entry.name)
        except OSError:
            continue
    return found


def begin(text, run_dir, recipe):
    """Starts two workers and waits for their first checkpoint; returns the launcher and the workers' processes."""
    process = subprocess.Popen(
        [*LAUNCH, *TRAIN, *flags(text, run_dir, recipe), "--strategy=multi_worker"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not (run_dir / "checkpoints" / "step-00000040").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process, worker_pids(run_dir)


def finish(run_dir):
    done = subprocess.run(
        [*LAUNCH, *TRAIN, "--resume", f"--run_dir={run_dir}"], capture_output=True, timeout=300, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"steps \d+ to {STEPS},", done.stderr)


def assert_equal(run_dir, expected):
    """Equal bit for bit."""
    for part in ("model", "optimizer", "carried"):
        mine, other = variables(run_dir, part), variables(expected, part)
        assert {key: value.tobytes() for key, value in mine.items()} == {k: v.tobytes() for k, v in other.items()}
    assert metrics(run_dir) == metrics(expected)
    assert (run_dir / "samples.txt").read_bytes() == (expected / "samples.txt").read_bytes()


def kill(text, run_dir, killed):
    """Kills one of two workers of a run; the other must say so and end."""
    process, pids = begin(text, run_dir, "gru")
    os.kill(pids[killed], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + 9
    other = 1 - killed
    line = rf"\[{other}\] train: worker {other} of 2: worker {killed} at 127\.0\.0\.1:\d+ was lost, .*--resume"
    assert len(re.findall(line, errors)) == 1, errors
    assert "Traceback" not in errors


def test_when_a_worker_is_killed_the_others_stop_and_nothing_is_lost(text, folder, undisturbed):
    run_dir = folder / "killed"
    kill(text, run_dir, killed=1)
    finish(run_dir)
    assert_equal(run_dir, undisturbed("gru", 2))


def test_when_the_chief_is_killed_one_process_can_go_on(text, folder, undisturbed):
    run_dir = folder / "alone"
    kill(text, run_dir, killed=0)
    assert 40 <= checkpoints.find(run_dir).step < STEPS
    done = subprocess.run(
        [*TRAIN, "--resume", f"--run_dir={run_dir}", "--strategy=none"], capture_output=True, timeout=300, text=True
    )
    assert done.returncode == 0, done.stderr
    expected, got = variables(undisturbed("gru", 1)), variables(run_dir)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)


def test_a_signal_to_any_worker_ends_all_at_one_step(text, folder, undisturbed):
    run_dir = folder / "told"
    process, pids = begin(text, run_dir, "lines")
    os.kill(pids[1], signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    (step,) = re.findall(rf"stopped    at step (\d+) of {STEPS}, saved", errors)
    assert checkpoints.find(run_dir).step == int(step)
    assert sorted(out.splitlines()) == [f"[{index}] {run_dir}" for index in range(2)]
    finish(run_dir)
    assert_equal(run_dir, undisturbed("lines", 2))


def test_what_the_chief_refuses_ends_all(text, undisturbed):
    run_dir = undisturbed("gru", 2)
    before = (run_dir / "metrics.jsonl").read_bytes()
    done = subprocess.run(
        [*LAUNCH, *TRAIN, *flags(text, run_dir, "gru"), "--strategy=multi_worker"],
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert done.returncode == 1
    assert "[0] train:" in done.stderr and "already exists; pass --resume" in done.stderr
    assert re.search(r"\[1\] train: worker 1 of 2: .* was lost", done.stderr)
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_only_the_chief_writes(undisturbed):
    run_dir = undisturbed("gru", 2)
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "samples.txt", "vocab.json"
    ]  # fmt: skip
    names = [path.name for path in (run_dir / "checkpoints").iterdir()]
    losses = [(row["val_loss"], row["step"]) for row in metrics(run_dir) if "val_loss" in row]
    lowest = {step for index, (loss, step) in enumerate(losses) if (loss, step) == min(losses[: index + 1])}
    assert sorted(names) == [f"step-{step:08d}" for step in sorted({*range(40, STEPS + 1, 40), *lowest})]
    steps = re.findall(r"--- step (\d+),", (run_dir / "samples.txt").read_text())
    assert steps == ["90", "180", "200"]
    assert all(a["step"] < b["step"] for a, b in itertools.pairwise(metrics(run_dir)))
