"""Transition tables: one set of rows that is looked up, driven, drawn and checked.

A :class:`Table` holds the rows of a lifecycle and refuses bad ones when it is built (what is refused, and
why, stands in :mod:`fsm.table_check`). From the same rows come

* the *flat lookup* (:meth:`Table.next`): a dictionary and no hooks, for simulators and hot loops;
* a ``transitions.Machine`` (:meth:`Table.build_machine`), for whoever wants hooks: it is shared by all
  lifecycles of a class and knows none of them, since registering a model costs more than running it;
* the pictures (:meth:`Table.mermaid`, :meth:`Table.markdown`, :meth:`Table.text`).

:class:`Lifecycle` is what production code holds: a state, a short history and two ways to move,
:meth:`Lifecycle.fire` through the machine and :meth:`Lifecycle.fire_flat` through the lookup. Tests hold
the two against each other on every state, event and guard outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple, final

import transitions

from fsm import table_render
from fsm.errors import IllegalEvent, LocalError, TableError
from fsm.table_check import (
    PREDICATES_PER_EVENT_MAX,
    REFUSE,
    Guards,
    Literals,
    Row,
    StateT,
    check_table,
    plain,
    row_text,
)

__all__ = ["HISTORY_STEPS_MAX", "PREDICATES_PER_EVENT_MAX", "REFUSE", "Choice", "Lifecycle", "Row", "Table"]

HISTORY_STEPS_MAX: Final[int] = 64
"""How many steps a lifecycle remembers; the newest are kept."""

_NO_GUARDS: Final[Guards] = MappingProxyType({})
_HOOKS: Final = (
    ("on_enter_", "state", "enter"),
    ("on_exit_", "state", "exit"),
    ("before_", "event", "before"),
    ("after_", "event", "after"),
)


@final
class Choice(NamedTuple):
    """One question of a compiled guard: ask ``predicate`` of the facts, go on with ``no`` or ``yes``."""

    name: str
    predicate: Callable[[Any], object]
    no: Decision
    yes: Decision


Decision = Row | Choice
"""What a state and an event lead to: a row, or a question first."""


def _decide(rows: Sequence[tuple[Row, Literals]], guards: Guards) -> Decision:
    """Compile checked rows into questions, in the order in which the rows mention them.

    The rows are complete and exclusive, so a single row that is still possible is the one that matches,
    and no further predicate is asked.
    """
    if len(rows) == 1:
        return rows[0][0]
    name = next(predicate for _, literals in rows for predicate in literals)
    branches = []
    for answer in (False, True):
        possible = [
            (row, {predicate: asked for predicate, asked in literals.items() if predicate != name})
            for row, literals in rows
            if literals.get(name, answer) == answer
        ]
        branches.append(_decide(possible, guards))
    return Choice(name, guards[name], *branches)


class Table:
    """The rows of one lifecycle, checked when built and never changed afterwards.

    Args:
        name: what errors call it.
        initial: the state a lifecycle starts in.
        terminal: the absorbing states; none for a lifecycle that goes round, like a block's.
        rows: for *every* state its rows; an empty sequence for a terminal one. The keys may be members of
            a ``str``-valued enum, and come back as such wherever a state is returned.
        guards: the predicates that the rows mention, by name. They must be pure: :meth:`Lifecycle.fire`
            may ask one more than once.
        essay: prose for whoever reads the table (kept as ``.essay``).

    Raises TableError, naming table and row, for everything that :mod:`fsm.table_check` refuses.
    """

    def __init__(
        self,
        name: str,
        *,
        initial: str,
        terminal: Collection[str],
        rows: Mapping[StateT, Sequence[Row]],
        guards: Guards = _NO_GUARDS,
        essay: str = "",
    ) -> None:
        parsed = check_table(name, initial, terminal, rows, guards)
        self.name = name
        self.essay = essay
        self.guards: Guards = MappingProxyType(dict(guards))
        self.states: tuple[str, ...] = tuple(parsed)
        self.initial: str = next(state for state in self.states if state == initial)
        self.terminal: tuple[str, ...] = tuple(state for state in self.states if state in terminal)
        of_state = {state: tuple(row for row, _ in pairs) for state, pairs in parsed.items()}
        self.rows: Mapping[str, tuple[Row, ...]] = MappingProxyType(of_state)
        legal = {state: tuple(dict.fromkeys(row.event for row in own)) for state, own in of_state.items()}
        self.events: tuple[str, ...] = tuple(dict.fromkeys(chain.from_iterable(legal.values())))
        self.lookup: dict[tuple[str, str], Decision] = {}
        for state, events in legal.items():
            for event in events:
                pairs = [pair for pair in parsed[state] if pair[0].event == event]
                self.lookup[state, event] = _decide(pairs, self.guards)
        self._parsed = parsed
        self._legal = legal

    def __repr__(self) -> str:
        return f"Table({self.name!r}, {len(self.states)} states, {len(self.events)} events)"

    def legal(self, state: str) -> tuple[str, ...]:
        """The events that ``state`` has rows for (some guard may still say no). LocalError for no state."""
        try:
            return self._legal[state]
        except KeyError:
            known = ", ".join(map(plain, self.states))
            raise LocalError(f"table '{self.name}' has no state '{plain(state)}'; states: {known}") from None

    def next(self, state: str, event: str, facts: Any = None) -> Row:
        """The row that ``event`` takes in ``state``; nothing is changed, no hook runs.

        ``facts`` is what the guards are asked about. Raises IllegalEvent if there is no row, or if it is
        one to :data:`REFUSE`.
        """
        decision = self.lookup.get((state, event))
        while type(decision) is Choice:
            decision = decision.yes if decision.predicate(facts) else decision.no
        if decision is not None and decision.target is not REFUSE:
            return decision
        raise self._illegal(state, event, decision.guard if decision is not None else "")

    take = next
    """``next`` under the name by which a :class:`Lifecycle` asks when it moves, so that :mod:`fsm.edges` can count
    moves and not questions."""

    def _illegal(self, state: str, event: str, refused_by: str) -> IllegalEvent:
        legal = tuple(map(plain, self.legal(state)))
        return IllegalEvent(self.name, plain(state), plain(event), legal, refused_by)

    def build_machine(self, model_class: type | None = None) -> transitions.Machine:
        """A ``transitions.Machine`` of the same rows, without models and without auto transitions.

        Drive any object that has a ``state`` with ``machine.events[event].trigger(model, facts)``. Rows to
        :data:`REFUSE` become no transition. With ``model_class`` its methods ``on_enter_<State>``,
        ``on_exit_<State>``, ``before_<event>`` and ``after_<event>`` become hooks; a method of such a name
        for a state or event that the table lacks raises TableError, since it would never be called.
        """
        machine = _Machine(
            model=None,
            states=[_State(state, final=state in self.terminal) for state in self.states],
            initial=plain(self.initial),
            auto_transitions=False,
            name=self.name,
        )
        asks = {name: _as_condition(name, predicate) for name, predicate in self.guards.items()}
        for state, pairs in self._parsed.items():
            for row, literals in pairs:
                if row.target is not REFUSE:
                    machine.add_transition(
                        plain(row.event),
                        plain(state),
                        plain(row.target),
                        conditions=[asks[name] for name, asked in literals.items() if asked],
                        unless=[asks[name] for name, asked in literals.items() if not asked],
                        row=row,
                    )
        if model_class is not None:
            self._bind_hooks(machine, model_class)
        return machine

    def _bind_hooks(self, machine: transitions.Machine, model_class: type) -> None:
        owners: dict[str, Mapping[str, Any]] = {"state": machine.states, "event": machine.events}
        for attribute in sorted(dir(model_class)):
            for prefix, kind, moment in _HOOKS:
                if not attribute.startswith(prefix):
                    continue
                name = attribute.removeprefix(prefix)
                if name not in owners[kind]:
                    problem = f"would never be called: table '{self.name}' has no {kind} '{name}'"
                    known = ", ".join(owners[kind])
                    raise TableError(f"hook {model_class.__name__}.{attribute} {problem}; {kind}s: {known}")
                # By name, not by function: transitions then asks each model, so an override counts.
                owners[kind][name].add_callback(moment, attribute)

    def mermaid(self) -> str:
        """The picture: a Mermaid ``stateDiagram-v2``."""
        return table_render.mermaid(self)

    def markdown(self) -> str:
        """The page: state | event | guard | next | effect | why."""
        return table_render.markdown(self)

    def text(self) -> str:
        """The same in aligned columns, for a terminal."""
        return table_render.text(self)


def _as_condition(name: str, predicate: Callable[[Any], object]) -> Callable[[Any], bool]:
    """A predicate as ``transitions`` wants it: it compares with True, where the lookup asks for truth."""

    def condition(facts: Any) -> bool:
        return bool(predicate(facts))

    condition.__name__ = condition.__qualname__ = name
    return condition


class _Transition(transitions.Transition):
    """A transition that knows its row."""

    def __init__(self, *args: Any, row: Row, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.row = row


class _State(transitions.State):
    """A state named by the plain text of the table's key, whose value is the key itself."""

    def __init__(self, key: str, final: bool) -> None:
        super().__init__(plain(key), final=final)
        self._key = key

    @property
    def value(self) -> str:
        """What is stored as the model's ``state``: an enum member stays an enum member."""
        return self._key

    def enter(self, event_data: transitions.EventData) -> None:
        """Record the step at the moment of the change: a hook that fires again is recorded after it."""
        if isinstance(event_data.model, Lifecycle):
            event_data.model._remember(event_data.transition.row)  # type: ignore[union-attr]
        super().enter(event_data)

    def exit(self, event_data: transitions.EventData) -> None:
        """Leave, unless a hook has already left: its step would be overwritten without a trace."""
        super().exit(event_data)
        now = event_data.machine.get_model_state(event_data.model)
        if now is not self:
            problem = f"a before_ or on_exit_ hook moved on from {self.name} to {now.name}"
            raise LocalError(
                f"{event_data.machine.name}event '{event_data.event.name}': {problem}; "
                "fire from on_enter_ or after_ hooks"
            )


class _Machine(transitions.Machine):
    """A machine whose states may be looked up by the keys of the table."""

    transition_cls = _Transition

    def get_state(self, state: Any) -> transitions.State:
        """``transitions`` would ask an enum member for its member name; the table's names are its values."""
        found = self.states.get(state)
        return super().get_state(plain(state)) if found is None else found


class Lifecycle:
    """The state of one thing that lives by a table, with the newest steps it took.

    Subclass it and set ``table``; the subclass then has ``machine``, one ``transitions.Machine`` for all
    its instances. Hooks are methods (``on_enter_<State>``, ``on_exit_<State>``, ``before_<event>``,
    ``after_<event>``) or are added to the machine (``Cls.machine.on_enter_Done(callback)``); they receive the
    facts. A subclass of a subclass gets a machine of its own: it inherits the methods, but not the
    callbacks that were added to its parent's machine.

    A small subclass declares ``__slots__``. A lifecycle is at most 1.5 kB with a full history.
    """

    __slots__ = ("_steps", "state")

    table: ClassVar[Table]
    machine: ClassVar[transitions.Machine]

    state: str
    _steps: list[Row]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        table = getattr(cls, "table", None)
        if table is not None:
            cls.machine = table.build_machine(cls)

    def __init__(self) -> None:
        self.state = self.table.initial
        self._steps = []

    @property
    def history(self) -> tuple[tuple[str, str], ...]:
        """The newest steps, oldest first, as (event, state entered); at most HISTORY_STEPS_MAX."""
        return tuple((row.event, row.target) for row in self._steps)

    def _remember(self, row: Row) -> None:
        steps = self._steps
        steps.append(row)
        if len(steps) > HISTORY_STEPS_MAX:
            del steps[0]

    def fire(self, event: str, facts: Any = None) -> Row:
        """Take ``event`` through the machine, with hooks; returns the row taken.

        ``facts`` is what guards and hooks receive, this object itself if None. Raises IllegalEvent before
        anything changed, and lets the exceptions of guards and hooks through: one raised by a ``before_``
        or ``on_exit_`` hook leaves the state as it was, one by ``on_enter_`` or ``after_`` comes too late.
        """
        if facts is None:
            facts = self
        row = self.table.take(self.state, event, facts)
        if not self.machine.events[event].trigger(self, facts):
            raise LocalError(
                f"{self.table.name}: in state {plain(self.state)} the guards allowed '{row_text(row)}' "
                "and the machine did not take it: a guard must answer alike when asked twice, and an "
                "on_exception callback must not swallow what a hook raises"
            )
        return row

    def fire_flat(self, event: str, facts: Any = None) -> Row:
        """The same through the flat lookup: no hooks, many times faster."""
        row = self.table.take(self.state, event, self if facts is None else facts)
        self.state = row.target
        steps = self._steps
        steps.append(row)
        if len(steps) > HISTORY_STEPS_MAX:
            del steps[0]
        return row
