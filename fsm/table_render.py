"""A table as a person sees it: a picture (Mermaid), a page (Markdown), a terminal (text).

All three are written from the rows that run, so that no diagram can be out of date: the documentation
holds generated text, and a test compares it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fsm.table_check import REFUSE, plain

if TYPE_CHECKING:
    from fsm.table import Table

_COLUMNS = ("state", "event", "guard", "next", "effect", "why")
# Found by parsing: Mermaid 11 takes no state of these names, in whatever case.
_MERMAID_WORDS = (
    "accdescr",
    "acctitle",
    "class",
    "classdef",
    "click",
    "default",
    "href",
    "note",
    "scale",
    "state",
    "statediagram",
    "style",
)


def _cells(table: Table) -> list[tuple[str, ...]]:
    """The rows of all three renderings; a state without rows is shown all the same."""
    cells: list[tuple[str, ...]] = []
    for state, rows in table.rows.items():
        for row in rows:
            cells.append((plain(state), plain(row.event), row.guard, plain(row.target), row.effect, row.why))
        if not rows:
            cells.append((plain(state), "", "", "", "", "terminal: nothing leads out"))
    return [tuple(" ".join(cell.split()) for cell in line) for line in cells]


def mermaid(table: Table) -> str:
    """A ``stateDiagram-v2``. Refused rows are not drawn: a diagram shows what can happen."""
    names = [plain(state) for state in table.states]
    ids = {name: _mermaid_id(name, names) for name in names}
    lines = ["stateDiagram-v2"]
    lines.extend(f'    state "{name}" as {ids[name]}' for name in names if ids[name] != name)
    lines.append(f"    [*] --> {ids[plain(table.initial)]}")
    for state, event, guard, target, effect, _ in _cells(table):
        if event and target != REFUSE:
            label = event + (f" [{guard}]" if guard else "") + (f" / {effect}" if effect else "")
            lines.append(f"    {ids[state]} --> {ids[target]}: {_mermaid_label(label)}")
    lines.extend(f"    {ids[plain(state)]} --> [*]" for state in table.terminal)
    return "\n".join(lines) + "\n"


def _mermaid_id(name: str, taken: list[str]) -> str:
    """The name itself, or for a word of Mermaid's own one that is not taken."""
    identifier = name
    while identifier.lower() in _MERMAID_WORDS or (identifier != name and identifier in taken):
        identifier += "_"
    return identifier


def _mermaid_label(label: str) -> str:
    """These characters end a label or start something else in Mermaid; as entities they are only text."""
    return re.sub(r"[#:;%<>]", lambda found: f"#{ord(found.group())};", label)


def markdown(table: Table) -> str:
    """A Markdown table, one line a row."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    for line in _cells(table):
        cells = [cell.replace("|", "\\|") for cell in line]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def text(table: Table) -> str:
    """The same in aligned columns, without trailing blanks."""
    lines = [_COLUMNS, *_cells(table)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "".join("  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in lines)
