"""``resumark model`` and ``resumark bench check``: what they accept, what they print, how they end."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sim import bench_check, cli_model, progress
from sim.engines import spin
from sim.model.form import Action, Clause, Model, holds, successors
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.two_phase import COMMITTED, STATES, WORKING, two_phase
from sim.model.variants import variant_named
from sim.vector.search import explore
from tests.sim.cli_kit import process, refused, resumark

MODEL = "model"
ROOT = Path(__file__).resolve().parents[2]


def broken_two_phase(managers: int, *, symmetric: bool = False) -> Model:
    """Two-phase commit in which manager 0 commits on its own, without having been told."""
    model = two_phase(managers, symmetric=False)
    hasty = Action(
        "RMCommitsAlone(0)", lambda ops, view: view.rm0 == WORKING, lambda ops, view: {"rm0": COMMITTED}, fair=False
    )
    return replace(model, actions=(*model.actions, hasty))


def stuck_two_phase(managers: int, *, symmetric: bool = False) -> Model:
    """Two-phase commit without the messages that end it: once all have aborted, nothing is left to do."""
    model = two_phase(managers, symmetric=False)
    kept = tuple(action for action in model.actions if action.name.startswith(("RMChooseToAbort", "TMAbort")))
    return replace(model, actions=kept)


# --- help ------------------------------------------------------------------------------------------------


def test_help_says_what_a_model_is_and_lists_them() -> None:
    done = resumark(MODEL, "--help")
    assert done.code == 0
    for model in ("two-phase", "protocol"):
        assert re.search(rf"^│ {model} ", done.out, re.MULTILINE)
    said = " ".join(done.out.split())
    assert "A model is not a scenario." in said
    assert "judges no liveness" in said and "drive a real receiver and sender beside the model" in said
    assert re.search(r"^│ model ", resumark("--help").out, re.MULTILINE)


def options(*words: str) -> list[str]:
    """The options that the help of a command lists."""
    found = re.findall(r"^│ (--[a-z-]+)", resumark(*words, "--help").out, re.MULTILINE)
    return [option for option in found if option != "--help"]


@pytest.mark.parametrize("words", [(MODEL, "two-phase"), (MODEL, "protocol"), ("bench", "check")], ids=" ".join)
def test_every_option_is_documented(words: tuple[str, ...]) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    listed = options(*words)
    assert "--json" in listed
    assert [option for option in listed if f"`{option}" not in text] == []


# --- what holds ------------------------------------------------------------------------------------------


def test_two_phase_commit_holds_with_the_known_number_of_states() -> None:
    done = resumark(MODEL, "two-phase", "--managers", "5")
    assert (done.code, done.err) == (0, "")
    lines = [line for line in done.out.splitlines() if line]
    assert lines[:2] == ["model    two-phase", "size     managers 5"]
    assert re.search(r"^verdict +holds$", done.out, re.MULTILINE)
    assert re.search(r"^coverage +exhausted: every reachable state was visited; 8,832 states, ", done.out, re.MULTILINE)
    assert re.search(r"^speed +[\d,]+ states a second$", done.out, re.MULTILINE)
    assert re.search(r"^memory +[\d.]+ MiB at most", done.out, re.MULTILINE)
    assert lines[-1] == "reproduce  resumark model two-phase --managers 5"


def test_symmetry_is_asked_for_and_gives_fewer_states() -> None:
    plain = resumark(MODEL, "two-phase", "--json").data
    alike = resumark(MODEL, "two-phase", "--symmetry", "--json").data
    assert (plain["symmetry"], alike["symmetry"]) == (False, True)
    assert alike["states"] < plain["states"] == STATES[4]
    protocol = [resumark(MODEL, "protocol", option, "--json").data for option in ("--symmetry", "--no-symmetry")]
    assert [data["symmetry"] for data in protocol] == [True, False]
    assert protocol[0]["states"] < protocol[1]["states"]
    assert {data["verdict"] for data in protocol} == {"holds"}


SIZES: dict[str, tuple[tuple[str, ...], Bounds]] = {
    "usual": ((), Bounds(blocks=2, size=3)),
    "faults": (
        ("--tokens", "2", "--blocks", "1", "--crashes", "1", "--late", "--leases"),
        Bounds(size=2, blocks=1, crashes=1, late=True, leases=True),
    ),
    "ranks": (("--ranks", "2", "--blocks", "1", "--tokens", "2", "--no-faults"), Bounds(ranks=2, faults=False)),
    "requests": (("--requests", "2", "--blocks", "1", "--tokens", "1", "--no-faults"),
                 Bounds(rooms=2, size=1, faults=False)),
    "blocks": (
        ("--tokens", "4", "--block-tokens", "2", "--grant-blocks", "1", "--early", "3", "--no-faults"),
        Bounds(size=4, blocks=2, block_tokens=2, grant_blocks_max=1, early_tokens=3, faults=False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SIZES))
def test_each_size_option_of_the_protocol_reaches_the_model(name: str) -> None:
    arguments, bounds = SIZES[name]
    data = resumark(MODEL, "protocol", *arguments, "--json").data
    expected = explore(bounded(bounds))
    assert (data["verdict"], data["coverage"], data["exit_code"]) == ("holds", "exhausted", 0)
    assert (data["states"], data["transitions"]) == (expected.states, expected.transitions)
    assert data["sizes"]["requests"] == bounds.rooms and data["sizes"]["tokens"] == bounds.size
    again = resumark(*shlex.split(data["command"])[1:], "--json").data
    changing = {"elapsed_s": 0, "states_per_s": 0}
    assert {**again, **changing} == {**data, **changing}


# --- bounds that run out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "ran_out"),
    [
        (("--states-max", "100"), "states_max"),
        (("--time-max", "0.001"), "time"),
        (("--memory", "0.002"), "memory"),
    ],
)
def test_bounds_that_run_out_end_with_4(arguments: tuple[str, ...], ran_out: str) -> None:
    done = resumark(MODEL, "two-phase", "--managers", "9", *arguments, "--json")
    assert done.code == 4
    data = done.data
    assert (data["verdict"], data["coverage"], data["exit_code"]) == ("unknown", "bounded", 4)
    assert data["bounds"]["ran_out"] == ran_out
    assert data["states"] < STATES[9] and data["violations"] == []
    assert data["command"] == shlex.join(["resumark", MODEL, "two-phase", "--managers", "9", *arguments])


def test_bounds_are_told_to_people_too() -> None:
    done = resumark(MODEL, "two-phase", "--managers", "6", "--states-max", "100")
    assert done.code == 4
    assert re.search(r"^verdict +unknown$", done.out, re.MULTILINE)
    assert re.search(r"^coverage +bounded: the search stopped before its end; ", done.out, re.MULTILINE)
    assert re.search(r"^bounds +states_max 100, ran_out states_max$", done.out, re.MULTILINE)


def test_what_does_not_fit_into_the_memory_is_spilled_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "states"
    done = resumark(MODEL, "two-phase", "--managers", "7", "--memory", "0.006", "--spill", str(folder), "--json")
    assert (done.code, done.data["states"]) == (0, STATES[7])
    assert done.data["spilled_bytes"] > 0
    assert list(folder.iterdir()) == []
    told = resumark(MODEL, "two-phase", "--managers", "7", "--memory", "0.006", "--spill", str(folder))
    assert re.search(r" spilled [\d.]+ MiB written to ", " ".join(told.out.split()))


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("two-phase", "--managers", "0"), "--managers"),
        (("two-phase", "--managers", "16"), "--managers"),
        (("two-phase", "--states-max", "0"), "--states-max"),
        (("two-phase", "--memory", "0"), "--memory"),
        (("two-phase", "--memory", "much"), "--memory"),
        (("two-phase", "--time-max", "0"), "--time-max"),
        (("two-phase", "--spill", "/tmp"), "give --memory too"),
        (("two-phase", "--memory", "1", "--spill", "/dev/null/x"), "--spill /dev/null/x: cannot be written"),
        (("protocol", "--tokens", "0"), "--tokens"),
        (("protocol", "--early", "-1"), "--early"),
        (("protocol", "--blocks", "8"), "blocks can be dealt out in 109,600 ways"),
        (("protocol", "--requests", "8", "--ranks", "8", "--blocks", "1"), "does not fit"),
        (("protocol", "--variant", "flagg"), "there is no variant 'flagg'"),
        (("three-phase",), "three-phase"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused(arguments: tuple[str, ...], says: str) -> None:
    done = resumark(MODEL, *arguments)
    refused(done)
    assert says in done.err


def test_a_version_that_the_model_does_not_hold_is_no_verdict() -> None:
    done = resumark(MODEL, "protocol", "--variant", "stale-header")
    assert done.code == 4
    assert "'stale-header' is not held by this model: the model has no headers" in done.out
    assert resumark(MODEL, "protocol", "--variant", "stale-header", "--json").data["exit_code"] == 4


# --- what is violated ------------------------------------------------------------------------------------


def run_of(model: Model, violation: dict[str, Any]) -> dict[str, int]:
    """The last state of a trace in JSON, every step of which has to be one of the model."""
    state = dict(violation["start"])
    assert state in model.start_states()
    for step in violation["steps"]:
        after = {**state, **step["changed"]}
        assert (step["action"], after) in [(action.name, other) for action, other in successors(model, state)]
        assert step["changed"] == {name: value for name, value in after.items() if state[name] != value}
        state = after
    return state


def test_a_broken_clause_ends_with_1_and_a_shortest_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_model, "two_phase", broken_two_phase)
    done = resumark(MODEL, "two-phase", "--managers", "3", "--json")
    data = done.data
    assert (done.code, data["verdict"], data["coverage"], data["exit_code"]) == (1, "violated", "bounded", 1)
    (found,) = data["violations"]
    assert (found["clause"], found["property"], found["step"], len(found["steps"])) == ("TCConsistent", "", 2, 2)
    assert found["text"] == "no resource manager commits while another aborts"
    model = broken_two_phase(3)
    assert not holds(model, model.clauses[0], run_of(model, found))


def test_a_trace_is_a_line_a_step_and_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_model, "two_phase", broken_two_phase)
    done = resumark(MODEL, "two-phase", "--managers", "3")
    assert done.code == 1
    lines = done.out.splitlines()
    heading = next(number for number, line in enumerate(lines) if re.match(r"step +action +what changes$", line))
    steps = sorted(line.split(None, 1)[1] for line in lines[heading + 1 : heading + 3])
    assert re.fullmatch(r"RMChooseToAbort\([12]\) +rm[12] 0 -> 3", steps[0])
    assert re.fullmatch(r"RMCommitsAlone\(0\) +rm0 0 -> 2", steps[1])
    assert lines[heading + 3].startswith("rm: 0 working, 1 prepared, 2 committed, 3 aborted.")
    assert re.search(r"^verdict +violated: TCConsistent\. No resource manager commits while", done.out, re.MULTILINE)
    assert re.search(r"^ +after step 2; no shorter way", done.out, re.MULTILINE)


def test_a_clause_that_is_false_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(managers: int, *, symmetric: bool = False) -> Model:
        clause = Clause("busy", "somebody has prepared", lambda ops, view: view.rm0 == 1)
        return replace(two_phase(managers), clauses=(clause,), initial=({"rm1": 2},))

    monkeypatch.setattr(cli_model, "two_phase", wrong)
    done = resumark(MODEL, "two-phase", "--managers", "2")
    assert done.code == 1
    assert re.search(r"^ +0  start +rm1=2$", done.out, re.MULTILINE)
    assert re.search(r"^verdict +violated: busy\. Somebody has prepared$", done.out, re.MULTILINE)
    assert "before the first step" in done.out


def test_a_state_without_a_next_step_counts_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_model, "two_phase", stuck_two_phase)
    assert resumark(MODEL, "two-phase", "--managers", "2").code == 0
    done = resumark(MODEL, "two-phase", "--managers", "2", "--deadlock", "--json")
    assert (done.code, done.data["deadlock"]) == (1, True)
    assert [found["clause"] for found in done.data["violations"]] == ["deadlock"]
    assert done.data["command"].endswith(" --deadlock")


@pytest.mark.parametrize(
    ("variant", "arguments", "bounds", "property"),
    [
        ("none", (), Bounds(blocks=2, size=3), "I5"),
        ("free-without-quiescence", ("--blocks", "1", "--tokens", "2"), Bounds(), "I1"),
        ("admission-first", ("--requests", "2", "--blocks", "1", "--tokens", "2", "--no-faults"), Bounds(rooms=2,
         faults=False), "progress"),
    ],
)  # fmt: skip
def test_a_version_of_the_zoo_breaks_the_protocol(
    variant: str, arguments: tuple[str, ...], bounds: Bounds, property: str
) -> None:
    done = resumark(MODEL, "protocol", *arguments, "--variant", variant, "--json")
    (found,) = done.data["violations"]
    assert (done.code, found["property"]) == (1, property)
    model = bounded(bounds, variant_named(variant).rules())
    state = run_of(model, found)
    (clause,) = (clause for clause in model.clauses if clause.name == found["clause"])
    assert not holds(model, clause, state)
    assert done.data["sizes"]["variant"] == variant and done.data["symmetry"] is False
    told = resumark(MODEL, "protocol", *arguments, "--variant", variant)
    assert told.code == 1
    assert "0 Bootstrapping, 1 WaitingForInput" in told.out
    assert len(re.findall(r"^ +\d+  (?:r\dk?\d?: |start)", told.out, re.MULTILINE)) == found["step"] + 1


# --- --json and progress ---------------------------------------------------------------------------------


def test_every_field_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_model, "two_phase", broken_two_phase)
    data = resumark(MODEL, "two-phase", "--managers", "2", "--json").data
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    text = text[text.index("\n## `resumark model`") : text.index("\n## `resumark zoo`")]
    fields = [*data, *(f"violations[].{name}" for name in data["violations"][0])]
    assert [field for field in fields if f"`{field}`" not in text] == []
    assert data["engine"] == "model" and data["model"] == "two-phase" and data["sizes"] == {"managers": 2}
    assert sum(data["levels"]) == data["states"] and len(data["levels"]) == data["depth"] + 1


def test_the_search_tells_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar itself is tested elsewhere: it waits two seconds. Here: it is told."""
    told: list[str] = []

    class Shown(progress.Bar):
        def update(self, done: int | None = None, text: str = "", total: int | None = None) -> None:
            told.append(text)

    from contextlib import contextmanager

    @contextmanager
    def bar(label: str, total: int | None = None, *, quiet: bool = False) -> Iterator[progress.Bar]:
        yield Shown(label, total, None)  # type: ignore[arg-type]

    monkeypatch.setattr(cli_model, "bar", bar)
    resumark(MODEL, "two-phase", "--managers", "3")
    assert told[0] == "1 states, depth 0, 1 to go at this depth"
    assert len(told) > 10


def test_a_process_of_its_own() -> None:
    done = process(MODEL, "two-phase", "--managers", "3", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["states"] == STATES[3]
    again = process(MODEL, "protocol", "--variant", "no-grant-seq", PYTHONHASHSEED="7", PYTHONIOENCODING="ascii")
    assert again.returncode == 1 and again.stdout.isascii()


# --- resumark bench check --------------------------------------------------------------------------------


@pytest.fixture
def small_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_check, "QUICK", 4)
    monkeypatch.setattr(bench_check, "QUICK_ROUNDS", 1)
    monkeypatch.setattr(bench_check, "PROTOCOL_QUICK", Bounds())
    large = bench_check.large_figures
    monkeypatch.setattr(bench_check, "large_figures", lambda say: large(say, managers=4))


def test_bench_check(small_bench: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin, "missing", lambda: "spin not installed")
    done = resumark("bench", "check", "--quick", "--large", "--json")
    assert done.code == 0
    figures = {figure["name"]: figure for figure in done.data}
    states = figures["two-phase commit, distinct states"]
    assert states["value"] > 0 and (states["unit"], states["target"], states["met"]) == ("/s", None, None)
    assert states["note"].startswith("1,568 states, ")
    assert figures["two-phase commit with 4 managers"]["target"] == 60
    assert "vector engine over Spin" not in figures
    told = resumark("bench", "check", "--quick")
    assert "two-phase commit, distinct states" in told.out
    assert "Not compared with Spin: spin not installed." in told.out
    assert "a large model" not in told.out


@pytest.mark.skipif(spin.missing() != "", reason=f"Spin: {spin.missing()}")
def test_bench_check_beside_spin(small_bench: None) -> None:
    figures = {figure["name"]: figure for figure in resumark("bench", "check", "--quick", "--json").data}
    assert figures["the same, Spin"]["value"] > 0
    assert figures["vector engine over Spin"]["unit"] == "x"
    assert figures["protocol model, Spin"]["value"] > 0
    assert figures["protocol model, vector engine over Spin"]["target"] is None


def test_the_full_measurement_has_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size, but for the size: the targets stand, and the large model is left out unless it is asked for."""
    monkeypatch.setattr(bench_check, "ROUNDS", 1)
    small = bench_check.two_phase_figures
    monkeypatch.setattr(bench_check, "two_phase_figures", lambda folder, say: small(None, say, managers=3))
    monkeypatch.setattr(bench_check, "PROTOCOL", Bounds())
    monkeypatch.setattr(bench_check, "PROTOCOL_ROUNDS", 1)
    data = resumark("bench", "check", "--json").data
    assert data[0]["target"] == 2e6 and data[0]["met"] in (True, False)
    targets = {figure["name"]: figure["target"] for figure in data}
    assert spin.missing() or targets["protocol model, vector engine over Spin"] == 2
    assert {figure["group"] for figure in data} == {"exhaustive search of a model, on one core"}
