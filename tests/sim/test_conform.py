"""Every run of the simulator is accepted, however it is told; a spoilt one is refused where it is spoilt."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsm.conform.acceptor import Acceptor
from fsm.conform.gaps import Gaps, Process
from fsm.conform.refusal import Refused
from fsm.errors import LocalError
from fsm.events import Executed, Granted, Note, Progressed, Received, Sent, StateChanged, Wrote
from fsm.messages import Grant, Status
from fsm.ring import RingWriter
from fsm.trace import Seen, Trace, TraceEnding, dump_line
from sim import bench_conform, zoo
from sim.choices import Seeded
from sim.engines.check import check
from sim.engines.conform import conform, conform_sources
from sim.engines.conform_read import open_source, source_of
from sim.engines.conform_split import world_events
from sim.engines.merge import Merge
from sim.engines.minimise import features_of
from sim.engines.replay import scenario_of
from sim.engines.simulate import run_once
from sim.scenario import RankCounts, Scenario, Schedule
from tests.sim.kit_conform import insert, judged, keep, late, ours, place, silenced, traces_of, words, written

EVERY_FAULT = msgspec.structs.replace(zoo.scenario_named("every-fault").faults, rate=0.2)

SCHEDULES = (
    Schedule(),
    Schedule(copy_lags=True, staging_lags=True, notice_lags=True, ticks_free=True),
    Schedule(data_lags_status=True, rank_skew_ticks=2),
    Schedule(status_lags_data=True),
)
NAMES = ("every-fault", "exhaust-leases", "exhaust-early-grants", "late-status", "abort-anywhere", "watermark")


def accepted(trace: Trace) -> int | None:
    """The step at which a run of the simulator is refused; nothing if it is accepted, and nothing may be inferred."""
    scenario = scenario_of(trace.header)
    process = Process(block_tokens=scenario.pool.block_tokens)
    acceptor = Acceptor([process])
    for step, event in world_events(trace):
        try:
            acceptor.take(event, process)
        except Refused:
            return step
    assert acceptor.gaps.total == 0
    return None


# --- soundness ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.scenario_names())
def test_a_run_of_each_built_in_scenario_is_accepted_under_the_protocol(name: str) -> None:
    for seed in (1, 2):
        trace = run_once(ours(name), Seeded(seed), machine="flat", record=True).trace
        assert trace is not None and accepted(trace) is None


@st.composite
def runs(draw: Any) -> tuple[Any, random.Random]:
    """The traces of a run with many faults, and dice."""
    scenario = ours(draw(st.sampled_from(NAMES)), faults=EVERY_FAULT, schedule=draw(st.sampled_from(SCHEDULES)))
    if draw(st.booleans()):
        scenario = msgspec.structs.replace(scenario, ranks=RankCounts(receivers=3, senders=2))
    seed = draw(st.integers(0, 1 << 30))
    return traces_of(scenario, seed), random.Random(seed)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(runs())
def test_the_traces_of_the_processes_of_a_run_are_accepted_whatever_is_missing(run: Any) -> None:
    traces, dice = run
    if not traces:
        return
    whole = judged(traces)
    assert (whole.verdict, whole.inferred) == ("conforms", ()), whole.refused
    skewed = {
        name: trace._replace(header=msgspec.structs.replace(trace.header, started_unix_s=dice.uniform(1e9, 1e9 + 99)))
        for name, trace in traces.items()
    }
    assert judged(skewed)[:1] != () and judged(skewed).inferred_total == 0 and judged(skewed).verdict == "conforms"
    one = dice.choice(list(traces))
    cuts = {name: dice.randrange(len(trace.seen) + 1) for name, trace in traces.items()}
    less = [
        {name: trace for name, trace in traces.items() if name != one},
        {name: late(trace, cuts[name]) if name == one else trace for name, trace in traces.items()},
        {name: late(trace, cuts[name]) for name, trace in traces.items()},
        {name: silenced(trace) for name, trace in traces.items()},
        {name: silenced(trace) if name == one else trace for name, trace in traces.items()},
    ]
    for number, some in enumerate(less):
        found = judged(some)
        assert found.verdict == ("conforms" if found.events else "unknown"), (number, one, found.refused)
    alone = judged({one: traces[one]._replace(seen=traces[one].seen[: cuts[one]])}, ends=False)
    assert alone.verdict == ("conforms" if alone.events > alone.notes else "unknown")


SAFETY = [
    (name, property)
    for name, property in (
        ("none", "I6"), ("generation", "I6"), ("sent-accumulate", "I2"), ("free-then-alloc", "I3"),
        ("max-progress", "I2"), ("no-grant-seq", "I6"), ("free-without-quiescence", "I1"), ("late-status", "I4"),
        ("floor-start", "I2"), ("plane-major-mrope", "I2"), ("last-destination-verdict", "I2"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("name", "property"), SAFETY)
def test_a_version_that_breaks_safety_is_refused_no_later_than_the_property_breaks(name: str, property: str) -> None:
    found = check(zoo.scenario_for(name, property), states_max=50_000).violations[0]
    step = accepted(found.trace)
    assert step is not None and step <= found.step


# --- spoilt traces --------------------------------------------------------------------------------------

RUN = traces_of(ours("example"), 1)
RECEIVER, SENDER = ("receiver", 0), ("sender", 0)


def spoilt(name: tuple[str, int], trace: Trace) -> Any:
    """The refusal of the run with one trace another."""
    found = judged({**RUN, name: trace})
    assert found.refused is not None
    return found.refused


def test_the_run_that_is_spoilt_below_conforms() -> None:
    found = judged(RUN)
    assert found.verdict == "conforms" and found.inferred == () and found.exit_code == 0
    assert [(told.name, told.over) for told in found.processes] == [("receiver 0", "whole"), ("sender 0", "whole")]


def test_a_resume_more_is_refused_at_that_event() -> None:
    at = place(RUN[RECEIVER], Granted, lambda event: event.seq == 1)
    event = RUN[RECEIVER].seen[at].event
    more = msgspec.structs.replace(event, seq=2)
    refused = spoilt(RECEIVER, insert(RUN[RECEIVER], at + 1, more))
    assert (refused.line, refused.kind, refused.refusal.rule) == (at + 3, "Granted", "R2")
    assert refused.refusal.property == "I6" and "Granted receiver_rank=0" in refused.event
    assert any("take in its STATUS" in could for could in refused.refusal.could)


def test_a_status_that_comes_twice_is_accepted() -> None:
    at = place(RUN[RECEIVER], Received, lambda event: isinstance(event.message, Status))
    doubled = insert(RUN[RECEIVER], at + 1, RUN[RECEIVER].seen[at].event)
    assert judged({**RUN, RECEIVER: doubled}).verdict == "conforms"


@pytest.mark.parametrize(
    ("name", "kind", "change", "rule"),
    [
        (RECEIVER, Granted, {"start": 3}, "R10"),
        (RECEIVER, Progressed, {"tokens": 9}, "R1"),
        (RECEIVER, StateChanged, {"target": "Success"}, "table"),
        (SENDER, Executed, {"count": 9}, "R3"),
    ],
)
def test_an_event_that_was_changed_is_refused_there(name: Any, kind: Any, change: dict[str, Any], rule: str) -> None:
    at = place(RUN[name], kind)
    line = Seen(0.0, msgspec.structs.replace(RUN[name].seen[at].event, **change))
    refused = spoilt(name, RUN[name]._replace(seen=(*RUN[name].seen[:at], line, *RUN[name].seen[at + 1 :])))
    assert (refused.line, refused.refusal.rule) == (at + 2, rule)


# --- causes ---------------------------------------------------------------------------------------------


def test_a_message_that_nobody_sent_is_refused_where_nothing_may_be_missing() -> None:
    gone = keep(RUN[SENDER], lambda event: not (isinstance(event, Sent) and isinstance(event.message, Status)))
    refused = judged({**RUN, SENDER: gone}).refused
    assert refused is not None and refused.refusal.rule in ("causality", "R3")
    without_rows = keep(gone, lambda event: not (isinstance(event, StateChanged) and event.cause == "committed"))
    refused = judged({**RUN, SENDER: without_rows}).refused
    assert refused is not None and refused.kind == "Received" and "Sent STATUS" in refused.refusal.text
    short = RUN[SENDER]._replace(seen=RUN[SENDER].seen[: place(RUN[SENDER], Executed) + 1])
    refused = judged({**RUN, SENDER: short}).refused
    assert refused is not None and refused.kind == "Received" and "is in no trace" in refused.refusal.text


def test_an_effect_before_its_cause_is_refused_and_both_are_named() -> None:
    at = place(RUN[SENDER], Received, lambda event: isinstance(event.message, Grant))
    early = RUN[SENDER].seen[at]
    first = place(RUN[SENDER], StateChanged)
    lines = [line for line in RUN[SENDER].seen if line is not early]
    lines.insert(first + 1, early)  # before the REGISTER_ACK that the receiver needs to make the grant
    at_offer = place(RUN[RECEIVER], Received)
    receiver = [line for number, line in enumerate(RUN[RECEIVER].seen) if number != at_offer]
    receiver.insert(0, RUN[RECEIVER].seen[at_offer])
    refused = judged(
        {RECEIVER: RUN[RECEIVER]._replace(seen=tuple(receiver)), SENDER: RUN[SENDER]._replace(seen=tuple(lines))}
    ).refused
    assert refused is not None and refused.refusal.rule == "causality"
    assert "Sent REGISTER " in refused.refusal.text and "receiver-0" in refused.other


def test_a_peer_that_was_killed_may_have_done_more_than_it_wrote_down() -> None:
    half = len(RUN[SENDER].seen) // 2
    sources = [
        source_of(RUN[RECEIVER], "receiver-0"),
        source_of(RUN[SENDER]._replace(seen=RUN[SENDER].seen[:half]), "sender-0", ends=False),
    ]
    found = conform_sources(sources)
    assert found.verdict == "conforms" and "Sent STATUS" in words(found)
    assert all("has no ending" in inferred.why for inferred in found.inferred)
    assert judged({**RUN, SENDER: RUN[SENDER]._replace(seen=RUN[SENDER].seen[:half])}).verdict == "refused"


def test_what_was_inferred_is_not_inferred_again_when_it_comes_twice() -> None:
    at = place(RUN[RECEIVER], Received, lambda event: isinstance(event.message, Status))
    doubled = insert(RUN[RECEIVER], at + 1, RUN[RECEIVER].seen[at].event)
    assert judged({RECEIVER: doubled}).inferred == judged({RECEIVER: RUN[RECEIVER]}).inferred


def test_a_process_begins_where_the_one_before_it_has_ended_whatever_the_clocks_say() -> None:
    header = msgspec.structs.replace(RUN[SENDER].header, boot_id=1)
    lives = [
        Trace(
            msgspec.structs.replace(header, boot_id=boot),
            (),
            TraceEnding(),
            tuple(Seen(at, Note("n", f"{boot} {at:.0f}")) for at in times),
        )
        for boot, times in ((2, (1.0, 2.0)), (1, (5.0, 6.0)))
    ]
    sources = [source_of(life, f"s-{number}") for number, life in enumerate(lives)]
    begun: list[Process] = []
    merge = Merge(sources, Gaps([source.process for source in sources]), begun.append)
    assert [event.text for event, _ in merge] == ["1 5", "1 6", "2 1", "2 2"]
    assert [process.boot_id for process in begun] == [2]


def test_a_process_whose_successor_alone_has_a_trace_is_missing() -> None:
    nothing = Trace(msgspec.structs.replace(RUN[SENDER].header, boot_id=9), (), TraceEnding())
    found = judged({RECEIVER: RUN[RECEIVER], SENDER: nothing})
    assert found.verdict == "conforms" and all("under boot id 1, but of another" in one.why for one in found.inferred)
    found = judged({RECEIVER: late(RUN[RECEIVER], 6), SENDER: nothing})
    assert found.verdict == "conforms" and any("is not told" in one.why for one in found.inferred)
    nothing = Trace(msgspec.structs.replace(RUN[RECEIVER].header, boot_id=9), (), TraceEnding())
    found = judged({RECEIVER: nothing, SENDER: RUN[SENDER]})
    assert found.verdict == "conforms" and all("under boot id 1, but of another" in one.why for one in found.inferred)


def test_processes_of_one_rank_follow_each_other() -> None:
    header = RUN[SENDER].header
    old = Trace(msgspec.structs.replace(header, boot_id=0), (), TraceEnding())
    other = traces_of(ours("example"), 2)[SENDER]
    sources = [
        source_of(RUN[RECEIVER], "r"), source_of(RUN[SENDER], "s-1"), source_of(old, "s-0"),
        source_of(other._replace(header=msgspec.structs.replace(header, boot_id=2), seen=()), "s-2"),
    ]  # fmt: skip
    assert conform_sources(sources).verdict == "conforms"


def test_what_the_merge_holds_is_bounded() -> None:
    scenario = Scenario(requests=(zoo.scenario_named("example").requests[0],))
    traces = traces_of(msgspec.structs.replace(scenario, pool=zoo.scenario_named("example").pool), 1)
    lines = []
    for counter in range(1, 30):
        for line in traces[RECEIVER].seen:
            event = line.event
            if isinstance(event, (Sent, Received)):
                message = msgspec.structs.replace(
                    event.message, room=counter, epoch=type(event.message.epoch)(1, counter)
                )  # type: ignore[union-attr]
                event = msgspec.structs.replace(event, message=message)
            elif hasattr(event, "room"):
                event = msgspec.structs.replace(
                    event, room=counter, epoch=type(RUN[RECEIVER].seen[0].event.message.epoch)(1, counter)
                )  # type: ignore[union-attr, call-arg]
            lines.append(Seen(0.0, event))
    source = source_of(traces[RECEIVER]._replace(seen=(*lines, lines[2])), "receiver-0")
    merge = Merge([source], Gaps([source.process]), lambda process: None, keep_epochs=4)
    assert len(list(merge)) == len(lines) + 1
    assert len(merge._done) <= 4


# --- files ----------------------------------------------------------------------------------------------


def test_traces_are_read_from_files_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.engines.conform_read.PIECE_BYTES", 300)
    paths = [Path(path) for path in written(RUN, tmp_path)]
    assert conform(paths) == judged(RUN)._replace(processes=conform(paths).processes)
    killed = paths[1].read_text().rsplit("\n", 4)[0] + '\n{"line":"se'
    paths[1].write_text(killed)
    assert [told.over for told in conform(paths).processes] == ["whole", "cut"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: [], "empty; expected the header first"),
        (lambda lines: lines[1:], "expected the header first"),
        (lambda lines: ["{", *lines[1:]], "line 1: not a line of a trace"),
        (lambda lines: [lines[0].replace('"version":1', '"version":9'), *lines[1:]], "trace version 9"),
        (lambda lines: [lines[0].replace('"side":"sender"', '"side":"both"'), *lines[1:]], "side 'both'"),
        (lambda lines: [lines[0], *["{"] * 17, *lines[1:]], "line 18: not a line of a trace"),
        (lambda lines: [*lines, lines[-1]], "nothing may follow the ending"),
        (lambda lines: [*lines, lines[1]], "nothing may follow the ending"),
        (lambda lines: [lines[0], lines[0], *lines[1:]], "there is one header"),
        (lambda lines: [lines[0], '{"line":"step","action":["tick"],"text":""}'], "expected a line 'seen'"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(change: Any, says: str, tmp_path: Path) -> None:
    path = Path(written({SENDER: RUN[SENDER]}, tmp_path)[0])
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(LocalError, match=says):
        conform([path])


def test_a_line_that_cannot_be_read_is_a_hole(tmp_path: Path) -> None:
    paths = [Path(path) for path in written(RUN, tmp_path)]
    lines = paths[0].read_text().splitlines()
    for gone in (4, 20, 24):
        paths[0].write_text("\n".join([*lines[:gone], lines[gone][:9], *lines[gone + 1 :]]) + "\n")
        found = conform(paths)
        assert found.verdict == "conforms" and found.inferred_total > 0, (gone, found.refused)
        assert (found.processes[0].holes, found.processes[1].holes) == (1, 0)


def test_a_ring_is_a_trace_that_begins_late(tmp_path: Path) -> None:
    memory = bytearray(6_000)
    ring = RingWriter(memory, dump_line(RUN[RECEIVER].header).encode().strip())
    for line in RUN[RECEIVER].seen:
        ring.put(dump_line(line).encode().strip())
    path = tmp_path / "receiver-0.ring"
    path.write_bytes(bytes(memory))
    source = open_source(path)
    assert source.process.dropped > 0
    [sender] = written({SENDER: RUN[SENDER]}, tmp_path)
    found = conform([path, Path(sender)])
    assert found.verdict == "conforms" and found.inferred and found.processes[0].over == "cut"


def test_an_ending_that_says_something_is_that_of_a_dump(tmp_path: Path) -> None:
    dumped = RUN[RECEIVER]._replace(ending=TraceEnding("", "room 1 ended Failed"))
    [path] = written({RECEIVER: dumped}, tmp_path)
    assert conform([Path(path)]).processes[0].over == "cut"


@pytest.mark.parametrize("ranks", [{"receivers": "x", "senders": []}, {"receivers": 10**12}, 3, {"receivers": -1}])
def test_a_header_that_says_nothing_of_ranks_is_read_all_the_same(ranks: Any) -> None:
    odd = {"config": {"ranks": ranks, "layout": 7, "pool": 1}}
    traces = {
        name: trace._replace(header=msgspec.structs.replace(trace.header, scenario=odd)) for name, trace in RUN.items()
    }
    found = judged(traces)
    assert (found.verdict, found.inferred_total) == ("conforms", 0)
    assert features_of(found, [source_of(trace, "x") for trace in traces.values()]).receivers == 1


def test_traces_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    paths = [Path(path) for path in written(RUN, tmp_path)]
    twice = tmp_path / "copy.jsonl"
    twice.write_bytes(paths[0].read_bytes())
    world = tmp_path / "world.jsonl"
    header = msgspec.structs.replace(RUN[RECEIVER].header, side="", rank=-1)
    world.write_text(dump_line(header) + dump_line(TraceEnding()))
    for some, says in (
        ([], "no trace was given"), ([paths[0], paths[0]], "given twice"), ([paths[0], twice], "of the same process"),
        ([paths[0], world], "does not say whose it is"), ([tmp_path / "none"], "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(LocalError, match=says):
            conform(some)
    assert (conform([world]).verdict, conform([world]).exit_code) == ("unknown", 4)  # there is nothing in it


def test_the_benchmark_reads_what_it_writes() -> None:
    [(_, [figure])] = bench_conform.measure_all(quick=True).items()
    assert figure.value > 0 and figure.target is None and Wrote is not None
