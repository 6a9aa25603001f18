"""``resumark model``: every state of a model of a given size, found by the vector engine.

A model is no scenario. ``check`` runs the receiver and the sender themselves, in a world that a scenario describes;
``model`` searches a text of small integer fields, which is faster by ten times and more. What holds the two together
are the kernel's decisions and the tables, which both use, and tests that drive a real receiver and sender beside the
model, step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from math import perm
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.text import Text

from fsm.errors import LocalError
from sim import render
from sim.cli_common import JsonOption, command_line, exit_with, output, print_json, reports_errors
from sim.cli_load import load
from sim.cli_options import (
    AbortsOption,
    BlocksOption,
    BlockTokensOption,
    CrashesOption,
    DeadlockOption,
    DeviceOption,
    EarlyOption,
    FaultsOption,
    GrantBlocksOption,
    LateOption,
    LeasesOption,
    MemoryOption,
    NoticesOption,
    RanksOption,
    RequestsOption,
    ResubmitsOption,
    SendersOption,
    SpillOption,
    StatesMaxOption,
    SymmetryOption,
    TimeMaxOption,
    TokensOption,
    VariantOption,
)
from sim.cli_prove import print_not_held
from sim.cli_tools import group
from sim.engines.result import EXIT_HOLDS, EXIT_SAFETY, EXIT_UNKNOWN
from sim.model.form import Model, describe, without_symmetry
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.protocol_live import ProtocolFairness, good_end, live_model
from sim.model.protocol_parts import BLOCK_NUMBERS, STATE_NUMBERS
from sim.model.protocol_rules import ModelRules
from sim.model.symbol import check_model
from sim.model.two_phase import MANAGERS_MAX, two_phase
from sim.model.variants import variant_named
from sim.progress import bar, search_progress
from sim.vector.live import point_of_no_return
from sim.vector.pack import Packing
from sim.vector.result import ModelViolation, VectorResult
from sim.vector.search import explore
from sim.vector_torch.search import explore_torch

GIB = 1 << 30

ALIKE = "the names of blocks, ranks and requests"
"""In what states of the protocol differ that symmetry takes as one."""

GRANTS_MAX = 2_000
"""More ways to deal out blocks than that, each an action of its own, take longer to write down than to search."""

EXIT_CODES = {"holds": EXIT_HOLDS, "violated": EXIT_SAFETY, "bounded": EXIT_UNKNOWN}
VERDICTS = {"holds": "holds", "violated": "violated", "bounded": "unknown"}
"""The engine's words, and those of the command line, where ``bounded`` is a coverage."""

HELP = "\n\n".join(
    (
        "Visit every state of a model, a whole level at a time; a broken clause comes with a shortest trace.",
        "A model is not a scenario. `check` runs the receiver and the sender themselves; `model` searches a model of "
        "them, which is smaller and much faster, and judges no liveness. Two things hold them together. Both make the "
        "same decisions by the same functions. And tests drive a real receiver and sender beside the model, and "
        "compare their states after each step.",
        "The model two-phase is there because others have counted its states; file takes a model of your own.",
    )
)

TWO_PHASE_LEGEND = (
    "rm: 0 working, 1 prepared, 2 committed, 3 aborted. tm: 0 waits, 1 committed, 2 aborted. The others: 0 no, 1 yes."
)


def _numbered(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items())


PROTOCOL_LEGEND = (
    "r0k1 is request 0 on rank 1, k1b0 block 0 of rank 1, r0k1_k1b0 what the one has on record of the other. "
    f"state of a request, s_state of its sender: {_numbered(STATE_NUMBERS)}. "
    f"state of a block: {_numbered(BLOCK_NUMBERS)}. A count of -1: not known."
)

class Limits(NamedTuple):
    """What ends a search, whether a state without successors is a violation, and what computes: ``device`` is a device
    of torch, None stands for numpy."""

    states_max: int | None = None
    time_max_s: float | None = None
    memory_gib: float | None = None
    spill: Path | None = None
    deadlock: bool = False
    device: str | None = None

    @property
    def memory_bytes(self) -> int | None:
        """The limit of memory in bytes."""
        return None if self.memory_gib is None else int(self.memory_gib * GIB)

    def arguments(self) -> list[str]:
        """The options that ask for the same again."""
        given = {
            "--states-max": self.states_max, "--time-max": self.time_max_s, "--memory": self.memory_gib,
            "--spill": self.spill, "--device": self.device,
        }  # fmt: skip
        asked = [part for name, value in given.items() if value is not None for part in (name, _argument(value))]
        return asked + (["--deadlock"] if self.deadlock else [])


class Asked(NamedTuple):
    """A model to search: its name on the command line, its sizes, and the arguments that choose it again.

    ``alike`` says in what states differ that symmetry takes as one; ``legend`` what the numbers of a trace mean.
    ``facts`` are further lines on what is asked, ``extra`` the same for programs.
    """

    name: str
    model: Model
    sizes: dict[str, Any]
    alike: str
    legend: str
    arguments: list[str]
    command: str = "model"
    facts: tuple[tuple[str, str], ...] = ()
    extra: dict[str, Any] = {}  # noqa: RUF012 - of a tuple nothing is ever changed


class Told(NamedTuple):
    """What was found out beyond the clauses: for people, for programs, and as an exit code where the clauses hold."""

    lines: tuple[Text, ...] = ()
    facts: list[tuple[str, str | Text]] = []  # noqa: RUF012 - of a tuple nothing is ever changed
    json: dict[str, Any] = {}  # noqa: RUF012 - the same
    exit_code: int = EXIT_HOLDS
    no_return: int | None = None
    verdict: Text | None = None
    """In place of what the clauses say."""


More = Callable[[VectorResult, bool], Told]


NO_RETURN_STATES_MAX = 100_000
"""The point of no return is a service to the reader, so it may not take long."""


def no_return(bounds: Bounds, rules: ModelRules, found: ModelViolation, quiet: bool) -> Told:
    """Where a run of the protocol model could still end well for the last time: faults come to an end, so where they
    have no budget there is no answer."""
    if bounds.faults:
        why = "not looked for, where there is no end of faults: --no-faults, with --aborts N"
        return Told(facts=[("no return", why)], json={"point_of_no_return": None, "no_return": {"text": why}})
    with bar("looking for the point of no return", quiet=quiet) as shown:
        point = point_of_no_return(
            live_model(bounds, rules), found.start, found.steps, good_end(bounds, rules), ProtocolFairness(bounds),
            states_max=NO_RETURN_STATES_MAX, progress=search_progress(shown),
        )  # fmt: skip
    facts: list[tuple[str, str | Text]] = []
    if point.step is None:
        found_not = f"not found within {NO_RETURN_STATES_MAX:,} states"
        facts.append(("no return", found_not if point.bound else "none: it could still end well"))
    said = {"coverage": "bounded" if point.bound else "exhausted", "states": point.states, "text": point.bound}
    return Told(facts=facts, json={"point_of_no_return": point.step, "no_return": said}, no_return=point.step)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    models = group(app, "model", HELP)
    models.command("two-phase")(two_phase_command)
    models.command("protocol")(protocol_command)
    models.command("file")(file_command)


def _argument(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@reports_errors
def two_phase_command(
    managers: Annotated[
        int, typer.Option("--managers", metavar="N", min=1, max=MANAGERS_MAX, help="Resource managers.")
    ] = 4,
    symmetry: Annotated[
        bool,
        typer.Option("--symmetry/--no-symmetry", help="Count states as one that differ in the order of managers only."),
    ] = False,
    states_max: StatesMaxOption = None,
    time_max: TimeMaxOption = None,
    memory: MemoryOption = None,
    spill: SpillOption = None,
    deadlock: DeadlockOption = False,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Two-phase commit: does no manager commit while another aborts?

    8 managers have 1,745,408 states, 10 have 61,515,776 and take 2 GiB; other model checkers count the same.
    """
    arguments = ["two-phase", "--managers", str(managers), *(["--symmetry"] if symmetry else [])]
    model = two_phase(managers, symmetric=symmetry)
    asked = Asked("two-phase", model, {"managers": managers}, "the order of managers", TWO_PHASE_LEGEND, arguments)
    explore_asked(asked, Limits(states_max, time_max, memory, spill, deadlock, device), json)


@reports_errors
def protocol_command(
    requests: RequestsOption = 1,
    ranks: RanksOption = 1,
    blocks: BlocksOption = 2,
    tokens: TokensOption = 3,
    block_tokens: BlockTokensOption = 1,
    grant_blocks: GrantBlocksOption = 0,
    early: EarlyOption = 0,
    senders: SendersOption = 1,
    crashes: CrashesOption = 0,
    resubmits: ResubmitsOption = True,
    aborts: AbortsOption = 0,
    faults: FaultsOption = True,
    leases: LeasesOption = False,
    late: LateOption = False,
    notices: NoticesOption = False,
    variant: VariantOption = None,
    symmetry: SymmetryOption = None,
    states_max: StatesMaxOption = None,
    time_max: TimeMaxOption = None,
    memory: MemoryOption = None,
    spill: SpillOption = None,
    deadlock: DeadlockOption = False,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """The protocol of this project, at a fixed size: every clause of the invariant that `prove` proves for any size.

    Requests of some tokens come to each rank through blocks; messages are late, doubled, lost and out of order.
    """
    bounds = Bounds(
        rooms=requests, ranks=ranks, blocks=blocks, size=tokens, block_tokens=block_tokens,
        grant_blocks_max=grant_blocks, early_tokens=early, crashes=crashes, faults=faults, leases=leases, late=late,
        senders=senders, aborts=aborts, notices=notices, resubmits=resubmits,
    )  # fmt: skip
    limits = Limits(states_max, time_max, memory, spill, deadlock, device)
    chosen = variant_named(variant or "watermark")
    if chosen.not_held:
        print_not_held(chosen, json)
        return
    if symmetry is None:
        symmetry = variant is None  # what is wrong with a wrong version may be that blocks are not alike
    check_size(bounds)
    model = bounded(bounds, chosen.rules())
    if not symmetry:
        model = without_symmetry(model)
    arguments = ["protocol", *_size_arguments(bounds)]
    arguments += ["--variant", variant] if variant is not None else []
    if symmetry is (variant is not None):
        arguments.append("--symmetry" if symmetry else "--no-symmetry")
    sizes = size_names(asdict(bounds)) | {"variant": chosen.name}

    def more(result: VectorResult, quiet: bool) -> Told:
        broken = result.violation
        return Told() if broken is None else no_return(bounds, chosen.rules(), broken, quiet)

    explore_asked(Asked("protocol", model, sizes, ALIKE, PROTOCOL_LEGEND, arguments), limits, json, more)


@reports_errors
def file_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py:NAME", show_default=False,
            help="A Python file, and in it the name of a Model, or of a function that makes one.",
        ),
    ],
    symmetry: Annotated[
        bool,
        typer.Option("--symmetry/--no-symmetry", help="Count states as one that the model says are alike."),
    ] = True,
    states_max: StatesMaxOption = None,
    time_max: TimeMaxOption = None,
    memory: MemoryOption = None,
    spill: SpillOption = None,
    deadlock: DeadlockOption = False,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """A model of your own: fields, actions and clauses, as `sim.model.form` has them.

    The file is imported, so it can do whatever a Python program can.
    """
    given = load(model, Model)
    check_model(given)  # before anything is printed
    arguments = ["file", model, *([] if symmetry else ["--no-symmetry"])]
    sizes = {"fields": len(given.fields), "actions": len(given.actions)}
    shown = given if symmetry else without_symmetry(given)
    asked = Asked(given.name, shown, sizes, "the order of alike records", "", arguments, extra={"file": model})
    explore_asked(asked, Limits(states_max, time_max, memory, spill, deadlock, device), json)


_NAMES = {"rooms": "requests", "size": "tokens", "grant_blocks_max": "grant_blocks", "early_tokens": "early"}
"""What the fields of :class:`Bounds` are called on the command line, where that differs."""


def size_names(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes by the names that the command line has for them."""
    return {_NAMES.get(name, name): value for name, value in sizes.items()}


def _size_arguments(bounds: Bounds) -> list[str]:
    """Every size that is not the one that the command takes when told nothing."""
    usual = Bounds(blocks=2, size=3)
    found = []
    for field in fields(bounds):
        value = getattr(bounds, field.name)
        if value != getattr(usual, field.name):
            name = _NAMES.get(field.name, field.name).replace("_", "-")
            found += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return found


def check_size(bounds: Bounds) -> None:
    """Refuse a size whose actions alone would take for ever to write down."""
    grants = bounds.rooms * sum(perm(bounds.blocks, count) ** bounds.ranks for count in range(1, bounds.blocks + 1))
    if grants > GRANTS_MAX:
        raise LocalError(
            f"--requests {bounds.rooms} --ranks {bounds.ranks} --blocks {bounds.blocks}: blocks can be dealt out in "
            f"{grants:,} ways, each an action of the model; at most {GRANTS_MAX:,}. Take fewer blocks or ranks"
        )


# --- the search ------------------------------------------------------------------------------------------


def explore_asked(asked: Asked, limits: Limits, json: bool, more: More | None = None) -> None:
    """Search, print what was found, and end with its exit code. ``more`` looks on, at what was found."""
    _check_usable(asked.model, limits)
    command = command_line(asked.command, *asked.arguments, *limits.arguments())
    console = output()
    if not json:
        _print_options(console, asked)
    with bar("searching", quiet=json) as shown:
        result, elapsed_s = _search(asked.model, limits, search_progress(shown))
    code = EXIT_CODES[result.verdict]
    told = more(result, json) if more is not None else Told()
    code = code or told.exit_code
    if json:
        found = _as_json(asked, limits, result, elapsed_s, command, code) | asked.extra | told.json
        print_json(found | {"exit_code": code, "command": command})
    else:
        if result.violation is not None:
            print_model_trace(console, asked.model, result.violation, told.no_return)
            if asked.legend:
                console.print(Text(asked.legend, style="dim"))
            console.print()
        for line in told.lines:
            console.print(line, soft_wrap=True)
        facts = _facts(limits, result, elapsed_s)
        if told.verdict is not None:  # what is said of the clauses alone is no verdict then
            facts = [("verdict", told.verdict), ("safety", facts[0][1]), *facts[1:]]
        render.print_facts(console, facts + told.facts)
        console.print()
        render.print_command(console, command)
    exit_with(code)


def _check_usable(model: Model, limits: Limits) -> None:
    """Find out before anything is printed that the model does not fit, or that nothing can be spilled."""
    Packing(model)
    if limits.spill is None:
        return
    if limits.memory_gib is None:
        raise LocalError("--spill: states are written there when --memory is used up; give --memory too")
    try:
        limits.spill.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(f"--spill {limits.spill}: cannot be written: {error.strerror or error}") from None


def _search(
    model: Model, limits: Limits, progress: Callable[[int, int, int], None] | None
) -> tuple[VectorResult, float]:
    """The answer, and how long it took in seconds."""
    started = monotonic()
    search = explore if not limits.device else partial(explore_torch, device=limits.device)
    result = search(
        model,
        states_max=limits.states_max,
        memory_bytes=limits.memory_bytes,
        spill=limits.spill,
        stop=stop_after(limits.time_max_s, started),
        deadlock=limits.deadlock,
        progress=progress,
    )
    return result, monotonic() - started


def stop_after(time_max_s: float | None, started: float) -> Callable[[], bool] | None:
    """Asked from time to time, says whether the time is over."""
    return None if time_max_s is None else lambda: monotonic() > started + time_max_s


def _bounds(limits: Limits, result: VectorResult, ends: str) -> dict[str, Any]:
    """The limits that were set, and what ended the search: the engine's words for it up to ``ends``."""
    given = {
        "states_max": limits.states_max, "time_max_s": limits.time_max_s, "memory_gib": limits.memory_gib,
        "ran_out": result.bound.partition(";")[0].partition(ends)[0] or None,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


# --- for people ------------------------------------------------------------------------------------------


def _print_options(console: Console, asked: Asked) -> None:
    """Everything that decides the answer, before there is one."""
    model = asked.model
    sizes = [f"{name.replace('_', ' ')} {_size_text(value)}" for name, value in asked.sizes.items()]
    alike = f"states that differ in {asked.alike} only count as one" if model.symmetry else "all states are told apart"
    render.print_facts(
        console,
        [
            (asked.command, asked.name),
            ("size", ", ".join(sizes)),
            *asked.facts,
            ("search", f"every state, level by level; {alike}"),
            ("clauses", render.number(len(model.clauses))),
        ],
    )
    console.print()


def _size_text(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def trace_lines(model: Model, violation: ModelViolation) -> list[str]:
    """A line of headings, then one for each step: the action, and the fields that it changes."""
    rows = [("step", "action", "what changes")]
    starts = model.start_states()
    told = [name for name in violation.start if len({start[name] for start in starts}) > 1]
    if not violation.steps:
        told = [name for name, value in violation.start.items() if value != model.field(name).low]
    if told or not violation.steps:
        rows.append(("0", "start", describe({name: violation.start[name] for name in told})))
    state = violation.start
    for number, step in enumerate(violation.steps, start=1):
        changes = [f"{name} {state[name]} -> {value}" for name, value in step.state.items() if state[name] != value]
        rows.append((str(number), step.action, ", ".join(changes)))
        state = step.state
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"{first.rjust(widths[0])}  {action.ljust(widths[1])}  {what}".rstrip() for first, action, what in rows]


def print_model_trace(
    console: Console, model: Model, violation: ModelViolation, no_return: int | None = None
) -> None:
    """A trace in columns, with the point of no return. A line is never folded: what is too wide runs on."""
    heading, *lines = trace_lines(model, violation)
    if no_return is not None:
        at = no_return + len(lines) - len(violation.steps)  # a line for the start may come first
        lines.insert(max(at, 0), f"{render.NO_RETURN_MARK}  {render.no_return_text(no_return)}")
    console.print(Text(heading, style="bold"), soft_wrap=True)
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _memory_text(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / (1 << 20):.1f} MiB"


def _facts(limits: Limits, result: VectorResult, elapsed_s: float) -> list[tuple[str, str | Text]]:
    """The verdict, how it was reached, and what that took."""
    verdict = VERDICTS[result.verdict]
    styled = Text(verdict, {"holds": "bold green", "violated": "bold red"}.get(verdict, "bold yellow"))
    facts: list[tuple[str, str | Text]] = []
    found = result.violation
    if found is not None:
        name = f"{found.property} {found.clause}".lstrip()
        facts.append(("verdict", Text.assemble(styled, f": {name}. {found.text[:1].upper()}{found.text[1:]}")))
        where = f"after step {found.depth}" if found.depth else "before the first step"
        facts.append(("", f"{where}; no shorter way leads to a state like that"))
    else:
        facts.append(("verdict", styled))
    what = (
        "every reachable state was visited" if result.coverage == "exhausted" else "the search stopped before its end"
    )
    states = render.plural(result.states, "state")
    if result.checked != result.states:
        states += f", {render.number(result.checked)} of them checked"
    facts += [
        ("coverage", f"{result.coverage}: {what}; {states}, {render.plural(result.transitions, 'transition')}, depth "
         f"{result.depth}, {render.seconds(elapsed_s)}"),
        ("speed", f"{render.number(_rate(result, elapsed_s))} states a second"),
        ("memory", f"{_memory_text(result.memory_bytes)} at most in states and buffers; a state has "
         f"{result.bounds['bits']} bits"),
    ]  # fmt: skip
    if result.spilled_bytes:
        facts.append(("spilled", f"{_memory_text(result.spilled_bytes)} written to {limits.spill}"))
    bounds = _bounds(limits, result, ";")
    if bounds:
        said = [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in bounds.items()]
        facts.append(("bounds", ", ".join(said)))
    return facts


def _rate(result: VectorResult, elapsed_s: float) -> int:
    return round(result.states / max(elapsed_s, 1e-9))


# --- for programs ----------------------------------------------------------------------------------------


def _violation_json(model: Model, found: ModelViolation) -> dict[str, Any]:
    state, steps = found.start, []
    for number, step in enumerate(found.steps, start=1):
        changed = {name: value for name, value in step.state.items() if state[name] != value}
        steps.append({"step": number, "action": step.action, "changed": changed})
        state = step.state
    return {
        "clause": found.clause, "property": found.property, "text": found.text, "step": found.depth,
        "start": found.start, "steps": steps,
    }  # fmt: skip


def _as_json(
    asked: Asked, limits: Limits, result: VectorResult, elapsed_s: float, command: str, code: int
) -> dict[str, Any]:
    """What is answered with ``--json``; ``docs/cli.md`` explains every field."""
    found = result.violation
    return {
        "engine": asked.command,
        "model": asked.name,
        "sizes": asked.sizes,
        "symmetry": result.bounds["symmetry"],
        "deadlock": limits.deadlock,
        "clauses": len(asked.model.clauses),
        "verdict": VERDICTS[result.verdict],
        "coverage": result.coverage,
        "bounds": _bounds(limits, result, ","),
        "states": result.states,
        "checked": result.checked,
        "transitions": result.transitions,
        "depth": result.depth,
        "levels": list(result.levels),
        "state_bits": result.bounds["bits"],
        "memory_bytes": result.memory_bytes,
        "spilled_bytes": result.spilled_bytes,
        "violations": [] if found is None else [_violation_json(asked.model, found)],
        "elapsed_s": round(elapsed_s, 3),
        "states_per_s": _rate(result, elapsed_s),
        "exit_code": code,
        "command": command,
    }
