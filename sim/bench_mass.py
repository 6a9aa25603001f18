"""What a lifecycle costs in a mass simulation, and in the simulator that drives the objects: ``resumark bench mass``.

One core, processor time, the median of several rounds. A lifecycle is one request on all its ranks, from its submit to
its end on both sides, with nothing left behind. In every figure decisions are drawn, folded into digests, and clauses
judged; what differs is how often. Preparing (writing the turns down, compiling them) is a figure of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

from sim import zoo
from sim.choices import Seeded
from sim.engines.simulate import run_once
from sim.mass.batch import USUAL, Mass
from sim.model.protocol_bounded import Bounds
from sim.render import Figure
from sim.vector import code

ROUNDS = 5
RUNS = 400_000
ARRAY_RUNS = 60_000
OBJECT_RUNS = 40
OBJECTS = "exhaust-two-requests"
"""The scenario of the simulator that drives the objects: two requests, as here."""
QUICK = 40
"""With ``quick`` there are so many times fewer runs."""

ONE = Bounds(blocks=2, size=3, crashes=1, grant_blocks_max=1)
TWO_RANKS = Bounds(rooms=2, ranks=2, senders=2, blocks=2, size=3, crashes=1)

Say = Callable[[str], Any] | None
"""Told what is being measured."""


def measure_all(say: Say = None, *, quick: bool = False) -> dict[str, list[Figure]]:
    """Every figure, by group. ``quick``: few runs, for which there are no targets."""
    figures = lane_figures(say, quick=quick)
    figures += object_figures(say, quick=quick)
    if quick:
        figures = [figure._replace(target=None, aim=None) for figure in figures]
    return {"mass simulation, on one core": figures}


def lane_figures(say: Say = None, *, quick: bool = False) -> list[Figure]:
    """Lanes: compiled, if llvmlite is there, and in numpy."""
    figures = []
    if code.available():
        runs = RUNS // QUICK if quick else RUNS
        usual, prepared_s = _rate(say, "llvm", USUAL, runs, each_turn=True)
        note = "2 requests, 2 blocks, 3 tokens; clauses after each turn"
        figures += [
            Figure("lifecycles", usual, "/s", 5e5, "more", note, aim=2e6),
            Figure("preparing them", prepared_s, "s", note="once, for any number of runs"),
        ]
        for name, bounds, each_turn, note in (
            ("the same, less judged", USUAL, False, "clauses at the end of each round"),
            ("one request", ONE, True, "3 grants of 1 block"),
            ("two ranks", TWO_RANKS, True, "2 requests on both"),
        ):
            figures.append(Figure(name, _rate(say, "llvm", bounds, runs, each_turn=each_turn)[0], "/s", note=note))
    runs = ARRAY_RUNS // QUICK if quick else ARRAY_RUNS
    rate, _ = _rate(say, "numpy", USUAL, runs, each_turn=False)
    return [*figures, Figure("without llvmlite", rate, "/s", note="numpy; clauses at the end of each round")]


def _rate(say: Say, engine: str, bounds: Bounds, runs: int, *, each_turn: bool) -> tuple[float, float]:
    """Lifecycles per second of processor time, and the seconds that it took to prepare."""
    if say is not None:
        say(f"lanes on {engine}, {bounds.rooms} requests, {runs:,} runs")
    began = process_time()
    mass = Mass(bounds, engine=engine, each_turn=each_turn)
    mass.prepare(runs)
    prepared_s = process_time() - began
    rates = []
    for number in range(ROUNDS):
        began = process_time()
        result = mass.run(number, runs)
        rates.append(result.lifecycles / max(process_time() - began, 1e-9))
    return median(rates), prepared_s


def object_figures(say: Say = None, *, quick: bool = False) -> list[Figure]:
    """The simulator that drives the objects, and a run of lanes that is made again with them."""
    if say is not None:
        say("the simulator that drives the objects")
    scenario = zoo.scenario_named(OBJECTS)
    runs = max(OBJECT_RUNS // QUICK if quick else OBJECT_RUNS, 2)
    rates, replays = [], []
    mass = Mass(USUAL)
    for number in range(ROUNDS):
        began = process_time()
        done = sum(run_once(scenario, Seeded(number * runs + run), machine="flat").lifecycles for run in range(runs))
        rates.append(done / max(process_time() - began, 1e-9))
        began = process_time()
        mass.replay(number, 1)
        replays.append(1e3 * (process_time() - began))
    return [
        Figure("the simulator of the objects", median(rates), "/s", note=f"scenario {OBJECTS}, machine flat"),
        Figure("one run made again with objects", median(replays), "ms", note="every clause after each step"),
    ]
