"""The processes of a soak: workers that are killed and stopped, and one that must bear it.

A party hears of requests as they come, tells what became of each, and tells when its pool is whole again. It can be
*armed*: when its lifecycle is the n-th time in a certain state, the signal comes, either from the process itself, in
the very event (so that every state is hit for certain), or from the parent some random time later (so that the middle
of a copy, a write or a poll is hit as well).
"""

from __future__ import annotations

import os
from time import monotonic
from typing import Any, NamedTuple

from fsm.events import AnyEvent, Executed, StateChanged
from fsm.states import State
from gpu_backend.launch import Line
from gpu_backend.parties import WAIT_S, Party, ReceiverParty, SenderParty, connect, make_receiver, make_sender, prepare
from gpu_backend.plan import Plan

WRITING = "Writing"
"""Beside the states: at the sender, a write has just begun."""

IDLE = "Idle"
"""Beside the states: everything has ended. Nobody is armed for it: the parent hears of it."""


class Trigger(NamedTuple):
    """When the signal is due: a lifecycle of the side that is hit gets into ``state`` for the ``nth`` time."""

    state: str
    nth: int
    signal: int
    by_itself: bool


class Settled(NamedTuple):
    """What a party says when every request has ended."""

    ended: list[Any]
    """:class:`gpu_backend.parties.Ended`, since it said so last."""
    quarantined: int
    """The most blocks that were quarantined at one time, since it said so last."""
    released_s: float
    """When the first of them came back; 0 if none has."""
    violations: list[tuple[str, str]]
    at_s: float


class SoakParty:
    """One side of a soak."""

    def __init__(self, line: Line, party: Party) -> None:
        self.line = line
        self.party = party
        self.trigger: Trigger | None = None
        self._count = 0
        self._owed_settled = False
        self._owed_whole = False
        self._quarantined, self._quarantined_max, self._released_s = 0, 0, 0.0
        party.worker.observer.listeners.append(self._hear)

    def run(self) -> None:
        """Until told to end."""
        while True:
            busy = self.party.step()
            self._look_at_quarantine()
            told = self.line.told()
            if told is not None:
                if told[0] == "end":
                    return
                self._told(*told)
            self._tell()
            if not busy and told is None:
                self.party.worker.wait(WAIT_S)

    def _told(self, kind: str, value: Any) -> None:
        if kind == "requests":
            self._owed_settled = self._owed_whole = True
            for request in value:
                self.party.add([request])
                self._reached(State.BOOTSTRAPPING)
        elif kind == "arm":
            self.trigger, self._count = value, 0

        elif kind == "describe":
            stats = self.party.worker.stats()
            self.line.say("description", f"blocks {stats.blocks}, rooms {stats.rooms}, under way {stats.under_way}")

    def _hear(self, event: AnyEvent) -> None:
        if isinstance(event, StateChanged):
            self._reached(event.target)
        elif isinstance(event, Executed):
            self._reached(WRITING)

    def _reached(self, state: str) -> None:
        trigger = self.trigger
        if trigger is None or trigger.state != state:
            return
        self._count += 1
        if self._count == trigger.nth:
            self.trigger = None
            self.line.say("reached", (str(state), monotonic()))
            if trigger.by_itself:
                os.kill(os.getpid(), trigger.signal)

    def _tell(self) -> None:
        if self._owed_settled and self.party.done:
            self._owed_settled = False
            self.trigger = None
            report = self.party.report
            ended, report.requests = report.requests, []
            found = [(one.property, one.text) for one in self.party.worker.observer.violations]
            settled = Settled(ended, self._quarantined_max, self._released_s, found, monotonic())
            self._quarantined_max, self._released_s = self._quarantined, 0.0
            self.line.say("settled", settled)
        if self._owed_whole and not self._owed_settled and self._whole():
            self._owed_whole = False
            self.line.say("whole", monotonic())

    def _whole(self) -> bool:
        blocks = self.party.worker.stats().blocks
        return all(count == 0 for state, count in blocks.items() if state != "Free")

    def _look_at_quarantine(self) -> None:
        count = self.party.worker.stats().blocks.get("Quarantined", 0)
        if count < self._quarantined and not self._released_s:
            self._released_s = monotonic()
        self._quarantined = count
        self._quarantined_max = max(self._quarantined_max, count)


def soak_sender(line: Line, plan: Plan, address: str, boot: int) -> None:
    """A child: the sender; ``address`` is where it listens."""
    prepare()
    with make_sender(plan, 0, address, boot) as worker:
        party = SenderParty(worker, plan)
        line.say("ready", (worker.address, party.transport[0], worker.transport.traits.one_sided))
        SoakParty(line, party).run()
        worker.observer.close()


def soak_receiver(line: Line, plan: Plan, address: str, boot: int) -> None:
    """A child: the receiver, which connects to ``address``."""
    prepare()
    with make_receiver(plan, 0, address, boot=boot) as worker:
        party = ReceiverParty(worker, plan)
        connect(line, party)
        line.say("ready")
        SoakParty(line, party).run()
        worker.observer.close()


__all__ = ["IDLE", "WRITING", "Settled", "SoakParty", "Trigger", "soak_receiver", "soak_sender"]
