"""``resumark replay`` and ``resumark shrink``: a run again, step by step, and a shorter one that breaks the same."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from fsm.errors import LocalError
from fsm.trace import WORKER, Trace
from sim import render
from sim.cli_common import (
    JsonOption,
    TraceOption,
    check_writable,
    command_line,
    exit_code_of,
    exit_with,
    output,
    print_json,
    reports_errors,
    save_trace,
)
from sim.cli_seen import replay_seen
from sim.cli_view import StepView, views_of
from sim.engines.no_return import STATES_MAX, NoReturn, no_return
from sim.engines.replay import replay, scenario_of
from sim.engines.result import EXIT_UNKNOWN
from sim.engines.shortest import STATES_MAX as SAME_STATES_MAX
from sim.engines.shortest import Shortest, shortest
from sim.engines.shrink import shrink
from sim.progress import Bar, bar, search_progress
from sim.pytest_file import pytest_file
from sim.trace_file import read_trace

TraceArgument = Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file.", show_default=False)]

PytestOption = Annotated[
    Path | None,
    typer.Option(
        "--pytest", metavar="FILE", dir_okay=False, show_default=False,
        help="Write a test that fails for this version, and passes for the protocol.",
    ),
]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("replay")(replay_command)
    app.command("shrink")(shrink_command)


def print_views(console: Console, trace: Trace) -> None:
    """Run a trace and print it, a line a step, with the point of no return."""
    print_marked(console, views_of(trace), point_of(trace))


def print_marked(console: Console, views: list[StepView], point: NoReturn) -> None:
    """Print a trace with its point of no return; where that was not found, what is known of it stands below."""
    render.print_trace(console, views, point.step)
    if point.coverage and point.step is None:
        console.print(Text(f"point of no return: {point.text}", style="dim"), soft_wrap=True)
    console.print()


def point_of(trace: Trace, *, quiet: bool = False) -> NoReturn:
    """The point of no return of a trace that fits."""
    with bar("looking for the point of no return", STATES_MAX, quiet=quiet) as shown:
        return no_return(trace, progress=None if shown is None else lambda states: shown.update(states))


def point_json(point: NoReturn) -> dict[str, Any]:
    """The point of no return for programs: a step from 1 (0: from the start) or nothing, and how it was found."""
    how = {"coverage": point.coverage, "states": point.states, "states_max": point.states_max,
           "first": point.first, "last": point.last, "text": point.text}  # fmt: skip
    return {"point_of_no_return": point.step, "no_return": how if point.coverage else None}


def print_broken(console: Console, trace: Trace) -> None:
    """The property that a trace breaks, last: its text, the step, and how."""
    if trace.ending.property:
        render.print_broken(console, trace.ending.property, trace.ending.text, len(trace.steps))
    else:
        console.print("No property is broken in this run.")
    console.print()


@reports_errors
def replay_command(trace: TraceArgument, pytest: PytestOption = None, json: JsonOption = False) -> None:
    """Run a trace again, strictly, and show it: a line a step, differences only, a column for each rank.

    A trace that no longer fits the program is an error that names the step. The trace of a real worker is not run
    again: the checkers look at the events that it saw.
    """
    read = read_trace(trace)
    check_writable(pytest)
    if read.header.engine == WORKER:
        if pytest is not None:
            raise LocalError(f"{trace}: the trace of a real worker has no steps that a test could do again")
        replay_seen(read, trace, json=json)
        return
    replayed = replay(read)
    broken = read.ending.property
    command = command_line("replay", str(trace))
    views, point = views_of(read), point_of(read, quiet=json)
    if pytest is not None:
        save_text(pytest_file(read, views, point.step, pytest.name, read.header.command or command), pytest)
    written = {"pytest_file": None if pytest is None else str(pytest)}
    if json:
        print_json({**replay_json(read, views, replayed.digest, trace, command), **point_json(point), **written})
    else:
        console = output()
        _print_header(console, read, trace)
        print_marked(console, views, point)
        print_broken(console, read)
        render.print_facts(console, [("digest", replayed.digest)])
        render.print_command(console, command_line("explore", str(trace)), "see it   ")
        render.print_command(console, read.header.command or command)
        if pytest is not None:
            render.print_command(console, shlex.join(["pytest", str(pytest)]), "test     ")
    exit_with(exit_code_of([broken] if broken else []))


@reports_errors
def shrink_command(
    trace: TraceArgument,
    same_state: Annotated[
        bool, typer.Option("--same-state", help="Look for the shortest run that ends in the same state.")
    ] = False,
    states_max: Annotated[
        int | None,
        typer.Option(
            "--states-max", metavar="N", min=1, show_default=False,
            help=f"With --same-state: give up after so many states; left out: {SAME_STATES_MAX:,}.",
        ),
    ] = None,
    time_max: Annotated[
        float | None,
        typer.Option(
            "--time-max", metavar="SECONDS", min=0.001, show_default=False,
            help="With --same-state: give up after so long.",
        ),
    ] = None,
    to: TraceOption = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Find a shorter run that breaks the same property; with --same-state the shortest to where this one failed.

    It is written beside the trace as NAME.short.jsonl, or to --trace FILE.
    """
    read = read_trace(trace)
    if read.header.engine == WORKER:
        raise LocalError(f"{trace}: the trace of a real worker has no steps that could be left out")
    if not same_state and (states_max is not None or time_max is not None):
        raise LocalError("--states-max and --time-max bound the search of --same-state; give that too")
    target = to or trace.with_name(f"{trace.stem}.short{trace.suffix or '.jsonl'}")
    check_writable(target)
    answer = None
    with bar("searching" if same_state else "shrinking", quiet=json) as shown:
        if same_state:
            answer = shortest(
                read, states_max=states_max, time_max_s=time_max, progress=search_progress(shown),
                trying=shrink_progress(shown), clock=monotonic,
            )  # fmt: skip
            short = answer.trace
        else:
            short = shrink(read, progress=shrink_progress(shown))
    save_trace(short, target)
    command = command_line("replay", str(target))
    code = EXIT_UNKNOWN if answer is not None and answer.coverage == "bounded" else 0
    if json:
        print_json(shrink_json(trace, read, short, target, answer, code, command))
    else:
        console = output()
        _print_header(console, read, trace)
        print_views(console, short)
        print_broken(console, short)
        steps = f"{len(read.steps)} before, {len(short.steps)} after; written to {target}"
        render.print_facts(console, [("steps", steps), *(_same_state_facts(answer) if answer is not None else [])])
        render.print_command(console, command, "replay")
    exit_with(code)


def shrink_json(
    path: Path, read: Trace, short: Trace, target: Path, answer: Shortest | None, code: int, command: str
) -> dict[str, Any]:
    """What ``shrink --json`` answers; ``docs/cli.md`` explains every field."""
    same_state = None
    if answer is not None:
        same_state = {
            "coverage": answer.coverage, "steps_min": answer.steps_min, "faults": answer.faults,
            "states": answer.states, "transitions": answer.transitions, "depth": answer.depth,
            "ran_out": answer.ran_out or None, "elapsed_s": round(answer.elapsed_s, 3),
        }  # fmt: skip
    return {
        "trace": str(path),
        "steps_before": len(read.steps),
        "steps_after": len(short.steps),
        "property": short.ending.property,
        "text": short.ending.text,
        "same_state": same_state,
        **point_json(point_of(short, quiet=True)),
        "written": str(target),
        "exit_code": code,
        "command": command,
    }


def _same_state_facts(answer: Shortest) -> list[tuple[str, str | Text]]:
    """How a search for the way to one state ended."""
    spent = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in answer.faults.items())
    within = f"no more faults than this trace spent ({spent})" if spent else "no faults, as in this trace"
    size = f"{render.plural(answer.states, 'state')}, {render.plural(answer.transitions, 'transition')}, "
    size += f"depth {answer.depth}, {render.seconds(answer.elapsed_s)}"
    if answer.coverage == "exhausted":
        what = f"exhausted: no run with {within} gets to this state and breaks this property there in fewer steps"
        return [("coverage", f"{what}; {size}")]
    what = f"bounded: {answer.ran_out}. No run with {within} gets to this state in fewer than {answer.steps_min} steps"
    offer = "resumark shrink without --same-state looks for any shorter run that breaks the same property"
    return [("coverage", f"{what}; {size}"), ("", offer)]


def save_text(text: str, path: Path) -> None:
    """Write a file. Raises :class:`LocalError` where that is not possible."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LocalError(f"{path}: cannot be written: {error.strerror or error}") from None


def _print_header(console: Console, trace: Trace, path: Path) -> None:
    header = trace.header
    scenario = scenario_of(trace.header)
    facts: list[tuple[str, Any]] = [("trace", f"{path}, found by {header.engine}")]
    if header.seed is not None:
        facts.append(("seed", str(header.seed)))
    facts += [
        ("machine", header.machine),
        ("variant", render.variant_text(scenario)),
        ("world", render.world_text(scenario)),
        ("faults", render.faults_text(scenario, rate=False)),
    ]
    render.print_facts(console, facts)
    console.print()


def replay_json(trace: Trace, views: list[StepView], digest: str, path: Path, command: str) -> dict[str, Any]:
    """What ``replay --json`` answers; ``docs/cli.md`` explains every field."""
    scenario = scenario_of(trace.header)
    broken = trace.ending.property
    return {
        "trace": str(path),
        "engine": trace.header.engine,
        "machine": trace.header.machine,
        "seed": trace.header.seed,
        "detector": scenario.variant.detector,
        "hazards": list(scenario.variant.hazards),
        "allocator": scenario.pool.allocator,
        "verdict": "violated" if broken else "holds",
        "violations": [{"property": broken, "step": len(trace.steps), "text": trace.ending.text}] if broken else [],
        "digest": digest,
        "steps": [
            {
                "step": view.number,
                "action": list(step.action),
                "text": view.action,
                "picks": [msgspec.to_builtins(pick._asdict()) for pick in step.picks],
                "senders": list(view.senders),
                "receivers": list(view.receivers),
            }
            for view, step in zip(views, trace.steps, strict=True)
        ],
        "exit_code": exit_code_of([broken] if broken else []),
        "command": trace.header.command or command,
    }


def shrink_progress(shown: Bar | None) -> Callable[[int, int], None] | None:
    """A progress function for ``shrink``: the steps that are left."""
    if shown is None:
        return None
    return lambda left, tried: shown.update(text=f"{left:,} steps left, {tried:,} runs tried")
