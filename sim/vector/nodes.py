"""Expressions of a model, made smaller for programs that handle many lanes at a time.

A :class:`Node` says what a :class:`~sim.model.symbol.Symbol` says, with as few operations as simple rules find: what is
the same in all states of the model is a constant, a flag that is compared with 1 is the truth value itself, a choice
between equals is none. Equal nodes are one node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sim.model.symbol import CONST, FIELD, Symbol, parts_of

FLIPPED = {"gt": "lt", "ge": "le"}


class Node:
    """A value: ``op`` of ``args``, between ``low`` and ``high``; ``truth`` tells a truth value from a number.

    ``op`` is ``field`` or ``raw`` (``value`` is its name), ``const``, one of ``add sub mul div mod min max``, ``eq
    lt le``, ``and or not``, ``where``, ``num`` (a truth value as 0 or 1) or ``tru`` (a number that is 0 or 1 as a
    truth value). The second argument of ``div`` and ``mod`` is a constant above 0.
    """

    __slots__ = ("args", "high", "low", "number", "op", "truth", "value")

    def __init__(
        self, op: str, args: tuple[Node, ...], low: int, high: int, truth: bool, value: Any, number: int
    ) -> None:
        self.op, self.args, self.low, self.high = op, args, low, high
        self.truth, self.value, self.number = truth, value, number

    __hash__ = object.__hash__


class Nodes:
    """Makes nodes, and gives equal ones back."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Node] = {}
        self._of: dict[int, Node] = {}
        self.true, self.false = self.const(1, True), self.const(0, True)

    def _make(self, op: str, args: tuple[Node, ...], low: int, high: int, truth: bool, value: Any = 0) -> Node:
        key = (op, *(arg.number for arg in args), value, truth)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Node(op, args, low, high, truth, value, len(self._known))
        return found

    def const(self, value: int, truth: bool = False) -> Node:
        """A number or a truth value."""
        return self._make("const", (), int(value), int(value), truth, int(value))

    def field(self, name: str, low: int, high: int) -> Node:
        """A field with these bounds."""
        return self.const(low) if low == high else self._make("field", (), low, high, False, name)

    def raw(self, name: str) -> Node:
        """A field of which nothing is taken for granted."""
        return self._make("raw", (), -(1 << 15), (1 << 15) - 1, False, name)

    def of(self, symbol: Symbol) -> Node:
        """The node that says what a symbol says. All symbols must be of one table."""
        stack = [symbol]
        while stack:
            top = stack[-1]
            missing = [arg for arg in top.args if arg.number not in self._of]
            if missing and top.number not in self._of:
                stack += missing
                continue
            stack.pop()
            if top.number not in self._of:
                self._of[top.number] = self._convert(top)
        return self._of[symbol.number]

    def _convert(self, symbol: Symbol) -> Node:
        if symbol.kind == CONST:
            return self.const(int(symbol.value), symbol.truth)
        if symbol.kind == FIELD:
            return self.field(str(symbol.value), symbol.low, symbol.high)
        args = [self._of[arg.number] for arg in symbol.args]
        kind = symbol.kind
        if kind == "where":
            return self.where(*args)
        if kind in ("and", "or"):
            return self.both(*args) if kind == "and" else self.either(*args)
        if kind in ("eq", "ne"):
            equal = self.equal(*args)
            return equal if kind == "eq" else self.no(equal)
        if kind in ("lt", "le"):
            return self.less(kind, *args)
        if kind in FLIPPED:
            return self.less(FLIPPED[kind], args[1], args[0])
        return self.arithmetic(kind, *args)

    # --- truth values ---------------------------------------------------------------------------------

    def no(self, a: Node) -> Node:
        """Not ``a``."""
        if a.op == "const":
            return self.const(1 - a.value, True)
        if a.op == "not":
            return a.args[0]
        if a.op in ("lt", "le") and a.args[1].op != "const":
            return self.less("le" if a.op == "lt" else "lt", a.args[1], a.args[0])
        return self._make("not", (a,), 0, 1, True)

    def both(self, a: Node, b: Node) -> Node:
        """``a`` and ``b``."""
        for one, other in ((a, b), (b, a)):
            if one.op == "const":
                return other if one.value else self.false
            if one is other:
                return one
            if one is self.no(other):
                return self.false
            if one.op == "and" and other in one.args:
                return one
        a, b = sorted((a, b), key=lambda node: node.number)
        return self._make("and", (a, b), 0, 1, True)

    def either(self, a: Node, b: Node) -> Node:
        """``a`` or ``b``."""
        for one, other in ((a, b), (b, a)):
            if one.op == "const":
                return self.true if one.value else other
            if one is other:
                return one
            if one is self.no(other):
                return self.true
        a, b = sorted((a, b), key=lambda node: node.number)
        return self._make("or", (a, b), 0, 1, True)

    def equal(self, a: Node, b: Node) -> Node:
        """``a == b``, of numbers or of truth values."""
        if a is b:
            return self.true
        if a.op == "const":
            a, b = b, a
        if a.truth:
            if b.op == "const":
                return a if b.value else self.no(a)
            return self.either(self.both(a, b), self.both(self.no(a), self.no(b)))
        if a.high < b.low or b.high < a.low:
            return self.false
        if b.op == "const":
            if a.op == "const":
                return self.const(a.value == b.value, True)
            if a.op == "num":
                return a.args[0] if b.value else self.no(a.args[0])
            if a.op == "where" and "const" in (a.args[1].op, a.args[2].op):
                condition, yes, no = a.args
                return self.pick(condition, self.equal(yes, b), self.equal(no, b))
            if a.low >= 0 and a.high <= 1:
                truth = self._make("tru", (a,), 0, 1, True)
                return truth if b.value else self.no(truth)
        a, b = (a, b) if b.op == "const" else sorted((a, b), key=lambda node: node.number)
        return self._make("eq", (a, b), 0, 1, True)

    def less(self, op: str, a: Node, b: Node) -> Node:
        """``a < b`` (``lt``) or ``a <= b`` (``le``)."""
        strict = op == "lt"
        if a is b:
            return self.const(not strict, True)
        if a.high < b.low or (not strict and a.high <= b.low):
            return self.true
        if a.low > b.high or (strict and a.low >= b.high):
            return self.false
        if b.op == "const":
            limit = b.value - 1 if strict else b.value  # a <= limit
            if limit == a.low:
                return self.equal(a, self.const(limit))
            if limit == a.high - 1:
                return self.no(self.equal(a, self.const(a.high)))
            if a.op == "where" and "const" in (a.args[1].op, a.args[2].op):
                return self.pick(a.args[0], self.less(op, a.args[1], b), self.less(op, a.args[2], b))
            return self._make("le", (a, self.const(limit)), 0, 1, True)
        if a.op == "const":
            limit = a.value + 1 if strict else a.value  # limit <= b
            if limit == b.high:
                return self.equal(b, self.const(limit))
            if limit == b.low + 1:
                return self.no(self.equal(b, self.const(b.low)))
            if b.op == "where" and "const" in (b.args[1].op, b.args[2].op):
                return self.pick(b.args[0], self.less(op, a, b.args[1]), self.less(op, a, b.args[2]))
            return self.no(self._make("le", (b, self.const(limit - 1)), 0, 1, True))
        return self._make(op, (a, b), 0, 1, True)

    def pick(self, condition: Node, yes: Node, no: Node) -> Node:
        """One of two truth values."""
        return self.either(self.both(condition, yes), self.both(self.no(condition), no))

    # --- numbers --------------------------------------------------------------------------------------

    def where(self, c: Node, a: Node, b: Node) -> Node:
        """``a`` where ``c``, else ``b``."""
        if c.op == "const":
            return a if c.value else b
        if a is b:
            return a
        if a.truth:
            return self.pick(c, a, b)
        if c.op == "not":
            return self.where(c.args[0], b, a)
        if a.op == "where" and a.args[0] is c:
            return self.where(c, a.args[1], b)
        if b.op == "where" and b.args[0] is c:
            return self.where(c, a, b.args[2])
        if a.op == "where" and a.args[2] is b:
            return self.where(self.both(c, a.args[0]), a.args[1], b)
        if a.op == "where" and a.args[1] is b:
            return self.where(self.both(c, self.no(a.args[0])), a.args[2], b)
        if (a.op, b.op) == ("const", "const") and {a.value, b.value} == {0, 1}:
            return self.number(c if a.value else self.no(c))
        return self._make("where", (c, a, b), min(a.low, b.low), max(a.high, b.high), False)

    def number(self, truth: Node) -> Node:
        """A truth value as 0 or 1."""
        if truth.op == "tru":
            return truth.args[0]
        return self.const(truth.value) if truth.op == "const" else self._make("num", (truth,), 0, 1, False)

    def arithmetic(self, op: str, a: Node, b: Node) -> Node:
        """A sum, a product and so on."""
        if op in ("div", "mod") and b.op != "const":
            raise NotImplementedError(f"{op} by what is not the same in all states")
        if op == "min" and (a is b or a.high <= b.low):
            return a
        if op == "min" and b.high <= a.low:
            return b
        if op == "max" and (a is b or a.low >= b.high):
            return a
        if op == "max" and b.low >= a.high:
            return b
        if op in ("add", "sub") and b.op == "const" and not b.value:
            return a
        if op == "add" and a.op == "const":
            return self.arithmetic("add", b, a) if a.value or b.op == "const" else b
        if op == "div" and b.value == 1:
            return a
        if op == "mod" and a.low >= 0 and a.high < b.value:
            return a
        low, high = _bounds(op, a, b)
        return self.const(low) if low == high else self._make(op, (a, b), low, high, False)


def _bounds(op: str, a: Node, b: Node) -> tuple[int, int]:
    if op == "add":
        return a.low + b.low, a.high + b.high
    if op == "sub":
        return a.low - b.high, a.high - b.low
    if op in ("min", "max"):
        best = min if op == "min" else max
        return best(a.low, b.low), best(a.high, b.high)
    if op == "mod":
        return 0, b.high - 1
    corners = [(x * y if op == "mul" else x // y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return min(corners), max(corners)


def fields_of(roots: Iterable[Node]) -> list[str]:
    """The fields that the roots read, each once."""
    return list(dict.fromkeys(node.value for node in parts_of(roots) if node.op in ("field", "raw")))


def evaluate(root: Node, state: Mapping[str, int]) -> int:
    """One node in one state; slow, for tests and for an odd value."""
    values: dict[int, int] = {}
    for node in parts_of([root]):
        args = [values[arg.number] for arg in node.args]
        values[node.number] = int(_SINGLE[node.op](args, node, state))
    return values[root.number]


_SINGLE: dict[str, Any] = {
    "field": lambda a, node, state: state[node.value], "raw": lambda a, node, state: state[node.value],
    "const": lambda a, node, state: node.value,
    "add": lambda a, *_: a[0] + a[1], "sub": lambda a, *_: a[0] - a[1], "mul": lambda a, *_: a[0] * a[1],
    "div": lambda a, *_: a[0] // a[1], "mod": lambda a, *_: a[0] % a[1], "min": lambda a, *_: min(a),
    "max": lambda a, *_: max(a), "eq": lambda a, *_: a[0] == a[1], "lt": lambda a, *_: a[0] < a[1],
    "le": lambda a, *_: a[0] <= a[1], "and": lambda a, *_: a[0] & a[1], "or": lambda a, *_: a[0] | a[1],
    "not": lambda a, *_: 1 - a[0], "where": lambda a, *_: a[1] if a[0] else a[2], "num": lambda a, *_: a[0],
    "tru": lambda a, *_: a[0],
}  # fmt: skip
