"""Traces as files: what is written is read back, and what is not a trace is refused, naming the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from fsm.events import Granted, Wrote
from fsm.messages import BlockRef, Epoch
from fsm.trace import (
    TRACE_VERSION,
    WORKER,
    Pick,
    Seen,
    Step,
    Trace,
    TraceEnding,
    TraceHeader,
    dump_trace,
    parse_trace,
)
from sim.trace_file import read_trace, write_trace

HEADER = TraceHeader(TRACE_VERSION, "simulate", {"pool": {"blocks": 2}}, "transitions", 7, "resumark simulate --seed 7")
STEPS = (
    Step(("deliver", 0), "deliver Register to sender 0"),
    Step(("tick",), "tick", (Pick("offer", 3, 0), Pick("block", 2, 1))),
)
ENDING = TraceEnding("I6", "start 4 was granted twice", "00ff")
TRACE = Trace(HEADER, STEPS, ENDING)


def lines() -> list[str]:
    return dump_trace(TRACE).splitlines()


def test_a_trace_is_one_header_one_line_a_step_and_one_ending() -> None:
    assert len(lines()) == 1 + len(STEPS) + 1
    assert [line.split(",")[0] for line in lines()] == [
        '{"line":"header"',
        '{"line":"step"',
        '{"line":"step"',
        '{"line":"ending"',
    ]


def test_what_was_written_is_read_back() -> None:
    assert parse_trace(lines()) == TRACE


def test_defaults_are_read_back_too() -> None:
    bare = Trace(TraceHeader(TRACE_VERSION, "check", {}), (), TraceEnding())
    read = parse_trace(dump_trace(bare).splitlines())
    assert read == bare
    assert (read.header.machine, read.header.seed, read.header.command) == ("flat", None, "")
    assert (read.ending.property, read.ending.text, read.ending.digest) == ("", "", "")


def test_a_file_is_written_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    write_trace(TRACE, file)
    assert file.read_text(encoding="utf-8") == dump_trace(TRACE)
    assert read_trace(file) == TRACE


def test_a_line_ends_where_json_lines_end_and_nowhere_else(tmp_path: Path) -> None:
    odd = Trace(HEADER, (Step(("tick",), "a\u2028b\x85c\x0bd\r\ne"),), ENDING)
    write_trace(odd, tmp_path / "odd.jsonl")
    assert read_trace(tmp_path / "odd.jsonl") == odd


def test_a_pick_is_read_back_as_a_pick() -> None:
    """A list of three would compare equal to nothing."""
    picks = parse_trace(lines()).steps[1].picks
    assert picks[1].label == "block"
    assert (picks[1].options, picks[1].chosen) == (2, 1)


def test_empty_lines_mean_nothing() -> None:
    spread = [line for one in lines() for line in ("", one, "   ")]
    assert parse_trace(spread) == TRACE


NAMES = st.text(max_size=12)
NUMBERS = st.integers(-(2**63), 2**63 - 1)
PICKS = st.builds(Pick, NAMES, NUMBERS, NUMBERS)
ACTIONS = st.lists(st.one_of(NAMES, NUMBERS), min_size=1, max_size=4).map(tuple)


@given(
    st.lists(st.builds(Step, ACTIONS, NAMES, st.lists(PICKS, max_size=3).map(tuple)), max_size=5),
    st.builds(TraceEnding, NAMES, NAMES, NAMES),
    st.one_of(st.none(), st.integers(0, 2**63 - 1)),
)
def test_any_trace_is_read_back(steps: list[Step], ending: TraceEnding, seed: int | None) -> None:
    header = TraceHeader(TRACE_VERSION, "simulate", {"a": [1, "b", None]}, seed=seed)
    trace = Trace(header, tuple(steps), ending)
    assert parse_trace(dump_trace(trace).split("\n")) == trace


# What is not a trace -----------------------------------------------------------------------------------


def refused(text: list[str], source: str = "run.jsonl") -> str:
    with pytest.raises(LocalError) as caught:
        parse_trace(text, source=source)
    return str(caught.value)


def test_nothing_at_all_is_no_trace() -> None:
    assert refused([]) == "run.jsonl: empty; expected a header line"
    assert refused(["", " "]) == "run.jsonl: empty; expected a header line"


def test_the_header_comes_first() -> None:
    assert refused(lines()[1:]) == "run.jsonl, line 1: expected the header first"
    assert refused([lines()[-1]]) == "run.jsonl, line 1: expected the header first"


def test_another_version_is_not_guessed_at() -> None:
    header = TraceHeader(TRACE_VERSION + 1, "simulate", {})
    text = dump_trace(Trace(header, STEPS, ENDING)).splitlines()
    assert refused(text) == "run.jsonl: trace version 2; this program reads version 1"


def test_there_is_one_header_and_one_ending() -> None:
    header, first, second, ending = lines()
    only_one = "nothing may follow the ending, and there is one header"
    assert refused([header, header, first, ending]) == f"run.jsonl, line 2: {only_one}"
    assert refused([header, first, ending, second]) == f"run.jsonl, line 4: {only_one}"
    assert refused([header, ending, ending]) == f"run.jsonl, line 3: {only_one}"


def test_a_trace_that_was_cut_off_says_after_which_step() -> None:
    assert refused(lines()[:-1]) == "run.jsonl: cut off after step 2: the ending is missing"
    assert refused(lines()[:1]) == "run.jsonl: cut off after step 0: the ending is missing"


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        '{"line":"picture"}',
        '{"line":"step","action":["tick"]}',
        '{"line":"step","action":"tick","text":""}',
        '{"line":"step","action":["tick"],"text":"","picks":[["offer",3]]}',
        '{"line":"header","version":"one","engine":"check","scenario":{}}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_none_of_a_trace_is_named(line: str) -> None:
    said = refused([lines()[0], line])
    assert said.startswith("run.jsonl, line 2: not a line of a trace: ")


@given(st.text(max_size=60))
def test_any_text_is_a_trace_or_refused(text: str) -> None:
    with pytest.raises(LocalError):
        parse_trace([text])


def test_without_a_name_the_source_is_called_a_trace() -> None:
    with pytest.raises(LocalError, match=r"^<trace>: empty"):
        parse_trace([])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    with pytest.raises(LocalError, match="cannot be read") as caught:
        read_trace(missing)
    assert str(caught.value).startswith(str(missing))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LocalError, match="cannot be read"):
        read_trace(binary)


def test_errors_in_a_file_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text(lines()[0] + "\nnonsense\n")
    with pytest.raises(LocalError) as caught:
        read_trace(file)
    assert str(caught.value).startswith(f"{file}, line 2: ")


# Real runs ------------------------------------------------------------------------------------------------

SEEN = (
    Seen(0.25, Granted(0, 1, Epoch(7, 1), 0, 0, 8, (BlockRef(3, 0), BlockRef(1, 2)))),
    Seen(0.5, Wrote(0, 1, Epoch(7, 1), 0, 0, 8)),
)
REAL = Trace(TraceHeader(TRACE_VERSION, WORKER, {"rank": 0}), (), TraceEnding(), SEEN)


def test_what_a_worker_saw_is_read_back() -> None:
    assert parse_trace(dump_trace(REAL).splitlines()) == REAL


def test_a_worker_that_was_killed_leaves_a_trace_all_the_same() -> None:
    """No ending, and perhaps half a line: what was seen until then counts."""
    whole = dump_trace(REAL).splitlines()
    assert parse_trace(whole[:-1]) == REAL
    assert parse_trace([*whole[:-1], whole[2][:30]]) == REAL


def test_half_a_line_in_the_middle_is_refused() -> None:
    whole = dump_trace(REAL).splitlines()
    with pytest.raises(LocalError, match=r"run, line 2: not a line of a trace"):
        parse_trace([whole[0], whole[1][:30], whole[2]], source="run")


def test_steps_and_what_was_seen_do_not_mix() -> None:
    real, run = dump_trace(REAL).splitlines(), lines()
    with pytest.raises(LocalError, match=r"line 2: expected a line 'seen', as engine 'worker' says"):
        parse_trace([real[0], run[1]])
    with pytest.raises(LocalError, match=r"line 2: expected a line 'step', as engine 'simulate' says"):
        parse_trace([run[0], real[1]])
