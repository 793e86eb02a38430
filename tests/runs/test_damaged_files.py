"""Files that someone made to be wrong: one clear error, and nothing taken, followed or run.

What damage does by accident to each file stands in the tests of its reader; `tools/fuzz.py` does both at random.
"""

import ast
import json
import os
import shutil
import struct
import subprocess
import sys

import pytest
from paths import GOLDEN, ROOT

import tfcharrnn
from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import ConfigError, UserError, first_line, shorten
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs import checkpoints
from tfcharrnn.runs import run_folder as run_lib
from tfcharrnn.training import setup
from tfcharrnn.training.metrics import RunningMetrics
from tfcharrnn.training.train_step import RunLength, Trainer
from tfcharrnn.training.training_state import TrainingState

sys.path.insert(0, str(ROOT / "tools"))

from fuzzing.own_formats import masked_crc

TEXT = "the cat sat on the mat; the dog sat on the log.\n" * 60


@pytest.fixture
def run_dir(tmp_path):
    """A run to damage."""
    return shutil.copytree(GOLDEN / "rnn", tmp_path / "run")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(TEXT)
    config = DataConfig(input=(str(folder / "text.txt"),), seq_length=21)
    return tfcharrnn.prepare_data(config, folder / "data").path


@pytest.fixture
def data_dir(prepared, tmp_path):
    """A data folder to damage."""
    return shutil.copytree(prepared, tmp_path / "data")


def error_of(function, *arguments, names=""):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    assert str(names) in message
    assert not isinstance(caught.value, ConfigError), "a damaged file is no wrong flag"
    return message


def change(path, *keys, to):
    """Puts a value into a JSON file; a string that begins with `raw:` stands there as it is."""
    value = json.loads(path.read_text())
    inner = value
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = "@here@" if isinstance(to, str) and to.startswith("raw:") else to
    text = json.dumps(value)
    path.write_text(text.replace('"@here@"', to[4:]) if isinstance(to, str) else text)


HUGE = [10**18, -(10**18), 2**63, 10**400, "raw:1e400", "raw:-1e400", "raw:NaN", "raw:" + "1" * 5000]
NESTED = ["raw:" + "[" * depth + "]" * depth for depth in (900, 5_000, 100_000)]
FOREIGN = [None, True, "", "x" * 10**6, "a\nb\x1b[2J", [], {}, [[]], {"a": 1}]


# messages


def test_an_error_is_one_line_whatever_it_tells_of():
    message = str(UserError("a\nb\r\x1b[2J\0\x85\u2028\u2029\ud800 é🙂"))
    assert message == "a\\nb\\r\\x1b[2J\\x00\\x85\\u2028\\u2029\\ud800 é🙂"
    assert str(ConfigError("a\nb")) == "a\\nb"
    endless = str(UserError(f"data/x.npy: {'y' * 10_000} is damaged"))
    assert len(endless) < 2100 and endless.startswith("data/x.npy: y") and endless.endswith("y is damaged")


def test_what_is_quoted_is_short():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert shorten(nested) == "a list"
    assert shorten(10**5000) == "a int"
    assert len(shorten("x" * 10**6)) < 300 and shorten("x" * 10**6).endswith("(1000002 characters)")
    assert shorten("a\nb") == "'a\\nb'"
    assert len(first_line(ValueError("x" * 10**6))) < 600
    assert first_line(ValueError("{{node __wrapped__X}} corrupted record [Op:X]\nmore")) == "corrupted record [Op:X]"
    while nested:  # or Python would go as deep to free it
        nested = nested.pop()


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "n" * 250])
def test_folders_of_strange_names_are_named_in_one_line(tmp_path, name):
    for load in (tfcharrnn.open_data, run_lib.load, tfcharrnn.load_model):
        error_of(load, tmp_path / name)


# pipes and devices, which never end


@pytest.mark.parametrize("name", ["vocab.json", "config.json", "checkpoints/step-00000300/checkpoint.json"])
def test_a_pipe_or_a_device_in_the_place_of_a_file_is_one_error(run_dir, name):
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        (run_dir / name).unlink()
        make(run_dir / name)
        error_of(tfcharrnn.load_model, run_dir, names=run_dir)


@pytest.mark.parametrize("name", ["ckpt.index", "ckpt.data-00000-of-00001"])
def test_a_pipe_in_the_place_of_weights_is_one_error(run_dir, name):
    path = run_dir / "checkpoints/step-00000300" / name
    path.unlink()
    os.mkfifo(path)
    assert "is not a regular file" in error_of(tfcharrnn.load_model, run_dir, "300", names=path)


def test_a_pipe_in_the_place_of_a_shard_is_one_error(data_dir):
    shard = data_dir / "train-00000-of-00001.tfrecord"
    shard.unlink()
    os.mkfifo(shard)
    assert "is not a regular file" in error_of(tfcharrnn.open_data(data_dir).read, "train", names=shard)


# config.json


@pytest.mark.parametrize("to", [0, 2, 10**18, "1", *FOREIGN], ids=lambda to: repr(to)[:20])
def test_another_format_of_a_run_is_one_error(run_dir, to):
    change(run_dir / "config.json", "format", to=to)
    if to is True:  # which Python takes for 1
        return
    assert "was it written by a newer version?" in error_of(run_lib.load, run_dir, names=run_dir / "config.json")


@pytest.mark.parametrize("to", [*HUGE, *NESTED, *FOREIGN, -1, 0.5], ids=lambda to: repr(to)[:20])
@pytest.mark.parametrize(("section", "name"), [("model", "hidden_size"), ("data", "seq_length"), ("training", "steps")])
def test_a_size_that_cannot_be_is_one_error(run_dir, section, name, to):
    change(run_dir / "config.json", section, name, to=to)
    error_of(run_lib.load, run_dir, names=run_dir / "config.json")


@pytest.mark.parametrize("to", [*HUGE, *NESTED, *FOREIGN], ids=lambda to: repr(to)[:20])
@pytest.mark.parametrize("section", ["model", "data", "training", "data_dir", "data_fingerprint"])
def test_a_section_that_is_none_is_one_error(run_dir, section, to):
    if (isinstance(to, str) and not to.startswith("raw:") and section.startswith("data_")) or to == {}:
        return
    change(run_dir / "config.json", section, to=to)
    error_of(run_lib.load, run_dir, names=run_dir / "config.json")


@pytest.mark.parametrize("name", ["", "x" * 10**6, "a\nb", "__class__", "__init__", "self"])
def test_an_unknown_setting_is_one_error(run_dir, name):
    change(run_dir / "config.json", "model", name, to=1)
    assert "unknown setting" in error_of(run_lib.load, run_dir, names=run_dir / "config.json")


def test_a_model_too_large_for_its_checkpoint_is_told_before_it_is_read(run_dir):
    change(run_dir / "config.json", "model", "hidden_size", to=9)
    assert "does not fit" in error_of(tfcharrnn.load_model, run_dir, names=run_dir)


# checkpoint.json


def description(run_dir):
    return run_dir / "checkpoints/step-00000300/checkpoint.json"


@pytest.mark.parametrize("to", [*HUGE, *NESTED, *FOREIGN, -1, 0.5], ids=lambda to: repr(to)[:20])
@pytest.mark.parametrize("name", ["step", "smooth_loss", "val_loss", "log", "files"])
def test_a_value_of_a_checkpoint_that_cannot_be_is_one_error(run_dir, name, to):
    fitting = {"smooth_loss": (None, -(10**18), 10**18, 2**63, -1, 0.5), "log": ({}, {"a": 1}), "step": (), "files": ()}
    fitting["val_loss"] = fitting["smooth_loss"]
    change(description(run_dir), name, to=to)
    if any(type(to) is type(value) and to == value for value in fitting[name]):
        checkpoints.read_description(description(run_dir).parent).describe()
        return
    error_of(tfcharrnn.load_model, run_dir, "300", names=run_dir / "checkpoints/step-00000300")


@pytest.mark.parametrize(
    "name",
    ["../../vocab.json", "/etc/passwd", "/", "..", ".", "", "a\0b", "\ud800", "n" * 300, "n" * 10**5, "ckpt.x"],
    ids=lambda name: repr(name)[:20],
)  # fmt: skip
def test_a_checkpoint_that_names_other_files_is_one_error_and_they_are_not_opened(run_dir, name, monkeypatch):
    change(description(run_dir), "files", name, to="0" * 64)
    opened = []
    opening = files.open_regular
    monkeypatch.setattr(files, "open_regular", lambda path, **how: opened.append(path.name) or opening(path, **how))
    assert "missing or damaged" in error_of(tfcharrnn.load_model, run_dir, "300", names=run_dir)
    own = {"config.json", "vocab.json", "checkpoint.json", "ckpt.index", "ckpt.data-00000-of-00001"}
    assert {"ckpt.index"} <= set(opened) <= own


def test_a_checkpoint_that_leaves_a_file_unnamed_is_one_error(run_dir):
    value = json.loads(description(run_dir).read_text())
    del value["files"]["ckpt.data-00000-of-00001"]
    description(run_dir).write_text(json.dumps(value))
    assert "missing or damaged" in error_of(tfcharrnn.load_model, run_dir, "300", names="ckpt.data-00000-of-00001")


@pytest.mark.parametrize("name", ["ckpt.index", "ckpt.data-00000-of-00001"])
@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"\xff" * 5000, b"x"])
def test_weights_replaced_together_with_their_sum_are_one_error(run_dir, name, content):
    path = description(run_dir).parent / name
    path.write_bytes(content)
    change(description(run_dir), "files", name, to=files.sha256(content))
    error_of(tfcharrnn.load_model, run_dir, names=run_dir)


@pytest.mark.parametrize("which", ["n" * 300, "9" * 5000, "../" * 100, "\0", "a\nb"])
def test_a_checkpoint_of_an_impossible_name_is_one_error(run_dir, which):
    with pytest.raises(UserError, match="no such checkpoint") as caught:
        checkpoints.find(run_dir, which)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("window", [0.0] * 4), ("window", None), ("window", "abcde"), ("window", [10**400] * 5), ("window", [[]] * 5),
        ("sizes", []), ("sizes", {"metrics.jsonl": "x"}), ("sizes", {"metrics.jsonl": -1}),
        ("sizes", {"metrics.jsonl": None}), ("smooth_loss", []), ("smooth_loss", 10**400),
        ("skipped", 10**30), ("skipped", 2**31), ("skipped", -1), ("sizes", {"metrics.jsonl": 10**30}),
        ("best", [10**30, 1.0, 0]), ("best", [1, 1.0, 10**30]), ("window", [float("nan")] * 5),
        ("seconds", float("inf")),
    ],
    ids=range(19),
)  # fmt: skip
def test_a_log_that_cannot_be_is_one_error_of_resuming(tmp_path, prepared, name, to):
    run, data = setup.prepare_run(tmp_path, prepared, {"hidden_size": 4, "batch_size": 2})
    runner = Trainer(CharRNN(run.model, len(data.vocabulary)), run.training, 20, RunLength(10, 20))
    state = TrainingState(runner, RunningMetrics(run.training, len(data.vocabulary)))
    state.save(tmp_path, {"metrics.jsonl": 0, "samples.txt": 0})
    found = checkpoints.find(tmp_path)
    state.restore(found, tmp_path)
    change(found.path / "checkpoint.json", "log", name, to=to)
    message = error_of(lambda: state.restore(checkpoints.find(tmp_path), tmp_path))
    assert "checkpoint.json is damaged" in message and "remove step-00000000" in message


# records


def framed(record, size=None):
    header = struct.pack("<Q", len(record) if size is None else size)
    return header + masked_crc(header) + record + masked_crc(record)


@pytest.mark.parametrize("size", [21, 10**6, 2**31, 10**12, 10**18, 2**63, 2**64 - 1, 2**64 - 16])
def test_a_record_with_a_wrong_size_and_the_right_checksum_is_one_error(data_dir, size):
    shard = data_dir / "train-00000-of-00001.tfrecord"
    data = shard.read_bytes()
    header = struct.pack("<Q", size)
    shard.write_bytes(header + masked_crc(header) + data[12:])
    assert "prepare the data again" in error_of(tfcharrnn.open_data(data_dir).read, "train", names=shard)


@pytest.mark.parametrize(
    "record",
    [b"", b"\xff" * 99, b"\x0a" * 99, b"\x0a\xff\xff\xff\xff\x0f", bytes(range(256)), b"\x0a\x80" + b"\x80" * 99],
)
def test_records_that_are_no_examples_are_one_error(data_dir, record):
    shard = data_dir / "train-00000-of-00001.tfrecord"
    count = tfcharrnn.open_data(data_dir).splits["train"].records
    shard.write_bytes(framed(record) * count + b"".join(map(framed, [b""] * 999)))
    assert "prepare the data again" in error_of(tfcharrnn.open_data(data_dir).read, "train", names=shard)


@pytest.mark.parametrize("id", [-1, 99, 2**31, 2**32 + 1, 2**62, -(2**63)])
def test_an_id_outside_the_vocabulary_is_one_error(data_dir, id):
    import tensorflow as tf

    shard = data_dir / "train-00000-of-00001.tfrecord"
    count = tfcharrnn.open_data(data_dir).splits["train"].records
    feature = {"seq": tf.train.Feature(int64_list=tf.train.Int64List(value=[0, id] + [1] * 19))}
    example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    shard.write_bytes(framed(example) * count)
    assert "a record has ids outside the vocabulary" in error_of(
        tfcharrnn.open_data(data_dir).read, "train", names=shard
    )


# dataset.json


@pytest.mark.parametrize("to", [*HUGE, *NESTED, *FOREIGN[:2]], ids=lambda to: repr(to)[:20])
def test_counts_of_dropped_lines_that_cannot_be_are_one_error(data_dir, to):
    before = (data_dir / "dataset.json").read_text()
    for keys, value in [(("dropped",), to), (("dropped", "empty"), to)]:
        (data_dir / "dataset.json").write_text(before)
        change(data_dir / "dataset.json", "dropped", to={})
        change(data_dir / "dataset.json", *keys, to=value)
        error_of(tfcharrnn.open_data, data_dir, names=data_dir / "dataset.json")


@pytest.mark.parametrize("to", [1, None, [], {}, *NESTED], ids=lambda to: repr(to)[:20])
def test_a_name_of_an_input_that_is_none_is_one_error(data_dir, to):
    change(data_dir / "dataset.json", "inputs", 0, "name", to=to)
    error_of(tfcharrnn.open_data, data_dir, names=data_dir / "dataset.json")


# vocab.json


@pytest.mark.parametrize("symbol", ["x" * 10**6, "a\nb", "\x1b[2J", "\ud800", "\U0001f600\u200d"])
def test_a_symbol_that_is_none_is_named_in_short(tmp_path, symbol):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"format": 1, "symbols": ["<S>", symbol]}))
    assert "is neither a character" in error_of(Vocabulary.load, path, names=path)


# nothing that is read is run


def sources():
    return sorted([*(ROOT / "tfcharrnn").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_calls_what_would_run_a_file(path):
    refused = {"eval", "exec", "loads_pickle", "run_path", "run_module", "literal_eval", "unsafe_load", "load_module"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if path.name == "process_pool.py":  # it uses processes of joblib, and reads no files with it
                modules = [module for module in modules if module != "joblib"]
            if path.name not in ("foreign_formats.py", "bench.py"):  # the former makes pickles to damage
                assert not {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "yaml"} & set(modules)
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            # a method of that name is another thing, as of a GPU's module
            assert not (isinstance(node.func, ast.Name) and name in refused), ast.unparse(node)
            assert ast.unparse(node.func) not in ("joblib.load", "joblib.dump", "joblib.Memory")
            if ast.unparse(node.func) in ("np.load", "numpy.load"):
                settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert settings.get("allow_pickle") == "False", ast.unparse(node)


def test_a_run_folder_with_python_and_pickles_in_it_runs_none_of_them(run_dir):
    marker = run_dir / "it-ran"
    code = f"open({str(marker)!r}, 'w')"
    for name in ("tfcharrnn.py", "config.py", "sitecustomize.py", "conftest.py", "json.py"):
        (run_dir / name).write_text(code)
    pickled = b"cbuiltins\nexec\n(V" + code.encode() + b"\ntR."
    for name in ("vocab.pkl", "checkpoint", "checkpoints/step-00000300/saved_model.pb"):
        (run_dir / name).write_bytes(pickled)
    subprocess.run(
        [sys.executable, "-m", "tfcharrnn.generate", f"--run_dir={run_dir}", "--length=5"],
        cwd=run_dir.parent, capture_output=True, check=True, timeout=300,
    )  # fmt: skip
    assert not marker.exists()
