"""XLA on a GPU cannot use int32 variables, which TensorFlow keeps on the host; no compiled code has any."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.training.data_parallel import _Replica
from tfcharrnn.training.train_step import RunLength, Trainer

SYMBOLS, BATCH, WIDTH, STEPS = 7, 2, 5, 3
VARIABLE_OPS = ("ReadVariableOp", "AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceGather")


def find_functions(nodes, library):
    """The names of all functions that nodes call, directly or through others."""
    names = set()
    for node in nodes:
        for value in node.attr.values():
            for name in [value.func.name, *(func.name for func in value.list.func)]:
                if name in library and name not in names:
                    names |= {name} | find_functions(library[name].node_def, library)
    return names


def find_int32_variables(concrete):
    """Names the int32 variables that compiled code reads or assigns, in a traced function and what it calls."""
    graph = concrete.graph.as_graph_def()
    library = {function.signature.name: function for function in graph.library.function}
    whole = concrete.function_def
    if whole.attr["_XlaMustCompile"].b:
        compiled = [whole.node_def, *(library[name].node_def for name in find_functions(whole.node_def, library))]
    else:
        tops = [function for function in library.values() if function.attr["_XlaMustCompile"].b]
        names = {name for top in tops for name in find_functions(top.node_def, library)}
        compiled = [top.node_def for top in tops] + [library[name].node_def for name in names]
    assert compiled or "Partitioned" not in str(whole), "the marker of compiled functions has changed"
    return [
        node.name
        for nodes in compiled
        for node in nodes
        if node.op in VARIABLE_OPS and tf.DType(node.attr["dtype"].type) == tf.int32
    ]


def test_an_assignment_to_one_is_found():
    counter = tf.Variable(0)
    inner = tf.function(lambda: counter.assign_add(1), jit_compile=True)
    assert find_int32_variables(inner.get_concrete_function())
    assert find_int32_variables(tf.function(lambda: inner() + 0).get_concrete_function())
    assert not find_int32_variables(tf.function(lambda: counter.assign_add(1)).get_concrete_function())


def make_model(layout, cell, implementation):
    config = ModelConfig(cell=cell, implementation=implementation, hidden_size=3)
    return CharRNN(config, SYMBOLS, layout=LAYOUTS[layout])


@pytest.mark.parametrize("is_small", [True, False], ids=["compiled whole", "compiled loops"])
@pytest.mark.parametrize(
    ("layout", "cell", "implementation", "settings"),
    [
        ("sequences", "lstm", "custom", {"drop_remainder": False}),
        ("stream", "gru", "custom", {"reset_state": 0.5, "average": 0.9}),
        ("stream", "mingru", "custom", {}),
        ("stream", "rnn", "keras", {}),
        ("windows", "rnn", "custom", {"optimizer": "adagrad"}),
        ("lines", "lnlstm", "custom", {"loss_after_update": True}),
        ("lines", "rnn", "custom", {"carry_state": True}),
    ],
)
def test_no_training_step_uses_one(layout, cell, implementation, settings, is_small, monkeypatch):
    if not is_small:
        monkeypatch.setattr("tfcharrnn.training.train_step._SMALL_STEP_FLOPS", 0)
    config = TrainingConfig(batch_size=BATCH, **settings)
    model, length = make_model(layout, cell, implementation), RunLength(10, 10)
    trainer = Trainer(model, config, WIDTH, length)
    assert trainer.jit_compile == (is_small and implementation == "custom")
    batches = tf.ones([STEPS, BATCH, WIDTH], tf.int32)
    sizes = () if config.drop_remainder else (tf.fill([STEPS], BATCH),)
    arguments = (np.int64(0), np.int32(0), np.int32(STEPS), batches, np.int32(0), *sizes)
    assert not find_int32_variables(trainer.run_steps.get_concrete_function(*arguments))


@pytest.mark.parametrize("layout", ["stream", "lines"])
def test_no_replica_uses_one(layout):
    model, config = make_model(layout, "rnn", "custom"), TrainingConfig(batch_size=BATCH)
    replica = _Replica(model, config, WIDTH, RunLength(10, 10), range(BATCH))
    step, ids = tf.constant(0, tf.int64), tf.ones([BATCH, WIDTH], tf.int32)
    gradients = replica.compiled_gradients.get_concrete_function(ids, replica.carried_states(), step, None)
    assert not find_int32_variables(gradients)
    zeros = [tf.zeros_like(variable) for variable in replica.variables]
    update = replica.compiled_update.get_concrete_function(tf.constant(1.0), tf.constant(1.0), zeros, step, None)
    assert not find_int32_variables(update)


@pytest.mark.parametrize("layout", ["stream", "windows"])
def test_no_sampling_loop_uses_one(layout):
    sampler = Sampler(make_model(layout, "lstm", "custom"), Vocabulary([chr(97 + i) for i in range(SYMBOLS)]), 4)
    start = sampler.start_texts(2, 0)
    uniforms, forced = np.full([8, 2], 0.5, np.float32), np.full(8, -1, np.int32)
    numbers = (np.int32(3), np.float64(1.0), np.int32(2), np.float64(0.9))
    loop = sampler._compiled(True)
    arguments = (start.symbols, start.context, uniforms, forced, *numbers)
    assert not find_int32_variables(loop.get_concrete_function(*arguments))
