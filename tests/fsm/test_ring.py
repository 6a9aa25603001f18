"""A ring of the last lines of a trace: whole lines, without a gap, up to the newest, wherever its writer was killed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from fsm.events import Note
from fsm.ring import LINES_BYTES_MIN, MAGIC, RingWriter, is_ring, read_ring
from fsm.trace import (
    TRACE_VERSION,
    WORKER,
    Seen,
    TraceEnding,
    TraceHeader,
    dump_line,
    parse_trace_bytes,
)

HEADER = dump_line(TraceHeader(TRACE_VERSION, WORKER, {"rank": 0}, side="sender", rank=0, boot_id=7)).encode().strip()
ROOM_BYTES = LINES_BYTES_MIN + 512
LINE_MAX = ROOM_BYTES // 3 - 256
"""Shorter than the longest that such a ring takes."""


class Killed(Exception):
    """The writer is no more."""


class Mortal(bytearray):
    """Memory whose writer is killed in the middle of an update: ``hits`` bytes of it, in any places, got there."""

    updates_left = -1
    hits: tuple[bool, ...] = ()

    def __setitem__(self, where: Any, data: Any) -> None:
        if self.updates_left == 0:
            for offset, (byte, hit) in enumerate(zip(data, self.hits, strict=False)):
                if hit:
                    super().__setitem__(where.start + offset, byte)
            raise Killed
        self.updates_left -= 1
        super().__setitem__(where, data)


SIZE_BYTES = len(MAGIC) + 8 + len(HEADER) + 8 + ROOM_BYTES


def memory_for() -> Mortal:
    return Mortal(SIZE_BYTES)


def text(number: int, length: int) -> bytes:
    """A line that says which one it is."""
    return f'{{"{number}":"{"x" * length}"}}'.encode()


LENGTHS = st.lists(st.integers(0, LINE_MAX - 32) | st.integers(0, 200), max_size=60)


def suffix_held(memory: Mortal, lines: list[bytes], *, newest_may_lack: bool = False) -> tuple[bytes, ...]:
    """What the ring holds, which must be the last of these lines, and say how many went before. The newest may be
    missing where it was not written whole, and may be there where the bytes that it lacked happened to be right."""
    assert len(memory) == SIZE_BYTES
    ring = read_ring(bytes(memory))
    assert ring.header == HEADER
    end = ring.dropped + len(ring.lines)
    assert list(ring.lines) == lines[ring.dropped : end]
    assert len(lines) - newest_may_lack <= end <= len(lines)
    return ring.lines


@given(LENGTHS)
def test_a_ring_holds_the_last_lines_and_as_many_as_there_is_room_for(lengths: list[int]) -> None:
    """Whatever their lengths; and not fewer than fit with a third of the room left over."""
    memory = memory_for()
    ring = RingWriter(memory, HEADER)
    lines = [text(number, length) for number, length in enumerate(lengths)]
    for line in lines:
        ring.put(line)
    held = suffix_held(memory, lines)
    fitting, taken = 0, 0
    for line in reversed(lines):
        taken += len(line) + 24
        if taken > LINES_BYTES_MIN // 3:
            break
        fitting += 1
    assert len(held) >= fitting
    assert ring.written == len(lines)


@given(LENGTHS.filter(bool), st.data())
def test_a_kill_at_any_byte_costs_the_line_that_was_being_written_and_no_whole_newer_one(
    lengths: list[int], data: st.DataObject
) -> None:
    """Any part of the update may have got there: memory is not copied in an order that anybody promises."""
    lines = [text(number, length) for number, length in enumerate(lengths)]
    at = data.draw(st.integers(0, len(lines) - 1), label="killed while writing line")
    size = len(lines[at]) + 16
    cut = data.draw(st.integers(0, size), label="bytes that got there")
    prefix = data.draw(st.booleans(), label="in order")
    memory = memory_for()
    ring = RingWriter(memory, HEADER)
    memory.updates_left = at
    gets = [index < cut for index in range(size)]
    memory.hits = tuple(gets if prefix else data.draw(st.permutations(gets)))
    with pytest.raises(Killed):
        for line in lines:
            ring.put(line)
    held = suffix_held(memory, lines[: at + 1], newest_may_lack=cut < size)
    assert held or at == 0


@pytest.mark.parametrize("count", [40, 41, 42, 43])
def test_every_cut_of_one_update_that_writes_over_older_lines(count: int) -> None:
    """The case that matters most, at each byte: all that it did not write over is still found."""
    lines = [text(number, 290 + 8 * (number * number % 3)) for number in range(count)]
    size = len(lines[-1]) + 16
    for cut in range(size + 1):
        memory = memory_for()
        ring = RingWriter(memory, HEADER)
        memory.updates_left, memory.hits = len(lines) - 1, (True,) * cut
        with pytest.raises(Killed):
            for line in lines:
                ring.put(line)
        assert len(suffix_held(memory, lines, newest_may_lack=cut < size)) >= 13


def test_a_line_that_ends_at_the_end_of_the_memory_or_just_behind_it() -> None:
    """It is written there, or at the beginning; never beyond, and never in two parts."""
    for length in range(200, 350):
        memory = memory_for()
        ring = RingWriter(memory, HEADER)
        lines = [text(number, 1400) for number in range(3)] + [text(3, length)]
        for line in lines:
            ring.put(line)
        assert len(suffix_held(memory, lines)) >= 3


@pytest.mark.parametrize("length", [LINE_MAX + 280, 2 * ROOM_BYTES])
def test_a_line_that_is_too_long_gives_up_what_went_before(length: int) -> None:
    """A trace with a hole in it would be judged as if nothing had happened there. Longer than a third of the room is
    too long: while it is written, the newest line before it might be lost with it."""
    memory = memory_for()
    ring = RingWriter(memory, HEADER)
    lines = [text(0, 10), text(1, length), text(2, 10)]
    ring.put(lines[0])
    ring.put(lines[1])
    assert read_ring(bytes(memory)).lines == () and read_ring(bytes(memory)).dropped == 2
    ring.put(lines[2])
    assert suffix_held(memory, lines) == (lines[2],)


def test_remains_of_an_earlier_turn_are_not_taken_for_news() -> None:
    """Lines at the end of the memory that a turn did not reach stay there, whole, with the numbers that they had."""
    memory = memory_for()
    ring = RingWriter(memory, HEADER)
    lines = [text(number, 40) for number in range(70)]
    for number in range(70, 200):
        lines.append(text(number, LINE_MAX - 64))
    for line in lines:
        ring.put(line)
    assert 2 <= len(suffix_held(memory, lines)) <= 3
    assert text(69, 40) not in read_ring(bytes(memory)).lines


def test_an_empty_ring() -> None:
    memory = memory_for()
    RingWriter(memory, HEADER)
    assert suffix_held(memory, []) == ()


def test_a_ring_is_read_as_the_trace_that_it_is() -> None:
    """Events in order, the number of those that went before in the header, and the ending if there is one."""
    memory = memory_for()
    ring = RingWriter(memory, HEADER)
    seen = [Seen(float(number), Note("n", "x" * 100 + str(number))) for number in range(100)]
    for line in seen:
        ring.put(dump_line(line).encode().strip())
    trace = parse_trace_bytes(bytes(memory))
    assert 10 < len(trace.seen) < 100
    assert list(trace.seen) == seen[-len(trace.seen) :]
    assert trace.header.dropped == 100 - len(trace.seen)
    assert (trace.header.side, trace.header.boot_id, trace.ending) == ("sender", 7, TraceEnding())
    ring.put(dump_line(TraceEnding("I1", "here")).encode().strip())
    assert parse_trace_bytes(bytes(memory)).ending == TraceEnding("I1", "here")


def test_json_lines_are_recognised_as_such() -> None:
    whole = HEADER + b"\n" + dump_line(Seen(0.5, Note("a", "b"))).encode()
    assert not is_ring(whole)
    assert parse_trace_bytes(whole).seen == (Seen(0.5, Note("a", "b")),)
    with pytest.raises(LocalError, match=r"^x: cannot be read: .*; expected JSON Lines in UTF-8, or a ring"):
        parse_trace_bytes(b"\xff", source="x")


@given(st.integers(0, 200))
def test_a_ring_that_was_cut_in_its_header_is_refused(length: int) -> None:
    memory = memory_for()
    RingWriter(memory, HEADER)
    begin = len(MAGIC) + 8 + len(HEADER)
    cut = bytes(memory[: min(length, begin - 1)])
    with pytest.raises(LocalError, match=r"^f: (no ring of a trace|a ring whose header is not whole)"):
        read_ring(cut, source="f")


def test_a_ring_that_was_cut_or_spoilt_behind_its_header_keeps_the_rest() -> None:
    """A file that was copied half, or while it was written: what is whole counts, as far as it has no gap."""
    memory = memory_for()
    ring = RingWriter(memory, HEADER)
    lines = [text(number, 50) for number in range(10)]
    for line in lines:
        ring.put(line)
    ended = bytes(memory).index(text(9, 50)) + 5
    assert list(read_ring(bytes(memory)[:ended]).lines) == lines[:9]
    spoilt = bytearray(memory)
    spoilt[bytes(memory).index(text(4, 50)) + 3] ^= 1
    assert list(read_ring(bytes(spoilt)).lines) == lines[5:]


def test_memory_that_is_too_small_is_refused() -> None:
    with pytest.raises(LocalError, match=r"a ring of 100 bytes: expected at least \d+, for this header"):
        RingWriter(bytearray(100), HEADER)
