"""Update rules and schedules against their papers, and the training step that is made of them."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcharrnn import rng
from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.training import optimizers
from tfcharrnn.training.train_step import RunLength, Trainer
from tfcharrnn.verification import numpy_reference


class PaperAdam:
    """Algorithm 1 of Kingma & Ba (2015), line by line, in NumPy."""

    def __init__(self, theta, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
        self.theta = [array.numpy().astype(np.float64) for array in theta]
        self.m = [np.zeros_like(array) for array in self.theta]
        self.v = [np.zeros_like(array) for array in self.theta]
        self.t = 0
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def step(self, gradients, alpha):
        self.t += 1
        for i, g in enumerate(gradients):
            self.m[i] = self.beta_1 * self.m[i] + (1 - self.beta_1) * g
            self.v[i] = self.beta_2 * self.v[i] + (1 - self.beta_2) * g**2
            m_hat = self.m[i] / (1 - self.beta_1**self.t)
            v_hat = self.v[i] / (1 - self.beta_2**self.t)
            self.theta[i] = self.theta[i] - alpha * m_hat / (np.sqrt(v_hat) + self.epsilon)


def variables(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [tf.Variable(rng.normal(size=shape), dtype=dtype) for shape in [(3, 4), (5,)]]


def gradients(step, scale=1.0):
    """Of many magnitudes, some as small as epsilon, one always zero."""
    rng = np.random.default_rng([step, 17])
    arrays = [rng.normal(size=(3, 4)) * 10.0 ** rng.integers(-8, 2, (3, 4)), rng.normal(size=5)]
    arrays[1][0] = 0.0
    return [scale * array for array in arrays]


def apply(adam, trained, arrays, rate, step):
    tensors = [tf.constant(array, variable.dtype) for array, variable in zip(arrays, trained, strict=True)]
    adam.apply(trained, tensors, tf.constant(rate, tf.float64), tf.constant(step, tf.int64))


@pytest.mark.parametrize("betas", [{}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3}], ids=["usual", "other"])
def test_adam_is_the_algorithm_of_the_paper(betas):
    trained = variables(tf.float64)
    paper, adam = PaperAdam(trained, **betas), optimizers.Adam(trained, **betas)
    for step in range(12):
        rate = 0.01 * (step + 1)
        paper.step(gradients(step), rate)
        apply(adam, trained, gradients(step), rate, step)
        for got, expected in zip(trained, paper.theta, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("gradient", [1e-9, 1e-7, 1e-3, 1e3])
def test_adams_first_step_has_epsilon_after_the_bias_correction(gradient):
    """The step is rate * g / (|g| + epsilon), also in float32; with epsilon before it, 1e-7 would give far less."""
    variable = tf.Variable([1.0])
    apply(optimizers.Adam([variable]), [variable], [[gradient]], 0.5, 0)
    assert variable.numpy().item() == pytest.approx(1.0 - 0.5 * gradient / (gradient + 1e-7), abs=1e-6)


def test_adam_is_that_of_keras_but_for_epsilon():
    """Keras adds epsilon before the bias correction (the paper's "epsilon hat"); ours, rescaled, is the same number.

    With gradients far above epsilon the two agree to float32.
    """
    ours, theirs = variables(tf.float32), variables(tf.float32)
    adam, keras_adam = optimizers.Adam(ours), keras.optimizers.Adam(learning_rate=0.01, epsilon=1e-7)
    for step in range(8):
        rng = np.random.default_rng([step, 23])
        g = [np.float32(rng.choice([-1, 1], v.shape) * rng.uniform(0.1, 1.0, v.shape)) for v in ours]
        apply(adam, ours, g, 0.01, step)
        keras_adam.apply_gradients(zip(map(tf.constant, g), theirs, strict=True))
    for got, expected, start in zip(ours, theirs, variables(tf.float32), strict=True):
        assert np.abs(got.numpy() - start.numpy()).max() > 0.01
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)


def test_adam_after_a_million_steps_is_not_corrected():
    variable = tf.Variable([0.0], dtype=tf.float64)
    adam = optimizers.Adam([variable])
    adam.first_moments[0].assign([0.5])
    adam.second_moments[0].assign([4.0])
    apply(adam, [variable], [[0.5]], 0.1, 10**6)
    v = 0.999 * 4.0 + 0.001 * 0.25
    assert variable.numpy().item() == pytest.approx(-0.1 * 0.5 / (math.sqrt(v) + 1e-7), rel=1e-12)


def test_adamw_decays_matrices_alone():
    """The decoupled decay of Loshchilov & Hutter (2019): the same step as Adam's, less rate * decay * weight."""
    shapes = {"kernel": (3, 4), "bias": (2, 5), "initial_state": (5,)}

    def make():
        rng = np.random.default_rng(0)
        return [tf.Variable(rng.normal(size=shape), dtype=tf.float64, name=name) for name, shape in shapes.items()]

    plain, decayed = make(), make()
    before = [variable.numpy() for variable in plain]
    g = [np.ones(shape) for shape in shapes.values()]
    apply(optimizers.Adam(plain), plain, g, 0.01, 0)
    apply(optimizers.make_optimizer(decayed, TrainingConfig(optimizer="adamw", weight_decay=0.3)), decayed, g, 0.01, 0)
    np.testing.assert_allclose(decayed[0], plain[0] - 0.01 * 0.3 * before[0], rtol=1e-12)
    for got, expected in zip(decayed[1:], plain[1:], strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("cell", ["lnlstm", "mlstm"])
def test_adamw_decays_the_matrices_of_a_model_alone(cell):
    """Kernels and extra matrices, but no bias, gain, shift or initial state."""
    settings = {"hidden_size": 3, "embedding_size": 2, "layer_norm": True, "learned_initial_state": True}
    model = CharRNN(ModelConfig(cell=cell, **settings), 5)
    named = model.named_variables
    for variable in named.values():
        variable.assign(tf.ones_like(variable))
    optimizer = optimizers.make_optimizer(list(named.values()), TrainingConfig(optimizer="adamw", weight_decay=0.3))
    zeros = [tf.zeros_like(variable) for variable in named.values()]
    apply(optimizer, list(named.values()), zeros, 0.01, 0)
    decayed = {name.split("/")[-1] for name, variable in named.items() if np.all(variable.numpy() < 1.0)}
    assert decayed == {"embedding", "kernel", "recurrent_kernel", "output_kernel"} | (
        {"gate_kernel"} if cell == "mlstm" else set()
    )
    kept = [variable for name, variable in named.items() if name.split("/")[-1] not in decayed]
    assert all(np.all(variable.numpy() == 1.0) for variable in kept)


def test_adams_constants_are_flags():
    config = TrainingConfig(beta_1=0.8, beta_2=0.95, epsilon=1e-3, weight_decay=0.5)
    adam = optimizers.make_optimizer(variables(tf.float64), config)
    assert (adam.beta_1, adam.beta_2, adam.epsilon, adam.weight_decay) == (0.8, 0.95, 1e-3, 0.0)


def test_adams_moments_are_kept_but_not_trained():
    trained = variables(tf.float32)
    adam = optimizers.Adam(trained)
    moments = [*adam.first_moments, *adam.second_moments]
    assert [moment.shape for moment in moments] == [variable.shape for variable in trained] * 2
    assert not any(np.any(moment) for moment in moments)
    assert not {id(variable) for variable in adam.trainable_variables} & {id(moment) for moment in moments}
    assert {id(moment) for moment in moments} <= {id(variable) for variable in adam.variables}


# Averages


def test_average_forgets_the_first_weights_and_then_keeps_its_decay():
    model = CharRNN(ModelConfig(hidden_size=3), 5)
    average = optimizers.WeightAverage(model, 0.5)
    bias, mean = model.output_bias, np.zeros(5)
    for step in range(30):
        bias.assign(np.random.default_rng(step).normal(size=5))
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * bias.numpy()
        average.update(tf.constant(step, tf.int64))
        np.testing.assert_allclose(average.model.output_bias, mean, atol=1e-6)
    average.update(tf.constant(30, tf.int64), tf.constant(False))
    np.testing.assert_allclose(average.model.output_bias, mean, atol=1e-6)


# Clipping

GRADIENTS = [tf.constant([3.0, -4.0]), tf.constant([[0.5], [-12.0]])]
NORM = math.sqrt(9 + 16 + 0.25 + 144)


def test_no_clipping():
    clipped, norm = optimizers.clip(GRADIENTS, TrainingConfig(clip_value=0.0, clip_norm=0.0))
    assert float(norm) == pytest.approx(NORM, rel=1e-6)
    for got, expected in zip(clipped, GRADIENTS, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_clipping_by_value():
    clipped, norm = optimizers.clip(GRADIENTS, TrainingConfig(clip_value=3.5, clip_norm=0.0))
    np.testing.assert_array_equal(clipped[0], [3.0, -3.5])
    np.testing.assert_array_equal(clipped[1], [[0.5], [-3.5]])
    assert float(norm) == pytest.approx(NORM, rel=1e-6)


def test_clipping_by_global_norm():
    clipped, norm = optimizers.clip(GRADIENTS, TrainingConfig(clip_value=0.0, clip_norm=2.0))
    for got, gradient in zip(clipped, GRADIENTS, strict=True):
        np.testing.assert_allclose(got, gradient.numpy() * 2.0 / NORM, rtol=1e-6)
    assert float(norm) == pytest.approx(NORM, rel=1e-6)
    untouched, _ = optimizers.clip(GRADIENTS, TrainingConfig(clip_value=0.0, clip_norm=14.0))
    for got, gradient in zip(untouched, GRADIENTS, strict=True):
        np.testing.assert_allclose(got, gradient, rtol=1e-6)


def test_clipping_by_value_comes_before_the_norm():
    clipped, norm = optimizers.clip(GRADIENTS, TrainingConfig(clip_value=3.5, clip_norm=2.0))
    by_value = np.array([3.0, -3.5, 0.5, -3.5])
    got = np.concatenate([tensor.numpy().ravel() for tensor in clipped])
    np.testing.assert_allclose(got, by_value * 2.0 / np.linalg.norm(by_value), rtol=1e-6)
    assert float(norm) == pytest.approx(NORM, rel=1e-6)


# Schedules


def rate(config, step, steps_per_epoch=10, total=1000):
    value = optimizers.learning_rate(config, tf.constant(step, tf.int64), steps_per_epoch, total)
    assert value.dtype == tf.float64
    return float(value)


def test_constant_schedule():
    config = TrainingConfig(learning_rate=0.003)
    assert [rate(config, step) for step in (0, 500, 999)] == [0.003] * 3


def test_exponential_schedule_begins_after_so_many_whole_epochs():
    config = TrainingConfig(learning_rate=0.1, schedule="exponential", decay_rate=0.5, decay_after=3)
    assert rate(config, 0) == rate(config, 29) == 0.1
    assert rate(config, 30) == rate(config, 39) == pytest.approx(0.05, rel=1e-15)
    assert rate(config, 40) == pytest.approx(0.025, rel=1e-15)
    assert rate(config, 99) == pytest.approx(0.1 * 0.5**7, rel=1e-14)
    at_once = TrainingConfig(learning_rate=0.1, schedule="exponential", decay_rate=0.5, decay_after=0)
    assert rate(at_once, 0) == pytest.approx(0.05) and rate(at_once, 10) == pytest.approx(0.025)


def test_cosine_schedule():
    config = TrainingConfig(learning_rate=0.1, schedule="cosine", warmup_steps=100)
    assert rate(config, 0, total=1100) == pytest.approx(0.001)
    assert rate(config, 49, total=1100) == pytest.approx(0.05)
    assert rate(config, 99, total=1100) == rate(config, 100, total=1100) == pytest.approx(0.1, rel=1e-15)
    assert rate(config, 600, total=1100) == pytest.approx(0.05)
    assert rate(config, 350, total=1100) == pytest.approx(0.05 * (1 + math.sqrt(0.5)))
    # the last step, the 1100th, is still worth doing; zero would be the one after it
    assert 0.0 < rate(config, 1099, total=1100) < 1e-6
    assert rate(config, 1100, total=1100) == rate(config, 5000, total=1100) == 0.0
    without = TrainingConfig(learning_rate=0.1, schedule="cosine", warmup_steps=0)
    assert rate(without, 0) == pytest.approx(0.1) and rate(without, 500) == pytest.approx(0.05)


def test_linear_schedule_ends_at_its_floor():
    config = TrainingConfig(learning_rate=0.1, schedule="linear", warmup_steps=100, final_rate=0.1)
    assert rate(config, 49, total=1100) == pytest.approx(0.05)
    assert rate(config, 100, total=1100) == pytest.approx(0.1)
    assert rate(config, 600, total=1100) == pytest.approx(0.055)
    assert rate(config, 1100, total=1100) == rate(config, 5000, total=1100) == pytest.approx(0.01)


def test_warmup_stable_decay_schedule():
    config = TrainingConfig(learning_rate=0.1, schedule="wsd", warmup_steps=100, decay_fraction=0.25)
    assert rate(config, 9, total=1000) == pytest.approx(0.01)
    assert rate(config, 100, total=1000) == rate(config, 750, total=1000) == pytest.approx(0.1)
    assert rate(config, 875, total=1000) == pytest.approx(0.05)
    assert rate(config, 1000, total=1000) == 0.0
    floor = TrainingConfig(learning_rate=0.1, schedule="cosine", final_rate=0.2)
    assert rate(floor, 500, total=1000) == pytest.approx(0.06) and rate(floor, 1000, total=1000) == pytest.approx(0.02)


@settings(max_examples=150, deadline=None)
@given(
    schedule=st.sampled_from(["constant", "exponential", "cosine", "linear", "wsd"]),
    decay_rate=st.floats(1e-6, 1.0),
    decay_after=st.integers(0, 20),
    warmup=st.integers(0, 300),
    steps_per_epoch=st.integers(1, 50),
    total=st.integers(1, 250),
    step=st.integers(0, 400),
)
def test_no_rate_is_negative_or_above_the_highest(
    schedule, decay_rate, decay_after, warmup, steps_per_epoch, total, step
):
    config = TrainingConfig(
        schedule=schedule, decay_rate=decay_rate, decay_after=decay_after, warmup_steps=warmup, learning_rate=0.01
    )
    value = rate(config, step, steps_per_epoch, total)
    assert 0.0 <= value <= 0.01 * (1 + 1e-15)
    following = rate(config, step + 1, steps_per_epoch, total)
    if schedule in ("constant", "exponential") or step >= warmup:
        assert following <= value * (1 + 1e-15)


# The training step

STEPS, BATCH, SEQ_LENGTH, VOCABULARY = 4, 5, 9, 7


def make_trainer(implementation="custom", **training):
    config = ModelConfig(
        cell="gru", implementation=implementation, hidden_size=8, num_layers=2, embedding_size=3, dropout=0.3
    )
    model = CharRNN(config, VOCABULARY, seed=1)
    settings = {"schedule": "exponential", "decay_after": 1, "decay_rate": 0.5, "clip_norm": 0.1, "seed": 6}
    config = TrainingConfig(**{**settings, "batch_size": BATCH, "learning_rate": 0.02, **training})
    return Trainer(model, config, 21, RunLength(2, 10))


def random_batches():
    ids = np.random.default_rng(3).integers(0, VOCABULARY, (STEPS, BATCH, SEQ_LENGTH))
    return tf.constant(ids, tf.int32)


def run(trainer, first, count, batches):
    return trainer.run_steps(np.int64(first), np.int32(0), np.int32(count), batches, np.int32(0)).numpy()


def weights(trainer):
    return {name: variable.numpy() for name, variable in numpy_reference.variables(trainer.model).items()}


def test_steps_are_those_of_a_plain_loop():
    """Tape, dropout by step, global norm, Adam, schedule: done here one after the other, in NumPy where it can be."""
    trainer = make_trainer()
    model = make_trainer().model
    named = numpy_reference.variables(model)
    paper = PaperAdam(named.values())

    @tf.function(jit_compile=True)  # as the trainer compiles a small step
    def loss_and_gradients(ids, step):
        with tf.GradientTape() as tape:
            loss = model.loss(ids, rng.key(6, rng.Purpose.DROPOUT, step))
        return loss, [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, list(named.values()))]

    results = run(trainer, 0, STEPS, random_batches())
    assert results.shape == (STEPS, 4)
    for step, ids in enumerate(random_batches()):
        loss, g = loss_and_gradients(ids, tf.constant(step, tf.int64))
        g = [gradient.numpy() for gradient in g]
        norm = math.sqrt(sum(float((array.astype(np.float64) ** 2).sum()) for array in g))
        alpha = 0.02 * (0.5 if step >= 2 else 1.0)
        paper.step([array * min(1.0, 0.1 / norm) for array in g], alpha)
        for variable, value in zip(named.values(), paper.theta, strict=True):
            variable.assign(value)
        characters = BATCH * (SEQ_LENGTH - 1)
        np.testing.assert_allclose(results[step], [float(loss) * characters, characters, norm, alpha], rtol=1e-5)
        assert norm > 0.1  # so that it is clipped
    for got, expected in zip(weights(trainer).values(), paper.theta, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("implementation", ["custom", "keras"])
def test_a_step_that_is_not_applied_leaves_the_average(implementation):
    trainer = make_trainer(implementation, average=0.9)
    run(trainer, 0, 2, random_batches())
    before = [variable.numpy() for variable in trainer.average.model.variables]
    assert any(np.any(a != w) for a, w in zip(before, trainer.model.variables, strict=True))
    trainer.model.output_bias.assign(np.full(VOCABULARY, np.nan))
    run(trainer, 2, 1, random_batches())
    for got, expected in zip(trainer.average.model.variables, before, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("implementation", ["custom", "keras"])
def test_steps_in_one_call_are_the_same_steps_in_several(implementation):
    together, apart = make_trainer(implementation), make_trainer(implementation)
    batches = random_batches()
    expected = run(together, 0, STEPS, batches)
    got = [run(apart, step, 1, batches[step : step + 1])[0] for step in range(STEPS)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    for name, value in weights(apart).items():
        np.testing.assert_allclose(value, weights(together)[name], atol=1e-6)


def test_a_call_does_only_the_steps_it_is_told():
    """Batches after `count` are empty room, and do nothing to the weights."""
    short, full = make_trainer(), make_trainer()
    batches = random_batches()
    run(short, 0, 2, batches)
    run(full, 0, 2, tf.concat([batches[:2], tf.zeros_like(batches[2:])], 0))
    untrained = weights(make_trainer())
    for name, value in weights(short).items():
        np.testing.assert_array_equal(value, weights(full)[name])
        assert np.any(value != untrained[name])
    run(short, 2, 0, batches)
    for name, value in weights(full).items():
        np.testing.assert_array_equal(value, weights(short)[name])


def test_training_learns_a_sequence():
    """A text with period 3 is learned almost perfectly."""
    trainer = make_trainer(learning_rate=0.05, schedule="constant", clip_norm=5.0)
    text = np.resize([1, 4, 2], STEPS * BATCH * SEQ_LENGTH).reshape(STEPS, BATCH, SEQ_LENGTH)
    for call in range(20):
        results = run(trainer, call * STEPS, STEPS, tf.constant(text, tf.int32))
    assert results[-1, 0] / results[-1, 1] < 0.15 * math.log(VOCABULARY)
    assert float(trainer.model.loss(tf.constant(text[0], tf.int32))) < 0.15
