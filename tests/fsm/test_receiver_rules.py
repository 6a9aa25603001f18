"""The seams of the receiver, at which the wrong versions are put in: what each rule is asked, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fsm.blocks import BlockLedger, Owner
from fsm.effects import CopyOut, Ended, Moved, Recycle, Send
from fsm.kernel import UNKNOWN
from fsm.reasons import Reason
from fsm.receiver import Receiver
from fsm.rules import PROTOCOL
from tests.fsm.kit import E1, events, granted_early, land, of_type, offered, queued, receiver, status

# --- seams that only wrong rules use --------------------------------------------------------------------


def test_the_order_in_which_copy_and_grant_come_is_a_rule() -> None:
    rules = replace(PROTOCOL, copy_when_landed=lambda room: False)
    who = receiver(4, rules=rules, grant_blocks_max=2)
    offered(who, 20)
    who.receive(status(0, 8), 0)
    tick = who.tick(0)
    assert [type(effect) for effect in tick] == [Moved, Recycle, Moved, CopyOut, Send]
    who.receive(status(1, 16), 0)
    who.tick(0)
    assert who.ledger.free_count == 0, "the old blocks are held while new ones are waited for"


def test_the_last_chunk_is_copied_whatever_that_rule_says() -> None:
    rules = replace(PROTOCOL, copy_when_landed=lambda room: False)
    who = receiver(8, rules=rules)
    offered(who, 20)
    who.receive(status(0, 20), 0)
    assert len(of_type(who.tick(0), CopyOut)) == 1


def test_who_starves_is_told_to_a_rule() -> None:
    told: list[tuple[Receiver, int]] = []
    rules = replace(PROTOCOL, starved=lambda one, room: told.append((one, room.room)))
    who = receiver(2, rules=rules)
    offered(who, 20)
    land(who, copy=False)
    assert told == [(who, 1)]


def test_progress_beyond_what_landed_is_refused_by_the_ledger() -> None:
    """A rule that claims more than the sender said finds the blocks granted, and not landed (I2)."""
    rules = replace(PROTOCOL, progress=lambda room, size, required, headers: 8 if room.grant else 0)
    who = receiver(2, rules=rules)
    offered(who, 20)
    moved, refused = who.tick(1)
    assert events([moved]) == ["landed"]
    assert (refused.room, refused.epoch, refused.property) == (1, E1, "I2")  # type: ignore[union-attr]
    assert refused.text.startswith("cannot read block 0 generation 0")  # type: ignore[union-attr]
    assert who.rooms[1].failure == Reason.INTERNAL


def test_a_rule_may_claim_what_has_not_landed() -> None:
    claimed: list[tuple[int, int]] = []
    rules = replace(PROTOCOL, claim=lambda room, tokens: claimed.append((room.room, tokens)))
    who = receiver(2, rules=rules)
    offered(who, 20)
    land(who)
    assert claimed == [(1, 8)]


def test_the_headers_are_passed_to_the_rule_of_progress() -> None:
    asked: list[int] = []

    def progress(room: Any, block_tokens: int, landed_required: bool, headers: Any) -> int:
        assert (block_tokens, landed_required) == (4, True)
        return 0 * headers(6)

    who = receiver(2, rules=replace(PROTOCOL, progress=progress), landed_required=True)
    who.submit(1, 0)
    who.observe(0, headers=lambda block: asked.append(block) or 3)  # type: ignore[func-returns-value]
    assert asked == [6]


def test_r11_a_refusal_of_the_ledger_harms_one_room() -> None:
    def refuse(ledger: BlockLedger, room: Any, owner: Owner, refs: Any) -> None:
        if room.room == 1:
            ledger.free(owner._replace(seq=9), refs)
        ledger.free(owner, refs)

    who = receiver(4, rules=replace(PROTOCOL, free=refuse), grant_blocks_max=2)
    queued(who, {1: 20, 2: 20})
    for room in (1, 2):
        who.receive(status(0, 8, 20, room, who.rooms[room].epoch), 0)
    who.tick(0)
    (refused,) = who.copied(1, E1, 0, 0, 0)
    assert (refused.room, refused.epoch, refused.property) == (1, E1, "I3")  # type: ignore[union-attr]
    assert who.copied(2, who.rooms[2].epoch, 0, 0, 0) == [Recycle((2, 3), True)]
    assert [who.rooms[room].failure for room in (1, 2)] == [Reason.INTERNAL, Reason.NONE]
    tick = who.tick(0)
    assert (1, E1, "INTERNAL") in [(e.room, e.epoch, e.reason) for e in of_type(tick, Ended)]
    assert 2 in who.rooms


def test_unknown_totals_stay_unknown() -> None:
    who = receiver(4)
    granted_early(who, 8)
    assert who.rooms[1].total_tokens == UNKNOWN
    assert who.tick(0) == []
