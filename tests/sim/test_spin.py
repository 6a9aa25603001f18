"""Spin counts what the vector engine counts, where Spin is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsm.errors import LocalError
from sim.engines import spin
from sim.engines.vector import explore
from sim.model.form import Action, Clause, Field, Model
from sim.model.two_phase import two_phase, two_phase_promela
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


def counts(model: Model, text: str, folder: Path) -> None:
    theirs = spin.run(spin.build(text, folder))
    mine = explore(model)
    assert theirs.complete
    assert (mine.states, mine.transitions) == (theirs.states, theirs.transitions)
    assert theirs.errors == 0


@needs_spin
@pytest.mark.parametrize("managers", [2, 3, 4, 5])
def test_two_phase_commit_has_the_same_counts(managers: int, tmp_path: Path) -> None:
    """Two texts by hand, two engines."""
    counts(two_phase(managers), two_phase_promela(managers), tmp_path)


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
    counts(model, spin.promela(model), tmp_path)


@needs_spin
def test_a_broken_clause_is_an_error_of_spin_too(tmp_path: Path) -> None:
    clause = Clause("free", "the first block stays free", lambda o, v: v.free0 == 0)
    whole = matrix_model(2, 2)
    model = Model("broken", whole.fields, whole.initial, whole.actions, (clause,))
    assert explore(model).verdict == "violated"
    assert spin.run(spin.build(spin.promela(model, clauses=True), tmp_path)).errors == 1


@needs_spin
def test_a_text_that_is_no_promela_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"spin -o2 -a model\.pml failed"):
        spin.build("no promela", tmp_path)


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
        spin.build("", tmp_path)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Model("two", (Field("a", 0, 1),), ({}, {"a": 1}), ()), "2 initial states"),
        (Model("wide", (Field("a", 0, 1 << 33),), ({},), ()), "'a': 0..8589934592 is wider"),
        (
            Model("round", (Field("a", -5, 5),), ({},), (Action("x", lambda o, v: v.a // 2 == 1, lambda o, v: {}),)),
            "divides a, which may be negative",
        ),
    ],
    ids=["starts", "wide", "negative"],
)
def test_what_promela_cannot_say_is_refused(model: Model, text: str) -> None:
    with pytest.raises(LocalError, match=text):
        spin.promela(model)


@needs_spin
@pytest.mark.parametrize("seed", [74, 80, 92, 147])
def test_drawn_models_have_the_same_counts(seed: int, tmp_path: Path) -> None:
    drawn = drawn_model(seed)
    model = Model(drawn.name, drawn.fields, drawn.initial[:1], drawn.actions)
    counts(model, spin.promela(model), tmp_path)
