"""The graph of the protocol model is the graph of the scalar engine, step by step, under the named projection."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fsm.errors import LocalError
from sim.engines.agree import agree
from sim.model.correspondence import MODEL_ONLY, bounds_of, model_of
from sim.model.form import Action
from sim.model.projection import BLOCK_TABLE, CLAIM_TABLE, NOT_SHOWN, ROOM_TABLE
from sim.model.protocol import BLOCK_FIELDS, CLAIM_FIELDS, ENTRIES, ROOM_FIELDS
from sim.model.protocol_bounded import bounded, kind_of
from sim.model.protocol_rules import PROTOCOL_RULES
from sim.scenario import Faults, Pool, RankCounts, Request, Scenario, Schedule

FREE = Schedule(ticks_free=True, copy_lags=True, staging_lags=True)
"""As free as the model: a tick at any time or none, copies and staging that take their time."""


def world(
    tokens: int = 2, count: int = 1, early: int = 0, blocks: int = 1, faults: dict[str, int] | None = None,
    ranks: int = 1, senders: int = 0, schedule: Schedule = FREE, **pool: Any,
) -> Scenario:  # fmt: skip
    """A small scenario. The allocator may refuse three times, which is as often as it matters here."""
    pool = {"block_tokens": 1, "grant_blocks_max": 1, "refusals_max": 3, **pool}
    return Scenario(
        pool=Pool(blocks=blocks, allocator="adversary", **pool),
        requests=(Request(tokens=tokens, count=count, grant_tokens=early),),
        ranks=RankCounts(receivers=ranks, senders=senders or ranks), schedule=schedule, faults=Faults(**(faults or {})),
    )  # fmt: skip


def free(**more: bool) -> Schedule:
    return Schedule(ticks_free=True, copy_lags=True, staging_lags=True, **more)


LATE = {"delay_max": 1}
EQUAL = {
    "two grants": (world(faults=LATE), ("delay",)),
    "three grants, two blocks": (world(3, blocks=2, faults=LATE), ("delay",)),
    "grants of any size": (world(3, blocks=2, grant_blocks_max=0, refusals_max=5, faults=LATE), ("delay",)),
    "unaligned": (world(3, blocks=2, block_tokens=2, grant_blocks_max=0, faults=LATE), ("delay",)),
    "early grants": (world(3, early=2, blocks=2, block_tokens=2, faults=LATE), ("delay",)),
    "a write is told late": (world(schedule=free(status_lags_data=True), faults=LATE), ("delay",)),
    "own completions": (world(schedule=free(notice_lags=True), faults=LATE), ("delay",)),
    "late bytes": (world(schedule=free(data_lags_status=True), faults=LATE), ("delay",)),
    "leases": (world(block_tokens=2, lease=True, faults=LATE), ("delay",)),
    "two requests": (world(count=2, refusals_max=1, faults=LATE), ("delay",)),
    "two requests, two blocks": (world(1, count=2, blocks=2, refusals_max=1, faults=LATE), ("delay",)),
    "two ranks": (world(ranks=2, refusals_max=1, faults=LATE), ("delay",)),
    "two ranks, one sender": (world(1, ranks=2, senders=1, refusals_max=2, faults=LATE), ("delay",)),
    "aborts": (world(refusals_max=1, faults={"abort_max": 1, "delay_max": 1}), ("delay", "abort")),
}
"""Scenarios, and which budgets are never used up, in which the world is as free as the model."""


@pytest.mark.parametrize("name", EQUAL)
def test_each_step_of_either_graph_is_a_step_of_the_other(name: str) -> None:
    scenario, endless = EQUAL[name]
    found = agree(scenario, endless=endless)
    assert found.mismatch is None, str(found.mismatch)
    assert not found.unneeded, found.unneeded[0]
    assert found.verdict == "equal" and found.matched > 50 and found.pairs >= found.states
    # A step of the world is no more than the step itself, a write that ends with it, and a tick: one decision and one
    # grant for each request.
    assert max(found.paths) <= 2 + 2 * len(scenario.expanded_requests())


TIED = Schedule()
FOLLOWED = {
    "aborts, a message twice": world(faults={"abort_max": 1, "duplicate_max": 1}, schedule=TIED, refusals_max=0),
    "a message is lost": world(faults={"drop_max": 1}, schedule=TIED, refusals_max=0),
    "a clock jumps": world(faults={"clock_jump_max": 1}, schedule=TIED, refusals_max=0),
    "a sender crashes": world(faults={"sender_crash_max": 1}, schedule=TIED, refusals_max=0),
    "late bytes, a crash": world(
        faults={"sender_crash_max": 1}, schedule=Schedule(data_lags_status=True), refusals_max=0
    ),
    "late bytes, aborts": world(faults={"abort_max": 1}, schedule=Schedule(data_lags_status=True), refusals_max=0),
    "own completions, aborts": world(faults={"abort_max": 1}, schedule=Schedule(notice_lags=True), refusals_max=0),
    "leases, aborts": world(block_tokens=2, lease=True, faults={"abort_max": 1}, schedule=TIED, refusals_max=0),
    "a room submitted twice": world(faults={"duplicate_room_max": 1}, schedule=TIED, refusals_max=0),
}
"""Scenarios in which the world is less free than the model: ticks are tied to messages, faults have budgets."""


@pytest.mark.parametrize("name", FOLLOWED)
def test_each_step_of_the_world_is_a_step_of_the_model(name: str) -> None:
    found = agree(FOLLOWED[name])
    assert found.mismatch is None, str(found.mismatch)
    assert found.pairs >= found.states and found.matched > 20


# --- what only the model does ----------------------------------------------------------------------------


def test_what_is_left_out_of_the_model_is_what_the_world_does_not_do() -> None:
    """With it the model has steps that no step of the world needs. So each entry says something."""
    more: dict[str, int] = {}
    crash = world(1, faults={"sender_crash_max": 1}, refusals_max=0)
    for scenario in (crash, world(block_tokens=2, lease=True, faults={"abort_max": 1}, refusals_max=0)):
        rest = agree(scenario).kinds()
        for kind, count in agree(scenario, whole=True).kinds().items():
            more[kind] = more.get(kind, 0) + count - rest.get(kind, 0)
    left_out = {"tick" if kind == "tick: grant" else kind for kind in MODEL_ONLY}
    assert not {kind for kind in left_out if more.get(kind, 0) <= 0}, more


@pytest.mark.parametrize("kind", MODEL_ONLY)
def test_what_is_left_out_are_actions_of_the_model(kind: str) -> None:
    assert kind == "tick: grant" or kind in {entry.name for entry in ENTRIES}


# --- what is compared ------------------------------------------------------------------------------------


def test_each_field_of_the_model_is_shown_or_said_not_to_be() -> None:
    for fields, table in (
        (ROOM_FIELDS, [entry.field for entry in ROOM_TABLE]),
        (CLAIM_FIELDS, [entry.field for entry in CLAIM_TABLE]),
        (BLOCK_FIELDS, list(BLOCK_TABLE)),
    ):
        assert sorted(fields) == sorted([*table, *(name for name in NOT_SHOWN if name in fields)])
    assert not set(NOT_SHOWN) - {*ROOM_FIELDS, *CLAIM_FIELDS, *BLOCK_FIELDS}


# --- that it can fail ------------------------------------------------------------------------------------


def test_a_model_that_resumes_elsewhere_is_noticed() -> None:
    """The world and the fields that differ are named."""
    scenario = EQUAL["three grants, two blocks"][0]
    wrong = replace(PROTOCOL_RULES, resume_start=lambda ops, start, block_tokens: ops.maximum(start - 1, 0))
    model = replace(bounded(bounds_of(scenario), wrong), clauses=(), symmetry=(), references=())
    found = agree(scenario, model=model)
    assert found.mismatch is not None and found.verdict == "differs"
    assert found.mismatch.text == "tick" and "r0k0_g_start" in found.mismatch.differs
    assert "r0k0_g_start is 1, in the model 0" in str(found.mismatch)


@pytest.mark.parametrize("kind", ["receive STATUS", "a copy ends", "tick: complete", "receive ABORT_ACK", "release"])
def test_a_step_that_the_model_lacks_is_noticed(kind: str) -> None:
    scenario = FOLLOWED["aborts, a message twice"]
    model = model_of(scenario, bounds_of(scenario))
    lacking = replace(model, actions=tuple(action for action in model.actions if kind_of(action.name) != kind))
    assert agree(scenario, model=lacking).mismatch is not None


def test_a_step_that_the_world_lacks_is_noticed() -> None:
    """A chunk that is taken before its STATUS has come, say."""
    scenario, endless = EQUAL["two grants"]
    model = model_of(scenario, bounds_of(scenario))
    early = Action(
        "r0k0: an own step",
        lambda ops, view: (view["r0k0_open"] == 1) & (view["r0k0_state"] == 1),
        lambda ops, view: {"r0k0_total": view["r0k0_size"], "r0k0_word": view["r0k0_g_cap"]},
    )
    found = agree(scenario, endless=endless, model=replace(model, actions=(*model.actions, early)))
    assert found.mismatch is None and "an own step" in found.kinds()


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "named"),
    [
        (world(faults={"receiver_crash_max": 1}), "a receiver that crashes"),
        (world(faults={"poison_max": 1}), "spoilt messages"),
        (world(faults={"partition_max": 1}), "partition"),
        (world(ranks=2, schedule=Schedule(rank_skew_ticks=1)), "rank_skew_ticks"),
        (msgspec.structs.replace(world(), requests=(Request(tokens=2), Request(tokens=3))), "several sizes"),
        (Scenario(), "allocator other than 'adversary'"),
    ],
    ids=["receiver", "poison", "partition", "skew", "sizes", "allocator"],
)
def test_what_the_model_does_not_hold_is_refused_by_name(scenario: Scenario, named: str) -> None:
    with pytest.raises(LocalError, match=named):
        agree(scenario)


def test_a_scenario_that_is_too_large_is_refused() -> None:
    with pytest.raises(LocalError, match="more than 100 states"):
        agree(EQUAL["two requests"][0], states_max=100)
    with pytest.raises(LocalError, match="the model was not exhausted"):
        agree(world(3, blocks=2, schedule=TIED, refusals_max=0), states_max=200)
