"""Starts the processes of a run, hears from them, and leaves none behind.

A *child* is a process of its own (spawned, or forked by a clean server: it shares no lock, thread or file with this
one) that runs ``work(line, *arguments)``. The *line* joins the two: the child says ``(kind, value)``, and hears what it
is told. What the child prints goes to a file, whose end is shown when the child dies of something; standard output
stays the caller's.

Nothing is left behind:

- leaving the ``with`` block kills whatever still runs, stopped processes included;
- a child whose parent has vanished is killed by the kernel (Linux), and finds its line closed elsewhere;
- an interruption from the keyboard goes to the parent alone, which then does the above.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple

from fsm.errors import LocalError, ResumarkError

LOG_LINES_SHOWN = 15
"""So many lines of a dead child's output go into the error."""

START_TIMEOUT_S = 120.0
"""Until a child must have said something: imports of large libraries on a busy machine included."""

END_TIMEOUT_S = 20.0
"""Until a child that was told to end must have ended; it is killed then."""

_PR_SET_PDEATHSIG = 1


class ChildDied(ResumarkError):
    """A child ended though nobody asked it to. ``log`` is the end of what it printed."""

    def __init__(self, name: str, how: str, log: str) -> None:
        self.name = name
        self.how = how
        self.log = log
        text = f"the {name} process ended: {how}"
        super().__init__(text + ("\n" + log if log else ""))


class TimedOut(ResumarkError):
    """Nothing was heard for too long."""


class Abandoned(Exception):
    """In a child: the parent has gone away."""


class Said(NamedTuple):
    """What a child said."""

    child: Child
    kind: str
    value: Any


class Line:
    """A child's end of the line."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, kind: str, value: Any = None) -> None:
        """Tell the parent. Raises :class:`Abandoned` if it is gone."""
        try:
            self._connection.send((kind, value))
        except OSError:
            raise Abandoned from None

    def told(self, timeout_s: float = 0.0) -> tuple[str, Any] | None:
        """What the parent told next, or ``None``. Raises :class:`Abandoned` if it is gone."""
        try:
            if not self._connection.poll(timeout_s):
                return None
            kind, value = self._connection.recv()
            return str(kind), value
        except (EOFError, OSError):
            raise Abandoned from None

    def wait_for(self, kind: str) -> Any:
        """Wait until the parent tells that; raises :class:`LocalError` if it tells something else."""
        told = self.told(timeout_s=3600.0)
        if told is None or told[0] != kind:
            raise LocalError(f"expected to be told '{kind}', was told {told}")
        return told[1]


Work = Callable[..., Any]
"""What a child does: ``work(line, *arguments)``. A function of a module, so that a fresh interpreter finds it."""


class Child:
    """A process that was started here."""

    def __init__(self, name: str, process: BaseProcess, connection: Connection, log: Path) -> None:
        self.name = name
        self.process = process
        self.connection = connection
        self.log = log
        self.over = False
        """It said that it is done, was told to end, or was killed: its end is no surprise any more."""

    @property
    def pid(self) -> int:
        """Its number in this pid namespace."""
        assert self.process.pid is not None, "a child is made only after it was started"
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended (it may be stopped)."""
        return self.process.is_alive()

    def tell(self, kind: str, value: Any = None) -> None:
        """Tell the child; nothing happens if it is gone."""
        try:
            self.connection.send((kind, value))
        except OSError:
            self.over = self.over or not self.alive

    def signal(self, number: int) -> None:
        """Send a signal to it, and to nobody else: a process that has been waited for gets none."""
        if self.process.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it now, and wait until it is gone. A stopped process ends as well."""
        self.over = True
        self.signal(signal.SIGKILL)
        self.process.join()

    def died(self) -> ChildDied:
        """Its end as an error."""
        self.process.join(END_TIMEOUT_S)
        return ChildDied(self.name, _how(self.process.exitcode), self.log_end())

    def log_end(self) -> str:
        """The last lines that it printed."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(line for line in lines[-LOG_LINES_SHOWN:] if line.strip())


def _how(code: int | None) -> str:
    if code is None:
        return "it hangs"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"


class Launch:
    """The processes of one run; use it in a ``with`` block. ``log_directory``: keep what they print there.

    ``preload``: modules that a server process imports once, from which children are forked, in milliseconds instead of
    seconds. For whoever starts hundreds. They must not start threads or open devices when they are imported.
    """

    def __init__(self, log_directory: Path | None = None, preload: Sequence[str] = ()) -> None:
        self._context: Any = multiprocessing.get_context("forkserver" if preload else "spawn")
        if preload:
            self._context.set_forkserver_preload(list(preload))
        self._forked = bool(preload)
        self._temporary = None if log_directory else tempfile.TemporaryDirectory(prefix="resumark-")
        self.directory = log_directory or Path(self._temporary.name if self._temporary else ".")
        self.children: list[Child] = []
        self._starts = 0
        self._waiting: list[Said] = []

    def __enter__(self) -> Launch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_all()
        if self._temporary is not None:
            self._temporary.cleanup()

    def start(
        self, name: str, work: Work, *arguments: Any, environment: Mapping[str, str] | None = None,
        core: int | None = None,
    ) -> Child:  # fmt: skip
        """Start a child. ``environment`` is added to its own; ``core`` pins it to that core (Linux)."""
        self._starts += 1
        log = self.directory / f"{self._starts:04d}-{name.replace(' ', '-')}.log"
        ours, theirs = self._context.Pipe()
        settings = _Settings(0 if self._forked else os.getpid(), str(log), dict(environment or {}), core)
        process = self._context.Process(
            target=_begin, args=(theirs, settings, work, arguments), name=f"resumark {name}", daemon=True
        )
        process.start()
        theirs.close()
        child = Child(name, process, ours, log)
        self.children.append(child)
        return child

    # --- hearing --------------------------------------------------------------------------------------

    def hear(self, timeout_s: float, children: list[Child] | None = None) -> Said | None:
        """What one of the children (left out: any) says next; ``None`` after ``timeout_s``.

        Raises :class:`ChildDied` if one of them died of something.
        """
        children = self.children if children is None else children
        deadline_s = monotonic() + timeout_s
        while True:
            for said in self._waiting:
                if said.child in children:
                    self._waiting.remove(said)
                    return said
            lines = {child.connection: child for child in children if not child.connection.closed}
            if not lines:
                return None
            ready = wait(list(lines), max(0.0, deadline_s - monotonic()))
            if not ready:
                return None
            for line in ready:
                assert isinstance(line, Connection)
                self._take(lines[line])

    def _take(self, child: Child) -> None:
        try:
            kind, value = child.connection.recv()
        except (EOFError, OSError):
            child.connection.close()
            if not child.over:
                raise child.died() from None
            return
        if kind == "failed":
            child.over = True
            if isinstance(value, ResumarkError):
                raise value
            raise ChildDied(child.name, str(value[0]), str(value[1]))
        self._waiting.append(Said(child, kind, value))

    def wait_for(self, kind: str, children: list[Child], timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """What each of these children says under that kind, by name; other words are dropped.

        Raises :class:`TimedOut` with the names of those that said nothing, and :class:`ChildDied`.
        """
        heard: dict[str, Any] = {}
        deadline_s = monotonic() + timeout_s
        while len(heard) < len(children):
            said = self.hear(deadline_s - monotonic(), children)
            if said is None:
                silent = ", ".join(child.name for child in children if child.name not in heard)
                raise TimedOut(f"nothing was heard from the {silent} for {timeout_s:g} s; waited for '{kind}'")
            if said.kind == kind:
                heard[said.child.name] = said.value
        return heard

    def heard(self, child: Child) -> list[Said]:
        """What a child has said so far, without waiting. A child that is gone surprises nobody here."""
        was, child.over = child.over, True
        while not child.connection.closed and wait([child.connection], 0):
            self._take(child)
        child.over = was
        mine = [said for said in self._waiting if said.child is child]
        self._waiting = [said for said in self._waiting if said.child is not child]
        return mine

    # --- ending ---------------------------------------------------------------------------------------

    def forget(self, child: Child) -> None:
        """End a child now, and everything that it said and nobody asked for."""
        child.kill()
        child.connection.close()
        self.children.remove(child)
        self._waiting = [said for said in self._waiting if said.child is not child]

    def end(self, children: list[Child] | None = None, timeout_s: float = END_TIMEOUT_S) -> None:
        """Tell these children (left out: all) to end; kill those that do not in time."""
        ending = [child for child in (self.children if children is None else children) if child.alive]
        for child in ending:
            child.over = True
            child.tell("end")
        deadline_s = monotonic() + timeout_s
        for child in ending:
            child.process.join(max(0.0, deadline_s - monotonic()))
            if child.alive:
                child.kill()

    def kill_all(self) -> None:
        """End every child now."""
        for child in self.children:
            child.over = True
            child.signal(signal.SIGKILL)
        for child in self.children:
            child.process.join()
            if not child.connection.closed:
                child.connection.close()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens at. Somebody else may take it: use it at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- in the child -------------------------------------------------------------------------------------------


class _Settings(NamedTuple):
    parent: int
    """0: whoever it is, it lives as long as ours."""
    log: str
    environment: dict[str, str]
    core: int | None


def _begin(connection: Connection, settings: _Settings, work: Work, arguments: tuple[Any, ...]) -> None:
    """The first thing that a child does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told as well, and ends us in order
    _print_to(settings.log)
    _die_with_parent(settings.parent)
    os.environ.update(settings.environment)
    if settings.core is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[settings.core % len(cores)]})
    line = Line(connection)
    try:
        work(line, *arguments)
    except Abandoned:
        os._exit(1)
    except ResumarkError as error:
        traceback.print_exc()
        _say_failed(line, LocalError(str(error)))
    except BaseException as error:
        traceback.print_exc()
        told = f"{type(error).__name__}: {error}"
        _say_failed(line, (told, "".join(traceback.format_exception(error)[-2:])))
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the libraries in use must not keep a finished child alive.
    connection.close()
    os._exit(0)


def _say_failed(line: Line, what: Any) -> None:
    try:
        line.say("failed", what)
    except Abandoned:
        os._exit(1)
    os._exit(1)


def _print_to(path: str) -> None:
    """Everything printed from now on, by libraries in C as well, goes to that file."""
    sys.stdout.flush()
    sys.stderr.flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent and os.getppid() != parent:
            os._exit(1)


__all__ = [
    "Abandoned", "Child", "ChildDied", "Launch", "Line", "Said", "TimedOut", "free_port",
]  # fmt: skip
