"""Liveness of a model, on the graph that the vector engine has found.

The graph is made into arrays once (:class:`LiveGraph`): an edge for each step that changes the state, with the fairness
group of its action. Then each promise is judged (:func:`judge`, by :mod:`sim.engines.liveness`), and backward passes
tell which states can still come to a good end (:func:`no_return`).

What is assumed of each action is said by a function (:data:`sim.model.live.Fairness`), which gives its group and how
the group is treated. A step may count only in some states (``only_if``): so a deadline is a way out after something was
disturbed, and not before.

Symmetry is kept where the model claims it. A group must then be one for all records that may be exchanged: that is
looked at in some states, and refused where it is not so. A cycle over representatives is walked in the model as it was
written, as many times as it takes until the very same state comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsm.errors import LocalError
from fsm.kernel import ARRAY, Ops
from sim.engines.liveness import BYTES_PER_EDGE, Edges, Groups, Truths, lasso, reaching, traps
from sim.model.form import Action, Expression, Model, Number, State, View, describe, holds, negate, successors
from sim.model.live import FINITE, KINDS, STRONG, WEAK, Fairness, Promise, Treatment, by_flag
from sim.vector.graph import Graph
from sim.vector.pack import Packing
from sim.vector.result import ModelStep, VectorResult
from sim.vector.rows import Columns, find, part, size, with_key, without_key
from sim.vector.search import Progress, Search
from sim.vector.store import OutOfRoom

SPOT_STATES = 64
"""States in which groups are compared with those of exchanged states."""


@dataclass(frozen=True)
class Liveness:
    """The answer. ``verdict`` is ``holds``, ``violated`` or ``bounded`` (then ``bound`` says what ran out);
    ``coverage`` is ``exhausted`` if the whole graph was judged.

    Of a violation ``start`` and ``stem`` are a shortest run to where it stays out of the goal; ``cycle`` is what
    repeats from there, each step with the state after it, the last one back in the state at the end of the stem. An
    empty cycle means that nothing has to change the state any more. ``component`` counts the states among which such
    runs stay. ``fairness`` says what was assumed of which groups.
    """

    promise: Promise
    verdict: str
    coverage: str
    states: int
    edges: int
    start: State | None = None
    stem: tuple[ModelStep, ...] = ()
    cycle: tuple[ModelStep, ...] = ()
    component: int = 0
    fairness: tuple[str, ...] = ()
    bound: str = ""

    def lines(self) -> list[str]:
        """A violation in words, a line for each step."""
        steps = [f"{number:>3}  {step.action}" for number, step in enumerate((*self.stem, *self.cycle), start=1)]
        if self.verdict != "violated":
            return []
        if not self.cycle:
            return [*steps, "     nothing but repeated messages and polls from here on: the state does not change"]
        first, last = len(self.stem) + 1, len(self.stem) + len(self.cycle)
        again = f"step {first} repeats" if first == last else f"steps {first} to {last} repeat"
        return [*steps, f"     {again} for ever: the state after step {last} is that after step {first - 1}"]


# --- the graph -------------------------------------------------------------------------------------------


class _Chunk:
    """Many states as expressions see them."""

    def __init__(self, packing: Packing, columns: Columns) -> None:
        self._packing, self._columns = packing, columns

    def __getitem__(self, name: str) -> Number:
        return self._packing.field(self._columns, name).astype(np.int64) + self._packing.slots[name].low

    __getattr__ = __getitem__


class LiveGraph:
    """The finished graph of a search as arrays. States have the numbers of :meth:`Graph.index`.

    ``result`` is what the search answered. Raises :class:`OutOfRoom` if ``memory_bytes`` are too few, and LocalError
    for a search that did not come to its end, a kind that does not exist, or a group that symmetry tears apart.
    """

    def __init__(
        self,
        search: Search,
        result: VectorResult,
        fairness: Fairness = by_flag,
        *,
        memory_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        if result.coverage != "exhausted":
            raise LocalError(
                f"model '{result.bounds.get('model', '')}': liveness is judged on a whole graph, and the search ended "
                f"{result.verdict} ({result.bound or 'at a violation'}); judge safety first, or raise the bounds"
            )
        if memory_bytes is not None and result.transitions * BYTES_PER_EDGE > memory_bytes:
            raise OutOfRoom(f"memory: {result.transitions:,} transitions take up to {BYTES_PER_EDGE} bytes each")
        self.graph: Graph = search.graph
        self.model: Model = search.graph.model
        self.treatments = [fairness(action) for action in self.model.actions]
        self.run = self.graph.index()
        self.count = len(self.run)
        self.groups = self._number_groups()
        if self.graph.symmetry:
            self._check_groups()
        self.edges = self._collect(progress)
        self.starts = sorted({self.number(state) for state in self.model.start_states()})

    def _number_groups(self) -> Groups:
        kinds: dict[str, str] = {}
        for treatment in self.treatments:
            if treatment.kind not in KINDS:
                raise LocalError(
                    f"fairness group '{treatment.group}': '{treatment.kind}' is none of {', '.join(KINDS)}"
                )
            if kinds.setdefault(treatment.group, treatment.kind) != treatment.kind:
                raise LocalError(
                    f"fairness group '{treatment.group}' is {kinds[treatment.group]} and {treatment.kind}; give all "
                    "actions of a group one kind"
                )
        names = tuple(kinds)
        self._code = {name: number for number, name in enumerate(names)}
        of_kind = {kind: tuple(self._code[name] for name in names if kinds[name] == kind) for kind in KINDS}
        return Groups(names, of_kind[WEAK], of_kind[STRONG], of_kind[FINITE])

    def _collect(self, progress: Progress | None) -> Edges:
        """Every step that changes the state and counts."""
        conditions = dict.fromkeys(treatment.only_if for treatment in self.treatments)
        counts = {condition: self.values(condition) for condition in conditions if condition is not None}
        parts: list[tuple[NDArray[np.int32], NDArray[np.int32], int]] = []
        for action, before, after in self.graph.successors(self.run):
            treatment = self.treatments[action]
            kept = before != after
            if treatment.only_if is not None:
                kept &= counts[treatment.only_if][before]
            if progress is not None:
                progress(self.count, 0, self.count - int(before[-1]) - 1)
            parts.append((before[kept].astype(np.int32), after[kept].astype(np.int32), self._code[treatment.group]))
        if not parts:
            return Edges(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int16))
        sources = np.concatenate([sources for sources, _, _ in parts])
        targets = np.concatenate([targets for _, targets, _ in parts])
        groups = np.repeat(np.array([code for *_, code in parts], np.int16), [len(piece[0]) for piece in parts])
        return Edges(sources, targets, groups)

    def values(self, expression: Expression) -> Truths:
        """What an expression says of every state."""
        result = np.empty(self.count, np.bool_)
        low = 0
        for chunk in self.graph.chunks(self.run):
            result[low : low + size(chunk)] = expression(ARRAY, _Chunk(self.graph.packing, chunk))
            low += size(chunk)
        return result

    def numbers(self, states: Sequence[State]) -> NDArray[np.intp]:
        """The numbers of states (of those that stand for them), -1 for one that was not found."""
        rows = with_key(self.graph.symmetry.canonical(self.graph.packing.pack(states)))
        return find(self.run.columns, rows)

    def number(self, state: State) -> int:
        """The number of one state."""
        return int(self.numbers([state])[0])

    def fairness(self) -> tuple[str, ...]:
        """What is assumed, a line for each kind."""
        kinds = {treatment.group: treatment.kind for treatment in self.treatments}
        lines = []
        for kind, words in KINDS.items():
            names = [name for name in self.groups.names if kinds[name] == kind]
            if names:
                lines.append(f"{words}: {', '.join(names)}")
        return tuple(lines)

    # --- symmetry -------------------------------------------------------------------------------------

    def _check_groups(self) -> None:
        """Raise LocalError if an exchange of records changes which groups are enabled."""
        at = np.linspace(0, self.count - 1, min(SPOT_STATES, self.count)).astype(np.intp)
        rows = without_key(tuple(np.asarray(column).take(at) for column in self.run.columns))
        seen = self._enabled(rows)
        for _, records, order in self.graph.symmetry.exchanges():
            differs = self._enabled(tuple(self.graph.symmetry.renamed(rows, order))) != seen
            if differs.any():
                code, row = (int(found[0]) for found in np.nonzero(differs))
                raise LocalError(
                    f"model '{self.model.name}': fairness group '{self.groups.names[code]}' is not the same when the "
                    f"records ({records[0][0]}, ...) and ({records[1][0]}, ...) are exchanged, in the state "
                    f"{describe(self.graph.packing.unpack(rows, row))}; judge liveness without that symmetry, or make "
                    "one group of both"
                )

    def _enabled(self, rows: Columns) -> NDArray[np.bool_]:
        """For each group and row whether the group is enabled."""
        result = np.zeros((len(self.groups.names), size(rows)), np.bool_)
        for low in range(0, size(rows), self.graph.expander.rows_max):
            for batch in self.graph.expander.expand(part(rows, low, low + self.graph.expander.rows_max)):
                moved = np.zeros(len(batch.rows), np.bool_)
                for new, old in zip(batch.after, batch.before, strict=True):
                    moved |= new != old
                result[self._code[self.treatments[batch.action].group], low + batch.rows[moved]] = True
        return result

    # --- real runs ------------------------------------------------------------------------------------

    def start_of(self, number: int) -> State:
        """A real initial state with that number."""
        return next(state for state in self.model.start_states() if self.number(state) == number)

    def walk(self, state: State, edges: Sequence[int]) -> Iterator[ModelStep]:
        """A real run from a real state along edges between representatives."""
        for edge in edges:
            group = self.groups.names[int(self.edges.groups[edge])]
            ways = [
                (action, after)
                for action, after in successors(self.model, state)
                if self.treatment(action).group == group
            ]
            fits = self.numbers([after for _, after in ways]) == self.edges.targets[edge]
            action, state = ways[int(np.argmax(fits))]
            assert fits.any(), "an edge of the graph is a step of the model"
            yield ModelStep(action.name, state)

    def treatment(self, action: Action) -> Treatment:
        """What is assumed of an action."""
        return self.treatments[self.model.actions.index(action)]


# --- judging ---------------------------------------------------------------------------------------------


def judge(live: LiveGraph, promise: Promise) -> Liveness:
    """Whether every fair run keeps a promise; if not, a shortest stem and a real cycle."""
    labels = traps(live.count, live.edges, live.groups, live.values(promise.goal))
    found = lasso(live.count, live.edges, live.groups, labels, live.starts)
    kept = Liveness(promise, "holds", "exhausted", live.count, len(live.edges.sources), fairness=live.fairness())
    if found is None:
        return kept
    first = int(live.edges.sources[found.stem[0]]) if found.stem else found.anchor
    start = live.start_of(first)
    stem = list(live.walk(start, found.stem))
    stem, cycle = _turns(live, start, stem, found.cycle)
    return replace(kept, verdict="violated", start=start, stem=tuple(stem), cycle=tuple(cycle), component=found.states)


def _turns(
    live: LiveGraph, start: State, stem: list[ModelStep], edges: Sequence[int]
) -> tuple[list[ModelStep], list[ModelStep]]:
    """Go round until the very state comes again; what went before it comes again is part of the stem."""
    state = stem[-1].state if stem else start
    if not edges:
        return stem, []
    seen = [state]
    turns: list[list[ModelStep]] = []
    while True:
        turns.append(list(live.walk(state, edges)))
        state = turns[-1][-1].state
        if state in seen:
            first = seen.index(state)
            return [*stem, *(s for turn in turns[:first] for s in turn)], [s for turn in turns[first:] for s in turn]
        seen.append(state)


def judge_model(
    model: Model,
    promises: Sequence[Promise],
    fairness: Fairness = by_flag,
    *,
    states_max: int | None = None,
    memory_bytes: int | None = None,
    stop: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> tuple[Liveness, ...]:
    """Explore a model, its clauses left aside, and judge promises; what does not fit is ``bounded``."""
    search = Search(replace(model, clauses=()), memory_bytes=memory_bytes)
    try:
        result = search.run(states_max=states_max, stop=stop, progress=progress)
        bound = result.bound
        if not bound:
            try:
                live = LiveGraph(search, result, fairness, memory_bytes=memory_bytes, progress=progress)
                return tuple(judge(live, promise) for promise in promises)
            except OutOfRoom as ended:
                bound = str(ended)
            except MemoryError:
                bound = "memory, as the system has no more"
        return tuple(Liveness(promise, "bounded", "bounded", result.states, 0, bound=bound) for promise in promises)
    finally:
        search.close()


# --- the point of no return ------------------------------------------------------------------------------


def doomed(live: LiveGraph, good: Expression, bad: Expression | None = None) -> Truths:
    """For every state whether no good end can be reached from it any more, by steps that are no faults and past no
    state that is bad."""
    lasting = live.edges.where(~np.isin(live.edges.groups, live.groups.finite))
    wrong = None if bad is None else live.values(bad)
    return ~reaching(live.count, lasting, live.values(good), wrong)


def no_return(
    live: LiveGraph, start: State, steps: Sequence[ModelStep], good: Expression, bad: Expression | None = None
) -> int | None:
    """The first step of a run (counted from 1; 0 for its start) after which no good end can be reached any more; None
    if one always can. Raises LocalError for a state that the graph does not have."""
    states = [start, *(step.state for step in steps)]
    numbers = live.numbers(states)
    if (numbers < 0).any():
        at = int(np.argmax(numbers < 0))
        raise LocalError(f"step {at} of the run leads to a state that the graph does not have: {describe(states[at])}")
    lost = np.flatnonzero(doomed(live, good, bad)[numbers])
    return int(lost[0]) if len(lost) else None


class NoReturn(NamedTuple):
    """``step`` is the first step after which no good end can be reached (0: none from the start on, None: one always
    can, or it is not known); ``bound`` says why it is not known, and is empty if it is. ``states``: how many were
    looked at."""

    step: int | None
    states: int
    bound: str = ""


def point_of_no_return(
    model: Model,
    start: State,
    steps: Sequence[ModelStep],
    good: Expression,
    fairness: Fairness = by_flag,
    *,
    bad: Expression | None = None,
    states_max: int | None = None,
    memory_bytes: int | None = None,
    stop: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> NoReturn:
    """:func:`no_return` of a run of a model, whose graph is explored for it, past states in which a clause is broken
    too. ``bad`` is what a good continuation must not pass through (default: whatever breaks a clause that the run's
    last state breaks). Where the graph does not fit, or an action leaves its bounds, it is not known."""
    search = Search(replace(model, clauses=()), memory_bytes=memory_bytes)
    try:
        result = search.run(states_max=states_max, stop=stop, progress=progress)
        if result.bound:
            return NoReturn(None, result.states, result.bound)
        live = LiveGraph(search, result, fairness, memory_bytes=memory_bytes, progress=progress)
        last = steps[-1].state if steps else start
        step = no_return(live, start, steps, good, bad or _broken_in(model, last))
        return NoReturn(step, result.states)
    except (OutOfRoom, LocalError) as ended:
        return NoReturn(None, 0, str(ended))
    except MemoryError:
        return NoReturn(None, 0, "memory, as the system has no more")
    finally:
        search.close()


def _broken_in(model: Model, state: State) -> Expression | None:
    """Whether a clause is broken that is broken in that state; None if it breaks none."""
    broken = [clause for clause in model.clauses if not holds(model, clause, state)]

    def expression(ops: Ops, view: View) -> Number:
        result = negate(broken[0].holds(ops, view))
        for clause in broken[1:]:
            result = result | negate(clause.holds(ops, view))
        return result

    return expression if broken else None
