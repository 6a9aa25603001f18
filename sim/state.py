"""A world's whole state as a tuple of small numbers, equal for states that differ in names only.

Each process, each rank's memory, the network and the checkers' memory is one *component*. Its content is saved as a
nested tuple and looked up in a table that gives it a number; a state is the tuple of those numbers. Components repeat
far more often than states do, so this is both a compression and a cache: what is computed for a component is computed
once.

Two states are the same if they differ only

* in the numbers of blocks, under the adversary allocator, which chooses freely among them: each block's whole record
  (ledger entry, content, header, every reference to it and where that stands) is made, and blocks are renumbered in the
  order of their records;
* in generations that no comparison can tell apart: a reference either names its block's present generation or an
  earlier one, which never becomes present again. The present one is 1, every earlier one 0;
* in the time on the clock: all times are kept relative to now.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import msgspec

from fsm.blocks import BlockRecord, Owner, PerBlock
from fsm.messages import BlockRef, Epoch, Grant
from sim.flight import Copying
from sim.memo import REMEMBERED_ACTIONS, Interner, Remembered, RememberedReceiver, RememberedSender
from sim.network import Stray
from sim.world import Action, World

Key = tuple[int, ...]
"""A state: the numbers of its components."""

_LEAVES = (int, str, float, Epoch, Owner, type(None))
_RAW = msgspec.msgpack.Encoder()


def _references(value: Any, rank: int) -> Iterator[tuple[int, BlockRef]]:
    """Every block reference in a nested value, with the rank whose block it is, in a fixed order."""
    kind = type(value)
    if kind is BlockRef:
        yield rank, value
    elif kind is Copying:
        yield from _references(value.effect, value.rank)
    elif kind is Grant:
        for ref in value.blocks:
            yield value.receiver_rank, ref
    elif isinstance(value, tuple) and kind not in (Epoch, Owner, PerBlock, BlockRecord):
        for item in value:
            yield from _references(item, rank)


Renaming = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""For each rank: old number -> new number, and old number -> present generation."""


def _renamed(value: Any, rank: int, renaming: Renaming) -> Any:
    kind = type(value)
    if kind in _LEAVES or kind is bool:
        return value
    if kind is Copying:
        return Copying(value[0], value[1], _renamed(value[2], value[0], renaming))
    if kind is BlockRef:
        numbers, generations = renaming[rank]
        return BlockRef(numbers[value[0]], 0 if value[1] < generations[value[0]] else 1)
    if kind is Grant:
        numbers, generations = renaming[value.receiver_rank]
        refs = tuple([BlockRef(numbers[b], 0 if g < generations[b] else 1) for b, g in value.blocks])
        return value if refs == value.blocks else msgspec.structs.replace(value, blocks=refs)
    if kind is PerBlock:
        moved: list[Any] = [None] * len(value)
        for block, item in enumerate(value):
            moved[renaming[rank][0][block]] = item._replace(generation=1) if type(item) is BlockRecord else item
        return PerBlock(moved)
    if isinstance(value, tuple):
        items = [_renamed(item, rank, renaming) for item in value]
        return tuple(items) if kind is tuple else kind(*items)
    return value


class StateSpace:
    """Saves and loads a world's states. ``symmetric`` renumbers blocks (sound for an allocator that chooses freely)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.symmetric = world.scenario.pool.allocator == "adversary"
        ranks, senders = len(world.receivers), len(world.senders)
        self.ranks = ranks
        self.tables = [Interner() for _ in range(2 * ranks + senders + 4)]
        self._entries = Interner()
        self._renamings = Interner()
        self._seen: list[dict[int, tuple[tuple[int, BlockRef], ...]]] = [{} for _ in self.tables]
        self._renamed: list[dict[tuple[int, int], int]] = [{} for _ in self.tables]
        self._network = 2 * ranks + senders
        self._loaded: list[int] = [-1] * len(self.tables)
        self._processes: list[Remembered] = []

    def remember(self) -> None:
        """From now on the world's processes remember their steps; ``before`` and ``after`` then frame every action."""
        world = self.world
        for rank, receiver in enumerate(world.receivers):
            view = world._new_receiver(rank, 1).ledger
            self._processes.append(RememberedReceiver(receiver, self.tables[rank], view))
        for rank, sender in enumerate(world.senders):
            self._processes.append(RememberedSender(sender, self.tables[2 * self.ranks + rank]))
        self._wrap()

    def _wrap(self) -> None:
        self.world.receivers = list(self._processes[: self.ranks])  # type: ignore[arg-type]
        self.world.senders = list(self._processes[self.ranks :])  # type: ignore[arg-type]

    def before(self, action: Action) -> None:
        """Put the real objects in place for an action that is not remembered."""
        if action[0] not in REMEMBERED_ACTIONS:
            self.world.receivers = [process.real() for process in self._processes[: self.ranks]]
            self.world.senders = [process.real() for process in self._processes[self.ranks :]]

    def after(self, action: Action) -> None:
        """Take the real objects' states, at whatever time it is now."""
        world = self.world
        if action[0] not in REMEMBERED_ACTIONS:
            for process, real in zip(self._processes, (*world.receivers, *world.senders), strict=True):
                process.take(real, world.now)
            self._wrap()

    # --- saving ---------------------------------------------------------------------------------------

    def save(self) -> Key:
        """The world's present state, canonical. A side that the last action did not touch is not looked at again."""
        world, now, ranks = self.world, self.world.now, self.ranks
        known = self._loaded
        if known[0] < 0 or now:
            world.touched = "all"
        raw: list[int] = []
        number = [table.number for table in self.tables]
        if world.touched == "sender":
            raw += known[: 2 * ranks]
        else:
            raw += [_number(receiver, number[rank], now) for rank, receiver in enumerate(world.receivers)]
            raw += [number[ranks + rank](memory.save()) for rank, memory in enumerate(world.memories)]
        if world.touched == "receiver":
            raw += known[2 * ranks : self._network]
        else:
            raw += [_number(sender, number[2 * ranks + r], now) for r, sender in enumerate(world.senders)]
        raw += [number[self._network](world.network.save()), number[self._network + 1](self._under_way())]
        if world.events or world.touched == "all":
            raw.append(number[self._network + 2](world.monitors.save()))
        else:  # no checker has seen anything
            raw.append(known[self._network + 2])
        raw.append(number[self._network + 3](self._rest()))
        self._loaded = list(raw)
        return self._canonical(raw)

    def _under_way(self) -> tuple[Any, ...]:
        world = self.world
        return (world.flights, world.copies, world.stagings, world.leases, world.results)

    def _rest(self) -> tuple[Any, ...]:
        world = self.world
        return (
            world.arrived, tuple(world.sending.items()), tuple(world.receiving.items()), world.quiet,
            world.last_boot_id, world.disturbed, tuple(world.incarnations), world.dead_boots, tuple(world.entered),
            world.agreed, world.left, world.skewed, tuple(world.budget.values()),
        )  # fmt: skip

    def _canonical(self, raw: list[int]) -> Key:
        renaming = []
        for rank in range(self.ranks):
            records = self.tables[rank].values[raw[rank]][2][0]
            generations = tuple([record.generation for record in records])
            numbers = self._numbers(rank, raw, records, generations) if self.symmetric else tuple(range(len(records)))
            renaming.append((numbers, generations))
        number = self._renamings.number(tuple(renaming))
        return tuple([self._rename(component, raw[component], number) for component in range(len(raw))])

    def _component_references(self, component: int, number: int) -> tuple[tuple[int, BlockRef], ...]:
        known = self._seen[component].get(number)
        if known is None:
            rank = component if component < self.ranks else 0
            known = tuple(_references(self.tables[component].values[number], rank))
            self._seen[component][number] = known
        return known

    def _numbers(
        self, rank: int, raw: list[int], records: tuple[BlockRecord, ...], generations: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Old block number -> new block number: blocks in the order of their whole records."""
        signatures = self._signatures(rank, raw, records, generations)
        order = sorted(range(len(records)), key=signatures.__getitem__)
        numbers = [0] * len(records)
        for new, old in enumerate(order):
            numbers[old] = new
        return tuple(numbers)

    def _signatures(
        self, rank: int, raw: list[int], records: tuple[BlockRecord, ...], generations: tuple[int, ...]
    ) -> list[list[int]]:
        cells = self.tables[self.ranks + rank].values[raw[self.ranks + rank]]
        number = self._entries.number
        signatures = [
            [number((record.state, record.owner, cell))] for record, cell in zip(records, cells, strict=True)
        ]
        for component, held in enumerate(raw):
            if component < self.ranks and component != rank:
                continue
            for position, (ref_rank, ref) in enumerate(self._component_references(component, held)):
                if ref_rank == rank:
                    current = ref[1] >= generations[ref[0]]
                    signatures[ref[0]].append((component << 16 | position) << 1 | current)
        return signatures

    def _rename(self, component: int, number: int, renaming: int) -> int:
        known = self._renamed[component].get((number, renaming))
        if known is None:
            table = self.tables[component]
            rank = component % self.ranks if component < 2 * self.ranks else 0
            value = _renamed(table.values[number], rank, self._renamings.values[renaming])
            if component < self.ranks:
                value = self._free_list_renamed(value, rank, renaming)
            elif component == self._network:
                value = (value[0], _sorted(value[1]), value[2])
            known = table.number(value)
            self._renamed[component][number, renaming] = known
        return known

    def _free_list_renamed(self, value: tuple[Any, ...], rank: int, renaming: int) -> tuple[Any, ...]:
        """The free list holds bare block numbers; its order means nothing to an allocator that chooses freely."""
        if not self.symmetric:
            return value
        records, free, remembered = value[2]
        numbers = self._renamings.values[renaming][rank][0]
        free = tuple(sorted([numbers[block] for block in free]))
        return (*value[:2], (records, free, remembered), *value[3:])

    # --- loading --------------------------------------------------------------------------------------

    def load(self, key: Key) -> None:
        """Put the world into a state; only components that differ from what was loaded or saved last are touched."""
        world, ranks = self.world, self.ranks
        if world.now:
            self.dirty()  # what is in the objects is relative to another time
        changed = [component for component, number in enumerate(key) if number != self._loaded[component]]
        world.now = 0
        for component in changed:
            value = self.tables[component].values[key[component]]
            if component < ranks and self._processes:
                self._processes[component].number = key[component]
            elif 2 * ranks <= component < self._network and self._processes:
                self._processes[component - ranks].number = key[component]
            elif component < ranks:
                world.receivers[component].load(value, 0)
            elif component < 2 * ranks:
                world.memories[component - ranks].load(value)
            elif component < self._network:
                world.senders[component - 2 * ranks].load(value, 0)
            elif component == self._network:
                world.network.load(value)
            elif component == self._network + 1:
                world.flights, world.copies, world.stagings, world.leases, world.results = value
            elif component == self._network + 2:
                world.monitors.load(value)
            else:
                self._load_rest(value)
        world.monitors.violations = []
        world.ticks = 0
        self._loaded = list(key)

    def dirty(self) -> None:
        """The world was changed since it was saved or loaded: nothing in it may be relied on."""
        self._loaded = [-1] * len(self.tables)

    def _load_rest(self, value: tuple[Any, ...]) -> None:
        world = self.world
        (
            world.arrived, sending, receiving, world.quiet, world.last_boot_id, world.disturbed, incarnations,
            world.dead_boots, entered, world.agreed, world.left, world.skewed, budget,
        ) = value  # fmt: skip
        world.sending, world.receiving = dict(sending), dict(receiving)
        world.incarnations, world.entered = list(incarnations), list(entered)
        world.budget = dict(zip(world.budget, budget, strict=True))

    def kinds(self, key: Key, rank: int) -> list[Hashable]:
        """For each block of a rank: what tells it from the others in a canonical state, references included."""
        records = self.tables[rank].values[key[rank]][2][0]
        generations = tuple([record.generation for record in records])
        return [tuple(s) for s in self._signatures(rank, list(key), records, generations)]


def _number(process: Any, number: Callable[[Any], int], now: float) -> int:
    return process.number if isinstance(process, Remembered) else number(process.save(now))


def _sorted(strays: tuple[Stray, ...]) -> tuple[Stray, ...]:
    """Strays in one order: theirs means nothing."""
    if len(strays) < 2:
        return strays
    return tuple(sorted(strays, key=lambda stray: (stray.channel, stray.repeats, _RAW.encode(stray.message))))
