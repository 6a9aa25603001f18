"""The decisions of the protocol, over numbers only.

Every function here is straight-line arithmetic and logic over a few integers. There is no ``if`` on data,
so the same function answers for one request (plain ints), for a whole queue (numpy arrays) and, later,
for a device tensor or a symbol in a proof. What differs between those is three operations, passed in as
``ops``: ``where``, ``minimum`` and ``maximum``. Truth values are combined with ``&`` and ``|`` only.

The rules, in the numbering of ``docs/protocol.md``:

* R1, progress is what the sender says it committed: :func:`progress`, :func:`committed_after`;
* R2, a resume is decided once per watermark: :func:`resume_due`;
* R3, a grant is executed once and closed once: :func:`grant_kind`, :func:`grant_fits`, :func:`may_close`;
* R5, what may be written is not given away: :func:`proof_counts`, :func:`may_release`;
* R6, nobody waits while holding what another needs: :func:`blocks_needed`, :func:`blocks_wanted`,
  :func:`within_limit`, :func:`blocks_for_early_grant`, :func:`result_needed`, :func:`grant_capacity`,
  :func:`wants_blocks`, :func:`better_later`;
* R7, all ranks decide alike: :func:`fold_known`, :func:`verdict`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Number = Any
"""An int, a numpy array of ints, or anything else that has arithmetic, comparison, ``&`` and ``|``."""


class Ops(Protocol):
    """The three operations that differ between one request and many."""

    def where(self, condition: Number, yes: Number, no: Number) -> Number:
        """``yes`` where the condition holds, else ``no``."""

    def minimum(self, left: Number, right: Number) -> Number:
        """The smaller of the two."""

    def maximum(self, left: Number, right: Number) -> Number:
        """The larger of the two."""


class IntOps:
    """The operations for plain ints."""

    @staticmethod
    def where(condition: Number, yes: Number, no: Number) -> Number:
        """``yes`` if the condition holds, else ``no``."""
        return yes if condition else no

    @staticmethod
    def minimum(left: Number, right: Number) -> Number:
        """The smaller of the two."""
        return left if left < right else right

    @staticmethod
    def maximum(left: Number, right: Number) -> Number:
        """The larger of the two."""
        return left if left > right else right


INT: Ops = IntOps()
ARRAY: Ops = np  # numpy's module functions have just these names

UNKNOWN = -1
"""A total or a set of flags that has not been told yet."""
MISMATCH = -2
"""Ranks were told different things."""

# What a GRANT is to a sender, in the order of `fsm.rules.GrantKind`.
NEXT, REPLAY, GAP = range(3)

# What a request's poll comes to. The order of the codes is not a priority; `verdict` decides that.
IDLE, FAIL, REGISTERED, CHUNK, COMPLETE, WANTS_BLOCKS = range(6)

# States as small numbers, in the order of `fsm.states.State`.
BOOTSTRAPPING, WAITING, TRANSFERRING, RESUMING, SUCCESS, FAILED = range(6)


def progress(ops: Ops, word_tokens: Number, landed_tokens: Number, landed_required: Number) -> Number:
    """R1: the tokens that count as received: the sender's word, and no further than the own completion.

    ``landed_required`` is true for transports whose send completion does not prove arrival. Nothing here
    looks into a buffer, and that is the point.
    """
    return ops.where(landed_required, ops.minimum(word_tokens, landed_tokens), word_tokens)


def committed_after(ops: Ops, start: Number, capacity: Number, total: Number) -> Number:
    """R3: the one watermark that may close a grant of ``capacity`` tokens from ``start``."""
    return ops.minimum(start + capacity, total)


def grant_kind(ops: Ops, seq: Number, executed_seq: Number, parked_seq: Number) -> Number:
    """R3: what a GRANT is to a sender: the next one, one that was taken before, or one after a gap.

    ``executed_seq`` is the last one that was executed, ``parked_seq`` the one that waits to be; ``UNKNOWN``
    where there is none.
    """
    taken = (seq <= executed_seq) | ((seq == parked_seq) & (parked_seq > UNKNOWN))
    follows = (seq == executed_seq + 1) & (parked_seq == UNKNOWN)
    return ops.where(taken, REPLAY, ops.where(follows, NEXT, GAP))


def grant_fits(capacity: Number, blocks: Number, block_tokens: Number) -> Number:
    """R3: whether the blocks of a grant can hold what it asks for, and it asks for anything."""
    return (capacity > 0) & (capacity <= blocks * block_tokens)


def may_close(landed_required: Number, landed_seq: Number, seq: Number) -> Number:
    """R1, R3: whether the STATUS of a grant closes it already, or the own completion is still awaited."""
    return (landed_seq >= seq) | (landed_required == False)  # noqa: E712 - `not` asks for one answer


def proof_counts(boot_id: Number, peer_boot_id: Number) -> Number:
    """R5: whether the ABORT_ACK of a process is a proof: that of the process that was granted to is. A request
    that was never registered (``peer_boot_id`` 0) granted nothing, and takes anybody's."""
    return (boot_id == peer_boot_id) | (peer_boot_id == 0)


def may_release(two_sided: Number, executed_seq: Number, held_seq: Number, landed_seq: Number) -> Number:
    """R5: whether blocks may leave quarantine once the ABORT was acknowledged. Where writes end in a receive of
    one's own, one that was executed must have landed besides."""
    under_way = (executed_seq >= held_seq) & (held_seq > landed_seq)
    return (under_way == False) | (two_sided == False)  # noqa: E712 - `not` asks for one answer


def resume_due(committed: Number, last_resume_at: Number, total: Number) -> Number:
    """R2: a continuation is due for a watermark that was reached, not finished, and not yet acted on."""
    return (last_resume_at < committed) & (committed < total)


def blocks_needed(tokens: Number, block_tokens: Number) -> Number:
    """Blocks that hold ``tokens`` tokens; a grant starts at the first token of its first block (R10)."""
    return (tokens + block_tokens - 1) // block_tokens


def blocks_wanted(ops: Ops, tokens: Number, block_tokens: Number, grant_blocks_max: Number) -> Number:
    """R6: what to ask for: enough for ``tokens``, never more than the limit of one grant (0 = no limit)."""
    return within_limit(ops, blocks_needed(tokens, block_tokens), grant_blocks_max)


def within_limit(ops: Ops, needed_blocks: Number, grant_blocks_max: Number) -> Number:
    """R6: what is needed, never more than one grant may take (0 = no limit)."""
    return ops.where(grant_blocks_max > 0, ops.minimum(needed_blocks, grant_blocks_max), needed_blocks)


def blocks_for_early_grant(ops: Ops, available: Number) -> Number:
    """R6: an early grant leaves at least one landing block free, so that staged payload finds one."""
    return ops.maximum(available - 1, 0)


def result_needed(ops: Ops, total: Number, limit: Number) -> Number:
    """R6: the free result memory, in tokens, that a first grant asks for: the whole total, once it is known.

    An early grant takes ``limit``, the longest request there may be, and leaves as much again: else the
    memory is held by requests that wait to be staged, while what is staged, and holds the source pool, waits
    for memory.
    """
    return ops.where(total > UNKNOWN, total, limit + limit)


def grant_capacity(ops: Ops, tokens: Number, blocks: Number, block_tokens: Number) -> Number:
    """Tokens that a grant of ``blocks`` blocks may carry when ``tokens`` are wanted."""
    return ops.minimum(tokens, blocks * block_tokens)


def wants_blocks(
    state: Number, next_seq: Number, total: Number, early_tokens: Number, due: Number
) -> Number:
    """R2, R6: whether a request asks for blocks: for its first grant, once it knows how much or may ask early;
    for a continuation, while one is ``due``."""
    first = (state == WAITING) & (next_seq == 0) & ((total > 0) | (early_tokens > 0))
    return first | ((state == TRANSFERRING) & due)


def better_later(delivered: Number, handled: Number, available: Number, wanted: Number) -> Number:
    """R6: whether a request does better to wait: its own blocks are about to come back, and a larger grant then
    beats a smaller one now."""
    return (delivered < handled) & (available < wanted)


def fold_known(ops: Ops, lowest_known: Number, highest_known: Number, all_known: Number) -> Number:
    """R7: a value that must be equal on all ranks that know it; unknown is not a mismatch.

    ``lowest_known`` and ``highest_known`` range over the ranks that know a value (``highest_known`` is
    ``UNKNOWN`` where none does). Returns the value, ``UNKNOWN`` while a rank does not know it, or
    ``MISMATCH``.
    """
    differ = (highest_known > UNKNOWN) & (lowest_known != highest_known)
    return ops.where(differ, MISMATCH, ops.where(all_known, highest_known, UNKNOWN))


def verdict(
    ops: Ops,
    state: Number,
    known: Number,
    registered: Number,
    failure: Number,
    total: Number,
    committed: Number,
    handled: Number,
    delivered: Number,
    wants_blocks: Number,
) -> Number:
    """R7: what one tick decides for a request, from agreed observations only.

    ``state`` is a state number; ``known`` says that every rank has the request; ``failure`` is the largest
    failure code that any rank observed (0 = none); ``committed`` the smallest progress, ``handled`` the
    watermark up to which chunks were taken, ``delivered`` the smallest count of tokens copied out. A
    failure does not wait for ranks that do not know the request; everything else does.
    """
    live = state < SUCCESS
    chunk = (committed > handled) & (state > BOOTSTRAPPING)
    complete = (total > UNKNOWN) & (delivered == total) & (state > BOOTSTRAPPING)
    step = ops.where(wants_blocks & (state > BOOTSTRAPPING), WANTS_BLOCKS, IDLE)
    step = ops.where(chunk, CHUNK, step)
    step = ops.where(complete, COMPLETE, step)
    step = ops.where((state == BOOTSTRAPPING) & registered, REGISTERED, step)
    step = ops.where(known, step, IDLE)
    step = ops.where((failure > 0) | (total == MISMATCH), FAIL, step)
    return ops.where(live, step, IDLE)


def expired(now_s: Number, since_s: Number, limit_s: Number) -> Number:
    """R9: a deadline counted from the last progress has passed.

    Written as the sum that timers are set to, so that the two never differ by a rounding.
    """
    return now_s >= since_s + limit_s
