"""What can be seen of a worker: typed events, the checkers that read them, and counters.

A worker tells its :class:`Observer` what it did, and the observer turns that into the events of ``fsm.events``, the
same that the simulator emits. So one set of checkers (``fsm.invariants``) reads both, and what a real run wrote down
(``gpu_backend.recorder``) can be read by the same tools. A worker sees its own side only: a receiver's events have no
``Executed``, a sender's no ``Wrote``. Two workers in one process may share an observer, and then the checkers see
everything.

Checkers remember what has ended, in a simulation for ever. A worker runs for months, so the memory of an epoch goes
once ``KEEP_EPOCHS`` later ones have ended.

Counters are plain numbers that only the worker's thread changes; ``gpu_backend.metrics`` shows them to Prometheus.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

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
    Received,
    Restarted,
    Sent,
    StateChanged,
    Wrote,
)
from fsm.invariants import Monitors, Violation
from fsm.messages import Abort, Epoch, Grant, Heartbeat, Message
from fsm.ranks import Agreed
from fsm.reasons import Reason
from fsm.states import State
from fsm.trace import TraceEnding
from gpu_backend.recorder import Recorder

KEEP_EPOCHS: Final = 8192
"""So many ended epochs are remembered by the checkers."""

VIOLATIONS_MAX: Final = 100
"""So many violations are kept with their text; all are counted."""


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
    """Takes what a worker did, and passes events to checkers, recorder and listeners, if there are any.

    ``sees_all_ranks``: every receiver rank tells this one observer, so that what they decide can be compared (I7).
    ``undisturbed``: no fault is made in this run, so that a failure is one of the protocol's (L1; for tests).
    It may be shared between workers on different threads.
    """

    def __init__(
        self,
        *,
        checks: bool = False,
        recorder: Recorder | None = None,
        sees_all_ranks: bool = False,
        undisturbed: bool = False,
    ) -> None:
        self.checks = Checks() if checks else None
        self.recorder = recorder
        self.listeners: list[Callable[[AnyEvent], None]] = []
        self.sees_all_ranks = sees_all_ranks
        self.undisturbed = undisturbed
        self.violations: list[Violation] = []
        self._lock = threading.Lock()
        self.closed = False

    @property
    def active(self) -> bool:
        """Whether anybody looks at events; if not, none need be made."""
        return self.checks is not None or self.recording

    @property
    def recording(self) -> bool:
        """Whether anybody but the checkers looks."""
        return self.recorder is not None or bool(self.listeners)

    def emit(self, at_s: float, event: AnyEvent) -> list[Violation]:
        """Show an event to everybody. Returns what it breaks."""
        with self._lock:
            if self.recorder is not None:
                self.recorder.write(at_s, event)
            for listener in self.listeners:
                listener(event)
            found = self.checks.take(event) if self.checks is not None else []
            if found:
                self.violations += found[: VIOLATIONS_MAX - len(self.violations)]
        return found

    def tick(self, at_s: float) -> None:
        """Called in every poll."""
        if self.recorder is not None:
            with self._lock:
                self.recorder.tick(at_s)

    def failed(self, what: str, epoch: Epoch | None, ending: TraceEnding) -> None:
        """Something failed; at the end of the round the last events are dumped, if that is wanted."""
        if self.recorder is not None:
            with self._lock:
                self.recorder.failed(what, epoch, ending)

    def dump(self, path: str | os.PathLike[str]) -> bool:
        """As :meth:`gpu_backend.recorder.Recorder.dump`; from any thread."""
        if self.recorder is None:
            raise LocalError("dump: no events are kept; expected observe.ring or observe.dump_dir")
        with self._lock:
            return self.recorder.dump(path)

    def close(self) -> None:
        """End what is written down; the second call does nothing."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            if self.recorder is not None:
                first = self.violations[0] if self.violations else Violation("", "")
                self.recorder.close(TraceEnding(property=first.property, text=first.text))


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
        self._peer_gave_up: dict[Epoch, None] = {}
        """Epochs that the peer ended for another reason than its caller's wish."""

    @property
    def active(self) -> bool:
        """Whether anybody looks at events."""
        return self.observer.active

    @property
    def recording(self) -> bool:
        """Whether anybody but the checkers looks: they read neither messages nor notes."""
        return self.observer.recording

    def emit(self, event: AnyEvent) -> None:
        """Pass an event on, and tell of what it breaks."""
        for violation in self.observer.emit(self._clock() - self._started_at, event):
            counts = self.counters.violations
            counts[violation.property] = counts.get(violation.property, 0) + 1
            room = getattr(event, "room", None)
            text = f"property {violation.property} is broken: {violation.text}"
            what = f"room{room}" if room is not None else "worker"
            self.observer.failed(what, getattr(event, "epoch", None), TraceEnding(violation.property, text))
            self._broken(room, violation)

    def tick(self) -> None:
        """Called in every poll."""
        if self.observer.recorder is not None:
            self.observer.tick(self._clock() - self._started_at)

    # --- what both sides do ---------------------------------------------------------------------------

    def submitted(self, lanes: int = 1) -> None:
        """A request was submitted here."""
        self.counters.in_flight[State.BOOTSTRAPPING] += lanes

    def sent(self, effect: Send) -> None:
        """A control message is about to leave. It is told before it does: what a peer has heard from a process that
        was killed then stands in that one's trace, if the trace survives it whole."""
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
        if self.recording and type(message) is not Heartbeat:
            self.emit(Sent(self.side, message, effect.resend))

    def received(self, message: Message) -> None:
        """A control message is about to be handed to the lifecycles."""
        if type(message) is Abort and self.observer.recorder is not None and message.reason != Reason.ABORTED.name:
            self._peer_gave_up[message.epoch] = None
            if len(self._peer_gave_up) > KEEP_EPOCHS:
                del self._peer_gave_up[next(iter(self._peer_gave_up))]
        if self.recording and type(message) is not Heartbeat:
            self.emit(Received(self.side, message))

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
        if effect.state == State.FAILED and self._is_surprise(effect):
            text = f"room {effect.room} ended Failed: {effect.reason}"
            self.observer.failed(f"room{effect.room}", effect.epoch, TraceEnding("", text))
        if self.active:
            self.emit(
                Finished(
                    self.side, effect.receiver_rank, effect.room, effect.epoch, effect.state, effect.reason,
                    total_tokens, self.observer.undisturbed,
                )
            )  # fmt: skip

    def _is_surprise(self, effect: Ended) -> bool:
        """Whether a failure is worth a look: not if a caller ended the request, here or at the peer."""
        gave_up = effect.epoch is not None and effect.epoch in self._peer_gave_up
        return effect.reason != Reason.ABORTED.name and (effect.reason != Reason.PEER_ABORTED.name or gave_up)

    def note(self, kind: str, text: str) -> None:
        """Something to read."""
        if self.recording:
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

    def restarted(self, receiver_ranks: tuple[int, ...], failed: int, text: str) -> None:
        """The sender goes on as a new process; what it had under way is forgotten, and ``failed`` lanes with it."""
        counters = self.counters
        counters.restarts += 1
        counters.in_flight = dict.fromkeys(map(str, State), 0)
        if failed:
            counters.ended[Reason.PEER_GONE.name] = counters.ended.get(Reason.PEER_GONE.name, 0) + failed
        if self.active:
            self.emit(Restarted(receiver_ranks))
        if failed:
            what = f"restart{counters.restarts}"
            self.observer.failed(what, None, TraceEnding("", f"{text}: {failed} requests failed (of each rank)"))


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
