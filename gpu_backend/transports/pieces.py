"""How a chunk is cut into pieces, and where each piece lies in an arena.

Both sides of a two-sided transport must post the same number of pieces with the same numbers of bytes. So they cut
by one rule, :func:`cut_chunk`, which knows nothing of either side's blocks: only the layout, the tokens, the limit of
a piece, what is left out, and whether the aux header goes along. :func:`place` then says where a piece lies on this
side. All pieces are uint8, so no type can disagree.

An item of many bytes per token is cut block by block, in pieces of at most ``piece_bytes``: none crosses a border of
the receiver's blocks, so there it is always one range of memory. On the sender's side a chunk may start anywhere in a
block; a piece that crosses into a block that is not adjacent has two parts there. Items of few bytes per token are
packed together, with the aux header in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from fsm.messages import Layout
from gpu_backend.layout import AUX_BYTES, ArenaMap, items_of, runs_of
from gpu_backend.transports.communicator import Chunk, Piece

if TYPE_CHECKING:
    import torch

SMALL_TOKEN_BYTES: Final = 256
"""Items of fewer bytes per token are packed together."""


class Cut(NamedTuple):
    """One piece of a chunk: the aux header if ``aux``, then ``tokens`` tokens from ``first`` on of each item."""

    aux: bool
    items: tuple[int, ...]
    """Indexes into the items of the layout."""
    first: int
    """Counted from the first token of the chunk."""
    tokens: int
    bytes: int


@lru_cache(maxsize=64)
def cut_chunk(layout: Layout, tokens: int, piece_bytes: int, skip: frozenset[str], aux: bool) -> tuple[Cut, ...]:
    """The pieces of a chunk of ``tokens`` tokens that starts at the beginning of a receiver's block.

    A piece has at most ``piece_bytes`` bytes, or one token of an item if that has more (and the aux header).
    0 tokens are no pieces.
    """
    if tokens == 0:
        return ()
    items = [(index, item.token_bytes) for index, item in enumerate(items_of(layout)) if item.name not in skip]
    cuts: list[Cut] = []
    for index, token_bytes in items:
        if token_bytes >= SMALL_TOKEN_BYTES:
            cuts += _cut_item(index, token_bytes, tokens, layout.block_tokens, piece_bytes)
    small = tuple(index for index, token_bytes in items if token_bytes < SMALL_TOKEN_BYTES)
    row_bytes = sum(token_bytes for _, token_bytes in items if token_bytes < SMALL_TOKEN_BYTES)
    step = max(1, (piece_bytes - AUX_BYTES) // max(row_bytes, 1))
    for first in range(0, tokens, step) if small else ():
        count = min(step, tokens - first)
        with_aux = aux and first == 0
        cuts.append(Cut(with_aux, small, first, count, count * row_bytes + AUX_BYTES * with_aux))
    return tuple(cuts)


def _cut_item(index: int, token_bytes: int, tokens: int, block_tokens: int, piece_bytes: int) -> Iterator[Cut]:
    """An item block by block, each block in the fewest pieces that keep to the limit, all about equally long."""
    most = max(1, piece_bytes // token_bytes)
    pieces = -(-block_tokens // most)
    step = -(-block_tokens // pieces)
    for block_first in range(0, tokens, block_tokens):
        block_end = min(block_first + block_tokens, tokens)
        for first in range(block_first, block_end, step):
            count = min(step, block_end - first)
            yield Cut(False, (index,), first, count, count * token_bytes)


def place(arena: torch.Tensor, arena_map: ArenaMap, blocks: Sequence[int], start: int, cut: Cut) -> Piece:
    """Where a piece lies in an arena (uint8 [bytes]) when token 0 of the chunk is token ``start`` of ``blocks``."""
    parts = []
    if cut.aux:
        parts.append(arena.narrow(0, arena_map.aux_offset(blocks[0]), AUX_BYTES))
    for index in cut.items:
        base, token_bytes = arena_map.base(index), arena_map.items[index].token_bytes
        for run in runs_of(blocks, start + cut.first, cut.tokens, arena_map.layout.block_tokens):
            parts.append(arena.narrow(0, base + run.row * token_bytes, run.tokens * token_bytes))
    return tuple(parts)


def chunk_in(arena: torch.Tensor, arena_map: ArenaMap, blocks: Sequence[int], start: int, cuts: Sequence[Cut]) -> Chunk:
    """A chunk that lies in an arena. The pieces are looked up when they are posted: a chunk may have thousands."""
    return Chunk(len(cuts), (place(arena, arena_map, blocks, start, cut) for cut in cuts))
