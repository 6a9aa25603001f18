"""The sender of one rank, sans I/O: submits, messages, completions and ticks in, effects out.

A sender rank serves the receiver ranks it is told of. Each has a *lane* of its own per request: its grants,
its watermark, its lifecycle; only the staged payload is shared. A grant is executed at most once, and only
from what was committed for that rank (R3); whatever the transport then does, the write counts as outstanding
until the caller says that it has ended, and an ABORT is acknowledged only after that (R11).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsm import kernel
from fsm.effects import Effect, Ended, Moved, Send, Stage, Unstage, Write
from fsm.errors import LocalError
from fsm.kernel import INT
from fsm.lifecycle import SenderFacts
from fsm.messages import (
    Abort,
    AbortAck,
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
from fsm.reasons import NACK_REASONS, Reason
from fsm.rules import PROTOCOL, GrantKind, Rules
from fsm.sender_room import Lane, LaneKey, LaneTombstone, SenderRoom
from fsm.states import State
from fsm.timing import Timing


@dataclass(frozen=True)
class SenderConfig:
    """What a sender rank is told once. Raises :class:`LocalError` for a size that is out of range."""

    layout: Layout
    rank: int = 0
    receiver_ranks: tuple[int, ...] = (0,)
    """Those that this rank serves: each r with ``r mod senders`` equal to ``rank``."""
    senders: int = 1
    """How many sender ranks serve one receiver. With several, each also waits for what the others stage
    (R9)."""
    source_blocks: int = 64
    """The source pool: bounds the payload that is staged at one time."""
    total_tokens_max: int = 1 << 20
    """A longer request is refused."""
    timing: Timing = Timing()

    def __post_init__(self) -> None:
        for name in ("senders", "source_blocks", "total_tokens_max"):
            if getattr(self, name) < 1:
                raise LocalError(f"{name}={getattr(self, name)}: expected 1 or more")
        ranks = self.receiver_ranks
        if self.rank < 0 or min(ranks, default=0) < 0 or len(set(ranks)) != len(ranks):
            raise LocalError(f"rank={self.rank}, receiver_ranks={ranks}: expected different ranks from 0 up")


class Sender:
    """One rank of an encode worker. Not thread-safe: one owner calls it. Parameters as for ``Receiver``."""

    def __init__(
        self,
        config: SenderConfig,
        *,
        boot_id: int,
        rules: Rules = PROTOCOL,
        flat: bool = False,
        lane_class: type[Lane] = Lane,
    ) -> None:
        if boot_id < 1:
            raise LocalError(f"boot_id={boot_id}: expected 1 or more; 0 stands for no process")
        self.config = config
        self.boot_id = boot_id
        self.rules = rules
        self.lane_class = lane_class
        self._fire = lane_class.fire_flat if flat else lane_class.fire
        self.rooms: dict[int, SenderRoom] = {}
        self.tombstones: dict[LaneKey, LaneTombstone] = {}
        self.peer_boot_ids: dict[int, int] = dict.fromkeys(config.receiver_ranks, 0)
        self.free_source_blocks = config.source_blocks
        self.heartbeat_at = 0.0
        self._out: list[Effect] = []
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            Register: self._on_register,
            Grant: self._on_grant,
            Nack: self._on_nack,
            Abort: self._on_abort,
            AbortAck: self._on_abort_ack,
            Heartbeat: self._on_heartbeat,
        }

    # --- what the caller says -------------------------------------------------------------------------

    def submit(
        self,
        room: int,
        total_tokens: int,
        now_s: float,
        *,
        has_mrope: bool = True,
        has_deepstack: bool = False,
    ) -> list[Effect]:
        """Begin to send a request of ``total_tokens`` tokens. Staging is asked for when its source blocks are
        free.

        Raises :class:`LocalError` if the room is in use here, the length is out of range, or the payload is
        larger than the whole source pool (R6); nothing is changed then.
        """
        if not 0 <= room < 1 << 63:
            raise LocalError(f"room {room}: expected 0 to 2**63 - 1")
        if room in self.rooms:
            raise LocalError(f"room {room} is in use here; wait for its end or use another")
        if not 1 <= total_tokens <= self.config.total_tokens_max:
            raise LocalError(f"total_tokens={total_tokens}: expected 1 to {self.config.total_tokens_max}")
        blocks = kernel.blocks_needed(total_tokens, self.config.layout.block_tokens)
        if blocks > self.config.source_blocks:
            raise LocalError(
                f"total_tokens={total_tokens} needs {blocks} source blocks: the source pool has "
                f"{self.config.source_blocks}; make it larger or split the request"
            )
        out = self._out = []
        record = SenderRoom(room, total_tokens, has_mrope, has_deepstack, blocks)
        record.lanes = {rank: self.lane_class(rank, now_s) for rank in self.config.receiver_ranks}
        self.rooms[room] = record
        self._stage_next()
        return out

    def abort(self, room: int, now_s: float, reason: Reason = Reason.ABORTED) -> list[Effect]:
        """End a request on this side and tell every receiver rank. Raises :class:`LocalError` if there is
        none."""
        if room not in self.rooms:
            raise LocalError(f"room {room}: nothing to abort; rooms here: {sorted(self.rooms)}")
        out = self._out = []
        record = self.rooms[room]
        for lane in tuple(record.lanes.values()):
            if lane.live:
                self._fail(record, lane, reason, now_s, tell=True)
        return out

    # --- what the surroundings report -----------------------------------------------------------------

    def reachable(self, receiver_rank: int, now_s: float) -> None:
        """That receiver rank can be reached again, or for the first time: whatever awaits an answer from it is
        sent at the next tick, and not when its time has come."""
        for record in self.rooms.values():
            lane = record.lanes.get(receiver_rank)
            if lane is not None:
                lane.resend_at = min(lane.resend_at, now_s)
        for key, tombstone in self.tombstones.items():
            if key.receiver_rank == receiver_rank:
                tombstone.resend_at = min(tombstone.resend_at, now_s)

    def staged(self, room: int, now_s: float) -> list[Effect]:
        """The payload that ``Stage`` asked for is in the source pool."""
        out = self._out = []
        record = self.rooms.get(room)
        if record is None or not record.staging:
            return out  # it ended meanwhile
        record.staging, record.staged = False, True
        for lane in tuple(record.lanes.values()):
            if lane.state == State.WAITING:
                lane.progress_at = now_s
                self._serve_or_offer(record, lane, now_s)
        self._close_if_over(record)
        return out

    def sent(
        self,
        room: int,
        epoch: Epoch,
        receiver_rank: int,
        seq: int,
        now_s: float,
        *,
        checksum: int | None = None,
    ) -> list[Effect]:
        """The write of grant ``seq`` has ended: every byte was handed over and none will follow. ``checksum``
        is that of its tokens; it travels with the STATUS, and means nothing here."""
        out = self._out = []
        self._write_ended(room, epoch, receiver_rank, seq, now_s, checksum, failed=False)
        return out

    def write_failed(
        self, room: int, epoch: Epoch, receiver_rank: int, seq: int, now_s: float
    ) -> list[Effect]:
        """The write of grant ``seq`` broke, and the transport proves that nothing of it is outstanding."""
        out = self._out = []
        self._write_ended(room, epoch, receiver_rank, seq, now_s, None, failed=True)
        return out

    def receive(self, message: Message, now_s: float) -> list[Effect]:
        """Take one message from a receiver rank. Never raises on account of what the message says (R11)."""
        out = self._out = []
        if message.sender_rank != self.config.rank or message.receiver_rank not in self.peer_boot_ids:
            self._on_misaddressed(message)
            return out
        handler = self._handlers.get(type(message))
        if handler is not None:
            handler(message, now_s)
        return out

    def tick(self, now_s: float) -> list[Effect]:
        """Deadlines, resends, expiries and heartbeats."""
        out = self._out = []
        timing = self.config.timing
        for record in tuple(self.rooms.values()):
            for lane in tuple(record.lanes.values()):
                if not lane.live:
                    continue
                limit_s, reason = self._limit(record, lane)
                if self.rules.deadlines() and kernel.expired(now_s, lane.progress_at, limit_s):
                    self._fail(record, lane, reason, now_s, tell=True)
                elif lane.pending is not None and now_s >= lane.resend_at:
                    lane.resend_at = now_s + timing.resend_s
                    self._out.append(Send(lane.pending, resend=True))
        for key in [key for key, tombstone in self.tombstones.items() if now_s >= tombstone.expires_at]:
            del self.tombstones[key]
        due = [(key, t.abort) for key, t in self.tombstones.items() if t.abort and now_s >= t.resend_at]
        for key, abort in sorted(due):  # by name, not by age: who was loaded must do as who ran
            self.tombstones[key].resend_at = now_s + timing.resend_s
            self._out.append(Send(abort, resend=True))
        if timing.heartbeat_s and now_s >= self.heartbeat_at:
            self.heartbeat_at = now_s + timing.heartbeat_s
            for rank in self.config.receiver_ranks:
                self._out.append(Send(Heartbeat(self.boot_id, self.config.rank, rank)))
        return out

    def next_timer_s(self) -> float | None:
        """When a tick will have something to do though nothing is received; ``None`` if never."""
        times: list[float] = []
        for record in self.rooms.values():
            for lane in record.lanes.values():
                if lane.live and self.rules.deadlines():
                    times.append(lane.progress_at + self._limit(record, lane)[0])
                if lane.live and lane.pending is not None:
                    times.append(lane.resend_at)
        for tombstone in self.tombstones.values():
            times.append(tombstone.expires_at)
            if tombstone.abort is not None:
                times.append(tombstone.resend_at)
        if self.config.timing.heartbeat_s:
            times.append(self.heartbeat_at)
        return min(times, default=None)

    # --- messages -------------------------------------------------------------------------------------

    def _see_boot(self, receiver_rank: int, boot_id: int, now_s: float) -> bool:
        """R8: whether that process of the peer counts. A newer one fences every older one."""
        known = self.peer_boot_ids[receiver_rank]
        if boot_id < known:
            return False
        if boot_id > known:
            self.peer_boot_ids[receiver_rank] = boot_id
            for record in tuple(self.rooms.values()):
                lane = record.lanes.get(receiver_rank)
                if lane is not None and lane.live and lane.epoch is not None and lane.epoch.boot_id < boot_id:
                    self._fail(record, lane, Reason.PEER_RESTARTED, now_s, tell=False)
        return True

    def _on_misaddressed(self, message: Message) -> None:
        """R11: a message between two other ranks: what expects an answer gets one; nothing else happens."""
        if isinstance(message, Abort):
            self._acknowledge_abort(message.room, message.epoch, message.receiver_rank, -1)
        elif isinstance(message, Register):
            self._nack(message, NackCode.STALE_EPOCH, "REGISTER")
        elif isinstance(message, Grant):
            self._nack(message, NackCode.STALE_EPOCH, "GRANT", message.seq)

    def _on_heartbeat(self, message: Heartbeat, now_s: float) -> None:
        self._see_boot(message.receiver_rank, message.boot_id, now_s)

    def _on_register(self, message: Register, now_s: float) -> None:
        if not self._see_boot(message.receiver_rank, message.boot_id, now_s):
            self._nack(message, NackCode.STALE_EPOCH, "REGISTER")
            return
        record = self.rooms.get(message.room)
        lane = record.lanes.get(message.receiver_rank) if record is not None else None
        if message.layout != self.config.layout:
            self._acknowledge_register(message, compatible=False)  # true of every room, whatever became of it
            if record is not None and lane is not None and lane.live and lane.epoch is None:
                lane.epoch = message.epoch
                self._fail(record, lane, Reason.INCOMPATIBLE, now_s, tell=False)
        elif LaneKey(message.room, message.epoch, message.receiver_rank) in self.tombstones:
            self._nack(message, NackCode.CANCELLED, "REGISTER")  # that attempt is over, for good (R8)
        elif record is None or lane is None or not lane.live:
            if self.rules.unknown_room_answered():
                self._nack(message, NackCode.UNKNOWN_ROOM, "REGISTER")
        elif lane.epoch is None:
            self._register(record, lane, message, now_s)
        elif lane.epoch == message.epoch:
            self._acknowledge_register(message, compatible=True)
        else:
            # Another attempt at a room that still serves one: an older one is over, a newer one must wait for
            # the ABORT of this one, which is on its way.
            older = message.epoch < lane.epoch
            self._nack(message, NackCode.STALE_EPOCH if older else NackCode.NOT_READY, "REGISTER")

    def _register(self, record: SenderRoom, lane: Lane, message: Register, now_s: float) -> None:
        lane.epoch = message.epoch
        lane.peer_queue_s = message.queue_deadline_s
        lane.progress_at = now_s
        self._move(record, lane, "registered", SenderFacts())
        self._acknowledge_register(message, compatible=True)
        if record.staged:
            self._serve_or_offer(record, lane, now_s)

    def _acknowledge_register(self, message: Register, *, compatible: bool) -> None:
        ranks, queue_s = (self.config.rank, message.receiver_rank), self.config.timing.queue_deadline_s
        ack = RegisterAck(message.room, message.epoch, *ranks, self.boot_id, compatible, queue_s)
        self._out.append(Send(ack))

    def _on_grant(self, message: Grant, now_s: float) -> None:
        record = self.rooms.get(message.room)
        lane = record.lanes.get(message.receiver_rank) if record is not None else None
        ended: LaneTombstone | Lane | None
        ended = self.tombstones.get(LaneKey(message.room, message.epoch, message.receiver_rank))
        if lane is not None and lane.epoch == message.epoch and not lane.live:
            ended = lane  # other lanes keep the request here, perhaps for longer than the tombstone stands
        if ended is not None:
            if ended.state == State.SUCCESS and ended.last_status is not None:
                self._out.append(Send(ended.last_status, resend=True))
            else:
                self._nack(message, NackCode.CANCELLED, "GRANT", message.seq)
        elif record is None or lane is None:
            if self.rules.unknown_room_answered():
                self._nack(message, NackCode.UNKNOWN_ROOM, "GRANT", message.seq)
        elif lane.epoch is None:
            self._nack(message, NackCode.NOT_READY, "GRANT", message.seq)
        elif lane.epoch != message.epoch or message.sender_boot_id != self.boot_id:
            # An epoch that an earlier process was told of may be told again, by a duplicate. The grants that
            # were made for that process are not for this one: their blocks may have been given up when it
            # died (R8).
            self._nack(message, NackCode.STALE_EPOCH, "GRANT", message.seq)
        else:
            self._take_grant(record, lane, message, now_s)

    def _take_grant(self, record: SenderRoom, lane: Lane, grant: Grant, now_s: float) -> None:
        kind = self.rules.grant_kind(lane, grant)
        if kind == GrantKind.REPLAY:
            if lane.last_status is not None and lane.writing is None and lane.parked is None:
                self._out.append(Send(lane.last_status, resend=True))
        elif kind == GrantKind.GAP or not self._fits(grant):
            self._nack(grant, NackCode.INTERNAL, "GRANT", grant.seq)
        else:
            lane.pending = None
            lane.progress_at = now_s
            lane.parked = grant
            self._serve_parked(record, lane, now_s)

    def _fits(self, grant: Grant) -> bool:
        """Whether the blocks of a grant can hold what it asks for, and it asks for anything."""
        fits: bool = kernel.grant_fits(grant.capacity, len(grant.blocks), self.config.layout.block_tokens)
        return fits

    def _serve_or_offer(self, record: SenderRoom, lane: Lane, now_s: float) -> None:
        if lane.parked is not None:
            self._serve_parked(record, lane, now_s)
            return
        lane.pending = Offer(
            record.room, _epoch(lane), self.config.rank, lane.receiver_rank, record.total_tokens,
            record.has_mrope, record.has_deepstack,
        )  # fmt: skip
        lane.resend_at = now_s + self.config.timing.resend_s
        self._out.append(Send(lane.pending))

    def _serve_parked(self, record: SenderRoom, lane: Lane, now_s: float) -> None:
        """R3: execute the parked grant if the payload is staged and no write is outstanding."""
        grant = lane.parked
        if grant is None or not record.staged or lane.writing is not None:
            return
        lane.parked = None
        for other, its_grant in self.rules.lanes_served(self, record, lane, grant):
            if self.rules.start_check(other, its_grant):
                self._execute(record, other, its_grant, now_s)
            else:
                self._nack(its_grant, NackCode.INTERNAL, "GRANT", its_grant.seq)
                self._fail(record, other, Reason.PROTOCOL, now_s, tell=True)

    def _execute(self, record: SenderRoom, lane: Lane, grant: Grant, now_s: float) -> None:
        self._move(record, lane, "grant", SenderFacts())
        lane.seq = grant.seq
        lane.writing = grant
        lane.progress_at = now_s
        end = kernel.committed_after(INT, grant.start, grant.capacity, record.total_tokens)
        source_start = self.rules.source_start(grant.start, self.config.layout.block_tokens)
        self._out.append(Write(grant, source_start, end - grant.start, record.total_tokens))

    def _write_ended(
        self,
        room: int,
        epoch: Epoch,
        receiver_rank: int,
        seq: int,
        now_s: float,
        checksum: int | None,
        *,
        failed: bool,
    ) -> None:
        record = self.rooms.get(room)
        lane = record.lanes.get(receiver_rank) if record is not None else None
        grant = lane.writing if lane is not None and lane.epoch == epoch else None
        if record is None or lane is None or grant is None or grant.seq != seq:
            return  # that write ended before, or was never begun by this process
        lane.writing = None
        if lane.live and failed:
            self._fail(record, lane, Reason.INTERNAL, now_s, tell=True)
        elif lane.live:
            self._commit(record, lane, grant, checksum, now_s)
        else:
            if lane.ack_owed:
                lane.ack_owed = False
                self._acknowledge_abort(room, epoch, receiver_rank, lane.seq)
            self._close_if_over(record)

    def _commit(
        self, record: SenderRoom, lane: Lane, grant: Grant, checksum: int | None, now_s: float
    ) -> None:
        lane.committed_tokens = kernel.committed_after(INT, grant.start, grant.capacity, record.total_tokens)
        lane.progress_at = now_s
        self.rules.executed(lane, grant)
        lane.last_status = Status(
            record.room, _epoch(lane), self.config.rank, lane.receiver_rank, grant.seq,
            self.rules.commit_said(record, lane), record.total_tokens, record.has_mrope, record.has_deepstack,
            checksum,
        )  # fmt: skip
        self._out.append(Send(lane.last_status))
        last = lane.committed_tokens == record.total_tokens
        self._move(record, lane, "committed", SenderFacts(last_chunk=last))
        if last:
            self._end(record, lane, now_s)
        else:
            self._serve_parked(record, lane, now_s)

    def _on_nack(self, message: Nack, now_s: float) -> None:
        record = self.rooms.get(message.room)
        lane = record.lanes.get(message.receiver_rank) if record is not None else None
        if record is None or lane is None or lane.epoch != message.epoch or message.about != "OFFER":
            return
        if lane.pending is not None:  # an OFFER is all that a lane ever awaits an answer to
            self._fail(record, lane, NACK_REASONS[message.code], now_s, tell=False)

    def _on_abort(self, message: Abort, now_s: float) -> None:
        """R11: always answered, once no write of that epoch is outstanding; later grants of it are
        refused."""
        key = LaneKey(message.room, message.epoch, message.receiver_rank)
        record = self.rooms.get(message.room)
        lane = record.lanes.get(message.receiver_rank) if record is not None else None
        if record is not None and lane is not None and lane.epoch == message.epoch:
            lane.ack_owed = lane.writing is not None
            seq, owed = lane.seq, lane.ack_owed
            if lane.live:
                self._fail(record, lane, Reason.PEER_ABORTED, now_s, tell=False)
            if not owed:
                self._acknowledge_abort(message.room, message.epoch, message.receiver_rank, seq)
            return
        if key not in self.tombstones:
            expires_at = now_s + self.config.timing.tombstone_s
            self.tombstones[key] = LaneTombstone(State.FAILED, None, -1, expires_at)
        executed_seq = self.tombstones[key].executed_seq
        self._acknowledge_abort(message.room, message.epoch, message.receiver_rank, executed_seq)

    def _on_abort_ack(self, message: AbortAck, now_s: float) -> None:
        tombstone = self.tombstones.get(LaneKey(message.room, message.epoch, message.receiver_rank))
        if tombstone is not None:
            tombstone.abort = None

    # --- endings --------------------------------------------------------------------------------------

    def _fail(self, record: SenderRoom, lane: Lane, reason: Reason, now_s: float, *, tell: bool) -> None:
        """End a lane that cannot succeed. A write that is under way stays outstanding until it has ended."""
        lane.failure = reason
        self._move(record, lane, "fail", SenderFacts())
        tombstone = self._end(record, lane, now_s)
        if tell and tombstone is not None and lane.epoch is not None:
            ranks = self.config.rank, lane.receiver_rank
            tombstone.abort = Abort(record.room, lane.epoch, *ranks, reason.name)
            tombstone.resend_at = now_s + self.config.timing.resend_s
            self._out.append(Send(tombstone.abort))

    def _end(self, record: SenderRoom, lane: Lane, now_s: float) -> LaneTombstone | None:
        lane.pending = lane.parked = None
        self._out.append(Ended(lane.receiver_rank, record.room, lane.epoch, lane.state, lane.failure.name))
        tombstone = None
        if lane.epoch is not None:
            expires_at = now_s + self.config.timing.tombstone_s
            tombstone = LaneTombstone(lane.state, lane.last_status, lane.seq, expires_at)
            self.tombstones[LaneKey(record.room, lane.epoch, lane.receiver_rank)] = tombstone
        self._close_if_over(record)
        return tombstone

    def _close_if_over(self, record: SenderRoom) -> None:
        """R6: the payload stays pinned until every lane has ended and no write of it is outstanding."""
        if self.rooms.get(record.room) is not record:
            return  # it was closed already
        for lane in record.lanes.values():
            if lane.live or lane.writing is not None:
                return
        if record.staging:
            return  # the staging that was asked for ends first
        del self.rooms[record.room]
        if record.staged:
            self.free_source_blocks += record.blocks
            self._out.append(Unstage(record.room))
        self._stage_next()

    def _stage_next(self) -> None:
        """R6: oldest first; a request takes all its source blocks or waits with none."""
        for record in self.rooms.values():
            if record.staged or record.staging:
                continue
            if record.blocks > self.free_source_blocks:
                return
            self.free_source_blocks -= record.blocks
            record.staging = True
            self._out.append(Stage(record.room, record.blocks))

    # --- time -----------------------------------------------------------------------------------------

    def _limit(self, record: SenderRoom, lane: Lane) -> tuple[float, Reason]:
        """R9: how long this lane may rest where it is, in seconds, and what it fails of then."""
        timing = self.config.timing
        if lane.state == State.BOOTSTRAPPING:
            return timing.bootstrap_s, Reason.BOOTSTRAP_DEADLINE
        if lane.state == State.WAITING and not record.staged:
            return timing.queue_deadline_s, Reason.QUEUE_DEADLINE  # the own queue, for source blocks
        if lane.state == State.TRANSFERRING:
            return timing.deadline_s, Reason.DEADLINE
        limit_s = timing.deadline_s + lane.peer_queue_s  # the peer may queue for blocks
        if lane.state == State.WAITING and self.config.senders > 1:
            # The first grant goes to all ranks at once: until then, other sender ranks may have yet to be
            # told of the request, and to stage it.
            limit_s += timing.bootstrap_s + timing.queue_deadline_s
        return limit_s, Reason.DEADLINE

    # --- small things ---------------------------------------------------------------------------------

    def _move(self, record: SenderRoom, lane: Lane, event: str, facts: SenderFacts) -> None:
        source = lane.state
        self._fire(lane, event, facts)
        self._out.append(Moved(lane.receiver_rank, record.room, lane.epoch, event, source, lane.state))

    def _nack(self, message: Register | Grant, code: NackCode, about: str, seq: int = -1) -> None:
        ranks = self.config.rank, message.receiver_rank
        self._out.append(Send(Nack(message.room, message.epoch, *ranks, code, about, seq, self.boot_id)))

    def _acknowledge_abort(self, room: int, epoch: Epoch, receiver_rank: int, executed_seq: int) -> None:
        ack = AbortAck(room, epoch, self.config.rank, receiver_rank, self.boot_id, executed_seq)
        self._out.append(Send(ack))

    @property
    def resting(self) -> bool:
        """Whether no request that has ended still awaits an acknowledgement."""
        return not any(tombstone.abort for tombstone in self.tombstones.values())

    def save(self, now_s: float) -> tuple[Any, ...]:
        """Everything that may influence the future, hashable; times relative to ``now_s``."""
        return (
            tuple([record.save(now_s, self.config.timing.longest_s) for record in self.rooms.values()]),
            tuple([(key, self.tombstones[key].save(now_s)) for key in sorted(self.tombstones)]),
            self.boot_id, tuple(self.peer_boot_ids.values()), self.free_source_blocks,
            max(self.heartbeat_at - now_s, 0) if self.config.timing.heartbeat_s else 0,
        )  # fmt: skip

    def load(self, saved: tuple[Any, ...], now_s: float) -> None:
        """Take on the state that ``save`` described."""
        rooms, tombstones, self.boot_id, peers, self.free_source_blocks, heartbeat_at = saved
        loaded = [SenderRoom.load(record, now_s, self.lane_class) for record in rooms]
        self.rooms = {record.room: record for record in loaded}
        self.tombstones = {key: LaneTombstone.load(record, now_s) for key, record in tombstones}
        self.peer_boot_ids = dict(zip(self.config.receiver_ranks, peers, strict=True))
        self.heartbeat_at = heartbeat_at + now_s


def _epoch(lane: Lane) -> Epoch:
    if lane.epoch is None:
        raise LocalError("a lane that no receiver registered has no epoch")
    return lane.epoch
