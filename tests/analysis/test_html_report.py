"""The report: its data, its safety, and the page as a browser shows it."""

import base64
import json
import re
import shutil

import browsers
import commands
import numpy as np
import pytest

from tfcharrnn.analysis import html_page, html_report, report_text
from tfcharrnn.inference import trained_model
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs import checkpoints, logs
from tfcharrnn.runs import run_folder as run_lib
from tfcharrnn.training import setup

pytestmark = pytest.mark.usefixtures("own_cache")

NASTY = "</script><script>alert('x')</script> <b>&amp;\u2028\u2029\0\t“é” 😀 {{DATA}} <!-- ]]>"
TEXT = f'    He said: "so (it) is",\n\tand [went] home.\n{NASTY}\n\n' * 40
SIZES = {"cell": "lstm", "hidden_size": 6, "num_layers": 2, "seq_length": 21, "batch_size": 8}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A short run on a text full of traps; to be read only."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    setup.train_model(
        folder / "run<b>", input=(str(folder / "text.txt"),), **SIZES, steps=30, log_every=5, eval_every=10,
        sample_every=10, sample_length=60, val_fraction=0.3, checkpoint_every=10,
    )  # fmt: skip
    return folder / "run<b>"


@pytest.fixture(scope="module")
def trained(run_dir):
    return trained_model.load_model(run_dir)


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    return html_report.write_report(trained, tmp_path_factory.mktemp("page") / "a #1 report.html", characters=500)


def embedded(path):
    """The data in a page."""
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def unpacked(text, shape):
    return np.frombuffer(base64.b64decode(text), np.int8).reshape(shape)


# ---- the data ----


def test_the_data_is_whole_and_nothing_in_it_is_markup(page, trained):
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2 == text.count("</script>")
    assert "<title>run&lt;b&gt; - tfcharrnn</title>" in text
    assert not re.search("[\u2028\u2029\0]", text)
    assert not re.search("https?:", text.replace("http://www.w3.org/2000/svg", ""))
    data = embedded(page)
    shown = data["text"]
    assert "".join(shown["symbols"]) == TEXT[-(len(TEXT) * 3 // 10) :][:500]
    assert data["title"] == "run<b>" and not data["notes"]
    assert data["evaluations"][0]["name"] == "this model, on the validation part"
    names = [row["name"] for row in data["evaluations"][1:]]
    assert names == [*(f"n-gram model of order {n}, after the training text" for n in range(6)), "gzip", "xz"]
    assert all(row["bits_per_char"] > 0 for row in data["evaluations"])
    assert data["evaluations"][0]["loss"] == pytest.approx(trained.evaluate_split().loss)
    assert [row[0] for row in data["metrics"]["rows"]] == [5, 10, 15, 20, 25, 30]
    assert [sample["title"].split(",")[0] for sample in data["samples"]] == ["step 10", "step 20", "step 30"]
    assert all(len(sample["text"]) == 60 for sample in data["samples"])
    settings = {row["name"]: row for group in data["settings"] for row in group["rows"]}
    assert settings["input"]["value"] == "text.txt" and not settings["input"]["default"]
    assert settings["optimizer"]["default"]
    assert [layer["name"] for layer in shown["layers"]] == [
        f"layer {number}, {part}" for number in (1, 2) for part in ("output h", "memory c")
    ]
    assert "position in line" in {feature["name"] for feature in shown["features"]}
    assert unpacked(shown["layers"][0]["values"], (6, 500)).any()
    assert unpacked(shown["correlations"][0], (len(shown["features"]), 6)).any()


def test_whatever_json_holds_is_safe_in_a_script():
    value = {"text": NASTY, "numbers": [1.5, float("nan"), float("inf")], "nested": [{"<": "\ud800"}]}
    text = html_page.encode_for_script(value)
    assert text.isascii() and text.isprintable()
    assert not re.search("[<>&]", text)
    assert json.loads(text) == {"text": NASTY, "numbers": [1.5, None, None], "nested": [{"<": "\ud800"}]}


def test_activations_keep_seven_bits_of_the_largest():
    values = np.random.default_rng(0).normal(size=[30, 4]) * [1, 1e-3, 0, 50]
    values[3] = np.nan
    packed, scales = html_report.quantise(values)
    assert packed.shape == (4, 30) and (packed[:, 3] == -128).all()
    restored = packed.T / 127 * np.array(scales)
    assert np.nanmax(np.abs(restored - values)[np.arange(30) != 3] / [1, 1e-3, 1, 50]) < 0.02
    assert not packed[2, 4:].any()


def test_a_large_report_stays_small():
    shown = np.random.default_rng(0).normal(size=[1000, 512])
    packed, _ = html_report.quantise(shown)
    assert len(base64.b64encode(packed.tobytes())) < 700_000


def test_lines_are_shown_with_their_ends(tmp_path):
    text = tmp_path / "names.txt"
    text.write_text("".join(f"{'ab' * (i % 3 + 1)}\n" for i in range(60)))
    setup.train_model(
        tmp_path / "run", input=(str(text),), layout="lines", hidden_size=6, batch_size=4, steps=10, val_fraction=0.2
    )
    trained = trained_model.load_model(tmp_path / "run")
    data = embedded(html_report.write_report(trained))
    assert data["text"]["symbols"].count("</S>") == 12
    assert (tmp_path / "run" / "report.html").is_file()
    run_lib.clear_run_dir(tmp_path / "run")  # which takes the report along
    assert not (tmp_path / "run" / "report.html").exists()


def test_bytes_are_shown_as_the_characters_that_they_spell(tmp_path):
    line, glyphs = "né — 字".encode() + b"\xff\n", [*"n·é ··— ··字", r"\xff", "\n"]
    (tmp_path / "data.bin").write_bytes(line * 80)
    setup.train_model(
        tmp_path / "run", input=(str(tmp_path / "data.bin"),), encoding="bytes", layout="stream", seq_length=15,
        hidden_size=6, batch_size=2, steps=10, val_fraction=0.25, quiet=True,
    )  # fmt: skip
    trained = trained_model.load_model(tmp_path / "run")
    data = embedded(html_report.write_report(trained, characters=2 * len(line)))
    shown = data["text"]
    assert shown["glyphs"] == glyphs * 2
    assert shown["symbols"][:4] == ["n", r"\xc3", r"\xa9", " "]
    assert set(shown["symbols"]) == set(shown["vocabulary"])
    names = [feature["name"] for feature in shown["features"]]
    assert "newline" in names and all(len(unpacked(table, [len(names), 6])) for table in shown["correlations"])
    assert data["evaluations"][0]["characters"] == 20 * len(line) - 1
    text = report_text.generate_text(trained, 50, "né").part
    assert text.encode("latin-1").startswith("né".encode())


def test_a_run_with_little_in_it_has_a_report(run_dir, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    shutil.rmtree(path / "checkpoints")
    (path / "samples.txt").unlink()
    (path / "metrics.jsonl").write_text("")
    # its data is nowhere
    config = json.loads((path / "config.json").read_text())
    config["data_dir"], config["data_fingerprint"] = str(tmp_path / "gone"), "0" * 64
    (path / "config.json").write_text(json.dumps(config))
    run = run_lib.load(path)
    model = CharRNN(run.model, len(run.vocabulary))
    checkpoints.save(path, {"model": model}, 0, checkpoints.Losses(None, None), {})
    data = embedded(html_report.write_report(trained_model.load_model(path), characters=80))
    assert data["evaluations"] == data["samples"] == data["metrics"]["rows"] == []
    assert len(data["text"]["symbols"]) == 80
    assert data["text"]["source"] == "text generated by the model"
    assert any("Not evaluated" in note for note in data["notes"])


def test_damaged_logs_are_read_as_far_as_they_go(run_dir, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"step": "x"}\n[]\n{"loss": 1}\n{"step": 2}\n{"ste'
    )
    (tmp_path / "samples.txt").write_bytes(b"--- step 1 ---\n\xff\n\n--- no title ---\n\n--- step 2, x ---\n")
    notes = []
    curves = html_report._select_curves(tmp_path, notes)
    assert curves["columns"] == ["step", "loss"] and [row[0] for row in curves["rows"]] == [1, 2]
    assert "4 damaged rows" in notes[0]
    assert [sample["title"] for sample in logs.read_samples(tmp_path)] == ["step 1", "step 2, x"]


# ---- the command ----


def command(*arguments, cwd):
    return commands.run("report", *arguments, cwd=cwd)


def test_the_command_writes_one_file(run_dir, tmp_path):
    (tmp_path / "some.txt").write_text('He said: "so".\r\n' * 9, encoding="utf-8")
    done = command(
        f"--run_dir={run_dir}", "--text=some.txt", "--characters=50", "--output=new.html", "--split=none", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"new.html\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.html", "some.txt"]
    data = embedded(tmp_path / "new.html")
    assert "".join(data["text"]["symbols"]) == ('He said: "so".\n' * 9)[:50]
    assert data["text"]["source"] == "some.txt" and data["text"]["measured"] == 9 * 15


def test_the_command_says_what_is_wrong_in_one_line(run_dir, tmp_path):
    done = command(f"--run_dir={run_dir}", "--text=a", "--prime=b", cwd=tmp_path)
    assert done.returncode == 2
    (tmp_path / "greek.txt").write_text("ψ", encoding="utf-8")
    done = command(f"--run_dir={run_dir}", "--text=greek.txt", cwd=tmp_path)
    message = done.stderr.decode()
    assert done.returncode == 1 and "greek.txt: the model's vocabulary does not have 'ψ'" in message
    assert len(message.splitlines()) == 1


# ---- the page in a browser ----


@pytest.fixture(scope="module")
def browser():
    with browsers.start(1280) as driver:
        yield driver


@pytest.fixture
def opened(browser, page):
    """The page, freshly opened from disk; after the test nothing may stand in the console."""
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def script(browser, code, *arguments):
    return browser.execute_script(f"return {code}", *arguments)


def colours(browser):
    return script(browser, "[...document.querySelectorAll('#text span')].map((span) => span.style.backgroundColor)")


def value(browser, name):
    return script(browser, "document.getElementById(arguments[0]).value", name)


def text_of(browser, name):
    return script(browser, "document.getElementById(arguments[0]).textContent", name)


def settle(browser):
    """Lets the page hear of what it is told between two frames."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def press(browser, name, *keys):
    """Gives an element the focus as the keyboard would, and presses keys."""
    from selenium.webdriver import ActionChains

    browser.execute_script("document.getElementById(arguments[0]).focus()", name)
    ActionChains(browser).send_keys(*keys).perform()


def test_it_opens_from_disk_and_shows_everything(opened, tmp_path):
    headings = script(opened, "[...document.querySelectorAll('h2')].map((heading) => heading.textContent)")
    assert headings == ["Curves", "Evaluation", "What the units do", "Samples during training", "Settings"]
    assert opened.title == "run<b> - tfcharrnn"
    assert len(colours(opened)) == 500
    assert len(set(colours(opened))) > 5
    assert script(opened, "performance.getEntriesByType('resource').length") == 0
    assert script(opened, "document.querySelectorAll('#text b, #text script').length") == 0
    assert opened.save_screenshot(str(tmp_path / "report.png"))
    assert (tmp_path / "report.png").stat().st_size > 20_000


def test_the_unit_picker_changes_the_colours(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    first = colours(opened)
    unit = opened.find_element(By.ID, "unit")
    unit.send_keys(Keys.ARROW_UP if int(value(opened, "unit")) < 6 else Keys.ARROW_DOWN)
    second = colours(opened)
    assert second != first
    layer = (int(value(opened, "layer")) + 1) % 4
    Select(opened.find_element(By.ID, "layer")).select_by_index(layer)
    third = colours(opened)
    assert third != second
    to_end = value(opened, "slider") == "1"
    press(opened, "slider", Keys.END if to_end else Keys.HOME)
    assert value(opened, "unit") == ("6" if to_end else "1")
    assert colours(opened) != third
    assert text_of(opened, "about-unit").startswith(f"Unit {value(opened, 'unit')} of layer {1 + layer // 2}, ")


def test_the_colours_are_those_of_the_activations(opened, page):
    shown = embedded(page)["text"]
    plane, unit = int(value(opened, "layer")), int(value(opened, "unit")) - 1
    values = unpacked(shown["layers"][plane]["values"], (6, 500))[unit]
    rgb = np.array([[int(part) for part in re.findall(r"\d+", colour)] for colour in colours(opened)])
    blueness = rgb[:, 2] - rgb[:, 0]
    assert np.corrcoef(blueness, -values.astype(float))[0, 1] > 0.99


def test_the_best_units_are_chosen_by_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    options = "[...document.querySelectorAll('#units [role=option]')]"
    r = [float(row.replace("\u2212", "-")) for row in script(opened, f"{options}.map((o) => o.lastChild.textContent)")]
    assert len(r) > 3 and sorted(map(abs, r), reverse=True) == list(map(abs, r))
    before = colours(opened)
    press(opened, "units", Keys.ARROW_DOWN)
    assert colours(opened) != before
    assert script(opened, f"{options}.map((o) => o.getAttribute('aria-selected'))")[:3] == ["false", "true", "false"]
    assert script(opened, "document.getElementById('units').getAttribute('aria-activedescendant')") == "listed-1"
    press(opened, "tracking", "position in l")
    assert set(script(opened, f"{options}.map((o) => o.firstChild.textContent)")) == {"position in line"}


def test_the_text_is_walked_by_keyboard_and_pointer(opened, page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    shown = embedded(page)["text"]
    press(opened, "text", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert "character 2 of 500" in text_of(opened, "where")
    guesses = [shown["vocabulary"][i] for i in shown["guesses"][1]]
    rows = script(opened, "[...document.querySelectorAll('#guesses th')].map((th) => th.textContent)")
    for guess, row in zip(guesses, rows, strict=False):
        if guess.isalpha():
            assert row.startswith(guess)
    assert f"Loss {shown['losses'][1]:.3f} nats" in text_of(opened, "values")
    assert "predicted" in text_of(opened, "spoken")
    press(opened, "text", Keys.ARROW_DOWN)
    below = script(opened, "document.querySelector('#text .here').position")
    assert below > 2
    press(opened, "text", Keys.ARROW_UP)
    assert script(opened, "document.querySelector('#text .here').position") == 1
    before = colours(opened)
    press(opened, "text", "j")
    assert colours(opened) != before
    press(opened, "text", "k")
    assert colours(opened) == before
    press(opened, "text", Keys.END)
    assert shown["symbols"][script(opened, "document.querySelector('#text .here').position")] == "\n"
    spans = opened.find_elements(By.CSS_SELECTOR, "#text span")
    ActionChains(opened).move_to_element(spans[9]).perform()
    assert "character 10 of 500" in text_of(opened, "where")


def test_the_curve_and_the_samples_are_read_by_keyboard(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    assert "step 30" in text_of(opened, "readout") and "validation loss" in text_of(opened, "readout")
    press(opened, "chart", Keys.HOME)
    first = text_of(opened, "readout")
    assert first.startswith("step ") and "step 30" not in first
    ActionChains(opened).move_to_element(opened.find_element(By.ID, "chart")).perform()
    assert text_of(opened, "readout") != first
    opened.find_element(By.CSS_SELECTOR, "#rows summary").click()
    settle(opened)
    assert script(opened, "document.querySelectorAll('#rows tbody tr').length") == 6
    last = text_of(opened, "sample")
    press(opened, "which", Keys.ARROW_LEFT)
    assert text_of(opened, "sample") != last


@pytest.mark.parametrize("width", [380, 800, 1600])
def test_no_width_makes_the_page_scroll_sideways(opened, width):
    resize(opened, width)
    assert script(opened, "document.documentElement.scrollWidth") <= width
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def resize(browser, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    settle(browser)
    settle(browser)


def test_a_table_that_is_cut_says_so(opened):
    opened.execute_script("document.getElementById('rows').open = true")
    cues = "[...document.querySelectorAll('.cue')].map((cue) => cue.textContent)"
    cut = """[...document.querySelectorAll('.scroll')].map((region) => [
      region.scrollWidth - region.clientWidth > 1, region.classList.contains('right')])"""
    resize(opened, 400)
    assert script(opened, cut) == [[True, True], [True, True]]
    assert script(opened, cues) == ["Scroll → for more columns"] * 2
    shadow = "getComputedStyle(document.querySelector('.scroll')).boxShadow"
    before = script(opened, shadow)
    opened.execute_script("document.querySelectorAll('.scroll').forEach((region) => region.scrollTo(9999, 0))")
    settle(opened)
    settle(opened)
    assert script(opened, cues) == ["", ""]
    assert script(opened, shadow) != before
    resize(opened, 1400)
    assert script(opened, cut)[0] == [False, False]
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_legend_stays_with_its_line(opened):
    lines = "[...document.querySelectorAll('.legend')].map((item) => item.getClientRects().length)"
    for width in range(300, 500, 20):
        resize(opened, width)
        assert script(opened, lines) == [1, 1], "each is one box, not broken between the line and its name"
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_written_on_a_colour_can_be_read(opened, scheme):
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    settle(opened)
    ink = script(opened, "getComputedStyle(document.querySelector('#text span')).color")
    lowest = min(contrast(ink, colour) for colour in set(colours(opened)))
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert lowest >= 4.5


def contrast(one, other):
    """The contrast ratio of WCAG 2."""
    light = []
    for colour in (one, other):
        parts = np.array([int(part) for part in re.findall(r"\d+", colour)][:3]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        light.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(light) + 0.05) / (min(light) + 0.05)
