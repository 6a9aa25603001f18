"""No request stands still without a reason: in every state that satisfies the invariant, each request has ended on
both sides and left nothing, or some step that is fair can be taken and changes it, or it waits for one of five things
that are named (:func:`reasons`).

With the measure that every change lowers (:mod:`sim.prove.ranking`) this is L1 as far as one request goes, in any
composition, of any size: it comes to its end, or to a wait that never ends for one of the five. Two of these need other
requests (blocks that somebody holds, a request with data whose turn it is), one the other ranks, one the end of a copy,
and one a clock, which is waited for only after a fault.

Alone on one rank a request has neither rivals nor other ranks, copies end, and while it asks for blocks it holds none
that is not being copied out ("a wait holds nothing"), so all of the pool is free: then this is the whole of L1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fsm import kernel
from fsm.kernel import UNKNOWN, Number
from sim.model import protocol_receiver as receiver
from sim.model import protocol_sender as sender
from sim.model.form import negate
from sim.model.protocol import ENTRIES, TICK, Inputs
from sim.model.protocol_parts import Step, implies
from sim.model.protocol_receiver import Place, is_live, latest
from sim.prove.progress import Delivered, Known, all_know, rival_first

_ENTRIES = {entry.name: entry for entry in ENTRIES}
_TICKS = {entry.name: entry for entry in TICK}

Chooses = Callable[[Step, Place], Inputs]


class Move(NamedTuple):
    """A step that is fair: the name of the action, what is chosen in it, and where, beyond its guard, it changes the
    request."""

    name: str
    choose: Chooses
    changes: Callable[[Step, Place], Number]

    def enabled(self, step: Step, place: Place) -> Number:
        """Where it can be taken and changes the request."""
        choice = self.choose(step, place)
        return self._guard(step, place, choice) & self.changes(step, place)

    def _guard(self, step: Step, place: Place, choice: Inputs) -> Number:
        if self.name in _TICKS:
            return _TICKS[self.name].guard(step, place, choice, receiver.observe(step, place, choice))
        return _ENTRIES[self.name].guard(step, place, choice)

    def draft(self, step: Step, place: Place) -> dict[str, Number]:
        """What it changes."""
        choice = self.choose(step, place)
        if self.name in _TICKS:
            _TICKS[self.name].draft(step, place, choice, receiver.observe(step, place, choice))
        else:
            _ENTRIES[self.name].draft(step, place, choice)
        return step.changes


# --- what is chosen --------------------------------------------------------------------------------------


def _anything(step: Step, place: Place) -> Inputs:
    return Inputs(step, "in")


def _given(**fields: str) -> Chooses:
    """What is chosen is what the request has in those fields."""

    def choose(step: Step, place: Place) -> Inputs:
        room = step.part(place.room)
        return Known(step, {name: getattr(room, field) for name, field in fields.items()})

    return choose


def _latest_grant(step: Step, place: Place) -> Inputs:
    room = step.part(place.room)
    claim = {"seq": latest(room), "start": room.g_start, "capacity": room.g_cap, "blocks": room.g_blocks}
    return Delivered(step, claim, room)


def _all_ranks_alike(step: Step, place: Place) -> Inputs:
    """The other ranks have heard what this one has; on all of them as many blocks are free."""
    room = step.part(place.room)
    return all_know(step, room, own_free=step.view["in_free"], result_fits=1, failure_seen=room.failure)


def _always(step: Step, place: Place) -> Number:
    return step.view["block_tokens"] >= 1


def _no_failure_yet(step: Step, place: Place) -> Number:
    return step.part(place.room).failure == 0


def _is_news(step: Step, place: Place) -> Number:
    room = step.part(place.room)
    return room.landed_seq < room.d_seq


def _says_something(step: Step, place: Place) -> Number:
    """An ABORT ends a lane, is acknowledged, or is noted until the write has ended."""
    room = step.part(place.room)
    acknowledged = (room.writing == 0) & (room.s_boot == room.peer_boot) & (room.ack_sent == 0)
    return sender.lane_is_live(room) | acknowledged | ((room.writing == 1) & (room.ack_owed == 0))


MOVES: tuple[Move, ...] = (
    Move("receive REGISTER", _anything, _always),
    Move("receive REGISTER_ACK", _given(boot="s_boot"), _always),
    Move("stage", _anything, _always),
    Move("receive OFFER", _anything, _always),
    Move("tick: registered", _all_ranks_alike, _always),
    Move("tick: grant", _all_ranks_alike, _always),
    Move("receive GRANT", _latest_grant, _always),
    Move("execute", _anything, _always),
    Move("bytes land", _anything, _always),
    Move("the write is done", _anything, _always),
    Move("receive STATUS", _given(seq="done_seq", tokens="done_said"), _no_failure_yet),
    Move("own completion", _given(seq="d_seq"), _is_news),
    Move("tick: take a chunk", _all_ranks_alike, _always),
    Move("tick: complete", _all_ranks_alike, _always),
    Move("tick: fail", _all_ranks_alike, _always),
    Move("receive ABORT", _anything, _says_something),
    Move("receive ABORT_ACK", _given(boot="peer_boot", seq="ack_seq"), _always),
    Move("release", _anything, _always),
    Move("the process is gone", _anything, _always),
    Move("a restart is seen", _anything, _no_failure_yet),
)
"""The fair steps of one request, each with a choice that is always there."""


# --- what is waited for ----------------------------------------------------------------------------------


def for_blocks(step: Step, place: Place) -> Number:
    """It asks for blocks and none is free (one, before the length is known: an early grant leaves one)."""
    room = step.part(place.room)
    return _asks(step, place) & (step.view["in_free"] <= step.ops.where(room.total == UNKNOWN, 1, 0))


def for_a_rival(step: Step, place: Place) -> Number:
    """It asks for blocks, and it is the turn of a request that holds data."""
    return _asks(step, place) & rival_first(step, place)


def _asks(step: Step, place: Place) -> Number:
    room = step.part(place.room)
    more = (room.next_seq == 0) | (room.handled > room.last_resume)
    return is_live(room) & more & (room.state > kernel.BOOTSTRAPPING)


def for_other_ranks(step: Step, place: Place) -> Number:
    """Some other rank has landed less than this one."""
    room = step.part(place.room)
    return is_live(room) & (room.next_seq > 0) & (room.others < room.landed)


def for_a_copy(step: Step, place: Place) -> Number:
    """A chunk has landed and its copy has not ended, or a lease was not given back."""
    room = step.part(place.room)
    return (room.t_in == 1) | (room.rest > 0)


def for_a_clock(step: Step, place: Place) -> Number:
    """After a fault: the sender has failed the lane on its own, or a new process waits for grants of a request that has
    ended, or a write broke and its end is not proved."""
    room = step.part(place.room)
    failed = is_live(room) & (room.l_state == kernel.FAILED)
    forgotten = negate(is_live(room)) & sender.lane_is_live(room) & (room.s_boot > 1)
    return failed | forgotten | ((room.flight == 0) & (room.writing == 0) & (room.d_seq < room.x_seq))


REASONS = (
    ("for blocks", for_blocks),
    ("for a rival", for_a_rival),
    ("for other ranks", for_other_ranks),
    ("for a copy", for_a_copy),
    ("for a clock", for_a_clock),
)
"""What a request may wait for."""


def is_done(step: Step, place: Place) -> Number:
    """It has ended on both sides, and nothing of it is held or being written."""
    room = step.part(place.room)
    over = negate(is_live(room)) & negate(sender.lane_is_live(room))
    return over & (room.held == 0) & (room.flight == 0) & (room.writing == 0)


def stands_still_for_a_reason(step: Step, place: Place) -> Number:
    """A request has ended and left nothing, or can take a step that changes it, or waits for something that is
    named."""
    result = is_done(step, place)
    for move in MOVES:
        result = result | move.enabled(Step(step.ops, step.view, step.rules), place)
    for _, waits in REASONS:
        result = result | waits(step, place)
    return result


# --- what it takes besides the invariant ------------------------------------------------------------------


def offered_when_staged(step: Step, place: Place) -> Number:
    """What is staged was offered, before the first grant."""
    room = step.part(place.room)
    return implies((room.staged == 1) & (room.l_state == kernel.WAITING) & (room.next_seq == 0), room.offered == 1)


def a_write_is_under_way_or_there(step: Step, place: Place) -> Number:
    """While the sender waits for the end of a write, its bytes are under way or have landed."""
    room = step.part(place.room)
    return implies((room.writing == 1) & (room.flight == 0), room.d_seq >= room.f_seq)


def sent_is_whole(step: Step, place: Place) -> Number:
    """A lane in Success has committed all of the request."""
    room = step.part(place.room)
    return implies(room.l_state == kernel.SUCCESS, room.l_committed == room.size)


def lost_is_noticed(step: Step, place: Place) -> Number:
    """A request that lives and lost a copy knows that it has failed."""
    room = step.part(place.room)
    return implies((room.dropped > 0) & is_live(room), room.failure == 1)


LEMMAS: tuple[tuple[str, Callable[[Step, Place], Number]], ...] = (
    ("offered when staged", offered_when_staged),
    ("a write is under way or there", a_write_is_under_way_or_there),
    ("sent is whole", sent_is_whole),
    ("lost is noticed", lost_is_noticed),
)
"""More clauses, inductive with the invariant; no safety property needs them."""


def says(function: Callable[..., Any]) -> str:
    """What a condition says in words: the docstring of its function."""
    return " ".join((function.__doc__ or "").split())
