"""A ranking argument: no request goes on changing for ever, in any composition, of any size.

A *measure* is a row of natural numbers, compared from the left. It is proved, action by action, that whatever happens
to a request either changes nothing of it or lowers its measure: deliveries, ticks, copies, writes, deadlines, aborts,
in any order, with any doubling and delay. Only a crash of the sender gives it new steps, and there are finitely many
crashes. Since natural numbers do not fall for ever, each request changes finitely often between two crashes.

So there are no livelocks: if a request never ends, then from some point on nothing of it changes. What it may stand
still for is the other half (:mod:`sim.prove.standstill`), proved here too. Fairness enters in between: a step that can
be taken, is fair and changes a request is taken in the end, or the request changes otherwise.

What is not proved is that blocks come back and other ranks land: that is about several requests and ranks at once, and
is judged on whole graphs of bounded size (:mod:`sim.vector.live`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fsm import kernel
from fsm.kernel import UNKNOWN, Number
from sim.model.form import State
from sim.model.protocol import CLAIM_FIELDS, ROOM_FIELDS
from sim.model.protocol_parts import Part, Step
from sim.model.protocol_receiver import Place, grant_end, is_live, latest
from sim.model.protocol_sender import lane_is_live
from sim.prove.conditions import FAILED, PROVED, START, Condition, Prover
from sim.prove.conditions import UNKNOWN as GAVE_UP
from sim.prove.standstill import LEMMAS, MOVES, says, stands_still_for_a_reason

RANKING = "ranking"
"""The kind of these conditions."""
NATURAL, FALLS, CHANGES = "the measure is natural", "the measure falls", "a step changes something"
REASON = "no standstill without a reason"
CRASH = "the sender crashes"

TEXTS = {
    NATURAL: "Each number of the measure is at least 0 in every state that satisfies the invariant.",
    FALLS: "An action that changes anything of a request lowers its measure.",
    CHANGES: "A step that ends a standstill changes something of the request, and so lowers its measure.",
    REASON: says(stands_still_for_a_reason),
}


def measure(step: Step, place: Place) -> tuple[Number, ...]:
    """The measure of a request, the weightiest number first: whether it lives; the tokens from the last resume to the
    end, and one for the first grant; what is left to be heard, decided, written and copied for the grant that is
    out."""
    room, ops = step.part(place.room), step.ops
    asks = ops.where(room.next_seq == 0, 1, 0) + room.size - room.last_resume
    live = is_live(room)
    return (ops.where(live, 1, 0), ops.where(live, asks, 0), _receiver(step, room) + _sender(step, room))


def _flag(step: Step, truth: Number) -> Number:
    return step.ops.where(truth, 1, 0)


def _receiver(step: Step, room: Part) -> Number:
    """What the receiver may still hear, decide and copy. Tokens that land count three each: they will be copied."""
    ops = step.ops
    heard = (1 - room.registered) + _flag(step, room.total == UNKNOWN) + (1 - room.failure) + (1 - room.peer_gone)
    waits = room.open + _flag(step, (room.open == 1) & (room.closing == 0)) + latest(room) - room.landed_seq
    decides = _flag(step, room.state == kernel.BOOTSTRAPPING) + ops.where(is_live(room), room.size - room.handled, 0)
    others = _flag(step, (room.next_seq > 0) & (room.others < grant_end(ops, room)))
    copies = 3 * (room.size - room.landed) + room.t_in + room.rest + (1 - room.leased)
    return heard + waits + decides + others + copies + room.held + (1 - room.acknowledged)


def _sender(step: Step, room: Part) -> Number:
    """What the lane may still take, execute and say. A grant that is parked will be written: that is three things;
    taking it is one more, and a lane that ends takes it no more."""
    taken = step.ops.where(room.parked == 1, room.p_seq, room.l_seq)
    lane = 8 * _flag(step, lane_is_live(room)) + _flag(step, room.l_state == kernel.BOOTSTRAPPING) + (1 - room.staged)
    grant = 5 * (latest(room) - taken) + 4 * room.parked
    write = room.writing + room.flight + _flag(step, (room.writing == 1) & (room.ack_owed == 0))
    return lane + grant + write + (1 - room.ack_sent)


def fields_of(place: Place) -> tuple[str, ...]:
    """All that a request has: what an action may change of it."""
    names = [f"{place.room}_{name}" for name in ROOM_FIELDS]
    return (*names, *(f"{place.room}_{block}_{name}" for block in place.blocks for name in CLAIM_FIELDS))


class Ranking:
    """Proves the argument for the first request of a prover's composition, which is any one."""

    def __init__(self, prover: Prover) -> None:
        self.prover = prover
        self.symbolic, self.clock = prover.symbolic, prover.clock
        self.place = prover.symbolic.places[0]
        self.own = [name for name in fields_of(self.place) if name in self.prover.values]
        self.untouched = 0
        """Actions that change nothing of the request, as they are written."""

    def prove(self) -> Iterator[Condition]:
        """All conditions, one by one."""
        yield from self.falls()
        yield from self.lemmas()
        yield from self.standstill()

    def falls(self) -> Iterator[Condition]:
        """The measure is natural, and each action but a crash lowers it or changes nothing."""
        z3, values = self.prover.ops.z3, self.prover.values
        solver = self.prover.assuming()
        numbers = [self._raw(number) for number in measure(self._step(), self.place)]
        yield self._ask(solver, NATURAL, TEXTS[NATURAL], z3.Not(z3.And([number >= 0 for number in numbers])))
        self.untouched = 0
        for action in self.symbolic.model.actions:
            if action.name.endswith(CRASH):
                continue
            update = self._updated(action.update(self.prover.ops, self.prover.view))
            changed = self._changed(update)
            if not changed:
                self.untouched += 1
                continue
            becomes = [(values[name].value, value) for name, value in update.items()]
            after = [z3.substitute(number, *becomes) for number in numbers]
            denied = z3.And(
                self._raw(action.guard(self.prover.ops, self.prover.view)), z3.Or(changed),
                z3.Not(_less(z3, after, numbers)),
            )  # fmt: skip
            yield self._ask(solver, FALLS, TEXTS[FALLS], denied, action.name)

    def lemmas(self) -> Iterator[Condition]:
        """Each lemma holds at the start, and each action keeps it."""
        z3, values = self.prover.ops.z3, self.prover.values
        begins, solver = self.prover.assuming(start=True), self.prover.assuming()
        for name, lemma in LEMMAS:
            formula = self._raw(lemma(self._step(), self.place))
            yield self._ask(begins, name, says(lemma), z3.Not(formula), kind=START)
            for action in self.symbolic.model.actions:
                update = self._updated(action.update(self.prover.ops, self.prover.view))
                after = z3.substitute(formula, *[(values[name].value, value) for name, value in update.items()])
                if not after.eq(formula):
                    guard = self._raw(action.guard(self.prover.ops, self.prover.view))
                    yield self._ask(solver, name, says(lemma), z3.And(formula, guard, z3.Not(after)), action.name)

    def standstill(self) -> Iterator[Condition]:
        """Each step that ends a standstill changes the request; and where none can be taken there is a reason."""
        z3 = self.prover.ops.z3
        solver = self.prover.assuming()
        for _, lemma in LEMMAS:
            solver.add(self._raw(lemma(self._step(), self.place)))
        for move in MOVES:
            enabled = self._raw(move.enabled(self._step(), self.place))
            changed = self._changed(self._updated(move.draft(self._step(), self.place)))
            yield self._ask(solver, CHANGES, TEXTS[CHANGES], z3.And(enabled, z3.Not(z3.Or(changed))), move.name)
        reason = self._raw(stands_still_for_a_reason(self._step(), self.place))
        yield self._ask(solver, REASON, TEXTS[REASON], z3.Not(reason))

    # --- asking ---------------------------------------------------------------------------------------

    def _step(self) -> Step:
        return Step(self.prover.ops, self.prover.view, self.symbolic.rules)

    def _raw(self, value: Number) -> Any:
        return self.prover.ops.raw(value)

    def _updated(self, changes: Any) -> dict[str, Any]:
        return {name: self._raw(value) for name, value in changes.items()}

    def _changed(self, update: dict[str, Any]) -> list[Any]:
        return [update[name] != self.prover.values[name].value for name in self.own if name in update]

    def _ask(
        self, solver: Any, clause: str, text: str, denied: Any, action: str = "", *, kind: str = RANKING
    ) -> Condition:
        started = self.clock()
        answer = str(solver.check(denied))
        before = self._state(solver.model()) if answer == "sat" else None
        result = {"unsat": PROVED, "sat": FAILED}.get(answer, GAVE_UP)
        title = f"{self.place.room}: {clause}"
        return Condition(kind, title, "progress", text, action, result, self.clock() - started, before)

    def _state(self, found: Any) -> State:
        values = self.prover.values.items()
        return {name: found.eval(term.value, model_completion=True).as_long() for name, term in values}


def _less(z3: Any, left: list[Any], right: list[Any]) -> Any:
    """Whether one row of numbers is below another, compared from the left."""
    result = z3.BoolVal(False)
    for a, b in reversed(list(zip(left, right, strict=True))):
        result = z3.Or(a < b, z3.And(a == b, result))
    return result
