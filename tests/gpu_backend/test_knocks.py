"""A receiver that hears of a request before its sender does need not wait until it asks again."""

from __future__ import annotations

import pytest

from fsm.messages import Epoch, Layout, Register
from gpu_backend import knocks
from gpu_backend.knocks import Knocks

LAYOUT = Layout(4, 1, "int64", ("fill_ids",), 0, 1)


def register(room: int, rank: int = 0, counter: int = 1) -> Register:
    return Register(room, Epoch(1, counter), 0, rank, LAYOUT)


def test_a_knock_is_taken_once_and_by_its_room_only() -> None:
    kept = Knocks(10)
    kept.keep(register(1), 0)
    kept.keep(register(2), 0)
    assert kept.take(1, (0,), 5) == [register(1)]
    assert kept.take(1, (0,), 5) == []


def test_ranks_come_in_order_and_each_with_its_newest() -> None:
    kept = Knocks(10)
    kept.keep(register(1, 1), 0)
    kept.keep(register(1, 0), 0)
    kept.keep(register(1, 1, counter=2), 0)
    assert kept.take(1, (0, 1, 2), 0) == [register(1, 0), register(1, 1, counter=2)]


def test_one_that_is_too_old_is_dropped() -> None:
    kept = Knocks(10)
    kept.keep(register(1), 0)
    assert kept.take(1, (0,), 10.1) == []


def test_strangers_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knocks, "KNOCKS_MAX", 3)
    kept = Knocks(10)
    for room in range(10):
        kept.keep(register(room), 0)
    assert [room for room in range(10) if kept.take(room, (0,), 0)] == [7, 8, 9]
