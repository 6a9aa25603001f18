"""The sender for very many requests at once: the same, but for how it finds what is due.

:class:`fsm.sender.Sender` looks at every lane in every tick, which is right for a search and too slow for a worker with
thousands of requests in flight. Here each lane and each tombstone has a time at which it is looked at again. What is
done with it then is the code of the base class.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, TypeAlias

from fsm import kernel
from fsm.effects import Effect, Send
from fsm.errors import LocalError
from fsm.messages import Abort, Heartbeat, Message
from fsm.reasons import Reason
from fsm.rules import PROTOCOL
from fsm.sender import Sender
from fsm.sender_room import Lane, LaneKey, LaneTombstone, SenderRoom
from fsm.wakes import Wakes

_Part: TypeAlias = tuple[int, int]
"""A room and a receiver rank."""


class TimedSender(Sender):
    """A sender whose tick costs what is due, and not what is there. Parameters, methods and effects as for
    ``Sender``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.rules is not PROTOCOL:
            raise LocalError("a TimedSender follows the protocol; other rules are for the plain Sender")
        self._lanes: Wakes[_Part] = Wakes()
        self._ended: Wakes[LaneKey] = Wakes()
        self._order: dict[int, int] = {}
        self._submitted = 0

    # --- what may move a timer ------------------------------------------------------------------------

    def submit(self, room: int, *args: Any, **kwargs: Any) -> list[Effect]:
        """As for ``Sender``."""
        out = super().submit(room, *args, **kwargs)
        self._submitted += 1
        self._order[room] = self._submitted
        self._arm_room(room)
        return out

    def reachable(self, receiver_rank: int, now_s: float) -> None:
        """As for ``Sender``."""
        super().reachable(receiver_rank, now_s)
        for room in self.rooms:
            self._arm(room, receiver_rank)
        for key in self.tombstones:
            self._arm_tombstone(key)

    def staged(self, room: int, now_s: float) -> list[Effect]:
        """As for ``Sender``."""
        out = super().staged(room, now_s)
        self._arm_room(room)
        return out

    def receive(self, message: Message, now_s: float) -> list[Effect]:
        """As for ``Sender``."""
        out = super().receive(message, now_s)
        if not isinstance(message, Heartbeat):
            self._arm(message.room, message.receiver_rank)
            self._arm_tombstone(LaneKey(message.room, message.epoch, message.receiver_rank))
        return out

    def _fail(self, record: SenderRoom, lane: Lane, reason: Reason, now_s: float, *, tell: bool) -> None:
        super()._fail(record, lane, reason, now_s, tell=tell)
        if lane.epoch is not None:
            self._arm_tombstone(LaneKey(record.room, lane.epoch, lane.receiver_rank))

    def _end(self, record: SenderRoom, lane: Lane, now_s: float) -> LaneTombstone | None:
        tombstone = super()._end(record, lane, now_s)
        if lane.epoch is not None:
            self._arm_tombstone(LaneKey(record.room, lane.epoch, lane.receiver_rank))
        return tombstone

    def _close_if_over(self, record: SenderRoom) -> None:
        super()._close_if_over(record)
        if record.room not in self.rooms:
            self._order.pop(record.room, None)

    def _arm_room(self, room: int) -> None:
        record = self.rooms.get(room)
        for rank in record.lanes if record is not None else ():
            self._arm(room, rank)

    def _arm(self, room: int, receiver_rank: int) -> None:
        record = self.rooms.get(room)
        lane = record.lanes.get(receiver_rank) if record is not None else None
        if record is not None and lane is not None and lane.live:
            when_s = lane.progress_at + self._limit(record, lane)[0]
            self._lanes.at((room, receiver_rank), min(when_s, lane.resend_at) if lane.pending is not None else when_s)

    def _arm_tombstone(self, key: LaneKey) -> None:
        tombstone = self.tombstones.get(key)
        if tombstone is not None:
            due_s = tombstone.expires_at
            self._ended.at(key, min(due_s, tombstone.resend_at) if tombstone.abort is not None else due_s)

    # --- the tick -------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> list[Effect]:
        """As for ``Sender``; costs next to nothing if nothing is due."""
        out = self._out = []
        timing = self.config.timing
        due = [part for part in self._lanes.due(now_s) if part[0] in self.rooms]
        ranks = {rank: place for place, rank in enumerate(self.config.receiver_ranks)}
        for room, rank in sorted(due, key=lambda part: (self._order[part[0]], ranks[part[1]])):
            record = self.rooms.get(room)
            lane = record.lanes.get(rank) if record is not None else None
            if record is None or lane is None or not lane.live:
                continue  # it ended meanwhile, or with another one just now
            limit_s, reason = self._limit(record, lane)
            if kernel.expired(now_s, lane.progress_at, limit_s):
                self._fail(record, lane, reason, now_s, tell=True)
                continue
            if lane.pending is not None and now_s >= lane.resend_at:
                lane.resend_at = now_s + timing.resend_s
                out.append(Send(lane.pending, resend=True))
            self._arm(room, rank)
        self._look_at_tombstones(now_s)
        if timing.heartbeat_s and now_s >= self.heartbeat_at:
            self.heartbeat_at = now_s + timing.heartbeat_s
            for rank in self.config.receiver_ranks:
                out.append(Send(Heartbeat(self.boot_id, self.config.rank, rank)))
        return out

    def _look_at_tombstones(self, now_s: float) -> None:
        aborting: list[tuple[LaneKey, Abort]] = []
        for key in self._ended.due(now_s):
            tombstone = self.tombstones.get(key)
            if tombstone is None:
                continue
            if now_s >= tombstone.expires_at:
                del self.tombstones[key]
                continue
            if tombstone.abort is not None and now_s >= tombstone.resend_at:
                tombstone.resend_at = now_s + self.config.timing.resend_s
                aborting.append((key, tombstone.abort))
            self._arm_tombstone(key)
        self._out += [Send(abort, resend=True) for _, abort in sorted(aborting, key=itemgetter(0))]

    def next_timer_s(self) -> float | None:
        """When a tick may have something to do though nothing is received; ``None`` if never. It may be too early,
        never too late."""
        times = [self._lanes.next_s(), self._ended.next_s()]
        times += [self.heartbeat_at] if self.config.timing.heartbeat_s else []
        return min((time for time in times if time is not None), default=None)

    def load(self, saved: tuple[Any, ...], now_s: float) -> None:
        """As for ``Sender``."""
        super().load(saved, now_s)
        self._lanes.clear()
        self._ended.clear()
        self._order = {room: number for number, room in enumerate(self.rooms)}
        self._submitted = len(self.rooms)
        for room in self.rooms:
            self._arm_room(room)
        for key in self.tombstones:
            self._arm_tombstone(key)
