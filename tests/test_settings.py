"""Settings as keyword arguments have the types of the config dataclasses, and are explained."""

import inspect
import subprocess
import sys

import make_settings
import pytest
import readme

import tfcharrnn

CONFIGS = (tfcharrnn.DataConfig, tfcharrnn.ModelConfig, tfcharrnn.TrainingConfig, tfcharrnn.GenerationConfig)


def test_the_types_are_those_of_the_config_dataclasses():
    written = make_settings.PATH.read_text(encoding="utf-8")
    assert written == make_settings.write_classes(), "run python tools/make_settings.py"


@pytest.mark.parametrize("cls", CONFIGS)
def test_help_explains_every_setting(cls):
    shown = inspect.getdoc(cls)
    for name, field in cls.__dataclass_fields__.items():
        assert f"\n    {name} (" in shown
        assert "".join(field.metadata["help"].split()) in "".join(shown.split()), name
    assert max(map(len, shown.splitlines())) <= 120


RIGHT = """\
import tfcharrnn

result = tfcharrnn.train_model("runs/first", text="some text " * 1000, cell="gru", hidden_size=16, steps=10)
model = tfcharrnn.load_model("runs/first", checkpoint=10)
print(result.loss, model.generate("some", length=20).upper())
for text in model.generate("some", num_samples=3, temperature=0.5):
    print(text.upper())
data = tfcharrnn.prepare_data("data", input=["a.txt", "b.txt"], seq_length=9)
sizes: tfcharrnn.TrainSettings = {"hidden_size": 16, "num_layers": 2}
tfcharrnn.train_model(data_dir=data.path, **sizes)
"""
WRONG = {
    "tfcharrnn.train_model(hiden_size=3)  # 1": 'Unexpected keyword argument "hiden_size"',
    'tfcharrnn.train_model(steps="many")  # 2': 'Argument "steps" to "train_model" has incompatible type "str"',
    'tfcharrnn.prepare_data("data", sec_length=9)  # 3': 'Unexpected keyword argument "sec_length"',
    'tfcharrnn.load_model().generate(prompt="The ")  # 4': 'Unexpected keyword argument "prompt"',
    "tfcharrnn.load_model().generate(num_samples=2).upper()  # 5": '"list[str]" has no attribute "upper"',
}


def test_mypy_accepts_what_is_right_and_refuses_what_is_wrong(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "right_readme.py").write_text(readme.block("python"))
    (tmp_path / "wrong.py").write_text("\n".join(["import tfcharrnn", *WRONG]) + "\n")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-tensorflow.*,keras.*]\nignore_missing_imports = True\nfollow_imports = skip\n"
    )
    root = str(make_settings.PATH.parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "right.py", "right_readme.py", "wrong.py"],
        cwd=tmp_path,
        env={"MYPYPATH": root, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=400,
    )
    found = [line for line in done.stdout.splitlines() if ": error: " in line and line.startswith(("right", "wrong"))]
    assert not [line for line in found if line.startswith("right")], done.stdout + done.stderr
    for number, message in enumerate(WRONG.values(), 2):
        assert any(line.startswith(f"wrong.py:{number}:") and message in line for line in found), done.stdout
