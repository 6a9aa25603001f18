"""Random runs: what a batch answers, what it refuses to call a pass, and that it can fail."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from dataclasses import replace
from typing import Any

import pytest

from fsm.errors import LocalError
from fsm.events import Delivered, Granted, StateChanged
from fsm.invariants import LIVENESS
from fsm.lifecycle import RECEIVER_FIVE_STATE_TABLE
from fsm.messages import BlockRef, Epoch
from fsm.rules import PROTOCOL
from sim import writes, zoo
from sim.choices import Drawn, Recording, Replayed, Scripted, Seeded
from sim.engines import simulate as engine
from sim.engines.parallel import in_order
from sim.engines.replay import replay
from sim.engines.simulate import run_once, simulate
from sim.report import NOT_SUBMITTED, Report
from sim.scenario import Faults, Pool, RankCounts, Request, Result, Scenario, Schedule, Source, Time, Variant
from sim.sometimes import MEANINGS, expected_sometimes, fault_budgets, grant_blocks
from sim.world import World

THREE_GRANTS = Scenario(
    pool=Pool(blocks=4, block_tokens=2, grant_blocks_max=2),
    requests=(Request(tokens=12, count=2),),
)
"""Three grants a request, no faults."""

EVERY_FAULT = Scenario(
    pool=Pool(blocks=3, block_tokens=2, grant_blocks_max=2, allocator="adversary", refusals_max=1),
    source=Source(blocks=8),
    requests=(Request(tokens=9), Request(tokens=7, grant_tokens=3)),
    time=Time(heartbeat_ticks=50),
    faults=Faults(
        rate=0.1, duplicate_max=1, delay_max=1, drop_max=1, abort_max=1, sender_crash_max=1, receiver_crash_max=1,
        partition_max=1, clock_jump_max=1, poison_max=1, heartbeat_loss_max=1, duplicate_room_max=1,
    ),
)  # fmt: skip


def varied(scenario: Scenario, detector: str = "watermark", *hazards: str) -> Scenario:
    return Scenario(
        **{
            name: getattr(scenario, name) for name in Scenario.__struct_fields__ if name != "variant"
        },
        variant=Variant(detector=detector, hazards=hazards),
    )


# What a batch answers ----------------------------------------------------------------------------------


def test_the_protocol_holds_and_the_batch_says_how_that_is_known() -> None:
    result = simulate(THREE_GRANTS, seed=5, runs=50, jobs=1)
    assert (result.verdict, result.coverage, result.exit_code) == ("holds", "sampled", 0)
    assert (result.runs, result.seed, result.violations, result.missed) == (50, 5, (), ())
    assert result.sometimes["resume"] == 50 * 2 * 2
    assert result.bounds == {"runs": 50, "ticks_max": 2000, "machine": "transitions"}
    assert len(result.digest) == 32
    assert result.transitions > 50 * 2 * 9


def test_a_batch_reports_the_requests_of_its_last_run() -> None:
    result = simulate(THREE_GRANTS, runs=3, jobs=1)
    assert [request.room for request in result.requests] == [1, 2]
    for request in result.requests:
        assert (request.state, request.tokens, request.tokens_delivered) == ("Success", 12, 12)
        assert request.content_ok
        assert (request.resumed_at, request.grants_executed) == ((4, 8), 3)


def test_every_fault_is_met_and_the_protocol_holds() -> None:
    result = simulate(EVERY_FAULT, runs=600, jobs=1, machine="flat")
    assert result.verdict == "holds", (result.missed, result.violations)
    for name in fault_budgets(EVERY_FAULT):
        assert result.sometimes[name] > 0
    assert result.sometimes["quarantine"] > 0
    assert result.sometimes["starvation"] > 0


def test_a_run_without_faults_left_is_the_same_as_one_that_never_had_any() -> None:
    """Whether there is a phase of faults at all depends on budgets and rate."""
    idle = Scenario(pool=THREE_GRANTS.pool, requests=THREE_GRANTS.requests, faults=Faults(rate=0.0, drop_max=3))
    assert run_once(idle, Seeded(1)).digest == run_once(THREE_GRANTS, Seeded(1)).digest


def test_the_batch_is_the_seeds_one_after_the_other() -> None:
    whole = simulate(THREE_GRANTS, seed=10, runs=4, jobs=1)
    last = simulate(THREE_GRANTS, seed=13, runs=1, jobs=1)
    assert whole.requests == last.requests
    assert whole.digest != last.digest
    digest = hashlib.blake2b(digest_size=16)
    for seed in range(10, 14):
        digest.update(run_once(THREE_GRANTS, Seeded(seed)).digest)
    assert whole.digest == digest.hexdigest()


def test_progress_is_told_and_the_clock_is_the_callers() -> None:
    told: list[tuple[int, int]] = []
    times = iter([10.0, 12.5])
    result = simulate(
        THREE_GRANTS, runs=130, jobs=1, progress=lambda *figures: told.append(figures), clock=lambda: next(times)
    )
    assert told[-1] == (130, 130)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 1
    assert result.elapsed_s == 2.5


# What it does not call a pass --------------------------------------------------------------------------


def test_a_batch_in_which_something_never_occurred_is_not_a_pass() -> None:
    never = Scenario(requests=(Request(tokens=24),), faults=Faults(rate=0.0, drop_max=1))
    result = simulate(never, runs=20, jobs=1)
    assert (result.verdict, result.exit_code) == ("unknown", 4)
    assert result.missed == ("drop",)
    assert result.sometimes == {"drop": 0}


def sizes(**pool: Any) -> list[int]:
    return grant_blocks(Scenario(pool=Pool(block_tokens=4, **pool)), Request(tokens=30))


def test_grants_of_a_request_that_is_alone() -> None:
    assert sizes(blocks=8) == [8]
    assert sizes(blocks=3) == [3, 3, 2]
    assert sizes(blocks=8, grant_blocks_max=5) == [5, 3]
    assert sizes(blocks=8, allocator="stingy", stingy_blocks=4) == [4, 4]
    early = Request(tokens=30, grant_tokens=6)
    assert grant_blocks(Scenario(pool=Pool(block_tokens=4, blocks=8)), early) == [2, 6]
    assert grant_blocks(Scenario(pool=Pool(block_tokens=4, blocks=1)), early) == [1] * 8
    unequal = Scenario(pool=Pool(block_tokens=4, blocks_by_rank=(8, 5)), ranks=RankCounts(receivers=2))
    assert grant_blocks(unequal, Request(tokens=30)) == [5, 3]


def test_a_request_that_is_refused_for_its_size_grants_nothing() -> None:
    assert grant_blocks(Scenario(source=Source(blocks=2)), Request(tokens=9)) == []
    assert grant_blocks(Scenario(result=Result(tokens=8)), Request(tokens=9)) == []


def expected(**pool: Any) -> tuple[str, ...]:
    return expected_sometimes(Scenario(pool=Pool(block_tokens=4, **pool), requests=(Request(tokens=30, count=2),)))


def test_what_must_occur_follows_from_what_can() -> None:
    assert expected(blocks=8) == ()
    assert expected(blocks=4) == ("resume", "same_blocks")
    assert expected(blocks=5) == ("resume",)
    assert expected(blocks=8, grant_blocks_max=4) == ("resume",)
    assert expected(blocks=8, grant_blocks_max=4, allocator="same-again") == ("resume", "same_blocks")
    assert expected(blocks=8, grant_blocks_max=4, allocator="lifo") == ("resume", "same_blocks")
    assert expected(blocks=8, grant_blocks_max=4, allocator="disjoint") == ("resume",)
    assert expected(blocks=5, grant_blocks_max=4, allocator="adversary") == ("resume", "same_blocks")
    assert expected(blocks=8, grant_blocks_max=4, allocator="adversary") == ("resume",)
    refusing = expected(blocks=8, grant_blocks_max=4, allocator="adversary", refusals_max=1)
    assert refusing == ("resume", "starvation")


def test_faults_must_occur_where_they_can() -> None:
    faults = Faults(drop_max=1, heartbeat_loss_max=1)
    assert expected_sometimes(Scenario(faults=faults)) == ("drop",)
    beating = Scenario(faults=faults, time=Time(heartbeat_ticks=5))
    assert expected_sometimes(beating) == ("drop", "heartbeat_loss")
    assert expected_sometimes(Scenario(faults=Faults(abort_max=1))) == ("quarantine", "abort")
    assert expected_sometimes(Scenario(faults=Faults(sender_crash_max=1))) == ("quarantine", "sender_crash")


def test_starvation_must_occur_where_several_requests_land_between_two_ticks() -> None:
    free = Scenario(
        pool=Pool(blocks=3, block_tokens=4, grant_blocks_max=2),
        requests=(Request(tokens=24, count=2),),
        schedule=Schedule(ticks_free=True),
    )
    assert expected_sometimes(free) == ("resume", "starvation")
    assert simulate(free, runs=200, jobs=1, machine="flat").verdict == "holds"


def test_everything_that_is_counted_has_a_meaning() -> None:
    assert set(MEANINGS) == {"resume", "same_blocks", "starvation", "quarantine"}


# It can fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("detector", "hazard", "properties"),
    [
        ("none", "", ("I6",)),
        ("flag", "", ("L1",)),
        ("generation", "", ("I6",)),
        ("watermark", "admission-first", ("L3",)),
    ],
)
def test_variants_of_the_zoo_are_found(detector: str, hazard: str, properties: tuple[str, ...]) -> None:
    scenario = zoo.scenario_for(hazard or detector)
    result = simulate(scenario, runs=2000, jobs=1, machine="flat")
    assert result.verdict == "violated"
    assert tuple(found.property for found in result.violations) == properties
    assert result.exit_code == (3 if set(properties) <= set(LIVENESS) else 1)
    found = result.violations[0]
    assert found.step == len(found.trace.steps)
    assert found.trace.header.seed == result.runs - 1
    assert replay(found.trace).violations[0] == (found.property, found.text)


def test_a_batch_stops_at_the_first_run_that_violates_something() -> None:
    scenario = zoo.scenario_for("none")
    result = simulate(scenario, runs=500, jobs=1)
    alone = simulate(scenario, seed=result.runs - 1, runs=1, jobs=1)
    assert alone.violations == result.violations
    assert alone.requests == result.requests
    assert result.missed == ()


def test_a_planted_bug_is_reported() -> None:
    """The rule of R2 ignored: the watermark that was resumed is not noted."""
    careless = replace(PROTOCOL, table=RECEIVER_FIVE_STATE_TABLE, remember=lambda room, before, after: None)
    outcome = run_once(THREE_GRANTS, Seeded(0), rules=careless, record=True)
    assert [violation.property for violation in outcome.violations] == ["I6"]
    assert outcome.trace is not None
    assert outcome.trace.ending.property == "I6"
    assert "granted" in outcome.trace.ending.text


def test_a_planted_slip_of_one_token_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    land = writes.land

    def slip(world: World, index: int) -> None:
        flight = world.flights[index]
        world.flights = (*world.flights[:index], flight._replace(source_start=flight.source_start + 1))
        land(world, index)

    monkeypatch.setattr(writes, "land", slip)
    result = simulate(Scenario(), runs=1, jobs=1)
    assert [found.property for found in result.violations] == ["I2"]
    assert "token 1 of request 0" in result.violations[0].text
    assert not result.requests[0].content_ok
    assert result.requests[0].state == "Success"


def test_a_planted_leak_of_blocks_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that shrinks: what has ended left something behind."""
    monkeypatch.setattr(World, "left_behind", lambda world: "1 of 8 blocks is not free")
    result = simulate(Scenario(), runs=1, jobs=1)
    assert [(found.property, found.text) for found in result.violations] == [
        ("L2", "all requests have ended, and 1 of 8 blocks is not free")
    ]
    assert result.exit_code == 3


def test_a_run_that_never_ends_is_reported() -> None:
    hurried = Scenario(pool=THREE_GRANTS.pool, requests=THREE_GRANTS.requests, schedule=Schedule(ticks_max=3))
    result = simulate(hurried, runs=1, jobs=1)
    assert [found.property for found in result.violations] == ["L1"]
    assert "3 receiver ticks" in result.violations[0].text
    assert result.requests[0].state != "Success"


def test_a_world_that_stands_still_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(THREE_GRANTS, PROTOCOL)
    assert engine.judge_end(world) == ("L1", "nothing will ever happen again, and requests have not ended")
    monkeypatch.setattr(world, "all_ended", lambda: True)
    assert engine.judge_end(world) == ("L2", "all requests have ended, and what is left will never be cleared")


def test_code_that_raises_is_named_with_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(world: World, index: int) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(writes, "land", broken)
    with pytest.raises(RuntimeError, match=r"^seed 3: step \d+, \('land', 0\): ZeroDivisionError: planted$"):
        simulate(Scenario(), seed=3, runs=2, jobs=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"runs": 0}, "runs=0: expected at least 1"),
        ({"jobs": 0}, "jobs=0: expected at least 1"),
        ({"seed": -1}, "seed=-1: expected 0 to "),
        ({"seed": 2**63}, "with 1000 runs"),
        ({"machine": "steam"}, "there is no machine 'steam'; there are transitions, flat"),
    ],
)
def test_wrong_numbers_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LocalError) as caught:
        simulate(Scenario(), **options)
    assert said in str(caught.value)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(LocalError, match="there is no detector 'crystal ball'"):
        simulate(varied(Scenario(), "crystal ball"))


# Requests that cannot succeed --------------------------------------------------------------------------


def test_a_request_that_is_too_large_fails_and_that_is_right() -> None:
    large = Scenario(source=Source(blocks=2), requests=(Request(tokens=24), Request(tokens=8)))
    result = simulate(large, runs=5, jobs=1)
    assert result.violations == ()
    assert [request.state for request in result.requests] == ["Failed", "Success"]


def test_a_result_that_is_too_small_fails_the_request_and_no_other() -> None:
    small = Scenario(result=Result(tokens=8), requests=(Request(tokens=24), Request(tokens=8)))
    result = simulate(small, runs=5, jobs=1)
    assert result.violations == ()
    assert [request.state for request in result.requests] == ["Failed", "Success"]


# The report --------------------------------------------------------------------------------------------


def test_the_worst_rank_speaks_for_a_request() -> None:
    two = Scenario(ranks=RankCounts(receivers=2), requests=(Request(tokens=8), Request(tokens=8, arrives_at_tick=99)))
    world = World(two, PROTOCOL)
    report = Report(world)
    report.take(world.events)
    one, epoch = BlockRef(0, 0), Epoch(1, 1)
    report.take([Granted(rank, 1, epoch, 1, 4, 4, (one,)) for rank in (0, 1)])
    report.take([Granted(1, 1, epoch, 2, 6, 4, (one,))])
    report.take([Delivered(0, 1, epoch, 0, 0, 8), Delivered(1, 1, epoch, 0, 0, 4)])
    report.take([StateChanged("receiver", 0, 1, epoch, "complete", "Transferring", "Success")])
    report.take([StateChanged("receiver", 0, 7, epoch, "complete", "Transferring", "Success")])
    first, second = report.requests()
    assert (first.state, first.tokens_delivered, first.resumed_at, first.content_ok) == ("Bootstrapping", 4, (4,), True)
    assert (second.state, second.resumed_at, second.tokens_delivered) == (NOT_SUBMITTED, (), 0)
    report.take([Delivered(1, 1, epoch, 1, 6, 2), Delivered(1, 1, epoch, 2, 4, 2)])
    assert report.requests()[0].content_ok
    report.take([StateChanged("receiver", 1, 1, epoch, "complete", "Transferring", "Success")])
    assert (report.requests()[0].state, report.requests()[0].content_ok) == ("Success", True)
    report.take([Delivered(1, 1, epoch, 3, 7, 2)])
    assert not report.requests()[0].content_ok


def test_a_success_that_lacks_tokens_is_not_right() -> None:
    world = World(Scenario(requests=(Request(tokens=8),)), PROTOCOL)
    report = Report(world)
    report.take([Delivered(0, 1, Epoch(1, 1), 0, 0, 4)])
    assert report.requests()[0].content_ok
    report.take([StateChanged("receiver", 0, 1, Epoch(1, 1), "complete", "Transferring", "Success")])
    assert not report.requests()[0].content_ok


# Choices -----------------------------------------------------------------------------------------------


def test_seeded_choices_are_what_they_always_were() -> None:
    """A seed in a bug report must mean the same run on every machine and Python."""
    seeded = Seeded(2024)
    assert [seeded.pick(10, "action") for _ in range(8)] == [4, 7, 3, 8, 4, 7, 2, 2]
    rare = Seeded(2024)
    refusals = [rare.pick(3, "offer") for _ in range(400)]
    assert 0 < sum(chosen > 0 for chosen in refusals) < 80
    assert set(refusals) == {0, 1, 2}


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(LocalError, match="expected 0 to"):
        Seeded(seed)


def test_drawn_choices_draw_only_where_there_is_a_choice() -> None:
    asked: list[tuple[int, str]] = []

    def draw(options: int, label: str) -> int:
        asked.append((options, label))
        return options - 1

    drawn = Drawn(draw)
    assert [drawn.pick(1, "action"), drawn.pick(3, "block")] == [0, 2]
    assert asked == [(3, "block")]


def test_what_was_recorded_can_be_replayed_and_nothing_else() -> None:
    recording = Recording(Seeded(1))
    answers = [recording.pick(5, "a"), recording.pick(2, "b")]
    replayed = Replayed(recording.picks)
    assert [replayed.pick(5, "a"), replayed.pick(2, "b")] == answers
    replayed.finish()
    with pytest.raises(LocalError, match="no choice left here"):
        replayed.pick(2, "c")
    early = Replayed(recording.picks)
    with pytest.raises(LocalError, match=r"the trace chose 'a' of 5 here"):
        early.pick(5, "b")
    with pytest.raises(LocalError, match=r"the trace chose 'a' of 5 here, and nobody asked"):
        early.finish()
    wrong = Replayed([recording.picks[0]._replace(chosen=5)])
    with pytest.raises(LocalError, match="expected 0 to 4"):
        wrong.pick(5, "a")


def test_scripts_reach_every_combination_of_answers() -> None:
    script = Scripted()
    seen = []
    more = True
    while more:
        script.restart()
        first = script.pick(2, "a")
        seen.append((first, script.pick(3, "b") if first else -1))
        more = script.advance()
    assert seen == [(0, -1), (1, 0), (1, 1), (1, 2)]
    assert Scripted([9]).pick(2, "a") == 1


# Processes ---------------------------------------------------------------------------------------------


def double(number: int) -> int:
    if number == 13:
        raise ValueError("thirteen")
    return 2 * number


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_work(processes: int) -> None:
    assert list(in_order(double, range(9), processes)) == [2 * number for number in range(9)]
    assert list(in_order(double, [], processes)) == []


def test_an_error_in_a_worker_is_told() -> None:
    with pytest.raises(RuntimeError, match="thirteen"):
        list(in_order(double, [1, 13, 2], 2))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interruption_leaves_no_process_behind(processes: int) -> None:
    def interrupted(done: int, runs: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(THREE_GRANTS, runs=400, jobs=processes, progress=interrupted)
    assert multiprocessing.active_children() == []


def die(number: int) -> int:
    os._exit(1)


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(RuntimeError, match="a worker process died"):
        list(in_order(die, [1, 2], 2))
