"""The rules in their right form, one by one."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from fsm import rules
from fsm.allocators import make_allocator
from fsm.blocks import BlockLedger, Owner
from fsm.kernel import UNKNOWN
from fsm.lifecycle import RECEIVER_TABLE
from fsm.rules import PROTOCOL, GrantKind, Rules
from fsm.states import BlockState
from tests.fsm.kit import E1, FIRST, grant


def room(**facts: Any) -> Any:
    """As much of a request as a rule looks at."""
    return SimpleNamespace(**facts)


def lane(**facts: Any) -> Any:
    return SimpleNamespace(**{"seq": -1, "parked": None, "committed_tokens": 0, **facts})


def no_headers(block: int) -> int:
    raise AssertionError("a header was read")


@pytest.mark.parametrize(("required", "expected"), [(True, 4), (False, 8)])
def test_r1_progress_is_the_word(required: bool, expected: int) -> None:
    seen = room(word_tokens=8, landed_tokens=4)
    assert rules.word_progress(seen, 4, required, no_headers) == expected


def test_r7_progress_folds_by_min() -> None:
    assert rules.min_progress([8, 3, 5]) == 3


@pytest.mark.parametrize(
    ("handled", "last", "total", "due"),
    [(8, 0, 20, True), (8, 8, 20, False), (20, 8, 20, False), (8, 0, UNKNOWN, False)],
)
def test_r2_a_resume_is_due_once(handled: int, last: int, total: int, due: bool) -> None:
    assert rules.watermark_detector(room(handled_tokens=handled, last_resume_at=last, total_tokens=total)) is due


def test_r2_the_watermark_is_what_is_remembered() -> None:
    seen = room(handled_tokens=8, last_resume_at=0)
    rules.remember_watermark(seen, (), ())
    assert seen.last_resume_at == 8


def test_r6_who_holds_data_comes_first_and_then_the_older() -> None:
    def order(handled: int, counter: int) -> tuple[int, int]:
        return rules.data_first(room(handled_tokens=handled, epoch=E1._replace(counter=counter)))

    assert [order(1, 7), order(0, 7)] == [(0, 7), (1, 7)]
    assert sorted([order(0, 1), order(4, 9), order(8, 2), order(0, 3)]) == [(0, 2), (0, 9), (1, 1), (1, 3)]


def test_r6_how_much_is_asked_for_and_taken() -> None:
    assert [rules.up_to_limit(5, limit) for limit in (0, 4, 5, 6)] == [5, 4, 5, 5]
    assert [rules.what_there_is(5, there) for there in (0, 4, 5, 6)] == [0, 4, 5, 5]
    assert [rules.leave_one(free) for free in (0, 1, 2)] == [0, 0, 1]
    assert rules.agreed_blocks(3, 5) == 3


def test_r10_starts_are_exact() -> None:
    assert rules.exact_start(6, 4) == 6
    assert rules.same_start(6, 4) == 6


def test_what_is_simply_done() -> None:
    assert rules.copy_at_once(room()) is True
    assert rules.clear_headers() is True
    assert rules.yes() is True


def test_what_is_simply_not_done() -> None:
    for nothing in (rules.wait_quietly, rules.claim_nothing, rules.forget_grant):
        assert nothing(None, None) is None  # type: ignore[func-returns-value, operator]
    assert rules.refuse_unmatched(None, None, 0) is None  # type: ignore[func-returns-value, arg-type]


def test_the_rules_of_blocks_are_the_ledgers_moves() -> None:
    ledger = BlockLedger(2, make_allocator("fifo"))
    owner = Owner(1, E1, 0)
    refs = ledger.reserve(owner, 2, FIRST)
    ledger.grant(owner, refs)
    assert rules.quarantine_until_proof(ledger, owner, refs[1:]) is True
    ledger.land(owner, refs[:1])
    rules.read_landed(ledger, owner, refs[:1])
    assert [ledger.record(block).state for block in (0, 1)] == [BlockState.READING, BlockState.QUARANTINED]
    rules.free_blocks(ledger, room(), owner, refs[:1])
    assert ledger.free_list == (0,)


@pytest.mark.parametrize(("committed", "fits"), [(15, False), (16, True), (17, False), (20, False)])
def test_r3_a_status_fits_its_grant_exactly(committed: int, fits: bool) -> None:
    assert rules.status_must_match(grant(1, 8, 8), committed, 20) is fits


def test_r3_the_last_status_says_the_total() -> None:
    assert rules.status_must_match(grant(1, 8, 40), 20, 20) is True
    assert rules.status_must_match(grant(1, 8, 40), 48, 20) is False


def test_r3_what_a_grant_is_by_its_seq() -> None:
    kinds = [rules.by_seq(lane(seq=3), grant(seq)) for seq in (2, 3, 4, 5)]
    assert kinds == [GrantKind.REPLAY, GrantKind.REPLAY, GrantKind.NEXT, GrantKind.GAP]


def test_r3_one_grant_is_kept_at_a_time() -> None:
    keeps = lane(seq=3, parked=grant(4))
    kinds = [rules.by_seq(keeps, grant(seq)) for seq in (3, 4, 5)]
    assert kinds == [GrantKind.REPLAY, GrantKind.REPLAY, GrantKind.GAP]


def test_r3_a_grant_starts_where_the_rank_stands() -> None:
    assert [rules.start_must_match(lane(committed_tokens=8), grant(1, start)) for start in (7, 8, 9)] == [
        False,
        True,
        False,
    ]
    one, message = lane(committed_tokens=8), grant()
    assert rules.asked_lane_only(None, None, one, message) == [(one, message)]  # type: ignore[arg-type]
    assert rules.own_commit(None, one) == 8  # type: ignore[arg-type]


def test_r10_positions_lie_beside_their_token_however_full_the_block_is() -> None:
    for filled in (1, 3, 4):
        places = [[rules.token_major(4, filled, offset, axis) for axis in range(3)] for offset in range(filled)]
        assert places == [[3 * offset, 3 * offset + 1, 3 * offset + 2] for offset in range(filled)]
        for offset in range(filled):
            for axis in range(3):
                assert rules.token_major_read(4, filled, offset, axis) == places[offset][axis]


def test_the_protocol_is_what_the_rules_are_by_default() -> None:
    assert Rules() == PROTOCOL
    assert PROTOCOL.table is RECEIVER_TABLE
    assert {field.name: getattr(PROTOCOL, field.name).__name__ for field in fields(Rules)[1:]} == {
        "progress": "word_progress",
        "fold_progress": "min_progress",
        "detect": "watermark_detector",
        "remember": "remember_watermark",
        "resume_start": "exact_start",
        "order": "data_first",
        "wanted": "up_to_limit",
        "take": "what_there_is",
        "early_available": "leave_one",
        "equal_capacity": "agreed_blocks",
        "copy_when_landed": "copy_at_once",
        "free": "free_blocks",
        "starved": "wait_quietly",
        "settle": "quarantine_until_proof",
        "read_guard": "read_landed",
        "claim": "claim_nothing",
        "unmatched": "refuse_unmatched",
        "status_exact": "status_must_match",
        "header_clearing": "clear_headers",
        "grant_kind": "by_seq",
        "start_check": "start_must_match",
        "lanes_served": "asked_lane_only",
        "commit_said": "own_commit",
        "source_start": "same_start",
        "executed": "forget_grant",
        "deadlines": "yes",
        "unknown_room_answered": "yes",
        "boot_change_fences": "yes",
        "position_written": "token_major",
        "position_read": "token_major_read",
    }
