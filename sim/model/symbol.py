"""What an expression of a model is made of: it is called once, with symbols in place of numbers.

The result is a graph of :class:`Symbol`, equal parts shared, each with the lowest and highest value that it can take
by interval arithmetic. That serves three ends: an expression that decides on data, or mixes truth values and numbers,
is refused by name before any search; a width is chosen in which no sum can overflow; and what several guards have in
common is computed once.

:func:`check_model` is the check of a whole model. Everything it refuses is a ``LocalError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from fsm.errors import LocalError
from sim.model.form import VALUE_BITS_MAX, Action, Clause, Fields, Model, apply, describe, holds

WIDEST = 1 << 62
"""No part of an expression may be larger than this, so that it fits an int64."""

FIELD, CONST = "field", "const"
_SHOWN = 4
"""How deep an expression is written out in an error."""
ARITHMETIC = ("add", "sub", "mul", "div", "mod", "min", "max")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "//", "mod": "%", "eq": "==", "ne": "!=",
          "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and": "&", "or": "|"}  # fmt: skip


class Refused(Exception):
    """Something that an expression may not do; the text says what to do instead."""


class Symbol:
    """A part of an expression. ``low`` and ``high`` bound its value; ``truth`` tells a truth value from a number.

    ``kind`` is ``field`` (``value`` is its name), ``const`` (``value`` is the number) or the operation on ``args``.
    """

    __slots__ = ("args", "high", "kind", "low", "number", "table", "truth", "value")

    def __init__(
        self, table: Table, kind: str, args: tuple[Symbol, ...], low: int, high: int, truth: bool, value: int | str = 0
    ) -> None:
        self.table, self.kind, self.args = table, kind, args
        self.low, self.high, self.truth, self.value = low, high, truth, value
        self.number = 0

    def __str__(self) -> str:
        return self._text(_SHOWN)

    def _text(self, levels: int) -> str:
        if self.kind in (FIELD, CONST):
            return str(bool(self.value) if self.truth else self.value)
        if not levels:  # shared parts would be written out over and over
            return "..."
        parts = [part._text(levels - 1) for part in self.args]
        if self.kind in _SIGNS:
            return f"({parts[0]} {_SIGNS[self.kind]} {parts[1]})"
        return f"{self.kind}({', '.join(parts)})"

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise Refused(
            f"decides on {self}; `if`, `and`, `or`, `not`, `min`, `max`, `in` and chained comparisons ask for one "
            "answer where there are many: use ops.where, &, |, negate, ops.minimum, ops.maximum"
        )

    def __index__(self) -> int:
        raise Refused(f"uses {self} as an index; write one case for each value with ops.where")

    def __invert__(self) -> Symbol:
        raise Refused(f"applies ~ to {self}; on a plain True that is -2, which is true: use negate(...)")

    def __neg__(self) -> Symbol:
        return self.table.apply("sub", 0, self)

    def __add__(self, other: Any) -> Symbol:
        return self.table.apply("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self.table.apply("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return self.table.apply("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return self.table.apply("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return self.table.apply("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return self.table.apply("mul", other, self)

    def __floordiv__(self, other: Any) -> Symbol:
        return self.table.apply("div", self, other)

    def __rfloordiv__(self, other: Any) -> Symbol:
        return self.table.apply("div", other, self)

    def __mod__(self, other: Any) -> Symbol:
        return self.table.apply("mod", self, other)

    def __rmod__(self, other: Any) -> Symbol:
        return self.table.apply("mod", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        raise Refused(f"divides {self} with /; all values are whole numbers: use //")

    __rtruediv__ = __truediv__

    def __eq__(self, other: Any) -> Symbol:  # type: ignore[override]
        return self.table.apply("eq", self, other)

    def __ne__(self, other: Any) -> Symbol:  # type: ignore[override]
        return self.table.apply("ne", self, other)

    def __lt__(self, other: Any) -> Symbol:
        return self.table.apply("lt", self, other)

    def __le__(self, other: Any) -> Symbol:
        return self.table.apply("le", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return self.table.apply("gt", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return self.table.apply("ge", self, other)

    def __and__(self, other: Any) -> Symbol:
        return self.table.apply("and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Symbol:
        return self.table.apply("or", self, other)

    __ror__ = __or__


def _bounds(kind: str, left: Symbol, right: Symbol) -> tuple[int, int]:
    """The interval of an arithmetic operation on two intervals."""
    if kind == "add":
        return left.low + right.low, left.high + right.high
    if kind == "sub":
        return left.low - right.high, left.high - right.low
    if kind == "min":
        return min(left.low, right.low), min(left.high, right.high)
    if kind == "max":
        return max(left.low, right.low), max(left.high, right.high)
    corners = [(a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
    if kind == "mul":
        return min(a * b for a, b in corners), max(a * b for a, b in corners)
    if kind == "div":
        return min(a // b for a, b in corners), max(a // b for a, b in corners)
    return (left.low, left.high) if left.low >= 0 and left.high < right.low else (0, right.high - 1)  # mod


class Table:
    """Makes symbols, and gives equal ones back. It is also the ``ops`` of the expressions that it reads."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._known: dict[tuple[Any, ...], Symbol] = {}
        values = {field.name: self._make((FIELD, field.name), FIELD, (), field.low, field.high, False, field.name)
                  for field in model.fields}  # fmt: skip
        self.view = Fields(values, model.name)
        self.fields = values

    def _make(
        self, key: tuple[Any, ...], kind: str, args: tuple[Symbol, ...], low: int, high: int, truth: bool,
        value: int | str = 0,
    ) -> Symbol:  # fmt: skip
        found = self._known.get(key)
        if found is None:
            found = Symbol(self, kind, args, low, high, truth, value)
            found.number = len(self._known)
            self._known[key] = found
            if max(abs(low), abs(high)) > WIDEST:
                raise Refused(f"computes {found}, which may be as large as {max(abs(low), abs(high)):.1e}")
        return found

    def symbol(self, value: Any) -> Symbol:
        """A symbol as it is; an int or a bool as a constant. Raises Refused for anything else."""
        if isinstance(value, Symbol):
            return value
        if isinstance(value, bool):
            return self._make((CONST, int(value), True), CONST, (), int(value), int(value), True, int(value))
        try:
            number = value.__index__()
        except AttributeError:
            raise Refused(f"is no expression: {value!r} is neither a number nor made of fields") from None
        return self._make((CONST, number, False), CONST, (), number, number, False, number)

    def apply(self, kind: str, left: Any, right: Any) -> Symbol:
        """The symbol of an operation on two values."""
        a, b = self.symbol(left), self.symbol(right)
        if kind in ("and", "or"):
            if not (a.truth and b.truth):
                raise Refused(f"combines {a} and {b} with & or |, and one is a number: compare it, as in (x == 1)")
        elif a.truth != b.truth or (a.truth and kind not in ("eq", "ne")):
            raise Refused(f"counts or compares a truth value in {a} {_SIGNS.get(kind, kind)} {b}; "
                          "make it a number with ops.where(condition, 1, 0)")  # fmt: skip
        if kind in ("div", "mod") and b.low < 1:
            raise Refused(f"divides by {b}, which may be {b.low}; use ops.maximum(..., 1)")
        if a.kind == CONST and b.kind == CONST:
            return self._folded(kind, a, b)
        if kind in ("and", "or") and CONST in (a.kind, b.kind):
            known, other = (a, b) if a.kind == CONST else (b, a)
            return other if bool(known.value) == (kind == "and") else known
        if kind in ARITHMETIC:
            low, high = _bounds(kind, a, b)
            return self._make((kind, a.number, b.number), kind, (a, b), low, high, False)
        return self._make((kind, a.number, b.number), kind, (a, b), 0, 1, True)

    def _folded(self, kind: str, a: Symbol, b: Symbol) -> Symbol:
        x, y = int(a.value), int(b.value)
        if kind in ARITHMETIC:
            return self.symbol(_bounds(kind, a, b)[0] if kind != "mod" else x % y)
        results = {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y,
                   "and": bool(x and y), "or": bool(x or y)}  # fmt: skip
        return self.symbol(results[kind])

    # The operations of `fsm.kernel.Ops`.

    def where(self, condition: Any, yes: Any, no: Any) -> Symbol:
        """``yes`` where the condition holds, else ``no``."""
        c, a, b = self.symbol(condition), self.symbol(yes), self.symbol(no)
        if not c.truth:
            raise Refused(f"asks ops.where({c}, ...), and that is a number: compare it first, as in (x == 1)")
        if a.truth != b.truth:
            raise Refused(f"chooses between a truth value and a number, {a} and {b}")
        if c.kind == CONST:
            return a if c.value else b
        numbers = (c.number, a.number, b.number)
        return self._make(("where", *numbers), "where", (c, a, b), min(a.low, b.low), max(a.high, b.high), a.truth)

    def minimum(self, left: Any, right: Any) -> Symbol:
        """The smaller of the two."""
        return self.apply("min", left, right)

    def maximum(self, left: Any, right: Any) -> Symbol:
        """The larger of the two."""
        return self.apply("max", left, right)

    # What is read with them.

    def guard(self, action: Action) -> Symbol:
        """The guard of an action. Raises LocalError naming it for what is no expression."""
        return self._truth(f"guard of action '{action.name}'", action.guard)

    def clause(self, clause: Clause) -> Symbol:
        """The expression of a clause. Raises LocalError naming it for what is no expression."""
        return self._truth(f"clause '{clause.name}'", clause.holds)

    def update(self, action: Action) -> dict[str, Symbol]:
        """The new value of every field that an action changes. Raises LocalError for what is no expression."""
        what = f"update of action '{action.name}'"
        changed = self._called(what, action.update)
        if not isinstance(changed, Mapping):
            raise self._error(what, f"gives {changed!r}; expected a dict of the fields that change")
        result = {}
        for name, value in changed.items():
            if name not in self.fields:
                raise self._error(what, f"sets '{name}', which is no field; there are {', '.join(self.fields)}")
            try:
                symbol = self.symbol(value)
            except Refused as refused:
                raise self._error(what, f"'{name}' {refused}") from None
            if symbol.truth:
                raise self._error(what, f"sets '{name}' to a truth value; use ops.where(condition, 1, 0)")
            result[name] = symbol
        return result

    def _truth(self, what: str, expression: Callable[..., Any]) -> Symbol:
        value = self._called(what, expression)
        try:
            symbol = self.symbol(value)
        except Refused as refused:
            raise self._error(what, str(refused)) from None
        if not symbol.truth:
            raise self._error(what, f"is the number {symbol}; expected a truth value: compare it, as in (x == 1)")
        return symbol

    def _called(self, what: str, expression: Callable[..., Any]) -> Any:
        try:
            return expression(self, self.view)
        except LocalError as error:
            raise self._error(what, f"cannot be read: {error}") from None
        except Refused as refused:
            raise self._error(what, str(refused)) from None
        except Exception as error:
            raise self._error(what, f"raises {type(error).__name__}: {error}") from error

    def _error(self, what: str, text: str) -> LocalError:
        return LocalError(f"model '{self.model.name}', {what}: {text}")


class Shared(Protocol):
    """A part of an expression, numbered, with the parts that it is made of."""

    @property
    def number(self) -> int:
        """Its number; no other part has it."""

    @property
    def args(self) -> tuple[Any, ...]:
        """What it is made of, of the same kind."""


P = TypeVar("P", bound=Shared)


def parts_of(roots: Iterable[P]) -> list[P]:
    """Every part that the roots are made of, each once and after its arguments."""
    order: list[P] = []
    done: dict[int, bool] = {}
    for root in roots:
        stack = [root]
        while stack:
            part = stack[-1]
            missing = [arg for arg in part.args if arg.number not in done]
            if part.number in done:
                stack.pop()
            elif missing:
                stack += missing
            else:
                done[part.number] = True
                order.append(stack.pop())
    return order


# --- a whole model ---------------------------------------------------------------------------------------


def check_model(model: Model) -> Table:
    """Raise LocalError, naming what is wrong, unless a model is well formed; gives the table that has read it."""
    _check_names(model)
    for field in model.fields:
        if field.low > field.high:
            raise LocalError(f"model '{model.name}', field '{field.name}': {field.low}..{field.high} hold no value")
        if (field.high - field.low).bit_length() > VALUE_BITS_MAX or max(-field.low, field.high) >> VALUE_BITS_MAX:
            raise LocalError(
                f"model '{model.name}', field '{field.name}': {field.low}..{field.high} does not fit; "
                f"values span at most {VALUE_BITS_MAX} bits"
            )
    _check_initial(model)
    _check_symmetry(model)
    table = Table(model)
    for action in model.actions:
        table.guard(action)
        table.update(action)
    for clause in model.clauses:
        table.clause(clause)
    _check_agreement(model)
    return table


def _check_names(model: Model) -> None:
    kinds = (("field", [f.name for f in model.fields]), ("action", [a.name for a in model.actions]),
             ("clause", [c.name for c in model.clauses]))  # fmt: skip
    for kind, names in kinds:
        twice = [name for number, name in enumerate(names) if name in names[:number]]
        if twice:
            raise LocalError(f"model '{model.name}': two {kind}s are named '{twice[0]}'")
    if not model.fields:
        raise LocalError(f"model '{model.name}' has no fields")
    for field in model.fields:
        if not field.name.isidentifier() or field.name.startswith("_"):
            raise LocalError(f"model '{model.name}': a field is named '{field.name}'; expected a plain identifier")


def _check_initial(model: Model) -> None:
    if not model.initial:
        raise LocalError(f"model '{model.name}' has no initial state")
    for initial in model.initial:
        for name, value in initial.items():
            field = model.field(name)
            if not field.low <= value <= field.high:
                raise LocalError(f"model '{model.name}': starts with '{name}' = {value}, outside of its bounds "
                                 f"{field.low}..{field.high}")  # fmt: skip


def _check_symmetry(model: Model) -> None:
    """Records of one group have fields of equal bounds, and no field twice."""
    for number, group in enumerate(model.symmetry):
        where = f"model '{model.name}', symmetry group {number + 1}"
        names = [name for record in group for name in record]
        if len(names) != len(dict.fromkeys(names)):
            twice = next(name for position, name in enumerate(names) if name in names[:position])
            raise LocalError(f"{where}: '{twice}' stands in it twice")
        for record in group:
            if len(record) != len(group[0]):
                raise LocalError(f"{where}: record {record} has {len(record)} fields, the first has {len(group[0])}")
            for name, first in zip(record, group[0], strict=True):
                if model.field(name)[1:] != model.field(first)[1:]:
                    raise LocalError(f"{where}: '{name}' and '{first}' cannot be exchanged: their bounds differ")
    for name, group_number, lowest in model.references if model.symmetry else ():
        field, where = model.field(name), f"model '{model.name}', reference '{name}'"
        if not 0 <= group_number < len(model.symmetry):
            raise LocalError(f"{where}: there is no symmetry group {group_number + 1}")
        highest = lowest + len(model.symmetry[group_number]) - 1
        if not field.low <= lowest <= highest <= field.high:
            raise LocalError(f"{where}: the records are {lowest}..{highest}, its values are {field.low}..{field.high}")


def _check_agreement(model: Model) -> None:
    """The initial states, one by one: plain numbers must be read as symbols are."""
    for state in model.start_states():
        for action in model.actions:
            try:
                if holds(model, action, state):
                    apply(model, action, state)
            except LocalError:
                raise
            except Exception as error:
                raise LocalError(
                    f"model '{model.name}', action '{action.name}': raises {type(error).__name__}: {error}, "
                    f"in the state {describe(state)}"
                ) from error
