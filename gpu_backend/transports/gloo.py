"""Transport ``gloo``: two-sided, over TCP, for memory of the CPU.

Every link has its own ``ProcessGroupGloo`` of two: the receiver is rank 0 and hosts the store in which the two meet,
the sender is rank 1. Neither touches the default group of ``torch.distributed``. The address of the store is in the
receiver's descriptors. The key prefix names both processes, so a process that restarts can never meet the group of
its predecessor. Nobody is authenticated: use it on a trusted network, or on one machine (the default).

gloo is a poor fault model, and these four traps shaped the module (torch 2.13):

1. ``is_completed`` of a send or receive never turns true, so somebody must block in ``wait``: the waiter thread.
2. A ``wait`` with a timeout that fires closes the pair: it cannot be used to poll.
3. If the peer dies, only operations that are still *pending* get an error. The one whose bytes are on the wire, and
   every send that is already queued for the socket, waits for its full timeout. ``abort`` does not wake it.
4. A send whose ``Work`` is dropped before it is complete blocks everything behind it.

The answer to 3: **nobody waits for bulk**. After each batch follows an empty message, the *trailer*, and the
receiver's waiter waits for that. An empty message has no body that could be on the wire, so its receive stays pending
until it is complete, and gets the error at once. It is sent after the batch on the same connection, so when it has
come the batch has come, and waiting for the pieces takes no time. Then the receiver answers with an empty *ack*, and
the sender's waiter waits for that, which is a receive too. Measured: a sender that is killed inside a message of
256 MiB is noticed, and its link proved quiet, within some tens of milliseconds; the timeouts play no part.

A *canary*, one more receive that is never matched, waits in a thread of its own: it sees the end of an idle link.

**What the proof of quiescence rests on.** ``_destroy`` posts a receive that nobody matches and waits for it for 1 ms.
By trap 2 this closes the pair. gloo closes a pair under the lock under which it also reads and writes the socket, and
it does neither once the pair is closed. So when this wait has raised (or when the post was refused, which means that
the pair was closed before), no byte enters or leaves the memory of any operation. What is left are the copies through
bounce buffers by the two threads, and they are joined. They cannot be stuck: what they wait for was pending.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from fsm.errors import LocalError, RemoteError
from gpu_backend.transports.base import Traits, Transport
from gpu_backend.transports.communicator import Communicator, Piece, ThreadedCommunicator, gather, scatter
from gpu_backend.transports.ordered import OrderedReceiver, OrderedSender, positive_option

if TYPE_CHECKING:
    import torch

    from gpu_backend.pool import BlockPool, SourcePool

TRAITS: Final = Traits(
    name="gloo",
    one_sided=False,
    cancellable=False,
    devices=("cpu",),
    landed_required=True,
    process_exit_proves=False,
    proof="The own receive has ended; or the pair is closed under gloo's own lock, and the threads that copy are "
    "joined. The end of the sender's process proves nothing: its bytes may still be in this machine's sockets.",
)

CONNECT_TIMEOUT_S: Final = 30.0
"""Default of the option: how long the peer may take to join after it was announced."""

STALL_TIMEOUT_S: Final = 60.0
"""Default of the option: how long one batch may take before the link is given up. For a network that goes silent; the
death of a process is seen at once."""

_PIECES, _TRAILER, _ACK, _POISON, _CANARY = 1, 2, 3, 98, 99
"""Tags."""

_ACKS_KEPT: Final = 64
"""Trap 4: an ack must not be dropped before it is sent. When a batch has come, all acks of batches that many before
it have been taken by the sender, which never has that many under way."""

_BOUNCES_KEPT: Final = 8

_MEET_POLL_S: Final = 0.005

_FOREVER: Final = timedelta(days=30)

RECEIVER_RANK, SENDER_RANK = 0, 1


def c10d() -> Any:
    """``torch.distributed``, untyped: what is used of it has no type stubs."""
    import torch.distributed

    return torch.distributed


class StoreAddress(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where the receiver hosts its store."""

    host: Annotated[str, Meta(max_length=255)]
    port: Annotated[int, Meta(ge=1, le=65535)]


_ADDRESS: Final = msgspec.msgpack.Decoder(StoreAddress)


def read_address(data: bytes) -> StoreAddress:
    """Raises ``RemoteError`` if the bytes are no address."""
    try:
        return _ADDRESS.decode(data)
    except Exception as error:  # the peer's bytes; several kinds of error can come of them
        raise RemoteError(f"the address of the receiver's store cannot be read: {error}") from error


class StoreHost:
    """A store for a receiver's links, on the interface of ``host`` only, on a port that the system chooses."""

    def __init__(self, host: str) -> None:
        """Raises ``LocalError`` if this machine cannot listen there."""
        if host in ("", "0.0.0.0", "::"):
            raise LocalError(
                f"transport option host={host!r}: senders connect to this address, so it must name one interface"
            )
        try:
            listener = socket.create_server((host, 0), backlog=64)
        except OSError as error:
            raise LocalError(f"transport option host={host!r}: cannot listen there: {error}") from error
        self.address = StoreAddress(host, listener.getsockname()[1])
        # The store takes the file descriptor and closes it.
        self._store: Any = c10d().TCPStore(
            host, self.address.port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )

    def close(self) -> None:
        self._store = None


class GroupPlace(NamedTuple):
    """Where and as what a side joins its group of two."""

    address: StoreAddress
    prefix: str
    rank: int
    connect_timeout_s: float
    stall_timeout_s: float

    def meet(self, closing: threading.Event) -> Any:
        """The store, under the prefix, once the other side is there too.

        A group waits for its peer inside the library, where nothing can end it, and where it would abort a process
        that ends meanwhile. So the two meet first, by looking again and again. Raises ``TimeoutError`` if the other
        does not come, ``RuntimeError`` if this side closes meanwhile or the store is gone.
        """
        deadline_s = time.monotonic() + self.connect_timeout_s
        while not _listens(self.address):
            self._look_again_later(closing, deadline_s)
        timeout = timedelta(seconds=self.connect_timeout_s)
        client = c10d().TCPStore(
            self.address.host, self.address.port, is_master=False, wait_for_workers=False, timeout=timeout
        )
        store = c10d().PrefixStore(self.prefix, client)
        store.set(f"here/{self.rank}", "1")
        while not store.check([f"here/{1 - self.rank}"]):
            self._look_again_later(closing, deadline_s)
        return store

    def _look_again_later(self, closing: threading.Event, deadline_s: float) -> None:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"it did not come within {self.connect_timeout_s} s")
        if closing.wait(_MEET_POLL_S):
            raise RuntimeError("the link was closed")


def _listens(address: StoreAddress) -> bool:
    """Whether somebody does: the library's own attempt to connect could not be ended."""
    try:
        socket.create_connection((address.host, address.port), timeout=1.0).close()
    except OSError:
        return False
    return True


def local_address_towards(address: StoreAddress) -> str:
    """The own address from which that one is reached. No packet is sent. Raises ``OSError``."""
    family, kind, proto, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


class _Batch(NamedTuple):
    works: list[Any]
    end: Any
    """The receive that ends the batch: the trailer, or the ack."""
    bounced: list[tuple[torch.Tensor, Piece]]
    """Bounce buffers of received pieces, and where their content belongs."""
    borrowed: list[torch.Tensor]
    trailer: Any
    """The trailer on the sender's side, which must be kept (trap 4)."""


class GlooCommunicator(ThreadedCommunicator[_Batch]):
    """A ``ProcessGroupGloo`` of two. See the module for how it waits and how it is destroyed."""

    def __init__(self, place: GroupPlace) -> None:
        super().__init__(f"gloo-{place.prefix}")
        import torch

        self._place = place
        self._peer = SENDER_RANK if place.rank == RECEIVER_RANK else RECEIVER_RANK
        self._stall = timedelta(seconds=place.stall_timeout_s)
        self._empty = torch.empty(0, dtype=torch.uint8)
        self._group: Any = None
        self._bounces: list[torch.Tensor] = []
        self._acks: deque[Any] = deque(maxlen=_ACKS_KEPT)

    def _make(self) -> None:
        place = self._place
        store = place.meet(self._closing)
        gloo = c10d().ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timedelta(seconds=place.connect_timeout_s)
        options._threads = 1
        hostname = local_address_towards(place.address)
        options._devices = [gloo.create_device(hostname=hostname)]
        self._group = gloo(store, place.rank, 2, options)
        self._thread("canary", self._watch).start()

    def _watch(self) -> None:
        import torch

        try:
            self._group.recv([torch.empty(1, dtype=torch.uint8)], self._peer, _CANARY).wait(_FOREVER)
            raise RuntimeError("the peer sent what nobody may send")
        except Exception as error:
            self._fail("the connection ended", error)

    def _post(self, sending: bool, pieces: list[Piece]) -> _Batch:
        works: list[Any] = []
        bounced: list[tuple[torch.Tensor, Piece]] = []
        borrowed: list[torch.Tensor] = []
        for piece in pieces:
            tensor = piece[0]
            if len(piece) > 1:
                tensor = self._bounce(sum(part.numel() for part in piece), borrowed)
                if sending:
                    gather(piece, tensor)
                else:
                    bounced.append((tensor, piece))
            post = self._group.send if sending else self._group.recv
            works.append(post([tensor], self._peer, _PIECES))
        if not sending:
            return _Batch(works, self._group.recv([self._empty], self._peer, _TRAILER), bounced, borrowed, None)
        trailer = self._group.send([self._empty], self._peer, _TRAILER)
        return _Batch(works, self._group.recv([self._empty], self._peer, _ACK), bounced, borrowed, trailer)

    def _bounce(self, bytes: int, borrowed: list[torch.Tensor]) -> torch.Tensor:
        """A buffer (uint8 [bytes]), of those that earlier batches gave back where one is long enough."""
        import torch

        buffer = self._bounces.pop() if self._bounces else torch.empty(bytes, dtype=torch.uint8)
        if buffer.numel() < bytes:
            buffer = torch.empty(bytes, dtype=torch.uint8)
        borrowed.append(buffer)
        return buffer.narrow(0, 0, bytes)

    def _finish(self, batch: _Batch) -> None:
        batch.end.wait(self._stall)
        for work in batch.works:
            work.wait(self._stall)
        for buffer, piece in batch.bounced:
            scatter(buffer, piece)
        if batch.trailer is None:
            self._acks.append(self._group.send([self._empty], self._peer, _ACK))
        else:
            batch.trailer.wait(self._stall)
        self._bounces += batch.borrowed[: _BOUNCES_KEPT - len(self._bounces)]

    def _destroy(self) -> None:
        import torch

        poison = torch.empty(1, dtype=torch.uint8)
        while True:
            try:
                self._group.recv([poison], self._peer, _POISON).wait(timedelta(milliseconds=1))
            except RuntimeError:
                return  # the pair is closed, by this wait or before it
            # The peer had sent something with this tag, which nobody may do. It has been read; once more.


def _check_cpu(pool: BlockPool) -> None:
    if pool.arena.device.type != "cpu":
        raise LocalError(f"transport gloo with a pool on {pool.arena.device}: gloo moves memory of the CPU only")
    reason = absent()
    if reason is not None:
        raise LocalError(f"transport gloo cannot run here: {reason}")


class GlooReceiver(OrderedReceiver):
    """Options: ``host``, ``connect_timeout_s``, ``stall_timeout_s``, ``piece_bytes``."""

    traits = TRAITS

    def __init__(self, pool: BlockPool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        _check_cpu(pool)
        self._timeouts_s = timeouts_s(options)
        self._store = StoreHost(str(options.get("host", "127.0.0.1")))

    def _address(self) -> bytes:
        return msgspec.msgpack.encode(self._store.address)

    def _join(self, boot_id: int) -> Communicator:
        prefix = f"{self.boot_id}/{boot_id}"
        communicator = GlooCommunicator(GroupPlace(self._store.address, prefix, RECEIVER_RANK, *self._timeouts_s))
        communicator.start()
        return communicator

    def close(self) -> None:
        super().close()
        self._store.close()


class GlooSender(OrderedSender):
    """Options: ``connect_timeout_s``, ``stall_timeout_s``, ``piece_bytes``."""

    traits = TRAITS

    def __init__(self, pool: SourcePool, *, rank: int, boot_id: int, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=rank, boot_id=boot_id, options=options)
        _check_cpu(pool)
        self._timeouts_s = timeouts_s(options)

    def _join(self, boot_id: int, address: bytes) -> Communicator:
        prefix = f"{boot_id}/{self.boot_id}"
        communicator = GlooCommunicator(GroupPlace(read_address(address), prefix, SENDER_RANK, *self._timeouts_s))
        communicator.start()
        return communicator


def timeouts_s(options: Mapping[str, Any]) -> tuple[float, float]:
    """``connect_timeout_s`` and ``stall_timeout_s`` of the options. Raises ``LocalError``."""
    return (
        positive_option(options, "connect_timeout_s", CONNECT_TIMEOUT_S),
        positive_option(options, "stall_timeout_s", STALL_TIMEOUT_S),
    )


def absent() -> str | None:
    """Why gloo cannot run here, or ``None``."""
    try:
        import torch.distributed as distributed
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    if not distributed.is_available() or not distributed.is_gloo_available():
        return "this torch was built without gloo"
    return None


TRANSPORT: Final = Transport(TRAITS, GlooReceiver, GlooSender, absent)
