"""Writes `tfcharrnn/settings.py`, the types of settings given as keyword arguments, from the config dataclasses.

python tools/make_settings.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tfcharrnn.config import DataConfig, GenerationConfig, ModelConfig, TrainingConfig

PATH = Path(__file__).resolve().parents[1] / "tfcharrnn" / "settings.py"

_HEADER = '''"""Types of settings as keyword arguments of `train_model`, `prepare_data` and `TrainedModel.generate`.

Written by tools/make_settings.py from the config dataclasses, which have the defaults, the bounds and the help.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

Paths = str | Path | Sequence[str | Path]
'''
# types of keyword arguments that are wider than those of the field
_TYPES = {"input": "Paths"}
# what `TrainedModel.generate` names itself: one is positional, the other decides about the type of the result
_OWN_ARGUMENTS = ("prime", "num_samples")


def write_classes() -> str:
    """Returns the content of the module."""
    parts = [
        _HEADER,
        _write_class("DataSettings", "Fields of `DataConfig`.", DataConfig),
        _write_class(
            "TrainSettings",
            "Fields of `DataConfig`, `ModelConfig` and `TrainingConfig`.",
            ModelConfig,
            TrainingConfig,
            base="DataSettings",
        ),
        _write_class(
            "GenerationSettings", "Fields of `GenerationConfig`, but for the prime and the number.", GenerationConfig
        ),
    ]
    return "\n\n".join(parts)


def _write_class(name: str, doc: str, *classes: type, base: str = "TypedDict") -> str:
    lines = [f"class {name}({base}, total=False):", f'    """{doc}"""', ""]
    for cls in classes:
        for field in dataclasses.fields(cls):
            if field.name not in _OWN_ARGUMENTS:
                lines.append(f"    {field.name}: {_TYPES.get(field.name, field.type)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(write_classes(), encoding="utf-8")
