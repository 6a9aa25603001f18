"""Result memory: bounded, one contiguous range for each request, and nobody's rows before they are given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fsm.errors import LocalError
from gpu_backend.layout import items_of, make_layout
from gpu_backend.results import Result, ResultArena
from tests.gpu_backend.kit_pool import DEVICES, LAYOUT


def take(arena: ResultArena, tokens: int) -> Result:
    return arena.take(tokens, has_mrope=True, has_deepstack=False)


@pytest.mark.parametrize("device", DEVICES)
def test_a_result_has_one_contiguous_tensor_per_item_and_none_for_the_absent(device: str) -> None:
    arena = ResultArena(LAYOUT, 20, device=device)
    whole = arena.take(7, has_mrope=True, has_deepstack=True)
    for item in items_of(LAYOUT):
        tensor = whole.tensor(item.name)
        assert tensor is not None
        assert tensor.is_contiguous()
        assert (tensor.dtype, tuple(tensor.shape), tensor.device) == (item.dtype, (7, *item.shape), arena.device)
        same = getattr(whole, item.name)
        assert same.data_ptr() == tensor.data_ptr()
    bare = arena.take(3, has_mrope=False, has_deepstack=False)
    assert bare.mrope_positions is bare.deepstack is None
    assert bare.input_embeddings.shape == (3, 8)
    assert bare.fill_ids.shape == (3,)
    assert (arena.free_tokens, arena.fallbacks) == (10, 0)
    assert arena.device.type == device


def test_releasing_twice_gives_the_rows_back_once() -> None:
    arena = ResultArena(LAYOUT, 10)
    one, other = take(arena, 4), take(arena, 4)
    one.release()
    one.release()
    assert one.released
    assert (arena.free_tokens, arena.longest_free) == (6, 4)
    other.release()
    assert (arena.free_tokens, arena.longest_free) == (10, 10), "the ranges have not joined"


def test_a_released_result_says_so() -> None:
    arena = ResultArena(LAYOUT, 10)
    found = take(arena, 4)
    found.release()
    uses: list[Callable[[], object]] = [
        lambda: found.input_embeddings,
        lambda: found.fill_ids,
        lambda: found.mrope_positions,
        lambda: found.deepstack,
        lambda: found.tensor("fill_ids"),
    ]
    for use in uses:
        with pytest.raises(LocalError, match=r"of a released result of 4 tokens: .* copy what you need before release"):
            use()
    with pytest.raises(LocalError, match="copy into a released result of 4 tokens"):
        found.hold()


def test_rows_that_are_being_copied_into_go_to_nobody_else() -> None:
    arena = ResultArena(LAYOUT, 10)
    found = take(arena, 10)
    address = found.input_embeddings.data_ptr()
    found.hold()
    found.hold()
    found.release()
    assert arena.free_tokens == 10, "the bound is about what callers hold"
    assert arena.longest_free == 0
    meanwhile = take(arena, 10)
    assert arena.fallbacks == 1
    assert meanwhile.input_embeddings.data_ptr() != address
    found.unhold()
    assert arena.longest_free == 0
    found.unhold()
    assert arena.longest_free == 10
    meanwhile.release()
    assert take(arena, 10).input_embeddings.data_ptr() == address


def test_a_held_result_that_is_not_released_keeps_its_rows() -> None:
    arena = ResultArena(LAYOUT, 10)
    found = take(arena, 10)
    found.hold()
    found.unhold()
    assert arena.longest_free == 0
    assert found.fill_ids.shape == (10,)


@pytest.mark.parametrize("device", DEVICES)
def test_a_request_gets_memory_of_its_own_where_no_range_is_long_enough(device: str) -> None:
    arena = ResultArena(LAYOUT, 12, device=device)
    parts = [take(arena, 4) for _ in range(3)]
    parts[0].release()
    parts[2].release()
    assert (arena.free_tokens, arena.longest_free) == (8, 4)
    own = take(arena, 6)
    assert (arena.free_tokens, arena.fallbacks) == (2, 1)
    own.input_embeddings.fill_(1)
    own.fill_ids.fill_(1)
    assert own.mrope_positions is not None
    own.mrope_positions.fill_(1)
    assert own.deepstack is None
    assert not parts[1].input_embeddings.any()
    with pytest.raises(LocalError, match=r"take\(3\): only 2 of 12 tokens are free"):
        take(arena, 3)
    kept = own.fill_ids
    own.release()
    assert kept.sum() == 6, "a tensor that is still held stays valid"
    assert (arena.free_tokens, arena.longest_free) == (8, 4)


def test_what_cannot_be_taken_is_refused_and_takes_nothing() -> None:
    arena = ResultArena(make_layout(4, 8), 10)
    for tokens in (0, -1, True, 2**31):
        with pytest.raises(LocalError, match="tokens="):
            take(arena, tokens)
    with pytest.raises(LocalError, match=r"take\(11\): only 10 of 10 tokens are free"):
        take(arena, 11)
    with pytest.raises(LocalError, match="has_deepstack=True: the layout has no levels"):
        arena.take(1, has_mrope=True, has_deepstack=True)
    with pytest.raises(LocalError, match="tokens_max=0"):
        ResultArena(LAYOUT, 0)
    assert (arena.free_tokens, arena.longest_free) == (10, 10)


def test_a_closed_arena_gives_nothing_and_its_tensors_stay() -> None:
    arena = ResultArena(LAYOUT, 10)
    found = take(arena, 4)
    kept = found.fill_ids
    arena.close()
    arena.close()
    with pytest.raises(LocalError, match="closed"):
        take(arena, 1)
    kept.fill_(3)
    assert kept.sum() == 12
    found.release()


class Arenas(RuleBasedStateMachine):
    """Takes, copies and releases in any order, beside a list of what is held; every result is filled with its
    own number, so that a row with two owners shows."""

    TOKENS = 24

    def __init__(self) -> None:
        super().__init__()
        self.arena = ResultArena(make_layout(4, 2), self.TOKENS)
        self.held: dict[int, Result] = {}
        self.copied_into: list[Result] = []
        self.next = 1

    @rule(tokens=st.integers(1, 12))
    def take(self, tokens: int) -> None:
        if tokens > self.arena.free_tokens:
            with pytest.raises(LocalError):
                take(self.arena, tokens)
            return
        fits, before = self.arena.longest_free >= tokens, self.arena.fallbacks
        found = take(self.arena, tokens)
        assert self.arena.fallbacks == before + (not fits), "memory of its own only where no range is long enough"
        found.fill_ids.fill_(self.next)
        found.input_embeddings.fill_(self.next)
        self.held[self.next] = found
        self.next = self.next + 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        self.held.pop(number).release()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hold(self, data: Any) -> None:
        found = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        found.hold()
        self.copied_into.append(found)

    @precondition(lambda self: self.copied_into)
    @rule()
    def unhold(self) -> None:
        self.copied_into.pop(0).unhold()

    @invariant()
    def every_result_is_its_own(self) -> None:
        for number, found in self.held.items():
            assert bool((found.fill_ids == number).all())
            assert bool((found.input_embeddings == torch.tensor(number, dtype=torch.bfloat16)).all())

    @invariant()
    def tokens_are_conserved(self) -> None:
        assert self.arena.free_tokens == self.TOKENS - sum(found.tokens for found in self.held.values())

    def teardown(self) -> None:
        while self.copied_into:
            self.unhold()
        for found in self.held.values():
            found.release()
        assert self.arena.longest_free == self.arena.free_tokens == self.TOKENS


TestArenas = Arenas.TestCase
TestArenas.settings = settings(max_examples=60, stateful_step_count=30)
