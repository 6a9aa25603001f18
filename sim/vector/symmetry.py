"""Identical records: of all states that differ in their order only, one is kept.

A group is sorted by whole records, with a network of exchanges that is run over many states at once. Where groups
share no field each is sorted by itself, and that is one state of each orbit exactly. So it is where groups are nested,
as blocks are in ranks: the inner ones are sorted first, and then the outer records, each in its lowest form.

Groups that overlap as the rows and the columns of a matrix do have no such short way, and neither has a group whose
records are named by values elsewhere (:class:`sim.model.form.Reference`): every order of them is tried, the others are
sorted, and the lowest result is kept. That is exact as well, because exchanges of rows and of columns commute; it is
refused where there are too many orders to try.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise, permutations, product
from math import factorial, prod
from typing import NamedTuple

import numpy as np

from fsm.errors import LocalError
from sim.model.form import Group, Model, Record
from sim.vector.pack import Packing
from sim.vector.rows import Columns, Truths, Words

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


class Order(NamedTuple):
    """An order of the records of some groups: where each field's value comes from, and what becomes of values that
    name a record: for each field, old value -> new value."""

    renaming: Renaming
    values: dict[str, dict[int, int]]


class Symmetry:
    """Gives every state the one that stands for it. Raises LocalError for groups that this cannot be done for."""

    def __init__(self, model: Model, packing: Packing) -> None:
        self.model, self.packing = model, packing
        self._classes: list[tuple[list[_Sorted], list[Order]]] = []
        named = [reference.group for reference in model.references]
        groups = [(group, number in named) for number, group in enumerate(model.symmetry) if len(group) > 1]
        for together in _entangled([group for group, _ in groups]):
            tried, in_place = _divided(together, [group for group, referred in groups if referred])
            self._check(tried, in_place)
            orders = [self._order(chosen) for chosen in product(*(_orders(group) for group in tried))]
            self._classes.append(([_Sorted(group, packing) for group in in_place], orders))

    def __bool__(self) -> bool:
        return bool(self._classes)

    def _check(self, tried: list[Group], in_place: list[Group]) -> None:
        orders = prod(factorial(len(group)) for group in tried)
        if orders > ORDERS_MAX:
            raise LocalError(
                f"model '{self.model.name}': {len(tried) + len(in_place)} symmetry groups share fields, and {orders:,} "
                f"orders would have to be tried; {ORDERS_MAX:,} is the limit"
            )
        for number, group in enumerate(tried):
            for other in tried[number + 1 :] + in_place:
                for one, two in product(neighbours(group), neighbours(other)):
                    if _after(one, two) != _after(two, one):
                        raise LocalError(
                            f"model '{self.model.name}': symmetry groups of {_shown(group)} and {_shown(other)} share "
                            "fields, but not as rows and columns of a matrix do"
                        )

    def exchanges(self) -> Iterator[tuple[int, tuple[Record, Record], Order]]:
        """Every exchange of two neighbouring records: the number of the group, the records, the order."""
        for number, group in enumerate(self.model.symmetry):
            for at in range(len(group) - 1):
                places = list(range(len(group)))
                places[at], places[at + 1] = at + 1, at
                yield number, (group[at], group[at + 1]), self._order(((group, tuple(places)),))

    def _order(self, chosen: Iterable[tuple[Group, tuple[int, ...]]]) -> Order:
        """Of each group, record ``i`` takes the place of ``places[i]``."""
        renaming: Renaming = {}
        values: dict[str, dict[int, int]] = {}
        for group, places in chosen:
            renaming = _after(renaming, _moved(group, places))
            for field, number, first in self.model.references:
                if self.model.symmetry[number] == group:
                    values[field] = {
                        first + old: first + new for new, old in enumerate(places) if old != new
                    }
        return Order(renaming, {field: moves for field, moves in values.items() if moves})

    def canonical(self, columns: Columns) -> Columns:
        """The state that stands for each row; new columns."""
        words = list(columns)
        for in_place, orders in self._classes:
            words = self._lowest(words, in_place, orders)
        return tuple(words)

    def _lowest(self, words: list[Words], in_place: list[_Sorted], orders: list[Order]) -> list[Words]:
        best: list[Words] = []
        for order in orders:
            trial = self.renamed(words, order) if order.renaming else list(words)
            for group in in_place:
                group.apply(trial)
            if best:
                better = _greater(best, trial)
                best = [np.where(better, new, old) for new, old in zip(trial, best, strict=True)]
            else:
                best = trial
        return best

    def renamed(self, words: Iterable[Words], order: Order) -> list[Words]:
        """The states with the records in another order."""
        old = list(words)
        new = [word.copy() for word in old]
        for name in order.renaming:
            new[self.packing.slots[name].word] &= np.uint64(~self.packing.slots[name].mask & (1 << 64) - 1)
        for name, source in order.renaming.items():
            slot = self.packing.slots[name]
            new[slot.word] |= self.packing.field(tuple(old), source) << np.uint64(slot.shift)
        for name, moves in order.values.items():
            slot = self.packing.slots[name]
            values = self.packing.field(tuple(new), name)
            result = values.copy()
            for before, after in moves.items():
                result[values == np.uint64(before - slot.low)] = after - slot.low
            new[slot.word] &= np.uint64(~slot.mask & (1 << 64) - 1)
            new[slot.word] |= result << np.uint64(slot.shift)
        return new


def _shown(group: Group) -> str:
    record = group[0]
    return f"({', '.join(record[:3])}{', ...' if len(record) > 3 else ''})"


def _moved(group: Group, places: tuple[int, ...]) -> Renaming:
    """Record ``i`` takes the values of record ``places[i]``."""
    return {
        name: source
        for record, place in zip(group, places, strict=True)
        for name, source in zip(record, group[place], strict=True)
        if name != source
    }


def neighbours(group: Group) -> Iterator[Renaming]:
    """The exchanges of records next to each other, of which every order is made."""
    for left, right in pairwise(group):
        yield dict(zip((*left, *right), (*right, *left), strict=True))


def _after(first: Renaming, second: Renaming) -> Renaming:
    """One renaming after another, without what stays."""
    names = [*first, *second]
    moved = {name: first.get(second.get(name, name), second.get(name, name)) for name in names}
    return {name: source for name, source in moved.items() if name != source}


def _orders(group: Group) -> list[tuple[Group, tuple[int, ...]]]:
    """Every order of the records of a group."""
    return [(group, places) for places in permutations(range(len(group)))]


def _divided(groups: list[Group], referred: list[Group]) -> tuple[list[Group], list[Group]]:
    """Of groups that share fields: those whose orders are tried, and those that are sorted, the inner ones first.

    Sorted are the largest that are nested in each other or share nothing, and are not named by values elsewhere.
    """
    in_place: list[Group] = []
    for group in sorted(groups, key=len, reverse=True):
        if group not in referred and all(_apart(group, other) or _nested(group, other, groups) for other in in_place):
            in_place.append(group)
    return [group for group in groups if group not in in_place], sorted(in_place, key=lambda group: len(group[0]))


def _apart(one: Group, other: Group) -> bool:
    names = {name for record in one for name in record}
    return not any(name in names for record in other for name in record)


def _nested(one: Group, other: Group, groups: list[Group]) -> bool:
    """Whether one group lies inside of one record of the other, and the like in every record of that."""
    inner, outer = (one, other) if len(one[0]) < len(other[0]) else (other, one)
    inside = [record for record in outer if set(record) >= {name for part in inner for name in part}]
    if len(inside) != 1:
        return False
    images = [
        tuple(tuple(record[inside[0].index(name)] for name in part) for part in inner) for record in outer
    ]
    return all(image in groups for image in images)


def _entangled(groups: list[Group]) -> list[list[Group]]:
    """The groups, those that share fields together."""
    result: list[list[Group]] = []
    for group in groups:
        touched = [others for others in result if not all(_apart(group, other) for other in others)]
        result = [others for others in result if others not in touched]
        result.append([*(other for others in touched for other in others), group])
    return result
