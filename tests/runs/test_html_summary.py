"""What notebooks show of a run."""

import math
import re
from xml.etree import ElementTree

from tfcharrnn.runs import html_summary

ROWS = [{"step": step, "loss": 3.0 / step, **({"val_loss": 4.0 / step} if step % 2 else {})} for step in range(1, 6)]


def points(svg):
    return [
        [tuple(map(float, point.split(","))) for point in line.split()] for line in re.findall('points="(.*?)"', svg)
    ]


def test_both_losses_are_drawn_to_scale():
    svg = html_summary.draw_losses(ROWS)
    ElementTree.fromstring(svg)  # well-formed
    train, val = points(svg)
    assert (len(train), len(val)) == (5, 3)
    assert val[0] == (48.0, 24.0), "the highest loss at the first step is in the upper left corner"
    assert train[-1] == (468.0, 138.0), "the lowest at the last in the lower right"
    assert "training loss" in svg and "validation loss" in svg and "4.00" in svg and "0.60" in svg


def test_what_cannot_be_drawn_is_left_out():
    assert html_summary.draw_losses([]) == html_summary.draw_losses([{"step": 1.0}]) == ""
    svg = html_summary.draw_losses([{"step": 1.0, "loss": math.nan}, {"step": 2.0, "loss": 1.0}])
    assert points(svg) == [[(48.0, 24.0)]] and "validation" not in svg


def test_a_long_run_has_a_short_curve_that_ends_at_its_end():
    rows = [{"step": float(step), "loss": 1.0 / step} for step in range(1, 100_001)]
    (line,) = points(html_summary.draw_losses(rows))
    assert len(line) <= 400 and line[-1] == (468.0, 138.0)


def test_names_are_text_and_no_markup():
    shown = html_summary.summarise("<b>&", {"<i>": "a < b"}, ROWS)
    ElementTree.fromstring(shown)
    assert "<strong>&lt;b&gt;&amp;</strong>" in shown and "&lt;i&gt;" in shown and "a &lt; b" in shown
