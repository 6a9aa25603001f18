"""A run of one request, event by event, as a world tells it, and ways to spoil it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fsm.conform.acceptor import Acceptor
from fsm.conform.gaps import Process
from fsm.conform.refusal import Refusal, Refused
from fsm.events import (
    AnyEvent,
    Delivered,
    Executed,
    Finished,
    Granted,
    Progressed,
    Received,
    Sent,
    StateChanged,
    Wrote,
)
from fsm.messages import (
    Abort,
    AbortAck,
    BlockRef,
    Epoch,
    Grant,
    Layout,
    Nack,
    NackCode,
    Offer,
    Register,
    RegisterAck,
    Status,
)

E1 = Epoch(7, 1)
BOOT = 5
BLOCK_TOKENS = 4
TOTAL = 20
CAPACITY = 8
LAYOUT = Layout(
    block_tokens=BLOCK_TOKENS, dim=1, dtype="int64", items=("input_embeddings",), deepstack_levels=0, version=1
)  # fmt: skip

R, S = "receiver", "sender"
B, W, T, RR, OK, BAD = (
    "Bootstrapping", "WaitingForInput", "Transferring", "ResumeRequested", "Success", "Failed",
)  # fmt: skip


def name(room: int = 1, epoch: Epoch = E1, rank: int = 0) -> tuple[int, Epoch, int, int]:
    """The first four fields of a message."""
    return room, epoch, 0, rank


def register(**named: Any) -> Register:
    return Register(*name(**named), LAYOUT)


def ack(boot_id: int = BOOT, compatible: bool = True, **named: Any) -> RegisterAck:
    return RegisterAck(*name(**named), boot_id, compatible, 1.0)


def offer(total: int = TOTAL, **named: Any) -> Offer:
    return Offer(*name(**named), total, True, False)


def blocks(count: int = 2) -> tuple[BlockRef, ...]:
    return tuple(BlockRef(number, 0) for number in range(count))


def grant(seq: int, start: int = -1, capacity: int = CAPACITY, boot_id: int = BOOT, **named: Any) -> Grant:
    start = seq * CAPACITY if start < 0 else start
    return Grant(*name(**named), seq, start, capacity, blocks(-(-capacity // BLOCK_TOKENS)), boot_id)


def status(seq: int, committed: int, total: int = TOTAL, **named: Any) -> Status:
    return Status(*name(**named), seq, committed, total, True, False)


def abort(**named: Any) -> Abort:
    return Abort(*name(**named), "ABORTED")


def abort_ack(executed_seq: int, boot_id: int = BOOT, **named: Any) -> AbortAck:
    return AbortAck(*name(**named), boot_id, executed_seq)


def nack(about: str, code: NackCode = NackCode.UNKNOWN_ROOM, **named: Any) -> Nack:
    return Nack(*name(**named), code, about, boot_id=BOOT)


def moved(
    side: str, source: str, cause: str, target: str, room: int = 1, epoch: Epoch | None = E1, rank: int = 0
) -> Any:
    return StateChanged(side, rank, room, epoch, cause, source, target)


def granted(
    seq: int, start: int = -1, capacity: int = CAPACITY, rank: int = 0, room: int = 1, epoch: Epoch = E1
) -> Any:
    message = grant(seq, start, capacity)
    return Granted(rank, room, epoch, seq, message.start, capacity, message.blocks)


def executed(seq: int, start: int, count: int) -> Executed:
    return Executed(0, 1, E1, seq, start, count)


def wrote(seq: int, start: int, count: int, trespass: str = "") -> Wrote:
    return Wrote(0, 1, E1, seq, start, count, trespass)


def progressed(tokens: int) -> Progressed:
    return Progressed(0, 1, E1, tokens)


def delivered(seq: int, start: int, count: int) -> Delivered:
    return Delivered(0, 1, E1, seq, start, count)


def finished(side: str, state: str, reason: str = "NONE", total: int = TOTAL, epoch: Epoch | None = E1) -> Finished:
    return Finished(side, 0, 1, epoch, state, reason, total)


def beginning() -> list[AnyEvent]:
    """A request that is registered and offered."""
    return [
        Sent(R, register()),
        Received(S, register()),
        moved(S, B, "registered", W),
        Sent(S, ack()),
        Received(R, ack()),
        moved(R, B, "registered", W),
        Sent(S, offer()),
        Received(R, offer()),
    ]


def asked(seq: int) -> list[AnyEvent]:
    """A grant as the receiver decides and sends it."""
    row = moved(R, T, "resume", RR) if seq else moved(R, W, "grant", W)
    capacity = min(CAPACITY, TOTAL - seq * CAPACITY)
    return [row, granted(seq, capacity=capacity), Sent(R, grant(seq, capacity=capacity))]


def served(seq: int) -> list[AnyEvent]:
    """The same grant as the sender carries it out."""
    capacity = min(CAPACITY, TOTAL - seq * CAPACITY)
    end = seq * CAPACITY + capacity
    return [
        Received(S, grant(seq, capacity=capacity)),
        moved(S, RR if seq else W, "grant", T),
        executed(seq, seq * CAPACITY, capacity),
        wrote(seq, seq * CAPACITY, capacity),
        Sent(S, status(seq, end)),
        moved(S, T, "committed", OK if end == TOTAL else RR),
    ]


def taken(seq: int) -> list[AnyEvent]:
    """The chunk as the receiver takes it in."""
    capacity = min(CAPACITY, TOTAL - seq * CAPACITY)
    end = seq * CAPACITY + capacity
    landed = [] if end == TOTAL else [moved(R, RR if seq else W, "landed", T)]
    return [
        Received(R, status(seq, end)), progressed(end), *landed, delivered(seq, seq * CAPACITY, capacity),
    ]  # fmt: skip


def whole_run() -> list[AnyEvent]:
    """One request of three grants, from its submit to both ends."""
    events = beginning()
    for seq in range(3):
        events += [*asked(seq), *served(seq), *taken(seq)]
    return [*events, finished(S, OK), moved(R, RR, "complete", OK), finished(R, OK)]


def world(**options: Any) -> Process:
    return Process(**{"block_tokens": BLOCK_TOKENS, **options})


def late(**options: Any) -> Process:
    """A process before whose first event others are missing."""
    return world(dropped=9, **options)


def silent() -> Process:
    """A process that tells no messages."""
    return world(messages=False)


def read(events: Sequence[Any], process: Process | None = None, **options: Any) -> Acceptor:
    """An acceptor that has read them all."""
    process = process or world()
    acceptor = Acceptor([process], **options)
    for event in events:
        acceptor.take(event, process)
    return acceptor


def refusal(events: Sequence[Any], process: Process | None = None) -> tuple[int, Refusal]:
    """Which event is refused, from 0, and why."""
    process = process or world()
    acceptor = Acceptor([process])
    for number, event in enumerate(events):
        try:
            acceptor.take(event, process)
        except Refused as answer:
            return number, answer.refusal
    raise AssertionError("nothing was refused")


def silenced(events: Sequence[Any]) -> list[Any]:
    """Without messages."""
    return [event for event in events if type(event) not in (Sent, Received)]


def place(events: Sequence[Any], which: Callable[[Any], bool]) -> int:
    """Where the first such event stands."""
    return next(number for number, event in enumerate(events) if which(event))


def inserted(events: Sequence[Any], after: Any, *new: Any) -> tuple[list[Any], int]:
    """With ``new`` behind an event; and where the first of them stands."""
    at = list(events).index(after) + 1
    return [*events[:at], *new, *events[at:]], at


def without(events: Sequence[Any], gone: Any) -> list[Any]:
    """With one event less."""
    left = list(events)
    left.remove(gone)
    return left


def replaced(events: Sequence[Any], old: Any, new: Any) -> tuple[list[Any], int]:
    """With one event another; and where it stands."""
    at = list(events).index(old)
    return [*events[:at], new, *events[at + 1 :]], at
