"""Repeats the loops of published notebooks in NumPy, beside this library: the same weights, order and text.

python tools/notebook_loops.py --system=dinosaur_names --input=dinos.txt --steps=35000 --output=runs/notebooks

Draws the weights as the notebook does, writes them as an `--init_arrays` file, trains the recipe with them, runs the
notebook's loop, and prints both smoothed losses as a Markdown table with the largest difference of all rows. How far
two correct programs can agree is told by a third column: the loop itself, from weights changed in their last bits.
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from absl import flags

from tfcharrnn import cli
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.runs.logs import read_metrics

_FLAGS = flags.FLAGS
Array = npt.NDArray[np.float64]
# of a step: the inputs, where None is a vector of zeros, and the symbols that follow them
Example = tuple[list[int | None], list[int]]

NAMES = ("cells/0/kernel", "cells/0/recurrent_kernel", "cells/0/bias", "output_kernel", "output_bias")
_NEVER = -1e9  # the bias of a symbol that a notebook does not have: its probability is 0
_LAST_BITS = 1e-15  # relative change of the weights of the third column


class NotebookLoop:
    """An Elman network trained on one example a step, in float64.

        h_t = tanh(W[x_t] + h_{t-1} U + b),  p_t = softmax(h_t V + c),  loss = - sum of log p_t[y_t]

    Args:
        arrays: the weights, named as in a checkpoint; they are not changed.
        learning_rate: the learning rate.
        clip: bound of each element of a gradient; 0: none.
        adagrad: divide each rate by the root of the sum of the squared gradients (Duchi et al. 2011).
    """

    def __init__(self, arrays: dict[str, Array], learning_rate: float, clip: float = 0.0, *, adagrad: bool = False):
        self._weights = [arrays[name].astype(np.float64) for name in NAMES]
        self._squares = [np.zeros_like(weight) for weight in self._weights] if adagrad else None
        self._learning_rate, self._clip = learning_rate, clip
        self.state = np.zeros(self._weights[1].shape[0])

    def step(self, example: Example) -> tuple[float, float]:
        """Trains on an example and carries the state over; returns its loss before and after the update, in nats."""
        start = self.state
        loss, states, errors = self._forward(example, start)
        self._update(self._backward(example, states, errors))
        self.state = states[-1]
        return loss, self._forward(example, start)[0]

    def _forward(self, example: Example, state: Array) -> tuple[float, list[Array], list[Array]]:
        """Returns the loss, the states with the first one before them, and the gradients by the logits."""
        w, u, b, v, c = self._weights
        loss, states, errors = 0.0, [state], []
        for x, y in zip(*example, strict=True):
            states.append(np.tanh((0.0 if x is None else w[x]) + states[-1] @ u + b))
            logits = states[-1] @ v + c
            exponentials = np.exp(logits - logits.max())
            probabilities = exponentials / exponentials.sum()
            loss -= np.log(probabilities[y])
            probabilities[y] -= 1.0
            errors.append(probabilities)
        return float(loss), states, errors

    def _backward(self, example: Example, states: list[Array], errors: list[Array]) -> list[Array]:
        """Returns the gradients by the weights."""
        _, u, _, v, _ = self._weights
        d_w, d_u, d_b, d_v, d_c = gradients = [np.zeros_like(weight) for weight in self._weights]
        d_later = np.zeros_like(self.state)
        for x, error, before, after in reversed(list(zip(example[0], errors, states[:-1], states[1:], strict=True))):
            d_v += np.outer(after, error)
            d_c += error
            d_sum = (1.0 - after**2) * (v @ error + d_later)
            d_u += np.outer(before, d_sum)
            d_b += d_sum
            if x is not None:
                d_w[x] += d_sum
            d_later = u @ d_sum
        return gradients

    def _update(self, gradients: list[Array]) -> None:
        for index, (weight, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
            if self._clip:
                np.clip(gradient, -self._clip, self._clip, out=gradient)
            if self._squares is not None:
                self._squares[index] += gradient**2
                gradient /= np.sqrt(self._squares[index] + 1e-8)
            weight -= self._learning_rate * gradient


@dataclasses.dataclass(frozen=True)
class Notebook:
    """What a notebook does that its recipe says in flags.

    Attributes:
        hidden: units.
        width: characters a step; 0: a step is a line, in an order that NumPy shuffles.
        learning_rate: the learning rate.
        clip: bound of each element of a gradient; 0: none.
        dropped: characters removed from the text.
        adagrad: AdaGrad instead of plain SGD; initial weights are uniform instead of normal.
        smoothing_start: the smoothed loss before the first step; None: that of a uniform guess.
    """

    hidden: int
    width: int
    learning_rate: float
    clip: float = 0.0
    dropped: str = ""
    adagrad: bool = False
    smoothing_start: float | None = None


NOTEBOOKS = {
    "dinosaur_names": Notebook(50, 0, 0.01, clip=5.0, smoothing_start=9.8875),
    "book_adagrad": Notebook(100, 25, 0.1, clip=5.0, adagrad=True),
    "sonnets_sgd": Notebook(75, 50, 0.001, dropped="()-"),
    "speeches_sgd": Notebook(150, 100, 0.001, dropped='0123456789$&[]()-"'),
}


def make_arrays(notebook: Notebook, num_symbols: int, seed: int) -> dict[str, Array]:
    """Draws the initial weights as the notebooks do, from NumPy's old generator, in their order.

    Args:
        notebook: the notebook.
        num_symbols: its symbols. For lines, a newline is the first of them; here `<PAD>` and `<S>` come before it.
        seed: of the generator.
    """
    random = np.random.RandomState(seed)

    def draw(*shape: int) -> Array:
        return random.uniform(-0.01, 0.01, shape) if notebook.adagrad else random.randn(*shape) * 0.01

    hidden = notebook.hidden
    kernel, recurrent, output = draw(hidden, num_symbols).T, draw(hidden, hidden).T, draw(num_symbols, hidden).T
    bias = np.zeros(num_symbols)
    if not notebook.width:
        kernel = np.concatenate([np.zeros((2, hidden)), kernel])
        output = np.concatenate([np.zeros((hidden, 2)), output], axis=1)
        bias = np.concatenate([[_NEVER, _NEVER], bias])
    return dict(zip(NAMES, (kernel, recurrent, np.zeros(hidden), output, bias), strict=True))


def order_lines(text: str) -> list[str]:
    """Returns the lines of a text in lower case, in the order of a notebook that seeds NumPy with 0."""
    lines = [line.strip() for line in text.lower().splitlines()]
    np.random.RandomState(0).shuffle(lines)
    return lines


def iterate_lines(lines: Sequence[str], symbols: Sequence[str]) -> Iterator[Example]:
    """Yields a line a step without end: a vector of zeros, its characters, and a newline."""
    ids = {symbol: index + 3 for index, symbol in enumerate(symbols)}  # after <PAD>, <S> and </S>
    for line in itertools.cycle(lines):
        characters = [ids[character] for character in line]
        yield [None, *characters], [*characters, 2]


def iterate_stream(text: str, symbols: Sequence[str], width: int) -> Iterator[tuple[bool, Example]]:
    """Yields `width` characters a step without end, and whether they are the first of the text."""
    ids = [symbols.index(character) for character in text]
    for start in itertools.cycle(range(0, len(ids) - width, width)):
        yield start == 0, (list(ids[start : start + width]), ids[start + 1 : start + width + 1])


def run_loop(notebook: Notebook, arrays: dict[str, Array], text: str, steps: int) -> tuple[list[float], list[float]]:
    """Runs a notebook's loop; returns its smoothed losses before and after each update, nats an example."""
    loop = NotebookLoop(arrays, notebook.learning_rate, notebook.clip, adagrad=notebook.adagrad)
    symbols = sorted(set(text) - ({"\n"} if not notebook.width else set()))
    losses = []
    if notebook.width:
        for is_first, example in itertools.islice(iterate_stream(text, symbols, notebook.width), steps):
            if is_first:
                loop.state = np.zeros(notebook.hidden)
            losses.append(loop.step(example))
    else:
        losses = [loop.step(example) for example in itertools.islice(iterate_lines(text.splitlines(), symbols), steps)]
    before, after = zip(*losses, strict=True)
    start = notebook.smoothing_start
    if start is None and not notebook.adagrad:
        start = np.log(len(symbols)) * notebook.width
    return smooth(before, start), smooth(after, start)


def smooth(losses: Sequence[float], start: float | None) -> list[float]:
    """Smooths losses exponentially, from `start` or the first of them."""
    smoothed, value = [], start
    for loss in losses:
        value = loss if value is None else 0.999 * value + 0.001 * loss
        smoothed.append(value)
    return smoothed


def train(system: str, steps: int, log_every: int, text: Path, arrays: Path, run_dir: Path, *extra: str) -> list[float]:
    """Trains the recipe with these weights; returns the smoothed loss of every row of its log."""
    command = [
        sys.executable, "-m", "tfcharrnn.train", f"--recipe={system}", f"--input={text}", f"--init_arrays={arrays}",
        f"--run_dir={run_dir}", "--overwrite", f"--steps={steps}", f"--log_every={log_every}",
        "--sample_every=0", *extra,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the recipe {system} failed: {done.stderr.strip().splitlines()[-1]}")
    return [row["smooth_loss"] for row in read_metrics(run_dir)]


def format_rows(loop: list[float], ours: list[float], changed: list[float], log_every: int, places: int = 8) -> str:
    """Formats the smoothed losses as a Markdown table.

    Args:
        loop: those of the notebook's loop, every `log_every` steps.
        ours: those of this library.
        changed: those of the loop from slightly changed weights.
        log_every: steps between two.
        places: rows of the table, evenly spaced; the last line has the largest differences of all.
    """
    to_ours, to_changed = (
        [100 * (other / mine - 1.0) for mine, other in zip(loop, others, strict=True)] for others in (ours, changed)
    )
    lines = ["| step | loop in NumPy | here | difference | loop, weights changed by 1e-15 |", "|" + " --- |" * 5]
    every = max(1, len(ours) // places)
    for row in range(every - 1, len(ours), every):
        cells = [f"{(row + 1) * log_every:,}", f"{loop[row]:.4f}", f"{ours[row]:.4f}"]
        lines.append(f"| {' | '.join([*cells, f'{to_ours[row]:+.4f}%', f'{to_changed[row]:+.4f}%'])} |")
    largest = [abs(max(differences, key=abs)) for differences in (to_ours, to_changed)]
    lines.append(f"\nLargest of {len(ours):,} differences: {largest[0]:.4f}%; of the changed loop {largest[1]:.4f}%.")
    return "\n".join(lines)


def main() -> None:
    """Reads the flags, trains and prints."""
    system, steps, log_every = _FLAGS.system, _FLAGS.steps, _FLAGS.log_every
    notebook, output = NOTEBOOKS[system], Path(_FLAGS.output)
    if not _FLAGS.input:
        raise ConfigError("--input: must name the text")
    output.mkdir(parents=True, exist_ok=True)
    text = Path(_FLAGS.input).read_text(encoding="utf-8")
    text = text.lower().translate({ord(character): None for character in notebook.dropped})
    if not notebook.width:
        text = "".join(f"{line}\n" for line in order_lines(text))
    text_path, arrays_path = output / f"{system}.txt", output / f"{system}.npz"
    text_path.write_text(text, encoding="utf-8")
    arrays = make_arrays(notebook, len(set(text)), _FLAGS.seed)
    with arrays_path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    losses = run_loop(notebook, arrays, text, steps)
    changed_arrays = {name: array * (1.0 + _LAST_BITS) for name, array in arrays.items()}
    changed = run_loop(notebook, changed_arrays, text, steps)
    order = [] if notebook.width else ["--shuffle=none"]
    for name, loop, other in zip(("before", "after"), losses, changed, strict=True):
        moment = [
            f"--precision={_FLAGS.precision}",
            "--loss_after_update" if name == "after" else "--noloss_after_update",
        ]
        ours = train(system, steps, log_every, text_path, arrays_path, output / f"{system}_{name}", *order, *moment)
        print(f"### {system}, losses {name} the update\n")
        rows = slice(log_every - 1, None, log_every)
        print(format_rows(loop[rows], ours, other[rows], log_every), end="\n\n", flush=True)


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_enum("system", "dinosaur_names", list(NOTEBOOKS), "Recipe.")
    flags.DEFINE_string("input", "", "Text.")
    flags.DEFINE_integer("steps", 2000, "Training steps.", lower_bound=1)
    flags.DEFINE_integer("log_every", 1, "Steps a row.", lower_bound=1)
    flags.DEFINE_integer("seed", 1, "Seed of the initial weights.")
    flags.DEFINE_enum("precision", "float64", ["float32", "float64"], "Precision of the run; the loop has float64.")
    flags.DEFINE_string("output", "runs/notebooks", "Folder of the texts, weights and runs.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
