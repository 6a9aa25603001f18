"""A run as a file: versioned JSON Lines, one header, one line for each step, one ending.

The header holds all that is needed to run it again; a step holds the action taken and every pick that was made inside
it, with the number of options there were. A replay compares all of that, so that a trace that no longer fits the code
is an error at the step where it parts from it, and never a different run that passes for the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from fsm.errors import LocalError

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


class TraceHeader(Struct, frozen=True, tag="header", tag_field="line"):
    """What was run: ``scenario`` is the whole of it as plain data, the variant included."""

    version: int
    engine: str
    scenario: dict[str, Any]
    machine: str = "flat"
    seed: int | None = None
    command: str = ""


class TraceEnding(Struct, frozen=True, tag="ending", tag_field="line"):
    """How it ended: the property that was broken and how (empty if none was), and the digest of the run."""

    property: str = ""
    text: str = ""
    digest: str = ""


class Trace(NamedTuple):
    """A whole run."""

    header: TraceHeader
    steps: tuple[Step, ...]
    ending: TraceEnding


_LINE = msgspec.json.Decoder(TraceHeader | Step | TraceEnding)


def dump_trace(trace: Trace) -> str:
    """The trace as JSON Lines."""
    encode = msgspec.json.encode
    lines = [encode(trace.header), *(encode(step) for step in trace.steps), encode(trace.ending)]
    return "".join(line.decode() + "\n" for line in lines)


def parse_trace(lines: Iterable[str], *, source: str = "<trace>") -> Trace:
    """Read a trace. Raises :class:`LocalError` naming source, line and what was expected there."""
    header: TraceHeader | None = None
    ending: TraceEnding | None = None
    steps: list[Step] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _LINE.decode(line)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise LocalError(f"{source}, line {number}: not a line of a trace: {error}") from None
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
        else:
            steps.append(record)
    if header is None:
        raise LocalError(f"{source}: empty; expected a header line")
    if ending is None:
        raise LocalError(f"{source}: cut off after step {len(steps)}: the ending is missing")
    return Trace(header, tuple(steps), ending)
