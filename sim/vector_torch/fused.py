"""The expressions of a model as two kernels, written out for it and compiled for a GPU when a search begins.

`sim.vector_torch.plan` calls torch once for each operation. A protocol model has thousands of them, and most levels
are too small to hide what so many launches cost. Here one kernel evaluates all guards and clauses of a state, and
another makes the state after a step: both as straight lines of C on integers, out of the same symbols.

The text is plain C but for a prologue (:data:`CUDA`, :data:`C`), so that a test can compile it for a processor. On a
GPU it is compiled by NVRTC, which comes with torch; where that fails, the search goes on without. Nothing is taken on
trust either way: the first chunks of a search are computed by torch's own operations too, and must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sim.model.form import Field
from sim.model.symbol import CONST, FIELD, Symbol, parts_of
from sim.vector.pack import Slot
from sim.vector_torch.device import Device, Tensor, Tensors
from sim.vector_torch.nvrtc import Module, compile_cubin, find_nvrtc

INT_MAX = (1 << 31) - 1

COMMON = """
typedef long long word;
typedef unsigned long long bits;
typedef unsigned char byte;
FUNCTION word word_div(word a, word b) { return a / b - (a % b < 0); }
FUNCTION word word_mod(word a, word b) { return a % b + (a % b < 0 ? b : 0); }
FUNCTION int int_div(int a, int b) { return a / b - (a % b < 0); }
FUNCTION int int_mod(int a, int b) { return a % b + (a % b < 0 ? b : 0); }
"""
CUDA = (
    '#define KERNEL extern "C" __global__ void\n#define FUNCTION __device__ static inline\n'
    "#define EACH(i, count) const int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < count)\n"
) + COMMON
C = (
    "#define KERNEL void\n#define FUNCTION static inline\n#define EACH(i, count) for (int i = 0; i < count; i++)\n"
) + COMMON

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
          "and": "&", "or": "|"}  # fmt: skip


class Written(Protocol):
    """What is written down of an action's update (see `sim.vector_torch.expand`)."""

    clear: dict[int, int]
    fixed: dict[int, int]
    computed: list[tuple[Field, Slot, Symbol]]
    moving: Symbol
    counted: Symbol | None


class Kernels(Protocol):
    """The two kernels, ready to be called."""

    def look(self, columns: Tensors, table: Tensor, degree: Tensor, sound: Tensor) -> None:
        """Guards into ``table`` (a row for each action), steps that count into ``degree``, clauses into ``sound``."""

    def make(self, columns: Tensors, moves: Tensor, out: Tensors, left: Tensor) -> None:
        """The states after moves (action x rows + row); ``left`` is set where a value leaves its bounds."""


# --- the text --------------------------------------------------------------------------------------------


def look_text(clauses: Sequence[Symbol], effects: Sequence[Written], slots: dict[str, Slot], words: int,
              *, deadlock: bool) -> str:  # fmt: skip
    """The kernel ``look``: for every row of the words all guards and clauses."""
    roots = [*clauses]
    for effect in effects:
        roots += [effect.moving] if effect.counted is None else [effect.moving, effect.counted]
    body = [*_loads(words, "i"), *_lines(roots, slots), "int d = 0, s = 1;"]
    body += [f"s &= {_value(clause)};" for clause in clauses]
    for number, effect in enumerate(effects):
        body.append(f"table[(word){number} * rows + i] = (byte){_value(effect.moving)};")
        if effect.counted is not None or deadlock:
            body.append(f"d += {_value(effect.moving if effect.counted is None else effect.counted)};")
    body += ["degree[i] = d;", "sound[i] = (byte)s;"]
    arguments = [f"const word *w{word}" for word in range(words)]
    arguments += ["byte *table", "int *degree", "byte *sound", "int rows"]
    return _kernel("look", arguments, "EACH(i, rows)", body)


def make_text(effects: Sequence[Written], slots: dict[str, Slot], words: int) -> str:
    """The kernel ``make``: for every move the state after it."""
    body = ["const word m = moves[j];", "const int a = (int)(m / rows);", "const int i = (int)(m - (word)a * rows);"]
    body += [*_loads(words, "i"), *(f"word r{word} = q{word};" for word in range(words)), "switch (a) {"]
    for number, effect in enumerate(effects):
        body += [f"case {number}: {{", *_update(effect, slots), "break; }"]
    body += ["}", *(f"o{word}[j] = r{word};" for word in range(words))]
    arguments = [*(f"const word *w{word}" for word in range(words)), "const word *moves"]
    arguments += [*(f"word *o{word}" for word in range(words)), "byte *left", "int rows", "int count"]
    return _kernel("make", arguments, "EACH(j, count)", body)


def _kernel(name: str, arguments: Sequence[str], each: str, body: Sequence[str]) -> str:
    return f"KERNEL {name}({', '.join(arguments)}) {{\n{each} {{\n" + "\n".join(body) + "\n}\n}\n"


def _loads(words: int, row: str) -> list[str]:
    return [f"const word q{word} = w{word}[{row}];" for word in range(words)]


def _update(effect: Written, slots: dict[str, Slot]) -> list[str]:
    lines = _lines([symbol for _, _, symbol in effect.computed], slots)
    for word, clear in effect.clear.items():
        lines.append(f"r{word} = (q{word} & {_word(clear)}) | {_word(effect.fixed.get(word, 0))};")
    for field, slot, symbol in effect.computed:
        value = _value(symbol)
        if symbol.low < field.low or symbol.high > field.high:
            lines.append(f"if ({value} < {_number(field.low)} || {value} > {_number(field.high)}) *left = 1;")
        if slot.bits:
            lines.append(f"r{slot.word} |= (word)((bits)((word){value} - {_number(slot.low)}) << {slot.shift});")
    return lines


def _lines(roots: Sequence[Symbol], slots: dict[str, Slot]) -> list[str]:
    """One line for every part of the expressions, each after its arguments."""
    return [
        f"const {_type(symbol)} v{symbol.number} = {_expression(symbol, slots)};"
        for symbol in parts_of(roots)
        if symbol.kind != CONST
    ]


def _type(symbol: Symbol) -> str:
    return "int" if symbol.low >= -INT_MAX and symbol.high <= INT_MAX else "word"


def _expression(symbol: Symbol, slots: dict[str, Slot]) -> str:
    if symbol.kind == FIELD:
        slot = slots[str(symbol.value)]
        if not slot.bits:
            return _number(slot.low)
        value = f"((q{slot.word} >> {slot.shift}) & {_word((1 << slot.bits) - 1)})"
        return f"({_type(symbol)})({value} + {_number(slot.low)})"
    values = [_value(argument) for argument in symbol.args]
    if symbol.kind == "where":
        return f"{values[0]} ? {values[1]} : {values[2]}"
    left, right = values
    if symbol.kind in ("div", "mod"):
        wide = "word" if "word" in map(_type, symbol.args) else "int"
        return f"({_type(symbol)}){wide}_{symbol.kind}({left}, {right})"
    if symbol.kind in ("min", "max"):
        return f"{left} {'<' if symbol.kind == 'min' else '>'} {right} ? {left} : {right}"
    return f"(({_type(symbol)}){left}) {_SIGNS[symbol.kind]} {right}" if _type(symbol) == "word" else (
        f"{left} {_SIGNS[symbol.kind]} {right}"
    )  # fmt: skip


def _value(symbol: Symbol) -> str:
    return _number(int(symbol.value)) if symbol.kind == CONST else f"v{symbol.number}"


def _number(number: int) -> str:
    text = str(number) if abs(number) <= INT_MAX else f"{number}LL"
    return f"({text})" if number < 0 else text


def _word(number: int) -> str:
    """A literal with those 64 bits."""
    return f"(word)0x{number & (1 << 64) - 1:x}ULL"


# --- on a GPU --------------------------------------------------------------------------------------------


class CudaKernels:
    """Compiled by NVRTC. Raises OSError or RuntimeError where that cannot be done."""

    def __init__(self, device: Device, look: str, make: str) -> None:
        torch = device.torch
        major, minor = torch.cuda.get_device_capability(device.device)
        cubin = compile_cubin(find_nvrtc(torch), CUDA + look + make, f"sm_{major}{minor}")
        self._module = Module(torch, device.device, cubin)
        self._look, self._make = self._module.function("look"), self._module.function("make")

    def look(self, columns: Tensors, table: Tensor, degree: Tensor, sound: Tensor) -> None:
        """See :class:`Kernels`."""
        rows = len(columns[0])
        self._module.launch(self._look, rows, [*columns, table, degree, sound, rows])

    def make(self, columns: Tensors, moves: Tensor, out: Tensors, left: Tensor) -> None:
        """See :class:`Kernels`."""
        self._module.launch(self._make, len(moves), [*columns, moves, *out, left, len(columns[0]), len(moves)])


def compiled(device: Device, written: Callable[[], tuple[str, str]]) -> Kernels | None:
    """The kernels ``look`` and ``make`` for a device; None where they cannot be had, as on a processor."""
    if not device.is_gpu:
        return None
    try:
        return CudaKernels(device, *written())
    except (RuntimeError, OSError):
        return None
