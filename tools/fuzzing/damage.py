"""Random damage to any file: to its bytes, and to the values of JSON."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

Files = dict[str, bytes]
SIZES = (0, 1, 2, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 10**12, 10**18, 2**63 - 1, 2**63, 2**64 - 1)


class Special(bytes):
    """What is put in the place of a file, and is none; its value is the kind."""

    KINDS: ClassVar = (b"fifo", b"folder", b"device", b"dangling link", b"link to itself")

    def put(self, path: Path) -> None:
        """Creates it."""
        if self == b"fifo":
            os.mkfifo(path)
        elif self == b"folder":
            path.mkdir()
            (path / "x").write_text("")
        else:
            path.symlink_to({b"device": "/dev/zero", b"dangling link": "missing"}.get(bytes(self), path.name))

    @staticmethod
    def copy(source: Path, target: Path) -> None:
        """Copies a file, or a pipe."""
        if source.is_fifo():
            os.mkfifo(target)
        else:
            shutil.copy2(source, target)


def put_file(path: Path, data: bytes) -> None:
    """Writes a file, or creates what is special, in the place of whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if isinstance(data, Special):
        data.put(path)
    else:
        path.write_bytes(data)


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """Damages some bytes of a file, once or a few times."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + int(2 ** rng.uniform(0, 9)))
        kind = rng.randrange(11)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:at] + rng.randbytes(end - at) + data[at:]
        elif kind == 3:
            data = data[:end] + data[at:end] * rng.choice((1, 2, 50)) + data[end:]
        elif kind == 4:
            data = data[:at] + rng.randbytes(end - at) + data[end:]
        elif kind == 5:
            data = data[:at] + rng.choice((b"\0", b"\xff", b"\x80", b"0", b"[", b'"')) * (end - at) + data[end:]
        elif kind == 6:
            form = rng.choice(("<Q", ">Q", "<I", ">I", "<H"))
            number = struct.pack(form, rng.choice(SIZES) % 2 ** (8 * struct.calcsize(form)))
            data = data[:at] + number + data[at + len(number) :]
        elif kind == 7:
            other = rng.randrange(len(data) + 1)
            data = data[:other] + data[at:end] + data[other:]
        elif kind == 8 and rng.random() < 0.2:
            data = rng.choice((b"", rng.randbytes(100), b"\0" * 1000, data[::-1], data * 2))
        else:
            for _ in range(rng.choice((1, 1, 2, 8))):
                if data:
                    at = rng.randrange(len(data))
                    data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data


class RawJson:
    """A piece of text in JSON's place that `json.dumps` would not write."""

    def __init__(self, text: str):
        self.text = text


def make_junk(rng: random.Random) -> Any:
    """Returns a value that does not belong in the file."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice((0, -1, 1, 2, 65, 2**31, 2**63, 10**12, 10**18, 10**30, 0.5, -0.0, 1e300, 5e-324))
    if kind == 1:
        return RawJson(
            rng.choice(("1e400", "-1e400", "NaN", "Infinity", "1" * 400, "9" * 4300, "1" * 5000, "01", "'x'"))
        )
    if kind == 2:
        depth = rng.choice((3, 50, 500, 900, 1000, 3000, 10_000, 100_000))
        opening, inside, closing = rng.choice((("[", "", "]"), ('{"a":', "1", "}"), ("[1,", "2", "]")))
        return RawJson(opening * depth + inside + closing * depth)
    if kind == 3:
        return rng.choice((None, True, False, [], {}, [[]], [None], [0] * 10_000, {"a": {"b": [1]}}, {"": 0}))
    texts = ("", "a", "\0", "a\0b", "\ud800", "\udcff", "<S>", "</S>", "é", "\U0001f600", "a\nb\x1b[2J", "nan", "1e400")
    tricks = (
        "..",
        ".",
        "/",
        "../x",
        "../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "C:\\x",
        "~",
        "x" * 300,
        "a" * 10**5,
    )
    return rng.choice((*texts, *tricks, "(a+)+$", "(" * 5000, "[", "x{99999999}", "\\1"))


def damage_json(rng: random.Random, data: bytes) -> bytes:
    """Changes some values and names in a JSON file."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        collect_places(value, places)
        if not places:
            break
        # choose the object first and then an item of it, or the many symbols of a vocabulary would get all the damage
        parent, key = rng.choice([place for place in places if isinstance(place[0], dict)] or places)
        if isinstance(parent[key], list) and parent[key] and rng.random() < 0.6:
            parent, key = parent[key], rng.randrange(len(parent[key]))
        old = parent[key]
        kind = rng.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            name = make_junk(rng)
            parent[name if isinstance(name, str) else f"{key}2"] = parent.pop(key)
        elif kind == 2 and isinstance(parent, dict):
            parent[key] = RawJson(
                f"{dump_json(old)}, {dump_json(key)}: {dump_json(make_junk(rng))}"
            )  # the name a second time
        elif kind == 2:
            parent.insert(rng.randrange(len(parent) + 1), old)
        elif kind == 3 and type(old) in (int, float):
            parent[key] = rng.choice((old + 1, old - 1, -old, old * 2, old * 10, float(old), str(old), bool(old)))
        elif kind == 4 and isinstance(old, list) and old:
            parent[key] = rng.choice((old[::-1], old * 2, old[:-1], [*old, make_junk(rng)], old[0], [old]))
        elif kind == 5:
            other_parent, other = rng.choice(places)
            if not isinstance(parent[key], dict) and not isinstance(other_parent[other], dict):
                parent[key], other_parent[other] = other_parent[other], parent[key]
        else:
            parent[key] = make_junk(rng)
    return dump_json(make_junk(rng) if rng.random() < 0.02 else value).encode()


def collect_places(value: Any, places: list[tuple[Any, Any]]) -> None:
    """Collects every item of a nested value as a pair of its container and its key or index."""
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        places.append((value, key))
        if isinstance(inner, (dict, list)):
            collect_places(inner, places)


def dump_json(value: Any) -> str:
    """Returns the JSON of a value that may contain `RawJson`."""
    raw: list[str] = []

    def default(piece: RawJson) -> str:
        raw.append(piece.text)
        return f"@{len(raw) - 1}@"

    return re.sub(r'"@(\d+)@"', lambda found: raw[int(found[1])], json.dumps(value, default=default))


def damage_content(
    rng: random.Random, data: bytes, share: float, structured: Callable[[random.Random, bytes], bytes]
) -> bytes:
    """Damages the bytes of a file, or with a probability of `share` its structure, or both."""
    if rng.random() < share:
        data = structured(rng, data)
        if rng.random() < 0.9:
            return data
    return damage_bytes(rng, data)


def damage_json_file(rng: random.Random, originals: Files, name: str) -> Files:
    """Damages one JSON file, its values or its bytes."""
    return {name: damage_content(rng, originals[name], 0.6, damage_json)}
