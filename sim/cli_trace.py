"""``resumark replay`` and ``resumark shrink``: a run again, step by step, and a shorter one that breaks the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

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
from sim.engines.replay import replay, scenario_of
from sim.engines.shrink import shrink
from sim.progress import Bar, bar
from sim.trace_file import read_trace

TraceArgument = Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("replay")(replay_command)
    app.command("shrink")(shrink_command)


def print_views(console: Console, trace: Trace) -> None:
    """Run a trace and print it, a line a step."""
    render.print_trace(console, views_of(trace))
    console.print()


def print_broken(console: Console, trace: Trace) -> None:
    """The property that a trace breaks, last: its text, the step, and how."""
    if trace.ending.property:
        render.print_broken(console, trace.ending.property, trace.ending.text, len(trace.steps))
    else:
        console.print("No property is broken in this run.")
    console.print()


@reports_errors
def replay_command(trace: TraceArgument, json: JsonOption = False) -> None:
    """Run a trace again, strictly, and show it: a line a step, differences only, a column for each rank.

    A trace that no longer fits the program is an error that names the step. The trace of a real worker is not run
    again: the checkers look at the events that it saw.
    """
    read = read_trace(trace)
    if read.header.engine == WORKER:
        replay_seen(read, trace, json=json)
        return
    replayed = replay(read)
    broken = read.ending.property
    command = command_line("replay", str(trace))
    views = views_of(read)
    if json:
        print_json(replay_json(read, views, replayed.digest, trace, command))
    else:
        console = output()
        _print_header(console, read, trace)
        render.print_trace(console, views)
        console.print()
        print_broken(console, read)
        render.print_facts(console, [("digest", replayed.digest)])
        render.print_command(console, read.header.command or command)
    exit_with(exit_code_of([broken] if broken else []))


@reports_errors
def shrink_command(trace: TraceArgument, to: TraceOption = None, json: JsonOption = False) -> None:
    """Find a shorter run that breaks the same property.

    It is written beside the trace as NAME.short.jsonl, or to --trace FILE.
    """
    read = read_trace(trace)
    if read.header.engine == WORKER:
        raise LocalError(f"{trace}: the trace of a real worker has no steps that could be left out")
    target = to or trace.with_name(f"{trace.stem}.short{trace.suffix or '.jsonl'}")
    check_writable(target)
    with bar("shrinking", quiet=json) as shown:
        short = shrink(read, progress=shrink_progress(shown))
    save_trace(short, target)
    command = command_line("replay", str(target))
    if json:
        print_json(
            {
                "trace": str(trace),
                "steps_before": len(read.steps),
                "steps_after": len(short.steps),
                "property": short.ending.property,
                "text": short.ending.text,
                "written": str(target),
                "exit_code": 0,
                "command": command,
            }
        )
        return
    console = output()
    _print_header(console, read, trace)
    print_views(console, short)
    print_broken(console, short)
    steps = f"{len(read.steps)} before, {len(short.steps)} after; written to {target}"
    render.print_facts(console, [("steps", steps)])
    render.print_command(console, command, "replay")


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
