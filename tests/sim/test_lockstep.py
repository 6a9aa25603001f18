"""Runs of the mass schedule on real receivers and senders: they can do every one of them, and decide the same."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from fsm.errors import LocalError
from fsm.rules import PROTOCOL
from sim.mass import replay as replaying
from sim.mass.batch import USUAL, Mass
from sim.mass.lockstep import FIRST_ROOM, Objects
from sim.model.protocol_bounded import Bounds
from sim.model.protocol_rules import PROTOCOL_RULES

SIZES = {
    "two requests": USUAL,
    "two ranks": Bounds(rooms=2, ranks=2, senders=2, blocks=2, size=3, block_tokens=2, crashes=1),
    "late bytes, leases, early": Bounds(blocks=2, size=3, crashes=1, late=True, leases=True, early_tokens=2),
    "two crashes": Bounds(rooms=2, blocks=1, size=2, crashes=2, late=True),
    "three requests": Bounds(rooms=3, blocks=3, size=5, block_tokens=2, grant_blocks_max=2, crashes=1),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_objects_can_do_every_run_and_decide_the_same(name: str) -> None:
    """Each turn is held against the actions of the bounded model, and each state against the objects."""
    mass = Mass(SIZES[name])
    ended = {"s": 0, "f": 0}
    for run in range(10):
        replay = mass.replay(17, run, judge=False)
        assert replay.ended and replay.agrees, run
        for field, value in replay.steps[-1].state.items():
            if field.endswith("_ended") and value:
                ended["s" if value == 4 else "f"] += 1
    assert ended["s"] and ended["f"], "some requests succeed and some fail"


@pytest.mark.parametrize(
    "wrong",
    [
        {"copy_when_landed": lambda room: False},
        {"take": lambda wanted, available: min(wanted, available, 1)},
        {"commit_said": lambda room, lane: lane.committed_tokens - 1},
        {"status_exact": lambda grant, committed_tokens, total_tokens: False},
    ],
    ids=["copies late", "grants less", "says less", "closes nothing"],
)
def test_objects_that_follow_other_rules_are_told_apart(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]) -> None:
    monkeypatch.setattr(replaying, "Objects", partial(Objects, rules=replace(PROTOCOL, **wrong)))
    mass = Mass(USUAL)
    with pytest.raises(LocalError, match=r"differ|the code takes|was sent|copies"):
        for run in range(20):
            assert mass.replay(17, run, judge=False).agrees


def test_a_schedule_of_other_rules_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in which a resume starts a token early, beside objects that follow the protocol."""
    rules = replace(PROTOCOL_RULES, resume_start=lambda ops, start, block_tokens: ops.maximum(start - 1, 0))
    mass = Mass(Bounds(size=3, blocks=2, block_tokens=2, grant_blocks_max=1), rules)
    monkeypatch.setattr(replaying, "PROTOCOL_RULES", rules)
    with pytest.raises(LocalError, match="g_start"):
        for run in range(20):
            mass.replay(17, run, judge=False)


def test_every_field_that_is_compared_is_told_when_it_differs() -> None:
    objects = Objects(USUAL)
    state = Mass(USUAL).schedule.bounded.start_states()[0]
    objects.compare(state)
    for field in ("r0k0_state", "r1k0_total", "r1k0_registered", "k0b1_state", "k0b0_generation", "r0k0_staged"):
        with pytest.raises(LocalError, match=f"{field}: model {state[field] + 1}, code {state[field]}"):
            objects.compare({**state, field: state[field] + 1})


def test_what_was_never_sent_cannot_be_delivered() -> None:
    objects = Objects(USUAL)
    state = Mass(USUAL).schedule.bounded.start_states()[0]
    with pytest.raises(LocalError, match=f"no Status .* for room {FIRST_ROOM} on rank 0"):
        objects.do("receive STATUS", 0, 0, {"seq": 0}, state)
    with pytest.raises(LocalError, match="no way to do 'dance'"):
        objects.do("dance", 0, 0, {}, state)


def test_an_allocator_that_is_asked_for_other_blocks_than_it_was_told_of_says_so() -> None:
    objects = Objects(USUAL)
    objects.allocators[0].plan = {FIRST_ROOM: (1, 0)}
    assert objects.allocators[0].offer(2, None) == 2  # type: ignore[arg-type]
    assert objects.allocators[0].take((0, 1), 2, FIRST_ROOM, None) == (1, 0)  # type: ignore[arg-type]
    with pytest.raises(LocalError, match="the code takes 1"):
        objects.allocators[0].take((0, 1), 1, FIRST_ROOM, None)  # type: ignore[arg-type]


def test_ranks_need_a_sender_each() -> None:
    with pytest.raises(LocalError, match="a sender for each rank"):
        Objects(Bounds(ranks=2))
