"""``resumark coverage``: every row has somebody who takes it, and one that nobody takes does not stay unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fsm.blocks import BlockLedger, Owner
from fsm.edges import Edge, counting, edges
from fsm.lifecycle import BLOCK_TABLE
from fsm.messages import BlockRef
from fsm.table import REFUSE, Lifecycle, Row, Table
from sim import coverage
from sim.coverage import HIT, LEFT, LEFT_TO_TESTS, NOT_HIT, TABLES, UNEXPECTED, UNKNOWN, Line, Ran
from sim.engines.check import check
from sim.scenario import load_scenario
from tests.sim.cli_kit import ROOT, Done, refused, resumark

pytestmark = pytest.mark.counts_edges  # what runs here is not the test suite's own doing

SMALL = ("abort-anywhere", "early-too-large", "none", "silent-unknown-room")
"""Scenarios of a few hundred states that between them take every row that a run can take."""

UNREACHED = "Granted: unreached -> Free"
ROWS = {table.name: [str(edge) for edge in edges(table)] for table in TABLES}


@pytest.fixture(scope="module")
def measured() -> Done:
    """The whole command, once."""
    return resumark("coverage", "--json")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on little."""
    monkeypatch.setattr(coverage, "checked_scenarios", lambda: SMALL)
    monkeypatch.setattr(coverage, "count_simulate", partial(coverage.count_simulate, runs=2))


@pytest.fixture
def unreached_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that frees unreached blocks by two other rows: all properties hold, and one row is never taken."""

    def around(ledger: BlockLedger, owner: Owner, refs: Sequence[BlockRef]) -> None:
        ledger.quarantine(owner, refs)
        ledger.release(owner, refs)

    monkeypatch.setattr(BlockLedger, "unreached", around)


def suite_file(directory: Path, hits: Callable[[str], int]) -> str:
    """The file of a test run that hit each row as often as ``hits`` says, a third of it by Hypothesis."""
    tests = [hits(row) for rows in ROWS.values() for row in rows]
    path = directory / "hits.json"
    coverage.write_suite(coverage.suite_hits(TABLES, tests, [count // 3 for count in tests], counted=(1234, 56)), path)
    return str(path)


# --- the rows of this project ---------------------------------------------------------------------------


def test_a_run_takes_every_row_that_is_not_left_to_the_tests(measured: Done) -> None:
    assert measured.code == 0 and measured.data["verdict"] == "holds" and measured.data["exit_code"] == 0
    rows = measured.data["rows"]
    verdicts = {(row["table"], row["state"], row["event"], row["guard"]): row["verdict"] for row in rows}
    meant = {
        (table.name, *edge[:3]): LEFT if edge.refuses or (table.name, edge) in LEFT_TO_TESTS else HIT
        for table in TABLES
        for edge in edges(table)
    }
    assert verdicts == meant
    assert list(meant.values()).count(LEFT) == 6  # more of them want a reason, and an eye on it


def test_what_is_left_to_the_tests_is_never_taken_by_a_run_and_is_a_row(measured: Done) -> None:
    left = {(row["table"], row["state"], row["event"]): row for row in measured.data["rows"] if row["left_to_tests"]}
    assert all(row["check"] == row["simulate"] == 0 for row in left.values())
    for table, edge in LEFT_TO_TESTS:
        assert str(edge) in ROWS[table] and (table, edge.state, edge.event) in left


def test_check_exhausts_each_scenario_and_the_random_runs_hold(measured: Done) -> None:
    ran = measured.data["ran"]
    assert [one["scenario"] for one in ran] == [*coverage.checked_scenarios(), coverage.SIMULATED]
    assert {one["verdict"] for one in ran} == {"holds"}
    assert {one["coverage"] for one in ran[:-1]} == {"exhausted"} and len(ran) > 25
    assert ran[-1]["engine"] == "simulate" and ran[-1]["runs"] == coverage.RUNS
    assert measured.data["tests"] is None and {row["tests"] for row in measured.data["rows"]} == {None}


def test_the_same_hits_each_time() -> None:
    once, twice = (coverage.count_check(scenarios=SMALL[:2]) for _ in range(2))
    assert once.hits == twice.hits and sum(once.hits["block"].values()) > 50
    once, twice = (coverage.count_simulate(runs=3) for _ in range(2))
    assert once.hits == twice.hits and once.hits["sender"][edges(TABLES[1])[0]] > 3


def test_a_search_counts_a_step_that_it_looks_up_once() -> None:
    """The same grant is sent in very many transitions; it was computed a few times."""
    counted = coverage.count_check(scenarios=("silent-unknown-room",))
    (ran,) = counted.ran
    assert 0 < counted.hits["sender"][edges(TABLES[1])[2]] < ran.result.states < ran.result.transitions


# --- a row that nobody takes ----------------------------------------------------------------------------


def lamp(*, dims: bool = True) -> tuple[Table, Callable[[], None]]:
    """A table of this test's own, and what drives it; with ``dims`` off it forgets one event."""

    class Lamp(Lifecycle):
        __slots__ = ()
        table: ClassVar[Table] = Table(
            "lamp",
            initial="Off",
            terminal=("Broken",),
            rows={
                "Off": [Row("switch", "On", "power"), Row("switch", REFUSE, "!power"), Row("drop", "Broken")],
                "On": [Row("dim", "Off"), Row("drop", "Broken")],
                "Broken": [],
            },
            guards={"power": bool},
        )

    def drive() -> None:
        for last in ("dim", "drop"):
            one = Lamp()
            one.fire("switch", "power")
            if last != "dim" or dims:
                one.fire_flat(last)
        Lamp().fire("drop")

    return Lamp.table, drive


@pytest.mark.parametrize("dims", [True, False])
@pytest.mark.parametrize("tests", [None, 0, 2])
def test_an_event_that_is_no_longer_fired_is_found(dims: bool, tests: int | None) -> None:
    table, drive = lamp(dims=dims)
    with counting(table) as ledger:
        drive()
    nothing = {table.name: dict.fromkeys(edges(table), 0)}
    suite = None
    if tests is not None:
        row = [tests if edge.event == "dim" else int(edge.refuses) for edge in edges(table)]
        suite = coverage.suite_hits([table], row, [0] * len(row), counted=(1, 0))
    lines = coverage.ledger_lines(coverage.hits_of(ledger), nothing, suite, [table])
    verdicts = {str(line.edge): line.verdict for line in lines}
    assert list(verdicts)[-1] == f"Off: switch [!power] -> {REFUSE}"  # apart, though it is the second in the table
    dim = HIT if dims or tests else (UNKNOWN if tests is None else NOT_HIT)
    assert verdicts.pop("On: dim -> Off") == dim
    assert verdicts.pop(f"Off: switch [!power] -> {REFUSE}") == (LEFT if tests is None else HIT)
    assert set(verdicts.values()) == {HIT}
    assert coverage.verdict_of(lines) == {
        HIT: ("holds", 0), UNKNOWN: ("unknown", 4), NOT_HIT: ("violated", 1),
    }[dim]  # fmt: skip


def test_the_command_complains_of_a_row_that_a_change_left_without_anybody(
    quick: None, unreached_is_gone: None, tmp_path: Path
) -> None:
    done = resumark("coverage", "--table", "block")
    assert done.code == 4, done.out
    assert f"{UNREACHED}  " in done.out and "hit by neither check nor simulate  block, Granted: unreached" in done.out
    done = resumark("coverage", "--tests", suite_file(tmp_path, lambda row: 0 if row == UNREACHED else 3))
    assert done.code == 1
    assert "verdict" in done.out and "violated" in done.out and f"hit by nothing  block, {UNREACHED}" in done.out
    done = resumark("coverage", "--tests", suite_file(tmp_path, lambda row: 3))
    assert done.code == 0 and "hit by nothing" not in done.out


def test_the_command_without_that_change_does_not(quick: None, tmp_path: Path) -> None:
    assert resumark("coverage", "--table", "block", "--json").code == 0
    left = suite_file(tmp_path, lambda row: int(REFUSE in row or row.startswith("Reserved: free")))
    done = resumark("coverage", "--tests", left)
    assert done.code == 0, done.out


def test_a_row_that_is_left_to_the_tests_needs_them(quick: None, tmp_path: Path) -> None:
    done = resumark("coverage", "--json", "--tests", suite_file(tmp_path, lambda row: 0))
    assert done.code == 1
    missed = [row for row in done.data["rows"] if row["verdict"] == NOT_HIT]
    assert len(missed) == 6 and all(row["left_to_tests"] for row in missed)


def test_a_row_that_no_run_is_meant_to_take_must_not_be_taken() -> None:
    taken = Line("block", Edge("Reserved", "free", "", "Free"), 1, 0, 3, 9, "a reason")
    assert taken.verdict == UNEXPECTED and taken._replace(check=0, simulate=2).verdict == UNEXPECTED
    assert taken._replace(check=0).verdict == HIT and taken._replace(left="").verdict == HIT
    assert coverage.verdict_of([taken]) == ("violated", 1)


def test_an_engine_that_finds_something_broken_decides_the_exit_code() -> None:
    def ran(text: str, name: str) -> Ran:
        from sim.zoo import DETECTORS, HAZARDS, SCENARIOS, with_variant

        variant = (DETECTORS | HAZARDS)[text]
        return Ran("check", name, check(with_variant(load_scenario(SCENARIOS / f"{name}.toml"), variant)))

    hit = Line("block", edges(BLOCK_TABLE)[0], 1, 1, None, None, "")
    assert coverage.verdict_of([hit], [ran("watermark", "none")]) == ("holds", 0)
    liveness, safety = ran("flag", "flag"), ran("floor-start", "floor-start")
    assert coverage.verdict_of([hit], [liveness]) == ("violated", 3)
    assert coverage.verdict_of([hit], [liveness, safety]) == ("violated", 1)
    from sim.cli_coverage import verdict_facts

    label, text = verdict_facts([hit], [liveness])[-1]
    assert (label, text) == ("broken", f"{liveness.result.violations[0].property}: resumark check flag")


# --- what is printed ------------------------------------------------------------------------------------


def test_the_tables_fit_and_say_what_was_not_measured(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = resumark("coverage")
    assert done.code == 0 and max(map(len, done.out.splitlines())) <= 100
    assert "tests     not measured; to measure them: RESUMARK_EDGES=hits.json pytest" in done.out
    assert done.out.count("  measured  measured") == 3
    lines = done.out.splitlines()
    for name, rows in ROWS.items():
        assert any(line.startswith(f"{name} ") for line in lines)
        for row in rows:
            found = [line for line in lines if line.startswith(f"{row} ")]
            assert found and all(line.split()[-2:] == ["-", "-"] for line in found), row
    assert done.out.count("\nrefused\n") == 1
    assert "no run takes  5 rows: rows that refuse" in done.out and "no run takes  block, Reserved: free" in done.out
    suite_file(tmp_path, lambda row: 1234567)
    done = resumark("coverage", "--tests", "hits.json")
    assert done.code == 0 and max(map(len, done.out.splitlines())) <= 100
    assert "tests     1,234 tests, 56 of them by Hypothesis, from hits.json\n" in done.out
    assert done.out.count(" 411,522  1,234,567\n") == 35 and "measured" not in done.out
    assert done.out.rstrip().endswith("reproduce  resumark coverage --tests hits.json")


def test_one_table_alone(quick: None) -> None:
    done = resumark("coverage", "--table", "sender", "--json")
    assert [row["table"] for row in done.data["rows"]] == ["sender"] * 9
    assert done.data["command"] == "resumark coverage --table sender"


def test_a_terminal_sees_how_far_it_has_come() -> None:
    told: list[tuple[int, int, str]] = []
    coverage.count_check(scenarios=SMALL[:2], progress=lambda *how_far: told.append(how_far))
    coverage.count_simulate(runs=3, progress=lambda *how_far: told.append(how_far))
    assert told[:2] == [(0, 2, "check abort-anywhere"), (1, 2, "check early-too-large")]
    assert told[-1] == (3, 3, "simulate every-fault")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: "no json", "no hits of a test run: "),
        (lambda text: text.replace('"edges_version": 1', '"edges_version": 2'), "RESUMARK_EDGES="),
        (lambda text: text.replace('"tests": 7', '"tests": -7'), "no hits of a test run: Expected `int` >= 0"),
        (lambda text: text.replace('"unreached"', '"gone"'), f"it has no row 'block, {UNREACHED}'; run the tests"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change: Callable[[str], str], says: str, tmp_path: Path) -> None:
    path = Path(suite_file(tmp_path, lambda row: 7))
    path.write_text(change(path.read_text()))
    done = resumark("coverage", "--tests", str(path))
    refused(done)
    assert done.err.startswith(f"error: {path}: ") and says in done.err


def test_a_file_with_a_row_that_is_gone_or_without_a_file_is_refused(tmp_path: Path) -> None:
    path = Path(suite_file(tmp_path, lambda row: 7))
    data = json.loads(path.read_text())
    data["rows"].append({**data["rows"][0], "event": "vanished"})
    path.write_text(json.dumps(data))
    done = resumark("coverage", "--tests", str(path))
    refused(done)
    assert "its row 'receiver, Bootstrapping: vanished -> WaitingForInput' is gone" in done.err
    done = resumark("coverage", "--tests", str(tmp_path / "nothing.json"))
    refused(done)
    assert "nothing.json: cannot be read: No such file or directory" in done.err


# --- the counting of tests ------------------------------------------------------------------------------

PLUGGED = """
import os
import sys
sys.path.insert(0, os.environ["PROJECT"])
from pathlib import Path
def pytest_configure(config):
    for marker in ("walks_every_row", "counts_edges"):
        config.addinivalue_line("markers", marker)
    from tests.kit_edges import EdgePlugin
    config.pluginmanager.register(EdgePlugin(config, Path("hits.json").absolute()))
"""

COUNTED = """
import pytest
from hypothesis import given, settings, strategies as st
from fsm.lifecycle import ReceiverLifecycle, SenderLifecycle

@pytest.fixture
def registered():
    lane = SenderLifecycle()
    lane.fire("registered")
    return lane

@pytest.mark.parametrize("number", range(4))
def test_plain(registered, number):
    registered.fire_flat("grant")
    ReceiverLifecycle.table.next("Bootstrapping", "fail")

@settings(max_examples=5, derandomize=True, database=None)
@given(st.integers())
def test_drawn(number):
    ReceiverLifecycle().fire("registered")

@pytest.mark.walks_every_row
def test_walk(registered):
    registered.fire("fail")

@pytest.mark.skip(reason="never begun")
def test_skipped():
    SenderLifecycle().fire("fail")

def test_fails(registered):
    registered.fire("fail")
    assert False
"""


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")], ids=["one process", "workers"])
def test_tests_are_counted_while_they_run(options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(PLUGGED)
    (tmp_path / "test_counted.py").write_text(COUNTED)
    plain = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, *options, "."],
        cwd=tmp_path,
        env={**os.environ, "PROJECT": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr  # one test fails, and its hits count all the same
    assert "edges: 6 tests counted in " in done.stdout and "died" not in done.stdout
    suite = coverage.read_suite(tmp_path / "hits.json")
    assert (suite.tests, suite.hypothesis_tests) == (6, 1)
    hits: dict[str, Any] = {
        f"{row.table}: {row.state} {row.event}": (row.tests, row.hypothesis) for row in suite.rows if row.tests
    }
    assert hits == {
        "receiver: Bootstrapping registered": (5, 5),
        "sender: Bootstrapping registered": (5, 0),
        "sender: WaitingForInput grant": (4, 0),
        "sender: WaitingForInput fail": (1, 0),
    }
