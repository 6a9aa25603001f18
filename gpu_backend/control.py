"""The control plane: a sender's ROUTER, and one DEALER for each receiver rank that it serves.

The messages of :mod:`fsm.messages` and the transports' side channel travel over ZeroMQ. Messages may be lost
here: whoever awaits an answer asks again, so nothing in this file waits, queues on its own account or retries
a message. What this file does promise is *who* said something: an incoming message carries the rank and the
``boot_id`` of the process that sent it, and never those of its predecessor.

**Frames.** Two to a message: a head, which is the kind, the ``boot_id`` of the process that speaks, and the one
it believes it speaks to (0 if it does not know); then the payload.

====  ===========  ==========================================================================================
kind  direction    payload
====  ===========  ==========================================================================================
H     both         a :class:`Hello`: the receiver speaks first, the sender answers with its own
M     both         a message of fsm
T     both         side channel of the transport, opaque
?     to receiver  nothing. "Who are you?": what you sent was dropped, say hello
N     to receiver  a text: why your hello was refused
====  ===========  ==========================================================================================

**Routes.** Until both have said hello nothing else passes. The sender keeps one route for each rank; it is the
ZeroMQ identity of a connection, which the receiver draws at random for each process and tells nobody else, and
it outlives a reconnect. A route changes only by a hello with a newer ``boot_id``. A hello that is repeated word
for word over another connection has the same ``boot_id`` and another identity, and is refused. Whoever is not
known is answered by ``?``. A new connection announces itself with an empty frame, and so a restarted sender
learns of its receivers, and they of it, before either has anything to say.

A frame that speaks for another process than the one that said hello, or to another than this one, is dropped.
So what a process left in the queues is never taken for words of its successor.

**Strangers.** On a loopback address without keys, any process of this machine can connect. It can send nonsense,
huge frames, recordings of others: it gets ``?`` or is cut off, and what it says is not even decoded. What it can
do is make up a hello with a newer ``boot_id``, and fill memory with connections of its own. If processes on the
machine are not trusted, use keys, with which a stranger gets nothing past the handshake (:mod:`gpu_backend.keys`).
An address that others can reach needs keys, or the explicit ``insecure=True``.

**Threads.** A ZeroMQ socket belongs to one thread. So does everything here, and any other caller is refused.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Final, Literal, NamedTuple

import zmq

from fsm.errors import LocalError, RemoteError
from fsm.messages import SIZE_MAX, TEXT_MAX, Heartbeat, Message, decode, encode, nack_for
from gpu_backend.addresses import reach_of
from gpu_backend.hello import (
    ControlCounters,
    Greeted,
    Hello,
    Incoming,
    Received,
    Rejected,
    Side,
    decode_hello,
    encode_hello,
)
from gpu_backend.keys import CurveKeys, Gate, check_key
from gpu_backend.process import Owner

__all__ = [
    "ControlClient",
    "ControlCounters",
    "ControlServer",
    "CurveKeys",
    "Greeted",
    "Hello",
    "Incoming",
    "Received",
    "Rejected",
    "Side",
]

POLL_LIMIT: Final = 256
"""The most frames that one poll looks at, so that a flood cannot keep a worker from its other work."""

QUEUE_MESSAGES_MAX: Final = 512
"""The most messages that wait for one peer, in each direction."""

_HELLO: Final = b"H"
_MESSAGE: Final = b"M"
_SIDE: Final = b"T"
_WHO: Final = b"?"
_REFUSED: Final = b"N"
_HEAD: Final = struct.Struct(">cQQ")
_FRAMES_MAX: Final = 4
"""More frames than any message has; those behind are read and forgotten."""


class _Control:
    """What both ends have in common: a socket with bounds, its owner, sending and receiving of frames."""

    _PEER_ROLE: Literal["sender", "receiver"]

    def __init__(
        self, what: str, hello: Hello, keys: CurveKeys | None, message_bytes_max: int, queue_messages_max: int
    ) -> None:
        if hello.role == self._PEER_ROLE:
            raise LocalError(f"hello.role={hello.role!r}: this end speaks to {self._PEER_ROLE}s, so it is the other")
        if message_bytes_max < 1024:
            raise LocalError(f"message_bytes_max={message_bytes_max}: expected 1024 bytes or more")
        if queue_messages_max < 1:
            raise LocalError(f"queue_messages_max={queue_messages_max}: expected 1 or more")
        self.hello = hello
        self.counters = ControlCounters()
        self.message_bytes_max = message_bytes_max
        self._queue_messages_max = queue_messages_max
        self._keys = keys
        self._hello_bytes = self._checked(encode_hello(hello))
        self._owner = Owner(what)
        # A context of its own: ZAP names its gate by context, and closing this end touches no other.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def _make_socket(self, kind: int, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.setsockopt(zmq.MAXMSGSIZE, self.message_bytes_max)
        socket.setsockopt(zmq.SNDHWM, self._queue_messages_max)
        socket.setsockopt(zmq.RCVHWM, self._queue_messages_max)
        socket.setsockopt(zmq.IPV6, int("[" in address))
        # A peer whose machine has gone is noticed, and a stranger who never finishes the handshake is cut off.
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20_000)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
        if self._keys is not None:
            socket.curve_publickey = self._keys.public.encode()
            socket.curve_secretkey = self._keys.secret.encode()
        return socket

    # Filled in by the two ends.
    socket: zmq.Socket[bytes]

    def _take(self, frames: list[bytes]) -> Incoming | None:
        raise NotImplementedError

    # For whoever sleeps ---------------------------------------------------------------------------------

    @property
    def fd(self) -> int:
        """Readable when something *may* have come in. It tells of changes only (it is edge-triggered): before
        sleeping on it, call :meth:`pending`, and do not sleep if that is true. :meth:`wait` does all this."""
        return int(self.socket.getsockopt(zmq.FD))

    def pending(self) -> bool:
        """Whether a poll would find something."""
        self._owner.check()
        return self._readable()

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        """Sleep until something has come in, one of the ``fds`` is readable, or ``timeout_s`` is over.

        Returns the ``fds`` that are readable. May return early for no visible reason.
        """
        if self.pending():
            timeout_s = 0.0
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        for fd in fds:
            poller.register(fd, zmq.POLLIN)
        events = poller.poll(max(0, int(self._sleep_s(timeout_s) * 1000.0 + 0.999)))
        return [source for source, _ in events if isinstance(source, int)]

    def _sleep_s(self, timeout_s: float) -> float:
        return timeout_s

    def _readable(self) -> bool:
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    # In -------------------------------------------------------------------------------------------------

    def poll(self, limit: int = POLL_LIMIT) -> list[Incoming]:
        """What has come in, at most ``limit`` frames of it, connections taking turns. Never blocks.

        Raises nothing that a peer could cause; :class:`LocalError` for another thread and after ``close``.
        """
        self._owner.check()
        incoming: list[Incoming] = []
        for _ in range(limit):
            frames = self._receive()
            if frames is None:
                return incoming
            one = self._take(frames)
            if one is not None:
                incoming.append(one)
        return incoming

    def _receive(self) -> list[bytes] | None:
        # Asking first is far cheaper than the exception, and most polls find nothing.
        if not self._readable():
            return None
        try:
            frames = [self.socket.recv(zmq.NOBLOCK)]
        except zmq.Again:
            return None
        while self.socket.getsockopt(zmq.RCVMORE):
            frame = self.socket.recv()
            if len(frames) < _FRAMES_MAX:
                frames.append(frame)
        return frames

    def _take_message(self, peer: Hello, data: bytes, answer: list[bytes]) -> Incoming:
        """A message from a peer that has said hello. ``answer`` is where a NACK goes (see :meth:`_send`)."""
        try:
            message = decode(data, size_max=self.message_bytes_max)
        except RemoteError as error:
            self.counters.malformed += 1
            nack = nack_for(data, error, boot_id=self.hello.boot_id)
            if nack is not None:
                self._send([*answer, self._head(_MESSAGE, peer.boot_id), encode(nack)])
            return Rejected(str(error)[:TEXT_MAX], error.room, peer.rank)
        ranks = (message.sender_rank, message.receiver_rank)
        expected = (peer.rank, self.hello.rank) if peer.role == "sender" else (self.hello.rank, peer.rank)
        if ranks != expected:
            self.counters.malformed += 1
            room = None if isinstance(message, Heartbeat) else message.room
            text = f"a message between sender {ranks[0]} and receiver {ranks[1]} on a connection between {expected}"
            return Rejected(text, room, peer.rank)
        self.counters.received += 1
        return Received(peer.rank, peer.boot_id, message)

    def _malformed(self, text: str, rank: int | None) -> Rejected:
        self.counters.malformed += 1
        return Rejected(text, None, rank)

    def _read_hello(self, data: bytes) -> Hello:
        """The hello in these bytes; RemoteError if it makes no sense here."""
        hello = decode_hello(data)
        if hello.role != self._PEER_ROLE:
            raise RemoteError(f"hello from a {hello.role}: expected a {self._PEER_ROLE}")
        if hello.transport != self.hello.transport:
            raise RemoteError(
                f"{hello.role} {hello.rank} uses the transport {hello.transport!r}, and this {self.hello.role} "
                f"{self.hello.transport!r}: choose the same on both sides"
            )
        return hello

    # Out ------------------------------------------------------------------------------------------------

    def _head(self, kind: bytes, to_boot_id: int) -> bytes:
        return _HEAD.pack(kind, self.hello.boot_id, to_boot_id)

    def _checked(self, data: bytes) -> bytes:
        if len(data) > self.message_bytes_max:
            raise LocalError(
                f"a payload of {len(data)} bytes is longer than message_bytes_max={self.message_bytes_max}: "
                f"raise that on both sides, or send less at a time"
            )
        return data

    def _send(self, frames: list[bytes]) -> bool:
        """Send one message, or count why not."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            self.counters.unsent_full += 1
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.counters.unsent_unreachable += 1
            return False
        self.counters.sent += 1
        return True

    def _change_hello(self, hello: Hello) -> None:
        self._owner.check()
        if (hello.role, hello.rank) != (self.hello.role, self.hello.rank) or hello.boot_id <= self.hello.boot_id:
            raise LocalError(
                f"cannot go on as {hello.role} {hello.rank} with boot_id={hello.boot_id}: expected "
                f"{self.hello.role} {self.hello.rank} with more than {self.hello.boot_id}"
            )
        self._hello_bytes = self._checked(encode_hello(hello))
        self.hello = hello

    # The end --------------------------------------------------------------------------------------------

    def close(self, linger_s: float = 0.0) -> None:
        """Close, and wait up to ``linger_s`` for what was sent to leave this process. A second call does nothing."""
        if self._owner.closed:
            return
        self._owner.check()
        self._owner.closed = True
        self.socket.close(linger=max(0, int(linger_s * 1000)))
        self._context.term()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Route(NamedTuple):
    """The way to the process that speaks for a rank."""

    identity: bytes
    hello: Hello


class ControlServer(_Control):
    """The sender's end: listens at ``address``, and serves the ``receiver_ranks``.

    ``keys`` are this server's own pair; ``client_keys`` are the public keys let in, by default only the public
    key of ``keys`` (one pair for all). ``message_bytes_max`` bounds each message before it is looked at, and
    ``queue_messages_max`` what waits for each peer.

    Raises :class:`LocalError` for an address that others can reach without keys, one that cannot be bound, and a
    hello that is none.
    """

    _PEER_ROLE = "receiver"

    def __init__(
        self,
        address: str,
        hello: Hello,
        *,
        receiver_ranks: Collection[int],
        keys: CurveKeys | None = None,
        client_keys: Collection[str] | None = None,
        insecure: bool = False,
        message_bytes_max: int = SIZE_MAX,
        queue_messages_max: int = QUEUE_MESSAGES_MAX,
    ) -> None:
        _require_keys(address, keys, insecure)
        super().__init__(f"the control server at {address}", hello, keys, message_bytes_max, queue_messages_max)
        self.receiver_ranks = frozenset(receiver_ranks)
        self._routes: dict[int, _Route] = {}
        self._rank_of: dict[bytes, int] = {}
        self.socket = self._make_socket(zmq.ROUTER, address)
        # Say so when a peer is not there; and let a reconnect have its identity back from a dead connection.
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            if keys is not None:
                self.socket.curve_server = True
                # The gate is asked without a domain as well, but libzmq may be built or set to insist on one.
                self.socket.zap_domain = b"resumark"
                self._gate = Gate(self._context, [keys.public] if client_keys is None else client_keys)
            self.socket.bind(address)
        except (zmq.ZMQError, LocalError) as error:
            self.close()
            if isinstance(error, LocalError):
                raise
            raise LocalError(f"address={address!r}: cannot listen there: {error}") from error

    @property
    def endpoint(self) -> str:
        """The address that clients connect to, with the actual port."""
        self._owner.check()
        endpoint = self.socket.getsockopt(zmq.LAST_ENDPOINT)
        return os.fsdecode(endpoint.rstrip(b"\0")) if isinstance(endpoint, bytes) else str(endpoint)

    def peer(self, receiver_rank: int) -> Hello | None:
        """Who speaks for this rank; ``None`` before anybody has said hello."""
        route = self._routes.get(self._known_rank(receiver_rank))
        return route.hello if route is not None else None

    def send(self, receiver_rank: int, message: Message) -> bool:
        """Send to whoever speaks for this rank. ``False``: nobody does, it is gone, or its queue is full.

        Raises :class:`LocalError` for a rank that is not served here, and a message that cannot be encoded.
        """
        return self._send_to(receiver_rank, _MESSAGE, encode(message))

    def send_side(self, receiver_rank: int, data: bytes) -> bool:
        """Send side channel data; as :meth:`send`."""
        return self._send_to(receiver_rank, _SIDE, data)

    def set_hello(self, hello: Hello) -> None:
        """Go on as a new process would: under a newer ``boot_id``, which every known receiver is told."""
        self._change_hello(hello)
        for route in self._routes.values():
            self._send([route.identity, self._head(_HELLO, route.hello.boot_id), self._hello_bytes])

    def __enter__(self) -> ControlServer:
        return self

    def _known_rank(self, receiver_rank: int) -> int:
        self._owner.check()
        if receiver_rank not in self.receiver_ranks:
            served = ", ".join(map(str, sorted(self.receiver_ranks))) or "none"
            raise LocalError(f"receiver_rank={receiver_rank}: sender {self.hello.rank} serves the ranks {served}")
        return receiver_rank

    def _send_to(self, receiver_rank: int, kind: bytes, data: bytes) -> bool:
        route = self._routes.get(self._known_rank(receiver_rank))
        self._checked(data)
        if route is None:
            self.counters.unsent_unknown += 1
            return False
        return self._send([route.identity, self._head(kind, route.hello.boot_id), data])

    def _take(self, frames: list[bytes]) -> Incoming | None:
        identity, parts = frames[0], frames[1:]
        rank = self._rank_of.get(identity)
        peer = self._routes[rank].hello if rank is not None else None
        if parts == [b""]:
            # A new connection announces itself. Of a known identity it is a reconnect.
            if peer is None:
                self._ask(identity)
            return None
        if len(parts) != 2 or len(parts[0]) != _HEAD.size:
            if peer is None:
                self._ask(identity)
            return self._malformed("frames that are no message of the control plane", rank)
        kind, from_boot_id, to_boot_id = _HEAD.unpack(parts[0])
        if kind == _HELLO:
            return self._take_hello(identity, parts[1])
        if peer is None:
            self.counters.unknown += 1
            self._ask(identity)
            return None
        if from_boot_id != peer.boot_id or to_boot_id != self.hello.boot_id:
            self.counters.stale += 1
            self._ask(identity)
            return None
        if kind == _MESSAGE:
            return self._take_message(peer, parts[1], [identity])
        if kind == _SIDE:
            return Side(peer.rank, peer.boot_id, parts[1])
        return self._malformed(f"unknown kind of frame {kind!r}", rank)

    def _ask(self, identity: bytes) -> None:
        self._send([identity, self._head(_WHO, 0), b""])

    def _take_hello(self, identity: bytes, data: bytes) -> Incoming | None:
        try:
            hello = self._read_hello(data)
            known = self._admit(identity, hello)
        except RemoteError as error:
            self.counters.hellos_refused += 1
            text = str(error)[:TEXT_MAX]
            self._send([identity, self._head(_REFUSED, 0), text.encode()])
            return Rejected(text)
        self._send([identity, self._head(_HELLO, hello.boot_id), self._hello_bytes])
        if known:
            return None
        self.counters.greeted += 1
        return Greeted(hello)

    def _admit(self, identity: bytes, hello: Hello) -> bool:
        """Make or keep the route; whether it was known already. RemoteError if this process must not have it."""
        rank = hello.rank
        if rank not in self.receiver_ranks:
            raise RemoteError(f"receiver {rank} is not served by sender {self.hello.rank}")
        if self._rank_of.get(identity, rank) != rank:
            raise RemoteError(f"receiver {self._rank_of[identity]} now says that it is receiver {rank}")
        route = self._routes.get(rank)
        if route is not None and hello.boot_id <= route.hello.boot_id:
            if identity == route.identity and hello == route.hello:
                return True
            raise RemoteError(
                f"receiver {rank} is known with boot_id {route.hello.boot_id}: another process needs a newer one, "
                f"not {hello.boot_id}"
            )
        if route is not None:
            self._rank_of.pop(route.identity, None)
        self._routes[rank] = _Route(identity, hello)
        self._rank_of[identity] = rank
        return False


class ControlClient(_Control):
    """A receiver rank's end: connects to its sender at ``address``, now or whenever that is there.

    ``keys`` are this client's own pair; ``server_key`` is the server's public key, by default that of ``keys``
    (one pair for all). ``sender_rank`` is who is expected there; ``None`` takes the first that says hello. A hello
    that is not answered is said again every ``hello_resend_s``.

    Raises :class:`LocalError` for an address that others can reach without keys, and a hello that is none.
    """

    _PEER_ROLE = "sender"

    def __init__(
        self,
        address: str,
        hello: Hello,
        *,
        keys: CurveKeys | None = None,
        server_key: str | None = None,
        sender_rank: int | None = None,
        insecure: bool = False,
        hello_resend_s: float = 0.25,
        message_bytes_max: int = SIZE_MAX,
        queue_messages_max: int = QUEUE_MESSAGES_MAX,
    ) -> None:
        _require_keys(address, keys, insecure)
        if server_key is not None:
            check_key("server's public", server_key)
            if keys is None:
                raise LocalError("server_key was given without keys: give this client's own pair as keys")
        super().__init__(f"the control client of {address}", hello, keys, message_bytes_max, queue_messages_max)
        self.sender_rank = sender_rank
        self.hello_resend_s = hello_resend_s
        self._peer: Hello | None = None
        self._greeted = False
        self._hello_at_s = float("-inf")
        self._hello_is_out = False
        self.socket = self._make_socket(zmq.DEALER, address)
        self.socket.setsockopt(zmq.ROUTING_ID, b"r" + os.urandom(16))
        # Queue nothing for a connection that is not there: it would reach whoever is there next.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.PROBE_ROUTER, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
        if keys is not None:
            self.socket.curve_serverkey = (server_key or keys.public).encode()
        try:
            self.socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise LocalError(f"address={address!r}: cannot connect there: {error}") from error

    @property
    def peer(self) -> Hello | None:
        """The sender's process that said hello last; ``None`` before any did."""
        return self._peer

    @property
    def connected(self) -> bool:
        """Whether both have said hello, as far as is known here."""
        return self._greeted

    def poll(self, limit: int = POLL_LIMIT) -> list[Incoming]:
        """As for both ends; says hello again where that is due."""
        incoming = super().poll(limit)
        if not self._greeted and time.monotonic() - self._hello_at_s >= self.hello_resend_s:
            self._say_hello()
        return incoming

    def send(self, message: Message) -> bool:
        """Send to the sender. ``False``: there is none yet, or the queue is full.

        Raises :class:`LocalError` for a message that cannot be encoded.
        """
        return self._send_to(_MESSAGE, encode(message))

    def send_side(self, data: bytes) -> bool:
        """Send side channel data; as :meth:`send`."""
        return self._send_to(_SIDE, data)

    def set_hello(self, hello: Hello) -> None:
        """Go on as a new process would: under a newer ``boot_id``. Nothing is sent until the sender knows."""
        self._change_hello(hello)
        self._say_hello()

    def __enter__(self) -> ControlClient:
        return self

    def _sleep_s(self, timeout_s: float) -> float:
        if self._greeted:
            return timeout_s
        return min(timeout_s, max(0.0, self._hello_at_s + self.hello_resend_s - time.monotonic()))

    def _say_hello(self) -> None:
        self._greeted = False
        self._hello_at_s = time.monotonic()
        # Without a connection there is nowhere to say it; a new one will bring a "?".
        self._hello_is_out = bool(self.socket.poll(0, zmq.POLLOUT)) and self._send(
            [self._head(_HELLO, 0), self._hello_bytes]
        )

    def _send_to(self, kind: bytes, data: bytes) -> bool:
        self._owner.check()
        self._checked(data)
        if self._peer is None or not self._greeted:
            self.counters.unsent_unknown += 1
            return False
        return self._send([self._head(kind, self._peer.boot_id), data])

    def _take(self, frames: list[bytes]) -> Incoming | None:
        rank = self._peer.rank if self._peer is not None else None
        if len(frames) != 2 or len(frames[0]) != _HEAD.size:
            return self._malformed("frames that are no message of the control plane", rank)
        kind, from_boot_id, to_boot_id = _HEAD.unpack(frames[0])
        if kind == _HELLO:
            return self._take_hello(frames[1], to_boot_id)
        if kind == _REFUSED:
            self._greeted = False
            self.counters.hellos_refused += 1
            text = frames[1][: 4 * TEXT_MAX].decode("utf-8", "replace")
            return Rejected(f"the sender refused this receiver: {text}"[:TEXT_MAX], None, rank)
        if kind == _WHO:
            # Several may come for several messages; one hello answers them all.
            if self._greeted or not self._hello_is_out:
                self._say_hello()
            return None
        if self._peer is None or from_boot_id != self._peer.boot_id or to_boot_id != self.hello.boot_id:
            self.counters.stale += 1
            if self._greeted and self._peer is not None and from_boot_id > self._peer.boot_id:
                self._say_hello()
            return None
        if kind == _MESSAGE:
            return self._take_message(self._peer, frames[1], [])
        if kind == _SIDE:
            return Side(self._peer.rank, self._peer.boot_id, frames[1])
        return self._malformed(f"unknown kind of frame {kind!r}", rank)

    def _take_hello(self, data: bytes, to_boot_id: int) -> Incoming | None:
        try:
            hello = self._read_hello(data)
            expected = self._peer.rank if self._peer is not None else self.sender_rank
            if expected is not None and hello.rank != expected:
                raise RemoteError(f"sender {hello.rank} is at this address: expected sender {expected}")
            if self._peer is not None and hello != self._peer and hello.boot_id <= self._peer.boot_id:
                raise RemoteError(
                    f"sender {hello.rank} is known with boot_id {self._peer.boot_id}: another process needs a newer "
                    f"one, not {hello.boot_id}"
                )
        except RemoteError as error:
            self.counters.hellos_refused += 1
            return Rejected(str(error)[:TEXT_MAX], None, self._peer.rank if self._peer is not None else None)
        # An answer to what this process was called before set_hello does not prove that the new name is known.
        self._greeted = to_boot_id == self.hello.boot_id
        if hello == self._peer:
            return None
        self._peer = hello
        self.counters.greeted += 1
        return Greeted(hello)


def _require_keys(address: str, keys: CurveKeys | None, insecure: bool) -> None:
    _, local = reach_of(address)
    if not local and keys is None and not insecure:
        raise LocalError(
            f"address={address!r} can be reached by others, and there are no keys: give keys=CurveKeys(...) on both "
            f"sides, or say insecure=True if everybody who can reach it is trusted"
        )
