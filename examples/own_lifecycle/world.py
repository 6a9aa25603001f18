"""The objects in a hostile world, driven at random beside the model: what the one does, the other must do too.

Every step is one of the model's, chosen by a seed, and is carried out by the objects: the same fields must come out.
After each step one message that was ever sent is thrown at somebody. If the model has no such step, the objects must
refuse it, and stay as they are. So each run holds the model against the code that runs, in both directions, while the
clauses are judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from typing import NamedTuple

from examples.own_lifecycle.lease import (
    HOLDER,
    LEASE,
    Ask,
    Clerk,
    Grant,
    Holder,
    Message,
    Release,
    Renew,
    Rules,
    Store,
    Write,
)
from examples.own_lifecycle.model import bounded
from fsm.errors import IllegalEvent
from sim.choices import Seeded
from sim.model.form import Model, State, holds, successors
from sim.model.tables import numbers_of

HOLDER_NUMBERS, LEASE_NUMBERS = numbers_of(HOLDER), numbers_of(LEASE)
MESSAGES: dict[str, Callable[..., Message]] = {
    "Ask": Ask, "Grant": Grant, "Renew": Renew, "Release": Release, "Write": Write,
}  # fmt: skip
CLIENTS, LEASES = ("c1", "c2"), 3
FAULT_ONE_IN = 6
"""Crashes, and clients that stop or give up, are offered in one step of so many."""


def words(message: Message) -> str:
    """A message as the names of actions have it."""
    return " ".join([type(message).__name__, *map(str, astuple(message))])


class World:
    """Clients, a clerk, a store, and every message that was ever sent, with how often it was."""

    def __init__(self, rules: Rules, clients: tuple[str, ...]) -> None:
        self.rules = rules
        self.holders = {name: Holder(rules) for name in clients}
        self.clerk, self.store = Clerk(rules), Store(rules)
        self.asks = 0
        self.sent: Counter[Message] = Counter()
        self.arrived: Counter[tuple[str, Message]] = Counter()

    def do(self, action: str) -> None:
        """What an action of the model says, done by the objects. Raises IllegalEvent if they will not."""
        who, verb, *rest = action.split()
        if verb == "takes":
            if not self.deliver(who, MESSAGES[rest[0]](*map(int, rest[1:]))):
                raise AssertionError(f"'{action}': the objects refuse it")
        elif action == "the clerk crashes":
            self.clerk = self.clerk.restarted()
        elif action == "the lease expires":
            self.clerk.expire()
        elif action == "a tick":
            self.clerk.tick()
        elif verb == "crashes":
            self.holders[who] = Holder(self.rules)
        else:
            self._of_itself(self.holders[who], verb, " ".join(rest))

    def _of_itself(self, holder: Holder, verb: str, rest: str) -> None:
        if verb == "asks":
            self.asks += 1
            self.sent[holder.ask(self.asks)] += 1
        elif verb in ("gives", "lapses"):
            holder.fire("give_up" if rest == "up" else "lapse")
        else:
            says: dict[str, Callable[[], Message]] = {
                "writes": holder.write, "renews": holder.renew, "releases": holder.release,
            }  # fmt: skip
            self.sent[says[verb]()] += 1

    def deliver(self, who: str, message: Message) -> bool:
        """A message arrives; whether it was taken."""
        assert message in self.sent, f"{message} was never sent"
        try:
            if isinstance(message, Ask):
                grant = self.clerk.ask(message)
                self.sent[grant] += 1
            elif isinstance(message, Renew):
                self.clerk.renew(message)
            elif isinstance(message, Release):
                self.clerk.release(message)
            elif isinstance(message, Grant):
                self.holders[who].granted(message)
            else:
                return self._arrived(who, message, self.store.take(message))
        except IllegalEvent:
            return False
        return self._arrived(who, message, True)

    def _arrived(self, who: str, message: Message, taken: bool) -> bool:
        self.arrived[who, message] += taken
        return taken

    def whom(self, message: Message) -> tuple[str, ...]:
        """Who may get a message. Grants go to everybody, as on a bus."""
        if isinstance(message, Grant):
            return tuple(self.holders)
        return ("store",) if isinstance(message, Write) else ("clerk",)

    def state(self) -> dict[str, int]:
        """The fields of the model that the objects have."""
        clerk = self.clerk
        found = {
            "lease": LEASE_NUMBERS[clerk.state], "token": clerk.token, "holder_ask": clerk.holder_ask,
            "left": clerk.left, "asks": self.asks, "top_token": self.store.top.token, "top_seq": self.store.top.seq,
        }  # fmt: skip
        for name, holder in self.holders.items():
            found |= {f"{name}_state": HOLDER_NUMBERS[holder.state], f"{name}_ask": holder.own_ask}
            found |= {f"{name}_token": holder.token, f"{name}_seq": holder.seq}
        for message, count in self.sent.items():
            if isinstance(message, Write):
                found[f"made_{message.token}_{message.seq}"] = min(count, 2)
            elif isinstance(message, Renew):
                found[f"renewed_{message.token}"] = 1
            elif isinstance(message, Release):
                found[f"released_{message.token}"] = 1
        return found


class Broken(NamedTuple):
    """A run that broke a clause: its seed, the steps, and the clause."""

    seed: int
    steps: tuple[str, ...]
    property: str
    clause: str


@dataclass
class Batch:
    """What random runs came to."""

    runs: int = 0
    steps: int = 0
    met: Counter[str] = field(default_factory=Counter)
    """How often something that is worth meeting occurred."""
    broken: Broken | None = None
    """The first run that broke a clause; the batch ends there."""


def simulate(rules: Rules, *, runs: int, steps_max: int, seed: int) -> Batch:
    """Random runs, each a function of the rules and of ``seed`` and its number alone.

    Raises AssertionError, naming the step, where the objects and the model do not agree.
    """
    model = bounded(rules, clients=len(CLIENTS), asks=5, leases=LEASES, writes=2)
    batch = Batch()
    for number in range(runs):
        batch.runs += 1
        batch.broken = _run(model, rules, seed + number, steps_max, batch)
        if batch.broken is not None:
            break
    return batch


def _run(model: Model, rules: Rules, seed: int, steps_max: int, batch: Batch) -> Broken | None:
    choices = Seeded(seed)
    world, state = World(rules, CLIENTS), model.start_states()[0]
    done: list[str] = []
    ways = list(successors(model, state))
    while len(done) < steps_max and any(action.fair for action, _ in ways):
        offered = ways if choices.pick(FAULT_ONE_IN, "fault") == 0 else [way for way in ways if way[0].fair]
        action, state = offered[choices.pick(len(offered), "step")]
        world.do(action.name)
        done.append(action.name)
        batch.steps += 1
        batch.met["crashes"] += action.name.endswith("crashes")
        batch.met["leases that ran out"] += action.name == "the lease expires"
        _same(world, state, done)
        for clause in model.clauses:
            if not holds(model, clause, state):
                return Broken(seed, tuple(done), clause.property, clause.name)
        ways = list(successors(model, state))
        _throw(world, choices, [action.name for action, _ in ways], state, batch, done)
    batch.met["messages taken twice or more"] += sum(count > 1 for count in world.arrived.values())
    return None


def _same(world: World, state: State, done: list[str]) -> None:
    differs = {name: (value, state[name]) for name, value in world.state().items() if value != state[name]}
    assert not differs, f"after {' / '.join(done)}: the objects have and the model has {differs}"


def _throw(world: World, choices: Seeded, allowed: list[str], state: State, batch: Batch, done: list[str]) -> None:
    """Throw an old message at somebody; what the model does not allow must be refused, without a trace."""
    if not world.sent:
        return
    message = list(world.sent)[choices.pick(len(world.sent), "message")]
    targets = world.whom(message)
    who = targets[choices.pick(len(targets), "whom")]
    name = f"{who} takes {words(message)}"
    if name in allowed or (isinstance(message, Ask) and state["token"] == LEASES):
        return  # the model has no more leases to give; the objects have
    before = world.state()
    taken = world.deliver(who, message)
    where = f"after {' / '.join(done)}: '{name}'"
    assert not taken and world.state() == before, f"{where} is no step of the model, and something came of it"
    batch.met["messages refused"] += 1
