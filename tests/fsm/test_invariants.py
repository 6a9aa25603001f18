"""The checkers: each is shown a run that is right, one that is wrong in the one way it looks for, and its edges."""

from __future__ import annotations

from typing import Any

import pytest

from fsm.events import (
    Audited,
    Decided,
    Delivered,
    Executed,
    Finished,
    Granted,
    LedgerRefused,
    Note,
    Overtaken,
    Progressed,
    Repeated,
    Restarted,
    StateChanged,
    Wrote,
)
from fsm.invariants import CHECKERS, LIVENESS, PROPERTIES, SAFETY, Checker, Monitors, Violation
from fsm.messages import BlockRef, Epoch

E1, E2 = Epoch(3, 1), Epoch(3, 2)


def shown(*events: Any) -> list[Violation]:
    """What is found wrong with these events, in order."""
    monitors = Monitors()
    for event in events:
        monitors.take(event)
    return monitors.violations


def state(target: str, side: str = "receiver", rank: int = 0, room: int = 1, epoch: Any = E1) -> StateChanged:
    return StateChanged(side, rank, room, epoch, "some", "Somewhere", target)


def granted(seq: int, start: int, rank: int = 0, room: int = 1, epoch: Epoch = E1) -> Granted:
    return Granted(rank, room, epoch, seq, start, 8, (BlockRef(0, 0),))


def executed(seq: int, rank: int = 0, room: int = 1, epoch: Epoch = E1) -> Executed:
    return Executed(rank, room, epoch, seq, 0, 8)


def wrote(start: int, count: int, rank: int = 0, room: int = 1, epoch: Epoch = E1, trespass: str = "") -> Wrote:
    return Wrote(rank, room, epoch, 0, start, count, trespass)


def progressed(tokens: int, rank: int = 0, room: int = 1, epoch: Epoch = E1) -> Progressed:
    return Progressed(rank, room, epoch, tokens)


def delivered(start: int, count: int, wrong: str = "", rank: int = 0, room: int = 1, epoch: Epoch = E1) -> Delivered:
    return Delivered(rank, room, epoch, 0, start, count, wrong)


def finished(
    ended: str = "Success",
    total: int = 20,
    side: str = "receiver",
    rank: int = 0,
    room: int = 1,
    epoch: Any = E1,
    undisturbed: bool = False,
) -> Finished:
    return Finished(side, rank, room, epoch, ended, "SOME", total, undisturbed)


def test_every_property_has_a_name_and_words() -> None:
    assert (*SAFETY, *LIVENESS) == tuple(PROPERTIES)
    assert all(PROPERTIES.values())


def test_every_checker_looks_for_a_property_of_its_own() -> None:
    names = [checker.name for checker in CHECKERS]
    assert names == ["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "L1", "L3"]
    assert [checker.name for checker in Monitors().checkers] == names


def test_a_checker_says_what_it_reads() -> None:
    with pytest.raises(NotImplementedError):
        Checker().handlers()


# --- I1, I3, I8, L3: what a world says of itself ---------------------------------------------------------


def test_i1_a_write_where_none_may_be() -> None:
    assert shown(wrote(0, 8)) == []
    assert shown(wrote(0, 8, trespass="block 3 is Free")) == [Violation("I1", "block 3 is Free")]


def test_i3_an_audit_that_found_something() -> None:
    assert shown(Audited(0, "block 3 is lost")) == [Violation("I3", "block 3 is lost")]


def test_i8_a_duplicate_that_changed_something() -> None:
    assert shown(Repeated("sender 0", "GRANT room=1")) == []
    assert shown(Repeated("sender 0", "GRANT room=1", "its state changed")) == [
        Violation("I8", "GRANT room=1 to the sender 0: its state changed")
    ]


def test_l3_a_newcomer_that_passed() -> None:
    assert shown(Overtaken(0, 4, (1, 2))) == [
        Violation("L3", "room 4 got grant 0 while rooms [1, 2] held data and waited for blocks")
    ]


def test_a_refusal_of_the_ledger_is_reported_as_the_property_that_it_guards() -> None:
    assert shown(LedgerRefused(0, 1, "I3", "block 2 is free")) == [
        Violation("I3", "refused by the block ledger: block 2 is free")
    ]


# --- I2 -------------------------------------------------------------------------------------------------


def test_i2_pieces_that_tile_the_whole() -> None:
    assert shown(delivered(0, 8), delivered(8, 12), finished()) == []


def test_i2_too_little() -> None:
    assert shown(delivered(0, 8), finished()) == [
        Violation("I2", "room 1 rank 0 ended in Success with [0, 8) of [0, 20)")
    ]
    assert shown(finished()) == [Violation("I2", "room 1 rank 0 ended in Success with nothing of [0, 20)")]


def test_i2_too_much() -> None:
    assert shown(delivered(0, 21), finished()) == [
        Violation("I2", "room 1 rank 0 ended in Success with [0, 21) of [0, 20)")
    ]


def test_i2_copies_may_end_in_any_order() -> None:
    assert shown(delivered(8, 8), delivered(0, 8), delivered(16, 4), finished()) == []


def test_i2_a_gap() -> None:
    assert shown(delivered(0, 8), delivered(9, 11), finished()) == [
        Violation("I2", "room 1 rank 0 ended in Success with [0, 8) [9, 20) of [0, 20)")
    ]
    assert shown(delivered(1, 19), finished()) == [
        Violation("I2", "room 1 rank 0 ended in Success with [1, 20) of [0, 20)")
    ]


WRONG = "room 1 rank 0 ended in Success with wrong content"


def test_i2_tokens_that_come_twice() -> None:
    for again, text in (((0, 20), "[0, 20)"), ((7, 13), "[7, 20)")):
        assert shown(delivered(0, 8), delivered(*again), finished()) == [
            Violation(
                "I2",
                "room 1 rank 0 ended in Success with wrong content: "
                f"tokens {text} were delivered though [0, 8) had been",
            )
        ]
    assert shown(delivered(12, 8), delivered(0, 13), delivered(3, 1), finished()) == [
        Violation(
            "I2",
            "room 1 rank 0 ended in Success with wrong content: tokens [0, 13) were delivered though [12, 20) had been",
        )
    ]


def test_i2_wrong_content_and_the_first_of_several_wrongs() -> None:
    text = "room 1 rank 0 ended in Success with wrong content: poison"
    assert shown(delivered(0, 20, "poison"), finished()) == [Violation("I2", text)]
    assert shown(delivered(0, 8, "poison"), delivered(9, 11, "more"), finished()) == [Violation("I2", text)]


def test_i2_a_failure_may_have_delivered_anything() -> None:
    assert shown(delivered(3, 2, "poison"), finished("Failed")) == []


def test_i2_every_rank_room_and_epoch_by_itself() -> None:
    assert (
        shown(
            delivered(0, 20),
            delivered(0, 20, rank=1),
            delivered(0, 20, room=2),
            delivered(0, 20, epoch=E2),
            finished(),
            finished(rank=1),
            finished(room=2),
            finished(epoch=E2),
        )
        == []
    )
    assert shown(delivered(0, 20), finished(rank=1)) == [
        Violation("I2", "room 1 rank 1 ended in Success with nothing of [0, 20)")
    ]


def test_i2_the_sender_delivers_nothing() -> None:
    assert shown(delivered(0, 8), finished(side="sender"), delivered(8, 12), finished()) == []
    assert shown(finished(epoch=None)) == []


def test_i2_what_has_ended_is_forgotten() -> None:
    monitors = Monitors()
    for event in (delivered(0, 20), finished(), delivered(0, 3, epoch=E2), finished("Failed", epoch=E2)):
        monitors.take(event)
    assert monitors.checkers[1].memory == {}


# --- I4 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", ["Success", "Failed"])
@pytest.mark.parametrize("side", ["receiver", "sender"])
def test_i4_what_has_ended_moves_no_more(ended: str, side: str) -> None:
    assert shown(state("Transferring", side), state("ResumeRequested", side), state(ended, side)) == []
    assert shown(state(ended, side), state("Transferring", side)) == [
        Violation("I4", f"room 1 epoch 1 had ended in {ended} and is now Transferring")
    ]


def test_i4_others_may_go_on() -> None:
    assert (
        shown(
            state("Failed"),
            state("Success", epoch=E2),
            state("Success", side="sender"),
            state("Success", rank=1),
            state("Success", room=2),
        )
        == []
    )


def test_i4_who_was_never_registered_has_no_epoch() -> None:
    assert shown(state("Failed", "sender", epoch=None), state("Failed", "sender", epoch=None)) == []


def test_i4_a_sender_that_was_restarted_does_not_know_what_had_ended() -> None:
    ended = state("Failed", "sender", rank=2)
    assert shown(ended, Restarted((1, 2)), state("Transferring", "sender", rank=2)) == []
    assert len(shown(ended, Restarted((1, 3)), state("Transferring", "sender", rank=2))) == 1
    assert len(shown(state("Failed", rank=2), Restarted((2,)), state("Transferring", rank=2))) == 1


# --- I5 -------------------------------------------------------------------------------------------------


def test_i5_the_watermark_follows_the_bytes() -> None:
    run = (wrote(0, 8), progressed(8), progressed(8), wrote(8, 8), progressed(16), finished("Failed"))
    assert shown(*run) == []


def test_i5_the_watermark_falls() -> None:
    assert shown(wrote(0, 8), progressed(8), progressed(7)) == [
        Violation("I5", "room 1 rank 0: the watermark fell from 8 to 7")
    ]


def test_i5_the_watermark_is_ahead() -> None:
    assert shown(wrote(0, 8), progressed(9)) == [
        Violation("I5", "room 1 rank 0: the watermark is 9, 8 tokens have landed")
    ]
    assert shown(progressed(1)) == [Violation("I5", "room 1 rank 0: the watermark is 1, 0 tokens have landed")]
    assert shown(progressed(0)) == []


def test_i5_bytes_behind_a_gap_do_not_count() -> None:
    assert shown(wrote(0, 8), wrote(9, 8), progressed(9)) == [
        Violation("I5", "room 1 rank 0: the watermark is 9, 8 tokens have landed")
    ]


def test_i5_bytes_that_come_again_take_nothing_back() -> None:
    assert shown(wrote(0, 8), wrote(0, 4), progressed(8)) == []
    assert shown(wrote(0, 8), progressed(8), wrote(4, 8), progressed(12), progressed(11)) == [
        Violation("I5", "room 1 rank 0: the watermark fell from 12 to 11")
    ]


def test_i5_every_rank_room_and_epoch_by_itself() -> None:
    for other in (progressed(8, rank=1), progressed(8, room=2), progressed(8, epoch=E2)):
        assert [v.property for v in shown(wrote(0, 8), other)] == ["I5"]


def test_i5_the_end_of_the_receivers_part_is_the_end() -> None:
    monitors = Monitors()
    for event in (wrote(0, 20), progressed(20), finished("Failed", side="sender")):
        monitors.take(event)
    assert monitors.checkers[4].memory == {(0, 1, E1): (20, 20)}
    monitors.take(finished("Failed", epoch=None))
    assert monitors.checkers[4].memory == {(0, 1, E1): (20, 20)}
    monitors.take(finished("Failed"))
    monitors.take(finished("Failed"))
    assert monitors.checkers[4].memory == {}


# --- I6 -------------------------------------------------------------------------------------------------


def test_i6_each_start_once() -> None:
    assert shown(granted(0, 0), granted(1, 8), granted(2, 16)) == []
    assert shown(granted(0, 0), granted(1, 8), granted(2, 8)) == [
        Violation("I6", "room 1 rank 0: start 8 was granted as seq 1 and again as seq 2")
    ]
    assert [v.property for v in shown(granted(0, 0), granted(1, 8), granted(2, 0))] == ["I6"]


def test_i6_the_same_grant_is_the_same_grant() -> None:
    assert shown(granted(0, 0), granted(0, 0)) == []


def test_i6_each_seq_once() -> None:
    assert shown(executed(0), executed(1)) == []
    assert shown(executed(0), executed(0)) == [Violation("I6", "room 1 rank 0: seq 0 was executed twice")]
    assert [v.property for v in shown(executed(0), executed(1), executed(0))] == ["I6"]


def test_i6_every_rank_room_and_epoch_by_itself() -> None:
    assert shown(granted(0, 0), granted(1, 0, rank=1), granted(1, 0, room=2), granted(1, 0, epoch=E2)) == []
    assert shown(executed(0), executed(0, rank=1), executed(0, room=2), executed(0, epoch=E2)) == []


# --- I7 -------------------------------------------------------------------------------------------------


def decided(rank: int, *moves: tuple[int, str], ranks: int = 2) -> Decided:
    return Decided(ranks, rank, moves)


def test_i7_equal_decisions() -> None:
    landed, failed = (1, "landed"), (2, "fail")
    assert shown(decided(0, landed, failed), decided(1, landed, failed), decided(0), decided(1)) == []
    assert shown(decided(0, landed), decided(1)) == [Violation("I7", "rank 0 decided ((1, 'landed'),), rank 1 ()")]
    assert [v.property for v in shown(decided(0, landed, failed), decided(1, failed, landed))] == ["I7"]


def test_i7_each_tick_by_itself() -> None:
    assert shown(decided(0), decided(1), decided(0, (1, "landed")), decided(1, (1, "landed"))) == []
    three = [decided(rank, (1, "landed"), ranks=3) for rank in range(3)]
    assert shown(*three, decided(0, ranks=3), decided(1, ranks=3), decided(2, ranks=3)) == []
    assert [v.property for v in shown(*three[:2], decided(2, ranks=3))] == ["I7"]


def test_i7_a_collective_that_was_lost_is_not_compared() -> None:
    lost = Decided(0, -1, ())
    assert shown(decided(0, (1, "landed")), lost, decided(0), decided(1)) == []


def test_i7_nothing_is_remembered_between_ticks() -> None:
    monitors = Monitors()
    monitors.take(decided(0))
    assert monitors.checkers[6].memory == {"open": (0, (), 1)}
    monitors.take(decided(1))
    assert monitors.checkers[6].memory == {}


# --- L1 -------------------------------------------------------------------------------------------------


def test_l1_an_undisturbed_request_succeeds() -> None:
    assert shown(finished("Failed")) == []
    assert shown(delivered(0, 20), finished(undisturbed=True)) == []
    text = "room 1 failed on the sender (rank 0): SOME, though nothing was lost, crashed, cut off or aborted"
    assert shown(finished("Failed", side="sender", undisturbed=True)) == [Violation("L1", text)]


# --- all of them ----------------------------------------------------------------------------------------


def test_the_first_violation_of_each_property_is_kept() -> None:
    found = shown(Audited(0, "a"), wrote(0, 1, trespass="b"), Audited(0, "c"), wrote(0, 1, trespass="d"))
    assert found == [Violation("I3", "a"), Violation("I1", "b")]


def test_what_nobody_reads_is_let_through() -> None:
    assert shown(Note("fault", "the network is cut")) == []


RUN = (
    granted(0, 0),
    executed(0),
    wrote(0, 8),
    progressed(8),
    delivered(0, 8),
    state("Success", "sender", rank=1),
    decided(0),
)


def test_memory_is_saved_and_loaded() -> None:
    monitors, other = Monitors(), Monitors()
    for event in RUN:
        monitors.take(event)
    saved = monitors.save()
    assert isinstance(hash(saved), int)
    other.take(Audited(0, "something"))
    other.load(saved)
    assert other.save() == saved and other.violations == []
    for event in (granted(1, 0), executed(0), progressed(7), state("Failed", "sender", rank=1), decided(1, (1, "x"))):
        other.take(event)
    assert [v.property for v in other.violations] == ["I6", "I5", "I4", "I7"]


def test_memory_is_saved_alike_whatever_the_order_of_events() -> None:
    one, other = Monitors(), Monitors()
    for event in (delivered(0, 8), delivered(0, 8, rank=1), wrote(0, 8, room=2), wrote(0, 8, room=3)):
        one.take(event)
    for event in (wrote(0, 8, room=3), wrote(0, 8, room=2), delivered(0, 8, rank=1), delivered(0, 8)):
        other.take(event)
    assert one.save() == other.save()


def test_a_memory_of_other_checkers_is_not_loaded() -> None:
    with pytest.raises(ValueError):
        Monitors().load(Monitors().save()[:-1])  # type: ignore[index]


def test_i5_a_watermark_of_nothing_is_behind_everything() -> None:
    assert shown(wrote(0, 8), progressed(0)) == []
    assert shown(wrote(1, 8), progressed(1)) == [
        Violation("I5", "room 1 rank 0: the watermark is 1, 0 tokens have landed")
    ]


def test_i6_what_is_remembered() -> None:
    monitors = Monitors()
    monitors.take(granted(0, 0))
    monitors.take(executed(0))
    assert monitors.checkers[5].memory == {("granted", 0, 1, E1): ((0, 0),), ("executed", 0, 1, E1): 0}
