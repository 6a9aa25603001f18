"""What the commands print: the options of a run, verdicts, traces, the zoo's table, figures against their targets.

Everything here makes renderables or prints them on the console that it is given; nothing is computed. Colour only
repeats what words already say, so that a page without colour says the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fsm.invariants import PROPERTIES
from fsm.states import State
from sim.cli_view import LEGEND, StepView
from sim.engines.result import RequestReport, Result
from sim.scenario import Scenario

REQUESTS_SHOWN_MAX = 12
"""More requests than that are counted and not listed."""

_WORDS = {
    "holds": "bold green", "violated": "bold red", "unknown": "bold yellow",
    State.SUCCESS.value: "green", State.FAILED.value: "red", "WRONG": "bold red", "TRESPASS": "bold red",
}  # fmt: skip


def number(value: int) -> str:
    """A count with separators, as people read it."""
    return f"{value:,}"


def plural(count: int, noun: str) -> str:
    """``1 block``, ``8 blocks``."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def seconds(value: float) -> str:
    """A duration with two figures that mean something."""
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _styled(text: str) -> Text:
    """Text in which the words that matter have their colour."""
    styled = Text(text)
    styled.highlight_words(["point of no return"], "bold red")
    for word, style in _WORDS.items():
        styled.highlight_words([word], style)
    return styled


def print_facts(console: Console, facts: Iterable[tuple[str, str | Text]]) -> None:
    """Aligned lines of a label and what it stands for; long ones wrap under themselves."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts:
        table.add_row(label, value)
    console.print(table)


def print_command(console: Console, command: str, label: str = "reproduce") -> None:
    """A command, on one line however long, so that it can be copied."""
    console.print(Text.assemble((label, "bold"), "  ", command), soft_wrap=True)


# --- what is run ----------------------------------------------------------------------------------------


def variant_text(scenario: Scenario) -> str:
    """The detector, and the hazards if there are any."""
    variant = scenario.variant
    hazards = " + hazard " + ", ".join(variant.hazards) if variant.hazards else ""
    return f"detector {variant.detector}{hazards}"


def world_text(scenario: Scenario) -> str:
    """The size of a world in one sentence."""
    requests = scenario.expanded_requests()
    sizes = sorted({request.tokens for request in requests})
    tokens = number(sizes[0]) if len(sizes) == 1 else f"{number(sizes[0])} to {number(sizes[-1])}"
    pool, ranks = scenario.pool, scenario.ranks
    blocks = plural(pool.blocks, "block")
    if pool.blocks_by_rank:
        blocks = "+".join(map(number, pool.blocks_by_rank)) + " blocks"
    refusals = f" with {plural(pool.refusals_max, 'refusal')}" if pool.allocator == "adversary" else ""
    limit = f", at most {pool.grant_blocks_max} a grant" if pool.grant_blocks_max else ""
    return (
        f"{plural(len(requests), 'request')} of {tokens} tokens; {blocks} of {number(pool.block_tokens)}{limit}; "
        f"allocator {pool.allocator}{refusals}; {plural(ranks.receivers, 'receiver rank')}, "
        f"{plural(ranks.senders, 'sender rank')}"
    )


def faults_text(scenario: Scenario, *, rate: bool) -> str:
    """The budgets that are not 0."""
    faults = scenario.faults
    budgets = [
        f"{name.removesuffix('_max').replace('_', ' ')} {number(getattr(faults, name))}"
        for name in faults.__struct_fields__
        if name != "rate" and getattr(faults, name)
    ]
    if not budgets:
        return "none"
    return ", ".join(budgets) + (f"; each drawn at rate {faults.rate:g}" if rate else "")


# --- verdicts -------------------------------------------------------------------------------------------


def verdict_facts(result: Result) -> list[tuple[str, str | Text]]:
    """The verdict, how it was reached, and within which bounds."""
    facts: list[tuple[str, str | Text]] = []
    if not result.violations:
        facts.append(("verdict", _styled(result.verdict)))
    for found in result.violations:
        facts.append(("verdict", _styled(f"violated: {found.property}, {PROPERTIES.get(found.property, '')}")))
        seed = found.trace.header.seed
        where = f"step {found.step}" + (f" of the run with seed {seed}" if seed is not None else "")
        facts.append(("", f"{where}: {found.text}"))
    facts.append(("coverage", f"{result.coverage}: {coverage_text(result)}"))
    if result.bounds:
        facts.append(("bounds", ", ".join(f"{key} {_bound(value)}" for key, value in result.bounds.items())))
    if result.sometimes:
        facts.append(("occurred", ", ".join(f"{name} {number(count)}" for name, count in result.sometimes.items())))
    if result.missed:
        facts.append(("missed", ", ".join(result.missed) + " (did not occur, so this is no pass)"))
    if result.digest:
        facts.append(("digest", result.digest))
    return facts


def _bound(value: Any) -> str:
    return number(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)


def coverage_text(result: Result) -> str:
    """What a coverage word means here, in numbers."""
    if result.coverage == "sampled":
        return f"{plural(result.runs, 'random run')}, {seconds(result.elapsed_s)}"
    what = (
        "every reachable state was visited" if result.coverage == "exhausted" else "the search stopped before its end"
    )
    return (
        f"{what}; {plural(result.states, 'state')}, {plural(result.transitions, 'transition')}, depth {result.depth}, "
        f"{seconds(result.elapsed_s)}"
    )


def print_requests(console: Console, requests: Sequence[RequestReport]) -> None:
    """What became of each request."""
    if not requests:
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for column in ("room", "state", "delivered", "content", "resumed at", "grants executed"):
        table.add_column(column, justify="right" if column in ("room", "delivered", "grants executed") else "left")
    for request in requests[:REQUESTS_SHOWN_MAX]:
        table.add_row(
            str(request.room),
            _styled(request.state),
            f"{number(request.tokens_delivered)} of {number(request.tokens)}",
            "as sent" if request.content_ok else _styled("WRONG"),
            " ".join(map(str, request.resumed_at)) or "never",
            str(request.grants_executed),
        )
    console.print(table)
    if len(requests) > REQUESTS_SHOWN_MAX:
        console.print(f"and {plural(len(requests) - REQUESTS_SHOWN_MAX, 'more request')}")


# --- traces ---------------------------------------------------------------------------------------------


NO_RETURN_MARK = "*"
"""Before the number of the step after which every continuation fails."""


def trace_lines(views: Sequence[StepView], no_return: int | None = None) -> list[str]:
    """One aligned line for each step, under a line of headings.

    ``no_return`` is the step after which every continuation fails (0: all fail from the start): it has a mark before
    its number, and a line under it says what that means.
    """
    if not views:
        return ["(no steps)"]
    names = ["step", "what happens"]
    names += _names("sender", len(views[0].senders)) + _names("receiver", len(views[0].receivers))
    rows = [names]
    rows += [[_step(view.number, no_return), view.action, *view.senders, *view.receivers] for view in views]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = row
        cells = [first.rjust(widths[0]), *(cell.ljust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    if no_return is not None:
        lines.insert(no_return + 1, f"{NO_RETURN_MARK.rjust(widths[0])}  {no_return_text(no_return)}")
    return lines


def _step(number: int, no_return: int | None) -> str:
    return f"{NO_RETURN_MARK if number == no_return else ''}{number}"


def no_return_text(step: int) -> str:
    """What the mark in a trace means."""
    if step == 0:
        return "point of no return, at the start: without faults every run fails"
    return "point of no return: from here every continuation fails"


def _names(side: str, count: int) -> list[str]:
    return [side] if count == 1 else [f"{side} {rank}" for rank in range(count)]


def print_trace(console: Console, views: Sequence[StepView], no_return: int | None = None) -> None:
    """A trace in columns. A line is never folded: what is too wide for the terminal runs on."""
    heading, *lines = trace_lines(views, no_return)
    console.print(Text(heading, style="bold"), soft_wrap=True)
    for line in lines:
        console.print(_styled(line), soft_wrap=True)
    said = "; ".join(f"{short} = {meaning}" for short, meaning in legend(views))
    if said:
        console.print(Text(said, style="dim"))


def legend(views: Sequence[StepView]) -> list[tuple[str, str]]:
    """The short forms that do occur."""
    cells = " ".join(cell for view in views for cell in (*view.senders, *view.receivers))
    occurs = {
        "@8": "@" in cells, "[8,16)": "[" in cells, "b0 b1": " b" in cells, "#2": "#" in cells,
        "r0": re.search(r"\br\d+ ", cells) is not None,
        "!": any(view.action.startswith("!") for view in views),
    }  # fmt: skip
    return [(short, meaning) for short, meaning in LEGEND if occurs[short]]


def print_broken(console: Console, broken: str, text: str, step: int) -> None:
    """The property that a trace breaks: its text, the step, and how."""
    console.print(Text.assemble((broken, "bold red"), "  ", PROPERTIES.get(broken, "")), soft_wrap=False)
    indent = " " * (len(broken) + 2)
    where = f"broken at step {step}" if step else "broken before the first step"
    grid = Table.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(indent, f"{where}: {text}")
    console.print(grid)


# --- the zoo --------------------------------------------------------------------------------------------


class ZooLine(NamedTuple):
    """One line of the zoo's table: rows of a variant that agree, under the allocators named."""

    variant: str
    kind: str
    allocators: tuple[str, ...]
    verdict: str
    property: str
    expected: str
    as_expected: bool
    steps: tuple[int, ...]
    states: tuple[int, ...]
    coverage: str


def span(values: Sequence[int]) -> str:
    """``12`` or ``12-15``; a dash where there is nothing."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return number(low) if low == high else f"{number(low)}-{number(high)}"


ZOO_WIDTH = 96
"""Columns that the zoo's table needs. A narrower terminal is spared the column of what was expected, if it was met."""


def zoo_table(groups: Sequence[tuple[str, Sequence[ZooLine]]], allocators: Sequence[str], width: int) -> Table:
    """The zoo, in named groups, for ``width`` columns."""
    met = all(line.as_expected for _, lines in groups for line in lines)
    short = met and width < ZOO_WIDTH
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("variant", no_wrap=True, min_width=24)
    table.add_column("allocators", max_width=22)
    table.add_column("verdict", no_wrap=True)
    table.add_column("breaks", no_wrap=True)
    if not short:
        table.add_column("expected", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("states", justify="right", no_wrap=True)
    table.add_column("coverage", no_wrap=True)
    for position, (title, lines) in enumerate(groups):
        if position:
            table.add_section()
        table.add_row(Text(title, style="bold"))
        shown = ""
        for line in lines:
            expected = Text(line.expected) if line.as_expected else Text(f"{line.expected} !", "bold red")
            cells: list[str | Text] = ["" if line.variant == shown else f" {line.variant}"]
            cells += [allocators_text(line.allocators, allocators), _styled(line.verdict), line.property or "-"]
            cells += [] if short else [expected]
            cells += [span(line.steps), span(line.states), line.coverage]
            table.add_row(*cells)
            shown = line.variant
    return table


def allocators_text(names: Sequence[str], known: Sequence[str]) -> str:
    """``all 6`` where nothing is missing, ``all but lifo`` where little is, else the names."""
    missing = [name for name in known if name not in names]
    if not missing and len(known) > 1:
        return f"all {len(known)}"
    if 0 < len(missing) < len(names):
        return "all but " + ", ".join(missing)
    return ", ".join(names)


# --- figures --------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """One measurement beside its target: at most that if ``better`` is ``"less"``, at least that if ``"more"``.

    ``target`` is ``None`` where there is none; ``aim`` is what one would like beyond it.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    better: str = "less"
    note: str = ""
    aim: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "less" else self.value >= self.target


def figure_text(value: float) -> str:
    """A measurement with as many figures as it deserves."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def print_figures(console: Console, groups: Mapping[str, Sequence[Figure]]) -> None:
    """Measurements by group, each beside its target."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("measured on this machine", overflow="fold")
    table.add_column("figure", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("aim", justify="right", no_wrap=True)
    for position, (title, figures) in enumerate(groups.items()):
        if position:
            table.add_section()
        table.add_row(Text(title, style="bold"))
        for figure in figures:
            target = (
                ""
                if figure.target is None
                else ("<= " if figure.better == "less" else ">= ") + figure_text(figure.target)
            )
            mark = {None: Text(""), True: Text("ok", "green"), False: Text("MISSED", "bold red")}[figure.met]
            note = f" ({figure.note})" if figure.note else ""
            aim = "" if figure.aim is None else figure_text(figure.aim)
            table.add_row(f" {figure.name}{note}", figure_text(figure.value), figure.unit, target, mark, aim)
    console.print(table)
