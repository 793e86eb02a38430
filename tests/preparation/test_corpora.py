import codecs
import functools
import http.server
import io
import os
import threading
import zipfile

import pytest

from tfcharrnn.config import DataConfig
from tfcharrnn.errors import UserError
from tfcharrnn.files import sha256
from tfcharrnn.preparation import corpora
from tfcharrnn.preparation.corpora import Download


def write(path, data):
    path.write_bytes(data)
    return str(path)


def text_of(*paths, **settings):
    return corpora.load(DataConfig(input=tuple(paths), **settings)).text


def error_of(**settings):
    with pytest.raises(UserError) as caught:
        corpora.load(DataConfig(**settings))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_files_are_joined_by_a_newline(tmp_path):
    paths = [write(tmp_path / name, data) for name, data in [("a.txt", b"one"), ("b.txt", b"two\n"), ("c.txt", b"3")]]
    corpus = corpora.load(DataConfig(input=tuple(paths)))
    assert corpus.text == "one\ntwo\n\n3"
    assert corpus.name == "a.txt+b.txt+c.txt"
    assert corpus.sources[1] == corpora.Source("b.txt", 4, sha256(b"two\n"))


def test_sources_name_no_path(tmp_path):
    corpus = corpora.load(DataConfig(input=(write(tmp_path / "a.txt", b"one"),)))
    assert str(tmp_path) not in repr(corpus)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_text_is_read_in_its_encoding(tmp_path, encoding):
    path = write(tmp_path / "a.txt", "Ünïcode é\n".encode(encoding))
    assert text_of(path, encoding=encoding) == "Ünïcode é\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")],
)
def test_byte_order_mark_is_no_text_in_any_file(tmp_path, mark, encoding):
    paths = [write(tmp_path / name, mark + name.encode(encoding)) for name in ("a", "b")]
    assert text_of(*paths, encoding=encoding) == "a\nb"


def test_windows_line_ends_become_newlines(tmp_path):
    assert text_of(write(tmp_path / "a", b"one\r\ntwo\r\n\r\nthree\rfour")) == "one\ntwo\n\nthree\rfour"


def test_nul_and_control_characters_are_text(tmp_path):
    assert text_of(write(tmp_path / "a", b"a\x00b\x1b\x7f")) == "a\x00b\x1b\x7f"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "A1 b٣²!? É"),
        ({"lowercase": True}, "a1 b٣²!? é"),
        ({"drop_digits": True}, "A b²!? É"),
        ({"drop_chars": "!? "}, "A1b٣²É"),
        ({"lowercase": True, "drop_digits": True, "drop_chars": "aé"}, " b²!? "),
    ],
)
def test_normalisation(tmp_path, settings, expected):
    assert text_of(write(tmp_path / "a", "A1 b٣²!? É".encode()), **settings) == expected


def test_nothing_left_of_a_text_is_one_error(tmp_path):
    path = write(tmp_path / "a.txt", b"123")
    assert error_of(input=(path,), drop_digits=True).startswith("a.txt: no text is left")
    path = write(tmp_path / "b.txt", codecs.BOM_UTF8)
    assert error_of(input=(path,)).startswith("b.txt: no text is left")


def test_missing_file_is_one_error(tmp_path):
    path = str(tmp_path / "none.txt")
    assert error_of(input=(path,)) == f"{path}: cannot be read (No such file or directory); check --input"


def test_empty_file_is_one_error(tmp_path):
    full, empty = write(tmp_path / "a.txt", b"a"), write(tmp_path / "b.txt", b"")
    assert error_of(input=(full, empty)) == f"{empty}: is empty; --input needs text"


def test_folder_without_files_is_one_error(tmp_path):
    assert error_of(input=(str(tmp_path),)) == f"{tmp_path}: no file with text found; check --input"


def test_impossible_file_names_are_one_error():
    assert "check --input" in error_of(input=("a\0b",))
    assert "File name too long" in error_of(input=("n" * 5000,))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file_is_one_error(tmp_path):
    path = write(tmp_path / "a.txt", b"a")
    os.chmod(path, 0)
    assert error_of(input=(path,)) == f"{path}: cannot be read (Permission denied); check --input"


def test_unreadable_disk_is_one_error(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("tfcharrnn.preparation.input_files.open", broken, raising=False)
    assert error_of(input=("a.txt",)) == "a.txt: cannot be read (Input/output error); check --input"


@pytest.mark.parametrize(
    ("data", "encoding", "offset"),
    [
        (b"text\x89PNG", "utf-8", 4),
        (b"\xff", "utf-8", 0),
        ("é".encode() * 1000 + b"\xc3", "utf-8", 2000),
        (codecs.BOM_UTF8 + b"a\xe9", "utf-8", 4),
        (b"caf\xe9", "ascii", 3),
        (b"a\x00b\x00c", "utf-16-le", 4),
    ],
)
def test_first_byte_that_is_no_text_is_named(tmp_path, data, encoding, offset):
    path = write(tmp_path / "a.bin", data)
    message = error_of(input=(path,), encoding=encoding)
    assert message.startswith(f"{path}: not {encoding} text: ")
    assert f" at byte {offset};" in message
    assert "--encoding" in message


@pytest.mark.parametrize("encoding", ["no-such-encoding", "base64", "rot13", ""])
def test_unknown_encoding_is_one_error(tmp_path, encoding):
    path = write(tmp_path / "a.txt", b"text")
    assert error_of(input=(path,), encoding=encoding).startswith(
        f"--encoding={encoding}: not a text encoding that Python knows"
    )


@pytest.mark.parametrize("encoding", ["undefined", "a\0b", "idna"])
def test_encoding_that_refuses_in_its_own_way_is_one_error(tmp_path, encoding):
    path = write(tmp_path / "a.txt", b"xn--\xff" + b"a" * 100)
    assert "encoding" in error_of(input=(path,), encoding=encoding)


def test_lone_surrogates_are_no_text(tmp_path):
    path = write(tmp_path / "a.txt", b"+2AA-")  # U+D800, which the utf-7 codec of Python lets through
    assert f"{path}: " in error_of(input=(path,), encoding="utf-7")
    path = write(tmp_path / "a.txt", b"ab\\ud800")
    assert "a lone surrogate at character 2" in error_of(input=(path,), encoding="unicode_escape")


def test_unknown_corpus_is_one_error_that_lists_the_known_ones():
    message = error_of(corpus="bible")
    assert message.startswith("--corpus=bible: not one of python, unicode-names, ")
    assert all(name in message for name in corpora.corpus_names())
    assert "--input=FILE" in message


def test_python_corpus_is_a_megabyte_of_ascii():
    text = corpora.load(DataConfig()).text
    assert 800_000 < len(text) < 1_500_000
    assert text.isascii()
    assert 90 <= len(set(text)) <= 100
    assert text.startswith("# Copyright 2007 Google, Inc. All Rights Reserved.\n")
    assert "def namedtuple(" in text


def test_unicode_names_are_about_a_megabyte_of_lines():
    text = corpora.load(DataConfig(corpus="unicode-names")).text
    lines = text.splitlines()
    assert 600_000 < len(text) < 1_500_000
    assert lines[:2] == ["SPACE", "EXCLAMATION MARK"]
    assert "LATIN SMALL LETTER E WITH ACUTE" in lines
    assert len(set(lines)) == len(lines)
    assert not any(line.startswith(("CJK UNIFIED IDEOGRAPH-", "HANGUL SYLLABLE ")) for line in lines)


@pytest.mark.parametrize("name", ["python", "unicode-names"])
def test_embedded_corpora_are_the_same_each_time(name):
    first, second = (corpora.load(DataConfig(corpus=name)) for _ in range(2))
    assert first == second
    assert first.sources == (corpora.Source(name, len(first.text), sha256(first.text.encode())),)


def test_python_without_its_source_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    message = error_of(corpus="python")
    assert message.startswith("corpus python: ")
    assert "--corpus=unicode-names or --input=FILE" in message


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tfcharrnn" / "corpora"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server of the files in a folder; gives the folder, its address and the list of the requests so far."""
    folder, requests = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(self.path)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}", requests
        httpd.shutdown()
        thread.join()


def serve(monkeypatch, server, name, data, **download):
    folder, address, _ = server
    (folder / name).write_bytes(data)
    monkeypatch.setitem(corpora.DOWNLOADS, "local", Download(f"{address}/{name}", sha256(data), **download))


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_downloaded_text_is_kept(monkeypatch, server, cache):
    serve(monkeypatch, server, "text.txt", "Tëxt\n".encode())
    corpus = corpora.load(DataConfig(corpus="local"))
    assert corpus == corpora.load(DataConfig(corpus="local"))
    assert corpus == corpora.Corpus("local", "Tëxt\n", (corpora.Source("local", 6, sha256("Tëxt\n".encode())),))
    assert server[2] == ["/text.txt"]
    assert [path.name for path in cache.iterdir()] == ["local.txt"]


def test_downloaded_archive_is_kept_and_its_member_read(monkeypatch, server, cache):
    serve(monkeypatch, server, "text.zip", zipped(text8=b"the text", other=b"not this"), member="text8")
    for _ in range(2):
        assert corpora.load(DataConfig(corpus="local")).text == "the text"
    assert server[2] == ["/text.zip"]


def test_damaged_cache_is_downloaded_again(monkeypatch, server, cache):
    serve(monkeypatch, server, "text.zip", zipped(text8=b"the text"), member="text8")
    corpora.load(DataConfig(corpus="local"))
    (cache / "local.zip").write_bytes(b"the te")
    assert corpora.load(DataConfig(corpus="local")).text == "the text"
    assert server[2] == ["/text.zip"] * 2


def test_download_with_a_wrong_sum_is_not_used(monkeypatch, server, cache):
    serve(monkeypatch, server, "text.txt", b"text")
    (server[0] / "text.txt").write_bytes(b"something else")
    message = error_of(corpus="local")
    assert message.startswith("corpus local: ")
    assert "does not have the expected SHA-256" in message
    assert "--input=FILE" in message
    assert not any(path.read_bytes() == b"something else" for path in cache.iterdir())


def test_download_that_is_gone_is_one_error(monkeypatch, server, cache):
    serve(monkeypatch, server, "text.txt", b"text")
    (server[0] / "text.txt").unlink()
    message = error_of(corpus="local")
    assert message.startswith("corpus local: could not be downloaded from http://127.0.0.1")
    assert "--input=FILE" in message


def test_archive_without_its_member_is_one_error(monkeypatch, server, cache):
    serve(monkeypatch, server, "text.zip", zipped(other=b"not this"), member="text8")
    assert "--input=FILE" in error_of(corpus="local")


@pytest.mark.parametrize("name", sorted(corpora.DOWNLOADS))
@pytest.mark.parametrize(
    "error", [ConnectionError("no network"), TimeoutError(), PermissionError(13, "Permission denied")]
)
def test_no_network_is_one_error_that_names_the_corpus_and_the_way_out(monkeypatch, cache, name, error):
    def retrieve(*arguments, **settings):
        raise error

    monkeypatch.setattr("pooch.retrieve", retrieve)
    message = error_of(corpus=name)
    assert message.startswith(f"corpus {name}: could not be downloaded from {corpora.DOWNLOADS[name].url}")
    assert "--input=FILE" in message
    assert "--corpus=python" in message
