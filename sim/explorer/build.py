"""A whole page: the run, another version beside it, the states around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fsm.invariants import PROPERTIES
from fsm.trace import Trace
from sim.choices import Seeded
from sim.engines.guided import version_named
from sim.engines.no_return import NoReturn
from sim.engines.replay import scenario_of
from sim.engines.simulate import RunOutcome, run_once
from sim.explorer.graph import NODES_MAX, graph_of
from sim.explorer.merged import CONFORMS, CONFORMS_TEXT
from sim.explorer.page import PAGE_VERSION, Graph, Page, Run
from sim.explorer.runs import Facts, machines_of, run_of_trace
from sim.explorer.seen import run_of_seen
from sim.explorer.versus import run_versus
from sim.scenario import Scenario
from sim.sometimes import RESUME

GRAPH_BLOCKS_MAX, GRAPH_STEPS_MAX = 64, 400
"""A run of a larger world, or a longer one, has no graph unless it is asked for."""

SEEDS = 30
"""So many runs are tried for one with a resume in it."""


def nodes_wanted(trace: Trace, asked: int | None) -> int:
    """How many states a page's graph may have: as many as were asked for, else a default for small worlds."""
    if asked is not None:
        return asked
    scenario = scenario_of(trace.header)
    blocks = sum(scenario.pool_blocks(rank) for rank in range(scenario.ranks.receivers))
    return NODES_MAX if blocks <= GRAPH_BLOCKS_MAX and len(trace.steps) <= GRAPH_STEPS_MAX else 0


def page_of_trace(
    trace: Trace,
    *,
    title: str = "",
    command: str = "",
    facts: Facts = (),
    point: NoReturn | None = None,
    versus: str = "",
    versus_command: str = "",
    nodes_max: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Page:
    """The page of a trace that fits (see :func:`sim.engines.replay.replay`); ``versus`` names the version to be shown
    beside it, and ``nodes_max`` bounds the graph (0: none). Raises LocalError for a version that is none."""
    rules = version_named(versus) if versus else None
    runs = [run_of_trace(trace, command=command, facts=facts, point=point)]
    if rules is not None:
        runs.append(run_versus(trace, runs[0], rules, versus, command=versus_command))
    graph = graph_of(trace, nodes_max=nodes_max, progress=progress) if nodes_max else None
    return _page(title or title_of(runs[0]), runs, graph)


def page_of_seen(paths: Sequence[Path], *, title: str = "", command: str = "", facts: Facts = ()) -> Page:
    """The page of what workers saw in one run. Raises LocalError."""
    run = run_of_seen(paths, command=command, facts=facts)
    page = _page(title or title_of(run), [run])
    return msgspec.structs.replace(page, properties={**page.properties, CONFORMS: CONFORMS_TEXT})


def _page(title: str, runs: Sequence[Run], graph: Graph | None = None) -> Page:
    return Page(PAGE_VERSION, title, tuple(runs), dict(PROPERTIES), machines_of(runs), graph)


def title_of(run: Run) -> str:
    """What a run shows, in a few words."""
    broken = [mark for mark in run.marks if mark.kind == "violation"]
    if broken:
        return f"{run.name}: {' and '.join(dict.fromkeys(mark.property for mark in broken))} broken"
    return f"{run.name}: a run that breaks nothing"


def ordinary_run(scenario: Scenario) -> RunOutcome:
    """A fair run without faults, recorded: of the first seeds, one with a resume in it if there is any; or one that
    breaks something, if one does."""
    calm = msgspec.structs.replace(scenario, faults=msgspec.structs.replace(scenario.faults, rate=0.0))
    first: RunOutcome | None = None
    for seed in range(SEEDS):
        outcome = run_once(calm, Seeded(seed), machine="flat", record=True, seed=seed)
        if outcome.violations or RESUME in outcome.sometimes:
            return outcome
        first = first or outcome
    assert first is not None
    return first
