"""The point of no return of a trace: the first step after which every continuation fails.

A state is *doomed* if from it no run without further faults gets to a state that is over (every request has ended and
nothing of theirs is left, as ``check`` has it) without breaking a property on the way. Which blocks are given, and
whether an allocator refuses, is part of a run: one good run by whatever choices is enough. A deadline that fires before
anything was disturbed breaks L1, so it is no way out; after that it is one, as in ``check``. A property that the trace
itself breaks on its way (a search for one property passes by others) is not counted: it has nothing to do with how this
trace ends.

Doom does not end as long as no fault strikes: a good run from a later state would be one from the earlier state too. A
fault may end it (an abort clears what was stuck), so what is looked for is the step from which on all states of the
trace are doomed. Between faults it is found by bisection. Each question is a search forward: a few runs at random find
a good ending at once where there are many, then a search through all that can follow decides; what one question finds
out serves the next. All of them together visit at most ``states_max`` states. Where that is not enough the answer is
that it was not found, and between which steps it must be: what was seen of it is certain, and nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fsm.trace import Trace
from sim import actions
from sim.choices import Recording, Replayed, Seeded
from sim.engines.ahead import Ahead, State, world_ahead
from sim.engines.replay import scenario_of

STATES_MAX = 5_000
"""The default bound: one to three seconds, where it is reached."""

WALKS = 6
WALK_STEPS = 300
"""Runs at random from a state, and the steps of each."""


STEPS_MIN, STEP_SIZES_MAX = 200, 100_000
"""Of a very long trace the last steps are looked at: as many as have so many blocks and requests together (the second
number), and not fewer than the first."""

Progress = Callable[[int], None]
"""Told now and then: states visited."""

_REPORT_EVERY = 100


class NoReturn(NamedTuple):
    """Where a trace could go well for the last time.

    ``step`` counts from 1; 0: no run goes well from the start; ``None``: there is none, or it was not found.
    ``coverage`` is ``exhausted`` where all that can follow was looked at, ``bounded`` where ``states`` reached the
    bound (the step is then ``first`` at the earliest, and ``last`` at the latest if that is not 0), and empty where
    nothing is broken.
    """

    step: int | None
    coverage: str
    states: int = 0
    first: int = 0
    last: int = 0
    states_max: int = STATES_MAX
    steps: int = 0
    """So many steps, the last ones, were looked at; 0: all."""

    @property
    def text(self) -> str:
        """The answer in words; empty where nothing is broken."""
        if not self.coverage:
            return ""
        if self.step is None and self.coverage == "exhausted":
            return "there is none: at the end of the trace a run could still go well"
        if self.step is None:
            within = f"not found within {self.states_max:,} states"
            within += f" and the last {self.steps:,} steps" if self.steps else ""
            latest = f", step {self.last} at the latest" if self.last else ""
            return f"{within}; step {self.first} at the earliest{latest}"
        if self.step == 0:
            return "before the first step: no run without faults goes well from the start"
        return f"step {self.step}: before it a run could still go well, after it every continuation fails"


class OutOfStates(Exception):
    """The bound was reached."""


class Doom:
    """Tells doomed states from others, and remembers."""

    def __init__(self, ahead: Ahead, passed: Sequence[str], states_max: int, progress: Progress | None = None) -> None:
        self.ahead, self.passed, self.states_max, self.progress = ahead, passed, states_max, progress
        self.states = 0
        self._doomed: dict[State, bool] = {}
        self._seen: dict[State, None] = {}

    def is_doomed(self, state: State) -> bool:
        """Whether every run from here fails. Raises OutOfStates."""
        known = self._doomed.get(state)
        if known is None:
            went_well = any(self._walk(state, Recording(Seeded(seed))) for seed in range(WALKS))
            known = not went_well and self._all_fail(state)
        return known

    def _count(self, state: State) -> None:
        """A state was met: a new one is counted. Raises OutOfStates where there would be too many."""
        if state not in self._seen:
            if self.states >= self.states_max:
                raise OutOfStates
            self._seen[state] = None
            self.states += 1
            if self.progress is not None and self.states % _REPORT_EVERY == 0:
                self.progress(self.states)

    def _fails(self, broken: tuple[str, ...]) -> bool:
        return any(name not in self.passed for name in broken)

    def _walk(self, state: State, choices: Recording) -> bool:
        """A run at random: whether it went well."""
        way: list[State] = []
        for _ in range(WALK_STEPS):
            self._count(state)
            way.append(state)
            known = self._doomed.get(state)
            if known is None:
                course = self.ahead.course(state)
                if course:
                    action = course[choices.pick(len(course), "action")]
                    broken, state = self.ahead.take(state, action, choices)
                    if self._fails(broken):
                        return False
                    continue
                known = not self.ahead.ended_well(state)
                self._doomed[state] = known
            if not known:
                self._doomed.update(dict.fromkeys(way, False))
            return not known
        return False

    def _all_fail(self, start: State) -> bool:
        """Look through all that can follow, depth first, up to the first good ending."""
        before: dict[State, State | None] = {start: None}
        stack = [start]
        while stack:
            state = stack.pop()
            self._count(state)
            course = self.ahead.course(state)
            if not course and self.ahead.ended_well(state):
                return self._goes_well(state, before)
            found = []
            for move in self.ahead.moves(state, course):
                known = self._doomed.get(move.reached)
                if self._fails(move.broken) or known or move.reached in before:
                    continue
                before[move.reached] = state
                if known is False:
                    return self._goes_well(move.reached, before)
                found.append(move.reached)
            stack += reversed(found)
        self._doomed.update(dict.fromkeys(before, True))
        return True

    def _goes_well(self, state: State | None, before: dict[State, State | None]) -> bool:
        while state is not None:
            self._doomed[state] = False
            state = before[state]
        return False


def no_return(trace: Trace, *, states_max: int = STATES_MAX, progress: Progress | None = None) -> NoReturn:
    """The point of no return of a trace that fits (see :func:`sim.engines.replay.replay`) and breaks a property."""
    if not trace.ending.property:
        return NoReturn(None, "")
    ahead = Ahead(trace.header, scenario_of(trace.header))
    scenario = ahead.scenario
    size = sum(scenario.pool_blocks(rank) for rank in range(scenario.ranks.receivers)) + len(ahead.world.requests)
    steps_max = max(STEPS_MIN, STEP_SIZES_MAX // size)
    states, faults, passed = _course_of(ahead, trace, steps_max)
    doom = Doom(ahead, passed, states_max, progress)
    search = _Bisection(doom, states)
    try:
        if not search.lost(len(trace.steps)):
            return NoReturn(None, "exhausted", doom.states, states_max=states_max)
        step = search.find(faults)
    except OutOfStates:
        last = search.failed if search.failed <= len(trace.steps) else 0
        steps = steps_max if steps_max < len(trace.steps) else 0
        return NoReturn(None, "bounded", doom.states, search.good + 1, last, states_max, steps)
    return NoReturn(step, "exhausted", doom.states, step, step, states_max)


def _course_of(ahead: Ahead, trace: Trace, steps_max: int) -> tuple[list[State | None], list[int], list[str]]:
    """The state before each of the last steps, and after the very last one if that step as such broke nothing; the
    steps that are faults; the properties that were broken before the last step."""
    world = world_ahead(trace.header, ahead.scenario)
    states: list[State | None] = []
    faults, passed = [], []
    for number, step in enumerate(trace.steps, start=1):
        states.append(ahead.state_of(world) if number > len(trace.steps) - steps_max else None)
        if step.action not in actions.enabled(world):
            faults.append(number)
        passed = [violation.property for violation in world.monitors.violations]
        actions.apply(world, step.action, Replayed(step.picks))
    if trace.ending.property not in [violation.property for violation in world.monitors.violations]:
        states.append(ahead.state_of(world))
    return states, faults, passed


class _Bisection:
    """Looks for the first of the doomed states that a trace ends with. ``good``: the last step after which something
    could still go well, as far as is known; ``failed``: the first after which all was lost."""

    def __init__(self, doom: Doom, states: list[State | None]) -> None:
        self._doom, self._states = doom, states
        self.good, self.failed = -1, len(states)

    def find(self, faults: list[int]) -> int:
        """The step; ``faults`` are the steps that are faults. Stretches without them are looked at from the end on, in
        longer and longer strides: little can follow a late state, so what is found out there costs little."""
        for start in reversed([0, *faults]):
            size = 1
            while self.failed > start and self.lost(max(start, self.failed - size)):
                size *= 2
            if self.failed > start or not start or not self.lost(start - 1):
                break
        while self.failed - self.good > 1:
            self.lost((self.good + self.failed) // 2)
        return self.failed

    def lost(self, number: int) -> bool:
        """Whether the state after step ``number`` is doomed; narrows down where the first one is."""
        if number >= len(self._states):
            return True
        state = self._states[number]
        if state is None:
            raise OutOfStates
        if self._doom.is_doomed(state):
            self.failed = min(self.failed, number)
            return True
        self.good = max(self.good, number)
        return False


__all__ = ["STATES_MAX", "Doom", "NoReturn", "OutOfStates", "no_return"]
