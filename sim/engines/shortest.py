"""The shortest run that ends in the state in which another run failed.

``shrink`` finds a shorter run that breaks the same property, anywhere. Here the way to one state is asked for: the one
before the last step of a trace, from where that step breaks the property. (Where no step as such breaks it, since
nothing more can happen or nothing that could still happens ends well, it is the state after the last step.)

Two states are the same here if receivers, senders, memory and network are, with all that is under way, what is still
to arrive, which sender's end is still to be proved, and who is inside a collective. Left out is what only tells of the
past: budgets that were spent, ticks counted, what checkers remember, whether anything was disturbed, and which request
had which epoch. All of these may differ on a shorter way; whether the violation is still there is then seen by doing
the last step, and not concluded. Names do not count: blocks under the adversary allocator, generations, the time of
day. What a process remembers of requests that have ended is part of it, and so counts.

Faults strike no more often than they did in the given trace, each kind by itself: that is part of the answer. The
search is ``check``'s, breadth first over canonical states, so that the first way found is a shortest one. Before it,
steps are left out of the trace as ``shrink`` does, as long as the run still ends in that state: then the search has a
shorter way to beat, and there is something to show where it does not come to its end.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from fsm.errors import LocalError
from fsm.invariants import LIVENESS, Violation
from fsm.trace import Pick, Step, Trace, TraceEnding
from sim import actions
from sim.choices import Scripted
from sim.engines.ahead import Ahead, State, world_ahead
from sim.engines.no_return import Doom, OutOfStates
from sim.engines.replay import replay, scenario_of, world_of
from sim.engines.simulate import RunLog, judge_end, no_clock
from sim.scenario import Scenario
from sim.sometimes import fault_budgets
from sim.world import Action, World

Progress = Callable[[int, int, int], None]
"""Told now and then: states found, depth, states of this depth still to expand."""

Trying = Callable[[int, int], None]
"""Told now and then, before the search: steps that are left, runs tried."""

STATES_MAX = 500_000
"""The default bound."""

DOOM_STATES_MAX = 20_000
"""So many states are looked at to see that a state is lost."""

TRIED_STEPS_MAX = 20_000
"""So many steps are run before the search, to see which can be left out: a few seconds at most."""

_REPORT_EVERY = 500

Answered = tuple[Action, tuple[int, ...]]
"""An action, and the answers to what it asks."""


class Shortest(NamedTuple):
    """The answer. ``trace`` ends in the same state as the given one, and breaks the same property there.

    ``coverage`` is ``exhausted`` if no run has fewer steps that spends no more ``faults`` than the given one did, and
    ``bounded`` if the search was cut off (``ran_out`` says by what): then no such run has fewer than ``steps_min``.
    """

    trace: Trace
    coverage: str
    steps_min: int
    states: int
    transitions: int
    depth: int
    faults: dict[str, int]
    ran_out: str = ""
    elapsed_s: float = 0.0


class _OutOfBounds(Exception):
    """States or time ran out."""


class _Target:
    """The state that a run has to end in, and what has to be wrong there."""

    def __init__(self, ahead: Ahead, trace: Trace) -> None:
        self.ahead = ahead
        self.property = trace.ending.property
        before, after = self._ends(_answered(trace.steps))
        self.passed = _broken(before if self.property in _broken(after) else after)
        """What else is broken on the way; a shorter one must break nothing more."""
        self.doom = Doom(ahead, self.passed, DOOM_STATES_MAX)
        self.by_step = self.property in _broken(after)
        """Whether the last step as such breaks the property."""
        self.last_kind = trace.steps[-1].action[0] if trace.steps else ""
        state = ahead.state_of(before if self.by_step else after)
        self.present = self.present_of(state)
        self.last_boot_id = ahead.load(state).last_boot_id

    def _ends(self, steps: Sequence[Answered]) -> tuple[World, World]:
        return self.run(steps[:-1]), self.run(steps)

    def run(self, steps: Sequence[Answered]) -> World:
        """The world after some steps that can be done."""
        world = world_ahead(self.ahead.header, self.ahead.scenario)
        for action, answers in steps:
            actions.apply(world, action, Scripted(answers))
        return world

    def _count(self) -> int:
        """Components that are present and not past: all but what checkers remember, and the rest."""
        return len(self.ahead.space.tables) - 2

    def present_of(self, state: State) -> tuple[Any, ...]:
        """What of a state is not past."""
        world = self.ahead.load(state)
        return (
            state[: self._count()], world.arrived, tuple(world.incarnations), world.dead_boots, tuple(world.entered),
            world.agreed, world.left,
        )  # fmt: skip

    def is_at(self, state: State) -> bool:
        """Whether a state is the one that is looked for."""
        return state[: self._count()] == self.present[0] and self.present_of(state) == self.present

    def out_of_reach(self, world: World) -> bool:
        """Whether nothing leads from here to the state any more: requests do not leave, and processes do not revive."""
        return world.arrived > self.present[1] or world.last_boot_id > self.last_boot_id

    def is_lost(self, state: State) -> bool:
        """Whether what is wrong in the end is wrong in a state like it. Raises OutOfStates."""
        if not self.ahead.course(state):
            violation = judge_end(self.ahead.load(state))
            return violation is not None and violation.property == self.property
        if not self.doom.is_doomed(state):
            return False
        return self.property == ("L2" if self.ahead.load(state).all_ended() else "L1")

    def allows(self, broken: Sequence[str]) -> bool:
        """Whether a way may break these properties before its last step."""
        return all(name in self.passed for name in broken)

    def shown_by(self, steps: Sequence[Answered]) -> bool:
        """Whether a run ends as it should."""
        if self.by_step:
            before, after = self._ends(steps)
            shows = self.property in _broken(after) and self.allows(_broken(before))
            return shows and self.is_at(self.ahead.state_of(before))
        world = self.run(steps)
        state = self.ahead.state_of(world)
        return self.allows(_broken(world)) and self.is_at(state) and self.is_lost(state)


def shortest(
    trace: Trace,
    *,
    states_max: int | None = None,
    time_max_s: float | None = None,
    progress: Progress | None = None,
    trying: Trying | None = None,
    clock: Callable[[], float] = no_clock,
) -> Shortest:
    """The shortest run to the state in which a trace ends, and to its violation there.

    ``time_max_s`` needs a ``clock`` in seconds. Raises LocalError if the trace does not fit or breaks nothing.
    """
    if not trace.ending.property:
        raise LocalError("this trace breaks no property, so there is no state to find a shorter way to")
    replay(trace, notes=False)
    started = clock()
    spent = _spent(trace)
    ahead = Ahead(trace.header, _within(scenario_of(trace.header), spent))
    target = _Target(ahead, trace)
    search = _Search(target, states_max or STATES_MAX, started + time_max_s if time_max_s else None, progress, clock)
    best, ran_out = _answered(trace.steps), ""
    try:
        if target.by_step or target.shown_by(best):
            best = _fewer(target, best, search.time_is_up, trying)
            best = search.run(len(best)) or best
        else:
            why = "the last step does not break it"
            if trace.ending.property in LIVENESS:
                why = "from the last state of this trace a run could still end well"
            raise LocalError(
                f"{trace.ending.property}: {why}, so there is no state to find a shorter way to; "
                "resumark shrink without --same-state looks for any shorter run"
            )
    except OutOfStates:
        ran_out = f"{DOOM_STATES_MAX:,} states, before it was known that the last state is lost"
    except _OutOfBounds as error:
        ran_out = str(error)
    return Shortest(
        trace=trace if len(best) == len(trace.steps) else _as_trace(trace, best),
        coverage="bounded" if ran_out else "exhausted",
        steps_min=search.steps_min if ran_out else len(best),
        states=len(search.states),
        transitions=search.transitions,
        depth=search.depth,
        faults={kind: count for kind, count in spent.items() if count},
        ran_out=ran_out,
        elapsed_s=clock() - started,
    )


def _spent(trace: Trace) -> dict[str, int]:
    """The faults of a trace by kind."""
    spent = dict.fromkeys(fault_budgets(scenario_of(trace.header)), 0)
    for step in trace.steps:
        kind = "abort" if step.action[0] == "sender_abort" else step.action[0]
        if kind in spent:
            spent[kind] += 1
    return spent


def _within(scenario: Scenario, spent: dict[str, int]) -> Scenario:
    """The scenario with budgets for just these faults."""
    faults = msgspec.structs.replace(scenario.faults, **{f"{kind}_max": count for kind, count in spent.items()})
    return msgspec.structs.replace(scenario, faults=faults)


def _answered(steps: Sequence[Step]) -> list[Answered]:
    return [(step.action, tuple(pick.chosen for pick in step.picks)) for step in steps]


def _broken(world: World) -> list[str]:
    return [violation.property for violation in world.monitors.violations]


# --- leaving out ----------------------------------------------------------------------------------------


def _fewer(
    target: _Target, steps: list[Answered], time_is_up: Callable[[], bool], trying: Trying | None
) -> list[Answered]:
    """Leave out pieces of a run, large ones first, as long as it ends in the same state."""
    steps = _without_loops(target, steps)
    trials, tried, size = 0, 0, max(1, len(steps) // 2)
    while True:
        at, shorter = 0, False
        while at < len(steps) and tried < TRIED_STEPS_MAX and not time_is_up():
            trials, tried = trials + 1, tried + len(steps)
            if trying is not None:
                trying(len(steps), trials)
            fewer = _possible(target, steps[:at] + steps[at + size :])
            if len(fewer) < len(steps) and target.shown_by(fewer):
                steps, shorter = fewer, True
            else:
                at += size
        if (size == 1 and not shorter) or tried >= TRIED_STEPS_MAX or time_is_up():
            return steps
        size = max(1, size // 2)


def _without_loops(target: _Target, steps: list[Answered]) -> list[Answered]:
    """The run without what led from a state back to it."""
    world, way = target.run(()), [target.ahead.first]
    for action, answers in steps[:-1]:
        actions.apply(world, action, Scripted(answers))
        way.append(target.ahead.state_of(world))
    last = {state: number for number, state in enumerate(way)}
    fewer, at = [], 0
    while at < len(steps):
        at = last[way[at]]
        fewer.append(steps[at])
        at += 1
    fewer = _possible(target, fewer)
    return fewer if len(fewer) < len(steps) and target.shown_by(fewer) else steps


def _possible(target: _Target, steps: Sequence[Answered]) -> list[Answered]:
    """Those of some steps that can be done, one after the other, up to the first that breaks the property."""
    world, done = target.run(()), []
    for action, answers in steps:
        if target.property in _broken(world):
            break
        if action in actions.enabled(world) or action in actions.faults(world):
            actions.apply(world, action, Scripted(answers))
            done.append((action, answers))
    return done


# --- the search -----------------------------------------------------------------------------------------


class _Search:
    """Breadth first from the start, until the target is met or no shorter way is left."""

    def __init__(
        self, target: _Target, states_max: int, deadline: float | None, progress: Progress | None,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.target, self.ahead = target, target.ahead
        self.states_max, self.deadline, self.progress, self.clock = states_max, deadline, progress, clock
        self.states: list[State] = []
        self.index: dict[State, int] = {}
        self.parents: array[int] = array("i")
        self.how: list[tuple[Action, tuple[Pick, ...]]] = []
        self.transitions = 0
        self.depth = 0

    @property
    def steps_min(self) -> int:
        """No shorter run was left out: every state so far was looked at."""
        return self.depth + 1 + self.target.by_step

    def run(self, steps_known: int) -> list[Answered] | None:
        """A way of fewer steps than are known; ``None`` if there is none. Raises _OutOfBounds and OutOfStates."""
        if self._add(self.ahead.first, -1, ((), ())) and steps_known > self.target.by_step:
            return self._way(0)
        level, end = 0, 1
        while level < end and self.steps_min < steps_known:
            for number in range(level, end):
                self._look_up(number, end)
                reached = self._expand(number)
                if reached is not None:
                    return self._way(reached)
            level, end = end, len(self.states)
            self.depth += 1
        return None

    def _look_up(self, number: int, end: int) -> None:
        """Tell how far the search is, and see whether it may go on."""
        if len(self.states) > self.states_max:
            raise _OutOfBounds(f"states_max, at depth {self.depth}")
        if number % _REPORT_EVERY == 0:
            if self.progress is not None:
                self.progress(len(self.states), self.depth, end - number)
            if self.time_is_up():
                raise _OutOfBounds(f"time, at depth {self.depth}")

    def time_is_up(self) -> bool:
        """Whether the time that was given is over."""
        return self.deadline is not None and self.clock() > self.deadline

    def _expand(self, number: int) -> int | None:
        """Take every step from a state; the number of a state that is the target, if one is met."""
        state = self.states[number]
        world = self.ahead.load(state)
        if self.target.out_of_reach(world):
            return None
        course = self.ahead.course(state)
        if not course:
            return None
        for move in self.ahead.moves(state, course + actions.faults(world)):
            self.transitions += 1
            if self.target.allows(move.broken) and self._add(move.reached, number, (move.action, move.picks)):
                return len(self.states) - 1
        return None

    def _add(self, state: State, parent: int, how: tuple[Action, tuple[Pick, ...]]) -> bool:
        """Take note of a state; whether it is new, and the target."""
        if self.index.setdefault(state, len(self.states)) < len(self.states):
            return False
        self.states.append(state)
        self.parents.append(parent)
        self.how.append(how)
        if not self.target.is_at(state):
            return False
        return self.last_step(state) is not None if self.target.by_step else self.target.is_lost(state)

    def last_step(self, state: State) -> tuple[Action, tuple[Pick, ...]] | None:
        """A step of the same kind that breaks the property in a state; ``None`` if there is none."""
        world = self.ahead.load(state)
        course = [one for one in actions.enabled(world) + actions.faults(world) if one[0] == self.target.last_kind]
        for move in self.ahead.moves(state, course):
            if self.target.property in move.broken:
                return move.action, move.picks
        return None

    # --- from canonical states to a run -----------------------------------------------------------------

    def _way(self, number: int) -> list[Answered]:
        """The steps to a state, and the last one, in a world that is not renumbered."""
        numbers: list[int] = []
        while number > 0:
            numbers.append(number)
            number = self.parents[number]
        steps: list[Answered] = []
        for number in reversed(numbers):
            self._go_on(steps, self.how[number], partial(self._is_at, number))
        if self.target.by_step:
            last = self.last_step(self.states[numbers[0] if numbers else 0])
            assert last is not None
            self._go_on(steps, last, lambda world: self.target.property in _broken(world))
        return steps

    def _is_at(self, number: int, world: World) -> bool:
        return self.ahead.state_of(world) == self.states[number]

    def _go_on(
        self, steps: list[Answered], how: tuple[Action, tuple[Pick, ...]], fits: Callable[[World], bool]
    ) -> None:
        """Add the step that does in a run what was done in the renumbered state."""
        action, picks = how
        first = (action, tuple(pick.chosen for pick in picks))
        for candidate in self._candidates(steps, first):
            if fits(self.target.run([*steps, candidate])):
                steps.append(candidate)
                return
        raise AssertionError(f"step {len(steps) + 1}: no concrete step matches the canonical {action}")

    def _candidates(self, steps: list[Answered], first: Answered) -> Iterator[Answered]:
        """Steps of that kind: the very one first if it can be done, then all others."""
        world = self.target.run(steps)
        course = [one for one in actions.enabled(world) + actions.faults(world) if one[0] == first[0][0]]
        if first[0] in course:
            yield first
        for action in course:
            script, more = Scripted(), True
            while more:
                script.restart()
                actions.apply(self.target.run(steps), action, script)
                yield action, tuple(pick.chosen for pick in script.picks)
                more = script.advance()


def _as_trace(given: Trace, steps: Sequence[Answered]) -> Trace:
    """The run as a trace of the given scenario, in the words of the run itself."""
    world = world_of(given.header, scenario_of(given.header))
    log, done = RunLog(), []
    log.add((), [], world.events)
    for action, answers in steps:
        text, script = actions.describe_action(world, action), Scripted(answers)
        actions.apply(world, action, script)
        done.append(Step(action, text, tuple(script.picks)))
        log.add(action, script.picks, world.events)
    world.audit()
    violation = next((one for one in world.monitors.violations if one.property == given.ending.property), None)
    violation = violation or _judged(world, given.ending.property)
    trace = Trace(given.header, tuple(done), TraceEnding(violation.property, violation.text, log.digest().hex()))
    replay(trace, notes=False)
    return trace


def _judged(world: World, property: str) -> Violation:
    """What is wrong with a state that is lost."""
    judged = None if actions.enabled(world) else judge_end(world)
    return judged or Violation(property, "from here every continuation without further faults fails")


__all__ = ["STATES_MAX", "Shortest", "shortest"]
