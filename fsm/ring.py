"""A ring of the last lines of a trace, in a fixed piece of memory that may be read after its writer was killed.

A process that must not fill a disk keeps the last events only. Where the memory is a mapped file, it outlives the
process, whatever ended it; and then the writer may have been stopped in the middle of a record, at any byte.

**Layout.** All numbers are little-endian. First ``MAGIC``, the length and the CRC-32 of the header line, and that line.
Then records, each at a multiple of 8 bytes:

======  =======================================================================================
bytes   what
======  =======================================================================================
4       length of the line
4       CRC-32 of the next 8 bytes and the line
8       number of the record, counted from 1; none is ever used twice
length  the line, without a line end
======  =======================================================================================

A record is never split. One that does not fit before the end of the memory goes to the beginning, over the oldest.
So that the newest whole record is never among those that are written over, no record takes more than a third of the
room. A line that is longer leaves a record of length 0, and everything before it is given up: what a ring holds has no
gap.

**Why there is no pointer to the newest record.** It would be a second write, and a kill between the two, or within
one, would leave a pointer that lies. What is whole says so itself, by its CRC; what was being written, and what was
partly written over, does not. The records that are whole are numbered without a gap up to the newest one, but for
remains of earlier turns at the end of the memory, behind a gap. So a reader takes the last numbers without a gap. No
line can hold what looks like a record: JSON has no bytes below 32, and a length has.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple, Protocol

from fsm.errors import LocalError

MAGIC: Final = b"resumark ring 1\n"

_HEAD: Final = struct.Struct("<II")
_RECORD: Final = struct.Struct("<IIQ")
_NUMBER: Final = struct.Struct("<Q")
_LENGTH_MAX: Final = (1 << 24) - 1
"""So that the last byte of a length is 0, as it is nowhere in a line."""

LINES_BYTES_MIN: Final = 4096
"""A ring has room for records of so many bytes at least, beside its header line."""


class Memory(Protocol):
    """Bytes that can be changed in place: a ``bytearray``, or a mapped file."""

    def __len__(self) -> int: ...

    def __setitem__(self, where: slice, data: bytes, /) -> None: ...


class RingWriter:
    """Writes lines into a ring. ``memory`` is all of it, and zero at first; ``header`` is the trace's header line.

    Raises :class:`LocalError` if the memory is too small.
    """

    def __init__(self, memory: Memory, header: bytes) -> None:
        head = MAGIC + _HEAD.pack(len(header), zlib.crc32(header)) + header
        self._begin = _aligned(len(head))
        self._end = len(memory)
        if self._end - self._begin < LINES_BYTES_MIN:
            needed = self._begin + LINES_BYTES_MIN
            raise LocalError(f"a ring of {self._end} bytes: expected at least {needed}, for this header")
        self._line_max = min(_LENGTH_MAX, (self._end - self._begin) // 3 - _RECORD.size - 8)
        self._memory = memory
        self._at = self._begin
        self.written = 0
        """So many lines were written, those included that were written over."""
        memory[0 : len(head)] = head

    def put(self, line: bytes) -> None:
        """Write a line (JSON, without a line end) over the oldest ones. One that is too long empties the ring."""
        if len(line) > self._line_max:
            line = b""
        self.written += 1
        body = _NUMBER.pack(self.written) + line
        record = _HEAD.pack(len(line), zlib.crc32(body)) + body
        end = self._at + len(record)
        if end > self._end:
            end = self._begin + len(record)
        self._memory[end - len(record) : end] = record
        self._at = _aligned(end)


class Ring(NamedTuple):
    """What a ring holds: the header line, how many lines were ``dropped`` before the first, and the last ones."""

    header: bytes
    dropped: int
    lines: tuple[bytes, ...]


def is_ring(data: bytes) -> bool:
    """Whether these are the bytes of a ring, and not of a trace in JSON Lines."""
    return data.startswith(MAGIC)


def read_ring(data: bytes, *, source: str = "<ring>") -> Ring:
    """The last lines without a gap, in order.

    Raises :class:`LocalError` for what is no ring, or has no whole header.
    """
    if not is_ring(data):
        raise LocalError(f"{source}: no ring of a trace: expected it to begin with {MAGIC!r}")
    at = len(MAGIC) + _HEAD.size
    length, crc = _HEAD.unpack_from(data, len(MAGIC)) if len(data) >= at else (0, 0)
    header = data[at : at + length]
    if len(header) < length or not header or zlib.crc32(header) != crc:
        raise LocalError(f"{source}: a ring whose header is not whole; expected the file of a worker, uncut")
    whole = _whole_records(data, _aligned(at + length))
    newest = max(whole, default=0)
    lines: list[bytes] = []
    number = newest
    while whole.get(number):
        lines.append(whole[number])
        number -= 1
    return Ring(header, number, tuple(reversed(lines)))


def _whole_records(data: bytes, at: int) -> dict[int, bytes]:
    """Every record whose CRC is right, by its number."""
    whole: dict[int, bytes] = {}
    last = len(data) - _RECORD.size
    while at <= last:
        length, crc, number = _RECORD.unpack_from(data, at)
        end = at + _RECORD.size + length
        if number and end <= len(data):
            line = data[end - length : end]
            if zlib.crc32(data[at + _HEAD.size : end]) == crc:
                whole[number] = line
                at = _aligned(end)
                continue
        at += 8
    return whole


def _aligned(at: int) -> int:
    return (at + 7) & ~7


__all__ = ["MAGIC", "Ring", "RingWriter", "is_ring", "read_ring"]
