"""Communicators for tests: two ends that a test joins, and whose every piece it moves by hand.

As with the real ones, the n-th chunk sent meets the n-th chunk received, piece by piece, whatever they are. Unlike
the real ones, a piece whose two sizes differ is noticed, and whatever was posted is kept in a record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from gpu_backend.pool import BlockPool, SourcePool
from gpu_backend.transports.base import Traits
from gpu_backend.transports.communicator import Chunk, Communicator, Piece, Work, gather, scatter
from gpu_backend.transports.ordered import OrderedReceiver, OrderedSender

TRAITS = Traits("fake", False, False, ("cpu",), True, False, "a test says so")


class FakeCommunicator(Communicator):
    """One end. ``posted`` holds the sizes in bytes of every piece of every chunk, in the order of posting."""

    def __init__(self) -> None:
        self.posted: list[list[int]] = []
        self.queue: deque[tuple[deque[Piece], Work]] = deque()
        self.is_ready = True
        self.failure: str | None = None
        self.closed = False
        self.is_quiescent = False
        self.hold_quiescence = False

    @property
    def over(self) -> bool:
        return self.closed or self.failure is not None

    @property
    def ready(self) -> bool:
        return self.is_ready

    @property
    def error(self) -> str | None:
        return self.failure

    @property
    def quiescent(self) -> bool:
        return self.is_quiescent

    def post_send(self, chunk: Chunk) -> Work:
        return self._post(chunk)

    def post_recv(self, chunk: Chunk) -> Work:
        return self._post(chunk)

    def _post(self, chunk: Chunk) -> Work:
        assert not self.closed, "posted on a communicator that was closed"
        pieces = deque(chunk.pieces)
        assert len(pieces) == chunk.length
        work = Work()
        self.posted.append([piece_bytes(piece) for piece in pieces])
        self.queue.append((pieces, work))
        return work

    def close(self) -> None:
        self.closed = True
        self.is_quiescent = not self.hold_quiescence

    def join(self, timeout_s: float) -> bool:
        return self.is_quiescent


def piece_bytes(piece: Piece) -> int:
    return sum(part.numel() for part in piece)


class Link:
    """Both ends between one sender process and one receiver process."""

    def __init__(self) -> None:
        self.sender = FakeCommunicator()
        self.receiver = FakeCommunicator()

    def step(self) -> bool:
        """Move one piece; false if there is nothing to move, or if an end is gone."""
        sending, receiving = self.sender.queue, self.receiver.queue
        if not sending or not receiving or self.sender.over or self.receiver.over:
            return False
        (out_pieces, out_work), (in_pieces, in_work) = sending[0], receiving[0]
        out, into = out_pieces.popleft(), in_pieces.popleft()
        assert piece_bytes(out) == piece_bytes(into), "the two sides cut differently: a real library would hang here"
        buffer = torch.empty(piece_bytes(out), dtype=torch.uint8)
        gather(out, buffer)
        scatter(buffer, into)
        assert bool(out_pieces) == bool(in_pieces), "the two sides cut into different numbers of pieces"
        if not out_pieces:
            sending.popleft()
            receiving.popleft()
            out_work.done = in_work.done = True
        return True

    def run(self) -> None:
        while self.step():
            pass


class Network:
    """All links, by (receiver's boot_id, sender's boot_id). An end that nobody has joined yet just waits."""

    def __init__(self) -> None:
        self.links: dict[tuple[int, int], Link] = {}

    def link(self, receiver_boot_id: int, sender_boot_id: int) -> Link:
        return self.links.setdefault((receiver_boot_id, sender_boot_id), Link())


class FakeReceiver(OrderedReceiver):
    traits = TRAITS

    def __init__(self, pool: BlockPool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        self.network: Network = options["network"]

    def _address(self) -> bytes:
        return b"here"

    def _join(self, boot_id: int) -> Communicator:
        return self.network.link(self.boot_id, boot_id).receiver


class FakeSender(OrderedSender):
    traits = TRAITS

    def __init__(self, pool: SourcePool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        self.network: Network = options["network"]

    def _join(self, boot_id: int, address: bytes) -> Communicator:
        assert address == b"here"
        return self.network.link(boot_id, self.boot_id).sender
