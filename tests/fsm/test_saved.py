"""What is saved, to the letter: everything that may influence the future, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fsm.effects import Send
from fsm.messages import Abort, AbortAck, Status
from fsm.reasons import Reason
from fsm.receiver_room import ReceiverRoom, Tombstone
from fsm.sender_room import Lane, LaneKey, LaneTombstone
from fsm.states import State
from tests.fsm.kit import (
    BOOT,
    E1,
    SENDER_BOOT,
    TIMING,
    abort_ack,
    fail,
    grant,
    lane_of,
    offer,
    offered,
    ready,
    receiver,
    registered,
    sender,
    wait_in,
    write_out,
)


def exactly(value: Any, expected: Any) -> None:
    """Equal, and of the same types: 0, 0.0, False and None are four things."""
    assert value == expected
    assert repr(value) == repr(expected)


def fresh_room(**changed: Any) -> tuple[Any, ...]:
    """A request that was just submitted, as it is saved."""
    fields: dict[str, Any] = {
        "state": State.BOOTSTRAPPING,
        "room": 1,
        "epoch": E1,
        "early_tokens": 6,
        "registered": False,
        "total_tokens": -1,
        "flags": -1,
        "word_tokens": 0,
        "landed_tokens": 0,
        "landed_seq": -1,
        "grant": None,
        "closing": None,
        "chunks": (),
        "next_seq": 0,
        "handled_tokens": 0,
        "last_resume_at": 0,
        "delivered_tokens": 0,
        "reserved_tokens": 0,
        "position_delta": 0,
        "failure": Reason.NONE,
        "notes": None,
        "pending": None,
        "peer_boot_id": 0,
        "peer_queue_s": 0.0,
        "peer_gone": False,
        "total_agreed": False,
        "resumes": 0,
        "leased": False,
        "progress_at": 0,
        "resend_at": 0,
    }
    return tuple((fields | changed).values())


def test_a_fresh_room() -> None:
    room = ReceiverRoom(1, E1, 6, 40)
    exactly(room.save(40, 1000), fresh_room())
    exactly(room.save(43, 1000), fresh_room(progress_at=-3))
    exactly(room.save(43, 2), fresh_room(progress_at=-2))
    assert room.resend_at == 40


def test_a_room_that_awaits_an_answer() -> None:
    who = receiver()
    (effect,) = who.submit(1, 40, early_tokens=6)
    assert isinstance(effect, Send)
    exactly(who.rooms[1].save(41, 1000), fresh_room(pending=effect.message, progress_at=-1, resend_at=6))


def test_a_loaded_room_is_the_room() -> None:
    saved = fresh_room(progress_at=-3, resend_at=5, notes=(1, 2), registered=True)
    room = ReceiverRoom.load(saved, 100)
    assert (room.progress_at, room.resend_at, room.notes, room.registered) == (97, 105, (1, 2), True)
    assert room.history == ()


def test_a_fresh_receiver() -> None:
    who = receiver(1)
    ledger = who.ledger.save()
    exactly(who.save(40), ((), (), ledger, 1, 0, 0, 1 << 62, 0, 0, 0))
    assert who.tick(40) == []
    exactly(who.save(40), ((), (), ledger, 1, 0, 0, 1 << 62, 0, 0, 0))


def test_a_receiver_that_beats() -> None:
    who = receiver(1, timing=replace(TIMING, heartbeat_s=5), result_tokens=9)
    who.tick(40)
    exactly(who.save(42), ((), (), who.ledger.save(), 1, 0, 0, 9, 3, 0, 0))
    other = receiver(1, timing=who.config.timing)
    other.waiting = (5,)
    other.load(who.save(42), 100)
    assert (other.heartbeat_at, other.free_result_tokens, other.waiting) == (103, 9, ())


def test_a_receiver_that_has_seen_things() -> None:
    who = receiver(2)
    offered(who, 20)
    who.quiesced(3)
    agreed = who.observe(0)
    assert agreed.free_blocks == 0
    saved = who.save(0)
    exactly(saved[3:], (1, 1, SENDER_BOOT, 1 << 62, 0, 0, 3))
    exactly(saved[0], (who.rooms[1].save(0, TIMING.longest_s),))


def test_what_is_offered_is_forgotten_with_the_decision() -> None:
    who = receiver(2)
    registered(who)
    who.receive(offer(20), 0)
    assert who.observe(0).free_blocks == 2 and who.save(0)[8] == 2
    who.tick(0)
    exactly(who.save(0)[8], 0)


# --- tombstones -----------------------------------------------------------------------------------------


def test_a_fresh_tombstone() -> None:
    room = ReceiverRoom(1, E1, 0, 0)
    room.failure, room.peer_boot_id, room.landed_seq, room.state = Reason.ABORTED, 7, 4, State.FAILED
    tombstone = Tombstone(room, 60)
    exactly(
        [getattr(tombstone, name) for name in Tombstone.__slots__],
        [None, False, E1, -1, 60, (), -1, 4, 7, (), Reason.ABORTED, 60, 0, 1, State.FAILED],
    )


OVER = (None, True, E1, -1, (), -1, -1, 0, (), Reason.NONE, 0, 1, State.FAILED)


def test_a_tombstone_that_awaits_nothing_is_a_name() -> None:
    who = receiver()
    who.submit(1, 0)
    fail(who)
    who.receive(abort_ack(), 0)
    tombstone = who.tombstones[1, E1]
    exactly(tombstone.save(10), (*OVER, 50, 0))
    exactly(tombstone.save(60), (*OVER, 0, 0))
    exactly(tombstone.save(61), (*OVER, 0, 0))
    loaded = Tombstone.load((*OVER, 50, 0), 200)
    assert (loaded.room, loaded.epoch, loaded.state, loaded.expires_at, loaded.resend_at) == (
        1,
        E1,
        State.FAILED,
        250,
        200,
    )


def test_a_tombstone_that_awaits_an_acknowledgement() -> None:
    who = receiver()
    who.submit(1, 0)
    fail(who)
    message = Abort(1, E1, 0, 0, "ABORTED")
    saved = (message, False, E1, -1, (), -1, -1, 0, (), Reason.ABORTED, 0, 1, State.FAILED, 58, 5)
    exactly(who.tombstones[1, E1].save(2), saved)
    loaded = Tombstone.load(saved, 100)
    assert (loaded.abort, loaded.expires_at, loaded.resend_at, loaded.acknowledged) == (message, 158, 105, False)
    exactly(loaded.save(100), saved)


def test_a_tombstone_that_awaits_a_proof_of_a_process_that_was_restarted() -> None:
    who = wait_in("granted")
    refs = who.rooms[1].grant.blocks  # type: ignore[union-attr]
    fail(who)
    who.receive(abort_ack(boot_id=SENDER_BOOT + 1), 0)
    saved = (None, False, E1, -1, refs, 0, -1, SENDER_BOOT, (), Reason.ABORTED, 0, 1, State.FAILED, 58, 0)
    exactly(who.tombstones[1, E1].save(2), saved)
    assert Tombstone.load(saved, 2).held_seq == 0


def test_a_tombstone_whose_copy_has_not_ended() -> None:
    who = wait_in("landed")
    chunks = who.rooms[1].chunks
    fail(who)
    who.receive(abort_ack(executed_seq=0), 0)
    saved = (None, True, E1, 0, (), -1, -1, SENDER_BOOT, chunks, Reason.ABORTED, 0, 1, State.FAILED, 60, 0)
    exactly(who.tombstones[1, E1].save(0), saved)


# --- the sender -----------------------------------------------------------------------------------------


def fresh_lane(**changed: Any) -> tuple[Any, ...]:
    """A lane that nobody registered, as it is saved."""
    fields: dict[str, Any] = {
        "state": State.BOOTSTRAPPING,
        "receiver_rank": 3,
        "epoch": None,
        "committed_tokens": 0,
        "seq": -1,
        "parked": None,
        "writing": None,
        "last_status": None,
        "failure": Reason.NONE,
        "ack_owed": False,
        "pending": None,
        "peer_queue_s": 0.0,
        "notes": None,
        "progress_at": 0,
        "resend_at": 0,
    }
    return tuple((fields | changed).values())


def test_a_fresh_lane() -> None:
    lane = Lane(3, 40)
    exactly(lane.save(40, 1000), fresh_lane())
    exactly(lane.save(43, 1000), fresh_lane(progress_at=-3))
    exactly(lane.save(43, 2), fresh_lane(progress_at=-2))
    assert lane.resend_at == 40


def test_a_lane_that_awaits_an_answer() -> None:
    who = ready(now=40)
    saved = lane_of(who).save(41, 1000)
    exactly(saved[-2:], (-1, 6))
    loaded = Lane.load(saved, 100)
    assert (loaded.progress_at, loaded.resend_at, loaded.pending) == (99, 106, lane_of(who).pending)
    assert loaded.history == ()


def test_a_fresh_sender() -> None:
    who = sender(receiver_ranks=(1, 3), source_blocks=9)
    exactly(who.save(40), ((), (), 11, (0, 0), 9, 0))
    assert who.tick(40) == []
    exactly(who.save(40), ((), (), 11, (0, 0), 9, 0))


def test_a_sender_that_beats() -> None:
    who = sender(timing=replace(TIMING, heartbeat_s=5))
    who.tick(40)
    exactly(who.save(42), ((), (), 11, (0,), 64, 3))
    other = sender(timing=who.config.timing)
    other.load(who.save(42), 100)
    assert other.heartbeat_at == 103


def test_a_request_on_the_sender() -> None:
    who = sender(receiver_ranks=(3,))
    who.submit(1, 20, 0, has_mrope=False, has_deepstack=True)
    exactly(who.save(0)[0], ((1, 20, False, True, 5, True, False, (fresh_lane(),)),))
    other = sender(receiver_ranks=(3,))
    other.load(who.save(0), 7)
    record = other.rooms[1]
    assert (record.total_tokens, record.has_mrope, record.has_deepstack, record.blocks) == (20, False, True, 5)
    assert (record.staging, record.staged, record.lanes[3].progress_at) == (True, False, 7)


def test_a_senders_tombstones() -> None:
    who = ready()
    write_out(who, grant())
    who.abort(1, 0)
    key, message = LaneKey(1, E1, 0), Abort(1, E1, 0, 0, "ABORTED")
    last = Status(1, E1, 0, 0, 0, 8, 20, True, False)
    saved = (State.FAILED, last, 0, message, 58, 5)
    exactly(who.save(2)[1], ((key, saved),))
    loaded = LaneTombstone.load(saved, 100)
    assert (loaded.state, loaded.last_status, loaded.executed_seq) == (State.FAILED, last, 0)
    assert (loaded.abort, loaded.expires_at, loaded.resend_at) == (message, 158, 105)
    who.receive(AbortAck(1, E1, 0, 0, BOOT, -1), 2)
    saved = (State.FAILED, last, 0, None, 58, 0)
    exactly(who.save(2)[1], ((key, saved),))
    assert LaneTombstone.load(saved, 100).abort is None
    assert LaneTombstone(State.FAILED, None, 0, 40).resend_at == 40


def test_what_was_saved_for_other_ranks_is_not_loaded() -> None:
    with pytest.raises(ValueError):
        sender(receiver_ranks=(0, 1)).load(sender().save(0), 0)
