"""Processes that are started are heard, and none is left behind, however the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fsm.errors import LocalError
from gpu_backend.launch import ChildDied, Launch, TimedOut, free_port
from tests.gpu_backend import kit_children
from tests.gpu_backend.kit_children import gone

ROOT = Path(__file__).resolve().parents[2]


def test_a_child_says_and_hears_and_ends_when_told() -> None:
    with Launch() as launch:
        child = launch.start("echo", kit_children.echo, 1, "two")
        ((arguments, pid),) = launch.wait_for("ready", [child]).values()
        assert (arguments, pid) == ((1, "two"), child.pid) and pid != os.getpid()
        child.tell("question", [3])
        assert launch.wait_for("heard", [child]) == {"echo": ("question", [3])}
        launch.end()
        assert child.process.exitcode == 0


def test_children_can_be_forked_from_a_server_and_are_looked_after_alike() -> None:
    with Launch(preload=["json"]) as launch:
        children = [launch.start(f"echo {number}", kit_children.echo) for number in range(3)]
        pids = {pid for _, pid in launch.wait_for("ready", children).values()}
        assert pids == {child.pid for child in children}
        children[0].signal(signal.SIGKILL)
        with pytest.raises(ChildDied, match="killed by SIGKILL"):
            launch.wait_for("never", children[:1])
        children[1].signal(signal.SIGSTOP)
    assert not any(child.alive for child in children)
    assert all(gone(pid) for pid in pids)


def test_words_of_others_wait_until_they_are_asked_for() -> None:
    with Launch() as launch:
        children = [launch.start(f"echo {number}", kit_children.echo, number) for number in range(2)]
        launch.wait_for("ready", children)
        for child in children:
            child.tell("to", child.name)
        for child in reversed(children):
            said = launch.hear(30.0, [child])
            assert said is not None and (said.child, said.value) == (child, ("to", child.name))
        assert launch.hear(0.0) is None


def test_what_a_child_raises_is_told_with_its_place() -> None:
    with Launch() as launch:
        child = launch.start("unlucky", kit_children.raises)
        with pytest.raises(ChildDied, match=r"unlucky process ended: ZeroDivisionError: on purpose") as caught:
            launch.wait_for("ready", [child])
    assert "kit_children.py" in caught.value.log


def test_a_mistake_of_the_caller_comes_back_as_such() -> None:
    with Launch() as launch:
        child = launch.start("misused", kit_children.misused)
        with pytest.raises(LocalError, match="blocks=0: expected 1 or more"):
            launch.wait_for("ready", [child])


@pytest.mark.parametrize(("code", "how"), [(3, "exit code 3"), (0, "exit code 0")])
def test_a_child_that_vanishes_is_missed_and_its_last_words_are_shown(code: int, how: str) -> None:
    with Launch() as launch:
        child = launch.start("quiet", kit_children.exits, code)
        with pytest.raises(ChildDied) as caught:
            launch.wait_for("ready", [child])
    assert (caught.value.how, caught.value.log) == (how, "the last words")


def test_a_child_killed_by_others_is_told_by_signal() -> None:
    with Launch() as launch:
        child = launch.start("victim", kit_children.echo)
        launch.wait_for("ready", [child])
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ChildDied, match="killed by SIGKILL"):
            launch.hear(30.0)


def test_a_child_that_is_killed_here_is_no_surprise() -> None:
    with Launch() as launch:
        child, other = launch.start("victim", kit_children.echo), launch.start("other", kit_children.echo)
        launch.wait_for("ready", [child, other])
        child.kill()
        assert not child.alive
        other.tell("still", "there")
        assert launch.wait_for("heard", [child, other][1:]) == {"other": ("still", "there")}
        child.tell("nothing")  # into the void


def test_silence_is_told_by_name() -> None:
    with Launch() as launch:
        children = [launch.start("speaks", kit_children.echo), launch.start("is silent", kit_children.echo)]
        launch.wait_for("ready", children)
        children[0].tell("x")
        with pytest.raises(TimedOut, match="nothing was heard from the is silent for"):
            launch.wait_for("heard", children, timeout_s=1.0)


def test_nobody_is_left_behind_not_even_who_never_listens_or_is_stopped() -> None:
    with Launch() as launch:
        children = [launch.start("deaf", kit_children.deaf), launch.start("stopped", kit_children.deaf)]
        launch.wait_for("ready", children)
        children[1].signal(signal.SIGSTOP)
    assert not any(child.alive for child in children)


PARENT = """
import signal, sys, time
from gpu_backend.launch import Launch
from tests.gpu_backend import kit_children
from tests.gpu_backend.kit_children import gone
if __name__ == "__main__":
    # Where the tests run in the background, a shell may have told all their children to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Launch() as launch:
        child = launch.start("deaf", kit_children.deaf)
        launch.wait_for("ready", [child])
        print(child.pid, flush=True)
        time.sleep(600)
"""


def script(directory: Path, code: str) -> list[str]:
    """A command that runs the code as a program of its own: a fresh interpreter must be able to import it."""
    path = directory / "script.py"
    path.write_text(code)
    return [sys.executable, str(path)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_children_do_not_outlive_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    with subprocess.Popen(
        script(tmp_path, PARENT), env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(how)
        parent.communicate(timeout=60)
        assert gone(child)


def test_a_child_gets_its_environment_and_its_core() -> None:
    with Launch() as launch:
        child = launch.start("pinned", kit_children.environment, "COLOUR", environment={"COLOUR": "red"}, core=1)
        assert launch.wait_for("environment", [child]) == {"pinned": ("red", 1)}
    assert "COLOUR" not in os.environ


def test_what_children_print_stays_off_standard_output(tmp_path: Path) -> None:
    code = """
from gpu_backend.launch import Launch
from tests.gpu_backend import kit_children
from tests.gpu_backend.kit_children import gone
if __name__ == "__main__":
    with Launch() as launch:
        launch.wait_for("ready", [launch.start("noisy", kit_children.noisy)])
    print("mine alone")
"""
    done = subprocess.run(
        script(tmp_path, code), env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("mine alone\n", "")


def test_a_free_port_can_be_listened_at() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
