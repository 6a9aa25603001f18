"""How requests end, as the callers of the workers are told, and what they hold in their hands then.

A receiver's request that succeeded comes either as a :class:`Delivery` (its tokens copied together, one contiguous
tensor per item) or, if that was asked for and the whole request landed in one chunk, as a :class:`Lease` (the landing
blocks themselves, no copy). Both are bounded memory: call ``release()`` when the tensors are not needed any more,
from any thread. Whoever keeps them all brings the worker to a stand; ``stats().free_result_tokens`` shows it.

One that is collected as garbage without ``release()`` is taken back in the worker's next ``poll``, with a warning in
the log that names the room. That must not pull the memory from under a tensor that somebody has kept. So what is
handed out are tensors whose storage holds the delivery or lease itself: while any view of it lives, however it
was made, that is no garbage. After ``release()`` this protects nothing: who calls it says that all of them are done.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch

from fsm.errors import LocalError
from fsm.messages import BlockRef, Epoch
from fsm.states import State
from gpu_backend.layout import DEEPSTACK, FILL_IDS, INPUT_EMBEDDINGS, MROPE_POSITIONS, runs_of
from gpu_backend.pool import BlockPool
from gpu_backend.results import Result


class Tensors(NamedTuple):
    """Tokens that follow each other, as contiguous tensors; ``None`` for an item that the request does not have."""

    first: int
    """The first of these tokens, counted from the beginning of the request."""
    tokens: int
    input_embeddings: torch.Tensor
    """``[tokens, dim]`` of the layout's dtype."""
    fill_ids: torch.Tensor
    """int32 ``[tokens]``."""
    mrope_positions: torch.Tensor | None
    """int32 ``[tokens, 3]``."""
    deepstack: torch.Tensor | None
    """``[tokens, levels * dim]`` of the layout's dtype."""


class _DeviceMemory:
    """Memory of a CUDA device, as torch takes it from others: the tensor made of it keeps this object."""

    def __init__(self, held: _Held, tensor: torch.Tensor, length: int) -> None:
        self.keeps = (held, tensor)
        self.__cuda_array_interface__ = {
            "shape": (length,), "typestr": "|u1", "data": (tensor.data_ptr(), False), "version": 2,
        }  # fmt: skip


class _Held:
    """Memory of a request that ended; given back once, from any thread."""

    def __init__(
        self, room: int, epoch: Epoch, tokens: int, position_delta: int, release: Callable[[Any], None]
    ) -> None:
        self.room = room
        self.epoch = epoch
        self.tokens = tokens
        self.position_delta = position_delta
        """What is added to a token's index to get the position of what is generated after it."""
        self.dropped = False
        """It was garbage before it was released."""
        self._release: Callable[[Any], None] | None = release

    def __del__(self) -> None:
        # Any thread, any moment, any lock held: nothing but the queue of the worker, which is safe. It logs as well.
        if getattr(self, "_release", None) is not None:
            self.dropped = True
            self.release()

    def _hold(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same bytes as a tensor that keeps this object alive, and so do all views of it."""
        if self._release is None:
            return tensor
        length = tensor.numel() * tensor.element_size()
        whole: torch.Tensor
        if tensor.device.type == "cpu":
            memory = (ctypes.c_char * length).from_address(tensor.data_ptr())
            memory.keeps = (self, tensor)  # type: ignore[attr-defined]  # ctypes arrays take attributes
            whole = torch.frombuffer(memory, dtype=torch.uint8)
        else:
            whole = torch.as_tensor(_DeviceMemory(self, tensor, length), device=tensor.device)
        return whole.view(tensor.dtype).view(tensor.shape)

    @property
    def released(self) -> bool:
        """Whether ``release`` was called."""
        return self._release is None

    def release(self) -> None:
        """Give the memory back; the second call does nothing. The tensors must not be used any more."""
        release, self._release = self._release, None
        if release is not None:
            release(self)

    def _check_held(self) -> None:
        if self._release is None:
            raise LocalError(f"room {self.room}: its memory was released, and may belong to another request by now")

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Delivery(_Held):
    """A request copied together: every item is one contiguous tensor.

    ``with outcome.result as result: use(result.input_embeddings)`` releases it at the end.
    """

    def __init__(
        self, room: int, epoch: Epoch, position_delta: int, result: Result, release: Callable[[Any], None]
    ) -> None:
        super().__init__(room, epoch, result.tokens, position_delta, release)
        self.memory = result

    @property
    def tensors(self) -> Tensors:
        """All of it. Raises :class:`LocalError` after ``release``."""
        self._check_held()
        return Tensors(0, self.tokens, self.input_embeddings, self.fill_ids, self.mrope_positions, self.deepstack)

    @property
    def input_embeddings(self) -> torch.Tensor:
        """``[tokens, dim]``."""
        self._check_held()
        return self._hold(self.memory.input_embeddings)

    @property
    def fill_ids(self) -> torch.Tensor:
        """int32 ``[tokens]``."""
        self._check_held()
        return self._hold(self.memory.fill_ids)

    @property
    def mrope_positions(self) -> torch.Tensor | None:
        """int32 ``[tokens, 3]``, if the request has positions."""
        self._check_held()
        found = self.memory.mrope_positions
        return None if found is None else self._hold(found)

    @property
    def deepstack(self) -> torch.Tensor | None:
        """``[tokens, levels * dim]``, if the request has it."""
        self._check_held()
        found = self.memory.deepstack
        return None if found is None else self._hold(found)


class Lease(_Held):
    """The landing blocks of a request that arrived in one chunk, not copied. Read only, and soon: whatever waits for
    blocks waits for this."""

    def __init__(
        self,
        room: int,
        epoch: Epoch,
        seq: int,
        tokens: int,
        position_delta: int,
        pool: BlockPool,
        blocks: Sequence[BlockRef],
        skip: frozenset[str],
        release: Callable[[Any], None],
    ) -> None:
        super().__init__(room, epoch, tokens, position_delta, release)
        self.seq = seq
        self._pool = pool
        self._blocks = tuple(ref.block for ref in blocks)
        self._skip = skip

    @property
    def tensors(self) -> Tensors | None:
        """All of it, if the blocks are adjacent; otherwise ``None``, and ``views`` has the parts.

        Raises :class:`LocalError` after ``release``.
        """
        views = self.views()
        return views[0] if len(views) == 1 else None

    def views(self) -> list[Tensors]:
        """One for each run of adjacent blocks, in the order of the tokens. Raises :class:`LocalError` after
        ``release``."""
        self._check_held()
        names = [item.name for item in self._pool.map.items if item.name not in self._skip]
        rows = {name: self._pool.rows(name) for name in names}
        found = []
        for first, row, count in runs_of(self._blocks, 0, self.tokens, self._pool.layout.block_tokens):
            parts = {name: self._hold(part[row : row + count]) for name, part in rows.items()}
            found.append(
                Tensors(
                    first, count, parts[INPUT_EMBEDDINGS], parts[FILL_IDS], parts.get(MROPE_POSITIONS),
                    parts.get(DEEPSTACK),
                )
            )  # fmt: skip
        return found


class Outcome(NamedTuple):
    """A request ended at the receiver."""

    room: int
    state: State
    """``Success`` or ``Failed``."""
    reason: str
    """The name of an ``fsm.reasons.Reason``; ``NONE`` for Success."""
    total_tokens: int
    """-1 if nothing of it had landed."""
    result: Delivery | None = None
    lease: Lease | None = None
    detail: str = ""
    """More about a failure, for people."""


class LaneOutcome(NamedTuple):
    """One receiver rank's part of a request, at the sender."""

    state: State
    reason: str


class SenderOutcome(NamedTuple):
    """A request ended at the sender, for every receiver rank that it serves."""

    room: int
    state: State
    """``Success`` if it is that for every receiver rank."""
    reason: str
    """That of the first receiver rank that failed; ``NONE`` for Success."""
    total_tokens: int
    lanes: dict[int, LaneOutcome]
    """By receiver rank."""
    detail: str = ""
