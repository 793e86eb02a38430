"""Measures how fast an exported page writes in headless Chromium, and takes pictures of it.

python tools/page_speed.py --page=FILE.html [--pictures=FOLDER]

Needs selenium, Chromium and its chromedriver (Debian: chromium, chromium-driver).
"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

from absl import flags

from tfcharrnn import cli
from tfcharrnn.errors import UserError

_FLAGS = flags.FLAGS

_WRITE = """
const start = performance.now();
const pieces = window.tfcharrnn.write({ length: arguments[0], beginning: arguments[1], seed: arguments[2] });
return [pieces.length, (performance.now() - start) / 1000];
"""
# writes by the form, as a reader does, and looks at one symbol
_FILL_IN = """
const set = (id, value) => { document.getElementById(id).value = value; };
set("beginning", arguments[0]);
set("length", 600);
document.getElementById("write").click();
"""
_LOOK = """
const slider = document.getElementById("look");
slider.value = 60;
slider.dispatchEvent(new Event("input"));
"""


def main() -> None:
    """Prints characters a second, the median and the range of several texts."""
    page = Path(_FLAGS.page).absolute()
    if not page.is_file():
        raise UserError(f"--page={page}: no such file")
    browser = _start_browser()
    try:
        _open(browser, page)
        speeds = []
        for seed in range(_FLAGS.repeats):
            count, seconds = browser.execute_script(_WRITE, _FLAGS.length, _FLAGS.beginning, seed)
            speeds.append(count / seconds)
        print(f"{statistics.median(speeds):,.0f} characters/s ({min(speeds):,.0f} to {max(speeds):,.0f})")
        if _FLAGS.pictures:
            for width in (1400, 400):
                _take_picture(browser, page, width, Path(_FLAGS.pictures) / f"web_page_{width}.png")
    finally:
        browser.quit()


def _start_browser() -> Any:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    # a container's /dev/shm is small, and root has no sandbox
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


def _open(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    _wait_until(browser, "Boolean(window.tfcharrnn)")  # a browser that has just started may not be there yet


def _wait_until(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(f"return {condition}"))


def _take_picture(browser: Any, page: Path, width: int, path: Path) -> None:
    """Writes a text with the page and saves a picture of it."""
    size = {"width": width, "height": 900 if width > 1000 else 1100, "deviceScaleFactor": 1, "mobile": width < 1000}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    _open(browser, page)
    browser.execute_script(_FILL_IN, _FLAGS.beginning)
    _wait_until(browser, "document.getElementById('status').textContent.startsWith('Done')")
    browser.execute_script(_LOOK)
    browser.save_screenshot(str(path))


def define_flags() -> None:
    """Defines the flags."""
    flags.DEFINE_string("page", "", "The page to open.")
    flags.DEFINE_string("pictures", "", "A folder for pictures, 1400 and 400 pixels wide.")
    flags.DEFINE_string("beginning", "", "The beginning of each text.")
    flags.DEFINE_integer("length", 5000, "Characters of a text.", 1)
    flags.DEFINE_integer("repeats", 5, "Texts to measure.", 1)


if __name__ == "__main__":
    cli.run_command(define_flags, main)
