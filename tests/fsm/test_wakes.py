"""Times by key: the earliest said counts, each key comes up once, and what was said before is forgotten with it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fsm.wakes import Wakes


def test_keys_come_up_in_the_order_of_their_times_and_once() -> None:
    wakes: Wakes[str] = Wakes()
    wakes.at("late", 9)
    wakes.at("early", 3)
    wakes.at("also early", 3)
    assert len(wakes) == 3 and wakes.next_s() == 3
    assert wakes.due(2.9) == []
    assert wakes.due(3) == ["early", "also early"]
    assert wakes.due(100) == ["late"]
    assert wakes.due(100) == [] and wakes.next_s() is None and not len(wakes)


def test_the_earliest_time_said_counts() -> None:
    wakes: Wakes[str] = Wakes()
    wakes.at("key", 5)
    wakes.at("key", 9)
    assert wakes.next_s() == 5, "later changes nothing: the key comes up, and its owner says when to come back"
    wakes.at("key", 2)
    assert wakes.due(2) == ["key"]
    assert wakes.due(9) == [], "the time said first is void"


def test_a_void_time_is_not_the_next_one() -> None:
    wakes: Wakes[str] = Wakes()
    wakes.at("a", 5)
    wakes.at("a", 2)
    wakes.at("b", 7)
    assert wakes.due(2) == ["a"]
    assert wakes.next_s() == 7


def test_cleared_is_empty() -> None:
    wakes: Wakes[int] = Wakes()
    wakes.at(1, 1)
    wakes.clear()
    assert wakes.next_s() is None and wakes.due(9) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20))), st.lists(st.integers(0, 20)))
def test_it_is_a_dictionary_of_earliest_times(said: list[tuple[int, int]], looks: list[int]) -> None:
    wakes: Wakes[int] = Wakes()
    model: dict[int, int] = {}
    for key, when in said:
        wakes.at(key, when)
        model[key] = min(when, model.get(key, when))
    for now in sorted(looks):
        assert wakes.next_s() == min(model.values(), default=None)
        due = wakes.due(now)
        assert sorted(due) == sorted(key for key, when in model.items() if when <= now)
        times = [model.pop(key) for key in due]
        assert times == sorted(times)
        assert len(wakes) == len(model)
