"""Runs of the simulator as the traces of its processes, whole, cut, silenced or spoilt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fsm.errors import LocalError
from fsm.events import Note, Received, Sent
from fsm.trace import Seen, Trace, dump_trace
from sim import zoo
from sim.choices import Seeded
from sim.engines.conform import Conformance, conform_sources
from sim.engines.conform_read import source_of
from sim.engines.conform_split import Name, split, world_events
from sim.engines.simulate import run_once
from sim.scenario import Scenario

Traces = dict[Name, Trace]


def ours(name: str, **sections: Any) -> Scenario:
    """A built-in scenario under the protocol itself, with sections replaced."""
    return msgspec.structs.replace(zoo.with_variant(zoo.scenario_named(name), zoo.DETECTORS["watermark"]), **sections)


def traces_of(scenario: Scenario, seed: int) -> Traces:
    """The traces of the processes of one run; none where the simulator does not repeat its own steps."""
    trace = run_once(scenario, Seeded(seed), machine="flat", record=True).trace
    assert trace is not None
    try:
        return split(world_events(trace), scenario)
    except LocalError:
        return {}  # a network that heals within a collective: not a step that a strict replay knows


def judged(traces: Traces, *, ends: bool = True) -> Conformance:
    """What is said of them."""
    return conform_sources([source_of(trace, f"{side}-{rank}", ends=ends) for (side, rank), trace in traces.items()])


def late(trace: Trace, first: int) -> Trace:
    """Without its first lines, as a ring keeps them. A fault that is told stays with the event that it explains."""
    while first and isinstance(trace.seen[first - 1].event, Note):
        first -= 1
    header = msgspec.structs.replace(trace.header, dropped=first)
    return trace._replace(header=header, seen=trace.seen[first:])


def silenced(trace: Trace) -> Trace:
    """Without messages, if there is anything else: with nothing left, nobody could tell that they were left out."""
    left = keep(trace, lambda event: not isinstance(event, (Sent, Received)))
    return left if any(not isinstance(line.event, Note) for line in left.seen) else trace


def keep(trace: Trace, which: Callable[[Any], bool]) -> Trace:
    """Only some events."""
    return trace._replace(seen=tuple(line for line in trace.seen if which(line.event)))


def insert(trace: Trace, at: int, *events: Any) -> Trace:
    """With events more before line ``at`` of what was seen."""
    lines = [Seen(trace.seen[at - 1].at_s, event) for event in events]
    return trace._replace(seen=(*trace.seen[:at], *lines, *trace.seen[at:]))


def written(traces: Traces, directory: Path) -> list[str]:
    """The paths of the traces as files."""
    paths = []
    for (side, rank), trace in traces.items():
        path = directory / f"{side}-{rank}.jsonl"
        path.write_text(dump_trace(trace), encoding="utf-8")
        paths.append(str(path))
    return paths


def place(trace: Trace, kind: type[Any], which: Callable[[Any], bool] = lambda event: True) -> int:
    """Where the first such event stands."""
    return next(n for n, line in enumerate(trace.seen) if isinstance(line.event, kind) and which(line.event))


def words(found: Conformance) -> Sequence[str]:
    """What was inferred."""
    return [inferred.what for inferred in found.inferred]
