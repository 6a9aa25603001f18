"""One receiver rank's landing memory, token by token.

A cell holds the number of the source token that was written there last: ``(request + 1) << 32 | token``, so that
what is read back tells whose it was and which. ``POISON`` stands where a block changed hands since. Headers are
kept beside the cells because they survive where cells do not: that is the mistake of the ``stale-header`` variant.

With the protocol's token-major layout a token's positions lie beside its embedding, and one cell stands for both.
Under a layout that strays from that, positions are kept apart, element by element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fsm.blocks import PerBlock
from fsm.rules import Rules, token_major

POISON = -1
_SHIFT = 32


def token_value(request: int, token: int) -> int:
    """The content of source token ``token`` of the request with that number."""
    return ((request + 1) << _SHIFT) | token


def value_of(value: int) -> tuple[int, int]:
    """The request and the token that a cell's content stands for."""
    return (value >> _SHIFT) - 1, value & ((1 << _SHIFT) - 1)


def value_text(value: int) -> str:
    """A cell's content in words."""
    if value == POISON:
        return "poison"
    request, token = value_of(value)
    return f"token {token} of request {request}"


class Header(NamedTuple):
    """The words of an aux header that anybody looked at: the total (never by us), and the position delta."""

    total: int
    delta: int


_CLEAR = Header(0, 0)


class Memory:
    """The blocks of one rank."""

    def __init__(self, blocks: int, block_tokens: int, rules: Rules, stale_header_tokens: int = 0) -> None:
        self.block_tokens = block_tokens
        self.rules = rules
        self.split = rules.position_written is not token_major
        self._poison = (POISON,) * block_tokens
        self._poison3 = (POISON,) * (3 * block_tokens) if self.split else ()
        self.cells: list[tuple[int, ...]] = [self._poison] * blocks
        self.positions: list[tuple[int, ...]] = [self._poison3] * blocks
        self.headers: list[Header] = [Header(stale_header_tokens, 0)] * blocks

    def header_total(self, block: int) -> int:
        """Word 0 of a block's header; only wrong rules ask."""
        return self.headers[block].total

    def recycle(self, blocks: Sequence[int], clear_headers: bool) -> None:
        """The blocks change hands: poison them."""
        for block in blocks:
            self.cells[block] = self._poison
            self.positions[block] = self._poison3
            if clear_headers:
                self.headers[block] = _CLEAR

    def write(self, blocks: Sequence[int], request: int, start: int, count: int, header: Header | None) -> None:
        """Put source tokens ``[start, start + count)`` into the blocks, from the first cell on."""
        size = self.block_tokens
        first = token_value(request, start)
        for index, block in enumerate(blocks):
            filled = min(size, count - index * size)
            if filled <= 0:
                break
            low = first + index * size
            self.cells[block] = tuple(range(low, low + filled)) + self.cells[block][filled:]
            if self.split:
                self._write_positions(block, low, filled)
        if header is not None:
            self.headers[blocks[0]] = header

    def _write_positions(self, block: int, low: int, filled: int) -> None:
        plane = list(self.positions[block])
        for offset in range(filled):
            for axis in range(3):
                where = self.rules.position_written(self.block_tokens, filled, offset, axis)
                plane[where] = (low + offset) * 3 + axis
        self.positions[block] = tuple(plane)

    def wrong(self, blocks: Sequence[int], request: int, start: int, count: int) -> str:
        """Compare what would be copied out with the source; says what is wrong first, empty if all is right.

        The words name no block: they are kept by a checker, and block numbers mean nothing there.
        """
        size = self.block_tokens
        for index in range((count + size - 1) // size):
            filled = min(size, count - index * size)
            low = token_value(request, start + index * size)
            if index >= len(blocks):
                return f"token {start + index * size} lies behind the {len(blocks)} blocks that were granted"
            cells = self.cells[blocks[index]]
            if cells[:filled] != tuple(range(low, low + filled)):
                offset = next(i for i in range(filled) if cells[i] != low + i)
                token = start + index * size + offset
                return f"where token {token} should be there was {value_text(cells[offset])}"
            if self.split:
                text = self._wrong_positions(blocks[index], low, filled, start + index * size)
                if text:
                    return text
        return ""

    def _wrong_positions(self, block: int, low: int, filled: int, token: int) -> str:
        plane = self.positions[block]
        for offset in range(filled):
            for axis in range(3):
                where = self.rules.position_read(self.block_tokens, filled, offset, axis)
                if plane[where] != (low + offset) * 3 + axis:
                    return f"position {axis} of token {token + offset} is not its own"
        return ""

    def save(self) -> tuple[Any, ...]:
        """The content, hashable, by block."""
        return PerBlock(zip(self.cells, self.positions, self.headers, strict=True))

    def load(self, saved: tuple[Any, ...]) -> None:
        """Take on a content that ``save`` gave."""
        cells, positions, headers = zip(*saved, strict=True)
        self.cells, self.positions, self.headers = list(cells), list(positions), list(headers)
