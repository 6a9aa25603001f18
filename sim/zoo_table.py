"""The table of the zoo: every variant, on the scenario that shows it, under every allocator.

A row asks one question: is *this* property, the one that the mistake is known for, broken here? Violations of other
properties on the way do not end the search. Where a mistake cannot show under some allocator (a list of blocks that is
compared with the last one cannot mislead if blocks never repeat), the row says that the property must hold, and
why is in the variant's scenario.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from sim import zoo
from sim.engines.check import check
from sim.engines.result import Result
from sim.scenario import Scenario

FAMILIES = ("fifo", "lifo", "same-again", "disjoint", "stingy", "adversary")
"""Every allocator."""

STATES_MAX = 200_000
"""The bound of one row; every row ends long before it."""

TABLES = ("watermark", "watermark-five")
"""The protocol itself, on the six-state table and on the historical one."""


class Job(NamedTuple):
    """One row that is to be found out. ``property`` is empty where everything must hold."""

    variant: str
    kind: str
    scenario: str
    property: str
    allocator: str
    expected: str


class Row(NamedTuple):
    """One row as it came out. ``expected`` and ``property`` name a property, or are ``holds`` and empty."""

    variant: str
    kind: str
    allocator: str
    verdict: str
    expected: str
    property: str
    steps: int
    states: int
    coverage: str
    command: str
    as_expected: bool


def zoo_jobs() -> list[Job]:
    """All rows, in the order of the table."""
    jobs = []
    for variant in (*zoo.DETECTORS.values(), *zoo.HAZARDS.values()):
        for scenario, property in variant.shows():
            for allocator in FAMILIES:
                hidden = allocator in variant.hidden.get(property, ())
                expected = "holds" if hidden or not property else property
                jobs.append(Job(variant.name, variant.kind, scenario, property, allocator, expected))
    return jobs


def job_scenario(job: Job) -> Scenario:
    """What a row runs."""
    variant = zoo.DETECTORS.get(job.variant) or zoo.HAZARDS[job.variant]
    scenario = zoo.with_variant(zoo.scenario_named(job.scenario), variant)
    return msgspec.structs.replace(scenario, pool=msgspec.structs.replace(scenario.pool, allocator=job.allocator))


def command_for(job: Job) -> str:
    """The command that shows a row's trace."""
    option = "" if job.variant == "watermark" else f" --{job.kind} {job.variant}"
    only = f" --only {job.property}" if job.property else ""
    return f"resumark check {job.scenario}{option} --allocator {job.allocator}{only}"


def run_job(job: Job, clock: Callable[[], float] | None = None) -> tuple[Row, Result]:
    """Find out one row."""
    options = {"clock": clock} if clock is not None else {}
    only = (job.property,) if job.property else None
    result = check(job_scenario(job), states_max=STATES_MAX, only=only, **options)  # type: ignore[arg-type]
    found = result.violations[0] if result.violations else None
    property = found.property if found else ""
    held = result.verdict == "holds" and result.coverage == "exhausted"
    row = Row(
        variant=job.variant,
        kind=job.kind,
        allocator=job.allocator,
        verdict=result.verdict,
        expected=job.expected,
        property=property,
        steps=found.step if found else 0,
        states=result.states,
        coverage=result.coverage,
        command=command_for(job),
        as_expected=held if job.expected == "holds" else property == job.expected,
    )
    return row, result
