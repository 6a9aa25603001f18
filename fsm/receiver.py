"""The receiver of one rank, sans I/O: messages and ticks in, effects out.

Messages only record facts (:mod:`fsm.receiver_facts`). Everything that is decided is decided in a tick, which
has two halves, so that many ranks can decide alike (R7): :meth:`Receiver.observe` says what this rank has
seen, the ranks' observations are folded by :func:`fsm.ranks.fold`, and :meth:`Receiver.decide` acts on the
folded observation, and on nothing that only this rank knows. With one rank, :meth:`Receiver.tick` does all
three.

The order within a tick is fixed: lifecycles first, by room; then grants, data-holders before newcomers,
oldest first (R6); then resends, expiries and heartbeats (R3, R8, R9).
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from fsm import kernel
from fsm.allocators import Choices, FirstChoice, Kind
from fsm.blocks import BlockLedger
from fsm.effects import CopyOut, Effect, Ended, Moved, Send
from fsm.errors import LocalError
from fsm.kernel import INT, UNKNOWN
from fsm.lifecycle import ReceiverFacts
from fsm.messages import BLOCKS_MAX, Abort, Epoch, Grant, Heartbeat, Message, Register
from fsm.ranks import Agreed, AgreedRoom, Observation, Observed, fold
from fsm.reasons import Reason
from fsm.receiver_facts import FactKeeper, ReceiverConfig
from fsm.receiver_room import FiveStateReceiverRoom, ReceiverRoom, Tombstone
from fsm.rules import PROTOCOL, Headers, Rules
from fsm.states import TERMINAL, State

STATE_NUMBER: Final[dict[str, int]] = {state: number for number, state in enumerate(State)}

Candidate: TypeAlias = tuple[ReceiverRoom, AgreedRoom]
"""A request that wants blocks, as it is here and as all ranks see it."""
Left: TypeAlias = tuple[int, int]
"""Free blocks, and free result tokens."""
_FIRST = FirstChoice()


def no_headers(block: int) -> int:
    """The protocol never looks into a header to decide anything (R1)."""
    raise LocalError(f"block {block}: no header reader was given; only wrong rules read headers")


class Receiver(FactKeeper):
    """One rank of a language worker. Not thread-safe: one owner calls it.

    ``boot_id`` is 1 or more, and grows from one start of the process to the next (R8). ``flat`` drives
    lifecycles through the flat lookup instead of the ``transitions`` machine; no hooks are called then.
    ``room_class`` may be a subclass of ``ReceiverRoom`` with hooks. Raises :class:`LocalError` for a
    ``boot_id`` below 1, and for a ``room_class`` on another table than that of the rules.
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
        super().__init__(config, ledger, boot_id, rules)
        self.room_class = room_class or _room_class(rules)
        if room_class is not None and room_class.table is not rules.table:
            raise LocalError(f"{room_class.__name__} lives by {room_class.table}, the rules by {rules.table}")
        self._fire = self.room_class.fire_flat if flat else self.room_class.fire
        self._grant_blocks_max = min(config.grant_blocks_max or BLOCKS_MAX, BLOCKS_MAX)
        self.counter = 0
        self.heartbeat_at = 0.0
        self.waiting: tuple[int, ...] = ()
        """Rooms that hold data and got no blocks in the last tick."""
        self.block_kind: Kind | None = None
        """What makes two free blocks interchangeable to a hostile allocator; only a search for all choices
        sets it."""
        self._offered = 0

    # --- what the caller says -------------------------------------------------------------------------

    def submit(self, room: int, now_s: float, *, early_tokens: int = 0) -> list[Effect]:
        """Begin to receive a request. ``early_tokens`` > 0 grants that many before the OFFER (the last free
        block excepted, and only where result memory for yet another request is left). Every rank must submit
        the same requests in the same order.

        Raises :class:`LocalError` if the room is in use here or the size is out of range; nothing is changed
        then.
        """
        if not 0 <= room < 1 << 63:
            raise LocalError(f"room {room}: expected 0 to 2**63 - 1")
        if room in self.rooms:
            raise LocalError(f"room {room} is in use here; wait for its end or use another")
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

    def abort(self, room: int, reason: Reason = Reason.ABORTED) -> None:
        """End a request at the next tick. Raises :class:`LocalError` if there is none."""
        if room not in self.rooms:
            raise LocalError(f"room {room}: nothing to abort; live rooms: {sorted(self.rooms)}")
        self._observe_failure(self.rooms[room], reason)

    def reachable(self, now_s: float) -> None:
        """The sender can be reached again, or for the first time: whatever awaits an answer is sent at the next
        tick, and not when its time has come. A resend may come at any time, so this decides nothing."""
        for room in self.rooms.values():
            room.resend_at = min(room.resend_at, now_s)
        for tombstone in self.tombstones.values():
            tombstone.resend_at = min(tombstone.resend_at, now_s)

    def rank_lost(self, boot_id: int) -> None:
        """A rank of this receiver is gone: every request fails at the next tick, and this receiver speaks
        under a new ``boot_id`` from now on, so that the sender fences the old one (R7)."""
        if boot_id <= self.boot_id:
            raise LocalError(f"boot_id={boot_id}: expected more than the present {self.boot_id}")
        self.boot_id = boot_id
        self.counter = 0
        for room in self.rooms.values():
            self._observe_failure(room, Reason.RANK_LOST)

    # --- the tick -------------------------------------------------------------------------------------

    def tick(
        self, now_s: float, choices: Choices = _FIRST, headers: Headers = no_headers
    ) -> list[Effect]:
        """A tick of a receiver of one rank."""
        return self.decide(fold((self.observe(now_s, choices, headers),), self.rules), now_s, choices)

    def observe(
        self, now_s: float, choices: Choices = _FIRST, headers: Headers = no_headers
    ) -> Observation:
        """What this rank brings to the tick. The allocator is asked how much it gives, once."""
        rooms = []
        wanted = False
        block_tokens, landed_required = self.config.layout.block_tokens, self.config.landed_required
        for room in self.rooms.values():
            if not room.failure and self.rules.deadlines():
                room.failure = self._overdue(room, now_s)
            progress = self.rules.progress(room, block_tokens, landed_required, headers)
            wanted = wanted or self._may_want_blocks(room, progress)
            rooms.append(
                Observed(
                    room.room,
                    room.epoch,
                    room.registered,
                    room.total_tokens,
                    room.flags,
                    progress,
                    room.delivered_tokens,
                    room.failure,
                )
            )
        self._offered = self.ledger.offer(choices) if wanted else 0
        return Observation(self.config.rank, tuple(rooms), self._offered, self.free_result_tokens)

    def decide(self, agreed: Agreed, now_s: float, choices: Choices = _FIRST) -> list[Effect]:
        """Act on what all ranks agreed on."""
        out = self._out = []
        candidates: list[Candidate] = []
        for seen in agreed.rooms:
            room = self.rooms.get(seen.room)
            if room is not None:
                self._guarded(room, self._advance, room, seen, now_s)
                if room.state not in TERMINAL and seen.known and self._wants_blocks(room):
                    candidates.append((room, seen))
        self.waiting = ()
        if candidates:
            self._walk(candidates, agreed, now_s, choices)
        self._offered = 0
        self._timers(now_s)
        return out

    def next_timer_s(self) -> float | None:
        """When a tick will have something to do though nothing is received; ``None`` if never."""
        times: list[float] = []
        for room in self.rooms.values():
            if self.rules.deadlines():
                times.append(room.progress_at + self._limit(room)[0])
            if room.pending is not None:
                times.append(room.resend_at)
        for tombstone in self.tombstones.values():
            if not tombstone.holds_memory:
                times.append(tombstone.expires_at)
            if tombstone.abort is not None:
                times.append(tombstone.resend_at)
        if self.config.timing.heartbeat_s:
            times.append(self.heartbeat_at)
        return min(times, default=None)

    # --- decisions ------------------------------------------------------------------------------------

    def _advance(self, room: ReceiverRoom, seen: AgreedRoom, now_s: float) -> None:
        if seen.total_tokens > UNKNOWN and not room.total_agreed:
            room.total_agreed, room.progress_at = True, now_s
        step = kernel.verdict(
            INT, STATE_NUMBER[room.state], seen.known, seen.registered, seen.failure, seen.total_tokens,
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
            self._take_chunk(room, seen)
        else:
            self._complete(room, now_s)

    def _take_chunk(self, room: ReceiverRoom, seen: AgreedRoom) -> None:
        """A chunk has landed on every rank: the watermark moves, and the copy out begins."""
        room.handled_tokens = seen.committed_tokens
        if seen.total_tokens != UNKNOWN and room.reserved_tokens > seen.total_tokens:
            self.free_result_tokens += room.reserved_tokens - seen.total_tokens
            room.reserved_tokens = seen.total_tokens
        partial = room.handled_tokens < seen.total_tokens
        if partial:
            self._move(room, "landed", ReceiverFacts(partial=True))
        self.rules.claim(room, seen.committed_tokens)
        if room.grant is not None and room.grant.start < seen.committed_tokens:
            # The agreed watermark never covers a grant that is open here, for it is the smallest of all. If
            # it does, the ledger refuses to read what has not landed.
            self.rules.read_guard(self.ledger, room.owner(room.grant.seq), room.grant.blocks)
        if self.rules.copy_when_landed(room) or not partial:
            self.copy_out(room)

    def copy_out(self, room: ReceiverRoom) -> None:
        """Begin to copy out every chunk that has landed."""
        for chunk in room.chunks:
            if not chunk.reading:
                self.rules.read_guard(self.ledger, room.owner(chunk.seq), chunk.blocks)
                seq, start, tokens, blocks, _, checksum = chunk
                whole = tokens == room.total_tokens
                self._out.append(
                    CopyOut(room.room, room.epoch, seq, start, tokens, blocks, start == 0, whole, checksum)
                )
        room.chunks = tuple(chunk._replace(reading=True) for chunk in room.chunks)

    def _complete(self, room: ReceiverRoom, now_s: float) -> None:
        room.failure = Reason.NONE  # whatever was seen since all ranks agreed on Success came too late
        self._move(room, "complete", ReceiverFacts(delivered=True))
        tombstone = self._close_room(room, now_s)
        tombstone.reading = room.chunks  # a lease, if it has not come back already
        if self.config.results_held and not room.leased:
            tombstone.result_tokens = room.reserved_tokens
        else:
            self.free_result_tokens += room.reserved_tokens

    def _fail(self, room: ReceiverRoom, reason: Reason, now_s: float) -> None:
        """End a request that cannot succeed. What may still be written goes to quarantine, not to the free
        list."""
        room.failure = reason
        self._move(room, "fail", ReceiverFacts())
        tombstone = self._close_room(room, now_s)
        if room.grant is not None:
            owner = room.owner(room.grant.seq)
            if self.rules.settle(self.ledger, owner, room.grant.blocks):
                tombstone.held_seq, tombstone.held = room.grant.seq, room.grant.blocks
                if room.closing is not None:
                    tombstone.executed_seq = room.grant.seq  # so its STATUS said, whatever the sender forgets
                if room.peer_gone:
                    self._release(tombstone)  # the proof came before the failure
            else:
                self._recycle(room.grant.blocks)
        for chunk in room.chunks:
            if not chunk.reading:
                self._free(room.owner(chunk.seq), chunk.blocks)
        tombstone.reading = tuple(chunk for chunk in room.chunks if chunk.reading)
        if self.config.results_held and tombstone.reading:
            tombstone.result_tokens = room.reserved_tokens  # something is still being copied to it
        else:
            self.free_result_tokens += room.reserved_tokens
        tombstone.abort = Abort(room.room, room.epoch, self.config.sender_rank, self.config.rank, reason.name)
        tombstone.resend_at = now_s + self.config.timing.resend_s
        self._out.append(Send(tombstone.abort))

    def _close_room(self, room: ReceiverRoom, now_s: float) -> Tombstone:
        del self.rooms[room.room]
        self.ledger.allocator.forget(room.room)
        tombstone = Tombstone(room, now_s + self.config.timing.tombstone_s)
        self.tombstones[room.room, room.epoch] = tombstone
        self._out.append(Ended(self.config.rank, room.room, room.epoch, room.state, room.failure.name))
        return tombstone

    def _wants_blocks(self, room: ReceiverRoom) -> bool:
        due = room.state == State.TRANSFERRING and self.rules.detect(room)
        state = STATE_NUMBER[room.state]
        wants: bool = kernel.wants_blocks(state, room.next_seq, room.total_tokens, room.early_tokens, due)
        return wants

    def _may_want_blocks(self, room: ReceiverRoom, progress_tokens: int) -> bool:
        """Whether the coming decision may make this request a candidate for blocks."""
        if room.state == State.BOOTSTRAPPING:
            return room.registered and (room.total_tokens > 0 or room.early_tokens > 0)
        return self._wants_blocks(room) or room.handled_tokens < progress_tokens < room.total_tokens

    def _walk(
        self, candidates: list[Candidate], agreed: Agreed, now_s: float, choices: Choices
    ) -> None:
        """R6, R7: one agreed order over one agreed number of blocks; each takes what there is."""
        left = self.rules.equal_capacity(agreed.free_blocks, self._offered), agreed.free_result_tokens
        candidates.sort(key=lambda candidate: self.rules.order(candidate[0]))
        waiting: list[int] = []
        for room, seen in candidates:
            left, waits = self._serve(room, seen, left, now_s, choices)
            if waits:
                waiting.append(room.room)
                self._guarded(room, self.rules.starved, self, room)
        self.waiting = tuple(waiting)

    def _serve(
        self, room: ReceiverRoom, seen: AgreedRoom, left: Left, now_s: float, choices: Choices
    ) -> tuple[Left, bool]:
        """Grant one candidate what it may have of what is ``left``: free blocks and free result tokens. What is
        left behind it, and whether it waits with data."""
        free, free_result = left
        if room.next_seq == 0:
            early = seen.total_tokens == UNKNOWN
            fits = kernel.result_needed(INT, seen.total_tokens, self._early_limit()) <= free_result
            if early and not (fits and room.early_tokens):
                return left, False  # it waits for its OFFER, and keeps nobody from anything
            if not fits:
                free = 0  # newcomers queue in order for result memory: the first one waits, all wait
        given = self._grant_to(room, seen, free, now_s, choices) if free > 0 else 0
        if given:
            return (free - given, free_result - (room.reserved_tokens if room.next_seq == 1 else 0)), False
        if room.handled_tokens:
            return (0, free_result), True  # it holds data: nobody behind it may take what it waits for
        return (free, free_result), False

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
        wanted = self.rules.wanted(needed, self._grant_blocks_max)
        available = self.rules.early_available(free) if early else free
        # What is still being copied, on some rank, all of them act on (R7).
        later = kernel.better_later(seen.delivered_tokens, room.handled_tokens, available, wanted)
        if later and self.rules.copy_when_landed(room):
            return 0
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
        try:
            if seq == 0:
                self._move(room, "grant", ReceiverFacts())
            else:
                self._move(room, "resume", ReceiverFacts(resume_due=self.rules.detect(room)))
                room.resumes += 1
            if room.chunks:
                self.copy_out(room)
        except Exception:
            self._free(owner, refs)  # a hook, say, has kept the grant from being sent
            raise
        self.ledger.grant(owner, refs)
        self.rules.remember(room, before, refs)
        room.next_seq += 1
        room.grant = Grant(
            room.room, room.epoch, self.config.sender_rank, self.config.rank, seq, start, capacity, refs,
            room.peer_boot_id,
        )  # fmt: skip
        room.progress_at = now_s
        self._await_answer(room, room.grant, now_s)

    # --- time -----------------------------------------------------------------------------------------

    def _limit(self, room: ReceiverRoom) -> tuple[float, Reason]:
        """R9: how long this request may rest where it is, in seconds, and what it fails of then."""
        timing = self.config.timing
        if room.state == State.BOOTSTRAPPING:
            return timing.bootstrap_s, Reason.BOOTSTRAP_DEADLINE
        if room.state == State.WAITING and not room.total_agreed:
            return timing.deadline_s + room.peer_queue_s, Reason.DEADLINE  # the peer may queue for staging
        if room.state == State.TRANSFERRING or room.next_seq == 0:
            return timing.queue_deadline_s, Reason.QUEUE_DEADLINE  # for the own blocks or result memory
        return timing.deadline_s, Reason.DEADLINE

    def _overdue(self, room: ReceiverRoom, now_s: float) -> Reason:
        limit_s, reason = self._limit(room)
        return reason if kernel.expired(now_s, room.progress_at, limit_s) else Reason.NONE

    def _timers(self, now_s: float) -> None:
        timing = self.config.timing
        for room in self.rooms.values():
            if room.pending is not None and now_s >= room.resend_at:
                room.resend_at = now_s + timing.resend_s
                self._out.append(Send(room.pending, resend=True))
        for key in [key for key, tombstone in self.tombstones.items() if tombstone.expired(now_s)]:
            del self.tombstones[key]
        due = [(key, t.abort) for key, t in self.tombstones.items() if t.abort and now_s >= t.resend_at]
        for key, abort in sorted(due):  # by name, not by age: who was loaded must do as who ran
            self.tombstones[key].resend_at = now_s + timing.resend_s
            self._out.append(Send(abort, resend=True))
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

    @property
    def resting(self) -> bool:
        """Whether no request that has ended still awaits an acknowledgement, a proof or the end of a copy."""
        return not any(tombstone.abort or tombstone.holds_blocks for tombstone in self.tombstones.values())

    def save(self, now_s: float) -> tuple[Any, ...]:
        """Everything that may influence the future, hashable; times relative to ``now_s``."""
        return (
            tuple([room.save(now_s, self.config.timing.longest_s) for room in self.rooms.values()]),
            tuple([self.tombstones[key].save(now_s) for key in sorted(self.tombstones)]),
            self.ledger.save(), self.boot_id, self.counter, self.peer_boot_id, self.free_result_tokens,
            max(self.heartbeat_at - now_s, 0) if self.config.timing.heartbeat_s else 0, self._offered,
            self.gone_boot_id,
        )  # fmt: skip

    def load(self, saved: tuple[Any, ...], now_s: float) -> None:
        """Take on the state that ``save`` described."""
        rooms, tombstones, ledger, self.boot_id, self.counter, self.peer_boot_id = saved[:6]
        self.free_result_tokens, heartbeat_at, self._offered, self.gone_boot_id = saved[6:]
        self.waiting = ()
        self.rooms = {record[1]: self.room_class.load(record, now_s) for record in rooms}
        loaded = [Tombstone.load(record, now_s) for record in tombstones]
        self.tombstones = {(tombstone.room, tombstone.epoch): tombstone for tombstone in loaded}
        self.ledger.load(ledger)
        self.heartbeat_at = heartbeat_at + now_s


def _room_class(rules: Rules) -> type[ReceiverRoom]:
    return ReceiverRoom if rules.table is ReceiverRoom.table else FiveStateReceiverRoom


__all__ = ["Receiver", "ReceiverConfig", "ReceiverRoom", "no_headers"]
