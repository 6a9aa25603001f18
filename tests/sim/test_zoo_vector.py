"""Every version of the zoo that the model holds is found by the vector engine, as near as by the scalar engine.

A step of the model is finer than a step of the world, which delivers a message, lets the receivers tick, and does at
once what follows. So the length of a trace is told in steps of the world (``world_steps``), not in actions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from fsm import kernel
from fsm.kernel import Number, Ops
from sim import zoo
from sim.engines.check import check
from sim.model.correspondence import MODEL_ONLY, as_the_world_does, world_steps
from sim.model.form import Clause, Model, View
from sim.model.protocol_bounded import Bounds, bounded, kind_of
from sim.model.protocol_live import ProtocolFairness, live_model, promises
from sim.model.variants import MODEL_VARIANTS
from sim.scenario import Scenario
from sim.vector.live import LiveGraph, doomed, judge_model
from sim.vector.result import ModelStep
from sim.vector.rows import find, without_key
from sim.vector.search import Search, explore


class Shown(NamedTuple):
    """The size that shows a version, the property that the zoo expects, and the clause or promise of the model that is
    broken: that of the property, or one that guards it."""

    bounds: Bounds
    property: str
    breaks: str


def small(**sizes: int) -> Bounds:
    return Bounds(faults=False, **sizes)


BY_CLAUSE: dict[str, Shown] = {
    "none": Shown(small(size=3, blocks=2, grant_blocks_max=1), "I6", "starts grow"),
    "indices-before": Shown(small(size=3, blocks=2, grant_blocks_max=1), "I6", "starts grow"),
    "generation": Shown(small(size=3, blocks=2, grant_blocks_max=1), "I6", "starts grow"),
    "free-then-alloc": Shown(small(rooms=2, size=2), "I3", "nothing is refused"),
    "alloc-before-free": Shown(small(size=2), "L1", "a wait holds nothing"),
    "max-progress": Shown(small(ranks=2, size=2), "I2", "watermark behind bytes"),
    "first-rank-triggers": Shown(small(ranks=2, size=2), "I1", "the write"),
    "no-grant-seq": Shown(small(size=3, blocks=2, grant_blocks_max=1), "I6", "the parked grant"),
    "free-without-quiescence": Shown(small(size=2, aborts=1), "I1", "released is quiet"),
    "late-status": Shown(small(size=1), "I4", "ended stays ended"),
    "floor-start": Shown(small(size=3, block_tokens=2, early_tokens=1, blocks=2), "I2", "the right source"),
    "last-destination-verdict": Shown(small(ranks=2, size=2, blocks=2), "I2", "a STATUS is true"),
    "admission-first": Shown(small(rooms=2, size=2), "L3", "data first"),
    "no-reserve": Shown(small(size=2, blocks=2, early_tokens=2), "L1", "early leaves one"),
}
"""Versions that are seen in one state."""

BY_PROMISE: dict[str, Shown] = {
    "flag": Shown(small(size=3), "L1", "L1"),
    "indices-after": Shown(small(size=3), "L1", "L1"),
    "sent-accumulate": Shown(small(size=2), "L1", "L1"),
    "sent-cached": Shown(small(size=3), "L1", "L1"),
    "alloc-before-free": Shown(small(size=2), "L1", "L1"),
    "all-or-nothing": Shown(small(size=3, blocks=2, early_tokens=1), "L1", "L1"),
}
"""Versions that are seen in what never happens."""

DOOMED = "silent-unknown-room"
"""The scalar engine shows this one by the first state from which no run ends."""


@cache
def scalar_steps(variant: str, property: str) -> int:
    """The length of the shortest trace of the scalar engine, in the zoo's own scenario."""
    result = check(zoo.scenario_for(variant, property), only=[property])
    assert result.verdict == "violated"
    return result.violations[0].step


def variant_model(variant: str, bounds: Bounds) -> Model:
    """A version breaks the clauses of one block before those of another, so nothing is symmetric."""
    return replace(bounded(bounds, MODEL_VARIANTS[variant].rules()), symmetry=(), references=())


def named(model: Model, *names: str) -> tuple[Clause, ...]:
    """The clauses of those names, of every request and block."""
    return tuple(clause for clause in model.clauses if clause.name.rpartition(": ")[2] in names)


def steps_of(steps: tuple[ModelStep, ...]) -> int:
    return world_steps([step.action for step in steps], Scenario())


@pytest.mark.parametrize("variant", BY_CLAUSE)
def test_a_version_breaks_a_clause_no_later_than_in_the_scalar_engine(variant: str) -> None:
    shown = BY_CLAUSE[variant]
    model = variant_model(variant, shown.bounds)
    result = explore(replace(model, clauses=named(model, shown.breaks)))
    assert result.violation is not None
    assert 1 < steps_of(result.violation.steps) <= scalar_steps(variant, shown.property)


@pytest.mark.parametrize("variant", BY_PROMISE)
def test_a_version_breaks_a_promise_no_later_than_in_the_scalar_engine(variant: str) -> None:
    shown = BY_PROMISE[variant]
    rules = MODEL_VARIANTS[variant].rules()
    model = live_model(shown.bounds, rules)
    promised = [promise for promise in promises(shown.bounds, rules) if promise.name == shown.breaks]
    (answer,) = judge_model(model, promised, ProtocolFairness(shown.bounds))
    assert (answer.verdict, answer.coverage) == ("violated", "exhausted")
    assert 1 < steps_of(answer.stem) <= scalar_steps(variant, shown.property)


def test_a_silent_sender_dooms_a_request_as_early_as_in_the_scalar_engine() -> None:
    """From the crash on, for nobody tells the new process of the request: so it is in the world."""
    bounds = small(size=1, crashes=1)
    for variant, expected in ((DOOMED, scalar_steps(DOOMED, "L1")), ("watermark", None)):
        model = live_model(bounds, MODEL_VARIANTS[variant].rules())
        model = as_the_world_does(model, bounds, [kind for kind in MODEL_ONLY if kind.endswith("REGISTER")])
        found = nearest_doom(model, bounds)
        assert (None if found is None else steps_of(found)) == expected


def nearest_doom(model: Model, bounds: Bounds) -> tuple[ModelStep, ...] | None:
    """A shortest run to a state from which the receiver's request cannot end any more; None if there is none."""

    def ended(ops: Ops, view: View) -> Number:
        return view["r0k0_state"] >= kernel.SUCCESS

    search = Search(replace(model, clauses=()))
    try:
        result = search.run()
        lost = doomed(LiveGraph(search, result, ProtocolFairness(bounds)), ended)
        index = search.graph.index()
        for level in search.graph.levels:
            rows = np.flatnonzero(lost[find(index.columns, level.columns)])
            if len(rows):
                row = tuple(np.array(column[rows[:1]]) for column in level.columns)
                return search.graph.path(without_key(row))[1]
        return None
    finally:
        search.close()


# --- that it is the version's doing, and that none is left out -------------------------------------------


SIZES = {repr(shown.bounds): shown.bounds for shown in BY_CLAUSE.values()}


@pytest.mark.parametrize("size", SIZES, ids=range(len(SIZES)))
def test_the_protocol_itself_keeps_these_clauses_in_these_sizes(size: str) -> None:
    broken = [shown.breaks for shown in BY_CLAUSE.values() if repr(shown.bounds) == size]
    model = bounded(SIZES[size])
    result = explore(replace(model, clauses=named(model, *broken)))
    assert (result.verdict, result.coverage) == ("holds", "exhausted")


def test_every_version_that_the_model_holds_is_shown() -> None:
    held = [name for name, variant in MODEL_VARIANTS.items() if variant.breaks]
    assert sorted(held) == sorted(dict.fromkeys([*BY_CLAUSE, *BY_PROMISE, DOOMED]))
    left_out = {name: variant for name, variant in MODEL_VARIANTS.items() if not variant.breaks}
    assert all(variant.not_held or not zoo.scenario_for(name).variant.hazards for name, variant in left_out.items())


def test_steps_of_the_world_are_counted_as_the_world_takes_them() -> None:
    """One tick decides about a request once, and then grants to it once; a second decision is a second tick."""
    start = ["r0k0: receive REGISTER", "r0k0: receive REGISTER_ACK boot=1", "r0: tick: registered", "r0k0: stage"]
    assert world_steps(start, Scenario()) == 2
    granted = [*start, "r0k0: receive OFFER", "r0: tick: grant b0"]
    assert world_steps(granted, Scenario()) == 3
    assert world_steps([*granted, "r1: tick: grant b1"], Scenario()) == 3
    assert world_steps([*granted, "r0: tick: grant b1"], Scenario()) == 4
    assert world_steps([*granted, "r0: tick: fail"], Scenario()) == 4
    assert kind_of("r0: tick: grant b0 b1") == "tick: grant"
