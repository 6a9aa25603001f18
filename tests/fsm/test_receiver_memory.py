"""R6 on the receiver: early grants, and result memory. Block size is 4 tokens."""

from __future__ import annotations

from fsm.effects import Send
from fsm.reasons import Reason
from tests.fsm.kit import (
    E1,
    blocks_of,
    events,
    granted_early,
    grants,
    land,
    offer,
    offered,
    queued,
    receiver,
    register_ack,
    registered,
    status,
    to_the_end,
)

# --- R6: early grants -----------------------------------------------------------------------------------


def test_r6_an_early_grant_goes_out_before_the_offer() -> None:
    who = receiver(4)
    assert grants([Send(granted_early(who, 8))]) == [(1, 0, 0, 8)]
    assert not who.rooms[1].total_agreed


def test_r6_an_early_grant_leaves_one_landing_block() -> None:
    who = receiver(3)
    message = granted_early(who, 16)
    assert (message.capacity, blocks_of(message)) == (8, (0, 1))
    who = receiver(1)
    who.submit(1, 0, early_tokens=8)
    who.receive(register_ack(), 0)
    assert grants(who.tick(0)) == []
    who.receive(offer(20), 0)
    assert grants(who.tick(0)) == [(1, 0, 0, 4)], "once it is offered it may have the last block"


def test_r6_who_may_not_have_the_last_block_keeps_nobody_from_it() -> None:
    who = receiver(1)
    registered(who, room=1, early=8)
    registered(who, room=2)
    who.receive(offer(4, 2, who.rooms[2].epoch), 0)
    assert grants(who.tick(0)) == [(2, 0, 0, 4)]


def test_early_grants_of_several_leave_one_block_together() -> None:
    who = receiver(4)
    for room in (1, 2):
        who.submit(room, 0, early_tokens=8)
        who.receive(register_ack(room, who.rooms[room].epoch), 0)
    assert grants(who.tick(0)) == [(1, 0, 0, 8), (2, 0, 0, 4)]
    assert who.ledger.free_count == 1


def test_an_offer_that_crosses_the_early_grant_is_progress() -> None:
    """The OFFER shortens what the receiver may rightly wait: from its moment on, and not from the grant's."""
    who = receiver(4)
    granted_early(who, 8, now=0)
    assert who.receive(offer(20), 200) == []
    who.tick(200)
    assert 1 in who.rooms and who.rooms[1].failure == Reason.NONE
    assert who.rooms[1].progress_at == 200


def test_an_early_grant_may_carry_the_whole() -> None:
    who = receiver(4)
    granted_early(who, 8)
    who.receive(status(0, 5, 5), 0)
    who.tick(0)
    who.copied(1, E1, 0, 0, 0)
    assert events(who.tick(0)) == ["complete"]


# --- R6: result memory ----------------------------------------------------------------------------------


def test_r6_result_memory_is_reserved_whole_and_given_back_at_the_end() -> None:
    who = receiver(2, result_tokens=30)
    offered(who, 20)
    assert (who.free_result_tokens, who.rooms[1].reserved_tokens) == (10, 20)
    to_the_end(who)
    assert who.free_result_tokens == 30


def test_r6_a_failure_gives_result_memory_back() -> None:
    who = receiver(2, result_tokens=30)
    offered(who, 20)
    who.abort(1)
    who.tick(0)
    assert who.free_result_tokens == 30


def test_result_memory_that_is_unlimited_is_not_counted() -> None:
    who = receiver(2)
    offered(who, 20)
    assert (who.free_result_tokens, who.rooms[1].reserved_tokens) == (1 << 62, 0)


def test_r6_newcomers_queue_for_result_memory_in_order() -> None:
    who = receiver(8, result_tokens=30)
    effects = queued(who, {1: 20, 2: 20, 3: 10})
    assert grants(effects) == [(1, 0, 0, 20)], "room 3 would fit, and waits behind room 2"
    assert to_the_end(who) == [(0, 20)]
    assert who.free_result_tokens == 30
    assert grants(who.tick(0)) == [(2, 0, 0, 20), (3, 0, 0, 10)]
    assert who.free_result_tokens == 0


def test_r6_the_memory_that_a_tick_gives_away_is_gone_for_the_next_in_it() -> None:
    who = receiver(8, result_tokens=30)
    assert grants(queued(who, {1: 16, 2: 16})) == [(1, 0, 0, 16)]
    assert who.free_result_tokens == 14


def test_r6_memory_that_just_fits_is_given() -> None:
    who = receiver(8, result_tokens=32)
    assert grants(queued(who, {1: 16, 2: 16})) == [(1, 0, 0, 16), (2, 0, 0, 16)]
    assert who.free_result_tokens == 0


def test_r6_a_holder_needs_no_more_result_memory() -> None:
    who = receiver(2, result_tokens=20)
    offered(who, 20)
    land(who)
    assert grants(who.tick(0)) == [(1, 1, 8, 8)]
    assert who.free_result_tokens == 0


def test_r6_an_early_grant_reserves_the_limit_and_gives_back_what_is_too_much() -> None:
    who = receiver(8, result_tokens=100, total_tokens_max=50)
    granted_early(who, 8)
    assert (who.free_result_tokens, who.rooms[1].reserved_tokens) == (50, 50)
    who.receive(status(0, 8, 20), 0)
    who.tick(0)
    assert (who.free_result_tokens, who.rooms[1].reserved_tokens) == (80, 20)


def test_the_limit_is_that_of_the_memory_if_it_is_smaller() -> None:
    who = receiver(8, result_tokens=30, total_tokens_max=50)
    assert who._early_limit() == 30
    assert receiver(8, total_tokens_max=50)._early_limit() == 50
    assert receiver(8, result_tokens=60, total_tokens_max=50)._early_limit() == 50


def test_r6_an_early_grant_leaves_result_memory_for_what_is_staged() -> None:
    """Two requests, one source slot: the first holds all result memory and waits to be staged, the second is staged
    and waits for result memory. So the first must not have it all."""
    who = receiver(8, result_tokens=99, total_tokens_max=50)
    who.submit(1, 0, early_tokens=8)
    who.receive(register_ack(), 0)
    assert grants(who.tick(0)) == []
    registered(who, room=2)
    who.receive(offer(50, 2, who.rooms[2].epoch), 0)
    assert grants(who.tick(0)) == [(2, 0, 0, 32)], "and it keeps nobody behind it waiting"


def test_r6_early_grants_leave_it_together() -> None:
    who = receiver(8, result_tokens=150, total_tokens_max=50)
    for room in (1, 2, 3):
        who.submit(room, 0, early_tokens=4)
        who.receive(register_ack(room, who.rooms[room].epoch), 0)
    assert grants(who.tick(0)) == [(1, 0, 0, 4), (2, 0, 0, 4)]
    assert who.free_result_tokens == 50


def test_a_total_that_is_known_reserves_the_total_early_or_not() -> None:
    who = receiver(8, result_tokens=30, total_tokens_max=50)
    who.submit(1, 0, early_tokens=8)
    who.receive(register_ack(), 0)
    who.receive(offer(20), 0)
    assert grants(who.tick(0)) == [(1, 0, 0, 20)]
    assert who.free_result_tokens == 10


def test_r6_a_resume_takes_no_result_memory_from_newcomers() -> None:
    who = receiver(7, result_tokens=28, grant_blocks_max=2)
    offered(who, 20)
    who.submit(2, 0)
    epoch = who.rooms[2].epoch
    who.receive(register_ack(2, epoch), 0)
    who.tick(0)
    land(who, copy=False)
    assert who.rooms[1].next_seq == 2 and who.free_result_tokens == 8
    who.receive(offer(8, 2, epoch), 0)
    assert grants(land(who)) == [(1, 2, 16, 4), (2, 0, 0, 8)]
    assert who.free_result_tokens == 0
