"""The composed protocol as a model: receiver ranks, senders, the network, the allocator as an adversary, and faults.

The actions of one request on one rank are written once (:mod:`sim.model.protocol_receiver` and
:mod:`sim.model.protocol_sender`), and so are the clauses (:mod:`sim.model.protocol_clauses`). Here they are put
together, in two ways.

* :func:`symbolic`: one block, any one; two requests on its rank, any two; everybody else as one adversary. What an
  action leaves open (which message, how many blocks) stands in fields of its own, named ``in_...``: they have any
  value at any time. All sizes are symbols. What is proved of this composition holds for any number of requests,
  blocks, grants, messages and tokens, for each clause speaks of no more than two requests and one block.
* :func:`sim.model.protocol_bounded.bounded`: so many requests on so many ranks with so many blocks, every choice an
  action of its own: for exhaustive search. All ranks of a request take a step of the tick together, for all act on
  one observation (R7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import NamedTuple

from fsm import kernel
from fsm.kernel import UNKNOWN, Number, Ops
from fsm.lifecycle import BLOCK_TABLE
from sim.model import protocol_clauses as clauses
from sim.model import protocol_receiver as receiver
from sim.model import protocol_sender as sender
from sim.model.form import LARGE, Action, Clause, Field, Model, View
from sim.model.protocol_parts import FREE, NOBODY, NONE_SEQ, Choice, Part, Step, move_block
from sim.model.protocol_receiver import Place
from sim.model.protocol_rules import PROTOCOL_RULES, ModelRules

FLAG, STATE, SEQ, TOKENS, SIZE = "flag", "state", "seq", "tokens", "size"
BOOT, BLOCKS, TIMES = "boot", "blocks", "times"

GIVEN = {"size": SIZE, "token": TOKENS, "early": TOKENS, "o_seq": SEQ}
"""Fields of a request that are given once and never change."""

SETTINGS = {
    "block_tokens": SIZE,
    "grant_blocks_max": BLOCKS,
    "late": FLAG,
    "landed_required": FLAG,
    "two_sided": FLAG,
}
"""Fields of the whole composition that are given once. ``late``: bytes may land after the sender was told."""

ROOM_FIELDS: dict[str, tuple[str, int]] = {
    # the receiver's room and tombstone: kind, value at the start
    "state": (STATE, 0), "registered": (FLAG, 0), "peer_boot": (BOOT, 0), "total": (TOKENS, UNKNOWN),
    "word": (TOKENS, 0), "landed": (TOKENS, 0), "landed_seq": (SEQ, NONE_SEQ), "handled": (TOKENS, 0),
    "last_resume": (TOKENS, 0), "delivered": (TOKENS, 0), "next_seq": (SEQ, 0), "open": (FLAG, 0),
    "g_start": (TOKENS, 0), "g_cap": (TOKENS, 0), "g_blocks": (BLOCKS, 0), "closing": (FLAG, 0),
    "closing_tokens": (TOKENS, 0), "failure": (FLAG, 0), "peer_gone": (FLAG, 0), "leased": (FLAG, 0),
    "read_seq": (SEQ, NONE_SEQ), "held": (FLAG, 0), "acknowledged": (FLAG, 0), "executed_seq": (SEQ, NONE_SEQ),
    "others": (TOKENS, 0),
    # its chunks: the one that holds the token, and the sum of the rest
    "t_in": (FLAG, 0), "t_seq": (SEQ, NONE_SEQ), "t_chunk": (TOKENS, 0), "rest": (TOKENS, 0),
    "dropped": (TOKENS, 0),
    # the sender's lane
    "s_boot": (BOOT, 1), "l_state": (STATE, 0), "l_seq": (SEQ, NONE_SEQ), "l_committed": (TOKENS, 0),
    "staged": (FLAG, 0), "parked": (FLAG, 0), "p_seq": (SEQ, NONE_SEQ), "p_start": (TOKENS, 0),
    "p_cap": (TOKENS, 0), "writing": (FLAG, 0), "ack_owed": (FLAG, 0),
    # the network and the write
    "offered": (FLAG, 0), "done_seq": (SEQ, NONE_SEQ), "done_tokens": (TOKENS, 0), "done_said": (TOKENS, 0),
    "ack_sent": (FLAG, 0), "ack_seq": (SEQ, NONE_SEQ), "flight": (FLAG, 0), "f_boot": (BOOT, 0),
    "f_seq": (SEQ, NONE_SEQ), "f_start": (TOKENS, 0), "f_cap": (TOKENS, 0), "f_source": (TOKENS, 0),
    # history
    "x_seq": (SEQ, NONE_SEQ), "d_seq": (SEQ, NONE_SEQ), "arrived": (TOKENS, 0), "t_times": (TIMES, 0),
    "t_out": (TIMES, 0), "t_dropped": (FLAG, 0), "o_start": (TOKENS, 0), "ended": (STATE, 0), "l_ended": (STATE, 0),
    "twice": (FLAG, 0), "reported": (TOKENS, 0), "fell": (FLAG, 0), "refused": (FLAG, 0), "early_left": (BLOCKS, 1),
    "overtaken": (FLAG, 0), "same_list": (FLAG, 0),
}  # fmt: skip
"""Fields of one request on one rank."""

CLAIM_FIELDS: dict[str, tuple[str, int]] = {
    "g_has": (FLAG, 0), "g_index": (BLOCKS, 0), "g_gen": (TIMES, 0), "c_has": (FLAG, 0), "c_seq": (SEQ, NONE_SEQ),
    "c_gen": (TIMES, 0), "c_tokens": (TOKENS, 0), "p_has": (FLAG, 0), "p_gen": (TIMES, 0), "f_has": (FLAG, 0),
    "f_gen": (TIMES, 0), "n_has": (FLAG, 0), "n_seq": (SEQ, NONE_SEQ), "n_gen": (TIMES, 0),
}  # fmt: skip
"""What a request has on record of a block: of the latest grant, of a chunk, of the parked grant, of the write, and of
what was freed last."""

BLOCK_FIELDS: dict[str, tuple[str, int]] = {
    "state": (STATE, FREE), "owner": (BLOCKS, NOBODY), "seq": (SEQ, NONE_SEQ), "generation": (TIMES, 0),
    "listed": (TIMES, 1),
}  # fmt: skip
"""The ledger's record of a block. ``listed``: how often it stands in the free list."""

INPUTS = {
    "boot": BOOT, "seq": SEQ, "tokens": TOKENS, "start": TOKENS, "capacity": TOKENS, "blocks": BLOCKS,
    "last": TOKENS, "others_have": FLAG, "others_know": FLAG, "others_registered": FLAG, "others_delivered": TOKENS,
    "failure_seen": FLAG, "header": TOKENS, "free": BLOCKS, "own_free": BLOCKS, "result_fits": FLAG,
    "same_list": FLAG,
}  # fmt: skip
"""What actions leave open."""

BLOCK_INPUTS = {"has": FLAG, "index": BLOCKS, "generation": TIMES}
"""What they leave open for one block."""


class Inputs(Part):
    """What an action leaves open, as fields that may have any value."""

    __slots__ = ()

    def of(self, block: str) -> Part:
        """What is left open for one block."""
        return Part(self._step, f"in_{block}")


Guard = Callable[[Step, Place, Choice], Number]
Draft = Callable[[Step, Place, Choice], None]


class Entry(NamedTuple):
    """An action of one request. ``picks`` names what a bounded search has to choose."""

    name: str
    guard: Guard
    draft: Draft
    picks: tuple[str, ...] = ()
    fair: bool = True


class TickEntry(NamedTuple):
    """A step of the tick: its guard and draft get the folded observation as well. ``grants``: it takes blocks."""

    name: str
    guard: Callable[[Step, Place, Choice, receiver.Seen], Number]
    draft: Callable[[Step, Place, Choice, receiver.Seen], None]
    grants: bool = False


def _decides(what: int, step: Step, place: Place, choice: Choice, seen: receiver.Seen) -> Number:
    return receiver.plausible(step, place, choice) & (receiver.verdict(step, place, seen) == what)


TICK: tuple[TickEntry, ...] = (
    TickEntry("tick: registered", partial(_decides, kernel.REGISTERED), receiver.tick_registered),
    TickEntry("tick: take a chunk", partial(_decides, kernel.CHUNK), receiver.tick_chunk),
    TickEntry("tick: complete", partial(_decides, kernel.COMPLETE), receiver.tick_complete),
    TickEntry("tick: fail", partial(_decides, kernel.FAIL), receiver.tick_fail),
    TickEntry("tick: grant", receiver.can_grant, receiver.give_grant, grants=True),
)
"""What a tick decides for one request, on all its ranks together."""

ENTRIES: tuple[Entry, ...] = (
    Entry("receive REGISTER_ACK", receiver.can_register, receiver.register, ("boot",)),
    Entry("receive OFFER", receiver.can_learn_total, receiver.learn_total),
    Entry("receive STATUS", receiver.can_take_status, receiver.take_status, ("seq",)),
    Entry("receive a late STATUS", receiver.can_revive, receiver.revive, ("seq",)),
    Entry("own completion", receiver.can_notice_landing, receiver.notice_landing, ("seq",)),
    Entry("abort or NACK", receiver.can_abort, receiver.observe_failure, fair=False),
    Entry("a deadline passes", receiver.can_pass_deadline, receiver.observe_failure),
    Entry("a restart is seen", receiver.can_see_restart, receiver.observe_failure),
    Entry("an unknown room", receiver.can_hear_unknown, receiver.observe_failure),
    Entry("receive ABORT_ACK", receiver.can_take_ack, receiver.take_ack, ("boot",)),
    Entry("release", receiver.can_release, receiver.release),
    Entry("the process is gone", receiver.can_hear_gone, receiver.hear_gone),
    Entry("wait for blocks", receiver.can_starve, receiver.starve),
    Entry("a copy ends", receiver.can_end_copy, receiver.end_copy, ("seq", "tokens")),
    Entry("a copy fails", receiver.can_fail_copy, receiver.fail_copy, ("seq", "tokens"), fair=False),
    Entry("lease", receiver.can_lease, receiver.lease),
    Entry("receive REGISTER", sender.can_take_register, sender.take_register),
    Entry("stage", sender.can_stage, sender.stage),
    Entry("receive GRANT", sender.can_take_grant, sender.take_grant, ("seq",)),
    Entry("execute", sender.can_execute, sender.execute),
    Entry("another rank's GRANT", sender.can_serve_others, sender.serve_others),
    Entry("the sender fails", sender.can_fail_lane, sender.fail_lane, fair=False),
    Entry("receive ABORT", sender.can_take_abort, sender.take_abort),
    Entry("bytes land", sender.can_land, sender.land),
    Entry("a write vanishes", sender.can_vanish, sender.vanish),
    Entry("the write is done", sender.can_tell_sent, sender.tell_sent),
    Entry("a write breaks", sender.can_break_write, sender.break_write, fair=False),
    Entry("the sender crashes", sender.can_crash, sender.crash, fair=False),
)
"""Every other action of one request on one rank."""

OTHERS_LAND = Entry("the other ranks land", receiver.can_others_land, receiver.others_land)


def make_action(
    name: str, rules: ModelRules, guard: Callable[[Step], Number], draft: Callable[[Step], None], fair: bool
) -> Action:
    def update(ops: Ops, view: View) -> Mapping[str, Number]:
        step = Step(ops, view, rules)
        draft(step)
        return step.changes

    return Action(name, lambda ops, view: guard(Step(ops, view, rules)), update, fair)


# --- clauses ---------------------------------------------------------------------------------------------


def make_clauses(places: Sequence[Place], blocks: Sequence[str], rules: ModelRules) -> tuple[Clause, ...]:
    made: list[Clause] = []

    def add(name: str, property: str, text: str, says: Callable[[Step], Number]) -> None:
        made.append(Clause(name, text, lambda ops, view: says(Step(ops, view, rules)), property))

    for place in places:
        add(f"{place.room}: ranges", "", "Flags are 0 or 1, states are among the six.", partial(_in_range, place))
        for words in clauses.ROOM_CLAUSES:
            if words.holds is not clauses.the_others or place.folded:
                add(f"{place.room}: {words.name}", words.property, words.text, partial(_of_room, words, place))
        for block_words in clauses.BLOCK_CLAUSES:
            for name in place.blocks:
                title = f"{place.room}, {name}: {block_words.name}"
                add(title, block_words.property, block_words.text, partial(_of_block, block_words, place, name))
    for name in blocks:
        add(f"{name}: accounted for", "I3", "A block is free, without an owner and in the free list once, or not free, "
            "with one owner and not in the list.", partial(_rev, clauses.block_is_accounted_for, name))  # fmt: skip
    for one, other in combinations(places, 2):
        for name in one.blocks:
            if name in other.blocks:
                add(f"{one.room}, {other.room}, {name}: one owner", "I3", "No two requests have one block.",
                    partial(_of_pair, one, other, name))  # fmt: skip
    return tuple(made)


def _in_range(place: Place, step: Step) -> Number:
    room = step.part(place.room)
    inside: Number = room.state >= 0
    for name, (kind, _) in ROOM_FIELDS.items():
        if kind in (FLAG, STATE):
            inside = inside & _within(getattr(room, name), kind)
    for block in place.blocks:
        claim = step.claim(room, block)
        for name, (kind, _) in CLAIM_FIELDS.items():
            if kind == FLAG:
                inside = inside & _within(getattr(claim, name), kind)
        inside = inside & _within(step.part(block).state, STATE)
    return inside


def _within(value: Number, kind: str) -> Number:
    low, high = _RANGES[kind]
    return (value >= low) & (value <= high)


def _of_room(words: clauses.Words, place: Place, step: Step) -> Number:
    return words.holds(step, place)


def _of_block(words: clauses.Words, place: Place, name: str, step: Step) -> Number:
    return words.holds(step, place, name)


def _rev(says: Callable[[Step, str], Number], name: str, step: Step) -> Number:
    return says(step, name)


def _of_pair(one: Place, other: Place, name: str, step: Step) -> Number:
    return clauses.one_owner(step, one, other, name)


# --- the symbolic composition ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Symbolic:
    """The composition for a proof. ``given`` are the fields that never change, ``inputs`` those that may have any
    value in any state; all others start as ``model.initial`` says. ``places`` are the two requests."""

    model: Model
    given: tuple[str, ...]
    inputs: tuple[str, ...]
    places: tuple[Place, ...]
    rules: ModelRules


_RANGES = {
    FLAG: (0, 1),
    STATE: (0, 5),
    SEQ: (NONE_SEQ, LARGE),
    TOKENS: (UNKNOWN, LARGE),
    SIZE: (1, LARGE),
    BOOT: (0, LARGE),
    BLOCKS: (0, LARGE),
    TIMES: (0, LARGE),
}

SYMBOLIC_BLOCK = "x"
SYMBOLIC_ROOMS = ("a", "b")


def _symbolic_choice(step: Step) -> Inputs:
    return Inputs(step, "in")


def _symbolic_actions(place: Place, rules: ModelRules) -> Iterator[Action]:
    for entry in (*ENTRIES, OTHERS_LAND):
        yield make_action(
            f"{place.room}: {entry.name}", rules,
            lambda step, entry=entry: entry.guard(step, place, _symbolic_choice(step)),  # type: ignore[misc]
            lambda step, entry=entry: entry.draft(step, place, _symbolic_choice(step)), entry.fair,  # type: ignore[misc]
        )  # fmt: skip
    for tick in TICK:

        def guard(step: Step, tick: TickEntry = tick) -> Number:
            choice = _symbolic_choice(step)
            return tick.guard(step, place, choice, receiver.observe(step, place, choice))

        def draft(step: Step, tick: TickEntry = tick) -> None:
            choice = _symbolic_choice(step)
            tick.draft(step, place, choice, receiver.observe(step, place, choice))

        yield make_action(f"{place.room}: {tick.name}", rules, guard, draft, True)


def _everybody_else(block: str, number: int, rules: ModelRules) -> Iterator[Action]:
    """All other requests: whatever the ledger lets them do with a block that is free or theirs."""
    for event in dict.fromkeys(row.event for rows in BLOCK_TABLE.rows.values() for row in rows):

        def guard(step: Step, event: str = event) -> Number:
            trial = Step(step.ops, step.view, rules)
            return move(trial, event) == False  # noqa: E712

        def draft(step: Step, event: str = event) -> None:
            move(step, event)

        def move(step: Step, event: str) -> Number:
            part = step.part(block)
            seq = step.view["in_seq"] if event == "reserve" else part.seq
            return move_block(step, part, event, number, seq, part.generation, part.state >= 0)

        yield make_action(f"others: {event} {block}", rules, guard, draft, True)


def symbolic(rules: ModelRules = PROTOCOL_RULES) -> Symbolic:
    """Two requests, one block, everybody else."""
    block = SYMBOLIC_BLOCK
    places = tuple(
        Place(room, number, (block,), rivals=tuple(other for other in SYMBOLIC_ROOMS if other != room))
        for number, room in enumerate(SYMBOLIC_ROOMS, 1)
    )
    kinds: dict[str, tuple[str, int]] = {f"{block}_{name}": kind for name, kind in BLOCK_FIELDS.items()}
    given = dict(SETTINGS)
    for place in places:
        kinds |= {f"{place.room}_{name}": kind for name, kind in ROOM_FIELDS.items()}
        kinds |= {f"{place.room}_{block}_{name}": kind for name, kind in CLAIM_FIELDS.items()}
        given |= {f"{place.room}_{name}": kind for name, kind in GIVEN.items()}
    inputs = {f"in_{name}": kind for name, kind in INPUTS.items()}
    inputs |= {f"in_{block}_{name}": kind for name, kind in BLOCK_INPUTS.items()}
    fields = [Field(name, *_RANGES[kind]) for name, (kind, _) in kinds.items()]
    fields += [Field(name, *_RANGES[kind]) for name, kind in (given | inputs).items()]
    actions = [action for place in places for action in _symbolic_actions(place, rules)]
    actions += _everybody_else(block, len(places) + 1, rules)
    model = Model(
        "protocol", tuple(fields), ({name: start for name, (_, start) in kinds.items()},), tuple(actions),
        make_clauses(places, (block,), rules),
    )  # fmt: skip
    return Symbolic(model, tuple(given), tuple(inputs), places, rules)
