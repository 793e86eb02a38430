import dataclasses
import json
import math
import typing

import pytest

from tfcharrnn import config as config_lib
from tfcharrnn.config import MAX_FLOAT32, DataConfig, GenerationConfig, GradcheckConfig, ModelConfig, TrainingConfig
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.layouts import LAYOUTS

CLASSES = [DataConfig, ModelConfig, TrainingConfig, GenerationConfig, GradcheckConfig]

# every setting with its class, its type and its bounds
SETTINGS = [
    (cls, field.name, typing.get_type_hints(cls)[field.name], field.metadata)
    for cls in CLASSES
    for field in dataclasses.fields(cls)
]
NUMBERS = [setting for setting in SETTINGS if setting[2] in (int, float)]


def ids(settings):
    return [setting[1] for setting in settings]


def accepts(cls, name, value):
    users = [layout.name for layout in LAYOUTS.values() if name in layout.settings]  # a setting of its own layout only
    more = {"layout": users[0]} if cls is DataConfig and users else {}
    return getattr(cls(**{**more, name: value}), name) == value


def refuses(cls, name, value):
    with pytest.raises(ConfigError, match=f"^--{name} must be .*Received: "):
        cls(**{name: value})
    return True


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_are_allowed_and_settings_are_frozen(cls):
    config = cls()
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, None)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_has_help_that_is_a_sentence(cls):
    for field in dataclasses.fields(cls):
        assert field.metadata["help"].endswith("."), field.name


def test_no_setting_has_two_homes_but_the_seed():
    # the check of gradients belongs to no run, and has small sizes of its own under the names that a run has for them
    names = [name for cls, name, _, _ in SETTINGS if cls is not GradcheckConfig]
    assert sorted({name for name in names if names.count(name) > 1}) == ["seed"]


@pytest.mark.parametrize(("cls", "name", "kind", "bounds"), NUMBERS, ids=ids(NUMBERS))
def test_numbers_keep_their_bounds(cls, name, kind, bounds):
    def next_to(value, direction):
        return int(value + direction) if kind is int else math.nextafter(value, direction * math.inf)

    if bounds["at_least"] is not None:
        assert accepts(cls, name, kind(bounds["at_least"]))
        assert refuses(cls, name, next_to(bounds["at_least"], -1))
    if bounds["at_most"] is not None:
        assert accepts(cls, name, kind(bounds["at_most"]))
        assert refuses(cls, name, next_to(bounds["at_most"], 1))
    if bounds["above"] is not None:
        assert refuses(cls, name, kind(bounds["above"]))
        assert accepts(cls, name, next_to(bounds["above"], 1))
    if bounds["below"] is not None:
        assert refuses(cls, name, kind(bounds["below"]))
    assert bounds["at_least"] is not None or bounds["above"] is not None


@pytest.mark.parametrize(("cls", "name", "kind", "bounds"), SETTINGS, ids=ids(SETTINGS))
def test_values_of_another_type_are_refused(cls, name, kind, bounds):
    wrong = {int: ["1", 1.0, True, None], float: ["1", False, None, [1.0]], bool: [0, 1, "true", None]}
    for value in wrong.get(kind, [1, None, b"x", {"a": 1}]):
        assert refuses(cls, name, value)


@pytest.mark.parametrize(("cls", "name", "kind", "bounds"), NUMBERS, ids=ids(NUMBERS))
def test_no_number_is_infinite_or_none(cls, name, kind, bounds):
    for value in (math.nan, math.inf, -math.inf, 1e39, math.nextafter(MAX_FLOAT32, math.inf)):
        assert refuses(cls, name, value)


@pytest.mark.parametrize(
    ("cls", "name", "choices"),
    [(cls, name, bounds["choices"]) for cls, name, _, bounds in SETTINGS if bounds["choices"]],
)
def test_choices_are_the_only_ones(cls, name, choices):
    cell = {"cell": "lstm"} if name == "recurrent_activation" else {}  # the default cell has no such choice of gates
    assert all(getattr(cls(**cell, **{name: choice}), name) == choice for choice in choices)
    with pytest.raises(ConfigError, match=f"--{name} must be one of {', '.join(choices)}. Received: 'other'"):
        cls(**{name: "other"})


def test_a_cell_without_gates_takes_no_activation_of_gates():
    assert ModelConfig(cell="rnn", recurrent_activation="sigmoid").cell == "rnn"
    with pytest.raises(ConfigError, match=r"^--recurrent_activation=hard_sigmoid: --cell=rnn has no such choice"):
        ModelConfig(recurrent_activation="hard_sigmoid")


def test_an_integer_serves_as_a_number():
    rate = TrainingConfig(learning_rate=1).learning_rate
    assert (type(rate), rate) == (float, 1.0)


def test_a_list_serves_as_a_tuple_and_a_string_does_not():
    assert DataConfig(input=["a", "b"]).input == ("a", "b")
    assert refuses(DataConfig, "input", "ab")
    assert refuses(DataConfig, "input", ["a", 1])


def test_splits_must_leave_text_to_train_on():
    assert DataConfig(val_fraction=0.5, test_fraction=0.4)
    with pytest.raises(ConfigError, match=r"^--val_fraction and --test_fraction must leave text"):
        DataConfig(val_fraction=0.5, test_fraction=0.5)


def test_input_and_corpus_exclude_each_other():
    with pytest.raises(ConfigError, match=r"^--input and --corpus exclude each other"):
        DataConfig(input=("a",), corpus="python")


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(input=("a", "b"), seq_length=50, overlap=0.1, drop_chars="é\x00"),
        DataConfig(corpus="python"),
        ModelConfig(cell="gru", num_layers=3, dropout=0.5),
        TrainingConfig(learning_rate=1e-5, seed=2**31 - 1),
        GenerationConfig(prime="\U0001f600", greedy=True),
    ],
)
def test_config_survives_json(config):
    values = json.loads(json.dumps(config_lib.to_dict(config)))
    assert config_lib.from_dict(type(config), values, "config.json") == config


def test_missing_names_take_their_default():
    assert config_lib.from_dict(ModelConfig, {"hidden_size": 7}, "config.json") == ModelConfig(hidden_size=7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hiden_size": 7}, "config.json: unknown setting 'hiden_size'; was it written by a newer version?"),
        ({"hidden_size": 0}, "config.json: --hidden_size must be at least 1. Received: 0"),
        ({"hidden_size": "7"}, "config.json: --hidden_size must be an integer. Received: '7'"),
        ({"hidden_size": 10**18}, "config.json: --hidden_size must be at most 65536. Received: 1000000000000000000"),
        ([], "config.json: ModelConfig must be an object. Received: list"),
        (None, "config.json: ModelConfig must be an object. Received: NoneType"),
    ],
)
def test_wrong_values_on_disk_name_the_file(values, message):
    with pytest.raises(UserError) as caught:
        config_lib.from_dict(ModelConfig, values, "config.json")
    assert str(caught.value) == message


# Layouts


SETTINGS_OF_LAYOUTS = {
    "overlap": (0.5, ["sequences"]),
    "stride": (3, ["windows"]),
    "delimiter": (";", ["lines"]),
    "max_length": (50, ["lines"]),
    "seq_length": (50, ["sequences", "stream", "windows"]),
}


@pytest.mark.parametrize("name", SETTINGS_OF_LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_setting_of_another_layout_is_refused(layout, name):
    value, users = SETTINGS_OF_LAYOUTS[name]
    if layout in users:
        assert getattr(DataConfig(layout=layout, **{name: value}), name) == value
    else:
        with pytest.raises(ConfigError) as caught:
            DataConfig(layout=layout, **{name: value})
        assert str(caught.value) == f"--{name}: applies to --layout={'|'.join(users)}, not to {layout}"


def test_every_layout_setting_is_one():
    assert {name for layout in LAYOUTS.values() for name in layout.settings} == set(SETTINGS_OF_LAYOUTS)


@pytest.mark.parametrize("delimiter", ["(", "[a", "*", "a{2,1}", "(?P<n", "(?<=a*)b", "a{99999999999999999999}"])
def test_a_delimiter_that_is_no_regular_expression_is_one_line(delimiter):
    with pytest.raises(ConfigError) as caught:
        DataConfig(layout="lines", delimiter=delimiter)
    assert str(caught.value).startswith(f"--delimiter={delimiter!r}: not a regular expression (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start", ["first", "uniform", "0", "-1.5", "1e3"])
def test_smoothing_starts_at_a_word_or_a_number(start):
    assert TrainingConfig(smoothing_start=start).smoothing_start == start


@pytest.mark.parametrize("start", ["", "last", "nan", "inf", "-inf", "1e999", "1,5", "FIRST"])
def test_smoothing_starts_at_nothing_else(start):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(smoothing_start=start)
    assert str(caught.value) == f"--smoothing_start must be first, uniform or a number. Received: {start!r}"
