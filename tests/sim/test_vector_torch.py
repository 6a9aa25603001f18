"""The vector engine on torch finds what the one on numpy finds, and its parts do what numpy's do.

Here a processor stands in for a GPU: the same calls, in the same order. Tests marked ``gpu`` run it on one.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fsm import kernel
from fsm.errors import LocalError
from fsm.kernel import ARRAY, INT
from sim import bench_device
from sim.model.form import Action, Clause, Field, Fields, Model
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.symbol import Table
from sim.model.two_phase import STATES, two_phase
from sim.model.variants import variant_named
from sim.vector.pack import Packing
from sim.vector.symmetry import Symmetry
from sim.vector_torch import device as torch_device
from sim.vector_torch import expand as torch_expand
from sim.vector_torch import plan as torch_plan
from sim.vector_torch import rows as torch_rows
from sim.vector_torch import search as torch_search
from sim.vector_torch import words as torch_words
from sim.vector_torch.device import Device, TorchOps
from sim.vector_torch.search import TorchSearch, explore_torch
from sim.vector_torch.words import Unsigned, signed, to_numpy
from tests.sim.cli_kit import resumark
from tests.sim.model_kit import check_trace, drawn_model, drawn_symmetric_model, matrix_model, plain_search
from tests.sim.torch_kit import counters, every_operation, same

torch = pytest.importorskip("torch", reason="torch is an extra")

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
SEEDS = st.integers(0, 1 << 32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- the same answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("managers", [1, 3, 5, 6])
def test_two_phase_commit_has_the_known_states(managers: int) -> None:
    assert same(two_phase(managers)) == "holds"
    result = explore_torch(two_phase(managers))
    assert (result.states, result.bounds["device"]) == (STATES[managers], "cpu")


def test_managers_are_interchangeable() -> None:
    assert same(two_phase(4, symmetric=True)) == "holds"


@pytest.mark.parametrize(
    "bounds", [Bounds(1, 1, 2, 2, faults=False), Bounds(2, 1, 1, 1, faults=False)],
    ids=lambda b: f"{b.rooms}-{b.blocks}-{b.size}",
)  # fmt: skip
def test_the_protocol_has_the_same_states(bounds: Bounds) -> None:
    """Several words, blocks and requests that may be exchanged, dozens of clauses."""
    model = bounded(bounds)
    assert Packing(model).words > 1
    assert same(model) == "holds"


@pytest.mark.parametrize(
    ("name", "bounds", "verdict"),
    [
        ("no-grant-seq", Bounds(1, 1, 1, 2), "violated"),
        ("free-without-quiescence", Bounds(1, 1, 1, 2), "violated"),
        ("max-progress", Bounds(1, 2, 1, 2, faults=False), "violated"),
        ("none", Bounds(1, 1, 2, 2, faults=False), "error"),  # counts without end, and leaves the bounds of a field
    ],
)
def test_wrong_versions_break_as_early(name: str, bounds: Bounds, verdict: str) -> None:
    model = bounded(bounds, variant_named(name).rules())
    assert same(replace(model, symmetry=())) == verdict


@given(SEEDS.map(drawn_model), st.booleans())
@hypothesis_settings(max_examples=40)
def test_drawn_models_have_the_same_answer(model: Model, deadlock: bool) -> None:
    if plain_search(model, deadlock=deadlock, states_max=2_000) is not None:
        same(model, deadlock=deadlock)


@given(SEEDS.map(drawn_symmetric_model), st.booleans())
@hypothesis_settings(max_examples=25)
def test_symmetric_states_are_counted_once(model: Model, deadlock: bool) -> None:
    if plain_search(model, deadlock=deadlock, states_max=300) is not None:
        same(model, deadlock=deadlock)


def test_rows_and_columns_of_a_matrix_are_exchanged_together() -> None:
    assert same(matrix_model(2, 3)) == "holds"


@pytest.fixture
def crumbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, buffers and pieces so small that even tiny models need many."""
    monkeypatch.setattr(torch_device, "CPU_ROWS", 3)
    monkeypatch.setattr(torch_device, "CPU_BUFFER_ROWS", 8)
    monkeypatch.setattr(torch_rows, "PIECE_ROWS", 5)
    monkeypatch.setattr(torch_search, "PLAIN_ROWS", 2)
    monkeypatch.setattr(torch_expand, "SEGMENT_CHUNKS", 1)


@pytest.mark.parametrize("words", [1, 2, 3])
def test_chunks_do_not_matter(words: int, crumbs: None) -> None:
    model = counters(words)
    assert Packing(model).words == words
    assert same(model) == "holds"
    assert same(two_phase(3)) == "holds"
    late = Clause("late", "not all at the top", lambda o, v: v.c0 + v.c1 + v.c2 < 5)
    assert same(counters(words, (late,))) == "violated"


@given(SEEDS.map(drawn_model))
@hypothesis_settings(max_examples=30)
def test_words_that_share_a_key_are_told_apart(model: Model) -> None:
    """Were the key of a state of several words equal for all of them, only speed would be lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_rows, "mixed", lambda columns: torch.zeros_like(columns[0]))
        if plain_search(model, states_max=1_000) is not None:
            same(model)


def test_a_state_without_an_end_is_found() -> None:
    stop = Action("up", lambda o, v: v.a < 3, lambda o, v: {"a": v.a + 1})
    model = Model("ends", (Field("a", 0, 3),), ({},), (stop,))
    assert same(model, deadlock=True) == "violated"
    assert same(model) == "holds"
    assert same(Model("still", (Field("a", 0, 3),), ({},), ())) == "holds"


@pytest.mark.parametrize(
    "update",
    [
        lambda o, v: {"a": v.a + 1},
        lambda o, v: {"a": v.a - 1},
        lambda o, v: {"b": 9},
        lambda o, v: {"b": v.a + 300, "a": 0},
    ],
)
def test_an_update_that_leaves_its_bounds_is_named(update: Any) -> None:
    """A value that is too large or too small in some states, a constant that is wrong in all, one that is computed and
    wrong in all; none of them in the state that the search starts in, which is looked at before."""
    fields = (Field("a", 0, 3), Field("b", 0, 3))
    go = Action("go", lambda o, v: v.b == 3, lambda o, v: {"b": 0})
    up = Action("up", lambda o, v: v.b == 0, update)
    with pytest.raises(LocalError, match=r"action 'up': sets '[ab]' to -?\d+, outside of its bounds 0\.\.3, in the"):
        explore_torch(Model("tiny", fields, ({"b": 3},), (go, up)))
    never = Action("never", lambda o, v: v.b == 3, lambda o, v: {"a": 9})
    assert same(Model("tiny", fields, ({},), (never,))) == "holds"


def test_a_symmetry_that_is_none_is_refused() -> None:
    only_a = Action("only_a", lambda o, v: v.a < 2, lambda o, v: {"a": v.a + 1})
    model = Model("tiny", (Field("a", 0, 3), Field("b", 0, 3)), ({},), (only_a,), (), ((("a",), ("b",)),))
    with pytest.raises(LocalError, match=r"exchanging \(a\) and \(b\) changes what may happen"):
        explore_torch(model)


# --- what ends it early ------------------------------------------------------------------------------------


def endless() -> Model:
    fields = tuple(Field(f"n{i}", 0, 1000) for i in range(4))
    actions = tuple(
        Action(f"up({i})", lambda o, v, i=i: v[f"n{i}"] < 1000, lambda o, v, i=i: {f"n{i}": v[f"n{i}"] + 1})
        for i in range(4)
    )
    return Model("endless", fields, ({},), actions)


def test_limits_are_not_the_end() -> None:
    result = explore_torch(endless(), states_max=1000)
    assert (result.verdict, result.coverage) == ("bounded", "bounded")
    assert result.bound.startswith("states_max; ") and result.states > 1000
    result = explore_torch(endless(), memory_bytes=300_000)
    assert (result.verdict, result.coverage) == ("bounded", "bounded")
    assert result.bound.startswith("memory, at ") and result.states > 1000
    assert result.memory_bytes <= 300_000
    result = explore_torch(endless(), memory_bytes=1)
    assert (result.verdict, result.states) == ("bounded", 0)


@pytest.mark.parametrize("calls", [0, 1, 7])
def test_a_limit_of_time_is_not_the_end(calls: int) -> None:
    asked: list[int] = []
    result = explore_torch(endless(), stop=lambda: asked.append(1) or len(asked) > calls)  # type: ignore[func-returns-value]
    assert (result.verdict, result.coverage) == ("bounded", "bounded")
    assert result.bound.startswith("time; ") and len(asked) == calls + 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=type)
def test_a_device_without_memory_is_not_the_end(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(torch_search, "distinct", none)
    result = explore_torch(endless())
    assert (result.verdict, result.coverage) == ("bounded", "bounded")
    assert result.bound.startswith("memory, as cpu has no more; ")


def test_other_errors_of_the_device_are_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch_search, "distinct", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        explore_torch(endless())


def test_levels_go_to_the_host_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a processor they are there already, so a device is played; its search goes on for longer, and still finds the
    way to what is wrong."""
    clause = Clause("few", "n0 is not 25", lambda o, v: v.n0 != 25)
    model = replace(endless(), clauses=(clause,))
    assert explore_torch(model, memory_bytes=400_000).verdict == "bounded"
    search = TorchSearch(model, Device("cpu"), memory_bytes=400_000)
    monkeypatch.setattr(search.store, "moves_levels", True)
    result = search.run()
    assert result.verdict == "violated" and result.violation is not None
    assert any(level.apart for level in search.store.levels)
    assert result.violation.depth == 25
    check_trace(model, result.violation)


def test_progress_is_told() -> None:
    told: list[tuple[int, int, int]] = []
    explore_torch(counters(1), progress=lambda *seen: told.append(seen))
    assert told[0] == (1, 0, 1)
    assert [depth for _, depth, _ in told] == sorted(depth for _, depth, _ in told)


# --- what is refused ---------------------------------------------------------------------------------------


def test_torch_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LocalError, match=r"torch is not installed: pip install 'resumark\[torch\]'"):
        explore_torch(counters(1))


@pytest.mark.parametrize(
    ("device", "said"),
    [("gpu7", "no such kind of device; expected 'cpu', 'cuda'"), ("meta", "written for 'cpu' and 'cuda'")],
)
def test_a_device_that_is_none_is_named(device: str, said: str) -> None:
    with pytest.raises(LocalError, match=f"device '{device}': .*{said}"):
        explore_torch(counters(1), device=device)


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LocalError, match=r"device 'cuda': torch .* has none: .* the numpy engine is the faster one"):
        explore_torch(counters(1), device="cuda")


def test_what_it_cannot_do_is_refused(tmp_path: Any) -> None:
    with pytest.raises(LocalError, match="on a device states stay in memory"):
        explore_torch(counters(1), spill=tmp_path)
    with pytest.raises(LocalError, match="memory_bytes = 0; expected"):
        explore_torch(counters(1), memory_bytes=0)


# --- its parts ---------------------------------------------------------------------------------------------


def test_words_are_ordered_and_shifted_as_numpy_s() -> None:
    """Numbers with the highest bit, too, and in place as well as not."""
    dice = Random(7)
    numbers = [dice.getrandbits(dice.choice([3, 63, 64])) for _ in range(200)]
    left, right = np.array(numbers[:100], np.uint64), np.array(numbers[100:], np.uint64)
    right[:20] = left[:20]
    a, b = (Unsigned(torch, torch.from_numpy(column.copy().view(np.int64))) for column in (left, right))

    def told(value: Any) -> list[int]:
        return (to_numpy((value.bits,))[0] if isinstance(value, Unsigned) else value.numpy()).tolist()

    for function in torch_words._UFUNCS:
        shifts = function in (np.left_shift, np.right_shift)
        for count in (np.uint64(0), np.uint64(1), np.uint64(63)) if shifts else (None,):
            expected = function(left, right if count is None else count)
            assert told(function(a, b if count is None else count)) == expected.tolist(), function.__name__
    with pytest.raises(TypeError):
        np.add(a, b)
    with pytest.raises(TypeError):
        np.concatenate((a, b))
    target = a.copy()
    np.maximum(a, b, out=target)
    assert told(target) == np.maximum(left, right).tolist()
    assert told(np.where(a < b, a, b)) == np.minimum(left, right).tolist()
    in_place, expected = a.copy(), left.copy()
    for name in ("__iand__", "__ior__", "__ixor__"):
        in_place, expected = getattr(in_place, name)(b), getattr(expected, name)(right)
        assert told(in_place) == expected.tolist()
    in_place <<= np.uint64(3)
    in_place[in_place > np.uint64(1 << 63)] = np.uint64((1 << 64) - 2)
    expected <<= np.uint64(3)
    expected[expected > np.uint64(1 << 63)] = np.uint64((1 << 64) - 2)
    assert told(in_place) == expected.tolist()
    assert [signed(n) for n in (0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)] == [0, (1 << 63) - 1, -(1 << 63), -1]


@given(SEEDS.map(drawn_symmetric_model), st.integers(0, 1 << 32))
@hypothesis_settings(max_examples=30)
def test_the_same_state_stands_for_others(model: Model, seed: int) -> None:
    """Else the way that is found on the device would be no way for numpy."""
    dice = Random(seed)
    packing = Packing(model)
    states = [{f.name: dice.randint(f.low, f.high) for f in model.fields} for _ in range(20)]
    columns = packing.pack(states)
    words: Any = tuple(Unsigned(torch, column) for column in torch_words.to_device(torch, "cpu", columns))
    symmetry = Symmetry(model, packing)
    here: Any = symmetry.canonical(words)
    for mine, numpy_s in zip(here, symmetry.canonical(columns), strict=True):
        assert to_numpy((mine.bits,))[0].tolist() == numpy_s.tolist()


@pytest.mark.parametrize("high", [9, 200, 40_000, 1 << 40])
def test_every_operation_is_what_it_is_for_ints(high: int) -> None:
    """In every width of numbers, and also where a result is asked for again."""
    model = Model("fields", (Field("a", -9, 9), Field("b", -3, high), Field("c", 5, 5)), ({},), ())
    packing, table = Packing(model), Table(model)
    dice = Random(5)
    states = [{"a": a, "b": b, "c": 5} for a in range(-9, 10) for b in (-3, -2, 0, 2, 7, high, dice.randint(-3, high))]
    symbols = [table.symbol(value) for value in every_operation(table, table.view)]
    singly = [[*map(int, every_operation(INT, Fields(state)))] for state in states]
    symbols += [*reversed(symbols), table.fields["c"]]
    device = Device("cpu")
    plan = torch_plan.TorchPlan(device, symbols, packing.slots)
    plan.bind(torch_plan.Pool(device, len(states)))
    columns = torch_words.to_device(torch, "cpu", packing.pack(states))
    for number, values in enumerate(plan.run(columns)):
        expected = [[*row, *reversed(row), 5][number] for row in singly]
        got = values if isinstance(values, int) else values.to(torch.int64).tolist()
        assert got == (expected[0] if isinstance(values, int) else expected), str(symbols[number])


ROWS = st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 3), st.integers(0, 3)), max_size=40)


@given(ROWS, ROWS, st.integers(1, 3))
def test_tables_are_sets(rows: list[tuple[int, int, int]], others: list[tuple[int, int, int]], words: int) -> None:
    """Also where most rows have the same first word."""

    def table(some: list[tuple[int, int, int]]) -> Any:
        return tuple(torch.tensor([row[word] for row in some], dtype=torch.int64) for word in range(words))

    def told(columns: Any) -> list[tuple[int, ...]]:
        return list(zip(*(column.tolist() for column in columns), strict=True))

    mine, theirs = {row[:words] for row in rows}, {row[:words] for row in others}
    left, right = torch_rows.distinct(torch, table(rows)), torch_rows.distinct(torch, table(others))
    assert told(left) == sorted(mine)
    assert torch_rows.has(torch, right, left).tolist() == [row in theirs for row in sorted(mine)]
    new = torch_rows.lacking(torch, left, right)
    assert told(new) == sorted(mine - theirs)
    both = torch_rows.merged(torch, new, right)
    assert sorted(told(both)) == sorted(mine | theirs)
    assert both[0].tolist() == sorted(both[0].tolist())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def test_the_kernel_decides_on_tensors_as_on_arrays_and_ints(device: str) -> None:
    """Every function of the kernel, on arguments drawn around what is special."""
    dice = Random(3)
    functions = [f for _, f in inspect.getmembers(kernel, inspect.isfunction) if f.__module__ == kernel.__name__]
    assert len(functions) > 15
    truths = ("landed_required", "two_sided", "all_known", "known", "registered", "due", "wants_blocks")
    for function in functions:
        names = list(inspect.signature(function).parameters)
        takes_ops = names[0] == "ops"
        names = names[1:] if takes_ops else names

        def draw(name: str) -> int:
            if name in truths:
                return dice.random() < 0.5
            return dice.randint(1 if name == "block_tokens" else -2, 6)

        rows = [[draw(name) for name in names] for _ in range(300)]
        arrays = [np.array(column) for column in zip(*rows, strict=True)]
        tensors = [torch.from_numpy(array).to(device) for array in arrays]
        singly = [int(function(INT, *row) if takes_ops else function(*row)) for row in rows]
        together = function(ARRAY, *arrays) if takes_ops else function(*arrays)
        there = function(TorchOps(torch), *tensors) if takes_ops else function(*tensors)
        assert there.device.type == device
        assert there.cpu().to(torch.int64).tolist() == together.astype(np.int64).tolist() == singly, function.__name__


@pytest.mark.parametrize("model", [two_phase(3), bounded(Bounds(1, 2, 1, 2))], ids=lambda model: model.name)
def test_guards_say_the_same_to_three_evaluators(model: Model) -> None:
    """Guards, updates and clauses over states drawn from all there are, most of which no run would reach."""
    dice = Random(11)
    states = [{f.name: dice.randint(f.low, f.high) for f in model.fields} for _ in range(60)]
    arrays = {f.name: np.array([state[f.name] for state in states]) for f in model.fields}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    ops = TorchOps(torch)

    def column(value: Any) -> list[int]:
        return [int(one) for one in np.broadcast_to(np.asarray(value), len(states))]

    def agree(expression: Any) -> None:
        there, here = expression(ops, Fields(tensors)), expression(ARRAY, Fields(arrays))
        singly = [expression(INT, Fields(state)) for state in states]
        if isinstance(here, dict):
            assert there.keys() == here.keys()
            for name in here:
                assert column(there[name]) == column(here[name]) == [int(one[name]) for one in singly]
        else:
            assert column(there) == column(here) == [int(one) for one in singly]

    for action in model.actions:
        agree(action.guard)
        agree(action.update)
    for clause in model.clauses:
        agree(clause.holds)


# --- on a GPU ----------------------------------------------------------------------------------------------


def test_sizes_fill_a_gpu_and_keep_to_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("cpu")
    monkeypatch.setattr(device, "bytes_free", 80 << 30)
    for words, row_bytes in ((1, 100), (6, 800), (16, 3_000)):
        sizes = device.sizes(words, row_bytes, None)
        assert torch_device.GPU_ROWS_MIN <= sizes.rows <= torch_device.GPU_ROWS_MAX
        assert 2 * sizes.rows <= sizes.buffer_rows
        assert sizes.rows * row_bytes + 8 * words * sizes.buffer_rows < (80 << 30) / 8
    assert device.sizes(1, 100, None).rows == 1 << 22
    assert device.sizes(1, 100, 1 << 20).buffer_rows * 8 * 16 <= 1 << 20


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("managers", [3, 5, 8])
def test_two_phase_commit_on_a_gpu(managers: int) -> None:
    result = explore_torch(two_phase(managers), device="cuda")
    assert (result.verdict, result.states) == ("holds", STATES[managers])
    assert result.bounds["device"].startswith("cuda:")


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("name", ["watermark", "sent-accumulate", "none"])
def test_the_protocol_on_a_gpu(name: str) -> None:
    model = bounded(Bounds(1, 2, 1, 2), variant_named(name).rules())
    same(model if name == "watermark" else replace(model, symmetry=()), device="cuda")


@pytest.mark.gpu
@NO_GPU
@given(SEEDS.map(drawn_model), st.booleans())
@hypothesis_settings(max_examples=15)
def test_drawn_models_on_a_gpu(model: Model, deadlock: bool) -> None:
    if plain_search(model, deadlock=deadlock, states_max=500) is not None:
        same(model, device="cuda", deadlock=deadlock)


# --- what is measured --------------------------------------------------------------------------------------


def test_the_benchmark_measures_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_device, "PROTOCOL_QUICK", Bounds(1, 1, 1, 1, faults=False))
    done = resumark("bench", "check", "--device", "cpu", "--quick", "--json")
    assert done.code == 0
    assert {figure["group"] for figure in done.data} == {"exhaustive search of a model on cpu"}
    assert all(figure["value"] > 0 and figure["target"] is None for figure in done.data)
    assert "states" in done.data[0]["note"]
    refused = resumark("bench", "check", "--device", "gpu7")
    assert (refused.code, refused.out) == (2, "") and "device 'gpu7'" in refused.err


def test_the_benchmark_refuses_wrong_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast engine that loses states is no engine."""
    monkeypatch.setitem(bench_device.STATES, bench_device.QUICK_MANAGERS, 1)
    with pytest.raises(LocalError, match=r"two_phase\(4\) on cpu: 1,568 states were found, there are 1"):
        bench_device.device_figures("cpu", quick=True)
    right = bench_device.explore
    monkeypatch.setattr(bench_device, "QUICK_MANAGERS", 3)
    monkeypatch.setattr(bench_device, "PROTOCOL_QUICK", Bounds(1, 1, 1, 1, faults=False))
    monkeypatch.setattr(bench_device, "explore", lambda model: replace(right(model), transitions=1))
    with pytest.raises(LocalError, match=r"with numpy .* and 1$"):
        bench_device.device_figures("cpu", quick=True)
