"""What a world of real objects is in the fields of the protocol model: the named projection.

:data:`ROOM_TABLE`, :data:`CLAIM_TABLE` and :data:`BLOCK_TABLE` say field by field what is compared, where it is read in
the objects, and when. :data:`NOT_SHOWN` names the fields that are not compared, and why. Two states, of the model or of
the world, count as the same if they are equal in everything that is shown.

What is shown *when* something else is so (the start of a grant *while one is out*) is stale at other times: both sides
leave old values behind there, and nothing reads them. Generations are names: it is shown whether a reference is to the
present one. Blocks of a rank are names too: they are put in the order of their records.

There is nothing of the following in the model, and so nothing of it is shown: time, resends, heartbeats, reasons of a
failure, checksums, positions, headers, the content of memory, result memory, source blocks, the budgets of faults.

:func:`values_by_token` reads a world as a state of the model, and :class:`Projection` says what is shown of a state,
whether it was read from a world or reached in the model. So one list of fields and conditions holds for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsm import kernel
from fsm.kernel import ARRAY, INT, UNKNOWN, Number, Ops
from fsm.messages import BlockRef, Epoch
from fsm.reasons import Reason
from fsm.receiver import Receiver
from fsm.receiver_room import Chunk, ReceiverRoom, Tombstone
from fsm.sender import Sender
from fsm.sender_room import LaneKey
from sim.flight import Flight
from sim.model.form import Fields, View
from sim.model.protocol_bounded import Layout
from sim.model.protocol_parts import BLOCK_NUMBERS, NOBODY, NONE_SEQ, STATE_NUMBERS, Part, Step
from sim.model.protocol_receiver import Place
from sim.model.protocol_rules import PROTOCOL_RULES
from sim.world import World

# --- when a field is looked at ---------------------------------------------------------------------------


def always(room: Part) -> Number:
    """At all times."""
    return room.state >= 0


def live(room: Part) -> Number:
    """While the request has not ended on the receiver."""
    return room.state < kernel.SUCCESS


def granted(room: Part) -> Number:
    """While a grant is out, and the request lives."""
    return live(room) & (room.open == 1)


def closing(room: Part) -> Number:
    """While a STATUS waits for the receiver's own completion."""
    return granted(room) & (room.closing == 1)


def held(room: Part) -> Number:
    """While blocks of the request are in quarantine."""
    return room.held == 1


def live_or_held(room: Part) -> Number:
    """While the request lives, or has blocks in quarantine."""
    return live(room) | held(room)


def granted_or_held(room: Part) -> Number:
    """While a grant is out, or its blocks are in quarantine."""
    return granted(room) | held(room)


def registered(room: Part) -> Number:
    """While it is known which process the request was registered with, and that matters."""
    return live_or_held(room) & (room.registered == 1)


def not_failed(room: Part) -> Number:
    """Until the request fails."""
    return room.state != kernel.FAILED


def with_token(room: Part) -> Number:
    """While a chunk holds the token that is followed."""
    return not_failed(room) & (room.t_in == 1)


def lane_live(room: Part) -> Number:
    """While the lane of the present sender process has not ended."""
    return room.l_state < kernel.SUCCESS


def parked(room: Part) -> Number:
    """While a grant waits to be executed."""
    return lane_live(room) & (room.parked == 1)


def writing(room: Part) -> Number:
    """While a write is outstanding on the sender."""
    return room.writing == 1


def under_way(room: Part) -> Number:
    """While a write is outstanding on the sender, or its bytes have not landed."""
    return (room.writing == 1) | (room.flight == 1)


class Shown(NamedTuple):
    """A field, where it stands in the objects, and when it is compared."""

    field: str
    where: str
    when: Callable[[Part], Number] = always


ROOM_TABLE: tuple[Shown, ...] = (
    # the receiver
    Shown("state", "ReceiverRoom.state; Tombstone.state once the request has ended"),
    Shown("registered", "ReceiverRoom.registered; of a tombstone: whether peer_boot_id is above 0", live_or_held),
    Shown("peer_boot", "peer_boot_id of the room or the tombstone", registered),
    Shown("total", "ReceiverRoom.total_tokens", live),
    Shown("word", "ReceiverRoom.word_tokens", live),
    Shown("landed", "ReceiverRoom.landed_tokens", live),
    Shown("landed_seq", "landed_seq of the room or the tombstone", live_or_held),
    Shown("handled", "ReceiverRoom.handled_tokens", live),
    Shown("last_resume", "ReceiverRoom.last_resume_at", live),
    Shown("delivered", "ReceiverRoom.delivered_tokens", live),
    Shown("next_seq", "ReceiverRoom.next_seq; Tombstone.held_seq + 1", live_or_held),
    Shown("open", "whether ReceiverRoom.grant is there", live),
    Shown("g_start", "ReceiverRoom.grant.start", granted),
    Shown("g_cap", "ReceiverRoom.grant.capacity", granted),
    Shown("g_blocks", "how many blocks ReceiverRoom.grant, or Tombstone.held, names", granted_or_held),
    Shown("closing", "whether ReceiverRoom.closing is there", granted),
    Shown("closing_tokens", "ReceiverRoom.closing.committed_tokens", closing),
    Shown("failure", "whether ReceiverRoom.failure is anything but NONE", live),
    Shown("peer_gone", "ReceiverRoom.peer_gone", live),
    Shown("leased", "ReceiverRoom.leased", live),
    Shown("read_seq", "the last of ReceiverRoom.chunks that is being read, and all before", live),
    Shown("held", "whether Tombstone.held names blocks"),
    Shown("acknowledged", "Tombstone.acknowledged", held),
    Shown("executed_seq", "Tombstone.executed_seq", held),
    # its chunks, ReceiverRoom.chunks or Tombstone.reading
    Shown("t_in", "whether a chunk holds the token that is followed", not_failed),
    Shown("t_seq", "the seq of that chunk", with_token),
    Shown("t_chunk", "its tokens", with_token),
    Shown("rest", "the tokens of all other chunks", not_failed),
    # the lane: SenderRoom.lanes[rank], and LaneTombstone once it has ended
    Shown("s_boot", "Sender.boot_id"),
    Shown("l_state", "Lane.state, or LaneTombstone.state; a process that was never told of the request: Bootstrapping"),
    Shown("l_seq", "Lane.seq, or LaneTombstone.executed_seq"),
    Shown("l_committed", "Lane.committed_tokens", lane_live),
    Shown("staged", "SenderRoom.staged", lane_live),
    Shown("parked", "whether Lane.parked is there", lane_live),
    Shown("p_seq", "Lane.parked.seq", parked),
    Shown("p_start", "Lane.parked.start", parked),
    Shown("p_cap", "Lane.parked.capacity", parked),
    Shown("writing", "whether Lane.writing is there"),
    Shown("ack_owed", "Lane.ack_owed", writing),
    # the write: World.flights
    Shown("flight", "whether a Flight of the request and rank has not landed"),
    Shown("f_boot", "Flight.boot_id", under_way),
    Shown("f_seq", "Flight.grant.seq", under_way),
    Shown("f_start", "Flight.grant.start", under_way),
    Shown("f_cap", "Flight.grant.capacity", under_way),
    Shown("f_source", "Flight.source_start", under_way),
)
"""Of a request on a rank."""

CLAIM_TABLE: tuple[Shown, ...] = (
    Shown("g_has", "whether ReceiverRoom.grant, or Tombstone.held, names the block", granted_or_held),
    Shown("g_index", "at which place", granted_or_held),
    Shown("g_gen", "whether in its present generation", granted_or_held),
    Shown("c_has", "whether a chunk lies in the block"),
    Shown("c_seq", "the seq of that chunk"),
    Shown("c_gen", "whether it names the present generation"),
    Shown("c_tokens", "the tokens of the whole chunk"),
    Shown("p_has", "whether Lane.parked names the block", parked),
    Shown("p_gen", "whether in its present generation", parked),
    Shown("f_has", "whether Flight.grant names the block", under_way),
    Shown("f_gen", "whether in its present generation", under_way),
)
"""Of a request and a block. A field other than ``.._has`` is compared where the block is named."""

BLOCK_TABLE: dict[str, str] = {
    "state": "BlockRecord.state",
    "owner": "BlockRecord.owner.room, as the number of the request",
    "seq": "BlockRecord.owner.seq",
    "listed": "how often the block stands in BlockLedger.free_list",
}
"""Of a block: its record in the ledger of its rank."""

NOT_SHOWN: dict[str, str] = {
    "others": "the other ranks as one; a bounded model has them all",
    "dropped": "history: tokens of copies that failed, which a clause adds up",
    "offered": "messages: whether an OFFER was ever sent",
    "done_seq": "messages: the newest STATUS that was ever sent",
    "done_tokens": "messages: what it ought to say",
    "done_said": "messages: what it says",
    "ack_sent": "messages: whether an ABORT_ACK was ever sent",
    "ack_seq": "messages: what it says",
    "x_seq": "history: the last grant that was executed",
    "d_seq": "history: the last grant whose bytes have landed",
    "arrived": "history: how far bytes have landed without a gap",
    "t_times": "history: how often the token has landed",
    "t_out": "history: how often it was delivered",
    "t_dropped": "history: whether a copy of it failed",
    "o_start": "history: where the grant that is followed started",
    "ended": "history: how the request ended first",
    "l_ended": "history: how the lane ended first",
    "twice": "history: whether a seq was executed twice",
    "reported": "history: the progress that was told last",
    "fell": "history: whether it ever fell",
    "refused": "history: whether anything was ever refused",
    "early_left": "history: what the last early grant left",
    "overtaken": "history: whether a newcomer overtook who waited",
    "same_list": "what a wrong detector goes by",
    "generation": "a name: references say whether they are to the present one",
    "n_has": "history: what was freed last, which a wrong rule frees again",
    "n_seq": "history: the same",
    "n_gen": "history: the same",
}
"""Fields of the model that are not compared."""


# --- of the model ----------------------------------------------------------------------------------------


class Projection:
    """The projection for one layout: which columns there are, and what they are of a state."""

    def __init__(self, layout: Layout, landed_required: bool) -> None:
        self.layout = layout
        # Where no own completion is needed, the world sends none, and what the model notes of them is read by nobody.
        self.rooms = [shown for shown in ROOM_TABLE if landed_required or shown.field != "landed_seq"]
        self.names = [f"{place.room}_{shown.field}" for place in layout.places for shown in self.rooms]
        bounds = layout.bounds
        most = max(bounds.size, bounds.early_tokens) + 2
        self._bases = {
            "state": 7, "owner": bounds.rooms + 3, "seq": most, "listed": bounds.rooms * bounds.size + 3, "has": 3,
            "index": bounds.blocks + 1, "gen": 3, "tokens": most,
        }  # fmt: skip

    def room_values(self, ops: Ops, view: View) -> list[Number]:
        """The shown fields of all requests on all ranks, 0 where they are not looked at."""
        step = Step(ops, view, PROTOCOL_RULES)
        found = []
        for place in self.layout.places:
            room = step.part(place.room)
            found += [ops.where(shown.when(room), getattr(room, shown.field), 0) for shown in self.rooms]
        return found

    def block_values(self, ops: Ops, view: View, rank: int, block: str) -> dict[str, Number]:
        """The shown fields of a block, and of every request with it, 0 where they are not looked at."""
        step = Step(ops, view, PROTOCOL_RULES)
        part = step.part(block)
        found: dict[str, Number] = {name: getattr(part, name) for name in BLOCK_TABLE}
        for number, room in enumerate(self.layout.rooms):
            place = room[rank]
            claim = step.claim(step.part(place.room), block)
            for shown in CLAIM_TABLE:
                has = (getattr(claim, f"{shown.field[0]}_has") == 1) & shown.when(step.part(place.room))
                value = getattr(claim, shown.field)
                if shown.field.endswith("_gen"):
                    value = ops.where(value == part.generation, 1, 0)
                found[f"r{number}_{shown.field}"] = ops.where(has, value, 0)
        return found

    def columns(self, ops: Ops, view: View) -> list[list[Number]]:
        """For each rank, and then for each of its blocks: the block as one number. Blocks are not in order yet."""
        ranks = []
        for rank, pool in enumerate(self.layout.pools):
            numbers = []
            for block in pool:
                number: Number = 0
                for name, value in self.block_values(ops, view, rank, block).items():
                    number = number * self._bases[name.rpartition("_")[2]] + (value + 1)
                numbers.append(number)
            ranks.append(numbers)
        return ranks

    def rows(self, view: View, count: int) -> NDArray[np.int64]:
        """One row for each of ``count`` states of the model: what is shown of it, blocks in order."""
        found = [np.broadcast_to(value, count) for value in self.room_values(ARRAY, view)]
        for numbers in self.columns(ARRAY, view):
            blocks = np.sort(np.stack([np.broadcast_to(number, count) for number in numbers]), axis=0)
            found += list(blocks)
        return np.ascontiguousarray(np.stack(found, axis=1).astype(np.int64))

    def named(self, state: Mapping[str, int]) -> dict[str, int]:
        """What is shown of one state, by name; blocks by their place in the order."""
        view = Fields(state, "projection")
        found = {name: int(value) for name, value in zip(self.names, self.room_values(INT, view), strict=True)}
        for rank, (pool, numbers) in enumerate(zip(self.layout.pools, self.columns(INT, view), strict=True)):
            for place, index in enumerate(sorted(range(len(pool)), key=lambda index: numbers[index])):
                for name, value in self.block_values(INT, view, rank, pool[index]).items():
                    found[f"k{rank} block {place} {name}"] = int(value)
        return found


# --- of the world ----------------------------------------------------------------------------------------


def values_by_token(world: World, layout: Layout) -> list[dict[str, int]]:
    """A world in the fields of the model that are shown, once for each token that may be followed.

    Generations are told from the present one: of a block it is 1, of a reference 1 if it is to the present one.
    """
    readers = _readers(world, layout)
    found: dict[str, Any] = {}
    for reader in readers:
        room = reader.place.room
        found |= {f"{room}_{name}": value for name, value in reader.room().items()}
        for index, block in enumerate(reader.place.blocks):
            found |= {f"{room}_{block}_{name}": value for name, value in reader.claim(index).items()}
    owners = {name: index + 1 for name, index in world.receiving.items()}
    for rank, pool in enumerate(layout.pools):
        for index, block in enumerate(pool):
            found |= {f"{block}_{name}": value for name, value in _block(world, rank, index, owners).items()}
    base = {name: int(value) for name, value in found.items()}
    states = []
    for token in range(layout.bounds.size):
        followed = {f"{reader.place.room}_{n}": v for reader in readers for n, v in reader.chunks(token).items()}
        states.append({**base, **followed})
    return states


def _readers(world: World, layout: Layout) -> list[_Reader]:
    names = {index: name for name, index in world.receiving.items()}
    return [
        _Reader(world, place, number, rank, names.get(number))
        for number, places in enumerate(layout.rooms)
        for rank, place in enumerate(places)
    ]


def _block(world: World, rank: int, index: int, owners: Mapping[tuple[int, Epoch], int]) -> dict[str, int]:
    ledger = _real(world.receivers[rank]).ledger
    record = ledger.record(index)
    owner = record.owner
    return {
        "state": BLOCK_NUMBERS[record.state],
        "owner": NOBODY if owner is None else owners[owner.room, owner.epoch],
        "seq": NONE_SEQ if owner is None else owner.seq,
        "listed": ledger.free_list.count(index),
        "generation": 1,
    }


def _real(process: Any) -> Any:
    """The object itself; a search has one that remembers in its place."""
    return process.real() if hasattr(process, "real") else process


class _Reader:
    """One request on one rank of a world. ``name`` is its room and epoch; ``None`` until it has arrived."""

    def __init__(self, world: World, place: Place, number: int, rank: int, name: tuple[int, Epoch] | None) -> None:
        self.world, self.place, self.rank, self.number = world, place, rank, number
        self.receiver: Receiver = _real(world.receivers[rank])
        self.sender: Sender = _real(world.senders[world.sender_of[rank]])
        self.name = name
        self.live: ReceiverRoom | None = None
        self.tombstone: Tombstone | None = None
        if name is not None:
            room = self.receiver.rooms.get(name[0])
            self.live = room if room is not None and room.epoch == name[1] else None
            self.tombstone = self.receiver.tombstones.get(name) if self.live is None else None
        self.flight = self._flight()

    def _flight(self) -> Flight | None:
        for flight in self.world.flights:
            grant = flight.grant
            mine = (grant.room, grant.epoch) == self.name and grant.receiver_rank == self.rank
            if mine and not (flight.landed and flight.told):
                return flight
        return None

    def room(self) -> dict[str, Any]:
        """The fields of :data:`ROOM_TABLE` but the chunks; 0 for what the objects do not have now."""
        found = dict.fromkeys([shown.field for shown in ROOM_TABLE], 0)
        return {**found, **self._receiving(), **self._sending(), **self._writing()}

    def _receiving(self) -> dict[str, Any]:
        if self.live is not None:
            return self._living(self.live)
        stone = self.tombstone
        if self.name is None or stone is None:  # it has not arrived yet (as if it had, and nothing more had happened)
            return {"total": UNKNOWN, "landed_seq": NONE_SEQ, "read_seq": NONE_SEQ}
        return {
            "state": STATE_NUMBERS[stone.state], "registered": stone.peer_boot_id > 0,
            "peer_boot": stone.peer_boot_id, "landed_seq": stone.landed_seq,
            "next_seq": stone.held_seq + 1, "open": bool(stone.held), "g_blocks": len(stone.held),
            "held": bool(stone.held), "acknowledged": stone.acknowledged, "executed_seq": stone.executed_seq,
        }  # fmt: skip

    def _living(self, room: ReceiverRoom) -> dict[str, Any]:
        grant, closing = room.grant, room.closing
        unread = [chunk.seq for chunk in room.chunks if not chunk.reading]
        found = {
            "state": STATE_NUMBERS[room.state], "registered": room.registered,
            "peer_boot": room.peer_boot_id, "total": room.total_tokens, "word": room.word_tokens,
            "landed": room.landed_tokens, "landed_seq": room.landed_seq, "handled": room.handled_tokens,
            "last_resume": room.last_resume_at, "delivered": room.delivered_tokens, "next_seq": room.next_seq,
            "open": grant is not None, "closing": closing is not None, "failure": room.failure != Reason.NONE,
            "peer_gone": room.peer_gone, "leased": room.leased,
            "read_seq": min(unread, default=room.next_seq - (grant is not None)) - 1,
        }  # fmt: skip
        if grant is not None:
            found |= {"g_start": grant.start, "g_cap": grant.capacity, "g_blocks": len(grant.blocks)}
        if closing is not None:
            found["closing_tokens"] = closing.committed_tokens
        return found

    def _kept(self) -> Sequence[Chunk]:
        if self.live is not None:
            return self.live.chunks
        return self.tombstone.reading if self.tombstone is not None else ()

    def chunks(self, token: int) -> dict[str, int]:
        """Its chunks, while that token is followed."""
        found = {"t_in": 0, "t_seq": NONE_SEQ, "t_chunk": 0, "rest": 0}
        for chunk in self._kept():
            if chunk.start <= token < chunk.start + chunk.tokens:
                found |= {"t_in": 1, "t_seq": chunk.seq, "t_chunk": chunk.tokens}
            else:
                found["rest"] += chunk.tokens
        return found

    def _sending(self) -> dict[str, Any]:
        world, sender = self.world, self.sender
        found: dict[str, Any] = {"s_boot": sender.boot_id, "l_seq": NONE_SEQ}
        if self.name is None:
            return found
        stone = sender.tombstones.get(LaneKey(*self.name, self.rank))
        record = sender.rooms.get(self.name[0]) if world.sending.get(self.name[0]) == self.number else None
        lane = record.lanes[self.rank] if record is not None else None
        if lane is not None and record is not None:
            found |= {
                "l_state": STATE_NUMBERS[lane.state], "l_seq": lane.seq, "l_committed": lane.committed_tokens,
                "staged": record.staged, "parked": lane.parked is not None, "writing": lane.writing is not None,
                "ack_owed": lane.ack_owed,
            }  # fmt: skip
            if lane.parked is not None:
                found |= {"p_seq": lane.parked.seq, "p_start": lane.parked.start, "p_cap": lane.parked.capacity}
        elif stone is None and sender.boot_id == 1:
            found["l_state"] = kernel.FAILED  # it ended before any receiver was known, and left nothing
        if stone is not None:
            found |= {"l_state": STATE_NUMBERS[stone.state], "l_seq": stone.executed_seq}
        return found

    def _writing(self) -> dict[str, Any]:
        flight = self.flight
        if flight is None:
            return {}
        return {
            "flight": not flight.landed, "f_boot": flight.boot_id, "f_seq": flight.grant.seq,
            "f_start": flight.grant.start, "f_cap": flight.grant.capacity, "f_source": flight.source_start,
        }  # fmt: skip

    # --- blocks ---------------------------------------------------------------------------------------

    def claim(self, index: int) -> dict[str, Any]:
        """The fields of :data:`CLAIM_TABLE` for one block of the rank."""
        found: dict[str, Any] = {}
        grant: tuple[BlockRef, ...] = ()
        if self.live is not None and self.live.grant is not None:
            grant = self.live.grant.blocks
        elif self.tombstone is not None:
            grant = self.tombstone.held
        found |= self._named("g", index, grant)
        found |= self._named("p", index, self._parked())
        found |= self._named("f", index, self.flight.grant.blocks if self.flight is not None else ())
        found |= {"c_has": 0, "c_seq": NONE_SEQ, "c_gen": 0, "c_tokens": 0}
        for chunk in self._kept():
            named = self._named("c", index, chunk.blocks)
            if named["c_has"]:
                found |= {"c_has": 1, "c_gen": named["c_gen"], "c_seq": chunk.seq, "c_tokens": chunk.tokens}
        return found

    def _parked(self) -> tuple[BlockRef, ...]:
        if self.name is None or self.world.sending.get(self.name[0]) != self.number:
            return ()
        record = self.sender.rooms.get(self.name[0])
        lane = record.lanes[self.rank] if record is not None else None
        return lane.parked.blocks if lane is not None and lane.parked is not None else ()

    def _named(self, kind: str, index: int, blocks: Sequence[BlockRef]) -> dict[str, Any]:
        for place, ref in enumerate(blocks):
            if ref.block == index:
                current = self.receiver.ledger.record(index).generation == ref.generation
                return {f"{kind}_has": 1, f"{kind}_index": place, f"{kind}_gen": current}
        return {f"{kind}_has": 0, f"{kind}_index": 0, f"{kind}_gen": 0}
