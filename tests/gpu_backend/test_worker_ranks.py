"""Receivers of several ranks: real collectives between threads, one sender, real sockets.

Each rank has a thread, because its ``poll`` waits for the others. What all of them do is told to one observer, so that
the checkers see whether they decide alike (I7).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from fsm.errors import LocalError
from fsm.events import Decided, Granted
from fsm.states import BlockState, State
from gpu_backend.collective import RankGroup, RankStore
from gpu_backend.config import ControlConfig, PoolConfig, RankConfig, TimingConfig
from gpu_backend.observe import Observer
from gpu_backend.outcomes import Outcome
from gpu_backend.receiver_worker import ReceiverWorker
from gpu_backend.sender_worker import SenderWorker
from gpu_backend.transports.in_process import Fabric
from gpu_backend.worker import new_boot_id
from tests.gpu_backend.kit_workers import payload_of, receiver_config, sender_config, wrong_with

HANG_S = 120.0
"""Far longer than anything here takes: only a hang gets there."""

TIMING = TimingConfig(deadline_s=60.0, tombstone_s=60.0, resend_s=0.2, heartbeat_s=0.0)


class RankThread:
    """A receiver rank that polls in a thread of its own until it is stopped."""

    def __init__(self, make: Callable[[], ReceiverWorker]) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.error: BaseException | None = None
        self._make = make
        self._orders: queue.SimpleQueue[tuple[Callable[[ReceiverWorker], Any], Future[Any]]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        worker: ReceiverWorker | None = None
        try:
            worker = self._make()
            while not self._stop.is_set():
                while not self._orders.empty():
                    order, future = self._orders.get()
                    try:
                        future.set_result(order(worker))
                    except Exception as error:
                        future.set_exception(error)
                for outcome in worker.poll():
                    self.outcomes[outcome.room] = outcome
        except BaseException as error:
            self.error = error
        finally:
            if worker is not None:
                worker.close()

    def ask(self, order: Callable[[ReceiverWorker], Any]) -> Future[Any]:
        """Have something done between two polls."""
        assert self.error is None, self.error
        future: Future[Any] = Future()
        self._orders.put((order, future))
        return future

    def stop(self) -> None:
        """End the thread, and with it the rank."""
        self._stop.set()
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()


class Site:
    """One sender and two receiver ranks, with 4 and 2 landing blocks."""

    def __init__(self) -> None:
        self.fabric = Fabric()
        self.observer = Observer(checks=True, sees_all_ranks=True)
        self.events: list[Any] = []
        self.observer.listeners.append(self.events.append)
        self.store = RankStore("127.0.0.1:0")
        self.sender = SenderWorker(sender_config(self.fabric, ranks=RankConfig(receivers=2), timing=TIMING))
        self.ended: dict[int, Any] = {}
        self.ranks = [RankThread(lambda: self.make(0)), RankThread(lambda: self.make(1))]

    def make(self, rank: int) -> ReceiverWorker:
        """The worker of a rank; called in its thread."""
        config = receiver_config(
            self.fabric, pool=PoolConfig(blocks=4 - 2 * rank, huge_pages=False), timing=TIMING,
            ranks=RankConfig(rank=rank, receivers=2, store=self.store.address, timeout_s=20.0),
            control=ControlConfig(address=self.sender.address),
        )  # fmt: skip
        store: dict[str, Any] = {"store": self.store} if rank == 0 else {"address": self.store.address}
        group = RankGroup(rank, 2, boot_id=new_boot_id(), timeout_s=20.0, **store)
        return ReceiverWorker(config, group=group, observer=self.observer)

    def submit(self, room: int, tokens: int) -> None:
        """A request on every rank and at the sender."""
        for future in [rank.ask(lambda worker: worker.submit(room, early_tokens=3)) for rank in self.ranks]:
            future.result(HANG_S)
        self.sender.submit(room, payload_of(room, tokens))

    def run(self, done: Callable[[], bool]) -> None:
        """Move the sender until something is the case."""
        hang = threading.Event()
        timer = threading.Timer(HANG_S, hang.set)
        timer.start()
        try:
            while not done():
                assert not hang.is_set(), "this hangs"
                assert [rank.error for rank in self.ranks] == [None, None]
                for outcome in self.sender.poll():
                    self.ended[outcome.room] = outcome
                self.sender.wait(0.002)
        finally:
            timer.cancel()

    def close(self) -> None:
        """Everything ends."""
        for rank in self.ranks:
            rank.stop()
        self.sender.close()
        self.store.close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def test_all_ranks_get_the_same_bytes_and_decide_alike(site: Site) -> None:
    """R7: unequal pools; every grant is what the smaller one can give, on both, in the same ticks."""
    payloads = {room: payload_of(room, 7 + 11 * room) for room in range(4)}
    for room, payload in payloads.items():
        site.submit(room, payload.tokens)
    site.run(lambda: len(site.ended) == 4 and all(len(rank.outcomes) == 4 for rank in site.ranks))
    for rank in site.ranks:
        for room, payload in payloads.items():
            assert wrong_with(rank.outcomes[room], payload) == ""
    granted = [
        [(event.room, event.seq, event.start, event.capacity) for event in site.events
         if isinstance(event, Granted) and event.receiver_rank == rank] for rank in (0, 1)
    ]  # fmt: skip
    assert granted[0] == granted[1] and max(capacity for *_, capacity in granted[0]) <= 8
    assert any(isinstance(event, Decided) and event.decisions for event in site.events)
    assert site.observer.violations == []
    assert site.sender.stats().counters.ended == {"NONE": 8}, "a lane for each rank"


def test_a_lost_rank_fails_the_requests_of_all_and_the_ranks_can_meet_again(site: Site) -> None:
    """R7: the survivor does not hang, speaks under a new boot_id, and takes no request until it has rejoined."""
    site.submit(1, 100)
    site.run(lambda: any(isinstance(event, Granted) and event.seq > 1 for event in site.events))
    survivor = site.ranks[0]
    boot_id = survivor.ask(lambda worker: worker.boot_id).result(HANG_S)
    site.ranks[1].stop()
    site.run(lambda: 1 in survivor.outcomes and 1 in site.ended)
    assert (survivor.outcomes[1].state, survivor.outcomes[1].reason) == (State.FAILED, "RANK_LOST")
    with pytest.raises(LocalError, match="rejoin"):
        survivor.ask(lambda worker: worker.submit(2)).result(HANG_S)
    assert survivor.ask(lambda worker: worker.boot_id).result(HANG_S) > boot_id
    meeting = survivor.ask(lambda worker: worker.rejoin())
    site.ranks[1] = RankThread(lambda: site.make(1))
    site.run(meeting.done)
    meeting.result()
    site.submit(2, 33)
    site.run(lambda: 2 in site.ended and all(2 in rank.outcomes for rank in site.ranks))
    for rank in site.ranks:
        assert wrong_with(rank.outcomes[2], payload_of(2, 33)) == ""
    site.run(lambda: survivor.ask(lambda worker: worker.ledger.counts()).result(HANG_S)[BlockState.FREE] == 4)
    assert [violation.text for violation in site.observer.violations] == []
