"""Random numbers by counting: a number is a function of the seed, the run and how many were drawn in that run before.

So no run depends on how many run beside it, or on what became of others, and any of them can be made again alone. The
functions here take plain ints or numpy arrays of ``uint64``, and say the same of both. They are splitmix64's: a counter
that grows by an odd number, and a mix of its bits.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

MASK = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15
"""What the counter of a run grows by with each word."""
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
RUN_STEP = 0xD1342543DE82EF95
"""What the place where a run starts to count is made of."""
HEAD = 0x6A09E667F3BCC909
FOLD, FOLD_SHIFT = 0xFF51AFD7ED558CCD, 29
"""How a decision enters the digest of a run."""
NIBBLES = 16
"""Draws in a word, of 4 bits each."""

Word = Any
"""A plain int below 2 to 64, or an array of ``uint64``."""


def _wrap(value: Word) -> Word:
    return value & MASK if isinstance(value, int) else value


def _number(like: Word, value: int) -> Word:
    return value if isinstance(like, int) else np.uint64(value)


def mix64(value: Word) -> Word:
    """A word whose every bit depends on every bit of ``value``; no two values give the same."""
    n = partial(_number, value)
    value = _wrap((value ^ (value >> n(30))) * n(FIRST))
    value = _wrap((value ^ (value >> n(27))) * n(SECOND))
    return value ^ (value >> n(31))


def seed_key(seed: int) -> int:
    """What all runs of a seed have in common."""
    return int(mix64((seed + STEP) & MASK))


def run_key(key: int, run: Word) -> Word:
    """Where the counter of a run starts."""
    return mix64(_wrap(run * _number(run, RUN_STEP) + _number(run, key)))


def word(key: Word, number: Word) -> Word:
    """The word of that number, from 0 on, of the run with this key."""
    return mix64(_wrap(key + _wrap((number + _number(number, 1)) * _number(number, STEP))))


class Head(NamedTuple):
    """What is drawn of a run before its first round: its start state, and how many rounds may have faults."""

    start: Word
    faults: Word


def head(key: Word, starts: int) -> Head:
    """Half of the runs have no faults; the others have up to 32 rounds of them."""
    drawn = mix64(key ^ _number(key, HEAD))
    n = partial(_number, key)
    start = ((drawn & n(0xFFFF)) * n(starts)) >> n(16)
    rounds = (drawn >> n(16)) & n(31)
    some = (rounds >> n(4)) & n(1)
    return Head(start, some * ((rounds & n(15)) + n(1)) * n(2))


def fold(digest: Word, code: Word) -> Word:
    """The digest of a run after one more decision."""
    mixed = _wrap((digest ^ code) * _number(digest, FOLD))
    return mixed ^ (mixed >> _number(mixed, FOLD_SHIFT))


def sealed(digest: Word, run: Word) -> Word:
    """What a run adds to the digest of its batch: its digest, bound to its number."""
    return mix64(digest ^ mix64(_wrap(run * _number(run, STEP) + _number(run, HEAD))))
