"""Loads and normalises texts: embedded corpora, downloaded corpora, and the user's own files.

Two corpora come with every Python and need no network: the source code of the standard library, and the names of the
Unicode characters. Both depend on the version of Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import string
import sysconfig
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tfcharrnn.config import DataConfig
from tfcharrnn.data.dataset import join_names
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.files import sha256
from tfcharrnn.preparation import input_files
from tfcharrnn.symbols import choose_codec, text_to_symbols

DEFAULT_CORPUS = "python"
# stands in `DataConfig.input` for a text from memory, which has no file
TEXT_NAME = "<text>"
# the files of a text that is read into memory have at most this many bytes together, unpacked
MAX_BYTES_IN_MEMORY = 2**30

# ASCII in every supported Python, so the vocabulary has fewer than 100 symbols; about a million characters in total
PYTHON_MODULES = (
    "abc", "argparse", "base64", "bisect", "cmd", "code", "codecs", "collections/__init__", "configparser",
    "contextlib", "copy", "csv", "dataclasses", "enum", "filecmp", "fileinput", "fnmatch", "glob", "gzip",
    "hashlib", "html/parser", "http/cookies", "json/decoder", "json/encoder", "linecache", "numbers", "operator",
    "os", "pprint", "queue", "reprlib", "sched", "selectors", "shutil", "socketserver", "string", "tempfile",
    "textwrap", "timeit", "tokenize", "traceback", "types", "uuid", "warnings", "weakref",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """An input of a corpus: its name (never a path), size in bytes, and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text and its sources."""

    name: str
    text: str
    sources: tuple[Source, ...]


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file to read text from.

    Attributes:
        path: its location.
        name: its name in `dataset.json`.
        label: its name in error messages.
        encoding: the codec that decodes it to symbols.
        member: for a zip archive, the member to read.
    """

    path: str
    name: str
    label: str
    encoding: str
    member: str = ""


@dataclasses.dataclass(frozen=True)
class Download:
    """A public text: its URL, the SHA-256 of the file there, and for a zip archive the member to read."""

    url: str
    sha256: str
    member: str = ""


DOWNLOADS = {
    # 40,000 lines of Shakespeare, 1,115,394 characters (Karpathy's char-rnn)
    "tiny-shakespeare": Download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    # the first 10^8 bytes of the English Wikipedia of 2006 (Mahoney), as XML and as plain lower-case words
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


def read_python_source() -> str:
    """Returns the source code of `PYTHON_MODULES`, in that order, joined by newlines."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = []
    for module in PYTHON_MODULES:
        path = library / f"{module}.py"
        try:
            texts.append(path.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"corpus python: {path} cannot be read ({error}); this Python was installed without its source code, "
                "so use --corpus=unicode-names or --input=FILE"
            ) from error
    return "\n".join(texts)


def list_unicode_names() -> str:
    """Returns the names of the Unicode characters, one per line, in order of code point.

    The hundred thousand names that merely encode the code point (CJK ideographs, Hangul syllables, ...) are omitted.
    """
    names = []
    for code_point in range(0x110000):
        name = unicodedata.name(chr(code_point), "")
        if name and not name.endswith(f"-{code_point:04X}") and not name.startswith("HANGUL SYLLABLE "):
            names.append(name)
    return "\n".join(names) + "\n"


EMBEDDED: dict[str, Callable[[], str]] = {"python": read_python_source, "unicode-names": list_unicode_names}


def corpus_names() -> tuple[str, ...]:
    """The values that `--corpus` accepts."""
    return (*EMBEDDED, *DOWNLOADS)


def find_inputs(config: DataConfig) -> tuple[InputFile, ...]:
    """Returns the files of the text that `config` names; none for an embedded corpus.

    Raises:
        UserError: a download failed, a pattern or folder of `--input` has no file, or the text was one from memory.
    """
    if config.input == (TEXT_NAME,) and not os.path.lexists(TEXT_NAME):
        raise UserError(
            "the text was passed as text=... and is no longer cached; pass it again to train_model or prepare_data"
        )
    if config.input:
        paths = input_files.find_files(config.input)
        codec = choose_codec(config.encoding)
        return tuple(InputFile(path, input_files.get_name(path), input_files.get_label(path), codec) for path in paths)
    if config.corpus in DOWNLOADS:
        download = DOWNLOADS[config.corpus]
        with _report_download_errors(config.corpus, download):
            path = _fetch(config.corpus, download)
        return (InputFile(str(path), config.corpus, config.corpus, _download_codec(config), download.member),)
    return ()


def list_names(config: DataConfig) -> list[str]:
    """Returns the name of each file of the text that `config` names, or of the corpus.

    A pattern or folder whose files are no longer there is named itself.
    """
    if not config.input:
        return [config.corpus or DEFAULT_CORPUS]
    try:
        paths = input_files.find_files(config.input)
    except UserError:
        paths = config.input
    return [input_files.get_name(path) for path in paths]


def load(config: DataConfig) -> Corpus:
    """Reads and normalises the text that `config` names; several files are joined by newlines.

    Args:
        config: the files or the corpus, and how to normalise the text.

    Raises:
        UserError: a file or corpus is unavailable, not in its encoding, or leaves no text.
    """
    if config.input:
        corpus = _load_files(config.input, choose_codec(config.encoding))
    else:
        corpus = _load_corpus(config.corpus or DEFAULT_CORPUS, config)
    text = normalise(corpus.text, config)
    if not text:
        raise no_text_error(corpus.name)
    return dataclasses.replace(corpus, text=text)


def make_corpus(text: str, config: DataConfig) -> Corpus:
    """Makes the corpus of a text in memory: that of a file with the text in UTF-8.

    Args:
        text: the text; its surrogates of the error handler "surrogateescape" are bytes that are not UTF-8.
        config: how to normalise the text.

    Raises:
        ConfigError: an encoding is given, which only files have.
        UserError: the text is empty, has lone surrogates, or nothing of it is left.
    """
    if not config.of_bytes and config.encoding != "utf-8":
        raise ConfigError(f"--encoding={config.encoding}: a text from memory is decoded already; leave it out")
    if not text:
        raise UserError("text: is empty; training needs text")
    if config.of_bytes:
        symbols = text_to_symbols(text, True)
        data = symbols.encode("latin-1")
    else:
        with report_decode_errors("utf-8", "text"):
            data = text.encode("utf-8")  # rejects lone surrogates
        symbols = text.removeprefix("\ufeff")
    symbols = normalise(symbols, config)
    if not symbols:
        raise no_text_error("text")
    return Corpus(TEXT_NAME, symbols, (Source(TEXT_NAME, len(data), sha256(data)),))


def no_text_error(name: str) -> UserError:
    """The error for a text without characters."""
    return UserError(f"{name}: no text is left; the input is empty, or --drop_... removed all of it")


def normalise(text: str, config: DataConfig) -> str:
    """Applies `--lowercase`, `--drop_digits` and `--drop_chars`; Windows line ends become plain newlines.

    Bytes are normalised as ASCII, and their line ends stay as they are.
    """
    if config.of_bytes:
        return _normalise_bytes(text, config)
    if "\r" in text:  # searching for one character is much faster than for two
        text = text.replace("\r\n", "\n")
    if config.lowercase:
        text = text.lower()
    dropped = set(config.drop_chars)
    if config.drop_digits:
        dropped |= {character for character in set(text) if character.isdecimal()}
    if dropped:
        text = text.translate({ord(character): None for character in dropped})
    return text


def _normalise_bytes(symbols: str, config: DataConfig) -> str:
    dropped = config.drop_chars + string.digits * config.drop_digits
    if not (config.lowercase or dropped):
        return symbols
    data = symbols.encode("latin-1")  # methods of `bytes` know only ASCII
    return (data.lower() if config.lowercase else data).translate(None, dropped.encode("ascii")).decode("latin-1")


def decode(data: bytes, encoding: str, name: str) -> str:
    """Decodes strictly, without a byte-order mark at the start.

    Raises:
        ConfigError: an unknown encoding.
        UserError: a byte is not valid (the message gives its offset), or there is only a byte-order mark.
    """
    with report_decode_errors(encoding, name):
        text = data.decode(encoding)
        text.encode("utf-8")  # rejects lone surrogates, which some codecs let through
    if data and not text:  # a codec such as utf-8-sig has already removed the mark
        raise empty_file_error(name)
    return text.removeprefix("\ufeff")


@contextlib.contextmanager
def report_decode_errors(encoding: str, name: str, read: int | None = None, characters: int = 0) -> Iterator[None]:
    """Turns a decoding error into a one-line `UserError`.

    Args:
        encoding: the encoding that is tried.
        name: of the input.
        read: number of bytes read so far, where the input is decoded in pieces.
        characters: number of characters decoded before this piece.
    """
    try:
        yield
    except LookupError:
        raise ConfigError(
            f"--encoding={encoding}: not a text encoding that Python knows; try utf-8, or bytes"
        ) from None
    except UnicodeDecodeError as error:
        at = error.start + (0 if read is None else read - len(error.object))
        raise UserError(
            f"{name}: not {encoding} text: {error.reason} at byte {at}; pass the right --encoding, or convert the file"
        ) from None
    except UnicodeEncodeError as error:
        at = characters + error.start
        raise UserError(f"{name}: a lone surrogate at character {at} is not valid text; fix the file") from None
    except ValueError as error:  # some codecs give no details
        raise UserError(f"{name}: not {encoding} text ({error}); pass the right --encoding, or convert it") from None


def _load_files(paths: tuple[str, ...], encoding: str) -> Corpus:
    texts, sources, left = [], [], MAX_BYTES_IN_MEMORY
    for path in input_files.find_files(paths):
        data, source = input_files.read_file(path, left)
        left -= len(data)
        label = input_files.get_label(path)
        if not data:
            raise empty_file_error(label)
        texts.append(decode(data, encoding, label))
        sources.append(Source(input_files.get_name(path), source.size, source.sha256))
    return Corpus(join_names([source.name for source in sources]), "\n".join(texts), tuple(sources))


def empty_file_error(path: str) -> UserError:
    """The error for an empty file."""
    return UserError(f"{path}: is empty; --input needs text")


def _load_corpus(name: str, config: DataConfig) -> Corpus:
    if name in EMBEDDED:
        text = EMBEDDED[name]()
        data = text.encode("utf-8")
        text = text_to_symbols(text, config.of_bytes, name)
    elif name in DOWNLOADS:
        data = _read_download(name, DOWNLOADS[name])
        text = decode(data, _download_codec(config), name)
    else:
        raise ConfigError(
            f"--corpus={name}: not one of {', '.join(corpus_names())}; for your own text pass --input=FILE"
        )
    return Corpus(name, text, (Source(name, len(data), sha256(data)),))


def _download_codec(config: DataConfig) -> str:
    """Returns the codec that decodes a downloaded corpus to symbols."""
    return choose_codec(config.encoding if config.of_bytes else "utf-8")


def _read_download(name: str, download: Download) -> bytes:
    with _report_download_errors(name, download):
        path = _fetch(name, download)
        if not download.member:
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(download.member)


def _fetch(name: str, download: Download) -> Path:
    """Returns the downloaded file, from the cache or the network; its SHA-256 is checked in both cases."""
    import platformdirs  # these are slow to import, and only downloads need them
    import pooch

    cache = platformdirs.user_cache_path("tfcharrnn") / "corpora"
    pooch.get_logger().setLevel("WARNING")
    file_name = f"{name}.zip" if download.member else f"{name}.txt"
    return Path(pooch.retrieve(download.url, known_hash=f"sha256:{download.sha256}", fname=file_name, path=cache))


@contextlib.contextmanager
def _report_download_errors(name: str, download: Download) -> Iterator[None]:
    """Turns an error of downloading a corpus into a one-line `UserError`."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"corpus {name}: the file from {download.url} does not have the expected SHA-256 and was not used; "
            "pass --input=FILE"
        ) from error
    except Exception as error:  # pooch passes on whatever its HTTP library raises
        raise UserError(
            f"corpus {name}: could not be downloaded from {download.url} ({type(error).__name__}); download it by hand "
            f"and pass --input=FILE, or use --corpus={DEFAULT_CORPUS}, which needs no network"
        ) from error
