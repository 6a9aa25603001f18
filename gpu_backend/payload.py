"""Bytes that say whose they are: made from (seed, room, token, item) alone, so that both sides can make them.

A receiver that checks what it got must not be told by the sender what that should be. Each token's embedding is a
row of 64-bit words ``key(room, token) + column(item, word)``: one addition a word, which runs at memory speed.
``key`` is one-to-one over (room, token) up to 2**32 of each, so every token's row differs from every other's, of the
same room or another, in *every* word; and columns differ, so a row that slipped by a few bytes does not pass either.
Ids are four bytes and differ within a room. Positions are those of the prompt, moved by a number of the room's own
(as if a conversation had gone before), so that one room's positions and delta are no other's.

The bits are arbitrary, and some are a NaN when read as floating point: compare bits, as is done here, not numbers.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_backend.workload import Positions

WORD_BYTES = 8
PIECE_BYTES = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Made and compared piece by piece: small enough to stay in the cache of a processor, large enough for a device."""

ROOM_OFFSET_MAX = 1 << 20
"""How far a room's positions are moved at most."""

_MASK = (1 << 64) - 1
_SALTS = {"input_embeddings": 1, "deepstack": 2, "fill_ids": 3, "mrope_positions": 4}


def mix64(value: int) -> int:
    """A one-to-one mixing of 64 bits (the finalizer of splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix64_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same of an array."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


class Wrong(NamedTuple):
    """The first token that is not what it should be."""

    item: str
    token: int

    def __str__(self) -> str:
        return f"{self.item} of token {self.token}"


class Content:
    """The content of one request of one room. ``positions`` [tokens, 3] int32 are the prompt's own.

    ``embedding_bytes`` and ``deepstack_bytes`` are the bytes of one token; 0 means there is none.
    """

    def __init__(
        self, seed: int, room: int, positions: Positions, delta: int, embedding_bytes: int, deepstack_bytes: int = 0
    ) -> None:
        self.seed = seed
        self.room = room
        self.tokens = len(positions)
        self.row_bytes = {"input_embeddings": embedding_bytes, "deepstack": deepstack_bytes}
        self._positions = positions
        self._delta = delta
        self._seed = mix64(seed & _MASK)
        self._columns: dict[tuple[str, torch.device], torch.Tensor] = {}
        self.offset = mix64(self._seed ^ mix64(room)) % ROOM_OFFSET_MAX

    @property
    def position_delta(self) -> int:
        """What the aux header carries, int32: the prompt's own, moved like the positions."""
        return self._delta + self.offset

    # --- making ---------------------------------------------------------------------------------------

    def fill(self, item: str, out: torch.Tensor, start: int) -> None:
        """Fill ``out`` [n, ...] with tokens ``start`` to ``start + n`` of an item. Contiguous, on any device."""
        if item == "fill_ids":
            out.copy_(self.ids(start, len(out)))
        elif item == "mrope_positions":
            out.copy_(self.positions(start, len(out)))
        else:
            rows = self._bytes_of(out)
            piece = self._piece(item, out.device)
            for at in range(0, len(rows), piece):
                self._make(item, rows[at : at + piece], start + at)

    def ids(self, start: int, count: int) -> torch.Tensor:
        """Ids [count] int32 of tokens from ``start`` on; all of a room's are different."""
        # A one-to-one mixing of 32 bits: odd factors and shifted exclusive-ors.
        with np.errstate(over="ignore"):
            value = np.arange(start, start + count, dtype=np.uint32)
            value = (value ^ np.uint32(mix64(self._seed ^ self.room) & 0xFFFFFFFF)) * np.uint32(0x9E3779B1)
            value = (value ^ (value >> np.uint32(15))) * np.uint32(0x85EBCA77)
        return torch.from_numpy(value.view(np.int32))

    def positions(self, start: int, count: int) -> torch.Tensor:
        """Positions [count, 3] int32 of tokens from ``start`` on."""
        return torch.from_numpy(self._positions[start : start + count] + np.int32(self.offset))

    def _make(self, item: str, rows: torch.Tensor, start: int) -> None:
        """Fill rows [n, bytes] uint8."""
        keys = self._keys(start, len(rows)).to(rows.device)
        columns = self._column(item, rows.device)
        if _fit_words(rows):
            torch.add(keys, columns, out=rows.view(torch.int64))
        else:
            rows.copy_((keys + columns).view(torch.uint8)[:, : rows.shape[1]])

    def _keys(self, start: int, count: int) -> torch.Tensor:
        """[count, 1] int64: one-to-one over (room, token)."""
        tokens = np.arange(start, start + count, dtype=np.uint64)
        keys = _mix64_array((tokens | np.uint64((self.room & 0xFFFFFFFF) << 32)) ^ np.uint64(self._seed))
        return torch.from_numpy(keys.view(np.int64))[:, None]

    def _column(self, item: str, device: torch.device) -> torch.Tensor:
        """[1, words] int64."""
        if (item, device) not in self._columns:
            words = -(-self.row_bytes[item] // WORD_BYTES)
            salt = mix64(self._seed ^ _SALTS[item])
            column = _mix64_array(np.arange(words, dtype=np.uint64) ^ np.uint64(salt))
            self._columns[item, device] = torch.from_numpy(column.view(np.int64))[None, :].to(device)
        return self._columns[item, device]

    def _bytes_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """[n, bytes of a token] uint8 over the same memory."""
        return tensor.reshape(len(tensor), -1).view(torch.uint8)

    def _piece(self, item: str, device: torch.device) -> int:
        """Tokens to make at a time."""
        return max(1, PIECE_BYTES.get(device.type, PIECE_BYTES["cpu"]) // self.row_bytes[item])

    # --- comparing ------------------------------------------------------------------------------------

    def wrong(self, item: str, got: torch.Tensor, start: int = 0) -> Wrong | None:
        """Compare ``got`` [n, ...] bit by bit with tokens ``start`` to ``start + n``; the first that differs."""
        return _exhausted(self._comparing(item, got, start))

    def _comparing(self, item: str, got: torch.Tensor, start: int) -> Generator[None, None, Wrong | None]:
        """The same, piece by piece."""
        if item == "fill_ids":
            return self._differs(item, got, self.ids(start, len(got)), start)
        if item == "mrope_positions":
            return self._differs(item, got, self.positions(start, len(got)), start)
        rows = self._bytes_of(got)
        piece = self._piece(item, got.device)
        scratch = torch.empty((min(piece, len(rows)), rows.shape[1]), dtype=torch.uint8, device=got.device)
        for at in range(0, len(rows), piece):
            part = rows[at : at + piece]
            made = scratch[: len(part)]
            self._make(item, made, start + at)
            found = self._differs(item, part, made, start + at)
            if found is not None:
                return found
            yield
        return None

    def _differs(self, item: str, got: torch.Tensor, expected: torch.Tensor, start: int) -> Wrong | None:
        expected = expected.to(got.device)
        if got.shape == expected.shape and torch.equal(_as_words(got), _as_words(expected)):
            return None
        if got.shape != expected.shape:
            return Wrong(item, start + min(len(got), len(expected)))
        equal = (got == expected).reshape(len(got), -1).all(dim=1)
        return Wrong(item, start + int(torch.nonzero(~equal)[0]))

    def wrong_in(self, items: Mapping[str, torch.Tensor | None], position_delta: int | None = None) -> str:
        """Compare a whole result (item name to tensor; ``None``: absent); says what is wrong first, empty if nothing.

        A result that is too short or too long is wrong, and one that lacks an item that this request has.
        """
        return _exhausted(self.judging(items, position_delta))

    def judging(
        self, items: Mapping[str, torch.Tensor | None], position_delta: int | None = None
    ) -> Generator[None, None, str]:
        """The same for somebody who has other things to do: yields after each piece, and returns the verdict."""
        expected = {"input_embeddings", "fill_ids", "mrope_positions"}
        if self.row_bytes["deepstack"]:
            expected.add("deepstack")
        for item in _SALTS:
            tensor = items.get(item)
            if (tensor is not None) != (item in expected):
                return f"{item} is {'missing' if tensor is None else 'there, and should not be'}"
            if tensor is None:
                continue
            if len(tensor) != self.tokens:
                return f"{item} has {len(tensor)} tokens of {self.tokens}"
            found = yield from self._comparing(item, tensor, 0)
            if found is not None:
                return str(found)
        if position_delta is not None and position_delta != self.position_delta:
            return f"position delta {position_delta}: expected {self.position_delta}"
        return ""


_T = TypeVar("_T")


def _exhausted(steps: Generator[None, None, _T]) -> _T:
    """What a generator returns in the end."""
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            value: _T = ended.value
            return value


def _fit_words(tensor: torch.Tensor) -> bool:
    """Whether bytes [n, bytes] can be looked at as 64-bit words in place."""
    fits = tensor.ndim == 2 and tensor.dtype is torch.uint8 and tensor.is_contiguous()
    return fits and tensor.shape[1] % WORD_BYTES == 0 and tensor.storage_offset() % WORD_BYTES == 0


def _as_words(tensor: torch.Tensor) -> torch.Tensor:
    """The same bits in the largest pieces that fit: comparing bytes one by one is seven times slower."""
    return tensor.view(torch.int64) if _fit_words(tensor) else tensor


__all__ = ["Content", "Wrong", "mix64"]
