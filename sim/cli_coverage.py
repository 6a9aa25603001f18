"""``resumark coverage``: for each row of each table, who takes it; a row that nothing takes is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim import coverage, render
from sim.cli_common import JsonOption, command_line, exit_with, output, print_json, reports_errors
from sim.cli_tools import TABLES, TableName
from sim.coverage import HIT, LEFT, NOT_HIT, UNEXPECTED, UNKNOWN, Line, Ran, SuiteHits
from sim.progress import Bar, bar

NOT_MEASURED = "not measured"
HOW_TO_MEASURE = "RESUMARK_EDGES=hits.json pytest, then --tests hits.json"

MARKS = {
    HIT: "",
    NOT_HIT: "hit by nothing",
    UNKNOWN: "hit by neither check nor simulate",
    LEFT: "left to the tests",
    UNEXPECTED: "hit, though no run is meant to",
}
"""What stands under a row, where its numbers do not say it."""

ROW_COLUMNS = 56
"""Columns of the longest row."""

STYLES = {"holds": "bold green", "violated": "bold red", "unknown": "bold yellow"}


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("coverage")(coverage_command)


@reports_errors
def coverage_command(
    tests: Annotated[
        Path | None,
        typer.Option(
            "--tests",
            metavar="FILE",
            dir_okay=False,
            show_default=False,
            help="Hits of a run of the test suite, as RESUMARK_EDGES=FILE pytest writes them. Left out: not measured.",
        ),
    ] = None,
    table: Annotated[
        TableName | None, typer.Option("--table", help="This table alone; left out: all three.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """For each row of each lifecycle's table: how often check, simulate, Hypothesis and the tests take it.

    Exit code 1 if nothing takes a row; 4 if neither check nor simulate does and the tests were not measured.
    """
    suite = None if tests is None else coverage.read_suite(tests)
    with bar("counting", quiet=json) as shown:
        checked = coverage.count_check(progress=_progress(shown))
        simulated = coverage.count_simulate(progress=_progress(shown))
    lines = coverage.ledger_lines(checked.hits, simulated.hits, suite)
    if table is not None:
        lines = [line for line in lines if line.table == TABLES[table.value].name]
    ran = (*checked.ran, *simulated.ran)
    verdict, code = coverage.verdict_of(lines, ran)
    arguments = [*(["--tests", str(tests)] if tests else []), *(["--table", table.value] if table else [])]
    command = command_line("coverage", *arguments)
    if json:
        print_json(_as_json(lines, ran, suite, tests, verdict, code, command))
    else:
        print_ledger(output(), lines, ran, suite, tests, command)
    exit_with(code)


def _progress(shown: Bar | None) -> Callable[[int, int, str], None] | None:
    if shown is None:
        return None

    def report(done: int, total: int, text: str) -> None:
        shown.update(done, text, total)

    return report


# --- for people -----------------------------------------------------------------------------------------


def print_ledger(
    console: Console,
    lines: Sequence[Line],
    ran: Sequence[Ran],
    suite: SuiteHits | None,
    file: Path | None,
    command: str,
) -> None:
    """What was counted, the rows of each table with their hits, and what it comes to."""
    render.print_facts(console, source_facts(ran, suite, file))
    for name in dict.fromkeys(line.table for line in lines):
        console.print()
        console.print(ledger_table(name, [line for line in lines if line.table == name], measured=suite is not None))
    console.print()
    render.print_facts(console, verdict_facts(lines, ran))
    console.print()
    render.print_command(console, command)


def source_facts(ran: Sequence[Ran], suite: SuiteHits | None, file: Path | None) -> list[tuple[str, str | Text]]:
    """Of what the hits are, before there are any."""
    checked = [each.result for each in ran if each.engine == "check"]
    exhausted = sum(result.coverage == "exhausted" for result in checked)
    states = sum(result.states for result in checked)
    facts: list[tuple[str, str | Text]] = [
        (
            "check",
            f"{render.plural(len(checked), 'built-in scenario')}, {exhausted} of them exhausted, "
            f"{render.plural(states, 'state')}; hits are of distinct steps of a process",
        )
    ]
    for each in ran:
        if each.engine == "simulate":
            seeds = f"seeds {coverage.SEED} to {coverage.SEED + each.result.runs - 1}"
            facts.append(("simulate", f"{each.scenario}, sampled: {seeds}, on machine {coverage.MACHINE}"))
    if suite is None:
        facts.append(("tests", f"{NOT_MEASURED}; to measure them: {HOW_TO_MEASURE}"))
    else:
        tests = render.plural(suite.tests, "test")
        facts.append(("tests", f"{tests}, {render.number(suite.hypothesis_tests)} of them by Hypothesis, from {file}"))
    return facts


def ledger_table(name: str, lines: Sequence[Line], *, measured: bool) -> Table:
    """One table: its rows that move, then apart those that refuse."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column(name, overflow="fold", min_width=ROW_COLUMNS)
    missing = "" if measured else "\n" + NOT_MEASURED.replace(" ", "\n")
    for column in ("check", "simulate", f"Hypothesis{missing}", f"tests{missing}"):
        table.add_column(column, justify="right", no_wrap=True)
    titled = False
    for line in lines:
        if line.edge.refuses and not titled:
            titled = True
            table.add_section()
            table.add_row(Text("refused", style="bold"))
        table.add_row(_row_text(line), *map(_count, (line.check, line.simulate, line.hypothesis, line.tests)))
    return table


def _row_text(line: Line) -> Text:
    text = Text(str(line.edge))
    mark = MARKS[line.verdict]
    if mark and not (line.verdict == LEFT and line.edge.refuses):
        text.append(f"\n   {mark}", style="bold red" if line.verdict in (NOT_HIT, UNEXPECTED) else "yellow")
    return text


def _count(hits: int | None) -> str:
    return "-" if hits is None else render.number(hits)


def verdict_facts(lines: Sequence[Line], ran: Sequence[Ran]) -> list[tuple[str, str | Text]]:
    """The verdict, and how many rows there are of each kind."""
    verdict, _ = coverage.verdict_of(lines, ran)
    facts: list[tuple[str, str | Text]] = [("verdict", Text(verdict, STYLES[verdict]))]
    kinds = [line.verdict for line in lines]
    said = {**MARKS, HIT: "hit", LEFT: f"left to the tests, which were {NOT_MEASURED}"}
    counts = [f"{kinds.count(kind)} {words}" for kind, words in said.items() if kind in kinds]
    facts.append(("rows", f"{render.number(len(lines))}: {'; '.join(counts)}"))
    for verdict in (NOT_HIT, UNEXPECTED, UNKNOWN):
        facts += [(MARKS[verdict], f"{line.table}, {line.edge}") for line in lines if line.verdict == verdict]
    why: dict[str, list[str]] = {}
    for line in lines:
        if line.left:
            why.setdefault(line.left, []).append(f"{line.table}, {line.edge}")
    for reason, rows in why.items():
        named = rows[0] if len(rows) == 1 else f"{len(rows)} rows"
        facts.append(("no run takes", f"{named}: {reason}"))
    for each in ran:
        for found in each.result.violations:
            facts.append(("broken", f"{found.property}: resumark {each.engine} {each.scenario}"))
    return facts


# --- for programs ---------------------------------------------------------------------------------------


def _as_json(
    lines: Sequence[Line],
    ran: Sequence[Ran],
    suite: SuiteHits | None,
    file: Path | None,
    verdict: str,
    code: int,
    command: str,
) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "ran": [
            {
                "engine": each.engine, "scenario": each.scenario, "verdict": each.result.verdict,
                "coverage": each.result.coverage, "states": each.result.states, "runs": each.result.runs,
                "seed": each.result.seed, "digest": each.result.digest,
            }
            for each in ran
        ],
        "tests": None
        if suite is None
        else {"file": str(file), "tests": suite.tests, "hypothesis_tests": suite.hypothesis_tests},
        "rows": [coverage.line_json(line) for line in lines],
        "exit_code": code,
        "command": command,
    }  # fmt: skip
