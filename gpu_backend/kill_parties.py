"""The processes of a run with kills: they kill themselves at the point that they were told, and bear it of others."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

from fsm.events import AnyEvent, Executed, Finished, Granted
from fsm.states import State
from gpu_backend.collective import RankLost
from gpu_backend.kills import REQUESTS, RESUMES, Due, LastWords
from gpu_backend.launch import Line
from gpu_backend.parties import (
    WAIT_S,
    Ended,
    Party,
    ReceiverParty,
    Report,
    SenderParty,
    connect,
    make_receiver,
    make_sender,
    prepare,
)
from gpu_backend.plan import Plan, Request
from gpu_backend.receiver_worker import ReceiverWorker
from gpu_backend.sender_worker import SenderWorker

ATTEMPTS_BEYOND_KILLS: Final = 2
"""A request may fail once for each kill and so often more; after that its failure is what became of it."""

MEETINGS_MAX: Final = 12
"""So often ranks try to meet again, each time for ``ranks.timeout_s``."""


class Doom:
    """Counts what a process has done, and ends it in the very event that it was told."""

    def __init__(self, line: Line, party: Party, due: Due | None, progressed: dict[str, int]) -> None:
        self.line = line
        self.party = party
        self.due = due
        self.progressed = progressed
        self._lanes = len(party.worker.config.ranks.receiver_ranks) if isinstance(party, SenderParty) else 1
        self._ended = 0
        party.worker.observer.listeners.append(self._hear)

    def _hear(self, event: AnyEvent) -> None:
        if isinstance(event, Finished):
            if event.state == State.SUCCESS:
                self._ended += 1
                self._count(REQUESTS, self._ended % self._lanes == 0)
        elif isinstance(event, Granted | Executed):
            self._count(RESUMES, event.seq > 0)

    def _count(self, what: str, counts: bool) -> None:
        if not counts:
            return
        self.progressed[what] += 1
        due = self.due
        if due is not None and due.what == what and self.progressed[what] >= due.after:
            self.line.say("dying", LastWords(due.number, monotonic(), self.progressed, self.party.finish()))
            os.kill(os.getpid(), signal.SIGKILL)


class Undaunted(ReceiverParty):
    """A receiver rank that asks again for what failed, and tells the parent of each request."""

    def __init__(self, worker: ReceiverWorker, plan: Plan, line: Line) -> None:
        super().__init__(worker, plan)
        self.line = line
        self.attempts: dict[int, int] = {}
        self.attempts_max = len(plan.kills) + ATTEMPTS_BEYOND_KILLS
        self.told = ""
        """What the parent heard last of the state of this party: ``done``, ``lost``, or something else."""

    def take_up(self, rooms: Sequence[int]) -> None:
        """Begin with these rooms, in the order of the plan."""
        self.waiting.clear()
        self.add([request for request in self.plan.requests if request.room in set(rooms)])
        self.told = ""

    def _may_submit(self, request: Request) -> bool:
        return not self.worker.rank_is_lost and request.room not in self.worker.receiver.rooms

    def _submit(self, request: Request) -> None:
        self.line.say("want", request.room)
        super()._submit(request)

    def _ended(self, ended: Ended) -> None:
        attempts = self.attempts[ended.room] = self.attempts.get(ended.room, 0) + 1
        if ended.state == State.SUCCESS or attempts >= self.attempts_max:
            self.line.say("got", ended)
        else:
            self.line.say("again", ended)
            self.waiting.append(self.requests[ended.room])

    def step(self) -> bool:
        """Move on; tell if all is done, or another rank was lost and nothing is left to fail."""
        busy = super().step()
        told = self.told
        if self.worker.rank_is_lost and not self.under_way:
            told = "lost"
        elif self.done:
            told = "done"
        if told != self.told:
            self.told = told
            self.line.say(told)
        return busy

    def rejoin(self, rooms: Sequence[int]) -> None:
        """Meet the other ranks again, and begin with what not all of them have."""
        for attempt in range(MEETINGS_MAX):
            try:
                self.worker.rejoin()
                break
            except RankLost:
                if attempt == MEETINGS_MAX - 1:
                    raise
        self.take_up(rooms)


class OnDemand(SenderParty):
    """A sender rank that takes up a request when it is told that a receiver submits it, and again if it fails here
    before it is told that the receiver has given it up."""

    def __init__(self, worker: SenderWorker, plan: Plan) -> None:
        super().__init__(worker, plan)
        self.by_room = {request.room: request for request in plan.requests}
        self.wanted: dict[int, None] = {}
        self.live: set[int] = set()

    def want(self, room: int) -> None:
        """A receiver submits this room."""
        self.wanted[room] = None

    def drop(self, room: int) -> None:
        """Every receiver rank that is served here has it, or what they began with it has failed.

        One that a receiver has registered stays: it is the receiver's to end, and may be its next attempt already.
        """
        self.wanted.pop(room, None)
        record = self.worker.sender.rooms.get(room)
        if record is not None and all(lane.state == State.BOOTSTRAPPING for lane in record.lanes.values()):
            self.worker.abort(room)

    def _end_halves(self) -> None:
        """End what has failed for one receiver rank and waits for another. The ranks decide alike (R7), so that it
        waits for one that was killed; what its successor asks for is the next attempt."""
        for room in sorted(self.live):
            record = self.worker.sender.rooms.get(room)
            lanes = list(record.lanes.values()) if record is not None else []
            if any(lane.state == State.FAILED for lane in lanes) and any(lane.live for lane in lanes):
                self.worker.abort(room)

    def step(self) -> bool:
        """Move on."""
        self._end_halves()
        for room in self.wanted:
            if room not in self.live and room not in self.worker.sender.rooms:
                self.live.add(room)
                self._submit(self.by_room[room])
        outcomes = self.worker.poll()
        for outcome in outcomes:
            self.live.discard(outcome.room)
            if outcome.state == State.SUCCESS:
                self.wanted.pop(outcome.room, None)
        return bool(outcomes)


# --- the children -------------------------------------------------------------------------------------------


def killed_sender(
    line: Line, plan: Plan, rank: int, address: str, boot: int, due: Due | None, progressed: dict[str, int]
) -> None:
    """A child: a sender rank, which listens at ``address``."""
    prepare()
    with make_sender(plan, rank, address, boot) as worker:
        party = OnDemand(worker, plan)
        doom = Doom(line, party, due, progressed)
        line.say("ready", {"address": worker.address, "transport": party.transport})
        _run(line, party, doom)


def killed_receiver(
    line: Line, plan: Plan, rank: int, address: str, store: str, boot: int, due: Due | None,
    progressed: dict[str, int], rooms: Sequence[int],
) -> None:  # fmt: skip
    """A child: a receiver rank, whose sender listens at ``address``, and which shall have these rooms."""
    prepare()
    with make_receiver(plan, rank, address, store, boot) as worker:
        party = Undaunted(worker, plan, line)
        doom = Doom(line, party, due, progressed)
        line.say("ready")
        connect(line, party)
        party.take_up(rooms)
        _run(line, party, doom)


def _run(line: Line, party: Party, doom: Doom) -> None:
    """Until told to end."""
    try:
        while True:
            busy = party.step()
            told = line.told()
            if told is not None:
                kind, value = told
                if kind == "end":
                    return
                _take(line, party, doom, kind, value)
            if not busy and told is None:
                party.worker.wait(WAIT_S)
    finally:
        party.worker.observer.close()


def _take(line: Line, party: Party, doom: Doom, kind: str, value: Any) -> None:
    if kind == "report":
        report: Report = party.finish()
        line.say("report", (report, doom.due.number if doom.due is not None else None))
    elif isinstance(party, Undaunted) and kind == "rejoin":
        party.rejoin(value)
    elif isinstance(party, OnDemand) and kind == "want":
        party.want(value)
    elif isinstance(party, OnDemand) and kind == "drop":
        party.drop(value)


__all__ = ["Doom", "OnDemand", "Undaunted", "killed_receiver", "killed_sender"]
