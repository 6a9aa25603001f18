"""The codec: what it lets through comes out the same, and whatever else comes in is a RemoteError."""

from __future__ import annotations

import datetime
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fsm import messages
from fsm.errors import LocalError, RemoteError
from fsm.messages import (
    BLOCKS_MAX,
    DESCRIPTORS_MAX,
    KINDS,
    SIZE_MAX,
    TEXT_MAX,
    WIRE_VERSION,
    Abort,
    AbortAck,
    BlockRef,
    Epoch,
    Grant,
    Heartbeat,
    Layout,
    Message,
    Nack,
    NackCode,
    Offer,
    Register,
    RegisterAck,
    RoomMessage,
    Status,
    decode,
    describe,
    encode,
    kind_of,
)

INT32 = 2**31 - 1
INT64 = 2**63 - 1
UINT64 = 2**64 - 1

LAYOUT = Layout(128, 2048, "bfloat16", ("input_embeddings", "fill_ids", "mrope_positions"), 3, 1)
EPOCH = Epoch(7, 1)
EXAMPLES: dict[str, Message] = {
    "REGISTER": Register(5, EPOCH, 0, 2, LAYOUT, b"\x00\x01\xff", 30.5),
    "REGISTER_ACK": RegisterAck(5, EPOCH, 0, 2, 9, True, 12.0),
    "OFFER": Offer(5, EPOCH, 0, 2, 20000, True, False),
    "GRANT": Grant(5, EPOCH, 0, 2, 2, 8192, 256, (BlockRef(3, 0), BlockRef(4, 6)), 77),
    "STATUS": Status(5, EPOCH, 0, 2, 2, 8448, 20000, True, False, 0xFEEDBEEF),
    "NACK": Nack(5, EPOCH, 0, 2, NackCode.NOT_READY, "GRANT", 2, 9, "not staged"),
    "ABORT": Abort(5, EPOCH, 0, 2, "cancelled by the user"),
    "ABORT_ACK": AbortAck(5, EPOCH, 0, 2, 9, 2),
    "HEARTBEAT": Heartbeat(9, 0, 2),
}
"""One of each kind, every field other than its default."""


def fields_of(message: Message) -> dict[str, Any]:
    """The map that stands on the wire, for a test to spoil."""
    version, fields = msgspec.msgpack.decode(encode(message))
    assert version == WIRE_VERSION
    return dict(fields)


def wire(fields: Any, version: Any = WIRE_VERSION) -> bytes:
    """What a peer might send."""
    return msgspec.msgpack.encode([version, fields])


def refused(data: bytes, **options: Any) -> RemoteError:
    """The refusal of these bytes."""
    with pytest.raises(RemoteError) as error:
        decode(data, **options)
    return error.value


# ---- what Hypothesis sends ----------------------------------------------------------------------------

int32s = st.integers(0, INT32)
int64s = st.integers(0, INT64)
names = st.text(max_size=64)
texts = st.text(max_size=TEXT_MAX)
seconds = st.floats(0.0, 1e9)
seqs_or_none = st.integers(-1, INT64)
flags = st.booleans()
layouts = st.builds(
    Layout, st.integers(1, INT32), st.integers(1, INT32), names, st.lists(names).map(tuple), int32s, int64s
)
block_lists = st.lists(st.builds(BlockRef, int32s, int64s), max_size=9).map(tuple)


def in_room(kind: type[RoomMessage], *fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Messages of a kind, its own fields in their order."""
    return st.builds(kind, int64s, st.builds(Epoch, int64s, int64s), int32s, int32s, *fields)


BY_KIND = {
    "REGISTER": in_room(Register, layouts, st.binary(max_size=99), seconds),
    "REGISTER_ACK": in_room(RegisterAck, int64s, flags, seconds),
    "OFFER": in_room(Offer, int32s, flags, flags),
    "GRANT": in_room(Grant, int64s, int32s, int32s, block_lists, int64s),
    "STATUS": in_room(Status, int64s, int32s, int32s, flags, flags, st.none() | st.integers(0, UINT64)),
    "NACK": in_room(Nack, st.sampled_from(NackCode), names, seqs_or_none, int64s, texts),
    "ABORT": in_room(Abort, texts),
    "ABORT_ACK": in_room(AbortAck, int64s, seqs_or_none),
    "HEARTBEAT": st.builds(Heartbeat, int64s, int32s, int32s),
}
any_message = st.one_of(*BY_KIND.values())

datetimes = st.datetimes(timezones=st.just(datetime.timezone.utc))
numbers = st.booleans() | st.integers(-(2**63), UINT64) | st.floats()
scalars = st.none() | numbers | st.text(max_size=9) | st.binary(max_size=9) | datetimes
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


# ---- there and back -----------------------------------------------------------------------------------


def test_every_kind_is_tested_here() -> None:
    kinds = list(EXAMPLES)
    assert list(KINDS) == kinds
    assert list(BY_KIND) == kinds
    assert [KINDS[kind] for kind in kinds] == [type(message) for message in EXAMPLES.values()]
    assert list(typing.get_args(messages.Message)) == list(KINDS.values())
    assert [kind_of(message) for message in EXAMPLES.values()] == kinds
    assert all(issubclass(KINDS[kind], RoomMessage) is (kind != "HEARTBEAT") for kind in kinds)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_message_comes_back(kind: str, data: st.DataObject) -> None:
    message = data.draw(BY_KIND[kind])
    back = decode(encode(message))
    assert type(back) is KINDS[kind]
    assert back == message
    assert hash(back) == hash(message)
    assert encode(back) == encode(message)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_come_back_as_what_they_were(kind: str) -> None:
    message = EXAMPLES[kind]
    back = decode(encode(message))
    for name in message.__struct_fields__:
        assert type(getattr(back, name)) is type(getattr(message, name)), name
    assert fields_of(message)["kind"] == kind
    if isinstance(back, Grant):
        assert [type(ref) for ref in back.blocks] == [BlockRef, BlockRef]


def test_the_bytes_on_the_wire_stay_as_they_are() -> None:
    """A change here is a new version of the wire format: two processes of different age would not agree."""
    assert encode(Heartbeat(9, 0, 2)).hex() == (
        "920184" + "a46b696e64" + "a9484541525442454154" + "a7626f6f745f6964" + "09"
        "ab73656e6465725f72616e6b" + "00" + "ad72656365697665725f72616e6b" + "02"
    )
    in_room = {"room": 5, "epoch": [7, 1], "sender_rank": 0, "receiver_rank": 2}
    in_grant = {"seq": 2, "start": 8192, "capacity": 256, "blocks": [[3, 0], [4, 6]], "sender_boot_id": 77}
    assert fields_of(EXAMPLES["GRANT"]) == {"kind": "GRANT"} | in_room | in_grant
    assert fields_of(EXAMPLES["NACK"])["code"] == "NOT_READY"
    assert fields_of(EXAMPLES["REGISTER"])["layout"] == msgspec.structs.asdict(LAYOUT) | {
        "items": ["input_embeddings", "fill_ids", "mrope_positions"]
    }


def test_what_may_be_left_out() -> None:
    assert Register(5, EPOCH, 0, 2, LAYOUT) == Register(5, EPOCH, 0, 2, LAYOUT, b"", 0.0)
    assert Status(5, EPOCH, 0, 2, 0, 8, 8, False, False).checksum is None
    nack = Nack(5, EPOCH, 0, 2, NackCode.INTERNAL, "OFFER")
    assert (nack.seq, nack.boot_id, nack.detail) == (-1, 0, "")
    fields = fields_of(Status(5, EPOCH, 0, 2, 0, 8, 8, False, False))
    assert fields["checksum"] is None, "what has its default is sent all the same"
    del fields["checksum"]
    assert decode(wire(fields)) == Status(5, EPOCH, 0, 2, 0, 8, 8, False, False)


def test_messages_are_values() -> None:
    grant = EXAMPLES["GRANT"]
    with pytest.raises(AttributeError):
        grant.seq = 3  # type: ignore[union-attr, misc]
    assert len({hash(message) for message in EXAMPLES.values()}) == len(EXAMPLES)
    assert Abort(5, EPOCH, 0, 2, "x") != Abort(5, EPOCH, 0, 1, "x")
    assert Register(5, EPOCH, 0, 2, LAYOUT).boot_id == 7


def test_a_code_is_the_string_that_it_is() -> None:
    assert [str(code) for code in NackCode] == [code.name for code in NackCode]
    assert hash(NackCode.INTERNAL) == hash("INTERNAL")
    assert " ".join(NackCode) == (
        "UNKNOWN_ROOM STALE_EPOCH INCOMPATIBLE NOT_READY NO_CAPACITY CANCELLED INTERNAL"
    )


# ---- bounds -------------------------------------------------------------------------------------------

BOUNDS = [
    *[(kind, "room", 0, INT64) for kind in KINDS if kind != "HEARTBEAT"],
    *[(kind, "sender_rank", 0, INT32) for kind in KINDS],
    *[(kind, "receiver_rank", 0, INT32) for kind in KINDS],
    *[(kind, "boot_id", 0, INT64) for kind in ("REGISTER_ACK", "NACK", "ABORT_ACK", "HEARTBEAT")],
    *[(kind, "seq", 0, INT64) for kind in ("GRANT", "STATUS")],
    ("NACK", "seq", -1, INT64),
    ("ABORT_ACK", "executed_seq", -1, INT64),
    *[("OFFER", "total_tokens", 0, INT32), ("GRANT", "start", 0, INT32), ("GRANT", "capacity", 0, INT32)],
    *[("STATUS", name, 0, INT32) for name in ("committed_tokens", "total_tokens")],
    ("STATUS", "checksum", 0, UINT64),
]
LAYOUT_BOUNDS = [("block_tokens", 1, INT32), ("dim", 1, INT32), ("deepstack_levels", 0, INT32)]
LAYOUT_BOUNDS += [("version", 0, INT64)]
LENGTHS: list[tuple[str, str, Any, int]] = [
    ("REGISTER", "descriptors", b"x", DESCRIPTORS_MAX),
    ("GRANT", "blocks", (BlockRef(INT32, INT64),), BLOCKS_MAX),
    ("NACK", "about", "\u00fc", 64),
    ("NACK", "detail", "\u00fc", TEXT_MAX),
    ("ABORT", "reason", "\u00fc", TEXT_MAX),
]


def accepts(kind: str, field: str, value: Any) -> None:
    """Both ends take the value."""
    message = msgspec.structs.replace(EXAMPLES[kind], **{field: value})
    assert decode(encode(message)) == message


def refuses(kind: str, field: str, value: Any) -> None:
    """Neither end takes the value: not as a message of this process, and not as bytes from a peer."""
    message = msgspec.structs.replace(EXAMPLES[kind], **{field: value})
    with pytest.raises(LocalError, match=f"^cannot encode this {kind}: "):
        encode(message)
    if not isinstance(value, int) or -(2**63) <= value <= UINT64:
        error = refused(wire(fields_of(EXAMPLES[kind]) | {field: value}))
        assert str(error).startswith(f"malformed {kind}: ")
        assert error.code == "INTERNAL"
        assert error.room == (None if kind == "HEARTBEAT" or field == "room" else 5)


@pytest.mark.parametrize(("kind", "field", "low", "high"), BOUNDS)
def test_the_bounds_of_each_number(kind: str, field: str, low: int, high: int) -> None:
    accepts(kind, field, low)
    accepts(kind, field, high)
    refuses(kind, field, low - 1)
    refuses(kind, field, high + 1)


@pytest.mark.parametrize("index", [0, 1])
def test_the_bounds_of_an_epoch(index: int) -> None:
    def epoch(value: int) -> Epoch:
        return Epoch(value, 1) if index == 0 else Epoch(7, value)

    for value in (0, INT64):
        accepts("ABORT", "epoch", epoch(value))
    for value in (-1, INT64 + 1):
        refuses("ABORT", "epoch", epoch(value))


def test_the_bounds_of_a_block_reference() -> None:
    for ref in (BlockRef(0, 0), BlockRef(INT32, INT64)):
        accepts("GRANT", "blocks", (ref,))
    for ref in (BlockRef(-1, 0), BlockRef(0, -1), BlockRef(INT32 + 1, 0), BlockRef(0, INT64 + 1)):
        refuses("GRANT", "blocks", (ref,))


@pytest.mark.parametrize(("field", "low", "high"), LAYOUT_BOUNDS)
def test_the_bounds_of_a_layout(field: str, low: int, high: int) -> None:
    for value, check in ((low, accepts), (high, accepts), (low - 1, refuses), (high + 1, refuses)):
        check("REGISTER", "layout", msgspec.structs.replace(LAYOUT, **{field: value}))


def test_the_names_in_a_layout() -> None:
    changed: dict[str, Any]
    for changed in ({"dtype": "x" * 64}, {"items": ("x" * 64,)}, {"items": ("x",) * 64}, {"items": ()}):
        accepts("REGISTER", "layout", msgspec.structs.replace(LAYOUT, **changed))
    for changed in ({"dtype": "x" * 65}, {"items": ("x" * 65,)}, {"items": ("x",) * 65}):
        refuses("REGISTER", "layout", msgspec.structs.replace(LAYOUT, **changed))


@pytest.mark.parametrize("kind", ["REGISTER", "REGISTER_ACK"])
def test_the_bounds_of_a_deadline(kind: str) -> None:
    for value in (0.0, 0.25, 1e9):
        accepts(kind, "queue_deadline_s", value)
    for value in (-0.25, 1e9 + 0.5, float("inf"), float("nan")):
        refuses(kind, "queue_deadline_s", value)
    back = decode(wire(fields_of(EXAMPLES[kind]) | {"queue_deadline_s": 30}))
    assert isinstance(back, (Register, RegisterAck))
    assert type(back.queue_deadline_s) is float


@pytest.mark.parametrize(("kind", "field", "one", "length_max"), LENGTHS)
def test_the_longest_of_each(kind: str, field: str, one: Any, length_max: int) -> None:
    accepts(kind, field, one * 0)
    accepts(kind, field, one * length_max)
    refuses(kind, field, one * (length_max + 1))


def test_the_longest_message_is_within_the_limit() -> None:
    assert (SIZE_MAX, BLOCKS_MAX, DESCRIPTORS_MAX, TEXT_MAX, WIRE_VERSION) == (1048576, 65536, 65536, 256, 1)
    longest = Grant(
        INT64, Epoch(INT64, INT64), INT32, INT32, INT64, INT32, INT32, (BlockRef(INT32, INT64),) * BLOCKS_MAX, INT64
    )
    assert SIZE_MAX // 2 < len(encode(longest)) <= SIZE_MAX
    assert decode(encode(longest)) == longest


WRONG_TYPES = [
    ("OFFER", "total_tokens", True),
    ("OFFER", "total_tokens", 8.0),
    ("OFFER", "total_tokens", "8"),
    ("OFFER", "total_tokens", None),
    ("OFFER", "has_mrope", 1),
    ("OFFER", "has_deepstack", None),
    ("REGISTER_ACK", "compatible", 1),
    ("REGISTER_ACK", "queue_deadline_s", "1"),
    ("STATUS", "checksum", "1"),
    ("NACK", "code", "NO_SUCH_CODE"),
    ("NACK", "code", 3),
    ("NACK", "detail", b"text"),
    ("ABORT", "reason", None),
    ("ABORT", "epoch", (1,)),
    ("ABORT", "epoch", (1, 2, 3)),
    ("ABORT", "epoch", 1),
    ("GRANT", "blocks", None),
    ("GRANT", "blocks", (1, 2)),
    ("GRANT", "blocks", ((1,),)),
    ("REGISTER", "layout", None),
    ("REGISTER", "layout", {}),
    ("REGISTER", "layout", msgspec.structs.asdict(LAYOUT) | {"later": 1}),
    ("REGISTER", "descriptors", "text"),
]


@pytest.mark.parametrize(("kind", "field", "value"), WRONG_TYPES)
def test_a_value_of_another_type_is_refused_and_never_converted(kind: str, field: str, value: Any) -> None:
    refuses(kind, field, value)


def test_what_is_no_message_is_not_encoded() -> None:
    with pytest.raises(LocalError) as error:
        encode(LAYOUT)  # type: ignore[arg-type]
    assert str(error.value) == f"cannot encode a Layout: it is no message; the kinds are {', '.join(KINDS)}"


@pytest.mark.parametrize("reason", ["\ud800", object(), 2**70])
def test_what_has_no_bytes_is_not_encoded(reason: Any) -> None:
    with pytest.raises(LocalError, match=r"^cannot encode this ABORT: ") as error:
        encode(Abort(5, EPOCH, 0, 2, reason))
    assert error.value.__cause__ is not None


# ---- what is not let in -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_beginning_of_a_message_is_refused(kind: str) -> None:
    data = encode(EXAMPLES[kind])
    for length in range(len(data)):
        error = refused(data[:length])
        assert str(error).startswith("malformed message: ")
        assert (error.room, error.code) == (None, "INTERNAL")


@given(any_message, st.data())
def test_no_message_is_the_beginning_of_another(message: Message, data: st.DataObject) -> None:
    encoded = encode(message)
    refused(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    refused(encoded + data.draw(st.binary(min_size=1, max_size=3)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_or_an_unknown_field_is_refused(kind: str) -> None:
    fields = fields_of(EXAMPLES[kind])
    room = fields.get("room")
    optional = {"descriptors", "checksum"} | ({"queue_deadline_s"} if kind == "REGISTER" else set())
    optional |= {"seq", "boot_id", "detail"} if kind == "NACK" else set()
    for name in fields:
        left = {key: value for key, value in fields.items() if key != name}
        if name in optional:
            assert type(decode(wire(left))) is KINDS[kind]
        elif name == "kind":
            assert str(refused(wire(left))).startswith("malformed message: ")
        else:
            error = refused(wire(left))
            assert str(error).startswith(f"malformed {kind}: ")
            assert error.room == (None if name == "room" else room)
    for data in (wire(fields | {"later": 1}), msgspec.msgpack.encode([WIRE_VERSION, fields, 0])):
        error = refused(data)
        assert str(error).startswith(f"malformed {kind}: ")
        assert (error.room, error.code) == (room, "INTERNAL")


@pytest.mark.parametrize(
    "envelope", [[], [1], {}, 1, None, [1, []], [1, 1], ["1", {}], [None, {}], [[1], {}]]
)
def test_what_has_not_the_shape_of_a_message_is_refused(envelope: Any) -> None:
    error = refused(msgspec.msgpack.encode(envelope))
    assert str(error).startswith("malformed message: ")
    assert (error.room, error.code) == (None, "INTERNAL")
    assert error.__cause__ is not None


def test_an_unknown_kind_is_refused_with_its_room() -> None:
    error = refused(wire({"room": 6, "kind": "GRANTED", "anything": [1, {"else": None}]}))
    assert str(error) == f"unknown kind of message 'GRANTED'; this side knows {', '.join(KINDS)}"
    assert (error.room, error.code) == (6, "INCOMPATIBLE")


def test_a_kind_is_known_by_its_very_name_however_long() -> None:
    error = refused(wire(fields_of(EXAMPLES["GRANT"]) | {"kind": "Grant"}))
    assert (error.room, error.code) == (5, "INCOMPATIBLE")
    assert f" '{'x' * TEXT_MAX}'; " in str(refused(wire({"kind": "x" * (TEXT_MAX + 1)})))


@pytest.mark.parametrize("version", [0, 2, -1, UINT64])
@pytest.mark.parametrize("kind", ["GRANT", "HEARTBEAT", "NEW"])
def test_an_unknown_version_is_refused_with_its_room(version: int, kind: str) -> None:
    fields = {"kind": "NEW", "room": 5, "later": 1} if kind == "NEW" else fields_of(EXAMPLES[kind])
    error = refused(wire(fields, version))
    assert str(error) == f"unknown wire version {version}; this side speaks 1"
    assert (error.room, error.code) == (fields.get("room"), "INCOMPATIBLE")


@pytest.mark.parametrize("message", [[2], [2, None], [2, [1, 2]], [2, {}, {}]])
def test_an_unknown_version_of_an_unknown_shape_names_no_room(message: list[Any]) -> None:
    error = refused(msgspec.msgpack.encode(message))
    assert (error.room, error.code) == (None, "INCOMPATIBLE")


@pytest.mark.parametrize("room", [-1, INT64 + 1, True, 5.0, "5", None, [5]])
def test_what_is_no_room_is_not_taken_for_one(room: Any) -> None:
    error = refused(wire({"kind": "NEW", "room": room}))
    assert (error.room, error.code) == (None, "INCOMPATIBLE")
    for good in (0, INT64):
        assert refused(wire({"kind": "NEW", "room": good})).room == good


@pytest.mark.parametrize("kind", [1, None, ["GRANT"], b"GRANT", True])
def test_a_kind_that_is_no_text_is_malformed(kind: Any) -> None:
    error = refused(wire({"kind": kind, "room": 5}))
    assert str(error).startswith("malformed message: ")
    assert (error.room, error.code) == (5, "INTERNAL")


def test_the_longest_message_that_is_looked_at() -> None:
    data = encode(EXAMPLES["GRANT"])
    assert decode(data, size_max=len(data)) == EXAMPLES["GRANT"]
    error = refused(data, size_max=len(data) - 1)
    assert str(error) == f"a message of {len(data)} bytes is longer than the limit of {len(data) - 1} bytes"
    assert (error.room, error.code) == (None, "INTERNAL")
    assert str(refused(b"\x00" * SIZE_MAX)).startswith("malformed message: ")
    assert str(refused(b"\x00" * (SIZE_MAX + 1))).startswith("a message of 1048577 bytes is longer than")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x91" * 100_000,
        b"\x92\x01" + b"\x91" * 100_000,
        b"\x92\x02" + b"\x81\xa4room" * 50_000,
        b"\x92\x01\xdd\xff\xff\xff\xff",
        b"\x92\x01\x81\xa4kind\xdb\xff\xff\xff\xff",
        b"\x92\x01\x82\xa4kind\xa5GRANT\xa6blocks\xdd\xff\xff\xff\xff",
        b"\x92\x01\x81\xa4kind\xa1\xff",
        b"\x92\x01\x81\xa4kind\xd6\xff\xff\xff\xff\xff",
        b"\x92\x01\x81\x01\x01",
        b"\xc1",
    ],
)
def test_bytes_made_to_hurt_are_refused(data: bytes) -> None:
    refused(data)


def message_or_remote_error(data: bytes) -> None:
    """The promise that holds for any bytes."""
    try:
        message = decode(data)
    except RemoteError as error:
        assert error.code in ("INTERNAL", "INCOMPATIBLE")
        assert error.room is None or 0 <= error.room <= INT64
    else:
        assert type(message) in KINDS.values()
        assert decode(encode(message)) == message


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    message_or_remote_error(data)


@given(junk)
def test_any_well_formed_junk(value: Any) -> None:
    message_or_remote_error(msgspec.msgpack.encode(value))
    message_or_remote_error(wire(value))


@given(
    any_message, st.dictionaries(st.sampled_from(["kind", "room", "epoch", "seq", "blocks", "code"]), junk)
)
def test_any_message_with_junk_in_it(message: Message, changed: dict[str, Any]) -> None:
    message_or_remote_error(wire(fields_of(message) | changed))


@given(st.data(), any_message)
def test_any_message_with_bytes_changed(data: st.DataObject, message: Message) -> None:
    spoiled = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    message_or_remote_error(bytes(spoiled))


@given(any_message, st.integers(-(2**63), UINT64))
@example(EXAMPLES["GRANT"], WIRE_VERSION)
def test_any_version(message: Message, version: int) -> None:
    data = wire(fields_of(message), version)
    if version == WIRE_VERSION:
        assert decode(data) == message
        return
    error = refused(data)
    assert error.code == "INCOMPATIBLE"
    assert error.room == getattr(message, "room", None)


# ---- for people, and for comparison -------------------------------------------------------------------

DESCRIPTIONS = {
    "REGISTER": f"REGISTER room=5 layout={LAYOUT.fingerprint():08x} descriptors=3B queue_deadline_s=30.5",
    "REGISTER_ACK": "REGISTER_ACK room=5 boot_id=9 compatible=True queue_deadline_s=12.0",
    "OFFER": "OFFER room=5 total_tokens=20000 has_mrope=True has_deepstack=False",
    "GRANT": "GRANT room=5 seq=2 start=8192 capacity=256 blocks=[3 4]",
    "STATUS": "STATUS room=5 seq=2 committed_tokens=8448 total_tokens=20000 has_mrope=True"
    " has_deepstack=False checksum=4276993775",
    "NACK": "NACK room=5 code=NOT_READY about='GRANT' seq=2 boot_id=9 detail='not staged'",
    "ABORT": "ABORT room=5 reason='cancelled by the user'",
    "ABORT_ACK": "ABORT_ACK room=5 boot_id=9 executed_seq=2",
    "HEARTBEAT": "HEARTBEAT boot_id=9 sender_rank=0 receiver_rank=2",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_in_words(kind: str) -> None:
    assert describe(EXAMPLES[kind]) == DESCRIPTIONS[kind]
    if kind == "STATUS":
        without = msgspec.structs.replace(EXAMPLES[kind], checksum=None)
        assert describe(without) == DESCRIPTIONS[kind].replace(" checksum=4276993775", "")


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([], "[]"),
        ([3], "[3]"),
        ([3, 4], "[3 4]"),
        ([3, 4, 5], "[3-5]"),
        ([3, 5, 4], "[3 5 4]"),
        ([5, 4, 3], "[5 4 3]"),
        ([3, 4, 5, 9, 0, 1, 2, 3], "[3-5 9 0-3]"),
        (range(64), "[0-63]"),
        (range(0, 32, 2), "[0 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30]"),
        (range(0, 34, 2), "[0 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30 ... 17 blocks]"),
    ],
)
def test_blocks_in_words(blocks: Any, text: str) -> None:
    refs = tuple(BlockRef(block, 1) for block in blocks)
    assert (
        describe(Grant(5, EPOCH, 0, 2, 0, 0, 8, refs, 77))
        == f"GRANT room=5 seq=0 start=0 capacity=8 blocks={text}"
    )


@given(any_message)
def test_every_message_can_be_described(message: Message) -> None:
    assert describe(message).split(" ")[0] == kind_of(message)


def test_the_fingerprint_stays_as_it_is() -> None:
    """A change here makes every process disagree with those started before it."""
    assert LAYOUT.fingerprint() == 0x5C8ECF40


def test_every_part_of_a_layout_is_in_the_fingerprint() -> None:
    others = [
        msgspec.structs.replace(LAYOUT, block_tokens=129),
        msgspec.structs.replace(LAYOUT, dim=2049),
        msgspec.structs.replace(LAYOUT, dtype="float16"),
        msgspec.structs.replace(LAYOUT, items=LAYOUT.items[::-1]),
        msgspec.structs.replace(LAYOUT, deepstack_levels=0),
        msgspec.structs.replace(LAYOUT, version=2),
    ]
    prints = [layout.fingerprint() for layout in [LAYOUT, *others]]
    assert len(prints) == len(set(prints)) == 7
    assert all(0 <= number < 2**32 for number in prints)
