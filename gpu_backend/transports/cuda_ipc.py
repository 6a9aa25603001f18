"""CUDA IPC: the sender opens the receiver's arena and copies into it, on one machine with NVIDIA GPUs.

The receiver shares the storage behind its arena in REGISTER. The sender maps it, finds the same GPU among its own by
the GPU's UUID (the two processes may number them differently), and copies with one stream per link. A slice is a
row of copies with an event behind it. The event proves the copy, so the receiver needs no notice, and nothing of
this transport runs there. The arena must come from plain ``cudaMalloc``: with ``expandable_segments`` torch shares
memory in a way that needs more rights between the processes.

A CUDA error cannot be repaired: after it every call of this process fails, and whether an earlier copy still runs is
not known. So nothing is reported of a write that failed in this way. The end of the process is the proof.

Options: ``slice_bytes``, ``window``, ``close_s``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import torch
from msgspec import Meta, Struct

from fsm.errors import LocalError, RemoteError
from gpu_backend.layout import ArenaMap
from gpu_backend.transports.base import ReceiverReport, ReceiverTransport, Traits, Transport
from gpu_backend.transports.sliced import Flow, Link, Slice, SlicedSender, SliceFailed

if TYPE_CHECKING:
    from gpu_backend.pool import BlockPool, SourcePool

TRAITS: Final = Traits(
    name="cuda-ipc",
    one_sided=True,
    cancellable=True,
    devices=("cuda",),
    landed_required=False,
    process_exit_proves=True,
    proof=(
        "A write is over when the CUDA event behind its last started copy has passed. A process that is gone has no "
        "CUDA context, and so no copy."
    ),
)


class _Shared(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What the receiver announces: what torch says of a shared storage, and where the arena lies in it."""

    version: Literal[1]
    gpu: Annotated[str, Meta(max_length=128)]
    """Its UUID."""
    size_bytes: Annotated[int, Meta(ge=1)]
    blocks: Annotated[int, Meta(ge=1)]
    arena_offset: Annotated[int, Meta(ge=0)]
    """In bytes, from the beginning of the storage."""
    handle: bytes
    storage_bytes: Annotated[int, Meta(ge=1)]
    storage_offset: Annotated[int, Meta(ge=0)]
    counter_handle: bytes
    counter_offset: Annotated[int, Meta(ge=0)]
    event_handle: bytes
    event_needed: bool


_CUDA: Final[Any] = torch.cuda
"""Streams and events have no types."""

_SHARED: Final = msgspec.msgpack.Decoder(_Shared)


def _check_pool(pool: BlockPool) -> None:
    if pool.device.type != "cuda":
        raise LocalError(f"cuda-ipc: a pool on {pool.device}; expected one on cuda")
    why = absent()
    if why is not None:
        raise LocalError(f"cuda-ipc cannot run here: {why}")


def _uuid(device: int) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


class CudaIpcReceiver(ReceiverTransport):
    """Shares its arena; the rest happens at the sender."""

    traits = TRAITS

    def __init__(self, pool: BlockPool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        _check_pool(pool)
        self._arena: torch.Tensor | None = pool.arena
        storage: Any = pool.arena.untyped_storage()
        try:
            device, handle, size, offset, counter, counter_offset, event, needed = storage._share_cuda_()
        except RuntimeError as error:
            raise LocalError(f"cuda-ipc: the arena on {pool.device} cannot be shared: {error}") from error
        self._descriptors = msgspec.msgpack.encode(
            _Shared(
                1, _uuid(device), pool.map.bytes, pool.blocks, int(pool.arena.storage_offset()), handle, size, offset,
                counter, counter_offset, event, needed,
            )
        )  # fmt: skip

    def descriptors(self) -> bytes:
        return self._descriptors

    def poll(self) -> list[ReceiverReport]:
        return []

    def close(self) -> None:
        self._arena = None


class _CudaLink(Link):
    """A receiver's arena, mapped."""

    def __init__(self, name: str, receiver_rank: int, target_map: ArenaMap, arena: torch.Tensor) -> None:
        super().__init__(name, receiver_rank, target_map)
        self.arena: torch.Tensor | None = arena
        self.stream: torch.cuda.Stream | None = None


class CudaIpcSender(SlicedSender[torch.cuda.Event]):
    """Copies into the arenas of receivers."""

    traits = TRAITS

    def __init__(self, pool: SourcePool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        _check_pool(pool)
        self._by_data: dict[bytes, _CudaLink] = {}

    def _open(self, receiver_rank: int, boot_id: int, descriptors: bytes) -> Link:
        known = self._by_data.get(descriptors)
        if known is not None:
            if known.receiver_rank != receiver_rank:
                raise RemoteError(f"cuda-ipc: receiver rank {receiver_rank} announces the arena of another rank")
            return known
        try:
            said = _SHARED.decode(descriptors)
        except Exception as error:
            # Whatever the decoder raises, it was given nothing but a peer's bytes.
            raise RemoteError(f"cuda-ipc: malformed descriptors: {error}") from error
        target_map = ArenaMap(self.pool.map.layout, said.blocks)
        if said.size_bytes != target_map.bytes or said.arena_offset + said.size_bytes > said.storage_bytes:
            raise RemoteError(
                f"cuda-ipc: an arena of {said.size_bytes} bytes at {said.arena_offset} of {said.storage_bytes} for "
                f"{said.blocks} blocks; expected {target_map.bytes} bytes inside the storage"
            )
        link = _CudaLink(f"{receiver_rank}/{boot_id}", receiver_rank, target_map, self._map(said))
        self._by_data[descriptors] = link
        return link

    def _map(self, said: _Shared) -> torch.Tensor:
        """uint8 ``[said.size_bytes]``: the receiver's arena in this process. Raises ``RemoteError`` if it has none."""
        here = [device for device in range(torch.cuda.device_count()) if _uuid(device) == said.gpu]
        if not here:
            raise RemoteError(f"cuda-ipc: the receiver's GPU {said.gpu} is not visible in this process")
        open_storage: Any = torch.UntypedStorage._new_shared_cuda
        try:
            storage = open_storage(
                here[0], said.handle, said.storage_bytes, said.storage_offset, said.counter_handle,
                said.counter_offset, said.event_handle, said.event_needed,
            )  # fmt: skip
        except RuntimeError as error:
            raise RemoteError(f"cuda-ipc: the receiver's arena cannot be opened: {error}") from error
        arena = torch.empty(0, dtype=torch.uint8, device=torch.device("cuda", here[0]))
        arena.set_(storage, said.arena_offset, (said.size_bytes,), (1,))
        return arena

    def _start(self, flow: Flow[torch.cuda.Event], piece: Slice, *, last: bool) -> torch.cuda.Event | None:
        link = flow.link
        assert isinstance(link, _CudaLink) and link.arena is not None
        source = self.pool.arena
        try:
            if link.stream is None:
                link.stream = _CUDA.Stream(self.pool.device)
            # The payload was staged by whatever stream the caller had current.
            link.stream.wait_stream(torch.cuda.current_stream(self.pool.device))
            event: torch.cuda.Event = _CUDA.Event()
            with torch.cuda.stream(link.stream):
                for span in piece:
                    here = source[span.source : span.source + span.bytes]
                    link.arena[span.target : span.target + span.bytes].copy_(here, non_blocking=True)
                event.record(link.stream)
        except RuntimeError as error:
            raise SliceFailed(str(error)) from error
        return event

    def _ended(self, handle: torch.cuda.Event) -> bool:
        try:
            return bool(_CUDA.Event.query(handle))
        except RuntimeError as error:
            raise SliceFailed(str(error)) from error

    def _reset(self, link: Link) -> bool:
        return True

    def _quiet(self, link: Link) -> bool:
        return False

    def _shut(self, link: Link) -> bool:
        assert isinstance(link, _CudaLink)
        link.arena = None
        self._by_data = {data: known for data, known in self._by_data.items() if known is not link}
        return True

    def _destroy(self) -> None:
        for link in list(self._by_data.values()):
            if not link.in_flight:
                self._shut(link)


def absent() -> str | None:
    """Why CUDA IPC cannot be used here, or ``None``."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return None


TRANSPORT: Final = Transport(TRAITS, CudaIpcReceiver, CudaIpcSender, absent)
