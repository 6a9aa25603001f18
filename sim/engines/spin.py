"""Spin, the model checker, as a second opinion on the counts of the vector engine.

Spin is no part of this project and is not needed by it: where ``spin`` and a C compiler are installed (on Debian
``apt-get install spin gcc``), a model is written out in Promela, turned into a checker, compiled and run. Everything
that would make the counts differ is off: partial order reduction, the removal of dead variables, the search for cycles.

:func:`promela` writes any model of :mod:`sim.model.form`; what it writes follows the model, mistakes and all. It tells
an error of an engine. An error of a model is told by a text written by hand, as that of two-phase commit is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fsm.errors import LocalError
from sim.model.form import Field, Model
from sim.model.symbol import CONST, FIELD, Symbol, check_model

SPIN = ("spin", "-o2", "-a")
"""``-o2``: without it Spin takes states as one that differ in a variable which is never read again."""
FLAGS = ("-O3", "-DSAFETY", "-DNOREDUCE", "-w")
DEPTH_MAX = 2_000_000
HASH_BITS = 24
MEMORY_MIB = 8_192

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%", "eq": "==", "ne": "!=", "lt": "<", "le": "<=",
          "gt": ">", "ge": ">=", "and": "&&", "or": "||"}  # fmt: skip


class SpinResult(NamedTuple):
    """What Spin found. ``transitions`` counts as the vector engine does: the one to the initial state is left out.

    ``complete`` is false if Spin gave up a part of the search, for its depth or its memory; then no count means
    anything. ``elapsed_s`` is Spin's own word, of the search alone. ``vector_bytes`` is the size of its state.
    """

    states: int
    transitions: int
    errors: int
    complete: bool
    elapsed_s: float
    vector_bytes: int


def missing() -> str:
    """Why Spin cannot be run here; empty if it can."""
    tools = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    return f"{' and '.join(tools)} not installed (Debian: apt-get install spin gcc)" if tools else ""


def build(text: str, folder: Path) -> Path:
    """Compile a checker for a Promela text in a folder, which gets the files that this needs. Raises LocalError."""
    reason = missing()
    if reason:
        raise LocalError(f"Spin cannot be run: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.pml").write_text(text)
    for command in ((*SPIN, "model.pml"), ("gcc", *FLAGS, f"-DMEMLIM={MEMORY_MIB}", "-o", "pan", "pan.c")):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise LocalError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()[:2000]}")
    return folder / "pan"


def run(checker: Path) -> SpinResult:
    """Run a checker that :func:`build` made. Raises LocalError if it does not come to its end."""
    command = [str(checker.resolve()), f"-m{DEPTH_MAX}", f"-w{HASH_BITS}"]
    done = subprocess.run(command, cwd=checker.parent, capture_output=True, text=True)
    return parse(done.stdout)


def parse(said: str) -> SpinResult:
    """Read what a checker printed. Raises LocalError for what is no report."""
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


# --- writing ---------------------------------------------------------------------------------------------


def promela(model: Model, *, clauses: bool = False) -> str:
    """A model in Promela, symmetry left out; ``clauses`` asserts them before every step.

    Raises LocalError for more than one initial state, for a field that is wider than Spin's 32 bits, and for a division
    of what may be negative, which Promela rounds the other way.
    """
    table = check_model(model)
    starts = model.start_states()
    if len(starts) != 1:
        raise LocalError(f"model '{model.name}' has {len(starts)} initial states; Promela is written for one")
    lines = [f"/* {model.name} */"]
    lines += [f"{_kind(model, field)} {field.name} = {starts[0][field.name]};" for field in model.fields]
    steps, kept = [], 0
    for action in model.actions:
        update = {name: _text(model, symbol) for name, symbol in table.update(action).items()}
        changes = _assignments(update, table.update(action))
        kept = max(kept, len(update))
        steps.append(f":: d_step {{ {_text(model, table.guard(action))} -> {'; '.join(changes) or 'skip'} }}")
    lines += [f"hidden int kept{number};" for number in range(kept)]
    checked = [f"assert({_text(model, table.clause(clause))});" for clause in model.clauses] if clauses else []
    steps = [step.replace("-> ", f"-> {' '.join(checked)} ", 1) if checked else step for step in steps]
    return "\n".join([*lines, "active proctype all() {", "end: do", *steps, ":: false -> skip", "od }", ""])


def _assignments(update: Mapping[str, str], symbols: Mapping[str, Symbol]) -> list[str]:
    """All fields change at once: where one is read after it was set, the values are computed first."""
    if all(symbol.kind == CONST for symbol in symbols.values()) or len(update) == 1:
        return [f"{name} = {text}" for name, text in update.items()]
    names = list(update)
    first = [f"kept{number} = {update[name]}" for number, name in enumerate(names)]
    return first + [f"{name} = kept{number}" for number, name in enumerate(names)]


def _kind(model: Model, field: Field) -> str:
    for kind, low, high in (("bit", 0, 1), ("byte", 0, 255), ("short", -(1 << 15), (1 << 15) - 1),
                            ("int", -(1 << 31), (1 << 31) - 1)):  # fmt: skip
        if low <= field.low and field.high <= high:
            return kind
    raise LocalError(f"model '{model.name}', field '{field.name}': {field.low}..{field.high} is wider than Spin's int")


def _text(model: Model, symbol: Symbol) -> str:
    if symbol.kind in (FIELD, CONST):
        return str(symbol.value)
    if symbol.kind in ("div", "mod") and symbol.args[0].low < 0:
        raise LocalError(f"model '{model.name}': divides {symbol.args[0]}, which may be negative; Promela rounds to 0")
    parts = [_text(model, part) for part in symbol.args]
    if symbol.kind == "where":
        return f"({parts[0]} -> {parts[1]} : {parts[2]})"
    if symbol.kind in ("min", "max"):
        return f"({parts[0]} {'<' if symbol.kind == 'min' else '>'} {parts[1]} -> {parts[0]} : {parts[1]})"
    return f"({parts[0]} {_SIGNS[symbol.kind]} {parts[1]})"
