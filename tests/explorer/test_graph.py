"""The graph of states: every edge does what the world does, every way to a node adds up to the same picture, what is
offered is what the world offers, and what is left out is said."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import pytest

from fsm.trace import Trace
from sim import actions, zoo
from sim.choices import Replayed, Seeded
from sim.engines.check import check
from sim.engines.replay import scenario_of, world_of
from sim.engines.simulate import run_once
from sim.explorer.graph import graph_of
from sim.explorer.page import Edge, Graph, Step
from sim.explorer.runs import run_of_trace
from sim.world import World
from tests.explorer.kit import Shown, added_up, same_as_world


def found(variant: str) -> Trace:
    return check(zoo.scenario_for(variant)).violations[0].trace


def good(name: str, seed: int = 0) -> Trace:
    """A run without faults of a built-in scenario."""
    scenario = zoo.scenario_named(name)
    calm = msgspec.structs.replace(scenario, faults=msgspec.structs.replace(scenario.faults, rate=0.0))
    trace = run_once(calm, Seeded(seed), record=True, seed=seed).trace
    assert trace is not None
    return trace


def choices_of(graph: Graph) -> dict[int, list[Edge]]:
    """The edges of each node."""
    by_node: dict[int, list[Edge]] = {node: [] for node in range(graph.nodes)}
    for edge in graph.edges:
        by_node[edge.source].append(edge)
    return by_node


def picture(shown: Shown) -> tuple[object, ...]:
    """All that a page shows of rooms, blocks and lifecycles; what is on its way, by count."""
    return shown.blocks, shown.progress, shown.lifecycles, +shown.open


@pytest.mark.parametrize(
    "make",
    [partial(found, "free-without-quiescence"), partial(good, "watermark"), partial(found, "no-grant-seq")],
    ids=["free-without-quiescence", "watermark", "no-grant-seq"],
)
def test_every_way_to_a_node_adds_up_to_the_same_picture(make: Callable[[], Trace]) -> None:
    trace = make()
    graph, run = graph_of(trace), run_of_trace(trace)
    assert graph.complete and graph.expanded == graph.nodes
    edges = choices_of(graph)
    pictures: dict[int, tuple[object, ...]] = {}
    pending: list[tuple[int, list[Step]]] = [(0, [run.steps[0]])]
    while pending:
        node, steps = pending.pop()
        shown = picture(added_up(steps))
        if node in pictures:
            assert pictures[node] == shown
            continue
        pictures[node] = shown
        pending += [(edge.target, [*steps, graph.steps[edge.step]]) for edge in edges[node]]
    assert len(pictures) == graph.nodes


def test_the_run_is_a_way_through_the_graph() -> None:
    trace = found("free-without-quiescence")
    graph, run = graph_of(trace), run_of_trace(trace)
    assert len(graph.path) == len(run.steps) and graph.path[0] == 0
    for number, (source, target) in enumerate(zip(graph.path, graph.path[1:], strict=False), start=1):
        (edge,) = [
            edge for edge in graph.edges
            if (edge.source, edge.target) == (source, target) and graph.steps[edge.step].text == run.steps[number].text
        ]  # fmt: skip
        step = graph.steps[edge.step]
        assert (step.said, step.blocks, step.touches) == (
            run.steps[number].said, run.steps[number].blocks, run.steps[number].touches,
        )  # fmt: skip
    assert (edge.broken, edge.broken_text) == ((trace.ending.property,), trace.ending.text)
    assert not choices_of(graph)[graph.path[-1]]


def late_arrivals() -> Trace:
    """Requests that come at their time, with a fault or two: when one comes depends on the ticks that went by."""
    scenario = zoo.default_scenario()
    replace = msgspec.structs.replace
    first = replace(scenario.requests[0], count=1, tokens=2)
    world = replace(
        scenario,
        requests=(first, replace(first, arrives_at_tick=4)),
        pool=replace(scenario.pool, allocator="fifo"),
        faults=replace(scenario.faults, drop_max=1, abort_max=1, rate=0.0),
    )
    trace = run_once(world, Seeded(3), record=True, seed=3).trace
    assert trace is not None
    return trace


@pytest.mark.parametrize("make", [partial(found, "free-without-quiescence"), late_arrivals], ids=["abort", "arrivals"])
def test_at_each_step_the_choices_are_those_of_the_world_and_do_what_it_does(make: Callable[[], Trace]) -> None:
    """In the order in which the world offers them; here nothing is asked inside an action, so each is one choice."""
    trace = make()
    graph, run = graph_of(trace), run_of_trace(trace)
    edges = choices_of(graph)
    for number, node in enumerate(graph.path[:-1]):
        begun = world_after(trace, number)
        course = [] if begun.done() else actions.enabled(begun) + actions.faults(begun)
        assert len(course) == len(edges[node])
        for action, edge in zip(course, edges[node], strict=True):
            world, shown = world_after(trace, number), added_up(run.steps[: number + 1])
            actions.apply(world, action, Replayed(()))
            shown.add(graph.steps[edge.step])
            same_as_world(shown, world)
            assert edge.broken == tuple(violation.property for violation in world.monitors.violations)


def world_after(trace: Trace, steps: int) -> World:
    """A world of its own, so many steps on."""
    world = world_of(trace.header, scenario_of(trace.header))
    for step in trace.steps[:steps]:
        actions.apply(world, step.action, Replayed(step.picks))
    return world


def test_an_allocator_may_be_let_choose_otherwise() -> None:
    """What is chosen inside an action is part of the choice's words."""
    graph = graph_of(good("watermark"))
    offers = [name for name in graph.choices if name.startswith("Offer #1 to receiver")]
    assert offers[:3] == [
        "Offer #1 to receiver", "Offer #1 to receiver (1 of 2 free blocks offered)",
        "Offer #1 to receiver (0 of 2 free blocks offered)",
    ]  # fmt: skip


def test_what_is_not_looked_into_is_said() -> None:
    trace = good("exhaust-two-requests")
    graph = graph_of(trace, nodes_max=200)
    assert not graph.complete and graph.nodes >= 200
    assert len(set(graph.path)) <= graph.expanded < graph.nodes
    edges = choices_of(graph)
    assert all(not edges[node] for node in range(graph.expanded, graph.nodes))
    silent = [node for node in range(graph.expanded) if not edges[node]]
    over = {*graph.ends, *(still.node for still in graph.standstills), *broken_nodes(graph)}
    assert set(silent) <= over


def broken_nodes(graph: Graph) -> set[int]:
    return {edge.target for edge in graph.edges if edge.broken}


def test_choices_of_one_node_have_different_words() -> None:
    graph = graph_of(good("every-fault"), nodes_max=300)
    for edges in choices_of(graph).values():
        assert len({edge.choice for edge in edges}) == len(edges)


def test_a_standstill_is_no_good_end() -> None:
    graph = graph_of(found("silent-unknown-room"), nodes_max=400)
    assert not set(graph.ends) & {still.node for still in graph.standstills}


def test_time_is_told_as_a_duration() -> None:
    graph = graph_of(found("indices-after"))
    leaps = [step for step in graph.steps if step.action == "time"]
    assert leaps and all(step.time_s > 0 and step.text == f"clock leaps by {step.time_s:g}" for step in leaps)
    assert all(step.time_s == 0 for step in graph.steps if step.action != "time")
