"""Helpers for the tests of the control plane: two ends and their pump, strangers, a line that can be cut."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from fsm.messages import Abort, Epoch, Heartbeat
from gpu_backend.control import ControlClient, ControlServer, Greeted, Hello, Incoming
from gpu_backend.process import ProcessIdentity

HANG_S = 60.0
"""Longer than anything here can rightly take; reached only when something hangs."""

LOCAL = "tcp://127.0.0.1:0"
SENDER_BOOT, RECEIVER_BOOT = 50, 70


def hello(role: str, rank: int = 0, boot_id: int = 0, **fields: Any) -> Hello:
    """A hello of this very process."""
    boot_id = boot_id or (SENDER_BOOT if role == "sender" else RECEIVER_BOOT)
    values = {"process": ProcessIdentity.of_self(), "transport": "fake", "data": b"greeting"} | fields
    return Hello(role, rank, boot_id, **values)  # type: ignore[arg-type]


def beat(rank: int = 0, boot_id: int = RECEIVER_BOOT) -> Heartbeat:
    """A heartbeat between sender 0 and this receiver rank."""
    return Heartbeat(boot_id, 0, rank)


def abort(room: int, rank: int = 0, reason: str = "") -> Abort:
    """A message about a room."""
    return Abort(room, Epoch(RECEIVER_BOOT, 1), 0, rank, reason)


def head(kind: bytes, from_boot_id: int, to_boot_id: int = SENDER_BOOT) -> bytes:
    """The first frame of a message, written down once more."""
    return struct.pack(">cQQ", kind, from_boot_id, to_boot_id)


Heard = dict[Any, list[Incoming]]


def pump(*ends: Any, until: Callable[[Heard], Any]) -> Heard:
    """Let the ends talk until the condition on what each has heard is true; fail if it never is."""
    heard: Heard = {end: [] for end in ends}
    deadline_s = time.monotonic() + HANG_S
    while not until(heard):
        assert time.monotonic() < deadline_s, f"nothing more came: {list(heard.values())}"
        for end in ends:
            heard[end] += end.poll()
        if not until(heard):
            ends[0].wait(0.002, [end.fd for end in ends[1:]])
    return heard


def greet(server: ControlServer, *clients: ControlClient) -> Heard:
    """Let all say hello."""
    return pump(server, *clients, until=lambda _: all(c.connected for c in clients))


def greetings(incoming: list[Incoming]) -> list[int]:
    """The boot ids of those who said hello."""
    return [one.hello.boot_id for one in incoming if isinstance(one, Greeted)]


@contextmanager
def stranger(endpoint: str, **options: Any) -> Iterator[zmq.Socket[bytes]]:
    """A ZeroMQ socket that nobody has invited."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = context.socket(zmq.DEALER)
    made.linger = 0
    for name, value in options.items():
        setattr(made, name, value)
    made.connect(endpoint)
    try:
        yield made
    finally:
        made.close(0)
        context.term()


def answer(server: ControlServer, socket: zmq.Socket[bytes]) -> list[bytes]:
    """What a stranger is told, while the server works."""
    deadline_s = time.monotonic() + HANG_S
    while not socket.poll(2):
        assert time.monotonic() < deadline_s, "the stranger got no answer"
        server.poll()
    return socket.recv_multipart()


class Line:
    """A TCP line to ``endpoint`` that can be cut, on either side or on both."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            with self._lock:
                other = {a: b for near, far in self._pairs for a, b in ((near, far), (far, near))}
                ready, _, _ = select.select([self._listener, *other], [], [], 0.005)
                for one in ready:
                    if one is self._listener:
                        self._pairs.append((one.accept()[0], socket.create_connection(self._target)))
                    else:
                        self._copy(one, other[one])

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            data = source.recv(65536)
            target.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._pairs = [pair for pair in self._pairs if source not in pair]
            source.close()
            target.close()

    def cut(self, *, far_too: bool = True) -> int:
        """End all connections; without ``far_too`` the server does not notice. How many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            self._kept = pairs
            for near, far in pairs:
                near.close()
                if far_too:
                    far.close()
            return len(pairs)

    def close(self) -> None:
        """Stop."""
        self._over = True
        self._thread.join()
        self.cut()
        self._listener.close()
