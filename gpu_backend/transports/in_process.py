"""Both sides in one process, over a :class:`Fabric` that a test can drive step by step.

The fabric knows every receiver of the process and every write under way (a :class:`Flight`). A write moves in
*pieces* of some target blocks, in order, and each piece is copied with ``torch``, on the host or on a device. In
plain use (``auto=True``) the sender's polls move the writes on. A test makes a fabric with ``auto=False`` and decides
what moves when: ``step``, ``hold``, ``fail``, ``finish``. So it can put a write between any two events of the
protocol, an abort or a free of the same blocks among them. Every piece that arrives is told to ``on_arrival`` with
its range of tokens, before the bytes are touched.

A fabric imitates a one-sided engine where it is worst: a write that is held goes on after it was cancelled, or its
receiver disconnected. Only the end of the sender (``close``, or ``sender_died`` for its process) or of the receiver's
memory (``close`` of the receiver) ends it.

Options, the same on both sides: ``fabric``, the :class:`Fabric`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import torch

from fsm.errors import LocalError, RemoteError
from fsm.messages import BlockRef, Epoch, Grant
from gpu_backend.layout import write_spans
from gpu_backend.transports.base import (
    Landed,
    ReceiverReport,
    ReceiverTransport,
    SenderReport,
    SenderTransport,
    Sent,
    Traits,
    Transport,
    WriteFailed,
    WriteKey,
    WriteOrder,
)
from gpu_backend.transports.sliced import check_order, refuse

if TYPE_CHECKING:
    from gpu_backend.pool import BlockPool, SourcePool

TRAITS: Final = Traits(
    name="in-process",
    one_sided=True,
    cancellable=True,
    devices=("cpu", "cuda"),
    landed_required=False,
    process_exit_proves=True,
    proof=(
        "A piece is copied, and on a device waited for, inside one call; between two calls nothing is on its way. A "
        "write that is over has left the fabric's list, and the fabric copies for nothing else."
    ),
)

_NEXT_FABRIC: Final = itertools.count(1)


class Arrival(NamedTuple):
    """One piece of a write, about to be in the receiver's memory."""

    key: WriteKey
    start: int
    """The first of its tokens, counted from the beginning of the request."""
    tokens: int
    blocks: tuple[BlockRef, ...]
    """The blocks that it touches, as the grant named them."""


@dataclass(eq=False)
class Flight:
    """A write under way."""

    order: WriteOrder
    sender: InProcessSender
    receiver: InProcessReceiver
    done: int = 0
    """Tokens that arrived."""
    held: bool = False
    """Moves only by ``step`` and ``finish`` with its key."""
    stop: str = ""
    """Why it ends at its next turn."""

    @property
    def key(self) -> WriteKey:
        return self.order.key


class Fabric:
    """What connects the senders and receivers of this process. Use from one thread."""

    def __init__(self, *, auto: bool = True, piece_blocks: int = 1, landed_required: bool = False) -> None:
        """``piece_blocks``: the target blocks that a piece fills. ``landed_required``: the sides made with this
        fabric say so in their traits, so that a test has the protocol that engines like NIXL need.

        Raises ``LocalError`` if ``piece_blocks`` is below 1.
        """
        if piece_blocks < 1:
            raise LocalError(f"piece_blocks={piece_blocks}: expected at least 1")
        self.number: Final = next(_NEXT_FABRIC)
        self.auto = auto
        self.piece_blocks = piece_blocks
        self.landed_required = landed_required
        self.on_arrival: Callable[[Arrival], None] = lambda arrival: None
        self._flights: dict[WriteKey, Flight] = {}
        self._receivers: dict[tuple[int, int], InProcessReceiver] = {}

    # --- for whoever drives ---------------------------------------------------------------------------

    @property
    def flights(self) -> tuple[Flight, ...]:
        """The writes under way, in the order in which they began."""
        return tuple(self._flights.values())

    def step(self, choice: int | WriteKey) -> WriteKey | None:
        """Move one write on by a piece: the one of that key, or of those not held number ``choice``, counted round.

        A write that was stopped ends instead. ``None`` if there is no such write.
        """
        if isinstance(choice, WriteKey):
            flight = self._flights.get(choice)
        else:
            free = [one for one in self._flights.values() if not one.held]
            flight = free[choice % len(free)] if free else None
        if flight is None:
            return None
        self._move(flight)
        return flight.key

    def hold(self, key: WriteKey) -> None:
        """This write moves only when it is named, and also does not end on a cancel, until ``free``."""
        self._flight(key).held = True

    def free(self, key: WriteKey) -> None:
        """The opposite of ``hold``."""
        self._flight(key).held = False

    def fail(self, key: WriteKey, text: str = "the fabric was told to fail it") -> None:
        """End this write here and now; what arrived stays."""
        flight = self._flight(key)
        flight.stop = text
        self._end(flight)

    def finish(self, key: WriteKey) -> None:
        """Move this write to its end."""
        while key in self._flights:
            self._move(self._flights[key])

    def finish_all(self) -> None:
        """Move every write that is not held to its end, the oldest first."""
        while self.step(0) is not None:
            pass

    def sender_died(self, rank: int, boot_id: int) -> None:
        """A sender's process is gone, and its writes with it, held or not. Nobody is told."""
        for key, flight in list(self._flights.items()):
            if (flight.sender.rank, flight.sender.boot_id) == (rank, boot_id):
                del self._flights[key]

    def _flight(self, key: WriteKey) -> Flight:
        if key not in self._flights:
            raise LocalError(f"no write under way has the key {key}")
        return self._flights[key]

    # --- for the two sides ----------------------------------------------------------------------------

    def attach(self, receiver: InProcessReceiver) -> None:
        """A receiver's memory can be written from now on. Raises ``LocalError`` if there is one of its name."""
        name = (receiver.rank, receiver.boot_id)
        if name in self._receivers:
            raise LocalError(f"receiver rank {name[0]} with boot_id {name[1]} is on this fabric already")
        self._receivers[name] = receiver

    def detach(self, receiver: InProcessReceiver) -> None:
        """A receiver's memory is gone. The writes to it fail, held or not."""
        self._receivers.pop((receiver.rank, receiver.boot_id), None)
        for flight in self.flights:
            if flight.receiver is receiver:
                flight.stop = "the receiver's memory is gone"
                self._end(flight)

    def find(self, rank: int, boot_id: int) -> InProcessReceiver | None:
        """The receiver of that rank and process."""
        return self._receivers.get((rank, boot_id))

    def begin(self, flight: Flight) -> None:
        """A write begins; nothing of it is copied yet. Raises ``LocalError`` if it is under way."""
        key = flight.key
        if key in self._flights:
            raise LocalError(f"write of room {key.room} seq {key.seq}: it is under way; execute a grant once")
        self._flights[key] = flight

    def move_from(self, sender: InProcessSender) -> None:
        """Move each write of a sender on by a piece, where the fabric is automatic; end those that were stopped."""
        for flight in self.flights:
            if flight.sender is sender and not flight.held and (self.auto or flight.stop):
                self._move(flight)

    # --- the copying ----------------------------------------------------------------------------------

    def _move(self, flight: Flight) -> None:
        if not flight.stop:
            self._copy(flight)
        if flight.stop or flight.done == flight.order.tokens:
            self._end(flight)

    def _copy(self, flight: Flight) -> None:
        """Copy the next piece: whole target blocks, so that it begins where a block begins."""
        order, block_tokens = flight.order, flight.sender.pool.map.layout.block_tokens
        first = flight.done // block_tokens
        tokens = min(self.piece_blocks * block_tokens, order.tokens - flight.done)
        refs = order.grant.blocks[first : first - (-tokens // block_tokens)]
        self.on_arrival(Arrival(flight.key, order.grant.start + flight.done, tokens, refs))
        source, target = flight.sender.pool, flight.receiver.pool
        spans = write_spans(
            source.map, order.source_blocks, order.source_start + flight.done, target.map,
            [ref.block for ref in refs], tokens, skip=order.skip, aux=order.first and flight.done == 0,
        )  # fmt: skip
        for span in spans:
            here = source.arena[span.source : span.source + span.bytes]
            target.arena[span.target : span.target + span.bytes].copy_(here)
        for pool in (source, target):
            if pool.device.type == "cuda":
                torch.cuda.current_stream(pool.device).synchronize()
        flight.done += tokens

    def _end(self, flight: Flight) -> None:
        del self._flights[flight.key]
        key = flight.key
        if flight.done == flight.order.tokens:
            flight.receiver.reports.append(Landed(key.room, key.epoch, key.seq))
            flight.sender.reports.append(Sent(*key))
        else:
            flight.sender.reports.append(WriteFailed(*key, flight.stop))


def _fabric(options: Mapping[str, Any]) -> Fabric:
    fabric = options.get("fabric")
    if not isinstance(fabric, Fabric):
        raise LocalError(f"in-process: option fabric={fabric!r}: expected the Fabric that both sides share")
    return fabric


class InProcessReceiver(ReceiverTransport):
    """A pool on a fabric."""

    traits = TRAITS

    def __init__(self, pool: BlockPool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        self.fabric = _fabric(options)
        self.traits = replace(TRAITS, landed_required=self.fabric.landed_required)
        self.reports: list[ReceiverReport] = []
        self._expected: set[tuple[int, Epoch, int]] = set()
        self.fabric.attach(self)

    def descriptors(self) -> bytes:
        return msgspec.msgpack.encode((self.fabric.number, self.rank, self.boot_id))

    def expect(self, grant: Grant) -> None:
        self._expected.add((grant.room, grant.epoch, grant.seq))

    def settle(self, room: int, epoch: Epoch, seq: int) -> None:
        self._expected.discard((room, epoch, seq))

    def poll(self) -> list[ReceiverReport]:
        reports, self.reports = self.reports, []
        return reports

    def close(self) -> None:
        self._expected.clear()
        self.fabric.detach(self)

    @property
    def busy(self) -> bool:
        return bool(self.reports or self._expected)


class InProcessSender(SenderTransport):
    """Begins writes on a fabric, and says what became of them."""

    traits = TRAITS

    def __init__(self, pool: SourcePool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        self.fabric = _fabric(options)
        self.traits = replace(TRAITS, landed_required=self.fabric.landed_required)
        self.reports: list[SenderReport] = []
        self._peers: dict[int, tuple[int, InProcessReceiver]] = {}
        """By receiver rank: the boot_id that may be written to now, and its side."""

    def connect(self, receiver_rank: int, boot_id: int, descriptors: bytes) -> None:
        try:
            number, rank, named = msgspec.msgpack.decode(descriptors, type=tuple[int, int, int])
        except Exception as error:
            # Whatever the decoder raises, it was given nothing but a peer's bytes.
            raise RemoteError(f"in-process: malformed descriptors: {error}") from error
        if (number, rank) != (self.fabric.number, receiver_rank):
            raise RemoteError(
                f"in-process: descriptors of rank {rank} on fabric {number}; expected rank {receiver_rank} on "
                f"fabric {self.fabric.number}"
            )
        receiver = self.fabric.find(rank, named)
        if receiver is None:
            raise RemoteError(f"in-process: receiver rank {rank} with boot_id {named} is not on this fabric")
        if receiver.pool.map.layout != self.pool.map.layout:
            raise RemoteError(f"in-process: the pool of receiver rank {rank} has another layout")
        known = self._peers.get(receiver_rank)
        if known is not None and known != (boot_id, receiver):
            self._stop(receiver_rank, known[0])
        self._peers[receiver_rank] = (boot_id, receiver)

    def write(self, order: WriteOrder) -> None:
        check_order(order, self.pool.map)
        key = order.key
        boot_id, receiver = self._peers.get(key.receiver_rank, (None, None))
        if receiver is None or boot_id != key.epoch.boot_id:
            text = f"receiver rank {key.receiver_rank} is not connected as process {key.epoch.boot_id}"
        elif self.fabric.find(receiver.rank, receiver.boot_id) is not receiver:
            text = "the receiver's memory is gone"
        else:
            text = refuse(order, receiver.pool.map)
        if receiver is None or text:
            self.reports.append(WriteFailed(*key, text))
            return
        self.fabric.begin(Flight(order, self, receiver))

    def cancel(self, room: int, epoch: Epoch, receiver_rank: int, seq: int) -> None:
        for flight in self.fabric.flights:
            if flight.sender is self and flight.key == (room, epoch, receiver_rank, seq):
                flight.stop = flight.stop or "cancelled"

    def poll(self) -> list[SenderReport]:
        self.fabric.move_from(self)
        reports, self.reports = self.reports, []
        return reports

    def disconnect(self, receiver_rank: int, boot_id: int) -> None:
        known = self._peers.get(receiver_rank)
        if known is not None and known[0] == boot_id:
            del self._peers[receiver_rank]
            self._stop(receiver_rank, boot_id)

    def _stop(self, receiver_rank: int, boot_id: int) -> None:
        for flight in self.fabric.flights:
            peer = (flight.key.receiver_rank, flight.key.epoch.boot_id)
            if flight.sender is self and peer == (receiver_rank, boot_id):
                flight.stop = flight.stop or "its receiver was disconnected"

    def close(self) -> None:
        self._peers.clear()
        for flight in self.fabric.flights:
            if flight.sender is self:
                self.fabric.fail(flight.key, "the sender was closed")

    @property
    def busy(self) -> bool:
        return bool(self.reports) or any(
            flight.sender is self and (self.fabric.auto or flight.stop) and not flight.held
            for flight in self.fabric.flights
        )


def absent() -> str | None:
    """Can run everywhere."""
    return None


TRANSPORT: Final = Transport(TRAITS, InProcessReceiver, InProcessSender, absent)
