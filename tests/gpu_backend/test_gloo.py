"""gloo between real processes: every byte where it belongs, and the truth told when a process dies.

The timeouts of the transport are set far above the limit at which a test counts as hanging, so a death that is only
noticed by a timeout fails here.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
import torch

from fsm.errors import LocalError, RemoteError
from fsm.messages import Epoch, Layout
from gpu_backend.layout import AUX_BYTES, make_layout, write_spans
from gpu_backend.pool import BlockPool, SourcePool
from gpu_backend.transports import gloo
from gpu_backend.transports.base import Broken, Landed, LinkLost, Sent, WriteFailed, WriteOrder
from gpu_backend.transports.ordered import OrderedReceiver
from tests.gpu_backend.kit_link import (
    HANG_S,
    RECEIVER,
    SENDER,
    Peer,
    fill,
    grant_of,
    make_side,
    order_of,
)

pytestmark = pytest.mark.skipif(gloo.absent() is not None, reason=f"no gloo: {gloo.absent()}")

NEVER: Mapping[str, Any] = {"connect_timeout_s": 10 * HANG_S, "stall_timeout_s": 10 * HANG_S}
SMALL = make_layout(8, 256, deepstack_levels=1)
HUGE = make_layout(16_384, 8192)
"""256 MiB of embeddings in one block: with the limit below, one message."""
NOBODY = 99
"""The boot_id of a process that says it is coming, and does not come."""
ONE_MESSAGE = {**NEVER, "piece_bytes": 1 << 28}


@pytest.fixture
def ends() -> Iterator[list[Any]]:
    """What is put here is ended after the test, whatever happened."""
    started: list[Any] = []
    yield started
    for thing in reversed(started):
        thing.end() if isinstance(thing, Peer) else thing.close()


def local_receiver(ends: list[Any], layout: Layout, blocks: int, options: Mapping[str, Any]) -> OrderedReceiver:
    side = make_side("receiver", layout, blocks, RECEIVER, options)
    ends.append(side)
    assert isinstance(side, OrderedReceiver)
    return side


def with_peer(ends: list[Any], local: Any, layout: Layout, blocks: int, boot_id: int, options: Any) -> Peer:
    peer = Peer(local, layout, blocks, boot_id, options)
    ends.append(peer)
    return peer


def arena_after(target: BlockPool, seed: int, source_blocks: int, orders: list[WriteOrder]) -> torch.Tensor:
    """The target's arena after these writes from a source that was filled with ``seed``."""
    source = SourcePool(target.layout, source_blocks)
    fill(source, seed)
    arena = torch.zeros(target.map.bytes, dtype=torch.uint8)
    for order in orders:
        blocks = [ref.block for ref in order.grant.blocks]
        for span in write_spans(
            source.map, order.source_blocks, order.source_start, target.map, blocks, order.tokens,
            skip=order.skip, aux=order.first,
        ):  # fmt: skip
            arena[span.target : span.target + span.bytes] = source.arena[span.source : span.source + span.bytes]
    return arena


def some_orders(sender: int = SENDER) -> list[WriteOrder]:
    """A first chunk with its header, an unaligned start over blocks that are not adjacent, a short last one, skips."""
    return [
        order_of(grant_of(1, [9, 3], SMALL, sender=sender), [4, 2, 7], 16),
        order_of(grant_of(2, [1, 2, 8], SMALL, start=5, sender=sender), [6, 0, 5, 1], 24),
        order_of(grant_of(3, [0], SMALL, start=16, sender=sender), [4, 2, 7], 3, ["mrope_positions"]),
        order_of(grant_of(4, [5], SMALL, sender=sender), [3], 1, ["deepstack"]),
    ]


@pytest.mark.parametrize("piece_bytes", [1000, 1 << 20])
def test_every_byte_arrives_where_it_belongs(ends: list[Any], piece_bytes: int) -> None:
    options = {**NEVER, "piece_bytes": piece_bytes}
    receiver = local_receiver(ends, SMALL, 10, options)
    peer = with_peer(ends, receiver, SMALL, 8, SENDER, options)
    orders = some_orders()
    for order in orders:
        receiver.expect(order.grant)
        peer.command("write", order)
    peer.until(lambda: len(peer.local_reports) == len(peer.reports) == len(orders), "the transfer")
    epochs = [(order.grant.room, order.grant.epoch) for order in orders]
    assert peer.local_reports == [Landed(room, epoch, 0) for room, epoch in epochs]
    assert peer.reports == [Sent(room, epoch, 0, 0) for room, epoch in epochs]
    assert torch.equal(receiver.pool.arena, arena_after(receiver.pool, SENDER, 8, orders))


def test_many_batches_of_pieces_and_bounce_buffers_arrive(ends: list[Any]) -> None:
    """More pieces than are posted together, all of them through bounce buffers on the sender's side."""
    layout = make_layout(64, 512)
    options = {**NEVER, "piece_bytes": 4096}
    receiver = local_receiver(ends, layout, 40, options)
    peer = with_peer(ends, receiver, layout, 40, SENDER, options)
    source_blocks = list(range(39, -1, -1))
    order = order_of(grant_of(1, range(1, 40), layout, start=33), source_blocks, 39 * 64 - 40)
    for room in range(2):
        again = order._replace(grant=msgspec.structs.replace(order.grant, room=room))
        receiver.expect(again.grant)
        peer.command("write", again)
    peer.until(lambda: len(peer.local_reports) == 2, "the transfer")
    assert torch.equal(receiver.pool.arena, arena_after(receiver.pool, SENDER, 40, [order]))


def test_a_sender_killed_in_the_middle_of_a_message_is_noticed_and_can_be_replaced(ends: list[Any]) -> None:
    """Broken is said although the receive under way never ends by itself, and what it says is true."""
    receiver = local_receiver(ends, HUGE, 1, ONE_MESSAGE)
    peer = with_peer(ends, receiver, HUGE, 1, SENDER, ONE_MESSAGE)
    order = order_of(grant_of(1, [0], HUGE), [0], HUGE.block_tokens)
    receiver.expect(order.grant)
    peer.command("write", order)
    peer.until(lambda: receiver.pool.arena[0], "the first byte")
    peer.kill()
    peer.until(lambda: peer.local_reports, "a report")
    assert [(report.boot_id, report.quiescent) for report in peer.local_reports] == [(SENDER, True)]
    assert not receiver.pool.arena[HUGE.block_tokens * 8192 * 2 - 1], "the kill came too late to test anything"
    assert not transport_threads(), "the threads of a link that is over have ended"

    receiver.settle(1, order.grant.epoch, 0)
    receiver.pool.arena.zero_()
    again = with_peer(ends, receiver, HUGE, 1, SENDER + 1, ONE_MESSAGE)
    order = order_of(grant_of(2, [0], HUGE, sender=SENDER + 1), [0], 5)
    receiver.expect(order.grant)
    again.command("write", order)
    again.until(lambda: again.local_reports, "the transfer from the new process")
    assert again.local_reports == [Landed(2, order.grant.epoch, 0)]
    assert torch.equal(receiver.pool.arena, arena_after(receiver.pool, SENDER + 1, 1, [order]))


def test_a_receiver_killed_in_the_middle_of_a_message_is_noticed_and_can_be_replaced(ends: list[Any]) -> None:
    sender = make_side("sender", HUGE, 1, SENDER, ONE_MESSAGE)
    ends.append(sender)
    peer = with_peer(ends, sender, HUGE, 1, RECEIVER, ONE_MESSAGE)
    order = order_of(grant_of(1, [0], HUGE), [0], HUGE.block_tokens)
    waiting = order_of(grant_of(2, [0], HUGE), [0], 1)
    peer.command("expect", order.grant)
    peer.command("die when written", 0)
    peer.until(lambda: sender._links, "the link")
    sender.write(order)  # type: ignore[union-attr]
    sender.write(waiting)  # type: ignore[union-attr]
    peer.until(lambda: len(peer.local_reports) == 3, "the reports")
    failed, failed_too, lost = peer.local_reports
    assert isinstance(failed, WriteFailed) and failed.room == 1
    assert isinstance(failed_too, WriteFailed) and failed_too.room == 2
    assert isinstance(lost, LinkLost) and lost.receiver_rank == 0
    peer.process.join(HANG_S)
    assert peer.process.exitcode == -signal.SIGKILL
    assert not transport_threads()

    again = with_peer(ends, sender, HUGE, 1, RECEIVER + 1, ONE_MESSAGE)
    grant = msgspec.structs.replace(order.grant, epoch=Epoch(RECEIVER + 1, 1))
    again.command("expect", grant)
    again.until(lambda: sender._links, "the new link")
    sender.write(order_of(grant, [0], 5))  # type: ignore[union-attr]
    again.until(lambda: again.local_reports and again.reports, "the transfer to the new process")
    assert again.local_reports == [Sent(1, grant.epoch, 0, 0)] and again.reports == [Landed(1, grant.epoch, 0)]


def test_the_death_of_an_idle_peer_is_noticed(ends: list[Any]) -> None:
    receiver = local_receiver(ends, SMALL, 10, NEVER)
    peer = with_peer(ends, receiver, SMALL, 8, SENDER, NEVER)
    order = some_orders()[0]
    receiver.expect(order.grant)
    peer.command("write", order)
    peer.until(lambda: peer.reports and peer.local_reports, "the transfer")
    receiver.settle(1, order.grant.epoch, 0)
    peer.local_reports.clear()
    peer.kill()
    peer.until(lambda: peer.local_reports, "a report")
    assert [(type(report), report.boot_id) for report in peer.local_reports] == [(Broken, SENDER)]


def test_close_does_not_wait_for_a_peer_that_stands_still(ends: list[Any]) -> None:
    """A stopped peer holds a message half sent. Closing ends our half of it, threads included."""
    receiver = local_receiver(ends, HUGE, 1, ONE_MESSAGE)
    peer = with_peer(ends, receiver, HUGE, 1, SENDER, ONE_MESSAGE)
    order = order_of(grant_of(1, [0], HUGE), [0], HUGE.block_tokens)
    receiver.expect(order.grant)
    peer.command("write", order)
    peer.until(lambda: receiver.pool.arena[0], "the first byte")
    peer.kill(signal.SIGSTOP)
    receiver.close()
    before = receiver.pool.arena.clone()
    assert not transport_threads() and not before[HUGE.block_tokens * 8192 * 2 - 1]
    peer.kill(signal.SIGCONT)
    peer.until(lambda: peer.reports, "the other side's report")
    assert [type(report) for report in peer.reports] == [WriteFailed, LinkLost]
    assert torch.equal(receiver.pool.arena, before), "nothing is written after close"


@pytest.mark.parametrize("how", ["leave", "close"])
def test_a_process_with_a_link_ends_cleanly(ends: list[Any], how: str) -> None:
    """Threads that are blocked in the library must neither keep the process nor abort it."""
    receiver = local_receiver(ends, SMALL, 10, NEVER)
    peer = with_peer(ends, receiver, SMALL, 8, SENDER, NEVER)
    unknown, known = some_orders()[:2]
    receiver.expect(known.grant)
    peer.command("write", unknown)
    peer.command("write", known)
    peer.until(lambda: len(peer.reports) == 2, "the transfer")
    peer.command(how)
    peer.until(lambda: len(peer.local_reports) == 2, "the end of the link")
    peer.process.join(HANG_S)
    assert peer.process.exitcode == 0
    assert [type(report) for report in peer.local_reports] == [Landed, Broken]


def test_a_peer_that_never_comes_is_given_up(ends: list[Any]) -> None:
    options = {**NEVER, "connect_timeout_s": 0.2}
    receiver = local_receiver(ends, SMALL, 10, options)
    opening = msgspec.msgpack.encode(["open", RECEIVER, 1, SMALL.fingerprint(), 1 << 20])
    receiver.on_message(NOBODY, opening)
    reports: list[Any] = []
    for _ in range(int(HANG_S * 100)):
        reports += receiver.poll()
        if reports:
            break
        threading.Event().wait(0.01)
    assert [report.quiescent for report in reports] == [True]
    assert "the peer could not be joined" in reports[0].text


def test_close_does_not_wait_for_a_peer_that_never_comes(ends: list[Any]) -> None:
    receiver = local_receiver(ends, SMALL, 10, {**NEVER, "connect_timeout_s": 5.0})
    opening = msgspec.msgpack.encode(["open", RECEIVER, 1, SMALL.fingerprint(), 1 << 20])
    receiver.on_message(NOBODY, opening)
    link = receiver._links[NOBODY].communicator
    receiver.close()
    assert link.quiescent and not link.ready


def test_a_process_that_waits_for_a_peer_ends_cleanly(ends: list[Any]) -> None:
    sender = make_side("sender", SMALL, 1, SENDER, NEVER)
    ends.append(sender)
    peer = with_peer(ends, sender, SMALL, 1, RECEIVER, NEVER)
    opening = msgspec.msgpack.encode(["open", RECEIVER, 1, SMALL.fingerprint(), 1 << 20])
    peer.command("side", NOBODY, opening)
    peer.command("leave")
    peer.process.join(HANG_S)
    assert peer.process.exitcode == 0


def test_the_store_listens_on_the_named_interface_only(ends: list[Any]) -> None:
    """Whoever reaches the store can take part: it must not be open to the network unless somebody says so."""
    import socket

    receiver = local_receiver(ends, SMALL, 1, NEVER)
    address = gloo.read_address(receiver._address())
    assert address.host == "127.0.0.1"
    with socket.create_connection((address.host, address.port), HANG_S) as connection:
        assert connection.getpeername()[0] == "127.0.0.1"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", address.port), HANG_S).close()


@pytest.mark.parametrize(("host", "text"), [("192.0.2.1", "cannot listen there"), ("0.0.0.0", "one interface")])
def test_an_address_that_senders_cannot_use_is_refused(host: str, text: str) -> None:
    with pytest.raises(LocalError, match=text):
        gloo.GlooReceiver(BlockPool(SMALL, 1), rank=0, boot_id=1, options={"host": host})


@pytest.mark.parametrize("data", [b"", b"\x91\xa1h", msgspec.msgpack.encode(["h", 0]), msgspec.msgpack.encode("h")])
def test_an_address_that_cannot_be_read_is_the_peers_fault(data: bytes) -> None:
    with pytest.raises(RemoteError, match="cannot be read"):
        gloo.read_address(data)


@pytest.mark.parametrize("name", ["connect_timeout_s", "stall_timeout_s"])
def test_a_timeout_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(LocalError, match=name):
        gloo.GlooSender(SourcePool(SMALL, 1), rank=0, boot_id=1, options={name: 0})


def test_the_header_is_part_of_the_first_chunk_only() -> None:
    """The tests above compare whole arenas; this says that the headers in them are not all zeros."""
    pool = BlockPool(SMALL, 1)
    fill(pool, SENDER)
    assert bool(pool.arena[pool.map.aux_base : pool.map.aux_base + AUX_BYTES].all())


def transport_threads() -> list[str]:
    """Those of links between the processes of these tests that touch memory: not the one that says they have ended."""
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith(f"gloo-{RECEIVER}/{SENDER}-")]
    return [name for name in names if not name.endswith("-closer")]
