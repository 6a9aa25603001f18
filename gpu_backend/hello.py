"""What the two ends of the control plane tell each other first, and what they report to their worker.

The words only; :mod:`gpu_backend.control` moves them, and offers all that a worker needs from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct

from fsm.errors import LocalError, RemoteError
from fsm.messages import TEXT_MAX, Message, Name, Rank
from gpu_backend.process import ProcessIdentity

CONTROL_VERSION: Final = 1
"""The version of the hello; two sides with different ones refuse each other."""

GREETING_MAX: Final = 65536
"""The longest greeting of a transport in bytes."""

BootId: TypeAlias = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Hello(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Who a process is, said before anything else."""

    role: Literal["sender", "receiver"]
    rank: Rank
    boot_id: BootId
    """New at every start, and larger than at the start before."""
    process: ProcessIdentity
    transport: Name
    """The name of the transport; both sides must use the same."""
    data: Annotated[bytes, Meta(max_length=GREETING_MAX)] = b""
    """The transport's greeting, opaque here."""


class Received(NamedTuple):
    """A message, from the process ``boot_id`` that speaks for this rank."""

    rank: int
    boot_id: int
    message: Message


class Side(NamedTuple):
    """Side channel data for the transport, in the order in which that process sent it."""

    rank: int
    boot_id: int
    data: bytes


class Greeted(NamedTuple):
    """A process said hello for the first time: from now on it is the one that speaks for its rank."""

    hello: Hello


class Rejected(NamedTuple):
    """Something was refused: why, about which room, and whose it was (``None``: unknown)."""

    text: str
    room: int | None = None
    rank: int | None = None


Incoming: TypeAlias = Received | Side | Greeted | Rejected


@dataclass
class ControlCounters:
    """How often each thing happened, since the start."""

    sent: int = 0
    received: int = 0
    unsent_full: int = 0
    """Not sent: the peer's queue was full (for a receiver also: there was no connection)."""
    unsent_unknown: int = 0
    """Not sent: nobody has said hello for that rank."""
    unsent_unreachable: int = 0
    """Not sent: the connection of that rank was gone."""
    greeted: int = 0
    hellos_refused: int = 0
    malformed: int = 0
    """Frames and messages that made no sense."""
    unknown: int = 0
    """Dropped: from a connection that has not said hello."""
    stale: int = 0
    """Dropped: from, or to, an earlier process of that rank."""


class _Envelope(Struct, array_like=True, gc=False):
    version: Annotated[int, Meta(ge=CONTROL_VERSION, le=CONTROL_VERSION)]
    hello: Hello


_HELLO_ENCODER: Final = msgspec.msgpack.Encoder()
_HELLO_DECODER: Final = msgspec.msgpack.Decoder(_Envelope)


def encode_hello(hello: Hello) -> bytes:
    """The payload of an ``H``. Raises :class:`LocalError` if a field is out of bounds."""
    try:
        data = _HELLO_ENCODER.encode(_Envelope(CONTROL_VERSION, hello))
        _HELLO_DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as error:
        raise LocalError(f"this hello cannot be sent: {error}") from error
    return data


def decode_hello(data: bytes) -> Hello:
    """What the peer says that it is; :class:`RemoteError` for whatever is no hello."""
    try:
        return _HELLO_DECODER.decode(data).hello
    except Exception as error:  # As in fsm.messages: it was given nothing but the peer's bytes.
        raise RemoteError(f"malformed hello: {error}"[:TEXT_MAX]) from error
