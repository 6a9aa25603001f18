"""R7: many ranks' observations folded into one that all of them act on.

Every tick, every rank publishes what it has seen of every request it has, together with its free blocks
and free result memory. The fold is a function of those observations alone, so each rank that computes it
from the same inputs reaches the same decisions, in the same order. Unknown is not a mismatch: a request that
some rank does not have yet, or a total that some rank was not told yet, waits.
"""

from __future__ import annotations

from typing import NamedTuple

from fsm import kernel
from fsm.kernel import INT, MISMATCH, UNKNOWN
from fsm.messages import Epoch
from fsm.rules import Rules

_LARGE = 1 << 62


class Observed(NamedTuple):
    """What one rank has seen of one request. Tokens are counts; -1 is "not told yet"."""

    room: int
    epoch: Epoch
    registered: bool
    total_tokens: int
    flags: int
    committed_tokens: int
    delivered_tokens: int
    failure: int


class Observation(NamedTuple):
    """What one rank brings to a tick: ``free_blocks`` it is willing to give, and free result tokens."""

    rank: int
    rooms: tuple[Observed, ...]
    free_blocks: int
    free_result_tokens: int


class AgreedRoom(NamedTuple):
    """One request as all ranks see it; ``known`` says that every rank has it."""

    room: int
    epoch: Epoch
    known: bool
    registered: bool
    total_tokens: int
    flags: int
    committed_tokens: int
    delivered_tokens: int
    failure: int


class Agreed(NamedTuple):
    """The folded observation, rooms by id."""

    rooms: tuple[AgreedRoom, ...]
    free_blocks: int
    free_result_tokens: int


def fold(observations: tuple[Observation, ...], rules: Rules) -> Agreed:
    """Fold one tick's observations; every rank must pass the same ones, in rank order."""
    if len(observations) == 1:
        only = observations[0]
        alone = tuple(AgreedRoom(o[0], o[1], True, *o[2:]) for o in only.rooms)
        return Agreed(alone, only.free_blocks, only.free_result_tokens)
    by_room: dict[int, list[Observed]] = {}
    for observation in observations:
        for seen in observation.rooms:
            by_room.setdefault(seen.room, []).append(seen)
    rooms = tuple(fold_room(by_room[room], len(observations), rules) for room in sorted(by_room))
    return Agreed(
        rooms,
        min(o.free_blocks for o in observations),
        min(o.free_result_tokens for o in observations),
    )


def fold_room(seen: list[Observed], ranks: int, rules: Rules) -> AgreedRoom:
    """Fold what those of ``ranks`` ranks that have a request see of it; at least one."""
    known = len(seen) == ranks
    total = _fold_equal([s.total_tokens for s in seen], known)
    flags = _fold_equal([s.flags for s in seen], known)
    epochs_differ = any(s.epoch != seen[0].epoch for s in seen)
    return AgreedRoom(
        room=seen[0].room,
        epoch=max(s.epoch for s in seen),
        known=known,
        registered=all(s.registered for s in seen),
        total_tokens=MISMATCH if epochs_differ or flags == MISMATCH else total,
        flags=flags,
        committed_tokens=rules.fold_progress([s.committed_tokens for s in seen]),
        delivered_tokens=min(s.delivered_tokens for s in seen),
        failure=max(s.failure for s in seen),
    )


def _fold_equal(values: list[int], known: bool) -> int:
    told = [value for value in values if value != UNKNOWN]
    all_told = known and len(told) == len(values)
    folded: int = kernel.fold_known(INT, min(told, default=_LARGE), max(told, default=UNKNOWN), all_told)
    return folded
