"""What became of each request of a run, read off the run's events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fsm.events import Delivered, Executed, Finished, Granted, StateChanged
from fsm.messages import Epoch
from fsm.states import State
from sim.engines.result import RequestReport
from sim.world import World

NOT_SUBMITTED = "NotSubmitted"
"""The state of a request whose time had not come when the run ended."""

_WORST_FIRST = (
    State.FAILED, State.BOOTSTRAPPING, State.WAITING, State.TRANSFERRING, State.RESUMING, State.SUCCESS, NOT_SUBMITTED,
)  # fmt: skip
"""Of several ranks, the one that is worst off speaks for the request."""


class _Rank:
    """One request on one receiver rank."""

    __slots__ = ("delivered", "executed", "ok", "pieces", "resumed_at", "state")

    def __init__(self) -> None:
        self.state: str = NOT_SUBMITTED
        self.delivered = 0
        self.ok = True
        self.pieces: list[tuple[int, int]] = []
        self.resumed_at: list[int] = []
        self.executed = 0

    def take(self, event: Delivered) -> None:
        """A piece of the result; pieces may come in any order, and never twice."""
        end = event.start + event.count
        twice = any(event.start < other_end and other < end for other, other_end in self.pieces)
        self.ok = self.ok and not event.wrong and not twice
        self.pieces.append((event.start, end))
        self.delivered += event.count

    def whole(self, tokens: int) -> bool:
        """Whether the pieces, which do not overlap, are the whole result."""
        return self.delivered == tokens and max((end for _, end in self.pieces), default=0) == tokens


class Report:
    """Collects a run's events, step by step; ``requests`` answers at any time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ranks = [[_Rank() for _ in world.receiver_ranks] for _ in world.requests]

    def take(self, events: Iterable[Any]) -> None:
        """Read what happened in a step."""
        for event in events:
            kind = type(event)
            if kind is StateChanged or kind is Finished:
                if event.side == "receiver":
                    self._state(event)
            elif kind is Delivered:
                for rank in self._of(event):
                    rank.take(event)
            elif kind is Granted and event.seq > 0:
                for rank in self._of(event):
                    rank.resumed_at.append(event.start)
            elif kind is Executed:
                for rank in self._of(event):
                    rank.executed += 1

    def _state(self, event: StateChanged | Finished) -> None:
        state = event.target if isinstance(event, StateChanged) else event.state
        for rank in self._of(event):
            rank.state = State(state)

    def _of(self, event: Any) -> list[_Rank]:
        """The request's rank that an event speaks of; nothing for an epoch that no submit made."""
        index = self._world.receiving.get((event.room, Epoch(*event.epoch)))
        return [] if index is None else [self._ranks[index][event.receiver_rank]]

    def requests(self) -> tuple[RequestReport, ...]:
        """One report for each request of the scenario, in its order."""
        submitted = set(self._world.receiving.values())  # asked for members only, never walked
        reports = []
        for index, (request, ranks) in enumerate(zip(self._world.requests, self._ranks, strict=True)):
            if index in submitted:
                for rank in ranks:
                    rank.state = State.BOOTSTRAPPING if rank.state == NOT_SUBMITTED else rank.state
            state = min((rank.state for rank in ranks), key=_WORST_FIRST.index)
            delivered = min(rank.delivered for rank in ranks)
            whole = state != State.SUCCESS or all(rank.whole(request.tokens) for rank in ranks)
            reports.append(
                RequestReport(
                    room=request.room,
                    state=str(state),
                    tokens=request.tokens,
                    tokens_delivered=delivered,
                    content_ok=whole and all(rank.ok for rank in ranks),
                    resumed_at=tuple(ranks[0].resumed_at),
                    grants_executed=ranks[0].executed,
                )
            )
        return tuple(reports)
