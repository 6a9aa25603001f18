"""The three tables: a request on the receiver, a request on the sender, and a landing block.

The receiver
------------
A receiver's request waits first to be known to the sender (*Bootstrapping*), then for the offer, for
blocks and for its first chunk (*WaitingForInput*). When a chunk has landed and tokens are still missing
it is *Transferring*: the receiver must act. Once the continuation has been granted it is
*ResumeRequested*: the sender must act. Historical code called both of these Transferring, and had to tell
"please act" from "please wait" out of side data such as block lists, counters and buffer headers. Every
detector of the zoo is an attempt at that, and the five-state table below is where they run.

A request may leave *WaitingForInput* for *Success* at once, when everything fitted into one grant. The
guard ``resume_due`` is rule R2: a watermark is resumed once. ``delivered`` says that every token has been
copied out and verified on every rank.

The sender
----------
The sender keeps one lifecycle per receiver rank. It waits for that rank's REGISTER (*Bootstrapping*),
stages, offers and waits for a grant (*WaitingForInput*), executes one (*Transferring*), and after a
chunk that was not the last awaits the next grant (*ResumeRequested*). ``last_chunk`` says that the
committed tokens now equal the total.

A landing block
---------------
A block may be written only while it is *Granted* (or *Quarantined*, by its old owner) and read only
while it is *Landed* or *Reading*. There are two ways out of *Granted* that skip landing. ``unreached``: the
closing STATUS says that the sender did not get as far as this block, which is also its word that nothing
more will be written. ``quarantine``: the grant will not land, and nobody knows yet whether a write is
still under way; only a quiescence proof leads out of there.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from fsm.states import BlockState, State
from fsm.table import REFUSE, Lifecycle, Row, Table


class ReceiverFacts(NamedTuple):
    """What the guards of the receiver's table look at; computed by the kernel, never from a buffer."""

    resume_due: bool = False
    partial: bool = False
    delivered: bool = False


class SenderFacts(NamedTuple):
    """What the guard of the sender's table looks at."""

    last_chunk: bool = False


def _resume_due(facts: Any) -> bool:
    return bool(facts.resume_due)


def _partial(facts: Any) -> bool:
    return bool(facts.partial)


def _delivered(facts: Any) -> bool:
    return bool(facts.delivered)


def _last_chunk(facts: Any) -> bool:
    return bool(facts.last_chunk)


_FAIL = Row("fail", State.FAILED, effect="close", why="aborted, timed out, refused or broken")
_LANDED = (
    Row("landed", State.TRANSFERRING, "partial", "copy_out", "a chunk is in memory, tokens are missing"),
    Row("landed", REFUSE, "!partial", why="the last chunk leads to Success once it is delivered"),
)
_COMPLETE = (
    Row("complete", State.SUCCESS, "delivered", "close", "every token landed once, verified, delivered"),
    Row("complete", REFUSE, "!delivered", why="tokens are still missing"),
)
_NOT_DUE = "R2: this watermark was resumed already, or nothing is missing"
_RESUME_REFUSED = Row("resume", REFUSE, "!resume_due", why=_NOT_DUE)

RECEIVER_TABLE = Table(
    "receiver",
    initial=State.BOOTSTRAPPING,
    terminal=(State.SUCCESS, State.FAILED),
    rows={
        State.BOOTSTRAPPING: [
            Row("registered", State.WAITING, why="REGISTER_ACK was seen on every rank, the layouts agree"),
            _FAIL,
        ],
        State.WAITING: [
            Row("grant", State.WAITING, effect="send_grant", why="grant 0: early, or for the OFFER's total"),
            *_LANDED,
            *_COMPLETE,
            _FAIL,
        ],
        State.TRANSFERRING: [
            Row("resume", State.RESUMING, "resume_due", "send_grant", "grant k >= 1, for this watermark"),
            _RESUME_REFUSED,
            _FAIL,
        ],
        State.RESUMING: [*_LANDED, *_COMPLETE, _FAIL],
        State.SUCCESS: [],
        State.FAILED: [],
    },
    guards={"resume_due": _resume_due, "partial": _partial, "delivered": _delivered},
)

RECEIVER_FIVE_STATE_TABLE = Table(
    "receiver (historical, five states)",
    initial=State.BOOTSTRAPPING,
    terminal=(State.SUCCESS, State.FAILED),
    rows={
        State.BOOTSTRAPPING: [Row("registered", State.WAITING), _FAIL],
        State.WAITING: [Row("grant", State.WAITING, effect="send_grant"), *_LANDED, *_COMPLETE, _FAIL],
        State.TRANSFERRING: [
            Row("landed", State.TRANSFERRING, "partial", "copy_out", "landed and asked for look the same"),
            Row("landed", REFUSE, "!partial"),
            Row("resume", State.TRANSFERRING, "resume_due", "send_grant", "the detector says what is due"),
            _RESUME_REFUSED,
            *_COMPLETE,
            _FAIL,
        ],
        State.SUCCESS: [],
        State.FAILED: [],
    },
    guards={"resume_due": _resume_due, "partial": _partial, "delivered": _delivered},
)

SENDER_TABLE = Table(
    "sender",
    initial=State.BOOTSTRAPPING,
    terminal=(State.SUCCESS, State.FAILED),
    rows={
        State.BOOTSTRAPPING: [
            Row("registered", State.WAITING, effect="acknowledge", why="REGISTER with a layout that agrees"),
            _FAIL,
        ],
        State.WAITING: [
            Row("grant", State.TRANSFERRING, effect="write", why="grant 0, and the payload is staged"),
            _FAIL,
        ],
        State.TRANSFERRING: [
            Row("committed", State.SUCCESS, "last_chunk", "send_status", "the last chunk is committed"),
            Row("committed", State.RESUMING, "!last_chunk", "send_status", "the next grant is awaited"),
            _FAIL,
        ],
        State.RESUMING: [
            Row("grant", State.TRANSFERRING, effect="write", why="the next seq, from what was committed"),
            _FAIL,
        ],
        State.SUCCESS: [],
        State.FAILED: [],
    },
    guards={"last_chunk": _last_chunk},
)

BLOCK_TABLE = Table(
    "block",
    initial=BlockState.FREE,
    terminal=(),
    rows={
        BlockState.FREE: [Row("reserve", BlockState.RESERVED, why="picked for a grant about to be sent")],
        BlockState.RESERVED: [
            Row("grant", BlockState.GRANTED, why="named in a GRANT: from here on the sender may write"),
            Row("free", BlockState.FREE, why="the grant was not sent"),
        ],
        BlockState.GRANTED: [
            Row("land", BlockState.LANDED, why="the closing STATUS reached it"),
            Row("unreached", BlockState.FREE, why="the closing STATUS did not reach it, so nothing will"),
            Row("quarantine", BlockState.QUARANTINED, why="it will not land, and a write may be under way"),
        ],
        BlockState.LANDED: [
            Row("read", BlockState.READING, why="the copy out begins"),
            Row("free", BlockState.FREE, why="nobody wants the data any more"),
        ],
        BlockState.READING: [Row("free", BlockState.FREE, why="the copy out has ended")],
        BlockState.QUARANTINED: [Row("release", BlockState.FREE, why="quiescence was proved")],
    },
)


class ReceiverLifecycle(Lifecycle):
    """One request's lifecycle on a receiver rank."""

    __slots__ = ()
    table: ClassVar[Table] = RECEIVER_TABLE


class FiveStateReceiverLifecycle(Lifecycle):
    """The same on the historical table, in which ResumeRequested shows as Transferring."""

    __slots__ = ()
    table: ClassVar[Table] = RECEIVER_FIVE_STATE_TABLE


class SenderLifecycle(Lifecycle):
    """One receiver rank's lifecycle on the sender."""

    __slots__ = ()
    table: ClassVar[Table] = SENDER_TABLE
