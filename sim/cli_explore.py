"""``resumark explore``: a run as a page to look at, in one file that needs no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.text import Text

from fsm.errors import LocalError
from fsm.trace import WORKER, Trace
from sim import render
from sim.cli_common import (
    AllocatorOption,
    DetectorOption,
    HazardOption,
    JsonOption,
    check_properties,
    check_writable,
    choose_scenario,
    command_line,
    exit_code_of,
    exit_with,
    output,
    print_json,
    reports_errors,
)
from sim.cli_conform import files_of
from sim.cli_trace import point_of
from sim.engines.check import check
from sim.engines.guided import version_named
from sim.engines.replay import replay, scenario_of
from sim.engines.result import Result
from sim.explorer.build import nodes_wanted, ordinary_run, page_of_seen, page_of_trace
from sim.explorer.html import html_of, parts
from sim.explorer.page import Page, Run
from sim.explorer.perfetto import write_perfetto
from sim.explorer.runs import version_name
from sim.progress import bar, search_progress
from sim.trace_file import read_trace

STATES_MAX = 200_000
"""The default bound of the search for a counterexample: half a minute."""

SHOWN = "sent-accumulate"
"""The version that is shown if nothing is named: it reads blocks that are not written yet."""

PROTOCOL = "watermark"
"""The version that others are shown beside."""


class FormatName(str, Enum):
    """What is written."""

    html = "html"
    perfetto = "perfetto"


_NAMES = {FormatName.html: "explore.html", FormatName.perfetto: "explore.perfetto.json"}
"""What the file is called if nobody says."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("explore")(explore_command)


@dataclass(frozen=True)
class _Options:
    """What the page is to have in it."""

    named: tuple[str, ...]
    """The scenario or the files that were named."""
    found_by: tuple[str, ...]
    """The arguments that lead to the run."""
    shown_by: tuple[str, ...]
    title: str
    versus: str | None
    alone: bool
    nodes_max: int | None
    quiet: bool


WhatArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SCENARIO|TRACE", show_default=False,
        help="A scenario as for check, a trace, or the traces (or their directory) of the real workers of one run.",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="P", help="Look for this property alone; may be repeated.", show_default=False),
]
StatesOption = Annotated[
    int | None,
    typer.Option(
        "--states-max", metavar="N", min=1, show_default=f"{STATES_MAX:,}",
        help="Search no more states for a counterexample.",
    ),
]
TimeOption = Annotated[
    float | None,
    typer.Option("--time-max", metavar="SECONDS", min=0.001, help="Search no longer.", show_default=False),
]
ToOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", dir_okay=False, help="Where the page goes.",
        show_default="explore.html",
    ),
]
FormatOption = Annotated[
    FormatName, typer.Option("--format", help="A page, or a file for the Perfetto viewer.")
]
VersusOption = Annotated[
    str | None,
    typer.Option(
        "--versus", metavar="VERSION", show_default=f"{PROTOCOL}, if the run is of another version",
        help="Another version on the same choices, beside the run.",
    ),
]
AloneOption = Annotated[bool, typer.Option("--alone", help="Show no other version beside the run.")]
GraphOption = Annotated[
    int | None,
    typer.Option(
        "--graph-states", metavar="N", min=0, show_default="2,000, in small worlds",
        help="So many states around the run, for other choices; 0: none.",
    ),
]
TitleOption = Annotated[
    str | None, typer.Option("--title", metavar="TEXT", help="Of the page.", show_default=False)
]


@reports_errors
def explore_command(
    what: WhatArgument = None,
    detector: DetectorOption = None,
    hazard: HazardOption = None,
    allocator: AllocatorOption = None,
    only: OnlyOption = None,
    states_max: StatesOption = None,
    time_max: TimeOption = None,
    to: ToOption = None,
    form: FormatOption = FormatName.html,
    versus: VersusOption = None,
    alone: AloneOption = False,
    graph_states: GraphOption = None,
    title: TitleOption = None,
    json: JsonOption = False,
) -> None:
    """Write a run as a page: who says what to whom, every block over time, the watermark, the lifecycles.

    Of a scenario it is the shortest counterexample that check finds, else a run that ends well. The page is one file,
    needs no network, and lets other choices be taken than the run took.
    """
    target = to or Path(_NAMES[form])
    check_writable(target)
    if form is FormatName.perfetto and graph_states:
        raise LocalError("--graph-states: only a page lets other choices be taken; leave it out")
    write = writer(form)
    search = {"--detector": detector, "--hazard": hazard, "--allocator": allocator, "--only": only,
              "--states-max": states_max, "--time-max": time_max}  # fmt: skip
    shown = {"--versus": versus, "--graph-states": graph_states, "--title": title}
    nodes_max = graph_states if form is FormatName.html else 0
    options = _options_of(_in_directories(what or []), search, shown, alone, nodes_max, json)
    page, facts, code = _page_asked_for(options, search)
    data = write(page)
    save(data, target)
    written = [] if form is FormatName.html else ["--format", form.value]
    written += [] if to is None else ["-o", str(to)]
    command = command_line("explore", *options.found_by, *options.shown_by, *written)
    if json:
        print_json(_answer(page, target, form, len(data), code, command))
    else:
        _print(page, facts, target, form, len(data), command)
    exit_with(code)


def _options_of(
    named: list[str],
    search: dict[str, Any],
    shown: dict[str, Any],
    alone: bool,
    nodes_max: int | None,
    quiet: bool,
) -> _Options:
    """What was asked for. A version is chosen in ``search`` where none and no scenario is named."""
    versus = shown["--versus"]
    if versus is not None and alone:
        raise LocalError("--versus and --alone contradict each other; give one of them")
    if versus is not None:
        version_named(versus)
    if not named and search["--detector"] is None and not search["--hazard"]:
        search["--detector"] = SHOWN
    arguments = _arguments(named, search, shown, alone)
    return _Options(tuple(named), *arguments, shown["--title"] or "", versus, alone, nodes_max, quiet)


def _page_asked_for(options: _Options, search: dict[str, Any]) -> tuple[Page, Told, int]:
    """The page of a scenario or of traces, what is to be said of it, and the exit code."""
    named = options.named
    traces = [name for name in named if is_trace(name)]
    if traces:
        _refuse_with_traces(named, traces, search)
        return _page_of_files(traces, options)
    if len(named) > 1:
        raise LocalError(f"{len(named)} scenarios; expected one, or one or several traces")
    return _page_of_scenario(named, search, options)


def is_trace(name: str) -> bool:
    """Whether a file is meant that is no scenario."""
    path = Path(name)
    return path.suffix != ".toml" and path.is_file()


def _in_directories(what: Sequence[str]) -> list[str]:
    """What was named, and for a directory the traces in it, as ``conform`` takes them."""
    return [found for name in what for found in (map(str, files_of([Path(name)])) if Path(name).is_dir() else [name])]


def writer(form: FormatName) -> Callable[[Page], bytes]:
    """What makes the file. Raises LocalError where the page's script was not built."""
    if form is FormatName.html:
        return partial(html_of, built=parts())
    return write_perfetto


def save(data: bytes, path: Path) -> None:
    """Write the file. Raises LocalError where that is not possible."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise LocalError(f"{path}: cannot be written: {error.strerror or error}") from None


def _arguments(
    named: Sequence[str], search: dict[str, Any], shown: dict[str, Any], alone: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The arguments that lead to the same run again, and those that say how it is shown."""

    def given(options: dict[str, Any]) -> list[str]:
        arguments = []
        for option, value in options.items():
            for item in value if isinstance(value, list) else [value]:
                if item is not None:
                    arguments += [option, f"{item:g}" if isinstance(item, float) else str(item)]
        return arguments

    return (*named, *given(search)), (*given(shown), *(["--alone"] if alone else []))


def _refuse_with_traces(named: Sequence[str], traces: Sequence[str], search: dict[str, Any]) -> None:
    """What goes with scenarios only."""
    if len(traces) < len(named):
        other = next(name for name in named if name not in traces)
        raise LocalError(f"{other}: no trace file, and {traces[0]} is one; give one scenario, or traces")
    for option, value in search.items():
        if value:
            raise LocalError(f"{option}: a trace is of the version that made it; leave it out (and see --versus)")


# --- pages ----------------------------------------------------------------------------------------------

Told = list[tuple[str, str | Text]]
"""What is printed of how a page came about."""


def _page_of_scenario(named: Sequence[str], search: dict[str, Any], options: _Options) -> tuple[Page, Told, int]:
    only = check_properties(search["--only"])
    chosen = choose_scenario(
        named[0] if named else None, search["--detector"], search["--hazard"], search["--allocator"],
        property=only[0] if only else "",
    )  # fmt: skip
    with bar("searching", quiet=options.quiet) as shown:
        result = check(
            chosen.scenario, states_max=search["--states-max"] or STATES_MAX, time_max_s=search["--time-max"],
            only=only or None, progress=search_progress(shown), clock=monotonic,
        )  # fmt: skip
    facts: Told = [("explore", f"scenario {chosen.title}"), ("variant", render.variant_text(chosen.scenario)),
                   *render.verdict_facts(result)]  # fmt: skip
    told = [("scenario", chosen.title), ("check", _searched(result))]
    trace, code = None, result.exit_code
    if result.violations:
        trace = result.violations[0].trace
        command = command_line("check", *options.found_by)
    else:
        outcome = ordinary_run(chosen.scenario)
        trace, command = outcome.trace, command_line("explore", *options.found_by)
        assert trace is not None, "the run was recorded"
        told.append(("this run", _one_of_many(result, trace)))
        facts.append(("shown", told[-1][1]))
        if outcome.violations:
            code = exit_code_of([violation.property for violation in outcome.violations])
    return _page_of(trace, options, command, told), facts, code


def _searched(result: Result) -> str:
    """What the search came to, without how long it took: the same command is to make the same page."""
    states, transitions = render.plural(result.states, "state"), render.plural(result.transitions, "transition")
    return f"{result.verdict}; {result.coverage}: {states}, {transitions}, depth {result.depth}"


def _one_of_many(result: Result, trace: Trace) -> str:
    """What a run stands for that was not found by the search."""
    seed = trace.header.seed
    if trace.ending.property:
        return f"a run without faults, of seed {seed}, breaks {trace.ending.property}; the search had not got there"
    return f"one run of very many, without faults, of seed {seed}; it shows how things go, and proves nothing"


def _page_of_files(traces: Sequence[str], options: _Options) -> tuple[Page, Told, int]:
    read = [read_trace(Path(name)) for name in traces]
    if any(trace.header.engine == WORKER for trace in read):
        if options.versus is not None or options.nodes_max:
            option = "--versus" if options.versus is not None else "--graph-states"
            raise LocalError(f"{option}: a real run cannot be made again with other choices; leave it out")
        page = page_of_seen(list(map(Path, traces)), title=options.title, command=command_line("conform", *traces))
        whose = f"{len(traces)} real workers" if len(traces) > 1 else "one real worker"
        return page, [("explore", f"what {whose} saw")], _code_of(page.runs[0])
    if len(read) > 1:
        raise LocalError(f"{len(read)} traces of the simulator; expected one (or several of real workers)")
    replay(read[0], notes=False)
    header = read[0].header
    facts: Told = [("explore", f"{traces[0]}, found by {header.engine}"),
                   ("variant", render.variant_text(scenario_of(header)))]  # fmt: skip
    command = header.command or command_line("replay", traces[0])
    page = _page_of(read[0], options, command, [("trace", traces[0]), ("found by", header.engine)])
    return page, facts, _code_of(page.runs[0])


def _page_of(trace: Trace, options: _Options, command: str, told: list[tuple[str, str]]) -> Page:
    """The page of a trace of the simulator, with all that was asked for."""
    name = version_name(scenario_of(trace.header))
    versus = options.versus if options.versus is not None else PROTOCOL
    if options.alone or (options.versus is None and name == PROTOCOL):
        versus = ""
    point = point_of(trace, quiet=options.quiet) if trace.ending.property else None
    nodes_max = nodes_wanted(trace, options.nodes_max)
    with bar("states around the run", nodes_max, quiet=options.quiet) as shown:
        return page_of_trace(
            trace, title=options.title, command=command, facts=told, point=point, versus=versus,
            versus_command=command_line("explore", *options.found_by, *options.shown_by), nodes_max=nodes_max,
            progress=None if shown is None else lambda nodes: shown.update(min(nodes, nodes_max), f"{nodes:,} states"),
        )  # fmt: skip


def _code_of(run: Run) -> int:
    return exit_code_of([mark.property for mark in run.marks if mark.kind == "violation"])


# --- what is said ---------------------------------------------------------------------------------------


def _print(page: Page, facts: Told, target: Path, form: FormatName, size: int, command: str) -> None:
    console = output()
    run = page.runs[0]
    lines: Told = [*facts]
    if run.origin in (WORKER,) or not any(label == "verdict" for label, _ in facts):
        lines.append(("verdict", _verdict_text(run)))
    lines.append(("run", f"{render.plural(len(run.steps) - 1, 'step')}: {_marks_text(run)}"))
    for other in page.runs[1:]:
        lines.append(("beside it", f"{other.name} on the same choices, {_verdict_text(other)}"))
    if page.graph is not None:
        graph = page.graph
        extent = "all there are" if graph.complete else "those nearest to the run"
        lines.append(("states", f"{graph.nodes:,} to step through, {extent}; {len(graph.choices):,} choices"))
    lines.append(("page" if form is FormatName.html else "file", f"{target}, {size / 1000:,.0f} kB"))
    render.print_facts(console, lines)
    console.print()
    viewer = "a browser; it needs no network" if form is FormatName.html else "https://ui.perfetto.dev"
    render.print_command(console, f"{target} in {viewer}", "open     ")
    render.print_command(console, command)


def _verdict_text(run: Run) -> str:
    broken = [mark for mark in run.marks if mark.kind == "violation"]
    if not broken:
        return "which breaks no property in this run" if run.origin == "guided" else "no property is broken in this run"
    return f"breaks {broken[0].property} at step {broken[0].step}: {broken[0].text}"


def _marks_text(run: Run) -> str:
    """What there is to jump to."""
    names = {"violation": "violation", "no-return": "point of no return", "resume": "resume", "fault": "fault",
             "cycle": "cycle", "inferred": "inferred"}  # fmt: skip
    parts = []
    for kind, name in names.items():
        steps = list(dict.fromkeys(str(mark.step or "the start") for mark in run.marks if mark.kind == kind))
        if steps:
            more = f" and {len(steps) - 6} more" if len(steps) > 6 else ""
            parts.append(f"{name} at {', '.join(steps[:6])}{more}")
    return "; ".join(parts) or "nothing to jump to"


def _answer(page: Page, target: Path, form: FormatName, size: int, code: int, command: str) -> dict[str, Any]:
    """What ``--json`` answers; ``docs/cli.md`` explains every field."""
    graph = page.graph
    return {
        "page": str(target),
        "format": form.value,
        "bytes": size,
        "title": page.title,
        "verdict": {0: "holds", 4: "unknown"}.get(code, "violated"),
        "runs": [
            {
                "name": run.name,
                "origin": run.origin,
                "verdict": run.verdict,
                "steps": len(run.steps) - 1,
                "facts": dict(run.facts),
                "marks": [
                    {"kind": mark.kind, "step": mark.step, "property": mark.property or None, "text": mark.text}
                    for mark in run.marks
                ],
                "command": run.command,
            }
            for run in page.runs
        ],
        "graph": None
        if graph is None
        else {
            "states": graph.nodes,
            "choices": len(graph.choices),
            "edges": len(graph.edges),
            "complete": graph.complete,
            "depth": graph.depth,
        },
        "exit_code": code,
        "command": command,
    }
