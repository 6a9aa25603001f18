"""Traces as streams: one file after another is opened, and read a piece at a time, however long it is.

A worker's trace is one process, be it a file of JSON Lines or a ring of the last ones. A trace of the simulator is run
again, and is a whole world: its events are in the order in which they happened, and a line is a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fsm.conform.acceptor import HOLE
from fsm.conform.gaps import Process
from fsm.errors import LocalError
from fsm.events import Note, Received, Sent
from fsm.ring import is_ring, read_ring
from fsm.trace import TRACE_VERSION, WORKER, Line, Seen, Trace, TraceEnding, TraceHeader
from sim.engines.replay import replay, scenario_of, world_of
from sim.trace_file import read_trace

PIECE_BYTES = 1 << 18
"""So much of a file is read and decoded at once."""

RANKS_MAX = 4096
"""More ranks of a side than this are none."""

HOLES_MAX = 16
"""A file with more lines that cannot be read is no trace."""

_DECODER = msgspec.json.Decoder(Line)
_MESSAGE = re.compile(rb'"event"\s*:\s*"(?:sent|received)"')
_OTHER = re.compile(rb'"event"\s*:\s*"(?!note)')
_SIDES = ("", "receiver", "sender")
_BLOCK_TOKENS = ("config", "layout", "block_tokens")

Told = tuple[int, float, Any]
"""Line (of a simulator: step), seconds after the header, event."""


class Source(NamedTuple):
    """A trace that was opened. ``started_s`` is the wall clock at its header (0: not told). ``breaks``: the property
    that a simulator's trace says it breaks, and ``how``."""

    path: Path
    process: Process
    events: Iterator[Told]
    header: TraceHeader
    breaks: str = ""
    how: str = ""

    @property
    def name(self) -> str:
        """The file, as it was given."""
        return str(self.path)


def open_source(path: Path) -> Source:
    """Open a trace of a worker or of the simulator. Raises :class:`LocalError` naming file and line for one that is
    none."""
    try:
        with path.open("rb") as file:
            head, first = file.readline(), file.read(PIECE_BYTES)
    except OSError as error:
        raise LocalError(f"{path}: cannot be read: {error.strerror or error}") from None
    if is_ring(head + first[:1]):
        return _ring(path)
    header = _header(head, path)
    if header.engine != WORKER:
        return _simulated(path)
    process = process_of(header, messages=_tells(first))
    return Source(path, process, _events(path, process, _pieces(path)), header)


def _tells(text: bytes) -> bool:
    """Whether a trace tells messages: one that has other events and none of them does not."""
    return _MESSAGE.search(text) is not None or _OTHER.search(text) is None


def _ring(path: Path) -> Source:
    ring = read_ring(path.read_bytes(), source=str(path))
    header = msgspec.structs.replace(_header(ring.header, path), dropped=ring.dropped)
    lines = b"\n".join((ring.header, *ring.lines, b""))
    process = process_of(header, messages=_tells(lines))
    return Source(path, process, _events(path, process, iter([(lines, True)])), header)


def process_of(header: TraceHeader, *, messages: bool = True) -> Process:
    """Whose trace a worker's is, as its header says."""
    if header.side not in _SIDES:
        raise LocalError(f"the header says side '{header.side}'; expected receiver or sender")
    served: tuple[int, ...] = ()
    receivers, senders = ranks_of(header)
    if header.side == "sender" and receivers:
        served = tuple(rank for rank in range(receivers) if rank % (senders or 1) == header.rank)
    block_tokens = _inside(header.scenario, *_BLOCK_TOKENS)
    return Process(
        header.side, header.rank, boot_id=header.boot_id, dropped=header.dropped, messages=messages, served=served,
        block_tokens=block_tokens if isinstance(block_tokens, int) and block_tokens > 0 else 0,
    )  # fmt: skip


def ranks_of(header: TraceHeader) -> tuple[int, int]:
    """How many ranks each side has: receivers, senders; 0 where a header does not say, or says nothing that can be."""
    counts = [_inside(header.scenario, "config", "ranks", name) for name in ("receivers", "senders")]
    receivers, senders = (count if isinstance(count, int) and 0 < count <= RANKS_MAX else 0 for count in counts)
    return receivers, senders


def _inside(data: Any, *names: str) -> Any:
    for name in names:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _header(line: bytes, path: Path) -> TraceHeader:
    try:
        header = _DECODER.decode(line) if line.strip() else None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise LocalError(f"{path}, line 1: not a line of a trace: {error}") from None
    if not isinstance(header, TraceHeader):
        raise LocalError(f"{path}, line 1: {'' if line.strip() else 'empty; '}expected the header first")
    if header.side not in _SIDES:
        raise LocalError(f"{path}: the header says side '{header.side}'; expected receiver or sender")
    if header.version != TRACE_VERSION:
        raise LocalError(f"{path}: trace version {header.version}; this program reads version {TRACE_VERSION}")
    return header


def _pieces(path: Path) -> Iterator[tuple[bytes, bool]]:
    """The file in pieces of whole lines; the last may lack its end. Whether it is the last."""
    rest = b""
    with path.open("rb") as file:
        while True:
            read = file.read(PIECE_BYTES)
            if not read:
                yield rest, True
                return
            rest += read
            end = rest.rfind(b"\n") + 1
            if end:
                yield rest[:end], False
                rest = rest[end:]


def _events(path: Path, process: Process, pieces: Iterator[tuple[bytes, bool]]) -> Iterator[Told]:
    """What a worker saw. At the end of it ``process.over`` says how it ended."""
    number, at_s, holes, ending = 0, 0.0, 0, None
    for piece, last in pieces:
        for record in _decoded(piece, last=last):
            number += 1
            if type(record) is Seen and ending is None:
                at_s = record.at_s
                yield number, at_s, record.event
            elif isinstance(record, Note) and ending is None:
                holes += 1
                if holes > HOLES_MAX:
                    raise LocalError(f"{path}, line {number}: {record.text}")
                yield number, at_s, record
            elif number > 1 or not isinstance(record, TraceHeader):
                ending = _ending(record, number, path, ending)
    # An ending with a text is that of a dump: its process went on.
    process.over = "whole" if ending is not None and not ending.text else "cut"


def _ending(record: Any, number: int, path: Path, ended: TraceEnding | None) -> TraceEnding:
    if ended is not None or isinstance(record, TraceHeader):
        raise LocalError(f"{path}, line {number}: nothing may follow the ending, and there is one header")
    if not isinstance(record, TraceEnding):
        raise LocalError(f"{path}, line {number}: expected a line 'seen', as engine '{WORKER}' says")
    return record


def _decoded(piece: bytes, *, last: bool) -> list[Any]:
    """The records of some lines. One that cannot be read is a hole; half a line at the very end is left out, as a
    process that was killed leaves it."""
    try:
        found: list[Any] = _DECODER.decode_lines(piece)
        return found
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    records: list[Any] = []
    lines = [line for line in piece.split(b"\n") if line.strip()]
    for index, line in enumerate(lines):
        try:
            records.append(_DECODER.decode(line))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            if not (last and index == len(lines) - 1 and not piece.endswith(b"\n")):
                records.append(Note(HOLE, f"not a line of a trace: {error}"))
    return records


def _simulated(path: Path) -> Source:
    trace = read_trace(path)
    scenario = scenario_of(trace.header)
    process = Process(block_tokens=scenario.pool.block_tokens)

    def events() -> Iterator[Told]:
        for event in world_of(trace.header, scenario, notes=True).events:
            yield 0, 0.0, event
        for step in replay(trace).steps:
            for event in step.events:
                yield step.number, float(step.number), event
        process.over = "whole"

    return Source(path, process, events(), trace.header, trace.ending.property, trace.ending.text)


def source_of(trace: Trace, name: str, *, ends: bool = True) -> Source:
    """A worker's trace that is in memory. ``ends``: whether its ending counts, or the process may have gone on."""
    kinds = [type(line.event) for line in trace.seen]
    messages = Sent in kinds or Received in kinds or all(kind is Note for kind in kinds)
    process = process_of(trace.header, messages=messages)

    def events() -> Iterator[Told]:
        for number, line in enumerate(trace.seen, start=2):
            yield number, line.at_s, line.event
        process.over = "whole" if ends and not trace.ending.text else "cut"

    return Source(Path(name), process, events(), trace.header)


__all__ = ["Source", "open_source", "process_of", "ranks_of", "source_of"]
