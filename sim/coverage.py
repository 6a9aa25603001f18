"""The edge ledger of this project: for each row of each table, who takes it.

Four columns. *check*: the exhaustive engine, on every built-in scenario that it exhausts in no time. *simulate*: a
batch of random runs with every fault there is. *tests*: the test suite, and *Hypothesis*, the part of it that draws
its cases. The first two are counted here and are the same each time. The tests are counted while they run, into a
file (``RESUMARK_EDGES=FILE pytest``), which is read here.

What a number means
-------------------
The search computes a step of a process once and looks it up when the same process is told the same thing again
(:mod:`sim.memo`). So the hits of check are those of *distinct* steps, not of all transitions of the graph. The search
drives the flat lookup, the random runs the ``transitions`` machine: a row that both hit was taken both ways. Moves in
other processes than that of the tests (workers that a test starts, say) are not seen, nor is the model of
:mod:`sim.model`, which reads the tables without moving anything.

The historical table with five states is no table of the protocol and has no column: only versions of the zoo live by
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from fsm.edges import Edge, EdgeLedger, counting, edges
from fsm.errors import LocalError
from fsm.lifecycle import BLOCK_TABLE, RECEIVER_TABLE, SENDER_TABLE
from fsm.table import Table
from sim import zoo
from sim.engines.check import check
from sim.engines.result import EXIT_HOLDS, EXIT_SAFETY, EXIT_UNKNOWN, Result
from sim.engines.simulate import simulate

TABLES: Final = (RECEIVER_TABLE, SENDER_TABLE, BLOCK_TABLE)
"""The tables of the protocol."""

SIMULATED: Final = "every-fault"
SEED: Final = 0
RUNS: Final = 100
MACHINE: Final = "transitions"
"""The random runs that are counted."""

STATES_MAX: Final = 20_000
"""The bound of one search; each ends long before it."""

REFUSES: Final = "rows that refuse are for what the protocol never asks"
"""Why a row to ``REFUSE`` is left to the tests."""

LEFT_TO_TESTS: Final[Mapping[tuple[str, Edge], str]] = {
    ("block", Edge("Reserved", "free", "", "Free")): (
        "only a hook that fails keeps a grant from being sent, and no run has hooks"
    ),
}
"""Rows of a table, by its name, that no run of the protocol takes, and why. The tests have to take them; if a run does,
then what is said here is wrong."""

Progress = Callable[[int, int, str], None]
"""Told how many pieces of how many are done, and what is counted now."""

Hits = Mapping[str, Mapping[Edge, int]]
"""By the name of a table: every row, and how often it was hit."""


# --- the engines ----------------------------------------------------------------------------------------


class Ran(NamedTuple):
    """One thing that an engine ran while hits were counted, and what it answered."""

    engine: str
    scenario: str
    result: Result


class Counted(NamedTuple):
    """Hits of one engine, and of what."""

    hits: Hits
    ran: tuple[Ran, ...]


def checked_scenarios() -> tuple[str, ...]:
    """The built-in scenarios whose every state is visited; the large ones would only take longer."""
    return tuple(name for name in zoo.scenario_names() if name != SIMULATED and not name.startswith("exhaust-"))


def hits_of(ledger: EdgeLedger) -> Hits:
    """All that a ledger has counted."""
    return {table.name: ledger.hits(table) for table in ledger.tables}


def count_check(
    tables: Sequence[Table] = TABLES, *, scenarios: Sequence[str] | None = None, progress: Progress | None = None
) -> Counted:
    """Hits of the exhaustive engine on ``scenarios``, by name; those of :func:`checked_scenarios` if left out."""
    names = checked_scenarios() if scenarios is None else scenarios
    ran = []
    with counting(*tables) as ledger:
        for done, name in enumerate(names):
            if progress is not None:
                progress(done, len(names), f"check {name}")
            ran.append(Ran("check", name, check(zoo.scenario_named(name), states_max=STATES_MAX)))
    return Counted(hits_of(ledger), tuple(ran))


def count_simulate(tables: Sequence[Table] = TABLES, *, runs: int = RUNS, progress: Progress | None = None) -> Counted:
    """Hits of ``runs`` random runs from :data:`SEED` on, in this process."""

    def tell(done: int, of: int) -> None:
        if progress is not None:
            progress(done, of, f"simulate {SIMULATED}")

    scenario = zoo.scenario_named(SIMULATED)
    with counting(*tables) as ledger:
        result = simulate(scenario, seed=SEED, runs=runs, jobs=1, machine=MACHINE, progress=tell)
    return Counted(hits_of(ledger), (Ran("simulate", SIMULATED, result),))


# --- the test suite -------------------------------------------------------------------------------------

Hit = Annotated[int, msgspec.Meta(ge=0)]


class SuiteRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row in the file of a test run. ``hypothesis`` is a part of ``tests``."""

    table: str
    state: str
    event: str
    guard: str
    target: str
    tests: Hit
    hypothesis: Hit


class SuiteHits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run of the test suite has counted: how many tests, how many of them by Hypothesis, and each row."""

    edges_version: Literal[1]
    tests: Hit
    hypothesis_tests: Hit
    rows: tuple[SuiteRow, ...]

    def hits(self, column: Literal["tests", "hypothesis"]) -> Hits:
        """One of the two columns."""
        found: dict[str, dict[Edge, int]] = {}
        for row in self.rows:
            of_table = found.setdefault(row.table, {})
            of_table[Edge(row.state, row.event, row.guard, row.target)] = getattr(row, column)
        return found


def suite_hits(
    tables: Sequence[Table], tests: Sequence[int], hypothesis: Sequence[int], *, counted: tuple[int, int]
) -> SuiteHits:
    """The two columns of a test run, each as :meth:`EdgeLedger.snapshot` has it; ``counted``: tests, and those by
    Hypothesis."""
    named = [(table.name, edge) for table in tables for edge in edges(table)]
    rows = tuple(
        SuiteRow(table=name, **edge._asdict(), tests=of_tests, hypothesis=of_hypothesis)
        for (name, edge), of_tests, of_hypothesis in zip(named, tests, hypothesis, strict=True)
    )
    return SuiteHits(edges_version=1, tests=counted[0], hypothesis_tests=counted[1], rows=rows)


def write_suite(hits: SuiteHits, path: Path) -> None:
    """Write the file of a test run."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(hits)) + b"\n")


def read_suite(path: Path, tables: Sequence[Table] = TABLES) -> SuiteHits:
    """Read it again. Raises :class:`LocalError` for a file that is none, or that was counted on other rows than those
    of these tables."""
    try:
        suite = msgspec.json.decode(path.read_bytes(), type=SuiteHits)
    except OSError as error:
        raise LocalError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LocalError(f"{path}: no hits of a test run: {error}; RESUMARK_EDGES={path} pytest writes them") from None
    here = {(table.name, edge): None for table in tables for edge in edges(table)}
    there = {(row.table, Edge(row.state, row.event, row.guard, row.target)): None for row in suite.rows}
    missing = [f"it has no row '{table}, {edge}'" for table, edge in here if (table, edge) not in there]
    gone = [f"its row '{table}, {edge}' is gone" for table, edge in there if (table, edge) not in here]
    if missing or gone:
        raise LocalError(f"{path}: counted on other tables: {(missing + gone)[0]}; run the tests again")
    return suite


# --- the ledger -----------------------------------------------------------------------------------------

HIT, NOT_HIT, UNKNOWN, LEFT, UNEXPECTED = "hit", "not hit", "unknown", "left to tests", "unexpected"


class Line(NamedTuple):
    """One row and its hits. ``hypothesis``, which is a part of ``tests``, and ``tests`` are ``None`` where they were
    not measured; ``left`` says why no run takes the row, if none is meant to."""

    table: str
    edge: Edge
    check: int
    simulate: int
    hypothesis: int | None
    tests: int | None
    left: str

    @property
    def verdict(self) -> str:
        """``hit`` by anything; ``not hit`` by anything; ``unknown``, for want of the tests; ``left to tests``, which
        were not measured; ``unexpected``: taken by a run, though none is meant to take it."""
        if self.left and self.check + self.simulate:
            return UNEXPECTED
        if self.check + self.simulate + (self.tests or 0):
            return HIT
        if self.tests is not None:
            return NOT_HIT
        return LEFT if self.left else UNKNOWN


def ledger_lines(
    check: Hits, simulate: Hits, suite: SuiteHits | None = None, tables: Sequence[Table] = TABLES
) -> list[Line]:
    """Every row of the tables, in their order, those that refuse after the others of their table."""
    tests = None if suite is None else suite.hits("tests")
    hypothesis = None if suite is None else suite.hits("hypothesis")
    return [
        Line(
            table.name, edge, check[table.name][edge], simulate[table.name][edge],
            None if hypothesis is None else hypothesis[table.name][edge],
            None if tests is None else tests[table.name][edge],
            REFUSES if edge.refuses else LEFT_TO_TESTS.get((table.name, edge), ""),
        )
        for table in tables
        for edge in sorted(edges(table), key=lambda edge: edge.refuses)
    ]  # fmt: skip


def verdict_of(lines: Sequence[Line], ran: Sequence[Ran] = ()) -> tuple[str, int]:
    """The verdict and the exit code: that of an engine that found something broken; 1 if a row is hit by nothing, or
    taken though it never should be; 4 if one is hit by no engine and the tests were not measured; else 0."""
    broken = [each.result.exit_code for each in ran if each.result.verdict == "violated"]
    if broken:
        return "violated", min(broken)
    found = [line.verdict for line in lines]
    if NOT_HIT in found or UNEXPECTED in found:
        return "violated", EXIT_SAFETY
    return ("unknown", EXIT_UNKNOWN) if UNKNOWN in found else ("holds", EXIT_HOLDS)


def line_json(line: Line) -> dict[str, Any]:
    """One row as plain data."""
    return {
        "table": line.table, **line.edge._asdict(), "check": line.check, "simulate": line.simulate,
        "hypothesis": line.hypothesis, "tests": line.tests, "left_to_tests": line.left, "verdict": line.verdict,
    }  # fmt: skip
