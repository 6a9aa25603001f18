"""What is known of one epoch while a trace is read: where each side's lifecycle stands, and what it may do next.

A :class:`ReceiverLane` and a :class:`SenderLane` hold numbers only. What follows from them is not written down here
once more: whether a row may be taken is asked of the lifecycle tables (:func:`target_of`), with facts that the
functions of :mod:`fsm.kernel` compute; what a grant or a STATUS may say, of the same functions.

A lane whose beginning is not in the trace has ``whole`` = False, and ``UNKNOWN`` in every number that nothing has told
yet. Such a number is learned from the first event that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fsm import kernel
from fsm.errors import LocalError
from fsm.kernel import INT, UNKNOWN
from fsm.lifecycle import RECEIVER_TABLE, SENDER_TABLE, ReceiverFacts, SenderFacts
from fsm.states import TERMINAL, State
from fsm.table import REFUSE, Table

TABLES: dict[str, Table] = {"receiver": RECEIVER_TABLE, "sender": SENDER_TABLE}

_STATE_NUMBER: dict[str, int] = {state: number for number, state in enumerate(State)}

_targets: dict[tuple[str, str, str, Any], str] = {}


def target_of(side: str, state: str, cause: str, facts: Any) -> str:
    """Where the table's event leads from a state under these facts; empty if no row of that side's table is taken."""
    key = (side, state, cause, facts)
    found = _targets.get(key)
    if found is None:
        try:
            found = str(TABLES[side].next(state, cause, facts).target)
        except LocalError:  # no row, a row to refuse, or no such state
            found = ""
        _targets[key] = found
    return found


def rows_to(side: str, state: str) -> tuple[tuple[str, str, str], ...]:
    """The fewest rows (state, event, next state) that lead from the beginning of a table to a state."""
    table = TABLES[side]
    ways: dict[str, tuple[tuple[str, str, str], ...]] = {str(table.initial): ()}
    queue = [str(table.initial)]
    for source in queue:
        for row in table.rows[State(source)]:
            if row.target is not REFUSE and str(row.target) not in ways:
                ways[str(row.target)] = (*ways[source], (source, row.event, str(row.target)))
                queue.append(str(row.target))
    return ways[state]


class Lane:
    """What both sides know of an epoch. ``state`` is empty where the trace has not said it yet; ``row`` is the event of
    a row that was taken and has yet to be followed by what it is for; ``heard`` are kinds of messages that came."""

    __slots__ = ("finished", "heard", "row", "state", "total", "whole")

    side = ""

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.state: str = str(State.BOOTSTRAPPING) if whole else ""
        self.row = ""
        self.total: int = UNKNOWN
        self.finished = False
        self.heard = 0

    @property
    def live(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return self.state not in TERMINAL

    def facts(self, cause: str, target: str) -> Any:
        """What the table's guards are asked about, for an event that is said to lead to ``target``; what is not known
        is not held against it."""
        raise NotImplementedError

    def begin(self) -> None:
        """The lane is seen at its beginning after all."""
        self.whole = True
        self.state = str(State.BOOTSTRAPPING)

    def known(self) -> str:
        """The numbers, in words."""
        raise NotImplementedError


class ReceiverLane(Lane):
    """One epoch on one receiver rank. ``seq``, ``start``, ``capacity`` are those of the newest grant, ``open`` while
    it is not closed; ``word`` is what a STATUS said that closes it. ``chunks`` are those that landed and were not
    delivered: seq -> (start, tokens). ``wrote`` is the last grant whose bytes came, ``boots`` are the sender processes
    that acknowledged its REGISTER."""

    __slots__ = (
        "boots", "capacity", "chunks", "delivered", "handled", "last_resume_at", "open", "seq", "start", "unsent",
        "watermark", "word", "wrote",
    )  # fmt: skip

    side = "receiver"

    def __init__(self, *, whole: bool) -> None:
        super().__init__(whole=whole)
        zero = 0 if whole else UNKNOWN
        self.seq: int = UNKNOWN
        self.start: int = UNKNOWN
        self.capacity: int = UNKNOWN
        self.open = False
        self.unsent = False
        self.word: int = UNKNOWN
        self.wrote: int = UNKNOWN
        self.watermark: int = zero
        self.handled: int = zero
        self.last_resume_at: int = zero
        self.delivered: int = zero
        self.chunks: dict[int, tuple[int, int]] = {}
        self.boots: tuple[int, ...] = ()

    def begin(self) -> None:
        super().begin()
        self.watermark = self.handled = self.last_resume_at = self.delivered = 0

    def facts(self, cause: str, target: str) -> ReceiverFacts:
        """R2, and what landed and was delivered, in the kernel's words."""
        holds, of = _ASKED.get(cause, _NOT_ASKED)
        return of if holds is not None and holds(self) else _NO_FACTS

    def resume_due(self) -> bool:
        """R2: a continuation may be asked for."""
        if self.handled == UNKNOWN or self.last_resume_at == UNKNOWN:
            return True
        total = self.total if self.total != UNKNOWN else self.handled + 1
        return bool(kernel.resume_due(self.handled, self.last_resume_at, total))

    def chunk_due(self) -> bool:
        """R1: more has landed than was taken."""
        if self.watermark == UNKNOWN or self.handled == UNKNOWN:
            return True
        step = kernel.verdict(
            INT, _STATE_NUMBER[self.state], True, True, 0, UNKNOWN, self.watermark, self.handled, 0, False
        )
        return bool(step == kernel.CHUNK)

    def partial(self) -> bool:
        """A chunk has landed, and tokens are missing."""
        return self.chunk_due() and (self.total == UNKNOWN or self.watermark < self.total)

    def all_delivered(self) -> bool:
        """Every token is in the result."""
        return UNKNOWN in (self.total, self.delivered) or self.delivered == self.total

    def first_grant_due(self) -> bool:
        """R6: whether the lane may ask for blocks for its first grant; how much, it may know or have been told
        early."""
        early = 1
        return bool(kernel.wants_blocks(kernel.WAITING, self.seq + 1, self.total, early, False))

    def holds(self, seq: int, token: int) -> bool:
        """Whether the block of a grant that begins ``token`` tokens behind its start is in use while the lane lives: it
        may be written, or has landed and is to be copied out. What becomes of it after that is not told."""
        return (self.open and self.seq == seq) or token < self.chunks.get(seq, (0, 0))[1]

    def committed_by(self, total: int) -> int:
        """R3: the one watermark that may close the open grant."""
        closed: int = kernel.committed_after(INT, self.start, self.capacity, total)
        return closed

    def known(self) -> str:
        """The numbers, in words."""
        parts = [_number("total", self.total), _number("watermark", self.watermark)]
        if self.seq != UNKNOWN:
            end = f"[{self.start}, {self.start + self.capacity})" if self.capacity != UNKNOWN else "of unknown size"
            parts.append(f"grant seq {self.seq} {end} {'out' if self.open else 'closed'}")
        else:
            parts.append("no grant")
        if self.last_resume_at > 0:
            parts.append(f"resumed last at {self.last_resume_at}")
        parts.append(_number("delivered", self.delivered))
        return ", ".join(parts)


_NO_FACTS = ReceiverFacts()
_NOT_ASKED: tuple[Callable[[ReceiverLane], bool] | None, ReceiverFacts] = (None, _NO_FACTS)
_ASKED: dict[str, tuple[Callable[[ReceiverLane], bool] | None, ReceiverFacts]] = {
    "resume": (ReceiverLane.resume_due, ReceiverFacts(resume_due=True)),
    "landed": (ReceiverLane.partial, ReceiverFacts(partial=True)),
    "complete": (ReceiverLane.all_delivered, ReceiverFacts(delivered=True)),
}
"""For an event of the receiver's table: the question that its guard asks, and the facts if the answer is yes."""

_NOT_LAST, _LAST = SenderFacts(), SenderFacts(last_chunk=True)


class SenderLane(Lane):
    """One epoch's lane on a sender. ``grants`` are those that came and may be executed: seq -> (start, capacity);
    ``executed`` is the last seq whose write began, ``end`` where it ends; ``status`` the last STATUS that was sent."""

    __slots__ = ("boot_id", "committed", "end", "executed", "grants", "offered", "start", "status")

    side = "sender"

    def __init__(self, *, whole: bool) -> None:
        super().__init__(whole=whole)
        self.grants: dict[int, tuple[int, int]] = {}
        self.executed: int = UNKNOWN
        self.start: int = UNKNOWN
        self.end: int = UNKNOWN
        self.committed: int = 0 if whole else UNKNOWN
        self.status: tuple[int, int] | None = None
        self.boot_id = 0
        self.offered = False

    def begin(self) -> None:
        super().begin()
        self.committed = 0

    def facts(self, cause: str, target: str) -> SenderFacts:
        """Whether what is committed now is all."""
        if cause != "committed":
            return _NOT_LAST
        if UNKNOWN in (self.end, self.total):
            return _LAST if target == State.SUCCESS else _NOT_LAST
        return _LAST if self.end == self.total else _NOT_LAST

    def is_next(self, seq: int) -> bool:
        """R3: whether a grant is the next one."""
        if not self.whole and self.executed == UNKNOWN:
            return True
        return bool(kernel.grant_kind(INT, seq, self.executed, UNKNOWN) == kernel.NEXT)

    def known(self) -> str:
        """The numbers, in words."""
        parts = [_number("total", self.total), _number("committed", self.committed)]
        parts.append(f"executed seq {self.executed}" if self.executed != UNKNOWN else "nothing executed")
        if self.grants:
            parts.append("grants taken in: seq " + " ".join(map(str, self.grants)))
        return ", ".join(parts)


def _number(name: str, value: int) -> str:
    return f"{name} {'not told' if value == UNKNOWN else value}"


__all__ = ["TABLES", "Lane", "ReceiverLane", "SenderLane", "rows_to", "target_of"]
