"""What the tests of the one-sided transports share: pools with known bytes, grants, and a child that has one side.

Whether the right bytes arrived is judged token by token through the pools' typed views; no span is computed here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from fsm.messages import BlockRef, Epoch, Grant, Layout
from gpu_backend.pool import BlockPool, SourcePool
from gpu_backend.transports import make_receiver, make_sender
from gpu_backend.transports.base import SenderTransport, WriteKey, WriteOrder

PATIENCE_S = 60.0
"""How long a test waits for what must come; only a hang takes so long."""

T = TypeVar("T")


def fill(pool: BlockPool, seed: int) -> None:
    """Every byte of the arena, drawn from the seed."""
    made = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (min(pool.map.bytes, 1 << 20),), dtype=torch.uint8, generator=made)
    noise = noise.to(pool.device)
    for begin in range(0, pool.map.bytes, len(noise)):
        part = pool.arena[begin : begin + len(noise)]
        part.copy_(noise[: len(part)].roll(begin // len(noise)))


def source_of(layout: Layout, blocks: int, seed: int = 1, device: str = "cpu") -> SourcePool:
    """A source pool full of noise."""
    pool = SourcePool(layout, blocks, device=device)
    fill(pool, seed)
    return pool


def tokens_of(pool: BlockPool, blocks: Sequence[int], start: int, tokens: int) -> dict[str, bytes]:
    """The bytes of each item of these tokens, gathered one token after the other (R10)."""
    size = pool.layout.block_tokens
    found = {}
    for item in pool.map.items:
        view = pool.view(item.name)
        rows = [view[blocks[(start + i) // size], (start + i) % size] for i in range(tokens)]
        found[item.name] = b"".join(row.contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes() for row in rows)
    return found


def header_of(pool: BlockPool, block: int) -> bytes:
    """The aux header of a block, all of it."""
    return bytes(pool.headers[block].view(torch.uint8).cpu().numpy().tobytes())


def arena_of(pool: BlockPool) -> bytes:
    """All bytes of the arena."""
    return bytes(pool.arena.cpu().numpy().tobytes())


def grant_of(
    blocks: Sequence[int],
    capacity: int,
    *,
    room: int = 1,
    boot_id: int = 77,
    counter: int = 1,
    receiver_rank: int = 0,
    seq: int = 0,
    start: int = 0,
) -> Grant:
    """A grant of these blocks, all of generation 1."""
    refs = tuple(BlockRef(block, 1) for block in blocks)
    return Grant(room, Epoch(boot_id, counter), 0, receiver_rank, seq, start, capacity, refs, 5)


def order_of(
    grant: Grant,
    source_blocks: Sequence[int],
    tokens: int | None = None,
    *,
    skip: frozenset[str] = frozenset(),
) -> WriteOrder:
    """The whole grant, from the same token of the source on."""
    count = grant.capacity if tokens is None else tokens
    return WriteOrder(
        grant, tuple(source_blocks), grant.start, count, grant.start + count, skip, first=grant.start == 0
    )


def until(make: Callable[[], T], what: str) -> T:
    """The first result of ``make`` that is not empty."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        found = make()
        if found:
            return found
        os.sched_yield()
    raise AssertionError(f"{what}: nothing within {PATIENCE_S} s")


def ends_of(
    sender: SenderTransport, keys: Sequence[WriteKey], also: Callable[[], Any] = lambda: None
) -> dict[WriteKey, Any]:
    """Polls until each of these writes has ended: the report of each. Each may come once only."""
    ends: dict[WriteKey, Any] = {}

    def turn() -> bool:
        also()
        for report in sender.poll():
            key = WriteKey(*report[:4])
            assert key in keys, f"unexpected {report}"
            assert key not in ends, f"ended twice: {report}"
            ends[key] = report
        return len(ends) == len(keys)

    until(turn, f"the ends of {keys}")
    return ends


class Child:
    """A process with one side of a transport. It polls it all the time and does what it is told in between."""

    def __init__(self, role: str, layout: Layout, blocks: int, **arguments: Any) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, role, layout, blocks, arguments), daemon=True)
        self.process.start()
        theirs.close()
        assert self.pipe.poll(PATIENCE_S), "the child did not start"
        assert self.pipe.recv() == "ready"

    def ask(self, command: str, *arguments: Any) -> Any:
        """What the child answers."""
        self.pipe.send((command, arguments))
        assert self.pipe.poll(PATIENCE_S), f"no answer to {command}"
        return self.pipe.recv()

    def signal(self, number: int) -> None:
        """To the process of the child, which this object started."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self.process.join(PATIENCE_S)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.pipe.close()


def _serve(pipe: Connection, role: str, layout: Layout, blocks: int, arguments: Mapping[str, Any]) -> None:
    torch.set_num_threads(1)
    arguments = dict(arguments)
    os.environ.update(arguments.pop("environment", {}))
    name, device = arguments.pop("transport"), arguments.pop("device", "cpu")
    pool: Any
    side: Any
    if role == "receiver":
        pool = BlockPool(layout, blocks, device=device)
        side = make_receiver(name, pool, **arguments)
    else:
        pool = source_of(layout, blocks, device=device)
        side = make_sender(name, pool, **arguments)
    reports: list[Any] = []
    pipe.send("ready")
    while True:
        reports += side.poll()
        if not pipe.poll():
            os.sched_yield()
            continue
        command, given = pipe.recv()
        if command == "reports":
            pipe.send(reports)
            reports = []
        elif command == "tokens":
            pipe.send(tokens_of(pool, *given))
        elif command == "header":
            pipe.send(header_of(pool, *given))
        elif command == "traits":
            pipe.send(side.traits)
        elif command == "counts":
            pipe.send(side.counts)
        elif command == "fill":
            fill(pool, *given)
            pipe.send(None)
        elif command == "pause":
            time.sleep(*given)
            pipe.send(None)
        else:
            pipe.send(getattr(side, command)(*given))
