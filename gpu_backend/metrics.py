"""What Prometheus reads of a worker, from counters that the worker keeps anyway.

Metrics are read from :class:`Stats` when Prometheus asks (any thread), so they cost nothing in between.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from fsm.errors import LocalError
from gpu_backend.observe import Counters


@dataclass(frozen=True)
class Stats:
    """A worker at one moment: its counters, and what it holds."""

    side: str
    rank: int
    boot_id: int
    counters: Counters
    rooms: int
    waiting: int
    """Receiver: requests that hold data and got no blocks in the last tick."""
    blocks: dict[str, int]
    """By state. At the sender: ``Free`` and ``Pinned``."""
    free_result_tokens: int
    under_way: int
    """Copies out (receiver), writes (sender)."""
    transport: dict[str, int]
    """What the transport counts."""
    rank_is_lost: bool = False
    """Receiver: another rank is gone, and nothing can be submitted until the ranks have met again."""


METRICS: Final[dict[str, str]] = {
    "in_flight": "Requests that have not ended, by state",
    "ended_total": "Requests that ended, by reason (NONE is Success)",
    "tokens_total": "Tokens delivered (receiver) or written (sender)",
    "bytes_total": "The same in bytes",
    "grants_total": "Grants sent, the first of a request included",
    "resumes_total": "Grants that go on with a request",
    "resends_total": "Control messages sent again for want of an answer",
    "messages_total": "Control messages, by what became of them",
    "blocks": "Blocks of the pool, by state; Quarantined ones await a proof that nothing is written to them",
    "waiting": "Requests that hold data and got no blocks in the last tick",
    "under_way": "Copies out (receiver) or writes (sender) that have not ended",
    "room_errors_total": "Exceptions and refusals that failed one request each",
    "violations_total": "Properties of the protocol that were seen broken; anything but 0 is a defect",
    "restarts_total": "Times that this sender went on under a new boot_id",
    "free_result_tokens": "Receiver: tokens of result memory that are free; stays at 0 if results are not released",
    "rank_is_lost": "Receiver: 1 while another rank of it is lost, and nothing can be submitted; else 0",
    "transport_total": "What the transport counts, such as notices that it dropped; begins anew with a new boot_id",
}
"""Every metric by its name behind ``resumark_``, in words."""


class Collector:
    """What Prometheus reads: the stats of every worker that is shown in one registry; nothing is kept here."""

    def __init__(self) -> None:
        self.reads: dict[tuple[str, int], Callable[[], Stats]] = {}
        """By side and rank. Never changed, but replaced: a scrape comes from any thread and takes no lock."""

    def collect(self) -> Iterator[Any]:
        """The metric families, as ``prometheus_client`` asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        seen = [(stats, _values(stats)) for stats in [read() for read in self.reads.values()]]
        for name, meaning in METRICS.items():
            label = METRIC_LABELS.get(name, "")
            labels = ["side", "rank", *([label] if label else [])]
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind("resumark_" + name.removesuffix("_total"), meaning, labels=labels)
            for stats, values in seen:
                for value_label, value in values.get(name, {}).items():
                    family.add_metric([stats.side, str(stats.rank), *([value_label] if label else [])], value)
            yield family


METRIC_LABELS: Final[dict[str, str]] = {
    "in_flight": "state", "ended_total": "reason", "messages_total": "what", "blocks": "state",
    "violations_total": "property", "transport_total": "what",
}  # fmt: skip
"""The label that a metric has beside ``side`` and ``rank``."""


def _values(stats: Stats) -> dict[str, dict[str, float]]:
    """Metric -> value of its label (empty: it has none) -> number."""
    counters = stats.counters
    plain: dict[str, float] = {
        "tokens_total": counters.tokens, "bytes_total": counters.bytes, "grants_total": counters.grants,
        "resumes_total": counters.resumes, "resends_total": counters.resends, "waiting": stats.waiting,
        "under_way": stats.under_way, "room_errors_total": counters.room_errors, "restarts_total": counters.restarts,
    }  # fmt: skip
    if stats.side == "receiver":
        plain |= {"free_result_tokens": stats.free_result_tokens, "rank_is_lost": float(stats.rank_is_lost)}
    messages = {
        "sent": counters.messages_sent, "received": counters.messages_received, "refused": counters.messages_refused,
    }  # fmt: skip
    live = {state: count for state, count in counters.in_flight.items() if state not in ("Success", "Failed")}
    values: dict[str, dict[str, float]] = {name: {"": value} for name, value in plain.items()}
    values |= {
        "in_flight": dict(live), "ended_total": {"NONE": 0, **counters.ended}, "messages_total": dict(messages),
        "blocks": dict(stats.blocks), "violations_total": {"none": 0, **counters.violations},
        "transport_total": dict(stats.transport),
    }  # fmt: skip
    return values


_shown_lock = threading.Lock()
_shown: weakref.WeakKeyDictionary[Any, Collector] = weakref.WeakKeyDictionary()
"""By registry. Prometheus takes a family of metrics from one collector only, so the workers of a process share it."""


def _registry(registry: Any) -> Any:
    try:
        import prometheus_client
    except ImportError:
        raise LocalError("metrics: prometheus_client is not installed; pip install 'resumark[metrics]'") from None
    return prometheus_client.REGISTRY if registry is None else registry


def check_metrics(side: str, rank: int, registry: Any = None) -> None:
    """Raises :class:`LocalError` if a worker of that side and rank cannot be shown: ``prometheus_client`` is not
    installed, or another worker of this process is shown there under the same labels."""
    collector = _shown.get(_registry(registry))
    if collector is not None and (side, rank) in collector.reads:
        raise LocalError(
            f"metrics: {side} rank {rank} of this process is shown in that registry already; expected one worker for "
            "each side and rank: close the other one, or show this one in a registry of its own, with show_metrics"
        )


def register_metrics(read: Callable[[], Stats], registry: Any = None) -> Callable[[], None]:
    """Let Prometheus read a worker, beside others of this process. ``registry`` may be one's own; returns what takes
    the worker out again.

    Raises :class:`LocalError` as :func:`check_metrics` does.
    """
    registry = _registry(registry)
    stats = read()
    name = stats.side, stats.rank
    with _shown_lock:
        check_metrics(*name, registry)
        collector = _shown.get(registry)
        if collector is None:
            collector = Collector()
            registry.register(collector)
            _shown[registry] = collector
        collector.reads = {**collector.reads, name: read}

    def unregister() -> None:
        with _shown_lock:
            collector.reads = {key: value for key, value in collector.reads.items() if key != name}
            if not collector.reads and _shown.get(registry) is collector:
                del _shown[registry]
                registry.unregister(collector)

    return unregister
