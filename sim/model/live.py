"""What is promised of a model in the end, and what is assumed of its actions for that.

An engine judges it (:mod:`sim.vector.live`); a model brings its own table, or goes by the flag ``fair`` of its
actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sim.model.form import Action, Expression

WEAK, STRONG, FREE, FINITE = "weak", "strong", "free", "finite"
KINDS = {
    WEAK: "weakly fair: taken again and again, or disabled again and again",
    STRONG: "strongly fair: taken again and again, or disabled from some point on",
    FREE: "happens or not, as it likes",
    FINITE: "happens finitely often, and nobody may rely on it",
}
"""How a group may be treated, and what that means."""


class Treatment(NamedTuple):
    """What is assumed of an action: its group, one of :data:`KINDS`, and where its steps count (None: everywhere)."""

    group: str
    kind: str
    only_if: Expression | None = None


Fairness = Callable[[Action], Treatment]


@dataclass(frozen=True)
class Promise:
    """Something that every fair run comes to again and again. ``goal`` is true of a state in which it is kept."""

    name: str
    property: str
    text: str
    goal: Expression


def by_flag(action: Action) -> Treatment:
    """What the model itself says: an action with ``fair`` is weakly fair and a group of its own, any other is free."""
    return Treatment(action.name, WEAK if action.fair else FREE)
