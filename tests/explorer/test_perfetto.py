"""Runs for the Perfetto viewer: valid by the rules of the Chrome trace event format, and what stands in them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm.trace import Trace
from sim import zoo
from sim.choices import Seeded
from sim.engines.check import check
from sim.engines.simulate import run_once
from sim.explorer.build import page_of_seen, page_of_trace
from sim.explorer.page import PAGE_VERSION, Arrow, Lane, Lifecycle, Mark, Page, Pool, Request, Run, Step
from sim.explorer.perfetto import GROUP, THREADS, write_perfetto
from sim.scenario import Faults, Scenario
from tests.explorer import test_seen

Events = list[dict[str, Any]]

write = test_seen.write

FIELDS = {
    "M": {"args"}, "X": {"dur", "args"}, "C": {"args"}, "i": {"s", "args"},
    "s": {"cat", "id"}, "f": {"cat", "id", "bp"},
}  # fmt: skip
"""Every kind of event that is written, and what it must have beside ph, ts, pid, tid and name."""


def checked(page: Page) -> Events:
    """The events of a page's file, after every rule of the format was looked at."""
    whole = json.loads(write_perfetto(page))
    assert set(whole) == {"traceEvents", "displayTimeUnit", "otherData"} and whole["displayTimeUnit"] in ("ms", "ns")
    events: Events = whole["traceEvents"]
    for event in events:
        check_fields(event)
    shown = [event for event in events if event["ph"] != "M"]
    times = [event["ts"] for event in shown]
    assert times == sorted(times), "importers want times in order"
    check_names(events)
    slices = check_nesting(shown)
    check_flows(shown, slices)
    return events


def check_fields(event: dict[str, Any]) -> None:
    kind = event["ph"]
    assert set(event) == {"ph", "ts", "pid", "tid", "name"} | FIELDS[kind], event
    assert isinstance(event["pid"], int) and isinstance(event["tid"], int) and event["pid"] > 0 and event["tid"] >= 0
    assert isinstance(event["ts"], (int, float)) and event["ts"] >= 0
    assert isinstance(event["name"], str) and event["name"]
    if kind == "X":
        assert event["dur"] >= 0
    if kind == "C":
        assert event["args"] and all(isinstance(count, int) and count >= 0 for count in event["args"].values())
    if kind == "i":
        assert event["s"] in ("g", "p", "t")
    if kind == "M":
        assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
        value = event["args"]["name" if event["name"].endswith("_name") else "sort_index"]
        assert isinstance(value, str if event["name"].endswith("_name") else int)


def check_names(events: Events) -> None:
    """Every process and thread that something happens on has one name, and no two have the same."""
    processes = Counter(event["pid"] for event in events if event["name"] == "process_name")
    threads = Counter((event["pid"], event["tid"]) for event in events if event["name"] == "thread_name")
    assert set(processes.values()) == {1} and set(threads.values()) == {1}
    assert len({tid for _, tid in threads}) == len(threads), "some readers know threads by their number alone"
    assert len({event["args"]["name"] for event in events if event["name"] == "process_name"}) == len(processes)
    for event in events:
        assert event["pid"] in processes
        if event["ph"] in "Xisf":
            assert (event["pid"], event["tid"]) in threads, event


def check_nesting(shown: Events) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """Slices of a thread lie within each other or apart, in the order in which a viewer opens them."""
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in shown:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for where, spans in slices.items():
        open_until: list[float] = []
        for begin, end in spans:
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 0.0015, (where, begin, end, open_until)
            open_until.append(end)
    return slices


def check_flows(shown: Events, slices: dict[tuple[int, int], list[tuple[float, float]]]) -> None:
    """Each arrow has two ends, the later one later, in slices that enclose them."""
    ends: dict[int, Events] = defaultdict(list)
    for event in shown:
        if event["ph"] in "sf":
            ends[event["id"]].append(event)
            spans = slices[event["pid"], event["tid"]]
            assert any(begin <= event["ts"] <= end for begin, end in spans), event
    for pair in ends.values():
        assert [event["ph"] for event in pair] == ["s", "f"]
        start, finish = pair
        assert (start["name"], start["cat"]) == (finish["name"], finish["cat"]) and finish["bp"] == "e"


def named(events: Events) -> dict[str, int]:
    return {event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"}


def of_kind(events: Events, kind: str) -> Events:
    return [event for event in events if event["ph"] == kind]


@cache
def counterexample() -> Page:
    """That of `sent-accumulate`, and the protocol on the same choices."""
    trace = check(zoo.scenario_for("sent-accumulate")).violations[0].trace
    return page_of_trace(trace, versus="watermark", command="resumark check --detector sent-accumulate")


def trace_of(scenario: Scenario, seed: int) -> Trace:
    trace = run_once(scenario, Seeded(seed), record=True, seed=seed).trace
    assert trace is not None
    return trace


FAULTS = Faults(
    rate=0.3, duplicate_max=2, delay_max=1, drop_max=2, abort_max=1, sender_crash_max=1, receiver_crash_max=1,
    partition_max=1, poison_max=1,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_random_runs_with_every_fault_are_valid(seed: int) -> None:
    scenario = msgspec.structs.replace(zoo.default_scenario(), faults=FAULTS)
    checked(page_of_trace(trace_of(scenario, seed)))


def test_a_simulated_run_is_shown_with_everything_that_is_known_of_it() -> None:
    page = page_of_trace(trace_of(zoo.default_scenario(), 1))
    (run,) = page.runs
    events = checked(page)
    assert list(named(events)) == ["run", *(lane.name for lane in run.lanes), "network"]
    steps = [event for event in of_kind(events, "X") if event["tid"] == THREADS + 1]
    assert [event["ts"] for event in steps] == [1000.0 * index for index in range(len(run.steps))]
    assert [event["args"]["step"] for event in steps] == [step.number for step in run.steps]
    arrived = [arrow for step in run.steps for arrow in step.arrows if arrow.end == "arrive"]
    assert len(of_kind(events, "f")) == len(arrived) > 0
    receiver = named(events)["receiver 0"]
    states = {event["name"] for event in of_kind(events, "X") if event["pid"] == receiver}
    assert {"Bootstrapping", "WaitingForInput", "Transferring", "ResumeRequested"} <= states
    points = [event["name"] for event in of_kind(events, "i") if event["pid"] == receiver]
    assert points == ["Success"] * len(run.requests)
    tokens = [event["args"] for event in of_kind(events, "C") if event["name"].startswith("tokens of room")]
    assert max(count["watermark"] for count in tokens) == max(request.tokens for request in run.requests)
    for counts in (event["args"] for event in of_kind(events, "C") if event["name"] == "blocks"):
        assert sum(counts.values()) == run.pools[0].blocks
    other = json.loads(write_perfetto(page))["otherData"]
    assert other["run 1 time"] == "one step of the simulator is shown as 1 ms; it is no duration"


def test_two_runs_are_two_groups_of_processes_and_marks_say_what_is_broken() -> None:
    page = counterexample()
    events = checked(page)
    first, second = (run.name for run in page.runs)
    names = named(events)
    assert names[f"{first}: receiver 0"] < GROUP < names[f"{second}: receiver 0"]
    (broken,) = (event for event in of_kind(events, "i") if event["name"] == "violation I2")
    assert broken["s"] == "g" and broken["args"]["property"] == page.properties["I2"]
    assert broken["ts"] == 1000.0 * (len(page.runs[0].steps) - 1)
    wrong = [event for event in of_kind(events, "i") if event["name"].endswith(": wrong")]
    assert wrong and all(event["pid"] < GROUP for event in wrong), "the block that is read before it is written"
    other = json.loads(write_perfetto(page))["otherData"]
    assert other["run 1 command"] == "resumark check --detector sent-accumulate" and other["run 2 verdict"] == "holds"


def test_the_same_page_gives_the_same_bytes() -> None:
    assert write_perfetto(counterexample()) == write_perfetto(counterexample())


def test_what_workers_saw_stands_at_its_real_time(write: test_seen.Write) -> None:
    """Also where the clock of one machine is wrong by seconds: causes come first, and time grows."""
    for late_s in (0.0, -3.0):
        paths: list[Path] = write(test_seen.told(), late_s=late_s)
        page = page_of_seen(paths)
        events = checked(page)
        steps = [event["ts"] for event in of_kind(events, "X") if event["tid"] == THREADS + 1]
        assert all(later > earlier for earlier, later in pairwise(steps))
        if not late_s:
            first_s = page.runs[0].steps[0].time_s
            assert steps[-1] == pytest.approx((page.runs[0].steps[-1].time_s - first_s) * 1e6, abs=1000.0)
    assert json.loads(write_perfetto(page))["otherData"]["run 1 time"].startswith("real time")


def test_an_arrival_belongs_to_the_earliest_departure_that_is_open() -> None:
    """A message that was sent twice, copied by the network and lost there: three arrows, and none from nowhere."""

    def arrow(end: str) -> Arrow:
        return Arrow("message", end, "sender 0", "receiver 0", 1, "STATUS 0", "STATUS room=1")

    ends = ["leave", "leave", "arrive", "copy", "arrive", "lose", "arrive"]
    steps = tuple(Step(number, arrows=(arrow(end),)) for number, end in enumerate(ends))
    run = Run("run", "check", "holds", "", (), LANES[:2], (), (Request(1, 8),), steps)
    events = checked(Page(PAGE_VERSION, "title", (run,), {}, ()))
    flows = {number: [event for event in of_kind(events, "s") + of_kind(events, "f") if event["id"] == number]
             for number in (1, 2, 3)}  # fmt: skip
    assert len(of_kind(events, "f")) == 3
    names = {pid: name for name, pid in named(events).items()}
    assert [[(names[end["pid"]], int(end["ts"] // 1000)) for end in ends] for ends in flows.values()] == [
        [("sender 0", 0), ("receiver 0", 2)], [("sender 0", 1), ("receiver 0", 4)], [("network", 3), ("network", 5)],
    ]  # fmt: skip


# --- pages that nobody would make -------------------------------------------------------------------------

LANES = (Lane("sender 0", "sender", 0), Lane("receiver 0", "receiver", 0), Lane("receiver 1", "receiver", 1))
NAMES = st.sampled_from([lane.name for lane in LANES])
ROOMS = st.integers(-1, 2)


@st.composite
def arrows(draw: st.DrawFn) -> Arrow:
    source, target = draw(st.sampled_from([("sender 0", "receiver 1"), ("receiver 0", "sender 0")]))
    end = draw(st.sampled_from(["leave", "copy", "hold", "arrive", "lose"]))
    what = draw(st.sampled_from(["message", "bytes"]))
    return Arrow(what, end, source, target, draw(ROOMS), "GRANT 0", draw(st.sampled_from(["a", "b"])))


LIFECYCLES = st.builds(
    Lifecycle, NAMES, st.integers(0, 1), st.integers(0, 2), st.sampled_from(["Bootstrapping", "Transferring", "Failed"])
)
STEPS = st.builds(
    Step, st.just(0), text=st.sampled_from(["", "tick"]), time_s=st.floats(0.0, 1e-5) | st.floats(0.0, 1e6),
    arrows=st.lists(arrows(), max_size=4).map(tuple), lifecycles=st.lists(LIFECYCLES, max_size=3).map(tuple),
)  # fmt: skip
MARKS = st.builds(Mark, st.sampled_from(["violation", "resume"]), st.integers(0, 12), st.just("why"), st.just("I1"))


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=10), st.lists(MARKS, max_size=3), st.sampled_from(["worker", "check"]))
def test_any_page_is_valid(steps: list[Step], marks: list[Mark], origin: str) -> None:
    """Arrivals of what never left, states twice in a step, clocks that stand still or go back."""
    numbered = tuple(msgspec.structs.replace(step, number=number) for number, step in enumerate(steps))
    run = Run(
        "run", origin, "holds", "", (), LANES, (Pool(0, 2, 4), Pool(1, 2, 4)), (Request(0, 8),), numbered, tuple(marks)
    )
    checked(Page(PAGE_VERSION, "title", (run, msgspec.structs.replace(run, name="other")), {}, ()))
