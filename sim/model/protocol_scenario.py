"""A scenario as a size of the protocol model: what carries over, what the model is freer in, and what it does not hold.

A scenario describes a world of objects; the model is smaller, and freer. What it does not hold is refused by name, so
that "holds" always speaks of at least what the scenario describes. What it is freer in is said beside the answer: there
"holds" speaks of more, and a violation may be one that the scenario's world would not show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import gcd
from typing import NamedTuple

from fsm.errors import LocalError
from sim.model.protocol_bounded import Bounds
from sim.model.variants import MODEL_VARIANTS, ModelVariant, variant_named
from sim.scenario import Scenario


class ModelOf(NamedTuple):
    """The size of the model, its version of the protocol, and in what it is freer than the scenario."""

    bounds: Bounds
    variant: ModelVariant
    freer: tuple[str, ...]


def model_of(scenario: Scenario) -> ModelOf:
    """The protocol model of a scenario's size. Raises LocalError that names every key that the model does not hold."""
    problems = list(_not_held(scenario))
    variant = _variant(scenario, problems)
    if problems:
        raise LocalError("the model does not hold this scenario:\n" + "\n".join(problems))
    faults = scenario.faults
    bounds = replace(
        sizes_of(scenario, unit_tokens(scenario)), resubmits=False, faults=False, aborts=faults.abort_max
    )
    return ModelOf(bounds, variant, tuple(_freer(scenario)))


def sizes_of(scenario: Scenario, unit: int = 1) -> Bounds:
    """The sizes of a scenario as those of the model, tokens counted in units; of requests the first is looked at."""
    request, pool, schedule = scenario.expanded_requests()[0], scenario.pool, scenario.schedule
    return Bounds(
        rooms=len(scenario.expanded_requests()),
        ranks=scenario.ranks.receivers,
        senders=scenario.ranks.senders,
        blocks=scenario.pool_blocks(0),
        size=request.tokens // unit,
        block_tokens=pool.block_tokens // unit,
        grant_blocks_max=pool.grant_blocks_max,
        early_tokens=request.grant_tokens // unit,
        crashes=scenario.faults.sender_crash_max,
        leases=pool.lease,
        late=schedule.data_lags_status,
        notices=schedule.notice_lags,
    )


def unit_tokens(scenario: Scenario) -> int:
    """What the model counts as one token: the largest number that all sizes are multiples of. Every decision compares
    sums of sizes, or divides them by the size of a block, so nothing depends on the unit."""
    request = scenario.expanded_requests()[0]
    return gcd(request.tokens, scenario.pool.block_tokens, request.grant_tokens)


def _not_held(scenario: Scenario) -> Iterator[str]:
    """A line for each key that asks for what the model does not have."""
    requests, faults, ranks = scenario.expanded_requests(), scenario.faults, range(scenario.ranks.receivers)
    kinds = {(request.tokens, request.grant_tokens) for request in requests}
    if len(kinds) > 1:
        yield "requests: all of one length and one early grant, in the model; here they differ"
    if len({request.room for request in requests}) < len(requests):
        yield "requests.room: two requests have one room; the model gives each its own"
    if len({scenario.pool_blocks(rank) for rank in ranks}) > 1:
        yield "pool.blocks_by_rank: all ranks have equal pools in the model"
    if scenario.pool.stale_header_tokens:
        yield "pool.stale_header_tokens: the model has no headers; leave it out"
    if scenario.result.tokens or scenario.result.held:
        yield "result: the model has no result memory; leave the section out"
    needed = sum(-(-request.tokens // scenario.pool.block_tokens) for request in requests)
    if scenario.source.blocks < needed:
        yield f"source.blocks: the model has no source pool; {needed} blocks hold all payloads at once"
    for name, what in (
        ("receiver_crash_max", "receivers do not crash in the model"),
        ("clock_jump_max", "there is no clock in the model"),
        ("poison_max", "no message is malformed in the model"),
        ("duplicate_room_max", "nothing is submitted twice in the model"),
    ):
        if getattr(faults, name):
            yield f"faults.{name}: {what}; set it to 0"


def _variant(scenario: Scenario, problems: list[str]) -> ModelVariant:
    detector, hazards = scenario.variant.detector, scenario.variant.hazards
    named = ([] if detector == "watermark" else [detector]) + list(hazards)
    if len(named) > 1:
        problems.append(f"variant: one wrong version at a time in the model, here {' and '.join(named)}")
        return MODEL_VARIANTS["watermark"]
    variant = variant_named(named[0] if named else "watermark")
    if variant.not_held:
        problems.append(f"variant '{variant.name}': {variant.not_held}")
    return variant


def _freer(scenario: Scenario) -> Iterator[str]:
    """A line for each thing that may happen in the model and not in the scenario's world."""
    faults, pool = scenario.faults, scenario.pool
    yield (
        "messages are delayed, doubled, overtaken and lost without a budget"
        f" (here {faults.duplicate_max} doubled, {faults.delay_max} overtaken, {faults.drop_max} lost)"
    )
    if pool.allocator != "adversary":
        yield f"any free blocks are given, whatever the allocator (here {pool.allocator})"
    yield "who waits for blocks may wait for any time; who gets some gets all that there are for it"
    if any(request.arrives_at_tick for request in scenario.expanded_requests()):
        yield "requests are there from the start, and may be heard of at any time"
    if unit_tokens(scenario) > 1:
        yield f"tokens go by {unit_tokens(scenario)}, since all sizes are multiples of that"
    if faults.abort_max:
        yield f"{faults.abort_max} in all: aborts by either side, broken writes, copies that fail"
    if not scenario.schedule.copy_lags or not scenario.schedule.staging_lags:
        yield "copies and stagings take any time"
