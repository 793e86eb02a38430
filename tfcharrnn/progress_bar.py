"""Progress bars: on a terminal and in a notebook."""

from __future__ import annotations

import sys
import warnings
from typing import Any


def is_in_notebook() -> bool:
    """Tells whether the code runs in a Jupyter notebook or one of its kind, such as Colab."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def make_bar(**settings: Any) -> Any | None:
    """Makes a progress bar, or None where standard error is neither a terminal nor that of a notebook.

    Args:
        **settings: the arguments of `tqdm`.
    """
    if not (sys.stderr.isatty() or is_in_notebook()):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a notebook without ipywidgets, which gets a bar of characters
        from tqdm.auto import tqdm

    return tqdm(file=sys.stderr, **settings)
