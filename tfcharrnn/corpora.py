"""Where text comes from: embedded corpora, downloaded ones, and the user's own files.

Two corpora are on every machine that has Python, with no network: the standard library's own source, and the names
of the Unicode characters. Their text follows the interpreter's version.
"""

from __future__ import annotations

import dataclasses
import sysconfig
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

from tfcharrnn.config import DataConfig
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.files import sha256

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
        raise UserError(f"{corpus.name}: no text is left; the input is empty, or --drop_... removed all of it")
    return dataclasses.replace(corpus, text=text)


def normalise(text: str, config: DataConfig) -> str:
    """Applies `--lowercase`, `--drop_digits` and `--drop_chars`; line ends become a plain newline."""
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
        UserError: the offset of the first byte that is not in it.
    """
    try:
        text = data.decode(encoding)
        text.encode("utf-8")  # refuses lone surrogates, which some codecs let through
    except LookupError:
        raise ConfigError(f"--encoding={encoding}: Python knows no text encoding of that name; try utf-8") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: not {encoding} text: {error.reason} at byte {error.start}; "
            "name the right --encoding, or convert the file"
        ) from None
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: a lone surrogate at character {error.start} is not text; mend the file") from None
    except ValueError as error:  # some codecs say no more than that
        raise UserError(f"{name}: not {encoding} text ({error}); name the right --encoding, or convert it") from None
    return text.removeprefix("\ufeff")


def _from_files(paths: tuple[str, ...], encoding: str, between: str) -> Corpus:
    texts, sources = [], []
    for path in paths:
        try:
            data = Path(path).read_bytes()
        except IsADirectoryError:
            raise UserError(f"{path}: is a folder; --input takes files") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(f"{path}: cannot be read ({reason}); check --input") from None
        if not data:
            raise UserError(f"{path}: is empty; --input needs text")
        texts.append(decode(data, encoding, path))
        sources.append(Source(Path(path).name, len(data), sha256(data)))
    return Corpus("+".join(source.name for source in sources), between.join(texts), tuple(sources))


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
    """The corpus's bytes, from the cache or else from the network; the download's SHA-256 is checked either way."""
    import platformdirs  # here, because only downloads need them, and they are slow to import
    import pooch

    cache = platformdirs.user_cache_path("tfcharrnn") / "corpora"
    pooch.get_logger().setLevel("WARNING")
    file_name = f"{name}.zip" if download.member else f"{name}.txt"
    try:
        fetched = pooch.retrieve(download.url, known_hash=f"sha256:{download.sha256}", fname=file_name, path=cache)
        if not download.member:
            return Path(fetched).read_bytes()
        with zipfile.ZipFile(fetched) as archive:
            return archive.read(download.member)
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
