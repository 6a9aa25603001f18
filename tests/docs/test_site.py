"""What of the site can be judged without building it: every page stands in its tree once, linked from the index."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from tests.docs.fences import PAGES, ROOT


def extension(name: str) -> ModuleType:
    """A module of ``docs/_ext`` that needs nothing of Sphinx to be imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_ext" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_index_lists_every_page_once() -> None:
    tree: str = extension("contents").tree_of((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    listed = [line.split("<")[1].rstrip(">") for line in tree.splitlines() if line.endswith(">")]
    assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem not in ("README", "index"))


def test_a_heading_without_pages_makes_no_tree() -> None:
    contents = extension("contents")
    text = "# T\n\n## One\n\n- [A page](a.md): words, [another](b.md)\n- [A place](c.md#here)\n\n## Two\n\nwords\n"
    assert contents.tree_of(text) == "```{toctree}\n:hidden:\n:caption: One\n\nA page <a>\n```"
