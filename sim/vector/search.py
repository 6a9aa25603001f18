"""The vector engine: every reachable state of a model, a whole level at once.

A search by levels: all states at distance ``d`` from the start are expanded together, their successors are sorted,
doubles and states that were known are dropped, and what is left is level ``d + 1``. So the first state that breaks a
clause is a nearest one, and the number of Python steps does not depend on the number of states. States are packed into
words (`pack`), successors computed by numpy (`expand`, `plan`) or machine code (`native`), sets are sorted runs
(`rows`, `store`). Nothing is hashed away: two states are one only if all their bits are.

The work on a level goes chunk by chunk, so that what is not yet sorted never takes more than a buffer; the buffers,
and what becomes of runs when memory is short, follow from ``memory_bytes`` and ``spill``. Clauses are checked on every
state when it is expanded, before any state farther away is.

No clock is read. Who wants a limit of time hands in ``stop``, which is asked before every chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fsm.errors import LocalError
from sim.model.form import Model
from sim.vector.check import check_symmetry
from sim.vector.expand import ROWS_MAX, Finding
from sim.vector.graph import Graph
from sim.vector.pack import Packing
from sim.vector.result import ModelViolation, VectorResult, violation
from sim.vector.rows import Columns, distinct, joined, lacking, part, size, taken, with_key
from sim.vector.store import Builder, OutOfRoom, Run, Store, in_pieces

if TYPE_CHECKING:
    from sim.vector.native import Native

Progress = Callable[[int, int, int], None]
"""Told how many states are known, how deep the search is, and how many states of the level are left."""

BUFFER_ROWS = 1 << 20
"""Successors that are collected before they are sorted."""
BUFFER_ROWS_WIDE = 1 << 16
"""The same for states of several words: these are gathered by rows, which is slow outside of the cache."""
BUFFER_ROWS_MIN = 1 << 12
BUFFER_SHARE = 16
"""Of the memory, at most one part in so many is taken by the buffer; sorting it takes a few times as much."""
NATIVE_STATES = 100_000
"""When so many states are known, machine code pays for its compilation."""


class _Stopped(Exception):
    """A limit other than memory was reached; the text says which."""


class _At(NamedTuple):
    """A state of a level in which something is wrong."""

    row: Columns
    clause: int


def explore(
    model: Model,
    *,
    states_max: int | None = None,
    memory_bytes: int | None = None,
    spill: Path | None = None,
    stop: Callable[[], bool] | None = None,
    deadlock: bool = False,
    progress: Progress | None = None,
) -> VectorResult:
    """Find and check every reachable state of a model.

    ``states_max`` ends the search after the level that passes it; ``memory_bytes`` bounds what runs and buffers take
    (the interpreter and numpy come on top), and ``spill`` is a directory to which runs are written rather than to end
    the search; ``stop`` is asked from time to time whether to end it. ``deadlock`` makes a state without successors a
    violation. Raises LocalError for a model that is not well formed, does not fit, leaves its bounds or is not
    symmetric where it says so.
    """
    search = Search(model, memory_bytes=memory_bytes, spill=spill, deadlock=deadlock)
    try:
        return search.run(states_max=states_max, stop=stop, progress=progress)
    finally:
        search.close()


class Search:
    """One search. After :meth:`run` its ``graph`` can be walked, until :meth:`close`."""

    def __init__(
        self, model: Model, *, memory_bytes: int | None = None, spill: Path | None = None, deadlock: bool = False
    ) -> None:
        if memory_bytes is not None and memory_bytes <= 0:
            raise LocalError(f"memory_bytes = {memory_bytes}; expected a number of bytes above 0, or None for no limit")
        packing = Packing(model)
        words = packing.words
        rows = BUFFER_ROWS if words == 1 else min(BUFFER_ROWS, BUFFER_ROWS_WIDE)
        while memory_bytes is not None and rows > BUFFER_ROWS_MIN and rows * words * 8 * BUFFER_SHARE > memory_bytes:
            rows //= 2
        self.store = Store(words, memory_bytes, spill)
        self.graph = Graph(model, packing, self.store, deadlock=deadlock, rows_max=min(ROWS_MAX, rows))
        self.memory_bytes = memory_bytes
        self.transitions = 0
        self.checked = 0
        self._buffer = tuple(np.empty(max(rows, self.graph.expander.rows_max), np.uint64) for _ in range(words))
        self._filled = 0
        self._candidates: list[Run] = []
        self._native: Native | None = None
        self._native_asked = False
        self._lacking: Callable[[Columns, Columns], Columns] = lacking
        self._stop: Callable[[], bool] = lambda: False
        self._progress: Progress | None = None

    def prepare(self) -> None:
        """Make machine code now, where there can be any, and not when the search has become large."""
        from sim.vector.merge import merged, missing
        from sim.vector.native import native_for

        if self._native_asked:
            return
        self._native_asked = True
        self._native = native_for(self.graph.model, self.graph.table, self.graph.expander, self.store)
        if self._native is not None and self.graph.packing.words > 1:
            self.graph.visited.merge = merged
            self._lacking = missing

    def close(self) -> None:
        """Remove what was written to files."""
        self.store.close()

    def run(
        self,
        *,
        states_max: int | None = None,
        stop: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> VectorResult:
        """Search to the end, to a violation or to a limit."""
        self._stop = stop or self._stop
        self._progress = progress
        broken, bound = None, ""
        try:
            found = self._levels(states_max)
            if found is not None:
                broken = self._violation(found)
        except (_Stopped, OutOfRoom) as ended:
            bound = str(ended)
        except MemoryError:
            bound = "memory, as the system has no more"
        return self._result(broken, bound, states_max)

    def _levels(self, states_max: int | None) -> _At | None:
        graph = self.graph
        self.store.claim(8 * len(self._buffer[0]) * len(self._buffer))
        builder = Builder(self.store)
        builder.append(graph.start())
        level = builder.finish()
        while level is not None:
            graph.levels.append(level)
            graph.visited.add(level)
            if graph.symmetry:
                check_symmetry(graph, level)
            found = self._expand(level)
            if found is not None:
                return found
            if states_max is not None and len(graph.visited) > states_max and self._candidates:
                raise _Stopped("states_max")
            level = self._next_level()
        return None

    def _result(self, violation: ModelViolation | None, bound: str, states_max: int | None) -> VectorResult:
        graph = self.graph
        states, depth = len(graph.visited), len(graph.levels) - 1
        if bound:
            bound += f"; {states:,} states found to depth {max(depth, 0)}, {self.checked:,} of them checked"
        verdict = "violated" if violation else "bounded" if bound else "holds"
        return VectorResult(
            verdict=verdict,
            coverage="exhausted" if verdict == "holds" else "bounded",
            states=states,
            checked=self.checked,
            transitions=self.transitions,
            depth=max(depth, 0),
            levels=tuple(len(level) for level in graph.levels),
            violation=violation,
            bound=bound,
            bounds={
                "model": graph.model.name,
                "words": graph.packing.words,
                "bits": graph.packing.bits,
                "symmetry": bool(graph.symmetry),
                "states_max": states_max,
                "memory_bytes": self.memory_bytes,
            },
            memory_bytes=self.store.peak,
            spilled_bytes=self.store.spilled,
        )

    def _violation(self, found: _At) -> ModelViolation:
        graph = self.graph
        return violation(graph.model, found.clause, *graph.path(found.row))

    # --- a level ----------------------------------------------------------------------------------------

    def _expand(self, level: Run) -> _At | None:
        """The successors of a level as sorted candidates, or the first state in which something is wrong."""
        graph, left, depth = self.graph, len(level), len(self.graph.levels) - 1
        for chunk in graph.chunks(level):
            if self._progress is not None:
                self._progress(len(graph.visited), depth, left)
            if self._stop():
                raise _Stopped("time")
            rows = len(chunk[0])
            if self._at_once(chunk):
                self.checked += rows
                left -= rows
                continue
            for batch in graph.expander.expand(chunk):
                self._collect(batch.after if batch.moves else _moved(batch.before, batch.after))
            self.transitions += graph.expander.transitions
            self.checked += rows
            left -= rows
            finding: Finding | None = graph.expander.finding
            if finding is not None:
                return _At(tuple(column[finding.row : finding.row + 1].copy() for column in chunk), finding.clause)
        self._flush()
        return None

    def _at_once(self, chunk: Columns) -> bool:
        """Expand a chunk by machine code, where there is some. False where the expander has to do it."""
        if not self._native_asked and len(self.graph.visited) >= NATIVE_STATES:
            self.prepare()
        if self._native is None:
            return False
        most = len(self._buffer[0])
        for after in self._native.successors(chunk):
            for low in range(0, size(after), most):
                self._collect(part(after, low, min(low + most, size(after))))
        if self._native.trouble:
            return False
        self.transitions += self._native.transitions
        return True

    def _collect(self, after: Columns) -> None:
        """Add successors to the buffer."""
        count = size(after)
        if self._filled + count > len(self._buffer[0]):
            self._flush()
        for column, target in zip(after, self._buffer, strict=True):
            target[self._filled : self._filled + count] = column
        self._filled += count

    def _flush(self) -> None:
        """Make a run of what is in the buffer."""
        if self._filled:
            if self.graph.symmetry:
                self._canonicalise()
            rows = distinct(with_key(part(self._buffer, 0, self._filled)))
            self._filled = 0
            builder = Builder(self.store)
            builder.append(rows)
            run = builder.finish()
            assert run is not None
            self._candidates.append(run)

    def _canonicalise(self) -> None:
        """Put the state that stands for it in place of every row of the buffer, chunk by chunk."""
        step = self.graph.expander.rows_max
        for low in range(0, self._filled, step):
            chunk = part(self._buffer, low, min(low + step, self._filled))
            for column, canonical in zip(chunk, self.graph.symmetry.canonical(chunk), strict=True):
                np.copyto(column, canonical)

    def _next_level(self) -> Run | None:
        """What is new among the candidates."""
        builder = Builder(self.store)
        try:
            for pieces, known in in_pieces(self._candidates, self.graph.visited.runs):
                if self._stop():
                    raise _Stopped("time")
                if pieces:
                    rows = pieces[0] if len(pieces) == 1 else distinct(joined(pieces))
                    for table in known:
                        rows = self._lacking(rows, table)
                    builder.append(tuple(np.array(column) for column in rows))
            level = builder.finish()
        except BaseException:
            builder.drop()
            raise
        for run in self._candidates:
            self.store.release(run)
        self._candidates = []
        return level


def _moved(before: Columns, after: Columns) -> Columns:
    """The rows of ``after`` that differ from those before."""
    moved = after[0] != before[0]
    for new, old in zip(after[1:], before[1:], strict=True):
        moved |= new != old
    return after if moved.all() else taken(after, moved)
