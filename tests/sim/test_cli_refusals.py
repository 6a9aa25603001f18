"""The command line: what it refuses and how, and how it ends when something goes wrong."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from fsm.errors import LocalError, RemoteError
from sim import cli, cli_common, cli_run
from tests.sim.cli_kit import ROOT, lost_trace, raising, refused, resumark, small_scenario


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_scenario(tmp_path_factory.mktemp("scenarios"))


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lost_trace(tmp_path_factory.mktemp("traces"))


# --- what is refused ------------------------------------------------------------------------------------

HEAD = '{"line":"header","version":1,"engine":"check",'
END = '{"line":"ending"}\n'

BAD_TRACES = {
    "empty": "",
    "no json": "hello\n",
    "no header": '{"line":"ending"}\n',
    "cut off": HEAD + '"scenario":{}}\n',
    "old": '{"line":"header","version":99,"engine":"check","scenario":{}}\n' + END,
    "bad scenario": HEAD + '"scenario":{"pool":{"blocks":0}}}\n' + END,
    "no variant": HEAD + '"scenario":{"variant":{"detector":"x"}}}\n' + END,
    "no machine": HEAD + '"machine":"x","scenario":{}}\n' + END,
    "no such step": HEAD + '"scenario":{}}\n{"line":"step","action":["fly",1],"text":"fly"}\n' + END,
    "no action": HEAD + '"scenario":{}}\n{"line":"step","action":[],"text":""}\n' + END,
    "breaks nothing": HEAD + '"scenario":{}}\n{"line":"ending","property":"I1"}\n',
}


@pytest.mark.parametrize("command", ["replay", "shrink"])
@pytest.mark.parametrize("bad", sorted(BAD_TRACES))
def test_bad_traces(command: str, bad: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(BAD_TRACES[bad])
    refused(resumark(command, str(path)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("check", "no-such-file.toml"), "no-such-file.toml: cannot be read"),
        (("check", "nothing"), "nothing: no such file, and no built-in scenario; built in: "),
        (("check", "."), ".: cannot be read"),
        (("check", "/dev/null/x.toml"), "cannot be read"),
        (("check", "--detector", "flagg"), "did you mean 'flag'?"),
        (("check", "--detector", "flagg", "--hazard", "x"), "variant.hazards[0]"),
        (("check", "--hazard", "floor-start", "--hazard", "floor-start"), "again"),
        (("check", "--hazard", "no-grant-seq", "--hazard", "nope"), "known hazard"),
        (
            ("check", "--detector", "sent-accumulate", "--hazard", "stale-header", "--allocator", "nope"),
            "known allocator",
        ),
        (("check", "--only", "I9"), "there is no property 'I9'"),
        (("check", "--states-max", "0"), "--states-max"),
        (("check", "--states-max", "many"), "--states-max"),
        (("check", "--time-max", "-1"), "--time-max"),
        (("check", "--trace", "/no/such/dir/t.jsonl"), "there is no directory /no/such/dir"),
        (("check", "--trace", "."), "directory"),
        (("check", "--seed", "1"), "No such option"),
        (("check", "a", "b"), "unexpected extra argument"),
        (("simulate", "--seed", "-1"), "--seed"),
        (("simulate", "--seed", str(2**63)), "--seed"),
        (("simulate", "--runs", str(2**63)), "--runs"),
        (("simulate", "--runs", "0"), "--runs"),
        (("simulate", "--jobs", "0"), "--jobs"),
        (("simulate", "--machine", "fast"), "--machine"),
        (("replay", "no-such-trace.jsonl"), "no-such-trace.jsonl: cannot be read"),
        (("replay", "."), "cannot be read"),
        (("replay",), "Missing argument"),
        (("shrink",), "Missing argument"),
        (("diagram", "queue"), "queue"),
        (("diagram", "--format", "png"), "--format"),
        (("fly",), "No such command"),
        (("--fly",), "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: tuple[str, ...], says: str) -> None:
    done = resumark(*arguments)
    refused(done)
    assert says in re.sub(r"\s*│\s*|\s+", " ", done.err), done.err


@pytest.mark.parametrize(
    "text",
    [
        "[pool\n",
        "[pool]\nblocks = 'x'\n",
        "[pools]\n",
        "[pool]\nblocks = 0\nblocks = 1\n",
        "\ufeff[[requests]]\ntokens = 0\n",
        "[variant]\ndetector = 'nope'\n",
        "[variant]\nhazards = ['a', 'a']\n",
        "requests = 3\n",
        "a" * 9999 + "\n",
    ],
)
def test_bad_scenarios(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    for command in ("check", "simulate"):
        done = resumark(command, str(path))
        refused(done)
        assert "bad.toml" in done.err


def test_binary_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.toml"
    path.write_bytes(bytes(range(256)))
    refused(resumark("check", str(path)))
    refused(resumark("replay", str(path)))


def test_a_step_that_no_longer_fits_is_named(lost: Path, tmp_path: Path) -> None:
    lines = lost.read_text().splitlines(keepends=True)
    for broken in (lines[:3] + lines[4:], [*lines[:2], lines[3], lines[2], *lines[4:]]):
        path = tmp_path / "unfit.jsonl"
        path.write_text("".join(broken))
        done = resumark("replay", str(path))
        refused(done)
        assert re.match(r"error: step \d+: ", done.err)


def test_a_trace_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: Path) -> None:
    def full(trace: Any, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli_common, "write_trace", full)
    done = resumark("check", "--detector", "flag", "--trace", str(tmp_path / "t.jsonl"))
    assert done.code == 2
    assert done.err == f"error: {tmp_path / 't.jsonl'}: cannot be written: No space left on device\n"


def test_nothing_is_written_where_nothing_is_broken(small: str, tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    done = resumark("check", small, "--trace", str(path))
    assert done.code == 0 and not path.exists()
    assert "No property was broken" in done.out


# --- errors, interruptions, pipes -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [LocalError("first\nsecond"), RemoteError("first\nsecond")])
def test_errors_on_purpose_are_one_message(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    @cli_common.reports_errors
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == 2
    assert capsys.readouterr() == ("", "error: first\n       second\n")


def test_an_interruption_ends_with_130(monkeypatch: pytest.MonkeyPatch, small: str) -> None:
    monkeypatch.setattr(cli_run, "check", raising(KeyboardInterrupt()))
    done = resumark("check", small)
    assert (done.code, done.err) == (130, "stopped\n")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["resumark", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_a_fault_of_the_program_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_run, "check", raising(ZeroDivisionError("boom")))
    assert run_main(monkeypatch, "check", small) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError: boom" in err and "not a verdict" in err


def test_main_ends_with_the_exit_code(monkeypatch: pytest.MonkeyPatch, small: str) -> None:
    assert run_main(monkeypatch, "check", small) == 0
    assert run_main(monkeypatch, "check", "--detector", "flag") == 3
    assert run_main(monkeypatch, "check", "nothing") == 2
    assert run_main(monkeypatch) == 2
    assert run_main(monkeypatch, "--help") == 0
    monkeypatch.setattr(cli, "build_app", raising(KeyboardInterrupt()))
    assert run_main(monkeypatch) == 130


@pytest.mark.skipif(os.name != "posix", reason="pipes of a shell")
def test_a_reader_that_goes_away_is_no_error() -> None:
    command = (
        f"{shlex.quote(sys.executable)} -m sim.cli check --detector flag --json | head -c 10; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.returncode in (3, 141)  # 3 if all of it fitted into the pipe
    closed = f"{shlex.quote(sys.executable)} -m sim.cli diagram | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", closed], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode in (0, 141)
