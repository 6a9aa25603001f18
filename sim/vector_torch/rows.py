"""Sorted tables of packed states as tensors: `sim.vector.rows` for a device.

A state is one row of ``k`` int64 words, the bits of the packed uint64 ones. Tables are sorted as signed numbers; any
order would do, as long as it is always the same. With several words the first is made a key as it is there: xor-ed
with a mix of the others, which can be taken back. Rows are the same only if all their words are.

Nothing here loops over rows. What has to come back from the device to decide how to go on is one truth value in each
of :func:`distinct` and :func:`lacking`, and the size of what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sim.vector_torch.device import Tensor, Tensors

_MULTIPLIER = 0xBF58476D1CE4E5B9 - (1 << 64)
PIECE_ROWS = 1 << 26
"""Rows that are merged at once, so that their positions take half a GiB at most."""


def mixed(columns: Sequence[Tensor]) -> Tensor:
    """A number for every row of the columns, spread over all bits."""
    result = columns[0] * _MULTIPLIER
    result ^= result >> 32
    for column in columns[1:]:
        result += column
        result *= _MULTIPLIER
        result ^= result >> 32
    result *= _MULTIPLIER
    return result


def with_key(columns: Tensors) -> Tensors:
    """The same rows with the first column made a key."""
    return columns if len(columns) == 1 else (columns[0] ^ mixed(columns[1:]), *columns[1:])


without_key = with_key
"""The rows as they were before :func:`with_key`: the same xor, once more."""


def size(columns: Tensors) -> int:
    """Rows of a table."""
    return len(columns[0])


def part(columns: Tensors, low: int, high: int) -> Tensors:
    """Rows ``low`` to ``high``, not copied."""
    return tuple(column[low:high] for column in columns)


def taken(columns: Tensors, which: Tensor) -> Tensors:
    """The rows of those numbers."""
    return tuple(column.index_select(0, which) for column in columns)


def chosen(columns: Tensors, truths: Tensor) -> Tensors:
    """The rows for which a truth value says so."""
    return taken(columns, truths.nonzero().squeeze(1))


def distinct(torch: Any, columns: Tensors) -> Tensors:
    """The rows sorted, each once."""
    if len(columns) == 1:
        return (torch.unique(columns[0], sorted=True),)  # sorts the numbers alone, where torch.sort also numbers them
    keys, order = torch.sort(columns[0])
    table = (keys, *taken(columns[1:], order))
    alike = keys[1:] == keys[:-1]
    same = _same(table, alike)
    if bool((alike != same).any()):  # two rows share a key and differ: as good as never
        table = taken(columns, _order(torch, columns))
        same = _same(table, table[0][1:] == table[0][:-1])
    keep = torch.ones(size(table), dtype=torch.bool, device=keys.device)
    keep[1:] = ~same
    return chosen(table, keep)


def _same(table: Tensors, alike: Tensor) -> Tensor:
    """Whether each row but the first is the one before it; ``alike`` says so of the keys."""
    same = alike.clone()
    for column in table[1:]:
        same &= column[1:] == column[:-1]
    return same


def _order(torch: Any, columns: Tensors) -> Tensor:
    """The rows' numbers, sorted by all words, the first one first."""
    order = torch.arange(size(columns), device=columns[0].device)
    for column in reversed(columns):
        order = order[torch.sort(column[order], stable=True)[1]]
    return order


def has(torch: Any, table: Tensors, rows: Tensors) -> Tensor:
    """Whether a sorted table has each of the rows. Sorted rows are found faster."""
    keys, sought = table[0], rows[0]
    if not size(table):
        return torch.zeros(size(rows), dtype=torch.bool, device=keys.device)
    at = torch.searchsorted(keys, sought).clamp_(max=size(table) - 1)
    alike = keys.index_select(0, at) == sought
    if len(table) == 1:
        return alike
    found = alike.clone()
    for column, wanted in zip(table[1:], rows[1:], strict=True):
        found &= column.index_select(0, at) == wanted
    odd = alike & ~found
    if bool(odd.any()):
        _walk(table, rows, at, odd, found)
    return found


def _walk(table: Tensors, rows: Tensors, at: Tensor, odd: Tensor, found: Tensor) -> None:
    """Look on where the first row of a key is another one: rare enough to go row by row of the table."""
    left = odd.nonzero().squeeze(1)
    place = at.index_select(0, left) + 1
    while len(left):
        inside = (place < size(table)).nonzero().squeeze(1)
        left, place = left.index_select(0, inside), place.index_select(0, inside)
        wanted, there = taken(rows, left), taken(table, place)
        alike = there[0] == wanted[0]
        same = alike.clone()
        for one, other in zip(there[1:], wanted[1:], strict=True):
            same &= one == other
        found[left[same]] = True
        more = (alike & ~same).nonzero().squeeze(1)
        left, place = left.index_select(0, more), place.index_select(0, more) + 1


def lacking(torch: Any, rows: Tensors, table: Tensors) -> Tensors:
    """The rows, sorted and distinct, that a sorted table does not have."""
    return chosen(rows, ~has(torch, table, rows)) if size(rows) and size(table) else rows


def merged(torch: Any, first: Tensors, second: Tensors) -> Tensors:
    """Two sorted tables that share no row as one. Each row's place is its own and that in the other table."""
    result = tuple(torch.empty(size(first) + size(second), dtype=torch.int64, device=c.device) for c in first)
    for table, other, after in ((first, second, False), (second, first, True)):
        for low in range(0, size(table), PIECE_ROWS):
            piece = part(table, low, low + PIECE_ROWS)
            at = torch.searchsorted(other[0], piece[0], right=after)
            at += torch.arange(low, low + size(piece), device=at.device)
            for target, column in zip(result, piece, strict=True):
                target.scatter_(0, at, column)
    return result
