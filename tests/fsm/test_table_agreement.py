"""The lookup, the machine and both ways of a lifecycle, on every state, event and outcome of the guards.

They are held against a reading of the rows that is as plain as can be: the one row whose guard holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from operator import attrgetter
from types import SimpleNamespace

import pytest
import transitions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsm import lifecycle
from fsm.errors import IllegalEvent, TableError
from fsm.table import REFUSE, Lifecycle, Row, Table
from fsm.table_check import parse_guard

TRUTHS = {False: (False, 0, "", ()), True: (True, 1, 2, "x")}


def expected(table: Table, state: str, event: str, answers: Mapping[str, bool]) -> Row | None:
    """The one row whose guard holds, None if the event is not listed."""
    matching = [
        row
        for row in table.rows[state]
        if row.event == event
        and all(answers[name] == asked for name, asked in parse_guard(row.guard).items())
    ]
    assert len(matching) <= 1
    return matching[0] if matching else None


def agree(table: Table, state: str, event: str, answers: Mapping[str, bool], odd: int) -> None:
    """All ways agree on one state, event and outcome of the guards; ``odd`` picks how truth is spelt."""
    seen = SimpleNamespace(**{name: TRUTHS[answer][odd] for name, answer in answers.items()})
    row = expected(table, state, event, answers)
    one, other = lifecycle_of(table)(), lifecycle_of(table)()
    bare = SimpleNamespace(state=state)
    one.state = other.state = state
    machine = type(one).machine
    if row is not None and row.target != REFUSE:
        assert table.next(state, event, seen) is row
        assert machine.events[event].trigger(bare, seen) is True
        assert one.fire(event, seen) is row and other.fire_flat(event, seen) is row
        assert bare.state == one.state == other.state == row.target
        assert one.history == other.history == ((event, row.target),)
        return
    legal = tuple(dict.fromkeys(row.event for row in table.rows[state]))
    refused_by = row.guard if row is not None else ""
    ways: list[Callable[[str, object], Row]] = [partial(table.next, state), one.fire, other.fire_flat]
    for way in ways:
        with pytest.raises(IllegalEvent) as caught:
            way(event, seen)
        error = caught.value
        assert (error.table, error.state, error.event) == (table.name, state, event)
        assert (error.legal, error.refused_by) == (legal, refused_by)
    if row is not None:
        assert machine.events[event].trigger(bare, seen) is False
    elif event in machine.events:
        with pytest.raises(transitions.MachineError):
            machine.events[event].trigger(bare, seen)
    assert bare.state == one.state == other.state == state
    assert one.history == other.history == ()


_CLASSES: list[tuple[Table, type[Lifecycle]]] = []


def lifecycle_of(table: Table) -> type[Lifecycle]:
    """The lifecycle class of a table; only the latest is kept."""
    if not _CLASSES or _CLASSES[0][0] is not table:
        _CLASSES[:] = [(table, type("Some", (Lifecycle,), {"table": table, "__slots__": ()}))]
    return _CLASSES[0][1]


def agree_everywhere(table: Table) -> int:
    """Hold all ways together on every state, event and outcome; returns how many steps were legal."""
    legal = 0
    for state, event in product(table.states, (*table.events, "nonsense")):
        for number, truth in enumerate(product((False, True), repeat=len(table.guards))):
            answers = dict(zip(table.guards, truth, strict=True))
            agree(table, state, event, answers, number % 4)
            row = expected(table, state, event, answers)
            legal += row is not None and row.target != REFUSE
    return legal


WRITTEN = Table(
    "written",
    initial="A",
    terminal=("D",),
    rows={
        "A": [
            Row("go", "B", "p & q"),
            Row("go", "C", "r & !p", effect="jump"),
            Row("go", REFUSE, "p & !q & r"),
            Row("go", "A", "!r & !p"),
            Row("go", REFUSE, "p & !q & !r"),
        ],
        "B": [Row("go", "C"), Row("back", "A", "!q"), Row("back", REFUSE, "q")],
        "C": [Row("go", "D", effect="end"), Row("back", "B")],
        "D": [],
    },
    guards={name: attrgetter(name) for name in "pqr"},
)


@pytest.mark.walks_every_row
@pytest.mark.parametrize(
    "table", [value for value in vars(lifecycle).values() if isinstance(value, Table)], ids=repr
)
def test_the_lookup_agrees_with_the_machine_on_the_tables_of_this_project(table: Table) -> None:
    assert agree_everywhere(table) >= len(table.states) - len(table.terminal)


def test_the_lookup_agrees_with_the_machine_on_a_written_table() -> None:
    # Over 8 outcomes: in A two are refused; in B "go" is always legal, "back" half the time; in C both are.
    assert agree_everywhere(WRITTEN) == 6 + (8 + 4) + (8 + 8)


def leaves(draw: st.DrawFn, names: list[str], guard: list[str], targets: list[str]) -> list[tuple[str, str]]:
    """The leaves of a random decision tree: (guard, target) pairs, complete and exclusive by construction."""
    if not names or draw(st.booleans()):
        shuffled = draw(st.permutations(guard))
        return [(" & ".join(shuffled), draw(st.sampled_from(targets)))]
    name, *others = names
    return [
        *leaves(draw, others, [*guard, name], targets),
        *leaves(draw, others, [*guard, f"!{name}"], targets),
    ]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """A valid table: a chain that reaches every state and the end, and random guarded rows across it."""
    states = [f"S{index}" for index in range(draw(st.integers(2, 5)))]
    names = [f"p{index}" for index in range(draw(st.integers(0, 3)))]
    rows: dict[str, Sequence[Row]] = {}
    for here, after in pairwise(states):
        own = [Row("step", after, effect="on")]
        for event in draw(st.lists(st.sampled_from(["a", "b", "c"]), unique=True)):
            pairs = leaves(draw, draw(st.permutations(names)), [], [*states, REFUSE])
            if any(target != REFUSE for _, target in pairs):
                own.extend(Row(event, target, guard, effect=f"{event}{target}") for guard, target in pairs)
        rows[here] = draw(st.permutations(own))
    rows[states[-1]] = []
    asked = [name for of_state in rows.values() for row in of_state for name in parse_guard(row.guard)]
    guards = {name: attrgetter(name) for name in names if name in asked}
    return Table("random", initial="S0", terminal=(states[-1],), rows=rows, guards=guards)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables())
def test_the_lookup_agrees_with_the_machine_on_any_table(table: Table) -> None:
    assert agree_everywhere(table) >= len(table.states) - 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.data())
def test_any_table_without_one_of_its_guarded_rows_is_refused(table: Table, data: st.DataObject) -> None:
    guarded = [(state, row) for state in table.states for row in table.rows[state] if row.guard]
    if not guarded:
        return
    state, gone = data.draw(st.sampled_from(guarded))
    rows = {**table.rows, state: [row for row in table.rows[state] if row is not gone]}
    with pytest.raises(TableError) as caught:
        Table("random", initial="S0", terminal=table.terminal, rows=rows, guards=table.guards)
    assert f"table 'random', state '{state}', row '{gone.event}" in str(caught.value)
    # Where all that is left of the event is refused, that is said first.
    assert "is incomplete: no row matches '" in str(caught.value) or "never legal here" in str(caught.value)
