"""What can come of a state: the steps that lead on from it, by the states and the remembered processes of ``check``.

Two questions about a trace are answered with it: is there a shorter way to where it got (:mod:`sim.engines.shortest`),
and from where on could nothing go well any more (:mod:`sim.engines.no_return`).

A state here is the canonical key of :class:`sim.state.StateSpace` and one number more: how many ticks the receivers
have made, as long as that decides when a request arrives (in a run of ``simulate``), else 0. So what may follow a state
is just what the engine of the trace may do there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fsm.allocators import Choices
from fsm.trace import Pick
from fsm.trace import TraceHeader as Header
from sim import actions, zoo
from sim.choices import Scripted
from sim.engines.check import _Kinds
from sim.engines.simulate import judge_end
from sim.scenario import Scenario
from sim.state import StateSpace
from sim.world import Action, World

State = tuple[int, ...]
"""The numbers of a world's components, and the ticks that decide about arrivals."""


class Move(NamedTuple):
    """One step from a state: what was done, the properties that it broke, and where it led."""

    action: Action
    picks: tuple[Pick, ...]
    broken: tuple[str, ...]
    reached: State


def world_ahead(header: Header, scenario: Scenario) -> World:
    """A fresh world as in the trace; the flat lookup, which does the same on every machine, drives its lifecycles."""
    rules = zoo.rules_for(scenario.variant.detector, scenario.variant.hazards)
    return World(scenario, rules, flat=True, arrive_any_time=header.engine == "check")


class Ahead:
    """The states of one scenario, and the steps between them."""

    def __init__(self, header: Header, scenario: Scenario) -> None:
        self.header, self.scenario = header, scenario
        self.world = world_ahead(header, scenario)
        self.space = StateSpace(self.world)
        last_ticks = max((request.arrives_at_tick for request in self.world.requests), default=0)
        self._last_ticks = 0 if self.world.arrive_any_time else last_ticks
        self.first = self._saved(self.world)
        self.space.remember()
        self.space.dirty()

    def _saved(self, world: World) -> State:
        waits = world.arrived < len(world.arrivals)
        return (*self.space.save(), min(world.ticks, self._last_ticks) if waits else 0)

    def state_of(self, world: World) -> State:
        """The state that another world of this scenario is in; that world is left as it is."""
        mine, self.space.world = self.space.world, world
        self.space.dirty()
        try:
            return self._saved(world)
        finally:
            self.space.world = mine
            self.space.dirty()

    def load(self, state: State) -> World:
        """The world in that state, to be looked at."""
        self.space.load(state[:-1])
        self.world.ticks = state[-1]
        return self.world

    def take(self, state: State, action: Action, choices: Choices) -> tuple[tuple[str, ...], State]:
        """Do one action in a state: the properties that this breaks, and the state after it."""
        world = self.load(state)
        self._use_kinds(state)
        self.space.before(action)
        actions.apply(world, action, choices)
        self.space.after(action)
        return tuple([violation.property for violation in world.monitors.violations]), self._saved(world)

    def _use_kinds(self, state: State) -> None:
        """Of free blocks that nothing tells apart, the adversary needs to try one."""
        if self.space.symmetric:
            for rank, receiver in enumerate(self.world.receivers):
                receiver.block_kind = _Kinds(self.space, self.world, state[:-1], rank)

    def moves(self, state: State, course: list[Action]) -> Iterator[Move]:
        """Every way to do one of some actions in a state."""
        script = Scripted()
        for action in course:
            script.prefix = []
            more = True
            while more:
                script.restart()
                broken, reached = self.take(state, action, script)
                yield Move(action, tuple(script.picks), broken, reached)
                more = script.advance()

    def course(self, state: State) -> list[Action]:
        """What the world may do by itself in a state; empty where a run ends."""
        world = self.load(state)
        return [] if world.done() else actions.enabled(world)

    def ended_well(self, state: State) -> bool:
        """Whether a state where a run ends is one where nothing is wrong."""
        world = self.load(state)
        world.audit()
        return judge_end(world) is None and not world.monitors.violations
