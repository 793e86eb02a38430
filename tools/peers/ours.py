"""This library, as its commands run it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tfcharrnn.config import DataConfig, ModelConfig
from tfcharrnn.preparation.data_folder import prepare_data
from tfcharrnn.verification.device_bench import make_generation, make_training
from tfcharrnn.verification.workloads import Preparation, Training, Work


def make(work: Work) -> tuple[Callable[[], object], int]:
    """Returns a function that does the work, and the number of steps per call."""
    if isinstance(work, Preparation):
        folder = Path(tempfile.mkdtemp())
        (folder / "text.txt").write_text(work.text, encoding="utf-8")
        data = DataConfig(input=(str(folder / "text.txt"),), val_fraction=0.0)
        return lambda: prepare_data(data, folder / "data", overwrite=True), 1
    config = ModelConfig(cell=work.cell, hidden_size=work.hidden, num_layers=work.layers)
    return make_training(work, config) if isinstance(work, Training) else make_generation(work, config)
