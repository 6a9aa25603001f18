"""What the commands of this package share: how errors end, where text goes, progress, tables.

The rules are those of the other commands: a mistake of use is one message on standard error and exit code 2, never a
traceback; standard output has text for a person, or with ``--json`` one JSON value and nothing else. Importing this
needs neither torch nor anything that a command needs only when it runs.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from time import monotonic
from typing import Annotated, Any, NamedTuple, NoReturn, ParamSpec, TextIO, TypeVar, cast

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fsm.errors import ResumarkError

EXIT_BROKEN = 1
"""A property is broken, or bytes are wrong."""
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

WIDTH_WITHOUT_TERMINAL = 100
PATIENCE_S = 2.0
"""What is done sooner needs no bar."""

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON value for programs, and no progress bar.")]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", min=0, max=2**62, help="Left out: drawn, and printed.", show_default=False
    ),
]

P = ParamSpec("P")
R = TypeVar("R")


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose mistakes of use end in one message and exit code 2, and whose interruption in 130."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ResumarkError as error:
            fail(str(error))
        except ModuleNotFoundError as error:
            if not _is_extra(error.name):
                raise
            fail(f"{error.name} is not installed; pip install 'resumark[torch]' brings everything that this needs")
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run


def need_torch() -> None:
    """Raises ModuleNotFoundError, which becomes one message, before processes are started that would fail by it."""
    for name in ("torch", "zmq"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def _is_extra(name: str | None) -> bool:
    return (name or "").split(".")[0] in ("torch", "zmq", "xxhash", "nixl", "prometheus_client")


def fail(text: str) -> NoReturn:
    """End with a message on standard error and exit code 2."""
    lines = text.splitlines() or [""]
    print("\n".join(["error: " + lines[0], *("       " + line for line in lines[1:])]), file=sys.stderr)
    raise typer.Exit(EXIT_USAGE) from None


class _Trimmed:
    """Standard output without the blanks at line ends that fill up a table's last column."""

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        self.inner.write(re.sub(r" +$", "", text, flags=re.MULTILINE))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def output() -> Console:
    """Where text for a person goes. Colour and width follow the terminal, ``NO_COLOR`` and ``COLUMNS``."""
    width = None
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        width = WIDTH_WITHOUT_TERMINAL
    trimmed = cast(TextIO, _Trimmed(sys.stdout))
    return Console(file=trimmed, width=width, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def drawn_seed() -> int:
    """A seed for a run that was given none; it is printed, so that the run can be made again."""
    return int.from_bytes(os.urandom(4), "big")


# --- progress -------------------------------------------------------------------------------------------

Say = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and of how much (0: nobody knows)."""


@contextmanager
def progress(label: str, *, quiet: bool = False) -> Iterator[Say]:
    """A bar on standard error, on a terminal only and after two seconds; the block tells it how far it is."""
    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        yield lambda text, done, total: None
        return
    shown = _Bar(label, console)
    try:
        yield shown.update
    finally:
        shown.close()


class _Bar:
    def __init__(self, label: str, console: Console) -> None:
        self.started = monotonic()
        self.progress = Progress(
            SpinnerColumn("line"), TextColumn("{task.description}"), BarColumn(bar_width=30),
            TextColumn("{task.fields[text]}"), TimeElapsedColumn(), console=console, transient=True,
        )  # fmt: skip
        self.label = label
        self.task: TaskID | None = None

    def update(self, text: str, done: int, total: int) -> None:
        if self.task is None:
            if monotonic() - self.started < PATIENCE_S:
                return
            self.progress.start()
            self.task = self.progress.add_task(self.label, total=None, text="")
        self.progress.update(self.task, completed=done, total=total or None, text=text)

    def close(self) -> None:
        self.progress.stop()


# --- text -----------------------------------------------------------------------------------------------

_STYLES = {"holds": "bold green", "violated": "bold red", "WRONG": "bold red", "Failed": "red", "Success": "green"}


def styled(text: str) -> Text:
    """Text in which the words that matter have their colour."""
    made = Text(text)
    for word, style in _STYLES.items():
        made.highlight_words([word], style)
    return made


def print_facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    """Aligned lines of a label and what it stands for; long ones wrap under themselves."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts:
        table.add_row(label, styled(value))
    console.print(table)


def print_rows(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str] = ()
) -> None:
    """A table; columns not named in ``left`` are set to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(styled, row))
    console.print(table)


def print_command(console: Console, command: str) -> None:
    """The command that does the same again, on one line however long, so that it can be copied."""
    console.print(Text.assemble(("reproduce", "bold"), "  ", command), soft_wrap=True)


def plural(count: int, noun: str) -> str:
    """``1 block``, ``8 blocks``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size_text(count_bytes: float) -> str:
    """``1.5 GB``: powers of ten, two or three figures."""
    for unit in ("B", "kB", "MB", "GB"):
        if count_bytes < 1000 or unit == "GB":
            return f"{count_bytes:.0f} {unit}" if unit == "B" or count_bytes >= 100 else f"{count_bytes:.3g} {unit}"
        count_bytes /= 1000
    raise AssertionError("unreachable")


class Figure(NamedTuple):
    """One measurement beside its target: at least that (``better`` is ``"more"``), or at most that (``"less"``)."""

    name: str
    value: float
    unit: str
    target: float | None = None
    better: str = "more"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "more" else self.value <= self.target


def _figure_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def print_figures(console: Console, groups: Mapping[str, Sequence[Figure]]) -> None:
    """Measurements by group, each beside its target."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("measured on this machine", overflow="fold")
    table.add_column("figure", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for position, (title, figures) in enumerate(groups.items()):
        if position:
            table.add_section()
        table.add_row(Text(title, style="bold"))
        for figure in figures:
            sign = "<= " if figure.better == "less" else ">= "
            target = "" if figure.target is None else sign + _figure_text(figure.target)
            mark = {None: Text(""), True: Text("ok", "green"), False: Text("missed", "bold red")}[figure.met]
            note = f" ({figure.note})" if figure.note else ""
            table.add_row(f" {figure.name}{note}", _figure_text(figure.value), figure.unit, target, mark)
    console.print(table)


def figures_json(groups: Mapping[str, Sequence[Figure]]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [
        {
            "group": title, "name": figure.name, "value": figure.value, "unit": figure.unit, "target": figure.target,
            "better": figure.better, "met": figure.met, "note": figure.note,
        }
        for title, figures in groups.items()
        for figure in figures
    ]  # fmt: skip
