"""The models that come with the package."""

import json
import re

import commands
import huggingface_hub
import numpy as np
import pytest

import tfcharrnn
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.inference import trained_model
from tfcharrnn.runs import pretrained
from tfcharrnn.serving import export_formats
from tfcharrnn.training import setup

FOLDER = pretrained.resolve("pretrained:shakespeare").parent
# a passage of each model's kind of text, and what it must predict it better than, in nats a character
PASSAGES = {
    "shakespeare": ("\nFirst Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n", 1.8),
    "python": ('\n    def __init__(self, name):\n        self.name = name\n\n    def __repr__(self):\n', 1.0),
    "names": ("LATIN SMALL LETTER E WITH ACUTE", 0.6),
}  # fmt: skip


def generate(*arguments, cwd):
    return commands.run("generate", *arguments, cwd=cwd, text=True)


@pytest.fixture(scope="module", params=pretrained.list_names())
def model(request):
    return trained_model.load_model(f"pretrained:{request.param}")


def test_they_take_at_most_three_megabytes():
    assert set(pretrained.list_names()) == PASSAGES.keys()
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 3_000_000 and max(sizes.values()) <= 2**20


def test_each_predicts_its_kind_of_text(model):
    text, bound = PASSAGES[model.run.path.name]
    assert model.evaluate_text(text).loss < bound
    assert {weight.dtype for weight in model.copy_weights().variables.values()} == {np.dtype(np.float32)}


def test_each_writes_without_a_prime(model):
    text = model.generate(length=30, seed=1)
    assert text and text == model.generate(length=30, seed=1)


def test_each_shows_its_name_and_not_where_the_package_is(model):
    name = f"pretrained:{model.run.path.name}"
    for shown in (repr(model), repr(model.run), model._repr_html_()):
        assert name in shown and str(FOLDER) not in shown


def test_each_has_a_card_with_its_figures(model):
    card = huggingface_hub.ModelCard((model.run.path / "README.md").read_text(encoding="utf-8"))
    assert card.data.model_name == model.run.path.name
    losses = [result.metric_value for result in card.data.eval_results if result.metric_type == "loss"]
    assert losses == [round(model.checkpoint.losses.val, 4)]
    ours, *others = (float(figure) for figure in re.findall(r"^\| .* \| (\d\.\d{3}) \|$", card.text, re.MULTILINE))
    assert len(others) == 4 and ours < min(others), "the baselines do worse"
    for heading in ("Text", "Loss", "Use", "Recipe", "Not for"):
        assert f"## {heading}\n" in card.text


def test_the_card_has_the_recipe_of_the_tool(model):
    name = model.run.path.name
    recipe = (FOLDER.parents[1] / "tools" / "pretrained" / f"{name}.flags").read_text(encoding="utf-8")
    assert f"```text\n{recipe}```" in (model.run.path / "README.md").read_text(encoding="utf-8")


def test_another_run_goes_on_from_one(tmp_path):
    settings = {"text": "The cat sat on the mat.\n" * 60, "seq_length": 20, "batch_size": 2, "val_fraction": 0.0}
    result = setup.train_model(
        tmp_path / "run", init_from="pretrained:shakespeare", steps=1, learning_rate=1e-9, quiet=True, **settings
    )
    before = tfcharrnn.load_model("pretrained:shakespeare").copy_weights().variables
    after = trained_model.load_model(result.run_dir).copy_weights().variables
    np.testing.assert_allclose(after["output_kernel"], before["output_kernel"], atol=1e-6)
    with pytest.raises(UserError, match=r"vocabulary does not have '~'.* --drop_chars"):
        setup.train_model(tmp_path / "other", init_from="pretrained:shakespeare", quiet=True, text="~" * 500)


def test_their_folder_stays_as_it_is():
    with pytest.raises(ConfigError, match="--output is missing"):
        export_formats.export_model("pretrained:shakespeare", "npz")
    with pytest.raises(ConfigError, match="--output is missing"):
        tfcharrnn.write_report("pretrained:shakespeare")


def test_an_unknown_name_is_answered_with_those_that_there_are(tmp_path):
    with pytest.raises(
        UserError, match="did you mean shakespeare? It must be one of .*shakespeare".replace("?", "[?]")
    ):
        pretrained.resolve("pretrained:shakespear")
    done = generate("--model=nobody", cwd=tmp_path)
    assert done.returncode == 1 and "must be one of" in done.stderr and "shakespeare" in done.stderr
    listed = generate("--model=list", cwd=tmp_path)
    assert (listed.stdout.split(), listed.stderr) == (pretrained.list_names(), "")


def test_the_command_writes_in_an_empty_folder(tmp_path):
    done = generate("--model=shakespeare", "--length=50", "--prime=ROMEO:", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("ROMEO:") and len(done.stdout) == 57
    assert not list(tmp_path.iterdir())
    assert generate("--model=shakespeare", "--run_dir=x", cwd=tmp_path).returncode == 2


def test_the_json_has_the_name_that_run_dir_takes(tmp_path):
    value = json.loads(generate("--model=shakespeare", "--length=5", "--json", cwd=tmp_path).stdout)
    assert value["run_dir"] == "pretrained:shakespeare"
