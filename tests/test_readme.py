"""The README's Python example runs exactly as written."""

import subprocess
import sys

from paths import ROOT


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = subprocess.run(
        [sys.executable, ROOT / "tools" / "readme.py", "python"], capture_output=True, check=True, timeout=30
    ).stdout.decode()
    assert len(code.splitlines()) <= 10
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert "LATIN" in done.stdout.decode()
