"""The half of a receiver rank that listens: messages and completions become facts, and nothing is decided.

A message that fits is noted on its room (or on the tombstone of one that has ended), and what it makes
certain about blocks is told to the ledger at once: the STATUS that closes a grant, the proof that nothing
will be written any more. Everything else waits for the next tick, where all ranks decide alike
(:mod:`fsm.receiver`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsm import kernel
from fsm.blocks import BlockLedger, Owner
from fsm.effects import Effect, Recycle, Refused, Send, Watermark
from fsm.errors import LedgerError, LocalError
from fsm.kernel import INT, UNKNOWN
from fsm.messages import (
    Abort,
    AbortAck,
    BlockRef,
    Epoch,
    Heartbeat,
    Layout,
    Message,
    Nack,
    NackCode,
    Offer,
    RegisterAck,
    Status,
)
from fsm.reasons import NACK_REASONS, RETRIED_WHILE_BOOTSTRAPPING, Reason
from fsm.receiver_room import Chunk, ReceiverRoom, Tombstone
from fsm.rules import Rules
from fsm.states import State
from fsm.timing import Timing

UNLIMITED = 1 << 62
"""Result memory, in tokens, where no limit was set."""


@dataclass(frozen=True)
class ReceiverConfig:
    """What a receiver rank is told once. Sizes in tokens or blocks; 0 means no limit where it says so.

    Raises :class:`LocalError` for a size that is out of range.
    """

    layout: Layout
    rank: int = 0
    sender_rank: int = 0
    total_tokens_max: int = 1 << 20
    """A longer request is refused."""
    grant_blocks_max: int = 0
    """Never more blocks in one grant; 0 = no limit but that of the message."""
    result_tokens: int = 0
    """Result memory; 0 = no limit."""
    landed_required: bool = False
    """The transport's send completion does not prove arrival: await the own completion too (R1)."""
    two_sided: bool = False
    """Writes end in a receive of one's own: one that was executed must land before its blocks are given up
    (R5), whatever the sender says."""
    results_held: bool = False
    """The caller uses the result memory of a request that ended until it says ``release_result``."""
    descriptors: bytes = b""
    timing: Timing = Timing()

    def __post_init__(self) -> None:
        if self.total_tokens_max < 1:
            raise LocalError(f"total_tokens_max={self.total_tokens_max}: expected at least 1 token")
        for name in ("rank", "sender_rank", "grant_blocks_max", "result_tokens"):
            if getattr(self, name) < 0:
                raise LocalError(f"{name}={getattr(self, name)}: expected 0 or more")


class FactKeeper:
    """What a receiver rank knows. The receiver proper (:class:`fsm.receiver.Receiver`) decides from it."""

    def __init__(self, config: ReceiverConfig, ledger: BlockLedger, boot_id: int, rules: Rules) -> None:
        if boot_id < 1:
            raise LocalError(f"boot_id={boot_id}: expected 1 or more; 0 stands for no process")
        self.config = config
        self.ledger = ledger
        self.boot_id = boot_id
        self.rules = rules
        self.rooms: dict[int, ReceiverRoom] = {}
        self.tombstones: dict[tuple[int, Epoch], Tombstone] = {}
        self.free_result_tokens = config.result_tokens or UNLIMITED
        self.peer_boot_id = 0
        """The newest process of the sender that was heard of; 0: none."""
        self.gone_boot_id = 0
        """The newest process of the sender that was proved to write no more; 0: none."""
        self._out: list[Effect] = []
        self._handlers: dict[type[Any], Callable[[ReceiverRoom, Any, float], None]] = {
            RegisterAck: self._on_register_ack,
            Offer: self._on_offer,
            Status: self._on_status,
            Nack: self._on_nack,
            Abort: self._on_abort,
        }

    # --- what the surroundings report -----------------------------------------------------------------

    def receive(self, message: Message, now_s: float) -> list[Effect]:
        """Take one message from the peer. Never raises on account of what the message says (R11)."""
        out = self._out = []
        if message.receiver_rank != self.config.rank or message.sender_rank != self.config.sender_rank:
            self._on_misaddressed(message)
            return out
        if isinstance(message, Heartbeat):
            self._see_boot(message.boot_id)
            return out
        if isinstance(message, (RegisterAck, AbortAck, Nack)):
            counts = self._see_boot(message.boot_id)
            if not counts and not isinstance(message, AbortAck):
                return out  # of all that an old process says, only its word on its own writes stays true
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
        tombstone = self.tombstones.get((room, epoch))
        if live is not None and live.epoch == epoch:
            live.landed_seq = max(live.landed_seq, seq)
            live.progress_at = now_s
            self._guarded(live, self._close_grant, live)
        elif tombstone is not None:
            tombstone.landed_seq = max(tombstone.landed_seq, seq)
            self._guarded(tombstone, self._release_if_quiet, tombstone)
        return out

    def copied(self, room: int, epoch: Epoch, seq: int, position_delta: int, now_s: float) -> list[Effect]:
        """The copy that ``CopyOut`` asked for has ended; ``position_delta`` is read of the first one only."""
        out = self._out = []
        live = self.rooms.get(room)
        tombstone = self.tombstones.get((room, epoch))
        if live is not None and live.epoch == epoch:
            self._guarded(live, self._take_copy, live, seq, position_delta, now_s)
        elif tombstone is not None:
            self._guarded(tombstone, self._drop_copy, tombstone, seq)
        return out

    def lease(self, room: int, epoch: Epoch, seq: int, position_delta: int, now_s: float) -> list[Effect]:
        """Instead of a copy: the caller keeps the blocks of a ``CopyOut`` that is ``whole``, and calls
        ``copied`` when it is done with them. The request counts as delivered."""
        out = self._out = []
        live = self.rooms.get(room)
        if live is not None and live.epoch == epoch and not live.leased:
            for chunk in live.chunks:
                if chunk.seq == seq and chunk.reading and chunk.tokens == live.total_tokens:
                    live.leased = True
                    live.delivered_tokens = chunk.tokens
                    live.position_delta = position_delta
                    live.progress_at = now_s
        return out

    def copy_failed(self, room: int, epoch: Epoch, seq: int, reason: Reason, now_s: float) -> list[Effect]:
        """The copy that ``CopyOut`` asked for has ended, and what was copied is not what was sent
        (``CHECKSUM``), or it broke (``INTERNAL``): its blocks are free, and the request fails."""
        out = self._out = []
        live = self.rooms.get(room)
        tombstone = self.tombstones.get((room, epoch))
        if live is not None and live.epoch == epoch:
            self._observe_failure(live, reason)
            self._guarded(live, self._drop_wrong_copy, live, seq)
        elif tombstone is not None:
            self._guarded(tombstone, self._drop_copy, tombstone, seq)
        return out

    def release_result(self, room: int, epoch: Epoch) -> None:
        """The caller is done with the result of a request that ended (only with ``results_held``)."""
        tombstone = self.tombstones.get((room, epoch))
        if tombstone is not None and not tombstone.reading:
            self._free_result(tombstone)

    def quiesced(self, boot_id: int) -> list[Effect]:
        """The transport proves that no write of the sender process ``boot_id`` is outstanding or will start
        (section "Quiescence" of the docs: its process is gone, the queue pair destroyed, and so on).

        What is quarantined on its account is free, and requests that still need it fail at the next tick. A
        process that survives the loss of its transport must come back under a new ``boot_id``: this one is
        over.
        """
        out = self._out = []
        self.gone_boot_id = max(self.gone_boot_id, boot_id)
        for room in self.rooms.values():
            if room.registered and room.peer_boot_id == boot_id:
                room.peer_gone = True
                if room.needs_peer() and self.rules.boot_change_fences():
                    self._observe_failure(room, Reason.PEER_GONE)
        for key in sorted(self.tombstones):
            tombstone = self.tombstones[key]
            if tombstone.peer_boot_id == boot_id and tombstone.held:
                self._guarded(tombstone, self._release, tombstone)
        return out

    # --- who speaks -----------------------------------------------------------------------------------

    def _see_boot(self, boot_id: int) -> bool:
        """R8: whether a message of that process counts. A newer process fences every older one."""
        if not self.rules.boot_change_fences():
            return True
        if boot_id < self.peer_boot_id or boot_id <= self.gone_boot_id:
            return False
        if boot_id > self.peer_boot_id:
            for room in self.rooms.values():
                if room.registered and room.needs_peer():
                    self._observe_failure(room, Reason.PEER_RESTARTED)
            self.peer_boot_id = boot_id
        return True

    def _on_misaddressed(self, message: Message) -> None:
        """R11: a message between two other ranks: what expects an answer gets one; nothing else happens."""
        if isinstance(message, Abort):
            self._acknowledge_abort(message)
        elif isinstance(message, Offer):
            self._nack_offer(message, NackCode.STALE_EPOCH)

    # --- messages -------------------------------------------------------------------------------------

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
        if self._learn_total(room, message):
            room.progress_at = now_s
        elif room.total_tokens == UNKNOWN:
            self._nack_offer(message, NackCode.NO_CAPACITY)

    def _learn_total(self, room: ReceiverRoom, message: Offer | Status) -> bool:
        """R4: total and flags come from OFFER and STATUS, must agree, and are cached; True if news."""
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
        if grant is None or closing is None:
            return
        if not kernel.may_close(self.config.landed_required, room.landed_seq, grant.seq):
            return
        tokens = closing.committed_tokens - grant.start
        reached = kernel.blocks_needed(tokens, self.config.layout.block_tokens)
        owner = room.owner(grant.seq)
        self.ledger.land(owner, grant.blocks[:reached])
        if grant.blocks[reached:]:
            self.ledger.unreached(owner, grant.blocks[reached:])
            self._recycle(grant.blocks[reached:])
        room.landed_tokens = closing.committed_tokens
        room.chunks += (
            Chunk(grant.seq, grant.start, tokens, grant.blocks[:reached], False, closing.checksum),
        )
        room.grant = room.closing = None
        progress = kernel.progress(INT, room.word_tokens, room.landed_tokens, self.config.landed_required)
        self._out.append(Watermark(self.config.rank, room.room, room.epoch, progress))

    def _on_nack(self, room: ReceiverRoom, message: Nack, now_s: float) -> None:
        """R9: a NACK that does not answer what is being waited for is late news, and changes nothing."""
        if message.about == "REGISTER":
            if not room.registered and message.code not in RETRIED_WHILE_BOOTSTRAPPING:
                self._observe_failure(room, NACK_REASONS[message.code])
        elif message.about == "GRANT" and room.grant is not None and message.seq == room.grant.seq:
            self._observe_failure(room, NACK_REASONS[message.code])

    def _on_abort(self, room: ReceiverRoom, message: Abort, now_s: float) -> None:
        self._observe_failure(room, Reason.PEER_ABORTED)
        self._acknowledge_abort(message)

    def _on_unmatched(self, message: Any, now_s: float) -> None:
        """R8, R11: a message for no live epoch. It makes nothing; what expects an answer gets one."""
        tombstone = self.tombstones.get((message.room, message.epoch))
        if isinstance(message, Abort):
            self._acknowledge_abort(message)
        elif isinstance(message, AbortAck):
            if tombstone is not None and not tombstone.acknowledged:
                self._guarded(tombstone, self._on_abort_ack, tombstone, message)
        elif isinstance(message, Offer):
            code = NackCode.CANCELLED if tombstone is not None else NackCode.UNKNOWN_ROOM
            self._nack_offer(message, NackCode.STALE_EPOCH if message.room in self.rooms else code)
        else:
            self.rules.unmatched(self, message, now_s)

    def _on_abort_ack(self, tombstone: Tombstone, message: AbortAck) -> None:
        """R11: no write of this epoch is outstanding and none will start; that very process says so."""
        tombstone.abort = None
        if kernel.proof_counts(message.boot_id, tombstone.peer_boot_id):
            tombstone.acknowledged = True
            tombstone.executed_seq = max(tombstone.executed_seq, message.executed_seq)
            self._release_if_quiet(tombstone)

    # --- blocks ---------------------------------------------------------------------------------------

    def _take_copy(self, room: ReceiverRoom, seq: int, position_delta: int, now_s: float) -> None:
        for chunk in room.chunks:
            if chunk.seq == seq and chunk.reading:
                room.chunks = tuple(other for other in room.chunks if other.seq != seq)
                if not room.leased:  # a lease was delivered when it began
                    room.delivered_tokens += chunk.tokens
                    room.progress_at = now_s
                    if chunk.start == 0:
                        room.position_delta = position_delta
                self.rules.free(self.ledger, room, room.owner(seq), chunk.blocks)
                self._recycle(chunk.blocks)

    def _drop_copy(self, tombstone: Tombstone, seq: int) -> None:
        done = [chunk for chunk in tombstone.reading if chunk.seq == seq]
        tombstone.reading = tuple(chunk for chunk in tombstone.reading if chunk.seq != seq)
        for chunk in done:
            self._free(Owner(tombstone.room, tombstone.epoch, seq), chunk.blocks)
        if tombstone.state == State.FAILED and not tombstone.reading:
            self._free_result(tombstone)  # nobody was given the result of a request that failed

    def _drop_wrong_copy(self, room: ReceiverRoom, seq: int) -> None:
        for chunk in room.chunks:
            if chunk.seq == seq and chunk.reading:
                room.chunks = tuple(other for other in room.chunks if other.seq != seq)
                self._free(room.owner(seq), chunk.blocks)

    def _free_result(self, tombstone: Tombstone) -> None:
        self.free_result_tokens += tombstone.result_tokens
        tombstone.result_tokens = 0

    def _release_if_quiet(self, tombstone: Tombstone) -> None:
        """Where a send completion does not prove arrival, the own receive must have ended besides."""
        if not tombstone.held or not tombstone.acknowledged:
            return
        executed, held, landed = tombstone.executed_seq, tombstone.held_seq, tombstone.landed_seq
        if kernel.may_release(self.config.two_sided, executed, held, landed):
            self._release(tombstone)

    def _release(self, tombstone: Tombstone) -> None:
        self.ledger.release(Owner(tombstone.room, tombstone.epoch, tombstone.held_seq), tombstone.held)
        self._recycle(tombstone.held)
        tombstone.held = ()

    def _free(self, owner: Owner, refs: tuple[BlockRef, ...]) -> None:
        self.ledger.free(owner, refs)
        self._recycle(refs)

    def _recycle(self, refs: tuple[BlockRef, ...]) -> None:
        self._out.append(Recycle(tuple([ref.block for ref in refs]), self.rules.header_clearing()))

    # --- small things ---------------------------------------------------------------------------------

    def _observe_failure(self, room: ReceiverRoom, reason: Reason) -> None:
        """The first failure is the one that is told; nothing is decided before the tick."""
        if not room.failure:
            room.failure = reason

    def _answered(self, room: ReceiverRoom, now_s: float) -> None:
        room.pending = None
        room.progress_at = now_s

    def _acknowledge_abort(self, message: Abort) -> None:
        config = self.config
        self._out.append(
            Send(AbortAck(message.room, message.epoch, config.sender_rank, config.rank, self.boot_id, -1))
        )

    def _nack_offer(self, message: Offer, code: NackCode) -> None:
        config = self.config
        ranks = config.sender_rank, config.rank
        self._out.append(Send(Nack(message.room, message.epoch, *ranks, code, "OFFER", boot_id=self.boot_id)))

    def _guarded(self, whose: ReceiverRoom | Tombstone, action: Callable[..., None], *arguments: Any) -> None:
        """R11: a refusal of the ledger harms one room. If that room lives, it fails at the next tick."""
        try:
            action(*arguments)
        except LedgerError as error:
            self._out.append(Refused(self.config.rank, whose.room, whose.epoch, error.property, str(error)))
            if isinstance(whose, ReceiverRoom):
                self._observe_failure(whose, Reason.INTERNAL)
