"""Where text comes from: embedded corpora, downloaded ones, and the user's own files.

Two corpora are on every machine that has Python, with no network: the standard library's own source, and the names
of the Unicode characters. Their text follows the interpreter's version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sysconfig
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tfcharrnn.config import DataConfig
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.files import sha256
from tfcharrnn.preparation import input_files

DEFAULT_CORPUS = "python"

# Plain ASCII in every supported Python, so the vocabulary stays below 100 symbols; about a million characters.
PYTHON_MODULES = (
    "abc", "argparse", "base64", "bisect", "cmd", "code", "codecs", "collections/__init__", "configparser",
    "contextlib", "copy", "csv", "dataclasses", "enum", "filecmp", "fileinput", "fnmatch", "glob", "gzip",
    "hashlib", "html/parser", "http/cookies", "json/decoder", "json/encoder", "linecache", "numbers", "operator",
    "os", "pprint", "queue", "reprlib", "sched", "selectors", "shutil", "socketserver", "string", "tempfile",
    "textwrap", "timeit", "tokenize", "traceback", "types", "uuid", "warnings", "weakref",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """One input of a corpus: its name (never a path), size in bytes and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text and where it came from."""

    name: str
    text: str
    sources: tuple[Source, ...]


@dataclasses.dataclass(frozen=True)
class Input:
    """A file that a text is read from.

    Attributes:
        path: where it is.
        name: by which it is kept.
        label: by which errors name it.
        encoding: its own.
        member: what to read of it, if it is a zip archive.
    """

    path: str
    name: str
    label: str
    encoding: str
    member: str = ""


@dataclasses.dataclass(frozen=True)
class Download:
    """A public text: its address, the SHA-256 of what is downloaded, and the member if that is a zip archive."""

    url: str
    sha256: str
    member: str = ""


DOWNLOADS = {
    # 40,000 lines of Shakespeare, 1,115,394 characters (Karpathy's char-rnn)
    "tiny-shakespeare": Download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    # the first 10^8 bytes of the English Wikipedia of 2006 (Mahoney), as XML and as bare lower-case words
    "enwik8": Download(
        "http://mattmahoney.net/dc/enwik8.zip",
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        member="enwik8",
    ),
    "text8": Download(
        "http://mattmahoney.net/dc/text8.zip",
        "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        member="text8",
    ),
}


def python_source() -> str:
    """The source of `PYTHON_MODULES`, in that order, joined by a newline."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = []
    for module in PYTHON_MODULES:
        path = library / f"{module}.py"
        try:
            texts.append(path.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"corpus python: {path} cannot be read ({error}); this Python came without its source, "
                "so take --corpus=unicode-names or --input=FILE"
            ) from error
    return "\n".join(texts)


def unicode_names() -> str:
    """The names of the Unicode characters, one a line, by code point.

    Names made by a rule from the code point (CJK ideographs, Hangul syllables and the like) are left out: there are
    a hundred thousand of them and they say nothing.
    """
    names = []
    for code_point in range(0x110000):
        name = unicodedata.name(chr(code_point), "")
        if name and not name.endswith(f"-{code_point:04X}") and not name.startswith("HANGUL SYLLABLE "):
            names.append(name)
    return "\n".join(names) + "\n"


EMBEDDED: dict[str, Callable[[], str]] = {"python": python_source, "unicode-names": unicode_names}


def names() -> tuple[str, ...]:
    """Every corpus that `--corpus` takes."""
    return (*EMBEDDED, *DOWNLOADS)


def inputs_of(config: DataConfig) -> tuple[Input, ...]:
    """The files of the text that `config` names; none, where Python itself has the text.

    Raises:
        UserError: a corpus that cannot be had, or a pattern or a folder without a file.
    """
    if config.input:
        return tuple(Input(path, Path(path).name, path, config.encoding) for path in input_files.find(config.input))
    if config.corpus in DOWNLOADS:
        download = DOWNLOADS[config.corpus]
        with _having(config.corpus, download):
            path = _fetched(config.corpus, download)
        return (Input(str(path), config.corpus, config.corpus, "utf-8", download.member),)
    return ()


def joined_name(names: Sequence[str], between: str = "+") -> str:
    """How a text of several files is called; of very many only a few are named."""
    return between.join(names if len(names) <= 20 else [*names[:3], f"{len(names) - 3} more"])


def load(config: DataConfig, *, between: str = "\n") -> Corpus:
    """Reads the text that `config` names and normalises it.

    Args:
        config: which files or which corpus, and how to normalise it.
        between: what to put between two files.

    Raises:
        UserError: a file or a corpus that cannot be had, is not in its encoding, or leaves no text.
    """
    named = config.corpus or DEFAULT_CORPUS
    corpus = _from_files(config.input, config.encoding, between) if config.input else _from_name(named)
    text = normalise(corpus.text, config)
    if not text:
        raise nothing_left(corpus.name)
    return dataclasses.replace(corpus, text=text)


def nothing_left(name: str) -> UserError:
    """What to tell of a text without characters."""
    return UserError(f"{name}: no text is left; the input is empty, or --drop_... removed all of it")


def normalise(text: str, config: DataConfig) -> str:
    """Applies `--lowercase`, `--drop_digits` and `--drop_chars`; line ends become a plain newline."""
    if "\r" in text:  # to look for one character is far quicker than for two
        text = text.replace("\r\n", "\n")
    if config.lowercase:
        text = text.lower()
    dropped = set(config.drop_chars)
    if config.drop_digits:
        dropped |= {character for character in set(text) if character.isdecimal()}
    if dropped:
        text = text.translate({ord(character): None for character in dropped})
    return text


def decode(data: bytes, encoding: str, name: str) -> str:
    """Decodes strictly; a byte-order mark at the start is no part of the text.

    Raises:
        ConfigError: an unknown encoding.
        UserError: the offset of the first byte that is not in it, or a mark is all there is.
    """
    with decoding(encoding, name):
        text = data.decode(encoding)
        text.encode("utf-8")  # refuses lone surrogates, which some codecs let through
    if data and not text:  # as of utf-8-sig, where the mark is none of the text
        raise empty(name)
    return text.removeprefix("\ufeff")


@contextlib.contextmanager
def decoding(encoding: str, name: str, read: int | None = None, characters: int = 0) -> Iterator[None]:
    """Tells in one line why bytes are no text.

    Args:
        encoding: which is tried.
        name: of what is decoded.
        read: how many of its bytes are read so far, if the body is not given all at once.
        characters: how many characters they gave before.
    """
    try:
        yield
    except LookupError:
        raise ConfigError(f"--encoding={encoding}: Python knows no text encoding of that name; try utf-8") from None
    except UnicodeDecodeError as error:
        at = error.start + (0 if read is None else read - len(error.object))
        raise UserError(
            f"{name}: not {encoding} text: {error.reason} at byte {at}; name the right --encoding, or convert the file"
        ) from None
    except UnicodeEncodeError as error:
        at = characters + error.start
        raise UserError(f"{name}: a lone surrogate at character {at} is not text; mend the file") from None
    except ValueError as error:  # some codecs say no more than that
        raise UserError(f"{name}: not {encoding} text ({error}); name the right --encoding, or convert it") from None


def _from_files(paths: tuple[str, ...], encoding: str, between: str) -> Corpus:
    texts, sources = [], []
    for path in input_files.find(paths):
        data, on_disk = input_files.read(path)
        if not data:
            raise empty(path)
        texts.append(decode(data, encoding, path))
        sources.append(Source(Path(path).name, len(on_disk), sha256(on_disk)))
    return Corpus(joined_name([source.name for source in sources]), between.join(texts), tuple(sources))


def empty(path: str) -> UserError:
    """What to tell of an empty file."""
    return UserError(f"{path}: is empty; --input needs text")


def _from_name(name: str) -> Corpus:
    if name in EMBEDDED:
        text = EMBEDDED[name]()
        data = text.encode("utf-8")
    elif name in DOWNLOADS:
        data = _downloaded(name, DOWNLOADS[name])
        text = decode(data, "utf-8", name)
    else:
        raise ConfigError(f"--corpus={name}: not one of {', '.join(names())}; for a text of your own pass --input=FILE")
    return Corpus(name, text, (Source(name, len(data), sha256(data)),))


def _downloaded(name: str, download: Download) -> bytes:
    """The corpus's bytes."""
    with _having(name, download):
        path = _fetched(name, download)
        if not download.member:
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(download.member)


def _fetched(name: str, download: Download) -> Path:
    """The downloaded file, in the cache or else from the network; its SHA-256 is checked either way."""
    import platformdirs  # here, because only downloads need them, and they are slow to import
    import pooch

    cache = platformdirs.user_cache_path("tfcharrnn") / "corpora"
    pooch.get_logger().setLevel("WARNING")
    file_name = f"{name}.zip" if download.member else f"{name}.txt"
    return Path(pooch.retrieve(download.url, known_hash=f"sha256:{download.sha256}", fname=file_name, path=cache))


@contextlib.contextmanager
def _having(name: str, download: Download) -> Iterator[None]:
    """Tells in one line why a corpus cannot be had."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"corpus {name}: {download.url} gave a file with another SHA-256 than the known one; "
            "it was not used; pass --input=FILE"
        ) from error
    except Exception as error:  # pooch lets through whatever its HTTP library raises
        raise UserError(
            f"corpus {name}: could not be had from {download.url} ({type(error).__name__}); "
            f"get it by hand and pass --input=FILE, or take --corpus={DEFAULT_CORPUS}, which needs no network"
        ) from error
