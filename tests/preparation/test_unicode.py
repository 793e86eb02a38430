"""Any text goes the whole way: it is prepared, learnt, generated and measured."""

import json
import os
import subprocess
import sys
import unicodedata

import pytest
from paths import GOLDEN

import tfcharrnn
from tfcharrnn import DataConfig, UserError

SMALL = {"hidden_size": 2, "batch_size": 2, "steps": 2, "sample_length": 5, "quiet": True}
LAYOUTS = ["sequences", "stream", "lines", "windows"]
ODD = {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

ASTRAL = "".join(chr(code) for code in (*range(0x1F600, 0x1F640), 0x10000, 0x10FFFF, 0x20000))
COMBINING = "".join(
    base + marks for base in "aeo" for marks in ("\u0301", "\u0323\u0302", "\u0301" * 9, "\u20dd", "\u200d")
)
CONTROL = "".join(chr(code) for code in (*range(1, 32), *range(127, 160), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF))
TEXTS = {
    "astral": ASTRAL * 5,
    "combining marks": COMBINING * 9,
    "control characters": CONTROL * 5,
    "NUL": "\0" * 50 + "\0a" * 50,
    "one character": "a" * 99,
    "one astral character": "\U0001f600" * 99,
    "right to left": "\u05d0\u202e\u05d1\u202c\u0627\u064e" * 30,
    "no newline at the end": "ab\n" * 50 + "c",
    "newlines alone at the end": "ab\n" * 50 + "c\n\n\n",
    "what is no character for ever": "\ufffe\uffff\U0001fffe\U0010ffff" * 20,
}


def whole_way(folder, text, **settings):
    """Prepares a text, trains on it, and returns the data, and the model as it is loaded again."""
    path = folder / "text.txt"
    path.write_bytes(text.encode())
    config = DataConfig(input=(str(path),), val_fraction=0.0, **settings)
    data = tfcharrnn.prepare_data(config, folder / "data")
    tfcharrnn.train_model(folder / "run", data_dir=folder / "data", **SMALL)
    return data, tfcharrnn.load_model(folder / "run")


def settings_of(layout, text):
    if layout != "lines":
        return {"layout": layout, "seq_length": 9}
    return {"layout": layout, "delimiter": "" if "\n" not in text else "\n"}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_goes_the_whole_way(tmp_path, name):
    text = TEXTS[name]
    data, trained = whole_way(tmp_path, text, seq_length=9)
    assert "".join(data.vocabulary.symbols[1:]) == "".join(sorted(set(text.replace("\r\n", "\n"))))
    part = text.replace("\r\n", "\n").removeprefix("\ufeff")[:8]
    assert data.vocabulary.decode(data.read("train").pad()[0]) == part
    written = trained.generate(length=20, prime=part, seed=1)
    assert written.startswith(part) and len(written) == len(part) + 20
    assert set(written) <= set(text)
    assert written.encode().decode() == written
    evaluation = trained.evaluate_text(text)
    assert evaluation.characters == len(text.replace("\r\n", "\n"))
    assert evaluation.loss >= 0.0


@pytest.mark.parametrize("text", ["a" * 99, "a\u0301\U0001f600\0" * 30], ids=["one", "four"])
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "sequences"])
def test_the_other_layouts_take_any_text_too(tmp_path, layout, text):
    text = text if layout != "lines" else text.replace("\0", "\0\n") * 2 + "\n" + text[:7]
    data, trained = whole_way(tmp_path, text, **({"seq_length": 9} if layout != "lines" else {}), layout=layout)
    assert set("".join(data.vocabulary.symbols[data.vocabulary.num_special :])) == set(text) - (
        {"\n"} if layout == "lines" else set()
    )
    written = trained.generate(length=20, prime="aa", seed=1)
    assert written.startswith("aa") and set(written) <= set(text)
    assert trained.evaluate_text(text).loss >= 0.0


def test_a_hundred_thousand_characters_go_the_whole_way(tmp_path):
    characters = [chr(code) for code in range(32, 110_000) if not 0xD800 <= code < 0xE000][:100_000]
    text = "".join(characters)
    data, trained = whole_way(tmp_path, text, seq_length=21)
    assert len(data.vocabulary) == 1 + 100_000
    assert data.vocabulary.decode(data.read("train").pad()[0]) == text[:20]
    written = trained.generate(length=20, prime=characters[-1], seed=1)
    assert len(written) == 21 and set(written) <= set(characters)
    assert 11.0 < trained.evaluate_text(text[:500]).loss < 12.0  # near that of guessing, log 100,001


def test_a_combining_mark_is_a_character_of_its_own(tmp_path):
    data, trained = whole_way(tmp_path, "e\u0301" * 50 + "\u00e9" * 50, seq_length=9)
    assert data.vocabulary.symbols[1:] == ("e", "\u00e9", "\u0301")  # nothing is composed or taken apart
    assert unicodedata.normalize("NFC", "e\u0301") == "\u00e9"
    assert trained.generate(length=0, prime="e\u0301") == "e\u0301"


def test_lone_surrogates_are_refused_in_one_line(tmp_path):
    trained = tfcharrnn.load_model(GOLDEN / "rnn")
    for use in (
        lambda: trained.generate(prime="\ud800"),
        lambda: trained.evaluate_text("\udfff"),
        lambda: trained.score(["\ud83d"]),
    ):
        with pytest.raises(UserError, match=r"'\\ud") as caught:
            use()
        assert "\n" not in str(caught.value)
    path = tmp_path / "text.txt"
    for data, encoding in [(b"abc\xed\xa0\x80", "utf-8"), ("ab\ud800c".encode("utf-16", "surrogatepass"), "utf-16")]:
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"text\.txt: ") as caught:
            tfcharrnn.prepare_data(DataConfig(input=(str(path),), encoding=encoding), tmp_path / "data")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "data").exists()


# as processes


def run(command, *arguments, cwd, env):
    arguments = [argument if isinstance(argument, bytes) else argument.encode() for argument in arguments]
    environment = {**os.environ, **env, "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.run(
        [sys.executable, "-m", f"tfcharrnn.{command}", *arguments],
        cwd=cwd, env=environment, capture_output=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("env", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "latin-1"}, ODD, {"PYTHONIOENCODING": "utf-16"}])
def test_what_is_generated_is_utf8_on_any_terminal(tmp_path, env):
    settings = json.loads((GOLDEN / "lstm.json").read_text())["texts"][1]
    known = settings["text"]
    assert not known.isascii()
    flags = [f"--{name}={value}" for name, value in settings["settings"].items()]
    done = run("generate", f"--run_dir={GOLDEN / 'lstm'}", *flags, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == known.encode() + b"\n"
    if env is ODD:
        done = run("generate", f"--run_dir={GOLDEN / 'lstm'}", "--json", *flags, cwd=tmp_path, env=env)
        assert json.loads(done.stdout.decode())["texts"] == [known]


def test_what_is_no_text_on_the_command_line_is_refused_in_one_line(tmp_path):
    done = run("generate", f"--run_dir={GOLDEN / 'lstm'}", b"--prime=the\xff", cwd=tmp_path, env=ODD)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count(b"\n") == 1 and b"udcff" in done.stderr


@pytest.mark.parametrize("name", ["d\u00e4t\u00e4 \U0001f600".encode(), b"no utf-8 \xff", b"two\nlines"])
def test_folders_of_any_name_are_printed_as_they_are(tmp_path, name):
    (tmp_path / "text.txt").write_text("abc" * 100, encoding="utf-8")
    arguments = ["--input=text.txt", "--seq_length=9", b"--output_dir=" + name]
    done = run("prepare", *arguments, cwd=tmp_path, env=ODD)
    assert done.returncode == 0, done.stderr
    assert done.stdout == name + b"\n"
    done = run("prepare", *arguments, cwd=tmp_path, env=ODD)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"exists already" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_line_of_100_megabytes_is_prepared(tmp_path, layout):
    size = 100 * 2**20
    with open(tmp_path / "text.txt", "w", encoding="utf-8") as file:
        file.write("a short line\n" * 20)
        for _ in range(100):
            file.write("0123456789abcdef" * 2**16)
        file.write("\nanother short line")
    arguments = [
        sys.executable,
        "-m",
        "tfcharrnn.prepare",
        "--input=text.txt",
        f"--layout={layout}",
        "--output_dir=data",
    ]
    with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        message = process.stderr.read().decode()
    assert process.returncode == 0, message
    assert usage.ru_maxrss * 1024 < 1.5 * 2**30
    data = tfcharrnn.open_data(tmp_path / "data")
    if layout == "lines":
        assert data.dropped == {"empty": 0, "too_long": 1}
        assert "dropped: 1 too long" in message
        assert sum(split.records for split in data.splits.values()) == 21
    else:
        assert data.characters == size + 20 * 13 + 19
