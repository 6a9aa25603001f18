"""The table of contents: ``index.md`` lists its pages under headings, and these lists become the tree of the site.

On a forge the lists are links like any others. Each heading of the second level is a part of the tree; the parts that
``SITE_ONLY`` names get pages that are made at build, beside those that are listed.
"""

from __future__ import annotations

import re
from typing import Any

SITE_ONLY = {
    "Reference": [
        "reference/commands", "reference/lifecycles", "reference/messages", "reference/configuration", "reference/api",
    ]
}  # fmt: skip
"""Pages that only the site has, by the heading that they stand under."""

_PAGE = re.compile(r"^- \[([^\]]*)\]\(([\w-]+)\.md\)", re.MULTILINE)


def tree_of(text: str) -> str:
    """The hidden trees of a page: one for each heading of the second level that lists pages."""
    parts = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading = section.split("\n", 1)[0].strip()
        listed = [f"{title} <{name}>" for title, name in _PAGE.findall(section)]
        pages = [*listed, *SITE_ONLY.get(heading, [])]
        if pages:
            parts.append("\n".join(["```{toctree}", ":hidden:", f":caption: {heading}", "", *pages, "```"]))
    return "\n\n".join(parts)


def add_trees(app: Any, name: str, content: list[str]) -> None:
    """Append the trees to ``index.md`` as it is read."""
    if name == "index":
        content[0] += "\n" + tree_of(content[0]) + "\n"


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", add_trees)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
