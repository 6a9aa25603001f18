"""What a transition table may say, and the refusal of what it may not.

A table is data, so it can be wrong in ways that no compiler sees: a target that is misspelt, a guard that
leaves one case open, two rows that both match, a state that nothing leads to, a state that one cannot
leave. All of that is found when the table is built, before anything runs, and every refusal names the
table, the row and what to do about it.

Guards are conjunctions of named predicates ("``resume_due & !complete``") and nothing more. That is little
enough to enumerate: for every state and event all truth assignments of the predicates mentioned there are
walked through, and exactly one row must match each. A disjunction is two rows. A case that must not
happen is written down as well, as a row to :data:`REFUSE`, since "nobody thought of it" and "it is
forbidden" would otherwise look the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

from fsm.errors import TableError

REFUSE: Final[str] = "(refuse)"
"""The target of a row whose guard says "illegal". No state can have this name: it is no identifier."""

PREDICATES_PER_EVENT_MAX: Final[int] = 10
"""The most predicates that the rows of one state and event may mention (1024 assignments to check)."""


class Row(NamedTuple):
    """One row of a table: in the state under which it stands, ``event`` leads to ``target``.

    ``guard`` is a conjunction of predicate names, each perhaps negated with ``!`` (empty: always).
    ``effect`` names what the driver has to do, ``why`` says it in words; both are for the reader
    and the caller, this package gives them no meaning.
    """

    event: str
    target: str
    guard: str = ""
    effect: str = ""
    why: str = ""


StateT = TypeVar("StateT", bound=str)
"""A table's own kind of state: ``str``, or an enum of strings."""

Literals = Mapping[str, bool]
"""A parsed guard: each predicate it mentions, in order, and the answer it asks for."""

Guards = Mapping[str, Callable[[Any], object]]
"""The predicates by name; each is a pure function of the facts, read for its truth."""


def plain(text: str) -> str:
    """The exact ``str`` behind a ``str``-valued enum member, whose own ``str()`` may say ``Class.MEMBER``."""
    return str.__str__(text)


def row_text(row: Row) -> str:
    """One row as errors show it: ``event [guard] -> target``."""
    guard = f" [{row.guard}]" if row.guard else ""
    return f"{plain(row.event)}{guard} -> {plain(row.target)}"


def guard_text(literals: Literals) -> str:
    """A truth assignment in the very syntax of a guard, so that it can be pasted into a row."""
    return " & ".join(name if asked else f"!{name}" for name, asked in literals.items())


def parse_guard(guard: str) -> dict[str, bool]:
    """Take a guard apart. Raises ValueError saying what is wrong with its syntax."""
    literals: dict[str, bool] = {}
    for part in guard.split("&") if guard.strip() else ():
        word = part.strip()
        name = word.removeprefix("!").strip()
        if not name.isidentifier():
            raise ValueError(f"'{word}' is no predicate name; write names joined by '&', negated with '!'")
        if name in literals:
            raise ValueError(f"it mentions '{name}' twice")
        literals[name] = not word.startswith("!")
    return literals


Parsed = dict[str, tuple[tuple[Row, Literals], ...]]
"""What is left of a table that passed: its states, and their rows with parsed guards."""


def check_table(
    name: str,
    initial: str,
    terminal: Collection[str],
    rows: Mapping[StateT, Sequence[Row]],
    guards: Guards,
) -> Parsed:
    """Refuse a bad table, or return its rows with targets and guards in one canonical spelling.

    Raises TableError naming the table, the state and the row.
    """
    _check_states(name, initial, terminal, rows)
    parsed: Parsed = {}
    keys: dict[str, str] = {plain(state): state for state in rows}
    for state, given in rows.items():
        of_state = tuple(_check_row(name, state, row, keys, guards) for row in given)
        if of_state and state in terminal:
            _refuse(name, state, of_state[0][0], "nothing may lead out of a terminal state")
        for event in dict.fromkeys(row.event for row, _ in of_state):
            _check_event(name, state, [pair for pair in of_state if pair[0].event == event])
        parsed[state] = of_state
    _check_guards_used(name, guards, parsed)
    _check_paths(name, initial, terminal, parsed)
    return parsed


def _refuse(name: str, state: str, row: Row | None, problem: str) -> NoReturn:
    where = f"state '{plain(state)}'" + (f", row '{row_text(row)}'" if row is not None else "")
    raise TableError(f"table '{name}', {where}: {problem}")


def _names(names: Collection[str]) -> str:
    return ", ".join(plain(name) for name in names) or "none"


def _check_states(name: str, initial: str, terminal: Collection[str], states: Collection[str]) -> None:
    for state in states:
        if not plain(state).isidentifier():
            _refuse(name, state, None, "the name of a state must be an identifier (hooks are named after it)")
    for kind, state in [("initial", initial), *(("terminal", state) for state in sorted(terminal))]:
        if state not in states:
            known = _names(states)
            raise TableError(f"table '{name}': {kind} state '{plain(state)}' is no state; states: {known}")


def _check_row(
    name: str, state: str, row: object, keys: Mapping[str, str], guards: Guards
) -> tuple[Row, Literals]:
    """One row on its own. Its target becomes the table's own key, so that enum members stay enum members."""
    if not isinstance(row, Row):
        _refuse(name, state, None, f"{row!r} is no Row; a state's rows are a list, even if it is only one")
    event = plain(row.event)
    if not event.isidentifier() or event == "state":
        _refuse(name, state, row, f"'{event}' cannot name an event: not an identifier, or 'state' itself")
    if row.target not in keys and row.target != REFUSE:
        _refuse(name, state, row, f"target '{plain(row.target)}' is no state; states: {_names(keys)}")
    try:
        literals = parse_guard(row.guard)
    except ValueError as problem:
        _refuse(name, state, row, f"bad guard '{row.guard}': {problem}")
    for predicate in literals:
        if predicate not in guards:
            _refuse(name, state, row, f"guard '{predicate}' is undefined; defined guards: {_names(guards)}")
    target = REFUSE if row.target == REFUSE else keys[row.target]
    return row._replace(target=target, guard=guard_text(literals)), literals


def _check_event(name: str, state: str, parsed: Sequence[tuple[Row, Literals]]) -> None:
    """All rows of one state and event together: every assignment is matched by exactly one of them."""
    event = plain(parsed[0][0].event)
    if all(row.target == REFUSE for row, _ in parsed):
        _refuse(name, state, parsed[0][0], f"event '{event}' is never legal here: leave it out of the state")
    effects: dict[str, Row] = {}
    for row, _ in parsed:
        other = effects.setdefault(row.target, row)
        if other.effect != row.effect:
            problem = f"its effect '{row.effect}' differs from '{other.effect}' of row '{row_text(other)}'"
            _refuse(name, state, row, f"{problem}; the effect must follow from where one came from and went")
    mentioned = tuple(dict.fromkeys(predicate for _, literals in parsed for predicate in literals))
    if len(mentioned) > PREDICATES_PER_EVENT_MAX:
        problem = f"the rows of event '{event}' mention {len(mentioned)} predicates"
        _refuse(name, state, parsed[0][0], f"{problem}, at most {PREDICATES_PER_EVENT_MAX} can be checked")
    for answers in product((True, False), repeat=len(mentioned)):
        assignment = dict(zip(mentioned, answers, strict=True))
        matching = [row for row, literals in parsed if all(assignment[p] == literals[p] for p in literals)]
        if not matching:
            problem = f"event '{event}' is incomplete: no row matches '{guard_text(assignment)}'"
            _refuse(name, state, parsed[0][0], f"{problem}; add a row, to REFUSE if it is illegal")
        if len(matching) > 1:
            case = f"when '{guard_text(assignment)}'" if assignment else "always"
            problem = f"event '{event}' is ambiguous: row '{row_text(matching[1])}' matches too, {case}"
            _refuse(name, state, matching[0], f"{problem}; let their guards exclude each other")


def _check_guards_used(name: str, guards: Guards, parsed: Parsed) -> None:
    used = {predicate: None for pairs in parsed.values() for _, literals in pairs for predicate in literals}
    for predicate, function in guards.items():
        if not callable(function):
            raise TableError(f"table '{name}': guard '{predicate}' is no function but {function!r}")
        if predicate not in used:
            raise TableError(f"table '{name}': guard '{predicate}' is used by no row; remove it or use it")


def _check_paths(name: str, initial: str, terminal: Collection[str], parsed: Parsed) -> None:
    """Every state is reached and can end; where nothing is terminal, it can come back to the initial one."""
    forward = {state: [row.target for row, _ in parsed[state] if row.target != REFUSE] for state in parsed}
    backward: dict[str, list[str]] = {state: [] for state in parsed}
    for state, targets in forward.items():
        for target in targets:
            backward[target].append(state)
    ends = tuple(state for state in parsed if state in terminal) or (initial,)
    reached = _reached((initial,), forward)
    ending = _reached(ends, backward)
    for state in parsed:
        if state not in reached:
            _refuse(name, state, None, f"it cannot be reached from the initial state '{plain(initial)}'")
        if state not in ending:
            _refuse(name, state, None, f"it is a dead end: nothing leads from it to any of: {_names(ends)}")


def _reached(start: Collection[str], edges: Mapping[str, Sequence[str]]) -> dict[str, None]:
    reached = dict.fromkeys(start)
    frontier = list(reached)
    while frontier:
        for state in edges[frontier.pop()]:
            if state not in reached:
                reached[state] = None
                frontier.append(state)
    return reached
