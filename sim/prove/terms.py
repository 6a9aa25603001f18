"""The third evaluator: an expression of a model as a formula of z3.

z3 is imported when the first solver is made, and only here. Its own expressions do not quite behave as numbers do
(a plain ``True`` on the left of ``&`` is refused, ``//`` is not defined), so a :class:`Term` stands around each of
them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from fsm.errors import LocalError
from fsm.kernel import Number


def load_z3() -> Any:
    """The module. Raises LocalError, naming the extra, where it is not installed."""
    try:
        return importlib.import_module("z3")
    except ImportError as error:
        raise LocalError(
            f"a proof needs the solver z3, which is not installed ({error}); install the extra: "
            "pip install 'resumark[prove]'"
        ) from None


class Term:
    """An integer or a truth value in z3. What is asked of it becomes a larger term."""

    __slots__ = ("terms", "value")

    def __init__(self, terms: TermOps, value: Any) -> None:
        self.terms = terms
        self.value = value

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise LocalError(f"an expression decides on {self.value}; use ops.where, & and | instead")

    def _of(self, value: Any) -> Term:
        return Term(self.terms, value)

    def _raw(self, other: Any) -> Any:
        return other.value if isinstance(other, Term) else other

    def __add__(self, other: Any) -> Term:
        return self._of(self.value + self._raw(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Term:
        return self._of(self.value - self._raw(other))

    def __rsub__(self, other: Any) -> Term:
        return self._of(self._raw(other) - self.value)

    def __mul__(self, other: Any) -> Term:
        return self._of(self.value * self._raw(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Term:
        return self._of(self.terms.divide(self.value, self._raw(other)))

    def __mod__(self, other: Any) -> Term:
        return self._of(self.value % self._raw(other))

    def __eq__(self, other: Any) -> Term:  # type: ignore[override]
        if isinstance(other, bool):
            return self if other else self._of(self.terms.z3.Not(self.value))
        return self._of(self.value == self._raw(other))

    def __ne__(self, other: Any) -> Term:  # type: ignore[override]
        return self._of(self.value != self._raw(other))

    def __lt__(self, other: Any) -> Term:
        return self._of(self.value < self._raw(other))

    def __le__(self, other: Any) -> Term:
        return self._of(self.value <= self._raw(other))

    def __gt__(self, other: Any) -> Term:
        return self._of(self.value > self._raw(other))

    def __ge__(self, other: Any) -> Term:
        return self._of(self.value >= self._raw(other))

    def __and__(self, other: Any) -> Number:
        if isinstance(other, bool):
            return self if other else False
        return self._of(self.terms.z3.And(self.value, self._raw(other)))

    __rand__ = __and__

    def __or__(self, other: Any) -> Number:
        if isinstance(other, bool):
            return True if other else self
        return self._of(self.terms.z3.Or(self.value, self._raw(other)))

    __ror__ = __or__


class TermOps:
    """The operations of ``fsm.kernel.Ops`` for terms."""

    def __init__(self) -> None:
        self.z3 = load_z3()

    def raw(self, value: Any) -> Any:
        """The z3 expression of a term, or of a plain number or truth value."""
        if isinstance(value, Term):
            return value.value
        return self.z3.BoolVal(value) if isinstance(value, bool) else self.z3.IntVal(int(value))

    def divide(self, left: Any, right: Any) -> Any:
        """Whole division, as Python's for a divisor above 0. All divisors are sizes of blocks."""
        return left / right

    def where(self, condition: Any, yes: Any, no: Any) -> Number:
        """``yes`` where the condition holds, else ``no``."""
        if isinstance(condition, bool):
            return yes if condition else no
        if yes is no:
            return yes
        return Term(self, self.z3.If(self.raw(condition), self.raw(yes), self.raw(no)))

    def minimum(self, left: Any, right: Any) -> Number:
        """The smaller of the two."""
        return self.where(left < right, left, right)

    def maximum(self, left: Any, right: Any) -> Number:
        """The larger of the two."""
        return self.where(left > right, left, right)

    def view(self, names: Mapping[str, Any] | tuple[str, ...], prefix: str = "") -> dict[str, Term]:
        """A symbol for each field."""
        return {name: Term(self, self.z3.Int(prefix + name)) for name in names}
