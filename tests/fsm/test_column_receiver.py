"""What is the fast receiver's own: which requests it looks at, what it tells the others, and what it refuses.

That it does with them what the plain one does is held elsewhere, over whole worlds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fsm import column_receiver, columns
from fsm.allocators import make_allocator
from fsm.blocks import BlockLedger
from fsm.column_receiver import ColumnReceiver
from fsm.effects import CopyOut, Effect, Ended, Moved, Refused, Send
from fsm.errors import LocalError
from fsm.messages import Abort, Epoch, Grant, Heartbeat
from fsm.ranks import Observation
from fsm.reasons import Reason
from fsm.receiver import Receiver
from fsm.receiver_facts import ReceiverConfig
from fsm.states import State
from tests.fsm.kit import (
    BOOT,
    E1,
    LAYOUT,
    SENDER_BOOT,
    TIMING,
    abort_ack,
    fail,
    granted,
    grants,
    land,
    of_type,
    offer,
    offered,
    register_ack,
    registered,
    sent,
    status,
)  # fmt: skip


@pytest.fixture(autouse=True, params=[0, 24], ids=["rows", "one by one"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few requests are looked at one by one, many by their rows; here a few by their rows as well."""
    monkeypatch.setattr(column_receiver, "FEW", request.param)


def fast(blocks: int = 8, *, boot_id: int = BOOT, ranks: int = 1, rows_max: int = 512, **config: Any) -> ColumnReceiver:
    ledger = BlockLedger(blocks, make_allocator("fifo"))
    config = {"timing": TIMING} | config
    return ColumnReceiver(ReceiverConfig(LAYOUT, **config), ledger, boot_id=boot_id, ranks=ranks, rows_max=rows_max)


def many(count: int, **config: Any) -> ColumnReceiver:
    """Requests 1 to ``count``, all granted a block."""
    who = fast(count, **config)
    for room in range(1, count + 1):
        offered(who, 4, room=room)
    assert all(record.grant is not None for record in who.rooms.values())
    return who


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rooms that decisions were asked about, one by one."""
    rooms: list[int] = []
    advance = Receiver._advance

    def watched(self: Receiver, room: Any, *rest: Any) -> None:
        rooms.append(room.room)
        advance(self, room, *rest)

    monkeypatch.setattr(Receiver, "_advance", watched)
    return rooms


# --- what is looked at ----------------------------------------------------------------------------------


def test_a_tick_with_nothing_new_is_one_call_of_the_kernel_and_looks_at_nobody(
    looked_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    who = many(100)
    looked_at.clear()
    calls: list[int] = []
    verdict = columns.kernel.verdict

    def counted(ops: Any, state: Any, *rest: Any) -> Any:
        calls.append(len(state))
        return verdict(ops, state, *rest)

    monkeypatch.setattr(columns.kernel, "verdict", counted)
    assert who.tick(1) == []
    assert len(calls) <= 1 and looked_at == []
    calls.clear()
    assert who.tick(1) == [] and calls == [], "nothing was written since"
    who.receive(status(0, 4, 4, room=7, epoch=who.rooms[7].epoch), 1)
    who.tick(1)
    assert calls == [100], "one call, for the whole queue"
    assert looked_at == [7]


def test_only_what_changed_is_looked_at(looked_at: list[int]) -> None:
    who = many(100)
    looked_at.clear()
    who.receive(status(0, 4, 4, room=7, epoch=who.rooms[7].epoch), 1)
    assert [effect.room for effect in of_type(who.tick(1), CopyOut)] == [7]
    assert looked_at == [7]


def test_newcomers_beyond_what_is_free_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand that queue for two blocks must not cost ten thousand looks a tick."""
    who = fast(2)
    for room in range(1, 51):
        who.submit(room, 0)
        who.receive(register_ack(room, who.rooms[room].epoch), 0)
        who.receive(offer(4, room, who.rooms[room].epoch), 0)
    who.tick(0)
    served: list[int] = []
    serve = Receiver._serve

    def watched(self: Receiver, room: Any, *rest: Any) -> Any:
        served.append(room.room)
        return serve(self, room, *rest)

    monkeypatch.setattr(Receiver, "_serve", watched)
    assert who.tick(0) == [] and served == []
    who.receive(status(0, 4, 4, room=1, epoch=who.rooms[1].epoch), 0)
    for effect in of_type(who.tick(0), CopyOut):
        who.copied(effect.room, effect.epoch, effect.seq, 0, 0)
    assert [room for room, *_ in grants(who.tick(0))] == [3]
    assert served == [3], "one block came back, and the oldest got it"


def test_rows_are_used_again(looked_at: list[int]) -> None:
    who = fast(1)
    for room in range(1, 300):
        offered(who, 4, room=room)
        land(who, room=room)
        who.tick(0)
        assert room not in who.rooms
    assert len(who.columns) == 0 and len(who.columns.column("live")) == 1


def test_more_requests_than_rows_were_made_for() -> None:
    who = fast(1)
    for room in range(1, 201):
        who.submit(room, 0)
    assert len(who.columns) == 200
    assert sorted(who.columns.rooms(who.columns.column("live"))) == list(range(1, 201))


# --- time -----------------------------------------------------------------------------------------------


def test_no_request_no_timer() -> None:
    assert fast().next_timer_s() is None


def test_the_next_timer_is_the_earliest_of_all() -> None:
    who = fast()
    who.submit(1, 10)
    who.tick(10)
    assert who.next_timer_s() == 10 + TIMING.resend_s
    who.receive(register_ack(), 11)
    who.tick(11)
    assert who.next_timer_s() == 11 + TIMING.deadline_s + 200, "the OFFER is awaited, and the peer may queue"


def test_heartbeats_are_sent_on_time() -> None:
    who = fast(timing=replace(TIMING, heartbeat_s=5))
    assert sent(who.tick(0)) == [Heartbeat(BOOT, 0, 0)]
    assert who.next_timer_s() == 5
    assert who.tick(4.9) == [] and len(who.tick(5)) == 1


def test_what_awaits_an_answer_is_sent_again() -> None:
    who = fast()
    offered(who, 20)
    assert who.tick(TIMING.resend_s - 0.1) == []
    (again,) = who.tick(TIMING.resend_s)
    assert isinstance(again, Send) and again.resend and isinstance(again.message, Grant)
    assert who.tick(TIMING.resend_s) == []


def test_what_no_tick_has_looked_at_is_due_at_once() -> None:
    who = fast()
    registered(who)
    later = who.next_timer_s()
    assert later is not None and later > 0
    who.receive(offer(20), 1)
    assert who.next_timer_s() == 0
    who.tick(1)
    assert who.next_timer_s() == 1 + TIMING.resend_s
    who.tick(1 + TIMING.resend_s)
    assert who.next_timer_s() == 1 + 2 * TIMING.resend_s, "a resend is no news"


def test_what_awaits_an_answer_goes_at_once_to_a_peer_that_can_be_reached_again() -> None:
    who = fast()
    offered(who, 20)
    registered(who, room=2)
    fail(who, room=2)
    assert who.tick(1) == []
    who.reachable(1)
    assert [type(message) for message in sent(who.tick(1))] == [Grant, Abort]
    assert who.tick(1) == [] and len(who.tick(1 + TIMING.resend_s)) == 2


def test_an_abort_is_repeated_until_it_is_acknowledged_and_then_the_tombstone_goes() -> None:
    who = fast()
    offered(who, 20)
    fail(who)
    aborts = [type(message) for now in (6, 7, 8, 14) for message in sent(who.tick(now))]
    assert aborts == [Abort, Abort]
    who.receive(abort_ack(), 15)
    assert who.tick(21) == [] and who.tombstones
    assert who.tick(TIMING.tombstone_s) == [] and not who.tombstones
    assert who.next_timer_s() is None


def test_a_tombstone_that_holds_blocks_stays_until_they_come_back_and_goes_then() -> None:
    who = fast()
    offered(who, 20)
    fail(who)
    who.receive(abort_ack(boot_id=SENDER_BOOT + 1), 1)  # no proof: another process says it
    who.tick(10 * TIMING.tombstone_s)
    assert who.tombstones[1, E1].held
    who.quiesced(SENDER_BOOT)
    who.tick(10 * TIMING.tombstone_s)
    assert not who.tombstones


def test_a_lease_and_a_held_result_keep_the_tombstone_likewise() -> None:
    who = fast(results_held=True, result_tokens=40)
    offered(who, 20)
    land(who)
    who.tick(0)
    who.tick(1000)
    assert who.tombstones
    who.release_result(1, E1)
    who.tick(1000)
    assert not who.tombstones
    (copy,) = of_type((offered(who, 20, 1000, room=2), land(who, 1000, room=2, copy=False))[1], CopyOut)
    who.lease(*copy[:3], 0, 1000)
    assert [e.state for e in of_type(who.tick(1000), Ended)] == [State.SUCCESS]
    who.tick(3000)
    assert who.tombstones
    who.copied(*copy[:3], 0, 3000)
    who.tick(3000)
    assert not who.tombstones


def test_a_wrong_copy_fails_its_request_at_the_next_tick() -> None:
    who = fast()
    offered(who, 20)
    (copy,) = of_type(land(who, copy=False), CopyOut)
    who.copy_failed(*copy[:3], Reason.CHECKSUM, 0)
    assert [e.reason for e in of_type(who.tick(0), Ended)] == ["CHECKSUM"]


def test_r11_whatever_goes_wrong_in_one_room_harms_that_one_only(monkeypatch: pytest.MonkeyPatch) -> None:
    who = fast(8)
    for room in (1, 2):
        offered(who, 8, room=room)
    for room in (1, 2):
        who.receive(status(0, 8, 8, room=room, epoch=who.rooms[room].epoch), 0)
    take = Receiver._take_chunk

    def breaks(self: Receiver, room: Any, seen: Any) -> None:
        if room.room == 1:
            raise ZeroDivisionError("a mistake in the program")
        take(self, room, seen)

    monkeypatch.setattr(Receiver, "_take_chunk", breaks)
    effects = who.tick(0)
    (refused,) = of_type(effects, Refused)
    assert (refused.room, refused.property, refused.text) == (1, "R11", "ZeroDivisionError: a mistake in the program")
    assert [effect.room for effect in of_type(effects, CopyOut)] == [2]
    assert [(e.room, e.reason) for e in of_type(who.tick(0), Ended)] == [(1, "INTERNAL")]


def test_r11_a_tombstone_that_cannot_be_worked_on_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    who = fast()
    offered(who, 8)
    fail(who)
    monkeypatch.setattr(BlockLedger, "release", lambda *arguments: 1 // 0)
    (refused,) = who.receive(abort_ack(), 0)
    assert isinstance(refused, Refused) and refused.property == "R11"


def test_a_request_may_be_ended_for_another_reason() -> None:
    who = fast()
    who.submit(1, 0)
    who.abort(1, Reason.INTERNAL)
    assert [e.reason for e in of_type(who.tick(0), Ended)] == ["INTERNAL"]


# --- ranks ----------------------------------------------------------------------------------------------


def exchange(ranks: list[ColumnReceiver], now: float = 0) -> list[list[Effect]]:
    """One tick of all ranks: their effects."""
    seen = tuple(rank.observe(now) for rank in ranks)
    return [rank.decide(rank.agree(seen), now) for rank in ranks]


def pair(**options: Any) -> list[ColumnReceiver]:
    return [fast(ranks=2, rank=rank, **options) for rank in range(2)]


def all_registered(ranks: list[ColumnReceiver], rooms: range) -> None:
    for place, rank in enumerate(ranks):
        for room in rooms:
            rank.submit(room, 0)
            ack = register_ack(room, rank.rooms[room].epoch)
            rank.receive(type(ack)(room, ack.epoch, 0, place, SENDER_BOOT, True, 200), 0)


def test_ranks_tell_of_what_changed_and_of_nothing_else() -> None:
    ranks = pair()
    all_registered(ranks, range(1, 4))
    first = [rank.observe(0) for rank in ranks]
    assert [len(seen.rooms) for seen in first] == [3, 3]
    effects = [rank.decide(rank.agree(tuple(first)), 0) for rank in ranks]
    assert [effect.room for effect in of_type(effects[0], Moved)] == [1, 2, 3]
    assert effects[0] == [e._replace(receiver_rank=0) if isinstance(e, Moved) else e for e in effects[1]]
    assert [rank.observe(0).rooms for rank in ranks] == [(), ()]


def test_what_does_not_fit_one_observation_follows_with_the_next() -> None:
    ranks = pair(rows_max=2)
    all_registered(ranks, range(1, 6))
    moved = []
    for _ in range(3):
        effects = exchange(ranks)
        moved.append([effect.room for effect in of_type(effects[0], Moved)])
    assert moved == [[1, 2], [3, 4], [5]]


def test_a_request_that_ended_before_the_other_rank_knew_it_leaves_nothing_on_the_board() -> None:
    ranks = pair()
    ranks[0].submit(1, 0)
    ranks[0].abort(1)
    effects = exchange(ranks)
    assert [e.state for e in of_type(effects[0], Ended)] == [State.FAILED]
    ranks[1].submit(1, 0)
    ranks[0].submit(1, 0)
    assert ranks[1].rooms[1].epoch != ranks[0].rooms[1].epoch
    exchange(ranks)
    assert all(1 not in rank.rooms for rank in ranks), "another attempt on each rank is a mismatch, and ends"
    ranks[1].counter = ranks[0].counter
    for rank in ranks:
        rank.submit(1, 0)
    exchange(ranks)
    assert all(1 in rank.rooms for rank in ranks), "and nothing of the earlier ones is left"


def test_a_request_that_another_rank_does_not_have_yet_waits_for_it() -> None:
    ranks = pair()
    all_registered(ranks[:1], range(1, 2))
    assert exchange(ranks) == [[], []]
    ranks[1].submit(1, 0)
    ranks[1].receive(type(register_ack())(1, ranks[1].rooms[1].epoch, 0, 1, SENDER_BOOT, True, 200), 0)
    assert [[e.event for e in of_type(effects, Moved)] for effects in exchange(ranks)] == [["registered"]] * 2


def test_a_mismatch_among_the_others_ends_here_too() -> None:
    """Three ranks; two of them have room 1 in different epochs, and the third has never heard of it."""
    ranks = [fast(ranks=3, rank=rank) for rank in range(3)]
    ranks[1].counter = 5
    ranks[0].submit(1, 0)
    ranks[1].submit(1, 0)
    exchange(ranks)
    assert not ranks[0].rooms and not ranks[1].rooms
    assert all(not rows for rank in ranks for rows in rank._board)


def test_after_the_loss_of_a_rank_everything_is_told_again() -> None:
    ranks = pair()
    all_registered(ranks, range(1, 3))
    exchange(ranks)
    survivor = ranks[0]
    survivor.rank_lost(BOOT + 9)
    own = survivor.observe(0)
    assert [row.failure for row in own.rooms] == [Reason.RANK_LOST] * 2
    effects = survivor.decide(survivor.agree((own,)), 0)
    assert [e.reason for e in of_type(effects, Ended)] == ["RANK_LOST", "RANK_LOST"], "failures wait for nobody"
    survivor.submit(3, 0)
    assert survivor.rooms[3].epoch == Epoch(BOOT + 9, 1)


def test_free_memory_is_the_least_that_any_rank_has() -> None:
    who = fast(ranks=2)
    agreed = who.agree((Observation(0, (), 5, 9), Observation(1, (), 3, 70)))
    assert (agreed.free_blocks, agreed.free_result_tokens) == (3, 9)


# --- what is refused ------------------------------------------------------------------------------------


def test_several_ranks_cannot_tick_alone() -> None:
    with pytest.raises(LocalError, match=r"2 ranks; call observe, exchange, agree and decide"):
        fast(ranks=2).tick(0)


@pytest.mark.parametrize(("options", "text"), [
    ({"ranks": 0}, "ranks=0, rows_max=512: expected at least 1"),
    ({"rows_max": 0}, "ranks=1, rows_max=0: expected at least 1"),
    ({"ranks": 2, "rank": 2}, "rank=2: expected 0 to 1"),
])  # fmt: skip
def test_sizes_that_make_no_sense(options: dict[str, int], text: str) -> None:
    with pytest.raises(LocalError, match=text):
        fast(**options)


def test_a_refused_submit_changes_nothing() -> None:
    who = fast()
    who.submit(1, 0)
    with pytest.raises(LocalError, match="in use"):
        who.submit(1, 0)
    assert len(who.columns) == 1


def test_a_loaded_receiver_goes_on() -> None:
    who = fast()
    offered(who, 20)
    registered(who, room=2)
    fail(who, room=2)
    other = fast()
    other.load(who.save(5), 105)
    assert other.save(105) == who.save(5)
    assert sent(other.tick(107)) == sent(who.tick(7)) != []
    assert granted([Send(message) for message in sent(offered(other, 8, 110, room=3))]).room == 3
