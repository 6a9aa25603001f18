"""What the tests of the command line share: commands in this process and in one of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from sim import cli

ROOT = Path(__file__).resolve().parents[2]

SMALL = """
[pool]
blocks = 4
block_tokens = 4
grant_blocks_max = 2

[[requests]]
tokens = 24
"""


class Done:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def resumark(*arguments: str) -> Done:
    """A command in this process, without a terminal."""
    result = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "100"}).invoke(
        cli.build_app(), list(arguments), prog_name="resumark"
    )
    raised = result.exception
    if raised is not None and not isinstance(raised, SystemExit):
        raise raised
    return Done(result.exit_code, result.stdout, result.stderr)


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as a shell runs it."""
    return subprocess.run(
        [sys.executable, "-m", "sim.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def small_scenario(directory: Path) -> str:
    """The path of a scenario that takes no time."""
    path = directory / "small.toml"
    path.write_text(SMALL)
    return str(path)


def lost_trace(directory: Path) -> Path:
    """The path of a trace in which a resume is lost."""
    path = directory / "lost.jsonl"
    assert resumark("check", "--detector", "flag", "--trace", str(path)).code == 3
    return path


def refused(done: Done) -> None:
    """One message on standard error, nothing on standard output, exit code 2."""
    assert done.code == 2, (done.code, done.out, done.err)
    assert done.out == ""
    assert done.err.startswith(("error: ", "Usage: ")), done.err
    assert "Traceback" not in done.err


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that raises, whatever it is given."""

    def fails(*arguments: Any, **options: Any) -> Any:
        raise error

    return fails
