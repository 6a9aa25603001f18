"""As much of the NIXL library as the transport needs, with types, and with one kind of error.

NIXL has no types and a dozen exceptions without a common base, so every call of it is in this module. What it was
seen to do (version 1.5.1, UCX; the transport is built on this):

* ``check_xfer_state`` and ``transfer`` *raise* when the peer is gone; they do not return ``"ERR"``.
* ``release_xfer_handle`` on a transfer under way returns without an error, and the bytes go on arriving (512 MiB
  over tcp: a quarter had arrived at the release, all of it 0.4 s later). A release proves nothing.
* ``remove_remote_agent`` while a transfer is under way makes its state unknowable (``nixlNotFoundError``).
* After an error towards a peer every transfer to it fails until it is removed and added again.
* ``transfer`` gives the interpreter's lock up while it copies.
* ``transfer`` can return before all is done even where the copy is made inside the call: a stopped receiver has
  all bytes, and the transfer stays ``"PROC"`` until it runs again.
* Importing it sets ``logging.raiseExceptions`` for the whole process and logs to the standard output; both are undone.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from fsm.errors import LocalError

MODULES: Final = ("nixl", "nixl_cu12", "nixl_cu13")
"""Where the library may be: the chooser, or one of the two builds (both run without CUDA)."""

Handle: TypeAlias = Any
"""A transfer; opaque."""

Ranges: TypeAlias = Sequence[tuple[int, int, int]]
"""Address, bytes, device."""


class NixlError(Exception):
    """NIXL raised something, or said ``"ERR"``."""


_loaded: dict[str, Any] = {}


def load() -> Any:
    """The NIXL module. Raises ``LocalError``, with what each import said, if there is none."""
    if "module" in _loaded:
        return _loaded["module"]
    said = []
    raise_exceptions = logging.raiseExceptions
    for name in MODULES:
        try:
            _loaded["module"] = importlib.import_module(f"{name}._api")
            break
        except Exception as error:
            # Not only ImportError: a build for another system fails in whatever way its libraries do.
            said.append(f"{name}: {error}")
        finally:
            logging.raiseExceptions = raise_exceptions
    else:
        raise LocalError(f"nixl cannot be imported ({'; '.join(said)}); install nixl or nixl-cu12")
    if "NIXL_LOG_LEVEL" not in os.environ:
        logging.getLogger("nixl").setLevel(logging.WARNING)
    return _loaded["module"]


class Agent:
    """A NIXL agent with the UCX backend. Use from one thread."""

    def __init__(self, name: str, *, progress_thread: bool = False) -> None:
        """Takes about half a second. Raises ``LocalError`` without NIXL, ``NixlError`` without UCX."""
        api = load()
        self.name = name
        self._agent = self._try(
            api.nixl_agent, name, api.nixl_agent_config(enable_prog_thread=progress_thread, backends=["UCX"])
        )
        if "UCX" not in self._agent.backends:
            raise NixlError("this build of NIXL has no UCX plugin")
        self._registered: list[Any] = []

    @staticmethod
    def _try(call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            raise NixlError(f"{type(error).__name__}: {error}") from error

    def register(self, address: int, size_bytes: int, memory: str, device: int) -> None:
        """Makes a range of ``DRAM`` or ``VRAM`` known; stays so until ``close``."""
        ranges = [(address, size_bytes, device, "")]
        self._registered.append(self._try(self._agent.register_memory, ranges, memory))

    def metadata(self) -> bytes:
        """What a peer needs to add this agent; complete only after ``register``."""
        return bytes(self._try(self._agent.get_agent_metadata))

    def add(self, metadata: bytes) -> str:
        """Makes a peer known, and says its name. Raises ``NixlError`` for bytes that are no metadata."""
        name = self._try(self._agent.add_remote_agent, metadata)
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def meet(self, name: str) -> None:
        """Begins to connect to a peer that was added, so that the first write finds it done."""
        self._try(self._agent.make_connection, name)

    def remove(self, name: str) -> None:
        """Forgets a peer and closes the connection to it. Nothing to it may be under way."""
        self._try(self._agent.remove_remote_agent, name)

    def prepare(self, sources: Ranges, targets: Ranges, memory: tuple[str, str], peer: str, notice: bytes) -> Handle:
        """A write that is not started: ``memory`` is the kind on this side and on the peer's."""
        local = self._try(self._agent.get_xfer_descs, sources, memory[0])
        remote = self._try(self._agent.get_xfer_descs, targets, memory[1])
        return self._try(self._agent.initialize_xfer, "WRITE", local, remote, peer, notice)

    def post(self, handle: Handle) -> bool:
        """Starts a write; whether it is already done. Raises ``NixlError``, and then it may be under way or not."""
        return self._done(self._try(self._agent.transfer, handle))

    def check(self, handle: Handle) -> bool:
        """Whether a write is done. Raises ``NixlError`` if it ended otherwise."""
        return self._done(self._try(self._agent.check_xfer_state, handle))

    @staticmethod
    def _done(state: str) -> bool:
        if state not in ("DONE", "PROC"):
            raise NixlError(f"the transfer's state is {state}")
        return state == "DONE"

    def release(self, handle: Handle) -> None:
        """Gives back a write that has ended."""
        self._try(self._agent.release_xfer_handle, handle)

    def notices(self) -> list[tuple[str, bytes]]:
        """Notices that arrived, with the name of the agent that sent them. Makes progress on everything else."""
        found: dict[Any, list[bytes]] = self._try(self._agent.get_new_notifs)
        return [(str(name), bytes(text)) for name, texts in found.items() for text in texts]

    def close(self) -> None:
        """Deregisters everything and destroys the agent; every handle must be released before."""
        for registered in self._registered:
            self._try(self._agent.deregister_memory, registered)
        self._registered = []
        self._agent = None
