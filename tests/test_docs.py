"""The commands and code of the documentation run, and its links lead somewhere."""

import json
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]


def blocks(page, marker):
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"<!-- {marker} -->\n```\w+\n(.*?)```", text, re.DOTALL)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory with its own caches, from which this checkout's package can be imported."""
    for variable in ("XDG_CACHE_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


# links of the first page of the site lead to pages that are made with it; the site is checked as a whole
@pytest.mark.parametrize(
    "page", [*(page for page in PAGES if page.name != "index.md"), DOCS / "example.ipynb"], ids=lambda page: page.name
)
def test_links_have_targets(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^()\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_documented_flags_exist():
    lines = [
        line
        for page in PAGES
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    named = {}
    for line in lines:
        for call in re.split(r" -- | --command=", line):
            for command, rest in re.findall(r"(?:-m tfcharrnn\.|\btfcharrnn )(\w+)([^&|#]*)", call):
                named.setdefault(command, set()).update(re.findall(r" --(\w+)", rest))
    assert {"train", "generate", "evaluate", "prepare", "report", "export", "plot", "novelty"} <= set(named)
    assert {"import_keras", "launch_local"} <= set(named)
    for command, flags in named.items():
        shown = subprocess.run(
            [sys.executable, "-m", f"tfcharrnn.{command}", "--helpfull"], capture_output=True, cwd=ROOT
        )
        known = set(re.findall(r"^  --(?:\[no\])?(\w+)", shown.stdout.decode(), re.MULTILINE))
        assert known
        assert flags <= known | {"flagfile", "help"}, command


def test_the_commands_of_the_guide_run(elsewhere):
    commands = "".join(blocks("guide.md", "run"))
    assert len(re.findall(r"^tfcharrnn ", commands, re.MULTILINE)) == 5
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'tfcharrnn() {{ "$PYTHON" -m tfcharrnn "$@"; }}\n{commands}'],
        env={**os.environ, "PYTHON": sys.executable},
        cwd=elsewhere,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "ngrams_after_training" in done.stdout.decode()


def test_the_python_of_the_page_about_it_runs(elsewhere):
    code = "".join(blocks("python.md", "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    loss, text, *rest = done.stdout.decode().splitlines()
    assert float(loss) < 3.5
    assert text.startswith("The ")
    assert rest[-3:] == ["(10,) (10, 30)", "layer 0 [(10, 32)]", "None"]


def test_the_recurrence_in_numpy_agrees_with_the_reference(elsewhere):
    (code,) = blocks("recurrence.md", "elman")
    assert len(code.splitlines()) <= 40
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    output = done.stdout.decode()
    assert output.endswith("all gradients agree\n")
    assert output in (DOCS / "recurrence.md").read_text(encoding="utf-8")


def test_the_notebook_runs(elsewhere):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.read(DOCS / "example.ipynb", as_version=4)
    assert not any(cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "commit it without outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(elsewhere)}}).execute()
    printed = "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )
    shown = "".join(
        "".join(output.data.get("text/html", ""))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in ("display_data", "execute_result")
    )
    assert shown.count("<svg") == 2, "the curve of training, drawn again in place, and that of the model"
    assert "<td" in shown and "gru, 1 x 64 units" in shown
    for words in ("step 100: training loss", "ln(V) = 4.5", "def ", "perplexity", "cells/0/recurrent_kernel"):
        assert words in printed


@pytest.mark.parametrize("is_installed", [True, False])
def test_the_notebook_installs_the_package_only_where_it_is_missing(is_installed, elsewhere):
    pytest.importorskip("IPython", reason="IPython is not installed")
    cells = json.loads((DOCS / "example.ipynb").read_text(encoding="utf-8"))["cells"]
    (install,) = ("".join(cell["source"]) for cell in cells if cell.get("id") == "install")
    code = f"""
import sys
from IPython.core.interactiveshell import InteractiveShell

def pip(line):
    print("pip", line)
    del sys.modules["tfcharrnn"]

shell = InteractiveShell.instance()
shell.register_magic_function(pip)
if not {is_installed}:
    sys.modules["tfcharrnn"] = None  # an import of it fails
shell.run_cell({install!r}).raise_error()
print(shell.user_ns["tfcharrnn"].__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if is_installed else "pip install -q tfcharrnn\n") + "tfcharrnn\n"


def test_the_kubernetes_recipe_gives_each_pod_its_index(tmp_path):
    text = (DOCS / "scaling.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^ +args:\n +- \|\n(.*?)^ +volumeMounts:", text, re.DOTALL | re.MULTILINE)
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$TF_CONFIG"\necho "$@"\n')
    stub.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "WORKERS": "3",
        "JOB_COMPLETION_INDEX": "2",
    }
    done = subprocess.run(["bash", "-ec", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config, command = done.stdout.splitlines()
    assert json.loads(config) == {
        "cluster": {"worker": [f"charrnn-{index}.charrnn:12345" for index in range(3)]},
        "task": {"type": "worker", "index": 2},
    }
    assert command.startswith("-m tfcharrnn.train --strategy=multi_worker --run_dir=/runs/mine")
    assert not command.endswith("--resume")
