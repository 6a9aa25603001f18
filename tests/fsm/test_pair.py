"""Receiver and sender together: duplicates, both ways of driving them, save and load, and hooks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest

from fsm.effects import Ended, Send
from fsm.messages import Grant, Register, RegisterAck, Status
from fsm.receiver import Receiver
from fsm.receiver_room import ReceiverRoom
from fsm.sender import Sender
from fsm.sender_room import Lane
from fsm.states import State
from tests.fsm.kit import TIMING, Wire, grant, lane_of, ready, receiver, registered, sender


def pair(
    receivers: int = 1,
    senders: int = 1,
    *,
    flat: bool = False,
    blocks: int = 4,
    room_class: type[ReceiverRoom] | None = None,
    lane_class: type[Lane] = Lane,
    **config: Any,
) -> Wire:
    """Receiver ranks, and the sender ranks that serve them."""
    return Wire(
        [
            receiver(blocks, rank=rank, sender_rank=rank % senders, flat=flat, room_class=room_class, **config)
            for rank in range(receivers)
        ],
        [
            sender(
                rank=index,
                receiver_ranks=tuple(range(index, receivers, senders)),
                senders=senders,
                source_blocks=8,
                flat=flat,
                lane_class=lane_class,
            )
            for index in range(senders)
        ],
    )


SHAPES = [(1, 1), (2, 1), (2, 2), (3, 2)]


def submit_some(wire: Wire, *, early: bool = False) -> None:
    wire.submit(1, 20, early=6 if early else 0)
    wire.submit(2, 9)
    wire.submit(3, 31, early=9 if early else 0)


@pytest.mark.parametrize(("receivers", "senders"), SHAPES)
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("limit", [0, 1, 2])
def test_every_request_succeeds_and_nothing_is_left(receivers: int, senders: int, early: bool, limit: int) -> None:
    wire = pair(receivers, senders, grant_blocks_max=limit)
    submit_some(wire, early=early)
    wire.run()
    assert sorted(wire.endings()) == sorted(
        [(room, "Success", "NONE") for room in (1, 2, 3) for _ in range(2 * receivers)]
    )
    for who in wire.receivers:
        assert who.rooms == {} and who.ledger.free_count == 4 and who.ledger.audit() is None
        assert {tombstone.state for tombstone in who.tombstones.values()} == {State.SUCCESS}
        assert who.waiting == ()
    for one in wire.senders:
        assert one.rooms == {} and one.free_source_blocks == 8


@pytest.mark.parametrize(("receivers", "senders"), SHAPES)
def test_every_token_is_delivered_once_in_order(receivers: int, senders: int) -> None:
    wire = pair(receivers, senders)
    submit_some(wire)
    wire.run()
    for rank in range(receivers):
        for room, total in ((1, 20), (2, 9), (3, 31)):
            end = 0
            for copier, copy in wire.copies:
                if (copier, copy.room) == (rank, room):
                    assert copy.start == end
                    end += copy.tokens
            assert end == total


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("allocator", ["fifo", "lifo", "same-again", "disjoint", "stingy"])
def test_both_ways_of_driving_them_do_the_same(allocator: str, early: bool) -> None:
    logs = []
    for flat in (False, True):
        wire = pair(2, flat=flat, allocator=allocator, grant_blocks_max=2)
        submit_some(wire, early=early)
        wire.between = lambda wire=wire: (
            wire.receivers[0].abort(3) if len(wire.delivered) == 12 and 3 in wire.receivers[0].rooms else None
        )
        wire.run()
        logs.append(wire.log)
    assert logs[0] == logs[1]
    assert len({str(e.state) for e in logs[0] if isinstance(e, Ended)}) == 2


@pytest.mark.parametrize(("receivers", "senders"), SHAPES)
@pytest.mark.parametrize("early", [False, True])
def test_i8_whatever_is_delivered_twice_changes_nothing(receivers: int, senders: int, early: bool) -> None:
    """Every single message of a run, each delivered again at once."""
    wire = pair(receivers, senders, flat=True)
    submit_some(wire, early=early)
    wire.hold_writes = True
    kinds = set()
    for _ in range(400):
        if wire.queue:
            to_receiver, rank, message = item = wire.queue.pop(0)
            wire.deliver(*item)
            target = wire.receivers[rank] if to_receiver else wire.senders[wire.sender_of(rank)]
            before = target.save(0)
            again = target.receive(message, 0)
            assert target.save(0) == before, message
            assert all(isinstance(effect, Send) for effect in again)
            kinds.add(type(message))
        elif wire.writes:
            wire.end_write(*wire.writes.pop(0))
        wire.tick()
        if len(kinds) == 5 and 2 in wire.receivers[0].rooms:
            wire.receivers[0].abort(2)
    assert {Register, RegisterAck, Grant, Status} <= kinds
    assert all(who.rooms == {} for who in (*wire.receivers, *wire.senders))


def test_i8_late_copies_of_everything_change_nothing() -> None:
    """After the end, every message of the run is delivered once more, to whom it was for."""
    wire = pair(2, flat=True)
    submit_some(wire)
    wire.run()
    for to_receiver, rank, message in list(wire.delivered):
        target = wire.receivers[rank] if to_receiver else wire.senders[0]
        before = target.save(0)
        target.receive(message, 0)
        assert target.save(0) == before, message


def reload(wire: Wire) -> None:
    """Every process is replaced by a new one that loads what it saved, at another time on the clock."""
    for rank, who in enumerate(wire.receivers):
        saved = who.save(wire.now)
        assert isinstance(hash(saved), int)
        other = Receiver(who.config, type(who.ledger)(len(who.ledger), who.ledger.allocator), boot_id=99)
        other.load(saved, wire.now)
        assert other.save(wire.now) == saved
        wire.receivers[rank] = other
    for index, one in enumerate(wire.senders):
        saved = one.save(wire.now)
        assert isinstance(hash(saved), int)
        again = Sender(one.config, boot_id=99)
        again.load(saved, wire.now)
        assert again.save(wire.now) == saved
        wire.senders[index] = again


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("beats", [0, 5])
def test_who_was_loaded_goes_on_as_who_ran(early: bool, beats: int) -> None:
    logs = []
    for between in (False, True):
        wire = pair(2, 2, result_tokens=120, total_tokens_max=40)
        for process in (*wire.receivers, *wire.senders):
            object.__setattr__(process.config, "timing", replace(TIMING, heartbeat_s=beats))
        submit_some(wire, early=early)

        def step(wire: Wire = wire, between: bool = between) -> None:
            wire.now += 0.25
            if len(wire.delivered) == 14 and 3 in wire.receivers[0].rooms:
                wire.receivers[0].abort(3)
            if between:
                reload(wire)

        wire.between = step
        for _ in range(300):
            if wire.queue and wire.now % 1.5:
                item = wire.queue.pop(0)
                wire.delivered.append(item)
                wire.deliver(*item)
            wire.between()
            wire.tick()
        logs.append(wire.log)
    assert logs[0] == logs[1]
    assert {str(e.state) for e in logs[0] if isinstance(e, Ended)} == {"Success", "Failed"}


def test_times_are_saved_relative_to_now() -> None:
    """So that two states that differ in nothing but the clock are equal."""
    saved = []
    for now in (0, 1000):
        wire = pair(2)
        wire.now = now
        submit_some(wire)
        for _ in range(9):
            wire.deliver(*wire.queue.pop(0))
            wire.tick()
        wire.receivers[0].abort(2)
        wire.senders[0].abort(3, now)
        wire.tick()
        wire.now += 3
        saved.append([process.save(wire.now) for process in (*wire.receivers, *wire.senders)])
    assert saved[0] == saved[1]


def test_ages_beyond_every_deadline_are_alike() -> None:
    saves = []
    for later in (TIMING.longest_s, TIMING.longest_s + 1):
        who, one = receiver(2), ready()
        registered(who)
        one.receive(grant(), 0)
        assert who.rooms[1].pending is None and lane_of(one).pending is None
        saves.append((who.save(later), one.save(later)))
    assert saves[0] == saves[1]
    who = receiver(2)
    registered(who)
    assert who.save(TIMING.longest_s - 1) != who.save(TIMING.longest_s)


# --- hooks ----------------------------------------------------------------------------------------------


class WatchedRoom(ReceiverRoom):
    """A request whose user wants to know."""

    __slots__ = ()
    seen: ClassVar[list[str]] = []

    def on_enter_Transferring(self, facts: Any) -> None:
        self.seen.append(f"room {self.room} has {self.handled_tokens}")

    def on_enter_Success(self, facts: Any) -> None:
        self.seen.append(f"room {self.room} is done")

    def before_registered(self, facts: Any) -> None:
        self.seen.append(f"registered: {facts}")

    def before_grant(self, facts: Any) -> None:
        self.seen.append(f"granted: {facts}")

    def before_fail(self, facts: Any) -> None:
        self.seen.append(f"failed: {facts}")

    def before_resume(self, facts: Any) -> None:
        self.seen.append(f"resume at {self.handled_tokens}: {facts.resume_due}")


class WatchedLane(Lane):
    """The same for a sender."""

    __slots__ = ()
    seen: ClassVar[list[str]] = []

    def before_registered(self, facts: Any) -> None:
        self.seen.append(f"registered: {facts}")

    def before_grant(self, facts: Any) -> None:
        self.seen.append(f"granted: {facts}")

    def before_fail(self, facts: Any) -> None:
        self.seen.append(f"failed: {facts}")

    def after_committed(self, facts: Any) -> None:
        self.seen.append(f"{self.committed_tokens} committed, last: {facts.last_chunk}")


def test_hooks_are_called_through_the_machine() -> None:
    WatchedRoom.seen.clear()
    WatchedLane.seen.clear()
    wire = pair(blocks=2, room_class=WatchedRoom, lane_class=WatchedLane)
    wire.submit(1, 20)
    wire.run()
    nothing = "ReceiverFacts(resume_due=False, partial=False, delivered=False)"
    assert WatchedRoom.seen == [
        f"registered: {nothing}",
        f"granted: {nothing}",
        "room 1 has 8",
        "resume at 8: True",
        "room 1 has 16",
        "resume at 16: True",
        "room 1 is done",
    ]
    none = "SenderFacts(last_chunk=False)"
    assert WatchedLane.seen == [
        f"registered: {none}",
        f"granted: {none}",
        "8 committed, last: False",
        f"granted: {none}",
        "16 committed, last: False",
        f"granted: {none}",
        "20 committed, last: True",
    ]


def test_hooks_hear_of_failures() -> None:
    wire = pair(blocks=2, room_class=WatchedRoom, lane_class=WatchedLane)
    wire.submit(1, 20)
    WatchedRoom.seen.clear()
    WatchedLane.seen.clear()
    wire.receivers[0].abort(1)
    wire.tick()
    wire.senders[0].abort(1, 0)
    assert WatchedRoom.seen == ["failed: ReceiverFacts(resume_due=False, partial=False, delivered=False)"]
    assert WatchedLane.seen == ["failed: SenderFacts(last_chunk=False)"]


def test_hooks_are_not_called_by_the_flat_lookup() -> None:
    WatchedRoom.seen.clear()
    WatchedLane.seen.clear()
    wire = pair(blocks=2, room_class=WatchedRoom, lane_class=WatchedLane, flat=True)
    wire.submit(1, 20)
    wire.run()
    assert (WatchedRoom.seen, WatchedLane.seen) == ([], [])
    assert (1, "Success", "NONE") in wire.endings()


def test_a_loaded_room_is_of_the_class_that_was_asked_for() -> None:
    who = receiver(2, room_class=WatchedRoom)
    registered(who)
    assert who.rooms[1].history == (("registered", State.WAITING),)
    who.load(who.save(0), 0)
    assert type(who.rooms[1]) is WatchedRoom and who.rooms[1].history == ()
    one = sender(lane_class=WatchedLane)
    one.submit(1, 8, 0)
    one.load(one.save(0), 0)
    assert type(lane_of(one)) is WatchedLane
