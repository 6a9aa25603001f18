"""The control plane between ends that mean well: they find each other, and again after every restart."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from fsm.errors import LocalError
from fsm.messages import SIZE_MAX, BlockRef, Epoch, Grant, Message
from gpu_backend.control import ControlClient, ControlServer, CurveKeys, Greeted, Received, Rejected, Side
from tests.gpu_backend.kit_control import (
    HANG_S,
    LOCAL,
    RECEIVER_BOOT,
    SENDER_BOOT,
    Line,
    abort,
    beat,
    greet,
    greetings,
    head,
    hello,
    pump,
    stranger,
)

Make = Callable[..., Any]


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def server(opened: ExitStack) -> Callable[..., ControlServer]:
    """Makes servers that are closed after the test."""

    def make(address: str = LOCAL, boot_id: int = SENDER_BOOT, ranks: tuple[int, ...] = (0, 1), **options: Any) -> Any:
        return opened.enter_context(
            ControlServer(address, hello("sender", 0, boot_id), receiver_ranks=ranks, **options)
        )

    return make


@pytest.fixture
def client(opened: ExitStack) -> Callable[..., ControlClient]:
    """Makes clients that are closed after the test."""

    def make(address: str, rank: int = 0, boot_id: int = RECEIVER_BOOT, **options: Any) -> Any:
        return opened.enter_context(ControlClient(address, hello("receiver", rank, boot_id), **options))

    return make


# ---- hello -----------------------------------------------------------------------------------------------


def test_both_learn_who_the_other_is_once(server: Make, client: Make) -> None:
    one = server()
    two = client(one.endpoint)
    heard = greet(one, two)
    assert [item for item in heard[one]] == [Greeted(two.hello)]
    assert [item for item in heard[two]] == [Greeted(one.hello)]
    assert one.peer(0) == two.hello
    assert one.peer(1) is None
    assert two.peer == one.hello


def test_a_receiver_may_be_there_before_its_sender(server: Make, client: Make) -> None:
    first = server()
    endpoint = first.endpoint
    first.close()
    early = client(endpoint)
    assert early.poll() == []
    assert not early.send(beat())
    one = server(endpoint)
    greet(one, early)
    assert one.peer(0) == early.hello


def test_messages_and_side_data_arrive_with_their_author(server: Make, client: Make) -> None:
    one = server()
    two = client(one.endpoint)
    greet(one, two)
    grant = Grant(5, Epoch(RECEIVER_BOOT, 1), 0, 0, 2, 8192, 256, (BlockRef(3, 0), BlockRef(4, 6)), SENDER_BOOT)
    assert two.send(grant)
    assert two.send_side(b"first")
    assert two.send_side(b"")
    heard = pump(one, two, until=lambda heard: len(heard[one]) == 3)[one]
    assert heard == [Received(0, RECEIVER_BOOT, grant), Side(0, RECEIVER_BOOT, b"first"), Side(0, RECEIVER_BOOT, b"")]
    assert one.send(0, abort(5))
    assert one.send_side(0, b"back")
    heard = pump(one, two, until=lambda heard: len(heard[two]) == 2)[two]
    assert heard == [Received(0, SENDER_BOOT, abort(5)), Side(0, SENDER_BOOT, b"back")]


def test_every_rank_has_its_own_route(server: Make, client: Make) -> None:
    one = server(ranks=(0, 2, 4))
    clients = {rank: client(one.endpoint, rank, 70 + rank) for rank in (4, 0, 2)}
    greet(one, *clients.values())
    for rank in clients:
        assert one.send(rank, abort(100 + rank, rank))
        assert clients[rank].send(abort(200 + rank, rank))
    heard = pump(one, *clients.values(), until=lambda heard: len(heard[one]) == 3 and all(heard.values()))
    assert sorted(heard[one]) == [Received(rank, 70 + rank, abort(200 + rank, rank)) for rank in (0, 2, 4)]
    for rank, end in clients.items():
        assert heard[end] == [Received(rank=0, boot_id=SENDER_BOOT, message=abort(100 + rank, rank))]


def test_a_rank_that_is_not_there_or_not_served(server: Make) -> None:
    one = server(ranks=(0, 2))
    assert not one.send(2, abort(1, 2))
    assert one.counters.unsent_unknown == 1
    with pytest.raises(LocalError, match="receiver_rank=1: sender 0 serves the ranks 0, 2"):
        one.send(1, abort(1, 1))
    with pytest.raises(LocalError, match="receiver_rank=1"):
        one.send_side(1, b"")


def test_different_transports_refuse_each_other_with_a_reason(server: Make, opened: ExitStack) -> None:
    one = server()
    other = opened.enter_context(ControlClient(one.endpoint, hello("receiver", transport="other")))
    heard = pump(one, other, until=lambda heard: heard[one] and heard[other])
    for end in (one, other):
        refused = heard[end][0]
        assert isinstance(refused, Rejected)
        assert "'other'" in refused.text and "'fake'" in refused.text
    assert one.peer(0) is None
    assert not other.connected


def test_a_client_refuses_the_wrong_sender(server: Make, client: Make) -> None:
    one = server()
    lost = client(one.endpoint, sender_rank=3)
    heard = pump(one, lost, until=lambda heard: heard[lost])
    assert heard[lost] == [Rejected("sender 0 is at this address: expected sender 3")]
    assert lost.peer is None
    assert not lost.send(beat())


# ---- restarts --------------------------------------------------------------------------------------------


def test_a_sender_that_restarts_at_its_address_is_found_without_a_word(server: Make, client: Make) -> None:
    """Nobody has anything to say, and still both learn of the restart (H23)."""
    old = server()
    endpoint = old.endpoint
    two, three = client(endpoint), client(endpoint, 1)
    greet(old, two, three)
    old.close()
    new = server(endpoint, boot_id=SENDER_BOOT + 1)
    heard = pump(new, two, three, until=lambda heard: all(heard.values()) and len(heard[new]) == 2)
    assert greetings(heard[two]) == greetings(heard[three]) == [SENDER_BOOT + 1]
    assert sorted(greetings(heard[new])) == [RECEIVER_BOOT, RECEIVER_BOOT]
    assert new.send(0, abort(1))
    assert pump(new, two, until=lambda heard: heard[two])[two] == [Received(0, SENDER_BOOT + 1, abort(1))]


def test_a_receiver_that_restarts_takes_its_rank_over(server: Make, client: Make) -> None:
    one = server()
    old = client(one.endpoint)
    greet(one, old)
    new = client(one.endpoint, boot_id=RECEIVER_BOOT + 1)
    heard = greet(one, new)
    assert greetings(heard[one]) == [RECEIVER_BOOT + 1]
    assert one.send(0, abort(1))
    assert pump(one, new, old, until=lambda heard: heard[new])[new] == [Received(0, SENDER_BOOT, abort(1))]


def test_the_predecessor_is_told_and_no_longer_heard(server: Make, client: Make) -> None:
    """It said hello rightly, once. What it says now must not be taken for its successor's words."""
    one = server()
    old = client(one.endpoint)
    greet(one, old)
    new = client(one.endpoint, boot_id=RECEIVER_BOOT + 1)
    greet(one, new)
    assert old.send(abort(1))
    assert old.send_side(b"old")
    heard = pump(one, old, new, until=lambda heard: heard[old])
    assert all(isinstance(item, Rejected) for item in heard[one])
    assert "another process needs a newer one" in str(heard[old])
    assert not old.connected
    assert one.peer(0) == new.hello
    assert one.counters.received == 0


def test_an_older_process_does_not_get_a_route(server: Make, client: Make) -> None:
    one = server()
    new = client(one.endpoint, boot_id=RECEIVER_BOOT + 1)
    greet(one, new)
    old = client(one.endpoint, boot_id=RECEIVER_BOOT)
    heard = pump(one, old, new, until=lambda heard: heard[old])
    assert isinstance(heard[old][0], Rejected)
    assert one.peer(0) == new.hello


def test_a_client_does_not_go_back_to_an_older_sender(server: Make, client: Make) -> None:
    new = server(boot_id=SENDER_BOOT + 1)
    endpoint = new.endpoint
    two = client(endpoint)
    greet(new, two)
    new.close()
    old = server(endpoint, boot_id=SENDER_BOOT)
    heard = pump(old, two, until=lambda heard: heard[two])
    assert isinstance(heard[two][0], Rejected)
    assert two.peer == new.hello
    assert not two.send(beat())


@pytest.mark.parametrize("far_too", [True, False], ids=["both-notice", "server-does-not-notice"])
def test_a_cut_line_is_mended_under_the_same_name(server: Make, client: Make, opened: ExitStack, far_too: bool) -> None:
    one = server()
    line = Line(one.endpoint)
    opened.callback(line.close)
    two = client(line.endpoint)
    greet(one, two)
    assert line.cut(far_too=far_too) == 1
    # Whatever is lost on the way is lost; sooner or later something comes through, in both directions.
    heard = pump(
        one,
        two,
        until=lambda heard: (
            two.send(abort(1)), one.send(0, abort(2)),
            Received(0, RECEIVER_BOOT, abort(1)) in heard[one] and Received(0, SENDER_BOOT, abort(2)) in heard[two],
        )[-1],
    )  # fmt: skip
    assert greetings(heard[one]) == greetings(heard[two]) == [], "a mended line is no restart"


def test_a_process_may_go_on_under_a_newer_name(server: Make, client: Make) -> None:
    """A receiver whose ranks fell apart, a sender whose links broke: the socket stays, the boot_id changes."""
    one = server()
    two = client(one.endpoint)
    greet(one, two)
    two.set_hello(hello("receiver", 0, RECEIVER_BOOT + 1))
    assert not two.send(beat()), "nothing may go out until the sender knows the new name"
    heard = greet(one, two)
    assert greetings(heard[one]) == [RECEIVER_BOOT + 1]
    one.set_hello(hello("sender", 0, SENDER_BOOT + 1))
    heard = pump(one, two, until=lambda heard: heard[two])
    assert greetings(heard[two]) == [SENDER_BOOT + 1]
    greet(one, two)
    assert two.send(abort(1)) and one.send(0, abort(2))
    heard = pump(one, two, until=lambda heard: heard[one] and heard[two])
    assert heard[one] == [Received(0, RECEIVER_BOOT + 1, abort(1))]
    assert heard[two] == [Received(0, SENDER_BOOT + 1, abort(2))]


def test_what_was_under_way_to_the_former_name_is_dropped(server: Make, client: Make) -> None:
    one = server()
    two = client(one.endpoint)
    greet(one, two)
    assert two.send_side(b"to the old one")
    one.set_hello(hello("sender", 0, SENDER_BOOT + 1))
    heard = pump(one, two, until=lambda heard: greetings(heard[two]) and one.counters.stale)
    assert not [item for item in heard[one] if isinstance(item, Side)]
    greet(one, two)
    assert two.send_side(b"to the new one")
    heard = pump(one, two, until=lambda heard: heard[one])
    assert heard[one] == [Side(0, RECEIVER_BOOT, b"to the new one")]


@pytest.mark.parametrize("other", [hello("sender", 0, SENDER_BOOT), hello("sender", 1, 99), hello("receiver", 0, 99)])
def test_a_new_name_must_be_newer_and_of_the_same_rank(server: Make, other: Any) -> None:
    one = server()
    with pytest.raises(LocalError, match="expected sender 0 with more than 50"):
        one.set_hello(other)
    assert one.hello == hello("sender", 0, SENDER_BOOT)


# ---- bounds ----------------------------------------------------------------------------------------------


def test_a_full_queue_says_so_and_never_blocks(server: Make, client: Make) -> None:
    one = server(queue_messages_max=4)
    two = client(one.endpoint, queue_messages_max=4)
    greet(one, two)
    data = bytes(SIZE_MAX)
    sent = 0
    while one.send_side(0, data):
        sent += 1
        assert sent < 100, "a peer that reads nothing must not be sent a gigabyte"
    assert one.counters.unsent_full == 1
    # Nobody is stopped by it: what was queued arrives, and then there is room again.
    heard = pump(one, two, until=lambda heard: len(heard[two]) == sent)
    assert heard[two] == [Side(0, SENDER_BOOT, data)] * sent
    assert one.send(0, abort(1))


def test_a_client_without_a_sender_queues_nothing(client: Make, server: Make) -> None:
    gone = server()
    endpoint = gone.endpoint
    two = client(endpoint)
    greet(gone, two)
    gone.close()
    # The connection ends at some point; from then on every send is refused.
    pump(two, until=lambda _: not two.send(abort(1)))
    new = server(endpoint, boot_id=SENDER_BOOT + 1)
    heard = greet(new, two)
    assert not [item for item in heard[new] if isinstance(item, Received)], "words for the old process"


def test_what_is_too_long_is_refused_before_it_is_sent(server: Make, client: Make) -> None:
    one = server(message_bytes_max=2048)
    two = client(one.endpoint, message_bytes_max=2048)
    greet(one, two)
    with pytest.raises(LocalError, match="2049 bytes is longer than message_bytes_max=2048"):
        two.send_side(bytes(2049))
    assert two.send_side(bytes(2048))
    assert pump(one, two, until=lambda heard: heard[one])[one] == [Side(0, RECEIVER_BOOT, bytes(2048))]


def test_a_flood_neither_holds_a_poll_nor_starves_a_peer(server: Make, client: Make) -> None:
    one = server(ranks=(0, 1))
    loud, quiet = client(one.endpoint), client(one.endpoint, 1)
    greet(one, loud, quiet)
    with stranger(one.endpoint, sndhwm=0) as noise:
        for _ in range(20_000):
            noise.send_multipart([head(b"M", 1), b"noise"])
        while one.counters.unknown == 0:  # the flood has arrived
            one.poll(1)
        assert quiet.send(abort(7, 1))
        heard: list[Any] = []
        while not heard:
            before = one.counters.unknown
            heard = one.poll(16)
            assert one.counters.unknown - before <= 16
        assert heard == [Received(1, RECEIVER_BOOT, abort(7, 1))]
        assert one.counters.unknown < 20_000 and one.pending(), "it came through in the middle of the flood"


# ---- sleeping --------------------------------------------------------------------------------------------


def test_a_waiting_end_wakes_for_a_message_and_for_other_descriptors(server: Make, client: Make) -> None:
    one = server()
    two = client(one.endpoint)
    greet(one, two)
    read, write = os.pipe()
    try:
        pump(one, two, until=lambda _: one.wait(0.0, [read]) == [] and not one.pending())
        two.send(abort(1))
        while not one.pending():
            assert one.wait(HANG_S, [read]) == []
        assert one.poll() == [Received(0, RECEIVER_BOOT, abort(1))]
        os.write(write, b"x")
        assert one.wait(HANG_S, [read]) == [read]
    finally:
        os.close(read)
        os.close(write)


def test_a_poll_that_stops_at_its_limit_is_still_pending(server: Make, client: Make) -> None:
    """The descriptor tells of changes only: whoever slept on it now would sleep on the rest."""
    one = server()
    two = client(one.endpoint)
    greet(one, two)
    for room in range(3):
        two.send(abort(room))
    rooms: list[int] = []
    while len(rooms) < 3:
        rooms += [item.message.room for item in one.poll(1)]
        assert len(rooms) == 3 or one.pending() or one.wait(HANG_S) == []
    assert rooms == [0, 1, 2]


# ---- misuse ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://10.1.2.3:7000", "tcp://[::]:0"])
def test_an_address_that_others_can_reach_needs_keys(address: str) -> None:
    with pytest.raises(LocalError, match=r"keys=CurveKeys.* or say insecure=True"):
        ControlServer(address, hello("sender"), receiver_ranks=(0,))
    with pytest.raises(LocalError, match=r"keys=CurveKeys.* or say insecure=True"):
        ControlClient(address, hello("receiver"))


@pytest.mark.parametrize("options", [{"insecure": True}, {"keys": CurveKeys.generate()}], ids=["insecure", "keys"])
def test_an_address_that_others_can_reach_with_a_remedy(server: Make, client: Make, options: dict[str, Any]) -> None:
    one = server("tcp://0.0.0.0:0", **options)
    two = client(one.endpoint.replace("0.0.0.0", "127.0.0.1"), **options)
    greet(one, two)


def test_local_addresses_need_none(server: Make, client: Make, tmp_path: Path) -> None:
    for address in (LOCAL, "tcp://localhost:0", f"ipc://{tmp_path}/control"):
        one = server(address.replace("localhost", "127.0.0.1"))
        greet(one, client(one.endpoint))


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1:5", "udp://127.0.0.1:5", "tcp://", "tcp://127.0.0.1", "tcp://::1:5"]
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(LocalError, match=r"expected|in brackets"):
        ControlServer(address, hello("sender"), receiver_ranks=(0,))


def test_an_address_that_is_taken(server: Make) -> None:
    one = server()
    with pytest.raises(LocalError, match="cannot listen there"):
        server(one.endpoint)


def test_another_thread_is_refused(server: Make, client: Make) -> None:
    """A ZeroMQ socket that two threads use corrupts itself in silence (H24)."""
    one = server()
    two = client(one.endpoint)
    calls: list[Callable[[], Any]] = [
        one.poll, one.close, one.pending, lambda: one.wait(0), lambda: one.send(0, abort(1)), lambda: one.peer(0),
        lambda: one.send_side(0, b""), lambda: one.set_hello(hello("sender", 0, 99)), lambda: one.endpoint,
        two.poll, two.close, lambda: two.send(abort(1)), lambda: two.send_side(b""),
        lambda: two.set_hello(hello("receiver", 0, 99)),
    ]  # fmt: skip
    errors: list[Exception] = []

    def run() -> None:
        for call in calls:
            try:
                call()
            except LocalError as error:
                errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(errors) == len(calls)
    assert all("belongs to thread" in str(error) for error in errors)
    greet(one, two)


def test_after_close(server: Make, client: Make) -> None:
    one = server()
    two = client(one.endpoint)
    for end in (one, two):
        end.close()
        end.close()
        with pytest.raises(LocalError, match=r"used after close\(\)"):
            end.poll()
    with pytest.raises(LocalError, match="used after close"):
        two.send(abort(1))


def test_close_may_wait_for_what_was_sent(server: Make, client: Make) -> None:
    one = server()
    two = client(one.endpoint)
    greet(one, two)
    for room in range(100):
        assert two.send(abort(room))
    two.close(linger_s=HANG_S)
    heard = pump(one, until=lambda heard: len(heard[one]) == 100)[one]
    assert [item.message for item in heard if isinstance(item, Received)] == [abort(room) for room in range(100)]


@pytest.mark.parametrize(
    "fields",
    [{"rank": -1}, {"boot_id": -5}, {"data": bytes(70_000)}, {"transport": "x" * 65}, {"process": None}],
    ids=lambda fields: str(next(iter(fields))),
)
def test_a_hello_that_cannot_be_sent(fields: dict[str, Any]) -> None:
    with pytest.raises(LocalError, match="cannot be sent"):
        ControlServer(LOCAL, hello("sender", **fields), receiver_ranks=(0,))


def test_a_hello_of_the_wrong_side() -> None:
    with pytest.raises(LocalError, match="this end speaks to receivers"):
        ControlServer(LOCAL, hello("receiver"), receiver_ranks=(0,))
    with pytest.raises(LocalError, match="this end speaks to senders"):
        ControlClient("tcp://127.0.0.1:9", hello("sender"))


def test_a_message_that_cannot_be_encoded_is_the_callers_fault(server: Make, client: Make) -> None:
    one = server()
    two = client(one.endpoint)
    greet(one, two)
    wrong: Message = abort(-1)
    with pytest.raises(LocalError, match="cannot encode"):
        two.send(wrong)


# ---- keys ------------------------------------------------------------------------------------------------


def test_one_pair_for_all(server: Make, client: Make) -> None:
    keys = CurveKeys.generate()
    one = server(keys=keys)
    two = client(one.endpoint, keys=keys)
    greet(one, two)
    assert two.send(abort(1))
    assert pump(one, two, until=lambda heard: heard[one])[one] == [Received(0, RECEIVER_BOOT, abort(1))]


def test_a_pair_for_each(server: Make, client: Make) -> None:
    ours, theirs = CurveKeys.generate(), CurveKeys.generate()
    one = server(keys=ours, client_keys=[theirs.public])
    greet(one, client(one.endpoint, keys=theirs, server_key=ours.public))


def handshake_fails(endpoint: str, **options: Any) -> None:
    """Let a stranger try until its handshake has failed, with words ready to go out all the time."""
    failed = (
        zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    )
    with stranger(endpoint, **options) as other:
        monitor = other.get_monitor_socket(failed | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        for _ in range(10):
            other.send_multipart([head(b"H", 99, 0), b""])
            other.send_multipart([head(b"M", RECEIVER_BOOT), b"words"])
        assert monitor.poll(int(HANG_S * 1000))
        event = recv_monitor_message(monitor)["event"]
        assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
        other.disable_monitor()
        monitor.close(0)


@pytest.mark.parametrize("knows", ["nothing", "the-server", "too-much"])
def test_a_stranger_without_a_key_gets_nothing_through(server: Make, client: Make, knows: str) -> None:
    ours = CurveKeys.generate()
    one = server(keys=ours)
    other = CurveKeys.generate()
    options: dict[str, Any] = {}
    if knows == "the-server":
        options = {
            "curve_serverkey": ours.public.encode(), "curve_publickey": other.public.encode(),
            "curve_secretkey": other.secret.encode(),
        }  # fmt: skip
    if knows == "too-much":
        # The key of a member, and not the secret that belongs to it.
        options = {
            "curve_serverkey": ours.public.encode(), "curve_publickey": ours.public.encode(),
            "curve_secretkey": other.secret.encode(),
        }  # fmt: skip
    handshake_fails(one.endpoint, **options)
    two = client(one.endpoint, keys=ours)
    heard = greet(one, two)
    assert heard[one] == [Greeted(two.hello)]
    counters = one.counters
    assert (counters.malformed, counters.unknown, counters.stale, counters.hellos_refused) == (0, 0, 0, 0)


def test_a_client_does_not_speak_to_a_false_server(server: Make, client: Make) -> None:
    """Somebody else has taken the address: the client must not tell it anything."""
    ours, theirs = CurveKeys.generate(), CurveKeys.generate()
    false = server(keys=theirs, client_keys=[ours.public])
    two = client(false.endpoint, keys=ours)
    with_key = client(false.endpoint, 1, keys=ours, server_key=theirs.public)
    heard = greet(false, with_key)
    assert greetings(heard[false]) == [RECEIVER_BOOT]
    assert false.peer(0) is None
    assert not two.connected


def test_a_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    keys = CurveKeys.generate()
    path = tmp_path / "worker.key"
    keys.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert CurveKeys.load(path) == keys
    assert keys.secret not in repr(keys)
    with pytest.raises(LocalError, match="cannot write"):
        keys.save(path)
    path.chmod(0o640)
    with pytest.raises(LocalError, match=r"open to others .*chmod 600"):
        CurveKeys.load(path)


@pytest.mark.parametrize("content", [b"", b"one", b"a b c", b"\xff\xfe", b"x" * 40 + b"\n" + b"y" * 40])
def test_a_file_that_holds_no_keys(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "worker.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(LocalError, match="key"):
        CurveKeys.load(path)
    with pytest.raises(LocalError, match="cannot read"):
        CurveKeys.load(tmp_path / "none.key")


def test_keys_that_do_not_belong_together() -> None:
    one, two = CurveKeys.generate(), CurveKeys.generate()
    with pytest.raises(LocalError, match="does not belong"):
        CurveKeys(one.public, two.secret)
    with pytest.raises(LocalError, match="server_key was given without keys"):
        ControlClient("tcp://127.0.0.1:9", hello("receiver"), server_key=one.public)
    with pytest.raises(LocalError, match="client's public key is not"):
        ControlServer(LOCAL, hello("sender"), receiver_ranks=(0,), keys=one, client_keys=["short"])
