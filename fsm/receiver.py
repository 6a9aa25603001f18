"""The receiver of one rank, sans I/O: messages and ticks in, effects out.

Messages only record facts. Everything that is decided is decided in a tick, which has two halves, so
that many ranks can decide alike (R7): :meth:`Receiver.observe` says what this rank has seen, the ranks'
observations are folded by :func:`fsm.ranks.fold`, and :meth:`Receiver.decide` acts on the folded observation. With one
rank, :meth:`Receiver.tick` does all three.

The order within a tick is fixed: lifecycles first, by room; then grants, data-holders before newcomers, oldest
first (R6); then resends, expiries and heartbeats (R3, R8, R9).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsm import kernel
from fsm.allocators import Choices, FirstChoice, Kind
from fsm.blocks import BlockLedger, Owner
from fsm.effects import CopyOut, Effect, Ended, Moved, Recycle, Refused, Send, Watermark
from fsm.errors import LedgerError, LocalError
from fsm.kernel import INT, MISMATCH, UNKNOWN
from fsm.lifecycle import ReceiverFacts
from fsm.messages import (
    Abort, AbortAck, BlockRef, Epoch, Grant, Heartbeat, Layout, Message, Nack, NackCode, Offer, Register, RegisterAck,
    Status,
)  # fmt: skip
from fsm.ranks import Agreed, AgreedRoom, Observation, Observed, fold
from fsm.reasons import NACK_REASONS, RETRIED_WHILE_BOOTSTRAPPING, Reason
from fsm.receiver_room import Chunk, FiveStateReceiverRoom, ReceiverRoom, Tombstone
from fsm.rules import PROTOCOL, Headers, Rules
from fsm.states import State
from fsm.timing import Timing

_STATE_NUMBER = {state: number for number, state in enumerate(State)}
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class ReceiverConfig:
    """What a receiver rank is told once. Sizes in tokens or blocks; 0 means no limit where it says so."""

    layout: Layout
    rank: int = 0
    sender_rank: int = 0
    total_tokens_max: int = 1 << 20
    """A longer request is refused."""
    grant_blocks_max: int = 0
    """Never more blocks in one grant; 0 = no limit."""
    result_tokens: int = 0
    """Result memory; 0 = no limit."""
    landed_required: bool = False
    """The transport's send completion does not prove arrival: await the own completion too (R1)."""
    descriptors: bytes = b""
    timing: Timing = Timing()


def no_headers(block: int) -> int:
    """The protocol never looks into a header to decide anything (R1)."""
    raise LocalError(f"block {block}: no header reader was given; only wrong rules read headers")


class Receiver:
    """One rank of a language worker. Not thread-safe: one owner calls it.

    ``boot_id`` must grow from one start of the process to the next (R8). ``flat`` drives lifecycles through the
    flat lookup instead of the ``transitions`` machine; no hooks are called then. ``room_class`` may be a subclass of
    ``ReceiverRoom`` with hooks.
    """

    def __init__(
        self,
        config: ReceiverConfig,
        ledger: BlockLedger,
        *,
        boot_id: int,
        rules: Rules = PROTOCOL,
        flat: bool = False,
        room_class: type[ReceiverRoom] | None = None,
    ) -> None:
        self.config = config
        self.ledger = ledger
        self.boot_id = boot_id
        self.rules = rules
        self.room_class = room_class or _room_class(rules)
        self._fire = self.room_class.fire_flat if flat else self.room_class.fire
        self.rooms: dict[int, ReceiverRoom] = {}
        self.tombstones: dict[tuple[int, Epoch], Tombstone] = {}
        self.counter = 0
        self.peer_boot_id = 0
        self.free_result_tokens = config.result_tokens or _UNLIMITED
        self.heartbeat_at = 0.0
        self.waiting: tuple[int, ...] = ()
        """Rooms that hold data and got no blocks in the last tick."""
        self.block_kind: Kind | None = None
        """What makes two free blocks interchangeable to a hostile allocator; only a search for all choices sets it."""
        self._offered = 0
        self._out: list[Effect] = []
        self._handlers: dict[type[Any], Callable[[ReceiverRoom, Any, float], None]] = {
            RegisterAck: self._on_register_ack,
            Offer: self._on_offer,
            Status: self._on_status,
            Nack: self._on_nack,
            Abort: self._on_abort,
        }

    # --- what the caller says -------------------------------------------------------------------------

    def submit(self, room: int, now_s: float, *, early_tokens: int = 0) -> list[Effect]:
        """Begin to receive a request. ``early_tokens`` > 0 grants that many before the OFFER (the last free
        block excepted). Every rank must submit the same requests in the same order.

        Raises :class:`LocalError` if the room is in use here or the size is out of range; nothing is changed then.
        """
        if room in self.rooms:
            raise LocalError(f"room {room} is in use (epoch {self.rooms[room].epoch}); wait for its end or use another")
        if not 0 <= early_tokens <= self.config.total_tokens_max:
            raise LocalError(f"early_tokens={early_tokens}: expected 0 to {self.config.total_tokens_max}")
        out = self._out = []
        self.counter += 1
        record = self.room_class(room, Epoch(self.boot_id, self.counter), early_tokens, now_s)
        self.rooms[room] = record
        self._await_answer(
            record,
            Register(
                room, record.epoch, self.config.sender_rank, self.config.rank, self.config.layout,
                self.config.descriptors, self.config.timing.queue_deadline_s,
            ),
            now_s,
        )  # fmt: skip
        return out

    def abort(self, room: int) -> None:
        """End a request at the next tick. Raises :class:`LocalError` if there is none."""
        if room not in self.rooms:
            raise LocalError(f"room {room}: nothing to abort; live rooms: {sorted(self.rooms)}")
        self._observe_failure(self.rooms[room], Reason.ABORTED)

    def rank_lost(self, boot_id: int) -> None:
        """A rank of this receiver is gone: every request fails at the next tick, and this receiver speaks under
        a new ``boot_id`` from now on, so that the sender fences the old one (R7)."""
        if boot_id <= self.boot_id:
            raise LocalError(f"boot_id={boot_id}: expected more than the present {self.boot_id}")
        self.boot_id = boot_id
        self.counter = 0
        for room in self.rooms.values():
            self._observe_failure(room, Reason.RANK_LOST)

    # --- what the surroundings report -----------------------------------------------------------------

    def receive(self, message: Message, now_s: float) -> list[Effect]:
        """Take one message from the peer. Never raises on account of what the message says (R11)."""
        out = self._out = []
        if isinstance(message, Heartbeat):
            self._see_boot(message.boot_id)
            return out
        if isinstance(message, (RegisterAck, AbortAck, Nack)) and not self._see_boot(message.boot_id):
            return out
        room = self.rooms.get(message.room)
        if room is None or room.epoch != message.epoch:
            self._on_unmatched(message, now_s)
            return out
        handler = self._handlers.get(type(message))
        if handler is not None:
            self._guarded(room, handler, room, message, now_s)
        return out

    def landed(self, room: int, epoch: Epoch, seq: int, now_s: float) -> list[Effect]:
        """The own completion of grant ``seq``: every byte of it is in memory (only where it is required)."""
        out = self._out = []
        live = self.rooms.get(room)
        if live is not None and live.epoch == epoch:
            live.landed_seq = max(live.landed_seq, seq)
            live.progress_at = now_s
            self._guarded(live, self._close_grant, live)
        elif (room, epoch) in self.tombstones:
            tombstone = self.tombstones[room, epoch]
            tombstone.landed_seq = max(tombstone.landed_seq, seq)
            self._release_if_quiet(tombstone)
        return out

    def copied(self, room: int, epoch: Epoch, seq: int, position_delta: int, now_s: float) -> list[Effect]:
        """The copy that ``CopyOut`` asked for has ended; ``position_delta`` is the first header's, else ignored."""
        out = self._out = []
        live = self.rooms.get(room)
        if live is not None and live.epoch == epoch:
            self._guarded(live, self._take_copy, live, seq, position_delta, now_s)
        elif (room, epoch) in self.tombstones:
            tombstone = self.tombstones[room, epoch]
            for chunk in tombstone.reading:
                if chunk.seq == seq:
                    self._free(Owner(room, epoch, seq), chunk.blocks)
            tombstone.reading = tuple(chunk for chunk in tombstone.reading if chunk.seq != seq)
        return out

    def quiesced(self, boot_id: int) -> list[Effect]:
        """The transport proves that no write of the sender process ``boot_id`` is outstanding or will start
        (section "Quiescence" of the docs: its process is gone, the queue pair destroyed, and so on)."""
        out = self._out = []
        for tombstone in self.tombstones.values():
            if tombstone.peer_boot_id == boot_id and tombstone.held:
                self._release(tombstone)
        return out

    # --- the tick -------------------------------------------------------------------------------------

    def tick(self, now_s: float, choices: Choices = FirstChoice(), headers: Headers = no_headers) -> list[Effect]:  # noqa: B008
        """A tick of a receiver of one rank."""
        return self.decide(fold((self.observe(now_s, choices, headers),), self.rules), now_s, choices)

    def observe(
        self, now_s: float, choices: Choices = FirstChoice(), headers: Headers = no_headers  # noqa: B008
    ) -> Observation:
        """What this rank brings to the tick. The allocator is asked how much it gives, once."""
        rooms = []
        block_tokens, landed_required = self.config.layout.block_tokens, self.config.landed_required
        for room in self.rooms.values():
            if not room.failure and self.rules.deadlines():
                room.failure = self._overdue(room, now_s)
            progress = self.rules.progress(room, block_tokens, landed_required, headers)
            rooms.append(
                Observed(
                    room.room, room.epoch, room.registered, room.total_tokens, room.flags, progress,
                    room.delivered_tokens, room.failure,
                )  # fmt: skip
            )
        self._offered = self.ledger.offer(choices) if any(map(self._wants_blocks, self.rooms.values())) else 0
        return Observation(self.config.rank, tuple(rooms), self._offered, self.free_result_tokens)

    def decide(self, agreed: Agreed, now_s: float, choices: Choices = FirstChoice()) -> list[Effect]:  # noqa: B008
        """Act on what all ranks agreed on."""
        out = self._out = []
        candidates: list[tuple[ReceiverRoom, AgreedRoom]] = []
        for seen in agreed.rooms:
            room = self.rooms.get(seen.room)
            if room is not None:
                self._guarded(room, self._advance, room, seen, now_s)
                if room.state not in (State.SUCCESS, State.FAILED) and seen.known and self._wants_blocks(room):
                    candidates.append((room, seen))
        self.waiting = ()
        if candidates:
            self._walk(candidates, agreed, now_s, choices)
        self._timers(now_s)
        return out

    def next_timer_s(self) -> float | None:
        """When a tick will have something to do though nothing is received; ``None`` if never."""
        times: list[float] = []
        for room in self.rooms.values():
            if self.rules.deadlines():
                times.append(room.progress_at + self._limit_s(room))
            if room.pending is not None:
                times.append(room.resend_at)
        for tombstone in self.tombstones.values():
            if not tombstone.holds_blocks:
                times.append(tombstone.expires_at)
            if tombstone.abort is not None:
                times.append(tombstone.resend_at)
        if self.config.timing.heartbeat_s:
            times.append(self.heartbeat_at)
        return min(times, default=None)

    # --- facts ----------------------------------------------------------------------------------------

    def _see_boot(self, boot_id: int) -> bool:
        """R8: whether a message of that process counts. A newer process fences every older one."""
        if boot_id == self.peer_boot_id or not self.rules.boot_change_fences():
            return True
        if boot_id < self.peer_boot_id:
            return False
        if self.peer_boot_id:
            for room in self.rooms.values():
                if room.registered and room.needs_peer():
                    self._observe_failure(room, Reason.PEER_RESTARTED)
        self.peer_boot_id = boot_id
        return True

    def _observe_failure(self, room: ReceiverRoom, reason: Reason) -> None:
        if not room.failure:
            room.failure = reason

    def _on_register_ack(self, room: ReceiverRoom, message: RegisterAck, now_s: float) -> None:
        if room.registered:
            return
        if not message.compatible:
            self._observe_failure(room, Reason.INCOMPATIBLE)
            return
        room.registered = True
        room.peer_boot_id = message.boot_id
        room.peer_queue_s = message.queue_deadline_s
        self._answered(room, now_s)

    def _on_offer(self, room: ReceiverRoom, message: Offer, now_s: float) -> None:
        if self._learn_total(room, message) and room.grant is None and room.next_seq == 0:
            room.progress_at = now_s

    def _learn_total(self, room: ReceiverRoom, message: Offer | Status) -> bool:
        """R4: total and flags come from OFFER and STATUS, must agree, and are cached. Returns whether they are news."""
        total, flags = message.total_tokens, 2 * message.has_deepstack + message.has_mrope
        if room.total_tokens != UNKNOWN:
            if (total, flags) != (room.total_tokens, room.flags):
                self._observe_failure(room, Reason.MISMATCH)
            return False
        if not 1 <= total <= self.config.total_tokens_max or 0 < self.config.result_tokens < total:
            self._observe_failure(room, Reason.NO_CAPACITY)
            return False
        room.total_tokens, room.flags = total, flags
        return True

    def _on_status(self, room: ReceiverRoom, message: Status, now_s: float) -> None:
        grant = room.grant
        if grant is None or message.seq < grant.seq or room.closing is not None:
            return  # a duplicate: that grant was closed already (I8)
        self._learn_total(room, message)
        exact = self.rules.status_exact(grant, message.committed_tokens, message.total_tokens)
        if message.seq > grant.seq or not exact:
            self._observe_failure(room, Reason.PROTOCOL)
        if room.failure:
            return
        room.closing = message
        room.word_tokens = max(room.word_tokens, message.committed_tokens)
        self._answered(room, now_s)
        self._close_grant(room)

    def _close_grant(self, room: ReceiverRoom) -> None:
        """R3: one STATUS closes one grant; blocks that it did not reach are free at once (R5)."""
        grant, closing = room.grant, room.closing
        if grant is None or closing is None or (self.config.landed_required and room.landed_seq < grant.seq):
            return
        count = closing.committed_tokens - grant.start
        reached = kernel.blocks_needed(count, self.config.layout.block_tokens)
        owner = room.owner(grant.seq)
        self.ledger.land(owner, grant.blocks[:reached])
        if grant.blocks[reached:]:
            self.ledger.unreached(owner, grant.blocks[reached:])
            self._recycle(grant.blocks[reached:])
        room.landed_tokens = closing.committed_tokens
        room.chunks += (Chunk(grant.seq, grant.start, count, grant.blocks[:reached], False),)
        room.grant = room.closing = None
        progress = kernel.progress(INT, room.word_tokens, room.landed_tokens, self.config.landed_required)
        self._out.append(Watermark(self.config.rank, room.room, room.epoch, progress))

    def _on_nack(self, room: ReceiverRoom, message: Nack, now_s: float) -> None:
        if message.about == "REGISTER":
            retried = message.code in RETRIED_WHILE_BOOTSTRAPPING  # R9
            if not room.registered and not retried:
                self._observe_failure(room, NACK_REASONS[message.code])
        elif message.about == "GRANT" and room.grant is not None and message.seq == room.grant.seq:
            self._observe_failure(room, NACK_REASONS[message.code])

    def _on_abort(self, room: ReceiverRoom, message: Abort, now_s: float) -> None:
        self._observe_failure(room, Reason.PEER_ABORTED)
        self._acknowledge_abort(message)

    def _acknowledge_abort(self, message: Abort) -> None:
        ack = AbortAck(
            message.room, message.epoch, self.config.sender_rank, self.config.rank, self.boot_id, -1
        )  # fmt: skip
        self._out.append(Send(ack))

    def _on_unmatched(self, message: Any, now_s: float) -> None:
        """R8, R11: a message for no live epoch. It makes nothing; what expects an answer gets one."""
        tombstone = self.tombstones.get((message.room, message.epoch))
        if isinstance(message, Abort):
            self._acknowledge_abort(message)
        elif isinstance(message, AbortAck):
            if tombstone is not None and not tombstone.acknowledged:
                self._on_abort_ack(tombstone, message)
        elif isinstance(message, Offer):
            code = NackCode.CANCELLED if tombstone else NackCode.UNKNOWN_ROOM
            code = NackCode.STALE_EPOCH if message.room in self.rooms else code
            self._out.append(
                Send(
                    Nack(
                        message.room, message.epoch, self.config.sender_rank, self.config.rank, code, "OFFER",
                        boot_id=self.boot_id,
                    )
                )
            )  # fmt: skip
        else:
            self.rules.unmatched(self, message, now_s)

    def _on_abort_ack(self, tombstone: Tombstone, message: AbortAck) -> None:
        """R11: no write of this epoch is outstanding and none will start; the word of that very process only."""
        tombstone.abort = None
        if message.boot_id == tombstone.peer_boot_id or not tombstone.peer_boot_id:
            tombstone.acknowledged = True
            tombstone.executed_seq = message.executed_seq
            self._release_if_quiet(tombstone)

    def _release_if_quiet(self, tombstone: Tombstone) -> None:
        """Where a send completion does not prove arrival, the sender's word is not enough: the own receive must end."""
        owner = tombstone.owner
        if owner is None or not tombstone.held or not tombstone.acknowledged:
            return
        under_way = tombstone.executed_seq >= owner.seq and tombstone.landed_seq < owner.seq
        if not (self.config.landed_required and under_way):
            self._release(tombstone)

    def _release(self, tombstone: Tombstone) -> None:
        if tombstone.owner is None:
            raise LocalError(f"room {tombstone.room}: blocks are held without an owner")
        self.ledger.release(tombstone.owner, tombstone.held)
        self._recycle(tombstone.held)
        tombstone.held = ()

    # --- decisions ------------------------------------------------------------------------------------

    def _advance(self, room: ReceiverRoom, seen: AgreedRoom, now_s: float) -> None:
        step = kernel.verdict(
            INT, _STATE_NUMBER[room.state], seen.known, seen.registered, seen.failure, seen.total_tokens,
            seen.committed_tokens, room.handled_tokens, seen.delivered_tokens, False,
        )  # fmt: skip
        if step == kernel.IDLE:
            return
        if step == kernel.FAIL:
            self._fail(room, Reason(seen.failure) if seen.failure else Reason.MISMATCH, now_s)
            return
        room.progress_at = now_s
        if step == kernel.REGISTERED:
            self._move(room, "registered", ReceiverFacts())
        elif step == kernel.CHUNK:
            self._take_chunk(room, seen, now_s)
        elif step == kernel.COMPLETE:
            self._complete(room, now_s)

    def _take_chunk(self, room: ReceiverRoom, seen: AgreedRoom, now_s: float) -> None:
        """A chunk has landed on every rank: the watermark moves, and the copy out begins."""
        room.handled_tokens = seen.committed_tokens
        if seen.total_tokens != UNKNOWN and room.reserved_tokens > seen.total_tokens:
            self.free_result_tokens += room.reserved_tokens - seen.total_tokens
            room.reserved_tokens = seen.total_tokens
        if room.grant is not None and room.grant.start < seen.committed_tokens:
            # The agreed watermark never covers a grant that is open here, for it is the smallest of all. If it does,
            # the ledger refuses to read what has not landed.
            self.rules.read_guard(self.ledger, room.owner(room.grant.seq), room.grant.blocks)
        partial = room.handled_tokens < seen.total_tokens
        if partial:
            self._move(room, "landed", ReceiverFacts(partial=True))
        if self.rules.copy_when_landed(room) or not partial:
            self.copy_out(room)

    def copy_out(self, room: ReceiverRoom) -> None:
        """Begin to copy out every chunk that has landed."""
        for chunk in room.chunks:
            if not chunk.reading:
                self.rules.read_guard(self.ledger, room.owner(chunk.seq), chunk.blocks)
                self._out.append(
                    CopyOut(room.room, room.epoch, chunk.seq, chunk.start, chunk.count, chunk.blocks, chunk.start == 0)
                )
        room.chunks = tuple(chunk._replace(reading=True) for chunk in room.chunks)

    def _take_copy(self, room: ReceiverRoom, seq: int, position_delta: int, now_s: float) -> None:
        for chunk in room.chunks:
            if chunk.seq == seq and chunk.reading:
                room.chunks = tuple(other for other in room.chunks if other.seq != seq)
                room.delivered_tokens += chunk.count
                room.progress_at = now_s
                if chunk.start == 0:
                    room.position_delta = position_delta
                self.rules.free(self.ledger, room, room.owner(seq), chunk.blocks)
                self._recycle(chunk.blocks)

    def _complete(self, room: ReceiverRoom, now_s: float) -> None:
        self._move(room, "complete", ReceiverFacts(delivered=True))
        self._close_room(room, now_s)

    def _fail(self, room: ReceiverRoom, reason: Reason, now_s: float) -> None:
        """End a request that cannot succeed. What may still be written goes to quarantine, never to the free list."""
        room.failure = reason
        self._move(room, "fail", ReceiverFacts())
        tombstone = self._close_room(room, now_s)
        if room.grant is not None:
            owner = room.owner(room.grant.seq)
            if self.rules.settle(self.ledger, owner, room.grant.blocks):
                tombstone.owner, tombstone.held = owner, room.grant.blocks
            else:
                self._recycle(room.grant.blocks)
        for chunk in room.chunks:
            if not chunk.reading:
                self._free(room.owner(chunk.seq), chunk.blocks)
        tombstone.reading = tuple(chunk for chunk in room.chunks if chunk.reading)
        tombstone.abort = Abort(room.room, room.epoch, self.config.sender_rank, self.config.rank, reason.name)
        tombstone.resend_at = now_s + self.config.timing.resend_s
        self._out.append(Send(tombstone.abort))

    def _close_room(self, room: ReceiverRoom, now_s: float) -> Tombstone:
        del self.rooms[room.room]
        self.ledger.allocator.forget(room.room)
        self.free_result_tokens += room.reserved_tokens
        tombstone = Tombstone(room, now_s + self.config.timing.tombstone_s)
        self.tombstones[room.room, room.epoch] = tombstone
        self._out.append(Ended(self.config.rank, room.room, room.epoch, room.state, room.failure.name))
        return tombstone

    def _wants_blocks(self, room: ReceiverRoom) -> bool:
        if room.state == State.WAITING:
            return room.next_seq == 0 and (room.total_tokens > 0 or room.early_tokens > 0)
        return room.state == State.TRANSFERRING and self.rules.detect(room)

    def _walk(
        self, candidates: list[tuple[ReceiverRoom, AgreedRoom]], agreed: Agreed, now_s: float, choices: Choices
    ) -> None:
        """R6, R7: one agreed order over one agreed number of blocks; each takes what there is."""
        free = self.rules.equal_capacity(agreed.free_blocks, self._offered)
        free_result = agreed.free_result_tokens
        candidates.sort(key=lambda candidate: self.rules.order(candidate[0]))
        waiting: list[int] = []
        for room, seen in candidates:
            if room.next_seq == 0:
                total = seen.total_tokens
                result_tokens = total if total > 0 else self._early_limit()
                if total <= 0 and not room.early_tokens:
                    continue  # the OFFER has not reached every rank
                if result_tokens > free_result:
                    free = 0  # newcomers queue in order for result memory: the first one waits, all wait
            given = self._grant_to(room, seen, free, now_s, choices) if free > 0 else 0
            if given:
                free -= given
                free_result -= room.reserved_tokens if room.next_seq == 1 else 0
            elif room.handled_tokens:
                free = 0  # it holds data: nobody behind it may take what it waits for
                waiting.append(room.room)
                self._guarded(room, self.rules.starved, self, room)
        self.waiting = tuple(waiting)

    def _early_limit(self) -> int:
        """R6: an early grant reserves result memory at the configured limit."""
        return min(self.config.total_tokens_max, self.config.result_tokens or self.config.total_tokens_max)

    def _grant_to(
        self, room: ReceiverRoom, seen: AgreedRoom, free: int, now_s: float, choices: Choices
    ) -> int:
        """Grant a request what it may have of ``free`` blocks; returns how many blocks it got."""
        block_tokens = self.config.layout.block_tokens
        early = room.next_seq == 0 and seen.total_tokens == UNKNOWN
        start = self.rules.resume_start(room.handled_tokens, block_tokens)
        tokens = room.early_tokens if early else seen.total_tokens - start
        needed = kernel.blocks_needed(tokens, block_tokens)
        wanted = self.rules.wanted(needed, self.config.grant_blocks_max)
        available = self.rules.early_available(free) if early else free
        if room.chunks and available < wanted and self.rules.copy_when_landed(room):
            return 0  # its own blocks are about to come back: a larger grant then beats a smaller one now
        blocks = self.rules.take(wanted, available)
        if blocks <= 0:
            return 0
        capacity = kernel.grant_capacity(INT, tokens, blocks, block_tokens)
        if room.next_seq == 0 and self.config.result_tokens:
            room.reserved_tokens = self._early_limit() if early else seen.total_tokens
            self.free_result_tokens -= room.reserved_tokens
        self._guarded(room, self._send_grant, room, start, capacity, blocks, now_s, choices)
        return blocks

    def _send_grant(
        self, room: ReceiverRoom, start: int, capacity: int, blocks: int, now_s: float, choices: Choices
    ) -> None:
        seq = room.next_seq
        owner = room.owner(seq)
        before = room.grant.blocks if room.grant is not None else ()
        refs = self.ledger.reserve(owner, blocks, choices, self.block_kind)
        self._recycle(refs)
        if seq == 0:
            self._move(room, "grant", ReceiverFacts())
        else:
            self._move(room, "resume", ReceiverFacts(resume_due=self.rules.detect(room)))
            room.resumes += 1
        if room.chunks:
            self.copy_out(room)
        self.ledger.grant(owner, refs)
        self.rules.remember(room, before, refs)
        room.next_seq += 1
        room.grant = Grant(
            room.room, room.epoch, self.config.sender_rank, self.config.rank, seq, start, capacity, refs
        )  # fmt: skip
        room.progress_at = now_s
        self._await_answer(room, room.grant, now_s)

    # --- time -----------------------------------------------------------------------------------------

    def _limit_s(self, room: ReceiverRoom) -> float:
        """R9: how long this request may rest where it is; queueing has its own, longer limit."""
        timing = self.config.timing
        if room.state == State.BOOTSTRAPPING:
            return timing.bootstrap_s
        if room.state == State.TRANSFERRING or (room.state == State.WAITING and room.grant is None and room.total_tokens > 0):
            return timing.queue_deadline_s  # the own queue, for blocks or result memory
        if room.state == State.WAITING and room.total_tokens == UNKNOWN:
            return timing.deadline_s + room.peer_queue_s  # the peer may queue for staging
        return timing.deadline_s

    def _overdue(self, room: ReceiverRoom, now_s: float) -> Reason:
        if not kernel.expired(now_s, room.progress_at, self._limit_s(room)):
            return Reason.NONE
        if room.state == State.BOOTSTRAPPING:
            return Reason.BOOTSTRAP_DEADLINE
        return Reason.QUEUE_DEADLINE if room.grant is None else Reason.DEADLINE

    def _timers(self, now_s: float) -> None:
        timing = self.config.timing
        for room in self.rooms.values():
            if room.pending is not None and now_s >= room.resend_at:
                room.resend_at = now_s + timing.resend_s
                self._out.append(Send(room.pending, resend=True))
        gone = []
        for key, tombstone in self.tombstones.items():
            if now_s >= tombstone.expires_at and not tombstone.holds_blocks:
                gone.append(key)
            elif tombstone.abort is not None and now_s >= tombstone.resend_at:
                tombstone.resend_at = now_s + timing.resend_s
                self._out.append(Send(tombstone.abort, resend=True))
        for key in gone:
            del self.tombstones[key]
        if timing.heartbeat_s and now_s >= self.heartbeat_at:
            self.heartbeat_at = now_s + timing.heartbeat_s
            self._out.append(Send(Heartbeat(self.boot_id, self.config.sender_rank, self.config.rank)))

    # --- small things ---------------------------------------------------------------------------------

    def _move(self, room: ReceiverRoom, event: str, facts: ReceiverFacts) -> None:
        source = room.state
        self._fire(room, event, facts)
        self._out.append(Moved(self.config.rank, room.room, room.epoch, event, source, room.state))

    def _await_answer(self, room: ReceiverRoom, message: Message, now_s: float) -> None:
        room.pending = message
        room.resend_at = now_s + self.config.timing.resend_s
        self._out.append(Send(message))

    def _answered(self, room: ReceiverRoom, now_s: float) -> None:
        room.pending = None
        room.progress_at = now_s

    def _free(self, owner: Owner, refs: tuple[BlockRef, ...]) -> None:
        self.ledger.free(owner, refs)
        self._recycle(refs)

    def _recycle(self, refs: tuple[BlockRef, ...]) -> None:
        self._out.append(Recycle(tuple([ref.block for ref in refs]), self.rules.header_clearing()))

    def _guarded(self, room: ReceiverRoom, action: Callable[..., None], *arguments: Any) -> None:
        """R11: a refusal of the ledger harms one room. The refusal is reported, and the room fails at the next tick."""
        try:
            action(*arguments)
        except LedgerError as error:
            self._out.append(Refused(self.config.rank, room.room, room.epoch, error.property, str(error)))
            self._observe_failure(room, Reason.INTERNAL)

    def save(self, now_s: float) -> tuple[Any, ...]:
        """Everything that may influence the future, hashable; times relative to ``now_s``."""
        return (
            tuple([room.save(now_s) for room in self.rooms.values()]),
            tuple([self.tombstones[key].save(now_s) for key in sorted(self.tombstones)]),
            self.ledger.save(), self.boot_id, self.counter, self.peer_boot_id, self.free_result_tokens,
            self.heartbeat_at - now_s if self.config.timing.heartbeat_s else 0, self._offered, self.waiting,
        )  # fmt: skip

    def load(self, saved: tuple[Any, ...], now_s: float) -> None:
        """Take on the state that ``save`` described."""
        rooms, tombstones, ledger, self.boot_id, self.counter, self.peer_boot_id = saved[:6]
        self.free_result_tokens, heartbeat_at, self._offered, self.waiting = saved[6:]
        self.rooms = {record[1]: self.room_class.load(record, now_s) for record in rooms}
        loaded = [Tombstone.load(record, now_s) for record in tombstones]
        self.tombstones = {(tombstone.room, tombstone.epoch): tombstone for tombstone in loaded}
        self.ledger.load(ledger)
        self.heartbeat_at = heartbeat_at + now_s


def _room_class(rules: Rules) -> type[ReceiverRoom]:
    return ReceiverRoom if rules.table is ReceiverRoom.table else FiveStateReceiverRoom


__all__ = ["MISMATCH", "Receiver", "ReceiverConfig", "ReceiverRoom", "no_headers"]
