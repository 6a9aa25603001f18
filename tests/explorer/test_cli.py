"""``resumark explore``: what is written, the exit code of the verdict, and mistakes of use as one message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sim.choices import Seeded
from sim.engines.simulate import run_once
from sim.explorer import html
from sim.explorer.html import Parts
from sim.explorer.page import Page
from sim.trace_file import write_trace
from sim.zoo import default_scenario, scenario_for
from tests.sim.cli_kit import ROOT, resumark

FLAG = ("--detector", "flag")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a directory of its own, and without the real script, which is large."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sim.cli_explore.parts", lambda: Parts("draw();", "body{}", "licences"))
    return tmp_path


def page_in(path: Path) -> Page:
    """The records in a file."""
    found = re.search(r'<script type="application/json" id="page">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    return msgspec.json.decode(found[1], type=Page)


def test_without_anything_it_shows_the_blocks_that_are_read_before_they_are_written(here: Path) -> None:
    done = resumark("explore")
    assert (done.code, done.err) == (1, "")
    page = page_in(here / "explore.html")
    assert page.title == "sent-accumulate: I2 broken"
    assert [(run.name, run.verdict) for run in page.runs] == [("sent-accumulate", "violated"), ("watermark", "holds")]
    assert {touch.block for step in page.runs[0].steps for touch in step.touches if touch.early} == {2, 3, 4, 5}
    assert page.runs[0].command == "resumark check --detector sent-accumulate"
    assert page.graph is not None and page.graph.complete
    lines = done.out.splitlines()
    assert lines[-2:] == [
        "open       explore.html in a browser; it needs no network",
        "reproduce  resumark explore --detector sent-accumulate",
    ]
    assert "beside it  watermark on the same choices, which breaks no property in this run" in lines


@pytest.mark.parametrize(
    ("arguments", "code", "verdict"),
    [
        (("watermark",), 0, "holds"),
        (FLAG, 3, "violated"),
        (("--hazard", "no-grant-seq", "--only", "I6", "--alone"), 1, "violated"),
        (("every-fault", "--states-max", "50", "--graph-states", "0"), 4, "unknown"),
    ],
)
def test_the_exit_code_is_the_verdict(arguments: tuple[str, ...], code: int, verdict: str, here: Path) -> None:
    done = resumark("explore", *arguments, "--json", "-o", "page.html")
    assert (done.code, done.data["exit_code"], done.data["verdict"]) == (code, code, verdict)
    page = page_in(here / "page.html")
    assert done.data["bytes"] == (here / "page.html").stat().st_size
    assert [run["steps"] for run in done.data["runs"]] == [len(run.steps) - 1 for run in page.runs]
    assert len(page.runs) == 1 + (arguments == FLAG)
    assert (page.graph is None) == ("--graph-states" in arguments)


def test_a_run_that_ends_well_has_a_resume_and_says_that_it_is_one_of_many(here: Path) -> None:
    done = resumark("explore", "watermark", "--json")
    (run,) = done.data["runs"]
    assert "resume" in [mark["kind"] for mark in run["marks"]]
    assert "proves nothing" in run["facts"]["this run"] and "exhausted" in run["facts"]["check"]


def trace_in(path: Path, name: str = "lost.jsonl", variant: str = "flag") -> Path:
    outcome = run_once(scenario_for(variant), Seeded(1), record=True, seed=1)
    assert outcome.trace is not None
    write_trace(outcome.trace, path / name)
    return path / name


def test_a_trace_is_shown_as_it_is(here: Path) -> None:
    trace = trace_in(here)
    done = resumark("explore", trace.name, "--versus", "none", "--title", "lost <again>", "--json")
    replayed = resumark("replay", trace.name, "--json")
    assert done.code == replayed.code == 3
    page = page_in(here / "explore.html")
    assert page.title == "lost <again>" and [run.name for run in page.runs] == ["flag", "none"]
    assert len(page.runs[0].steps) - 1 == len(replayed.data["steps"])
    marks = {mark.kind: mark for mark in page.runs[0].marks}
    assert marks["no-return"].step == replayed.data["point_of_no_return"]
    assert marks["violation"].text == replayed.data["violations"][0]["text"]
    assert done.data["command"] == "resumark explore lost.jsonl --versus none --title 'lost <again>'"


def test_of_a_directory_its_traces_are_shown(here: Path) -> None:
    """As ``conform`` takes one: of real workers there is a file for each process."""
    (here / "traces").mkdir()
    trace_in(here / "traces")
    assert resumark("explore", "traces").code == resumark("explore", "traces/lost.jsonl").code == 3


def test_a_point_of_no_return_before_the_first_step_is_not_called_step_0(here: Path) -> None:
    assert "point of no return at the start" in resumark("explore").out


def test_a_file_for_the_viewer(here: Path) -> None:
    """The same run, and no graph: nobody could take a choice there."""
    done = resumark("explore", *FLAG, "--format", "perfetto", "--json")
    assert (done.code, done.data["page"], done.data["graph"]) == (3, "explore.perfetto.json", None)
    assert done.data["command"] == "resumark explore --detector flag --format perfetto"
    assert msgspec.json.decode((here / "explore.perfetto.json").read_bytes())["traceEvents"]
    shown = resumark("explore", *FLAG, "--format", "perfetto")
    assert "open       explore.perfetto.json in https://ui.perfetto.dev" in shown.out.splitlines()


def test_the_same_page_twice_byte_for_byte(here: Path) -> None:
    for name in ("a.html", "b.html"):
        resumark("explore", *FLAG, "-o", name)
    assert (here / "a.html").read_bytes() == (here / "b.html").read_bytes()


def test_a_large_world_has_no_graph_unless_it_is_asked_for(here: Path) -> None:
    scenario = default_scenario()
    large = msgspec.structs.replace(scenario, pool=msgspec.structs.replace(scenario.pool, blocks=65, allocator="fifo"))
    trace = run_once(large, Seeded(1), record=True, seed=1).trace
    assert trace is not None
    write_trace(trace, here / "large.jsonl")
    assert resumark("explore", "large.jsonl", "--json").data["graph"] is None
    asked = resumark("explore", "large.jsonl", "--graph-states", "40", "--json").data["graph"]
    assert asked["states"] >= 40 and not asked["complete"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "nothing: no such file, and no built-in scenario"),
        (("watermark", "flag"), "2 scenarios; expected one, or one or several traces"),
        (("lost.jsonl", "watermark"), "watermark: no trace file, and lost.jsonl is one"),
        (("lost.jsonl", "--detector", "none"), "--detector: a trace is of the version that made it"),
        (("lost.jsonl", "more.jsonl"), "2 traces of the simulator; expected one"),
        (("empty",), "empty: there is no trace in this directory; expected files whose names end in .jsonl"),
        (("torn.jsonl",), "torn.jsonl, line 1: not a line of a trace"),
        (("--versus", "flags"), "there is no version 'flags'"),
        (("--versus", "none", "--alone"), "--versus and --alone contradict each other"),
        (("--format", "perfetto", "--graph-states", "5"), "--graph-states: only a page lets other choices be taken"),
        (("--only", "I12"), "--only: there is no property 'I12'"),
        (("-o", "no/such/place.html"), "no/such/place.html: cannot be written: there is no directory no/such"),
    ],
)  # fmt: skip
def test_a_mistake_of_use_is_one_message(arguments: tuple[str, ...], message: str, here: Path) -> None:
    trace_in(here)
    trace_in(here, "more.jsonl", "none")
    (here / "torn.jsonl").write_text("{")
    (here / "empty").mkdir()
    done = resumark("explore", *arguments)
    assert (done.code, done.out) == (2, "") and done.err.startswith(f"error: {message}")
    assert not (here / "explore.html").exists()


def test_a_tree_without_the_script_says_how_it_is_built(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.cli_explore.parts", html.parts)
    monkeypatch.setattr(html, "files", lambda package: here)
    done = resumark("explore")
    assert done.code == 2 and "npm ci && npm run build" in done.err


def test_a_name_from_the_command_line_does_no_harm(here: Path) -> None:
    """It stands in the page, as text."""
    name = "<script>alert(1)<.toml"
    (here / name).write_text((ROOT / "sim" / "scenarios" / "flag.toml").read_text())
    assert resumark("explore", name, *FLAG).code == 3
    page = page_in(here / "explore.html")
    assert dict(page.runs[0].facts)["scenario"] == name and name in page.runs[0].command
    assert "<script>alert" not in (here / "explore.html").read_text()


def test_every_option_and_field_is_documented(here: Path) -> None:
    section = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").split("## `resumark explore`\n", 1)[1]
    section = re.split(r"^## ", section, maxsplit=1, flags=re.MULTILINE)[0]
    for option in re.findall(r"(--[a-z-]+)", resumark("explore", "--help").out):
        assert option == "--help" or f"`{option}" in section, option
    data: dict[str, Any] = resumark("explore", *FLAG, "--json").data
    fields = {*data, *(f"runs[].{name}" for name in data["runs"][0]), *(f"graph.{name}" for name in data["graph"])}
    first = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    assert fields <= {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}
