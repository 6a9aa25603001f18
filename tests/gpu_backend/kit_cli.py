"""What the tests of this package's commands share: commands in this process and in one of their own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gpu_backend import cli, transports

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import typer
from gpu_backend import cli

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    cli.register(app)
    app()
"""

SMALL = ("--model", "qwen2.5-vl-3b", "--block-tokens", "32", "--pool-blocks", "16", "--seed", "3")
"""A model and a pool that take no time."""


class Done:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def build_app() -> typer.Typer:
    """The commands of this package alone."""
    app = typer.Typer(pretty_exceptions_enable=False)
    cli.register(app)
    return app


def resumark(*arguments: str) -> Done:
    """A command in this process (what it starts are real processes), without a terminal."""
    result = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "100"}).invoke(
        build_app(), list(arguments), prog_name="resumark"
    )
    raised = result.exception
    if raised is not None and not isinstance(raised, SystemExit):
        raise raised
    return Done(result.exit_code, result.stdout, result.stderr)


def program(directory: Path, *arguments: str) -> list[str]:
    """The command line of a process of its own."""
    path = directory / "resumark.py"
    path.write_text(PROGRAM)
    return [sys.executable, str(path), *arguments]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "100"}


def refused(done: Done, message: str) -> None:
    """One message on standard error, no verdict, exit code 2."""
    assert done.code == 2, (done.code, done.out, done.err)
    assert done.err.startswith(("error: ", "Usage: ")), done.err
    assert message in " ".join(done.err.split()), done.err
    assert "Traceback" not in done.err and "verdict" not in done.out


def need(transport: str) -> None:
    """Skip where a transport cannot run, and say why."""
    if transport != "auto" and (why := transports.absent(transport)):
        pytest.skip(f"{transport}: {why}")
