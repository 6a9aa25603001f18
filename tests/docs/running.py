"""Runs a page: its commands in this process, its Python in one namespace, its programs in processes of their own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from gpu_backend.config import ReceiverWorkerConfig, SenderWorkerConfig, parse_config
from tests.docs.fences import ROOT, Fence, lines_of

_SECONDS = re.compile(r"\b\d[\d.,]*\s+s\b")


class Page:
    """One page as it is run, block by block, in the current directory."""

    def __init__(self, named: dict[str, Fence]) -> None:
        self.named = named
        self.names: dict[str, Any] = {"__name__": "page"}
        self.printed = ""
        self.python = False
        """Whether the block above was Python, whose output the page has to show."""

    def run(self, fence: Fence) -> None:
        """Run a block. Raises AssertionError, naming the place, for what is not as the page says."""
        runs = {"sh": self._shell, "python": self._python, "toml": self._toml}
        if self.python and fence.language in ("text", "mermaid"):
            assert fence.text.rstrip("\n") == self.printed.rstrip("\n"), f"{fence.place}: it prints\n{self.printed}"
            self.python, self.printed = False, ""
            return
        self.python_is_shown(fence.place)
        if fence.mark("not run:") is not None or fence.mark("command:") is not None:
            self.printed = ""
        elif fence.language == "text":
            self._shown(fence)
        elif fence.language in runs:
            runs[fence.language](fence)
        else:
            assert fence.language == "mermaid", f"{fence.place}: no way to run a block of {fence.language!r}"

    def python_is_shown(self, place: str = "the end of the page") -> None:
        """Whatever Python printed was shown."""
        assert not (self.python and self.printed), f"before {place}, not shown on the page:\n{self.printed}"

    def close(self) -> None:
        """Close what the page's Python has left open."""
        for thing in self.names.values():
            if type(thing).__module__.startswith("gpu_backend.") and hasattr(thing, "close"):
                thing.close()

    # --- kinds of blocks ---

    def _shell(self, fence: Fence) -> None:
        self.printed, self.python = "", False
        lines = list(lines_of(fence))
        codes = [int(code) for code in (fence.mark("exit:") or "0").split(",")]
        codes = codes * len(lines) if len(codes) == 1 else codes
        assert len(codes) == len(lines), f"{fence.place}: {len(lines)} commands, and {len(codes)} exit codes"
        for line, expected in zip(lines, codes, strict=True):
            words = [*shlex.split(line, comments=True), *shlex.split(fence.mark("with:") or "")]
            code, printed = run_words(words, fence.place)
            assert code == expected, f"{fence.place}: {shlex.join(words)}: exit code {code}\n{printed}"
            self.printed += printed

    def _python(self, fence: Fence) -> None:
        if fence.mark("program") is not None:
            self.printed, self.python = _program(fence), False
            return
        before = [*self._earlier(fence), fence.mark("before") or ""]
        with contextlib.redirect_stdout(io.StringIO()) as output:
            for text in (*before, fence.text):
                exec(compile("\n" * fence.line + text, fence.page, "exec"), self.names)
        self.printed, self.python = output.getvalue(), fence.page in EXACT

    def _earlier(self, fence: Fence) -> list[str]:
        """What a block goes on from, if that is on another page."""
        other = re.search(r" after ([a-z-]+)$", next((mark for mark in fence.marks if mark.startswith("runs:")), ""))
        if other is None or self.named[other[1]].page == fence.page:
            return []
        return [*self._earlier(self.named[other[1]]), self.named[other[1]].text]

    def _toml(self, fence: Fence) -> None:
        file, side = fence.mark("file:"), fence.mark("config:")
        assert file or side, f"{fence.place}: say what this is: 'file: NAME', 'config:SIDE' or 'not run: WHY'"
        if file:
            Path(file).write_text(fence.text, encoding="utf-8")
        if side == "receiver":
            parse_config(ReceiverWorkerConfig, fence.text)
        elif side == "sender":
            parse_config(SenderWorkerConfig, fence.text)

    def _shown(self, fence: Fence) -> None:
        if fence.mark("shown") is None:
            return
        rest = masked(self.printed).splitlines()
        for line in masked(fence.text).splitlines():
            if line.strip() in ("", "..."):
                continue
            assert line in rest, f"{fence.place}: {line!r} is not printed, or not here; printed:\n{self.printed}"
            rest = rest[rest.index(line) + 1 :]


EXACT = ("docs/write-your-own-lifecycle.md",)
"""Pages that show all that their Python prints."""


def masked(text: str) -> str:
    """Without what differs from run to run: how long it took, and spaces at the end of a line."""
    return "\n".join(_SECONDS.sub("N s", line).rstrip() for line in text.splitlines())


def run_words(words: list[str], place: str) -> tuple[int, str]:
    """A command of a page, in this process: ``resumark`` or ``python -c``. The exit code, and what was printed."""
    if words == [".", ".venv/bin/activate"]:
        return 0, ""
    if words[:2] == ["python", "-c"]:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(words[2], place, "exec"), {"__name__": "__main__"})
        return 0, output.getvalue()
    assert words[0] == "resumark", f"{place}: no way to run {words[0]!r} here: mark the block as 'not run: WHY'"
    from sim.cli import build_app

    done = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "100"}).invoke(build_app(), words[1:], prog_name="resumark")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout + done.stderr


def _program(fence: Fence) -> str:
    """Copied from the page into a file, as a reader would."""
    file = Path("program.py")
    file.write_text(fence.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(file)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, f"{fence.place}: {done.stdout}{done.stderr}"
    assert "not received" not in done.stdout and "not sent" not in done.stdout, f"{fence.place}: {done.stdout}"
    return done.stdout
