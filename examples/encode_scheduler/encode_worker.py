"""The encode worker: a process with a vision encoder, and a ``SenderWorker`` that sends what it makes.

Above it, :class:`EncodeProcess` is what the language side holds in its hands. It stands for the router of a real
deployment, which tells both workers of a request; the payload never passes through it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from examples.encode_scheduler.jobs import LAYOUT, Job, load_encoder, observing
from examples.encode_scheduler.vision import Encoded
from gpu_backend import Payload, SenderWorker, SenderWorkerConfig
from gpu_backend.config import ControlConfig, ObserveConfig, PoolConfig, TransportConfig

SOURCE_BLOCKS = 256
"""What is encoded and not yet sent waits here; what does not fit queues, and ``submit`` never refuses it for that."""

IMAGE_ID = 151_655
"""The id that stands in a prompt for each token of a picture; a language model overwrites it with the embedding."""

WAIT_S = 0.01
"""The longest sleep: new jobs come through a pipe, of which the worker does not know."""


def payload_of(encoded: Encoded) -> Payload:
    """All that one request sends. The tensors must not change until they are staged; here they never do."""
    tokens = len(encoded.embeddings)
    ids = torch.full((tokens,), IMAGE_ID, dtype=torch.int32)
    next_position = int(encoded.positions.max()) + 1
    return Payload(encoded.embeddings, ids, encoded.positions, encoded.deepstack, next_position - tokens)


def serve(line: Connection, weights: Path, address: str, transport: str, observe: ObserveConfig) -> None:
    """The life of the process: jobs come in through ``line``, payloads leave through the worker."""
    torch.set_num_threads(1)  # torch's own pool of threads would fight with the transport's
    encoder = load_encoder(weights)
    config = SenderWorkerConfig(
        layout=LAYOUT,
        pool=PoolConfig(blocks=SOURCE_BLOCKS),
        control=ControlConfig(address=address),
        transport=TransportConfig(name=transport),
        observe=observe,
    )
    with SenderWorker(config) as worker:
        line.send(worker.address)
        todo: deque[tuple[int, Job]] = deque()
        while _take_jobs(line, todo):
            if todo:  # one picture a turn: while the encoder computes, the worker is not polled, and sends nothing
                room, job = todo.popleft()
                worker.submit(room, payload_of(encoder.encode(job.load())))
            worker.poll()  # whether a request arrived is the language side's to say; so outcomes are not looked at
            if not todo:
                worker.wait(WAIT_S)


def _take_jobs(line: Connection, todo: deque[tuple[int, Job]]) -> bool:
    """What has come in. False when the language side has hung up: then nobody waits for anything any more."""
    try:
        while line.poll():
            todo.append(line.recv())
    except (EOFError, ConnectionResetError):
        return False
    return True


class EncodeProcess:
    """The encode worker as seen from outside. Nothing here waits, but for :meth:`start` and :meth:`close`."""

    def __init__(self, weights: Path, transport: str, traces: Path | None = None) -> None:
        self._weights, self._transport, self._traces = weights, transport, traces
        self.address = "tcp://127.0.0.1:0"
        """Where it listens. The first one takes any free port; a successor takes the same again."""
        self.starts = 0
        self._spawn()

    def _spawn(self) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit threads and sockets
        self._line, theirs = spawn.Pipe()
        self.starts += 1
        observe = observing(self._traces, f"sender-{self.starts}")
        self._process = spawn.Process(
            target=serve, args=(theirs, self._weights, self.address, self._transport, observe), daemon=True
        )
        self._process.start()
        theirs.close()  # else the pipe would not end when the process does

    def start(self) -> str:
        """Wait until it listens; where. Raises EOFError if it ended instead: it has told why on standard error."""
        self.address = self._line.recv()
        return self.address

    def restart(self) -> None:
        """Start a successor. Jobs can be asked for at once; they lie in the pipe until it has loaded its weights."""
        self._line.close()
        self._spawn()

    def ask(self, room: int, job: Job) -> None:
        """Have a job encoded and sent to the room of that number."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead: the loop will see that
            self._line.send((room, job))

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is said to anybody."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """Hang up, and wait until it has ended."""
        self._line.close()
        self._process.join()
