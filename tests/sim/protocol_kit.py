"""A real receiver and a real sender, driven step by step beside the bounded model of the protocol.

Each action of the model is done to the objects of ``fsm`` too (:mod:`sim.mass.lockstep`), and what they are then is
compared with what the model says. So the model is held to the code that production runs, one action at a time.
"""

from __future__ import annotations

from random import Random
from typing import Any

from fsm.errors import LocalError
from fsm.messages import AbortAck, RegisterAck
from sim.mass.lockstep import FIRST_ROOM, TO_RECEIVER, TO_SENDER, Objects
from sim.model.form import Action, Model, apply, holds
from sim.model.form import State as Fields
from sim.model.protocol_bounded import Bounds, bounded

P = "r0k0"

# What the objects do on their own as soon as it is possible, and the model as an action of its own.
EAGER = ("release", "execute")
# These differ from "abort or NACK" only in why the request fails; no clock and no news of a restart is driven here.
LEFT_OUT = ("a deadline passes", "a restart is seen", "an unknown room")


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
        self.model: Model = bounded(bounds)
        self.state: Fields = self.model.start_states()[0]
        self.objects = Objects(bounds)
        self.done: dict[str, int] = {}
        self.trace: list[str] = []

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
        self.done[kind] = self.done.get(kind, 0) + 1
        self.trace.append(action.name)
        self.compare()
        return True

    def real(self, kind: str, chosen: dict[str, int], blocks: list[str]) -> bool:
        objects, state = self.objects, self.state
        if kind.startswith("tick"):
            early = state[f"{P}_next_seq"] == 0 and state[f"{P}_total"] < 0
            given = {0: [[int(name[1:]) for name in blocks]]} if blocks else {}
            objects.tick(given, early=early and bool(blocks))
            return True
        if kind in ("a copy ends", "a copy fails"):
            copy = objects.copies.get((0, 0, chosen["seq"]))
            if copy is None or copy.tokens != chosen["tokens"]:
                return False
        if kind == "the sender fails":
            room = objects.senders[0].rooms.get(FIRST_ROOM)
            if room is None or room.lanes[0].epoch is None:
                return False  # without an epoch it is the room that ends, and any epoch of it
        if kind == "the process is gone":
            chosen = {"boot": state[f"{P}_peer_boot"]}
        if kind not in TO_RECEIVER and kind not in TO_SENDER:
            objects.do(kind, 0, 0, chosen, state)
            return True
        try:
            objects.do(kind, 0, 0, chosen, state)
        except LocalError as error:
            assert "was sent" in str(error), error
            return False
        return True

    def repeat(self, random: Random) -> None:
        """A message that the model has no action for now: it must change nothing."""
        deeds = {message: deed for deed, message in (TO_RECEIVER | TO_SENDER).items() if deed.startswith("receive")}
        message: Any = random.choice([*self.objects.to_receiver, *self.objects.to_sender])
        deed = deeds.get(type(message))
        if deed is None or deed == "receive ABORT":
            return
        named = {"seq": message.seq} if hasattr(message, "seq") else {}
        if isinstance(message, (RegisterAck, AbortAck)):
            named["boot"] = message.boot_id
        for action in self.model.actions:
            body, chosen, _ = parse(action.name)
            if body == deed and chosen == named and holds(self.model, action, self.state):
                return
        self.objects.do(deed, 0, 0, named, self.state)
        self.trace.append(f"again {deed} {named}")
        self.compare()

    # --- the comparison -------------------------------------------------------------------------------

    def compare(self) -> None:
        for clause in self.model.clauses:
            assert holds(self.model, clause, self.state), (clause.name, self.trace)
        try:
            self.objects.compare(self.state)
        except LocalError as error:
            raise AssertionError(f"{error} after {self.trace}") from None
