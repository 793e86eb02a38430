"""The recording of a terminal: what commands show, with its times, as an SVG that moves by itself."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("pexpect", reason="pexpect is not installed")
pytest.importorskip("pyte", reason="pyte is not installed")

import record_terminal
from record_terminal import Event, Frame, Span

from tfcharrnn.errors import UserError


def text_of(frame):
    return "\n".join("".join(span.text for span in spans) for spans in frame.lines).rstrip()


def test_commands_run_one_after_the_other(tmp_path):
    (tmp_path / "a <b>.txt").touch()
    events = record_terminal.record(["ls", "echo $((6 * 7))"], tmp_path, columns=40, lines=8)
    frames = record_terminal.make_frames(events, columns=40, lines=8, hold=2.0)
    assert text_of(frames[-1]) == "$ ls\n'a <b>.txt'\n$ echo $((6 * 7))\n42\n$"
    assert frames[-1].seconds >= 2.0
    assert frames[-1].lines[0][0] == Span(0, "$", record_terminal._COLORS["green"])


def test_a_command_that_ends_the_shell_is_an_error(tmp_path):
    with pytest.raises(UserError, match="the shell ended"):
        record_terminal.record(["exit", "ls"], tmp_path, columns=40, lines=8)


def test_what_is_shown_for_a_moment_only_is_no_frame():
    events = [Event(0.0, "a"), Event(1.0, "\rb"), Event(0.01, "\rc"), Event(0.5, "\rc"), Event(0.5, "\rd")]
    frames = record_terminal.make_frames(events, columns=4, lines=2, hold=3.0)
    assert [(text_of(frame), round(frame.seconds, 2)) for frame in frames][1:] == [("a", 1.0), ("c", 1.01), ("d", 3.0)]


def test_the_film_shows_each_frame_for_its_time():
    shown = (Span(2, "1 < 2", ""),)
    frames = [Frame(1.0, ((), ())), Frame(3.0, (shown, shown))]
    svg = record_terminal.render(frames, "a & b", columns=20, lines=2)
    root = ElementTree.fromstring(svg)
    names = {"svg": "http://www.w3.org/2000/svg"}
    assert root.find("svg:title", names).text == "a & b"
    assert [text.text for text in root.iterfind(".//svg:text", names)] == ["1 < 2"]  # a line is there once
    assert [use.get("y") for use in root.iterfind(".//svg:use", names)] == ["38", "57"]
    assert "animation: play 4.00s" in svg
    assert re.findall(r"([\d.]+)%{transform:translateY\((-?\d+)px\)}", svg) == [("0.000", "0"), ("25.000", "-38")]
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")  # no font, no picture from elsewhere
