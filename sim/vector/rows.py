"""Sorted tables of packed states: what the vector engine has in place of a hash set.

A state is one row of ``k`` uint64 words, a table is ``k`` columns of equal length (:data:`Columns`). All that is done
to tables is done to whole ones: sort, drop the doubles, find the rows that another table lacks, merge.

With one word the word itself is sorted. With more, sorting by all words would cost several sorts, so the first column
is made a key that tells nearly all states apart: it is xor-ed with a mix of the other columns (:func:`with_key`),
which can be taken back (:func:`without_key`). Nothing is lost and nothing rests on luck: rows are the same only if all
their words are, and rows that share a key and differ are sorted by the other words too.

``np.unique`` is not used: it is several times slower than a sort and a comparison of neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Columns = tuple[Words, ...]
Truths = NDArray[np.bool_]

_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))

SEARCH_COST, MERGE_COST = 16, 7
"""Nanoseconds, measured: one row looked up in a sorted column, one row of either in a sort of both together."""


def mixed(columns: Sequence[Words]) -> Words:
    """A number for every row of the columns, spread over all 64 bits (the finisher of splitmix64)."""
    result = np.zeros_like(columns[0])
    for column in columns:
        result += column
        result ^= result >> _SHIFTS[0]
        result *= _MULTIPLIERS[0]
        result ^= result >> _SHIFTS[1]
        result *= _MULTIPLIERS[1]
        result ^= result >> _SHIFTS[2]
    return result


def with_key(columns: Columns) -> Columns:
    """The same rows with the first column made a key."""
    return columns if len(columns) == 1 else (columns[0] ^ mixed(columns[1:]), *columns[1:])


without_key = with_key
"""The rows as they were before :func:`with_key`: the same xor, once more."""


def size(columns: Columns) -> int:
    """Rows of a table."""
    return len(columns[0])


def part(columns: Columns, low: int, high: int) -> Columns:
    """Rows ``low`` to ``high``, not copied."""
    return tuple(column[low:high] for column in columns)


def taken(columns: Columns, which: NDArray[np.intp] | Truths) -> Columns:
    """The rows of those numbers, or where a truth value says so."""
    if which.dtype == np.bool_:
        which = np.flatnonzero(which)  # much faster than to select by truth values, column by column
    return tuple(column.take(which) for column in columns)


def joined(tables: Sequence[Columns]) -> Columns:
    """The rows of all tables, one after the other."""
    if len(tables) == 1:
        return tables[0]
    return tuple(np.concatenate(columns) for columns in zip(*tables, strict=True))


def in_order(columns: Columns) -> Columns:
    """The rows sorted by key; those that share a key and differ by the other words. One column is sorted in place."""
    if len(columns) == 1:
        columns[0].sort()
        return columns
    return taken(columns, _order(columns)[0])


def _order(columns: Columns) -> tuple[NDArray[np.intp], Truths]:
    """The rows' numbers as sorted, and whether each is the same row as the one before it. For several columns."""
    order = np.argsort(columns[0])
    keys = columns[0].take(order)
    same = keys[1:] == keys[:-1]
    at = np.flatnonzero(same)
    equal = _equal(columns[1:], order.take(at), order.take(at + 1))
    if not equal.all():  # two rows share a key and differ: as good as never, and then the other words decide
        order = np.lexsort(columns[::-1])
        same = _equal(columns, order[:-1], order[1:])
    return order, np.concatenate((np.zeros(min(len(order), 1), np.bool_), same))


def _equal(columns: Columns, left: NDArray[np.intp], right: NDArray[np.intp]) -> Truths:
    equal = np.ones(len(left), np.bool_)
    for column in columns:
        equal &= column.take(left) == column.take(right)
    return equal


def distinct(columns: Columns) -> Columns:
    """The rows sorted, each once. One column is sorted in place; the result is a copy."""
    if len(columns) > 1:
        order, same = _order(columns)
        return taken(columns, order.take(np.flatnonzero(~same)))
    (column,) = in_order(columns)
    if len(column) < 2:
        return (column.copy(),)
    keep = np.empty(len(column), np.bool_)
    keep[0] = True
    np.not_equal(column[1:], column[:-1], out=keep[1:])
    return taken(columns, keep)


def find(table: Columns, rows: Columns) -> NDArray[np.intp]:
    """The position of each row in a sorted table, -1 where it is not there. Sorted rows are found faster."""
    keys, sought = table[0], rows[0]
    at = np.searchsorted(keys, sought)
    if not len(keys):
        return np.full(len(sought), -1, np.intp)
    inside = np.minimum(at, len(keys) - 1)
    alike = keys.take(inside) == sought
    if len(table) == 1:
        return np.where(alike, inside, -1)
    result = np.full(len(sought), -1, np.intp)
    left = np.flatnonzero(alike)
    place = inside.take(left)
    while len(left):
        equal = np.ones(len(left), np.bool_)
        for column, wanted in zip(table[1:], rows[1:], strict=True):
            equal &= column.take(place) == wanted.take(left)
        result[left[equal]] = place[equal]
        # Rows of the same key that differ: rare enough to be walked through one by one.
        left, place = left[~equal], place[~equal] + 1
        more = place < len(keys)
        left, place = left[more], place[more]
        more = keys.take(place) == sought.take(left)
        left, place = left[more], place[more]
    return result


def lacking(rows: Columns, table: Columns) -> Columns:
    """The rows, sorted and distinct, that a sorted table does not have."""
    few, many = size(rows), size(table)
    if not few or not many:
        return rows
    if len(rows) == 1 and (few + many) * MERGE_COST < few * SEARCH_COST:
        both = np.concatenate((rows[0], table[0]))
        both.sort()
        doubles = both[1:].take(np.flatnonzero(both[1:] == both[:-1]))
        if not len(doubles):
            return rows
        keep = np.ones(few, np.bool_)
        keep[np.searchsorted(rows[0], doubles)] = False
        return taken(rows, keep)
    new = find(table, rows) < 0
    return rows if new.all() else taken(rows, new)
