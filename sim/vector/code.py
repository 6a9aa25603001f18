"""Expressions of nodes as machine code, for 64 lanes at once, by LLVM. Needs the extra ``fast``.

Numbers are small and lie side by side, one column a field, so that one instruction handles 32 or 64 lanes. Two writers
are made of it: that of the search (:mod:`sim.vector.native`) and that of the mass simulation (:mod:`sim.mass.native`).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from fsm.errors import LocalError
from sim.model.symbol import parts_of
from sim.vector.nodes import Node

LANES = 64
"""Lanes of a group."""
WORD_MASK = (1 << 64) - 1


def available() -> bool:
    """Whether machine code can be made here."""
    try:
        import_module("llvmlite.binding")
    except ImportError:
        return False
    return True


def llvm() -> tuple[Any, Any]:
    """The modules of llvmlite. Raises LocalError if they are not installed."""
    try:
        return import_module("llvmlite.ir"), import_module("llvmlite.binding")
    except ImportError:
        raise LocalError("llvmlite is not installed: pip install 'resumark[fast]', or take numpy") from None


class Code:
    """Writes expressions in LLVM's language. ``bits`` is the width of a number, ``place`` the column of each field.

    Whoever derives from it sets ``b``, the place that is written at, and ``columns``, where the columns lie.
    """

    b: Any
    columns: Any

    def __init__(self, bits: int, place: dict[str, int]) -> None:
        self.ir, self.binding = llvm()
        ir = self.ir
        self.i64, self.i1 = ir.IntType(64), ir.IntType(1)
        self.cell = ir.IntType(bits)
        self.numbers = ir.VectorType(self.cell, LANES)
        self.truths = ir.VectorType(self.i1, LANES)
        self.words = ir.VectorType(self.i64, LANES)
        self.place = place
        self.values: dict[int, Any] = {}

    # --- constants and memory -------------------------------------------------------------------------

    def constant(self, value: int, kind: Any = None) -> Any:
        """The same value in every lane."""
        kind = kind or self.numbers
        bits = kind.element.width
        number = value & ((1 << bits) - 1)
        made = self.ir.Constant(kind, self.ir.Undefined)
        made.get_reference = lambda: f"splat (i{bits} {number})"  # sixty-four equal numbers take long to write and read
        return made

    def word(self, value: int) -> Any:
        """A scalar of 64 bits."""
        return self.ir.Constant(self.i64, value & WORD_MASK)

    def column(self, name: str) -> Any:
        """Where a column lies."""
        return self.cells(self.place[name])

    def cells(self, index: int) -> Any:
        """Where the column of that number lies."""
        at = self.b.gep(self.columns, [self.ir.Constant(self.i64, index * LANES)])
        return self.b.bitcast(at, self.numbers.as_pointer())

    def load(self, pointer: Any) -> Any:
        """What lies there."""
        loaded = self.b.load(pointer)
        loaded.align = LANES
        return loaded

    def store(self, value: Any, pointer: Any) -> None:
        """Put it there."""
        self.b.store(value, pointer).align = LANES

    def add_to(self, pointer: Any, value: Any) -> None:
        """Count."""
        self.b.store(self.b.add(self.b.load(pointer), value), pointer)

    def any_of(self, truths: Any) -> Any:
        """As one word of bits, a bit for each lane."""
        return self.b.bitcast(truths, self.i64)

    # --- a round --------------------------------------------------------------------------------------

    def count(self, bits: Any) -> Any:
        """How many bits are set."""
        return self.b.ctpop(bits)

    # --- nodes ----------------------------------------------------------------------------------------

    def value(self, root: Node) -> Any:
        """The value of a node, with all that it is made of."""
        for node in parts_of([root]):
            if node.number not in self.values:
                self.values[node.number] = self._value(node)
        return self.values[root.number]

    def _value(self, node: Node) -> Any:
        b = self.b
        if node.op == "const":
            return self.constant(node.value, self.truths if node.truth else self.numbers)
        if node.op in ("field", "raw"):
            return self.read(node)
        args = [self.values[arg.number] for arg in node.args]
        if node.op in ("div", "mod"):
            return self._divide(node, args[0])
        if node.op in ("min", "max"):
            below = b.icmp_signed("<", args[0], args[1])
            return b.select(below, *(args if node.op == "min" else reversed(args)))
        simple: dict[str, Callable[..., Any]] = {
            "add": b.add, "sub": b.sub, "mul": b.mul, "and": b.and_, "or": b.or_,
            "eq": lambda x, y: b.icmp_signed("==", x, y), "lt": lambda x, y: b.icmp_signed("<", x, y),
            "le": lambda x, y: b.icmp_signed("<=", x, y), "where": b.select,
            "not": lambda x: b.xor(x, self.constant(1, self.truths)), "num": lambda x: b.zext(x, self.numbers),
            "tru": lambda x: b.icmp_signed("!=", x, self.constant(0)),
        }  # fmt: skip
        return simple[node.op](*args)

    def read(self, node: Node) -> Any:
        """What a node reads that is made of nothing else."""
        return self.load(self.column(node.value))

    def _divide(self, node: Node, a: Any) -> Any:
        """Rounded down. By a power of two it is a shift; by anything else, comparisons with its multiples."""
        b, by = self.b, int(node.args[1].value)
        if by & (by - 1) == 0:
            if node.op == "mod":
                return b.and_(a, self.constant(by - 1))
            return b.ashr(a, self.constant(by.bit_length() - 1))
        low, high = node.args[0].low // by, node.args[0].high // by
        result = self.constant(low)
        for multiple in range(low + 1, high + 1):
            reached = b.icmp_signed(">=", a, self.constant(multiple * by))
            result = b.add(result, b.zext(reached, self.numbers))
        return result if node.op == "div" else b.sub(a, b.mul(result, self.constant(by)))
