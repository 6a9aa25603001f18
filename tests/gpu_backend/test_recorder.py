"""What a worker writes down: whole after a SIGKILL, bounded, and never the end of the worker."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fsm.errors import LocalError
from fsm.events import Finished, Granted, Note, Received, Restarted, StateChanged
from fsm.messages import Epoch
from fsm.ring import read_ring
from fsm.states import State
from fsm.trace import TRACE_VERSION, WORKER, Seen, Trace, TraceEnding, TraceHeader, parse_trace_bytes
from gpu_backend.config import ConfigError, ObserveConfig, SenderWorkerConfig, config_from_mapping
from gpu_backend.recorder import Recorder
from gpu_backend.transports.base import LinkLost
from tests.gpu_backend.kit_cli import resumark
from tests.gpu_backend.kit_workers import Pair, payload_of

HEADER = TraceHeader(TRACE_VERSION, WORKER, {}, side="sender", rank=3, boot_id=9)


def read(path: Path) -> Trace:
    return parse_trace_bytes(path.read_bytes(), source=str(path))


def notes(trace: Trace) -> list[str]:
    """The texts of the notes, in order."""
    return [line.event.text for line in trace.seen if isinstance(line.event, Note)]


def write_notes(recorder: Recorder, first: int, last: int) -> None:
    for number in range(first, last):
        recorder.write(float(number), Note("n", str(number)))


# --- rings and write-through ------------------------------------------------------------------------------

VICTIM = """
import os, signal, sys
from fsm.events import Note
from fsm.trace import TRACE_VERSION, WORKER, TraceHeader
from gpu_backend.recorder import Recorder
from gpu_backend.transports.base import LinkLost

ring, trace, flush = sys.argv[1:]
recorder = Recorder(TraceHeader(TRACE_VERSION, WORKER, {}), ring=ring, ring_kib=64, trace=trace, trace_flush=flush)
for number in range(2000):
    recorder.write(float(number), Note("n", str(number)))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("flush", ["event", "second"])
def test_what_a_process_saw_until_it_was_killed_is_in_its_ring_and_in_a_trace_that_is_written_through(
    tmp_path: Path, flush: str
) -> None:
    """The one file to hand over after a SIGKILL. A trace that is handed over once a second lacks the end."""
    ring, trace = tmp_path / "ring", tmp_path / "trace.jsonl"
    ended = subprocess.run([sys.executable, "-c", VICTIM, str(ring), str(trace), flush], check=False)
    assert ended.returncode == -signal.SIGKILL
    held = read(ring)
    assert notes(held) == [str(number) for number in range(held.header.dropped, 2000)]
    assert 300 < len(held.seen) < 2000 and held.ending == TraceEnding()
    assert ring.stat().st_size == 64 << 10
    written = notes(read(trace))
    assert written == [str(number) for number in range(len(written))]
    assert (len(written) == 2000) == (flush == "event")


def test_the_ring_of_a_process_before_is_kept_once(tmp_path: Path) -> None:
    """A supervisor starts a killed worker anew at once: what it is to be asked about must not be gone by then."""
    path = tmp_path / "ring"
    for life in range(3):
        recorder = Recorder(HEADER, ring=str(path), ring_kib=64)
        write_notes(recorder, 10 * life, 10 * life + 3)
        recorder.close(TraceEnding())
    assert notes(read(path)) == ["20", "21", "22"]
    assert notes(read(tmp_path / "ring.old")) == ["10", "11", "12"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ring", "ring.old"]


def test_a_ring_that_cannot_be_made_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"observe\.ring: cannot make '.*/no/ring': No such file"):
        Recorder(HEADER, ring=str(tmp_path / "no" / "ring"))
    with pytest.raises(LocalError, match=r"observe\.ring_kib: a ring of 1024 bytes: expected at least"):
        Recorder(HEADER, ring=str(tmp_path / "ring"), ring_kib=1)
    with pytest.raises(LocalError, match=r"observe\.dump_dir: cannot make"):
        Recorder(HEADER, dump_dir="/dev/null/dumps")


def test_one_line_goes_to_trace_and_ring_alike(tmp_path: Path) -> None:
    ring, trace = tmp_path / "ring", tmp_path / "trace"
    recorder = Recorder(HEADER, ring=str(ring), ring_kib=64, trace=str(trace))
    write_notes(recorder, 0, 5)
    recorder.close(TraceEnding("I1", "here"))
    recorder.close(TraceEnding())
    assert read(ring) == read(trace)
    assert read(ring).header == HEADER and read(ring).ending == TraceEnding("I1", "here")


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'observe\.ring: got "x", expected another file than observe\.trace'):
        config_from_mapping(SenderWorkerConfig, {"layout": {"dim": 8}, "observe": {"ring": "x", "trace": "x"}})


# --- dumps of failed requests -----------------------------------------------------------------------------


def watched_pair(tmp_path: Path, **options: Any) -> Pair:
    """Each side with its own observer, and a directory for dumps."""
    observe = ObserveConfig(dump_dir=str(tmp_path / "dumps"), **options)
    return Pair(apart=True, receiver={"observe": observe}, sender={"observe": observe})


def dumps(tmp_path: Path) -> dict[str, Trace]:
    """Every dump by the beginning of its name."""
    return {path.name.rsplit("-", 1)[0]: read(path) for path in sorted((tmp_path / "dumps").iterdir())}


def test_a_request_that_failed_is_dumped_by_both_sides(tmp_path: Path) -> None:
    """The receiver ran into a deadline, and the sender heard of it: two files, which together tell all."""
    pair = watched_pair(tmp_path)
    pair.sender.submit(5, payload_of(5, 40))
    pair.receiver.submit(5)
    pair.run(lambda: pair.receiver.progress(5).watermark_tokens > 0)
    assert dumps(tmp_path) == {}
    for _ in range(4):  # the sender answers nothing for too long
        pair.clock.now += 31.0
        pair.receiver.poll()
    pair.sender.poll()
    pair.receiver.poll()
    found = dumps(tmp_path)
    assert list(found) == ["receiver-0-room5", "sender-0-room5"]
    ours, theirs = found.values()
    assert ours.ending.text == "room 5 ended Failed: DEADLINE"
    assert theirs.ending.text == "room 5 ended Failed: PEER_ABORTED"
    events = [line.event for line in ours.seen]
    assert sum(isinstance(event, Granted) for event in events) >= 2
    assert any(isinstance(event, Finished) and event.reason == "DEADLINE" for event in events)
    assert (ours.header.side, ours.header.rank, ours.header.boot_id) == ("receiver", 0, pair.receiver.boot_id)
    assert ours.header.dropped == 0 and ours.header.scenario["config"]["pool"]["blocks"] == 4
    pair.close()


def test_a_request_that_its_caller_ended_is_not_dumped(tmp_path: Path) -> None:
    """Clients hang up all the time: they must not use up the dumps. Neither here nor at the peer."""
    pair = watched_pair(tmp_path)
    for room, side in ((1, pair.receiver), (2, pair.sender)):
        pair.sender.submit(room, payload_of(room, 40))
        pair.receiver.submit(room)
        while not pair.receiver.progress(room).watermark_tokens:
            pair.step()
        side.abort(room)
        pair.run_rooms([room])
    assert pair.outcomes[2].reason == "PEER_ABORTED" == pair.sender_outcomes[1].reason
    assert dumps(tmp_path) == {}
    pair.close()
    assert dumps(tmp_path) == {}


def test_a_broken_property_is_dumped_with_its_name(tmp_path: Path) -> None:
    """And the requests that fail in the same round are in the same file: they have the same last events."""
    pair = watched_pair(tmp_path, checks=True)
    for room in (1, 2):
        pair.sender.submit(room, payload_of(room, 37))
        pair.receiver.submit(room)
    pair.step()
    for room in (1, 2):
        epoch = pair.receiver.receiver.rooms[room].epoch
        pair.receiver.reporter.wrote(room, epoch, 0, 0, 4, f"a trespass of {room}")
    pair.receiver.poll()
    only = dumps(tmp_path)["receiver-0-room1"]
    assert only.ending.property == "I1"
    assert "a trespass of 1" in only.ending.text and "a trespass of 2" in only.ending.text
    assert sum(isinstance(line.event, Finished) for line in only.seen) == 2
    pair.close()


def test_an_exception_while_a_request_is_handled_is_dumped(tmp_path: Path) -> None:
    def broken_fill(views: Any) -> None:
        raise RuntimeError("the vision tower fell")

    pair = watched_pair(tmp_path)
    pair.sender.submit(1, 8, fill=broken_fill)
    pair.run(lambda: 1 in pair.sender_outcomes)
    assert dumps(tmp_path)["sender-0-room1"].ending.text == "room 1 ended Failed: INTERNAL"
    pair.close()


def test_what_a_lost_link_took_with_it_is_counted_and_dumped(tmp_path: Path) -> None:
    """The sender goes on as a new process, and its requests end without a step of their own."""
    pair = watched_pair(tmp_path)
    for room in (1, 2):
        pair.sender.submit(room, payload_of(room, 37))
        pair.receiver.submit(room)
    pair.run(lambda: pair.receiver.progress(1).watermark_tokens > 0)
    boot_id, poll = pair.sender.boot_id, pair.sender.transport.poll
    pair.sender.transport.poll = lambda: [*poll(), LinkLost(0, "cut")]  # type: ignore[method-assign]
    pair.sender.poll()
    assert pair.sender.stats().counters.ended == {"PEER_GONE": 2}
    (path,) = (tmp_path / "dumps").iterdir()
    assert path.name == f"sender-0-restart1-{boot_id}.jsonl"
    assert read(path).ending.text == "link to receiver 0 lost: 2 requests failed (of each rank)"
    assert isinstance(read(path).seen[-1].event, Restarted)
    pair.close()


def test_there_are_no_more_dumps_than_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that a process of before has left are counted: a worker that is started again and again fills no disk."""
    for life in range(2):
        recorder = Recorder(HEADER, dump_dir=str(tmp_path), ring_kib=64, dumps_max=3)
        for number in range(2 * life, 2 * life + 2):
            write_notes(recorder, 0, number)
            recorder.failed(f"room{number}", Epoch(9, 1), TraceEnding("", f"room {number}"))
            recorder.tick(0.0)
            recorder.tick(1.0)
        recorder.failed("room0", Epoch(9, 1), TraceEnding("", f"once more in life {life}"))
        recorder.close(TraceEnding())
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"sender-3-room{number}-9.1.jsonl" for number in (0, 1, 2)
    ]
    assert read(tmp_path / "sender-3-room0-9.1.jsonl").ending.text == "once more in life 1"
    full = [record.getMessage() for record in caplog.records if "dumps_max" in record.getMessage()]
    assert full == [
        f"sender-3: {tmp_path} holds 3 dumps of it (observe.dumps_max); no more are made until some are taken away"
    ]


def test_many_that_fail_at_once_are_one_file_and_a_short_text(tmp_path: Path) -> None:
    """A peer that dies takes a thousand requests with it; that must not keep the loop of the worker."""
    recorder = Recorder(HEADER, dump_dir=str(tmp_path), ring_kib=64)
    for room in range(1000):
        recorder.failed(f"room{room}", Epoch(9, room), TraceEnding("", f"room {room}"))
    recorder.tick(0.0)
    (only,) = tmp_path.iterdir()
    assert only.name == "sender-3-room0-9.0.jsonl"
    assert read(only).ending.text.startswith("room 0; room 1; ") and read(only).ending.text.endswith("; and 992 more")


def test_a_directory_that_went_away_costs_the_dump_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(HEADER, dump_dir=str(tmp_path / "dumps"), ring_kib=64)
    (tmp_path / "dumps").rmdir()
    recorder.failed("room1", None, TraceEnding("", "room 1"))
    recorder.tick(0.0)
    assert "nothing is dumped" in caplog.text
    caplog.clear()
    assert not recorder.dump(tmp_path / "dumps" / "here.jsonl")
    assert "could not be dumped" in caplog.text
    recorder.close(TraceEnding())


def test_a_worker_dumps_when_it_is_told_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    pair = watched_pair(tmp_path)
    pair.sender.submit(1, payload_of(1, 20))
    pair.receiver.submit(1)
    pair.run_rooms([1])
    path = tmp_path / "now.jsonl"
    assert pair.receiver.dump(path)
    events = [line.event for line in read(path).seen]
    assert any(isinstance(event, Received) for event in events)
    last = [event for event in events if isinstance(event, StateChanged)][-1]
    assert last.target == State.SUCCESS
    assert not pair.sender.dump(tmp_path / "no" / "such" / "directory")
    pair.close()
    with pytest.raises(LocalError, match=r"expected observe\.ring or observe\.dump_dir, and an open worker"):
        pair.receiver.dump(path)
    plain = Pair()
    with pytest.raises(LocalError, match=r"dump: no events are kept; expected observe\.ring or observe\.dump_dir"):
        plain.sender.dump(path)
    plain.close()


def test_a_dump_says_how_much_went_before_it(tmp_path: Path) -> None:
    recorder = Recorder(HEADER, ring=str(tmp_path / "ring"), ring_kib=64)
    write_notes(recorder, 0, 3000)
    recorder.dump(tmp_path / "dump.jsonl", TraceEnding("", "why"))
    dumped, held = read(tmp_path / "dump.jsonl"), read(tmp_path / "ring")
    assert dumped.header == held.header and dumped.seen == held.seen and dumped.header.dropped > 1000
    assert dumped.seen[-1] == Seen(2999.0, Note("n", "2999"))
    assert read_ring((tmp_path / "ring").read_bytes()).dropped == dumped.header.dropped
    recorder.close(TraceEnding())


# --- what it costs ----------------------------------------------------------------------------------------


def test_each_way_of_writing_down_can_be_measured() -> None:
    """The figures are of this machine; that there are some for each way, and of what was really written, is not."""
    done = resumark("bench", "record", "--events", "1000", "--json")
    assert done.code == 0
    ways = {one["way"]: one for one in done.data["ways"]}
    assert list(ways) == [
        "nothing", "checks", "ring in a file", "ring in memory, for dumps", "trace, once a second",
        "trace, each event", "ring and trace",
    ]  # fmt: skip
    assert all(one["event_ns"] > 0 and one["events_per_s"] > 0 for one in ways.values())
    assert ways["nothing"]["event_bytes"] == 0 and 100 < ways["ring and trace"]["event_bytes"] < 400
    assert done.data["dump_kib"] == 1024 and done.data["dump_s"] > 0
    shown = resumark("bench", "record", "--events", "1000").out
    assert "events a second" in shown and "a dump of a ring of 1,024 KiB takes" in shown
