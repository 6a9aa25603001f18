"""What the actions of the protocol model are written with: a draft of the next state, tables and the ledger.

Actions read like the code they stand for, one assignment after the other: a :class:`Step` keeps what was assigned
so far, and gives it back when it is read again. All of it is straight-line: what happens only sometimes is assigned
with ``ops.where``. So an action runs unchanged on ints, on arrays and on symbols.

The two transition tables and the table of blocks are those of :mod:`fsm.lifecycle`, row by row, as expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fsm.kernel import Number, Ops
from fsm.lifecycle import BLOCK_TABLE
from fsm.states import BlockState, State
from fsm.table import Table
from sim.model import tables
from sim.model.form import View, negate

if TYPE_CHECKING:
    from sim.model.protocol_rules import ModelRules

STATE_NUMBERS: dict[str, int] = {state: number for number, state in enumerate(State)}
BLOCK_NUMBERS: dict[str, int] = {state: number for number, state in enumerate(BlockState)}

FREE, RESERVED, GRANTED, LANDED, READING, QUARANTINED = range(6)
"""States of a block as small numbers, in the order of ``fsm.states.BlockState``."""

NOBODY = 0
"""The owner of a free block. Rooms are numbered from 1 on; the number after the last stands for all others."""

NONE_SEQ = -1


class Part:
    """Some fields of a step, without their common prefix: ``room.state`` is the field ``a_state``.

    Reading gives what was assigned last in this step; assigning drafts the next value.
    """

    __slots__ = ("_prefix", "_step")

    def __init__(self, step: Step, prefix: str) -> None:
        object.__setattr__(self, "_step", step)
        object.__setattr__(self, "_prefix", prefix)

    def __getattr__(self, name: str) -> Number:
        return self._step.read(f"{self._prefix}_{name}")

    def __setattr__(self, name: str, value: Number) -> None:
        self._step.changes[f"{self._prefix}_{name}"] = value

    @property
    def name(self) -> str:
        """The prefix: the name of the room or of the block."""
        prefix: str = self._prefix
        return prefix


class Step:
    """One action under way: the state before it, what it assigned so far, and the rules in force."""

    __slots__ = ("changes", "ops", "rules", "view")

    def __init__(self, ops: Ops, view: View, rules: ModelRules) -> None:
        self.ops = ops
        self.view = view
        self.rules = rules
        self.changes: dict[str, Number] = {}

    def read(self, name: str) -> Number:
        """A field as it is now."""
        return self.changes[name] if name in self.changes else self.view[name]

    def part(self, prefix: str) -> Part:
        """The fields of one room or block."""
        return Part(self, prefix)

    def claim(self, room: Part, block: str) -> Part:
        """What a room has on record of a block."""
        return Part(self, f"{room.name}_{block}")

    def put(self, part: Part, when: Number, **values: Number) -> None:
        """Assign where the condition holds."""
        for name, value in values.items():
            setattr(part, name, self.ops.where(when, value, getattr(part, name)))


def implies(condition: Number, consequence: Number) -> Number:
    """Whether the consequence holds wherever the condition does."""
    return negate(condition) | consequence


def either(ops: Ops, flag: Number) -> Number:
    """A truth value as a flag, 0 or 1."""
    return ops.where(flag, 1, 0)


# --- tables ----------------------------------------------------------------------------------------------


def after(ops: Ops, table: Table, state: Number, event: str, facts: Mapping[str, Number]) -> tuple[Number, Number]:
    """What the rows of a lifecycle's table say: whether the event is legal here, and the state that it leads to."""
    return tables.after(ops, table, state, event, facts, numbers=STATE_NUMBERS)


def _block_rows(event: str) -> list[tuple[int, int]]:
    return [
        (BLOCK_NUMBERS[source], BLOCK_NUMBERS[row.target])
        for source, rows in BLOCK_TABLE.rows.items()
        for row in rows
        if row.event == event
    ]


def move_block(
    step: Step, block: Part, event: str, owner: Number, seq: Number, generation: Number, when: Number
) -> Number:
    """The ledger's move of one block, asked for where ``when`` holds. Whether it refused.

    The ledger compares owner, seq and generation, and knows the rows of ``BLOCK_TABLE``; a refused move changes
    nothing.
    """
    ops = step.ops
    rows = _block_rows(event)
    named = (block.owner == owner) & (block.seq == seq) if event != "reserve" else block.owner == NOBODY
    named = named & (block.generation == generation)
    legal: Number = False
    target: Number = block.state
    for source, state in rows:
        legal = (block.state == source) | legal
        target = ops.where(block.state == source, state, target)
    done = when & named & legal
    freed = done & (target == FREE)
    taken = done & (block.state == FREE)
    bumped = freed & (block.state != RESERVED)
    step.put(block, taken, owner=owner, seq=seq, listed=block.listed - 1)
    step.put(block, freed, owner=NOBODY, seq=NONE_SEQ, listed=block.listed + 1)
    step.put(block, bumped, generation=block.generation + 1)
    step.put(block, done, state=target)
    return when & negate(named & legal)


Mover = Callable[..., None]
Choice = Any
"""What an action leaves open: attributes by name, and ``of(block)`` for what is chosen for a block."""
