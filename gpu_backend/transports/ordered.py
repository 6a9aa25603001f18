"""Two-sided transports: order, announcements and draining, over any :class:`~.communicator.Communicator`.

A two-sided library has no addresses: a send meets the next receive. So the side channel fixes the order before
either side posts. For every write the sender says ``Announce(order, room, epoch, seq, tokens, ...)``, with order
numbers that count 0, 1, 2, ... on each link, and posts its sends in that order. The receiver posts exactly these
receives in exactly that order, and it posts a receive for *every* announcement:

* the grant is expected: into its blocks. Whether the receiver has cancelled the grant in the meantime makes no
  difference. Its blocks are quarantined then, the bytes are *drained* into them, and ``Landed`` is reported, which
  is what frees them. To skip it would bring its bytes into the blocks of the next grant.
* the grant is unknown (settled, already landed, or of another process): into a scratch buffer, without a report.
* it has 0 tokens: the sender began nothing and will not. There is nothing to receive, and ``Landed`` is reported:
  the receiver waits for it, because the sender has said that it executed this grant.

An announcement whose number was there already is ignored. A number that is too high (a lost message), a message
that cannot be read, and any error of the communicator end the link, for good: its communicator is destroyed. Only
when that is proved does the receiver say ``Broken(quiescent=True)``, and the sender ``WriteFailed`` for all that
was under way, and ``LinkLost``. The two processes are not linked again; one that restarts has a new boot_id, hence
a new link.

**Sizes** are computed by both sides from what the announcement says (``pieces.py``), so counts and types always
agree, the short last chunk included.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from fsm.errors import LocalError, RemoteError
from fsm.messages import BootId, Counter, Epoch, Grant, Name, Room, Seq, Text, Tokens
from gpu_backend.layout import OPTIONAL
from gpu_backend.transports.base import (
    Broken,
    Landed,
    LinkLost,
    ReceiverReport,
    ReceiverTransport,
    SenderReport,
    SenderTransport,
    Sent,
    WriteFailed,
    WriteKey,
    WriteOrder,
)
from gpu_backend.transports.communicator import Chunk, Communicator, Work
from gpu_backend.transports.pieces import Cut, chunk_in, cut_chunk

if TYPE_CHECKING:
    import torch

    from gpu_backend.pool import BlockPool, SourcePool

VERSION: Final = 1
"""Of the side channel and of the way in which chunks are cut and batched."""

PIECE_BYTES: Final = 1 << 20
"""The default limit of a piece: large enough for the full rate, small enough to pipeline."""

ANNOUNCED_MAX: Final = 4
"""Chunks announced and not yet sent, per link. What waits behind them can still be cancelled without a byte."""

CLOSE_TIMEOUT_S: Final = 30.0
"""How long ``close`` waits for the proof that nothing is outstanding. It takes milliseconds unless a library hangs."""

_REMEMBERED_MAX: Final = 1024
"""Ended links that are remembered, so that a late message does not make them again."""


# --- the side channel ---------------------------------------------------------------------------------


class Descriptors(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a receiver says of itself at REGISTER."""

    version: int
    transport: Name
    fingerprint: int
    piece_bytes: Annotated[int, Meta(ge=1, le=1 << 30)]
    address: Annotated[bytes, Meta(max_length=4096)]
    """Where its communicators are made; only the library's own module reads it."""


class Open(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="open"):
    """Sender to receiver: I am coming, join me."""

    receiver_boot_id: BootId
    version: int
    fingerprint: int
    piece_bytes: Annotated[int, Meta(ge=1, le=1 << 30)]
    """The limit of a piece on this link; at most the receiver's own."""


class Announce(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="announce"):
    """Sender to receiver: the next chunk that I post."""

    receiver_boot_id: BootId
    order: Counter
    room: Room
    epoch: Epoch
    seq: Seq
    tokens: Tokens
    skip: Annotated[tuple[Name, ...], Meta(max_length=8)]
    aux: bool


class Over(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="over"):
    """Both ways: the link between these two processes is over."""

    sender_boot_id: BootId
    receiver_boot_id: BootId
    text: Text


SideMessage: TypeAlias = Open | Announce | Over

_ENCODER: Final = msgspec.msgpack.Encoder()
_SIDE: Final[msgspec.msgpack.Decoder[SideMessage]] = msgspec.msgpack.Decoder(SideMessage)
_DESCRIPTORS: Final = msgspec.msgpack.Decoder(Descriptors)


def _decode(data: bytes) -> SideMessage | None:
    try:
        return _SIDE.decode(data)
    except Exception:  # any bytes may come; RecursionError and UnicodeDecodeError are among what they raise
        return None


def positive_option(options: Mapping[str, Any], name: str, default: float) -> float:
    """A number above 0 and up to 1e9 from the options of a transport. Raises ``LocalError`` for anything else."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e9:
        raise LocalError(
            f"transport option {name}={value!r}: expected a number above 0 and up to 1e9, such as {default!r}"
        )
    return value


class _Ended:
    """Links that are over, the oldest forgotten first."""

    def __init__(self) -> None:
        self._keys: dict[int, None] = {}

    def add(self, boot_id: int) -> None:
        self._keys[boot_id] = None
        if len(self._keys) > _REMEMBERED_MAX:
            del self._keys[next(iter(self._keys))]

    def __contains__(self, boot_id: int) -> bool:
        return boot_id in self._keys


def _close_all(communicators: list[Communicator]) -> None:
    for communicator in communicators:
        communicator.close()
    deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
    for communicator in communicators:
        communicator.join(max(0.0, deadline_s - time.monotonic()))


# --- the receiver's side ------------------------------------------------------------------------------

_GrantKey: TypeAlias = tuple[int, Epoch, int]


class _Expected:
    """A grant whose blocks the sender may write; ``link`` is where it is being received."""

    __slots__ = ("grant", "landed", "link")

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.link: _ReceiverLink | None = None
        self.landed = False


class _ReceiverLink:
    def __init__(self, boot_id: int, communicator: Communicator, piece_bytes: int) -> None:
        self.boot_id = boot_id
        self.communicator = communicator
        self.piece_bytes = piece_bytes
        self.next_order = 0
        self.receiving: deque[tuple[_GrantKey | None, Work]] = deque()
        self.over: str | None = None


class OrderedReceiver(ReceiverTransport):
    """The receiver's side of a two-sided transport; a subclass makes the communicators."""

    def __init__(self, pool: BlockPool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        self.layout = pool.map.layout
        self.piece_bytes = math.ceil(positive_option(options, "piece_bytes", PIECE_BYTES))
        self._expected: dict[_GrantKey, _Expected] = {}
        self._links: dict[int, _ReceiverLink] = {}
        self._ended = _Ended()
        self._gone: list[int] = []
        self._outbox: list[bytes] = []
        self._scratch: torch.Tensor | None = None
        self._closed = False

    @abstractmethod
    def _address(self) -> bytes:
        """Where a sender's communicator joins this process."""

    @abstractmethod
    def _join(self, boot_id: int) -> Communicator:
        """The communicator with that sender process; must not wait for it."""

    def descriptors(self) -> bytes:
        fingerprint = self.layout.fingerprint()
        return _ENCODER.encode(Descriptors(VERSION, self.traits.name, fingerprint, self.piece_bytes, self._address()))

    def expect(self, grant: Grant) -> None:
        self._expected[grant.room, grant.epoch, grant.seq] = _Expected(grant)

    def settle(self, room: int, epoch: Epoch, seq: int) -> None:
        expected = self._expected.pop((room, epoch, seq), None)
        if expected is not None and expected.link is not None:
            # The protocol forbids this. The receive goes on all the same, so only the end of the link can
            # keep its bytes out of blocks that belong to somebody else.
            self.count("settled_while_receiving")
            self._end(expected.link, f"grant {seq} of room {room} was settled while it was being received")

    def on_message(self, boot_id: int, data: bytes) -> None:
        message = _decode(data)
        link = self._links.get(boot_id)
        if message is None:
            self.count("malformed_side_messages")
            if link is not None:
                self._end(link, "a side message cannot be read, so the order is not known")
        elif message.receiver_boot_id != self.boot_id or self._closed or boot_id in self._ended:
            self.count("stale_side_messages")
        elif isinstance(message, Open):
            self._open(boot_id, message)
        elif link is None:
            self.count("side_messages_before_open")
        elif isinstance(message, Over):
            if message.sender_boot_id == boot_id:
                self._end(link, message.text)
        elif link.over is None:
            self._announced(link, message)

    def _open(self, boot_id: int, message: Open) -> None:
        if boot_id in self._links:
            return  # the sender repeats it until we have joined
        expected = (VERSION, self.layout.fingerprint())
        if (message.version, message.fingerprint) != expected or message.piece_bytes > self.piece_bytes:
            self.count("refused_links")
            text = f"cannot join: version, layout and piece limit are {expected} and {self.piece_bytes}"
            self._outbox.append(_ENCODER.encode(Over(boot_id, self.boot_id, text)))
            return
        self._links[boot_id] = _ReceiverLink(boot_id, self._join(boot_id), message.piece_bytes)

    def _announced(self, link: _ReceiverLink, message: Announce) -> None:
        if message.order < link.next_order:
            self.count("duplicate_announcements")
            return
        if message.order > link.next_order:
            self._end(link, f"order number {message.order} came where {link.next_order} was due")
            return
        if not OPTIONAL.issuperset(message.skip) or message.tokens > self.pool.map.rows:
            self._end(link, f"no grant of this receiver allows {message.tokens} tokens without {message.skip}")
            return
        link.next_order += 1
        key: _GrantKey | None = (message.room, message.epoch, message.seq)
        expected = self._expected.get((message.room, message.epoch, message.seq))
        cuts = cut_chunk(self.layout, message.tokens, link.piece_bytes, frozenset(message.skip), message.aux)
        if expected is None or expected.landed or expected.link or expected.grant.sender_boot_id != link.boot_id:
            self.count("drained_into_scratch")
            key, chunk = None, self._into_scratch(cuts)
        elif not self._fits(expected.grant, message):
            self._end(link, f"{message.tokens} tokens were announced for a grant of {expected.grant.capacity}")
            return
        else:
            expected.link = link
            blocks = [ref.block for ref in expected.grant.blocks]
            chunk = chunk_in(self.pool.arena, self.pool.map, blocks, 0, cuts)
        link.receiving.append((key, _nothing() if not cuts else link.communicator.post_recv(chunk)))

    def _fits(self, grant: Grant, message: Announce) -> bool:
        room_tokens = min(grant.capacity, len(grant.blocks) * self.layout.block_tokens)
        return message.tokens <= room_tokens and (grant.start == 0 or not message.aux)

    def _into_scratch(self, cuts: Sequence[Cut]) -> Chunk:
        """All pieces land on top of each other: nobody reads them."""
        import torch

        most = max((cut.bytes for cut in cuts), default=0)
        if self._scratch is None or self._scratch.numel() < most:
            self._scratch = torch.empty(most, dtype=torch.uint8, device=self.pool.arena.device)
        scratch = self._scratch
        return Chunk(len(cuts), ((scratch.narrow(0, 0, cut.bytes),) for cut in cuts))

    def take_outbox(self) -> list[bytes]:
        outbox, self._outbox = self._outbox, []
        return outbox

    def poll(self) -> list[ReceiverReport]:
        reports: list[ReceiverReport] = []
        for link in list(self._links.values()):
            self._poll_link(link, reports)
        for boot_id in self._gone:
            reports.append(Broken(boot_id, True, "the process is gone, and there was no link to it"))
        self._gone.clear()
        return reports

    def _poll_link(self, link: _ReceiverLink, reports: list[ReceiverReport]) -> None:
        # First what has ended, then what broke: an error must not hide a chunk that is complete. The error is
        # read before, because what completes after an error was seen is reported on the next call at the latest.
        error = link.communicator.error
        quiescent = link.over is not None and link.communicator.quiescent
        while link.receiving and link.receiving[0][1].done:
            key, _ = link.receiving.popleft()
            expected = self._expected.get(key) if key is not None else None
            if key is not None and expected is not None:
                expected.link, expected.landed = None, True
                reports.append(Landed(*key))
        if error is not None:
            self._end(link, error)
        if quiescent:
            del self._links[link.boot_id]
            self._ended.add(link.boot_id)
            for expected in self._expected.values():
                if expected.link is link:
                    expected.link = None
            reports.append(Broken(link.boot_id, True, str(link.over)))

    def _end(self, link: _ReceiverLink, text: str) -> None:
        if link.over is None:
            link.over = text
            self.count("links_ended")
            self._outbox.append(_ENCODER.encode(Over(link.boot_id, self.boot_id, text[:200])))
            link.communicator.close()

    def peer_gone(self, boot_id: int) -> None:
        link = self._links.get(boot_id)
        if link is not None:
            # Bytes of a dead process can still be on their way, so its end is not the proof; our own is.
            self._end(link, "the sender's process is gone")
        elif boot_id not in self._ended:
            self._ended.add(boot_id)
            self._gone.append(boot_id)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            _close_all([link.communicator for link in self._links.values()])

    @property
    def busy(self) -> bool:
        return bool(self._gone) or any(link.receiving or link.over for link in self._links.values())


def _nothing() -> Work:
    work = Work()
    work.done = True
    return work


# --- the sender's side --------------------------------------------------------------------------------


class _SenderLink:
    def __init__(self, receiver_rank: int, boot_id: int, communicator: Communicator, opening: bytes) -> None:
        self.receiver_rank = receiver_rank
        self.boot_id = boot_id
        self.communicator = communicator
        self.opening = opening
        self.piece_bytes = 0
        self.next_order = 0
        self.waiting: deque[WriteOrder] = deque()
        self.announced: deque[tuple[WriteKey, Work]] = deque()
        self.over: str | None = None
        self.wanted = True
        """Nobody asked for its end: that it is over must be told."""


class OrderedSender(SenderTransport):
    """The sender's side of a two-sided transport; a subclass makes the communicators."""

    def __init__(self, pool: SourcePool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        self.layout = pool.map.layout
        self.piece_bytes = math.ceil(positive_option(options, "piece_bytes", PIECE_BYTES))
        self._links: dict[int, _SenderLink] = {}
        self._ending: list[_SenderLink] = []
        self._ended = _Ended()
        self._keys: set[WriteKey] = set()
        self._reports: list[SenderReport] = []
        self._outbox: list[tuple[int, bytes]] = []
        self._closed = False

    @abstractmethod
    def _join(self, boot_id: int, address: bytes) -> Communicator:
        """The communicator with the receiver process ``boot_id``; must not wait for it.

        Raises ``RemoteError`` if the address makes no sense, ``LocalError`` if the two cannot be linked.
        """

    def connect(self, receiver_rank: int, boot_id: int, descriptors: bytes) -> None:
        link = self._links.get(receiver_rank)
        if self._closed or boot_id in self._ended:
            return
        if link is not None and link.boot_id == boot_id:
            if not link.communicator.ready and link.over is None:
                self._outbox.append((receiver_rank, link.opening))
            return
        peer = self._checked(descriptors)
        piece_bytes = min(self.piece_bytes, peer.piece_bytes)
        communicator = self._join(boot_id, peer.address)
        if link is not None:
            self._give_up(link, "a newer process has taken the place of this receiver")
        opening = _ENCODER.encode(Open(boot_id, VERSION, self.layout.fingerprint(), piece_bytes))
        link = _SenderLink(receiver_rank, boot_id, communicator, opening)
        link.piece_bytes = piece_bytes
        self._links[receiver_rank] = link
        self._outbox.append((receiver_rank, opening))

    def _checked(self, descriptors: bytes) -> Descriptors:
        try:
            peer = _DESCRIPTORS.decode(descriptors)
        except Exception as error:  # the peer's bytes, see _decode
            raise RemoteError(f"descriptors of transport {self.traits.name} cannot be read: {error}") from error
        given = (peer.version, peer.transport, peer.fingerprint)
        expected = (VERSION, self.traits.name, self.layout.fingerprint())
        if given != expected:
            raise RemoteError(
                f"descriptors (version, transport, layout) are {given}, expected {expected}", code="INCOMPATIBLE"
            )
        return peer

    def write(self, order: WriteOrder) -> None:
        self._check(order)
        grant = order.grant
        link = self._links.get(grant.receiver_rank)
        if link is None or link.boot_id != grant.epoch.boot_id or link.over is not None or self._closed:
            self._reports.append(WriteFailed(*order.key, "there is no link to this receiver process"))
            return
        self._keys.add(order.key)
        link.waiting.append(order)
        self._advance(link)

    def _check(self, order: WriteOrder) -> None:
        if order.key in self._keys:
            raise LocalError(f"write {order.key} is under way already; each grant is executed once")
        most = min(order.grant.capacity, len(order.source_blocks) * self.layout.block_tokens - order.source_start)
        if not 1 <= order.tokens <= most or order.source_start < 0:
            raise LocalError(
                f"write of {order.tokens} tokens from source token {order.source_start}: the grant and the "
                f"{len(order.source_blocks)} source blocks allow 1 to {most}"
            )
        if not order.skip <= OPTIONAL:
            raise LocalError(f"write skips {sorted(order.skip)}: only {sorted(OPTIONAL)} may be left out")
        self.pool.map.check_blocks("source blocks of a write", order.source_blocks)

    def _advance(self, link: _SenderLink) -> None:
        """Announce, then post, as many of the waiting writes as may be under way."""
        while link.waiting and len(link.announced) < ANNOUNCED_MAX:
            order = link.waiting.popleft()
            self._announce(link, order, order.tokens)
            cuts = cut_chunk(self.layout, order.tokens, link.piece_bytes, order.skip, order.first)
            chunk = chunk_in(self.pool.arena, self.pool.map, order.source_blocks, order.source_start, cuts)
            link.announced.append((order.key, link.communicator.post_send(chunk)))

    def _announce(self, link: _SenderLink, order: WriteOrder, tokens: int) -> None:
        grant = order.grant
        message = Announce(
            link.boot_id, link.next_order, grant.room, grant.epoch, grant.seq, tokens,
            tuple(sorted(order.skip)), order.first,
        )  # fmt: skip
        link.next_order += 1
        self._outbox.append((link.receiver_rank, _ENCODER.encode(message)))

    def cancel(self, room: int, epoch: Epoch, receiver_rank: int, seq: int) -> None:
        link = self._links.get(receiver_rank)
        key = WriteKey(room, epoch, receiver_rank, seq)
        for order in link.waiting if link is not None and link.over is None else ():
            if link is not None and order.key == key:
                # The receiver believes that this grant is being executed, and waits for it to land.
                link.waiting.remove(order)
                self._announce(link, order, 0)
                self._fail(key, "cancelled before it began")
                return

    def _fail(self, key: WriteKey, text: str) -> None:
        self._keys.discard(key)
        self._reports.append(WriteFailed(*key, text))

    def on_message(self, receiver_rank: int, boot_id: int, data: bytes) -> None:
        message = _decode(data)
        link = self._links.get(receiver_rank)
        if not isinstance(message, Over):
            self.count("malformed_side_messages")
        elif link is None or (message.sender_boot_id, message.receiver_boot_id) != (self.boot_id, link.boot_id):
            self.count("stale_side_messages")
        else:
            self._end(link, message.text)

    def take_outbox(self) -> list[tuple[int, bytes]]:
        outbox, self._outbox = self._outbox, []
        return outbox

    def poll(self) -> list[SenderReport]:
        for link in list(self._links.values()):
            self._poll_link(link)
        for link in list(self._ending):
            self._poll_ending(link)
        reports, self._reports = self._reports, []
        return reports

    def _take_sent(self, link: _SenderLink) -> None:
        while link.announced and link.announced[0][1].done:
            key, _ = link.announced.popleft()
            self._keys.discard(key)
            self._reports.append(Sent(*key))

    def _poll_link(self, link: _SenderLink) -> None:
        error = link.communicator.error
        self._take_sent(link)
        if error is not None:
            self._end(link, error)
        elif link.over is None:
            self._advance(link)

    def _poll_ending(self, link: _SenderLink) -> None:
        quiescent = link.communicator.quiescent
        self._take_sent(link)
        if not quiescent:
            return
        self._ending.remove(link)
        text = str(link.over)
        for key in [key for key, _ in link.announced] + [order.key for order in link.waiting]:
            self._fail(key, text)
        if link.wanted:
            self._reports.append(LinkLost(link.receiver_rank, text))

    def _end(self, link: _SenderLink, text: str) -> None:
        if link.over is not None:
            return
        link.over = text
        self.count("links_ended")
        del self._links[link.receiver_rank]
        self._ended.add(link.boot_id)
        self._ending.append(link)
        self._outbox.append((link.receiver_rank, _ENCODER.encode(Over(self.boot_id, link.boot_id, text[:200]))))
        link.communicator.close()

    def _give_up(self, link: _SenderLink, text: str) -> None:
        link.wanted = False
        self._end(link, text)

    def disconnect(self, receiver_rank: int, boot_id: int) -> None:
        link = self._links.get(receiver_rank)
        if link is not None and link.boot_id == boot_id:
            self._give_up(link, "disconnected")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for link in list(self._links.values()):
            self._give_up(link, "this side is closed")
        _close_all([link.communicator for link in self._ending])

    @property
    def busy(self) -> bool:
        links = self._links.values()
        return bool(self._reports or self._ending) or any(link.announced or link.waiting for link in links)
