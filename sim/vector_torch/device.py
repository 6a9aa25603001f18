"""Where the vector engine runs on torch: the device, what fits on it, and what is said when there is none.

torch is an extra and takes a second to import, so it is imported here and nowhere else in this package, when a device
is asked for. Every other part takes the module from :class:`Device`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fsm.errors import LocalError
from fsm.kernel import Number

Tensor = Any
"""A ``torch.Tensor``; the type is not named, so that no module needs torch to be imported."""
Tensors = tuple[Tensor, ...]

CPU_ROWS = 1 << 15
"""Rows of a chunk on a processor: what is computed of them stays in a cache."""
CPU_BUFFER_ROWS = 1 << 20
GPU_ROWS_MIN, GPU_ROWS_MAX = 1 << 16, 1 << 22
"""Rows of a chunk on a GPU: enough that a kernel works for longer than its launch takes."""
GPU_BUFFER_ROWS_MAX = 1 << 27
INDEX_MAX = (1 << 31) - 1
"""The table of truth values has at most so many, since a kernel may count them in 32 bits."""
BUFFER_ROWS_MIN = 1 << 12
CHUNK_SHARE, BUFFER_SHARE = 32, 24
"""Of a GPU's memory, at most one part in so many is taken by what a chunk needs, and by the buffer of successors.
Sorting the buffer takes a few times as much."""
LIMIT_SHARE = 16
"""Of a limit that was set, the buffer takes at most one part in so many."""
FREE_SHARE = 0.85
"""So much of a GPU's free memory is taken when no limit was set; the rest is for temporary results."""
MOVES_GUESSED = 8
"""Steps from a state, to choose the size of a chunk by. More of them are handled in several turns."""


@dataclass(frozen=True)
class Sizes:
    """``rows``: states expanded at once; ``buffer_rows``: successors collected before they are sorted."""

    rows: int
    buffer_rows: int


class Device:
    """A device that torch can use. ``torch`` is the module, ``name`` what to call it in a report.

    ``bytes_free`` is the memory that is free on it, or None where the limit is not the device's own (a processor).
    Raises LocalError, saying what to do, where torch or the device is missing.
    """

    def __init__(self, device: str) -> None:
        self.torch = load_torch()
        try:
            self.device = self.torch.device(device)
        except RuntimeError:
            raise LocalError(f"device '{device}': no such kind of device; expected 'cpu', 'cuda' or 'cuda:N'") from None
        if self.device.type not in ("cpu", "cuda"):
            raise LocalError(f"device '{device}': the engine is written for 'cpu' and 'cuda'; expected one of these")
        self.name = "cpu"
        self.bytes_free: int | None = None
        self.is_gpu = self.device.type == "cuda"
        if self.is_gpu:
            self._take_cuda(device)

    def _take_cuda(self, device: str) -> None:
        cuda = self.torch.cuda
        if not cuda.is_available():
            built = self.torch.version.cuda
            why = f"it is built for CUDA {built}, and finds no driver or GPU" if built else "it is built without CUDA"
            raise LocalError(
                f"device '{device}': torch {self.torch.__version__} has none: {why}. Install a CUDA build of torch on "
                "a machine with a GPU, or leave the device out: on a processor the numpy engine is the faster one"
            )
        if self.device.index is None:
            self.device = self.torch.device("cuda", cuda.current_device())
        if self.device.index >= cuda.device_count():
            raise LocalError(f"device '{device}': there are {cuda.device_count()}, counted from 0")
        self.name = f"{self.device} ({cuda.get_device_name(self.device)})"
        self.bytes_free = int(cuda.mem_get_info(self.device)[0])

    def sizes(self, words: int, row_bytes: int, memory_bytes: int | None) -> Sizes:
        """Sizes for states of so many words, of which the evaluation takes ``row_bytes`` each."""
        rows, buffer_rows = CPU_ROWS, CPU_BUFFER_ROWS
        if self.bytes_free is not None:
            per_row = row_bytes + MOVES_GUESSED * (24 + 16 * words)
            fit = min(self.bytes_free // CHUNK_SHARE // per_row, INDEX_MAX // row_bytes)
            rows = _power_within(fit, GPU_ROWS_MIN, GPU_ROWS_MAX)
            buffer_rows = _power_within(self.bytes_free // BUFFER_SHARE // (8 * words), rows, GPU_BUFFER_ROWS_MAX)
        if memory_bytes is not None:
            fits = max(memory_bytes // LIMIT_SHARE // (8 * words), 1)
            buffer_rows = min(buffer_rows, max(_power(fits), BUFFER_ROWS_MIN))
        return Sizes(min(rows, buffer_rows // 2), buffer_rows)

    def synchronize(self) -> None:
        """Wait until everything that was asked for is done."""
        if self.is_gpu:
            self.torch.cuda.synchronize(self.device)

    def empty(self, rows: int, kind: Any) -> Tensor:
        """A new tensor of one dimension, with anything in it."""
        return self.torch.empty(rows, dtype=kind, device=self.device)

    def numbers(self, values: list[int]) -> Tensor:
        """int64 values on the device."""
        return self.torch.tensor(values, dtype=self.torch.int64, device=self.device)

    def is_full(self, error: Exception) -> bool:
        """Whether an error says that there is no more memory, on the device or beside it."""
        full = isinstance(error, (MemoryError, self.torch.OutOfMemoryError))
        return full or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def load_torch() -> Any:
    """The module. Raises LocalError where it is not installed."""
    try:
        import torch
    except ImportError:
        raise LocalError(
            "torch is not installed: pip install 'resumark[torch]' (on a machine with a GPU, the CUDA build that fits "
            "its driver), or leave the device out: the numpy engine needs none"
        ) from None
    return torch


def _power(number: int) -> int:
    """The largest power of two up to a number."""
    return 1 << max(number.bit_length() - 1, 0)


def _power_within(number: int, low: int, high: int) -> int:
    return min(max(_power(int(number)), low), high)


class TorchOps:
    """`fsm.kernel.Ops` over tensors: the decisions of the protocol for many requests, on a device.

    Ints and tensors may be mixed as with numpy. Comparisons, arithmetic, ``&`` and ``|`` are the tensors' own.
    """

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def where(self, condition: Number, yes: Number, no: Number) -> Number:
        """``yes`` where the condition holds, else ``no``."""
        if not self.torch.is_tensor(condition):
            return yes if condition else no
        return self.torch.where(condition, yes, no)

    def minimum(self, left: Number, right: Number) -> Number:
        """The smaller of the two."""
        if self.torch.is_tensor(left) and self.torch.is_tensor(right):
            return self.torch.minimum(left, right)
        if self.torch.is_tensor(right):
            left, right = right, left
        return self.torch.clamp(left, max=right) if self.torch.is_tensor(left) else min(left, right)

    def maximum(self, left: Number, right: Number) -> Number:
        """The larger of the two."""
        if self.torch.is_tensor(left) and self.torch.is_tensor(right):
            return self.torch.maximum(left, right)
        if self.torch.is_tensor(right):
            left, right = right, left
        return self.torch.clamp(left, min=right) if self.torch.is_tensor(left) else max(left, right)
