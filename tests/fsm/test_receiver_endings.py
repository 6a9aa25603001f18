"""How a request ends on the receiver: deadlines, aborts, the peer's restart, quarantine and tombstones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fsm.effects import Ended, Moved, Recycle, Send
from fsm.errors import LocalError
from fsm.messages import Abort, Epoch, Nack, NackCode
from fsm.ranks import fold
from fsm.reasons import Reason
from fsm.receiver_facts import FactKeeper
from fsm.rules import PROTOCOL
from fsm.states import BlockState, State
from tests.fsm.kit import (
    E1,
    E2,
    abort_ack,
    events,
    fail,
    granted,
    land,
    nack,
    of_type,
    offer,
    offered,
    receiver,
    register_ack,
    registered,
    sent,
    status,
    to_the_end,
    wait_in,
)

# --- R9: a deadline in every state, at its very moment ------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "limit", "reason", "lifecycle"),
    [
        ("unregistered", 50, "BOOTSTRAP_DEADLINE", State.BOOTSTRAPPING),
        ("unoffered", 30 + 200, "DEADLINE", State.WAITING),
        ("early, granted", 30 + 200, "DEADLINE", State.WAITING),
        ("queueing for blocks", 100, "QUEUE_DEADLINE", State.WAITING),
        ("granted", 30, "DEADLINE", State.WAITING),
        ("landed", 100, "QUEUE_DEADLINE", State.TRANSFERRING),
        ("resumed", 30, "DEADLINE", State.RESUMING),
        ("last chunk being copied", 30, "DEADLINE", State.WAITING),
    ],
)
def test_r9_every_state_has_its_deadline(state: str, limit: int, reason: str, lifecycle: State) -> None:
    who = wait_in(state, 1000)
    assert who.rooms[1].state == lifecycle
    others = [room for room in who.rooms if room != 1]
    for room in others:
        who.rooms[room].progress_at = 10_000
    assert limit + 1000 >= (who.next_timer_s() or 0)
    before = who.tick(1000 + limit - 0.5)
    assert of_type(before, Ended) == []
    assert who.rooms[1].failure == Reason.NONE
    if who.rooms[1].pending is None and not others:
        assert who.next_timer_s() == 1000 + limit
    effects = who.tick(1000 + limit)
    assert [(e.state, e.reason) for e in of_type(effects, Ended)] == [(State.FAILED, reason)]


def test_r9_the_deadline_counts_from_the_last_progress() -> None:
    who = wait_in("granted", 1000)
    who.receive(status(0, 8), 1029)
    who.tick(1029)
    who.copied(1, E1, 0, 0, 1100)
    granted(who.tick(1110))
    who.receive(status(1, 16), 1139)
    who.tick(1139)
    assert 1 in who.rooms


def test_r9_registering_counts_from_the_submit_until_the_ack_and_from_there() -> None:
    who = receiver()
    who.submit(1, 1000)
    who.receive(register_ack(), 1049)
    assert events(who.tick(1049)) == ["registered"]
    assert who.rooms[1].progress_at == 1049


def test_r9_a_total_that_all_ranks_know_begins_a_wait_of_its_own() -> None:
    """From the tick in which it is agreed the request queues for its own blocks, and no more for the peer."""
    who = receiver(2)
    offered(who, 20, room=9)
    registered(who, 0)
    who.receive(offer(20, 1, who.rooms[1].epoch), 40)
    assert who._limit(who.rooms[1]) == (230, Reason.DEADLINE)
    who.tick(50)
    assert who._limit(who.rooms[1]) == (100, Reason.QUEUE_DEADLINE)
    assert who.rooms[1].progress_at == 50
    who.tick(60)
    assert who.rooms[1].progress_at == 50


def test_r9_an_early_grant_whose_total_is_agreed_waits_for_the_write() -> None:
    who = wait_in("early, granted")
    who.receive(offer(20), 100)
    who.tick(100)
    assert who._limit(who.rooms[1]) == (30, Reason.DEADLINE)


def test_r9_the_clock_of_an_earlier_failure_is_kept() -> None:
    who = wait_in("granted", 0)
    who.abort(1)
    effects = who.tick(500)
    assert [e.reason for e in of_type(effects, Ended)] == ["ABORTED"]


def test_r9_without_deadlines_nobody_times_out() -> None:
    who = receiver(2, rules=replace(PROTOCOL, deadlines=lambda: False))
    offered(who, 20)
    assert who.next_timer_s() == 7
    assert sent(who.tick(100_000)) != [] and 1 in who.rooms
    who.receive(status(0, 8), 0)
    assert who.next_timer_s() is None


# --- failing --------------------------------------------------------------------------------------------


def test_a_request_that_waits_for_nothing_fails() -> None:
    who = receiver()
    who.submit(1, 0)
    assert fail(who, 3) == [
        Moved(0, 1, E1, "fail", State.BOOTSTRAPPING, State.FAILED),
        Ended(0, 1, E1, State.FAILED, "ABORTED"),
        Send(Abort(1, E1, 0, 0, "ABORTED")),
    ]
    assert who.rooms == {}
    tombstone = who.tombstones[1, E1]
    assert (tombstone.state, tombstone.reason, tombstone.room, tombstone.epoch) == (
        State.FAILED,
        Reason.ABORTED,
        1,
        E1,
    )
    assert (tombstone.expires_at, tombstone.resend_at, tombstone.holds_blocks) == (63, 10, False)


def test_an_abort_of_what_is_not_there_is_refused() -> None:
    who = receiver()
    who.submit(4, 0)
    who.submit(2, 0)
    with pytest.raises(LocalError, match=r"^room 1: nothing to abort; live rooms: \[2, 4\]$"):
        who.abort(1)


def test_r5_a_grant_that_will_not_land_goes_to_quarantine() -> None:
    who = receiver(4, grant_blocks_max=2, rank=1, sender_rank=2)
    who.submit(1, 0)
    ranks = (2, 1)
    who.receive(register_ack(ranks=ranks), 0)
    who.tick(0)
    who.receive(offer(20, ranks=ranks), 0)
    refs = granted(who.tick(0)).blocks
    assert fail(who, 3) == [
        Moved(1, 1, E1, "fail", State.WAITING, State.FAILED),
        Ended(1, 1, E1, State.FAILED, "ABORTED"),
        Send(Abort(1, E1, 2, 1, "ABORTED")),
    ]
    tombstone = who.tombstones[1, E1]
    assert (tombstone.held, tombstone.held_seq, tombstone.reading) == (refs, 0, ())
    assert [who.ledger.record(b).state for b in (0, 1)] == [BlockState.QUARANTINED] * 2
    assert who.ledger.free_count == 2


def test_r5_what_has_landed_is_free_and_what_is_being_read_is_free_after_that() -> None:
    rules = replace(PROTOCOL, copy_when_landed=lambda room: False)
    who = receiver(4, grant_blocks_max=2, rules=rules)
    offered(who, 20)
    refs = who.rooms[1].grant.blocks  # type: ignore[union-attr]
    who.receive(status(0, 8), 0)
    effects = fail(who, 3)
    assert effects[-2:] == [Recycle((0, 1), True), Send(Abort(1, E1, 0, 0, "ABORTED"))]
    assert who.ledger.free_count == 4 and not who.tombstones[1, E1].holds_blocks

    who = wait_in("landed")
    refs = who.rooms[1].chunks[0].blocks
    fail(who, 3)
    tombstone = who.tombstones[1, E1]
    assert [chunk.blocks for chunk in tombstone.reading] == [refs] and tombstone.holds_blocks
    assert who.ledger.free_count == 0
    assert who.copied(1, E1, 1, 0, 4) == [] and tombstone.holds_blocks
    assert who.copied(1, E1, 0, 0, 4) == [Recycle((0, 1), True)]
    assert who.ledger.free_count == 2 and not tombstone.holds_blocks
    assert who.copied(1, E1, 0, 0, 4) == []


def test_a_grant_and_a_copy_at_once_are_both_looked_after() -> None:
    who = receiver(4, grant_blocks_max=2)
    offered(who, 20)
    land(who, copy=False)
    fail(who, 3)
    tombstone = who.tombstones[1, E1]
    assert ([ref.block for ref in tombstone.held], tombstone.held_seq) == ([2, 3], 1)
    assert [chunk.seq for chunk in tombstone.reading] == [0]


def test_a_failure_that_came_after_all_had_agreed_on_success_is_too_late() -> None:
    who = receiver(8)
    offered(who, 20)
    land(who)
    agreed = fold((who.observe(0),), PROTOCOL)
    who.abort(1)
    assert of_type(who.decide(agreed, 0), Ended) == [Ended(0, 1, E1, State.SUCCESS, "NONE")]
    assert who.tombstones[1, E1].reason == Reason.NONE


# --- R8: tombstones ---------------------------------------------------------------------------------------


def test_r8_a_tombstone_goes_at_its_time() -> None:
    who = wait_in("unregistered")
    fail(who, 100)
    who.receive(abort_ack(), 100)
    assert who.next_timer_s() == 160
    who.tick(159.5)
    assert len(who.tombstones) == 1
    assert who.tick(160) == []
    assert who.tombstones == {}
    assert who.next_timer_s() is None


def test_r8_a_tombstone_that_holds_blocks_stays() -> None:
    who = wait_in("granted", 100)
    fail(who, 100)
    for now in (160, 200):
        assert sent(who.tick(now)) == [Abort(1, E1, 0, 0, "ABORTED")]
        assert len(who.tombstones) == 1
    assert who.next_timer_s() == 207
    who.receive(abort_ack(), 210)
    who.tick(210)
    assert who.tombstones == {}


def test_r8_an_abort_that_nobody_answers_ends_with_its_tombstone() -> None:
    who = wait_in("unregistered")
    fail(who, 100)
    assert who.tick(160) == []
    assert who.tombstones == {}


def test_r8_success_leaves_a_tombstone_that_sends_nothing() -> None:
    who = receiver(8)
    offered(who, 20)
    to_the_end(who)
    assert who.tombstones[1, E1].abort is None
    assert who.tick(59) == [] and who.tick(60) == [] and who.tombstones == {}


def test_r8_late_messages_revive_nothing() -> None:
    who = wait_in("granted")
    fail(who)
    before = who.save(0)
    assert who.receive(status(0, 8), 0) == []
    assert who.receive(register_ack(), 0) == []
    assert who.receive(nack(NackCode.INTERNAL, "GRANT", 0), 0) == []
    assert who.rooms == {} and who.save(0) == before


def test_r8_a_room_may_be_used_again_and_late_messages_of_the_old_epoch_do_nothing_to_it() -> None:
    who = wait_in("granted")
    fail(who)
    who.submit(1, 0)
    assert who.rooms[1].epoch == E2
    before = who.save(0)
    assert who.receive(status(0, 8), 0) == []
    assert who.receive(register_ack(), 0) == []
    assert who.save(0) == before


def test_which_nack_answers_an_offer() -> None:
    who = wait_in("granted")
    fail(who)

    def code(room: int, epoch: Epoch = E1) -> NackCode:
        (message,) = sent(who.receive(offer(20, room, epoch), 0))
        assert isinstance(message, Nack)
        assert (message.about, message.room, message.epoch, message.seq, message.boot_id) == (
            "OFFER",
            room,
            epoch,
            -1,
            1,
        )
        return message.code

    assert code(1) == NackCode.CANCELLED
    assert code(7) == NackCode.UNKNOWN_ROOM
    who.submit(1, 0)
    assert code(1) == NackCode.STALE_EPOCH
    who.submit(7, 0)
    assert code(7) == NackCode.STALE_EPOCH


def test_r11_nack_and_abort_ack_are_never_answered() -> None:
    who = receiver()
    for code in NackCode:
        assert who.receive(nack(code, "REGISTER", room=5), 0) == []
    assert who.receive(abort_ack(5), 0) == []


def test_aborts_are_sent_again_in_the_order_of_rooms() -> None:
    """By name, so that a receiver that was loaded does what one that ran does."""
    who = receiver()
    for room in (5, 3, 4):
        who.submit(room, 0)
    for room in (4, 5, 3):
        fail(who, 0, room)
    assert [message.room for message in sent(who.tick(7)) if isinstance(message, Abort)] == [3, 4, 5]


def test_what_the_unmatched_rule_is_told() -> None:
    told: list[tuple[FactKeeper, object, float]] = []
    rules = replace(PROTOCOL, unmatched=lambda who, message, now: told.append((who, message, now)))
    who = receiver(rules=rules)
    late = status(0, 8)
    who.receive(late, 4)
    assert told == [(who, late, 4)]
