"""What it costs to judge traces of workers: ``resumark bench conform``.

Two traces are written to a directory of their own, those of a receiver and a sender with many requests in flight, and
read as ``resumark conform`` reads them: bytes from the file, decoding, merging by causality, every checker, the
verdict. One core, processor time. The requests are copies of one that the simulator ran, under other rooms and epochs.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import msgspec

from fsm.errors import LocalError
from fsm.trace import Seen, Trace
from sim.choices import Seeded
from sim.engines.conform import conform
from sim.engines.conform_split import Name, split, world_events
from sim.engines.simulate import run_once
from sim.render import Figure
from sim.scenario import Pool, Request, Scenario

EVENTS = 1_000_000
ROUNDS = 3
QUICK = 50
"""With ``quick`` there are so many times fewer events, once."""

IN_FLIGHT = 64
ROOM, COUNTER = 7_000_000_001, 1
"""The room and the epoch's counter that every copy replaces by its own."""

POOL_BLOCKS = 16
"""Those of one copy."""

_BLOCKS = re.compile(r'"blocks":\[\[[^"]*\]\]')

Say = Callable[[str], Any] | None
"""Told what is being measured."""


def measure_all(say: Say = None, *, quick: bool = False) -> dict[str, list[Figure]]:
    """Every figure, by group. ``quick``: few events, for which there is no target."""
    events_min = EVENTS // QUICK if quick else EVENTS
    with tempfile.TemporaryDirectory() as directory:
        if say is not None:
            say(f"writing traces of {events_min:,} events")
        paths = write_traces(Path(directory), events_min)
        size_bytes = sum(path.stat().st_size for path in paths)
        rates, events = [], 0
        for number in range(1 if quick else ROUNDS):
            if say is not None:
                say(f"reading them, round {number + 1}")
            began = process_time()
            answer = conform(paths)
            spent_s = process_time() - began
            if answer.verdict != "conforms" or answer.inferred:
                raise LocalError(f"the traces of the benchmark do not conform: {answer.refused}")
            events = answer.events
            rates.append(events / max(spent_s, 1e-9))
    note = f"{events:,} events of 2 processes, {size_bytes / events:.0f} bytes each, {IN_FLIGHT} requests in flight"
    target = None if quick else 1e5
    figure = Figure("events, from file to verdict", median(rates), "/s", target, "more", note)
    return {"conform, on one core": [figure]}


def write_traces(directory: Path, events_min: int) -> tuple[Path, ...]:
    """Traces of a receiver and a sender with at least so many events together."""
    traces = _one_request()
    names = list(traces)
    steps = [(name, line) for name in names for line in traces[name].seen]
    steps.sort(key=lambda step: step[1].at_s)
    copies = -(-events_min // len(steps))
    files = {name: directory / f"{name[0]}-{name[1]}.jsonl" for name in names}
    opened = {name: path.open("w", encoding="utf-8") for name, path in files.items()}
    try:
        for name in names:
            opened[name].write(_line(traces[name].header))
        pieces = [(name, _pieces(line)) for name, line in steps]
        for at, step, copy in _interleaved(len(steps), copies):
            name, piece = pieces[step]
            opened[name].write(f'{{"line":"seen","at_s":{at / 1e5},"event":{_renumbered(piece, copy)}}}\n')
        for name in names:
            opened[name].write(_line(traces[name].ending))
    finally:
        for file in opened.values():
            file.close()
    return tuple(files.values())


def _one_request() -> dict[Name, Trace]:
    request = Request(tokens=22, room=ROOM)
    scenario = Scenario(pool=Pool(blocks=POOL_BLOCKS, block_tokens=1, grant_blocks_max=8), requests=(request,))
    trace = run_once(scenario, Seeded(1), machine="flat", record=True).trace
    assert trace is not None
    return split(world_events(trace), scenario)


def _interleaved(steps: int, copies: int) -> Iterator[tuple[int, int, int]]:
    """A running number, the step and the copy: each copy begins a little after the one before, and keeps its order."""
    stride = max(steps // IN_FLIGHT, 1)
    number = 0
    for wave in range((copies - 1) * stride + steps):
        first = max(0, -(-(wave - steps + 1) // stride))
        for copy in range(min(wave // stride, copies - 1), first - 1, -1):
            yield number, wave - copy * stride, copy
            number += 1


def _line(record: Any) -> str:
    return msgspec.json.encode(record).decode() + "\n"


def _pieces(line: Seen) -> list[str]:
    """An event as JSON, cut where a copy's own numbers go."""
    text = msgspec.json.encode(line.event).decode()
    text = text.replace(f'"epoch":[1,{COUNTER}]', '"epoch":[1,\0C]').replace(f'"room":{ROOM}', '"room":\0R')
    return _BLOCKS.sub(lambda blocks: re.sub(r"\[(\d+),", "[\0B\\1;,", blocks[0]), text).split("\0")


def _renumbered(pieces: list[str], copy: int) -> str:
    """The event of a copy; its blocks are those of no other copy that is in flight."""
    parts = [pieces[0]]
    for piece in pieces[1:]:
        kind, rest = piece[0], piece[1:]
        if kind == "B":
            block, _, rest = rest.partition(";")
            parts.append(str(int(block) + POOL_BLOCKS * (copy % (4 * IN_FLIGHT))))
        else:
            parts.append(str(copy + 1 if kind == "C" else copy + 100))
        parts.append(rest)
    return "".join(parts)
