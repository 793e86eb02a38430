"""Character-level recurrent language models in TensorFlow, with the recurrence written by hand."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfcharrnn.analysis.html_report import write_report
    from tfcharrnn.config import DataConfig, GenerationConfig, ModelConfig, TrainingConfig
    from tfcharrnn.data.dataset import DataFolder, open_data
    from tfcharrnn.data.vocabulary import Vocabulary
    from tfcharrnn.errors import ConfigError, UserError
    from tfcharrnn.inference.activations import Activations
    from tfcharrnn.inference.trained_model import TrainedModel, load_model
    from tfcharrnn.model.cells import register_cell
    from tfcharrnn.model.cells.base import Cell, ExtraWeight, normalise_layer
    from tfcharrnn.model.cells.linear import LinearCell
    from tfcharrnn.model.char_rnn import CharRNN
    from tfcharrnn.preparation.data_folder import prepare_data
    from tfcharrnn.serving.export_formats import export_model
    from tfcharrnn.settings import DataSettings, GenerationSettings, TrainSettings
    from tfcharrnn.startup import set_verbosity
    from tfcharrnn.training.callbacks import (
        Callback,
        CheckpointReport,
        Result,
        SampleReport,
        StepReport,
        ValidationReport,
    )
    from tfcharrnn.training.setup import train_model

__version__ = "0.1.0"

# where each public name lives; a module is imported when a name of it is first used, so that this import is cheap
_HOMES = {
    "Activations": "inference.activations",
    "Callback": "training.callbacks",
    "Cell": "model.cells.base",
    "CharRNN": "model.char_rnn",
    "CheckpointReport": "training.callbacks",
    "ConfigError": "errors",
    "DataConfig": "config",
    "DataFolder": "data.dataset",
    "DataSettings": "settings",
    "ExtraWeight": "model.cells.base",
    "GenerationConfig": "config",
    "GenerationSettings": "settings",
    "LinearCell": "model.cells.linear",
    "ModelConfig": "config",
    "Result": "training.callbacks",
    "SampleReport": "training.callbacks",
    "StepReport": "training.callbacks",
    "TrainSettings": "settings",
    "TrainedModel": "inference.trained_model",
    "TrainingConfig": "config",
    "UserError": "errors",
    "ValidationReport": "training.callbacks",
    "Vocabulary": "data.vocabulary",
    "export_model": "serving.export_formats",
    "load_model": "inference.trained_model",
    "normalise_layer": "model.cells.base",
    "open_data": "data.dataset",
    "prepare_data": "preparation.data_folder",
    "register_cell": "model.cells",
    "set_verbosity": "startup",
    "train_model": "training.setup",
    "write_report": "analysis.html_report",
}

__all__ = [
    "Activations",
    "Callback",
    "Cell",
    "CharRNN",
    "CheckpointReport",
    "ConfigError",
    "DataConfig",
    "DataFolder",
    "DataSettings",
    "ExtraWeight",
    "GenerationConfig",
    "GenerationSettings",
    "LinearCell",
    "ModelConfig",
    "Result",
    "SampleReport",
    "StepReport",
    "TrainSettings",
    "TrainedModel",
    "TrainingConfig",
    "UserError",
    "ValidationReport",
    "Vocabulary",
    "export_model",
    "load_model",
    "normalise_layer",
    "open_data",
    "prepare_data",
    "register_cell",
    "set_verbosity",
    "train_model",
    "write_report",
]


if not TYPE_CHECKING:  # a type checker would take every name for one of the module

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'tfcharrnn' has no attribute {name!r}")
        from tfcharrnn import startup

        with startup.hold_notices():
            return getattr(importlib.import_module(f"tfcharrnn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*filter(re.compile("__.*__").fullmatch, globals()), *__all__])
