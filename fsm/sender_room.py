"""What a sender rank keeps of one request: the payload, one lane per receiver rank, and tombstones."""

from __future__ import annotations

from collections.abc import Hashable
from operator import attrgetter
from typing import Any, NamedTuple

from fsm.lifecycle import SenderLifecycle
from fsm.messages import Abort, Epoch, Grant, Message, Status
from fsm.reasons import Reason
from fsm.states import State
from fsm.table import Lifecycle

_PLAIN = (
    "state", "receiver_rank", "epoch", "committed_tokens", "seq", "parked", "writing", "last_status",
    "failure", "ack_owed", "pending", "peer_queue_s", "notes",
)  # fmt: skip


class Lane(SenderLifecycle):
    """One receiver rank's part of one request.

    ``seq`` is the last grant whose write was started (-1: none), ``writing`` that grant while its write is
    outstanding, ``parked`` the one grant that came before it could be executed, ``last_status`` the answer to
    repeat. ``ack_owed``: an ABORT came while a write was under way, and is acknowledged when it has ended.
    ``notes`` belongs to wrong rules alone.
    """

    __slots__ = (*(name for name in _PLAIN if name != "state"), "progress_at", "resend_at")

    def __init__(self, receiver_rank: int, now_s: float) -> None:
        super().__init__()
        self.receiver_rank = receiver_rank
        self.epoch: Epoch | None = None
        self.committed_tokens = 0
        self.seq = -1
        self.parked: Grant | None = None
        self.writing: Grant | None = None
        self.last_status: Status | None = None
        self.failure = Reason.NONE
        self.ack_owed = False
        self.pending: Message | None = None
        self.peer_queue_s = 0.0
        self.notes: Hashable = None
        self.progress_at = now_s
        self.resend_at = now_s

    @property
    def live(self) -> bool:
        """Whether the lane has not ended yet."""
        return self.state not in (State.SUCCESS, State.FAILED)

    def save(self, now_s: float, longest_s: float) -> tuple[Any, ...]:
        """Everything that may influence the future, hashable; times relative to ``now_s``. Ages beyond
        ``longest_s``, when every deadline has passed, are all alike."""
        resend = self.resend_at - now_s if self.pending is not None else 0
        return (*_SAVED(self), max(self.progress_at - now_s, -longest_s), resend)

    @classmethod
    def load(cls, saved: tuple[Any, ...], now_s: float) -> Lane:
        """The lane that ``save`` described; its history starts empty."""
        lane = cls.__new__(cls)
        Lifecycle.__init__(lane)
        for name, value in zip(_PLAIN, saved, strict=False):
            setattr(lane, name, value)
        lane.progress_at = saved[-2] + now_s
        lane.resend_at = saved[-1] + now_s
        return lane


_SAVED = attrgetter(*_PLAIN)


class SenderRoom:
    """One request on one sender rank. ``blocks`` source blocks are pinned from staging until the last lane
    has ended."""

    __slots__ = ("blocks", "has_deepstack", "has_mrope", "lanes", "room", "staged", "staging", "total_tokens")

    def __init__(
        self, room: int, total_tokens: int, has_mrope: bool, has_deepstack: bool, blocks: int
    ) -> None:
        self.room = room
        self.total_tokens = total_tokens
        self.has_mrope = has_mrope
        self.has_deepstack = has_deepstack
        self.blocks = blocks
        self.staging = False
        self.staged = False
        self.lanes: dict[int, Lane] = {}

    def save(self, now_s: float, longest_s: float) -> tuple[Any, ...]:
        """Everything that may influence the future, hashable; times relative to ``now_s``."""
        return (
            self.room, self.total_tokens, self.has_mrope, self.has_deepstack, self.blocks, self.staging,
            self.staged, tuple([lane.save(now_s, longest_s) for lane in self.lanes.values()]),
        )  # fmt: skip

    @classmethod
    def load(cls, saved: tuple[Any, ...], now_s: float, lane_class: type[Lane]) -> SenderRoom:
        """The room that ``save`` described."""
        room = cls(saved[0], saved[1], saved[2], saved[3], saved[4])
        room.staging, room.staged = saved[5], saved[6]
        lanes = [lane_class.load(record, now_s) for record in saved[7]]
        room.lanes = {lane.receiver_rank: lane for lane in lanes}
        return room


class LaneKey(NamedTuple):
    """What a tombstone answers for."""

    room: int
    epoch: Epoch
    receiver_rank: int


class LaneTombstone:
    """What is left of a lane that ended: it repeats the last STATUS, refuses grants, and acknowledges aborts.

    ``abort`` is this side's own ABORT, sent again until it is acknowledged or the tombstone expires.
    """

    __slots__ = ("abort", "executed_seq", "expires_at", "last_status", "resend_at", "state")

    def __init__(self, state: str, last_status: Status | None, executed_seq: int, expires_at: float) -> None:
        self.state = state
        self.last_status = last_status
        self.executed_seq = executed_seq
        self.abort: Abort | None = None
        self.expires_at = expires_at
        self.resend_at = expires_at

    def save(self, now_s: float) -> tuple[Any, ...]:
        """As for a lane; times relative to ``now_s``."""
        resend = self.resend_at - now_s if self.abort is not None else 0
        return (self.state, self.last_status, self.executed_seq, self.abort, self.expires_at - now_s, resend)

    @classmethod
    def load(cls, saved: tuple[Any, ...], now_s: float) -> LaneTombstone:
        """The tombstone that ``save`` described."""
        tombstone = cls(saved[0], saved[1], saved[2], saved[4] + now_s)
        tombstone.abort = saved[3]
        tombstone.resend_at = saved[5] + now_s
        return tombstone
