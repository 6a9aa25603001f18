"""A real run held against the checkers: the events that one process saw, shown to each of them in order."""

from __future__ import annotations

from typing import NamedTuple

from fsm.errors import LocalError
from fsm.events import Finished
from fsm.invariants import Monitors, Violation
from fsm.trace import WORKER, Trace


class SeenViolation(NamedTuple):
    """A property that did not hold, and the number of the event that showed it, from 1."""

    number: int
    violation: Violation


class Judged(NamedTuple):
    """What the checkers say of a trace. ``ended``: how many requests ended in each state."""

    violations: tuple[SeenViolation, ...]
    ended: dict[str, int]
    events: int


def judge_seen(trace: Trace) -> Judged:
    """Show the events of a worker's trace to the checkers of I1 to I8 and L3. Raises LocalError for a trace of the
    simulator, which is replayed instead.

    What one process cannot see is not judged: a sender's trace says nothing of blocks, a receiver's nothing of what
    a sender executed.
    """
    if trace.header.engine != WORKER:
        raise LocalError(f"this trace was made by {trace.header.engine}, not by a worker: replay its steps")
    monitors, found = Monitors(), []
    ended: dict[str, int] = {}
    for number, line in enumerate(trace.seen, start=1):
        known = len(monitors.violations)
        monitors.take(line.event)
        found += [SeenViolation(number, violation) for violation in monitors.violations[known:]]
        if isinstance(line.event, Finished):
            ended[line.event.state] = ended.get(line.event.state, 0) + 1
    return Judged(tuple(found), ended, len(trace.seen))
