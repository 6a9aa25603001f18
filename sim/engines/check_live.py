"""Liveness of a scenario, on the graph that ``check`` has finished.

What is assumed of the world's own course is one table, :data:`FAIR`: everything in it is weakly fair, that is taken
again and again or disabled again and again. Faults are never assumed, and are no part of what happens for ever: their
budgets end. Time is as it is everywhere in ``check``: it moves where nothing else can happen.

A run that never gets to a state that is over goes round in a trap (:mod:`sim.engines.liveness`). There are two sorts.
Mostly no state that is over can be reached any more; then the stem ends in the first such state, and what is shown
after it is the rest of the way to the trap, and the trap's cycle. Or there is a way out, and a fair run need not take
it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fsm.invariants import Violation
from fsm.trace import Step
from sim.engines.liveness import Edges, Groups, Lasso, Truths, lasso, reaching, traps
from sim.world import Action

FAIR: dict[str, str] = {
    "deliver": "what is sent and not lost arrives, on each channel by itself",
    "stray": "what was held back or doubled arrives too",
    "land": "a write that has begun comes to its end: its bytes land, or (of a dead process) are gone",
    "vanish": "the same",
    "told": "the sender is told that its write has ended",
    "noticed": "the receiver notices a write by itself",
    "copied": "a copy that has begun comes to its end",
    "returned": "a lease comes back",
    "released": "a result is released",
    "staged": "a payload gets into the source pool",
    "arrive": "every request of the scenario comes",
    "gone": "the end of a dead process is seen",
    "tick": "a receiver ticks for ever",
    "enter": "each rank enters the collective",
    "leave": "each rank comes out of it",
    "time": "time passes, where nothing else can happen",
    "heal": "a network that was cut is whole again",
}
"""Every action of the world's own course, and why it may be relied on."""

_APART = ("deliver", "enter", "leave", "gone")
"""Of these each channel, rank or process is a group of its own; all that others choose from is one group."""
SHOWN_MAX = 8
"""Steps of a cycle that are named in the text of a violation."""


def group_of(action: Action) -> str:
    """The fairness group of an action of the world's own course."""
    kind = str(action[0])
    if kind in ("land", "vanish"):
        return "land"
    return f"{kind} {action[1]}" if kind in _APART else kind


class CourseEdges:
    """The edges of a search that are no faults, each with its group: ten bytes an edge."""

    def __init__(self) -> None:
        self._sources, self._targets, self._groups = array("i"), array("i"), array("H")
        self._codes: dict[str, int] = {}
        self._of_action: dict[Action, int] = {}

    def add(self, source: int, target: int, action: Action) -> None:
        """A step that changes the state."""
        code = self._of_action.get(action)
        if code is None:
            code = self._codes.setdefault(group_of(action), len(self._codes))
            self._of_action[action] = code
        self._sources.append(source)
        self._targets.append(target)
        self._groups.append(code)

    def arrays(self) -> Edges:
        """All of them."""
        return Edges(
            np.frombuffer(self._sources, np.int32) if self._sources else np.zeros(0, np.int32),
            np.frombuffer(self._targets, np.int32) if self._targets else np.zeros(0, np.int32),
            np.asarray(self._groups, np.int16),
        )

    def groups(self) -> Groups:
        """Their groups, all of them weakly fair."""
        return Groups(tuple(self._codes), tuple(range(len(self._codes))))


@dataclass(frozen=True)
class Endless:
    """What goes on for ever: for each step the group of what is done and the state after it. The last ``turn`` steps
    repeat; if there are none, nothing that may still happen changes anything."""

    steps: tuple[tuple[str, int], ...]
    turn: int


class Judgement:
    """Which states of a finished graph may never be over."""

    def __init__(self, count: int, edges: CourseEdges, over: Sequence[int]) -> None:
        self.count, self.edges, self.groups = count, edges.arrays(), edges.groups()
        self.goal: Truths = np.zeros(count, np.bool_)
        self.goal[list(over)] = True
        self.labels = traps(count, self.edges, self.groups, self.goal)

    def suspects(self) -> Iterator[tuple[int, bool]]:
        """States from which some fair run is never over, and whether all of them are: the nearest such state first;
        and only if there is none, those where a run may go round beside a way out."""
        if (self.labels < 0).all():
            return
        lost = ~reaching(self.count, self.edges, self.goal)
        for number in np.flatnonzero(lost).tolist():
            yield number, True
        for number in np.flatnonzero((self.labels >= 0) & ~lost).tolist():
            yield number, False

    def endless(self, number: int) -> Endless:
        """A fair run from such a state that is never over."""
        found: Lasso | None = lasso(self.count, self.edges, self.groups, self.labels, [number])
        assert found is not None, "from a state without a way out a trap can be reached"
        steps = tuple(
            (self.groups.names[int(self.edges.groups[edge])], int(self.edges.targets[edge]))
            for edge in (*found.stem, *found.cycle)
        )
        return Endless(steps, len(found.cycle))


def lost(all_ended: bool, hopeless: bool) -> Violation:
    """What is wrong with a state from which some fair run is never over."""
    if hopeless and all_ended:
        return Violation("L2", "all requests have ended, and from here nothing clears what is left of them")
    if hopeless:
        return Violation("L1", "from here no run without further faults ends every request")
    if all_ended:
        return Violation(
            "L2", "all requests have ended, and a fair run may go on for ever without clearing what is left"
        )
    return Violation(
        "L1", "from here a fair run may go on for ever and end not every request, though there is a way out"
    )


def in_words(steps: Sequence[Step], turn: int) -> str:
    """What goes on for ever, for the end of a violation's text."""
    before = len(steps) - turn
    then = f"{before} steps on, " if before > 1 else "a step on, " if before else ""
    if not turn:
        return f"{then}nothing that may still happen changes anything"
    names = [step.text for step in steps[before:]]
    shown = "; ".join(names[:SHOWN_MAX]) + (f"; and {turn - SHOWN_MAX} more" if turn > SHOWN_MAX else "")
    return f"{then}{turn} steps repeat for ever: {shown}" if turn > 1 else f"{then}one step repeats for ever: {shown}"
