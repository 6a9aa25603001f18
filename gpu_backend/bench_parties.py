"""The two processes of ``bench transfer``: several pairs of workers, one of which is at work at a time.

Each pair is one way to move a request (a pool and a size of grant of its own). All are set up first and measured in
turns, so that what slows the machine down slows all of them alike. A request is staged before the clock starts, so that
what is measured is the transfer: from the receiver's submit to Success, with the result gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

from fsm.states import State
from gpu_backend.bench_raw import RAW, RawSide, copy_s
from gpu_backend.launch import Line
from gpu_backend.parties import is_connected, make_receiver, make_sender, prepare
from gpu_backend.plan import Plan
from gpu_backend.pool import SourceView

WAIT_S = 0.005
REQUEST_TIMEOUT_S = 60.0


class Way(NamedTuple):
    """One way to move a request."""

    name: str
    plan: Plan
    lease: bool = False
    raw: bool = False
    """The yardstick works on the memory of this pair; its pools must be alike."""


class Order(NamedTuple):
    """Move one request."""

    way: str
    room: int
    tokens: int


def _leave(views: list[SourceView]) -> None:
    """Whatever the memory holds is the content: bytes cost the same whatever they are."""


def bench_sender(line: Line, ways: list[Way]) -> None:
    """A child: the sending half of every pair."""
    prepare()
    workers = {way.name: make_sender(way.plan, 0) for way in ways}
    transport = next(iter(workers.values())).transport.traits.name
    raw: RawSide | None = None
    pooled = next((way.name for way in ways if way.raw), "")
    if pooled and transport in RAW:
        raw = RAW[transport](workers[pooled].pool, True)
    line.say("ready", ({name: worker.address for name, worker in workers.items()}, transport, raw and raw.blob()))
    active = list(workers.values())
    while True:
        for worker in active:
            worker.poll()
        told = line.told()
        if told is None:
            active[0].wait(WAIT_S)
            continue
        kind, value = told
        if kind == "end":
            break
        if kind == "order":
            active = [workers[value.way]]
            _stage(active[0], value)
            line.say("staged")
        elif kind == "meet" and raw is not None:
            raw.meet(value)
            line.say("met")
        elif kind == "raw" and raw is not None:
            line.say("raw", raw.move(value))
    if raw is not None:
        raw.close()
    for worker in workers.values():
        worker.close()


def _stage(worker: Any, order: Order) -> None:
    levels = worker.config.layout.deepstack_levels
    worker.submit(order.room, order.tokens, fill=_leave, has_deepstack=levels > 0)
    while not worker.staged(order.room):
        worker.poll()


def bench_receiver(line: Line, ways: list[Way]) -> None:
    """A child: the receiving half of every pair."""
    prepare()
    addresses, transport = line.wait_for("addresses")
    workers = {way.name: make_receiver(way.plan, 0, addresses[way.name]) for way in ways}
    leases = {way.name: way.lease for way in ways}
    for worker in workers.values():
        while not is_connected(worker):
            worker.poll()
            worker.wait(WAIT_S)
    raw: RawSide | None = None
    pooled = next((way.name for way in ways if way.raw), "")
    if pooled and transport in RAW:
        raw = RAW[transport](workers[pooled].pool, False)
    line.say("ready", raw and raw.blob())
    while True:
        told = line.told(60.0)
        if told is None or told[0] == "end":
            break
        kind, value = told
        if kind == "order":
            line.say("took", _move(workers[value.way], value, leases[value.way]))
        elif kind == "meet" and raw is not None:
            raw.meet(value)
            line.say("met")
        elif kind == "raw" and raw is not None:
            raw.move(value)
        elif kind == "copy":
            line.say("copied", copy_s(workers[pooled].pool, value))
    if raw is not None:
        raw.close()
    for worker in workers.values():
        worker.close()


def _move(worker: Any, order: Order, lease: bool) -> tuple[float, int]:
    """Seconds from submit to Success, and resumes on the way."""
    resumes = worker.reporter.counters.resumes
    started_s = perf_counter()
    worker.submit(order.room, lease=lease)
    outcomes: list[Any] = []
    while not outcomes:
        outcomes = worker.poll()
        if not outcomes:
            worker.wait(0.05)
            if perf_counter() - started_s > REQUEST_TIMEOUT_S:
                raise TimeoutError(f"{order.way}: room {order.room} has not ended")
    took_s = perf_counter() - started_s
    outcome = outcomes[0]
    if outcome.state != State.SUCCESS:
        raise RuntimeError(f"{order.way}: room {order.room} failed: {outcome.reason} {outcome.detail}")
    (outcome.result or outcome.lease).release()
    while worker.ledger.free_count < worker.pool.blocks:
        worker.poll()
    worker.poll()
    return took_s, worker.reporter.counters.resumes - resumes


# --- polls ----------------------------------------------------------------------------------------------


def bench_polls(line: Line, plan: Plan, rooms: int, polls: int) -> None:
    """A child: a receiver and a sender with so many requests in flight and nothing new; seconds for each poll."""
    prepare()
    from gpu_backend.transports.in_process import Fabric

    plan.transport_options["fabric"] = Fabric(auto=False)
    with make_sender(plan, 0) as sender, make_receiver(plan, 0, sender.address) as receiver:
        while not is_connected(receiver):
            sender.poll()
            receiver.poll()
        for room in range(rooms):
            sender.submit(room, plan.tokens_max, fill=_leave)
        for room in range(rooms):
            receiver.submit(room)
        # There is one source slot, and whoever has it is never written, so all others queue.
        in_flight = receiver.reporter.counters.in_flight
        while in_flight[State.BOOTSTRAPPING]:
            sender.poll()
            receiver.poll()
            line.say("progress", rooms - in_flight[State.BOOTSTRAPPING])
        for _ in range(10):
            sender.poll()
            receiver.poll()
        line.say("polls", (_times(receiver.poll, polls), _times(sender.poll, polls)))
        line.wait_for("end")


def _times(call: Callable[[], Any], count: int) -> list[float]:
    times = []
    for _ in range(count):
        started_s = perf_counter()
        call()
        times.append(perf_counter() - started_s)
    return times


__all__ = ["Order", "Way", "bench_polls", "bench_receiver", "bench_sender"]
