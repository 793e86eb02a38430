"""Each command, run as a process of its own, as a user runs it."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import commands
import pytest
from paths import ROOT

from tfcharrnn import evaluate
from tfcharrnn.__main__ import COMMANDS
from tfcharrnn.config import DataConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.training.metrics import TIMING

SMALL = ["--cell=gru", "--hidden_size=24", "--seq_length=21", "--batch_size=8", "--learning_rate=0.01"]
TEXT = "the cat sat on the mat; the dog sat on the log.\n" * 60


def run(command, *arguments, cwd, env=None):
    cache = {"XDG_CACHE_HOME": f"{cwd}-cache"}
    if not env:
        return commands.run(command, *arguments, cwd=cwd, env=cache)
    return subprocess.run(  # Python reads some variables as it starts
        [sys.executable, "-m", f"tfcharrnn.{command}", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **cache, **env},
        capture_output=True,
        timeout=300,
    )


def succeed(command, *arguments, cwd, env=None):
    done = run(command, *arguments, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def fail(command, *arguments, cwd, code=1):
    """Runs a command that must fail; returns its one line."""
    done = run(command, *arguments, cwd=cwd)
    message = done.stderr.decode()
    assert done.returncode == code, message
    assert not done.stdout
    assert len(message.splitlines()) == 1, message
    assert message.startswith(f"{command}: ")
    return message


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a text, its data folder and a short run on it."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    printed = succeed("prepare", "--input=text.txt", "--seq_length=21", "--output_dir=data", cwd=folder)
    assert printed == "data\n"
    printed = succeed(
        "train", "--data_dir=data", *SMALL, "--steps=60", "--eval_every=20", "--checkpoint_every=20",
        "--sample_every=30", "--sample_length=50", "--log_every=10", "--run_dir=runs/small", cwd=folder,
    )  # fmt: skip
    assert printed == "runs/small\n"
    return folder


def test_a_run_folder_has_what_the_contract_names(home):
    folder = home / "runs" / "small"
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "vocab.json", "checkpoints", "metrics.jsonl", "samples.txt",
    }  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert all({"step", "epoch", "loss", "chars_per_second", "smooth_loss"} <= set(row) for row in rows)
    assert [row["step"] for row in rows if "val_loss" in row] == [20, 40, 60]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (folder / "samples.txt").read_text().count("--- step") == 2


def test_generate_prints_the_text_alone(home):
    text = succeed("generate", "--length=80", "--prime=the ", cwd=home)
    assert text.startswith("the ")
    assert len(text) == 4 + 80 + 1
    assert set(text) <= set(TEXT)


def test_the_same_seed_gives_the_same_text(home):
    texts = [succeed("generate", "--length=60", f"--seed={seed}", cwd=home) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_random_seed_is_shown_and_a_prime_read_from_a_file(home):
    (home / "prime.txt").write_text("the\ncat")
    done = run("generate", "--length=40", "--prime_file=prime.txt", "--seed=random", cwd=home)
    name, seed = done.stderr.decode().split()
    assert name == "seed" and done.stdout.startswith(b"the\ncat")
    again = succeed("generate", "--length=40", r"--prime=the\ncat", f"--seed={seed}", cwd=home)
    assert again == done.stdout.decode()
    assert "no such file" in fail("generate", "--prime_file=gone.txt", cwd=home)


def test_generate_as_json_has_every_sample(home):
    printed = succeed("generate", "--length=20", "--num_samples=3", "--top_k=3", "--top_p=0.9", "--json", cwd=home)
    value = json.loads(printed)
    assert value["step"] == 60
    assert [len(text) for text in value["texts"]] == [20, 20, 20]
    assert len(set(value["texts"])) > 1


def test_a_checkpoint_can_be_chosen(home):
    run_dir = home / "runs" / "small"
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["step-00000020", "step-00000040", "step-00000060"]
    for which in ("best", names[0], str(run_dir / "checkpoints" / names[0])):
        value = json.loads(succeed("generate", "--length=5", "--json", f"--checkpoint={which}", cwd=home))
        assert value["step"] == (60 if which == "best" else 20)
    message = fail("generate", "--checkpoint=step-7", cwd=home)
    assert "step-7" in message and names[0] in message


def test_a_run_folder_works_without_its_data_and_elsewhere(home, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(home / "runs" / "small", moved)
    here = succeed("generate", "--length=40", "--greedy", cwd=home)
    assert succeed("generate", "--length=40", "--greedy", f"--run_dir={moved}", cwd=tmp_path) == here


def test_what_is_generated_is_utf8_on_any_terminal(home, tmp_path):
    (tmp_path / "text.txt").write_text("naïve café — 🙂\n" * 50, encoding="utf-8")
    succeed("train", "--input=text.txt", *SMALL, "--steps=30", "--run_dir=run", cwd=tmp_path)
    printed = succeed(
        "generate", "--run_dir=run", "--prime=é🙂", "--length=30", cwd=tmp_path, env={"LC_ALL": "C", "PYTHONUTF8": "0"}
    )
    assert printed.startswith("é🙂")


def test_evaluate_prints_one_object(home):
    value = json.loads(succeed("evaluate", "--split=val", cwd=home))
    rows = (home / "runs" / "small" / "metrics.jsonl").read_text().splitlines()
    assert value["loss"] == pytest.approx(json.loads(rows[-1])["val_loss"], rel=1e-6)
    assert value["bits_per_char"] == pytest.approx(value["loss"] / 0.6931471805599453)
    whole = json.loads(succeed("evaluate", "--input=text.txt", cwd=home))
    assert whole["characters"] == len(TEXT)
    message = fail("evaluate", "--split=test", cwd=home)
    assert "runs/small: its data has no test split (--test_fraction=0); choose another --split, or --input" in message


def test_evaluate_gives_the_same_for_a_text_in_pieces_and_any_batch_size(home):
    """Several files are one text, joined by newlines; the state goes from each to the next."""
    whole = json.loads(succeed("evaluate", "--input=text.txt", "--by_character", "--baselines", cwd=home))
    assert whole["read"] == "whole" and whole["unknown"] == 0 and 0 < whole["accuracy"] < 1
    assert {"lower", "space", "newline"} <= set(whole["by_character"])
    assert set(whole["baselines"]) == {"characters", "ngrams", "ngrams_after_training", "gzip", "xz"}
    lines, cuts = TEXT.split("\n"), [0, 1, 2, 20, 57, len(TEXT)]
    pieces = [
        _file(home, f"piece, {last}.txt", "\n".join(lines[first:last])) for first, last in itertools.pairwise(cuts)
    ]
    quoted = ",".join(f'"{piece}"' for piece in pieces)  # each name has a comma
    for flags in ([f"--input={quoted}", "--batch_size=1"], ["--input=text.txt", "--batch_size=7"]):
        other = json.loads(succeed("evaluate", *flags, cwd=home))
        assert other["loss"] == pytest.approx(whole["loss"], abs=1e-6)
        assert other["characters"] == whole["characters"]
    fresh = json.loads(succeed("evaluate", "--input=text.txt", "--read=examples", "--batch_size=3", cwd=home))
    assert fresh["read"] == "examples" and fresh["loss"] != whole["loss"]


@pytest.mark.parametrize(
    ("symbols", "layout", "settings", "is_known"),
    [
        (["\n", "a"], "stream", {}, True),
        (["a"], "stream", {}, False),
        (["<PAD>", "<S>", "</S>", "a"], "lines", {}, True),
        (["<PAD>", "<S>", "</S>", "a"], "lines", {"delimiter": ";"}, False),
    ],
)
def test_files_are_joined_only_for_a_model_that_knows_newlines(symbols, layout, settings, is_known):
    data = DataConfig(layout=layout, **settings)
    run = SimpleNamespace(vocabulary=Vocabulary(symbols), data=data, path="r")
    trained = SimpleNamespace(run=run, model=SimpleNamespace(layout=LAYOUTS[layout]))
    if is_known:
        evaluate._check_knows_newline(trained)
    else:
        with pytest.raises(UserError, match=r"joined by newlines, and the vocabulary of r has none"):
            evaluate._check_knows_newline(trained)


def test_evaluate_skips_characters_outside_the_vocabulary_only_if_asked(home):
    path = _file(home, "odd.txt", "thé cat")
    message = fail("evaluate", f"--input={path}", cwd=home)
    assert "é" in message and "--unknown=skip" in message
    value = json.loads(succeed("evaluate", f"--input={path}", "--unknown=skip", cwd=home))
    assert (value["unknown"], value["characters"]) == (1, 6)
    assert "--unknown is for --input" in fail("evaluate", "--unknown=skip", code=2, cwd=home)
    assert "--baselines has no effect with --score" in fail(
        "evaluate", f"--score={path}", "--baselines", code=2, cwd=home
    )


def test_a_likely_line_scores_above_the_same_with_a_letter_exchanged(home):
    lines = ["the cat sat on the mat; the dog", "the cat smt on the mat; the dog", "the cat sat on tme mat; the dog"]
    path = _file(home, "lines.txt", "\n".join(lines) + "\n")
    printed = succeed("evaluate", f"--score={path}", cwd=home).splitlines()
    scores = [float(line) for line in printed]
    assert len(scores) == 3
    assert all(score < 0 for score in scores)
    assert scores[0] > max(scores[1:])


def test_an_existing_folder_is_never_overwritten_unasked(home):
    def written():
        files = [*(home / "runs").rglob("*"), *(home / "data").rglob("*")]
        return sorted((path, path.stat().st_mtime_ns) for path in files)

    before = written()
    message = fail("train", "--data_dir=data", *SMALL, "--steps=1", "--run_dir=runs/small", cwd=home)
    assert "--resume" in message and "--overwrite" in message
    assert "--overwrite" in fail("prepare", "--input=text.txt", "--output_dir=data", cwd=home)
    assert "not a run folder" in fail("train", "--data_dir=data", *SMALL, "--overwrite", "--run_dir=data", cwd=home)
    assert before == written()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--cel=gru"], "cel"),
        (["--cell=transformer"], "transformer"),
        (["--hidden_size=0"], "--hidden_size"),
        (["--hidden_size=many"], "many"),
        (["--learning_rate=nan"], "--learning_rate"),
        (["--val_fraction=0.6", "--test_fraction=0.6"], "--val_fraction"),
        (["--input=a.txt", "--corpus=python"], "--corpus"),
        (["--data_dir=d", "--corpus=python"], "--data_dir"),
        (["--resume", "--overwrite"], "--resume"),
        (["text.txt"], "text.txt"),
        (["--flagfile=missing.flags"], "missing.flags"),
    ],
)
def test_wrong_flags_exit_with_2(arguments, named, tmp_path):
    message = fail("train", *arguments, cwd=tmp_path, code=2)
    assert named in message and "--help" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flagfile", sorted((ROOT / "configs").glob("*.flags")), ids=lambda path: path.name)
def test_every_flagfile_is_understood(flagfile, tmp_path):
    """Only the text is missing."""
    assert "missing.txt" in fail("train", f"--flagfile={flagfile}", "--corpus=", "--input=missing.txt", cwd=tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "text.txt"),
        (b"", "empty"),
        (b"abc\xff\xfe", "byte 3"),
        (b"too short", "--seq_length"),
        (b"enough for one but not for a batch", "--batch_size"),
    ],
)
def test_unusable_text_exits_with_1_and_leaves_nothing(content, named, tmp_path):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    message = fail("train", "--input=text.txt", *SMALL, "--run_dir=run", cwd=tmp_path)
    assert named in message
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_used_is_named(home, tmp_path):
    assert "runs/ holds no trained run" in fail("generate", cwd=tmp_path)
    assert "nowhere" in fail("generate", "--run_dir=nowhere", cwd=tmp_path)
    run_dir = tmp_path / "run"
    shutil.copytree(home / "runs" / "small", run_dir)
    config = json.loads((run_dir / "config.json").read_text())
    config["model"]["hidden_size"] = 32
    (run_dir / "config.json").write_text(json.dumps(config))
    message = fail("generate", "--run_dir=run", cwd=tmp_path)
    assert "step-00000060" in message and "does not fit" in message
    shutil.rmtree(run_dir / "checkpoints")
    assert "no checkpoint" in fail("generate", "--run_dir=run", cwd=tmp_path)
    assert "'X'" in fail("generate", "--prime=thX", cwd=home)


def test_ctrl_c_saves_and_resuming_ends_in_the_same_weights(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = ["--input=text.txt", *SMALL, "--epochs=100", "--eval_every=0", "--sample_every=0", "--steps_per_call=5"]
    arguments = [sys.executable, "-m", "tfcharrnn.train", *settings, "--run_dir=stopped"]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(arguments, cwd=tmp_path, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        metrics = tmp_path / "stopped" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=120)
    assert process.returncode == 0, message.decode()
    assert "--resume --run_dir=stopped" in message.decode()
    succeed("train", "--resume", "--run_dir=stopped", cwd=tmp_path)
    succeed("train", *settings, "--run_dir=whole", cwd=tmp_path)
    stopped, whole = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("stopped", "whole")
    )
    for row in stopped + whole:
        for name in TIMING:
            del row[name]
    assert stopped == whole
    weights = [
        sorted((tmp_path / name / "checkpoints").iterdir())[-1] / "ckpt.data-00000-of-00001"
        for name in ("stopped", "whole")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_resuming_keeps_the_model(home):
    message = fail("train", "--resume", "--run_dir=runs/small", "--hidden_size=48", cwd=home)
    assert "keeps its model, --hidden_size=24 and not 48; leave the flag out" in message
    message = fail("train", "--resume", "--run_dir=runs/small", "--batch_size=9", cwd=home)
    assert "keeps its --batch_size=8; leave --batch_size=9 out" in message


def test_help_is_quick_and_exits_with_0(tmp_path):
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", f"tfcharrnn.{command}", "--help"],
            cwd=tmp_path, capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0
        assert b"--" in done.stdout
        assert b"tensorflow" not in done.stderr  # where importtime lists every module


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, tfcharrnn; assert tfcharrnn.TrainingConfig().epochs == 30; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stdout.strip() == b"False"


# Calling a command


SCRIPT = str(Path(sys.executable).with_name("tfcharrnn"))
CALLS = {  # what messages say, and what is run
    "tfcharrnn {}": (SCRIPT, "{}"),
    "python -m tfcharrnn {}": (sys.executable, "-m", "tfcharrnn", "{}"),
    "python -m tfcharrnn.{}": (sys.executable, "-m", "tfcharrnn.{}"),
}


def call(*arguments, cwd):
    return subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=300)


def call_in_every_way(command, *arguments, cwd):
    return {
        shown.format(command): call(*(part.format(command) for part in parts), *arguments, cwd=cwd)
        for shown, parts in CALLS.items()
    }


@pytest.mark.parametrize("command", ["generate", "launch_local"])
def test_a_command_can_be_called_in_three_ways(command, tmp_path):
    done = call_in_every_way(command, "--help", cwd=tmp_path)
    assert [process.returncode for process in done.values()] == [0, 0, 0]
    assert (
        len(
            {
                process.stdout.replace(f"Usage: {shown} ", "Usage: ").replace(f"{shown} --helpfull", "")
                for shown, process in done.items()
            }
        )
        == 1
    )
    assert all(f"Usage: {shown} " in process.stdout and " --debug" in process.stdout for shown, process in done.items())


def test_messages_name_commands_in_the_way_they_are_called(tmp_path):
    for shown, done in call_in_every_way("train", "--cel=gru", cwd=tmp_path).items():
        assert done.returncode == 2
        assert done.stderr.startswith("train: ") and done.stderr.endswith(f" (see {shown} --help)\n")
    for shown, done in call_in_every_way("generate", cwd=tmp_path).items():
        assert done.returncode == 1
        assert done.stderr.startswith("generate: runs/ ") and shown.replace("generate", "train") in done.stderr


def test_the_list_of_commands_has_every_command():
    modules = {path.stem for path in (ROOT / "tfcharrnn").glob("*.py") if "cli.run_command(" in path.read_text("utf-8")}
    assert set(COMMANDS) == modules
    listed = call(SCRIPT, cwd=ROOT).stdout
    assert listed == call(sys.executable, "-m", "tfcharrnn", "--help", cwd=ROOT).stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", listed, re.MULTILINE), name


def test_an_unknown_command_names_the_closest_one(tmp_path):
    done = call(SCRIPT, "trian", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tfcharrnn: there is no command 'trian'; did you mean train?\n"


def test_a_closed_pipe_is_no_traceback(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([SCRIPT, "train", "--help"], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


# Recipes


def test_flags_override_a_recipe_wherever_they_stand(tmp_path):
    sizes = ("--steps=1", "--hidden_size=7", "--batch_size=4", "--seq_length=20", "--sample_length=5")
    text = _file(tmp_path, "text.txt", "some text to learn from\n" * 100)
    _file(tmp_path, "mine.flags", "--recipe=gru\n")
    for number, recipe in enumerate((("--recipe=gru",), ("--recipe", "gru"), ("--flagfile=mine.flags",))):
        succeed("train", *sizes, *recipe, f"--input={text}", f"--run_dir=r{number}", cwd=tmp_path)
        config = json.loads((tmp_path / f"r{number}" / "config.json").read_text())
        assert (config["model"]["cell"], config["model"]["hidden_size"]) == ("gru", 7)
        assert config["training"]["learning_rate"] == 0.002


@pytest.mark.parametrize("form", ["--recipe={}", "--flagfile={}", "--flagfile {}"])
def test_prepare_takes_the_data_settings_of_a_recipe_and_says_what_it_leaves(tmp_path, form):
    text = _file(tmp_path, "text.txt", "Some text to learn from\n" * 100)
    recipe = "book_adagrad" if "recipe" in form else ROOT / "configs" / "book_adagrad.flags"
    done = run("prepare", *form.format(recipe).split(), f"--input={text}", "--output_dir=data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"train: --cell, --hidden_size, " in done.stderr.splitlines()[0]
    data = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert (data["layout"], data["seq_length"], data["normalisation"]["lowercase"]) == ("stream", 25, True)
    assert "there is no flag --cell" in fail(
        "prepare", f"--input={text}", "--output_dir=other", "--cell=gru", cwd=tmp_path, code=2
    )


def test_a_wrong_recipe_lists_them_all(tmp_path):
    done = call(SCRIPT, "train", "--recipe=gruu", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    *listed, last = done.stderr.splitlines()
    assert last.startswith("train: --recipe=gruu: there is no such recipe; did you mean gru?")
    recipes = sorted(path.stem for path in (ROOT / "configs").glob("*.flags"))
    assert [line.split()[0] for line in listed[1:]] == recipes
    assert all(len(line.split()) > 4 for line in listed[1:])


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read (No such file or directory)"), (b"--cell=\xff\xfe", "not a text file")],
)
def test_a_flagfile_that_cannot_be_read_is_one_line(content, said, tmp_path):
    if content is not None:
        (tmp_path / "x.flags").write_bytes(content)
    assert said in fail("train", "--flagfile=x.flags", cwd=tmp_path, code=2)


def _file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return name
