"""NCCL: the calls in the right order against a fake of the library, and the real thing where there are two GPUs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
import pytest
import torch

from fsm.errors import LocalError, RemoteError
from gpu_backend.layout import make_layout
from gpu_backend.pool import BlockPool, SourcePool
from gpu_backend.transports import nccl
from gpu_backend.transports.communicator import Chunk, Piece
from gpu_backend.transports.gloo import RECEIVER_RANK, SENDER_RANK, GroupPlace, StoreAddress
from tests.gpu_backend.kit_link import HANG_S

LAYOUT = make_layout(8, 256)


class FakeEvent:
    """Fires when a test says so, or at once."""

    def __init__(self, fired: bool) -> None:
        self.fired = fired

    def query(self) -> bool:
        return self.fired


class FakeGroup:
    """A group of two over queues. Like NCCL it moves bytes at the end of a coalesced group, and knows no tags."""

    def __init__(self, log: list[str], inbox: SimpleQueue[torch.Tensor], outbox: SimpleQueue[torch.Tensor]) -> None:
        self.log, self.inbox, self.outbox = log, inbox, outbox
        self.group: list[tuple[str, torch.Tensor]] | None = None
        self.aborted = threading.Event()

    def _start_coalescing(self) -> None:
        assert self.group is None
        self.group = []

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> str:
        return self._add("send", *tensors)

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> str:
        return self._add("recv", *tensors)

    def _add(self, what: str, tensor: torch.Tensor) -> str:
        assert self.group is not None, "outside of a group: this would make another communicator"
        self.group.append((what, tensor))
        self.log.append(f"{what} {tensor.numel()}")
        return what

    def _end_coalescing(self) -> Any:
        assert self.group is not None
        for what, tensor in self.group:
            if what == "send":
                self.outbox.put(tensor.clone())
            else:
                self._receive(tensor)
        self.group = None
        self.log.append("end")
        return self

    def _receive(self, tensor: torch.Tensor) -> None:
        while not self.aborted.is_set():
            try:
                came = self.inbox.get(timeout=0.05)
            except Empty:
                continue
            assert came.numel() == tensor.numel()
            tensor.copy_(came)
            return

    def wait(self) -> None:
        self.log.append("wait")

    def abort(self) -> None:
        self.aborted.set()
        self.log.append("abort")


class FakeLibrary(nccl.Library):
    def __init__(self, inbox: SimpleQueue[torch.Tensor], outbox: SimpleQueue[torch.Tensor]) -> None:
        super().__init__(torch.device("cpu"))
        self.log: list[str] = []
        self.group = FakeGroup(self.log, inbox, outbox)
        self.events: list[FakeEvent] = []
        self.fire = True

    def make_group(self, place: GroupPlace, closing: threading.Event) -> Any:
        return self.group

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        yield

    def record(self) -> FakeEvent:
        self.log.append("record")
        self.events.append(FakeEvent(self.fire or not self.events))
        return self.events[-1]

    def synchronize(self) -> None:
        self.log.append("synchronize")


class Two:
    """Both ends in this process."""

    def __init__(self, *, fire: bool = True, connect_timeout_s: float = HANG_S) -> None:
        one: SimpleQueue[torch.Tensor] = SimpleQueue()
        other: SimpleQueue[torch.Tensor] = SimpleQueue()
        self.libraries = {RECEIVER_RANK: FakeLibrary(one, other), SENDER_RANK: FakeLibrary(other, one)}
        self.ends = {}
        for rank, library in self.libraries.items():
            library.fire = fire
            place = GroupPlace(StoreAddress("127.0.0.1", 1), f"{rank}", rank, connect_timeout_s, HANG_S)
            self.ends[rank] = nccl.NcclCommunicator(place, library)

    def start(self) -> None:
        for end in self.ends.values():
            end.start()

    def close(self) -> None:
        for end in self.ends.values():
            end.close()
        for end in self.ends.values():
            assert end.join(HANG_S)


@pytest.fixture
def two() -> Iterator[Two]:
    both = Two()
    both.start()
    yield both
    both.close()


def until(happened: Any) -> None:
    waiting = threading.Event()
    for _ in range(int(HANG_S / 0.002)):
        if happened():
            return
        waiting.wait(0.002)
    raise AssertionError("it did not happen")


def chunk(*pieces: Piece) -> Chunk:
    return Chunk(len(pieces), pieces)


def test_chunks_meet_in_order_and_split_pieces_are_put_together_again(two: Two) -> None:
    source = torch.arange(100, dtype=torch.uint8)
    target = torch.zeros(100, dtype=torch.uint8)
    sent = two.ends[SENDER_RANK].post_send(chunk((source[:10], source[50:60]), (source[20:30],)))
    came = two.ends[RECEIVER_RANK].post_recv(chunk((target[:20],), (target[40:44], target[90:96])))
    until(lambda: sent.done and came.done)
    assert torch.equal(target[:20], torch.cat((source[:10], source[50:60])))
    assert torch.equal(torch.cat((target[40:44], target[90:96])), source[20:30])


def test_the_event_is_recorded_behind_the_receives(two: Two) -> None:
    """The exchange that makes the communicator has the same form as all that follows."""
    target = torch.zeros(8, dtype=torch.uint8)
    two.ends[SENDER_RANK].post_send(chunk((torch.ones(8, dtype=torch.uint8),)))
    work = two.ends[RECEIVER_RANK].post_recv(chunk((target[:4], target[4:])))
    until(lambda: work.done)
    assert two.libraries[RECEIVER_RANK].log == [
        "recv 1", "end", "wait", "record", "recv 8", "end", "wait", "record",
    ]  # fmt: skip


def test_nothing_is_complete_before_its_event_has_fired() -> None:
    two = Two(fire=False)
    two.start()
    try:
        target = torch.zeros(8, dtype=torch.uint8)
        two.ends[SENDER_RANK].post_send(chunk((torch.ones(8, dtype=torch.uint8),)))
        work = two.ends[RECEIVER_RANK].post_recv(chunk((target,)))
        until(lambda: len(two.libraries[RECEIVER_RANK].events) == 2)
        assert bool(target.all()) and not work.done
        two.libraries[RECEIVER_RANK].events[1].fired = True
        until(lambda: work.done)
    finally:
        two.close()


def test_what_an_abort_lets_go_is_not_complete() -> None:
    """An aborted kernel ends, and the event behind it fires, though its bytes never came."""
    two = Two(fire=False)
    two.start()
    end, library = two.ends[RECEIVER_RANK], two.libraries[RECEIVER_RANK]
    two.ends[SENDER_RANK].post_send(chunk((torch.ones(8, dtype=torch.uint8),)))
    work = end.post_recv(chunk((torch.zeros(8, dtype=torch.uint8),)))
    until(lambda: len(library.events) == 2)
    abort = library.group.abort

    def abort_and_fire() -> None:
        library.events[1].fired = True
        abort()

    library.group.abort = abort_and_fire  # type: ignore[method-assign]
    two.close()
    assert not work.done and end.error is None
    assert library.log[-2:] == ["abort", "synchronize"], "aborted first, then the stream is idle, then it is quiet"


def test_a_peer_that_does_not_answer_the_first_exchange_is_given_up() -> None:
    two = Two(fire=False, connect_timeout_s=0.05)
    end = two.ends[SENDER_RANK]
    two.libraries[SENDER_RANK].events.append(FakeEvent(True))  # so that the exchange's own does not fire
    end.start()
    until(lambda: end.error is not None)
    assert "could not be joined" in str(end.error) and not end.ready
    assert "abort" in two.libraries[SENDER_RANK].log
    end.close()
    assert end.join(HANG_S)


def test_two_ranks_on_one_gpu_are_refused() -> None:
    with pytest.raises(LocalError, match="refuses two ranks on one GPU"):
        nccl.refuse_one_gpu("GPU-1", "GPU-1")
    nccl.refuse_one_gpu("GPU-1", "GPU-2")


@pytest.mark.parametrize("data", [b"", b"\x92", msgspec.msgpack.encode([["h", 1], 7])])
def test_an_address_that_cannot_be_read_is_the_peers_fault(data: bytes) -> None:
    with pytest.raises(RemoteError, match="cannot be read"):
        nccl.read_address(data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nccl.NcclReceiver(BlockPool(LAYOUT, 1), rank=0, boot_id=1, options={}),
        lambda: nccl.NcclSender(SourcePool(LAYOUT, 1), rank=0, boot_id=1, options={}),
    ],
)
def test_memory_of_the_cpu_is_refused(make: Any) -> None:
    """With the reason: no CUDA here at all, or a pool in the wrong place."""
    with pytest.raises(LocalError, match=r"nccl (cannot run here|with a pool on cpu)"):
        make()


# --- the real library ---------------------------------------------------------------------------------


def two_gpus() -> str | None:
    """Why the tests below cannot run, or ``None``."""
    reason = nccl.absent()
    if reason is None and torch.cuda.device_count() < 2:
        reason = "NCCL needs two GPUs, and this machine has one"
    return reason


needs_two_gpus = pytest.mark.skipif(two_gpus() is not None, reason=str(two_gpus()))


def real_pair(messages: list[tuple[str, bytes]]) -> tuple[nccl.NcclReceiver, nccl.NcclSender]:
    """Both sides in this process, on two GPUs; NCCL allows that when they are issued from different threads."""
    receiver = nccl.NcclReceiver(BlockPool(LAYOUT, 8, device="cuda:0"), rank=0, boot_id=5, options={})
    sender = nccl.NcclSender(SourcePool(LAYOUT, 8, device="cuda:1"), rank=0, boot_id=7, options={})
    sender.connect(0, 5, receiver.descriptors())
    return receiver, sender


@pytest.mark.gpu
@needs_two_gpus
def test_every_byte_arrives_over_nccl() -> None:
    from gpu_backend.transports.base import Landed, Sent
    from tests.gpu_backend.kit_link import fill, grant_of, order_of
    from tests.gpu_backend.test_gloo import arena_after

    receiver, sender = real_pair([])
    fill(sender.pool, 7)
    orders = [
        order_of(grant_of(1, [6, 3], LAYOUT), [4, 2, 7], 16),
        order_of(grant_of(2, [1, 2, 5], LAYOUT, start=5), [6, 0, 5, 1], 24),
        order_of(grant_of(3, [0], LAYOUT, start=16), [4, 2, 7], 3, ["mrope_positions"]),
    ]
    reports: list[Any] = []

    def turn() -> bool:
        for _, data in sender.take_outbox():
            receiver.on_message(7, data)
        reports.extend(receiver.poll() + sender.poll())
        return len(reports) == 2 * len(orders)

    try:
        for order in orders:
            receiver.expect(order.grant)
            sender.write(order)
        until(turn)
        assert {type(report) for report in reports} == {Landed, Sent}
        on_cpu = BlockPool(LAYOUT, 8)
        assert torch.equal(receiver.pool.arena.cpu(), arena_after(on_cpu, 7, 8, orders))
    finally:
        sender.close()
        receiver.close()


@pytest.mark.gpu
@needs_two_gpus
def test_close_ends_a_receive_that_nobody_answers() -> None:
    """NCCL has no cancel: only the abort of the communicator ends a kernel that waits for its peer."""
    from tests.gpu_backend.kit_link import grant_of, order_of

    receiver, sender = real_pair([])
    order = order_of(grant_of(1, [6], LAYOUT), [4], 8)
    receiver.expect(order.grant)

    def joined() -> bool:
        for _, data in sender.take_outbox():
            receiver.on_message(7, data)
        link = receiver._links.get(7)
        return link is not None and link.communicator.ready

    until(joined)
    link = receiver._links[7]
    link.communicator.post_recv(chunk((receiver.pool.arena[:64],)))
    receiver.close()
    assert link.communicator.quiescent
    sender.close()
