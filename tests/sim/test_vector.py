"""The vector engine against a plain search: the same levels, transitions and shortest violations, however it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fsm.errors import LocalError
from sim.model.form import Action, Clause, Field, Model, successors
from sim.model.two_phase import two_phase
from sim.vector import expand as vector_expand
from sim.vector import rows as vector_rows
from sim.vector import search as vector
from sim.vector import store as vector_store
from sim.vector.search import Search, explore
from sim.vector.symmetry import network
from tests.sim.model_kit import (
    Plain,
    check_trace,
    drawn_model,
    drawn_symmetric_model,
    lowest,
    matrix_model,
    plain_search,
)  # fmt: skip


def compare(model: Model, plain: Plain | None, *, deadlock: bool = False, **limits: Any) -> None:
    if plain is None:
        return
    result = explore(model, deadlock=deadlock, **limits)
    assert result.levels == plain.levels
    assert (result.states, result.depth) == (sum(plain.levels), len(plain.levels) - 1)
    if plain.broken_at is None:
        assert (result.verdict, result.coverage, result.violation) == ("holds", "exhausted", None)
        assert result.transitions == plain.transitions
        assert result.checked == result.states
    else:
        assert (result.verdict, result.coverage) == ("violated", "bounded")
        assert result.violation is not None
        assert result.violation.depth == plain.broken_at
        check_trace(model, result.violation, deadlock=deadlock)


@given(st.integers(0, 1 << 32).map(drawn_model), st.booleans())
def test_agrees_with_a_plain_search(model: Model, deadlock: bool) -> None:
    compare(model, plain_search(model, deadlock=deadlock), deadlock=deadlock)


@given(st.integers(0, 1 << 32).map(drawn_symmetric_model), st.booleans())
def test_symmetric_states_are_counted_once(model: Model, deadlock: bool) -> None:
    compare(model, plain_search(model, deadlock=deadlock, states_max=600), deadlock=deadlock)


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 2), (2, 3), (3, 2)])
def test_rows_and_columns_of_a_matrix_are_exchanged_together(rows: int, columns: int) -> None:
    model = matrix_model(rows, columns)
    compare(model, plain_search(model))
    assert explore(model).states < explore(Model(model.name, model.fields, model.initial, model.actions)).states


@pytest.fixture
def crumbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, buffers and pieces so small that even tiny models need many."""
    monkeypatch.setattr(vector, "ROWS_MAX", 2)
    monkeypatch.setattr(vector, "BUFFER_ROWS", 4)
    monkeypatch.setattr(vector_store, "PIECE_ROWS", 3)
    monkeypatch.setattr(vector_store, "SPILLED_ROWS_MIN", 1)


def small(seed: int) -> Model:
    """Counters that go round, the more of them the more states: one to three words."""
    width = (1, 1 << 20, 1 << 40)[seed % 3]
    fields = tuple(Field(f"c{i}", -1, 3 * width) for i in range(3))
    actions = tuple(
        Action(
            f"up({i},{by})",
            lambda o, v, i=i, by=by: v[f"c{i}"] + by <= 3,
            lambda o, v, i=i, by=by: {f"c{i}": v[f"c{i}"] + by, f"c{(i + 1) % 3}": -1},
        )
        for i in range(3)
        for by in (1, 2)
    )
    return Model(f"counters({seed})", fields, ({},), actions)


@pytest.mark.parametrize("seed", range(3))
def test_chunks_do_not_matter(seed: int, crumbs: None) -> None:
    compare(small(seed), plain_search(small(seed)))


@pytest.mark.parametrize("seed", range(3))
def test_spilled_runs_do_not_matter(seed: int, crumbs: None, tmp_path: Path) -> None:
    """Far less memory than the states take: they go to files, and nothing is left behind."""
    limits: dict[str, Any] = {"memory_bytes": 600, "spill": tmp_path / "runs"}
    compare(small(seed), plain_search(small(seed)), **limits)
    result = explore(small(seed), **limits)
    assert result.spilled_bytes > 8 * result.states
    assert list((tmp_path / "runs").iterdir()) == []


@given(st.integers(0, 1 << 32).map(drawn_model))
@hypothesis_settings(max_examples=40)
def test_words_that_share_a_key_are_told_apart(model: Model) -> None:
    """Were the key of a state of several words equal for all of them, only speed would be lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_rows, "mixed", lambda columns: np.zeros_like(columns[0]))
        compare(model, plain_search(model))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), max_size=40), st.data())
def test_tables_find_what_they_have(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Sorted tables are sets, also where most rows have the same first word."""
    words = data.draw(st.integers(1, 3))
    others = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), max_size=40))

    def table(some: list[tuple[int, int, int]]) -> tuple[vector_rows.Words, ...]:
        return tuple(np.array([row[word] for row in some], np.uint64) for word in range(words))

    left, right = vector_rows.distinct(table(rows)), vector_rows.distinct(table(others))
    mine = {row[:words] for row in rows}
    theirs = {row[:words] for row in others}
    lacking = vector_rows.lacking(left, right)
    assert {tuple(map(int, row)) for row in zip(*left, strict=True)} == mine
    assert len(left[0]) == len(mine)
    assert {tuple(map(int, row)) for row in zip(*lacking, strict=True)} == mine - theirs
    assert len(lacking[0]) == len(mine - theirs)
    assert [int(at) >= 0 for at in vector_rows.find(right, left)] == [
        tuple(map(int, row)) in theirs for row in zip(*left, strict=True)
    ]


@pytest.mark.parametrize("words", [1, 2])
def test_either_way_to_find_what_is_new_gives_the_same(words: int) -> None:
    """Few rows are looked up, many are sorted together with the table."""
    table = tuple(np.arange(0, 3000, 3, dtype=np.uint64) for _ in range(words))
    for step in (1, 2, 50):
        rows = tuple(np.arange(0, 3000, step, dtype=np.uint64) for _ in range(words))
        lacking = vector_rows.lacking(tuple(column.copy() for column in rows), table)
        assert lacking[0].tolist() == [number for number in range(0, 3000, step) if number % 3]


@pytest.mark.parametrize("count", range(1, 9))
def test_the_exchanges_sort(count: int) -> None:
    """A network that sorts all orders of zeros and ones sorts everything."""
    for number in range(1 << count):
        bits = [number >> place & 1 for place in range(count)]
        for low, high in network(count):
            assert low < high
            if bits[low] > bits[high]:
                bits[low], bits[high] = bits[high], bits[low]
        assert bits == sorted(bits)


# --- what it says when it does not get to the end --------------------------------------------------------


def endless() -> Model:
    """More states than anybody waits for."""
    fields = tuple(Field(f"n{i}", 0, 1000) for i in range(4))
    actions = tuple(
        Action(f"up({i})", lambda o, v, i=i: v[f"n{i}"] < 1000, lambda o, v, i=i: {f"n{i}": v[f"n{i}"] + 1})
        for i in range(4)
    )
    return Model("endless", fields, ({},), actions)


def test_a_limit_of_states_is_not_the_end() -> None:
    result = explore(endless(), states_max=1000)
    assert (result.verdict, result.coverage) == ("bounded", "bounded")
    assert result.bound.startswith("states_max; ")
    assert result.states > 1000
    assert result.checked >= sum(result.levels[:-1])


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    full = explore(small(0))
    assert explore(small(0), states_max=full.states) == type(full)(
        **{**full.__dict__, "bounds": {**full.bounds, "states_max": full.states}}
    )


@pytest.mark.parametrize("calls", [0, 1, 7])
def test_a_limit_of_time_is_not_the_end(calls: int) -> None:
    asked = []
    result = explore(endless(), stop=lambda: asked.append(1) or len(asked) > calls)
    assert (result.verdict, result.coverage) == ("bounded", "bounded")
    assert result.bound.startswith("time; ")
    assert len(asked) == calls + 1


def test_running_out_of_memory_is_not_the_end() -> None:
    result = explore(endless(), memory_bytes=300_000)
    assert (result.verdict, result.coverage) == ("bounded", "bounded")
    assert result.bound.startswith("memory, ")
    assert result.states > 1000
    assert result.memory_bytes <= 300_000


def test_a_full_disk_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, columns: Any) -> None:
        raise vector_store.OutOfRoom("disk")

    monkeypatch.setattr(vector_store._Files, "append", full)
    result = explore(endless(), memory_bytes=300_000, spill=tmp_path)
    assert (result.verdict, result.coverage) == ("bounded", "bounded")
    assert result.bound.startswith("disk")


def test_a_system_without_memory_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(vector, "distinct", none)
    result = explore(endless())
    assert (result.verdict, result.coverage) == ("bounded", "bounded")
    assert result.bound.startswith("memory, ")


def test_a_violation_in_the_last_level_before_the_limit_is_found() -> None:
    clause = Clause("few", "n0 is not 3", lambda o, v: v.n0 != 3)
    model = Model("endless", endless().fields, ({},), endless().actions, (clause,))
    result = explore(model, states_max=1000)
    assert result.verdict == "violated"
    assert result.violation is not None
    assert (result.violation.depth, result.violation.state()["n0"]) == (3, 3)


def test_progress_is_told() -> None:
    told: list[tuple[int, int, int]] = []
    explore(small(0), progress=lambda *seen: told.append(seen))
    assert told[0] == (1, 0, 1)
    assert [depth for _, depth, _ in told] == sorted(depth for _, depth, _ in told)


# --- models that are wrong -------------------------------------------------------------------------------


def tiny(action: Action, *, high: int = 3, symmetry: Any = (), fields: tuple[Field, ...] = ()) -> Model:
    return Model("tiny", (Field("a", 0, high), Field("b", 0, 3), *fields), ({},), (action,), (), symmetry)


@pytest.mark.parametrize(
    "update", [lambda o, v: {"a": v.a + 1}, lambda o, v: {"b": v.a * 2}, lambda o, v: {"a": 0 - v.a, "b": v.a - 1}]
)
def test_an_update_that_leaves_its_bounds_is_named(update: Any) -> None:
    up = Action("up", lambda o, v: v.a <= 3, lambda o, v: {"a": o.minimum(v.a + 1, 3), **update(o, v)})
    with pytest.raises(
        LocalError, match=r"action 'up': sets '[ab]' to -?\d, outside of its bounds 0\.\.3, in the state a="
    ):
        explore(tiny(up))


def test_a_number_out_of_bounds_matters_only_where_the_action_is_taken() -> None:
    never = Action("never", lambda o, v: v.b == 3, lambda o, v: {"a": 9})
    assert explore(tiny(never)).verdict == "holds"
    with pytest.raises(LocalError, match="action 'now': sets 'a' to 9"):
        explore(tiny(Action("now", lambda o, v: v.b == 0, lambda o, v: {"a": 9})))


def test_a_state_that_does_not_fit_is_refused() -> None:
    fields = tuple(Field(f"wide{i}", 0, (1 << 40) - 1) for i in range(20))
    with pytest.raises(LocalError, match=r"does not fit: its 22 fields need 804 bits, 1024 is the limit; the largest"):
        explore(tiny(Action("x", lambda o, v: v.a == 0, lambda o, v: {}), fields=fields))


def test_a_symmetry_that_is_none_is_refused() -> None:
    """Else states would be hidden, and the answer would be wrong."""
    only_a = Action("only_a", lambda o, v: v.a < 2, lambda o, v: {"a": v.a + 1})
    with pytest.raises(LocalError, match=r"symmetry group 1: exchanging \(a\) and \(b\) changes what may happen"):
        explore(tiny(only_a, symmetry=((("a",), ("b",)),)))


def test_a_clause_that_knows_one_record_from_another_is_refused() -> None:
    clause = Clause("a first", "a is not behind", lambda o, v: v.a >= v.b)
    actions = tuple(Action(f"up_{n}", lambda o, v, n=n: v[n] < 2, lambda o, v, n=n: {n: v[n] + 1}) for n in ("a", "b"))
    fields = (Field("a", 0, 3), Field("b", 0, 3))
    with pytest.raises(LocalError, match="changes how many clauses hold"):
        explore(Model("unequal", fields, ({},), actions, (clause,), ((("a",), ("b",)),)))


def test_groups_that_share_fields_otherwise_than_a_matrix_are_refused() -> None:
    groups = ((("a",), ("b",)), (("b",), ("c",)))
    model = tiny(Action("x", lambda o, v: v.a == 0, lambda o, v: {}), symmetry=groups, fields=(Field("c", 0, 3),))
    with pytest.raises(LocalError, match="not as rows and columns of a matrix do"):
        explore(model)


def test_too_many_orders_are_refused() -> None:
    with pytest.raises(LocalError, match="2 symmetry groups share fields, and 40,320 orders would have to be tried"):
        explore(matrix_model(8, 8))


def test_no_memory_at_all_is_refused() -> None:
    with pytest.raises(LocalError, match="memory_bytes = 0; expected"):
        explore(small(0), memory_bytes=0)


# --- the finished graph ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [small(0), small(2), matrix_model(2, 2), two_phase(2)], ids=lambda model: model.name)
def test_the_finished_graph_has_every_edge(model: Model) -> None:
    """What a check of liveness will walk: states by number, and all steps between them."""
    search = Search(model)
    result = search.run()
    graph, index = search.graph, search.graph.index()
    assert len(index) == result.states
    unkeyed = vector_rows.without_key(index.columns)
    states = [graph.packing.unpack(unkeyed, row) for row in range(len(index))]
    expected = sorted(
        (number, action.name, lowest(model, after))
        for number, state in enumerate(states)
        for action, after in successors(model, state)
    )
    found = []
    for action, before, after in graph.successors(index):
        assert (after >= 0).all()
        for one, other in zip(before.tolist(), after.tolist(), strict=True):
            found.append((one, model.actions[action].name, lowest(model, states[other])))
    assert sorted(found) == expected
    assert len(found) == result.transitions
    search.close()


def test_steps_that_stay_are_counted_and_made_only_when_asked_for() -> None:
    stay = Action("stay", lambda o, v: v.a == 0, lambda o, v: {"a": 0})
    assert explore(tiny(stay)).transitions == 1
    assert explore(tiny(stay), deadlock=True).verdict == "holds"
    graph = Search(tiny(stay)).graph
    rows = graph.start()
    assert list(graph.expander.expand(rows)) == []
    loops = vector_expand.Expander(graph.model, graph.table, graph.packing, loops=True)
    assert [batch.rows.tolist() for batch in loops.expand(rows)] == [[0]]
