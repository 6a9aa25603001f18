"""Keys for the control plane: CurveZMQ key pairs, their files, and the gate that lets known keys in.

With keys, every frame is encrypted, and both ends prove who they are: the client knows the server's public
key beforehand, and the server lets in only the public keys on its list. ZeroMQ asks about each new connection
over an in-process socket (the ZAP protocol, RFC 27). :class:`Gate` answers, in a thread of its own, so that a
connection never waits for a busy worker. A stranger does not get one byte past the handshake.

The simplest deployment has one key file, copied to every worker: the same pair then serves on both sides, and
the list holds its own public key alone. A pair for each worker works as well: then the server is given the
clients' public keys, and the client the server's.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from fsm.errors import LocalError

_KEY_CHARACTERS: Final = 40
"""The length of a key in Z85 text, which stands for 32 bytes."""

_ZAP_ADDRESS: Final = "inproc://zeromq.zap.01"


@dataclass(frozen=True)
class CurveKeys:
    """A CurveZMQ key pair, both as 40 characters of Z85. The secret stays out of ``repr``."""

    public: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        check_key("public", self.public)
        check_key("secret", self.secret)
        if public_of(self.secret) != self.public:
            raise LocalError("the public key does not belong to the secret key: give both of one pair")

    @classmethod
    def generate(cls) -> CurveKeys:
        """A new pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write both keys to a new file that only its owner may read. Raises LocalError if there is one."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise LocalError(f"cannot write the key file {os.fspath(path)}: {error.strerror}") from error
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(f"{self.public}\n{self.secret}\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CurveKeys:
        """Read what :meth:`save` wrote.

        Raises :class:`LocalError` if the file is missing, holds anything else, or others may read it.
        """
        name = os.fspath(path)
        try:
            mode = os.stat(path).st_mode
            lines = Path(path).read_bytes().decode("ascii").split()
        except (OSError, UnicodeDecodeError) as error:
            raise LocalError(f"cannot read the key file {name}: {error}") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise LocalError(f"the key file {name} is open to others (mode {mode & 0o777:o}): run chmod 600 {name}")
        if len(lines) != 2:
            raise LocalError(f"the key file {name} has {len(lines)} words: expected a public and a secret key")
        return cls(lines[0], lines[1])


def public_of(secret: str) -> str:
    """The public key that belongs to a secret one."""
    return zmq.curve_public(secret.encode()).decode()


def check_key(name: str, key: object) -> None:
    """Raise :class:`LocalError` unless this is a key in Z85. The text never shows the key."""
    try:
        good = isinstance(key, str) and len(key) == _KEY_CHARACTERS and len(z85.decode(key.encode("ascii"))) == 32
    except Exception:  # The decoder raises KeyError, struct.error and others; each of them means "no key".
        good = False
    if not good:
        raise LocalError(f"the {name} key is not a CurveZMQ key: expected {_KEY_CHARACTERS} characters of Z85")


class Gate:
    """Answers a context's ZAP requests: 200 to a CURVE key on the list, 400 to everybody else.

    Its thread owns its socket, and ends when the context does: close the context, then :meth:`join`.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: Collection[str]) -> None:
        for key in allowed:
            check_key("client's public", key)
        self._allowed = frozenset(z85.decode(key.encode()) for key in allowed)
        self.refused = 0
        """Connections turned away so far."""
        socket = context.socket(zmq.REP)
        socket.linger = 0
        socket.bind(_ZAP_ADDRESS)
        self._thread = threading.Thread(target=self._serve, args=(socket,), name="curve-gate", daemon=True)
        self._thread.start()

    def _serve(self, socket: zmq.Socket[bytes]) -> None:
        with socket:
            while True:
                try:
                    request = socket.recv_multipart()
                    socket.send_multipart(self._answer(request))
                except zmq.ZMQError:
                    # ContextTerminated is the normal end. After any other error nobody can get in any more.
                    return

    def _answer(self, request: list[bytes]) -> list[bytes]:
        # version, request id, domain, address, routing id, mechanism, credentials...
        request_id = request[1] if len(request) > 1 else b""
        if len(request) == 7 and request[5] == b"CURVE" and request[6] in self._allowed:
            return [b"1.0", request_id, b"200", b"OK", b"", b""]
        self.refused += 1
        return [b"1.0", request_id, b"400", b"unknown key", b"", b""]

    def join(self) -> None:
        """Wait for the thread to end, after the context was terminated."""
        self._thread.join()
