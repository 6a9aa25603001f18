"""Progress conditions: what has to be possible in every state that satisfies the invariant.

An inductive invariant says that nothing bad happens. These conditions say that nobody is stuck for want of a
decision: in every state in which somebody has to act, the action is enabled. They are implications from the
invariant, with no action in between. Three clauses of the invariant itself belong to them too (those with the
property ``progress``).

They are weaker than L1: they do not show that a run ends, only that it never waits for a decision that is not
taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fsm import kernel
from fsm.kernel import UNKNOWN, Number, Ops
from sim.model import protocol_receiver as receiver
from sim.model import protocol_sender as sender
from sim.model.form import Clause, View, negate
from sim.model.protocol import Inputs, Symbolic
from sim.model.protocol_parts import Part, Step, implies
from sim.model.protocol_receiver import Place, is_live, latest


class Premise(NamedTuple):
    """A condition in two halves: wherever the first holds, the second must."""

    premise: Number
    conclusion: Number


Says = Callable[[Step, Place], Premise]


class Known(Inputs):
    """Inputs of which some are given: those that a condition is about."""

    __slots__ = ("_given",)

    def __init__(self, step: Step, given: dict[str, Number]) -> None:
        super().__init__(step, "in")
        object.__setattr__(self, "_given", given)

    def __getattr__(self, name: str) -> Number:
        return self._given[name] if name in self._given else super().__getattr__(name)

    def of(self, block: str) -> Part:
        """Nothing is asked of the one block that is followed: it is not among those given."""
        step: Step = self._step
        return Known(step, {"has": 0, "index": 0, "generation": step.part(block).generation})


def all_know(step: Step, room: Part, **given: Number) -> Known:
    """Inputs in which all other ranks have seen what this one has."""
    told = {
        "others_have": 1,
        "others_know": 1,
        "others_registered": 1,
        "others_delivered": room.size,
        "failure_seen": 0,
    }
    return Known(step, {**told, **given})


def chunk_is_taken(step: Step, place: Place) -> Premise:
    """What every rank has, and was not acted on, is taken at the next tick."""
    room = step.part(place.room)
    there = step.ops.minimum(room.landed, room.others)
    agreed = is_live(room) & (room.handled < there) & (room.delivered < room.size)
    choice = all_know(step, room)
    return Premise(agreed, receiver.decides(step, place, choice, kernel.CHUNK))


def resume_is_granted(step: Step, place: Place) -> Premise:
    """A watermark not yet acted on is granted more as soon as one block is free and what it holds is copied out."""
    room = step.part(place.room)
    due = is_live(room) & kernel.resume_due(room.handled, room.last_resume, room.size)
    free = step.view["in_free"]
    choice = all_know(step, room, own_free=free)
    copied = room.delivered >= room.handled
    enough = due & copied & (free >= 1)
    return Premise(enough, _can_grant(step, place, choice))


def staged_is_granted(step: Step, place: Place) -> Premise:
    """A request whose total is known gets its first grant as soon as one block is free and nobody who holds data
    waits."""
    room = step.part(place.room)
    first = (room.state == kernel.WAITING) & (room.next_seq == 0) & (room.total > UNKNOWN)
    free = step.view["in_free"]
    choice = all_know(step, room, own_free=free, result_fits=1)
    return Premise(first & (free >= 1) & negate(rival_first(step, place)), _can_grant(step, place, choice))


def rival_first(step: Step, place: Place) -> Number:
    """Somebody who holds data waits for blocks too: the turn is his, or that of the older one."""
    waits: Number = step.part(place.room).state < 0
    for name in place.rivals:
        rival = step.part(name)
        waits = (is_live(rival) & (rival.handled > rival.last_resume)) | waits
    return waits


def _can_grant(step: Step, place: Place, choice: Inputs) -> Number:
    return receiver.can_grant(step, place, choice, receiver.observe(step, place, choice))


def whole_is_completed(step: Step, place: Place) -> Premise:
    """What is delivered whole on every rank is completed at the next tick."""
    room = step.part(place.room)
    whole = is_live(room) & (room.delivered == room.size) & (room.handled == room.size)
    return Premise(whole, receiver.decides(step, place, all_know(step, room), kernel.COMPLETE))


def failure_is_taken(step: Step, place: Place) -> Premise:
    """A failure that was seen ends the request at the next tick."""
    room = step.part(place.room)
    choice = all_know(step, room, failure_seen=room.failure)
    return Premise(is_live(room) & (room.failure == 1), receiver.decides(step, place, choice, kernel.FAIL))


def grant_is_executed(step: Step, place: Place) -> Premise:
    """A grant that is out is taken, waits for the payload, is ready to be executed, or is being written."""
    room = step.part(place.room)
    out = (room.open == 1) & is_live(room) & (room.done_seq < latest(room))
    serves = (room.s_boot == room.peer_boot) & sender.lane_is_live(room) & (room.l_state > kernel.BOOTSTRAPPING)
    claim = {"seq": latest(room), "start": room.g_start, "capacity": room.g_cap, "blocks": room.g_blocks}
    taken = sender.can_take_grant(step, place, Delivered(step, claim, room))
    waits = (room.parked == 1) & (room.staged == 0)
    moves = taken | waits | sender.can_execute(step, place, Inputs(step, "in")) | (room.writing == 1)
    return Premise(out & serves, moves)


class Delivered(Known):
    """The latest grant as it was sent."""

    __slots__ = ("_room",)

    def __init__(self, step: Step, given: dict[str, Number], room: Part) -> None:
        super().__init__(step, given)
        object.__setattr__(self, "_room", room)

    def of(self, block: str) -> Part:
        """What it says of a block."""
        claim = self._step.claim(self._room, block)
        return Known(self._step, {"has": claim.g_has, "generation": claim.g_gen, "index": claim.g_index})


def status_is_taken(step: Step, place: Place) -> Premise:
    """The STATUS of the grant that is out is neither passed over nor refused."""
    room = step.part(place.room)
    answered = is_live(room) & (room.open == 1) & (room.closing == 0) & (room.done_seq == latest(room))
    choice = Known(step, {"seq": room.done_seq, "tokens": room.done_said})
    exact = step.rules.status_exact(step.ops, room.done_said, room.g_start, room.g_cap, room.size)
    return Premise(answered, receiver.can_take_status(step, place, choice) & exact)


def quarantine_ends(step: Step, place: Place) -> Premise:
    """What was acknowledged, and is quiet, can be released."""
    room = step.part(place.room)
    quiet = (room.held == 1) & (room.acknowledged == 1) & (room.flight == 0) & (room.landed_seq == room.d_seq)
    executed = (room.x_seq < latest(room)) | (room.d_seq == latest(room))
    return Premise(quiet & executed, receiver.can_release(step, place, Inputs(step, "in")))


def dead_peer_has_a_way_out(step: Step, place: Place) -> Premise:
    """Who waits for a process that is gone can end, by a clock or by news of another process."""
    room = step.part(place.room)
    waits = is_live(room) & (room.open == 1) & (room.peer_boot < room.s_boot) & (room.done_seq < latest(room))
    choice = Inputs(step, "in")
    out = receiver.can_pass_deadline(step, place, choice) | receiver.can_see_restart(step, place, choice)
    return Premise(waits, out | receiver.can_hear_unknown(step, place, choice))


CONDITIONS = (
    ("a chunk is taken", chunk_is_taken),
    ("a due resume is granted", resume_is_granted),
    ("a staged request is granted", staged_is_granted),
    ("what is whole is completed", whole_is_completed),
    ("a failure is taken", failure_is_taken),
    ("a grant is executed", grant_is_executed),
    ("a STATUS is taken", status_is_taken),
    ("quarantine ends", quarantine_ends),
    ("a dead peer has a way out", dead_peer_has_a_way_out),
)
"""The conditions of each request: a name, and the function whose docstring says it in words."""


def progress_conditions(symbolic: Symbolic) -> tuple[Clause, ...]:
    """The conditions for each request of a composition, as clauses to be implied by the invariant."""
    made = []
    for place in symbolic.places:
        for name, says in CONDITIONS:

            def expression(ops: Ops, view: View, says: Says = says, place: Place = place) -> Number:
                return implies(*says(Step(ops, view, symbolic.rules), place))

            text = " ".join((says.__doc__ or "").split())
            made.append(Clause(f"{place.room}: {name}", text, expression, "progress"))
    return tuple(made)
