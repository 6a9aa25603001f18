"""What a run with real processes consists of: requests, ranks, sizes, and the configurations that follow.

A plan is plain data. Every process of the run gets the whole of it and works out its own part: which requests there
are, what they hold, and how its worker is set up. So nothing about content passes from the sender to the receiver but
through the transport that is under test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fsm.allocators import ALLOCATORS
from fsm.errors import LocalError
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
    validate_config,
)
from gpu_backend.transports import MODULES
from gpu_backend.workload import HEADER_BYTES, Model, Prompt, prompt_tokens

ITEM_BYTES = 2
"""Of one element of an embedding, in bfloat16."""

MEMORY_SHARE = 0.8
"""So much of the memory that is free may be asked for."""

_LATER_LIFE = re.compile(r"(sender|receiver)-\d+-\d+\.jsonl")
"""The name of a trace of a process that was started again."""


class Request(NamedTuple):
    """One request: its room, its prompt, its length in tokens."""

    room: int
    prompt: Prompt
    tokens: int


@dataclass(frozen=True)
class Plan:
    """A run. Raises :class:`LocalError`, naming the option, for what cannot be run."""

    model: Model
    prompts: tuple[Prompt, ...]
    seed: int = 0
    transport: str = "auto"
    transport_options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    receivers: int = 1
    senders: int = 1
    pool_blocks: int = 64
    block_tokens: int = 128
    source_blocks: int = 0
    """0: room for the two longest requests."""
    grant_blocks_max: int = 0
    allocator: str = "fifo"
    in_flight: int = 4
    """So many requests are under way at one time, those whose content is being checked included."""
    early_tokens: int = 0
    """Ask for so many tokens before the length is known; 0: wait for it."""
    checksum: str = "none"
    timing: TimingConfig = field(default_factory=lambda: TimingConfig(heartbeat_s=0.0))
    """Without heartbeats a count of messages is a count of what requests cost."""
    trace: str = ""
    """A directory, or nothing."""
    kills: tuple[str, ...] = ()
    """Who is killed and when, as ``gpu_backend.kills`` reads it."""
    checks: bool = True
    """Run the checkers of the protocol's properties in every process."""
    undisturbed: bool = True
    """No fault is made in this run, so that a request that fails breaks a property."""
    first_room: int = 1
    copy_threads: int = 1

    def __post_init__(self) -> None:
        for name, value in (
            ("requests", len(self.prompts)), ("ranks", self.receivers), ("senders", self.senders),
            ("pool-blocks", self.pool_blocks), ("block-tokens", self.block_tokens), ("in-flight", self.in_flight),
        ):  # fmt: skip
            if value < 1:
                raise LocalError(f"{name}={value}: expected 1 or more")
        if self.allocator not in ALLOCATORS:
            raise LocalError(f"allocator '{self.allocator}': unknown; expected one of {', '.join(ALLOCATORS)}")
        if self.checksum not in ("none", "header", "full"):
            raise LocalError(f"checksum '{self.checksum}': unknown; expected one of none, header, full")
        if self.transport not in ("auto", *MODULES):
            raise LocalError(f"transport '{self.transport}': unknown; expected one of auto, {', '.join(MODULES)}")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise LocalError(f"device '{self.device}': expected cpu, cuda or cuda:N")
        if self.early_tokens > self.total_tokens_max:
            raise LocalError(f"early={self.early_tokens}: expected at most {self.total_tokens_max}, the longest one")
        if 0 < self.source_blocks < self.blocks_of(self.tokens_max):
            raise LocalError(
                f"source-blocks={self.source_blocks}: expected at least {self.blocks_of(self.tokens_max)}, what the "
                "longest request needs"
            )

    # --- sizes ----------------------------------------------------------------------------------------

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        """All requests, in the order in which they are submitted."""
        family = self.model.family
        lengths = {prompt: prompt_tokens(prompt, family) for prompt in set(self.prompts)}
        return tuple(
            Request(self.first_room + index, prompt, lengths[prompt]) for index, prompt in enumerate(self.prompts)
        )

    @cached_property
    def tokens_max(self) -> int:
        """The longest request."""
        return max(request.tokens for request in self.requests)

    @property
    def total_tokens_max(self) -> int:
        """What is configured as the longest that is accepted: tight, since early grants reserve as much."""
        return self.tokens_max

    @property
    def tokens(self) -> int:
        """Of all requests together."""
        return sum(request.tokens for request in self.requests)

    @property
    def payload_bytes(self) -> int:
        """What one receiver rank gets."""
        return self.tokens * self.model.token_bytes + len(self.requests) * HEADER_BYTES

    @property
    def block_bytes(self) -> int:
        """Of one landing block."""
        return self.block_tokens * self.model.token_bytes

    def blocks_of(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.block_tokens)

    @property
    def sender_blocks(self) -> int:
        """Of each sender rank's source pool."""
        return self.source_blocks or 2 * self.blocks_of(self.tokens_max)

    @property
    def result_tokens(self) -> int:
        """Result memory of each receiver rank."""
        return self.tokens_max * min(self.in_flight, len(self.requests))

    @property
    def memory_bytes(self) -> int:
        """What all processes allocate for payloads."""
        receiver = self.pool_blocks * self.block_bytes + self.result_tokens * self.model.token_bytes
        return self.receivers * receiver + self.senders * self.sender_blocks * self.block_bytes

    def check_memory(self) -> None:
        """Refuse what would fill this machine's memory. Raises :class:`LocalError` with the figures."""
        free = free_memory_bytes() if self.device == "cpu" else 0
        if free and self.memory_bytes > MEMORY_SHARE * free:
            raise LocalError(
                f"this run needs {self.memory_bytes / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; "
                "lower --pool-blocks, --in-flight, --ranks or the lengths, or take a smaller --model"
            )

    @property
    def trace_flush(self) -> str:
        """Where faults are made, what a process saw until it was killed must be there afterwards."""
        return "second" if self.undisturbed else "event"

    def make_trace_directory(self) -> None:
        """Make it, if traces are wanted, and take away what later lives of an earlier run have left there: all traces
        of a directory are read as those of one run. Raises :class:`LocalError` if that cannot be."""
        if not self.trace:
            return
        try:
            directory = Path(self.trace)
            directory.mkdir(parents=True, exist_ok=True)
            for path in directory.iterdir():
                if _LATER_LIFE.fullmatch(path.name):
                    path.unlink()
        except OSError as error:
            raise LocalError(f"--trace {self.trace}: cannot be made: {error.strerror or error}") from None

    # --- configurations -------------------------------------------------------------------------------

    def trace_path(self, side: str, rank: int, boot: int = 0) -> str:
        """The trace file of that process; empty if none is wanted."""
        name = f"{side}-{rank}" + (f"-{boot}" if boot else "")
        return str(Path(self.trace) / f"{name}.jsonl") if self.trace else ""

    def _common(self) -> dict[str, Any]:
        return {
            "layout": LayoutConfig(
                dim=self.model.dim, block_tokens=self.block_tokens, deepstack_levels=self.model.deepstack_levels
            ),
            "transport": TransportConfig(name=self.transport, options=dict(self.transport_options)),
            "timing": self.timing,
            "checksum": self.checksum,
        }

    def receiver_config(self, rank: int, address: str, store: str = "") -> ReceiverWorkerConfig:
        """Of receiver rank ``rank``, whose sender listens at ``address``."""
        config = ReceiverWorkerConfig(
            **self._common(),
            pool=PoolConfig(blocks=self.pool_blocks, device=self.device, allocator=self.allocator),
            results=ResultConfig(tokens=self.result_tokens, copy_threads=self.copy_threads),
            ranks=RankConfig(rank=rank, receivers=self.receivers, senders=self.senders, store=store),
            control=ControlConfig(address=address),
            limits=LimitConfig(total_tokens_max=self.total_tokens_max, grant_blocks_max=self.grant_blocks_max),
        )
        return validate_config(config, source=f"receiver {rank}")

    def sender_config(self, rank: int, address: str = "tcp://127.0.0.1:0") -> SenderWorkerConfig:
        """Of sender rank ``rank``, which listens at ``address``."""
        config = SenderWorkerConfig(
            **self._common(),
            pool=PoolConfig(blocks=self.sender_blocks, device=self.device),
            ranks=RankConfig(rank=rank, receivers=self.receivers, senders=self.senders),
            control=ControlConfig(address=address),
            limits=LimitConfig(total_tokens_max=self.total_tokens_max),
        )
        return validate_config(config, source=f"sender {rank}")

    @property
    def idle_senders(self) -> int:
        """Sender ranks that no receiver rank is served by; they take no part."""
        return max(0, self.senders - self.receivers)


def free_memory_bytes() -> int:
    """Memory that can be had without swapping; 0 where nobody tells (Linux tells)."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


__all__ = ["Plan", "Request", "free_memory_bytes"]
