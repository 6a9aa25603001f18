"""The site loads nothing from a network: a page that would is a warning, and so an error of the build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.util import logging

LOADS = re.compile(
    r"""<(?:script|img|iframe|source|embed)\b[^>]*\bsrc=["'](?:https?:)?//[^"']*"""
    r"""|<link\b[^>]*\brel=["'](?:stylesheet|icon|preload|preconnect)["'][^>]*\bhref=["'](?:https?:)?//[^"']*"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')]*|url\(["']?(?:https?:)?//[^"')]*"""
)
"""What makes a browser fetch something by itself. Links that a reader may follow are no part of it."""


def check_site(app: Any, failure: Exception | None) -> None:
    """Look through every page and style sheet that was written."""
    if failure is not None or app.builder.format != "html":
        return
    for file in sorted(Path(app.outdir).rglob("*")):
        if file.suffix in (".html", ".css"):
            for found in LOADS.findall(file.read_text(encoding="utf-8")):
                name = file.relative_to(app.outdir)
                logging.getLogger(__name__).warning("%s loads from a network: %s", name, found)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("build-finished", check_site)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
