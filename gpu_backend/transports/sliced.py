"""One-sided writes in slices: what the senders of all one-sided transports have in common.

A write is cut into slices of some MiB, because a slice is what cannot be stopped. A poll starts about one slice, so
an engine that copies inside the call (as NIXL does with CMA) holds the caller no longer than that; an engine that
works by itself gets a window of slices. The last slice carries the word that all has arrived, and starts only when
the others are done.

Links (one per receiver process) take turns. On one link the oldest write goes first: the receiver can copy it out
while the next one is written.

When a slice fails the question is what it still does. This module asks the engine, in two steps. A slice *ends* when
the engine says that it is done or failed; until then nothing is said of its write. If it failed, then the link is
reset, and its write is *unproven* until the engine says that nothing of the link can arrive any more (``_quiet``).
Only then is ``WriteFailed`` reported. Writes on the same link that have no failed slice go on over the link made
anew: a failure of one write must not end a link for good.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from fsm.errors import LocalError
from fsm.messages import Epoch
from gpu_backend.layout import ArenaMap, Span, write_spans
from gpu_backend.transports.base import SenderReport, SenderTransport, Sent, WriteFailed, WriteKey, WriteOrder

if TYPE_CHECKING:
    from gpu_backend.pool import SourcePool

SLICE_BYTES: Final = 16 << 20
"""The default length of a slice: 1 to 3 ms of copying on one core."""

SPANS_MAX: Final = 1024
"""The most spans in one slice; each costs an engine 1 to 2 us."""

WINDOW: Final = 4
"""The default number of slices of one link that are under way at once, where the engine works by itself."""

CLOSE_S: Final = 10
"""How long ``close`` waits by default, in seconds."""

HandleT = TypeVar("HandleT")


class SliceFailed(Exception):
    """A slice ended and is not complete; whether nothing of it can still arrive is another question."""


class NotStarted(Exception):
    """A slice could not be started, and nothing of it was."""


class Slice(list[Span]):
    """Some spans of a write, to be started together."""

    @property
    def bytes(self) -> int:
        return sum(span.bytes for span in self)


def cut(spans: Sequence[Span], slice_bytes: int, spans_max: int = SPANS_MAX) -> deque[Slice]:
    """The same bytes in slices of at most ``slice_bytes`` bytes and ``spans_max`` spans; long spans are split."""
    slices: deque[Slice] = deque()
    current, room = Slice(), slice_bytes
    for source, target, left in spans:
        while left:
            if room == 0 or len(current) == spans_max:
                slices.append(current)
                current, room = Slice(), slice_bytes
            count = min(left, room)
            current.append(Span(source, target, count))
            source, target, left, room = source + count, target + count, left - count, room - count
    if current:
        slices.append(current)
    return slices


def check_order(order: WriteOrder, source_map: ArenaMap) -> None:
    """Raises ``LocalError`` if an order contradicts itself or this side's pool: that is this process's mistake."""
    room = f"write of room {order.grant.room} seq {order.grant.seq}"
    if not 1 <= order.tokens <= order.grant.capacity:
        raise LocalError(f"{room}: tokens={order.tokens}; expected 1 to the grant's capacity {order.grant.capacity}")
    end = order.source_start + order.tokens
    reach = len(order.source_blocks) * source_map.layout.block_tokens
    if order.source_start < 0 or end > reach:
        raise LocalError(
            f"{room}: tokens {order.source_start} to {end} of the source; expected inside the {reach} "
            f"tokens of its {len(order.source_blocks)} blocks"
        )
    source_map.check_blocks(f"{room}: source_blocks", order.source_blocks)


def refuse(order: WriteOrder, target_map: ArenaMap) -> str:
    """Why the peer cannot have meant this grant, or ``""``: it chose the blocks."""
    blocks = [ref.block for ref in order.grant.blocks]
    reach = len(blocks) * target_map.layout.block_tokens
    if order.tokens > reach:
        return f"{order.tokens} tokens do not fit into the {len(blocks)} blocks of the grant"
    wrong = [block for block in blocks if not 0 <= block < target_map.blocks]
    if wrong:
        return f"block {wrong[0]} is not in the announced arena of {target_map.blocks} blocks"
    if len(set(blocks)) != len(blocks):
        return "the grant names a block twice"
    return ""


def spans_of(order: WriteOrder, source_map: ArenaMap, target_map: ArenaMap) -> list[Span]:
    """The byte spans of an order that ``check_order`` and ``refuse`` let pass."""
    blocks = [ref.block for ref in order.grant.blocks]
    return write_spans(
        source_map, order.source_blocks, order.source_start, target_map, blocks, order.tokens,
        skip=order.skip, aux=order.first,
    )  # fmt: skip


class Link:
    """One receiver process, as the sender sees it. Engines add what they need."""

    def __init__(self, name: str, receiver_rank: int, target_map: ArenaMap) -> None:
        self.name = name
        """What the engine calls the peer; tells two links apart."""
        self.receiver_rank = receiver_rank
        self.target_map = target_map
        self.in_flight = 0
        """Slices that were started and have not ended."""
        self.failed = ""
        """Why the link must be reset before anything more is started on it."""
        self.closing = False


@dataclass(eq=False)
class Flow(Generic[HandleT]):
    """A write under way."""

    order: WriteOrder
    link: Link
    slices: deque[Slice]
    """Not started yet."""
    in_flight: list[HandleT] = field(default_factory=list)
    stop: str = ""
    """Why no more slices of it are started; empty while it goes on."""
    unproven: bool = False
    """A slice failed after it was started."""

    @property
    def key(self) -> WriteKey:
        return self.order.key


class SlicedSender(SenderTransport, Generic[HandleT]):
    """The sender's side of a one-sided transport, but for the engine: the methods that raise here.

    Options: ``slice_bytes`` and ``window``, both whole numbers above 0; ``close_s``, how long ``close`` waits for
    slices that have not ended (a peer that is stopped can hold one for ever; only the end of this process is then
    a proof, and ``counts`` says ``closed_under_way``).
    """

    def __init__(self, pool: SourcePool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        self.slice_bytes = positive(options, "slice_bytes", SLICE_BYTES)
        self.window = positive(options, "window", WINDOW)
        self.close_s = positive(options, "close_s", CLOSE_S)
        self._flows: dict[WriteKey, Flow[HandleT]] = {}
        self._peers: dict[int, tuple[int, Link]] = {}
        """By receiver rank: the boot_id that may be written to now, and its link."""
        self._links: deque[Link] = deque()
        """All links, those that are being closed too; the first has its turn next."""
        self._over: list[SenderReport] = []
        self._closed = False

    # --- the engine -----------------------------------------------------------------------------------

    @abstractmethod
    def _open(self, receiver_rank: int, boot_id: int, descriptors: bytes) -> Link:
        """A link to that arena, or the one there is if it is the same. Raises ``RemoteError``."""

    @abstractmethod
    def _start(self, flow: Flow[HandleT], piece: Slice, *, last: bool) -> HandleT | None:
        """Start a slice; ``None`` if it is already done. Raises ``NotStarted``, ``SliceFailed``."""

    @abstractmethod
    def _ended(self, handle: HandleT) -> bool:
        """Whether a slice is done; its handle is given back if so. Raises ``SliceFailed``."""

    @abstractmethod
    def _reset(self, link: Link) -> bool:
        """Make a failed link usable again; nothing of it is under way. ``False``: not yet, ask again."""

    @abstractmethod
    def _quiet(self, link: Link) -> bool:
        """After a failure: nothing that was started on this link before it was reset can arrive any more."""

    @abstractmethod
    def _shut(self, link: Link) -> bool:
        """Give a link back; nothing of it is under way. ``False``: not yet, ask again."""

    @abstractmethod
    def _destroy(self) -> None:
        """Give everything back; the links were shut where that was possible."""

    def _turn(self) -> None:
        """Whatever the engine must do on every poll."""
        return None

    # --- the interface --------------------------------------------------------------------------------

    def connect(self, receiver_rank: int, boot_id: int, descriptors: bytes) -> None:
        link = self._open(receiver_rank, boot_id, descriptors)
        known = self._peers.get(receiver_rank)
        if known is not None and known != (boot_id, link):
            self.disconnect(receiver_rank, known[0])
        self._peers[receiver_rank] = (boot_id, link)
        link.closing = False
        if link not in self._links:
            self._links.append(link)

    def disconnect(self, receiver_rank: int, boot_id: int) -> None:
        known = self._peers.get(receiver_rank)
        if known is None or known[0] != boot_id:
            return
        del self._peers[receiver_rank]
        known[1].closing = True
        for flow in self._flows.values():
            if flow.order.grant.receiver_rank == receiver_rank and flow.order.grant.epoch.boot_id == boot_id:
                flow.stop = flow.stop or "its receiver was disconnected"

    def write(self, order: WriteOrder) -> None:
        check_order(order, self.pool.map)
        key = order.key
        if key in self._flows:
            raise LocalError(f"write of room {key.room} seq {key.seq}: it is under way; execute a grant once")
        boot_id, link = self._peers.get(key.receiver_rank, (None, None))
        if link is None or boot_id != key.epoch.boot_id:
            text = f"receiver rank {key.receiver_rank} is not connected as process {key.epoch.boot_id}"
        else:
            text = refuse(order, link.target_map)
        if link is None or text:
            self._over.append(WriteFailed(*key, text))
            return
        self._flows[key] = Flow(order, link, cut(spans_of(order, self.pool.map, link.target_map), self.slice_bytes))

    def cancel(self, room: int, epoch: Epoch, receiver_rank: int, seq: int) -> None:
        flow = self._flows.get(WriteKey(room, epoch, receiver_rank, seq))
        if flow is not None:
            flow.stop = flow.stop or "cancelled"

    def poll(self) -> list[SenderReport]:
        if self._closed:
            return []
        self._turn()
        for flow in list(self._flows.values()):
            self._reap(flow)
        budget = self.slice_bytes
        for link in self._links:
            budget -= self._feed(link, budget)
        self._links.rotate(-1)
        for flow in list(self._flows.values()):
            self._reap(flow)  # between processes of one machine a slice may have ended while it was started
        for link in list(self._links):
            self._tend(link)
        for flow in list(self._flows.values()):
            self._finish(flow)
        reports, self._over = self._over, []
        return reports

    def close(self) -> None:
        if self._closed:
            return
        for flow in self._flows.values():
            flow.stop = flow.stop or "the sender was closed"
        for link in self._links:
            link.closing = True
        deadline_s = time.monotonic() + self.close_s
        while any(link.in_flight for link in self._links) and time.monotonic() < deadline_s:
            self.poll()
            os.sched_yield()
        self.poll()
        if any(link.in_flight for link in self._links):
            self.count("closed_under_way")
        self._closed = True
        self._destroy()

    @property
    def busy(self) -> bool:
        return bool(self._over) or any(flow.in_flight or not flow.unproven for flow in self._flows.values())

    # --- the work -------------------------------------------------------------------------------------

    def _reap(self, flow: Flow[HandleT]) -> None:
        """Take what ended out of the slices under way; a failed one has ended too."""
        for handle in list(flow.in_flight):
            try:
                if not self._ended(handle):
                    continue
            except SliceFailed as error:
                self._fail(flow, str(error))
            flow.in_flight.remove(handle)
            flow.link.in_flight -= 1

    def _fail(self, flow: Flow[HandleT], text: str) -> None:
        flow.stop = flow.stop or text
        flow.unproven = True
        flow.link.failed = flow.link.failed or text
        self.count("failed_slices")

    def _feed(self, link: Link, budget: int) -> int:
        """Start slices of the oldest writes of a link, none if ``budget`` (in bytes) is used up; the bytes started."""
        started = 0
        for flow in self._flows.values():
            if flow.link is not link:
                continue
            while flow.slices and not flow.stop:
                last = len(flow.slices) == 1
                if link.failed or link.in_flight >= self.window or started >= budget:
                    return started
                if last and flow.in_flight:
                    break
                started += flow.slices[0].bytes
                self._start_one(flow, last)
        return started

    def _start_one(self, flow: Flow[HandleT], last: bool) -> None:
        try:
            handle = self._start(flow, flow.slices[0], last=last)
        except NotStarted as error:
            flow.stop = str(error)
            self.count("refused_slices")
            return
        except SliceFailed as error:
            self._fail(flow, str(error))
            return
        flow.slices.popleft()
        if handle is not None:
            flow.in_flight.append(handle)
            flow.link.in_flight += 1

    def _tend(self, link: Link) -> None:
        """Reset what failed and shut what is not needed, as soon as nothing of it is under way."""
        if link.in_flight:
            return
        if link.failed and self._reset(link):
            link.failed = ""
        needed = not link.closing or link.failed or any(flow.link is link for flow in self._flows.values())
        if not needed and self._shut(link):
            self._links.remove(link)

    def _finish(self, flow: Flow[HandleT]) -> None:
        """Report a write that is over. See the top of the module for what an unproven one waits for."""
        if flow.in_flight or (flow.slices and not flow.stop):
            return
        if flow.unproven and (flow.link.failed or not self._quiet(flow.link)):
            return
        del self._flows[flow.key]
        if flow.slices or flow.unproven:
            self._over.append(WriteFailed(*flow.key, flow.stop))
        else:
            self._over.append(Sent(*flow.key))


def positive(options: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number above 0 among the options. Raises ``LocalError`` for anything else."""
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LocalError(f"option {name}={value!r}: expected a whole number of at least 1")
    return value
