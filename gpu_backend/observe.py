"""What can be seen of a worker: typed events, the checkers that read them, trace files, counters, metrics.

A worker tells its :class:`Observer` what it did, and the observer turns that into the events of ``fsm.events``, the
same that the simulator emits. So one set of checkers (``fsm.invariants``) reads both, and a trace of a real run can
be read by the same tools. A worker sees its own side only: a receiver's events have no ``Executed``, a sender's no
``Wrote``. Two workers in one process may share an observer, and then the checkers see everything.

Checkers remember what has ended, in a simulation for ever. A worker runs for months, so the memory of an epoch goes
once ``KEEP_EPOCHS`` later ones have ended.

Counters are plain numbers that only the worker's thread changes. Metrics are read from them when Prometheus asks
(any thread), so they cost nothing in between.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from fsm.effects import Effect, Ended, Moved, Refused, Send, Watermark
from fsm.errors import LocalError
from fsm.events import (
    AnyEvent,
    Audited,
    Decided,
    Delivered,
    Executed,
    Finished,
    Granted,
    LedgerRefused,
    Note,
    Overtaken,
    Progressed,
    Restarted,
    StateChanged,
    Wrote,
)
from fsm.invariants import Monitors, Violation
from fsm.messages import Epoch, Grant
from fsm.ranks import Agreed
from fsm.states import State
from fsm.trace import TRACE_VERSION, Seen, TraceEnding, TraceHeader

log = logging.getLogger(__name__)

KEEP_EPOCHS: Final = 8192
"""So many ended epochs are remembered by the checkers."""

VIOLATIONS_MAX: Final = 100
"""So many violations are kept with their text; all are counted."""

FLUSH_BYTES: Final = 1 << 16
FLUSH_S: Final = 1.0


class Checks:
    """The checkers over an endless stream: each violation is told when it is found, and memory is bounded."""

    def __init__(self, keep_epochs: int = KEEP_EPOCHS) -> None:
        self._monitors = Monitors()
        self._ended: deque[tuple[Any, ...]] = deque()
        self._keep_epochs = keep_epochs

    def take(self, event: AnyEvent) -> list[Violation]:
        """What this event breaks; almost always nothing."""
        monitors = self._monitors
        monitors.take(event)
        if isinstance(event, Finished) and event.epoch is not None:
            self._ended.append((event.side, event.receiver_rank, event.room, event.epoch))
            if len(self._ended) > self._keep_epochs:
                self._forget(self._ended.popleft())
        if not monitors.violations:
            return []
        found = list(monitors.violations)
        monitors.violations.clear()  # so that the next one of the same property is found too
        return found

    def _forget(self, ended: tuple[Any, ...]) -> None:
        """The checkers' keys are (rank, room, epoch), alone or behind a side or a kind."""
        side, *key = ended
        kinds = ("granted",) if side == "receiver" else ("executed",)
        for checker in self._monitors.checkers:
            memory = checker.memory
            memory.pop(ended, None)
            for kind in kinds:
                memory.pop((kind, *key), None)
            if side == "receiver":
                memory.pop(tuple(key), None)

    @property
    def remembered(self) -> int:
        """How many entries the checkers hold together."""
        return sum(len(checker.memory) for checker in self._monitors.checkers)


class TraceWriter:
    """Events as JSON Lines. A disk that fails ends the trace, with a line in the log, and never the worker."""

    def __init__(self, path: str, scenario: dict[str, Any]) -> None:
        """Raises :class:`LocalError` if the file cannot be made."""
        self.path = path
        self.lines = 0
        try:
            self._file: Any = open(path, "wb")  # noqa: SIM115 (closed by close())
        except OSError as error:
            raise LocalError(f"observe.trace: cannot write {path!r}: {error.strerror or error}") from None
        self._buffer: list[bytes] = []
        self._bytes = 0
        self._encode = msgspec.json.Encoder().encode
        self._flushed_at = 0.0
        self._put(TraceHeader(version=TRACE_VERSION, engine="worker", scenario=scenario))

    def write(self, at_s: float, event: AnyEvent) -> None:
        """Add an event."""
        self.lines += 1
        self._put(Seen(at_s, event))

    def tick(self, at_s: float) -> None:
        """Flush if it is time to."""
        if self._buffer and at_s - self._flushed_at >= FLUSH_S:
            self._flushed_at = at_s
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        buffer, self._buffer, self._bytes = self._buffer, [], 0
        if self._file is None:
            return
        try:
            self._file.write(b"".join(buffer))
            self._file.flush()
        except OSError as error:
            log.error("trace %s ends here: %s", self.path, error)
            self._file = None

    def close(self, ending: TraceEnding) -> None:
        """Write the ending and close; the second call does nothing."""
        if self._file is None:
            return
        self._put(ending)
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put(self, line: Any) -> None:
        data = self._encode(line) + b"\n"
        self._buffer.append(data)
        self._bytes += len(data)
        if self._bytes >= FLUSH_BYTES:
            self.flush()


@dataclass
class Counters:
    """What a worker has done so far. A receiver counts requests, a sender one lane for each receiver rank."""

    in_flight: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, State), 0))
    ended: dict[str, int] = field(default_factory=dict)
    """By reason; ``NONE`` is Success."""
    tokens: int = 0
    """Delivered (receiver) or written (sender)."""
    bytes: int = 0
    grants: int = 0
    resumes: int = 0
    resends: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    messages_refused: int = 0
    room_errors: int = 0
    """Exceptions and refusals that failed one request each."""
    violations: dict[str, int] = field(default_factory=dict)
    restarts: int = 0


class Observer:
    """Takes what a worker did, counts, and passes events to checkers, trace and listeners, if there are any.

    ``sees_all_ranks``: every receiver rank tells this one observer, so that what they decide can be compared (I7).
    ``undisturbed``: no fault is made in this run, so that a failure is one of the protocol's (L1; for tests).
    It may be shared between workers on different threads.
    """

    def __init__(
        self,
        *,
        checks: bool = False,
        trace: str = "",
        scenario: dict[str, Any] | None = None,
        sees_all_ranks: bool = False,
        undisturbed: bool = False,
    ) -> None:
        self.checks = Checks() if checks else None
        self.trace = TraceWriter(trace, scenario or {}) if trace else None
        self.listeners: list[Callable[[AnyEvent], None]] = []
        self.sees_all_ranks = sees_all_ranks
        self.undisturbed = undisturbed
        self.violations: list[Violation] = []
        self._lock = threading.Lock()
        self.closed = False

    @property
    def active(self) -> bool:
        """Whether anybody looks at events; if not, none need be made."""
        return self.checks is not None or self.trace is not None or bool(self.listeners)

    def emit(self, at_s: float, event: AnyEvent) -> list[Violation]:
        """Show an event to everybody. Returns what it breaks."""
        with self._lock:
            if self.trace is not None:
                self.trace.write(at_s, event)
            for listener in self.listeners:
                listener(event)
            found = self.checks.take(event) if self.checks is not None else []
            if found:
                self.violations += found[: VIOLATIONS_MAX - len(self.violations)]
        return found

    def tick(self, at_s: float) -> None:
        """Called in every poll."""
        if self.trace is not None:
            with self._lock:
                self.trace.tick(at_s)

    def close(self) -> None:
        """End the trace; the second call does nothing."""
        with self._lock:
            self.closed = True
            if self.trace is not None:
                first = self.violations[0] if self.violations else Violation("", "")
                self.trace.close(TraceEnding(property=first.property, text=first.text))


class Reporter:
    """One worker's side of an observer: turns what it did into counters and events.

    ``broken(room, violation)`` is called for each violation that one of its events shows.
    """

    def __init__(
        self,
        observer: Observer,
        side: str,
        receiver_rank: int,
        clock: Callable[[], float],
        broken: Callable[[int | None, Violation], None],
    ) -> None:
        self.observer = observer
        self.side = side
        self.receiver_rank = receiver_rank
        self.counters = Counters()
        self._clock = clock
        self._started_at = clock()
        self._broken = broken

    @property
    def active(self) -> bool:
        """Whether anybody looks at events."""
        return self.observer.active

    def emit(self, event: AnyEvent) -> None:
        """Pass an event on, and tell of what it breaks."""
        for violation in self.observer.emit(self._clock() - self._started_at, event):
            counts = self.counters.violations
            counts[violation.property] = counts.get(violation.property, 0) + 1
            self._broken(getattr(event, "room", None), violation)

    def tick(self) -> None:
        """Called in every poll."""
        if self.observer.trace is not None:
            self.observer.tick(self._clock() - self._started_at)

    # --- what both sides do ---------------------------------------------------------------------------

    def submitted(self, lanes: int = 1) -> None:
        """A request was submitted here."""
        self.counters.in_flight[State.BOOTSTRAPPING] += lanes

    def sent(self, effect: Send) -> None:
        """A control message leaves."""
        counters, message = self.counters, effect.message
        counters.messages_sent += 1
        counters.resends += effect.resend
        if type(message) is Grant and not effect.resend:
            counters.grants += 1
            counters.resumes += message.seq > 0
            if self.active:
                self.emit(
                    Granted(
                        message.receiver_rank, message.room, message.epoch, message.seq, message.start,
                        message.capacity, message.blocks,
                    )
                )  # fmt: skip

    def moved(self, effect: Moved) -> None:
        """A lifecycle took a transition."""
        in_flight = self.counters.in_flight
        in_flight[effect.source] -= 1
        in_flight[effect.target] += 1
        if self.active:
            self.emit(
                StateChanged(
                    self.side,
                    effect.receiver_rank,
                    effect.room,
                    effect.epoch,
                    effect.event,
                    effect.source,
                    effect.target,
                )
            )

    def ended(self, effect: Ended, total_tokens: int) -> None:
        """A request (or a lane) ended."""
        counters = self.counters
        counters.in_flight[effect.state] -= 1
        counters.ended[effect.reason] = counters.ended.get(effect.reason, 0) + 1
        if self.active:
            self.emit(
                Finished(
                    self.side, effect.receiver_rank, effect.room, effect.epoch, effect.state, effect.reason,
                    total_tokens, self.observer.undisturbed,
                )
            )  # fmt: skip

    def note(self, kind: str, text: str) -> None:
        """Something to read."""
        if self.observer.trace is not None or self.observer.listeners:
            self.emit(Note(kind, text))

    # --- receiver -------------------------------------------------------------------------------------

    def watermark(self, effect: Watermark) -> None:
        """Progress was made."""
        if self.active:
            self.emit(Progressed(effect.receiver_rank, effect.room, effect.epoch, effect.tokens))

    def wrote(self, room: int, epoch: Epoch, seq: int, start: int, count: int, trespass: str = "") -> None:
        """The bytes of a grant are here."""
        if self.active:
            self.emit(Wrote(self.receiver_rank, room, epoch, seq, start, count, trespass))

    def delivered(self, room: int, epoch: Epoch, seq: int, start: int, count: int, count_bytes: int) -> None:
        """Tokens are in the result (or leased)."""
        self.counters.tokens += count
        self.counters.bytes += count_bytes
        if self.active:
            self.emit(Delivered(self.receiver_rank, room, epoch, seq, start, count))

    def refused(self, effect: Refused) -> None:
        """The block ledger refused something."""
        self.counters.room_errors += 1
        if self.active:
            self.emit(LedgerRefused(effect.receiver_rank, effect.room, effect.property, effect.text))

    def audited(self, text: str) -> None:
        """The ledger as a whole is wrong."""
        if self.active:
            self.emit(Audited(self.receiver_rank, text))

    def decided(self, effects: list[Effect], agreed: Agreed, ranks: int, waiting: tuple[int, ...]) -> None:
        """A tick has decided. ``ranks`` > 1: in a collective."""
        if not self.active:
            return
        if ranks > 1 and self.observer.sees_all_ranks:
            self.emit(Decided(ranks, self.receiver_rank, _decisions(effects, agreed)))
        if waiting:
            self.overtaken(effects, waiting)

    def overtaken(self, effects: list[Effect], waiting: tuple[int, ...]) -> None:
        """L3: whether a newcomer got blocks while rooms that hold data wait."""
        for effect in effects:
            message = effect.message if type(effect) is Send and not effect.resend else None
            if type(message) is Grant and message.seq == 0:
                self.emit(Overtaken(self.receiver_rank, message.room, waiting))

    def collective_lost(self) -> None:
        """A rank was lost, and with it the collective."""
        if self.active and self.observer.sees_all_ranks:
            self.emit(Decided(0, -1, ()))

    # --- sender ---------------------------------------------------------------------------------------

    def executed(self, grant: Grant, count: int) -> None:
        """A write begins."""
        if self.active:
            self.emit(Executed(grant.receiver_rank, grant.room, grant.epoch, grant.seq, grant.start, count))

    def wrote_out(self, count: int, count_bytes: int) -> None:
        """A write is complete."""
        self.counters.tokens += count
        self.counters.bytes += count_bytes

    def restarted(self, receiver_ranks: tuple[int, ...]) -> None:
        """The sender goes on as a new process; what it had under way is forgotten."""
        self.counters.restarts += 1
        self.counters.in_flight = dict.fromkeys(map(str, State), 0)
        if self.active:
            self.emit(Restarted(receiver_ranks))


def _decisions(effects: list[Effect], agreed: Agreed) -> tuple[tuple[int, str], ...]:
    """What a rank decided, for comparison with the others, as the simulator says it. A failure does not wait for a
    rank that does not have the request, and that rank has nothing to decide about it."""
    moves = [(effect.room, effect.event) for effect in effects if type(effect) is Moved]
    if not moves:
        return ()
    for effect in effects:
        if type(effect) is Send and type(effect.message) is Grant and not effect.resend:
            grant = effect.message
            moves.append((grant.room, f"seq {grant.seq}: {grant.capacity} tokens from {grant.start}"))
    known = {room.room: room.known for room in agreed.rooms}
    return tuple([move for move in moves if move[1] != "fail" or known.get(move[0], True)])


# Metrics --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stats:
    """A worker at one moment: its counters, and what it holds."""

    side: str
    rank: int
    boot_id: int
    counters: Counters
    rooms: int
    waiting: int
    """Receiver: requests that hold data and got no blocks in the last tick."""
    blocks: dict[str, int]
    """By state. At the sender: ``Free`` and ``Pinned``."""
    free_result_tokens: int
    under_way: int
    """Copies out (receiver), writes (sender)."""
    transport: dict[str, int]
    """What the transport counts."""
    rank_is_lost: bool = False
    """Receiver: another rank is gone, and nothing can be submitted until the ranks have met again."""


METRICS: Final[dict[str, str]] = {
    "in_flight": "Requests that have not ended, by state",
    "ended_total": "Requests that ended, by reason (NONE is Success)",
    "tokens_total": "Tokens delivered (receiver) or written (sender)",
    "bytes_total": "The same in bytes",
    "grants_total": "Grants sent, the first of a request included",
    "resumes_total": "Grants that go on with a request",
    "resends_total": "Control messages sent again for want of an answer",
    "messages_total": "Control messages, by what became of them",
    "blocks": "Blocks of the pool, by state; Quarantined ones await a proof that nothing is written to them",
    "waiting": "Requests that hold data and got no blocks in the last tick",
    "under_way": "Copies out (receiver) or writes (sender) that have not ended",
    "room_errors_total": "Exceptions and refusals that failed one request each",
    "violations_total": "Properties of the protocol that were seen broken; anything but 0 is a defect",
    "restarts_total": "Times that this sender went on under a new boot_id",
    "free_result_tokens": "Receiver: tokens of result memory that are free; stays at 0 if results are not released",
    "rank_is_lost": "Receiver: 1 while another rank of it is lost, and nothing can be submitted; else 0",
    "transport_total": "What the transport counts, such as notices that it dropped; begins anew with a new boot_id",
}
"""Every metric by its name behind ``resumark_``, in words."""


class Collector:
    """What Prometheus reads: the stats of every worker that is shown in one registry; nothing is kept here."""

    def __init__(self) -> None:
        self.reads: dict[tuple[str, int], Callable[[], Stats]] = {}
        """By side and rank. Never changed, but replaced: a scrape comes from any thread and takes no lock."""

    def collect(self) -> Iterator[Any]:
        """The metric families, as ``prometheus_client`` asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        seen = [(stats, _values(stats)) for stats in [read() for read in self.reads.values()]]
        for name, meaning in METRICS.items():
            label = METRIC_LABELS.get(name, "")
            labels = ["side", "rank", *([label] if label else [])]
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind("resumark_" + name.removesuffix("_total"), meaning, labels=labels)
            for stats, values in seen:
                for value_label, value in values.get(name, {}).items():
                    family.add_metric([stats.side, str(stats.rank), *([value_label] if label else [])], value)
            yield family


METRIC_LABELS: Final[dict[str, str]] = {
    "in_flight": "state", "ended_total": "reason", "messages_total": "what", "blocks": "state",
    "violations_total": "property", "transport_total": "what",
}  # fmt: skip
"""The label that a metric has beside ``side`` and ``rank``."""


def _values(stats: Stats) -> dict[str, dict[str, float]]:
    """Metric -> value of its label (empty: it has none) -> number."""
    counters = stats.counters
    plain: dict[str, float] = {
        "tokens_total": counters.tokens, "bytes_total": counters.bytes, "grants_total": counters.grants,
        "resumes_total": counters.resumes, "resends_total": counters.resends, "waiting": stats.waiting,
        "under_way": stats.under_way, "room_errors_total": counters.room_errors, "restarts_total": counters.restarts,
    }  # fmt: skip
    if stats.side == "receiver":
        plain |= {"free_result_tokens": stats.free_result_tokens, "rank_is_lost": float(stats.rank_is_lost)}
    messages = {
        "sent": counters.messages_sent, "received": counters.messages_received, "refused": counters.messages_refused,
    }  # fmt: skip
    live = {state: count for state, count in counters.in_flight.items() if state not in ("Success", "Failed")}
    values: dict[str, dict[str, float]] = {name: {"": value} for name, value in plain.items()}
    values |= {
        "in_flight": dict(live), "ended_total": {"NONE": 0, **counters.ended}, "messages_total": dict(messages),
        "blocks": dict(stats.blocks), "violations_total": {"none": 0, **counters.violations},
        "transport_total": dict(stats.transport),
    }  # fmt: skip
    return values


_shown_lock = threading.Lock()
_shown: weakref.WeakKeyDictionary[Any, Collector] = weakref.WeakKeyDictionary()
"""By registry. Prometheus takes a family of metrics from one collector only, so the workers of a process share it."""


def _registry(registry: Any) -> Any:
    try:
        import prometheus_client
    except ImportError:
        raise LocalError("metrics: prometheus_client is not installed; pip install 'resumark[metrics]'") from None
    return prometheus_client.REGISTRY if registry is None else registry


def check_metrics(side: str, rank: int, registry: Any = None) -> None:
    """Raises :class:`LocalError` if a worker of that side and rank cannot be shown: ``prometheus_client`` is not
    installed, or another worker of this process is shown there under the same labels."""
    collector = _shown.get(_registry(registry))
    if collector is not None and (side, rank) in collector.reads:
        raise LocalError(
            f"metrics: {side} rank {rank} of this process is shown in that registry already; expected one worker for "
            "each side and rank: close the other one, or show this one in a registry of its own, with show_metrics"
        )


def register_metrics(read: Callable[[], Stats], registry: Any = None) -> Callable[[], None]:
    """Let Prometheus read a worker, beside others of this process. ``registry`` may be one's own; returns what takes
    the worker out again.

    Raises :class:`LocalError` as :func:`check_metrics` does.
    """
    registry = _registry(registry)
    stats = read()
    name = stats.side, stats.rank
    with _shown_lock:
        check_metrics(*name, registry)
        collector = _shown.get(registry)
        if collector is None:
            collector = Collector()
            registry.register(collector)
            _shown[registry] = collector
        collector.reads = {**collector.reads, name: read}

    def unregister() -> None:
        with _shown_lock:
            collector.reads = {key: value for key, value in collector.reads.items() if key != name}
            if not collector.reads and _shown.get(registry) is collector:
                del _shown[registry]
                registry.unregister(collector)

    return unregister
