"""Where the events of a worker are written down: a trace file, a ring of the last ones, and dumps of failed requests.

Each event is encoded once, as a line of a trace (``fsm.trace``). The three have different uses:

- a *trace* is everything, and grows. Lines are handed to the operating system in bunches, or (``flush = "event"``)
  each at once, which a SIGKILL of this process cannot undo;
- a *ring* (``fsm.ring``) is a file of fixed size, mapped into memory: a line costs a copy, and the file holds the last
  ones whatever ends the process. What a process of before left there is kept beside it, as ``NAME.old``;
- a *dump* is what a ring holds at the end of the round in which a request failed, as a file of its own. Where there is
  no ring in a file, one in memory is kept for this.

None of them is synced to the disk, so none survives the end of the machine. Whatever the disk does, the worker goes
on, with a line in the log.
"""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path
from typing import Any, Final

import msgspec

from fsm.errors import LocalError
from fsm.events import AnyEvent
from fsm.messages import Epoch
from fsm.ring import RingWriter, read_ring
from fsm.trace import Seen, TraceEnding, TraceHeader
from gpu_backend.config import ObserveConfig

log = logging.getLogger(__name__)

FLUSH_BYTES: Final = 1 << 16
FLUSH_S: Final = 1.0

FAILURES_NAMED_MAX: Final = 8
"""So many of the requests that failed in one round are named in their dump."""

OLD: Final = ".old"
"""Behind the name of a ring that a process of before has left."""

_encode = msgspec.json.Encoder().encode


class TraceWriter:
    """Lines in a file. A disk that fails ends the trace, with a line in the log, and never the worker."""

    def __init__(self, path: str, header: TraceHeader, *, flush: str = "second") -> None:
        """``flush``: ``"second"`` or ``"event"``. Raises :class:`LocalError` if the file cannot be made."""
        self.path = path
        try:
            self._file: Any = open(path, "wb", buffering=0)  # noqa: SIM115 (closed by close())
        except OSError as error:
            raise LocalError(f"observe.trace: cannot write {path!r}: {error.strerror or error}") from None
        self._buffer: list[bytes] = []
        self._bytes = 0
        self._flush_bytes = 0 if flush == "event" else FLUSH_BYTES
        self._flushed_at = 0.0
        self.put(_encode(header))

    def put(self, line: bytes) -> None:
        """Add a line."""
        self._buffer += line, b"\n"
        self._bytes += len(line) + 1
        if self._bytes >= self._flush_bytes:
            self.flush()

    def tick(self, at_s: float) -> None:
        """Flush if it is time to."""
        if self._buffer and at_s - self._flushed_at >= FLUSH_S:
            self._flushed_at = at_s
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        data, self._buffer, self._bytes = b"".join(self._buffer), [], 0
        if self._file is None:
            return
        try:
            _write_all(self._file, data)
        except OSError as error:
            log.error("trace %s ends here: %s", self.path, error)
            self._file = None

    def close(self) -> None:
        """Flush and close; the second call does nothing."""
        if self._file is None:
            return
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None


def _write_all(file: Any, data: bytes) -> None:
    """An unbuffered file may take a part only."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def map_ring(path: str, size_bytes: int) -> tuple[str, mmap.mmap]:
    """A file of that size, mapped and zero, under a name of its own until it holds a ring; that name, and the memory.

    The space is taken now: a mapped file that finds the disk full kills its process. Raises :class:`LocalError`.
    """
    new = f"{path}.new"
    try:
        with open(new, "w+b", buffering=0) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size_bytes)
            else:
                _write_all(file, bytes(size_bytes))
            return new, mmap.mmap(file.fileno(), size_bytes)
    except OSError as error:
        raise LocalError(f"observe.ring: cannot make {path!r}: {error.strerror or error}") from None


def _into_place(new: str, path: str) -> None:
    """Give a new ring its name. What was there is what a process of before saw last."""
    try:
        if os.path.exists(path):
            os.replace(path, path + OLD)
        os.replace(new, path)
    except OSError as error:
        raise LocalError(f"observe.ring: cannot make {path!r}: {error.strerror or error}") from None


class Recorder:
    """Takes the events of a worker, and writes them down where it was told to.

    ``trace``, ``ring``: paths; ``dump_dir``: a directory, made if it is not there. Empty: not wanted.
    Raises :class:`LocalError`, naming the key, for what cannot be made.
    """

    def __init__(
        self,
        header: TraceHeader,
        *,
        trace: str = "",
        trace_flush: str = "second",
        ring: str = "",
        ring_kib: int = 1024,
        dump_dir: str = "",
        dumps_max: int = 16,
    ) -> None:
        self.header = header
        self.dump_dir = Path(dump_dir) if dump_dir else None
        self.dumps_max = dumps_max
        self.trace = TraceWriter(trace, header, flush=trace_flush) if trace else None
        self._memory: mmap.mmap | bytearray | None = None
        self._ring: RingWriter | None = None
        self._due: dict[str, TraceEnding] = {}
        self._told_full = False
        if self.dump_dir is not None:
            _make_directory(self.dump_dir)
        if ring or dump_dir:
            self._make_ring(ring, ring_kib << 10)

    def _make_ring(self, path: str, size_bytes: int) -> None:
        new, self._memory = map_ring(path, size_bytes) if path else ("", bytearray(size_bytes))
        try:
            self._ring = RingWriter(self._memory, _encode(self.header))
        except LocalError as error:
            raise LocalError(f"observe.ring_kib: {error}") from None
        if path:
            _into_place(new, path)

    def write(self, at_s: float, event: AnyEvent) -> None:
        """Add an event."""
        self._put(_encode(Seen(at_s, event)))

    def _put(self, line: bytes) -> None:
        if self.trace is not None:
            self.trace.put(line)
        if self._ring is not None:
            self._ring.put(line)

    def failed(self, what: str, epoch: Epoch | None, ending: TraceEnding) -> None:
        """Something failed that is to be dumped at the end of this round, under that name and epoch; where there is
        none, under the boot id of this process."""
        if self.dump_dir is not None:
            number = f"{epoch.boot_id}.{epoch.counter}" if epoch is not None else str(self.header.boot_id)
            self._due.setdefault(f"{what}-{number}", ending)

    def tick(self, at_s: float) -> None:
        """The end of a round: dump what failed in it, and flush if it is time to."""
        if self._due:
            self._dump_due()
        if self.trace is not None:
            self.trace.tick(at_s)

    def close(self, ending: TraceEnding) -> None:
        """Write the ending, dump what is due, and close; the second call does nothing."""
        if self._due:
            self._dump_due()
        self._put(_encode(ending))
        if self.trace is not None:
            self.trace.close()
            self.trace = None
        self._ring = None
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()
        self._memory = None

    # --- dumps ----------------------------------------------------------------------------------------

    def dump(self, path: str | os.PathLike[str], ending: TraceEnding | None = None) -> bool:
        """Write the last events to a file, as a trace. Returns whether that went well; if not, the log says why.

        Raises :class:`LocalError` if no events are kept.
        """
        if self._memory is None:
            raise LocalError("dump: no events are kept; expected observe.ring or observe.dump_dir, and an open worker")
        try:
            _replace(Path(path), self._held(ending or TraceEnding(text="dumped when asked for; the worker went on")))
        except OSError as error:
            log.error("%s: events could not be dumped to %s: %s", self._name, path, error)
            return False
        return True

    def _held(self, ending: TraceEnding) -> bytes:
        """The bytes of a trace of what is kept."""
        assert self._memory is not None
        ring = read_ring(bytes(self._memory))
        header = msgspec.structs.replace(self.header, dropped=ring.dropped)
        return b"\n".join((_encode(header), *ring.lines, _encode(ending), b""))

    def _dump_due(self) -> None:
        """One file for all that failed in a round: they have the same last events."""
        due, self._due = self._due, {}
        assert self.dump_dir is not None
        try:
            path = self.dump_dir / f"{self._name}-{next(iter(due))}.jsonl"
            if not path.exists() and self._dumps() >= self.dumps_max:
                self._tell_full()
                return
        except OSError as error:
            log.error("%s: %s cannot be read, nothing is dumped: %s", self._name, self.dump_dir, error)
            return
        first = next((ending for ending in due.values() if ending.property), next(iter(due.values())))
        texts = [ending.text for ending in due.values()]
        if len(texts) > FAILURES_NAMED_MAX:
            texts[FAILURES_NAMED_MAX:] = [f"and {len(texts) - FAILURES_NAMED_MAX} more"]
        if self.dump(path, TraceEnding(first.property, "; ".join(texts))):
            log.error("%s: %s: the events before it are in %s", self._name, texts[0], path)

    def _dumps(self) -> int:
        """How many dumps of this worker there are, those of processes before included."""
        assert self.dump_dir is not None
        prefix = f"{self._name}-"
        with os.scandir(self.dump_dir) as found:
            return sum(entry.name.startswith(prefix) and entry.name.endswith(".jsonl") for entry in found)

    def _tell_full(self) -> None:
        if not self._told_full:
            self._told_full = True
            log.warning(
                "%s: %s holds %d dumps of it (observe.dumps_max); no more are made until some are taken away",
                self._name, self.dump_dir, self.dumps_max,
            )  # fmt: skip

    @property
    def _name(self) -> str:
        return f"{self.header.side}-{self.header.rank}"


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(f"observe.dump_dir: cannot make {str(path)!r}: {error.strerror or error}") from None


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever finds half of it under its name."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    os.replace(new, path)


def make_recorder(options: ObserveConfig, header: TraceHeader) -> Recorder | None:
    """What a configuration asks for; ``None`` if it asks for nothing. Raises as :class:`Recorder` does."""
    if not (options.trace or options.ring or options.dump_dir):
        return None
    return Recorder(
        header, trace=options.trace, trace_flush=options.trace_flush, ring=options.ring, ring_kib=options.ring_kib,
        dump_dir=options.dump_dir, dumps_max=options.dumps_max,
    )  # fmt: skip


__all__ = ["Recorder", "TraceWriter", "make_recorder", "map_ring"]
