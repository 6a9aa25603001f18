"""Several traces in one order, by causality.

Each trace is in the order of its own process, and keeps it. Between them, an effect comes after its cause: a message is
received after it was sent for the first time, a grant is executed after it was given, its bytes arrive after the write
began. Times of different machines only break ties. A process that waits for a cause is set aside until the cause comes;
so each event is looked at once, and what is held is one event for each trace, and what may still be received.

Where all that is left waits, something is missing or out of order. If :class:`~fsm.conform.gaps.Gaps` has a reason why
a cause may be missing, it is inferred. If not, the trace is refused, by :class:`Uncaused`: the cause is nowhere, or
comes after its own effect.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from fsm.conform.gaps import Gaps, Process
from fsm.conform.messages import BY_CODEC
from fsm.conform.words import event_words
from fsm.events import Executed, Granted, Received, Sent, StateChanged, Wrote
from fsm.messages import Epoch, Grant, Heartbeat, Nack, RegisterAck, kind_of
from sim.engines.conform_read import Source

KEEP_EPOCHS: Final = 16384
"""For so many epochs it is remembered what was sent; of older ones anything may come late."""

Bucket = tuple[int, int, Epoch]
_REGISTERED = "registered"


class Place(NamedTuple):
    """One event and where it stands: its trace, line, and seconds after that trace's header."""

    source: Source
    line: int
    at_s: float
    event: Any

    def words(self) -> str:
        """The event and its place in one line."""
        where = "step" if not self.source.process.side and self.source.header.engine != "worker" else "line"
        return f"{self.source.name}, {where} {self.line}: {event_words(self.event)}"


class Need(NamedTuple):
    """What has to come before an event: by which side, for which epoch, what it is, and in words. ``message``: whether
    it is one that some traces do not tell."""

    side: str
    bucket: Bucket
    token: Any
    what: str
    message: bool = False


class Uncaused(Exception):
    """An event whose cause is nowhere, or comes after it: ``place``, what it ``needs``, and the event that its process
    stands at (``other``) where that in turn waits for this one."""

    def __init__(self, place: Place, need: Need, other: Place | None) -> None:
        self.place, self.need, self.other = place, need, other
        super().__init__(place.words())


class _Stream:
    """A trace while it is merged."""

    __slots__ = ("count", "events", "follows", "head", "need", "offset", "source")

    def __init__(self, source: Source, offset: float) -> None:
        self.source = source
        self.events = source.events
        self.offset = offset
        self.head: Any = None
        self.need: Need | None = None
        self.follows: int = -1
        self.count = 0
        """So many events of it were told."""

    def advance(self) -> bool:
        """Go to the next event; whether there is one."""
        self.head = next(self.events, None)
        return self.head is not None


class Merge:
    """Yields events in causal order, each with its process; :meth:`place` says where the last one stands. ``begins``
    is told when a process takes the place of an earlier one of the same side and rank. Raises :class:`Uncaused`."""

    def __init__(
        self,
        sources: Sequence[Source],
        gaps: Gaps,
        begins: Callable[[Process], None],
        *,
        keep_epochs: int = KEEP_EPOCHS,
    ) -> None:
        self.gaps = gaps
        self.begins = begins
        self._keep_epochs = keep_epochs
        first_s = min((s.header.started_unix_s for s in sources if s.header.started_unix_s), default=0.0)
        self.streams = [_Stream(s, max(s.header.started_unix_s - first_s, 0.0)) for s in sources]
        self._chain()
        self._done: dict[Bucket, set[Any]] = {}
        self._boots: dict[Bucket, int] = {}
        """The process of the sender that an epoch is served by."""
        self._served: dict[Bucket, None] = {}
        """Epochs of which a sender has told something."""
        self._forgotten: dict[int, Epoch] = {}
        self._parked: dict[tuple[Bucket, Any], list[int]] = {}
        self._heap: list[tuple[float, int]] = []
        self._absent: dict[tuple[str, int], str] = {}
        self._at: _Stream | None = None

    def _chain(self) -> None:
        """Processes of one side and rank come one after another."""
        last: dict[tuple[str, int], int] = {}
        order = sorted(range(len(self.streams)), key=lambda i: (self.streams[i].source.process.boot_id, i))
        for index in order:
            process = self.streams[index].source.process
            name = process.side, process.rank
            if process.side and name in last:
                self.streams[index].follows = last[name]
            last[name] = index

    def place(self) -> Place:
        """Where the event that was told last stands."""
        assert self._at is not None
        return Place(self._at.source, *self._at.head)

    def __iter__(self) -> Iterator[tuple[Any, Process]]:
        heap, needs, provides = self._heap, _NEEDS, _PROVIDES
        for index, stream in enumerate(self.streams):
            if stream.follows < 0:
                self._start(index)
        while heap or self._parked:
            if not heap:
                self._unblock()
                continue
            index = heapq.heappop(heap)[1]
            stream = self.streams[index]
            process, offset, told = stream.source.process, stream.offset, stream.events
            while True:
                event = stream.head[2]
                kind = type(event)
                if kind in needs:
                    need = _need(event, process)
                    if need is not None and not self._met(need, index):
                        break
                self._at = stream
                stream.count += 1
                yield event, process
                if kind in provides:
                    self._provide(event)
                stream.head = next(told, None)
                if stream.head is None:
                    self._next_of(index)
                    break
                if heap and stream.head[1] + offset > heap[0][0]:
                    heapq.heappush(heap, (stream.head[1] + offset, index))
                    break

    def _start(self, index: int) -> None:
        stream = self.streams[index]
        if stream.advance():
            heapq.heappush(self._heap, (stream.head[1] + stream.offset, index))
        else:
            self._next_of(index)

    def _next_of(self, index: int) -> None:
        """A trace is at its end: the process that came after goes on."""
        for other, stream in enumerate(self.streams):
            if stream.follows == index:
                self.begins(stream.source.process)
                self._start(other)

    # --- causes ---------------------------------------------------------------------------------------

    def _met(self, need: Need, index: int) -> bool:
        """Whether the cause has been seen; if not, the trace is set aside, or the cause inferred."""
        bucket = need.bucket
        if type(need.token) is RegisterAck:
            self._boots[bucket] = need.token.boot_id
        done = self._done.get(bucket)
        if done is not None and need.token in done:
            return True
        if done is None and bucket[2] <= self._forgotten.get(bucket[0], (-1, -1)):
            return True
        why = self._never(need.side, bucket[0], message=need.message)
        if why:
            self.gaps.infer(need.what, why)
            self._done_of(bucket).add(need.token)
            return True
        self.streams[index].need = need
        self._parked.setdefault((bucket, need.token), []).append(index)
        return False

    def _never(self, side: str, rank: int, *, message: bool) -> str:
        """Why that side tells no such cause at all; empty if it does."""
        name = (side if message else side + " events"), rank
        why = self._absent.get(name)
        if why is None:
            there = [p for p in self.gaps.processes if p.is_of(side, rank)]
            silent = [p for p in there if message and not p.messages]
            why = "" if there and not silent else self.gaps.peer(side, rank, message=message)
            self._absent[name] = why
        return why

    def _provide(self, event: Any) -> None:
        made = _token(event)
        if made is None:
            return
        bucket, token = made
        if type(token) is Grant:
            self._boots[bucket] = token.sender_boot_id
        elif type(event) is not Granted and getattr(event, "side", "sender") == "sender":
            self._served[bucket] = None
        self._done_of(bucket).add(token)
        if self._parked:
            self._wake(bucket, token)

    def _done_of(self, bucket: Bucket) -> set[Any]:
        done = self._done.get(bucket)
        if done is None:
            done = self._done[bucket] = set()
            if len(self._done) > self._keep_epochs:
                old = next(iter(self._done))
                del self._done[old]
                self._boots.pop(old, None)
                self._served.pop(old, None)
                self._forgotten[old[0]] = max(self._forgotten.get(old[0], old[2]), old[2])
        return done

    def _wake(self, bucket: Bucket, token: Any) -> None:
        for index in self._parked.pop((bucket, token), ()):
            stream = self.streams[index]
            stream.need = None
            heapq.heappush(self._heap, (stream.head[1] + stream.offset, index))

    def _unblock(self) -> None:
        """All that is left waits: infer the first cause that may be missing, or refuse."""
        waiting = sorted(
            (stream.head[1] + stream.offset, index)
            for index, stream in enumerate(self.streams)
            if stream.need is not None
        )
        for _, index in waiting:
            need = self.streams[index].need
            assert need is not None
            why = self._why_missing(need, self.streams[index].source.process)
            if why:
                self.gaps.infer(need.what, why)
                self._done_of(need.bucket).add(need.token)
                self._wake(need.bucket, need.token)
                return
        raise self._uncaused([index for _, index in waiting])

    def _why_missing(self, need: Need, process: Process) -> str:
        """Why the cause that a process waits for may be in no trace; empty if it may not."""
        boot_id = self._boot_of(need)
        why = self.gaps.peer(need.side, need.bucket[0], message=need.message, boot_id=boot_id)
        if why or need.side == "receiver" or boot_id or not process.starts_late or need.bucket in self._served:
            return why
        return f"{self.gaps.own(process)}: which process of the sender this was, is not told"

    def _boot_of(self, need: Need) -> int:
        """The boot id of the process that a cause is of; 0 if nobody has told it."""
        if need.side == "receiver":
            return need.bucket[2].boot_id
        return getattr(need.token, "boot_id", 0) or self._boots.get(need.bucket, 0)

    def _uncaused(self, waiting: list[int]) -> Uncaused:
        """Whose cause is nowhere; if there is none, one of those that wait for each other."""
        for index in waiting:
            need = self.streams[index].need
            assert need is not None
            if all(stream.source.process.over for stream in self._of(need)):
                return Uncaused(self._place(index), need, None)
        index = waiting[0]
        need = self.streams[index].need
        assert need is not None
        others = [i for i in waiting if i != index and self.streams[i] in self._of(need)]
        return Uncaused(self._place(index), need, self._place(others[0]) if others else None)

    def _of(self, need: Need) -> list[_Stream]:
        return [s for s in self.streams if s.source.process.is_of(need.side, need.bucket[0])]

    def _place(self, index: int) -> Place:
        stream = self.streams[index]
        return Place(stream.source, *stream.head)


_NEEDS: Final = frozenset((Received, Wrote, Executed, StateChanged))
_PROVIDES: Final = frozenset((Sent, Granted, Executed, StateChanged))


def _need(event: Any, process: Process) -> Need | None:
    """What has to come before an event, of another process."""
    kind = type(event)
    if kind is Received:
        message = event.message
        if type(message) is Heartbeat:
            return None
        if process.spoilt:
            process.spoilt = False
            return None
        if type(message) is Nack and message.code in BY_CODEC:
            return None
        side = "sender" if event.side == "receiver" else "receiver"
        bucket = message.receiver_rank, message.room, message.epoch
        return Need(side, bucket, message, "Sent " + kind_of(message), True)
    if kind is Wrote:
        return Need("sender", (event.receiver_rank, event.room, event.epoch), ~event.seq, "Executed")
    if kind is Executed:
        return Need("receiver", (event.receiver_rank, event.room, event.epoch), event.seq, "Granted")
    if kind is StateChanged and event.cause == "registered" and event.side == "receiver" and not process.messages:
        what = "sender: Bootstrapping -> WaitingForInput (registered)"
        return Need("sender", (event.receiver_rank, event.room, event.epoch), _REGISTERED, what)
    return None


def _token(event: Any) -> tuple[Bucket, Any] | None:
    """What an event is the cause of."""
    kind = type(event)
    if kind is Sent:
        message = event.message
        if type(message) is Heartbeat:
            return None
        return (message.receiver_rank, message.room, message.epoch), message
    if kind is StateChanged:
        if event.cause != "registered" or event.side != "sender" or event.epoch is None:
            return None
        return (event.receiver_rank, event.room, event.epoch), _REGISTERED
    token = event.seq if kind is Granted else ~event.seq
    return (event.receiver_rank, event.room, event.epoch), token


__all__ = ["Merge", "Need", "Place", "Uncaused"]
