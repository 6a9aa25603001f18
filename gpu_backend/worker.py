"""What the two workers share, and their names: the loop's frame, waiting, peers, endings, errors.

A worker is one object with one owner thread. ``submit`` hands a request in, ``poll`` moves everything on and returns
what ended, ``wait`` sleeps until something can have happened. Nothing blocks, with one exception: with several
receiver ranks ``poll`` waits for the other ranks (R7: every tick is a collective). There is no hidden thread, but
for the one that copies landed blocks to results on a CPU (``results.copy_threads``), and those that a transport says
it has (gloo).

Everything that is decided is decided in ``fsm``. A worker carries out what it is asked to, in this order: what the
peer must hear leaves before a copy begins; a block's header is cleared before the grant that names it leaves, and a
transport expects a grant before the sender can know of it.

An error in one request fails that request, and is told in its outcome and in the log; the others go on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from fsm.errors import LocalError
from fsm.invariants import Violation
from fsm.messages import Message
from fsm.states import KVPoll, State, kv_poll
from fsm.trace import TRACE_VERSION, WORKER, TraceHeader
from gpu_backend.config import ReceiverWorkerConfig, SenderWorkerConfig, plain_config
from gpu_backend.hello import Hello, Incoming
from gpu_backend.metrics import Stats, check_metrics, register_metrics
from gpu_backend.observe import Observer, Reporter
from gpu_backend.process import Owner
from gpu_backend.recorder import make_recorder

log = logging.getLogger(__name__)

BOOT_ID_SHIFT: Final = 10
"""Boot ids count units of 1024 ns since 1970: below 2**53 until the year 2262, so that they are exact in JSON and as
floating point too."""

CLOSE_LINGER_S: Final = 0.5
"""So long the sender's ``close`` waits for the last control messages to leave, such as the STATUS of a last write."""

REMEMBERED_MAX: Final = 65_536
"""So many requests that ended can still be asked for their state."""

YIELDS_BEFORE_SLEEP: Final = 200
"""While a transport is busy, ``wait`` first gives the processor away so often in a row, then it sleeps."""
BUSY_SLEEP_S: Final = 50e-6

_boot_lock = threading.Lock()
_last_boot_id = 0


def new_boot_id(after: int = 0) -> int:
    """A number that grows from one start of a process to the next, and from call to call (R8).

    It is the wall clock, in units of 1024 ns, and more than ``after`` and all earlier ones of this process. A clock
    that was set back between two starts by more than the pause between them breaks this; the peer then refuses the
    newcomer (STALE_EPOCH) until the clock has caught up.
    """
    global _last_boot_id
    with _boot_lock:
        _last_boot_id = max(time.time_ns() >> BOOT_ID_SHIFT, after + 1, _last_boot_id + 1)
        return _last_boot_id


class Control(Protocol):
    """As much of either end of the control plane as both workers use; tests have one of their own."""

    def poll(self, limit: int = 256) -> list[Incoming]:
        """What has come in."""
        ...

    def pending(self) -> bool:
        """Whether there is anything to poll."""
        ...

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        """Sleep until something has come in, or one of these is readable."""
        ...

    def set_hello(self, hello: Hello) -> None:
        """Go on under a newer boot_id."""
        ...

    def close(self, linger_s: float = 0.0) -> None:
        """Close."""
        ...


class ReceiverControl(Control, Protocol):
    """The receiver's end."""

    def send(self, message: Message) -> bool:
        """To the sender."""
        ...

    def send_side(self, data: bytes) -> bool:
        """To the sender's transport."""
        ...


class SenderControl(Control, Protocol):
    """The sender's end."""

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        ...

    def send(self, receiver_rank: int, message: Message) -> bool:
        """To a receiver rank."""
        ...

    def send_side(self, receiver_rank: int, data: bytes) -> bool:
        """To a receiver rank's transport."""
        ...


class Progress(NamedTuple):
    """How far a request is. Tokens are counts; ``total_tokens`` is -1 until the OFFER (or first STATUS) came."""

    watermark_tokens: int
    delivered_tokens: int
    total_tokens: int


class Ending(NamedTuple):
    """How a request ended, as long as it is remembered."""

    state: State
    reason: str
    progress: Progress


def trace_header(
    config: ReceiverWorkerConfig | SenderWorkerConfig, boot_id: int, run: Mapping[str, Any] | None = None
) -> TraceHeader:
    """The header of a worker's trace, whoever made the worker. ``run``: what a run of requests that were made up is
    told besides; empty for a worker alone.

    ``boot_id`` is the one that the process began with; receiver ranks agree on the largest of theirs.
    """
    return TraceHeader(
        TRACE_VERSION, WORKER, {"config": plain_config(config), "run": dict(run or {})},
        side="receiver" if isinstance(config, ReceiverWorkerConfig) else "sender", rank=config.ranks.rank,
        boot_id=boot_id, started_unix_s=time.time(),
    )  # fmt: skip


WorkerT = TypeVar("WorkerT", bound="Worker")


class Worker:
    """The frame of both workers. Not for use by itself."""

    side = ""

    rank_is_lost = False
    """Receiver: another rank is gone."""

    def __init__(
        self,
        config: ReceiverWorkerConfig | SenderWorkerConfig,
        *,
        clock: Callable[[], float],
        observer: Observer | None,
        receiver_rank: int,
        boot_id: int,
    ) -> None:
        self._clock = clock
        self._owner = Owner(f"the {self.side} worker")
        self._closed = False
        self._yields = 0
        self._ended: OrderedDict[int, Ending] = OrderedDict()
        self._unmetered: Callable[[], None] | None = None
        self._own_observer = observer is None
        self.boot_id = boot_id
        self.rank = config.ranks.rank
        options = config.observe
        if options.metrics:
            check_metrics(self.side, self.rank)  # before anything is opened
        self.observer = observer or Observer(
            checks=options.checks, recorder=make_recorder(options, trace_header(config, boot_id))
        )
        self.reporter = Reporter(self.observer, self.side, receiver_rank, clock, self._on_violation)

    # --- life -----------------------------------------------------------------------------------------

    def __enter__(self: WorkerT) -> WorkerT:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def close(self) -> None:
        """Give everything back; the second call does nothing."""
        raise NotImplementedError

    def show_metrics(self, registry: Any = None) -> None:
        """Let Prometheus read this worker, from its default registry or one's own, until it is closed.

        Workers of one process may share a registry, if they differ in side or rank. Raises :class:`LocalError` if
        they do not, or if ``prometheus_client`` is not installed.
        """
        self._check_usable("show_metrics")
        if self._unmetered is None:
            self._unmetered = register_metrics(self.stats, registry)

    def dump(self, path: str | os.PathLike[str]) -> bool:
        """Write the last events of this worker to a file, as a trace; may be called from any thread.

        Returns whether that went well; if not, the log says why. Raises :class:`LocalError` if no events are kept
        (neither ``observe.ring`` nor ``observe.dump_dir``), or this worker is closed.
        """
        return self.observer.dump(path)

    def _close_watching(self) -> None:
        if self._unmetered is not None:
            self._unmetered()
            self._unmetered = None
        if self._own_observer:
            self.observer.close()

    def _check_usable(self, call: str) -> None:
        """One owner thread, the one that made it; nothing after ``close``."""
        if self._closed:
            raise LocalError(f"{call}: this {self.side} worker is closed; make a new one")
        self._owner.check()

    # --- what is asked --------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counters, and what is held. May be called from any thread."""
        raise NotImplementedError

    def _live_state(self, room: int) -> State | None:
        raise NotImplementedError

    def state(self, room: int) -> State:
        """Where a request stands, or stood when it ended (the last ``REMEMBERED_MAX`` are remembered).

        Raises :class:`LocalError` for a room that was never submitted here.
        """
        live = self._live_state(room)
        if live is not None:
            return live
        ending = self._ended.get(room)
        if ending is None:
            raise LocalError(f"room={room!r}: not known here; expected the room of a request that was submitted")
        return ending.state

    def kv_poll(self, room: int) -> KVPoll:
        """The same in the five values that older readers expect; ``ResumeRequested`` shows as ``Transferring``."""
        return kv_poll(self.state(room))

    def _remember(self, room: int, ending: Ending) -> None:
        self._ended.pop(room, None)
        self._ended[room] = ending
        if len(self._ended) > REMEMBERED_MAX:
            self._ended.popitem(last=False)

    # --- errors ---------------------------------------------------------------------------------------

    def _on_violation(self, room: int | None, violation: Violation) -> None:
        """A checker found a property broken: a defect, here or at the peer."""
        log.error("%s %d: property %s is broken: %s", self.side, self.rank, violation.property, violation.text)
        if room is not None:
            self._fail_room(room, f"property {violation.property}: {violation.text}")

    def _room_error(self, room: int | None, doing: str, error: Exception) -> None:
        """R11: an exception while a request was handled is that request's."""
        self.reporter.counters.room_errors += 1
        log.error("%s %d: room %s: %s: %r", self.side, self.rank, room, doing, error, exc_info=error)
        if room is not None:
            self._fail_room(room, f"{doing}: {type(error).__name__}: {error}")

    def _fail_room(self, room: int, text: str) -> None:
        raise NotImplementedError

    # --- waiting --------------------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> bool:
        """Sleep until something can have happened, or ``timeout_s`` seconds are over; then call ``poll``.

        Returns whether something (may) have happened. Raises :class:`LocalError` for a negative time.
        """
        self._check_usable("wait")
        if not timeout_s >= 0:
            raise LocalError(f"timeout_s={timeout_s}: expected 0 or more seconds")
        return self._sleep(timeout_s)

    def _sleep(self, timeout_s: float) -> bool:
        raise NotImplementedError

    def _rest(self, control: Control, timeout_s: float, fds: list[int], *, busy: bool) -> bool:
        """Sleep on the control plane and these descriptors. While a transport is busy, of which no descriptor tells,
        give the processor away again and again instead, and after a while sleep a little."""
        if control.pending():
            return True
        if not busy:
            return bool(control.wait(timeout_s, fds)) or control.pending()
        self._yields += 1
        if timeout_s > 0 and self._yields > YIELDS_BEFORE_SLEEP:
            time.sleep(min(timeout_s, BUSY_SLEEP_S))
        else:
            os.sched_yield()
        return True

    def poll_until(self, done: Callable[[list[Any]], bool], timeout_s: float) -> list[Any]:
        """Poll and wait until ``done(all outcomes so far)``, at most ``timeout_s`` seconds; returns the outcomes.

        For scripts and tests; an engine has a loop of its own.
        """
        outcomes: list[Any] = []
        end = time.monotonic() + timeout_s
        while True:
            outcomes += self.poll()
            left = end - time.monotonic()
            if done(outcomes) or left <= 0:
                return outcomes
            self.wait(min(left, 1.0))

    def poll(self) -> list[Any]:
        """Move everything on; what ended since the last call."""
        raise NotImplementedError


class Released:
    """What callers gave back, from any thread, to be taken up in the next poll."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        """From any thread."""
        self._items.append(item)

    def take(self) -> list[Any]:
        """Everything so far."""
        taken = []
        while self._items:
            item = self._items.popleft()
            if getattr(item, "dropped", False):
                log.warning(
                    "room %d: its %s was dropped without release(); its memory is taken back now, late",
                    item.room, type(item).__name__.lower(),
                )  # fmt: skip
            taken.append(item)
        return taken


def check_room(room: Any) -> None:
    """Raises :class:`LocalError` if that cannot be the number of a room."""
    if not isinstance(room, int) or isinstance(room, bool) or not 0 <= room < 1 << 63:
        raise LocalError(f"room={room!r}: expected a whole number from 0 to 2**63 - 1")


def check_tokens(name: str, tokens: Any, low: int, high: int) -> None:
    """Raises :class:`LocalError` naming the argument, if that is no number of tokens from low to high."""
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not low <= tokens <= high:
        raise LocalError(f"{name}={tokens!r}: expected a whole number of tokens from {low} to {high}")
