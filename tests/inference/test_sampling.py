"""Sampling of texts, against naive loops."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.config import GenerationConfig, ModelConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.inference import sampling
from tfcharrnn.inference.inverse_cdf import sample_symbols
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.model.stepper import make_stepper

SYMBOLS = ["<S>", *"abcdefgh"]


def make_model(seed=0, layers=2):
    """Random weights so large that what was read decides what comes; the special symbol would win most draws."""
    model = CharRNN(ModelConfig(cell="lstm", hidden_size=12, num_layers=layers), len(SYMBOLS))
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.0, 1.0, variable.shape))
    model.output_bias.assign([9.0] + [0.0] * 8)
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def sampler(model):
    return Sampler(model, Vocabulary(SYMBOLS))


def naive_greedy(model, prime, length):
    """Reads the whole text so far, every time, and takes the likeliest character."""
    vocabulary = Vocabulary(SYMBOLS)
    ids = [vocabulary.start_id, *vocabulary.encode(prime)]
    for _ in range(length):
        logits, _ = model(tf.constant([ids], tf.int32))
        ids.append(vocabulary.num_special + int(np.argmax(logits[0, -1, vocabulary.num_special :])))
    return vocabulary.decode(ids)


def test_greedy_text_is_that_of_a_naive_loop(model, sampler):
    """A prime conditions what follows it, and is given back."""
    texts = {sampler.generate(GenerationConfig(length=25, prime=prime, greedy=True))[0] for prime in ("", "abc", "hg")}
    assert texts == {naive_greedy(model, prime, 25) for prime in ("", "abc", "hg")}
    assert {text[:2] for text in texts} >= {"ab", "hg"}
    assert len({text[-20:] for text in texts}) == 3


def test_a_text_is_sampled_as_its_symbols_are_drawn(model, sampler):
    """Step by step here, with the same numbers, the same text as in the compiled loop."""
    (advance, logits_of), mask = make_stepper(model), tf.range(len(SYMBOLS)) < 1
    vocabulary, text = Vocabulary(SYMBOLS), []
    uniforms = rng.uniform([1, 1024], rng.key(8, rng.Purpose.SAMPLING, 0), tf.float32)
    ids, state = tf.constant([vocabulary.start_id]), model.initial_state(1)
    for position in range(12):
        state = advance(ids, state)
        logits = tf.where(mask, tf.float32.min, logits_of(state))
        ids = sample_symbols(logits, uniforms[:, position], temperature=0.8, top_k=5)
        text.append(int(ids[0]))
    config = GenerationConfig(length=12, seed=8, temperature=0.8, top_k=5)
    assert sampler.generate(config) == [vocabulary.decode(text)]


def test_the_seed_decides_the_text(model, sampler):
    first = sampler.generate(GenerationConfig(length=60, seed=1))
    assert first == sampler.generate(GenerationConfig(length=60, seed=1))
    assert first == Sampler(model, Vocabulary(SYMBOLS)).generate(GenerationConfig(length=60, seed=1))
    assert first != sampler.generate(GenerationConfig(length=60, seed=2))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_do_not_show_in_the_text(monkeypatch, model, sampler, chunk):
    config = GenerationConfig(length=50, prime="abcdefghab", seed=3, num_samples=2)
    expected = sampler.generate(config)
    monkeypatch.setattr(sampling, "CHUNK_SIZE", chunk)
    pieces = list(Sampler(model, Vocabulary(SYMBOLS)).stream(config))
    assert ["".join(parts) for parts in zip(*pieces, strict=True)] == expected
    assert [len(piece[0]) for piece in pieces] == [min(chunk, 60 - start) for start in range(0, 60, chunk)]


def test_a_longer_text_begins_as_a_shorter_one(sampler):
    long = sampler.generate(GenerationConfig(length=200, seed=5))[0]
    assert long.startswith(sampler.generate(GenerationConfig(length=70, seed=5))[0])
    assert len(long) == 200


def test_several_samples_are_different_texts_after_one_prime(sampler):
    texts = sampler.generate(GenerationConfig(length=40, prime="cab", num_samples=3, seed=2))
    assert len(set(texts)) == 3
    assert all(text.startswith("cab") and len(text) == 43 for text in texts)


def test_the_beginning_is_never_generated(sampler):
    """Its logit is the highest at nearly every step, and still each symbol drawn is a character."""
    for config in [
        GenerationConfig(length=150, num_samples=4, temperature=5.0),
        GenerationConfig(length=150, num_samples=4, greedy=True),
        GenerationConfig(length=150, num_samples=4, top_k=10, top_p=0.99),
    ]:
        for text in sampler.generate(config):
            assert len(text) == 150 and set(text) <= set("abcdefgh")


@pytest.mark.parametrize("length", [0, 30])
@pytest.mark.parametrize("prime", ["CAB", "c7a", "77"])
def test_a_prime_is_given_back_as_it_was_typed_and_read_normalised(model, prime, length):
    def normalise(text):
        return text.lower().replace("7", "")

    sampler = Sampler(model, Vocabulary(SYMBOLS), normalise=normalise)
    settings = {"length": length, "seed": 5, "num_samples": 2, "stop": "ab"}
    typed = sampler.generate(GenerationConfig(prime=prime, **settings))
    read = sampler.generate(GenerationConfig(prime=normalise(prime), **settings))
    assert typed == [prime + text[len(normalise(prime)) :] for text in read]


def test_length_zero_is_the_prime(sampler):
    assert sampler.generate(GenerationConfig(length=0, prime="abc", num_samples=2)) == ["abc", "abc"]
    assert sampler.generate(GenerationConfig(length=0, num_samples=2)) == ["", ""]


def test_unknown_characters_of_the_prime_are_named(sampler):
    with pytest.raises(UserError, match=r"--prime.*'X', 'é'"):
        sampler.generate(GenerationConfig(prime="abXaé"))


def test_a_vocabulary_needs_a_beginning(model):
    with pytest.raises(UserError, match="<S>"):
        Sampler(model, Vocabulary("abcdefghi")).generate(GenerationConfig(length=1))
