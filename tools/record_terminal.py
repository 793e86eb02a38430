"""Records commands in a terminal as an animated SVG.

python tools/record_terminal.py --command='tfcharrnn --help' --output=help.svg [--file=FILE] [--speed=5]

The commands are typed into a shell in a folder that has nothing but the files given, and what it shows is recorded with
its times. CONTRIBUTING.md has the command that makes the recording of the README. Needs pexpect and pyte (the extra
`docs`).
"""

from __future__ import annotations

import html
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from tfcharrnn import cli, files
from tfcharrnn.errors import UserError

_FLAGS = flags.FLAGS

# sent by the shell before each prompt: a title of the window, which is not shown
_READY = "\x1b]0;ready\x07"
_PROMPT = r"\[\e[32m\]$\[\e[0m\] "
_TYPING_SECONDS = 0.04
_FRAME_SECONDS = 0.1
# pixels
_CHARACTER, _LINE, _MARGIN = 8.4, 19, 16
_COLORS = {"green": "#7ee0a0", "red": "#ff9d95", "brown": "#ffd978", "blue": "#7db8f0", "cyan": "#7fdbe0"}
_STYLE = """
text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
  fill: #e8eaed; white-space: pre; }}
#film {{ transform: translateY({last}px); animation: play {seconds:.2f}s steps(1, end) infinite; }}
@keyframes play {{ {steps} }}
@media (prefers-reduced-motion: reduce) {{ #film {{ animation: none; }} }}
"""


class Event(NamedTuple):
    """What a terminal showed.

    Attributes:
        seconds: the time since the previous event.
        text: with escape sequences.
    """

    seconds: float
    text: str


class Span(NamedTuple):
    """Characters of one colour in a line of a screen."""

    column: int
    text: str
    color: str


class Frame(NamedTuple):
    """A screen, and for how long it is shown."""

    seconds: float
    lines: tuple[tuple[Span, ...], ...]


class _Recorder:
    """A shell in a pseudo-terminal, and what it has shown."""

    def __init__(self, folder: Path, columns: int, lines: int):
        import pexpect

        # the commands of this environment come first
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path, "PS1": _PROMPT, "PROMPT_COMMAND": f"printf '{_READY}'"}
        environment |= {"TERM": "xterm-256color", "XDG_CACHE_HOME": str(folder / ".cache"), "LC_ALL": "C.UTF-8"}
        self._end, self._timeout = pexpect.EOF, pexpect.TIMEOUT
        self._shell = pexpect.spawn(
            "bash",
            ["--norc", "--noprofile"],
            cwd=folder,
            env=environment,
            dimensions=(lines, columns),
            encoding="utf-8",
        )
        self.events: list[Event] = []

    def wait(self, speed: float) -> None:
        """Records until the shell shows its prompt, with times divided by `speed`.

        Raises:
            UserError: the shell ended.
        """
        last, unseen = time.monotonic(), ""
        while _READY not in unseen:
            try:
                text = self._shell.read_nonblocking(65536, timeout=None)
            except self._end:
                raise UserError("the shell ended before its last command") from None
            now = time.monotonic()
            self.events.append(Event((now - last) / speed, text))
            last, unseen = now, unseen[-len(_READY) :] + text
        self._read_rest()

    def type(self, command: str) -> None:
        """Types a command as a person does, and presses the return key."""
        for character in command:
            self._shell.send(character)
            self._read_rest()
        self.events.append(Event(0.6, ""))
        self._shell.send("\r")

    def _read_rest(self) -> None:
        time.sleep(_TYPING_SECONDS)
        text = ""
        try:
            while True:
                text += self._shell.read_nonblocking(65536, timeout=0)
        except (self._timeout, self._end):
            self.events.append(Event(_TYPING_SECONDS, text))

    def close(self) -> None:
        self._shell.close(force=True)


def record(commands: Sequence[str], folder: Path, columns: int, lines: int, speed: float = 1.0) -> list[Event]:
    """Types commands into a shell; returns what it showed.

    Args:
        commands: each is typed when the one before has ended.
        folder: the working directory.
        columns: the width of the terminal.
        lines: its height.
        speed: by how much what the commands show is faster than it was.

    Raises:
        UserError: a command ended the shell.
    """
    recorder = _Recorder(folder, columns, lines)
    try:
        recorder.wait(1.0)
        for command in commands:
            recorder.type(command)
            recorder.wait(speed)
    finally:
        recorder.close()
    return recorder.events


def make_frames(events: Sequence[Event], columns: int, lines: int, hold: float) -> list[Frame]:
    """Returns the different screens of a terminal that shows the events, the last one for `hold` seconds more."""
    import pyte

    screen = pyte.Screen(columns, lines)
    stream = pyte.Stream(screen)
    frames: list[Frame] = []
    waited = 0.0
    for event in [*events, Event(hold, "")]:
        waited += event.seconds
        # a screen that is there for a moment only is not shown
        if waited >= _FRAME_SECONDS or event is events[0]:
            shown = _read_screen(screen)
            if frames and frames[-1].lines == shown:
                waited += frames.pop().seconds
            frames.append(Frame(waited, shown))
            waited = 0.0
        stream.feed(event.text)
    return frames


def _read_screen(screen: Any) -> tuple[tuple[Span, ...], ...]:
    """Returns the spans of all lines of a `pyte.Screen`."""
    lines = []
    for row in range(screen.lines):
        cells = [screen.buffer[row][column] for column in range(screen.columns)]
        spans, column = [], 0
        for color, group in itertools.groupby(cells, lambda cell: _COLORS.get(cell.fg, "")):
            text = "".join(cell.data for cell in group)
            if text.strip():
                spans.append(Span(column, text.rstrip(), color))
            column += len(text)
        lines.append(tuple(spans))
    return tuple(lines)


def render(frames: Sequence[Frame], title: str, columns: int, lines: int) -> str:
    """Renders frames as an SVG: one below the other on a film, which moves behind a window.

    Args:
        frames: the frames.
        title: for readers who do not see the picture.
        columns: the width of the terminal.
        lines: its height.
    """
    height = lines * _LINE
    names: dict[tuple[Span, ...], str] = {}
    film = []
    for index, frame in enumerate(frames):
        for row, spans in enumerate(frame.lines):
            if spans:
                name = names.setdefault(spans, f"l{len(names)}")
                film.append(f'<use href="#{name}" y="{index * height + row * _LINE}"/>')
    total = sum(frame.seconds for frame in frames)
    starts = itertools.accumulate((frame.seconds for frame in frames[:-1]), initial=0.0)
    steps = "".join(
        f"{100 * start / total:.3f}%{{transform:translateY({-index * height}px)}}" for index, start in enumerate(starts)
    )
    # a browser that does not move it shows the end
    last = -(len(frames) - 1) * height
    style = _STYLE.format(last=last, seconds=total, steps=f"{steps}to{{transform:translateY({last}px)}}")
    width, full = round(columns * _CHARACTER) + 2 * _MARGIN, height + 2 * _MARGIN
    defined = "".join(f'<g id="{name}">{_render_spans(spans)}</g>\n' for spans, name in names.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {full}" width="{width}" height="{full}" '
        f'role="img" aria-labelledby="title"><title id="title">{html.escape(title)}</title>\n<style>{style}</style>\n'
        f"<defs>{defined}</defs>\n"
        f'<rect x=".5" y=".5" width="{width - 1}" height="{full - 1}" rx="8" fill="#14161a" stroke="#3a404a"/>\n'
        f'<svg x="{_MARGIN}" y="{_MARGIN}" width="{width - 2 * _MARGIN}" height="{height}">'
        f'<g id="film">{"".join(film)}</g></svg>\n</svg>\n'
    )


def _render_spans(spans: Sequence[Span]) -> str:
    parts = []
    for column, text, color in spans:
        style = f' style="fill:{color}"' if color else ""
        # the length makes columns stand where they should in any font
        place = f'x="{column * _CHARACTER:g}" y="14" textLength="{len(text) * _CHARACTER:g}"'
        parts.append(f"<text {place}{style}>{html.escape(text, quote=False)}</text>")
    return "".join(parts)


def main() -> None:
    """Records, and writes the SVG."""
    cli.require_flags(command="what to record", output="the SVG to write")
    columns, lines = _FLAGS.columns, _FLAGS.lines
    with tempfile.TemporaryDirectory() as folder:
        for path in _FLAGS.file:
            if not Path(path).is_file():
                raise UserError(f"--file={path}: no such file")
            shutil.copy(path, folder)
        try:
            events = record(_FLAGS.command, Path(folder), columns, lines, _FLAGS.speed)
            frames = make_frames(events, columns, lines, _FLAGS.hold)
        except ImportError as error:
            raise UserError(f"{error.name} is not installed: pip install -e '.[docs]'") from None
    svg = render(frames, "A terminal: " + "; ".join(_FLAGS.command), columns, lines).encode("utf-8")
    files.write_bytes(Path(_FLAGS.output), svg)
    print(f"{_FLAGS.output}: {len(frames)} frames, {sum(frame.seconds for frame in frames):.0f} s, {len(svg):,} bytes")


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_multi_string("command", [], "A command; may be given several times.")
    flags.DEFINE_multi_string("file", [], "A file for the folder in which they run; may be given several times.")
    flags.DEFINE_string("output", "", "The SVG to write.")
    flags.DEFINE_float("speed", 1.0, "By how much what the commands show is faster than it was.", 0.01)
    flags.DEFINE_float("hold", 6.0, "Seconds for which the end is shown.", 0.0)
    flags.DEFINE_integer("columns", 96, "Width of the terminal.", 20)
    flags.DEFINE_integer("lines", 26, "Height of the terminal.", 2)


if __name__ == "__main__":
    cli.run_command(define_flags, main)
