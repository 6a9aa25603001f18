"""What a request costs beside what its bytes cost: every figure a median, and what is compared is measured in turns.

Two processes, each pinned to a core. The yardstick is the transport's own library moving the same bytes between the
same memory in one piece (``raw``). Beside it whole requests, from the receiver's submit to Success with the result
gathered in one contiguous tensor per item, staged beforehand:

- *many grants*: grants of eight blocks, landing and copying out at the same time;
- *serial grants*: the pool holds one grant, so that each must be copied out before the next;
- *one exact grant*: the pool holds the request;
- *eight grants through a quarter*: the pool holds a quarter of the request;
- *lease*: one exact grant, and the landing blocks themselves handed out.

Ratios are medians over rounds of one figure over another of the same round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final, NamedTuple

from fsm.errors import LocalError
from gpu_backend.bench_parties import Order, Way, bench_polls, bench_receiver, bench_sender
from gpu_backend.cli_common import Figure
from gpu_backend.config import TimingConfig
from gpu_backend.launch import Child, Launch
from gpu_backend.plan import Plan, free_memory_bytes
from gpu_backend.workload import MODELS, QWEN25, Model, text_prompt

LARGE: Final = MODELS["qwen2.5-vl-72b"]
BLOCK_TOKENS: Final = 128
GRANT_BLOCKS: Final = 8
POOL_GRANTS: Final = 4

SIZES_MB: Final = (64, 128, 256, 512)
"""Sizes in 2**20 bytes."""
ROUNDS: Final = 7
QUICK_SIZES_MB: Final = (16,)
QUICK_ROUNDS: Final = 2

SMALL: Final = Model("tiny", QWEN25, 64)
SMALL_BLOCK_TOKENS: Final = 16
SMALL_GRANTS: Final = 32
SMALL_ROUNDS: Final = 40

POLLED: Final = 10_000
POLLS: Final = 200

CHECKSUMS: Final = ("none", "header", "full")
CHECKSUM_MB: Final = 64

PATIENT: Final = TimingConfig(
    deadline_s=600.0, queue_deadline_s=600.0, bootstrap_s=600.0, resend_s=600.0, tombstone_s=600.0, heartbeat_s=0.0
)
MEMORY_SHARE: Final = 0.6
"""Of what is free; a size that takes more is left out, and said to be."""

TARGETS: Final[dict[str, float]] = {
    "many grants over raw, %": 85.0,
    "eight grants over one, %": 87.0,
    "resume, us": 500.0,
    "poll, us": 1000.0,
}
"""What figures should reach on two quiet cores. Nothing fails if they do not."""

MANY, SERIAL, ONE, QUARTER, LEASE = "many", "serial", "one", "quarter", "lease"
RAW, COPY = "raw", "copy"

Say = Callable[[str], None]
Groups = dict[str, list[Figure]]


class Setting(NamedTuple):
    """What all parts are told."""

    device: str
    transport: str
    quick: bool
    say: Say


def measure_all(
    *, device: str, transport: str, quick: bool, parts: Sequence[str], say: Say = lambda text: None
) -> Groups:
    """Every figure, by group. Raises :class:`LocalError` for what cannot be measured here."""
    if transport == "in-process":
        raise LocalError("transport in-process has both sides in one process; expected one between processes")
    setting = Setting(device, transport, quick, say)
    groups: Groups = {}
    if "large" in parts:
        for size_mb in QUICK_SIZES_MB if quick else SIZES_MB:
            groups.update(large(setting, size_mb))
    if "checksums" in parts:
        groups.update(checksums(setting))
    if "small" in parts:
        groups.update(small(setting))
    if "polls" in parts:
        groups.update(polls(setting))
    return groups


# --- pairs of processes -------------------------------------------------------------------------------------


class _Pairs:
    """The two processes, with a pair of workers for each way."""

    def __init__(self, launch: Launch, ways: list[Way]) -> None:
        self.launch = launch
        self.ways = [way.name for way in ways]
        self.room = 0
        self.resumes: dict[str, int] = {}
        self.sender = launch.start("sender", bench_sender, ways, core=0)
        self.receiver = launch.start("receiver", bench_receiver, ways, core=1)
        addresses, self.transport, blob = self._said(self.sender, "ready")
        self.receiver.tell("addresses", (addresses, self.transport))
        back = self._said(self.receiver, "ready")
        self.raw = blob is not None and back is not None
        if self.raw:
            self.receiver.tell("meet", blob)
            self.sender.tell("meet", back)
            self._said(self.sender, "met")
            self._said(self.receiver, "met")

    def _said(self, child: Child, kind: str) -> Any:
        return self.launch.wait_for(kind, [child])[child.name]

    def request_s(self, way: str, tokens: int) -> float:
        """One request."""
        self.room += 1
        order = Order(way, self.room, tokens)
        self.sender.tell("order", order)
        self._said(self.sender, "staged")
        self.receiver.tell("order", order)
        took_s, self.resumes[way] = self._said(self.receiver, "took")
        return float(took_s)

    def raw_s(self, tokens: int) -> float:
        """The same bytes without us."""
        self.receiver.tell("raw", tokens)
        self.sender.tell("raw", tokens)
        return float(self._said(self.sender, "raw"))

    def copy_s(self, tokens: int) -> float:
        """The embeddings copied within the receiver's memory."""
        self.receiver.tell("copy", tokens)
        return float(self._said(self.receiver, "copied"))

    def rounds(self, count: int, tokens: int, *, copy: bool = True) -> dict[str, list[float]]:
        """Seconds of everything, round by round; the first round is thrown away."""
        times: dict[str, list[float]] = {}
        for _ in range(count + 1):
            if self.raw:
                times.setdefault(RAW, []).append(self.raw_s(tokens))
            for way in self.ways:
                times.setdefault(way, []).append(self.request_s(way, tokens))
            if copy:
                times.setdefault(COPY, []).append(self.copy_s(tokens))
        return {name: found[1:] for name, found in times.items()}


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over rounds of one over the other."""
    return median(a / b for a, b in zip(above, below, strict=True))


def _plan(setting: Setting, model: Model, block_tokens: int, tokens: int, pool: int, **more: Any) -> Plan:
    blocks = -(-tokens // block_tokens)
    return Plan(
        model=model, prompts=(text_prompt(tokens),), transport=setting.transport, device=setting.device,
        block_tokens=block_tokens, pool_blocks=pool, source_blocks=blocks, in_flight=1, timing=PATIENT, checks=False,
        undisturbed=False, **more,
    )  # fmt: skip


# --- large requests -----------------------------------------------------------------------------------------


def _tokens_of(size_mb: int) -> int:
    """About as many tokens, but always a multiple of eight blocks."""
    eight = 8 * BLOCK_TOKENS
    return max(1, round((size_mb << 20) / LARGE.token_bytes / eight)) * eight


def large_ways(setting: Setting, tokens: int) -> list[Way]:
    """The ways to move a large request."""
    blocks = -(-tokens // BLOCK_TOKENS)
    grant = min(GRANT_BLOCKS, blocks // 4)

    def plan(pool: int, grant_blocks_max: int = 0) -> Plan:
        return _plan(setting, LARGE, BLOCK_TOKENS, tokens, pool, grant_blocks_max=grant_blocks_max)

    return [
        Way(MANY, plan(grant * POOL_GRANTS, grant)),
        Way(SERIAL, plan(grant)),
        Way(ONE, plan(blocks), raw=True),
        Way(QUARTER, plan(blocks // 4, blocks // 8)),
        Way(LEASE, plan(blocks), lease=True),
    ]


def large(setting: Setting, size_mb: int) -> Groups:
    """Requests of one size."""
    tokens = _tokens_of(size_mb)
    ways = large_ways(setting, tokens)
    title = f"{size_mb} MB ({tokens:,} tokens of {LARGE.name})"
    needed, free = sum(way.plan.memory_bytes for way in ways), free_memory_bytes()
    if setting.device == "cpu" and free and needed > MEMORY_SHARE * free:
        return {f"{title}: left out, needs {needed / 1e9:.1f} GB of memory": []}
    setting.say(f"{size_mb} MB")
    with Launch() as launch:
        pairs = _Pairs(launch, ways)
        times = pairs.rounds(QUICK_ROUNDS if setting.quick else ROUNDS, tokens)
        launch.end()
    title += f", {pairs.transport}"
    return {title: large_figures(times, tokens, pairs.resumes)}


def large_figures(times: dict[str, list[float]], tokens: int, resumes: dict[str, int]) -> list[Figure]:
    """Rates of everything, and the ratios that matter."""
    size = tokens * LARGE.token_bytes

    def rate(name: str) -> float:
        return size / median(times[name]) / 1e9

    names = {
        RAW: "raw write, in one piece", MANY: f"request, {resumes[MANY] + 1} grants",
        SERIAL: f"request, {resumes[SERIAL] + 1} grants one after the other", ONE: "request, one exact grant",
        QUARTER: f"request, {resumes[QUARTER] + 1} grants through a quarter", LEASE: "request, leased",
        COPY: "plain copy in memory",
    }  # fmt: skip
    figures = [Figure(text, rate(name), "GB/s") for name, text in names.items() if name in times]
    percent = 100.0
    if RAW in times:
        raw = times[RAW]
        figures += [
            Figure("many grants over raw", percent * ratio(raw, times[MANY]), "%", TARGETS["many grants over raw, %"]),
            Figure("lease over raw", percent * ratio(raw, times[LEASE]), "%"),
            Figure("one exact grant over raw", percent * ratio(raw, times[ONE]), "%"),
        ]
    many_over_one = percent * ratio(times[ONE], times[MANY])
    quarter_over_one = percent * ratio(times[ONE], times[QUARTER])
    return [
        *figures,
        Figure("many grants over one exact grant", many_over_one, "%"),
        Figure("eight grants through a quarter over one", quarter_over_one, "%", TARGETS["eight grants over one, %"]),
        Figure("serial grants over many", percent * ratio(times[MANY], times[SERIAL]), "%"),
    ]


# --- checksums ----------------------------------------------------------------------------------------------


def checksums(setting: Setting) -> Groups:
    """What the checks of content cost."""
    size_mb = QUICK_SIZES_MB[0] if setting.quick else CHECKSUM_MB
    tokens = _tokens_of(size_mb)
    pool = GRANT_BLOCKS * POOL_GRANTS
    ways = [
        Way(
            mode,
            _plan(setting, LARGE, BLOCK_TOKENS, tokens, pool, grant_blocks_max=GRANT_BLOCKS, checksum=mode),
        )
        for mode in CHECKSUMS
    ]
    setting.say("checksums")
    with Launch() as launch:
        pairs = _Pairs(launch, ways)
        times = pairs.rounds(QUICK_ROUNDS if setting.quick else ROUNDS, tokens, copy=False)
        launch.end()
    figures = [
        Figure(f"checksum {mode}, time over none", ratio(times[mode], times["none"]), "x", None, "less")
        for mode in ("header", "full")
    ]
    return {f"checksums, {size_mb} MB in grants of {GRANT_BLOCKS} blocks, {pairs.transport}": figures}


# --- small requests -----------------------------------------------------------------------------------------


def small(setting: Setting) -> Groups:
    """What a resume costs beyond its bytes: tiny chunks, the same request in many grants and in one."""
    tokens = SMALL_BLOCK_TOKENS * SMALL_GRANTS
    ways = [
        Way(MANY, _plan(setting, SMALL, SMALL_BLOCK_TOKENS, tokens, 1)),
        Way(ONE, _plan(setting, SMALL, SMALL_BLOCK_TOKENS, tokens, SMALL_GRANTS), raw=True),
    ]
    setting.say("resumes")
    with Launch() as launch:
        pairs = _Pairs(launch, ways)
        times = pairs.rounds(3 if setting.quick else SMALL_ROUNDS, tokens, copy=False)
        launch.end()
    resumes = max(1, pairs.resumes[MANY])
    costs = [(many - one) / resumes * 1e6 for many, one in zip(times[MANY], times[ONE], strict=True)]
    note = f"chunks of {SMALL_BLOCK_TOKENS * SMALL.token_bytes:,} bytes, one at a time"
    return {
        f"small requests of {tokens * SMALL.token_bytes:,} bytes, {pairs.transport}": [
            Figure("request, one exact grant", median(times[ONE]) * 1e6, "us"),
            Figure("cost of a resume", median(costs), "us", TARGETS["resume, us"], "less", note),
        ]
    }


# --- polls --------------------------------------------------------------------------------------------------


def polls(setting: Setting) -> Groups:
    """A poll of many requests about which there is nothing new."""
    rooms = POLLED // 10 if setting.quick else POLLED
    plan = Plan(
        model=SMALL, prompts=(text_prompt(SMALL_BLOCK_TOKENS),), transport="in-process", pool_blocks=64,
        block_tokens=SMALL_BLOCK_TOKENS, source_blocks=1, in_flight=1, timing=PATIENT, checks=False, undisturbed=False,
    )  # fmt: skip
    setting.say(f"{rooms:,} requests in flight")
    with Launch() as launch:
        child = launch.start("worker", bench_polls, plan, rooms, POLLS, core=0)
        receiver, sender = launch.wait_for("polls", [child], 300.0)["worker"]
        launch.end()
    return {
        f"{rooms:,} requests in flight, nothing new": [
            Figure("receiver's poll", median(receiver) * 1e6, "us", TARGETS["poll, us"], "less"),
            Figure("sender's poll", median(sender) * 1e6, "us", TARGETS["poll, us"], "less"),
        ]
    }


__all__ = ["measure_all"]
