"""Spin counts what the vector engine counts, where Spin is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fsm.errors import LocalError
from sim.engines import spin
from sim.engines.promela import Twin, promela
from sim.model.form import Action, Clause, Field, Model
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.two_phase import two_phase, two_phase_promela
from sim.vector.result import VectorResult
from sim.vector.search import explore
from tests.sim.model_kit import drawn_model, matrix_model

needs_spin = pytest.mark.skipif(bool(spin.missing()), reason=f"Spin cannot be run: {spin.missing()}")

REPORT = """
Full statespace search for:
State-vector 28 byte, depth reached 10, errors: 0
      288 states, stored
      858 states, matched
     1146 transitions (= stored+matched)
pan: elapsed time 0.25 seconds
"""


def counts(model: Model, twin: Twin, folder: Path) -> VectorResult:
    theirs = spin.run(spin.build(twin, folder, optimise="-O0"))
    mine = explore(model)
    assert theirs.complete
    assert (mine.states, mine.transitions) == (theirs.states, theirs.transitions)
    assert theirs.errors == 0
    return mine


@needs_spin
@pytest.mark.parametrize("managers", [2, 3, 4, 5])
def test_two_phase_commit_has_the_same_counts(managers: int, tmp_path: Path) -> None:
    """Two texts by hand, two engines."""
    counts(two_phase(managers), Twin(two_phase_promela(managers)), tmp_path)


@needs_spin
def test_a_model_that_is_written_out_has_the_same_counts(tmp_path: Path) -> None:
    """One text, two engines: values that are set together, negative ones, choices."""
    actions = (
        Action("swap", lambda o, v: v.a != v.b, lambda o, v: {"a": v.b, "b": v.a}),
        Action("up", lambda o, v: v.a < 3, lambda o, v: {"a": o.minimum(v.a + 2, 3), "c": o.where(v.b > 0, 300, 7)}),
        Action("down", lambda o, v: (v.c > 3) & (v.b > -3), lambda o, v: {"b": o.maximum(v.b - 1, -2), "c": v.c // 2}),
    )
    model = Model("mixed", (Field("a", -3, 3), Field("b", -3, 3), Field("c", 0, 300)), ({"a": 0, "b": 1},), actions)
    assert explore(model).states > 20
    counts(model, promela(model), tmp_path)


@needs_spin
def test_a_broken_clause_is_an_error_of_spin_too(tmp_path: Path) -> None:
    clause = Clause("free", "the first block stays free", lambda o, v: v.free0 == 0)
    whole = matrix_model(2, 2)
    model = Model("broken", whole.fields, whole.initial, whole.actions, (clause,))
    assert explore(model).verdict == "violated"
    assert spin.run(spin.build(promela(model, clauses=True), tmp_path)).errors == 1


@needs_spin
def test_a_text_that_is_no_promela_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"spin -o2 -a model\.pml failed"):
        spin.build(Twin("no promela"), tmp_path)


def test_a_report_is_read() -> None:
    assert spin.parse(REPORT) == spin.SpinResult(288, 1145, 0, True, 0.25, 28)


@pytest.mark.parametrize(
    "said", ["error: max search depth too small", "Warning: Search not completed", "pan: reached -DMEMLIM bound"]
)
def test_a_search_that_was_given_up_is_told(said: str) -> None:
    """Its counts must not be taken for those of the model."""
    assert not spin.parse(REPORT + said).complete


def test_what_is_no_report_is_refused() -> None:
    with pytest.raises(LocalError, match="gave no report: killed"):
        spin.parse("killed")


def test_without_spin_the_reason_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)
    assert spin.missing() == "spin and gcc not installed (Debian: apt-get install spin gcc)"
    with pytest.raises(LocalError, match="Spin cannot be run: spin and gcc"):
        spin.build(Twin(""), tmp_path)


def test_a_field_that_is_too_wide_for_promela_is_refused() -> None:
    with pytest.raises(LocalError, match=r"'a': 0\.\.2147483648 is wider than the 31 bits"):
        promela(Model("wide", (Field("a", 0, 1 << 31),), ({},), ()))


def test_the_text_is_the_same_each_time_and_holds_no_constant_field() -> None:
    model = bounded(Bounds(crashes=1))
    twin = promela(model)
    assert twin == promela(bounded(Bounds(crashes=1)))
    constant = [field.name for field in model.fields if field.low == field.high]
    assert "block_tokens" in constant
    assert not [name for name in constant if f"f_{name} :" in twin.promela]


@needs_spin
def test_division_is_rounded_down_as_in_the_model(tmp_path: Path) -> None:
    """C rounds to 0."""
    actions = (
        Action("down", lambda o, v: v.a > -9, lambda o, v: {"a": v.a - 1, "b": v.a // 4, "c": v.a % 4}),
        Action("on", lambda o, v: v.a // 4 == -2, lambda o, v: {"d": 1}),
        Action("round", lambda o, v: v.a % 4 == 3, lambda o, v: {"d": 2}),
    )
    fields = (Field("a", -9, 9), Field("b", -3, 3), Field("c", 0, 3), Field("d", 0, 2))
    model = Model("division", fields, ({"a": 9},), actions)
    assert counts(model, promela(model), tmp_path).states == 41


@needs_spin
def test_wide_fields_and_several_initial_states(tmp_path: Path) -> None:
    """Products pass 32 bits, one field spans all that Promela has, and initial states may be reached from others."""
    wide = 1 << 30
    actions = (
        Action(
            "far",
            lambda o, v: v.a < 3,
            lambda o, v: {"a": v.a + 1, "b": o.where(v.b * v.b * 3 > wide, v.b // 3, v.b + wide // 5)},
        ),
        Action("back", lambda o, v: v.a > 1, lambda o, v: {"a": 1, "b": 0}),
    )  # fmt: skip
    model = Model(
        "wide", (Field("a", 0, 3), Field("b", -wide, wide - 1)), ({}, {"a": 1, "b": 0}, {"a": 2, "b": 7}), actions
    )
    assert counts(model, promela(model), tmp_path).states > 8


# A thousand to several hundred thousand states.
PROTOCOLS = {
    "one request": Bounds(),
    "two crashes": Bounds(crashes=2),
    "blocks that are exchanged, a late transport": Bounds(blocks=2, grant_blocks_max=1, late=True),
    "two requests": Bounds(rooms=2, size=1),
    "two ranks": Bounds(ranks=2, size=2),
    "two requests of two tokens": Bounds(rooms=2, size=2),
}


@needs_spin
@pytest.mark.parametrize("bounds", PROTOCOLS.values(), ids=PROTOCOLS)
def test_the_protocol_model_has_the_same_counts(bounds: Bounds, tmp_path: Path) -> None:
    """One text, two engines, which share neither how states are kept, nor how they are walked, nor how expressions are
    computed. Every clause holds in every state for both."""
    model = replace(bounded(bounds), symmetry=(), references=())
    counts(model, promela(model, clauses=True), tmp_path)


@needs_spin
@pytest.mark.parametrize("seed", [74, 80, 92, 147])
def test_drawn_models_have_the_same_counts(seed: int, tmp_path: Path) -> None:
    model = replace(drawn_model(seed), symmetry=(), clauses=())
    counts(model, promela(model), tmp_path)
