"""A real receiver and a real sender, driven step by step beside the bounded model of the protocol.

Each action of the model is done to the objects of ``fsm`` too, and what they are then is compared with what the model
says. So the model is held to the code that production runs, one action at a time.
"""

from __future__ import annotations

from random import Random
from typing import Any

from fsm import kernel
from fsm.allocators import Choices, Fifo, Kind
from fsm.blocks import BlockLedger
from fsm.effects import CopyOut, Send, Stage, Write
from fsm.messages import Abort, AbortAck, Grant, Layout, Message, Offer, Register, RegisterAck, Status
from fsm.ranks import fold
from fsm.reasons import Reason
from fsm.receiver import Receiver
from fsm.receiver_facts import ReceiverConfig
from fsm.rules import PROTOCOL
from fsm.sender import Sender, SenderConfig
from fsm.states import BlockState, State
from sim.model.form import Action, Model, apply, holds
from sim.model.form import State as Fields
from sim.model.protocol_bounded import Bounds, bounded

ROOM = 7
P = "r0k0"
STATES = list(State)
BLOCK_STATES = list(BlockState)

# What the objects do on their own as soon as it is possible, and the model as an action of its own.
EAGER = ("release", "execute")
# These differ from "abort or NACK" only in why the request fails; no clock and no news of a restart is driven here.
LEFT_OUT = ("a deadline passes", "a restart is seen", "an unknown room")


class Told(Fifo):
    """An allocator that offers what it is told to, and gives the blocks that it is told to give."""

    name = "told"

    def __init__(self) -> None:
        self.blocks: tuple[int, ...] = ()
        self.offered = 0

    def offer(self, free: int, choices: Choices) -> int:
        return min(free, self.offered)

    def take(
        self, free: tuple[int, ...], count: int, room: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[int, ...]:
        assert len(self.blocks) == count, f"the model gives {self.blocks}, the code takes {count}"
        return self.blocks


def parse(name: str) -> tuple[str, dict[str, int], list[str]]:
    """The kind of an action of the model, and what was chosen in it."""
    body = name.split(": ", 1)[1]
    words = body.split(" ")
    chosen = {word.split("=")[0]: int(word.split("=")[1]) for word in words if "=" in word}
    blocks = [words[-1][i : i + 2] for i in range(0, len(words[-1]), 2)] if body.startswith("tick: grant") else []
    kind = " ".join(word for word in words if "=" not in word)
    return ("tick: grant" if blocks else kind), chosen, blocks


class Lockstep:
    """One request on one rank: the model, and the objects."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.model: Model = bounded(bounds)
        self.state: Fields = self.model.start_states()[0]
        self.layout = Layout(bounds.block_tokens, 1, "int64", ("fill_ids",), 0, 1)
        self.allocator = Told()
        config = ReceiverConfig(
            self.layout,
            total_tokens_max=max(bounds.size, bounds.early_tokens),
            grant_blocks_max=bounds.grant_blocks_max,
            landed_required=bounds.late,
            two_sided=bounds.late,
        )
        self.receiver = Receiver(config, BlockLedger(bounds.blocks, self.allocator), boot_id=1)
        self.messages: list[Message] = []
        self.copies: dict[int, CopyOut] = {}
        self.writes: list[Write] = []
        self.effects(self.receiver.submit(ROOM, 0, early_tokens=bounds.early_tokens))
        self.epoch = self.receiver.rooms[ROOM].epoch
        self.new_sender()
        self.done: dict[str, int] = {}
        self.trace: list[str] = []

    def new_sender(self) -> None:
        self.sender = Sender(SenderConfig(self.layout, source_blocks=64), boot_id=self.state[f"{P}_s_boot"])
        self.effects(self.sender.submit(ROOM, self.bounds.size, 0))
        self.staged = False

    def effects(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.messages.append(effect.message)
            elif isinstance(effect, CopyOut):
                self.copies[effect.seq] = effect
            elif isinstance(effect, Write):
                self.writes.append(effect)
            else:
                assert not isinstance(effect, Stage) or effect.room == ROOM

    # --- one step -------------------------------------------------------------------------------------

    def walk(self, random: Random, steps: int) -> None:
        """Actions of the model, drawn at random, each done to the objects and compared."""
        for _ in range(steps):
            possible = [action for action in self.model.actions if self.may(action)]
            random.shuffle(possible)
            # What changes nothing, and what ends a request early, comes last most of the time.
            faulty = random.random() < 0.1
            possible.sort(key=lambda action: (self.changes_nothing(action), not (action.fair or faulty)))
            if not possible or self.changes_nothing(possible[0]):
                return
            if not any(self.do(action) for action in possible):
                return
            if random.random() < 0.3:
                self.repeat(random)

    def changes_nothing(self, action: Action) -> bool:
        return apply(self.model, action, self.state) == self.state

    def may(self, action: Action) -> bool:
        kind, _, _ = parse(action.name)
        if kind in EAGER or kind in LEFT_OUT or not holds(self.model, action, self.state):
            return False
        if kind != "tick: grant":
            return True
        # One tick of the code decides about the request first, and grants then.
        first = [
            other for other in self.model.actions if other.name.startswith("r0: tick") and other.name != action.name
        ]
        return not any(holds(self.model, other, self.state) for other in first if "grant" not in other.name)

    def do(self, action: Action) -> bool:
        """Take an action in both worlds; False if the code has no such step (the model allows more)."""
        kind, chosen, blocks = parse(action.name)
        before = self.state
        if not self.real(kind, chosen, blocks):
            return False
        self.state = apply(self.model, action, before)
        for name in EAGER:
            for eager in self.model.actions:
                if parse(eager.name)[0] == name and holds(self.model, eager, self.state):
                    self.state = apply(self.model, eager, self.state)
        if kind == "the sender crashes":
            self.new_sender()
        self.done[kind] = self.done.get(kind, 0) + 1
        self.trace.append(action.name)
        self.compare()
        return True

    def message(self, kind: type[Any], **fields: int) -> Any:
        found = [
            message
            for message in self.messages
            if isinstance(message, kind) and all(getattr(message, name) == value for name, value in fields.items())
        ]
        return found[-1] if found else None

    def real(self, kind: str, chosen: dict[str, int], blocks: list[str]) -> bool:
        state, receiver, sender = self.state, self.receiver, self.sender
        seq, boot = chosen.get("seq", -1), chosen.get("boot", -1)
        if kind.startswith("tick"):
            self.tick(blocks)
        elif kind.startswith("receive"):
            return self.deliver(kind, seq, boot)
        elif kind in ("a copy ends", "a copy fails"):
            copy = self.copies.get(seq)
            if copy is None or copy.tokens != chosen["tokens"]:
                return False
            del self.copies[seq]
            if kind == "a copy ends":
                self.effects(receiver.copied(ROOM, self.epoch, seq, 0, 0))
            else:
                self.effects(receiver.copy_failed(ROOM, self.epoch, seq, Reason.CHECKSUM, 0))
        elif kind == "lease":
            self.effects(receiver.lease(ROOM, self.epoch, state[f"{P}_t_seq"], 0, 0))
        elif kind == "own completion":
            self.effects(receiver.landed(ROOM, self.epoch, seq, 0))
        elif kind == "abort or NACK":
            receiver.abort(ROOM)
        elif kind == "the process is gone":
            self.effects(receiver.quiesced(state[f"{P}_peer_boot"]))
        elif kind == "stage":
            self.staged = True
            self.effects(sender.staged(ROOM, 0))
        elif kind == "the sender fails":
            if ROOM not in sender.rooms or sender.rooms[ROOM].lanes[0].epoch is None:
                return False  # without an epoch it is the room that ends, and any epoch of it
            self.effects(sender.abort(ROOM, 0))
        elif kind == "the write is done":
            self.effects(sender.sent(ROOM, self.epoch, 0, state[f"{P}_f_seq"], 0))
        elif kind == "a write breaks":
            self.effects(sender.write_failed(ROOM, self.epoch, 0, state[f"{P}_f_seq"], 0))
        else:
            assert kind in ("bytes land", "a write vanishes", "the sender crashes"), kind
        return True

    def deliver(self, kind: str, seq: int, boot: int) -> bool:
        wanted: dict[str, tuple[type[Any], dict[str, int]]] = {
            "receive REGISTER_ACK": (RegisterAck, {"boot_id": boot}),
            "receive OFFER": (Offer, {}),
            "receive STATUS": (Status, {"seq": seq}),
            "receive ABORT_ACK": (AbortAck, {"boot_id": boot}),
            "receive REGISTER": (Register, {}),
            "receive GRANT": (Grant, {"seq": seq}),
            "receive ABORT": (Abort, {}),
        }
        found = self.message(wanted[kind][0], **wanted[kind][1])
        if found is None:
            return False
        self.hand_over(found)
        return True

    def hand_over(self, message: Message) -> None:
        target = self.sender if isinstance(message, (Register, Grant, Abort)) else self.receiver
        self.effects(target.receive(message, 0))

    def tick(self, blocks: list[str]) -> None:
        # As few as make the grant of the model; an early one leaves a block free.
        early = self.state[f"{P}_next_seq"] == 0 and self.state[f"{P}_total"] < 0
        self.allocator.offered = len(blocks) + (1 if blocks and early else 0)
        self.allocator.blocks = tuple(int(name[1:]) for name in blocks)
        agreed = fold((self.receiver.observe(0),), PROTOCOL)
        self.effects(self.receiver.decide(agreed, 0))

    def repeat(self, random: Random) -> None:
        """A message that the model has no action for now: it must change nothing."""
        message = random.choice(self.messages)
        kind = {Register: "REGISTER", RegisterAck: "REGISTER_ACK", Offer: "OFFER", Status: "STATUS", Grant: "GRANT",
                Abort: "ABORT", AbortAck: "ABORT_ACK"}.get(type(message))  # fmt: skip
        if kind is None or kind == "ABORT" or isinstance(message, Abort):
            return
        named = {name: getattr(message, name) for name in ("seq",) if hasattr(message, name)}
        if isinstance(message, (RegisterAck, AbortAck)):
            named["boot"] = message.boot_id
        for action in self.model.actions:
            body, chosen, _ = parse(action.name)
            if body == f"receive {kind}" and chosen == named and holds(self.model, action, self.state):
                return
        self.hand_over(message)
        self.trace.append(f"again {kind} {named}")
        self.compare()

    # --- the comparison -------------------------------------------------------------------------------

    def compare(self) -> None:
        for clause in self.model.clauses:
            assert holds(self.model, clause, self.state), (clause.name, self.trace)
        expected = {**self.receiver_now(), **self.blocks_now(), **self.lane_now()}
        found = {name: self.state[name] for name in expected}
        assert found == expected, (differences(found, expected), self.trace)

    def receiver_now(self) -> Fields:
        room = self.receiver.rooms.get(ROOM)
        if room is None:
            tombstone = self.receiver.tombstones[ROOM, self.epoch]
            values: dict[str, Any] = {
                "state": STATES.index(State(tombstone.state)), "held": bool(tombstone.held),
                "landed_seq": tombstone.landed_seq, "peer_boot": tombstone.peer_boot_id,
            }  # fmt: skip
            if tombstone.state == State.FAILED:
                values["acknowledged"] = tombstone.acknowledged
                if self.state[f"{P}_open"]:
                    values["executed_seq"] = tombstone.executed_seq
            return named(P, values)
        grant = room.grant
        values = {
            "state": STATES.index(State(room.state)), "registered": room.registered, "peer_boot": room.peer_boot_id,
            "total": room.total_tokens, "word": room.word_tokens, "landed": room.landed_tokens,
            "landed_seq": room.landed_seq, "handled": room.handled_tokens, "last_resume": room.last_resume_at,
            "delivered": room.delivered_tokens, "next_seq": room.next_seq, "open": grant is not None,
            "closing": room.closing is not None, "failure": room.failure != Reason.NONE, "peer_gone": room.peer_gone,
            "leased": room.leased,
        }  # fmt: skip
        if grant is not None:
            values |= {"g_start": grant.start, "g_cap": grant.capacity, "g_blocks": len(grant.blocks)}
        if room.closing is not None:
            values["closing_tokens"] = room.closing.committed_tokens
        return named(P, values)

    def blocks_now(self) -> Fields:
        values: Fields = {}
        free = self.receiver.ledger.free_list
        for block in range(self.bounds.blocks):
            record = self.receiver.ledger.record(block)
            values |= {
                f"k0b{block}_state": BLOCK_STATES.index(record.state),
                f"k0b{block}_owner": 0 if record.owner is None else 1,
                f"k0b{block}_seq": -1 if record.owner is None else record.owner.seq,
                f"k0b{block}_generation": record.generation,
                f"k0b{block}_listed": free.count(block),
            }
            if record.owner is None:
                # The model keeps the seq of the last owner in a block that is free.
                del values[f"k0b{block}_seq"]
        return values

    def lane_now(self) -> Fields:
        record = self.sender.rooms.get(ROOM)
        lane = record.lanes[0] if record is not None else None
        over = self.state[f"{P}_l_state"] >= kernel.SUCCESS
        if lane is None or over:
            # A lane that has ended may be gone: its tombstone says how it ended.
            found = [tombstone for key, tombstone in self.sender.tombstones.items() if key.epoch == self.epoch]
            assert found and over, self.trace
            values: dict[str, Any] = {"l_state": STATES.index(State(found[0].state)), "l_seq": found[0].executed_seq}
            if lane is not None and lane.epoch is not None:
                values |= {"writing": lane.writing is not None, "ack_owed": lane.ack_owed}
            return named(P, values)
        values = {
            "l_state": STATES.index(State(lane.state)), "l_seq": lane.seq, "l_committed": lane.committed_tokens,
            "staged": record is not None and record.staged, "parked": lane.parked is not None,
            "writing": lane.writing is not None, "ack_owed": lane.ack_owed,
        }  # fmt: skip
        if lane.parked is not None:
            values |= {"p_seq": lane.parked.seq, "p_start": lane.parked.start, "p_cap": lane.parked.capacity}
        return named(P, values)


def named(prefix: str, values: dict[str, Any]) -> Fields:
    return {f"{prefix}_{name}": int(value) for name, value in values.items()}


def differences(found: Fields, expected: Fields) -> dict[str, str]:
    return {name: f"model {found[name]}, code {value}" for name, value in expected.items() if found[name] != value}
