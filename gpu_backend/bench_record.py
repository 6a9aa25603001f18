"""What it costs a worker to write down what it does: a request's events again and again, with and without.

What is measured is what a worker pays in its own loop: making the event, encoding it, and handing it over. The events
are those of a grant, as a receiver tells them. Ways are measured in turns, in time of the processor, so that other work
on the machine counts for little.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final, NamedTuple

from fsm.effects import Moved, Send, Watermark
from fsm.messages import BlockRef, Epoch, Grant, Status
from fsm.states import State
from fsm.trace import TRACE_VERSION, WORKER, TraceHeader
from gpu_backend.observe import Observer, Reporter
from gpu_backend.recorder import Recorder

GRANT_BLOCKS: Final = 8
BLOCK_TOKENS: Final = 128
TURNS: Final = 7
"""Each way is measured so often; the median counts."""

DUMP_KIB: Final = 1024


class RecordFigure(NamedTuple):
    """One way of writing down: what an event costs in the loop, and how many bytes it takes."""

    name: str
    event_s: float
    event_bytes: float

    @property
    def events_per_s(self) -> float:
        """Events a second, if a worker did nothing else."""
        return 1.0 / self.event_s


def _ways(directory: Path) -> dict[str, Callable[[], Observer]]:
    """Every way by its name: what makes an observer that writes so."""
    header = TraceHeader(TRACE_VERSION, WORKER, {}, side="receiver", rank=0, boot_id=1)

    def recorded(**where: Any) -> Callable[[], Observer]:
        return lambda: Observer(recorder=Recorder(header, **where))

    ring, trace = str(directory / "ring"), str(directory / "trace.jsonl")
    return {
        "nothing": Observer,
        "checks": lambda: Observer(checks=True),
        "ring in a file": recorded(ring=ring),
        "ring in memory, for dumps": recorded(dump_dir=str(directory / "dumps")),
        "trace, once a second": recorded(trace=trace),
        "trace, each event": recorded(trace=trace, trace_flush="event"),
        "ring and trace": recorded(ring=ring, trace=trace),
    }


EVENTS_OF_GRANT: Final = 9


def _tell_grant(reporter: Reporter, number: int) -> None:
    """What a receiver tells of one grant: ``EVENTS_OF_GRANT`` events."""
    epoch, room, start = Epoch(1 << 50, number), number, 1024 * number
    blocks = tuple([BlockRef(block, number) for block in range(GRANT_BLOCKS)])
    tokens = GRANT_BLOCKS * BLOCK_TOKENS
    total = start + 4 * tokens
    reporter.sent(Send(Grant(room, epoch, 0, 0, 1, start, tokens, blocks, 1 << 50)))
    reporter.moved(Moved(0, room, epoch, "resume", State.TRANSFERRING, State.RESUMING))
    reporter.received(Status(room, epoch, 0, 0, 1, start + tokens, total, True, False))
    reporter.wrote(room, epoch, 1, start, tokens)
    reporter.watermark(Watermark(0, room, epoch, start + tokens))
    reporter.moved(Moved(0, room, epoch, "landed", State.RESUMING, State.TRANSFERRING))
    reporter.delivered(room, epoch, 1, start, tokens, 1)
    reporter.note("remark", "as many more as a message of another kind")
    reporter.tick()


def measure_recording(events: int = 200_000, say: Callable[[int, int], None] = lambda done, total: None) -> list[Any]:
    """Every way, with about so many events in all turns together. ``say`` hears how many turns are over."""
    grants = max(1, events // EVENTS_OF_GRANT // TURNS)
    with tempfile.TemporaryDirectory(prefix="resumark-") as name:
        directory = Path(name)
        ways = _ways(directory)
        times_s: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(TURNS):
            for way, make in ways.items():
                times_s[way].append(_turn(make(), grants))
            say(turn + 1, TURNS)
        event_bytes = (directory / "trace.jsonl").stat().st_size / (grants * EVENTS_OF_GRANT)
    figures = []
    for way, times in times_s.items():
        written = 0.0 if way in ("nothing", "checks") else event_bytes
        figures.append(RecordFigure(way, statistics.median(times) / (grants * EVENTS_OF_GRANT), written))
    return figures


def _turn(observer: Observer, grants: int) -> float:
    """Seconds of the processor for so many grants."""
    reporter = Reporter(observer, "receiver", 0, perf_counter, lambda room, violation: None)
    began_s = process_time()
    for number in range(grants):
        _tell_grant(reporter, number)
    took_s = process_time() - began_s
    observer.close()
    return took_s


def measure_dump() -> float:
    """Seconds of the processor that a dump of a full ring of ``DUMP_KIB`` takes: the median of some."""
    header = TraceHeader(TRACE_VERSION, WORKER, {}, side="receiver", rank=0, boot_id=1)
    times = []
    with tempfile.TemporaryDirectory(prefix="resumark-") as name:
        recorder = Recorder(header, dump_dir=name, ring_kib=DUMP_KIB)
        reporter = Reporter(Observer(recorder=recorder), "receiver", 0, perf_counter, lambda room, violation: None)
        for number in range((DUMP_KIB << 10) // 150 // EVENTS_OF_GRANT * 2):
            _tell_grant(reporter, number)
        for _ in range(TURNS):
            began_s = process_time()
            recorder.dump(Path(name) / "dump.jsonl")
            times.append(process_time() - began_s)
    return statistics.median(times)


__all__ = ["RecordFigure", "measure_dump", "measure_recording"]
