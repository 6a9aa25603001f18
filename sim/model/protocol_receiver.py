"""The receiver of the protocol model: one request on one rank, as :mod:`fsm.receiver` treats it.

Every function here drafts one action for one request. The guards say when production would do it, and the drafts
what it does; decisions are calls of :mod:`fsm.kernel` (by way of the rules in force), the lifecycle is its table,
and the ledger's answer to every move that is asked for is part of the draft: a refusal sets ``refused``, which must
never happen.

Where production does several things in one call, the model may do them in several actions, with anything in
between. That allows more runs than there are, and so proves no less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fsm import kernel
from fsm.kernel import MISMATCH, UNKNOWN, Number, Ops
from sim.model.form import negate
from sim.model.protocol_parts import NONE_SEQ, Choice, Part, Step, after, either, implies, move_block


@dataclass(frozen=True)
class Place:
    """Where a request stands in a composition. ``room`` is the prefix of its fields, ``number`` its name as an owner,
    ``blocks`` the blocks of its rank, ``peers`` the same request on the other ranks, ``rivals`` the other requests of
    this rank. ``folded``: instead of peers there is one field, ``others``, for all other ranks together."""

    room: str
    number: int
    blocks: tuple[str, ...]
    peers: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    folded: bool = True


class Seen(NamedTuple):
    """The folded observation of one request, as one tick acts on it."""

    known: Number
    registered: Number
    failure: Number
    total: Number
    committed: Number
    delivered: Number


# --- what is seen ----------------------------------------------------------------------------------------


def own_progress(step: Step, place: Place, choice: Choice) -> Number:
    """What this rank brings to the fold."""
    required = step.view["landed_required"] == 1
    return step.rules.progress(step.ops, step.part(place.room), required, choice)


def observe(step: Step, place: Place, choice: Choice) -> Seen:
    """R7: the fold of what this rank sees and what ``choice`` says that the others see."""
    ops, room = step.ops, step.part(place.room)
    committed = own_progress(step, place, choice)
    if place.folded:
        committed = step.rules.fold_progress(ops, committed, room.others)
    for peer in place.peers:
        other = Place(peer, 0, ())
        committed = step.rules.fold_progress(ops, committed, own_progress(step, other, choice))
    told = ops.where(choice.others_know == 1, room.size, UNKNOWN)
    lowest = ops.where(
        room.total == UNKNOWN, told, ops.where(told == UNKNOWN, room.total, ops.minimum(room.total, told))
    )
    all_told = (room.total > UNKNOWN) & (told > UNKNOWN)
    return Seen(
        known=choice.others_have == 1,
        registered=(room.registered == 1) & (choice.others_registered == 1),
        failure=choice.failure_seen,
        total=kernel.fold_known(ops, lowest, ops.maximum(room.total, told), all_told),
        committed=committed,
        delivered=ops.minimum(room.delivered, choice.others_delivered),
    )


def plausible(step: Step, place: Place, choice: Choice) -> Number:
    """What holds of the observations of other ranks: whoever has tokens was told the total, by the same STATUS."""
    return (
        implies(step.part(place.room).others > 0, choice.others_know == 1) if place.folded else step.view["late"] >= 0
    )


def verdict(step: Step, place: Place, seen: Seen) -> Number:
    """What one tick decides for a request."""
    room = step.part(place.room)
    return kernel.verdict(
        step.ops, room.state, seen.known, seen.registered, seen.failure, seen.total, seen.committed, room.handled,
        seen.delivered, seen.committed < 0,
    )  # fmt: skip


def decides(step: Step, place: Place, choice: Choice, what: int) -> Number:
    """The guard of an action of the tick."""
    return plausible(step, place, choice) & (verdict(step, place, observe(step, place, choice)) == what)


def is_live(room: Part) -> Number:
    """Whether a request has not ended."""
    return room.state < kernel.SUCCESS


def latest(room: Part) -> Number:
    """The seq of the grant that went out last; -1 if none did."""
    return room.next_seq - 1


def grant_end(ops: Ops, room: Part) -> Number:
    """Where the latest grant ends."""
    return kernel.committed_after(ops, room.g_start, room.g_cap, room.size)


def chunk_seq(room: Part) -> Number:
    """The seq of the grant that landed last."""
    return room.next_seq - 1 - room.open


def is_due(step: Step, room: Part) -> Number:
    """Whether a request holds data and asks for blocks."""
    due = step.rules.detect(step.ops, room)
    wants = kernel.wants_blocks(room.state, room.next_seq, room.total, room.early, due)
    return wants & (room.handled > 0)


# --- what is heard ---------------------------------------------------------------------------------------


def can_register(step: Step, place: Place, choice: Choice) -> Number:
    """A REGISTER_ACK of process ``choice.boot``: of the present one if it registered us, or of any before it."""
    room = step.part(place.room)
    sent = (choice.boot == room.s_boot) & (room.l_state > kernel.BOOTSTRAPPING)
    sent = sent | ((choice.boot >= 1) & (choice.boot < room.s_boot))
    return is_live(room) & (room.registered == 0) & sent


def register(step: Step, place: Place, choice: Choice) -> None:
    """The process that registered us is the one that grants are for."""
    room = step.part(place.room)
    room.registered = 1
    room.peer_boot = choice.boot


def can_learn_total(step: Step, place: Place, choice: Choice) -> Number:
    """An OFFER that was ever sent."""
    room = step.part(place.room)
    return is_live(room) & (room.total == UNKNOWN) & (room.offered == 1)


def learn_total(step: Step, place: Place, choice: Choice) -> None:
    """R4: the total comes from the OFFER."""
    step.part(place.room).total = step.part(place.room).size


def status_was_sent(step: Step, place: Place, choice: Choice) -> Number:
    """A STATUS that was ever sent: the newest as it was said, or any older one."""
    room = step.part(place.room)
    newest = (choice.seq == room.done_seq) & (choice.tokens == room.done_said)
    older = (choice.seq < room.done_seq) & (choice.tokens <= room.size)
    return (choice.seq >= 0) & (newest | older)


def can_take_status(step: Step, place: Place, choice: Choice) -> Number:
    """A STATUS that is not about a grant closed already."""
    room = step.part(place.room)
    awaited = (room.open == 1) & (room.closing == 0) & (choice.seq >= latest(room))
    return status_was_sent(step, place, choice) & is_live(room) & awaited


def take_status(step: Step, place: Place, choice: Choice) -> None:
    """R3: if it is exact it closes the grant, else it is a failure."""
    room, ops = step.part(place.room), step.ops
    room.total = room.size
    exact = step.rules.status_exact(ops, choice.tokens, room.g_start, room.g_cap, room.size)
    wrong = (choice.seq > latest(room)) | negate(exact)
    room.failure = ops.where(wrong, 1, room.failure)
    step.put(
        room, room.failure == 0, closing=1, closing_tokens=choice.tokens, word=ops.maximum(room.word, choice.tokens)
    )
    _close(step, place)


def can_revive(step: Step, place: Place, choice: Choice) -> Number:
    """A STATUS for a request that has ended: it makes nothing (R8)."""
    revives = status_was_sent(step, place, choice) & step.rules.unmatched()
    return revives & negate(is_live(step.part(place.room)))


def revive(step: Step, place: Place, choice: Choice) -> None:
    """What must not happen: the request lives again."""
    room = step.part(place.room)
    room.state = kernel.TRANSFERRING
    room.word = choice.tokens


def _close(step: Step, place: Place) -> None:
    """R3, R5: once the STATUS is there, and the own completion where it is needed, the grant is closed: what it
    reached has landed, what it did not reach is free."""
    room, ops, seq = step.part(place.room), step.ops, latest(step.part(place.room))
    required = step.view["landed_required"] == 1
    closes = (room.open == 1) & (room.closing == 1) & kernel.may_close(required, room.landed_seq, seq) & is_live(room)
    tokens = room.closing_tokens - room.g_start
    reached = kernel.blocks_needed(tokens, step.view["block_tokens"])
    for name in place.blocks:
        claim, block = step.claim(room, name), step.part(name)
        lands = closes & (claim.g_has == 1) & (claim.g_index < reached)
        spared = closes & (claim.g_has == 1) & negate(claim.g_index < reached)
        refused = move_block(step, block, "land", place.number, seq, claim.g_gen, lands)
        refused = move_block(step, block, "unreached", place.number, seq, claim.g_gen, spared) | refused
        step.put(claim, lands, c_has=1, c_seq=seq, c_gen=claim.g_gen, c_tokens=tokens)
        room.refused = ops.where(refused, 1, room.refused)
    of_token = closes & (room.g_start <= room.token) & (room.token < room.closing_tokens)
    step.put(room, of_token, t_in=1, t_seq=seq, t_chunk=tokens, t_times=room.t_times + 1)
    step.put(room, closes & negate(of_token), rest=room.rest + tokens)
    step.put(room, closes, landed=room.closing_tokens, open=0, closing=0)
    reported = kernel.progress(ops, room.word, room.landed, required)
    room.fell = ops.where(closes & (reported < room.reported), 1, room.fell)
    room.reported = ops.where(closes, reported, room.reported)


def can_notice_landing(step: Step, place: Place, choice: Choice) -> Number:
    """The own completion of a grant whose bytes are in memory."""
    return (choice.seq >= 0) & (choice.seq <= step.part(place.room).d_seq)


def notice_landing(step: Step, place: Place, choice: Choice) -> None:
    """The own completion, of a live request or of one that has ended."""
    room = step.part(place.room)
    room.landed_seq = step.ops.maximum(room.landed_seq, choice.seq)
    _close(step, place)


def observe_failure(step: Step, place: Place, choice: Choice) -> None:
    """Something went wrong; nothing is decided before the tick."""
    step.part(place.room).failure = 1


def can_abort(step: Step, place: Place, choice: Choice) -> Number:
    """The caller may end a request at any time, and so may an ABORT or a NACK of the peer."""
    return is_live(step.part(place.room))


def can_pass_deadline(step: Step, place: Place, choice: Choice) -> Number:
    """R9: a clock may find any wait too long."""
    return is_live(step.part(place.room)) & step.rules.deadlines()


def can_see_restart(step: Step, place: Place, choice: Choice) -> Number:
    """R8: a newer process of the sender is heard of."""
    room = step.part(place.room)
    return is_live(room) & (room.registered == 1) & (room.peer_boot < room.s_boot) & step.rules.boot_change_fences()


def can_hear_unknown(step: Step, place: Place, choice: Choice) -> Number:
    """R9: a newer process of the sender refuses what it does not know."""
    room = step.part(place.room)
    asked = is_live(room) & (room.open == 1) & (room.peer_boot < room.s_boot)
    return asked & step.rules.unknown_room_answered()


def can_take_ack(step: Step, place: Place, choice: Choice) -> Number:
    """An ABORT_ACK that was ever sent: that of the process that was granted to as it was said, or any other's."""
    room = step.part(place.room)
    own = (choice.boot == room.peer_boot) & (room.ack_sent == 1) & (choice.seq == room.ack_seq)
    other = (choice.boot >= 1) & (choice.boot != room.peer_boot) & (choice.boot <= room.s_boot)
    counts = step.rules.proof_counts(choice.boot, room.peer_boot)
    return (room.state == kernel.FAILED) & (room.acknowledged == 0) & (own | other) & counts


def take_ack(step: Step, place: Place, choice: Choice) -> None:
    """R11: no write of this epoch is outstanding and none will start."""
    room = step.part(place.room)
    room.acknowledged = 1
    room.executed_seq = step.ops.maximum(room.executed_seq, choice.seq)


def can_release(step: Step, place: Place, choice: Choice) -> Number:
    """R5: the acknowledgement is a proof, where the own receive need not have ended besides."""
    room = step.part(place.room)
    quiet = kernel.may_release(step.view["two_sided"] == 1, room.executed_seq, latest(room), room.landed_seq)
    return (room.state == kernel.FAILED) & (room.held == 1) & (room.acknowledged == 1) & quiet


def release(step: Step, place: Place, choice: Choice) -> None:
    """What was in quarantine is free."""
    room = step.part(place.room)
    _release_blocks(step, place, room.held == 1)
    room.held = 0


def _release_blocks(step: Step, place: Place, when: Number) -> None:
    room = step.part(place.room)
    for name in place.blocks:
        claim = step.claim(room, name)
        asked = when & (claim.g_has == 1)
        refused = move_block(step, step.part(name), "release", place.number, latest(room), claim.g_gen, asked)
        room.refused = step.ops.where(refused, 1, room.refused)


def can_hear_gone(step: Step, place: Place, choice: Choice) -> Number:
    """The transport proves that the process that was granted to is over and writes no more."""
    room = step.part(place.room)
    proved = (room.peer_boot < room.s_boot) & (room.flight == 0)
    return (room.registered == 1) & proved & ((is_live(room) & (room.peer_gone == 0)) | (room.held == 1))


def hear_gone(step: Step, place: Place, choice: Choice) -> None:
    """A live request fails if it needs that process; blocks in quarantine on its account are free."""
    room, ops = step.part(place.room), step.ops
    _release_blocks(step, place, room.held == 1)
    room.held = 0
    needs = ((room.total == UNKNOWN) | (room.landed < room.total)) & step.rules.boot_change_fences()
    step.put(room, is_live(room), peer_gone=1, failure=ops.where(needs, 1, room.failure))


# --- the tick --------------------------------------------------------------------------------------------


def lifecycle(step: Step, room: Part, event: str, when: Number, **facts: Number) -> None:
    """Fire an event; that the table refuses it must never happen."""
    legal, target = after(step.ops, step.rules.table, room.state, event, facts)
    room.refused = step.ops.where(when & negate(legal), 1, room.refused)
    room.state = step.ops.where(when & legal, target, room.state)


def end(step: Step, room: Part) -> None:
    """Note how a request ended."""
    room.ended = step.ops.where(room.ended == 0, room.state, room.ended)


def tick_registered(step: Step, place: Place, choice: Choice, seen: Seen) -> None:
    """Every rank is registered."""
    lifecycle(step, step.part(place.room), "registered", seen.registered)


def tick_chunk(step: Step, place: Place, choice: Choice, seen: Seen) -> None:
    """A chunk has landed on every rank: the watermark moves, and the copy out begins."""
    room, ops = step.part(place.room), step.ops
    room.handled = seen.committed
    partial = room.handled < seen.total
    lifecycle(step, room, "landed", partial, partial=partial)
    unlanded = (room.open == 1) & (room.g_start < seen.committed)
    for name in place.blocks:
        claim = step.claim(room, name)
        asked = unlanded & (claim.g_has == 1)
        refused = move_block(step, step.part(name), "read", place.number, latest(room), claim.g_gen, asked)
        room.refused = ops.where(refused, 1, room.refused)
    copy_out(step, place, negate(partial) | step.rules.copy_when_landed())


def copy_out(step: Step, place: Place, when: Number) -> None:
    """Begin to copy out every chunk that has landed."""
    room, ops = step.part(place.room), step.ops
    for name in place.blocks:
        claim = step.claim(room, name)
        asked = when & (claim.c_has == 1) & (claim.c_seq > room.read_seq)
        refused = move_block(step, step.part(name), "read", place.number, claim.c_seq, claim.c_gen, asked)
        room.refused = ops.where(refused, 1, room.refused)
    room.read_seq = ops.where(when, chunk_seq(room), room.read_seq)


def tick_complete(step: Step, place: Place, choice: Choice, seen: Seen) -> None:
    """Every token is delivered on every rank."""
    room = step.part(place.room)
    room.failure = 0
    lifecycle(step, room, "complete", negate(seen.known) | seen.known, delivered=seen.delivered == seen.total)
    end(step, room)


def tick_fail(step: Step, place: Place, choice: Choice, seen: Seen) -> None:
    """R5: what may still be written goes to quarantine; what landed and is not being read is free."""
    room, ops, seq = step.part(place.room), step.ops, latest(step.part(place.room))
    failed = (seen.failure > 0) | (seen.total == MISMATCH)
    lifecycle(step, room, "fail", failed)
    is_open = room.open == 1
    quarantined = is_open & step.rules.settle()
    for name in place.blocks:
        claim, block = step.claim(room, name), step.part(name)
        has = claim.g_has == 1
        refused = move_block(step, block, "quarantine", place.number, seq, claim.g_gen, quarantined & has)
        freed = is_open & negate(quarantined) & has
        refused = move_block(step, block, "unreached", place.number, seq, claim.g_gen, freed) | refused
        unread = (claim.c_has == 1) & (claim.c_seq > room.read_seq)
        refused = move_block(step, block, "free", place.number, claim.c_seq, claim.c_gen, unread) | refused
        step.put(claim, unread, c_has=0)
        room.refused = ops.where(refused, 1, room.refused)
    room.held = either(ops, quarantined)
    room.executed_seq = ops.where(quarantined & (room.closing == 1), seq, NONE_SEQ)
    _release_blocks(step, place, quarantined & (room.peer_gone == 1))
    room.held = ops.where(room.peer_gone == 1, 0, room.held)
    end(step, room)


# --- grants ----------------------------------------------------------------------------------------------


class Grant(NamedTuple):
    """What a request is granted in this tick, if ``blocks`` is above 0."""

    start: Number
    tokens: Number
    blocks: Number
    early: Number
    rival: Number
    """Somebody who holds data waits for blocks."""


def work_out_grant(step: Step, place: Place, choice: Choice, seen: Seen) -> Grant:
    """R6, R7: the place of a request in the walk, and what it may have of the free blocks."""
    ops, rules, room = step.ops, step.rules, step.part(place.room)
    first = room.next_seq == 0
    early = first & (seen.total == UNKNOWN)
    free = rules.equal_capacity(ops, choice.free, choice.own_free)
    rival: Number = room.state < 0
    for name in place.rivals:
        other = step.part(name)
        waits = is_due(step, other)
        rival = waits | rival
        before = rules.order(ops, other) < rules.order(ops, room)
        free = ops.where(waits & before, 0, free)
    start = rules.resume_start(ops, room.handled, step.view["block_tokens"])
    tokens = ops.where(early, room.early, seen.total - start)
    needed = kernel.blocks_needed(tokens, step.view["block_tokens"])
    wanted = rules.wanted(ops, needed, step.view["grant_blocks_max"])
    available = ops.where(early, rules.early_available(ops, free), free)
    later = kernel.better_later(seen.delivered, room.handled, available, wanted) & rules.copy_when_landed()
    blocks = ops.where(later, 0, rules.take(ops, wanted, available))
    served = negate(first) | ((choice.result_fits == 1) & (negate(early) | (room.early > 0)))
    due = rules.detect(ops, room)
    asks = kernel.wants_blocks(room.state, room.next_seq, room.total, room.early, due)
    return Grant(start, tokens, ops.where(seen.known & asks & served, blocks, 0), early, rival)


def can_grant(step: Step, place: Place, choice: Choice, seen: Seen) -> Number:
    """A request wants blocks, and there are some for it; the allocator gives any that are free."""
    grant = work_out_grant(step, place, choice, seen)
    enough = (choice.free <= choice.own_free) & (grant.blocks <= choice.own_free)
    fits: Number = plausible(step, place, choice) & enough
    for name in place.blocks:
        given = choice.of(name)
        inside = (given.index >= 0) & (given.index < grant.blocks)
        fits = fits & implies(given.has == 1, (step.part(name).listed > 0) & inside & (choice.own_free > 0))
    return fits & (grant.blocks > 0)


def give_grant(step: Step, place: Place, choice: Choice, seen: Seen) -> None:
    """A GRANT is sent: blocks are reserved and granted, data begins to be copied out, the watermark is remembered."""
    room, ops, seq = step.part(place.room), step.ops, step.part(place.room).next_seq
    grant = work_out_grant(step, place, choice, seen)
    due = step.rules.detect(ops, room)
    first = seq == 0
    room.overtaken = ops.where(first & grant.rival, 1, room.overtaken)
    room.early_left = ops.where(grant.early, choice.free - grant.blocks, room.early_left)
    for name in place.blocks:
        given, block = choice.of(name), step.part(name)
        refused = move_block(step, block, "reserve", place.number, seq, block.generation, given.has == 1)
        room.refused = ops.where(refused, 1, room.refused)
    lifecycle(step, room, "grant", first)
    lifecycle(step, room, "resume", negate(first), resume_due=due)
    copy_out(step, place, room.read_seq < chunk_seq(room))
    for name in place.blocks:
        given, block, claim = choice.of(name), step.part(name), step.claim(room, name)
        refused = move_block(step, block, "grant", place.number, seq, block.generation, given.has == 1)
        room.refused = ops.where(refused, 1, room.refused)
        claim.g_has, claim.g_index, claim.g_gen = given.has, given.index, block.generation
    room.last_resume = room.handled
    room.same_list = ops.where(first, 0, choice.same_list)
    room.next_seq = seq + 1
    room.open = 1
    room.g_start, room.g_blocks = grant.start, grant.blocks
    room.g_cap = kernel.grant_capacity(ops, grant.tokens, grant.blocks, step.view["block_tokens"])
    room.o_start = ops.where(seq == room.o_seq, grant.start, room.o_start)


def can_starve(step: Step, place: Place, choice: Choice) -> Number:
    """A request that holds data gets no blocks in this tick: it does nothing (R6)."""
    return is_due(step, step.part(place.room)) & step.rules.starved()


def starve(step: Step, place: Place, choice: Choice) -> None:
    """What must not happen: what was freed last is freed again."""
    room = step.part(place.room)
    for name in place.blocks:
        claim = step.claim(room, name)
        refused = move_block(step, step.part(name), "free", place.number, claim.n_seq, claim.n_gen, claim.n_has == 1)
        room.refused = step.ops.where(refused, 1, room.refused)


# --- copies ----------------------------------------------------------------------------------------------


def can_end_copy(step: Step, place: Place, choice: Choice) -> Number:
    """The copy of a chunk that is being read: the token's, or one of the rest, which is no larger than all of it."""
    room = step.part(place.room)
    begun = (choice.seq >= 0) & (choice.seq <= room.read_seq)
    if not place.folded:  # all blocks of the rank are known here: a chunk that lies in none of them is gone already
        lies: Number = room.state < 0
        for name in place.blocks:
            lies = lies | ((step.claim(room, name).c_has == 1) & (step.claim(room, name).c_seq == choice.seq))
        begun = begun & lies
    of_token = (room.t_in == 1) & (choice.seq == room.t_seq) & (choice.tokens == room.t_chunk)
    of_rest = (
        negate((room.t_in == 1) & (choice.seq == room.t_seq)) & (choice.tokens >= 1) & (choice.tokens <= room.rest)
    )
    for name in place.blocks:
        claim = step.claim(room, name)
        rests = (claim.c_has == 1) & negate((room.t_in == 1) & (claim.c_seq == room.t_seq))
        own = implies(claim.c_seq == choice.seq, choice.tokens == claim.c_tokens)
        other = implies(claim.c_seq != choice.seq, choice.tokens + claim.c_tokens <= room.rest)
        of_rest = of_rest & implies(rests, own & other)
    return begun & (of_token | of_rest)


def can_fail_copy(step: Step, place: Place, choice: Choice) -> Number:
    """The same; a lease is no copy."""
    return can_end_copy(step, place, choice) & (step.part(place.room).leased == 0)


def end_copy(step: Step, place: Place, choice: Choice) -> None:
    """The copy has ended: its tokens are in the result, its blocks are free."""
    room, ops = step.part(place.room), step.ops
    counts = is_live(room) & (room.leased == 0)
    of_token = (room.t_in == 1) & (choice.seq == room.t_seq)
    room.delivered = ops.where(counts, room.delivered + choice.tokens, room.delivered)
    room.t_out = ops.where(counts & of_token, room.t_out + 1, room.t_out)
    _drop_chunk(step, place, choice, of_token)


def fail_copy(step: Step, place: Place, choice: Choice) -> None:
    """What was copied is not what was sent: its blocks are free, and the request fails."""
    room, ops = step.part(place.room), step.ops
    of_token = (room.t_in == 1) & (choice.seq == room.t_seq)
    step.put(room, is_live(room), failure=1)
    room.dropped = room.dropped + choice.tokens
    room.t_dropped = ops.where(of_token, 1, room.t_dropped)
    _drop_chunk(step, place, choice, of_token)


def _drop_chunk(step: Step, place: Place, choice: Choice, of_token: Number) -> None:
    room, ops = step.part(place.room), step.ops
    for name in place.blocks:
        claim = step.claim(room, name)
        freed = (claim.c_has == 1) & (claim.c_seq == choice.seq)
        refused = move_block(step, step.part(name), "free", place.number, claim.c_seq, claim.c_gen, freed)
        room.refused = ops.where(refused, 1, room.refused)
        step.put(claim, freed, c_has=0, n_has=1, n_seq=claim.c_seq, n_gen=claim.c_gen)
    room.rest = ops.where(of_token, room.rest, room.rest - choice.tokens)
    step.put(room, of_token, t_in=0)


def can_lease(step: Step, place: Place, choice: Choice) -> Number:
    """The caller keeps the blocks of a chunk that is the whole request, instead of a copy."""
    room = step.part(place.room)
    whole = (room.t_in == 1) & (room.t_seq <= room.read_seq) & (room.t_chunk == room.total)
    return is_live(room) & (room.leased == 0) & whole


def lease(step: Step, place: Place, choice: Choice) -> None:
    """The request counts as delivered."""
    room = step.part(place.room)
    room.leased = 1
    room.delivered = room.t_chunk
    room.t_out = room.t_out + 1


def can_others_land(step: Step, place: Place, choice: Choice) -> Number:
    """The other ranks were granted alike (I7), so what they have is where the latest grant starts, or where it ends."""
    room = step.part(place.room)
    return is_live(room) & (room.next_seq > 0) & (room.others < grant_end(step.ops, room))


def others_land(step: Step, place: Place, choice: Choice) -> None:
    """The slowest of the other ranks has the latest grant's tokens."""
    room = step.part(place.room)
    room.others = grant_end(step.ops, room)
