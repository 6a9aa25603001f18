"""A spot check that a symmetry which a model claims is one: a false claim would hide states without a word.

For some states of a level, and every exchange of two neighbouring records, the exchanged state must be able to do just
what the state can do, up to symmetry, and as many clauses must hold in both: a clause about one record becomes that
about the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fsm.errors import LocalError
from sim.model.form import Record, describe
from sim.vector.rows import Columns, Words, joined, mixed, part, size, without_key

if TYPE_CHECKING:
    from sim.vector.graph import Graph
    from sim.vector.store import Run

STATES = 8
"""States of a level that are looked at, spread over it."""
LEVELS = 64
"""Only the first levels are looked at, and then every so many."""


def check_symmetry(graph: Graph, level: Run) -> None:
    """Raise LocalError, naming the group and a state, where exchanging two records changes what may happen."""
    if len(graph.levels) > LEVELS and len(graph.levels) % LEVELS:
        return
    at = np.linspace(0, len(level) - 1, min(STATES, len(level))).astype(np.intp)
    rows = without_key(tuple(np.asarray(column).take(at) for column in level.columns))
    exchanges = list(graph.symmetry.exchanges())
    exchanged = [tuple(graph.symmetry.renamed(rows, order)) for _, _, order in exchanges]
    ways, told = _seen(graph, joined([rows, *exchanged]))
    for which, (number, records, _) in enumerate(exchanges, start=1):
        here = slice(which * len(at), (which + 1) * len(at))
        for values, what in ((ways, "what may happen"), (told, "how many clauses hold")):
            differs = values[: len(at)] != values[here]
            if differs.any():
                state = graph.packing.unpack(rows, int(np.argmax(differs)))
                raise LocalError(
                    f"model '{graph.model.name}', symmetry group {number + 1}: exchanging {_shown(records[0])} and "
                    f"{_shown(records[1])} changes {what} in the state {describe(state)}"
                )


def _shown(record: Record) -> str:
    return f"({', '.join(record[:3])}{', ...' if len(record) > 3 else ''})"


def _seen(graph: Graph, rows: Columns) -> tuple[Words, Words]:
    """For each row a number that stands for all its successors, each as its representative and as often as it is one;
    and how many clauses hold."""
    ways, told = np.zeros(size(rows), np.uint64), np.zeros(size(rows), np.uint64)
    for low in range(0, size(rows), graph.expander.rows_max):
        chunk = part(rows, low, low + graph.expander.rows_max)
        for truths in graph.expander.judged(chunk):
            told[low : low + size(chunk)] += truths
        for batch in graph.expander.expand(chunk):
            # `| 1`, so that no state counts for nothing
            ways[low + batch.rows] += mixed(graph.targets(batch)) | np.uint64(1)
    return ways, told
