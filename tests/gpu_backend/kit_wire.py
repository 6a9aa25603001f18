"""A control plane in memory, with the interface of ``gpu_backend.control``, whose every message a test can hold,
repeat or lose.

A message travels as bytes, as on a socket. Hellos and the transports' side channel come whole and in order, as a
connection delivers them; only protocol messages meet with accidents. ``auto`` delivers everything at once.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from fsm.messages import Message, decode, describe, encode
from gpu_backend.control import Greeted, Hello, Received, Side


class Letter(NamedTuple):
    """A protocol message under way."""

    to_sender: bool
    rank: int
    """The receiver rank that sent it or that it is for."""
    boot_id: int
    """The process that sent it."""
    data: bytes

    def __str__(self) -> str:
        return f"{'->' if self.to_sender else '<-'} {describe(decode(self.data))}"


class Wire:
    """Between one sender and the receiver ranks that it serves."""

    def __init__(self, *, auto: bool = True) -> None:
        self.auto = auto
        self.letters: list[Letter] = []
        self.sender: ServerEnd | None = None
        self.receivers: dict[int, ClientEnd] = {}
        self.lost = 0

    def post(self, letter: Letter) -> None:
        """A side sends a message."""
        self.letters.append(letter)
        if self.auto:
            self.deliver(len(self.letters) - 1)

    def deliver(self, index: int, *, keep: bool = False) -> None:
        """Hand letter ``index`` over; with ``keep`` it will come again."""
        letter = self.letters[index] if keep else self.letters.pop(index)
        end = self.sender if letter.to_sender else self.receivers.get(letter.rank)
        if end is not None and not end.closed:
            end.inbox.append(Received(letter.rank, letter.boot_id, decode(letter.data)))

    def deliver_all(self) -> None:
        """Hand everything over, in order."""
        while self.letters:
            self.deliver(0)

    def drop(self, index: int) -> None:
        """Lose letter ``index``."""
        del self.letters[index]
        self.lost += 1

    def greet(self) -> None:
        """Everybody who is there learns of everybody else."""
        sender = self.sender
        for receiver in self.receivers.values():
            if sender is not None and not sender.closed and not receiver.closed:
                receiver.meet(sender.hello)
                sender.meet(receiver.hello)


class _End:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.inbox: deque[Any] = deque()
        self.closed = False
        self.linger_s = -1.0
        """How long ``close`` was told to wait for what was sent."""
        self.met: list[tuple[int, int]] = []
        self.hello: Hello

    def poll(self, limit: int = 256) -> list[Any]:
        """What came, at most ``limit`` things."""
        taken: list[Any] = []
        while self.inbox and len(taken) < limit:
            taken.append(self.inbox.popleft())
        return taken

    def pending(self) -> bool:
        """Whether something has come."""
        return bool(self.inbox)

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        """Nothing tells when something comes: sleep a little."""
        return select.select(list(fds), (), (), min(timeout_s, 0.001))[0]

    def meet(self, hello: Hello) -> None:
        """A hello comes; the same one is told once."""
        name = (hello.rank, hello.boot_id)
        if name not in self.met:
            self.met.append(name)
            self.inbox.append(Greeted(hello))

    def set_hello(self, hello: Hello) -> None:
        """This side goes on under another name."""
        self.hello = hello
        self.wire.greet()

    def close(self, linger_s: float = 0.0) -> None:
        """Nothing comes or goes any more."""
        self.closed = True
        self.linger_s = linger_s


class ServerEnd(_End):
    """The sender's end."""

    endpoint = "wire"

    def __init__(self, wire: Wire, hello: Hello | None = None) -> None:
        super().__init__(wire)
        wire.sender = self
        if hello is not None:
            self.set_hello(hello)

    def send(self, receiver_rank: int, message: Message) -> bool:
        """To a receiver rank; whether somebody of that rank is there."""
        if self.closed or receiver_rank not in self.wire.receivers:
            return False
        self.wire.post(Letter(False, receiver_rank, self.hello.boot_id, encode(message)))
        return True

    def send_side(self, receiver_rank: int, data: bytes) -> bool:
        """To the transport of a receiver rank."""
        end = self.wire.receivers.get(receiver_rank)
        if end is None or end.closed:
            return False
        end.inbox.append(Side(receiver_rank, self.hello.boot_id, data))
        return True


class ClientEnd(_End):
    """A receiver rank's end."""

    def __init__(self, wire: Wire, rank: int, hello: Hello | None = None) -> None:
        super().__init__(wire)
        self.rank = rank
        wire.receivers[rank] = self
        if hello is not None:
            self.set_hello(hello)

    def send(self, message: Message) -> bool:
        """To the sender; whether it is there."""
        if self.closed or self.wire.sender is None:
            return False
        self.wire.post(Letter(True, self.rank, self.hello.boot_id, encode(message)))
        return True

    def send_side(self, data: bytes) -> bool:
        """To the sender's transport."""
        end = self.wire.sender
        if end is None or end.closed:
            return False
        end.inbox.append(Side(self.rank, self.hello.boot_id, data))
        return True
