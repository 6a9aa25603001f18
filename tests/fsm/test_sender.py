"""The sender of one rank up to its last chunk: submit, staging, REGISTER, OFFER, GRANT, writing, STATUS.

Each test writes out the effects it expects, all of them, in order. Block size is 4 tokens.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fsm.effects import Ended, Moved, Send, Stage, Unstage, Write
from fsm.errors import LocalError
from fsm.messages import Abort, Epoch, Grant, Nack, NackCode, Offer, RegisterAck, Status
from fsm.rules import PROTOCOL, GrantKind
from fsm.sender import Sender, SenderConfig
from fsm.sender_room import Lane, LaneKey
from fsm.states import State
from tests.fsm.kit import (
    BOOT,
    E1,
    E2,
    LAYOUT,
    OTHER_LAYOUT,
    PEER_QUEUE,
    SENDER_BOOT,
    abort,
    grant,
    lane_of,
    of_type,
    parked,
    ready,
    refusal,
    register,
    sender,
    sent,
    write_out,
)

# --- making one -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("boot_id", [0, -1])
def test_boot_id_0_stands_for_nobody(boot_id: int) -> None:
    with pytest.raises(LocalError, match=rf"^boot_id={boot_id}: expected 1 or more; 0 stands for no process$"):
        sender(boot_id=boot_id)
    assert sender(boot_id=1).boot_id == 1


@pytest.mark.parametrize("name", ["senders", "source_blocks", "total_tokens_max"])
def test_a_size_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(LocalError, match=rf"^{name}=0: expected 1 or more$"):
        SenderConfig(LAYOUT, **{name: 0})
    assert getattr(SenderConfig(LAYOUT, **{name: 1}), name) == 1


@pytest.mark.parametrize(("rank", "ranks"), [(-1, (0,)), (0, (-1,)), (0, (0, 1, 0))])
def test_ranks_are_different_and_count_from_0(rank: int, ranks: tuple[int, ...]) -> None:
    with pytest.raises(LocalError) as caught:
        SenderConfig(LAYOUT, rank=rank, receiver_ranks=ranks)
    assert str(caught.value) == f"rank={rank}, receiver_ranks={ranks}: expected different ranks from 0 up"


def test_the_machine_drives_it_by_default() -> None:
    assert Sender(SenderConfig(LAYOUT), boot_id=1)._fire is Lane.fire
    assert sender(flat=True)._fire is Lane.fire_flat


def test_a_sender_rank_may_serve_nobody() -> None:
    assert SenderConfig(LAYOUT, receiver_ranks=()).receiver_ranks == ()
    assert SenderConfig(LAYOUT, receiver_ranks=(1, 0)).receiver_ranks == (1, 0)


def test_a_new_sender_knows_nothing() -> None:
    who = sender(receiver_ranks=(1, 3), source_blocks=9)
    assert (who.rooms, who.tombstones, who.peer_boot_ids, who.free_source_blocks) == ({}, {}, {1: 0, 3: 0}, 9)
    assert who.tick(0) == []
    assert who.next_timer_s() is None


# --- submit and staging ---------------------------------------------------------------------------------


def test_submit_asks_for_staging() -> None:
    who = sender(source_blocks=6, receiver_ranks=(0, 2))
    assert who.submit(7, 17, 3, has_mrope=False, has_deepstack=True) == [Stage(7, 5)]
    record = who.rooms[7]
    assert (record.room, record.total_tokens, record.blocks) == (7, 17, 5)
    assert (record.has_mrope, record.has_deepstack, record.staging, record.staged) == (False, True, True, False)
    assert who.free_source_blocks == 1
    assert [(lane.receiver_rank, lane.state, lane.progress_at) for lane in record.lanes.values()] == [
        (0, State.BOOTSTRAPPING, 3),
        (2, State.BOOTSTRAPPING, 3),
    ]


def test_the_flags_by_default() -> None:
    who = sender()
    who.submit(7, 17, 3)
    assert (who.rooms[7].has_mrope, who.rooms[7].has_deepstack) == (True, False)


def test_a_room_that_is_in_use_is_refused_and_nothing_changes() -> None:
    who = sender()
    who.submit(7, 17, 0)
    before = who.save(0)
    with pytest.raises(LocalError, match=r"^room 7 is in use here; wait for its end or use another$"):
        who.submit(7, 17, 0)
    assert who.save(0) == before


@pytest.mark.parametrize("room", [-1, 1 << 63])
def test_a_room_number_that_no_message_can_carry_is_refused(room: int) -> None:
    who = sender()
    with pytest.raises(LocalError, match=rf"^room {room}: expected 0 to 2\*\*63 - 1$"):
        who.submit(room, 20, 0)
    assert who.rooms == {}
    assert who.submit(0, 20, 0) and who.submit((1 << 63) - 1, 20, 0)


@pytest.mark.parametrize("total", [0, -1, 51])
def test_a_length_out_of_range_is_refused(total: int) -> None:
    who = sender(total_tokens_max=50)
    with pytest.raises(LocalError, match=rf"^total_tokens={total}: expected 1 to 50$"):
        who.submit(1, total, 0)
    assert who.rooms == {}
    assert who.submit(1, 1, 0) and who.submit(2, 50, 0)


def test_r6_a_payload_larger_than_the_source_pool_is_refused() -> None:
    who = sender(source_blocks=5)
    with pytest.raises(LocalError) as caught:
        who.submit(1, 21, 0)
    assert str(caught.value) == (
        "total_tokens=21 needs 6 source blocks: the source pool has 5; make it larger or split the request"
    )
    assert who.rooms == {} and who.free_source_blocks == 5
    assert who.submit(1, 20, 0) == [Stage(1, 5)]
    assert who.free_source_blocks == 0


def test_r6_staging_takes_all_its_blocks_or_waits_with_none() -> None:
    who = sender(source_blocks=6)
    assert who.submit(1, 12, 0) == [Stage(1, 3)]
    assert who.submit(2, 16, 0) == []
    assert who.submit(3, 4, 0) == [], "it would fit, and waits behind the one before it"
    assert who.free_source_blocks == 3
    assert [record.staging for record in who.rooms.values()] == [True, False, False]


def test_r6_who_waits_is_staged_when_there_is_room_oldest_first() -> None:
    who = sender(source_blocks=6)
    for room, total in ((1, 12), (2, 16), (3, 8), (4, 4)):
        who.submit(room, total, 0)
    who.staged(1, 0)
    effects = who.abort(1, 0)
    assert of_type(effects, Unstage) == [Unstage(1)]
    assert of_type(effects, Stage) == [Stage(2, 4), Stage(3, 2)]
    assert who.free_source_blocks == 0


def test_staging_that_nobody_waits_for_any_more_is_undone() -> None:
    who = sender(source_blocks=6)
    who.submit(1, 20, 0)
    who.submit(2, 20, 0)
    effects = who.abort(1, 0)
    assert [type(effect) for effect in effects] == [Moved, Ended], "the staging that was asked for ends first"
    assert 1 in who.rooms and who.free_source_blocks == 1
    assert who.staged(1, 0) == [Unstage(1), Stage(2, 5)]
    assert 1 not in who.rooms and who.free_source_blocks == 1
    assert who.staged(1, 0) == []


def test_who_was_never_staged_gives_nothing_back() -> None:
    who = sender(source_blocks=6)
    who.submit(1, 20, 0)
    who.submit(2, 20, 0)
    assert [type(effect) for effect in who.abort(2, 0)] == [Moved, Ended]
    assert 2 not in who.rooms and who.free_source_blocks == 1


def test_staging_that_was_not_asked_for_is_let_through() -> None:
    who = ready()
    before = who.save(0)
    assert who.staged(1, 0) == []
    assert who.staged(9, 0) == []
    assert who.save(0) == before


# --- REGISTER -------------------------------------------------------------------------------------------


def test_register_is_acknowledged() -> None:
    who = sender(rank=2, receiver_ranks=(5,))
    who.submit(1, 20, 0)
    assert who.receive(register(ranks=(2, 5)), 4) == [
        Moved(5, 1, E1, "registered", State.BOOTSTRAPPING, State.WAITING),
        Send(RegisterAck(1, E1, 2, 5, 11, True, 100)),
    ]
    lane = lane_of(who, rank=5)
    assert (lane.epoch, lane.peer_queue_s, lane.progress_at, lane.pending) == (E1, PEER_QUEUE, 4, None)
    assert who.peer_boot_ids == {5: BOOT}


def test_who_is_staged_already_offers_at_once() -> None:
    who = sender()
    who.submit(1, 20, 0, has_mrope=False, has_deepstack=True)
    assert who.staged(1, 0) == []
    message = Offer(1, E1, 0, 0, 20, False, True)
    assert who.receive(register(), 3) == [
        Moved(0, 1, E1, "registered", State.BOOTSTRAPPING, State.WAITING),
        Send(RegisterAck(1, E1, 0, 0, 11, True, 100)),
        Send(message),
    ]
    assert (lane_of(who).pending, lane_of(who).resend_at) == (message, 10)


def test_who_is_registered_already_offers_when_staged() -> None:
    who = sender(receiver_ranks=(0, 1))
    who.submit(1, 20, 0)
    who.receive(register(), 1)
    assert who.staged(1, 5) == [Send(Offer(1, E1, 0, 0, 20, True, False))]
    assert (lane_of(who).progress_at, lane_of(who, rank=1).progress_at) == (5, 0)
    assert (who.rooms[1].staged, who.rooms[1].staging) == (True, False)
    assert [type(m) for m in sent(who.receive(register(ranks=(0, 1)), 6))] == [RegisterAck, Offer]


def test_i8_a_second_register_is_acknowledged_again_and_changes_nothing() -> None:
    who = ready()
    before = who.save(4)
    assert who.receive(register(queue_s=1), 4) == [Send(RegisterAck(1, E1, 0, 0, 11, True, 100))]
    assert who.save(4) == before


def test_another_layout_ends_the_lane() -> None:
    who = sender()
    who.submit(1, 20, 0)
    who.staged(1, 0)
    answer = Send(RegisterAck(1, E1, 0, 0, 11, False, 100))
    assert who.receive(register(layout=OTHER_LAYOUT), 3) == [
        answer,
        Moved(0, 1, E1, "fail", State.BOOTSTRAPPING, State.FAILED),
        Ended(0, 1, E1, State.FAILED, "INCOMPATIBLE"),
        Unstage(1),
    ]
    assert LaneKey(1, E1, 0) in who.tombstones and who.rooms == {}
    before = who.save(3)
    assert who.receive(register(layout=OTHER_LAYOUT), 3) == [answer]
    assert who.save(3) == before
    assert who.receive(grant(), 3) == [Send(Nack(1, E1, 0, 0, NackCode.CANCELLED, "GRANT", 0, 11))]


def test_another_layout_does_not_end_what_was_registered_with_the_right_one() -> None:
    who = ready()
    before = who.save(0)
    assert who.receive(register(layout=OTHER_LAYOUT), 0) == [Send(RegisterAck(1, E1, 0, 0, 11, False, 100))]
    assert who.save(0) == before


def test_a_layout_that_fits_no_room_is_told_so() -> None:
    who = sender()
    assert who.receive(register(9, layout=OTHER_LAYOUT), 0) == [Send(RegisterAck(9, E1, 0, 0, 11, False, 100))]


def test_which_nack_answers_register() -> None:
    who = sender()
    assert refusal(who.receive(register(), 0)) == (NackCode.UNKNOWN_ROOM, "REGISTER", -1)
    assert who.rooms == {}, "a message makes no room (R8)"
    who.submit(1, 20, 0)
    who.receive(register(epoch=Epoch(3, 5)), 0)
    for older in (Epoch(3, 4), Epoch(2, 9)):
        assert refusal(who.receive(register(epoch=older), 0)) == (NackCode.STALE_EPOCH, "REGISTER", -1)
    assert refusal(who.receive(register(epoch=Epoch(3, 6)), 0)) == (NackCode.NOT_READY, "REGISTER", -1)
    who.receive(abort(epoch=Epoch(3, 5)), 0)
    assert refusal(who.receive(register(epoch=Epoch(3, 5)), 0)) == (NackCode.CANCELLED, "REGISTER", -1)
    assert refusal(who.receive(register(epoch=Epoch(3, 6)), 0)) == (NackCode.UNKNOWN_ROOM, "REGISTER", -1)


def test_a_room_whose_part_for_this_rank_has_ended_is_unknown_to_a_new_epoch() -> None:
    who = ready(receiver_ranks=(0, 1))
    who.receive(abort(), 0)
    assert 1 in who.rooms
    assert refusal(who.receive(register(epoch=E2), 0)) == (NackCode.UNKNOWN_ROOM, "REGISTER", -1)


def test_a_rule_may_leave_unknown_rooms_without_an_answer() -> None:
    who = sender(rules=replace(PROTOCOL, unknown_room_answered=lambda: False))
    assert who.receive(register(), 0) == []
    assert who.receive(grant(), 0) == []


# --- GRANT ----------------------------------------------------------------------------------------------


def test_a_grant_is_written() -> None:
    who = ready()
    message = grant()
    assert who.receive(message, 4) == [
        Moved(0, 1, E1, "grant", State.WAITING, State.TRANSFERRING),
        Write(message, 0, 8, 20),
    ]
    lane = lane_of(who)
    assert (lane.seq, lane.writing, lane.parked, lane.pending) == (0, message, None, None)
    assert lane.progress_at == 4


def test_the_end_of_the_write_is_told() -> None:
    who = ready()
    who.receive(grant(), 4)
    message = Status(1, E1, 0, 0, 0, 8, 20, True, False)
    assert who.sent(1, E1, 0, 0, 6) == [
        Send(message),
        Moved(0, 1, E1, "committed", State.TRANSFERRING, State.RESUMING),
    ]
    lane = lane_of(who)
    assert (lane.committed_tokens, lane.last_status, lane.writing, lane.progress_at) == (8, message, None, 6)


def test_the_last_chunk_ends_it() -> None:
    who = ready()
    write_out(who, grant())
    message = grant(1, 8, 16, blocks=(2, 3, 4, 5))
    assert who.receive(message, 1) == [
        Moved(0, 1, E1, "grant", State.RESUMING, State.TRANSFERRING),
        Write(message, 8, 12, 20),
    ]
    last = Status(1, E1, 0, 0, 1, 20, 20, True, False)
    assert who.sent(1, E1, 0, 1, 2) == [
        Send(last),
        Moved(0, 1, E1, "committed", State.TRANSFERRING, State.SUCCESS),
        Ended(0, 1, E1, State.SUCCESS, "NONE"),
        Unstage(1),
    ]
    assert who.rooms == {} and who.free_source_blocks == 64
    tombstone = who.tombstones[LaneKey(1, E1, 0)]
    assert (tombstone.state, tombstone.last_status, tombstone.executed_seq) == (State.SUCCESS, last, 1)
    assert (tombstone.abort, tombstone.expires_at) == (None, 62)


def test_the_status_says_what_was_submitted() -> None:
    who = sender(rank=3, receiver_ranks=(7,))
    who.submit(1, 8, 0, has_mrope=False, has_deepstack=True)
    who.staged(1, 0)
    who.receive(register(ranks=(3, 7)), 0)
    effects = write_out(who, grant(ranks=(3, 7)))
    assert sent(effects) == [Status(1, E1, 3, 7, 0, 8, 8, False, True)]


def test_r3_a_grant_is_executed_once_and_its_answer_repeated() -> None:
    who = ready()
    who.receive(grant(), 0)
    before = who.save(0)
    assert who.receive(grant(), 0) == [], "no answer yet: the write is under way"
    assert who.save(0) == before
    (first, _) = who.sent(1, E1, 0, 0, 0)
    before = who.save(0)
    assert who.receive(grant(), 0) == [first._replace(resend=True)]  # type: ignore[union-attr]
    assert who.save(0) == before


def test_r3_an_older_seq_gets_the_last_answer_and_does_nothing() -> None:
    who = ready()
    write_out(who, grant())
    write_out(who, grant(1, 8, 8, blocks=(2, 3)))
    before = who.save(0)
    assert sent(who.receive(grant(), 0)) == [Status(1, E1, 0, 0, 1, 16, 20, True, False)]
    assert who.save(0) == before


def test_r3_nothing_is_answered_while_a_write_is_under_way() -> None:
    """Not even with the STATUS before: whoever asks would take it for the answer to what is being written."""
    who = ready()
    write_out(who, grant())
    who.receive(grant(1, 8, 8, blocks=(2, 3)), 0)
    assert who.receive(grant(1, 8, 8, blocks=(2, 3)), 0) == []
    assert who.receive(grant(), 0) == []


@pytest.mark.parametrize("seq", [1, 2])
def test_r3_a_gap_is_a_nack_and_does_nothing(seq: int) -> None:
    who = ready()
    before = who.save(0)
    assert refusal(who.receive(grant(seq), 0)) == (NackCode.INTERNAL, "GRANT", seq)
    assert who.save(0) == before
    write_out(who, grant())
    before = who.save(0)
    assert refusal(who.receive(grant(seq + 1, 8), 0)) == (NackCode.INTERNAL, "GRANT", seq + 1)
    assert who.save(0) == before


@pytest.mark.parametrize("start", [7, 9, 0])
def test_r3_a_grant_from_elsewhere_than_the_committed_token_ends_it(start: int) -> None:
    who = ready()
    write_out(who, grant())
    effects = who.receive(grant(1, start), 3)
    assert effects == [
        Send(Nack(1, E1, 0, 0, NackCode.INTERNAL, "GRANT", 1, 11)),
        Moved(0, 1, E1, "fail", State.RESUMING, State.FAILED),
        Ended(0, 1, E1, State.FAILED, "PROTOCOL"),
        Unstage(1),
        Send(Abort(1, E1, 0, 0, "PROTOCOL")),
    ]
    assert of_type(effects, Write) == []


@pytest.mark.parametrize(("capacity", "blocks"), [(0, (0, 1)), (9, (0, 1)), (1, ()), (0, ())])
def test_r11_a_grant_that_its_blocks_cannot_hold_is_a_nack_and_does_nothing(
    capacity: int, blocks: tuple[int, ...]
) -> None:
    who = ready()
    before = who.save(0)
    message = grant(0, 0, capacity, blocks=blocks)
    assert refusal(who.receive(message, 0)) == (NackCode.INTERNAL, "GRANT", 0)
    assert who.save(0) == before


@pytest.mark.parametrize("capacity", [1, 8])
def test_a_grant_that_just_fits_is_executed(capacity: int) -> None:
    who = ready()
    assert of_type(who.receive(grant(0, 0, capacity), 0), Write)[0].tokens == capacity


def test_a_repeated_grant_is_answered_whatever_else_it_says() -> None:
    who = ready()
    write_out(who, grant())
    before = who.save(0)
    assert sent(who.receive(grant(0, 5, 0, blocks=()), 0)) == [Status(1, E1, 0, 0, 0, 8, 20, True, False)]
    assert who.save(0) == before


def test_which_nack_answers_grant() -> None:
    who = sender()
    assert refusal(who.receive(grant(), 0)) == (NackCode.UNKNOWN_ROOM, "GRANT", 0)
    who.submit(1, 20, 0)
    assert refusal(who.receive(grant(), 0)) == (NackCode.NOT_READY, "GRANT", 0)
    who.staged(1, 0)
    who.receive(register(epoch=E2), 0)
    assert refusal(who.receive(grant(), 0)) == (NackCode.STALE_EPOCH, "GRANT", 0)
    who.receive(abort(epoch=E2), 0)
    assert refusal(who.receive(grant(epoch=E2), 0)) == (NackCode.CANCELLED, "GRANT", 0)
    assert refusal(who.receive(grant(epoch=E1), 0)) == (NackCode.UNKNOWN_ROOM, "GRANT", 0)


@pytest.mark.parametrize("boot_id", [0, SENDER_BOOT - 1, SENDER_BOOT + 1])
def test_r8_a_grant_for_another_process_is_stale(boot_id: int) -> None:
    """Its blocks may have been given up when that process died."""
    who = ready()
    before = who.save(0)
    message = grant(sender_boot_id=boot_id)
    assert refusal(who.receive(message, 0)) == (NackCode.STALE_EPOCH, "GRANT", 0)
    assert who.save(0) == before


# --- an early GRANT -------------------------------------------------------------------------------------


def test_an_early_grant_is_kept_until_it_can_be_served() -> None:
    who = parked()
    lane = lane_of(who)
    assert (lane.parked, lane.seq, lane.state, lane.progress_at) == (grant(), -1, State.WAITING, 2)
    assert who.staged(1, 5) == [
        Moved(0, 1, E1, "grant", State.WAITING, State.TRANSFERRING),
        Write(grant(), 0, 8, 20),
    ]
    assert (lane.parked, lane.pending) == (None, None)


def test_i8_a_second_early_grant_changes_nothing() -> None:
    who = parked()
    before = who.save(0)
    assert who.receive(grant(), 0) == []
    assert who.save(0) == before


def test_one_early_grant_is_kept_and_no_more() -> None:
    who = parked()
    assert refusal(who.receive(grant(1, 8), 0)) == (NackCode.INTERNAL, "GRANT", 1)


def test_r11_an_early_grant_from_the_wrong_token_ends_the_request_and_nothing_else() -> None:
    """It is refused when it is served, which is when the payload is staged: the request is closed only once."""
    who = sender()
    who.submit(1, 20, 0)
    who.receive(register(), 0)
    who.receive(grant(0, 4), 0)
    assert who.staged(1, 5) == [
        Send(Nack(1, E1, 0, 0, NackCode.INTERNAL, "GRANT", 0, 11)),
        Moved(0, 1, E1, "fail", State.WAITING, State.FAILED),
        Ended(0, 1, E1, State.FAILED, "PROTOCOL"),
        Unstage(1),
        Send(Abort(1, E1, 0, 0, "PROTOCOL")),
    ]
    assert who.rooms == {} and who.free_source_blocks == 64


def test_a_grant_that_comes_while_another_is_written_waits_for_its_end() -> None:
    who = ready()
    who.receive(grant(), 0)
    following = grant(1, 8, 12, blocks=(2, 3, 4))
    assert who.receive(following, 0) == []
    assert who.receive(grant(), 0) == [], "the grant before it is answered when it has ended"
    assert who.sent(1, E1, 0, 0, 0) == [
        Send(Status(1, E1, 0, 0, 0, 8, 20, True, False)),
        Moved(0, 1, E1, "committed", State.TRANSFERRING, State.RESUMING),
        Moved(0, 1, E1, "grant", State.RESUMING, State.TRANSFERRING),
        Write(following, 8, 12, 20),
    ]
    assert lane_of(who).progress_at == 0


# --- the end of a write ---------------------------------------------------------------------------------


def test_the_end_of_another_write_is_let_through() -> None:
    who = ready()
    before = who.save(0)
    assert who.sent(1, E1, 0, 0, 0) == [], "nothing is being written"
    who.receive(grant(), 0)
    before = who.save(0)
    assert who.sent(1, E1, 0, 1, 0) == []
    assert who.sent(1, E2, 0, 0, 0) == []
    assert who.sent(2, E1, 0, 0, 0) == []
    assert who.sent(1, E1, 1, 0, 0) == []
    assert who.save(0) == before


def test_a_write_that_broke_ends_the_request() -> None:
    who = ready()
    who.receive(grant(), 0)
    assert who.write_failed(1, E1, 0, 0, 3) == [
        Moved(0, 1, E1, "fail", State.TRANSFERRING, State.FAILED),
        Ended(0, 1, E1, State.FAILED, "INTERNAL"),
        Unstage(1),
        Send(Abort(1, E1, 0, 0, "INTERNAL")),
    ]
    assert who.tombstones[LaneKey(1, E1, 0)].executed_seq == 0
    assert who.write_failed(1, E1, 0, 0, 3) == []


def test_the_payload_stays_until_the_last_rank_has_it() -> None:
    who = ready(8, receiver_ranks=(0, 1))
    assert of_type(write_out(who, grant()), Unstage) == []
    assert who.free_source_blocks == 62
    assert of_type(write_out(who, grant(ranks=(0, 1))), Unstage) == [Unstage(1)]
    assert who.free_source_blocks == 64


def test_r3_every_rank_has_its_own_watermark_and_its_own_seq() -> None:
    who = ready(receiver_ranks=(0, 1))
    write_out(who, grant())
    assert (lane_of(who).committed_tokens, lane_of(who, rank=1).committed_tokens) == (8, 0)
    assert of_type(who.receive(grant(1, 8), 0), Write)
    assert refusal(who.receive(grant(1, 8, ranks=(0, 1)), 0)) == (NackCode.INTERNAL, "GRANT", 1)
    assert of_type(who.receive(grant(ranks=(0, 1)), 0), Write)


# --- what the rules are asked ---------------------------------------------------------------------------


def test_the_seams_of_the_sender() -> None:
    kept: list[tuple[int, Grant]] = []
    rules = replace(
        PROTOCOL,
        source_start=lambda start, block_tokens: start // block_tokens * block_tokens - 4,
        commit_said=lambda record, lane: lane.committed_tokens + record.total_tokens,
        executed=lambda lane, message: kept.append((lane.receiver_rank, message)),
        lanes_served=lambda one, record, lane, message: [
            (lane, message),
            (one.rooms[1].lanes[1], grant(ranks=(0, 1))),
        ],
        start_check=lambda lane, message: True,
        grant_kind=lambda lane, message: GrantKind.NEXT,
    )
    who = ready(rules=rules, receiver_ranks=(0, 1))
    wrong = grant(5, 6, 8)
    assert of_type(who.receive(wrong, 0), Write) == [Write(wrong, 0, 8, 20), Write(grant(ranks=(0, 1)), -4, 8, 20)]
    (status,) = sent(who.sent(1, E1, 0, 5, 0))
    assert isinstance(status, Status) and status.committed_tokens == 34
    assert kept == [(0, wrong)]
