"""The generated parts of the documentation: ``python -m sim.docs`` writes them, ``--check`` says what is out of date.

A generated part stands between ``<!-- generated:NAME -->`` and ``<!-- end generated:NAME -->`` in ``README.md`` or in
``docs/*.md``. Everything around it is written by hand and left alone. Needs a source tree: an installed package has no
documents beside it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fsm.errors import LocalError
from fsm.invariants import LIVENESS, PROPERTIES
from fsm.lifecycle import BLOCK_TABLE, RECEIVER_FIVE_STATE_TABLE, RECEIVER_TABLE, SENDER_TABLE
from fsm.messages import NackCode
from fsm.reasons import NACK_REASONS, RETRIED_WHILE_BOOTSTRAPPING
from fsm.states import State, kv_poll
from fsm.table import Table
from sim import zoo
from sim.scenario import reference_markdown

ROOT = Path(__file__).resolve().parents[1]
"""The source tree."""

_BEGIN = re.compile(r"^<!-- generated:([a-z0-9-]+) -->$", re.MULTILINE)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, one line a row."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def diagram(table: Table) -> str:
    """A table's picture, fenced."""
    return f"```mermaid\n{table.mermaid()}```\n"


def kv_poll_markdown() -> str:
    """The historical status of each state."""
    return markdown_table(
        ("state", "`KVPoll`", "number"),
        [(f"`{state}`", f"`{kv_poll(state).name}`", str(int(kv_poll(state)))) for state in State],
    )


def properties_markdown() -> str:
    """Every property, with the class that decides the exit code."""
    return markdown_table(
        ("property", "class", "what must hold"),
        [(f"**{name}**", "liveness" if name in LIVENESS else "safety", text) for name, text in PROPERTIES.items()],
    )


def nack_codes_markdown() -> str:
    """Every NACK code: when it is retried, and the failure that it stands for when it is final."""
    rows = []
    for code in NackCode:
        retried = "until the bootstrap deadline" if code in RETRIED_WHILE_BOOTSTRAPPING else "no"
        rows.append((f"`{code}`", retried, f"`{NACK_REASONS[code].name}`"))
    return markdown_table(("code", "retried before REGISTER_ACK or OFFER was seen", "reason when final"), rows)


def _breaks(variant: zoo.Variant, broken: str) -> str:
    """A property, and the allocators under which the mistake does not show as that."""
    hidden = variant.hidden.get(broken, ())
    return f"{broken} (not under {', '.join(hidden)})" if hidden else broken


def zoo_markdown(kind: str) -> str:
    """The detectors or the hazards: what each does wrong, which rules it replaces, and which it switches off beside."""
    variants = zoo.DETECTORS if kind == "detector" else zoo.HAZARDS
    tables = kind == "detector"  # hazards all run on six states
    rows = []
    for variant in variants.values():
        replaced = [f"`{rule}`" for rule in variant.replaces if rule != "table"]
        rows.append(
            (
                f"`{variant.name}`",
                variant.mistake,
                ", ".join(replaced) or "nothing",
                ", ".join(variant.off) or "nothing",
                *(["five states" if variant.replaces.get("table") is zoo.FIVE else "six states"] if tables else []),
                variant.shows_with,
                ", ".join(_breaks(variant, name) for name in variant.expected) or "holds",
                ", ".join(f"`{name}`" for name in dict.fromkeys(name for name, _ in variant.shows())),
            )
        )
    heads = [kind, "the mistake", "rules replaced", "rules switched off with it"]
    heads += ["table"] if tables else []
    return markdown_table([*heads, "shows with", "breaks", "scenario"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "receiver-table": RECEIVER_TABLE.markdown,
    "receiver-diagram": lambda: diagram(RECEIVER_TABLE),
    "receiver-five-state-table": RECEIVER_FIVE_STATE_TABLE.markdown,
    "receiver-five-state-diagram": lambda: diagram(RECEIVER_FIVE_STATE_TABLE),
    "sender-table": SENDER_TABLE.markdown,
    "sender-diagram": lambda: diagram(SENDER_TABLE),
    "block-table": BLOCK_TABLE.markdown,
    "block-diagram": lambda: diagram(BLOCK_TABLE),
    "kvpoll": kv_poll_markdown,
    "properties": properties_markdown,
    "nack-codes": nack_codes_markdown,
    "zoo-detectors": lambda: zoo_markdown("detector"),
    "zoo-hazards": lambda: zoo_markdown("hazard"),
    "scenario": reference_markdown,
}
"""Every generated part by name."""


def regenerate(text: str, *, source: str = "<text>") -> str:
    """The text with every generated part made anew.

    Raises :class:`LocalError` for a part that nothing generates, or that has no end.
    """
    done: list[str] = []
    at = 0
    for begin in _BEGIN.finditer(text):
        name = begin.group(1)
        if begin.start() < at:
            raise LocalError(f"{source}: part '{name}' begins inside another")
        if name not in PARTS:
            raise LocalError(f"{source}: nothing generates '{name}'; known parts: {', '.join(PARTS)}")
        closing = f"<!-- end generated:{name} -->"
        end = text.find("\n" + closing, begin.end())
        if end < 0:
            raise LocalError(f"{source}: part '{name}' has no '{closing}' on a line of its own")
        part = PARTS[name]().strip("\n")
        done += [text[at : begin.end()], f"\n\n{part}\n\n"]
        at = end + 1
    return "".join([*done, text[at:]])


def documents(root: Path) -> list[Path]:
    """The files that may hold generated parts."""
    return [file for file in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if file.is_file()]


def outdated(root: Path) -> dict[Path, str]:
    """The documents that are not current, with what they should say. Raises :class:`LocalError`."""
    found: dict[Path, str] = {}
    for file in documents(root):
        text = file.read_text(encoding="utf-8")
        current = regenerate(text, source=file.relative_to(root).as_posix())
        if current != text:
            found[file] = current
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 1 if ``--check`` found something out of date, or 2 for a document it cannot read."""
    parser = argparse.ArgumentParser(prog="python -m sim.docs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the source tree")
    options = parser.parse_args(arguments)
    if not (options.root / "docs").is_dir():
        print(f"error: {options.root}: no source tree: there is no docs directory", file=sys.stderr)
        return 2
    try:
        found = outdated(options.root)
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file, text in found.items():
        name = file.relative_to(options.root).as_posix()
        if options.check:
            print(f"{name} is out of date; run: python -m sim.docs", file=sys.stderr)
        else:
            file.write_text(text, encoding="utf-8")
            print(f"{name}: written")
    return int(options.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
