"""``mermaid`` fences as pictures: drawn once, when the site is built, by Mermaid itself, and put into the page as SVG.

So a page shows the same picture as a forge does, and runs no script and loads nothing for it. The source of a picture
stands below it, folded, for who cannot see it.
"""

from __future__ import annotations

import functools
import hashlib
import html
from typing import Any

import mermaidx
from docutils import nodes
from sphinx.util.docutils import SphinxDirective


@functools.cache
def drawn(source: str) -> str:
    """A picture as SVG, with names in it that no other picture of the page has."""
    name = "m" + hashlib.sha256(source.encode()).hexdigest()[:12]
    svg: str = mermaidx.render(source, theme="neutral").svg()
    return svg.replace("my-svg", name)


class MermaidDirective(SphinxDirective):
    """A picture, and its source."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Draw it."""
        source = "\n".join(self.content) + "\n"
        text = html.escape(source)
        picture = (
            f'<figure class="diagram"><div class="diagram-picture">{drawn(source)}</div>'
            f"<details><summary>The picture as text</summary><pre>{text}</pre></details></figure>"
        )
        return [nodes.raw("", picture, format="html")]


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_directive("mermaid", MermaidDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
