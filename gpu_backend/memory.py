"""Arenas: one range of bytes as a tensor, for blocks and for results, on the CPU or on a CUDA device.

On the CPU an arena is anonymous memory that the kernel is asked to back with huge pages, and that is touched at
once. Both matter more than they look: without huge pages a write by another process (CMA) runs at little more
than half its speed, and the first touch of a page costs more than the copy that causes it. Where CUDA is
present the memory is also registered with it (pinned), so that copies to a device run without a bounce.

The memory of an arena lives as long as any tensor over it, so no view can ever point to nothing. Pinned memory
lives until :meth:`Memory.close`, which takes the registration back first.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Any, Final, Literal, TypeAlias

import torch

from fsm.errors import LocalError

HUGE_PAGE_BYTES: Final = 2 << 20
_PAGE_BYTES: Final = 4096

Pinned: TypeAlias = bool | Literal["auto"]
"""``True``: pinned or an error; ``"auto"``: pinned where CUDA is present; ``False``: never."""

_REGISTERED: Final[dict[int, mmap.mmap]] = {}
"""Memory that CUDA knows by its address: it must not be unmapped before it is unregistered."""


def device_of(device: str | torch.device) -> torch.device:
    """The device, with its index if it is a CUDA device.

    Raises :class:`LocalError` if it is neither the CPU nor CUDA, or if there is no such CUDA device here.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise LocalError(f"device={device!r}: {error}") from error
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise LocalError(f"device={device!r}: expected 'cpu' or 'cuda[:index]'")
    if not torch.cuda.is_available():
        raise LocalError(f"device={device!r}: torch {torch.__version__} sees no CUDA device here; use 'cpu'")
    index = found.index if ":" in str(found) else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise LocalError(f"device={device!r}: there are {torch.cuda.device_count()} CUDA devices here")
    return torch.device("cuda", index)


class Memory:
    """``arena``: a uint8 tensor of ``bytes`` bytes, aligned to a page, zeroed if it was touched."""

    def __init__(
        self,
        bytes: int,
        *,
        device: str | torch.device = "cpu",
        pinned: Pinned = "auto",
        huge_pages: bool = True,
        touch: bool = True,
    ) -> None:
        """``touch=False`` leaves the first touch of each page (on CUDA: the zeroing) to whoever comes first.

        Raises :class:`LocalError` if the memory cannot be had, or not in the way that was asked for.
        """
        self.device: Final = device_of(device)
        self.pinned = False
        """Whether CUDA knows the memory of the host."""
        if self.device.type == "cuda":
            if pinned is True:
                raise LocalError(f"pinned=True with device={device!r}: only memory of the host can be pinned")
            self._arena: torch.Tensor | None = _on_device(bytes, self.device, touch)
            return
        if pinned is True and not torch.cuda.is_available():
            raise LocalError("pinned=True: memory is pinned for CUDA, which is not present; use 'auto' or False")
        mapping, self._arena = _on_host(bytes, huge_pages, touch)
        if pinned is not False and torch.cuda.is_available():
            self.pinned = _register(self._arena, mapping, must=pinned is True)

    @property
    def arena(self) -> torch.Tensor:
        """The bytes. Raises :class:`LocalError` after ``close``."""
        if self._arena is None:
            raise LocalError("this memory is closed; make a new pool")
        return self._arena

    @property
    def closed(self) -> bool:
        return self._arena is None

    def close(self) -> None:
        """Lets go of the memory; it is unmapped when the last tensor over it is gone. May be called again."""
        if self._arena is not None and self.pinned:
            _unregister(self._arena)
        self._arena = None
        self.pinned = False


def _on_device(bytes: int, device: torch.device, touch: bool) -> torch.Tensor:
    try:
        arena = torch.empty(bytes, dtype=torch.uint8, device=device)
        if touch:
            arena.zero_()
            torch.cuda.current_stream(device).synchronize()
    except RuntimeError as error:
        raise LocalError(f"cannot allocate {bytes} bytes on {device}: {error}") from error
    return arena


def _on_host(bytes: int, huge_pages: bool, touch: bool) -> tuple[mmap.mmap, torch.Tensor]:
    """A mapping, and the tensor over its ``bytes`` bytes from the first huge page boundary on."""
    huge = huge_pages and bytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE")
    try:
        mapping = mmap.mmap(-1, bytes + (HUGE_PAGE_BYTES if huge else 0), flags=_private())
    except (OSError, ValueError, OverflowError) as error:
        raise LocalError(f"cannot allocate {bytes} bytes of memory: {error}; ask for less") from error
    offset = 0
    if huge:
        start = torch.frombuffer(mapping, dtype=torch.uint8, count=1).data_ptr()
        offset = -start % HUGE_PAGE_BYTES
        # A kernel without huge pages refuses: the memory is slower then, not wrong.
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    arena = torch.frombuffer(mapping, dtype=torch.uint8, count=bytes, offset=offset)
    if touch:  # the kernel gives zeros; one write to every page makes it give them now
        arena[::_PAGE_BYTES].zero_()
    return mapping, arena


def _private() -> int:
    return mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def _register(arena: torch.Tensor, mapping: mmap.mmap, *, must: bool) -> bool:
    """Tells CUDA about the memory; whether it took it."""
    cudart = _cudart()
    status = int(cudart.cudaHostRegister(arena.data_ptr(), arena.numel(), 0))
    if status == 0:
        _REGISTERED[arena.data_ptr()] = mapping
        return True
    if must:
        raise LocalError(
            f"pinned=True: cudaHostRegister of {arena.numel()} bytes ended with CUDA error {status}; "
            "ask for less, or use pinned='auto'"
        )
    return False


def _unregister(arena: torch.Tensor) -> None:
    cudart = _cudart()
    cudart.cudaHostUnregister(arena.data_ptr())
    _REGISTERED.pop(arena.data_ptr(), None)


def _cudart() -> Any:
    cuda: Any = torch.cuda
    return cuda.cudart()
