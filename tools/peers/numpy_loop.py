"""NumPy, step by step in Python, one text at a time, as notebooks write it: float64, one-hot columns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfcharrnn.verification.workloads import Preparation, Training, Work, text


def _preparation(work: Preparation) -> Callable[[], object]:
    """Character by character, a `tf.train.Example` for each sequence."""
    import tensorflow as tf

    folder = Path(tempfile.mkdtemp())
    (folder / "text.txt").write_text(work.text, encoding="utf-8")

    def prepare() -> object:
        text = (folder / "text.txt").read_text(encoding="utf-8")
        index = {character: number for number, character in enumerate(["<S>", *sorted(set(text))])}
        ids = []
        for character in text:
            ids.append(index[character])
        with tf.io.TFRecordWriter(str(folder / "train.tfrecord")) as writer:
            for start in range(0, len(ids) - 198, 199):
                feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[0, *ids[start : start + 199]]))
                example = tf.train.Example(features=tf.train.Features(feature={"seq": feature}))
                writer.write(example.SerializeToString())
        return len(ids)

    return prepare


def make(work: Work) -> tuple[Callable[[], object], int] | None:
    """Returns a function that does the work and the number of steps per call; only one Elman layer and stream."""
    if isinstance(work, Preparation):
        return _preparation(work), 1
    single = work.batch == 1 if isinstance(work, Training) else work.streams == 1
    if work.cell != "rnn" or not single:
        return None
    rng = np.random.default_rng(0)
    hidden, symbols = work.hidden, work.symbols
    w, u, v = (rng.normal(0, 0.05, shape) for shape in ((hidden, symbols), (hidden, hidden), (symbols, hidden)))
    b, c = np.zeros((hidden, 1)), np.zeros((symbols, 1))

    def step(x: int, h: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        one_hot = np.zeros((symbols, 1))
        one_hot[x] = 1
        h = np.tanh(w @ one_hot + u @ h + b)
        y = v @ h + c
        return one_hot, h, np.exp(y) / np.sum(np.exp(y))

    if not isinstance(work, Training):

        def generate() -> object:
            x, h, out = 0, np.zeros((hidden, 1)), []
            for _ in range(work.length):
                _, h, p = step(x, h)
                x = int(rng.choice(symbols, p=p.ravel()))
                out.append(x)
            return out

        return generate, 1
    ids = text(work, 1)[0, 0]
    parameters = (w, u, v, b, c)
    memory = [np.zeros_like(parameter) for parameter in parameters]

    def train() -> object:
        xs, hs, ps, loss = [], [np.zeros((hidden, 1))], [], 0.0
        for t in range(work.time):
            one_hot, h, p = step(ids[t], hs[-1])
            xs.append(one_hot)
            hs.append(h)
            ps.append(p)
            loss -= np.log(p[ids[t + 1], 0])
        dw, du, dv, db, dc = gradients = [np.zeros_like(parameter) for parameter in parameters]
        carried = np.zeros((hidden, 1))
        for t in reversed(range(work.time)):
            dy = ps[t].copy()
            dy[ids[t + 1]] -= 1
            dv += dy @ hs[t + 1].T
            dc += dy
            ds = (1 - hs[t + 1] ** 2) * (v.T @ dy + carried)
            db += ds
            dw += ds @ xs[t].T
            du += ds @ hs[t].T
            carried = u.T @ ds
        for parameter, gradient, squares in zip(parameters, gradients, memory, strict=True):
            np.clip(gradient, -5, 5, out=gradient)
            if work.optimizer == "adagrad":
                squares += gradient**2
                parameter -= 0.001 * gradient / np.sqrt(squares + 1e-8)
            else:
                parameter -= 0.001 * gradient
        return loss

    return train, 1
