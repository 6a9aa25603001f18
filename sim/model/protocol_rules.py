"""The rules of the protocol as the model consults them: the entries of :class:`fsm.rules.Rules`, over numbers.

Each field bears the name of the rule that it stands for, and its default calls the very function of
:mod:`fsm.kernel` that the rule of production calls. A wrong version replaces entries, as in the zoo. A test holds
both against each other.

A rule gets the room (or lane) as a ``Part`` and what the action leaves open as a ``Choice``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fsm import kernel
from fsm.kernel import Number, Ops
from fsm.lifecycle import RECEIVER_TABLE
from fsm.table import Table
from sim.model.protocol_parts import Choice, Part


def word_progress(ops: Ops, room: Part, landed_required: Number, choice: Choice) -> Number:
    """R1: the sender's word, capped by the own completion where the transport needs it."""
    return kernel.progress(ops, room.word, room.landed, landed_required)


def min_progress(ops: Ops, own: Number, others: Number) -> Number:
    """R7: what every rank has."""
    return ops.minimum(own, others)


def watermark_detector(ops: Ops, room: Part) -> Number:
    """R2: once per watermark."""
    return kernel.resume_due(room.handled, room.last_resume, room.total)


def exact_start(ops: Ops, start: Number, block_tokens: Number) -> Number:
    """R10: aligned or not, no rounding; of a resume on the receiver, of the payload on the sender."""
    return start


def data_first(ops: Ops, room: Part) -> Number:
    """R6: requests that hold data go before new ones."""
    return ops.where(room.handled > 0, 0, 1)


def what_there_is(ops: Ops, wanted: Number, available: Number) -> Number:
    """R6: a grant of any size from one block up."""
    return ops.minimum(wanted, available)


def agreed_blocks(ops: Ops, agreed: Number, own: Number) -> Number:
    """R7: every rank grants out of the smallest free count."""
    return agreed


def status_must_match(ops: Ops, tokens: Number, start: Number, capacity: Number, total: Number) -> Number:
    """R3: one STATUS closes one grant and commits exactly what fits it."""
    return tokens == kernel.committed_after(ops, start, capacity, total)


def start_must_match(ops: Ops, start: Number, committed: Number) -> Number:
    """R3: a grant is executed only from what has been committed for that rank."""
    return start == committed


def own_commit(ops: Ops, own: Number, last: Number) -> Number:
    """R3: a STATUS tells a rank what was committed for that rank."""
    return own


def followed() -> bool:
    """A rule that is either followed or not, followed."""
    return True


def never() -> bool:
    """Something that the protocol does not do."""
    return False


@dataclass(frozen=True)
class ModelRules:
    """The rules in force. The defaults are the protocol."""

    table: Table = RECEIVER_TABLE
    progress: Callable[[Ops, Part, Number, Choice], Number] = word_progress
    fold_progress: Callable[[Ops, Number, Number], Number] = min_progress
    detect: Callable[[Ops, Part], Number] = watermark_detector
    resume_start: Callable[[Ops, Number, Number], Number] = exact_start
    order: Callable[[Ops, Part], Number] = data_first
    wanted: Callable[[Ops, Number, Number], Number] = kernel.within_limit
    take: Callable[[Ops, Number, Number], Number] = what_there_is
    early_available: Callable[[Ops, Number], Number] = kernel.blocks_for_early_grant
    equal_capacity: Callable[[Ops, Number, Number], Number] = agreed_blocks
    copy_when_landed: Callable[[], bool] = followed
    settle: Callable[[], bool] = followed
    """Whether a grant that will not land goes to quarantine; else it is freed."""
    starved: Callable[[], bool] = never
    """Whether a request that waits frees its old blocks again."""
    unmatched: Callable[[], bool] = never
    """Whether a STATUS for a request that has ended makes it anew."""
    status_exact: Callable[[Ops, Number, Number, Number, Number], Number] = status_must_match
    grant_kind: Callable[[Ops, Number, Number, Number], Number] = kernel.grant_kind
    start_check: Callable[[Ops, Number, Number], Number] = start_must_match
    lanes_served: Callable[[], bool] = never
    """Whether one rank's grant is executed for the other ranks too."""
    commit_said: Callable[[Ops, Number, Number], Number] = own_commit
    source_start: Callable[[Ops, Number, Number], Number] = exact_start
    proof_counts: Callable[[Number, Number], Number] = kernel.proof_counts
    deadlines: Callable[[], bool] = followed
    unknown_room_answered: Callable[[], bool] = followed
    boot_change_fences: Callable[[], bool] = followed


PROTOCOL_RULES = ModelRules()
"""The protocol as it is meant to be."""
