"""Adds what is not in `docs/` to the site: API reference, change log, cards of the models, and the page that writes.

A hook of MkDocs, named in mkdocs.yml.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# where the page that writes is, and what the setting is called that has its source
WRITING_PAGE = "write.html"
# a link to a notebook, with its name
_NOTEBOOK = re.compile(r"\]\(([\w-]+\.ipynb)\)")

_PUBLIC = """# API reference

What `import tfcharrnn` gives. [Modules](modules.md) lists everything else.

::: tfcharrnn
    options:
      members_order: alphabetical
      summary: {functions: true, classes: true, modules: false, attributes: false}
"""


def list_modules() -> dict[str, str]:
    """Returns the first line of every module's docstring by its name; they are read as files, none is imported."""
    lines = {}
    for path in sorted((ROOT / "tfcharrnn").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines[name] = docstring.partition("\n")[0]
    return {name: line for name, line in lines.items() if name not in ("tfcharrnn", "tfcharrnn.__main__")}


def write_pages() -> dict[str, str]:
    """Returns the Markdown of the added pages by their names."""
    modules = list_modules()
    pages = {f"api/{name}.md": f"# {name}\n\n::: {name}\n" for name in modules}
    pages["api/index.md"] = _PUBLIC
    listed = "".join(f"- [{name}]({name}.md): {line}\n" for name, line in modules.items())
    pages["api/modules.md"] = f"# Modules\n\n{listed}"
    for name in ("CHANGELOG", "CONTRIBUTING"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        pages[f"{name.lower()}.md"] = text.replace("](docs/", "](")
    for card in (ROOT / "tfcharrnn" / "pretrained").glob("*/README.md"):
        pages[f"models/{card.parent.name}.md"] = card.read_text(encoding="utf-8")
    return pages


def on_config(config: Any) -> Any:
    """Adds the API reference to the navigation."""
    for item in config.nav:
        if isinstance(item, dict) and "API" in item:
            item["API"] = ["api/index.md", "api/modules.md"]
    return config


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Leads links to the cards of the pretrained models to their pages here, and offers to open notebooks in Colab."""
    markdown = re.sub(r"\]\(\.\./tfcharrnn/pretrained/(\w+)/README\.md\)", r"](models/\1.md)", markdown)
    if not config.repo_url:
        return markdown
    colab = config.repo_url.replace("https://github.com/", "https://colab.research.google.com/github/")
    return _NOTEBOOK.sub(rf"\g<0> ([Open in Colab]({colab}/blob/main/docs/\1))", markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Keeps the theme's script from asking GitHub for the repository's stars: the pages ask no other server."""
    return output.replace(' data-md-component="source"', "")


def on_post_template(output: str, **_: Any) -> str:
    """Does the same to the page for addresses that do not exist."""
    return on_post_page(output)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    for name, text in write_pages().items():
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, WRITING_PAGE, abs_src_path=config.extra["writing_page"]))
    return files
