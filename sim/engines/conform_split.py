"""A run of the simulator as the traces that its processes would have written, had they been workers.

What a world tells of a process that is dead, and what no single process can see, is in none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fsm.events import Audited, Decided, Executed, Finished, Note, Received, Repeated, Restarted, Sent
from fsm.trace import TRACE_VERSION, WORKER, Seen, Trace, TraceEnding, TraceHeader
from sim.engines.replay import replay, scenario_of, world_of
from sim.scenario import Scenario

Name = tuple[str, int]
"""Side and rank of a process."""


def world_events(trace: Trace) -> list[tuple[int, Any]]:
    """Every event of a run of the simulator, messages included, with the number of its step (0: before the first)."""
    scenario = scenario_of(trace.header)
    told = [(0, event) for event in world_of(trace.header, scenario, notes=True).events]
    for step in replay(trace).steps:
        told += [(step.number, event) for event in step.events]
    return told


def split(told: Iterable[tuple[int, Any]], scenario: Scenario) -> dict[Name, Trace]:
    """The traces of its processes, by side and rank. A rank that died and came back goes on in its trace."""
    ranks = scenario.ranks
    names: list[Name] = [("receiver", rank) for rank in range(ranks.receivers)]
    names += [("sender", rank) for rank in range(min(ranks.senders, ranks.receivers))]
    seen: dict[Name, list[Seen]] = {name: [] for name in names}
    note: Note | None = None
    for number, event in told:
        if isinstance(event, Note):
            note = event if event.kind == "fault" else note
            continue
        name = whose(event, ranks.senders)
        if name is None:
            continue
        if note is not None and note.text == "poison" and isinstance(event, Received):
            seen[name].append(Seen(float(number), note))
        note = None
        seen[name].append(Seen(float(number), event))
    return {name: Trace(_header(name, scenario), (), TraceEnding(), tuple(lines)) for name, lines in seen.items()}


def whose(event: Any, senders: int) -> Name | None:
    """Which process tells an event, of so many sender ranks; none if only a world can."""
    if isinstance(event, (Sent, Received)):
        rank = event.message.receiver_rank
        return ("receiver", rank) if event.side == "receiver" else ("sender", rank % senders)
    if isinstance(event, (Decided, Repeated, Audited)):
        return None
    if isinstance(event, Restarted):
        return "sender", event.receiver_ranks[0] % senders
    rank = event.receiver_rank
    if isinstance(event, Finished) and event.reason == "CRASHED" and event.side == "sender":
        return None
    side = getattr(event, "side", "sender" if isinstance(event, Executed) else "receiver")
    return ("receiver", rank) if side == "receiver" else ("sender", rank % senders)


def _header(name: Name, scenario: Scenario) -> TraceHeader:
    side, rank = name
    ranks = {"rank": rank, "receivers": scenario.ranks.receivers, "senders": scenario.ranks.senders}
    config = {
        "layout": {"block_tokens": scenario.pool.block_tokens}, "ranks": ranks,
        "pool": {"blocks": scenario.pool.blocks, "allocator": scenario.pool.allocator},
    }  # fmt: skip
    return TraceHeader(TRACE_VERSION, WORKER, {"config": config}, side=side, rank=rank, boot_id=1)


__all__ = ["Name", "split", "whose", "world_events"]
