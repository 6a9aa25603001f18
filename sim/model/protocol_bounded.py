"""The bounded composition of the protocol model: so many requests, ranks and blocks, every choice an action of its
own.

It is made of the very functions that the symbolic composition is made of (:mod:`sim.model.protocol`), for
exhaustive search: each clause has to hold in each state that can be reached. All ranks of a request take a step of
the tick together, for all of them act on one observation (R7).

Of old messages only what matters is kept: a GRANT that is not the latest one has no content here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product

from fsm.errors import LocalError
from fsm.kernel import UNKNOWN, Number
from sim.model import protocol_receiver as receiver
from sim.model import protocol_sender as sender
from sim.model.form import Action, Field, Group, Model, Reference
from sim.model.protocol import (
    BLOCK_FIELDS,
    BLOCKS,
    BOOT,
    CLAIM_FIELDS,
    ENTRIES,
    FLAG,
    GIVEN,
    ROOM_FIELDS,
    SEQ,
    STATE,
    TICK,
    TIMES,
    TOKENS,
    Entry,
    TickEntry,
    make_action,
    make_clauses,
)
from sim.model.protocol_parts import FREE, NOBODY, NONE_SEQ, Part, Step
from sim.model.protocol_receiver import Place, latest
from sim.model.protocol_rules import PROTOCOL_RULES, ModelRules

DEADLINE = "a deadline passes"
FAULTS = ("abort or NACK", DEADLINE, "the sender fails", "a write breaks", "a copy fails")
"""Actions that ``faults`` switches on: whatever ends a request early."""
COUNTED = tuple(name for name in FAULTS if name != DEADLINE)
"""Those that the budget ``aborts`` pays for. A deadline is no fault: without ``faults`` no clock runs."""
TOGETHER = ("stage", "the sender crashes")
"""Actions of a sender process that concern all lanes of a request, or all that there are, at once."""
NOTICED = "own completion"
TICK_GRANT = "tick: grant"


def kind_of(name: str) -> str:
    """The kind of an action of the model: its name without its request, and without what was chosen in it."""
    body = name.split(": ", 1)[1]
    if body.startswith(TICK_GRANT):
        return TICK_GRANT
    return " ".join(word for word in body.split(" ") if "=" not in word)


@dataclass(frozen=True)
class Bounds:
    """How large. Sizes in tokens or blocks; ``late`` for a transport whose bytes may land after its word,
    ``early_tokens`` for a grant before the OFFER.

    Whatever ends a request early (:data:`FAULTS`) may strike as often as can be with ``faults``; without, ``aborts``
    times in all, in any request at any moment, and no deadline passes. Receiver rank r is served by sender process
    r mod ``senders``; ``crashes`` times in all one of them crashes, with all its lanes. Messages are always late,
    doubled and out of order, without a budget. ``notices``: the receiver has completions of its own even where it does
    not need them (where it needs them, it has them). ``resubmits``: a process that starts after a crash is given the
    requests again; else it knows none of them, and a request that was not registered yet waits for its deadline.
    """

    rooms: int = 1
    ranks: int = 1
    blocks: int = 1
    size: int = 2
    block_tokens: int = 1
    grant_blocks_max: int = 0
    early_tokens: int = 0
    crashes: int = 0
    faults: bool = True
    leases: bool = False
    late: bool = False
    senders: int = 1
    aborts: int = 0
    notices: bool = False
    resubmits: bool = True

    def __post_init__(self) -> None:
        for name in ("rooms", "ranks", "blocks", "size", "block_tokens", "senders"):
            if getattr(self, name) < 1:
                raise LocalError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("grant_blocks_max", "early_tokens", "crashes", "aborts"):
            if getattr(self, name) < 0:
                raise LocalError(f"{name}={getattr(self, name)}: expected 0 or more")
        if self.faults and self.aborts:
            raise LocalError(f"aborts={self.aborts} with faults=True: there is no end of faults then, and no budget")


class Layout:
    """Which requests and blocks there are, and what they are called."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        ranks = range(bounds.ranks)
        self.pools = [tuple(f"k{rank}b{block}" for block in range(bounds.blocks)) for rank in ranks]
        self.rooms = [tuple(self._place(room, rank) for rank in ranks) for room in range(bounds.rooms)]
        self.places = [place for room in self.rooms for place in room]

    def _place(self, room: int, rank: int) -> Place:
        bounds = self.bounds
        return Place(
            f"r{room}k{rank}", room + 1, self.pools[rank],
            peers=tuple(f"r{room}k{other}" for other in range(bounds.ranks) if other != rank),
            rivals=tuple(f"r{other}k{rank}" for other in range(bounds.rooms) if other != room), folded=False,
        )  # fmt: skip

    @property
    def served(self) -> list[tuple[Place, ...]]:
        """For each sender process the requests and ranks that it serves; one without a rank is left out."""
        senders = self.bounds.senders
        found = [
            tuple(place for room in self.rooms for rank, place in enumerate(room) if rank % senders == sender)
            for sender in range(senders)
        ]
        return [places for places in found if places]

    def range_of(self, kind: str) -> tuple[int, int]:
        """The bounds of a field of that kind. There are no more grants than tokens, and each frees a block once."""
        size, rooms, blocks = self.bounds.size, self.bounds.rooms, self.bounds.blocks
        return {
            FLAG: (0, 1), STATE: (0, 5), SEQ: (NONE_SEQ, size), TOKENS: (UNKNOWN, max(size, self.bounds.early_tokens)),
            BOOT: (0, 1 + self.bounds.crashes), BLOCKS: (0, max(blocks, rooms + 1)), TIMES: (0, rooms * size + 1),
        }[kind]  # fmt: skip


class Picked:
    """What an action leaves open, in one of its versions: some of it chosen, the rest what the ranks really see.

    It looks at the state before the action, whatever was drafted for other ranks meanwhile.
    """

    def __init__(
        self, step: Step, place: Place, layout: Layout, chosen: Mapping[str, int], taken: Sequence[str] = ()
    ) -> None:
        self._step = Step(step.ops, step.view, step.rules)
        self._place = place
        self._layout = layout
        self._taken = tuple(taken)
        self._room = self._step.part(place.room)
        self._peers = [self._step.part(peer) for peer in place.peers]
        self._chosen = {"header": 0, "result_fits": 1, "others_have": 1, "same_list": 0, **chosen}

    def __getattr__(self, name: str) -> Number:
        chosen = self._chosen
        return chosen[name] if name in chosen else getattr(self, f"_see_{name}")()

    def _free(self, pool: Sequence[str]) -> Number:
        ops = self._step.ops
        return sum(ops.where(self._step.part(name).state == FREE, 1, 0) for name in pool)

    def _see_own_free(self) -> Number:
        return self._free(self._place.blocks)

    def _see_free(self) -> Number:
        least = self._free(self._layout.pools[0])
        for pool in self._layout.pools[1:]:
            least = self._step.ops.minimum(least, self._free(pool))
        return least

    def offer(self, count: int, grant: receiver.Grant) -> None:
        """The allocator may offer fewer blocks than are free: just as many as make a grant of ``count``, where all
        that are free would make another."""
        ops = self._step.ops
        least = ops.where(grant.early, count + 1, count)
        for name in ("own_free", "free"):
            offered = getattr(self, name)
            self._chosen[name] = ops.where(grant.blocks == count, offered, ops.minimum(offered, least))

    def _least(self, name: str, start: Number) -> Number:
        for peer in self._peers:
            start = self._step.ops.minimum(start, getattr(peer, name))
        return start

    def _most(self, name: str, start: Number) -> Number:
        for peer in self._peers:
            start = self._step.ops.maximum(start, getattr(peer, name))
        return start

    def _see_others_know(self) -> Number:
        return self._step.ops.where(self._least("total", self._room.size) > UNKNOWN, 1, 0)

    def _see_others_registered(self) -> Number:
        return self._least("registered", 1)

    def _see_others_delivered(self) -> Number:
        return self._least("delivered", self._room.size)

    def _see_failure_seen(self) -> Number:
        return self._most("failure", self._room.failure)

    def _see_last(self) -> Number:
        return self._most("l_committed", 0)

    def _see_tokens(self) -> Number:
        return self._room.done_said

    def _see_seq(self) -> Number:
        return self._room.ack_seq

    def _see_start(self) -> Number:
        return self._latest(self._room.g_start, 0)

    def _see_capacity(self) -> Number:
        return self._latest(self._room.g_cap, 1)

    def _see_blocks(self) -> Number:
        return self._latest(self._room.g_blocks, 1)

    def _latest(self, value: Number, old: int) -> Number:
        seq = self._chosen.get("seq", NONE_SEQ)
        return self._step.ops.where(latest(self._room) == seq, value, old)

    def of(self, block: str) -> _PickedBlock:
        """What is chosen for one block."""
        return _PickedBlock(self, self._step.claim(self._room, block), block)


class _PickedBlock:
    """As :class:`Picked`, for one block. For a GRANT that is sent: the blocks that were taken, in their order; for one
    that is delivered: those that it names."""

    def __init__(self, picked: Picked, claim: Part, block: str) -> None:
        taken = picked._taken
        self.index = taken.index(block) if block in taken else 0
        if "seq" in picked._chosen:
            self.has = picked._latest(claim.g_has, 0)
            self.generation = picked._latest(claim.g_gen, 0)
        else:
            self.has = 1 if block in taken else 0
            self.generation = 0


def bounded(bounds: Bounds, rules: ModelRules = PROTOCOL_RULES) -> Model:
    """The model of that size. Every token, and every grant, is the one that is followed in a start state of its own."""
    layout = Layout(bounds)
    fields: list[Field] = []
    initial: dict[str, int] = {
        "block_tokens": bounds.block_tokens, "grant_blocks_max": bounds.grant_blocks_max, "late": int(bounds.late),
        "landed_required": int(bounds.late), "two_sided": int(bounds.late),
    }  # fmt: skip
    fields += [Field(name, value, value) for name, value in initial.items()]
    budgets = {"aborts_left": bounds.aborts, "crashes_left": bounds.crashes}
    fields += [Field(name, 0, count) for name, count in budgets.items()]
    initial |= budgets

    def add(prefix: str, kinds: Mapping[str, tuple[str, int]]) -> None:
        for name, (kind, start) in kinds.items():
            fields.append(Field(f"{prefix}_{name}", *layout.range_of(kind)))
            initial[f"{prefix}_{name}"] = start

    for pool in layout.pools:
        for block in pool:
            add(block, BLOCK_FIELDS)
    for place in layout.places:
        add(place.room, ROOM_FIELDS)
        for block in place.blocks:
            add(f"{place.room}_{block}", CLAIM_FIELDS)
        given = {"size": (bounds.size, bounds.size), "token": (0, bounds.size - 1), "o_seq": (0, bounds.size - 1),
                 "early": (bounds.early_tokens, bounds.early_tokens)}  # fmt: skip
        fields += [Field(f"{place.room}_{name}", *given[name]) for name in GIVEN]
        initial |= {f"{place.room}_{name}": given[name][0] for name in GIVEN}
    starts = [
        {**initial, **{f"{place.room}_{name}": number for place in layout.places for name in ("token", "o_seq")}}
        for number in range(bounds.size)
    ]
    blocks = [block for pool in layout.pools for block in pool]
    actions = [*_room_actions(layout, rules), *_sender_actions(layout, rules), *_tick_actions(layout, rules)]
    # Of several clauses that a state breaks the first is reported: rather one of a property than one for the induction.
    clauses = sorted(make_clauses(layout.places, blocks, rules), key=lambda clause: not clause.property)
    return Model("protocol-bounded", tuple(fields), tuple(starts), tuple(actions), tuple(clauses), *_symmetry(layout))


def _symmetry(layout: Layout) -> tuple[tuple[Group, ...], tuple[Reference, ...]]:
    """What may be exchanged: the blocks of one rank, with all that requests have on record of them; whole ranks, where
    each has a sender of its own or all have one; whole requests, whose numbers the ledger names as owners."""
    bounds = layout.bounds
    groups: list[Group] = []
    for rank, pool in enumerate(layout.pools):
        rooms = [room[rank].room for room in layout.rooms]
        groups.append(tuple(tuple(_block_record(block, rooms)) for block in pool))
    alike = bounds.senders == 1 or bounds.senders >= bounds.ranks
    if alike and bounds.ranks > 1:
        groups.append(tuple(tuple(_rank_record(layout, rank)) for rank in range(bounds.ranks)))
    groups = [group for group in groups if len(group) > 1]
    references: tuple[Reference, ...] = ()
    if bounds.rooms > 1:
        groups.append(tuple(tuple(_request_record(room)) for room in layout.rooms))
        owners = [f"{block}_owner" for pool in layout.pools for block in pool]
        references = tuple(Reference(name, len(groups) - 1, NOBODY + 1) for name in owners)
    return tuple(groups), references


def _block_record(block: str, rooms: Sequence[str]) -> Iterator[str]:
    yield from (f"{block}_{name}" for name in BLOCK_FIELDS)
    yield from (f"{room}_{block}_{name}" for room in rooms for name in CLAIM_FIELDS)


def _place_record(place: Place) -> Iterator[str]:
    yield from (f"{place.room}_{name}" for name in (*ROOM_FIELDS, *GIVEN))


def _rank_record(layout: Layout, rank: int) -> Iterator[str]:
    """Its pool, and every request on it."""
    rooms = [room[rank] for room in layout.rooms]
    for block in layout.pools[rank]:
        yield from _block_record(block, [place.room for place in rooms])
    for place in rooms:
        yield from _place_record(place)


def _request_record(places: Sequence[Place]) -> Iterator[str]:
    """A request on all its ranks, with what it has on record of blocks."""
    for place in places:
        yield from _place_record(place)
        for block in place.blocks:
            yield from (f"{place.room}_{block}_{name}" for name in CLAIM_FIELDS)


def _picks(layout: Layout, entry: Entry) -> Iterator[dict[str, int]]:
    bounds = layout.bounds
    values = {
        "boot": range(1, 2 + bounds.crashes), "seq": range(bounds.size), "tokens": range(1, bounds.size + 1)
    }  # fmt: skip
    for chosen in product(*(values[name] for name in entry.picks)):
        yield dict(zip(entry.picks, chosen, strict=True))


def _room_actions(layout: Layout, rules: ModelRules) -> Iterator[Action]:
    bounds = layout.bounds
    for place in layout.places:
        for entry in ENTRIES:
            if entry.name in TOGETHER or not _allowed(bounds, entry.name):
                continue
            for chosen in _picks(layout, entry):
                yield _room_action(layout, rules, place, entry, chosen)


def _allowed(bounds: Bounds, name: str) -> bool:
    if name == "lease":
        return bounds.leases
    if name == NOTICED:
        return bounds.late or bounds.notices
    if name == DEADLINE and not bounds.faults:
        return bounds.crashes > 0 and not bounds.resubmits
    return bounds.faults or name not in FAULTS or (bounds.aborts > 0 and name in COUNTED)


def _known(step: Step, room: Part, bounds: Bounds, name: str) -> Number:
    """Whether a lane's process was given the request; if not, a request that it never registered can but wait."""
    if bounds.resubmits or not bounds.crashes:
        return step.view["late"] >= 0
    if name in ("receive REGISTER", "the sender fails"):
        return room.s_boot == 1
    if name == DEADLINE and not bounds.faults:
        return (room.s_boot > 1) & (room.registered == 0)
    return step.view["late"] >= 0


def _room_action(layout: Layout, rules: ModelRules, place: Place, entry: Entry, chosen: dict[str, int]) -> Action:
    counted = entry.name in COUNTED and not layout.bounds.faults

    def guard(step: Step) -> Number:
        allowed = entry.guard(step, place, Picked(step, place, layout, chosen))
        allowed = allowed & _known(step, step.part(place.room), layout.bounds, entry.name)
        return allowed & (step.view["aborts_left"] > 0) if counted else allowed

    def draft(step: Step) -> None:
        entry.draft(step, place, Picked(step, place, layout, chosen))
        if counted:
            step.changes["aborts_left"] = step.view["aborts_left"] - 1

    version = " ".join(f"{name}={value}" for name, value in chosen.items())
    return make_action(f"{place.room}: {entry.name} {version}".strip(), rules, guard, draft, entry.fair)


def _sender_actions(layout: Layout, rules: ModelRules) -> Iterator[Action]:
    """A payload is staged for all ranks that a process serves. A process dies with its lanes, and another starts."""
    for number, served in enumerate(layout.served):
        for room in layout.rooms:
            lanes = [place for place in room if place in served]

            def stage(step: Step, lanes: Sequence[Place] = lanes) -> None:
                for place in lanes:
                    sender.stage(step, place, None)

            def can_stage(step: Step, first: Place = lanes[0]) -> Number:
                fresh = (step.part(first.room).s_boot == 1) if not layout.bounds.resubmits else step.view["late"] >= 0
                return sender.can_stage(step, first, None) & fresh

            yield make_action(f"{lanes[0].room}: stage", rules, can_stage, stage, True)

        def crash(step: Step, served: Sequence[Place] = served) -> None:
            for place in served:
                sender.crash(step, place, None)
            step.changes["crashes_left"] = step.view["crashes_left"] - 1

        if layout.bounds.crashes:
            yield make_action(
                f"s{number}: the sender crashes", rules, lambda step: step.view["crashes_left"] > 0, crash, False
            )


def _tick_actions(layout: Layout, rules: ModelRules) -> Iterator[Action]:
    for places in layout.rooms:
        for tick in TICK:
            if not tick.grants:
                yield _tick_action(layout, rules, places, tick, [()] * len(places))
                continue
            for counts in product(range(1, layout.bounds.blocks + 1), repeat=len(places)):
                # R7: all ranks are granted as many blocks. Only where that rule is replaced need other grants be looked
                # at; else their guards would be false for ever.
                if max(counts) > min(counts) and rules.equal_capacity is PROTOCOL_RULES.equal_capacity:
                    continue
                chosen = (permutations(place.blocks, count) for place, count in zip(places, counts, strict=True))
                for taken in product(*chosen):
                    yield _tick_action(layout, rules, places, tick, list(taken))


def _tick_action(
    layout: Layout, rules: ModelRules, places: Sequence[Place], tick: TickEntry, taken: Sequence[Sequence[str]]
) -> Action:
    def see(step: Step) -> list[tuple[Place, Picked, receiver.Seen]]:
        picked = [Picked(step, place, layout, {}, blocks) for place, blocks in zip(places, taken, strict=True)]
        seen = [
            (place, choice, receiver.observe(step, place, choice)) for place, choice in zip(places, picked, strict=True)
        ]
        for (place, choice, observed), blocks in zip(seen, taken, strict=True) if tick.grants else ():
            choice.offer(len(blocks), receiver.work_out_grant(step, place, choice, observed))
        return seen

    def guard(step: Step) -> Number:
        allowed: Number = step.view["late"] >= 0
        for (place, choice, seen), blocks in zip(see(step), taken, strict=True):
            allowed = allowed & tick.guard(step, place, choice, seen)
            if tick.grants:
                wanted = receiver.work_out_grant(step, place, choice, seen).blocks
                allowed = allowed & (wanted == len(blocks))
        return allowed

    def draft(step: Step) -> None:
        for place, choice, seen in see(Step(step.ops, step.view, step.rules)):
            tick.draft(step, place, choice, seen)

    given = " ".join("".join(block[-2:] for block in blocks) for blocks in taken if blocks)
    room = places[0].room.partition("k")[0]
    return make_action(f"{room}: {tick.name} {given}".strip(), rules, guard, draft, True)
