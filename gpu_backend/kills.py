"""A run in which processes are killed, told beforehand: who, and at which point of its work.

A victim sends itself SIGKILL within the very event that its kill waits for. It is started anew as a process of its own,
a sender under the address that it had, and the run goes on: requests that failed on the way are asked for again, under
the same rooms, until every rank has every one of them. So the run proves what the soak proves, for a kill that can be
chosen and done again, and leaves the traces of both lives.

Nobody tells a sender beforehand which requests there are: a receiver says which room it submits, and the sender is
told, once for each attempt; and when the attempt has failed there. A successor is told those that are under way. (A
sender that had rooms which are asked for only later would fill its source pool with them, and everything would wait.)
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, NamedTuple

from fsm.errors import LocalError
from gpu_backend.launch import Child, Launch, Said, TimedOut, free_port
from gpu_backend.plan import Plan

SENDER, RECEIVER = "sender", "receiver"
REQUESTS, RESUMES = "requests", "resumes"

SILENCE_S: Final = 120.0
"""A run in which nothing is heard for so long has failed: the protocol's own deadlines are shorter."""

PRELOAD: Final = ("torch", "zmq", "gpu_backend.kill_parties")
"""So that a successor is up at once, and not after seconds of imports."""

_KILL: Final = re.compile(r"(sender|receiver)(?::(\d{1,4}))?@(?:(\d{1,7})-(requests|resumes)|(0?\.\d{1,6}))")


class Kill(NamedTuple):
    """A process to be killed when it has done ``after`` of something, its earlier lives included: ``"requests"`` that
    ended in Success, or ``"resumes"`` that it asked for (sender: began to serve)."""

    text: str
    """As it was given."""
    side: str
    rank: int
    what: str
    after: int


class Killed(NamedTuple):
    """A kill that happened."""

    kill: Kill
    at_s: float
    """On the clock that all processes of a machine share."""
    done: int
    """Requests that every receiver rank had by then."""
    back_s: float
    """Until its successor was up."""


class FailedAttempt(NamedTuple):
    """A request that ended in failure on one receiver rank, and was asked for again."""

    room: int
    rank: int
    reason: str
    detail: str
    ended_s: float
    """On the clock that all processes of a machine share."""


@dataclass
class KilledRun:
    """What became of the kills of a run."""

    killed: list[Killed] = field(default_factory=list)
    failed: list[FailedAttempt] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> Counter[str]:
        """Why attempts failed, each counted once for each rank."""
        return Counter(one.reason for one in self.failed)


def parse_kill(text: str, plan: Plan) -> Kill:
    """Read ``WHO@WHEN``. Raises :class:`LocalError` for what cannot be read, or can never happen in this plan."""
    found = _KILL.fullmatch(text)
    if found is None:
        raise LocalError(
            f"--kill {text!r}: expected WHO@WHEN, such as sender@3-requests, receiver:1@2-resumes or sender@0.5 (when "
            "half of the requests have ended)"
        )
    side, rank_text, number, what, share = found.groups()
    rank, requests = int(rank_text or 0), len(plan.requests)
    ranks = plan.receivers if side == RECEIVER else min(plan.senders, plan.receivers)
    if rank >= ranks:
        raise LocalError(f"--kill {text!r}: {side} rank {rank} takes no part; expected a rank below {ranks}")
    count = int(number) if number else max(1, round(float(share) * requests))
    if count < 1 or (what != RESUMES and count > requests):
        raise LocalError(f"--kill {text!r}: expected from 1 to {requests} requests, as many as this run has")
    return Kill(text, side, rank, what or REQUESTS, count)


def check_kills(plan: Plan) -> tuple[Kill, ...]:
    """The kills of a plan. Raises :class:`LocalError` where one makes no sense."""
    if plan.kills and plan.transport == "in-process":
        raise LocalError("--kill: transport in-process has both sides in one process; take another transport")
    return tuple(parse_kill(text, plan) for text in plan.kills)


class Due(NamedTuple):
    """What a victim is told: the number of its kill, and when."""

    number: int
    what: str
    after: int


class LastWords(NamedTuple):
    """What a victim says before it kills itself."""

    number: int
    """Of its kill."""
    at_s: float
    progressed: dict[str, int]
    report: Any


class KilledRunner:
    """The parent of such a run: starts, hears, starts again."""

    def __init__(self, launch: Launch, plan: Plan, tell: Callable[[int], None]) -> None:
        self.launch = launch
        self.plan = plan
        self.tell = tell
        self.outcome = KilledRun()
        self.kills = check_kills(plan)
        self.left: dict[tuple[str, int], deque[int]] = {}
        for number, kill in enumerate(self.kills):
            self.left.setdefault((kill.side, kill.rank), deque()).append(number)
        self.store = f"127.0.0.1:{free_port()}" if plan.receivers > 1 else ""
        self.addresses: dict[int, str] = {}
        self.chosen = ("", "")
        self.children: dict[tuple[str, int], Child] = {}
        self.boots = Counter[tuple[str, int]]()
        self.progressed: dict[tuple[str, int], dict[str, int]] = {}
        """How far earlier lives of a process had come when they were killed."""
        self.got: list[dict[int, Any]] = [{} for _ in range(plan.receivers)]
        self.wanted: list[Counter[int]] = [Counter() for _ in range(plan.receivers)]
        """By rank and room: attempts that were begun; and how many of them are known to have failed."""
        self.failed: list[Counter[int]] = [Counter() for _ in range(plan.receivers)]
        self.done: set[int] = set()
        self.reports: list[Any] = []
        self.lost: set[int] = set()
        """Ranks that have lost another one, and whose requests have all ended."""

    # --- processes ------------------------------------------------------------------------------------

    def run(self) -> list[Any]:
        """Run to the end; one report for each process that was started."""
        serving = range(min(self.plan.senders, self.plan.receivers))
        for rank in serving:
            self._start(SENDER, rank)
        for rank in serving:
            self._sender_is_up(rank)
        for rank in range(self.plan.receivers):
            self._start(RECEIVER, rank)
        while len(self.done) < self.plan.receivers:
            said = self.launch.hear(SILENCE_S)
            if said is None:
                raise TimedOut(f"nothing was heard from any process for {SILENCE_S:g} s")
            self._hear(said)
        return self._finish()

    def _start(self, side: str, rank: int) -> None:
        from gpu_backend.kill_parties import killed_receiver, killed_sender

        who = side, rank
        boot = self.boots[who]
        self.boots[who] += 1
        due = None
        if self.left.get(who):
            number = self.left[who].popleft()
            kill = self.kills[number]
            due = Due(number, kill.what, kill.after)
        progressed = self.progressed.get(who, {REQUESTS: 0, RESUMES: 0})
        name = f"{side} {rank}" + (f" ({boot})" if boot else "")
        if side == SENDER:
            address = self.addresses.get(rank, "tcp://127.0.0.1:0")
            child = self.launch.start(name, killed_sender, self.plan, rank, address, boot, due, progressed)
        else:
            address = self.addresses[rank % self.plan.senders]
            told = rank, address, self.store, boot, due, progressed, self._rooms_left()
            child = self.launch.start(name, killed_receiver, self.plan, *told)
        self.children[who] = child

    def _sender_is_up(self, rank: int) -> None:
        child = self.children[SENDER, rank]
        up = self.launch.wait_for("ready", [child])[child.name]
        self.addresses[rank] = up["address"]
        self.chosen = self.chosen if self.chosen[0] else tuple(up["transport"])

    def _rooms_left(self) -> tuple[int, ...]:
        """Rooms that not every receiver rank has: all ranks submit alike (R7)."""
        return tuple(room.room for room in self.plan.requests if any(room.room not in got for got in self.got))

    def _who(self, child: Child) -> tuple[str, int]:
        return next(who for who, one in self.children.items() if one is child)

    # --- what is heard --------------------------------------------------------------------------------

    def _hear(self, said: Said) -> None:
        side, rank = self._who(said.child)
        if said.kind == "want":
            self._wanted(rank, said.value)
        elif said.kind == "got":
            self.done.discard(rank)
            self.got[rank][said.value.room] = said.value
            self._got(rank, said.value.room)
        elif said.kind == "again":
            one = said.value
            self.outcome.failed.append(FailedAttempt(one.room, rank, one.reason, one.detail, one.ended_s))
            self._failed(rank, one.room)
        elif said.kind == "done":
            self.done.add(rank)
        elif said.kind == "lost":
            self.lost.add(rank)
        elif said.kind == "dying":
            self._died(said.child, side, rank, said.value)

    def _wanted(self, rank: int, room: int) -> None:
        """A receiver rank submits a room. Its sender is told when that is the first rank to do so in this attempt."""
        sender = rank % self.plan.senders
        before = self._attempts(sender, room)
        self.wanted[rank][room] += 1
        if self.wanted[rank][room] > before:
            self.children[SENDER, sender].tell("want", room)

    def _attempts(self, sender: int, room: int) -> int:
        return max(self.wanted[rank][room] for rank in self._served_by(sender))

    def _failed(self, rank: int, room: int) -> None:
        """An attempt has failed at a receiver rank. It is told to the sender unless that is at the next one already."""
        sender = rank % self.plan.senders
        self.failed[rank][room] += 1
        if self.failed[rank][room] == self._attempts(sender, room):
            self.children[SENDER, sender].tell("drop", room)

    def _got(self, rank: int, room: int) -> None:
        sender = rank % self.plan.senders
        if all(room in self.got[peer] for peer in self._served_by(sender)):
            self.children[SENDER, sender].tell("drop", room)
        self.tell(min(map(len, self.got)))

    def _served_by(self, sender: int) -> Iterable[int]:
        return range(sender, self.plan.receivers, self.plan.senders)

    def _died(self, child: Child, side: str, rank: int, words: LastWords) -> None:
        """A victim's last words: take them up, and start its successor."""
        child.over = True
        child.process.join()
        self.launch.forget(child)
        self.reports.append(words.report)
        self.progressed[side, rank] = words.progressed
        done = len(self.plan.requests) - len(self._rooms_left())
        if side == SENDER:
            self._start(side, rank)
            self._sender_is_up(rank)
            self._tell_again(rank)
        else:
            self.done.clear()
            self._start_receiver_again(rank)
        self.outcome.killed.append(Killed(self.kills[words.number], words.at_s, done, monotonic() - words.at_s))

    def _tell_again(self, sender: int) -> None:
        """What a successor is to have: every room of which an attempt is under way at some rank."""
        for request in self.plan.requests:
            if any(self._under_way(rank, request.room) for rank in self._served_by(sender)):
                self.children[SENDER, sender].tell("want", request.room)

    def _under_way(self, rank: int, room: int) -> bool:
        return self.wanted[rank][room] > self.failed[rank][room] and room not in self.got[rank]

    def _start_receiver_again(self, rank: int) -> None:
        """With several ranks: once all others have lost it and given everything up, so that all begin alike."""
        others = {peer for peer in range(self.plan.receivers) if peer != rank}
        until_s = monotonic() + SILENCE_S
        while not others <= self.lost:
            said = self.launch.hear(until_s - monotonic())
            if said is None:
                raise TimedOut(f"receiver {rank} was killed, and after {SILENCE_S:g} s not every rank had noticed")
            self._hear(said)
        self.lost.clear()
        self.done.clear()
        left = self._rooms_left()
        for room in left:
            self._begin_alike(room, rank)
        for peer in others:
            self.children[RECEIVER, peer].tell("rejoin", left)
        self._start(RECEIVER, rank)
        child = self.children[RECEIVER, rank]
        self.launch.wait_for("ready", [child])

    def _begin_alike(self, room: int, victim: int) -> None:
        """All ranks begin anew with a room that one of them does not have; what the victim had begun has failed."""
        for sender in range(min(self.plan.senders, self.plan.receivers)):
            ranks = tuple(self._served_by(sender))
            attempts = self._attempts(sender, room)
            if victim in ranks and self._under_way(victim, room):
                self.children[SENDER, sender].tell("drop", room)
            for rank in ranks:
                self.got[rank].pop(room, None)
                self.wanted[rank][room] = self.failed[rank][room] = attempts

    # --- the end --------------------------------------------------------------------------------------

    def _finish(self) -> list[Any]:
        missed = [number for numbers in self.left.values() for number in numbers]
        children = list(self.children.values())
        for child in children:
            child.tell("report")
        heard = self.launch.wait_for("report", children)
        self.launch.end(children)
        for child in children:
            report, number = heard[child.name]
            self.reports.append(report)
            missed += [number] if number is not None else []
        self._judge(missed)
        return merge_reports(self.reports, self.got)


    def _judge(self, missed: list[int]) -> None:
        """What must not be, beside what the requests themselves tell."""
        problems = self.outcome.problems
        problems += [f"--kill {self.kills[number].text}: the run ended before that" for number in sorted(missed)]
        first_s = min((one.at_s for one in self.outcome.killed), default=float("inf"))
        for one in self.outcome.failed:
            if one.ended_s < first_s:
                problems.append(f"room {one.room} failed before anybody was killed: {one.reason}")
            if one.reason in ("", "NONE"):
                problems.append(f"room {one.room} failed without a reason")


def merge_reports(reports: list[Any], got: list[dict[int, Any]]) -> list[Any]:
    """One report for each rank, of all its lives: what they counted together, and what arrived."""
    merged: dict[tuple[str, int], Any] = {}
    for report in reports:
        report.requests = list(got[report.rank].values()) if report.side == RECEIVER else []
        earlier = merged.get((report.side, report.rank))
        if earlier is not None:
            report.used_blocks_max = max(report.used_blocks_max, earlier.used_blocks_max)
            report.violations = earlier.violations + report.violations
            for name, count in earlier.counters.items():
                if isinstance(count, int):
                    report.counters[name] += count
        merged[report.side, report.rank] = report
    return list(merged.values())


__all__ = ["FailedAttempt", "Kill", "Killed", "KilledRun", "KilledRunner", "check_kills", "parse_kill"]
