"""What the receiver takes for a proof of quiescence, and what not: ABORT_ACK, restarts, transports, lost ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fsm.blocks import BlockLedger, Owner
from fsm.effects import Ended, Recycle, Refused, Send
from fsm.errors import LocalError
from fsm.messages import Abort, AbortAck, BlockRef, Epoch, Heartbeat, NackCode
from fsm.reasons import Reason
from fsm.rules import PROTOCOL
from tests.fsm.kit import (
    E1,
    E2,
    SENDER_BOOT,
    abort,
    abort_ack,
    events,
    fail,
    land,
    nack,
    of_type,
    offered,
    queued,
    receiver,
    register_ack,
    sent,
    status,
    wait_in,
)

# --- ABORT and its acknowledgement -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        "unregistered",
        "unoffered",
        "early, granted",
        "queueing for blocks",
        "granted",
        "landed",
        "resumed",
        "last chunk being copied",
    ],
)
def test_r11_an_abort_of_the_sender_is_acknowledged_in_every_state(state: str) -> None:
    who = wait_in(state)
    epoch = who.rooms[1].epoch
    ack = Send(AbortAck(1, epoch, 0, 0, 1, -1))
    assert who.receive(abort(epoch=epoch), 1) == [ack]
    assert who.rooms[1].failure == Reason.PEER_ABORTED
    assert who.receive(abort(epoch=epoch), 1) == [ack]
    effects = who.tick(1)
    assert [e.reason for e in of_type(effects, Ended) if e.room == 1] == ["PEER_ABORTED"]
    assert who.receive(abort(epoch=epoch), 2) == [ack]


def test_r11_an_abort_of_an_unknown_room_is_acknowledged_and_makes_nothing() -> None:
    who = receiver(rank=1, sender_rank=2)
    assert who.receive(abort(5, ranks=(2, 1)), 0) == [Send(AbortAck(5, E1, 2, 1, 1, -1))]
    assert (who.rooms, who.tombstones) == ({}, {})


def test_r11_an_abort_between_other_ranks_is_acknowledged_and_does_nothing() -> None:
    who = wait_in("granted")
    before = who.save(0)
    assert who.receive(abort(ranks=(0, 1)), 0) == [Send(AbortAck(1, E1, 0, 0, 1, -1))]
    assert who.receive(abort(ranks=(1, 0)), 0) == [Send(AbortAck(1, E1, 0, 0, 1, -1))]
    assert who.save(0) == before


def test_r11_the_senders_own_abort_is_no_proof_of_quiescence() -> None:
    who = wait_in("granted")
    who.receive(abort(), 1)
    who.tick(1)
    assert who.ledger.free_count == 0 and who.tombstones[1, E1].held


def test_r3_an_abort_is_sent_again_until_it_is_acknowledged() -> None:
    who = wait_in("granted", 0)
    fail(who, 100)
    message = Abort(1, E1, 0, 0, "ABORTED")
    assert who.next_timer_s() == 107
    assert who.tick(106) == []
    assert who.tick(108) == [Send(message, resend=True)]
    assert who.next_timer_s() == 115
    assert who.tick(115) == [Send(message, resend=True)]
    who.receive(abort_ack(), 116)
    assert who.next_timer_s() == 160
    assert who.tick(159.5) == []


def test_r5_the_acknowledgement_is_the_proof() -> None:
    who = wait_in("granted")
    fail(who)
    assert who.receive(abort_ack(executed_seq=0), 1) == [Recycle((0, 1), True)]
    tombstone = who.tombstones[1, E1]
    assert (tombstone.held, tombstone.abort, tombstone.acknowledged, tombstone.executed_seq) == ((), None, True, 0)
    assert who.ledger.free_count == 2
    before = who.save(1)
    assert who.receive(abort_ack(executed_seq=5), 1) == []
    assert who.save(1) == before and tombstone.executed_seq == 0


def test_r5_the_acknowledgement_of_another_process_proves_nothing() -> None:
    """The restarted sender knows of no write; the one before it may still be writing."""
    who = wait_in("granted")
    fail(who)
    assert who.receive(abort_ack(boot_id=SENDER_BOOT + 1), 1) == []
    tombstone = who.tombstones[1, E1]
    assert tombstone.held and not tombstone.acknowledged
    assert tombstone.abort is None, "who is there now has been told; it need not be told again"
    assert who.receive(abort_ack(boot_id=SENDER_BOOT), 2) == [Recycle((0, 1), True)], "late, and still its word"


def test_an_acknowledgement_for_a_room_that_was_never_registered() -> None:
    who = receiver()
    who.submit(1, 0)
    fail(who)
    assert who.receive(abort_ack(boot_id=77), 1) == []
    assert who.tombstones[1, E1].acknowledged and who.tombstones[1, E1].abort is None


def test_an_acknowledgement_that_nobody_asked_for_is_let_through() -> None:
    who = wait_in("granted")
    before = who.save(0)
    assert who.receive(abort_ack(), 0) == []
    assert who.receive(abort_ack(room=8), 0) == []
    assert who.receive(abort_ack(epoch=E2), 0) == []
    assert who.save(0) == before


def test_r5_the_senders_word_is_not_enough_where_completions_are_required() -> None:
    who = receiver(2, landed_required=True, two_sided=True)
    offered(who, 20)
    fail(who)
    assert who.receive(abort_ack(executed_seq=0), 1) == []
    assert who.tombstones[1, E1].held and who.tombstones[1, E1].acknowledged
    assert who.landed(1, E2, 0, 2) == []
    assert who.landed(1, E1, 0, 2) == [Recycle((0, 1), True)]
    assert who.ledger.free_count == 2


def test_r5_a_completion_before_the_acknowledgement_waits_for_it() -> None:
    who = receiver(2, landed_required=True, two_sided=True)
    offered(who, 20)
    fail(who)
    assert who.landed(1, E1, 0, 1) == []
    assert who.tombstones[1, E1].landed_seq == 0
    assert who.receive(abort_ack(executed_seq=0), 2) == [Recycle((0, 1), True)]


def test_r5_a_completion_that_came_while_it_lived_is_remembered() -> None:
    who = receiver(2, landed_required=True, two_sided=True)
    offered(who, 20)
    who.landed(1, E1, 0, 0)
    fail(who)
    assert who.receive(abort_ack(executed_seq=0), 2) == [Recycle((0, 1), True)]


def test_r5_a_write_that_was_never_begun_is_not_waited_for() -> None:
    who = receiver(2, landed_required=True, two_sided=True)
    offered(who, 20)
    fail(who)
    assert who.receive(abort_ack(executed_seq=-1), 2) == [Recycle((0, 1), True)]


def test_r5_a_status_that_was_seen_outweighs_an_acknowledgement_that_knows_of_no_write() -> None:
    """A sender that has forgotten the epoch acknowledges with -1: it does not know, and the STATUS did."""
    who = receiver(2, landed_required=True, two_sided=True)
    offered(who, 20)
    who.receive(status(0, 8), 0)
    fail(who)
    assert who.tombstones[1, E1].executed_seq == 0
    assert who.receive(abort_ack(executed_seq=-1), 1) == []
    assert who.tombstones[1, E1].acknowledged and who.tombstones[1, E1].executed_seq == 0
    assert who.landed(1, E1, 0, 2) == [Recycle((0, 1), True)]


def test_r5_earlier_completions_do_not_stand_for_a_later_one() -> None:
    who = receiver(2, landed_required=True, two_sided=True)
    offered(who, 20)
    who.landed(1, E1, 0, 0)
    land(who)
    who.tick(0)
    fail(who)
    assert who.tombstones[1, E1].held_seq == 1
    assert who.receive(abort_ack(executed_seq=1), 1) == []
    assert who.landed(1, E1, 0, 1) == []
    assert who.landed(1, E1, 1, 1) == [Recycle((0, 1), True)]


def test_a_rule_may_settle_a_grant_at_once() -> None:
    def at_once(ledger: BlockLedger, owner: Owner, refs: tuple[BlockRef, ...]) -> bool:
        ledger.unreached(owner, refs)
        return False

    who = receiver(2, rules=replace(PROTOCOL, settle=at_once))
    offered(who, 20)
    assert Recycle((0, 1), True) in fail(who)
    assert not who.tombstones[1, E1].held and who.ledger.free_count == 2


# --- R8: the peer's boot_id ---------------------------------------------------------------------------------


def beat(boot_id: int) -> Heartbeat:
    return Heartbeat(boot_id, 0, 0)


@pytest.mark.parametrize(
    "news",
    [
        beat(SENDER_BOOT + 1),
        register_ack(room=9, boot_id=SENDER_BOOT + 1),
        nack(NackCode.NOT_READY, "REGISTER", room=9, boot_id=SENDER_BOOT + 1),
        abort_ack(room=9, boot_id=SENDER_BOOT + 1),
    ],
)
def test_r8_a_new_boot_id_fails_who_still_needs_the_peer(news: Any) -> None:
    who = wait_in("granted")
    assert who.receive(news, 1) == []
    assert who.peer_boot_id == SENDER_BOOT + 1
    assert who.rooms[1].failure == Reason.PEER_RESTARTED


def test_r8_it_fails_no_others() -> None:
    who = receiver(8)
    offered(who, 20)
    land(who, copy=False)
    who.submit(2, 0)
    who.receive(beat(SENDER_BOOT + 1), 1)
    assert [who.rooms[room].failure for room in (1, 2)] == [Reason.NONE, Reason.NONE]
    who.copied(1, E1, 0, 0, 1)
    assert events(who.tick(1)) == ["complete"]


def test_r8_who_was_not_offered_yet_needs_the_peer() -> None:
    who = wait_in("unoffered")
    who.receive(beat(SENDER_BOOT + 1), 1)
    assert who.rooms[1].failure == Reason.PEER_RESTARTED


def test_r8_the_same_boot_id_changes_nothing() -> None:
    who = wait_in("granted")
    before = who.save(0)
    assert who.receive(beat(SENDER_BOOT), 0) == []
    assert who.receive(beat(SENDER_BOOT - 1), 0) == []
    assert who.save(0) == before


def test_r8_messages_of_an_older_process_do_not_count() -> None:
    who = receiver(2)
    offered(who, 20)
    who.submit(2, 0)
    epoch = who.rooms[2].epoch
    who.receive(register_ack(2, epoch, boot_id=SENDER_BOOT - 1), 0)
    assert not who.rooms[2].registered
    who.receive(nack(NackCode.CANCELLED, "REGISTER", -1, 2, epoch, boot_id=SENDER_BOOT - 1), 0)
    assert who.rooms[2].failure == Reason.NONE
    who.receive(nack(NackCode.INTERNAL, "GRANT", 0, boot_id=SENDER_BOOT - 1), 0)
    assert who.rooms[1].failure == Reason.NONE


def test_r8_its_word_on_its_own_writes_counts_all_the_same() -> None:
    who = wait_in("granted")
    fail(who)
    who.receive(beat(SENDER_BOOT + 5), 1)
    assert who.receive(abort_ack(boot_id=SENDER_BOOT), 1) == [Recycle((0, 1), True)]


def test_without_fencing_every_process_counts() -> None:
    who = receiver(2, rules=replace(PROTOCOL, boot_change_fences=lambda: False))
    offered(who, 20)
    who.receive(beat(SENDER_BOOT + 1), 1)
    assert (who.peer_boot_id, who.rooms[1].failure) == (0, Reason.NONE)
    who.quiesced(SENDER_BOOT)
    assert who.rooms[1].failure == Reason.NONE
    who.receive(nack(NackCode.INTERNAL, "GRANT", 0, boot_id=1), 0)
    assert who.rooms[1].failure == Reason.INTERNAL


# --- the proof of the transport ------------------------------------------------------------------------------


def test_r5_a_process_that_is_gone_writes_no_more() -> None:
    who = wait_in("granted")
    fail(who)
    assert who.quiesced(SENDER_BOOT + 1) == []
    assert who.quiesced(SENDER_BOOT) == [Recycle((0, 1), True)]
    assert who.ledger.free_count == 2 and not who.tombstones[1, E1].held
    assert who.quiesced(SENDER_BOOT) == []


def test_r5_the_proof_may_come_before_the_failure() -> None:
    """It comes once: what is still live then must not wait for another in quarantine."""
    who = wait_in("granted")
    assert who.quiesced(SENDER_BOOT) == []
    room = who.rooms[1]
    assert room.peer_gone and room.failure == Reason.PEER_GONE
    effects = who.tick(1)
    assert Recycle((0, 1), True) in effects
    assert [e.reason for e in of_type(effects, Ended)] == ["PEER_GONE"]
    assert who.ledger.free_count == 2


def test_r5_the_proof_is_of_that_process_only() -> None:
    who = wait_in("granted")
    who.quiesced(SENDER_BOOT + 1)
    assert not who.rooms[1].peer_gone and who.rooms[1].failure == Reason.NONE
    fail(who)
    assert who.ledger.free_count == 0


def test_who_needs_the_peer_no_more_goes_on_without_it() -> None:
    who = receiver(8)
    offered(who, 20)
    land(who, copy=False)
    who.submit(2, 0)
    who.quiesced(SENDER_BOOT)
    assert (who.rooms[1].failure, who.rooms[1].peer_gone) == (Reason.NONE, True)
    assert (who.rooms[2].failure, who.rooms[2].peer_gone) == (Reason.NONE, False)


def test_a_process_that_is_gone_is_listened_to_no_more() -> None:
    """A late REGISTER_ACK of it would bind a request to a process that can never prove anything again."""
    who = receiver()
    who.submit(1, 0)
    who.quiesced(SENDER_BOOT)
    who.quiesced(SENDER_BOOT - 3)
    assert who.gone_boot_id == SENDER_BOOT
    who.receive(register_ack(), 1)
    assert not who.rooms[1].registered
    who.receive(register_ack(boot_id=SENDER_BOOT + 1), 2)
    assert who.rooms[1].registered


def test_proofs_release_in_the_order_of_rooms() -> None:
    who = receiver(4, grant_blocks_max=2)
    queued(who, {5: 8, 3: 8})
    for room in (5, 3):
        fail(who, 0, room)
    assert who.quiesced(SENDER_BOOT) == [Recycle((2, 3), True), Recycle((0, 1), True)]
    assert who.ledger.free_list == (2, 3, 0, 1)


def test_r11_a_refusal_upon_a_tombstone_is_reported_and_no_more() -> None:
    def to_another(ledger: BlockLedger, owner: Owner, refs: tuple[BlockRef, ...]) -> bool:
        ledger.unreached(owner, refs)
        return True

    for prove in ("ack", "gone", "landed"):
        two_sided = prove == "landed"
        rules = replace(PROTOCOL, settle=to_another)
        who = receiver(2, rules=rules, landed_required=two_sided, two_sided=two_sided)
        offered(who, 20)
        fail(who)
        if prove == "ack":
            (refused,) = who.receive(abort_ack(), 1)
        elif prove == "gone":
            (refused,) = who.quiesced(SENDER_BOOT)
        else:
            who.receive(abort_ack(executed_seq=0), 1)
            (refused,) = who.landed(1, E1, 0, 1)
        assert isinstance(refused, Refused)
        assert (refused.receiver_rank, refused.room, refused.epoch, refused.property) == (0, 1, E1, "I3")
        assert refused.text.startswith("cannot release block 0 generation 0 for room 1")


# --- R7: a rank is lost --------------------------------------------------------------------------------------


def test_r7_a_lost_rank_fails_every_room_and_fences_the_boot_id() -> None:
    who = receiver(4, grant_blocks_max=2)
    queued(who, {1: 20, 2: 20})
    who.rank_lost(5)
    assert (who.boot_id, who.counter) == (5, 0)
    assert [room.failure for room in who.rooms.values()] == [Reason.RANK_LOST] * 2
    effects = who.tick(1)
    assert [(e.room, e.reason) for e in of_type(effects, Ended)] == [(1, "RANK_LOST"), (2, "RANK_LOST")]
    assert [m.epoch for m in sent(effects)] == [E1, E2]  # type: ignore[union-attr]
    who.submit(1, 2)
    assert who.rooms[1].epoch == Epoch(5, 1)
    assert who.receive(abort(8), 2) == [Send(AbortAck(8, E1, 0, 0, 5, -1))]


@pytest.mark.parametrize("boot_id", [1, 0])
def test_r7_the_new_boot_id_is_newer(boot_id: int) -> None:
    who = wait_in("granted")
    with pytest.raises(LocalError, match=rf"^boot_id={boot_id}: expected more than the present 1$"):
        who.rank_lost(boot_id)
    assert who.boot_id == 1 and who.rooms[1].failure == Reason.NONE


def test_r7_a_failure_that_was_seen_before_is_kept() -> None:
    who = wait_in("granted")
    who.abort(1)
    who.rank_lost(2)
    assert who.rooms[1].failure == Reason.ABORTED


# --- whether anything is still awaited -----------------------------------------------------------------------


def test_a_receiver_rests_when_its_tombstones_await_nothing() -> None:
    who = wait_in("landed")
    assert who.resting
    fail(who)
    assert not who.resting
    who.receive(abort_ack(), 1)
    assert not who.resting, "the copy has not ended"
    who.copied(1, E1, 0, 0, 1)
    assert who.resting
