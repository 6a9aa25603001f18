"""The states that were found, by their distance from the start, and ways through them.

No state remembers how it was reached. A shortest way to it is found again from its end: among the states one step
nearer to the start some have it as a successor, and they are expanded, chunk by chunk, until the first turns up. That
costs a part of the search once more, and only when there is something to show.

With symmetry a way leads over representatives. :meth:`Graph.path` turns it into a run of the model as it was written:
from a real initial state, each step to the successor that has the next representative.

The finished graph can be walked too: :meth:`Graph.successors` gives every edge, chunk by chunk, and :meth:`Graph.index`
numbers the states, so that a property of states is an array and a pass backward or forward is a few lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.model.form import Model, State, successors
from sim.model.symbol import check_model
from sim.vector.expand import Batch, Expander
from sim.vector.pack import Packing
from sim.vector.result import ModelStep
from sim.vector.rows import Columns, distinct, find, part, size, with_key, without_key
from sim.vector.store import Run, Store, Visited
from sim.vector.symmetry import Symmetry


class Graph:
    """A model made ready for the search, and the levels found so far."""

    def __init__(self, model: Model, packing: Packing, store: Store, *, deadlock: bool, rows_max: int) -> None:
        self.table = check_model(model)
        self.model = model
        self.packing = packing
        self.symmetry = Symmetry(model, packing)
        self.expander = Expander(model, self.table, packing, deadlock=deadlock, rows_max=rows_max)
        self.levels: list[Run] = []
        self.visited = Visited(store)

    def start(self) -> Columns:
        """The rows of the initial states."""
        return self._keyed(self.model.start_states())

    def _keyed(self, states: Sequence[State]) -> Columns:
        return distinct(with_key(self.symmetry.canonical(self.packing.pack(states))))

    def chunks(self, run: Run) -> Iterator[Columns]:
        """The states of a run as the expander takes them."""
        step = self.expander.rows_max
        for low in range(0, len(run), step):
            piece = part(run.columns, low, min(low + step, len(run)))
            yield tuple(np.asarray(column) for column in without_key(piece))

    def targets(self, batch: Batch) -> Columns:
        """The states that a batch leads to, as representatives."""
        return self.symmetry.canonical(batch.after) if self.symmetry else batch.after

    # --- one way --------------------------------------------------------------------------------------

    def predecessor(self, level: int, row: Columns) -> Columns:
        """The first state of a level that has a row (of one state, no key in it) as its successor."""
        for chunk in self.chunks(self.levels[level]):
            for batch in self.expander.expand(chunk):
                hit = np.ones(len(batch.rows), np.bool_)
                for column, sought in zip(self.targets(batch), row, strict=True):
                    hit &= column == sought[0]
                if hit.any():
                    at = int(batch.rows[int(np.argmax(hit))])
                    return tuple(column[at : at + 1].copy() for column in chunk)
        raise AssertionError(f"a state at distance {level + 1} has no predecessor at distance {level}")

    def path(self, row: Columns) -> tuple[State, tuple[ModelStep, ...]]:
        """A real initial state, and the steps of a shortest run from it to a state of the last level that was
        expanded."""
        way = [row]
        for level in range(self._level_of(row) - 1, -1, -1):
            way.append(self.predecessor(level, way[-1]))
        way.reverse()
        state = next(state for state in self.model.start_states() if self._stands_for(way[0], state))
        start, steps = state, []
        for goal in way[1:]:
            action, state = next(
                (action, after) for action, after in successors(self.model, state) if self._stands_for(goal, after)
            )
            steps.append(ModelStep(action.name, state))
        return start, tuple(steps)

    def _level_of(self, row: Columns) -> int:
        keyed = with_key(row)
        return next(level for level, run in enumerate(self.levels) if find(run.columns, keyed)[0] >= 0)

    def _stands_for(self, row: Columns, state: State) -> bool:
        mine = self.symmetry.canonical(self.packing.pack([state]))
        return all(int(a[0]) == int(b[0]) for a, b in zip(mine, row, strict=True))

    # --- all of it --------------------------------------------------------------------------------------

    def index(self) -> Run:
        """All states as one run: a state's number is its row in it. Raises OutOfRoom."""
        return self.visited.merge_all()

    def successors(self, run: Run) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
        """Every step between states of :meth:`index`: the number of the action, the states' numbers before, and
        after."""
        low = 0
        expander = Expander(self.model, self.table, self.packing, loops=True, rows_max=self.expander.rows_max)
        for chunk in self.chunks(run):
            for batch in expander.expand(chunk):
                yield batch.action, batch.rows + low, find(run.columns, with_key(self.targets(batch)))
            low += size(chunk)
