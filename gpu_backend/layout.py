"""Where each byte of the payload lies: the items of a layout, the map of an arena, and the spans of a write.

A layout says what is stored for one token; both sides must have the same one. An arena is one range of bytes
that holds ``blocks`` blocks of it. It is laid out item by item: first the embeddings of all blocks, then the
ids of all blocks, and so on, last of all the aux headers. Hence block ``b + 1`` of an item follows block ``b``
without a gap, a token has one *row* number (``block * block_tokens + offset``) that is good for every item, and
adjacent blocks are one range of bytes per item.

Everything here is arithmetic: no memory is touched, and a sender computes the receiver's addresses from its
layout and its number of blocks alone.

>>> layout = make_layout(4, 8, dtype="float16")
>>> ArenaMap(layout, blocks=3).base(1)
4096
>>> write_spans(ArenaMap(layout, 3), [0, 1], 3, ArenaMap(layout, 9), [7, 8], 5, aux=False)[0]
Span(source=48, target=448, bytes=80)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

import torch

from fsm.errors import LocalError
from fsm.messages import Layout

LAYOUT_VERSION: Final = 1
"""Of the way of storing that this module describes; it is part of the fingerprint."""

ALIGNMENT: Final = 4096
"""In bytes: the base of every item, and of the aux headers, is a multiple of it."""

AUX_WORDS: Final = 16
"""Words of int32 in the aux header of a block: ``[0]`` the total in tokens, ``[1]`` the position delta."""

AUX_BYTES: Final = 4 * AUX_WORDS

INPUT_EMBEDDINGS: Final = "input_embeddings"
FILL_IDS: Final = "fill_ids"
MROPE_POSITIONS: Final = "mrope_positions"
DEEPSTACK: Final = "deepstack"

OPTIONAL: Final = frozenset((MROPE_POSITIONS, DEEPSTACK))
"""The items that a request may do without."""

INT32_MIN: Final = -(2**31)
INT32_MAX: Final = 2**31 - 1


class Item(NamedTuple):
    """One thing that is stored for every token."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of one token; ``()`` is one number."""
    token_bytes: int


def make_layout(block_tokens: int, dim: int, *, dtype: str = "bfloat16", deepstack_levels: int = 0) -> Layout:
    """The layout of blocks of ``block_tokens`` tokens whose embeddings have ``dim`` elements of ``dtype``.

    ``dtype`` is the name of a floating torch type. Raises :class:`LocalError` if a number is out of bounds or
    the type is not known.
    """
    check_int("block_tokens", block_tokens, 1)
    check_int("dim", dim, 1)
    check_int("deepstack_levels", deepstack_levels, 0)
    items = (INPUT_EMBEDDINGS, FILL_IDS, MROPE_POSITIONS, *((DEEPSTACK,) if deepstack_levels else ()))
    layout = Layout(block_tokens, dim, dtype, items, deepstack_levels, LAYOUT_VERSION)
    items_of(layout)
    return layout


def items_of(layout: Layout) -> tuple[Item, ...]:
    """The items of a layout, in the order in which they are stored.

    Raises :class:`LocalError` if the layout is of another version, has an unknown item or type, has an item
    twice, lacks one that every request has, or names ``deepstack`` without levels or levels without it.
    """
    if layout.version != LAYOUT_VERSION:
        raise LocalError(
            f"layout version {layout.version}: this package stores version {LAYOUT_VERSION}; use make_layout"
        )
    dtype = _floating(layout.dtype)
    known = {
        INPUT_EMBEDDINGS: (dtype, (layout.dim,)),
        FILL_IDS: (torch.int32, ()),
        MROPE_POSITIONS: (torch.int32, (3,)),
        DEEPSTACK: (dtype, (layout.dim * layout.deepstack_levels,)),
    }
    needed = {INPUT_EMBEDDINGS, FILL_IDS, MROPE_POSITIONS, *([DEEPSTACK] if layout.deepstack_levels else [])}
    if set(layout.items) != needed or len(layout.items) != len(needed):
        raise LocalError(
            f"layout items {layout.items} with {layout.deepstack_levels} deepstack levels: expected each of "
            f"{tuple(name for name in known if name in needed)} once; use make_layout"
        )
    return tuple(_item(name, *known[name]) for name in layout.items)


def _item(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Item:
    elements = 1
    for size in shape:
        elements *= size
    return Item(name, dtype, shape, elements * dtype.itemsize)


def _floating(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise LocalError(
            f"layout dtype {name!r}: expected the name of a floating torch type, such as 'bfloat16' or 'float16'"
        )
    return dtype


def check_int(name: str, value: object, least: int, most: int = INT32_MAX) -> None:
    """Raises :class:`LocalError`, which names the argument, unless it is a whole number within the bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise LocalError(f"{name}={value!r}: expected a whole number from {least} to {most}")


class ArenaMap:
    """Where everything lies in an arena of ``blocks`` blocks; offsets and sizes are in bytes."""

    AUX_BYTES: Final = AUX_BYTES

    def __init__(self, layout: Layout, blocks: int) -> None:
        """Raises :class:`LocalError` if the layout cannot be stored or the number of blocks is out of bounds."""
        check_int("blocks", blocks, 1)
        self.layout: Final = layout
        self.blocks: Final = blocks
        self.items: Final = items_of(layout)
        self.rows: Final = blocks * layout.block_tokens
        """Tokens that the arena has room for."""
        bases: list[int] = []
        end = 0
        for item in self.items:
            bases.append(end)
            end = _aligned(end + self.rows * item.token_bytes)
        self._bases: Final = tuple(bases)
        self.aux_base: Final = end
        self.bytes: Final = _aligned(end + blocks * AUX_BYTES)

    def __repr__(self) -> str:
        return f"ArenaMap(blocks={self.blocks}, block_tokens={self.layout.block_tokens}, bytes={self.bytes})"

    def index(self, item: int | str) -> int:
        """The index of an item, which may be named. Raises :class:`LocalError` if there is none such."""
        if isinstance(item, str):
            for index, known in enumerate(self.items):
                if known.name == item:
                    return index
        elif 0 <= item < len(self.items):
            return item
        names = ", ".join(known.name for known in self.items)
        raise LocalError(f"item {item!r}: this layout stores {names}; give one of these names or its index")

    def base(self, item: int | str) -> int:
        """Where block 0 of the item begins."""
        return self._bases[self.index(item)]

    def block_bytes(self, item: int | str) -> int:
        """The bytes of the item in one block."""
        return self.items[self.index(item)].token_bytes * self.layout.block_tokens

    def aux_offset(self, block: int) -> int:
        """Where the aux header of a block begins."""
        return self.aux_base + block * AUX_BYTES

    def check_blocks(self, what: str, blocks: Sequence[int]) -> None:
        """Raises :class:`LocalError`, which begins with ``what``, if one of the blocks is not in this arena."""
        if not blocks or (min(blocks) >= 0 and max(blocks) < self.blocks):
            return
        wrong = next(block for block in blocks if not 0 <= block < self.blocks)
        raise LocalError(f"{what}: block {wrong} is not in this arena; its blocks are 0 to {self.blocks - 1}")


def _aligned(offset: int) -> int:
    return (offset + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


class Run(NamedTuple):
    """Tokens whose rows follow each other in an arena."""

    first: int
    """The first of them, counted from the first token of what was asked for."""
    row: int
    """Its row: ``block * block_tokens + offset``."""
    tokens: int


def runs_of(blocks: Sequence[int], start: int, tokens: int, block_tokens: int) -> Iterator[Run]:
    """``tokens`` tokens from token ``start`` of ``blocks`` on, cut only where one row does not follow the last.

    Token ``start + i`` lies in ``blocks[(start + i) // block_tokens]`` at ``(start + i) % block_tokens`` (R10).
    The caller has checked that the blocks reach.
    """
    first = 0
    while first < tokens:
        index, offset = divmod(start + first, block_tokens)
        block = blocks[index]
        count = block_tokens - offset
        while first + count < tokens and blocks[index + 1] == blocks[index] + 1:
            index += 1
            count += block_tokens
        yield Run(first, block * block_tokens + offset, min(count, tokens - first))
        first += count


class Span(NamedTuple):
    """``bytes`` bytes from offset ``source`` of one arena to offset ``target`` of another."""

    source: int
    target: int
    bytes: int


def write_spans(
    source_map: ArenaMap,
    source_blocks: Sequence[int],
    source_start: int,
    target_map: ArenaMap,
    target_blocks: Sequence[int],
    tokens: int,
    *,
    skip: Collection[str] = (),
    aux: bool,
) -> list[Span]:
    """The bytes of ``tokens`` tokens, from source token ``source_start`` on, and where they go.

    Source token ``source_start + i`` goes to ``target_blocks[i // block_tokens]`` at ``i % block_tokens``,
    whether ``source_start`` is a multiple of the block or not (R10). Items named in ``skip`` stay behind. With
    ``aux`` the aux header of the first source block goes to the first target block; it belongs to token 0.
    Adjacent bytes are one span; spans come item by item, the aux header last.

    Raises :class:`LocalError` if the two layouts differ, if a block is not in its arena, if the blocks do not
    reach, or if ``aux`` is asked for with a ``source_start`` other than 0.
    """
    _check_write(source_map, source_blocks, source_start, target_map, target_blocks, tokens)
    for name in skip:
        if name not in OPTIONAL:
            raise LocalError(f"skip={name!r}: only {' and '.join(sorted(OPTIONAL))} can be absent")
    if aux and source_start != 0:
        raise LocalError(f"aux=True with source_start={source_start}: the aux header goes with token 0 only")
    rows = list(_row_pairs(source_blocks, source_start, target_blocks, tokens, source_map.layout.block_tokens))
    spans: list[Span] = []
    for index, item in enumerate(source_map.items):
        if item.name not in skip:
            source, target, size = source_map.base(index), target_map.base(index), item.token_bytes
            spans += [Span(source + a * size, target + b * size, count * size) for a, b, count in rows]
    if aux:
        first, last = source_map.aux_offset(source_blocks[0]), target_map.aux_offset(target_blocks[0])
        spans.append(Span(first, last, AUX_BYTES))
    return spans


def _check_write(
    source_map: ArenaMap,
    source_blocks: Sequence[int],
    source_start: int,
    target_map: ArenaMap,
    target_blocks: Sequence[int],
    tokens: int,
) -> None:
    if source_map.layout != target_map.layout:
        raise LocalError(f"two layouts: source {source_map.layout}, target {target_map.layout}; they must be equal")
    check_int("source_start", source_start, 0)
    check_int("tokens", tokens, 1)
    source_map.check_blocks("source_blocks", source_blocks)
    target_map.check_blocks("target_blocks", target_blocks)
    block_tokens = source_map.layout.block_tokens
    for name, blocks, needed in (
        ("source_blocks", source_blocks, source_start + tokens),
        ("target_blocks", target_blocks, tokens),
    ):
        if len(blocks) * block_tokens < needed:
            raise LocalError(f"{name}: {len(blocks)} blocks of {block_tokens} tokens do not reach token {needed}")


def _row_pairs(
    source_blocks: Sequence[int], source_start: int, target_blocks: Sequence[int], tokens: int, block_tokens: int
) -> Iterator[tuple[int, int, int]]:
    """Source row, target row and tokens of every piece that is in one run on both sides."""
    sources = runs_of(source_blocks, source_start, tokens, block_tokens)
    targets = runs_of(target_blocks, 0, tokens, block_tokens)
    source, target = next(sources), next(targets)
    done = 0
    while True:
        end = min(source.first + source.tokens, target.first + target.tokens)
        yield source.row + done - source.first, target.row + done - target.first, end - done
        done = end
        if done == tokens:
            return
        if done == source.first + source.tokens:
            source = next(sources)
        if done == target.first + target.tokens:
            target = next(targets)
