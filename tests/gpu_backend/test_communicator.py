"""The two threads of a communicator, over a library that does what a test says.

What is protected: chunks stay in order over batches, at most a few batches are under way, no failure is lost, and
``quiescent`` is not said while a thread can still touch memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from gpu_backend.transports.communicator import (
    BATCH_PIECES,
    BATCHES_MAX,
    Chunk,
    Piece,
    ThreadedCommunicator,
    error_text,
)

HANG_S = 120.0


class FakeLibrary(ThreadedCommunicator[int]):
    """A batch is the number of its pieces. ``let`` allows that many batches to end."""

    def __init__(self) -> None:
        super().__init__("fake")
        self.log: list[str] = []
        self.peer_there = threading.Event()
        self.may_end = threading.Semaphore(0)
        self.may_leave = threading.Event()
        self.may_leave.set()
        self.destroyed = threading.Event()
        self.make_error: Exception | None = None
        self.post_error: Exception | None = None
        self.finish_error: Exception | None = None

    def _make(self) -> None:
        self.peer_there.wait(HANG_S)
        if self.make_error is not None:
            raise self.make_error

    def _post(self, sending: bool, pieces: list[Piece]) -> int:
        if self.post_error is not None:
            raise self.post_error
        self.log.append(f"{'send' if sending else 'recv'} {len(pieces)}")
        return len(pieces)

    def _finish(self, batch: int) -> None:
        self.may_end.acquire()
        if self.finish_error is not None:
            raise self.finish_error
        if self.destroyed.is_set():
            self.may_leave.wait(HANG_S)
            raise RuntimeError("destroyed")
        self.log.append(f"end {batch}")

    def _destroy(self) -> None:
        self.log.append("destroy")
        self.destroyed.set()
        self.may_end.release()

    def let(self, batches: int) -> None:
        self.may_end.release(batches)


@pytest.fixture
def library() -> Iterator[FakeLibrary]:
    made = FakeLibrary()
    made.start()
    yield made
    made.peer_there.set()
    made.may_leave.set()
    made.close()
    assert made.join(HANG_S)


def chunk(pieces: int) -> Chunk:
    return Chunk(pieces, ((torch.empty(1, dtype=torch.uint8),) for _ in range(pieces)))


def until(happened: Callable[[], object]) -> None:
    waiting = threading.Event()
    for _ in range(int(HANG_S / 0.002)):
        if happened():
            return
        waiting.wait(0.002)
    raise AssertionError("it did not happen")


def test_chunks_go_in_order_and_end_with_their_last_batch(library: FakeLibrary) -> None:
    """They may be posted before the peer is there."""
    first = library.post_send(chunk(BATCH_PIECES + 1))
    second = library.post_recv(chunk(BATCH_PIECES))
    assert library.log == []
    library.peer_there.set()
    until(lambda: len(library.log) == 3)
    assert library.log == [f"send {BATCH_PIECES}", "send 1", f"recv {BATCH_PIECES}"]
    assert library.ready
    library.let(1)
    until(lambda: len(library.log) == 4)
    assert not first.done
    library.let(1)
    until(lambda: first.done)
    assert not second.done
    library.let(1)
    until(lambda: second.done)


def test_no_more_than_a_few_batches_are_under_way(library: FakeLibrary) -> None:
    library.peer_there.set()
    work = library.post_send(chunk(BATCH_PIECES * (BATCHES_MAX + 2)))
    until(lambda: len(library.log) == BATCHES_MAX)
    library.let(1)
    until(lambda: len(library.log) == BATCHES_MAX + 2)
    assert library.log.count(f"send {BATCH_PIECES}") == BATCHES_MAX + 1
    library.let(BATCHES_MAX + 1)
    until(lambda: work.done)


@pytest.mark.parametrize(
    ("which", "text"),
    [
        ("make_error", "the peer could not be joined: it said no"),
        ("post_error", "posting failed: it said no"),
        ("finish_error", "a transfer broke: it said no"),
    ],
)
def test_a_failure_anywhere_is_told_and_nothing_is_done_afterwards(library: FakeLibrary, which: str, text: str) -> None:
    setattr(library, which, RuntimeError("it said no"))
    work = library.post_recv(chunk(BATCH_PIECES * (BATCHES_MAX + 2)))
    library.peer_there.set()
    library.let(1)
    until(lambda: library.error is not None)
    assert library.error == text and not work.done and not library.quiescent
    library.close()
    assert library.join(HANG_S) and not work.done


def test_quiescence_waits_for_the_thread_that_copies(library: FakeLibrary) -> None:
    """The group is destroyed, but the waiter may be in the middle of a copy into landing blocks."""
    library.peer_there.set()
    library.may_leave.clear()
    library.post_recv(chunk(1))
    until(lambda: library.log == ["recv 1"])
    library.close()
    until(library.destroyed.is_set)
    assert not library.join(0.01)
    library.may_leave.set()
    assert library.join(HANG_S) and library.error is None


def test_close_before_the_peer_came_is_quiet_at_once_and_posts_nothing(library: FakeLibrary) -> None:
    library.post_recv(chunk(1))
    library.close()
    assert library.quiescent
    library.peer_there.set()
    until(library.destroyed.is_set)
    until(lambda: not any(thread.is_alive() for thread in library._threads))
    assert library.log == ["destroy"]


@pytest.mark.parametrize(
    ("raw", "short"),
    [
        (
            "[/a/b/pair.cc:5] Connection closed by peer [::1]:1. This is typically caused by",
            "Connection closed by peer [::1]:1",
        ),
        ("one\ntwo", "one"),
        ("", "RuntimeError"),
    ],
)
def test_an_error_is_told_in_one_line(raw: str, short: str) -> None:
    assert error_text(RuntimeError(raw)) == short
