"""``resumark conform`` says what it read, what it refused and why, and writes the shortest run that breaks the same."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import msgspec
import pytest

from fsm.events import Executed, Granted, Overtaken, Wrote
from fsm.trace import TraceEnding
from sim.engines.conform import conform
from sim.engines.minimise import Candidate, Features, Minimised, features_of, minimise
from tests.sim.cli_kit import ROOT, refused, resumark
from tests.sim.kit_conform import Traces, insert, late, ours, place, traces_of, written

RUN = traces_of(ours("example"), 1)
RECEIVER, SENDER = ("receiver", 0), ("sender", 0)


def resumed_twice() -> Traces:
    """The run with one resume more."""
    at = place(RUN[RECEIVER], Granted, lambda event: event.seq == 1)
    more = msgspec.structs.replace(RUN[RECEIVER].seen[at].event, seq=2)
    return {**RUN, RECEIVER: insert(RUN[RECEIVER], at + 1, more)}


def test_what_conforms_is_said_with_what_it_rests_on(tmp_path: Path) -> None:
    written(RUN, tmp_path)
    ran = resumark("conform", str(tmp_path))
    assert ran.code == 0
    assert "conforms" in ran.out and "sampled: one run" in ran.out and "none inferred" in ran.out
    assert "receiver 0" in ran.out and "sender-0.jsonl" in ran.out
    answer = resumark("conform", str(tmp_path), "--json").data
    assert (answer["verdict"], answer["coverage"], answer["exit_code"], answer["refused"]) == (
        "conforms",
        "sampled",
        0,
        None,
    )
    assert answer["ended"] == {"Success": 1} and answer["inferred"] == []


def test_what_is_inferred_is_listed_with_its_reason(tmp_path: Path) -> None:
    paths = written({RECEIVER: late(RUN[RECEIVER], 9)}, tmp_path)
    ran = resumark("conform", *paths)
    text = " ".join(ran.out.split())
    assert ran.code == 0 and "9 events before its first" in text and "there is no trace of the sender" in text
    answer = resumark("conform", *paths, "--json").data
    said = [(found["what"], found["times"]) for found in answer["inferred"]]
    assert ("Sent STATUS", 2) in said and all(found["because"] for found in answer["inferred"]), said


def test_a_refusal_names_the_event_the_rule_the_state_and_what_could_have_been(tmp_path: Path) -> None:
    paths = written(resumed_twice(), tmp_path)
    ran = resumark("conform", *paths)
    text = " ".join(ran.out.split())
    assert ran.code == 1
    for said in (
        "Granted receiver_rank=0 room=1",
        "line ",
        "R2: a resume is decided once",
        "ResumeRequested",
        "take in its STATUS",
        "guards",
    ):
        assert said in text, said
    answer = resumark("conform", *paths, "--json").data
    assert answer["refused"]["rule"] == "R2" and answer["refused"]["property"] == "I6"


def test_a_broken_liveness_property_is_told_beside(tmp_path: Path) -> None:
    traces = {**RUN, RECEIVER: insert(RUN[RECEIVER], 5, Overtaken(0, 1, (2,)))}
    ran = resumark("conform", *written(traces, tmp_path))
    assert ran.code == 3 and "violated" in ran.out and "L3" in ran.out


def test_a_trace_of_the_simulator_is_read_as_a_whole_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would wrap the line that is looked for
    path = Path("run.jsonl")
    assert resumark("check", "--detector", "none", "--trace", str(path)).code == 1
    ran = resumark("conform", str(path))
    assert ran.code == 1 and "the world" in ran.out and "step 6" in ran.out
    refused(resumark("conform", str(path), "--minimise", str(tmp_path / "test_it.py")))
    assert resumark("check", "--hazard", "all-or-nothing", "--trace", str(path)).code == 3
    assert resumark("conform", str(path)).code == 3


def test_what_has_not_ended_is_shown_with_what_it_waits_for(tmp_path: Path) -> None:
    ends = {RECEIVER: Wrote, SENDER: Executed}
    hung = {
        name: trace._replace(seen=trace.seen[: place(trace, ends[name], lambda event: event.seq == 1) + 1])
        for name, trace in RUN.items()
    }
    paths = written(hung, tmp_path)
    text = " ".join(resumark("conform", *paths).out.split())
    assert "not ended" in text and "room 1 rank 0" in text and "send the STATUS of seq 1" in text
    found = resumark("conform", *paths, "--json").data["unended"]
    assert [(one["side"], one["room"], one["epoch"]) for one in found] == [
        ("receiver", 1, [1, 1]),
        ("sender", 1, [1, 1]),
    ]
    assert "grant seq 1 [8, 16) out" in found[0]["state"] and found[0]["could"]


def test_of_many_that_have_not_ended_some_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.cli_conform.UNENDED_SHOWN_MAX", 1)
    hung = {name: trace._replace(seen=trace.seen[:6]) for name, trace in RUN.items()}
    assert "and 1 more; --json has them all" in resumark("conform", *written(hung, tmp_path)).out


def test_nothing_to_judge_is_no_pass(tmp_path: Path) -> None:
    nothing = RUN[SENDER]._replace(seen=())
    paths = written({SENDER: nothing}, tmp_path)
    ran = resumark("conform", *paths, "--minimise", str(tmp_path / "test_it.py"))
    assert ran.code == 4 and "unknown" in ran.out and "nothing to judge" in " ".join(ran.out.split())


def test_what_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    empty = tmp_path / "none"
    empty.mkdir()
    refused(resumark("conform", str(empty)))
    refused(resumark("conform", str(tmp_path / "missing.jsonl")))
    refused(resumark("conform", *written(RUN, tmp_path), "--states-max", "9"))
    refused(resumark("conform", *written(RUN, tmp_path), "--minimise", str(tmp_path / "no" / "where.py")))


# --- the shortest run that breaks the same --------------------------------------------------------------


def test_the_shortest_run_that_breaks_the_same_is_written_as_a_test(tmp_path: Path) -> None:
    file = tmp_path / "test_short.py"
    paths = written(resumed_twice(), tmp_path)
    ran = resumark("conform", *paths, "--minimise", str(file))
    text = " ".join(ran.out.split())
    assert ran.code == 1 and "'watermark' itself does not break I6" in text and "'none', at step 7" in text
    made = runpy.run_path(str(file))
    assert made["VERSIONS"] == ["none", "watermark"] and made["BROKEN"] == "I6"
    with pytest.raises(AssertionError, match="I6"):
        made["test_no_property_is_broken"]("none")
    made["test_no_property_is_broken"]("watermark")


def test_the_version_whose_break_shows_in_the_same_kind_of_event_comes_first(tmp_path: Path) -> None:
    at = place(RUN[SENDER], Executed)
    twice = {**RUN, SENDER: insert(RUN[SENDER], at + 1, RUN[SENDER].seen[at].event)}
    paths = [Path(path) for path in written(twice, tmp_path)]
    found = minimise(conform(paths), paths)
    assert found.best is not None
    assert (found.broken, found.best.version, found.best.kind, found.best.own) == (
        "I6",
        "no-grant-seq",
        "Executed",
        True,
    )


def test_nothing_is_written_for_what_conforms_or_breaks_no_property(tmp_path: Path) -> None:
    file = tmp_path / "test_short.py"
    ran = resumark("conform", *written(RUN, tmp_path), "--minimise", str(file))
    assert ran.code == 0 and "nothing to make shorter" in ran.out
    short = {**RUN, SENDER: RUN[SENDER]._replace(seen=RUN[SENDER].seen[:6])}
    ran = resumark("conform", *written(short, tmp_path), "--minimise", str(file))
    assert ran.code == 1 and "guards none of the properties" in ran.out and not file.exists()
    assert (
        resumark("conform", *written(short, tmp_path), "--minimise", str(file), "--json").data["minimised"]["written"]
        is None
    )


def test_within_too_small_a_bound_it_says_that_nothing_was_found(tmp_path: Path) -> None:
    paths = [Path(path) for path in written(resumed_twice(), tmp_path)]
    found = minimise(conform(paths), paths, states_max=1)
    text = " ".join(found.lines())
    assert not found.written and "within the bounds" in text and "no version of the zoo" in text
    assert found.as_json(None)["tried"] == list(found.tried) and len(found.tried) > 20


def test_if_our_own_version_breaks_it_that_is_said_first() -> None:
    found = minimise_of_the_protocol()
    assert "'watermark' itself breaks I6, in 0 steps" in found.lines()[1]


def minimise_of_the_protocol() -> Minimised:
    """As if the protocol had been found to break a property."""
    from sim.engines.result import Found, Result
    from sim.scenario import Scenario

    trace = RUN[RECEIVER]._replace(ending=TraceEnding("I6", "so it is"))
    result = Result("violated", "bounded", violations=(Found("I6", 0, "", trace),))
    return Minimised("I6", "", result, Candidate("watermark", Scenario(), False, result, ""), (), 9)


def test_what_a_trace_was_like_is_said_of_one_and_of_several() -> None:
    once = Features(faults={"duplicate_max": 1, "receiver_crash_max": 1})
    assert once.words().endswith("1 message received again, 1 restart of a receiver")
    often = Features(faults={"duplicate_max": 1200, "abort_max": 2})
    assert often.words().endswith("1,200 messages received again, 2 ends by an abort")


def test_a_small_scenario_is_like_the_trace(tmp_path: Path) -> None:
    from sim.engines.conform_read import open_source
    from sim.scenario import RankCounts

    scenario = ours("every-fault", ranks=RankCounts(receivers=2, senders=2))
    for seed in range(40):
        traces = traces_of(scenario, seed)
        paths = [Path(path) for path in written(traces, tmp_path)]
        features = features_of(conform(paths), [open_source(path) for path in paths])
        small = features.scenarios("I1")
        assert all(
            each.ranks == RankCounts(receivers=2, senders=2) and len(each.expanded_requests()) == 2 for each in small
        )
        assert small[0].pool.allocator == "adversary"
        if {"abort_max", "sender_crash_max", "duplicate_max"} <= set(features.faults) and features.early:
            break
    else:
        pytest.fail("no run had an abort, a restart, a doubled message and an early grant")
    assert "received again" in features.words() and small[0].faults.abort_max == 1
    assert small[0].requests[0].grant_tokens == 2


def test_every_field_and_option_is_documented(tmp_path: Path) -> None:
    page = (
        (ROOT / "docs" / "cli.md")
        .read_text(encoding="utf-8")
        .split("## `resumark conform`\n", 1)[1]
        .split("\n## ", 1)[0]
    )
    answer = resumark(
        "conform", *written(resumed_twice(), tmp_path), "--minimise", str(tmp_path / "t.py"), "--json"
    ).data
    for name in (*answer, *answer["refused"], *answer["minimised"], *answer["processes"][0]):
        assert f"`{name}`" in page, name
    for option in re.findall(r"(--[a-z-]+)", resumark("conform", "--help").out):
        assert option == "--help" or f"`{option}" in page, option
