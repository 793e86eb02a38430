"""Text on a terminal: what a model has learned must not control it; a file or pipe gets the text as it is."""

import io
import sys
from types import SimpleNamespace

import pytest

from tfcharrnn import cli, generate
from tfcharrnn.config import GenerationConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.inference import repl, trained_model
from tfcharrnn.symbols import escape_for
from tfcharrnn.training.callbacks import SampleReport
from tfcharrnn.training.progress import Progress

LEARNED = "red \x1b[31m\ttab\x07\nnext\r\x7f\x9b2Jé字"
SHOWN = "red \\x1b[31m\ttab\\x07\nnext\\x0d\\x7f\\x9b2Jé字"


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def reconfigure(self, **_):
        pass


@pytest.fixture(params=[Terminal, io.StringIO])
def kind(request):
    return request.param


def expected(kind):
    return SHOWN if kind is Terminal else LEARNED


def test_controls_are_escaped_for_a_terminal_only(kind):
    assert escape_for(kind(), LEARNED) == expected(kind)


class Parrot:
    """A sampler that writes what a model learned."""

    vocabulary = Vocabulary("a")

    def stream(self, config):
        yield from ([character] for character in LEARNED)

    stream_symbols = stream

    def generate(self, config):
        return [LEARNED] * config.num_samples


def run_generate(monkeypatch, stdout, sampler, count):
    settings = SimpleNamespace(interactive=False, json=False, checkpoint="latest", run_dir="", model="", prime_file="")
    monkeypatch.setattr(generate, "_FLAGS", settings)
    monkeypatch.setattr(cli, "parse_config", lambda cls: GenerationConfig(num_samples=count))
    monkeypatch.setattr(cli, "load_tensorflow", lambda: None)
    monkeypatch.setattr(cli, "load_cells", lambda: None)
    monkeypatch.setattr(trained_model, "load_model", lambda *_: SimpleNamespace(sampler=sampler))
    monkeypatch.setattr(sys, "stdout", stdout)
    generate.main()


@pytest.mark.parametrize("count", [1, 2])
def test_generate(kind, count, monkeypatch):
    run_generate(monkeypatch, kind(), Parrot(), count)
    assert sys.stdout.getvalue() == "\n--------\n".join([expected(kind)] * count) + "\n"


def test_the_conversation(kind, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("go on\n"))
    monkeypatch.setattr(sys, "stdout", kind())
    repl.converse(Parrot(), GenerationConfig())
    assert sys.stdout.getvalue() == expected(kind) + "\n"


def test_samples_of_training(kind, monkeypatch):
    progress = Progress.__new__(Progress)
    progress._quiet, progress._bar = False, None
    monkeypatch.setattr(sys, "stderr", kind())
    progress.on_sample(SampleReport(3, LEARNED))
    assert sys.stderr.getvalue() == f"--- sample at step 3 ---\n{expected(kind)}\n---\n"


def converse(monkeypatch, lines, sampler):
    """Returns what a terminal shows during a conversation, except for what is typed."""
    shown, lines = Terminal(), iter(lines)

    def read(prompt):
        shown.write(prompt)
        if (line := next(lines, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", shown)
    repl.converse(sampler, GenerationConfig())
    return shown.getvalue()


class Offering:
    """A sampler that offers two characters."""

    vocabulary = Vocabulary("a")

    def predict_next(self, config, count):
        return [("x", 0.75), ("y", 0.25)]


class Silent:
    """A sampler that is not asked."""

    vocabulary = Vocabulary("a")


def test_a_terminal_completes_commands(monkeypatch):
    given = {}
    readline = SimpleNamespace(
        get_line_buffer=lambda: "/a",
        set_completer=lambda complete: given.update(complete=complete),
        set_completer_delims=lambda delimiters: given.update(delimiters=delimiters),
        parse_and_bind=lambda line: given.update(binding=line),
    )
    monkeypatch.setitem(sys.modules, "readline", readline)
    converse(monkeypatch, [], Silent())
    assert (given["delimiters"], given["binding"]) == ("", "tab: complete")
    assert [given["complete"]("/a", index) for index in range(2)] == ["/again", None]


def test_a_python_without_readline_converses(monkeypatch):
    monkeypatch.setitem(sys.modules, "readline", None)
    assert "/help" in converse(monkeypatch, [], Silent())


def test_names_are_one_a_line(monkeypatch):
    class Names(Parrot):
        vocabulary = Vocabulary(["<PAD>", "<S>", "</S>", "a", "b"])

        def generate(self, config):
            return ["ab", "", "ba"]

    run_generate(monkeypatch, io.StringIO(), Names(), 3)
    assert sys.stdout.getvalue() == "ab\n\nba\n"


def test_choices_and_the_end_begin_on_a_line_of_their_own(monkeypatch):
    shown = converse(monkeypatch, ["/pick 2", "1", "ab"], Offering())
    offer = "1 'x' 0.75  2 'y' 0.25\n"
    assert shown == f"Type the beginning of a text, or /help:\n> {offer}> x\n{offer}> ab\n{offer}> \n"
