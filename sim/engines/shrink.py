"""A shorter run that breaks the same property.

Delta debugging over the steps of a trace: pieces are left out, large ones first, and what is left is run leniently. A
step that cannot be done any more is skipped, an answer that no longer fits is cut to what does. The run counts if the
same property is broken, and then ends at the very step that breaks it. A run that is to show that something never ends
is completed first: after its steps everything else that can happen does happen, without faults, one thing after the
other, until nothing is left.

Requests and budgets that the run does not need go first, and answers become as small as they can at the end. What comes
out is a strict trace again, with a digest of its own. It is not the shortest there is: that is what ``check`` finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from fsm.errors import LocalError, ResumarkError
from fsm.invariants import LIVENESS, Violation
from fsm.trace import Step, Trace, TraceEnding
from sim import actions
from sim.choices import Scripted
from sim.engines.replay import replay, scenario_data, scenario_of, world_of
from sim.engines.simulate import RunLog, is_over, judge_end
from sim.scenario import Scenario
from sim.sometimes import fault_budgets
from sim.world import Action, World

Progress = Callable[[int, int], None]
"""Told now and then: steps that are left, runs tried."""

_ON_MESSAGES = ("duplicate", "delay", "drop", "poison", "heartbeat_loss")


class _Move(NamedTuple):
    """One step of a candidate: what to do, and the answers to give."""

    action: Action
    answers: tuple[int, ...]


def shrink(trace: Trace, progress: Progress | None = None) -> Trace:
    """A trace with as few steps as can be found. Raises LocalError if ``trace`` does not fit, or breaks nothing."""
    if not trace.ending.property:
        raise LocalError("this trace breaks no property, so there is nothing to keep while it is shortened")
    replay(trace, notes=False)
    return _Shrinker(trace, progress).best


class _Shrinker:
    def __init__(self, trace: Trace, progress: Progress | None) -> None:
        self.property = trace.ending.property
        self.progress = progress
        self.tried = 0
        self.best = trace
        self._fewer_requests()
        shorter = True
        while shorter:
            before = len(self.best.steps)
            self._fewer_steps()
            shorter = len(self.best.steps) < before
        self._fewer_faults()
        self._smaller_answers()
        self._unused_budgets()

    # --- what is tried ------------------------------------------------------------------------------

    def _fewer_requests(self) -> None:
        """Leave out requests one by one, from the last; the others keep their rooms."""
        single = scenario_of(self.best.header).expanded_requests()
        at = len(single) - 1
        while at >= 0 and len(single) > 1:
            fewer = single[:at] + single[at + 1 :]
            scenario = msgspec.structs.replace(scenario_of(self.best.header), requests=fewer)
            if self._keep(_moves(self.best.steps), scenario):
                single = fewer
            at -= 1

    def _fewer_steps(self) -> None:
        size = max(1, len(self.best.steps) // 2)
        while True:
            at = 0
            while at < len(self.best.steps):
                moves = _moves(self.best.steps)
                if not self._keep(moves[:at] + moves[at + size :]):
                    at += size
            if size == 1:
                return
            size //= 2

    def _fewer_faults(self) -> None:
        """A message that need not be lost, doubled, held back or spoilt is simply delivered."""
        for at in range(len(self.best.steps)):
            moves = _moves(self.best.steps)
            if at < len(moves) and moves[at].action[0] in _ON_MESSAGES:
                moves[at] = _Move(("deliver", moves[at].action[1]), ())
                self._keep(moves, shorter=False)

    def _smaller_answers(self) -> None:
        at = 0
        while at < len(self.best.steps):
            moves = _moves(self.best.steps)
            if any(moves[at].answers):
                moves[at] = _Move(moves[at].action, (0,) * len(moves[at].answers))
                self._keep(moves, shorter=False)
            at += 1

    def _unused_budgets(self) -> None:
        """Budgets that the run does not spend say nothing about it; without them the scenario is easier to read."""
        scenario = scenario_of(self.best.header)
        spent = [step.action[0] for step in self.best.steps]
        spent += ["abort"] if "sender_abort" in spent else []
        unused = {f"{name}_max": 0 for name, budget in fault_budgets(scenario).items() if budget and name not in spent}
        if unused:
            faults = msgspec.structs.replace(scenario.faults, **unused)
            self._keep(_moves(self.best.steps), msgspec.structs.replace(scenario, faults=faults), shorter=False)

    # --- how ------------------------------------------------------------------------------------------

    def _keep(self, moves: Sequence[_Move], scenario: Scenario | None = None, *, shorter: bool = True) -> bool:
        """Run a candidate, and make it the best so far if it shows the same in fewer steps (or in as many)."""
        self.tried += 1
        if self.progress is not None:
            self.progress(len(self.best.steps), self.tried)
        candidate = self._run(moves, scenario or scenario_of(self.best.header))
        limit = len(self.best.steps) - (shorter and scenario is None)
        if candidate is None or len(candidate.steps) > limit:
            return False
        self.best = candidate
        return True

    def _run(self, moves: Sequence[_Move], scenario: Scenario) -> Trace | None:
        """The trace that comes of a candidate, or ``None`` if it does not break the property."""
        try:
            world = world_of(self.best.header, scenario)
            run = _Lenient(world)
            for move in moves:
                if self._broken(world):
                    break
                run.step(move)
            violation = self._end(run)
        except (ResumarkError, AssertionError):
            return None
        if violation is None:
            return None
        header = msgspec.structs.replace(self.best.header, scenario=scenario_data(scenario))
        ending = TraceEnding(violation.property, violation.text, run.log.digest().hex())
        return Trace(header, tuple(run.steps), ending)

    def _end(self, run: _Lenient) -> Violation | None:
        """The violation that is looked for, at the end of a candidate."""
        if self.property in LIVENESS and not self._broken(run.world):
            return self._complete(run)
        run.world.audit()
        return self._broken(run.world)

    def _broken(self, world: World) -> Violation | None:
        return next((found for found in world.monitors.violations if found.property == self.property), None)

    def _complete(self, run: _Lenient) -> Violation | None:
        """Let everything else happen, without faults; judge what is left then."""
        world = run.world
        ticks_end = world.ticks + world.scenario.schedule.ticks_max
        while not self._broken(world):
            course = actions.enabled(world)
            if is_over(world, course):
                broken = judge_end(world)
                return broken if broken is not None and broken.property == self.property else None
            if len(run.steps) > len(self.best.steps) or world.ticks > ticks_end:
                return None
            run.step(_Move(("heal",) if ("heal",) in course else course[0], ()))
        return self._broken(world)


class _Lenient:
    """A run of what can be done of a list of moves."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.steps: list[Step] = []
        self.log = RunLog()
        self.log.add((), [], world.events)

    def step(self, move: _Move) -> None:
        """Do a move if it is possible here."""
        world, action = self.world, move.action
        if action not in actions.enabled(world) and action not in actions.faults(world):
            return
        text = actions.describe_action(world, action)
        script = Scripted(move.answers)
        actions.apply(world, action, script)
        self.steps.append(Step(action, text, tuple(script.picks)))
        self.log.add(action, script.picks, world.events)


def _moves(steps: Sequence[Step]) -> list[_Move]:
    return [_Move(step.action, tuple(pick.chosen for pick in step.picks)) for step in steps]
