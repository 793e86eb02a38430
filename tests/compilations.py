"""Trains, samples and evaluates every layout, and prints how many programs XLA compiled for each, as JSON.

XLA keeps each compiled program in a folder if it is told to before TensorFlow starts, hence a process of its own: the
files that a command adds are the programs that it compiled. A value that becomes a constant of a program shows up as
one more program for each value.
"""

import json
import os
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
PROGRAMS = FOLDER / "programs"
os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={PROGRAMS}"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tfcharrnn  # noqa: E402

# calls of many lengths: whatever happens at an interval ends one
SETTINGS = {
    "cell": "gru",
    "hidden_size": 8,
    "batch_size": 4,
    "val_fraction": 0.1,
    "steps": 61,
    "steps_per_call": 20,
    "log_every": 7,
    "eval_every": 13,
    "sample_every": 17,
    "sample_length": 11,
    "checkpoint_every": 29,
    "quiet": True,
}
LAYOUTS = {
    # the only one that may ask for devices, since it is the first
    "mirrored": {"layout": "stream", "seq_length": 10, "strategy": "mirrored", "num_replicas": 2},
    "stream": {"layout": "stream", "seq_length": 10, "batch_size": 1},
    "sequences": {"layout": "sequences", "seq_length": 10},
    "windows": {"layout": "windows", "seq_length": 10},
    "lines": {"layout": "lines"},
    "incomplete": {"layout": "sequences", "seq_length": 11, "drop_remainder": False},
    "carried": {"layout": "lines", "batch_size": 1, "shuffle": "once", "carry_state": True},
}


class Counter:
    """Counts the programs compiled since the last count."""

    def __init__(self):
        PROGRAMS.mkdir()
        self._known = set()

    def count(self) -> int:
        new = set(os.listdir(PROGRAMS)) - self._known
        self._known |= new
        return len(new)


def main():
    text = FOLDER / "text.txt"
    text.write_text("".join(f"the {'quick ' * (i % 7)}fox jumps over {i % 13} dogs\n" for i in range(200)))
    counter, counts = Counter(), {}
    for name, settings in LAYOUTS.items():
        run = FOLDER / name
        tfcharrnn.train_model(run, input=[str(text)], **{**SETTINGS, **settings})
        counts[name] = {"train": counter.count()}
    model = tfcharrnn.load_model(FOLDER / "stream")
    for number in range(1, 6):
        prime = "the quick"[:number]
        model.generate(prime=prime, length=7 * number, temperature=0.5 + 0.1 * number, seed=number)
    counts["stream"]["generate"] = counter.count()
    for number in range(1, 6):
        model.evaluate_text("the quick fox " * 10 * number)
    counts["stream"]["evaluate"] = counter.count()
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
