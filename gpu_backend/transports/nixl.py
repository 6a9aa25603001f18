"""NIXL (UCX underneath): the sender writes straight into the receiver's memory, host or device.

One agent on each side. The receiver registers its arena and announces it in REGISTER; the sender adds the
receiver's agent and writes. A write is a row of NIXL transfers (``sliced.py`` says why), and the last one carries a
notice that makes the receiver say ``Landed``. The notice names the grant, because notices can overtake each other.

Descriptor lists are made for each transfer, not prepared once: a write begins at any token, so its spans are no
items of a list that could be prepared. A span costs 1.3 us this way, against 11 ms for 64 MiB in 12 spans.

**What is quiet, and when.** A transfer that NIXL calls done is flushed: its bytes are in the receiver's memory. A
transfer that fails is another matter. NIXL cannot stop one (a released transfer goes on writing, see
``nixl_api.py``), so a cancel takes effect between transfers only, and one that is under way is always waited for.
When one ends with an error, its connection is closed, and still bytes that the kernel took over may arrive at a
receiver that lives on. So ``WriteFailed`` is reported when the receiver's process is gone; that its memory went with
it needs no more proof. If the process lives, or is on another machine, nothing is reported: the write stays open,
and the receiver's blocks stay quarantined. An operator whose data goes over RDMA only may set the option
``endpoint_proves``: there the queue pair, which is destroyed with the connection, is what wrote.

**The other way round:** a sender's process that is gone proves its writes quiet only where the sender itself does
the copying. That is so with CMA (``process_vm_writev``), which UCX takes between two processes of one machine. Over
tcp the *receiver's* own progress puts the bytes into memory, and can do so after the sender's death. Hence
``process_exit_proves`` is withdrawn where CMA cannot be used, and for device memory, where the path is not known.

Options: ``slice_bytes``, ``window``, ``progress_thread`` (default False: a thread beside the polling one halves the
speed on few cores), ``endpoint_proves`` (default False).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from fsm.errors import LocalError, RemoteError
from fsm.messages import Epoch, Grant, Rank, Room, Seq
from gpu_backend.layout import ArenaMap
from gpu_backend.process import ProcessIdentity, ProcessWatch
from gpu_backend.transports import nixl_api
from gpu_backend.transports.base import Landed, ReceiverReport, ReceiverTransport, Traits, Transport
from gpu_backend.transports.nixl_api import Agent, NixlError
from gpu_backend.transports.sliced import Flow, Link, NotStarted, Slice, SlicedSender, SliceFailed

if TYPE_CHECKING:
    from gpu_backend.pool import BlockPool, SourcePool

TRAITS: Final = Traits(
    name="nixl",
    one_sided=True,
    cancellable=True,
    devices=("cpu", "cuda"),
    landed_required=True,
    process_exit_proves=True,
    proof=(
        "A write is over when every NIXL transfer of it has ended by itself, never by a release; one that ended with "
        "an error counts as quiet only once the receiver's process is gone. With CMA a sender that is gone writes "
        "nothing more, because its own system call is the copy."
    ),
)

_UINT64_MAX: Final = 2**64 - 1


class _Descriptors(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What the receiver announces."""

    version: Literal[1]
    agent: Annotated[str, Meta(min_length=1, max_length=128)]
    metadata: bytes
    address: Annotated[int, Meta(ge=1)]
    size_bytes: Annotated[int, Meta(ge=1)]
    blocks: Annotated[int, Meta(ge=1)]
    memory: Literal["DRAM", "VRAM"]
    device: Annotated[int, Meta(ge=0, le=65535)]
    process: ProcessIdentity


class _Notice(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What the last transfer of a write says to the receiver."""

    room: Room
    epoch: Epoch
    receiver_rank: Rank
    seq: Seq


_DESCRIPTORS: Final = msgspec.msgpack.Decoder(_Descriptors)
_NOTICE: Final = msgspec.msgpack.Decoder(_Notice)


def _memory_of(pool: BlockPool) -> tuple[str, int]:
    """NIXL's name for the kind of memory a pool has, and the number of its device."""
    if pool.device.type == "cuda":
        return "VRAM", pool.device.index or 0
    return "DRAM", 0


def _make_agent(role: str, pool: BlockPool, rank: int, boot_id: int, options: Mapping[str, Any]) -> Agent:
    """An agent that knows the pool's arena. Raises ``LocalError`` if there can be none."""
    if pool.device.type not in TRAITS.devices:
        raise LocalError(f"nixl: a pool on {pool.device}; expected one on {' or '.join(TRAITS.devices)}")
    try:
        agent = Agent(
            f"resumark/{role}/{rank}/{boot_id:x}", progress_thread=bool(options.get("progress_thread", False))
        )
        memory, device = _memory_of(pool)
        agent.register(pool.address, pool.map.bytes, memory, device)
    except NixlError as error:
        raise LocalError(f"nixl: the {role}'s agent cannot be made here: {error}") from error
    return agent


def without_cma() -> str:
    """Why UCX cannot copy between the processes of this machine by CMA, or ``""`` if it can."""
    allowed = os.environ.get("UCX_TLS", "all")
    names = set(allowed.removeprefix("^").split(","))
    listed = bool(names & {"all", "cma", "sm", "shm"})
    if listed == allowed.startswith("^"):
        return f"UCX_TLS={allowed} leaves it out"
    return _cma_refused()


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _cma_refused() -> str:
    """Why this system refuses ``process_vm_readv``, tried on this process itself, or ``""``."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
    if call is None:
        return "this system has no process_vm_readv"
    source, target = ctypes.create_string_buffer(b"x", 1), ctypes.create_string_buffer(1)
    here, there = (_Iovec(ctypes.addressof(one), 1) for one in (target, source))
    count = ctypes.c_ulong(1)
    call.restype = ctypes.c_ssize_t
    moved = call(os.getpid(), ctypes.byref(here), count, ctypes.byref(there), count, ctypes.c_ulong(0))
    return "" if moved == 1 else f"process_vm_readv says {os.strerror(ctypes.get_errno())}"


def _traits_for(pool: BlockPool) -> Traits:
    """What can be proved with this pool on this machine; see the top of the module."""
    on_device = pool.device.type == "cuda"
    why = "the path that UCX takes to device memory is not known" if on_device else without_cma()
    if not why:
        return TRAITS
    return replace(
        TRAITS,
        process_exit_proves=False,
        proof=f"{TRAITS.proof} Here a sender's exit proves nothing: {why}.",
    )


class NixlReceiver(ReceiverTransport):
    """Announces its arena, and reads notices."""

    traits = TRAITS

    def __init__(self, pool: BlockPool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        self.traits = _traits_for(pool)
        self._expected: set[tuple[int, Epoch, int]] = set()
        self._agent: Agent | None = _make_agent("receiver", pool, rank, boot_id, options)
        memory, device = _memory_of(pool)
        self._descriptors = msgspec.msgpack.encode(
            _Descriptors(
                1, self._agent.name, self._agent.metadata(), pool.address, pool.map.bytes, pool.blocks,
                memory, device, ProcessIdentity.of_self(),  # type: ignore[arg-type]
            )
        )  # fmt: skip

    def descriptors(self) -> bytes:
        return self._descriptors

    def expect(self, grant: Grant) -> None:
        self._expected.add((grant.room, grant.epoch, grant.seq))

    def settle(self, room: int, epoch: Epoch, seq: int) -> None:
        self._expected.discard((room, epoch, seq))

    def poll(self) -> list[ReceiverReport]:
        if self._agent is None:
            return []
        try:
            notices = self._agent.notices()
        except NixlError:
            # A peer that died in the middle of a message; what arrived of others comes with the next call.
            self.count("failed_polls")
            return []
        reports: list[ReceiverReport] = []
        for _, data in notices:
            notice = self._read(data)
            if notice is None:
                self.count("dropped_notices")
            else:
                reports.append(Landed(notice.room, notice.epoch, notice.seq))
        return reports

    def _read(self, data: bytes) -> _Notice | None:
        try:
            notice = _NOTICE.decode(data)
        except Exception:
            # Whatever the decoder raises, it was given nothing but a peer's bytes.
            return None
        return notice if notice.receiver_rank == self.rank else None

    def close(self) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            self._expected.clear()
            try:
                agent.close()
            except NixlError:
                self.count("failed_closes")

    @property
    def busy(self) -> bool:
        return bool(self._expected)


class _NixlLink(Link):
    """A receiver's agent, as the sender's agent sees it."""

    def __init__(self, receiver_rank: int, target_map: ArenaMap, data: bytes, said: _Descriptors) -> None:
        super().__init__(said.agent, receiver_rank, target_map)
        self.data = data
        self.said = said
        self.watch = ProcessWatch(said.process)
        self.added = False
        """The sender's agent knows this one."""
        self.unreleased: list[nixl_api.Handle] = []
        """Transfers that ended, and that NIXL would not take back yet."""


@dataclass(eq=False)
class _Transfer:
    """A slice under way."""

    link: _NixlLink
    handle: nixl_api.Handle
    failed: str = ""
    """It failed when it was started, and parts of it may be under way nevertheless."""


class NixlSender(SlicedSender[_Transfer]):
    """Writes into the arenas of receivers."""

    traits = TRAITS

    def __init__(self, pool: SourcePool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        self._agent = _make_agent("sender", pool, rank, boot_id, options)
        self._memory, self._device = _memory_of(pool)
        self._by_agent: dict[str, _NixlLink] = {}

    def greeting(self) -> bytes:
        return self._agent.name.encode()

    # --- links ----------------------------------------------------------------------------------------

    def _open(self, receiver_rank: int, boot_id: int, descriptors: bytes) -> Link:
        said = self._understand(descriptors)
        known = self._by_agent.get(said.agent)
        if known is not None:
            if known.data != descriptors or known.receiver_rank != receiver_rank:
                raise RemoteError(f"nixl: agent {said.agent} is known already, with another arena or rank")
            return known
        link = _NixlLink(receiver_rank, ArenaMap(self.pool.map.layout, said.blocks), descriptors, said)
        try:
            self._add(link)
        except NixlError as error:
            raise RemoteError(f"nixl: the metadata of receiver rank {receiver_rank} make no sense: {error}") from error
        try:
            self._agent.meet(link.name)
        except NixlError as error:
            # It may be gone by now; the first write will say so.
            link.failed = str(error)
        self._by_agent[said.agent] = link
        return link

    def _understand(self, descriptors: bytes) -> _Descriptors:
        try:
            said = _DESCRIPTORS.decode(descriptors)
        except Exception as error:
            # Whatever the decoder raises, it was given nothing but a peer's bytes.
            raise RemoteError(f"nixl: malformed descriptors: {error}") from error
        expected = ArenaMap(self.pool.map.layout, said.blocks).bytes
        if said.size_bytes != expected or said.address + said.size_bytes > _UINT64_MAX:
            raise RemoteError(
                f"nixl: an arena of {said.size_bytes} bytes at {said.address:#x} for {said.blocks} blocks; "
                f"expected {expected} bytes"
            )
        return said

    def _add(self, link: _NixlLink) -> None:
        name = self._agent.add(link.said.metadata)
        if name != link.name:
            self._agent.remove(name)
            raise NixlError(f"they are those of agent {name!r}, not of {link.name!r}")
        link.added = True

    def _remove(self, link: _NixlLink) -> bool:
        """Close the connection; ``False`` if NIXL does not let go yet."""
        for handle in list(link.unreleased):
            try:
                self._agent.release(handle)
            except NixlError:
                return False
            link.unreleased.remove(handle)
        if link.added:
            try:
                self._agent.remove(link.name)
            except NixlError:
                # Not known: then it is removed already, as after metadata of the same name that were refused.
                self.count("failed_removals")
            link.added = False
        return True

    def _reset(self, link: Link) -> bool:
        assert isinstance(link, _NixlLink)
        return self._remove(link)

    def _shut(self, link: Link) -> bool:
        assert isinstance(link, _NixlLink)
        if not self._remove(link):
            return False
        link.watch.close()
        del self._by_agent[link.name]
        return True

    def _quiet(self, link: Link) -> bool:
        assert isinstance(link, _NixlLink)
        return link.watch.gone is True or bool(self.options.get("endpoint_proves", False))

    # --- slices ---------------------------------------------------------------------------------------

    def _start(self, flow: Flow[_Transfer], piece: Slice, *, last: bool) -> _Transfer | None:
        link = flow.link
        assert isinstance(link, _NixlLink)
        here, there = self.pool.address, link.said.address
        sources = [(here + span.source, span.bytes, self._device) for span in piece]
        targets = [(there + span.target, span.bytes, link.said.device) for span in piece]
        notice = msgspec.msgpack.encode(_Notice(*flow.key)) if last else b""
        try:
            if not link.added:
                self._add(link)
            handle = self._agent.prepare(sources, targets, (self._memory, link.said.memory), link.name, notice)
        except NixlError as error:
            link.failed = link.failed or str(error)
            raise NotStarted(str(error)) from error
        transfer = _Transfer(link, handle)
        try:
            done = self._agent.post(handle)
        except NixlError as error:
            transfer.failed = str(error)
            done = False
        if not done:
            return transfer
        self._release(transfer)
        return None

    def _ended(self, transfer: _Transfer) -> bool:
        try:
            if not self._agent.check(transfer.handle):
                return False
        except NixlError as error:
            self._release(transfer)
            raise SliceFailed(transfer.failed or str(error)) from error
        self._release(transfer)
        if transfer.failed:
            raise SliceFailed(transfer.failed)
        return True

    def _release(self, transfer: _Transfer) -> None:
        try:
            self._agent.release(transfer.handle)
        except NixlError:
            self.count("failed_releases")
            transfer.link.unreleased.append(transfer.handle)

    def _turn(self) -> None:
        """Progress for connections that are being made; a sender is sent no notices."""
        try:
            for _ in self._agent.notices():
                self.count("dropped_notices")
        except NixlError:
            self.count("failed_polls")

    def _destroy(self) -> None:
        try:
            self._agent.close()
        except NixlError:
            self.count("failed_closes")


def absent() -> str | None:
    """Why NIXL cannot be used here, or ``None``."""
    try:
        nixl_api.load()
    except LocalError as error:
        return str(error)
    return None


TRANSPORT: Final = Transport(TRAITS, NixlReceiver, NixlSender, absent)
