"""The kernels that are written for a model, for a GPU, do what torch's own operations do.

Here their text is compiled for a processor, with undefined behaviour made an error. Where NVRTC is installed it has to
accept the text for a GPU, too; that needs no GPU.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fsm.errors import LocalError
from sim.model.form import Action, Field, Model
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.symbol import Table
from sim.model.two_phase import two_phase
from sim.model.variants import variant_named
from sim.vector_torch import device as torch_device
from sim.vector_torch import expand as torch_expand
from sim.vector_torch import fused as torch_fused
from sim.vector_torch import nvrtc as torch_nvrtc
from sim.vector_torch.device import Device
from sim.vector_torch.search import TorchSearch, explore_torch
from tests.sim.model_kit import drawn_model, matrix_model, plain_search
from tests.sim.torch_kit import counters, every_operation, same

torch = pytest.importorskip("torch", reason="torch is an extra")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class CompiledC:
    """The text of the kernels, compiled for the processor: in place of what NVRTC makes of it for a GPU."""

    count = 0

    def __init__(self, folder: Path, look: str, make: str) -> None:
        CompiledC.count += 1
        source, library = folder / f"kernels{self.count}.c", folder / f"kernels{self.count}.so"
        source.write_text(torch_fused.C + look + make)
        command = ["gcc", "-O0", "-Wall", "-Wno-unused", "-Werror", "-shared", "-fPIC", "-fsanitize=undefined"]
        command += ["-fno-sanitize-recover", "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.library = ctypes.CDLL(str(library))

    @staticmethod
    def _call(function: Any, *arguments: Any) -> None:
        function(*(ctypes.c_int(a) if isinstance(a, int) else ctypes.c_void_p(a.data_ptr()) for a in arguments))

    def look(self, columns: Any, table: Any, degree: Any, sound: Any) -> None:
        self._call(self.library.look, *columns, table, degree, sound, len(columns[0]))

    def make(self, columns: Any, moves: Any, out: Any, left: Any) -> None:
        assert all(len(column) == len(moves) for column in out)
        self._call(self.library.make, *columns, moves, *out, left, len(columns[0]), len(moves))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches run on the text that is written for a GPU, every chunk of them is computed by torch too."""
    monkeypatch.setattr(torch_fused, "compiled", lambda device, texts: CompiledC(tmp_path, *texts()))
    monkeypatch.setattr(torch_expand, "COMPARED_CHUNKS", 1 << 30)


NO_GCC = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@NO_GCC
@pytest.mark.parametrize("model", [two_phase(4, symmetric=True), counters(3), matrix_model(2, 2)], ids=lambda m: m.name)
def test_kernels_written_for_a_model_say_the_same(model: Model, written: None) -> None:
    assert same(model) == "holds"
    assert explore_torch(model).bounds["fused"] is True
    assert explore_torch(model, fused=False).bounds["fused"] is False


@NO_GCC
def test_kernels_written_for_the_protocol_say_the_same(written: None) -> None:
    model = bounded(Bounds(1, 1, 1, 2, faults=False), variant_named("no-grant-seq").rules())
    assert same(replace(model, symmetry=())) == "violated"


@NO_GCC
def test_kernels_written_for_drawn_models_say_the_same(written: None) -> None:
    """With values that are negative or take an int64, division, a state without an end, and bounds that are left."""
    verdicts = [
        same(drawn_model(seed), deadlock=seed % 2 == 0) for seed in range(12) if plain_search(drawn_model(seed))
    ]
    assert len(verdicts) > 6 and len(set(verdicts)) > 1
    fields = (Field("a", -7, 1 << 40), Field("b", -7, 7), Field("c", -3, 3))
    odd = Action(
        "odd",
        lambda o, v: (v.a // 3 + v.b % 5 < 9) & (v.c < 3),
        lambda o, v: {"a": v.a * v.b - v.c, "b": (v.b - 9) // 2 % 7 - (v.a - 30) % 3, "c": o.minimum(0 - v.c, 2) + 1},
    )
    assert same(Model("odd", fields, ({"c": -3},), (odd,))) in ("holds", "error")
    up = Action("up", lambda o, v: v.c < 3, lambda o, v: {"c": v.c + 2})
    assert same(Model("leaves", fields, ({"c": 0},), (up,))) == "error"


@NO_GCC
def test_bounds_that_are_left_are_told_from_kernels_that_differ(written: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One action leaves them, and the actions after it, which are made later, do not."""
    monkeypatch.setattr(torch_device, "CPU_ROWS", 3)
    monkeypatch.setattr(torch_expand, "SEGMENT_CHUNKS", 1)
    fields = (Field("a", 0, 6), Field("b", 0, 3))
    actions = [Action("b", lambda o, v: v.b < 3, lambda o, v: {"b": v.b + v.a // 3})]
    actions += [Action(f"a{by}", lambda o, v: v.a < 5, lambda o, v, by=by: {"a": v.a + by}) for by in (1, 2)]
    assert same(Model("late", fields, ({},), tuple(actions))) == "error"


@NO_GCC
@pytest.mark.parametrize("high", [9, 1 << 40])
def test_kernels_have_every_operation(high: int, written: None) -> None:
    """A truth as a guard, a number as an update; the walk goes over every value of one field, and some of the other."""
    fields = (Field("a", -9, 9), Field("b", -3, high), Field("c", 5, 5), Field("d", -100, 100))
    table = Table(Model("fields", fields, ({},), ()))
    walk = [Action("up", lambda o, v: v.a < 9, lambda o, v: {"a": v.a + 1, "d": 0})]
    walk += [Action(f"b {b}", lambda o, v: v.c == 5, lambda o, v, b=b: {"b": b}) for b in (-3, -2, 0, 2, 7, high)]
    asked = [
        Action(f"asks {at}", lambda o, v, at=at: every_operation(o, v)[at], lambda o, v: {"a": o.maximum(v.a - 1, -9)})
        if symbol.truth
        else Action(
            f"puts {at}",
            lambda o, v: v.d == 0,
            lambda o, v, at=at: {"d": o.maximum(o.minimum(every_operation(o, v)[at], 100), -100)},
        )
        for at, symbol in enumerate(map(table.symbol, every_operation(table, table.view)))
    ]
    assert same(Model("operations", fields, ({"d": 0},), (*walk, *asked))) == "holds"


@NO_GCC
def test_kernels_that_differ_are_found_out(written: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_fused._SIGNS, "add", "-")
    with pytest.raises(LocalError, match=r"written for its updates and torch's own operations differ"):
        explore_torch(
            replace(counters(1), actions=(Action("up", lambda o, v: v.c0 < 3, lambda o, v: {"c0": v.c0 + 1}),))
        )
    monkeypatch.setitem(torch_fused._SIGNS, "eq", "!=")
    with pytest.raises(LocalError, match=r"written for its guards and clauses and torch's own operations differ"):
        explore_torch(two_phase(2))


def test_the_compiler_for_gpus_takes_what_is_written() -> None:
    """It needs no GPU to compile for one."""
    try:
        nvrtc = torch_nvrtc.find_nvrtc(torch)
    except OSError as error:
        pytest.skip(f"no NVRTC: {error}")
    search = TorchSearch(bounded(Bounds(1, 2, 1, 2, faults=False)), Device("cpu"))
    search._prepare()
    text = torch_fused.CUDA + "".join(search.expander._written())
    cubin = torch_nvrtc.compile_cubin(nvrtc, text, "sm_90")
    assert cubin[:4] == b"\x7fELF" and b"look" in cubin and b"make" in cubin
    with pytest.raises(RuntimeError, match=r"NVRTC refuses:\n(?s:.)*nonsense"):
        torch_nvrtc.compile_cubin(nvrtc, text + "nonsense", "sm_90")


def test_where_kernels_cannot_be_had_it_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor none are asked for. A device is played here, on which this torch can compile nothing."""
    device = Device("cpu")
    assert torch_fused.compiled(device, lambda: pytest.fail("written")) is None
    monkeypatch.setattr(device, "is_gpu", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(
        torch_fused, "find_nvrtc", lambda torch: (_ for _ in ()).throw(OSError("libnvrtc is not found"))
    )
    assert torch_fused.compiled(device, lambda: ("", "")) is None


def test_where_kernels_cannot_be_launched_it_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def look(self, *arguments: Any) -> None:
            raise RuntimeError("CUDA: 'launch' fails with code 209")

    monkeypatch.setattr(torch_fused, "compiled", lambda device, texts: Broken())
    assert same(counters(1)) == "holds"
    assert explore_torch(counters(1)).bounds["fused"] is False
