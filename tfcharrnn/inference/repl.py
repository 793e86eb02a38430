"""Interactive generation: the user types the beginning of a text, and the model continues it.

A line that starts with a slash is a command; `/help` lists them. Two slashes start a text with one slash.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tfcharrnn.config import GenerationConfig
from tfcharrnn.errors import UserError
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.symbols import TextDecoder, escape_for, quote_symbols, symbols_to_text, text_to_symbols

_HELP = """Type the beginning of a text; an empty line continues the text so far. A backslash at the end of a line
joins it with the next line. Commands, which Tab completes:
  /temperature X  below 1 more predictable, above 1 more varied   /top_k N  sample the N likeliest; 0: all
  /top_p X        sample the likeliest with total probability X   /length N characters to generate
  /seed N         the same seed gives the same text   /stop TEXT  end a text before TEXT; empty: off
  /undo           remove the last answer              /again      replace the last answer
  /pick N         choose each next character yourself among the N likeliest; 0: off
  /words N        choose each next word among the N most frequent in a hundred samples; 0: off
  /settings       show the settings                      /quit       exit (or Ctrl-D); Ctrl-C stops an answer"""
# number and length of the samples from which the likeliest words are taken
_WORD_SAMPLES = 100
_WORD_LENGTH = 20
_SETTINGS = ("temperature", "top_k", "top_p", "length", "seed", "stop")
_COMMANDS = (*_SETTINGS, "undo", "again", "pick", "words", "settings", "help", "quit")
_WITHOUT_VALUE = ("undo", "again", "settings", "help", "quit")


class _Turn(NamedTuple):
    """An answer that can be undone: the text before it, and the prime it continued."""

    text_before: str
    prime: str


class _Choice(NamedTuple):
    """What the user chooses, characters (`pick`) or `words`, and among how many; 0: the model chooses."""

    unit: str
    num_offered: int


class Conversation:
    """The text so far and the settings of the next answer.

    Attributes:
        config: the settings; the seed is incremented with each answer.
        text: the symbols of the text so far.
    """

    def __init__(self, sampler: Sampler, config: GenerationConfig, write: Callable[[str], object]):
        self.config = config
        self.text = ""
        self._sampler = sampler
        self._of_bytes = sampler.vocabulary.of_bytes
        self._write = write
        self._history: list[_Turn] = []
        self._choice = _Choice("", 0)
        self._offered: list[str] = []

    def answer(self, line: str) -> str:
        """Writes the continuation of a line, or runs the command in it.

        Returns:
            A message for the user, apart from the text.

        Raises:
            UserError: a character is outside the vocabulary, or a setting is invalid; the message names what was typed.
            EOFError: `/quit`.
        """
        try:
            return self._answer(line)
        except UserError as error:
            raise UserError(_name_typed(str(error))) from None

    def _answer(self, line: str) -> str:
        if line.startswith("/") and not line.startswith("//"):
            return self._run_command(*line[1:].partition(" ")[::2])
        line = line.removeprefix("/") if line.startswith("//") else line
        line = text_to_symbols(line, self._of_bytes, "text")
        if self._choice.num_offered:
            return self._append_choice(line)
        self._continue_text(line if line else self.text, is_new=bool(line))
        return ""

    def _continue_text(self, prime: str, *, is_new: bool) -> None:
        """Writes the continuation of `prime`, and `prime` itself if it is new."""
        text_before, written = self.text, 0
        shown_from = 0 if is_new else len(prime)
        pieces, decoder = [], TextDecoder(self._of_bytes)
        try:
            for (piece,) in self._sampler.stream_symbols(dataclasses.replace(self.config, prime=prime)):
                self._write(decoder.decode(piece[max(shown_from - written, 0) :]))
                pieces.append(piece)
                written += len(piece)
        except KeyboardInterrupt:  # keep what was written
            pass
        self._write(decoder.decode("", is_last=True))
        self._history.append(_Turn(text_before, prime))
        self.text = "".join(pieces)
        self.config = dataclasses.replace(self.config, seed=(self.config.seed + 1) % 2**31)
        self._write("\n")

    def _append_choice(self, line: str) -> str:
        """Appends the choice with the number typed (empty: the first), or the text typed; offers the next choices."""
        is_number = re.fullmatch("[0-9]{1,9}", line)
        number = int(line) if is_number else 1 if not line else 0
        addition = self._offered[number - 1] if 0 < number <= len(self._offered) else line
        text_before, self.text = self.text, self.text + addition
        try:
            offer = self._offer_choices()
        except UserError:
            self.text = text_before
            raise
        self._history.append(_Turn(text_before, self.text))
        self._write(symbols_to_text(addition, self._of_bytes))
        return offer

    def _offer_choices(self) -> str:
        """Lists the likeliest next characters or words."""
        unit, count = self._choice
        config = dataclasses.replace(self.config, prime=self.text)
        if unit == "pick":
            choices = self._sampler.predict_next(config, count)
        else:
            samples = dataclasses.replace(config, num_samples=_WORD_SAMPLES, length=_WORD_LENGTH, stop="")
            texts = self._sampler.generate_symbols(samples)
            start = len(self._sampler.normalise(self.text))  # the prefix of every text
            words = Counter(self._find_word(text[start:]) for text in texts)
            choices = [(word, times / _WORD_SAMPLES) for word, times in words.most_common(count)]
        self._offered = [symbols for symbols, _ in choices]
        return "  ".join(
            f"{index} {quote_symbols(symbols, self._of_bytes)} {share:.2f}"
            for index, (symbols, share) in enumerate(choices, start=1)
        )

    def _find_word(self, symbols: str) -> str:
        """Returns the symbols of the first word and of what precedes it."""
        match = re.match(r"\W*\w*", symbols_to_text(symbols, self._of_bytes, "surrogateescape"))
        return text_to_symbols(match[0], self._of_bytes) if match else ""

    def _run_command(self, name: str, value: str) -> str:
        if name in ("quit", "exit"):
            raise EOFError
        if name == "help":
            return _HELP
        if name == "settings":
            return "  ".join(f"{setting} {getattr(self.config, setting)!r}" for setting in _SETTINGS)
        if name in ("undo", "again"):
            if not self._history:
                raise UserError(f"/{name}: nothing has been written yet")
            self.text, prime = self._history.pop()
            if name == "again":
                self._continue_text(prime, is_new=True)
                return ""
            shown = symbols_to_text(self.text, self._of_bytes)[-40:]
            return f"the text now ends with {shown!r}" if shown else "the text is now empty"
        if name in ("pick", "words"):
            if not re.fullmatch(r"\s*\d{1,9}\s*", value):  # str.isdigit would let ² pass, which int refuses
                raise UserError(f"/{name} takes a number. Received: {value!r}")
            self._choice = _Choice(name, int(value))
            return self._offer_choices() if self._choice.num_offered else ""
        if name not in _SETTINGS:
            raise UserError(f"/{name}: no such command; /help lists them")
        kind = type(getattr(self.config, name))
        try:
            self.config = dataclasses.replace(self.config, **{name: kind(value.strip() if kind is not str else value)})
        except ValueError:
            raise UserError(f"/{name} takes a number. Received: {value!r}") from None
        return ""


def _name_typed(message: str) -> str:
    """Returns the message about a flag with what the user typed here instead: a command, or the text."""
    return re.sub(r"^--(\w+)", lambda flag: f"/{flag[1]}" if flag[1] in _SETTINGS else "the text", message)


def complete_command(line: str) -> list[str]:
    """Returns the commands that a line may become, with a space behind those that take a value."""
    if not line.startswith("/"):
        return []
    return [f"/{name}{'' if name in _WITHOUT_VALUE else ' '}" for name in _COMMANDS if name.startswith(line[1:])]


def _enable_editing() -> None:
    """Gives `input` a history, line editing and, with Tab, the completion of commands, where Python has them."""
    try:
        import readline
    except ImportError:
        return

    def complete(_: str, index: int) -> str | None:
        found = complete_command(readline.get_line_buffer())
        return found[index] if index < len(found) else None

    readline.set_completer_delims("")  # a line is completed as a whole
    readline.set_completer(complete)
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


def converse(sampler: Sampler, config: GenerationConfig) -> None:
    """Answers lines from standard input until it ends: text on standard output, messages on standard error."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        _enable_editing()

    # so that a message starts on a line of its own after a text without a newline at its end
    is_shown_together = sys.stdout.isatty() and sys.stderr.isatty()
    is_line_open = False

    def write(text: str) -> None:
        nonlocal is_line_open
        is_line_open = not text.endswith("\n") if text else is_line_open
        print(escape_for(sys.stdout, text), end="", flush=True)

    def tell(text: str) -> None:
        nonlocal is_line_open
        if text:
            print("\n" * (is_line_open and is_shown_together) + text, file=sys.stderr, flush=True)
            is_line_open = False

    if is_terminal:
        tell("Type the beginning of a text, or /help:")
    conversation = Conversation(sampler, config, write)
    for line in _read_lines("> " if is_terminal else ""):
        try:
            tell(conversation.answer(line))
        except UserError as error:
            tell(str(error))
        except EOFError:
            return


def _read_lines(prompt: str) -> Iterator[str]:
    """Yields lines from standard input; a trailing backslash joins two lines, and Ctrl-C drops a line."""
    unfinished = ""
    while True:
        try:
            line = input("" if unfinished else prompt)
        except EOFError:
            if prompt:  # Ctrl-D leaves the cursor behind the prompt
                print(file=sys.stderr)
            if unfinished:
                yield unfinished
            return
        except KeyboardInterrupt:
            unfinished = ""
            print(file=sys.stderr)
            continue
        if line.endswith("\\"):
            unfinished += line[:-1] + "\n"
            continue
        yield unfinished + line
        unfinished = ""
