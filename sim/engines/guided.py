"""A run that is guided by the steps of a trace, under any version: what a test file made from a trace calls.

The steps are those of another version's run, so they are taken leniently: one that cannot be done is skipped, and an
answer that is out of range is cut to the last one. After them no more faults happen, and everything else that can
happen does, each in its turn, until nothing is left or ``ticks_max`` receiver ticks have gone by. All of that is
decided by the arguments alone. Under the version of the trace every step applies, and the run is that of the trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsm.allocators import Choices
from fsm.errors import LocalError
from fsm.invariants import PROPERTIES, Violation
from fsm.rules import Rules
from sim import actions, zoo
from sim.choices import Scripted
from sim.engines.result import RequestReport
from sim.engines.simulate import is_over, judge_end
from sim.report import Report
from sim.scenario import Scenario, scenario_from_mapping
from sim.world import Action, World

GuidedStep = tuple[Action, Sequence[int]]
"""What to do, and the answers to what is asked meanwhile."""


@dataclass(frozen=True)
class Guided:
    """A guided run. ``skipped`` numbers, from 1, the steps that could not be done; ``ended`` says whether every request
    has ended and nothing is left."""

    violations: tuple[Violation, ...]
    ended: bool
    requests: tuple[RequestReport, ...]
    skipped: tuple[int, ...]
    steps: int

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the properties that were broken."""
        return tuple(violation.property for violation in self.violations)

    def __str__(self) -> str:
        """The properties that were broken, each in words and how; what became of the requests if none was."""
        if not self.violations:
            states = ", ".join(f"room {request.room} {request.state}" for request in self.requests)
            return f"no property is broken: {states}"
        return "; ".join(f"{name} ({PROPERTIES.get(name, '')}) is broken: {text}" for name, text in self.violations)


def version_named(names: str) -> Rules:
    """The rules of a version: names of the zoo joined by ``+``, one detector at most (``watermark`` if there is none)
    and any hazards. Raises LocalError for names that do not exist or do not go together."""
    parts = [name.strip() for name in names.split("+")]
    for name in parts:
        if name not in zoo.DETECTORS and name not in zoo.HAZARDS:
            known = ", ".join((*zoo.DETECTORS, *zoo.HAZARDS))
            raise LocalError(f"there is no version '{name}'; there are {known}")
    detectors = [name for name in parts if name in zoo.DETECTORS]
    if len(detectors) > 1:
        raise LocalError(f"'{names}' names {len(detectors)} detectors; expected one at most")
    return zoo.rules_for((detectors or ["watermark"])[0], [name for name in parts if name in zoo.HAZARDS])


def run_guided(
    scenario: Scenario | Mapping[str, Any],
    steps: Sequence[GuidedStep],
    version: str | Rules,
    *,
    broken: str = "",
    arrive_any_time: bool = False,
) -> Guided:
    """Run a scenario under a version, by the steps of a trace and then fairly to the end.

    ``version`` is named as for :func:`version_named`, or given as rules; what the scenario says of its variant does not
    count. ``broken`` names the property that the trace breaks: the run goes on past others until its steps are done.
    ``arrive_any_time`` is how ``check`` has requests arrive. Raises LocalError for a scenario or version that is none.
    """
    if not isinstance(scenario, Scenario):
        data = {**scenario, "variant": {}}
        scenario = scenario_from_mapping(data, source="the scenario")
    rules = version_named(version) if isinstance(version, str) else version
    return GuidedRun(World(scenario, rules, flat=True, arrive_any_time=arrive_any_time), broken).go(steps)


class GuidedRun:
    """A run in the making. Whoever wants to look on overrides :meth:`apply` and :meth:`skip`."""

    def __init__(self, world: World, broken: str) -> None:
        self.world, self.broken = world, broken
        self.report = Report(world)
        self.report.take(world.events)
        self.count = 0

    def go(self, steps: Sequence[GuidedStep]) -> Guided:
        """The steps, what comes after them, and the verdict."""
        world, skipped = self.world, []
        for number, (action, answers) in enumerate(steps, start=1):
            if self._found(self.broken):
                break
            action = tuple(action)
            if action in actions.enabled(world) or action in actions.faults(world):
                self._do(action, answers)
            else:
                skipped.append(number)
                self.skip(number)
        if not world.monitors.violations:
            self._fairly()
        world.audit()
        ended = world.done() and not world.left_behind()
        return Guided(tuple(world.monitors.violations), ended, self.report.requests(), tuple(skipped), self.count)

    def _found(self, property: str) -> bool:
        """Whether that property is broken (any, where none is named)."""
        return any(not property or found.property == property for found in self.world.monitors.violations)

    def skip(self, number: int) -> None:
        """Pass by a step that cannot be done here; they are numbered from 1."""

    def _do(self, action: Action, answers: Sequence[int] = ()) -> None:
        self.apply(action, Scripted(answers))
        self.report.take(self.world.events)
        self.count += 1

    def apply(self, action: Action, choices: Choices) -> None:
        """Let the world take a step."""
        actions.apply(self.world, action, choices)

    def _fairly(self) -> None:
        """Everything that can happen, each in its turn, without faults."""
        world = self.world
        ticks_max = world.scenario.schedule.ticks_max
        ticks_end = world.ticks + ticks_max
        while not world.monitors.violations:
            course = actions.enabled(world)
            if is_over(world, course):
                violation = judge_end(world)
                world.monitors.violations += [violation] if violation is not None else []
                return
            if world.ticks > ticks_end:
                text = f"{ticks_max} receiver ticks after the last step requests have not ended"
                world.monitors.violations.append(Violation("L1", text))
                return
            self._do(("heal",) if ("heal",) in course else course[self.count % len(course)])


def guided_steps(steps: Sequence[Any]) -> list[tuple[Action, tuple[int, ...]]]:
    """The steps of a trace in the form that :func:`run_guided` takes."""
    return [(step.action, tuple(pick.chosen for pick in step.picks)) for step in steps]


__all__ = ["Guided", "GuidedRun", "guided_steps", "run_guided", "version_named"]
