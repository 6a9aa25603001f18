"""What is printed: aligned, complete, readable without colour, and no wider than promised."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from fsm.trace import Trace
from sim import cli_view, cli_zoo, render, zoo
from sim.cli_view import StepView
from sim.engines.check import check
from sim.engines.result import Found, RequestReport, Result
from sim.scenario import load_scenario
from sim.zoo_table import FAMILIES, Row

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def printed(show: object, *, width: int = 100, colour: bool = False) -> str:
    """What a console shows of a renderable, or of a function that prints on it."""
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=colour, color_system="truecolor" if colour else None,
        highlight=False, markup=False,
    )  # fmt: skip
    if callable(show):
        show(console)
    else:
        console.print(show)
    return stream.getvalue()


def found(scenario: str, variant: str, only: str = "") -> Found:
    known = zoo.DETECTORS.get(variant) or zoo.HAZARDS[variant]
    chosen = zoo.with_variant(zoo.scenario_named(scenario), known)
    return check(chosen, states_max=20_000, only=(only,) if only else None).violations[0]


@pytest.fixture(scope="module")
def flag() -> Trace:
    return found("flag", "flag", "L1").trace


# --- small things ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([], ""),
        ([3], "b3"),
        ([0, 1], "b0 b1"),
        ([0, 1, 2], "b0-b2"),
        ([5, 0, 1, 2, 3, 9], "b5 b0-b3 b9"),
        ([2, 1, 0], "b2 b1 b0"),
    ],
)
def test_blocks(blocks: list[int], text: str) -> None:
    assert cli_view.blocks_text(blocks) == text


def test_counts_and_durations() -> None:
    assert render.plural(1, "block") == "1 block"
    assert render.plural(1200, "block") == "1,200 blocks"
    assert (render.seconds(0.126), render.seconds(12.6)) == ("0.13 s", "13 s")
    assert (render.span(()), render.span((7, 7)), render.span((9, 1200))) == ("-", "7", "9-1,200")
    assert [render.figure_text(value) for value in (0.12345, 12.345, 1234.5)] == ["0.123", "12.3", "1,234"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (FAMILIES, "all 6"),
        (FAMILIES[1:], "all but fifo"),
        (FAMILIES[:4], "all but stingy, adversary"),
        (("lifo", "stingy"), "lifo, stingy"),
        (("lifo",), "lifo"),
    ],
)
def test_allocators(names: tuple[str, ...], text: str) -> None:
    assert render.allocators_text(names, FAMILIES) == text


# --- traces ---------------------------------------------------------------------------------------------


def test_a_trace_is_one_aligned_line_a_step(flag: Trace) -> None:
    views = cli_view.views_of(flag)
    assert [view.number for view in views] == list(range(1, len(flag.steps) + 1))
    heading, *lines = render.trace_lines(views)
    assert len(lines) == len(views)
    assert heading.split() == ["step", "what", "happens", "sender", "receiver"]
    for side, column in ((view_side, heading.index(view_side)) for view_side in ("sender", "receiver")):
        for view, line in zip(views, lines, strict=True):
            (cell,) = view.senders if side == "sender" else view.receivers
            assert line[column:].startswith(cell)
            assert column == 0 or line[column - 2 : column].strip() == ""


def test_a_trace_tells_what_changed_and_nothing_else(flag: Trace) -> None:
    views = cli_view.views_of(flag)
    told = [(*view.senders, *view.receivers) for view in views]
    assert ("", "grant 0 [0,8) in b0 b1") in told
    assert ("ResumeRequested", "bytes [0,8)") in told
    assert ("", "@8, Transferring, copy [0,8), free b0 b1, grant 1 [8,16) in b2 b3") in told
    assert told[-1][1].startswith("Failed (QUEUE_DEADLINE)")
    assert [view.action for view in views][:3] == ["Register to sender", "RegisterAck to receiver", "Offer to receiver"]
    assert views[-1].action.startswith("clock leaps to ")
    assert [short for short, _ in render.legend(views)] == ["@8", "[8,16)", "b0 b1"]


def test_rooms_and_faults_are_named_where_there_are_any() -> None:
    views = cli_view.views_of(found("free-without-quiescence", "free-without-quiescence", "I1").trace)
    assert any(view.action == "! receiver aborts room 1" for view in views)
    assert views[-1].receivers[0].startswith("#1 bytes [0,4) TRESPASS")
    aborted = next(view for view in views if view.action.startswith("!"))
    assert aborted.receivers[0].startswith("#1 Failed (ABORTED), send ABORT")
    assert [short for short, _ in render.legend(views)][-2:] == ["#2", "!"]


def test_ranks_have_columns_of_their_own() -> None:
    views = cli_view.views_of(found("first-rank-triggers", "first-rank-triggers", "I1").trace)
    assert "receiver 0" in render.trace_lines(views)[0] and "receiver 1" in render.trace_lines(views)[0]
    assert any(view.senders[0].startswith("r1 ") for view in views)
    assert "r0" in [short for short, _ in render.legend(views)]
    assert "TRESPASS" in " ".join(views[-1].receivers)


def test_a_trace_is_never_folded(flag: Trace) -> None:
    views = cli_view.views_of(flag)
    text = printed(lambda console: render.print_trace(console, views), width=40)
    assert text.splitlines()[1 : len(views) + 1] == render.trace_lines(views)[1:]


def test_no_steps() -> None:
    assert render.trace_lines([]) == ["(no steps)"]
    assert printed(lambda console: render.print_trace(console, [])) == "(no steps)\n"


def test_several_senders() -> None:
    view = StepView(1, "x", ("a", "b"), ("c",))
    assert render.trace_lines([view])[0].split() == [
        "step",
        "what",
        "happens",
        "sender",
        "0",
        "sender",
        "1",
        "receiver",
    ]


def test_what_is_broken_is_said_in_full() -> None:
    text = printed(lambda console: render.print_broken(console, "I6", "start 8 was granted twice", 7))
    assert text.startswith(
        "I6  a receiver grants a start under one seq only, and a sender executes a seq once\n"
    )
    assert "broken at step 7: start 8 was granted twice" in text


# --- verdicts -------------------------------------------------------------------------------------------


def facts(result: Result) -> dict[str, str]:
    return {label: str(value) for label, value in render.verdict_facts(result)}


def test_a_verdict_says_how_it_was_reached(flag: Trace) -> None:
    held = Result("holds", "exhausted", states=1234, transitions=5678, depth=9, digest="d", bounds={"states_max": 5000})
    assert facts(held) == {
        "verdict": "holds",
        "coverage": "exhausted: every reachable state was visited; 1,234 states, 5,678 transitions, depth 9, 0.00 s",
        "bounds": "states_max 5,000",
        "digest": "d",
    }
    broken = Result("violated", "bounded", violations=(Found("L1", 11, "nobody asks", flag),))
    assert facts(broken)["verdict"].startswith("violated: L1, every request ends")
    assert facts(broken)[""] == "step 11: nobody asks"
    assert facts(broken)["coverage"].startswith("bounded: the search stopped before its end")
    missed = Result("unknown", "sampled", runs=7, sometimes={"resume": 0}, missed=("resume",))
    assert facts(missed)["coverage"] == "sampled: 7 random runs, 0.00 s"
    assert facts(missed)["missed"] == "resume (did not occur, so this is no pass)"
    assert facts(missed)["occurred"] == "resume 0"


def test_requests_are_listed_up_to_a_limit() -> None:
    one = RequestReport(1, "Success", 24, 24, True, (8, 16), 3)
    wrong = RequestReport(2, "Success", 24, 24, False, (), 1)
    text = printed(lambda console: render.print_requests(console, (one, wrong)))
    assert re.search(r"1 +Success +24 of 24 +as sent +8 16 +3\b", text)
    assert re.search(r"2 +Success +24 of 24 +WRONG +never +1\b", text)
    many = printed(lambda console: render.print_requests(console, (one,) * (render.REQUESTS_SHOWN_MAX + 5)))
    assert many.endswith("and 5 more requests\n")
    assert printed(lambda console: render.print_requests(console, ())) == ""


def test_a_scenario_in_words() -> None:
    scenario = load_scenario(
        "[pool]\nallocator='adversary'\nrefusals_max=1\nblocks_by_rank=[2,3]\ngrant_blocks_max=2\n"
        "[ranks]\nreceivers=2\n[[requests]]\ntokens=4\n[[requests]]\ntokens=4096\n"
        "[faults]\nabort_max=1\nsender_crash_max=2\n[variant]\nhazards=['x','y']\n"
    )
    assert render.variant_text(scenario) == "detector watermark + hazard x, y"
    assert render.world_text(scenario) == (
        "2 requests of 4 to 4,096 tokens; 2+3 blocks of 4, at most 2 a grant; allocator adversary with 1 refusal; "
        "2 receiver ranks, 1 sender rank"
    )
    assert render.faults_text(scenario, rate=False) == "abort 1, sender crash 2"
    assert render.faults_text(scenario, rate=True) == "abort 1, sender crash 2; each drawn at rate 0.05"
    assert render.faults_text(load_scenario("\n"), rate=True) == "none"


# --- the zoo --------------------------------------------------------------------------------------------


def row(variant: str, allocator: str, **changes: object) -> Row:
    kind = "hazard" if variant in zoo.HAZARDS else "detector"
    plain = Row(variant, kind, allocator, "violated", "I6", "I6", 7, 8, "bounded", "resumark check", True)
    return plain._replace(**changes)


def rows_of_all() -> list[Row]:
    """Every variant under every allocator, with figures as wide as they get."""
    rows = []
    for name in (*zoo.DETECTORS, *zoo.HAZARDS):
        for position, allocator in enumerate(FAMILIES):
            rows.append(row(name, allocator, steps=98 + position, states=199_000 + position, coverage="exhausted"))
    return rows


def test_rows_that_agree_share_a_line() -> None:
    rows = [row("flag", allocator, steps=7 + position) for position, allocator in enumerate(FAMILIES)]
    rows[1] = rows[1]._replace(verdict="holds", expected="holds", property="", steps=0)
    most, other = cli_zoo.lines_of(rows)
    assert most.allocators == ("fifo", "same-again", "disjoint", "stingy", "adversary")
    assert most.steps == (7, 9, 10, 11, 12)
    assert (other.allocators, other.steps, other.verdict) == (("lifo",), (), "holds")


def test_the_zoo_fits_a_hundred_columns_and_loses_nothing() -> None:
    text = printed(lambda console: cli_zoo.print_zoo(console, rows_of_all(), 12.3, 2))
    assert max(map(len, text.splitlines())) <= 100
    for name in (*zoo.DETECTORS, *zoo.HAZARDS):
        assert re.search(
            rf"^ {re.escape(name)} +all 6 +violated +I6 +I6 +98-103 +199,000-199,005 +exhausted *$", text, re.MULTILINE
        )
    assert "24 variants, 144 rows in 12 s on 2 cores: all as expected." in text
    assert "resumark check --detector|--hazard VARIANT --only PROPERTY" in text


def test_colour_only_repeats_what_words_say() -> None:
    def show(console: Console) -> None:
        cli_zoo.print_zoo(console, rows_of_all(), 12.3, 2)

    coloured = printed(show, colour=True)
    assert "\x1b[" in coloured
    assert ANSI.sub("", coloured) == printed(show)


def test_what_is_not_as_expected_stands_out() -> None:
    rows = [*rows_of_all(), row("flag", "fifo", verdict="holds", property="", expected="L1", as_expected=False)]
    for width in (100, 80):
        text = printed(lambda console: cli_zoo.print_zoo(console, rows, None, 2), width=width)
        assert "L1 !" in text
        assert "145 rows: 1 not as expected, marked '!'" in text


def test_a_narrow_terminal_is_spared_a_column() -> None:
    text = printed(lambda console: cli_zoo.print_zoo(console, rows_of_all()[:6], None, 2), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "expected " not in text.splitlines()[0]


# --- figures --------------------------------------------------------------------------------------------


def test_figures_stand_beside_their_targets() -> None:
    fast = render.Figure("fast", 0.3, "us", 1.0, aim=0.2)
    slow = render.Figure("slow", 900.0, "/s", 1000.0, "more", "why")
    plain = render.Figure("plain", 5.0, "us")
    assert (fast.met, slow.met, plain.met) == (True, False, None)
    text = printed(lambda console: render.print_figures(console, {"group": [fast, slow, plain]}))
    assert re.search(r"^ fast +0\.3 +us +<= 1 +ok +0\.2 *$", text, re.MULTILINE)
    assert re.search(r"^ slow \(why\) +900 +/s +>= 1,000 +MISSED *$", text, re.MULTILINE)
    assert re.search(r"^ plain +5 +us *$", text, re.MULTILINE)
