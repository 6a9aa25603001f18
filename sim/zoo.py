"""The zoo: every version of the protocol that was shipped or written down, each as a few replaced rules.

A *detector* is a way to tell "please act" from "please wait" when both are called Transferring; detectors run on the
historical five-state table, where they are asked at every poll. A *hazard* is one mistake made elsewhere; hazards run
on the six-state table and combine with each other. Both are replacements of single rules of ``fsm.rules.Rules``;
everything else is the code that production runs.

The protocol has several lines of defence, so a variant also switches off, by name, every rule that would hide its
mistake: that is what ``off`` says. A tool that cannot tell these versions apart proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from fsm.blocks import BlockLedger, Owner
from fsm.effects import Moved
from fsm.errors import LocalError
from fsm.lifecycle import RECEIVER_FIVE_STATE_TABLE
from fsm.messages import BlockRef, Epoch, Grant, Status
from fsm.receiver_room import Chunk, ReceiverRoom
from fsm.rules import PROTOCOL, GrantKind, Headers, Rules
from fsm.sender_room import Lane, SenderRoom
from fsm.states import State
from sim.scenario import Scenario, load_scenario

SCENARIOS = Path(__file__).parent / "scenarios"
"""Where the built-in scenarios lie."""

FIVE = RECEIVER_FIVE_STATE_TABLE


@dataclass(frozen=True)
class Variant:
    """One version. ``replaces`` maps names of rules to wrong ones; ``expected`` are the properties that it must break
    in its scenario, in any order (none: it must hold)."""

    name: str
    kind: str
    mistake: str
    shows_with: str
    expected: tuple[str, ...]
    replaces: dict[str, Any]
    off: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    """Names of the built-in scenarios that show it, one for each expected property; the variant's name if left out."""
    hidden: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For an expected property: the allocators under which it does not show in that scenario, and must not."""

    def shows(self) -> tuple[tuple[str, str], ...]:
        """(scenario, property) pairs; the property is empty where it must hold."""
        names = self.scenarios or (self.name,)
        return tuple(zip(names, self.expected or ("",) * len(names), strict=True))


# --- detectors ------------------------------------------------------------------------------------------


def _unfinished(room: ReceiverRoom) -> bool:
    return room.total_tokens < 0 or room.handled_tokens < room.total_tokens


def detect_always(room: ReceiverRoom) -> bool:
    """``none``: every poll that says Transferring is acted upon."""
    return _unfinished(room)


def detect_flag(room: ReceiverRoom) -> bool:
    """``flag``: once, ever."""
    return _unfinished(room) and room.notes is None


def _blocks_of(room: ReceiverRoom) -> tuple[BlockRef, ...]:
    """The block list of a request, as a poll sees it: that of the grant that is out, or of what landed last."""
    if room.grant is not None:
        return room.grant.blocks
    held = room.notes[1] if isinstance(room.notes, tuple) else None
    return held if isinstance(held, tuple) else ()


def _same_list(some: tuple[BlockRef, ...] | None, others: tuple[BlockRef, ...]) -> bool:
    """Whether two lists name the same blocks in the same order; historical code had no generations to compare."""
    return some is not None and [ref.block for ref in some] == [ref.block for ref in others]


def remember_flag(room: ReceiverRoom, before: tuple[BlockRef, ...], after: tuple[BlockRef, ...]) -> None:
    """``flag``: raised at the first resume."""
    room.last_resume_at = room.handled_tokens
    if room.next_seq > 0:
        room.notes = True


def detect_blocks_changed(room: ReceiverRoom) -> bool:
    """``indices-*``: the block list differs from the one on record."""
    recorded = room.notes[0] if isinstance(room.notes, tuple) else None
    return _unfinished(room) and not _same_list(recorded, _blocks_of(room))


def remember_blocks_after(room: ReceiverRoom, before: tuple[BlockRef, ...], after: tuple[BlockRef, ...]) -> None:
    """``indices-after``: what the allocator gave is on record, from the first resume on."""
    room.last_resume_at = room.handled_tokens
    room.notes = (after if room.next_seq > 0 else None, after)


def remember_blocks_before(room: ReceiverRoom, before: tuple[BlockRef, ...], after: tuple[BlockRef, ...]) -> None:
    """``indices-before``: what the request held before the resume is on record."""
    held = _blocks_of(room)
    room.last_resume_at = room.handled_tokens
    room.notes = (held if room.next_seq > 0 else None, after)


def detect_generation(room: ReceiverRoom) -> bool:
    """``generation``: a counter, raised by each resume, differs from the one processed last."""
    raised, processed = room.notes if isinstance(room.notes, tuple) else (0, -1)
    return _unfinished(room) and raised != processed


def remember_generation(room: ReceiverRoom, before: tuple[BlockRef, ...], after: tuple[BlockRef, ...]) -> None:
    """``generation``: processed, and then raised, so that the very next poll finds them different again."""
    room.last_resume_at = room.handled_tokens
    if room.next_seq > 0:
        raised = room.notes[0] if isinstance(room.notes, tuple) else 0
        room.notes = (raised + 1, raised)


def progress_by_length(room: ReceiverRoom, block_tokens: int, landed_required: bool, headers: Headers) -> int:
    """``sent-accumulate``: previous + length, where the length is read from the header of the request's first block."""
    if room.grant is None or room.grant.seq == 0 or room.state != State.TRANSFERRING:
        return room.word_tokens if room.next_seq <= 1 else room.handled_tokens
    length = min(room.grant.capacity, headers(room.grant.blocks[0].block))
    return room.handled_tokens + length


def read_by_length(ledger: BlockLedger, owner: Owner, refs: tuple[BlockRef, ...]) -> None:
    """``sent-accumulate``: what the header calls there is read, landed or not."""
    for ref in refs:
        if ledger.record(ref.block).state == "Granted":
            ledger.land(owner, (ref,))
    ledger.read(owner, refs)


def progress_cached(room: ReceiverRoom, block_tokens: int, landed_required: bool, headers: Headers) -> int:
    """``sent-cached``: the count of the first chunk, for ever (until the sender itself says that all is done)."""
    if room.next_seq <= 1 or room.word_tokens == room.total_tokens:
        return room.word_tokens
    return room.handled_tokens


def claim_unlanded(room: ReceiverRoom, agreed_tokens: int) -> None:
    """``sent-accumulate``: the claimed length turns the grant that is out into a chunk that has landed."""
    grant = room.grant
    if grant is not None and grant.start < agreed_tokens:
        reached = agreed_tokens - grant.start
        room.chunks += (Chunk(grant.seq, grant.start, reached, grant.blocks, False),)
        room.landed_tokens = max(room.landed_tokens, agreed_tokens)
        room.grant = room.pending = None


# --- hazards --------------------------------------------------------------------------------------------


def free_and_remember(ledger: BlockLedger, room: ReceiverRoom, owner: Owner, refs: tuple[BlockRef, ...]) -> None:
    """``free-then-alloc``: the freed blocks stay listed as the request's own."""
    ledger.free(owner, refs)
    room.notes = (owner, refs)


def free_again(receiver: Any, room: ReceiverRoom) -> None:
    """``free-then-alloc``: the handler of the failed allocation frees the old blocks once more."""
    if isinstance(room.notes, tuple):
        owner, refs = room.notes
        receiver.ledger.free(owner, refs)


def copy_after_grant(room: ReceiverRoom) -> bool:
    """``alloc-before-free``: the old blocks are kept until new ones were given."""
    return False


def everything(needed_blocks: int, grant_blocks_max: int) -> int:
    """``all-or-nothing``: the whole remainder."""
    return needed_blocks


def all_or_none(wanted_blocks: int, available_blocks: int) -> int:
    """``all-or-nothing``: nothing less will do."""
    return wanted_blocks if available_blocks >= wanted_blocks else 0


def max_progress(tokens: Sequence[int]) -> int:
    """``max-progress``: what any rank has."""
    return max(tokens)


def any_start(lane: Lane, grant: Grant) -> bool:
    """The sender's start check, switched off."""
    return True


def all_lanes(sender: Any, room: SenderRoom, lane: Lane, grant: Grant) -> list[tuple[Lane, Grant]]:
    """``first-rank-triggers``: the first rank that asks is answered for all, at the addresses known of old."""
    served = [(lane, grant)]
    for other in room.lanes.values():
        if other is not lane and other.state == State.RESUMING and isinstance(other.notes, Grant):
            old = other.notes
            served.append(
                (other, msgspec.structs.replace(old, seq=grant.seq, start=grant.start, capacity=grant.capacity))
            )
    return served


def keep_grant(lane: Lane, grant: Grant) -> None:
    """``first-rank-triggers``: the addresses of the last grant are kept."""
    lane.notes = grant


def always_next(lane: Lane, grant: Grant) -> GrantKind:
    """``no-grant-seq``: a grant is a grant."""
    return GrantKind.NEXT


def free_at_once(ledger: BlockLedger, owner: Owner, refs: tuple[BlockRef, ...]) -> bool:
    """``free-without-quiescence``: nobody writes any more, surely."""
    ledger.unreached(owner, refs)
    return False


def revive(receiver: Any, message: Any, now_s: float) -> None:
    """``late-status``: a status re-creates the table entry that was cleared."""
    if not isinstance(message, Status):
        return
    receiver.tombstones.pop((message.room, message.epoch), None)
    room = ReceiverRoom(message.room, Epoch(*message.epoch), 0, now_s)
    room.state = State.TRANSFERRING
    room.registered, room.total_tokens, room.word_tokens = True, message.total_tokens, message.committed_tokens
    receiver.rooms.setdefault(message.room, room)
    receiver._out.append(
        Moved(receiver.config.rank, message.room, message.epoch, "status", State.SUCCESS, State.TRANSFERRING)
    )


def floor_source(start: int, block_tokens: int) -> int:
    """``floor-start``: whole blocks only."""
    return start // block_tokens * block_tokens


def plane_major_write(block_tokens: int, filled_tokens: int, offset: int, axis: int) -> int:
    """``plane-major-mrope``: the writer lays down three planes, each as long as what it fills."""
    return axis * filled_tokens + offset


def plane_major_read(block_tokens: int, filled_tokens: int, offset: int, axis: int) -> int:
    """``plane-major-mrope``: the reader expects three planes, each as long as a block."""
    return axis * block_tokens + offset


def no() -> bool:
    """A rule that is not followed."""
    return False


def last_lane_commit(room: SenderRoom, lane: Lane) -> int:
    """``last-destination-verdict``: what the last destination has is told to all."""
    last = max(room.lanes)
    return max(lane.committed_tokens, room.lanes[last].committed_tokens)


def any_status(grant: Grant, committed_tokens: int, total_tokens: int) -> bool:
    """The receiver's check of a STATUS against its grant, switched off."""
    return True


def own_blocks(agreed_free: int, own_free: int) -> int:
    """Equal capacity on all ranks, switched off."""
    return own_free


def newcomers_first(room: ReceiverRoom) -> tuple[int, int]:
    """``admission-first``: new requests before those that hold data."""
    return (1 if room.handled_tokens > 0 else 0, room.epoch.counter)


def keep_none(available_blocks: int) -> int:
    """``no-reserve``: early grants may take the last block."""
    return available_blocks


def _detector(
    name: str,
    mistake: str,
    shows: str,
    expected: tuple[str, ...],
    *,
    off: tuple[str, ...] = (),
    scenarios: tuple[str, ...] = (),
    hidden: dict[str, tuple[str, ...]] | None = None,
    **replaces: Any,
) -> Variant:
    rules = {"table": FIVE, **replaces}
    return Variant(name, "detector", mistake, shows, expected, rules, off, scenarios, hidden or {})


DETECTORS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            "watermark",
            "detector",
            "none: R1 and R2, on the six-state table",
            "everything",
            (),
            {},
            scenarios=("watermark",),
        ),
        _detector(
            "watermark-five",
            "none: R1 and R2 hold on the historical table too",
            "everything",
            (),
            scenarios=("watermark",),
        ),
        _detector(
            "none",
            "every poll that finds Transferring asks for more",
            "several grants",
            ("I6",),
            detect=detect_always,
            remember=remember_flag,
        ),
        _detector(
            "flag",
            "a flag goes up at the first resume and never comes down",
            "several grants",
            ("L1",),
            detect=detect_flag,
            remember=remember_flag,
        ),
        _detector(
            "indices-after",
            "waits while the block list is the one that the last allocation gave",
            "several grants, any reuse",
            ("L1",),
            detect=detect_blocks_changed,
            remember=remember_blocks_after,
        ),
        _detector(
            "indices-before",
            "waits while the block list is the one held before the last allocation",
            "disjoint blocks; the same again",
            ("I6", "L1"),
            detect=detect_blocks_changed,
            remember=remember_blocks_before,
            scenarios=("indices-before-disjoint", "indices-before-same"),
            hidden={"L1": ("lifo",)},
        ),
        _detector(
            "generation",
            "each resume raises a counter, and a counter that has risen calls for a resume",
            "several grants",
            ("I6",),
            detect=detect_generation,
            remember=remember_generation,
        ),
        _detector(
            "sent-accumulate",
            "adds up lengths that every poll reads from a buffer header",
            "header 0; another's old header",
            ("L1", "I2"),
            progress=progress_by_length,
            read_guard=read_by_length,
            claim=claim_unlanded,
            header_clearing=no,
            start_check=any_start,
            off=("R4 header clearing", "R3 the sender's start check", "R5 only landed blocks are read"),
            scenarios=("sent-accumulate-fresh", "sent-accumulate-stale"),
        ),
        _detector(
            "sent-cached", "believes for ever what it read once", "several grants", ("L1",), progress=progress_cached
        ),
    )
}
"""Detectors by name; all but ``watermark`` itself run on the five-state table."""


def _hazard(
    name: str,
    mistake: str,
    shows: str,
    expected: tuple[str, ...],
    *,
    off: tuple[str, ...] = (),
    scenarios: tuple[str, ...] = (),
    hidden: dict[str, tuple[str, ...]] | None = None,
    **replaces: Any,
) -> Variant:
    return Variant(name, "hazard", mistake, shows, expected, replaces, off, scenarios, hidden or {})


HAZARDS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _hazard(
            "free-then-alloc",
            "gives blocks back, gets none, and its error path gives them back again",
            "a refusal",
            ("I3",),
            free=free_and_remember,
            starved=free_again,
        ),
        _hazard(
            "alloc-before-free",
            "keeps what it has until it gets more",
            "the whole pool granted at once",
            ("L1",),
            copy_when_landed=copy_after_grant,
            hidden={"L1": ("stingy",)},
        ),
        _hazard(
            "all-or-nothing",
            "takes room for all that is missing, or none",
            "a pool smaller than the remainder",
            ("L1",),
            wanted=everything,
            take=all_or_none,
        ),
        _hazard(
            "max-progress",
            "ranks act on the progress of the fastest",
            "two ranks, one STATUS late",
            ("I2",),
            fold_progress=max_progress,
            start_check=any_start,
            off=("R3 the sender's start check",),
        ),
        _hazard(
            "first-rank-triggers",
            "one rank asks, and all are sent to",
            "two ranks, one GRANT late",
            ("I1",),
            lanes_served=all_lanes,
            executed=keep_grant,
        ),
        _hazard(
            "no-grant-seq",
            "a grant has no number, so a copy of it is carried out too",
            "one duplicate",
            ("I6", "I1"),
            grant_kind=always_next,
            start_check=any_start,
            off=("R3 the sender's start check",),
            scenarios=("no-grant-seq", "no-grant-seq"),
        ),
        _hazard(
            "free-without-quiescence",
            "an abort gives blocks back that are still being written",
            "one abort, two requests",
            ("I1",),
            settle=free_at_once,
        ),
        _hazard(
            "late-status",
            "a STATUS that comes late makes the room anew",
            "two requests on one room",
            ("I4",),
            unmatched=revive,
            off=("R8 the epoch check", "R8 the tombstone"),
        ),
        _hazard(
            "floor-start",
            "the sender rounds a start down to whole blocks",
            "a grant that is no multiple of the block",
            ("I2",),
            source_start=floor_source,
            hidden={"I2": ("stingy",)},
        ),
        _hazard(
            "plane-major-mrope",
            "a block keeps positions in three planes, as long as what was written",
            "a partly filled block",
            ("I2",),
            position_written=plane_major_write,
            position_read=plane_major_read,
        ),
        _hazard(
            "stale-header",
            "headers outlive their tenants; harmless alone, it feeds others",
            "with sent-accumulate only",
            (),
            header_clearing=no,
        ),
        _hazard(
            "silent-unknown-room",
            "what names an unknown room is dropped in silence, and nobody looks at a clock",
            "a sender restart",
            ("L1",),
            unknown_room_answered=no,
            deadlines=no,
            boot_change_fences=no,
            off=("R9 deadlines", "R8 the change of boot_id"),
        ),
        _hazard(
            "last-destination-verdict",
            "all ranks are told what the last one has",
            "two ranks, unequal pools",
            ("I2",),
            commit_said=last_lane_commit,
            equal_capacity=own_blocks,
            status_exact=any_status,
            off=("R7 equal capacity", "R3 the receiver's check of a STATUS"),
            hidden={"I2": ("stingy",)},
        ),
        _hazard(
            "admission-first",
            "admission runs first and takes what was just freed",
            "steady arrivals",
            ("L3",),
            order=newcomers_first,
        ),
        _hazard(
            "no-reserve",
            "a grant made ahead of the OFFER may take the last block",
            "early grants, a source pool of one request",
            ("L1",),
            early_available=keep_none,
            hidden={"L1": ("stingy",)},
        ),
    )
}
"""Hazards by name; combinable."""

FAMILIES = ("fifo", "lifo", "same-again", "disjoint", "stingy", "adversary")
"""The allocators under which every variant is run, where its scenario leaves the allocator open."""


def rules_for(detector: str, hazards: Sequence[str] = ()) -> Rules:
    """The protocol with a variant's rules replaced. Raises :class:`LocalError` for unknown names and for hazards
    that replace the same rule by different ones."""
    if detector not in DETECTORS:
        raise LocalError(f"there is no detector '{detector}'; there are {', '.join(DETECTORS)}")
    replaced: dict[str, tuple[str, Any]] = {}
    for rule, value in DETECTORS[detector].replaces.items():
        replaced[rule] = (detector, value)
    for name in hazards:
        if name not in HAZARDS:
            raise LocalError(f"there is no hazard '{name}'; there are {', '.join(HAZARDS)}")
        for rule, value in HAZARDS[name].replaces.items():
            if rule in replaced and replaced[rule][1] is not value:
                other = replaced[rule][0]
                raise LocalError(f"'{other}' and '{name}' replace the same rule '{rule}'; choose one of them")
            replaced[rule] = (name, value)
    return replace(PROTOCOL, **{rule: value for rule, (_, value) in replaced.items()})


def scenario_named(name: str) -> Scenario:
    """A built-in scenario by its own name. Raises :class:`LocalError` if there is none."""
    file = SCENARIOS / f"{name}.toml"
    if "/" in name or not file.is_file():
        raise LocalError(f"there is no built-in scenario '{name}'; there are {', '.join(scenario_names())}")
    return load_scenario(file, detectors=DETECTORS, hazards=HAZARDS)


def scenario_names() -> list[str]:
    """The built-in scenarios, by name."""
    return sorted(file.stem for file in SCENARIOS.glob("*.toml"))


def scenario_for(variant: str, property: str = "") -> Scenario:
    """The built-in scenario that shows a variant (and a given property of several), with the variant switched on."""
    known = DETECTORS.get(variant) or HAZARDS.get(variant)
    if known is None:
        raise LocalError(f"there is no variant '{variant}'; there are {', '.join((*DETECTORS, *HAZARDS))}")
    shows = known.shows()
    name = next((scenario for scenario, broken in shows if broken == property), shows[-1][0])
    return with_variant(scenario_named(name), known)


def with_variant(scenario: Scenario, variant: Variant) -> Scenario:
    """The scenario with that variant, and no other, switched on."""
    chosen = msgspec.structs.replace(
        scenario.variant,
        detector=variant.name if variant.kind == "detector" else "watermark",
        hazards=(variant.name,) if variant.kind == "hazard" else (),
    )
    return msgspec.structs.replace(scenario, variant=chosen)


def default_scenario() -> Scenario:
    """What a command runs when nothing is named: three grants to a request, two requests, a hostile allocator."""
    return scenario_named("watermark")
