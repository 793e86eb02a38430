"""The help of the commands: what matters first, in groups, and all of it on request."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest

from tfcharrnn import config

CONFIGS = (config.DataConfig, config.ModelConfig, config.TrainingConfig)
FIRST = ["input", "layout", "cell", "hidden_size", "num_layers", "minutes", "learning_rate", "steps", "run_dir"]


def show(command, flag, cwd, columns=80):
    done = subprocess.run(
        [sys.executable, "-m", f"tfcharrnn.{command}", flag],
        cwd=cwd, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": str(columns)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def explained(shown):
    return re.findall(r"^  --(?:\[no\])?(\w+)", shown, re.MULTILINE)


def titles(shown):
    return re.findall(r"^(\w.*):$", shown, re.MULTILINE)


def test_the_ten_flags_that_matter_are_explained_and_the_others_named(tmp_path):
    short, full = show("train", "-h", tmp_path), show("train", "--helpfull", tmp_path)
    assert explained(short) == [*FIRST, "resume"]
    assert titles(short) == titles(full) == ["Text", "Model", "Training", "What is written", "Other"]
    assert "train --helpfull explains all flags" in short and "helpfull" not in full
    assert sorted(explained(full)) == sorted(
        set(re.findall(r" --(?:\[no\])?(\w+)(?=[\s=])", short)) - {"helpfull", "noNAME"}
    )
    assert {field.name for cls in CONFIGS for field in dataclasses.fields(cls)} < set(explained(full))


def test_a_short_list_is_explained_at_once(tmp_path):
    shown = show("report", "--help", tmp_path)
    assert shown == show("report", "--helpfull", tmp_path)
    assert titles(shown) == ["Flags"] and "--helpfull" not in shown
    assert "  --checkpoint=latest     latest, best (lowest loss)," in shown


def test_the_flags_of_an_export_are_in_groups(tmp_path):
    shown = show("export", "--help", tmp_path)
    assert titles(shown) == ["Model", "What is written", "Other"]
    assert "  --format=saved_model    <saved_model|keras|" in shown.partition("\nWhat is written:")[2]
    assert explained(shown) == ["run_dir", "checkpoint", "format", "output", "license", "overwrite"]


@pytest.mark.parametrize("command", ["train", "generate", "evaluate", "prepare", "export"])
def test_every_flag_is_in_a_group_that_exists(command, tmp_path):
    other = show(command, "--help", tmp_path).partition("\nOther:\n")[2]
    assert other.startswith("  also --debug --flagfile\n")


def test_help_fits_a_narrow_terminal(tmp_path):
    lines = show("generate", "--helpfull", tmp_path, columns=60).partition("\nModel:")[2].splitlines()
    assert max(map(len, lines)) < 60
