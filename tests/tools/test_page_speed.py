"""The speed of an exported page is measured."""

import re
import shutil
import subprocess
import sys

import pytest
from paths import ROOT, TOOLS

from tfcharrnn.serving import export_formats


def test_the_speed_of_a_page_is_printed_and_pictures_are_taken(tmp_path):
    pytest.importorskip("selenium", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no Chromium with its chromedriver on this machine (Debian: chromium, chromium-driver)")
    page = export_formats.export_model(ROOT / "tests" / "golden" / "gru", "html", tmp_path / "page.html")
    command = [sys.executable, TOOLS / "page_speed.py", f"--page={page}", "--length=50", f"--pictures={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert re.fullmatch(r"[\d,]+ characters/s \([\d,]+ to [\d,]+\)\n", done.stdout), done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["web_page_1400.png", "web_page_400.png"]
