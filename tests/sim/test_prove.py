"""The proof: all of it holds, it can fail, what fails is a step of plain numbers, and variants break conditions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any

import pytest

from fsm.errors import LocalError
from fsm.kernel import INT
from sim import zoo
from sim.model.form import Clause, Fields, Model, holds
from sim.model.protocol import symbolic
from sim.model.protocol_parts import Step
from sim.model.protocol_rules import PROTOCOL_RULES
from sim.model.variants import MODEL_VARIANTS, variant_named
from sim.prove import terms
from sim.prove.conditions import FAILED, PROVED, UNKNOWN, Condition, Prover
from sim.prove.outcome import BREAKS, HOLDS, NOT_HELD, counterexample, exit_code_of, prove_variant
from sim.prove.progress import CONDITIONS, progress_conditions
from tests.sim.cli_kit import refused, resumark

pytest.importorskip("z3")

IMPOSSIBLE = ("receive a late STATUS", "wait for blocks", "another rank's GRANT")
"""Actions that the protocol never takes: wrong versions do."""


@pytest.fixture(scope="module")
def prover() -> Prover:
    return Prover(symbolic(), perf_counter)


@pytest.fixture(scope="module")
def results(prover: Prover) -> list[Condition]:
    return list(prover.prove())


def broken(only: str = "", **rules: Any) -> Iterator[Condition]:
    """The conditions that fail with these rules."""
    prover = Prover(symbolic(replace(PROTOCOL_RULES, **rules)), perf_counter)
    return (condition for condition in prover.prove(only) if condition.result != PROVED)


# --- the protocol ----------------------------------------------------------------------------------------


def test_every_condition_is_proved(results: list[Condition]) -> None:
    assert not [condition for condition in results if condition.result != PROVED]
    assert exit_code_of(results) == 0
    assert len(results) > 500


def test_the_properties_that_are_claimed_are_among_them(results: list[Condition]) -> None:
    assert {"I1", "I2", "I3", "I4", "I5", "I6", "progress"} <= {condition.serves for condition in results}
    assert {condition.kind for condition in results} == {"start", "step", "progress"}
    assert all(condition.text.endswith(".") for condition in results)


def test_every_pair_of_action_and_clause_is_accounted_for(prover: Prover, results: list[Condition]) -> None:
    steps = sum(condition.kind == "step" for condition in results)
    assert steps + prover.untouched == len(prover.model.actions) * len(prover.goals)


def test_the_clauses_of_the_second_request_are_proved_as_well() -> None:
    """They follow by exchanging the two; here they are asked for."""
    prover = Prover(symbolic(), perf_counter, every=True)
    assert all(condition.result == PROVED for condition in prover.prove())
    assert len(prover.goals) == len(prover.model.clauses)


def test_some_state_satisfies_the_invariant_and_every_action_can_happen_in_one(prover: Prover) -> None:
    """From a contradiction everything would follow."""
    assert prover.consistent()
    assert prover.impossible() == [f"{place.room}: {name}" for place in prover.symbolic.places for name in IMPOSSIBLE]


def test_each_progress_condition_speaks_of_states_that_exist(prover: Prover) -> None:
    """A condition whose premise never holds would say nothing."""
    solver = prover.assuming()
    for place in prover.symbolic.places:
        for name, says in CONDITIONS:
            premise, _ = says(Step(prover.ops, prover.view, PROTOCOL_RULES), place)
            assert str(solver.check(prover.ops.raw(premise))) == "sat", name
    assert len(progress_conditions(prover.symbolic)) == 2 * len(CONDITIONS)


# --- it can fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "wrong", "clause"),
    [
        ("resume_start", lambda ops, start, block_tokens: start + 1, "landed"),
        ("early_available", lambda ops, free: free, "early leaves one"),
        ("proof_counts", lambda boot, peer: boot >= 0, "quarantine"),
        ("status_exact", lambda ops, tokens, start, capacity, total: tokens > total, "a STATUS is taken"),
        ("order", lambda ops, room: room.handled, "data first"),
        ("take", lambda ops, wanted, available: ops.where(available > 1, wanted, 0), "a due resume is granted"),
    ],
)
def test_a_rule_that_is_wrong_is_found(rule: str, wrong: Any, clause: str) -> None:
    assert clause in [condition.title for condition in broken(clause, **{rule: wrong})]


def test_an_action_that_is_wrong_gives_a_step_that_plain_numbers_make_too() -> None:
    """A close that forgets to say that the grant is closed."""
    right = symbolic()

    def wrong(action: Any) -> Any:
        if action.name != "a: receive STATUS":
            return action
        return replace(action, update=lambda ops, view: {**action.update(ops, view), "a_open": view["a_open"]})

    model = replace(right.model, actions=tuple(wrong(action) for action in right.model.actions))
    prover = Prover(replace(right, model=model), perf_counter)
    found = [condition for condition in prover.steps("landed") if condition.result == FAILED]
    assert [condition.action for condition in found] == ["a: receive STATUS"]
    check_step(model, found[0])


def check_step(model: Model, condition: Condition) -> None:
    """The step once more, without the prover: it starts inside the invariant, and leaves it."""
    assert condition.before is not None and condition.after is not None
    action = model.action(condition.action)
    assert all(holds(model, clause, condition.before) for clause in model.clauses)
    assert holds(model, action, condition.before)
    after = {**condition.before, **action.update(INT, Fields(condition.before))}
    assert after == condition.after
    assert not holds(model, next(clause for clause in model.clauses if clause.name == condition.clause), after)
    assert condition.changed()


@pytest.mark.parametrize(("setting", "action"), [("two_sided", "release"), ("landed_required", "receive STATUS")])
def test_a_transport_whose_bytes_come_late_needs_both_completions(setting: str, action: str) -> None:
    """What is assumed of it is assumed for a reason: without, blocks are free while they are still being written."""
    whole = symbolic()

    def weaker(clause: Clause) -> Clause:
        if not clause.name.endswith(": constants"):
            return clause
        return replace(clause, holds=lambda ops, view: clause.holds(ops, _With(view, setting, 1)))

    model = replace(whole.model, clauses=tuple(weaker(clause) for clause in whole.model.clauses))
    found = Prover(replace(whole, model=model), perf_counter).steps("writes are open")
    assert [condition.action for condition in found if condition.result != PROVED] == [f"a: {action}"]


class _With:
    """A view in which one field has a given value."""

    def __init__(self, view: Any, name: str, value: int) -> None:
        self.view, self.name, self.value = view, name, value

    def __getitem__(self, name: str) -> Any:
        return self.value if name == self.name else self.view[name]


def test_without_a_clause_the_induction_fails() -> None:
    """The invariant is not padded: what the sender knows is needed to prove that nothing is executed twice."""
    whole = symbolic()
    clauses = tuple(clause for clause in whole.model.clauses if not clause.name.endswith(": the parked grant"))
    prover = Prover(replace(whole, model=replace(whole.model, clauses=clauses)), perf_counter)
    assert "executed once" in [condition.title for condition in prover.steps() if condition.result != PROVED]


def test_a_start_that_is_wrong_is_found() -> None:
    whole = symbolic()
    model = replace(whole.model, initial=({**whole.model.initial[0], "a_landed": 1},))
    prover = Prover(replace(whole, model=model), perf_counter)
    found = [condition for condition in prover.start() if condition.result != PROVED]
    assert found and {condition.kind for condition in found} == {"start"}


def test_a_counterexample_that_plain_numbers_do_not_make_is_a_fault_of_the_prover() -> None:
    """If the solver's reading of an expression ever differed from Python's, it would be told."""
    whole = symbolic()
    clause = replace(
        whole.model.clauses[1],
        name="a: read in two ways",
        holds=lambda ops, view: (view["a_landed"] < 9) | (ops is INT),
    )
    model = replace(whole.model, clauses=(*whole.model.clauses, clause))
    prover = Prover(replace(whole, model=model), perf_counter)
    with pytest.raises(LocalError, match="fault of the prover"):
        list(prover.steps("read in two ways"))


def test_a_solver_that_gives_up_proves_nothing(prover: Prover) -> None:
    condition = Condition("step", "a: landed", "", "", "a: stage", UNKNOWN, 0.0)
    assert exit_code_of([condition]) == 4


def test_an_expression_that_decides_on_a_symbol_is_refused() -> None:
    ops = terms.TermOps()
    value = ops.view(("x",))["x"]
    with pytest.raises(LocalError, match=r"use ops\.where"):
        bool(value > 1)


# --- the zoo ---------------------------------------------------------------------------------------------


def test_every_variant_of_the_zoo_is_listed_in_its_order() -> None:
    assert list(MODEL_VARIANTS) == [*zoo.DETECTORS, *zoo.HAZARDS]


NOT_IN_THE_MODEL = {
    # What a variant replaces in the zoo, and the model does not need: notes on the side, and memory.
    "none": {"remember"}, "flag": {"remember"}, "indices-after": {"remember"}, "indices-before": {"remember"},
    "generation": {"remember"}, "sent-accumulate": {"read_guard", "claim", "header_clearing"},
    "free-then-alloc": {"free"}, "first-rank-triggers": {"executed"},
    "plane-major-mrope": {"position_written", "position_read"}, "stale-header": {"header_clearing"},
}  # fmt: skip


@pytest.mark.parametrize("name", list(MODEL_VARIANTS))
def test_a_variant_replaces_the_rules_that_it_replaces_in_the_zoo(name: str) -> None:
    variant = zoo.DETECTORS.get(name) or zoo.HAZARDS[name]
    assert set(MODEL_VARIANTS[name].replaces) == set(variant.replaces) - NOT_IN_THE_MODEL.get(name, set())


@pytest.mark.parametrize("name", list(MODEL_VARIANTS))
def test_a_variant_breaks_its_condition_or_is_not_held(name: str) -> None:
    variant = MODEL_VARIANTS[name]
    outcome = prove_variant(variant, perf_counter)
    assert outcome.as_expected
    if name in ("plane-major-mrope", "stale-header"):
        assert outcome.result == NOT_HELD and variant.not_held
    elif name in ("watermark", "watermark-five"):
        assert outcome.result == HOLDS
    else:
        assert outcome.result == BREAKS
        assert outcome.condition is not None and outcome.condition.title == variant.breaks


EXPECTED_IN_THE_ZOO = {"L1": "progress", "L3": "progress"}


@pytest.mark.parametrize("name", [name for name, variant in MODEL_VARIANTS.items() if variant.breaks])
def test_what_is_broken_is_of_the_kind_that_the_zoo_expects(name: str) -> None:
    """A safety condition where the zoo finds a safety property broken, a progress condition where it finds none."""
    expected = (zoo.DETECTORS.get(name) or zoo.HAZARDS[name]).expected
    outcome = prove_variant(MODEL_VARIANTS[name], perf_counter)
    assert outcome.condition is not None
    safety = [property for property in expected if property.startswith("I")]
    assert outcome.condition.safety == bool(safety)


@pytest.mark.parametrize("name", ["flag", "sent-cached", "all-or-nothing", "silent-unknown-room"])
def test_a_variant_that_only_stalls_breaks_no_safety_condition(name: str) -> None:
    found = list(broken(**MODEL_VARIANTS[name].replaces))
    assert found and not any(condition.safety for condition in found)


def test_what_must_break_and_does_not_is_unexpected() -> None:
    harmless = replace(MODEL_VARIANTS["none"], replaces={})
    assert not prove_variant(harmless, perf_counter).as_expected
    assert not prove_variant(replace(MODEL_VARIANTS["none"], breaks=""), perf_counter).as_expected


def test_a_counterexample_shows_what_matters_and_no_more() -> None:
    chosen = symbolic(MODEL_VARIANTS["free-without-quiescence"].rules())
    found = next(
        condition for condition in Prover(chosen, perf_counter).prove("writes are open") if condition.result == FAILED
    )
    shown = {row.field: row for row in counterexample(chosen, found)}
    assert shown["x_state"].before == 2 and shown["x_state"].after == 0
    assert shown["a_flight"].before == 1
    assert "in_header" not in shown and len(shown) < 40
    check_step(chosen.model, found)


def test_a_progress_condition_is_shown_by_one_state() -> None:
    chosen = symbolic(MODEL_VARIANTS["flag"].rules())
    found = next(
        condition for condition in Prover(chosen, perf_counter).progress("a due resume is granted")
        if condition.result == FAILED
    )  # fmt: skip
    assert found.after is None and found.before is not None
    assert {row.field: row for row in counterexample(chosen, found)}["a_next_seq"].before >= 2


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(LocalError, match="there is no variant 'nonsense'; there are watermark, "):
        variant_named("nonsense")


# --- without z3, and the command -------------------------------------------------------------------------


def test_without_z3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "z3", None)
    with pytest.raises(LocalError, match=r"pip install 'resumark\[prove\]'"):
        Prover(symbolic(), perf_counter)
    refused(resumark("prove"))


def test_prove_prints_every_condition_and_the_zoo() -> None:
    done = resumark("prove")
    assert done.code == 0, done.out
    assert "I1 a, x: writes are open: A write under way goes only to blocks" in done.out
    assert "a: tick: grant proved" in done.out
    assert "conditions proved, in" in done.out
    for name, variant in MODEL_VARIANTS.items():
        assert name in done.out
        assert not variant.not_held or f"not held by this model: {name}" in done.out
    assert "all as expected" in done.out


@pytest.mark.parametrize(("name", "code"), [("none", 1), ("flag", 3), ("watermark-five", 0), ("plane-major-mrope", 4)])
def test_the_exit_code_of_a_variant(name: str, code: int) -> None:
    done = resumark("prove", "--variant", name)
    assert done.code == code, done.out
    assert MODEL_VARIANTS[name].breaks in done.out


def test_json_has_every_condition() -> None:
    done = resumark("prove", "--json")
    assert done.code == 0
    assert done.data["proved"] == len(done.data["conditions"]) > 500
    assert {row["variant"] for row in done.data["zoo"]} == set(MODEL_VARIANTS) - {"watermark"}
    assert all(row["result"] == PROVED and row["elapsed_ms"] >= 0 for row in done.data["conditions"])


def test_json_of_a_variant_has_the_step() -> None:
    done = resumark("prove", "--variant", "none", "--json")
    assert done.code == 1 == done.data["exit_code"]
    failed = [row for row in done.data["conditions"] if row["result"] == FAILED]
    assert failed and all(row["changed"] for row in failed if row["kind"] == "step")
    refused(resumark("prove", "--variant", "nonsense"))
    assert resumark("prove", "--variant", "stale-header", "--json").data["result"] == NOT_HELD
