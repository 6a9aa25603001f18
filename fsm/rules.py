"""The small named rules at which historical code went wrong, each in its right form.

Receiver, sender and ledger consult these and nothing else at the places where fourteen shipped versions
differed. The simulator's zoo replaces single entries by the wrong versions; everything else stays the code
that production runs. A rule is a plain function, so a replacement is a plain function too, and two
replacements of different rules combine by naming both.

A rule never decides from wall-clock time or from a buffer's content; the wrong versions do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from fsm import kernel
from fsm.kernel import INT
from fsm.lifecycle import RECEIVER_TABLE
from fsm.messages import BlockRef, Grant
from fsm.table import Table

if TYPE_CHECKING:
    from fsm.blocks import BlockLedger, Owner
    from fsm.receiver import Receiver
    from fsm.receiver_facts import FactKeeper
    from fsm.receiver_room import ReceiverRoom
    from fsm.sender import Sender
    from fsm.sender_room import Lane, SenderRoom

Headers = Callable[[int], int]
"""Block number -> word 0 of its aux header. Only wrong rules ever call it (R1)."""


class GrantKind(IntEnum):
    """R3: what a GRANT is to a sender that has executed ``seq`` last."""

    NEXT = kernel.NEXT
    REPLAY = kernel.REPLAY
    GAP = kernel.GAP


# --- receiver -------------------------------------------------------------------------------------------


def word_progress(room: ReceiverRoom, block_tokens: int, landed_required: bool, headers: Headers) -> int:
    """R1: the sender's word, capped by the own completion where the transport needs it."""
    tokens: int = kernel.progress(INT, room.word_tokens, room.landed_tokens, landed_required)
    return tokens


def min_progress(tokens: Sequence[int]) -> int:
    """R7: what every rank has."""
    return min(tokens)


def watermark_detector(room: ReceiverRoom) -> bool:
    """R2: once per watermark."""
    due: bool = kernel.resume_due(room.handled_tokens, room.last_resume_at, room.total_tokens)
    return due


def remember_watermark(room: ReceiverRoom, before: tuple[BlockRef, ...], after: tuple[BlockRef, ...]) -> None:
    """R2: note the watermark that is being resumed; the block lists say nothing and are not kept."""
    room.last_resume_at = room.handled_tokens


def exact_start(committed_tokens: int, block_tokens: int) -> int:
    """R10: a resume starts at the committed token, aligned or not."""
    return committed_tokens


def data_first(room: ReceiverRoom) -> tuple[int, int]:
    """R6: requests that hold data go before new ones, oldest first."""
    return (0 if room.handled_tokens > 0 else 1, room.epoch.counter)


def up_to_limit(needed_blocks: int, grant_blocks_max: int) -> int:
    """R6: what is needed, never more than one grant may take."""
    blocks: int = kernel.within_limit(INT, needed_blocks, grant_blocks_max)
    return blocks


def what_there_is(wanted_blocks: int, available_blocks: int) -> int:
    """R6: a grant of any size from one block up."""
    return min(wanted_blocks, available_blocks)


def leave_one(available_blocks: int) -> int:
    """R6: an early grant leaves at least one landing block free."""
    left: int = kernel.blocks_for_early_grant(INT, available_blocks)
    return left


def agreed_blocks(agreed_free: int, own_free: int) -> int:
    """R7: every rank grants out of the smallest free count, so all grants have the same capacity."""
    return agreed_free


def copy_at_once(room: ReceiverRoom) -> bool:
    """R6: copy out and free first, then queue: a request that waits for blocks holds none."""
    return True


def free_blocks(ledger: BlockLedger, room: ReceiverRoom, owner: Owner, refs: tuple[BlockRef, ...]) -> None:
    """R5: read blocks go back once."""
    ledger.free(owner, refs)


def wait_quietly(receiver: Receiver, room: ReceiverRoom) -> None:
    """R6: a request that got no blocks this tick does nothing."""


def quarantine_until_proof(ledger: BlockLedger, owner: Owner, refs: tuple[BlockRef, ...]) -> bool:
    """R5: a grant that will not land is quarantined. Returns whether a proof must be awaited."""
    ledger.quarantine(owner, refs)
    return True


def read_landed(ledger: BlockLedger, owner: Owner, refs: tuple[BlockRef, ...]) -> None:
    """R5: only blocks that have landed may be read."""
    ledger.read(owner, refs)


def claim_nothing(room: ReceiverRoom, agreed_tokens: int) -> None:
    """R1: a grant that is open has not landed, whatever anybody reads in its blocks."""


def refuse_unmatched(receiver: FactKeeper, message: Any, now_s: float) -> None:
    """R8: a message for a room that does not exist, or for another epoch, makes nothing."""


def status_must_match(grant: Grant, committed_tokens: int, total_tokens: int) -> bool:
    """R3: one STATUS closes one grant and commits exactly what fits it."""
    exact: bool = committed_tokens == kernel.committed_after(INT, grant.start, grant.capacity, total_tokens)
    return exact


def clear_headers() -> bool:
    """R4: headers are cleared on free and on alloc."""
    return True


# --- sender ---------------------------------------------------------------------------------------------


def by_seq(lane: Lane, grant: Grant) -> GrantKind:
    """R3: the next seq is executed, one that was executed is answered again, a gap is refused."""
    parked_seq = kernel.UNKNOWN if lane.parked is None else lane.parked.seq
    return GrantKind(kernel.grant_kind(INT, grant.seq, lane.seq, parked_seq))


def start_must_match(lane: Lane, grant: Grant) -> bool:
    """R3: a grant is executed only from what has been committed for that rank."""
    return grant.start == lane.committed_tokens


def asked_lane_only(sender: Sender, room: SenderRoom, lane: Lane, grant: Grant) -> list[tuple[Lane, Grant]]:
    """R3: a grant of one rank is executed for that rank."""
    return [(lane, grant)]


def own_commit(room: SenderRoom, lane: Lane) -> int:
    """R3: a STATUS tells a rank what was committed for that rank."""
    return lane.committed_tokens


def same_start(start: int, block_tokens: int) -> int:
    """R10: the sender reads its payload from the token that was asked for."""
    return start


def forget_grant(lane: Lane, grant: Grant) -> None:
    """A grant that was executed leaves nothing behind but its STATUS."""


# --- both -----------------------------------------------------------------------------------------------


def yes() -> bool:
    """A rule that is either followed or not, followed."""
    return True


def token_major(block_tokens: int, filled_tokens: int, offset: int, axis: int) -> int:
    """R10: where a writer that fills ``filled_tokens`` of a block puts one of a token's three positions."""
    return offset * 3 + axis


def token_major_read(block_tokens: int, filled_tokens: int, offset: int, axis: int) -> int:
    """R10: where the reader looks for it."""
    return offset * 3 + axis


@dataclass(frozen=True)
class Rules:
    """The rules in force. The defaults are the protocol; ``docs/zoo.md`` lists who replaces which."""

    table: Table = RECEIVER_TABLE
    progress: Callable[[ReceiverRoom, int, bool, Headers], int] = word_progress
    fold_progress: Callable[[Sequence[int]], int] = min_progress
    detect: Callable[[ReceiverRoom], bool] = watermark_detector
    remember: Callable[[ReceiverRoom, tuple[BlockRef, ...], tuple[BlockRef, ...]], None] = remember_watermark
    resume_start: Callable[[int, int], int] = exact_start
    order: Callable[[ReceiverRoom], tuple[int, int]] = data_first
    wanted: Callable[[int, int], int] = up_to_limit
    take: Callable[[int, int], int] = what_there_is
    early_available: Callable[[int], int] = leave_one
    equal_capacity: Callable[[int, int], int] = agreed_blocks
    copy_when_landed: Callable[[ReceiverRoom], bool] = copy_at_once
    free: Callable[[BlockLedger, ReceiverRoom, Owner, tuple[BlockRef, ...]], None] = free_blocks
    starved: Callable[[Receiver, ReceiverRoom], None] = wait_quietly
    settle: Callable[[BlockLedger, Owner, tuple[BlockRef, ...]], bool] = quarantine_until_proof
    read_guard: Callable[[BlockLedger, Owner, tuple[BlockRef, ...]], None] = read_landed
    claim: Callable[[ReceiverRoom, int], None] = claim_nothing
    unmatched: Callable[[FactKeeper, Any, float], None] = refuse_unmatched
    status_exact: Callable[[Grant, int, int], bool] = status_must_match
    header_clearing: Callable[[], bool] = clear_headers
    grant_kind: Callable[[Lane, Grant], GrantKind] = by_seq
    start_check: Callable[[Lane, Grant], bool] = start_must_match
    lanes_served: Callable[[Sender, SenderRoom, Lane, Grant], list[tuple[Lane, Grant]]] = asked_lane_only
    commit_said: Callable[[SenderRoom, Lane], int] = own_commit
    source_start: Callable[[int, int], int] = same_start
    executed: Callable[[Lane, Grant], None] = forget_grant
    deadlines: Callable[[], bool] = yes
    unknown_room_answered: Callable[[], bool] = yes
    boot_change_fences: Callable[[], bool] = yes
    position_written: Callable[[int, int, int, int], int] = token_major
    position_read: Callable[[int, int, int, int], int] = token_major_read


PROTOCOL = Rules()
"""The protocol as it is meant to be."""
