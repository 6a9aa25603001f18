"""Whether a process is gone: proved, disproved, or not to be told. A wrong "gone" gives away memory that is written."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import msgspec
import pytest

from fsm.errors import LocalError
from gpu_backend import process
from gpu_backend.process import Owner, ProcessIdentity, ProcessWatch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pidfd is of Linux alone")

Child = subprocess.Popen[bytes]


@pytest.fixture
def child() -> Iterator[Child]:
    """A process that runs until it is told to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def wait_readable(fd: int | None) -> None:
    assert fd is not None
    assert select.select([fd], [], [], 60.0)[0], "the process did not end"


def verdict(watch: ProcessWatch) -> bool | None:
    """The same, for a type checker that takes an attribute for the same from line to line."""
    return watch.gone


def test_it_knows_itself() -> None:
    identity = ProcessIdentity.of_self()
    assert identity.pid == os.getpid()
    assert identity.known
    watch = ProcessWatch(identity)
    assert watch.gone is False
    watch.close()


def test_an_identity_comes_out_of_the_wire_as_it_went_in() -> None:
    identity = ProcessIdentity.of_self()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(identity), type=ProcessIdentity) == identity


def test_two_processes_differ(child: Child) -> None:
    assert ProcessIdentity.of(child.pid) != ProcessIdentity.of_self()


def test_a_process_that_is_killed_is_gone(child: Child) -> None:
    watch = ProcessWatch(ProcessIdentity.of(child.pid))
    assert verdict(watch) is False
    child.kill()
    wait_readable(watch.fd)
    assert verdict(watch) is True
    assert "has ended" in watch.why
    watch.close()
    assert verdict(watch) is True, "what was proved stays proved"


def test_a_process_that_ends_by_itself_is_gone(child: Child) -> None:
    watch = ProcessWatch(ProcessIdentity.of(child.pid))
    child.communicate(b"\n")
    wait_readable(watch.fd)
    assert watch.gone is True


def test_a_zombie_is_gone(child: Child) -> None:
    """Nobody has collected it, so its number and its start time are still there."""
    identity = ProcessIdentity.of(child.pid)
    watch = ProcessWatch(identity)
    child.kill()
    wait_readable(watch.fd)
    with open(f"/proc/{child.pid}/stat") as file:
        assert file.read().rpartition(")")[2].split()[0] == "Z"
    assert watch.gone is True
    assert ProcessWatch(identity).gone is True, "also for whoever looks for the first time"


def test_a_stopped_process_is_not_gone(child: Child) -> None:
    """It can write on as soon as it is told to continue."""
    watch = ProcessWatch(ProcessIdentity.of(child.pid))
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert watch.gone is False
    assert ProcessWatch(watch.identity).gone is False


def test_a_process_with_a_living_thread_is_not_gone() -> None:
    """The first thread has ended, and looks like a zombie; the other one can still write."""
    script = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=lambda: (print('up', flush=True), sys.stdin.read())).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout is not None and started.stdout.readline() == b"up\n"
            identity = ProcessIdentity.of(started.pid)
            while True:
                with open(f"/proc/{started.pid}/stat") as file:
                    if file.read().rpartition(")")[2].split()[0] == "Z":
                        break
                os.sched_yield()
            assert ProcessWatch(identity).gone is False
        finally:
            started.kill()
    assert ProcessWatch(identity).gone is True


def test_a_process_that_was_gone_before_anybody_looked(child: Child) -> None:
    identity = ProcessIdentity.of(child.pid)
    child.kill()
    child.wait()
    watch = ProcessWatch(identity)
    assert watch.gone is True
    assert watch.fd is None


def test_a_number_in_other_hands_is_no_life_sign(child: Child) -> None:
    """The number lives, the process that had it does not: only the start time tells."""
    now = ProcessIdentity.of(child.pid)
    before = ProcessIdentity(now.host_id, now.pid_namespace, now.pid, now.start_ticks - 1)
    watch = ProcessWatch(before)
    assert watch.gone is True
    assert "another process" in watch.why
    assert watch.fd is None


@pytest.mark.parametrize("field", ["host_id", "pid_namespace"])
def test_a_process_of_another_host_or_container_cannot_be_told(child: Child, field: str) -> None:
    """Its number means nothing here; above all, that nobody has it here proves nothing."""
    there = {"host_id": "another-kernel/1", "pid_namespace": 1}[field]
    identity = msgspec.structs.replace(ProcessIdentity.of(child.pid), **{field: there})
    child.kill()
    child.wait()
    watch = ProcessWatch(identity)
    assert watch.gone is None
    assert watch.fd is None
    assert watch.why.startswith("cannot tell")


@pytest.mark.parametrize("field", ["host_id", "pid_namespace", "pid", "start_ticks"])
def test_an_identity_with_a_gap_cannot_be_told(field: str) -> None:
    empty = getattr(ProcessIdentity(), field)
    identity = msgspec.structs.replace(ProcessIdentity.of_self(), **{field: empty})
    assert not identity.known
    assert ProcessWatch(identity).gone is None


def test_a_kernel_without_pidfd_cannot_tell(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert ProcessWatch(ProcessIdentity.of(child.pid)).gone is None
    monkeypatch.delattr(os, "pidfd_open")
    assert ProcessWatch(ProcessIdentity.of(child.pid)).gone is None


def test_another_operating_system_cannot_tell(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ProcessIdentity.of(child.pid)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ProcessIdentity.of_self().host_id == ""
    assert ProcessWatch(here).gone is None
    assert ProcessWatch(ProcessIdentity.of_self()).gone is None


def test_a_hidden_process_cannot_be_told(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``hidepid`` another user's process has a number that can be opened, and no visible start time."""
    identity = ProcessIdentity.of(child.pid)
    monkeypatch.setattr(process, "_start_ticks", lambda pid: None)
    assert ProcessWatch(identity).gone is None


def test_a_program_may_call_itself_anything() -> None:
    """The name stands in front of the start time, and may hold brackets, spaces and digits."""
    script = "open('/proc/self/comm', 'w').write(') R 1 2 (3'); print('up', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        try:
            before = ProcessIdentity.of(started.pid)
            assert started.stdout is not None and started.stdout.readline() == b"up\n"
            assert ProcessIdentity.of(started.pid) == before
        finally:
            started.kill()


def test_after_close_nothing_can_be_told(child: Child) -> None:
    watch = ProcessWatch(ProcessIdentity.of(child.pid))
    watch.close()
    watch.close()
    assert watch.gone is None
    assert watch.fd is None


# ---- the owner -------------------------------------------------------------------------------------------


def test_only_the_owning_thread_may_call() -> None:
    owner = Owner("the thing")
    owner.check()
    errors: list[str] = []

    def other() -> None:
        try:
            owner.check()
        except LocalError as error:
            errors.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(errors) == 1 and errors[0].startswith("the thing belongs to thread")


def test_a_forked_child_is_no_owner() -> None:
    """Its thread has the same number, and would share the parent's sockets."""
    script = (
        "import os\n"
        "from fsm.errors import LocalError\n"
        "from gpu_backend.process import Owner\n"
        "owner = Owner('the thing')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        owner.check()\n"
        "    except LocalError:\n"
        "        os._exit(7)\n"
        "    os._exit(0)\n"
        "owner.check()\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"


def test_nobody_may_call_after_close() -> None:
    owner = Owner("the thing")
    owner.closed = True
    with pytest.raises(LocalError, match=r"the thing was used after close\(\)"):
        owner.check()


@pytest.mark.parametrize("module", ["process", "control", "keys", "hello", "collective"])
def test_torch_stays_out(module: str) -> None:
    """A control plane starts in a moment, and without torch."""
    script = f"import sys, gpu_backend.{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
