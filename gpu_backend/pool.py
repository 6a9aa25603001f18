"""Pools of blocks: torch memory behind the block numbers that the protocol deals in.

A :class:`BlockPool` is the landing memory of a receiver. It is one arena and typed views into it, and it knows
nothing of owners and states: that is the ledger's part, and a pool does what it is told. A :class:`SourcePool`
is the staging memory of a sender: the same, and a free list, because which source blocks a payload takes is no
matter of the protocol.

What a pool writes for its caller (headers, a stored payload) is done when the method returns, on CUDA too: the
next one to touch the bytes is a peer that does not know of this process's streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch

from fsm.errors import LocalError
from fsm.messages import Layout
from gpu_backend.layout import (
    AUX_BYTES,
    AUX_WORDS,
    DEEPSTACK,
    FILL_IDS,
    INPUT_EMBEDDINGS,
    INT32_MAX,
    INT32_MIN,
    MROPE_POSITIONS,
    OPTIONAL,
    ArenaMap,
    Item,
    check_int,
    items_of,
    runs_of,
)
from gpu_backend.memory import Memory, Pinned


class BlockPool:
    """Memory for ``blocks`` blocks of a layout: one arena of bytes, and a typed view of each item.

    Use from one thread, but for the memory itself, which whoever owns a block may touch from any.
    """

    def __init__(
        self,
        layout: Layout,
        blocks: int,
        *,
        device: str | torch.device = "cpu",
        pinned: Pinned = "auto",
        huge_pages: bool = True,
    ) -> None:
        """Allocates and touches the memory, all zeros.

        Raises :class:`LocalError` if the layout, the number of blocks or the device is wrong, or if the memory
        cannot be had.
        """
        self.map: Final = ArenaMap(layout, blocks)
        self.layout: Final = layout
        self.blocks: Final = blocks
        self.memory: Final = Memory(self.map.bytes, device=device, pinned=pinned, huge_pages=huge_pages)
        self.device: Final = self.memory.device
        self.address: Final[int] = self.arena.data_ptr()
        # Headers are cleared twice for each grant: through numpy that costs a fifth of what it does through torch.
        self._host_headers = self.headers.numpy() if self.device.type == "cpu" else None

    @property
    def arena(self) -> torch.Tensor:
        """uint8 ``[map.bytes]``. Raises :class:`LocalError` after ``close``."""
        return self.memory.arena

    def view(self, item: int | str) -> torch.Tensor:
        """``[blocks, block_tokens, *shape]`` of the item's type, over the arena.

        Raises :class:`LocalError` if there is no such item, or after ``close``.
        """
        shape = self.map.items[self.map.index(item)].shape
        return self.rows(item).view(self.blocks, self.layout.block_tokens, *shape)

    def rows(self, item: int | str) -> torch.Tensor:
        """``[blocks * block_tokens, *shape]``: the same, by row (``block * block_tokens + offset``)."""
        index = self.map.index(item)
        base, one = self.map.base(index), self.map.items[index]
        part = self.arena[base : base + self.map.rows * one.token_bytes]
        return part.view(one.dtype).view(self.map.rows, *one.shape)

    @property
    def headers(self) -> torch.Tensor:
        """The aux headers, int32 ``[blocks, 16]``, over the arena."""
        base = self.map.aux_base
        part = self.arena[base : base + self.blocks * AUX_BYTES]
        return part.view(torch.int32).view(self.blocks, AUX_WORDS)

    def clear_headers(self, blocks: Sequence[int]) -> None:
        """Zeroes the aux headers of these blocks (R4). Raises :class:`LocalError` if one is not in the pool."""
        self.map.check_blocks("clear_headers", blocks)
        if not blocks:
            return
        if self._host_headers is not None:
            _ = self.arena  # raises after close
            self._host_headers[blocks[0] if len(blocks) == 1 else list(blocks)] = 0
            return
        self.headers.index_fill_(0, torch.tensor(blocks, dtype=torch.int64, device=self.device), 0)
        self._finish()

    def write_header(self, block: int, total: int, delta: int) -> None:
        """Writes all of a block's aux header: the total in tokens, the position delta, zeros.

        Raises :class:`LocalError` if the block is not in the pool or a number is no int32.
        """
        self.map.check_blocks("write_header", (block,))
        check_int("total", total, INT32_MIN)
        check_int("delta", delta, INT32_MIN)
        words = torch.zeros(AUX_WORDS, dtype=torch.int32)
        words[0], words[1] = total, delta
        self.headers[block].copy_(words)
        self._finish()

    def read_header(self, block: int) -> tuple[int, int]:
        """The total in tokens and the position delta in a block's aux header.

        On CUDA this waits for the device. Raises :class:`LocalError` if the block is not in the pool.
        """
        self.map.check_blocks("read_header", (block,))
        total, delta = self.headers[block, :2].tolist()
        return total, delta

    def close(self) -> None:
        """Lets go of the memory. Views that are still held stay valid. May be called again."""
        self.memory.close()

    def _finish(self) -> None:
        """Waits until what was written is in memory, where a device writes behind our back."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


@dataclass(frozen=True, eq=False)
class Payload:
    """What an encoder hands over for one request of ``T`` tokens; the tensors may be on any device."""

    input_embeddings: torch.Tensor
    """``[T, dim]`` of the layout's dtype."""
    fill_ids: torch.Tensor
    """int32 ``[T]``."""
    mrope_positions: torch.Tensor | None = None
    """int32 ``[T, 3]``, or none."""
    deepstack: torch.Tensor | None = None
    """``[T, levels * dim]`` of the layout's dtype, or none."""
    position_delta: int = 0

    @property
    def tokens(self) -> int:
        return len(self.fill_ids)

    @property
    def has_mrope(self) -> bool:
        return self.mrope_positions is not None

    @property
    def has_deepstack(self) -> bool:
        return self.deepstack is not None

    @property
    def skip(self) -> frozenset[str]:
        """The items that this payload does without, as ``write_spans`` wants them."""
        return frozenset(name for name in OPTIONAL if self.tensor(name) is None)

    def tensor(self, name: str) -> torch.Tensor | None:
        """The tensor of an item. Raises :class:`LocalError` if there is no such item."""
        if name not in (INPUT_EMBEDDINGS, FILL_IDS, MROPE_POSITIONS, DEEPSTACK):
            raise LocalError(f"item {name!r}: a payload has input_embeddings, fill_ids, mrope_positions, deepstack")
        found: torch.Tensor | None = getattr(self, name)
        return found

    def validate(self, layout: Layout) -> None:
        """Raises :class:`LocalError`, with the tensor's name, what was given and what was expected, if this
        payload cannot be stored in this layout."""
        items = {item.name: item for item in items_of(layout)}
        check_int("position_delta", self.position_delta, INT32_MIN)
        ids: object = self.fill_ids
        if not isinstance(ids, torch.Tensor) or ids.dim() != 1:
            raise LocalError(f"fill_ids: given {_described(ids)}; expected int32 [tokens]")
        if not 1 <= self.tokens <= INT32_MAX:
            raise LocalError(f"fill_ids: given {_described(ids)}; expected 1 to {INT32_MAX} tokens")
        if self.deepstack is not None and DEEPSTACK not in items:
            raise LocalError(
                f"deepstack: given {_described(self.deepstack)}; expected none, the layout has no levels of it"
            )
        for item in items.values():
            _check_tensor(item, self.tensor(item.name), self.tokens)


def _check_tensor(item: Item, tensor: object, tokens: int) -> None:
    if tensor is None and item.name in OPTIONAL:
        return
    shape = (tokens, *item.shape)
    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.dtype != item.dtype
        or tuple(tensor.shape) != shape
        or tensor.layout != torch.strided
        or tensor.device.type not in ("cpu", "cuda")
    ):
        raise LocalError(
            f"{item.name}: given {_described(tensor)}; expected {_name(item.dtype)} {list(shape)} "
            f"on cpu or cuda, for the {tokens} tokens of fill_ids; convert it before it is handed over"
        )


def _described(given: object) -> str:
    """``float32 [5, 8] on cpu, not contiguous``."""
    if not isinstance(given, torch.Tensor):
        return f"a {type(given).__name__}"
    if given.layout != torch.strided:
        order = f"sparse ({_name(given.layout)})"
    else:
        order = "contiguous" if given.is_contiguous() else "not contiguous"
    return f"{_name(given.dtype)} {list(given.shape)} on {given.device}, {order}"


def _name(what: object) -> str:
    return str(what).removeprefix("torch.")


class SourceView(NamedTuple):
    """Tokens that lie in adjacent source blocks, as tensors over the pool that can be filled in place."""

    first: int
    """The first of these tokens, counted from the beginning of the payload."""
    tokens: int
    input_embeddings: torch.Tensor
    """``[tokens, dim]``."""
    fill_ids: torch.Tensor
    """int32 ``[tokens]``."""
    mrope_positions: torch.Tensor
    """int32 ``[tokens, 3]``; leave it alone if the request has none."""
    deepstack: torch.Tensor | None
    """``[tokens, levels * dim]``; ``None`` if the layout has no levels."""


class SourcePool(BlockPool):
    """The staging memory of a sender: a block pool, and which of its blocks are taken."""

    def __init__(
        self,
        layout: Layout,
        blocks: int,
        *,
        device: str | torch.device = "cpu",
        pinned: Pinned = "auto",
        huge_pages: bool = True,
    ) -> None:
        """As :class:`BlockPool`; all blocks are free."""
        super().__init__(layout, blocks, device=device, pinned=pinned, huge_pages=huge_pages)
        self._free = np.ones(blocks, dtype=np.bool_)
        self._free_blocks = blocks

    @property
    def free_blocks(self) -> int:
        """How many blocks are free."""
        return self._free_blocks

    def take(self, count: int) -> tuple[int, ...]:
        """Takes ``count`` blocks: the lowest that are adjacent, or else the lowest.

        Raises :class:`LocalError` if so many are not free: the caller knows what is free, and waits.
        """
        check_int("count", count, 1)
        if count > self._free_blocks:
            raise LocalError(f"take({count}): only {self._free_blocks} of {self.blocks} blocks are free; wait for more")
        free = np.flatnonzero(self._free)
        fits = np.flatnonzero(free[count - 1 :] - free[: len(free) - count + 1] == count - 1)
        first = int(fits[0]) if len(fits) else 0
        taken = free[first : first + count]
        self._free[taken] = False
        self._free_blocks -= count
        return tuple(taken.tolist())

    def give_back(self, blocks: Sequence[int]) -> None:
        """Frees these blocks.

        Raises :class:`LocalError`, and frees none, if one is not in the pool, not taken or named twice.
        """
        self.map.check_blocks("give_back", blocks)
        if len(set(blocks)) != len(blocks):
            raise LocalError(f"give_back({list(blocks)}): a block is named twice; give each back once")
        self._check_taken("give_back", blocks)
        self._free[list(blocks)] = True
        self._free_blocks += len(blocks)

    def views(self, blocks: Sequence[int], tokens: int) -> list[SourceView]:
        """The tensors into which a payload of ``tokens`` tokens can be made in place, instead of ``store``.

        One view per run of adjacent blocks. The header is the caller's to write too:
        ``write_header(blocks[0], total, delta)``. On CUDA the caller must wait for its own work before it says
        that the payload is staged. Raises :class:`LocalError` if the blocks are not taken or do not reach.
        """
        self._check_payload("views", blocks, tokens)
        rows = [self.rows(index) for index in range(len(self.map.items))]
        names = [item.name for item in self.map.items]
        found = []
        for first, row, count in runs_of(blocks, 0, tokens, self.layout.block_tokens):
            parts = {name: part[row : row + count] for name, part in zip(names, rows, strict=True)}
            found.append(
                SourceView(
                    first, count, parts[INPUT_EMBEDDINGS], parts[FILL_IDS], parts[MROPE_POSITIONS], parts.get(DEEPSTACK)
                )
            )
        return found

    def store(self, blocks: Sequence[int], payload: Payload) -> None:
        """Copies a payload into these blocks, and writes the header of the first.

        An item that the payload does not have keeps whatever the blocks held: name it in the ``skip`` of every
        write. Raises :class:`LocalError` if the payload does not fit the layout, or if the blocks are not taken
        or do not reach.
        """
        payload.validate(self.layout)
        self._check_payload("store", blocks, payload.tokens)
        for index, item in enumerate(self.map.items):
            tensor = payload.tensor(item.name)
            if tensor is None:
                continue
            # A tensor that wants gradients would have the copy recorded, for nothing.
            source, rows = tensor.detach(), self.rows(index)
            for first, row, count in runs_of(blocks, 0, payload.tokens, self.layout.block_tokens):
                rows[row : row + count].copy_(source[first : first + count])
        self.write_header(blocks[0], payload.tokens, payload.position_delta)

    def _check_payload(self, what: str, blocks: Sequence[int], tokens: int) -> None:
        self.map.check_blocks(what, blocks)
        check_int("tokens", tokens, 1)
        if len(blocks) * self.layout.block_tokens < tokens:
            raise LocalError(
                f"{what}: {tokens} tokens in {len(blocks)} blocks of {self.layout.block_tokens}; "
                f"expected {-(-tokens // self.layout.block_tokens)} blocks"
            )
        self._check_taken(what, blocks)

    def _check_taken(self, what: str, blocks: Sequence[int]) -> None:
        for block in blocks:
            if self._free[block]:
                raise LocalError(f"{what}: block {block} is free; take it first, and give it back once")
