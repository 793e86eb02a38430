"""Character-level recurrent language models in TensorFlow, with the recurrence written by hand."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfcharrnn.config import DataConfig, GenerationConfig, ModelConfig, TrainingConfig
    from tfcharrnn.dataset import DataFolder, open_data, prepare_data
    from tfcharrnn.errors import ConfigError, UserError
    from tfcharrnn.exporting import export_model
    from tfcharrnn.model import CharRNN
    from tfcharrnn.reporting import write_report
    from tfcharrnn.restoring import TrainedModel, load_model
    from tfcharrnn.starting import train_model
    from tfcharrnn.training import Result
    from tfcharrnn.vocabulary import Vocabulary

__version__ = "0.1.0"

# where each public name lives; a module is imported when a name of it is first used, so that this import is cheap
_HOMES = {
    "CharRNN": "model",
    "ConfigError": "errors",
    "DataConfig": "config",
    "DataFolder": "dataset",
    "GenerationConfig": "config",
    "ModelConfig": "config",
    "Result": "training",
    "TrainedModel": "restoring",
    "TrainingConfig": "config",
    "UserError": "errors",
    "Vocabulary": "vocabulary",
    "export_model": "exporting",
    "load_model": "restoring",
    "open_data": "dataset",
    "prepare_data": "dataset",
    "train_model": "starting",
    "write_report": "reporting",
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
