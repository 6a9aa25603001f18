"""Exhaustive checking: breadth first over canonical states, so that the first counterexample is a shortest one.

Every action of the world, every fault that a budget still pays for and every answer of the allocator is tried in every
state, on the very objects that production runs. The answer is ``exhausted`` only if the search came to its end.

Liveness is judged on the finished graph. A state is *over* when all requests have ended and nothing is under way.
Every run in which the world's own course is fair must get to one (:mod:`sim.engines.check_live`). If one does not, L1
is broken (or L2, if all requests have ended and only something of theirs is left), and the trace says what goes on for
ever. A deadline is a way out only after something was disturbed; before that, its firing is itself a violation.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from fsm.invariants import Violation
from fsm.trace import TRACE_VERSION, Pick, Step, Trace, TraceEnding, TraceHeader
from sim import actions, zoo
from sim.choices import Scripted
from sim.engines.check_live import CourseEdges, Endless, Judgement, group_of, in_words, lost
from sim.engines.result import Found, Result
from sim.report import Report
from sim.scenario import Scenario
from sim.state import Key, StateSpace
from sim.world import Action, World

Progress = Callable[[int, int, int], None]
"""Told now and then: states found, depth, states of this depth still to expand."""

STATES_MAX = 5_000_000
"""The default bound."""

_REPORT_EVERY = 2_000


def no_clock() -> float:
    """A clock that stands still."""
    return 0.0


@dataclass
class _Graph:
    """What the search has found. Edges are kept only where no fault is in them."""

    index: dict[Key, int] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    parents: array[int] = field(default_factory=lambda: array("i"))
    how: list[tuple[Action, tuple[Pick, ...]]] = field(default_factory=list)
    edges: CourseEdges = field(default_factory=CourseEdges)
    over: list[int] = field(default_factory=list)
    transitions: int = 0

    def add(self, key: Key, parent: int, action: Action, picks: tuple[Pick, ...]) -> tuple[int, bool]:
        """The number of a state, and whether it is new."""
        number = self.index.setdefault(key, len(self.keys))
        if number < len(self.keys):
            return number, False
        self.keys.append(key)
        self.parents.append(parent)
        self.how.append((action, picks))
        return number, True

    def path(self, number: int) -> list[int]:
        """The states on the shortest way from the start to a state, the start left out."""
        way = []
        while number > 0:
            way.append(number)
            number = self.parents[number]
        return way[::-1]


@dataclass
class _Stop:
    """Why a search ended: a violation (in the action ``last``, or in state ``number`` as such), a bound, or its end.
    ``complete``: every state was expanded; ``endless``: what then goes on for ever."""

    violation: Violation | None = None
    number: int = 0
    last: tuple[Action, tuple[Pick, ...]] | None = None
    bound: str = ""
    complete: bool = False
    endless: Endless | None = None


def new_world(scenario: Scenario, *, notes: bool = False) -> World:
    """The world that check explores, with the scenario's variant in force."""
    rules = zoo.rules_for(scenario.variant.detector, scenario.variant.hazards)
    return World(scenario, rules, flat=True, notes=notes, arrive_any_time=True)


def check(
    scenario: Scenario,
    *,
    states_max: int | None = None,
    time_max_s: float | None = None,
    only: Collection[str] | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = no_clock,
) -> Result:
    """Explore every state of a scenario.

    ``only`` names the properties whose violation ends the search (default: all of them). ``time_max_s`` needs a
    ``clock`` (in seconds), since nothing in here reads one by itself.
    """
    started = clock()
    states_max = states_max or STATES_MAX
    search = _Search(scenario, only, states_max, started + time_max_s if time_max_s else None, progress, clock)
    stop = search.run()
    found = search.found(stop) if stop.violation is not None else None
    bounds: dict[str, Any] = {"states_max": states_max}
    if time_max_s:
        bounds["time_max_s"] = time_max_s
    if stop.bound:
        bounds["ran_out"] = stop.bound
    graph = search.graph
    verdict = "violated" if found else ("unknown" if stop.bound else "holds")
    trace = found.trace if found else search.witness()
    return Result(
        verdict=verdict,
        coverage="exhausted" if stop.complete else "bounded",
        states=len(graph.keys),
        transitions=graph.transitions,
        depth=search.depth,
        digest=trace.ending.digest,
        violations=(found,) if found else (),
        requests=search.requests(trace),
        bounds=bounds,
        elapsed_s=clock() - started,
    )


class _Kinds:
    """Block -> what tells it from other free blocks: its record in the state before the action, and its content now.

    Most actions never ask, so the records are made at the first question.
    """

    def __init__(self, space: StateSpace, world: World, key: Key, rank: int) -> None:
        self._space, self._world, self._key, self._rank = space, world, key, rank
        self._known: list[Hashable] | None = None

    def __call__(self, block: int) -> Hashable:
        if self._known is None:
            self._known = self._space.kinds(self._key, self._rank)
        memory = self._world.memories[self._rank]
        generation = self._world.receivers[self._rank].ledger.record(block).generation
        return (self._known[block], memory.cells[block], memory.headers[block], generation)


class _Search:
    def __init__(
        self,
        scenario: Scenario,
        only: Collection[str] | None,
        states_max: int,
        deadline: float | None,
        progress: Progress | None,
        clock: Callable[[], float],
    ) -> None:
        self.scenario = scenario
        self.only = only
        self.states_max = states_max
        self.deadline = deadline
        self.progress = progress
        self.clock = clock
        self.world = new_world(scenario)
        self.space = StateSpace(self.world)
        self.graph = _Graph()
        self.depth = 0
        self.script = Scripted()

    def run(self) -> _Stop:
        """Search level by level."""
        first = self.space.save()
        self.space.remember()
        self.space.dirty()
        self.graph.add(first, -1, (), ())
        broken = self._broken(self.world.monitors.violations)
        if broken:
            return _Stop(broken, 0)
        level, end = 0, 1
        while level < end:
            for number in range(level, end):
                if number % _REPORT_EVERY == 0:
                    if self.progress is not None:
                        self.progress(len(self.graph.keys), self.depth, end - number)
                    if self.deadline is not None and self.clock() > self.deadline:
                        return _Stop(bound=f"time, after {len(self.graph.keys)} states to depth {self.depth}")
                stop = self._expand(number)
                if stop is not None:
                    return stop
                if len(self.graph.keys) > self.states_max:
                    return _Stop(bound=f"states_max, after {len(self.graph.keys)} states to depth {self.depth}")
            level, end = end, len(self.graph.keys)
            self.depth += level < end
        return self._judge_liveness()

    def _broken(self, violations: list[Violation]) -> Violation | None:
        for violation in violations:
            if self.only is None or violation.property in self.only:
                return violation
        return None

    def _expand(self, number: int) -> _Stop | None:
        world, space, graph = self.world, self.space, self.graph
        key = graph.keys[number]
        space.load(key)
        course = actions.enabled(world)
        if not course or world.done():
            return self._end_of_run(number)
        self._use_kinds(key)
        chances = actions.faults(world)
        for position, action in enumerate(course + chances):
            self.script.prefix = []
            more = True
            while more:
                self.script.restart()
                space.load(key)
                space.before(action)
                actions.apply(world, action, self.script)
                space.after(action)
                graph.transitions += 1
                violation = self._broken(world.monitors.violations)
                if violation is not None:
                    return _Stop(violation, number, (action, tuple(self.script.picks)))
                reached, _ = graph.add(space.save(), number, action, tuple(self.script.picks))
                if position < len(course) and reached != number:
                    graph.edges.add(number, reached, action)
                more = self.script.advance()
        return None

    def _use_kinds(self, key: Key) -> None:
        """Of free blocks that nothing tells apart, the adversary needs to try one."""
        if not self.space.symmetric:
            return
        for rank, receiver in enumerate(self.world.receivers):
            receiver.block_kind = _Kinds(self.space, self.world, key, rank)

    def _end_of_run(self, number: int) -> _Stop | None:
        """A state with nothing left to do: over, or stuck."""
        world = self.world
        if world.done():
            left = world.left_behind()
            self.graph.over.append(number)
            violation = Violation("L2", f"all requests have ended, and {left}") if left else None
        elif world.all_ended():
            violation = Violation("L2", "all requests have ended, and what is left will never be cleared")
        else:
            violation = Violation("L1", "nothing will ever happen again, and requests have not ended")
        if violation is not None and self._broken([violation]):
            return _Stop(violation, number)
        return None

    def _judge_liveness(self) -> _Stop:
        """Whether every fair run gets to a state that is over."""
        graph = self.graph
        judgement = Judgement(len(graph.keys), graph.edges, graph.over)
        for number, hopeless in judgement.suspects():
            self.space.load(graph.keys[number])
            violation = lost(self.world.all_ended(), hopeless)
            if self._broken([violation]):
                return _Stop(violation, number, complete=True, endless=judgement.endless(number))
        return _Stop(complete=True)

    # --- traces ---------------------------------------------------------------------------------------

    def found(self, stop: _Stop) -> Found:
        """The violation with a trace that leads to it."""
        if stop.violation is None:
            raise ValueError("a search that found nothing has no trace")
        numbers = self.graph.path(stop.number)
        steps, world = self._concrete(numbers, stop.last)
        ending = TraceEnding(stop.violation.property, stop.violation.text, trace_digest(steps))
        if stop.last is not None:  # the words of the run itself: its block numbers are the trace's
            for violation in world.monitors.violations:
                if violation.property == stop.violation.property:
                    ending = TraceEnding(violation.property, violation.text, ending.digest)
        if stop.endless is not None:
            going_on = self._going_on(steps, stop.endless)
            text = f"{ending.text}; {in_words(going_on, stop.endless.turn)}"
            ending = TraceEnding(ending.property, text, ending.digest, tuple(going_on), stop.endless.turn)
        return Found(ending.property, len(steps), ending.text, Trace(self._header(), tuple(steps), ending))

    def witness(self) -> Trace:
        """A shortest run that is over (of a search that ended before: to the last state it found)."""
        last = self.graph.over[0] if self.graph.over else len(self.graph.keys) - 1
        steps, _ = self._concrete(self.graph.path(last), None)
        return Trace(self._header(), tuple(steps), TraceEnding(digest=trace_digest(steps)))

    def _header(self) -> TraceHeader:
        return TraceHeader(TRACE_VERSION, "check", msgspec.to_builtins(self.scenario))

    def _concrete(
        self, numbers: list[int], last: tuple[Action, tuple[Pick, ...]] | None
    ) -> tuple[list[Step], World]:
        """Run a path of canonical states in a world that is not renumbered after each step.

        A step of the path says what was done in terms of the renumbered state. Here, among all things that can be done,
        the one is taken that leads to the same canonical state.
        """
        world = new_world(self.scenario)
        steps: list[Step] = []
        for number in numbers:
            alike = _alike(world, self.graph.how[number][0])
            step = self._match(world, steps, alike, partial(self._is_at, self.graph.keys[number]))
            steps.append(step)
            world = self._rerun(steps)
        if last is not None:
            properties = self._properties_after(numbers, last)
            alike = _alike(world, last[0])
            step = self._match(
                world, steps, alike, lambda w: [v.property for v in w.monitors.violations] == properties
            )
            steps.append(step)
            world = self._rerun(steps)
        return steps, world

    def _going_on(self, before: list[Step], endless: Endless) -> list[Step]:
        """What goes on for ever, once round, in the world in which the trace has ended."""
        steps, world = list(before), self._rerun(before)
        for group, number in endless.steps:
            fits = partial(self._is_at, self.graph.keys[number])
            alike = [action for action in actions.enabled(world) if group_of(action) == group]
            text, script = actions.describe_action(world, alike[0]), Scripted()
            if len(alike) == 1:  # as a rule there is one way only, and no need to begin anew
                actions.apply(world, alike[0], script)
            if len(alike) == 1 and fits(world):
                steps.append(Step(alike[0], text, tuple(script.picks)))
            else:
                steps.append(self._match(self._rerun(steps), steps, alike, fits))
                world = self._rerun(steps)
        return steps[len(before) :]

    def _properties_after(self, numbers: list[int], last: tuple[Action, tuple[Pick, ...]]) -> list[str]:
        key = self.graph.keys[numbers[-1] if numbers else 0]
        self.space.load(key)
        self._use_kinds(key)
        self.script.prefix = [pick.chosen for pick in last[1]]
        self.script.restart()
        self.space.before(last[0])
        actions.apply(self.world, last[0], self.script)
        self.space.after(last[0])
        self.space.dirty()
        return [violation.property for violation in self.world.monitors.violations]

    def _is_at(self, key: Key, world: World) -> bool:
        return self._key_of(world) == key

    def _key_of(self, world: World) -> Key:
        mine, self.space.world = self.space.world, world
        self.space.dirty()
        try:
            return self.space.save()
        finally:
            self.space.world = mine
            self.space.dirty()

    def _match(
        self, world: World, steps: list[Step], alike: list[Action], fits: Callable[[World], bool]
    ) -> Step:
        for candidate in alike:
            script = Scripted()
            more = True
            while more:
                script.restart()
                trial = self._rerun(steps)
                text = actions.describe_action(trial, candidate)
                trial.monitors.violations = []
                actions.apply(trial, candidate, script)
                if fits(trial):
                    return Step(candidate, text, tuple(script.picks))
                more = script.advance()
        raise AssertionError(f"step {len(steps) + 1}: no concrete step matches the canonical one")

    def _rerun(self, steps: list[Step]) -> World:
        world = new_world(self.scenario)
        for step in steps:
            script = Scripted()
            script.prefix = [pick.chosen for pick in step.picks]
            world.monitors.violations = []
            actions.apply(world, step.action, script)
        return world

    def requests(self, trace: Trace) -> tuple[Any, ...]:
        """What became of the requests in a run."""
        world = new_world(self.scenario)
        report = Report(world)
        report.take(world.events)
        for step in trace.steps:
            script = Scripted()
            script.prefix = [pick.chosen for pick in step.picks]
            actions.apply(world, step.action, script)
            report.take(world.events)
        return report.requests()


def _alike(world: World, action: Action) -> list[Action]:
    """The actions of a world of one kind, that very one first."""
    course = actions.enabled(world) + actions.faults(world)
    return sorted((other for other in course if other[0] == action[0]), key=lambda other: other != action)


def trace_digest(steps: list[Step]) -> str:
    """A digest of what was done, equal for equal runs."""
    digest = hashlib.blake2b(digest_size=16)
    for step in steps:
        digest.update(repr((step.action, step.text, [tuple(pick) for pick in step.picks])).encode())
    return digest.hexdigest()


__all__ = ["check", "new_world", "trace_digest"]
