"""The four tables, written out: what each event does in each state, under each outcome of the guards."""

from __future__ import annotations

from itertools import product

import pytest

from fsm.errors import IllegalEvent
from fsm.lifecycle import (
    BLOCK_TABLE,
    RECEIVER_FIVE_STATE_TABLE,
    RECEIVER_TABLE,
    SENDER_TABLE,
    FiveStateReceiverLifecycle,
    ReceiverFacts,
    ReceiverLifecycle,
    SenderFacts,
    SenderLifecycle,
)
from fsm.receiver_room import FiveStateReceiverRoom, ReceiverRoom
from fsm.rules import PROTOCOL
from fsm.sender_room import Lane
from fsm.states import BlockState, State
from fsm.table import REFUSE, Table

B, W, T, R, S, F = State
BOTH = (False, True)

# (state, event) -> guard outcomes that allow it, and where it leads; whatever is missing is illegal.
RECEIVER = {
    (B, "registered"): {(): W},
    (B, "fail"): {(): F},
    (W, "grant"): {(): W},
    (W, "landed"): {("partial",): T},
    (W, "complete"): {("delivered",): S},
    (W, "fail"): {(): F},
    (T, "resume"): {("resume_due",): R},
    (T, "fail"): {(): F},
    (R, "landed"): {("partial",): T},
    (R, "complete"): {("delivered",): S},
    (R, "fail"): {(): F},
}
FIVE_STATE = {
    (B, "registered"): {(): W},
    (B, "fail"): {(): F},
    (W, "grant"): {(): W},
    (W, "landed"): {("partial",): T},
    (W, "complete"): {("delivered",): S},
    (W, "fail"): {(): F},
    (T, "landed"): {("partial",): T},
    (T, "resume"): {("resume_due",): T},
    (T, "complete"): {("delivered",): S},
    (T, "fail"): {(): F},
}
EFFECTS = {
    "grant": "send_grant",
    "resume": "send_grant",
    "landed": "copy_out",
    "complete": "close",
    "fail": "close",
    "registered": "",
}


@pytest.mark.parametrize(
    ("table", "expected", "states"),
    [(RECEIVER_TABLE, RECEIVER, (B, W, T, R, S, F)), (RECEIVER_FIVE_STATE_TABLE, FIVE_STATE, (B, W, T, S, F))],
)
def test_the_receivers_tables(
    table: Table, expected: dict[tuple[State, str], dict[tuple[str, ...], State]], states: tuple[State, ...]
) -> None:
    assert table.states == states
    assert (table.initial, table.terminal) == (B, (S, F))
    for state, event in product(states, EFFECTS):
        for due, partial, delivered in product(BOTH, BOTH, BOTH):
            facts = ReceiverFacts(resume_due=due, partial=partial, delivered=delivered)
            allowed = {
                target
                for needed, target in expected.get((state, event), {}).items()
                if all(getattr(facts, name) for name in needed)
            }
            if allowed:
                row = table.next(state, event, facts)
                assert {row.target} == allowed and row.effect == EFFECTS[event]
            else:
                with pytest.raises(IllegalEvent):
                    table.next(state, event, facts)


def test_r2_a_resume_that_is_not_due_is_refused_by_name() -> None:
    with pytest.raises(IllegalEvent) as caught:
        RECEIVER_TABLE.next(T, "resume", ReceiverFacts())
    assert caught.value.refused_by == "!resume_due"
    assert caught.value.legal == ("resume", "fail")


def test_the_senders_table() -> None:
    table = SENDER_TABLE
    assert (table.states, table.initial, table.terminal) == ((B, W, T, R, S, F), B, (S, F))
    legal = {
        (B, "registered", False): (W, "acknowledge"),
        (W, "grant", False): (T, "write"),
        (R, "grant", False): (T, "write"),
        (T, "committed", False): (R, "send_status"),
        **{(state, "fail", False): (F, "close") for state in (B, W, T, R)},
    }
    legal |= {(state, event, True): out for (state, event, _), out in legal.items()}
    legal[T, "committed", True] = (S, "send_status")
    for state, event, last in product(State, ("registered", "grant", "committed", "fail"), BOTH):
        if (state, event, last) in legal:
            row = table.next(state, event, SenderFacts(last_chunk=last))
            assert (row.target, row.effect) == legal[state, event, last]
        else:
            with pytest.raises(IllegalEvent):
                table.next(state, event, SenderFacts(last_chunk=last))


def test_the_blocks_table() -> None:
    free, reserved, granted, landed, reading, quarantined = BlockState
    assert BLOCK_TABLE.terminal == () and BLOCK_TABLE.initial == free
    moves = {(state, row.event): row.target for state in BLOCK_TABLE.states for row in BLOCK_TABLE.rows[state]}
    assert moves == {
        (free, "reserve"): reserved,
        (reserved, "grant"): granted,
        (reserved, "free"): free,
        (granted, "land"): landed,
        (granted, "unreached"): free,
        (granted, "quarantine"): quarantined,
        (landed, "read"): reading,
        (landed, "free"): free,
        (reading, "free"): free,
        (quarantined, "release"): free,
    }


def test_r5_a_granted_block_goes_nowhere_near_the_free_list_by_itself() -> None:
    with pytest.raises(IllegalEvent):
        BLOCK_TABLE.next(BlockState.GRANTED, "free")
    with pytest.raises(IllegalEvent):
        BLOCK_TABLE.next(BlockState.QUARANTINED, "free")


def test_facts_say_no_unless_told() -> None:
    assert ReceiverFacts() == (False, False, False)
    assert SenderFacts() == (False,)


def test_every_row_says_why_or_repeats_one_that_does() -> None:
    for table in (RECEIVER_TABLE, SENDER_TABLE, BLOCK_TABLE):
        for rows in table.rows.values():
            assert all(row.why for row in rows), table.name


def test_who_lives_by_which_table() -> None:
    assert ReceiverLifecycle.table is ReceiverRoom.table is PROTOCOL.table is RECEIVER_TABLE
    assert FiveStateReceiverLifecycle.table is FiveStateReceiverRoom.table is RECEIVER_FIVE_STATE_TABLE
    assert SenderLifecycle.table is Lane.table is SENDER_TABLE
    assert (RECEIVER_TABLE.name, SENDER_TABLE.name, BLOCK_TABLE.name) == ("receiver", "sender", "block")
    assert RECEIVER_FIVE_STATE_TABLE.name == "receiver (historical, five states)"


def test_the_refusals_are_rows_of_their_own() -> None:
    refused = {
        (table.name, state, row.event, row.guard)
        for table in (RECEIVER_TABLE, SENDER_TABLE)
        for state, rows in table.rows.items()
        for row in rows
        if row.target == REFUSE
    }
    assert refused == {
        ("receiver", W, "landed", "!partial"),
        ("receiver", W, "complete", "!delivered"),
        ("receiver", T, "resume", "!resume_due"),
        ("receiver", R, "landed", "!partial"),
        ("receiver", R, "complete", "!delivered"),
    }
