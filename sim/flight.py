"""Bytes on the move: writes from a sender into landing memory, and copies from there to a result."""

from __future__ import annotations

from typing import NamedTuple

from fsm.effects import CopyOut
from fsm.messages import Grant

GONE = 0
"""The incarnation of memory that died with its process before a write to it began."""


class Flight(NamedTuple):
    """A write that has been started. ``landed``: its bytes are in memory; ``told``: the sender knows that it has ended;
    ``noticed``: the receiver has been told by the write itself, where writes do that.

    ``incarnation`` is that of the memory it goes to, ``boot_id`` that of the sender's process.
    """

    grant: Grant
    source_start: int
    tokens: int
    total_tokens: int
    request: int
    boot_id: int
    incarnation: int
    landed: bool
    told: bool
    noticed: bool = True

    @property
    def over(self) -> bool:
        """Whether nothing of it is still to come."""
        return self.landed and self.told and self.noticed


class Copying(NamedTuple):
    """A copy out that is under way, on one rank, in one incarnation of its memory."""

    rank: int
    incarnation: int
    effect: CopyOut
