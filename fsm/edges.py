"""The edge ledger: how often each row of a table was taken.

Nothing is counted unless somebody asks::

    with counting(RECEIVER_TABLE, BLOCK_TABLE) as ledger:
        ...                                     # whatever moves lifecycles and blocks
    ledger.hits(RECEIVER_TABLE)                 # {Edge: times}, every row of the table, in its order

Asking puts a counting function in the place of the plain one (:meth:`Table.take`, and the two functions through which
a :class:`BlockLedger` moves blocks) until the ``with`` ends. Outside of it the code is as if this module did not
exist: there is no counter, nor a question whether there is one.

What counts as a hit
--------------------
A row is hit when a lifecycle moves by it: when :meth:`Lifecycle.fire` or :meth:`Lifecycle.fire_flat` has found it,
whatever a hook does afterwards. A row to ``REFUSE`` is hit when it refuses. :meth:`Table.next` is a question and moves
nothing, so it counts for nothing. A row of the block table is hit once for each block that it moves; a call that the
block ledger refuses moves none. An event that a state has no row for hits no row.

Ledgers nest, and each counts. Moves made by several threads at once may be missed, and are never invented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple

from fsm.allocators import Choices, Kind
from fsm.blocks import BlockLedger, Owner
from fsm.errors import IllegalEvent, LocalError
from fsm.lifecycle import BLOCK_TABLE
from fsm.messages import BlockRef
from fsm.states import BlockState
from fsm.table import REFUSE, Row, Table
from fsm.table_check import plain

_ABSENT: Final = object()

_Key = tuple[str, str, str]
"""State, event and guard: they name a row, since the guards of one state and event exclude each other."""


class Edge(NamedTuple):
    """A row by name: the state that it stands under, and all of it that decides."""

    state: str
    event: str
    guard: str
    target: str

    @property
    def refuses(self) -> bool:
        """Whether it says that the event is illegal."""
        return self.target == REFUSE

    def __str__(self) -> str:
        guard = f" [{self.guard}]" if self.guard else ""
        return f"{self.state}: {self.event}{guard} -> {self.target}"


def edges(table: Table) -> tuple[Edge, ...]:
    """The rows of a table, in its order."""
    return tuple(
        Edge(plain(state), plain(row.event), row.guard, plain(row.target))
        for state, rows in table.rows.items()
        for row in rows
    )


class EdgeLedger:
    """How often each row of some tables was hit; see the module for what that means."""

    def __init__(self, tables: Sequence[Table]) -> None:
        """All zero. Raises :class:`LocalError` for no table, or for two of one name."""
        names = [table.name for table in tables]
        if not names or len(set(names)) != len(names):
            raise LocalError(f"tables to count: {', '.join(names) or 'none'}; expected at least one, each once")
        self.tables = tuple(tables)
        self._counts: dict[str, dict[_Key, int]] = {
            table.name: dict.fromkeys([edge[:3] for edge in edges(table)], 0) for table in tables
        }

    def hits(self, table: Table) -> dict[Edge, int]:
        """Every row of a table, in its order, and how often it was hit. LocalError for a table that is not counted."""
        if table not in self.tables:
            known = ", ".join(counted.name for counted in self.tables)
            raise LocalError(f"table '{table.name}' is not counted here; counted: {known}")
        counts = self._counts[table.name]
        return {edge: counts[edge[:3]] for edge in edges(table)}

    def snapshot(self) -> tuple[int, ...]:
        """All counts, tables and rows in their order: to tell what was added between two moments."""
        return tuple(count for counts in self._counts.values() for count in counts.values())

    def counts(self, table: Table) -> dict[_Key, int]:
        """The counters themselves, for whoever counts."""
        return self._counts[table.name]


@contextmanager
def counting(*tables: Table) -> Iterator[EdgeLedger]:
    """Count the hits of these tables' rows until the block ends. LocalError for no table, or for one named twice."""
    ledger = EdgeLedger(tables)
    with ExitStack() as stack:
        for table in tables:
            counts = ledger.counts(table)
            stack.enter_context(_replaced(table, "take", _counted_take(table.take, counts)))
            if table is BLOCK_TABLE:
                stack.enter_context(_replaced(BlockLedger, "_move", _counted_move(counts)))
                stack.enter_context(_replaced(BlockLedger, "reserve", _counted_reserve(counts)))
        yield ledger


@contextmanager
def _replaced(owner: object, name: str, function: Callable[..., Any]) -> Iterator[None]:
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _counted_take(take: Callable[..., Row], counts: dict[_Key, int]) -> Callable[..., Row]:
    def counted(state: str, event: str, facts: Any = None) -> Row:
        try:
            row = take(state, event, facts)
        except IllegalEvent as refusal:
            if refusal.refused_by:
                counts[refusal.state, refusal.event, refusal.refused_by] += 1
            raise
        counts[plain(state), plain(event), row.guard] += 1
        return row

    return counted


def _counted_move(counts: dict[_Key, int]) -> Callable[..., None]:
    move = BlockLedger._move

    def counted(ledger: BlockLedger, event: str, owner: Owner, refs: Sequence[BlockRef]) -> None:
        records = ledger._records
        sources = [records[block].state for block, _ in refs if 0 <= block < len(records)]
        move(ledger, event, owner, refs)
        for source in sources:
            counts[source, event, ""] += 1

    return counted


def _counted_reserve(counts: dict[_Key, int]) -> Callable[..., tuple[BlockRef, ...]]:
    reserve = BlockLedger.reserve

    def counted(
        ledger: BlockLedger, owner: Owner, count: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[BlockRef, ...]:
        refs = reserve(ledger, owner, count, choices, kind)
        counts[BlockState.FREE, "reserve", ""] += len(refs)
        return refs

    return counted


__all__ = ["Edge", "EdgeLedger", "counting", "edges"]
