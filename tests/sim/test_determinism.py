"""The same scenario and the same choices give the same digest, byte for byte, wherever and however it is run.

A test of this kind is worth what it can catch, so two leaks are planted as well: one that depends on the hash seed of
the process, and one that draws from a generator that nobody seeded. The same comparison must tell them.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fsm import allocators
from sim import zoo
from sim.choices import Recording, Replayed, Seeded
from sim.engines.simulate import run_once, simulate
from sim.scenario import Faults, Pool, RankCounts, Request, Scenario, Schedule, Source, Time, scenario_to_json

ROOT = Path(__file__).resolve().parents[2]

LIVELY = Scenario(
    pool=Pool(blocks=6, block_tokens=2, grant_blocks_max=2, allocator="adversary", refusals_max=2),
    source=Source(blocks=12),
    requests=(
        Request(tokens=9, count=2), Request(tokens=7, grant_tokens=3, arrives_at_tick=4), Request(tokens=3, room=1),
    ),
    ranks=RankCounts(receivers=2, senders=2),
    schedule=Schedule(rank_skew_ticks=1, ticks_free=True),
    time=Time(heartbeat_ticks=50),
    faults=Faults(
        rate=0.1, duplicate_max=2, delay_max=2, drop_max=2, abort_max=1, sender_crash_max=1, receiver_crash_max=1,
        partition_max=1, clock_jump_max=1, poison_max=2, heartbeat_loss_max=1, duplicate_room_max=1,
    ),
)  # fmt: skip
"""As much going on as a small world has room for."""

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
{plant}
from sim.engines.simulate import simulate
from sim.scenario import scenario_from_json

print(simulate(scenario_from_json({scenario!r}), seed=7, runs=40, jobs=1).digest)
"""

HASH_LEAK = """
import fsm.allocators

def take(self, free, count, room, choices, kind=None):
    return tuple(int(block) for block in {str(block) for block in free})[:count]

fsm.allocators.Adversary.take = take
"""
"""Blocks in the order in which a set gives them."""

DICE_LEAK = """
import random
import fsm.allocators

def take(self, free, count, room, choices, kind=None):
    return tuple(random.sample(free, count))

fsm.allocators.Adversary.take = take
"""
"""Blocks drawn behind the back of ``choices``."""


def digest_elsewhere(hash_seed: str, *, plant: str = "") -> str:
    """The digest of a batch in a process of its own."""
    program = PROGRAM.format(root=str(ROOT), plant=plant, scenario=scenario_to_json(LIVELY))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_digest_is_the_same_in_every_process_and_under_every_hash_seed() -> None:
    here = simulate(LIVELY, seed=7, runs=40, jobs=1).digest
    assert [digest_elsewhere(seed) for seed in ("0", "1", "4711")] == [here] * 3


@pytest.mark.parametrize("plant", [HASH_LEAK, DICE_LEAK], ids=["order of a set", "global dice"])
def test_a_planted_leak_changes_the_digest(plant: str) -> None:
    """The comparison above would not pass if something leaked."""
    digests = [digest_elsewhere(seed, plant=plant) for seed in ("0", "1", "4711")]
    assert len(dict.fromkeys(digests)) == 3


def test_a_leak_shows_between_two_runs_in_one_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(self: object, free: tuple[int, ...], count: int, *rest: object) -> tuple[int, ...]:
        return tuple(random.sample(free, count))

    monkeypatch.setattr(allocators.Adversary, "take", take)
    assert len(dict.fromkeys(simulate(LIVELY, runs=10, jobs=1).digest for _ in range(2))) == 2


def test_the_digest_does_not_depend_on_the_machine() -> None:
    driven = simulate(LIVELY, seed=3, runs=60, jobs=1, machine="transitions")
    looked_up = simulate(LIVELY, seed=3, runs=60, jobs=1, machine="flat")
    assert driven.digest == looked_up.digest
    assert driven.sometimes == looked_up.sometimes
    assert driven.requests == looked_up.requests


def test_the_digest_does_not_depend_on_how_many_share_the_work() -> None:
    """200 runs are more than one piece of work; three processes do not divide them evenly."""
    told: list[int] = []
    results = [
        simulate(LIVELY, seed=11, runs=200, jobs=jobs, machine="flat", progress=lambda done, runs: told.append(done))
        for jobs in (1, 2, 3)
    ]
    assert len(dict.fromkeys(result.digest for result in results)) == 1
    assert results[0] == results[1] == results[2]
    assert told.count(200) == 3


def test_a_violation_is_the_same_however_many_look_for_it() -> None:
    scenario = zoo.scenario_for("late-status")
    results = [simulate(scenario, runs=3000, jobs=jobs, machine="flat") for jobs in (1, 2)]
    assert results[0].verdict == "violated"
    assert results[0] == results[1]


def test_different_seeds_are_different_runs() -> None:
    digests = [run_once(LIVELY, Seeded(seed), machine="flat").digest for seed in range(50)]
    assert len(dict.fromkeys(digests)) == 50


def test_runs_do_not_depend_on_what_ran_before() -> None:
    alone = run_once(LIVELY, Seeded(9), machine="flat").digest
    for seed in range(5):
        run_once(LIVELY, Seeded(seed), machine="flat")
    assert run_once(LIVELY, Seeded(9), machine="flat").digest == alone


def test_every_choice_goes_through_the_one_door() -> None:
    """A run is its list of answers: feeding the list back gives the run back, all of it and nothing else."""
    recording = Recording(Seeded(21))
    first = run_once(LIVELY, recording, report=True)
    replayed = Replayed(recording.picks)
    second = run_once(LIVELY, replayed, report=True)
    replayed.finish()
    assert (second.digest, second.requests, second.sometimes) == (first.digest, first.requests, first.sometimes)


def test_recording_and_reporting_change_nothing() -> None:
    bare = run_once(LIVELY, Seeded(5))
    assert run_once(LIVELY, Seeded(5), record=True, report=True).digest == bare.digest
