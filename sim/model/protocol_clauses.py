"""The invariant: what holds in every state of the protocol model, in words beside the formula.

A clause speaks of one request (on one rank), of one request and one block, of one block, or of two requests and one
block. It is meant for every request, every block and every pair. All clauses together are *inductive*: they hold at
the start, and if they all hold before an action, they all hold after it. So they hold for ever, and that is the
proof.

The clauses that carry a property's name (I1 to I6) are what was to be shown, or the last step to it. The others are
there because the induction needs them: they say how the two sides, the ledger and the bytes keep in step.

Some fields are history, which the protocol has no use for: what was executed (``x_seq``) or landed (``d_seq``,
``arrived``) last; how the request ended first (``ended``); how often one *token*, any one, has landed (``t_times``)
and was delivered (``t_out``); where one grant, any one (``o_seq``), started (``o_start``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from fsm import kernel
from fsm.kernel import UNKNOWN, Number
from fsm.states import State
from sim.model.form import negate
from sim.model.protocol_parts import (
    FREE,
    GRANTED,
    LANDED,
    NOBODY,
    NONE_SEQ,
    QUARANTINED,
    READING,
    Part,
    Step,
    implies,
)
from sim.model.protocol_receiver import Place, chunk_seq, grant_end, is_live, latest


class Words(NamedTuple):
    """A clause about one request: ``holds(step, place)``; about one block of it: ``holds(step, place, block)``."""

    name: str
    property: str
    text: str
    holds: Callable[..., Number]


ROOM_CLAUSES: list[Words] = []
"""What holds of every request, in the order of this page."""

BLOCK_CLAUSES: list[Words] = []
"""What holds of every request and every block."""

F = TypeVar("F", bound=Callable[..., Number])


def _clause(listed: list[Words], name: str, property: str) -> Callable[[F], F]:
    def note(holds: F) -> F:
        listed.append(Words(name, property, " ".join((holds.__doc__ or "").split()), holds))
        return holds

    return note


def of_room(name: str, property: str = "") -> Callable[[F], F]:
    """The function below says a clause of every request; its docstring says it in words."""
    return _clause(ROOM_CLAUSES, name, property)


def of_block(name: str, property: str = "") -> Callable[[F], F]:
    """The function below says a clause of every request and every block; its docstring says it in words."""
    return _clause(BLOCK_CLAUSES, name, property)


def _same(one: Number, other: Number) -> Number:
    """Two truth values are equal."""
    return implies(one, other) & implies(other, one)


def _room(step: Step, place: Place) -> Part:
    return step.part(place.room)


def _open(room: Part) -> Number:
    """A grant is out, and the request lives."""
    return (room.open == 1) & is_live(room)


# --- what is given ---------------------------------------------------------------------------------------


@of_room("constants")
def constants(step: Step, place: Place) -> Number:
    """A request has a length; a transport whose bytes may come after its word has completions of the receiver's own."""
    room, view = _room(step, place), step.view
    sizes = (room.size >= 1) & (room.token >= 0) & (room.token < room.size) & (room.early >= 0) & (room.o_seq >= 0)
    late = implies(view["late"] == 1, (view["landed_required"] == 1) & (view["two_sided"] == 1))
    return sizes & late & (view["block_tokens"] >= 1) & (view["grant_blocks_max"] >= 0)


# --- the receiver ----------------------------------------------------------------------------------------


@of_room("before the first grant")
def before_first_grant(step: Step, place: Place) -> Number:
    """Nothing is executed, landed or agreed before a grant went out."""
    room = _room(step, place)
    nothing = (room.open == 0) & (room.landed == 0) & (room.handled == 0) & (room.others == 0) & (room.last_resume == 0)
    nothing = nothing & (room.x_seq == NONE_SEQ) & (room.d_seq == NONE_SEQ) & (room.arrived == 0)
    nothing = nothing & (room.done_seq == NONE_SEQ) & (room.done_tokens == 0) & (room.done_said == 0)
    return (room.next_seq >= 0) & implies(room.next_seq == 0, nothing)


@of_room("registered")
def before_registration(step: Step, place: Place) -> Number:
    """Grants go to the process that registered the request, and to no other."""
    room = _room(step, place)
    fresh = (room.peer_boot == 0) & (room.next_seq == 0)
    named = (room.peer_boot >= 1) & (room.peer_boot <= room.s_boot)
    waiting = implies(room.state == kernel.BOOTSTRAPPING, room.next_seq == 0)
    beyond = (room.state == kernel.BOOTSTRAPPING) | (room.state == kernel.FAILED) | (room.registered == 1)
    waiting = waiting & (room.s_boot >= 1)
    return implies(room.registered == 0, fresh) & implies(room.registered == 1, named) & waiting & beyond


@of_room("the total")
def the_total(step: Step, place: Place) -> Number:
    """The receiver knows no other total than the request's; whoever has tokens knows it."""
    room = _room(step, place)
    told = implies((room.word > 0) | (room.next_seq > 1), room.total == room.size)
    return ((room.total == UNKNOWN) | (room.total == room.size)) & told


@of_room("the latest grant")
def the_grant(step: Step, place: Place) -> Number:
    """It lies inside the request, is not empty, fits its blocks, and its start is what R2 remembers."""
    room = _room(step, place)
    inside = (room.g_start >= 0) & (room.g_start < room.size) & (room.g_cap >= 1)
    fits = kernel.grant_fits(room.g_cap, room.g_blocks, step.view["block_tokens"])
    first = implies(room.next_seq == 1, room.g_start == 0)
    return implies(room.next_seq > 0, inside & fits & first & (room.last_resume == room.g_start))


@of_room("landed")
def the_landed(step: Step, place: Place) -> Number:
    """What has landed ends where the grant that is out starts; where the last one ended, if none is out."""
    room = _room(step, place)
    where = step.ops.where(room.open == 1, room.g_start, grant_end(step.ops, room))
    return implies(room.next_seq > 0, room.landed == where)


@of_room("the word")
def the_word(step: Step, place: Place) -> Number:
    """The sender's word is what has landed; while a closing STATUS waits, the end of its grant."""
    room = _room(step, place)
    said = (room.open == 1) & (room.done_seq == latest(room)) & (room.word == room.closing_tokens)
    waits = negate(kernel.may_close(step.view["landed_required"] == 1, room.landed_seq, latest(room)))
    closing = said & waits & (room.closing_tokens == grant_end(step.ops, room))
    return implies(is_live(room), step.ops.where(room.closing == 1, closing, room.word == room.landed))


@of_room("agreed")
def the_handled(step: Step, place: Place) -> Number:
    """The agreed watermark is the one resumed last, or all that has landed and nothing is out."""
    room = _room(step, place)
    new = (room.open == 0) & (room.handled == room.landed)
    return (room.next_seq == 0) | (room.handled == room.last_resume) | new


@of_room("other ranks")
def the_others(step: Step, place: Place) -> Number:
    """The slowest other rank is where the latest grant starts, or where it ends."""
    room = _room(step, place)
    somewhere = (room.others == room.g_start) | (room.others == grant_end(step.ops, room))
    return implies((room.next_seq > 0) & is_live(room), somewhere & (room.handled <= room.others))


@of_room("duty shows")
def due_is_transferring(step: Step, place: Place) -> Number:
    """A watermark that was agreed and not acted on shows as Transferring."""
    room = _room(step, place)
    acted = (room.handled == room.last_resume) | (room.handled == room.size)
    waiting = implies(room.state == kernel.WAITING, room.next_seq <= 1)
    started = implies((room.state == kernel.TRANSFERRING) | (room.state == kernel.RESUMING), room.next_seq >= 1)
    begun = implies(room.state == kernel.RESUMING, room.next_seq >= 2)
    begun = begun & implies((room.state == kernel.TRANSFERRING) & (room.next_seq == 1), room.handled > room.last_resume)
    return implies(is_live(room), ((room.state == kernel.TRANSFERRING) | acted) & waiting & started & begun)


@of_room("a wait shows")
def waits_are_told_apart(step: Step, place: Place) -> Number:
    """Transferring shows nothing else: what was asked for is ResumeRequested."""
    # The historical table has no ResumeRequested: Transferring says less there, and the detector alone tells a wait
    # from a duty.
    room = _room(step, place)
    due = kernel.resume_due(room.handled, room.last_resume, room.size)
    if State.RESUMING in step.rules.table.states:
        return (room.state != kernel.TRANSFERRING) | due
    return room.state != kernel.RESUMING


@of_room("starts grow", "I6")
def starts_grow(step: Step, place: Place) -> Number:
    """No two grants start at the same token: each starts behind all earlier ones."""
    room = _room(step, place)
    known = implies(room.o_seq == latest(room), room.o_start == room.g_start)
    return known & implies(room.o_seq < latest(room), room.o_start < room.g_start)


@of_room("a wait holds nothing", "progress")
def wait_holds_nothing(step: Step, place: Place) -> Number:
    """Who asks for blocks has begun to copy out all that it has."""
    room = _room(step, place)
    agreed = (room.handled > room.last_resume) & is_live(room)
    return (room.read_seq <= chunk_seq(room)) & implies(agreed, room.read_seq == chunk_seq(room))


# --- what has landed, once -------------------------------------------------------------------------------


@of_room("chunks add up", "I2")
def chunks_add_up(step: Step, place: Place) -> Number:
    """What is delivered, being copied, and lost to a broken copy is what has landed."""
    room, ops = _room(step, place), step.ops
    of_token = ops.where(room.t_in == 1, room.t_chunk, 0)
    parts = (room.rest >= 0) & (room.dropped >= 0) & (room.delivered >= 0)
    valid = implies(room.t_in == 1, (room.t_chunk >= 1) & (room.t_seq <= chunk_seq(room)) & (room.t_seq >= 0))
    copied = room.delivered + room.rest + of_token + room.dropped == room.landed
    leased = (room.delivered == room.landed) & (room.landed == room.size) & (room.rest == 0) & (room.dropped == 0)
    leased = leased & implies(room.t_in == 1, room.t_seq <= room.read_seq)
    return parts & valid & ((room.state == kernel.FAILED) | ops.where(room.leased == 1, leased, copied))


@of_room("a token once", "I2")
def token_once(step: Step, place: Place) -> Number:
    """A token has landed once if it is behind the watermark, else never, and is in one place."""
    room, ops = _room(step, place), step.ops
    landed = ops.where(room.token < room.landed, 1, 0)
    waiting = ops.where((room.t_in == 1) & (room.leased == 0), 1, 0)
    lost = implies(room.t_dropped == 1, room.dropped >= 1)
    behind = implies(room.t_in == 1, room.token < room.landed) & (room.t_out >= 0)
    placed = (room.state == kernel.FAILED) | (room.t_out + waiting + room.t_dropped == landed)
    return (room.t_times == landed) & lost & behind & placed


@of_room("success is whole", "I2")
def success_is_whole(step: Step, place: Place) -> Number:
    """At Success every token has landed once and was delivered once."""
    room = _room(step, place)
    once = (room.t_times == 1) & (room.t_out == 1)
    whole = (room.landed == room.size) & (room.delivered == room.size) & (room.open == 0)
    return implies(room.state == kernel.SUCCESS, once & whole)


@of_room("the right source", "I2")
def source_is_where_it_goes(step: Step, place: Place) -> Number:
    """A write takes from the payload the very tokens that it was asked for."""
    room = _room(step, place)
    return implies(room.flight == 1, room.f_source == room.f_start)


@of_room("watermark behind bytes", "I5")
def watermark_has_landed(step: Step, place: Place) -> Number:
    """The watermark never runs ahead of the bytes in memory."""
    room, ops = _room(step, place), step.ops
    reported = kernel.progress(ops, room.word, room.landed, step.view["landed_required"] == 1)
    behind = (reported <= room.arrived) & (room.landed <= room.arrived) & (room.handled <= room.arrived)
    return implies(is_live(room), behind)


@of_room("watermark never falls", "I5")
def watermark_never_falls(step: Step, place: Place) -> Number:
    """What is reported as received never becomes less."""
    room = _room(step, place)
    return (room.fell == 0) & (room.reported <= room.landed)


# --- endings ---------------------------------------------------------------------------------------------


@of_room("ended stays ended", "I4")
def ended_stays_ended(step: Step, place: Place) -> Number:
    """A request that has ended stays so, on both sides."""
    room = _room(step, place)
    receiver = step.ops.where(room.ended == 0, room.state, room.ended) == room.state
    sender = step.ops.where(room.l_ended == 0, room.l_state, room.l_ended) == room.l_state
    told = _same(room.ended == 0, is_live(room)) & _same(room.l_ended == 0, room.l_state < kernel.SUCCESS)
    return receiver & sender & told


@of_room("nothing is refused", "I3")
def nothing_refused(step: Step, place: Place) -> Number:
    """The ledger and the lifecycle refuse nothing that is asked of them."""
    return _room(step, place).refused == 0


# --- the sender ------------------------------------------------------------------------------------------


@of_room("the sender follows")
def sender_follows(step: Step, place: Place) -> Number:
    """The sender has executed and committed the latest grant or the one before, exactly."""
    room, last = _room(step, place), latest(_room(step, place))
    done = (room.done_seq == last) | (room.done_seq == last - 1)
    begun = (room.x_seq == room.done_seq) | (room.x_seq == room.done_seq + 1)
    tokens = step.ops.where(room.done_seq == last, grant_end(step.ops, room), room.g_start)
    closed = implies((room.open == 0) | ((room.closing == 1) & is_live(room)), room.done_seq == last)
    return implies(room.next_seq > 0, done & begun & (room.x_seq <= last) & (room.done_tokens == tokens) & closed)


@of_room("a STATUS is true", "I2")
def status_is_true(step: Step, place: Place) -> Number:
    """A STATUS says what was committed for the very rank that it goes to."""
    room = _room(step, place)
    return room.done_said == room.done_tokens


@of_room("another process")
def other_process_knows_nothing(step: Step, place: Place) -> Number:
    """A process that grants are not for has executed nothing."""
    room = _room(step, place)
    fresh = (room.l_seq == NONE_SEQ) & (room.parked == 0) & (room.writing == 0) & (room.l_committed == 0)
    idle = (room.l_state != kernel.TRANSFERRING) & (room.l_state != kernel.RESUMING) & (room.l_state != kernel.SUCCESS)
    return (room.s_boot == room.peer_boot) | (fresh & idle)


@of_room("the lane")
def lane_agrees(step: Step, place: Place) -> Number:
    """The lane knows what was executed and committed; it is Transferring while it writes."""
    room = _room(step, place)
    live = room.l_state < kernel.SUCCESS
    same = (room.l_seq == room.x_seq) & (room.l_committed == room.done_tokens)
    writes = implies(room.writing == 1, (room.x_seq == room.done_seq + 1) & (room.f_seq == room.x_seq))
    rests = implies(live & (room.writing == 0), room.x_seq == room.done_seq)
    moving = implies(live, _same(room.writing == 1, room.l_state == kernel.TRANSFERRING))
    first = implies(live, _same(room.l_state == kernel.RESUMING, (room.writing == 0) & (room.x_seq >= 0)))
    short = implies(live & (room.writing == 0), room.l_committed < room.size)
    over = implies(room.l_state == kernel.SUCCESS, (room.writing == 0) & (room.x_seq == room.done_seq))
    return implies(room.s_boot == room.peer_boot, same & writes & rests & moving & first & short & over)


@of_room("the parked grant", "I6")
def parked_is_latest(step: Step, place: Place) -> Number:
    """A grant that waits to be executed is the latest one, and the next."""
    room = _room(step, place)
    same = (room.p_seq == latest(room)) & (room.p_start == room.g_start) & (room.p_cap == room.g_cap)
    ready = (room.l_state < kernel.SUCCESS) & (room.l_state > kernel.BOOTSTRAPPING) & (room.writing == 0)
    mine = (room.s_boot == room.peer_boot) & (room.p_seq == room.l_seq + 1) & (room.next_seq > 0)
    return implies(room.parked == 1, same & ready & mine)


@of_room("executed once", "I6")
def executed_once(step: Step, place: Place) -> Number:
    """No seq is executed twice."""
    return _room(step, place).twice == 0


# --- writes and proofs -----------------------------------------------------------------------------------


@of_room("the write", "I1")
def write_is_latest(step: Step, place: Place) -> Number:
    """A write under way is that of the latest grant, which is out or in quarantine."""
    room = _room(step, place)
    flown = (room.f_seq == room.x_seq) & (room.x_seq == latest(room)) & (room.f_boot == room.peer_boot)
    same = (room.f_start == room.g_start) & (room.f_cap == room.g_cap) & (room.next_seq > 0)
    aimed = (room.d_seq < room.f_seq) & (_open(room) | (room.held == 1))
    under_way = (room.flight == 1) | (room.writing == 1)
    done = implies(room.writing == 1, (room.f_boot == room.s_boot) & (room.s_boot == room.peer_boot))
    early = implies((room.flight == 1) & (step.view["late"] == 0), room.done_seq < room.f_seq)
    told = implies((room.flight == 1) & (step.view["late"] == 0) & (room.f_boot == room.s_boot), room.writing == 1)
    return implies(under_way, flown & same) & implies(room.flight == 1, aimed) & done & early & told


@of_room("bytes in order", "I5")
def landed_in_order(step: Step, place: Place) -> Number:
    """Bytes land grant after grant, without a gap."""
    room = _room(step, place)
    ends = step.ops.where(room.d_seq == latest(room), grant_end(step.ops, room), room.g_start)
    order = (room.landed_seq <= room.d_seq) & (room.d_seq <= room.x_seq) & (room.landed_seq >= NONE_SEQ)
    reached = (room.d_seq >= latest(room) - 1) & (room.arrived == ends)
    closed = implies(room.open == 0, room.d_seq == latest(room))
    said = implies(step.view["late"] == 0, room.done_seq <= room.d_seq)
    return order & implies(room.next_seq > 0, reached & closed & said)


@of_room("quarantine")
def held_is_open(step: Step, place: Place) -> Number:
    """What is in quarantine is the grant of a request that failed; what was said of it is true."""
    room = _room(step, place)
    failed = (room.state == kernel.FAILED) & (room.open == 1) & (room.executed_seq <= room.x_seq)
    sure = (room.acknowledged == 1) | (room.done_seq == latest(room))
    said = implies(room.executed_seq > NONE_SEQ, (room.executed_seq == room.x_seq) & sure)
    known = implies((room.acknowledged == 1) & (room.registered == 1), room.executed_seq == room.x_seq)
    return implies(room.held == 1, failed & (room.next_seq > 0)) & implies(
        (room.state == kernel.FAILED) & (room.open == 1), said & known & (room.executed_seq >= NONE_SEQ)
    )


@of_room("the acknowledgement", "I1")
def acknowledgement_is_true(step: Step, place: Place) -> Number:
    """An ABORT_ACK is true: no write of that process is outstanding or will start."""
    room = _room(step, place)
    over = (room.l_state >= kernel.SUCCESS) & (room.writing == 0)
    same = implies(room.s_boot == room.peer_boot, over) & (room.ack_seq == room.x_seq)
    quiet = implies(step.view["late"] == 0, room.flight == 0)
    sent = implies(room.ack_sent == 1, (room.state == kernel.FAILED) & implies(room.registered == 1, same & quiet))
    taken = implies((room.acknowledged == 1) & (room.registered == 1), room.ack_sent == 1)
    owed = implies(room.ack_owed == 1, (room.writing == 1) & (room.l_state == kernel.FAILED))
    asked = implies((room.ack_owed == 1) | (room.acknowledged == 1), room.state == kernel.FAILED)
    return sent & taken & owed & asked


@of_room("gone is gone")
def gone_is_gone(step: Step, place: Place) -> Number:
    """A process that was proved to be gone writes no more."""
    room = _room(step, place)
    return implies(room.peer_gone == 1, (room.peer_boot < room.s_boot) & (room.flight == 0) & (room.registered == 1))


@of_room("released is quiet", "I1")
def released_is_quiet(step: Step, place: Place) -> Number:
    """What left quarantine is not being written, and will not be."""
    room = _room(step, place)
    starts = (room.s_boot == room.peer_boot) & (room.l_state < kernel.SUCCESS)
    given_up = (room.state == kernel.FAILED) & (room.open == 1) & (room.held == 0)
    return implies(given_up, (room.flight == 0) & negate(starts) & (room.next_seq > 0))


# --- progress, kept as history ---------------------------------------------------------------------------


@of_room("early leaves one", "progress")
def early_leaves_one(step: Step, place: Place) -> Number:
    """An early grant leaves at least one block free."""
    return _room(step, place).early_left >= 1


@of_room("data first", "progress")
def nobody_overtaken(step: Step, place: Place) -> Number:
    """No first grant is given while a request that holds data waits for blocks."""
    return _room(step, place).overtaken == 0


# --- one request, one block ------------------------------------------------------------------------------


@of_block("a granted block", "I3")
def granted_block(step: Step, place: Place, name: str) -> Number:
    """A block of the grant that is out is Granted, on its account; after a failure Quarantined."""
    room, claim, block = _room(step, place), step.claim(_room(step, place), name), step.part(name)
    mine = (block.owner == place.number) & (block.seq == latest(room)) & (block.generation == claim.g_gen)
    has = claim.g_has == 1
    granted = implies(has & _open(room), mine & (block.state == GRANTED))
    return granted & implies(has & (room.held == 1), mine & (block.state == QUARANTINED))


@of_block("a landed block", "I3")
def landed_block(step: Step, place: Place, name: str) -> Number:
    """A block of a chunk is Landed, or Reading once the copy has begun."""
    room, claim, block = _room(step, place), step.claim(_room(step, place), name), step.part(name)
    mine = (block.owner == place.number) & (block.seq == claim.c_seq) & (block.generation == claim.c_gen)
    state = step.ops.where(claim.c_seq <= room.read_seq, READING, LANDED)
    seq = (claim.c_seq >= 0) & (claim.c_seq <= chunk_seq(room))
    ended = implies(negate(is_live(room)), claim.c_seq <= room.read_seq)
    same = (room.t_in == 1) & (room.t_seq == claim.c_seq)
    part = step.ops.where(same, claim.c_tokens == room.t_chunk, claim.c_tokens <= room.rest) & (claim.c_tokens >= 1)
    return implies(claim.c_has == 1, mine & (block.state == state) & seq & ended & part)


@of_block("no block is lost", "I3")
def owned_block(step: Step, place: Place, name: str) -> Number:
    """A block that is on a request's account is known to it."""
    room, claim, block = _room(step, place), step.claim(_room(step, place), name), step.part(name)
    granted = (claim.g_has == 1) & (_open(room) | (room.held == 1))
    return implies(block.owner == place.number, granted | (claim.c_has == 1))


@of_block("the same blocks", "I1")
def known_block(step: Step, place: Place, name: str) -> Number:
    """A grant that waits, or is being written, names the blocks that were granted."""
    room, claim = _room(step, place), step.claim(_room(step, place), name)
    parked = implies(
        room.parked == 1, (claim.p_has == claim.g_has) & implies(claim.g_has == 1, claim.p_gen == claim.g_gen)
    )
    flown = (claim.f_has == claim.g_has) & implies(claim.g_has == 1, claim.f_gen == claim.g_gen)
    inside = implies((room.next_seq > 0) & (claim.g_has == 1), (claim.g_index >= 0) & (claim.g_index < room.g_blocks))
    return parked & implies((room.flight == 1) | (room.writing == 1), flown) & inside


@of_block("writes are open", "I1")
def write_is_open(step: Step, place: Place, name: str) -> Number:
    """A write under way goes only to blocks that are Granted to its grant, or Quarantined because of it."""
    room, claim, block = _room(step, place), step.claim(_room(step, place), name), step.part(name)
    mine = (block.owner == place.number) & (block.seq == room.f_seq) & (block.generation == claim.f_gen)
    open_to_it = (block.state == GRANTED) | (block.state == QUARANTINED)
    return implies((room.flight == 1) & (claim.f_has == 1), mine & open_to_it)


# --- one block -------------------------------------------------------------------------------------------


def block_is_accounted_for(step: Step, name: str) -> Number:
    block = step.part(name)
    free = block.state == FREE
    return _same(free, block.owner == NOBODY) & (block.listed == step.ops.where(free, 1, 0))


def holds(step: Step, place: Place, name: str) -> Number:
    """Whether a request has a block on its account."""
    room, claim = _room(step, place), step.claim(_room(step, place), name)
    return (claim.c_has == 1) | ((claim.g_has == 1) & (_open(room) | (room.held == 1)))


def one_owner(step: Step, one: Place, other: Place, name: str) -> Number:
    return negate(holds(step, one, name) & holds(step, other, name))
