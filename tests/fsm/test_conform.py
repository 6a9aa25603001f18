"""The acceptor accepts a run of the protocol, and refuses each spoilt one at the very event that is wrong."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from fsm.conform.acceptor import Acceptor
from fsm.conform.gaps import Process
from fsm.conform.refusal import Refused
from fsm.conform.words import could_have
from fsm.events import Decided, LedgerRefused, Note, Overtaken, Received, Restarted, Sent
from fsm.messages import Epoch, Heartbeat, NackCode
from tests.fsm.kit_conform import (
    BAD,
    BOOT,
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
    asked,
    beginning,
    delivered,
    executed,
    finished,
    grant,
    granted,
    inserted,
    moved,
    nack,
    offer,
    place,
    progressed,
    read,
    refusal,
    register,
    replaced,
    served,
    silenced,
    silent,
    status,
    taken,
    whole_run,
    without,
    world,
    wrote,
)

E2 = Epoch(7, 2)
RUN = whole_run()


def test_a_run_of_the_protocol_is_accepted_and_nothing_is_inferred() -> None:
    acceptor = read(RUN)
    assert acceptor.gaps.total == 0 and acceptor.ended == {OK: 1} and not acceptor.violations


@pytest.mark.parametrize("number", [n for n, event in enumerate(RUN) if isinstance(event, Received)])
def test_a_message_that_comes_twice_changes_nothing(number: int) -> None:
    assert read([*RUN[: number + 1], RUN[number], *RUN[number + 1 :]]).gaps.total == 0
    assert read([*RUN, RUN[number]]).gaps.total == 0  # nor does one that comes when all is over


@pytest.mark.parametrize(
    "message",
    [
        Sent(R, register(), resend=True), Sent(S, offer(), resend=True), Sent(R, grant(0), resend=True),
        Sent(S, status(0, 8), resend=True),
    ],
    ids=lambda event: type(event.message).__name__,
)  # fmt: skip
def test_a_message_may_be_sent_again_until_its_answer_comes(message: Sent) -> None:
    first = Sent(message.side, message.message)
    events, _ = inserted(RUN, first, message)
    assert read(events).gaps.total == 0


def test_what_a_network_spoils_is_told_by_a_world() -> None:
    process = world()
    read([Note("fault", "poison")], process)
    assert process.spoilt


def test_heartbeats_and_what_only_checkers_read_are_taken_by() -> None:
    beat = Heartbeat(BOOT, 0, 0)
    events = [Sent(R, beat), Received(S, beat), Note("fault", "delay"), *RUN, Decided(1, 0, ())]
    assert read(events).gaps.total == 0


def test_what_lives_is_told_and_what_was_only_asked_for_is_not() -> None:
    acceptor = read([*beginning(), *asked(0), Received(S, register(room=2, epoch=E2))])
    assert [(side, key[1], lane.state) for side, key, lane in acceptor.living()] == [(R, 1, W), (S, 1, W)]
    assert read(RUN).living() == []


# --- spoilt runs ----------------------------------------------------------------------------------------


def spoilt() -> list[Any]:
    """(what, run, where it is refused, rule, property)"""
    cases: list[Any] = []

    def case(what: str, events: tuple[list[Any], int], rule: str, property: str) -> None:
        cases.append(pytest.param(*events, rule, property, id=what))

    resume = Sent(R, grant(1))
    case("a resume more", inserted(RUN, resume, granted(2, 8), Sent(R, grant(2, 8))), "R2", "I6")
    case("a resume more, with its row", inserted(RUN, resume, moved(R, T, "resume", RR)), "R2", "I6")
    case("another start", replaced(RUN, granted(1), granted(1, 9)), "R10", "I2")
    case("another seq", replaced(RUN, granted(1), granted(2, 8)), "R3", "I6")
    case("more than is missing", replaced(RUN, granted(2, capacity=4), granted(2, capacity=8)), "R3", "I1")
    tight = msgspec.structs.replace(granted(0), blocks=granted(0).blocks[:1])
    case("more than the blocks hold", replaced(RUN, granted(0), tight), "R3", "I1")
    case("grant 0 without its row", (without(RUN, moved(R, W, "grant", W)), 8), "table", "I6")
    case("grant 0 twice", inserted(RUN, Sent(R, grant(0)), moved(R, W, "grant", W)), "R3", "I6")
    case("executed twice", inserted(RUN, executed(1, 8, 8), executed(1, 8, 8)), "R3", "I6")
    case("executed elsewhere", replaced(RUN, executed(1, 8, 8), executed(1, 9, 8)), "R3", "I2")
    case("executed too much", replaced(RUN, executed(2, 16, 4), executed(2, 16, 8)), "R3", "I1")
    at = place(RUN, lambda event: event == executed(1, 8, 8))
    case("another seq is executed", ([*RUN[:at], executed(2, 8, 8)], at), "R3", "I6")
    case(
        "executed elsewhere than granted",
        (replaced(RUN, Received(S, grant(1)), Received(S, grant(1, 9)))[0], RUN.index(executed(1, 8, 8))),
        "R10",
        "I2",
    )
    case("a resume without its row", (without(RUN, moved(R, T, "resume", RR)), 21), "R2", "I6")
    case("a row that is none", replaced(RUN, moved(R, T, "resume", RR), moved(R, T, "resume", T)), "table", "")
    case("an event that the state has not", inserted(RUN, resume, moved(R, RR, "registered", W)), "table", "")
    case("a row of another state", replaced(RUN, moved(S, RR, "grant", T), moved(S, W, "grant", T)), "table", "")
    case("beyond the STATUS", replaced(RUN, progressed(16), progressed(17)), "R1", "I5")
    case("progress twice", inserted(RUN, progressed(16), progressed(16)), "R1", "I5")
    case("delivered twice", inserted(RUN, delivered(1, 8, 8), delivered(1, 8, 8)), "R5", "I2")
    case("delivered before it landed", inserted(RUN, Sent(R, grant(1)), delivered(1, 8, 8)), "R5", "I2")
    case("another piece delivered", replaced(RUN, delivered(1, 8, 8), delivered(1, 8, 7)), "R5", "I2")
    case("delivered before its row", inserted(RUN, progressed(16), delivered(1, 8, 8)), "R5", "I7")
    case("complete too early", inserted(RUN, resume, moved(R, RR, "complete", OK)), "R5", "I2")
    case("landed before it has", inserted(RUN, resume, moved(R, RR, "landed", T)), "R1", "I5")
    case("landed though it is the last", inserted(RUN, progressed(20), moved(R, RR, "landed", T)), "R1", "I5")
    case("after its end", inserted(RUN, finished(R, OK), moved(R, T, "resume", RR)), "R8", "I4")
    case("out of an end", inserted(RUN, finished(R, OK), moved(R, OK, "fail", BAD)), "R8", "I4")
    case("ended twice", inserted(RUN, finished(R, OK), finished(R, OK)), "R8", "I4")
    case("ended otherwise", replaced(RUN, finished(R, OK), finished(R, BAD, "ABORTED")), "R8", "I4")
    case("a success with a reason", replaced(RUN, finished(R, OK), finished(R, OK, "ABORTED")), "R8", "")
    case("bytes of no grant", replaced(RUN, wrote(1, 8, 8), wrote(3, 8, 8)), "R3", "I1")
    case("bytes elsewhere", replaced(RUN, wrote(1, 8, 8), wrote(1, 9, 7)), "R3", "I1")
    case("bytes of a grant that is closed", inserted(RUN, progressed(16), wrote(1, 8, 8)), "R3", "I1")
    case("bytes twice", inserted(RUN, wrote(1, 8, 8), wrote(1, 8, 8)), "R3", "I6")
    case("the row of grant 0 twice", inserted(RUN, moved(R, W, "grant", W), moved(R, W, "grant", W)), "R3", "I6")
    case("bytes in a block of another", inserted(RUN, progressed(16), wrote(1, 8, 8, "it is Free")), "I1", "I1")
    return cases  # fmt: skip


@pytest.mark.parametrize(("events", "where", "rule", "property"), spoilt())
def test_a_spoilt_run_is_refused_at_the_event_that_is_wrong(
    events: list[Any], where: int, rule: str, property: str
) -> None:
    number, why = refusal(events)
    assert (number, why.rule, why.property) == (where, rule, property), why
    assert why.text and why.could


def spoilt_messages() -> list[Any]:
    """(what, run, where it is refused, rule)"""
    cases: list[Any] = []

    def case(what: str, events: tuple[list[Any], int], rule: str) -> None:
        cases.append(pytest.param(*events, rule, id=what))

    case("of the other side", ([Sent(S, register())], 0), "messages")
    case("an epoch twice", inserted(RUN, Sent(R, register()), Sent(R, register())), "R8")
    case("REGISTER again, though acknowledged", inserted(RUN, Sent(R, grant(0)), Sent(R, register(), True)), "R3")
    case("another grant", replaced(RUN, Sent(R, grant(1)), Sent(R, grant(1, 9))), "R3")
    case("a grant for another process", replaced(RUN, Sent(R, grant(1)), Sent(R, grant(1, boot_id=4))), "R8")
    case("a grant twice for the first time", inserted(RUN, Sent(R, grant(1)), Sent(R, grant(1))), "R3")
    case("a grant again, though closed", inserted(RUN, progressed(8), Sent(R, grant(0), True)), "R3")
    case("a grant that was not decided", inserted(RUN, Received(R, offer()), Sent(R, grant(0))), "R3")
    case("acknowledged without its row", (without(RUN, moved(S, B, "registered", W)), 2), "table")
    case("an OFFER while a grant is executed", inserted(RUN, executed(0, 0, 8), Sent(S, offer(), True)), "R3")
    case("an OFFER twice for the first time", inserted(RUN, Sent(S, offer()), Sent(S, offer())), "R3")
    case("another length", replaced(RUN, Sent(S, status(0, 8)), Sent(S, status(0, 8, 24))), "R4")
    case("a STATUS that is wrong", replaced(RUN, Sent(S, status(1, 16)), Sent(S, status(1, 15))), "R3")
    case("a STATUS twice for the first time", inserted(RUN, Sent(S, status(1, 16)), Sent(S, status(1, 16))), "R3")
    case("a STATUS of nothing", inserted(RUN, Sent(S, offer()), Sent(S, status(0, 8))), "R3")
    case("another STATUS again", inserted(RUN, Sent(S, status(1, 16)), Sent(S, status(0, 8), True)), "R3")
    case("a STATUS again that was not sent", inserted(RUN, Sent(S, offer()), Sent(S, status(0, 8), True)), "R3")
    case("committed without a STATUS", (without(RUN, Sent(S, status(0, 8))), 15), "R3")
    case("committed before it was executed", inserted(RUN, moved(S, W, "grant", T), moved(S, T, "committed", RR)), "R3")
    case("committed twice", inserted(RUN, executed(0, 0, 8), moved(S, T, "committed", RR)), "R3")
    case("an ABORT while all is well", inserted(RUN, Sent(R, grant(1)), Sent(R, abort())), "R8")
    case("an answer to nothing", inserted(RUN, Sent(R, grant(1)), Sent(R, abort_ack(-1))), "R11")
    case("a refusal of nothing", inserted(RUN, Sent(R, grant(1)), Sent(R, nack("OFFER", epoch=E2))), "R11")
    case("registered without REGISTER_ACK", (without(RUN, Received(R, ack())), 4), "R8")
    case(
        "registered by an old process",
        replaced([Received(R, ack(9, room=9)), *RUN], moved(R, B, "registered", W), moved(R, B, "registered", W)),
        "R8",
    )
    case("registered without REGISTER", (without(RUN, Received(S, register())), 1), "R8")
    case("a grant that did not come", (without(RUN, Received(S, grant(1))), 24), "R3")
    case("a STATUS that did not come", (without(RUN, Received(R, status(1, 16))), 30), "R1")
    return cases  # fmt: skip


@pytest.mark.parametrize(("events", "where", "rule"), spoilt_messages())
def test_a_message_that_cannot_be_sent_or_that_is_missing_is_refused(events: list[Any], where: int, rule: str) -> None:
    number, why = refusal(events)
    assert (number, why.rule) == (where, rule), why


def test_a_grant_for_a_process_that_was_replaced_is_not_executed() -> None:
    events, at = replaced(RUN, Received(S, grant(1)), Received(S, grant(1, boot_id=4)))
    number, why = refusal(events)
    assert (number, why.rule, why.property) == (at + 1, "R3", "I6")


@pytest.mark.parametrize(
    "event",
    [
        moved("client", W, "grant", W), moved(R, "Waiting", "grant", W), moved(S, "Waiting", "fail", BAD, epoch=None),
        finished("client", OK), finished(R, "Done"),
    ],
)  # fmt: skip
def test_a_side_or_a_state_that_does_not_exist_is_refused(event: Any) -> None:
    for process in (world(), world(dropped=9)):
        assert "there is no " in refusal([*beginning(), event], process)[1].text


def test_a_poisoned_status_closes_nothing() -> None:
    for wrong in (status(8, 8), status(0, 7), status(0, 8, 24)):
        assert read(inserted(RUN, Sent(R, grant(0)), Received(R, wrong))[0]).gaps.total == 0
    early = [*beginning()[:-1], *asked(0), *served(0)]  # the receiver has not heard the OFFER
    assert read([*early, *taken(0)]).gaps.total == 0


def test_a_status_of_another_length_closes_nothing() -> None:
    events, at = replaced(RUN, Received(R, status(0, 8)), Received(R, status(0, 8, 24)))
    assert refusal(events)[0] == at + 1


def test_the_length_is_learned_from_a_status_that_reaches_it() -> None:
    events = [*beginning()[:-2], moved(R, W, "grant", W), granted(0, capacity=24), Sent(R, grant(0, capacity=24))]
    events += [Received(S, grant(0, capacity=24)), moved(S, W, "grant", T), executed(0, 0, 20), wrote(0, 0, 20)]
    events += [Sent(S, status(0, 20)), moved(S, T, "committed", OK), Received(R, status(0, 20)), progressed(20)]
    events += [delivered(0, 0, 20), moved(R, W, "complete", OK), finished(R, OK)]
    assert read(events).gaps.total == 0
    assert read(silenced(events), silent()).ended == {OK: 1}
    too_much, at = replaced(events, executed(0, 0, 20), executed(0, 0, 25))
    assert refusal(too_much)[0] == at


def garbled(event: Any, dice: random.Random) -> Any:
    """The event with one field another."""
    names = event.__struct_fields__
    name = dice.choice(names)
    value = getattr(event, name)
    if isinstance(value, msgspec.Struct):
        new: Any = garbled(value, dice)
    elif isinstance(value, str):
        new = dice.choice(["", R, S, "client", W, OK, "landed", "resume", "CRASHED"])
    elif isinstance(value, Epoch):
        new = dice.choice([E2, Epoch(0, 0), Epoch(9, 1)])
    elif isinstance(value, int):
        new = dice.choice([0, 1, 7, 9, 20, -1, 10**12])
    else:
        new = value[:1] if isinstance(value, tuple) else value
    return msgspec.structs.replace(event, **{name: new})


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_told_is_accepted_or_refused_and_nothing_else(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(10):
        events = list(RUN[dice.randrange(20) :])
        for _ in range(3):
            at = dice.randrange(len(events))
            events[at] = garbled(events[at], dice)
        process = world(dropped=dice.randrange(2))
        acceptor = Acceptor([process])
        try:
            for event in events:
                acceptor.take(event, process)
        except Refused as answer:
            assert answer.refusal.text and answer.refusal.could
        assert all(could_have(lane) for _, _, lane in acceptor.living())


# --- failures -------------------------------------------------------------------------------------------


def failed(side: str, state: str, reason: str) -> list[Any]:
    """An end in Failed as a side tells it."""
    return [moved(side, state, "fail", BAD), finished(side, BAD, reason), Sent(side, abort())]


def test_a_request_that_fails_on_both_sides_is_a_run_too() -> None:
    events = [*beginning(), *asked(0), *served(0)[:3], *failed(R, W, "ABORTED"), Received(S, abort())]
    events += [moved(S, T, "fail", BAD), finished(S, BAD, "PEER_ABORTED"), wrote(0, 0, 8)]
    events += [Sent(S, abort_ack(0)), Received(R, abort_ack(0)), Sent(R, abort(), resend=True)]
    assert read(events).gaps.total == 0
    assert refusal(replaced(events, Sent(S, abort_ack(0)), Sent(S, abort_ack(-1)))[0])[1].rule == "R11"
    assert read([*events, Received(S, abort()), Sent(S, abort_ack(-1))]).gaps.total == 0  # its tombstone is gone
    assert refusal([*events, Sent(S, status(0, 8))])[1].rule == "R3"
    assert refusal([*events[:-6], Sent(S, abort_ack(0))])[1].text.endswith("has not ended")


def test_what_is_unknown_is_refused_in_words_and_an_abort_of_it_acknowledged() -> None:
    strangers = [Received(R, abort(epoch=E2)), Sent(R, abort_ack(-1, epoch=E2))]
    strangers += [Received(S, abort(epoch=E2)), Sent(S, abort_ack(-1, epoch=E2))]
    strangers += [Received(R, offer(epoch=E2)), Sent(R, nack("OFFER", epoch=E2))]
    strangers += [Received(S, grant(0, epoch=E2)), Sent(S, nack("GRANT", epoch=E2))]
    strangers += [Received(R, status(0, 8, epoch=E2)), Received(R, nack("GRANT", epoch=E2)), Received(R, ack(epoch=E2))]
    strangers += [Sent(S, nack("???")), Sent(S, nack("GRANT", NackCode.INTERNAL))]
    assert read(strangers).gaps.total == 0


def test_a_layout_that_differs_is_acknowledged_as_such() -> None:
    no = ack(compatible=False)
    events = [Sent(R, register()), Received(S, register()), Sent(S, no), moved(S, B, "fail", BAD)]
    events += [finished(S, BAD, "INCOMPATIBLE"), Received(R, no), *failed(R, B, "INCOMPATIBLE")]
    assert read(events).gaps.total == 0


def test_a_lane_that_nobody_registered_can_only_fail() -> None:
    gone = [moved(S, B, "fail", BAD, epoch=None), finished(S, BAD, "BOOTSTRAP_DEADLINE", epoch=None)]
    assert read(gone).gaps.total == 0
    assert refusal([moved(S, B, "registered", W, epoch=None)])[1].rule == "R8"


def test_a_process_that_crashed_is_told_by_a_world() -> None:
    events = [*beginning(), Restarted((0,)), finished(S, BAD, "CRASHED"), finished(R, BAD, "CRASHED")]
    assert read(events).gaps.total == 0


def test_a_sender_that_was_restarted_may_be_told_of_an_epoch_again() -> None:
    again = [Received(S, register()), moved(S, B, "registered", W), Sent(S, ack(6))]
    assert read([*beginning(), Restarted((0,)), *again]).gaps.total == 0
    number, why = refusal([*beginning(), Restarted((0,)), *served(0)])
    assert (number, why.rule) == (len(beginning()) + 2, "R8")  # the grant came, and no REGISTER


# --- properties -----------------------------------------------------------------------------------------


def test_what_breaks_a_liveness_property_refuses_nothing() -> None:
    acceptor = read([*RUN, Overtaken(0, 3, (1, 2))])
    assert [violation.property for violation in acceptor.violations] == ["L3"]


def test_a_refusal_by_the_block_ledger_names_its_property() -> None:
    number, why = refusal([*RUN, LedgerRefused(0, 1, "I3", "cannot free block 1")])
    assert (number, why.rule, why.property) == (len(RUN), "I3", "I3")


def test_ranks_that_grant_differently_are_refused() -> None:
    other = [Sent(R, register(rank=1)), Received(R, ack(rank=1)), moved(R, B, "registered", W, rank=1)]
    other += [moved(R, W, "grant", W, rank=1)]
    events = [*beginning(), *other, *asked(0)]
    assert read([*events, granted(0, rank=1)]).gaps.total == 0
    number, why = refusal([*events, granted(0, capacity=4, rank=1)])
    assert (number, why.rule, why.property) == (len(events), "R7", "I7")


def other_room() -> list[Any]:
    """Another request, up to where it may be granted."""
    begun = [Sent(R, register(room=2, epoch=E2)), Received(R, ack(room=2, epoch=E2))]
    return [*begun, moved(R, B, "registered", W, room=2, epoch=E2), moved(R, W, "grant", W, room=2, epoch=E2)]


OTHER = granted(0, room=2, epoch=E2)
"""It is given blocks 0 and 1."""


@pytest.mark.parametrize("first", [granted(0), progressed(8), moved(R, W, "landed", T)])
def test_a_block_that_is_in_use_is_not_granted_to_another(first: Any) -> None:
    events = [*RUN[: RUN.index(first) + 1], *other_room(), OTHER]
    number, why = refusal(events)
    assert (number, why.rule, why.property) == (len(events) - 1, "R5", "I3") and "block 0 is that of room 1" in why.text
    assert read(events, world(block_tokens=0)).gaps.total == 0  # what a block holds is not known then


def test_a_block_is_free_again_once_its_chunk_was_delivered_or_its_request_has_failed() -> None:
    for last in (delivered(0, 0, 8), finished(R, OK)):
        assert read([*RUN[: RUN.index(last) + 1], *other_room(), OTHER]).gaps.total == 0
    assert read([*beginning(), *asked(0), *failed(R, W, "ABORTED"), *other_room(), OTHER]).gaps.total == 0


def test_a_block_that_a_status_did_not_reach_is_free_at_once() -> None:
    events = [*beginning()[:-2], moved(R, W, "grant", W), granted(0, capacity=8), Sent(R, grant(0))]
    events += [Received(S, grant(0)), moved(S, W, "grant", T), executed(0, 0, 4), wrote(0, 0, 4)]
    events += [Sent(S, status(0, 4, 4)), Received(R, status(0, 4, 4)), progressed(4), *other_room()]
    reached = msgspec.structs.replace(OTHER, blocks=OTHER.blocks[:1], capacity=4)
    unreached = msgspec.structs.replace(OTHER, blocks=OTHER.blocks[1:], capacity=4)
    assert read([*events, unreached]).gaps.total == 0
    assert refusal([*events, reached])[1].rule == "R5"


# --- bounds ---------------------------------------------------------------------------------------------


def renamed(event: Any, counter: int) -> Any:
    """The same event of another request."""
    if isinstance(event, (Sent, Received)):
        message = msgspec.structs.replace(event.message, room=counter, epoch=Epoch(7, counter))
        return msgspec.structs.replace(event, message=message)
    return msgspec.structs.replace(event, room=counter, epoch=Epoch(7, counter))


def test_what_is_remembered_is_bounded() -> None:
    process = world()
    acceptor, most = Acceptor([process], keep_epochs=10), 0
    for counter in range(1, 200):
        strangers = [Received(S, abort(epoch=Epoch(3, counter), room=1000 + counter))]
        for event in [*(renamed(event, counter) for event in RUN), *strangers]:
            acceptor.take(event, process)
        most = max(most, acceptor.remembered)
    assert most < 150 and acceptor.ended == {OK: 199}
    old = renamed(Sent(R, abort(), resend=True), 3)  # of an epoch that is remembered no more
    for event in (old, renamed(Sent(R, abort_ack(-1)), 3), renamed(Sent(S, status(2, 20), True), 3)):
        acceptor.take(event, process)
    with pytest.raises(Exception, match="so long ago"):
        acceptor.take(renamed(moved(R, T, "resume", RR), 3), process)


def test_a_request_that_lives_long_is_not_forgotten() -> None:
    process = world()
    acceptor = Acceptor([process], keep_epochs=2)
    for event in beginning():
        acceptor.take(event, process)
    for counter in range(2, 20):
        for event in RUN:
            acceptor.take(renamed(event, counter), process)
    for event in RUN[len(beginning()) :]:
        acceptor.take(event, process)
    assert acceptor.ended == {OK: 19}, "the one that lived long, and those that came and went meanwhile"
    assert acceptor.gaps.inferred == {}


def test_strangers_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsm.conform.messages.HEARD_MAX", 2)
    strangers = [Received(S, abort(epoch=Epoch(3, counter))) for counter in (1, 2, 3)]
    number, _ = refusal(
        [*strangers, Sent(S, abort_ack(-1, epoch=Epoch(3, 2))), Sent(S, abort_ack(-1, epoch=Epoch(3, 1)))]
    )
    assert number == 4


def test_a_process_that_takes_the_place_of_another_knows_nothing_of_its_requests() -> None:
    receiver, sender = Process(R, 0, block_tokens=4), Process(S, 0, block_tokens=4, served=(0,))
    acceptor = Acceptor([receiver, sender])
    for event in [*beginning(), *asked(0)]:
        side = getattr(event, "side", R)
        acceptor.take(event, receiver if side == R else sender)
    acceptor.begin(sender)
    assert not acceptor.senders and acceptor.receivers
    acceptor.begin(receiver)
    for event in (*other_room(), OTHER):
        acceptor.take(event, receiver)  # all its blocks are new
    acceptor.begin(receiver)
    acceptor.begin(world())  # a world stays
    assert not acceptor.receivers


def test_a_sender_that_does_not_say_whom_it_serves_forgets_everything() -> None:
    sender = Process(S, 0)
    acceptor = Acceptor([sender])
    for event in beginning():
        if event.side == S:  # type: ignore[union-attr]
            acceptor.take(event, sender)
    acceptor.begin(sender)
    assert not acceptor.senders
