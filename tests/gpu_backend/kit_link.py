"""A two-sided transport in another process: a peer that tests can command, and kill.

The side channel, the grants and the reports go over a pipe. Both loops block on the pipe for a moment only, so
nothing here depends on how fast a machine is; ``HANG_S`` only keeps a test that hangs from hanging for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from fsm.messages import BlockRef, Epoch, Grant, Layout
from gpu_backend.pool import BlockPool, SourcePool
from gpu_backend.transports import gloo
from gpu_backend.transports.base import WriteOrder
from gpu_backend.transports.ordered import OrderedReceiver, OrderedSender

HANG_S = 120.0
SENDER, RECEIVER = 7, 5
"""The boot_ids of the first process of each side."""

Reports = list[Any]


def fill(pool: BlockPool, seed: int) -> None:
    """The same bytes in every process that fills its arena with this seed; none of them is 0."""
    arena = pool.arena
    pattern = (torch.arange(65_521, dtype=torch.int64) * 31 + seed) % 251 + 1
    for at in range(0, arena.numel(), pattern.numel()):
        part = arena.narrow(0, at, min(pattern.numel(), arena.numel() - at))
        part.copy_(pattern.narrow(0, 0, part.numel()))


def make_side(
    role: str, layout: Layout, blocks: int, boot_id: int, options: Mapping[str, Any]
) -> OrderedReceiver | OrderedSender:
    """A receiver over zeros, or a sender over ``fill(boot_id)``."""
    if role == "receiver":
        return gloo.GlooReceiver(BlockPool(layout, blocks), rank=0, boot_id=boot_id, options=options)
    pool = SourcePool(layout, blocks)
    fill(pool, boot_id)
    return gloo.GlooSender(pool, rank=0, boot_id=boot_id, options=options)


def main(pipe: Connection, role: str, layout: Layout, blocks: int, boot_id: int, options: Mapping[str, Any]) -> None:
    """The peer process: does what it is told until it is told ``leave`` or ``close``."""
    torch.set_num_threads(1)
    side = make_side(role, layout, blocks, boot_id, options)
    if isinstance(side, OrderedReceiver):
        pipe.send(("descriptors", side.descriptors()))
    die_when_written: int | None = None
    while True:
        if pipe.poll(0.0005):
            command, *arguments = pipe.recv()
            if command == "side" and isinstance(side, OrderedReceiver):
                side.on_message(*arguments)
            elif command == "side" and isinstance(side, OrderedSender):
                side.on_message(0, *arguments)
            elif command == "arena":
                pipe.send(("arena", side.pool.arena.numpy().tobytes()))
            elif command == "die when written":
                die_when_written = arguments[0]
            elif command == "leave":
                return  # without closing anything
            elif command == "close":
                side.close()
                return
            else:
                getattr(side, command)(*arguments)
        if die_when_written is not None and side.pool.arena[die_when_written]:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(side, lambda data: pipe.send(("side", data)))
        for report in side.poll():
            pipe.send(("report", report))


def flush(side: OrderedReceiver | OrderedSender, send: Callable[[bytes], None]) -> None:
    for item in side.take_outbox():
        send(item if isinstance(item, bytes) else item[1])


class Peer:
    """The other process, and the local side that talks to it."""

    def __init__(
        self,
        local: OrderedReceiver | OrderedSender,
        layout: Layout,
        blocks: int,
        boot_id: int,
        options: Mapping[str, Any],
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.local = local
        self.boot_id = boot_id
        self.pipe, theirs = context.Pipe()
        role = "sender" if isinstance(local, OrderedReceiver) else "receiver"
        self.process = context.Process(target=main, args=(theirs, role, layout, blocks, boot_id, options), daemon=True)
        self.process.start()
        theirs.close()
        self.reports: Reports = []
        """The peer's."""
        self.local_reports: Reports = []
        self.arena: bytes | None = None
        if isinstance(local, OrderedReceiver):
            self.pipe.send(("connect", 0, local.boot_id, local.descriptors()))

    def command(self, *what: Any) -> None:
        self.pipe.send(what)

    def pump(self) -> None:
        """One turn of the loop; a peer that is gone is silent."""
        try:
            flush(self.local, lambda data: self.pipe.send(("side", self.local.boot_id, data)))
            while self.pipe.poll(0.0005):
                self._take(*self.pipe.recv())
        except (EOFError, OSError):
            pass
        self.local_reports += self.local.poll()

    def _take(self, kind: str, value: Any) -> None:
        if kind == "report":
            self.reports.append(value)
        elif kind == "arena":
            self.arena = value
        elif kind == "descriptors" and isinstance(self.local, OrderedSender):
            self.local.connect(0, self.boot_id, value)
        elif kind == "side" and isinstance(self.local, OrderedSender):
            self.local.on_message(0, self.boot_id, value)
        elif kind == "side" and isinstance(self.local, OrderedReceiver):
            self.local.on_message(self.boot_id, value)

    def until(self, happened: Callable[[], object], what: str) -> None:
        deadline_s = time.monotonic() + HANG_S
        while not happened():
            assert time.monotonic() < deadline_s, f"{what} did not happen; reports: {self.local_reports}"
            self.pump()

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def grant_of(room: int, blocks: Sequence[int], layout: Layout, *, start: int = 0, sender: int = SENDER) -> Grant:
    refs = tuple(BlockRef(block, 1) for block in blocks)
    capacity = len(blocks) * layout.block_tokens
    return Grant(room, Epoch(RECEIVER, room), 0, 0, 0, start, capacity, refs, sender)


def order_of(grant: Grant, source_blocks: Sequence[int], tokens: int, skip: Sequence[str] = ()) -> WriteOrder:
    start = grant.start
    return WriteOrder(grant, tuple(source_blocks), start, tokens, start + tokens, frozenset(skip), start == 0)
