"""The edge ledger of a test run: ``RESUMARK_EDGES=FILE pytest`` counts who takes which row, and writes the file.

Each process of pytest counts for itself; with ``-n`` the workers send their counts to the controller, which adds them
up. Counts of tests by Hypothesis are also kept apart. A test marked ``walks_every_row`` visits all rows because they
are there, and one marked ``counts_edges`` runs what counts: their hits would hide a row that nothing else takes, so
they are left out. What a test starts in another process is not seen.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from operator import add, sub
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fsm.edges import EdgeLedger

PART = "resumark_edges"
"""The name under which a worker sends its counts."""

LEFT_OUT = ("walks_every_row", "counts_edges")
"""Markers of tests that are not counted."""


def left_out(item: pytest.Item) -> bool:
    """Whether the hits of a test are not counted."""
    return any(item.get_closest_marker(name) is not None for name in LEFT_OUT)


class EdgePlugin:
    """Counts in this process, and adds up what workers send. ``file`` is written by the process that was started."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        if not file.parent.is_dir():
            raise pytest.UsageError(f"RESUMARK_EDGES={file}: there is no directory {file.parent}")
        self.file = file
        self.is_worker = hasattr(config, "workerinput")
        self.ledger: EdgeLedger | None = None
        self.stack = ExitStack()
        self.tests: list[int] = []
        self.hypothesis: list[int] = []
        self.counted = [0, 0]
        self.lost = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Begin. Not sooner: whoever measures the coverage of ``fsm`` wants to see it imported."""
        from fsm.edges import counting
        from sim.coverage import TABLES

        self.ledger = self.stack.enter_context(counting(*TABLES))
        self.tests = [0] * len(self.ledger.snapshot())
        self.hypothesis = [0] * len(self.tests)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """One test with its fixtures."""
        assert self.ledger is not None
        before = self.ledger.snapshot()
        result = yield
        if not left_out(item):
            self._add(self.tests, before)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """The test itself: what its fixtures do is not drawn."""
        assert self.ledger is not None
        before = self.ledger.snapshot()
        try:
            return (yield)
        finally:
            if not left_out(item):
                drawn = bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))
                self.counted[0] += 1
                self.counted[1] += drawn
                if drawn:
                    self._add(self.hypothesis, before)

    def _add(self, counts: list[int], before: tuple[int, ...]) -> None:
        assert self.ledger is not None
        counts[:] = map(add, counts, map(sub, self.ledger.snapshot(), before))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """In the controller: a worker has ended."""
        part = getattr(node, "workeroutput", {}).get(PART)
        if part is None:
            self.lost += 1
            return
        tests, hypothesis, counted = part
        self.tests = list(map(add, self.tests, tests))
        self.hypothesis = list(map(add, self.hypothesis, hypothesis))
        self.counted = list(map(add, self.counted, counted))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send the counts on, or write them."""
        self.stack.close()
        if self.ledger is None:
            return
        if self.is_worker:
            session.config.workeroutput[PART] = (self.tests, self.hypothesis, self.counted)  # type: ignore[attr-defined]
            return
        from sim.coverage import TABLES, suite_hits, write_suite

        counted = (self.counted[0], self.counted[1])
        write_suite(suite_hits(TABLES, self.tests, self.hypothesis, counted=counted), self.file)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what was written."""
        if self.ledger is not None:
            lost = f"; without {self.lost} workers that died" if self.lost else ""
            terminalreporter.write_line(f"edges: {self.counted[0]} tests counted in {self.file}{lost}")
