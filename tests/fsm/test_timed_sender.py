"""What is the fast sender's own: which lanes it looks at, and when. What it does with them is the plain one's code, and
that they do the same is held over whole worlds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fsm.effects import Effect, Ended, Send
from fsm.errors import LocalError
from fsm.messages import Abort, Heartbeat, Message, Offer
from fsm.rules import PROTOCOL
from fsm.sender import SenderConfig
from fsm.timed_sender import TimedSender
from tests.fsm.kit import E1, LAYOUT, SENDER_BOOT, TIMING, abort, abort_ack, grant, of_type, register, sent


def fast(**config: Any) -> TimedSender:
    config = {"timing": TIMING} | config
    return TimedSender(SenderConfig(LAYOUT, **config), boot_id=SENDER_BOOT)


def offered(who: TimedSender, room: int = 1, now: float = 0) -> list[Effect]:
    who.submit(room, 20, now)
    out = who.receive(register(room), now)
    return out + who.staged(room, now)


def kinds(effects: list[Effect]) -> list[type[Message]]:
    return [type(message) for message in sent(effects)]


def test_a_tick_looks_only_at_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    who = fast(source_blocks=500)
    for room in range(1, 51):
        offered(who, room, now=room / 100)
    looked: list[int] = []
    limit = TimedSender._limit

    def watched(self: TimedSender, record: Any, lane: Any) -> Any:
        looked.append(record.room)
        return limit(self, record, lane)

    monkeypatch.setattr(TimedSender, "_limit", watched)
    assert who.tick(1) == [] and looked == []
    first = TIMING.resend_s + 0.011
    assert [message.room for message in sent(who.tick(first))] == [1]
    assert set(looked) == {1}


def test_an_offer_is_repeated_and_then_its_deadline_passes() -> None:
    who = fast()
    assert kinds(offered(who))[-1] is Offer
    assert kinds(who.tick(7)) == [Offer] and kinds(who.tick(7)) == []
    (ended,) = of_type(who.tick(1000), Ended)
    assert ended.reason == "DEADLINE" and not who.rooms


def test_what_awaits_an_answer_goes_at_once_to_a_rank_that_can_be_reached_again() -> None:
    who = fast(receiver_ranks=(0, 1), source_blocks=100)
    offered(who, 1)
    offered(who, 2)
    who.abort(2, 0)
    assert who.tick(1) == []
    who.reachable(1, 1)
    assert who.tick(1) == [], "it was the other one that awaits nothing"
    who.reachable(0, 1)
    assert kinds(who.tick(1)) == [Offer, Abort]
    assert who.tick(1) == [] and kinds(who.tick(8)) == [Offer, Abort]


def test_an_abort_is_repeated_until_it_is_acknowledged_and_the_tombstone_goes_in_its_time() -> None:
    who = fast()
    offered(who)
    assert kinds(who.abort(1, 0)) == [Abort]
    assert kinds(who.tick(7)) == [Abort] and kinds(who.tick(8)) == []
    who.receive(abort_ack(), 9)
    assert kinds(who.tick(14)) == [] and who.tombstones
    assert who.next_timer_s() == TIMING.tombstone_s
    assert who.tick(TIMING.tombstone_s) == [] and not who.tombstones
    assert who.next_timer_s() is None


def test_an_abort_for_a_room_that_never_was_leaves_a_tombstone_that_goes() -> None:
    who = fast()
    who.receive(abort(), 0)
    assert who.tombstones
    who.tick(TIMING.tombstone_s)
    assert not who.tombstones


def test_a_tombstone_that_went_otherwise_is_not_missed() -> None:
    who = fast()
    who.receive(abort(), 0)
    who.tombstones.clear()
    assert who.tick(TIMING.tombstone_s) == []


def test_progress_moves_a_deadline() -> None:
    who = fast()
    offered(who)
    who.receive(grant(0, 0, 8), 100)
    who.sent(1, E1, 0, 0, 120)
    assert who.tick(149) == [] and 1 in who.rooms
    assert of_type(who.tick(1000), Ended)


def test_lanes_of_one_room_come_in_the_order_of_their_ranks() -> None:
    who = fast(receiver_ranks=(3, 1))
    who.submit(1, 20, 0)
    who.staged(1, 0)
    ended = of_type(who.tick(1000), Ended)
    assert [end.receiver_rank for end in ended] == [3, 1]


def test_heartbeats() -> None:
    who = fast(timing=replace(TIMING, heartbeat_s=5))
    assert sent(who.tick(0)) == [Heartbeat(SENDER_BOOT, 0, 0)]
    assert who.next_timer_s() == 5 and who.tick(4) == [] and kinds(who.tick(5)) == [Heartbeat]
    who.receive(Heartbeat(9, 0, 0), 6)


def test_a_room_of_which_one_lane_has_ended_is_still_looked_at() -> None:
    who = fast(receiver_ranks=(0, 1))
    offered(who)
    who.receive(abort(), 1)
    assert 1 in who.rooms
    assert [end.receiver_rank for end in of_type(who.tick(1000), Ended)] == [1]


def test_only_the_protocol() -> None:
    with pytest.raises(LocalError, match="follows the protocol"):
        TimedSender(SenderConfig(LAYOUT), boot_id=1, rules=replace(PROTOCOL, deadlines=lambda: False))


def test_a_loaded_sender_goes_on() -> None:
    who = fast(source_blocks=500)
    offered(who, 1)
    offered(who, 2)
    who.abort(2, 0)
    other = fast(source_blocks=500)
    other.load(who.save(5), 105)
    again = other.tick(107)
    assert again == who.tick(7) != []
    assert [type(effect) for effect in again] == [Send, Send]
