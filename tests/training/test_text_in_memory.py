"""A model is trained on a text from memory as on a file with that text."""

import shutil
from pathlib import Path

import pytest

import tfcharrnn
from tfcharrnn.runs import run_folder

TEXT = "\ufeff" + "".join(f"{n} times {n} is {n * n}: 'é'\r\n" for n in range(100))
SMALL = {"hidden_size": 4, "seq_length": 21, "batch_size": 4, "steps": 2, "quiet": True}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("encoding", ["utf-8", "bytes"])
def test_a_text_is_prepared_like_a_file_with_it(encoding, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode("utf-8"))
    settings = {"lowercase": True, "drop_digits": True, "seq_length": 21, "encoding": encoding}
    texts = {"file": {"input": path}, "text": {"text": TEXT}}
    file, text = (tfcharrnn.prepare_data(tmp_path / name, **given, **settings) for name, given in texts.items())
    assert (text.name, file.name) == ("<text>", "text.txt")
    assert text.fingerprint == file.fingerprint
    for name in ("vocab.json", "train-00000-of-00001.tfrecord", "val-00000-of-00001.tfrecord"):
        assert (text.path / name).read_bytes() == (file.path / name).read_bytes(), name


def test_a_run_on_a_text_is_resumed_and_evaluated_from_the_cache(tmp_path, cache):
    run_dir = tmp_path / "run"
    tfcharrnn.train_model(run_dir, text=TEXT, **SMALL)
    assert run_folder.load(run_dir).data.input == ("<text>",)
    loss = tfcharrnn.load_model(run_dir).evaluate_split("val").loss
    assert tfcharrnn.train_model(run_dir, resume=True, steps=3, quiet=True).step == 3
    assert tfcharrnn.train_model(run_dir, resume=True, steps=4, quiet=True, text=TEXT).step == 4
    with pytest.raises(tfcharrnn.UserError, match="was trained on other data than <text>; pass the same text"):
        tfcharrnn.train_model(run_dir, resume=True, steps=5, quiet=True, text=TEXT + "more")

    shutil.rmtree(cache)
    missing = (
        r"the text was passed as text=\.\.\. and is no longer cached; pass it again to train_model or prepare_data"
    )
    with pytest.raises(tfcharrnn.UserError, match=f"^{missing}$"):
        tfcharrnn.train_model(run_dir, resume=True, steps=5, quiet=True)
    with pytest.raises(tfcharrnn.UserError, match=rf"its data was not found \({missing}\); pass --data_dir$"):
        tfcharrnn.load_model(run_dir).evaluate_split("val")
    assert len(tfcharrnn.load_model(run_dir).generate(length=5)) == 5
    data = tfcharrnn.prepare_data(tmp_path / "data", text=TEXT, seq_length=21)
    assert tfcharrnn.load_model(run_dir).evaluate_split("val", data.path).loss != loss  # two steps later
    (tmp_path / "text.txt").write_bytes(TEXT.encode("utf-8"))
    assert tfcharrnn.train_model(run_dir, resume=True, steps=5, quiet=True, input=tmp_path / "text.txt").step == 5


def test_a_file_is_named_by_a_string_a_path_or_a_list(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a,b.txt").write_bytes(TEXT.encode("utf-8"))
    runs = []
    for index, given in enumerate(("a,b.txt", Path("a,b.txt"), [Path("a,b.txt")], ("a,b.txt",))):
        tfcharrnn.train_model(f"run-{index}", input=given, **SMALL)
        runs.append(run_folder.load(f"run-{index}").data)
    assert set(runs) == {runs[0]}
    assert runs[0].input == ("a,b.txt",)
    tfcharrnn.train_model("two", text=TEXT[1:600], init_from="run-0", steps=1, batch_size=2, quiet=True)
    assert run_folder.load("two").data.input == ("<text>",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": ""}, "^text: is empty; training needs text$"),
        ({"text": "1", "drop_digits": True}, "^text: no text is left"),
        ({"text": "a\ud800"}, "^text: a lone surrogate at character 1"),
        ({"text": "abc", "encoding": "latin-1"}, "^--encoding=latin-1: a text from memory is decoded already"),
        ({"text": "abc", "input": "a.txt"}, "^--text and --input exclude each other"),
        ({"text": "abc", "data_dir": "data"}, "^--data_dir and --text exclude each other"),
        ({"text": "abc", "corpus": "python"}, "^--text and --corpus exclude each other"),
        ({"hiden_size": 3}, "^there is no setting 'hiden_size'; did you mean hidden_size\\?$"),
        ({"overwritte": True}, "^there is no setting 'overwritte'; did you mean overwrite\\?$"),
        ({"steps": "many"}, "^--steps must be an integer. Received: 'many'$"),
        ({"input": 3}, "^--input must be a list of strings"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(given, message, tmp_path, cache):
    with pytest.raises(tfcharrnn.UserError, match=message):
        tfcharrnn.train_model(tmp_path / "run", quiet=True, **given)
    assert not (tmp_path / "run").exists()


def test_a_data_folder_is_made_by_a_config_or_by_settings(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT.encode("utf-8"))
    config = tfcharrnn.DataConfig(input=(str(tmp_path / "text.txt"),), seq_length=21)
    data = tfcharrnn.prepare_data(config, tmp_path / "a")
    assert tfcharrnn.prepare_data(output_dir=config.input[0] + "b", text=TEXT, seq_length=21).config == data.config
    for arguments, given in (((config,), {}), ((config, "x"), {"seq_length": 3}), (("x", "y"), {}), ((), {})):
        with pytest.raises(tfcharrnn.ConfigError, match=r"^prepare_data takes a DataConfig"):
            tfcharrnn.prepare_data(*arguments, **given)
    with pytest.raises(tfcharrnn.ConfigError, match="no setting 'sec_length'; did you mean seq_length"):
        tfcharrnn.prepare_data(tmp_path / "c", sec_length=3)
    with pytest.raises(tfcharrnn.UserError, match=r"^--corpus=pyton: not one of python"):
        tfcharrnn.prepare_data(tmp_path / "c", corpus="pyton")
