"""Sweeps: every cell of the product is run once, results are the same whoever runs them, and nothing is lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fsm.errors import LocalError
from sim import cli_sweep, sweep, zoo
from sim.engines import executors
from sim.engines.check import check
from sim.engines.result import Result
from sim.scenario import Scenario
from sim.sweep import Cell, Outcome, check_cells, exit_code_of, rows_of, run_cell, select, simulate_cells
from tests.sim.cli_kit import refused, resumark, small_scenario

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra 'ray')")


def named(*names: str) -> list[tuple[str, Scenario]]:
    return [(name, zoo.scenario_named(name)) for name in names]


def cell_names(chosen: Sequence[tuple[str, Scenario]]) -> list[tuple[str, str, str]]:
    return [(cell.title, cell.variant, cell.allocator) for cell in check_cells(chosen)]


# --- which cells -----------------------------------------------------------------------------------------


def test_the_product_of_the_axes_in_order() -> None:
    chosen = select(named("flag", "none"), ["watermark", "no-grant-seq"], ["lifo", "fifo"])
    assert cell_names(chosen) == [
        (scenario, variant, allocator)
        for scenario in ("flag", "none")
        for variant in ("watermark", "no-grant-seq")
        for allocator in ("lifo", "fifo")
    ]


def test_an_axis_that_is_left_out_is_what_the_scenario_says() -> None:
    assert cell_names(select(named("every-fault"), [], [])) == [("every-fault", "watermark", "adversary")]
    assert cell_names(select(named("flag"), ["flag", "flag"], [])) == [("flag", "flag", "fifo")]


def test_a_variant_without_a_scenario_runs_in_those_that_show_it() -> None:
    shows = [(name, variant.name) for variant in zoo.HAZARDS.values() for name, _ in variant.shows()]
    found = [(title, variant) for title, variant, _ in cell_names(select([], list(zoo.HAZARDS), []))]
    assert found == list(dict.fromkeys(shows))
    everything = cell_names(select([], ["all"], ["all"]))
    assert {variant for _, variant, _ in everything} == {*zoo.DETECTORS, *zoo.HAZARDS}
    assert len({allocator for _, _, allocator in everything}) == 6


def test_every_seed_is_run_once() -> None:
    cells = simulate_cells(named("flag", "none"), range(3, 20), 5)
    assert [cell.number for cell in cells] == list(range(8))
    for title in ("flag", "none"):
        seeds = [
            seed
            for cell in cells
            if cell.title == title
            for seed in range(cell.seed or 0, (cell.seed or 0) + cell.runs)
        ]
        assert seeds == list(range(3, 20))


# --- running them ----------------------------------------------------------------------------------------


def results(cells: Sequence[Cell], executor: str, processes: int) -> list[Outcome]:
    return list(sweep.sweep(cells, executor, processes))


def some_cells() -> list[Cell]:
    checked = select(named("flag", "exhaust-leases"), ["flag", "watermark"], ["fifo"])
    drawn = select(named("every-fault"), ["no-grant-seq"], [])
    cells = [*check_cells(checked, states_max=50), *simulate_cells(drawn, range(12), 4)]
    return [cell._replace(number=number) for number, cell in enumerate(cells)]


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    cells = some_cells()
    alone = results(cells, "process", 1)
    assert [outcome.cell.number for outcome in alone] == list(range(len(cells)))
    assert {outcome.verdict for outcome in alone} >= {"violated", "unknown"}
    assert results(cells, "process", 2) == alone


@needs_ray
def test_ray_gives_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real Ray, of this machine alone."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cells = some_cells()
    assert results(cells, "ray", 2) == results(cells, "process", 1)


def test_a_cell_that_fails_is_named_and_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(scenario: Scenario, **options: Any) -> Result:
        if scenario.pool.allocator == "lifo":
            raise ValueError("no blocks")
        return check(scenario, **options)

    monkeypatch.setattr(sweep, "check", breaks)
    arguments = ["sweep", "flag", "--variants", "watermark", "--jobs", "1", "--allocators"]
    done = resumark(*arguments, "fifo,lifo,stingy", "--json")
    assert done.code == sweep.EXIT_FAULT
    assert [cell["verdict"] for cell in done.data["cells"]] == ["holds", "failed", "holds"]
    assert done.data["rows"][1]["errors"] == ["flag, watermark, lifo: ValueError: no blocks"]
    shown = resumark(*arguments, "fifo,lifo")
    assert "failed: flag, watermark, lifo: ValueError: no blocks" in shown.out
    assert "holds 1, failed 1" in shown.out


def test_when_a_worker_dies_the_rest_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(function: Any, jobs: Sequence[Cell], executor: str, processes: int) -> Iterator[Outcome]:
        yield function(jobs[0])
        raise RuntimeError("a worker process died")

    monkeypatch.setattr(sweep, "run_jobs", dies)
    cells = check_cells(select(named("flag"), ["watermark"], ["fifo", "lifo", "stingy"]))
    found = results(cells, "process", 2)
    assert [outcome.verdict for outcome in found] == ["holds", "failed", "failed"]
    assert [outcome.error for outcome in found[1:]] == ["a worker process died", "not run: a worker process died"]


# --- rows ------------------------------------------------------------------------------------------------


def outcome(verdict: str, code: int, *, number: int = 0, missed: tuple[str, ...] = (), property: str = "") -> Outcome:
    cell = simulate_cells(named("flag"), range(number, number + 1), 1)[0]._replace(number=number)
    return Outcome(cell, verdict, "sampled", 0, 1, code, property=property, missed=missed)


def test_what_one_portion_of_seeds_did_not_meet_another_may_have() -> None:
    first, second = (
        outcome("unknown", 4, missed=("resume", "starvation")),
        outcome("unknown", 4, missed=("starvation",)),
    )
    (row,) = rows_of([first, second])
    assert (row.verdict, row.missed, row.runs, row.exit_code) == ("unknown", ("starvation",), 2, 4)
    (row,) = rows_of([first, second, outcome("holds", 0)])
    assert (row.verdict, row.missed, row.exit_code) == ("holds", (), 0)


def test_the_worst_cell_decides_a_row_and_the_worst_row_the_exit_code() -> None:
    broken = [outcome("violated", 3, number=1, property="L1"), outcome("violated", 1, number=2, property="I3")]
    failure = sweep.failed(outcome("holds", 0, number=3).cell, "x")
    (row,) = rows_of([outcome("holds", 0), *broken, failure])
    assert row.first is not None
    assert (row.verdict, row.first.property, row.exit_code, len(row.errors)) == ("violated", "I3", 1, 1)
    (lost,) = rows_of([outcome("holds", 0), failure])
    assert (lost.verdict, lost.exit_code) == ("failed", sweep.EXIT_FAULT)
    (live,), (good,) = rows_of(broken[:1]), rows_of([outcome("holds", 0)])
    (late,) = rows_of([outcome("unknown", 4, missed=("resume",))])
    rows = [good, late, lost, live, row]
    assert [exit_code_of(rows[:count]) for count in range(6)] == [0, 0, 4, sweep.EXIT_FAULT, 3, 1]


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_says_the_same_for_any_number_of_jobs(tmp_path: Path) -> None:
    arguments = ["sweep", small_scenario(tmp_path), "flag", "--variants", "flag,watermark", "--json", "--jobs"]
    one, two = resumark(*arguments, "1"), resumark(*arguments, "2")
    assert one.code == 3
    assert one.out == two.out


def test_random_runs_and_how_to_see_one_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = resumark(
        "sweep", "every-fault", "--engine", "simulate", "--variants", "no-grant-seq", "--seeds", "0:40", "--runs", "8",
        "--jobs", "1", "--json", "--out", str(folder),
    )  # fmt: skip
    (row,) = done.data["rows"]
    assert (done.code, row["verdict"], row["coverage"]) == (1, "violated", "sampled")
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert lines == done.data["cells"] and len(lines) == 5
    broken = next(line for line in lines if line["property"])
    again = resumark("replay", str(folder / broken["trace_file"]), "--json")
    assert again.code == broken["exit_code"]
    assert [again.data["violations"][0][name] for name in ("property", "text")] == [broken["property"], broken["text"]]
    alone = resumark(*broken["command"].split()[1:], "--json")
    assert [alone.data["violations"][0][name] for name in ("property", "step")] == [broken["property"], broken["steps"]]


def test_a_table_for_people() -> None:
    done = resumark("sweep", "--variants", "flag", "--allocators", "fifo,lifo", "--jobs", "1")
    assert done.code == 3
    assert "2 rows of 2 cells in" in done.out and "violated 2" in done.out
    assert "resumark check flag --detector flag --allocator fifo" in done.out


def test_a_bound_that_ran_out_is_no_pass() -> None:
    done = resumark("sweep", "every-fault", "--states-max", "20", "--jobs", "1", "--json")
    assert done.code == 4
    assert [(row["verdict"], row["coverage"]) for row in done.data["rows"]] == [("unknown", "bounded")]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "nothing to sweep"),
        (["nowhere"], "nowhere: no such file, and no built-in scenario; built in: "),
        (["flag", "--variants", "flga"], "there is no variant 'flga'; there are watermark, "),
        (["flag", "--allocators", "fifo,best"], "there is no allocator 'best'; there are fifo, lifo, "),
        (["flag", "--seeds", "0:5"], "--seeds and --runs are for --engine simulate"),
        (["flag", "--engine", "simulate", "--states-max", "5"], "--states-max is for --engine check"),
        (["flag", "--engine", "simulate", "--seeds", "7"], "--seeds: got '7', expected FROM:TO"),
        (["flag", "--engine", "simulate", "--seeds", "7:7"], "--seeds: got '7:7', expected FROM below TO"),
    ],
)
def test_what_cannot_be_swept_is_refused(arguments: list[str], text: str) -> None:
    done = resumark("sweep", *arguments)
    refused(done)
    assert text in done.err


def test_results_are_never_mixed(tmp_path: Path) -> None:
    (tmp_path / "left").write_text("")
    done = resumark("sweep", "flag", "--out", str(tmp_path))
    refused(done)
    assert "is not empty" in done.err


def test_without_ray_its_executor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = resumark("sweep", "flag", "--executor", "ray")
    refused(done)
    assert "pip install 'resumark[ray]'" in done.err
    with pytest.raises(LocalError, match="there is no executor 'cloud'; there are process, ray"):
        executors.check_executor("cloud")


def test_the_options_name_what_there_is() -> None:
    assert [name.value for name in cli_sweep.ExecutorName] == list(executors.EXECUTORS)
    assert [name.value for name in cli_sweep.EngineName] == list(sweep.ENGINES)


def test_a_cell_is_a_call_of_its_engine() -> None:
    (cell,) = check_cells(select(named("flag"), ["flag"], ["fifo"]))
    result = check(cell.scenario)
    found = run_cell(cell)
    assert (found.verdict, found.states, found.property) == (
        result.verdict,
        result.states,
        result.violations[0].property,
    )
    assert found.trace == result.violations[0].trace
