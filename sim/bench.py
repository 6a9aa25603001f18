"""What things cost: each figure the median of several measurements, what is compared measured in turns, in one run.

Only the figures under "zoo" take all cores; everything else runs on one.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import transitions

from fsm import kernel
from fsm.kernel import ARRAY
from fsm.lifecycle import RECEIVER_TABLE, ReceiverFacts, ReceiverLifecycle
from fsm.messages import Epoch
from fsm.receiver_room import ReceiverRoom
from fsm.table import REFUSE
from sim.render import Figure

ROUNDS = 7
"""Measurements of which the median counts."""

TRANSITIONS = 20_000
IN_FLIGHT = 40_000
POLLED = 10_000
SIMULATED_RUNS = 60
SIMULATED_ROUNDS = 3
CHECKED = "exhaust-two-requests"
CHECKED_STATES = 20_000
CHECKED_ROUNDS = 3

Say = Callable[[str], Any] | None
"""Told what is being measured."""

_TO_RESUMED = (
    ("registered", ReceiverFacts()),
    ("grant", ReceiverFacts()),
    ("landed", ReceiverFacts(partial=True)),
    ("resume", ReceiverFacts(resume_due=True)),
)
_ROUND_TRIP = (("landed", ReceiverFacts(partial=True)), ("resume", ReceiverFacts(resume_due=True)))
"""Two guarded transitions that lead back to where they began."""


def measure_all(say: Say = None) -> dict[str, list[Figure]]:
    """Every figure, by group."""
    parts: tuple[tuple[str, Callable[[Say], list[Figure]]], ...] = (
        ("lifecycle", lifecycle_figures),
        ("kernel", kernel_figures),
        ("simulate, on one core, everything checked", simulate_figures),
        ("check, on one core", check_figures),
        ("zoo, each variant under its slowest allocator", zoo_figures),
    )
    groups = {}
    for title, measure in parts:
        if say is not None:
            say(title)
        groups[title] = measure(say)
    return groups


def as_json(groups: dict[str, list[Figure]]) -> list[dict[str, Any]]:
    """The figures as plain data; ``docs/cli.md`` explains every field."""
    return [
        {
            "group": title, "name": figure.name, "value": figure.value, "unit": figure.unit, "target": figure.target,
            "better": figure.better, "met": figure.met, "aim": figure.aim, "note": figure.note,
        }
        for title, figures in groups.items()
        for figure in figures
    ]  # fmt: skip


def _time_us(run: Callable[[int], None], count: int) -> float:
    """Microseconds for one of ``count`` repetitions, the collector off."""
    was = gc.isenabled()
    gc.disable()
    try:
        started = perf_counter()
        run(count)
        return (perf_counter() - started) / count * 1e6
    finally:
        if was:
            gc.enable()


def in_turns(*runs: Callable[[int], None], count: int, rounds: int = ROUNDS) -> list[list[float]]:
    """Microseconds of each, round by round, so that what slows the machine down slows all of them."""
    for run in runs:
        run(max(count // 10, 1))
    times = [[_time_us(run, count) for run in runs] for _ in range(rounds)]
    return [list(column) for column in zip(*times, strict=True)]


# --- lifecycle ------------------------------------------------------------------------------------------


def _asked(name: str) -> Callable[..., bool]:
    guard = RECEIVER_TABLE.guards[name]
    return lambda facts: bool(guard(facts))


def bare_machine() -> transitions.Machine:
    """The receiver's rows in a plain ``transitions.Machine``, as anybody would write it."""
    machine = transitions.Machine(
        model=None,
        states=[str(state) for state in RECEIVER_TABLE.states],
        initial=str(RECEIVER_TABLE.initial),
        auto_transitions=False,
    )
    for state, rows in RECEIVER_TABLE.rows.items():
        for row in rows:
            if row.target != REFUSE:
                names = row.guard.replace(" ", "").split("&") if row.guard else []
                machine.add_transition(
                    row.event, str(state), str(row.target),
                    conditions=[_asked(name) for name in names if not name.startswith("!")],
                    unless=[_asked(name[1:]) for name in names if name.startswith("!")],
                )  # fmt: skip
    return machine


class _Plain:
    """A model that knows nothing but its state."""

    state = str(RECEIVER_TABLE.initial)


def lifecycle_figures(say: Say = None) -> list[Figure]:
    """A transition by lookup and by façade, and what a request costs to have."""
    flat, driven, plain = ReceiverLifecycle(), ReceiverLifecycle(), _Plain()
    events = bare_machine().events
    for event, facts in _TO_RESUMED:
        flat.fire_flat(event, facts)
        driven.fire(event, facts)
        events[event].trigger(plain, facts)

    def run_flat(count: int) -> None:
        fire = flat.fire_flat
        for _ in range(count // 2):
            for event, facts in _ROUND_TRIP:
                fire(event, facts)

    def run_driven(count: int) -> None:
        fire = driven.fire
        for _ in range(count // 2):
            for event, facts in _ROUND_TRIP:
                fire(event, facts)

    def run_bare(count: int) -> None:
        for _ in range(count // 2):
            for event, facts in _ROUND_TRIP:
                events[event].trigger(plain, facts)

    flat_us, driven_us, bare_us = in_turns(run_flat, run_driven, run_bare, count=TRANSITIONS)
    ratio = median(mine / theirs for mine, theirs in zip(driven_us, bare_us, strict=True))
    return [
        Figure("transition with history, flat lookup", median(flat_us), "us", 1.0),
        Figure("transition with history, through the façade", median(driven_us), "us"),
        Figure("the same, bare transitions", median(bare_us), "us"),
        Figure("façade over bare transitions", ratio, "x", 1.3, note="median over rounds"),
        *in_flight_figures(),
    ]


def _new_room(number: int) -> ReceiverRoom:
    return ReceiverRoom(number, Epoch(1, number), 0, 0.0)


def in_flight_figures() -> list[Figure]:
    """A receiver's record of a request, its place in the table included, with many others in flight."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        rooms = {number: _new_room(number) for number in range(IN_FLIGHT)}
        for room in rooms.values():
            for event, facts in _TO_RESUMED:
                room.fire_flat(event, facts)
        size = (tracemalloc.get_traced_memory()[0] - before) / IN_FLIGHT
    finally:
        tracemalloc.stop()

    def add_and_remove(count: int) -> None:
        for number in range(IN_FLIGHT, IN_FLIGHT + count):
            rooms[number] = _new_room(number)
            del rooms[number - IN_FLIGHT]
        for number in range(count):  # as it was, for the next round
            rooms[number] = rooms.pop(number + IN_FLIGHT)

    (times,) = in_turns(add_and_remove, count=IN_FLIGHT // 2)
    said = f"{IN_FLIGHT:,} in flight"
    return [
        Figure("memory of a request", size, "bytes", 1500.0, note=said),
        Figure("add and remove a request", median(times), "us", 10.0, note=said),
    ]


# --- kernel ---------------------------------------------------------------------------------------------


def kernel_figures(say: Say = None) -> list[Figure]:
    """One poll of many requests about which nothing changed."""
    count = POLLED
    state = np.where(np.arange(count) % 2, kernel.TRANSFERRING, kernel.RESUMING)
    total = np.full(count, 24_576)
    committed = np.full(count, 8_192)
    known = np.ones(count, bool)
    failure = np.zeros(count, np.int64)
    wants = np.zeros(count, bool)

    def poll(times: int) -> None:
        for _ in range(times):
            kernel.verdict(ARRAY, state, known, known, failure, total, committed, committed, committed, wants)

    (times_us,) = in_turns(poll, count=50)
    return [Figure("verdict on a request, nothing changed", median(times_us) * 1000 / count, "ns", 50.0,
                   note=f"{count:,} requests at once")]  # fmt: skip


# --- engines --------------------------------------------------------------------------------------------


def three_grants() -> Any:
    """A scenario in which every request takes three grants."""
    from sim.scenario import Pool, Request, Scenario, Schedule

    return Scenario(
        pool=Pool(blocks=4, block_tokens=4, grant_blocks_max=2),
        requests=(Request(tokens=24, count=8),),
        schedule=Schedule(ticks_max=100_000),
    )


def simulate_figures(say: Say = None) -> list[Figure]:
    """Whole lifecycles, every property checked, on either machine."""
    from sim.choices import Seeded
    from sim.engines.simulate import run_once

    scenario = three_grants()
    requests = len(scenario.expanded_requests())
    rates: dict[str, list[float]] = {"transitions": [], "flat": []}
    for _ in range(SIMULATED_ROUNDS):
        for machine, found in rates.items():
            started = perf_counter()
            for seed in range(SIMULATED_RUNS):
                run_once(scenario, Seeded(seed), machine=machine)
            found.append(SIMULATED_RUNS * requests / (perf_counter() - started))
    note = "three grants each"
    return [
        Figure(f"lifecycles, machine {machine}", median(found), "/s", 1000.0, "more", note, aim=5000.0)
        for machine, found in rates.items()
    ]


def check_figures(say: Say = None) -> list[Figure]:
    """States of a built-in scenario with faults, symmetry and all properties included."""
    from sim import zoo
    from sim.engines.check import check

    scenario = zoo.scenario_named(CHECKED)
    rates = []
    for _ in range(CHECKED_ROUNDS):
        started = perf_counter()
        result = check(scenario, states_max=CHECKED_STATES)
        rates.append(result.states / (perf_counter() - started))
    note = f"{CHECKED}, the first {result.states:,}"
    return [Figure("states", median(rates), "/s", 3000.0, "more", note, aim=10_000.0)]


def zoo_figures(say: Say = None) -> list[Figure]:
    """The shortest trace of every variant, one after the other, then the whole zoo on all cores."""
    from sim.cli_zoo import available_cores, run_zoo
    from sim.zoo_table import run_job, zoo_jobs

    slowest: dict[str, float] = {}
    for job in zoo_jobs():
        started = perf_counter()
        row, _ = run_job(job)
        took = perf_counter() - started
        if row.property:
            slowest[row.variant] = max(slowest.get(row.variant, 0.0), took)
        if say is not None:
            say(f"zoo, {row.variant}")
    figures = [Figure(f"shortest trace of {variant}", took, "s", 5.0) for variant, took in slowest.items()]
    cores = available_cores()
    started = perf_counter()
    run_zoo(cores, quiet=True)
    return [*figures, Figure("the whole zoo", perf_counter() - started, "s", 60.0, note=f"{cores} cores")]
