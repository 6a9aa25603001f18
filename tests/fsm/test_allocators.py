"""The strategies, one by one, and what all of them owe to the ledger."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.allocators import (
    ALLOCATORS,
    Adversary,
    Allocator,
    Choices,
    Disjoint,
    Fifo,
    FirstChoice,
    Lifo,
    SameAgain,
    Stingy,
    make_allocator,
)
from fsm.errors import LocalError

NONE = FirstChoice()


class Script:
    """Answers with the numbers given, and remembers what was asked."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, str]] = []

    def pick(self, options: int, label: str) -> int:
        self.asked.append((options, label))
        answer = self.answers.pop(0)
        assert 0 <= answer < options
        return answer


class Drawn:
    """Lets Hypothesis choose."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def pick(self, options: int, label: str) -> int:
        assert options > 1, "a choice of one is no choice"
        return self.data.draw(st.integers(0, options - 1), label=label)


class NoChoice:
    """Fails if it is asked."""

    def pick(self, options: int, label: str) -> int:
        raise AssertionError(f"asked to pick one of {options} for {label}")


def test_first_choice_is_always_the_first() -> None:
    assert [NONE.pick(options, "any") for options in (1, 2, 9)] == [0, 0, 0]


# ---- the simple ones ----------------------------------------------------------------------------------


def test_fifo_takes_the_oldest() -> None:
    assert Fifo().take((4, 2, 7, 1), 3, 9, NoChoice()) == (4, 2, 7)


def test_lifo_takes_the_newest_and_the_newest_first() -> None:
    assert Lifo().take((4, 2, 7, 1), 3, 9, NoChoice()) == (1, 7, 2)


@pytest.mark.parametrize("allocator", [Fifo(), Lifo(), SameAgain(), Disjoint()])
@pytest.mark.parametrize("free", [0, 1, 5])
def test_most_offer_all_that_is_free(allocator: Allocator, free: int) -> None:
    assert allocator.offer(free, NoChoice()) == free


@pytest.mark.parametrize("allocator", [Fifo(), Lifo(), Stingy(2)])
def test_those_without_a_memory_save_nothing(allocator: Allocator) -> None:
    before = allocator.take((4, 2, 7, 1), 3, 9, NoChoice())
    allocator.given(9, (1, 7))
    assert allocator.save() == ()
    allocator.load(())
    allocator.forget(9)
    assert allocator.take((4, 2, 7, 1), 3, 9, NoChoice()) == before


@pytest.mark.parametrize(("free", "offered"), [(0, 0), (1, 1), (2, 2), (3, 2), (9, 2)])
def test_stingy_offers_no_more_than_its_limit(free: int, offered: int) -> None:
    assert Stingy(2).offer(free, NoChoice()) == offered


def test_stingy_takes_the_oldest_and_gives_one_unless_told() -> None:
    assert Stingy(2).take((4, 2, 7), 2, 9, NoChoice()) == (4, 2)
    assert Stingy().offer(5, NoChoice()) == 1


def test_stingy_must_give_something() -> None:
    assert Stingy(1).offer(5, NoChoice()) == 1
    with pytest.raises(
        LocalError, match=r"^stingy: blocks_max is 0, but an allocator must give at least 1 block$"
    ):
        Stingy(0)


# ---- those that remember ------------------------------------------------------------------------------


def test_same_again_gives_the_very_blocks_in_the_same_order() -> None:
    allocator = SameAgain()
    allocator.given(1, (5, 3, 4))
    assert allocator.take((0, 3, 4, 5, 6), 3, 1, NoChoice()) == (5, 3, 4)
    assert allocator.take((0, 3, 4, 5, 6), 2, 1, NoChoice()) == (5, 3)


def test_same_again_fills_up_with_the_oldest_others() -> None:
    allocator = SameAgain()
    allocator.given(1, (5, 3, 4))
    assert allocator.take((7, 4, 0, 5), 4, 1, NoChoice()) == (5, 4, 7, 0)
    assert allocator.take((7, 6), 1, 1, NoChoice()) == (7,)


def test_disjoint_avoids_the_blocks_held_last_as_far_as_it_can() -> None:
    allocator = Disjoint()
    allocator.given(1, (5, 3, 4))
    assert allocator.take((4, 7, 3, 0, 5), 2, 1, NoChoice()) == (7, 0)
    assert allocator.take((4, 7, 3, 0, 5), 4, 1, NoChoice()) == (7, 0, 4, 3)


@pytest.mark.parametrize("allocator", [SameAgain(), Disjoint()])
def test_a_room_without_a_past_gets_the_oldest(allocator: Allocator) -> None:
    allocator.given(1, (4, 2))
    assert allocator.take((7, 4, 2), 2, 2, NoChoice()) == (7, 4)


@pytest.mark.parametrize(("allocator", "choice"), [(SameAgain(), (2,)), (Disjoint(), (1,))])
def test_only_the_last_grant_counts(allocator: Allocator, choice: tuple[int, ...]) -> None:
    allocator.given(1, (1,))
    allocator.given(1, (2,))
    assert allocator.take((1, 2), 1, 1, NoChoice()) == choice


@pytest.mark.parametrize("allocator", [SameAgain(), Disjoint()])
def test_a_forgotten_room_has_no_past(allocator: Allocator) -> None:
    allocator.given(1, (2,))
    allocator.given(3, (1,))
    allocator.forget(1)
    assert allocator.save() == ((3, (1,)),)
    allocator.forget(1)  # once more is no error: a room may end without ever having had a block
    assert allocator.take((1, 2), 2, 1, NoChoice()) == (1, 2)


@pytest.mark.parametrize("kind", ["same-again", "disjoint"])
def test_the_memory_is_saved_whatever_the_order_in_which_it_came(kind: str) -> None:
    one, other = make_allocator(kind), make_allocator(kind)
    one.given(7, (2, 1))
    one.given(3, (0,))
    other.given(3, (0,))
    other.given(7, (2, 1))
    assert one.save() == other.save() == ((3, (0,)), (7, (2, 1)))
    fresh = make_allocator(kind)
    assert fresh.save() == ()
    fresh.load(one.save())
    one.given(7, (4,))  # the loaded one is on its own
    assert fresh.save() == other.save()
    assert fresh.take((0, 1, 2, 3), 3, 7, NoChoice()) == other.take((0, 1, 2, 3), 3, 7, NoChoice())


# ---- the adversary ------------------------------------------------------------------------------------


def test_the_adversary_offers_fewer_while_it_has_budget() -> None:
    adversary = Adversary(2)
    choices = Script(0, 3, 1)
    assert adversary.offer(3, choices) == 3  # all: costs nothing
    assert adversary.save() == 2
    assert adversary.offer(3, choices) == 0  # a refusal
    assert adversary.save() == 1
    assert adversary.offer(3, choices) == 2  # one fewer
    assert adversary.save() == 0
    assert adversary.offer(3, NoChoice()) == 3  # and from now on all
    assert choices.asked == [(4, "offer")] * 3


def test_the_adversary_does_not_spend_its_budget_on_nothing() -> None:
    adversary = Adversary(1)
    assert adversary.offer(0, NoChoice()) == 0
    assert adversary.save() == 1


def test_an_adversary_without_a_budget_never_refuses() -> None:
    assert Adversary(0).offer(2, NoChoice()) == 2
    with pytest.raises(LocalError, match=r"^adversary: refusals_max is -1, but a budget cannot be negative$"):
        Adversary(-1)


def test_an_adversary_may_refuse_once_unless_told() -> None:
    assert Adversary().save() == 1


def test_the_adversary_takes_any_blocks_in_any_order() -> None:
    choices = Script(2, 0, 1)
    assert Adversary(0).take((4, 2, 7, 1), 3, 9, choices) == (7, 4, 1)
    assert choices.asked == [(4, "block"), (3, "block"), (2, "block")]


def test_the_adversary_is_not_asked_when_there_is_one_block() -> None:
    assert Adversary(0).take((4,), 1, 9, NoChoice()) == (4,)
    choices = Script(1)
    assert Adversary(0).take((4, 2), 2, 9, choices) == (2, 4)
    assert choices.asked == [(2, "block")]


def test_the_adversary_tries_one_block_of_each_kind_in_the_order_of_the_list() -> None:
    kinds = {4: "a", 2: "b", 7: "a", 1: "c", 0: "b"}
    choices = Script(2, 1, 1)
    #  a b a c b -> c;  a b a b -> b;  a a b -> b
    assert Adversary(0).take((4, 2, 7, 1, 0), 3, 9, choices, kinds.__getitem__) == (1, 2, 0)
    assert choices.asked == [(3, "block"), (2, "block"), (2, "block")]


def test_the_adversary_has_no_choice_among_blocks_of_one_kind() -> None:
    def alike(block: int) -> Hashable:
        return None

    assert Adversary(0).take((4, 2, 7), 2, 9, NoChoice(), alike) == (4, 2)


def test_the_adversary_goes_back_to_a_saved_budget() -> None:
    adversary = Adversary(2)
    saved = adversary.save()
    adversary.offer(1, Script(1))
    adversary.load(saved)
    assert adversary.save() == 2
    adversary.given(1, (0,))
    adversary.forget(1)
    assert adversary.save() == 2


@given(st.data(), st.integers(0, 3), st.lists(st.integers(0, 6), max_size=12))
def test_the_budget_bounds_how_often_the_adversary_gives_fewer(
    data: st.DataObject, refusals_max: int, rounds: list[int]
) -> None:
    adversary = Adversary(refusals_max)
    offers = [adversary.offer(free, Drawn(data)) for free in rounds]
    assert all(0 <= offer <= free for offer, free in zip(offers, rounds, strict=True))
    refusals = sum(offer < free for offer, free in zip(offers, rounds, strict=True))
    assert adversary.save() == refusals_max - refusals >= 0


# ---- all of them --------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from(list(ALLOCATORS)), st.booleans())
def test_every_strategy_offers_and_takes_only_what_is_free(
    data: st.DataObject, name: str, by_kind: bool
) -> None:
    allocator = make_allocator(name)
    choices: Choices = Drawn(data)
    kind = (lambda block: block % 3) if by_kind else None
    for _ in range(3):
        free = tuple(data.draw(st.lists(st.integers(0, 8), unique=True, min_size=1), label="free"))
        room = data.draw(st.integers(0, 1), label="room")
        assert 0 <= allocator.offer(len(free), choices) <= len(free)
        count = data.draw(st.integers(1, len(free)), label="count")
        saved = allocator.save()
        taken = allocator.take(free, count, room, choices, kind)
        assert allocator.save() == saved, "taking must not be remembered: the ledger may still refuse"
        assert len(taken) == len(set(taken)) == count
        assert set(taken) <= set(free)
        allocator.given(room, taken)
        saved = allocator.save()
        hash(saved)
        allocator.load(saved)
        assert allocator.save() == saved


@pytest.mark.parametrize("name", list(ALLOCATORS))
def test_a_strategy_knows_its_name(name: str) -> None:
    assert make_allocator(name).name == name


def test_every_strategy_can_be_made_by_name() -> None:
    assert list(ALLOCATORS) == ["fifo", "lifo", "same-again", "disjoint", "stingy", "adversary"]
    assert make_allocator("stingy", blocks_max=3).offer(9, NoChoice()) == 3
    assert make_allocator("adversary", refusals_max=5).save() == 5


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    known = "fifo, lifo, same-again, disjoint, stingy, adversary"
    with pytest.raises(LocalError, match=f"^there is no allocator 'random'; there are {known}$"):
        make_allocator("random")


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(
        LocalError, match=r"^allocator 'fifo' cannot be made with \{'blocks_max': 3\}: .+"
    ) as refused:
        make_allocator("fifo", blocks_max=3)
    assert isinstance(refused.value.__cause__, TypeError)
