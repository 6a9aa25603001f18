"""The zoo as the model holds it: each variant as replaced rules of the model, and those that it does not hold.

A replacement bears the name of the rule that the variant of :mod:`sim.zoo` replaces, and says the same over
numbers. What a historical version kept on the side is told from what the model has: that a flag went up, from the
seq; that two block lists are equal, from a field that the adversary sets. What it read out of memory (a buffer's
header) may be anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fsm.errors import LocalError
from fsm.kernel import NEXT, Number, Ops
from fsm.lifecycle import RECEIVER_FIVE_STATE_TABLE
from sim import zoo
from sim.model.form import negate
from sim.model.protocol_parts import Choice, Part
from sim.model.protocol_rules import PROTOCOL_RULES, ModelRules, followed, never, word_progress

FIVE = {"table": RECEIVER_FIVE_STATE_TABLE}


@dataclass(frozen=True)
class ModelVariant:
    """One version. ``breaks`` is the condition that it is known to break (empty: all hold); it may break others on the
    way. ``not_held`` says why the model cannot show it."""

    name: str
    breaks: str = ""
    replaces: dict[str, Any] = field(default_factory=dict)
    not_held: str = ""

    def rules(self) -> ModelRules:
        """The protocol with these rules replaced."""
        return replace(PROTOCOL_RULES, **self.replaces)


# --- detectors -------------------------------------------------------------------------------------------


def _unfinished(ops: Ops, room: Part) -> Number:
    return (room.total < 0) | (room.handled < room.total)


def detect_always(ops: Ops, room: Part) -> Number:
    """``none``, ``generation``: the counter that each resume raises differs from the one processed last for ever."""
    return _unfinished(ops, room)


def detect_first(ops: Ops, room: Part) -> Number:
    """``flag``, ``indices-after``: once, ever. The list on record is that of the last allocation from the first resume
    on."""
    return _unfinished(ops, room) & (room.next_seq < 2)


def detect_list_changed(ops: Ops, room: Part) -> Number:
    """``indices-before``: the list held before the last resume differs from the one that it got."""
    return _unfinished(ops, room) & negate((room.next_seq >= 2) & (room.same_list == 1))


def progress_by_length(ops: Ops, room: Part, landed_required: Number, choice: Choice) -> Number:
    """``sent-accumulate``: previous + length, as a header says that may say anything."""
    length = ops.minimum(room.g_cap, choice.header)
    said = word_progress(ops, room, landed_required, choice)
    early = ops.where(room.next_seq <= 1, said, room.handled)
    return ops.where((room.open == 1) & (room.next_seq > 1) & (room.state == 2), room.handled + length, early)


def progress_cached(ops: Ops, room: Part, landed_required: Number, choice: Choice) -> Number:
    """``sent-cached``: the count of the first chunk, for ever."""
    said = word_progress(ops, room, landed_required, choice)
    return ops.where((room.next_seq <= 1) | (room.word == room.total), said, room.handled)


# --- hazards ---------------------------------------------------------------------------------------------


def max_progress(ops: Ops, own: Number, others: Number) -> Number:
    """``max-progress``: what any rank has."""
    return ops.maximum(own, others)


def everything(ops: Ops, needed: Number, limit: Number) -> Number:
    """``all-or-nothing``: the whole remainder."""
    return needed


def all_or_none(ops: Ops, wanted: Number, available: Number) -> Number:
    """``all-or-nothing``: nothing less will do."""
    return ops.where(available >= wanted, wanted, 0)


def any_start(ops: Ops, start: Number, committed: Number) -> bool:
    """The sender's start check, switched off."""
    return True


def always_next(ops: Ops, seq: Number, executed: Number, parked: Number) -> int:
    """``no-grant-seq``: a grant is a grant."""
    return NEXT


def floor_source(ops: Ops, start: Number, block_tokens: Number) -> Number:
    """``floor-start``: whole blocks only."""
    return start // block_tokens * block_tokens


def last_lane_commit(ops: Ops, own: Number, last: Number) -> Number:
    """``last-destination-verdict``: what the last destination has is told to all."""
    return ops.maximum(own, last)


def own_blocks(ops: Ops, agreed: Number, own: Number) -> Number:
    """Equal capacity on all ranks, switched off."""
    return own


def any_status(ops: Ops, tokens: Number, start: Number, capacity: Number, total: Number) -> Number:
    """The receiver's check of a STATUS against its grant, switched off (but that it may say more than there is)."""
    return tokens <= total


def newcomers_first(ops: Ops, room: Part) -> Number:
    """``admission-first``: new requests before those that hold data."""
    return ops.where(room.handled > 0, 1, 0)


def keep_none(ops: Ops, free: Number) -> Number:
    """``no-reserve``: early grants may take the last block."""
    return free


MODEL_VARIANTS: dict[str, ModelVariant] = {
    variant.name: variant
    for variant in (
        ModelVariant("watermark"),
        ModelVariant("watermark-five", "", FIVE),
        ModelVariant("none", "starts grow", {**FIVE, "detect": detect_always}),
        ModelVariant("flag", "a due resume is granted", {**FIVE, "detect": detect_first}),
        ModelVariant("indices-after", "a due resume is granted", {**FIVE, "detect": detect_first}),
        ModelVariant("indices-before", "starts grow", {**FIVE, "detect": detect_list_changed}),
        ModelVariant("generation", "starts grow", {**FIVE, "detect": detect_always}),
        ModelVariant(
            "sent-accumulate",
            "watermark behind bytes",
            {**FIVE, "progress": progress_by_length, "start_check": any_start},
        ),
        ModelVariant("sent-cached", "a chunk is taken", {**FIVE, "progress": progress_cached}),
        ModelVariant("free-then-alloc", "nothing is refused", {"starved": followed}),
        ModelVariant("alloc-before-free", "a wait holds nothing", {"copy_when_landed": never}),
        ModelVariant("all-or-nothing", "a due resume is granted", {"wanted": everything, "take": all_or_none}),
        ModelVariant(
            "max-progress", "watermark behind bytes", {"fold_progress": max_progress, "start_check": any_start}
        ),
        ModelVariant("first-rank-triggers", "writes are open", {"lanes_served": followed}),
        ModelVariant("no-grant-seq", "the parked grant", {"grant_kind": always_next, "start_check": any_start}),
        ModelVariant("free-without-quiescence", "writes are open", {"settle": never}),
        ModelVariant("late-status", "ended stays ended", {"unmatched": followed}),
        ModelVariant("floor-start", "the right source", {"source_start": floor_source}),
        ModelVariant(
            "plane-major-mrope",
            not_held="where a token's positions lie inside a block is layout; the model counts tokens and blocks",
        ),
        ModelVariant(
            "stale-header",
            not_held="the model has no headers, for no rule reads one; alone this mistake is harmless, and has to hold",
        ),
        ModelVariant(
            "silent-unknown-room",
            "a dead peer has a way out",
            {"deadlines": never, "unknown_room_answered": never, "boot_change_fences": never},
        ),
        ModelVariant(
            "last-destination-verdict",
            "a STATUS is true",
            {"commit_said": last_lane_commit, "equal_capacity": own_blocks, "status_exact": any_status},
        ),
        ModelVariant("admission-first", "data first", {"order": newcomers_first}),
        ModelVariant("no-reserve", "early leaves one", {"early_available": keep_none}),
    )
}
"""Every variant of the zoo, by name, in its order."""


def variant_named(name: str) -> ModelVariant:
    """A variant of the zoo. Raises LocalError for a name that it does not know."""
    if name not in MODEL_VARIANTS:
        raise LocalError(f"there is no variant '{name}'; there are {', '.join((*zoo.DETECTORS, *zoo.HAZARDS))}")
    return MODEL_VARIANTS[name]
