"""Run folders from somebody else: nothing outside them is written, and nothing in them is read without end."""

import dataclasses
import json
import os
import shutil

import pytest
from folders import contents
from paths import GOLDEN

import tfcharrnn
from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN, StreamState
from tfcharrnn.runs import checkpoints, initial_weights, logs, run_folder
from tfcharrnn.training import loop, setup


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that has not had a step yet."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "text.txt").write_text("the cat sat on the mat; the dog sat on the log.\n" * 60)
    data = tfcharrnn.prepare_data(
        tfcharrnn.DataConfig(input=(str(folder / "text.txt"),), seq_length=21), folder / "data"
    )
    run, _ = setup.prepare_run(folder / "run", data.path, {"hidden_size": 4, "batch_size": 2})
    (folder / "run").mkdir()
    run.save()
    for name in ("metrics.jsonl", "samples.txt"):
        (folder / "run" / name).write_text("")
    return folder / "run"


@pytest.fixture
def run_dir(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


@pytest.fixture
def outside(tmp_path):
    """Somebody's folder."""
    folder = tmp_path / "outside"
    (folder / "step-00000001").mkdir(parents=True)
    (folder / "step-00000001" / "checkpoint.json").write_text("{}")
    (folder / "thesis.txt").write_text("years of work\n" * 100)
    return folder


def put(path, kind, outside):
    """Puts something else in the place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(outside / "thesis.txt" if path.suffix or path.name == ".lock" else outside)
    elif kind == "link to nothing":
        path.symlink_to(outside / "new")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


def resume(run_dir):
    return tfcharrnn.train_model(run_dir, resume=True, steps=6, quiet=True)


@pytest.mark.parametrize("kind", ["link", "link to nothing", "fifo", "device", "folder"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt", ".lock"])
def test_a_resumed_run_writes_only_files_of_its_folder(run_dir, outside, name, kind):
    put(run_dir / name, kind, outside)
    before = contents(outside)
    with pytest.raises(UserError) as caught:
        resume(run_dir)
    assert str(run_dir) in str(caught.value)
    assert name == ".lock" or str(run_dir / name) in str(caught.value)
    assert contents(outside) == before


@pytest.mark.parametrize("kind", ["link", "link to nothing", "fifo"])
@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_resumed_run_writes_only_folders_of_its_own(run_dir, outside, name, kind):
    put(run_dir / name, kind, outside)
    before = contents(outside)
    with pytest.raises(UserError, match=rf"run/{name}: is "):
        resume(run_dir)
    assert contents(outside) == before


@pytest.mark.parametrize("kind", ["link", "link to nothing", "fifo"])
def test_clearing_a_run_removes_what_is_there_and_follows_nothing(run_dir, outside, kind):
    for name in ("checkpoints", "tensorboard", "export", "metrics.jsonl", "samples.txt", "loss.png"):
        put(run_dir / name, kind, outside)
    before = contents(outside)
    run_folder.clear_run_dir(run_dir)
    assert list(run_dir.iterdir()) == []
    assert contents(outside) == before


def test_a_new_file_is_not_written_through_a_link_in_its_way(tmp_path, outside):
    (tmp_path / f".vocab.json.{os.getpid()}.tmp").symlink_to(outside / "thesis.txt")
    before = contents(outside)
    files.write_json(tmp_path / "vocab.json", 1)
    assert contents(outside) == before


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "hole"])
def test_a_log_that_never_ends_is_not_read(run_dir, outside, kind):
    for name in ("metrics.jsonl", "samples.txt"):
        if kind == "hole":
            os.truncate(run_dir / name, 2**40)
        else:
            put(run_dir / name, kind, outside)
    for read in (logs.read_metrics, logs.read_intact_metrics):
        with pytest.raises(
            UserError, match=r"metrics\.jsonl: (is not a regular file|cannot be read|1099511627776 bytes is too large)"
        ):
            read(run_dir)
    assert logs.read_samples(run_dir) == []


def test_damaged_rows_without_end_are_not_all_kept(run_dir):
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n' + "\n" * 10**6)
    rows, errors = logs.read_intact_metrics(run_dir)
    assert rows == [{"step": 1}] and len(errors) == 1000


@pytest.mark.parametrize("size", [8192, 65536])
@pytest.mark.parametrize(
    "use",
    [
        lambda run: tfcharrnn.load_model(run.path),
        initial_weights.from_run,
        lambda run: loop._find_checkpoint(run),
    ],
    ids=["load_model", "init_from", "resume"],
)
def test_a_model_that_is_not_that_of_its_checkpoint_is_not_made(tmp_path, monkeypatch, use, size):
    shutil.copytree(GOLDEN / "gru", tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["model"]["hidden_size"] = size
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    monkeypatch.setattr(CharRNN, "__init__", lambda *args, **how: pytest.fail("it was made"))
    with pytest.raises(UserError, match=r"does not fit .* should be .*\b" + str(size)):
        use(run_folder.load(tmp_path / "run"))


def test_more_streams_than_a_checkpoint_has_are_one_error(tmp_path, monkeypatch):
    run = run_folder.load(GOLDEN / "gru")
    vocabulary = Vocabulary([symbol for symbol in run.vocabulary.symbols if len(symbol) == 1])
    model = CharRNN(run.model, len(vocabulary), layout=LAYOUTS["stream"])
    data = DataConfig(input=("text.txt",), layout="stream")
    training = dataclasses.replace(run.training, batch_size=10**6)
    dataclasses.replace(run, path=tmp_path, data=data, training=training, vocabulary=vocabulary).save()
    objects = {"model": model, "carried": StreamState(model, 2)}
    checkpoints.save(tmp_path, objects, 1, checkpoints.Losses(None, None), {})
    with pytest.raises(UserError, match=r"carried/symbols is \[2\] here and should be \[1000000\]"):
        tfcharrnn.load_model(tmp_path)
