"""A few kills of the soak, one of each kind, and that the soak sees what it is there for."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from gpu_backend import soak
from gpu_backend.parties import Ended
from gpu_backend.soak import KILL, STATES, STOP_CONT, STOP_KILL, WAYS, Hit, SoakResult
from gpu_backend.soak_parties import WRITING, Settled
from sim.engines.conform import conform
from tests.gpu_backend.kit_cli import need, refused, resumark

HITS = [
    Hit(0, "sender", KILL, WRITING, 2, True, 0.0, 0.0, False),
    Hit(1, "receiver", KILL, "ResumeRequested", 1, True, 0.0, 0.0, True),
    Hit(2, "sender", STOP_CONT, "Transferring", 1, True, 0.0, 0.3, False),
    Hit(3, "receiver", STOP_KILL, "WaitingForInput", 2, False, 0.001, 0.3, True),
    Hit(4, "sender", KILL, "Bootstrapping", 3, False, 0.005, 0.0, True),
]
"""Each way, each side, with and without a successor at once, in the event itself and some time after it."""


@pytest.mark.parametrize("transport", ["nixl", "gloo"])
def test_the_survivor_of_each_kind_of_hit_bears_it(transport: str, tmp_path: Path) -> None:
    """And what all of them saw, the killed and the stopped included, is a run of the protocol."""
    need(transport)
    result = soak.soak(len(HITS), seed=11, transport=transport, hits=HITS, trace=str(tmp_path))
    assert result.problems == []
    assert (result.verdict, result.kills, result.transport) == ("holds", len(HITS), transport)
    assert result.hits == Counter((hit.side, hit.way) for hit in HITS)
    assert result.not_reached == 0
    assert result.succeeded >= 2 * (len(HITS) + 1), "the requests after each round, and before the first"
    assert sum(result.reasons.values()) > 0, "somebody must have noticed"
    answer = conform(sorted(tmp_path.iterdir()))
    assert (answer.verdict, len(answer.processes)) == ("conforms", 6)


def test_a_stopped_sender_keeps_the_blocks_that_it_may_still_write() -> None:
    """The request fails by its deadline; its blocks come back when the sender answers again, and not before."""
    need("nixl")
    stopped_s = soak.TIMING.deadline_s + 1.0
    hit = Hit(0, "sender", STOP_CONT, WRITING, 1, True, 0.0, stopped_s, False)
    result = soak.soak(1, seed=12, transport="nixl", hits=[hit])
    assert result.problems == []
    assert result.quarantined_rounds == 1
    assert result.reasons["receiver", "DEADLINE"] >= 1


def test_hits_are_drawn_from_everything_and_by_the_seed_alone() -> None:
    hits = [soak.draw_hit(random.Random(seed), 0) for seed in range(2_000)]
    assert {(hit.side, hit.state) for hit in hits} == {(side, state) for side in STATES for state in STATES[side]}
    assert {hit.way for hit in hits} == set(WAYS)
    assert {hit.by_itself for hit in hits} == {hit.restart_at_once for hit in hits} == {True, False}
    assert soak.draw_hit(random.Random(7), 3) == soak.draw_hit(random.Random(7), 3)


FINE = Ended(4, "Success", "NONE", 10, "", 0.0, 1.0, ())


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (FINE, None),
        (FINE._replace(state="Failed", reason="PEER_GONE"), None),
        (FINE._replace(state="Failed", reason="NONE"), "room 4 failed at the receiver without a reason"),
        (FINE._replace(wrong="fill_ids of token 1"), "room 4 delivered wrong content: fill_ids of token 1"),
    ],
)
def test_what_must_not_be_is_noted(one: Ended, problem: str | None) -> None:
    result = SoakResult(1)
    soak.judge(Settled([one], 0, 0.0, [], 1.0), "receiver", result)
    assert result.problems == ([problem] if problem else [])
    assert result.verdict == ("violated" if problem else "holds")


def test_a_broken_property_is_a_problem() -> None:
    result = SoakResult(1)
    soak.judge(Settled([], 2, 0.0, [("I5", "the watermark fell")], 1.0), "sender", result)
    assert (result.problems, result.quarantined_rounds) == (["I5 at the sender: the watermark fell"], 1)


def test_a_party_that_never_gets_its_pool_back_breaks_the_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.gpu_backend import kit_children

    need("nixl")
    monkeypatch.setattr(soak, "WHOLE_LIMIT_S", 0.5)
    monkeypatch.setattr(soak, "soak_receiver", kit_children.never_whole)
    result = soak.soak(1, seed=13, transport="nixl")
    assert result.verdict == "violated"
    assert "waited for 'whole'" in result.problems[0]


def test_the_command_prints_its_figures_and_refuses_what_makes_no_sense() -> None:
    need("nixl")
    done = resumark("soak", "--kills", "1", "--seed", "4", "--transport", "nixl", "--json")
    data = done.data
    assert (done.code, data["verdict"], data["kills"], data["problems"]) == (0, "holds", 1, [])
    assert data["succeeded"] >= 4
    refused(resumark("soak", "--kills", "0"), "Invalid value for '--kills'")
    refused(resumark("soak", "--transport", "in-process"), "nobody to survive")
    refused(resumark("soak", "--transport", "pigeon"), "transport 'pigeon': unknown")
