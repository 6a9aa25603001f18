"""Traces of real workers in one causal order, with what ``resumark conform`` says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fsm.conform.acceptor import Acceptor
from fsm.conform.refusal import Refusal, Refused
from fsm.errors import LocalError
from fsm.events import AnyEvent
from fsm.invariants import Monitors, Violation
from fsm.trace import WORKER, TraceHeader
from sim.engines.conform import check_together
from sim.engines.conform_read import Source, open_source
from sim.engines.merge import Merge, Uncaused

CONFORMS = "conforms"
"""What is broken where an event is refused that no property is about."""

CONFORMS_TEXT = "every event is one that the lifecycles and the messages before it allow"


class Placed(NamedTuple):
    """An event, when it was (seconds since the earliest header, never less than those of the event before), and where
    it stands: which of the traces, and which line of it. ``anew``: it is the first of a process that has taken the
    place of another."""

    at_s: float
    event: AnyEvent
    trace: int
    line: int
    anew: bool


class Merged(NamedTuple):
    """What several processes saw. ``broken``: (number of the event from 1, property and how), ``inferred``: (the same,
    in words) where something was concluded that no trace holds."""

    names: tuple[str, ...]
    headers: tuple[TraceHeader, ...]
    events: tuple[Placed, ...]
    broken: tuple[tuple[int, Violation], ...]
    inferred: tuple[tuple[int, str], ...]
    refused: int
    """The number of the first event that the protocol cannot do, 0 if there is none."""


def merged(paths: Sequence[Path]) -> Merged:
    """Read traces of the workers of one run. Raises LocalError for traces that cannot be read, do not belong together,
    or are the simulator's."""
    sources = [open_source(path) for path in paths]
    for source in sources:
        if source.header.engine != WORKER:
            raise LocalError(f"{source.name}: made by {source.header.engine}, not by a worker; give it alone")
    check_together(sources)
    return _Reader(sources).read(paths)


class _Reader:
    """Puts events in order, as far as causes go, and shows them to the acceptor and to the checkers."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.acceptor: Acceptor | None = Acceptor([source.process for source in sources])
        self.gaps = self.acceptor.gaps
        self.merge = Merge(sources, self.gaps, self._begin)
        self.monitors = Monitors()
        self.events: list[Placed] = []
        self.broken: list[tuple[int, Violation]] = []
        self.refused = 0
        self.inferred: list[tuple[int, str]] = []
        self._told = [0] * len(sources)
        self._known: dict[tuple[str, str], int] = {}
        self._present: dict[tuple[str, int], int] = {}
        """Which trace is that of the process which is there, by side and rank."""

    def _begin(self, process: object) -> None:
        if self.acceptor is not None:
            self.acceptor.begin(process)  # type: ignore[arg-type]

    def read(self, paths: Sequence[Path]) -> Merged:
        """All of it. Behind an event whose cause is nowhere the order is that of the clocks."""
        number_of = {id(source): number for number, source in enumerate(self.sources)}
        try:
            for event, process in self.merge:
                place = self.merge.place()
                number = number_of[id(place.source)]
                self._told[number] += 1
                self._place(number, place.at_s, event, place.line)
                if self.acceptor is not None:
                    try:
                        self.acceptor.take(event, process)
                    except Refused as answer:
                        self._refuse(event, answer.refusal)
                self._look(event)
        except Uncaused as answer:
            self._rest(paths, answer)
        names, headers = zip(*[(source.name, source.header) for source in self.sources], strict=True)
        return Merged(names, headers, tuple(self.events), tuple(self.broken), tuple(self.inferred), self.refused)

    def _place(self, number: int, at_s: float, event: AnyEvent, line: int) -> None:
        at_s += self.merge.streams[number].offset
        header = self.sources[number].header
        lane = header.side, header.rank
        anew = bool(header.side) and self._present.get(lane, number) != number
        self._present[lane] = number
        self.events.append(Placed(max(at_s, self.events[-1].at_s if self.events else 0.0), event, number, line, anew))

    def _look(self, event: AnyEvent) -> None:
        """What the checkers say of an event, and what had to be concluded for it."""
        before, number = len(self.monitors.violations), len(self.events)
        self.monitors.take(event)
        told = [violation.property for at, violation in self.broken if at == number]
        for violation in self.monitors.violations[before:]:
            if violation.property not in told:
                self.broken.append((number, violation))
        for reason, count in self.gaps.inferred.items():
            if count > self._known.get(reason, 0):
                self.inferred.append((number, f"{reason[0]}: {reason[1]}"))
                self._known[reason] = count

    def _refuse(self, event: AnyEvent, refusal: Refusal) -> None:
        """The first event that the protocol cannot do; what comes after it is not judged by the acceptor."""
        text = f"{refusal.text} (against {refusal.rule})"
        text += f". Before it: {refusal.state}" if refusal.state else ""
        text += f". What could be: {'; '.join(refusal.could)}" if refusal.could else ""
        self.refused = len(self.events)
        self.broken.append((self.refused, Violation(refusal.property or CONFORMS, text)))
        self.acceptor = None

    def _rest(self, paths: Sequence[Path], answer: Uncaused) -> None:
        """Events that wait for what is nowhere: the first of them is refused, unless one was before."""
        rest = []
        for number, path in enumerate(paths):
            events = list(open_source(path).events)[self._told[number] :]
            offset = self.merge.streams[number].offset
            rest += [(at_s + offset, number, at_s, event, line) for line, at_s, event in events]
        stuck = answer.place
        for _, number, at_s, event, line in sorted(rest, key=lambda item: item[:2]):
            self._place(number, at_s, event, line)
            if self.acceptor is not None and (self.sources[number] is stuck.source and line == stuck.line):
                text = (
                    f"its cause, {answer.need.what}, is in no trace before it, and nothing says that it may be missing"
                )
                self._refuse(event, Refusal("causality", text, "", ()))
            self._look(event)
