"""What the tests of receiver and sender share: short ways to make things, and a wire between the two.

Block size is 4 tokens. Times are whole seconds, all different, so that no deadline passes for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from fsm.allocators import Choices, FirstChoice, make_allocator
from fsm.blocks import BlockLedger
from fsm.effects import CopyOut, Effect, Ended, Moved, Send, Stage, Write
from fsm.messages import (
    Abort,
    AbortAck,
    BlockRef,
    Epoch,
    Grant,
    Heartbeat,
    Layout,
    Message,
    Nack,
    NackCode,
    Offer,
    Register,
    RegisterAck,
    Status,
)
from fsm.ranks import fold
from fsm.receiver import Receiver
from fsm.receiver_facts import ReceiverConfig
from fsm.receiver_room import ReceiverRoom
from fsm.rules import PROTOCOL, Rules
from fsm.sender import Sender, SenderConfig
from fsm.sender_room import Lane
from fsm.timing import Timing

BLOCK_TOKENS = 4
LAYOUT = Layout(BLOCK_TOKENS, 1, "int64", ("fill_ids",), 0, 1)
OTHER_LAYOUT = Layout(BLOCK_TOKENS, 2, "int64", ("fill_ids",), 0, 1)
TIMING = Timing(deadline_s=30, queue_deadline_s=100, bootstrap_s=50, resend_s=7, tombstone_s=60, heartbeat_s=0)
PEER_QUEUE = 200
"""The queue deadline that the other side tells."""

BOOT = 1
"""The receiver's boot_id, unless a test says otherwise."""
SENDER_BOOT = 11
E1 = Epoch(BOOT, 1)
E2 = Epoch(BOOT, 2)

T = TypeVar("T")


class Scripted:
    """Choices that answer from a list, and keep what they were asked."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, str]] = []

    def pick(self, options: int, label: str) -> int:
        self.asked.append((options, label))
        return self.answers.pop(0)


FIRST: Choices = FirstChoice()


def receiver(
    blocks: int = 8,
    *,
    boot_id: int = BOOT,
    allocator: str = "fifo",
    rules: Rules = PROTOCOL,
    flat: bool = False,
    room_class: type[ReceiverRoom] | None = None,
    timing: Timing = TIMING,
    **config: Any,
) -> Receiver:
    """A receiver rank with ``blocks`` landing blocks."""
    ledger = BlockLedger(blocks, make_allocator(allocator))
    return Receiver(
        ReceiverConfig(LAYOUT, timing=timing, **config),
        ledger,
        boot_id=boot_id,
        rules=rules,
        flat=flat,
        room_class=room_class,
    )


def sender(
    *,
    boot_id: int = SENDER_BOOT,
    rules: Rules = PROTOCOL,
    flat: bool = False,
    lane_class: type[Lane] = Lane,
    timing: Timing = TIMING,
    **config: Any,
) -> Sender:
    """A sender rank that serves receiver rank 0."""
    return Sender(
        SenderConfig(LAYOUT, timing=timing, **config),
        boot_id=boot_id,
        rules=rules,
        flat=flat,
        lane_class=lane_class,
    )


# --- what a sender says -----------------------------------------------------------------------------------


def register_ack(
    room: int = 1,
    epoch: Epoch = E1,
    *,
    boot_id: int = SENDER_BOOT,
    compatible: bool = True,
    queue_s: float = PEER_QUEUE,
    ranks: tuple[int, int] = (0, 0),
) -> RegisterAck:
    return RegisterAck(room, epoch, *ranks, boot_id, compatible, queue_s)


def offer(
    total: int = 20,
    room: int = 1,
    epoch: Epoch = E1,
    *,
    mrope: bool = True,
    deepstack: bool = False,
    ranks: tuple[int, int] = (0, 0),
) -> Offer:
    return Offer(room, epoch, *ranks, total, mrope, deepstack)


def status(
    seq: int,
    committed: int,
    total: int = 20,
    room: int = 1,
    epoch: Epoch = E1,
    *,
    mrope: bool = True,
    deepstack: bool = False,
    ranks: tuple[int, int] = (0, 0),
) -> Status:
    return Status(room, epoch, *ranks, seq, committed, total, mrope, deepstack)


def nack(
    code: NackCode,
    about: str,
    seq: int = -1,
    room: int = 1,
    epoch: Epoch = E1,
    *,
    boot_id: int = SENDER_BOOT,
    ranks: tuple[int, int] = (0, 0),
) -> Nack:
    return Nack(room, epoch, *ranks, code, about, seq, boot_id)


def abort(room: int = 1, epoch: Epoch = E1, reason: str = "ABORTED", ranks: tuple[int, int] = (0, 0)) -> Abort:
    return Abort(room, epoch, *ranks, reason)


def abort_ack(
    room: int = 1,
    epoch: Epoch = E1,
    *,
    boot_id: int = SENDER_BOOT,
    executed_seq: int = -1,
    ranks: tuple[int, int] = (0, 0),
) -> AbortAck:
    return AbortAck(room, epoch, *ranks, boot_id, executed_seq)


# --- what a receiver says ---------------------------------------------------------------------------------


def register(
    room: int = 1,
    epoch: Epoch = E1,
    *,
    layout: Layout = LAYOUT,
    queue_s: float = PEER_QUEUE,
    ranks: tuple[int, int] = (0, 0),
) -> Register:
    return Register(room, epoch, *ranks, layout, b"", queue_s)


def grant(
    seq: int = 0,
    start: int = 0,
    capacity: int = 8,
    room: int = 1,
    epoch: Epoch = E1,
    *,
    blocks: Iterable[int] = (0, 1),
    ranks: tuple[int, int] = (0, 0),
    sender_boot_id: int = SENDER_BOOT,
) -> Grant:
    refs = tuple(BlockRef(block, 0) for block in blocks)
    return Grant(room, epoch, *ranks, seq, start, capacity, refs, sender_boot_id)


# --- reading effects --------------------------------------------------------------------------------------


def of_type(effects: Sequence[Effect], kind: type[T]) -> list[T]:
    """The effects of one type, in order."""
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: Sequence[Effect]) -> list[Message]:
    """The messages sent, in order, first time or again."""
    return [effect.message for effect in of_type(effects, Send)]


def events(effects: Sequence[Effect]) -> list[str]:
    """The table events fired, in order."""
    return [effect.event for effect in of_type(effects, Moved)]


def granted(effects: Sequence[Effect]) -> Grant:
    """The one GRANT sent for the first time."""
    (message,) = [e.message for e in of_type(effects, Send) if isinstance(e.message, Grant) and not e.resend]
    return message


def grants(effects: Sequence[Effect]) -> list[tuple[int, int, int, int]]:
    """(room, seq, start, capacity) of each GRANT sent."""
    return [(m.room, m.seq, m.start, m.capacity) for m in sent(effects) if isinstance(m, Grant)]


def blocks_of(message: Grant) -> tuple[int, ...]:
    """Its block numbers."""
    return tuple(ref.block for ref in message.blocks)


# --- shortcuts --------------------------------------------------------------------------------------------


def registered(who: Receiver, now: float = 0, *, room: int = 1, early: int = 0, queue_s: float = PEER_QUEUE) -> Epoch:
    """Submit, acknowledge, tick: the request waits for its OFFER, or has its early grant."""
    who.submit(room, now, early_tokens=early)
    epoch = who.rooms[room].epoch
    who.receive(register_ack(room, epoch, queue_s=queue_s), now)
    who.tick(now)
    return epoch


def offered(who: Receiver, total: int = 20, now: float = 0, *, room: int = 1) -> list[Effect]:
    """The same, and the OFFER comes: the effects of the tick that grants."""
    epoch = registered(who, now, room=room)
    who.receive(offer(total, room, epoch), now)
    return who.tick(now)


def land(who: Receiver, now: float = 0, *, room: int = 1, copy: bool = True) -> list[Effect]:
    """The grant that is out is closed; tick; the copy ends. The effects of the tick."""
    record = who.rooms[room]
    out = record.grant
    assert out is not None
    total = record.total_tokens
    who.receive(status(out.seq, min(out.start + out.capacity, total), total, room, record.epoch), now)
    effects = who.tick(now)
    if copy:
        for effect in of_type(effects, CopyOut):
            who.copied(effect.room, effect.epoch, effect.seq, 77, now)
    return effects


def queued(who: Receiver, totals: dict[int, int], now: float = 0) -> list[Effect]:
    """Several requests, room -> total, submitted in this order and offered before anybody is granted anything:
    the effects of the tick that grants."""
    for room in totals:
        who.submit(room, now)
        who.receive(register_ack(room, who.rooms[room].epoch), now)
    who.tick(now)
    for room, total in totals.items():
        who.receive(offer(total, room, who.rooms[room].epoch), now)
    return who.tick(now)


def granted_early(who: Receiver, tokens: int, room: int = 1, now: float = 0) -> Grant:
    """A request that gets an early grant at once."""
    who.submit(room, now, early_tokens=tokens)
    who.receive(register_ack(room, who.rooms[room].epoch), now)
    return granted(who.tick(now))


def to_the_end(who: Receiver, room: int = 1, now: float = 0) -> list[tuple[int, int]]:
    """Land and tick until the room has ended; (start, capacity) of every grant from now on."""
    seen = []
    for _ in range(100):
        if room not in who.rooms:
            return seen
        out = who.rooms[room].grant
        if out is not None:
            seen.append((out.start, out.capacity))
            land(who, now, room=room)
        who.tick(now)
    raise AssertionError("it never ends")


def fail(who: Receiver, now: float = 0, room: int = 1) -> list[Effect]:
    """Abort it, and the tick in which it ends."""
    who.abort(room)
    return who.tick(now)


def wait_in(state: str, now: float = 0) -> Receiver:
    """A receiver whose request has rested in a situation since ``now``."""
    who = receiver(2)
    if state == "unregistered":
        who.submit(1, now)
    elif state == "unoffered":
        registered(who, now)
    elif state == "early, granted":
        granted_early(who, 4, now=now)
    elif state == "queueing for blocks":
        offered(who, 20, now, room=9)
        offered(who, 20, now)
        assert who.rooms[1].grant is None
    elif state == "granted":
        offered(who, 20, now)
    elif state == "landed":
        offered(who, 20, now)
        land(who, now, copy=False)
    elif state == "resumed":
        offered(who, 20, now)
        land(who, now)
        who.tick(now)
    elif state == "last chunk being copied":
        offered(who, 8, now)
        land(who, now, copy=False)
    return who


def ready(total: int = 20, now: float = 0, room: int = 1, **config: Any) -> Sender:
    """A sender whose request is staged, registered and offered."""
    who = sender(**config)
    who.submit(room, total, now)
    who.staged(room, now)
    for rank in who.config.receiver_ranks:
        who.receive(register(room, ranks=(who.config.rank, rank)), now)
    return who


def write_out(who: Sender, message: Grant, now: float = 0) -> list[Effect]:
    """The grant arrives and its write ends: the effects of the end."""
    who.receive(message, now)
    return who.sent(message.room, message.epoch, message.receiver_rank, message.seq, now)


def lane_of(who: Sender, room: int = 1, rank: int = 0) -> Lane:
    return who.rooms[room].lanes[rank]


def refusal(effects: list[Effect]) -> tuple[NackCode, str, int]:
    """Code, kind and seq of the one NACK that these effects are."""
    (message,) = sent(effects)
    assert len(effects) == 1 and isinstance(message, Nack)
    assert (message.boot_id, message.detail) == (11, "")
    return message.code, message.about, message.seq


def parked() -> Sender:
    """A sender that has an early grant and is not staged."""
    who = sender()
    who.submit(1, 20, 0)
    who.receive(register(), 0)
    assert who.receive(grant(), 2) == []
    return who


class Wire:
    """Receiver ranks and sender ranks, and everything between them, in the order in which it was sent.

    Writes and copies end at once, unless ``hold_writes``. ``watch`` is shown every delivery before and after.
    """

    def __init__(self, receivers: Sequence[Receiver], senders: Sequence[Sender]) -> None:
        self.receivers = list(receivers)
        self.senders = list(senders)
        self.now = 0.0
        self.queue: list[tuple[bool, int, Message]] = []
        self.log: list[Effect] = []
        self.delivered: list[tuple[bool, int, Message]] = []
        self.copies: list[tuple[int, CopyOut]] = []
        self.hold_writes = False
        self.writes: list[tuple[int, Write]] = []
        self.between: Callable[[], None] = lambda: None

    def sender_of(self, rank: int) -> int:
        return rank % len(self.senders)

    def submit(self, room: int, total: int, *, early: int = 0) -> None:
        """The request begins on both sides."""
        for index, one in enumerate(self.senders):
            self.from_sender(index, one.submit(room, total, self.now))
        for rank, other in enumerate(self.receivers):
            self.from_receiver(rank, other.submit(room, self.now, early_tokens=early))

    def from_receiver(self, rank: int, effects: list[Effect]) -> None:
        self.log += effects
        for effect in effects:
            if isinstance(effect, Send):
                self.queue.append((False, rank, effect.message))
            elif isinstance(effect, CopyOut):
                self.copies.append((rank, effect))
                copied = self.receivers[rank].copied(effect.room, effect.epoch, effect.seq, effect.start + 5, self.now)
                self.from_receiver(rank, copied)

    def from_sender(self, index: int, effects: list[Effect]) -> None:
        self.log += effects
        for effect in effects:
            if isinstance(effect, Send):
                self.queue.append((True, effect.message.receiver_rank, effect.message))
            elif isinstance(effect, Stage):
                self.from_sender(index, self.senders[index].staged(effect.room, self.now))
            elif isinstance(effect, Write) and self.hold_writes:
                self.writes.append((index, effect))
            elif isinstance(effect, Write):
                self.end_write(index, effect)

    def end_write(self, index: int, write: Write) -> None:
        out = write.grant
        ended = self.senders[index].sent(out.room, out.epoch, out.receiver_rank, out.seq, self.now)
        self.from_sender(index, ended)

    def deliver(self, to_receiver: bool, rank: int, message: Message) -> None:
        """One message arrives."""
        if to_receiver:
            self.from_receiver(rank, self.receivers[rank].receive(message, self.now))
        else:
            index = self.sender_of(rank)
            self.from_sender(index, self.senders[index].receive(message, self.now))

    def tick(self) -> None:
        """One tick of everybody, receiver ranks in step."""
        for index, one in enumerate(self.senders):
            self.from_sender(index, one.tick(self.now))
        agreed = fold(tuple(other.observe(self.now) for other in self.receivers), PROTOCOL)
        for rank, effects in enumerate([other.decide(agreed, self.now) for other in self.receivers]):
            self.from_receiver(rank, effects)

    def run(self, steps: int = 400) -> None:
        """Deliver and tick until nothing is left to deliver, twice over."""
        idle = 0
        while idle < 2 and steps:
            idle = 0 if self.queue else idle + 1
            steps -= 1
            if self.queue:
                item = self.queue.pop(0)
                self.delivered.append(item)
                self.deliver(*item)
            self.between()
            self.tick()
            self.between()
        assert steps, "it does not come to rest"

    def endings(self) -> list[tuple[int, str, str]]:
        """(room, state, reason) of every end that was told."""
        return [(e.room, str(e.state), e.reason) for e in self.log if isinstance(e, Ended)]

    def heartbeats(self) -> list[Heartbeat]:
        return [e.message for e in self.log if isinstance(e, Send) and isinstance(e.message, Heartbeat)]
