"""The ledger: every legal move, every refusal with the property that it guards, and a model beside it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fsm import blocks as blocks_module
from fsm.allocators import Adversary, Choices, Fifo, FirstChoice, Kind, Lifo, SameAgain
from fsm.blocks import BlockLedger, BlockRecord, Owner, PerBlock
from fsm.errors import LedgerError, LocalError
from fsm.messages import BlockRef, Epoch
from fsm.states import BlockState

NONE = FirstChoice()
EPOCH = Epoch(7, 1)
OWNER = Owner(1, EPOCH, 0)
OTHERS = {
    "room": Owner(2, EPOCH, 0),
    "boot_id": Owner(1, Epoch(8, 1), 0),
    "epoch": Owner(1, Epoch(7, 2), 0),
    "seq": Owner(1, EPOCH, 1),
}

FREE, RESERVED, GRANTED = BlockState.FREE, BlockState.RESERVED, BlockState.GRANTED
LANDED, READING, QUARANTINED = BlockState.LANDED, BlockState.READING, BlockState.QUARANTINED

MOVES = {
    (FREE, "reserve"): RESERVED,
    (RESERVED, "grant"): GRANTED,
    (RESERVED, "free"): FREE,
    (GRANTED, "land"): LANDED,
    (GRANTED, "unreached"): FREE,
    (GRANTED, "quarantine"): QUARANTINED,
    (LANDED, "read"): READING,
    (LANDED, "free"): FREE,
    (READING, "free"): FREE,
    (QUARANTINED, "release"): FREE,
}
"""Rule R5, spelled out once more."""

EVENTS = ("grant", "land", "read", "free", "unreached", "quarantine", "release")

WAY_TO = {
    FREE: (),
    RESERVED: (),
    GRANTED: ("grant",),
    LANDED: ("grant", "land"),
    READING: ("grant", "land", "read"),
    QUARANTINED: ("grant", "quarantine"),
}
"""The moves that bring a reserved block to each state."""

GUARDED = dict.fromkeys(EVENTS, "I3") | {"land": "I1", "read": "I2"}
"""The property behind a refusal on account of owner, generation or number."""

SOURCE = {event: next(state for state, move in MOVES if move == event) for event in EVENTS}
"""A state from which each event is legal."""

ADVICE = blocks_module._ADVICE
WHO = "room 1 epoch (7, 1) seq 0"


def act(ledger: BlockLedger, event: str, owner: Owner, refs: Any) -> None:
    """Calls the move of that name."""
    getattr(ledger, event)(owner, refs)


def ledger_with(state: BlockState, count: int = 2) -> tuple[BlockLedger, tuple[BlockRef, ...]]:
    """A ledger of four blocks, the first ``count`` in that state for ``OWNER`` (once used, if free)."""
    ledger = BlockLedger(4, Fifo())
    refs = ledger.reserve(OWNER, count, NONE)
    for event in WAY_TO[state]:
        act(ledger, event, OWNER, refs)
    if state == FREE:
        ledger.free(OWNER, refs)
    assert {ledger.record(ref.block).state for ref in refs} == {state}
    return ledger, refs


def refused(ledger: BlockLedger, event: str, owner: Owner, refs: Any) -> LedgerError:
    """The refusal of a move, which must have changed nothing."""
    before = ledger.save()
    with pytest.raises(LedgerError) as error:
        act(ledger, event, owner, refs)
    assert ledger.save() == before
    return error.value


def told(error: LedgerError, event: str, asked: str, reason: str, who: str = WHO, guarded: str = "") -> None:
    """The refusal says what was asked, what is wrong and what to do, and which property would have gone."""
    assert str(error) == f"cannot {event} {asked} for {who}: {reason}; {ADVICE[event]}"
    assert error.property == (guarded or GUARDED[event])


def used_before() -> tuple[BlockLedger, tuple[BlockRef, ...]]:
    """A ledger of one block, reserved for ``OWNER``, which has had it before: only the generation differs."""
    ledger = BlockLedger(1, Fifo())
    refs = ledger.reserve(OWNER, 1, NONE)
    ledger.grant(OWNER, refs)
    ledger.unreached(OWNER, refs)
    refs = ledger.reserve(OWNER, 1, NONE)
    assert refs == (BlockRef(0, 1),)
    return ledger, refs


# ---- a new ledger -------------------------------------------------------------------------------------


def test_a_new_ledger_is_all_free() -> None:
    allocator = Fifo()
    ledger = BlockLedger(3, allocator)
    assert len(ledger) == ledger.free_count == 3
    assert ledger.free_list == (0, 1, 2)
    assert [ledger.record(block) for block in range(3)] == [BlockRecord(FREE, None, 0)] * 3
    assert ledger.counts() == {FREE: 3, RESERVED: 0, GRANTED: 0, LANDED: 0, READING: 0, QUARANTINED: 0}
    assert list(ledger.counts()) == list(BlockState)
    assert ledger.audit() is None
    assert ledger.allocator is allocator


def test_a_ledger_has_at_least_one_block() -> None:
    assert BlockLedger(1, Fifo()).free_list == (0,)
    with pytest.raises(LocalError, match=r"^a ledger of 0 blocks is of no use; it needs at least 1$"):
        BlockLedger(0, Fifo())


@pytest.mark.parametrize("block", [-1, 3])
def test_a_block_that_does_not_exist_has_no_record(block: int) -> None:
    ledger = BlockLedger(3, Fifo())
    text = f"block {block} does not exist: the pool has blocks 0 to 2"
    with pytest.raises(LedgerError, match=f"^{text}$") as error:
        ledger.record(block)
    assert error.value.property == "I3"


# ---- reserving ----------------------------------------------------------------------------------------


def test_reserving_takes_what_the_allocator_says() -> None:
    ledger = BlockLedger(4, Lifo())
    assert ledger.reserve(OWNER, 2, NONE) == (BlockRef(3, 0), BlockRef(2, 0))
    assert ledger.free_list == (0, 1)
    assert ledger.free_count == 2
    assert ledger.record(3) == ledger.record(2) == BlockRecord(RESERVED, OWNER, 0)
    assert ledger.record(1) == BlockRecord(FREE, None, 0)


def test_a_reference_has_the_generation_of_its_own_block() -> None:
    ledger = BlockLedger(2, Fifo())
    first = ledger.reserve(OWNER, 1, NONE)
    ledger.grant(OWNER, first)
    ledger.unreached(OWNER, first)
    assert ledger.reserve(OWNER, 2, NONE) == (BlockRef(1, 0), BlockRef(0, 1))


@pytest.mark.parametrize("count", [-1, 0, 4])
def test_reserving_too_few_or_too_many_is_refused(count: int) -> None:
    ledger = BlockLedger(5, Fifo())
    ledger.reserve(OTHERS["room"], 2, NONE)
    before = ledger.save()
    text = f"cannot reserve {count} blocks for {WHO}: 3 of 5 are free; {ADVICE['reserve']}, and at least 1"
    with pytest.raises(LedgerError, match=f"^{re.escape(text)}$") as error:
        ledger.reserve(OWNER, count, NONE)
    assert error.value.property == "I3"
    assert ledger.save() == before
    assert len(ledger.reserve(OWNER, 3, NONE)) == 3  # all that are left, which is legal
    assert ledger.free_list == ()
    assert ledger.audit() is None


class Wrong(SameAgain):
    """Gives and offers what it is told to."""

    name = "wrong"
    takes: tuple[int, ...] = ()
    offers = 0

    def offer(self, free: int, choices: Choices) -> int:
        return self.offers

    def take(
        self, free: tuple[int, ...], count: int, room: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[int, ...]:
        return self.takes


@pytest.mark.parametrize("takes", [(1,), (1, 2, 3), (1, 1), (1, 0), (1, 9), (1, -1), (), (1, 1, 2)])
def test_an_allocator_that_takes_what_it_must_not_is_refused(takes: tuple[int, ...]) -> None:
    allocator = Wrong()
    ledger = BlockLedger(4, allocator)
    allocator.takes = (0,)
    ledger.reserve(OTHERS["room"], 1, NONE)
    before = ledger.save()
    allocator.takes = takes
    text = f"allocator 'wrong' was to take 2 different blocks of [1, 2, 3], but took {list(takes)}"
    with pytest.raises(LedgerError, match=f"^{re.escape(text)}$") as error:
        ledger.reserve(OWNER, 2, NONE)
    assert error.value.property == "I3"
    assert ledger.save() == before
    allocator.takes = (3, 1)
    assert ledger.reserve(OWNER, 2, NONE) == (BlockRef(3, 0), BlockRef(1, 0))


@pytest.mark.parametrize("offers", [-1, 3])
def test_an_allocator_that_offers_what_it_has_not_is_refused(offers: int) -> None:
    allocator = Wrong()
    ledger = BlockLedger(2, allocator)
    allocator.offers = offers
    text = f"allocator 'wrong' offers {offers} blocks, but 2 are free"
    with pytest.raises(LedgerError, match=f"^{text}$") as error:
        ledger.offer(NONE)
    assert error.value.property == "I3"
    for good in (0, 2):
        allocator.offers = good
        assert ledger.offer(NONE) == good


class Last:
    """Picks the last option, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def pick(self, options: int, label: str) -> int:
        self.asked.append((options, label))
        return options - 1


def test_choices_and_kinds_reach_the_allocator() -> None:
    ledger = BlockLedger(4, Adversary(1))
    choices = Last()
    assert ledger.offer(choices) == 0
    assert ledger.offer(choices) == 4  # the budget is spent
    assert ledger.reserve(OWNER, 1, choices, lambda block: block >= 2) == (BlockRef(2, 0),)
    assert ledger.reserve(OWNER, 1, choices) == (BlockRef(3, 0),)
    assert choices.asked == [(5, "offer"), (2, "block"), (3, "block")]


def test_the_allocator_is_told_what_a_room_got() -> None:
    ledger = BlockLedger(6, SameAgain())
    refs = ledger.reserve(OWNER, 2, NONE)
    ledger.free(OWNER, refs)
    assert ledger.free_list == (2, 3, 4, 5, 0, 1)
    again = ledger.reserve(OTHERS["seq"], 3, NONE)  # the next grant of the same room
    assert [ref.block for ref in again] == [0, 1, 2]


# ---- the moves ----------------------------------------------------------------------------------------


def test_the_legal_moves_are_those_of_the_rule() -> None:
    assert blocks_module._MOVES == MOVES
    assert all(type(target) is BlockState for target in blocks_module._MOVES.values())


@pytest.mark.parametrize(("state", "event"), [move for move in MOVES if move[1] != "reserve"])
def test_a_legal_move(state: BlockState, event: str) -> None:
    ledger, refs = ledger_with(state)
    target = MOVES[state, event]
    bystander = ledger.reserve(OTHERS["room"], 1, NONE)[0]
    act(ledger, event, OWNER, refs)
    if target == FREE:
        # Nobody was told of a block that was only reserved, so no reference to it can be too old.
        generation = 0 if state == RESERVED else 1
        assert [ledger.record(ref.block) for ref in refs] == [BlockRecord(FREE, None, generation)] * 2
        assert ledger.free_list == (3, 0, 1)
        assert ledger.free_count == 3
    else:
        assert [ledger.record(ref.block) for ref in refs] == [BlockRecord(target, OWNER, 0)] * 2
        assert ledger.free_list == (3,)
    assert ledger.record(bystander.block) == BlockRecord(RESERVED, OTHERS["room"], 0)
    assert ledger.audit() is None
    assert ledger.counts()[target] == (3 if target == FREE else 2)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", BlockState)
def test_an_illegal_move_is_refused(state: BlockState, event: str) -> None:
    if (state, event) in MOVES:
        return
    ledger, refs = ledger_with(state)
    error = refused(ledger, event, OWNER, refs)
    if state == FREE:
        reason, holder = "it has no owner", "no one"
    else:
        sources = " or ".join(source for source, move in MOVES if move == event)
        reason, holder = f"it must be {sources}", WHO
    writable = state in (GRANTED, QUARANTINED) and event in ("free", "unreached", "release")
    reason = f"{reason}: it is {state}, owned by {holder}, generation 0"
    told(error, event, "block 0 generation 0", reason, guarded="I1" if writable else GUARDED[event])


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("stranger", OTHERS.values())
def test_a_stranger_is_refused(event: str, stranger: Owner) -> None:
    ledger, refs = ledger_with(SOURCE[event])
    error = refused(ledger, event, stranger, refs[1:])
    reason = f"it has another owner: it is {SOURCE[event]}, owned by {WHO}, generation 0"
    who = f"room {stranger.room} epoch {tuple(stranger.epoch)} seq {stranger.seq}"
    told(error, event, "block 1 generation 0", reason, who)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("generation", [0, 2])
def test_another_generation_is_refused(event: str, generation: int) -> None:
    ledger, refs = used_before()
    for step in WAY_TO[SOURCE[event]]:
        act(ledger, step, OWNER, refs)
    error = refused(ledger, event, OWNER, [BlockRef(0, generation)])
    reason = f"it has another generation: it is {SOURCE[event]}, owned by {WHO}, generation 1"
    told(error, event, f"block 0 generation {generation}", reason)
    act(ledger, event, OWNER, refs)


@pytest.mark.parametrize("event", ["free", "unreached", "release"])
def test_who_frees_what_another_may_write_is_refused_as_a_second_owner(event: str) -> None:
    """Only the owner itself, with the right generation, is told that its own write may come (I1)."""
    ledger, refs = used_before()
    ledger.grant(OWNER, refs)
    for generation in (0, 2):
        assert refused(ledger, event, OWNER, [BlockRef(0, generation)]).property == "I3"
    for stranger in OTHERS.values():
        assert refused(ledger, event, stranger, refs).property == "I3"


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("block", [-1, 4])
def test_a_block_that_does_not_exist_is_refused(event: str, block: int) -> None:
    ledger, refs = ledger_with(SOURCE[event], count=4)
    error = refused(ledger, event, OWNER, [*refs, BlockRef(block, 0)])
    told(error, event, f"block {block} generation 0", "it does not exist: the pool has blocks 0 to 3")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("order", [(0, 1, 1), (1, 0, 1), (1, 1)])
def test_a_block_that_is_named_twice_is_refused(event: str, order: tuple[int, ...]) -> None:
    ledger, refs = ledger_with(SOURCE[event])
    error = refused(ledger, event, OWNER, [refs[index] for index in order])
    reason = f"it is named twice in {list(order)}: it is {SOURCE[event]}, owned by this owner"
    told(error, event, "block 1 generation 0", reason)


@pytest.mark.parametrize("event", EVENTS)
def test_it_is_all_of_the_blocks_or_none(event: str) -> None:
    ledger, refs = ledger_with(SOURCE[event])
    refused(ledger, event, OWNER, [*refs, BlockRef(2, 0)])
    before = ledger.save()
    act(ledger, event, OTHERS["room"], ())  # none at all is no move, whoever asks
    assert ledger.save() == before
    act(ledger, event, OWNER, refs)


def test_a_second_free_is_refused_whoever_has_the_block_by_then() -> None:
    """The hazard of freeing, failing to get new blocks, and freeing the old ones again."""
    ledger = BlockLedger(1, Fifo())
    refs = ledger.reserve(OWNER, 1, NONE)
    for event in ("grant", "land", "free"):
        act(ledger, event, OWNER, refs)
    assert refused(ledger, "free", OWNER, refs).property == "I3"
    theirs = ledger.reserve(OTHERS["room"], 1, NONE)
    assert refused(ledger, "free", OWNER, refs).property == "I3"
    ledger.grant(OTHERS["room"], theirs)
    assert refused(ledger, "free", OWNER, refs).property == "I3"


def test_free_blocks_queue_in_the_order_in_which_they_became_free() -> None:
    ledger = BlockLedger(4, Fifo())
    refs = ledger.reserve(OWNER, 4, NONE)
    ledger.grant(OWNER, refs)
    ledger.unreached(OWNER, [refs[2], refs[0]])
    ledger.quarantine(OWNER, [refs[3]])
    ledger.land(OWNER, [refs[1]])
    ledger.free(OWNER, [refs[1]])
    ledger.release(OWNER, [refs[3]])
    assert ledger.free_list == (2, 0, 1, 3)
    assert ledger.reserve(OWNER, 4, NONE) == (BlockRef(2, 1), BlockRef(0, 1), BlockRef(1, 1), BlockRef(3, 1))


# ---- the questions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", BlockState)
def test_who_may_write_and_read_in_each_state(state: BlockState) -> None:
    ledger, (ref, _) = ledger_with(state)
    assert ledger.may_write(ref, 1, EPOCH, 0) is (state in (GRANTED, QUARANTINED))
    assert ledger.may_read(ref, 1, EPOCH) is (state in (LANDED, READING))


@pytest.mark.parametrize("state", [GRANTED, QUARANTINED, LANDED, READING])
def test_nobody_else_may(state: BlockState) -> None:
    ledger, refs = ledger_with(state, count=4)

    def may(block: int, generation: int, owner: Owner) -> bool:
        ref = BlockRef(block, generation)
        if state in (GRANTED, QUARANTINED):
            return ledger.may_write(ref, *owner)
        return ledger.may_read(ref, owner.room, owner.epoch)

    assert all(may(*ref, OWNER) for ref in refs)
    for name, stranger in OTHERS.items():
        # Whoever reads is one epoch of one room; under which grant the block came does not matter.
        assert may(0, 0, stranger) is (name == "seq" and state in (LANDED, READING))
    for block, generation in ((0, 1), (0, -1), (-1, 0), (-4, 0), (4, 0)):
        assert not may(block, generation, OWNER)


# ---- the audit, and saved ledgers ---------------------------------------------------------------------

HELD = BlockRecord(GRANTED, OWNER, 3)
IDLE = BlockRecord(FREE, None, 3)


OUTSIDE = "names a block that does not exist: the pool has blocks 0 to 1"


@pytest.mark.parametrize(
    ("records", "free", "text"),
    [
        ((HELD, IDLE), (1,), None),
        ((IDLE, IDLE), (1, 0), None),
        ((HELD, HELD), (), None),
        ((HELD, IDLE), (1, 1), "the free list [1, 1] names a block twice"),
        ((HELD, IDLE), (1, 0), f"block 0 is Granted, owned by {WHO}, and in the free list"),
        ((HELD, IDLE), (), "block 1 is Free and not in the free list []"),
        ((IDLE, HELD), (2,), "block 0 is Free and not in the free list [2]"),
        ((HELD, IDLE), (1, 2), f"the free list [1, 2] {OUTSIDE}"),
        ((HELD, HELD), (-1,), f"the free list [-1] {OUTSIDE}"),
        ((BlockRecord(LANDED, None, 0), IDLE), (1,), "block 0 is Landed and has no owner"),
        ((IDLE, BlockRecord(FREE, OWNER, 0)), (0, 1), f"block 1 is Free and owned by {WHO}"),
    ],
)
def test_the_audit_finds_what_is_wrong(records: Any, free: tuple[int, ...], text: str | None) -> None:
    ledger = BlockLedger(2, Fifo())
    ledger.load((PerBlock(records), free, ()))
    assert ledger.audit() == text


def test_a_ledger_goes_back_to_what_was_saved() -> None:
    ledger = BlockLedger(4, SameAgain())
    empty = ledger.save()
    refs = ledger.reserve(OWNER, 2, NONE)
    ledger.grant(OWNER, refs)
    saved = ledger.save()
    records = [BlockRecord(GRANTED, OWNER, 0)] * 2 + [BlockRecord(FREE, None, 0)] * 2
    assert saved == (PerBlock(records), (2, 3), ((1, (0, 1)),))
    assert type(saved[0]) is PerBlock
    assert hash(saved) == hash(ledger.save())
    ledger.unreached(OWNER, refs)
    after = ledger.save()
    assert saved[1] == (2, 3), "what was saved is not the living list"
    ledger.load(saved)
    assert ledger.save() == saved
    ledger.unreached(OWNER, refs)
    assert ledger.save() == after
    ledger.load(empty)
    assert ledger.save() == empty == BlockLedger(4, SameAgain()).save()


@pytest.mark.parametrize("blocks", [2, 4])
def test_a_pool_of_another_size_is_not_loaded(blocks: int) -> None:
    ledger = BlockLedger(3, Fifo())
    before = ledger.save()
    with pytest.raises(LocalError, match=f"^a ledger of 3 blocks cannot load one of {blocks}$"):
        ledger.load(BlockLedger(blocks, Fifo()).save())
    assert ledger.save() == before


def test_per_block_is_a_tuple_with_a_mark() -> None:
    marked = PerBlock([1, 2])
    assert (marked, hash(marked)) == ((1, 2), hash((1, 2)))
    assert isinstance(marked, tuple)
    assert not hasattr(marked, "__dict__")


# ---- the model beside it ------------------------------------------------------------------------------

OWNERS = (OWNER, *OTHERS.values())


class LedgerMachine(RuleBasedStateMachine):
    """The ledger beside a model of plain lists: whatever is asked, both answer alike."""

    @initialize(blocks=st.integers(1, 4), allocator=st.sampled_from([Fifo, Lifo, SameAgain]))
    def begin(self, blocks: int, allocator: type[Fifo]) -> None:
        self.ledger = BlockLedger(blocks, allocator())
        self.states = [FREE] * blocks
        self.owners: list[Owner | None] = [None] * blocks
        self.generations = [0] * blocks
        self.queue = list(range(blocks))
        self.bookmark: Any = None

    @rule(owner=st.sampled_from(OWNERS), count=st.integers(0, 5))
    def reserve(self, owner: Owner, count: int) -> None:
        if not 1 <= count <= len(self.queue):
            before = self.ledger.save()
            with pytest.raises(LedgerError):
                self.ledger.reserve(owner, count, NONE)
            assert self.ledger.save() == before
            return
        refs = self.ledger.reserve(owner, count, NONE)
        assert len(refs) == count
        for block, generation in refs:
            assert generation == self.generations[block]
            self.queue.remove(block)
            self.states[block], self.owners[block] = RESERVED, owner

    @rule(
        event=st.sampled_from(EVENTS),
        stranger=st.none() | st.sampled_from(OWNERS),
        picked=st.lists(st.tuples(st.integers(-1, 4), st.sampled_from([0, 0, 0, 0, -1, 1])), max_size=3),
    )
    def move(self, event: str, stranger: Owner | None, picked: list[tuple[int, int]]) -> None:
        """Mostly what the first block's owner might do, and now and then what a stranger would."""
        blocks = len(self.states)
        refs = [BlockRef(b, (self.generations[b] if 0 <= b < blocks else 0) + shift) for b, shift in picked]
        first = refs[0].block if refs else 0
        owner = stranger or (self.owners[first] if 0 <= first < blocks else None) or OWNER
        self._apply(event, owner, refs)

    @precondition(lambda self: any(self.owners))
    @rule(data=st.data())
    def legal_move(self, data: st.DataObject) -> None:
        """What an owner may do with all its blocks of one state, so that long lives are common."""
        lead = data.draw(st.sampled_from([b for b, owner in enumerate(self.owners) if owner]), label="lead")
        alike = [
            BlockRef(b, self.generations[b])
            for b, state in enumerate(self.states)
            if state == self.states[lead] and self.owners[b] == self.owners[lead]
        ]
        events = [move for state, move in MOVES if state == self.states[lead]]
        event = data.draw(st.sampled_from(events), label="event")
        owner = self.owners[lead]
        assert owner is not None
        assert self._apply(event, owner, alike)

    def _apply(self, event: str, owner: Owner, refs: list[BlockRef]) -> bool:
        legal = len({ref.block for ref in refs}) == len(refs) and all(
            0 <= block < len(self.states)
            and self.owners[block] == owner
            and self.generations[block] == generation
            and (self.states[block], event) in MOVES
            for block, generation in refs
        )
        if not legal:
            refused(self.ledger, event, owner, refs)
            return False
        act(self.ledger, event, owner, refs)
        for block, _ in refs:
            target = MOVES[self.states[block], event]
            if target == FREE:
                self.generations[block] += self.states[block] != RESERVED
                self.owners[block] = None
                self.queue.append(block)
            self.states[block] = target
        return True

    @rule()
    def remember(self) -> None:
        model = (list(self.states), list(self.owners), list(self.generations), list(self.queue))
        self.bookmark = (self.ledger.save(), model)

    @precondition(lambda self: self.bookmark)
    @rule()
    def go_back(self) -> None:
        saved, model = self.bookmark
        self.ledger.load(saved)
        self.states, self.owners, self.generations, self.queue = (list(part) for part in model)

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "ledger"):
            return
        ledger = self.ledger
        expected = list(zip(self.states, self.owners, self.generations, strict=True))
        assert [ledger.record(block) for block in range(len(ledger))] == expected
        assert ledger.free_list == tuple(self.queue)
        assert ledger.free_count == ledger.offer(NONE) == len(self.queue)
        assert ledger.audit() is None
        assert sum(ledger.counts().values()) == len(ledger)
        assert ledger.counts() == {state: self.states.count(state) for state in BlockState}

    @invariant()
    def access_follows_the_state(self) -> None:
        for block, state in enumerate(getattr(self, "states", ())):
            ref = BlockRef(block, self.generations[block])
            for owner in OWNERS:
                mine = self.owners[block] == owner
                assert self.ledger.may_write(ref, *owner) is (mine and state in (GRANTED, QUARANTINED))
                same_epoch = (self.owners[block] or ())[:2] == owner[:2]
                assert self.ledger.may_read(ref, *owner[:2]) is (same_epoch and state in (LANDED, READING))


TestLedgerMachine = LedgerMachine.TestCase
