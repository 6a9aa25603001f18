"""How a request ends on the sender: deadlines, ABORT and its acknowledgement, restarts, tombstones, timers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fsm.effects import Effect, Ended, Moved, Send, Unstage, Write
from fsm.errors import LocalError
from fsm.messages import Abort, AbortAck, Epoch, Heartbeat, Nack, NackCode, Offer
from fsm.rules import PROTOCOL
from fsm.sender import Sender, _epoch
from fsm.sender_room import Lane, LaneKey
from fsm.states import State
from tests.fsm.kit import (
    BOOT,
    E1,
    E2,
    TIMING,
    abort,
    abort_ack,
    grant,
    lane_of,
    nack,
    of_type,
    parked,
    ready,
    refusal,
    register,
    register_ack,
    sender,
    sent,
    status,
    write_out,
)


def wait_in(state: str, now: float = 0, **config: Any) -> Sender:
    """A sender whose request has rested in a situation since ``now``."""
    who = sender(source_blocks=5, **config)
    who.submit(1, 20, now)
    if state == "registered, not staged":
        who.receive(register(), now)
    elif state == "early grant kept":
        who.receive(register(), now)
        who.receive(grant(), now)
    elif state != "not registered":
        who.staged(1, now)
        who.receive(register(), now)
        if state in ("writing", "committed"):
            who.receive(grant(), now)
        if state == "committed":
            who.sent(1, E1, 0, 0, now)
    return who


STATES = (
    "not registered",
    "registered, not staged",
    "early grant kept",
    "offered",
    "writing",
    "committed",
)


# --- R9 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "limit", "reason", "lifecycle"),
    [
        ("not registered", 50, "BOOTSTRAP_DEADLINE", State.BOOTSTRAPPING),
        ("registered, not staged", 100, "QUEUE_DEADLINE", State.WAITING),
        ("early grant kept", 100, "QUEUE_DEADLINE", State.WAITING),
        ("offered", 30 + 200, "DEADLINE", State.WAITING),
        ("writing", 30, "DEADLINE", State.TRANSFERRING),
        ("committed", 30 + 200, "DEADLINE", State.RESUMING),
    ],
)
def test_r9_every_state_has_its_deadline(state: str, limit: int, reason: str, lifecycle: State) -> None:
    who = wait_in(state, 1000)
    assert lane_of(who).state == lifecycle
    assert of_type(who.tick(1000 + limit - 0.5), Ended) == []
    if lane_of(who).pending is None:
        assert who.next_timer_s() == 1000 + limit
    effects = who.tick(1000 + limit)
    assert [(e.state, e.reason) for e in of_type(effects, Ended)] == [(State.FAILED, reason)]
    aborts = [Abort(1, E1, 0, 0, reason)] if lifecycle != State.BOOTSTRAPPING else []
    assert sent(effects) == aborts


def test_r9_the_first_grant_may_have_to_wait_for_other_sender_ranks() -> None:
    """Until then, another rank's part may still have to be submitted, registered and staged: all at its slowest."""
    for senders, limit in ((1, 230), (2, 230 + 50 + 100)):
        who = wait_in("offered", 1000, senders=senders)
        assert of_type(who.tick(1000 + limit - 0.5), Ended) == []
        assert len(of_type(who.tick(1000 + limit), Ended)) == 1
    for state, limit in (("committed", 230), ("writing", 30), ("registered, not staged", 100)):
        who = wait_in(state, 1000, senders=2)
        assert of_type(who.tick(1000 + limit - 0.5), Ended) == []
        assert len(of_type(who.tick(1000 + limit), Ended)) == 1


def test_r9_nothing_waits_longer_than_the_longest_time() -> None:
    who = wait_in("offered", 0, senders=2)
    lane_of(who).peer_queue_s = TIMING.queue_deadline_s
    assert who._limit(who.rooms[1], lane_of(who))[0] == TIMING.longest_s


def test_r9_without_deadlines_nobody_times_out() -> None:
    who = wait_in("writing", rules=replace(PROTOCOL, deadlines=lambda: False))
    assert who.next_timer_s() is None
    assert who.tick(100_000) == []


def test_a_deadline_of_one_rank_leaves_the_others() -> None:
    who = ready(receiver_ranks=(0, 1))
    who.receive(grant(), 0)
    effects = who.tick(30)
    assert [e.receiver_rank for e in of_type(effects, Ended)] == [0]
    assert lane_of(who, rank=1).live and 1 in who.rooms


def test_a_part_that_has_ended_does_not_keep_the_others_from_ending() -> None:
    who = ready(receiver_ranks=(0, 1))
    who.receive(abort(), 0)
    assert [e.receiver_rank for e in of_type(who.tick(230), Ended)] == [1]


def test_several_requests_time_out_in_one_tick() -> None:
    who = sender()
    for room in (4, 2):
        who.submit(room, 8, 0)
    assert [e.room for e in of_type(who.tick(50), Ended)] == [4, 2]


# --- R3: resends ----------------------------------------------------------------------------------------


def test_r3_an_offer_is_sent_again_until_it_is_answered() -> None:
    who = ready(now=10)
    message = Offer(1, E1, 0, 0, 20, True, False)
    assert who.next_timer_s() == 17
    assert who.tick(16.5) == []
    assert who.tick(17) == [Send(message, resend=True)]
    assert who.next_timer_s() == 24
    assert who.tick(25) == [Send(message, resend=True)]
    assert who.next_timer_s() == 32
    who.receive(grant(), 26)
    assert who.tick(32) == []


def test_r3_an_abort_is_sent_again_until_it_is_acknowledged() -> None:
    who = wait_in("offered", 0)
    who.abort(1, 100)
    message = Abort(1, E1, 0, 0, "ABORTED")
    assert who.next_timer_s() == 107
    assert who.tick(106) == []
    assert who.tick(108) == [Send(message, resend=True)]
    assert who.next_timer_s() == 115
    assert who.receive(AbortAck(1, E1, 0, 0, BOOT, -1), 110) == []
    assert who.next_timer_s() == 160
    assert who.tick(115) == []


def test_r3_an_abort_that_nobody_answers_ends_with_its_tombstone() -> None:
    who = wait_in("offered", 0)
    who.abort(1, 100)
    who.tick(155)
    assert who.next_timer_s() == 160
    assert who.tick(160) == [] and who.tombstones == {}


def test_an_acknowledgement_that_nobody_asked_for_is_let_through() -> None:
    who = wait_in("offered")
    before = who.save(0)
    assert who.receive(AbortAck(1, E1, 0, 0, BOOT, -1), 0) == []
    assert who.save(0) == before


def test_aborts_are_sent_again_in_the_order_of_rooms() -> None:
    who = sender()
    for room in (5, 3, 4):
        who.submit(room, 8, 0)
        who.receive(register(room), 0)
    for room in (4, 5, 3):
        who.abort(room, 0)
    assert [message.room for message in sent(who.tick(7)) if isinstance(message, Abort)] == [3, 4, 5]


# --- the own abort --------------------------------------------------------------------------------------


def test_an_abort_tells_every_rank() -> None:
    who = ready(receiver_ranks=(0, 1, 2))
    who.receive(abort(ranks=(0, 1)), 0)
    assert who.abort(1, 3) == [
        Moved(0, 1, E1, "fail", State.WAITING, State.FAILED),
        Ended(0, 1, E1, State.FAILED, "ABORTED"),
        Send(Abort(1, E1, 0, 0, "ABORTED")),
        Moved(2, 1, E1, "fail", State.WAITING, State.FAILED),
        Ended(2, 1, E1, State.FAILED, "ABORTED"),
        Unstage(1),
        Send(Abort(1, E1, 0, 2, "ABORTED")),
    ]
    tombstone = who.tombstones[LaneKey(1, E1, 2)]
    assert (tombstone.resend_at, tombstone.expires_at) == (10, 63)


def test_an_abort_of_what_is_not_there_is_refused() -> None:
    who = sender()
    for room in (4, 2):
        who.submit(room, 8, 0)
    with pytest.raises(LocalError, match=r"^room 1: nothing to abort; rooms here: \[2, 4\]$"):
        who.abort(1, 0)


def test_who_was_never_registered_cannot_be_told() -> None:
    who = wait_in("not registered")
    assert sent(who.abort(1, 0)) == [] and who.tombstones == {}


def test_an_abort_during_a_write_keeps_the_payload_until_it_has_ended() -> None:
    who = wait_in("writing")
    effects = who.abort(1, 3)
    assert sent(effects) == [Abort(1, E1, 0, 0, "ABORTED")]
    assert of_type(effects, Unstage) == [] and 1 in who.rooms
    assert who.sent(1, E1, 0, 0, 5) == [Unstage(1)]
    assert who.rooms == {}


# --- R11: the peer's ABORT ------------------------------------------------------------------------------


def acknowledged(effects: list[Effect]) -> list[AbortAck]:
    return [message for message in sent(effects) if isinstance(message, AbortAck)]


@pytest.mark.parametrize("state", STATES)
def test_r11_an_abort_is_acknowledged_once_nothing_is_written_any_more(state: str) -> None:
    who = wait_in(state)
    effects = who.receive(abort(), 3)
    seq = 0 if state in ("writing", "committed") else -1
    ack = AbortAck(1, E1, 0, 0, 11, seq)
    if state == "writing":
        assert sent(effects) == [] and lane_of(who).ack_owed
        assert acknowledged(who.receive(abort(), 4)) == []
        assert who.sent(1, E1, 0, 0, 5) == [Send(ack), Unstage(1)]
        assert who.receive(abort(), 6) == [Send(ack)]
    else:
        assert sent(effects) == [ack]
        assert who.receive(abort(), 4) == [Send(ack)]
    expected = [] if state == "not registered" else ["PEER_ABORTED"]
    assert [e.reason for e in of_type(effects, Ended)] == expected
    assert refusal(who.receive(grant(), 7))[0] == NackCode.CANCELLED
    assert refusal(who.receive(grant(1, 8), 7))[0] == NackCode.CANCELLED


def test_r11_after_the_write_has_ended_the_debt_is_paid() -> None:
    who = ready(receiver_ranks=(0, 1))
    who.receive(grant(), 0)
    who.receive(abort(), 0)
    assert acknowledged(who.sent(1, E1, 0, 0, 0)) == [AbortAck(1, E1, 0, 0, 11, 0)]
    assert lane_of(who).ack_owed is False and 1 in who.rooms
    assert lane_of(who).parked is None
    assert who.sent(1, E1, 0, 0, 0) == []
    assert who.receive(abort(), 0) == [Send(AbortAck(1, E1, 0, 0, 11, 0))]


def test_r11_a_write_that_broke_after_the_abort_has_ended_too() -> None:
    who = wait_in("writing")
    who.receive(abort(), 0)
    assert who.write_failed(1, E1, 0, 0, 1) == [Send(AbortAck(1, E1, 0, 0, 11, 0)), Unstage(1)]


def test_r11_an_abort_of_an_unknown_room_is_acknowledged_and_refuses_what_comes_later() -> None:
    who = sender(rank=2, receiver_ranks=(3,))
    ack = Send(AbortAck(5, E1, 2, 3, 11, -1))
    assert who.receive(abort(5, ranks=(2, 3)), 0) == [ack]
    assert who.rooms == {}
    tombstone = who.tombstones[LaneKey(5, E1, 3)]
    assert (tombstone.state, tombstone.last_status, tombstone.expires_at, tombstone.abort) == (
        State.FAILED,
        None,
        60,
        None,
    )
    before = who.save(9)
    assert who.receive(abort(5, ranks=(2, 3)), 9) == [ack]
    assert who.save(9) == before
    who.submit(5, 8, 9)
    assert refusal(who.receive(register(5, ranks=(2, 3)), 9)) == (NackCode.CANCELLED, "REGISTER", -1)
    assert refusal(who.receive(grant(room=5, ranks=(2, 3)), 9)) == (NackCode.CANCELLED, "GRANT", 0)


def test_r11_an_abort_of_another_epoch_leaves_the_present_one_alone() -> None:
    who = wait_in("writing")
    assert who.receive(abort(epoch=E2), 0) == [Send(AbortAck(1, E2, 0, 0, 11, -1))]
    assert lane_of(who).live and LaneKey(1, E2, 0) in who.tombstones


def test_r11_an_abort_from_a_tombstone_tells_the_last_seq_that_was_begun() -> None:
    who = ready(8)
    write_out(who, grant())
    assert who.rooms == {}
    assert who.receive(abort(), 0) == [Send(AbortAck(1, E1, 0, 0, 11, 0))]
    assert who.tombstones[LaneKey(1, E1, 0)].state == State.SUCCESS


def test_r11_an_abort_of_one_rank_leaves_the_others() -> None:
    who = ready(receiver_ranks=(0, 1))
    effects = who.receive(abort(), 0)
    assert of_type(effects, Unstage) == [] and lane_of(who, rank=1).live
    assert of_type(who.receive(abort(ranks=(0, 1)), 0), Unstage) == [Unstage(1)]


def test_r11_an_abort_ends_an_early_grant() -> None:
    who = parked()
    who.receive(abort(), 0)
    assert who.staged(1, 0) == [Unstage(1)]


def test_r8_a_grant_that_is_kept_at_the_end_is_dropped() -> None:
    """A grant behind the last token: the request succeeds without it."""
    who = ready(8)
    who.receive(grant(), 0)
    who.receive(grant(1, 8), 0)
    effects = who.sent(1, E1, 0, 0, 0)
    assert [e.state for e in of_type(effects, Ended)] == [State.SUCCESS]
    assert of_type(effects, Write) == []


# --- NACK of an OFFER -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", list(NackCode))
def test_a_nack_of_the_offer_is_final(code: NackCode) -> None:
    who = wait_in("offered")
    effects = who.receive(nack(code, "OFFER", boot_id=BOOT), 3)
    assert effects == [
        Moved(0, 1, E1, "fail", State.WAITING, State.FAILED),
        Ended(0, 1, E1, State.FAILED, code.name),
        Unstage(1),
    ]
    assert who.tombstones[LaneKey(1, E1, 0)].abort is None


@pytest.mark.parametrize("state", STATES)
def test_a_nack_of_anything_else_is_let_through(state: str) -> None:
    who = wait_in(state)
    before = who.save(0)
    assert who.receive(nack(NackCode.INTERNAL, "STATUS", 0), 0) == []
    assert who.receive(nack(NackCode.INTERNAL, "OFFER", epoch=E2), 0) == []
    assert who.receive(nack(NackCode.INTERNAL, "OFFER", room=9), 0) == []
    if state != "offered":
        assert who.receive(nack(NackCode.INTERNAL, "OFFER"), 0) == []
    assert who.save(0) == before


# --- R8 -------------------------------------------------------------------------------------------------


def test_r8_the_tombstone_repeats_the_last_status() -> None:
    who = ready(8)
    (first, *_) = write_out(who, grant(), 0)
    before = who.save(1)
    assert who.receive(grant(), 1) == [first._replace(resend=True)]  # type: ignore[union-attr]
    assert who.save(1) == before
    assert who.next_timer_s() == 60
    who.tick(59.5)
    assert len(who.tombstones) == 1
    who.tick(60)
    assert who.tombstones == {}
    assert refusal(who.receive(grant(), 60)) == (NackCode.UNKNOWN_ROOM, "GRANT", 0)


def test_r8_what_others_keep_here_answers_when_the_tombstone_is_gone() -> None:
    who = ready(8, receiver_ranks=(0, 1, 2))
    (first, *_) = write_out(who, grant(), 0)
    who.receive(abort(ranks=(0, 1)), 0)
    who.tick(60)
    assert who.tombstones == {} and 1 in who.rooms
    assert who.receive(grant(), 61) == [first._replace(resend=True)]  # type: ignore[union-attr]
    assert refusal(who.receive(grant(ranks=(0, 1)), 61)) == (NackCode.CANCELLED, "GRANT", 0)


def test_r8_only_a_submit_makes_a_room() -> None:
    who = sender()
    for message in (register(), grant(), nack(NackCode.INTERNAL, "OFFER"), abort_ack(), Heartbeat(1, 0, 0)):
        who.receive(message, 0)
    assert who.rooms == {} and who.tombstones == {}


@pytest.mark.parametrize("news", [Heartbeat(2, 0, 0), register(9, Epoch(2, 1))])
def test_r8_a_new_boot_id_fails_what_the_old_one_registered(news: Any) -> None:
    who = wait_in("offered")
    who.submit(3, 4, 0)
    effects = who.receive(news, 5)
    assert effects[:3] == [
        Moved(0, 1, E1, "fail", State.WAITING, State.FAILED),
        Ended(0, 1, E1, State.FAILED, "PEER_RESTARTED"),
        Unstage(1),
    ]
    assert who.peer_boot_ids == {0: 2}
    assert who.tombstones[LaneKey(1, E1, 0)].abort is None, "nobody is there to be told"
    assert lane_of(who, 3).live, "it was not registered yet, and may be by the new process"


def test_r8_a_new_boot_id_of_one_rank_is_that_ranks_alone() -> None:
    who = ready(receiver_ranks=(0, 1))
    who.receive(Heartbeat(2, 0, 1), 0)
    assert lane_of(who).live and not lane_of(who, rank=1).live
    assert who.peer_boot_ids == {0: 1, 1: 2}


def test_r8_what_has_ended_fails_no_more() -> None:
    who = ready(8, receiver_ranks=(0, 1))
    write_out(who, grant())
    assert who.receive(Heartbeat(2, 0, 0), 0) == []


def test_r8_the_same_and_older_boot_ids_change_nothing() -> None:
    who = sender()
    who.submit(1, 8, 0)
    who.receive(register(epoch=Epoch(4, 1)), 0)
    before = who.save(0)
    assert who.receive(Heartbeat(4, 0, 0), 0) == []
    assert who.receive(Heartbeat(3, 0, 0), 0) == []
    assert refusal(who.receive(register(9, Epoch(3, 7)), 0)) == (NackCode.STALE_EPOCH, "REGISTER", -1)
    assert who.save(0) == before


def test_r8_the_registration_that_fences_an_attempt_does_not_take_its_place() -> None:
    who = wait_in("offered")
    effects = who.receive(register(epoch=Epoch(2, 1)), 0)
    assert refusal(effects[-1:]) == (NackCode.UNKNOWN_ROOM, "REGISTER", -1)
    assert who.rooms == {}


# --- to whom, from whom ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [(1, 0), (0, 5)])
def test_a_message_between_other_ranks_does_nothing_here(ranks: tuple[int, int]) -> None:
    who = wait_in("writing")
    before = who.save(0)
    other = ranks[1]
    assert who.receive(Heartbeat(99, *ranks), 0) == []
    assert who.receive(nack(NackCode.INTERNAL, "OFFER", ranks=ranks), 0) == []
    assert who.receive(abort_ack(ranks=ranks), 0) == []
    assert who.receive(abort(ranks=ranks), 0) == [Send(AbortAck(1, E1, 0, other, 11, -1))]
    stale = NackCode.STALE_EPOCH
    assert who.receive(register(ranks=ranks), 0) == [Send(Nack(1, E1, 0, other, stale, "REGISTER", -1, 11))]
    assert who.receive(grant(4, ranks=ranks), 0) == [Send(Nack(1, E1, 0, other, stale, "GRANT", 4, 11))]
    assert who.save(0) == before


def test_a_message_of_the_wrong_direction_is_let_through() -> None:
    who = wait_in("writing")
    before = who.save(0)
    assert who.receive(status(0, 8), 0) == []
    assert who.receive(Offer(1, E1, 0, 0, 20, True, False), 0) == []
    assert who.receive(register_ack(), 0) == []
    assert who.save(0) == before


def test_heartbeats_go_to_every_rank() -> None:
    who = sender(timing=replace(TIMING, heartbeat_s=5), rank=1, receiver_ranks=(1, 3))
    beats = [Send(Heartbeat(11, 1, 1)), Send(Heartbeat(11, 1, 3))]
    assert who.next_timer_s() == 0
    assert who.tick(0) == beats
    assert who.next_timer_s() == 5
    assert who.tick(4) == []
    assert who.tick(5) == beats
    assert who.next_timer_s() == 10


def test_the_next_timer_is_the_first_of_all() -> None:
    who = wait_in("offered", 100)
    assert who.next_timer_s() == 107
    who.receive(grant(), 103)
    assert who.next_timer_s() == 133
    who.receive(abort(9), 50)
    assert who.next_timer_s() == 110
    who.receive(abort(), 104)
    assert who.next_timer_s() == 110, "a lane that has ended has no deadline"


def test_a_sender_rests_when_its_aborts_are_acknowledged() -> None:
    who = wait_in("offered")
    assert who.resting
    who.abort(1, 0)
    assert not who.resting
    who.receive(AbortAck(1, E1, 0, 0, BOOT, -1), 0)
    assert who.resting


def test_a_lane_without_an_epoch_is_never_spoken_for() -> None:
    with pytest.raises(LocalError, match=r"^a lane that no receiver registered has no epoch$"):
        _epoch(Lane(0, 0))
