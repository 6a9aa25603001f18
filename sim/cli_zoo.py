"""``resumark zoo``: every variant under every allocator family, on all cores, in one table."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from sim import render
from sim.cli_common import JsonOption, command_line, exit_with, output, print_json, reports_errors
from sim.engines.result import EXIT_SAFETY
from sim.progress import bar
from sim.zoo_table import TABLES, Job, Row, run_job, zoo_jobs

GROUPS = (
    ("protocol", "The protocol"),
    ("detector", "Detectors, as shipped"),
    ("hazard", "Hazards, one at a time"),
)
"""Kinds of variants and what the table calls them, in its order."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("zoo")(zoo_command)


@reports_errors
def zoo_command(
    json: JsonOption = False,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="Also write the table as a picture.", show_default=False),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", min=1, help="Processes; left out: one for each core.", show_default=False),
    ] = None,
) -> None:
    """Run every version that was really shipped or written down, and find the shortest run that breaks each.

    Exit code 0 if every row is as expected, 1 otherwise.
    """
    started = monotonic()
    cores = jobs or available_cores()
    rows = run_zoo(cores, quiet=json)
    if json:
        print_json([row_json(row) for row in rows])
    else:
        print_zoo(output(), rows, monotonic() - started, cores)
    if svg is not None:
        picture = Console(record=True, width=100, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
        print_zoo(picture, rows, None, cores)
        svg.write_text(picture.export_svg(title="resumark zoo"), encoding="utf-8")
    exit_with(0 if all(row.as_expected for row in rows) else EXIT_SAFETY)


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quiet_worker() -> None:
    """A worker that is interrupted says nothing: its parent does. What a job raises reaches the parent anyway."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def run_zoo(cores: int, *, quiet: bool) -> list[Row]:
    """All rows in the order of the jobs."""
    work = zoo_jobs()
    rows: dict[int, Row] = {}
    with bar("breaking the zoo", len(work), quiet=quiet) as shown:
        for position, row in _results(work, cores):
            rows[position] = row
            if shown is not None:
                shown.update(len(rows), f"{row.variant}, {row.allocator}")
    return [rows[position] for position in range(len(work))]


def find_out(job: Job) -> Row:
    """One row, without the rest of what the search answers."""
    return run_job(job)[0]


def _results(work: Sequence[Job], cores: int) -> Iterable[tuple[int, Row]]:
    """(position, row) as they come."""
    if cores == 1:
        yield from ((position, find_out(job)) for position, job in enumerate(work))
        return
    # Started afresh rather than forked: this process may have threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(cores, len(work) or 1), context, quiet_worker)
    try:
        futures = {pool.submit(find_out, job): position for position, job in enumerate(work)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# --- rows -----------------------------------------------------------------------------------------------


def row_json(row: Row) -> dict[str, Any]:
    """One row of ``zoo --json``; ``docs/cli.md`` explains every field."""
    return row._asdict()


def group_of(row: Row) -> str:
    """The protocol stands apart from what was built instead of it."""
    return "protocol" if row.variant in TABLES else row.kind


def lines_of(rows: Iterable[Row]) -> list[render.ZooLine]:
    """Rows of one variant that agree in everything but the allocator become one line, in the order of the first."""
    merged: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.variant, row.expected, row.verdict, row.property, row.coverage, row.as_expected)
        merged.setdefault(key, []).append(row)
    return [
        render.ZooLine(
            variant=alike[0].variant,
            kind=group_of(alike[0]),
            allocators=tuple(dict.fromkeys(row.allocator for row in alike)),
            verdict=alike[0].verdict,
            property=alike[0].property,
            expected=alike[0].expected,
            as_expected=alike[0].as_expected,
            steps=tuple(row.steps for row in alike if row.property),
            states=tuple(row.states for row in alike),
            coverage=alike[0].coverage,
        )
        for alike in merged.values()
    ]


def print_zoo(console: Console, rows: Sequence[Row], elapsed_s: float | None, cores: int) -> None:
    """The table, what it comes to, and how to see a trace."""
    lines = lines_of(rows)
    groups = [(title, [line for line in lines if line.kind == kind]) for kind, title in GROUPS]
    allocators = list(dict.fromkeys(row.allocator for row in rows))
    console.print(render.zoo_table([group for group in groups if group[1]], allocators, console.width))
    console.print()
    variants = len({row.variant for row in rows})
    time = f" in {render.seconds(elapsed_s)} on {render.plural(cores, 'core')}" if elapsed_s is not None else ""
    text = f"{render.plural(variants, 'variant')}, {render.plural(len(rows), 'row')}{time}: "
    wrong = sum(not row.as_expected for row in rows)
    if wrong:
        console.print(Text(f"{text}{wrong} not as expected, marked '!'", style="bold red"))
    else:
        console.print(Text.assemble(text, ("all as expected", "bold green"), "."))
    console.print()
    console.print("To see the shortest run of a line, step by step:")
    console.print("  resumark check --detector|--hazard VARIANT --only PROPERTY [--allocator NAME]")
    example = next((row for row in rows if row.property), None)
    if example is not None:
        arguments = (f"--{example.kind}", example.variant, "--only", example.property)
        render.print_command(console, command_line("check", *arguments), "  for instance: ")
