"""Two-phase commit has exactly the states that the literature gives, and keeps its promise."""

from __future__ import annotations

from math import comb
from pathlib import Path

import pytest

from fsm.errors import LocalError
from sim import bench_check
from sim.engines import spin
from sim.model.form import Action, Model, negate
from sim.model.two_phase import ABORTED, COMMITTED, STATES, two_phase
from sim.vector.search import explore
from tests.sim.model_kit import check_trace, plain_search


@pytest.mark.parametrize("managers", range(1, 9))
def test_the_number_of_states_is_the_known_one(managers: int) -> None:
    result = explore(two_phase(managers))
    assert (result.verdict, result.coverage) == ("holds", "exhausted")
    assert result.states == STATES[managers]
    assert result.depth == 3 * managers + 1


def test_the_known_numbers() -> None:
    assert [STATES[n] for n in (3, 5, 7, 8, 10)] == [288, 8_832, 296_448, 1_745_408, 61_515_776]


def test_transitions_are_the_known_ones() -> None:
    """1,146 states are generated for three managers, the initial one included."""
    assert explore(two_phase(3)).transitions == 1_145


@pytest.mark.parametrize("managers", [2, 3, 4])
def test_managers_are_interchangeable(managers: int) -> None:
    model = two_phase(managers, symmetric=True)
    plain = plain_search(model)
    assert plain is not None
    result = explore(model)
    assert (result.verdict, result.levels, result.transitions) == ("holds", plain.levels, plain.transitions)


def test_symmetry_makes_many_managers_few_states() -> None:
    """A state is then a handful of managers of each kind: thousands where there were tens of millions."""
    result = explore(two_phase(10, symmetric=True))
    assert result.verdict == "holds"
    assert result.states < 3 * comb(10 + 11, 11)
    assert result.states < STATES[10] // 1000


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_manager_that_aborts_when_prepared_is_found_out(symmetric: bool) -> None:
    """The shortest way: all prepare and are heard, the decision, one commits, one aborts on its own."""
    right = two_phase(3, symmetric=symmetric)
    wrong = tuple(
        Action(
            f"Forget({i})", lambda o, v, i=i: negate(v[f"rm{i}"] == COMMITTED), lambda o, v, i=i: {f"rm{i}": ABORTED}
        )
        for i in range(3)
    )
    model = Model("forgetful", right.fields, right.initial, right.actions + wrong, right.clauses, right.symmetry)
    violation = explore(model).violation
    assert violation is not None
    assert (violation.clause, violation.depth) == ("TCConsistent", 9)
    check_trace(model, violation)


@pytest.mark.parametrize("managers", [0, 16, -1])
def test_a_number_of_managers_that_is_none_is_refused(managers: int) -> None:
    with pytest.raises(LocalError, match=f"managers = {managers}; expected 1 to 15"):
        two_phase(managers)


def test_the_benchmark_compares_equal_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes here: what is measured is the benchmark's own business, that it measures the same thing is ours."""
    monkeypatch.setattr(bench_check, "ROUNDS", 1)
    told: list[str] = []
    figures = bench_check.two_phase_figures(tmp_path, told.append, managers=4)
    assert told == ["two-phase commit with 4 managers, round 1 of 1"]
    assert [figure.unit for figure in figures] == ["/s", "/s"] + ([] if spin.missing() else ["/s", "x"])
    assert all(figure.value > 0 for figure in figures)
    assert [figure.unit for figure in bench_check.large_figures(managers=3)][:3] == ["s", "s", "GiB"]


def test_the_benchmark_refuses_wrong_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast engine that loses states is no engine."""
    monkeypatch.setitem(bench_check.STATES, 3, 287)
    with pytest.raises(LocalError, match=r"two_phase\(3\): 288 states were found, there are 287"):
        bench_check.timed(3)


def test_the_benchmark_refuses_counts_that_differ_from_spin_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = spin.SpinResult(288, 1_144, 0, True, 0.0, 28)
    monkeypatch.setattr(spin, "run", lambda checker: wrong)
    with pytest.raises(
        LocalError, match="Spin counts 288 states and 1,144 transitions, the vector engine 288 and 1,145"
    ):
        bench_check._spin_s(tmp_path, explore(two_phase(3)))
