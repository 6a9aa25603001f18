"""What a page is told of a run adds up to the run: after every step it shows the blocks, the memory, the rooms, the
lifecycles and what is on its way just as a world has them that makes the run by itself."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm.lifecycle import BLOCK_TABLE
from fsm.trace import Trace
from sim import actions, zoo
from sim.choices import Replayed, Seeded
from sim.engines.check import check
from sim.engines.replay import scenario_of, world_of
from sim.engines.simulate import run_once
from sim.explorer.fold import with_span, without_gap
from sim.explorer.page import Run
from sim.explorer.runs import run_of_trace
from sim.scenario import Scenario
from tests.explorer.kit import Counted, Shown, same_as_world


def found(variant: str) -> Trace:
    """The shortest run that breaks a variant."""
    return check(zoo.scenario_for(variant)).violations[0].trace


def adds_up(trace: Trace) -> Run:
    """Add up the page's steps beside a world that nobody looks on at."""
    run = run_of_trace(trace)
    world = world_of(trace.header, scenario_of(trace.header))
    shown, counted = Shown(), Counted()
    shown.add(run.steps[0])
    same_as_world(shown, world)
    for step, told in zip((*trace.steps, *trace.ending.endless), run.steps[1:], strict=True):
        actions.apply(world, step.action, Replayed(step.picks))
        shown.add(told)
        same_as_world(shown, world)
        counted.add(world.events)
        counted.same_as(shown, world)
        assert told.time_s == world.now
    return run


ADDED_UP = (
    "indices-after", "sent-cached", "free-then-alloc", "max-progress", "first-rank-triggers", "no-grant-seq",
    "free-without-quiescence", "all-or-nothing", "plane-major-mrope", "late-status", "floor-start", "admission-first",
)  # fmt: skip


@pytest.mark.parametrize("variant", ADDED_UP)
def test_a_counterexample_adds_up(variant: str) -> None:
    trace = found(variant)
    run = adds_up(trace)
    (broken,) = [mark for mark in run.marks if mark.kind == "violation"]
    assert (run.verdict, broken.property, broken.text) == ("violated", trace.ending.property, trace.ending.text)


def crowded() -> Scenario:
    """Two ranks, every fault, requests that come later."""
    scenario = zoo.scenario_named("every-fault")
    return msgspec.structs.replace(scenario, faults=msgspec.structs.replace(scenario.faults, rate=0.3))


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_a_run_under_every_fault_adds_up(seed: int) -> None:
    trace = run_once(crowded(), Seeded(seed), record=True, seed=seed).trace
    assert trace is not None
    adds_up(trace)


def test_a_room_that_is_used_again_begins_anew() -> None:
    """Its progress is that of the present attempt, and its lifecycles start over."""
    scenario = zoo.default_scenario()
    request = scenario.requests[0]
    replace = msgspec.structs.replace
    again = (replace(request, room=4, count=1), replace(request, room=4, count=1, tokens=3, arrives_at_tick=1))
    trace = run_once(replace(scenario, requests=again), Seeded(2), record=True, seed=2).trace
    assert trace is not None
    run = adds_up(trace)
    begun = [change for step in run.steps for change in step.progress if not change.granted]
    assert [change.room for change in begun] == [4, 4] and begun[0].epoch != begun[1].epoch
    receiver = [change.state for step in run.steps for change in step.lifecycles if change.lane == "receiver 0"]
    assert (receiver.count("Bootstrapping"), receiver.count("Success")) == (2, 2)


def test_stretches_of_tokens_are_drawn_together() -> None:
    """What counts is what is there without a gap from the first token on."""
    spans = with_span(with_span((), 4, 8), 12, 16)
    assert (spans, without_gap(spans)) == (((4, 8), (12, 16)), 0)
    assert with_span(spans, 8, 12) == ((4, 16),) and with_span(spans, 5, 6) == spans
    assert without_gap(with_span(spans, 0, 4)) == 8


def test_what_lags_is_told_when_it_happens() -> None:
    scenario = zoo.scenario_named("every-fault")
    schedule = msgspec.structs.replace(
        scenario.schedule, data_lags_status=True, copy_lags=True, staging_lags=True, ticks_free=True
    )
    lagging = msgspec.structs.replace(scenario, schedule=schedule)
    for seed in range(4):
        trace = run_once(lagging, Seeded(seed), record=True, seed=seed).trace
        assert trace is not None
        adds_up(trace)


def test_sent_accumulate_reads_blocks_before_they_are_written() -> None:
    """The example that the page is shown with: which block, at which step, and in so many words."""
    run = run_of_trace(found("sent-accumulate"))
    early = {(step.number, touch.block): touch for step in run.steps for touch in step.touches if touch.early}
    assert list(early) == [(6, 2), (6, 3), (6, 4), (6, 5)]
    touch = early[6, 2]
    assert (touch.what, touch.room, touch.start, touch.count) == ("read", 1, 8, 4)
    assert touch.wrong == "block 2 is read before it is written: where token 8 should be there was poison"
    good = [touch for step in run.steps for touch in step.touches if not touch.early]
    assert not any(touch.wrong for touch in good) and {touch.block for touch in good} == {0, 1}


def test_bytes_that_land_where_they_may_not_are_told_with_the_block() -> None:
    run = run_of_trace(found("free-without-quiescence"))
    (wrong,) = [touch for step in run.steps for touch in step.touches if touch.wrong]
    assert (wrong.what, wrong.block, wrong.early) == ("write", 0, False)
    assert wrong.wrong == "block 0 is written by room 1 seq 0, and is Free"


def test_what_is_overwritten_is_wrong_and_not_early() -> None:
    """Bytes that were there and were spoilt are not called unwritten."""
    run = run_of_trace(found("floor-start"))
    first, *_ = wrong = [touch for step in run.steps for touch in step.touches if touch.wrong]
    assert not any(touch.early for touch in wrong)
    text = "block 2 does not hold what is read from it: where token 6 should be there was token 4 of room 1"
    assert (first.what, first.block, first.wrong) == ("read", 2, text)


def test_what_a_block_went_through_within_a_step_is_told() -> None:
    """A block that is granted, read and freed in one step is not just free: every state in between is told, in order,
    and each is a move of the ledger's table."""
    run = run_of_trace(found("sent-accumulate"))
    told = {block.block: block for block in run.steps[6].blocks}
    assert told[0].state == told[2].state == "Free"
    assert told[0].through == (("Landed", 1), ("Reading", 1))
    assert told[2].through == (("Granted", 1), ("Landed", 1), ("Reading", 1))
    calm = run_once(zoo.default_scenario(), Seeded(1), record=True, seed=1).trace
    assert calm is not None
    moves = {(str(state), str(row.target)) for state, rows in BLOCK_TABLE.rows.items() for row in rows}
    moves |= {("Free", "Granted"), ("Granted", "Granted")}  # by way of Reserved; a change of what it holds
    passed, states = 0, dict[tuple[int, int], str]()
    for step in run_of_trace(calm).steps:
        for block in step.blocks:
            way = [
                *([states[block.rank, block.block]] if block.through else []),
                *(state for state, _ in block.through),
            ]
            passed += len(block.through)
            assert all(pair in moves for pair in pairwise([*way, block.state])), (step.number, way, block)
            states[block.rank, block.block] = block.state
    assert passed >= 6


def test_what_repeats_for_ever_is_told_once_round_behind_a_mark() -> None:
    trace = found("silent-unknown-room")
    assert trace.ending.turn
    run = adds_up(trace)
    (cycle,) = [mark for mark in run.marks if mark.kind == "cycle"]
    last = len(trace.steps) + len(trace.ending.endless)
    assert (len(run.steps) - 1, cycle.step) == (last, last - trace.ending.turn + 1)
    assert [mark.step for mark in run.marks if mark.kind == "violation"] == [len(trace.steps)]


def test_faults_and_resumes_are_marked() -> None:
    trace = run_once(crowded(), Seeded(3), record=True, seed=3).trace
    assert trace is not None
    run = run_of_trace(trace)
    struck = {step.number for step in run.steps if step.fault}
    assert struck and {mark.step for mark in run.marks if mark.kind == "fault"} == struck
    granted = {
        step.number
        for step in run.steps
        for arrow in step.arrows
        if arrow.end == "leave" and arrow.label.startswith("GRANT") and not arrow.label.startswith("GRANT 0")
    }
    assert {mark.step for mark in run.marks if mark.kind == "resume"} <= granted
