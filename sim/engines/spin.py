"""Spin, the model checker, as a second opinion on the counts of the vector engine.

Spin is no part of this project and is not needed by it: where ``spin`` and a C compiler are installed (on Debian
``apt-get install spin gcc``), a model is written out in Promela, turned into a checker, compiled and run. Everything
that would make the counts differ is off: partial order reduction, the removal of dead variables, the search for cycles.

:mod:`sim.engines.promela` writes any model of :mod:`sim.model.form`; what it writes follows the model, mistakes and
all. It tells an error of an engine. An error of a model is told by a text written by hand, as that of two-phase commit
is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from fsm.errors import LocalError
from sim.engines.promela import HEADER, Twin

SPIN = ("spin", "-o2", "-a")
"""``-o2``: without it Spin takes states as one that differ in a variable which is never read again."""
FLAGS = ("-DSAFETY", "-DNOREDUCE", "-DNOCOMP", "-w")
"""``-DNOCOMP``: states are kept as they are, which takes more memory and is up to a tenth faster."""
DEPTH_MAX = 2_000_000
HASH_BITS = 24
MEMORY_MIB = 8_192


class SpinResult(NamedTuple):
    """What Spin found, counted as the vector engine does: whatever comes before an initial state is left out.

    ``complete`` is false if Spin gave up a part of the search, for its depth or its memory; then no count means
    anything. ``elapsed_s`` is Spin's own word, of the search alone. ``vector_bytes`` is the size of its state.
    """

    states: int
    transitions: int
    errors: int
    complete: bool
    elapsed_s: float
    vector_bytes: int


class Checker(NamedTuple):
    """A program that :func:`build` made, of a model with so many initial states."""

    path: Path
    starts: int


def missing() -> str:
    """Why Spin cannot be run here; empty if it can."""
    tools = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    return f"{' and '.join(tools)} not installed (Debian: apt-get install spin gcc)" if tools else ""


def build(twin: Twin, folder: Path, *, optimise: str = "-O3") -> Checker:
    """Compile a checker in a folder, which gets the files that this needs. Raises LocalError.

    ``optimise`` is the level of the C compiler: ``-O0`` compiles a large model in a second, and searches slowly.
    """
    reason = missing()
    if reason:
        raise LocalError(f"Spin cannot be run: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.pml").write_text(twin.promela)
    (folder / HEADER).write_text(twin.functions)
    limits = (f"-DMEMLIM={MEMORY_MIB}", f"-DDEPTH_MAX={DEPTH_MAX}")
    for command in ((*SPIN, "model.pml"), ("gcc", optimise, *FLAGS, *limits, "-o", "pan", "pan.c")):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise LocalError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()[:2000]}")
    return Checker(folder / "pan", twin.starts)


def run(checker: Checker) -> SpinResult:
    """Run a checker. Raises LocalError if it does not come to its end."""
    command = [str(checker.path.resolve()), f"-m{DEPTH_MAX}", f"-w{HASH_BITS}"]
    done = subprocess.run(command, cwd=checker.path.parent, capture_output=True, text=True)
    result = parse(done.stdout)
    if checker.starts == 1:
        return result
    # The state before the choice of an initial one, and the steps that choose: Spin counts them, nobody else does.
    return result._replace(states=result.states - 1, transitions=result.transitions - checker.starts)


def parse(said: str) -> SpinResult:
    """Read what a checker printed; the step to its first state is left out. Raises LocalError for what is no report."""
    found = {
        "states": re.search(r"^\s*(\d+) states, stored", said, re.M),
        "transitions": re.search(r"^\s*(\d+) transitions", said, re.M),
        "errors": re.search(r"errors: (\d+)", said),
        "vector": re.search(r"State-vector (\d+) byte", said),
    }
    numbers = {name: int(match.group(1)) for name, match in found.items() if match}
    if len(numbers) < len(found):
        raise LocalError(f"Spin's checker gave no report: {said.strip()[:2000]}")
    elapsed = re.search(r"elapsed time ([\d.]+) seconds", said)
    complete = not re.search(r"Search not completed|max search depth too small|reached -DMEMLIM|out of memory", said)
    return SpinResult(
        numbers["states"],
        numbers["transitions"] - 1,
        numbers["errors"],
        complete,
        float(elapsed.group(1)) if elapsed else 0.0,
        numbers["vector"],
    )
