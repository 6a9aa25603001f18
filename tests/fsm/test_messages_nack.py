"""What cannot be read is answered with a NACK where it says whom it concerns, and never guessed at."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import RemoteError
from fsm.messages import TEXT_MAX, Epoch, Nack, NackCode, decode, encode, nack_for

FIELDS = {"kind": "GRANT", "room": 5, "epoch": [7, 3], "sender_rank": 1, "receiver_rank": 2}


def answer(fields: dict[str, Any], version: int = 1) -> Nack | None:
    data = msgspec.msgpack.encode([version, fields])
    with pytest.raises(RemoteError) as caught:
        decode(data)
    return nack_for(data, caught.value, boot_id=77)


@pytest.mark.parametrize(
    ("fields", "version", "code", "about"),
    [
        (FIELDS, 2, NackCode.INCOMPATIBLE, "GRANT"),
        ({**FIELDS, "kind": "GRANT_V2"}, 1, NackCode.INCOMPATIBLE, "GRANT_V2"),
        ({**FIELDS, "seq": -1}, 1, NackCode.INTERNAL, "GRANT"),
    ],
)
def test_an_unknown_version_or_kind_and_a_spoilt_message_are_answered(
    fields: dict[str, Any], version: int, code: NackCode, about: str
) -> None:
    nack = answer(fields, version)
    assert nack is not None
    assert nack == Nack(5, Epoch(7, 3), 1, 2, code, about, -1, 77, nack.detail)
    assert nack.detail and decode(encode(nack)) == nack


@pytest.mark.parametrize("kind", ["NACK", "ABORT_ACK"])
def test_r11_an_answer_is_never_answered(kind: str) -> None:
    assert answer({**FIELDS, "kind": kind}, version=2) is None


@pytest.mark.parametrize("missing", ["kind", "room", "epoch", "sender_rank", "receiver_rank"])
def test_what_does_not_say_whom_it_concerns_is_not_answered(missing: str) -> None:
    assert answer({name: value for name, value in FIELDS.items() if name != missing}, version=2) is None


def test_a_long_reason_is_cut_to_what_a_nack_can_carry() -> None:
    data = msgspec.msgpack.encode([2, FIELDS])
    nack = nack_for(data, RemoteError("x" * (TEXT_MAX + 1)), boot_id=1)
    assert nack is not None and nack.detail == "x" * TEXT_MAX


@given(st.binary(max_size=60))
def test_any_bytes_are_answered_or_not_and_never_raise(data: bytes) -> None:
    nack = nack_for(data, RemoteError("spoilt"), boot_id=1)
    assert nack is None or decode(encode(nack)) == nack
