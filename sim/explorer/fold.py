"""What events add up to: how far each room is at each rank, and where its lifecycles stand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

from fsm.events import Delivered, Finished, Granted, Progressed, StateChanged, Wrote
from fsm.messages import Epoch, Grant, Message, Nack, Offer, Status, kind_of
from fsm.reasons import Reason
from fsm.states import TERMINAL
from sim.explorer.page import Lifecycle, Progress

Spans = tuple[tuple[int, int], ...]
"""Stretches of tokens, from (inclusive) and to (exclusive), in order and apart from each other."""


def span_text(start: int, count: int) -> str:
    """Tokens, as everywhere: from (inclusive) to (exclusive)."""
    return f"[{start},{start + count})"


def epoch_text(epoch: Epoch | None) -> str:
    """An epoch as the page names it."""
    return "" if epoch is None else f"{epoch[0]}.{epoch[1]}"


def with_span(spans: Spans, start: int, end: int) -> Spans:
    """The stretches with one more, those that touch drawn together."""
    apart = [span for span in spans if span[1] < start or end < span[0]]
    near = [span for span in spans if not (span[1] < start or end < span[0])]
    low = min([start, *(span[0] for span in near)])
    return tuple(sorted([*apart, (low, max([end, *(span[1] for span in near)]))]))


def without_gap(spans: Spans) -> int:
    """How many tokens from the first one on are there."""
    return spans[0][1] if spans and spans[0][0] == 0 else 0


def message_label(message: Message) -> str:
    """A message, short: its kind, and the numbers that matter."""
    kind = kind_of(message)
    if isinstance(message, Grant):
        return f"{kind} {message.seq} {span_text(message.start, message.capacity)}"
    if isinstance(message, Status):
        return f"{kind} {message.seq} {message.committed_tokens} of {message.total_tokens}"
    if isinstance(message, Offer):
        return f"{kind} {message.total_tokens}"
    return f"{kind} {message.code}" if isinstance(message, Nack) else kind


def sorted_items(table: Mapping[Any, Any]) -> tuple[Any, ...]:
    """A table, hashable, in the order of its keys."""
    return tuple(sorted(table.items(), key=lambda item: item[0]))


class Folded:
    """Remembers what was told of rooms and lifecycles, so that only what changes is told again.

    ``sender_of``: for each receiver rank the sender rank that serves it.
    """

    def __init__(self, sender_of: Callable[[int], int]) -> None:
        self._sender_of = sender_of
        self.progress: dict[tuple[int, int], Progress] = {}
        self.lifecycles: dict[tuple[str, int, int], Lifecycle] = {}
        self.landed: dict[tuple[int, int], Spans] = {}
        self.copied: dict[tuple[int, int], Spans] = {}
        self._progressed: dict[tuple[int, int], Progress] = {}
        self._moves: list[Lifecycle] = []

    def lane_of(self, side: str, receiver_rank: int) -> str:
        """The lane of the process that has this side of a rank's part."""
        rank = receiver_rank if side == "receiver" else self._sender_of(receiver_rank)
        return f"{side} {rank}"

    def take_told(self) -> tuple[tuple[Progress, ...], tuple[Lifecycle, ...]]:
        """What has changed since this was asked last."""
        told = tuple(self._progressed.values()), tuple(self._moves)
        self._progressed, self._moves = {}, []
        return told

    def tell_all(self, rooms: Collection[int]) -> None:
        """Tell everything that is so of some rooms, as if nothing had been told."""
        self._progressed = {key: told for key, told in self.progress.items() if told.room in rooms}
        self._moves = [told for told in self.lifecycles.values() if told.room in rooms]

    def take(self, event: object) -> None:
        """See an event."""
        if isinstance(event, (StateChanged, Finished)):
            self._moved(event)
        elif isinstance(event, Granted):
            self._advance(event, granted=event.start + event.capacity)
        elif isinstance(event, Wrote):
            self._advance(event, landed=self._more(self.landed, event))
        elif isinstance(event, Progressed):
            self._advance(event, watermark=event.tokens)
        elif isinstance(event, Delivered):
            self._advance(event, delivered=self._more(self.copied, event))

    def save(self) -> Hashable:
        """All that it remembers, in one order."""
        return tuple([sorted_items(table) for table in (self.progress, self.lifecycles, self.landed, self.copied)])

    def load(self, saved: Any) -> None:
        """Take on what ``save`` gave."""
        self.progress, self.lifecycles, self.landed, self.copied = (dict(table) for table in saved)
        self._progressed, self._moves = {}, []

    # --- rooms ----------------------------------------------------------------------------------------

    def begin(self, rank: int, room: int, epoch: Epoch | None) -> None:
        """An attempt at a room, if it is a new one: nothing of it is there yet."""
        key, name = (rank, room), epoch_text(epoch)
        known = self.progress.get(key)
        if known is None or known.epoch != name:
            self.progress[key] = self._progressed[key] = Progress(rank, room, name)
            self.landed.pop(key, None)
            self.copied.pop(key, None)

    def _is_news(self, event: Granted | Wrote | Progressed | Delivered) -> bool:
        """Whether an event is of the present attempt."""
        known = self.progress.get((event.receiver_rank, event.room))
        return known is not None and known.epoch == epoch_text(event.epoch)

    def _more(self, known: dict[tuple[int, int], Spans], event: Wrote | Delivered) -> int:
        if not self._is_news(event):
            return 0
        key = event.receiver_rank, event.room
        known[key] = with_span(known.get(key, ()), event.start, event.start + event.count)
        return without_gap(known[key])

    def _advance(self, event: Granted | Wrote | Progressed | Delivered, **values: int) -> None:
        if not self._is_news(event):
            return
        key = event.receiver_rank, event.room
        before = self.progress[key]
        numbers = {name: getattr(before, name) for name in ("granted", "landed", "watermark", "delivered")}
        after = Progress(before.rank, before.room, before.epoch, **{**numbers, **values})
        if after != before:
            self.progress[key] = self._progressed[key] = after

    # --- lifecycles -----------------------------------------------------------------------------------

    def appear(self, lane: str, rank: int, room: int, initial: str) -> None:
        """A lifecycle that lives: told if it has begun, or begun again after it had ended."""
        known = self.lifecycles.get((lane, rank, room))
        if known is None or known.state in TERMINAL:
            self._tell(Lifecycle(lane, rank, room, initial))

    def renew(self, lane: str, rank: int, room: int, initial: str) -> None:
        """A lifecycle begins anew, if it is known at all, wherever the one before stood."""
        if (lane, rank, room) in self.lifecycles:
            self._tell(Lifecycle(lane, rank, room, initial))

    def _tell(self, lifecycle: Lifecycle) -> None:
        self.lifecycles[lifecycle.lane, lifecycle.rank, lifecycle.room] = lifecycle
        self._moves.append(lifecycle)

    def _moved(self, event: StateChanged | Finished) -> None:
        """A lifecycle has moved; why it failed is part of its last move."""
        rank, room = event.receiver_rank, event.room
        lane = self.lane_of(event.side, rank)
        before = self.lifecycles.get((lane, rank, room))
        if isinstance(event, StateChanged):
            self._tell(Lifecycle(lane, rank, room, str(event.target), str(event.source), event.cause))
            return
        reason = "" if event.reason == Reason.NONE.name else event.reason
        if before is None or before.state != event.state:
            self._tell(Lifecycle(lane, rank, room, str(event.state), before.state if before else "", "", reason))
        elif reason and reason != before.reason:
            self._moves = [move for move in self._moves if move is not before]
            self._tell(Lifecycle(lane, rank, room, before.state, before.source, before.event, reason))
