"""Identical records: of all states that differ in their order only, one is kept.

A group is sorted by whole records, with a network of exchanges that is run over many states at once. Where groups
share no field each is sorted by itself, and that is one state of each orbit exactly. Groups that overlap, as the rows
and the columns of a matrix do, have no such short way: every order of all but the largest of them is tried, the
largest is sorted, and the lowest result is kept. That is exact as well, because exchanges of rows and of columns
commute; it is refused where there are too many orders to try.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise, permutations, product
from math import factorial, prod

import numpy as np

from fsm.errors import LocalError
from sim.engines.vector_pack import Packing
from sim.engines.vector_rows import Columns, Truths, Words
from sim.model.form import Group, Model

ORDERS_MAX = 5_040

Piece = tuple[int, int, int]
"""Bits of a record: the word, the lowest bit, how many."""
Renaming = dict[str, str]
"""For every field the one whose value it takes."""


def network(count: int) -> list[tuple[int, int]]:
    """The exchanges, lower position first, that sort ``count`` things (Batcher's odd-even merge sort)."""
    exchanges = []
    step = 1
    while step < count:
        stride = step
        while stride >= 1:
            for start in range(stride % step, count - stride, 2 * stride):
                for at in range(start, min(start + stride, count - stride)):
                    if at // (2 * step) == (at + stride) // (2 * step):
                        exchanges.append((at, at + stride))
            stride //= 2
        step *= 2
    return exchanges


class _Sorted:
    """One group, sorted by whole records."""

    def __init__(self, group: Group, packing: Packing) -> None:
        self.records = _pieces([_field_pieces(record, packing) for record in group])
        self.exchanges = network(len(group))
        masks: dict[int, int] = {}
        for record in self.records:
            for word, shift, bits in record:
                masks[word] = masks.get(word, 0) | ((1 << bits) - 1) << shift
        self.cleared = {word: np.uint64(~mask & (1 << 64) - 1) for word, mask in masks.items()}

    def apply(self, columns: list[Words]) -> None:
        """Sort the group in every row; ``columns`` gets new words."""
        values = [
            [(columns[word] >> np.uint64(shift)) & np.uint64((1 << bits) - 1) for word, shift, bits in record]
            for record in self.records
        ]
        for low, high in self.exchanges:
            _exchange(values, low, high)
        for word, mask in self.cleared.items():
            columns[word] = columns[word] & mask
        for record, parts in zip(self.records, values, strict=True):
            for (word, shift, _), part in zip(record, parts, strict=True):
                part <<= np.uint64(shift)
                columns[word] |= part


def _exchange(values: list[list[Words]], low: int, high: int) -> None:
    """Bring two records in order: by their first piece, then by the next."""
    first, second = values[low], values[high]
    if len(first) == 1:
        smaller = np.minimum(first[0], second[0])
        np.maximum(first[0], second[0], out=second[0])
        first[0] = smaller
        return
    swap = _greater(first, second)
    values[low] = [np.where(swap, b, a) for a, b in zip(first, second, strict=True)]
    values[high] = [np.where(swap, a, b) for a, b in zip(first, second, strict=True)]


def _greater(first: Iterable[Words], second: Iterable[Words]) -> Truths:
    """Where the first is greater, word by word, the most significant one first."""
    pairs = list(zip(first, second, strict=True))
    result: Truths = pairs[-1][0] > pairs[-1][1]
    for a, b in pairs[-2::-1]:
        result = (a > b) | ((a == b) & result)
    return result


def _field_pieces(record: tuple[str, ...], packing: Packing) -> list[Piece]:
    slots = [packing.slots[name] for name in record]
    return [(slot.word, slot.shift, slot.bits) for slot in slots if slot.bits] or [(slots[0].word, 0, 0)]


def _pieces(records: list[list[Piece]]) -> list[list[Piece]]:
    """The bits of every record, fields that are adjacent in all records as one."""
    result: list[list[Piece]] = [[record[0]] for record in records]
    for position in range(1, len(records[0])):
        fields = [record[position] for record in records]
        adjacent = all(
            pieces[-1][0] == word and pieces[-1][1] + pieces[-1][2] == shift
            for pieces, (word, shift, _) in zip(result, fields, strict=True)
        )
        for pieces, (word, shift, bits) in zip(result, fields, strict=True):
            if adjacent:
                pieces[-1] = (word, pieces[-1][1], pieces[-1][2] + bits)
            else:
                pieces.append((word, shift, bits))
    return result


class Symmetry:
    """Gives every state the one that stands for it. Raises LocalError for groups that this cannot be done for."""

    def __init__(self, model: Model, packing: Packing) -> None:
        self.model, self.packing = model, packing
        groups = [group for group in model.symmetry if len(group) > 1]
        self._alone: list[_Sorted] = []
        self._entangled: list[tuple[_Sorted, list[Renaming]]] = []
        for together in _entangled(groups):
            together.sort(key=len)
            self._check(together)
            *others, last = together
            if others:
                self._entangled.append((_Sorted(last, packing), [_renaming(order) for order in _orders(others)]))
            else:
                self._alone.append(_Sorted(last, packing))

    def __bool__(self) -> bool:
        return bool(self._alone or self._entangled)

    def _check(self, groups: list[Group]) -> None:
        tried = prod(factorial(len(group)) for group in groups[:-1])
        if tried > ORDERS_MAX:
            raise LocalError(
                f"model '{self.model.name}': {len(groups)} symmetry groups share fields, and {tried:,} orders would "
                f"have to be tried; {ORDERS_MAX:,} is the limit"
            )
        for number, group in enumerate(groups):
            for other in groups[number + 1 :]:
                for one in neighbours(group):
                    for two in neighbours(other):
                        if _after(one, two) != _after(two, one):
                            raise LocalError(
                                f"model '{self.model.name}': symmetry groups of {group[0]} and {other[0]} share "
                                "fields, but not as rows and columns of a matrix do"
                            )

    def canonical(self, columns: Columns) -> Columns:
        """The state that stands for each row; new columns."""
        words = list(columns)
        for group in self._alone:
            group.apply(words)
        for group, renamings in self._entangled:
            words = self._lowest(words, group, renamings)
        return tuple(words)

    def _lowest(self, words: list[Words], group: _Sorted, renamings: list[Renaming]) -> list[Words]:
        best: list[Words] = []
        for renaming in renamings:
            trial = self.renamed(words, renaming)
            group.apply(trial)
            if best:
                better = _greater(best, trial)
                best = [np.where(better, new, old) for new, old in zip(trial, best, strict=True)]
            else:
                best = trial
        return best

    def renamed(self, words: Iterable[Words], renaming: Renaming) -> list[Words]:
        """The states with the values of some fields exchanged."""
        old = list(words)
        new = [word.copy() for word in old]
        for name in renaming:
            new[self.packing.slots[name].word] &= np.uint64(~self.packing.slots[name].mask & (1 << 64) - 1)
        for name, source in renaming.items():
            slot = self.packing.slots[name]
            new[slot.word] |= self.packing.field(tuple(old), source) << np.uint64(slot.shift)
        return new


def neighbours(group: Group) -> Iterator[Renaming]:
    """The exchanges of records next to each other, of which every order is made."""
    for left, right in pairwise(group):
        yield dict(zip((*left, *right), (*right, *left), strict=True))


def _after(first: Renaming, second: Renaming) -> Renaming:
    """One renaming after another, without what stays."""
    names = [*first, *second]
    moved = {name: first.get(second.get(name, name), second.get(name, name)) for name in names}
    return {name: source for name, source in moved.items() if name != source}


def _orders(groups: list[Group]) -> Iterator[list[Renaming]]:
    """Every order of the records of every group."""
    each = [
        [
            {name: source for record, other in zip(group, order, strict=True)
             for name, source in zip(record, other, strict=True) if name != source}
            for order in permutations(group)
        ]
        for group in groups
    ]  # fmt: skip
    for chosen in product(*each):
        yield list(chosen)


def _renaming(chosen: list[Renaming]) -> Renaming:
    result: Renaming = {}
    for renaming in chosen:
        result = _after(result, renaming)
    return result


def _entangled(groups: list[Group]) -> list[list[Group]]:
    """The groups, those that share fields together."""
    result: list[list[Group]] = []
    for group in groups:
        names = [name for record in group for name in record]
        touched = [
            others for others in result if any(name in names for other in others for record in other for name in record)
        ]
        result = [others for others in result if others not in touched]
        result.append([group, *(other for others in touched for other in others)])
    return result
