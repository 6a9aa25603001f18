"""The rows of a transition table as expressions, so that a model moves by the very rows that the objects live by.

A model has numbers where a table has names: a state is its place in the table (:func:`numbers_of`). :func:`after` says
what an event leads to there, for ints, arrays, symbols and terms of a solver alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from fsm.errors import LocalError
from fsm.kernel import Number, Ops
from fsm.table import REFUSE, Table
from fsm.table_check import parse_guard
from sim.model.form import negate


def numbers_of(table: Table) -> dict[str, int]:
    """The number of each state of a table, in the order in which the table has them; the initial one need not be 0."""
    return {state: number for number, state in enumerate(table.states)}


def after(
    ops: Ops,
    table: Table,
    state: Number,
    event: str,
    facts: Mapping[str, Number] | None = None,
    *,
    numbers: Mapping[str, int] | None = None,
) -> tuple[Number, Number]:
    """What the rows say of ``event`` in the state of that number: whether it is legal, and the number of the state that
    it leads to (the same one, where it is not).

    ``facts`` has a truth value for each guard that the rows of the event ask, by name. ``numbers`` replaces those of
    :func:`numbers_of`. Raises LocalError for an event that the table does not have, or a guard without a fact.
    """
    if event not in table.events:
        raise LocalError(f"table '{table.name}' has no event '{event}'; events: {', '.join(table.events)}")
    numbers = numbers if numbers is not None else numbers_of(table)
    facts = facts or {}
    legal: Number = False
    target: Number = state
    for source, rows in table.rows.items():
        for row in rows:
            if row.event != event or row.target == REFUSE:
                continue
            fits = state == numbers[source]
            for name, asked in _literals(row.guard):
                if name not in facts:
                    raise LocalError(
                        f"table '{table.name}', event '{event}': its rows ask '{name}', and facts have no such name"
                    )
                fits = fits & (facts[name] if asked else negate(facts[name]))
            legal = fits | legal
            target = ops.where(fits, numbers[row.target], target)
    return legal, target


@cache
def _literals(guard: str) -> tuple[tuple[str, bool], ...]:
    return tuple(parse_guard(guard).items())
