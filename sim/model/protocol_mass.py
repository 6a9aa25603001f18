"""A schedule for very many random runs of the bounded protocol model, each of which the code itself can do.

A run goes by rounds. In each round everybody has a turn, one after the other and always in the same order: the sender
hears a REGISTER, the receiver's ranks tick, a GRANT is delivered, bytes land, a STATUS is delivered, a copy ends. A turn
is taken if it can be and if its draw allows it; else it passes. So any of them may be late by any number of rounds, and
every order of events can come about, while nothing is chosen from a list: all lanes of an array do the same.

A turn is one action of :func:`sim.model.protocol_bounded.bounded`, or several that the code does in one call (a GRANT
that arrives is executed at once if it can be; a process that restarts is news for all its requests). ``atoms`` names
them, so that a run is a list of actions of the bounded model. What the model allows and the code has no call for is not
scheduled: a second grant to a newcomer while an older request waits, an OFFER that was not sent, an answer of a process
that never gave one. A few fields that the model has not (``EXTRA``) say what was really sent and heard.

Faults strike in a first phase of so many rounds; then all that is left is fair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fsm import kernel
from fsm.errors import LocalError
from fsm.kernel import UNKNOWN, Number, Ops
from sim.model import protocol_receiver as receiver
from sim.model.form import Action, Clause, Field, Fields, Model, View, negate
from sim.model.protocol import ENTRIES, TICK, Entry, TickEntry
from sim.model.protocol_bounded import Bounds, Layout, Picked, bounded
from sim.model.protocol_parts import FREE, Part, Step
from sim.model.protocol_receiver import Place, is_live, latest
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
"""What is decided: the verdict of a tick, a grant; of a sender: the execution of a grant, its commit, a lane's failure."""

Decision = tuple[Number, int, int, Number, Number, Number, Number]
"""What is decided (0: nothing), the request, the rank, and up to four numbers that say how."""

EXTRA_PLACE = ("acked", "answered", "told", "o_sent")
"""Of a request on a rank: the last process of the sender that sent a REGISTER_ACK; the last that answered an ABORT;
whether the sender's own ABORT was sent; whether an OFFER was."""
EXTRA_RANK = ("heard", "gone")
"""Of a rank: the newest process of the sender that was heard of, and the newest that was proved to be gone."""
FAILED_NOW = "failed_now"
"""Whether a request has failed in this tick. What that frees is given from the next tick on, for an allocator is asked
before anything is decided."""
FAULTS_LEFT = "faults_left"
"""Rounds in which faults may still strike."""

LIMITS = {"rooms": 7, "ranks": 4, "blocks": 15, "size": 60, "early_tokens": 60}
"""What the numbers of a decision have room for."""

Numbered = Callable[[Ops, View], Mapping[str, Number]]


@dataclass(frozen=True)
class Turn:
    """One step of a round. ``guard`` and ``update`` as of an action; ``draw`` is the field that must be below ``rate``
    (none: it is always taken when it can be).

    ``deed`` and ``numbers`` say what is to be done to the real objects, and in which version (a seq, a boot, blocks).
    ``atoms`` are the bounded actions that it stands for, in a state that it is taken in. ``rare``: few lanes take it at
    a time. ``counts`` are things to count where it is taken. ``fault``: it strikes in the first phase only.
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
    rare: bool = True
    counts: Mapping[str, Callable[[Ops, View], Number]] = field(default_factory=dict)
    fault: bool = False
    of_tick: bool = False


class Schedule(NamedTuple):
    """Everything that runs of one size are made of. ``model`` has the fields of the bounded model, those of
    ``EXTRA_PLACE`` and ``EXTRA_RANK``, and one for each draw (``draws`` of them)."""

    bounds: Bounds
    rules: ModelRules
    bounded: Model
    model: Model
    layout: Layout
    turns: tuple[Turn, ...]
    draws: int
    over: Callable[[Ops, View], Number]
    tick_draws: tuple[str, str]
    """The draws of the tick, and of whether its allocator gives blocks."""
    rounds_max: int
    """A run that has not ended so many rounds after its last fault never will, as far as anybody can tell."""


def check_bounds(bounds: Bounds) -> None:
    """Raise LocalError for a size that the schedule does not hold."""
    for name, most in LIMITS.items():
        if getattr(bounds, name) > most:
            raise LocalError(f"{name}={getattr(bounds, name)}: mass simulation holds at most {most}")
    if bounds.ranks > 1 and bounds.senders < bounds.ranks:
        raise LocalError(f"ranks={bounds.ranks} with senders={bounds.senders}: mass simulation holds a sender for each rank")
    if bounds.aborts:
        raise LocalError(f"aborts={bounds.aborts}: in mass simulation faults strike at a rate; leave the budget out")
    if bounds.early_tokens and bounds.rooms > 1:
        raise LocalError("early grants are held for one request only: with more, one tick may serve both, early and not")


def decision_code(decision: Sequence[int]) -> int:
    """A decision as one number of 64 bits; no two differ only in what it leaves out."""
    what, room, rank, a, b, c, d = (int(number) for number in decision)
    return what | room << 4 | rank << 8 | (a & 255) << 12 | (b & 255) << 20 | (c & 255) << 28 | (d & 255) << 36


# --- drafts ----------------------------------------------------------------------------------------------


class Draft:
    """The values of all fields while a turn is being written down, one action of the model after the other."""

    def __init__(self, maker: Maker, ops: Ops, view: View) -> None:
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


_ENTRIES = {entry.name: entry for entry in ENTRIES}
_TICK = {entry.name: entry for entry in TICK}


def _nothing(ops: Ops, view: View) -> Mapping[str, Number]:
    return {}


# --- the schedule ----------------------------------------------------------------------------------------


class Maker:
    """Writes the turns of a round down, in their order, and deals out draws."""

    def __init__(self, bounds: Bounds, rules: ModelRules) -> None:
        self.bounds, self.rules = bounds, rules
        self.layout = Layout(bounds)
        self.turns: list[Turn] = []
        self.draws = 0
        self.tick_draw, self.offer_draw = self.draw(), self.draw()
        self.strike, self.which = (self.draw(), self.draw()), (self.draw(), self.draw())
        self.start_block = self.draw()

    def draw(self) -> str:
        """A new draw of a round."""
        self.draws += 1
        return f"draw{self.draws - 1}"

    def on_rank(self, rank: int) -> list[Place]:
        """All requests on one rank."""
        return [room[rank] for room in self.layout.rooms]

    def write(self) -> None:
        """All turns of a round."""
        places = [(number, rank, room[rank]) for number, room in enumerate(self.layout.rooms) for rank in range(len(room))]
        for number, rank, place in places:
            self.register(number, rank, place)
        for number in range(self.bounds.rooms):
            self.lifecycles(number)
        for number in range(self.bounds.rooms):
            self.grant(number)
        for number in range(self.bounds.rooms):
            self.starve(number, self.layout.rooms[number][0])
        if self.bounds.rooms > 1:
            self.add(
                "the tick is over", 0, 0, self.layout.places[0], lambda draft: draft.step().read(FAILED_NOW) == 1,
                lambda draft: draft.put(True, **{FAILED_NOW: 0}), lambda state: [], of_tick=True,
            )  # fmt: skip
        for number, rank, place in places:
            self.sending(number, rank, place)
            self.receiving(number, rank, place)
            self.ending(number, rank, place)
        if self.bounds.crashes:
            for rank in range(self.bounds.ranks):
                self.restarts(rank)
        self.faults(places)

    def add(
        self, name: str, number: int, rank: int, place: Place, guard: Callable[[Draft], Number],
        draft: Callable[[Draft], None], atoms: Callable[[Mapping[str, int]], list[str]], *, rate: str = "",
        numbers: Numbered = _nothing, **more: Any,
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
        entry = _ENTRIES[name]

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
            return [atom(place, name, chosen(_part(state, place)))]

        self.add(name, number, rank, place, guard, make, atoms or named, numbers=numbers, **more)

    # --- who does what --------------------------------------------------------------------------------

    def register(self, number: int, rank: int, place: Place) -> None:
        """REGISTER and its answer."""
        p = place.room

        def acknowledged(draft: Draft, room: Part) -> None:
            draft.put(True, **{f"{p}_acked": room.s_boot})
            draft.put(room.staged == 1, **{f"{p}_o_sent": 1})

        self.entry("receive REGISTER", number, rank, place, after=acknowledged)
        if not self.bounds.crashes:
            self.entry("receive REGISTER_ACK", number, rank, place, lambda room: {"boot": 1})
            return

        def boot(room: Part) -> dict[str, Number]:
            return {"boot": room.acked}

        def counts(draft: Draft, room: Part) -> Number:
            step = draft.step()
            fenced = self.rules.boot_change_fences()
            known = (room.acked >= step.read(f"k{rank}_heard")) & (room.acked > step.read(f"k{rank}_gone"))
            return (room.acked >= 1) & (known if fenced else room.acked >= 1)

        self.entry(
            "receive REGISTER_ACK", number, rank, place, boot, also=counts,
            before=lambda draft, room: draft.see_boot(rank, room.acked),
            atoms=lambda state: [
                *self.news(rank, state, state[f"{p}_acked"]), atom(place, "receive REGISTER_ACK", {"boot": state[f"{p}_acked"]})
            ],
        )  # fmt: skip

    def news(self, rank: int, state: Mapping[str, int], boot: int) -> list[str]:
        """The actions that hearing of a process amounts to."""
        if not self.bounds.crashes or not self.rules.boot_change_fences():
            return []
        if boot <= state[f"k{rank}_heard"] or boot <= state[f"k{rank}_gone"]:
            return []
        return [
            atom(place, "a restart is seen", {})
            for place in self.on_rank(rank) if fails_on_restart(_part(state, place))
        ]  # fmt: skip

    def lifecycles(self, number: int) -> None:
        """The first half of a tick for one request: what its lifecycle does. At most one of these is taken in a tick."""
        for name, what, rare in (
            ("tick: fail", FAIL, True), ("tick: complete", COMPLETE, True), ("tick: take a chunk", CHUNK, False),
            ("tick: registered", REGISTERED, True),
        ):  # fmt: skip
            self._lifecycle(_TICK[name], number, what, rare)

    def _see(self, step: Step, number: int, taken: Sequence[_Taken] = ()) -> list[tuple[Place, Any, receiver.Seen]]:
        found = []
        for rank, place in enumerate(self.layout.rooms[number]):
            choice: Any = Picked(step, place, self.layout, {})
            if taken:
                choice = taken[rank].of_choice(choice)
            found.append((place, choice, receiver.observe(step, place, choice)))
        return found

    def _lifecycle(self, entry: TickEntry, number: int, what: int, rare: bool) -> None:
        place = self.layout.rooms[number][0]

        def guard(draft: Draft) -> Number:
            step = draft.step()
            allowed: Number = step.view[self.tick_draw] < RATES["tick"]
            for place, choice, seen in self._see(step, number):
                allowed = allowed & entry.guard(step, place, choice, seen)
            return allowed

        def make(draft: Draft) -> None:
            step = draft.step()
            for place, choice, seen in self._see(draft.step(), number):
                entry.draft(step, place, choice, seen)
            draft.put(True, **step.changes)
            if what == FAIL and self.bounds.rooms > 1:
                draft.put(True, **{FAILED_NOW: 1})

        def decision(ops: Ops, before: View, after: View) -> Decision:
            handled = after[f"{place.room}_handled"] if what == CHUNK else 0
            return (what, number, 0, handled, 0, 0, 0)

        def quarantined(ops: Ops, view: View) -> Number:
            return view[f"{place.room}_open"] == 1

        self.add(
            entry.name, number, 0, place, guard, make, lambda state: [f"r{number}: {entry.name}"], of_tick=True,
            decision=decision, rare=rare, counts={"quarantine": quarantined} if what == FAIL else {},
        )  # fmt: skip

    def grant(self, number: int) -> None:
        """The second half of a tick for one request: it is given blocks. Older requests that wait go first."""
        entry = _TICK["tick: grant"]
        places = self.layout.rooms[number]

        def taken(step: Step) -> list[_Taken]:
            base = self._see(step, number)
            count = receiver.work_out_grant(step, *base[0]).blocks
            return [_Taken(step, place, step.view[self.start_block], count) for place in places]

        def guard(draft: Draft) -> Number:
            step = draft.step()
            allowed = (step.view[self.tick_draw] < RATES["tick"]) & (step.view[self.offer_draw] < RATES["offer"])
            if self.bounds.rooms > 1:
                allowed = allowed & (step.read(FAILED_NOW) == 0)
            for older in range(number):
                for place in self.layout.rooms[older]:
                    allowed = allowed & negate(receiver.is_due(step, step.part(place.room)))
            for place, choice, seen in self._see(step, number):
                enough = choice.free <= choice.own_free
                allowed = allowed & enough & (receiver.work_out_grant(step, place, choice, seen).blocks > 0)
            return allowed

        def make(draft: Draft) -> None:
            given = taken(draft.step())
            step = draft.step()
            for place, choice, seen in self._see(draft.step(), number, given):
                entry.draft(step, place, choice, seen)
            draft.put(True, **step.changes)

        def numbers(ops: Ops, view: View) -> Mapping[str, Number]:
            found = {}
            for place, one in zip(places, taken(Step(ops, view, self.rules)), strict=True):
                for block in place.blocks:
                    found[block] = ops.where(one.has(block), one.index(block), -1)
            return found

        def decision(ops: Ops, before: View, after: View) -> Decision:
            room = Step(ops, after, self.rules).part(places[0].room)
            return (GRANT, number, 0, latest(room), room.g_start, room.g_cap, room.g_blocks)

        def resumes(ops: Ops, view: View) -> Number:
            return view[f"{places[0].room}_next_seq"] > 0

        def same(ops: Ops, view: View) -> Number:
            again = resumes(ops, view)
            for place, one in zip(places, taken(Step(ops, view, self.rules)), strict=True):
                for block in place.blocks:
                    again = again & (ops.where(one.has(block), 1, 0) == view[f"{place.room}_{block}_g_has"])
            return again

        def atoms(state: Mapping[str, int]) -> list[str]:
            given = blocks_given(numbers(kernel.INT, Fields(state)), places)
            return [f"r{number}: tick: grant " + " ".join("".join(block[-2:] for block in one) for one in given)]

        self.add(
            "tick: grant", number, 0, places[0], guard, make, atoms, of_tick=True, decision=decision, rare=False,
            numbers=numbers, counts={"resume": resumes, "same_blocks": same},
        )  # fmt: skip

    def starve(self, number: int, place: Place) -> None:
        """The end of a tick: who holds data and got no blocks waits."""

        def waits(draft: Draft) -> Number:
            step = draft.step()
            return (step.view[self.tick_draw] < RATES["tick"]) & receiver.is_due(step, step.part(place.room))

        entry = _ENTRIES["wait for blocks"]
        follows = self.rules.starved()

        def make(draft: Draft) -> None:
            if follows:
                for one in self.layout.rooms[number]:
                    draft.do(entry, one)

        def atoms(state: Mapping[str, int]) -> list[str]:
            return [atom(one, entry.name, {}) for one in self.layout.rooms[number]] if follows else []

        self.add("waits", number, 0, place, waits, make, atoms, of_tick=True, rare=follows,
                 counts={"starvation": lambda ops, view: view[f"{place.room}_handled"] >= 0})  # fmt: skip

    def sending(self, number: int, rank: int, place: Place) -> None:
        """What the sender does for one lane, and the transport for it."""
        p = place.room

        def offers(draft: Draft, room: Part) -> None:
            draft.put((room.l_state == kernel.WAITING) & (room.parked == 0), **{f"{p}_o_sent": 1})

        self.entry("stage", number, rank, place, after=offers)
        self.entry("receive OFFER", number, rank, place, also=lambda draft, room: room.o_sent == 1)
        self.entry("receive GRANT", number, rank, place, lambda room: {"seq": latest(room)}, rare=False)

        def executed(ops: Ops, before: View, after: View) -> Decision:
            failed = after[f"{p}_l_state"] == kernel.FAILED
            return (ops.where(failed, LANE_FAILED, EXECUTE), number, rank, before[f"{p}_p_seq"], 0, 0, 0)

        self.entry("execute", number, rank, place, decision=executed, rare=False,
                   after=lambda draft, room: self._lane_told(draft, place))  # fmt: skip
        self.entry("another rank's GRANT", number, rank, place)
        self.entry("bytes land", number, rank, place, rare=False)
        if self.bounds.crashes:
            self.entry("a write vanishes", number, rank, place)

        def committed(ops: Ops, before: View, after: View) -> Decision:
            live = before[f"{p}_l_state"] < kernel.SUCCESS
            last = ops.where(after[f"{p}_l_state"] == kernel.SUCCESS, 1, 0)
            said = after[f"{p}_l_committed"]
            return (ops.where(live, COMMIT, 0), number, rank, before[f"{p}_f_seq"], said, last, 0)

        self.entry("the write is done", number, rank, place, decision=committed, rare=False)

    def _lane_told(self, draft: Draft, place: Place) -> None:
        """The sender sends an ABORT when a lane fails by itself."""
        step = draft.step()
        draft.put(step.read(f"{place.room}_l_state") == kernel.FAILED, **{f"{place.room}_told": 1})

    def receiving(self, number: int, rank: int, place: Place) -> None:
        """What one rank of the receiver hears of a request, and the copies of its chunks."""
        p = place.room
        if self.bounds.late or self.bounds.notices:
            self.entry(
                "own completion", number, rank, place, lambda room: {"seq": room.d_seq}, rare=False,
                also=lambda draft, room: room.d_seq > room.landed_seq, after=self._release(place),
                atoms=lambda state: self._then_release(state, place, "own completion", {"seq": state[f"{p}_d_seq"]}),
            )  # fmt: skip
        self.entry("receive STATUS", number, rank, place, lambda room: {"seq": room.done_seq}, rare=False)
        self.entry("receive a late STATUS", number, rank, place, lambda room: {"seq": room.done_seq})
        self.again(number, rank, place)
        self.copies("a copy ends", number, rank, place, fault=False)
        if self.bounds.leases:
            self.entry("lease", number, rank, place)

    def again(self, number: int, rank: int, place: Place) -> None:
        """Messages that come once more, and must change nothing."""
        status, grant = _ENTRIES["receive STATUS"], _ENTRIES["receive GRANT"]

        def stale_status(draft: Draft) -> Number:
            room = draft.step().part(place.room)
            return (room.done_seq >= 0) & negate(draft.may(status, place, seq=room.done_seq))

        def stale_grant(draft: Draft) -> Number:
            room = draft.step().part(place.room)
            return (room.next_seq > 0) & negate(draft.may(grant, place, seq=latest(room)))

        def every(ops: Ops, view: View) -> Number:
            return view[f"{place.room}_next_seq"] >= 0

        if self.rules.unmatched() or self.rules.grant_kind is not PROTOCOL_RULES.grant_kind:
            return  # with wrong rules they may change something, and the turns above say what
        self.add(
            "again STATUS", number, rank, place, stale_status, lambda draft: None, lambda state: [],
            numbers=lambda ops, view: {"seq": view[f"{place.room}_done_seq"]}, counts={"stale_status": every},
        )  # fmt: skip
        self.add(
            "again GRANT", number, rank, place, stale_grant, lambda draft: None, lambda state: [],
            numbers=lambda ops, view: {"seq": view[f"{place.room}_next_seq"] - 1}, counts={"stale_grant": every},
        )  # fmt: skip

    def copies(self, name: str, number: int, rank: int, place: Place, *, fault: bool, struck: Any = None) -> None:
        """The copy of a chunk ends: of the chunk in the first block, from a drawn one on, that holds one."""

        def reading(room: Part, step: Step, block: str) -> Number:
            claim = step.claim(room, block)
            return (claim.c_has == 1) & (claim.c_seq <= room.read_seq)

        def chosen(step: Step) -> dict[str, Number]:
            ops, room = step.ops, step.part(place.room)
            first = step.view[self.start_block] % len(place.blocks)
            seq: Number = -1
            tokens: Number = 0
            for after in (False, True):  # later ones win: those from the drawn block on
                for index in reversed(range(len(place.blocks))):
                    claim = step.claim(room, place.blocks[index])
                    here = reading(room, step, place.blocks[index])
                    if after:
                        here = here & (first <= index)
                    seq, tokens = ops.where(here, claim.c_seq, seq), ops.where(here, claim.c_tokens, tokens)
            return {"seq": seq, "tokens": tokens}

        def guard(draft: Draft) -> Number:
            step = draft.step()
            room = step.part(place.room)
            some: Number = room.state < 0
            for block in place.blocks:
                some = some | reading(room, step, block)
            if fault:
                some = some & (room.leased == 0)
            return some if struck is None else struck(step.view) & some

        self.add(
            name, number, rank, place, guard,
            lambda draft: draft.do(_ENTRIES[name], place, **chosen(draft.step())),
            lambda state: [atom(place, name, chosen(_step(state, self.rules)))],
            numbers=lambda ops, view: chosen(Step(ops, view, self.rules)), rare=True, fault=fault,
            counts={name: lambda ops, view: view[f"{place.room}_state"] >= 0} if fault else {},
        )  # fmt: skip

    def _release(self, place: Place) -> Callable[[Draft, Part], None]:
        entry = _ENTRIES["release"]

        def after(draft: Draft, room: Part) -> None:
            draft.do(entry, place, draft.may(entry, place))

        return after

    def _then_release(
        self, state: Mapping[str, int], place: Place, name: str, chosen: Mapping[str, int], before: Sequence[str] = ()
    ) -> list[str]:
        """The atoms of something after which quarantine may end."""
        draft = Draft(self, kernel.INT, Fields(state))
        draft.do(_ENTRIES[name], place, **chosen)
        released = [atom(place, "release", {})] if draft.may(_ENTRIES["release"], place) else []
        return [*before, atom(place, name, chosen), *released]

    def ending(self, number: int, rank: int, place: Place) -> None:
        """How a failure gets to the other side, and what proves that no write is outstanding."""
        p = place.room

        def lane_failed(ops: Ops, before: View, after: View) -> Decision:
            was, now = before[f"{p}_l_state"], after[f"{p}_l_state"]
            fails = (was > kernel.BOOTSTRAPPING) & (was < kernel.SUCCESS) & (now == kernel.FAILED)
            return (ops.where(fails, LANE_FAILED, 0), number, rank, 0, 0, 0, 0)

        def unanswered(draft: Draft, room: Part) -> Number:
            quiet = (room.writing == 0) & (room.answered != room.s_boot)
            return (room.l_state < kernel.SUCCESS) | quiet | ((room.writing == 1) & (room.ack_owed == 0))

        def answers(draft: Draft, room: Part) -> None:
            draft.put(True, **{f"{p}_answered": room.s_boot})

        self.entry("receive ABORT", number, rank, place, also=unanswered, after=answers, decision=lane_failed)
        if self.bounds.faults:
            heard = _ENTRIES["abort or NACK"]
            self.add(
                "the sender's ABORT", number, rank, place,
                lambda draft: (draft.step().read(f"{p}_told") == 1) & (draft.step().read(f"{p}_failure") == 0)
                & draft.may(heard, place),
                lambda draft: draft.do(heard, place), lambda state: [atom(place, heard.name, {})],
            )  # fmt: skip

        def boot(room: Part) -> dict[str, Number]:
            return {"boot": room._step.ops.where(room.peer_boot == 0, room.answered, room.peer_boot)}

        def take(draft: Draft, room: Part) -> None:
            draft.see_boot(rank, boot(room)["boot"])

        def atoms(state: Mapping[str, int]) -> list[str]:
            chosen = boot(_part(state, place))
            return self._then_release(state, place, "receive ABORT_ACK", chosen, self.news(rank, state, chosen["boot"]))

        self.entry(
            "receive ABORT_ACK", number, rank, place, boot, before=take, after=self._release(place), atoms=atoms,
            also=lambda draft, room: boot(room)["boot"] >= 1,
        )  # fmt: skip
        if self.bounds.crashes:
            self.gone(number, rank, place)

    def gone(self, number: int, rank: int, place: Place) -> None:
        """The process that a request was granted to is over, and with it all that it wrote for anybody."""
        entry = _ENTRIES["the process is gone"]
        p = place.room

        def alike(step: Step, other: Place) -> Number:
            room = step.part(other.room)
            return (room.registered == 1) & (room.peer_boot == step.read(f"{p}_peer_boot"))

        def guard(draft: Draft) -> Number:
            step = draft.step()
            allowed = draft.may(entry, place)
            for other in self.on_rank(rank):
                if other is not place:
                    allowed = allowed & (negate(alike(step, other)) | (step.part(other.room).flight == 0))
            return allowed

        def make(draft: Draft) -> None:
            step = draft.step()
            boot = step.read(f"{p}_peer_boot")
            for other in self.on_rank(rank):
                draft.do(entry, other, alike(step, other) & draft.may(entry, other))
            draft.put(boot > step.read(f"k{rank}_gone"), **{f"k{rank}_gone": boot})

        def atoms(state: Mapping[str, int]) -> list[str]:
            draft = Draft(self, kernel.INT, Fields(state))
            return [
                atom(other, entry.name, {}) for other in self.on_rank(rank)
                if alike(draft.step(), other) and draft.may(entry, other)
            ]  # fmt: skip

        self.add(entry.name, number, rank, place, guard, make, atoms,
                 numbers=lambda ops, view: {"boot": view[f"{p}_peer_boot"]})  # fmt: skip

    def restarts(self, rank: int) -> None:
        """A HEARTBEAT of a newer process of the sender arrives."""
        place = self.on_rank(rank)[0]

        def guard(draft: Draft) -> Number:
            step = draft.step()
            unheard: Number = step.read(f"{place.room}_s_boot") > step.read(f"k{rank}_heard")
            return unheard & (step.read(f"k{rank}_heard") > 0) & self.rules.boot_change_fences()

        def make(draft: Draft) -> None:
            draft.see_boot(rank, draft.step().read(f"{place.room}_s_boot"))

        self.add(
            "a restart is seen", 0, rank, place, guard, make,
            lambda state: self.news(rank, state, state[f"{place.room}_s_boot"]),
            numbers=lambda ops, view: {"boot": view[f"{place.room}_s_boot"]},
        )  # fmt: skip

    # --- faults ---------------------------------------------------------------------------------------

    def faults(self, places: Sequence[tuple[int, int, Place]]) -> None:
        """At most one of them strikes in a round."""
        kinds: list[tuple[str, int, int, Place]] = []
        if self.bounds.faults:
            for number, rank, place in places:
                for name in ("abort or NACK", "a deadline passes", "the sender fails", "a write breaks", "a copy fails"):
                    kinds.append((name, number, rank, place))
        if self.bounds.crashes:
            for rank in range(self.bounds.ranks):
                kinds += [(CRASH, 0, rank, self.on_rank(rank)[0])] * 2
        for index, (name, number, rank, place) in enumerate(kinds):
            self._fault(name, number, rank, place, self._struck(index, len(kinds)))

    def _struck(self, index: int, kinds: int) -> Callable[[View], Number]:
        high, low = self.strike
        one, two = self.which

        def struck(view: View) -> Number:
            # A number below 128, cut into equal parts.
            drawn = view[one] * 8 + view[two] // 2
            first, last = index * 128 // kinds, (index + 1) * 128 // kinds
            return (view[FAULTS_LEFT] > 0) & (view[high] < STRIKES) & (drawn >= first) & (drawn < last)

        return struck

    def _fault(self, name: str, number: int, rank: int, place: Place, struck: Callable[[View], Number]) -> None:
        p = place.room
        if name == "a copy fails":
            self.copies(name, number, rank, place, fault=True, struck=struck)
            return
        entry = _ENTRIES[name]
        everybody = self.on_rank(rank) if name == CRASH else [place]

        def guard(draft: Draft) -> Number:
            step = draft.step()
            room = step.part(p)
            allowed = struck(step.view) & draft.may(entry, place)
            if name == CRASH:
                allowed = allowed & (step.read("crashes_left") > 0)
            if name == "the sender fails":  # before, it is the whole room that ends, and not one epoch of it
                allowed = allowed & (room.l_state > kernel.BOOTSTRAPPING)
            return allowed

        def make(draft: Draft) -> None:
            was_live = draft.step().read(f"{p}_l_state") < kernel.SUCCESS
            for one in everybody:
                draft.do(entry, one)
            if name == CRASH:
                draft.put(True, crashes_left=draft.step().read("crashes_left") - 1)
            if name in ("the sender fails", "a write breaks"):
                draft.put(was_live, **{f"{p}_told": 1})

        def lane_failed(ops: Ops, before: View, after: View) -> Decision:
            fails = (before[f"{p}_l_state"] < kernel.SUCCESS) & (after[f"{p}_l_state"] == kernel.FAILED)
            return (ops.where(fails, LANE_FAILED, 0), number, rank, 0, 0, 0, 0)

        self.add(
            name, number, rank, place, guard, make,
            lambda state: [f"s{rank}: {name}"] if name == CRASH else [atom(place, name, {})],
            rate="fault", fault=True, decision=lane_failed if name in ("the sender fails", "a write breaks") else None,
            numbers=lambda ops, view: {"seq": view[f"{p}_f_seq"], "boot": view[f"{p}_s_boot"] + 1},
            counts={name: lambda ops, view: view[f"{p}_state"] >= 0},
        )  # fmt: skip


STRIKES = 3
"""Of 16 draws, how many let a fault strike in a round of the first phase."""


class _Taken:
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
    def __init__(self, choice: Picked, taken: _Taken) -> None:
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


def _step(state: Mapping[str, int], rules: ModelRules) -> Step:
    return Step(kernel.INT, Fields(state), rules)


def _part(state: Mapping[str, int], place: Place) -> Part:
    return _step(state, PROTOCOL_RULES).part(place.room)


def atom(place: Place, name: str, chosen: Mapping[str, int]) -> str:
    """The name of a bounded action in one of its versions."""
    version = " ".join(f"{key}={int(value)}" for key, value in chosen.items())
    return f"{place.room}: {name} {version}".strip()


# --- all of it -------------------------------------------------------------------------------------------


def mass_schedule(bounds: Bounds, rules: ModelRules = PROTOCOL_RULES) -> Schedule:
    """The schedule of that size. Raises LocalError for one that it does not hold."""
    check_bounds(bounds)
    model = bounded(bounds, rules)
    maker = Maker(bounds, rules)
    maker.write()
    extra = [Field(f"{place.room}_{name}", 0, 1 + bounds.crashes) for place in maker.layout.places for name in EXTRA_PLACE]
    extra += [Field(f"k{rank}_{name}", 0, 1 + bounds.crashes) for rank in range(bounds.ranks) for name in EXTRA_RANK]
    extra += [Field(FAULTS_LEFT, 0, 127), Field(FAILED_NOW, 0, int(bounds.rooms > 1))]
    extra += [Field(f"draw{index}", 0, DRAW_VALUES - 1) for index in range(maker.draws)]
    actions = tuple(Action(turn.name, turn.guard, turn.update, not turn.fault) for turn in maker.turns)
    clauses: tuple[Clause, ...] = model.clauses
    whole = Model("protocol-mass", (*model.fields, *extra), model.initial, actions, clauses)
    grants = -(-bounds.size // bounds.block_tokens)
    rounds_max = 200 + 40 * bounds.rooms * bounds.ranks * grants
    return Schedule(
        bounds, rules, model, whole, maker.layout, tuple(maker.turns), maker.draws, _over(maker.layout),
        (maker.tick_draw, maker.offer_draw), rounds_max,
    )  # fmt: skip


def _over(layout: Layout) -> Callable[[Ops, View], Number]:
    """Every request has ended on both sides, and nothing is left behind: no block, no write, no copy."""

    def over(ops: Ops, view: View) -> Number:
        step = Step(ops, view, PROTOCOL_RULES)
        all_over: Number = view["late"] >= 0
        for place in layout.places:
            room = step.part(place.room)
            ended = (room.state >= kernel.SUCCESS) & (room.flight == 0) & (room.writing == 0)
            lane = (room.l_state >= kernel.SUCCESS) | ((room.state == kernel.SUCCESS) & (room.s_boot > room.peer_boot))
            all_over = all_over & ended & lane
        for block in [block for pool in layout.pools for block in pool]:
            all_over = all_over & (step.part(block).state == FREE)
        return all_over

    return over

