"""The fenced blocks of README and documents, and how each is run.

A block is run as a reader would: in the order of its page, in a folder of its own, where files that one block makes are
there for the next. What a block needs beside that stands in comments right above it, which a reader does not see:

``<!-- exit: 1 -->``        ``sh``: the exit code of its commands (default 0); ``1, 0`` gives one for each command
``<!-- with: --runs 9 -->`` ``sh``: words that are added to its commands here, so that a large example ends soon
``<!-- file: NAME -->``     the block is written to that file
``<!-- shown -->``          ``text``: its lines are printed by the block above, in this order; ``...`` leaves some out
``<!-- before CODE -->``    ``python``: code that is run first, out of sight
``<!-- runs:NAME -->``      ``python``: a name for blocks of other pages to go on from: ``runs:NAME after OTHER``
``<!-- program -->``        ``python``: a program, run as a file in a process of its own
``<!-- config:SIDE -->``    ``toml``: a configuration of a worker, and one that it takes
``<!-- command:NAME -->``   ``sh``: run by ``.ci/run``, word for word, and not here
``<!-- not run: WHY -->``   nothing is run. ``test_pages`` lists all of these, so that none is left out in silence

``python`` blocks of a page share their names. On pages that ``running.EXACT`` names, a ``text`` or ``mermaid`` block
right behind one is exactly what it prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
_KNOWN = re.compile(
    r"exit: \d+(, \d+)*|with: .+|file: [\w.-]+|shown|before\s.*|runs:[a-z-]+( after [a-z-]+)?|program"
    r"|config:(sender|receiver)|command:[a-z]+|not run: .+|(end )?(generated|workers):[a-z0-9-]+|shown:errors"
    r"|(exhausted|transfer):(begin|end)",
    re.DOTALL,
)


class Fence(NamedTuple):
    """A fenced block and the comments right above it."""

    page: str
    line: int
    language: str
    text: str
    marks: tuple[str, ...]

    def mark(self, head: str) -> str | None:
        """What follows a mark's head, or ``None`` if there is no such mark."""
        ends = head[-1] == ":"
        rest = (mark[len(head) :] for mark in self.marks if mark.startswith(head))
        found = [text.strip() for text in rest if ends or not text or text[0].isspace()]
        return found[0] if found else None

    @property
    def place(self) -> str:
        """Where it begins."""
        return f"{self.page}:{self.line}"


def fences_of(text: str, page: str) -> list[Fence]:
    """Every block of a page in order, those inside of lists too. A comment that says nothing known is an error."""
    found: list[Fence] = []
    above: tuple[str, ...] = ()
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "html_block":
            marks = tuple(_COMMENT.findall(token.content))
            unknown = [mark for mark in marks if not _KNOWN.fullmatch(mark)]
            assert not unknown, f"{page}: unknown comment {unknown[0]!r}; tests/docs/fences.py has those that are known"
            above += marks
            continue
        if token.type == "fence":
            assert token.map is not None
            found.append(Fence(page, token.map[0] + 1, token.info.strip(), token.content, above))
        above = ()
    return found


def fences() -> list[Fence]:
    """Every block of every page."""
    return [fence for file in PAGES for fence in fences_of(file.read_text("utf-8"), file.relative_to(ROOT).as_posix())]


def lines_of(fence: Fence) -> Iterator[str]:
    """The commands of an ``sh`` block, continued lines joined, comments and empty lines left out."""
    for line in fence.text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()
