"""What all commands share: how a scenario is chosen, how errors end, how results leave.

Everything that a person did wrong becomes one message on standard error and exit code 2, never a traceback. What
goes to standard output is either text for a person (tables no wider than the terminal, 100 columns where there is none)
or, with ``--json``, one JSON value and nothing else.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, ParamSpec, TextIO, TypeVar, cast

import msgspec
import typer
from rich.console import Console

from fsm.errors import LocalError, ResumarkError
from fsm.invariants import LIVENESS, PROPERTIES
from fsm.trace import Trace
from sim import zoo
from sim.engines.result import EXIT_LIVENESS, EXIT_SAFETY, EXIT_USAGE, Result
from sim.scenario import Scenario, load_scenario, validate_scenario
from sim.trace_file import write_trace

EXIT_INTERRUPTED = 130
"""Stopped from the keyboard, as shells count it."""

WIDTH_WITHOUT_TERMINAL = 100
"""Columns, where the output is no terminal and ``COLUMNS`` does not say."""

ScenarioArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SCENARIO",
        help="A TOML file, or the name of a built-in scenario. Left out: the one that shows the point.",
        show_default=False,
    ),
]
DetectorOption = Annotated[
    str | None,
    typer.Option("--detector", metavar="D", help="How the receiver decides that a resume is due.", show_default=False),
]
HazardOption = Annotated[
    list[str] | None,
    typer.Option("--hazard", metavar="H", help="A mistake to switch on; may be repeated.", show_default=False),
]
AllocatorOption = Annotated[
    str | None,
    typer.Option("--allocator", metavar="A", help="Who deals out the landing blocks.", show_default=False),
]
TraceOption = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Write the trace there.", dir_okay=False, show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON value for programs, and no progress bar.")]

P = ParamSpec("P")
R = TypeVar("R")


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose mistakes of use end in one message and exit code 2, and whose interruption in 130."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ResumarkError as error:
            fail(str(error))
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run


def fail(text: str) -> NoReturn:
    """End with a message on standard error and exit code 2."""
    lines = text.splitlines() or [""]
    print("\n".join(["error: " + lines[0], *("       " + line for line in lines[1:])]), file=sys.stderr)
    raise typer.Exit(EXIT_USAGE) from None


class _Trimmed:
    """Standard output without the blanks at line ends that fill up a table's last column."""

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        self.inner.write(re.sub(r" +$", "", text, flags=re.MULTILINE))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def output() -> Console:
    """Where text for a person goes. Colour and width follow the terminal, ``NO_COLOR`` and ``COLUMNS``."""
    width = None
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        width = WIDTH_WITHOUT_TERMINAL
    trimmed = cast(TextIO, _Trimmed(sys.stdout))
    return Console(file=trimmed, width=width, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


# --- scenarios ------------------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """A scenario to run. ``title`` says where it came from, ``arguments`` choose it again on a command line."""

    scenario: Scenario
    title: str
    arguments: tuple[str, ...]


def choose_scenario(
    path: str | None,
    detector: str | None,
    hazards: Sequence[str] | None,
    allocator: str | None,
    *,
    property: str = "",
    default: str = "",
) -> Chosen:
    """The scenario that a command line asks for, its variant and allocator in place.

    Without a path it is the built-in one of the first variant named (the one that shows that ``property``, if it has
    several), or the one called ``default``, or that of the zoo. Raises :class:`LocalError` with
    every fault found.
    """
    hazards = tuple(hazards or ())
    arguments = ([path] if path is not None else []) + variant_arguments(detector, hazards)
    if path is not None:
        scenario = load_scenario(find_scenario(path), detectors=zoo.DETECTORS, hazards=zoo.HAZARDS)
        title = path
    else:
        check_names(detector, hazards)
        scenario, title = _built_in(hazards[0] if hazards else detector, property, default)
    replace = msgspec.structs.replace
    variant = scenario.variant
    if detector is not None:
        variant = replace(variant, detector=detector)
    if hazards:
        variant = replace(variant, hazards=hazards)
    pool = scenario.pool
    if allocator is not None:
        arguments += ["--allocator", allocator]
        pool = replace(pool, allocator=allocator)
    changed = replace(scenario, variant=variant, pool=pool)
    validate_scenario(changed, detectors=zoo.DETECTORS, hazards=zoo.HAZARDS, source="command line")
    zoo.rules_for(changed.variant.detector, changed.variant.hazards)  # do they go together?
    return Chosen(changed, title, tuple(arguments))


def _built_in(variant: str | None, property: str, default: str) -> tuple[Scenario, str]:
    if variant is not None:
        return zoo.scenario_for(variant, property), f"built in, for '{variant}'"
    if default in zoo.scenario_names():
        return zoo.scenario_named(default), f"built in, '{default}'"
    return zoo.default_scenario(), "built in"


def check_names(detector: str | None, hazards: Sequence[str]) -> None:
    """Refuse names that the zoo does not know, all at once."""
    probe = Scenario()
    variant = msgspec.structs.replace(
        probe.variant, detector=detector or probe.variant.detector, hazards=tuple(hazards)
    )
    validate_scenario(
        msgspec.structs.replace(probe, variant=variant),
        detectors=zoo.DETECTORS, hazards=zoo.HAZARDS, source="command line",
    )  # fmt: skip


def check_properties(names: Sequence[str] | None) -> list[str]:
    """The names of properties, as they were given. Raises :class:`LocalError` for one that does not exist."""
    for name in names or ():
        if name not in PROPERTIES:
            raise LocalError(f"--only: there is no property '{name}'; there are {', '.join(PROPERTIES)}")
    return list(names or ())


def find_scenario(name: str) -> Path:
    """A file by its path, else a built-in scenario by its bare name."""
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    if name in zoo.scenario_names():
        return zoo.SCENARIOS / f"{name}.toml"
    raise LocalError(f"{name}: no such file, and no built-in scenario; built in: {', '.join(zoo.scenario_names())}")


def variant_arguments(detector: str | None, hazards: Sequence[str]) -> list[str]:
    """The options that choose a variant."""
    arguments = ["--detector", detector] if detector is not None else []
    for hazard in hazards:
        arguments += ["--hazard", hazard]
    return arguments


def command_line(command: str, *arguments: str) -> str:
    """A command that can be pasted into a shell."""
    return shlex.join(["resumark", command, *arguments])


# --- traces ---------------------------------------------------------------------------------------------


def with_command(trace: Trace, command: str) -> Trace:
    """The trace with the command that leads to it."""
    return trace._replace(header=msgspec.structs.replace(trace.header, command=command))


def save_trace(trace: Trace, path: Path) -> None:
    """Write a trace file. Raises :class:`LocalError` where that is not possible."""
    try:
        write_trace(trace, path)
    except OSError as error:
        raise LocalError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_writable(path: Path | None) -> None:
    """Find out before a long search, and not after it, that its trace could not be written."""
    if path is not None and not path.parent.is_dir():
        raise LocalError(f"{path}: cannot be written: there is no directory {path.parent}")


# --- results --------------------------------------------------------------------------------------------


def exit_with(code: int) -> None:
    """End a command with an exit code; 0 is the ordinary return."""
    if code:
        raise typer.Exit(code)


def exit_code_of(properties: Sequence[str]) -> int:
    """1 if any of these broken properties is a safety property, 3 if all are liveness, 0 if there are none."""
    if not properties:
        return 0
    return EXIT_LIVENESS if all(name in LIVENESS for name in properties) else EXIT_SAFETY


def trace_json(trace: Trace) -> dict[str, Any]:
    """A trace as plain data: what a trace file holds, in one value."""
    return {
        "header": msgspec.to_builtins(trace.header),
        "steps": [msgspec.to_builtins(step) for step in trace.steps],
        "ending": msgspec.to_builtins(trace.ending),
    }


def result_json(
    engine: str, result: Result, chosen: Chosen, command: str, trace_file: Path | None, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``check`` and ``simulate`` answer with ``--json``; ``docs/cli.md`` explains every field."""
    scenario = chosen.scenario
    written = str(trace_file) if trace_file is not None and result.violations else None
    return {
        "engine": engine,
        "scenario": chosen.title,
        "detector": scenario.variant.detector,
        "hazards": list(scenario.variant.hazards),
        "allocator": scenario.pool.allocator,
        **extra,
        "verdict": result.verdict,
        "coverage": result.coverage,
        "bounds": result.bounds,
        "states": result.states,
        "transitions": result.transitions,
        "depth": result.depth,
        "runs": result.runs,
        "seed": result.seed,
        "digest": result.digest,
        "violations": [
            {
                "property": found.property,
                "step": found.step,
                "text": found.text,
                "trace": trace_json(with_command(found.trace, command)),
            }
            for found in result.violations
        ],
        "trace_file": written,
        "requests": [msgspec.to_builtins(request) for request in result.requests],
        "sometimes": result.sometimes,
        "missed": list(result.missed),
        "elapsed_s": round(result.elapsed_s, 3),
        "exit_code": result.exit_code,
        "command": command,
    }
