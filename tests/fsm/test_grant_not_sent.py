"""A grant that a failing hook stops on its way gives back what was reserved for it."""

from __future__ import annotations

from typing import Any

import pytest

from fsm.allocators import make_allocator
from fsm.blocks import BlockLedger
from fsm.column_receiver import ColumnReceiver
from fsm.edges import counting
from fsm.effects import Ended, Recycle, Refused, Send
from fsm.lifecycle import BLOCK_TABLE
from fsm.messages import Grant, Offer, RegisterAck
from fsm.receiver_facts import ReceiverConfig
from fsm.receiver_room import ReceiverRoom
from tests.fsm.kit import E1, LAYOUT, PEER_QUEUE, SENDER_BOOT, TIMING

ROOM = 5


class FailsBefore(ReceiverRoom):
    __slots__ = ()

    def before_grant(self, facts: Any) -> None:
        raise RuntimeError("this hook fails")


class FailsAfter(ReceiverRoom):
    __slots__ = ()

    def after_grant(self, facts: Any) -> None:
        raise RuntimeError("this hook fails")


@pytest.mark.parametrize("room_class", [FailsBefore, FailsAfter])
def test_blocks_that_were_reserved_for_a_grant_that_was_not_sent_are_free_again(
    room_class: type[ReceiverRoom],
) -> None:
    config = ReceiverConfig(LAYOUT, timing=TIMING, result_tokens=8)
    ledger = BlockLedger(4, make_allocator("fifo"))
    who = ColumnReceiver(config, ledger, boot_id=1, room_class=room_class)
    who.submit(ROOM, 0.0)
    who.receive(RegisterAck(ROOM, E1, 0, 0, SENDER_BOOT, True, PEER_QUEUE), 1.0)
    who.receive(Offer(ROOM, E1, 0, 0, 8, True, False), 1.0)
    with counting(BLOCK_TABLE) as hits:
        effects = who.tick(1.0)
    assert [(effect.property, effect.text) for effect in effects if isinstance(effect, Refused)] == [
        ("R11", "RuntimeError: this hook fails")
    ]
    assert not any(isinstance(effect, Send) and isinstance(effect.message, Grant) for effect in effects)
    assert [effect.blocks for effect in effects if isinstance(effect, Recycle)] == [(0, 1), (0, 1)]
    assert {str(edge): count for edge, count in hits.hits(BLOCK_TABLE).items() if count} == {
        "Free: reserve -> Reserved": 2,
        "Reserved: free -> Free": 2,
    }
    assert [effect.reason for effect in who.tick(2.0) if isinstance(effect, Ended)] == ["INTERNAL"]
    assert ledger.free_count == 4 and ledger.audit() is None and who.free_result_tokens == 8
