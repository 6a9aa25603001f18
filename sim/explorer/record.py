"""A run of the simulator as the records of a page: every step with all that it changed.

A :class:`Recorder` looks on while a world takes its steps. What it tells are differences, and the sum of all that it
has told is what it remembers, so the two cannot part: the records of blocks are compared with the ledger and the
memory after every step, and only what the page has not been told yet is told.

What it remembers can be saved and loaded beside the world's own state, so that the edges of a state graph are made by
the same code as the steps of a run.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from fsm.allocators import Choices
from fsm.effects import CopyOut
from fsm.events import Granted, Received, Sent
from fsm.messages import BlockRef, Epoch, Message, describe
from fsm.rules import PROTOCOL
from fsm.states import BlockState
from sim import actions
from sim.cli_view import FAULTS, ON_MESSAGES, Viewer, blocks_text, told_together
from sim.explorer.fold import Folded, message_label, sorted_items, span_text
from sim.explorer.page import Arrow, Block, Lane, Pool, Request, Said, Step, Touch
from sim.flight import Flight
from sim.memory import POISON, value_of
from sim.world import Action, World


class _Passed(NamedTuple):
    """A state that a block was in within a step. ``place``: after so many events."""

    place: int
    rank: int
    block: int
    state: str
    room: int


class _Given(NamedTuple):
    """What a block was granted for last, and whether bytes of that very grant have landed in it since."""

    room: int
    epoch: Epoch
    seq: int
    start: int
    tokens: int
    written: bool


def lanes_of(world: World) -> tuple[Lane, ...]:
    """The processes of a world, senders first."""
    senders = [Lane(f"sender {rank}", "sender", rank) for rank in range(len(world.senders))]
    return (*senders, *(Lane(f"receiver {rank}", "receiver", rank) for rank in world.receiver_ranks))


def pools_of(world: World) -> tuple[Pool, ...]:
    """The landing blocks of each rank."""
    size = world.scenario.pool.block_tokens
    return tuple([Pool(rank, len(receiver.ledger), size) for rank, receiver in enumerate(world.receivers)])


def requests_of(world: World) -> tuple[Request, ...]:
    """The requests of a scenario, in its order."""
    return tuple([Request(request.room, request.tokens) for request in world.requests])


class Recorder:
    """Looks on at one world, and tells its steps. The world must have been made with notes."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.observer = self
        self.viewer = Viewer(world)
        rooms = [request.room for request in world.requests]
        self._twice = len(rooms) != len(dict.fromkeys(rooms))
        self.time_is_relative = False
        """Whether steps tell how long they take, and not when they are."""
        self._headers = world.rules != PROTOCOL
        self._size = world.scenario.pool.block_tokens
        self.blocks: list[list[Block]] = [[] for _ in world.receivers]
        self.folded = Folded(world.sender_of.__getitem__)
        self._given: dict[tuple[int, int], _Given] = {}
        self._sources: list[list[tuple[Any, ...]]] = [[] for _ in world.receivers]
        self._arrows: list[tuple[int, Arrow]] = []
        self._passed: list[_Passed] = []
        self._touches: list[Touch] = []
        self._said: list[Said] = []

    # --- steps ----------------------------------------------------------------------------------------

    def first(self) -> Step:
        """Step 0: the state before anything happened, and what it took to get there."""
        return self._tell(0, "", "the requests are submitted")

    def step(self, number: int, action: Action, choices: Choices) -> Step:
        """Take a step of the world's course, or a fault, and tell it."""
        world = self.world
        text, began_s = self.words(action), world.now
        under_way, flights = _under_way(world), world.flights
        self._before(action)
        actions.apply(world, action, choices)
        if action[0] == "time":
            text = f"clock leaps to {world.now:g}"
            if self.time_is_relative:
                text = f"clock leaps by {world.now - began_s:g}"
        if action[0] == "partition":
            for channel, message in under_way:
                self._message(0, "lose", channel, message)
        if action[0] == "vanish":
            self._bytes(0, "lose", flights[action[1]])
        return self._tell(number, action[0], text, fault=action[0] in FAULTS)

    def words(self, action: Action) -> str:
        """What is about to be done, short, as ``resumark replay`` says it; and from which of several ranks."""
        if action[0] == "time":
            return "clock leaps to the next timer"
        world = self.world
        text = self.viewer.words(world, action, actions.describe_action(world, action)).removeprefix("! ")
        if len(world.receivers) > 1 and action[0] in (*ON_MESSAGES, "stray"):
            channel = world.network.strays[action[1]].channel if action[0] == "stray" else action[1]
            text += f" from receiver {channel // 2}" if channel % 2 == 0 else ""
        return text

    def _tell(self, number: int, kind: str, text: str, *, fault: bool = False) -> Step:
        """All that has changed since it was told last."""
        world = self.world
        self.viewer.view(number, text, world)
        self._take_events()
        blocks = self._changed_blocks()
        progress, lifecycles = self.folded.take_told()
        said = [*self._said, *self._words()]
        arrows = [arrow for _, arrow in sorted(self._arrows, key=lambda placed: placed[0])]
        step = Step(
            number, kind, text, float(world.now), fault, said=tuple(said), arrows=tuple(arrows), blocks=tuple(blocks),
            touches=tuple(self._touches), progress=progress, lifecycles=lifecycles,
        )  # fmt: skip
        self._arrows, self._touches, self._said, self._passed = [], [], [], []
        return step

    def _words(self) -> Iterable[Said]:
        for side, cells in (("sender", self.viewer.senders), ("receiver", self.viewer.receivers)):
            for rank, cell in enumerate(cells):
                for words in told_together(cell):
                    lane = words.prefix.rpartition(" ")[2]
                    text = f"{lane} {words.text}" if lane.startswith("r") else words.text
                    yield Said(f"{side} {rank}", words.room, text)

    # --- messages and bytes ---------------------------------------------------------------------------

    def _before(self, action: Action) -> None:
        """What an action is about to do to a message."""
        kind, network = action[0], self.world.network
        if kind == "stray":
            stray = network.strays[action[1]]
            self._message(0, "arrive", stray.channel, stray.message)
        elif kind == "delay":
            self._message(0, "hold", action[1], network.channels[action[1]][0])
        elif kind == "duplicate":
            self._message(0, "copy", action[1], network.channels[action[1]][0])
            self._message(0, "arrive", action[1], network.channels[action[1]][0])
        elif kind in ("drop", "heartbeat_loss"):
            self._message(0, "lose", action[1], network.channels[action[1]][0])
        elif kind in ("deliver", "poison"):
            self._message(0, "arrive", action[1], network.channels[action[1]][0])

    def _message(self, place: int, end: str, channel: int, message: Message) -> None:
        rank = channel // 2
        names = f"receiver {rank}", f"sender {self.world.sender_of[rank]}"
        source, target = names if channel % 2 == 0 else names[::-1]
        room, label, text = getattr(message, "room", -1), message_label(message), describe(message)
        self._arrows.append((place, Arrow("message", end, source, target, room, label, text)))

    def _bytes(self, place: int, end: str, flight: Flight) -> None:
        grant = flight.grant
        span = span_text(grant.start, flight.tokens)
        reached = grant.blocks[: -(-flight.tokens // self._size)]
        text = f"room {grant.room} seq {grant.seq} {span} into {blocks_text([ref.block for ref in reached])}"
        source = f"sender {self.world.sender_of[grant.receiver_rank]}"
        arrow = Arrow("bytes", end, source, f"receiver {grant.receiver_rank}", grant.room, span, text)
        self._arrows.append((place, arrow))

    def write_begins(self, flight: Flight) -> None:
        """A sender begins to write."""
        self._bytes(len(self.world.events), "leave", flight)

    def bytes_land(self, flight: Flight) -> None:
        """The bytes of a write reach memory, or the place where it was."""
        world, grant = self.world, flight.grant
        rank = grant.receiver_rank
        here = world.incarnations[rank] == flight.incarnation
        self._bytes(len(world.events), "arrive" if here else "lose", flight)
        if not here:
            return
        ledger = world.receivers[rank].ledger
        for index, ref in enumerate(grant.blocks[: -(-flight.tokens // self._size)]):
            start, count = index * self._size, min(self._size, flight.tokens - index * self._size)
            wrong = ""
            if not ledger.may_write(ref, grant.room, grant.epoch, grant.seq):
                record = ledger.record(ref.block)
                owner = f" for room {record.owner.room} seq {record.owner.seq}" if record.owner is not None else ""
                who = f"room {grant.room} seq {grant.seq}"
                wrong = f"block {ref.block} is written by {who}, and is {record.state}{owner}"
            self._touches.append(Touch(rank, ref.block, "write", grant.room, grant.start + start, count, wrong))
            given = self._given.get((rank, ref.block))
            if given is not None and given[:3] == (grant.room, grant.epoch, grant.seq):
                self._given[rank, ref.block] = given._replace(written=True)

    def copy_ends(self, rank: int, effect: CopyOut) -> None:
        """Blocks have been read: was it there, what was read?"""
        world = self.world
        request, memory = world.receiving[effect.room, effect.epoch], world.memories[rank]
        delta = memory.headers[effect.blocks[0].block].delta if effect.first and effect.blocks else request + 1
        for index, ref in enumerate(effect.blocks[: -(-effect.tokens // self._size)]):
            start = effect.start + index * self._size
            count = min(self._size, effect.tokens - index * self._size)
            wrong = memory.wrong((ref.block,), request, start, count)
            given = self._given.get((rank, ref.block))
            mine = given is not None and given[:3] == (effect.room, effect.epoch, effect.seq) and given.written
            early = bool(wrong) and not mine
            if wrong:
                what = "is read before it is written" if early else "does not hold what is read from it"
                wrong = f"block {ref.block} {what}: {self._with_rooms(wrong)}"
            elif delta != request + 1 and not index:
                wrong = f"block {ref.block}: the position delta in its header is not that of this request"
            self._touches.append(Touch(rank, ref.block, "read", effect.room, start, count, wrong, early))
            self._read(rank, ref, effect.room)

    def _read(self, rank: int, ref: BlockRef, room: int) -> None:
        """A block is being read; only one that has landed can be."""
        if self.world.receivers[rank].ledger.record(ref.block).state == BlockState.READING:
            place = len(self.world.events)
            for state in (BlockState.LANDED, BlockState.READING):
                self._passed.append(_Passed(place, rank, ref.block, state.value, room))

    # --- events and differences -----------------------------------------------------------------------

    def _take_events(self) -> None:
        self._begin()
        for place, event in enumerate(self.world.events):
            self.folded.take(event)
            kind = type(event)
            if kind is Sent:
                channel = 2 * event.message.receiver_rank + (event.side == "sender")
                self._message(place, "leave", channel, event.message)
                if event.lost:
                    self._message(place, "lose", channel, event.message)
            elif kind is Received:
                self._spoilt(event)
            elif kind is Granted:
                self._granted(place, event)

    def _begin(self) -> None:
        """Attempts and lifecycles that were not there before."""
        for rank, receiver in enumerate(self.world.receivers):
            for number, room in receiver.rooms.items():
                self.folded.begin(rank, number, room.epoch)
                self.folded.appear(f"receiver {rank}", rank, number, str(room.table.initial))
        for rank, sender in enumerate(self.world.senders):
            for number, sent in sender.rooms.items():
                for lane in sent.lanes.values():
                    name, to = f"sender {rank}", lane.receiver_rank
                    if lane.live or (name, to, number) not in self.folded.lifecycles:
                        self.folded.appear(name, to, number, str(lane.table.initial))

    def _spoilt(self, event: Received) -> None:
        """A message that was spoilt arrives as another than had left."""
        text = describe(event.message)
        came = [arrow for _, arrow in self._arrows if arrow.what == "message" and arrow.end == "arrive"]
        if came and came[0].text != text:
            self._said.append(Said(came[0].target, came[0].room, f"spoilt on its way, it reads {text}"))

    def _granted(self, place: int, event: Granted) -> None:
        for index, ref in enumerate(event.blocks):
            self._passed.append(_Passed(place, event.receiver_rank, ref.block, BlockState.GRANTED.value, event.room))
            tokens = max(0, min(self._size, event.capacity - index * self._size))
            key = event.receiver_rank, ref.block
            start = event.start + index * self._size
            self._given[key] = _Given(event.room, event.epoch, event.seq, start, tokens, False)

    def _changed_blocks(self) -> list[Block]:
        """Blocks whose record or content is not what was told last."""
        changed: list[Block] = []
        passed = sorted(self._passed, key=lambda passed: passed.place)
        for rank, receiver in enumerate(self.world.receivers):
            memory, told, sources = self.world.memories[rank], self.blocks[rank], self._sources[rank]
            for block in range(len(receiver.ledger)):
                record = receiver.ledger.record(block)
                given = self._given.get((rank, block))
                if given is not None and given[:3] != record.owner:
                    del self._given[rank, block]
                    given = None
                source = record, memory.cells[block], memory.headers[block], given
                if block < len(sources) and sources[block] == source:
                    continue
                now = self._block(rank, block)
                through: tuple[tuple[str, int], ...] = ()
                if block >= len(sources):
                    sources.append(source)
                    told.append(now)
                elif told[block] == now:
                    sources[block] = source
                    continue
                else:
                    through = _through(told[block], now, passed)
                    sources[block], told[block] = source, now
                changed.append(msgspec.structs.replace(now, through=through) if through else now)
        return changed

    def _block(self, rank: int, block: int) -> Block:
        """A block as it is now."""
        record = self.world.receivers[rank].ledger.record(block)
        holds = self._holds(rank, block)
        if record.owner is None:
            return Block(rank, block, str(record.state), record.generation, holds=holds)
        owner, given = record.owner, self._given.get((rank, block))
        start, tokens = (given.start, given.tokens) if given is not None else (-1, 0)
        return Block(rank, block, str(record.state), record.generation, owner.room, owner.seq, start, tokens, holds)

    def _holds(self, rank: int, block: int) -> str:
        """What memory holds, in words: stretches of tokens, and whose they are."""
        memory = self.world.memories[rank]
        parts: list[str] = []
        cells, at = memory.cells[block], 0
        while at < len(cells):
            end = at + 1
            while end < len(cells) and _goes_on(cells[at], cells[end], end - at):
                end += 1
            parts.append(self._stretch(cells[at], end - at))
            at = end
        if parts == ["nothing"]:
            parts = []
        total = memory.headers[block].total if self._headers else 0  # the protocol never looks at it
        return ", ".join([*parts, *([f"header: {total} tokens in all"] if total else [])])

    def _stretch(self, value: int, count: int) -> str:
        if value == POISON:
            return "nothing"
        request, token = value_of(value)
        again = f" (request {request})" if self._twice else ""
        return f"{span_text(token, count)} of room {self.world.requests[request].room}{again}"

    def _with_rooms(self, text: str) -> str:
        """Words about memory, with rooms in place of the scenario's numbers of requests."""
        if self._twice:
            return text
        return re.sub(r"request (\d+)", lambda found: f"room {self.world.requests[int(found[1])].room}", text)

    # --- saving ---------------------------------------------------------------------------------------

    def save(self) -> Hashable:
        """All that it has told so far, as far as it counts for what comes."""
        return (
            tuple([tuple(told) for told in self.blocks]), tuple([tuple(sources) for sources in self._sources]),
            sorted_items(self._given), self.folded.save(),
        )  # fmt: skip

    def load(self, saved: Any) -> None:
        """Take on what ``save`` gave; the world must be in the state that it had then."""
        blocks, sources, given, folded = saved
        self.blocks, self._sources = [list(told) for told in blocks], [list(known) for known in sources]
        self._given = dict(given)
        self.folded.load(folded)
        self._arrows, self._touches, self._said, self._passed = [], [], [], []
        self.viewer = Viewer(self.world)


def _through(before: Block, now: Block, passed: Sequence[_Passed]) -> tuple[tuple[str, int], ...]:
    """The states between two records of a block, in order, as far as a step shows them."""
    if (before.state, before.generation) == (now.state, now.generation):
        return ()
    between: list[tuple[str, int]] = []
    at = before.state
    for item in passed:
        if (item.rank, item.block) != (now.rank, now.block) or item.state == at:
            continue
        if (at, item.state) == (BlockState.READING, BlockState.LANDED):
            continue
        # Nobody gets a block that is not free.
        if item.state == BlockState.GRANTED and at not in (BlockState.FREE, BlockState.RESERVED):
            between.append((BlockState.FREE.value, -1))
        between.append((item.state, item.room))
        at = item.state
    if between and between[-1][0] == now.state:
        between.pop()
    return tuple(between)


def _goes_on(first: int, value: int, distance: int) -> bool:
    return value == POISON if first == POISON else value == first + distance


def _under_way(world: World) -> list[tuple[int, Message]]:
    """Every message on its way, with its channel."""
    found = [(channel, message) for channel, messages in enumerate(world.network.channels) for message in messages]
    return [*found, *((stray.channel, stray.message) for stray in world.network.strays)]
