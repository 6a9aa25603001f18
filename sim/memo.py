"""Receivers and senders that remember what they did before.

A receiver's step is a function of its state and of what it is given, and nothing else: that is what sans I/O means.
An exhaustive search meets the same few thousand states of a process in millions of states of the world, so a step that
was computed once, on the real object, is looked up from then on. Steps that made a choice are not remembered, nor,
under an allocator that chooses among blocks, steps that took blocks: what it may choose depends on more than the
process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fsm.blocks import BlockLedger
from fsm.effects import Effect, Send
from fsm.messages import Epoch, Grant, Message
from fsm.ranks import Agreed, Observation
from fsm.receiver import Receiver
from fsm.rules import word_progress


class Interner:
    """Values by number, and numbers by value."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        """The number of a value; equal values have one number."""
        found = self._numbers.setdefault(value, len(self.values))
        if found == len(self.values):
            self.values.append(value)
        return found


class Remembered:
    """A process in the state of a given ``number``. Its time stands still at 0, where states are saved and loaded."""

    def __init__(self, process: Any, table: Interner) -> None:
        self.process = process
        self.table = table
        self.number = table.number(process.save(0))
        self._inside = self.number
        self._steps: dict[Any, tuple[int, Any]] = {}
        self._known: dict[int, tuple[tuple[int, ...], bool]] = {}

    def real(self) -> Any:
        """The real object, in this state."""
        if self._inside != self.number:
            self.process.load(self.table.values[self.number], 0)
            self._inside = self.number
        return self.process

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real(), name)

    def _facts(self) -> tuple[tuple[int, ...], bool]:
        known = self._known.get(self.number)
        if known is None:
            process = self.real()
            known = self._known[self.number] = (tuple(process.rooms), process.resting)
        return known

    @property
    def rooms(self) -> tuple[int, ...]:
        """The live rooms, by id."""
        return self._facts()[0]

    @property
    def resting(self) -> bool:
        """As for the process itself."""
        return self._facts()[1]

    def save(self, now_s: float) -> int:
        """The state, by number."""
        return self.number

    def saved_now(self) -> None:
        """The real object has made a step: take its state."""
        self.number = self._inside = self.table.number(self.process.save(0))

    def take(self, process: Any, now_s: float) -> None:
        """Stand for this real object, which was worked on at the time ``now_s``."""
        self.process = process
        self.number = self.table.number(process.save(now_s))
        self._inside = self.number if not now_s else -1

    def _step(self, key: Any, call: Callable[[Any], Any]) -> Any:
        key = (self.number, key)
        known = self._steps.get(key)
        if known is None:
            answer = call(self.real())
            self.saved_now()
            self._steps[key] = (self.number, answer)
            return answer
        self.number, answer = known
        return answer


class RememberedSender(Remembered):
    """A sender that remembers."""

    @property
    def boot_id(self) -> int:
        """As for the sender itself."""
        boot_id: int = self.table.values[self.number][2]
        return boot_id

    def receive(self, message: Message, now_s: float) -> list[Effect]:
        """As for the sender itself."""
        effects: list[Effect] = self._step(message, lambda sender: sender.receive(message, 0))
        return effects

    def sent(self, room: int, epoch: Epoch, receiver_rank: int, seq: int, now_s: float) -> list[Effect]:
        """As for the sender itself."""
        key = ("sent", room, epoch, receiver_rank, seq)
        effects: list[Effect] = self._step(key, lambda sender: sender.sent(room, epoch, receiver_rank, seq, 0))
        return effects

    def staged(self, room: int, now_s: float) -> list[Effect]:
        """As for the sender itself."""
        effects: list[Effect] = self._step(("staged", room), lambda sender: sender.staged(room, 0))
        return effects

    def abort(self, room: int, now_s: float) -> list[Effect]:
        """As for the sender itself."""
        effects: list[Effect] = self._step(("abort", room), lambda sender: sender.abort(room, 0))
        return effects


class RememberedReceiver(Remembered):
    """A receiver that remembers. ``view`` is a ledger of the same size, to be looked at."""

    def __init__(self, process: Receiver, table: Interner, view: BlockLedger) -> None:
        super().__init__(process, table)
        self._view = view
        self._viewed = -1
        self._blocks_matter = view.allocator.name == "adversary"
        self._headers_matter = process.rules.progress is not word_progress
        self.waiting: tuple[int, ...] = ()
        self.block_kind: Any = None

    def real(self) -> Receiver:
        """The real object, in this state."""
        receiver: Receiver = super().real()
        receiver.block_kind = self.block_kind
        return receiver

    @property
    def boot_id(self) -> int:
        """As for the receiver itself."""
        boot_id: int = self.table.values[self.number][3]
        return boot_id

    @property
    def ledger(self) -> BlockLedger:
        """The ledger as it is in this state, to be looked at only."""
        if self._viewed != self.number:
            self._view.load(self.table.values[self.number][2])
            self._viewed = self.number
        return self._view

    def take(self, process: Any, now_s: float) -> None:
        """Stand for this real object, which was worked on at the time ``now_s``."""
        super().take(process, now_s)
        self.waiting = process.waiting

    def receive(self, message: Message, now_s: float) -> list[Effect]:
        """As for the receiver itself."""
        effects: list[Effect] = self._step(message, lambda receiver: receiver.receive(message, 0))
        return effects

    def landed(self, room: int, epoch: Epoch, seq: int, now_s: float) -> list[Effect]:
        """As for the receiver itself."""
        key = ("landed", room, epoch, seq)
        effects: list[Effect] = self._step(key, lambda receiver: receiver.landed(room, epoch, seq, 0))
        return effects

    def copied(self, room: int, epoch: Epoch, seq: int, position_delta: int, now_s: float) -> list[Effect]:
        """As for the receiver itself."""
        key = ("copied", room, epoch, seq, position_delta)
        effects: list[Effect] = self._step(key, lambda receiver: receiver.copied(room, epoch, seq, position_delta, 0))
        return effects

    def lease(self, room: int, epoch: Epoch, seq: int, position_delta: int, now_s: float) -> list[Effect]:
        """As for the receiver itself."""
        key = ("lease", room, epoch, seq, position_delta)
        effects: list[Effect] = self._step(key, lambda receiver: receiver.lease(room, epoch, seq, position_delta, 0))
        return effects

    def release_result(self, room: int, epoch: Epoch) -> None:
        """As for the receiver itself."""
        self._step(("release", room, epoch), lambda receiver: receiver.release_result(room, epoch))

    def abort(self, room: int) -> None:
        """As for the receiver itself."""
        self._step(("abort", room), lambda receiver: receiver.abort(room))

    def observe(self, now_s: float, choices: Any, headers: Any) -> Observation:
        """As for the receiver itself. Remembered unless a choice was made, or a wrong rule looks into headers."""
        key = (self.number, "observe")
        known = self._steps.get(key)
        if known is None or self._headers_matter:
            before = len(choices.picks)
            observation = self.real().observe(0, choices, headers)
            self.saved_now()
            if len(choices.picks) == before:
                self._steps[key] = (self.number, observation)
            return observation
        self.number = known[0]
        remembered: Observation = known[1]
        return remembered

    def decide(self, agreed: Agreed, now_s: float, choices: Any) -> list[Effect]:
        """As for the receiver itself."""
        key = (self.number, agreed)
        known = self._steps.get(key)
        if known is None:
            before = len(choices.picks)
            receiver = self.real()
            effects = receiver.decide(agreed, 0, choices)
            self.waiting = receiver.waiting
            self.saved_now()
            took = any(type(e) is Send and type(e.message) is Grant and not e.resend for e in effects)
            if len(choices.picks) == before and not (took and self._blocks_matter):
                self._steps[key] = (self.number, (effects, self.waiting))
            return effects
        self.number, answer = known
        self.waiting = answer[1]
        taken: list[Effect] = answer[0]
        return taken


REMEMBERED_ACTIONS = (
    "deliver", "stray", "duplicate", "delay", "drop", "heartbeat_loss", "land", "told", "vanish", "copied", "staged",
    "noticed", "returned", "released",
    "tick", "abort", "sender_abort", "heal",
)  # fmt: skip
"""Actions in which nothing is asked of a process but what is remembered; all others are done on the real objects."""
