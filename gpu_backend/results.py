"""Result memory: where the chunks of a request become one tensor per item again.

A consumer wants contiguous tensors, and a request is copied out of landing blocks in several chunks, so the
memory for all of it is taken when its first chunk arrives and filled piece by piece. The arena is bounded (in
tokens, R6), allocated once and touched once: fresh memory would cost more in page faults than the copies do.

A request takes one range of tokens, the same for every item; the first range that is long enough. Ranges that
are given back join their neighbours. Where enough tokens are free but no range is long enough, the request gets
memory of its own, which keeps the bound in tokens and is counted in ``fallbacks``: if that number grows, the
arena is too small for its mix of lengths.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import msgspec
import torch

from fsm.errors import LocalError
from fsm.messages import Layout
from gpu_backend.layout import DEEPSTACK, FILL_IDS, INPUT_EMBEDDINGS, MROPE_POSITIONS, ArenaMap, check_int
from gpu_backend.memory import Memory, Pinned


class _Rows:
    """``tokens`` rows of every item, in one memory."""

    def __init__(
        self, layout: Layout, tokens: int, *, device: str | torch.device, pinned: Pinned, huge_pages: bool, touch: bool
    ) -> None:
        # One block that is as long as everything: the arithmetic of an arena is good for results too.
        self.map: Final = ArenaMap(msgspec.structs.replace(layout, block_tokens=tokens), 1)
        self.memory: Final = Memory(
            self.map.aux_base, device=device, pinned=pinned, huge_pages=huge_pages, touch=touch
        )

    def cut(self, first: int, tokens: int, skip: frozenset[str]) -> dict[str, torch.Tensor]:
        """By item: its rows ``first`` to ``first + tokens``, contiguous."""
        found = {}
        for index, item in enumerate(self.map.items):
            if item.name not in skip:
                begin = self.map.base(index) + first * item.token_bytes
                part = self.memory.arena[begin : begin + tokens * item.token_bytes]
                found[item.name] = part.view(item.dtype).view(tokens, *item.shape)
        return found


class Result:
    """The memory of one request: one contiguous tensor per item, ``None`` for an item that it does not have.

    A tensor that was fetched before :meth:`release` is not guarded after it: its rows belong to someone else
    then. What is fetched through this object after ``release`` is an error.
    """

    __slots__ = ("_arena", "_first", "_held", "_own", "_released", "_tensors", "tokens")

    def __init__(
        self, arena: ResultArena, tokens: int, first: int, tensors: dict[str, torch.Tensor], own: Memory | None
    ) -> None:
        self.tokens: Final = tokens
        self._arena: Final = arena
        self._first: Final = first
        self._tensors = tensors
        self._own = own
        self._held = 0
        self._released = False

    @property
    def input_embeddings(self) -> torch.Tensor:
        """``[tokens, dim]``."""
        return self._tensor(INPUT_EMBEDDINGS)

    @property
    def fill_ids(self) -> torch.Tensor:
        """int32 ``[tokens]``."""
        return self._tensor(FILL_IDS)

    @property
    def mrope_positions(self) -> torch.Tensor | None:
        """int32 ``[tokens, 3]``."""
        return self.tensor(MROPE_POSITIONS)

    @property
    def deepstack(self) -> torch.Tensor | None:
        """``[tokens, levels * dim]``."""
        return self.tensor(DEEPSTACK)

    @property
    def layout(self) -> Layout:
        return self._arena.layout

    @property
    def device(self) -> torch.device:
        return self._arena.device

    @property
    def released(self) -> bool:
        return self._released

    def tensor(self, item: str) -> torch.Tensor | None:
        """The tensor of an item, if the request has it. Raises :class:`LocalError` after ``release``."""
        if self._released:
            raise LocalError(
                f"{item} of a released result of {self.tokens} tokens: its memory may belong to another request; "
                "copy what you need before release()"
            )
        return self._tensors.get(item)

    def _tensor(self, item: str) -> torch.Tensor:
        found = self.tensor(item)
        assert found is not None
        return found

    def release(self) -> None:
        """Gives the memory back; the second time does nothing.

        While a copy into it runs, its rows stay where they are until that copy has ended.
        """
        if not self._released:
            self._released = True
            self._arena._released(self)
            self._give_rows_back()

    def hold(self) -> None:
        """A copy into this result begins: its rows go to nobody else before ``unhold``."""
        if self._released:
            raise LocalError(f"copy into a released result of {self.tokens} tokens: its memory is not its own any more")
        self._held += 1

    def unhold(self) -> None:
        """A copy into this result has ended."""
        self._held -= 1
        self._give_rows_back()

    def _give_rows_back(self) -> None:
        if self._released and self._held == 0:
            self._tensors = {}
            if self._own is not None:
                self._own.close()
            else:
                self._arena._rows_back(self._first, self.tokens)


class ResultArena:
    """Memory for ``tokens_max`` tokens of results. Use from one thread, but for the tensors themselves."""

    def __init__(
        self,
        layout: Layout,
        tokens_max: int,
        *,
        device: str | torch.device = "cpu",
        pinned: Pinned = "auto",
        huge_pages: bool = True,
    ) -> None:
        """Allocates and touches all of it.

        Raises :class:`LocalError` if the layout, the size or the device is wrong, or if the memory cannot be had.
        """
        check_int("tokens_max", tokens_max, 1)
        self.layout: Final = layout
        self.tokens_max: Final = tokens_max
        self._rows: Final = _Rows(
            layout, tokens_max, device=device, pinned=pinned, huge_pages=huge_pages, touch=True
        )
        self.device: Final = self._rows.memory.device
        self._huge_pages: Final = huge_pages
        # Free ranges as (first, tokens), in order; no two of them touch.
        self._free: list[tuple[int, int]] = [(0, tokens_max)]
        self._free_tokens = tokens_max
        self.fallbacks = 0
        """How many results so far got memory of their own, because the arena was fragmented."""

    @property
    def free_tokens(self) -> int:
        """How many tokens can be taken, in one result or in several."""
        return self._free_tokens

    @property
    def longest_free(self) -> int:
        """The longest result, in tokens, that the arena itself can hold now."""
        return max((tokens for _, tokens in self._free), default=0)

    def take(self, tokens: int, *, has_mrope: bool, has_deepstack: bool) -> Result:
        """Memory for one request of ``tokens`` tokens; its content is whatever was there before.

        Raises :class:`LocalError` if fewer tokens are free (``free_tokens``: the caller waits), or if
        ``has_deepstack`` is asked of a layout without levels.
        """
        check_int("tokens", tokens, 1)
        if tokens > self._free_tokens:
            raise LocalError(
                f"take({tokens}): only {self._free_tokens} of {self.tokens_max} tokens are free; wait for more"
            )
        if has_deepstack and DEEPSTACK not in self.layout.items:
            raise LocalError("has_deepstack=True: the layout has no levels of deepstack")
        if self._rows.memory.closed:
            raise LocalError("take: this arena is closed; make a new one")
        skip = frozenset(name for name, has in ((MROPE_POSITIONS, has_mrope), (DEEPSTACK, has_deepstack)) if not has)
        first = self._first_fit(tokens)
        if first is not None:
            tensors, own = self._rows.cut(first, tokens, skip), None
        else:
            # Not touched here: the faults are the copier's, which has a thread for it.
            rows = _Rows(
                self.layout, tokens, device=self.device, pinned=False, huge_pages=self._huge_pages, touch=False
            )
            first, tensors, own = 0, rows.cut(0, tokens, skip), rows.memory
            self.fallbacks += 1
        self._free_tokens -= tokens
        return Result(self, tokens, first, tensors, own)

    def close(self) -> None:
        """Lets go of the memory. Tensors that are still held stay valid. May be called again."""
        self._rows.memory.close()

    def _first_fit(self, tokens: int) -> int | None:
        for index, (first, length) in enumerate(self._free):
            if length >= tokens:
                if length == tokens:
                    del self._free[index]
                else:
                    self._free[index] = (first + tokens, length - tokens)
                return first
        return None

    def _released(self, result: Result) -> None:
        self._free_tokens += result.tokens

    def _rows_back(self, first: int, tokens: int) -> None:
        index = bisect_left(self._free, (first, 0))
        if index < len(self._free) and self._free[index][0] == first + tokens:
            tokens += self._free.pop(index)[1]
        if index > 0 and sum(self._free[index - 1]) == first:
            index -= 1
            before = self._free.pop(index)
            first, tokens = before[0], before[1] + tokens
        self._free.insert(index, (first, tokens))
