"""The sender, the network and the physics of the protocol model: one lane, as :mod:`fsm.sender` treats it.

The network is the set of all messages ever sent: any of them may be delivered at any later time, any number of
times, in any order. So nothing is ever taken out of it, and what it holds is history: the latest grant as it was
sent, the newest STATUS, whether a process acknowledged an ABORT. Of older grants only their being older is known.

A write is one thing that is under way or not. While it is, bytes may reach any block of its grant at any moment.
"""

from __future__ import annotations

from fsm import kernel
from fsm.kernel import UNKNOWN, Number
from fsm.lifecycle import SENDER_TABLE
from sim.model.form import negate
from sim.model.protocol_parts import NONE_SEQ, Choice, Part, Step, after, either, implies
from sim.model.protocol_receiver import Place, latest

LANE_FIELDS = ("l_state", "l_ended", "staged", "parked", "writing", "ack_owed", "l_committed")


def lane_is_live(room: Part) -> Number:
    """Whether the lane of the present process has not ended."""
    return room.l_state < kernel.SUCCESS


def lane_lifecycle(step: Step, room: Part, event: str, when: Number, **facts: Number) -> None:
    """Fire an event of the sender's table; that the table refuses it must never happen."""
    legal, target = after(step.ops, SENDER_TABLE, room.l_state, event, facts)
    room.refused = step.ops.where(when & negate(legal), 1, room.refused)
    room.l_state = step.ops.where(when & legal, target, room.l_state)
    over = when & negate(lane_is_live(room)) & (room.l_ended == 0)
    room.l_ended = step.ops.where(over, room.l_state, room.l_ended)
    room.parked = step.ops.where(over, 0, room.parked)


# --- messages and the caller -----------------------------------------------------------------------------


def can_take_register(step: Step, place: Place, choice: Choice) -> Number:
    """REGISTER was sent at submit, and may come at any time."""
    return step.part(place.room).l_state == kernel.BOOTSTRAPPING


def take_register(step: Step, place: Place, choice: Choice) -> None:
    """The lane now serves this epoch; if the payload is there, it is offered."""
    room = step.part(place.room)
    lane_lifecycle(step, room, "registered", room.l_state == kernel.BOOTSTRAPPING)
    room.offered = step.ops.where(room.staged == 1, 1, room.offered)


def can_stage(step: Step, place: Place, choice: Choice) -> Number:
    """The payload gets into the source pool, whenever that is."""
    return step.part(place.room).staged == 0


def stage(step: Step, place: Place, choice: Choice) -> None:
    """If the receiver is registered, it is offered (unless a grant is there already, which changes nothing)."""
    room = step.part(place.room)
    room.staged = 1
    room.offered = step.ops.where(room.l_state == kernel.WAITING, 1, room.offered)


def grant_was_sent(step: Step, place: Place, choice: Choice) -> Number:
    """A GRANT that was ever sent: the latest as it was sent, or any older one."""
    room = step.part(place.room)
    newest = (choice.seq == latest(room)) & (choice.start == room.g_start) & (choice.capacity == room.g_cap)
    newest = newest & (choice.blocks == room.g_blocks)
    older = (choice.seq < latest(room)) & (choice.start < room.g_start) & (choice.start >= 0) & (choice.capacity > 0)
    for name in place.blocks:
        given, claim = choice.of(name), step.claim(room, name)
        newest = newest & (given.has == claim.g_has) & implies(given.has == 1, given.generation == claim.g_gen)
        older = older & (given.generation <= step.part(name).generation)
    return (choice.seq >= 0) & (newest | older)


def can_take_grant(step: Step, place: Place, choice: Choice) -> Number:
    """R3, R8: a GRANT for this very process, the next one, whose blocks can hold what it asks for."""
    room = step.part(place.room)
    live = lane_is_live(room) & (room.l_state > kernel.BOOTSTRAPPING) & (room.peer_boot == room.s_boot)
    parked = step.ops.where(room.parked == 1, room.p_seq, UNKNOWN)
    kind = step.rules.grant_kind(step.ops, choice.seq, room.l_seq, parked)
    fits = kernel.grant_fits(choice.capacity, choice.blocks, step.view["block_tokens"])
    return grant_was_sent(step, place, choice) & live & (kind == kernel.NEXT) & fits


def take_grant(step: Step, place: Place, choice: Choice) -> None:
    """It is kept until the payload is staged and no write is outstanding."""
    room = step.part(place.room)
    room.parked, room.p_seq, room.p_start, room.p_cap = 1, choice.seq, choice.start, choice.capacity
    for name in place.blocks:
        claim, given = step.claim(room, name), choice.of(name)
        claim.p_has, claim.p_gen = given.has, given.generation


def can_execute(step: Step, place: Place, choice: Choice) -> Number:
    """R3: a grant is there, and nothing that it must wait for."""
    room = step.part(place.room)
    return (room.parked == 1) & (room.staged == 1) & (room.writing == 0) & lane_is_live(room)


def execute(step: Step, place: Place, choice: Choice) -> None:
    """The write begins, if the grant starts at what has been committed; else the lane fails."""
    room, rules, ops = step.part(place.room), step.rules, step.ops
    good = rules.start_check(ops, room.p_start, room.l_committed)
    seq, start, capacity = room.p_seq, room.p_start, room.p_cap
    for name in place.blocks:
        claim = step.claim(room, name)
        step.put(claim, good, f_has=claim.p_has, f_gen=claim.p_gen)
    room.parked = 0
    begin_write(step, room, good, seq, start, capacity)
    lane_lifecycle(step, room, "fail", negate(good))


def begin_write(step: Step, room: Part, when: Number, seq: Number, start: Number, capacity: Number) -> None:
    """From here on bytes may land in the blocks of this grant."""
    ops = step.ops
    lane_lifecycle(step, room, "grant", when)
    room.twice = ops.where(when & (seq <= room.x_seq), 1, room.twice)
    source = step.rules.source_start(ops, start, step.view["block_tokens"])
    step.put(
        room, when, l_seq=seq, x_seq=seq, writing=1, flight=1, f_boot=room.s_boot, f_seq=seq, f_start=start,
        f_cap=capacity, f_source=source,
    )  # fmt: skip


def can_serve_others(step: Step, place: Place, choice: Choice) -> Number:
    """Another rank's grant reaches its lane. It is executed for that rank alone (R3)."""
    room = step.part(place.room)
    awaits = (room.l_state == kernel.RESUMING) & (room.staged == 1) & (room.writing == 0)
    return awaits & (choice.capacity > 0) & step.rules.lanes_served()


def serve_others(step: Step, place: Place, choice: Choice) -> None:
    """What must not happen: this lane is sent to as well, at the addresses of its last grant."""
    room = step.part(place.room)
    begin_write(step, room, room.staged == 1, room.l_seq + 1, room.l_committed, choice.capacity)


def can_fail_lane(step: Step, place: Place, choice: Choice) -> Number:
    """The sender may end a lane for reasons of its own: its caller, its clock, a restart of the peer."""
    return lane_is_live(step.part(place.room))


def fail_lane(step: Step, place: Place, choice: Choice) -> None:
    """A write that is under way stays outstanding."""
    room = step.part(place.room)
    lane_lifecycle(step, room, "fail", lane_is_live(room))


def can_take_abort(step: Step, place: Place, choice: Choice) -> Number:
    """The receiver that has failed says so, again and again."""
    return step.part(place.room).state == kernel.FAILED


def take_abort(step: Step, place: Place, choice: Choice) -> None:
    """R11: always acknowledged, once no write is outstanding; later grants are refused."""
    room = step.part(place.room)
    writing = room.writing == 1
    lane_lifecycle(step, room, "fail", lane_is_live(room))
    room.ack_owed = either(step.ops, writing)
    _acknowledge(step, room, negate(writing))


def _acknowledge(step: Step, room: Part, when: Number) -> None:
    """An ABORT_ACK is sent: that of the process that was granted to is history that matters."""
    counts = when & (room.s_boot == room.peer_boot)
    step.put(room, counts, ack_sent=1, ack_seq=room.l_seq)


# --- writes ----------------------------------------------------------------------------------------------


def can_land(step: Step, place: Place, choice: Choice) -> Number:
    """The last byte of a write arrives."""
    return step.part(place.room).flight == 1


def land(step: Step, place: Place, choice: Choice) -> None:
    """All its bytes are in memory, and none will follow."""
    room, ops = step.part(place.room), step.ops
    room.flight = 0
    room.d_seq = ops.maximum(room.d_seq, room.f_seq)
    reached = kernel.committed_after(ops, room.f_start, room.f_cap, room.size)
    room.arrived = ops.where(room.f_start <= room.arrived, ops.maximum(room.arrived, reached), room.arrived)


def can_vanish(step: Step, place: Place, choice: Choice) -> Number:
    """What is left of a write of a process that is gone need never arrive."""
    room = step.part(place.room)
    return (room.flight == 1) & (room.f_boot < room.s_boot)


def vanish(step: Step, place: Place, choice: Choice) -> None:
    """No byte of it counts as landed."""
    step.part(place.room).flight = 0


def can_tell_sent(step: Step, place: Place, choice: Choice) -> Number:
    """The sender is told that its write has ended: when the bytes are there, or (``late``) at any time."""
    room = step.part(place.room)
    there = (room.flight == 0) & (room.d_seq >= room.f_seq)
    return (room.writing == 1) & (there | (step.view["late"] == 1))


def tell_sent(step: Step, place: Place, choice: Choice) -> None:
    """A live lane commits and says so; one that has ended acknowledges the ABORT that waited for this."""
    room, ops = step.part(place.room), step.ops
    live = lane_is_live(room)
    committed = kernel.committed_after(ops, room.f_start, room.f_cap, room.size)
    room.writing = 0
    lane_lifecycle(step, room, "committed", live, last_chunk=committed == room.size)
    said = step.rules.commit_said(ops, committed, choice.last)
    step.put(room, live, l_committed=committed, done_seq=room.f_seq, done_tokens=committed, done_said=said)
    _acknowledge(step, room, negate(live) & (room.ack_owed == 1))
    room.ack_owed = ops.where(live, room.ack_owed, 0)


def can_break_write(step: Step, place: Place, choice: Choice) -> Number:
    """A write breaks, and the transport proves that nothing of it is outstanding."""
    return step.part(place.room).writing == 1


def break_write(step: Step, place: Place, choice: Choice) -> None:
    """The lane fails; an ABORT that waited for this is acknowledged."""
    room, ops = step.part(place.room), step.ops
    live = lane_is_live(room)
    room.writing = 0
    room.flight = 0
    lane_lifecycle(step, room, "fail", live)
    _acknowledge(step, room, negate(live) & (room.ack_owed == 1))
    room.ack_owed = ops.where(live, room.ack_owed, 0)


def can_crash(step: Step, place: Place, choice: Choice) -> Number:
    """The sender's process may die at any time; another one starts and knows nothing."""
    return step.part(place.room).s_boot >= 1


def crash(step: Step, place: Place, choice: Choice) -> None:
    """The lane is gone with its process. A write that is under way is not."""
    room = step.part(place.room)
    for name in LANE_FIELDS:
        setattr(room, name, 0)
    room.l_seq = NONE_SEQ
    room.s_boot = room.s_boot + 1
