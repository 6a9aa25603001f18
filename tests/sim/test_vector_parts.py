"""The parts of the vector engine: packing, the width of numbers, runs and the account of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from sim.model.form import Action, Clause, Field, Model
from sim.model.symbol import Table
from sim.vector import search as vector
from sim.vector import store as vector_store
from sim.vector.pack import WORD_BITS, Packing
from sim.vector.plan import number_type
from sim.vector.rows import with_key, without_key
from sim.vector.search import Search, explore
from sim.vector.store import Builder, OutOfRoom, Store, Visited, in_pieces
from tests.sim.model_kit import plain_search


@given(
    st.lists(st.tuples(st.integers(-(1 << 40), 1 << 40), st.integers(0, (1 << 46) - 1)), min_size=1, max_size=15),
    st.data(),
)
def test_states_are_packed_and_unpacked(bounds: list[tuple[int, int]], data: st.DataObject) -> None:
    """No field overlaps another or runs out of its word, and every value comes back."""
    fields = tuple(Field(f"f{i}", low, low + span) for i, (low, span) in enumerate(bounds))
    model = Model("packed", fields, ({},), ())
    packing = Packing(model)
    used = [0] * packing.words
    for slot in packing.slots.values():
        assert slot.shift + slot.bits <= WORD_BITS
        assert used[slot.word] & slot.mask == 0
        used[slot.word] |= slot.mask
    states = [
        {f.name: data.draw(st.sampled_from([f.low, f.high, (f.low + f.high) // 2])) for f in fields} for _ in range(3)
    ]
    columns = packing.pack(states)
    assert [packing.unpack(without_key(with_key(columns)), row) for row in range(3)] == states


def test_a_state_that_fits_one_word_takes_one() -> None:
    fields = tuple(Field(f"f{i}", 0, (1 << bits) - 1) for i, bits in enumerate([1, 30, 2, 30, 1]))
    assert Packing(Model("full", fields, ({},), ())).words == 1


def test_records_of_a_group_lie_together() -> None:
    """So that one comparison compares them."""
    fields = tuple(Field(f"{name}{i}", 0, 3) for name in "xy" for i in range(2))
    packing = Packing(Model("records", fields, ({},), (), (), ((("x0", "y0"), ("x1", "y1")),)))
    assert packing.slots["y0"].shift == packing.slots["x0"].shift + 2


def test_a_value_out_of_bounds_is_not_packed() -> None:
    with pytest.raises(LocalError, match=r"'a' = 2 is outside of its bounds 0\.\.1"):
        Packing(Model("small", (Field("a", 0, 1),), ({},), ())).pack([{"a": 2}])


@pytest.mark.parametrize(
    "high", [62, 63, 64, 127, 128, 181, 182, 32_767, 32_768, 46_341, (1 << 31) - 1, 1 << 31, 1 << 47]
)
def test_numbers_do_not_overflow(high: int) -> None:
    """Sums, differences and products right below and above the limits of every width."""

    def far(ops: Any, view: Any) -> Any:
        return (view.a + view.a + 2 > view.a + 1) & (0 - view.a - view.b < 1) & (view.a * 3 - view.b >= view.a)

    up = Action("up", lambda o, v: v.a + 1 <= high, lambda o, v: {"a": v.a + 1, "b": o.minimum(v.b + v.a, high)})
    model = Model(
        "edge", (Field("a", -3, high), Field("b", 0, high)), ({"a": high - 4, "b": high - 2},), (up,),
        (Clause("far", "no sum overflows", far),),
    )  # fmt: skip
    plain = plain_search(model)
    assert plain is not None
    result = explore(model)
    assert (result.verdict, result.levels, plain.broken_at) == ("holds", plain.levels, None)


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0, 127, np.int8), (0, 128, np.int16), (-129, 0, np.int16), (0, 32_768, np.int32), (0, 1 << 31, np.int64)],
)
def test_the_width_of_numbers_is_that_of_the_largest(low: int, high: int, kind: Any) -> None:
    table = Table(Model("wide", (Field("a", 0, 0), Field("b", low, high)), ({},), ()))
    assert number_type(table.fields.values()) == kind


def test_of_several_violations_the_same_one_is_told() -> None:
    """However the level is cut: the lowest state, and of it the first clause."""
    actions = tuple(Action(f"to{n}", lambda o, v: v.a == 0, lambda o, v, n=n: {"a": n}) for n in range(1, 30))
    clauses = (
        Clause("big", "", lambda o, v: v.a < 20),
        Clause("ten", "", lambda o, v: v.a < 10),
        Clause("also ten", "", lambda o, v: v.a < 10),
    )
    model = Model("many", (Field("a", 0, 31),), ({},), actions, clauses)
    told = []
    for rows in (2, 3, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vector, "ROWS_MAX", rows)
            violation = explore(model, deadlock=rows == 3).violation
        assert violation is not None
        told.append((violation.clause, violation.state()))
    assert told == [("ten", {"a": 10}), ("deadlock", {"a": 1}), ("ten", {"a": 10})]


# --- runs and memory -------------------------------------------------------------------------------------


def run_of(store: Store, numbers: Any) -> Any:
    builder = Builder(store)
    builder.append((np.array(sorted(numbers), np.uint64),))
    return builder.finish()


def test_visited_keeps_few_runs_and_all_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_store, "PIECE_ROWS", 16)
    store = Store(1)
    visited = Visited(store)
    for start in range(100):
        run = run_of(store, range(start, 10_000, 100))
        visited.add(run)
        store.release(run)
    assert len(visited) == 10_000
    assert len(visited.runs) <= 7
    assert visited.merge_all().columns[0].tolist() == list(range(10_000))
    assert store.held == 80_000


@pytest.mark.parametrize("spill", [False, True])
def test_the_account_of_memory_is_right(spill: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a search: what is held is what runs and buffer take."""
    monkeypatch.setattr(vector, "BUFFER_ROWS", 64)
    monkeypatch.setattr(vector_store, "SPILLED_ROWS_MIN", 1)
    ups = tuple(
        Action(f"up{n}", lambda o, v, n=n: v[f"n{n}"] < 9, lambda o, v, n=n: {f"n{n}": v[f"n{n}"] + 1})
        for n in range(3)
    )
    model = Model("cube", tuple(Field(f"n{n}", 0, 9) for n in range(3)), ({},), ups)
    search = Search(model, memory_bytes=5_000 if spill else None, spill=tmp_path if spill else None)
    result = search.run()
    assert (result.states, result.verdict) == (1000, "holds")
    runs = dict.fromkeys([*search.graph.levels, *search.graph.visited.runs])
    assert search.store.held == 8 * len(search._buffer[0]) + sum(run.held_bytes for run in runs)
    assert bool(list(tmp_path.iterdir())) == spill
    if spill:
        assert result.memory_bytes <= 5_000
    search.close()
    assert list(tmp_path.iterdir()) == []


def test_a_merge_without_room_for_it_is_left_out() -> None:
    """It only saves time; the search goes on."""
    store = Store(1, bytes_max=2_000)
    visited = Visited(store)
    for start in range(2):
        run = run_of(store, range(start, 200, 2))
        visited.add(run)
        store.release(run)
    assert len(visited.runs) == 2
    assert store.held == 1_600
    with pytest.raises(OutOfRoom, match="memory, to merge 200 states"):
        visited.merge_all()


def test_pieces_are_ranges_of_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_store, "PIECE_ROWS", 8)
    store = Store(1)
    runs = [run_of(store, range(start, 100, 3)) for start in range(3)]
    others = [run_of(store, range(500))]
    seen: list[int] = []
    for pieces, known in in_pieces(runs, others):
        rows = sorted(int(number) for (column,) in pieces for number in column)
        assert not seen or not rows or seen[-1] < rows[0]
        assert set(rows) <= {int(number) for (column,) in known for number in column}
        seen += rows
    assert seen == list(range(100))


def test_the_system_s_word_for_a_full_disk_is_understood(tmp_path: Path) -> None:
    class Full:
        def open(self, mode: str) -> Any:
            raise OSError(28, "No space left on device")

        def unlink(self, missing_ok: bool = False) -> None:
            pass

    writer = vector_store._Files(Store(1, 0, tmp_path))
    writer.paths[0].unlink()
    writer.paths = (Full(),)  # type: ignore[assignment]
    with pytest.raises(OutOfRoom, match="disk, in "):
        writer.append((np.zeros(1, np.uint64),))
