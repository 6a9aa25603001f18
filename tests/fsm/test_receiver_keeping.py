"""What the caller may keep for a while: landed blocks instead of a copy, and result memory after the end.

And what happens when a copy turns out not to be what was sent.
"""

from __future__ import annotations

import pytest

from fsm.blocks import BlockLedger
from fsm.effects import CopyOut, Ended, Recycle
from fsm.messages import Grant
from fsm.reasons import Reason
from fsm.receiver import Receiver
from fsm.states import BlockState, State
from tests.fsm.kit import (
    E1,
    E2,
    abort_ack,
    fail,
    grant,
    land,
    of_type,
    offered,
    ready,
    receiver,
    sent,
    status,
    write_out,
)


def landed_whole(blocks: int = 2, total: int = 8, **config: object) -> Receiver:
    """A request that fits one grant, landed; its copy out has been asked for."""
    who = receiver(blocks, **config)
    offered(who, total)
    (copy,) = of_type(land(who, copy=False), CopyOut)
    assert copy.whole
    return who


def owned(ledger: BlockLedger) -> int:
    return len(ledger) - ledger.free_count


def test_only_the_copy_of_a_whole_request_is_whole() -> None:
    who = receiver(2)
    offered(who, 20)
    copies = of_type(land(who), CopyOut)
    for _ in range(2):
        who.tick(0)
        copies += of_type(land(who), CopyOut)
    assert [(copy.start, copy.tokens, copy.whole) for copy in copies] == [
        (0, 8, False), (8, 8, False), (16, 4, False),
    ]  # fmt: skip


def test_a_lease_succeeds_at_once_and_keeps_its_blocks_until_it_comes_back() -> None:
    who = landed_whole()
    assert who.lease(1, E1, 0, 77, 0) == []
    (ended,) = of_type(who.tick(0), Ended)
    assert ended.state == State.SUCCESS
    assert who.ledger.counts()[BlockState.READING] == 2, "the caller reads them still"
    who.tick(1000)
    assert (1, E1) in who.tombstones, "what holds blocks does not expire"
    assert not who.resting
    assert who.copied(1, E1, 0, 0, 1000) == [Recycle((0, 1), True)]
    assert owned(who.ledger) == 0 and who.resting
    assert who.copied(1, E1, 0, 0, 1000) == [], "a lease comes back once"
    who.tick(2000)
    assert not who.tombstones


def test_the_delta_of_a_lease_is_kept_and_its_return_before_the_end_counts_once() -> None:
    who = landed_whole()
    who.lease(1, E1, 0, 77, 5)
    assert who.rooms[1].position_delta == 77 and who.rooms[1].progress_at == 5
    assert who.copied(1, E1, 0, 12, 6) == [Recycle((0, 1), True)]
    room = who.rooms[1]
    assert (room.delivered_tokens, room.position_delta, room.progress_at) == (8, 77, 5)
    (ended,) = of_type(who.tick(6), Ended)
    assert ended.state == State.SUCCESS and not who.tombstones[1, E1].holds_memory


def test_what_is_no_lease_changes_nothing() -> None:
    who = landed_whole()
    before = who.save(0)
    for room, epoch, seq in ((2, E1, 0), (1, E2, 0), (1, E1, 1)):
        assert who.lease(room, epoch, seq, 77, 0) == []
        assert who.save(0) == before
    who.lease(1, E1, 0, 77, 0)
    before = who.save(0)
    who.lease(1, E1, 0, 78, 0)
    assert who.save(0) == before, "once is enough"


def test_a_chunk_that_is_not_being_read_or_not_whole_cannot_be_leased() -> None:
    who = receiver(2)
    offered(who, 8)
    who.receive(status(0, 8, 8), 0)
    before = who.save(0)
    who.lease(1, E1, 0, 77, 0)
    assert who.save(0) == before, "no copy was asked for yet"
    part = receiver(2)
    offered(part, 20)
    land(part, copy=False)
    before = part.save(0)
    part.lease(1, E1, 0, 77, 0)
    assert part.save(0) == before


def test_a_request_that_fails_while_leased_gives_the_blocks_back_when_the_lease_ends() -> None:
    who = landed_whole(results_held=True, result_tokens=8)
    who.lease(1, E1, 0, 77, 0)
    who.abort(1)
    (ended,) = of_type(who.tick(0), Ended)
    assert ended.state == State.FAILED
    assert owned(who.ledger) == 2 and who.free_result_tokens == 0
    who.copied(1, E1, 0, 0, 0)
    assert owned(who.ledger) == 0 and who.free_result_tokens == 8


# --- result memory --------------------------------------------------------------------------------------


def test_held_results_come_back_when_the_caller_says_so() -> None:
    who = landed_whole(results_held=True, result_tokens=10)
    who.copied(1, E1, 0, 77, 0)
    who.tick(0)
    assert who.free_result_tokens == 2
    who.tick(1000)
    assert (1, E1) in who.tombstones, "it is still in use"
    for room, epoch in ((2, E1), (1, E2)):
        who.release_result(room, epoch)
        assert who.free_result_tokens == 2
    who.release_result(1, E1)
    assert who.free_result_tokens == 10
    who.release_result(1, E1)
    assert who.free_result_tokens == 10, "once"
    who.tick(1000)
    assert not who.tombstones


def test_results_that_are_not_held_come_back_at_the_end() -> None:
    who = landed_whole(result_tokens=10)
    who.copied(1, E1, 0, 77, 0)
    who.tick(0)
    assert who.free_result_tokens == 10


def test_a_lease_needs_no_result_memory_once_it_has_ended() -> None:
    who = landed_whole(results_held=True, result_tokens=10)
    who.lease(1, E1, 0, 77, 0)
    who.tick(0)
    assert who.free_result_tokens == 10


def test_a_request_that_waits_for_held_memory_goes_on_when_it_is_released() -> None:
    who = landed_whole(results_held=True, result_tokens=10)
    who.copied(1, E1, 0, 77, 0)
    who.tick(0)
    offered(who, 8, room=2)
    assert who.rooms[2].grant is None, "2 of 10 tokens are free"
    who.release_result(1, E1)
    who.tick(0)
    assert who.rooms[2].grant is not None


def test_memory_that_is_still_copied_to_is_not_given_away_by_a_failure() -> None:
    who = landed_whole(results_held=True, result_tokens=10)
    fail(who)
    assert who.free_result_tokens == 2
    who.release_result(1, E1)
    assert who.free_result_tokens == 2, "the copy goes on whatever the caller says"
    who.copied(1, E1, 0, 77, 0)
    assert who.free_result_tokens == 10


def test_a_failure_without_a_copy_under_way_gives_it_back_at_once() -> None:
    who = receiver(2, results_held=True, result_tokens=20)
    offered(who, 20)
    assert who.free_result_tokens == 0
    fail(who)
    assert who.free_result_tokens == 20


# --- wrong copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.CHECKSUM, Reason.INTERNAL])
def test_a_wrong_copy_fails_its_request_and_frees_its_blocks(reason: Reason) -> None:
    who = landed_whole()
    assert who.copy_failed(1, E1, 1, reason, 0) == [], "no such copy; yet the request is not to be trusted"
    assert owned(who.ledger) == 2
    assert who.copy_failed(1, E1, 0, reason, 0) == [Recycle((0, 1), True)]
    (ended,) = of_type(who.tick(0), Ended)
    assert (ended.state, ended.reason) == (State.FAILED, reason.name)
    assert owned(who.ledger) == 0
    assert who.receive(abort_ack(), 0) == []


def test_a_wrong_copy_spares_the_chunks_beside_it() -> None:
    who = receiver(4, grant_blocks_max=2)
    offered(who, 16)
    land(who, copy=False)
    who.receive(status(1, 16, 16), 0)
    who.tick(0)
    assert [chunk.seq for chunk in who.rooms[1].chunks] == [0, 1]
    who.copy_failed(1, E1, 1, Reason.CHECKSUM, 0)
    assert [chunk.seq for chunk in who.rooms[1].chunks] == [0]


def test_a_wrong_copy_of_a_request_that_ended_frees_its_blocks() -> None:
    who = landed_whole()
    fail(who)
    assert who.copy_failed(1, E1, 0, Reason.CHECKSUM, 0) == [Recycle((0, 1), True)]
    assert who.copy_failed(2, E1, 0, Reason.CHECKSUM, 0) == []
    assert who.copy_failed(1, E2, 0, Reason.CHECKSUM, 0) == []


def test_the_checksum_travels_from_the_write_to_the_copy() -> None:
    encode = ready(8)
    encode.receive(grant(0, 0, 8), 0)
    (said,) = sent(encode.sent(1, E1, 0, 0, 0, checksum=99))
    who = receiver(2)
    offered(who, 8)
    who.receive(said, 0)
    (copy,) = of_type(who.tick(0), CopyOut)
    assert copy.checksum == 99


def test_without_a_checksum_there_is_none() -> None:
    encode = ready(8)
    encode.receive(grant(0, 0, 8), 0)
    (said,) = sent(write_out(encode, grant(0, 0, 8)))
    assert said.checksum is None


# --- one-sided writes that tell -------------------------------------------------------------------------


def test_r5_a_one_sided_write_is_over_when_the_sender_says_so() -> None:
    """The notice of such a write counts for progress; its absence keeps no blocks once the sender has stopped."""
    who = receiver(2, landed_required=True)
    offered(who, 20)
    fail(who)
    assert who.receive(abort_ack(executed_seq=0), 1) == [Recycle((0, 1), True)]


# --- a peer that comes back -----------------------------------------------------------------------------


def test_what_awaits_an_answer_is_said_again_when_the_peer_can_be_reached() -> None:
    who = receiver(2)
    offered(who, 20)
    assert who.tick(1) == []
    who.reachable(1)
    assert [type(message) for message in sent(who.tick(1))] == [Grant]
    assert who.tick(1) == []


def test_a_rank_without_a_lane_is_nobodys() -> None:
    encode = ready(8)
    encode.reachable(5, 1)
    assert encode.tick(1) == []
