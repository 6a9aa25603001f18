"""A search that is too simple to be wrong, to hold the exhaustive engine against.

It knows nothing of canonical states: it takes the objects of a world apart, field by field, whatever their classes say
of saving; two states are one only if every field is equal. It never loads a state: each is reached by a run from the
start. Properties are judged by the same words as the engine's: the first depth at which each is broken.
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any, NamedTuple

import msgspec

from fsm.rules import Rules
from sim import actions
from sim.choices import Scripted
from sim.scenario import Scenario
from sim.world import Action, World

Way = tuple[tuple[Action, tuple[int, ...]], ...]
"""Actions, each with the answers given inside it."""

UNMOVED = (
    "scenario", "rules", "plan", "requests", "arrivals", "config",  # never change
    "events", "violations", "ticks", "history", "touched", "_out", "_offered", "block_kind",  # of the last step, or counts
    "now", "heartbeat_at",  # time as such; no scenario here has heartbeats
)  # fmt: skip
TIMERS = ("progress_at", "resend_at", "expires_at")
OLDEST = -10_000.0


def fields_of(value: Any) -> list[str]:
    names: list[str] = []
    for base in type(value).__mro__:
        names += [name for name in getattr(base, "__slots__", ()) if hasattr(value, name)]
    return [name for name in (*names, *getattr(value, "__dict__", {})) if name not in UNMOVED]


def taken_apart(value: Any, now: float) -> Any:
    """Everything in a value, as nested tuples; times relative to now."""
    if value is None or isinstance(value, (int, float, str, msgspec.Struct)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple([taken_apart(item, now) for item in value])
    if isinstance(value, dict):
        return tuple([(taken_apart(key, now), taken_apart(item, now)) for key, item in value.items()])
    if isinstance(value, (type, range, FunctionType, MethodType, BuiltinMethodType)):
        return None
    parts = []
    for name in fields_of(value):
        part = getattr(value, name)
        parts.append((name, max(part - now, OLDEST) if name in TIMERS else taken_apart(part, now)))
    return (type(value).__name__, tuple(parts))


class Naive(NamedTuple):
    """``first``: property -> the number of steps after which it is broken first."""

    first: dict[str, int]
    states: int
    transitions: int


class NaiveSearch:
    """One search; ``search`` runs it to its end."""

    def __init__(self, scenario: Scenario, rules: Rules) -> None:
        self.make: Callable[[], World] = lambda: World(scenario, rules, flat=True, arrive_any_time=True)
        self.ways: list[Way] = [()]
        self.index = {self.key(self.make()): 0}
        self.back: dict[int, list[int]] = {}
        self.over: list[int] = []
        self.first: dict[str, int] = {}
        self.transitions = 0

    @staticmethod
    def key(world: World) -> Any:
        return taken_apart(world, world.now)

    def at(self, way: Way) -> World:
        """The world at the end of a way, violations forgotten."""
        world = self.make()
        for action, answers in way:
            actions.apply(world, action, Scripted(answers))
        world.monitors.violations = []
        return world

    def search(self, states_max: int) -> Naive:
        number = 0
        while number < len(self.ways):
            assert len(self.ways) <= states_max
            self.expand(number)
            number += 1
        self.judge()
        return Naive(self.first, len(self.ways), self.transitions)

    def expand(self, number: int) -> None:
        way = self.ways[number]
        world = self.at(way)
        course = actions.enabled(world)
        if not course or world.done():
            if not world.done():
                self.first.setdefault("L2" if world.all_ended() else "L1", len(way))
            elif world.left_behind():
                self.first.setdefault("L2", len(way))
            if world.done():
                self.over.append(number)
            return
        for position, action in enumerate(course + actions.faults(world)):
            script = Scripted()
            more = True
            while more:
                script.restart()
                world = self.at(way)
                actions.apply(world, action, script)
                self.transitions += 1
                for violation in world.monitors.violations:
                    self.first.setdefault(violation.property, len(way) + 1)
                key = self.key(world)
                reached = self.index.setdefault(key, len(self.ways))
                if reached == len(self.ways):
                    self.ways.append((*way, (action, tuple([pick.chosen for pick in script.picks]))))
                if position < len(course):
                    self.back.setdefault(reached, []).append(number)
                more = script.advance()

    def judge(self) -> None:
        """Liveness: from where no state that is over can be reached."""
        ends = [False] * len(self.ways)
        stack = list(self.over)
        while stack:
            number = stack.pop()
            if not ends[number]:
                ends[number] = True
                stack += self.back.get(number, ())
        for number, way in enumerate(self.ways):
            if not ends[number]:
                self.first.setdefault("L2" if self.at(way).all_ended() else "L1", len(way))
