"""Makes the site: the documentation, the API reference, and on its first page a model that writes.

python tools/make_site.py [--run_dir=RUN] [--output_dir=site] [--repository=OWNER/NAME]

Without a run folder, the model is the Shakespeare one that comes with the package. With the name of the repository on
GitHub, the pages link to it, and to Colab where they name a notebook. Warnings, such as a link that leads
nowhere, are errors. Needs MkDocs and what mkdocs.yml names (the extra `docs`).
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

import tfcharrnn
from tfcharrnn import cli
from tfcharrnn.errors import ConfigError, UserError

_FLAGS = flags.FLAGS
_CONFIG = Path(__file__).resolve().parents[1] / "mkdocs.yml"


def main() -> None:
    """Reads the flags and makes the site."""
    settings = describe_repository(_FLAGS.repository)
    cli.load_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        page = tfcharrnn.export_model(_FLAGS.run_dir, "html", Path(folder, "page.html"))
        build_site(page, Path(_FLAGS.output_dir), **settings)
    print(Path(_FLAGS.output_dir, "index.html"))


def describe_repository(name: str) -> dict[str, str]:
    """Returns MkDocs' settings for a repository on GitHub.

    Args:
        name: `OWNER/NAME`; "": there is none.

    Raises:
        ConfigError: it is not of this form.
    """
    if not name:
        return {}
    if not re.fullmatch(r"[\w-]+/[\w.-]+", name, re.ASCII):
        raise ConfigError(f"--repository: must be OWNER/NAME. Received: {name!r}")
    return {"repo_url": f"https://github.com/{name}", "repo_name": name}


def build_site(writing_page: Path, output_dir: Path, **settings: Any) -> None:
    """Builds the site.

    Args:
        writing_page: an exported page.
        output_dir: created if missing; existing pages are replaced.
        **settings: instead of those in mkdocs.yml.

    Raises:
        UserError: MkDocs is not installed, or something is wrong with a page, which the lines above the error name.
    """
    os.environ["NO_MKDOCS_2_WARNING"] = "1"  # a notice of the theme about another program
    try:
        from mkdocs.commands.build import build
        from mkdocs.config import load_config
        from mkdocs.exceptions import MkDocsException
    except ImportError:
        raise UserError("MkDocs is not installed: pip install -e '.[docs]'") from None
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    try:
        config = load_config(str(_CONFIG), strict=True, site_dir=str(output_dir.absolute()), **settings)
        config.extra["writing_page"] = str(writing_page.absolute())
        build(config)
    except MkDocsException as error:
        raise UserError(f"{output_dir}: {error}".strip()) from None


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_string("run_dir", "pretrained:shakespeare", "The run whose model writes on the first page.")
    flags.DEFINE_string("output_dir", "site", "The folder of the pages.")
    flags.DEFINE_string("repository", "", "OWNER/NAME on GitHub, to which the pages link; by default none.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
