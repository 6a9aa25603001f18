"""Many scenarios, variants, allocators and seeds: the product of the axes, cut into cells that are run one by one.

A cell is one call of an engine, and a function of what it is given alone, so cells may run anywhere and in any order.
An axis that is left out is what the scenario itself says. Seeds are dealt out in portions of ``runs``; each seed is
run once. The cells of one scenario, variant and allocator make one row: it is broken if one of its cells is, and holds
if all do and, of what must occur for a pass to mean anything, everything did in some cell.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from fsm.allocators import ALLOCATORS
from fsm.errors import LocalError
from fsm.trace import Trace
from sim import zoo
from sim.engines.check import check
from sim.engines.executors import run_jobs
from sim.engines.result import EXIT_HOLDS, EXIT_LIVENESS, EXIT_SAFETY, EXIT_UNKNOWN, Result
from sim.engines.simulate import simulate
from sim.scenario import Scenario, validate_scenario

ENGINES = ("check", "simulate")
ALL = "all"
"""Stands for every name of an axis."""

FAILED = "failed"
"""In place of a verdict: the cell raised an error, and nothing is known."""

EXIT_FAULT = 70

_WORST = (EXIT_SAFETY, EXIT_LIVENESS, EXIT_FAULT, EXIT_UNKNOWN, EXIT_HOLDS)
"""Exit codes, the one that decides first: what is known to be broken comes before what is not known."""


class Cell(NamedTuple):
    """One call of an engine. ``seed`` and ``runs`` are for ``simulate``, ``states_max`` for ``check``."""

    number: int
    engine: str
    title: str
    scenario: Scenario
    seed: int | None
    runs: int
    states_max: int | None

    @property
    def variant(self) -> str:
        """The variant by its name; ``watermark`` is the protocol."""
        variant = self.scenario.variant
        names = [variant.detector] if variant.detector != "watermark" or not variant.hazards else []
        return "+".join([*names, *variant.hazards])

    @property
    def allocator(self) -> str:
        """Who deals out the landing blocks."""
        return self.scenario.pool.allocator

    @property
    def name(self) -> str:
        """What tells it from the others, in words."""
        seeds = "" if self.seed is None else f", seeds {self.seed} to {self.seed + self.runs - 1}"
        return f"{self.title}, {self.variant}, {self.allocator}{seeds}"


class Outcome(NamedTuple):
    """What a cell came to. ``seed`` is that of the run that broke a property; ``error`` is what was raised."""

    cell: Cell
    verdict: str
    coverage: str
    states: int
    runs: int
    exit_code: int
    property: str = ""
    step: int = 0
    text: str = ""
    seed: int | None = None
    missed: tuple[str, ...] = ()
    trace: Trace | None = None
    error: str = ""


@dataclass(frozen=True)
class Row:
    """All cells of one scenario, variant and allocator. ``first`` is the first that is broken, ``errors`` name those
    that failed."""

    title: str
    variant: str
    allocator: str
    verdict: str
    coverage: str
    states: int
    runs: int
    exit_code: int
    first: Outcome | None
    missed: tuple[str, ...]
    errors: tuple[str, ...]


# --- the cells -------------------------------------------------------------------------------------------


def select(
    scenarios: Sequence[tuple[str, Scenario]], variants: Sequence[str], allocators: Sequence[str]
) -> list[tuple[str, Scenario]]:
    """Each scenario with each variant under each allocator. With variants and no scenario, each variant runs in those
    that show it. Raises LocalError, naming it, for a name that does not exist or a combination that cannot be run."""
    variants = _names("variant", variants, (*zoo.DETECTORS, *zoo.HAZARDS))
    allocators = _names("allocator", allocators, tuple(ALLOCATORS))
    known = {**zoo.DETECTORS, **zoo.HAZARDS}
    chosen = [(title, zoo.with_variant(scenario, known[name])) for title, scenario in scenarios for name in variants]
    if not scenarios:
        shows = [(name, shown) for name in variants for shown in dict.fromkeys(pair[0] for pair in known[name].shows())]
        chosen = [(shown, zoo.with_variant(zoo.scenario_named(shown), known[name])) for name, shown in shows]
    elif not variants:
        chosen = list(scenarios)
    if allocators:
        chosen = [(title, _under(scenario, name)) for title, scenario in chosen for name in allocators]
    for title, scenario in chosen:
        validate_scenario(scenario, detectors=zoo.DETECTORS, hazards=zoo.HAZARDS, source=title)
        zoo.rules_for(scenario.variant.detector, scenario.variant.hazards)  # do they go together?
    return chosen


def _names(axis: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names of an axis, each once; ``all`` is every one."""
    for name in given:
        if name != ALL and name not in known:
            raise LocalError(f"there is no {axis} '{name}'; there are {', '.join(known)}, and {ALL}")
    return list(known) if ALL in given else list(dict.fromkeys(given))


def _under(scenario: Scenario, allocator: str) -> Scenario:
    return msgspec.structs.replace(scenario, pool=msgspec.structs.replace(scenario.pool, allocator=allocator))


def check_cells(chosen: Sequence[tuple[str, Scenario]], states_max: int | None = None) -> list[Cell]:
    """A cell for each, to be searched exhaustively."""
    return [
        Cell(number, "check", title, scenario, None, 0, states_max) for number, (title, scenario) in enumerate(chosen)
    ]


def simulate_cells(chosen: Sequence[tuple[str, Scenario]], seeds: range, runs: int) -> list[Cell]:
    """Cells of so many runs for each, until the seeds are used up. Raises LocalError for no seeds or no runs."""
    if not seeds or seeds.start < 0 or seeds.step != 1:
        raise LocalError(f"seeds {seeds.start} to {seeds.stop}: expected at least one, from 0 on, one after the other")
    if runs < 1:
        raise LocalError(f"runs={runs}: expected at least 1")
    portions = [seeds[low : low + runs] for low in range(0, len(seeds), runs)]
    dealt = [(title, scenario, portion) for title, scenario in chosen for portion in portions]
    return [
        Cell(number, "simulate", title, scenario, portion.start, len(portion), None)
        for number, (title, scenario, portion) in enumerate(dealt)
    ]


# --- running them ----------------------------------------------------------------------------------------


def run_cell(cell: Cell) -> Outcome:
    """One cell, in this process. It does not raise: an error is its outcome."""
    try:
        if cell.engine == "check":
            return _outcome(cell, check(cell.scenario, states_max=cell.states_max))
        return _outcome(cell, simulate(cell.scenario, seed=cell.seed or 0, runs=cell.runs, jobs=1))
    except Exception as error:
        return failed(cell, f"{type(error).__name__}: {error}")


def _outcome(cell: Cell, result: Result) -> Outcome:
    outcome = Outcome(cell, result.verdict, result.coverage, result.states, result.runs, result.exit_code)
    if not result.violations:
        return outcome._replace(missed=result.missed)
    found = result.violations[0]
    return outcome._replace(
        property=found.property, step=found.step, text=found.text, seed=found.trace.header.seed, trace=found.trace
    )


def failed(cell: Cell, error: str) -> Outcome:
    """The outcome of a cell of which nothing is known."""
    return Outcome(cell, FAILED, "none", 0, 0, EXIT_FAULT, error=error)


def sweep(cells: Sequence[Cell], executor: str = "process", processes: int = 1) -> Generator[Outcome, None, None]:
    """The outcome of each cell, in order, whoever runs it. If a worker dies, its cell fails, and all after it."""
    lost = ""
    with closing(run_jobs(run_cell, cells, executor, processes)) as outcomes:
        for cell in cells:
            try:
                outcome = failed(cell, f"not run: {lost}") if lost else next(outcomes)
            except RuntimeError as error:
                lost = str(error) or type(error).__name__
                outcome = failed(cell, lost)
            yield outcome


def rows_of(outcomes: Iterable[Outcome]) -> list[Row]:
    """A row for each scenario, variant and allocator, in the order of their first cells."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        cell = outcome.cell
        groups.setdefault((cell.title, cell.variant, cell.allocator), []).append(outcome)
    return [_row(key, group) for key, group in groups.items()]


def _row(key: tuple[str, str, str], group: Sequence[Outcome]) -> Row:
    broken = [outcome for outcome in group if outcome.property]
    failures = [outcome for outcome in group if outcome.verdict == FAILED]
    finished = [outcome for outcome in group if outcome.verdict != FAILED]
    missed = tuple(
        name for name in (finished[0].missed if finished else ()) if all(name in one.missed for one in finished)
    )
    if broken:
        # Safety first: its exit code decides.
        first = min(broken, key=lambda outcome: (_WORST.index(outcome.exit_code), outcome.cell.number))
        verdict, code = "violated", first.exit_code
    elif failures:
        first, verdict, code = None, FAILED, EXIT_FAULT
    elif finished[0].cell.engine == "simulate":
        # What one portion of the seeds did not meet, another may have.
        first, (verdict, code) = None, ("unknown", EXIT_UNKNOWN) if missed else ("holds", EXIT_HOLDS)
    else:
        first, verdict, code = None, finished[0].verdict, finished[0].exit_code
    return Row(
        *key, verdict, finished[0].coverage if finished else "none",
        states=sum(outcome.states for outcome in group), runs=sum(outcome.runs for outcome in group), exit_code=code,
        first=first, missed=() if broken else missed,
        errors=tuple(f"{outcome.cell.name}: {outcome.error}" for outcome in failures),
    )  # fmt: skip


def exit_code_of(rows: Sequence[Row]) -> int:
    """The worst: broken safety, broken liveness, a cell that failed, a bound that ran out; 0 if all hold."""
    codes = [row.exit_code for row in rows]
    return next((code for code in _WORST if code in codes), EXIT_HOLDS)


def trace_name(outcome: Outcome) -> str:
    """The name of the file for the trace of a cell."""
    cell = outcome.cell
    seed = "" if outcome.seed is None else f"-seed-{outcome.seed}"
    return f"{cell.number:05d}-{Path(cell.title).stem}-{cell.variant}-{cell.allocator}{seed}.jsonl"
