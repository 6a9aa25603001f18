"""States of a world: what is saved is all that matters, and nothing that does not.

Worlds are driven to random points here. A state that is saved there and loaded into a fresh world must go on exactly as
the old one does; and worlds that differ only in names, of blocks, of generations, of the time of day, are one state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fsm.allocators import Adversary, Choices, Kind
from fsm.blocks import BlockRecord
from fsm.events import Granted, Wrote
from fsm.messages import BlockRef, Grant
from sim import actions, zoo
from sim.choices import Drawn, Recording, Replayed, Scripted
from sim.scenario import Faults, Pool, RankCounts, Request, Scenario, Schedule, Source, Time
from sim.state import Key, StateSpace
from sim.world import Action, World

STEPS_MAX = 40
EVERY_FAULT = Faults(
    duplicate_max=1, delay_max=1, drop_max=1, abort_max=1, sender_crash_max=1, receiver_crash_max=1, partition_max=1,
    clock_jump_max=1, poison_max=1, heartbeat_loss_max=1, duplicate_room_max=1,
)  # fmt: skip
TIME = Time(deadline_ticks=40, queue_deadline_ticks=60, bootstrap_ticks=50, tombstone_ticks=90, resend_ticks=30,
            heartbeat_ticks=70)


def scenario(allocator: str = "fifo", *, receivers: int = 1, detector: str = "watermark", **schedule: Any) -> Scenario:
    """Three requests, one of them with early grants, two on one room; every fault once."""
    hostile = allocator == "adversary"
    return Scenario(
        pool=Pool(blocks=3, block_tokens=2, allocator=allocator, grant_blocks_max=2, refusals_max=1 if hostile else 0),
        source=Source(blocks=8),
        requests=(Request(tokens=9, room=1), Request(tokens=3, grant_tokens=2), Request(tokens=4, room=1)),
        ranks=RankCounts(receivers=receivers, senders=min(receivers, 2)),
        variant=msgspec.structs.replace(Scenario().variant, detector=detector),
        schedule=Schedule(**schedule),
        time=TIME,
        faults=EVERY_FAULT,
    )


PLAIN = {
    "fifo": scenario(),
    "lifo": scenario("lifo"),
    "same-again": scenario("same-again"),
    "disjoint, two ranks": scenario("disjoint", receivers=2),
    "stingy, late data": scenario("stingy", data_lags_status=True),
    "late status": scenario(status_lags_data=True),
    "slow copies": scenario(copy_lags=True, staging_lags=True),
    "ticks at any time": scenario(ticks_free=True),
    "skewed ranks": scenario(receivers=2, rank_skew_ticks=2),
    "sent-accumulate": scenario("lifo", detector="sent-accumulate"),
}
"""Worlds in which block numbers mean something."""

HOSTILE = {
    "one rank": scenario("adversary"),
    "two ranks": scenario("adversary", receivers=2),
    "slow copies": scenario("adversary", receivers=2, copy_lags=True, staging_lags=True),
    "late data": scenario("adversary", data_lags_status=True),
    "notices": scenario("adversary", notice_lags=True),
    "skewed ranks": scenario("adversary", receivers=2, rank_skew_ticks=2),
}
"""Worlds in which they do not."""

DRIVEN = settings(phases=[Phase.explicit, Phase.generate])
"""A failing run is shown as it was drawn: making it smaller, step by step, takes minutes."""

Way = list[tuple[Action, Recording]]


def new_world(of: Scenario) -> World:
    rules = zoo.rules_for(of.variant.detector, of.variant.hazards)
    return World(of, rules, flat=True, arrive_any_time=True)


def course_of(world: World) -> list[Action]:
    """All that can be done, up to the end of the run."""
    course = actions.enabled(world)
    return course + actions.faults(world) if course and not world.done() else []


def drawn(data: st.DataObject) -> Choices:
    return Drawn(lambda options, label: data.draw(st.integers(0, options - 1), label))


def step(world: World, choices: Choices) -> tuple[Action, Recording] | None:
    """One drawn step: mostly the world's own course, now and then a fault."""
    course = course_of(world)
    if not course or world.monitors.violations:
        return None
    own = len(actions.enabled(world))
    faults = len(course) - own
    at = (
        own + choices.pick(faults, "fault")
        if faults and choices.pick(6, "strike") == 5
        else choices.pick(own, "action")
    )
    recording = Recording(choices)
    actions.apply(world, course[at], recording)
    return course[at], recording


def walk(world: World, choices: Choices, steps: int) -> Way:
    """So many drawn steps, or up to the end."""
    way: Way = []
    for _ in range(steps):
        done = step(world, choices)
        if done is None:
            break
        way.append(done)
    return way


def again(of: Scenario, way: Way) -> World:
    """The same way in a fresh world."""
    world = new_world(of)
    for action, recording in way:
        actions.apply(world, action, Replayed(recording.picks))
    return world


def key_of(space: StateSpace, world: World) -> Key:
    """The state of any world of the same scenario, in the numbers of that space."""
    space.world = world
    space.dirty()
    try:
        return space.save()
    finally:
        space.dirty()


def load_into(space: StateSpace, world: World, key: Key) -> None:
    """Load a state into a world of its own, whatever processes the space has wrapped."""
    space.world = world
    wrapped, space._processes = space._processes, []
    space.dirty()
    space.load(key)
    space.dirty()
    space._processes = wrapped


def without_generations(events: Sequence[Any]) -> list[Any]:
    """Events as they are but for generations, which are renumbered when a state is loaded."""
    plain = []
    for event in events:
        if type(event) is Granted:
            event = msgspec.structs.replace(event, blocks=tuple(BlockRef(ref.block, 0) for ref in event.blocks))
        elif type(event) is Wrote and event.trespass:
            event = msgspec.structs.replace(event, trespass="somewhere")
        plain.append(event)
    return plain


# --- save and load --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PLAIN))
def test_a_loaded_state_goes_on_as_the_saved_one_does(name: str) -> None:
    of = PLAIN[name]

    @settings(DRIVEN, max_examples=20)
    @given(st.data())
    def goes_on(data: st.DataObject) -> None:
        choices = drawn(data)
        old, new = new_world(of), new_world(of)
        walk(old, choices, data.draw(st.integers(0, STEPS_MAX)))
        if old.monitors.violations:
            return
        space = StateSpace(old)
        load_into(space, new, key_of(space, old))
        for _ in range(12):
            assert course_of(new) == course_of(old)
            assert [actions.describe_action(new, a) for a in course_of(new)] == [
                actions.describe_action(old, a) for a in course_of(old)
            ]
            assert key_of(space, new) == key_of(space, old)
            assert new.done() == old.done() and new.left_behind() == old.left_behind()
            done = step(old, choices)
            if done is None:
                break
            actions.apply(new, done[0], Replayed(done[1].picks))
            assert without_generations(new.events) == without_generations(old.events)
            assert [v.property for v in new.monitors.violations] == [v.property for v in old.monitors.violations]

    goes_on()


def successors(space: StateSpace, course: list[Action], at: Callable[[], World]) -> list[set[Key]]:
    """For each action, the states that it may lead to, whatever is answered inside it."""
    reached = []
    for action in course:
        script, keys, more = Scripted(), set(), True
        while more:
            script.restart()
            world = at()
            actions.apply(world, action, script)
            keys.add(key_of(space, world))
            more = script.advance()
        reached.append(keys)
    return reached


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_state_with_renumbered_blocks_leads_to_the_same_states(name: str) -> None:
    """Under an allocator that chooses freely a loaded state has other block numbers: step by step it cannot be
    compared, but what can become of it can."""
    of = HOSTILE[name]

    @settings(DRIVEN, max_examples=8)
    @given(st.data())
    def leads_on(data: st.DataObject) -> None:
        old = new_world(of)
        way = walk(old, drawn(data), data.draw(st.integers(0, STEPS_MAX)))
        if old.monitors.violations:
            return
        space = StateSpace(old)
        key = key_of(space, old)

        def loaded() -> World:
            world = new_world(of)
            load_into(space, world, key)
            return world

        assert key_of(space, loaded()) == key
        course, renumbered = course_of(old), course_of(loaded())
        assert sorted(map(repr, course)) == sorted(map(repr, renumbered))
        ours = successors(space, course, lambda: again(of, way))
        theirs = successors(space, renumbered, loaded)
        # Strays have no order of their own, so which of them an index means may differ; together they are the same.
        assert sorted(map(sorted, ours)) == sorted(map(sorted, theirs))

    leads_on()


@pytest.mark.parametrize("name", [*PLAIN, *(f"adversary, {name}" for name in HOSTILE)])
def test_what_an_engine_saves_step_by_step_is_what_is_there(name: str) -> None:
    """An engine looks only at what an action touched, and remembers what a process did before; a world of its own,
    looked at afresh after every step, must show the same states."""
    of = PLAIN[name] if name in PLAIN else HOSTILE[name.removeprefix("adversary, ")]

    @settings(DRIVEN, max_examples=20)
    @given(st.data())
    def shows_the_same(data: st.DataObject) -> None:
        choices = drawn(data)
        world, plain = new_world(of), new_world(of)
        space = StateSpace(world)
        first = space.save()
        space.remember()
        space.dirty()
        assert key_of(space, plain) == first
        load_into(space, plain, first)
        space.world = world
        space.load(first)
        for _ in range(STEPS_MAX):
            done = step(plain, choices)
            if done is None:
                break
            space.before(done[0])
            actions.apply(world, done[0], Recording(Replayed(done[1].picks)))
            space.after(done[0])
            key = space.save()
            assert without_generations(world.events) == without_generations(plain.events)
            assert key_of(space, plain) == key
            load_into(space, plain, key)
            space.world = world
            space.load(key)  # as the engine does before every action

    shows_the_same()


def test_only_what_changed_is_loaded() -> None:
    world = new_world(zoo.scenario_named("flag"))
    space = StateSpace(world)
    start = space.save()
    space.load(start)
    actions.apply(world, ("deliver", 0), Scripted())
    reached = space.save()
    changed = [component for component, (a, b) in enumerate(zip(start, reached, strict=True)) if a != b]
    _receiver, _memory, sender, network, _under_way, _monitors, rest = range(len(start))
    assert changed == [sender, network, rest]
    held = world.receivers[0].rooms[1]
    space.load(start)
    assert world.receivers[0].rooms[1] is held  # a side that was not touched is left alone
    assert space.save() == start


# --- names that mean nothing ----------------------------------------------------------------------------


class Reordered(Adversary):
    """Chooses freely among free blocks in an order of its own: the same picks mean other blocks."""

    def __init__(self, order: Sequence[int], refusals_max: int) -> None:
        super().__init__(refusals_max)
        self.order = list(order)

    def take(
        self, free: tuple[int, ...], count: int, room: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[int, ...]:
        return super().take(tuple(sorted(free, key=self.order.index)), count, room, choices, kind)


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_permutation_of_blocks_is_the_same_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = HOSTILE[name]
    orders: list[Sequence[int]] = []

    def make(allocator: str, refusals_max: int = 0) -> Adversary:
        return Reordered(orders.pop(0) if orders else range(of.pool.blocks), refusals_max)

    monkeypatch.setattr("sim.world.make_allocator", make)
    moved = []

    @settings(DRIVEN, max_examples=40)
    @given(st.data())
    def is_the_same(data: st.DataObject) -> None:
        orders[:] = []
        straight = new_world(of)
        way = walk(straight, drawn(data), data.draw(st.integers(5, STEPS_MAX)))
        permutations = st.sampled_from([(2, 1, 0), (1, 2, 0), (2, 0, 1)])
        orders[:] = [data.draw(permutations) for _ in range(of.ranks.receivers)]
        if any(action[0] == "receiver_crash" for action, _ in way):
            orders[:] = []  # a new process has a new allocator; which order it takes is not told apart here
        crooked = again(of, way)
        space = StateSpace(straight)
        assert key_of(space, crooked) == key_of(space, straight)
        assert [v.property for v in crooked.monitors.violations] == [v.property for v in straight.monitors.violations]
        space.symmetric = False
        moved.append(key_of(space, crooked) != key_of(space, straight))

    is_the_same()
    assert any(moved)  # without the reduction they are different


def shifted(value: Any, by: int, stale: int = 0) -> Any:
    """Saved content with every generation raised; ``stale`` raises those of references less, so that they are older."""
    if type(value) is BlockRef:
        return BlockRef(value.block, value.generation + by - stale)
    if type(value) is BlockRecord:
        return value._replace(generation=value.generation + by)
    if type(value) is Grant:
        return msgspec.structs.replace(value, blocks=tuple(shifted(ref, by, stale) for ref in value.blocks))
    if isinstance(value, tuple):
        items = [shifted(item, by, stale) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def with_generations(of: Scenario, way: Way, by: int, stale: int = 0) -> World:
    """The world at the end of a way, its blocks so many generations older."""
    world = again(of, way)
    now = world.now
    for process in (*world.receivers, *world.senders):
        process.load(shifted(process.save(now), by, stale), now)
    world.network.load(shifted(world.network.save(), by, stale))
    world.flights = shifted(world.flights, by, stale)
    world.copies = shifted(world.copies, by, stale)
    return world


@pytest.mark.parametrize(
    "of", [PLAIN["fifo"], PLAIN["slow copies"], HOSTILE["two ranks"]], ids=["fifo", "slow", "adversary"]
)
def test_generations_matter_only_against_each_other(of: Scenario) -> None:
    differed = []

    @settings(DRIVEN, max_examples=20)
    @given(st.data(), st.integers(1, 1000))
    def matter_not(data: st.DataObject, by: int) -> None:
        world = new_world(of)
        way = walk(world, drawn(data), data.draw(st.integers(0, STEPS_MAX)))
        space = StateSpace(world)
        key = key_of(space, world)
        assert key_of(space, with_generations(of, way, by)) == key
        if any(action[0] == "receiver_crash" for action, _ in way):
            return  # what was granted by a process that died has another owner in any case
        older = key_of(space, with_generations(of, way, by, stale=1))
        assert key_of(space, with_generations(of, way, by, stale=by)) == older  # how much older does not matter
        differed.append(older != key)

    matter_not()
    assert any(differed) and not all(differed)


def due_in(world: World) -> float:
    """How long it is to the next timer; one that is overdue fires at once, however long it has been so."""
    timer = world.next_timer()
    assert timer is not None
    return max(timer - world.now, 0)


@pytest.mark.parametrize("name", list(PLAIN))
def test_the_time_of_day_does_not_matter(name: str) -> None:
    of = PLAIN[name]

    @settings(DRIVEN, max_examples=10)
    @given(st.data(), st.integers(1, 10**6))
    def matters_not(data: st.DataObject, later: int) -> None:
        world = new_world(of)
        way = walk(world, drawn(data), data.draw(st.integers(0, STEPS_MAX)))
        other = again(of, way)
        for process in (*other.receivers, *other.senders):
            process.load(process.save(other.now), other.now + later)
        other.now += later
        space = StateSpace(world)
        assert key_of(space, other) == key_of(space, world)
        if world.next_timer() is not None:
            assert due_in(other) == due_in(world)
        assert course_of(other) == course_of(world)

    matters_not()


def test_what_does_matter_is_told_apart() -> None:
    """Along a run without a loop no two states are one."""
    for of in (zoo.scenario_named("flag"), zoo.scenario_named("watermark")):
        world = new_world(of)
        space = StateSpace(world)
        seen = [key_of(space, world)]
        while actions.enabled(world) and not world.done():
            actions.apply(world, actions.enabled(world)[0], Scripted())
            seen.append(key_of(space, world))
        assert len(dict.fromkeys(seen)) == len(seen) > 10


def test_budgets_are_part_of_a_state() -> None:
    of = PLAIN["fifo"]
    world = new_world(of)
    space = StateSpace(world)
    keys = [key_of(space, world)]
    for kind in world.budget:
        world.budget[kind] -= 1
        keys.append(key_of(space, world))
        world.budget[kind] += 1
    assert len(dict.fromkeys(keys)) == 1 + len(world.budget) == 12
