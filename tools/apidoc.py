"""Writes the API reference: HTML pages that pdoc (the extra `docs`) makes from the docstrings.

python tools/apidoc.py --output_dir=site

Every module is imported, none is run. The names of `tfcharrnn` itself are imported on first use, and pdoc would miss
them; so they are all used here first.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from pathlib import Path

from absl import flags

import tfcharrnn
from tfcharrnn import cli
from tfcharrnn.errors import UserError

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags and writes the pages."""
    cli.load_tensorflow()
    write_pages(Path(_FLAGS.output_dir))
    print(_FLAGS.output_dir)


def list_modules() -> list[str]:
    """Returns the names of the package and all its modules."""
    found = pkgutil.walk_packages(tfcharrnn.__path__, "tfcharrnn.")
    return ["tfcharrnn", *sorted(module.name for module in found)]


def write_pages(output_dir: Path) -> None:
    """Writes `index.html`, `search.js` and a page for each module.

    Args:
        output_dir: created if missing; existing pages are replaced.

    Raises:
        UserError: pdoc is not installed.
    """
    try:
        import pdoc
    except ImportError:
        raise UserError("pdoc is not installed: pip install -e '.[docs]'") from None
    names = list_modules()
    for name in names:
        importlib.import_module(name)
    vars(tfcharrnn).update({name: getattr(tfcharrnn, name) for name in tfcharrnn.__all__})
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():  # pdoc looks up the types of generated `__init__`s in the wrong module
        warnings.filterwarnings("ignore", "Error parsing type annotation")
        pdoc.pdoc(*names, output_directory=output_dir)


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_string("output_dir", "site", "The folder of the pages.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
