"""The golden traces: the six situations that the protocol was first written down with, in their own sizes.

Chunks of 8192 tokens, in 64 blocks of 128; a pool of 64 blocks (S1) or of 128; the receiver waits for the OFFER. Every
world here is driven by the first action that it offers, so nothing is left open, and what must come out is written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from fsm.allocators import FirstChoice
from fsm.events import Delivered, Executed, Granted, LedgerRefused, StateChanged
from fsm.receiver_room import ReceiverRoom
from fsm.rules import Rules
from fsm.states import State
from sim import actions, zoo
from sim.scenario import Pool, Request, Scenario, Source
from sim.world import World

CHUNK = 8192
BLOCK_TOKENS = 128
LOW, HIGH = tuple(range(64)), tuple(range(64, 128))
FOUR_CHUNKS = 4 * CHUNK
STEPS_MAX = 400
ROOM = 1


def seed_scenario(blocks: int, allocator: str, *, tokens: int = FOUR_CHUNKS, stale: int = 0) -> Scenario:
    """A seed's own scenario; ``stale`` is the length that headers of earlier requests tell."""
    return Scenario(
        pool=Pool(
            blocks=blocks,
            block_tokens=BLOCK_TOKENS,
            allocator=allocator,
            grant_blocks_max=64,
            stale_header_tokens=stale,
        ),
        source=Source(blocks=1024),
        requests=(Request(tokens=tokens),),
    )


@dataclass
class Run:
    """A run, and what was seen in it: every event, and for each tick the watermark it saw and what it decided."""

    world: World
    events: list[Any] = field(default_factory=list)
    ticks: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)

    def grants(self) -> list[tuple[int, tuple[int, ...]]]:
        """(start, block list) of every grant."""
        return [(e.start, tuple(ref.block for ref in e.blocks)) for e in self.events if type(e) is Granted]

    def resumed_at(self) -> list[int]:
        """The watermarks at which the receiver asked to go on."""
        return [e.start for e in self.events if type(e) is Granted and e.seq > 0]

    def broken(self) -> list[str]:
        """The properties that were broken, in order."""
        return [violation.property for violation in self.world.monitors.violations]

    def states(self) -> list[State]:
        """The receiver's states, in order."""
        return [State(e.target) for e in self.events if type(e) is StateChanged and e.side == "receiver"]


def word_of(world: World) -> int:
    """The watermark that a tick sees now: what the sender says it committed."""
    room = world.receivers[0].rooms.get(ROOM)
    return room.word_tokens if room is not None else -1


def decisions(events: Sequence[Any]) -> tuple[str, ...]:
    """What a tick did, in words."""
    words = []
    for event in events:
        if type(event) is StateChanged and event.side == "receiver":
            words.append(event.cause)
        elif type(event) is Granted:
            first, last = event.blocks[0].block, event.blocks[-1].block
            words.append(f"{event.start} into [{first}-{last}]")
        elif type(event) is Delivered:
            words.append(f"copy {event.start}")
    return tuple(words)


def drive(scenario: Scenario, rules: Rules, *, ticks: int = 3) -> Run:
    """Take the first action, always, until something is broken or all is over. After each message to the receiver it
    polls once, and then ``ticks`` times more, whether or not there is anything new."""
    world = World(scenario, rules, flat=True)
    run = Run(world, list(world.events))
    for _ in range(STEPS_MAX):
        course = actions.enabled(world)
        if not course or world.done():
            return run
        action = course[0]
        polled = action == ("deliver", 1)
        for what in (action, *([actions.TICK] * ticks if polled else ())):
            actions.apply(world, what, FirstChoice())
            run.events += world.events
            if polled:
                run.ticks.append((word_of(world), decisions(world.events)))
            if world.monitors.violations:
                return run
    raise AssertionError(f"not over after {STEPS_MAX} steps")


def protocol_run(scenario: Scenario, detector: str = "watermark") -> Run:
    """The protocol on one of the scenarios: it must end well."""
    run = drive(scenario, zoo.rules_for(detector))
    assert run.broken() == [] and run.world.done() and run.world.left_behind() == ""
    assert run.states()[-1] == State.SUCCESS
    delivered = [(e.start, e.count, e.wrong) for e in run.events if type(e) is Delivered]
    total = scenario.requests[0].tokens
    assert delivered == [(at, min(CHUNK, total - at), "") for at in range(0, total, CHUNK)]
    return run


# --- S1: the same blocks again --------------------------------------------------------------------------


@pytest.mark.parametrize("allocator", ["same-again", "fifo"])
def test_s1_the_allocator_answers_with_the_same_blocks(allocator: str) -> None:
    run = protocol_run(seed_scenario(64, allocator))
    assert run.grants() == [(0, LOW), (8192, LOW), (16384, LOW), (24576, LOW)]
    assert run.resumed_at() == [8192, 16384, 24576]
    assert run.ticks == [
        (0, ("registered",)), (0, ()), (0, ()), (0, ()),
        (0, ("grant", "0 into [0-63]")), (0, ()), (0, ()), (0, ()),
        (8192, ("landed", "copy 0")), (8192, ("resume", "8192 into [0-63]")), (8192, ()), (8192, ()),
        (16384, ("landed", "copy 8192")), (16384, ("resume", "16384 into [0-63]")), (16384, ()), (16384, ()),
        (24576, ("landed", "copy 16384")), (24576, ("resume", "24576 into [0-63]")), (24576, ()), (24576, ()),
        (32768, ("copy 24576",)), (-1, ("complete",)), (-1, ()), (-1, ()),
    ]  # fmt: skip


def test_s1_on_the_historical_table_the_detector_is_asked_at_every_poll_and_skips_what_it_saw() -> None:
    rules = zoo.rules_for("watermark-five")
    asked: list[tuple[int, bool]] = []

    def spy(room: ReceiverRoom) -> bool:
        due = rules.detect(room)
        if room.handled_tokens and (not asked or asked[-1] != (room.handled_tokens, due)):
            asked.append((room.handled_tokens, due))
        return due

    run = drive(seed_scenario(64, "same-again"), replace(rules, detect=spy))
    assert run.broken() == [] and run.world.done()
    assert run.resumed_at() == [8192, 16384, 24576]
    seen_twice = [(at, due) for at in (8192, 16384, 24576) for due in (True, False)]
    assert asked == [*seen_twice, (32768, False)]


def test_s1_the_last_in_first_out_order_turns_the_block_list_round_and_changes_nothing_else() -> None:
    run = protocol_run(seed_scenario(64, "lifo"))
    down = LOW[::-1]
    assert run.grants() == [(0, down), (8192, LOW), (16384, down), (24576, LOW)]
    assert run.resumed_at() == [8192, 16384, 24576]


# --- S2: other blocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("allocator", ["disjoint", "fifo"])
def test_s2_the_allocator_answers_with_other_blocks(allocator: str) -> None:
    run = protocol_run(seed_scenario(128, allocator))
    assert run.grants() == [(0, LOW), (8192, HIGH), (16384, LOW), (24576, HIGH)]
    assert run.resumed_at() == [8192, 16384, 24576]
    assert run.ticks[4:] == [
        (0, ("grant", "0 into [0-63]")), (0, ()), (0, ()), (0, ()),
        (8192, ("landed", "copy 0", "resume", "8192 into [64-127]")), (8192, ()), (8192, ()), (8192, ()),
        (16384, ("landed", "copy 8192", "resume", "16384 into [0-63]")), (16384, ()), (16384, ()), (16384, ()),
        (24576, ("landed", "copy 16384", "resume", "24576 into [64-127]")), (24576, ()), (24576, ()), (24576, ()),
        (32768, ("copy 24576",)), (-1, ("complete",)), (-1, ()), (-1, ()),
    ]  # fmt: skip


# --- S3: many resumes -----------------------------------------------------------------------------------

TWELVE = [8192, 16384, 24576, 32768, 40960, 49152, 57344, 65536, 73728, 81920, 90112, 98304]


@pytest.mark.parametrize("detector", ["watermark", "watermark-five"])
@pytest.mark.parametrize(("blocks", "allocator"), [(64, "same-again"), (128, "disjoint"), (128, "lifo")])
def test_s3_every_watermark_is_resumed_exactly_once(blocks: int, allocator: str, detector: str) -> None:
    run = protocol_run(seed_scenario(blocks, allocator, tokens=100_000), detector)
    assert run.resumed_at() == TWELVE
    assert [e.start for e in run.events if type(e) is Executed] == [0, *TWELVE]
    last = next(e for e in run.events if type(e) is Granted and e.start == 98304)
    assert (last.capacity, len(last.blocks)) == (1696, 14)  # what is left, in as many blocks as that takes


@pytest.mark.parametrize("tokens", [8193, 16384, 16385, 20_000])
def test_s3_the_last_chunk_may_have_any_length(tokens: int) -> None:
    run = protocol_run(seed_scenario(64, "same-again", tokens=tokens))
    assert run.resumed_at() == list(range(CHUNK, tokens, CHUNK))


@pytest.mark.parametrize("tokens", [880, 5041, 8192])
def test_s3_what_fits_is_not_resumed_at_all(tokens: int) -> None:
    run = protocol_run(seed_scenario(64, "same-again", tokens=tokens))
    assert run.resumed_at() == []
    assert run.states() == [State.WAITING, State.WAITING, State.SUCCESS]


# --- S4: headers that say nothing, or something stale ---------------------------------------------------


@pytest.mark.parametrize("hazards", [(), ("stale-header",)])
@pytest.mark.parametrize("detector", ["watermark", "watermark-five"])
@pytest.mark.parametrize(("blocks", "allocator"), [(64, "same-again"), (128, "disjoint")])
def test_s4_no_decision_depends_on_a_header(
    blocks: int, allocator: str, detector: str, hazards: tuple[str, ...]
) -> None:
    rules = zoo.rules_for(detector, hazards)
    clean, *stale = [drive(seed_scenario(blocks, allocator, stale=length), rules) for length in (0, 3, 8192)]
    assert clean.broken() == [] and clean.world.done()
    assert clean.resumed_at() == [8192, 16384, 24576]
    for run in stale:
        assert run.events == clean.events
        assert run.ticks == clean.ticks


def test_s4_the_headers_were_indeed_stale() -> None:
    """What the test above varies must be there to be seen, or it shows nothing."""
    for length in (0, 3, 8192):
        world = World(seed_scenario(64, "same-again", stale=length), zoo.rules_for("watermark", ("stale-header",)))
        assert {world.memories[0].header_total(block) for block in LOW} == {length}


# --- S5: block lists cannot be compared -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("detector", "blocks", "allocator"),
    [
        ("indices-after", 64, "same-again"),
        ("indices-after", 64, "fifo"),
        ("indices-after", 128, "same-again"),
        ("indices-after", 128, "disjoint"),
        ("indices-before", 64, "same-again"),
        ("indices-before", 64, "fifo"),
    ],
)
def test_s5_equal_block_lists_lose_the_second_resume(detector: str, blocks: int, allocator: str) -> None:
    run = drive(seed_scenario(blocks, allocator), zoo.rules_for(detector))
    assert run.resumed_at() == [8192]
    assert run.broken() == ["L1"]
    room_states = run.states()
    assert room_states[-1] == State.FAILED  # of a deadline, with 16384 tokens in the result
    assert [e.start for e in run.events if type(e) is Delivered] == [0, 8192]
    # The second chunk was seen, again and again, and each time taken for the one before.
    assert [tick for tick in run.ticks if tick[0] == 16384][1:] == [(16384, ())] * 3


@pytest.mark.parametrize("allocator", ["disjoint", "fifo"])
def test_s5_recorded_before_the_allocation_another_list_resumes_twice(allocator: str) -> None:
    run = drive(seed_scenario(128, allocator), zoo.rules_for("indices-before"))
    assert run.grants() == [(0, LOW), (8192, HIGH), (8192, LOW)]
    assert run.broken() == ["I6"]


# --- S6: a generation resumes twice ---------------------------------------------------------------------


@pytest.mark.parametrize("allocator", ["disjoint", "fifo", "same-again"])
@pytest.mark.parametrize("detector", ["generation", "none"])
def test_s6_a_counter_raised_by_the_resume_itself_resumes_twice(detector: str, allocator: str) -> None:
    run = drive(seed_scenario(128, allocator), zoo.rules_for(detector))
    assert run.resumed_at() == [8192, 8192]
    assert run.grants()[1:] == [(8192, HIGH), (8192, LOW)]
    assert run.broken() == ["I6"]
    assert "start 8192 was granted as seq 1 and again as seq 2" in run.world.monitors.violations[0].text
    assert run.ticks[-1] == (8192, ("resume", "8192 into [0-63]"))


@pytest.mark.parametrize("detector", ["generation", "none"])
def test_s6_a_pool_that_is_all_granted_hides_it(detector: str) -> None:
    """With 64 blocks there is nothing left to grant twice: it is luck, not a rule, that this run is right."""
    run = drive(seed_scenario(64, "same-again"), zoo.rules_for(detector))
    assert run.resumed_at() == [8192, 16384, 24576]
    assert run.broken() == []


# --- what the detectors that count do in the same sizes -------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "allocator", "stale", "resumed_at"),
    [
        (128, "disjoint", 8192, [8192, 16384, 24576]),
        (128, "disjoint", 3, [8192, 8195, 16387, 16390, 24582, 24585]),
        (64, "same-again", 8192, [8192, 16384, 24576]),
        (64, "same-again", 0, [8192, 16384, 24576]),  # the stale header is its own, of the first chunk
    ],
)
def test_sent_accumulate_accepts_wrong_tokens_as_success(
    blocks: int, allocator: str, stale: int, resumed_at: list[int]
) -> None:
    run = drive(seed_scenario(blocks, allocator, stale=stale), zoo.rules_for("sent-accumulate"), ticks=8)
    assert run.broken() == ["I2"]
    assert run.states()[-1] == State.SUCCESS
    assert run.resumed_at() == resumed_at
    assert [e.start for e in run.events if type(e) is Executed] == [0]  # it never waited for the sender again
    assert run.world.monitors.violations[0].text == (
        "room 1 rank 0 ended in Success with wrong content: where token 8192 should be there was poison"
    )
    assert not [e for e in run.events if type(e) is LedgerRefused]


def test_sent_accumulate_over_fresh_headers_loses_the_second_resume() -> None:
    run = drive(seed_scenario(128, "disjoint"), zoo.rules_for("sent-accumulate"), ticks=8)
    assert (run.resumed_at(), run.broken()) == ([8192], ["L1"])


@pytest.mark.parametrize("detector", ["sent-cached", "flag"])
@pytest.mark.parametrize(("blocks", "allocator"), [(64, "same-again"), (128, "disjoint")])
@pytest.mark.parametrize("stale", [0, 3, 8192])
def test_sent_cached_and_flag_lose_the_second_resume(detector: str, blocks: int, allocator: str, stale: int) -> None:
    run = drive(seed_scenario(blocks, allocator, stale=stale), zoo.rules_for(detector))
    assert run.resumed_at() == [8192]
    assert run.broken() == ["L1"]
    assert [e.start for e in run.events if type(e) is Executed] == [0, 8192]
