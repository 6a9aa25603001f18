"""``resumark simulate --engine vector``: very many random runs of the protocol model, millions in a second.

A scenario gives the size; without one it is two requests that share two blocks. What a run does is made of actions of
the model that the receiver and the sender themselves can do, and ``--run N`` does one of them with real objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import Enum
from time import monotonic
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from sim import render
from sim.cli_common import Chosen, command_line, exit_code_of, exit_with, output, print_json
from sim.cli_model import PROTOCOL_LEGEND, print_model_trace
from sim.engines.result import EXIT_SAFETY, EXIT_UNKNOWN
from sim.mass.batch import USUAL, Mass, MassResult
from sim.mass.replay import RunReplay
from sim.model.protocol_bounded import Bounds
from sim.model.protocol_scenario import model_of
from sim.model.variants import ModelVariant, variant_named
from sim.progress import Bar, bar
from sim.vector.result import ModelStep, ModelViolation

RUNS = 1_000_000
"""How many runs are made if nothing is said."""

MEANINGS = {
    "resume": "a grant after the first", "same_blocks": "a grant of exactly the blocks that its request held last",
    "starvation": "a request that held data and got no blocks in a tick",
    "quarantine": "a request that ended while its blocks could still be written",
    "stale_status": "a STATUS that came once more, and changed nothing",
    "stale_grant": "a GRANT that came once more, and changed nothing",
}  # fmt: skip
"""What is counted besides faults, in words."""


class JudgeName(str, Enum):
    """When the clauses are judged."""

    turn = "turn"
    round = "round"


class Sized(NamedTuple):
    """What is simulated: a size, a version of the protocol, what they were taken from, and the words for it."""

    bounds: Bounds
    variant: ModelVariant
    title: str
    freer: tuple[str, ...]
    arguments: tuple[str, ...]


def sized(chosen: Chosen | None) -> Sized:
    """The size of a scenario, or the usual one. Raises LocalError naming what the model does not hold."""
    if chosen is None:
        return Sized(USUAL, variant_named("watermark"), "the usual size", (), ())
    of = model_of(chosen.scenario)
    faults = of.bounds.aborts > 0
    bounds = replace(of.bounds, faults=faults, aborts=0, resubmits=True)
    freer = [line for line in of.freer if not line.startswith(f"{of.bounds.aborts} in all")]
    if faults:
        freer.append("aborts, deadlines, broken writes and copies that fail strike at a rate, without a budget")
    if bounds.crashes:
        freer.append("a sender that starts after a crash is given its requests again")
    return Sized(bounds, of.variant, f"scenario {chosen.title}", tuple(freer), chosen.arguments)


def simulate_vector(
    chosen: Chosen | None, *, seed: int, runs: int | None, run: int | None, judge: JudgeName, json: bool
) -> None:
    """Simulate, or make one run again; print what was found, and end with its exit code."""
    of = sized(chosen)
    mass = Mass(of.bounds, of.variant.rules(), each_turn=judge is JudgeName.turn)
    arguments = [*of.arguments, "--engine", "vector", "--seed", str(seed)]
    if judge is not JudgeName.turn:
        arguments += ["--judge", judge.value]
    console = output()
    if run is not None:
        command = command_line("simulate", *arguments, "--run", str(run))
        _one_run(console, of, mass.replay(seed, run), mass, command, json)
        return
    runs = RUNS if runs is None else runs
    command = command_line("simulate", *arguments, "--runs", str(runs))
    if not json:
        facts = [("seed", str(seed)), ("runs", render.number(runs)), ("judged", _judged_text(mass, judge))]
        _print_options(console, of, facts)
    with bar("compiling", quiet=json) as shown:
        mass.prepare(runs, monotonic, None if shown is None else lambda text: shown.update(text=text))
    with bar("running", runs, quiet=json) as shown:
        result = mass.run(seed, runs, progress=_progress(shown), clock=monotonic)
    code = _exit_code(result.verdict, result.property)
    if json:
        print_json(_as_json(of, result, command, code))
    else:
        if result.replay is not None:
            _print_trace(console, mass, result.replay, result.property, result.text)
        render.print_facts(console, _facts(result))
        console.print()
        if result.replay is not None:
            again = command_line("simulate", *arguments, "--run", str(result.replay.run))
            render.print_command(console, again, "this run ")
        render.print_command(console, command)
    exit_with(code)


def _exit_code(verdict: str, property: str) -> int:
    if verdict == "violated":
        return exit_code_of([property]) if property else EXIT_SAFETY
    return 0 if verdict == "holds" else EXIT_UNKNOWN


def _progress(shown: Bar | None) -> Any:
    if shown is None:
        return None
    return lambda done, runs: shown.update(done, f"{done:,} runs")


# --- for people ------------------------------------------------------------------------------------------


def _judged_text(mass: Mass, judge: JudgeName) -> str:
    clauses = render.plural(len(mass.schedule.bounded.clauses), "clause")
    each = judge is JudgeName.turn
    when = "after each turn, those that speak of what it changed" if each else "at the end of a round"
    return f"{clauses}: {when}"


def _size_text(bounds: Bounds) -> str:
    names = {"rooms": "requests", "size": "tokens", "grant_blocks_max": "grant blocks", "early_tokens": "early"}
    said = []
    for name, value in asdict(bounds).items():
        if name in ("aborts", "resubmits"):
            continue
        word = names.get(name, name.replace("_", " "))
        said.append(f"{word} {'yes' if value is True else 'no' if value is False else value}")
    return ", ".join(said)


def _print_options(console: Console, of: Sized, drawn: Sequence[tuple[str, str]]) -> None:
    facts: list[tuple[str, Any]] = [
        ("simulate", f"{of.title}, as a model, in lanes"), *drawn, ("variant", of.variant.name),
        ("sizes", _size_text(of.bounds)),
    ]  # fmt: skip
    facts += [("freer" if not number else "", line) for number, line in enumerate(of.freer)]
    render.print_facts(console, facts)
    console.print()


def _print_trace(console: Console, mass: Mass, replay: RunReplay, property: str, text: str) -> None:
    clause, _, words = text.partition(": ")
    steps = tuple(ModelStep(step.action, step.state) for step in replay.steps)
    found = ModelViolation(clause, property, words, len(steps), replay.start, steps)
    print_model_trace(console, mass.schedule.bounded, found)
    console.print(Text(PROTOCOL_LEGEND, style="dim"))
    console.print()


def _facts(result: MassResult) -> list[tuple[str, str | Text]]:
    """The verdict, how it was reached, and what that took."""
    style = {"holds": "bold green", "violated": "bold red"}.get(result.verdict, "bold yellow")
    styled = Text(result.verdict, style)
    facts: list[tuple[str, str | Text]] = []
    if result.replay is not None:
        facts.append(("verdict", Text.assemble(styled, f": {result.property} {result.text}".replace(":  ", ": "))))
        where = f"run {result.replay.run}, after step {len(result.replay.steps)}, in round {result.replay.rounds}"
        facts.append(("", f"{where}; no run before it broke anything when it was judged"))
    else:
        missed = f": never seen: {', '.join(result.missed)}; make more runs" if result.missed else ""
        facts.append(("verdict", Text.assemble(styled, missed)))
    facts.append((
        "coverage",
        f"sampled: {render.plural(result.runs, 'run')}, {render.plural(result.lifecycles, 'lifecycle')}, "
        f"{render.plural(result.turns, 'step')} in {render.plural(result.rounds, 'round')}",
    ))  # fmt: skip
    if result.replay is None:
        rate = round(result.lifecycles / max(result.elapsed_s, 1e-9))
        facts.append(("speed", f"{render.number(rate)} lifecycles a second, {render.seconds(result.elapsed_s)} on "
                      f"{result.engine}; {render.seconds(result.prepared_s)} to prepare"))  # fmt: skip
        facts += [("sometimes" if not number else "", f"{render.number(count)} {name}" + _meaning(name))
                  for number, (name, count) in enumerate(result.sometimes.items())]  # fmt: skip
        facts.append(("digest", result.digest))
    return facts


def _meaning(name: str) -> str:
    return f": {MEANINGS[name]}" if name in MEANINGS else ""


def _one_run(console: Console, of: Sized, replay: RunReplay, mass: Mass, command: str, json: bool) -> None:
    """One run made again: its steps, and whether real objects decide as it does."""
    property, text = _broken(replay)
    code = _exit_code("violated" if property or text else "holds", property) if replay.agrees else EXIT_SAFETY
    if json:
        print_json(_run_json(of, replay, property, text, command, code))
        exit_with(code)
        return
    _print_options(console, of, [("seed", str(replay.seed)), ("run", str(replay.run))])
    _print_trace(console, mass, replay, property, text)
    render.print_facts(console, _run_facts(replay, property, text))
    console.print()
    render.print_command(console, command)
    exit_with(code)


def _run_facts(replay: RunReplay, property: str, text: str) -> list[tuple[str, str | Text]]:
    facts: list[tuple[str, str | Text]] = []
    if property or text:
        facts.append(("verdict", Text.assemble(("violated", "bold red"), f": {property} {text}".replace(":  ", ": "))))
    else:
        facts.append(("verdict", Text("holds", "bold green")))
    facts.append(("coverage", f"sampled: one run, {render.plural(len(replay.steps), 'step')} in "
                  f"{render.plural(replay.rounds, 'round')}, every clause after each step"))  # fmt: skip
    facts.append(("digest", f"{replay.digest:016x} of {render.plural(replay.decisions, 'decision')} of the model"))
    if replay.objects_digest is None:
        facts.append(("objects", "not driven: this is a wrong version, and the objects follow the protocol"))
    elif replay.agrees:
        alike = "real receivers and senders, driven beside it, decided alike and were in the same state after each step"
        facts.append(("objects", f"the same digest: {alike}"))
    else:
        facts.append(("objects", Text(f"{replay.objects_digest:016x}: they decided otherwise", "bold red")))
    return facts


def _broken(replay: RunReplay) -> tuple[str, str]:
    if replay.broken is not None:
        return replay.broken.property, f"{replay.broken.name}: {replay.broken.text}"
    if replay.left:
        return "", f"out of bounds: {replay.left}"
    return ("", "") if replay.ended else ("L1", "the run does not end")


# --- for programs ----------------------------------------------------------------------------------------


def _steps_json(replay: RunReplay) -> list[dict[str, Any]]:
    state, steps = replay.start, []
    for number, step in enumerate(replay.steps, start=1):
        changed = {name: value for name, value in step.state.items() if state[name] != value}
        steps.append({"step": number, "round": step.round, "action": step.action, "changed": changed})
        state = step.state
    return steps


def _as_json(of: Sized, result: MassResult, command: str, code: int) -> dict[str, Any]:
    """What ``simulate --engine vector`` answers with ``--json``; ``docs/cli.md`` explains every field."""
    replay = result.replay
    found = []
    if replay is not None:
        found = [{"property": result.property, "text": result.text, "run": replay.run, "step": len(replay.steps),
                  "start": replay.start, "steps": _steps_json(replay)}]  # fmt: skip
    return {
        "engine": "simulate",
        "model": of.title,
        "sizes": asdict(of.bounds),
        "variant": of.variant.name,
        "freer": list(of.freer),
        "lanes": result.engine,
        "judged": result.judged,
        "clauses": result.clauses,
        "verdict": result.verdict,
        "coverage": result.coverage,
        "runs": result.runs,
        "lifecycles": result.lifecycles,
        "transitions": result.turns,
        "rounds": result.rounds,
        "seed": result.seed,
        "digest": result.digest,
        "violations": found,
        "sometimes": result.sometimes,
        "missed": list(result.missed),
        "prepared_s": round(result.prepared_s, 3),
        "elapsed_s": round(result.elapsed_s, 3),
        "lifecycles_per_s": round(result.lifecycles / max(result.elapsed_s, 1e-9)),
        "exit_code": code,
        "command": command,
    }


def _run_json(
    of: Sized, replay: RunReplay, property: str, text: str, command: str, code: int
) -> dict[str, Any]:  # fmt: skip
    return {
        "engine": "simulate",
        "model": of.title,
        "sizes": asdict(of.bounds),
        "variant": of.variant.name,
        "seed": replay.seed,
        "run": replay.run,
        "verdict": "violated" if property or text else "holds",
        "property": property,
        "text": text,
        "rounds": replay.rounds,
        "decisions": replay.decisions,
        "digest": f"{replay.digest:016x}",
        "objects_digest": None if replay.objects_digest is None else f"{replay.objects_digest:016x}",
        "agrees": replay.agrees,
        "start": replay.start,
        "steps": _steps_json(replay),
        "exit_code": code,
        "command": command,
    }
