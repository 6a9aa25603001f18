"""The page "Write your own lifecycle" is run: its Python blocks in order, against what it says they print.

``python tests/fsm/test_docs_lifecycle.py`` writes what they print into the page.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "write-your-own-lifecycle.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(page: str) -> list[tuple[re.Match[str], str]]:
    """Run the page's Python blocks in one namespace; each block that shows output, with the true output."""
    namespace: dict[str, Any] = {"__name__": "page"}
    printed = ""
    shown: list[tuple[re.Match[str], str]] = []
    for block in BLOCK.finditer(page):
        if block[1] == "python":
            assert printed == "", f"the page does not show this output: {printed}"
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(block[2], str(PAGE), "exec"), namespace)
            printed = output.getvalue().rstrip("\n")
        else:
            shown.append((block, printed))
            printed = ""
    assert printed == "", f"the page does not show this output: {printed}"
    return shown


def test_every_block_prints_what_the_page_says() -> None:
    shown = run_page(PAGE.read_text())
    for block, printed in shown:
        assert block[2] == printed + "\n"
    assert [block[1] for block, _ in shown] == ["text", "text", "mermaid", *["text"] * 5]


def test_the_page_shows_every_kind_of_refusal_that_it_announces() -> None:
    refusals = run_page(PAGE.read_text())[1][1]
    assert refusals.count("- table 'review'") == 11


def main() -> None:
    """Write the true output into the page."""
    page = PAGE.read_text()
    for block, printed in reversed(run_page(page)):
        page = page[: block.start(2)] + printed + "\n" + page[block.end(2) :]
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
