"""``resumark prove``: the protocol's invariant, proved for any size, and what each variant of the zoo breaks; or the
clauses of a model that a user wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Annotated, Any

import typer
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fsm.errors import LocalError
from sim import render
from sim.cli_common import JsonOption, command_line, exit_with, output, print_json, reports_errors
from sim.cli_load import load
from sim.engines.result import EXIT_SAFETY, EXIT_UNKNOWN
from sim.model.protocol import symbolic
from sim.model.variants import ModelVariant, variant_named
from sim.progress import Bar, bar
from sim.prove.conditions import Prover
from sim.prove.induction import FAILED, PROVED, START, Condition, Induction, Proof, Shown, fields_that_matter
from sim.prove.outcome import NOT_HELD, VariantOutcome, counterexample, exit_code_of, prove_zoo
from sim.prove.ranking import Ranking

STYLES = {PROVED: "green", FAILED: "bold red"}
FAILED_SHOWN_MAX = 1
"""So many counterexamples are shown in full."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("prove")(prove_command)


@reports_errors
def prove_command(
    proof: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE.py:NAME]",
            help="A Proof of your own: a Python file, and a name in it. Left out: the protocol.",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            metavar="NAME",
            help="Prove a version of the zoo instead, and see what fails.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Prove the protocol's invariant for any number of requests, tokens, blocks, grants and messages.

    Each clause must hold at the start and be kept by each action. A ranking argument says that no request goes on for
    ever, and that none stands still without a reason. Then each version of the zoo is shown with the condition that it
    breaks. Exit code 0 if all is proved, 1 if a safety condition failed, 3 if only a condition of progress did.

    With FILE.py:NAME: that each clause of a model of your own holds at the start and is kept by each action. The file
    is imported, so it can do whatever a Python program can.
    """
    if proof is not None:
        if variant is not None:
            raise LocalError("--variant: is for the protocol; a file has its own versions, each under a name")
        _prove_file(proof, json)
        return
    chosen = variant_named(variant) if variant is not None else variant_named("watermark")
    if chosen.not_held:
        print_not_held(chosen, json)
        return
    started = perf_counter()
    prover = Prover(symbolic(chosen.rules()), perf_counter)
    with bar("proving", quiet=json) as shown:
        results = _all(prover.prove(), shown)
        invariant_s = perf_counter() - started
        argument = _all(Ranking(prover).prove(), shown)
    elapsed_s = perf_counter() - started
    code = exit_code_of([*results, *argument])
    zoo: list[VariantOutcome] = []
    if variant is None:
        zoo = list(prove_zoo(perf_counter))
        if code == 0 and not all(outcome.as_expected for outcome in zoo):
            code = EXIT_SAFETY
    if json:
        print_json(_as_json(chosen, prover, [*results, *argument], zoo, elapsed_s, code))
    else:
        print_proof(
            output(), chosen, prover, results, argument, (invariant_s, elapsed_s - invariant_s), whole=variant is None
        )
        if zoo:
            print_zoo(output(), zoo)
    exit_with(code)


def _prove_file(spec: str, json: bool) -> None:
    """Prove a model that a user wrote, and end with the exit code of the answer."""
    induction = Induction(load(spec, Proof), perf_counter)
    started = perf_counter()
    with bar("proving", quiet=json) as shown:
        results = _all(induction.prove(), shown)
    elapsed_s = perf_counter() - started
    code = exit_code_of(results)
    idle = induction.impossible() if code == 0 else []
    vacuous = code == 0 and not induction.consistent()
    if vacuous:
        code = EXIT_UNKNOWN  # from a contradiction everything follows
    command = command_line("prove", spec)
    if json:
        found = _found_json(results, induction.untouched, elapsed_s)
        print_json({"file": spec, "model": induction.model.name, **found, "vacuous": vacuous, "never_taken": idle,
                    "exit_code": code, "command": command})  # fmt: skip
    else:
        console = output()
        failed = [condition for condition in results if condition.result != PROVED]
        for title in dict.fromkeys(condition.clause for condition in results):
            print_clause(console, [condition for condition in results if condition.clause == title])
        for condition in failed[:FAILED_SHOWN_MAX]:
            print_counterexample(console, condition, fields_that_matter(induction.proof, condition))
        print_sum(console, results, "conditions proved", elapsed_s)
        print_untouched(console, induction.untouched)
        if vacuous:
            console.print(Text("No state satisfies all clauses, so everything follows from them.", style="bold red"))
        elif idle:
            console.print(f"Never taken, in any state that satisfies the clauses: {', '.join(idle)}.")
        console.print()
        render.print_command(console, command)
    exit_with(code)


def _all(conditions: Iterator[Condition], shown: Bar | None) -> list[Condition]:
    found = []
    for condition in conditions:
        found.append(condition)
        if shown is not None:
            shown.update(text=condition.clause)
    return found


def print_not_held(variant: ModelVariant, json: bool) -> None:
    """Say why the model cannot show a version of the zoo, and end: that is no verdict."""
    if json:
        print_json({"variant": variant.name, "result": NOT_HELD, "reason": variant.not_held, "exit_code": EXIT_UNKNOWN})
    else:
        output().print(f"'{variant.name}' is not held by this model: {variant.not_held}.")
    exit_with(EXIT_UNKNOWN)


# --- for people ------------------------------------------------------------------------------------------


def print_proof(
    console: Console,
    variant: ModelVariant,
    prover: Prover,
    results: Sequence[Condition],
    argument: Sequence[Condition],
    elapsed_s: tuple[float, float],
    *,
    whole: bool,
) -> None:
    """Each condition with its result and time, under the words of its clause; then counterexamples, and the sums: of
    the invariant with its progress conditions, and of the ranking argument."""
    failed = sorted(
        (condition for condition in results if condition.result != PROVED),
        key=lambda condition: (condition.title != variant.breaks, condition.clause[0] != condition.action[:1]),
    )
    if whole:
        for conditions in (results, argument):
            for title in dict.fromkeys(condition.clause for condition in conditions):
                print_clause(console, [condition for condition in conditions if condition.clause == title])
    for condition in failed[:FAILED_SHOWN_MAX]:
        print_counterexample(console, condition, counterexample(prover.symbolic, condition))
    for condition in (*failed[FAILED_SHOWN_MAX:], *(c for c in argument if c.result != PROVED)):
        console.print(
            Text(f"{condition.result}: {_where(condition)}", style=STYLES.get(condition.result, "bold yellow"))
        )
    print_sum(console, results, "conditions proved", elapsed_s[0])
    print_untouched(console, prover.untouched)
    print_sum(console, argument, "conditions of the ranking argument proved", elapsed_s[1])
    if not whole and variant.breaks:
        console.print(f"'{variant.name}' is known to break: {variant.breaks}.")


def print_sum(console: Console, conditions: Sequence[Condition], what: str, elapsed_s: float) -> None:
    """How many were proved, and the time that it took."""
    failed = sum(condition.result != PROVED for condition in conditions)
    text = f"{len(conditions) - failed} {what}" + (f", {failed} not" if failed else "")
    style = "bold red" if failed else "bold green"
    console.print(Text(f"{text}, in {render.seconds(elapsed_s)} on 1 core.", style=style))


def print_untouched(console: Console, count: int) -> None:
    """How many conditions needed no solver."""
    console.print(
        f"{render.plural(count, 'condition')} more hold because the action changes nothing that the clause speaks of."
    )


def _where(condition: Condition) -> str:
    place = condition.action or ("at the start" if condition.kind == START else "in some state")
    name = f"{condition.serves} " if condition.serves else ""
    return f"{name}{condition.clause} ({place})"


def print_clause(console: Console, conditions: Sequence[Condition]) -> None:
    """The words of a clause, and under them its conditions: what was done, the result, the time."""
    first = conditions[0]
    title = Text.assemble((f"{first.serves} ".lstrip(), "bold cyan"), (first.clause, "bold"), f": {first.text}")
    console.print(title)
    shown = []
    for condition in conditions:
        done = condition.action or ("at the start" if condition.kind == START else "in every state")
        result = (condition.result, STYLES.get(condition.result, "bold yellow"))
        shown.append(Text.assemble(f"{done} ", result, (f" {condition.elapsed_s * 1000:.1f} ms", "dim"), no_wrap=True))
    console.print(Padding(Columns(shown, padding=(0, 3)), (0, 0, 0, 4)))


def print_counterexample(console: Console, condition: Condition, fields: Sequence[Shown]) -> None:
    """A condition that failed, as a step: of the state, the fields that matter."""
    console.print(Text(f"{condition.result}: {_where(condition)}", style=STYLES.get(condition.result, "bold yellow")))
    console.print(Padding(condition.text, (0, 0, 0, 2)))
    if condition.before is None:
        console.print(Padding("The solver gave no answer in its time.", (0, 0, 0, 2)))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ("field", "before", "after") if condition.after is not None else ("field", "value")
    for column in columns:
        table.add_column(column, justify="left" if column == "field" else "right")
    for row in fields:
        name = f"{row.field.removeprefix('in_')} (left open)" if row.open else row.field
        changed = row.before != row.after
        after = [str(row.after) if changed else ""] if condition.after is not None else []
        table.add_row(name, str(row.before), *after, style="bold" if changed else "")
    console.print(table)


def print_zoo(console: Console, outcomes: Sequence[VariantOutcome]) -> None:
    """Each variant with the condition that it breaks; then those that the model does not hold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("variant", "result", "condition", "action", "time"):
        table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    for outcome in outcomes:
        if outcome.result == NOT_HELD:
            continue
        found = outcome.condition
        name = f"{found.serves} {found.title}".strip() if found is not None else ""
        action = (found.action or "in some state") if found is not None else ""
        mark = "" if outcome.as_expected else "! "
        time = f"{outcome.elapsed_s * 1000:.0f} ms"
        table.add_row(outcome.variant.name, f"{mark}{outcome.result}", name, action, time)
    console.print()
    console.print(table)
    for outcome in outcomes:
        if outcome.result == NOT_HELD:
            console.print(f"not held by this model: {outcome.variant.name}: {outcome.variant.not_held}.")
    wrong = sum(not outcome.as_expected for outcome in outcomes)
    text = f"{wrong} not as expected, marked '!'" if wrong else "all as expected"
    console.print(
        Text(f"{render.plural(len(outcomes), 'variant')}: {text}.", style="bold red" if wrong else "bold green")
    )
    render.print_command(console, command_line("prove", "--variant", "none"), "to see the step that breaks it:")


# --- for programs ----------------------------------------------------------------------------------------


def _condition_json(condition: Condition, *, step: bool) -> dict[str, Any]:
    value: dict[str, Any] = {
        "kind": condition.kind, "clause": condition.clause, "property": condition.serves, "text": condition.text,
        "action": condition.action, "result": condition.result, "elapsed_ms": round(condition.elapsed_s * 1000, 3),
    }  # fmt: skip
    if step and condition.before is not None:
        value["before"] = condition.before
        value["changed"] = {name: after for name, _, after in condition.changed()}
    return value


def _found_json(results: Sequence[Condition], untouched: int, elapsed_s: float) -> dict[str, Any]:
    return {
        "conditions": [_condition_json(condition, step=True) for condition in results],
        "proved": sum(condition.result == PROVED for condition in results),
        "untouched": untouched,
        "elapsed_s": round(elapsed_s, 3),
    }


def _as_json(
    variant: ModelVariant, prover: Prover, results: Sequence[Condition], zoo: Sequence[VariantOutcome],
    elapsed_s: float, code: int,
) -> dict[str, Any]:  # fmt: skip
    return {
        "variant": variant.name,
        **_found_json(results, prover.untouched, elapsed_s),
        "zoo": [
            {
                "variant": outcome.variant.name,
                "result": outcome.result,
                "reason": outcome.variant.not_held,
                "condition": _condition_json(outcome.condition, step=False) if outcome.condition is not None else None,
                "elapsed_ms": round(outcome.elapsed_s * 1000, 3),
            }
            for outcome in zoo
        ],
        "exit_code": code,
    }
