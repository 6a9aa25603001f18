"""A second run for a page: another version on the same choices, step beside step.

The steps are taken as by :mod:`sim.engines.guided`: one that this version cannot take is skipped, and after the last
everything that can still happen does, in turn and without faults. Each step of the first run has the step of the same
number here, be it skipped, so that the two can be shown side by side.
"""

from __future__ import annotations

from fsm.allocators import Choices
from fsm.rules import Rules
from fsm.trace import Trace
from sim.engines.guided import GuidedRun, guided_steps, version_named
from sim.engines.replay import scenario_of
from sim.explorer.page import Mark, Run, Step
from sim.explorer.record import Recorder, lanes_of, pools_of, requests_of
from sim.explorer.runs import Facts, fault_mark, machine_name, resume_marks
from sim.world import Action, World

EXTRA_MAX = 400
"""So many steps beyond those of the first run are kept; a run that never ends has no last one."""


class _Recorded(GuidedRun):
    """A guided run that is told step by step. ``first`` are the steps of the first run, step 0 included."""

    def __init__(self, world: World, broken: str, first: tuple[Step, ...]) -> None:
        super().__init__(world, broken)
        self._first = first
        self._recorder = Recorder(world)
        self.steps = [self._recorder.first()]
        self.marks: list[Mark] = resume_marks(0, world.events)
        self.left_out = 0

    def skip(self, number: int) -> None:
        """A step that cannot be taken here changes nothing."""
        self._pass_by(f"{self._first[number].text}: not possible here")

    def apply(self, action: Action, choices: Choices) -> None:
        """Take a step, and tell it."""
        number = len(self.steps)
        known = len(self.world.monitors.violations)
        step = self._recorder.step(number, action, choices)
        if number >= len(self._first) + EXTRA_MAX:
            self.left_out += 1
            return
        if number >= len(self._first):
            step = _marked(step, extra=True)
        self.steps.append(step)
        self.marks += [*fault_mark(step), *resume_marks(number, self.world.events)]
        for violation in self.world.monitors.violations[known:]:
            self.marks.append(Mark("violation", number, violation.text, violation.property))

    def fill_up(self) -> None:
        """The steps of the first run that come after the end of this one."""
        while len(self.steps) < len(self._first):
            self._pass_by(f"{self._first[len(self.steps)].text}: this run has ended")

    def _pass_by(self, text: str) -> None:
        number = len(self.steps)
        of = self._first[number]
        self.steps.append(Step(number, of.action, text, float(self.world.now), of.fault, skipped=True))


def _marked(step: Step, *, extra: bool) -> Step:
    return Step(**{**{name: getattr(step, name) for name in step.__struct_fields__}, "extra": extra})


def run_versus(
    trace: Trace, first: Run, version: str | Rules, name: str, *, command: str = "", facts: Facts = ()
) -> Run:
    """The run of another version on the choices of a trace, whose own run is ``first``. Raises LocalError for a version
    that is none."""
    rules = version_named(version) if isinstance(version, str) else version
    world = World(
        scenario_of(trace.header), rules, flat=True, notes=True, arrive_any_time=trace.header.engine == "check"
    )
    run = _Recorded(world, trace.ending.property, first.steps)
    done = run.go(guided_steps((*trace.steps, *trace.ending.endless)))
    known = [mark.property for mark in run.marks if mark.kind == "violation"]
    for violation in done.violations:
        if violation.property not in known:
            run.marks.append(Mark("violation", len(run.steps) - 1, violation.text, violation.property))
    run.fill_up()
    beyond = len(run.steps) - len(first.steps) + run.left_out
    shown = f", of which the first {EXTRA_MAX} are shown" if run.left_out else ""
    told = [
        ("choices", f"those of {first.name}; {len(done.skipped)} of {len(first.steps) - 1} steps were not possible"),
        ("beyond them", f"{beyond} steps, fairly and without faults{shown}"),
        ("outcome", str(done)),
        *facts,
    ]  # fmt: skip
    return Run(
        name, "guided", "violated" if done.violations else "holds", command, tuple(told), lanes_of(world),
        pools_of(world), requests_of(world), tuple(run.steps), tuple(run.marks), machine_name(rules.table),
    )  # fmt: skip
