"""Words of packed states on a device, used as numpy's uint64 arrays are.

torch sorts and searches int64 but has next to nothing for uint64. A :class:`Unsigned` holds the bits of a word in an
int64 tensor, and answers the few operations of numpy that the engine's code on rows uses: shifts that fill with zeros,
comparisons and minima in unsigned order, ``np.where``. So the code that finds the state which stands for others
(`sim.vector.symmetry`) is written once, and gives the same states here.

numpy hands its functions over by itself (``__array_ufunc__``, ``__array_function__``). An operation that is not in
:data:`_UFUNCS` is a TypeError, never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.vector_torch.device import Tensor, Tensors

_SIGN = -(1 << 63)
_WORD = 1 << 64


def signed(number: int) -> int:
    """The int64 that has the bits of a uint64."""
    return number - _WORD if number >= -_SIGN else number


def to_device(torch: Any, device: Any, columns: Sequence[np.ndarray[Any, Any]]) -> Tensors:
    """Columns of uint64 words as int64 tensors on a device."""
    return tuple(torch.from_numpy(np.array(column).view(np.int64)).to(device) for column in columns)


def to_numpy(columns: Tensors) -> tuple[Any, ...]:
    """Tensors of words as numpy's columns."""
    return tuple(column.cpu().numpy().view(np.uint64) for column in columns)


class Unsigned:
    """A column of uint64 words; ``bits`` is the int64 tensor that holds them."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, torch: Any, bits: Tensor) -> None:
        self.torch = torch
        self.bits = bits

    def __len__(self) -> int:
        return len(self.bits)

    def copy(self) -> Unsigned:
        """The same words, not shared."""
        return Unsigned(self.torch, self.bits.clone())

    def __setitem__(self, which: Tensor, value: Any) -> None:
        """Set words where a truth value says so."""
        self.bits.masked_fill_(which, signed(int(value)))

    def _bits(self, other: Any) -> Any:
        return other.bits if isinstance(other, Unsigned) else signed(int(other))

    def _ordered(self, other: Any) -> Any:
        """What compares as signed numbers do."""
        return self._bits(other) ^ _SIGN

    def _made(self, bits: Tensor) -> Unsigned:
        return Unsigned(self.torch, bits)

    def __and__(self, other: Any) -> Unsigned:
        return self._made(self.bits & self._bits(other))

    def __or__(self, other: Any) -> Unsigned:
        return self._made(self.bits | self._bits(other))

    def __xor__(self, other: Any) -> Unsigned:
        return self._made(self.bits ^ self._bits(other))

    def __lshift__(self, other: Any) -> Unsigned:
        return self._made(self.bits << int(other))

    def __rshift__(self, other: Any) -> Unsigned:
        shift = int(other)
        return self._made(self.bits >> shift & (1 << 64 - shift) - 1 if shift else self.bits.clone())

    def __iand__(self, other: Any) -> Unsigned:
        self.bits &= self._bits(other)
        return self

    def __ior__(self, other: Any) -> Unsigned:
        self.bits |= self._bits(other)
        return self

    def __ixor__(self, other: Any) -> Unsigned:
        self.bits ^= self._bits(other)
        return self

    def __ilshift__(self, other: Any) -> Unsigned:
        self.bits <<= int(other)
        return self

    def __eq__(self, other: Any) -> Tensor:
        return self.bits == self._bits(other)

    def __ne__(self, other: Any) -> Tensor:
        return self.bits != self._bits(other)

    def __lt__(self, other: Any) -> Tensor:
        return self._ordered(self) < self._ordered(other)

    def __gt__(self, other: Any) -> Tensor:
        return self._ordered(self) > self._ordered(other)

    def minimum(self, other: Any) -> Unsigned:
        """The smaller of each two words."""
        return self._made(self.torch.where(self < other, self.bits, self._bits(other)))

    def maximum(self, other: Any) -> Unsigned:
        """The larger of each two words."""
        return self._made(self.torch.where(self < other, self._bits(other), self.bits))

    def __array_ufunc__(self, ufunc: Any, method: str, left: Any, right: Any, out: Any = None) -> Any:
        name = _UFUNCS.get(ufunc)
        if name is None or method != "__call__" or not isinstance(left, Unsigned):
            return NotImplemented
        result = getattr(left, name)(right)
        if out is None:
            return result
        (target,) = out
        target.bits.copy_(result.bits)
        return target

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        if function is np.where and len(arguments) == 3 and not options:
            condition, yes, no = arguments
            return self._made(self.torch.where(condition, self._bits(yes), self._bits(no)))
        return NotImplemented


_UFUNCS = {
    np.minimum: "minimum", np.maximum: "maximum", np.bitwise_and: "__and__", np.bitwise_or: "__or__",
    np.bitwise_xor: "__xor__", np.left_shift: "__lshift__", np.right_shift: "__rshift__", np.equal: "__eq__",
    np.not_equal: "__ne__", np.less: "__lt__", np.greater: "__gt__",
}  # fmt: skip
