"""``resumark zoo``: every variant under every allocator family, on all cores, in one table."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
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

GROUPS = (
    ("protocol", "The protocol"),
    ("detector", "Detectors that were shipped"),
    ("hazard", "Hazards, one at a time"),
)
"""Kinds of variants and what the table calls them, in its order."""

HOLDS = "holds"


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("zoo")(zoo_command)


@reports_errors
def zoo_command(
    json: JsonOption = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Also write the table as a picture.", show_default=False)
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
    exit_with(0 if all(as_expected(row) for row in rows) else EXIT_SAFETY)


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quiet_worker() -> None:
    """A worker that is interrupted says nothing: its parent does. What a job raises reaches the parent anyway."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def run_zoo(cores: int, *, quiet: bool) -> list[Any]:
    """All rows in the order of the jobs."""
    from sim import zoo

    work = list(zoo.zoo_jobs())
    rows: list[Any] = [None] * len(work)
    with bar("breaking the zoo", len(work), quiet=quiet) as shown:
        for done, (position, row) in enumerate(_results(zoo.run_job, work, cores), start=1):
            rows[position] = row
            if shown is not None:
                shown.update(done, f"{row.variant} {row.allocator}")
    return rows


def _results(run: Callable[[Any], Any], work: Sequence[Any], cores: int) -> Iterable[tuple[int, Any]]:
    """(position, row) as they come."""
    if cores == 1:
        yield from ((position, run(job)) for position, job in enumerate(work))
        return
    # Started afresh rather than forked: this process may have threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(cores, len(work) or 1), context, quiet_worker)
    try:
        futures = {pool.submit(run, job): position for position, job in enumerate(work)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# --- rows -----------------------------------------------------------------------------------------------


def as_expected(row: Any) -> bool:
    """Whether the row found what it should, and was sure of it: what must hold must hold exhausted."""
    if row.expected in ("", HOLDS):
        return bool(row.verdict == HOLDS and row.coverage == "exhausted")
    return bool(row.verdict == "violated" and row.property in row.expected.replace(",", " ").split())


def row_json(row: Any) -> dict[str, Any]:
    """One row of ``zoo --json``; ``docs/cli.md`` explains every field."""
    names = ("variant", "kind", "allocator", "verdict", "expected", "property", "steps", "states", "coverage", "command")
    return {**{name: getattr(row, name) for name in names}, "as_expected": as_expected(row)}


def group_of(row: Any) -> str:
    """The protocol stands apart from what was built instead of it."""
    return "protocol" if str(row.variant).split("-")[0] == "watermark" else str(row.kind)


def lines_of(rows: Iterable[Any]) -> list[render.ZooLine]:
    """Rows of one variant that agree in everything but the allocator become one line, in the order of the first."""
    merged: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        key = (row.variant, row.expected, row.verdict, row.property, row.coverage, as_expected(row))
        merged.setdefault(key, []).append(row)
    order = list(dict.fromkeys(key[0] for key in merged))
    return [
        render.ZooLine(
            variant=first.variant,
            kind=group_of(first),
            allocators=tuple(dict.fromkeys(row.allocator for row in alike)),
            verdict=first.verdict,
            property=first.property or "",
            expected=first.expected or HOLDS,
            as_expected=as_expected(first),
            steps=tuple(row.steps for row in alike if row.steps and row.property),
            states=tuple(row.states for row in alike),
            coverage=first.coverage,
        )
        for alike in sorted(merged.values(), key=lambda rows: order.index(rows[0].variant))
        for first in alike[:1]
    ]


def print_zoo(console: Console, rows: Sequence[Any], elapsed_s: float | None, cores: int) -> None:
    """The table, what it comes to, and how to see a trace."""
    lines = lines_of(rows)
    groups = [(title, [line for line in lines if line.kind == kind]) for kind, title in GROUPS]
    allocators = list(dict.fromkeys(row.allocator for row in rows))
    console.print(render.zoo_table([group for group in groups if group[1]], allocators))
    console.print()
    variants = len({row.variant for row in rows})
    time = f" in {render.seconds(elapsed_s)} on {render.plural(cores, 'core')}" if elapsed_s is not None else ""
    text = f"{render.plural(variants, 'variant')}, {render.plural(len(rows), 'search')[:-1]}es{time}: "
    wrong = [row for row in rows if not as_expected(row)]
    if wrong:
        text += f"{len(wrong)} not as expected, marked '!'"
        console.print(Text(text, style="bold red"))
    else:
        console.print(Text.assemble(text, ("all as expected", "bold green"), "."))
    console.print()
    _print_commands(console, rows)


def usual_command(row: Any) -> str:
    """The command that shows a variant on its own scenario."""
    return command_line("check", f"--{row.kind}", row.variant)


def _print_commands(console: Console, rows: Sequence[Any]) -> None:
    """The command for any trace; in full where the usual form would show another one."""
    console.print("The shortest trace of a line, step by step:")
    console.print(Text("  resumark check --detector VARIANT    or  --hazard VARIANT    (and --allocator NAME)"))
    odd: dict[str, Any] = {}
    for row in rows:
        usual = usual_command(row)
        if row.property and row.command not in (usual, f"{usual} --allocator {row.allocator}"):
            odd.setdefault(row.command.split(" --allocator ")[0], row)
    if odd:
        console.print("and for lines that have a scenario of their own:")
        for command, row in odd.items():
            console.print(Text(f"  {command}    # {row.property}"), soft_wrap=True)
