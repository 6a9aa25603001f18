"""All successors of many packed states at once, and what the clauses say of them.

Guards and clauses are computed for a whole chunk of states, what they share once. Of the states in which an action may
be taken, a copy is made, and the fields that the action sets are overwritten in it: mostly one ``and`` and one ``or``
for each word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.model.form import Action, Field, Model, out_of_bounds
from sim.model.symbol import CONST, FIELD, Symbol, Table
from sim.vector.pack import Packing
from sim.vector.plan import Plan
from sim.vector.rows import Columns, Truths, Words, part, size

ROWS_MAX = 1 << 15
"""Rows of a chunk: what is computed of them stays in the second level cache."""

_ALL_BITS = (1 << 64) - 1
DEADLOCK = -1


class Batch(NamedTuple):
    """What one action makes of a chunk: row ``i`` of ``before`` is row ``rows[i]`` of the chunk and becomes row ``i``
    of ``after``. The arrays hold until the next batch is asked for. ``moves``: no row is the same before and after."""

    action: int
    rows: NDArray[np.intp]
    before: Columns
    after: Columns
    moves: bool


class Finding(NamedTuple):
    """A row in which something is wrong: the number of a clause, or ``DEADLOCK``."""

    row: int
    clause: int


class _Effect:
    """The update of one action."""

    def __init__(self, model: Model, action: Action, table: Table, packing: Packing, rows_max: int) -> None:
        self.model, self.action, self.packing = model, action, packing
        self.rows_max = rows_max
        self.wrong: tuple[Field, int] | None = None
        self.masks: dict[int, list[int]] = {}
        computed: list[tuple[Field, Symbol]] = []
        for name, symbol in table.update(action).items():
            field, slot = model.field(name), packing.slots[name]
            if symbol.kind == FIELD and symbol.value == name:
                continue
            masks = self.masks.setdefault(slot.word, [_ALL_BITS, 0])
            masks[0] &= ~slot.mask
            if symbol.kind != CONST:
                computed.append((field, symbol))
            elif field.low <= int(symbol.value) <= field.high:
                masks[1] |= (int(symbol.value) - slot.low) << slot.shift
            else:
                self.wrong = self.wrong or (field, int(symbol.value))
        self.computed = computed
        self.moving = _moving(table, action) if not computed else None
        self.plan = Plan([symbol for _, symbol in computed], packing.slots, rows_max) if computed else None
        self.bits = {word: (np.uint64(clear), np.uint64(fixed)) for word, (clear, fixed) in self.masks.items()}
        self.sums = {packing.slots[field.name].word: np.empty(rows_max, np.uint64) for field, _ in computed}
        self.scratch = np.empty(rows_max if computed else 0, np.uint64)

    def apply(self, before: Columns, after: list[Words]) -> Columns:
        """The rows after the action, in ``after`` where a word changes. Raises LocalError for a value out of bounds."""
        if self.wrong is not None:
            field, value = self.wrong
            raise out_of_bounds(self.model, self.action, field, value, self.packing.unpack(before, 0))
        rows = size(before)
        sums = {word: buffer[:rows] for word, buffer in self.sums.items()}
        for word, total in sums.items():
            total.fill(self.bits[word][1])
        if self.plan is not None:
            for (field, symbol), values in zip(self.computed, self.plan.run(before), strict=True):
                self._put(field, symbol, values, before, sums)
        result = list(before)
        for word, (clear, fixed) in self.bits.items():
            target = after[word][:rows]
            np.bitwise_and(before[word], clear, out=target)
            if word in sums or fixed:
                np.bitwise_or(target, sums.get(word, fixed), out=target)
            result[word] = target
        return tuple(result)

    def _put(
        self, field: Field, symbol: Symbol, values: NDArray[np.signedinteger], before: Columns, sums: dict[int, Words]
    ) -> None:
        if symbol.low < field.low or symbol.high > field.high:
            for value in (int(values.min()), int(values.max())):
                if not field.low <= value <= field.high:
                    row = int(np.flatnonzero(values == value)[0])
                    raise out_of_bounds(self.model, self.action, field, value, self.packing.unpack(before, row))
        slot, bits = self.packing.slots[field.name], self.scratch[: len(values)]
        np.copyto(bits, values, casting="unsafe")
        if slot.low:  # exact even where the value is negative: all is counted modulo 2 to 64
            np.subtract(bits, np.uint64(slot.low & _ALL_BITS), out=bits)
        np.left_shift(bits, np.uint64(slot.shift), out=bits)
        np.bitwise_or(sums[slot.word], bits, out=sums[slot.word])


def _moving(table: Table, action: Action) -> Symbol:
    """Where an action may be taken and changes anything. Its update sets constants only."""
    changes = table.symbol(False)
    for name, symbol in table.update(action).items():
        if symbol.kind == CONST:
            changes = table.apply("or", changes, table.apply("ne", table.fields[name], symbol))
    return table.apply("and", table.guard(action), changes)


class Expander:
    """Makes successors, chunk by chunk. ``deadlock`` says that a state without any counts as a finding.

    Steps that lead back to the same state are counted, but where they can be told beforehand they are not made, unless
    ``loops`` is set.
    """

    def __init__(
        self,
        model: Model,
        table: Table,
        packing: Packing,
        *,
        deadlock: bool = False,
        loops: bool = False,
        rows_max: int = ROWS_MAX,
    ) -> None:
        self.model = model
        self.rows_max = rows_max
        self.finding: Finding | None = None
        self.transitions = 0
        """Of the last chunk, once it has come to its end: the steps from all its states."""
        self.deadlock = deadlock
        self.packing = packing
        self._clauses = len(model.clauses)
        self._effects = [_Effect(model, action, table, packing, rows_max) for action in model.actions]
        roots = list(map(table.clause, model.clauses))
        for action, effect in zip(model.actions, self._effects, strict=True):
            guard = table.guard(action)
            roots += [guard, guard if effect.moving is None or loops else effect.moving]
        self._plan = Plan(roots, packing.slots, rows_max)
        self._before = tuple(np.empty(rows_max, np.uint64) for _ in range(packing.words))
        self._after = [np.empty(rows_max, np.uint64) for _ in range(packing.words)]
        self._every = np.arange(rows_max)
        self._enabled = np.empty(rows_max, np.bool_)

    def expand(self, columns: Columns) -> Iterator[Batch]:
        """The successors of at most ``rows_max`` rows, action by action.

        Once it has come to its end, ``finding`` is the first row that breaks a clause or has no successor, if any does.
        """
        self.finding = None
        self.transitions = 0
        rows = size(columns)
        enabled = self._enabled[:rows]
        enabled.fill(False)
        values = self._plan.run(columns)
        for clause in range(self._clauses):
            self._judge(clause, next(values))
        for action in range(len(self._effects)):
            self._count(next(values), enabled)
            which = self._which(next(values), rows)
            if len(which):
                yield self._batch(action, which, columns)
        if self.deadlock and not enabled.all():
            self._note(int(np.argmin(enabled)), DEADLOCK)

    def judged(self, columns: Columns) -> list[Truths]:
        """What every clause says of each row; at most ``rows_max`` rows."""
        values = self._plan.run(columns)
        return [np.full(size(columns), next(values), np.bool_) for _ in range(self._clauses)]

    def _count(self, guard: Truths | int, enabled: Truths) -> None:
        self.transitions += len(enabled) * guard if isinstance(guard, int) else int(np.count_nonzero(guard))
        if self.deadlock:
            np.logical_or(enabled, bool(guard) if isinstance(guard, int) else guard, out=enabled)

    def _which(self, moving: Truths | int, rows: int) -> NDArray[np.intp]:
        if isinstance(moving, int):
            return self._every[: rows if moving else 0]
        return np.flatnonzero(moving)

    def _batch(self, action: int, which: NDArray[np.intp], columns: Columns) -> Batch:
        if len(which) == size(columns):
            before = columns
        else:
            before = part(self._before, 0, len(which))
            for column, target in zip(columns, before, strict=True):
                column.take(which, out=target, mode="clip")
        effect = self._effects[action]
        return Batch(action, which, before, effect.apply(before, self._after), effect.moving is not None)

    def _judge(self, clause: int, truths: Truths | int) -> None:
        if isinstance(truths, int):
            if not truths:
                self._note(0, clause)
        elif not truths.all():
            self._note(int(np.argmin(truths)), clause)

    def _note(self, row: int, clause: int) -> None:
        if self.finding is None or row < self.finding.row:
            self.finding = Finding(row, clause)
