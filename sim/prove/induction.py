"""Induction over a model: each clause holds at the start, and each action keeps each clause.

Together they hold for ever, whatever the bounds of the fields: a solver knows none. So a model that is to be proved has
fields without bounds (up to :data:`~sim.model.form.LARGE`), and what it leaves open (which message, how many of
something) stands in fields of its own that may have any value at any time.

A condition is a formula that says "all clauses hold, the action may be taken, and this clause does not hold after it".
If the solver finds no numbers for it, the condition is proved. If it finds some, they are a step that breaks the clause
(from a state that satisfies the clauses, whether or not it can be reached). The step is taken again in plain ints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fsm.errors import LocalError
from fsm.kernel import INT
from sim.model.form import LARGE, Action, Clause, Fields, Model, State, holds
from sim.prove.terms import TermOps

START, STEP, PROGRESS = "start", "step", "progress"

PROVED, FAILED, UNKNOWN = "proved", "failed", "unknown"

TIMEOUT_MS = 20_000
"""The most time for one condition. Each takes a few milliseconds."""


@dataclass(frozen=True)
class Condition:
    """One condition with its result. ``serves`` names the property that the clause stands for (or
    ``progress``, or nothing). ``action`` is empty for the start and for progress. ``before`` and ``after`` are the
    step of a counterexample; for progress, the state alone."""

    kind: str
    clause: str
    serves: str
    text: str
    action: str
    result: str
    elapsed_s: float
    before: State | None = None
    after: State | None = None

    @property
    def safety(self) -> bool:
        """Whether it stands for safety, and not for progress."""
        return self.serves != "progress"

    @property
    def title(self) -> str:
        """The clause without the names of request and block."""
        return self.clause.rpartition(": ")[2]

    def changed(self) -> list[tuple[str, int, int]]:
        """(field, before, after) of what the step changes."""
        before, after = self.before or {}, self.after or {}
        return [(name, before[name], value) for name, value in after.items() if before[name] != value]


@dataclass(frozen=True)
class Proof:
    """A model to be proved. ``given`` are the fields that never change, ``inputs`` those that may have any value in any
    state; both are assumed to lie within their bounds, of which :data:`~sim.model.form.LARGE` is none. All others start
    as the model's initial state says, at their lowest value if it leaves them out, and have no bounds.

    ``assumed`` names clauses about what is given: they are taken for granted at the start. Raises LocalError for a name
    that the model does not have, and for more than one initial state.
    """

    model: Model
    given: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*self.given, *self.inputs):
            self.model.field(name)
        clauses = [clause.name for clause in self.model.clauses]
        for name in self.assumed:
            if name not in clauses:
                raise LocalError(f"model '{self.model.name}' has no clause '{name}'; it has {', '.join(clauses)}")
        if len(self.model.initial) != 1:
            raise LocalError(f"model '{self.model.name}': {len(self.model.initial)} initial states; a proof takes one")


class Induction:
    """Proves the conditions of one model. ``clock`` is read around each; ``goals`` are the clauses to be shown, all of
    them if left out.

    Raises LocalError where z3 is not installed, for an expression that a solver cannot read, and for an action that
    changes what is given or left open.
    """

    def __init__(self, proof: Proof, clock: Callable[[], float], goals: tuple[Clause, ...] | None = None) -> None:
        self.proof = proof
        self.model = proof.model
        self.clock = clock
        self.ops = TermOps()
        self.values = self.ops.view(tuple(field.name for field in self.model.fields))
        self.view = Fields(self.values, self.model.name)
        self.formulas = {clause.name: self._formula(clause) for clause in self.model.clauses}
        self.goals = goals if goals is not None else self.model.clauses
        self.untouched = 0
        """Conditions that hold because the action changes nothing that the clause speaks of."""

    def _formula(self, clause: Clause) -> Any:
        return self._read(f"clause '{clause.name}'", clause.holds)

    def _read(self, what: str, expression: Callable[..., Any]) -> Any:
        """An expression in terms of the solver; of an update, each of its values."""
        try:
            value = expression(self.ops, self.view)
            if isinstance(value, Mapping):
                return {name: self.ops.raw(part) for name, part in value.items()}
            return self.ops.raw(value)
        except LocalError as error:
            raise LocalError(f"model '{self.model.name}', {what}: {error}") from None
        except Exception as error:  # whoever wrote the model may have written anything
            raise LocalError(
                f"model '{self.model.name}', {what}: the solver cannot read it: {type(error).__name__}: {error}"
            ) from error

    def _solver(self) -> Any:
        """A solver that assumes the ranges of what is given or left open."""
        solver = self.ops.z3.Solver()
        solver.set("timeout", TIMEOUT_MS)
        for field in self.model.fields:
            if field.name in self.proof.given or field.name in self.proof.inputs:
                value = self.values[field.name].value
                solver.add(value >= field.low)
                if field.high < LARGE:
                    solver.add(value <= field.high)
        return solver

    def assuming(self, *, start: bool = False) -> Any:
        """A solver that assumes the invariant; with ``start``, the values that a run starts with."""
        solver = self._solver()
        for clause in self._given() if start else self.model.clauses:
            solver.add(self.formulas[clause.name])
        for name, value in self._start_values().items() if start else ():
            solver.add(self.values[name].value == value)
        return solver

    def _start_values(self) -> State:
        named, start = self.model.initial[0], self.model.start_states()[0]
        free = [name for name in (*self.proof.given, *self.proof.inputs) if name not in named]
        return {name: value for name, value in start.items() if name not in free}

    def _given(self) -> list[Clause]:
        return [clause for clause in self.model.clauses if clause.name in self.proof.assumed]

    def prove(self, only: str = "") -> Iterator[Condition]:
        """All conditions, one by one; ``only`` those whose clause has that title."""
        yield from self.start(only)
        yield from self.steps(only)

    def start(self, only: str = "") -> Iterator[Condition]:
        """Each clause holds at the start, whatever is given."""
        solver, given = self.assuming(start=True), self._given()
        for clause in self.goals:
            if asked(clause, only) and clause not in given:
                yield self._ask(solver, START, clause, self.ops.z3.Not(self.formulas[clause.name]))

    def steps(self, only: str = "") -> Iterator[Condition]:
        """Each action keeps each clause."""
        solver = self.assuming()
        goals = [clause for clause in self.goals if asked(clause, only)]
        self.untouched = 0
        for action in self.model.actions if goals else ():
            update = self._read(f"update of action '{action.name}'", action.update)
            self._check_update(action, update)
            changes = [(self.values[name].value, value) for name, value in update.items()]
            solver.push()
            solver.add(self._read(f"guard of action '{action.name}'", action.guard))
            for clause in goals:
                before = self.formulas[clause.name]
                after = self.ops.z3.substitute(before, *changes)
                if after.eq(before):
                    self.untouched += 1
                else:
                    yield self._ask(solver, STEP, clause, self.ops.z3.Not(after), action)
            solver.pop()

    def _check_update(self, action: Action, update: dict[str, Any]) -> None:
        fixed = [name for name in update if name in self.proof.given or name in self.proof.inputs]
        if fixed:
            raise LocalError(f"action '{action.name}' changes '{fixed[0]}', which is given or left open")

    def consistent(self) -> bool:
        """Whether any state satisfies the invariant at all: else everything would follow from it."""
        return bool(self.assuming().check() == self.ops.z3.sat)

    def impossible(self) -> list[str]:
        """The actions that may be taken in no state that satisfies the invariant."""
        solver = self.assuming()
        names = []
        for action in self.model.actions:
            guard = self._read(f"guard of action '{action.name}'", action.guard)
            if solver.check(guard) != self.ops.z3.sat:
                names.append(action.name)
        return names

    def _ask(self, solver: Any, kind: str, clause: Clause, denied: Any, action: Action | None = None) -> Condition:
        started = self.clock()
        solver.push()
        solver.add(denied)
        answer = solver.check()
        before = after = None
        if answer == self.ops.z3.sat:
            before, after = self._step(solver.model(), clause, action)
        solver.pop()
        result = {"unsat": PROVED, "sat": FAILED}.get(str(answer), UNKNOWN)
        return Condition(
            kind, clause.name, clause.property, clause.text, action.name if action is not None else "", result,
            self.clock() - started, before, after,
        )  # fmt: skip

    def _step(self, found: Any, clause: Clause, action: Action | None) -> tuple[State, State | None]:
        """The numbers that the solver found, and the step they make, in plain ints. Raises LocalError if plain ints do
        not agree with the solver: then one of the evaluators is wrong."""
        before = {name: found.eval(term.value, model_completion=True).as_long() for name, term in self.values.items()}
        if action is None:
            agrees, after = not holds(self.model, clause, before), None
        else:
            after = _apply_anywhere(self.model, action, before)
            agrees = holds(self.model, action, before) and not holds(self.model, clause, after)
        if not agrees:
            raise LocalError(
                f"'{clause.name}': the solver's counterexample is none in plain numbers; this is a fault of the prover"
            )
        return before, after


def _apply_anywhere(model: Model, action: Action, state: State) -> State:
    """As ``form.apply``, without the bounds, which a proof does not have."""
    update = action.update(INT, Fields(state, model.name))
    return {**state, **{name: int(value) for name, value in update.items()}}


def asked(clause: Clause, only: str) -> bool:
    """Whether a clause has that title, or all are asked for."""
    return not only or clause.name.rpartition(": ")[2] == only


# --- counterexamples -------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A value of a counterexample: a field before and after the step, and whether it was left open to the action."""

    field: str
    before: int
    after: int
    open: bool


def fields_that_matter(proof: Proof, condition: Condition, others: Sequence[Clause] = ()) -> list[Shown]:
    """Of a condition that failed, the fields that the clause or the guard reads, and those that the action changes; a
    clause cannot depend on any other. In the order of the model. ``others`` are clauses beside those of the model."""
    model = proof.model
    before = condition.before or {}
    after = condition.after or before
    clause = next(clause for clause in (*model.clauses, *others) if clause.name == condition.clause)
    read = _read_by(model, [clause.holds], after)
    inputs: dict[str, None] = {}
    if condition.action:
        action = model.action(condition.action)
        inputs = _read_by(model, [action.guard, action.update], before)
    start = dict(model.initial[0])
    shown = []
    for field in model.fields:
        name = field.name
        is_open = name in proof.inputs
        changed = before[name] != after[name]
        matters = (
            changed
            or (name in inputs if is_open else name in read)
            or (name in inputs and before[name] != start.get(name))
        )
        if matters and not (is_open and not (name in inputs or name in read)):
            shown.append(Shown(name, before[name], after[name], is_open))
    return shown


class _Listening(dict[str, int]):
    """Values that note which of them were read."""

    def __init__(self, values: Mapping[str, int]) -> None:
        super().__init__(values)
        self.read: dict[str, None] = {}

    def __getitem__(self, name: str) -> int:
        self.read[name] = None
        return super().__getitem__(name)


def _read_by(model: Model, expressions: list[Any], state: Mapping[str, int]) -> dict[str, None]:
    values = _Listening(state)
    view = Fields(values, model.name)
    for expression in expressions:
        expression(INT, view)
    return values.read
