"""What the processes of a run do: a worker each, requests handed in, content made and checked.

A *party* is one worker and its part of the plan. ``step`` moves it on by a little, so that several can take turns in
one process (the in-process transport) and each can have a process of its own (all others). Checking content goes piece
by piece between polls, so that a long result does not keep the worker from its peers.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple, cast

import torch

from fsm.events import AnyEvent, Granted
from fsm.states import BlockState, State
from gpu_backend import transports
from gpu_backend.config import ReceiverWorkerConfig, SenderWorkerConfig
from gpu_backend.control import ControlClient
from gpu_backend.launch import Abandoned, Line
from gpu_backend.layout import DEEPSTACK, FILL_IDS, INPUT_EMBEDDINGS, MROPE_POSITIONS
from gpu_backend.observe import Observer
from gpu_backend.outcomes import Delivery, Outcome
from gpu_backend.payload import Content
from gpu_backend.plan import ITEM_BYTES, Plan, Request
from gpu_backend.pool import SourceView
from gpu_backend.receiver_worker import ReceiverWorker
from gpu_backend.recorder import Recorder
from gpu_backend.sender_worker import SenderWorker
from gpu_backend.worker import new_boot_id, trace_header
from gpu_backend.workload import Positions, Prompt, prompt_positions

CHECK_PIECES = 16
"""Pieces of content that are checked between two polls: a few milliseconds."""

WAIT_S = 0.05
"""The longest sleep of a party with nothing to do; it looks at its line in between."""

PROGRESS_S = 0.2


class Ended(NamedTuple):
    """One request as one receiver rank saw it end."""

    room: int
    state: str
    reason: str
    tokens: int
    wrong: str
    """What is wrong with the content first; empty if nothing, or if there is none."""
    started_s: float
    ended_s: float
    """On the clock that all processes of a machine share."""
    resumed_at: tuple[int, ...]
    """Watermarks in the order in which the request was resumed there."""
    detail: str = ""


@dataclass
class Report:
    """What one party has to tell in the end."""

    side: str
    rank: int
    requests: list[Ended] = field(default_factory=list)
    counters: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    """At the end, by state."""
    used_blocks_max: int = 0
    quarantined_blocks_max: int = 0
    violations: list[tuple[str, str]] = field(default_factory=list)


class Contents:
    """The content of every request of a plan; positions of equal prompts are made once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._positions: dict[Prompt, tuple[Positions, int]] = {}

    def of(self, request: Request) -> Content:
        """What that request holds."""
        if request.prompt not in self._positions:
            self._positions[request.prompt] = prompt_positions(request.prompt, self.plan.model.family)
        positions, delta = self._positions[request.prompt]
        row = self.plan.model.dim * ITEM_BYTES
        levels = self.plan.model.deepstack_levels
        return Content(self.plan.seed, request.room, positions, delta, row, row * levels)


# --- receiver -------------------------------------------------------------------------------------------


class ReceiverParty:
    """A receiver rank: keeps ``in_flight`` requests under way and checks what arrives, every byte."""

    def __init__(self, worker: ReceiverWorker, plan: Plan) -> None:
        self.worker = worker
        self.plan = plan
        self.contents = Contents(plan)
        self.waiting: deque[Request] = deque()
        self.requests: dict[int, Request] = {}
        self.report = Report("receiver", worker.rank)
        self.started_s: dict[int, float] = {}
        self.resumed_at: dict[int, list[int]] = {}
        self.under_way = 0
        self._checks: deque[tuple[Outcome, float, Generator[None, None, str]]] = deque()
        worker.observer.listeners.append(self._hear)

    def begin(self) -> None:
        """Take up all requests of the plan."""
        self.add(self.plan.requests)

    def connected(self) -> bool:
        """Whether the sender has answered; moves on a little. What is sent before is sent again, but later."""
        self.worker.poll()
        return is_connected(self.worker)

    def add(self, requests: Sequence[Request]) -> None:
        """Take up more requests."""
        self.waiting.extend(requests)
        self.requests.update((request.room, request) for request in requests)

    def _hear(self, event: AnyEvent) -> None:
        if isinstance(event, Granted) and event.seq > 0 and event.receiver_rank == self.worker.rank:
            self.resumed_at.setdefault(event.room, []).append(event.start)

    @property
    def done(self) -> bool:
        """Whether every request has ended and was checked."""
        return not self.waiting and not self.under_way

    def step(self) -> bool:
        """Move on; whether there is more to do at once."""
        while self.waiting and self.under_way < self.plan.in_flight and self._may_submit(self.waiting[0]):
            self._submit(self.waiting.popleft())
        outcomes = self.worker.poll()
        for outcome in outcomes:
            self._take(outcome)
        self._watch_blocks()
        return self._check() or bool(outcomes)

    def _may_submit(self, request: Request) -> bool:
        return True

    def _submit(self, request: Request) -> None:
        self.started_s[request.room] = monotonic()
        self.worker.submit(request.room, early_tokens=self.plan.early_tokens)
        self.under_way += 1

    def _take(self, outcome: Outcome) -> None:
        now_s = monotonic()
        if outcome.result is None:
            self._note(outcome, now_s, "")
            return
        content = self.contents.of(self.requests.pop(outcome.room))
        checking = content.judging(tensors_of(outcome.result), outcome.result.position_delta)
        self._checks.append((outcome, now_s, checking))

    def _check(self) -> bool:
        """Check a few pieces; whether there are more."""
        for _ in range(CHECK_PIECES):
            if not self._checks:
                return False
            outcome, ended_s, checking = self._checks[0]
            try:
                next(checking)
            except StopIteration as ended:
                self._checks.popleft()
                assert outcome.result is not None
                outcome.result.release()
                self._note(outcome, ended_s, str(ended.value))
        return bool(self._checks)

    def _note(self, outcome: Outcome, ended_s: float, wrong: str) -> None:
        room = outcome.room
        if outcome.state == State.SUCCESS and outcome.result is None:
            wrong = "there is no result"
        started_s, resumed_at = self.started_s.pop(room), tuple(self.resumed_at.pop(room, ()))
        self.under_way -= 1
        self._ended(
            Ended(
                room, str(outcome.state), outcome.reason, outcome.total_tokens, wrong, started_s, ended_s, resumed_at,
                outcome.detail,
            )
        )  # fmt: skip

    def _ended(self, ended: Ended) -> None:
        """A request has ended and was checked."""
        self.report.requests.append(ended)

    def _watch_blocks(self) -> None:
        ledger = self.worker.ledger
        report = self.report
        used = self.plan.pool_blocks - ledger.free_count
        if used > report.used_blocks_max:
            report.used_blocks_max = used

    def finish(self) -> Report:
        """The report, when everything has ended."""
        stats = self.worker.stats()
        self.report.counters = counters_of(stats)
        self.report.blocks = dict(stats.blocks)
        quarantined = stats.blocks.get(str(BlockState.QUARANTINED), 0)
        self.report.quarantined_blocks_max = max(self.report.quarantined_blocks_max, quarantined)
        self.report.violations = [(found.property, found.text) for found in self.worker.observer.violations]
        return self.report


def is_connected(worker: ReceiverWorker) -> bool:
    """Whether the sender has answered the hello of this worker."""
    return cast(ControlClient, worker.control).connected


def tensors_of(delivery: Delivery) -> dict[str, torch.Tensor | None]:
    """A result by item."""
    tensors = delivery.tensors
    return {
        INPUT_EMBEDDINGS: tensors.input_embeddings, FILL_IDS: tensors.fill_ids,
        MROPE_POSITIONS: tensors.mrope_positions, DEEPSTACK: tensors.deepstack,
    }  # fmt: skip


def counters_of(stats: Any) -> dict[str, Any]:
    """A worker's counters as plain data."""
    return {name: getattr(stats.counters, name) for name in stats.counters.__dataclass_fields__}


# --- sender ---------------------------------------------------------------------------------------------


class SenderParty:
    """A sender rank: hands every request in, in order, and makes its content where it will be read from."""

    def __init__(self, worker: SenderWorker, plan: Plan) -> None:
        self.worker = worker
        self.plan = plan
        self.contents = Contents(plan)
        self.report = Report("sender", worker.rank)
        self.left = 0

    @property
    def transport(self) -> tuple[str, str]:
        """What carries the payload, and why that."""
        name = self.worker.transport.traits.name
        if self.plan.transport != "auto":
            return name, "as asked for"
        return name, transports.auto(self.plan.device)[1]

    def begin(self) -> None:
        """Take up all requests of the plan: those that cannot be staged yet queue."""
        self.add(self.plan.requests)

    def add(self, requests: Sequence[Request]) -> None:
        """Take up more requests."""
        for request in requests:
            self._submit(request)
        self.left += len(requests)

    def _submit(self, request: Request) -> None:
        content = self.contents.of(request)
        self.worker.submit(
            request.room,
            request.tokens,
            fill=functools.partial(fill_views, content),
            has_deepstack=self.plan.model.deepstack_levels > 0,
            position_delta=content.position_delta,
        )

    @property
    def done(self) -> bool:
        """Whether every request has ended."""
        return self.left == 0

    def step(self) -> bool:
        """Move on; whether there is more to do at once."""
        outcomes = self.worker.poll()
        for outcome in outcomes:
            self.left -= 1
            self.report.requests.append(
                Ended(
                    outcome.room, str(outcome.state), outcome.reason, outcome.total_tokens, "", 0.0, monotonic(), (),
                    outcome.detail,
                )
            )  # fmt: skip
        return bool(outcomes)

    def finish(self) -> Report:
        """The report, when everything has ended."""
        stats = self.worker.stats()
        self.report.counters = counters_of(stats)
        self.report.blocks = dict(stats.blocks)
        self.report.violations = [(found.property, found.text) for found in self.worker.observer.violations]
        return self.report


def fill_views(content: Content, views: Sequence[SourceView]) -> None:
    """Make a request's content in place, in the source pool."""
    for view in views:
        content.fill(INPUT_EMBEDDINGS, view.input_embeddings, view.first)
        content.fill(FILL_IDS, view.fill_ids, view.first)
        content.fill(MROPE_POSITIONS, view.mrope_positions, view.first)
        if view.deepstack is not None:
            content.fill(DEEPSTACK, view.deepstack, view.first)


# --- processes ------------------------------------------------------------------------------------------

Party = ReceiverParty | SenderParty


def prepare() -> None:
    """What every process of a run does first: one thread for arithmetic (a second one only gets in the way)."""
    torch.set_num_threads(1)


def make_sender(plan: Plan, rank: int, address: str = "tcp://127.0.0.1:0", boot: int = 0) -> SenderWorker:
    """The worker of a sender rank."""
    config, boot_id = plan.sender_config(rank, address), new_boot_id()
    return SenderWorker(config, observer=make_observer(plan, config, boot_id, boot), boot_id=boot_id)


def make_receiver(plan: Plan, rank: int, address: str, store: str = "", boot: int = 0) -> ReceiverWorker:
    """The worker of a receiver rank, whose sender listens at ``address``."""
    config, boot_id = plan.receiver_config(rank, address, store), new_boot_id()
    return ReceiverWorker(config, observer=make_observer(plan, config, boot_id, boot), boot_id=boot_id)


def await_go(line: Line, party: Party) -> None:
    """Answer whoever says hello, until told to go."""
    while (told := line.told(0.001)) is None:
        party.step()
    if told[0] != "go":
        raise Abandoned


def connect(line: Line, party: ReceiverParty) -> None:
    """Wait until the sender has answered, or the parent says that it is over."""
    while not party.connected():
        if line.told(0.001) is not None:
            raise Abandoned


def make_observer(plan: Plan, config: ReceiverWorkerConfig | SenderWorkerConfig, boot_id: int, boot: int) -> Observer:
    """What watches a worker of this plan, which was started ``boot`` times before. Whoever makes the run closes it, and
    with it the trace."""
    header = trace_header(config, boot_id, {"boot": boot, "seed": plan.seed, "model": plan.model.name})
    path = plan.trace_path(header.side, header.rank, boot)
    return Observer(
        checks=plan.checks,
        recorder=Recorder(header, trace=path, trace_flush=plan.trace_flush) if path else None,
        undisturbed=plan.undisturbed,
    )


def run_parties(line: Line, parties: Sequence[Party]) -> None:
    """Move parties on until told to end; tell of progress, and give the reports when told that all is over."""
    try:
        _run_parties(line, parties)
    finally:
        for party in parties:
            party.worker.observer.close()


def _run_parties(line: Line, parties: Sequence[Party]) -> None:
    told_at_s = 0.0
    reported = False
    while True:
        busy = [party.step() for party in parties]
        told = line.told()
        if told is not None and told[0] == "end":
            return
        if told is not None and told[0] == "report":
            line.say("report", [party.finish() for party in parties])
        if not reported and all(party.done for party in parties):
            reported = True
            line.say("done")
        now_s = monotonic()
        if now_s - told_at_s > PROGRESS_S:
            told_at_s = now_s
            line.say("progress", sum(len(party.report.requests) for party in parties))
        if not any(busy):
            _rest(parties)


def _rest(parties: Sequence[Party]) -> None:
    if len(parties) == 1:
        parties[0].worker.wait(WAIT_S)
    else:
        os.sched_yield()  # what one of them waits for, another one does


__all__ = [
    "Contents", "Ended", "Party", "ReceiverParty", "Report", "SenderParty", "await_go", "connect", "fill_views",
    "is_connected", "make_receiver", "make_sender", "prepare", "run_parties", "tensors_of",
]  # fmt: skip
