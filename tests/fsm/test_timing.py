"""The times and the reasons: what is refused, and what stands for what."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from fsm.errors import LocalError
from fsm.messages import NackCode
from fsm.reasons import NACK_REASONS, RETRIED_WHILE_BOOTSTRAPPING, Reason
from fsm.timing import Timing

PLAIN = Timing(30, 100, 50, 7, 60, 5)


def test_the_times_are_named_in_this_order() -> None:
    assert Timing(
        deadline_s=30, queue_deadline_s=100, bootstrap_s=50, resend_s=7, tombstone_s=60, heartbeat_s=5
    ) == PLAIN


def test_the_times_by_default() -> None:
    """Queueing may take longer than any answer; a tombstone outlives a deadline; resends are many to a deadline."""
    times = Timing()
    assert times == Timing(30.0, 300.0, 300.0, 2.0, 60.0, 5.0)


def test_times_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAIN.deadline_s = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["deadline_s", "queue_deadline_s", "bootstrap_s", "resend_s", "tombstone_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_no_time_is_nothing(name: str, value: float) -> None:
    with pytest.raises(LocalError) as caught:
        replace(PLAIN, **{name: value})
    assert str(caught.value) == f"{name}={value}: expected more than 0 seconds"


def test_the_shortest_times_are_taken() -> None:
    shortest = Timing(0.001, 0.001, 0.001, 0.001, 0.001, 0)
    assert shortest.longest_s == pytest.approx(0.004)


def test_no_heartbeat_is_a_choice_and_a_negative_one_is_none() -> None:
    assert replace(PLAIN, heartbeat_s=0).heartbeat_s == 0
    with pytest.raises(LocalError, match=r"^heartbeat_s=-1: expected 0 \(none\) or more$"):
        replace(PLAIN, heartbeat_s=-1)


def test_a_tombstone_outlives_the_deadline() -> None:
    assert replace(PLAIN, tombstone_s=30).tombstone_s == 30
    with pytest.raises(LocalError) as caught:
        replace(PLAIN, tombstone_s=29)
    assert str(caught.value) == (
        "tombstone_s=29: expected at least deadline_s=30; a tombstone must outlive every resend that it answers"
    )


def test_nothing_rests_longer_than_this() -> None:
    """The longest limit of any state on either side, when both sides have these times: the sender's, of several,
    before the first grant."""
    assert PLAIN.longest_s == 30 + 100 + 100 + 50


def test_a_clock_ended_it() -> None:
    by_clock = [reason for reason in Reason if reason.by_deadline]
    assert by_clock == [Reason.DEADLINE, Reason.QUEUE_DEADLINE, Reason.BOOTSTRAP_DEADLINE]


def test_no_reason_is_falsy_and_every_reason_is_not() -> None:
    assert not Reason.NONE
    assert all(reason for reason in Reason if reason is not Reason.NONE)


def test_reasons_are_numbers_that_ranks_exchange_and_so_never_change() -> None:
    assert {reason.name: reason.value for reason in Reason} == {
        "NONE": 0,
        "DEADLINE": 1,
        "QUEUE_DEADLINE": 2,
        "BOOTSTRAP_DEADLINE": 3,
        "ABORTED": 4,
        "PEER_ABORTED": 5,
        "PEER_RESTARTED": 6,
        "RANK_LOST": 7,
        "INCOMPATIBLE": 8,
        "UNKNOWN_ROOM": 9,
        "STALE_EPOCH": 10,
        "NOT_READY": 11,
        "NO_CAPACITY": 12,
        "CANCELLED": 13,
        "MISMATCH": 14,
        "PROTOCOL": 15,
        "INTERNAL": 16,
        "PEER_GONE": 17,
        "CHECKSUM": 18,
    }


def test_every_nack_code_is_a_reason_of_that_name() -> None:
    assert {code.name: reason.name for code, reason in NACK_REASONS.items()} == {
        code.name: code.name for code in NackCode
    }


def test_r9_two_codes_are_tried_again() -> None:
    assert RETRIED_WHILE_BOOTSTRAPPING == (NackCode.UNKNOWN_ROOM, NackCode.NOT_READY)
