"""The exhaustive engine: it sees every state, says so only when it did, and gives a shortest trace of what it found.

It is held against a search that is too simple to be wrong, and against mistakes planted for it to find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.blocks import BlockLedger, Owner
from fsm.invariants import LIVENESS, PROPERTIES, SAFETY
from fsm.messages import BlockRef
from fsm.receiver_facts import FactKeeper
from fsm.rules import PROTOCOL, Rules
from fsm.sender import Sender
from sim import actions, zoo, zoo_table
from sim import scenario as keys
from sim.choices import Scripted
from sim.engines.check import check, new_world, trace_digest
from sim.engines.replay import replay
from sim.engines.result import Found, Result
from sim.scenario import Faults, Pool, RankCounts, Request, Scenario, Schedule, Time
from sim.state import StateSpace
from sim.world import Action, World

TINY = Scenario(
    pool=Pool(blocks=2, block_tokens=2, allocator="adversary", grant_blocks_max=1, refusals_max=1),
    requests=(Request(tokens=3),),
)
"""One request of two grants, two blocks, an adversary that may refuse once."""

SMALL = Scenario(pool=msgspec.structs.replace(TINY.pool, refusals_max=0), requests=(Request(tokens=2),))
"""One request of one grant, and no refusal."""

SHORT = Time(deadline_ticks=40, queue_deadline_ticks=40, bootstrap_ticks=40, tombstone_ticks=80, resend_ticks=40)


def but(scenario: Scenario, **sections: Any) -> Scenario:
    """The scenario with other sections."""
    return msgspec.structs.replace(scenario, **sections)


def with_pool(scenario: Scenario, **keys: Any) -> Scenario:
    return but(scenario, pool=msgspec.structs.replace(scenario.pool, **keys))


def with_hazards(scenario: Scenario, *hazards: str) -> Scenario:
    return but(scenario, variant=msgspec.structs.replace(scenario.variant, hazards=hazards))


def rules_of(scenario: Scenario) -> Rules:
    return zoo.rules_for(scenario.variant.detector, scenario.variant.hazards)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces rules of the protocol, for the engine, the replay and whoever else asks."""

    def replaced(**rules: Any) -> None:
        planted = replace(PROTOCOL, **rules)
        monkeypatch.setattr(zoo, "rules_for", lambda detector, hazards=(): planted)

    return replaced


def only_one(result: Result, property: str) -> Found:
    """The one violation of a result, which must be of that property and replay to it."""
    assert result.verdict == "violated"
    (found,) = result.violations
    assert found.property == property
    assert found.step == len(found.trace.steps)
    again = replay(found.trace)
    assert (found.property, found.text) in again.violations
    return found


# --- enumeration ----------------------------------------------------------------------------------------


@given(st.dictionaries(st.lists(st.integers(0, 3), max_size=4).map(tuple), st.integers(1, 4), max_size=30))
def test_every_combination_of_answers_is_tried_exactly_once(tree: dict[tuple[int, ...], int]) -> None:
    """The tree says how many options there are after given answers (none: no further question)."""

    def ask(script: Scripted) -> tuple[int, ...]:
        answers: tuple[int, ...] = ()
        while answers in tree:
            answers += (script.pick(tree[answers], "question"),)
        return answers

    def leaves(answers: tuple[int, ...]) -> list[tuple[int, ...]]:
        if answers not in tree:
            return [answers]
        return [leaf for option in range(tree[answers]) for leaf in leaves((*answers, option))]

    script, met, more = Scripted(), [], True
    while more:
        script.restart()
        met.append(ask(script))
        assert tuple(pick.chosen for pick in script.picks) == met[-1]
        more = script.advance()
    assert met == leaves(())


# --- golden counts --------------------------------------------------------------------------------------

GOLDEN = {
    "flag": (14, 13, 13),
    "watermark": (311, 484, 25),
    "no-grant-seq": (126, 201, 14),
    "free-without-quiescence": (473, 727, 41),
    "silent-unknown-room": (141, 169, 34),
    "max-progress": (51, 79, 19),
    "free-then-alloc": (217, 321, 28),
    "late-status": (103, 148, 16),
    "no-reserve": (28, 32, 19),
    "admission-first": (2931, 5891, 33),
}
"""States, transitions and depth of the protocol on built-in scenarios. A change of the protocol may change them; then
say why. Nothing else may: not the speed of the engine, and not the order in which it looks at things."""


@pytest.mark.parametrize("name", list(GOLDEN))
def test_the_protocol_has_exactly_so_many_states(name: str) -> None:
    result = check(zoo.scenario_named(name))
    assert (result.verdict, result.coverage, result.exit_code) == ("holds", "exhausted", 0)
    assert (result.states, result.transitions, result.depth) == GOLDEN[name]
    assert result.bounds == {"states_max": 5_000_000}
    again = check(zoo.scenario_named(name))
    assert (again.digest, again.states) == (result.digest, result.states)


# --- against a search that is too simple to be wrong ----------------------------------------------------

UNMOVED = (
    "scenario", "rules", "plan", "requests", "arrivals", "config",  # never change
    "events", "violations", "ticks", "history", "touched", "_out", "_offered", "block_kind",  # only of the last step
    "now", "heartbeat_at",  # time as such; no scenario here has heartbeats
)  # fmt: skip
TIMERS = ("progress_at", "resend_at", "expires_at")
OLDEST = -1600.0  # an age of more than the longest period is like any other
STATES_MAX = 3_000


def taken_apart(value: Any, now: float) -> Any:
    """Everything in a value, field by field, whatever its class says of saving; times relative to now."""
    if value is None or isinstance(value, (int, float, str, msgspec.Struct)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple([taken_apart(item, now) for item in value])
    if isinstance(value, dict):
        return tuple([(taken_apart(key, now), taken_apart(item, now)) for key, item in value.items()])
    if isinstance(value, (type, range, FunctionType, MethodType, BuiltinMethodType)):
        return None
    slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ()) if hasattr(value, name)]
    parts = []
    for name in (*slots, *getattr(value, "__dict__", {})):
        if name not in UNMOVED:
            part = getattr(value, name)
            parts.append((name, max(part - now, OLDEST) if name in TIMERS else taken_apart(part, now)))
    return (type(value).__name__, tuple(parts))


class Naive(NamedTuple):
    """``first``: property -> the number of steps after which it is broken first."""

    first: dict[str, int]
    states: int
    transitions: int


class NaiveSearch:
    """Breadth first. Two states are one only if every field of every object is equal, and none is ever loaded: each is
    reached by a run from the start."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.rules = scenario, rules_of(scenario)
        self.ways: list[tuple[tuple[Action, tuple[int, ...]], ...]] = [()]
        world = self.at(0)
        self.index = {taken_apart(world, world.now): 0}
        self.back: dict[int, list[int]] = {}
        self.over: list[int] = []
        self.first: dict[str, int] = {}
        self.transitions = 0

    def at(self, number: int) -> World:
        world = World(self.scenario, self.rules, flat=True, arrive_any_time=True)
        for action, answers in self.ways[number]:
            actions.apply(world, action, Scripted(answers))
        world.monitors.violations = []
        return world

    def search(self) -> Naive:
        number = 0
        while number < len(self.ways):
            assert len(self.ways) < STATES_MAX
            self.expand(number)
            number += 1
        self.judge()
        return Naive(self.first, len(self.ways), self.transitions)

    def expand(self, number: int) -> None:
        world = self.at(number)
        course = actions.enabled(world)
        if world.done():
            self.over.append(number)
            if world.left_behind():
                self.broken("L2", number)
        elif not course:
            self.broken("L2" if world.all_ended() else "L1", number)
        else:
            for position, action in enumerate(course + actions.faults(world)):
                self.take(number, action, position < len(course))

    def take(self, number: int, action: Action, harmless: bool) -> None:
        """One action, with all answers to what it asks."""
        script, more = Scripted(), True
        while more:
            script.restart()
            world = self.at(number)
            actions.apply(world, action, script)
            self.transitions += 1
            reached = self.index.setdefault(taken_apart(world, world.now), len(self.ways))
            if reached == len(self.ways):
                self.ways.append((*self.ways[number], (action, tuple([pick.chosen for pick in script.picks]))))
            for violation in world.monitors.violations:
                self.first.setdefault(violation.property, len(self.ways[number]) + 1)
            if harmless:
                self.back.setdefault(reached, []).append(number)
            more = script.advance()

    def broken(self, property: str, number: int) -> None:
        self.first.setdefault(property, len(self.ways[number]))

    def judge(self) -> None:
        """Liveness: from where no state that is over can be reached."""
        ends = [False] * len(self.ways)
        stack = list(self.over)
        while stack:
            number = stack.pop()
            if not ends[number]:
                ends[number] = True
                stack += self.back.get(number, ())
        for number, well in enumerate(ends):
            if not well:
                self.broken("L2" if self.at(number).all_ended() else "L1", number)


COMPARED = {
    "two requests": with_pool(but(TINY, requests=(Request(tokens=3), Request(tokens=2))), refusals_max=0),
    "a duplicate": but(TINY, faults=Faults(duplicate_max=1)),
    "a delay and a duplicate": but(SMALL, faults=Faults(delay_max=1, duplicate_max=1)),
    "an abort": but(TINY, faults=Faults(abort_max=1)),
    "early grants": but(SMALL, requests=(Request(tokens=3, grant_tokens=2),), faults=Faults(abort_max=1)),
    "late data": but(SMALL, schedule=Schedule(data_lags_status=True), faults=Faults(abort_max=1)),
    "slow copies": but(SMALL, schedule=Schedule(copy_lags=True, staging_lags=True), faults=Faults(abort_max=1)),
    "notices": but(SMALL, schedule=Schedule(notice_lags=True), faults=Faults(abort_max=1)),
    "leases": with_pool(but(SMALL, faults=Faults(abort_max=1)), lease=True, blocks=3),
    "held results": but(SMALL, result=keys.Result(tokens=3, held=True), faults=Faults(abort_max=1)),
    "a drop": but(TINY, time=SHORT, faults=Faults(drop_max=1)),
    "a partition": but(SMALL, time=SHORT, faults=Faults(partition_max=1)),
    "a clock jump": but(SMALL, time=SHORT, faults=Faults(clock_jump_max=1)),
    "crashes": but(SMALL, faults=Faults(sender_crash_max=1, receiver_crash_max=1)),
    "two ranks": but(SMALL, ranks=RankCounts(receivers=2)),
    "one room twice": but(SMALL, requests=(Request(tokens=2, room=1, count=2),), faults=Faults(duplicate_max=1)),
    "flag": zoo.scenario_for("flag"),
    "indices-before": with_pool(zoo.scenario_for("indices-before", "L1"), allocator="adversary"),
    "sent-accumulate": zoo.scenario_for("sent-accumulate", "I2"),
    "max-progress": zoo.scenario_for("max-progress"),
    "no-grant-seq": but(zoo.scenario_for("no-grant-seq"), requests=(Request(tokens=8),)),
    "free-without-quiescence": zoo.scenario_for("free-without-quiescence"),
    "late-status": zoo.scenario_for("late-status"),
    "last-destination-verdict": zoo.scenario_for("last-destination-verdict"),
    "no-reserve": with_pool(zoo.scenario_for("no-reserve"), allocator="adversary"),
}


@pytest.mark.parametrize("name", list(COMPARED))
def test_a_naive_search_breaks_the_same_properties_after_as_many_steps(name: str) -> None:
    scenario = COMPARED[name]
    naive = NaiveSearch(scenario).search()
    whole = check(scenario, only=[property for property in PROPERTIES if property not in naive.first])
    assert (whole.verdict, whole.coverage) == ("holds", "exhausted")
    assert 1 < whole.states <= naive.states and whole.transitions <= naive.transitions
    for property, steps in naive.first.items():
        assert only_one(check(scenario, only=(property,)), property).step == steps
    nearest = check(scenario).violations
    assert bool(nearest) == bool(naive.first)
    safety = [steps for property, steps in naive.first.items() if property in SAFETY]
    assert all(found.step <= min(safety, default=found.step) for found in nearest)


@pytest.mark.parametrize(
    "name", [name for name, scenario in COMPARED.items() if scenario.pool.allocator == "adversary"]
)
def test_symmetry_leaves_out_states_and_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = COMPARED[name]
    reduced = check(scenario)
    made = StateSpace.__init__

    def plain(self: StateSpace, world: World) -> None:
        made(self, world)
        assert self.symmetric
        self.symmetric = False

    monkeypatch.setattr(StateSpace, "__init__", plain)
    whole = check(scenario)
    assert (whole.verdict, whole.coverage) == (reduced.verdict, reduced.coverage)
    assert [(f.property, f.step) for f in whole.violations] == [(f.property, f.step) for f in reduced.violations]
    assert whole.states >= reduced.states and whole.depth == reduced.depth
    if name == "two requests":
        assert whole.states > 1.5 * reduced.states


# --- bounds ---------------------------------------------------------------------------------------------


def test_a_bound_of_states_that_runs_out_gives_no_answer() -> None:
    whole = check(TINY)
    assert whole.coverage == "exhausted"
    for states_max in range(1, whole.states):
        result = check(TINY, states_max=states_max)
        assert (result.verdict, result.coverage, result.exit_code) == ("unknown", "bounded", 4)
        assert result.violations == ()
        assert states_max < result.states <= whole.states
        assert result.bounds["states_max"] == states_max
        assert result.bounds["ran_out"].startswith(f"states_max, after {result.states} states to depth ")
    enough = check(TINY, states_max=whole.states)
    assert (enough.verdict, enough.coverage, "ran_out" in enough.bounds) == ("holds", "exhausted", False)


def test_what_is_found_within_a_bound_is_found() -> None:
    scenario = zoo.scenario_for("none")
    steps = check(scenario).violations[0].step
    result = check(scenario, states_max=steps + 1)
    assert (result.verdict, result.coverage, result.exit_code) == ("violated", "bounded", 1)
    assert only_one(result, "I6").step == steps
    assert check(scenario, states_max=2).verdict == "unknown"


class Clock:
    """Reads 0, then ``step`` more each time."""

    def __init__(self, step: float) -> None:
        self.step, self.reads = step, -1

    def __call__(self) -> float:
        self.reads += 1
        return self.reads * self.step


def test_a_bound_of_time_that_runs_out_gives_no_answer() -> None:
    result = check(TINY, time_max_s=0.5, clock=Clock(1.0))
    assert (result.verdict, result.coverage, result.exit_code) == ("unknown", "bounded", 4)
    assert result.bounds == {
        "states_max": 5_000_000, "time_max_s": 0.5, "ran_out": "time, after 1 states to depth 0",
    }  # fmt: skip
    assert result.elapsed_s == 2.0


def test_time_is_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.engines.check._REPORT_EVERY", 50)
    result = check(zoo.scenario_named("exhaust-two-requests"), time_max_s=4.5, clock=Clock(1.0))
    assert result.verdict == "unknown" and result.states > 200
    assert result.bounds["ran_out"].startswith("time, after ")


def test_time_enough_changes_nothing() -> None:
    result = check(TINY, time_max_s=100.0, clock=Clock(0.25))
    assert (result.verdict, result.coverage) == ("holds", "exhausted")
    assert result.bounds == {"states_max": 5_000_000, "time_max_s": 100.0}
    assert (check(TINY).elapsed_s, result.elapsed_s) == (0.0, 0.5)


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.engines.check._REPORT_EVERY", 50)
    told: list[tuple[int, int, int]] = []
    result = check(zoo.scenario_named("watermark"), progress=lambda *seen: told.append(seen))
    assert told[0] == (1, 0, 1) and len(told) == 1 + (result.states - 1) // 50
    assert told == sorted(told) and told[-1][1] <= result.depth
    assert all(0 < frontier <= states for states, _, frontier in told)


# --- what is asked for ----------------------------------------------------------------------------------


def test_only_the_properties_that_are_asked_for_end_the_search() -> None:
    scenario = zoo.scenario_for("no-grant-seq")
    steps = {}
    for property in ("I8", "I6", "I1"):
        result = check(scenario, only=(property,))
        steps[property] = only_one(result, property).step
    assert steps == {"I8": 5, "I6": 6, "I1": 8}
    assert check(scenario).violations[0].property == "I8"  # the nearest
    assert check(scenario, only=("I1", "I6")).violations[0].property == "I6"
    assert check(scenario, only=("I2",)).verdict == "holds"


def test_a_trace_holds_its_scenario_and_its_digest() -> None:
    scenario = zoo.scenario_for("generation")
    result = check(scenario)
    (found,) = result.violations
    header = found.trace.header
    assert (header.engine, header.machine) == ("check", "flat")
    assert msgspec.convert(header.scenario, Scenario) == scenario
    assert found.trace.ending.digest == result.digest == trace_digest(list(found.trace.steps))
    assert (found.trace.ending.property, found.trace.ending.text) == (found.property, found.text)
    other = zoo.scenario_for("none")
    assert check(other).digest == result.digest  # the same steps
    assert check(zoo.scenario_for("flag")).digest != result.digest


def test_the_requests_of_a_result_are_those_of_its_trace() -> None:
    (request,) = check(zoo.scenario_for("generation")).requests
    assert (request.resumed_at, request.grants_executed) == ((8, 8), 2)
    assert (request.state, request.tokens, request.tokens_delivered, request.content_ok) == (
        "Transferring", 24, 8, True,
    )  # fmt: skip
    (request,) = check(zoo.scenario_named("flag")).requests
    assert (request.state, request.tokens_delivered, request.resumed_at) == ("Success", 24, (8, 16))
    assert request.grants_executed == 3


# --- planted mistakes -----------------------------------------------------------------------------------


def leak(ledger: BlockLedger, room: Any, owner: Owner, refs: tuple[BlockRef, ...]) -> None:
    """The last block of what was read is not given back."""
    ledger.free(owner, refs[:-1])


def test_a_block_that_is_never_given_back_is_l2(plant: Callable[..., None]) -> None:
    plant(free=leak)
    scenario = with_pool(zoo.scenario_named("flag"), blocks=8)
    found = only_one(check(scenario), "L2")
    assert found.text == "all requests have ended, and receiver 0: 3 of 8 blocks are not free"
    assert check(scenario).exit_code == 3


def test_a_deadline_that_fires_undisturbed_is_l1(plant: Callable[..., None]) -> None:
    plant(wanted=lambda needed, most: 0)  # nobody is ever granted anything
    result = check(TINY)
    found = only_one(result, "L1")
    assert "DEADLINE, though nothing was lost, crashed, cut off or aborted" in found.text
    assert result.exit_code == 3


def test_a_deadline_that_fires_after_a_loss_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = but(TINY, time=SHORT, faults=Faults(drop_max=1))
    fired = []
    taken = World._finished

    def spy(self: World, side: str, effect: Any) -> None:
        fired.append(effect.reason)
        taken(self, side, effect)

    monkeypatch.setattr(World, "_finished", spy)
    assert check(scenario).verdict == "holds"
    assert any("DEADLINE" in reason for reason in fired)


def test_a_world_that_stands_still_is_l1_whatever_faults_may_still_come(plant: Callable[..., None]) -> None:
    """An abort would end the requests; but nobody has to abort."""
    plant(deadlines=zoo.no, copy_when_landed=zoo.copy_after_grant)
    for aborts in (0, 1):
        scenario = but(zoo.scenario_named("alloc-before-free"), faults=Faults(abort_max=aborts))
        found = only_one(check(scenario), "L1")
        assert found.text == "nothing will ever happen again, and requests have not ended"


def test_a_search_that_stops_at_the_first_end_of_a_run_is_not_exhausted(plant: Callable[..., None]) -> None:
    plant(free=leak)
    scenario = but(TINY, faults=Faults(duplicate_max=1))
    stopped, whole = check(scenario), check(scenario, only=())
    assert only_one(stopped, "L2").text == "all requests have ended, and receiver 0: 2 of 2 blocks are not free"
    assert (whole.verdict, whole.coverage) == ("holds", "exhausted")
    assert stopped.states < whole.states and stopped.coverage == "bounded"


def test_a_region_without_a_way_out_is_l1_though_things_go_on_happening_in_it() -> None:
    """Messages are sent again for ever; the room is not known, and nobody says so."""
    scenario = zoo.scenario_for("silent-unknown-room")
    result = check(scenario)
    found = only_one(result, "L1")
    lost = "from here no run without further faults ends every request; 201 steps on, 2 steps repeat"
    assert found.text.startswith(lost)
    assert [step.action[0] for step in found.trace.steps] == ["sender_crash"]
    ending = found.trace.ending
    assert [step.text for step in ending.endless[-ending.turn :]] == ["deliver Register to sender 0", "time"]
    assert result.coverage == "exhausted"  # only a whole graph shows that there is no way out
    with_aborts = but(scenario, faults=Faults(sender_crash_max=1, abort_max=1))
    assert only_one(check(with_aborts, only=("L1",)), "L1").step == 1


def test_what_is_left_after_all_have_ended_is_l2(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = but(TINY, faults=Faults(abort_max=1))
    with monkeypatch.context() as patch:  # an acknowledgement that proves nothing: the blocks stay in quarantine

        def deaf(self: FactKeeper, tombstone: Any, message: Any) -> None:
            tombstone.abort = None

        patch.setattr(FactKeeper, "_on_abort_ack", deaf)
        found = only_one(check(scenario, only=("L2",)), "L2")
        assert found.text == "all requests have ended, and what is left will never be cleared"
    with monkeypatch.context() as patch:  # an ABORT that is never answered is sent again for ever
        patch.setattr(Sender, "_on_abort", lambda self, message, now_s: None)
        found = only_one(check(scenario, only=("L2",)), "L2")
        words, _, goes_on = found.text.partition("; ")
        assert words == "all requests have ended, and from here nothing clears what is left of them"
        assert "2 steps repeat for ever: deliver Abort to sender 0; time" in goes_on
    assert check(scenario).verdict == "holds"


def test_an_error_of_the_code_under_test_is_not_swallowed(plant: Callable[..., None]) -> None:
    def breaks(room: Any) -> bool:
        raise ZeroDivisionError("planted")

    plant(detect=breaks)
    with pytest.raises(ZeroDivisionError, match="planted"):
        check(TINY)


def ahead(room: Any, block_tokens: int, landed_required: bool, headers: Any) -> int:
    """The watermark of a grant that is out, as if it had landed."""
    return room.word_tokens if room.grant is None else room.grant.start + room.grant.capacity


def doubly(ledger: BlockLedger, room: Any, owner: Owner, refs: tuple[BlockRef, ...]) -> None:
    """What was read is given back twice."""
    ledger.free(owner, refs)
    ledger.free(owner, refs)


PLANTED: Mapping[str, tuple[str, dict[str, Any], Scenario]] = {
    "reads what has not landed": ("I2", {"progress": ahead}, TINY),
    "frees twice": ("I3", {"free": doubly}, TINY),
    "starts one token early": ("L1", {"resume_start": lambda committed, block: committed - 1}, TINY),
    "always resumes": (
        "I6",
        {"detect": zoo.detect_always, "table": zoo.FIVE},
        with_pool(zoo.scenario_named("none"), blocks=6),
    ),
    "unequal ranks": ("I7", {"equal_capacity": zoo.own_blocks}, zoo.scenario_named("last-destination-verdict")),
}


@pytest.mark.parametrize("name", list(PLANTED))
def test_a_planted_mistake_is_found(name: str, plant: Callable[..., None]) -> None:
    property, rules, scenario = PLANTED[name]
    assert check(scenario).verdict == "holds"
    plant(**rules)
    found = only_one(check(scenario, only=(property,)), property)
    assert found.step <= 12


def test_every_property_can_be_found_broken(plant: Callable[..., None]) -> None:
    """The zoo breaks all of them, I5 and I8 on the way to something else; L2 is broken above."""
    shows = {"I1": "first-rank-triggers", "I2": "floor-start", "I3": "free-then-alloc", "I4": "late-status",
             "I5": "last-destination-verdict", "I6": "no-grant-seq", "I7": "last-destination-verdict",
             "I8": "no-grant-seq", "L1": "no-reserve", "L3": "admission-first"}  # fmt: skip
    for property, variant in shows.items():
        only_one(check(zoo.scenario_for(variant), only=(property,)), property)
    assert {*shows, "L2"} == set(PROPERTIES) == {*SAFETY, *LIVENESS}


# --- traces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*zoo.DETECTORS, *zoo.HAZARDS])
def test_every_trace_of_the_zoo_replays_to_the_same_violation(name: str) -> None:
    for job in zoo_table.zoo_jobs():
        if job.variant == name:
            _, result = zoo_table.run_job(job)
            assert bool(result.violations) == (job.expected != "holds")
            if result.violations:
                only_one(result, job.property)


def test_a_trace_breaks_its_property_in_its_last_step_and_not_before() -> None:
    result = check(zoo.scenario_for("first-rank-triggers"))
    (found,) = result.violations
    scenario = zoo.scenario_for("first-rank-triggers")
    world = new_world(scenario)
    for step in found.trace.steps:
        assert world.monitors.violations == []
        assert step.action in actions.enabled(world) + actions.faults(world)
        assert actions.describe_action(world, step.action) == step.text
        actions.apply(world, step.action, Scripted([pick.chosen for pick in step.picks]))
    assert [tuple(violation) for violation in world.monitors.violations] == [(found.property, found.text)]


def test_the_zoo_hides_behind_hazards_only() -> None:
    """The same scenarios without their hazard hold: what is found is the hazard's doing."""
    for name in zoo.HAZARDS:
        scenario = with_hazards(zoo.scenario_for(name))
        assert rules_of(scenario) == PROTOCOL
        assert check(scenario).verdict == "holds"
