"""What is missing is inferred where something says that it may be missing, is counted, and is refused elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from fsm.conform.acceptor import HOLE, Acceptor
from fsm.conform.gaps import Gaps, Process
from fsm.conform.lanes import ReceiverLane, SenderLane, rows_to, target_of
from fsm.conform.words import RULES, could_have, event_words, lane_text
from fsm.events import Executed, Note, Received, Sent
from fsm.lifecycle import ReceiverFacts
from fsm.messages import Epoch
from tests.fsm.kit_conform import (
    BAD,
    BLOCK_TOKENS,
    OK,
    RR,
    B,
    R,
    S,
    T,
    W,
    abort,
    abort_ack,
    ack,
    delivered,
    executed,
    finished,
    grant,
    granted,
    late,
    moved,
    offer,
    progressed,
    read,
    refusal,
    register,
    replaced,
    silenced,
    silent,
    status,
    whole_run,
    world,
    wrote,
)

RUN = whole_run()


def inferred(acceptor: Acceptor) -> dict[str, int]:
    """What was inferred, without the reasons."""
    found: dict[str, int] = {}
    for (what, _), times in acceptor.gaps.inferred.items():
        found[what] = found.get(what, 0) + times
    return found


# --- traces that begin late -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(1, len(RUN)))
def test_a_run_without_its_beginning_is_accepted_where_that_is_missing(first: int) -> None:
    assert read(RUN[first:], late()).ended == {OK: 1}


def test_the_rows_that_are_missing_are_the_fewest_that_lead_there() -> None:
    at = RUN.index(moved(R, T, "resume", RR))
    found = read([event for event in RUN[at:] if side_of(event) == R], late())
    assert inferred(found) == {
        "receiver: Bootstrapping -> WaitingForInput (registered)": 1,
        "receiver: WaitingForInput -> Transferring (landed)": 1,
        "Granted": 1,
    }
    assert all("starts late, 9 events are not in it" in why for _, why in found.gaps.inferred)


def side_of(event: Any) -> str:
    """Whose event it is."""
    return str(getattr(event, "side", S if isinstance(event, Executed) else R))


def test_the_same_run_is_refused_where_nothing_is_missing() -> None:
    for first in range(1, len(RUN)):
        assert refusal(RUN[first:])[1].rule in ("R8", "R11", "R1", "table", "R3"), first


@pytest.mark.parametrize(
    ("events", "rule"),
    [
        ([moved(R, T, "resume", RR), granted(1), granted(2, 8)], "R2"),
        ([granted(1), granted(2, 8)], "R2"),
        ([granted(1), progressed(17)], "R1"),
        ([granted(1), moved(R, RR, "landed", T)], "R1"),
        ([granted(1), Received(R, status(1, 16)), progressed(16), progressed(16)], "R1"),
        ([granted(1), moved(R, W, "landed", T)], "table"),
        ([moved(R, W, "landed", T), moved(R, W, "landed", T)], "table"),
        ([executed(1, 8, 8), executed(1, 8, 8)], "R3"),
        ([executed(1, 8, 8), Sent(S, status(1, 15))], "R3"),
        ([executed(1, 8, 8), moved(S, T, "committed", RR)], "R3"),
        ([moved(S, T, "committed", RR), moved(S, RR, "grant", T), executed(1, 8, 8), executed(2, 16, 4)], "R3"),
        ([finished(R, OK), moved(R, OK, "fail", BAD)], "R8"),
        ([progressed(16), delivered(1, 8, 9)], "R5"),
        ([Sent(S, status(1, 16)), Sent(S, status(2, 20))], "R3"),
        ([Sent(S, status(2, 20)), moved(S, T, "committed", OK), Sent(S, offer(), True)], "R3"),
        ([Sent(R, register()), Sent(R, grant(0))], "R3"),
        ([Sent(R, register()), moved(R, T, "resume", RR)], "table"),
        ([Sent(R, register(epoch=Epoch(7, 2))), moved(R, T, "resume", RR, epoch=Epoch(7, 3))], "R8"),
    ],
)  # fmt: skip
def test_what_a_late_trace_does_tell_is_held_against_it(events: list[Any], rule: str) -> None:
    number, why = refusal(events, late())
    assert (number, why.rule) == (len(events) - 1, rule), why


@pytest.mark.parametrize(
    ("events", "times"),
    [
        ([Sent(R, register(), True), moved(R, B, "registered", W)], {"Received REGISTER_ACK": 1}),
        ([Sent(R, grant(1), True), Received(R, status(1, 16)), progressed(16), delivered(1, 8, 8)], {}),
        ([Sent(R, abort(), True), Sent(R, abort_ack(-1))], {"Received ABORT": 1}),
        ([Sent(S, abort(), True), Sent(S, abort_ack(3))], {"Received ABORT": 1}),
        ([Sent(S, status(1, 16), True), Sent(S, status(1, 16), True)], {}),
        ([Sent(S, offer(), True), Sent(S, ack())], {"Received REGISTER": 1}),
        ([Received(S, register()), Sent(S, ack()), Sent(S, offer(), True)], {}),
        ([moved(S, B, "registered", W), Sent(S, ack())], {"Received REGISTER": 2}),
        ([moved(S, B, "fail", BAD), finished(S, BAD, "DEADLINE")], {}),
        ([moved(S, T, "committed", OK), finished(S, OK)], {
            "sender: Bootstrapping -> WaitingForInput (registered)": 1,
            "sender: WaitingForInput -> Transferring (grant)": 1}),
        ([Received(S, grant(0)), executed(1, 8, 8)], {
            "sender: Bootstrapping -> WaitingForInput (registered)": 1,
            "sender: WaitingForInput -> Transferring (grant)": 1, "Received GRANT": 1}),
        ([moved(S, RR, "grant", T), executed(1, 8, 8)], {
            "sender: Bootstrapping -> WaitingForInput (registered)": 1,
            "sender: WaitingForInput -> Transferring (grant)": 1,
            "sender: Transferring -> ResumeRequested (committed)": 1, "Received GRANT": 1}),
        ([granted(0)], {
            "receiver: Bootstrapping -> WaitingForInput (registered)": 1,
            "receiver: WaitingForInput -> WaitingForInput (grant)": 1}),
        ([wrote(1, 8, 8), progressed(16), delivered(1, 8, 8), finished(R, BAD, "DEADLINE")], {
            "receiver: Bootstrapping -> Failed (fail)": 1}),
        ([moved(R, W, "landed", T), moved(R, T, "resume", RR), granted(1), wrote(1, 8, 8), wrote(0, 0, 8)], {
            "receiver: Bootstrapping -> WaitingForInput (registered)": 1, "Granted": 1}),
        ([Sent(R, register(epoch=Epoch(7, 2))), Sent(R, register(epoch=Epoch(7, 3))), finished(R, BAD, "DEADLINE")], {
            "receiver: Bootstrapping -> Failed (fail)": 1}),
    ],
)  # fmt: skip
def test_what_a_late_trace_lacks_is_counted(events: list[Any], times: dict[str, int]) -> None:
    assert inferred(read(events, late())) == times


def test_a_trespass_is_seen_in_a_late_trace_too() -> None:
    assert refusal([wrote(1, 8, 8, "it is Free")], late())[1].rule == "I1"


@pytest.mark.parametrize("at", range(1, len(RUN)))
def test_a_hole_is_bridged(at: int) -> None:
    for missing in range(4):
        process = world()
        found = read([*RUN[:at], Note(HOLE, "line 7"), *RUN[at + missing :]], process)
        assert process.holes == 1 and all("has a hole" in why for _, why in found.gaps.inferred)


def test_a_request_may_have_begun_in_a_hole() -> None:
    other = Epoch(7, 2)
    events = [*RUN, Note(HOLE, ""), moved(R, T, "resume", RR, epoch=other), granted(1, epoch=other)]
    assert inferred(read(events))["Granted"] == 1


def test_behind_a_hole_what_is_told_counts_again() -> None:
    events = [*RUN, Note(HOLE, ""), moved(R, T, "resume", RR), granted(1), granted(2, 8)]
    number, why = refusal(events)
    assert (number, why.rule) == (len(events) - 1, "R2")


# --- traces without messages ----------------------------------------------------------------------------


def test_a_trace_without_messages_is_accepted_and_each_message_that_it_needs_is_counted() -> None:
    found = read(silenced(RUN), silent())
    assert inferred(found) == {
        "Received REGISTER": 1, "Sent REGISTER": 1, "Received REGISTER_ACK": 1, "Received GRANT": 3,
        "Sent STATUS": 3, "Received STATUS": 3,
    }  # fmt: skip
    assert all(why == "the trace of the world tells no messages" for _, why in found.gaps.inferred)


def test_each_side_alone_without_messages() -> None:
    for side in (R, S):
        events = [event for event in silenced(RUN) if side_of(event) == side]
        assert read(events, silent()).gaps.total > 0


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (progressed(16), progressed(17), "R3"),
        (progressed(8), progressed(7), "R1"),
        (executed(1, 8, 8), executed(1, 8, 9), "R3"),
        (executed(1, 8, 8), executed(1, 9, 8), "R3"),
        (moved(S, T, "committed", OK), moved(S, T, "committed", B), "table"),
    ],
)
def test_a_trace_without_messages_is_held_to_the_rest(old: Any, new: Any, rule: str) -> None:
    events, where = replaced(silenced(RUN), old, new)
    number, why = refusal(events, silent())
    assert (number, why.rule) == (where, rule), why


# --- peers ----------------------------------------------------------------------------------------------


def test_a_watermark_needs_a_sender_that_has_executed_its_grant() -> None:
    at = RUN.index(executed(1, 8, 8))
    events = [*RUN[:at], wrote(1, 8, 8), Received(R, status(1, 16)), progressed(16)]
    assert refusal(events)[1].text == "its sender has not executed seq 1"
    receiver, sender = Process(R, 0, block_tokens=BLOCK_TOKENS), Process(S, 0, served=(0,))
    acceptor = Acceptor([receiver, sender])
    sender.over = "cut"
    for event in events:
        acceptor.take(event, receiver if side_of(event) == R else sender)
    assert acceptor.gaps.total == 0  # the merge has counted that already


def test_who_may_lack_an_event_and_why() -> None:
    receiver, sender = Process(R, 1), Process(S, 0, served=(0, 2))
    gaps = Gaps([receiver, sender])
    assert gaps.peer(R, 1) == "" and gaps.own(receiver) == "" and gaps.silence(receiver) == ""
    assert gaps.peer(R, 0) == "there is no trace of receiver 0"
    assert gaps.peer(S, 1) == "there is no trace of the sender of receiver rank 1"
    assert gaps.peer(S, 2) == ""
    sender.messages = False
    assert gaps.peer(S, 2) == "" and "tells no messages" in gaps.peer(S, 2, message=True)
    first, third = Process(S, 0, boot_id=5), Process(S, 0, boot_id=9)
    lives = Gaps([first, third])
    assert lives.peer(S, 0) == "" and [boot for boot in range(1, 12) if lives.peer(S, 0, boot_id=boot)] == [1, 2, 3, 4]
    first.over, first.boot_last = "whole", 6  # it went on under 6, and ended
    assert [boot for boot in range(1, 12) if lives.peer(S, 0, boot_id=boot)] == [1, 2, 3, 4, 7, 8]
    assert lives.peer(S, 0, boot_id=4) == (
        "there is no trace of the sender of receiver rank 0 under boot id 4, but of another process"
    )
    assert Gaps([world()]).peer(S, 0, boot_id=4) == ""
    sender.over = "cut"
    assert "has no ending" in gaps.peer(S, 2)
    sender.dropped = 1200
    assert gaps.peer(S, 0) == "the trace of sender 0 starts late, 1,200 events are not in it"
    sender.holes = 1
    assert gaps.peer(S, 0) == "the trace of sender 0 has a hole" and sender.starts_late
    assert Process(S, 4).is_of(S, 9) and world().is_of(S, 9)


# --- lanes and words ------------------------------------------------------------------------------------


def test_the_rows_of_the_tables_are_asked_and_not_repeated() -> None:
    assert target_of(R, T, "resume", ReceiverFacts(resume_due=True)) == RR
    assert target_of(R, T, "resume", ReceiverFacts()) == "" and target_of(R, OK, "fail", ReceiverFacts()) == ""
    assert [cause for _, cause, _ in rows_to(R, RR)] == ["registered", "landed", "resume"]
    assert rows_to(S, B) == ()


@pytest.mark.parametrize("number", range(len(RUN)))
def test_what_comes_next_is_among_what_could_be_done(number: int) -> None:
    """At each event of a run its own lane offers something, and a row that is taken is one that was offered."""
    acceptor = read(RUN[:number])
    event = RUN[number]
    lanes: Any = acceptor.receivers if side_of(event) == R else acceptor.senders
    lane = lanes.get((0, 1, Epoch(7, 1)))
    could = could_have(lane)
    assert could and (lane is None or lane_text(lane))
    if type(event).__name__ == "StateChanged":
        assert any(event.target in text and event.cause in text for text in could) or event.cause == "registered"


def test_words_for_lanes_of_which_little_is_known() -> None:
    receiver, sender = ReceiverLane(whole=False), SenderLane(whole=False)
    for lane in (receiver, sender):
        assert could_have(lane) == ("anything: its beginning is not in the trace",)
        assert "not told" in lane_text(lane)
        lane.state = BAD
        assert any("ABORT" in text for text in could_have(lane))
    receiver.seq = 3
    assert "of unknown size" in lane_text(receiver)
    assert receiver.facts("resume", RR).resume_due and receiver.facts("landed", T).partial
    assert sender.facts("committed", OK).last_chunk and not sender.facts("committed", RR).last_chunk
    with pytest.raises(NotImplementedError):
        super(ReceiverLane, receiver).facts("fail", BAD)
    with pytest.raises(NotImplementedError):
        super(ReceiverLane, receiver).known()


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            Sent(R, grant(1), True),
            "receiver 0 sends again: GRANT room=1 seq=1 start=8 capacity=8 blocks=[0 1] epoch=7.1",
        ),
        (Received(S, grant(1)), "sender 0 takes in: GRANT room=1 seq=1 start=8 capacity=8 blocks=[0 1] epoch=7.1"),
        (moved(S, T, "fail", BAD), "sender (rank 0), room 1 epoch=7.1: Transferring -> Failed (fail)"),
        (granted(1), "Granted receiver_rank=0 room=1 epoch=7.1 seq=1 start=8 capacity=8 blocks=[0 1]"),
        (
            finished(S, BAD, "X", epoch=None),
            "Finished side=sender receiver_rank=0 room=1 state=Failed reason=X total_tokens=20",
        ),
    ],
)
def test_events_in_words(event: Any, words: str) -> None:
    assert event_words(event) == words.replace("  ", " ")


def test_each_rule_that_is_named_has_words() -> None:
    assert set(RULES) >= {f"R{number}" for number in (1, 2, 3, 4, 5, 7, 8, 10, 11)} | {"table", "messages", "causality"}
