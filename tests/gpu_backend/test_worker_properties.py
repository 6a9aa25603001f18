"""The protocol's properties, on real memory: drawn schedules over the in-process transport.

Hypothesis draws what happens when: which message comes, again or never, which write moves on by a block, who polls,
who is aborted, whether the sender's process dies. The two workers, their pools and their copies are the real ones.
Then everything is let run out, and the run is judged: no checker has found a property broken, every Success holds
its payload byte by byte, every block, source block and result token is back.

What the receiver's bytes do is seen where they arrive, in the fabric, and not where the receiver learns of it: so I1
(is the block open to this write?) and I5 (is the watermark behind the bytes?) are asked of the physical side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm.allocators import FirstChoice, make_allocator
from fsm.events import Wrote
from fsm.states import State
from gpu_backend.config import LimitConfig, PoolConfig, ResultConfig
from gpu_backend.outcomes import Outcome
from gpu_backend.sender_worker import SenderWorker
from gpu_backend.transports.base import Broken
from gpu_backend.transports.in_process import Arrival, Fabric
from gpu_backend.worker import new_boot_id
from tests.gpu_backend.kit_wire import ServerEnd, Wire
from tests.gpu_backend.kit_workers import Pair, payload_of, sender_config, wrong_with

RESULT_TOKENS = 80

ALLOCATORS: dict[str, dict[str, int]] = {
    "fifo": {}, "lifo": {}, "same-again": {}, "disjoint": {}, "stingy": {"blocks_max": 1},
    "adversary": {"refusals_max": 3},
}  # fmt: skip

REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "tokens": st.integers(1, 40),
            "early": st.sampled_from([0, 0, 3, 8]),
            "lease": st.booleans(),
            "mrope": st.booleans(),
        }
    ),
    min_size=2,
    max_size=4,
)


class Drawn:
    """What a hostile allocator asks is drawn, until the run is let run out."""

    def __init__(self, data: st.DataObject) -> None:
        self.data: st.DataObject | None = data

    def pick(self, options: int, label: str) -> int:
        if self.data is None:
            return FirstChoice().pick(options, label)
        return self.data.draw(st.integers(0, options - 1), label=label)


class Run:
    """One pair of workers under one schedule."""

    def __init__(self, data: st.DataObject, device: str, *, faults: bool) -> None:
        self.data = data
        draw = data.draw
        self.choices = Drawn(data)
        self.faults = faults
        self.faults_left = draw(st.integers(1, 4), label="faults") if faults else 0
        name = draw(st.sampled_from(sorted(ALLOCATORS)), label="allocator")
        checksum = draw(st.sampled_from(["none", "full"]), label="checksum")
        pool = PoolConfig(blocks=draw(st.integers(1, 6), label="blocks"), huge_pages=False, device=device)
        self.sender_changes: dict[str, Any] = {
            "pool": PoolConfig(
                blocks=draw(st.integers(10, 16), label="source blocks"), huge_pages=False, device=device
            ),
            "limits": LimitConfig(staging_bytes=1024),
            "checksum": checksum,
        }
        self.pair = Pair(
            fabric=Fabric(auto=False, landed_required=draw(st.booleans(), label="landed_required")),
            wire=Wire(auto=False),
            allocator=make_allocator(name, **ALLOCATORS[name]),
            choices=self.choices,
            undisturbed=not faults,
            receiver={
                "pool": pool, "checksum": checksum, "results": ResultConfig(tokens=RESULT_TOKENS, copy_threads=0),
                "limits": LimitConfig(grant_blocks_max=draw(st.integers(0, 3), label="grant_blocks_max")),
            },
            sender=self.sender_changes,
        )  # fmt: skip
        self.held: list[Outcome] = []
        self.dead: list[SenderWorker] = []
        self.gone: list[SenderWorker] = []
        self.copies_held = False
        self._watch_physics()
        self.requests: dict[int, Any] = dict(enumerate(draw(REQUESTS, label="requests"), start=1))
        self.payloads = {room: payload_of(room, r["tokens"], mrope=r["mrope"]) for room, r in self.requests.items()}
        for room, request in self.requests.items():
            self.pair.sender.submit(room, self.payloads[room])
            self.pair.receiver.submit(room, early_tokens=request["early"], lease=request["lease"])

    def _watch_physics(self) -> None:
        """Bytes are seen where they arrive; the receiver's own word on them is not asked."""
        worker, observer = self.pair.receiver, self.pair.observer
        worker.reporter.wrote = lambda *arguments: None  # type: ignore[method-assign]

        def arrived(arrival: Arrival) -> None:
            room, epoch, rank, seq = arrival.key
            shut = [ref for ref in arrival.blocks if not worker.ledger.may_write(ref, room, epoch, seq)]
            trespass = f"room {room} seq {seq} wrote to {shut}" if shut else ""
            observer.emit(0.0, Wrote(rank, room, epoch, seq, arrival.start, arrival.tokens, trespass))

        self.pair.fabric.on_arrival = arrived
        poll = worker.copier.poll
        worker.copier.poll = lambda: [] if self.copies_held else poll()  # type: ignore[method-assign]

    # --- what may happen ------------------------------------------------------------------------------

    def act(self) -> None:
        """One thing happens: mostly a round without accidents, so that accidents meet transfers under way."""
        accidents: list[Callable[[], None]] = [
            self.deliver, self.poll_receiver, self.poll_sender, self.move_bytes, self.move_bytes, self.repeat,
            self.release, self.hold_copies,
        ]  # fmt: skip
        faults: list[Callable[[], None]] = [
            self.lose, self.abort_receiver, self.abort_sender, self.kill_sender, self.kill_sender, self.prove_dead,
            self.pass_time,
        ]  # fmt: skip
        kind = self.data.draw(st.integers(0, 9), label="kind")
        if kind < 4:
            self.go()
        elif kind < 9 or not self.faults_left:
            accidents[self._one_of(accidents)]()
        else:
            self.faults_left -= 1
            faults[self._one_of(faults)]()

    def go(self) -> None:
        """A round without accidents; writes that begin in it are under way when it is over."""
        for flight in self.pair.fabric.flights:
            self.pair.fabric.step(flight.key)
        self.pair.wire.deliver_all()
        self.poll_receiver()
        self.pair.wire.deliver_all()
        self.poll_sender()

    def _one_of(self, many: Any) -> int:
        return self.data.draw(st.integers(0, len(many) - 1), label="which")

    def deliver(self) -> None:
        if self.pair.wire.letters:
            self.pair.wire.deliver(self._one_of(self.pair.wire.letters))

    def repeat(self) -> None:
        if self.pair.wire.letters:
            self.pair.wire.deliver(self._one_of(self.pair.wire.letters), keep=True)

    def lose(self) -> None:
        if self.pair.wire.letters:
            self.pair.wire.drop(self._one_of(self.pair.wire.letters))

    def move_bytes(self) -> None:
        if self.pair.fabric.flights:
            self.pair.fabric.step(self._one_of(self.pair.fabric.flights))

    def poll_receiver(self) -> None:
        for outcome in self.pair.receiver.poll():
            self.pair.outcomes[outcome.room] = outcome
            if outcome.state is State.SUCCESS:
                assert wrong_with(outcome, self.payloads[outcome.room]) == ""
                self.held.append(outcome)

    def poll_sender(self) -> None:
        for ended in self.pair.sender.poll():
            self.pair.sender_outcomes[ended.room] = ended

    def hold_copies(self) -> None:
        self.copies_held = not self.copies_held

    def release(self) -> None:
        """What was handed out is still what it was, and goes back."""
        if self.held:
            outcome = self.held.pop(self._one_of(self.held))
            assert wrong_with(outcome, self.payloads[outcome.room]) == ""
            (outcome.result or outcome.lease).release()  # type: ignore[union-attr]

    def abort_receiver(self) -> None:
        rooms = [room for room in self.requests if room not in self.pair.outcomes]
        if rooms:
            self.pair.receiver.abort(rooms[self._one_of(rooms)])

    def abort_sender(self) -> None:
        rooms = sorted(self.pair.sender.sender.rooms)
        if rooms:
            self.pair.sender.abort(rooms[self._one_of(rooms)])

    def pass_time(self) -> None:
        self.pair.clock.now += 2.5

    def kill_sender(self) -> None:
        """The process ends, its writes go on for a while, and its successor is handed what has not ended."""
        if len(self.dead) + len(self.gone) == 2:
            return
        old = self.pair.sender
        self.dead.append(old)
        self.pair.sender = SenderWorker(
            sender_config(self.pair.fabric, **self.sender_changes), clock=self.pair.clock,
            control=lambda hello: ServerEnd(self.pair.wire, hello), boot_id=new_boot_id(old.boot_id),
        )  # fmt: skip
        self.pair.sender_outcomes.clear()
        for room in self.requests:
            if room not in self.pair.outcomes:
                self.pair.sender.submit(room, self.payloads[room])

    def prove_dead(self) -> None:
        """The kernel says that the processes that were killed are gone."""
        while self.dead:
            old = self.dead.pop()
            self.gone.append(old)
            self.pair.fabric.sender_died(old.rank, old.boot_id)
            self.pair.receiver.transport.reports.append(  # type: ignore[attr-defined]
                Broken(old.boot_id, True, "its process is gone")
            )

    # --- the end --------------------------------------------------------------------------------------

    def run_out(self) -> None:
        """Everything under way arrives, everybody polls, and time passes where nothing else happens."""
        self.choices.data, self.copies_held = None, False
        self.data = None  # type: ignore[assignment]
        self.prove_dead()
        for _ in range(1000):
            if self.over():
                return
            busy = bool(self.pair.wire.letters or self.pair.fabric.flights or self.held)
            while self.held:
                outcome = self.held.pop()
                assert wrong_with(outcome, self.payloads[outcome.room]) == ""
                (outcome.result or outcome.lease).release()  # type: ignore[union-attr]
            self.pair.wire.deliver_all()
            self.pair.fabric.finish_all()
            self.poll_sender()
            self.poll_receiver()
            if not busy:
                self.pair.clock.now += 1.0
        raise AssertionError(f"not over: {self.pair.receiver.stats()} {self.pair.sender.stats()}")

    def over(self) -> bool:
        """Whether every request has ended on both sides and nothing is awaited."""
        receiver, sender = self.pair.receiver, self.pair.sender
        return (
            len(self.pair.outcomes) == len(self.requests)
            and not self.held
            and not sender.sender.rooms
            and receiver.receiver.resting
            and sender.sender.resting
            and not self.pair.wire.letters
            and receiver.receiver.free_result_tokens == RESULT_TOKENS
        )

    def judge(self) -> None:
        """What must hold when all is over."""
        receiver, sender = self.pair.receiver, self.pair.sender
        assert self.pair.observer.violations == []
        assert receiver.ledger.audit() is None
        assert receiver.ledger.free_count == len(receiver.ledger)
        assert sender.pool.free_blocks == sender.pool.blocks
        assert receiver.results.free_tokens == RESULT_TOKENS
        assert receiver.stats().counters.room_errors == 0
        assert not receiver._grants and not receiver._copies and not receiver._requests and not sender._writes
        if not self.faults:
            assert {outcome.state for outcome in self.pair.outcomes.values()} == {State.SUCCESS}


def run(data: st.DataObject, device: str, *, faults: bool, steps_max: int = 60) -> None:
    under_way = Run(data, device, faults=faults)
    for _ in range(data.draw(st.integers(10, steps_max), label="steps")):
        under_way.act()
    under_way.run_out()
    under_way.judge()
    under_way.pair.close()
    for old in under_way.gone:
        old.close()


@given(st.data())
@settings(max_examples=60)
def test_undisturbed_every_request_succeeds_with_its_own_bytes(data: st.DataObject) -> None:
    """Any order, any delay, any message twice, any allocator, any lag of bytes, copies and staging."""
    run(data, "cpu", faults=False)


@given(st.data())
@settings(max_examples=120)
def test_with_faults_nothing_is_wrong_and_everything_comes_back(data: st.DataObject) -> None:
    """Besides: messages lost, aborts on both sides, deadlines, a sender that dies in the middle of its writes."""
    run(data, "cpu", faults=True)


@pytest.mark.gpu
@pytest.mark.parametrize("faults", [False, True])
def test_the_same_on_a_gpu(faults: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")

    @given(st.data())
    @settings(max_examples=25)
    def on_device(data: st.DataObject) -> None:
        run(data, "cuda", faults=faults, steps_max=40)

    on_device()
