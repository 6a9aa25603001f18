"""Transport ``nccl``: two-sided, between two GPUs. **Written, not yet run on two GPUs.**

Order, announcements and draining are those of ``ordered.py``, and are tested with a recorded fake. The calls below
are tested with a fake of the library. What is untested is the library itself: ``tests/gpu_backend/test_nccl.py`` has
the tests for it, which skip with fewer than two GPUs.

Every link has its own ``ProcessGroupNCCL`` of two, made in a store as for gloo; the receiver is rank 0. Control and
data share no communicator. What NCCL demands:

* It refuses two ranks on one GPU, so ``connect`` refuses them first, with a text that says so.
* It has no tags, and matches sends and receives per peer in the order of issue. One poster thread per link issues
  them, in the order that the side channel has fixed.
* Its communicators are made by the first operation, which is collective for the pair. A small exchange when the link
  is made forces that, in the same coalesced form as all later ones: the single form would make another communicator.
* A kernel of a send occupies the GPU until it is matched. So pieces go in groups (``_start_coalescing``), a link has
  a stream of its own, and data goes one way only.
* ``work.wait()`` orders streams and waits for nothing. An event behind the receive, and behind the copies out of
  bounce buffers, is the proof that a batch has landed; on the sender's side, that its memory is not read any more.
* There is no cancel of one operation. The end of a link is ``abort``. It ends kernels that never completed, and an
  event behind such a kernel fires then as well: so nothing counts as complete once the link is closing.
* A dead peer may go unnoticed by NCCL. The control plane tells (``peer_gone``, ``disconnect``, the ``Over`` message).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Protocol, cast

import msgspec
from msgspec import Meta, Struct

from fsm.errors import LocalError, RemoteError
from gpu_backend.transports.base import Traits, Transport
from gpu_backend.transports.communicator import Communicator, Piece, ThreadedCommunicator, gather, scatter
from gpu_backend.transports.gloo import (
    RECEIVER_RANK,
    SENDER_RANK,
    GroupPlace,
    StoreAddress,
    StoreHost,
    c10d,
    timeouts_s,
)
from gpu_backend.transports.ordered import OrderedReceiver, OrderedSender

if TYPE_CHECKING:
    import torch

    from gpu_backend.pool import BlockPool, SourcePool

TRAITS: Final = Traits(
    name="nccl",
    one_sided=False,
    cancellable=False,
    devices=("cuda",),
    landed_required=True,
    process_exit_proves=False,
    proof="A CUDA event behind the own receive and its copies has fired; or the communicator was aborted and its "
    "stream synchronised. Neither a wait() nor the end of the sender's process proves anything.",
)

_FOREVER: Final = timedelta(days=30)

_EVENT_POLL_S: Final = 30e-6


class NcclAddress(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where the receiver hosts its store, and which GPU it uses."""

    store: StoreAddress
    gpu: Annotated[str, Meta(max_length=64)]
    """Its UUID."""


_ADDRESS: Final = msgspec.msgpack.Decoder(NcclAddress)


class Event(Protocol):
    """As much of ``torch.cuda.Event`` as is used."""

    def query(self) -> bool: ...


class Library:
    """The calls into CUDA and NCCL, so that a test can put a fake in their place."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self.device = device
        self._cuda: Any = torch.cuda
        """Untyped: its streams and events are."""
        self._stream: Any = None

    def make_group(self, place: GroupPlace, closing: threading.Event) -> Any:
        """A ``ProcessGroupNCCL``, once the peer has come to the store."""
        # By default the library ends the process when a communicator fails. Here the link ends instead.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        self._cuda.set_device(self.device)
        self._stream = self._cuda.Stream(self.device)
        nccl = c10d().ProcessGroupNCCL
        options = nccl.Options()
        # Its watchdog must not fire: a link is given up by _finish, which knows what is closing.
        options._timeout = _FOREVER
        return nccl(place.meet(closing), place.rank, 2, options)

    def on_stream(self) -> AbstractContextManager[None]:
        """What is issued inside goes to this link's stream."""
        self._cuda.set_device(self.device)
        context: AbstractContextManager[None] = self._cuda.stream(self._stream)
        return context

    def record(self) -> Event:
        """An event behind all that was issued on the stream."""
        event = self._cuda.Event()
        event.record(self._stream)
        return cast(Event, event)

    def synchronize(self) -> None:
        """Wait until the stream is idle."""
        self._stream.synchronize()


class _Batch(NamedTuple):
    event: Event
    kept: tuple[Any, ...]
    """Memory and operations that must live until the event has fired."""


class NcclCommunicator(ThreadedCommunicator[_Batch]):
    """A ``ProcessGroupNCCL`` of two with a stream of its own."""

    def __init__(self, place: GroupPlace, library: Library) -> None:
        super().__init__(f"nccl-{place.prefix}")
        self._place = place
        self._library = library
        self._peer = SENDER_RANK if place.rank == RECEIVER_RANK else RECEIVER_RANK
        self._group: Any = None

    def _make(self) -> None:
        import torch

        self._group = self._library.make_group(self._place, self._closing)
        byte = torch.zeros(1, dtype=torch.uint8, device=self._library.device)
        try:
            batch = self._post(self._place.rank == SENDER_RANK, [(byte,)])
            self._wait(batch, self._place.connect_timeout_s)
        except Exception:
            self._destroy()
            raise

    def _post(self, sending: bool, pieces: list[Piece]) -> _Batch:
        """Issue a group of sends or receives. Blocks of both pools are complete before they are handed to a
        transport, so the stream waits for no other."""
        library, group = self._library, self._group
        with library.on_stream():
            buffers = [self._buffer(piece) for piece in pieces]
            if sending:
                for piece, buffer in zip(pieces, buffers, strict=True):
                    if len(piece) > 1:
                        gather(piece, buffer)
            group._start_coalescing()
            post = group.send if sending else group.recv
            works = [post([buffer], self._peer, 0) for buffer in buffers]
            done = group._end_coalescing()
            if done is not None:
                done.wait()  # this stream waits for NCCL's own; the caller does not
            if not sending:
                for piece, buffer in zip(pieces, buffers, strict=True):
                    if len(piece) > 1:
                        scatter(buffer, piece)
            return _Batch(library.record(), (buffers, works, done))

    def _buffer(self, piece: Piece) -> torch.Tensor:
        """The memory itself, or a bounce buffer (uint8 [bytes])."""
        import torch

        if len(piece) == 1:
            return piece[0]
        size = sum(part.numel() for part in piece)
        return torch.empty(size, dtype=torch.uint8, device=self._library.device)

    def _finish(self, batch: _Batch) -> None:
        self._wait(batch, self._place.stall_timeout_s)

    def _wait(self, batch: _Batch, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not batch.event.query():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"nothing was complete after {timeout_s} s")
            if self._closing.wait(_EVENT_POLL_S):
                break
        # `abort` lets the event fire too, and is only called once the link is closing.
        if self._closing.is_set():
            raise RuntimeError("the link was closed")

    def _destroy(self) -> None:
        self._group.abort()
        self._library.synchronize()


def gpu_of(device: torch.device) -> str:
    """The UUID of a GPU: two processes may number the same one differently."""
    import torch

    return str(torch.cuda.get_device_properties(device).uuid)


def refuse_one_gpu(own: str, peer: str) -> None:
    """Raises ``LocalError`` if both sides use the same GPU."""
    if own == peer:
        raise LocalError(
            f"transport nccl: sender and receiver both use the GPU {own}, and NCCL refuses two ranks on one GPU; "
            f"give them different ones (CUDA_VISIBLE_DEVICES), or use transport nixl or cuda_ipc"
        )


def read_address(data: bytes) -> NcclAddress:
    """Raises ``RemoteError`` if the bytes are no address."""
    try:
        return _ADDRESS.decode(data)
    except Exception as error:  # the peer's bytes; several kinds of error can come of them
        raise RemoteError(f"the address of the receiver's store cannot be read: {error}") from error


def _check_cuda(pool: BlockPool) -> None:
    reason = absent()
    if reason is not None:
        raise LocalError(f"transport nccl cannot run here: {reason}")
    if pool.arena.device.type != "cuda":
        raise LocalError(f"transport nccl with a pool on {pool.arena.device}: NCCL moves memory of GPUs only")


class NcclReceiver(OrderedReceiver):
    """Options: ``host``, ``connect_timeout_s``, ``stall_timeout_s``, ``piece_bytes``."""

    traits = TRAITS

    def __init__(self, pool: BlockPool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        _check_cuda(pool)
        self._timeouts_s = timeouts_s(options)
        self._store = StoreHost(str(options.get("host", "127.0.0.1")))

    def _address(self) -> bytes:
        return msgspec.msgpack.encode(NcclAddress(self._store.address, gpu_of(self.pool.arena.device)))

    def _join(self, boot_id: int) -> Communicator:
        place = GroupPlace(self._store.address, f"{self.boot_id}/{boot_id}", RECEIVER_RANK, *self._timeouts_s)
        return _started(place, self.pool)

    def close(self) -> None:
        super().close()
        self._store.close()


class NcclSender(OrderedSender):
    """Options: ``connect_timeout_s``, ``stall_timeout_s``, ``piece_bytes``."""

    traits = TRAITS

    def __init__(self, pool: SourcePool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        _check_cuda(pool)
        self._timeouts_s = timeouts_s(options)

    def _join(self, boot_id: int, address: bytes) -> Communicator:
        peer = read_address(address)
        refuse_one_gpu(gpu_of(self.pool.arena.device), peer.gpu)
        return _started(GroupPlace(peer.store, f"{boot_id}/{self.boot_id}", SENDER_RANK, *self._timeouts_s), self.pool)


def _started(place: GroupPlace, pool: BlockPool) -> NcclCommunicator:
    communicator = NcclCommunicator(place, Library(pool.arena.device))
    communicator.start()
    return communicator


def absent() -> str | None:
    """Why NCCL cannot run here, or ``None``. Whether the peer has another GPU is seen when they connect."""
    try:
        import torch
        import torch.distributed as distributed
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if not distributed.is_available() or not distributed.is_nccl_available():
        return "this torch was built without NCCL"
    return None


TRANSPORT: Final = Transport(TRAITS, NcclReceiver, NcclSender, absent)
