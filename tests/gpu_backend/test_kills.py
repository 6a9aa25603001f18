"""Runs in which processes are killed at a point that was told: everything arrives, and both lives leave a trace."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fsm.errors import LocalError
from fsm.events import Executed, Finished, Granted, Received
from fsm.messages import Status
from fsm.states import State
from fsm.trace import Trace
from gpu_backend.cli_run import kill_facts, run_json
from gpu_backend.kills import (
    FailedAttempt,
    Kill,
    Killed,
    KilledRun,
    KilledRunner,
    check_kills,
    merge_reports,
    parse_kill,
)
from gpu_backend.launch import Launch
from gpu_backend.parties import Ended, Report
from gpu_backend.plan import Plan
from gpu_backend.runs import RunResult, put_together, run_plan
from gpu_backend.workload import QWEN25, Model, text_prompt
from sim.engines.conform import conform
from sim.trace_file import read_trace
from tests.gpu_backend.kit_cli import need, refused, resumark

REQUESTS = 8


def plan_with(*kills: str, **more: Any) -> Plan:
    """Eight requests of three grants or more each, and these kills."""
    settings: dict[str, Any] = dict(transport="gloo", undisturbed=False)
    return Plan(
        model=Model("small", QWEN25, 256), prompts=(text_prompt(300),) * REQUESTS, block_tokens=32, pool_blocks=4,
        seed=3, kills=kills, **{**settings, **more},
    )  # fmt: skip


def traces(directory: Path) -> dict[str, Trace]:
    """Every trace of a run by its name."""
    return {path.stem: read_trace(path) for path in sorted(directory.iterdir(), key=lambda path: path.stem)}


# --- between real processes -------------------------------------------------------------------------------


def check_delivered(result: RunResult, kills: int) -> None:
    """Every kill happened, and every request is there, byte for byte."""
    assert result.problems == [] and result.violations == [] and result.verdict == "holds"
    assert [request.state for request in result.requests] == [str(State.SUCCESS)] * REQUESTS
    assert len(result.kills.killed) == kills and result.payload_bytes > 0 and result.quarantined_blocks == 0


def test_either_side_is_killed_and_everything_arrives(tmp_path: Path) -> None:
    """Each in the very event, with the traces of both lives of both; which together conform to the protocol."""
    result = run_plan(plan_with("receiver@2-requests", "sender@12-resumes", trace=str(tmp_path)))
    check_delivered(result, 2)
    assert [(one.kill.side, one.kill.after) for one in result.kills.killed] == [("receiver", 2), ("sender", 12)]
    assert result.kills.killed[0].done < 2, "the second request had ended, and its caller never heard of it"
    found = traces(tmp_path)
    assert list(found) == ["receiver-0", "receiver-0-1", "sender-0", "sender-0-1"]
    for side, last in (("receiver", Finished), ("sender", Executed)):
        first, second = found[f"{side}-0"], found[f"{side}-0-1"]
        assert isinstance(first.seen[-1].event, last)
        assert first.header.boot_id < second.header.boot_id
        assert [life.header.scenario["run"]["boot"] for life in (first, second)] == [0, 1]
    answer = conform(sorted(tmp_path.iterdir()))
    assert (answer.verdict, answer.inferred_total) == ("conforms", 0)
    check_spoilt(tmp_path, tmp_path / "receiver-0-1.jsonl")


def check_spoilt(directory: Path, receiver: Path) -> None:
    """The traces with one STATUS doubled are a run of the protocol as well; with one resume more they are none."""
    lines = receiver.read_text().splitlines(keepends=True)
    seen = [read.event for read in read_trace(receiver).seen]
    status = next(at for at, event in enumerate(seen, 1) if type(event) is Received and type(event.message) is Status)
    receiver.write_text("".join([*lines[: status + 1], lines[status], *lines[status + 1 :]]))
    answer = conform(sorted(directory.iterdir()))
    assert (answer.verdict, answer.inferred_total) == ("conforms", 0)

    resume = next(at for at, event in enumerate(seen, 1) if type(event) is Granted and event.seq > 0)
    again = json.loads(lines[resume])
    again["event"]["seq"] += 1
    receiver.write_text("".join([*lines[: resume + 1], json.dumps(again) + "\n", *lines[resume + 1 :]]))
    answer = conform(sorted(directory.iterdir()))
    assert answer.verdict == "refused" and answer.refused is not None
    assert (answer.refused.file, answer.refused.line) == (str(receiver), resume + 2), "at that very event"
    assert answer.refused.refusal.property == "I6"


def test_a_sender_that_dies_on_a_one_sided_transport(tmp_path: Path) -> None:
    need("nixl")
    result = run_plan(plan_with("sender@4-resumes", transport="nixl", trace=str(tmp_path)))
    check_delivered(result, 1)
    assert list(traces(tmp_path)) == ["receiver-0", "sender-0", "sender-0-1"]
    assert set(result.kills.reasons) <= {"PEER_GONE", "PEER_RESTARTED"}
    assert conform(sorted(tmp_path.iterdir())).verdict == "conforms"


def test_a_lost_receiver_rank_comes_back_and_all_begin_alike(tmp_path: Path) -> None:
    """R7: what one rank has and the other has not is asked for by both."""
    result = run_plan(plan_with("receiver:1@3-requests", receivers=2, trace=str(tmp_path)))
    check_delivered(result, 1)
    assert result.kills.reasons["RANK_LOST"] > 0
    assert conform(sorted(tmp_path.iterdir())).verdict == "conforms"


def test_a_kill_that_never_came_is_a_problem() -> None:
    """Else a run would pass for one with a fault in it."""
    result = run_plan(plan_with("receiver@900-resumes"))
    assert result.problems == ["--kill receiver@900-resumes: the run ended before that"]
    assert [request.state for request in result.requests] == [str(State.SUCCESS)] * REQUESTS


# --- what is asked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kill"),
    [
        ("sender@3-requests", ("sender", 0, "requests", 3)),
        ("receiver:1@2-resumes", ("receiver", 1, "resumes", 2)),
        ("receiver@900-resumes", ("receiver", 0, "resumes", 900)),
        ("sender:1@0.5", ("sender", 1, "requests", 4)),
        ("sender@.01", ("sender", 0, "requests", 1)),
        ("sender@0.99", ("sender", 0, "requests", 8)),
    ],
)
def test_who_and_when_are_read(text: str, kill: tuple[str, int, str, int]) -> None:
    assert parse_kill(text, plan_with(receivers=2, senders=2)) == Kill(text, *kill)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sender", "expected WHO@WHEN, such as sender@3-requests"),
        ("sender@3s", "expected WHO@WHEN"),
        ("sender@1.5", "expected WHO@WHEN"),
        ("network@3-requests", "expected WHO@WHEN"),
        ("sender@3-requests ", "expected WHO@WHEN"),
        ("receiver:1@3-requests", "receiver rank 1 takes no part; expected a rank below 1"),
        ("sender:1@3-requests", "sender rank 1 takes no part; expected a rank below 1"),
        ("sender@9-requests", "expected from 1 to 8 requests, as many as this run has"),
        ("sender@0-resumes", "expected from 1 to 8 requests"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(LocalError) as caught:
        check_kills(plan_with(text, senders=2))
    assert message in str(caught.value) and f"--kill {text!r}" in str(caught.value)


def test_a_refusal_at_the_command_line_starts_nothing(tmp_path: Path) -> None:
    traces = str(tmp_path / "traces")
    refused(resumark("run", "--kill", "sender@now", "--trace", traces), "expected WHO@WHEN")
    refused(resumark("run", "--kill", "sender@0.5", "--transport", "in-process", "--trace", traces), "in one process")
    assert list(tmp_path.iterdir()) == []


def test_traces_of_an_earlier_run_give_way_and_nothing_else_does(tmp_path: Path) -> None:
    """A directory is read as one run: a second life that this run does not have must not be in it."""
    for name in ("sender-0-1.jsonl", "receiver-12-3.jsonl", "receiver-0.jsonl", "sender-0-1.jsonl.old", "notes.jsonl"):
        (tmp_path / name).write_text("")
    plan_with(trace=str(tmp_path)).make_trace_directory()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["notes.jsonl", "receiver-0.jsonl", "sender-0-1.jsonl.old"]


# --- who is told of which attempt -------------------------------------------------------------------------


class Heard:
    """Stands for a child: what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def tell(self, kind: str, value: Any = None) -> None:
        self.told.append((kind, value))

    def take(self) -> list[tuple[str, Any]]:
        told, self.told = self.told, []
        return told


def runner(receivers: int = 1) -> tuple[KilledRunner, Heard]:
    """A parent whose only child is sender 0."""
    made, sender = KilledRunner(Launch(), plan_with(receivers=receivers), lambda ended: None), Heard()
    made.children["sender", 0] = sender  # type: ignore[assignment]
    return made, sender


def ended(room: int) -> Ended:
    return Ended(room, "Success", "NONE", 300, "", 0.0, 1.0, ())


def arrive(made: KilledRunner, rank: int, room: int) -> None:
    made.got[rank][room] = ended(room)
    made._got(rank, room)


def test_a_sender_is_told_of_an_attempt_once_and_of_its_end() -> None:
    """With two ranks that do the same, one after the other."""
    made, sender = runner(receivers=2)
    made._wanted(0, 1)
    made._wanted(1, 1)
    assert sender.take() == [("want", 1)]
    made._failed(0, 1)
    assert sender.take() == [("drop", 1)]
    made._wanted(0, 1)
    assert sender.take() == [("want", 1)]
    made._failed(1, 1)  # rank 1 says only now that the first attempt has failed
    made._wanted(1, 1)
    assert sender.take() == []
    arrive(made, 0, 1)
    assert sender.take() == []
    arrive(made, 1, 1)
    assert sender.take() == [("drop", 1)]


def test_a_successor_is_told_what_is_under_way_and_nothing_else() -> None:
    """What failed and is asked for again later must not take its source blocks now: everything would wait for it."""
    made, sender = runner()
    for room in (1, 2, 3):
        made._wanted(0, room)
    arrive(made, 0, 1)
    made._failed(0, 2)
    sender.take()
    made._tell_again(0)
    assert sender.take() == [("want", 3)]


def test_ranks_begin_alike_with_what_one_of_them_does_not_have() -> None:
    made, sender = runner(receivers=2)
    for rank in (0, 1):
        made._wanted(rank, 1)
        made._wanted(rank, 2)
    arrive(made, 0, 1)
    made._failed(0, 2)
    sender.take()
    for room in (1, 2):
        made._begin_alike(room, victim=1)
    assert sender.take() == [("drop", 1), ("drop", 2)]
    assert made.got == [{}, {}]
    made._tell_again(0)
    assert sender.take() == []
    made._wanted(0, 1)
    made._wanted(1, 1)
    assert sender.take() == [("want", 1)]


# --- what is told of it -----------------------------------------------------------------------------------


def test_the_lives_of_a_process_count_together() -> None:
    def report(resumes: int, **more: Any) -> Report:
        return Report("receiver", 0, [], {"resumes": resumes, "ended": {"NONE": 1}}, {"Free": 4}, **more)

    first, second = report(3, used_blocks_max=4, violations=[("I1", "here")]), report(2, used_blocks_max=2)
    (merged,) = merge_reports([first, second], [{1: ended(1)}])
    assert merged.counters["resumes"] == 5 and merged.used_blocks_max == 4
    assert merged.violations == [("I1", "here")] and merged.requests == [ended(1)]


def kills_of(*failed: FailedAttempt) -> KilledRun:
    kill = Kill("sender@0.5", "sender", 0, "requests", 4)
    return KilledRun([Killed(kill, 10.0, 3, 0.25)], list(failed))


def test_a_failure_before_any_kill_or_without_a_reason_is_a_problem() -> None:
    made, _ = runner()
    made.outcome = kills_of(
        FailedAttempt(1, 0, "PEER_GONE", "", 11.0), FailedAttempt(2, 0, "DEADLINE", "", 9.0),
        FailedAttempt(3, 0, "NONE", "", 12.0),
    )  # fmt: skip
    made._judge([])
    assert made.outcome.problems == [
        "room 2 failed before anybody was killed: DEADLINE",
        "room 3 failed without a reason",
    ]


def test_the_answer_says_who_was_killed_and_what_was_asked_for_again() -> None:
    plan = plan_with("sender@0.5")
    kills = kills_of(FailedAttempt(5, 0, "PEER_GONE", "", 11.0), FailedAttempt(6, 0, "PEER_GONE", "gone", 11.0))
    result = RunResult("gloo", "as asked for", kills=kills)
    assert kill_facts(plan, result) == [
        ("killed", "sender 0 at 4 requests, with 3 of 8 requests delivered; back after 0.2 s"),
        ("asked again", "2 attempts failed on the way (PEER_GONE 2)"),
    ]
    assert kill_facts(plan_with(), result) == []
    told = run_json(plan, result, "", "resumark run", 0)
    assert told["kills"] == [{"kill": "sender@0.5", "side": "sender", "rank": 0, "delivered": 3, "back_s": 0.25}]
    assert told["failed_attempts"][1] == {"room": 6, "rank": 0, "reason": "PEER_GONE", "detail": "gone"}
    assert kills.reasons == Counter(PEER_GONE=2)


def test_what_came_of_kills_is_part_of_the_verdict() -> None:
    kills = KilledRun(problems=["--kill sender@0.5: the run ended before that"])
    counters = dict(messages_sent=5, resends=0, grants=2, resumes=0)
    everything = {request.room: ended(request.room) for request in plan_with().requests}
    reports = [Report("receiver", 0, list(everything.values()), counters, {})]
    assert put_together(plan_with(), reports, ("gloo", ""), kills).problems == kills.problems
    assert put_together(plan_with(), reports, ("gloo", "")).verdict == "holds"
