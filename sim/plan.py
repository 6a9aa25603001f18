"""What follows from a scenario alone: requests one by one, who serves whom, what each process is told.

Worked out once for all worlds of a scenario, since a batch of random runs makes very many of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from fsm import kernel
from fsm.messages import Layout
from fsm.receiver import ReceiverConfig
from fsm.sender import SenderConfig
from fsm.timing import Timing
from sim.scenario import Request, Scenario


class Plan(NamedTuple):
    """``fits``: the request is small enough for all limits; one that is not is rightly refused. ``arrivals``: requests
    in the order in which they come."""

    requests: tuple[Request, ...]
    fits: tuple[bool, ...]
    arrivals: tuple[int, ...]
    sender_of: tuple[int, ...]
    served_by: tuple[tuple[int, ...], ...]
    receiver_configs: tuple[ReceiverConfig, ...]
    sender_configs: tuple[SenderConfig, ...]


@lru_cache(maxsize=64)
def plan_of(scenario: Scenario) -> Plan:
    """The plan of a scenario."""
    ranks, time, size = range(scenario.ranks.receivers), scenario.time, scenario.pool.block_tokens
    total_tokens_max, source_blocks = scenario.payload.total_tokens_max, scenario.source.blocks
    sender_of = tuple([rank % scenario.ranks.senders for rank in ranks])
    served_by = tuple([tuple([r for r in ranks if sender_of[r] == s]) for s in range(scenario.ranks.senders)])
    items = ("input_embeddings", "fill_ids", "mrope_positions")
    layout = Layout(size, 1, "int64", items, scenario.payload.deepstack_levels, 1)
    timing = Timing(
        time.deadline_ticks, time.queue_deadline_ticks, time.bootstrap_ticks, time.resend_ticks, time.tombstone_ticks,
        time.heartbeat_ticks,
    )  # fmt: skip
    requests = scenario.expanded_requests()
    limit = min(total_tokens_max, scenario.result.tokens or total_tokens_max)
    return Plan(
        requests,
        fits=tuple([r.tokens <= limit and kernel.blocks_needed(r.tokens, size) <= source_blocks for r in requests]),
        arrivals=tuple(sorted(range(len(requests)), key=lambda index: requests[index].arrives_at_tick)),
        sender_of=sender_of,
        served_by=served_by,
        receiver_configs=tuple([
            ReceiverConfig(
                layout=layout, rank=rank, sender_rank=sender_of[rank], total_tokens_max=total_tokens_max,
                grant_blocks_max=scenario.pool.grant_blocks_max, result_tokens=scenario.result.tokens,
                landed_required=scenario.schedule.data_lags_status or scenario.schedule.notice_lags,
                two_sided=scenario.schedule.data_lags_status, results_held=scenario.result.held, timing=timing,
            )
            for rank in ranks
        ]),
        sender_configs=tuple([
            SenderConfig(
                layout=layout, rank=rank, receiver_ranks=served, senders=scenario.ranks.senders,
                source_blocks=source_blocks,
                total_tokens_max=total_tokens_max, timing=timing,
            )
            for rank, served in enumerate(served_by)
        ]),
    )  # fmt: skip
