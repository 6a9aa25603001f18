"""The seams of the receiver, at which the wrong versions are put in: what each rule is asked, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fsm.blocks import BlockLedger, Owner
from fsm.effects import CopyOut, Effect, Ended, Moved, Recycle, Refused, Send
from fsm.kernel import UNKNOWN
from fsm.lifecycle import RECEIVER_FIVE_STATE_TABLE
from fsm.messages import BlockRef
from fsm.ranks import fold
from fsm.reasons import Reason
from fsm.receiver import Receiver
from fsm.rules import PROTOCOL
from fsm.states import State
from tests.fsm.kit import (
    E1,
    events,
    fail,
    granted,
    granted_early,
    grants,
    land,
    of_type,
    offer,
    offered,
    queued,
    receiver,
    register_ack,
    status,
    to_the_end,
    wait_in,
)

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
    assert refused.text.startswith("cannot read block 0 generation 0 for room 1 epoch (1, 1) seq 0")  # type: ignore[union-attr]
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


def test_what_the_rules_of_a_grant_are_asked() -> None:
    asked: list[tuple[object, ...]] = []

    def note(name: str, answer: Any) -> Any:
        def rule(*arguments: Any) -> Any:
            asked.append((name, *arguments))
            return answer(*arguments) if callable(answer) else answer

        return rule

    who = receiver(
        3,
        grant_blocks_max=2,
        rules=replace(
            PROTOCOL,
            resume_start=note("start", lambda committed, size: committed),
            remember=note("remember", PROTOCOL.remember),
            copy_when_landed=note("copy", True),
        ),
    )
    first = granted(offered(who, 20)).blocks
    room = who.rooms[1]
    assert asked == [("start", 0, 4), ("remember", room, (), first)]
    asked.clear()
    land(who, copy=False)
    assert asked == [("copy", room), ("start", 8, 4), ("copy", room)]


def test_a_rule_that_resumes_twice_is_told_what_was_held() -> None:
    held: list[tuple[Any, Any]] = []

    def remember(room: Any, before: Any, after: Any) -> None:
        held.append((before, after))

    rules = replace(PROTOCOL, table=RECEIVER_FIVE_STATE_TABLE, detect=lambda room: True, remember=remember)
    who = receiver(4, rules=rules, grant_blocks_max=1)
    offered(who, 20)
    land(who)
    granted(who.tick(0))
    granted(who.tick(0))
    assert [before for before, _ in held] == [(), (), held[1][1], held[2][1]]


def test_the_protocol_holds_on_the_historical_table_too() -> None:
    """Transferring is where it waits as well, so the detector is asked there, and says no."""
    who = receiver(4, rules=replace(PROTOCOL, table=RECEIVER_FIVE_STATE_TABLE), grant_blocks_max=2)
    offered(who, 20)
    assert grants(land(who)) == [(1, 1, 8, 8)]
    assert who.rooms[1].state == State.TRANSFERRING and who.ledger.free_count == 2
    assert who.tick(0) == []
    assert to_the_end(who) == [(8, 8), (16, 4)]


def test_a_tick_passes_the_headers_on() -> None:
    rules = replace(PROTOCOL, progress=lambda room, size, required, headers: headers(0))
    who = receiver(2, rules=rules)
    offered_by_headers(who)
    who.tick(0, headers=lambda block: 8)
    assert who.rooms[1].handled_tokens == 8


def offered_by_headers(who: Receiver) -> None:
    who.submit(1, 0)
    who.receive(register_ack(), 0)
    who.tick(0, headers=lambda block: 0)
    who.receive(offer(20), 0)
    who.tick(0, headers=lambda block: 0)
    who.receive(status(0, 8), 0)


def test_a_total_that_is_unknown_frees_no_result_memory() -> None:
    """A rule that folds by MAX takes a chunk on a rank that was told nothing yet."""
    rules = replace(PROTOCOL, fold_progress=max)
    group = [receiver(4, rank=rank, rules=rules, result_tokens=99, total_tokens_max=40) for rank in (0, 1)]
    for rank, who in enumerate(group):
        who.submit(1, 0, early_tokens=4)
        who.receive(register_ack(ranks=(0, rank)), 0)
    agreed = fold(tuple(who.observe(0) for who in group), rules)
    for who in group:
        who.decide(agreed, 0)
    group[0].receive(status(0, 4), 0)
    agreed = fold(tuple(who.observe(0) for who in group), rules)
    for who in group:
        who.decide(agreed, 0)
        assert (who.free_result_tokens, who.rooms[1].reserved_tokens) == (59, 40)


def test_r11_every_way_in_is_guarded_against_a_refusal() -> None:
    """The ledger was tampered with: whoever comes upon it reports it, and the one room fails."""

    def tampered(**config: Any) -> Receiver:
        who = receiver(2, **config)
        refs = granted(offered(who, 20)).blocks
        who.ledger.quarantine(who.rooms[1].owner(0), refs)
        return who

    def refused(effects: list[Effect]) -> None:
        assert [(e.receiver_rank, e.room, e.epoch, e.property) for e in of_type(effects, Refused)] == [(0, 1, E1, "I1")]

    who = tampered()
    refused(who.receive(status(0, 8), 0))
    assert who.rooms[1].failure == Reason.INTERNAL
    who = tampered(landed_required=True)
    who.receive(status(0, 8), 0)
    refused(who.landed(1, E1, 0, 0))
    assert who.rooms[1].failure == Reason.INTERNAL


def test_r11_so_are_copies_for_a_tombstone() -> None:
    who = wait_in("landed")
    refs = who.rooms[1].chunks[0].blocks
    fail(who)
    who.ledger.free(Owner(1, E1, 0), refs)
    (refused,) = who.copied(1, E1, 0, 0, 0)
    assert isinstance(refused, Refused) and (refused.room, refused.property) == (1, "I3")


def test_r11_so_is_a_grant_of_more_than_there_is() -> None:
    who = receiver(2, rules=replace(PROTOCOL, take=lambda wanted, available: 5))
    (refused,) = of_type(offered(who, 20), Refused)
    assert (refused.room, refused.property) == (1, "I3")
    assert who.rooms[1].failure == Reason.INTERNAL and who.rooms[1].grant is None


def test_r11_so_is_who_starves() -> None:
    def not_its_own(one: Receiver, room: Any) -> None:
        one.ledger.free(room.owner(7), (BlockRef(0, 0),))

    who = receiver(2, rules=replace(PROTOCOL, starved=not_its_own))
    offered(who, 20)
    (refused,) = of_type(land(who, copy=False), Refused)
    assert (refused.room, refused.property) == (1, "I3")
    assert who.rooms[1].failure == Reason.INTERNAL
