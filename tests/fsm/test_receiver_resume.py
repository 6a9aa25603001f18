"""The receiver of one rank after its first chunk: resumes, partial and early grants, who goes before whom, memory.

Block size is 4 tokens.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.allocators import make_allocator
from fsm.blocks import BlockLedger
from fsm.effects import CopyOut, Ended, Moved, Recycle, Send, Watermark
from fsm.messages import BlockRef, Grant
from fsm.receiver import Receiver
from fsm.receiver_facts import ReceiverConfig
from fsm.states import BlockState, State
from tests.fsm.kit import (
    BOOT,
    E1,
    LAYOUT,
    SENDER_BOOT,
    TIMING,
    Scripted,
    blocks_of,
    events,
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
    registered,
    sent,
    status,
    to_the_end,
)

# --- R2 -------------------------------------------------------------------------------------------------


def test_r2_one_resume_for_one_watermark() -> None:
    who = receiver(2)
    offered(who, 20)
    land(who)
    effects = who.tick(3)
    refs = (BlockRef(0, 1), BlockRef(1, 1))
    assert effects == [
        Recycle((0, 1), True),
        Moved(0, 1, E1, "resume", State.TRANSFERRING, State.RESUMING),
        Send(Grant(1, E1, 0, 0, 1, 8, 8, refs, SENDER_BOOT)),
    ]
    room = who.rooms[1]
    assert (room.last_resume_at, room.resumes, room.next_seq, room.progress_at) == (8, 1, 2, 3)
    for now in (4, 5, 6):
        assert who.tick(now) == []


def test_r2_the_same_blocks_again_make_no_difference() -> None:
    """Block lists say nothing about progress (the seeds' scenarios S1 and S5)."""
    who = receiver(2, allocator="same-again")
    offered(who, 24)
    assert to_the_end(who) == [(0, 8), (8, 8), (16, 8)]
    assert who.tombstones[1, E1].state == State.SUCCESS


def test_r2_other_blocks_make_no_difference() -> None:
    who = receiver(4, allocator="disjoint", grant_blocks_max=2)
    offered(who, 24)
    assert to_the_end(who) == [(0, 8), (8, 8), (16, 8)]
    assert who.tombstones[1, E1].state == State.SUCCESS


def test_the_last_chunk_completes_from_resume_requested() -> None:
    who = receiver(2)
    offered(who, 12)
    land(who)
    refs = granted(who.tick(0)).blocks
    assert refs == (BlockRef(0, 1),)
    assert who.receive(status(1, 12, 12), 0) == [Watermark(0, 1, E1, 12)]
    assert events(who.tick(0)) == []
    assert who.rooms[1].state == State.RESUMING
    assert who.copied(1, E1, 1, 99, 0) == [Recycle((0,), True)]
    assert who.rooms[1].position_delta == 77, "only the first chunk's header is read (R4)"
    assert who.tick(0) == [
        Moved(0, 1, E1, "complete", State.RESUMING, State.SUCCESS),
        Ended(0, 1, E1, State.SUCCESS, "NONE"),
    ]


def test_r4_the_header_is_read_once_with_the_first_chunk() -> None:
    who = receiver(2)
    offered(who, 20)
    firsts = []
    for _ in range(3):
        firsts += [effect.first for effect in of_type(land(who), CopyOut)]
        who.tick(0)
    assert firsts == [True, False, False]


# --- R3, R5, R10 ----------------------------------------------------------------------------------------


def test_r10_a_resume_starts_at_the_committed_token_aligned_or_not() -> None:
    """An early grant of 6 tokens ends in the middle of a block; the next one starts at token 6."""
    who = receiver(4)
    registered(who, early=6)
    who.receive(status(0, 6, 20), 0)
    (copy,) = of_type(who.tick(0), CopyOut)
    assert (copy.start, copy.tokens, [ref.block for ref in copy.blocks]) == (0, 6, [0, 1])
    who.copied(1, E1, 0, 0, 0)
    message = granted(who.tick(0))
    assert (message.start, message.capacity, blocks_of(message)) == (6, 14, (2, 3, 0, 1))


def test_r5_blocks_that_the_status_did_not_reach_are_free_at_once() -> None:
    who = receiver(6)
    message = granted_early(who, 16)
    assert blocks_of(message) == (0, 1, 2, 3)
    assert who.receive(status(0, 5, 5), 0) == [Recycle((2, 3), True), Watermark(0, 1, E1, 5)]
    assert who.ledger.free_list == (4, 5, 2, 3)
    assert [who.ledger.record(block).state for block in (0, 1)] == [BlockState.LANDED] * 2
    (copy,) = of_type(who.tick(0), CopyOut)
    assert (copy.tokens, [ref.block for ref in copy.blocks]) == (5, [0, 1])
    assert [who.ledger.record(block).state for block in (0, 1)] == [BlockState.READING] * 2


@given(
    st.integers(min_value=1, max_value=60),
    st.integers(min_value=1, max_value=6),
    st.integers(min_value=0, max_value=4),
    st.integers(min_value=0, max_value=30),
    st.sampled_from(["fifo", "lifo", "same-again", "disjoint", "stingy"]),
)
def test_the_grants_tile_the_request_whatever_the_sizes(
    total: int, blocks: int, limit: int, early: int, allocator: str
) -> None:
    who = receiver(blocks, allocator=allocator, grant_blocks_max=limit)
    registered(who, early=early)
    who.receive(offer(total), 0)
    who.tick(0)
    if who.rooms[1].grant is None:
        who.tick(0)
    seen = to_the_end(who)
    assert [start for start, _ in seen] == [0, *(start + capacity for start, capacity in seen[:-1])]
    assert seen[-1][0] + seen[-1][1] >= total
    assert who.tombstones[1, E1].state == State.SUCCESS
    assert who.ledger.free_count == blocks and who.ledger.audit() is None


# --- R1: where a send completion does not prove arrival -----------------------------------------------------


def test_r1_the_word_does_not_count_before_the_own_completion() -> None:
    who = receiver(2, landed_required=True)
    offered(who, 20)
    assert who.receive(status(0, 8), 3) == []
    room = who.rooms[1]
    assert (room.word_tokens, room.landed_tokens, room.pending) == (8, 0, None)
    assert room.closing == status(0, 8) and room.grant is not None
    assert who.tick(3) == []
    assert who.landed(1, E1, 0, 4) == [Watermark(0, 1, E1, 8)]
    assert (room.landed_tokens, room.landed_seq, room.progress_at, room.closing) == (8, 0, 4, None)
    assert events(who.tick(4)) == ["landed"]


def test_r1_the_own_completion_may_come_first() -> None:
    who = receiver(2, landed_required=True)
    offered(who, 20)
    assert who.landed(1, E1, 0, 3) == []
    assert who.rooms[1].progress_at == 3
    assert who.receive(status(0, 8), 4) == [Watermark(0, 1, E1, 8)]


def test_r1_the_completion_of_an_earlier_grant_does_not_count() -> None:
    who = receiver(2, landed_required=True)
    offered(who, 20)
    who.landed(1, E1, 0, 0)
    who.receive(status(0, 8), 0)
    (copy,) = of_type(who.tick(0), CopyOut)
    who.copied(1, E1, copy.seq, 0, 0)
    who.tick(0)
    assert who.receive(status(1, 16), 0) == []
    assert who.landed(1, E1, 0, 0) == []
    assert who.rooms[1].landed_seq == 0
    assert who.landed(1, E1, 1, 0) == [Watermark(0, 1, E1, 16)]


def test_i8_a_second_status_while_the_completion_is_awaited_changes_nothing() -> None:
    who = receiver(2, landed_required=True)
    offered(who, 20)
    who.receive(status(0, 8), 3)
    before = who.save(4)
    assert who.receive(status(0, 8), 4) == []
    assert who.save(4) == before


def test_a_completion_that_is_not_required_is_only_noted() -> None:
    who = receiver(2)
    offered(who, 20)
    assert who.landed(1, E1, 0, 1) == []
    assert who.rooms[1].grant is not None
    assert who.landed(2, E1, 0, 1) == []
    assert who.landed(1, E1._replace(counter=9), 5, 1) == []
    assert who.rooms[1].landed_seq == 0


# --- R6: who goes before whom ---------------------------------------------------------------------------


def test_r6_who_holds_data_goes_before_newcomers() -> None:
    who = receiver(2)
    offered(who, 20)
    registered(who, room=2)
    who.receive(offer(8, 2, who.rooms[2].epoch), 0)
    land(who)
    assert grants(who.tick(0)) == [(1, 1, 8, 8)]
    assert who.waiting == ()


def test_r6_newcomers_go_oldest_first() -> None:
    who = receiver(2)
    assert grants(queued(who, {5: 8, 3: 8})) == [(5, 0, 0, 8)]


def test_r6_holders_go_oldest_first() -> None:
    who = receiver(4, grant_blocks_max=2)
    for room in (5, 3):
        offered(who, 20, room=room)
    for room in (3, 5):
        land(who, room=room, copy=False)
    for room in (3, 5):
        who.copied(room, who.rooms[room].epoch, 0, 0, 0)
    assert grants(who.tick(0)) == [(5, 1, 8, 8), (3, 1, 8, 8)]


def test_several_newcomers_share_what_there_is() -> None:
    who = receiver(5, grant_blocks_max=2)
    assert grants(queued(who, {1: 20, 2: 20, 3: 20, 4: 20})) == [(1, 0, 0, 8), (2, 0, 0, 8), (3, 0, 0, 4)]


def test_r6_copies_come_back_before_a_smaller_grant_is_taken() -> None:
    """Two blocks are being copied out and one is free: better three in a moment than one now."""
    who = receiver(3, grant_blocks_max=2)
    offered(who, 20)
    tick = land(who, copy=False)
    assert grants(tick) == [] and who.waiting == (1,)
    assert who.tick(0) == [] and who.waiting == (1,)
    who.copied(1, E1, 0, 0, 0)
    assert grants(who.tick(0)) == [(1, 1, 8, 8)]
    assert who.waiting == ()


def test_r6_a_grant_from_free_blocks_need_not_wait_for_the_copy() -> None:
    who = receiver(4, grant_blocks_max=2)
    offered(who, 20)
    tick = land(who, copy=False)
    assert grants(tick) == [(1, 1, 8, 8)] and events(tick) == ["landed", "resume"]
    assert len(of_type(tick, CopyOut)) == 1
    assert who.copied(1, E1, 0, 0, 0) == [Recycle((0, 1), True)]


def test_r6_nobody_behind_takes_what_a_holder_waits_for() -> None:
    who = receiver(3, grant_blocks_max=2)
    offered(who, 20)
    registered(who, room=2)
    who.receive(offer(4, 2, who.rooms[2].epoch), 0)
    who.tick(0)
    land(who, room=2)
    who.tick(0)
    assert 2 not in who.rooms
    registered(who, room=3)
    who.receive(offer(4, 3, who.rooms[3].epoch), 0)
    tick = land(who, copy=False)
    assert grants(tick) == [], "one block is free, and the holder in front waits for two"
    assert who.waiting == (1,)


def test_l3_a_receiver_says_who_waits_with_data() -> None:
    who = receiver(2, grant_blocks_max=2)
    offered(who, 20)
    land(who, copy=False)
    assert who.waiting == (1,)
    who.abort(1)
    who.tick(0)
    assert who.waiting == ()


def test_the_allocator_is_asked_only_if_somebody_may_want_blocks() -> None:
    ledger = BlockLedger(2, make_allocator("adversary", refusals_max=9))
    who = Receiver(ReceiverConfig(LAYOUT, timing=TIMING), ledger, boot_id=BOOT)
    never = Scripted()
    who.submit(1, 0)
    assert who.observe(0, never).free_blocks == 0
    who.receive(register_ack(), 0)
    assert who.observe(0, never).free_blocks == 0
    who.tick(0, never)
    assert who.observe(0, never).free_blocks == 0, "registered, and neither offered nor early"
    who.submit(2, 0)
    epoch = who.rooms[2].epoch
    who.receive(register_ack(2, epoch), 0)
    who.receive(offer(20, 2, epoch), 0)
    asked = Scripted(1)
    assert who.observe(0, asked).free_blocks == 1, "this very tick may register it and grant"
    assert asked.asked == [(3, "offer")]
    who.abort(2)
    who.tick(0, Scripted(0))
    who.receive(offer(20), 0)
    refused = Scripted(2)
    assert grants(who.tick(0, refused)) == []
    assert who.rooms[1].state == State.WAITING
    some = Scripted(1, 1)
    assert [(m.capacity, blocks_of(m)) for m in sent(who.tick(0, some)) if isinstance(m, Grant)] == [(4, (1,))]
    assert some.asked == [(3, "offer"), (2, "block")]
    assert who.observe(0, never).free_blocks == 0
    who.receive(status(0, 4), 0)
    assert who.observe(0, Scripted(0)).free_blocks == 1, "the chunk may be taken and resumed in this very tick"
    who.tick(0, Scripted(0, 0))
    who.receive(status(1, 8), 0)
    who.tick(0, Scripted(0))


def test_the_allocator_is_not_asked_for_the_last_chunk() -> None:
    ledger = BlockLedger(2, make_allocator("adversary", refusals_max=9))
    who = Receiver(ReceiverConfig(LAYOUT, timing=TIMING), ledger, boot_id=BOOT)
    registered(who)
    who.receive(offer(4), 0)
    who.tick(0, Scripted(0, 0))
    who.receive(status(0, 4, 4), 0)
    assert who.observe(0, Scripted()).free_blocks == 0


@pytest.mark.parametrize("total", [1, 20])
def test_one_token_is_enough_to_want_a_block(total: int) -> None:
    for early in (0, 1):
        who = receiver(4)
        who.submit(1, 0, early_tokens=early)
        who.receive(register_ack(), 0)
        if not early:
            who.receive(offer(total), 0)
        assert who.observe(0).free_blocks == 4
        assert grants(who.tick(0)) == [(1, 0, 0, 1 if early else total if total == 1 else 16)]


def test_what_a_rank_brings_bears_its_number() -> None:
    assert receiver(rank=3).observe(0).rank == 3


def test_two_chunks_may_be_copied_at_once() -> None:
    """The second lands while the first is still being copied; the copies end in any order."""
    who = receiver(4, grant_blocks_max=2)
    offered(who, 20)
    land(who, copy=False)
    land(who, copy=False)
    room = who.rooms[1]
    assert [(chunk.seq, chunk.reading) for chunk in room.chunks] == [(0, True), (1, True)]
    assert who.copied(1, E1, 1, 0, 0) == [Recycle((2, 3), True)]
    assert (room.delivered_tokens, [chunk.seq for chunk in room.chunks]) == (8, [0])
    assert who.copied(1, E1, 0, 0, 0) == [Recycle((0, 1), True)]
    assert (room.delivered_tokens, room.chunks, room.resumes) == (16, (), 1)
    assert grants(who.tick(0)) == [(1, 2, 16, 4)] and room.resumes == 2


def test_the_kind_of_a_block_is_passed_on_to_the_allocator() -> None:
    ledger = BlockLedger(3, make_allocator("adversary", refusals_max=0))
    who = Receiver(ReceiverConfig(LAYOUT, timing=TIMING, grant_blocks_max=1), ledger, boot_id=BOOT)
    who.block_kind = lambda block: block == 2
    registered(who)
    who.receive(offer(4), 0)
    choices = Scripted(1)
    assert blocks_of(granted(who.tick(0, choices))) == (2,)
    assert choices.asked == [(2, "block")]
