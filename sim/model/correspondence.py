"""Which step of the world is which step of the protocol model.

The world of a scenario and the model of the same size are compared step by step (:mod:`sim.engines.agree`). What
corresponds to what is said here: the size (:func:`bounds_of`), for every action of the world the actions of the model
(:class:`Cues`), what happens within a step of the world and is a step of its own in the model (:func:`eager`), and what
the model allows and the world does not do (:data:`MODEL_ONLY`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fsm import kernel
from fsm.errors import LocalError
from fsm.kernel import Number, Ops
from fsm.messages import Abort, AbortAck, Epoch, Grant, Nack, NackCode, Offer, Register, RegisterAck, Status
from sim.model import protocol_receiver as receiver
from sim.model.form import Action as ModelAction
from sim.model.form import Model, View, negate
from sim.model.protocol import TICK
from sim.model.protocol_bounded import TICK_GRANT, Bounds, Layout, Picked, bounded, kind_of
from sim.model.protocol_parts import Step
from sim.model.protocol_receiver import Place
from sim.model.protocol_rules import PROTOCOL_RULES
from sim.model.protocol_scenario import sizes_of
from sim.scenario import Scenario
from sim.world import Action, World

TICKS = tuple(entry.name for entry in TICK)
RESTART, UNKNOWN, NACKED, DEADLINE = "a restart is seen", "an unknown room", "abort or NACK", "a deadline passes"
LANE_FAILS, COPY_ENDS, LEASE, STAGE = "the sender fails", "a copy ends", "lease", "stage"
GRANT, STARVES = TICK_GRANT, "wait for blocks"
LANDS, DONE, OWN, CRASH = "bytes land", "the write is done", "own completion", "the sender crashes"

ALIKE = dict.fromkeys((RESTART, UNKNOWN, NACKED, DEADLINE), "a failure is seen")
"""Actions that do the same, and differ in when they may be taken: one step of the world may be any of them."""


# --- the size --------------------------------------------------------------------------------------------


def bounds_of(scenario: Scenario) -> Bounds:
    """The size of the model for a scenario. Raises LocalError for what the model does not hold."""
    faults, schedule, pool = scenario.faults, scenario.schedule, scenario.pool
    requests = scenario.expanded_requests()
    refused = {
        "a receiver that crashes": faults.receiver_crash_max > 0,
        "spoilt messages": faults.poison_max > 0,
        "a partition, which may outlast every tombstone": faults.partition_max > 0,
        "ranks that tick at different times (rank_skew_ticks)": schedule.rank_skew_ticks > 0,
        "an allocator other than 'adversary'": pool.allocator != "adversary",
        "limits of result memory": scenario.result.tokens > 0 or scenario.result.held,
        "unequal pools (blocks_by_rank)": bool(pool.blocks_by_rank),
        "requests of several sizes": len({(request.tokens, request.grant_tokens) for request in requests}) > 1,
        "several senders that crash": faults.sender_crash_max > 0 and scenario.ranks.senders > 1,
        "heartbeats": scenario.time.heartbeat_ticks > 0,
        "a variant": bool(scenario.variant.hazards) or scenario.variant.detector != "watermark",
    }
    for what, wanted in refused.items():
        if wanted:
            raise LocalError(f"the scenario has {what}, which this comparison does not hold; leave it out")
    harmless = ("duplicate_max", "delay_max", "duplicate_room_max", "rate")
    anything = any(getattr(faults, name) for name in faults.__struct_fields__ if name not in harmless)
    return replace(sizes_of(scenario), faults=anything)


def model_of(scenario: Scenario, bounds: Bounds, *, whole: bool = False) -> Model:
    """The model for a scenario, without what :data:`MODEL_ONLY` names (unless ``whole``), and without clauses. Requests
    and ranks have names here, so no two states count as one for symmetry."""
    model = replace(bounded(bounds), clauses=(), symmetry=(), references=())
    required = int(bounds.late or scenario.schedule.notice_lags)
    fields = [f._replace(low=required, high=required) if f.name == "landed_required" else f for f in model.fields]
    initial = [{**start, "landed_required": required} for start in model.initial]
    model = replace(model, fields=tuple(fields), initial=tuple(initial))
    kinds = [kind for kind, restriction in MODEL_ONLY.items() if restriction.where(scenario)]
    return model if whole else as_the_world_does(model, bounds, kinds)


# --- what only one of them has ---------------------------------------------------------------------------


class Restriction(NamedTuple):
    """Steps of the model that the world does not make. ``kept`` says which ones it does make; ``None``: none.
    ``where`` says in which scenarios."""

    reason: str
    kept: Callable[[Step, Place, Layout], Number] | None = None
    where: Callable[[Scenario], bool] = lambda scenario: True


def _first_process(step: Step, place: Place, layout: Layout) -> Number:
    return step.part(place.room).s_boot == 1


def _not_leasable(step: Step, place: Place, layout: Layout) -> Number:
    return negate(receiver.can_lease(step, place, None))


def _in_turn(step: Step, place: Place, layout: Layout) -> Number:
    """Nothing else is decided about the request, and no older one that holds data, or holds none as this one, could
    have blocks. (An older one that asks early has none of the last block, which this one may then have.)"""
    order, rank = step.rules.order, int(place.room.partition("k")[2])

    def asked(of: Place) -> tuple[receiver.Seen, receiver.Grant]:
        choice = Picked(step, of, layout, {})
        seen = receiver.observe(step, of, choice)
        return seen, receiver.work_out_grant(step, of, choice, seen)

    seen, own = asked(place)
    kept: Number = receiver.verdict(step, place, seen) == kernel.IDLE
    for places in layout.rooms:
        other = places[rank]
        if other.number < place.number:
            theirs = asked(other)[1]
            later = order(step.ops, step.part(other.room)) > order(step.ops, step.part(place.room))
            kept = kept & (negate(theirs.blocks > 0) | later | (theirs.early & negate(own.early)))
    return kept


MODEL_ONLY: dict[str, Restriction] = {
    "a write breaks": Restriction("no transport of the world breaks a write"),
    "a copy fails": Restriction("no copy of the world goes wrong"),
    "receive REGISTER": Restriction("nobody tells a new process of the requests of the old one", _first_process),
    STAGE: Restriction("the same: a new process has nothing to stage", _first_process),
    LANE_FAILS: Restriction("the same: and nothing to end", _first_process),
    COPY_ENDS: Restriction("where there are leases, what may be leased is", _not_leasable, lambda s: s.pool.lease),
    GRANT: Restriction("a tick decides about a request first, and serves older requests before younger ones", _in_turn),
}
"""By the kind of an action: what the model allows, and the world never does. The rest of the model is compared."""


def as_the_world_does(model: Model, bounds: Bounds, kinds: Sequence[str]) -> Model:
    """A model without those steps of :data:`MODEL_ONLY` that are of the kinds named."""
    layout, kept = Layout(bounds), []
    for action in model.actions:
        kind = kind_of(action.name)
        restriction = MODEL_ONLY[kind] if kind in kinds else None
        if restriction is None:
            kept.append(action)
        elif restriction.kept is not None:
            kept.append(_restricted(action, restriction.kept, layout))
    return replace(model, actions=tuple(kept))


def _restricted(action: ModelAction, kept: Callable[[Step, Place, Layout], Number], layout: Layout) -> ModelAction:
    prefix = action.name.partition(":")[0]
    places = [place for place in layout.places if place.room == prefix or place.room.partition("k")[0] == prefix]

    def guard(ops: Ops, view: View) -> Number:
        allowed = action.guard(ops, view)
        for place in places:
            allowed = allowed & kept(Step(ops, view, PROTOCOL_RULES), place, layout)
        return allowed

    return replace(action, guard=guard)


def eager(scenario: Scenario) -> frozenset[str]:
    """The kinds of actions that the objects, or the world of this scenario, always take within another step."""
    schedule = scenario.schedule
    kinds = ["execute", "release"]
    kinds += [] if schedule.copy_lags else [COPY_ENDS, LEASE]
    kinds += [] if schedule.staging_lags else [STAGE]
    if schedule.data_lags_status:
        kinds.append(OWN)
    elif schedule.status_lags_data:
        kinds.append(LANDS)
    elif not schedule.notice_lags:
        kinds.append(DONE)
    return frozenset(kinds)


def world_steps(names: Sequence[str], scenario: Scenario) -> int:
    """How many steps of the world a run of the model is, given by the names of its actions.

    What the world does within another step counts nothing (:func:`eager`). Ticks belong to the step before them, as
    far as they are one tick, which decides about each request at most once and then grants to it at most once; what
    does not fit into that is a tick more, and counts as a step.
    """
    within = eager(scenario) | {STARVES}
    steps = 0
    ticked: dict[str, int] = {}
    for name in names:
        kind, request = kind_of(name), name.partition(":")[0]
        if kind in within:
            continue
        done = 0 if kind not in TICKS else 2 if kind == GRANT else 1
        if done <= ticked.get(request, 0):
            steps, ticked = steps + 1, {}
        if done:
            ticked[request] = done
    return steps


# --- step by step ----------------------------------------------------------------------------------------


class Cue(NamedTuple):
    """What a step of the world is in the model: ``first`` are actions by their full names, each taken if it may be;
    ``then`` are the kinds of those that may follow within the step."""

    first: tuple[str, ...]
    then: frozenset[str]


_NONE: frozenset[str] = frozenset()

_MESSAGES: dict[type[Any], str] = {
    Register: "receive REGISTER", RegisterAck: "receive REGISTER_ACK boot={0.boot_id}", Offer: "receive OFFER",
    Grant: "receive GRANT seq={0.seq}", Status: "receive STATUS seq={0.seq}",
}  # fmt: skip


class Cues:
    """The cues of a scenario.

    | the world | the model |
    |---|---|
    | a message is delivered, from its channel, late or twice | ``receive`` it: of its room, rank, seq, process |
    | a NACK, or an ABORT of the sender, reaches the receiver | ``abort or NACK``, ``an unknown room`` |
    | a NACK reaches the sender | ``the sender fails`` |
    | any message of a newer sender process | ``a restart is seen`` besides |
    | bytes land, a write ends, is noticed, vanishes | ``bytes land``, ``the write is done``, ``own completion``, .. |
    | a copy ends, a lease begins or comes back, a payload is staged | ``a copy ends``, ``lease``, ``stage`` |
    | abort, on either side; a sender crashes; a process is gone | on every rank it concerns |
    | time passes, a clock jumps | ``a deadline passes``, ``the sender fails`` |
    | a tick: of its own, after a step, or as time passes | ``tick: ..``, for every request |
    | a message is held back or lost, a partition, an arrival, ... | nothing |
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.eager = eager(scenario)
        self.jumps = scenario.faults.clock_jump_max > 0

    def of(self, world: World, action: Action) -> Cue:
        """What an action of the world is in the model, told before it is done."""
        kind = action[0]
        first, then = self._own(world, action)
        if kind in ("tick", "time") or not world.ticks_free:
            then = then | frozenset(TICKS)
            if self.jumps or kind == "time":
                then = then | {DEADLINE}
        return Cue(first, then | self.eager)

    def _own(self, world: World, action: Action) -> tuple[tuple[str, ...], frozenset[str]]:
        kind = action[0]
        if kind in ("deliver", "duplicate"):
            return self._message(world, action[1], world.network.channels[action[1]][0])
        if kind == "stray":
            stray = world.network.strays[action[1]]
            return self._message(world, stray.channel, stray.message)
        if kind in ("time", "clock_jump"):
            return (), frozenset({LANE_FAILS})
        found = {
            "land": self._land, "told": self._told, "noticed": self._noticed, "vanish": self._vanish,
            "copied": self._copied, "returned": self._returned, "staged": self._staged, "gone": self._gone,
            "abort": self._abort, "sender_abort": self._sender_abort, "sender_crash": self._sender_crash,
        }.get(kind)  # fmt: skip
        return (found(world, action) if found is not None else ()), _NONE

    def _message(self, world: World, channel: int, message: Any) -> tuple[tuple[str, ...], frozenset[str]]:
        place = _place(world, message.room, message.epoch, message.receiver_rank)
        to_receiver, kind = channel % 2, type(message)
        news = frozenset({RESTART}) if to_receiver else _NONE
        if kind is Nack:
            refused = UNKNOWN if message.code is NackCode.UNKNOWN_ROOM else NACKED
            return (f"{place}: {refused if to_receiver else LANE_FAILS}",), news
        if kind is Abort:
            return (f"{place}: {NACKED if to_receiver else 'receive ABORT'}",), news
        if kind is AbortAck:
            return ((f"{place}: receive ABORT_ACK boot={message.boot_id}",) if to_receiver else ()), news
        return (f"{place}: {_MESSAGES[kind].format(message)}",), news

    def _land(self, world: World, action: Action) -> tuple[str, ...]:
        place, seq = _flying(world, action)
        names = [f"{place}: {LANDS}"]
        if OWN in self.eager:
            names.append(f"{place}: {OWN} seq={seq}")
        if DONE in self.eager:
            names.append(f"{place}: {DONE}")
        return tuple(names)

    def _told(self, world: World, action: Action) -> tuple[str, ...]:
        return (f"{_flying(world, action)[0]}: {DONE}",)

    def _noticed(self, world: World, action: Action) -> tuple[str, ...]:
        place, seq = _flying(world, action)
        return (f"{place}: {OWN} seq={seq}",)

    def _vanish(self, world: World, action: Action) -> tuple[str, ...]:
        return (f"{_flying(world, action)[0]}: a write vanishes",)

    def _copied(self, world: World, action: Action) -> tuple[str, ...]:
        copying = world.copies[action[1]]
        if copying.effect.whole and self.scenario.pool.lease:
            return (f"{_place(world, copying.effect.room, copying.effect.epoch, copying.rank)}: {LEASE}",)
        return (_copy_ends(world, copying),)

    def _returned(self, world: World, action: Action) -> tuple[str, ...]:
        return (_copy_ends(world, world.leases[action[1]]),)

    def _staged(self, world: World, action: Action) -> tuple[str, ...]:
        rank, boot_id, room = world.stagings[action[1]]
        if world.senders[rank].boot_id != boot_id:
            return ()  # that process is gone
        return tuple([f"r{world.sending[room]}k{served}: {STAGE}" for served in world.served_by[rank]])

    def _gone(self, world: World, action: Action) -> tuple[str, ...]:
        ranks, requests = world.served_by[action[1]], sorted(world.receiving.values())
        return tuple([f"r{number}k{rank}: the process is gone" for number in requests for rank in ranks])

    def _abort(self, world: World, action: Action) -> tuple[str, ...]:
        return tuple([f"r{_live(world, action[1])}k{rank}: {NACKED}" for rank in world.receiver_ranks])

    def _sender_abort(self, world: World, action: Action) -> tuple[str, ...]:
        number = world.sending[action[2]]
        return tuple([f"r{number}k{rank}: {LANE_FAILS}" for rank in world.served_by[action[1]]])

    def _sender_crash(self, world: World, action: Action) -> tuple[str, ...]:
        return (f"s{action[1]}: {CRASH}",)


def _place(world: World, room: int, epoch: Epoch, rank: int) -> str:
    return f"r{world.receiving[room, epoch]}k{rank}"


def _flying(world: World, action: Action) -> tuple[str, int]:
    grant = world.flights[action[1]].grant
    return _place(world, grant.room, grant.epoch, grant.receiver_rank), grant.seq


def _copy_ends(world: World, copying: Any) -> str:
    effect = copying.effect
    place = _place(world, effect.room, effect.epoch, copying.rank)
    return f"{place}: {COPY_ENDS} seq={effect.seq} tokens={effect.tokens}"


def _live(world: World, room: int) -> int:
    """The number of the live request of a room: the one that came last."""
    return max(number for (name, _), number in world.receiving.items() if name == room)
