"""``resumark conform``: whether traces of real workers are runs of the protocol, and the first event that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fsm.conform.words import RULES
from fsm.errors import LocalError
from fsm.invariants import PROPERTIES
from sim import render
from sim.cli_common import (
    JsonOption,
    check_writable,
    command_line,
    exit_with,
    output,
    print_json,
    reports_errors,
)
from sim.cli_tools import group
from sim.cli_trace import save_text
from sim.cli_view import views_of
from sim.engines.conform import Conformance, RefusedAt, conform
from sim.engines.minimise import MINIMISE_STATES_MAX, Minimised, minimise
from sim.engines.no_return import no_return
from sim.progress import Bar, bar, search_progress
from sim.pytest_file import pytest_file

TracesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="TRACE",
        help="Traces of workers, one of each process, or a directory of them; or one trace of the simulator.",
        show_default=False,
    ),
]  # fmt: skip
MinimiseOption = Annotated[
    Path | None,
    typer.Option(
        "--minimise", metavar="FILE", dir_okay=False, show_default=False,
        help="Write the shortest run of the simulator that breaks the same property, as a test.",
    ),
]  # fmt: skip
StatesMaxOption = Annotated[
    int | None,
    typer.Option(
        "--states-max", metavar="N", min=1, show_default=False,
        help=f"With --minimise: give up each search after so many states; left out: {MINIMISE_STATES_MAX:,}.",
    ),
]  # fmt: skip

UNENDED_SHOWN_MAX = 12
"""So many requests that have not ended are shown."""

_ENDINGS = {"whole": "", "cut": "no ending", "": "not read to its end"}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("conform")(conform_command)
    group(app, "bench", "Measure what things cost here, beside what they should.").command("conform")(
        bench_conform_command
    )


@reports_errors
def conform_command(
    traces: TracesArgument,
    minimise_to: MinimiseOption = None,
    states_max: StatesMaxOption = None,
    json: JsonOption = False,
) -> None:
    """Read traces of workers, and find the first event that the protocol cannot do.

    They are merged by causality. Only what is missing for a reason is inferred, and that is counted.
    """
    check_writable(minimise_to)
    if states_max is not None and minimise_to is None:
        raise LocalError("--states-max bounds the search of --minimise; give that too")
    files = files_of(traces)
    with bar("reading", quiet=json) as shown:
        answer = conform(files, progress=_reading(shown))
    short = None
    if minimise_to is not None and (answer.refused is not None or answer.violations):
        with bar("searching", quiet=json) as shown:
            short = minimise(answer, files, states_max=states_max, progress=search_progress(shown))
            _write_test(short, minimise_to, command_line("conform", *map(str, traces), "--minimise", str(minimise_to)))
    command = command_line("conform", *map(str, traces))
    if json:
        print_json(_json(answer, short, minimise_to, command))
    else:
        _show(output(), answer, command)
        if minimise_to is not None:
            _show_minimised(output(), answer, short, minimise_to)
    exit_with(answer.exit_code)


@reports_errors
def bench_conform_command(
    quick: Annotated[bool, typer.Option("--quick", help="Few events: does it work?")] = False, json: JsonOption = False
) -> None:
    """Events a second of `conform`, from file to verdict, on one core."""
    from sim import bench, bench_conform

    with bar("measuring", quiet=json) as shown:
        say = None if shown is None else lambda text: shown.update(text=text)
        groups = bench_conform.measure_all(say, quick=quick)
    if json:
        print_json(bench.as_json(groups))
    else:
        render.print_figures(output(), groups)


def files_of(traces: list[Path]) -> list[Path]:
    """The traces, those in a directory by name. Raises :class:`LocalError` for a directory that has none."""
    files: list[Path] = []
    for path in traces:
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found:
            raise LocalError(f"{path}: there is no trace in this directory; expected files whose names end in .jsonl")
        files += found
    return files


def _write_test(short: Minimised, path: Path, command: str) -> None:
    """The test file of what was found, if anything was."""
    if short.best is not None:
        trace = short.best.trace
        save_text(pytest_file(trace, views_of(trace), no_return(trace).step, path.name, command), path)


def _reading(shown: Bar | None) -> Any:
    if shown is None:
        return None
    return lambda events: shown.update(text=f"{events:,} events")


# --- for people -----------------------------------------------------------------------------------------


def _show(console: Console, answer: Conformance, command: str) -> None:
    _processes(console, answer)
    console.print()
    render.print_facts(console, _facts(answer))
    console.print()
    if answer.refused is not None:
        _refusal(console, answer.refused)
    for violation in answer.violations:
        render.print_facts(console, [(violation.property, PROPERTIES[violation.property]), ("", violation.text)])
        console.print()
    if answer.unended:
        _unended(console, answer)
    if answer.inferred:
        _inferred(console, answer)
    render.print_command(console, command)


def _processes(console: Console, answer: Conformance) -> None:
    table = Table("process", "events", "trace", "what is missing", box=None, pad_edge=False, header_style="bold")
    table.columns[1].justify = "right"
    for told in answer.processes:
        missing = [f"{told.dropped:,} events before its first" if told.dropped else "", _ENDINGS[told.over]]
        missing.append(f"in {render.plural(told.holes, 'hole')}" if told.holes else "")
        missing.append("" if told.messages else "messages")
        table.add_row(told.name, f"{told.events:,}", Path(told.file).name, "; ".join(part for part in missing if part))
    console.print(table)


def _facts(answer: Conformance) -> list[tuple[str, str | Text]]:
    style = {"conforms": "bold green", "unknown": "bold yellow"}.get(answer.verdict, "bold red")
    facts: list[tuple[str, str | Text]] = [("verdict", Text(answer.verdict, style=style))]
    ended = ", ".join(f"{state} {count}" for state, count in answer.ended.items() if count) or "none"
    facts.append(("coverage", "sampled: one run, as these traces tell it"))
    facts.append(("events", _accepted(answer)))
    facts.append(("ended", f"{ended} (on receiver ranks)"))
    return facts


def _accepted(answer: Conformance) -> str:
    read = f"{answer.events:,} read in one causal order"
    if answer.verdict == "unknown":
        return f"{read}, and none that says what a process did: there is nothing to judge"
    if not answer.inferred:
        return f"{read}, none inferred"
    if answer.inferred_total == 1:
        return f"{read}; 1 more is in no trace, and was inferred (below)"
    return f"{read}; {answer.inferred_total:,} more are in no trace, and were inferred (below)"


def _refusal(console: Console, refused: RefusedAt) -> None:
    refusal = refused.refusal
    lines = [("event", refused.event), ("where", f"{refused.file}, {_place(refused)}"), ("rule", _rule(refusal.rule))]
    lines.append(("why", refusal.text))
    if refusal.state:
        lines.append(("state", refusal.state))
    if refused.other:
        lines.append(("against", refused.other))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in lines:
        grid.add_row(label, text)
    for number, could in enumerate(refusal.could):
        grid.add_row("could" if not number else "", could)
    if refusal.property and refusal.property != refusal.rule:
        grid.add_row("guards", f"{refusal.property}, {PROPERTIES[refusal.property]}")
    console.print(Panel(grid, title="the first event that the protocol cannot do", title_align="left", expand=False))
    console.print()


def _place(refused: RefusedAt) -> str:
    if refused.process == "the world":
        return f"step {refused.line}"
    return f"line {refused.line}, {refused.at_s:.6f} s after its header"


def _rule(rule: str) -> str:
    return f"{rule}: {RULES.get(rule) or PROPERTIES.get(rule, '')}"


def _inferred(console: Console, answer: Conformance) -> None:
    table = Table("inferred", "what", "because", box=None, pad_edge=False, header_style="bold")
    table.columns[0].justify = "right"
    for found in answer.inferred:
        table.add_row(f"{found.times:,}", found.what, found.why)
    console.print(table)
    console.print()


def _unended(console: Console, answer: Conformance) -> None:
    table = Table("not ended", "where it stands", "what could come", box=None, pad_edge=False, header_style="bold")
    for found in answer.unended[:UNENDED_SHOWN_MAX]:
        name = f"room {found.room} rank {found.receiver_rank}"
        table.add_row(name, found.state, "; ".join(could for could in found.could if not could.endswith("(fail)")))
    console.print(table)
    more = len(answer.unended) - UNENDED_SHOWN_MAX
    if more > 0:
        console.print(f"and {more:,} more; --json has them all")
    console.print()


def _show_minimised(console: Console, answer: Conformance, short: Minimised | None, path: Path) -> None:
    console.print()
    if short is None:
        console.print("minimise: nothing is refused, so there is nothing to make shorter; no file was written")
        return
    render.print_facts(console, [("minimised", line) if not n else ("", line) for n, line in enumerate(short.lines())])
    if short.written:
        render.print_command(console, f"pytest {path}", "test     ")


# --- for programs ---------------------------------------------------------------------------------------


def _json(answer: Conformance, short: Minimised | None, path: Path | None, command: str) -> dict[str, Any]:
    """What ``conform --json`` answers; ``docs/cli.md`` explains every field."""
    refused = answer.refused
    return {
        "verdict": answer.verdict,
        "coverage": "sampled",
        "processes": [
            {
                "process": told.name, "trace": told.file, "events": told.events, "dropped": told.dropped,
                "holes": told.holes, "messages": told.messages, "ending": told.over or None,
            }
            for told in answer.processes
        ],
        "events": answer.events,
        "ended": answer.ended,
        "refused": None if refused is None else {
            "trace": refused.file, "line": refused.line, "at_s": refused.at_s, "process": refused.process,
            "event": refused.event, "kind": refused.kind, "rule": refused.refusal.rule, "text": refused.refusal.text,
            "state": refused.refusal.state, "could": list(refused.refusal.could),
            "property": refused.refusal.property or None, "against": refused.other or None,
        },
        "violations": [{"property": v.property, "text": v.text} for v in answer.violations],
        "unended": [
            {
                "side": found.side, "receiver_rank": found.receiver_rank, "room": found.room,
                "epoch": list(found.epoch), "state": found.state, "could": list(found.could),
            }
            for found in answer.unended
        ],
        "inferred": [{"what": found.what, "because": found.why, "times": found.times} for found in answer.inferred],
        "minimised": None if short is None else short.as_json(path),
        "exit_code": answer.exit_code,
        "command": command,
    }  # fmt: skip
