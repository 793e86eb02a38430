"""Exports a trained model as a SavedModel, a Keras model, arrays, a model folder, ONNX or an HTML page."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfcharrnn import config as config_lib
from tfcharrnn import files
from tfcharrnn.config import EXPORT_FORMATS
from tfcharrnn.errors import ConfigError, UserError, first_line, warn
from tfcharrnn.inference import trained_model
from tfcharrnn.inference.trained_model import TrainedModel
from tfcharrnn.model.backends import LIBRARY_CELLS
from tfcharrnn.runs import model_folder
from tfcharrnn.serving import model_card, web_page

if TYPE_CHECKING:
    import keras

FORMAT = 1
_ONNX_TOLERANCE = 1e-4  # on logits after a few symbols, since some networks amplify rounding errors
_KERAS_GATE_ACTIVATIONS = {"sigmoid": "sigmoid", "hard_sigmoid_6": "hard_sigmoid"}


def export_model(
    run_dir: str | Path = "",
    format: str = "saved_model",
    output: str | Path = "",
    checkpoint: str | int | Path = "latest",
    *,
    overwrite: bool = False,
    license: str = "",
) -> Path:
    """Exports a trained model for use without this package, as described in docs/serving.md.

    Args:
        run_dir: the run folder; empty: the newest in `runs/`.
        format: one of `config.EXPORT_FORMATS`.
        output: the folder to create; empty: `export/FORMAT` in the run folder. For the format `html` also the file to
            create, if its name ends in `.html`.
        checkpoint: `latest`, `best` (lowest validation loss), a step, or the path of a checkpoint.
        overwrite: replace an existing folder or file.
        license: for the format `safetensors`, the license in the model card, an identifier of the Hugging Face hub;
            empty: `unknown`.

    Returns:
        The folder or file, which is created atomically.

    Raises:
        UserError: the run cannot be read, the format does not support the model, or the folder cannot be written.
    """
    if format not in EXPORT_FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(EXPORT_FORMATS)}. Received: {format!r}")
    if license:
        if format != "safetensors":
            raise ConfigError("--license: is for the model card of --format=safetensors; leave it out")
        model_card.check_license(license)
    trained = trained_model.load_model(run_dir, checkpoint)
    path = Path(output) if output else trained.run.output_path("export") / format
    if format == "html" and path.suffix == ".html":
        _export_page(trained, path, overwrite=overwrite)
        return path
    with files.create_folder(path, overwrite=overwrite) as folder:
        try:
            _WRITERS[format](trained, folder)
            if format == "safetensors":
                model_card.write_card(trained, folder / "README.md", license or "unknown")
        except tf.errors.OpError as error:
            raise UserError(
                f"{path}: cannot be written ({first_line(error)}); free space or choose another folder"
            ) from None
    return path


def _write_saved_model(trained: TrainedModel, folder: Path) -> None:
    from tfcharrnn.serving.saved_model import Servable

    servable = Servable(trained)
    signatures = {"serving_default": servable.generate, "generate": servable.generate, "score": servable.score}
    with files.ascii_alias(folder) as alias:
        tf.saved_model.save(servable, alias, signatures=signatures)
    extra = folder / "assets.extra"  # TensorFlow reserves it for files of other programs
    extra.mkdir()
    _write_description(trained, extra)


def _write_keras(trained: TrainedModel, folder: Path) -> None:
    if trained.run.model.precision != "float32":
        warn(f"the Keras model computes in float32, not in the run's {trained.run.model.precision}; its logits differ")
    build_keras_model(trained).save(folder / "model.keras")
    _write_description(trained, folder)


def _write_npz(trained: TrainedModel, folder: Path) -> None:
    variables = dict(trained.model.named_variables)
    carried = trained.sampler.carried
    if carried is not None:
        variables["carried/symbols"] = carried.symbols
        for layer, state in enumerate(carried.state):
            variables |= {f"carried/state/{layer}/{index}": part for index, part in enumerate(state)}
    arrays = {name: variable.numpy() for name, variable in variables.items()}
    symbols = np.array(trained.run.vocabulary.symbols)
    np.savez(folder / "model.npz", symbols=symbols, config=np.array(json.dumps(_describe_model(trained))), **arrays)


def _write_safetensors(trained: TrainedModel, folder: Path) -> None:
    model_folder.write(folder, trained.run, trained.checkpoint, trained.copy_weights())


def _write_onnx(trained: TrainedModel, folder: Path) -> None:
    try:
        import onnx
        import onnxruntime
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format=onnx: {error.name} is missing; pip install 'tfcharrnn[onnx]'") from None
    model, path = build_keras_model(trained), folder / "model.onnx"
    ids = np.random.default_rng(0).integers(0, len(trained.run.vocabulary), (8, 10), np.int32)
    expected = model(ids).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from Keras's check of NumPy's version
        model.export(path, format="onnx", verbose=False)
    _restore_names(onnx, path)
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], {"ids": ids})
    difference = float(np.max(np.abs(logits - expected)))
    if not difference <= _ONNX_TOLERANCE:
        raise UserError(f"--format=onnx: onnxruntime's logits differ by {difference:.1e}; try other versions of onnx")
    _write_description(trained, folder)


def _restore_names(onnx: Any, path: Path) -> None:
    """Names the output `logits` and the variable dimensions `batch` and `time`; the converter drops the names."""
    model = onnx.load(path)
    graph = model.graph
    old = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["logits" if name == old else name for name in node.output]
        node.input[:] = ["logits" if name == old else name for name in node.input]
    graph.output[0].name = "logits"
    for value in (graph.input[0], graph.output[0]):
        for dimension, name in zip(value.type.tensor_type.shape.dim, ("batch", "time"), strict=False):
            dimension.dim_param = name
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _write_html(trained: TrainedModel, folder: Path) -> None:
    web_page.write_page(trained, folder / "index.html")


def _export_page(trained: TrainedModel, path: Path, *, overwrite: bool) -> None:
    """Writes the page as a file of its own, without a folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.write_error(path, error) from error
    files.remove_leftovers(path)
    files.check_free(path, overwrite)
    web_page.write_page(trained, path)


_WRITERS: dict[str, Callable[[TrainedModel, Path], None]] = {
    "saved_model": _write_saved_model,
    "keras": _write_keras,
    "npz": _write_npz,
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "html": _write_html,
}


def build_keras_model(trained: TrainedModel) -> keras.Model:
    """Builds the network from Keras layers alone: ids `[batch, time]` to logits `[batch, time, vocabulary]`.

    The initial state is zero.

    Raises:
        UserError: Keras has no equivalent layers.
    """
    import keras

    model, config, vocabulary = trained.model, trained.model.config, trained.run.vocabulary
    if config.cell not in LIBRARY_CELLS:
        raise UserError(f"{trained.run.path}: Keras has no --cell={config.cell}; use --format=saved_model or npz")
    if config.learned_initial_state:
        raise UserError(
            f"{trained.run.path}: Keras layers cannot hold its learned initial state; use --format=saved_model or npz"
        )
    if config.recurrent_activation == "hard_sigmoid":
        raise UserError(
            f"{trained.run.path}: Keras 3 does not have its gates' hard_sigmoid, clip(0.2 a + 0.5, 0, 1); "
            "use --format=saved_model or npz"
        )
    table = np.eye(len(vocabulary), dtype=np.float32) if model.embedding is None else model.embedding.numpy()
    if config.zero_start:
        table[vocabulary.start_id] = 0.0
    layer_type = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[config.cell]
    gates = (
        {} if config.cell == "rnn" else {"recurrent_activation": _KERAS_GATE_ACTIVATIONS[config.recurrent_activation]}
    )
    lookup = keras.layers.Embedding(*table.shape, trainable=model.embedding is not None, name="embedding")
    layers = [
        layer_type(config.hidden_size, return_sequences=True, name=f"cell_{index}", **gates)
        for index in range(config.num_layers)
    ]
    norms = [keras.layers.LayerNormalization(epsilon=1e-5, name=f"norm_{index}") for index in range(config.num_layers)]
    output = keras.layers.Dense(len(vocabulary), name="logits")
    ids = keras.Input([None], dtype="int32", name="ids")
    hidden, total = lookup(ids), None
    for layer, norm in zip(layers, norms, strict=True):
        hidden = layer(hidden)
        if config.residual:
            hidden = total = hidden if total is None else keras.layers.Add()([total, hidden])
        if config.layer_norm:
            hidden = norm(hidden)
    logits = output(hidden)
    lookup.set_weights([table])
    for layer, cell in zip(layers, model.cells, strict=True):
        layer.set_weights([variable.numpy() for variable in cell.named_variables.values()])
    for keras_norm, norm in zip(norms, model.norms or [], strict=False):
        keras_norm.set_weights([norm.gain.numpy(), norm.shift.numpy()])
    output.set_weights([model.output_weights.numpy(), model.output_bias.numpy()])
    return keras.Model(ids, logits, name="tfcharrnn")


def _write_description(trained: TrainedModel, folder: Path) -> None:
    """Writes `vocab.json`, as in a run folder, and `config.json`."""
    trained.run.vocabulary.save(folder / "vocab.json")
    files.write_json(folder / "config.json", _describe_model(trained))


def _describe_model(trained: TrainedModel) -> dict[str, Any]:
    """Describes the model by the run's settings, without the paths of its input files."""
    data = config_lib.to_dict(trained.run.data)
    del data["input"]
    return {
        "format": FORMAT,
        "step": trained.checkpoint.step,
        "data": data,
        "model": config_lib.to_dict(trained.run.model),
    }
