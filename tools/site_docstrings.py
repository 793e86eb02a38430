"""Gives the API reference docstrings that its Markdown shows as they are meant.

An extension of griffe, named in mkdocs.yml. Docstrings are read from the source, except those of settings, which
`config.py` makes when it is imported.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import griffe

from tfcharrnn import config


class Docstrings(griffe.Extension):
    """Corrects docstrings, and the defaults of settings."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Gives a setting its default, from which the signature of the class is made."""
        owner = _find_config(attr.path.rpartition(".")[0])
        for field in dataclasses.fields(owner) if owner else ():
            if field.name == attr.name:
                attr.value = repr(field.default)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Corrects the docstring of a class, function, attribute or module."""
        if obj.docstring:
            owner = _find_config(obj.path)
            obj.docstring.value = escape_tags(inspect.getdoc(owner) or "" if owner else obj.docstring.value)


def _find_config(path: str) -> Any:
    """Returns the dataclass of `config` with this path, if it is one."""
    found = getattr(config, path.removeprefix("tfcharrnn.config."), None)
    return found if inspect.isclass(found) and dataclasses.is_dataclass(found) else None


def escape_tags(text: str) -> str:
    """Escapes what Markdown would take for HTML, such as the symbol `<S>`, outside code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)
