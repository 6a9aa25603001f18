"""What lies below the protocol in a world: landing memory with its shadow, the control network, spoilt messages."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.blocks import PerBlock
from fsm.errors import RemoteError
from fsm.messages import (
    Abort,
    AbortAck,
    BlockRef,
    Epoch,
    Grant,
    Heartbeat,
    Layout,
    Message,
    Nack,
    NackCode,
    Offer,
    Register,
    RegisterAck,
    Status,
    decode,
    encode,
)
from fsm.rules import PROTOCOL, Rules
from sim import actions, zoo
from sim.choices import Scripted
from sim.memory import POISON, Header, Memory, token_value, value_text
from sim.network import Network, Stray
from sim.poison import spoil
from sim.scenario import Pool, Scenario, Schedule
from sim.world import World

PLANES = zoo.rules_for("watermark", ["plane-major-mrope"])
OWN_PLACES = replace(PROTOCOL, position_written=lambda *at: PROTOCOL.position_written(*at))
"""The protocol's layout, but kept apart element by element, as that of a stray variant is."""

# --- memory ---------------------------------------------------------------------------------------------


def test_memory_begins_as_poison_with_clean_or_stale_headers() -> None:
    for stale in (0, 3, 8192):
        memory = Memory(3, 4, PROTOCOL, stale)
        assert memory.cells == [(POISON,) * 4] * 3
        assert [memory.header_total(block) for block in range(3)] == [stale] * 3
        assert memory.wrong((0,), 0, 0, 1) == "where token 0 should be there was poison"


def test_a_freed_block_is_poisoned_and_its_header_cleared_only_if_told() -> None:
    memory = Memory(3, 2, PLANES, 7)
    memory.write((2, 0), 0, 0, 4, Header(4, 1))
    assert memory.headers == [Header(7, 0), Header(7, 0), Header(4, 1)]  # only the first block of a grant has one
    memory.recycle((2,), False)
    assert memory.cells[2] == (POISON, POISON) and memory.positions[2] == (POISON,) * 6
    assert memory.headers[2] == Header(4, 1)
    assert memory.cells[0] == (token_value(0, 2), token_value(0, 3))
    memory.recycle((2, 1), True)
    assert memory.headers == [Header(7, 0), Header(0, 0), Header(0, 0)]


def test_a_cell_says_whose_token_it_holds_and_which() -> None:
    assert value_text(token_value(0, 0)) == "token 0 of request 0"
    assert value_text(token_value(3, 100_000)) == "token 100000 of request 3"
    assert value_text(POISON) == "poison"


def test_what_is_wrong_is_told_by_token() -> None:
    memory = Memory(4, 4, PROTOCOL)
    memory.write((1, 3), 0, 4, 6, None)
    assert memory.wrong((1, 3), 0, 4, 6) == ""
    assert memory.wrong((1, 3), 0, 4, 5) == ""  # less than there is
    assert memory.wrong((1, 3), 0, 4, 7) == "where token 10 should be there was poison"
    assert memory.wrong((3, 1), 0, 4, 6) == "where token 4 should be there was token 8 of request 0"
    assert memory.wrong((1, 3), 1, 4, 6) == "where token 4 should be there was token 4 of request 0"
    assert memory.wrong((1,), 0, 4, 6) == "token 8 lies behind the 1 blocks that were granted"
    assert memory.wrong((), 0, 4, 0) == ""


def test_a_write_leaves_alone_what_it_does_not_reach() -> None:
    memory = Memory(3, 4, PROTOCOL)
    memory.write((0, 1, 2), 0, 0, 12, Header(12, 1))
    memory.write((0, 1), 1, 0, 5, None)
    assert memory.wrong((0, 1), 1, 0, 5) == ""
    assert memory.cells[1][1:] == (token_value(0, 5), token_value(0, 6), token_value(0, 7))
    assert memory.wrong((2,), 0, 8, 4) == ""
    assert memory.headers[0] == Header(12, 1)  # a later chunk has none
    memory.write((2,), 1, 9, 0, None)
    assert memory.wrong((2,), 0, 8, 4) == ""


@pytest.mark.parametrize("rules", [PROTOCOL, OWN_PLACES], ids=["beside the cells", "element by element"])
@given(st.integers(1, 5), st.data())
def test_what_was_written_reads_back_right_wherever_it_starts_and_ends(
    rules: Rules, block_tokens: int, data: st.DataObject
) -> None:
    """R10: positions are stored per token, so a block that is filled in part reads back right."""
    blocks = data.draw(st.permutations(range(4)))[: data.draw(st.integers(1, 4))]
    start, count = data.draw(st.integers(0, 20)), data.draw(st.integers(1, len(blocks) * block_tokens))
    memory = Memory(4, block_tokens, rules)
    assert memory.split == (rules is not PROTOCOL)
    memory.write(blocks, 2, start, count, None)
    assert memory.wrong(blocks, 2, start, count) == ""
    assert memory.wrong(blocks, 2, start + 1, count) != "" and memory.wrong(blocks, 1, start, count) != ""
    other = Memory(4, block_tokens, rules)
    other.load(memory.save())
    assert type(memory.save()) is PerBlock and other.save() == memory.save() and hash(memory.save()) is not None
    assert other.wrong(blocks, 2, start, count) == ""


@pytest.mark.parametrize("block_tokens", [2, 4, 5])
def test_planes_read_back_right_from_whole_blocks_only(block_tokens: int) -> None:
    for count in range(1, 2 * block_tokens + 1):
        memory = Memory(2, block_tokens, PLANES)
        memory.write((0, 1), 0, 0, count, None)
        wrong = memory.wrong((0, 1), 0, 0, count)
        if count % block_tokens == 0:
            assert wrong == ""
        else:
            first = count - count % block_tokens  # its axis 0 is where it should be, its axis 1 is not
            assert wrong == f"position 1 of token {first} is not its own"


def test_the_layouts_of_positions_differ_only_in_blocks_that_are_filled_in_part() -> None:
    for offset, axis in itertools.product(range(3), range(3)):
        places = (4, 3, offset, axis)
        assert PROTOCOL.position_written(*places) == PROTOCOL.position_read(*places) == 3 * offset + axis
        assert PLANES.position_written(*places) == 3 * axis + offset
        assert PLANES.position_read(*places) == 4 * axis + offset
        assert PLANES.position_written(4, 4, offset, axis) == PLANES.position_read(4, 4, offset, axis)


# --- messages -------------------------------------------------------------------------------------------

EPOCH = Epoch(1, 1)
WHERE = (5, EPOCH, 0, 0)
LAYOUT = Layout(4, 1, "int64", ("fill_ids",), 0, 1)
GRANT = Grant(*WHERE, 2, 8, 4, (BlockRef(3, 1),), 1)
STATUS = Status(*WHERE, 2, 12, 20, True, False)
OFFER = Offer(*WHERE, 20, True, False)
OTHERS: tuple[Message, ...] = (
    Register(*WHERE, LAYOUT),
    RegisterAck(*WHERE, 1, True, 60),
    Nack(*WHERE, NackCode.NOT_READY, "GRANT", 2, 1),
    Abort(*WHERE, "ABORTED"),
    AbortAck(*WHERE, 1, -1),
    Heartbeat(1, 0, 0),
)
ALL: tuple[Message, ...] = (GRANT, STATUS, OFFER, *OTHERS)


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_a_message_is_spoilt_in_three_ways_and_none_names_other_blocks(message: Message) -> None:
    data = encode(message)
    with pytest.raises(RemoteError):
        decode(data[: len(data) // 2])
    assert spoil(message, Scripted((0,))) is None  # cut short: the codec refuses it
    foreign = spoil(message, Scripted((1,)))
    if isinstance(message, Heartbeat):
        assert foreign is None
    else:
        assert foreign is not None and foreign.epoch == Epoch(1, 1001)
        assert type(foreign) is type(message) and foreign.room == 5
    for way in (1, 2):
        spoilt = spoil(message, Scripted((way,)))
        assert spoilt is None or spoilt != message
        if isinstance(message, Grant) and isinstance(spoilt, Grant):
            assert spoilt.blocks == message.blocks


def test_numbers_are_spoilt_where_there_are_any() -> None:
    spoilt = [spoil(message, Scripted((2,))) for message in ALL]
    assert isinstance(spoilt[0], Grant) and spoilt[0].seq == 9
    assert isinstance(spoilt[1], Status) and spoilt[1].seq == 9
    assert spoilt[2] == Offer(*WHERE, 0, True, False)
    assert spoilt[3:] == [None] * len(OTHERS)


# --- the network ----------------------------------------------------------------------------------------


def test_a_channel_keeps_its_order_and_knows_nothing_of_the_others() -> None:
    network = Network(2)
    assert network.empty and len(network.channels) == 4
    for message in ALL:
        assert network.send(1, message)
    assert network.send(2, OFFER)
    assert [network.take(1) for _ in ALL] == list(ALL)
    assert network.channels == [(), (), (OFFER,), ()] and not network.empty


def test_a_cut_network_loses_what_is_sent_and_keeps_nothing_of_what_was_lost() -> None:
    network = Network(1)
    network.send(0, GRANT)
    network.send(1, STATUS)
    network.add_stray(Stray(1, OFFER, 0))
    assert network.lose_all() == 3 and network.empty
    network.cut = True
    assert not network.send(0, GRANT) and network.empty
    network.cut = False
    assert network.send(0, GRANT) and not network.empty


@given(
    st.permutations([Stray(c, m, r) for c, m, r in ((1, OFFER, 1), (0, GRANT, 0), (1, STATUS, 0), (0, OTHERS[0], 2))])
)
def test_strays_are_kept_in_one_order_whatever_order_they_went_astray_in(strays: list[Stray]) -> None:
    network = Network(1)
    for stray in strays:
        network.add_stray(stray)
    kept = list(network.strays)
    assert [stray.channel for stray in kept] == [0, 0, 1, 1]
    assert [stray.message for stray in kept] == [GRANT, OTHERS[0], STATUS, OFFER]
    assert network.take_stray(2) == kept[2] and list(network.strays) == [*kept[:2], kept[3]]
    saved = network.save()
    other = Network(1)
    other.load(saved)
    assert other.save() == saved and hash(saved) == hash(other.save())
    other.channels[0] += (GRANT,)
    assert network.save() == saved  # nothing is shared


def test_a_clock_jump_makes_duplicates_on_their_way_to_that_side_new() -> None:
    network = Network(1)
    for channel in (0, 1):
        network.add_stray(Stray(channel, STATUS, 3))
    network.forget_repeats(1)
    assert [(stray.channel, stray.repeats) for stray in network.strays] == [(0, 3), (1, 0)]
    network.forget_repeats(0)
    assert [stray.repeats for stray in network.strays] == [0, 0]


# --- both, in a world -----------------------------------------------------------------------------------


def run_to(world: World, kind: str) -> None:
    """Take the first action until one of that kind comes next."""
    for _ in range(50):
        course = actions.enabled(world)
        if course[0][0] == kind:
            return
        actions.apply(world, course[0], Scripted())
    raise AssertionError(f"no {kind} in 50 steps")


def test_bytes_lie_in_memory_before_their_status_or_after_it_as_the_scenario_says() -> None:
    def cells(schedule: Schedule) -> tuple[int, ...]:
        world = World(Scenario(pool=Pool(blocks=1, block_tokens=2), schedule=schedule), PROTOCOL)
        run_to(world, "land" if not schedule.status_lags_data else "told")
        return world.memories[0].cells[0]

    assert cells(Schedule()) == (POISON, POISON)
    assert cells(Schedule(data_lags_status=True)) == (POISON, POISON)
    assert cells(Schedule(status_lags_data=True)) == (token_value(0, 0), token_value(0, 1))


def test_the_last_tokens_leave_the_rest_of_their_block_as_it_was() -> None:
    scenario = zoo.scenario_named("plane-major-mrope")  # six tokens in blocks of four
    world = World(scenario, PROTOCOL)
    run_to(world, "land")
    actions.apply(world, ("land", 0), Scripted())
    assert world.memories[0].cells[:2] == [
        tuple(token_value(0, token) for token in range(4)),
        (token_value(0, 4), token_value(0, 5), POISON, POISON),
    ]
    assert world.memories[0].headers[0] == Header(6, 1)
