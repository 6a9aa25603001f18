"""The zoo: every wrong version is found, by the exhaustive engine and by Hypothesis, and the protocol survives both.

The table of what must be found is written out here once more, from the specification and not from the code, so that a
variant that quietly lost its mistake is noticed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from fsm.allocators import ALLOCATORS
from fsm.errors import LocalError
from fsm.lifecycle import RECEIVER_FIVE_STATE_TABLE, RECEIVER_TABLE
from fsm.rules import PROTOCOL, Rules
from sim import actions, zoo, zoo_table
from sim.choices import Choices, Drawn
from sim.engines.check import check
from sim.engines.simulate import is_over, judge_end
from sim.scenario import Request, Scenario, load_scenario, validate_scenario
from sim.world import World

EXPECTED: dict[str, tuple[str, ...]] = {
    # detectors
    "watermark": (),
    "watermark-five": (),
    "none": ("I6",),
    "flag": ("L1",),
    "indices-after": ("L1",),
    "indices-before": ("I6", "L1"),
    "generation": ("I6",),
    "sent-accumulate": ("L1", "I2"),
    "sent-cached": ("L1",),
    # hazards
    "free-then-alloc": ("I3",),
    "alloc-before-free": ("L1",),
    "all-or-nothing": ("L1",),
    "max-progress": ("I2",),
    "first-rank-triggers": ("I1",),
    "no-grant-seq": ("I6", "I1"),
    "free-without-quiescence": ("I1",),
    "late-status": ("I4",),
    "floor-start": ("I2",),
    "plane-major-mrope": ("I2",),
    "stale-header": (),
    "silent-unknown-room": ("L1",),
    "last-destination-verdict": ("I2",),
    "admission-first": ("L3",),
    "no-reserve": ("L1",),
}
"""Every version and the properties that it is known for; none: it must hold."""

HIDDEN = {
    ("indices-before", "L1", "lifo"),  # turns the list round each time, so it never equals the one before
    ("alloc-before-free", "L1", "stingy"),  # never gives the whole pool at once
    ("floor-start", "I2", "stingy"),  # one block a grant: the early one ends where the block does
    ("last-destination-verdict", "I2", "stingy"),  # one block a grant: all ranks' grants are equal
    ("no-reserve", "L1", "stingy"),  # one block a grant: the other is left free anyway
}
"""Where an allocator keeps a mistake from showing: there the protocol's properties must hold, to the last state."""

OFF = {
    "sent-accumulate": ("read_guard", "claim", "header_clearing", "start_check"),
    "max-progress": ("start_check",),
    "no-grant-seq": ("start_check",),
    "last-destination-verdict": ("equal_capacity", "status_exact"),
}
"""The rules that a variant switches off besides its own mistake, because they would hide it. Not here: ``late-status``,
whose one rule is both, and ``silent-unknown-room``: with no deadlines at all, a room that is never known is asked for
without end whatever the answer is."""

VARIANTS = {**zoo.DETECTORS, **zoo.HAZARDS}
SHOWN = [(name, property) for name, properties in EXPECTED.items() for property in properties]
JOBS = zoo_table.zoo_jobs()


def rules_of(scenario: Scenario) -> Rules:
    return zoo.rules_for(scenario.variant.detector, scenario.variant.hazards)


# --- the table ------------------------------------------------------------------------------------------


def test_every_version_is_there_with_the_properties_that_it_is_known_for() -> None:
    assert {name: variant.expected for name, variant in VARIANTS.items()} == EXPECTED
    assert [variant.kind for variant in zoo.DETECTORS.values()] == ["detector"] * len(zoo.DETECTORS)
    assert [variant.kind for variant in zoo.HAZARDS.values()] == ["hazard"] * len(zoo.HAZARDS)
    assert all(name == variant.name for name, variant in VARIANTS.items())
    assert len(VARIANTS) == len(zoo.DETECTORS) + len(zoo.HAZARDS)
    for variant in VARIANTS.values():
        assert variant.mistake and variant.shows_with


def test_detectors_run_on_the_historical_table_and_watermark_on_both() -> None:
    for name in zoo.DETECTORS:
        table = RECEIVER_TABLE if name == "watermark" else RECEIVER_FIVE_STATE_TABLE
        assert zoo.rules_for(name).table is table
    for name in zoo.HAZARDS:
        assert zoo.rules_for("watermark", [name]).table is RECEIVER_TABLE
    assert zoo.rules_for("watermark") == PROTOCOL
    assert replace(zoo.rules_for("watermark-five"), table=RECEIVER_TABLE) == PROTOCOL


def test_every_version_is_run_under_every_allocator_for_each_of_its_properties() -> None:
    allocators = ("fifo", "lifo", "same-again", "disjoint", "stingy", "adversary")
    assert zoo.FAMILIES == zoo_table.FAMILIES == allocators == tuple(ALLOCATORS)
    rows = [(job.variant, job.property, job.allocator) for job in JOBS]
    assert rows == [
        (name, property, allocator)
        for name, properties in EXPECTED.items()
        for property in properties or ("",)
        for allocator in allocators
    ]
    for job in JOBS:
        hidden = not job.property or (job.variant, job.property, job.allocator) in HIDDEN
        assert job.expected == ("holds" if hidden else job.property), job
    assert {
        (job.variant, job.property, job.allocator) for job in JOBS if job.property and job.expected == "holds"
    } == HIDDEN


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.variant}-{job.property or 'holds'}-{job.allocator}")
def test_every_row_of_the_table_is_as_expected(job: zoo_table.Job) -> None:
    row, result = zoo_table.run_job(job)
    assert row.as_expected
    assert (row.variant, row.kind, row.allocator, row.expected) == (job.variant, job.kind, job.allocator, job.expected)
    assert row.states == result.states > 0
    if job.expected == "holds":
        assert (row.verdict, row.coverage, row.property, row.steps) == ("holds", "exhausted", "", 0)
        assert result.exit_code == 0
        assert [request.state for request in result.requests] == ["Success"] * len(result.requests)
        assert all(request.content_ok for request in result.requests)
    else:
        assert (row.verdict, row.property) == ("violated", job.property)
        assert row.steps == len(result.violations[0].trace.steps) > 0
        assert result.exit_code == (3 if job.property in ("L1", "L2", "L3") else 1)


def test_a_row_tells_the_command_that_shows_its_trace() -> None:
    commands = [zoo_table.command_for(job) for job in JOBS]
    assert commands[0] == "resumark check watermark --allocator fifo"
    assert "resumark check watermark --detector watermark-five --allocator fifo" in commands
    assert "resumark check flag --detector flag --allocator lifo --only L1" in commands
    assert "resumark check no-grant-seq --hazard no-grant-seq --allocator adversary --only I1" in commands
    assert len(dict.fromkeys(commands)) == len(commands)


@pytest.mark.parametrize("allocator", zoo.FAMILIES)
@pytest.mark.parametrize("detector", zoo_table.TABLES)
def test_the_protocol_holds_and_every_state_was_seen(detector: str, allocator: str) -> None:
    """On both tables; the adversary with a refusal. Here without a bound, and for all properties at once."""
    job = zoo_table.Job(detector, "detector", "watermark", "", allocator, "holds")
    scenario = zoo_table.job_scenario(job)
    assert scenario.pool.refusals_max == 1
    result = check(scenario)
    assert (result.verdict, result.coverage, result.violations) == ("holds", "exhausted", ())
    assert all(len(request.resumed_at) == 2 for request in result.requests)


@pytest.mark.parametrize("allocator", zoo.FAMILIES)
def test_stale_headers_alone_are_harmless_and_amplify_what_reads_them(allocator: str) -> None:
    scenario = zoo.scenario_for("stale-header")
    assert scenario.pool.stale_header_tokens > 0
    scenario = with_allocator(scenario, allocator)
    assert check(scenario).verdict == "holds"
    variant = msgspec.structs.replace(scenario.variant, detector="sent-accumulate")
    schedule = msgspec.structs.replace(scenario.schedule, polls_per_delivery=6)
    amplified = msgspec.structs.replace(scenario, variant=variant, schedule=schedule)
    result = check(amplified, only=("I2",))
    assert [found.property for found in result.violations] == ["I2"]


@pytest.mark.parametrize("name", sorted(OFF))
def test_it_is_the_mistake_that_breaks_it_and_not_what_was_switched_off(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the mistake itself, the rules that are off break nothing in as many steps."""
    variant = VARIANTS[name]
    rules = replace(PROTOCOL, **{rule: variant.replaces[rule] for rule in OFF[name]})
    assert len(OFF[name]) < len(variant.replaces)
    for property in variant.expected:
        scenario = zoo.scenario_for(name, property)
        steps = check(scenario, only=(property,)).violations[0].step
        with monkeypatch.context() as patch:
            patch.setattr(zoo, "rules_for", lambda detector, hazards: rules)
            harmless = check(scenario, only=(property,))
        assert all(found.step > steps for found in harmless.violations)


def test_the_table_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from sim.zoo_table import *\n"
        "rows = [run_job(job) for job in zoo_jobs()[::11]]\n"
        "print([(row, result.digest) for row, result in rows])\n"
    )
    outputs = []
    for seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1] and len(outputs[0]) > 1000


# --- combinations, names, refusals ----------------------------------------------------------------------


def test_hazards_combine_and_each_keeps_breaking_what_it_is_known_for() -> None:
    hazards = ("floor-start", "plane-major-mrope", "free-then-alloc", "admission-first", "stale-header")
    rules = zoo.rules_for("watermark", hazards)
    for name in hazards:
        for rule, value in zoo.HAZARDS[name].replaces.items():
            assert getattr(rules, rule) is value
    for name in hazards[:4]:
        property = EXPECTED[name][0]
        scenario = zoo.scenario_for(name)
        variant = msgspec.structs.replace(scenario.variant, hazards=hazards)
        result = check(msgspec.structs.replace(scenario, variant=variant), only=(property,))
        assert [found.property for found in result.violations] == [property]


def test_hazards_that_switch_off_the_same_rule_agree_and_combine() -> None:
    rules = zoo.rules_for("sent-accumulate", ["max-progress", "no-grant-seq", "stale-header"])
    assert rules.start_check is zoo.any_start
    assert rules.header_clearing is zoo.no
    assert rules.progress is zoo.progress_by_length
    assert rules.fold_progress is zoo.max_progress


def test_every_two_hazards_combine() -> None:
    for one in zoo.HAZARDS:
        for other in zoo.HAZARDS:
            assert zoo.rules_for("watermark", [one, other]) == zoo.rules_for("watermark", [other, one])
            assert zoo.rules_for("watermark", [one, one]) == zoo.rules_for("watermark", [one])


def test_two_that_replace_the_same_rule_differently_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(room: Any) -> tuple[int, int]:
        return (0, -room.epoch.counter)

    own = zoo.Variant("newest-first", "hazard", "newest first", "two requests", ("L3",), {"order": backwards})
    monkeypatch.setitem(zoo.HAZARDS, "newest-first", own)
    expected = "'admission-first' and 'newest-first' replace the same rule 'order'; choose one of them"
    with pytest.raises(LocalError) as refusal:
        zoo.rules_for("watermark", ["admission-first", "newest-first"])
    assert str(refusal.value) == expected
    detecting = zoo.Variant("detecting", "hazard", "detects", "anything", ("L1",), {"detect": zoo.detect_flag})
    monkeypatch.setitem(zoo.HAZARDS, "detecting", detecting)
    with pytest.raises(LocalError, match="'none' and 'detecting' replace the same rule 'detect'"):
        zoo.rules_for("none", ["detecting"])
    assert zoo.rules_for("flag", ["detecting"]) == zoo.rules_for("flag")


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    for call, unknown in (
        (lambda: zoo.rules_for("watermarks"), "there is no detector 'watermarks'; there are watermark, watermark-five"),
        (lambda: zoo.rules_for("watermark", ["none"]), "there is no hazard 'none'; there are free-then-alloc, "),
        (lambda: zoo.scenario_for("nothing"), "there is no variant 'nothing'; there are watermark, "),
        (lambda: zoo.scenario_named("nothing"), "there is no built-in scenario 'nothing'; there are abort-anywhere, "),
        (lambda: zoo.scenario_named("../scenarios/none"), "there is no built-in scenario '../scenarios/none'"),
    ):
        with pytest.raises(LocalError) as refusal:
            call()
        assert str(refusal.value).startswith(unknown)


def test_every_rule_that_is_replaced_exists_and_is_replaced_by_another() -> None:
    known = {field.name for field in fields(Rules)}
    for variant in VARIANTS.values():
        assert set(variant.replaces) <= known, variant.name
        for rule, value in variant.replaces.items():
            assert value is not getattr(PROTOCOL, rule), (variant.name, rule)
        assert bool(variant.replaces) == (variant.name != "watermark")


def test_every_seam_is_used_by_some_version() -> None:
    """A rule that nobody replaces need not be a rule; ``resume_start`` is the receiver's half of ``source_start``."""
    used = {rule for variant in VARIANTS.values() for rule in variant.replaces}
    assert {field.name for field in fields(Rules)} - used == {"resume_start"}


# --- scenarios ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.scenario_names())
def test_every_built_in_scenario_loads_and_builds_a_world(name: str) -> None:
    scenario = zoo.scenario_named(name)
    assert validate_scenario(scenario, detectors=zoo.DETECTORS, hazards=zoo.HAZARDS) == scenario
    assert load_scenario(zoo.SCENARIOS / f"{name}.toml") == scenario
    assert scenario.variant.detector == "watermark" and scenario.variant.hazards == ()
    world = World(scenario, rules_of(scenario))
    assert world.monitors.violations == [] and actions.enabled(world)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_every_version_has_a_scenario_of_its_own_for_each_property(name: str) -> None:
    variant = VARIANTS[name]
    shows = variant.shows()
    assert tuple(property for _, property in shows) == (EXPECTED[name] or ("",))
    for scenario_name, property in shows:
        assert scenario_name in zoo.scenario_names()
        scenario = zoo.scenario_for(name, property)
        plain = zoo.scenario_named(scenario_name)
        assert msgspec.structs.replace(scenario, variant=plain.variant) == plain
        if variant.kind == "detector":
            assert (scenario.variant.detector, scenario.variant.hazards) == (name, ())
        else:
            assert (scenario.variant.detector, scenario.variant.hazards) == ("watermark", (name,))
    assert zoo.scenario_for(name) == zoo.scenario_for(name, shows[-1][1])


def test_switching_a_version_on_switches_the_others_off() -> None:
    both = zoo.with_variant(zoo.scenario_for("none"), zoo.HAZARDS["floor-start"])
    assert (both.variant.detector, both.variant.hazards) == ("watermark", ("floor-start",))
    back = zoo.with_variant(both, zoo.DETECTORS["flag"])
    assert (back.variant.detector, back.variant.hazards) == ("flag", ())


def test_the_default_scenario_has_several_grants_several_requests_and_a_hostile_allocator() -> None:
    scenario = zoo.default_scenario()
    assert scenario.pool.allocator == "adversary" and scenario.pool.refusals_max > 0
    assert sum(request.count for request in scenario.requests) >= 2
    assert check(scenario).requests[0].grants_executed == 3


# --- Hypothesis -----------------------------------------------------------------------------------------

STEPS_MAX = 400
"""Far more than any run of these scenarios needs that ends at all."""

SEARCH = settings(derandomize=True, database=None, deadline=None, phases=[Phase.generate], max_examples=2000)
FAULT_ONE_IN = 4


def drive(scenario: Scenario, rules: Rules, choices: Choices, wanted: Sequence[str] = ()) -> dict[str, str]:
    """Drive a world by ``choices`` until a property is broken (one of those that are wanted) or all is over; returns
    what was broken, with the words. Who has not ended after so many steps never will."""
    world = World(scenario, rules, flat=True, arrive_any_time=True)
    broken = world.monitors.violations
    for _ in range(STEPS_MAX):
        if any(not wanted or violation.property in wanted for violation in broken):
            return dict(broken)
        course = actions.enabled(world)
        if is_over(world, course):
            ending = judge_end(world)
            return dict([*broken, *([ending] if ending else [])])
        chances = actions.faults(world)
        if chances and choices.pick(FAULT_ONE_IN, "fault") == FAULT_ONE_IN - 1:
            course = chances
        actions.apply(world, course[choices.pick(len(course), "action")], choices)
    return dict([*broken, ("L1", f"not over after {STEPS_MAX} steps")])


def with_allocator(scenario: Scenario, allocator: str) -> Scenario:
    return msgspec.structs.replace(scenario, pool=msgspec.structs.replace(scenario.pool, allocator=allocator))


@st.composite
def runs(
    draw: st.DrawFn, scenario: Scenario, rules: Rules, wanted: Sequence[str], allocators: Sequence[str]
) -> dict[str, str]:
    """What a run breaks whose every choice is drawn, the allocator included."""
    scenario = with_allocator(scenario, draw(st.sampled_from(allocators)))
    return drive(scenario, rules, Drawn(lambda options, label: draw(st.integers(0, options - 1))), wanted)


@pytest.mark.parametrize(("name", "property"), SHOWN)
def test_hypothesis_finds_every_version(name: str, property: str) -> None:
    scenario = zoo.scenario_for(name, property)
    allocators = [a for a in zoo.FAMILIES if (name, property, a) not in HIDDEN]
    strategy = runs(scenario, rules_of(scenario), (property,), allocators)
    found = find(strategy, lambda broken: property in broken, settings=SEARCH)
    assert property in found


@pytest.mark.parametrize("detector", zoo_table.TABLES)
@pytest.mark.parametrize("name", [name for name in zoo.scenario_names() if not name.startswith("exhaust-")])
def test_the_protocol_survives_the_same_drive(name: str, detector: str) -> None:
    scenario = zoo.scenario_named(name)
    rules = zoo.rules_for(detector)

    @settings(SEARCH, max_examples=40)
    @given(runs(scenario, rules, (), zoo.FAMILIES))
    def survives(broken: dict[str, str]) -> None:
        assert broken == {}

    survives()


def test_stale_headers_survive_it_too() -> None:
    scenario = zoo.scenario_for("stale-header")

    @settings(SEARCH, max_examples=100)
    @given(runs(scenario, rules_of(scenario), (), zoo.FAMILIES))
    def survives(broken: dict[str, str]) -> None:
        assert broken == {}

    survives()


def test_the_drive_can_fail() -> None:
    """A request that is never told of its end is not passed over."""
    scenario = msgspec.structs.replace(zoo.scenario_named("none"), requests=(Request(tokens=4),))
    stuck = replace(PROTOCOL, wanted=lambda needed, most: 0)  # nobody is ever granted anything
    tame = Drawn(lambda options, label: 0)
    assert drive(scenario, PROTOCOL, tame) == {}
    assert list(drive(scenario, stuck, tame)) == ["L1"]
