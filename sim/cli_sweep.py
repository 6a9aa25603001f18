"""``resumark sweep``: many scenarios, variants, allocators and seeds, on all cores or on a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from enum import Enum
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fsm.errors import LocalError
from sim import render, zoo
from sim.cli_common import (
    JsonOption,
    command_line,
    exit_with,
    find_scenario,
    output,
    print_json,
    reports_errors,
    save_trace,
    with_command,
)
from sim.cli_run import RUNS_LIMIT, SEED_LIMIT
from sim.cli_zoo import available_cores
from sim.engines.executors import check_executor
from sim.progress import bar
from sim.scenario import Scenario, load_scenario
from sim.sweep import (
    ALL,
    FAILED,
    Cell,
    Outcome,
    Row,
    check_cells,
    exit_code_of,
    rows_of,
    select,
    simulate_cells,
    sweep,
    trace_name,
)

SEEDS = "0:1000"
"""The seeds that are run if none are named."""
RUNS = 100
"""Seeds in a cell if it is not told."""

RESULTS_FILE = "results.jsonl"


class EngineName(str, Enum):
    """What runs a cell."""

    check = "check"
    simulate = "simulate"


class ExecutorName(str, Enum):
    """Who does the work."""

    process = "process"
    ray = "ray"


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("sweep")(sweep_command)


ScenariosArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SCENARIO ...]",
        help="TOML files, names of built-in scenarios, or 'all'. Left out: those that show the variants.",
        show_default=False,
    ),
]
VariantsOption = Annotated[
    str,
    typer.Option(
        "--variants",
        metavar="NAME,...",
        help="Detectors and hazards of the zoo, each by itself, or 'all'. Left out: what the scenario says.",
        show_default=False,
    ),
]
AllocatorsOption = Annotated[
    str,
    typer.Option(
        "--allocators",
        metavar="NAME,...",
        help="Allocators, or 'all'. Left out: what the scenario says.",
        show_default=False,
    ),
]
SeedsOption = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        metavar="FROM:TO",
        help=f"simulate: each of these seeds is run once; TO is not. Left out: {SEEDS}.",
        show_default=False,
    ),
]
RunsOption = Annotated[
    int | None,
    typer.Option(
        "--runs",
        metavar="N",
        min=1,
        max=RUNS_LIMIT,
        help=f"simulate: seeds in a cell, which is what is handed out at once. Left out: {RUNS}.",
        show_default=False,
    ),
]
StatesOption = Annotated[
    int | None,
    typer.Option(
        "--states-max", metavar="N", min=1, help="check: give up a cell after so many states.", show_default=False
    ),
]
ExecutorOption = Annotated[
    ExecutorName, typer.Option("--executor", help="Processes here, or Ray (with RAY_ADDRESS: that cluster).")
]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", metavar="N", min=1, help="Processes; left out: one for each core.", show_default=False),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="A new folder: a line for each cell as it ends, and the trace of each broken one.",
        file_okay=False,
        show_default=False,
    ),
]


@reports_errors
def sweep_command(
    scenarios: ScenariosArgument = None,
    engine: Annotated[EngineName, typer.Option("--engine", help="Exhaustive, or random runs.")] = EngineName.check,
    variants: VariantsOption = "",
    allocators: AllocatorsOption = "",
    seeds: SeedsOption = None,
    runs: RunsOption = None,
    states_max: StatesOption = None,
    executor: ExecutorOption = ExecutorName.process,
    jobs: JobsOption = None,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Run every scenario with every variant under every allocator, each cell by itself; the worst decides.

    The results are the same, and in the same order, for every executor and any number of jobs.
    """
    check_executor(executor.value)
    cells, command = _cells(scenarios or [], engine, variants, allocators, seeds, runs, states_max)
    save = _saving(out)
    started = monotonic()
    outcomes = []
    processes = jobs or available_cores()
    with (
        bar("sweeping", len(cells), quiet=json) as shown,
        closing(sweep(cells, executor.value, processes)) as results,
    ):
        for outcome in results:
            save(outcome)
            outcomes.append(outcome)
            if shown is not None:
                shown.update(len(outcomes), f"{len(outcomes):,} of {len(cells):,}; {outcome.cell.name}")
    rows = rows_of(outcomes)
    code = exit_code_of(rows)
    if json:
        cells_json = [_cell_json(outcome) for outcome in outcomes]
        print_json({"engine": engine.value, "rows": [_row_json(row) for row in rows], "cells": cells_json,
                    "exit_code": code, "command": command})  # fmt: skip
    else:
        _print_rows(output(), rows, len(cells), monotonic() - started, out, command)
    exit_with(code)


# --- what is asked for -----------------------------------------------------------------------------------


def _cells(
    names: Sequence[str], engine: EngineName, variants: str, allocators: str, seeds: str | None, runs: int | None,
    states_max: int | None,
) -> tuple[list[Cell], str]:  # fmt: skip
    """The cells, and the command that asks for them."""
    if not names and not variants:
        raise LocalError(
            f"nothing to sweep: name scenarios ('{ALL}': every built-in one), or --variants, which run where they show"
        )
    arguments = list(names)
    for option, value in (("--variants", variants), ("--allocators", allocators)):
        arguments += [option, value] if value else []
    chosen = select(_scenarios(names), _listed(variants), _listed(allocators))
    if engine is EngineName.check:
        if seeds is not None or runs is not None:
            raise LocalError("--seeds and --runs are for --engine simulate: a search tries everything, and draws none")
        arguments += ["--states-max", str(states_max)] if states_max is not None else []
        return check_cells(chosen, states_max), command_line("sweep", *arguments)
    if states_max is not None:
        raise LocalError("--states-max is for --engine check: random runs keep no states")
    arguments += ["--engine", "simulate", "--seeds", seeds or SEEDS, "--runs", str(runs or RUNS)]
    return simulate_cells(chosen, _seeds(seeds or SEEDS), runs or RUNS), command_line("sweep", *arguments)


def _listed(value: str) -> list[str]:
    return [name.strip() for name in value.split(",")] if value else []


def _scenarios(names: Sequence[str]) -> list[tuple[str, Scenario]]:
    wanted = [each for name in names for each in (zoo.scenario_names() if name == ALL else [name])]
    return [
        (name, load_scenario(find_scenario(name), detectors=zoo.DETECTORS, hazards=zoo.HAZARDS))
        for name in dict.fromkeys(wanted)
    ]


def _seeds(text: str) -> range:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise LocalError(f"--seeds: got '{text}', expected FROM:TO with TO left out, such as {SEEDS}")
    seeds = range(int(match[1]), int(match[2]))
    if not seeds or seeds.stop > SEED_LIMIT:
        raise LocalError(f"--seeds: got '{text}', expected FROM below TO, and neither above {SEED_LIMIT}")
    return seeds


# --- what comes of it ------------------------------------------------------------------------------------


def _saving(folder: Path | None) -> Callable[[Outcome], None]:
    """What is to be done with each outcome. Raises LocalError before there is any, if the folder cannot be had."""
    if folder is None:
        return lambda outcome: None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise LocalError(f"--out: {folder}: {error.strerror or error}") from None
    if taken:
        raise LocalError(f"--out: {folder} is not empty; name a new folder, so that no results are mixed")

    def save(outcome: Outcome) -> None:
        try:
            with (folder / RESULTS_FILE).open("a", encoding="utf-8") as lines:
                lines.write(msgspec.json.encode(_cell_json(outcome)).decode() + "\n")
        except OSError as error:
            raise LocalError(f"--out: {folder / RESULTS_FILE}: {error.strerror or error}") from None
        if outcome.trace is not None:
            save_trace(with_command(outcome.trace, _command_of(outcome)), folder / trace_name(outcome))

    return save


def _command_of(outcome: Outcome) -> str:
    """The command that runs a cell again; one run of it, where a property was broken in a random run."""
    cell = outcome.cell
    variant = cell.scenario.variant
    arguments = [cell.title, "--detector", variant.detector]
    for hazard in variant.hazards:
        arguments += ["--hazard", hazard]
    arguments += ["--allocator", cell.allocator]
    if cell.engine == "simulate":
        first, runs = (cell.seed, cell.runs) if outcome.seed is None else (outcome.seed, 1)
        arguments += ["--seed", str(first), "--runs", str(runs)]
    elif cell.states_max is not None:
        arguments += ["--states-max", str(cell.states_max)]
    return command_line(cell.engine, *arguments)


def _cell_json(outcome: Outcome) -> dict[str, Any]:
    """A cell: a line of the results file, and one of ``cells`` with ``--json``."""
    cell = outcome.cell
    return {
        "cell": cell.number, "engine": cell.engine, "scenario": cell.title, "variant": cell.variant,
        "allocator": cell.allocator, "seed": cell.seed, "verdict": outcome.verdict, "coverage": outcome.coverage,
        "states": outcome.states, "runs": outcome.runs, "property": outcome.property, "steps": outcome.step,
        "text": outcome.text, "broken_seed": outcome.seed, "missed": list(outcome.missed), "error": outcome.error,
        "trace_file": trace_name(outcome) if outcome.trace is not None else None,
        "exit_code": outcome.exit_code, "command": _command_of(outcome),
    }  # fmt: skip


def _row_json(row: Row) -> dict[str, Any]:
    first = row.first
    return {
        "scenario": row.title, "variant": row.variant, "allocator": row.allocator, "verdict": row.verdict,
        "coverage": row.coverage, "states": row.states, "runs": row.runs,
        "property": first.property if first else "", "steps": first.step if first else 0,
        "missed": list(row.missed), "errors": list(row.errors), "exit_code": row.exit_code,
        "command": _command_of(first) if first else None,
    }  # fmt: skip


_STYLES = {"holds": "bold green", "violated": "bold red", "unknown": "bold yellow", FAILED: "bold red"}


def _print_rows(
    console: Console, rows: Sequence[Row], cells: int, elapsed_s: float, out: Path | None, command: str
) -> None:
    counted = "runs" if any(row.runs for row in rows) else "states"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("scenario", "variant", "allocator", "verdict", "coverage", counted, "broken", "steps"):
        table.add_column(column, justify="right" if column in (counted, "steps") else "left", overflow="fold")
    for row in rows:
        broken, steps = (row.first.property, str(row.first.step)) if row.first else ("", "")
        count = render.number(row.runs if counted == "runs" else row.states)
        verdict = Text(row.verdict, style=_STYLES.get(row.verdict, ""))
        table.add_row(row.title, row.variant, row.allocator, verdict, row.coverage, count, broken, steps)
    console.print(table)
    for row in rows:
        for error in row.errors:
            console.print(f"failed: {error}", style="bold red", soft_wrap=True)
        if row.missed:
            console.print(f"unknown: {row.title}, {row.variant}, {row.allocator}: {', '.join(row.missed)} did not "
                          "occur, so this is no pass")  # fmt: skip
    verdicts = dict.fromkeys(row.verdict for row in rows)
    summary = ", ".join(f"{verdict} {sum(row.verdict == verdict for row in rows)}" for verdict in verdicts)
    console.print(
        f"{render.plural(len(rows), 'row')} of {render.plural(cells, 'cell')} in {render.seconds(elapsed_s)}: {summary}"
    )
    if out is not None:
        console.print(f"Results are in {out / RESULTS_FILE}, the trace of each broken cell beside it.", soft_wrap=True)
    worst = next((row.first for row in rows if row.first and row.exit_code == exit_code_of(rows)), None)
    console.print()
    if worst is not None:
        render.print_command(console, _command_of(worst), "to see the run that breaks it:")
    render.print_command(console, command)
