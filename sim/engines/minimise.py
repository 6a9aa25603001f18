"""From a trace that was refused to the shortest run of the simulator that breaks the same property.

A real run cannot be run again, and has thousands of events that have nothing to do with what went wrong. But the
property that is at stake is known, and so is what the run was like: how many ranks, whether it resumed, what struck
it. A small scenario is made of that, and searched breadth first, so that what is found is as short as it can be there:
first with the protocol itself, which should not break it, then with the versions of the zoo that are known to. Of
those, one whose own break shows in the same kind of event comes first, then the shortest.

So the answer names a mistake that has the same effect. Whether it is the mistake that was made, it cannot know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from fsm.allocators import ALLOCATORS
from fsm.errors import LocalError
from fsm.events import Executed, Finished, Granted, Received, Restarted
from fsm.invariants import Monitors
from fsm.messages import Abort, Offer
from fsm.reasons import Reason
from fsm.trace import WORKER, Trace
from sim import zoo
from sim.engines.check import check
from sim.engines.conform import Conformance
from sim.engines.conform_read import Source, open_source, ranks_of
from sim.engines.conform_split import world_events
from sim.engines.result import Result
from sim.scenario import Faults, Pool, RankCounts, Request, Scenario

MINIMISE_STATES_MAX: Final = 100_000
"""The default bound of each search."""

BLOCK_TOKENS: Final = 2
GRANTS_MAX: Final = 3
RANKS_MAX: Final = 2
REQUESTS_MAX: Final = 2
"""Whatever was larger in the trace is made as small as this: more of it shows nothing else."""

_NEEDS_NEIGHBOUR: Final = ("I1", "I3", "L3")
"""What is broken at the cost of another request."""

Progress = Callable[[int, int, int], None]


@dataclass
class Features:
    """What a trace was like, up to where it was refused."""

    receivers: int = 1
    senders: int = 1
    rooms: int = 0
    grants: int = 1
    early: bool = False
    allocator: str = ""
    faults: dict[str, int] = field(default_factory=dict)

    def scenarios(self, property: str) -> list[Scenario]:
        """Small scenarios that are like it, the smallest first."""
        requests = REQUESTS_MAX if property in _NEEDS_NEIGHBOUR or self.rooms > 1 else 1
        least = REQUESTS_MAX if property in _NEEDS_NEIGHBOUR else 1
        grants = range(min(self.grants, 2), min(self.grants, GRANTS_MAX) + 1)
        return [self._scenario(count, number) for count in range(least, requests + 1) for number in grants]

    def _scenario(self, requests: int, grants: int) -> Scenario:
        return Scenario(
            pool=Pool(blocks=2, block_tokens=BLOCK_TOKENS, grant_blocks_max=1, allocator=self.allocator or "fifo"),
            requests=(
                Request(
                    tokens=BLOCK_TOKENS * grants - 1, count=requests, grant_tokens=BLOCK_TOKENS if self.early else 0
                ),
            ),
            ranks=RankCounts(receivers=min(self.receivers, RANKS_MAX), senders=min(self.senders, RANKS_MAX)),
            faults=Faults(**dict.fromkeys(self.faults, 1)),
        )

    def words(self) -> str:
        """The same in words."""
        parts = [f"{self.receivers} receiver {'rank' if self.receivers == 1 else 'ranks'}"]
        parts.append(f"{self.grants} {'grant' if self.grants == 1 else 'grants'} to a request")
        parts += [f"{count:,} {_FAULTS[name][count != 1]}" for name, count in self.faults.items()]
        return ", ".join(parts)


_FAULTS: Final = {
    "duplicate_max": ("message received again", "messages received again"),
    "abort_max": ("end by an abort", "ends by an abort"),
    "sender_crash_max": ("restart of a sender", "restarts of a sender"),
    "receiver_crash_max": ("restart of a receiver", "restarts of a receiver"),
}
"""One and several of each. A message is received again if it was sent again, if it was kept until its room was
submitted, or if the network doubled it: to whoever receives it that is the same. An end by an abort is one of one side,
and also follows where a peer has failed or has gone."""


class Candidate(NamedTuple):
    """A version that breaks the property: its scenario, the search, and the kind of event in which it shows."""

    version: str
    scenario: Scenario
    own: bool
    result: Result
    kind: str

    @property
    def trace(self) -> Trace:
        """The shortest run."""
        return self.result.violations[0].trace


class Minimised(NamedTuple):
    """What was found. ``protocol`` is the search with our own version, ``best`` the nearest version that breaks the
    property (``None``: there is none within the bounds), ``tried`` the versions that were searched."""

    broken: str
    features: str
    protocol: Result | None
    best: Candidate | None
    tried: tuple[str, ...]
    states_max: int

    @property
    def written(self) -> bool:
        """Whether there is a run to be written down."""
        return self.best is not None

    def lines(self) -> list[str]:
        """What to say of it."""
        if self.protocol is None:
            return ["what was refused guards none of the properties, so there is no run that could break one; no file"]
        lines = [f"looked for the shortest run that breaks {self.broken}; the trace had {self.features}"]
        size = f"{self.protocol.states:,} states, {self.protocol.coverage}"
        if self.best is not None and self.best.version == "watermark":
            lines.append(f"'watermark' itself breaks {self.broken}, in {len(self.best.trace.steps)} steps ({size})")
            return lines
        within = "in a small scenario that is like it" if self.protocol.coverage == "exhausted" else "within the bounds"
        lines.append(f"'watermark' itself does not break {self.broken} {within} ({size})")
        if self.best is None:
            tried = ", ".join(self.tried) or "none"
            lines.append(f"no version of the zoo does within {self.states_max:,} states (tried: {tried}); no file")
            return lines
        where = "its own scenario" if self.best.own else "that scenario"
        lines.append(
            f"the nearest version that does is '{self.best.version}', at step {len(self.best.trace.steps)} of {where}; "
            "whether it is the mistake that was made here, this cannot know"
        )
        return lines

    def as_json(self, path: Path | None) -> dict[str, Any]:
        """The same for programs."""
        best = self.best
        return {
            "property": self.broken or None,
            "features": self.features,
            "protocol_breaks": best is not None and best.version == "watermark",
            "protocol_states": None if self.protocol is None else self.protocol.states,
            "protocol_coverage": None if self.protocol is None else self.protocol.coverage,
            "version": None if best is None else best.version,
            "steps": None if best is None else len(best.trace.steps),
            "tried": list(self.tried),
            "states_max": self.states_max,
            "written": str(path) if best is not None else None,
        }


def minimise(
    answer: Conformance, paths: Sequence[Path], *, states_max: int | None = None, progress: Progress | None = None
) -> Minimised:
    """The shortest run that breaks the property which a refused (or violated) trace has at stake. Raises
    :class:`LocalError` for traces that cannot be read, and for one of the simulator."""
    broken = answer.at_stake
    sources = [open_source(path) for path in paths]
    if not answer.processes[0].side and sources[0].header.engine != WORKER:
        raise LocalError(
            "--minimise: a trace of the simulator says already what was run; resumark check of its scenario finds the "
            "shortest run, resumark shrink a shorter one"
        )
    states_max = states_max or MINIMISE_STATES_MAX
    features = features_of(answer, sources)
    if not broken:
        return Minimised("", features.words(), None, None, (), states_max)
    scenarios = features.scenarios(broken)
    for scenario in scenarios:
        protocol = check(scenario, states_max=states_max, only=(broken,), progress=progress)
        if protocol.violations:
            best = Candidate("watermark", scenario, False, protocol, "")
            return Minimised(broken, features.words(), protocol, best, (), states_max)
    kind = _kind(answer)
    tried: list[str] = []
    for group in _groups(broken):
        found: list[Candidate] = []
        for name in group:
            tried.append(name)
            found += _search(name, scenarios, broken, states_max, progress)
        if found:
            best = min(found, key=lambda c: (c.kind != kind, c.own, len(c.trace.steps), tried.index(c.version)))
            return Minimised(broken, features.words(), protocol, best, tuple(tried), states_max)
    return Minimised(broken, features.words(), protocol, None, tuple(tried), states_max)


def _groups(broken: str) -> tuple[list[str], list[str]]:
    """Versions that are known to break a property, then all others that are wrong."""
    versions = {**zoo.DETECTORS, **zoo.HAZARDS}
    known = [name for name, version in versions.items() if broken in version.expected]
    others = [name for name, version in versions.items() if version.expected and name not in known]
    return known, others


def _search(
    name: str, scenarios: Sequence[Scenario], broken: str, states_max: int, progress: Progress | None
) -> list[Candidate]:
    """A version in the scenarios that are like the trace, the smallest first; if it shows in none, in its own."""
    version = zoo.DETECTORS.get(name) or zoo.HAZARDS[name]
    alike = [(zoo.with_variant(scenario, version), False) for scenario in scenarios]
    for chosen, own in [*alike, (zoo.scenario_for(name, broken), True)]:
        result = check(chosen, states_max=states_max, only=(broken,), progress=progress)
        if result.violations:
            return [Candidate(name, chosen, own, result, _kind_of(result.violations[0].trace, broken))]
    return []


def _kind_of(trace: Trace, broken: str) -> str:
    """The kind of the event in which a run breaks a property; empty where no event does: what never happens."""
    monitors = Monitors()
    for _, event in world_events(trace):
        monitors.take(event)
        if any(violation.property == broken for violation in monitors.violations):
            return type(event).__name__
    return ""


def _kind(answer: Conformance) -> str:
    refused = answer.refused
    if refused is None:
        return {"L1": "Finished", "L3": "Overtaken"}[answer.at_stake]
    return "Granted" if "(resume)" in refused.event else refused.kind


# --- what the trace was like ----------------------------------------------------------------------------


def features_of(answer: Conformance, sources: Sequence[Source]) -> Features:
    """Read the traces once more, each up to where it was refused, and note what they were like."""
    features = Features()
    boots: dict[tuple[str, int], int] = {}
    for source in sources:
        process = source.process
        if process.side:
            name = process.side, process.rank
            boots[name] = boots.get(name, 0) + 1
        last = answer.refused.line if answer.refused is not None and answer.refused.file == source.name else None
        _look(features, source, last)
        _configured(features, source)
    for (side, _), times in boots.items():
        if times > 1:
            _fault(features, f"{side}_crash_max", times - 1)
    return features


def _configured(features: Features, source: Source) -> None:
    receivers, senders = ranks_of(source.header)
    features.receivers = max(features.receivers, receivers)
    features.senders = max(features.senders, senders)
    config = source.header.scenario.get("config")
    pool = config.get("pool") if isinstance(config, dict) else None
    if isinstance(pool, dict) and pool.get("allocator") in ALLOCATORS:
        features.allocator = pool["allocator"]


def _look(features: Features, source: Source, last: int | None) -> None:
    offered: dict[Any, None] = {}
    came: dict[Any, None] = {}
    rooms: dict[int, None] = {}
    for line, _, event in source.events:
        if last is not None and line > last:
            break
        kind = type(event)
        if kind is Granted:
            features.grants = max(features.grants, event.seq + 1)
            features.early |= event.seq == 0 and source.process.messages and event.epoch not in offered
            rooms[event.room] = None
        elif kind is Executed:
            features.grants = max(features.grants, event.seq + 1)
        elif kind is Received:
            message = event.message
            if isinstance(message, Offer):
                offered[message.epoch] = None
            if message in came and not isinstance(message, Abort):
                _fault(features, "duplicate_max", 1)
            came[message] = None
            if len(came) > 4096:
                del came[next(iter(came))]
        elif kind is Finished and event.reason in (Reason.ABORTED.name, Reason.PEER_ABORTED.name):
            _fault(features, "abort_max", 1)
        elif kind is Restarted:
            _fault(features, "sender_crash_max", 1)
    features.rooms = max(features.rooms, len(rooms))


def _fault(features: Features, name: str, times: int) -> None:
    features.faults[name] = features.faults.get(name, 0) + times


__all__ = ["MINIMISE_STATES_MAX", "Candidate", "Features", "Minimised", "features_of", "minimise"]
