"""A run as a file: versioned JSON Lines, one header, one line for each step, one ending.

A run of the simulator is told by its steps, which say all. A run of real workers cannot be told so; there a line is
an event that was seen (:class:`Seen`), in the order in which one process saw them. Both are read by the same checkers.
A worker may keep the last of its lines only, in a ring (``fsm.ring``); whoever reads a trace file reads either.

The header holds all that is needed to run it again; a step holds the action taken and every pick that was made inside
it, with the number of options there were. A replay compares all of that, so that a trace that no longer fits the code
is an error at the step where it parts from it, and never a different run that passes for the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from fsm.errors import LocalError
from fsm.events import AnyEvent
from fsm.ring import is_ring, read_ring

TRACE_VERSION = 1


class Pick(NamedTuple):
    """One answer to a choice: which of ``options``, and what was being chosen."""

    label: str
    options: int
    chosen: int


class Step(Struct, frozen=True, tag="step", tag_field="line"):
    """One action: its parts, what it was in words, and the picks that it asked for."""

    action: tuple[Any, ...]
    text: str
    picks: tuple[Pick, ...] = ()


class Seen(Struct, frozen=True, tag="seen", tag_field="line"):
    """Something that happened in a real run, ``at_s`` seconds after its header was written."""

    at_s: float
    event: AnyEvent


class TraceHeader(Struct, frozen=True, tag="header", tag_field="line", omit_defaults=True):
    """What was run: ``scenario`` is the whole of it as plain data, the variant included. ``engine`` is ``"worker"`` for
    a real run; ``scenario`` then is the worker's configuration, and the last fields say whose trace it is."""

    version: int
    engine: str
    scenario: dict[str, Any]
    machine: str = "flat"
    seed: int | None = None
    command: str = ""
    side: str = ""
    """``"receiver"`` or ``"sender"``; empty in a trace that no worker wrote."""
    rank: int = -1
    """Of its own side."""
    boot_id: int = 0
    """That the process began with."""
    started_unix_s: float = 0.0
    """Wall clock at the header: what the times of the lines count from, as that machine's clock had it."""
    dropped: int = 0
    """So many events were seen before the first line, and are not here: a ring holds the last ones only."""


class TraceEnding(Struct, frozen=True, tag="ending", tag_field="line"):
    """How it ended: the property that was broken and how (empty if none was), and the digest of the run.

    Where a run that never ends was found, the steps of the trace are its stem, and ``endless`` is what follows: the
    last ``turn`` of these steps repeat for ever. With none to repeat, nothing changes any more. The digest is that of
    the stem.
    """

    property: str = ""
    text: str = ""
    digest: str = ""
    endless: tuple[Step, ...] = ()
    turn: int = 0


class Trace(NamedTuple):
    """A whole run: ``steps`` of the simulator, or what was ``seen`` of real workers."""

    header: TraceHeader
    steps: tuple[Step, ...]
    ending: TraceEnding
    seen: tuple[Seen, ...] = ()


WORKER = "worker"
"""The engine of a real run."""

Line: TypeAlias = TraceHeader | Step | Seen | TraceEnding

_LINE = msgspec.json.Decoder(Line)


def dump_trace(trace: Trace) -> str:
    """The trace as JSON Lines."""
    lines: list[Line] = [trace.header, *trace.steps, *trace.seen, trace.ending]
    return "".join(map(dump_line, lines))


def dump_line(line: Line) -> str:
    """One line of a trace, for whoever writes it while it happens."""
    return msgspec.json.encode(line).decode() + "\n"


def parse_trace_bytes(data: bytes, *, source: str = "<trace>") -> Trace:
    """Read what a trace file holds, be it JSON Lines or a ring. Raises :class:`LocalError` as :func:`parse_trace` does.

    The header of a ring says how many events were seen before the first that it still holds.
    """
    if is_ring(data):
        ring = read_ring(data, source=source)
        trace = parse_trace([ring.header, *ring.lines], source=source)
        return trace._replace(header=msgspec.structs.replace(trace.header, dropped=ring.dropped))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LocalError(f"{source}: cannot be read: {error}; expected JSON Lines in UTF-8, or a ring") from None
    return parse_trace(text.split("\n"), source=source)


def parse_trace(lines: Iterable[str | bytes], *, source: str = "<trace>") -> Trace:
    """Read a trace. Raises :class:`LocalError` naming source, line and what was expected there."""
    header: TraceHeader | None = None
    ending: TraceEnding | None = None
    steps: list[Step] = []
    seen: list[Seen] = []
    broken: LocalError | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if broken is not None:
            raise broken
        try:
            record = _LINE.decode(line)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            broken = LocalError(f"{source}, line {number}: not a line of a trace: {error}")
            if header is None or header.engine != WORKER:
                raise broken from None
            continue  # the last line of a process that was killed may be half a line
        if header is None:
            if not isinstance(record, TraceHeader):
                raise LocalError(f"{source}, line {number}: expected the header first")
            if record.version != TRACE_VERSION:
                known = f"this program reads version {TRACE_VERSION}"
                raise LocalError(f"{source}: trace version {record.version}; {known}")
            header = record
        elif ending is not None or isinstance(record, TraceHeader):
            raise LocalError(f"{source}, line {number}: nothing may follow the ending, and there is one header")
        elif isinstance(record, TraceEnding):
            ending = record
        elif isinstance(record, Seen) != (header.engine == WORKER):
            expected = "seen" if header.engine == WORKER else "step"
            raise LocalError(f"{source}, line {number}: expected a line '{expected}', as engine '{header.engine}' says")
        elif isinstance(record, Seen):
            seen.append(record)
        else:
            steps.append(record)
    if header is None:
        raise LocalError(f"{source}: empty; expected a header line")
    if ending is None:
        if header.engine != WORKER:
            raise LocalError(f"{source}: cut off after step {len(steps)}: the ending is missing")
        ending = TraceEnding()  # a process that was killed writes none; what it saw until then counts
    return Trace(header, tuple(steps), ending, tuple(seen))
