"""A schedule for very many random runs of the bounded protocol model, each of which the code itself can do.

A run goes by rounds. In each round everybody has a turn, one after the other and always in the same order: the sender
hears a REGISTER, the receiver's ranks tick, a GRANT is delivered, bytes land, a STATUS is delivered, a copy ends. A
turn is taken if it can be and if its draw allows it; else it passes. So any of them may be late by any number of
rounds, and every order of events can come about, while nothing is chosen from a list: all lanes of an array do the
same.

A turn is one action of :func:`sim.model.protocol_bounded.bounded`, or several that the code does in one call (a GRANT
that arrives is executed at once if it can be; a process that restarts is news for all its requests). ``atoms`` names
them, so that a run is a list of actions of the bounded model. What the model allows and the code has no call for is not
scheduled: a second grant to a newcomer while an older request waits, an OFFER that was not sent, an answer of a process
that never gave one. A few fields that the model has not (``EXTRA``) say what was really sent and heard.

Faults strike in a first phase of so many rounds; then all that is left is fair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fsm import kernel
from fsm.errors import LocalError
from fsm.kernel import Number, Ops
from sim.mass.schedule_ends import Endings
from sim.mass.schedule_parts import (
    BY_NAME,
    CHUNK,
    COMMIT,
    COMPLETE,
    DRAW_VALUES,
    EXECUTE,
    FAIL,
    FAILED_NOW,
    FAULTS_LEFT,
    GRANT,
    LANE_FAILED,
    RATES,
    REGISTERED,
    TICK_BY_NAME,
    Decision,
    Draft,
    Taken,
    Turn,
    atom,
    blocks_given,
)
from sim.model import protocol_receiver as receiver
from sim.model.form import Action, Field, Fields, Model, View, negate
from sim.model.protocol import TickEntry
from sim.model.protocol_bounded import Bounds, Layout, Picked, bounded
from sim.model.protocol_parts import FREE, Part, Step
from sim.model.protocol_receiver import Place, latest
from sim.model.protocol_rules import PROTOCOL_RULES, ModelRules

EXTRA_PLACE = ("acked", "answered", "told", "o_sent")
"""Of a request on a rank: the last process of the sender that sent a REGISTER_ACK; the last that answered an ABORT;
whether the sender's own ABORT was sent; whether an OFFER was."""
EXTRA_RANK = ("heard", "gone")
"""Of a rank: the newest process of the sender that was heard of, and the newest that was proved to be gone."""
LIMITS = {"rooms": 7, "ranks": 4, "blocks": 15, "size": 60, "early_tokens": 60}
"""What the numbers of a decision have room for."""


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
        raise LocalError(
            f"ranks={bounds.ranks} with senders={bounds.senders}: mass simulation holds a sender for each rank"
        )
    if bounds.aborts:
        raise LocalError(f"aborts={bounds.aborts}: in mass simulation faults strike at a rate; leave the budget out")
    if bounds.early_tokens and bounds.rooms > 1:
        raise LocalError(
            f"early_tokens={bounds.early_tokens} with rooms={bounds.rooms}: mass simulation holds early grants for one "
            "request only"
        )


# --- the schedule ----------------------------------------------------------------------------------------


class Maker(Endings):
    """Writes the turns of a round down, in their order."""

    def write(self) -> None:
        """All turns of a round."""
        places = [
            (number, rank, place)
            for number, room in enumerate(self.layout.rooms)
            for rank, place in enumerate(room)
        ]
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
                *self.news(rank, state, state[f"{p}_acked"]),
                atom(place, "receive REGISTER_ACK", {"boot": state[f"{p}_acked"]}),
            ],
        )  # fmt: skip

    def lifecycles(self, number: int) -> None:
        """The first half of a tick for one request: its lifecycle. At most one of these is taken in a tick."""
        for name, what in (
            ("tick: fail", FAIL), ("tick: complete", COMPLETE), ("tick: take a chunk", CHUNK),
            ("tick: registered", REGISTERED),
        ):  # fmt: skip
            self._lifecycle(TICK_BY_NAME[name], number, what)

    def _see(self, step: Step, number: int, taken: Sequence[Taken] = ()) -> list[tuple[Place, Any, receiver.Seen]]:
        found = []
        for rank, place in enumerate(self.layout.rooms[number]):
            choice: Any = Picked(step, place, self.layout, {})
            if taken:
                choice = taken[rank].of_choice(choice)
            found.append((place, choice, receiver.observe(step, place, choice)))
        return found

    def _lifecycle(self, entry: TickEntry, number: int, what: int) -> None:
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
            decision=decision, counts={"quarantine": quarantined} if what == FAIL else {},
        )  # fmt: skip

    def grant(self, number: int) -> None:
        """The second half of a tick for one request: it is given blocks. Older requests that wait go first."""
        entry = TICK_BY_NAME["tick: grant"]
        places = self.layout.rooms[number]

        def taken(step: Step) -> list[Taken]:
            base = self._see(step, number)
            count = receiver.work_out_grant(step, *base[0]).blocks
            return [Taken(step, place, step.view[self.start_block], count) for place in places]

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
            "tick: grant", number, 0, places[0], guard, make, atoms, of_tick=True, decision=decision,
            numbers=numbers, counts={"resume": resumes, "same_blocks": same},
        )  # fmt: skip

    def starve(self, number: int, place: Place) -> None:
        """The end of a tick: who holds data and got no blocks waits."""

        def waits(draft: Draft) -> Number:
            step = draft.step()
            return (step.view[self.tick_draw] < RATES["tick"]) & receiver.is_due(step, step.part(place.room))

        entry = BY_NAME["wait for blocks"]
        follows = self.rules.starved()

        def make(draft: Draft) -> None:
            if follows:
                for one in self.layout.rooms[number]:
                    draft.do(entry, one)

        def atoms(state: Mapping[str, int]) -> list[str]:
            return [atom(one, entry.name, {}) for one in self.layout.rooms[number]] if follows else []

        self.add("waits", number, 0, place, waits, make, atoms, of_tick=True,
                 counts={"starvation": lambda ops, view: view[f"{place.room}_handled"] >= 0})  # fmt: skip

    def sending(self, number: int, rank: int, place: Place) -> None:
        """What the sender does for one lane, and the transport for it."""
        p = place.room

        def offers(draft: Draft, room: Part) -> None:
            draft.put((room.l_state == kernel.WAITING) & (room.parked == 0), **{f"{p}_o_sent": 1})

        self.entry("stage", number, rank, place, after=offers)
        self.entry("receive OFFER", number, rank, place, also=lambda draft, room: room.o_sent == 1)
        self.entry("receive GRANT", number, rank, place, lambda room: {"seq": latest(room)})

        def executed(ops: Ops, before: View, after: View) -> Decision:
            failed = after[f"{p}_l_state"] == kernel.FAILED
            return (ops.where(failed, LANE_FAILED, EXECUTE), number, rank, before[f"{p}_p_seq"], 0, 0, 0)

        self.entry("execute", number, rank, place, decision=executed,
                   after=lambda draft, room: self._lane_told(draft, place))  # fmt: skip
        self.entry("another rank's GRANT", number, rank, place)
        self.entry("bytes land", number, rank, place)
        if self.bounds.crashes:
            self.entry("a write vanishes", number, rank, place)

        def committed(ops: Ops, before: View, after: View) -> Decision:
            live = before[f"{p}_l_state"] < kernel.SUCCESS
            last = ops.where(after[f"{p}_l_state"] == kernel.SUCCESS, 1, 0)
            said = after[f"{p}_l_committed"]
            return (ops.where(live, COMMIT, 0), number, rank, before[f"{p}_f_seq"], said, last, 0)

        self.entry("the write is done", number, rank, place, decision=committed)

    def _lane_told(self, draft: Draft, place: Place) -> None:
        """The sender sends an ABORT when a lane fails by itself."""
        step = draft.step()
        draft.put(step.read(f"{place.room}_l_state") == kernel.FAILED, **{f"{place.room}_told": 1})

    def receiving(self, number: int, rank: int, place: Place) -> None:
        """What one rank of the receiver hears of a request, and the copies of its chunks."""
        p = place.room
        if self.bounds.late or self.bounds.notices:
            self.entry(
                "own completion", number, rank, place, lambda room: {"seq": room.d_seq},
                also=lambda draft, room: room.d_seq > room.landed_seq, after=self._release(place),
                atoms=lambda state: self._then_release(state, place, "own completion", {"seq": state[f"{p}_d_seq"]}),
            )  # fmt: skip
        self.entry("receive STATUS", number, rank, place, lambda room: {"seq": room.done_seq})
        self.entry("receive a late STATUS", number, rank, place, lambda room: {"seq": room.done_seq})
        self.again(number, rank, place)
        self.copies("a copy ends", number, rank, place, fault=False)
        if self.bounds.leases:
            self.entry("lease", number, rank, place)

    def again(self, number: int, rank: int, place: Place) -> None:
        """Messages that come once more, and must change nothing."""
        status, grant = BY_NAME["receive STATUS"], BY_NAME["receive GRANT"]

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


# --- all of it -------------------------------------------------------------------------------------------


def mass_schedule(bounds: Bounds, rules: ModelRules = PROTOCOL_RULES) -> Schedule:
    """The schedule of that size. Raises LocalError for one that it does not hold."""
    check_bounds(bounds)
    model = bounded(bounds, rules)
    maker = Maker(bounds, rules)
    maker.write()
    places = maker.layout.places
    extra = [Field(f"{place.room}_{name}", 0, 1 + bounds.crashes) for place in places for name in EXTRA_PLACE]
    extra += [Field(f"k{rank}_{name}", 0, 1 + bounds.crashes) for rank in range(bounds.ranks) for name in EXTRA_RANK]
    extra += [Field(FAULTS_LEFT, 0, 127), Field(FAILED_NOW, 0, int(bounds.rooms > 1))]
    extra += [Field(f"draw{index}", 0, DRAW_VALUES - 1) for index in range(maker.draws)]
    actions = tuple(Action(turn.name, turn.guard, turn.update, not turn.fault) for turn in maker.turns)
    whole = Model("protocol-mass", (*model.fields, *extra), model.initial, actions, model.clauses)
    grants = -(-bounds.size // bounds.block_tokens)
    rounds_max = 100 + 24 * bounds.rooms * bounds.ranks * grants
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
