"""The graph of the protocol model against the graph of the scalar engine, step by step.

The scalar engine runs the real objects. Its states are read in the fields of the model (:mod:`sim.model.projection`),
and the two graphs are walked together; which step corresponds to which is said in :mod:`sim.model.correspondence`.

*Forward*: every step of the scalar graph, with every fault in every place and every answer of the allocator, is
followed in the model. From each state of the model that stands for the source (found on the way there), the step's own
action is taken, then what the objects do within the same step, until the model shows what the world shows. It may also
stutter, if the world shows nothing new. Nothing else may be taken. A step that cannot be followed is a
:class:`Mismatch`. There being none means that the model has every run of the world.

*Backward*: every step of the model that no step of the world needed is :class:`Unneeded`: that the model shows this,
takes an action of that kind, and shows that. What the objects always do within a step is taken at once here (a state
in which it is still to be done is none of the world's), and so is a tick, which treats every request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

from fsm.errors import LocalError
from sim import actions
from sim.choices import Scripted
from sim.engines.check import new_world
from sim.model.correspondence import ALIKE, GRANT, TICKS, Cue, Cues, bounds_of, eager, model_of
from sim.model.form import Fields, Model, State
from sim.model.projection import Projection, values_by_token
from sim.model.protocol_bounded import Layout, kind_of
from sim.scenario import Scenario
from sim.state import Key, StateSpace
from sim.vector.graph import Graph
from sim.vector.search import Search
from sim.world import Action

STATES_MAX = 100_000
"""The default bound of either graph."""

FOREVER_TICKS = 1_000_000
"""A tombstone is never forgotten, as the model assumes: it outlives everything else."""

BATCH = 2_048
"""So many states of the world are projected at once."""

Progress = Callable[[int, int], None]
"""Told now and then: states of the world that were found, and how many of them are still to be expanded."""


class TooLarge(LocalError):
    """Either graph has more states than were allowed."""


Path = tuple[tuple[int, int, int], ...]
"""Steps of the model: state before, action, state after."""

Part = tuple[int, str, int]
"""A step under the projection: what is shown before, the kind of the action, what is shown after."""

TICK = "tick"
DECIDES = tuple(kind for kind in TICKS if kind != GRANT)


class Rows:
    """What is shown of states, by number."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def number(self, row: bytes) -> int:
        """The number of a row; equal rows have one number."""
        return self._numbers.setdefault(row, len(self._numbers))


# --- the graph of the world ------------------------------------------------------------------------------


class Edge(NamedTuple):
    """A step of the world: the state after it, what it is in the model, and in words."""

    target: int
    cue: Cue
    text: str


class ScalarGraph:
    """Every state of a scenario that the scalar engine tells apart, and every step. ``shown[state][token]`` is what a
    state shows while that token is followed.

    ``endless`` names faults whose budget is never used up. Raises TooLarge for more than ``states_max`` states, and
    LocalError for a scenario in which a property is broken.
    """

    def __init__(
        self,
        scenario: Scenario,
        projection: Projection,
        rows: Rows,
        endless: Iterable[str],
        states_max: int,
        progress: Progress | None,
    ) -> None:
        self.world = new_world(scenario)
        self.space = StateSpace(self.world)
        self.projection, self.rows = projection, rows
        self.endless = {name: self.world.budget[name] for name in endless}
        self.cues = Cues(scenario)
        self.index: dict[Key, int] = {}
        self.keys: list[Key] = []
        self.shown: list[list[int]] = []
        self.edges: list[list[Edge]] = []
        self.steps = 0
        self._cues: dict[Cue, Cue] = {}
        self._unread: list[State] = []
        self._search(states_max, progress)
        self._show()

    def _search(self, states_max: int, progress: Progress | None) -> None:
        first = self.space.save()
        self.space.remember()
        self.space.dirty()
        self._add(first)
        number = 0
        while number < len(self.keys):
            self._expand(number)
            number += 1
            if progress is not None and number % BATCH == 0:
                progress(len(self.keys), len(self.keys) - number)
            if len(self.keys) > states_max:
                raise TooLarge(f"the scenario has more than {states_max:,} states; choose a smaller one")

    def _add(self, key: Key) -> int:
        number = self.index.setdefault(key, len(self.keys))
        if number == len(self.keys):
            self.keys.append(key)
            self.edges.append([])
            self._unread += self.read(number)
            if len(self._unread) >= BATCH:
                self._show()
        return number

    def _show(self) -> None:
        """Project what was read, many states at once."""
        states, tokens = self._unread, self.projection.layout.bounds.size
        if states:
            columns = {name: np.array([state[name] for state in states], np.int64) for name in states[0]}
            found = [self.rows.number(row.tobytes()) for row in self.projection.rows(Fields(columns), len(states))]
            self.shown += [found[low : low + tokens] for low in range(0, len(found), tokens)]
        self._unread = []

    def read(self, number: int) -> list[State]:
        """A state in the fields of the model, for each token that may be followed."""
        self.space.load(self.keys[number])
        return values_by_token(self.world, self.projection.layout)

    def _chances(self) -> list[Action]:
        """The faults that may strike. A sender may also crash after everything is over, where the scalar engine
        stops."""
        world = self.world
        crashes: list[Action] = []
        if world.all_ended() and world.budget["sender_crash"]:
            crashes = [("sender_crash", rank) for rank, served in enumerate(world.served_by) if served]
        return ([] if world.done() else actions.faults(world)) + crashes

    def _expand(self, number: int) -> None:
        world, space, script = self.world, self.space, Scripted()
        key = self.keys[number]
        space.load(key)
        course = [] if world.done() else actions.enabled(world)
        for action in course + self._chances():
            more, script.prefix = True, []
            while more:
                script.restart()
                space.load(key)
                cue, text = self.cues.of(world, action), actions.describe_action(world, action)
                space.before(action)
                actions.apply(world, action, script)
                space.after(action)
                if world.monitors.violations:
                    broken = world.monitors.violations[0]
                    raise LocalError(f"the scenario breaks {broken.property}: {broken.text}; nothing is compared")
                world.budget.update(self.endless)
                self.steps += 1
                target = self._add(space.save())
                self.edges[number].append(Edge(target, self._cues.setdefault(cue, cue), text))
                more = script.advance()


# --- the graph of the model ------------------------------------------------------------------------------


class ModelGraph:
    """Every state of the model by number, what it shows, which token it follows, and its steps that change anything:
    (action, state after)."""

    def __init__(self, model: Model, projection: Projection, rows: Rows, states_max: int) -> None:
        self.model, self.projection = model, projection
        self.names = [action.name for action in model.actions]
        self.kinds = [kind_of(name) for name in self.names]
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.rooms = [f"r{number}: " for number in range(projection.layout.bounds.rooms)]
        self.shown: list[int] = []
        self.tokens: list[int] = []
        self.edges: list[list[tuple[int, int]]] = []
        self.steps = 0
        search = Search(model)
        try:
            result = search.run(states_max=states_max)
            if result.verdict != "holds":
                raise TooLarge(f"the model was not exhausted ({result.bound}); choose a smaller scenario")
            self._read(search.graph, rows)
        finally:
            search.close()

    def _read(self, graph: Graph, rows: Rows) -> None:
        run = graph.index()
        self.packing = graph.packing
        self.chunks = [tuple(column.copy() for column in chunk) for chunk in graph.chunks(run)]
        for chunk in self.chunks:
            columns = {f.name: self.packing.field(chunk, f.name).astype(np.int64) + f.low for f in self.model.fields}
            view = Fields(columns, self.model.name)
            self.shown += [rows.number(row.tobytes()) for row in self.projection.rows(view, len(chunk[0]))]
            self.tokens += columns[f"{self.projection.layout.places[0].room}_token"].tolist()
        self.edges = [[] for _ in self.shown]
        for action, before, after in graph.successors(run):
            self.steps += len(before)
            for source, target in zip(before.tolist(), after.tolist(), strict=True):
                if source != target:
                    self.edges[source].append((action, target))
        self.starts = [self._find(state) for state in self.model.start_states()]

    def _find(self, state: State) -> int:
        row, low = self.packing.pack([state]), 0
        for chunk in self.chunks:
            hit = np.ones(len(chunk[0]), np.bool_)
            for column, sought in zip(chunk, row, strict=True):
                hit &= column == sought[0]
            if hit.any():
                return low + int(np.argmax(hit))
            low += len(chunk[0])
        raise AssertionError("a start state is not among the states that were found")

    def state(self, number: int) -> State:
        """A state by number."""
        for chunk in self.chunks:
            if number < len(chunk[0]):
                return self.packing.unpack(chunk, number)
            number -= len(chunk[0])
        raise IndexError(number)


# --- walking together ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mismatch:
    """A step of the world that the model cannot follow: in words, with the steps before it and what it should be in the
    model. ``differs``: fields as the world shows them, and as the nearest state of the model does that may be
    reached."""

    text: str
    trace: tuple[str, ...]
    cue: Cue
    differs: Mapping[str, tuple[int, int]]

    def __str__(self) -> str:
        fields = ", ".join(f"{name} is {world}, in the model {model}" for name, (world, model) in self.differs.items())
        way = "; ".join(self.trace) or "the start"
        own = ", ".join(self.cue.first) or "nothing"
        return f"after {way}: the model cannot follow '{self.text}' ({own}): {fields}"


@dataclass(frozen=True)
class Unneeded:
    """A step of the model that no step of the world needs: the kind of its action, the state before by name, and the
    fields that change."""

    kind: str
    before: Mapping[str, int]
    changes: Mapping[str, tuple[int, int]]


@dataclass
class Agreement:
    """What became of the comparison. ``pairs``: of a state of the world and one of the model that stands for it.
    ``paths``: how many steps of the model a step of the world is, and how often.

    Of the steps of the model, taken where nothing is still to be done at once: ``matched`` are steps of the world,
    ``stutters`` show nothing, ``unneeded`` are none of the world's. ``between`` counts the states of the model in which
    something is still to be done at once.
    """

    states: int
    steps: int
    model_states: int
    model_steps: int
    pairs: int
    paths: dict[int, int]
    mismatch: Mismatch | None = None
    matched: int = 0
    stutters: int = 0
    between: int = 0
    unneeded: list[Unneeded] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """``equal``: each step of either graph is one of the other; ``followed``: each step of the world is one of the
        model; ``differs``."""
        return "differs" if self.mismatch is not None else "followed" if self.unneeded else "equal"

    def kinds(self) -> dict[str, int]:
        """How many steps were not needed, by the kind of their action."""
        found: dict[str, int] = {}
        for step in self.unneeded:
            found[step.kind] = found.get(step.kind, 0) + 1
        return dict(sorted(found.items()))


def agree(
    scenario: Scenario,
    *,
    endless: Iterable[str] = (),
    whole: bool = False,
    model: Model | None = None,
    states_max: int = STATES_MAX,
    progress: Progress | None = None,
) -> Agreement:
    """Compare the graphs of a scenario and of the model of its size.

    ``endless`` names faults whose budget is not used up. ``whole`` leaves in the model what the world does not do
    (:data:`sim.model.correspondence.MODEL_ONLY`). ``model`` is another model than :func:`model_of` makes. Raises
    TooLarge for a scenario that is too large, and LocalError for one that has what the model does not hold.
    """
    time = msgspec.structs.replace(scenario.time, tombstone_ticks=FOREVER_TICKS)
    scenario = msgspec.structs.replace(scenario, time=time)
    bounds = bounds_of(scenario)
    model = model or model_of(scenario, bounds, whole=whole)
    projection = Projection(Layout(bounds), landed_required=model.initial[0]["landed_required"] == 1)
    rows = Rows()
    scalar = ScalarGraph(scenario, projection, rows, endless, states_max, progress)
    return _Walk(scalar, ModelGraph(model, projection, rows, states_max), eager(scenario)).run()


class _Walk:
    def __init__(self, scalar: ScalarGraph, model: ModelGraph, at_once: frozenset[str]) -> None:
        self.scalar, self.model, self.at_once = scalar, model, at_once
        self.used: dict[Path, None] = {}
        self.paths: dict[int, int] = {}
        self.came: dict[tuple[int, int], tuple[tuple[int, int], str] | None] = {}
        self._todo: list[tuple[int, int]] = []
        self._known: dict[tuple[int, Cue, int], Path | None] = {}

    def run(self) -> Agreement:
        mismatch = self._forward()
        scalar, model = self.scalar, self.model
        paths = dict(sorted(self.paths.items()))
        result = Agreement(
            len(scalar.keys), scalar.steps, len(model.edges), model.steps, len(self.came), paths, mismatch
        )  # fmt: skip
        if mismatch is None:
            self._backward(result)
        return result

    # --- forward --------------------------------------------------------------------------------------

    def _forward(self) -> Mismatch | None:
        for start in self.model.starts:
            found = self._follow_edge((0, start), Edge(0, Cue((), self.at_once), "submit"), None)
            if found is not None:
                return found
        for pair in self._todo:
            for edge in self.scalar.edges[pair[0]]:
                found = self._follow_edge(pair, edge, (pair, edge.text))
                if found is not None:
                    return found
        return None

    def _follow_edge(
        self, pair: tuple[int, int], edge: Edge, came: tuple[tuple[int, int], str] | None
    ) -> Mismatch | None:
        state = pair[1]
        path = self._follow(state, edge.cue, self.scalar.shown[edge.target][self.model.tokens[state]])
        if path is None:
            return self._mismatch(pair, edge)
        self.used.setdefault(path)
        self.paths[len(path)] = self.paths.get(len(path), 0) + 1
        after = edge.target, path[-1][2] if path else state
        if after not in self.came:
            self.came[after] = came
            self._todo.append(after)
        return None

    def _follow(self, state: int, cue: Cue, goal: int) -> Path | None:
        """A way in the model that a cue allows to a state that shows ``goal``; ``None`` if there is none."""
        key = state, cue, goal
        if key not in self._known:
            taken = self._taken(state, cue)
            rest = self._shortest(taken[-1][2] if taken else state, cue.then, goal)
            if rest is None and taken:
                self._known[key] = self._shortest(state, cue.then, goal)
            else:
                self._known[key] = None if rest is None else (*taken, *rest)
        return self._known[key]

    def _taken(self, state: int, cue: Cue) -> Path:
        """The step's own actions, those that may be taken."""
        taken: list[tuple[int, int, int]] = []
        for number in (self.model.numbers.get(name) for name in cue.first):
            for action, target in self.model.edges[state]:
                if action == number:
                    taken.append((state, action, target))
                    state = target
                    break
        return tuple(taken)

    def _shortest(self, state: int, kinds: frozenset[str], goal: int) -> Path | None:
        model = self.model
        before: dict[int, tuple[int, int] | None] = {state: None}
        for at in (reached := [state]):
            if model.shown[at] == goal:
                return _way(before, at)
            for action, target in model.edges[at]:
                if target not in before and model.kinds[action] in kinds:
                    before[target] = at, action
                    reached.append(target)
        return None

    def _mismatch(self, pair: tuple[int, int], edge: Edge) -> Mismatch:
        trace: list[str] = []
        came = self.came.get(pair)
        while came is not None:
            trace.append(came[1])
            came = self.came[came[0]]
        projection = self.model.projection
        world = projection.named(self.scalar.read(edge.target)[self.model.tokens[pair[1]]])
        nearest: dict[str, tuple[int, int]] | None = None
        for number in self._reached(pair[1], edge.cue):
            shown = projection.named(self.model.state(number))
            differs = {name: (value, shown[name]) for name, value in world.items() if shown[name] != value}
            if nearest is None or len(differs) < len(nearest):
                nearest = differs
        return Mismatch(edge.text, tuple(reversed(trace)), edge.cue, nearest or {})

    def _reached(self, state: int, cue: Cue) -> list[int]:
        allowed = [self.model.numbers.get(name) for name in cue.first]
        found = [state]
        for at in found:
            for action, target in self.model.edges[at]:
                if target not in found and (action in allowed or self.model.kinds[action] in cue.then):
                    found.append(target)
        return found

    # --- backward -------------------------------------------------------------------------------------

    def _settled(self, state: int) -> int:
        """The state once all is done that is done at once."""
        seen = [state]
        while True:
            after = [
                target for action, target in self.model.edges[state]
                if self.model.kinds[action] in self.at_once and target not in seen
            ]  # fmt: skip
            if not after:
                return state
            state = after[0]
            seen.append(state)

    def _backward(self, result: Agreement) -> None:
        needed = dict.fromkeys(step for path in self.used for step in self._parts(path))
        listed: dict[Part, None] = {}
        todo = list(dict.fromkeys(self._settled(start) for start in self.model.starts))
        settled = dict.fromkeys(todo)
        for state in todo:
            for kind, after in (*self._steps(state), *self._ticks(state)):
                if after not in settled:
                    settled[after] = None
                    todo.append(after)
                step = self.model.shown[state], ALIKE.get(kind, kind), self.model.shown[after]
                if step[0] == step[2]:
                    result.stutters += 1
                elif step in needed:
                    result.matched += 1
                elif step not in listed:
                    listed[step] = None
                    result.unneeded.append(self._unneeded(state, kind, after))
        result.between = len(self.model.edges) - len(settled)

    def _parts(self, path: Path) -> Iterator[Part]:
        """A step of the world as steps of the model under the projection: what it does first, and its tick."""
        model, rest = self.model, list(path)
        while rest:
            state, action, after = rest.pop(0)
            kind = model.kinds[action]
            if kind in self.at_once:
                continue
            if kind in TICKS:
                after = rest[-1][2] if rest else after
                kind, rest = TICK, []
            yield model.shown[state], ALIKE.get(kind, kind), model.shown[self._settled(after)]

    def _steps(self, state: int) -> Iterator[tuple[str, int]]:
        """Every step but a tick, and where it leads."""
        for action, target in self.model.edges[state]:
            kind = self.model.kinds[action]
            if kind not in self.at_once and kind not in TICKS:
                yield kind, self._settled(target)

    def _ticks(self, state: int) -> Iterator[tuple[str, int]]:
        """Where a tick may lead: it decides about every request, and grants to any of them once or not."""
        model, at = self.model, state
        for room in model.rooms:
            decided = [t for a, t in model.edges[at] if model.kinds[a] in DECIDES and model.names[a].startswith(room)]
            at = self._settled(decided[0]) if decided else at
        todo: list[tuple[int, tuple[str, ...]]] = [(at, ())]
        found = dict.fromkeys(todo)
        for now, served in todo:
            for action, target in model.edges[now]:
                room = model.names[action].partition(" ")[0]
                if model.kinds[action] == GRANT and room not in served:
                    after = self._settled(target), tuple(sorted((*served, room)))
                    if after not in found:
                        found[after] = None
                        todo.append(after)
        for end in dict.fromkeys(end for end, _ in found):
            if end != state:
                yield TICK, end

    def _unneeded(self, state: int, kind: str, after: int) -> Unneeded:
        projection = self.model.projection
        before = projection.named(self.model.state(state))
        shown = projection.named(self.model.state(after))
        changes = {name: (value, shown[name]) for name, value in before.items() if shown[name] != value}
        return Unneeded(kind, before, changes)


def _way(before: dict[int, tuple[int, int] | None], at: int) -> Path:
    steps: list[tuple[int, int, int]] = []
    while (came := before[at]) is not None:
        steps.append((came[0], came[1], at))
        at = came[0]
    return tuple(reversed(steps))


__all__ = ["Agreement", "Mismatch", "TooLarge", "Unneeded", "agree"]
