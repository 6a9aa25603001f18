"""What a data transport is: one interface for the receiver's side, one for the sender's.

A transport moves the bytes of a grant from the sender's source blocks into the receiver's landing blocks, and says
when that is over. It decides nothing else. Which room may be written, what a failed write means, and when a block
may be used again are questions for ``fsm``. The one thing that a transport owes to the protocol is that its reports
are true:

* ``Sent`` and ``WriteFailed`` are said once for each write, and only when nothing of that write is outstanding and
  nothing of it will start. A transport that cannot show this says nothing. The blocks then stay quarantined until
  something else proves them quiet.
* ``Landed`` is said only when all bytes of the grant are in the receiver's memory.
* ``Broken(quiescent=True)`` is said only when nothing from that sender process can arrive any more.

:class:`Traits` says what a transport is able to prove, and its ``proof`` says how, in words.

A side has one owner thread, which makes every call. No call waits for the peer. ``poll`` takes at most about the
time of one slice of data (some milliseconds). What comes from a peer (``descriptors``, ``data``, a grant's block
numbers) is checked, and is answered with a ``RemoteError`` or a report, never with a crash.

Each module of a transport has one constant ``TRANSPORT`` of the type :class:`Transport`. It can be imported
everywhere, whether or not the transport can run there: libraries are imported when a side is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from fsm.messages import Epoch, Grant

if TYPE_CHECKING:
    from gpu_backend.pool import BlockPool, SourcePool


@dataclass(frozen=True)
class Traits:
    """What a transport can do and can prove."""

    name: str
    one_sided: bool
    """The sender writes whether or not the receiver looks. Otherwise an executed grant must land before its blocks
    come back, quarantined or not."""
    cancellable: bool
    """``cancel`` can end a write early."""
    devices: tuple[str, ...]
    """The kinds of torch devices on which the pools may lie, such as ``("cpu", "cuda")``."""
    landed_required: bool
    """``Sent`` does not prove arrival; the receiver's own ``Landed`` does."""
    process_exit_proves: bool
    """Once the sender's process is gone, nothing that it began can still arrive."""
    proof: str
    """One or two sentences: why nothing is outstanding when this transport says so."""


class Landed(NamedTuple):
    """Receiver: every byte of this grant is in the landing blocks."""

    room: int
    epoch: Epoch
    seq: int


class Broken(NamedTuple):
    """Receiver: the link to that sender process is over."""

    boot_id: int
    """The sender's."""
    quiescent: bool
    """Nothing of that process is outstanding nor will start."""
    text: str


class Sent(NamedTuple):
    """Sender: this write is complete."""

    room: int
    epoch: Epoch
    receiver_rank: int
    seq: int


class WriteFailed(NamedTuple):
    """Sender: this write is over and not complete. Nothing of it is outstanding nor will start."""

    room: int
    epoch: Epoch
    receiver_rank: int
    seq: int
    text: str


class LinkLost(NamedTuple):
    """Sender: a two-sided link is over. The worker goes on as a new process, under a new boot_id."""

    receiver_rank: int
    text: str


ReceiverReport: TypeAlias = Landed | Broken
SenderReport: TypeAlias = Sent | WriteFailed | LinkLost


class WriteKey(NamedTuple):
    """What identifies a write (R3 of the protocol)."""

    room: int
    epoch: Epoch
    receiver_rank: int
    seq: int


class WriteOrder(NamedTuple):
    """Write ``tokens`` tokens from token ``source_start`` of the source blocks into the grant's blocks, in order."""

    grant: Grant
    source_blocks: tuple[int, ...]
    """All source blocks of the request, in order."""
    source_start: int
    """In tokens, counted from the beginning of the first source block."""
    tokens: int
    total_tokens: int
    skip: frozenset[str]
    """Items of the layout that this request does not have, such as ``mrope_positions``."""
    first: bool
    """The aux header of the first source block goes along, into the first target block."""

    @property
    def key(self) -> WriteKey:
        return WriteKey(self.grant.room, self.grant.epoch, self.grant.receiver_rank, self.grant.seq)


class Greeting(Protocol):
    """As much of a hello of the control plane as a transport looks at."""

    @property
    def rank(self) -> int: ...
    @property
    def boot_id(self) -> int: ...
    @property
    def transport(self) -> str: ...
    @property
    def data(self) -> bytes:
        """What the ``greeting`` of the peer's transport was; any bytes."""
        ...


class _Side:
    """What both sides have: a pool, a name in the protocol, options, counters."""

    traits: Traits
    """Of the class. An object may have narrower ones, where a machine or an option takes something away."""

    def __init__(self, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        self.rank = rank
        self.boot_id = boot_id
        self.options = options
        self.counts: dict[str, int] = {}
        """How often something worth a metric happened, such as ``dropped_notifications``."""

    def count(self, name: str) -> None:
        """Add one to the counter ``name``."""
        self.counts[name] = self.counts.get(name, 0) + 1


class ReceiverTransport(_Side, ABC):
    """The receiver's side: it announces its arena, and says what landed."""

    def __init__(self, pool: BlockPool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        """Raises ``LocalError`` if this transport cannot run here or not with this pool or these options."""
        super().__init__(rank=rank, boot_id=boot_id, options=options)
        self.pool = pool

    @abstractmethod
    def descriptors(self) -> bytes:
        """What the sender must know to write here; goes into REGISTER (at most ``DESCRIPTORS_MAX`` bytes)."""

    def peer_up(self, hello: Greeting) -> None:
        """A sender process said hello. Raises ``RemoteError`` if its greeting makes no sense."""
        return None

    def expect(self, grant: Grant) -> None:
        """This grant will be sent now for the first time."""
        return None

    def settle(self, room: int, epoch: Epoch, seq: int) -> None:
        """The blocks of this grant are not the sender's any more."""
        return None

    def on_message(self, boot_id: int, data: bytes) -> None:
        """``data`` came on the side channel from the transport of the sender process ``boot_id``, in order."""
        self.count("unexpected_side_messages")

    def take_outbox(self) -> list[bytes]:
        """What is to go to the sender's transport on the side channel, in order."""
        return []

    @abstractmethod
    def poll(self) -> list[ReceiverReport]:
        """What happened since the last call. Never waits and never raises for something that a peer did."""

    def peer_gone(self, boot_id: int) -> None:
        """The sender process ``boot_id`` is proved gone."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Give everything back; the second call does nothing. The pool stays the caller's."""

    @property
    def busy(self) -> bool:
        """Something can happen that no file descriptor tells, so whoever waits must not sleep long."""
        return False


class SenderTransport(_Side, ABC):
    """The sender's side: it connects to the arenas that receivers announced, and writes into them."""

    def __init__(self, pool: SourcePool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        """Raises ``LocalError`` if this transport cannot run here or not with this pool or these options."""
        super().__init__(rank=rank, boot_id=boot_id, options=options)
        self.pool = pool

    def greeting(self) -> bytes:
        """What goes into this side's hello."""
        return b""

    @abstractmethod
    def connect(self, receiver_rank: int, boot_id: int, descriptors: bytes) -> None:
        """That receiver process has registered. Called for every REGISTER, so the second time does nothing.

        A newer process of a rank takes the place of the older one, whose writes end as failed.
        Raises ``RemoteError`` if the descriptors make no sense.
        """

    @abstractmethod
    def write(self, order: WriteOrder) -> None:
        """Begin a write; ``poll`` reports its end. Waits no longer than one slice takes.

        A grant that the peer cannot have meant (no such block, no such process) ends as ``WriteFailed``.
        Raises ``LocalError`` for an order that contradicts itself or repeats a write under way.
        """

    @abstractmethod
    def cancel(self, room: int, epoch: Epoch, receiver_rank: int, seq: int) -> None:
        """End this write early if that is possible. Its end is reported by ``poll`` either way."""

    def on_message(self, receiver_rank: int, boot_id: int, data: bytes) -> None:
        """``data`` came on the side channel from the transport of that receiver process, in order."""
        self.count("unexpected_side_messages")

    def take_outbox(self) -> list[tuple[int, bytes]]:
        """What is to go to which receiver rank's transport on the side channel, in order."""
        return []

    @abstractmethod
    def poll(self) -> list[SenderReport]:
        """Move the writes on, and say which ended. Never raises for something that a peer did."""

    @abstractmethod
    def disconnect(self, receiver_rank: int, boot_id: int) -> None:
        """That receiver process is not to be written to any more. Its writes end, and are reported."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; the second call does nothing. The pool stays the caller's.

        Nothing of this side may be outstanding afterwards: it waits for what cannot be stopped.
        """

    @property
    def busy(self) -> bool:
        """Something can happen that no file descriptor tells, so whoever waits must not sleep long."""
        return False


class Transport(NamedTuple):
    """What a transport's module offers, as its constant ``TRANSPORT``."""

    traits: Traits
    receiver: type[ReceiverTransport]
    sender: type[SenderTransport]
    absent: Callable[[], str | None]
    """Why the transport cannot run on this machine, or ``None`` if it can. Never raises."""
