"""What the vector engine has found so far: sorted runs of states, in memory or in files, and how they grow.

A :class:`Run` is a sorted table of distinct states. :class:`Store` keeps account of the bytes that runs and buffers
take. It has a limit if told so; with a directory to spill to, the largest runs are written there when the limit is
reached, and are read from then on as they are needed; without one, the search ends (:class:`OutOfRoom`).

:class:`Visited` is the set of all states found, as a few runs that share none. New ones are put beside the others, and
runs of about equal size are merged, so that there are never more than the logarithm of the number of states, and each
state is moved as seldom (as in a log-structured merge tree). All work on runs goes through them in pieces that fit a
cache, each piece a range of keys that is cut out of all the runs at once.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sim.vector.rows import Columns, Words, in_order, joined, part, size

PIECE_ROWS = 1 << 17
"""Rows of a piece, about: 1 MiB for each word."""
SPILLED_ROWS_MIN = 1 << 12
"""Smaller runs are not worth a file."""
MERGE_RATIO = 2
"""A run is merged with the one before it unless that is more than so many times as large."""


class OutOfRoom(Exception):
    """The memory that the search may take is used up, or the disk is full; the text says which."""


class Run:
    """A sorted table of distinct states. ``owners`` counts those who need it.

    ``columns`` may be replaced by the same rows in files; whoever keeps it for longer keeps the memory too.
    """

    number = 0
    """Given by the store that keeps it."""

    def __init__(self, columns: Columns, files: tuple[Path, ...] = ()) -> None:
        self.columns = columns
        self.files = files
        self.owners = 1

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def held_bytes(self) -> int:
        """Bytes in memory; a run in files is not counted."""
        return 0 if self.files else sum(column.nbytes for column in self.columns)


class Store:
    """Every run there is, and the account of memory. ``bytes_max`` is ``None`` for no limit."""

    def __init__(self, words: int, bytes_max: int | None = None, spill: Path | None = None) -> None:
        self.words = words
        self.bytes_max = bytes_max
        self.spill = spill
        self.held = 0
        self.peak = 0
        self.spilled = 0
        self._runs: dict[int, Run] = {}
        self._made = 0
        self._files = 0
        if spill is not None:
            spill.mkdir(parents=True, exist_ok=True)

    def claim(self, count: int) -> None:
        """Take so many bytes into account, after making room for them. Raises OutOfRoom."""
        while self.bytes_max is not None and self.held + count > self.bytes_max:
            if not self._make_room():
                raise OutOfRoom(f"memory, at {self.held + count:,} of {self.bytes_max:,} bytes")
        self.held += count
        self.peak = max(self.peak, self.held)

    def has_room(self, count: int) -> bool:
        """Whether so many bytes could be claimed without spilling."""
        return self.bytes_max is None or self.held + count <= self.bytes_max

    def free(self, count: int) -> None:
        """Give claimed bytes back."""
        self.held -= count

    def _make_room(self) -> bool:
        """Write the largest run in memory to files, if that is wanted and there is one."""
        if self.spill is None:
            return False
        runs = [run for run in self._runs.values() if not run.files and len(run) >= SPILLED_ROWS_MIN]
        if not runs:
            return False
        largest = max(runs, key=len)
        count = largest.held_bytes
        writer = _Files(self)
        writer.append(largest.columns)
        largest.columns, largest.files = writer.finish()
        self.free(count)
        return True

    def file(self) -> Path:
        """A new file to spill to."""
        assert self.spill is not None
        self._files += 1
        return self.spill / f"states-{self._files:06d}.u64"

    def add(self, run: Run) -> Run:
        """Keep a run whose bytes are claimed already."""
        self._made += 1
        run.number = self._made
        self._runs[run.number] = run
        return run

    def release(self, run: Run) -> None:
        """One owner less; without any, its memory and its files are given back."""
        run.owners -= 1
        if run.owners:
            return
        del self._runs[run.number]
        self.free(run.held_bytes)
        run.columns = ()
        for file in run.files:
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove every file that was written."""
        for run in list(self._runs.values()):
            for file in run.files:
                file.unlink(missing_ok=True)
        self._runs.clear()


class _Files:
    """Writes a run to files, one for each column, piece by piece."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.paths = tuple(store.file() for _ in range(store.words))
        self.rows = 0
        for path in self.paths:
            path.write_bytes(b"")

    def append(self, columns: Columns) -> None:
        """Add rows. Raises OutOfRoom when the disk is full."""
        try:
            for path, column in zip(self.paths, columns, strict=True):
                with path.open("ab") as file:
                    file.write(np.ascontiguousarray(column).data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            for path in self.paths:
                path.unlink(missing_ok=True)
            raise OutOfRoom(f"disk, in {self.store.spill}") from error
        self.rows += size(columns)
        self.store.spilled += 8 * size(columns) * len(columns)

    def finish(self) -> tuple[Columns, tuple[Path, ...]]:
        """The columns, read from the files as needed, and the files."""
        return tuple(np.memmap(path, np.uint64, "r") for path in self.paths), self.paths


class Builder:
    """Makes a run from pieces that come in order. It moves to files when memory runs out and there is a place for
    them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pieces: list[Columns] = []
        self._claimed = 0
        self._files: _Files | None = None

    def append(self, columns: Columns) -> None:
        """Add rows that sort after all before. Raises OutOfRoom."""
        if not size(columns):
            return
        count = 8 * size(columns) * len(columns)
        if self._files is None:
            try:
                self.store.claim(count)
            except OutOfRoom:
                if self.store.spill is None:
                    raise
                self._to_files()
            else:
                self._claimed += count
                self._pieces.append(columns)
                return
        assert self._files is not None
        self._files.append(columns)

    def _to_files(self) -> None:
        self._files = _Files(self.store)
        for piece in self._pieces:
            self._files.append(piece)
        self.store.free(self._claimed)
        self._claimed, self._pieces = 0, []

    def finish(self) -> Run | None:
        """The run; None if nothing was added."""
        if self._files is None and len(self._pieces) > 1:
            if self.store.spill is not None and not self.store.has_room(self._claimed):
                self._to_files()
            else:  # for a moment pieces and run are both there
                self.store.claim(self._claimed)
                self.store.free(self._claimed)
        if self._files is not None:
            columns, files = self._files.finish()
            return self.store.add(Run(columns, files))
        if not self._pieces:
            return None
        columns = joined(self._pieces)
        self._pieces = []
        return self.store.add(Run(columns))

    def drop(self) -> None:
        """Give up what was built."""
        self.store.free(self._claimed)
        self._claimed, self._pieces = 0, []
        if self._files is not None:
            for path in self._files.paths:
                path.unlink(missing_ok=True)


# --- pieces ----------------------------------------------------------------------------------------------


def cuts(tables: Sequence[Columns], rows: int) -> Words:
    """Keys that cut sorted tables, taken together, into ranges of about ``rows`` rows."""
    total = sum(size(table) for table in tables)
    pieces = -(-total // rows)
    if pieces < 2:
        return np.zeros(0, np.uint64)
    stride = max(rows // 64, 1)
    samples = np.concatenate([np.asarray(table[0][::stride]) for table in tables])
    samples.sort()
    at = (np.arange(1, pieces) * len(samples)) // pieces
    keys = samples[at]
    different = np.ones(len(keys), np.bool_)
    different[1:] = keys[1:] != keys[:-1]
    return np.asarray(keys[different])


def in_pieces(runs: Sequence[Run], others: Sequence[Run] = ()) -> Iterator[tuple[list[Columns], list[Columns]]]:
    """Runs, range by range: the pieces of ``runs`` that are not empty, and those of ``others``.

    Ranges are made so that the pieces of ``runs`` have about ``PIECE_ROWS`` rows together.
    """
    keys = cuts([run.columns for run in runs], PIECE_ROWS)
    ends = [[0, *np.searchsorted(run.columns[0], keys).tolist(), len(run)] for run in (*runs, *others)]
    for number in range(len(keys) + 1):
        pieces = [
            part(run.columns, at[number], at[number + 1]) if at[number] < at[number + 1] else ()
            for run, at in zip((*runs, *others), ends, strict=True)
        ]
        yield [piece for piece in pieces[: len(runs)] if piece], [piece for piece in pieces[len(runs) :] if piece]


def sorted_again(left: Columns, right: Columns) -> Columns:
    """The rows of two sorted tables in order."""
    return in_order(joined([left, right]))


class Visited:
    """The states found, as runs that share no state, larger ones first."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.runs: list[Run] = []
        self.merge = sorted_again

    def __len__(self) -> int:
        return sum(len(run) for run in self.runs)

    def add(self, run: Run) -> None:
        """Add states that are new, and merge while that is due."""
        run.owners += 1
        self.runs.append(run)
        while len(self.runs) > 1 and len(self.runs[-2]) <= MERGE_RATIO * len(self.runs[-1]):
            if not self._merge_last():
                break

    def merge_all(self) -> Run:
        """One run of all states. Raises OutOfRoom."""
        while len(self.runs) > 1:
            if not self._merge_last():
                raise OutOfRoom(f"memory, to merge {len(self):,} states")
        return self.runs[0]

    def _merge_last(self) -> bool:
        """Merge the last two runs; not where there is no room for it, since it only saves time."""
        first, second = self.runs[-2:]
        builder = Builder(self.store)
        try:
            for pieces, _ in in_pieces([first, second]):
                if len(pieces) == 2:
                    builder.append(self.merge(*pieces))
                elif pieces:
                    builder.append(tuple(column.copy() for column in pieces[0]))
            run = builder.finish()
        except OutOfRoom:
            builder.drop()
            return False
        assert run is not None
        self.store.release(first)
        self.store.release(second)
        self.runs[-2:] = [run]
        return True
