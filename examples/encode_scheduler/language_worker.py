"""The language worker: a scheduler loop with continuous batching, and a ``ReceiverWorker`` polled on every turn.

The loop is the point of this example. It never waits for a transfer. A request that is on its way is only a number in
a dictionary; the engine goes on with the requests that it has, and those that arrived join the batch on the next turn.

The language model is a toy whose vocabulary is six words, the names of the pictures: at each step it says the name,
not said yet, whose page in the encoder's book is nearest to what it was given. So it can be seen at the end whether
what arrived was of any use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from examples.encode_scheduler.encode_worker import EncodeProcess
from examples.encode_scheduler.jobs import LAYOUT, NAMES, TOKENS_MAX, Job, observing
from examples.encode_scheduler.vision import closeness, pooled
from fsm.events import AnyEvent, Granted
from gpu_backend import Outcome, ReceiverWorker, ReceiverWorkerConfig
from gpu_backend.config import ControlConfig, PoolConfig, ResultConfig, TransportConfig
from gpu_backend.outcomes import Delivery

RUNNING_MAX = 4
"""The batch of the language model."""
WORDS = len(NAMES)
"""The length of an answer: all names, the nearest first."""
ATTEMPTS_MAX = 3
WAIT_S = 0.02


@dataclass
class Request:
    """One request, from the queue to its answer."""

    job: Job
    room: int = 0
    """That of the present attempt. Each attempt has a room of its own, so that nothing said about an earlier one can be
    taken for this one."""
    attempts: int = 0
    grants: int = 0
    """Of the present attempt; all but the first are resumes."""
    reasons: list[str] = field(default_factory=list)
    """Why earlier attempts failed."""
    said: list[int] = field(default_factory=list)
    arrived: dict[str, Tensor | int | None] = field(default_factory=dict)
    """A copy of everything that came, for the comparison at the end. An engine keeps none."""
    tokens: int = 0
    pooled: Tensor | None = None
    """What the toy model keeps of a picture, as others keep keys and values."""


@dataclass
class Counts:
    """What the loop did, turn by turn."""

    turns: int = 0
    """Each has one poll."""
    empty_polls: int = 0
    """Polls during which transfers were on their way and none had ended. Each is a moment that waiting would block."""
    steps: int = 0
    """Turns on which the language model ran."""
    steps_meanwhile: int = 0
    """Of these, with a transfer on its way."""
    sleeps: int = 0
    """Turns with nothing to compute, at the end of which the loop slept until something could have happened."""
    batch_max: int = 0


def receiver_config(
    address: str, pool_blocks: int, transport: str, traces: Path | None = None
) -> ReceiverWorkerConfig:
    """The worker's configuration: three bounds on memory, and where the sender listens."""
    return ReceiverWorkerConfig(
        layout=LAYOUT,
        pool=PoolConfig(blocks=pool_blocks),
        results=ResultConfig(tokens=4 * TOKENS_MAX),
        control=ControlConfig(address=address),
        transport=TransportConfig(name=transport),
        observe=observing(traces, "receiver"),
    )


class Scheduler:
    """The loop's state: requests wait in ``queue``, are ``on_their_way``, ``ready``, ``running``, ``done``."""

    def __init__(self, worker: ReceiverWorker, encode: EncodeProcess, jobs: Sequence[Job], book: Tensor) -> None:
        self.worker, self.encode, self.book = worker, encode, book
        self.queue: deque[Request] = deque(Request(job) for job in jobs)
        self.on_their_way: dict[int, Request] = {}
        self.ready: deque[tuple[Request, Delivery]] = deque()
        self.running: list[Request] = []
        self.done: list[Request] = []
        self.failed: list[Request] = []
        self.counts = Counts()
        self._rooms = 0
        worker.observer.listeners.append(self._hear)  # only to count grants for the table

    @property
    def over(self) -> bool:
        """Whether every request has been answered, or given up."""
        return not (self.queue or self.on_their_way or self.ready or self.running)

    # --- one turn ---------------------------------------------------------------------------------------

    def turn(self) -> None:
        """What an engine does over and over again."""
        self.counts.turns += 1
        self._submit_one()
        outcomes = self.worker.poll()  # moves everything on; returns what ended; does not wait
        if self.on_their_way and not outcomes:
            self.counts.empty_polls += 1
        for outcome in outcomes:
            self._take(outcome)
        self._look_after_the_encoder()
        while self.ready and len(self.running) < RUNNING_MAX:
            self._prefill(*self.ready.popleft())
        if self.running:
            self._decode()
        elif not self.queue:
            self.counts.sleeps += 1
            self.worker.wait(WAIT_S)  # wakes up early for messages, copies that ended, a sender that died

    def _submit_one(self) -> None:
        """One request comes in a turn, as they do in life. ``submit`` takes any number: what has no memory yet waits
        inside of the worker and holds nothing."""
        if self.queue:
            request = self.queue.popleft()
            self._rooms += 1
            request.room, request.grants = self._rooms, 0
            request.attempts += 1
            self.on_their_way[request.room] = request
            self.worker.submit(request.room)
            self.encode.ask(request.room, request.job)

    def _take(self, outcome: Outcome) -> None:
        request = self.on_their_way.pop(outcome.room)
        if outcome.result is not None:
            self.ready.append((request, outcome.result))
            return
        request.reasons.append(outcome.reason)
        if request.attempts < ATTEMPTS_MAX:
            self.queue.append(request)  # again, from the start: nothing of a failed attempt is kept
        else:
            self.failed.append(request)

    def _look_after_the_encoder(self) -> None:
        """A successor for an encode worker that is gone. The worker has failed what was under way with it (PEER_GONE).
        What it had not answered to yet would wait for a successor, and the one started here knows of nothing: so that
        is ended too, and all of it comes back through :meth:`_take`. Landing blocks that the dead process could have
        written to are given to nobody before the worker has a proof that it cannot; no loop has to think of that."""
        if not self.encode.alive:
            for room in self.on_their_way:
                self.worker.abort(room)
            self.encode.restart()

    # --- the language model -------------------------------------------------------------------------------

    def _prefill(self, request: Request, delivery: Delivery) -> None:
        with delivery as result:  # gives the memory back at the end of the block: be done with it by then
            assert result.deepstack is not None and result.mrope_positions is not None
            request.tokens = result.tokens
            request.pooled = pooled(result.input_embeddings, result.deepstack)
            request.arrived = {
                "input_embeddings": result.input_embeddings.clone(),
                "deepstack": result.deepstack.clone(),
                "mrope_positions": result.mrope_positions.clone(),
                "fill_ids": result.fill_ids.clone(),
                "position_delta": result.position_delta,
            }
        self.running.append(request)

    def _decode(self) -> None:
        """One step of the model: one more word for each request of the batch."""
        self.counts.steps += 1
        self.counts.steps_meanwhile += bool(self.on_their_way)
        self.counts.batch_max = max(self.counts.batch_max, len(self.running))
        batch = torch.stack([request.pooled for request in self.running if request.pooled is not None])
        near = closeness(batch, self.book)
        for row, request in zip(near, self.running, strict=True):
            row[request.said] = -2.0  # no cosine is as small: what was said is not said again
            request.said.append(int(row.argmax()))
        self.done += [request for request in self.running if len(request.said) == WORDS]
        self.running = [request for request in self.running if len(request.said) < WORDS]

    # --- looking on -----------------------------------------------------------------------------------------

    def _hear(self, event: AnyEvent) -> None:
        if isinstance(event, Granted) and event.room in self.on_their_way:
            self.on_their_way[event.room].grants += 1

    def half_arrived(self) -> Request | None:
        """A request of which some tokens have landed, and not all."""
        for room, request in self.on_their_way.items():
            progress = self.worker.progress(room)
            if 0 < progress.watermark_tokens < progress.total_tokens:
                return request
        return None


def first_words(request: Request) -> str:
    """What the model said first: the pictures that are nearest."""
    return ", ".join(NAMES[word] for word in request.said[:2])
