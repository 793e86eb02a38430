"""Prints a code block of the README, so that continuous integration and tests run exactly what it says.

python tools/readme.py NAME: the block after the line `<!-- NAME -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def block(name: str) -> str:
    """Returns the fenced code after the marker `<!-- name -->`.

    Raises:
        LookupError: there is no such block.
    """
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {re.escape(name)} -->\n+```\w*\n(.*?)```", text, re.DOTALL)
    if found is None:
        raise LookupError(f"README.md has no block named {name!r}")
    return found[1]


if __name__ == "__main__":
    sys.stdout.write(block(sys.argv[1]))
