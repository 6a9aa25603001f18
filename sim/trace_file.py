"""Traces on disk. What a trace is, and how its lines read, is said in ``fsm.trace``, which does no I/O."""

from __future__ import annotations

from pathlib import Path

from fsm.errors import LocalError
from fsm.trace import Trace, dump_trace, parse_trace_bytes


def write_trace(trace: Trace, path: Path) -> None:
    """Write a trace to a file."""
    path.write_text(dump_trace(trace), encoding="utf-8")


def read_trace(path: Path) -> Trace:
    """Read a trace file: JSON Lines, or a ring that a worker kept.

    Raises :class:`LocalError` naming the file, and the line if it is one line that is wrong.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise LocalError(f"{path}: cannot be read: {error}") from None
    return parse_trace_bytes(data, source=str(path))
