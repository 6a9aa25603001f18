"""The control plane among strangers and broken peers: nothing is raised, nobody's route is taken, nobody stops.

All of it without keys, on loopback, which is the worst case: whoever is on the machine can connect.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import RemoteError
from fsm.messages import Nack, NackCode, encode
from gpu_backend.control import ControlClient, ControlServer, Greeted, Incoming, Received, Rejected, Side
from gpu_backend.hello import decode_hello, encode_hello
from tests.gpu_backend.kit_control import (
    HANG_S,
    LOCAL,
    RECEIVER_BOOT,
    SENDER_BOOT,
    abort,
    answer,
    greet,
    head,
    hello,
    pump,
    stranger,
)

WHO = head(b"?", SENDER_BOOT, 0)


@pytest.fixture
def server() -> Iterator[ControlServer]:
    with ControlServer(LOCAL, hello("sender"), receiver_ranks=(0, 1), message_bytes_max=65536) as made:
        yield made


@pytest.fixture
def client(server: ControlServer) -> Iterator[ControlClient]:
    """A receiver that has said hello."""
    with ControlClient(server.endpoint, hello("receiver"), message_bytes_max=65536) as made:
        greet(server, made)
        yield made


def still_works(server: ControlServer, client: ControlClient) -> None:
    """The route is that of the true receiver, and both ways are open."""
    assert server.peer(0) == client.hello
    assert client.connected
    assert server.send(0, abort(901)) and client.send(abort(902))
    heard = pump(server, client, until=lambda heard: messages(heard[server]) and heard[client])
    assert heard[client] == [Received(0, SENDER_BOOT, abort(901))]
    assert messages(heard[server]) == [Received(0, RECEIVER_BOOT, abort(902))]


def messages(heard: list[Incoming]) -> list[Received]:
    """Without what the server says about strangers meanwhile."""
    return [item for item in heard if isinstance(item, Received)]


# ---- strangers at the server -----------------------------------------------------------------------------

TRUE_HEAD = head(b"M", RECEIVER_BOOT)
GARBAGE: dict[str, list[bytes]] = {
    "one-frame": [b"garbage"],
    "no-payload": [TRUE_HEAD],
    "three-frames": [TRUE_HEAD, b"", b""],
    "many-frames": [b"x"] * 1000,
    "empty-frames": [b"", b""],
    "short-head": [TRUE_HEAD[:-1], encode(abort(1))],
    "long-head": [TRUE_HEAD + b"\0", encode(abort(1))],
    "unknown-kind": [head(b"X", RECEIVER_BOOT), b""],
    "a-who": [head(b"?", RECEIVER_BOOT), b""],
    "a-refusal": [head(b"N", RECEIVER_BOOT), b"no"],
    "side-data": [head(b"T", RECEIVER_BOOT), b"x" * 65536],
    "no-message": [TRUE_HEAD, b"\xc1" * 100],
    "truncated-message": [TRUE_HEAD, encode(abort(1))[:-1]],
}


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_from_a_stranger_is_answered_by_a_question(
    server: ControlServer, client: ControlClient, frames: list[bytes]
) -> None:
    with stranger(server.endpoint) as other:
        other.send_multipart(frames)
        assert answer(server, other) == [WHO, b""]
    assert server.counters.received == 0
    still_works(server, client)


def test_a_replayed_message_is_not_even_decoded(server: ControlServer, client: ControlClient) -> None:
    """The very bytes of the true receiver, over another connection."""
    with stranger(server.endpoint) as other:
        for data in (encode(abort(1)), b"\xc1"):
            other.send_multipart([TRUE_HEAD, data])
            assert answer(server, other) == [WHO, b""]
    assert (server.counters.unknown, server.counters.received, server.counters.malformed) == (2, 0, 0)
    still_works(server, client)


def test_a_replayed_hello_does_not_take_the_route(server: ControlServer, client: ControlClient) -> None:
    with stranger(server.endpoint) as other:
        other.send_multipart([head(b"H", RECEIVER_BOOT, 0), encode_hello(client.hello)])
        kind, text = answer(server, other)
        assert kind == head(b"N", SENDER_BOOT, 0)
        assert b"another process needs a newer one" in text
        # And what it says now is not heard, nor does it hear what is meant for the receiver.
        other.send_multipart([TRUE_HEAD, encode(abort(1))])
        assert answer(server, other) == [WHO, b""]
        still_works(server, client)
        assert not other.poll(0)


def test_a_replayed_hello_of_a_predecessor_is_too_old(server: ControlServer, client: ControlClient) -> None:
    old = hello("receiver", 0, RECEIVER_BOOT - 1)
    with stranger(server.endpoint) as other:
        other.send_multipart([head(b"H", old.boot_id, 0), encode_hello(old)])
        assert answer(server, other)[0] == head(b"N", SENDER_BOOT, 0)
    still_works(server, client)


def test_a_hello_that_is_repeated_over_its_own_connection_changes_nothing(
    server: ControlServer, client: ControlClient
) -> None:
    for _ in range(3):
        client._say_hello()
        heard = greet(server, client)
        assert not heard[server] and not heard[client]
    still_works(server, client)


def test_a_name_that_was_given_is_not_taken(server: ControlServer, client: ControlClient) -> None:
    """A stranger calls its connection whatever it likes; the true one's name is 16 bytes that it was never told."""
    route = server._routes[0].identity
    assert len(route) == 17
    with stranger(server.endpoint, routing_id=route[:-1] + b"?") as other:
        other.send_multipart([TRUE_HEAD, encode(abort(1))])
        assert answer(server, other) == [WHO, b""]
    still_works(server, client)


HELLOS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "malformed hello"),
    "nonsense": (b"\xff" * 300, "malformed hello"),
    "truncated": (encode_hello(hello("receiver", 1, 99))[:-3], "malformed hello"),
    "version": (msgspec.msgpack.encode([2, hello("receiver", 1, 99)]), "malformed hello"),
    "no-boot": (msgspec.msgpack.encode([1, hello("receiver", 1, -1)]), "malformed hello"),
    "deep": (b"\x91" * 60_000, "malformed hello"),
    "a-sender": (encode_hello(hello("sender", 1, 99)), "hello from a sender"),
    "not-served": (encode_hello(hello("receiver", 5, 99)), "receiver 5 is not served"),
    "transport": (encode_hello(hello("receiver", 1, 99, transport="tape")), "'tape'"),
}


@pytest.mark.parametrize(("data", "text"), HELLOS.values(), ids=HELLOS.keys())
def test_a_hello_that_is_none_is_refused_with_a_reason(
    server: ControlServer, client: ControlClient, data: bytes, text: str
) -> None:
    with stranger(server.endpoint) as other:
        other.send_multipart([head(b"H", 99, 0), data])
        heard: list[Any] = []
        while not other.poll(2):
            heard += server.poll()
        kind, told = other.recv_multipart()
        assert kind == head(b"N", SENDER_BOOT, 0)
        assert text in told.decode()
        assert heard == [Rejected(told.decode())]
    assert server.counters.hellos_refused == 1
    assert server.peer(1) is None
    still_works(server, client)


def test_a_huge_frame_costs_its_sender_the_connection(server: ControlServer, client: ControlClient) -> None:
    """It is refused by its length, before there is memory for it."""
    with stranger(server.endpoint) as other:
        monitor = other.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        other.send_multipart([TRUE_HEAD, bytes(server.message_bytes_max + 1)])
        assert monitor.poll(int(HANG_S * 1000)), "the connection was to be cut off"
        other.disable_monitor()
        monitor.close(0)
    still_works(server, client)


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03", bytes(4096)])
def test_a_stranger_that_does_not_speak_zeromq(server: ControlServer, client: ControlClient, data: bytes) -> None:
    host, port = server.endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as other:
        other.sendall(data)
        still_works(server, client)
    still_works(server, client)


def test_a_stranger_that_never_reads_its_answers(server: ControlServer, client: ControlClient) -> None:
    """What it is owed is bounded, and what does not fit is not waited for."""
    long_answer = HELLOS["transport"][0]
    with stranger(server.endpoint, sndhwm=0, rcvhwm=1, rcvbuf=4096) as other:
        for _ in range(1_000_000):
            other.send_multipart([head(b"H", 99, 0), long_answer])
            server.poll()
            if server.counters.unsent_full:
                break
        assert server.counters.unsent_full, "a hundred megabytes wait for somebody who does not read"
        still_works(server, client)


@given(kind=st.sampled_from([b"H", b"M", b"T", b"?", b"N", b"\0"]), payload=st.binary(max_size=99), data=st.data())
def test_no_frames_make_an_end_raise(kind: bytes, payload: bytes, data: st.DataObject) -> None:
    """Both ends, before and after they know somebody; whatever comes, what they know stays as it is."""
    boots = st.sampled_from([0, 1, SENDER_BOOT, RECEIVER_BOOT, 2**64 - 1])
    frames = data.draw(
        st.lists(st.binary(max_size=20), max_size=3) | st.builds(lambda a, b: [head(kind, a, b), payload], boots, boots)
    )
    server, client = PAIR
    for identity in (server._routes[0].identity, b"another"):
        server._take([identity, *frames])
    client._take(frames or [b""])
    client._greeted = True
    assert server.peer(0) == client.hello
    assert client.peer == server.hello


@pytest.fixture(scope="module", autouse=True)
def pair() -> Iterator[None]:
    """For the test above, which is one test for Hypothesis and hundreds of cases: one greeted pair."""
    global PAIR
    with ControlServer(LOCAL, hello("sender"), receiver_ranks=(0,)) as server:
        with ControlClient(server.endpoint, hello("receiver")) as client:
            greet(server, client)
            PAIR = (server, client)
            yield


PAIR: tuple[ControlServer, ControlClient]


@given(st.binary(max_size=200) | st.recursive(st.integers(0, 99) | st.binary(), st.lists).map(msgspec.msgpack.encode))
def test_whatever_is_no_hello_is_a_remote_error(data: bytes) -> None:
    with pytest.raises(RemoteError, match="malformed hello"):
        decode_hello(data)


# ---- a receiver that has said hello, and misbehaves ------------------------------------------------------


def test_what_cannot_be_read_is_answered_with_a_nack(server: ControlServer, client: ControlClient) -> None:
    fields = msgspec.msgpack.decode(encode(abort(77)))[1] | {"kind": "SHRUG"}
    client.socket.send_multipart([head(b"M", RECEIVER_BOOT), msgspec.msgpack.encode([1, fields])])
    heard = pump(server, client, until=lambda heard: heard[client])
    (rejected,) = heard[server]
    assert isinstance(rejected, Rejected)
    assert (rejected.room, rejected.rank) == (77, 0)
    (received,) = heard[client]
    assert isinstance(received, Received) and isinstance(received.message, Nack)
    nack = received.message
    assert (nack.room, nack.code, nack.about, nack.boot_id) == (77, NackCode.INCOMPATIBLE, "SHRUG", SENDER_BOOT)
    still_works(server, client)


@pytest.mark.parametrize("data", [b"", b"\xc1", encode(abort(77))[:-1], b"\x92" * 500], ids=repr)
def test_what_names_no_room_is_refused_without_an_answer(
    server: ControlServer, client: ControlClient, data: bytes
) -> None:
    client.socket.send_multipart([head(b"M", RECEIVER_BOOT), data])
    heard = pump(server, client, until=lambda heard: heard[server])
    (rejected,) = heard[server]
    assert isinstance(rejected, Rejected) and rejected.rank == 0
    assert not heard[client]
    still_works(server, client)


@pytest.mark.parametrize("frames", [[b"junk"], [head(b"X", RECEIVER_BOOT), b""], [TRUE_HEAD, b"", b""]], ids=repr)
def test_frames_that_are_none_are_refused(server: ControlServer, client: ControlClient, frames: list[bytes]) -> None:
    client.socket.send_multipart(frames)
    heard = pump(server, client, until=lambda heard: heard[server])
    (rejected,) = heard[server]
    assert isinstance(rejected, Rejected) and rejected.rank == 0
    assert server.counters.malformed == 1
    still_works(server, client)


def test_nobody_speaks_for_another_rank(server: ControlServer, client: ControlClient) -> None:
    with ControlClient(server.endpoint, hello("receiver", 1, 99)) as other:
        greet(server, client, other)
        other.send(abort(5, rank=0))
        heard = pump(server, client, other, until=lambda heard: heard[server])
        (rejected,) = heard[server]
        assert isinstance(rejected, Rejected)
        assert (rejected.room, rejected.rank) == (5, 1)
        # Nor does it become another one.
        other.socket.send_multipart([head(b"H", 99, 0), encode_hello(hello("receiver", 0, 100))])
        heard = pump(server, client, other, until=lambda heard: heard[other])
        assert "now says that it is receiver 0" in str(heard[server])
    still_works(server, client)


def test_a_predecessor_that_uses_its_successors_name_is_not_heard(server: ControlServer, client: ControlClient) -> None:
    """It was known once, over this very connection."""
    with ControlClient(server.endpoint, hello("receiver", 0, RECEIVER_BOOT + 1)) as new:
        greet(server, client, new)
        client.socket.send_multipart([head(b"M", RECEIVER_BOOT + 1), encode(abort(1))])
        pump(server, until=lambda _: server.counters.unknown)
        assert server.counters.received == 0
        assert new.send(abort(2))
        heard = pump(server, new, until=lambda heard: heard[server])
        assert messages(heard[server]) == [Received(0, RECEIVER_BOOT + 1, abort(2))]


def test_a_name_counts_only_after_a_hello(server: ControlServer, client: ControlClient) -> None:
    """What the successor says too early, over the same connection, is not taken for the present one's words."""
    client.socket.send_multipart([head(b"M", RECEIVER_BOOT + 1), encode(abort(1))])
    pump(server, until=lambda _: server.counters.stale)
    assert server.counters.received == 0
    greet(server, client)


def test_one_process_has_one_hello(server: ControlServer, client: ControlClient) -> None:
    """The same boot_id with other words: either of them is not true."""
    other = hello("receiver", 0, RECEIVER_BOOT, data=b"something else")
    client.socket.send_multipart([head(b"H", RECEIVER_BOOT, 0), encode_hello(other)])
    heard = pump(server, client, until=lambda heard: heard[server])
    assert isinstance(heard[server][0], Rejected)
    assert server.peer(0) == client.hello


# ---- a server that misbehaves ----------------------------------------------------------------------------


class Impostor:
    """A ROUTER that answers a client by hand."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.bind(LOCAL)
        endpoint = self.socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        self.endpoint = endpoint.rstrip(b"\0").decode()
        self.identity = b""

    def hear(self, client: ControlClient) -> list[bytes]:
        """The next thing that the client says."""
        for _ in range(int(HANG_S * 500)):
            client.poll()
            if self.socket.poll(2):
                self.identity, *frames = self.socket.recv_multipart()
                return frames
        raise AssertionError("the client said nothing")

    def say(self, *frames: bytes) -> None:
        self.socket.send_multipart([self.identity, *frames])

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


@pytest.fixture
def impostor() -> Iterator[Impostor]:
    made = Impostor()
    yield made
    made.close()


def test_a_client_bears_any_server(impostor: Impostor) -> None:
    with ControlClient(impostor.endpoint, hello("receiver")) as client:
        impostor.hear(client)
        for frames in GARBAGE.values():
            impostor.say(*frames)
        for name, (data, _) in HELLOS.items():
            if name != "a-sender":
                impostor.say(head(b"H", 99, RECEIVER_BOOT), data)
        impostor.say(head(b"N", 99, 0), b"\xff" * 5000)
        impostor.say(head(b"H", SENDER_BOOT, RECEIVER_BOOT), encode_hello(hello("sender")))
        heard = pump(client, until=lambda _: client.connected)[client]
        assert heard[-1] == Greeted(hello("sender"))
        assert all(isinstance(item, Rejected) and len(item.text) <= 256 for item in heard[:-1])
        impostor.say(head(b"T", SENDER_BOOT, RECEIVER_BOOT), b"true")
        assert pump(client, until=lambda heard: heard[client])[client] == [Side(0, SENDER_BOOT, b"true")]


def test_many_questions_are_answered_by_one_hello(impostor: Impostor) -> None:
    """Else a hundred messages to a restarted sender would make a hundred hellos."""
    with ControlClient(impostor.endpoint, hello("receiver"), hello_resend_s=HANG_S) as client:
        impostor.hear(client)
        impostor.say(head(b"?", SENDER_BOOT, 0), b"")
        while impostor.hear(client) == [b""]:
            pass
        for _ in range(100):
            impostor.say(head(b"?", SENDER_BOOT, 0), b"")
        impostor.say(head(b"H", SENDER_BOOT, RECEIVER_BOOT), encode_hello(hello("sender")))
        pump(client, until=lambda _: client.connected)
        client.send_side(b"next")
        assert impostor.hear(client)[1] == b"next"


def test_an_answer_to_a_former_name_is_no_greeting(impostor: Impostor) -> None:
    with ControlClient(impostor.endpoint, hello("receiver"), hello_resend_s=HANG_S) as client:
        impostor.hear(client)
        client.set_hello(hello("receiver", 0, RECEIVER_BOOT + 1))
        impostor.say(head(b"H", SENDER_BOOT, RECEIVER_BOOT), encode_hello(hello("sender")))
        pump(client, until=lambda heard: heard[client])
        assert not client.connected
        assert not client.send_side(b"x")
        impostor.say(head(b"H", SENDER_BOOT, RECEIVER_BOOT + 1), encode_hello(hello("sender")))
        pump(client, until=lambda _: client.connected)
