"""When something will have to be looked at again: one time for each key, the earliest first.

A worker with ten thousand requests in flight cannot walk them all in every tick to find the one whose deadline has
passed. Deadlines mostly move away (there was progress), and moving one costs nothing here: the old time comes up, the
caller looks, and says when to come back.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Wakes(Generic[K]):
    """A set of keys, each with the time in seconds at which it comes up."""

    __slots__ = ("_heap", "_serial", "_when")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._when: dict[K, float] = {}
        self._serial = 0

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._when)

    def at(self, key: K, when_s: float) -> None:
        """Let ``key`` come up at ``when_s``, or earlier if that was said before."""
        known = self._when.get(key)
        if known is None or when_s < known:
            self._when[key] = when_s
            self._serial += 1  # keys need not be comparable
            heapq.heappush(self._heap, (when_s, self._serial, key))

    def due(self, now_s: float) -> list[K]:
        """The keys whose time has come, earliest first. They are forgotten: whoever wants to see one again says so."""
        out: list[K] = []
        heap, when = self._heap, self._when
        while heap and heap[0][0] <= now_s:
            when_s, _, key = heapq.heappop(heap)
            if when.get(key) == when_s:
                del when[key]
                out.append(key)
        return out

    def next_s(self) -> float | None:
        """The earliest time, or ``None``."""
        heap = self._heap
        while heap and self._when.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self._when.clear()
