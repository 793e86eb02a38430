"""Renders the data of a report as one HTML page."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import Any

_TEMPLATE = Path(__file__).with_name("report.html")


def render(report: dict[str, Any]) -> str:
    """Renders a report, with a content security policy that allows only the page's own script and style.

    Args:
        report: JSON-compatible data with a `title`, for the script of the page.
    """
    template = _TEMPLATE.read_text(encoding="utf-8")
    contents = {}
    for tag in ("script", "style"):
        match = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        if match is None:
            raise ValueError(f"{_TEMPLATE}: has no <{tag}>")
        contents[tag] = match[1]
    policy = make_policy(**contents)
    title = report["title"].encode("utf-8", "replace").decode()
    values = {"POLICY": policy, "TITLE": html.escape(title), "DATA": encode_for_script(report)}
    return re.sub("{{(POLICY|TITLE|DATA)}}", lambda match: values[match[1]], template)


def make_policy(script: str, style: str) -> str:
    """Returns a content security policy that allows one script, one style and no network.

    Args:
        script: the content of the page's `<script>`.
        style: the content of its `<style>`.
    """
    script_hash, style_hash = (
        "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in (script, style)
    )
    return (
        f"default-src 'none'; script-src '{script_hash}'; style-src '{style_hash}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def encode_for_script(value: Any) -> str:
    """Encodes a value as ASCII JSON without characters that are markup in HTML; NaN and infinity become null."""
    text = json.dumps(_replace_non_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _replace_non_finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
