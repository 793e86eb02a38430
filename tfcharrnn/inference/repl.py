"""A conversation with a model: a beginning is typed, and the text that follows appears as it is made.

A line that starts with a slash is a command; `/help` lists them. Two slashes begin a text that starts with one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator

from tfcharrnn.config import GenerationConfig
from tfcharrnn.errors import UserError
from tfcharrnn.inference.sampling import Sampler

_HELP = """Type the beginning of a text; an empty line goes on with the text so far. A backslash at the end of a line
takes the next line with it. Commands:
  /temperature X  below 1 safer text, above 1 wilder     /top_k N   draw from the N likeliest characters; 0: all
  /top_p X        draw from the likeliest with probability X     /length N  characters to generate
  /seed N         the same seed gives the same text      /stop TEXT end a text before TEXT; nothing: do not
  /undo           take back the last answer              /again     another answer in place of the last
  /pick N         choose each next character yourself, of the N likeliest; 0: leave that mode
  /words N        the same with words, of the N most often found among a hundred samples
  /settings       show the settings                      /quit      leave (or Ctrl-D); Ctrl-C stops an answer"""
# so many samples, each so long, are drawn to find the likeliest words
_WORD_SAMPLES = 100
_WORD_LENGTH = 20
_SETTINGS = ("temperature", "top_k", "top_p", "length", "seed", "stop")


class Conversation:
    """What has been written so far, and the settings for what comes next.

    Attributes:
        config: the settings; the seed grows by one with each answer, so that no two are alike.
        text: the text so far.
    """

    def __init__(self, sampler: Sampler, config: GenerationConfig, write: Callable[[str], object]):
        """Takes the model, the first settings, and where text goes."""
        self.config = config
        self.text = ""
        self._sampler = sampler
        self._write = write
        self._before: list[tuple[str, str]] = []  # for each answer the text before it, and what it went on from
        self._picking = ("", 0)  # `pick` or `words`, and how many are offered; 0: the model chooses
        self._offered: list[str] = []

    def answer(self, line: str) -> str:
        """Takes a line: writes the text that follows it, or does what a command says.

        Returns:
            What is to be told to the person, apart from the text.

        Raises:
            UserError: a character that the model does not know, or a setting that cannot be.
            EOFError: `/quit`.
        """
        if line.startswith("/") and not line.startswith("//"):
            return self._command(*line[1:].partition(" ")[::2])
        line = line.removeprefix("/") if line.startswith("//") else line
        if self._picking[1]:
            return self._take(line)
        self._go_on(line if line else self.text, is_new=bool(line))
        return ""

    def _go_on(self, prime: str, *, is_new: bool) -> None:
        """Writes what follows `prime`; of a text that goes on only what is new is written again."""
        before, written = self.text, 0
        shown_from = 0 if is_new else len(prime)
        made = []
        try:
            for (piece,) in self._sampler.stream(dataclasses.replace(self.config, prime=prime)):
                self._write(piece[max(shown_from - written, 0) :])
                made.append(piece)
                written += len(piece)
        except KeyboardInterrupt:  # what stands there stays
            pass
        self._before.append((before, prime))
        self.text = "".join(made)
        self.config = dataclasses.replace(self.config, seed=(self.config.seed + 1) % 2**31)
        self._write("\n")

    def _take(self, line: str) -> str:
        """Takes a number of what was offered (nothing: the first), or a text of the person's own; offers the next."""
        number = int(line) if line.isascii() and line.isdigit() else 1 if not line else 0
        taken = self._offered[number - 1] if 0 < number <= len(self._offered) else line
        before, self.text = self.text, self.text + taken
        try:
            offer = self._offer()
        except UserError:
            self.text = before
            raise
        self._before.append((before, self.text))
        self._write(taken)
        return offer

    def _offer(self) -> str:
        """Finds the likeliest next characters or words and lists them."""
        kind, count = self._picking
        config = dataclasses.replace(self.config, prime=self.text)
        if kind == "pick":
            found = self._sampler.likeliest(config, count)
        else:
            samples = dataclasses.replace(config, num_samples=_WORD_SAMPLES, length=_WORD_LENGTH, stop="")
            texts = self._sampler.generate(samples)
            start = len(self._sampler.normalise(self.text))  # with which every text begins
            words = Counter(match[0] for text in texts if (match := re.match(r"\W*\w*", text[start:])))
            found = [(word, times / _WORD_SAMPLES) for word, times in words.most_common(count)]
        self._offered = [text for text, _ in found]
        return "  ".join(f"{index} {text!r} {share:.2f}" for index, (text, share) in enumerate(found, start=1))

    def _command(self, name: str, value: str) -> str:
        if name in ("quit", "exit"):
            raise EOFError
        if name == "help":
            return _HELP
        if name == "settings":
            return "  ".join(f"{setting} {getattr(self.config, setting)!r}" for setting in _SETTINGS)
        if name in ("undo", "again"):
            if not self._before:
                raise UserError(f"/{name}: nothing was written yet")
            self.text, prime = self._before.pop()
            if name == "again":
                self._go_on(prime, is_new=True)
                return ""
            return f"the text ends now with {self.text[-40:]!r}" if self.text else "the text is empty now"
        if name in ("pick", "words"):
            if not value.strip().isdigit():
                raise UserError(f"/{name} takes a number. Received: {value!r}")
            self._picking = (name, int(value))
            return self._offer() if self._picking[1] else ""
        if name not in _SETTINGS:
            raise UserError(f"/{name}: no such command; /help lists them")
        kind = type(getattr(self.config, name))
        try:
            self.config = dataclasses.replace(self.config, **{name: kind(value.strip() if kind is not str else value)})
        except ValueError:
            raise UserError(f"/{name} takes a number. Received: {value!r}") from None
        return ""


def converse(sampler: Sampler, config: GenerationConfig) -> None:
    """Reads lines from standard input until it ends; answers on standard output, all else on standard error."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (its import gives `input` a history and line editing)

    def write(text: str) -> None:
        print(text, end="", flush=True)

    def tell(text: str) -> None:
        if text:
            print(text, file=sys.stderr, flush=True)

    if is_terminal:
        tell("The beginning of a text, or /help:")
    conversation = Conversation(sampler, config, write)
    for line in _lines("> " if is_terminal else ""):
        try:
            tell(conversation.answer(line))
        except UserError as error:
            tell(str(error))
        except EOFError:
            return


def _lines(prompt: str) -> Iterator[str]:
    """Lines from standard input; one that ends with a backslash goes on in the next; Ctrl-C drops a line."""
    begun = ""
    while True:
        try:
            line = input("" if begun else prompt)
        except EOFError:
            if begun:
                yield begun
            return
        except KeyboardInterrupt:
            begun = ""
            print(file=sys.stderr)
            continue
        if line.endswith("\\"):
            begun += line[:-1] + "\n"
            continue
        yield begun + line
        begun = ""
