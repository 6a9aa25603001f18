"""What real workers saw, as a page's run: lanes, blocks and rooms concluded from events, causes before effects, and
marks where the protocol could not do what was seen. The traces are a simulated run, as its processes would tell it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fsm.errors import LocalError
from fsm.events import (
    AnyEvent,
    Delivered,
    Executed,
    Finished,
    Granted,
    Note,
    Progressed,
    Received,
    Sent,
    StateChanged,
    Wrote,
)
from fsm.messages import Epoch
from fsm.trace import TRACE_VERSION, WORKER, Seen, Trace, TraceEnding, TraceHeader
from sim import actions, zoo
from sim.choices import Replayed, Seeded
from sim.engines.replay import scenario_of, world_of
from sim.engines.simulate import run_once
from sim.explorer.merged import CONFORMS
from sim.explorer.page import Mark, Run
from sim.explorer.seen import STEPS_MAX, run_of_seen
from sim.trace_file import write_trace
from tests.explorer.kit import added_up

Events = dict[str, list[tuple[float, AnyEvent]]]
"""What each side saw, and when, in seconds."""

TOLD = (Sent, Received, StateChanged, Finished, Granted, Wrote, Progressed, Delivered, Executed)


@cache
def simulated() -> Trace:
    """Two requests of three grants each, without faults."""
    trace = run_once(zoo.default_scenario(), Seeded(1), record=True, seed=1).trace
    assert trace is not None
    return trace


def told() -> Events:
    """The same by process: a step takes a tenth of a second."""
    trace = simulated()
    world = world_of(trace.header, scenario_of(trace.header), notes=True)
    events: Events = {"receiver": [], "sender": []}

    def take(at_s: float) -> None:
        for event in world.events:
            if isinstance(event, TOLD):
                side = getattr(event, "side", "sender" if isinstance(event, Executed) else "receiver")
                events[side].append((at_s, event))

    take(0.0)
    for number, step in enumerate(trace.steps, start=1):
        actions.apply(world, step.action, Replayed(step.picks))
        take(number / 10)
    return events


Write = Callable[..., list[Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes what processes saw, and says where. ``late_s``: by how much the clock of a sender is wrong."""

    def traces(events: Events, *sides: str, late_s: float = 0.0, dropped: int = 0) -> list[Path]:
        paths = []
        config = {"pool": {"blocks": 3}, "layout": {"block_tokens": 2}, "ranks": {"receivers": 1, "senders": 1}}
        for side in sides or ("receiver", "sender"):
            header = TraceHeader(
                TRACE_VERSION, WORKER, {"config": config}, side=side, rank=0, boot_id=1, dropped=dropped,
                started_unix_s=100.0 + (late_s if side == "sender" else 0.0),
            )  # fmt: skip
            paths.append(tmp_path / f"{side}-0.jsonl")
            seen = tuple([Seen(at_s, event) for at_s, event in events[side]])
            write_trace(Trace(header, (), TraceEnding(), seen), paths[-1])
        return paths

    return traces


def marks_of(run: Run, kind: str) -> list[Mark]:
    return [mark for mark in run.marks if mark.kind == kind]


def changed(events: Events, kind: type[Any], place: int, **values: Any) -> tuple[Events, int]:
    """The events with one of a receiver's changed, and its number among that process's events."""
    found = [number for number, (_, event) in enumerate(events["receiver"]) if type(event) is kind]
    number = found[place]
    at_s, event = events["receiver"][number]
    events["receiver"][number] = at_s, msgspec.structs.replace(event, **values)
    return events, number + 1


@pytest.mark.parametrize("late_s", [0.0, -30.0, 30.0])
def test_what_left_is_told_before_it_arrives_whatever_the_clocks_say(write: Write, late_s: float) -> None:
    events = told()
    run = run_of_seen(write(events, late_s=late_s))
    assert (run.origin, run.verdict, len(run.steps) - 1) == ("worker", "holds", sum(map(len, events.values())))
    assert [lane.name for lane in run.lanes] == ["sender 0", "receiver 0"]
    shown = added_up(run.steps)
    assert not +shown.open
    assert [step.time_s for step in run.steps] == sorted(step.time_s for step in run.steps)
    assert {(request.room, request.tokens) for request in run.requests} == {(1, 5), (2, 5)}
    for room in (1, 2):
        progress = shown.progress[0, room]
        assert (progress.granted >= 5, progress.landed, progress.watermark, progress.delivered) == (True, 5, 5, 5)
        assert shown.lifecycles["receiver 0", 0, room].state == shown.lifecycles["sender 0", 0, room].state == "Success"


def test_blocks_are_concluded_from_grants_writes_and_copies(write: Write) -> None:
    events = told()
    run = run_of_seen(write(events))
    assert [(pool.rank, pool.blocks, pool.block_tokens) for pool in run.pools] == [(0, 3, 2)]
    first = next(event for _, event in events["receiver"] if isinstance(event, Granted))
    block = first.blocks[0].block
    states = [
        (change.state, change.room, change.seq, change.start, change.holds)
        for step in run.steps[1:]
        for change in step.blocks
        if change.block == block
    ]
    room, start = first.room, first.start
    assert states[:3] == [
        ("Granted", room, 0, start, ""), ("Landed", room, 0, start, f"[0,2) of room {room}"), ("Free", -1, -1, -1, ""),
    ]  # fmt: skip
    touches = [touch.what for step in run.steps for touch in step.touches if touch.block == block][:2]
    assert touches == ["write", "read"]


def test_what_the_protocol_cannot_do_is_marked(write: Write) -> None:
    """A copy with the wrong content is I2's; a watermark that runs ahead of the bytes is I5's."""
    wrong, _ = changed(told(), Delivered, 0, wrong="where token 0 should be there was something else")
    run = run_of_seen(write(wrong, "receiver"))
    assert run.verdict == "violated" and "I2" in [mark.property for mark in marks_of(run, "violation")]
    touches = [touch for step in run.steps for touch in step.touches if touch.wrong]
    assert [touch.what for touch in touches] == ["read"]
    ahead, number = changed(told(), Progressed, 0, tokens=5)
    run = run_of_seen(write(ahead, "receiver"))
    first = marks_of(run, "violation")[0]
    assert (first.step, first.property) == (number, "I5")


def test_an_event_that_no_property_is_about_is_refused_too(write: Write) -> None:
    """A message that was never sent: what a cause is, the other trace would have told."""
    events = told()
    number = next(i for i, (_, event) in enumerate(events["sender"]) if isinstance(event, Sent))
    del events["sender"][number]
    run = run_of_seen(write(events))
    first = marks_of(run, "violation")[0]
    assert run.verdict == "violated" and first.property in (CONFORMS, *("I1", "I2", "I5", "I6"))
    assert len(run.steps) - 1 == sum(map(len, events.values()))


def test_each_step_says_which_line_of_which_trace_tells_it(write: Write) -> None:
    """By the number that ``conform`` gives, so that one can look there; also behind what is refused."""
    events, number = changed(told(), Progressed, 0, tokens=5)
    paths = write(events)
    run = run_of_seen(paths)
    assert run.steps[0].seen == ""
    places = [step.seen.rpartition(":") for step in run.steps[1:]]
    for path in paths:
        lines = [int(line) for name, _, line in places if Path(name).name == path.name]
        texts = path.read_text(encoding="utf-8").splitlines()
        assert [n for n, text in enumerate(texts, start=1) if '"seen"' in text] == lines
    first = marks_of(run, "violation")[0]
    assert first.text.startswith("receiver 0: @5: ")
    assert run.steps[first.step].seen.endswith(f"receiver-0.jsonl:{number + 1}")


def test_a_process_that_takes_anothers_place_is_marked(write: Write, tmp_path: Path) -> None:
    """And the blocks of the one before are not its blocks: it has new memory."""
    events = told()
    number = next(i for i, (_, event) in enumerate(events["receiver"]) if isinstance(event, Granted))
    events["receiver"] = events["receiver"][: number + 1]
    paths = write(events, "receiver")
    register = next(event for _, event in events["receiver"] if isinstance(event, Sent))
    anew = msgspec.structs.replace(register, message=msgspec.structs.replace(register.message, epoch=Epoch(2, 1)))
    again = tmp_path / "receiver-0-1.jsonl"
    header = TraceHeader(TRACE_VERSION, WORKER, {}, side="receiver", rank=0, boot_id=2, started_unix_s=200.0)
    write_trace(Trace(header, (), TraceEnding(), (Seen(0.0, Note("remark", "back")), Seen(0.1, anew))), again)
    run = run_of_seen([again, *paths])
    (mark,) = marks_of(run, "fault")
    assert mark.step == len(run.steps) - 2 and run.steps[mark.step].text == "remark: back"
    assert "receiver 0 is a new process" in mark.text and "receiver-0-1.jsonl" in mark.text
    states = [move.state for step in run.steps for move in step.lifecycles if move.room == register.message.room]
    assert states[-1] == "Bootstrapping" != states[-2], "what the one before had come to is over"
    before = {block.block: block.state for step in run.steps[:-2] for block in step.blocks}
    assert "Granted" in before.values()
    blocks = {block.block: block for step in run.steps for block in step.blocks}.values()
    assert {(block.state, block.room, block.generation) for block in blocks} == {("Free", -1, 0)}


def test_what_no_trace_holds_is_told_as_inferred(write: Write) -> None:
    run = run_of_seen(write(told(), "receiver"))
    inferred = marks_of(run, "inferred")
    assert run.verdict == "holds" and inferred
    assert all("there is no trace of the sender" in mark.text for mark in inferred)
    assert {run.steps[mark.step].action for mark in inferred} <= {"received", "wrote"}


def test_of_a_long_trace_the_end_is_shown_as_it_stands(write: Write) -> None:
    """What is left out still counts: rooms and lifecycles are as all of the trace made them."""
    events = told()
    last_s = events["receiver"][-1][0]
    events["receiver"] += [(last_s, Note("remark", str(number))) for number in range(STEPS_MAX + 100)]
    events["receiver"].append((last_s, next(e for _, e in events["receiver"] if isinstance(e, Sent))))  # said again
    run = run_of_seen(write(events, "receiver"))
    assert len(run.steps) - 1 == STEPS_MAX
    count = len(events["receiver"])
    assert ("shown", f"events {count - STEPS_MAX + 1:,} to {count:,}") in run.facts
    shown = added_up(run.steps[:1])
    assert len(shown.blocks) == 3
    assert list(shown.progress) == [(0, 1)] and shown.progress[0, 1].landed == 5
    assert list(shown.lifecycles) == [("receiver 0", 0, 1)]
    assert shown.lifecycles["receiver 0", 0, 1].state == "Success"
    assert [request.room for request in run.requests] == [1]
    assert run.steps[-2].text == f"remark: {STEPS_MAX + 99}"


def test_what_is_no_workers_trace_is_refused(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "simulated.jsonl"
    write_trace(simulated(), path)
    with pytest.raises(LocalError, match=r"simulated\.jsonl: made by simulate, not by a worker"):
        run_of_seen([*write(told()), path])
    with pytest.raises(LocalError, match="nothing to show"):
        run_of_seen(write({"receiver": []}, "receiver"))
