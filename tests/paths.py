"""Folders that the tests refer to."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
TOOLS = ROOT / "tools"
GOLDEN = TESTS / "golden"
