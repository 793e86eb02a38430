"""Character-level recurrent language models in TensorFlow, with the recurrence written by hand."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfcharrnn.analysis.html_report import write_report
    from tfcharrnn.config import DataConfig, GenerationConfig, ModelConfig, TrainingConfig
    from tfcharrnn.data.dataset import DataFolder, open_data
    from tfcharrnn.data.vocabulary import Vocabulary
    from tfcharrnn.errors import ConfigError, UserError
    from tfcharrnn.inference.trained_model import TrainedModel, load_model
    from tfcharrnn.model.char_rnn import CharRNN
    from tfcharrnn.preparation.data_folder import prepare_data
    from tfcharrnn.serving.export_formats import export_model
    from tfcharrnn.training.loop import Result
    from tfcharrnn.training.setup import train_model

__version__ = "0.1.0"

# where each public name lives; a module is imported when a name of it is first used, so that this import is cheap
_HOMES = {
    "CharRNN": "model.char_rnn",
    "ConfigError": "errors",
    "DataConfig": "config",
    "DataFolder": "data.dataset",
    "GenerationConfig": "config",
    "ModelConfig": "config",
    "Result": "training.loop",
    "TrainedModel": "inference.trained_model",
    "TrainingConfig": "config",
    "UserError": "errors",
    "Vocabulary": "data.vocabulary",
    "export_model": "serving.export_formats",
    "load_model": "inference.trained_model",
    "open_data": "data.dataset",
    "prepare_data": "preparation.data_folder",
    "train_model": "training.setup",
    "write_report": "analysis.html_report",
}

__all__ = [
    "CharRNN",
    "ConfigError",
    "DataConfig",
    "DataFolder",
    "GenerationConfig",
    "ModelConfig",
    "Result",
    "TrainedModel",
    "TrainingConfig",
    "UserError",
    "Vocabulary",
    "export_model",
    "load_model",
    "open_data",
    "prepare_data",
    "train_model",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfcharrnn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tfcharrnn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
