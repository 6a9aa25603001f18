"""Progress bars for people who wait: on standard error, on a terminal only, and only after two seconds.

An engine tells a function how far it has come. The functions made here look at the clock, so that the engines
need not: what is shown depends on time, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PATIENCE_S = 2.0
"""What is done sooner needs no bar."""


class Bar:
    """One bar. ``total`` is the number of pieces of work, ``None`` where nobody can know it."""

    def __init__(self, label: str, total: int | None, console: Console) -> None:
        self.label = label
        self.total = total
        self.console = console
        self.started = monotonic()
        self._progress: Progress | None = None
        self._task = TaskID(0)

    @property
    def shown(self) -> bool:
        """Whether the bar has become visible."""
        return self._progress is not None

    def update(self, done: int | None = None, text: str = "", total: int | None = None) -> None:
        """So many pieces are done (of a new ``total``, if given); ``text`` is shown beside."""
        self.total = self.total if total is None else total
        if self._progress is None:
            if monotonic() - self.started < PATIENCE_S:
                return
            self._show()
        assert self._progress is not None
        self._progress.update(self._task, completed=done, total=self.total, text=text)

    def _show(self) -> None:
        columns: list[ProgressColumn] = [SpinnerColumn("line"), TextColumn("{task.description}")]
        if self.total is not None:
            columns += [BarColumn(bar_width=30), TextColumn("{task.fields[text]}"), TimeRemainingColumn()]
        else:
            columns += [TextColumn("{task.fields[text]}"), TimeElapsedColumn()]
        self._progress = Progress(*columns, console=self.console, transient=True)
        self._progress.start()
        self._task = self._progress.add_task(self.label, total=self.total, text="")

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


@contextmanager
def bar(label: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Bar | None]:
    """A bar for the time of the block; ``None`` where it would be seen by nobody (``quiet``, or no terminal)."""
    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        yield None
        return
    shown = Bar(label, total, console)
    try:
        yield shown
    finally:
        shown.close()


def search_progress(shown: Bar | None) -> Callable[[int, int, int], None] | None:
    """What an engine that searches by levels tells how far it has come."""
    if shown is None:
        return None

    def report(states: int, depth: int, frontier: int) -> None:
        shown.update(text=f"{states:,} states, depth {depth}, {frontier:,} to go at this depth")

    return report
