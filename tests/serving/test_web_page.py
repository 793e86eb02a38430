"""The page that writes: its arithmetic against the model's, and what a reader does with it, in a browser."""

import json
import math
import re

import browsers
import numpy as np
import pytest
import tensorflow as tf

import tfcharrnn
from tfcharrnn import cell_registry
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.inference import trained_model
from tfcharrnn.inference.evaluation import Evaluator
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.inference.trained_model import TrainedModel
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN, StreamState
from tfcharrnn.runs.checkpoints import Checkpoint, Losses
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.serving import export_formats, web_page
from tfcharrnn.training import setup

pytestmark = pytest.mark.usefixtures("own_cache")

SYMBOLS = "abcdefghij klmno\n.éß日🙂"
NASTY = "</script><script>alert(1)</script> <b>&amp;<!-- \u2028\0\u202e"


def make_model(path, layout="sequences", *, symbols=SYMBOLS, data=None, seed=0, scale=0.4, **model):
    """A model with random weights and biases, of no run folder on disk."""
    config = ModelConfig(**{"cell": "gru", "hidden_size": 10, **model})
    data = DataConfig(**{"layout": layout, **(data or {})})
    names = Vocabulary.from_text(symbols, LAYOUTS[layout].special).symbols
    vocabulary = Vocabulary(names, of_bytes=data.of_bytes)
    run = Run(path, data, "", "", config, TrainingConfig(batch_size=2), vocabulary)
    network, rng = CharRNN(config, len(vocabulary), layout=LAYOUTS[layout]), np.random.default_rng(seed)
    for variable in network.trainable_variables:
        variable.assign(rng.normal(0.0, scale, variable.shape))
    carried = None
    if LAYOUTS[layout].carries_state:
        carried = StreamState(network, 2)
        for state in tf.nest.flatten(carried.state):
            state.assign(rng.uniform(-1.0, 1.0, state.shape))
        carried.symbols.assign([5, 6])
    sampler = Sampler(network, vocabulary, data.seq_length, carried)
    checkpoint = Checkpoint(path, 1234, Losses(None, None), {})
    return TrainedModel(run, checkpoint, network, sampler, Evaluator(network))


def write_page(trained, path, type="float16"):
    """Writes the page without measuring a loss; returns the values of its weights."""
    weights = web_page.round_weights(trained.model, type)
    path.write_bytes(web_page.render_page(trained, web_page.CheckedWeights(weights, 1.0, 0.0, "nothing")))
    return weights.values


def make_text(length=1000, symbols=SYMBOLS, seed=1):
    return "".join(np.random.default_rng(seed).choice([*symbols], length))


def predict(trained, ids, temperature=1.0):
    """The model's probabilities of each symbol of a text before it is read, `[characters, vocabulary]`."""
    first = ids[0] if len(ids) else None
    start, step = trained.sampler.start_texts(1, first), trained.sampler.make_step()
    count, read = max(len(ids) - start.prime_length, 1), list(ids[start.prime_length :]) or [0]

    @tf.function
    def run(read):
        logits = tf.TensorArray(tf.float32, count)
        symbols, context = start.symbols, start.context
        for t in tf.range(count):
            now, context = step(symbols, context)
            logits = logits.write(t, tf.cast(now[0], tf.float32))
            symbols = read[t : t + 1]
            symbols.set_shape([1])
        return logits.stack()

    logits = run(tf.constant(read, tf.int32)).numpy().astype(np.float64) / temperature
    logits[:, : trained.model.layout.num_unpredicted] = -np.inf
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def browser():
    with browsers.start(1400, ("browser", "performance")) as driver:
        yield driver


@pytest.fixture
def open_page(browser):
    """A function that opens a page from disk; afterwards it must have asked for nothing else, without complaints."""
    from selenium.webdriver.support.ui import WebDriverWait

    def open_file(path):
        opened.append(path.as_uri())
        browser.get(path.as_uri())
        # a browser that has just started may not be there yet
        WebDriverWait(browser, 30).until(lambda _: browser.execute_script("return Boolean(window.tfcharrnn)"))
        return browser

    opened = []
    browser.get_log("performance")
    yield open_file
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url for url in requests if not url.startswith("data:")} <= set(opened)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on names."""
    folder = tmp_path_factory.mktemp("names")
    names = ["anna", "berta", "carla", "dora", "emil", "fritz", "gustav", "hanna", "ida", "jakob"]
    (folder / "names.txt").write_text("\n".join(names * 40), encoding="utf-8")
    settings = {"cell": "gru", "hidden_size": 24, "layout": "lines", "learning_rate": 0.02, "val_fraction": 0.2}
    settings |= {"input": (str(folder / "names.txt"),), "steps": 60, "batch_size": 16}
    setup.train_model(folder / "run", quiet=True, **settings)
    return trained_model.load_model(folder / "run")


@pytest.fixture(scope="module")
def exported(trained):
    return export_formats.export_model(trained.run.path, "html") / "index.html"


def write(browser, **settings):
    return browser.execute_script("return window.tfcharrnn.write(arguments[0])", settings)


def join(pieces):
    return "".join(piece["text"] if piece else "\n" for piece in pieces)


def text_of(browser, name):
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def press(browser, name, *keys):
    """Gives an element the focus as the keyboard would, and presses keys."""
    from selenium.webdriver import ActionChains

    browser.execute_script("document.getElementById(arguments[0]).focus()", name)
    ActionChains(browser).send_keys(*keys).perform()


def fill(browser, **values):
    for name, value in values.items():
        browser.execute_script("document.getElementById(arguments[0]).value = arguments[1]", name, value)


def wait_for_status(browser, *starts):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60, 0.02).until(lambda _: text_of(browser, "status").startswith(starts))


# Arithmetic

MODELS = [
    *({"cell": cell} for cell in cell_registry.BUILT_IN),
    {"cell": "lstm", "recurrent_activation": "hard_sigmoid"},
    {"cell": "gru", "recurrent_activation": "hard_sigmoid_6"},
    {"cell": "lnlstm", "num_layers": 2, "embedding_size": 6, "learned_initial_state": True},
    {"cell": "mlstm", "num_layers": 2, "layer_norm": True},
    {"cell": "sru", "num_layers": 3, "residual": True, "layer_norm": True, "learned_initial_state": True},
    {"cell": "gru", "num_layers": 2, "residual": True, "embedding_size": 10, "tie_embedding": True},
    {"cell": "rnn", "zero_start": True, "precision": "float64"},
    {"cell": "lstm", "layout": "lines", "embedding_size": 5, "zero_start": True, "hidden_size": 7},
    {"cell": "mingru", "layout": "stream"},
    {"cell": "gru", "layout": "windows", "data": {"seq_length": 6}, "embedding_size": 4},
]


@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_the_page_predicts_what_the_model_predicts(settings, tmp_path, open_page):
    trained, text = make_model(tmp_path, **settings), make_text()
    write_page(trained, tmp_path / "page.html")
    actual = open_page(tmp_path / "page.html").execute_script("return tfcharrnn.probabilities(arguments[0])", text)
    is_first_given = settings.get("layout") == "stream"
    assert (actual[0] is None) == is_first_given and len(actual) == 1000
    actual, expected = np.array(actual[is_first_given:]), predict(trained, trained.run.vocabulary.encode(text))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    assert expected.std(axis=0).max() > 0.005  # they depend on the text


@pytest.mark.parametrize("type", ["float16", "int8"])
def test_the_weights_of_the_page_are_those_that_were_checked(type, tmp_path, open_page):
    trained, text = make_model(tmp_path, cell="gru", num_layers=2, embedding_size=5), make_text(200)
    values = write_page(trained, tmp_path / "page.html", type)
    actual = open_page(tmp_path / "page.html").execute_script("return tfcharrnn.probabilities(arguments[0])", text)
    for name, variable in trained.model.named_variables.items():
        coarse = np.abs(variable.numpy()).max() / 127 if type == "int8" else 1e-3
        np.testing.assert_allclose(variable.numpy(), values[name], atol=coarse)
        variable.assign(values[name])
    np.testing.assert_allclose(actual, predict(trained, trained.run.vocabulary.encode(text)), atol=1e-5)


# Writing


def test_the_same_seed_gives_the_same_text(tmp_path, open_page):
    write_page(make_model(tmp_path), tmp_path / "page.html")
    browser = open_page(tmp_path / "page.html")
    first = write(browser, seed=3, length=300)
    assert write(browser, seed=4, length=300) != first
    browser.refresh()
    assert write(browser, seed=3, length=300) == first
    # the bits are the same on any machine and in any browser, and so is this
    assert join(first)[:20] == "hbd🙂🙂日fiéc.ék.dni.kk"
    shown = "return document.getElementById('text').textContent"
    fill(browser, seed="3", length="300", temperature="1")
    browser.find_element("id", "write").click()
    wait_for_status(browser, "Done: 300 characters")
    assert browser.execute_script(shown) == join(first)


def test_symbols_are_drawn_with_the_probabilities_of_the_model(tmp_path, open_page):
    trained = make_model(tmp_path, "stream", cell="lstm", num_layers=2)
    write_page(trained, tmp_path / "page.html")
    browser = open_page(tmp_path / "page.html")
    expected = predict(trained, [], temperature=0.7)[0]  # the text goes on from where training stopped
    drawn = write(browser, temperature=0.7, length=1, seed=9)[0]["drawn"][0]
    assert drawn["probability"] == pytest.approx(expected[drawn["id"]], abs=1e-3)
    likeliest = [entry["id"] for entry in drawn["likeliest"]]
    assert likeliest == np.argsort(-expected, kind="stable")[:6].tolist()
    draws = [write(browser, temperature=0.7, length=1, seed=seed)[0]["drawn"][0]["id"] for seed in range(300)]
    frequencies = np.bincount(draws, minlength=len(expected)) / 300
    np.testing.assert_allclose(frequencies, expected, atol=4 * np.sqrt(0.25 / 300))
    for piece in write(browser, topK=2, length=50):
        (drawn,) = piece["drawn"]
        assert len(drawn["likeliest"]) == 2
        assert math.fsum(entry["probability"] for entry in drawn["likeliest"]) == pytest.approx(1.0)
    greedy = write(browser, topK=1, length=50)
    assert join(greedy) == trained.generate(length=50, greedy=True)


def test_texts_end_and_follow_one_another(trained, exported, open_page):
    browser = open_page(exported)
    pieces = write(browser, count=5, length=40)
    texts = join(pieces).split("\n")
    assert pieces.count(None) == 4 and len(texts) == 5 and len(set(texts)) > 1
    assert all(text.isalpha() for text in texts)
    assert pieces[-1]["text"] == "" and pieces[-1]["drawn"][0]["symbol"] == "</S>"
    assert join(write(browser, beginning="be", length=40, topK=1)) == trained.generate(prime="be", greedy=True)[2:]


def test_a_stop_string_ends_a_text(tmp_path, open_page):
    write_page(make_model(tmp_path), tmp_path / "page.html")
    browser = open_page(tmp_path / "page.html")
    whole = join(write(browser, length=200))
    for stop in [whole[50:53], whole[7], whole[100:130]]:
        assert join(write(browser, length=200, stop=stop)) == whole[: whole.index(stop)]
    assert join(write(browser, length=200, stop="no such string")) == whole


def test_bytes_are_decoded_as_python_does(tmp_path, open_page):
    # the symbols are many starts of characters and few other bytes, so that some of what is drawn is valid
    symbols = b"A\x80\x84\x90\x9f\xa0\xbf\xc0\xc3\xc4\xe0\xe2\xed\xef\xf0\xf4\xff"
    trained = make_model(tmp_path, symbols=symbols.decode("latin-1"), data={"encoding": "bytes"}, scale=0.2)
    write_page(trained, tmp_path / "page.html")
    browser = open_page(tmp_path / "page.html")
    for beginning in ["", "A\u00c4", "\u00c4\u00ff"]:
        pieces = write(browser, beginning=beginning, length=3000)
        data = bytes(ord(drawn["symbol"]) for piece in pieces for drawn in piece["drawn"])
        assert join(pieces) == data.decode("utf-8", "backslashreplace")
        assert len(data) == 3000 and len(re.findall("[^\0-\x7f]", join(pieces))) > 100


def test_a_beginning_is_normalised_as_the_training_text(tmp_path, open_page):
    data = {"lowercase": True, "drop_digits": True, "drop_chars": "-_"}
    write_page(make_model(tmp_path, data=data), tmp_path / "page.html")
    browser = open_page(tmp_path / "page.html")
    assert write(browser, beginning="A-B\r\n1٣É", length=50) == write(browser, beginning="ab\né", length=50)


# The page


def test_it_writes_and_shows_alternatives_by_keyboard(exported, open_page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = open_page(exported)
    fill(browser, count="3", temperature="3")
    press(browser, "beginning", "a")
    ActionChains(browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    wait_for_status(browser, "Done")
    assert browser.execute_script("return document.querySelectorAll('#text hr').length") == 2
    assert [start.text for start in browser.find_elements("css selector", "#text b")] == ["a"] * 3
    press(browser, "look", Keys.HOME, Keys.ARROW_RIGHT)
    assert text_of(browser, "place").startswith("Symbol 2 of ")
    spoken = browser.find_element("id", "look").get_attribute("aria-valuetext")
    assert re.fullmatch(r"\S.*, [\d.]+ %(; others: .+ [\d.]+ %)?", spoken)
    assert len(browser.find_elements("css selector", "#text .here")) == 1
    assert browser.find_elements("css selector", "#alternatives .drawn")
    press(browser, "look", Keys.END)
    assert "end of text" in text_of(browser, "place")
    before = text_of(browser, "text")
    press(browser, "next-seed", Keys.ENTER)
    wait_for_status(browser, "Done")
    assert text_of(browser, "text") != before
    assert browser.find_element("id", "seed").get_property("value") == "1"


def test_an_address_with_a_beginning_writes_at_once(exported, open_page):
    browser = open_page(exported)
    browser.get(f"{exported.as_uri()}#write=an%6E")
    browser.refresh()
    assert wait_for_status(browser, "Done")
    assert text_of(browser, "text").startswith("ann")


def test_a_character_is_looked_at_by_pointing(exported, open_page):
    from selenium.webdriver import ActionChains

    browser = open_page(exported)
    browser.find_element("id", "write").click()
    wait_for_status(browser, "Done")
    span = browser.find_elements("css selector", "#text span")[1]
    ActionChains(browser).move_to_element(span).perform()
    assert text_of(browser, "place").startswith("Symbol 2 of ")
    assert "here" in span.get_attribute("class")


def test_writing_is_stopped(tmp_path, open_page):
    from selenium.webdriver.common.keys import Keys

    write_page(make_model(tmp_path, hidden_size=200, num_layers=3), tmp_path / "page.html")
    browser = open_page(tmp_path / "page.html")
    for stop in [lambda: press(browser, "stop-writing", Keys.ENTER), lambda: press(browser, "beginning", Keys.ESCAPE)]:
        fill(browser, length="20000")
        browser.find_element("id", "write").click()
        wait_for_status(browser, "Writing")
        stop()
        wait_for_status(browser, "Stopped")
        length = len(text_of(browser, "text"))
        assert length < 20_000
    assert browser.execute_script("return document.activeElement.id") == "beginning"
    assert len(text_of(browser, "text")) == length


def test_unknown_characters_of_a_beginning_are_named(tmp_path, open_page):
    write_page(make_model(tmp_path), tmp_path / "page.html")
    browser = open_page(tmp_path / "page.html")
    fill(browser, beginning="aXb\tX<")
    browser.find_element("id", "write").click()
    message = text_of(browser, "problem")
    assert message.startswith("The model does not know “X”, “tab”, “<”;") and "\n" not in message
    assert browser.find_element("id", "beginning").get_attribute("aria-invalid") == "true"
    assert text_of(browser, "text") == ""
    fill(browser, beginning="ab", length="10")
    browser.find_element("id", "write").click()
    wait_for_status(browser, "Done")
    assert text_of(browser, "problem") == ""


def test_no_text_of_the_run_becomes_part_of_the_page(tmp_path, open_page):
    path = tmp_path / "<script>alert(1)<" / "script>"
    path.mkdir(parents=True)
    trained = make_model(path.parent, symbols=NASTY)
    write_page(trained, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<script") == 2
    browser = open_page(tmp_path / "page.html")
    fill(browser, beginning="</script><script>alert(1)</script>", length="500")
    browser.find_element("id", "write").click()
    wait_for_status(browser, "Done")
    assert text_of(browser, "name") == "<script>alert(1)<" and browser.title == "<script>alert(1)< - tfcharrnn"
    assert text_of(browser, "text").startswith("</script><script>alert(1)</script>")
    assert browser.execute_script("return document.scripts.length") == 2
    press(browser, "look", "\ue013")  # shows symbols in the table
    assert browser.execute_script("return document.querySelectorAll('#result script').length") == 0


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_sticks_out_and_the_theme_can_be_chosen(exported, open_page, width):
    from selenium.webdriver.common.keys import Keys

    browser = open_page(exported)
    try:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.find_element("id", "write").click()
        wait_for_status(browser, "Done")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        background = "return getComputedStyle(document.body).backgroundColor"
        before = browser.execute_script(background)
        press(browser, "theme", Keys.ENTER)
        assert browser.execute_script(background) != before
        pressed = browser.find_element("id", "theme").get_attribute("aria-pressed")
        browser.refresh()
        assert browser.find_element("id", "theme").get_attribute("aria-pressed") == pressed
        press(browser, "theme", Keys.ENTER)
        assert browser.execute_script(background) == before
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_field_has_a_name(exported, open_page):
    browser = open_page(exported)
    names = "return [...document.querySelectorAll('input, textarea')].map((field) => field.labels.length)"
    assert set(browser.execute_script(names)) == {1}
    assert text_of(browser, "summary").startswith("cellgrusize1 layer of 24 unitsparameters")


# Exporting


def test_a_file_or_a_folder_is_written(trained, exported, tmp_path, capsys):
    assert exported == trained.run.path / "export" / "html" / "index.html"
    path = export_formats.export_model(trained.run.path, "html", tmp_path / "new" / "names.html")
    assert path.read_bytes() == exported.read_bytes()
    message = capsys.readouterr().err
    assert re.fullmatch(
        r"html: 0\.\d MB, weights in float16; loss \d\.\d{4} nats a character, [+-]0\.00\d\d by rounding, "
        r"on the beginning of the validation part of names\.txt\n",
        message,
    )
    for output in (path, exported.parent):
        with pytest.raises(UserError, match="exists already"):
            export_formats.export_model(trained.run.path, "html", output)
    export_formats.export_model(trained.run.path, "html", path, overwrite=True)
    assert [file.name for file in path.parent.iterdir()] == ["names.html"]
    policy = re.search('Content-Security-Policy" content="(.*?)"', path.read_text(encoding="utf-8"))[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_a_model_without_data_is_measured_on_its_own_text(tmp_path):
    checked = web_page.choose_weights(make_model(tmp_path))
    assert checked.source == "text generated by the model"
    assert 0.5 < checked.loss < 4.0 and abs(checked.increase) < 1e-3


def test_a_large_page_has_int8_unless_it_predicts_worse(trained, monkeypatch):
    monkeypatch.setattr(web_page, "_LARGE_PAGE", 1)
    assert web_page.choose_weights(trained).weights.type == "int8"
    round_weights = web_page.round_weights

    def round_badly(model, type):
        weights = round_weights(model, type)
        spoilt = {name: value * 0.0 for name, value in weights.values.items()}
        return weights._replace(values=spoilt) if type in bad else weights

    monkeypatch.setattr(web_page, "round_weights", round_badly)
    bad = ["int8"]
    assert web_page.choose_weights(trained).weights.type == "float16"
    bad.append("float16")
    with pytest.raises(UserError, match="with weights in float16 the loss would be") as error:
        web_page.choose_weights(trained)
    assert len(str(error.value).splitlines()) == 1


def test_weights_that_are_not_finite_are_refused(tmp_path):
    trained = make_model(tmp_path)
    trained.model.output_kernel.assign(trained.model.output_kernel * np.nan)
    with pytest.raises(UserError, match="nan"):
        web_page.choose_weights(trained)


def test_weights_too_large_for_float16_are_cut(tmp_path):
    trained = make_model(tmp_path)
    trained.model.output_kernel.assign(trained.model.output_kernel * 1e6)
    values = web_page.round_weights(trained.model, "float16").values["output_kernel"]
    assert np.abs(values).max() == 65504


def test_a_cell_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cell_registry, "_registered", {})

    @tfcharrnn.register_cell("somebodys")
    class SomebodysCell(tfcharrnn.Cell):
        num_gates = 1

        @classmethod
        def forward(cls, p, q, state):
            return (tf.sin(p + q),)

    with pytest.raises(UserError, match="not somebodys; use --format=saved_model"):
        web_page.write_page(make_model(tmp_path, cell="somebodys"), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
