"""The trace of a real worker is shown to the same checkers, and replay prints what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fsm.errors import LocalError
from fsm.events import AnyEvent, Delivered, Finished, Granted, Note, Progressed, StateChanged, Wrote
from fsm.messages import BlockRef, Epoch
from fsm.trace import TRACE_VERSION, WORKER, Seen, Trace, TraceEnding, TraceHeader, dump_trace
from sim.engines.seen import judge_seen
from tests.sim.cli_kit import resumark

E1 = Epoch(7, 1)


def trace_of(*events: AnyEvent) -> Trace:
    seen = tuple(Seen(number / 1000, event) for number, event in enumerate(events))
    return Trace(TraceHeader(TRACE_VERSION, WORKER, {"rank": 0}), (), TraceEnding(), seen)


def whole_run() -> list[AnyEvent]:
    """One request of one grant, as a receiver sees it."""
    return [
        StateChanged("receiver", 0, 1, E1, "registered", "Bootstrapping", "WaitingForInput"),
        Granted(0, 1, E1, 0, 0, 8, (BlockRef(3, 0),)),
        Wrote(0, 1, E1, 0, 0, 8),
        Progressed(0, 1, E1, 8),
        Delivered(0, 1, E1, 0, 0, 8),
        Finished("receiver", 0, 1, E1, "Success", "NONE", 8),
    ]


def test_a_good_run_holds() -> None:
    judged = judge_seen(trace_of(*whole_run()))
    assert judged == ((), {"Success": 1}, 6)


def test_a_watermark_ahead_of_the_bytes_is_seen_where_it_happened() -> None:
    events = whole_run()
    events[3] = Progressed(0, 1, E1, 9)
    (found,) = judge_seen(trace_of(*events)).violations
    assert (found.number, found.violation.property) == (4, "I5")


def test_a_trace_of_the_simulator_is_not_judged_so() -> None:
    trace = Trace(TraceHeader(TRACE_VERSION, "check", {}), (), TraceEnding())
    with pytest.raises(LocalError, match="made by check, not by a worker"):
        judge_seen(trace)


def written(path: Path, *events: AnyEvent) -> str:
    path.write_text(dump_trace(trace_of(*events)))
    return str(path)


def test_replay_shows_the_events_and_says_that_all_is_well(tmp_path: Path) -> None:
    ran = resumark("replay", written(tmp_path / "run.jsonl", *whole_run()))
    assert ran.code == 0
    assert "of a real worker" in " ".join(ran.out.split()) and "Success 1" in ran.out
    assert "receiver_rank=0 room=1 epoch=7.1 seq=0 start=0 capacity=8 blocks=3" in ran.out
    assert "No property is broken" in ran.out


def test_replay_marks_what_broke_a_property_and_leaves_out_the_middle_of_a_long_trace(tmp_path: Path) -> None:
    events = whole_run()
    events[3] = Progressed(0, 1, E1, 9)
    notes: list[AnyEvent] = [Note("send", f"message {number}") for number in range(200)]
    file = written(tmp_path / "run.jsonl", *notes[:100], *events, *notes[100:])
    ran = resumark("replay", file)
    assert ran.code == 1
    assert "I5!" in ran.out and "message 3" in ran.out and "message 199" in ran.out
    assert "message 70" not in ran.out and "125 events more" in ran.out
    answer = json.loads(resumark("replay", file, "--json").out)
    assert answer["verdict"] == "violated" and answer["violations"][0]["event"] == 104
    assert answer["worker"]["rank"] == 0 and answer["exit_code"] == 1


def test_a_real_run_cannot_be_shrunk(tmp_path: Path) -> None:
    ran = resumark("shrink", written(tmp_path / "run.jsonl", *whole_run()))
    assert ran.code == 2 and "no steps that could be left out" in ran.err
