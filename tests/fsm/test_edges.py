"""The edge ledger counts each move once, by the row that made it; when nobody counts, nothing of it is there."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from fsm.allocators import FirstChoice, make_allocator
from fsm.blocks import BlockLedger, Owner
from fsm.column_receiver import ColumnReceiver
from fsm.edges import Edge, EdgeLedger, counting, edges
from fsm.errors import IllegalEvent, LedgerError, LocalError
from fsm.lifecycle import BLOCK_TABLE, RECEIVER_TABLE, SENDER_TABLE, ReceiverFacts, ReceiverLifecycle
from fsm.messages import BlockRef, Epoch
from fsm.receiver_facts import ReceiverConfig
from fsm.table import REFUSE, Lifecycle, Row, Table
from tests.fsm.kit import LAYOUT, TIMING

OWNER = Owner(7, Epoch(1, 1), 0)
FIRST = FirstChoice()


def door() -> Table:
    """A small table of this test's own: the rows of the project are not to be hit by tests of the counting."""
    return Table(
        "door",
        initial="Shut",
        terminal=("Gone",),
        rows={
            "Shut": [Row("push", "Open", "!locked"), Row("push", REFUSE, "locked"), Row("remove", "Gone")],
            "Open": [Row("push", "Shut", "!locked"), Row("push", REFUSE, "locked")],
            "Gone": [],
        },
        guards={"locked": attrgetter("locked")},
    )


def door_of(table_: Table) -> Lifecycle:
    class Door(Lifecycle):
        __slots__ = ()
        table: ClassVar[Table] = table_

    return Door()


FREE, LOCKED = SimpleNamespace(locked=False), SimpleNamespace(locked=True)


def hits(ledger: EdgeLedger, table: Table) -> dict[str, int]:
    """The rows that were hit, in words."""
    return {str(edge): count for edge, count in ledger.hits(table).items() if count}


def ways(lifecycle: Lifecycle) -> list[Callable[..., Row]]:
    return [lifecycle.fire, lifecycle.fire_flat]


def test_a_move_counts_by_the_row_that_made_it_whichever_way_it_is_made() -> None:
    table = door()
    with counting(table) as ledger:
        for way in ways(door_of(table)):
            way("push", FREE)
            way("push", FREE)
        door_of(table).fire("remove", FREE)
    assert hits(ledger, table) == {
        "Shut: push [!locked] -> Open": 2,
        "Shut: remove -> Gone": 1,
        "Open: push [!locked] -> Shut": 2,
    }


def test_a_row_that_refuses_counts_when_it_refuses_and_an_unlisted_event_hits_no_row() -> None:
    table = door()
    lifecycle = door_of(table)
    with counting(table) as ledger:
        for way in ways(lifecycle):
            with pytest.raises(IllegalEvent, match="guard 'locked' said no"):
                way("push", LOCKED)
            with pytest.raises(IllegalEvent, match="no row for it"):
                way("burn", LOCKED)
    assert hits(ledger, table) == {f"Shut: push [locked] -> {REFUSE}": 2}
    assert [edge.refuses for edge in ledger.hits(table)] == [False, True, False, False, True]
    assert lifecycle.state == "Shut" and lifecycle.history == ()


def test_a_question_is_no_move() -> None:
    table = door()
    with counting(table) as ledger:
        assert table.next("Shut", "push", FREE).target == "Open"
    assert hits(ledger, table) == {}


def test_nothing_of_the_ledger_is_left_when_it_is_done() -> None:
    table = door()
    plain: dict[str, Any] = {name: vars(BlockLedger)[name] for name in ("_move", "reserve")}
    block_take = vars(BLOCK_TABLE).get("take")  # there is one if this whole test run is counted
    with pytest.raises(ZeroDivisionError):
        with counting(table, BLOCK_TABLE) as ledger:
            assert "take" in vars(table) and vars(BlockLedger)["_move"] is not plain["_move"]
            raise ZeroDivisionError
    assert "take" not in vars(table) and vars(BLOCK_TABLE).get("take") is block_take
    assert {name: vars(BlockLedger)[name] for name in plain} == plain
    door_of(table).fire_flat("remove", FREE)
    BlockLedger(1, make_allocator("fifo")).reserve(OWNER, 1, FIRST)
    assert hits(ledger, table) == hits(ledger, BLOCK_TABLE) == {}


def test_ledgers_nest_and_each_counts() -> None:
    table = door()
    lifecycle = door_of(table)
    blocks = BlockLedger(2, make_allocator("fifo"))
    with counting(table, BLOCK_TABLE) as outer:
        lifecycle.fire_flat("push", FREE)
        with counting(table, BLOCK_TABLE) as inner:
            lifecycle.fire_flat("push", FREE)
            blocks.reserve(OWNER, 1, FIRST)
        lifecycle.fire_flat("push", FREE)
    assert hits(inner, table) == {"Open: push [!locked] -> Shut": 1}
    assert hits(outer, table) == {"Shut: push [!locked] -> Open": 2, "Open: push [!locked] -> Shut": 1}
    assert hits(inner, BLOCK_TABLE) == hits(outer, BLOCK_TABLE) == {"Free: reserve -> Reserved": 1}


def test_a_block_row_counts_for_each_block_that_it_moves() -> None:
    blocks = BlockLedger(4, make_allocator("fifo"))  # made before anybody counts: it counts all the same
    with counting(BLOCK_TABLE) as ledger:
        refs = blocks.reserve(OWNER, 4, FIRST)
        blocks.grant(OWNER, refs)
        blocks.land(OWNER, refs[:2])
        blocks.unreached(OWNER, refs[2:])
        blocks.read(OWNER, refs[:1])
        blocks.free(OWNER, refs[:2])  # one was being read, the other had only landed
        blocks.grant(OWNER, [])
    assert hits(ledger, BLOCK_TABLE) == {
        "Free: reserve -> Reserved": 4,
        "Reserved: grant -> Granted": 4,
        "Granted: land -> Landed": 2,
        "Granted: unreached -> Free": 2,
        "Landed: read -> Reading": 1,
        "Landed: free -> Free": 1,
        "Reading: free -> Free": 1,
    }


def test_a_call_that_the_block_ledger_refuses_hits_no_row() -> None:
    blocks = BlockLedger(2, make_allocator("fifo"))
    refs = blocks.reserve(OWNER, 1, FIRST)
    blocks.grant(OWNER, refs)
    with counting(BLOCK_TABLE) as ledger:
        with pytest.raises(LedgerError):
            blocks.land(OWNER._replace(seq=1), refs)  # the row is there, the owner is another
        with pytest.raises(LedgerError):
            blocks.free(OWNER, refs)
        with pytest.raises(LedgerError):
            blocks.land(OWNER, [*refs, BlockRef(9, 0)])
        with pytest.raises(LedgerError):
            blocks.reserve(OWNER, 2, FIRST)
    assert hits(ledger, BLOCK_TABLE) == {}


def test_a_receiver_that_was_made_before_is_counted() -> None:
    """What production calls was bound when the receiver was made; the table is asked at each move."""
    config = ReceiverConfig(LAYOUT, timing=TIMING)
    who = ColumnReceiver(config, BlockLedger(1, make_allocator("fifo")), boot_id=1, flat=True)
    who.submit(5, 0.0)
    who.abort(5)
    with counting(RECEIVER_TABLE) as ledger:
        who.tick(1.0)
    assert hits(ledger, RECEIVER_TABLE) == {"Bootstrapping: fail -> Failed": 1}


def test_every_row_is_a_different_edge() -> None:
    for table in (RECEIVER_TABLE, SENDER_TABLE, BLOCK_TABLE):
        rows = [row for own in table.rows.values() for row in own]
        assert [edge[1:] for edge in edges(table)] == [(row.event, row.guard, row.target) for row in rows]
        assert len({edge[:3] for edge in edges(table)}) == len(rows)


def test_tables_that_are_not_counted_are_refused() -> None:
    with pytest.raises(LocalError, match="tables to count: none; expected at least one"):
        with counting():
            pass
    with pytest.raises(LocalError, match="tables to count: door, door; expected at least one, each once"):
        with counting(door(), door()):
            pass
    with counting(door()) as ledger, pytest.raises(LocalError, match="'block' is not counted here; counted: door"):
        ledger.hits(BLOCK_TABLE)


def test_a_snapshot_has_every_row_in_order() -> None:
    table = door()
    with counting(table, BLOCK_TABLE) as ledger:
        before = ledger.snapshot()
        door_of(table).fire_flat("remove", FREE)
        after = ledger.snapshot()
    assert len(before) == len(edges(table)) + len(edges(BLOCK_TABLE)) and not any(before)
    assert after == (0, 0, 1, 0, 0, *[0] * len(edges(BLOCK_TABLE)))


def test_an_edge_names_its_row() -> None:
    assert str(Edge("Shut", "remove", "", "Gone")) == "Shut: remove -> Gone"
    assert str(edges(RECEIVER_TABLE)[4]) == f"WaitingForInput: landed [!partial] -> {REFUSE}"


def test_the_refusing_rows_of_the_receiver_refuse_a_receiver() -> None:
    """The protocol never asks for what they refuse; a caller that does leaves the request as it was."""
    asked = {
        ("WaitingForInput", "landed"), ("WaitingForInput", "complete"), ("Transferring", "resume"),
        ("ResumeRequested", "landed"), ("ResumeRequested", "complete"),
    }  # fmt: skip
    assert {(edge.state, edge.event) for edge in edges(RECEIVER_TABLE) if edge.refuses} == asked
    assert not any(edge.refuses for table in (SENDER_TABLE, BLOCK_TABLE) for edge in edges(table))
    for state, event in sorted(asked):
        lifecycle = ReceiverLifecycle()
        lifecycle.state = state
        for way in ways(lifecycle):
            with pytest.raises(IllegalEvent, match="said no"):
                way(event, ReceiverFacts())
            assert lifecycle.state == state
