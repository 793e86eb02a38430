import pickle

import commands
import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.config import ModelConfig
from tfcharrnn.inference import trained_model
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN

# as an older script may have numbered them
SYMBOLS = ["d", "<S>", "b", "a", " ", "c"]


def tool(folder, *arguments):
    flags = ("--weights=weights", "--vocabulary=vocab.pkl", "--run_dir=run")
    return commands.run("import_arrays", *flags, *arguments, cwd=folder, text=True)


def write(folder, **settings):
    """The arrays of a model whose symbols stand in the order of SYMBOLS, and that model."""
    model = CharRNN(ModelConfig(hidden_size=5, **settings), len(SYMBOLS), seed=4)
    (folder / "weights").mkdir()
    for name, variable in model.named_variables.items():
        np.save(folder / "weights" / f"{name.replace('/', '.')}.npy", variable.numpy())
    (folder / "vocab.pkl").write_bytes(pickle.dumps({symbol: index for index, symbol in enumerate(SYMBOLS)}))
    return model


@pytest.mark.parametrize(
    "settings", [{"cell": "rnn"}, {"cell": "lstm", "num_layers": 2}, {"cell": "gru", "embedding_size": 3}]
)
def test_the_imported_model_is_the_same_function(tmp_path, settings):
    model = write(tmp_path, **settings)
    done = tool(tmp_path)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    trained = trained_model.load_model(tmp_path / "run")
    assert trained.run.vocabulary.symbols == ("<S>", " ", "a", "b", "c", "d")
    assert trained.model.layout == LAYOUTS["sequences"]
    theirs = [SYMBOLS.index(symbol) for symbol in ["<S>", *"abcd dab"]]
    ours = [trained.run.vocabulary.symbols.index(SYMBOLS[index]) for index in theirs]
    expected, _ = model(tf.constant([theirs]))
    found, _ = trained.model(tf.constant([ours]))
    order = [SYMBOLS.index(symbol) for symbol in trained.run.vocabulary.symbols]
    np.testing.assert_allclose(found.numpy(), expected.numpy()[..., order], atol=1e-6)
    assert len(trained.generate(length=9, prime="ab ")) == 12


@pytest.mark.parametrize(
    ("cell", "named"),
    [("mlstm", "gate_kernel"), ("mingru", "recurrent_kernel"), ("lnlstm", "bias"), ("sru", "recurrent")],
)
def test_arrays_of_other_cells_are_refused(tmp_path, cell, named):
    write(tmp_path, cell=cell)
    done = tool(tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "rnn, gru, lstm" in done.stderr and "train --init_arrays" in done.stderr and named in done.stderr


def test_what_does_not_fit_is_one_line(tmp_path):
    write(tmp_path, cell="gru")
    weights = tmp_path / "weights"

    def refused(*arguments):
        done = tool(tmp_path, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert not (tmp_path / "run").exists()
        return done.stderr

    assert "special symbols" in refused("--layout=lines")
    assert "has no .npy files" in refused(f"--weights={tmp_path}")
    np.save(weights / "output_bias.npy", np.zeros(7))
    assert "output_kernel.npy has shape (5, 6), but needs (5, 7)" in refused()
    np.save(weights / "output_bias.npy", np.float32(0))
    assert "output_kernel.npy has shape (5, 6), but needs (5, 1)" in refused()
    np.save(weights / "output_bias.npy", np.array([None] * 6))
    assert "output_bias.npy" in refused()
    np.save(weights / "output_bias.npy", np.zeros(6))
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(print))
    assert "vocab.pkl" in refused()
    (weights / "cells.0.bias.npy").unlink()
    assert "cells.0.bias.npy is missing" in refused()
