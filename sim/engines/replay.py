"""A trace run again, strictly.

A trace fits if, at every step, its action is one that the world offers there, means the same in words, and asks for
just the choices that the trace holds; if the property that the trace names is broken at the last step, and not before
(a search for one property passes by others); and if the digest is the one that the trace ends with. Whatever does not
fit is an error that names the step: a run that is almost the same is never passed off as the same.

The digest covers every event of the run, so it also says that the code behind the steps still does what it did.

Where the trace says what goes on for ever after it, that is run too, and the state at the end of the cycle has to be
the one at its beginning (but for names: blocks under the adversary allocator, generations, the time of day).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from fsm.errors import LocalError
from fsm.invariants import LIVENESS, Violation
from fsm.trace import Step, Trace, TraceHeader
from sim import actions, zoo
from sim.choices import Replayed as ReplayedChoices
from sim.engines.result import RequestReport
from sim.engines.simulate import RunLog, check_machine, is_over, judge_end, without_notes
from sim.report import Report
from sim.scenario import Scenario, scenario_from_mapping
from sim.state import StateSpace
from sim.world import World


class ReplayedStep(NamedTuple):
    """One step as it went: its number from 1, the trace's line, and the events, notes included."""

    number: int
    step: Step
    events: list[Any]


@dataclass(frozen=True)
class Replayed:
    """A trace that fitted. ``violations`` are those at its end; ``digest`` is that of the run."""

    world: World
    steps: list[ReplayedStep]
    violations: tuple[Violation, ...]
    digest: str
    requests: tuple[RequestReport, ...]
    endless: tuple[ReplayedStep, ...] = ()
    """What goes on for ever after ``steps``, once round."""


def scenario_of(header: TraceHeader) -> Scenario:
    """The scenario that a trace was made with. Raises LocalError if it is none, or of a variant that does not exist."""
    return scenario_from_mapping(
        header.scenario, detectors=zoo.DETECTORS, hazards=zoo.HAZARDS, source="the trace's scenario"
    )


def world_of(header: TraceHeader, scenario: Scenario, *, notes: bool = False) -> World:
    """A fresh world such as the trace was made in. Raises LocalError."""
    check_machine(header.machine)
    rules = zoo.rules_for(scenario.variant.detector, scenario.variant.hazards)
    return World(
        scenario, rules, flat=header.machine == "flat", notes=notes, arrive_any_time=header.engine == "check"
    )


def replay(trace: Trace, *, notes: bool = True) -> Replayed:
    """Run a trace again. Raises LocalError, naming the step, where it does not fit."""
    world = world_of(trace.header, scenario_of(trace.header), notes=notes)
    log, report, steps = RunLog(), Report(world), []
    log.add((), [], without_notes(world.events))
    report.take(world.events)
    for done in _steps(world, trace):
        steps.append(done)
        log.add(done.step.action, list(done.step.picks), without_notes(done.events))
        report.take(done.events)
    world.audit()
    violations = _verdict(world, trace)
    digest = log.digest().hex()
    if trace.header.engine == "simulate" and trace.ending.digest not in ("", digest):
        raise LocalError(
            f"after step {len(steps)}: every step fits, but not what happened in them: digest {digest}, "
            f"the trace says {trace.ending.digest}"
        )
    requests = report.requests()
    return Replayed(world, steps, violations, digest, requests, _endless(world, trace))


def _endless(world: World, trace: Trace) -> tuple[ReplayedStep, ...]:
    """Run what goes on for ever, once round, and see that it does."""
    steps, turn, last = trace.ending.endless, trace.ending.turn, len(trace.steps)
    if not 0 <= turn <= len(steps):
        raise LocalError(f"the ending: {turn} steps repeat, of {len(steps)} that follow the trace; expected no more")
    if not steps:
        return ()
    space, done, first = StateSpace(world), [], last + len(steps) - turn
    before = space.save()
    for number, step in enumerate(steps, start=last + 1):
        done.append(_do(world, number, step))
        space.dirty()
        if number == first:
            before = space.save()
    if turn and space.save() != before:
        end = last + len(steps)
        raise LocalError(
            f"steps {first + 1} to {end} do not repeat: the state after step {end} is not that after step {first}"
        )
    return tuple(done)


def _steps(world: World, trace: Trace) -> Iterator[ReplayedStep]:
    for number, step in enumerate(trace.steps, start=1):
        broken = _ending(world.monitors.violations, trace)
        if broken:
            raise LocalError(f"step {number - 1}: breaks {_names(broken)}, and the trace goes on")
        yield _do(world, number, step)


def _do(world: World, number: int, step: Step) -> ReplayedStep:
    """One step, strictly."""
    course = actions.enabled(world) + actions.faults(world)
    if step.action not in course:
        raise LocalError(f"step {number}: {step.text or step.action} cannot be done here{_nearest(course, step)}")
    text = actions.describe_action(world, step.action)
    if step.text and text != step.text:
        raise LocalError(f"step {number}: {step.action} is '{text}' here, the trace says '{step.text}'")
    choices = ReplayedChoices(step.picks)
    try:
        actions.apply(world, step.action, choices)
        choices.finish()
    except LocalError as error:
        raise LocalError(f"step {number}: {text}: {error}") from error
    return ReplayedStep(number, step, world.events)


def _ending(violations: list[Violation], trace: Trace) -> list[Violation]:
    """Those violations that should be the end of a trace."""
    wanted = trace.ending.property
    return [violation for violation in violations if not wanted or violation.property == wanted]


def _nearest(course: list[Any], step: Step) -> str:
    alike = [action for action in course if action[:1] == step.action[:1]]
    return f"; possible: {', '.join(map(str, alike or course))}" if course else "; nothing can happen any more"


def _names(violations: list[Violation]) -> str:
    return " and ".join(violation.property for violation in violations)


def _verdict(world: World, trace: Trace) -> tuple[Violation, ...]:
    """What is broken at the end, held against what the trace says is.

    That requests will never end can be seen in a world where nothing is left to do. Where something is, the trace's
    word is taken: it comes from an engine that knows where a run can get to.
    """
    wanted, last = trace.ending.property, len(trace.steps)
    violations = list(world.monitors.violations)
    over = is_over(world, actions.enabled(world))
    if not _ending(violations, trace):
        judged = judge_end(world) if over else None
        if wanted in LIVENESS and not over:
            judged = Violation(wanted, trace.ending.text)
        violations += [judged] if judged is not None else []
    broken = _ending(violations, trace)
    if wanted and not broken:
        found = f"{_names(violations)} is" if violations else "nothing is"
        raise LocalError(f"step {last}: the trace ends with {wanted} broken; here {found}")
    if not wanted and violations:
        raise LocalError(f"step {last}: the trace ends with nothing broken; here {_names(violations)} is")
    return (*broken, *[violation for violation in violations if violation not in broken])


def scenario_data(scenario: Scenario) -> dict[str, Any]:
    """A scenario as a trace's header holds it."""
    data: dict[str, Any] = msgspec.to_builtins(scenario)
    return data
