"""Tells how much of a generated text stands in the training text, so that memorising shows.

python -m tfcharrnn.novelty --generated=sample.txt --run_dir=RUN
python -m tfcharrnn.novelty --generated=sample.txt --training=text.txt [--held_out=other.txt]

The table gives for each n the share of the generated text's n-grams (spans of n characters, at every place one) that
stand somewhere in the training text, letter for letter, and the longest span that does. Short spans always do; what
real text of the same kind has in common with the training text is the measure: a held-out text, with --run_dir the
run's validation split, has a column beside it. All of it is exact: spans are compared, not hashes of them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import flags

from tfcharrnn import cli
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.preparation import corpora

_FLAGS = flags.FLAGS
LENGTHS = (4, 6, 8, 10, 12, 16, 20, 25, 30, 40, 50)


class Spans:
    """Which spans of two texts are equal, by prefix doubling (Karp, Miller and Rosenberg 1972).

    Two spans of 2k characters have one number if, and only if, their first halves have one and their second halves
    too. A span of any length n is two spans of the largest power of 2 not above n, which overlap.
    """

    def __init__(self, generated: str, training: str):
        """Takes the two texts."""
        self._sizes = len(generated), len(training)
        points = np.frombuffer((generated + training).encode("utf-32-le"), "<u4")
        # numbers[k]: of the span of 2^k characters that begins at each place, also where it goes over the seam
        self._numbers = [np.unique(points, return_inverse=True)[1].astype(np.int32)]

    def copied(self, n: int) -> npt.NDArray[np.bool_]:
        """For each n-gram of the generated text whether it stands in the training text, `[generated - n + 1]`."""
        size, training = self._sizes
        if n > size or n > training:
            return np.zeros(max(size - n + 1, 0), bool)
        keys = self._keys(n)
        return np.isin(keys[: size - n + 1], keys[size:])

    def where(self, n: int, place: int) -> int:
        """Where in the training text the n-gram at a place of the generated text stands first."""
        keys = self._keys(n)
        return int(np.argmax(keys[self._sizes[0] :] == keys[place]))

    def longest(self) -> tuple[int, int, int]:
        """The longest copied span: its length, and where it stands in the generated and in the training text."""
        least, most = 0, 1  # a span of `least` is copied; one of `most` is not, once the loop has found one
        while self.copied(most).any():
            least, most = most, 2 * most
        while most - least > 1:
            middle = (least + most) // 2
            if self.copied(middle).any():
                least = middle
            else:
                most = middle
        if not least:
            return 0, 0, 0
        place = int(np.argmax(self.copied(least)))
        return least, place, self.where(least, place)

    def _keys(self, n: int) -> npt.NDArray[np.int64]:
        """A number for the n-gram at each place of both texts together, equal where the n-grams are."""
        level = n.bit_length() - 1
        while len(self._numbers) <= level:
            half = 2 ** (len(self._numbers) - 1)
            numbers = np.unique(self._pairs(half, 2 * half), return_inverse=True)[1]
            self._numbers.append(numbers.astype(np.int32))
        return self._pairs(2**level, n)

    def _pairs(self, span: int, n: int) -> npt.NDArray[np.int64]:
        """The first and the last `span` characters of the n-gram at each place, as one number."""
        numbers = self._numbers[span.bit_length() - 1].astype(np.int64)
        count = sum(self._sizes) - n + 1
        return numbers[:count] * len(numbers) + numbers[n - span : n - span + count]


@dataclasses.dataclass(frozen=True)
class Novelty:
    """What a text has in common with the training text.

    Attributes:
        characters: of the text.
        longest: characters of the longest copied span.
        place: where it stands in the text.
        training_place: where it stands in the training text first.
        span: that span.
        copied: for each n the share of n-grams that are copied; None where the text is shorter than n.
    """

    characters: int
    longest: int
    place: int
    training_place: int
    span: str
    copied: dict[int, float | None]


def measure(generated: str, training: str, lengths: tuple[int, ...] = LENGTHS) -> Novelty:
    """Compares a text with the training text."""
    spans = Spans(generated, training)
    shares: dict[int, float | None] = {}
    for n in lengths:
        copied = spans.copied(n)
        shares[n] = float(copied.mean()) if len(copied) else None
    longest, place, training_place = spans.longest()
    span = generated[place : place + longest]
    return Novelty(len(generated), longest, place, training_place, span, shares)


def table(texts: dict[str, Novelty]) -> str:
    """The figures of some texts, each a column."""
    width = max(12, *map(len, texts)) + 2
    lines = [" " * 22 + "".join(f"{name:>{width}}" for name in texts)]
    lines.append(f"{'characters':22}" + "".join(f"{text.characters:>{width},}" for text in texts.values()))
    lines.append(f"{'longest copied span':22}" + "".join(f"{text.longest:>{width},}" for text in texts.values()))
    for n in next(iter(texts.values())).copied:
        cells = ["-" if text.copied[n] is None else f"{text.copied[n]:.2%}" for text in texts.values()]
        lines.append(f"{f'{n}-grams copied':22}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def _read(path: str) -> str:
    try:
        return corpora.decode(Path(path).read_bytes(), _FLAGS.encoding, path).replace("\r\n", "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _texts_of_run() -> dict[str, str]:
    """The training text of a run and, if it has one, its validation text, as the model has seen them."""
    cli.load_tensorflow()
    from tfcharrnn.inference import eval_inputs, trained_model
    from tfcharrnn.runs import run_folder as run_lib

    run = run_lib.load(_FLAGS.run_dir)
    data = trained_model.data_of(run, _FLAGS.data_dir)
    return {
        split: eval_inputs.of_split(data.read(split), run.vocabulary, data.config).text(run.vocabulary)
        for split in ("train", "val")
        if data.splits[split].records
    }


def main() -> None:
    """Reads the flags, compares, and prints a table or one JSON object."""
    if not _FLAGS.generated:
        raise ConfigError("--generated is missing: name the file of a generated text")
    if bool(_FLAGS.training) == bool(_FLAGS.run_dir):
        raise ConfigError("name either --training, a text file, or --run_dir, the run that the text is from")
    generated = _read(_FLAGS.generated)
    if not generated:
        raise UserError(f"{_FLAGS.generated}: is empty")
    texts = {"train": _read(_FLAGS.training)} if _FLAGS.training else _texts_of_run()
    if _FLAGS.held_out:
        texts["val"] = _read(_FLAGS.held_out)
    found = {"generated": measure(generated, texts["train"])}
    if "val" in texts:
        found["held out"] = measure(texts["val"], texts["train"])
    if _FLAGS.json:
        values: dict[str, Any] = {name.replace(" ", "_"): dataclasses.asdict(text) for name, text in found.items()}
        print(json.dumps({"training_characters": len(texts["train"])} | values))
        return
    print(table(found))
    text = found["generated"]
    shown = text.span if len(text.span) <= 300 else text.span[:300] + "…"
    places = f"character {text.place:,} of the generated, {text.training_place:,} of the training text"
    print(f"\nThe longest copied span, at {places}:\n{shown!r}")


if __name__ == "__main__":
    flags.DEFINE_string("generated", "", "The generated text, a file.")
    flags.DEFINE_string("training", "", "The training text, a file.")
    flags.DEFINE_string("run_dir", "", "The run that it was generated by, instead; its training text is found.")
    flags.DEFINE_string("data_dir", "", "The run's data folder, where it has moved.")
    flags.DEFINE_string("held_out", "", "A real text of the same kind, not trained on, to measure beside it.")
    flags.DEFINE_string("encoding", "utf-8", "Encoding of the files.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    cli.run(main)
