"""Liveness on a finished graph: is there a fair run that stays away from a goal for ever?

A graph is three arrays: for each edge the state that it leaves, the state that it enters, and its *group*. A group is
what fairness speaks of: all edges of one action, whatever it chooses. An edge always changes the state; what leads back
to the same state is no edge. A group is *enabled* in a state that one of its edges leaves.

* A **weakly fair** group is taken again and again, or disabled again and again.
* A **strongly fair** group is taken again and again, or disabled from some point on.
* A **finite** group (a fault) happens so many times and then no more. It may lead to where a run gets stuck, but is no
  part of what happens there for ever, and nobody may rely on it.
* Every other group may happen or not.

A run that from some point on stays out of the goal ends up going round in one strongly connected component of what is
left when the goal and the edges of finite groups are taken away; a state that nothing changes is a component of its
own. It can do so fairly if and only if in that component each weakly fair group is taken or somewhere disabled, and
each strongly fair group is taken or nowhere enabled. If a strongly fair group fails that, the states in which it is
enabled are taken away too, and what is left of the component falls into smaller ones (as for Streett automata). The
components that remain are the *traps*. If there are none, every fair run comes to the goal again and again.

What is shown of a trap is a stem, as short as can be, and a cycle in which all that fairness demands does happen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int32]
Truths = NDArray[np.bool_]

BYTES_PER_EDGE = 64
"""What judging takes at its peak: the edges, an order of them, and what the search for components makes of them."""
NOWHERE, START = -1, -2


class Edges(NamedTuple):
    """The edges of a graph: states before and after, and the number of the group."""

    sources: Numbers
    targets: Numbers
    groups: NDArray[np.int16]

    def where(self, which: Truths) -> Edges:
        """Those of which it is true."""
        return Edges(self.sources[which], self.targets[which], self.groups[which])


@dataclass(frozen=True)
class Groups:
    """The groups by number: their names, and the numbers of those that are weakly fair, strongly fair, finite."""

    names: tuple[str, ...]
    weak: tuple[int, ...] = ()
    strong: tuple[int, ...] = ()
    finite: tuple[int, ...] = ()


class Lasso(NamedTuple):
    """A run that stays out of the goal: the numbers of the edges that lead to ``anchor``, and of those that lead from
    there back to it for ever (none if nothing changes any more). ``states``: how many the component has."""

    stem: tuple[int, ...]
    anchor: int
    cycle: tuple[int, ...]
    states: int


class Ways:
    """Edges in the order of the state that they leave (or, ``backward``, enter)."""

    def __init__(self, count: int, edges: Edges, which: NDArray[np.intp] | None = None, *, backward: bool = False):
        sources, targets = (edges.targets, edges.sources) if backward else (edges.sources, edges.targets)
        if which is not None:
            sources, targets = sources[which], targets[which]
        order = np.argsort(sources, kind="stable")
        self.count = count
        self.edges = order if which is None else which[order]
        self.targets = targets[order]
        self.first = np.zeros(count + 1, np.int64)
        np.cumsum(np.bincount(sources, minlength=count), out=self.first[1:])

    def spread(self, starts: Iterable[int], within: Truths | None = None) -> tuple[NDArray[np.int64], list[Numbers]]:
        """For every state the edge by which it is reached first (``START``, or ``NOWHERE``), and the states at each
        distance."""
        came = np.full(self.count, NOWHERE, np.int64)
        level = np.fromiter(starts, np.int32)
        came[level] = START
        levels = []
        while len(level):
            levels.append(level)
            at = self._leaving(level)
            targets = self.targets[at]
            new = came[targets] == NOWHERE
            if within is not None:
                new &= within[targets]
            targets, at = targets[new], at[new]
            level, positions = np.unique(targets, return_index=True)  # the first edge of each, as ``at`` has them
            came[level] = self.edges[at[positions]]
        return came, levels

    def _leaving(self, states: Numbers) -> NDArray[np.int64]:
        """The positions of the edges that leave the states."""
        low, high = self.first[states], self.first[states + 1]
        sizes = high - low
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        return np.asarray(np.arange(total) + np.repeat(low - (ends - sizes), sizes), np.int64)


def reaching(count: int, edges: Edges, good: Truths, bad: Truths | None = None) -> Truths:
    """For every state whether a good one can be reached by the edges, itself included, past no bad one."""
    within = None if bad is None else ~bad
    starts = np.flatnonzero(good if within is None else good & within)
    came, _ = Ways(count, edges, backward=True).spread(starts.tolist(), within)
    return np.asarray(came != NOWHERE)


def traps(count: int, edges: Edges, groups: Groups, goal: Truths) -> Numbers:
    """For every state the number of the trap that it belongs to, -1 for none. Every state counts, reachable or not."""
    lasting = ~np.isin(edges.groups, groups.finite)
    fair = np.isin(edges.groups, (*groups.weak, *groups.strong))
    moves = np.zeros(count, np.bool_)
    moves[edges.sources[lasting & fair]] = True
    alive = ~goal
    while True:
        inside = edges.where(lasting & alive[edges.sources] & alive[edges.targets])
        labels = _components(count, inside)
        sizes = np.bincount(labels, minlength=1)
        # A state on no cycle is left by whatever is fair there; only those that nothing has to leave stay in question.
        alive &= (sizes[labels] > 1) | ~moves
        labels = _compact(labels, alive)
        removed = _strongly_unfair(edges.where(lasting & alive[edges.sources]), groups, labels)
        if not removed.any():
            return _weakly_fair(edges.where(lasting & alive[edges.sources]), groups, labels)
        alive &= ~removed


def _compact(labels: Numbers, alive: Truths) -> Numbers:
    """The components that are left, numbered from 0 on; -1 for states that are not."""
    result = np.full(len(labels), -1, np.int32)
    result[alive] = np.unique(labels[alive], return_inverse=True)[1]
    return result


def _components(count: int, edges: Edges) -> Numbers:
    """The strongly connected component of every state."""
    from scipy.sparse import csr_matrix  # it takes a while to load, and most commands do without
    from scipy.sparse.csgraph import connected_components

    if not len(edges.sources):
        return np.arange(count, dtype=np.int32)
    ways = Ways(count, edges)
    matrix = csr_matrix((np.ones(len(ways.targets), np.int8), ways.targets, ways.first), shape=(count, count))
    _, labels = connected_components(matrix, directed=True, connection="strong")
    return np.asarray(labels, np.int32)


def _strongly_unfair(edges: Edges, groups: Groups, labels: Numbers) -> Truths:
    """The states in which a strongly fair group is enabled that their component never takes."""
    removed = np.zeros(len(labels), np.bool_)
    for group in groups.strong:
        sources, taken = _seen(edges, group, labels)
        removed[sources[~taken[labels[sources]]]] = True
    return removed


def _weakly_fair(edges: Edges, groups: Groups, labels: Numbers) -> Numbers:
    """The components in which every weakly fair group is taken or somewhere disabled."""
    inside = labels >= 0
    sizes = np.bincount(labels[inside])
    good = np.ones(len(sizes), np.bool_)
    for group in groups.weak:
        sources, taken = _seen(edges, group, labels)
        enabled = np.bincount(labels[sources], minlength=len(sizes))
        good &= taken | (enabled < sizes)
    result = labels.copy()
    result[inside] = np.where(good[labels[inside]], labels[inside], -1)
    return result


def _seen(edges: Edges, group: int, labels: Numbers) -> tuple[Numbers, Truths]:
    """The states that a group's edges leave, and for each component whether one of them stays in it."""
    of_group = edges.where(edges.groups == group)
    stays = labels[of_group.sources] == labels[of_group.targets]
    taken = np.zeros(int(labels.max(initial=-1)) + 1, np.bool_)
    taken[labels[of_group.sources[stays]]] = True
    return np.unique(of_group.sources), taken


# --- what is shown ---------------------------------------------------------------------------------------


def lasso(
    count: int, edges: Edges, groups: Groups, labels: Numbers, starts: Iterable[int], *, faults: bool = True
) -> Lasso | None:
    """A shortest way from the starts to a trap, and a fair cycle in it; None if no trap can be reached.

    ``faults``: the way may take edges of finite groups.
    """
    which = None if faults else np.flatnonzero(~np.isin(edges.groups, groups.finite))
    came, levels = Ways(count, edges, which).spread(starts)
    for level in levels:
        hits = level[labels[level] >= 0]
        if len(hits):
            anchor = int(hits.min())
            within = labels == labels[anchor]
            stem = _back(came, edges, anchor)
            return Lasso(tuple(stem), anchor, _cycle(count, edges, groups, within, anchor), int(within.sum()))
    return None


def _back(came: NDArray[np.int64], edges: Edges, state: int) -> list[int]:
    """The edges by which a state was reached, from the start on."""
    way = []
    while came[state] >= 0:
        way.append(int(came[state]))
        state = int(edges.sources[way[-1]])
    return way[::-1]


def _cycle(count: int, edges: Edges, groups: Groups, within: Truths, anchor: int) -> tuple[int, ...]:
    """A way round a trap that does all that fairness demands of it: again and again the nearest thing that is still
    missing, and home."""
    lasting = ~np.isin(edges.groups, groups.finite)
    ways = Ways(count, edges, np.flatnonzero(lasting & within[edges.sources] & within[edges.targets]))
    missing = _demands(edges, groups, within, lasting)
    at = anchor
    cycle: list[int] = []
    while True:
        missing = [demand for demand in missing if not demand.states[at]]
        if not missing:
            break
        came, levels = ways.spread([at], within)
        state, edge = _nearest(missing, edges, levels)
        way = [*_back(came, edges, state), *edge]
        cycle += way
        at = int(edges.targets[way[-1]])
        passed = edges.targets[way]
        taken = set(way)
        missing = [d for d in missing if not d.states[passed].any() and not taken.intersection(d.edges.tolist())]
    if at != anchor:
        came, _ = ways.spread([at], within)
        cycle += _back(came, edges, anchor)
    return tuple(cycle)


class _Demand(NamedTuple):
    """What a cycle must meet: one of the edges, or one of the states."""

    edges: NDArray[np.intp]
    states: Truths


def _demands(edges: Edges, groups: Groups, within: Truths, lasting: Truths) -> list[_Demand]:
    demands = []
    for group in sorted((*groups.weak, *groups.strong)):
        of_group = lasting & (edges.groups == group) & within[edges.sources]
        disabled = within.copy()
        disabled[edges.sources[of_group]] = False
        if group in groups.strong and not disabled[within].all():
            disabled[:] = False  # disabled now and then is no excuse for what is strongly fair
        demands.append(_Demand(np.flatnonzero(of_group & within[edges.targets]), disabled))
    return demands


def _nearest(missing: list[_Demand], edges: Edges, levels: list[Numbers]) -> tuple[int, list[int]]:
    """The nearest state at which a demand is met; or one at which an edge begins that meets it, and that edge."""
    for level in levels:
        reached = np.zeros(len(missing[0].states), np.bool_)
        reached[level] = True
        for demand in missing:
            states = np.flatnonzero(demand.states & reached)
            if len(states):
                return int(states[0]), []
            leaving = demand.edges[reached[edges.sources[demand.edges]]]
            if len(leaving):
                return int(edges.sources[leaving[0]]), [int(leaving[0])]
    raise AssertionError("a trap does not have what made it one")
