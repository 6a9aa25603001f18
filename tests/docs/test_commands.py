"""Every command that a document shows is one that the command line takes, those that are not run here included."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from sim.cli import build_app
from tests.docs.fences import fences, lines_of


def commands_of(line: str) -> list[list[str]]:
    """The arguments of every ``resumark`` command in a line; what stands in brackets may be left out, and is."""
    found = []
    for part in re.split(r" && | & ", re.sub(r"\[[^]]*\]", "", line)):
        words = shlex.split(part, comments=True)
        if words and Path(words[0]).name == "resumark":
            found.append([word for word in words[1:] if word != "&"])
    return found


SHOWN = [
    (fence.place, words)
    for fence in fences()
    if fence.language == "sh"
    for line in lines_of(fence)
    for words in commands_of(line)
]


def check_command(command: Any, arguments: list[str]) -> None:
    """Parse all of a command line, and run nothing. Raises click's error for what is not understood."""
    context = command.make_context("resumark", list(arguments), help_option_names=["-h", "--help"])
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def test_every_command_that_is_shown_is_understood() -> None:
    command = typer.main.get_command(build_app())
    for place, words in SHOWN:
        try:
            check_command(command, words)
        except Exception as error:
            raise AssertionError(f"{place}: resumark {shlex.join(words)}: {error}") from error


def test_a_command_that_is_not_understood_is_seen() -> None:
    """The check itself, held against what it must see."""
    assert len(SHOWN) > 20
    for words in (["run", "--pool", "3"], ["worker", "sender"], ["rum"], ["check", "--states-max", "many"]):
        with pytest.raises(Exception) as caught:
            check_command(typer.main.get_command(build_app()), words)
        assert "UsageError" in [kind.__name__ for kind in type(caught.value).__mro__]
