"""What the vector engine answers with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sim.model.form import Model, State, holds

DEADLOCK = "deadlock"


class ModelStep(NamedTuple):
    """An action, and the whole state after it."""

    action: str
    state: State


@dataclass(frozen=True)
class ModelViolation:
    """A clause that does not hold, or a state from which nothing can happen (``clause`` is then ``"deadlock"``).

    ``start`` and ``steps`` lead there; no shorter way exists. ``depth`` counts the steps.
    """

    clause: str
    property: str
    text: str
    depth: int
    start: State
    steps: tuple[ModelStep, ...]

    def state(self) -> State:
        """The state in which it does not hold."""
        return self.steps[-1].state if self.steps else self.start


def violation(model: Model, number: int, start: State, steps: tuple[ModelStep, ...]) -> ModelViolation:
    """What is wrong at the end of a run that leads to a state in which clause ``number`` is broken, or (below 0) in
    which nothing can happen. With symmetry the run ends in a state like that one, where it may be the same clause of
    another record."""
    if number < 0:
        return ModelViolation(DEADLOCK, "", "nothing can happen any more", len(steps), start, steps)
    last = steps[-1].state if steps else start
    clause = model.clauses[number]
    if holds(model, clause, last):
        clause = next(other for other in model.clauses if not holds(model, other, last))
    return ModelViolation(clause.name, clause.property, clause.text, len(steps), start, steps)


@dataclass(frozen=True)
class VectorResult:
    """The answer. ``verdict`` is ``holds``, ``violated`` or ``bounded`` (a limit ended the search); ``coverage`` is
    ``exhausted`` if every reachable state was found and checked, else ``bounded``.

    Of the ``states`` that were found, ``checked`` were held against every clause and expanded; ``levels`` counts them
    by their distance from the start, and ``depth`` is the largest distance. ``transitions`` counts the steps from all
    states that were checked, those that lead back to the same state included.
    """

    verdict: str
    coverage: str
    states: int
    checked: int
    transitions: int
    depth: int
    levels: tuple[int, ...]
    violation: ModelViolation | None = None
    bound: str = ""
    """What ended the search: ``time``, ``memory`` and so on, with where it had come to; empty if nothing did."""
    bounds: dict[str, Any] = field(default_factory=dict)
    """What the answer is about: the model, its limits, whether symmetric states count as one."""
    memory_bytes: int = 0
    """The most that runs and buffers took at once."""
    spilled_bytes: int = 0
    """Written to files."""
