"""The states: what they print and hash as, and how they show to readers of the historical interface."""

from __future__ import annotations

import pytest

from fsm.states import TERMINAL, BlockState, KVPoll, State, kv_poll


def test_states_are_the_strings_that_they_print() -> None:
    assert [str(state) for state in State] == [
        "Bootstrapping",
        "WaitingForInput",
        "Transferring",
        "ResumeRequested",
        "Success",
        "Failed",
    ]
    assert [str(state) for state in BlockState] == [
        "Free",
        "Reserved",
        "Granted",
        "Landed",
        "Reading",
        "Quarantined",
    ]
    for state in (*State, *BlockState):
        assert hash(state) == hash(str(state)) and state == str(state)


def test_two_states_are_terminal() -> None:
    assert TERMINAL == (State.SUCCESS, State.FAILED)


@pytest.mark.parametrize(
    ("state", "shown", "number"),
    [
        (State.FAILED, KVPoll.Failed, 0),
        (State.BOOTSTRAPPING, KVPoll.Bootstrapping, 1),
        (State.WAITING, KVPoll.WaitingForInput, 2),
        (State.TRANSFERRING, KVPoll.Transferring, 3),
        (State.RESUMING, KVPoll.Transferring, 3),
        (State.SUCCESS, KVPoll.Success, 4),
    ],
)
def test_the_historical_view(state: State, shown: KVPoll, number: int) -> None:
    assert kv_poll(state) is shown and int(shown) == number
    assert kv_poll(str(state)) is shown  # type: ignore[arg-type]


def test_what_is_no_state_has_no_view() -> None:
    with pytest.raises(ValueError):
        kv_poll("Elsewhere")  # type: ignore[arg-type]
