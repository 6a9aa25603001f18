"""R7: what many ranks saw becomes one observation, the same for all of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.kernel import MISMATCH, UNKNOWN
from fsm.messages import Epoch
from fsm.ranks import Agreed, AgreedRoom, Observation, Observed, fold
from fsm.rules import PROTOCOL

E1, E2 = Epoch(1, 1), Epoch(1, 2)


def seen(room: int = 5, **changed: Any) -> Observed:
    """A request that waits, as one rank sees it."""
    plain = Observed(
        room=room,
        epoch=E1,
        registered=True,
        total_tokens=20,
        flags=1,
        committed_tokens=8,
        delivered_tokens=4,
        failure=0,
    )
    return plain._replace(**changed)


def brought(rank: int, *rooms: Observed, blocks: int = 6, result: int = 100) -> Observation:
    """What a rank brings."""
    return Observation(rank, rooms, blocks, result)


def folded(*ranks: Observed) -> AgreedRoom:
    """One request, seen so by these ranks."""
    (room,) = fold(tuple(brought(rank, one) for rank, one in enumerate(ranks)), PROTOCOL).rooms
    return room


def test_one_rank_agrees_with_itself() -> None:
    one = seen(total_tokens=UNKNOWN, flags=UNKNOWN, registered=False, failure=3)
    assert fold((brought(0, one, seen(6), blocks=2, result=9),), PROTOCOL) == Agreed(
        (
            AgreedRoom(5, E1, True, False, UNKNOWN, UNKNOWN, 8, 4, 3),
            AgreedRoom(6, E1, True, True, 20, 1, 8, 4, 0),
        ),
        2,
        9,
    )


def test_equal_observations_fold_to_themselves() -> None:
    assert folded(seen(), seen()) == AgreedRoom(5, E1, True, True, 20, 1, 8, 4, 0)


def test_progress_and_delivery_fold_by_min() -> None:
    room = folded(seen(committed_tokens=16, delivered_tokens=0), seen(committed_tokens=8, delivered_tokens=9))
    assert (room.committed_tokens, room.delivered_tokens) == (8, 0)


def test_the_fold_of_progress_is_a_rule() -> None:
    rules = replace(PROTOCOL, fold_progress=max)
    observations = (brought(0, seen(committed_tokens=16)), brought(1, seen(committed_tokens=8)))
    assert fold(observations, rules).rooms[0].committed_tokens == 16


def test_readiness_folds_by_and() -> None:
    assert folded(seen(registered=True), seen(registered=False)).registered is False
    assert folded(seen(registered=True), seen(registered=True)).registered is True


def test_the_worst_failure_is_everybodys() -> None:
    assert folded(seen(failure=3), seen(failure=7), seen(failure=0)).failure == 7


def test_memory_folds_by_min() -> None:
    agreed = fold(
        (brought(0, blocks=3, result=50), brought(1, blocks=2, result=60), brought(2, blocks=9, result=55)),
        PROTOCOL,
    )
    assert agreed == Agreed((), 2, 50)


def test_an_unknown_total_waits() -> None:
    room = folded(seen(total_tokens=20), seen(total_tokens=UNKNOWN))
    assert room.total_tokens == UNKNOWN and room.flags == 1
    assert folded(seen(total_tokens=UNKNOWN), seen(total_tokens=UNKNOWN)).total_tokens == UNKNOWN


def test_unknown_flags_wait() -> None:
    room = folded(seen(flags=3), seen(flags=UNKNOWN))
    assert (room.flags, room.total_tokens) == (UNKNOWN, 20)


def test_different_totals_are_a_mismatch_whoever_is_still_to_be_told() -> None:
    assert folded(seen(total_tokens=20), seen(total_tokens=21)).total_tokens == MISMATCH
    room = folded(seen(total_tokens=20), seen(total_tokens=UNKNOWN), seen(total_tokens=21))
    assert room.total_tokens == MISMATCH


def test_different_flags_are_a_mismatch_of_the_whole() -> None:
    room = folded(seen(flags=0), seen(flags=1))
    assert (room.flags, room.total_tokens) == (MISMATCH, MISMATCH)


def test_a_total_of_nothing_is_known() -> None:
    assert folded(seen(total_tokens=0), seen(total_tokens=0)).total_tokens == 0
    assert folded(seen(total_tokens=0), seen(total_tokens=1)).total_tokens == MISMATCH


def test_different_epochs_are_a_mismatch() -> None:
    room = folded(seen(epoch=E1), seen(epoch=E2))
    assert (room.total_tokens, room.epoch) == (MISMATCH, E2)
    assert folded(seen(epoch=E2), seen(epoch=E1)).epoch == E2


def test_a_request_that_a_rank_does_not_have_is_unknown_and_no_mismatch() -> None:
    agreed = fold((brought(0, seen()), brought(1)), PROTOCOL)
    assert agreed.rooms == (AgreedRoom(5, E1, False, True, UNKNOWN, UNKNOWN, 8, 4, 0),)
    agreed = fold((brought(0, seen()), brought(1, seen()), brought(2)), PROTOCOL)
    assert agreed.rooms[0].known is False and agreed.rooms[0].total_tokens == UNKNOWN


def test_a_failure_of_a_request_that_others_lack_is_seen() -> None:
    agreed = fold((brought(0), brought(1, seen(failure=4))), PROTOCOL)
    assert agreed.rooms[0].failure == 4 and agreed.rooms[0].known is False


def test_rooms_come_by_number_whatever_the_order_in_which_they_were_told() -> None:
    agreed = fold((brought(0, seen(9), seen(3)), brought(1, seen(3), seen(7), seen(9))), PROTOCOL)
    assert [room.room for room in agreed.rooms] == [3, 7, 9]
    assert [room.known for room in agreed.rooms] == [True, False, True]


ROOMS = st.builds(
    Observed,
    room=st.integers(min_value=0, max_value=3),
    epoch=st.sampled_from([E1, E2]),
    registered=st.booleans(),
    total_tokens=st.sampled_from([UNKNOWN, 8, 20]),
    flags=st.sampled_from([UNKNOWN, 0, 1]),
    committed_tokens=st.integers(min_value=0, max_value=20),
    delivered_tokens=st.integers(min_value=0, max_value=20),
    failure=st.integers(min_value=0, max_value=5),
)
RANKS = st.lists(
    st.tuples(
        st.lists(ROOMS, max_size=3, unique_by=lambda room: room.room),
        st.integers(min_value=0, max_value=9),
        st.integers(min_value=0, max_value=9),
    ),
    min_size=2,
    max_size=4,
)


@given(RANKS)
def test_the_order_of_ranks_does_not_matter(ranks: list[tuple[list[Observed], int, int]]) -> None:
    observations = [
        Observation(rank, tuple(rooms), blocks, result) for rank, (rooms, blocks, result) in enumerate(ranks)
    ]
    expected = fold(tuple(observations), PROTOCOL)
    for order in permutations(observations):
        assert fold(order, PROTOCOL) == expected


@given(RANKS)
def test_the_fold_says_no_more_than_any_rank(ranks: list[tuple[list[Observed], int, int]]) -> None:
    """Progress and memory: never more than the least. Totals: one that somebody was told, or none."""
    observations = tuple(
        Observation(rank, tuple(rooms), blocks, result) for rank, (rooms, blocks, result) in enumerate(ranks)
    )
    agreed = fold(observations, PROTOCOL)
    assert agreed.free_blocks == min(blocks for _, blocks, _ in ranks)
    assert agreed.free_result_tokens == min(result for _, _, result in ranks)
    for room in agreed.rooms:
        told = [one for rooms, _, _ in ranks for one in rooms if one.room == room.room]
        assert room.known is (len(told) == len(ranks))
        assert room.committed_tokens == min(one.committed_tokens for one in told)
        totals = {one.total_tokens for one in told if one.total_tokens != UNKNOWN}
        if len(totals) > 1:
            assert room.total_tokens == MISMATCH
        if room.total_tokens > UNKNOWN:
            assert totals == {room.total_tokens} and room.known


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_nothing_at_all_folds_to_nothing(ranks: int) -> None:
    assert fold(tuple(brought(rank) for rank in range(ranks)), PROTOCOL) == Agreed((), 6, 100)
