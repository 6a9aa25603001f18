"""What the schedule of a mass simulation is written with: turns, what they decide, drafts of several actions at once.

A :class:`Turn` is a step of a round. It is written down as a :class:`Draft`: actions of the protocol model, one after
the other, each reading what those before it did. :class:`Taken` are the blocks that an allocator gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from fsm import kernel
from fsm.kernel import UNKNOWN, Number, Ops
from sim.model.form import Fields, View
from sim.model.protocol import ENTRIES, TICK, Entry
from sim.model.protocol_bounded import Bounds, Layout, Picked
from sim.model.protocol_parts import FREE, Part, Step
from sim.model.protocol_receiver import Place, is_live
from sim.model.protocol_rules import PROTOCOL_RULES, ModelRules

DRAW_VALUES = 16
"""A draw is a number from 0 up to this."""
ALWAYS = DRAW_VALUES
CRASH = "the sender crashes"

RATES = {
    "receive REGISTER": 12, "receive REGISTER_ACK": 12, "tick": 14, "offer": 13, "stage": 8, "receive OFFER": 12,
    "receive GRANT": 13, "bytes land": 13, "a write vanishes": 4, "the write is done": 13, "own completion": 13,
    "receive STATUS": 13, "a copy ends": 11, "lease": 4, "receive ABORT": 12, "the sender's ABORT": 12,
    "receive ABORT_ACK": 12, "the process is gone": 4, "a restart is seen": 4, "again STATUS": 1, "again GRANT": 1,
}  # fmt: skip
"""How many of 16 draws let a turn be taken that can be. A tick in which the draw of ``offer`` fails gives no blocks."""

REGISTERED, CHUNK, COMPLETE, FAIL, GRANT, EXECUTE, COMMIT, LANE_FAILED = range(1, 9)
"""What is decided: the verdict of a tick, a grant; by a sender: to execute a grant, its commit, a lane's failure."""

Decision = tuple[Number, int, int, Number, Number, Number, Number]
"""What is decided (0: nothing), the request, the rank, and up to four numbers that say how."""

FAILED_NOW = "failed_now"
"""Whether a request has failed in this tick. What that frees is given from the next tick on, for an allocator is asked
before anything is decided."""
FAULTS_LEFT = "faults_left"
"""Rounds in which faults may still strike."""

Numbered = Callable[[Ops, View], Mapping[str, Number]]


@dataclass(frozen=True)
class Turn:
    """One step of a round, with guard and update as of an action; its draw is part of the guard.

    ``deed`` and ``numbers`` say what is to be done to the real objects, and in which version (a seq, a boot, blocks).
    ``atoms`` are the bounded actions that it stands for, in a state that it is taken in. ``counts`` are things to count
    where it is taken. ``fault``: it strikes in the first phase only. ``of_tick``: it is a part of the receiver's tick.
    """

    name: str
    deed: str
    room: int
    rank: int
    guard: Callable[[Ops, View], Number]
    update: Callable[[Ops, View], Mapping[str, Number]]
    numbers: Numbered
    atoms: Callable[[Mapping[str, int]], list[str]]
    decision: Callable[[Ops, View, View], Decision] | None = None
    counts: Mapping[str, Callable[[Ops, View], Number]] = field(default_factory=dict)
    fault: bool = False
    of_tick: bool = False


def decision_code(decision: Sequence[int]) -> int:
    """A decision as one number of 64 bits; no two differ only in what it leaves out."""
    what, room, rank, a, b, c, d = (int(number) for number in decision)
    return what | room << 4 | rank << 8 | (a & 255) << 12 | (b & 255) << 20 | (c & 255) << 28 | (d & 255) << 36


# --- drafts ----------------------------------------------------------------------------------------------


class Setting(Protocol):
    """What a draft has to know of the composition."""

    bounds: Bounds
    rules: ModelRules
    layout: Layout

    def on_rank(self, rank: int) -> list[Place]:
        """All requests on one rank."""


class Draft:
    """The values of all fields while a turn is being written down, one action of the model after the other."""

    def __init__(self, maker: Setting, ops: Ops, view: View) -> None:
        self.maker, self.ops, self.view = maker, ops, view
        self.changes: dict[str, Number] = {}

    def step(self) -> Step:
        """A step that reads what was drafted so far."""
        return Step(self.ops, _Over(self.view, self.changes), self.maker.rules)

    def put(self, when: Number, **values: Number) -> None:
        """Assign where a condition holds."""
        for name, value in values.items():
            old = self.changes[name] if name in self.changes else self.view[name]
            self.changes[name] = value if when is True else self.ops.where(when, value, old)

    def do(self, entry: Entry, place: Place, when: Number = True, **chosen: Number) -> None:
        """An action of one request, where ``when`` holds; its guard is not asked."""
        step = self.step()
        entry.draft(step, place, Picked(step, place, self.maker.layout, chosen))
        self.put(when, **step.changes)

    def may(self, entry: Entry, place: Place, **chosen: Number) -> Number:
        """The guard of an action as things stand."""
        step = self.step()
        return entry.guard(step, place, Picked(step, place, self.maker.layout, chosen))

    def see_boot(self, rank: int, boot: Number, when: Number = True) -> None:
        """R8: a newer process of the sender is heard of: what still needs an older one fails."""
        maker = self.maker
        if not maker.bounds.crashes or not maker.rules.boot_change_fences():
            return
        step = self.step()
        news = (boot > step.read(f"k{rank}_heard")) & (boot > step.read(f"k{rank}_gone"))
        if when is not True:
            news = when & news
        for place in maker.on_rank(rank):
            room = step.part(place.room)
            failing = news & fails_on_restart(room)
            self.put(failing, **{f"{place.room}_failure": 1})
        self.put(news, **{f"k{rank}_heard": boot})


def fails_on_restart(room: Part) -> Number:
    """Whether a request was registered, lives, and awaits anything of the process that registered it."""
    needs = (room.total == UNKNOWN) | (room.landed < room.total)
    return (room.registered == 1) & is_live(room) & needs


class _Over:
    """A view in which some fields have new values."""

    def __init__(self, view: View, changes: Mapping[str, Number]) -> None:
        self._view, self._changes = view, dict(changes)

    def __getitem__(self, name: str) -> Number:
        return self._changes[name] if name in self._changes else self._view[name]

    __getattr__ = __getitem__


BY_NAME = {entry.name: entry for entry in ENTRIES}
TICK_BY_NAME = {entry.name: entry for entry in TICK}


def no_numbers(ops: Ops, view: View) -> Mapping[str, Number]:
    """A turn of which there is one version."""
    return {}


# --- blocks and names ---------------------------------------------------------------------------------------


class Taken:
    """The blocks that an allocator gives: the first free ones from a drawn block on, round about."""

    def __init__(self, step: Step, place: Place, start: Number, count: Number) -> None:
        self.ops, self.count = step.ops, count
        ops, size = step.ops, len(place.blocks)
        free = [ops.where(step.part(block).state == FREE, 1, 0) for block in place.blocks]
        first = start % size
        total: Number = 0
        below: Number = 0
        before = []
        for index, one in enumerate(free):
            before.append(total)
            below = ops.where(first == index, total, below)
            total = total + one
        self._index = {}
        self._free = {}
        for index, block in enumerate(place.blocks):
            # Free blocks between the drawn one and this one.
            rank = before[index] - below
            self._index[block] = ops.where(rank < 0, rank + total, rank) if size > 1 else 0
            self._free[block] = free[index]

    def has(self, block: str) -> Number:
        """Whether the block is given."""
        return (self._free[block] == 1) & (self._index[block] < self.count)

    def index(self, block: str) -> Number:
        """At which place of the grant."""
        return self._index[block]

    def of_choice(self, choice: Picked) -> Any:
        """The same choice, with these blocks."""
        return _WithBlocks(choice, self)


class _WithBlocks:
    def __init__(self, choice: Picked, taken: Taken) -> None:
        self._choice, self._taken = choice, taken

    def __getattr__(self, name: str) -> Number:
        return getattr(self._choice, name)

    def of(self, block: str) -> Any:
        """What is chosen for one block."""
        ops, taken = self._taken.ops, self._taken
        has = taken.has(block)
        return _Given(ops.where(has, 1, 0), ops.where(has, taken.index(block), 0))


class _Given(NamedTuple):
    has: Number
    index: Number
    generation: int = 0


def blocks_given(numbers: Mapping[str, int], places: Sequence[Place]) -> list[list[str]]:
    """For each rank, the blocks of a grant in their order."""
    return [
        sorted([block for block in place.blocks if numbers[block] >= 0], key=lambda block: numbers[block])
        for place in places
    ]


def step_of(state: Mapping[str, int], rules: ModelRules) -> Step:
    """A state as a step reads it."""
    return Step(kernel.INT, Fields(state), rules)


def part_of(state: Mapping[str, int], place: Place) -> Part:
    """One request on one rank in a state."""
    return step_of(state, PROTOCOL_RULES).part(place.room)


def atom(place: Place, name: str, chosen: Mapping[str, int]) -> str:
    """The name of a bounded action in one of its versions."""
    version = " ".join(f"{key}={int(value)}" for key, value in chosen.items())
    return f"{place.room}: {name} {version}".strip()


# --- turns ------------------------------------------------------------------------------------------------


class Book:
    """Writes turns down, and deals out draws."""

    def __init__(self, bounds: Bounds, rules: ModelRules) -> None:
        self.bounds, self.rules = bounds, rules
        self.layout = Layout(bounds)
        self.turns: list[Turn] = []
        self.draws = 0
        self.tick_draw, self.offer_draw = self.draw(), self.draw()
        self.strike, self.which = self.draw(), (self.draw(), self.draw())
        self.start_block = self.draw()

    def draw(self) -> str:
        """A new draw of a round."""
        self.draws += 1
        return f"draw{self.draws - 1}"

    def on_rank(self, rank: int) -> list[Place]:
        """All requests on one rank."""
        return [room[rank] for room in self.layout.rooms]

    def add(
        self, name: str, number: int, rank: int, place: Place, guard: Callable[[Draft], Number],
        draft: Callable[[Draft], None], atoms: Callable[[Mapping[str, int]], list[str]], *, rate: str = "",
        numbers: Numbered = no_numbers, **more: Any,
    ) -> None:  # fmt: skip
        """A turn. ``rate`` names its rate, if that is not its name's; one without a rate is always taken."""
        rate = rate or name
        drawn = self.draw() if RATES.get(rate, ALWAYS) < ALWAYS and not more.get("of_tick") else ""

        def whole(ops: Ops, view: View) -> Number:
            allowed = guard(Draft(self, ops, view))
            return (view[drawn] < RATES[rate]) & allowed if drawn else allowed

        def update(ops: Ops, view: View) -> Mapping[str, Number]:
            drafted = Draft(self, ops, view)
            draft(drafted)
            return drafted.changes

        self.turns.append(Turn(f"{place.room}: {name}", name, number, rank, whole, update, numbers, atoms, **more))

    def entry(
        self, name: str, number: int, rank: int, place: Place,
        chosen: Callable[[Part], dict[str, Number]] = lambda room: {}, *,
        also: Callable[[Draft, Part], Number] | None = None, before: Callable[[Draft, Part], None] | None = None,
        after: Callable[[Draft, Part], None] | None = None,
        atoms: Callable[[Mapping[str, int]], list[str]] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """A turn that is one action of one request: ``chosen`` is what it leaves open, worked out from the state."""
        entry = BY_NAME[name]

        def guard(draft: Draft) -> Number:
            room = draft.step().part(place.room)
            allowed = draft.may(entry, place, **chosen(room))
            return allowed if also is None else allowed & also(draft, room)

        def make(draft: Draft) -> None:
            room = draft.step().part(place.room)
            values = chosen(room)
            if before is not None:
                before(draft, room)
            draft.do(entry, place, **values)
            if after is not None:
                after(draft, room)

        def numbers(ops: Ops, view: View) -> Mapping[str, Number]:
            return chosen(Step(ops, view, self.rules).part(place.room))

        def named(state: Mapping[str, int]) -> list[str]:
            return [atom(place, name, chosen(part_of(state, place)))]

        self.add(name, number, rank, place, guard, make, atoms or named, numbers=numbers, **more)

    def news(self, rank: int, state: Mapping[str, int], boot: int) -> list[str]:
        """The actions that hearing of a process amounts to."""
        if not self.bounds.crashes or not self.rules.boot_change_fences():
            return []
        if boot <= state[f"k{rank}_heard"] or boot <= state[f"k{rank}_gone"]:
            return []
        return [
            atom(place, "a restart is seen", {})
            for place in self.on_rank(rank) if fails_on_restart(part_of(state, place))
        ]  # fmt: skip

    def _release(self, place: Place) -> Callable[[Draft, Part], None]:
        entry = BY_NAME["release"]

        def after(draft: Draft, room: Part) -> None:
            draft.do(entry, place, draft.may(entry, place))

        return after

    def _then_release(
        self, state: Mapping[str, int], place: Place, name: str, chosen: Mapping[str, int], before: Sequence[str] = ()
    ) -> list[str]:
        """The atoms of something after which quarantine may end."""
        draft = Draft(self, kernel.INT, Fields(state))
        draft.do(BY_NAME[name], place, **chosen)
        released = [atom(place, "release", {})] if draft.may(BY_NAME["release"], place) else []
        return [*before, atom(place, name, chosen), *released]
