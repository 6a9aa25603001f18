"""``python -m examples.own_lifecycle``: the lease and four wrong versions of it, simulated, checked and proved."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from examples.own_lifecycle.in_the_end import judge
from examples.own_lifecycle.lease import HOLDER, LEASE, RULES, WRONG, Rules
from examples.own_lifecycle.model import bounded, unbounded
from examples.own_lifecycle.world import Batch, simulate
from fsm.errors import LocalError
from sim.cli_model import trace_lines
from sim.prove.induction import FAILED, PROVED, Condition, Induction
from sim.vector.result import VectorResult
from sim.vector.search import explore

OURS = "ours"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.own_lifecycle", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="random runs of each version")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the first run")
    parser.add_argument("--show", choices=list(WRONG), default="any-grant", help="whose shortest run is printed")
    return parser.parse_args(arguments)


def simulated(batch: Batch) -> str:
    """What random runs came to, in a few words."""
    if batch.broken is None:
        return f"holds, {batch.runs} runs"
    return f"{batch.broken.property}, run {batch.runs}"


def checked(result: VectorResult) -> str:
    """What the search came to."""
    if result.violation is None:
        return f"all {result.states:,} states" if result.coverage == "exhausted" else result.bound
    return f"{result.violation.property}, {result.violation.depth} steps"


def proved(conditions: Sequence[Condition]) -> str:
    """What the proof came to. A proof that fails does not say that anything breaks: it says where the argument ends."""
    failed = [condition for condition in conditions if condition.result != PROVED]
    if not failed:
        return f"{len(conditions)} conditions"
    return f"fails: {failed[0].clause}" if failed[0].result == FAILED else f"no answer: {failed[0].clause}"


def as_expected(name: str, batch: Batch, result: VectorResult, conditions: Sequence[Condition]) -> bool:
    """Ours holds in all three, exhausted and proved; a wrong one is caught by the search, and its proof fails."""
    if name == OURS:
        return batch.broken is None and result.coverage == "exhausted" and all(c.result == PROVED for c in conditions)
    return result.violation is not None and any(condition.result == FAILED for condition in conditions)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all is as expected, 1 if not, 2 if something is missing."""
    options = parse(arguments)
    console = Console(highlight=False, soft_wrap=True)
    for table in (HOLDER, LEASE):
        console.print(f"The table '{table.name}': complete and unambiguous, or it would have been refused.\n")
        console.print(table.text())
    versions: dict[str, Rules] = {OURS: RULES, **WRONG}
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("version", "simulated", "checked", "proved"):
        shown.add_column(column, no_wrap=True)
    started, wrong, lines = time.monotonic(), [], ["there is none"]
    for name, rules in versions.items():
        batch = simulate(rules, runs=options.runs, steps_max=60, seed=options.seed)
        result = explore(bounded(rules))
        try:
            conditions = list(Induction(unbounded(rules), time.perf_counter).prove())
        except LocalError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        shown.add_row(name, simulated(batch), checked(result), proved(conditions))
        wrong += [] if as_expected(name, batch, result, conditions) else [name]
        if name == OURS:
            met = ", ".join(f"{what} {count:,}" for what, count in sorted(batch.met.items()))
            ours = f"{batch.steps:,} steps, objects and model side by side; met: {met}"
        if name == options.show and result.violation is not None:
            lines = trace_lines(bounded(rules), result.violation)
    console.print(shown, soft_wrap=False)
    promised = "; ".join(f"{clause.property} {clause.name}" for clause in bounded().clauses)
    console.print(f"\n{promised}.")
    console.print("simulated: at random. checked: every state of a small size, and no shorter way leads there.")
    console.print("proved: for any number of clients, leases and writes; where it fails, the argument ends there.")
    console.print(f"ours, simulated: {ours}.")
    console.print(f"\nThe shortest run that breaks '{options.show}':\n")
    console.print("\n".join(lines))
    ends, never_ends = judge(bounded())
    console.print(f"\nIn the end {ends.promise.text}: {ends.verdict}, if each Renew arrives finitely often.")
    console.print(f"If one may arrive for ever: {never_ends.verdict}.\n")
    console.print("\n".join(never_ends.lines()))
    wrong += [] if (ends.verdict, never_ends.verdict) == ("holds", "violated") else ["in the end"]
    console.print(f"\n{time.monotonic() - started:.1f} s. Not as expected: {', '.join(wrong) or 'none'}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
