"""Runs for a page, made from what real workers saw.

A step is an event of one process. What a trace does not tell stays unknown: a sender's says nothing of blocks, and a
receiver's does not say when a block became free, so that blocks are concluded from what is granted, written and copied.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from fsm.errors import LocalError
from fsm.events import (
    AnyEvent,
    Audited,
    Delivered,
    Executed,
    Finished,
    Granted,
    LedgerRefused,
    Note,
    Progressed,
    Received,
    Repeated,
    Restarted,
    Sent,
    StateChanged,
    Wrote,
)
from fsm.lifecycle import RECEIVER_TABLE
from fsm.messages import Epoch, Offer, Register, Status, describe
from fsm.states import BlockState, State
from fsm.trace import WORKER, TraceHeader
from sim.cli_view import blocks_text
from sim.explorer.fold import Folded, message_label, span_text
from sim.explorer.merged import Merged, Placed, merged
from sim.explorer.page import Arrow, Block, Lane, Mark, Pool, Request, Run, Said, Step, Touch
from sim.explorer.runs import Facts, resume_marks

STEPS_MAX = 4_000
"""Of more events than that, a stretch is shown: up to the first that breaks a property and a little beyond, else the
last ones."""

AFTER_STEPS = 200
"""So many events beyond the one that broke a property."""


class _Parties:
    """Who is there: sender ranks, receiver ranks, which sender serves which, how large the pools are."""

    def __init__(self, headers: Sequence[TraceHeader], events: Sequence[Placed]) -> None:
        self.senders: dict[int, None] = {}
        self.receivers: dict[int, None] = {}
        self.sender_of: dict[int, int] = {}
        self.blocks: dict[int, int] = {}
        self.block_tokens = 0
        self.tokens: dict[int, int] = {}
        for header in headers:
            if header.side:
                (self.receivers if header.side == "receiver" else self.senders).setdefault(header.rank)
            config = header.scenario.get("config")
            if isinstance(config, dict) and header.side == "receiver":
                self.blocks[header.rank] = _number_at(config, "pool", "blocks")
                self.block_tokens = self.block_tokens or _number_at(config, "layout", "block_tokens")
        for placed in events:
            self._see(placed.event)
        for rank in self.receivers:
            self.sender_of.setdefault(rank, next(iter(self.senders), 0))
        for rank in self.sender_of.values():
            self.senders.setdefault(rank)

    def _see(self, event: AnyEvent) -> None:
        if isinstance(event, (Sent, Received)):
            message = event.message
            self.receivers.setdefault(message.receiver_rank)
            self.sender_of.setdefault(message.receiver_rank, message.sender_rank)
            if isinstance(message, (Offer, Status)):
                self.tokens[message.room] = message.total_tokens
            if isinstance(message, Register):
                self.block_tokens = self.block_tokens or message.layout.block_tokens
            return
        rank, room = getattr(event, "receiver_rank", -1), getattr(event, "room", None)
        if rank >= 0:
            self.receivers.setdefault(rank)
        if room is not None:
            self.tokens.setdefault(room, -1)
        if isinstance(event, Granted):
            highest = max((ref.block for ref in event.blocks), default=-1)
            self.blocks[rank] = max(self.blocks.get(rank, 0), highest + 1)
            self.block_tokens = self.block_tokens or -(-event.capacity // max(1, len(event.blocks)))
        if isinstance(event, Finished) and event.total_tokens >= 0:
            self.tokens[event.room] = event.total_tokens

    def lanes(self) -> tuple[Lane, ...]:
        """Senders first."""
        senders = [Lane(f"sender {rank}", "sender", rank) for rank in sorted(self.senders)]
        return (*senders, *(Lane(f"receiver {rank}", "receiver", rank) for rank in sorted(self.receivers)))

    def pools(self) -> tuple[Pool, ...]:
        """Those of which anything is known."""
        size = self.block_tokens or 1
        return tuple([Pool(rank, blocks, size) for rank, blocks in sorted(self.blocks.items()) if blocks])


def _number_at(config: dict[str, object], section: str, name: str) -> int:
    values = config.get(section)
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, int) else 0


class _Teller:
    """Turns events into steps."""

    def __init__(self, parties: _Parties, headers: Sequence[TraceHeader]) -> None:
        self.parties = parties
        self.headers = headers
        self.folded = Folded(lambda rank: parties.sender_of.get(rank, 0))
        self.blocks: dict[tuple[int, int], Block] = {}
        self._grants: dict[tuple[int, int, Epoch, int], Granted] = {}
        self._said: list[Said] = []
        self._arrows: list[Arrow] = []
        self._touches: list[Touch] = []
        self._changed: dict[tuple[int, int], Block] = {}
        for pool in parties.pools():
            for block in range(pool.blocks):
                self._put(Block(pool.rank, block, BlockState.FREE.value, 0))

    def step(self, number: int, placed: Placed, seen: str) -> Step:
        """One event as a step; ``seen``: the file and line that tells it."""
        event = placed.event
        self._begin(placed)
        self.folded.take(event)
        text = self._words(event)
        return self.tell(number, str(event.__struct_config__.tag), text, placed.at_s, seen)

    def pass_by(self, events: Sequence[Placed], rooms: Collection[int], text: str) -> Step:
        """Step 0: what was so before the first event that is shown, after all of ``events``, of some rooms."""
        for placed in events:
            self._begin(placed)
            self.folded.take(placed.event)
            self._words(placed.event)
        self._said, self._arrows, self._touches = [], [], []
        self._changed = dict(self.blocks)
        self.folded.tell_all(rooms)
        return self.tell(0, "", text, events[-1].at_s if events else 0.0)

    def tell(self, number: int, kind: str, text: str, at_s: float, seen: str = "") -> Step:
        """All that has changed since it was told last."""
        progress, lifecycles = self.folded.take_told()
        step = Step(
            number, kind, text, round(at_s, 6), seen=seen, said=tuple(self._said), arrows=tuple(self._arrows),
            blocks=tuple(self._changed.values()), touches=tuple(self._touches), progress=progress,
            lifecycles=lifecycles,
        )  # fmt: skip
        self._said, self._arrows, self._touches, self._changed = [], [], [], {}
        return step

    def _begin(self, placed: Placed) -> None:
        """A process or an attempt is first heard of. What a new receiver has is new memory, and all of it is free."""
        event, header = placed.event, self.headers[placed.trace]
        if placed.anew and header.side == "receiver":
            for block in list(self.blocks.values()):
                if block.rank == header.rank:
                    self._put(Block(block.rank, block.block, BlockState.FREE.value, 0))
        message = event.message if isinstance(event, (Sent, Received)) else event
        rank, room = getattr(message, "receiver_rank", -1), getattr(message, "room", None)
        epoch = getattr(message, "epoch", None)
        if rank < 0 or room is None or epoch is None:
            return
        known = self.folded.progress.get((rank, room))
        if known is None or _later(epoch, known.epoch):
            self.folded.begin(rank, room, epoch)
            self.folded.renew(f"receiver {rank}", rank, room, str(RECEIVER_TABLE.initial))

    # --- what events say ------------------------------------------------------------------------------

    def _words(self, event: AnyEvent) -> str:
        """An event in words; what it changes is taken note of."""
        if isinstance(event, (Sent, Received)):
            return self._message(event)
        lane, text = self._lane(event), self._text(event)
        if lane:
            self._said.append(Said(lane, getattr(event, "room", -1), text))
        return f"{lane}: {text}" if lane else text

    def _lane(self, event: AnyEvent) -> str:
        if isinstance(event, (StateChanged, Finished)):
            return self.folded.lane_of(event.side, event.receiver_rank)
        if isinstance(event, Executed):
            return self.folded.lane_of("sender", event.receiver_rank)
        if isinstance(event, Restarted) and event.receiver_ranks:
            return self.folded.lane_of("sender", event.receiver_ranks[0])
        rank = getattr(event, "receiver_rank", -1)
        return f"receiver {rank}" if rank >= 0 else ""

    def _message(self, event: Sent | Received) -> str:
        message = event.message
        sender, receiver = f"sender {message.sender_rank}", f"receiver {message.receiver_rank}"
        mine, other = (sender, receiver) if event.side == "sender" else (receiver, sender)
        room, label, text = getattr(message, "room", -1), message_label(message), describe(message)
        if isinstance(event, Received):
            self._arrows.append(Arrow("message", "arrive", other, mine, room, label, text))
            return f"{mine} takes in {label}"
        self._arrows.append(Arrow("message", "leave", mine, other, room, label, text))
        if event.lost:
            self._arrows.append(Arrow("message", "lose", mine, other, room, label, text))
        if event.resend:
            self._said.append(Said(mine, room, f"resend {label}"))
        return f"{mine} sends {label}" + (" again" if event.resend else "")

    def _text(self, event: AnyEvent) -> str:
        if isinstance(event, StateChanged):
            return str(event.target) if event.target != event.source else f"{event.cause}, stays {event.target}"
        if isinstance(event, Finished):
            self._ended(event)
            return f"ends in {event.state}" + (f" ({event.reason})" if event.state != State.SUCCESS else "")
        if isinstance(event, Granted):
            self._granted(event)
            blocks = blocks_text([ref.block for ref in event.blocks])
            return f"grant {event.seq} {span_text(event.start, event.capacity)} in {blocks}"
        if isinstance(event, Executed):
            self._bytes("leave", event)
            return f"write {event.seq} {span_text(event.start, event.count)}"
        if isinstance(event, Wrote):
            self._wrote(event)
            return f"bytes {span_text(event.start, event.count)}" + (" TRESPASS" if event.trespass else "")
        if isinstance(event, Delivered):
            self._delivered(event)
            return f"copy {span_text(event.start, event.count)}" + (" WRONG" if event.wrong else "")
        if isinstance(event, Progressed):
            return f"@{event.tokens}"
        return _other_text(event)

    # --- blocks ---------------------------------------------------------------------------------------

    def _put(self, block: Block) -> None:
        self.blocks[block.rank, block.block] = self._changed[block.rank, block.block] = block

    def _granted(self, event: Granted) -> None:
        size = self.parties.block_tokens or 1
        rank = event.receiver_rank
        self._grants[rank, event.room, event.epoch, event.seq] = event
        for index, ref in enumerate(event.blocks):
            start, tokens = event.start + index * size, max(0, min(size, event.capacity - index * size))
            state = BlockState.GRANTED.value
            self._put(Block(rank, ref.block, state, ref.generation, event.room, event.seq, start, tokens))

    def _reached(self, event: Wrote | Delivered) -> list[tuple[Block, int, int]]:
        """The blocks that an event is about, each with its first token and how many."""
        grant = self._grants.get((event.receiver_rank, event.room, event.epoch, event.seq))
        size, reached = self.parties.block_tokens or 1, []
        for index, ref in enumerate(grant.blocks if grant is not None else ()):
            count = min(size, event.count - index * size)
            if count > 0:
                reached.append((self.blocks[event.receiver_rank, ref.block], event.start + index * size, count))
        return reached

    def _wrote(self, event: Wrote) -> None:
        self._bytes("arrive", event)
        for block, start, count in self._reached(event):
            wrong = event.trespass if f"block {block.block} " in f"{event.trespass} " else ""
            self._touches.append(Touch(block.rank, block.block, "write", event.room, start, count, wrong))
            if block.state == BlockState.GRANTED and (block.room, block.seq) == (event.room, event.seq):
                self._put(_moved(block, BlockState.LANDED.value, f"{span_text(start, count)} of room {event.room}"))

    def _delivered(self, event: Delivered) -> None:
        for index, (block, start, count) in enumerate(self._reached(event)):
            wrong = "" if index else event.wrong
            self._touches.append(Touch(block.rank, block.block, "read", event.room, start, count, wrong))
            if (block.room, block.seq) == (event.room, event.seq):
                self._put(Block(block.rank, block.block, BlockState.FREE.value, block.generation + 1))

    def _ended(self, event: Finished) -> None:
        """A request that failed keeps the blocks of its open grant in quarantine, as far as a trace tells."""
        if event.side != "receiver" or event.state == State.SUCCESS:
            return
        for block in list(self.blocks.values()):
            held = block.state in (BlockState.GRANTED, BlockState.LANDED)
            if held and (block.rank, block.room) == (event.receiver_rank, event.room):
                self._put(_moved(block, BlockState.QUARANTINED.value, block.holds))

    def _bytes(self, end: str, event: Executed | Wrote) -> None:
        span = span_text(event.start, event.count)
        text = f"room {event.room} seq {event.seq} {span}"
        source = self.folded.lane_of("sender", event.receiver_rank)
        self._arrows.append(Arrow("bytes", end, source, f"receiver {event.receiver_rank}", event.room, span, text))


def _other_text(event: AnyEvent) -> str:
    if isinstance(event, LedgerRefused):
        return f"ledger refuses ({event.property}): {event.text}"
    if isinstance(event, Audited):
        return f"audit fails: {event.text}"
    if isinstance(event, Restarted):
        return "comes back as a new process"
    if isinstance(event, Repeated):
        return f"{event.target}: duplicate {event.message}" + (f": {event.changed}" if event.changed else "")
    if isinstance(event, Note):
        return f"{event.kind}: {event.text}"
    return str(event.__struct_config__.tag)


def _later(epoch: Epoch, known: str) -> bool:
    """Whether an attempt comes after the one that is known by name."""
    boot_id, _, counter = known.partition(".")
    return tuple(epoch) > (int(boot_id or 0), int(counter or 0))


def _moved(block: Block, state: str, holds: str) -> Block:
    return Block(block.rank, block.block, state, block.generation, block.room, block.seq, block.start, block.tokens,
                 holds)  # fmt: skip


def _window(count: int, broken: int | None) -> tuple[int, int]:
    """The first event that is shown, and the one behind the last."""
    if count <= STEPS_MAX:
        return 0, count
    end = count if broken is None else min(count, broken + AFTER_STEPS)
    return max(0, end - STEPS_MAX), end


def run_of_seen(paths: Sequence[Path], *, command: str = "", facts: Facts = ()) -> Run:
    """The traces of one or several workers of one run as a page's run. Raises LocalError for a trace of the simulator,
    for traces that do not belong together, or without any event."""
    seen = merged(paths)
    if not seen.events:
        raise LocalError(f"{', '.join(map(str, paths))}: no event was seen; there is nothing to show")
    start, end = _window(len(seen.events), seen.broken[0][0] if seen.broken else None)
    parties = _Parties(seen.headers, seen.events)
    teller = _Teller(parties, seen.headers)
    first = "what was seen begins" if not start else f"{start:,} events before this are not shown"
    rooms = _rooms_of(seen.events[start:end])
    steps = [teller.pass_by(seen.events[:start], rooms, first)]
    marks: list[Mark] = []
    for number, placed in enumerate(seen.events[start:end], start=1):
        steps.append(teller.step(number, placed, f"{seen.names[placed.trace]}:{placed.line}"))
        if placed.anew:
            header = seen.headers[placed.trace]
            name = f"{header.side} {header.rank}"
            text = f"from here on {name} is a new process ({seen.names[placed.trace]}); the one before is gone"
            marks.append(Mark("fault", number, text))
        marks += resume_marks(number, [placed.event])
        restarted = isinstance(placed.event, Restarted)
        if restarted or (isinstance(placed.event, Note) and placed.event.kind == "fault"):
            marks.append(Mark("fault", number, steps[-1].text))
    for number, violation in seen.broken:
        if start < number <= end:
            what = f"{steps[number - start].text}: " if number == seen.refused else ""
            marks.append(Mark("violation", number - start, what + violation.text, violation.property))
    marks += [Mark("inferred", number - start, text) for number, text in seen.inferred if start < number <= end]
    marks.sort(key=lambda mark: mark.step)
    requests = tuple([Request(room, parties.tokens.get(room, -1)) for room in sorted(rooms)])
    return Run(
        "workers", WORKER, "violated" if seen.broken else "holds", command,
        (*_facts(seen, start, end), *facts), parties.lanes(), parties.pools(), requests, tuple(steps), tuple(marks),
    )  # fmt: skip


def _rooms_of(events: Sequence[Placed]) -> dict[int, None]:
    """The rooms that some events speak of."""
    rooms: dict[int, None] = {}
    for placed in events:
        event = placed.event
        room = getattr(event.message if isinstance(event, (Sent, Received)) else event, "room", None)
        if room is not None:
            rooms[room] = None
    return rooms


def _facts(seen: Merged, start: int, end: int) -> list[tuple[str, str]]:
    """What is to be known of what is shown."""
    count, traces = len(seen.events), len(seen.headers)
    told = [("events", f"{count:,}, of {traces} {'process' if traces == 1 else 'processes'}")]
    if end - start < count:
        told.append(("shown", f"events {start + 1:,} to {end:,}"))
    order = "as its process saw them" if traces == 1 else "causes before effects; clocks of processes only break ties"
    told += [("order", order), ("coverage", "sampled: one run, as these traces tell it")]
    if seen.inferred:
        told.append(("inferred", f"{len(seen.inferred):,} events that are in no trace and must have happened"))
    told.append(("blocks", "concluded from grants, writes and copies; a trace does not say when a block became free"))
    return told
