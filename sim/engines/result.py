"""What every engine answers with, so that a verdict always says how it was reached.

``verdict`` is ``holds``, ``violated`` or ``unknown`` (the bounds ran out before an answer). ``coverage`` is
``exhausted`` (every reachable state within the scenario's budgets was visited), ``bounded`` (a search that was cut off)
or ``sampled`` (random runs). A bare "passed" does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fsm.invariants import LIVENESS
from fsm.trace import Trace

EXIT_HOLDS, EXIT_SAFETY, EXIT_USAGE, EXIT_LIVENESS, EXIT_UNKNOWN = range(5)


@dataclass(frozen=True)
class Found:
    """A property that does not hold. ``step`` counts the actions of the trace from 1; ``trace`` leads there."""

    property: str
    step: int
    text: str
    trace: Trace


@dataclass(frozen=True)
class RequestReport:
    """What became of one request, over all receiver ranks: the worst state, the fewest tokens."""

    room: int
    state: str
    tokens: int
    tokens_delivered: int
    content_ok: bool
    resumed_at: tuple[int, ...]
    grants_executed: int


@dataclass(frozen=True)
class Result:
    """The answer of an engine. ``bounds`` says within what; ``digest`` is equal for equal runs, byte for byte."""

    verdict: str
    coverage: str
    states: int = 0
    transitions: int = 0
    depth: int = 0
    runs: int = 0
    seed: int | None = None
    digest: str = ""
    violations: tuple[Found, ...] = ()
    requests: tuple[RequestReport, ...] = ()
    bounds: dict[str, Any] = field(default_factory=dict)
    sometimes: dict[str, int] = field(default_factory=dict)
    """How often each thing occurred that must occur for a pass to mean anything (simulate)."""
    missed: tuple[str, ...] = ()
    """Things that should have occurred and did not: then ``holds`` is not claimed."""
    elapsed_s: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 holds, 1 a safety property is broken, 3 only liveness is, 4 no answer within the bounds."""
        if self.verdict == "violated":
            safe = all(found.property in LIVENESS for found in self.violations)
            return EXIT_LIVENESS if safe else EXIT_SAFETY
        return EXIT_HOLDS if self.verdict == "holds" else EXIT_UNKNOWN
