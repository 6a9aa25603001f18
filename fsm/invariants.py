"""One checker for each safety property, over a stream of events.

A checker keeps what it must remember, and nothing else; ``save`` gives that memory in a hashable form, so
that an exhaustive search can tell states apart that differ only in what a checker has seen. The liveness
properties L1 and L2 are not here: they speak of where a run can get to, which an engine knows and an event
stream does not (the part of L1 that a stream can show, a deadline that fires though nothing was disturbed, is
here).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from fsm.events import (
    Audited,
    Decided,
    Delivered,
    Executed,
    Finished,
    Granted,
    LedgerRefused,
    Overtaken,
    Progressed,
    Repeated,
    Restarted,
    StateChanged,
    Wrote,
)  # fmt: skip
from fsm.messages import Epoch
from fsm.states import TERMINAL, State

PROPERTIES: dict[str, str] = {
    "I1": "bytes land only in blocks that are open to their grant: granted to it, or in quarantine because of it",
    "I2": "a request that succeeds was delivered whole, each token once, and equal to its source",
    "I3": "every block is free or has exactly one owner; none is lost, none counted twice",
    "I4": "what has ended stays ended, within an epoch",
    "I5": "the watermark never falls, and never runs ahead of the bytes in memory",
    "I6": "a receiver grants a start under one seq only, and a sender executes a seq once",
    "I7": "in one tick all ranks decide alike",
    "I8": "a message that comes twice does nothing the second time",
    "L1": "every request ends; undisturbed, it ends in Success",
    "L2": "when all is over, every block is free and nothing but tombstones remains",
    "L3": "no newcomer gets its first grant while somebody with data waits for blocks that are there",
}
"""Every property by name, in words."""

SAFETY = ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8")
LIVENESS = ("L1", "L2", "L3")

Key = tuple[int, int, Epoch]
"""(receiver rank, room, epoch)"""


class Violation(NamedTuple):
    """A property that did not hold, and how."""

    property: str
    text: str


Verdict = Violation | None


class Checker:
    """The root: a property's name, the events it reads, its memory."""

    name: str = ""

    def __init__(self) -> None:
        self.memory: dict[Any, Any] = {}

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        """Event type -> what to do with it."""
        raise NotImplementedError

    def save(self) -> Hashable:
        """The memory, hashable and in a fixed order."""
        return tuple(sorted(self.memory.items()))

    def load(self, saved: Any) -> None:
        """Take on a memory that ``save`` gave."""
        self.memory = dict(saved)

    def broken(self, text: str) -> Violation:
        """This property does not hold."""
        return Violation(self.name, text)


class WritesAreOpen(Checker):
    """I1. A world or a pool says of each write which block was not open to it."""

    name = "I1"

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        return {Wrote: self._wrote}

    def _wrote(self, event: Wrote) -> Verdict:
        return self.broken(event.trespass) if event.trespass else None


class DeliveredEqualsSource(Checker):
    """I2. Remembers the ranges delivered so far, joined where they touch, and the first thing that was wrong.

    Copies may end in any order; what counts is that no token comes twice and that none is missing in the end.
    """

    name = "I2"

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        return {Delivered: self._delivered, Finished: self._finished}

    def _delivered(self, event: Delivered) -> Verdict:
        key = (event.receiver_rank, event.room, event.epoch)
        ranges, wrong = self.memory.get(key, ((), ""))
        low, high = event.start, event.start + event.count
        for begin, end in ranges:
            if begin < high and low < end and not wrong:
                wrong = f"tokens [{low}, {high}) were delivered though [{begin}, {end}) had been"
        joined: list[tuple[int, int]] = []
        for begin, end in sorted((*ranges, (low, high))):
            if joined and begin <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((begin, end))
        self.memory[key] = (tuple(joined), wrong or event.wrong)
        return None

    def _finished(self, event: Finished) -> Verdict:
        if event.side != "receiver" or event.epoch is None:
            return None
        ranges, wrong = self.memory.pop((event.receiver_rank, event.room, event.epoch), ((), ""))
        if event.state != State.SUCCESS:
            return None
        if wrong:
            return self.broken(f"{_where(event)} ended in Success with wrong content: {wrong}")
        if ranges != ((0, event.total_tokens),):
            had = " ".join(f"[{begin}, {end})" for begin, end in ranges) or "nothing"
            return self.broken(f"{_where(event)} ended in Success with {had} of [0, {event.total_tokens})")
        return None


class BlocksHaveOneOwner(Checker):
    """I3, by the ledger's audit."""

    name = "I3"

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        return {Audited: self._audited}

    def _audited(self, event: Audited) -> Verdict:
        return self.broken(event.text)


class TerminalAbsorbs(Checker):
    """I4. Remembers every epoch's terminal state; that of a sender as long as its process, for an epoch is the
    receiver's and outlives it."""

    name = "I4"

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        return {StateChanged: self._changed, Restarted: self._restarted}

    def _restarted(self, event: Restarted) -> Verdict:
        for key in tuple(self.memory):
            if key[0] == "sender" and key[1] in event.receiver_ranks:
                del self.memory[key]
        return None

    def _changed(self, event: StateChanged) -> Verdict:
        if event.epoch is None:
            return None
        key = (event.side, event.receiver_rank, event.room, event.epoch)
        before = self.memory.get(key)
        if before is not None:
            epoch = f"room {event.room} epoch {event.epoch.counter}"
            return self.broken(f"{epoch} had ended in {before} and is now {event.target}")
        if event.target in TERMINAL:
            self.memory[key] = event.target
        return None


class WatermarkBehindBytes(Checker):
    """I5. Remembers, per rank and epoch, the watermark and the contiguous bytes that arrived."""

    name = "I5"

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        return {Wrote: self._wrote, Progressed: self._progressed, Finished: self._finished}

    def _wrote(self, event: Wrote) -> Verdict:
        key = (event.receiver_rank, event.room, event.epoch)
        watermark, arrived = self.memory.get(key, (0, 0))
        if event.start <= arrived:
            self.memory[key] = (watermark, max(arrived, event.start + event.count))
        return None

    def _progressed(self, event: Progressed) -> Verdict:
        key = (event.receiver_rank, event.room, event.epoch)
        watermark, arrived = self.memory.get(key, (0, 0))
        if event.tokens < watermark:
            return self.broken(f"{_where(event)}: the watermark fell from {watermark} to {event.tokens}")
        if event.tokens > arrived:
            landed = f"{arrived} tokens have landed"
            return self.broken(f"{_where(event)}: the watermark is {event.tokens}, {landed}")
        self.memory[key] = (event.tokens, arrived)
        return None

    def _finished(self, event: Finished) -> Verdict:
        if event.side == "receiver" and event.epoch is not None:
            self.memory.pop((event.receiver_rank, event.room, event.epoch), None)
        return None


class OnceEach(Checker):
    """I6. Remembers, per rank and epoch, which starts were granted under which seq and which seqs were
    executed."""

    name = "I6"

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        return {Granted: self._granted, Executed: self._executed}

    def _granted(self, event: Granted) -> Verdict:
        key = ("granted", event.receiver_rank, event.room, event.epoch)
        grants = self.memory.get(key, ())
        for seq, start in grants:
            if start == event.start and seq != event.seq:
                seqs = f"as seq {seq} and again as seq {event.seq}"
                return self.broken(f"{_where(event)}: start {start} was granted {seqs}")
        self.memory[key] = (*grants, (event.seq, event.start))
        return None

    def _executed(self, event: Executed) -> Verdict:
        key = ("executed", event.receiver_rank, event.room, event.epoch)
        last = self.memory.get(key, -1)
        if event.seq <= last:
            return self.broken(f"{_where(event)}: seq {event.seq} was executed twice")
        self.memory[key] = event.seq
        return None


class RanksAgree(Checker):
    """I7. Compares what the ranks decided in one collective tick; remembers it until the last rank has
    decided."""

    name = "I7"

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        return {Decided: self._decided}

    def _decided(self, event: Decided) -> Verdict:
        known = self.memory.pop("open", None)
        if event.ranks == 0:
            return None  # the collective was lost with a rank: whoever had left it decided alone
        rank, decisions, seen = known or (event.receiver_rank, event.decisions, 0)
        if decisions != event.decisions:
            other = f"rank {event.receiver_rank} {event.decisions}"
            return self.broken(f"rank {rank} decided {decisions}, {other}")
        if seen + 1 < event.ranks:
            self.memory["open"] = (rank, decisions, seen + 1)
        return None


class DuplicatesDoNothing(Checker):
    """I8. A world that delivers a duplicate says what it changed."""

    name = "I8"

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        return {Repeated: self._repeated}

    def _repeated(self, event: Repeated) -> Verdict:
        if not event.changed:
            return None
        return self.broken(f"{event.message} to the {event.target}: {event.changed}")


class DeadlinesRest(Checker):
    """The part of L1 that a stream shows: in an undisturbed run no deadline fires and everything succeeds."""

    name = "L1"

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        return {Finished: self._finished}

    def _finished(self, event: Finished) -> Verdict:
        if event.undisturbed and event.state != State.SUCCESS:
            return self.broken(
                f"room {event.room} failed on the {event.side} (rank {event.receiver_rank}): {event.reason}, "
                "though nothing was lost, crashed, cut off or aborted"
            )
        return None


class DataFirst(Checker):
    """L3. A receiver says when a newcomer passed somebody who waits with data."""

    name = "L3"

    def handlers(self) -> dict[type[Any], Callable[[Any], Verdict]]:
        return {Overtaken: self._overtaken}

    def _overtaken(self, event: Overtaken) -> Verdict:
        waiting = f"rooms {list(event.waiting)} held data and waited for blocks"
        return self.broken(f"room {event.room} got grant 0 while {waiting}")


def _where(event: Any) -> str:
    return f"room {event.room} rank {event.receiver_rank}"


CHECKERS: tuple[type[Checker], ...] = (
    WritesAreOpen, DeliveredEqualsSource, BlocksHaveOneOwner, TerminalAbsorbs, WatermarkBehindBytes, OnceEach,
    RanksAgree, DuplicatesDoNothing, DeadlinesRest, DataFirst,
)  # fmt: skip


class Monitors:
    """All checkers over one stream. ``violations`` keeps the first violation of each property."""

    def __init__(self) -> None:
        self.checkers = [checker() for checker in CHECKERS]
        self.violations: list[Violation] = []
        self._handlers: dict[type[Any], list[Callable[[Any], Verdict]]] = {LedgerRefused: [self._refused]}
        for checker in self.checkers:
            for kind, handler in checker.handlers().items():
                self._handlers.setdefault(kind, []).append(handler)

    def take(self, event: Any) -> None:
        """Show an event to every checker that reads its kind."""
        for handler in self._handlers.get(type(event), ()):
            violation = handler(event)
            if violation is not None and all(v.property != violation.property for v in self.violations):
                self.violations.append(violation)

    def _refused(self, event: LedgerRefused) -> Verdict:
        return Violation(event.property, f"refused by the block ledger: {event.text}")

    def save(self) -> Hashable:
        """The memories of all checkers."""
        return tuple([checker.save() for checker in self.checkers])

    def load(self, saved: Any) -> None:
        """Take on memories that ``save`` gave; violations start empty."""
        self.violations = []
        for checker, memory in zip(self.checkers, saved, strict=True):
            checker.load(memory)
