"""The receiver of one rank up to the end of its first grant: submit, REGISTER, OFFER, GRANT, STATUS, copy.

Each test writes out the effects it expects, all of them, in order. Block size is 4 tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fsm.allocators import make_allocator
from fsm.blocks import BlockLedger
from fsm.effects import CopyOut, Ended, Moved, Recycle, Send, Watermark
from fsm.errors import LocalError
from fsm.kernel import UNKNOWN
from fsm.lifecycle import RECEIVER_FIVE_STATE_TABLE
from fsm.messages import BLOCKS_MAX, BlockRef, Epoch, Grant, Heartbeat, Nack, NackCode, Register
from fsm.reasons import Reason
from fsm.receiver import Receiver, no_headers
from fsm.receiver_facts import ReceiverConfig
from fsm.receiver_room import Chunk, FiveStateReceiverRoom, ReceiverRoom
from fsm.rules import PROTOCOL
from fsm.states import State
from tests.fsm.kit import (
    E1,
    E2,
    LAYOUT,
    PEER_QUEUE,
    SENDER_BOOT,
    TIMING,
    blocks_of,
    events,
    grant,
    granted,
    land,
    nack,
    offer,
    offered,
    receiver,
    register,
    register_ack,
    registered,
    sent,
    status,
)

FIVE = replace(PROTOCOL, table=RECEIVER_FIVE_STATE_TABLE)


def room_of(who: Receiver, room: int = 1) -> ReceiverRoom:
    return who.rooms[room]


# --- making one -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("boot_id", [0, -1])
def test_boot_id_0_stands_for_nobody(boot_id: int) -> None:
    with pytest.raises(LocalError, match=rf"^boot_id={boot_id}: expected 1 or more; 0 stands for no process$"):
        receiver(boot_id=boot_id)
    assert receiver(boot_id=1).boot_id == 1


@pytest.mark.parametrize("name", ["rank", "sender_rank", "grant_blocks_max", "result_tokens"])
def test_a_negative_size_is_refused(name: str) -> None:
    with pytest.raises(LocalError, match=rf"^{name}=-1: expected 0 or more$"):
        ReceiverConfig(LAYOUT, **{name: -1})
    assert getattr(ReceiverConfig(LAYOUT, **{name: 0}), name) == 0


def test_a_limit_of_no_tokens_is_refused() -> None:
    with pytest.raises(LocalError, match=r"^total_tokens_max=0: expected at least 1 token$"):
        ReceiverConfig(LAYOUT, total_tokens_max=0)
    assert ReceiverConfig(LAYOUT, total_tokens_max=1).total_tokens_max == 1


def test_a_new_receiver_knows_nothing() -> None:
    who = receiver(result_tokens=50)
    assert (who.rooms, who.tombstones, who.waiting, who.counter) == ({}, {}, (), 0)
    assert (who.peer_boot_id, who.gone_boot_id, who.free_result_tokens) == (0, 0, 50)
    assert who.block_kind is None
    assert who.tick(0) == []
    assert who.next_timer_s() is None
    assert receiver().free_result_tokens == 1 << 62


def test_the_rules_choose_the_table() -> None:
    assert receiver().room_class is ReceiverRoom
    assert receiver(rules=FIVE).room_class is FiveStateReceiverRoom


def test_a_room_class_on_another_table_than_the_rules_is_refused() -> None:
    with pytest.raises(LocalError) as caught:
        receiver(room_class=FiveStateReceiverRoom)
    assert str(caught.value) == (
        "FiveStateReceiverRoom lives by Table('receiver (historical, five states)', 5 states, 6 events), "
        "the rules by Table('receiver', 6 states, 6 events)"
    )
    assert receiver(rules=FIVE, room_class=FiveStateReceiverRoom).room_class is FiveStateReceiverRoom


def test_the_machine_drives_it_by_default() -> None:
    who = Receiver(ReceiverConfig(LAYOUT), BlockLedger(1, make_allocator("fifo")), boot_id=1)
    assert who._fire is ReceiverRoom.fire
    assert receiver(flat=True)._fire is ReceiverRoom.fire_flat


def test_nobody_reads_headers_by_default() -> None:
    with pytest.raises(LocalError, match=r"^block 3: no header reader was given; only wrong rules read"):
        no_headers(3)


# --- submit and REGISTER --------------------------------------------------------------------------------


def test_submit_sends_register() -> None:
    who = receiver(descriptors=b"here", rank=2, sender_rank=1)
    assert who.submit(7, 5) == [Send(Register(7, E1, 1, 2, LAYOUT, b"here", 100))]
    room = room_of(who, 7)
    assert (room.state, room.epoch, room.room) == (State.BOOTSTRAPPING, E1, 7)
    assert (room.total_tokens, room.flags, room.registered) == (UNKNOWN, UNKNOWN, False)
    assert room.history == ()


def test_every_submit_is_a_new_epoch() -> None:
    who = receiver(boot_id=4)
    who.submit(7, 0)
    who.submit(3, 0)
    assert [room.epoch for room in who.rooms.values()] == [Epoch(4, 1), Epoch(4, 2)]


def test_a_room_that_is_in_use_is_refused_and_nothing_changes() -> None:
    who = receiver()
    who.submit(7, 0)
    before = who.save(0)
    with pytest.raises(LocalError, match=r"^room 7 is in use here; wait for its end or use another$"):
        who.submit(7, 0)
    assert who.save(0) == before


@pytest.mark.parametrize("room", [-1, 1 << 63])
def test_a_room_number_that_no_message_can_carry_is_refused(room: int) -> None:
    who = receiver()
    with pytest.raises(LocalError, match=rf"^room {room}: expected 0 to 2\*\*63 - 1$"):
        who.submit(room, 0)
    assert who.rooms == {} and who.counter == 0
    assert who.submit(0, 0) and who.submit((1 << 63) - 1, 0)


@pytest.mark.parametrize("early", [-1, 101])
def test_an_early_grant_out_of_range_is_refused(early: int) -> None:
    who = receiver(total_tokens_max=100)
    with pytest.raises(LocalError, match=rf"^early_tokens={early}: expected 0 to 100$"):
        who.submit(1, 0, early_tokens=early)
    assert who.rooms == {} and who.counter == 0
    assert who.submit(1, 0, early_tokens=100)


def test_registration_is_acted_on_in_the_tick() -> None:
    who = receiver()
    who.submit(1, 0)
    assert who.tick(1) == []
    assert who.receive(register_ack(), 2) == []
    room = room_of(who)
    assert (room.registered, room.pending, room.state) == (True, None, State.BOOTSTRAPPING)
    assert (room.peer_boot_id, room.peer_queue_s, room.peer_gone) == (SENDER_BOOT, PEER_QUEUE, False)
    assert who.peer_boot_id == SENDER_BOOT
    moved = Moved(0, 1, E1, "registered", State.BOOTSTRAPPING, State.WAITING)
    assert who.tick(3) == [moved]
    assert who.tick(4) == []


def test_an_incompatible_layout_ends_the_request() -> None:
    who = receiver()
    who.submit(1, 0)
    assert who.receive(register_ack(compatible=False), 1) == []
    assert room_of(who).failure == Reason.INCOMPATIBLE and not room_of(who).registered
    effects = who.tick(1)
    assert Ended(0, 1, E1, State.FAILED, "INCOMPATIBLE") in effects


def test_a_second_register_ack_changes_nothing() -> None:
    who = receiver()
    registered(who)
    before = who.save(5)
    assert who.receive(register_ack(queue_s=1), 5) == []
    assert who.receive(register_ack(compatible=False), 5) == []
    assert who.save(5) == before


@pytest.mark.parametrize("code", [NackCode.UNKNOWN_ROOM, NackCode.NOT_READY])
def test_r9_before_the_register_ack_these_are_tried_again(code: NackCode) -> None:
    who = receiver()
    (first,) = who.submit(1, 0)
    assert who.receive(nack(code, "REGISTER"), 1) == []
    assert room_of(who).failure == Reason.NONE
    assert who.tick(6) == []
    assert who.tick(7) == [Send(first.message, resend=True)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "code",
    [
        NackCode.STALE_EPOCH,
        NackCode.INCOMPATIBLE,
        NackCode.NO_CAPACITY,
        NackCode.CANCELLED,
        NackCode.INTERNAL,
    ],
)
def test_r9_before_the_register_ack_these_are_final(code: NackCode) -> None:
    who = receiver()
    who.submit(1, 0)
    assert who.receive(nack(code, "REGISTER"), 1) == []
    assert room_of(who).failure.name == code.name


@pytest.mark.parametrize("code", list(NackCode))
def test_a_nack_of_register_that_comes_after_the_ack_is_late_news(code: NackCode) -> None:
    """A duplicate of an earlier refusal must not end what was accepted since (I8)."""
    who = receiver()
    registered(who)
    before = who.save(1)
    assert who.receive(nack(code, "REGISTER"), 1) == []
    assert who.save(1) == before


# --- OFFER ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mrope", "deepstack", "flags"), [(False, False, 0), (True, False, 1), (False, True, 2), (True, True, 3)]
)
def test_r4_an_offer_tells_the_total_and_the_flags(mrope: bool, deepstack: bool, flags: int) -> None:
    who = receiver()
    registered(who)
    assert who.receive(offer(20, mrope=mrope, deepstack=deepstack), 4) == []
    room = room_of(who)
    assert (room.total_tokens, room.flags, room.progress_at, room.failure) == (20, flags, 4, 0)


def test_an_offer_may_overtake_the_register_ack() -> None:
    who = receiver()
    who.submit(1, 0)
    assert who.receive(offer(20), 1) == []
    assert who.tick(1) == []
    who.receive(register_ack(), 2)
    assert events(who.tick(2)) == ["registered", "grant"]


def test_a_second_offer_changes_nothing() -> None:
    who = receiver()
    registered(who)
    who.receive(offer(20), 1)
    before = who.save(9)
    assert who.receive(offer(20), 9) == []
    assert who.save(9) == before


@pytest.mark.parametrize("other", [offer(21), offer(20, mrope=False), offer(20, deepstack=True)])
def test_r4_an_offer_that_says_otherwise_ends_the_request(other: Any) -> None:
    who = receiver()
    registered(who)
    who.receive(offer(20), 1)
    assert who.receive(other, 2) == []
    assert room_of(who).failure == Reason.MISMATCH
    assert (room_of(who).total_tokens, room_of(who).flags) == (20, 1)


@pytest.mark.parametrize("total", [0, 101])
def test_an_offer_out_of_range_is_refused_with_no_capacity(total: int) -> None:
    who = receiver(total_tokens_max=100)
    registered(who)
    refusal = Send(Nack(1, E1, 0, 0, NackCode.NO_CAPACITY, "OFFER", -1, 1, ""))
    assert who.receive(offer(total), 1) == [refusal]
    room = room_of(who)
    assert (room.failure, room.total_tokens) == (Reason.NO_CAPACITY, UNKNOWN)
    assert who.receive(offer(total), 1) == [refusal]


def test_one_token_of_result_memory_is_a_limit() -> None:
    who = receiver(result_tokens=1)
    registered(who)
    assert [type(m) for m in sent(who.receive(offer(2), 1))] == [Nack]


@pytest.mark.parametrize("total", [1, 100])
def test_an_offer_within_the_limits_is_taken(total: int) -> None:
    who = receiver(total_tokens_max=100, result_tokens=100)
    registered(who)
    assert who.receive(offer(total), 1) == []
    assert room_of(who).total_tokens == total


def test_an_offer_larger_than_all_result_memory_is_refused() -> None:
    who = receiver(result_tokens=19)
    registered(who)
    assert [type(m) for m in sent(who.receive(offer(20), 1))] == [Nack]
    assert room_of(who).failure == Reason.NO_CAPACITY


# --- grant 0 --------------------------------------------------------------------------------------------


def test_grant_0_is_for_the_whole_if_there_are_blocks() -> None:
    who = receiver(8, rank=2, sender_rank=1)
    who.submit(1, 0)
    ranks = (1, 2)
    who.receive(register_ack(ranks=ranks), 0)
    who.tick(0)
    who.receive(offer(20, ranks=ranks), 3)
    refs = tuple(BlockRef(block, 0) for block in range(5))
    assert who.tick(4) == [
        Recycle((0, 1, 2, 3, 4), True),
        Moved(2, 1, E1, "grant", State.WAITING, State.WAITING),
        Send(Grant(1, E1, 1, 2, 0, 0, 20, refs, SENDER_BOOT)),
    ]
    room = room_of(who)
    assert (room.next_seq, room.last_resume_at, room.resumes, room.progress_at) == (1, 0, 0, 4)
    assert room.pending == room.grant == Grant(1, E1, 1, 2, 0, 0, 20, refs, SENDER_BOOT)
    assert room.total_agreed


def test_grant_0_takes_what_there_is() -> None:
    who = receiver(2)
    message = granted(offered(who, 20))
    assert (message.start, message.capacity, blocks_of(message)) == (0, 8, (0, 1))


def test_the_last_block_need_not_be_full() -> None:
    message = granted(offered(receiver(8), 9))
    assert (message.capacity, blocks_of(message)) == (9, (0, 1, 2))


def test_grant_blocks_max_bounds_a_grant() -> None:
    message = granted(offered(receiver(8, grant_blocks_max=3), 20))
    assert (message.capacity, blocks_of(message)) == (12, (0, 1, 2))


def test_a_grant_never_names_more_blocks_than_a_message_can_carry() -> None:
    assert receiver(grant_blocks_max=BLOCKS_MAX + 1)._grant_blocks_max == BLOCKS_MAX
    assert receiver(grant_blocks_max=0)._grant_blocks_max == BLOCKS_MAX
    assert receiver(grant_blocks_max=BLOCKS_MAX - 1)._grant_blocks_max == BLOCKS_MAX - 1


def test_no_grant_before_the_offer() -> None:
    who = receiver()
    registered(who)
    assert who.tick(1) == []
    assert who.ledger.free_count == 8


def test_who_gets_no_blocks_waits() -> None:
    who = receiver(2)
    offered(who, 20)
    assert offered(who, 20, room=2) == []
    assert who.waiting == ()


def test_r3_a_grant_is_sent_again_until_it_is_answered() -> None:
    who = receiver()
    message = granted(offered(who, 20, 10))
    assert who.next_timer_s() == 17
    assert who.tick(16.5) == []
    assert who.tick(17) == [Send(message, resend=True)]
    assert who.tick(23) == []
    assert who.tick(25) == [Send(message, resend=True)]
    assert who.next_timer_s() == 32


# --- STATUS ---------------------------------------------------------------------------------------------


def test_a_status_closes_its_grant() -> None:
    who = receiver(2)
    offered(who, 20)
    assert who.receive(status(0, 8), 5) == [Watermark(0, 1, E1, 8)]
    room = room_of(who)
    assert (room.grant, room.closing, room.pending) == (None, None, None)
    assert room.chunks == (Chunk(0, 0, 8, (BlockRef(0, 0), BlockRef(1, 0)), False),)
    assert (room.word_tokens, room.landed_tokens, room.handled_tokens) == (8, 8, 0)
    assert room.progress_at == 5


def test_a_chunk_is_taken_and_copied_in_the_tick() -> None:
    who = receiver(2)
    refs = granted(offered(who, 20)).blocks
    who.receive(status(0, 8), 5)
    assert who.tick(6) == [
        Moved(0, 1, E1, "landed", State.WAITING, State.TRANSFERRING),
        CopyOut(1, E1, 0, 0, 8, refs, True),
    ]
    room = room_of(who)
    assert (room.handled_tokens, room.delivered_tokens, room.progress_at) == (8, 0, 6)
    assert who.copied(1, E1, 0, 77, 7) == [Recycle((0, 1), True)]
    assert (room.delivered_tokens, room.position_delta, room.chunks) == (8, 77, ())
    assert room.progress_at == 7
    assert who.ledger.free_count == 2


def test_the_whole_in_one_grant_ends_without_any_resume() -> None:
    who = receiver(8)
    refs = granted(offered(who, 20)).blocks
    who.receive(status(0, 20), 1)
    assert who.tick(2) == [CopyOut(1, E1, 0, 0, 20, refs, True, whole=True)]
    assert room_of(who).state == State.WAITING
    assert who.copied(1, E1, 0, 5, 3) == [Recycle((0, 1, 2, 3, 4), True)]
    assert who.tick(4) == [
        Moved(0, 1, E1, "complete", State.WAITING, State.SUCCESS),
        Ended(0, 1, E1, State.SUCCESS, "NONE"),
    ]
    assert who.rooms == {} and who.ledger.free_count == 8


def test_the_allocator_forgets_a_room_that_is_over() -> None:
    who = receiver(8, allocator="same-again")
    offered(who, 20)
    assert who.ledger.allocator.save() != ()
    land(who)
    who.tick(0)
    assert who.ledger.allocator.save() == ()


def test_copies_that_nobody_asked_for_are_let_through() -> None:
    who = receiver(2)
    offered(who, 20)
    who.receive(status(0, 8), 1)
    assert who.copied(1, E1, 0, 77, 1) == []  # not begun yet
    who.tick(1)
    before = who.save(1)
    assert who.copied(1, E1, 1, 77, 1) == []
    assert who.copied(1, E2, 0, 77, 1) == []
    assert who.copied(9, E1, 0, 77, 1) == []
    assert who.save(1) == before


def test_a_second_status_changes_nothing() -> None:
    who = receiver(2)
    offered(who, 20)
    who.receive(status(0, 8), 1)
    before = who.save(2)
    assert who.receive(status(0, 8), 2) == []
    assert who.receive(status(0, 20), 2) == []
    assert who.save(2) == before
    land_and_resume(who)
    before = who.save(3)
    assert who.receive(status(0, 8), 3) == []
    assert who.save(3) == before


def land_and_resume(who: Receiver) -> None:
    """The chunk that has landed is taken and copied, and the next grant goes out."""
    for effect in who.tick(2):
        if isinstance(effect, CopyOut):
            who.copied(1, E1, effect.seq, 0, 2)
    granted(who.tick(2))


@pytest.mark.parametrize(
    "wrong", [status(0, 7), status(0, 9), status(0, 20), status(1, 8), status(0, 0), status(2, 20)]
)
def test_r3_a_status_that_does_not_fit_its_grant_ends_the_request(wrong: Any) -> None:
    who = receiver(2)
    offered(who, 20)
    assert who.receive(wrong, 1) == []
    room = room_of(who)
    assert room.failure == Reason.PROTOCOL
    assert room.grant is not None and room.word_tokens == 0 and room.pending is room.grant


@pytest.mark.parametrize("wrong", [status(0, 8, 21), status(0, 8, mrope=False), status(0, 8, deepstack=True)])
def test_r4_a_status_that_says_otherwise_ends_the_request(wrong: Any) -> None:
    who = receiver(2)
    offered(who, 20)
    assert who.receive(wrong, 1) == []
    assert room_of(who).failure == Reason.MISMATCH and room_of(who).grant is not None


def test_a_status_is_not_taken_any_more_once_the_request_is_to_fail() -> None:
    who = receiver(2)
    offered(who, 20)
    who.abort(1)
    assert who.receive(status(0, 8), 1) == []
    assert room_of(who).grant is not None and room_of(who).failure == Reason.ABORTED


def test_a_status_without_a_grant_is_let_through() -> None:
    who = receiver()
    registered(who)
    before = who.save(1)
    assert who.receive(status(0, 8), 1) == []
    assert who.save(1) == before


@pytest.mark.parametrize("code", list(NackCode))
def test_a_nack_of_the_grant_that_is_out_is_final(code: NackCode) -> None:
    who = receiver(2)
    offered(who, 20)
    assert who.receive(nack(code, "GRANT", 0), 1) == []
    assert room_of(who).failure.name == code.name


@pytest.mark.parametrize("seq", [-1, 1])
def test_a_nack_of_another_grant_is_let_through(seq: int) -> None:
    who = receiver(2)
    offered(who, 20)
    before = who.save(1)
    assert who.receive(nack(NackCode.INTERNAL, "GRANT", seq), 1) == []
    assert who.receive(nack(NackCode.INTERNAL, "STATUS", 0), 1) == []
    assert who.save(1) == before


def test_a_nack_of_a_grant_that_is_closed_is_let_through() -> None:
    who = receiver(2)
    offered(who, 20)
    who.receive(status(0, 8), 1)
    before = who.save(1)
    assert who.receive(nack(NackCode.INTERNAL, "GRANT", 0), 1) == []
    assert who.save(1) == before


# --- to whom, from whom ---------------------------------------------------------------------------------


def test_a_message_of_the_wrong_direction_is_let_through() -> None:
    who = receiver()
    registered(who)
    before = who.save(1)
    assert who.receive(register(), 1) == []
    assert who.receive(grant(), 1) == []
    assert who.receive(register(2), 1) == []
    assert who.save(1) == before


@pytest.mark.parametrize("ranks", [(1, 0), (0, 1)])
def test_a_message_between_other_ranks_does_nothing_here(ranks: tuple[int, int]) -> None:
    who = receiver(2)
    offered(who, 20)
    before = who.save(1)
    assert who.receive(status(0, 8, ranks=ranks), 1) == []
    assert who.receive(nack(NackCode.INTERNAL, "GRANT", 0, ranks=ranks), 1) == []
    assert who.receive(register_ack(boot_id=99, ranks=ranks), 1) == []
    assert who.receive(Heartbeat(99, *ranks), 1) == []
    assert sent(who.receive(offer(20, ranks=ranks), 1)) == [Nack(1, E1, 0, 0, NackCode.STALE_EPOCH, "OFFER", -1, 1, "")]
    assert who.save(1) == before


def test_heartbeats() -> None:
    who = receiver(timing=replace(TIMING, heartbeat_s=5), rank=1, sender_rank=3)
    beat = Send(Heartbeat(1, 3, 1))
    assert who.next_timer_s() == 0
    assert who.tick(0) == [beat]
    assert who.next_timer_s() == 5
    assert who.tick(4) == []
    assert who.tick(5) == [beat]
    assert who.next_timer_s() == 10


def test_what_lands_is_copied_before_the_next_grant_of_the_same_request() -> None:
    who = receiver(2)
    offered(who, 20)
    land(who)
    message = granted(who.tick(1))
    assert (message.seq, message.start, message.capacity) == (1, 8, 8)
    assert message.blocks == (BlockRef(0, 1), BlockRef(1, 1))
