"""Where every field of a model lies in the words of a packed state.

A field takes as many bits as its values need, counted from its lowest value, and never straddles two words. The fields
of a symmetric record lie side by side wherever they fit, so that a whole record is one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fsm.errors import LocalError
from sim.model.form import Field, Model, State
from sim.vector.rows import Columns, Words

WORD_BITS = 64
WORDS_MAX = 16


class Slot(NamedTuple):
    """The place of a field: ``bits`` from bit ``shift`` of word ``word``, holding its value less ``low``."""

    word: int
    shift: int
    bits: int
    low: int

    @property
    def mask(self) -> int:
        """The bits of the field in its word."""
        return ((1 << self.bits) - 1) << self.shift


class Packing:
    """The places of all fields. Raises LocalError for a model that does not fit."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.slots: dict[str, Slot] = {}
        self.words = self._place(list(_units(model)))

    def _place(self, units: list[tuple[Field, ...]]) -> int:
        """First fit: each unit into the first word that has room for it. Gives the number of words."""
        used: list[int] = []
        for unit in units:
            bits = sum(_bits(field) for field in unit)
            room = [word for word, taken in enumerate(used) if taken + bits <= WORD_BITS]
            word = room[0] if room else len(used)
            used += [] if room else [0]
            for field in unit:
                self.slots[field.name] = Slot(word, used[word], _bits(field), field.low)
                used[word] += _bits(field)
        if len(used) > WORDS_MAX:
            largest = max(self.model.fields, key=_bits)
            raise LocalError(
                f"model '{self.model.name}' does not fit: its {len(self.model.fields)} fields need "
                f"{sum(used)} bits, {WORDS_MAX * WORD_BITS} is the limit; the largest, '{largest.name}', has "
                f"{_bits(largest)} bits"
            )
        return max(len(used), 1)

    @property
    def bits(self) -> int:
        """The bits of a state."""
        return sum(slot.bits for slot in self.slots.values())

    def pack(self, states: Sequence[State]) -> Columns:
        """States as rows. Raises LocalError for a value out of bounds."""
        rows = [[0] * self.words for _ in states]
        for state, row in zip(states, rows, strict=True):
            for field in self.model.fields:
                slot, value = self.slots[field.name], state[field.name]
                if not field.low <= value <= field.high:
                    raise LocalError(f"model '{self.model.name}': '{field.name}' = {value} is outside of its bounds "
                                     f"{field.low}..{field.high}")  # fmt: skip
                row[slot.word] |= (value - slot.low) << slot.shift
        return tuple(np.array([row[word] for row in rows], np.uint64) for word in range(self.words))

    def unpack(self, columns: Columns, row: int) -> State:
        """One row as a state."""
        words = [int(column[row]) for column in columns]
        return {
            field.name: ((words[slot.word] & slot.mask) >> slot.shift) + slot.low
            for field, slot in ((field, self.slots[field.name]) for field in self.model.fields)
        }

    def field(self, columns: Columns, name: str) -> Words:
        """The values of a field in every row, less its lowest value."""
        slot = self.slots[name]
        return (columns[slot.word] >> np.uint64(slot.shift)) & np.uint64((1 << slot.bits) - 1)


def _bits(field: Field) -> int:
    return (field.high - field.low).bit_length()


def _units(model: Model) -> Iterable[tuple[Field, ...]]:
    """What lies side by side: the records of symmetry groups, in words where they are longer, then every other field by
    itself."""
    placed: list[str] = []
    for group in model.symmetry:
        for record in group:
            names = [name for name in record if name not in placed]
            placed += names
            unit: tuple[Field, ...] = ()
            for field in map(model.field, names):
                if sum(map(_bits, (*unit, field))) > WORD_BITS:
                    yield unit
                    unit = ()
                unit += (field,)
            yield unit
    yield from ((field,) for field in model.fields if field.name not in placed)
