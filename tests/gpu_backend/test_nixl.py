"""NIXL between two real processes: bytes, deaths on either side, cancels, and what a peer may say."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from fsm.errors import LocalError, RemoteError
from fsm.messages import Epoch
from gpu_backend.layout import make_layout
from gpu_backend.pool import BlockPool
from gpu_backend.transports import nixl_api
from gpu_backend.transports.base import Landed, SenderTransport, Sent, WriteFailed, WriteKey
from tests.gpu_backend.kit_transports import Child, arena_of, ends_of, grant_of, order_of, source_of, tokens_of, until

if all(importlib.util.find_spec(name) is None for name in nixl_api.MODULES):
    pytest.skip("nixl is not installed", allow_module_level=True)

from gpu_backend.transports import nixl
from gpu_backend.transports.nixl import NixlReceiver, NixlSender

LAYOUT = make_layout(64, 512, deepstack_levels=1)
BLOCKS = 64
SMALL_SLICES = {"slice_bytes": 100_000, "window": 2}


def receiver_child(boot_id: int = 77, rank: int = 0, **more: object) -> Child:
    return Child("receiver", LAYOUT, BLOCKS, transport="nixl", rank=rank, boot_id=boot_id, options={}, **more)


@pytest.fixture
def sender() -> Iterator[NixlSender]:
    pool = source_of(LAYOUT, BLOCKS)
    side = NixlSender(pool, rank=0, boot_id=5, options=SMALL_SLICES)
    yield side
    side.close()
    pool.close()


def connect(sender: SenderTransport, child: Child, boot_id: int = 77, rank: int = 0) -> None:
    sender.connect(rank, boot_id, child.ask("descriptors"))


def landed(child: Child, count: int) -> list[Landed]:
    found: list[Landed] = []

    def more() -> bool:
        found.extend(child.ask("reports"))
        return len(found) >= count

    until(more, f"{count} Landed")
    return found


def test_scattered_blocks_unaligned_starts_and_many_at_once_arrive_byte_by_byte(sender: NixlSender) -> None:
    # R10: a write begins at any token. Three requests at once must not mix, and what nobody granted stays as it was.
    orders = [
        order_of(grant_of([9, 3, 40, 11], 256, room=1), [7, 8, 2, 60]),
        order_of(grant_of([1, 0, 62], 150, room=2, seq=3, start=45), [20, 5, 21, 33]),
        order_of(grant_of([30, 29], 65, room=3, seq=1, start=63), [50, 52, 51], skip=frozenset(["mrope_positions"])),
    ]
    with receiver_child() as child:
        connect(sender, child)
        untouched = child.ask("tokens", [30, 29], 0, 65)["mrope_positions"]
        for order in orders:
            sender.write(order)
        assert ends_of(sender, [order.key for order in orders]) == {order.key: Sent(*order.key) for order in orders}
        assert sorted(landed(child, 3)) == sorted(
            Landed(order.grant.room, order.grant.epoch, order.grant.seq) for order in orders
        )
        for order in orders:
            got = child.ask("tokens", [ref.block for ref in order.grant.blocks], 0, order.tokens)
            meant = tokens_of(sender.pool, order.source_blocks, order.source_start, order.tokens)
            for name in order.skip:
                meant[name] = untouched
            assert got == meant
        # What the grants left open is as it was: behind their last token, and in a block of nobody.
        for blocks, start, count in (([62], 22, 42), ([29], 1, 63), ([31], 0, 64)):
            assert not any(any(data) for data in child.ask("tokens", blocks, start, count).values())
        # The aux header goes with token 0 only.
        assert child.ask("header", 9) == bytes(sender.pool.headers[7].numpy().tobytes())
        assert not any(child.ask("header", 1)) and not any(child.ask("header", 30))
    assert not sender.busy


def test_a_killed_receiver_fails_its_write_and_another_and_a_new_one_of_the_same_rank_are_served(
    sender: NixlSender,
) -> None:
    # One dead receiver must not end the others, nor its own successor (one failed write must not ban a peer).
    with receiver_child(boot_id=77) as first, receiver_child(boot_id=88, rank=1) as other:
        connect(sender, first)
        connect(sender, other, boot_id=88, rank=1)
        warm = order_of(grant_of([1], 64, room=1), [1])
        sender.write(warm)
        ends_of(sender, [warm.key])
        cut_off = order_of(grant_of(range(40), 40 * 64, room=2), range(40))
        beside = order_of(grant_of(range(40), 40 * 64, room=3, boot_id=88, receiver_rank=1), range(40))
        sender.write(cut_off)
        sender.write(beside)
        assert sender.poll() == []
        first.kill()
        ends = ends_of(sender, [cut_off.key, beside.key])
        assert isinstance(ends[cut_off.key], WriteFailed)
        assert ends[beside.key] == Sent(*beside.key)
        # Between writes: a write that begins after the death.
        late = order_of(grant_of([2], 64, room=4), [2])
        sender.write(late)
        assert isinstance(ends_of(sender, [late.key])[late.key], WriteFailed)
        sender.disconnect(0, 77)
        with receiver_child(boot_id=99) as second:
            connect(sender, second, boot_id=99)
            again = order_of(grant_of([5, 4], 100, room=5, boot_id=99), [8, 9])
            sender.write(again)
            assert ends_of(sender, [again.key]) == {again.key: Sent(*again.key)}
            assert landed(second, 1) == [Landed(5, Epoch(99, 1), 0)]
            assert second.ask("tokens", [5, 4], 0, 100) == tokens_of(sender.pool, [8, 9], 0, 100)


def test_a_failed_slice_is_not_quiet_while_the_receivers_process_lives(
    sender: NixlSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The connection may be gone while bytes that the kernel holds still arrive. Only the process's end shows it.
    with receiver_child() as child:
        connect(sender, child)
        warm = order_of(grant_of([1], 64, room=1), [1])
        sender.write(warm)
        ends_of(sender, [warm.key])
        order = order_of(grant_of(range(20), 20 * 64, room=2), range(20))
        post = sender._agent.post
        told: list[bool] = []

        def post_once(handle: object) -> bool:
            if not told:
                told.append(post(handle))
                raise nixl_api.NixlError("as if the connection were lost")
            return post(handle)

        monkeypatch.setattr(sender._agent, "post", post_once)
        sender.write(order)
        for _ in range(2000):
            assert sender.poll() == []
        # The link itself was made anew, and serves the next one meanwhile.
        other = order_of(grant_of([40], 64, room=3), [4])
        sender.write(other)
        assert ends_of(sender, [other.key]) == {other.key: Sent(*other.key)}
        assert child.ask("tokens", [40], 0, 64) == tokens_of(sender.pool, [4], 0, 64)
        child.kill()
        end = ends_of(sender, [order.key])[order.key]
        assert isinstance(end, WriteFailed) and "as if" in end.text


def test_a_killed_sender_is_followed_by_one_of_the_same_rank() -> None:
    pool = BlockPool(LAYOUT, BLOCKS)
    receiver = NixlReceiver(pool, rank=0, boot_id=77, options={})
    grants = [grant_of([1, 2], 100, room=1, counter=1), grant_of([8, 7], 100, room=1, counter=2)]
    for boot_id, grant in zip((5, 6), grants, strict=True):
        with Child("sender", LAYOUT, BLOCKS, transport="nixl", rank=0, boot_id=boot_id, options=SMALL_SLICES) as child:
            child.ask("connect", 0, 77, receiver.descriptors())
            receiver.expect(grant)
            assert receiver.busy
            child.ask("write", order_of(grant, [4, 5]))
            assert until(receiver.poll, "Landed") == [Landed(1, grant.epoch, 0)]
            # In the middle of something: a second write, begun and then cut off by the kill at the end.
            child.ask("write", order_of(grant_of(range(10, 50), 40 * 64, room=9, counter=boot_id), range(40)))
        receiver.peer_gone(boot_id)
        receiver.settle(1, grant.epoch, 0)
        assert not receiver.busy
    expected = tokens_of(source_of(LAYOUT, BLOCKS), [4, 5], 0, 100)
    assert tokens_of(pool, [1, 2], 0, 100) == tokens_of(pool, [8, 7], 0, 100) == expected
    receiver.close()
    receiver.close()
    assert receiver.poll() == []


def test_a_cancel_takes_effect_between_slices(sender: NixlSender) -> None:
    with receiver_child() as child:
        connect(sender, child)
        warm = order_of(grant_of([1], 64, room=1), [1])
        sender.write(warm)
        ends_of(sender, [warm.key])
        landed(child, 1)
        order = order_of(grant_of(range(40), 40 * 64, room=2), range(40))
        sender.write(order)
        assert sender.poll() == []
        sender.cancel(*order.key)
        assert ends_of(sender, [order.key]) == {order.key: WriteFailed(*order.key, "cancelled")}
        # Nothing of it starts later, and the receiver is not told that it landed.
        before = child.ask("tokens", [39], 0, 64)
        assert not any(any(data) for data in before.values())
        follow = order_of(grant_of([50], 64, room=3), [3])
        sender.write(follow)
        ends_of(sender, [follow.key])
        assert landed(child, 1) == [Landed(3, follow.grant.epoch, 0)]
        assert child.ask("tokens", [39], 0, 64) == before
        sender.cancel(*order.key)
        assert sender.poll() == []


def test_a_new_process_takes_the_place_of_the_old_one_and_a_second_register_changes_nothing(sender: NixlSender) -> None:
    with receiver_child(boot_id=77) as old, receiver_child(boot_id=78) as new:
        connect(sender, old)
        connect(sender, old)
        long = order_of(grant_of(range(60), 60 * 64, room=1), range(60))
        sender.write(long)
        connect(sender, new, boot_id=78)
        stale = order_of(grant_of([1], 64, room=2), [1])
        fresh = order_of(grant_of([1], 64, room=3, boot_id=78), [1])
        sender.write(stale)
        sender.write(fresh)
        ends = ends_of(sender, [long.key, stale.key, fresh.key])
        assert ends[fresh.key] == Sent(*fresh.key)
        assert isinstance(ends[long.key], WriteFailed) and isinstance(ends[stale.key], WriteFailed)
        # A disconnect that comes late means the old one, not its successor.
        sender.disconnect(0, 77)
        more = order_of(grant_of([2], 64, room=4, boot_id=78), [1])
        sender.write(more)
        assert ends_of(sender, [more.key]) == {more.key: Sent(*more.key)}
        assert len(sender._links) == 1, "the link to the old process was not given back"


def test_the_same_process_may_come_under_a_new_boot_id(sender: NixlSender) -> None:
    # A receiver that lost a rank goes on under a new name, with the same memory and the same agent.
    with receiver_child(boot_id=77) as child:
        connect(sender, child, boot_id=77)
        connect(sender, child, boot_id=500)
        order = order_of(grant_of([1], 64, boot_id=500), [1])
        sender.write(order)
        assert ends_of(sender, [order.key]) == {order.key: Sent(*order.key)}


@pytest.fixture(scope="module")
def announced() -> Iterator[bytes]:
    """What a receiver announces that is there."""
    pool = BlockPool(LAYOUT, BLOCKS)
    receiver = NixlReceiver(pool, rank=0, boot_id=1, options={})
    yield receiver.descriptors()
    receiver.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "malformed"),
        ({"agent": "resumark/receiver/0/99"}, "not of"),
        ({"metadata": b""}, "make no sense"),
        ({"metadata": b"nonsense"}, "make no sense"),
        ({"size_bytes": 4096}, "expected"),
        ({"blocks": BLOCKS + 1}, "expected"),
        ({"blocks": 0}, "malformed"),
        ({"address": 2**64 - 8192}, "expected"),
        ({"memory": "FILE"}, "malformed"),
        ({"device": -1}, "malformed"),
        ({"process": 7}, "malformed"),
    ],
    ids=str,
)
def test_descriptors_that_make_no_sense_are_refused(
    sender: NixlSender, announced: bytes, change: dict[str, object], why: str
) -> None:
    fields = dict(zip(nixl._Descriptors.__struct_fields__, msgspec.msgpack.decode(announced), strict=True))
    with pytest.raises(RemoteError, match=f"nixl: .*{why}"):
        sender.connect(0, 77, msgspec.msgpack.encode(list({**fields, **change}.values())))
    order = order_of(grant_of([1], 64), [1])
    sender.write(order)
    assert isinstance(sender.poll()[0], WriteFailed)
    # The same ones, unchanged, are taken: nothing of the refused ones was kept.
    sender.connect(0, 77, announced)


def test_cut_off_descriptors_are_refused(sender: NixlSender, announced: bytes) -> None:
    for end in range(0, len(announced), 37):
        with pytest.raises(RemoteError):
            sender.connect(0, 77, announced[:end])


def test_two_ranks_cannot_announce_one_arena(sender: NixlSender, announced: bytes) -> None:
    sender.connect(0, 77, announced)
    with pytest.raises(RemoteError, match="known already"):
        sender.connect(1, 78, announced)


def test_a_grant_that_the_peer_cannot_have_meant_fails_alone(sender: NixlSender) -> None:
    with receiver_child() as child:
        connect(sender, child)
        for number, (blocks, capacity) in enumerate(
            [((BLOCKS,), 64), ((1, 1), 128), ((-1,), 64), ((3,), 65), ((), 64), ((2, 2**31 - 1), 128)]
        ):
            wrong = order_of(grant_of(blocks, capacity, room=10 + number), [1, 2])
            right = order_of(grant_of([2], 64, room=100 + number), [1])
            sender.write(wrong)
            sender.write(right)
            ends = ends_of(sender, [wrong.key, right.key])
            assert isinstance(ends[wrong.key], WriteFailed), blocks
            assert ends[right.key] == Sent(*right.key)
        assert not any(any(data) for data in child.ask("tokens", [1, 3], 0, 128).values())
        # A range that is well formed and not registered: NIXL refuses it, and the write ends, since nothing began.
        said = msgspec.msgpack.decode(child.ask("descriptors"))
        said[nixl._Descriptors.__struct_fields__.index("address")] += 1 << 40
        sender.disconnect(0, 77)
        until(lambda: not sender.poll() and not sender._links, "the link to be given back")
        sender.connect(0, 77, msgspec.msgpack.encode(said))
        order = order_of(grant_of([1], 64), [1])
        sender.write(order)
        assert isinstance(ends_of(sender, [order.key])[order.key], WriteFailed)


def test_an_order_that_contradicts_itself_is_this_process_s_mistake(sender: NixlSender) -> None:
    good = order_of(grant_of([1], 64), [1])
    changes: list[dict[str, Any]] = [
        {"tokens": 65}, {"tokens": 0}, {"source_start": 1}, {"source_start": -1}, {"source_blocks": (BLOCKS,)},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(LocalError):
            sender.write(good._replace(**change))


def test_notices_that_make_no_sense_are_dropped_and_counted(sender: NixlSender) -> None:
    # Anything may send a notice to an agent; a wrong one must neither raise nor pass for a Landed.
    pool = BlockPool(LAYOUT, BLOCKS)
    receiver = NixlReceiver(pool, rank=0, boot_id=77, options={})
    sender.connect(0, 77, receiver.descriptors())
    name = receiver._agent.name if receiver._agent else ""
    good = [1, [77, 1], 0, 3]
    for wrong in (b"x", b"\xff" * 50, [1, [77, 1], 1, 3], [-1, [77, 1], 0, 3], [1, [77, 1], 0], [*good, 0], "text"):
        data = wrong if isinstance(wrong, bytes) else msgspec.msgpack.encode(wrong)
        sender._agent._agent.send_notif(name, data)
    sender._agent._agent.send_notif(name, msgspec.msgpack.encode(good))
    reports: list[object] = []

    def turn() -> bool:
        sender.poll()
        reports.extend(receiver.poll())
        return bool(reports) and receiver.counts.get("dropped_notices") == 7

    until(turn, "the good notice and seven dropped")
    assert reports == [Landed(1, Epoch(77, 1), 3)]
    receiver.close()


def test_over_tcp_what_was_started_is_waited_for_and_a_senders_exit_proves_nothing() -> None:
    # The asynchronous engine behind the same calls. A transfer that was started ends by itself or not at all, and a
    # stopped receiver holds it open: WriteFailed in that time would give its blocks to someone else, and the bytes
    # would follow.
    tcp = {"transport": "nixl", "rank": 0, "environment": {"UCX_TLS": "tcp"}}
    layout = make_layout(256, 4096)
    with (
        Child("receiver", layout, 24, boot_id=77, options={}, **tcp) as receiver,
        Child("sender", layout, 24, boot_id=5, options={"slice_bytes": 4 << 20}, **tcp) as sender,
    ):
        assert receiver.ask("traits").process_exit_proves is False
        sender.ask("connect", 0, 77, receiver.ask("descriptors"))
        order = order_of(grant_of(range(24), 24 * 256), range(23, -1, -1))
        sender.ask("write", order)
        assert until(lambda: sender.ask("reports"), "Sent") == [Sent(*order.key)]
        assert landed(receiver, 1) == [Landed(1, order.grant.epoch, 0)]
        assert receiver.ask("tokens", [0, 23], 0, 512) == sender.ask("tokens", [23, 0], 0, 512)

        receiver.signal(signal.SIGSTOP)
        held = order_of(grant_of(range(24), 24 * 256, seq=1), range(24))
        sender.ask("write", held)
        for _ in range(100):
            assert sender.ask("reports") == []
        sender.ask("cancel", *held.key)
        for _ in range(100):
            assert sender.ask("reports") == [], "what the kernel holds may still arrive"
        receiver.signal(signal.SIGCONT)
        assert until(lambda: sender.ask("reports"), "WriteFailed") == [WriteFailed(*held.key, "cancelled")]

        receiver.signal(signal.SIGSTOP)
        last = order_of(grant_of(range(24), 24 * 256, seq=2), range(24))
        sender.ask("write", last)
        for _ in range(100):
            assert sender.ask("reports") == []
        receiver.kill()
        (end,) = until(lambda: sender.ask("reports"), "WriteFailed")
        assert isinstance(end, WriteFailed) and WriteKey(*end[:4]) == last.key


def test_where_cma_cannot_be_used_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl, "_cma_refused", lambda: "")
    for allowed, usable in (
        ("all", True), ("tcp", False), ("cma,tcp", True), ("sm,tcp", True), ("^cma", False), ("^tcp", True),
        ("rc,tcp", False),
    ):  # fmt: skip
        monkeypatch.setenv("UCX_TLS", allowed)
        assert (nixl.without_cma() == "") is usable, allowed
    monkeypatch.delenv("UCX_TLS")
    assert nixl.without_cma() == ""
    monkeypatch.setattr(nixl, "_cma_refused", lambda: "no")
    assert nixl.without_cma() == "no"


def test_closing_twice_and_the_poll_after_it(sender: NixlSender) -> None:
    sender.close()
    sender.close()
    assert sender.poll() == []


def test_wrong_options_are_refused_by_name() -> None:
    pool = source_of(LAYOUT, 1)
    for name, value in (("slice_bytes", 0), ("window", -1), ("slice_bytes", True), ("window", "4")):
        with pytest.raises(LocalError, match=name):
            NixlSender(pool, rank=0, boot_id=1, options={name: value})


def test_the_library_leaves_logging_as_it_was() -> None:
    import logging

    nixl_api.load()
    assert logging.raiseExceptions is True
    assert os.environ.get("NIXL_LOG_LEVEL") or logging.getLogger("nixl").level == logging.WARNING


def test_a_transfer_in_a_state_that_nobody_knows_has_not_ended_well() -> None:
    assert nixl_api.Agent._done("DONE") is True and nixl_api.Agent._done("PROC") is False
    with pytest.raises(nixl_api.NixlError, match="ERR"):
        nixl_api.Agent._done("ERR")


def test_two_sides_in_one_process_move_a_whole_arena(sender: NixlSender) -> None:
    # Not how it is used, but the shortest way to compare every byte of both arenas.
    pool = BlockPool(LAYOUT, BLOCKS)
    receiver = NixlReceiver(pool, rank=0, boot_id=77, options={})
    sender.connect(0, 77, receiver.descriptors())
    order = order_of(grant_of(range(BLOCKS), BLOCKS * 64), range(BLOCKS))
    sender.write(order)
    ends_of(sender, [order.key], also=receiver.poll)
    end = pool.map.aux_base
    assert arena_of(pool)[:end] == arena_of(sender.pool)[:end]
    receiver.close()
