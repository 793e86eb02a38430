"""Tests one reader on files that libFuzzer damages, guided by the code that they reach; `tools/guided_fuzz.py` runs it.

python -m fuzzing.guided READER COUNT SEED FOLDER

An input is a few files of the reader's folder, the others being valid. Half of the new inputs are mutations of earlier
ones that reached new code; the other half are made by the reader's own structured damage.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tfcharrnn"]):
    import fuzz

    from fuzzing.damage import Files
    from tfcharrnn.runs import checkpoints  # noqa: F401  (the readers import it only when they are called)

_HEADER = struct.Struct("<BI")
# limits of a reader: seconds for an input, and MiB of memory of the process, most of which is TensorFlow
_SECONDS, _MEMORY = 20, 4096
_MAX_BYTES = 2**16
# inputs that show which files a reader's own damage changes
_NUM_EXAMPLES = 200


def encode(files: Files, names: list[str]) -> bytes:
    """Returns an input with these files, each by its index in `names`, its size and its content."""
    return b"".join(_HEADER.pack(names.index(name), len(data)) + data for name, data in files.items())


def decode(data: bytes, names: list[str]) -> Files:
    """Returns the files of an input, as far as it has any."""
    files: Files = {}
    while len(data) >= _HEADER.size:
        index, size = _HEADER.unpack_from(data)
        data = data[_HEADER.size :]
        files[names[index % len(names)]] = data[:size]
        data = data[size:]
    return files


class GuidedTest:
    """A reader and the inputs it was tried on.

    Args:
        name: the reader.
        count: number of inputs to try.
        folder: an empty folder; after a failure the damaged files stay there.
        result: a file for the outcome, JSON.
    """

    def __init__(self, name: str, count: int, folder: Path, result: Path):
        self.reader, self.folder = fuzz.READERS[name], folder
        self._count, self._result = count, result
        self._tried = self._errors = 0
        self.reader.make(folder)
        self.originals = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        # what its damage changes; other files may only be examples
        examples = [self.reader.damage(random.Random(seed), self.originals) for seed in range(_NUM_EXAMPLES)]
        self.names = sorted({name for files in examples for name in files} & self.originals.keys())
        self._whole = self.reader.read(folder)

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Returns the next input, made from one that reached new code."""
        rng, files = random.Random(seed), decode(data, self.names)
        if not files or rng.random() < 0.5:
            files = self.reader.damage(rng, self.originals)
        else:
            name = rng.choice(sorted(files))
            files[name] = atheris.Mutate(files[name], max_size)
        return encode({name: data for name, data in files.items() if name in self.names}, self.names)[:max_size]

    def try_input(self, data: bytes) -> None:
        """Tries the reader on an input; ends the process after a failure or the last input."""
        # the first input of libFuzzer is empty: all files are intact
        damaged = decode(data, self.names) or {name: self.originals[name] for name in self.names}
        for name, content in damaged.items():
            (self.folder / name).write_bytes(content)
        self._tried += 1
        failure = ""
        try:
            self._errors += not fuzz.try_reading(self.reader, self.folder, damaged, self._whole)
        except Exception as error:
            failure = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:400]}"
        if failure or self._tried == self._count:
            outcome = {"tried": self._tried, "errors": self._errors, "failure": failure}
            self._result.write_text(json.dumps(outcome))
            os._exit(bool(failure))
        for name in damaged:
            (self.folder / name).write_bytes(self.originals[name])


def main(name: str, count: int, seed: int, work: Path) -> None:
    """Tests a reader in a folder, which receives `result.json` and the inputs that reached new code."""
    warnings.simplefilter("ignore")
    files, corpus = work / "files", work / "corpus"
    files.mkdir()
    corpus.mkdir()
    test = GuidedTest(name, count, files, work / "result.json")
    for index, file in enumerate(test.names):
        (corpus / f"valid-{index}").write_bytes(encode({file: test.originals[file]}, test.names))
    limits = [f"-timeout={_SECONDS}", f"-rss_limit_mb={_MEMORY}", f"-max_len={_MAX_BYTES}"]
    # more runs than are counted, since libFuzzer would end the process after the last one
    flags = [f"-runs={count + 1000}", f"-seed={seed + 1}", f"-artifact_prefix={work}/", *limits]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], test.try_input, custom_mutator=test.mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
