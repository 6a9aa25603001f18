"""The kernel: what each decision is at its edges, and that arrays decide as ints do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm import kernel
from fsm.kernel import ARRAY, INT, MISMATCH, UNKNOWN
from fsm.states import State

TOKENS = st.integers(min_value=0, max_value=200_000)
SIZES = st.integers(min_value=1, max_value=9000)
TOTALS = st.integers(min_value=-2, max_value=50)
SMALL = st.integers(min_value=0, max_value=50)


def columns(*kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Rows of arguments, of which there is at least one."""
    return st.lists(st.tuples(*kinds), min_size=1, max_size=30)


def agree(function: Callable[..., Any], rows: list[tuple[Any, ...]], *, ops: bool = True) -> None:
    """One call over arrays answers as one call for each row."""
    arrays = [np.array(column) for column in zip(*rows, strict=True)]
    answer = function(ARRAY, *arrays) if ops else function(*arrays)
    singly = [function(INT, *row) if ops else function(*row) for row in rows]
    assert list(answer) == singly


# --- the three operations -------------------------------------------------------------------------------


def test_the_operations_for_ints() -> None:
    assert INT.where(True, 1, 2) == 1 and INT.where(False, 1, 2) == 2
    assert INT.minimum(3, 4) == 3 and INT.minimum(4, 3) == 3 and INT.minimum(3, 3) == 3
    assert INT.maximum(3, 4) == 4 and INT.maximum(4, 3) == 4 and INT.maximum(4, 4) == 4


@given(columns(st.booleans(), TOTALS, TOTALS))
def test_the_operations_agree(rows: list[tuple[Any, ...]]) -> None:
    agree(lambda ops, c, a, b: ops.where(c, a, b), rows)
    agree(lambda ops, c, a, b: ops.minimum(a, b), rows)
    agree(lambda ops, c, a, b: ops.maximum(a, b), rows)


# --- R1, R3 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "landed", "required", "expected"),
    [(8, 4, True, 4), (8, 4, False, 8), (4, 8, True, 4), (4, 8, False, 4), (0, 0, True, 0)],
)
def test_r1_progress_is_the_word_and_no_further_than_the_own_completion(
    word: int, landed: int, required: bool, expected: int
) -> None:
    assert kernel.progress(INT, word, landed, required) == expected


@given(columns(TOKENS, TOKENS, st.booleans()))
def test_progress_agrees_and_never_exceeds_the_word(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.progress, rows)
    for word, landed, required in rows:
        progress = kernel.progress(INT, word, landed, required)
        assert progress <= word and (not required or progress <= landed)


def test_r3_a_grant_commits_its_capacity_or_what_is_left() -> None:
    assert kernel.committed_after(INT, 8, 8, 17) == 16
    assert kernel.committed_after(INT, 8, 8, 16) == 16
    assert kernel.committed_after(INT, 8, 8, 15) == 15


@given(columns(TOKENS, TOKENS, TOKENS))
def test_committed_after_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.committed_after, rows)


# --- R2 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("committed", "last", "total", "due"),
    [
        (8, 0, 20, True),
        (8, 7, 20, True),
        (8, 8, 20, False),
        (8, 9, 20, False),
        (19, 8, 20, True),
        (20, 8, 20, False),
        (21, 8, 20, False),
        (8, 0, UNKNOWN, False),
        (0, 0, 20, False),
    ],
)
def test_r2_a_resume_is_due_once_for_each_watermark_short_of_the_end(
    committed: int, last: int, total: int, due: bool
) -> None:
    assert kernel.resume_due(committed, last, total) is due


@given(columns(SMALL, SMALL, TOTALS))
def test_resume_due_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.resume_due, rows, ops=False)


@given(st.lists(SMALL, max_size=20), SMALL)
def test_no_watermark_is_resumed_twice(polls: list[int], total: int) -> None:
    """Whatever watermarks are seen, in any order and however often: no value is acted on twice."""
    last, resumed = 0, []
    for committed in polls:
        if kernel.resume_due(committed, last, total):
            resumed.append(committed)
            last = committed
    assert len(set(resumed)) == len(resumed)


# --- R6 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_blocks_needed_rounds_up(tokens: int, blocks: int) -> None:
    assert kernel.blocks_needed(tokens, 4) == blocks


@given(columns(TOKENS, SIZES))
def test_blocks_needed_is_the_fewest_that_hold_the_tokens(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.blocks_needed, rows, ops=False)
    for tokens, size in rows:
        blocks = kernel.blocks_needed(tokens, size)
        assert blocks * size >= tokens > (blocks - 1) * size or tokens == blocks == 0


def test_blocks_wanted_is_bounded_by_the_limit_of_a_grant_where_there_is_one() -> None:
    assert kernel.blocks_wanted(INT, 20, 4, 0) == 5
    assert kernel.blocks_wanted(INT, 20, 4, 1) == 1
    assert kernel.blocks_wanted(INT, 20, 4, 5) == 5
    assert kernel.blocks_wanted(INT, 20, 4, 6) == 5


@given(columns(TOKENS, SIZES, st.integers(min_value=0, max_value=300)))
def test_blocks_wanted_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.blocks_wanted, rows)


def test_r6_an_early_grant_leaves_a_landing_block() -> None:
    assert [kernel.blocks_for_early_grant(INT, available) for available in range(4)] == [0, 0, 1, 2]


@given(columns(st.integers(min_value=0, max_value=300)))
def test_blocks_for_early_grant_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.blocks_for_early_grant, rows)


def test_r6_an_early_grant_leaves_result_memory_for_another() -> None:
    assert kernel.result_needed(INT, 20, 64) == 20
    assert kernel.result_needed(INT, 0, 64) == 0
    assert kernel.result_needed(INT, UNKNOWN, 64) == 128


@given(columns(TOTALS, SMALL))
def test_result_needed_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.result_needed, rows)


def test_a_grant_carries_what_its_blocks_hold_and_no_more_than_is_wanted() -> None:
    assert kernel.grant_capacity(INT, 9, 2, 4) == 8
    assert kernel.grant_capacity(INT, 8, 2, 4) == 8
    assert kernel.grant_capacity(INT, 7, 2, 4) == 7


@given(columns(TOKENS, SMALL, SIZES))
def test_grant_capacity_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.grant_capacity, rows)


# --- R7 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lowest", "highest", "all_known", "folded"),
    [
        (20, 20, True, 20),
        (20, 20, False, UNKNOWN),
        (19, 20, True, MISMATCH),
        (19, 20, False, MISMATCH),
        (0, 0, True, 0),
        (1 << 62, UNKNOWN, False, UNKNOWN),
        (1 << 62, UNKNOWN, True, UNKNOWN),
    ],
)
def test_r7_unknown_is_not_a_mismatch(lowest: int, highest: int, all_known: bool, folded: int) -> None:
    assert kernel.fold_known(INT, lowest, highest, all_known) == folded


@given(columns(TOTALS, TOTALS, st.booleans()))
def test_fold_known_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.fold_known, rows)


def test_the_state_numbers_are_the_states_in_order() -> None:
    numbers = (
        kernel.BOOTSTRAPPING,
        kernel.WAITING,
        kernel.TRANSFERRING,
        kernel.RESUMING,
        kernel.SUCCESS,
        kernel.FAILED,
    )
    assert numbers == tuple(range(6))
    assert [state.name for state in State] == [
        "BOOTSTRAPPING",
        "WAITING",
        "TRANSFERRING",
        "RESUMING",
        "SUCCESS",
        "FAILED",
    ]


def verdict(
    state: int = kernel.WAITING,
    *,
    known: bool = True,
    registered: bool = True,
    failure: int = 0,
    total: int = 20,
    committed: int = 0,
    handled: int = 0,
    delivered: int = 0,
    wants: bool = False,
) -> Any:
    """The verdict on a request that waits, but for what is said."""
    return kernel.verdict(INT, state, known, registered, failure, total, committed, handled, delivered, wants)


LIVE = (kernel.BOOTSTRAPPING, kernel.WAITING, kernel.TRANSFERRING, kernel.RESUMING)
PAST_BOOTSTRAPPING = (kernel.WAITING, kernel.TRANSFERRING, kernel.RESUMING)


def test_nothing_new_is_idle() -> None:
    for state in PAST_BOOTSTRAPPING:
        assert verdict(state) == kernel.IDLE
        assert verdict(state, committed=8, handled=8, delivered=8) == kernel.IDLE


def test_registration_counts_while_bootstrapping_only() -> None:
    assert verdict(kernel.BOOTSTRAPPING) == kernel.REGISTERED
    assert verdict(kernel.BOOTSTRAPPING, registered=False) == kernel.IDLE
    assert verdict(kernel.BOOTSTRAPPING, committed=8, delivered=20, wants=True) == kernel.REGISTERED
    for state in PAST_BOOTSTRAPPING:
        assert verdict(state, registered=True) == kernel.IDLE


def test_a_chunk_is_one_that_was_not_taken_yet() -> None:
    for state in PAST_BOOTSTRAPPING:
        assert verdict(state, committed=9, handled=8) == kernel.CHUNK
        assert verdict(state, committed=8, handled=8) == kernel.IDLE
        assert verdict(state, committed=7, handled=8) == kernel.IDLE
    assert verdict(kernel.BOOTSTRAPPING, registered=False, committed=9) == kernel.IDLE


def test_complete_is_every_token_delivered() -> None:
    for state in PAST_BOOTSTRAPPING:
        assert verdict(state, committed=20, handled=20, delivered=20) == kernel.COMPLETE
        assert verdict(state, committed=20, handled=20, delivered=19) == kernel.IDLE
    assert verdict(total=UNKNOWN, delivered=UNKNOWN) == kernel.IDLE
    assert verdict(total=0, delivered=0) == kernel.COMPLETE
    assert verdict(kernel.BOOTSTRAPPING, registered=False, delivered=20) == kernel.IDLE
    assert verdict(delivered=20, committed=9, wants=True) == kernel.COMPLETE


def test_who_wants_blocks_is_told_so_if_nothing_else_is_due() -> None:
    for state in PAST_BOOTSTRAPPING:
        assert verdict(state, wants=True) == kernel.WANTS_BLOCKS
        assert verdict(state, wants=True, committed=9) == kernel.CHUNK
    assert verdict(kernel.BOOTSTRAPPING, registered=False, wants=True) == kernel.IDLE


def test_r7_everything_waits_for_a_rank_that_does_not_know_the_request() -> None:
    assert verdict(kernel.BOOTSTRAPPING, known=False) == kernel.IDLE
    assert verdict(known=False, committed=9) == kernel.IDLE
    assert verdict(known=False, delivered=20) == kernel.IDLE
    assert verdict(known=False, wants=True) == kernel.IDLE


def test_r7_a_failure_waits_for_nobody() -> None:
    for state in LIVE:
        for known in (True, False):
            assert verdict(state, known=known, failure=1, delivered=20, committed=9) == kernel.FAIL
            assert verdict(state, known=known, failure=17) == kernel.FAIL
            assert verdict(state, known=known, total=MISMATCH) == kernel.FAIL


def test_i4_what_has_ended_stays_so() -> None:
    for state in (kernel.SUCCESS, kernel.FAILED):
        for failure in (0, 1):
            assert verdict(state, failure=failure, total=MISMATCH, committed=9, wants=True) == kernel.IDLE


@given(
    columns(
        st.integers(min_value=0, max_value=5),
        st.booleans(),
        st.booleans(),
        st.integers(min_value=0, max_value=17),
        TOTALS,
        SMALL,
        SMALL,
        TOTALS,
        st.booleans(),
    )
)
def test_verdict_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.verdict, rows)


# --- R9 -------------------------------------------------------------------------------------------------


def test_r9_a_deadline_passes_at_its_very_moment() -> None:
    assert not kernel.expired(39, 10, 30)
    assert kernel.expired(40, 10, 30)
    assert kernel.expired(41, 10, 30)


@given(st.floats(min_value=0, max_value=1e6), st.floats(min_value=0.001, max_value=1e4))
def test_a_timer_that_is_set_for_a_deadline_finds_it_passed(since_s: float, limit_s: float) -> None:
    """Else a loop that sleeps until its next timer would wake to nothing, and sleep no more."""
    assert kernel.expired(since_s + limit_s, since_s, limit_s)


@given(columns(SMALL, SMALL, SMALL))
def test_expired_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.expired, rows, ops=False)


# --- what a grant is, when it closes, and when blocks come back ------------------------------------------


@pytest.mark.parametrize(
    ("seq", "executed", "parked", "kind"),
    [
        (0, -1, UNKNOWN, kernel.NEXT),
        (0, 0, UNKNOWN, kernel.REPLAY),
        (1, 0, UNKNOWN, kernel.NEXT),
        (1, 0, 1, kernel.REPLAY),
        (2, 0, 1, kernel.GAP),
        (1, -1, UNKNOWN, kernel.GAP),
        (1, 0, 2, kernel.GAP),
    ],
)
def test_r3_the_next_seq_is_executed_and_no_other(seq: int, executed: int, parked: int, kind: int) -> None:
    assert kernel.grant_kind(INT, seq, executed, parked) == kind


@given(columns(TOTALS, TOTALS, TOTALS))
def test_grant_kind_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.grant_kind, rows)


def test_r3_a_grant_fits_its_blocks_and_asks_for_something() -> None:
    assert [kernel.grant_fits(capacity, 2, 4) for capacity in (0, 1, 8, 9)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("required", "landed_seq", "closes"), [(False, -1, True), (True, 1, False), (True, 2, True), (True, 3, True)]
)
def test_r3_a_status_closes_once_the_own_completion_is_there_if_it_is_needed(
    required: bool, landed_seq: int, closes: bool
) -> None:
    assert kernel.may_close(required, landed_seq, 2) is closes


@given(columns(st.booleans(), SMALL, SMALL))
def test_may_close_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.may_close, rows, ops=False)


def test_r5_the_proof_is_that_of_the_process_that_was_granted_to() -> None:
    assert [kernel.proof_counts(boot, 2) for boot in (1, 2, 3)] == [False, True, False]
    assert kernel.proof_counts(3, 0)


@pytest.mark.parametrize(
    ("two_sided", "executed", "landed", "released"),
    [
        (False, 2, -1, True),
        (True, 1, -1, True),
        (True, 2, 1, False),
        (True, 2, 2, True),
        (True, -1, -1, True),
    ],
)
def test_r5_what_was_executed_must_have_landed_where_writes_end_in_a_receive(
    two_sided: bool, executed: int, landed: int, released: bool
) -> None:
    assert kernel.may_release(two_sided, executed, 2, landed) is released


@given(columns(st.booleans(), SMALL, SMALL, SMALL))
def test_may_release_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.may_release, rows, ops=False)


def test_r6_who_asks_for_blocks() -> None:
    assert kernel.wants_blocks(kernel.WAITING, 0, 20, 0, False)
    assert kernel.wants_blocks(kernel.WAITING, 0, UNKNOWN, 4, False)
    assert not kernel.wants_blocks(kernel.WAITING, 0, UNKNOWN, 0, True)
    assert not kernel.wants_blocks(kernel.WAITING, 1, 20, 4, True)
    assert kernel.wants_blocks(kernel.TRANSFERRING, 3, 20, 0, True)
    assert not kernel.wants_blocks(kernel.TRANSFERRING, 3, 20, 0, False)
    assert not kernel.wants_blocks(kernel.RESUMING, 3, 20, 0, True)


@given(columns(st.integers(min_value=0, max_value=5), SMALL, TOTALS, SMALL, st.booleans()))
def test_wants_blocks_agrees(rows: list[tuple[Any, ...]]) -> None:
    agree(kernel.wants_blocks, rows, ops=False)


def test_r6_a_larger_grant_later_beats_a_smaller_one_now() -> None:
    assert kernel.better_later(4, 8, 1, 2)
    assert not kernel.better_later(8, 8, 1, 2)
    assert not kernel.better_later(4, 8, 2, 2)


def test_r6_a_limit_of_0_is_none() -> None:
    assert [kernel.within_limit(INT, 5, limit) for limit in (0, 4, 5, 6)] == [5, 4, 5, 5]
