"""Real receivers and senders, driven beside the protocol model: what a run of the schedule does is done to them too.

One :class:`~fsm.receiver.Receiver` and one :class:`~fsm.sender.Sender` for each rank, with a ledger whose allocator
gives the blocks that it is told to give. Every message that was ever sent is kept, so that any can be delivered, late
or once more. What the objects decide is read off their own effects, in the order in which they say it, and
:meth:`Objects.compare` holds what they are against a state of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fsm import kernel
from fsm.allocators import Choices, Fifo, Kind
from fsm.blocks import BlockLedger
from fsm.effects import CopyOut, Effect, Ended, Moved, Send, Write
from fsm.errors import LocalError
from fsm.messages import Abort, AbortAck, Grant, Heartbeat, Message, Offer, Register, RegisterAck, Status
from fsm.messages import Layout as PayloadLayout
from fsm.ranks import fold
from fsm.reasons import Reason
from fsm.receiver import Receiver
from fsm.receiver_facts import ReceiverConfig
from fsm.rules import PROTOCOL, Rules
from fsm.sender import Sender, SenderConfig
from fsm.states import State
from sim.mass.schedule_parts import (
    CHUNK,
    COMMIT,
    COMPLETE,
    EXECUTE,
    FAIL,
    GRANT,
    LANE_FAILED,
    REGISTERED,
    decision_code,
)
from sim.model.protocol_bounded import Bounds
from sim.model.protocol_parts import BLOCK_NUMBERS, STATE_NUMBERS

FIRST_ROOM = 7
"""The room of the first request; the others follow."""

Given = Mapping[int, Sequence[Sequence[int]]]
"""The blocks that a tick gives: by request, then by rank, in the order of the grant."""

TO_RECEIVER: dict[str, type[Any]] = {
    "receive REGISTER_ACK": RegisterAck, "receive OFFER": Offer, "receive STATUS": Status, "again STATUS": Status,
    "receive ABORT_ACK": AbortAck, "the sender's ABORT": Abort,
}  # fmt: skip
TO_SENDER: dict[str, type[Any]] = {
    "receive REGISTER": Register, "receive GRANT": Grant, "again GRANT": Grant, "receive ABORT": Abort,
}  # fmt: skip
OF_ITSELF = ("bytes land", "a write vanishes", "execute", "waits")
"""What the objects are not told, or do as soon as they can."""


class Told(Fifo):
    """An allocator that offers as many blocks as it is told to give, and gives those."""

    name = "told"

    def __init__(self) -> None:
        self.plan: dict[int, tuple[int, ...]] = {}
        self.spare = 0
        """What is offered besides: an early grant leaves one block of what there is (R6)."""

    def offer(self, free: int, choices: Choices) -> int:
        """As many as will be given."""
        return sum(len(blocks) for blocks in self.plan.values()) + self.spare

    def take(
        self, free: tuple[int, ...], count: int, room: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[int, ...]:
        """The blocks for this room. Raises LocalError if another number is asked for."""
        blocks = self.plan.get(room, ())
        if len(blocks) != count:
            raise LocalError(f"room {room}: the model gives blocks {blocks}, the code takes {count}")
        return blocks


class Objects:
    """The processes of a bounded model. ``codes`` is what they decided, each as :func:`decision_code` writes it.

    ``rules`` are those that they follow. Raises LocalError for several ranks that do not each have a sender.
    """

    def __init__(self, bounds: Bounds, rules: Rules = PROTOCOL) -> None:
        if bounds.ranks > 1 and bounds.senders < bounds.ranks:
            raise LocalError(f"ranks={bounds.ranks}, senders={bounds.senders}: expected a sender for each rank")
        self.bounds, self.rules = bounds, rules
        self.payload = PayloadLayout(bounds.block_tokens, 1, "int64", ("fill_ids",), 0, 1)
        self.codes: list[int] = []
        self.to_receiver: list[Any] = []
        self.to_sender: list[Any] = []
        self.copies: dict[tuple[int, int, int], CopyOut] = {}
        self.allocators = [Told() for _ in range(bounds.ranks)]
        self.receivers = [self._receiver(rank) for rank in range(bounds.ranks)]
        self.epochs: dict[tuple[int, int], Any] = {}
        for number in range(bounds.rooms):
            for rank, receiver in enumerate(self.receivers):
                self._heard(rank, receiver.submit(FIRST_ROOM + number, 0, early_tokens=bounds.early_tokens))
                self.epochs[number, rank] = receiver.rooms[FIRST_ROOM + number].epoch
        self.senders = [self._sender(rank, 1) for rank in range(bounds.ranks)]

    def _receiver(self, rank: int) -> Receiver:
        bounds = self.bounds
        config = ReceiverConfig(
            self.payload, rank=rank, sender_rank=rank, total_tokens_max=max(bounds.size, bounds.early_tokens),
            grant_blocks_max=bounds.grant_blocks_max, landed_required=bounds.late, two_sided=bounds.late,
        )  # fmt: skip
        return Receiver(config, BlockLedger(bounds.blocks, self.allocators[rank]), boot_id=1, rules=self.rules)

    def _sender(self, rank: int, boot: int) -> Sender:
        bounds = self.bounds
        config = SenderConfig(
            self.payload, rank=rank, receiver_ranks=(rank,), senders=bounds.ranks,
            source_blocks=bounds.rooms * bounds.size,
        )  # fmt: skip
        sender = Sender(config, boot_id=boot, rules=self.rules)
        for number in range(bounds.rooms):
            self._said(rank, sender.submit(FIRST_ROOM + number, bounds.size, 0))
        return sender

    # --- what they answer -----------------------------------------------------------------------------

    def _heard(self, rank: int, effects: Sequence[Effect]) -> list[int]:
        """Effects of a receiver: its messages, its copies, and what it decided."""
        codes = []
        for effect in effects:
            if isinstance(effect, Send):
                self.to_sender.append(effect.message)
                if isinstance(effect.message, Grant) and not effect.resend:
                    grant = effect.message
                    number = grant.room - FIRST_ROOM
                    codes.append((GRANT, number, 0, grant.seq, grant.start, grant.capacity, len(grant.blocks)))
            elif isinstance(effect, CopyOut):
                number = effect.room - FIRST_ROOM
                self.copies[number, rank, effect.seq] = effect
                codes.append((CHUNK, number, 0, effect.start + effect.tokens, 0, 0, 0))
            elif isinstance(effect, Moved):
                what = {"registered": REGISTERED, "complete": COMPLETE, "fail": FAIL}.get(effect.event)
                if what is not None:
                    codes.append((what, effect.room - FIRST_ROOM, 0, 0, 0, 0, 0))
        return [decision_code(code) for code in codes]

    def _said(self, rank: int, effects: Sequence[Effect]) -> None:
        """Effects of a sender: its messages, and what it decided."""
        ended = [effect for effect in effects if isinstance(effect, Ended)]
        for effect in effects:
            code = None
            if isinstance(effect, Send):
                self.to_receiver.append(effect.message)
                if isinstance(effect.message, Status) and not effect.resend:
                    status = effect.message
                    last = int(any(one.state == State.SUCCESS and one.room == status.room for one in ended))
                    code = (COMMIT, status.room - FIRST_ROOM, rank, status.seq, status.committed_tokens, last, 0)
            elif isinstance(effect, Write):
                code = (EXECUTE, effect.grant.room - FIRST_ROOM, rank, effect.grant.seq, 0, 0, 0)
            elif isinstance(effect, Moved) and effect.event == "fail" and effect.source != State.BOOTSTRAPPING:
                code = (LANE_FAILED, effect.room - FIRST_ROOM, rank, 0, 0, 0, 0)
            if code is not None:
                self.codes.append(decision_code(code))

    # --- what is done to them -------------------------------------------------------------------------

    def tick(self, given: Given, *, early: bool = False) -> None:
        """A tick of all ranks; ``early`` if what is given is an early grant.

        Raises LocalError if the ranks do not decide alike (I7).
        """
        for rank, allocator in enumerate(self.allocators):
            allocator.plan = {FIRST_ROOM + number: tuple(blocks[rank]) for number, blocks in given.items()}
            allocator.spare = int(early)
        agreed = fold(tuple(receiver.observe(0) for receiver in self.receivers), self.rules)
        said = [self._heard(rank, receiver.decide(agreed, 0)) for rank, receiver in enumerate(self.receivers)]
        if any(codes != said[0] for codes in said):
            raise LocalError(f"the ranks decide differently in one tick: {said}")
        self.codes += said[0]

    def do(self, deed: str, number: int, rank: int, numbers: Mapping[str, int], state: Mapping[str, int]) -> None:
        """One turn of the schedule; ``state`` is the model's before it. Raises LocalError if the objects cannot."""
        receiver, sender, room = self.receivers[rank], self.senders[rank], FIRST_ROOM + number
        epoch, p = self.epochs[number, rank], f"r{number}k{rank}"
        if deed in TO_RECEIVER:
            wanted = {key: value for key, value in numbers.items() if key in ("seq", "boot")}
            self._hand(rank, receiver, self._message(self.to_receiver, TO_RECEIVER[deed], room, rank, wanted))
        elif deed in TO_SENDER:
            message = self._message(self.to_sender, TO_SENDER[deed], room, rank, numbers)
            self._said(rank, sender.receive(message, 0))
        elif deed in ("a copy ends", "a copy fails"):
            self._copied(deed, number, rank, numbers)
        elif deed == "lease":
            whole = [seq for (one, at, seq), copy in self.copies.items() if (one, at) == (number, rank) and copy.whole]
            self._heard(rank, receiver.lease(room, epoch, whole[0], 0, 0))
        elif deed == "own completion":
            self._heard(rank, receiver.landed(room, epoch, numbers["seq"], 0))
        elif deed == "abort or NACK":
            receiver.abort(room)
        elif deed == "a deadline passes":
            receiver.abort(room, Reason.DEADLINE)
        elif deed == "the process is gone":
            self._heard(rank, receiver.quiesced(numbers["boot"]))
        elif deed == "a restart is seen":
            self._said(rank, sender.tick(0))
            beat = [one for one in self.to_receiver if isinstance(one, Heartbeat) and one.receiver_rank == rank]
            self._hand(rank, receiver, beat[-1])
        elif deed == "stage":
            self._said(rank, sender.staged(room, 0))
        elif deed == "the sender fails":
            self._said(rank, sender.abort(room, 0))
        elif deed == "the write is done":
            self._said(rank, sender.sent(room, epoch, rank, state[f"{p}_f_seq"], 0))
        elif deed == "a write breaks":
            self._said(rank, sender.write_failed(room, epoch, rank, state[f"{p}_f_seq"], 0))
        elif deed == "the sender crashes":
            self.senders[rank] = self._sender(rank, state[f"{p}_s_boot"] + 1)
        elif deed not in OF_ITSELF:
            raise LocalError(f"the objects have no way to do '{deed}'")

    def _hand(self, rank: int, receiver: Receiver, message: Message) -> None:
        self.codes += self._heard(rank, receiver.receive(message, 0))

    def _copied(self, deed: str, number: int, rank: int, numbers: Mapping[str, int]) -> None:
        receiver, room, epoch = self.receivers[rank], FIRST_ROOM + number, self.epochs[number, rank]
        seq = numbers["seq"]
        copy = self.copies.pop((number, rank, seq))
        if copy.tokens != numbers["tokens"]:
            raise LocalError(f"the model copies {numbers['tokens']} tokens of grant {seq}, the code {copy.tokens}")
        if deed == "a copy ends":
            self._heard(rank, receiver.copied(room, epoch, seq, 0, 0))
        else:
            self._heard(rank, receiver.copy_failed(room, epoch, seq, Reason.CHECKSUM, 0))

    def _message(
        self, sent: Sequence[Any], kind: type[Any], room: int, rank: int, numbers: Mapping[str, int]
    ) -> Any:
        """The newest message of that kind. Raises LocalError if it was never sent."""
        names = {"seq": "seq", "boot": "boot_id"}
        wanted = {names[key]: value for key, value in numbers.items() if key in names}
        if kind is Abort or kind is AbortAck:
            wanted.pop("seq", None)
        for message in reversed(sent):
            meant = isinstance(message, kind) and (message.room, message.receiver_rank) == (room, rank)
            if meant and all(getattr(message, name) == value for name, value in wanted.items()):
                return message
        raise LocalError(f"no {kind.__name__} {wanted} was sent for room {room} on rank {rank}")

    # --- the comparison -------------------------------------------------------------------------------

    def compare(self, state: Mapping[str, int]) -> None:
        """Hold the objects against a state of the model. Raises LocalError that names every difference."""
        wrong = []
        for number in range(self.bounds.rooms):
            for rank in range(self.bounds.ranks):
                found = {**self._receiving(number, rank, state), **self._sending(number, rank, state)}
                for name, value in found.items():
                    field = f"r{number}k{rank}_{name}"
                    if state[field] != int(value):
                        wrong.append(f"{field}: model {state[field]}, code {int(value)}")
        for name, value in self._blocks().items():
            if state[name] != value:
                wrong.append(f"{name}: model {state[name]}, code {value}")
        if wrong:
            raise LocalError("the model and the code differ: " + "; ".join(wrong))

    def _receiving(self, number: int, rank: int, state: Mapping[str, int]) -> dict[str, Any]:
        receiver = self.receivers[rank]
        room = receiver.rooms.get(FIRST_ROOM + number)
        if room is None:
            stone = receiver.tombstones[FIRST_ROOM + number, self.epochs[number, rank]]
            values: dict[str, Any] = {
                "state": STATE_NUMBERS[stone.state], "held": bool(stone.held), "landed_seq": stone.landed_seq,
                "peer_boot": stone.peer_boot_id,
            }  # fmt: skip
            if stone.state == State.FAILED:
                values["acknowledged"] = stone.acknowledged
                if state[f"r{number}k{rank}_open"]:
                    values["executed_seq"] = stone.executed_seq
            return values
        grant = room.grant
        values = {
            "state": STATE_NUMBERS[room.state], "registered": room.registered, "peer_boot": room.peer_boot_id,
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
        return values

    def _sending(self, number: int, rank: int, state: Mapping[str, int]) -> dict[str, Any]:
        sender, epoch = self.senders[rank], self.epochs[number, rank]
        record = sender.rooms.get(FIRST_ROOM + number)
        lane = record.lanes[rank] if record is not None else None
        if lane is None or record is None or state[f"r{number}k{rank}_l_state"] >= kernel.SUCCESS:
            # A lane that has ended may be gone: its tombstone says how it ended.
            found = [stone for key, stone in sender.tombstones.items() if key.epoch == epoch]
            if not found:
                raise LocalError(f"r{number}k{rank}: the lane has ended in one of model and code only")
            values: dict[str, Any] = {"l_state": STATE_NUMBERS[found[0].state], "l_seq": found[0].executed_seq}
            if lane is not None and lane.epoch is not None:
                values |= {"writing": lane.writing is not None, "ack_owed": lane.ack_owed}
            return values
        values = {
            "l_state": STATE_NUMBERS[lane.state], "l_seq": lane.seq, "l_committed": lane.committed_tokens,
            "staged": record.staged, "parked": lane.parked is not None, "writing": lane.writing is not None,
            "ack_owed": lane.ack_owed,
        }  # fmt: skip
        if lane.parked is not None:
            values |= {"p_seq": lane.parked.seq, "p_start": lane.parked.start, "p_cap": lane.parked.capacity}
        return values

    def _blocks(self) -> dict[str, int]:
        values: dict[str, int] = {}
        for rank, receiver in enumerate(self.receivers):
            free = receiver.ledger.free_list
            for block in range(self.bounds.blocks):
                record, name = receiver.ledger.record(block), f"k{rank}b{block}"
                values |= {
                    f"{name}_state": BLOCK_NUMBERS[record.state], f"{name}_generation": record.generation,
                    f"{name}_owner": 0 if record.owner is None else record.owner.room - FIRST_ROOM + 1,
                    f"{name}_listed": free.count(block),
                }  # fmt: skip
                if record.owner is not None:
                    values[f"{name}_seq"] = record.owner.seq
        return values
