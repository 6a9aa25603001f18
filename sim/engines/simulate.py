"""Random runs by seed: many, fast, everything checked.

A run has two phases. First the adversary may strike: at each step, with the scenario's ``rate``, a fault that its
budgets still pay for takes the place of an ordinary action. Then come no more faults, the network heals, and a fair
scheduler picks among all that can happen; whatever has not ended ``ticks_max`` receiver ticks later never will, as far
as anybody can tell, and that is L1.

Every run is a function of scenario and seed alone, and a batch runs seed, seed + 1 and so on; how many processes share
the work shows nowhere in the result. A batch stops at the first run that violates something. One that finds nothing
has shown something only if what the properties speak of did occur: resumes, the same blocks again, requests that hold
data and wait, quarantine, and every fault that there was a budget for. Where one of these was possible and never
happened, the verdict is ``unknown``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from fsm.errors import LocalError
from fsm.events import Finished, Granted, Note, Received, Sent
from fsm.invariants import Violation
from fsm.rules import Rules
from fsm.states import State
from fsm.trace import TRACE_VERSION, Step, Trace, TraceEnding, TraceHeader
from sim import actions, zoo
from sim.choices import SEED_MAX, Choices, Recording, Seeded
from sim.engines.parallel import in_order
from sim.engines.result import Found, RequestReport, Result
from sim.report import Report
from sim.scenario import Scenario
from sim.sometimes import QUARANTINE, RESUME, SAME_BLOCKS, STARVATION, expected_sometimes
from sim.world import Action, World

Progress = Callable[[int, int], None]
"""Told now and then: runs done, runs in all."""

MACHINES = ("transitions", "flat")
"""What drives the lifecycles: the ``transitions`` machine, as in production, or the flat lookup."""

FAULT_STEPS_A_REQUEST = 32
"""The phase of faults lasts at most so many steps for each request and receiver rank."""

CHUNK_RUNS_MAX = 64
"""Runs that one process does between two reports."""

_RATE_STEPS = 1000
_IDLE = ("tick", "time", "enter", "leave", "heal")
"""What may still be offered in a world where all is over."""

_encode = msgspec.msgpack.Encoder().encode


@dataclass
class RunOutcome:
    """One run. ``digest`` covers every action, pick and event; ``violations`` are those of the last step."""

    digest: bytes
    violations: tuple[Violation, ...]
    steps: int
    lifecycles: int
    sometimes: dict[str, int] = field(default_factory=dict)
    trace: Trace | None = None
    requests: tuple[RequestReport, ...] = ()


class RunLog:
    """The digest of a run: every action, the picks inside it, and every event but notes, in one canonical encoding."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[Any] = []

    def add(self, action: Action, picks: list[Any], events: list[Any]) -> None:
        """One step; the lists must not be changed afterwards."""
        self._parts.append(action)
        self._parts.append(picks)
        self._parts.append(events)

    def digest(self) -> bytes:
        """16 bytes, equal for equal runs."""
        return hashlib.blake2b(_encode(self._parts), digest_size=16).digest()


def without_notes(events: list[Any]) -> list[Any]:
    """The events that a run without notes has."""
    return [event for event in events if type(event) not in (Note, Sent, Received)]


def is_over(world: World, course: list[Action]) -> bool:
    """Whether a run ends here: nothing can happen, or nothing that would matter."""
    return not course or (course[0][0] in _IDLE and world.done())


def judge_end(world: World) -> Violation | None:
    """What is wrong with a world in which nothing more will happen."""
    if not world.all_ended():
        return Violation("L1", "nothing will ever happen again, and requests have not ended")
    if not world.done():
        return Violation("L2", "all requests have ended, and what is left will never be cleared")
    left = world.left_behind()
    return Violation("L2", f"all requests have ended, and {left}") if left else None


# --- one run --------------------------------------------------------------------------------------------


def run_once(
    scenario: Scenario,
    choices: Choices,
    *,
    machine: str = "transitions",
    rules: Rules | None = None,
    record: bool = False,
    report: bool = False,
    seed: int | None = None,
) -> RunOutcome:
    """One run by any choices. ``record`` keeps a trace of it (with ``seed`` noted there), ``report`` what became of the
    requests; ``rules`` replaces the scenario's variant. Raises LocalError for an unknown machine or variant."""
    check_machine(machine)
    if rules is None:
        rules = zoo.rules_for(scenario.variant.detector, scenario.variant.hazards)
    return _Run(scenario, choices, machine, rules, record, report).go(seed)


def check_machine(machine: str) -> None:
    """Raises LocalError for a machine that does not exist."""
    if machine not in MACHINES:
        raise LocalError(f"there is no machine '{machine}'; there are {', '.join(MACHINES)}")


class _Run:
    """The scheduler of one run."""

    def __init__(
        self, scenario: Scenario, choices: Choices, machine: str, rules: Rules, record: bool, report: bool
    ) -> None:
        self.scenario = scenario
        self.choices = choices
        self.machine = machine
        self.inner = Recording(choices)
        self.world = World(scenario, rules, flat=machine == "flat")
        self.log = RunLog()
        self.steps: list[Step] | None = [] if record else None
        self.report = Report(self.world) if report or record else None
        self.count = 0
        self.sometimes: dict[str, int] = {}
        self.held: dict[tuple[Any, ...], list[int]] = {}
        self.waiting: list[tuple[int, tuple[int, ...]]] = [(0, ())] * len(self.world.receivers)
        self.refusals = self.world.refusals_left()

    def go(self, seed: int | None) -> RunOutcome:
        """Both phases, and the verdict."""
        self._see((), [])
        over = False
        if any(self.world.budget.values()) and self.scenario.faults.rate > 0:
            over = self._with_faults()
        if not over:
            self._fairly()
        world = self.world
        world.audit()
        violations = tuple(world.monitors.violations)
        digest = self.log.digest()
        trace = None
        if self.steps is not None:
            trace = self._trace(violations, digest, seed)
        requests = self.report.requests() if self.report is not None else ()
        return RunOutcome(digest, violations, self.count, len(world.requests), self.sometimes, trace, requests)

    def _with_faults(self) -> bool:
        """The first phase; returns whether the run is over."""
        world, pick = self.world, self.choices.pick
        steps_max = FAULT_STEPS_A_REQUEST * len(world.requests) * len(world.receivers)
        strike = _RATE_STEPS - round(self.scenario.faults.rate * _RATE_STEPS)
        for _ in range(1 + pick(steps_max, "fault phase")):
            course = actions.enabled(world)
            if is_over(world, course):
                return self._end()
            if pick(_RATE_STEPS, "fault") >= strike:
                action = self._fault()
                if action is not None:
                    if self._do(action):
                        return True
                    continue
                if not any(world.budget.values()):
                    return False
            if self._do(course[pick(len(course), "action")]):
                return True
        return False

    def _fault(self) -> Action | None:
        """A fault, its kind first, so that those with many places do not crowd out the others."""
        chances = actions.faults(self.world)
        if not chances:
            return None
        kinds = list(dict.fromkeys(_fault_name(chance[0]) for chance in chances))
        kind = kinds[self.choices.pick(len(kinds), "fault kind")]
        alike = [chance for chance in chances if _fault_name(chance[0]) == kind]
        self.sometimes[kind] = self.sometimes.get(kind, 0) + 1
        return alike[self.choices.pick(len(alike), "fault place")]

    def _fairly(self) -> None:
        """The second phase, to the end."""
        world, pick = self.world, self.choices.pick
        if world.network.cut and self._heal():
            return
        ticks_end = world.ticks + self.scenario.schedule.ticks_max
        enabled, do = actions.enabled, self._do
        while world.ticks <= ticks_end:
            course = enabled(world)
            if is_over(world, course):
                self._end()
                return
            if do(course[pick(len(course), "action")]):
                return
        ticks_max = self.scenario.schedule.ticks_max
        world.monitors.violations.append(
            Violation("L1", f"{ticks_max} receiver ticks after the last fault requests have not ended")
        )

    def _heal(self) -> bool:
        """The network is whole again. A collective that keeps everything else waiting is ended first."""
        while ("heal",) not in (course := actions.enabled(self.world)):
            if self._do(course[self.choices.pick(len(course), "action")]):
                return True
        return self._do(("heal",))

    def _end(self) -> bool:
        violation = judge_end(self.world)
        if violation is not None:
            self.world.monitors.violations.append(violation)
        return True

    def _do(self, action: Action) -> bool:
        """One step; returns whether it broke a property."""
        world = self.world
        text = actions.describe_action(world, action) if self.steps is not None else ""
        picks = self.inner.picks = []
        self.count += 1
        try:
            actions.apply(world, action, self.inner)
        except Exception as error:
            raise RuntimeError(f"step {self.count}, {action}: {type(error).__name__}: {error}") from error
        if self.steps is not None:
            self.steps.append(Step(action, text, tuple(picks)))
        self._see(action, picks)
        return bool(world.monitors.violations)

    def _see(self, action: Action, picks: list[Any]) -> None:
        """Take note of what a step did."""
        world = self.world
        events = world.events
        self.log.add(action, picks, events)
        if self.report is not None:
            self.report.take(events)
        for event in events:
            kind = type(event)
            if kind is Granted:
                self._saw_grant(event)
            elif kind is Finished and event.state == State.FAILED and event.side == "receiver":
                self._saw_failure(event)
        refused = self._saw_refusal() if world.hostile else False
        for rank, receiver in enumerate(world.receivers):
            if receiver.waiting or self.waiting[rank][1]:
                self._saw_waiting(rank, receiver.waiting, refused)

    def _saw_failure(self, event: Finished) -> None:
        if any(tombstone.held for tombstone in self.world.receivers[event.receiver_rank].tombstones.values()):
            self.sometimes[QUARANTINE] = self.sometimes.get(QUARANTINE, 0) + 1

    def _saw_refusal(self) -> bool:
        """Whether the allocator refused something in this step."""
        before, self.refusals = self.refusals, self.world.refusals_left()
        return before != self.refusals

    def _saw_waiting(self, rank: int, waiting: tuple[int, ...], refused: bool) -> None:
        """Starved is who waits after a refusal, or still a tick later: what it freed itself comes back to it in one."""
        ticks, before = self.waiting[rank]
        if ticks == self.world.ticks:
            return
        if (waiting and refused) or any(room in before for room in waiting):
            self.sometimes[STARVATION] = self.sometimes.get(STARVATION, 0) + 1
        self.waiting[rank] = (self.world.ticks, waiting)

    def _saw_grant(self, event: Granted) -> None:
        key = (event.receiver_rank, event.room, event.epoch)
        blocks = sorted([ref[0] for ref in event.blocks])
        if event.seq:
            self.sometimes[RESUME] = self.sometimes.get(RESUME, 0) + 1
            if self.held.get(key) == blocks:
                self.sometimes[SAME_BLOCKS] = self.sometimes.get(SAME_BLOCKS, 0) + 1
        self.held[key] = blocks

    def _trace(self, violations: tuple[Violation, ...], digest: bytes, seed: int | None) -> Trace:
        header = TraceHeader(TRACE_VERSION, "simulate", msgspec.to_builtins(self.scenario), self.machine, seed)
        name, text = violations[0] if violations else ("", "")
        return Trace(header, tuple(self.steps or ()), TraceEnding(name, text, digest.hex()))


def _fault_name(kind: str) -> str:
    """The budget that an action spends."""
    return "abort" if kind == "sender_abort" else kind


# --- a batch --------------------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    """What some consecutive runs came to; they end with the first that violates something."""

    digests: bytes
    runs: int
    steps: int
    violated: bool
    sometimes: dict[str, int]


class _Job(NamedTuple):
    scenario: Scenario
    machine: str
    seed: int
    runs: int


def _run_chunk(job: _Job) -> _Chunk:
    rules = zoo.rules_for(job.scenario.variant.detector, job.scenario.variant.hazards)
    digests = bytearray()
    sometimes: dict[str, int] = {}
    steps = 0
    for index in range(job.runs):
        try:
            outcome = _Run(job.scenario, Seeded(job.seed + index), job.machine, rules, False, False).go(None)
        except Exception as error:
            raise RuntimeError(f"seed {job.seed + index}: {error}") from error
        digests += outcome.digest
        steps += outcome.steps
        _add(sometimes, outcome.sometimes)
        if outcome.violations:
            return _Chunk(bytes(digests), index + 1, steps, True, sometimes)
    return _Chunk(bytes(digests), job.runs, steps, False, sometimes)


def _add(totals: dict[str, int], counts: dict[str, int]) -> None:
    for name, count in counts.items():
        totals[name] = totals.get(name, 0) + count


def _jobs(scenario: Scenario, machine: str, seed: int, runs: int, jobs: int) -> Iterator[_Job]:
    """A batch in pieces, small enough that all processes have work and a bar moves."""
    size = max(1, min(CHUNK_RUNS_MAX, runs // (4 * jobs)))
    for first in range(0, runs, size):
        yield _Job(scenario, machine, seed + first, min(size, runs - first))


def no_clock() -> float:
    """A clock that stands still."""
    return 0.0


def simulate(
    scenario: Scenario,
    *,
    seed: int = 0,
    runs: int = 1000,
    jobs: int | None = None,
    machine: str = "transitions",
    progress: Progress | None = None,
    clock: Callable[[], float] = no_clock,
) -> Result:
    """Run seeds ``seed`` to ``seed + runs - 1``, or up to the first that violates something.

    ``jobs`` processes share the work (default: one for each core; a small batch gets by with one); the result does not
    depend on it. ``clock``, in seconds, is read for ``elapsed_s`` alone. Raises LocalError for numbers out of range,
    an unknown machine or variant, and RuntimeError, naming seed and step, if the code under test raises.
    """
    check_machine(machine)
    zoo.rules_for(scenario.variant.detector, scenario.variant.hazards)
    if runs < 1:
        raise LocalError(f"runs={runs}: expected at least 1")
    if not 0 <= seed <= SEED_MAX - runs:
        raise LocalError(f"seed={seed}: expected 0 to {SEED_MAX - runs}, with {runs} runs")
    if jobs is not None and jobs < 1:
        raise LocalError(f"jobs={jobs}: expected at least 1")
    started = clock()
    processes = min(jobs or os.cpu_count() or 1, max(1, runs // CHUNK_RUNS_MAX))
    digest = hashlib.blake2b(digest_size=16)
    done = steps = 0
    sometimes = dict.fromkeys(expected_sometimes(scenario), 0)
    violated = False
    pieces = list(_jobs(scenario, machine, seed, runs, processes))
    with closing(in_order(_run_chunk, pieces, processes)) as chunks:  # stops the workers, whatever happens
        for chunk in chunks:
            digest.update(chunk.digests)
            done += chunk.runs
            steps += chunk.steps
            _add(sometimes, chunk.sometimes)
            if progress is not None:
                progress(done, runs)
            if chunk.violated:
                violated = True
                break
    last = run_once(
        scenario, Seeded(seed + done - 1), machine=machine, record=violated, report=True, seed=seed + done - 1
    )
    missed = tuple(name for name in expected_sometimes(scenario) if not sometimes[name])
    result = Result(
        verdict="violated" if violated else ("unknown" if missed else "holds"),
        coverage="sampled",
        transitions=steps,
        runs=done,
        seed=seed,
        digest=digest.hexdigest(),
        violations=_found(last),
        requests=last.requests,
        bounds={"runs": runs, "ticks_max": scenario.schedule.ticks_max, "machine": machine},
        sometimes=sometimes,
        missed=() if violated else missed,
    )
    return replace(result, elapsed_s=clock() - started)


def _found(outcome: RunOutcome) -> tuple[Found, ...]:
    """Every property that the last step broke, each with the same steps and an ending of its own."""
    if outcome.trace is None:
        return ()
    header, steps, ending, _ = outcome.trace
    return tuple(
        Found(name, len(steps), text, Trace(header, steps, TraceEnding(name, text, ending.digest)))
        for name, text in outcome.violations
    )
