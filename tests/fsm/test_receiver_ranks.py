"""R7: several receiver ranks decide alike, whatever each of them saw first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.effects import CopyOut, Effect, Ended, Moved, Refused
from fsm.messages import Grant, Heartbeat, NackCode
from fsm.ranks import fold
from fsm.reasons import Reason
from fsm.receiver import Receiver
from fsm.rules import PROTOCOL
from tests.fsm.kit import E1, E2, abort, events, granted, grants, nack, of_type, offer, receiver, register_ack, status


def ranks(count: int = 2, blocks: int | tuple[int, ...] = 4, **config: Any) -> list[Receiver]:
    """Receiver ranks of one sender rank."""
    sizes = (blocks,) * count if isinstance(blocks, int) else blocks
    return [receiver(sizes[rank], rank=rank, **config) for rank in range(count)]


def tick(group: list[Receiver], now: float = 0, order: tuple[int, ...] | None = None) -> list[list[Effect]]:
    """One collective tick; the effects of each rank. They decide in any order."""
    agreed = fold(tuple(who.observe(now) for who in group), PROTOCOL)
    effects: list[list[Effect]] = [[] for _ in group]
    for rank in order or range(len(group)):
        effects[rank] = group[rank].decide(agreed, now)
    return effects


def tell(group: list[Receiver], make: Any, now: float = 0, only: tuple[int, ...] | None = None) -> None:
    """A message for each rank (or for some)."""
    for rank, who in enumerate(group):
        if only is None or rank in only:
            who.receive(make((0, rank)), now)


def begun(group: list[Receiver], total: int = 20, now: float = 0) -> list[Grant]:
    """Submit, register, offer: the grants."""
    for who in group:
        who.submit(1, now)
    tell(group, lambda to: register_ack(ranks=to), now)
    tick(group, now)
    tell(group, lambda to: offer(total, ranks=to), now)
    return [granted(effects) for effects in tick(group, now)]


def copy_all(who: Receiver, effects: list[Effect], now: float = 0) -> None:
    for effect in of_type(effects, CopyOut):
        who.copied(effect.room, effect.epoch, effect.seq, 0, now)


def test_registration_waits_for_the_last_rank() -> None:
    group = ranks()
    for who in group:
        who.submit(1, 0)
    tell(group, lambda to: register_ack(ranks=to), only=(0,))
    assert tick(group) == [[], []]
    tell(group, lambda to: register_ack(ranks=to), only=(1,))
    assert [events(effects) for effects in tick(group)] == [["registered"], ["registered"]]


def test_r7_a_request_that_a_rank_does_not_have_waits() -> None:
    group = ranks()
    group[0].submit(1, 0)
    group[0].receive(register_ack(), 0)
    group[0].receive(offer(20), 0)
    assert tick(group) == [[], []]
    group[1].submit(1, 0)
    tell(group, lambda to: register_ack(ranks=to))
    assert [events(effects) for effects in tick(group)] == [["registered"], ["registered"]]
    assert tick(group) == [[], []], "the other rank has no OFFER"
    tell(group, lambda to: offer(20, ranks=to))
    assert [grants(effects) for effects in tick(group)] == [[(1, 0, 0, 16)]] * 2


def test_r7_all_grants_have_the_capacity_that_the_smallest_pool_allows() -> None:
    group = ranks(3, (4, 2, 3))
    messages = begun(group)
    assert [(m.start, m.capacity, len(m.blocks)) for m in messages] == [(0, 8, 2)] * 3
    assert [m.receiver_rank for m in messages] == [0, 1, 2]


def test_r7_a_chunk_is_taken_when_the_last_rank_has_it() -> None:
    group = ranks(blocks=2)
    begun(group)
    tell(group, lambda to: status(0, 8, ranks=to), only=(1,))
    assert tick(group) == [[], []]
    tell(group, lambda to: status(0, 8, ranks=to), only=(0,))
    assert [events(effects) for effects in tick(group)] == [["landed"], ["landed"]]


def test_r7_a_copy_that_one_rank_has_not_ended_holds_all_of_them_back() -> None:
    """Two blocks each, three of a pool: while one rank still copies, none may grant from the block that is free."""
    group = ranks(blocks=3, grant_blocks_max=2)
    begun(group)
    tell(group, lambda to: status(0, 8, ranks=to))
    first = tick(group)
    copy_all(group[0], first[0])
    assert [(grants(effects), who.waiting) for who, effects in zip(group, tick(group), strict=True)] == [
        ([], (1,)),
        ([], (1,)),
    ]
    copy_all(group[1], first[1])
    assert [grants(effects) for effects in tick(group)] == [[(1, 1, 8, 8)]] * 2


def test_r7_success_waits_for_the_last_copy() -> None:
    group = ranks(blocks=8)
    begun(group)
    tell(group, lambda to: status(0, 20, ranks=to))
    first = tick(group)
    copy_all(group[1], first[1])
    assert tick(group) == [[], []]
    copy_all(group[0], first[0])
    assert [events(effects) for effects in tick(group)] == [["complete"], ["complete"]]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_r7_no_rank_fails_alone(order: tuple[int, ...]) -> None:
    for observe, reason in (
        (lambda who: who.abort(1), "ABORTED"),
        (lambda who: who.receive(abort(ranks=(0, 1)), 0), "PEER_ABORTED"),
        (lambda who: who.receive(nack(NackCode.CANCELLED, "GRANT", 0, ranks=(0, 1)), 0), "CANCELLED"),
        (lambda who: who.receive(offer(21, ranks=(0, 1)), 0), "MISMATCH"),
        (lambda who: who.receive(Heartbeat(99, 0, 1), 0), "PEER_RESTARTED"),
    ):
        group = ranks()
        begun(group)
        observe(group[1])
        for effects in tick(group, order=order):
            assert [e.reason for e in of_type(effects, Ended)] == [reason]
        assert all(who.rooms == {} for who in group)


def test_r7_a_deadline_of_one_rank_is_everybodys() -> None:
    group = ranks(blocks=2)
    begun(group)
    tell(group, lambda to: status(0, 8, ranks=to), 25, only=(0,))
    assert [[e.reason for e in of_type(effects, Ended)] for effects in tick(group, 30)] == [["DEADLINE"]] * 2


def test_r7_the_worst_reason_is_told_by_all() -> None:
    group = ranks()
    begun(group)
    group[0].abort(1)
    group[1].receive(nack(NackCode.INTERNAL, "GRANT", 0, ranks=(0, 1)), 0)
    assert [[e.reason for e in of_type(effects, Ended)] for effects in tick(group)] == [["INTERNAL"]] * 2
    assert [who.tombstones[1, E1].reason for who in group] == [Reason.INTERNAL] * 2


def test_r7_different_totals_end_it_everywhere() -> None:
    group = ranks()
    for who in group:
        who.submit(1, 0)
    tell(group, lambda to: register_ack(ranks=to))
    tick(group)
    tell(group, lambda to: offer(20 + to[1], ranks=to))
    assert [[e.reason for e in of_type(effects, Ended)] for effects in tick(group)] == [["MISMATCH"]] * 2


def test_r7_different_epochs_end_it_everywhere() -> None:
    group = ranks()
    group[0].submit(9, 0)
    for who in group:
        who.submit(1, 0)
    endings = [[(e.room, e.reason) for e in of_type(effects, Ended)] for effects in tick(group)]
    assert endings == [[(1, "MISMATCH")]] * 2


def test_r7_a_failure_does_not_wait_for_a_rank_that_lacks_the_request() -> None:
    group = ranks()
    group[0].submit(1, 0)
    group[0].abort(1)
    first, second = tick(group)
    assert events(first) == ["fail"] and second == []


def test_r7_what_one_rank_learns_while_it_decides_is_not_acted_on() -> None:
    """The OFFER reaches a rank between the two halves of the tick: all act on what they had said."""
    group = ranks()
    for who in group:
        who.submit(1, 0, early_tokens=8)
    tell(group, lambda to: register_ack(ranks=to))
    agreed = fold(tuple(who.observe(0) for who in group), PROTOCOL)
    group[1].receive(offer(20, ranks=(0, 1)), 0)
    assert [grants(who.decide(agreed, 0)) for who in group] == [[(1, 0, 0, 8)]] * 2


def test_r7_an_offer_that_only_some_have_does_not_keep_an_early_grant_back() -> None:
    group = ranks()
    for who in group:
        who.submit(1, 0, early_tokens=8)
    tell(group, lambda to: register_ack(ranks=to))
    tell(group, lambda to: offer(20, ranks=to), only=(0,))
    assert [grants(effects) for effects in tick(group)] == [[(1, 0, 0, 8)]] * 2


def test_r9_a_rank_that_is_offered_waits_for_the_others_as_long_as_they_may() -> None:
    """Its own queue is shorter than the peer's: it must not run out while another rank rightly waits for staging."""
    group = ranks()
    for who in group:
        who.submit(1, 0)
    tell(group, lambda to: register_ack(ranks=to))
    tick(group)
    tell(group, lambda to: offer(20, ranks=to), 0, only=(0,))
    assert tick(group, 229) == [[], []]
    tell(group, lambda to: offer(20, ranks=to), 229, only=(1,))
    assert [grants(effects) for effects in tick(group, 229)] == [[(1, 0, 0, 16)]] * 2


def test_r6_the_result_memory_of_the_smallest_rank_counts() -> None:
    group = [receiver(8, rank=0, result_tokens=40), receiver(8, rank=1, result_tokens=20)]
    begun(group)
    for who in group:
        who.submit(2, 0)
    tell(group, lambda to: register_ack(2, E2, ranks=to))
    tick(group)
    tell(group, lambda to: offer(10, 2, E2, ranks=to))
    assert [grants(effects) for effects in tick(group)] == [[], []]
    assert [who.free_result_tokens for who in group] == [20, 0]


def test_unequal_capacity_is_a_wrong_rule() -> None:
    rules = replace(PROTOCOL, equal_capacity=lambda agreed, own: own)
    group = ranks(2, (4, 2), rules=rules)
    assert [m.capacity for m in begun(group)] == [16, 8]


def test_rooms_that_are_agreed_on_and_not_here_are_passed_over() -> None:
    group = ranks()
    group[0].submit(5, 0)
    agreed = fold(tuple(who.observe(0) for who in group), PROTOCOL)
    assert group[1].decide(agreed, 0) == []


@given(st.permutations(range(8)), st.integers(min_value=1, max_value=4), st.booleans())
def test_r7_ranks_decide_alike_whatever_comes_first(order: list[int], limit: int, early: bool) -> None:
    """STATUS, copies and ticks of three ranks and two requests in any order: the same moves, tick by tick."""
    group = ranks(3, 4, grant_blocks_max=limit)
    for room in (1, 2):
        for who in group:
            who.submit(room, 0, early_tokens=6 if early else 0)
        epoch = group[0].rooms[room].epoch
        tell(group, lambda to, room=room, epoch=epoch: register_ack(room, epoch, ranks=to))
    tick(group)
    pending: list[tuple[int, int]] = [(rank, room) for rank in range(3) for room in (1, 2)]
    for room in (1, 2):
        epoch = group[0].rooms[room].epoch
        tell(group, lambda to, room=room, epoch=epoch: offer(17, room, epoch, ranks=to))
    for step in range(60):
        effects = tick(group)
        moves = [[(m.room, m.event) for m in of_type(one, Moved)] for one in effects]
        assert moves[0] == moves[1] == moves[2]
        assert [grants(one) for one in effects] == [grants(effects[0])] * 3
        for rank, one in enumerate(effects):
            copy_all(group[rank], one)
        if not any(who.rooms for who in group):
            break
        rank, room = pending[order[step % 8] % len(pending)]
        for who_rank in {rank, step % 3}:
            record = group[who_rank].rooms.get(room)
            if record is not None and record.grant is not None:
                end = min(record.grant.start + record.grant.capacity, 17)
                message = status(record.grant.seq, end, 17, room, record.epoch, ranks=(0, who_rank))
                group[who_rank].receive(message, 0)
    for who in group:
        assert who.ledger.audit() is None


def test_a_wrong_rule_of_progress_is_found_by_the_ledger() -> None:
    """MAX instead of MIN: the rank whose chunk has not landed would read blocks that are still granted."""
    rules = replace(PROTOCOL, fold_progress=max)
    group = ranks(blocks=2, rules=rules)
    begun(group)
    tell(group, lambda to: status(0, 8, ranks=to), only=(0,))
    agreed = fold(tuple(who.observe(0) for who in group), rules)
    assert of_type(group[0].decide(agreed, 0), Refused) == []
    (refused,) = of_type(group[1].decide(agreed, 0), Refused)
    assert (refused.receiver_rank, refused.property) == (1, "I2")
