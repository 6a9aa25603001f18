"""What a batch of random runs must have met for "nothing was found" to mean anything.

Each rule here answers one question about a scenario: could this happen at all? What could, and did not in a whole
batch, was missed. The rules err on the side of asking for less: a thing is demanded only where it is bound to turn up
in a batch of ordinary size.
"""

from __future__ import annotations

from itertools import pairwise
from math import comb

from sim.scenario import Request, Scenario

RESUME = "resume"
SAME_BLOCKS = "same_blocks"
STARVATION = "starvation"
QUARANTINE = "quarantine"

MEANINGS: dict[str, str] = {
    RESUME: "a grant after the first",
    SAME_BLOCKS: "a grant that got exactly the blocks that its request held last",
    STARVATION: "a request that held data and got no blocks in a tick",
    QUARANTINE: "a request that ended while its blocks could still be written",
}
"""What is counted besides faults, in words."""

_SAME_BLOCKS_CHANCES_MAX = 20
"""An allocator that chooses at random is held to repeat itself only among so few possible choices."""


def fault_budgets(scenario: Scenario) -> dict[str, int]:
    """Fault kinds by name, with their budgets."""
    faults = scenario.faults
    return {
        name.removesuffix("_max"): getattr(faults, name)
        for name in type(faults).__struct_fields__
        if name.endswith("_max")
    }


def expected_sometimes(scenario: Scenario) -> tuple[str, ...]:
    """The names of what must occur in a batch of this scenario, in a fixed order."""
    sizes = [grant_blocks(scenario, request) for request in scenario.expanded_requests()]
    budgets = fault_budgets(scenario)
    expected = []
    if any(len(one) > 1 for one in sizes):
        expected.append(RESUME)
        if any(_may_repeat(scenario, before, after) for one in sizes for before, after in pairwise(one)):
            expected.append(SAME_BLOCKS)
        if _may_starve(scenario, sizes):
            expected.append(STARVATION)
    if any(sizes) and (budgets["abort"] or budgets["sender_crash"]):
        expected.append(QUARANTINE)
    for name, budget in budgets.items():
        if budget and (name != "heartbeat_loss" or scenario.time.heartbeat_ticks):
            expected.append(name)
    return tuple(expected)


def grant_blocks(scenario: Scenario, request: Request) -> list[int]:
    """The blocks of each grant that a request gets when it is alone; empty if it is refused for its size."""
    size = scenario.pool.block_tokens
    blocks = min(scenario.pool_blocks(rank) for rank in range(scenario.ranks.receivers))
    limit = min(blocks, scenario.pool.grant_blocks_max or blocks)
    if scenario.pool.allocator == "stingy":
        limit = min(limit, scenario.pool.stingy_blocks)
    needed = -(-request.tokens // size)
    refused = needed > scenario.source.blocks or request.tokens > scenario.payload.total_tokens_max
    if refused or 0 < scenario.result.tokens < request.tokens:
        return []
    grants = []
    left = request.tokens
    if request.grant_tokens:
        early = min(-(-request.grant_tokens // size), limit, blocks - 1)
        if early:
            grants.append(early)
            left -= min(request.grant_tokens, early * size)
    while left > 0:
        grants.append(min(-(-left // size), limit))
        left -= grants[-1] * size
    return grants


def _may_repeat(scenario: Scenario, before: int, after: int) -> bool:
    """Whether a grant of ``after`` blocks that follows one of ``before`` gets the same ones."""
    if before != after:
        return False
    allocator = scenario.pool.allocator
    blocks = min(scenario.pool_blocks(rank) for rank in range(scenario.ranks.receivers))
    if allocator in ("same-again", "lifo"):
        return True
    if allocator == "adversary":
        return comb(blocks, after) <= _SAME_BLOCKS_CHANCES_MAX
    return after == blocks


def _may_starve(scenario: Scenario, sizes: list[list[int]]) -> bool:
    """A request gets at least the blocks that it has just freed, unless the allocator refuses, or another one that
    holds data and is older takes them in the very same tick."""
    if scenario.pool.allocator == "adversary" and scenario.pool.refusals_max:
        return True
    schedule = scenario.schedule
    between = schedule.ticks_free or (schedule.rank_skew_ticks and scenario.ranks.receivers > 1)
    blocks = min(scenario.pool_blocks(rank) for rank in range(scenario.ranks.receivers))
    resumed = [max(one) for one in sizes if len(one) > 1]
    return bool(between) and len(resumed) > 1 and sum(resumed) > blocks and max(resumed) > 1
