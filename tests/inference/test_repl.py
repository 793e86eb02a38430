import pytest

from tfcharrnn.config import GenerationConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.inference.repl import Conversation, complete_command


class Echo:
    """A sampler that writes the prime and then its seed, as often as it is asked for characters."""

    vocabulary = Vocabulary("a")

    def stream_symbols(self, config):
        if "~" in config.prime:
            raise UserError("--prime: the model's vocabulary does not have '~'")
        text = config.prime + str(config.seed % 10) * config.length
        for start in range(0, len(text), 3):
            yield [text[start : start + 3]]


@pytest.fixture
def written():
    return []


@pytest.fixture
def conversation(written):
    return Conversation(Echo(), GenerationConfig(length=4, seed=1), written.append)


def test_a_line_begins_a_text_and_an_empty_one_goes_on(conversation, written):
    conversation.answer("Once")
    assert ("".join(written), conversation.text) == ("Once1111\n", "Once1111")
    written.clear()
    conversation.answer("")
    assert ("".join(written), conversation.text) == ("2222\n", "Once11112222"), "only what is new is written"


def test_undo_takes_answers_back_one_by_one(conversation, written):
    conversation.answer("ab")
    conversation.answer("")
    assert "ab1111" in conversation.answer("/undo")
    assert conversation.text == "ab1111"
    assert "empty" in conversation.answer("/undo")
    with pytest.raises(UserError, match=r"^/undo: nothing"):
        conversation.answer("/undo")


def test_again_gives_another_answer_to_the_same(conversation, written):
    conversation.answer("ab")
    conversation.answer("/again")
    assert conversation.text == "ab2222"
    conversation.answer("/undo")
    assert conversation.text == ""


def test_settings_are_changed_and_shown(conversation, written):
    for command in ("/length 2", "/temperature 0.5", "/top_k 3", "/top_p 0.9", "/seed 7", "/stop x"):
        assert conversation.answer(command) == ""
    assert conversation.config == GenerationConfig(length=2, temperature=0.5, top_k=3, top_p=0.9, seed=7, stop="x")
    assert "temperature 0.5" in conversation.answer("/settings")
    conversation.answer("a")
    assert conversation.text == "a77"


@pytest.mark.parametrize(
    "line",
    [
        "/pick ²",
        "/words 1²",
        pytest.param(f"/pick {'9' * 5000}", id="too_many_digits"),
        "/pick -1",
        "/seed ²",
        "/length many",
        "/temperature 0",
        "/top_k -1",
        "/nonsense",
        "/again",
        "~",
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(conversation, written, line):
    before = conversation.config
    with pytest.raises(UserError) as caught:
        conversation.answer(line)
    assert "\n" not in str(caught.value)
    assert (conversation.config, conversation.text, written) == (before, "", [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/temperature x", "/temperature takes a number. Received: 'x'"),
        ("/temperature 0", "/temperature must be at least 1e-06. Received: 0.0"),
        ("/top_p 2", "/top_p must be at most 1.0. Received: 2.0"),
        ("~", "the text: the model's vocabulary does not have '~'"),
    ],
)
def test_an_error_names_what_was_typed(conversation, line, message):
    with pytest.raises(UserError) as caught:
        conversation.answer(line)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        ("/t", ["/temperature ", "/top_k ", "/top_p "]),
        ("/u", ["/undo"]),
        ("/se", ["/seed ", "/settings"]),
        ("/x", []),
        ("//", []),
        ("/top_k 3", []),
        ("a /t", []),
        ("", []),
    ],
)
def test_commands_are_completed(line, commands):
    assert complete_command(line) == commands


def test_every_command_that_is_completed_exists_and_is_in_the_help(conversation):
    for command in complete_command("/"):
        assert command.strip() in conversation.answer("/help") + " /help"


def test_a_text_may_begin_with_a_slash(conversation, written):
    conversation.answer("//help")
    assert conversation.text == "/help1111"


class Offering(Echo):
    def normalise(self, text):
        return text.lower()

    def predict_next(self, config, count):
        return [("ab c"[len(config.prime) % 4], 0.75), ("z", 0.25)][:count]

    def generate_symbols(self, config):
        words = [" ran home", " ran on", " sat, then"]
        return [config.prime.lower() + words[index % 3] for index in range(config.num_samples)]


def test_the_person_may_pick_the_next_character(written):
    conversation = Conversation(Offering(), GenerationConfig(), written.append)
    assert conversation.answer("/pick 2") == "1 'a' 0.75  2 'z' 0.25"
    assert conversation.answer("2") == "1 'b' 0.75  2 'z' 0.25"
    conversation.answer("")
    conversation.answer("xy")
    assert conversation.text == "".join(written) == "zbxy"
    conversation.answer("/undo")
    assert conversation.text == "zb"
    conversation.answer("²")
    conversation.answer("9" * 5000)
    assert conversation.text == "zb²" + "9" * 5000, "what is not the number of a choice is text"
    conversation.answer("/undo")
    conversation.answer("/undo")
    assert conversation.answer("/pick  ٢ ") == "1 ' ' 0.75  2 'z' 0.25"
    conversation.answer("/pick 0")
    conversation.answer("")
    assert conversation.text.startswith("zb0")


def test_the_person_may_pick_the_next_word(written):
    conversation = Conversation(Offering(), GenerationConfig(), written.append)
    conversation.answer("/pick 1")
    conversation.answer("The cat")
    assert conversation.answer("/words 2") == "1 ' ran' 0.67  2 ' sat' 0.33"
    conversation.answer("2")
    assert conversation.text == "The cat sat"
    with pytest.raises(UserError, match="takes a number"):
        conversation.answer("/words many")


def test_quit_leaves(conversation):
    with pytest.raises(EOFError):
        conversation.answer("/quit")


def test_ctrl_c_keeps_what_was_written(written):
    class Interrupted(Echo):
        def stream_symbols(self, config):
            yield ["ab"]
            raise KeyboardInterrupt

    conversation = Conversation(Interrupted(), GenerationConfig(), written.append)
    conversation.answer("a")
    assert conversation.text == "ab"
