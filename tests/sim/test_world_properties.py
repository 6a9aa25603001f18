"""Hypothesis drives the whole world: it draws the scenario and every choice in it.

Two ways. In one a run goes as ``simulate`` makes it go, with the drawn answers behind the one door. In the other,
a state machine test, Hypothesis itself is the scheduler: each of its rules is an action or a fault, and when it has
had enough, a fair scheduler brings the run to its end. Both assert the same: no property from I1 to L3 is broken, and
no watermark is resumed twice. And both must be able to fail: every variant of the zoo is found by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, find, given, note, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fsm.allocators import ALLOCATORS
from fsm.rules import PROTOCOL
from sim import actions, zoo
from sim.choices import Drawn, Recording, Seeded
from sim.engines.simulate import RunOutcome, is_over, judge_end, run_once
from sim.report import Report
from sim.scenario import (
    Faults,
    Pool,
    RankCounts,
    Request,
    Result,
    Scenario,
    Schedule,
    Source,
    Time,
    dump_toml,
    validate_scenario,
)  # fmt: skip
from sim.world import Action, World

DRAWN_CHOICES_MAX = 300
"""After so many drawn answers a seed, drawn as well, goes on: Hypothesis has only so much patience for one example."""

BLOCK_TOKENS_MAX = 4
TOKENS_MAX = 18


# Scenarios ---------------------------------------------------------------------------------------------


@st.composite
def scenarios(draw: Callable[..., Any], faults: bool = True) -> Scenario:
    """Small worlds of every shape: allocators, ranks, early grants, orders of data and STATUS, skew, faults."""
    block_tokens = draw(st.integers(1, BLOCK_TOKENS_MAX))
    receivers = draw(st.integers(1, 2))
    requests = tuple(
        Request(
            tokens=draw(st.integers(1, TOKENS_MAX)),
            grant_tokens=draw(st.one_of(st.just(0), st.integers(1, TOKENS_MAX))),
            arrives_at_tick=draw(st.sampled_from([0, 0, 3, 20])),
            room=draw(st.sampled_from([0, 0, 1])),
        )
        for _ in range(draw(st.integers(1, 3)))
    )
    data_lags_status = draw(st.booleans())
    largest = max(-(-request.tokens // block_tokens) for request in requests)
    scenario = Scenario(
        pool=Pool(
            blocks=draw(st.integers(1, 5)),
            blocks_by_rank=draw(st.sampled_from([(), (), tuple(range(2, 2 + receivers))])),
            block_tokens=block_tokens,
            allocator=draw(st.sampled_from(list(ALLOCATORS))),
            grant_blocks_max=draw(st.integers(0, 2)),
            refusals_max=draw(st.integers(0, 2)),
            stale_header_tokens=draw(st.sampled_from([0, 3])),
            lease=draw(st.booleans()),
        ),
        source=Source(blocks=largest + draw(st.sampled_from([0, 1, 64]))),
        result=Result(
            tokens=draw(st.sampled_from([0, 0, TOKENS_MAX, 2 * TOKENS_MAX])), held=draw(st.booleans())
        ),
        requests=requests,
        ranks=RankCounts(receivers=receivers, senders=draw(st.integers(1, receivers))),
        schedule=Schedule(
            polls_per_delivery=draw(st.integers(1, 2)),
            status_lags_data=draw(st.booleans()),
            data_lags_status=data_lags_status,
            notice_lags=not data_lags_status and draw(st.booleans()),
            copy_lags=draw(st.booleans()),
            staging_lags=draw(st.booleans()),
            rank_skew_ticks=draw(st.integers(0, 2)),
            ticks_free=draw(st.booleans()),
            ticks_max=5000,
        ),
        time=Time(heartbeat_ticks=draw(st.sampled_from([0, 50]))),
        faults=draw(budgets()) if faults else Faults(),
    )
    return validate_scenario(scenario)


def budgets() -> st.SearchStrategy[Faults]:
    names = [name for name in Faults.__struct_fields__ if name.endswith("_max")]
    rate = st.sampled_from([0.05, 0.2, 0.5])
    return st.builds(lambda rate, drawn: Faults(rate=rate, **drawn), rate, st.fixed_dictionaries(
        {name: st.sampled_from([0, 0, 1, 2]) for name in names}
    ))  # fmt: skip


# Choices -----------------------------------------------------------------------------------------------


class Drawing:
    """Answers from Hypothesis, and from a drawn seed when there have been enough of them."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.left = DRAWN_CHOICES_MAX
        self.seeded = Seeded(data.draw(st.integers(0, 2**16), label="seed of the rest"))

    def __call__(self, options: int, label: str) -> int:
        if self.left <= 0:
            return self.seeded.pick(options, label)
        self.left -= 1
        return self.data.draw(_below(options))


_STRATEGIES: dict[int, st.SearchStrategy[int]] = {}


def _below(options: int) -> st.SearchStrategy[int]:
    return _STRATEGIES.setdefault(options, st.integers(0, options - 1))


def drawn_run(scenario: Scenario, data: st.DataObject) -> RunOutcome:
    """One run whose every choice Hypothesis makes."""
    return run_once(scenario, Drawn(Drawing(data)), machine="flat", record=True)


def told(scenario: Scenario, outcome: RunOutcome) -> None:
    """Show a run that went wrong, step by step."""
    note(dump_toml(scenario))
    assert outcome.trace is not None
    for number, step in enumerate(outcome.trace.steps, start=1):
        picks = "".join(f"  {pick.label}={pick.chosen}/{pick.options}" for pick in step.picks)
        note(f"{number:3} {step.text}{picks}")


# Runs --------------------------------------------------------------------------------------------------


def assert_right(scenario: Scenario, outcome: RunOutcome) -> None:
    if outcome.violations:
        told(scenario, outcome)
    assert outcome.violations == ()
    for request in outcome.requests:
        assert request.content_ok
        assert len(dict.fromkeys(request.resumed_at)) == len(request.resumed_at)
        assert list(request.resumed_at) == sorted(request.resumed_at)
        assert request.state in ("Success", "Failed")
        assert request.tokens_delivered == request.tokens or request.state == "Failed"
    for name in outcome.sometimes:
        event(name)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scenarios(), st.data())
def test_no_property_is_broken_whatever_happens(scenario: Scenario, data: st.DataObject) -> None:
    assert_right(scenario, drawn_run(scenario, data))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scenarios(faults=False), st.data())
def test_without_faults_every_request_ends_in_success(scenario: Scenario, data: st.DataObject) -> None:
    outcome = drawn_run(scenario, data)
    assert_right(scenario, outcome)
    assert [request.state for request in outcome.requests] == ["Success"] * len(outcome.requests)


# A state machine test ----------------------------------------------------------------------------------


class WorldMachine(RuleBasedStateMachine):
    """Hypothesis as the scheduler and as the adversary."""

    world: World

    @initialize(scenario=scenarios(), seed=st.integers(0, 2**16))
    def begin(self, scenario: Scenario, seed: int) -> None:
        self.world = World(scenario, PROTOCOL, flat=True)
        self.choices = Recording(Seeded(seed))
        self.report = Report(self.world)
        self.report.take(self.world.events)

    def _do(self, course: Sequence[Action], choice: int) -> None:
        action = course[choice % len(course)]
        note(actions.describe_action(self.world, action))
        actions.apply(self.world, action, self.choices)
        self.report.take(self.world.events)

    def _over(self) -> bool:
        return is_over(self.world, actions.enabled(self.world))

    @precondition(lambda self: not self._over())
    @rule(choice=st.integers(0, 31))
    def act(self, choice: int) -> None:
        self._do(actions.enabled(self.world), choice)

    @precondition(lambda self: not self._over() and bool(actions.faults(self.world)))
    @rule(choice=st.integers(0, 31))
    def strike(self, choice: int) -> None:
        self._do(actions.faults(self.world), choice)

    @precondition(lambda self: self._over())
    @rule()
    def rest(self) -> None:
        """All is over; Hypothesis wants something to do until it has done as many steps as it meant to."""

    @invariant()
    def nothing_is_broken(self) -> None:
        if hasattr(self, "world"):
            assert self.world.monitors.violations == []

    def teardown(self) -> None:
        """Fair from here on, and no more faults."""
        if not hasattr(self, "world") or self.world.monitors.violations:
            return
        if self.world.network.cut:
            self._do([("heal",)], 0)
        while not self._over() and not self.world.monitors.violations:
            course = actions.enabled(self.world)
            self._do(course, self.choices.pick(len(course), "action"))
            assert self.world.ticks < self.world.scenario.schedule.ticks_max
        assert self.world.monitors.violations == []
        assert judge_end(self.world) is None
        for request in self.report.requests():
            assert len(dict.fromkeys(request.resumed_at)) == len(request.resumed_at)
            assert request.content_ok


WorldMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestWorldMachine = WorldMachine.TestCase


# It can fail -------------------------------------------------------------------------------------------

WRONG = [
    pytest.param(variant.name, broken, id=f"{variant.name}-{broken}")
    for variant in (*zoo.DETECTORS.values(), *zoo.HAZARDS.values())
    for _, broken in variant.shows()
    if broken
]
RIGHT = [variant.name for variant in (*zoo.DETECTORS.values(), *zoo.HAZARDS.values()) if variant.shows()[0][1] == ""]


@pytest.mark.parametrize(("variant", "broken"), WRONG)
def test_every_wrong_variant_is_found(variant: str, broken: str) -> None:
    """In its own scenario, by drawn choices alone. The first property to break may be another than the zoo names: the
    exhaustive search can pass by, and a run ends."""
    scenario = zoo.scenario_for(variant, broken)
    patient = settings(max_examples=3000, phases=[Phase.generate], derandomize=True, database=None)

    def breaks(data: st.DataObject) -> bool:
        return bool(drawn_run(scenario, data).violations)

    try:
        find(st.data(), breaks, settings=patient)
    except NoSuchExample:
        pytest.fail(f"{variant} was not found in {patient.max_examples} runs")


@pytest.mark.parametrize("variant", RIGHT)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_a_right_variant_survives(variant: str, data: st.DataObject) -> None:
    scenario = zoo.scenario_for(variant)
    assert_right(scenario, drawn_run(scenario, data))
