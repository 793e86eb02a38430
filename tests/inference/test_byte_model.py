"""A model of bytes takes and shows text, and loses no byte."""

import dataclasses
import json

import commands
import numpy as np
import pytest

import tfcharrnn
from tfcharrnn import ConfigError, GenerationConfig, UserError
from tfcharrnn.inference import evaluation, sampling
from tfcharrnn.inference.repl import Conversation
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.symbols import symbols_to_text, text_to_symbols

pytestmark = pytest.mark.usefixtures("own_cache")

# each line ends in a byte that is not UTF-8, and a Windows line end
LINE = "Größe — 日本 🙂".encode() + b"\xff\r\n"
SHOWN = "Größe — 日本 🙂\\xff\r\n"
DATA = b"\xef\xbb\xbf" + LINE * 60
SMALL = {"cell": "gru", "hidden_size": 32, "batch_size": 8, "learning_rate": 0.02, "quiet": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a file, and a run that has learnt it by heart."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "data.bin").write_bytes(DATA)
    tfcharrnn.train_model(
        folder / "run", input=(str(folder / "data.bin"),), encoding="bytes", seq_length=60, steps=150, sample_every=50,
        sample_length=200, checkpoint_every=100, keep_checkpoints=0, **SMALL,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def trained(home):
    return tfcharrnn.load_model(home / "run")


@pytest.fixture(scope="module")
def text_model(home):
    (home / "text.txt").write_text("Größe 日本\n" * 60, encoding="utf-8")
    settings = SMALL | {"hidden_size": 4, "seq_length": 30, "steps": 1}
    tfcharrnn.train_model(home / "text", input=(str(home / "text.txt"),), **settings)
    return tfcharrnn.load_model(home / "text")


# generation


def test_bytes_are_shown_as_text_and_what_is_no_text_is_escaped(trained, home):
    assert trained.run.vocabulary.of_bytes and len(trained.run.vocabulary) == 1 + len(set(DATA))
    text = trained.generate(prime="Größe —", length=2 * len(LINE), greedy=True)
    assert text.startswith(SHOWN), "a prime of any characters is read, and continued"
    assert SHOWN in (home / "run" / "samples.txt").read_bytes().decode()


def test_the_length_counts_bytes(trained):
    prime = text_to_symbols("Größe", True)
    (symbols,) = trained.sampler.generate_symbols(GenerationConfig(prime=prime, length=25, seed=3))
    assert symbols.startswith(prime) and len(symbols) == len(prime) + 25
    assert trained.generate(prime="Größe", length=25, seed=3) == symbols_to_text(symbols, True)


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_a_character_cut_in_two_comes_out_whole(monkeypatch, trained, chunk):
    config = GenerationConfig(prime="Gr", length=100, greedy=True, num_samples=2)
    expected = trained.sampler.generate(config)
    monkeypatch.setattr(sampling, "CHUNK_SIZE", chunk)
    pieces = list(Sampler(trained.model, trained.run.vocabulary).stream(config))
    assert ["".join(parts) for parts in zip(*pieces, strict=True)] == expected
    if chunk == 1:
        assert {"ö", "日", "🙂", r"\xff"} <= {piece for piece, _ in pieces}
        assert not any(piece.startswith("\\") and piece != r"\xff" for piece, _ in pieces)


def test_what_is_incomplete_at_the_end_is_escaped(trained):
    assert trained.generate(prime="日", length=1, greedy=True) == "日\\xe6"


def test_a_stop_string_is_found_among_bytes(trained):
    assert trained.generate(prime="Größe", length=200, greedy=True, stop="本") == "Größe — 日"
    assert trained.generate(prime="本", length=200, greedy=True, stop="\udcff") == "本 🙂"
    assert trained.generate(prime="日本", length=30, greedy=True, stop="本").startswith("日本 🙂"), (
        "not within the prime"
    )


def test_a_prime_may_be_bytes_that_are_no_text(trained):
    assert trained.generate(prime="🙂\udcff", length=5, greedy=True) == "🙂\\xff\r\nGr\\xc3"
    with pytest.raises(UserError, match=r"^--prime: the model's vocabulary does not have b'\\xa9'; it has b'"):
        trained.generate(prime="é")
    for use in (
        lambda: trained.generate(prime="\ud800"),
        lambda: trained.generate(stop="\ud800"),
        lambda: trained.evaluate_text("\ud800"),
    ):
        with pytest.raises(UserError, match=r"the lone surrogate '\\ud800' is not valid text"):
            use()


# evaluation


def test_a_text_is_measured_by_its_bytes(trained):
    found = trained.evaluate_text("Größe — 日本 🙂\r\n")
    assert found.characters == len("Größe — 日本 🙂\r\n".encode())
    assert found.bits_per_char == pytest.approx(found.loss / np.log(2))
    assert trained.evaluate_text(DATA.decode("utf-8", "surrogateescape")).loss < 0.3
    assert trained.evaluate_text("日x本", unknown="skip").unknown == 1
    assert set(found.by_class(trained.run.vocabulary)) == {"lower", "upper", "space", "newline", "other"}


def test_bytes_beyond_ascii_are_no_letters():
    assert [evaluation.classify_symbol(symbol, of_bytes=True) for symbol in "aZ \xe9\xa0"] == [
        "lower", "upper", "space", "other", "other",
    ]  # fmt: skip
    assert evaluation.classify_symbol("\xe9") == "lower"


def test_lines_are_scored_by_their_bytes(trained):
    (score,) = trained.score(["Größe — 日本"])
    assert -score == pytest.approx(trained.evaluate_text("Größe — 日本").loss * len("Größe — 日本".encode()), rel=1e-5)
    assert trained.score_symbols([text_to_symbols("Größe — 日本", True)]) == [score]


@pytest.mark.parametrize("encoding", ["utf-8", "bytes"])
def test_files_are_read_as_they_are(trained, home, encoding):
    assert trained.read_files([str(home / "data.bin")], encoding).text.encode("latin-1") == DATA


def test_an_encoding_that_is_not_the_models_is_refused(trained, text_model, home):
    with pytest.raises(ConfigError, match=r"^--encoding=latin-1: .*/run reads the bytes of any file; leave it out$"):
        trained.read_files([str(home / "data.bin")], "latin-1")
    with pytest.raises(ConfigError, match=r"^--encoding=bytes: .*/text reads characters; name the encoding"):
        text_model.read_files([str(home / "data.bin")], "bytes")


# runs


def test_a_run_is_resumed(trained, home):
    loss = trained.evaluate_split("train").loss
    tfcharrnn.train_model(
        home / "copy", input=(str(home / "data.bin"),), encoding="bytes", seq_length=60, steps=2, **SMALL
    )
    result = tfcharrnn.train_model(home / "copy", resume=True, steps=150, quiet=True)
    assert result.step == 150
    again = tfcharrnn.load_model(home / "copy")
    assert again.evaluate_split("train").loss == loss
    assert again.run.vocabulary == trained.run.vocabulary


def test_another_run_starts_with_its_weights_only_on_bytes(trained, home):
    settings = {"init_from": home / "run", "steps": 1, "batch_size": 8, "quiet": True}
    (home / "part.bin").write_bytes(LINE * 20)
    tfcharrnn.train_model(home / "next", input=(str(home / "part.bin"),), **settings)
    assert tfcharrnn.load_model(home / "next").run.vocabulary == trained.run.vocabulary
    (home / "plain.txt").write_bytes(b"Gre \r\n" * 200)
    with pytest.raises(UserError, match="was prepared with --encoding=utf-8, but the model's symbols are bytes"):
        tfcharrnn.train_model(home / "other", input=(str(home / "plain.txt"),), encoding="utf-8", **settings)


@pytest.mark.parametrize("layout", ["stream", "lines", "windows"])
def test_the_other_layouts_take_bytes_too(tmp_path, layout):
    (tmp_path / "data.bin").write_bytes(bytes(range(256)) * 4)
    settings = {"layout": layout} | ({} if layout == "lines" else {"seq_length": 9})
    tfcharrnn.train_model(
        tmp_path / "run", input=(str(tmp_path / "data.bin"),), encoding="bytes", hidden_size=4, batch_size=2, steps=1,
        sample_length=5, quiet=True, **settings,
    )  # fmt: skip
    trained = tfcharrnn.load_model(tmp_path / "run")
    text = trained.generate(prime="é字", length=30, seed=1)
    assert text.startswith("é字") and len(text.encode()) >= 5
    assert trained.evaluate_text("é字" * 9).loss > 0.0


# interactive


@pytest.fixture
def written():
    return []


@pytest.fixture
def conversation(trained, written):
    return Conversation(trained.sampler, GenerationConfig(length=8, greedy=True), written.append)


def test_an_answer_continues_the_bytes_and_not_what_is_shown_of_them(conversation, written):
    conversation.answer("日本 🙂")  # goes on with a byte that is not UTF-8, and ends within a character
    conversation.config = dataclasses.replace(conversation.config, length=4)
    conversation.answer("")
    conversation.answer("")
    assert "".join(written).split("\n") == ["日本 🙂\\xff\r", "Grö\\xc3", "\\x9fe \\xe2", "\\x80\\x94 \\xe6", ""]
    assert conversation.text.encode("latin-1") == "日本 🙂".encode() + (b"\xff\r\n" + LINE)[:16]
    shown = "日本 🙂\\xff\r\nGröße \\xe2"
    assert conversation.answer("/undo") == f"the text now ends with {shown!r}"


def test_bytes_and_words_may_be_picked(conversation, written):
    assert conversation.answer("/pick 1").startswith("1 ")
    assert conversation.answer("Gr").startswith(r"1 b'\xc3' ")
    assert conversation.answer("").startswith(r"1 b'\xb6' ")
    conversation.answer("1")
    assert conversation.text == text_to_symbols("Grö", True)
    conversation.config = GenerationConfig(greedy=True)
    assert conversation.answer("/words 1") == "1 'ße' 1.00"
    conversation.answer("")
    assert conversation.text == text_to_symbols("Größe", True)
    assert "".join(written) == "Gr\\xc3\\xb6ße"


# as processes


def run(command, *arguments, cwd):
    return commands.run(command, *arguments, cwd=cwd)


def test_commands_take_and_print_bytes(trained, home):
    done = run("generate", "--run_dir=run", b"--prime=\xff\r\nGr\xc3", "--length=60", "--greedy", cwd=home)
    assert done.stdout.decode() == trained.generate(prime="\udcff\r\nGr\udcc3", length=60, greedy=True) + "\n", (
        done.stderr
    )
    assert done.stdout.decode().startswith("\\xff\r\nGröße — 日本 🙂\\xff\r\n")
    done = run("evaluate", "--run_dir=run", "--input=data.bin", "--baselines", "--by_character", cwd=home)
    value = json.loads(done.stdout)
    assert value["characters"] == len(DATA)
    assert value["loss"] == pytest.approx(trained.evaluate_text(DATA.decode("utf-8", "surrogateescape")).loss)
    assert 0 < value["baselines"]["gzip"] < 1
    done = run("evaluate", "--run_dir=run", "--score=data.bin", cwd=home)
    assert len(done.stdout.splitlines()) == 60, done.stderr
    done = run("evaluate", "--run_dir=run", "--input=data.bin", "--encoding=utf-16", cwd=home)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"--encoding=utf-16" in done.stderr
