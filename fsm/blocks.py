"""The block ledger: who owns each landing block, since when, and who may touch it.

Every block is in one of six states, and has one owner in all of them but ``Free``; the legal moves are the
rows of ``BLOCK_TABLE``. A move names its owner and the blocks with the generations that they had when they
were reserved, and the ledger compares all of it. So whoever acts on old news (a second free, a status of an
earlier epoch, a block that has meanwhile gone to another request) is refused, and the refusal says which
property it would have broken: I1, a write to a block that is not granted for it; I2, a delivery of
something else than the source; I3, a block with two owners. A refused call changes nothing, for none of its
blocks.

The generation counts how often a block has become free after a grant of it had gone out: only then can
somebody still hold a reference that is too old. A block that was reserved and given back keeps its
generation.

The ledger is called several times in each step of a search through very many steps, and saved and loaded in
each: so it is a list of tuples and a list of free blocks, with no machine behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

from fsm.allocators import Allocator, Choices, Kind
from fsm.errors import LedgerError, LocalError
from fsm.lifecycle import BLOCK_TABLE
from fsm.messages import BlockRef, Epoch
from fsm.states import BlockState

_STATES: Final = tuple(BlockState)
_FREE: Final = BlockState.FREE
_RESERVED: Final = BlockState.RESERVED
_WRITABLE: Final = (BlockState.GRANTED, BlockState.QUARANTINED)
_READABLE: Final = (BlockState.LANDED, BlockState.READING)

_MOVES: Final[dict[tuple[str, str], BlockState]] = {
    (state, row.event): BlockState(row.target) for state, rows in BLOCK_TABLE.rows.items() for row in rows
}
"""The rows of the table, flat. None has a guard: what they depend on besides is the owner, compared below."""

_FREEING: Final = tuple(event for (_, event), target in _MOVES.items() if target is _FREE)

_GUARDED_PROPERTY: Final = {
    "grant": "I3",
    "land": "I1",
    "read": "I2",
    "free": "I3",
    "unreached": "I3",
    "quarantine": "I3",
    "release": "I3",
}
"""What would be broken if the event were let through to a block that is not ready for it."""

_ADVICE: Final = {
    "reserve": "reserve no more than is free",
    "grant": "grant only what was reserved for this very owner, and once",
    "land": "take a STATUS only for the grant that is out",
    "read": "read only what has landed for this very owner, and once",
    "free": "free what was reserved, landed or read, and once; a grant that will not land goes to quarantine",
    "unreached": "say unreached only of what the closing STATUS left out, and once",
    "quarantine": "quarantine only what is granted, and once",
    "release": "release only what is quarantined, upon the proof of quiescence, and once",
}
"""What the caller is to do instead."""


class PerBlock(tuple[Any, ...]):
    """A tuple that is indexed by block number, as opposed to one that contains block numbers.

    It is equal to a plain tuple with the same items. The mark is for whoever renames blocks: the items of
    this one change places, and keep their values.
    """

    __slots__ = ()


class Owner(NamedTuple):
    """On whose account a block is not free: one grant of one epoch of one room."""

    room: int
    epoch: Epoch
    seq: int


class BlockRecord(NamedTuple):
    """What the ledger knows of one block. ``owner`` is ``None`` just when it is free."""

    state: BlockState
    owner: Owner | None
    generation: int


Saved: TypeAlias = tuple[PerBlock, tuple[int, ...], Any]
"""The records, the free list and whatever the allocator remembers."""


class BlockLedger:
    """The landing blocks of one receiver, and the only place that moves them.

    The moves take an owner and references; an empty list of references is legal and does nothing. Each
    raises :class:`~fsm.errors.LedgerError` for a block that does not exist, has another owner or generation,
    is in a state without that move, or is named twice; then nothing has changed.
    """

    __slots__ = ("_allocator", "_free", "_records")

    def __init__(self, blocks: int, allocator: Allocator) -> None:
        """All ``blocks`` are free, block 0 being the oldest; raises :class:`LocalError` below 1 block."""
        if blocks < 1:
            raise LocalError(f"a ledger of {blocks} blocks is of no use; it needs at least 1")
        self._allocator = allocator
        self._records = [BlockRecord(_FREE, None, 0)] * blocks
        self._free = list(range(blocks))

    def __len__(self) -> int:
        """The size of the pool in blocks."""
        return len(self._records)

    @property
    def allocator(self) -> Allocator:
        """The strategy that chooses among the free blocks."""
        return self._allocator

    @property
    def free_count(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    @property
    def free_list(self) -> tuple[int, ...]:
        """The free blocks in the order in which they became free, oldest first."""
        return tuple(self._free)

    def record(self, block: int) -> BlockRecord:
        """What is known of a block; raises :class:`LedgerError` if there is none of that number."""
        if not 0 <= block < len(self._records):
            raise LedgerError(f"block {block} does not exist: {self._range_text()}", property="I3")
        return self._records[block]

    def offer(self, choices: Choices) -> int:
        """How many blocks the allocator is willing to give now: at most ``free_count``."""
        free = len(self._free)
        offered = self._allocator.offer(free, choices)
        if not 0 <= offered <= free:
            raise LedgerError(
                f"allocator '{self._allocator.name}' offers {offered} blocks, but {free} are free",
                property="I3",
            )
        return offered

    def reserve(
        self, owner: Owner, count: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[BlockRef, ...]:
        """Gives ``count`` free blocks to an owner; which ones, and in which order, the allocator says.

        ``kind`` is passed on to it: what makes two free blocks interchangeable.
        """
        free = self._free
        if not 1 <= count <= len(free):
            raise LedgerError(
                f"cannot reserve {count} blocks for {_owner_text(owner)}: "
                f"{len(free)} of {len(self)} are free; {_ADVICE['reserve']}, and at least 1",
                property="I3",
            )
        blocks = self._allocator.take(tuple(free), count, owner.room, choices, kind)
        chosen = set(blocks)  # asked for members only, never walked
        left = [block for block in free if block not in chosen]
        if len(blocks) != count or len(left) != len(free) - count:
            raise LedgerError(
                f"allocator '{self._allocator.name}' was to take {count} different blocks of {free}, "
                f"but took {list(blocks)}",
                property="I3",
            )
        target = _MOVES[_FREE, "reserve"]
        records = self._records
        refs = []
        for block in blocks:
            generation = records[block].generation
            records[block] = BlockRecord(target, owner, generation)
            refs.append(BlockRef(block, generation))
        self._free = left
        self._allocator.given(owner.room, blocks)
        return tuple(refs)

    def grant(self, owner: Owner, refs: Sequence[BlockRef]) -> None:
        """``Reserved`` to ``Granted``: from now on the sender may write."""
        self._move("grant", owner, refs)

    def land(self, owner: Owner, refs: Sequence[BlockRef]) -> None:
        """``Granted`` to ``Landed``: the STATUS has closed the grant, and its bytes are there."""
        self._move("land", owner, refs)

    def read(self, owner: Owner, refs: Sequence[BlockRef]) -> None:
        """``Landed`` to ``Reading``: they are being copied out."""
        self._move("read", owner, refs)

    def free(self, owner: Owner, refs: Sequence[BlockRef]) -> None:
        """``Reading``, ``Landed`` or ``Reserved`` to ``Free``.

        A granted or quarantined block is refused as I1: a write of its grant may still come.
        """
        self._move("free", owner, refs)

    def unreached(self, owner: Owner, refs: Sequence[BlockRef]) -> None:
        """``Granted`` to ``Free``: the STATUS has closed the grant, and did not reach these blocks."""
        self._move("unreached", owner, refs)

    def quarantine(self, owner: Owner, refs: Sequence[BlockRef]) -> None:
        """``Granted`` to ``Quarantined``: the grant will not land, but a write may still be under way."""
        self._move("quarantine", owner, refs)

    def release(self, owner: Owner, refs: Sequence[BlockRef]) -> None:
        """``Quarantined`` to ``Free``: it has been proved that no write is under way or will start."""
        self._move("release", owner, refs)

    def may_write(self, ref: BlockRef, room: int, epoch: Epoch, seq: int) -> bool:
        """Whether a write on account of this grant may touch the block: I1, put as a question."""
        record = self._record_of(ref)
        if record is None or record.owner != (room, epoch, seq):
            return False
        return record.state in _WRITABLE

    def may_read(self, ref: BlockRef, room: int, epoch: Epoch) -> bool:
        """Whether this room may read the block."""
        record = self._record_of(ref)
        if record is None or record.owner is None or record.owner[:2] != (room, epoch):
            return False
        return record.state in _READABLE

    def audit(self) -> str | None:
        """What is wrong with the ledger as a whole (I3), or ``None``.

        Free and owned blocks must make up the pool, and the free list must name each free block once. The
        moves keep it so; this finds a saved ledger that was not, or a move that does not.
        """
        listed = set(self._free)  # asked for members only, never walked
        if len(listed) != len(self._free):
            return f"the free list {self._free} names a block twice"
        free_records = 0
        for block, (state, owner, _) in enumerate(self._records):
            if state != _FREE:
                if owner is None:
                    return f"block {block} is {state} and has no owner"
                if block in listed:
                    return f"block {block} is {state}, owned by {_owner_text(owner)}, and in the free list"
                continue
            free_records += 1
            if owner is not None:
                return f"block {block} is Free and owned by {_owner_text(owner)}"
            if block not in listed:
                return f"block {block} is Free and not in the free list {self._free}"
        if free_records != len(listed):
            return f"the free list {self._free} names a block that does not exist: {self._range_text()}"
        return None

    def counts(self) -> dict[BlockState, int]:
        """How many blocks are in each state; every state is named."""
        counts = dict.fromkeys(_STATES, 0)
        for record in self._records:
            counts[record.state] += 1
        return counts

    def save(self) -> Saved:
        """All that the ledger and its allocator know, hashable."""
        return PerBlock(self._records), tuple(self._free), self._allocator.save()

    def load(self, saved: Saved) -> None:
        """Goes back to what ``save`` returned; raises :class:`LocalError` for a pool of another size.

        Nothing else is checked: ``audit`` does that.
        """
        records, free, remembered = saved
        if len(records) != len(self._records):
            raise LocalError(f"a ledger of {len(self._records)} blocks cannot load one of {len(records)}")
        self._records = list(records)
        self._free = list(free)
        self._allocator.load(remembered)

    def _record_of(self, ref: BlockRef) -> BlockRecord | None:
        """The record of the block, if it is still of the reference's generation."""
        block, generation = ref
        records = self._records
        if 0 <= block < len(records) and records[block].generation == generation:
            return records[block]
        return None

    def _move(self, event: str, owner: Owner, refs: Sequence[BlockRef]) -> None:
        """Checks all references first, and moves the blocks only then."""
        records = self._records
        moved = []
        for block, generation in refs:
            if not 0 <= block < len(records):
                self._refuse(event, owner, block, generation)
            state, present_owner, present_generation = records[block]
            target = _MOVES.get((state, event))
            if target is None or present_owner != owner or present_generation != generation:
                self._refuse(event, owner, block, generation)
            if target is _FREE:
                moved.append(BlockRecord(_FREE, None, generation if state == _RESERVED else generation + 1))
            else:
                moved.append(BlockRecord(target, owner, generation))
        if len(refs) > 1 and len({ref[0] for ref in refs}) != len(refs):
            self._refuse_twice(event, owner, refs)
        for (block, _), record in zip(refs, moved, strict=True):
            records[block] = record
            if record[0] is _FREE:
                self._free.append(block)

    def _refuse(self, event: str, owner: Owner, block: int, generation: int) -> NoReturn:
        """Raises for this one block, saying what it is, what it would have to be, and what to do."""
        asked = f"cannot {event} block {block} generation {generation} for {_owner_text(owner)}"
        guarded = _GUARDED_PROPERTY[event]
        if not 0 <= block < len(self._records):
            raise LedgerError(
                f"{asked}: it does not exist: {self._range_text()}; {_ADVICE[event]}", property=guarded
            )
        state, present_owner, present_generation = self._records[block]
        if present_owner == owner and present_generation == generation:
            sources = " or ".join(source for source, move in _MOVES if move == event)
            reason = f"it must be {sources}"
            if event in _FREEING and state in _WRITABLE:
                # The owner is right and the moment is not: a write of its grant may still be under way.
                guarded = "I1"
        elif present_owner != owner:
            reason = "it has another owner" if present_owner else "it has no owner"
        else:
            reason = "it has another generation"
        holder = "no one" if present_owner is None else _owner_text(present_owner)
        raise LedgerError(
            f"{asked}: {reason}: it is {state}, owned by {holder}, generation {present_generation}; "
            f"{_ADVICE[event]}",
            property=guarded,
        )

    def _refuse_twice(self, event: str, owner: Owner, refs: Sequence[BlockRef]) -> NoReturn:
        blocks = [ref.block for ref in refs]
        twice = next(block for block in blocks if blocks.count(block) > 1)
        state, _, generation = self._records[twice]
        raise LedgerError(
            f"cannot {event} block {twice} generation {generation} for {_owner_text(owner)}: "
            f"it is named twice in {blocks}: it is {state}, owned by this owner; {_ADVICE[event]}",
            property=_GUARDED_PROPERTY[event],
        )

    def _range_text(self) -> str:
        return f"the pool has blocks 0 to {len(self._records) - 1}"


def _owner_text(owner: Owner) -> str:
    room, epoch, seq = owner
    return f"room {room} epoch {tuple(epoch)} seq {seq}"
