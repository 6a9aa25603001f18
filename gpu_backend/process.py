"""Who a process is, whether it is gone for certain, and which of its threads may call.

A block that a peer may still write to can be used again only when the peer is *proved* unable to write. For
transports that write through shared memory, an ended connection proves nothing: a stopped process can write
on after its connection has closed. The end of the process does prove it, and on Linux a pidfd tells of that
end without the race of a bare pid, whose number may belong to somebody else by now.

Two questions come first. Is it a process of *this* kernel, under the same numbering? The identity carries the
kernel's boot id and the PID namespace. And is it the *same* process as the one that introduced itself? The
identity carries the start time as well, in the kernel's ticks, which no later owner of the number shares.
Where either cannot be answered (another host, another container, another operating system, a hidden
``/proc``), the verdict is ``None``: cannot tell. ``None`` is never a proof.

What "gone" means here: the process has run its last instruction, and the kernel has closed its files and
unmapped its memory. A zombie is gone, a stopped process is not. Whatever a process handed to *another*
process (a forked child that shares a queue pair) is not covered.

One limit is known: two virtual machines that were cloned from one memory snapshot share a kernel boot id. A
peer in a clone looks like a process of this kernel. Do not use the end of a process as proof between clones.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import Annotated, Final

from msgspec import Meta, Struct

from fsm.errors import LocalError

_START_FIELD: Final = 22
"""Which field of ``/proc/<pid>/stat`` is the start time, counted from 1 (see proc(5))."""

_PID_MAX: Final = 2**31 - 1
_INT64_MAX: Final = 2**63 - 1


class ProcessIdentity(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """One process of one kernel. Equal identities mean the same process, unless they are unknown."""

    host_id: Annotated[str, Meta(max_length=128)] = ""
    """The kernel's boot id and the time namespace, by which start times are told; ``""`` is unknown."""
    pid_namespace: Annotated[int, Meta(ge=0, le=_INT64_MAX)] = 0
    """The namespace's inode, within which ``pid`` is a name; 0 is unknown."""
    pid: Annotated[int, Meta(ge=0, le=_PID_MAX)] = 0
    start_ticks: Annotated[int, Meta(ge=0, le=_INT64_MAX)] = 0
    """When the process started, in clock ticks since the kernel did; 0 is unknown."""

    @classmethod
    def of_self(cls) -> ProcessIdentity:
        """The identity of the calling process; all but ``pid`` is unknown where the kernel does not tell."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The identity of a process that is numbered as this one is; raises nothing.

        Unknown fields if there is no such process.
        """
        host_id, pid_namespace = _here()
        return cls(host_id, pid_namespace, pid, _start_ticks(pid) or 0)

    @property
    def known(self) -> bool:
        """Whether every part is known, so that the process can be told from all others."""
        return bool(self.host_id and self.pid_namespace and self.pid and self.start_ticks)


class ProcessWatch:
    """Whether one process is gone, for as long as anybody asks.

    ``gone`` is ``True`` (proved, and so for ever), ``False`` (it is there, perhaps stopped) or ``None`` (cannot
    tell from here). ``fd`` becomes readable when the process ends; it is ``None`` where there is nothing to
    wait for. ``why`` says in words how the verdict came about. The constructor raises nothing.
    """

    def __init__(self, identity: ProcessIdentity) -> None:
        self.identity = identity
        self._fd: int | None = None
        self._gone: bool | None = None
        self.why = self._open()

    def _open(self) -> str:
        identity = self.identity
        if not identity.known:
            return "cannot tell: the peer's kernel did not say who it is"
        if (identity.host_id, identity.pid_namespace) != _here():
            return "cannot tell: the process belongs to another host or another pid namespace"
        try:
            # The pidfd first and the start time after it: what the start time then says of the number, it
            # says of this pidfd, or of a later owner of the number, who would show another start time.
            self._fd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            self._gone = True
            return f"gone: no process has the number {identity.pid}"
        except (OSError, AttributeError) as error:
            return f"cannot tell: pidfd_open: {error}"
        start_ticks = _start_ticks(identity.pid)
        if start_ticks == identity.start_ticks:
            self._gone = False
            return f"watched: process {identity.pid}"
        ended = _readable(self._fd)
        self.close()
        if start_ticks is None and not ended:
            return f"cannot tell: /proc/{identity.pid}/stat cannot be read"
        self._gone = True
        return f"gone: the number {identity.pid} belongs to another process or to none"

    @property
    def gone(self) -> bool | None:
        """``True``: proved gone. ``False``: still there. ``None``: cannot tell, and never a proof."""
        if self._gone is False:
            if self._fd is None:
                return None
            if _readable(self._fd):
                self._gone = True
                self.why = f"gone: process {self.identity.pid} has ended"
        return self._gone

    @property
    def fd(self) -> int | None:
        """Readable when the process has ended, for a poller; ``None`` if nothing is watched."""
        return self._fd

    def close(self) -> None:
        """Stop watching; what was proved stays proved, everything else becomes "cannot tell"."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Owner:
    """The one thread of the one process that may use an object; whoever else calls gets a LocalError."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.closed = False
        self._me = (os.getpid(), threading.get_ident())

    def check(self) -> None:
        """Raise :class:`LocalError` if the caller is another thread or process, or the object is closed."""
        me = (os.getpid(), threading.get_ident())
        if me != self._me:
            raise LocalError(
                f"{self.what} belongs to thread {self._me[1]} of process {self._me[0]}, and was called from thread "
                f"{me[1]} of process {me[0]}: call it only where it was made, or hand the work over by a queue"
            )
        if self.closed:
            raise LocalError(f"{self.what} was used after close(): make a new one")


def _readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def _here() -> tuple[str, int]:
    """Host id and pid namespace of this process; ``("", 0)`` where they cannot be told for certain."""
    if not sys.platform.startswith("linux"):
        return "", 0
    try:
        # A /proc that was mounted in another namespace names processes by other numbers.
        if os.readlink("/proc/self") != str(os.getpid()):
            return "", 0
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot_id = file.read().strip()
        return f"{boot_id}/{os.stat('/proc/self/ns/time').st_ino}", os.stat("/proc/self/ns/pid").st_ino
    except (OSError, UnicodeDecodeError):
        return "", 0


def _start_ticks(pid: int) -> int | None:
    """The start time of a process in clock ticks, or ``None`` if it is not there or hidden."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name in brackets, which may itself hold brackets and spaces.
            after_name = file.read().rpartition(b")")[2].split()
        return int(after_name[_START_FIELD - 3])
    except (OSError, ValueError, IndexError):
        return None
