"""What is to be proved of the protocol: each clause at the start, each clause after each action, each progress
condition.

The induction (:mod:`sim.prove.induction`) is over requests, blocks and pairs at once. The hypothesis is every clause,
of both requests and the block, in the state before. The conclusions are the clauses about the first request, the block
and the pair, after an action of the first request, of the second one, or of anybody else. Since both requests are any
two, that is all clauses for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sim.model.protocol import Symbolic
from sim.prove.induction import (
    FAILED,
    PROGRESS,
    PROVED,
    START,
    STEP,
    TIMEOUT_MS,
    UNKNOWN,
    Condition,
    Induction,
    Proof,
    asked,
)
from sim.prove.progress import progress_conditions


class Prover(Induction):
    """Proves the conditions of one composition. ``clock`` is read around each; ``every``: also those that follow by
    exchanging the two requests.

    Raises LocalError where z3 is not installed.
    """

    def __init__(self, symbolic: Symbolic, clock: Callable[[], float], *, every: bool = False) -> None:
        self.symbolic = symbolic
        model = symbolic.model
        other = symbolic.places[1].room
        goals = tuple(
            clause for clause in model.clauses if every or not clause.name.startswith((f"{other}:", f"{other},"))
        )
        assumed = tuple(clause.name for clause in model.clauses if clause.name.endswith(": constants"))
        super().__init__(Proof(model, symbolic.given, symbolic.inputs, assumed), clock, goals)

    def prove(self, only: str = "") -> Iterator[Condition]:
        """All conditions, one by one; ``only`` those whose clause has that title."""
        yield from super().prove(only)
        yield from self.progress(only)

    def progress(self, only: str = "") -> Iterator[Condition]:
        """The invariant implies each progress condition."""
        solver = self.assuming()
        other = self.symbolic.places[1].room
        for clause in progress_conditions(self.symbolic):
            if asked(clause, only) and not clause.name.startswith(f"{other}:"):
                yield self._ask(solver, PROGRESS, clause, self.ops.z3.Not(self._formula(clause)))


__all__ = ["FAILED", "PROGRESS", "PROVED", "START", "STEP", "TIMEOUT_MS", "UNKNOWN", "Condition", "Prover"]
