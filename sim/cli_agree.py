"""``resumark agree``: the graph of the protocol model held against the graph of the scalar engine, step by step."""

from __future__ import annotations

from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fsm.errors import LocalError
from sim import render
from sim.cli_common import (
    AllocatorOption,
    JsonOption,
    ScenarioArgument,
    choose_scenario,
    command_line,
    exit_with,
    output,
    print_json,
    reports_errors,
)
from sim.engines.agree import STATES_MAX, Agreement, Progress, TooLarge, agree
from sim.engines.result import EXIT_SAFETY, EXIT_UNKNOWN
from sim.progress import Bar, bar
from sim.scenario import Scenario

ENDLESS = ("abort", "delay", "drop", "duplicate")
"""Faults of which there may be no end."""

VERDICTS = {
    "equal": "each step of either is a step of the other",
    "followed": "each step of the world is a step of the model, which has more",
    "differs": "the model cannot follow the world",
    "bounded": "too large",
}


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("agree")(agree_command)


@reports_errors
def agree_command(
    scenario: ScenarioArgument = None,
    allocator: AllocatorOption = None,
    endless: Annotated[
        list[str] | None,
        typer.Option(
            "--endless", metavar="F", help="A fault whose budget is never used up; may be repeated.", show_default=False
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Leave in the model what the world is known not to do.")
    ] = False,
    states_max: Annotated[
        int, typer.Option("--states-max", metavar="N", min=1, help="Give up after so many states of either.")
    ] = STATES_MAX,
    json: JsonOption = False,
) -> None:
    """Hold the protocol model against the real objects, on every step of a scenario.

    Forward: each step of the world is followed in the model. Backward: what no step of the world needs is listed.
    """
    chosen = choose_scenario(scenario, None, None, allocator)
    endless = _checked(endless or [], chosen.scenario)
    arguments = [*chosen.arguments, *(word for name in endless for word in ("--endless", name))]
    arguments += ["--whole"] if whole else []
    arguments += ["--states-max", str(states_max)] if states_max != STATES_MAX else []
    command = command_line("agree", *arguments)
    started, found, bound = monotonic(), None, ""
    with bar("comparing", quiet=json) as shown:
        try:
            found = agree(
                chosen.scenario, endless=endless, whole=whole, states_max=states_max, progress=_progress(shown)
            )
        except TooLarge as ended:
            bound = str(ended)
    verdict = "bounded" if found is None else found.verdict
    code = {"differs": EXIT_SAFETY, "bounded": EXIT_UNKNOWN}.get(verdict, 0)
    elapsed_s = monotonic() - started
    if json:
        print_json(_as_json(chosen.title, list(endless), verdict, bound, found, elapsed_s, code, command))
    else:
        _print(output(), chosen.title, verdict, bound, found, elapsed_s, command)
    exit_with(code)


def _progress(shown: Bar | None) -> Progress | None:
    if shown is None:
        return None
    return lambda states, left: shown.update(text=f"{states:,} states of the world, {left:,} to go")


def _checked(endless: list[str], scenario: Scenario) -> list[str]:
    for name in endless:
        if name not in ENDLESS:
            raise LocalError(f"--endless {name}: expected one of {', '.join(ENDLESS)}")
        if not getattr(scenario.faults, f"{name}_max"):
            raise LocalError(f"--endless {name}: the scenario has none; give it {name}_max = 1 under [faults]")
    return endless


def _print(
    console: Console, title: str, verdict: str, bound: str, found: Agreement | None, elapsed_s: float, command: str
) -> None:
    facts: list[tuple[str, str | Text]] = [("scenario", title), ("verdict", f"{verdict}: {VERDICTS[verdict]}")]
    if found is None:
        facts.append(("ran out", bound))
    else:
        paths = ", ".join(f"{count:,} are {length}" for length, count in found.paths.items())
        facts += [
            ("the world", f"{found.states:,} states, {found.steps:,} steps"),
            ("the model", f"{found.model_states:,} states, {found.model_steps:,} steps"),
            ("forward", f"{found.pairs:,} pairs of states; of the steps of the world, in steps of the model: {paths}"),
        ]
        if found.mismatch is not None:
            facts.append(("differs", str(found.mismatch)))
        else:
            unneeded = ", ".join(f"{count:,} {kind}" for kind, count in found.kinds().items()) or "none"
            facts.append(("backward", f"{found.matched:,} steps of the model are steps of the world; not: {unneeded}"))
    facts.append(("time", f"{elapsed_s:.1f} s"))
    render.print_facts(console, facts)
    console.print()
    render.print_command(console, command)


def _as_json(
    title: str, endless: list[str], verdict: str, bound: str, found: Agreement | None, elapsed_s: float, code: int,
    command: str,
) -> dict[str, Any]:  # fmt: skip
    answer: dict[str, Any] = {
        "engine": "agree", "scenario": title, "endless": endless, "verdict": verdict, "bound": bound,
    }  # fmt: skip
    if found is not None:
        mismatch = found.mismatch
        answer |= {
            "states": found.states, "transitions": found.steps, "model_states": found.model_states,
            "model_transitions": found.model_steps, "pairs": found.pairs,
            "paths": {str(length): count for length, count in found.paths.items()}, "matched": found.matched,
            "stutters": found.stutters, "unneeded": found.kinds(),
            "mismatch": None if mismatch is None else {
                "step": mismatch.text, "after": list(mismatch.trace), "model": list(mismatch.cue.first),
                "differs": {name: list(values) for name, values in mismatch.differs.items()},
            },
        }  # fmt: skip
    return {**answer, "elapsed_s": round(elapsed_s, 3), "exit_code": code, "command": command}
