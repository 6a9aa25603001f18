"""A trace as a person reads it: for each step what changed, sender and receiver ranks side by side.

Only differences are told. What a column says is taken from the events of the run, except for blocks that change hands
silently (freed, quarantined), which are seen by comparing the ledger before and after.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from fsm.events import (
    Audited,
    Delivered,
    Executed,
    Finished,
    Granted,
    LedgerRefused,
    Overtaken,
    Progressed,
    Repeated,
    Sent,
    StateChanged,
    Wrote,
)
from fsm.messages import Nack, kind_of
from fsm.states import BlockState, State
from fsm.trace import Trace
from sim import actions
from sim.choices import Replayed
from sim.engines.replay import scenario_of, world_of
from sim.world import Action, World

LEGEND = (
    ("@8", "the receiver's watermark is 8 tokens"),
    ("[8,16)", "tokens 8 to 15"),
    ("b0 b1", "landing blocks"),
    ("#2", "room 2"),
    ("r0", "receiver rank 0's part"),
    ("!", "a fault"),
)
"""The short forms that are used; rooms are named only where there is more than one."""

FAULTS = (
    "duplicate", "delay", "drop", "heartbeat_loss", "poison", "abort", "sender_abort", "sender_crash", "receiver_crash",
    "partition", "clock_jump", "duplicate_room",
)  # fmt: skip
"""Actions that no world takes by itself."""

_ACTION_WORDS = {
    "tick": "receivers poll",
    "abort": "receiver aborts room {1}", "sender_abort": "sender {1} aborts room {2}",
    "sender_crash": "sender {1} crashes", "receiver_crash": "receiver {1} crashes", "partition": "network is cut",
    "clock_jump": "clock of the {1} jumps", "duplicate_room": "room {1} is submitted again",
    "arrive": "next request arrives", "gone": "sender {1} of boot {2} is proved gone", "heal": "network heals",
    "enter": "rank {1} enters the collective", "leave": "rank {1} leaves the collective",
}  # fmt: skip
"""Actions whose parts alone do not make a sentence."""

ON_MESSAGES = ("deliver", "duplicate", "delay", "drop", "poison", "heartbeat_loss")
"""Actions that are done to the next message of a channel."""

_RETOLD = ("GRANT", "STATUS", "REGISTER", "REGISTER_ACK", "OFFER", "HEARTBEAT")
"""Messages whose first sending says nothing that the columns do not say anyway."""


class StepView(NamedTuple):
    """One step: its number from 1, what was done, and what each side made of it."""

    number: int
    action: str
    senders: tuple[str, ...]
    receivers: tuple[str, ...]


class Ledgers:
    """The record of every landing block, by rank, at one moment."""

    def __init__(self, world: World) -> None:
        self.records = [
            [receiver.ledger.record(block) for block in range(len(receiver.ledger))] for receiver in world.receivers
        ]

    def changes(self, after: Ledgers, rank: int) -> list[tuple[int | None, str]]:
        """(room, words) for what happened to blocks that no event tells."""
        groups: dict[tuple[int | None, str], list[int]] = {}
        for block, (old, new) in enumerate(zip(self.records[rank], after.records[rank], strict=True)):
            room = old.owner.room if old.owner is not None else None
            if new.state == BlockState.QUARANTINED and old.state != BlockState.QUARANTINED:
                groups.setdefault((room, "quarantine"), []).append(block)
            elif old.state != BlockState.FREE and new.generation > old.generation:
                word = "release" if old.state == BlockState.QUARANTINED else "free"
                groups.setdefault((room, word), []).append(block)
        return [(room, f"{word} {blocks_text(blocks)}") for (room, word), blocks in groups.items()]


def blocks_text(blocks: Sequence[int]) -> str:
    """Block numbers, runs of three and more drawn together: ``b0-b7 b9``."""
    parts: list[str] = []
    at = 0
    while at < len(blocks):
        end = at
        while end + 1 < len(blocks) and blocks[end + 1] == blocks[end] + 1:
            end += 1
        if end - at >= 2:
            parts.append(f"b{blocks[at]}-b{blocks[end]}")
            at = end + 1
        else:
            parts.append(f"b{blocks[at]}")
            at += 1
    return " ".join(parts)


def _span(start: int, count: int) -> str:
    return f"[{start},{start + count})"


class Words(NamedTuple):
    """Words for one column. ``prefix`` names the room and lane they concern (empty where there is only one); ``room``
    is -1 where they concern none."""

    prefix: str
    text: str
    room: int = -1


Cell = list[Words]
"""All that a column says of one step."""


class Viewer:
    """Turns the events of each step into words for its columns."""

    def __init__(self, world: World) -> None:
        self.sender_of = tuple(world.sender_of)
        self.many_rooms = len({request.room for request in world.requests}) > 1
        self.many_lanes = [self.sender_of.count(sender) > 1 for sender in range(len(world.senders))]
        self.ledgers = Ledgers(world)
        self.receivers: list[Cell] = []
        self.senders: list[Cell] = []

    def view(self, number: int, said: str, world: World) -> StepView:
        """What a step did, read off a world that it has just left; ``said`` is what was done, in words."""
        self.receivers = [[] for _ in world.receivers]
        self.senders = [[] for _ in world.senders]
        for event in world.events:
            self._tell(event)
        now = Ledgers(world)
        for rank, cell in enumerate(self.receivers):
            for room, words in self.ledgers.changes(now, rank):
                _put_in_order(cell, Words(self._room(room), words, _number(room)))
        self.ledgers = now
        return StepView(number, said, tuple(map(_joined, self.senders)), tuple(map(_joined, self.receivers)))

    def words(self, world: World, action: Action, text: str) -> str:
        """What is about to be done, short: only what could be otherwise is said."""
        kind = action[0]
        if kind in _ACTION_WORDS:
            text = _ACTION_WORDS[kind].format(*action)
        room = _message_room(world, action)
        if room is not None:
            text = text.replace(" to ", f" {self._room(room)} to ".replace("  ", " "))
        text = text.removeprefix("deliver ")
        if len(world.senders) == 1:
            text = re.sub(r"sender 0\b", "sender", text)
        if len(world.receivers) == 1:
            text = re.sub(r"receiver 0\b", "receiver", text).replace(" rank 0", "")
        if not self.many_rooms:
            text = re.sub(r" room \d+\b", "", text)
        return f"! {text}" if kind in FAULTS else text

    def _room(self, room: int | None) -> str:
        return f"#{room}" if self.many_rooms and room is not None else ""

    def _tell(self, event: Any) -> None:
        kind = type(event)
        if kind is Sent:
            self._sent(event)
        elif kind is Repeated:
            if event.changed:
                self._column(event.target).append(Words("", f"duplicate: {event.changed}"))
        elif kind is StateChanged:
            if event.source != event.target:
                self._says(event, str(event.target))
        elif kind is Finished:
            if event.state != State.SUCCESS:
                self._says(event, f"({event.reason})")
        elif kind is Executed:
            self._sender_says(event, f"write {event.seq} {_span(event.start, event.count)}")
        elif hasattr(event, "receiver_rank"):
            text = _receiver_text(event)
            if text:
                room = getattr(event, "room", None)
                self.receivers[event.receiver_rank].append(Words(self._room(room), text, _number(room)))

    def _says(self, event: StateChanged | Finished, text: str) -> None:
        if event.side == "receiver":
            self.receivers[event.receiver_rank].append(Words(self._room(event.room), text, event.room))
        else:
            self._sender_says(event, text)

    def _sender_says(self, event: Any, text: str) -> None:
        sender = self.sender_of[event.receiver_rank]
        lane = f"r{event.receiver_rank}" if self.many_lanes[sender] else ""
        self.senders[sender].append(Words(f"{self._room(event.room)} {lane}".strip(), text, event.room))

    def _column(self, who: str) -> Cell:
        """The column of "receiver 0" or "sender 1"."""
        side, rank = who.split()
        return (self.receivers if side == "receiver" else self.senders)[int(rank)]

    def _sent(self, event: Sent) -> None:
        message = event.message
        kind = kind_of(message)
        if kind in _RETOLD and not event.resend and not event.lost:
            return
        verb = "lose" if event.lost else "resend" if event.resend else "send"
        code = f" {message.code}" if isinstance(message, Nack) else ""
        room = getattr(message, "room", None)
        rank = message.receiver_rank
        cell = self.receivers[rank] if event.side == "receiver" else self.senders[self.sender_of[rank]]
        cell.append(Words(self._room(room), f"{verb} {kind}{code}", _number(room)))


def _message_room(world: World, action: Action) -> int | None:
    """The room of the message that an action is done to, if it is done to one."""
    if action[0] == "stray":
        message: Any = world.network.strays[action[1]].message
    elif action[0] in ON_MESSAGES:
        message = world.network.channels[action[1]][0]
    else:
        return None
    return getattr(message, "room", None)


def told_together(cell: Cell) -> Cell:
    """A column in the order of events; a reason stands with what it is the reason for."""
    told: Cell = []
    for words in cell:
        if not words.text.startswith("("):
            told.append(words)
        elif told and told[-1].prefix == words.prefix:
            told[-1] = told[-1]._replace(text=f"{told[-1].text} {words.text}")
        else:
            told.append(words._replace(text=words.text[1:-1]))
    return told


def _joined(cell: Cell) -> str:
    """A column as one text; room and lane are named where they change."""
    texts: list[str] = []
    last = ""
    for prefix, text, _ in told_together(cell):
        texts.append(f"{prefix} {text}" if prefix and prefix != last else text)
        last = prefix
    return ", ".join(texts)


def _number(room: int | None) -> int:
    return -1 if room is None else room


def _put_in_order(cell: Cell, words: Words) -> None:
    """Blocks are freed after their copy, and before they are granted again; the rest comes last."""
    at = len(cell)
    if words.text.startswith("free "):
        copies = [i for i, told in enumerate(cell) if told.prefix == words.prefix and told.text.startswith("copy ")]
        grants = [i for i, told in enumerate(cell) if told.text.startswith("grant ")]
        at = copies[-1] + 1 if copies else (grants[0] if grants else at)
    cell.insert(at, words)


def _receiver_text(event: Any) -> str:
    """An event of a receiver rank in words; empty for what goes without saying."""
    kind = type(event)
    if kind is Granted:
        blocks = blocks_text([ref.block for ref in event.blocks])
        return f"grant {event.seq} {_span(event.start, event.capacity)} in {blocks}"
    if kind is Wrote:
        return f"bytes {_span(event.start, event.count)}" + (" TRESPASS" if event.trespass else "")
    if kind is Progressed:
        return f"@{event.tokens}"
    if kind is Delivered:
        return f"copy {_span(event.start, event.count)}" + (" WRONG" if event.wrong else "")
    if kind is Overtaken:
        return "overtakes " + " ".join(f"#{room}" for room in event.waiting)
    if kind is LedgerRefused:
        return f"ledger refuses ({event.property})"
    if kind is Audited:
        return "audit fails"
    return ""


def views_of(trace: Trace) -> list[StepView]:
    """Run a trace and look at every step. Whether it still fits is :func:`sim.engines.replay.replay`'s to say."""
    world = world_of(trace.header, scenario_of(trace.header), notes=True)
    viewer = Viewer(world)
    views: list[StepView] = []
    for number, step in enumerate(trace.steps, start=1):
        said = viewer.words(world, step.action, step.text)
        actions.apply(world, step.action, Replayed(step.picks))
        if step.action[0] == "time":
            said = f"clock leaps to {world.now:g}"
        views.append(viewer.view(number, said, world))
    return views
