"""The states around a run, for a page where a reader takes other choices than the run did.

A node is a state of the world, exact (blocks keep their numbers and generations), together with what the page shows
of it that the world has forgotten, such as how much was copied out. So whichever way leads to a node, the changes of
the edges add up to the same picture. Only time is relative, as in ``check``: how long it is until the next timer
counts, and not what time it is.

Of free blocks that nothing tells apart, an allocator that chooses as badly as it can is let try one; where the run
itself took another, that is there too. The search starts from all states of the run at once and goes breadth first
from there, so where a bound cuts it short, what is nearest to the run is there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from fsm.events import Granted
from fsm.invariants import Violation
from fsm.trace import Pick, Trace
from sim import actions
from sim.choices import Recording, Replayed, Scripted
from sim.cli_view import blocks_text
from sim.engines.replay import scenario_of, world_of
from sim.engines.simulate import judge_end
from sim.explorer.page import Edge, Graph, Standstill, Step
from sim.explorer.record import Recorder
from sim.state import Key, StateSpace
from sim.world import Action

NODES_MAX = 2_000
"""The default bound."""

_LEAPS = ("by the resend interval", "past the deadline", "past the queue's deadline")
_POISONS = ("cut short", "with a foreign epoch", "with a wrong number")

_REPORT_EVERY = 50

Node = tuple[Key, int, Any, tuple[str, ...]]
"""The world's state, its ticks as far as they count, the recorder's memory, and the properties that were broken."""


class _Exact(StateSpace):
    """States that are the same only if nothing at all differs but the time of day."""

    def _canonical(self, raw: list[int]) -> Key:
        return tuple(raw)


class _Kinds:
    """Block -> what tells it from other free blocks, in the midst of an action: its record and all that refers to it in
    the state before, its content now, and whether it has changed hands since."""

    def __init__(self, space: StateSpace, key: Key, rank: int) -> None:
        self._space, self._key, self._rank = space, key, rank
        self._known: list[tuple[Hashable, int]] | None = None

    def __call__(self, block: int) -> Hashable:
        world = self._space.world
        if self._known is None:
            records = self._space.tables[self._rank].values[self._key[self._rank]][2][0]
            kinds = self._space.kinds(self._key, self._rank)
            self._known = [(kind, record.generation) for kind, record in zip(kinds, records, strict=True)]
        kind, generation = self._known[block]
        memory = world.memories[self._rank]
        aged = world.receivers[self._rank].ledger.record(block).generation - generation
        return (kind, memory.cells[block], memory.headers[block], aged)


class _Took(NamedTuple):
    """What came of one action."""

    step: Step
    choice: str
    violation: Violation | None
    node: int


class _Builder:
    def __init__(self, trace: Trace, nodes_max: int, progress: Callable[[int], None] | None) -> None:
        self.nodes_max, self.progress = nodes_max, progress
        self.world = world_of(trace.header, scenario_of(trace.header), notes=True)
        self.recorder = Recorder(self.world)
        self.recorder.first()
        self.recorder.time_is_relative = True
        self.space = _Exact(self.world)
        last_ticks = max((request.arrives_at_tick for request in self.world.requests), default=0)
        self._last_ticks = 0 if self.world.arrive_any_time else last_ticks
        self.nodes: list[Node] = []
        self._numbers: dict[Node, int] = {}
        self.steps: list[Step] = []
        self._step_numbers: dict[Step, int] = {}
        self.choices: dict[str, int] = {}
        self.edges: list[Edge] = []
        self.ends: list[int] = []
        self.standstills: list[Standstill] = []
        self._own: dict[int, list[_Took]] = {}
        """What the run itself did in a node."""

    # --- nodes ----------------------------------------------------------------------------------------

    def number(self, broken: tuple[str, ...] = ()) -> int:
        """The node of the state that the world is in now."""
        world = self.world
        waits = world.arrived < len(world.arrivals)
        ticks = min(world.ticks, self._last_ticks) if waits else 0
        node = (self.space.save(), ticks, self.recorder.save(), broken)
        number = self._numbers.setdefault(node, len(self.nodes))
        if number == len(self.nodes):
            self.nodes.append(node)
        return number

    def load(self, number: int) -> None:
        """Put world and recorder into the state of a node."""
        key, ticks, memory, _ = self.nodes[number]
        self.space.load(key)
        self.world.ticks = ticks
        self.recorder.load(memory)

    # --- edges ----------------------------------------------------------------------------------------

    def take(self, action: Action, choices: Recording | Scripted) -> _Took:
        """Do one action in the state that was loaded."""
        world = self.world
        words = self.recorder.words(action)
        step = self.recorder.step(0, action, choices)
        violation = world.monitors.violations[0] if world.monitors.violations else None
        broken = tuple([found.property for found in world.monitors.violations])
        choice = words + _answers(choices.picks, world.events)
        return _Took(step, choice, violation, self.number(broken))

    def expand(self, number: int) -> None:
        """Every choice that a node offers."""
        self.load(number)
        world = self.world
        if self.nodes[number][3]:
            return
        course = actions.enabled(world)
        if world.done() or not course:
            self._end(number)
            return
        found: list[_Took] = []
        for action in course + actions.faults(world):
            script = Scripted()
            more = True
            while more:
                script.restart()
                self.load(number)
                self._use_kinds(number)
                found.append(self.take(action, script))
                more = script.advance()
        found += [own for own in self._own.get(number, ()) if own not in found]
        self._add_all(number, found)

    def _use_kinds(self, number: int) -> None:
        if self.space.symmetric:
            for rank, receiver in enumerate(self.world.receivers):
                receiver.block_kind = _Kinds(self.space, self.nodes[number][0], rank)

    def _end(self, number: int) -> None:
        wrong = judge_end(self.world)
        if wrong is None:
            self.ends.append(number)
        else:
            self.standstills.append(Standstill(number, wrong.property, wrong.text))

    def _add_all(self, source: int, found: list[_Took]) -> None:
        """The edges of a node; choices that read alike are numbered."""
        alike: dict[str, int] = {}
        for took in found:
            count = alike[took.choice] = alike.get(took.choice, 0) + 1
            self._add(source, took, took.choice if count == 1 else f"{took.choice} ({count})")

    def _add(self, source: int, took: _Took, choice: str) -> None:
        step = self._step_numbers.setdefault(took.step, len(self.steps))
        if step == len(self.steps):
            self.steps.append(took.step)
        name = self.choices.setdefault(choice, len(self.choices))
        broken = self.nodes[took.node][3]
        text = took.violation.text if took.violation is not None else ""
        self.edges.append(Edge(source, took.node, name, step, broken, text))

    # --- all of it ------------------------------------------------------------------------------------

    def path(self, trace: Trace) -> list[int]:
        """The nodes of the run itself."""
        numbers = [self.number()]
        for step in (*trace.steps, *trace.ending.endless):
            if self.nodes[numbers[-1]][3]:
                numbers.append(-1)  # the run passes by what it breaks, and nothing follows that in a graph
                continue
            self.load(numbers[-1])
            own = self.take(step.action, Recording(Replayed(step.picks)))
            taken = self._own.setdefault(numbers[-1], [])
            if own not in taken:
                taken.append(own)
            numbers.append(own.node)
        return numbers

    def build(self, trace: Trace) -> Graph:
        """The graph."""
        path = self.path(trace)
        expanded, depth, level, own = 0, 0, len(self.nodes), len(self.nodes)
        while expanded < len(self.nodes) and len(self.nodes) < self.nodes_max * (2 if expanded < own else 1):
            if expanded == level:
                depth, level = depth + 1, len(self.nodes)
            self.expand(expanded)
            expanded += 1
            if self.progress is not None and expanded % _REPORT_EVERY == 0:
                self.progress(len(self.nodes))
        return Graph(
            len(self.nodes), expanded, tuple(self.steps), tuple(self.edges), tuple(self.choices), tuple(path),
            expanded == len(self.nodes), depth, tuple(self.ends), tuple(self.standstills),
        )  # fmt: skip


def _answers(picks: Sequence[Pick], events: Sequence[object]) -> str:
    """What was chosen inside an action, in words: nothing where there was no choice, and nothing for an allocator that
    offers all it has."""
    words = []
    for pick in picks:
        if pick.options < 2 or pick.label == "block":
            continue
        if pick.label == "offer":
            free = pick.options - 1
            words += [f"{free - pick.chosen} of {free} free blocks offered"] if pick.chosen else []
        elif pick.label == "leap":
            words.append(_LEAPS[pick.chosen])
        elif pick.label == "poison":
            words.append(_POISONS[pick.chosen])
        else:
            words.append(f"{pick.label} {pick.chosen + 1} of {pick.options}")
    if any(pick.label == "block" and pick.options > 1 for pick in picks):
        granted = [blocks_text([ref.block for ref in event.blocks]) for event in events if isinstance(event, Granted)]
        words.append(f"{', '.join(granted)} taken" if granted else "other blocks taken")
    return f" ({'; '.join(words)})" if words else ""


def graph_of(trace: Trace, *, nodes_max: int = NODES_MAX, progress: Callable[[int], None] | None = None) -> Graph:
    """The states that can follow from those of a trace that fits; about ``nodes_max`` of them at most, or twice as many
    if the states of the run alone lead to so many. ``progress`` is told now and then how many there are."""
    return _Builder(trace, nodes_max, progress).build(trace)
