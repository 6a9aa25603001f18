"""The control messages and their codec.

Nine kinds, typed, with every number bounded; what is out of bounds is refused where the bytes come in, so
nothing behind the codec needs to ask whether a count is negative. REGISTER, REGISTER_ACK and HEARTBEAT
belong to a connection in content, but the first two are repeated for every room: a sender cannot make an
OFFER for an epoch that it was never told. So all but HEARTBEAT name a room.

On the wire a message is MessagePack: an array of the version and a map with named fields. Two things are
fixed for every version to come: the version comes first, and the map calls its kind ``kind`` and its room
``room``. Hence the room can be read out of a message of an unknown kind or version, and the refusal of that
message reaches the one room that it harms. A field that is not known is refused as well: what a peer means
by it can only be guessed, and a new field is a new version.

``decode`` takes bytes from a peer, and answers with a message or a :class:`~fsm.errors.RemoteError`,
whatever the bytes. ``encode`` takes a message from this process, and answers a wrong one with a
:class:`~fsm.errors.LocalError`: every message that it lets out is one that the peer will read.
"""

from __future__ import annotations

import zlib
from enum import Enum
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from fsm.errors import LocalError, RemoteError

WIRE_VERSION: Final = 1
"""The version of the wire format that this code writes, and the only one that it reads."""

SIZE_MAX: Final = 1 << 20
"""The longest message in bytes that ``decode`` looks at by default; every valid message is shorter."""

BLOCKS_MAX: Final = 65536
"""The most blocks that one GRANT can name."""

DESCRIPTORS_MAX: Final = 65536
"""The longest memory descriptors in bytes that one REGISTER can carry."""

TEXT_MAX: Final = 256
"""The longest reason or detail, in characters."""

_INT32_MAX: Final = 2**31 - 1
_INT64_MAX: Final = 2**63 - 1

Room: TypeAlias = Annotated[int, Meta(ge=0, le=_INT64_MAX)]
BootId: TypeAlias = Annotated[int, Meta(ge=0, le=_INT64_MAX)]
Counter: TypeAlias = Annotated[int, Meta(ge=0, le=_INT64_MAX)]
Rank: TypeAlias = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
Tokens: TypeAlias = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
Size: TypeAlias = Annotated[int, Meta(ge=1, le=_INT32_MAX)]
Seq: TypeAlias = Annotated[int, Meta(ge=0, le=_INT64_MAX)]
SeqOrNone: TypeAlias = Annotated[int, Meta(ge=-1, le=_INT64_MAX)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e9)]
Checksum: TypeAlias = Annotated[int, Meta(ge=0)]
Name: TypeAlias = Annotated[str, Meta(max_length=64)]
Text: TypeAlias = Annotated[str, Meta(max_length=TEXT_MAX)]


class Epoch(NamedTuple):
    """One attempt at one room: chosen by the receiver and never used twice."""

    boot_id: BootId
    """The receiver's, new at every start of its process."""
    counter: Counter


class BlockRef(NamedTuple):
    """A landing block as it was at one moment: its number, and the generation that it then had."""

    block: Annotated[int, Meta(ge=0, le=_INT32_MAX)]
    generation: Counter


class NackCode(str, Enum):
    """Why something was refused (``docs/protocol.md`` says who emits each, and whether to try again)."""

    UNKNOWN_ROOM = "UNKNOWN_ROOM"
    STALE_EPOCH = "STALE_EPOCH"
    INCOMPATIBLE = "INCOMPATIBLE"
    NOT_READY = "NOT_READY"
    NO_CAPACITY = "NO_CAPACITY"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"

    __hash__ = str.__hash__
    __str__ = str.__str__


class Layout(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """How the payload lies in a block; two sides may exchange bytes only if theirs are equal."""

    block_tokens: Size
    """Tokens in one block."""
    dim: Size
    """Elements of one token's embedding."""
    dtype: Name
    """Of the embedding, such as ``bfloat16``."""
    items: Annotated[tuple[Name, ...], Meta(max_length=64)]
    """What is stored for each token, in the order in which it is stored."""
    deepstack_levels: Tokens
    version: Counter
    """Of the layout, not of the wire format."""

    def fingerprint(self) -> int:
        """A number of 32 bits that is the same in every process and on every machine for equal layouts."""
        return zlib.crc32(msgspec.msgpack.encode(self))


class RoomMessage(
    Struct, frozen=True, gc=False, cache_hash=True, forbid_unknown_fields=True, tag_field="kind"
):
    """What every message about a room says first."""

    room: Room
    """The ``bootstrap_room``."""
    epoch: Epoch
    sender_rank: Rank
    receiver_rank: Rank


class Register(RoomMessage, frozen=True, tag="REGISTER"):
    """Receiver to sender: here I am, this is my memory, and this room will be asked for in this epoch."""

    layout: Layout
    descriptors: Annotated[bytes, Meta(max_length=DESCRIPTORS_MAX)] = b""
    """The transport's own words about the receiver's memory; opaque here."""
    queue_deadline_s: Seconds = 0.0
    """How long the receiver may rightly queue for blocks."""

    @property
    def boot_id(self) -> int:
        """The receiver's, which is that of the epoch."""
        return self.epoch.boot_id


class RegisterAck(RoomMessage, frozen=True, tag="REGISTER_ACK"):
    """Sender to receiver: the answer to REGISTER."""

    boot_id: BootId
    """The sender's."""
    compatible: bool
    """Whether the two layouts agree."""
    queue_deadline_s: Seconds
    """How long the sender may rightly queue for staging."""


class Offer(RoomMessage, frozen=True, tag="OFFER"):
    """Sender to receiver: the whole payload is staged, and this is how long it is."""

    total_tokens: Tokens
    has_mrope: bool
    has_deepstack: bool


class Grant(RoomMessage, frozen=True, tag="GRANT"):
    """Receiver to sender: write ``capacity`` tokens from token ``start`` on into these blocks."""

    seq: Seq
    """0 is the historical INIT, 1 and above the historical RESUME."""
    start: Tokens
    capacity: Tokens
    """In tokens, counted from the beginning of the first block."""
    blocks: Annotated[tuple[BlockRef, ...], Meta(max_length=BLOCKS_MAX)]
    """In the order in which they are filled."""
    sender_boot_id: BootId
    """The sender process that this is for, as its REGISTER_ACK named it; another process must not execute it."""


class Status(RoomMessage, frozen=True, tag="STATUS"):
    """Sender to receiver: the grant ``seq`` is closed, and no write of it is outstanding or will start."""

    seq: Seq
    committed_tokens: Tokens
    """The watermark: all tokens before this one are committed."""
    total_tokens: Tokens
    has_mrope: bool
    has_deepstack: bool
    checksum: Checksum | None = None
    """Of the chunk just committed."""


class Nack(RoomMessage, frozen=True, tag="NACK"):
    """Both ways: the message of kind ``about`` is refused. Never answered."""

    code: NackCode
    about: Name
    """The kind of the message refused; free text, since a peer may have invented it."""
    seq: SeqOrNone = -1
    """That of the GRANT or STATUS refused, else -1."""
    boot_id: BootId = 0
    """That of whoever refuses."""
    detail: Text = ""


class Abort(RoomMessage, frozen=True, tag="ABORT"):
    """Both ways: this epoch is over. Always answered with ABORT_ACK."""

    reason: Text


class AbortAck(RoomMessage, frozen=True, tag="ABORT_ACK"):
    """Both ways: no write of this epoch is outstanding, and none will start. Never answered."""

    boot_id: BootId
    """That of whoever acknowledges."""
    executed_seq: SeqOrNone
    """The last grant whose write was ever started; -1 if none was."""


class Heartbeat(
    Struct,
    frozen=True,
    gc=False,
    cache_hash=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="HEARTBEAT",
):
    """Both ways: this process is still the one that it was. The only message without a room."""

    boot_id: BootId
    sender_rank: Rank
    receiver_rank: Rank


Message: TypeAlias = Register | RegisterAck | Offer | Grant | Status | Nack | Abort | AbortAck | Heartbeat

KINDS: Final[dict[str, type[Message]]] = {
    "REGISTER": Register,
    "REGISTER_ACK": RegisterAck,
    "OFFER": Offer,
    "GRANT": Grant,
    "STATUS": Status,
    "NACK": Nack,
    "ABORT": Abort,
    "ABORT_ACK": AbortAck,
    "HEARTBEAT": Heartbeat,
}
"""Every kind that may stand on the wire, and its type."""

_KIND_OF: Final[dict[type[Any], str]] = {kind_type: kind for kind, kind_type in KINDS.items()}


class _Envelope(Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    version: Annotated[int, Meta(ge=WIRE_VERSION, le=WIRE_VERSION)]
    message: Message


class _AnyEnvelope(Struct, array_like=True, gc=False):
    """As much as a message of any version must keep to: its first item is the version."""

    version: int
    message: Raw = Raw()


class _AnyMessage(Struct, gc=False):
    """As much as a message of any kind must keep to; the values are looked at one by one."""

    kind: Raw = Raw()
    room: Raw = Raw()


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Envelope)
_ANY_ENVELOPE: Final = msgspec.msgpack.Decoder(_AnyEnvelope)
_ANY_MESSAGE: Final = msgspec.msgpack.Decoder(_AnyMessage)
_ANY_KIND: Final = msgspec.msgpack.Decoder(str)
_ANY_ROOM: Final[msgspec.msgpack.Decoder[int]] = msgspec.msgpack.Decoder(Room)


def kind_of(message: Message) -> str:
    """The name that the message's kind has on the wire, such as ``"GRANT"``."""
    return _KIND_OF[type(message)]


def encode(message: Message) -> bytes:
    """The bytes of a message, which ``decode`` turns into an equal one.

    Raises :class:`LocalError` if a field is out of bounds or of the wrong type: building a message checks
    nothing, so that it stays cheap where no wire is involved.
    """
    if type(message) not in _KIND_OF:
        raise LocalError(
            f"cannot encode a {type(message).__name__}: it is no message; the kinds are {', '.join(KINDS)}"
        )
    try:
        data = _ENCODER.encode(_Envelope(WIRE_VERSION, message))
        _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as error:
        raise LocalError(f"cannot encode this {kind_of(message)}: {error}") from error
    return data


def decode(data: bytes, *, size_max: int = SIZE_MAX) -> Message:
    """The message that these bytes are; they may come from anyone.

    Raises :class:`RemoteError` for whatever is no message of at most ``size_max`` bytes: with the code
    ``INCOMPATIBLE`` if the kind or the version is unknown, else ``INTERNAL``, and with the room where the
    bytes still name one.
    """
    if len(data) > size_max:
        raise RemoteError(f"a message of {len(data)} bytes is longer than the limit of {size_max} bytes")
    try:
        return _DECODER.decode(data).message
    except Exception as error:
        # Whatever the decoder raises, it was given nothing but the peer's bytes: ValidationError,
        # DecodeError, UnicodeDecodeError and RecursionError (from nesting) have been seen.
        raise _refusal(data, error) from error


def _refusal(data: bytes, error: Exception) -> RemoteError:
    """Why these bytes are no message: the unknown version first, then the unknown kind, then the rest."""
    envelope = _attempt(_ANY_ENVELOPE, data)
    if envelope is None:
        return RemoteError(f"malformed message: {error}")
    body = _attempt(_ANY_MESSAGE, envelope.message) or _AnyMessage()
    kind = _attempt(_ANY_KIND, body.kind)
    room = _attempt(_ANY_ROOM, body.room)
    if envelope.version != WIRE_VERSION:
        text = f"unknown wire version {envelope.version}; this side speaks {WIRE_VERSION}"
        return RemoteError(text, room=room, code=NackCode.INCOMPATIBLE.value)
    if kind is None:
        return RemoteError(f"malformed message: {error}", room=room)
    if kind not in KINDS:
        text = f"unknown kind of message {kind[:TEXT_MAX]!r}; this side knows {', '.join(KINDS)}"
        return RemoteError(text, room=room, code=NackCode.INCOMPATIBLE.value)
    return RemoteError(f"malformed {kind}: {error}", room=room)


class _AnyRoomMessage(Struct, gc=False):
    """As much of a refused message as its refusal must name."""

    kind: Name
    room: Room
    epoch: Epoch
    sender_rank: Rank
    receiver_rank: Rank


_ANY_ROOM_MESSAGE: Final = msgspec.msgpack.Decoder(_AnyRoomMessage)


def nack_for(data: bytes, error: RemoteError, *, boot_id: int) -> Nack | None:
    """The NACK that answers bytes which :func:`decode` refused with ``error``, from the process ``boot_id``.

    ``None`` if the bytes do not say whom it would concern (room, epoch and both ranks are needed), or if they were
    themselves an answer: a NACK and an ABORT_ACK are never answered, of whatever version they are.
    """
    envelope = _attempt(_ANY_ENVELOPE, data)
    about = _attempt(_ANY_ROOM_MESSAGE, envelope.message) if envelope is not None else None
    if about is None or about.kind in ("NACK", "ABORT_ACK"):
        return None
    return Nack(
        about.room, about.epoch, about.sender_rank, about.receiver_rank, NackCode(error.code), about.kind,
        boot_id=boot_id, detail=str(error)[:TEXT_MAX],
    )  # fmt: skip


_T = TypeVar("_T")


def _attempt(decoder: msgspec.msgpack.Decoder[_T], data: bytes | Raw) -> _T | None:
    """What the decoder reads in the data, or ``None``; see ``decode`` for the breadth of the ``except``."""
    try:
        return decoder.decode(data)
    except Exception:
        return None


def describe(message: Message) -> str:
    """A short text for people: ``GRANT room=1 seq=2 start=8 capacity=8 blocks=[3 4]``.

    Epoch, ranks and the process that is meant are left out: they are the same all through a conversation.
    """
    parts = [kind_of(message)]
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if value is None or (name in _NOT_DESCRIBED and isinstance(message, RoomMessage)):
            continue
        if isinstance(value, Layout):
            value = f"{value.fingerprint():08x}"
        elif isinstance(value, bytes):
            value = f"{len(value)}B"
        elif isinstance(value, tuple):
            value = _blocks_text([ref.block for ref in value])
        elif isinstance(value, str) and not isinstance(value, NackCode):
            value = repr(value)
        parts.append(f"{name}={value}")
    return " ".join(parts)


_NOT_DESCRIBED: Final = ("epoch", "sender_rank", "receiver_rank", "sender_boot_id")

_RUNS_MAX: Final = 16
"""The most runs of blocks that ``describe`` spells out."""


def _blocks_text(blocks: list[int]) -> str:
    """Block numbers in their order, three and more in a row as ``[0-63]``, a very long list cut short."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs[:_RUNS_MAX]]
    if len(runs) > _RUNS_MAX:
        texts.append(f"... {len(blocks)} blocks")
    return f"[{' '.join(texts)}]"
