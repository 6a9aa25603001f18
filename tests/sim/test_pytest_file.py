"""A test file made from a trace fails under the version that the trace is of, and passes under the protocol."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fsm.errors import LocalError
from fsm.invariants import PROPERTIES
from fsm.rules import PROTOCOL
from fsm.trace import WORKER, Trace, TraceEnding, TraceHeader
from sim import zoo
from sim.choices import Seeded
from sim.cli_view import views_of
from sim.engines.check import check
from sim.engines.guided import guided_steps, run_guided, version_named
from sim.engines.no_return import no_return
from sim.engines.replay import replay, scenario_of
from sim.engines.simulate import run_once, simulate
from sim.pytest_file import pytest_file, version_of
from sim.scenario import Variant
from sim.trace_file import write_trace
from sim.zoo_table import Job, job_scenario, zoo_jobs
from tests.sim.cli_kit import resumark

ROWS = [job for job in zoo_jobs() if job.expected in PROPERTIES and job.allocator in ("fifo", "adversary")]


def found(job: Job) -> Trace:
    """The trace of a row of the zoo."""
    return check(job_scenario(job), only=(job.property,), states_max=200_000).violations[0].trace


def written(trace: Trace, path: Path, command: str = "resumark check") -> dict[str, Any]:
    """What a file that was written for a trace defines."""
    path.write_text(pytest_file(trace, views_of(trace), no_return(trace).step, path.name, command), encoding="utf-8")
    return runpy.run_path(str(path))


@pytest.mark.parametrize("job", ROWS, ids=lambda job: f"{job.variant}-{job.property}-{job.allocator}")
def test_the_file_fails_for_the_version_and_passes_for_the_protocol(job: Job, tmp_path: Path) -> None:
    made = written(found(job), tmp_path / "test_made.py")
    assert made["VERSIONS"] == [job.variant, "watermark"]
    with pytest.raises(AssertionError, match=rf"\b{job.property} \("):
        made["test_no_property_is_broken"](job.variant)
    made["test_no_property_is_broken"]("watermark")
    made["test_no_property_is_broken"](PROTOCOL)


@pytest.mark.parametrize("variant", ["late-status", "no-grant-seq"])
def test_the_file_of_a_random_run_of_another_engine(variant: str, tmp_path: Path) -> None:
    """Requests arrive at their ticks then, and not at any moment."""
    result = simulate(zoo.scenario_for(variant), seed=3, runs=500, jobs=1)
    trace = result.violations[0].trace
    made = written(trace, tmp_path / "test_made.py")
    with pytest.raises(AssertionError, match=trace.ending.property):
        made["test_no_property_is_broken"](variant)
    made["test_no_property_is_broken"]("watermark")


def test_pytest_runs_the_file_and_names_the_property(tmp_path: Path) -> None:
    trace, made = tmp_path / "lost.jsonl", tmp_path / "test_lost.py"
    assert resumark("check", "--hazard", "free-then-alloc", "--trace", str(trace)).code == 1
    done = resumark("replay", str(trace), "--pytest", str(made))
    assert done.code == 1
    assert done.out.splitlines()[-1].split()[:2] == ["test", "pytest"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", made.name],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "1 failed, 1 passed" in ran.stdout
    assert "test_no_property_is_broken[free-then-alloc]" in ran.stdout
    assert "I3 (every block is free or has exactly one owner; none is lost, none counted twice) is broken" in ran.stdout


def test_the_file_can_be_read(tmp_path: Path) -> None:
    trace = check(zoo.scenario_for("free-then-alloc")).violations[0].trace
    path = tmp_path / "test_made.py"
    made = written(trace, path, "resumark check --hazard free-then-alloc")
    text = path.read_text(encoding="utf-8")
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "# resumark check --hazard free-then-alloc\n" in text
    assert "    # 6  Grant #1 to sender; sender: #1 Transferring, write 0 [0,4)\n" in text
    lines = [line.strip() for line in text.splitlines()]
    at = lines.index("# Point of no return: from here every continuation fails.")
    assert lines[at - 2].startswith("# 13 ") and lines[at + 1].startswith("# 14 ")
    assert made["STEPS"] == guided_steps(trace.steps)
    scenario = made["SCENARIO"]
    assert "variant" not in scenario and scenario["pool"]["blocks"] == scenario_of(trace.header).pool.blocks


def test_what_a_person_typed_cannot_break_the_file(tmp_path: Path) -> None:
    trace = check(zoo.scenario_for("none")).violations[0].trace
    odd = tmp_path / 'test_"""odd\\.py'
    written(trace, odd, 'resumark check \'a\nb""".toml\'')


def test_json_says_where_the_file_is(tmp_path: Path) -> None:
    trace, made = tmp_path / "lost.jsonl", tmp_path / "test_lost.py"
    resumark("check", "--detector", "flag", "--trace", str(trace))
    assert resumark("replay", str(trace), "--json").data["pytest_file"] is None
    assert resumark("replay", str(trace), "--pytest", str(made), "--json").data["pytest_file"] == str(made)
    assert made.exists()


def test_a_trace_that_breaks_nothing_makes_no_file(tmp_path: Path) -> None:
    run = run_once(zoo.default_scenario(), Seeded(1), record=True)
    assert run.trace is not None
    path, made = tmp_path / "well.jsonl", tmp_path / "test_well.py"
    write_trace(run.trace, path)
    done = resumark("replay", str(path), "--pytest", str(made))
    assert (done.code, made.exists()) == (2, False)
    assert done.err.startswith("error: --pytest: this trace breaks no property")


def test_a_trace_of_a_worker_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "worker.jsonl"
    write_trace(Trace(TraceHeader(1, WORKER, {}), (), TraceEnding()), path)
    done = resumark("replay", str(path), "--pytest", str(tmp_path / "test_worker.py"))
    assert done.code == 2 and "has no steps that a test could do again" in done.err


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lost.jsonl"
    write_trace(check(zoo.scenario_for("none")).violations[0].trace, path)
    done = resumark("replay", str(path), "--pytest", str(tmp_path / "nowhere" / "test_a.py"))
    assert done.code == 2 and "cannot be written: there is no directory" in done.err


# Guided runs -------------------------------------------------------------------------------------------


def test_under_its_own_version_the_run_is_that_of_the_trace() -> None:
    for variant in ("free-then-alloc", "late-status"):
        trace = check(zoo.scenario_for(variant)).violations[0].trace
        run = run_guided(
            scenario_of(trace.header), guided_steps(trace.steps), variant, broken=trace.ending.property,
            arrive_any_time=True,
        )  # fmt: skip
        assert (run.skipped, run.steps) == ((), len(trace.steps))
        assert run.violations == replay(trace).violations


def test_steps_that_cannot_be_done_are_skipped_and_told() -> None:
    run = run_guided(zoo.default_scenario(), [(("land", 7), ()), (("deliver", 0), ()), (("abort", 9), ())], "watermark")
    assert run.skipped == (1, 3)
    assert (run.broken, run.ended) == ((), True)
    assert str(run) == "no property is broken: " + ", ".join(f"room {one.room} Success" for one in run.requests)


def test_a_run_that_never_ends_breaks_l1() -> None:
    run = run_guided(zoo.scenario_for("silent-unknown-room"), [(("sender_crash", 0), ())], "silent-unknown-room")
    assert run.broken == ("L1",) and not run.ended
    assert "2000 receiver ticks after the last step requests have not ended" in str(run)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Variant(), "watermark"),
        (Variant(detector="flag"), "flag"),
        (Variant(hazards=("late-status", "no-reserve")), "late-status+no-reserve"),
        (Variant(detector="flag", hazards=("late-status",)), "flag+late-status"),
    ],
)
def test_names_of_versions(variant: Variant, name: str) -> None:
    assert version_of(variant) == name
    assert version_named(name) == zoo.rules_for(variant.detector, variant.hazards)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("flags", "there is no version 'flags'; there are watermark, "),
        ("flag+none", "'flag+none' names 2 detectors; expected one at most"),
        ("", "there is no version ''"),
    ],
)
def test_versions_that_do_not_exist(name: str, says: str) -> None:
    with pytest.raises(LocalError) as caught:
        version_named(name)
    assert str(caught.value).startswith(says)
