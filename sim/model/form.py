"""The form in which a model is written down, so that one text serves three readers.

A model is a fixed set of small integer fields, the states it may start in, actions (a guard and an update) and
clauses that every reachable state must satisfy. Guards, updates and clauses are written once, as straight-line
expressions over a view of the state, and are evaluated by three kinds of ``ops``:

* plain ints (``fsm.kernel.INT``): one state at a time, to run a trace and to test the other two;
* numpy arrays (``fsm.kernel.ARRAY``): a whole level of the search at once;
* symbols: a proof, or the compiler of the vector engine.

What an expression may use: the fields, ints, ``+ - * // %``, comparisons, ``&`` and ``|`` on truth values,
:func:`negate`, and ``ops.where``, ``ops.minimum``, ``ops.maximum``. It may not decide with ``if``, ``and``, ``or``,
``not``, ``min`` or ``max`` on fields: those ask for one answer where there are many. ``~`` is refused too: on a
plain ``True`` it is ``-2``, which counts as true.

An action is an atomic step. It may be taken in every state in which its guard is true, and changes the fields that its
update names; the others stay. An update is only ever read where the guard is true, so it may take the guard for
granted. A choice (of a message, a block, a rank) is written as one action for each possibility.

A field that is out of its bounds is an error of the model, found by the engines and reported with the names of the
action and of the field. It is no way to end a search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from fsm.errors import LocalError
from fsm.kernel import INT, Ops

Number = Any
"""An int, a numpy array or a symbol; a truth value is a bool, an array of bools or a symbol."""

State = dict[str, int]
"""One state: every field by name."""

VALUE_BITS_MAX = 48
"""No field spans more than 2 to this many values: sums and differences then stay within an int64."""

LARGE = 1 << 40
"""The bound of a field that has none. A proof does not look at it."""


class View(Protocol):
    """A state, or many, as guards and updates see them: ``view.name`` and ``view["name"]`` mean the same field."""

    def __getattr__(self, name: str) -> Number:
        """The field of that name."""

    def __getitem__(self, name: str) -> Number:
        """The field of that name."""


Expression = Callable[[Ops, View], Number]
Update = Callable[[Ops, View], Mapping[str, Number]]
Record = tuple[str, ...]
Group = tuple[Record, ...]


class Field(NamedTuple):
    """A variable with the lowest and the highest value that it may have, both included."""

    name: str
    low: int
    high: int


@dataclass(frozen=True)
class Action:
    """A step: where it may be taken, and the new values of what it changes.

    ``fair`` says that it is not put off for ever while it may be taken; faults and choices of others are not fair.
    """

    name: str
    guard: Expression
    update: Update
    fair: bool = True


@dataclass(frozen=True)
class Clause:
    """Something that holds in every reachable state, in words (``text``) and as an expression.

    ``property`` is the property of the protocol that it is a part of, such as ``"I2"``.
    """

    name: str
    text: str
    holds: Expression
    property: str = ""


class Reference(NamedTuple):
    """A field whose value names a record of a symmetry group: ``first`` the first one, ``first + 1`` the next, and so
    on. Any other value names none. ``group`` is a position in ``Model.symmetry``."""

    field: str
    group: int
    first: int


@dataclass(frozen=True)
class Model:
    """A model. Fields that an initial state leaves out start at their lowest value.

    ``symmetry`` lists groups of identical records: a group is a tuple of records, a record a tuple of field names in
    the same order in all of them. Exchanging whole records of a group, and the values of the ``references`` to them,
    must map the model onto itself. Two groups may share fields if one lies inside of a record of the other (the blocks
    of a rank, and ranks), or as rows and columns of a matrix do: a field of record i of one and record j of the other.
    """

    name: str
    fields: tuple[Field, ...]
    initial: tuple[Mapping[str, int], ...]
    actions: tuple[Action, ...]
    clauses: tuple[Clause, ...] = ()
    symmetry: tuple[Group, ...] = ()
    references: tuple[Reference, ...] = ()

    def field(self, name: str) -> Field:
        """The field of that name. Raises LocalError if there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise LocalError(f"model '{self.name}' has no field '{name}'; it has {', '.join(f.name for f in self.fields)}")

    def action(self, name: str) -> Action:
        """The action of that name. Raises LocalError if there is none."""
        for action in self.actions:
            if action.name == name:
                return action
        raise LocalError(f"model '{self.name}' has no action '{name}'")

    def start_states(self) -> tuple[State, ...]:
        """The initial states with every field filled in."""
        return tuple(
            {field.name: initial.get(field.name, field.low) for field in self.fields} for initial in self.initial
        )


def without_symmetry(model: Model) -> Model:
    """The same model with all states told apart."""
    return replace(model, symmetry=(), references=())


class Fields:
    """A view of named values of any kind. ``model`` and what is read are for the error of a field that is missing."""

    __slots__ = ("_model", "_values")
    _model: str
    _values: Mapping[str, Number]

    def __init__(self, values: Mapping[str, Number], model: str = "") -> None:
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_model", model)

    def __getitem__(self, name: str) -> Number:
        try:
            return self._values[name]
        except KeyError:
            raise LocalError(f"model '{self._model}' has no field '{name}'") from None

    __getattr__ = __getitem__

    def __setattr__(self, name: str, value: Number) -> None:
        raise LocalError(f"field '{name}' is assigned to; an update returns the new values instead")


def negate(truth: Number) -> Number:
    """True where ``truth`` is false, for bools, arrays of bools and symbols alike."""
    return truth == False  # noqa: E712 - `not` and `~` do not mean this for all three


# --- one state at a time ---------------------------------------------------------------------------------


def holds(model: Model, what: Action | Clause, state: Mapping[str, int]) -> bool:
    """Whether a guard or a clause is true in one state."""
    expression = what.guard if isinstance(what, Action) else what.holds
    return bool(expression(INT, Fields(state, model.name)))


def apply(model: Model, action: Action, state: Mapping[str, int]) -> State:
    """The state after an action; its guard is not asked. Raises LocalError for a new value that is not allowed."""
    after = dict(state)
    for name, value in action.update(INT, Fields(state, model.name)).items():
        field = model.field(name)
        if not field.low <= value <= field.high:
            raise out_of_bounds(model, action, field, int(value), state)
        after[name] = int(value)
    return after


def successors(model: Model, state: Mapping[str, int]) -> Iterator[tuple[Action, State]]:
    """Every action that may be taken in a state, with the state it leads to."""
    for action in model.actions:
        if holds(model, action, state):
            yield action, apply(model, action, state)


def out_of_bounds(model: Model, action: Action, field: Field, value: int, state: Mapping[str, int]) -> LocalError:
    """The error of an update that leaves the bounds of a field."""
    return LocalError(
        f"model '{model.name}', action '{action.name}': sets '{field.name}' to {value}, outside of its bounds "
        f"{field.low}..{field.high}, in the state {describe(state)}; widen the field or strengthen the guard"
    )


def describe(state: Mapping[str, int]) -> str:
    """A state on one line."""
    return " ".join(f"{name}={value}" for name, value in state.items())
