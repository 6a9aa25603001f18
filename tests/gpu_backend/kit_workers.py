"""What the tests of the workers share: small configurations, payloads that tell whose they are, and a pair of workers
in one process whose clock, wire and fabric a test holds in its hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fsm.allocators import Allocator, Choices
from fsm.events import AnyEvent
from fsm.states import BlockState
from gpu_backend.config import (
    ControlConfig,
    LayoutConfig,
    LimitConfig,
    PoolConfig,
    RankConfig,
    ReceiverWorkerConfig,
    ResultConfig,
    SenderWorkerConfig,
    TimingConfig,
    TransportConfig,
)
from gpu_backend.observe import Observer
from gpu_backend.outcomes import Outcome, SenderOutcome
from gpu_backend.pool import Payload
from gpu_backend.receiver_worker import ReceiverWorker
from gpu_backend.sender_worker import SenderWorker
from gpu_backend.transports.in_process import Fabric
from tests.gpu_backend.kit_wire import ClientEnd, ServerEnd, Wire

DIM = 8
BLOCK_TOKENS = 4
SOMEWHERE = "tcp://127.0.0.1:9"
"""An address that is never used: the wire is in memory."""

TIMING = TimingConfig(
    deadline_s=30.0, queue_deadline_s=100.0, bootstrap_s=50.0, resend_s=2.0, tombstone_s=60.0, heartbeat_s=0.0
)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def payload_of(
    room: int, tokens: int, *, mrope: bool = True, levels: int = 0, device: str = "cpu", dim: int = DIM
) -> Payload:
    """A payload whose every token differs from every other's, of the same room or another."""
    draw = torch.Generator().manual_seed(1000 * room + tokens)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**15), 2**15, shape, generator=draw, dtype=torch.int16).to(device)

    ids = torch.arange(tokens, dtype=torch.int32) + 100_000 * (room + 1)
    return Payload(
        words(tokens, dim).view(torch.bfloat16),
        ids.to(device),
        (ids[:, None] * 3 + torch.arange(3, dtype=torch.int32)).to(device) if mrope else None,
        words(tokens, dim * levels).view(torch.bfloat16) if levels else None,
        position_delta=-room - 1,
    )


def same_bits(got: torch.Tensor | None, given: torch.Tensor | None) -> bool:
    """Whether two tensors hold the same bytes; no number is compared, so a NaN equals itself."""
    if got is None or given is None:
        return got is given
    if got.shape != given.shape or got.dtype != given.dtype:
        return False
    kind = torch.int16 if got.dtype == torch.bfloat16 else got.dtype
    return torch.equal(got.view(kind).cpu(), given.view(kind).cpu())


def wrong_with(outcome: Outcome, payload: Payload) -> str:
    """What an outcome holds instead of the payload; empty if they are equal."""
    if outcome.result is not None:
        parts, delta = [outcome.result.tensors], outcome.result.position_delta
    else:
        assert outcome.lease is not None, outcome
        parts, delta = outcome.lease.views(), outcome.lease.position_delta
    for name in ("input_embeddings", "fill_ids", "mrope_positions", "deepstack"):
        given = getattr(payload, name)
        for part in parts:
            cut = given[part.first : part.first + part.tokens] if given is not None else None
            if not same_bits(getattr(part, name), cut):
                return f"{name} of tokens {part.first} to {part.first + part.tokens} differ"
    if sum(part.tokens for part in parts) != payload.tokens:
        return "tokens are missing"
    return "" if delta == payload.position_delta else f"position delta {delta}, not {payload.position_delta}"


def transport(fabric: Fabric) -> TransportConfig:
    """The in-process transport on this fabric."""
    return TransportConfig(name="in-process", options={"fabric": fabric})


def receiver_config(fabric: Fabric, **changes: Any) -> ReceiverWorkerConfig:
    """A receiver of 4 blocks of 4 tokens; ``changes`` replace sections."""
    sections: dict[str, Any] = dict(
        layout=LayoutConfig(dim=DIM, block_tokens=BLOCK_TOKENS), pool=PoolConfig(blocks=4, huge_pages=False),
        results=ResultConfig(tokens=256, copy_threads=0), control=ControlConfig(address=SOMEWHERE), timing=TIMING,
        transport=transport(fabric),
    )  # fmt: skip
    return ReceiverWorkerConfig(**{**sections, **changes})


def sender_config(fabric: Fabric, **changes: Any) -> SenderWorkerConfig:
    """A sender of 32 blocks of 4 tokens."""
    sections: dict[str, Any] = dict(
        layout=LayoutConfig(dim=DIM, block_tokens=BLOCK_TOKENS), pool=PoolConfig(blocks=32, huge_pages=False),
        timing=TIMING, transport=transport(fabric),
    )  # fmt: skip
    return SenderWorkerConfig(**{**sections, **changes})


class Pair:
    """A sender and a receiver on one wire, one fabric, one clock and one observer that checks everything.

    ``apart``: each has an observer of its own instead, made of its configuration.
    """

    def __init__(
        self,
        *,
        fabric: Fabric | None = None,
        wire: Wire | None = None,
        allocator: Allocator | None = None,
        choices: Choices | None = None,
        undisturbed: bool = True,
        apart: bool = False,
        receiver: dict[str, Any] | None = None,
        sender: dict[str, Any] | None = None,
    ) -> None:
        self.clock = Clock()
        self.fabric = fabric or Fabric()
        self.wire = wire or Wire()
        self.observer = Observer(checks=True, undisturbed=undisturbed)
        observer = None if apart else self.observer
        self.events: list[AnyEvent] = []
        self.observer.listeners.append(self.events.append)
        self.outcomes: dict[int, Outcome] = {}
        self.sender_outcomes: dict[int, SenderOutcome] = {}
        self.receiver = ReceiverWorker(
            receiver_config(self.fabric, **(receiver or {})), control=lambda hello: ClientEnd(self.wire, 0, hello),
            clock=self.clock, observer=observer, allocator=allocator, choices=choices,
        )  # fmt: skip
        self.sender = SenderWorker(
            sender_config(self.fabric, **(sender or {})), control=lambda hello: ServerEnd(self.wire, hello),
            clock=self.clock, observer=observer,
        )  # fmt: skip

    def step(self) -> None:
        """One poll of each."""
        for ended in self.sender.poll():
            self.sender_outcomes[ended.room] = ended
        for outcome in self.receiver.poll():
            self.outcomes[outcome.room] = outcome

    def run(self, done: Callable[[], bool], *, rounds_max: int = 2000) -> None:
        """Poll both until something is the case."""
        for _ in range(rounds_max):
            if done():
                return
            self.step()
        raise AssertionError(f"not done after {rounds_max} rounds: {self.receiver.stats()}, {self.sender.stats()}")

    def run_rooms(self, rooms: Sequence[int]) -> None:
        """Poll both until these rooms have ended on both sides."""
        self.run(lambda: all(room in self.outcomes and room in self.sender_outcomes for room in rooms))

    def seen(self, kind: type[Any]) -> list[Any]:
        """The events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def close(self) -> None:
        """Close both; the sender first, so that its end is known."""
        self.sender.close()
        self.receiver.close(drain_s=0.0)


def limits(**changes: int) -> LimitConfig:
    """Limits, some of them changed."""
    return LimitConfig(**changes)


def ranks(**changes: Any) -> RankConfig:
    """Ranks, some of them changed."""
    return RankConfig(**changes)


def everything_is_free(pair: Pair) -> bool:
    """L2, on the real pools."""
    pair.run(lambda: pair.receiver.receiver.resting and pair.sender.sender.resting)
    return (
        pair.receiver.ledger.free_count == len(pair.receiver.ledger)
        and pair.sender.pool.free_blocks == pair.sender.pool.blocks
        and pair.receiver.results.free_tokens == pair.receiver.results.tokens_max
        and pair.receiver.receiver.free_result_tokens == pair.receiver.results.tokens_max
    )


def counted(pair: Pair, state: BlockState) -> int:
    """Landing blocks in one state."""
    return pair.receiver.ledger.counts()[state]
