"""The six states of a request, the six of a block, and the view that older readers expect.

``Enum`` hashes its members in Python code, several times slower than a string. The states are keys of
every hot lookup, so they hash and print as the strings that they are.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class State(str, Enum):
    """Where one request stands, on either side (see ``docs/protocol.md`` for what each side means by it)."""

    BOOTSTRAPPING = "Bootstrapping"
    WAITING = "WaitingForInput"
    TRANSFERRING = "Transferring"
    RESUMING = "ResumeRequested"
    SUCCESS = "Success"
    FAILED = "Failed"

    __hash__ = str.__hash__
    __str__ = str.__str__


class BlockState(str, Enum):
    """Who may touch one landing block, and how."""

    FREE = "Free"
    RESERVED = "Reserved"
    GRANTED = "Granted"
    LANDED = "Landed"
    READING = "Reading"
    QUARANTINED = "Quarantined"

    __hash__ = str.__hash__
    __str__ = str.__str__


TERMINAL = (State.SUCCESS, State.FAILED)
"""The absorbing states (a tuple, so that nothing iterates over a set)."""


class KVPoll(IntEnum):
    """The five-valued status of the historical interface, for outside readers only.

    Beware of ``Transferring``: here it means "a chunk has landed or a continuation is under way". In the
    base protocol of upstream serving engines it means "bytes are moving, leave it alone", the opposite
    of "please act".
    """

    Failed = 0
    Bootstrapping = 1
    WaitingForInput = 2
    Transferring = 3
    Success = 4


_KV_POLL = {
    State.BOOTSTRAPPING: KVPoll.Bootstrapping,
    State.WAITING: KVPoll.WaitingForInput,
    State.TRANSFERRING: KVPoll.Transferring,
    State.RESUMING: KVPoll.Transferring,
    State.SUCCESS: KVPoll.Success,
    State.FAILED: KVPoll.Failed,
}


def kv_poll(state: State) -> KVPoll:
    """The historical status of a state; ``ResumeRequested`` shows as ``Transferring``."""
    return _KV_POLL[State(state)]
