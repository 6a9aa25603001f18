"""The command line: what it accepts, what it prints, and with which exit code it ends."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from fsm.lifecycle import RECEIVER_TABLE, SENDER_TABLE
from sim import cli, cli_common, cli_run, cli_tools, cli_zoo, progress, zoo
from sim.engines.result import Result
from sim.trace_file import read_trace
from sim.zoo_table import FAMILIES, Row, zoo_jobs
from tests.sim.cli_kit import ROOT, lost_trace, process, raising, resumark, small_scenario


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_scenario(tmp_path_factory.mktemp("scenarios"))


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lost_trace(tmp_path_factory.mktemp("traces"))


# --- exit codes and what comes in which order -----------------------------------------------------------


def test_what_holds_ends_with_0(small: str) -> None:
    done = resumark("check", small)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^verdict +holds$", done.out, re.MULTILINE)
    assert re.search(r"^coverage +exhausted: every reachable state was visited", done.out, re.MULTILINE)


@pytest.mark.parametrize(("detector", "code", "property"), [("generation", 1, "I6"), ("flag", 3, "L1")])
def test_the_exit_code_names_the_class_of_what_is_broken(detector: str, code: int, property: str) -> None:
    done = resumark("check", "--detector", detector)
    assert done.code == code
    assert re.search(rf"^verdict +violated: {property}, ", done.out, re.MULTILINE)


def test_bounds_that_run_out_end_with_4(small: str) -> None:
    done = resumark("check", small, "--states-max", "3")
    assert done.code == 4
    assert re.search(r"^verdict +unknown$", done.out, re.MULTILINE)
    assert re.search(r"^coverage +bounded: ", done.out, re.MULTILINE)
    assert re.search(r"^bounds +states_max 3, ran_out ", done.out, re.MULTILINE)
    done = resumark("check", "exhaust-two-ranks", "--time-max", "0.001")
    assert done.code == 4
    assert "ran_out time" in done.out


def test_what_never_occurred_is_no_pass(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Result("unknown", "sampled", runs=5, seed=1, sometimes={"resume": 0}, missed=("resume",))
    monkeypatch.setattr(cli_run, "simulate", lambda scenario, **options: answer)
    done = resumark("simulate", small)
    assert done.code == 4
    assert "missed    resume (did not occur, so this is no pass)" in done.out


def test_options_first_verdict_then_and_the_command_last(small: str) -> None:
    done = resumark("simulate", small, "--seed", "5", "--runs", "3", "--jobs", "1")
    lines = [line for line in done.out.splitlines() if line]
    assert lines[0] == f"simulate  scenario {small}"
    assert lines[1] == "seed      5"
    assert lines[2] == "runs      3 on machine transitions"
    assert lines[-1] == f"reproduce  resumark simulate {shlex.quote(small)} --seed 5 --runs 3"
    words = [line.split()[0] for line in lines]
    assert words.index("seed") < words.index("verdict") < words.index("coverage") < words.index("reproduce")


def test_a_violation_is_shown_step_by_step() -> None:
    done = resumark("check", "--detector", "generation")
    assert re.search(r"^step +what happens +sender +receiver$", done.out, re.MULTILINE)
    assert "grant 2 [8,16)" in done.out
    assert done.out.splitlines()[-1] == "reproduce  resumark check --detector generation"


def test_the_command_that_is_printed_gives_the_same(small: str) -> None:
    first = resumark("check", small, "--detector", "none", "--allocator", "lifo", "--only", "I6", "--json")
    again = resumark(*shlex.split(first.data["command"])[1:], "--json")
    assert first.code == again.code == 1
    assert {**first.data, "elapsed_s": 0} == {**again.data, "elapsed_s": 0}


def test_a_drawn_seed_is_printed_and_reproduces(small: str) -> None:
    first = resumark("simulate", small, "--runs", "2", "--jobs", "1", "--json").data
    command = shlex.split(first["command"])[1:]
    again = resumark(*command, "--jobs", "1", "--json").data
    assert first["seed"] == again["seed"] == int(command[command.index("--seed") + 1])
    assert first["digest"] == again["digest"]
    other = resumark("simulate", small, "--runs", "2", "--jobs", "1", "--json").data
    assert other["seed"] != first["seed"]


def test_both_machines_give_one_digest(small: str) -> None:
    digests = [
        resumark("simulate", small, "--seed", "7", "--runs", "4", "--jobs", "1", "--machine", machine, "--json").data[
            "digest"
        ]
        for machine in ("transitions", "flat")
    ]
    assert digests[0] == digests[1]


# --- choosing what is run -------------------------------------------------------------------------------


def test_a_built_in_scenario_goes_by_its_bare_name() -> None:
    assert resumark("check", "watermark", "--json").data["scenario"] == "watermark"


def test_options_replace_what_the_scenario_says(small: str) -> None:
    data = resumark(
        "check", small, "--hazard", "floor-start", "--hazard", "stale-header", "--allocator", "stingy", "--json"
    ).data
    assert data["detector"] == "watermark"
    assert data["hazards"] == ["floor-start", "stale-header"]
    assert data["allocator"] == "stingy"


def test_only_chooses_the_scenario_that_shows_it() -> None:
    for scenario, property in zoo.DETECTORS["indices-before"].shows():
        chosen = cli_common.choose_scenario(None, "indices-before", None, None, property=property)
        shown = zoo.scenario_named(scenario)
        assert chosen.scenario.pool == shown.pool and chosen.scenario.requests == shown.requests
        assert (
            resumark("check", "--detector", "indices-before", "--only", property, "--json").data["violations"][0][
                "property"
            ]
            == property
        )


def test_detector_and_hazard_combine() -> None:
    done = resumark(
        "check",
        "sent-accumulate-stale",
        "--detector",
        "sent-accumulate",
        "--hazard",
        "stale-header",
        "--only",
        "I2",
        "--json",
    )
    assert done.code == 1
    assert done.data["violations"][0]["property"] == "I2"


def test_simulate_has_a_default_of_its_own() -> None:
    chosen = cli_common.choose_scenario(None, None, None, None, default="exhaust-two-ranks")
    assert chosen.scenario == zoo.scenario_named("exhaust-two-ranks")
    assert chosen.title == "built in, 'exhaust-two-ranks'"
    assert cli_common.choose_scenario(None, None, None, None, default="no such").scenario == zoo.default_scenario()


# --- json -----------------------------------------------------------------------------------------------

RESULT_FIELDS = {
    "engine", "scenario", "detector", "hazards", "allocator", "machine", "verdict", "coverage", "bounds", "states",
    "transitions", "depth", "runs", "seed", "digest", "violations", "trace_file", "requests", "sometimes", "missed",
    "elapsed_s", "exit_code", "command", "point_of_no_return", "no_return",
}  # fmt: skip
REQUEST_FIELDS = {"room", "state", "tokens", "tokens_delivered", "content_ok", "resumed_at", "grants_executed"}


def test_json_of_check(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    done = resumark("check", "--detector", "generation", "--trace", str(path), "--json")
    data = done.data
    assert (done.code, data["exit_code"], done.err) == (1, 1, "")
    assert set(data) == {*RESULT_FIELDS, "only"}
    assert (data["engine"], data["verdict"], data["coverage"]) == ("check", "violated", "bounded")
    (violation,) = data["violations"]
    assert set(violation) == {"property", "step", "text", "trace"}
    assert violation["step"] == len(violation["trace"]["steps"])
    assert violation["trace"]["ending"]["property"] == violation["property"] == "I6"
    assert violation["trace"]["header"]["command"] == data["command"] == "resumark check --detector generation"
    assert data["trace_file"] == str(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [violation["trace"]["header"], *violation["trace"]["steps"], violation["trace"]["ending"]]
    (request,) = data["requests"]
    assert set(request) == REQUEST_FIELDS
    assert request["resumed_at"] == [8, 8]


def test_json_of_simulate(small: str) -> None:
    done = resumark("simulate", small, "--seed", "5", "--runs", "3", "--jobs", "1", "--json")
    assert done.code == 0
    assert set(done.data) == RESULT_FIELDS
    assert (done.data["verdict"], done.data["coverage"], done.data["seed"], done.data["runs"]) == (
        "holds",
        "sampled",
        5,
        3,
    )
    assert done.data["violations"] == [] and done.data["trace_file"] is None
    (request,) = done.data["requests"]
    assert request == {
        "room": 1, "state": "Success", "tokens": 24, "tokens_delivered": 24, "content_ok": True,
        "resumed_at": [8, 16], "grants_executed": 3,
    }  # fmt: skip


def fields_in_docs(heading: str) -> set[str]:
    """The names in the first column of the tables of one section."""
    page = (ROOT / "docs" / "cli.md").read_text().split(f"{heading}\n", 1)[1]
    section = re.split(r"^##", page, maxsplit=1, flags=re.MULTILINE)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_field_is_documented(lost: Path) -> None:
    told = fields_in_docs("### `--json` of `check` and `simulate`")
    assert {name for name in told if "." not in name} == {*RESULT_FIELDS, "only"}
    assert {name.removeprefix("requests[].") for name in told if name.startswith("requests[]")} == REQUEST_FIELDS
    assert {name for name in told if name.startswith("violations[]")} == {
        f"violations[].{name}" for name in ("property", "step", "text", "trace")
    }
    assert fields_in_docs("## `resumark zoo`") == set(Row._fields)
    assert set(resumark("replay", str(lost), "--json").data) <= fields_in_docs("## `resumark replay`")


def test_every_option_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for command in ("check", "simulate", "zoo", "replay", "shrink", "diagram"):
        for option in re.findall(r"(--[a-z-]+)", resumark(command, "--help").out):
            assert option == "--help" or f"`{option}" in page, f"{command} {option}"


# --- replay and shrink ----------------------------------------------------------------------------------


def test_replay_shows_a_line_a_step(lost: Path) -> None:
    done = resumark("replay", str(lost))
    trace = read_trace(lost)
    assert done.code == 3
    lines = [line for line in done.out.splitlines() if "point of no return" not in line]
    start = next(index for index, line in enumerate(lines) if line.startswith("step"))
    assert [int(line.split()[0]) for line in lines[start + 1 : start + 1 + len(trace.steps)]] == list(
        range(1, len(trace.steps) + 1)
    )
    rest = "\n".join(lines[start + 1 + len(trace.steps) :])
    assert "\nL1  every request ends; undisturbed, it ends in Success\n" in rest
    assert f"broken at step {len(trace.steps)}: " in rest
    assert lines[-1] == "reproduce  resumark check --detector flag"


def test_replay_json(lost: Path) -> None:
    done = resumark("replay", str(lost), "--json")
    assert (done.code, done.data["exit_code"], done.data["verdict"]) == (3, 3, "violated")
    trace = read_trace(lost)
    assert [step["step"] for step in done.data["steps"]] == list(range(1, len(trace.steps) + 1))
    assert done.data["violations"] == [{"property": "L1", "step": len(trace.steps), "text": trace.ending.text}]
    assert done.data["steps"][2]["receivers"] == ["grant 0 [0,8) in b0 b1"]


def test_a_trace_of_simulate_replays_to_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    done = resumark(
        "simulate", "--detector", "generation", "--seed", "3", "--runs", "50", "--jobs", "1", "--trace", str(path)
    )
    assert done.code == 1
    assert f"trace      resumark replay {path}" in done.out
    again = resumark("replay", str(path), "--json")
    assert again.code == 1
    assert again.data["seed"] is not None and again.data["machine"] == "transitions"
    assert again.data["digest"] == read_trace(path).ending.digest
    assert again.data["command"] == "resumark simulate --detector generation --seed 3 --runs 50"


def test_replay_of_a_run_that_breaks_nothing(small: str, tmp_path: Path) -> None:
    from sim.choices import Seeded
    from sim.engines.simulate import run_once
    from sim.scenario import load_scenario

    trace = run_once(load_scenario(small), Seeded(1), record=True, seed=1).trace
    assert trace is not None
    path = tmp_path / "good.jsonl"
    cli_common.save_trace(trace, path)
    done = resumark("replay", str(path))
    assert done.code == 0
    assert "No property is broken in this run." in done.out
    assert done.out.splitlines()[-1] == f"reproduce  resumark replay {path}"
    refused = resumark("shrink", str(path))
    assert refused.code == 2 and "breaks no property" in refused.err


def test_shrink_writes_beside_the_trace_or_where_it_is_told(lost: Path, tmp_path: Path) -> None:
    before = len(read_trace(lost).steps)
    done = resumark("shrink", str(lost))
    beside = lost.with_name("lost.short.jsonl")
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"replay  resumark replay {beside}"
    assert len(read_trace(beside).steps) <= before
    target = tmp_path / "to.jsonl"
    data = resumark("shrink", str(lost), "--trace", str(target), "--json").data
    assert (data["written"], data["steps_before"], data["property"]) == (str(target), before, "L1")
    assert data["steps_after"] == len(read_trace(target).steps)
    assert resumark("replay", str(target)).code == 3


def test_a_long_random_run_is_shortened_before_it_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli_run, "SHOWN_STEPS_MAX", 5)
    path = tmp_path / "long.jsonl"
    done = resumark("simulate", "--detector", "flag", "--seed", "1", "--runs", "5", "--jobs", "1", "--trace", str(path))
    assert done.code == 3
    steps = len(read_trace(path).steps)
    assert f"The run has {steps} steps; this one, shortened from it, breaks the same property:" in done.out


# --- zoo ------------------------------------------------------------------------------------------------


@pytest.fixture
def little_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the zoo, in this process."""
    some = [
        job for job in zoo_jobs() if job.variant in ("flag", "generation", "stale-header") and job.allocator != "lifo"
    ]
    monkeypatch.setattr(cli_zoo, "zoo_jobs", lambda: some)


@pytest.mark.usefixtures("little_zoo")
def test_zoo() -> None:
    done = resumark("zoo", "--jobs", "1")
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 100
    assert re.search(r"^ flag +all 5 +violated +L1 +L1 +11-12 ", done.out, re.MULTILINE)
    assert re.search(r"^ stale-header +all 5 +holds +- +holds +- .* exhausted$", done.out, re.MULTILINE)
    assert "3 variants, 15 rows" in done.out and "all as expected" in done.out
    assert done.out.splitlines()[-1] == "  for instance:   resumark check --detector flag --only L1"


@pytest.mark.usefixtures("little_zoo")
def test_zoo_json_and_picture(tmp_path: Path) -> None:
    picture = tmp_path / "zoo.svg"
    done = resumark("zoo", "--jobs", "1", "--json", "--svg", str(picture))
    assert (done.code, done.err) == (0, "")
    assert len(done.data) == 15
    assert all(set(row) == set(Row._fields) for row in done.data)
    flag = next(row for row in done.data if row["variant"] == "flag" and row["allocator"] == "fifo")
    assert (flag["kind"], flag["verdict"], flag["expected"], flag["property"]) == ("detector", "violated", "L1", "L1")
    shown = resumark(*shlex.split(flag["command"])[1:], "--json").data
    assert len(shown["violations"][0]["trace"]["steps"]) == flag["steps"]
    assert "<svg" in picture.read_text() and "flag" in picture.read_text()


@pytest.mark.usefixtures("little_zoo")
def test_a_zoo_that_is_not_as_expected_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    find_out = cli_zoo.find_out
    monkeypatch.setattr(cli_zoo, "find_out", lambda job: find_out(job)._replace(as_expected=job.allocator != "fifo"))
    done = resumark("zoo", "--jobs", "1")
    assert done.code == 1
    assert "3 not as expected, marked '!'" in done.out


def test_every_row_has_a_job() -> None:
    jobs = zoo_jobs()
    assert {job.variant for job in jobs} == {*zoo.DETECTORS, *zoo.HAZARDS}
    assert {job.allocator for job in jobs} == set(FAMILIES)


# --- diagrams, figures ----------------------------------------------------------------------------------


def test_diagram() -> None:
    assert resumark("diagram").out == RECEIVER_TABLE.mermaid()
    assert resumark("diagram", "sender", "--format", "text").out == SENDER_TABLE.text()
    assert resumark("diagram", "block").out.startswith("stateDiagram-v2\n    [*] --> Free\n")


def test_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim import bench

    for name, small in {
        "ROUNDS": 1, "TRANSITIONS": 200, "IN_FLIGHT": 200, "POLLED": 100, "SIMULATED_RUNS": 2, "SIMULATED_ROUNDS": 1,
        "CHECKED_STATES": 300, "CHECKED_ROUNDS": 1,
    }.items():  # fmt: skip
        monkeypatch.setattr(bench, name, small)
    rows = [cli_zoo.find_out(job) for job in zoo_jobs() if job.variant == "flag"][:1]
    monkeypatch.setattr(cli_zoo, "run_zoo", lambda cores, quiet: rows)
    monkeypatch.setattr("sim.zoo_table.zoo_jobs", lambda: [job for job in zoo_jobs() if job.variant == "flag"][:1])
    done = resumark("bench", "core", "--json")
    assert done.code == 0
    names = [figure["name"] for figure in done.data]
    assert "transition with history, flat lookup" in names
    assert "shortest trace of flag" in names and "the whole zoo" in names
    assert all(figure["value"] > 0 for figure in done.data)
    assert {figure["met"] for figure in done.data} <= {True, False, None}
    assert re.search(r"façade over bare transitions", resumark("bench", "core").out)


# --- as a shell runs it ---------------------------------------------------------------------------------


def test_a_process_of_its_own() -> None:
    done = process("check", "--detector", "generation")
    assert (done.returncode, done.stderr) == (1, "")
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
    assert process("check", "no-such.toml").returncode == 2
    again = process("check", "--detector", "generation", PYTHONHASHSEED="7")
    times = re.compile(r"[\d.]+ s$", re.MULTILINE)
    assert times.sub("", again.stdout) == times.sub("", done.stdout)


def test_a_plain_encoding_does_not_stop_it() -> None:
    done = process("check", "--detector", "generation", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 1
    assert done.stdout.isascii()


def test_the_width_follows_the_terminal_or_is_100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert cli_common.output().width == 100
    monkeypatch.setenv("COLUMNS", "72")
    assert cli_common.output().width == 72


# --- commands of other packages -------------------------------------------------------------------------


class FakeEntry:
    """An entry point of another package."""

    def __init__(self, name: str, value: str, register: Callable[[typer.Typer], None]) -> None:
        self.name, self.value, self.register = name, value, register

    def load(self) -> Callable[[typer.Typer], None]:
        return self.register


def test_other_packages_add_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(app: typer.Typer) -> None:
        @app.command("mine")
        def mine() -> None:
            """Mine."""
            print("hello from mine")

        @cli_tools.group(app, "bench", "not used").command("wires")
        def wires() -> None:
            """Wires."""
            print("hello from wires")

    def broken(app: typer.Typer) -> None:
        raise ImportError("no such library")

    entries = [
        FakeEntry("zz", "zz:register", add),
        FakeEntry("bad", "bad:register", broken),
        FakeEntry("core", cli.CORE, cli.register),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries if group == "resumark.commands" else [])
    done = resumark("mine")
    assert done.out == "hello from mine\n"
    assert resumark("bench", "wires").out == "hello from wires\n"
    assert "core" in resumark("bench", "--help").out
    assert resumark("diagram").code == 0


def test_a_broken_package_costs_a_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        cli, "entry_points", lambda group: [FakeEntry("bad", "bad:register", raising(ImportError("torch")))]
    )
    cli.build_app()
    assert capsys.readouterr().err == "warning: the commands of 'bad' cannot be loaded: torch\n"


def test_without_metadata_the_core_commands_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    (entry,) = cli.command_entries()
    assert entry.load() is cli.register
    assert resumark("diagram").code == 0


def test_what_is_installed_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [FakeEntry("core", cli.CORE, cli.register), FakeEntry("core2", cli.CORE, cli.register)]
    monkeypatch.setattr(cli, "entry_points", lambda group: twice)
    assert len(cli.command_entries()) == 1


def test_help_lists_the_commands() -> None:
    done = resumark("--help")
    assert done.code == 0
    for command in ("check", "simulate", "zoo", "replay", "shrink", "diagram", "bench"):
        assert re.search(rf"^│ {command} ", done.out, re.MULTILINE)


# --- progress -------------------------------------------------------------------------------------------


def test_no_bar_without_a_terminal_or_with_json() -> None:
    with progress.bar("waiting") as shown:
        assert shown is None
    with progress.bar("waiting", quiet=True) as shown:
        assert shown is None


def test_a_bar_comes_after_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    shown = progress.Bar("running", 10, console)
    shown.update(3, "3 runs")
    assert not shown.shown and stream.getvalue() == ""
    now[0] += progress.PATIENCE_S
    shown.update(5, "5 runs")
    assert shown.shown
    shown.close()
    shown.close()
    assert "running" in stream.getvalue() and "5 runs" in stream.getvalue()
