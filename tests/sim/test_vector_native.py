"""Successors as machine code are those of the expander: the same search in every number, whatever is left out early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fsm.errors import LocalError
from sim.model.form import Action, Clause, Field, Model
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.two_phase import two_phase
from sim.vector import native as vector_native
from sim.vector import search as vector
from sim.vector.merge import merged, missing
from sim.vector.native import LANES, Native, available, plain
from sim.vector.result import VectorResult
from sim.vector.rows import distinct, in_order, joined, lacking, part, size, with_key
from sim.vector.search import Search, explore
from sim.vector.store import sorted_again
from tests.sim.model_kit import check_trace, drawn_model, drawn_symmetric_model, matrix_model

pytestmark = pytest.mark.skipif(not available(), reason="llvmlite is not installed (extra 'fast')")

NEVER = 1 << 60


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Native]:
    """Every search is compiled from its start on; what was compiled."""
    made: list[Native] = []

    class Kept(Native):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(vector_native, "Native", Kept)
    monkeypatch.setattr(vector, "NATIVE_STATES", 0)
    return made


def both(model: Model, monkeypatch: pytest.MonkeyPatch) -> tuple[VectorResult, VectorResult]:
    """The search by machine code, and by the expander alone. What memory they take differs, and nothing else."""
    mine = explore(model)
    with monkeypatch.context() as alone:
        alone.setattr(vector, "NATIVE_STATES", NEVER)
        theirs = explore(model)
    return replace(mine, memory_bytes=0), replace(theirs, memory_bytes=0)


MODELS = {
    "protocol": bounded(Bounds(crashes=1)),
    "protocol, two blocks": bounded(Bounds(blocks=2)),
    "two-phase commit": two_phase(5),
    "two-phase commit, symmetric": two_phase(5, symmetric=True),
    "a matrix": matrix_model(3, 3),
    **{f"drawn {seed}": drawn_model(seed) for seed in (3, 11, 74, 92, 147)},
    **{f"drawn, symmetric {seed}": drawn_symmetric_model(seed) for seed in (1, 5)},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("table_rows", [2, 1 << 20], ids=["nothing is remembered", "all is"])
def test_the_search_is_the_same(
    name: str, table_rows: int, compiled: list[Native], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_native, "TABLE_ROWS", table_rows)
    mine, theirs = both(MODELS[name], monkeypatch)
    assert mine == theirs
    assert len(compiled) == 1


def test_successors_are_handed_out_in_portions(compiled: list[Native], monkeypatch: pytest.MonkeyPatch) -> None:
    """A room that takes those of one group and not of two."""
    model = two_phase(6)
    monkeypatch.setattr(vector_native, "ROOM_ROWS", len(model.actions) * LANES)
    mine, theirs = both(model, monkeypatch)
    assert mine == theirs
    assert max(mine.levels) > 10 * LANES


def test_most_doubles_are_left_out_and_nothing_else() -> None:
    """Level by level: what is handed out is what the expander makes, less what was handed out before."""
    search = Search(two_phase(6))
    graph = search.graph
    what = plain(graph.model, graph.table, graph.packing)
    assert what is not None
    native = Native(what, graph.packing, graph.expander.rows_max)
    search.run()
    given, made = [], 0
    for level in graph.levels:
        for chunk in graph.chunks(level):
            mine = [tuple(column.copy() for column in after) for after in native.successors(chunk)]
            assert not native.trouble
            made += native.transitions
            given += mine
            theirs = [tuple(column.copy() for column in batch.after) for batch in graph.expander.expand(chunk)]
            assert native.transitions == graph.expander.transitions
            if theirs:
                wanted = distinct(with_key(joined(theirs)))
                known = distinct(with_key(joined([*given, graph.packing.pack(graph.model.start_states())])))
                assert not size(lacking(wanted, known))
    rows = joined(given)
    assert size(rows) < made / 3
    assert size(distinct(with_key(tuple(column.copy() for column in rows)))) <= len(graph.visited)


def test_the_state_of_all_zeros_is_not_taken_for_known(compiled: list[Native], monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty place of the table is all zeros too."""
    down = Action("down", lambda o, v: v.a > 0, lambda o, v: {"a": v.a - 1})
    mine, theirs = both(Model("down", (Field("a", 0, 3),), ({"a": 3},), (down,)), monkeypatch)
    assert mine == theirs
    assert mine.states == 4


@pytest.mark.parametrize(("high", "bits"), [(100, 8), (300, 16), (70_000, None)])
def test_numbers_of_any_width(
    high: int, bits: int | None, compiled: list[Native], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative ones too. What does not fit 16 bits is left to the expander."""
    step = high // 14
    actions = (
        Action("up", lambda o, v: v.a < high - step, lambda o, v: {"a": v.a + step, "b": o.minimum(v.a // 3, 5)}),
        Action("down", lambda o, v: (v.a > -20) & (v.b % 3 == 1), lambda o, v: {"a": o.maximum(v.a - 60, -21)}),
    )
    model = Model("wide", (Field("a", -21, high), Field("b", -7, 5)), ({},), actions)
    mine, theirs = both(model, monkeypatch)
    assert mine == theirs
    assert mine.states >= 15
    search = Search(model)
    what = plain(model, search.graph.table, search.graph.packing)
    assert (what.bits if what is not None else None) == bits
    assert len(compiled) == (bits is not None)


def test_a_broken_clause_is_found_as_by_the_expander(compiled: list[Native], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = two_phase(5)
    clause = Clause(
        "few", "not all are prepared", lambda o, v: (v.rm0 != 1) | (v.rm1 != 1) | (v.rm2 != 1) | (v.rm3 != 1)
    )
    model = replace(whole, clauses=(*whole.clauses, clause))
    mine, theirs = both(model, monkeypatch)
    assert mine == theirs
    assert mine.verdict == "violated" and mine.violation is not None and mine.violation.depth == 4
    check_trace(model, mine.violation)


def test_a_field_that_leaves_its_bounds_is_named(compiled: list[Native]) -> None:
    up = Action("up", lambda o, v: v.a < 90, lambda o, v: {"a": v.a + 1, "b": o.where(v.a == 80, 4, v.b)})
    model = Model("off", (Field("a", 0, 90), Field("b", 0, 3)), ({},), (up,))
    with pytest.raises(LocalError, match=r"model 'off', action 'up': sets 'b' to 4, outside of its bounds 0\.\.3"):
        explore(model)
    assert compiled


def test_little_memory_is_no_reason_to_stop(compiled: list[Native]) -> None:
    """Then there is a small table, or no machine code."""
    assert explore(two_phase(5), memory_bytes=8 << 20).states == 8_832
    assert explore(two_phase(5), memory_bytes=1 << 20).states == 8_832
    assert len(compiled) == 1


def test_more_successors_at_once_than_the_buffer_holds(compiled: list[Native], tmp_path: Path) -> None:
    """With little memory the buffer is smaller than what machine code hands out."""
    result = explore(two_phase(7), memory_bytes=4 << 20, spill=tmp_path)
    assert (result.states, result.transitions) == (296_448, 2_744_705)
    assert len(compiled) == 1


def test_small_searches_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_native, "Native", None)
    assert explore(two_phase(5)).states == 8_832


def test_machine_code_can_be_made_beforehand(compiled: list[Native], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "NATIVE_STATES", NEVER)
    search = Search(two_phase(5))
    search.prepare()
    assert len(compiled) == 1
    assert search.run().states == 8_832
    assert compiled[0].transitions > 0


def test_a_search_for_deadlocks_is_left_to_the_expander(compiled: list[Native]) -> None:
    assert explore(two_phase(3), deadlock=True).verdict == "holds"
    assert not compiled


@pytest.mark.parametrize("words", [2, 5])
@pytest.mark.parametrize(
    ("left", "right", "high"), [(700, 900, 1 << 63), (500, 400, 4), (0, 7, 9), (7, 0, 9), (1, 1, 1)]
)
def test_two_sorted_tables_are_merged_as_if_sorted_again(words: int, left: int, right: int, high: int) -> None:
    """Rows that share a key, and rows that are the same, among them."""
    dice = np.random.default_rng(7)
    tables = [in_order(tuple(dice.integers(0, high, rows, np.uint64) for _ in range(words))) for rows in (left, right)]
    for one, other in zip(merged(tables[0], tables[1]), sorted_again(tables[0], tables[1]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("words", [2, 5])
@pytest.mark.parametrize(
    ("rows", "table", "high"), [(700, 900, 1 << 63), (500, 400, 4), (3, 900, 9), (0, 7, 9), (7, 0, 9)]
)
def test_what_a_table_lacks_is_found_by_walking_as_by_searching(words: int, rows: int, table: int, high: int) -> None:
    dice = np.random.default_rng(8)
    sought, known = (
        distinct(tuple(dice.integers(0, high, count, np.uint64) for _ in range(words))) for count in (rows, table)
    )
    some = part(known, 0, table // 8)
    sought = distinct(joined([sought, some])) if rows and table else sought
    for one, other in zip(missing(sought, known), lacking(sought, known), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_llvmlite_the_expander_does_it_all(compiled: list[Native], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_native, "available", lambda: False)
    search = Search(two_phase(5))
    search.prepare()
    assert search.run().states == 8_832
    assert not compiled
