"""What children do in tests, and whether they are gone."""

from __future__ import annotations

import os
import time
from typing import Any

from fsm.errors import LocalError
from gpu_backend.launch import Line
from gpu_backend.soak import process_state


def is_running(pid: int) -> bool:
    return process_state(pid) not in ("", "Z", "X")


def gone(pid: int) -> bool:
    """Wait for the end of a process that is not a child of this one."""
    deadline_s = time.monotonic() + 30
    while is_running(pid):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


def echo(line: Line, *arguments: Any) -> None:
    """Say the arguments and the process number, then whatever is told, until told to end."""
    line.say("ready", (arguments, os.getpid()))
    while True:
        told = line.told(timeout_s=60.0)
        if told is None or told[0] == "end":
            return
        line.say("heard", told)


def raises(line: Line) -> None:
    """A fault of the program."""
    print("this was printed before")
    raise ZeroDivisionError("on purpose")


def misused(line: Line) -> None:
    """A mistake of whoever configured it."""
    raise LocalError("blocks=0: expected 1 or more")


def exits(line: Line, code: int) -> None:
    """End without a word."""
    print("the last words")
    os._exit(code)


def deaf(line: Line) -> None:
    """Never listen."""
    line.say("ready")
    time.sleep(600)


def environment(line: Line, name: str) -> None:
    """Say what that variable is, and on how many cores this runs."""
    line.say("environment", (os.environ.get(name), len(os.sched_getaffinity(0))))


def noisy(line: Line) -> None:
    """Write to standard output in every way."""
    print("from Python")
    os.write(1, b"from below\n")
    line.say("ready")


def never_whole(line: Line, plan: Any, address: str, boot: int) -> None:
    """The receiver of a soak whose requests end, and whose blocks never come back."""
    from gpu_backend import soak_parties

    soak_parties.SoakParty._whole = lambda self: False  # type: ignore[method-assign]
    soak_parties.soak_receiver(line, plan, address, boot)
