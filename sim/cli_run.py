"""``resumark check`` and ``resumark simulate``: run a scenario, say what was found and how."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console

from fsm.errors import LocalError
from fsm.trace import Trace
from sim import render
from sim.cli_common import (
    AllocatorOption,
    Chosen,
    DetectorOption,
    HazardOption,
    JsonOption,
    ScenarioArgument,
    TraceOption,
    check_properties,
    check_writable,
    choose_scenario,
    command_line,
    exit_with,
    output,
    print_json,
    reports_errors,
    result_json,
    save_trace,
    with_command,
)
from sim.cli_mass import JudgeName, simulate_vector
from sim.cli_model import Limits
from sim.cli_options import DeviceOption, LivenessOption, MemoryOption, SpillOption, SymmetryOption
from sim.cli_trace import point_json, point_of, print_views, shrink_progress
from sim.cli_vector import check_vector
from sim.engines.check import check
from sim.engines.no_return import NoReturn
from sim.engines.result import Found, Result
from sim.engines.shrink import shrink
from sim.engines.simulate import simulate
from sim.progress import Bar, bar, search_progress

RUNS = 1_000
"""How many runs ``simulate`` makes if it is not told."""

SEED_LIMIT, RUNS_LIMIT = 2**62, 2**40
"""The largest that may be asked for; each run takes the next seed, and together they stay in range."""

SIMULATED = "every-fault"
"""The built-in scenario that ``simulate`` runs if nothing is named."""

SHOWN_STEPS_MAX = 60
"""A longer trace of a random run is shortened before it is shown."""


class EngineName(str, Enum):
    """What is searched."""

    scalar = "scalar"
    vector = "vector"


class MachineName(str, Enum):
    """What drives the lifecycles."""

    transitions = "transitions"
    flat = "flat"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("check")(check_command)
    app.command("simulate")(simulate_command)


def _refuse_for_scalar(limits: Limits, liveness: bool | None, symmetry: bool | None) -> None:
    """Options that only the vector engine has."""
    given = {
        "--memory": limits.memory_gib, "--spill": limits.spill, "--device": limits.device,
        "--liveness": liveness, "--symmetry": symmetry,
    }  # fmt: skip
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise LocalError(f"{names[0]}: only the vector engine has that; add --engine vector")


@reports_errors
def check_command(
    scenario: ScenarioArgument = None,
    detector: DetectorOption = None,
    hazard: HazardOption = None,
    allocator: AllocatorOption = None,
    states_max: Annotated[
        int | None,
        typer.Option("--states-max", metavar="N", min=1, help="Give up after so many states.", show_default=False),
    ] = None,
    time_max: Annotated[
        float | None,
        typer.Option("--time-max", metavar="SECONDS", min=0.001, help="Give up after so long.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="P", help="Look for this property alone; may be repeated.", show_default=False),
    ] = None,
    engine: Annotated[
        EngineName, typer.Option("--engine", help="The objects themselves, or a model of the scenario's size.")
    ] = EngineName.scalar,
    liveness: LivenessOption = None,
    symmetry: SymmetryOption = None,
    memory: MemoryOption = None,
    spill: SpillOption = None,
    device: DeviceOption = None,
    trace: TraceOption = None,
    json: JsonOption = False,
) -> None:
    """Try every order of events, every place for each fault and every answer of the allocator.

    Breadth first, so the trace of a violation is the shortest there is. Says "exhausted" only if it was.

    With --engine vector it is a model of the scenario's size that is searched: faster by ten times and more, and freer
    than the scenario; the options from --liveness to --device are for that.
    """
    check_writable(trace)
    only = check_properties(only)
    chosen = choose_scenario(scenario, detector, hazard, allocator, property=only[0] if only else "")
    vector = Limits(states_max, time_max, memory, spill, device=device)
    if engine is EngineName.vector:
        if trace is not None:
            raise LocalError(f"--trace {trace}: the run of a model is no trace; leave it out, and see --json")
        wanted = {"liveness": liveness, "symmetry": symmetry}
        check_vector(chosen, vector, only=only, json=json, **wanted)
        return
    _refuse_for_scalar(vector, liveness, symmetry)
    arguments = list(chosen.arguments)
    for name in only:
        arguments += ["--only", name]
    if states_max is not None:
        arguments += ["--states-max", str(states_max)]
    if time_max is not None:
        arguments += ["--time-max", f"{time_max:g}"]
    command = command_line("check", *arguments)
    console = output()
    if not json:
        search = "breadth first over canonical states" + (f", for {' and '.join(only)} only" if only else "")
        _print_options(console, "check", chosen, [("search", search)], rate=False)
    with bar("searching", quiet=json) as shown:
        result = check(
            chosen.scenario, states_max=states_max, time_max_s=time_max, only=only or None,
            progress=search_progress(shown), clock=monotonic,
        )  # fmt: skip
    found = _found(result, command, trace)
    if json:
        point = _point_json(found)
        print_json(result_json("check", result, chosen, command, trace, {"machine": "flat", "only": only, **point}))
    else:
        if found is not None:
            print_views(console, found.trace)
        _print_answer(console, result, command, trace, command_line("explore", *(arguments or ["watermark"])))
    exit_with(result.exit_code)


@reports_errors
def simulate_command(
    scenario: ScenarioArgument = None,
    detector: DetectorOption = None,
    hazard: HazardOption = None,
    allocator: AllocatorOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", min=0, max=SEED_LIMIT, help="Left out: drawn, and printed.", show_default=False
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            "--runs", metavar="N", min=1, max=RUNS_LIMIT, help="How many runs.",
            show_default="1,000; with --engine vector 1,000,000",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", min=1, help="Processes; left out: one for each core.", show_default=False),
    ] = None,
    machine: Annotated[
        MachineName, typer.Option("--machine", help="What drives the lifecycles; the digest is the same.")
    ] = MachineName.transitions,
    engine: Annotated[
        EngineName, typer.Option("--engine", help="The objects themselves, or a model of them, millions of times.")
    ] = EngineName.scalar,
    run: Annotated[
        int | None,
        typer.Option(
            "--run", metavar="N", min=0, max=RUNS_LIMIT - 1, show_default=False,
            help="With --engine vector: this run alone, with real objects beside it.",
        ),
    ] = None,
    judge: Annotated[
        JudgeName | None,
        typer.Option("--judge", help="With --engine vector: when clauses are judged.", show_default="turn"),
    ] = None,
    trace: TraceOption = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Make many random runs: faults first, then none and a fair scheduler. One seed gives one digest, everywhere.

    With --engine vector the runs are those of a model, in lanes; without a scenario, of two requests that share two
    blocks.
    """
    check_writable(trace)
    if engine is EngineName.vector:
        _refuse_for_lanes(trace, jobs, machine)
        named = any(given is not None for given in (scenario, detector, hazard, allocator))
        asked = choose_scenario(scenario, detector, hazard, allocator) if named else None
        first = int.from_bytes(os.urandom(4), "big") if seed is None else seed
        simulate_vector(asked, seed=first, runs=runs, run=run, judge=judge or JudgeName.turn, json=json)
        return
    if run is not None or judge is not None:
        raise LocalError(f"{'--run' if run is not None else '--judge'}: only lanes have that; add --engine vector")
    chosen = choose_scenario(scenario, detector, hazard, allocator, default=SIMULATED)
    _simulate_objects(chosen, seed, RUNS if runs is None else runs, jobs, machine, trace, json)


def _simulate_objects(
    chosen: Chosen, seed: int | None, runs: int, jobs: int | None, machine: MachineName, trace: Path | None, json: bool
) -> None:
    """Run a scenario, print what was found, and end with the exit code of the answer."""
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")  # only which runs are made; what happens in them follows from it
    arguments = [*chosen.arguments, "--seed", str(seed), "--runs", str(runs)]
    if machine is not MachineName.transitions:
        arguments += ["--machine", machine.value]
    command = command_line("simulate", *arguments)
    console = output()
    if not json:
        drawn = [("seed", str(seed)), ("runs", f"{render.number(runs)} on machine {machine.value}")]
        _print_options(console, "simulate", chosen, drawn, rate=True)
    with bar("running", runs, quiet=json) as shown:
        result = simulate(
            chosen.scenario, seed=seed, runs=runs, jobs=jobs, machine=machine.value,
            progress=_runs_progress(shown), clock=monotonic,
        )  # fmt: skip
    found = _found(result, command, trace)
    if json:
        point = _point_json(found)
        print_json(result_json("simulate", result, chosen, command, trace, {"machine": machine.value, **point}))
    else:
        if found is not None:
            _print_shortened(console, found.trace)
        _print_answer(console, result, command, trace)
    exit_with(result.exit_code)


def _refuse_for_lanes(trace: Path | None, jobs: int | None, machine: MachineName) -> None:
    """Options that runs of a model have no use for."""
    for name, given in (("--trace", trace), ("--jobs", jobs), ("--machine", machine is not MachineName.transitions)):
        if given:
            raise LocalError(f"{name}: runs of a model have none; leave it out, or leave --engine vector out")


def _runs_progress(shown: Bar | None) -> Callable[[int, int], None] | None:
    if shown is None:
        return None

    def report(done: int, runs: int) -> None:
        shown.update(done, f"{done:,} runs")

    return report


def _found(result: Result, command: str, path: Path | None) -> Found | None:
    """The first violation; its trace is written where that was asked for."""
    if not result.violations:
        return None
    found = result.violations[0]
    if path is not None:
        save_trace(with_command(found.trace, command), path)
    return found


def _point_json(found: Found | None) -> dict[str, Any]:
    """Where the run that was found could go well for the last time."""
    return point_json(NoReturn(None, "") if found is None else point_of(found.trace, quiet=True))


def _print_options(console: Console, engine: str, chosen: Chosen, drawn: list[tuple[str, str]], *, rate: bool) -> None:
    """Everything that decides the answer, before there is one."""
    scenario = chosen.scenario
    facts: list[tuple[str, Any]] = [
        (engine, f"scenario {chosen.title}"),
        *drawn,
        ("variant", render.variant_text(scenario)),
        ("world", render.world_text(scenario)),
        ("faults", render.faults_text(scenario, rate=rate)),
    ]
    render.print_facts(console, facts)
    console.print()


def _print_shortened(console: Console, trace: Trace) -> None:
    """A trace of a random run; a long one is shortened first, since it is to be read."""
    if len(trace.steps) > SHOWN_STEPS_MAX:
        with bar("shortening the trace") as shown:
            short = shrink(trace, progress=shrink_progress(shown))
        console.print(f"The run has {len(trace.steps)} steps; this one, shortened from it, breaks the same property:")
        console.print()
        trace = short
    print_views(console, trace)


def _print_answer(console: Console, result: Result, command: str, path: Path | None, see: str = "") -> None:
    """The verdict and what to do next; ``see`` makes a page of the run, where that is another command than for a
    trace file."""
    render.print_requests(console, result.requests)
    console.print()
    render.print_facts(console, render.verdict_facts(result))
    if path is not None:
        console.print()
        if result.violations:
            render.print_command(console, command_line("replay", str(path)), "trace    ")
        else:
            console.print(f"No property was broken, so {path} was not written.", soft_wrap=True)
    console.print()
    if result.violations and (path is not None or see):
        render.print_command(console, see if path is None else command_line("explore", str(path)), "see it   ")
    render.print_command(console, command)
