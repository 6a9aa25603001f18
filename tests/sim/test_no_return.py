"""The point of no return is where it is said to be: held against a search that knows nothing of bisection, of what
processes remember or of random walks."""

from __future__ import annotations

from functools import cache
from itertools import product

import msgspec
import pytest

from fsm.trace import Trace
from sim import actions, zoo
from sim.choices import Scripted, Seeded
from sim.cli_view import FAULTS
from sim.engines.ahead import Ahead, world_ahead
from sim.engines.check import check
from sim.engines.no_return import NoReturn, _Bisection, no_return
from sim.engines.replay import scenario_of
from sim.engines.simulate import judge_end, run_once
from sim.render import trace_lines
from sim.scenario import Faults, Pool, Request, Scenario, Variant
from sim.world import World
from tests.sim.cli_kit import resumark


@cache
def found(variant: str, property: str) -> Trace:
    """The trace that the zoo shows."""
    asked = zoo.scenario_for(variant, property)
    return check(asked, only=(property,), states_max=200_000).violations[0].trace


class Forward:
    """Whether anything can still go well, from a world made anew for every step."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.scenario = scenario_of(trace.header)
        self.ahead = Ahead(trace.header, self.scenario)
        world = self.world([])
        self.passed: list[str] = []
        for step in trace.steps:
            self.passed = [violation.property for violation in world.monitors.violations]
            actions.apply(world, step.action, Scripted([pick.chosen for pick in step.picks]))

    def world(self, steps: list[tuple[object, list[int]]]) -> World:
        world = world_ahead(self.trace.header, self.scenario)
        for action, answers in steps:
            world.monitors.violations = []
            actions.apply(world, action, Scripted(answers))  # type: ignore[arg-type]
        return world

    def goes_well(self, count: int) -> bool:
        """Whether some run without faults goes well after ``count`` steps of the trace."""
        first = [(step.action, [pick.chosen for pick in step.picks]) for step in self.trace.steps[:count]]
        seen, left = {self.ahead.state_of(self.world(first)): None}, [first]
        while left:
            steps = left.pop()
            world = self.world(steps)
            course = actions.enabled(world)
            if world.done():
                if judge_end(world) is None:
                    return True
                continue
            for action in course:
                script, more = Scripted(), True
                while more:
                    script.restart()
                    after = self.world(steps)
                    after.monitors.violations = []
                    actions.apply(after, action, script)
                    broken = [one.property for one in after.monitors.violations if one.property not in self.passed]
                    state = self.ahead.state_of(after)
                    if not broken and state not in seen:
                        seen[state] = None
                        left.append([*steps, (action, [pick.chosen for pick in script.picks])])
                    more = script.advance()
        return False


CASES = [
    ("flag", "L1", 0),
    ("free-then-alloc", "I3", 13),
    ("free-without-quiescence", "I1", 6),
    ("late-status", "I4", 6),
    ("no-grant-seq", "I6", 5),
    ("no-grant-seq", "I1", 7),
    ("max-progress", "I2", 0),
]


@pytest.mark.parametrize(("variant", "property", "step"), CASES)
def test_the_step_is_the_first_after_which_nothing_goes_well(variant: str, property: str, step: int) -> None:
    trace = found(variant, property)
    assert no_return(trace)[:2] == (step, "exhausted")
    forward = Forward(trace)
    assert not step or forward.goes_well(step - 1)
    assert step == len(trace.steps) or not forward.goes_well(step)
    assert not forward.goes_well(len(trace.steps) - 1) or step == len(trace.steps)


HOSTILE = Scenario(
    pool=Pool(blocks=2, block_tokens=2, grant_blocks_max=1, allocator="adversary", refusals_max=1),
    requests=(Request(tokens=4), Request(tokens=2, arrives_at_tick=4)),
    faults=Faults(rate=0.3, duplicate_max=1, abort_max=1),
)


def random_failure(variant: str, seed: int) -> Trace:
    """A random run that fails, among those from a seed on."""
    scenario = zoo.with_variant(HOSTILE, zoo.HAZARDS[variant])
    for number in range(seed, seed + 400):
        run = run_once(scenario, Seeded(number), record=True)
        if run.violations:
            assert run.trace is not None
            return run.trace
    raise AssertionError("no run fails")


@pytest.mark.parametrize(("variant", "seed"), [("free-without-quiescence", 50), ("no-grant-seq", 3)])
def test_random_runs_with_faults_and_late_arrivals(variant: str, seed: int) -> None:
    """A fault may save what was lost before it; the step is where the last stretch of doom begins."""
    trace = random_failure(variant, seed)
    point = no_return(trace)
    forward = Forward(trace)
    well = [number for number in range(len(trace.steps)) if forward.goes_well(number)]
    assert point.coverage == "exhausted"
    assert point.step == (well[-1] + 1 if well else 0)


def test_a_fault_may_save_a_run_and_another_one_doom_it() -> None:
    """A detector that asks once fails by a deadline. After a loss the deadline is a way out, until a copy comes."""
    scenario = Scenario(
        pool=Pool(blocks=2, block_tokens=2, grant_blocks_max=1),
        requests=(Request(tokens=6),),
        variant=Variant(detector="flag", hazards=("no-grant-seq",)),
        faults=Faults(rate=0.15, duplicate_max=1, drop_max=1),
    )
    trace = run_once(scenario, Seeded(510), record=True).trace
    assert trace is not None
    faults = {number: step.action[0] for number, step in enumerate(trace.steps, start=1) if step.action[0] in FAULTS}
    assert faults == {4: "drop", 6: "duplicate"}
    forward = Forward(trace)
    assert [number for number in range(len(trace.steps)) if forward.goes_well(number)] == [4, 5]
    assert no_return(trace).step == 6


class Table:
    """Doom that is written down: one truth for each state, which is a number here."""

    def __init__(self, doomed: tuple[bool, ...]) -> None:
        self.doomed = doomed

    def is_doomed(self, state: tuple[int]) -> bool:
        return self.doomed[state[0]]


@pytest.mark.parametrize("steps", range(1, 8))
def test_the_bisection_on_every_pattern_of_doom_and_faults(steps: int) -> None:
    """State by state all that there can be: doom ends by a fault only, and the last step fails."""
    for doomed in product((False, True), repeat=steps):
        ends = [number for number in range(1, steps) if doomed[number - 1] and not doomed[number]]
        for more in product((False, True), repeat=steps):
            faults = sorted({*ends, *(number for number, chosen in enumerate(more, start=1) if chosen)})
            search = _Bisection(Table(doomed), [(number,) for number in range(steps)])  # type: ignore[arg-type]
            well = [number for number in range(steps) if not doomed[number]]
            assert search.find(faults) == (well[-1] + 1 if well else 0), (doomed, faults)


def test_ticks_count_as_long_as_a_request_waits_for_its_tick() -> None:
    """What may follow depends on them then, so states that differ in them are two."""
    trace = run_once(HOSTILE, Seeded(1), record=True).trace
    assert trace is not None
    ahead = Ahead(trace.header, HOSTILE)
    world = world_ahead(trace.header, HOSTILE)
    before = ahead.state_of(world)
    world.ticks = 2
    assert ahead.state_of(world)[:-1] == before[:-1] and ahead.state_of(world) != before
    assert ahead.load(ahead.state_of(world)).ticks == 2
    world.arrived = len(world.arrivals)
    assert ahead.state_of(world)[-1] == 0
    any_time = msgspec.structs.replace(trace.header, engine="check")
    ahead, world = Ahead(any_time, HOSTILE), world_ahead(any_time, HOSTILE)
    world.ticks = 2
    assert ahead.state_of(world) == ahead.first


def test_a_bound_that_is_too_low_is_no_wrong_answer() -> None:
    trace = found("free-then-alloc", "I3")
    for states_max in range(1, 22):
        point = no_return(trace, states_max=states_max)
        assert point.states <= states_max
        if point.coverage == "bounded":
            assert point.step is None
            assert point.first <= 13 and (point.last == 0 or point.last >= 13)
            assert f"not found within {states_max} states" in point.text
        else:
            assert point.step == 13
    assert no_return(trace, states_max=5).coverage == "bounded"
    assert no_return(trace, states_max=21).coverage == "exhausted"


def test_of_a_very_long_trace_the_last_steps_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = found("free-then-alloc", "I3")
    monkeypatch.setattr("sim.engines.no_return.STEP_SIZES_MAX", 0)
    for steps, expected in ((1, None), (2, None), (3, 13), (15, 13)):
        monkeypatch.setattr("sim.engines.no_return.STEPS_MIN", steps)
        assert no_return(trace).step == expected
    monkeypatch.setattr("sim.engines.no_return.STEPS_MIN", 2)
    assert no_return(trace).text.startswith(
        "not found within 5,000 states and the last 2 steps; step 0 at the earliest"
    )


def test_a_trace_that_breaks_nothing_has_none() -> None:
    trace = run_once(HOSTILE, Seeded(1), record=True).trace
    assert trace is not None and not trace.ending.property
    assert no_return(trace) == NoReturn(None, "")
    assert no_return(trace).text == ""


def test_a_run_that_was_given_up_while_it_could_still_end_has_none() -> None:
    """Patience may be too short: then the trace says L1, and at its end a run could still go well."""
    whole = run_once(HOSTILE, Seeded(1), record=True).trace
    assert whole is not None
    short = whole._replace(
        steps=whole.steps[:5], ending=msgspec.structs.replace(whole.ending, property="L1", text="given up")
    )
    point = no_return(short)
    assert (point.step, point.coverage) == (None, "exhausted")
    assert point.text == "there is none: at the end of the trace a run could still go well"


def test_the_mark_stands_at_the_step_and_needs_no_colour() -> None:
    done = resumark("check", "--hazard", "silent-unknown-room")
    lines = done.out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.strip().startswith("*1  ! sender crashes"))
    assert lines[at + 1].split("  ")[-1] == "point of no return: from here every continuation fails"
    assert sum("point of no return" in line for line in lines) == 1


def test_the_mark_at_the_start_stands_above_the_first_step() -> None:
    assert trace_lines([], 0) == ["(no steps)"]
    lines = resumark("check", "--detector", "flag").out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("step  what happens"))
    assert lines[at + 1] == "   *  point of no return, at the start: without faults every run fails"


def test_json_has_the_step_and_how_it_was_found() -> None:
    data = resumark("check", "--hazard", "free-then-alloc", "--json").data
    assert data["point_of_no_return"] == 13
    assert set(data["no_return"]) == {"coverage", "states", "states_max", "first", "last", "text"}
    assert (data["no_return"]["coverage"], data["no_return"]["first"]) == ("exhausted", 13)
    data = resumark("check", "watermark", "--json").data
    assert (data["point_of_no_return"], data["no_return"]) == (None, None)
