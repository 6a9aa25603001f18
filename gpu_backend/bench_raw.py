"""What a transport's library does alone, over the same memory: the yardstick of ``bench transfer``.

One write (or one message) of the whole payload, in as few pieces as the library takes, with nothing around it. Both
sides are asked to prepare, exchange one blob of bytes through the parent, and then move as often as they are told.
"""

from __future__ import annotations

import os
from datetime import timedelta
from time import perf_counter
from typing import Any, Protocol

import torch

from gpu_backend.layout import Span, write_spans
from gpu_backend.pool import BlockPool

TIMEOUT_S = 60.0


class RawSide(Protocol):
    """One side of the yardstick."""

    def blob(self) -> bytes:
        """What the other side must know."""

    def meet(self, blob: bytes) -> None:
        """Take the other side's blob, and connect."""

    def move(self, tokens: int) -> float:
        """Move so many tokens, and wait until they have arrived; seconds that it took on this side."""

    def close(self) -> None:
        """Give everything back."""


def spans_between(pool: BlockPool, tokens: int) -> list[Span]:
    """The bytes of a payload that lies in the first blocks, on both sides; the pools are alike."""
    blocks = list(range(-(-tokens // pool.layout.block_tokens)))
    return write_spans(pool.map, blocks, 0, pool.map, blocks, tokens, aux=True)


class RawNixl:
    """One NIXL transfer of the whole payload."""

    def __init__(self, pool: BlockPool, sending: bool) -> None:
        from gpu_backend.transports.nixl_api import Agent

        self.pool, self.sending = pool, sending
        self.agent = Agent(f"raw/{'sender' if sending else 'receiver'}/{os.getpid()}/{pool.address:x}")
        self.memory = "VRAM" if pool.device.type == "cuda" else "DRAM"
        self.device = pool.device.index or 0
        self.agent.register(pool.address, pool.map.bytes, self.memory, self.device)
        self.peer, self.peer_address = "", 0

    def blob(self) -> bytes:
        """The arena's address and the agent's metadata."""
        return self.pool.address.to_bytes(8, "little") + self.agent.metadata()

    def meet(self, blob: bytes) -> None:
        """Add the other agent."""
        self.peer_address = int.from_bytes(blob[:8], "little")
        self.peer = self.agent.add(blob[8:])

    def move(self, tokens: int) -> float:
        """Write, or wait for the notice of a write."""
        if not self.sending:
            while not self.agent.notices():
                os.sched_yield()
            return 0.0
        spans = spans_between(self.pool, tokens)
        sources = [(self.pool.address + span.source, span.bytes, self.device) for span in spans]
        targets = [(self.peer_address + span.target, span.bytes, self.device) for span in spans]
        started_s = perf_counter()
        handle = self.agent.prepare(sources, targets, (self.memory, self.memory), self.peer, b"done")
        done = self.agent.post(handle)
        while not done:
            os.sched_yield()
            done = self.agent.check(handle)
        took_s = perf_counter() - started_s
        self.agent.release(handle)
        return took_s

    def close(self) -> None:
        """Destroy the agent."""
        if self.peer:
            self.agent.remove(self.peer)
        self.agent.close()


class RawGloo:
    """One gloo message of the whole payload, and one empty one back."""

    def __init__(self, pool: BlockPool, sending: bool) -> None:
        self.pool, self.sending = pool, sending
        self.group: Any = None
        self.store: Any = None
        self.empty = torch.empty(1, dtype=torch.uint8)

    def blob(self) -> bytes:
        """The port of the receiver's store."""
        if self.sending:
            return b""
        import torch.distributed as dist

        c10d: Any = dist
        self.store = c10d.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return str(self.store.port).encode()

    def meet(self, blob: bytes) -> None:
        """Make the group; both sides do it at the same time."""
        import torch.distributed as dist

        c10d: Any = dist
        if self.sending:
            self.store = c10d.TCPStore("127.0.0.1", int(blob), is_master=False, wait_for_workers=False)
        options = c10d.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=TIMEOUT_S)
        options._threads = 1
        options._devices = [c10d.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        self.group = c10d.ProcessGroupGloo(self.store, int(self.sending), 2, options)

    def move(self, tokens: int) -> float:
        """Send and await the answer, or receive and answer."""
        parts = [self.pool.arena[span.source : span.source + span.bytes] for span in spans_between(self.pool, tokens)]
        started_s = perf_counter()
        peer = 0 if self.sending else 1
        forth, back = (self.group.send, self.group.recv) if self.sending else (self.group.recv, self.group.send)
        for work in [forth([part], peer, 0) for part in parts]:
            work.wait()
        back([self.empty], peer, 1).wait()
        return perf_counter() - started_s

    def close(self) -> None:
        """Let go of the group."""
        self.group = self.store = None


RAW: dict[str, Any] = {"nixl": RawNixl, "gloo": RawGloo}
"""The yardsticks that there are."""


def copy_s(pool: BlockPool, tokens: int) -> float:
    """Seconds for a plain copy of so many tokens' embeddings out of the pool into touched memory."""
    source = pool.rows(0)[:tokens]
    target = torch.empty_like(source)
    target.fill_(0)
    if pool.device.type == "cuda":
        torch.cuda.synchronize(pool.device)
    started_s = perf_counter()
    target.copy_(source)
    if pool.device.type == "cuda":
        torch.cuda.synchronize(pool.device)
    return perf_counter() - started_s
