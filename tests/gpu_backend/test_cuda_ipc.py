"""CUDA IPC. What needs a GPU is skipped without one; what a peer says, and where it cannot run, is tested anywhere."""

from __future__ import annotations

import pytest
import torch

from fsm.errors import LocalError
from gpu_backend.layout import make_layout
from gpu_backend.pool import BlockPool, SourcePool
from gpu_backend.transports import cuda_ipc
from gpu_backend.transports.base import Sent, WriteFailed
from tests.gpu_backend.kit_transports import Child, ends_of, grant_of, order_of, source_of, tokens_of, until

LAYOUT = make_layout(64, 512)
BLOCKS = 64

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def gpu(test: object) -> object:
    for mark in needs_gpu:
        test = mark(test)
    return test


def receiver_child(boot_id: int = 77) -> Child:
    return Child("receiver", LAYOUT, BLOCKS, transport="cuda-ipc", device="cuda", rank=0, boot_id=boot_id, options={})


def test_a_pool_on_the_host_is_refused() -> None:
    with pytest.raises(LocalError, match="cpu"):
        cuda_ipc.CudaIpcReceiver(BlockPool(LAYOUT, 1), rank=0, boot_id=1, options={})
    with pytest.raises(LocalError, match="cpu"):
        cuda_ipc.CudaIpcSender(SourcePool(LAYOUT, 1), rank=0, boot_id=1, options={})


def test_without_a_device_it_is_absent_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in (cuda_ipc.absent() or "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda_ipc.absent() is None


def test_arrival_needs_no_word_of_the_receiver() -> None:
    # The event is behind the copy on the same stream, so a passed event is the proof.
    assert not cuda_ipc.TRAITS.landed_required and cuda_ipc.TRAITS.process_exit_proves


@gpu
def test_scattered_blocks_and_unaligned_starts_arrive_byte_by_byte() -> None:
    pool = source_of(LAYOUT, BLOCKS, device="cuda")
    sender = cuda_ipc.CudaIpcSender(pool, rank=0, boot_id=5, options={"slice_bytes": 100_000})
    orders = [
        order_of(grant_of([9, 3, 40, 11], 256, room=1), [7, 8, 2, 60]),
        order_of(grant_of([1, 0, 62], 150, room=2, seq=3, start=45), [20, 5, 21, 33]),
    ]
    with receiver_child() as child:
        sender.connect(0, 77, child.ask("descriptors"))
        sender.connect(0, 77, child.ask("descriptors"))
        for order in orders:
            sender.write(order)
        assert ends_of(sender, [order.key for order in orders]) == {order.key: Sent(*order.key) for order in orders}
        for order in orders:
            got = child.ask("tokens", [ref.block for ref in order.grant.blocks], 0, order.tokens)
            assert got == tokens_of(pool, order.source_blocks, order.source_start, order.tokens)
        assert not any(any(data) for data in child.ask("tokens", [62], 22, 42).values())
        sender.close()


@gpu
def test_a_cancel_takes_effect_between_slices_and_a_new_receiver_is_served() -> None:
    pool = source_of(LAYOUT, BLOCKS, device="cuda")
    sender = cuda_ipc.CudaIpcSender(pool, rank=0, boot_id=5, options={"slice_bytes": 100_000, "window": 1})
    with receiver_child() as child:
        sender.connect(0, 77, child.ask("descriptors"))
        order = order_of(grant_of(range(40), 40 * 64, room=2), range(40))
        sender.write(order)
        sender.poll()
        sender.cancel(*order.key)
        assert ends_of(sender, [order.key]) == {order.key: WriteFailed(*order.key, "cancelled")}
        assert not any(any(data) for data in child.ask("tokens", [39], 0, 64).values())
        sender.disconnect(0, 77)
        until(lambda: not sender.poll() and not sender._links, "the link to be given back")
    with receiver_child(boot_id=78) as child:
        sender.connect(0, 78, child.ask("descriptors"))
        again = order_of(grant_of([5, 4], 100, room=5, boot_id=78), [8, 9])
        sender.write(again)
        assert ends_of(sender, [again.key]) == {again.key: Sent(*again.key)}
        assert child.ask("tokens", [5, 4], 0, 100) == tokens_of(pool, [8, 9], 0, 100)
        sender.close()
