"""Sampling on each layout, against naive loops: where texts begin, what they see and where they end."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.config import GenerationConfig, ModelConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.inference import sampling
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN, StreamState
from tfcharrnn.model.stepper import make_stepper

CHARACTERS = "abcdefgh"
WINDOW = 4


def make_model(layout, seed=0, **config):
    """Random weights so large that what was read decides what comes."""
    vocabulary = Vocabulary.from_text(CHARACTERS, LAYOUTS[layout].special)
    config = ModelConfig(**{"cell": "lstm", "hidden_size": 12, "num_layers": 2, **config})
    model, rng = CharRNN(config, len(vocabulary), layout=LAYOUTS[layout]), np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.0, 1.0, variable.shape))
    model.output_bias.assign(np.zeros(len(vocabulary)))
    return model, vocabulary


# Lines


@pytest.fixture(scope="module")
def lines():
    """A sampler whose padding and beginning are the likeliest at every step, and whose end comes now and then."""
    model, vocabulary = make_model("lines")
    model.output_bias.assign([9.0, 9.0, 1.0] + [0.0] * 8)
    return Sampler(model, vocabulary)


def naive_line(sampler, prime, length):
    """Reads the whole line so far, every time, and takes the likeliest of characters and end."""
    ids = [1, *sampler.vocabulary.encode(prime)]
    for _ in range(length):
        logits, _ = sampler.model(tf.constant([ids], tf.int32))
        likeliest = 2 + int(np.argmax(logits[0, -1, 2:]))
        if likeliest == 2:
            break
        ids.append(likeliest)
    return sampler.vocabulary.decode(ids)


def test_a_line_stops_at_its_end_and_not_before(lines):
    primes = ["", *CHARACTERS, "abc", "hg"]
    expected = [naive_line(lines, prime, 25) for prime in primes]
    assert [lines.generate(GenerationConfig(length=25, prime=prime, greedy=True))[0] for prime in primes] == expected
    sizes = [len(text) - len(prime) for text, prime in zip(expected, primes, strict=True)]
    assert min(sizes) < 25, "some have an end"


def test_lines_are_of_characters_only_and_of_different_lengths(lines):
    texts = lines.generate(GenerationConfig(length=300, num_samples=50, seed=1))
    assert all(set(text) <= set(CHARACTERS) for text in texts)
    assert len({len(text) for text in texts}) > 5 and min(map(len, texts)) < 10


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_where_a_line_ends_does_not_depend_on_the_chunks(monkeypatch, lines, chunk):
    config = GenerationConfig(length=60, prime="ab", num_samples=6, seed=3)
    expected = lines.generate(config)
    monkeypatch.setattr(sampling, "CHUNK_SIZE", chunk)
    pieces = list(Sampler(lines.model, lines.vocabulary).stream(config))
    assert ["".join(parts) for parts in zip(*pieces, strict=True)] == expected


# --stop


@pytest.fixture(scope="module")
def endless():
    return Sampler(*make_model("sequences"))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1024])
def test_a_text_ends_before_the_first_stop_wherever_the_chunks_are_cut(monkeypatch, endless, chunk):
    monkeypatch.setattr(sampling, "CHUNK_SIZE", chunk)
    monkeypatch.setattr(sampling, "_FIRST_CHUNK_SIZE", 3)
    sampler = Sampler(endless.model, endless.vocabulary)
    settings = {"length": 40, "num_samples": 3, "seed": 4}
    texts = sampler.generate(GenerationConfig(**settings))
    stops = {texts[0][start : start + size] for start in range(0, 12, 2) for size in (1, 2, 4)} | {texts[1][-2:]}
    for stop in stops:
        pieces = list(sampler.stream(GenerationConfig(**settings, stop=stop)))
        got = ["".join(parts) for parts in zip(*pieces, strict=True)]
        assert got == [text[: text.index(stop)] if stop in text else text for text in texts]


def test_a_stop_is_not_looked_for_in_the_prime(endless):
    text = endless.generate(GenerationConfig(length=30, prime="abcab", greedy=True))[0]
    generated = text.removeprefix("abcab")
    for stop in ("abc", "b", "b" + generated[0], generated[:1], generated[3:6]):
        got = endless.generate(GenerationConfig(length=30, prime="abcab", greedy=True, stop=stop))[0]
        assert got == "abcab" + generated.split(stop)[0]


def test_a_stop_ends_the_work_too(monkeypatch, endless):
    monkeypatch.setattr(sampling, "CHUNK_SIZE", 8)
    sampler = Sampler(endless.model, endless.vocabulary)
    stop = sampler.generate(GenerationConfig(length=3, greedy=True))[0][2]
    pieces = list(sampler.stream(GenerationConfig(length=10**9, greedy=True, stop=stop)))
    assert len(pieces) == 1 and len(pieces[0][0]) <= 2


# Streams


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_stream_goes_on_from_where_training_ended(cell):
    model, vocabulary = make_model("stream", cell=cell)
    carried, rng = StreamState(model, 2), np.random.default_rng(1)
    for variable in tf.nest.flatten(carried.state):
        variable.assign(rng.normal(size=variable.shape))
    carried.symbols.assign([3, 5])
    state = tf.nest.map_structure(tf.convert_to_tensor, carried.state)

    def naive(ids, state, length):
        """Reads the whole text so far every time; `ids` are `[batch, read already]`."""
        first = ids.shape[1]
        for _ in range(length):
            logits, _ = model(tf.constant(ids, tf.int32), state)
            ids = np.concatenate([ids, np.argmax(logits[:, -1:], axis=-1)], axis=1)
        return [vocabulary.decode(row) for row in ids[:, first:]]

    sampler = Sampler(model, vocabulary, carried=carried)
    first, second = naive(np.array([[3], [5]]), state, 20)
    assert first != second
    assert sampler.generate(GenerationConfig(length=20, greedy=True, num_samples=3)) == [first, second, first]
    for prime in ("d", "dab"):  # 3 is the id of d; and yet it begins anew
        ids = np.array([vocabulary.encode(prime)] * 2)
        expected = prime + naive(ids, None, 20)[0]
        assert sampler.generate(GenerationConfig(length=20, greedy=True, prime=prime, num_samples=2)) == [expected] * 2
    assert naive(np.array([[3]]), None, 20)[0] != first, "the state matters"
    assert sampler.generate(GenerationConfig(length=0, prime="dab")) == ["dab"]
    for value, variable in zip(tf.nest.flatten(state), tf.nest.flatten(carried.state), strict=True):
        np.testing.assert_array_equal(value, variable)


def test_a_stream_without_a_past_needs_a_prime():
    sampler = Sampler(*make_model("stream"))
    with pytest.raises(UserError, match=r"^--prime is missing"):
        sampler.generate(GenerationConfig(length=5))
    assert len(sampler.generate(GenerationConfig(length=5, prime="a"))[0]) == 6


# Windows


@pytest.mark.parametrize("embedding", [0, 3])
def test_a_window_slides_and_sees_nothing_before_it(embedding):
    """The next character is the one of the least loss after exactly the last ones, as the model learns it."""
    model, vocabulary = make_model("windows", seed=3, embedding_size=embedding)
    sampler, count = Sampler(model, vocabulary, WINDOW), len(vocabulary)

    def naive(prime, seen):
        ids = vocabulary.encode(prime).tolist()
        for _ in range(15):
            candidates = [[*ids[-seen:], following] for following in range(count)]
            losses, _ = model.losses(tf.constant(candidates, tf.int32))
            assert losses.shape == (count, 1)
            ids.append(int(np.argmin(losses[:, 0])))
        return vocabulary.decode(ids)

    primes = ["abcd", "hgfedcba", "aabbaabb"]
    expected = [naive(prime, WINDOW) for prime in primes]
    got = [sampler.generate(GenerationConfig(length=15, prime=prime, greedy=True))[0] for prime in primes]
    assert got == expected
    assert naive("hgfedcba", 1000) != expected[1], "what stands before the window would matter"


def test_the_characters_of_windows_are_as_likely_as_the_model_says():
    model, vocabulary = make_model("windows")
    model.output_kernel.assign(model.output_kernel / 3.0)
    sampler = Sampler(model, vocabulary, WINDOW)
    texts = sampler.generate(GenerationConfig(length=1, prime="abcdabcd", num_samples=4000, seed=2))
    ids = [[*vocabulary.encode("abcd"), following] for following in range(len(vocabulary))]
    p = np.exp(-model.losses(tf.constant(ids, tf.int32))[0].numpy()[:, 0])
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    counts = np.array([sum(text[-1] == character for text in texts) for character in vocabulary.symbols])
    assert np.all(np.abs(counts - 4000 * p) < 5 * np.sqrt(4000 * p * (1 - p)) + 1)


def test_a_window_without_a_prime_begins_with_nothing():
    model, vocabulary = make_model("windows")
    sampler = Sampler(model, vocabulary, WINDOW)
    text = sampler.generate(GenerationConfig(length=8, greedy=True))[0]
    advance, logits = make_stepper(model)
    state = model.initial_state(1)
    for _ in range(WINDOW):
        state = advance(tf.fill([1], len(vocabulary)), state)
    assert vocabulary.symbols[int(np.argmax(logits(state)))] == text[0]
    assert len(text) == 8
