"""How ``resumark replay`` shows the trace of a real worker: its events, and what the checkers say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from fsm.events import Event
from fsm.messages import describe
from fsm.trace import Trace
from sim import render
from sim.cli_common import command_line, exit_code_of, exit_with, output, print_json
from sim.engines.seen import Judged, judge_seen

_HEAD_LINES, _TAIL_LINES = 40, 40
"""Of a long trace, so many events are shown from the beginning and from the end, beside those that broke something."""


def event_text(event: Event) -> str:
    """The fields of an event in words, those that say nothing left out."""
    parts = []
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if name == "epoch":
            value = f"{value[0]}.{value[1]}" if value is not None else None
        elif name == "blocks":
            value = " ".join(str(ref.block) for ref in value)
        elif name == "message" and not isinstance(value, str):
            value = describe(value)
        elif value is False:
            continue
        if value is not None and value != "":
            parts.append(f"{name}={value}")
    return " ".join(parts)


def replay_seen(trace: Trace, path: Path, *, json: bool) -> None:
    """Judge a worker's trace, show it, and end with the exit code of the verdict."""
    judged = judge_seen(trace)
    broken = [found.violation.property for found in judged.violations]
    command = command_line("replay", str(path))
    if json:
        print_json(_answer(trace, judged, path, command, exit_code_of(broken)))
    else:
        _show(trace, judged, path, command)
    exit_with(exit_code_of(broken))


def _answer(trace: Trace, judged: Judged, path: Path, command: str, exit_code: int) -> dict[str, Any]:
    header = trace.header
    return {
        "trace": str(path),
        "engine": header.engine,
        "verdict": "violated" if judged.violations else "holds",
        "violations": [
            {"property": found.violation.property, "event": found.number, "text": found.violation.text}
            for found in judged.violations
        ],
        "events": judged.events,
        "ended": judged.ended,
        "worker": {
            "side": header.side, "rank": header.rank, "boot_id": header.boot_id,
            "started_unix_s": header.started_unix_s, **msgspec.to_builtins(header.scenario),
        },
        "exit_code": exit_code,
        "command": command,
    }


def _show(trace: Trace, judged: Judged, path: Path, command: str) -> None:
    console = output()
    ended = ", ".join(f"{state} {count}" for state, count in sorted(judged.ended.items())) or "none"
    facts = [("trace", f"{path}, of a real worker"), ("events", render.number(judged.events)), ("ended", ended)]
    render.print_facts(console, facts)
    console.print()
    marked = {found.number: found.violation.property for found in judged.violations}
    table = Table("event", "s", "what", "", box=None, pad_edge=False, header_style="bold")
    left_out = False
    for number, line in enumerate(trace.seen, start=1):
        shown = number <= _HEAD_LINES or number > judged.events - _TAIL_LINES or number in marked
        if shown:
            kind = str(line.event.__struct_config__.tag)
            said = f"{marked.get(number, '')}{'!' if number in marked else ''} {event_text(line.event)}".strip()
            table.add_row(str(number), f"{line.at_s:.6f}", kind, said)
        elif not left_out:
            left_out = True
            between = range(_HEAD_LINES + 1, judged.events - _TAIL_LINES + 1)
            hidden = len(between) - sum(mark in between for mark in marked)
            table.add_row("...", "", "", f"{hidden} events more")
    console.print(table)
    console.print()
    for found in judged.violations:
        render.print_broken(console, found.violation.property, found.violation.text, found.number)
    if not judged.violations:
        console.print("No property is broken in this run, as far as this process could see.")
    console.print()
    render.print_command(console, command_line("explore", str(path)), "see it   ")
    render.print_command(console, command)
