"""The shortest run to the state in which another one failed: the same state, the same violation, replayable, and no
shorter one, as a search that shares nothing but the world finds too."""

from __future__ import annotations

from functools import cache
from itertools import count
from pathlib import Path

import msgspec
import pytest

from fsm.errors import LocalError
from fsm.trace import Step, Trace, TraceEnding
from sim import actions, zoo
from sim.choices import Scripted, Seeded
from sim.engines.ahead import Ahead, world_ahead
from sim.engines.check import check
from sim.engines.replay import replay, scenario_of
from sim.engines.shortest import Shortest, _Target, shortest
from sim.engines.simulate import run_once
from sim.scenario import Faults, Pool, Request, Scenario, Time
from sim.trace_file import write_trace
from sim.world import World
from tests.sim.cli_kit import resumark

LOSSY = Scenario(
    pool=Pool(blocks=2, block_tokens=2, grant_blocks_max=1),
    requests=(Request(tokens=4),),
    faults=Faults(rate=0.3, duplicate_max=1, drop_max=2, delay_max=1),
)


@cache
def random_failure(variant: str, seed: int = 0) -> Trace:
    """A random run that fails."""
    scenario = zoo.with_variant(LOSSY, zoo.DETECTORS.get(variant) or zoo.HAZARDS[variant])
    for number in range(seed, seed + 400):
        run = run_once(scenario, Seeded(number), record=True, seed=number)
        if run.violations:
            assert run.trace is not None
            return run.trace
    raise AssertionError("no run fails")


def after(trace: Trace, steps: tuple[Step, ...]) -> World:
    world = world_ahead(trace.header, scenario_of(trace.header))
    for step in steps:
        actions.apply(world, step.action, Scripted([pick.chosen for pick in step.picks]))
    return world


def same_end(trace: Trace, other: Trace) -> bool:
    """Whether two runs are in the same state before their last steps, budgets and other history aside."""
    target = _Target(Ahead(trace.header, scenario_of(trace.header)), trace)
    return target.present == target.present_of(target.ahead.state_of(after(other, other.steps[:-1])))


def fewest_steps(trace: Trace, answer: Shortest) -> int:
    """The length of a shortest run to that end, by a plain breadth first search over worlds that are run anew."""
    ahead = Ahead(trace.header, scenario_of(trace.header))
    target = _Target(ahead, trace)
    budget = {kind: answer.faults.get(kind, 0) for kind in ("duplicate", "drop", "delay")}
    level: list[list[tuple[object, list[int]]]] = [[]]
    seen = {ahead.first: None}
    for length in count(1):
        assert level, "the end of the trace is not found again"
        following = []
        for steps in level:
            for action, world, answers in one_further(trace, steps, budget):
                if target.property in [one.property for one in world.monitors.violations]:
                    before = world_after(trace, steps)
                    if action == trace.steps[-1].action[0] and target.is_at(ahead.state_of(before)):
                        return length
                    continue
                state = ahead.state_of(world)
                if state not in seen:
                    seen[state] = None
                    following.append([*steps, answers])
        level = following
    raise AssertionError


def world_after(trace: Trace, steps: list[tuple[object, list[int]]]) -> World:
    world = world_ahead(trace.header, scenario_of(trace.header))
    for action, answers in steps:
        actions.apply(world, action, Scripted(answers))  # type: ignore[arg-type]
    return world


def one_further(trace, steps, budget):  # type: ignore[no-untyped-def]
    """Every step after some steps: its kind, the world after it, and what was done."""
    spent = [action[0] for action, _ in steps]
    world = world_after(trace, steps)
    chances = [one for one in actions.faults(world) if spent.count(one[0]) < budget.get(one[0], 0)]
    for action in actions.enabled(world) + chances:
        script, more = Scripted(), True
        while more:
            script.restart()
            there = world_after(trace, steps)
            actions.apply(there, action, script)
            yield action[0], there, (action, [pick.chosen for pick in script.picks])
            more = script.advance()


@pytest.mark.parametrize(("variant", "seed", "steps"), [("none", 100, 7), ("no-grant-seq", 60, 7)])
def test_no_other_search_finds_fewer_steps(variant: str, seed: int, steps: int) -> None:
    trace = random_failure(variant, seed)
    answer = shortest(trace)
    assert answer.coverage == "exhausted"
    assert answer.trace.ending.property == trace.ending.property
    assert replay(answer.trace).violations[0].property == trace.ending.property
    assert same_end(trace, answer.trace)
    assert answer.steps_min == len(answer.trace.steps) == fewest_steps(trace, answer) == steps


def test_a_detour_is_left_out() -> None:
    """Fifteen steps with every fault in them, and none of the faults was needed."""
    trace = random_failure("none", 0)
    answer = shortest(trace)
    assert answer.faults == {"duplicate": 1, "delay": 1, "drop": 2}
    assert len(trace.steps) == 15
    assert len(answer.trace.steps) == 7
    assert not any(step.action[0] in answer.faults for step in answer.trace.steps)
    assert answer.trace.header == trace.header


def test_faults_that_the_trace_did_not_spend_are_not_tried() -> None:
    """Else the answer would depend on budgets, and the search would be lost in them."""
    trace = random_failure("none", 0)
    plain = shortest(trace).trace
    assert shortest(plain).faults == {}
    without = msgspec.structs.replace(scenario_of(plain.header), faults=Faults())
    header = msgspec.structs.replace(plain.header, scenario=msgspec.to_builtins(without))
    assert shortest(plain).states == shortest(plain._replace(header=header)).states


def test_what_the_trace_breaks_on_its_way_a_shorter_one_may_break_and_nothing_else() -> None:
    trace = check(zoo.scenario_for("no-grant-seq", "I1"), only=("I1",)).violations[0].trace
    target = _Target(Ahead(trace.header, scenario_of(trace.header)), trace)
    assert target.passed == ["I8", "I6"] and target.by_step
    assert target.allows(()) and target.allows(("I6",)) and not target.allows(("I6", "I1"))
    answer = shortest(trace)
    assert (answer.coverage, len(answer.trace.steps)) == ("exhausted", len(trace.steps))


def test_a_search_that_is_cut_off_says_how_far_it_came() -> None:
    trace = random_failure("late-status", 20)
    whole = shortest(trace)
    cut = shortest(trace, states_max=100)
    assert (whole.coverage, cut.coverage) == ("exhausted", "bounded")
    assert cut.ran_out.startswith("states_max, at depth ")
    assert 2 < cut.steps_min <= whole.steps_min == len(whole.trace.steps) <= len(cut.trace.steps) <= len(trace.steps)
    assert same_end(trace, cut.trace)
    replay(cut.trace)


def test_time_is_read_from_the_clock_that_is_given() -> None:
    times = iter(range(10_000))
    cut = shortest(random_failure("late-status", 20), time_max_s=3, clock=lambda: float(next(times)))
    assert cut.coverage == "bounded" and cut.ran_out.startswith("time, at depth ")


def test_blocks_may_have_other_numbers_under_a_hostile_allocator() -> None:
    """The search renumbers blocks; what comes out must be a run all the same."""
    pool = msgspec.structs.replace(LOSSY.pool, blocks=3, allocator="adversary")
    scenario = zoo.with_variant(
        msgspec.structs.replace(LOSSY, pool=pool, requests=(Request(tokens=6),)), zoo.DETECTORS["none"]
    )
    trace = next(run.trace for seed in range(100) if (run := run_once(scenario, Seeded(seed), record=True)).violations)
    assert trace is not None
    answer = shortest(trace)
    assert answer.coverage == "exhausted" and len(answer.trace.steps) <= len(trace.steps)
    assert replay(answer.trace).violations[0].property == trace.ending.property
    assert same_end(trace, answer.trace)


def stuck() -> Trace:
    """A run that was given up: it waits for ever, round and round."""
    scenario = zoo.scenario_for("silent-unknown-room")
    scenario = msgspec.structs.replace(
        scenario,
        schedule=msgspec.structs.replace(scenario.schedule, ticks_max=60),
        time=Time(deadline_ticks=40, queue_deadline_ticks=80, resend_ticks=10, bootstrap_ticks=40, tombstone_ticks=60),
    )
    run = next(run for seed in range(100) if (run := run_once(scenario, Seeded(seed), record=True)).violations)
    assert run.trace is not None and run.trace.ending.property == "L1"
    return run.trace


def test_a_run_that_never_ends_is_cut_to_the_way_into_its_loop() -> None:
    trace = stuck()
    answer = shortest(trace)
    assert answer.coverage == "exhausted"
    assert len(answer.trace.steps) < len(trace.steps)
    assert replay(answer.trace).violations[0].property == "L1"
    ahead = Ahead(trace.header, scenario_of(trace.header))
    target = _Target(ahead, trace)
    assert not target.by_step
    assert target.is_at(ahead.state_of(after(answer.trace, answer.trace.steps)))


def test_a_run_that_could_still_end_shows_nothing() -> None:
    whole = run_once(LOSSY, Seeded(1), record=True).trace
    assert whole is not None
    given_up = whole._replace(steps=whole.steps[:5], ending=TraceEnding("L1", "given up"))
    with pytest.raises(LocalError, match="L1: from the last state of this trace a run could still end well"):
        shortest(given_up)


def test_a_trace_that_breaks_nothing_is_refused() -> None:
    trace = run_once(LOSSY, Seeded(1), record=True).trace
    assert trace is not None and not trace.ending.property
    with pytest.raises(LocalError, match="breaks no property"):
        shortest(trace)


def test_what_check_finds_is_short_already() -> None:
    trace = check(zoo.scenario_for("free-without-quiescence")).violations[0].trace
    answer = shortest(trace)
    assert (answer.coverage, len(answer.trace.steps)) == ("exhausted", len(trace.steps))


# The command -------------------------------------------------------------------------------------------


def test_the_command_says_what_was_proved(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    write_trace(random_failure("none", 0), path)
    done = resumark("shrink", str(path), "--same-state")
    assert done.code == 0
    assert "steps     15 before, 7 after" in done.out
    assert "exhausted: no run with no more faults than this trace spent (duplicate 1, delay 1, drop 2)" in done.out
    assert resumark("replay", str(tmp_path / "long.short.jsonl")).code == 1
    data = resumark("shrink", str(path), "--same-state", "--json").data
    assert (data["steps_after"], data["exit_code"], data["same_state"]["coverage"]) == (7, 0, "exhausted")
    assert resumark("shrink", str(path), "--json").data["same_state"] is None


def test_the_command_ends_with_4_where_bounds_run_out(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    write_trace(random_failure("late-status", 20), path)
    done = resumark("shrink", str(path), "--same-state", "--states-max", "50")
    assert done.code == 4
    assert "bounded: states_max, at depth " in done.out
    assert "resumark shrink without --same-state looks for any shorter run" in done.out
    data = resumark("shrink", str(path), "--same-state", "--states-max", "50", "--json").data
    assert data["exit_code"] == 4 and data["same_state"]["steps_min"] > 2


@pytest.mark.parametrize("option", [("--states-max", "5"), ("--time-max", "5")])
def test_bounds_without_a_search_are_refused(tmp_path: Path, option: tuple[str, str]) -> None:
    path = tmp_path / "long.jsonl"
    write_trace(random_failure("none", 0), path)
    done = resumark("shrink", str(path), *option)
    assert (done.code, done.err) == (
        2, "error: --states-max and --time-max bound the search of --same-state; give that too\n"
    )  # fmt: skip
