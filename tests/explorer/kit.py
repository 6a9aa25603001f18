"""What the tests of the explorer share: a page's sum of changes, made here a second time and in another way."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

from fsm.events import Delivered, Progressed, Wrote
from fsm.messages import describe
from sim.explorer.page import Block, Lifecycle, Progress, Step
from sim.memory import POISON, token_value
from sim.world import World


class Shown:
    """What a page shows after some steps: the changes added up."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[int, int], Block] = {}
        self.progress: dict[tuple[int, int], Progress] = {}
        self.lifecycles: dict[tuple[str, int, int], Lifecycle] = {}
        self.open: Counter[tuple[str, str, str, str]] = Counter()

    def add(self, step: Step) -> None:
        for block in step.blocks:
            self.blocks[block.rank, block.block] = msgspec.structs.replace(block, through=())
        for progress in step.progress:
            self.progress[progress.rank, progress.room] = progress
        for lifecycle in step.lifecycles:
            self.lifecycles[lifecycle.lane, lifecycle.rank, lifecycle.room] = lifecycle
        for arrow in step.arrows:
            key = arrow.what, arrow.source, arrow.target, arrow.text
            if arrow.end in ("leave", "copy"):
                self.open[key] += 1
            elif arrow.end in ("arrive", "lose"):
                assert self.open[key] > 0, f"step {step.number}: {arrow} ends and never began"
                self.open[key] -= 1


class Counted:
    """Which tokens have landed and were copied out, one by one; and the last watermark."""

    def __init__(self) -> None:
        self.landed: dict[Any, set[int]] = defaultdict(set)
        self.copied: dict[Any, set[int]] = defaultdict(set)
        self.watermark: dict[Any, int] = defaultdict(int)

    def add(self, events: Iterable[Any]) -> None:
        for event in events:
            if isinstance(event, Progressed):
                self.watermark[event.receiver_rank, event.room, event.epoch] = event.tokens
            if isinstance(event, (Wrote, Delivered)):
                tokens = self.landed if isinstance(event, Wrote) else self.copied
                key = event.receiver_rank, event.room, event.epoch
                tokens[key].update(range(event.start, event.start + event.count))

    def same_as(self, shown: Shown, world: World) -> None:
        for rank, receiver in enumerate(world.receivers):
            for number, room in receiver.rooms.items():
                key, told = (rank, number, room.epoch), shown.progress[rank, number]
                assert told.watermark == self.watermark[key]
                for count, tokens in ((told.landed, self.landed[key]), (told.delivered, self.copied[key])):
                    assert count not in tokens and tokens.issuperset(range(count))


def added_up(steps: Iterable[Step]) -> Shown:
    shown = Shown()
    for step in steps:
        shown.add(step)
    return shown


def cells_said(holds: str, block_tokens: int, requests: dict[int, int]) -> list[int]:
    """The cells of a block, read out of what the page says it holds."""
    cells: list[int] = []
    for part in holds.split(", "):
        found = re.fullmatch(r"\[(\d+),(\d+)\) of room (\d+)", part)
        if found:
            start, end, room = map(int, found.groups())
            cells += [token_value(requests[room], token) for token in range(start, end)]
        elif part == "nothing":
            cells += [POISON] * (block_tokens - len(cells))
    return cells or [POISON] * block_tokens


def same_as_world(shown: Shown, world: World) -> None:
    """What the page shows is what the world is."""
    blocks_as_in(shown, world)
    rooms_as_in(shown, world)
    on_the_way: Counter[Any] = Counter()
    for channel, messages in enumerate(world.network.channels):
        on_the_way.update((channel, describe(message)) for message in messages)
    on_the_way.update((stray.channel, describe(stray.message)) for stray in world.network.strays)
    assert _messages(shown, world) == on_the_way
    flying = sum(not flight.landed for flight in world.flights)
    assert sum(count for key, count in shown.open.items() if key[0] == "bytes") == flying


def _messages(shown: Shown, world: World) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for (what, source, target, text), count in shown.open.items():
        if what == "message" and count:
            rank = int((source if source.startswith("receiver") else target).split()[1])
            found[2 * rank + source.startswith("sender"), text] += count
    return found


def blocks_as_in(shown: Shown, world: World) -> None:
    requests = {request.room: number for number, request in enumerate(world.requests)}
    size = world.scenario.pool.block_tokens
    for rank, receiver in enumerate(world.receivers):
        for block in range(len(receiver.ledger)):
            record, told = receiver.ledger.record(block), shown.blocks[rank, block]
            owner = record.owner
            assert (told.state, told.generation) == (record.state, record.generation)
            assert (told.room, told.seq) == ((owner.room, owner.seq) if owner is not None else (-1, -1))
            if len(requests) == len(world.requests):
                assert cells_said(told.holds, size, requests) == list(world.memories[rank].cells[block])
        for room in receiver.rooms.values():
            for index, ref in enumerate(room.grant.blocks if room.grant is not None else ()):
                assert room.grant is not None
                assert shown.blocks[rank, ref.block].start == room.grant.start + index * size


def rooms_as_in(shown: Shown, world: World) -> None:
    for rank, receiver in enumerate(world.receivers):
        for number, room in receiver.rooms.items():
            told = shown.progress[rank, number]
            assert told.epoch == f"{room.epoch.boot_id}.{room.epoch.counter}"
            if room.grant is not None:
                assert told.granted == room.grant.start + room.grant.capacity
            assert shown.lifecycles[f"receiver {rank}", rank, number].state == room.state
    for rank, sender in enumerate(world.senders):
        for number, sent in sender.rooms.items():
            for lane in sent.lanes.values():
                assert shown.lifecycles[f"sender {rank}", lane.receiver_rank, number].state == lane.state
