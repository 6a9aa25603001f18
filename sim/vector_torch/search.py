"""The vector engine on torch: the search of `sim.vector.search` on a processor or a GPU.

The same levels, and the same answer. Chunks of a level are expanded into a buffer of successors; a full buffer is
sorted, what was known is dropped, and what is left are runs of the next level. All of that is done by the device; the
host asks it about sizes a few times for every chunk and every buffer. A shortest trace is found backwards on the
device, one state of each level, and then told by the numpy engine, which also answers whatever is asked about single
states. So is a symmetry checked by it; the state that stands for others is found by its code, run on tensors.

No clock is read. Who wants a limit of time hands in ``stop``, which is asked before every chunk and every sort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fsm.errors import LocalError
from sim.model.form import Model
from sim.vector import rows as vector_rows
from sim.vector.check import check_symmetry
from sim.vector.graph import Graph
from sim.vector.pack import Packing
from sim.vector.result import ModelViolation, VectorResult, violation
from sim.vector.rows import Columns
from sim.vector.search import Progress
from sim.vector.store import Run as PlainRun
from sim.vector.store import Store as PlainStore
from sim.vector_torch.device import FREE_SHARE, Device, Tensors
from sim.vector_torch.expand import TorchExpander
from sim.vector_torch.rows import distinct, part, size, with_key, without_key
from sim.vector_torch.store import Known, OutOfRoom, Run, Store
from sim.vector_torch.words import Unsigned, to_device, to_numpy

PLAIN_ROWS = 1 << 10
"""Rows of a chunk of the numpy engine, which sees a few states only."""
SAMPLED = 64
"""States of a level that a symmetry is checked on, at most."""


class _Stopped(Exception):
    """A limit other than memory was reached; the text says which."""


def explore_torch(
    model: Model,
    *,
    device: str = "cpu",
    states_max: int | None = None,
    memory_bytes: int | None = None,
    spill: Path | None = None,
    stop: Callable[[], bool] | None = None,
    deadlock: bool = False,
    progress: Progress | None = None,
    fused: bool = True,
) -> VectorResult:
    """Find and check every reachable state of a model with torch on ``device``: ``cpu``, ``cuda`` or ``cuda:N``.

    The other arguments and the answer are those of `sim.vector.search.explore`; ``bounds["device"]`` names the device.
    ``memory_bytes`` bounds what runs and buffers take on it; left out, a GPU's free memory does. ``spill`` is refused:
    states stay on the device. ``fused``: on a GPU, with kernels that are written for the model. Raises LocalError as
    ``explore`` does, and where torch or the device is missing.
    """
    if memory_bytes is not None and memory_bytes <= 0:
        raise LocalError(f"memory_bytes = {memory_bytes}; expected a number of bytes above 0, or None for no limit")
    if spill is not None:
        raise LocalError(f"spill to {spill}: on a device states stay in memory; leave it out, or take the numpy engine")
    found = Device(device)
    search = TorchSearch(model, found, memory_bytes=memory_bytes, deadlock=deadlock, fused=fused)
    return search.run(states_max=states_max, stop=stop, progress=progress)


class TorchSearch:
    """One search on a device."""

    def __init__(
        self, model: Model, device: Device, *, memory_bytes: int | None = None, deadlock: bool = False,
        fused: bool = True,
    ) -> None:  # fmt: skip
        self.device, self.torch = device, device.torch
        packing = Packing(model)
        self.plain = Graph(model, packing, PlainStore(packing.words), deadlock=deadlock, rows_max=PLAIN_ROWS)
        self.memory_bytes = memory_bytes
        self.transitions = 0
        self.checked = 0
        self.store = Store(device, memory_bytes)
        self.visited = Known(self.torch, self.store)
        self._fresh = Known(self.torch, self.store)
        self._deadlock, self._fused = deadlock, fused
        self._filled = 0
        self._buffer: Tensors = ()
        self._stop: Callable[[], bool] = lambda: False
        self._progress: Progress | None = None

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
        violation, bound = None, ""
        try:
            self._prepare()
            found = self._levels(states_max)
            if found is not None:
                violation = self._violation(*found)
        except (_Stopped, OutOfRoom) as ended:
            bound = str(ended)
        except (RuntimeError, MemoryError) as error:
            if not self.device.is_full(error):
                raise
            bound = f"memory, as {self.device.name} has no more"
        return self._result(violation, bound, states_max)

    def is_fused(self) -> bool:
        """Whether the search runs on kernels that were written for the model."""
        return hasattr(self, "expander") and self.expander.kernels is not None

    def _prepare(self) -> None:
        """Buffers, as large as the device allows."""
        self.expander = TorchExpander(
            self.device, self.plain, deadlock=self._deadlock, memory_bytes=self.memory_bytes, fused=self._fused
        )
        sizes, words = self.expander.sizes, self.plain.packing.words
        if self.memory_bytes is None and self.device.bytes_free is not None:
            self.store.bytes_max = int(FREE_SHARE * self.device.bytes_free) - self.expander.bytes
        self.store.claim(8 * words * sizes.buffer_rows)
        self._buffer = tuple(self.device.empty(sizes.buffer_rows, self.torch.int64) for _ in range(words))

    def _levels(self, states_max: int | None) -> tuple[Tensors, int] | None:
        start = self.plain.symmetry.canonical(self.plain.packing.pack(self.plain.model.start_states()))
        rows = distinct(self.torch, with_key(to_device(self.torch, self.device.device, start)))
        level: Run | None = self.store.make(rows)
        while level is not None:
            self.store.levels.append(level)
            level.owners += 1
            self.visited.add(level)
            self._check_symmetry(level)
            found = self._expand(level)
            if found is not None:
                return found
            if states_max is not None and len(self.visited) > states_max and self._fresh.runs:
                raise _Stopped("states_max")
            level = self._fresh.take_all()
        return None

    def _check_symmetry(self, level: Run) -> None:
        """On some states of the level, by the numpy engine, which takes them for the whole level."""
        if not self.plain.symmetry:
            return
        at = np.linspace(0, len(level) - 1, min(SAMPLED, len(level))).astype(np.int64)
        which = self.torch.from_numpy(at).to(self.device.device)
        sample = PlainRun(self._told(tuple(column.index_select(0, which) for column in level.columns)))
        self.plain.levels.append(sample)
        check_symmetry(self.plain, sample)

    def _told(self, rows: Tensors) -> Columns:
        """Rows of the device as the numpy engine keeps them in runs."""
        return vector_rows.distinct(vector_rows.with_key(to_numpy(without_key(rows))))

    # --- a level ----------------------------------------------------------------------------------------

    def _expand(self, level: Run) -> tuple[Tensors, int] | None:
        """Put all that is new among the successors of a level into ``_fresh``, or give the first state in which
        something is wrong, with the number of the clause (-1: it has no successor)."""
        left, depth = len(level), len(self.store.levels) - 1
        for chunk in self._chunks(level):
            if self._progress is not None:
                self._progress(len(self.visited), depth, left)
            if self._stop():
                raise _Stopped("time")
            seen = self.expander.look(chunk)
            for segment in self.expander.segments(seen):
                self.expander.make(chunk, seen, segment, self._room(segment.high - segment.low))
            self.expander.check(chunk)
            self.transitions += seen.transitions
            self.checked += size(chunk)
            left -= size(chunk)
            if seen.broken >= 0:
                row = part(chunk, seen.broken, seen.broken + 1)
                return row, self.expander.clause_of(row)
        self._flush()
        return None

    def _chunks(self, run: Run) -> Iterator[Tensors]:
        """The states of a run as the expander takes them."""
        step = self.expander.sizes.rows
        for low in range(0, len(run), step):
            yield without_key(tuple(c.to(self.device.device) for c in part(run.columns, low, low + step)))

    def _room(self, count: int) -> Tensors:
        """So many rows of the buffer, to be filled."""
        if self._filled + count > self.expander.sizes.buffer_rows:
            self._flush()
        self._filled += count
        return part(self._buffer, self._filled - count, self._filled)

    def _flush(self) -> None:
        """Make a run of what is new in the buffer."""
        if not self._filled:
            return
        if self._stop():
            raise _Stopped("time")
        rows = part(self._buffer, 0, self._filled)
        self._filled = 0
        for low in range(0, size(rows), self.expander.sizes.rows):
            self._canonicalise(part(rows, low, low + self.expander.sizes.rows))
        words = len(rows)
        work = 8 * size(rows) * (2 if words == 1 else 2 * words + 1)
        self.store.claim(work)
        try:
            rows = self._fresh.lacking(self.visited.lacking(distinct(self.torch, with_key(rows))))
        finally:
            self.store.free(work)
        if size(rows):
            self._fresh.add(self.store.make(rows))

    def _canonicalise(self, rows: Tensors) -> None:
        """Put the state that stands for it in place of every row."""
        if self.plain.symmetry:
            for target, column in zip(rows, self._canonical(rows), strict=True):
                target.copy_(column)

    def _canonical(self, rows: Tensors) -> Tensors:
        if not self.plain.symmetry:
            return rows
        words: Any = tuple(Unsigned(self.torch, column) for column in rows)
        found: Any = self.plain.symmetry.canonical(words)
        return tuple(word.bits for word in found)

    # --- the answer ---------------------------------------------------------------------------------------

    def _violation(self, row: Tensors, clause: int) -> ModelViolation:
        """The way is found on the device, then told by the numpy engine, for which there is nothing beside it."""
        way = [row]
        for level in reversed(self.store.levels[:-1]):
            way.append(self._predecessor(level, way[-1]))
        self.plain.levels = [PlainRun(self._told(with_key(one))) for one in reversed(way)]
        return violation(self.plain.model, clause, *self.plain.path(to_numpy(row)))

    def _predecessor(self, level: Run, row: Tensors) -> Tensors:
        """A state of a level that has a row (of one state, no key in it) as its successor."""
        for chunk in self._chunks(level):
            seen = self.expander.look(chunk)
            for segment in self.expander.segments(seen):
                out = part(self._buffer, 0, segment.high - segment.low)
                self.expander.make(chunk, seen, segment, out)
                hit = self.torch.ones_like(out[0], dtype=self.torch.bool)
                for column, sought in zip(self._canonical(out), row, strict=True):
                    hit &= column == sought
                hits = hit.nonzero()
                if len(hits):
                    which = int(seen.moves[segment.low + int(hits[0, 0])]) % size(chunk)
                    return tuple(column.clone() for column in part(chunk, which, which + 1))
        raise AssertionError("a state has no predecessor in the level before it")

    def _result(self, violation: ModelViolation | None, bound: str, states_max: int | None) -> VectorResult:
        states, depth = len(self.visited), max(len(self.store.levels) - 1, 0)
        if bound:
            bound += f"; {states:,} states found to depth {depth}, {self.checked:,} of them checked"
        verdict = "violated" if violation else "bounded" if bound else "holds"
        packing = self.plain.packing
        return VectorResult(
            verdict=verdict,
            coverage="exhausted" if verdict == "holds" else "bounded",
            states=states,
            checked=self.checked,
            transitions=self.transitions,
            depth=depth,
            levels=tuple(len(level) for level in self.store.levels),
            violation=violation,
            bound=bound,
            bounds={
                "model": self.plain.model.name,
                "words": packing.words,
                "bits": packing.bits,
                "symmetry": bool(self.plain.symmetry),
                "states_max": states_max,
                "memory_bytes": self.memory_bytes,
                "device": self.device.name,
                "fused": self.is_fused(),
            },
            memory_bytes=self.store.peak,
        )
