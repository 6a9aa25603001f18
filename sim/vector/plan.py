"""Expressions of a model as straight lines of numpy calls on a few buffers.

A :class:`Plan` is made from the symbols of several expressions. Parts that they share are computed once. The buffers
are as few as possible and used over and over, so that a chunk of a level stays in the cache; nothing is allocated
while running. Numbers are as narrow as the intervals of the symbols allow (:func:`number_type`), so that nothing
overflows and the processor handles many at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.model.symbol import CONST, FIELD, Symbol, parts_of
from sim.vector.pack import Slot
from sim.vector.rows import Columns

_UFUNCS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.floor_divide, "mod": np.remainder,
    "min": np.minimum, "max": np.maximum, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "and": np.logical_and, "or": np.logical_or,
}  # fmt: skip

Step = Callable[[list[Any], Columns, int], None]
"""Computes one symbol: from registers and columns, of so many rows."""


def number_type(symbols: Iterable[Symbol]) -> np.dtype[Any]:
    """The narrowest signed type that holds every value of the symbols."""
    low = min((symbol.low for symbol in symbols if not symbol.truth), default=0)
    high = max((symbol.high for symbol in symbols if not symbol.truth), default=0)
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.int64)


class Plan:
    """Computes roots, in order, over rows of packed states.

    ``rows_max`` rows at most are handled at once. A root that is a constant costs nothing and is given as a number.
    """

    def __init__(self, roots: Sequence[Symbol], slots: dict[str, Slot], rows_max: int) -> None:
        self.roots = tuple(roots)
        parts = parts_of(roots)
        self.kind = number_type(parts)
        self._slots = slots
        self._scratch = np.empty(rows_max, np.uint64)
        self._masks = np.empty(rows_max, self.kind)
        self._registers: list[NDArray[Any]] = []
        self._place: dict[int, int] = {}
        self._program = self._compile(rows_max)
        self._bound: list[Any] = []
        self._rows = -1

    def _compile(self, rows_max: int) -> list[tuple[Symbol, list[Step], int | None]]:
        """For every root: the steps that it adds to those before, and the register that then holds it."""
        new_parts: list[list[Symbol]] = []
        seen: dict[int, bool] = {}
        for root in self.roots:
            fresh = [part for part in parts_of([root]) if part.number not in seen]
            seen |= {part.number: True for part in fresh}
            new_parts.append(fresh)
        last_use = {}
        for position, (root, fresh) in enumerate(zip(self.roots, new_parts, strict=True)):
            for part in [*fresh, *([root] if root.number not in [p.number for p in fresh] else [])]:
                for used in (part, *part.args):
                    last_use[used.number] = position
        free: dict[bool, list[int]] = {True: [], False: []}
        truth_of: dict[int, bool] = {}
        program = []
        for position, (root, fresh) in enumerate(zip(self.roots, new_parts, strict=True)):
            steps = []
            for part in fresh:
                if part.kind != CONST:
                    steps.append(self._step(part, free, rows_max))
                    truth_of[part.number] = part.truth
            program.append((root, steps, None if root.kind == CONST else self._place[root.number]))
            for number in [n for n in truth_of if last_use[n] == position]:
                free[truth_of.pop(number)].append(self._place[number])
        return program

    def _register(self, symbol: Symbol, free: dict[bool, list[int]], rows_max: int) -> int:
        if free[symbol.truth]:
            place = free[symbol.truth].pop()
        else:
            place = len(self._registers)
            self._registers.append(np.empty(rows_max, np.bool_ if symbol.truth else self.kind))
        self._place[symbol.number] = place
        return place

    def _step(self, symbol: Symbol, free: dict[bool, list[int]], rows_max: int) -> Step:
        out = self._register(symbol, free, rows_max)
        if symbol.kind == FIELD:
            return self._field_step(self._slots[str(symbol.value)], out)
        sources = [self._source(arg) for arg in symbol.args]
        if symbol.kind == "where":
            return _where_step(sources, out, None if symbol.truth else self._masks)
        return _ufunc_step(_UFUNCS[symbol.kind], sources, out)

    def _source(self, symbol: Symbol) -> tuple[int, Any]:
        """The register of a symbol, or -1 and the number of a constant."""
        if symbol.kind == CONST:
            return -1, np.bool_(symbol.value) if symbol.truth else self.kind.type(symbol.value)
        return self._place[symbol.number], None

    def _field_step(self, slot: Slot, out: int) -> Step:
        shift, mask, scratch = np.uint64(slot.shift), np.uint64((1 << slot.bits) - 1), self._scratch
        low, word = self.kind.type(slot.low), slot.word

        def step(registers: list[Any], columns: Columns, rows: int) -> None:
            target, bits = registers[out], scratch[:rows]
            if shift:
                np.right_shift(columns[word], shift, out=bits)
                np.bitwise_and(bits, mask, out=bits)
            else:
                np.bitwise_and(columns[word], mask, out=bits)
            np.copyto(target, bits, casting="unsafe")
            if low:
                np.add(target, low, out=target)

        return step

    def run(self, columns: Columns) -> Iterator[Any]:
        """The value of each root in order: an array that holds until the next is asked for, or a constant."""
        rows = len(columns[0])
        if rows != self._rows:
            self._bound = [register[:rows] for register in self._registers]
            self._rows = rows
        registers = self._bound
        for root, steps, place in self._program:
            for step in steps:
                step(registers, columns, rows)
            yield int(root.value) if place is None else registers[place]


def _ufunc_step(ufunc: Callable[..., Any], sources: list[tuple[int, Any]], out: int) -> Step:
    (left, left_value), (right, right_value) = sources
    if left < 0:
        return lambda registers, columns, rows: ufunc(left_value, registers[right], out=registers[out])
    if right < 0:
        return lambda registers, columns, rows: ufunc(registers[left], right_value, out=registers[out])
    return lambda registers, columns, rows: ufunc(registers[left], registers[right], out=registers[out])


def _where_step(sources: list[tuple[int, Any]], out: int, masks: NDArray[Any] | None) -> Step:
    """A choice, made of bits: ``((yes ^ no) & mask) ^ no``. To copy where a condition holds takes three times as long.
    ``masks`` has room for numbers that are 0 or all ones; without, truth values are chosen from."""
    (condition, _), (yes, yes_value), (no, no_value) = sources
    differs = yes_value ^ no_value if yes < 0 and no < 0 else None

    def step(registers: list[Any], columns: Columns, rows: int) -> None:
        target, mask = registers[out], registers[condition]
        if masks is not None:
            mask = np.negative(mask.view(np.int8), out=masks[:rows])
        other = no_value if no < 0 else registers[no]
        if differs is not None:
            np.bitwise_and(mask, differs, out=target)
        else:
            np.bitwise_xor(yes_value if yes < 0 else registers[yes], other, out=target)
            np.bitwise_and(target, mask, out=target)
        np.bitwise_xor(target, other, out=target)

    return step
