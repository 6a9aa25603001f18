"""The one thing that a two-sided transport needs from a library: a pair of processes that send and receive in order.

A :class:`Communicator` joins exactly two processes. The sender's side posts chunks to send, the receiver's side
posts chunks to receive, and the n-th chunk posted on one side meets the n-th on the other, piece by piece. No tag,
no name and no address goes along. Who gets the order wrong gets the bytes into the wrong place, so the order is
kept elsewhere (``ordered.py``), and sizes agree because both sides compute them by the same rule.

Three promises are what the protocol rests on:

* ``Work.done`` turns true only when the chunk is complete. On the sender's side it is out of the source memory, on
  the receiver's side it is in the landing blocks, copies through bounce buffers included.
* ``error`` says that the communicator is over: nothing posted later will be done.
* ``quiescent`` turns true some time after ``close``, and only when no memory that was ever handed in is read or
  written any more. This is the proof that lets quarantined blocks be used again.

:class:`ThreadedCommunicator` is the half that gloo and NCCL share. A *poster* thread makes the group, which blocks
until the peer is there, and posts. A *waiter* thread waits for what was posted, in order. Neither the caller nor
the other thread ever waits for the peer. Chunks are handled in batches of :data:`BATCH_PIECES` pieces, with a few
batches under way at a time: enough to keep the wire full, and a bound on the bounce buffers.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    import torch

BATCH_PIECES: Final = 64
"""Pieces that are posted together. Both sides must use the same number; it is part of ``ordered.VERSION``. Not fewer:
a receiver that posts while bytes come in competes with gloo's own thread for a lock, and the sender runs dry."""

BATCHES_MAX: Final = 4
"""Batches under way at once. The two sides may differ in this."""

_EXIT_TIMEOUT_S: Final = 5.0

_THREADS_TIMEOUT_S: Final = 2.0
"""How long ``join`` waits for threads that touch no memory any more, so that none is left behind. They end within
milliseconds, unless the peer died in the moment between coming and being joined: then the library holds one."""

Piece: TypeAlias = "tuple[torch.Tensor, ...]"
"""What one send or receive moves: one or more uint8 tensors [bytes], in order. One of them is moved as it lies in
memory, several go through a bounce buffer."""


class Chunk(NamedTuple):
    """What one write moves: a number of pieces, which may be made only when they are posted."""

    length: int
    pieces: Iterable[Piece]


class Work:
    """One chunk that was posted. ``done`` never goes back; it stays false for ever if the communicator breaks."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False


class Communicator(ABC):
    """Two processes that move chunks in order. No call blocks, except ``join``."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """The peer is there. Chunks may be posted before."""

    @property
    @abstractmethod
    def error(self) -> str | None:
        """Why the communicator is over, or ``None``. ``close`` alone is no error."""

    @property
    @abstractmethod
    def quiescent(self) -> bool:
        """It was closed, and touches no memory any more."""

    @abstractmethod
    def post_send(self, chunk: Chunk) -> Work:
        """Send this chunk after all that were posted before."""

    @abstractmethod
    def post_recv(self, chunk: Chunk) -> Work:
        """Receive a chunk of exactly these sizes after all that were posted before."""

    @abstractmethod
    def close(self) -> None:
        """Begin to destroy it, whatever is under way. The second call does nothing."""

    @abstractmethod
    def join(self, timeout_s: float) -> bool:
        """Wait until ``quiescent``, and a moment for threads to end; false if it is not quiescent by then."""


_LIVE: Final[weakref.WeakSet[ThreadedCommunicator[Any]]] = weakref.WeakSet()


@atexit.register
def _close_live() -> None:
    """A thread that comes back from a library's blocking call while the interpreter ends would abort the process."""
    live = list(_LIVE)
    for communicator in live:
        communicator.close()
    for communicator in live:
        communicator.join(_EXIT_TIMEOUT_S)


class _Job(NamedTuple):
    sending: bool
    chunk: Chunk
    work: Work


Batch = TypeVar("Batch")
"""What a library's ``_post`` gives to its ``_finish``."""


class ThreadedCommunicator(Communicator, Generic[Batch]):
    """The threads; a subclass has the library's calls. All of its hooks run in threads of this object."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._posted: SimpleQueue[tuple[Batch, Work | None] | None] = SimpleQueue()
        self._free_places = threading.Semaphore(BATCHES_MAX)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._quiet = threading.Event()
        self._made = False
        self._error: str | None = None
        self._name = name
        self._threads: list[threading.Thread] = []
        self._closers: list[threading.Thread] = []
        self._poster = self._thread("poster", self._post_all)
        self._waiter = self._thread("waiter", self._wait_all)

    def _thread(self, role: str, target: Callable[[], None]) -> threading.Thread:
        # Daemons: whatever a library does in a blocking call, it must not keep the process alive.
        thread = threading.Thread(target=target, name=f"{self._name}-{role}", daemon=True)
        self._threads.append(thread)
        return thread

    # --- hooks of the library -------------------------------------------------------------------------

    @abstractmethod
    def _make(self) -> None:
        """Make the group; blocks until the peer is there. Raises if it does not come in time."""

    @abstractmethod
    def _post(self, sending: bool, pieces: list[Piece]) -> Batch:
        """Post a batch; must not wait for the peer."""

    @abstractmethod
    def _finish(self, batch: Batch) -> None:
        """Wait until the batch is complete, scatter what came through bounce buffers. Raises if it broke."""

    @abstractmethod
    def _destroy(self) -> None:
        """End the group: when this returns nothing of it touches memory, and a blocked ``_finish`` wakes."""

    # --- what the owner calls -------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to make the group. Called once, when the subclass is complete."""
        _LIVE.add(self)
        self._poster.start()
        self._waiter.start()

    @property
    def ready(self) -> bool:
        return self._made

    @property
    def error(self) -> str | None:
        return self._error

    @property
    def quiescent(self) -> bool:
        return self._quiet.is_set()

    def post_send(self, chunk: Chunk) -> Work:
        return self._submit(True, chunk)

    def post_recv(self, chunk: Chunk) -> Work:
        return self._submit(False, chunk)

    def _submit(self, sending: bool, chunk: Chunk) -> Work:
        work = Work()
        self._jobs.put(_Job(sending, chunk, work))
        return work

    def close(self) -> None:
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            made = self._made
        self._jobs.put(None)
        self._free_places.release()
        if made:
            closer = threading.Thread(target=self._close, name=f"{self._name}-closer", daemon=True)
            self._closers.append(closer)
            closer.start()
        else:
            # Nothing was ever posted, and ``_post_all`` will not post anything.
            self._quiet.set()

    def join(self, timeout_s: float) -> bool:
        quiet = self._quiet.wait(timeout_s)
        deadline_s = time.monotonic() + min(timeout_s, _THREADS_TIMEOUT_S)
        for thread in [*self._threads, *self._closers]:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return quiet

    # --- the threads ----------------------------------------------------------------------------------

    def _close(self) -> None:
        """The proof of quiescence: the group is destroyed, and the threads that copy have ended."""
        self._destroy()
        for thread in self._threads:
            thread.join()
        self._quiet.set()

    def _fail(self, what: str, error: BaseException) -> None:
        """The first failure is kept; what fails because of ``close`` is none."""
        with self._lock:
            if self._error is None and not self._closing.is_set():
                self._error = f"{what}: {error_text(error)}"

    def _post_all(self) -> None:
        try:
            self._make()
            with self._lock:
                self._made = not self._closing.is_set()
            if not self._made:
                self._destroy()
                return
            while (job := self._jobs.get()) is not None and self._post_job(job):
                pass
        except Exception as error:
            self._fail("posting failed" if self._made else "the peer could not be joined", error)
        finally:
            self._posted.put(None)

    def _post_job(self, job: _Job) -> bool:
        """Post a chunk batch by batch as places become free; false if the communicator is over."""
        pieces = iter(job.chunk.pieces)
        for first in range(0, max(job.chunk.length, 1), BATCH_PIECES):
            self._free_places.acquire()
            if self._closing.is_set() or self._error is not None:
                return False
            batch = self._post(job.sending, list(islice(pieces, BATCH_PIECES)))
            last = first + BATCH_PIECES >= job.chunk.length
            self._posted.put((batch, job.work if last else None))
        return True

    def _wait_all(self) -> None:
        try:
            while (item := self._posted.get()) is not None:
                batch, work = item
                self._finish(batch)
                self._free_places.release()
                if work is not None:
                    work.done = True
        except Exception as error:
            self._fail("a transfer broke", error)
        finally:
            # The poster may wait for a place that nobody will free any more; it sees why and ends.
            self._free_places.release()


def gather(parts: Piece, buffer: torch.Tensor) -> None:
    """Copy the parts, in order, into one buffer (uint8 [bytes of all parts])."""
    offset = 0
    for part in parts:
        buffer.narrow(0, offset, part.numel()).copy_(part)
        offset += part.numel()


def scatter(buffer: torch.Tensor, parts: Piece) -> None:
    """The reverse of :func:`gather`."""
    offset = 0
    for part in parts:
        part.copy_(buffer.narrow(0, offset, part.numel()))
        offset += part.numel()


def error_text(error: BaseException) -> str:
    """The first sentence of a library's error, without the path of the source file in front of it."""
    text = str(error).strip().split("\n", 1)[0]
    if text.startswith("[/") and "] " in text:
        text = text.split("] ", 1)[1]
    text = text.split(". This is typically", 1)[0]
    return text[:200] or type(error).__name__
