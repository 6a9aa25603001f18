"""Messages, for the acceptor: which may be sent where the lifecycle stands, and what one makes possible that comes in.

Whatever comes in is accepted, at any time and any number of times: that is the network's affair. What it says counts
only where the protocol says so (R1, R3, R4, R8), and then makes more possible. What is sent must be possible: an
answer follows what it answers, a request is sent in the states that await its answer, and a message that is sent again
is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from fsm import kernel
from fsm.conform.lanes import Lane, ReceiverLane, SenderLane
from fsm.events import Received, Sent
from fsm.kernel import UNKNOWN
from fsm.messages import (
    Abort,
    AbortAck,
    Grant,
    Heartbeat,
    Nack,
    NackCode,
    Offer,
    Register,
    RegisterAck,
    Status,
    kind_of,
)
from fsm.states import State

if TYPE_CHECKING:
    from fsm.conform.acceptor import Acceptor, Key

HEARD_MAX: Final = 8192
"""So many messages for no epoch that is known are remembered, since an answer to them may be sent."""

HEARD: Final[dict[str, int]] = {"REGISTER": 1, "OFFER": 2, "GRANT": 4, "ABORT": 8}
"""The kinds that are answered, as bits of what a lane has heard."""

ENDED_BY_ABORT: Final = 16
"""Beside those: an ABORT came while the lane lived, and was not acknowledged yet."""

BY_CODEC: Final = (NackCode.INTERNAL, NackCode.INCOMPATIBLE)
"""Codes with which bytes are refused that are no message, so that there is none to be seen."""


class MessageRules:
    """The part of an :class:`~fsm.conform.acceptor.Acceptor` that reads ``Sent`` and ``Received``."""

    def __init__(self, acceptor: Acceptor) -> None:
        self.acceptor = acceptor
        self.heard: dict[tuple[str, Key], int] = {}
        self.boots: dict[int, int] = {}
        """By receiver rank: the newest process of its sender that it has heard of."""
        self._sent: dict[tuple[str, type[Any]], Callable[[Sent, Any, Key], None]] = {
            ("receiver", Register): self._sent_register,
            ("receiver", Grant): self._sent_grant,
            ("receiver", Abort): self._sent_abort,
            ("receiver", AbortAck): self._sent_abort_ack,
            ("receiver", Nack): self._sent_nack,
            ("sender", RegisterAck): self._sent_register_ack,
            ("sender", Offer): self._sent_offer,
            ("sender", Status): self._sent_status,
            ("sender", Abort): self._sent_abort,
            ("sender", AbortAck): self._sent_abort_ack,
            ("sender", Nack): self._sent_nack,
        }
        self._came: dict[tuple[str, type[Any]], Callable[[Received, Any, Key], None]] = {
            ("receiver", RegisterAck): self._came_register_ack,
            ("receiver", Offer): self._came_offer,
            ("receiver", Status): self._came_status,
            ("receiver", Abort): self._came_answered,
            ("receiver", Nack): self._came_nack,
            ("sender", Register): self._came_register,
            ("sender", Grant): self._came_grant,
            ("sender", Abort): self._came_answered,
        }

    def sent(self, event: Sent) -> None:
        """A message was sent. Raises :class:`fsm.conform.refusal.Refused`."""
        message = event.message
        kind = type(message)
        if kind is Heartbeat:
            return
        handler = self._sent.get((event.side, kind))
        if handler is None:
            self.acceptor.refuse(event, "messages", f"a {event.side} sends no {kind_of(message)}")
        handler(event, message, (message.receiver_rank, message.room, message.epoch))  # type: ignore[union-attr]

    def received(self, event: Received) -> None:
        """A message came in."""
        message = event.message
        handler = self._came.get((event.side, type(message)))
        if handler is not None:
            handler(event, message, (message.receiver_rank, message.room, message.epoch))  # type: ignore[union-attr]

    # --- sent by a receiver ---------------------------------------------------------------------------

    def _sent_register(self, event: Sent, message: Register, key: Key) -> None:
        acceptor = self.acceptor
        lane = acceptor.receivers.get(key)
        if event.resend:
            lane = lane or self._late(event, "receiver", key)
            if lane.state not in ("", State.BOOTSTRAPPING):
                text = f"a REGISTER is sent again until it is acknowledged; the lifecycle is in {lane.state}"
                acceptor.refuse(event, "R3", text, "", lane)
            return
        if lane is not None or acceptor.is_old("receiver", key):
            acceptor.refuse(event, "R8", "an epoch is begun once, and this one was", "I4", lane)
        acceptor.add("receiver", key, ReceiverLane(whole=True))
        process = acceptor.process
        process.boot_last = max(process.boot_last, message.epoch.boot_id)
        process.born = max(process.born, message.epoch) if process.born is not None else message.epoch

    def _sent_grant(self, event: Sent, message: Grant, key: Key) -> None:
        acceptor = self.acceptor
        lane = acceptor.receivers.get(key) or self._late(event, "receiver", key)
        if lane.seq == UNKNOWN:
            if lane.whole:
                acceptor.refuse(event, "R3", "no grant was decided", "I6", lane)
            return
        if (message.seq, message.start, message.capacity) != (lane.seq, lane.start, lane.capacity):
            acceptor.refuse(event, "R3", "the bytes of a grant never change, and these are not the newest", "I6", lane)
        if lane.boots and message.sender_boot_id not in lane.boots:
            text = (
                f"it is for sender process {message.sender_boot_id}; its REGISTER was acknowledged by {lane.boots[-1]}"
            )
            acceptor.refuse(event, "R8", text, "I1", lane)
        if event.resend and not (lane.open and lane.live) and lane.whole:
            acceptor.refuse(event, "R3", "a GRANT is sent again until its STATUS comes, and that came", "", lane)
        if not event.resend:
            if not lane.unsent:
                acceptor.refuse(
                    event, "R3", f"the GRANT of seq {lane.seq} was sent for the first time already", "", lane
                )
            lane.unsent = False

    # --- sent by a sender -----------------------------------------------------------------------------

    def _sent_register_ack(self, event: Sent, message: RegisterAck, key: Key) -> None:
        acceptor = self.acceptor
        lane = acceptor.senders.get(key)
        self._answers(event, lane, key, "REGISTER")
        if not message.compatible or lane is None:
            return
        if lane.state == State.BOOTSTRAPPING:
            acceptor.refuse(
                event, "table", "it is acknowledged with the row 'registered', which was not taken", "", lane
            )
        lane.boot_id = message.boot_id
        acceptor.process.boot_last = max(acceptor.process.boot_last, message.boot_id)

    def _sent_offer(self, event: Sent, message: Offer, key: Key) -> None:
        acceptor = self.acceptor
        lane = acceptor.senders.get(key) or self._late(event, "sender", key)
        told = lane.state == State.BOOTSTRAPPING and lane.heard & HEARD["REGISTER"]  # in one step with its 'registered'
        if lane.state not in ("", State.WAITING) and not told:
            text = f"an OFFER is made in WaitingForInput, until a GRANT comes; the lifecycle is in {lane.state}"
            acceptor.refuse(event, "R3", text, "", lane)
        if lane.offered and not event.resend:
            acceptor.refuse(event, "R3", "the OFFER was made for the first time already", "", lane)
        lane.offered = True
        self._total(event, lane, message.total_tokens)

    def _sent_status(self, event: Sent, message: Status, key: Key) -> None:
        acceptor = self.acceptor
        lane = acceptor.senders.get(key)
        if lane is None:
            if event.resend and acceptor.is_old("sender", key):
                return
            lane = self._late(event, "sender", key)
        said = message.seq, message.committed_tokens
        self._total(event, lane, message.total_tokens)
        if event.resend:
            if lane.status not in (None, said) or (lane.status is None and lane.whole):
                acceptor.refuse(event, "R3", "a STATUS that is sent again is the last one, unchanged", "I8", lane)
            return
        if lane.state not in ("", State.TRANSFERRING) or lane.row:
            acceptor.refuse(event, "R3", "a STATUS closes a grant that is being executed, and none is", "I5", lane)
        if lane.status is not None and lane.status[0] == message.seq:
            acceptor.refuse(event, "R3", f"seq {message.seq} was closed already", "I5", lane)
        if lane.executed != UNKNOWN and said != (lane.executed, lane.end):
            text = f"what was executed is seq {lane.executed} up to {lane.end}, and nothing else can be said of it"
            acceptor.refuse(event, "R3", text, "I5", lane)
        lane.status = said
        lane.executed, lane.end = said

    def _total(self, event: Sent, lane: Any, total: int) -> None:
        if lane.total not in (UNKNOWN, total):
            self.acceptor.refuse(event, "R4", f"the length was told as {lane.total}, and is now {total}", "I2", lane)
        lane.total = total

    # --- sent by both ---------------------------------------------------------------------------------

    def _sent_abort(self, event: Sent, message: Abort, key: Key) -> None:
        acceptor = self.acceptor
        lane: Lane | None = acceptor.receivers.get(key) if event.side == "receiver" else acceptor.senders.get(key)
        if lane is None:
            if not (event.resend and acceptor.is_old(event.side, key)):
                self._late(event, event.side, key)
        elif lane.state not in ("", State.FAILED):
            text = f"an ABORT says that this side has failed; the lifecycle is in {lane.state}"
            acceptor.refuse(event, "R8", text, "", lane)

    def _sent_abort_ack(self, event: Sent, message: AbortAck, key: Key) -> None:
        acceptor = self.acceptor
        lane: Lane | None = acceptor.receivers.get(key) if event.side == "receiver" else acceptor.senders.get(key)
        self._answers(event, lane, key, "ABORT")
        if not isinstance(lane, SenderLane):
            return
        fresh, lane.heard = lane.heard & ENDED_BY_ABORT, lane.heard & ~ENDED_BY_ABORT
        forgotten = message.executed_seq == UNKNOWN and not fresh  # the tombstone may have expired
        if lane.whole and message.executed_seq != lane.executed and not forgotten:
            text = f"it says that seq {message.executed_seq} was executed last, and it was {lane.executed}"
            acceptor.refuse(event, "R11", text, "I1", lane)
        if lane.live and lane.state not in ("", State.BOOTSTRAPPING):
            text = "it says that nothing will be written, and the lane has not ended"
            acceptor.refuse(event, "R11", text, "I1", lane)

    def _sent_nack(self, event: Sent, message: Nack, key: Key) -> None:
        if message.code in BY_CODEC or message.about not in HEARD:
            return
        lanes: Any = self.acceptor.receivers if event.side == "receiver" else self.acceptor.senders
        self._answers(event, lanes.get(key), key, message.about)

    def _answers(self, event: Sent, lane: Lane | None, key: Key, kind: str) -> None:
        """An answer follows what it answers."""
        acceptor = self.acceptor
        bit = HEARD[kind]
        if (lane is not None and lane.heard & bit) or self.heard.get((event.side, key), 0) & bit:
            return
        if acceptor.is_old(event.side, key):
            return
        why = acceptor.gaps.own(acceptor.process)
        if not why:
            text = f"it answers {kind}, and no {kind} of this epoch came"
            acceptor.refuse(event, "R11", text, "", lane)
        acceptor.gaps.infer(f"Received {kind}", why)

    def _late(self, event: Sent, side: str, key: Key) -> Any:
        """A lane that was not seen: one whose beginning is missing, or a refusal."""
        return self.acceptor.unseen(side, key, event)

    # --- what comes in --------------------------------------------------------------------------------

    def _came_register_ack(self, event: Received, message: RegisterAck, key: Key) -> None:
        newest = self.boots.get(key[0], 0)
        if message.boot_id < newest:
            return  # R8: news from a process that is dead
        self.boots[key[0]] = message.boot_id
        lane = self.acceptor.receivers.get(key)
        if lane is not None and message.compatible and message.boot_id not in lane.boots:
            lane.boots += (message.boot_id,)

    def _came_offer(self, event: Received, message: Offer, key: Key) -> None:
        lane = self.acceptor.receivers.get(key)
        if lane is not None and lane.total == UNKNOWN and message.total_tokens > 0:
            lane.total = message.total_tokens
        self._hear("receiver", lane, key, "OFFER")

    def _came_status(self, event: Received, message: Status, key: Key) -> None:
        lane = self.acceptor.receivers.get(key)
        if lane is None or not lane.live or not lane.open or message.seq != lane.seq or lane.word != UNKNOWN:
            return  # R3: it closes nothing
        if message.committed_tokens != lane.committed_by(message.total_tokens):
            return
        if lane.total == UNKNOWN:
            lane.total = message.total_tokens
        if lane.total == message.total_tokens:
            lane.word = message.committed_tokens

    def _came_nack(self, event: Received, message: Nack, key: Key) -> None:
        self.boots[key[0]] = max(self.boots.get(key[0], 0), message.boot_id)

    def _came_answered(self, event: Received, message: Abort, key: Key) -> None:
        acceptor = self.acceptor
        lane: Lane | None = acceptor.receivers.get(key) if event.side == "receiver" else acceptor.senders.get(key)
        self._hear(event.side, lane, key, "ABORT")
        if lane is not None and lane.live:
            lane.heard |= ENDED_BY_ABORT

    def _came_register(self, event: Received, message: Register, key: Key) -> None:
        acceptor = self.acceptor
        lane = acceptor.senders.get(key)
        if lane is None:
            lane = SenderLane(whole=not acceptor.gaps.own(acceptor.process))
            acceptor.add("sender", key, lane)
            acceptor.is_over("sender", key)  # it may never be registered
        self._hear("sender", lane, key, "REGISTER")

    def _came_grant(self, event: Received, message: Grant, key: Key) -> None:
        lane = self.acceptor.senders.get(key)
        self._hear("sender", lane, key, "GRANT")
        if lane is None or not lane.live or (lane.boot_id and message.sender_boot_id != lane.boot_id):
            return
        block_tokens = self.acceptor.process.block_tokens or message.capacity
        fits = kernel.grant_fits(message.capacity, len(message.blocks), block_tokens)
        if fits and lane.is_next(message.seq) and message.seq not in lane.grants:
            lane.grants[message.seq] = message.start, message.capacity

    def _hear(self, side: str, lane: Lane | None, key: Key, kind: str) -> None:
        if lane is not None:
            lane.heard |= HEARD[kind]
            return
        heard = self.heard
        heard[side, key] = heard.get((side, key), 0) | HEARD[kind]
        if len(heard) > HEARD_MAX:
            del heard[next(iter(heard))]


__all__ = ["HEARD", "MessageRules"]
