"""What the search on a device has found so far: sorted runs of states in its memory, and the account of that memory.

As in `sim.vector.store`, the states found are a few runs that share none, and runs of about equal size are
merged. What is different: work on runs goes through them whole, since a device is slow on small pieces; and when memory
runs out there are no files, but levels that were expanded, and are only needed for a trace, can go to the host.
"""

from __future__ import annotations

from typing import Any

from sim.vector_torch.device import Device, Tensors
from sim.vector_torch.rows import lacking, merged, size

MERGE_RATIO = 2
"""A run is merged with the one before it unless that is more than so many times as large."""


class OutOfRoom(Exception):
    """The memory that the search may take is used up; the text says how much that is."""


class Run:
    """A sorted table of distinct states. ``owners`` counts those who need it on the device."""

    def __init__(self, columns: Tensors) -> None:
        self.columns = columns
        self.owners = 1
        self.apart = False
        """Whether the columns have been moved to the host."""

    def __len__(self) -> int:
        return size(self.columns)

    @property
    def bytes(self) -> int:
        """What its columns take."""
        return 8 * len(self) * len(self.columns)


class Store:
    """The account of a device's memory, and the levels. ``bytes_max`` is None for no limit."""

    def __init__(self, device: Device, bytes_max: int | None) -> None:
        self.device = device
        self.bytes_max = bytes_max
        self.held = 0
        self.peak = 0
        self.levels: list[Run] = []
        self.moves_levels = device.is_gpu
        """Whether levels may go to the host; of a processor that would save nothing."""

    def claim(self, count: int) -> None:
        """Take so many bytes into account, after making room for them. Raises OutOfRoom."""
        while self.bytes_max is not None and self.held + count > self.bytes_max:
            if not self._make_room():
                raise OutOfRoom(f"memory, at {self.held + count:,} of {self.bytes_max:,} bytes")
        self.held += count
        self.peak = max(self.peak, self.held)

    def free(self, count: int) -> None:
        """Give claimed bytes back."""
        self.held -= count

    def _make_room(self) -> bool:
        """Move the largest level that nothing else needs to the host."""
        if not self.moves_levels:
            return False
        levels = [run for run in self.levels[:-1] if run.owners == 1 and not run.apart]
        if not levels:
            return False
        largest = max(levels, key=len)
        self.free(largest.bytes)
        largest.columns = tuple(column.cpu() for column in largest.columns)
        largest.apart = True
        return True

    def make(self, columns: Tensors) -> Run:
        """A run of columns that were just computed. Raises OutOfRoom."""
        run = Run(columns)
        self.claim(run.bytes)
        return run

    def release(self, run: Run) -> None:
        """One owner less; without any, its memory is given back."""
        run.owners -= 1
        if not run.owners:
            self.free(run.bytes)
            run.columns = ()


class Known:
    """Distinct states, as runs that share none, larger ones first."""

    def __init__(self, torch: Any, store: Store) -> None:
        self.torch, self.store = torch, store
        self.runs: list[Run] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self.runs)

    def lacking(self, rows: Tensors) -> Tensors:
        """The rows, sorted and distinct, that are not among them."""
        for run in self.runs:
            rows = lacking(self.torch, rows, run.columns)
        return rows

    def add(self, run: Run) -> None:
        """Take a run of states that are new, and merge while that is due."""
        self.runs.append(run)
        while len(self.runs) > 1 and len(self.runs[-2]) <= MERGE_RATIO * len(self.runs[-1]):
            try:
                self._merge_last()
            except OutOfRoom:  # it only saves time
                break

    def take_all(self) -> Run | None:
        """All states as one run, which is then the caller's; None if there are none. Raises OutOfRoom."""
        while len(self.runs) > 1:
            self._merge_last()
        return self.runs.pop() if self.runs else None

    def _merge_last(self) -> None:
        first, second = self.runs[-2:]
        count = first.bytes + second.bytes
        self.store.claim(count)
        run = Run(merged(self.torch, first.columns, second.columns))
        self.store.release(first)
        self.store.release(second)
        self.runs[-2:] = [run]
