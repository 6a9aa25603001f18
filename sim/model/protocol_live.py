"""What the protocol model promises in the end, and what is assumed of its actions for that.

L1 to L3 are judged on the bounded composition with finitely many faults: ``faults=False``, with budgets (``aborts``,
``crashes``). :func:`live_model` makes of it what liveness needs:

* deadlines, of requests and of lanes, that may pass once a run was disturbed and never before. So in an undisturbed
  run nobody can rely on a clock, and where only a clock would help, the run is stuck and L1 is broken;
* on a two-sided transport (``late``) no single write breaks. There the connection is lost with it, and a process that
  outlives that comes back under a new boot id, as after a crash: that is what proves that nothing is outstanding.

What is assumed of each action is one table, :data:`FAIRNESS`. All choices of an action (which message, which blocks)
are one group of its request and rank. Weak fairness is enough: whatever is enabled here stays so until it is taken or
no longer wanted, for messages are never used up, and a block that somebody else takes is given back in a run of
finitely many grants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fsm import kernel
from fsm.errors import LocalError
from fsm.kernel import Number, Ops
from sim.model import protocol_receiver as receiver
from sim.model import protocol_sender as sender
from sim.model.form import Action, Expression, Group, Model, View, negate
from sim.model.live import FINITE, FREE, WEAK, Promise, Treatment
from sim.model.protocol import make_action
from sim.model.protocol_bounded import Bounds, Layout, bounded, kind_of
from sim.model.protocol_parts import FREE as FREE_BLOCK
from sim.model.protocol_parts import Step
from sim.model.protocol_receiver import Place
from sim.model.protocol_rules import PROTOCOL_RULES, ModelRules

DEADLINE, LANE_DEADLINE = "a deadline passes", "the lane's deadline passes"
CLOCK = "clock"

FAIRNESS: dict[str, tuple[str, str]] = {
    "receive REGISTER": (WEAK, "messages are sent again until they are answered, and finitely many are lost"),
    "receive REGISTER_ACK": (WEAK, "the same"),
    "receive OFFER": (WEAK, "the same"),
    "receive GRANT": (WEAK, "the same"),
    "receive STATUS": (WEAK, "the same"),
    "receive ABORT": (WEAK, "the same"),
    "receive ABORT_ACK": (WEAK, "the same"),
    "an unknown room": (WEAK, "the same, of the NACK of a process that does not know the room"),
    "a restart is seen": (WEAK, "a new process says that it is there"),
    "the process is gone": (WEAK, "the transport comes to know that a dead process is dead"),
    "stage": (WEAK, "the payload gets into the source pool in the end"),
    "execute": (WEAK, "the sender does what it can do"),
    "bytes land": (WEAK, "a write that has begun comes to its end"),
    "the write is done": (WEAK, "the transport says so"),
    "own completion": (WEAK, "the receiver's transport says so"),
    "a copy ends": (WEAK, "a copy that has begun comes to its end, and a lease is given back"),
    "release": (WEAK, "the receiver does what it can do"),
    "tick: registered": (WEAK, "a receiver ticks for ever"),
    "tick: take a chunk": (WEAK, "the same"),
    "tick: complete": (WEAK, "the same"),
    "tick: fail": (WEAK, "the same"),
    "tick: grant": (WEAK, "the same"),
    DEADLINE: (CLOCK, "time passes; counts only in a run that was disturbed"),
    LANE_DEADLINE: (CLOCK, "the same, on the sender's side"),
    "lease": (FREE, "a caller leases or does not"),
    "a write vanishes": (FREE, "what is left of a dead process's write may land as well"),
    "wait for blocks": (FREE, "only a wrong version does anything then"),
    "another rank's GRANT": (FREE, "only a wrong version executes it"),
    "receive a late STATUS": (FREE, "a message that was answered need not come again"),
    "abort or NACK": (FINITE, "a fault"),
    "the sender fails": (FINITE, "a fault"),
    "a write breaks": (FINITE, "a fault"),
    "a copy fails": (FINITE, "a fault"),
    "the sender crashes": (FINITE, "a fault"),
}
"""How each action is treated, and why. ``clock``: weakly fair, but only where the run was disturbed."""


def disturbed(bounds: Bounds) -> Expression:
    """Whether something went wrong in the run: a budget was drawn on."""
    places = Layout(bounds).places

    def expression(ops: Ops, view: View) -> Number:
        result = view["aborts_left"] < bounds.aborts
        for place in places:
            result = result | (view[f"{place.room}_s_boot"] > 1)
        return result

    return expression


class ProtocolFairness:
    """:data:`FAIRNESS` for the actions of a model of that size. ``ignored``: kinds of actions that are to be free."""

    def __init__(self, bounds: Bounds, ignored: Sequence[str] = ()) -> None:
        unknown = [name for name in ignored if name not in FAIRNESS]
        if unknown:
            raise LocalError(f"there is no action '{unknown[0]}'; there are {', '.join(FAIRNESS)}")
        self._disturbed = disturbed(bounds)
        self._ignored = tuple(ignored)

    def __call__(self, action: Action) -> Treatment:
        """What is assumed of one action."""
        who, kind = action.name.partition(": ")[0], kind_of(action.name)
        if kind not in FAIRNESS:
            raise LocalError(
                f"nothing is assumed of the action '{action.name}'; add its kind to FAIRNESS, with a reason"
            )
        treated, _ = FAIRNESS[kind]
        group = f"{who}: {kind}"
        if kind in self._ignored:
            return Treatment(group, FREE)
        return Treatment(group, WEAK, self._disturbed) if treated == CLOCK else Treatment(group, treated)


def live_model(bounds: Bounds, rules: ModelRules = PROTOCOL_RULES) -> Model:
    """The bounded model with deadlines that pass once something went wrong, and without those symmetries that would
    make one of two requests or ranks: fairness tells them apart. Raises LocalError for faults without a budget."""
    if bounds.faults:
        raise LocalError(
            "faults=True: liveness is promised for finitely many faults; use faults=False, with aborts=N or crashes=N"
        )
    model, layout = bounded(bounds, rules), Layout(bounds)
    left_out = (DEADLINE, *(("a write breaks",) if bounds.late else ()))
    actions = [action for action in model.actions if kind_of(action.name) not in left_out]
    kept = tuple(group for group in model.symmetry if not _holds_a_request(group, layout))
    return replace(model, actions=(*actions, *_clocks(layout, rules)), symmetry=kept, references=())


def _holds_a_request(group: Group, layout: Layout) -> bool:
    """Whether the records of a group are more than those of blocks."""
    return any(f"{place.room}_state" in record for place in layout.places for record in group)


def _clocks(layout: Layout, rules: ModelRules) -> Iterator[Action]:
    late = disturbed(layout.bounds)
    for place in layout.places:

        def waits(step: Step, place: Place = place) -> Number:
            return receiver.can_pass_deadline(step, place, None) & late(step.ops, step.view)

        def fail(step: Step, place: Place = place) -> None:
            receiver.observe_failure(step, place, None)

        def lane_waits(step: Step, place: Place = place) -> Number:
            may = sender.can_fail_lane(step, place, None) & step.rules.deadlines() & late(step.ops, step.view)
            return may & negate(_is_unknown(step, place, layout.bounds))

        def fail_lane(step: Step, place: Place = place) -> None:
            sender.fail_lane(step, place, None)

        yield make_action(f"{place.room}: {DEADLINE}", rules, waits, fail, True)
        yield make_action(f"{place.room}: {LANE_DEADLINE}", rules, lane_waits, fail_lane, True)


# --- promises --------------------------------------------------------------------------------------------


def promises(bounds: Bounds, rules: ModelRules = PROTOCOL_RULES) -> tuple[Promise, ...]:
    """L1, L2, and what L3 leads to: for each request that holds data, that it does not wait for ever.

    L3 itself is about one step (no grant 0 while one that holds data waits for blocks and blocks are free), and so it
    is a safety property: the clause "data first" is what holds it.
    """
    ends = "every request ends on both sides, in Success if nothing went wrong"
    clears = "once all have ended, no block, no copy and no write of theirs is left"
    made = [Promise("L1", "L1", ends, all_end(bounds, rules)), Promise("L2", "L2", clears, all_clear(bounds, rules))]
    for number, places in enumerate(Layout(bounds).rooms):
        text = f"request {number} does not hold data and wait for ever"
        made.append(Promise(f"L3: r{number}", "L3", text, _served(places, rules)))
    return tuple(made)


def all_end(bounds: Bounds, rules: ModelRules = PROTOCOL_RULES) -> Expression:
    """Whether every request has ended on both sides, in Success if the run was not disturbed."""
    places, after_faults = Layout(bounds).places, disturbed(bounds)

    def expression(ops: Ops, view: View) -> Number:
        step = Step(ops, view, rules)
        return _all_over(step, bounds) & (_all_well(step, places) | after_faults(ops, view))

    return expression


def all_clear(bounds: Bounds, rules: ModelRules = PROTOCOL_RULES) -> Expression:
    """Whether nothing is left of the requests, or some have not ended yet."""
    layout = Layout(bounds)

    def expression(ops: Ops, view: View) -> Number:
        step = Step(ops, view, rules)
        return negate(_all_over(step, bounds)) | _nothing_left(step, layout)

    return expression


def good_end(bounds: Bounds, rules: ModelRules = PROTOCOL_RULES) -> Expression:
    """Both: an end of a run that is as it should be."""
    ended, clear = all_end(bounds, rules), all_clear(bounds, rules)
    return lambda ops, view: ended(ops, view) & clear(ops, view)


def _is_unknown(step: Step, place: Place, bounds: Bounds) -> Number:
    """Whether the sender's process has no lane for a request, as it was never given it."""
    room = step.part(place.room)
    unknown = (room.s_boot > 1) & (room.l_state == kernel.BOOTSTRAPPING)
    return step.view["late"] < 0 if bounds.resubmits else unknown


def _all_over(step: Step, bounds: Bounds) -> Number:
    """Whether all requests have ended on both sides. Where the sender knows nothing of one, it has nothing to end."""
    result: Number = step.view["late"] >= 0
    for place in Layout(bounds).places:
        room = step.part(place.room)
        lane = (room.l_state >= kernel.SUCCESS) | _is_unknown(step, place, bounds)
        result = result & (room.state >= kernel.SUCCESS) & lane
    return result


def _all_well(step: Step, places: Sequence[Place]) -> Number:
    """Whether all requests have succeeded on both sides."""
    result: Number = step.view["late"] >= 0
    for place in places:
        room = step.part(place.room)
        result = result & (room.state == kernel.SUCCESS) & (room.l_state == kernel.SUCCESS)
    return result


def _nothing_left(step: Step, layout: Layout) -> Number:
    result: Number = step.view["late"] >= 0
    for pool in layout.pools:
        for block in pool:
            result = result & (step.part(block).state == FREE_BLOCK)
    for place in layout.places:
        room = step.part(place.room)
        for value in (room.held, room.writing, room.flight, room.ack_owed):
            result = result & (value == 0)
        for block in place.blocks:
            result = result & (step.claim(room, block).c_has == 0)
    return result


def _served(places: Sequence[Place], rules: ModelRules) -> Expression:
    def expression(ops: Ops, view: View) -> Number:
        step = Step(ops, view, rules)
        waits: Number = step.view["late"] < 0
        for place in places:
            waits = waits | receiver.is_due(step, step.part(place.room))
        return negate(waits)

    return expression
