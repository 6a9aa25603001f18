"""What can happen next in a world, and how it is done.

An action is a small tuple. ``enabled`` lists those that the world's own course allows, ``faults`` those that an
adversary may spend a budget on, and ``apply`` does one. After every delivery the receivers tick as often as the
scenario says (``polls_per_delivery``), unless ticks are scheduled freely.
"""

from __future__ import annotations

from fsm.allocators import Choices
from fsm.effects import Stage
from fsm.errors import LocalError
from fsm.events import Finished, Restarted
from fsm.messages import Heartbeat, Nack, Register
from sim import poison, writes
from sim.network import Stray
from sim.world import AUDIT_ALWAYS_BLOCKS, Action, World

TICK: Action = ("tick",)
TIME: Action = ("time",)
_NO_POLL = ("tick", "time", "enter", "leave")


def enabled(world: World) -> list[Action]:
    """What the world may do by itself, in a fixed order. Empty when nothing will ever happen again."""
    actions: list[Action] = []
    skewed = world.skews
    collective = _collective(world) if skewed else []
    if collective and world.skewed >= world.scenario.schedule.rank_skew_ticks:
        return collective
    network = world.network
    for channel, messages in enumerate(network.channels):
        if messages:
            actions.append(("deliver", channel))
    actions.extend(("stray", index) for index in range(len(network.strays)))
    for index, flight in enumerate(world.flights):
        dead = world.senders[world.sender_of[flight.grant.receiver_rank]].boot_id != flight.boot_id
        if not flight.landed:
            actions.append(("land", index))
            if dead:
                actions.append(("vanish", index))
        lone = world.scenario.schedule.data_lags_status or flight.landed
        if lone and not flight.told:
            actions.append(("told", index))
        if flight.landed and not flight.noticed:
            actions.append(("noticed", index))
    actions.extend(("copied", index) for index in range(len(world.copies)))
    actions.extend(("returned", index) for index in range(len(world.leases)))
    actions.extend(("released", index) for index in range(len(world.results)))
    actions.extend(("staged", index) for index in range(len(world.stagings)))
    if world._may_arrive(world.ticks):
        actions.append(("arrive",))
    for sender, boot_id in world.dead_boots:
        if not any(flight.boot_id == boot_id and not flight.landed for flight in world.flights):
            actions.append(("gone", sender, boot_id))
    if skewed:
        actions.extend(collective)
    elif not world.quiet and (world.scenario.schedule.ticks_free or not actions):
        actions.append(TICK)
    if not actions and not world.done():
        if world.next_timer() is not None:
            actions.append(TIME)
        elif world.arrived < len(world.arrivals):
            actions.append(("arrive",))
    if network.cut:
        actions.append(("heal",))
    return actions


def _collective(world: World) -> list[Action]:
    if world.agreed is not None:
        return [("leave", rank) for rank in world.receiver_ranks if rank not in world.left]
    begun = any(entered is not None for entered in world.entered)
    if world.quiet and not begun:
        return []
    return [("enter", rank) for rank in world.receiver_ranks if world.entered[rank] is None]


def faults(world: World) -> list[Action]:
    """What an adversary may do, as far as its budgets go."""
    budget, network = world.budget, world.network
    actions: list[Action] = []
    for channel, messages in enumerate(network.channels):
        if not messages:
            continue
        for kind in ("duplicate", "delay", "drop", "poison"):
            if budget[kind]:
                actions.append((kind, channel))
        if budget["heartbeat_loss"] and type(messages[0]) is Heartbeat:
            actions.append(("heartbeat_loss", channel))
    live = sorted(world.receivers[0].rooms)
    if budget["abort"]:
        actions.extend(("abort", room) for room in live)
        actions.extend(
            ("sender_abort", rank, room) for rank, sender in enumerate(world.senders) for room in sorted(sender.rooms)
        )
    over = world.all_ended()
    if budget["sender_crash"] and not over:
        actions.extend(("sender_crash", rank) for rank in range(len(world.senders)) if world.served_by[rank])
    if budget["receiver_crash"] and not over:
        actions.extend(("receiver_crash", rank) for rank in world.receiver_ranks)
    if budget["partition"] and not network.cut and not over:
        actions.append(("partition",))
    if budget["clock_jump"] and not over:
        actions.extend(("clock_jump", side) for side in ("receiver", "sender"))
    if budget["duplicate_room"] and live:
        actions.append(("duplicate_room", live[0]))
    return actions


def apply(world: World, action: Action, choices: Choices) -> None:
    """Do one action; ``world.events`` then holds what happened."""
    world.events = []
    kind = action[0]
    world.touched = _touches(world, action)
    if kind not in _NO_POLL:
        world.skewed += world.agreed is not None or any(entered is not None for entered in world.entered)
    _DO[kind](world, action, choices)
    if kind not in _NO_POLL:
        if world.touched not in ("sender", "memory"):
            world.quiet = False  # else no receiver has anything new: its ticks would do what the last one did, nothing
        if not world.quiet and not world.ticks_free:
            _poll(world, choices)
    if len(world.receivers[0].ledger) <= AUDIT_ALWAYS_BLOCKS or world.ticks % 16 == 0:
        world.audit()


def _poll(world: World, choices: Choices) -> None:
    """The ticks between two deliveries."""
    if world.touched in ("sender", "memory"):
        world.touched = "all"
    for _ in range(world.scenario.schedule.polls_per_delivery):
        world.tick(choices)
        if world.quiet:
            return


def _touches(world: World, action: Action) -> str:
    """What an action may change: ``sender``, ``memory`` (and senders), ``receiver`` (with its memory), or ``all``. Told
    before it is done; a write that arrives at once still makes memory of ``sender``."""
    kind = action[0]
    if kind == "land" and world.blind and not world.scenario.schedule.data_lags_status:
        return "memory"
    if kind in ("told", "vanish"):
        return "sender"
    if kind in ("deliver", "delay", "drop", "heartbeat_loss", "duplicate"):
        return "receiver" if action[1] % 2 else "sender"
    if kind == "stray":
        return "receiver" if world.network.strays[action[1]].channel % 2 else "sender"
    return "receiver" if kind in ("tick", "enter", "leave", "gone") else "all"


def describe_action(world: World, action: Action) -> str:
    """An action in words, before it is done."""
    kind = action[0]
    network = world.network
    if kind in ("deliver", "duplicate", "delay", "drop", "poison", "heartbeat_loss"):
        message = network.channels[action[1]][0]
        return f"{kind} {type(message).__name__} to {world.target_name(action[1])}"
    if kind == "stray":
        stray = network.strays[action[1]]
        what = "duplicate" if stray.repeats else "late"
        return f"deliver {what} {type(stray.message).__name__} to {world.target_name(stray.channel)}"
    if kind in ("land", "told", "noticed", "vanish"):
        flight = world.flights[action[1]]
        what = {
            "land": "bytes land", "told": "write ends", "noticed": "write is noticed", "vanish": "write vanishes",
        }[kind]  # fmt: skip
        return f"{what}: room {flight.grant.room} seq {flight.grant.seq} rank {flight.grant.receiver_rank}"
    if kind == "copied":
        copying = world.copies[action[1]]
        return f"copy out ends: room {copying.effect.room} seq {copying.effect.seq} rank {copying.rank}"
    if kind == "returned":
        lease = world.leases[action[1]]
        return f"lease comes back: room {lease.effect.room} rank {lease.rank}"
    if kind == "released":
        rank, _, room, _ = world.results[action[1]]
        return f"result is released: room {room} rank {rank}"
    if kind == "staged":
        return f"staged: room {world.stagings[action[1]][2]} sender {world.stagings[action[1]][0]}"
    return " ".join(str(part) for part in action).replace("_", " ")


# --- the world's own course -----------------------------------------------------------------------------


def _deliver(world: World, action: Action, choices: Choices) -> None:
    world.deliver(action[1], world.network.take(action[1]))


def _stray(world: World, action: Action, choices: Choices) -> None:
    world.deliver_stray(world.network.take_stray(action[1]))


def _land(world: World, action: Action, choices: Choices) -> None:
    writes.land(world, action[1])


def _noticed(world: World, action: Action, choices: Choices) -> None:
    writes.notice(world, action[1])


def _returned(world: World, action: Action, choices: Choices) -> None:
    world.end_lease(action[1])


def _released(world: World, action: Action, choices: Choices) -> None:
    world.end_result(action[1])


def _told(world: World, action: Action, choices: Choices) -> None:
    writes.tell(world, action[1])


def _copied(world: World, action: Action, choices: Choices) -> None:
    copying = world.copies[action[1]]
    world.copies = world.copies[: action[1]] + world.copies[action[1] + 1 :]
    if world.incarnations[copying.rank] == copying.incarnation:
        world.end_copy(copying.rank, copying.effect)


def _staged(world: World, action: Action, choices: Choices) -> None:
    rank, boot_id, room = world.stagings[action[1]]
    world.stagings = world.stagings[: action[1]] + world.stagings[action[1] + 1 :]
    if world.senders[rank].boot_id == boot_id:
        world.end_staging(rank, Stage(room, 0))


def _vanish(world: World, action: Action, choices: Choices) -> None:
    writes.vanish(world, action[1])


def _arrive(world: World, action: Action, choices: Choices) -> None:
    world.arrive()


def _gone(world: World, action: Action, choices: Choices) -> None:
    """The transport proves that a dead sender process writes no more."""
    _, sender, boot_id = action
    world.dead_boots = tuple(dead for dead in world.dead_boots if dead != (sender, boot_id))
    for rank in world.served_by[sender]:
        world._from_receiver(rank, world.receivers[rank].quiesced(boot_id))


def _tick(world: World, action: Action, choices: Choices) -> None:
    world.tick(choices)


def _enter(world: World, action: Action, choices: Choices) -> None:
    world.enter(action[1], choices)


def _leave(world: World, action: Action, choices: Choices) -> None:
    world.leave(action[1], choices)


def _time(world: World, action: Action, choices: Choices) -> None:
    world.pass_time(choices)


def _heal(world: World, action: Action, choices: Choices) -> None:
    world.network.cut = False


# --- faults ---------------------------------------------------------------------------------------------


def _spend(world: World, kind: str, *, disturbs: bool) -> None:
    world.budget[kind] -= 1
    world.disturbed |= disturbs
    world.note_fault(kind)


def _duplicate(world: World, action: Action, choices: Choices) -> None:
    """The message is delivered, and a copy stays behind, to come at any time."""
    _spend(world, "duplicate", disturbs=False)
    channel = action[1]
    target = world.target(channel)
    before = target.save(world.now)
    message = world.network.take(channel)
    answers = len(world.network.channels[channel ^ 1])
    world.deliver(channel, message)
    took = target.save(world.now) != before
    if type(message) is Register:  # one that was refused may be repeated, and accepted then (R9)
        took = took and not any(type(a) is Nack for a in world.network.channels[channel ^ 1][answers:])
    if not world.network.cut:
        world.network.add_stray(Stray(channel, message, target.boot_id if took else 0))


def _delay(world: World, action: Action, choices: Choices) -> None:
    _spend(world, "delay", disturbs=False)
    world.network.add_stray(Stray(action[1], world.network.take(action[1]), 0))


def _drop(world: World, action: Action, choices: Choices) -> None:
    _spend(world, "drop", disturbs=True)
    world.network.take(action[1])


def _heartbeat_loss(world: World, action: Action, choices: Choices) -> None:
    _spend(world, "heartbeat_loss", disturbs=True)
    world.network.take(action[1])


def _poison(world: World, action: Action, choices: Choices) -> None:
    _spend(world, "poison", disturbs=True)
    spoilt = poison.spoil(world.network.take(action[1]), choices)
    if spoilt is not None:
        world.deliver(action[1], spoilt)


def _abort(world: World, action: Action, choices: Choices) -> None:
    _spend(world, "abort", disturbs=True)
    for receiver in world.receivers:
        if action[1] in receiver.rooms:
            receiver.abort(action[1])


def _sender_abort(world: World, action: Action, choices: Choices) -> None:
    _spend(world, "abort", disturbs=True)
    world._from_sender(action[1], world.senders[action[1]].abort(action[2], world.now))


def _sender_crash(world: World, action: Action, choices: Choices) -> None:
    _spend(world, "sender_crash", disturbs=True)
    rank = action[1]
    dead = world.senders[rank]
    world.dead_boots += ((rank, dead.boot_id),)
    world.senders[rank] = world._new_sender(rank, world.new_boot_id())
    writes.abandon_flights(world, rank, dead.boot_id)
    world._emit(Restarted(tuple(world.served_by[rank])))
    for room in sorted(dead.rooms):
        for lane in dead.rooms[room].lanes.values():
            if lane.live:
                total = dead.rooms[room].total_tokens
                world._emit(Finished("sender", lane.receiver_rank, room, lane.epoch, "Failed", "CRASHED", total))
        world.room_left(room)


def _receiver_crash(world: World, action: Action, choices: Choices) -> None:
    """One rank dies and comes back empty; the others lose it, and all speak under a new boot_id."""
    _spend(world, "receiver_crash", disturbs=True)
    rank = action[1]
    boot_id = world.new_boot_id()
    dead = world.receivers[rank]
    world.reset_collective()
    for room in sorted(dead.rooms):
        world._emit(Finished("receiver", rank, room, dead.rooms[room].epoch, "Failed", "CRASHED", -1))
    world.receivers[rank] = world._new_receiver(rank, boot_id)
    world.memories[rank] = world._new_memory(rank)
    world.incarnations[rank] = boot_id
    for other in world.receivers:
        if other.boot_id < boot_id:
            other.rank_lost(boot_id)


def _partition(world: World, action: Action, choices: Choices) -> None:
    _spend(world, "partition", disturbs=True)
    world.network.lose_all()
    world.network.cut = True


def _clock_jump(world: World, action: Action, choices: Choices) -> None:
    """One side's clock leaps past its deadline (or its queue's): everything there is overdue at once.

    Tombstones may go with it, and a duplicate that comes after its tombstone is no duplicate to anybody any more.
    """
    _spend(world, "clock_jump", disturbs=True)
    world.network.forget_repeats(1 if action[1] == "receiver" else 0)
    time = world.scenario.time
    # Tombstones are made to outlive the largest delay; a leap beyond that would be another protocol's problem.
    farthest = min(time.queue_deadline_ticks, time.tombstone_ticks - 1)
    leap = (time.resend_ticks, time.deadline_ticks, farthest)[choices.pick(3, "leap")]
    if action[1] == "sender":
        for rank, sender in enumerate(world.senders):
            saved = sender.save(world.now + leap)
            sender.load(saved, world.now)
            world._from_sender(rank, sender.tick(world.now))
    else:
        for receiver in world.receivers:
            receiver.load(receiver.save(world.now + leap), world.now)


def _duplicate_room(world: World, action: Action, choices: Choices) -> None:
    """A second submit of a live room is refused on both sides, and changes nothing there."""
    _spend(world, "duplicate_room", disturbs=False)
    for receiver in world.receivers:
        if action[1] in receiver.rooms:  # a rank that died lately has none
            _must_refuse(lambda owner=receiver: owner.submit(action[1], world.now), receiver, world)
    for sender in world.senders:
        if action[1] in sender.rooms:
            _must_refuse(lambda owner=sender: owner.submit(action[1], 1, world.now), sender, world)


def _must_refuse(submit, target, world: World) -> None:  # type: ignore[no-untyped-def]
    before = target.save(world.now)
    try:
        submit()
    except LocalError:
        if target.save(world.now) == before:
            return
    raise AssertionError("a live room was submitted again and not refused without a trace")


_DO = {
    "copied": _copied, "staged": _staged, "noticed": _noticed, "returned": _returned, "released": _released,
    "deliver": _deliver, "stray": _stray, "land": _land, "told": _told, "vanish": _vanish, "arrive": _arrive,
    "gone": _gone, "tick": _tick, "enter": _enter, "leave": _leave, "time": _time, "heal": _heal,
    "duplicate": _duplicate, "delay": _delay, "drop": _drop, "heartbeat_loss": _heartbeat_loss, "poison": _poison,
    "abort": _abort, "sender_abort": _sender_abort, "sender_crash": _sender_crash, "receiver_crash": _receiver_crash,
    "partition": _partition, "clock_jump": _clock_jump, "duplicate_room": _duplicate_room,
}  # fmt: skip
