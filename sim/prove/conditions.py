"""What is to be proved, and the proof: each clause at the start, each clause after each action, each progress
condition.

The induction is over requests, blocks and pairs at once. The hypothesis is every clause, of both requests and the
block, in the state before. The conclusions are the clauses about the first request, the block and the pair, after
an action of the first request, of the second one, or of anybody else. Since both requests are any two, that is all
clauses for all.

A condition is a formula that says "the hypothesis holds, the action may be taken, and the clause does not hold
after it". If the solver finds no numbers for it, the condition is proved. If it finds some, they are a step that
breaks the clause (from a state that satisfies the invariant, whether or not it can be reached). The step is taken
again in plain ints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fsm.errors import LocalError
from fsm.kernel import INT
from sim.model.form import Action, Clause, Fields, Model, State, holds
from sim.model.protocol import LARGE, Symbolic
from sim.prove.progress import progress_conditions
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


class Prover:
    """Proves the conditions of one composition. ``clock`` is read around each; ``every``: also those that follow by
    exchanging the two requests.

    Raises LocalError where z3 is not installed.
    """

    def __init__(self, symbolic: Symbolic, clock: Callable[[], float], *, every: bool = False) -> None:
        self.symbolic = symbolic
        self.model = symbolic.model
        self.clock = clock
        self.ops = TermOps()
        self.values = self.ops.view(tuple(field.name for field in self.model.fields))
        self.view = Fields(self.values, self.model.name)
        self.formulas = {clause.name: self._formula(clause) for clause in self.model.clauses}
        other = symbolic.places[1].room
        kept = [
            clause for clause in self.model.clauses if every or not clause.name.startswith((f"{other}:", f"{other},"))
        ]
        self.goals: tuple[Clause, ...] = tuple(kept)
        self.untouched = 0
        """Conditions that hold because the action changes nothing that the clause speaks of."""

    def _formula(self, clause: Clause) -> Any:
        return self.ops.raw(clause.holds(self.ops, self.view))

    def _solver(self) -> Any:
        """A solver that assumes the ranges of what is given or left open."""
        solver = self.ops.z3.Solver()
        solver.set("timeout", TIMEOUT_MS)
        for field in self.model.fields:
            if field.name in self.symbolic.given or field.name in self.symbolic.inputs:
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
        for name, value in self.model.initial[0].items() if start else ():
            solver.add(self.values[name].value == value)
        return solver

    def _given(self) -> list[Clause]:
        return [clause for clause in self.model.clauses if clause.name.endswith(": constants")]

    def prove(self, only: str = "") -> Iterator[Condition]:
        """All conditions, one by one; ``only`` those whose clause has that title."""
        yield from self.start(only)
        yield from self.steps(only)
        yield from self.progress(only)

    def start(self, only: str = "") -> Iterator[Condition]:
        """Each clause holds at the start, whatever is given."""
        solver, given = self.assuming(start=True), self._given()
        for clause in self.goals:
            if _asked(clause, only) and clause not in given:
                yield self._ask(solver, START, clause, self.ops.z3.Not(self.formulas[clause.name]))

    def steps(self, only: str = "") -> Iterator[Condition]:
        """Each action keeps each clause."""
        solver = self.assuming()
        goals = [clause for clause in self.goals if _asked(clause, only)]
        self.untouched = 0
        for action in self.model.actions if goals else ():
            update = {name: self.ops.raw(value) for name, value in action.update(self.ops, self.view).items()}
            changes = [(self.values[name].value, value) for name, value in update.items()]
            solver.push()
            solver.add(self.ops.raw(action.guard(self.ops, self.view)))
            for clause in goals:
                before = self.formulas[clause.name]
                after = self.ops.z3.substitute(before, *changes)
                if after.eq(before):
                    self.untouched += 1
                else:
                    yield self._ask(solver, STEP, clause, self.ops.z3.Not(after), action)
            solver.pop()

    def progress(self, only: str = "") -> Iterator[Condition]:
        """The invariant implies each progress condition."""
        solver = self.assuming()
        other = self.symbolic.places[1].room
        for clause in progress_conditions(self.symbolic):
            if _asked(clause, only) and not clause.name.startswith(f"{other}:"):
                yield self._ask(solver, PROGRESS, clause, self.ops.z3.Not(self._formula(clause)))

    def consistent(self) -> bool:
        """Whether any state satisfies the invariant at all: else everything would follow from it."""
        return bool(self.assuming().check() == self.ops.z3.sat)

    def impossible(self) -> list[str]:
        """The actions that may be taken in no state that satisfies the invariant."""
        solver = self.assuming()
        names = []
        for action in self.model.actions:
            guard = self.ops.raw(action.guard(self.ops, self.view))
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


def _asked(clause: Clause, only: str) -> bool:
    return not only or clause.name.rpartition(": ")[2] == only
