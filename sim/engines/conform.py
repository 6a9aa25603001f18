"""Whether traces of real workers are runs of the protocol: merged by causality, and read by the acceptor.

The traces of several processes are merged into one order (:mod:`sim.engines.merge`), and each event is shown to the
acceptor (:class:`fsm.conform.acceptor.Acceptor`), which refuses the first that the protocol cannot do. Nothing is
searched, so this takes time in proportion to the number of events, and memory in proportion to the requests in flight.

``conforms`` says that these events, in this order, are a run of the protocol: one run, as it was seen, with what had
to be inferred. That is a sample, and no proof of the program that made it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fsm.conform.acceptor import Acceptor
from fsm.conform.refusal import Refusal, Refused
from fsm.conform.words import could_have, event_words, lane_text
from fsm.errors import LocalError
from fsm.invariants import LIVENESS, Violation
from fsm.messages import Epoch
from fsm.trace import WORKER
from sim.engines.conform_read import Source, open_source
from sim.engines.merge import Merge, Place, Uncaused
from sim.engines.result import EXIT_HOLDS, EXIT_LIVENESS, EXIT_SAFETY, EXIT_UNKNOWN

Progress = Callable[[int], None]
"""Told now and then: events read."""

_REPORT_EVERY = 16_384


class Told(NamedTuple):
    """A process whose trace was read: how many events there were, how many are missing before the first, how many
    holes there are behind it, and how its trace ends (``"whole"``, ``"cut"``, or empty where it was not read to its
    end)."""

    name: str
    file: str
    side: str
    rank: int
    events: int
    dropped: int
    holes: int
    messages: bool
    over: str


class RefusedAt(NamedTuple):
    """A refusal and where it was: the file, its line (of a simulator: step), seconds, the event in words, its kind."""

    file: str
    line: int
    at_s: float
    process: str
    event: str
    kind: str
    refusal: Refusal
    other: str = ""
    """Where two events are each other's cause: the other."""


class Inferred(NamedTuple):
    """Events that are in no trace and must have happened: what, why it may be missing, how often."""

    what: str
    why: str
    times: int


class Unended(NamedTuple):
    """A request that has not ended where the traces do: on which side, for which receiver rank, where it stands, and
    what could come next."""

    side: str
    receiver_rank: int
    room: int
    epoch: Epoch
    state: str
    could: tuple[str, ...]


class Conformance(NamedTuple):
    """The answer. ``events`` were read, of which ``notes`` only to be shown. ``refused`` is the first event that the
    protocol cannot do; ``violations`` are broken liveness properties, which refuse nothing. ``ended`` counts requests
    by the state in which they ended on a receiver rank."""

    processes: tuple[Told, ...]
    events: int
    refused: RefusedAt | None
    violations: tuple[Violation, ...]
    inferred: tuple[Inferred, ...]
    ended: dict[str, int]
    notes: int = 0
    unended: tuple[Unended, ...] = ()
    """Only where nothing was refused."""

    @property
    def verdict(self) -> str:
        """``conforms``, ``refused``, ``violated`` where only a liveness property is broken, or ``unknown`` where there
        was nothing to judge."""
        if self.refused is not None:
            return "refused"
        if self.violations:
            return "violated"
        return "conforms" if self.events > self.notes else "unknown"

    @property
    def at_stake(self) -> str:
        """The property that is at stake; empty if none is, or the refusal guards none."""
        if self.refused is not None:
            return self.refused.refusal.property
        return self.violations[0].property if self.violations else ""

    @property
    def exit_code(self) -> int:
        """0 conforms, 1 refused, 3 only liveness, 4 nothing to judge."""
        codes = {"conforms": EXIT_HOLDS, "refused": EXIT_SAFETY, "violated": EXIT_LIVENESS, "unknown": EXIT_UNKNOWN}
        return codes[self.verdict]

    @property
    def inferred_total(self) -> int:
        """How many events were inferred."""
        return sum(found.times for found in self.inferred)


def conform(paths: Sequence[Path], *, progress: Progress | None = None) -> Conformance:
    """Read traces of workers, or one of the simulator. Raises :class:`LocalError` for what cannot be read, naming file
    and line, and for traces that do not belong together."""
    sources = [open_source(path) for path in paths]
    return conform_sources(sources, progress=progress)


def conform_sources(sources: Sequence[Source], *, progress: Progress | None = None) -> Conformance:
    """The same of traces that were opened."""
    check_together(sources)
    acceptor = Acceptor([source.process for source in sources])
    merge = Merge(sources, acceptor.gaps, acceptor.begin)
    events, refused = 0, None
    take = acceptor.take
    try:
        with _collector_at_ease():
            for event, process in merge:
                events += 1
                take(event, process)
                if progress is not None and events % _REPORT_EVERY == 0:
                    progress(events)
    except Refused as answer:
        place = merge.place()
        refused = _refused_at(place, _with_property(acceptor, place, answer.refusal))
    except Uncaused as answer:
        refused = _uncaused(answer)
    violations = list(acceptor.violations)
    seen = [violation.property for violation in violations]
    violations += [_said(source) for source in sources if source.breaks in LIVENESS and source.breaks not in seen]
    if refused is None:
        for source in sources:
            source.process.over = source.process.over or "whole"
    gaps = acceptor.gaps
    return Conformance(
        tuple(_told(stream.source, stream.count) for stream in merge.streams),
        events,
        refused,
        tuple(violations) if refused is None else (),
        tuple(Inferred(what, why, count) for (what, why), count in gaps.inferred.items()),
        dict(sorted(acceptor.ended.items())),
        acceptor.notes,
        _unended(acceptor) if refused is None else (),
    )


def _unended(acceptor: Acceptor) -> tuple[Unended, ...]:
    return tuple(
        Unended(side, key[0], key[1], key[2], lane_text(lane), could_have(lane))
        for side, key, lane in acceptor.living()
    )


@contextmanager
def _collector_at_ease() -> Iterator[None]:
    """Events come by the hundred thousand and hold no cycles: looking for some every few hundred costs a tenth."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def check_together(sources: Sequence[Source]) -> None:
    """Raises :class:`LocalError` for traces that cannot be of one run."""
    if not sources:
        raise LocalError("no trace was given; expected one or more")
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise LocalError(f"{name}: given twice; expected each trace once")
    worlds = [source for source in sources if not source.process.side]
    if worlds and len(sources) > 1:
        what = "is of the simulator" if worlds[0].header.engine != WORKER else "does not say whose it is (side, rank)"
        raise LocalError(f"{worlds[0].name}: this trace {what}; expected it alone")
    seen: dict[tuple[str, int, int], str] = {}
    for source in sources:
        process = source.process
        key = process.side, process.rank, process.boot_id
        if process.side and key in seen:
            raise LocalError(
                f"{source.name}: of the same process as {seen[key]}: {process.name}, boot id {process.boot_id}; "
                "expected one trace of each process: the longest, or of several dumps that of the failure in question"
            )
        seen[key] = source.name


def _said(source: Source) -> Violation:
    """What never happens, no event shows: a trace of the simulator says it in its ending."""
    return Violation(source.breaks, source.how)


def _told(source: Source, events: int) -> Told:
    process = source.process
    return Told(
        process.name,
        source.name,
        process.side,
        process.rank,
        events,
        process.dropped,
        process.holes,
        process.messages,
        process.over,
    )


def _with_property(acceptor: Acceptor, place: Place, refusal: Refusal) -> Refusal:
    """What the checkers say of the very event that was refused, where they say anything, is the property at stake."""
    if refusal.rule == refusal.property:
        return refusal
    monitors = acceptor.monitors
    known = len(monitors.violations)
    monitors.take(place.event)
    found = [violation.property for violation in monitors.violations[known:] if violation.property not in LIVENESS]
    return refusal._replace(property=found[0]) if found else refusal


def _refused_at(place: Place, refusal: Refusal, other: str = "") -> RefusedAt:
    event, process = place.event, place.source.process
    return RefusedAt(
        place.source.name, place.line, place.at_s, process.name, event_words(event), type(event).__name__, refusal,
        other=other,
    )  # fmt: skip


def _uncaused(answer: Uncaused) -> RefusedAt:
    need = answer.need
    room, epoch = need.bucket[1], need.bucket[2]
    what = f"{need.what} (room {room}, epoch {epoch[0]}.{epoch[1]})"
    could = (f"it could follow {what} of the {need.side}",)
    if answer.other is None:
        text = f"its cause, {what}, is in no trace, and nothing says that it may be missing"
        return _refused_at(answer.place, Refusal("causality", text, "", could))
    other = answer.other.words()
    text = f"its cause, {what}, has not come, and the {need.side} stands at an event that needs what is behind this one"
    return _refused_at(answer.place, Refusal("causality", text, "", could), other)


__all__ = ["Conformance", "Inferred", "RefusedAt", "Told", "Unended", "conform", "conform_sources"]
