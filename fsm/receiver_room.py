"""What a receiver rank keeps of one request: while it lives (`ReceiverRoom`), and after (`Tombstone`)."""

from __future__ import annotations

from collections.abc import Hashable
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

from fsm.blocks import Owner
from fsm.kernel import UNKNOWN
from fsm.lifecycle import RECEIVER_FIVE_STATE_TABLE, ReceiverLifecycle
from fsm.messages import Abort, BlockRef, Epoch, Grant, Message, Status
from fsm.reasons import Reason
from fsm.table import Lifecycle, Table


class Chunk(NamedTuple):
    """Tokens that have landed and are not yet copied out; ``reading`` once the copy has begun. ``checksum`` is
    the sender's, if it sent one."""

    seq: int
    start: int
    tokens: int
    blocks: tuple[BlockRef, ...]
    reading: bool
    checksum: int | None = None


_PLAIN = (
    "state", "room", "epoch", "early_tokens", "registered", "total_tokens", "flags", "word_tokens",
    "landed_tokens", "landed_seq", "grant", "closing", "chunks", "next_seq", "handled_tokens",
    "last_resume_at", "delivered_tokens", "reserved_tokens", "position_delta", "failure", "notes", "pending",
    "peer_boot_id", "peer_queue_s", "peer_gone", "total_agreed", "resumes", "leased",
)  # fmt: skip


class ReceiverRoom(ReceiverLifecycle):
    """One live request on one receiver rank.

    ``word_tokens`` is the sender's word, ``landed_tokens`` the own completion, ``handled_tokens`` the agreed
    watermark up to which chunks were taken, ``delivered_tokens`` how many of them are in the result.
    ``grant`` is the one grant that is out; ``closing`` its STATUS, where the transport's own completion is
    still awaited. ``pending`` is the message that awaits an answer and is sent again until it comes.
    ``peer_gone``: the process that it was registered with was proved to write no more. ``total_agreed``:
    every rank knows the total. ``leased``: the caller keeps the landed blocks instead of a copy. ``notes``
    belongs to wrong rules alone.
    """

    __slots__ = (*(name for name in _PLAIN if name != "state"), "progress_at", "resend_at")

    def __init__(self, room: int, epoch: Epoch, early_tokens: int, now_s: float) -> None:
        super().__init__()
        self.room = room
        self.epoch = epoch
        self.early_tokens = early_tokens
        self.registered = False
        self.total_tokens: int = UNKNOWN
        self.flags: int = UNKNOWN
        self.word_tokens = 0
        self.landed_tokens = 0
        self.landed_seq = -1
        self.grant: Grant | None = None
        self.closing: Status | None = None
        self.chunks: tuple[Chunk, ...] = ()
        self.next_seq = 0
        self.handled_tokens = 0
        self.last_resume_at = 0
        self.delivered_tokens = 0
        self.reserved_tokens = 0
        self.position_delta = 0
        self.failure = Reason.NONE
        self.notes: Hashable = None
        self.pending: Message | None = None
        self.peer_boot_id = 0
        self.peer_queue_s = 0.0
        self.peer_gone = False
        self.total_agreed = False
        self.resumes = 0
        self.leased = False
        self.progress_at = now_s
        self.resend_at = now_s

    def owner(self, seq: int) -> Owner:
        """Whose blocks those of grant ``seq`` are."""
        return Owner(self.room, self.epoch, seq)

    def needs_peer(self) -> bool:
        """Whether anything is still expected from the sender (R8)."""
        return self.total_tokens == UNKNOWN or self.landed_tokens < self.total_tokens

    def save(self, now_s: float, longest_s: float) -> tuple[Any, ...]:
        """Everything that may influence the future, hashable; times relative to ``now_s``. Ages beyond
        ``longest_s``, when every deadline has passed, are all alike."""
        resend = self.resend_at - now_s if self.pending is not None else 0
        return (*_SAVED(self), max(self.progress_at - now_s, -longest_s), resend)

    @classmethod
    def load(cls, saved: tuple[Any, ...], now_s: float) -> ReceiverRoom:
        """The room that ``save`` described; its history starts empty."""
        room = cls.__new__(cls)
        Lifecycle.__init__(room)
        for name, value in zip(_PLAIN, saved, strict=False):
            setattr(room, name, value)
        room.progress_at = saved[-2] + now_s
        room.resend_at = saved[-1] + now_s
        return room


class FiveStateReceiverRoom(ReceiverRoom):
    """The same on the historical table, where the detectors of the zoo run."""

    __slots__ = ()
    table: ClassVar[Table] = RECEIVER_FIVE_STATE_TABLE


_SAVED = attrgetter(*_PLAIN)


class Tombstone:
    """What is left of a request that ended: late messages hit it, and its quarantined blocks hang on it.

    ``abort`` is sent again until it is acknowledged. ``held`` are blocks that await a quiescence proof, those
    of grant ``held_seq``; ``reading`` those whose copy out, or whose lease, has not ended. ``result_tokens``
    is the result memory that the caller still uses. A tombstone that holds any of these never expires.
    """

    __slots__ = (
        "abort", "acknowledged", "epoch", "executed_seq", "expires_at", "held", "held_seq", "landed_seq",
        "peer_boot_id", "reading", "reason", "resend_at", "result_tokens", "room", "state",
    )  # fmt: skip

    def __init__(self, room: ReceiverRoom, expires_at: float) -> None:
        self.room = room.room
        self.epoch = room.epoch
        self.state = room.state
        self.reason = room.failure
        self.peer_boot_id = room.peer_boot_id
        self.landed_seq = room.landed_seq
        self.abort: Abort | None = None
        self.acknowledged = False
        self.executed_seq = -1
        self.held_seq = -1
        self.held: tuple[BlockRef, ...] = ()
        self.reading: tuple[Chunk, ...] = ()
        self.result_tokens = 0
        self.expires_at = expires_at
        self.resend_at = expires_at

    @property
    def holds_blocks(self) -> bool:
        """Whether blocks still hang on this tombstone."""
        return bool(self.held or self.reading)

    @property
    def holds_memory(self) -> bool:
        """Whether blocks or result memory still hang on it."""
        return bool(self.held or self.reading or self.result_tokens)

    def expired(self, now_s: float) -> bool:
        """R8: whether it may go."""
        return now_s >= self.expires_at and not self.holds_memory

    def save(self, now_s: float) -> tuple[Any, ...]:
        """As for a room; times relative to ``now_s``. If it awaits nothing, only its name matters."""
        expires = max(self.expires_at - now_s, 0)
        if self.abort is None and not self.holds_memory:
            over = None, True, self.epoch, -1, (), -1, -1, 0, (), Reason.NONE, 0, self.room, self.state
            return (*over, expires, 0)
        resend = self.resend_at - now_s if self.abort is not None else 0
        return (*_TOMB_SAVED(self), expires, resend)

    @classmethod
    def load(cls, saved: tuple[Any, ...], now_s: float) -> Tombstone:
        """The tombstone that ``save`` described."""
        tombstone = cls.__new__(cls)
        for name, value in zip(_TOMB_PLAIN, saved, strict=False):
            setattr(tombstone, name, value)
        tombstone.expires_at = saved[-2] + now_s
        tombstone.resend_at = saved[-1] + now_s
        return tombstone


_TOMB_PLAIN = tuple(name for name in Tombstone.__slots__ if name not in ("expires_at", "resend_at"))
_TOMB_SAVED = attrgetter(*_TOMB_PLAIN)
