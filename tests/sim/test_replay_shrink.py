"""A trace run again fits or is refused, naming the step; a shortened one still breaks the same property."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fsm.errors import LocalError
from fsm.events import Note, Received, Sent
from fsm.invariants import LIVENESS
from fsm.trace import Pick, Step, Trace, TraceEnding, dump_trace, parse_trace
from sim import zoo
from sim.choices import Seeded
from sim.engines.check import check
from sim.engines.replay import replay, scenario_of
from sim.engines.shrink import shrink
from sim.engines.simulate import run_once, simulate
from sim.scenario import Faults, Pool, RankCounts, Request, Scenario, Schedule

HOSTILE = Scenario(
    pool=Pool(blocks=3, block_tokens=2, grant_blocks_max=2, allocator="adversary", refusals_max=2),
    requests=(Request(tokens=9, count=2),),
    faults=Faults(rate=0.2, duplicate_max=1, delay_max=1, abort_max=1, partition_max=1, poison_max=1),
)


def recorded(seed: int = 0, scenario: Scenario = HOSTILE, machine: str = "transitions") -> Trace:
    trace = run_once(scenario, Seeded(seed), record=True, machine=machine, seed=seed).trace
    assert trace is not None
    return trace


def changed(trace: Trace, number: int, **parts: Any) -> Trace:
    """The trace with step ``number``, from 1, altered."""
    steps = list(trace.steps)
    steps[number - 1] = msgspec.structs.replace(steps[number - 1], **parts)
    return trace._replace(steps=tuple(steps))


def refused(trace: Trace) -> str:
    with pytest.raises(LocalError) as caught:
        replay(trace)
    return str(caught.value)


# Replay ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["transitions", "flat"])
@pytest.mark.parametrize("seed", range(8))
def test_a_recorded_run_fits_and_ends_as_it_ended(seed: int, machine: str) -> None:
    trace = recorded(seed, machine=machine)
    replayed = replay(trace)
    assert replayed.digest == trace.ending.digest
    assert replayed.violations == ()
    assert [done.step for done in replayed.steps] == list(trace.steps)
    assert [done.number for done in replayed.steps] == list(range(1, len(trace.steps) + 1))
    assert replayed.requests == run_once(HOSTILE, Seeded(seed), report=True).requests


@pytest.mark.parametrize("seed", [3, 13, 16])
def test_a_network_heals_where_it_may_even_if_a_collective_is_under_way(seed: int) -> None:
    """A collective may keep all else waiting when the faults end; a trace that healed in it could not be replayed."""
    skewed = Scenario(
        pool=Pool(blocks=2),
        ranks=RankCounts(receivers=2),
        requests=(Request(tokens=8, count=2),),
        schedule=Schedule(rank_skew_ticks=1),
        faults=Faults(rate=0.3, partition_max=1),
    )
    trace = recorded(seed, skewed)
    assert ("heal",) in [step.action for step in trace.steps]
    assert replay(trace).digest == trace.ending.digest


def test_a_trace_survives_the_way_through_a_file() -> None:
    trace = recorded(3)
    assert replay(parse_trace(dump_trace(trace).split("\n"))).digest == trace.ending.digest


def test_notes_are_for_reading_and_leave_the_digest_alone() -> None:
    trace = recorded(1)
    with_notes, without = replay(trace), replay(trace, notes=False)
    assert with_notes.digest == without.digest
    for kind in (Note, Sent, Received):
        assert any(type(event) is kind for done in with_notes.steps for event in done.events)
        assert not any(type(event) is kind for done in without.steps for event in done.events)


def test_the_header_holds_the_whole_scenario() -> None:
    trace = recorded(1)
    assert scenario_of(trace.header) == HOSTILE
    assert (trace.header.engine, trace.header.machine, trace.header.seed) == ("simulate", "transitions", 1)


def test_the_trace_of_a_check_is_replayed_too() -> None:
    found = check(zoo.scenario_for("none")).violations[0]
    assert replay(found.trace).violations[0].property == found.property


def test_an_action_that_cannot_be_done_is_named() -> None:
    trace = changed(recorded(), 4, action=("land", 7))
    assert refused(trace).startswith("step 4: ")
    assert "cannot be done here; possible: " in refused(trace)


def test_an_action_that_means_something_else_is_named() -> None:
    said = refused(changed(recorded(), 1, text="deliver Grant to sender 0"))
    assert said.startswith("step 1: ('deliver', 0) is 'deliver Register to sender 0' here, the trace says")


def test_choices_that_do_not_fit_are_named() -> None:
    trace = recorded()
    at = next(number for number, step in enumerate(trace.steps, start=1) if step.picks)
    pick = trace.steps[at - 1].picks[0]
    other = Pick("colour", pick.options, pick.chosen)
    assert refused(changed(trace, at, picks=(other,))).startswith(f"step {at}: ")
    assert "and the trace chose 'colour'" in refused(changed(trace, at, picks=(other,)))
    assert "no choice left here" in refused(changed(trace, at, picks=()))
    more = (*trace.steps[at - 1].picks, pick)
    assert "and nobody asked" in refused(changed(trace, at, picks=more))


def test_a_run_that_does_something_else_behind_the_same_steps_is_refused() -> None:
    trace = recorded()
    wrong = trace._replace(ending=TraceEnding(digest="0" * 32))
    assert refused(wrong).startswith(f"after step {len(trace.steps)}: every step fits, but not what happened in them")


def test_a_trace_that_claims_too_much_is_refused() -> None:
    trace = recorded()
    wrong = trace._replace(ending=TraceEnding("I6", "twice", trace.ending.digest))
    assert refused(wrong) == f"step {len(trace.steps)}: the trace ends with I6 broken; here nothing is"
    stuck = trace._replace(ending=TraceEnding("L1", "stuck", trace.ending.digest))
    assert refused(stuck) == f"step {len(trace.steps)}: the trace ends with L1 broken; here nothing is"


def test_a_trace_that_claims_too_little_is_refused() -> None:
    found = simulate(zoo.scenario_for("none"), runs=100, jobs=1).violations[0]
    silent = found.trace._replace(ending=TraceEnding())
    assert refused(silent) == f"step {len(found.trace.steps)}: the trace ends with nothing broken; here I6 is"


def test_a_trace_that_goes_on_after_the_end_is_refused() -> None:
    found = simulate(zoo.scenario_for("none"), runs=100, jobs=1).violations[0]
    longer = found.trace._replace(steps=(*found.trace.steps, Step(("tick",), "tick")))
    assert refused(longer) == f"step {len(found.trace.steps)}: breaks I6, and the trace goes on"
    over = recorded(0, Scenario())
    beyond = over._replace(steps=(*over.steps, Step(("deliver", 0), "")))
    assert refused(beyond).startswith(f"step {len(over.steps) + 1}: ('deliver', 0) cannot be done here")


def test_what_would_never_end_is_taken_on_trust_where_the_run_could_go_on() -> None:
    """A run of ``ticks_max`` ticks shows as little about ever after as any other that is not over."""
    hurried = Scenario(pool=Pool(blocks=1), requests=(Request(tokens=40),), schedule=Schedule(ticks_max=5))
    found = simulate(hurried, runs=1, jobs=1).violations[0]
    assert replay(found.trace).violations == (("L1", found.text),)


def test_a_header_that_makes_no_world_is_refused() -> None:
    trace = recorded()
    header = trace.header
    odd = msgspec.structs.replace(header, machine="steam")
    assert "there is no machine 'steam'" in refused(trace._replace(header=odd))
    bad = msgspec.structs.replace(header, scenario={"pool": {"blocks": 0}})
    assert "the trace's scenario: pool.blocks" in refused(trace._replace(header=bad))
    unknown = msgspec.structs.replace(header, scenario={"variant": {"detector": "crystal ball"}})
    assert "crystal ball" in refused(trace._replace(header=unknown))


# Shrink ------------------------------------------------------------------------------------------------


SHRUNK = (
    ("none", "I6"), ("flag", "L1"), ("indices-after", "L1"), ("generation", "I6"), ("free-then-alloc", "I3"),
    ("admission-first", "L3"), ("no-grant-seq", "I6"), ("plane-major-mrope", "I2"), ("alloc-before-free", "L1"),
)  # fmt: skip


@pytest.mark.parametrize(("variant", "property"), SHRUNK)
def test_a_shortened_run_breaks_the_same_property_in_fewer_steps(variant: str, property: str) -> None:
    scenario = zoo.scenario_for(variant, property)
    found = simulate(scenario, runs=3000, jobs=1, machine="flat").violations[0]
    told: list[tuple[int, int]] = []
    short = shrink(found.trace, lambda *figures: told.append(figures))
    assert short.ending.property == found.property
    assert len(short.steps) <= len(found.trace.steps)
    assert replay(short).violations[0].property == found.property
    assert short.header.seed == found.trace.header.seed
    assert told[0][0] == len(found.trace.steps)
    assert told[-1][1] == len(told)


@pytest.mark.parametrize("variant", ["none", "no-grant-seq", "free-then-alloc"])
def test_a_shortened_run_is_not_much_longer_than_the_shortest(variant: str) -> None:
    short = shrink(simulate(zoo.scenario_for(variant), runs=3000, jobs=1, machine="flat").violations[0].trace)
    shortest = check(scenario_of(short.header), only=(short.ending.property,)).violations[0]
    assert shortest.step <= len(short.steps) <= shortest.step + 3


def test_noise_is_left_out() -> None:
    """Requests, ranks' messages, faults and answers that have nothing to do with the matter go."""
    noisy = Scenario(
        pool=Pool(blocks=6, block_tokens=2, grant_blocks_max=2, allocator="adversary", refusals_max=2),
        requests=(Request(tokens=9, count=3),),
        ranks=RankCounts(receivers=2),
        faults=Faults(rate=0.2, duplicate_max=2, delay_max=2, drop_max=2, partition_max=1),
        variant=replace_variant("none"),
    )
    found = simulate(noisy, runs=100, jobs=1).violations[0]
    short = shrink(found.trace)
    assert short.ending.property == "I6"
    scenario = scenario_of(short.header)
    assert len(scenario.requests) == 1
    assert not any(getattr(scenario.faults, name) for name in Faults.__struct_fields__ if name.endswith("_max"))
    assert not any(pick.chosen for step in short.steps for pick in step.picks)


def replace_variant(detector: str) -> Any:
    return zoo.with_variant(Scenario(), zoo.DETECTORS[detector]).variant


def test_shortening_is_deterministic() -> None:
    trace = simulate(zoo.scenario_for("no-grant-seq"), runs=3000, jobs=1).violations[0].trace
    assert shrink(trace) == shrink(trace)


def test_what_is_shortest_already_stays() -> None:
    trace = shrink(simulate(zoo.scenario_for("none"), runs=100, jobs=1).violations[0].trace)
    assert shrink(trace).steps == trace.steps


def test_a_trace_of_check_can_be_given_too() -> None:
    found = check(zoo.scenario_for("flag")).violations[0]
    assert found.property in LIVENESS
    short = shrink(found.trace)
    assert short.ending.property == found.property


def test_a_run_that_breaks_nothing_cannot_be_shortened() -> None:
    with pytest.raises(LocalError, match="breaks no property"):
        shrink(recorded())


def test_a_trace_that_does_not_fit_cannot_be_shortened() -> None:
    found = simulate(zoo.scenario_for("none"), runs=100, jobs=1).violations[0]
    with pytest.raises(LocalError, match="step 1"):
        shrink(changed(found.trace, 1, action=("land", 7)))


def test_a_rule_that_was_replaced_in_code_is_not_in_a_trace() -> None:
    """Only what has a name can be replayed: a trace of an unnamed variant does not pass for one of the protocol."""
    from fsm.lifecycle import RECEIVER_FIVE_STATE_TABLE
    from fsm.rules import PROTOCOL

    careless = replace(PROTOCOL, table=RECEIVER_FIVE_STATE_TABLE, remember=lambda room, before, after: None)
    trace = run_once(HOSTILE, Seeded(0), rules=careless, record=True).trace
    assert trace is not None
    assert trace.ending.property
    assert refused(trace).startswith("step ")
