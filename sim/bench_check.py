"""What exhaustive checking costs: the vector engine beside Spin, on the same models, on one core, in turns.

Time is processor time of the process that searches, so that other work on the machine counts little: of this process
for the vector engine, of its child for Spin, whose compilation is not counted. Counts must agree, or there is nothing
to compare. Symmetry is off.

Two-phase commit is written by hand for Spin and asserts nothing there, while the vector engine checks its clause on
every state. The protocol model is written out by :mod:`sim.engines.promela`, and both check all its clauses; there the
making of machine code for the vector engine is measured by itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

from fsm.errors import LocalError
from sim.engines import spin
from sim.engines.promela import Twin, promela
from sim.model.form import Model
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.two_phase import STATES, two_phase, two_phase_promela
from sim.render import Figure
from sim.vector.result import VectorResult
from sim.vector.search import Search, explore

COMPARED = 8
"""Resource managers of the model that both search."""
LARGE = 10
"""Resource managers of the model that only the vector engine searches."""
QUICK = 6
"""As many when nothing is to be measured, only seen to work."""
PROTOCOL = Bounds(rooms=2, size=2, crashes=1)
"""The protocol model that both search: millions of states."""
PROTOCOL_QUICK = Bounds(crashes=1)
ROUNDS = 5
PROTOCOL_ROUNDS = 3
QUICK_ROUNDS = 2
TICK_S = 0.01
"""Processor time of children is counted in steps of that."""
GIB = 1 << 30

Say = Callable[[str], Any] | None
"""Told what is being measured."""


class Timed(NamedTuple):
    """A search, the processor time that it took and the time on the wall, in seconds; ``prepare_s`` is the processor
    time of what came before it, where that was measured by itself."""

    result: VectorResult
    cpu_s: float
    wall_s: float
    prepare_s: float = 0.0


def timed(managers: int, **limits: Any) -> Timed:
    """Search two-phase commit. Raises LocalError if what is found is not what is known of it."""
    model = two_phase(managers)
    started, cpu = perf_counter(), process_time()
    result = explore(model, **limits)
    found = Timed(result, process_time() - cpu, perf_counter() - started)
    if found.result.verdict == "holds" and found.result.states != STATES[managers]:
        raise LocalError(
            f"two_phase({managers}): {found.result.states:,} states were found, there are {STATES[managers]:,}"
        )
    return found


def _prepared(model: Model) -> Timed:
    """Search a model, and measure by itself what comes before: reading it and making machine code of it."""
    cpu = process_time()
    search = Search(model)
    try:
        search.prepare()
        started, ready = perf_counter(), process_time()
        result = search.run()
        return Timed(result, process_time() - ready, perf_counter() - started, ready - cpu)
    finally:
        search.close()


def measure_all(say: Say = None, *, quick: bool = False, large: bool = False) -> dict[str, list[Figure]]:
    """Every figure, by group. ``quick``: a small model, for which there are no targets. ``large``: the large one too.

    Spin, where it is installed, writes and compiles its checker in a folder that is removed afterwards.
    """
    title = "exhaustive search of a model, on one core"
    if say is not None:
        say(title)
    with tempfile.TemporaryDirectory(prefix="resumark-") as folder:
        if quick:
            figures = two_phase_figures(Path(folder), say, managers=QUICK, rounds=QUICK_ROUNDS)
            figures += protocol_figures(Path(folder), say, bounds=PROTOCOL_QUICK, rounds=QUICK_ROUNDS)
            groups = {title: [figure._replace(target=None, aim=None) for figure in figures]}
        else:
            groups = {title: two_phase_figures(Path(folder), say) + protocol_figures(Path(folder), say)}
    if large:
        groups["a large model, once"] = large_figures(say)
    return groups


def two_phase_figures(
    folder: Path | None, say: Say = None, *, managers: int = COMPARED, rounds: int | None = None
) -> list[Figure]:
    """Both engines in turns. ``folder`` is for Spin's files; without one, or without Spin, there is no comparison."""
    rounds = ROUNDS if rounds is None else rounds
    twin = Twin(two_phase_promela(managers)) if folder is not None and not spin.missing() else None
    mine, theirs = _in_turns(
        lambda: timed(managers), twin, folder, rounds, say, f"two-phase commit with {managers} managers"
    )
    result = mine[0].result
    note = f"{result.states:,} states, {result.transitions:,} transitions, {managers} managers"
    figures = [
        Figure("two-phase commit, distinct states", _rate(mine), "/s", 2e6, "more", note),
        Figure("the same by the clock on the wall", median(result.states / run.wall_s for run in mine), "/s"),
    ]
    if theirs:
        figures += [
            Figure("the same, Spin", result.states / median(theirs), "/s", note="no partial order reduction"),
            Figure("vector engine over Spin", _ratio(mine, theirs), "x", 2.0, "more", "median over rounds", aim=5.0),
        ]
    return figures


def protocol_figures(
    folder: Path | None, say: Say = None, *, bounds: Bounds | None = None, rounds: int | None = None
) -> list[Figure]:
    """The same of the protocol model, as :func:`two_phase_figures`. Both check every clause in every state, and of both
    the compilation is left out; a second ratio has that of the vector engine in it."""
    rounds = PROTOCOL_ROUNDS if rounds is None else rounds
    model = replace(bounded(PROTOCOL if bounds is None else bounds), symmetry=(), references=())
    twin = promela(model, clauses=True) if folder is not None and not spin.missing() else None
    mine, theirs = _in_turns(lambda: _prepared(model), twin, folder, rounds, say, "protocol model")
    result = mine[0].result
    if result.verdict != "holds":
        raise LocalError(f"the protocol model does not hold: {result.violation}")
    note = f"{result.states:,} states, {result.transitions:,} transitions, {len(model.clauses)} clauses"
    figures = [
        Figure("protocol model, distinct states", _rate(mine), "/s", note=note),
        Figure(
            "making machine code of the model", median(run.prepare_s for run in mine), "s", note="before the search"
        ),
    ]
    if theirs:
        whole = [run._replace(cpu_s=run.cpu_s + run.prepare_s) for run in mine]
        figures += [
            Figure("protocol model, Spin", result.states / median(theirs), "/s", note="with the same clauses"),
            Figure("protocol model, vector engine over Spin", _ratio(mine, theirs), "x", 2.0, "more",
                   "no compilation counted", aim=5.0),
            Figure("the same, making machine code counted", _ratio(whole, theirs), "x", note="Spin's compilation not"),
        ]  # fmt: skip
    return figures


def _in_turns(
    search: Callable[[], Timed], twin: Twin | None, folder: Path | None, rounds: int, say: Say, title: str
) -> tuple[list[Timed], list[float]]:
    """Both engines, one after the other, so many times: the vector engine's runs, and Spin's seconds of processor time
    if there is a twin for it."""
    checker = None
    if twin is not None and folder is not None:
        checker = spin.build(twin, folder / f"{len(list(folder.iterdir()))}")
    mine, theirs = [], []
    for number in range(rounds):
        if say is not None:
            say(f"{title}, round {number + 1} of {rounds}")
        mine.append(search())
        if checker is not None:
            theirs.append(_spin_s(checker, mine[-1].result))
    return mine, theirs


def _rate(mine: list[Timed]) -> float:
    return median(run.result.states / run.cpu_s for run in mine)


def _ratio(mine: list[Timed], theirs: list[float]) -> float:
    return median(their_s / run.cpu_s for their_s, run in zip(theirs, mine, strict=True))


def _spin_s(checker: spin.Checker, mine: VectorResult) -> float:
    """Processor time of a run of Spin. Raises LocalError if it counts otherwise, or finds a broken clause."""
    before = os.times()
    result = spin.run(checker)
    after = os.times()
    if result.errors:
        raise LocalError("Spin finds a broken clause, and the vector engine none")
    if not result.complete or (result.states, result.transitions) != (mine.states, mine.transitions):
        raise LocalError(
            f"Spin counts {result.states:,} states and {result.transitions:,} transitions, the vector engine "
            f"{mine.states:,} and {mine.transitions:,}"
        )
    used_s = after.children_user + after.children_system - before.children_user - before.children_system
    return max(used_s, TICK_S)


def large_figures(say: Say = None, *, managers: int = LARGE) -> list[Figure]:
    """The large model, once: time on the wall, and what the process takes in memory."""
    if say is not None:
        say(f"two-phase commit with {managers} managers, {STATES[managers]:,} states")
    found = timed(managers)
    note = f"{found.result.states:,} states, {found.result.transitions:,} transitions"
    figures = [
        Figure(f"two-phase commit with {managers} managers", found.wall_s, "s", 60.0, note=note),
        Figure("the same in processor time", found.cpu_s, "s"),
        Figure("runs and buffers at most", found.result.memory_bytes / GIB, "GiB"),
    ]
    peak = _peak_bytes()
    return [*figures, Figure("the whole process at most", peak / GIB, "GiB", 4.0)] if peak else figures


def _peak_bytes() -> int:
    """The most memory that this process has had; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return sizes[0] * 1024 if sizes else 0
