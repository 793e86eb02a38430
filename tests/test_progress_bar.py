"""Where progress bars are shown."""

import io
import sys
from types import SimpleNamespace

import pytest

from tfcharrnn import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def ipython(monkeypatch):
    """A function that makes the process look like one with this IPython shell."""

    def go(**shell):
        fake = SimpleNamespace(get_ipython=lambda: SimpleNamespace(**shell) if shell else None)
        monkeypatch.setitem(sys.modules, "IPython", fake)

    return go


def test_a_notebook_is_told_from_a_terminal(ipython, monkeypatch):
    ipython(kernel=object())
    assert progress_bar.is_in_notebook()
    ipython(kernel=None)
    assert not progress_bar.is_in_notebook()
    ipython(prompts=1)
    assert not progress_bar.is_in_notebook(), "the shell `ipython`"
    ipython()
    assert not progress_bar.is_in_notebook(), "IPython is imported only"
    monkeypatch.delitem(sys.modules, "IPython")
    assert not progress_bar.is_in_notebook()


@pytest.mark.parametrize(
    ("kind", "is_notebook", "is_shown"), [(Terminal, 0, 1), (io.StringIO, 0, 0), (io.StringIO, 1, 1)]
)
def test_a_bar_is_for_terminals_and_notebooks(kind, is_notebook, is_shown, monkeypatch):
    monkeypatch.setattr(progress_bar, "is_in_notebook", lambda: bool(is_notebook))
    monkeypatch.setattr(sys, "stderr", kind())
    bar = progress_bar.make_bar(total=3)
    assert (bar is not None) == bool(is_shown)
    if bar is not None:
        bar.update(3)
        bar.close()
        assert "3/3" in sys.stderr.getvalue() and "IProgress" not in sys.stderr.getvalue()
