"""Writes the API reference, HTML pages made of the docstrings by pdoc (the extra `docs`).

python tools/apidoc.py --output_dir=site

Every module is imported, none is run. pdoc alone would find none of the names of `tfcharrnn` itself, since they are
imported when they are first used; so they are used here first.
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
    write(Path(_FLAGS.output_dir))
    print(_FLAGS.output_dir)


def modules() -> list[str]:
    """The package and all its modules, by name."""
    found = pkgutil.walk_packages(tfcharrnn.__path__, "tfcharrnn.")
    return ["tfcharrnn", *sorted(module.name for module in found)]


def write(output_dir: Path) -> None:
    """Writes `index.html`, `search.js` and a page for each module.

    Args:
        output_dir: where to; made if need be. Pages that are there are replaced.

    Raises:
        UserError: pdoc is not installed.
    """
    try:
        import pdoc
    except ImportError:
        raise UserError("pdoc is not installed: pip install -e '.[docs]'") from None
    names = modules()
    for name in names:
        importlib.import_module(name)
    vars(tfcharrnn).update({name: getattr(tfcharrnn, name) for name in tfcharrnn.__all__})
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():  # it looks for the types of a made `__init__` in the wrong module, and says so
        warnings.filterwarnings("ignore", "Error parsing type annotation")
        pdoc.pdoc(*names, output_directory=output_dir)


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", "site", "The folder of the pages.")
    cli.run(main)
