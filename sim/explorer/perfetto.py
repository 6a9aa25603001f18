"""A page's runs as a trace for the Perfetto viewer (https://ui.perfetto.dev) and ``chrome://tracing``.

Both read the Chrome trace event format: JSON, one object for each event. What stands where:

- a process of the viewer is a lane (``sender 0``, ``receiver 1``), and a thread of it is a room; at a sender, a room
  and the receiver rank that is served. A slice is a lifecycle state; its end is where the next state begins, and a
  terminal state is a point;
- within it, a short slice for each message or write that leaves or arrives, and an arrow from the one to the other.
  Arrows exist in pairs only: what never arrives has none, what is lost has one to the process ``network``;
- counters of a receiver: the tokens of each room (granted, landed, watermark, delivered), and blocks by state;
- the process ``run`` has the steps in words, and the marks, with the text of the property.

A second run is a second group of processes, beside the first.

Steps of the simulator have no duration, so one takes a millisecond; what real workers saw stands at its real time. A
viewer needs times that grow: a step that is told no later than the one before it stands a microsecond after it.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple

import msgspec

from fsm.states import BlockState, State
from sim.explorer.page import Arrow, Lifecycle, Page, Run, Step

STEP_US: Final = 1000.0
"""What a step of the simulator takes in the viewer."""

GROW_US: Final = 1.0
"""The least between two steps."""

SHOWN_SHARE: Final = 0.9
"""So much of the time to the next step is for what is shown within a step."""

GROUP: Final = 1000
"""Processes of the second run are numbered from here."""

RUN, NETWORK, FIRST_LANE = 1, 2, 3
STEPS, MARKS, FAULTS = 1, 2, 1
"""Processes that are no lanes, and their threads."""

THREADS: Final = 100_000
"""Threads of a process are numbered from its number times this: readers differ in whether a number of a thread may
come again in another process."""

_TERMINAL: Final = frozenset((str(State.SUCCESS), str(State.FAILED)))

Event = dict[str, Any]


class _Slot(NamedTuple):
    """Where something is shown within a step."""

    at_us: float
    dur_us: float

    @property
    def middle_us(self) -> float:
        return _us(self.at_us + self.dur_us / 2)


class _Left(NamedTuple):
    """A departure that may still arrive."""

    slot: _Slot
    pid: int
    tid: int


def write_perfetto(page: Page) -> bytes:
    """The runs of a page as one file."""
    written = [_Run(run, page.properties, GROUP * index, len(page.runs) > 1) for index, run in enumerate(page.runs)]
    head = [event for run in written for event in run.names]
    events = sorted((event for run in written for event in run.events), key=_order)
    about: dict[str, str] = {"title": page.title}
    for index, run in enumerate(page.runs, start=1):
        facts = "; ".join(f"{name}: {text}" for name, text in run.facts)
        about |= {
            f"run {index}": run.name, f"run {index} verdict": run.verdict, f"run {index} command": run.command,
            f"run {index} facts": facts, f"run {index} time": _axis(run),
        }  # fmt: skip
    return msgspec.json.encode({"traceEvents": head + events, "displayTimeUnit": "ms", "otherData": about})


def _axis(run: Run) -> str:
    if run.origin == "worker":
        return "real time, as the processes' clocks told it"
    return "one step of the simulator is shown as 1 ms; it is no duration"


def _order(event: Event) -> tuple[float, float]:
    """By time; of two slices that begin together the longer one first, for it holds the other."""
    return event["ts"], -event.get("dur", 0.0)


def _us(time_us: float) -> float:
    return round(time_us, 3)


class _Run:
    """The events of one run."""

    def __init__(self, run: Run, properties: dict[str, str], base: int, several: bool) -> None:
        self.run = run
        self.names: list[Event] = []
        self.events: list[Event] = []
        self._base = base
        self._prefix = f"{run.name}: " if several else ""
        self._lanes = {lane.name: base + FIRST_LANE + index for index, lane in enumerate(run.lanes)}
        self._ranks = {lane.name: lane.rank for lane in run.lanes if lane.side == "receiver"}
        self._receivers = {rank: self._lanes[name] for name, rank in self._ranks.items()}
        self._threads: dict[tuple[str, int, int], tuple[int, int]] = {}
        self._left: dict[tuple[str, str, str, str], deque[_Left]] = {}
        self._flows = 0
        self._state: dict[tuple[int, int], tuple[float, Lifecycle]] = {}
        self._blocks = {pool.rank: [str(BlockState.FREE)] * pool.blocks for pool in run.pools}
        self._times = _times(run)
        self._name_processes()
        for index, step in enumerate(run.steps):
            self._step(step, self._times[index], self._times[index + 1])
        for where, (began_us, state) in self._state.items():
            self._slice(where, _Slot(began_us, _us(self._times[-1] - began_us)), state.state, _about(state))
        self._marks(properties)

    # --- names ----------------------------------------------------------------------------------------

    def _name_processes(self) -> None:
        self._name_process(self._base + RUN, "run")
        self._name_thread(*self._where(RUN, STEPS), "steps")
        self._name_thread(*self._where(RUN, MARKS), "marks")
        for name, pid in self._lanes.items():
            self._name_process(pid, name)
        self._name_process(self._base + NETWORK, "network")
        self._name_thread(*self._where(NETWORK, FAULTS), "faults")

    def _where(self, process: int, thread: int) -> tuple[int, int]:
        """The numbers of a thread of a process that is no lane."""
        pid = self._base + process
        return pid, pid * THREADS + thread

    def _name_process(self, pid: int, name: str) -> None:
        self._meta(pid, 0, "process_name", {"name": self._prefix + name})
        self._meta(pid, 0, "process_sort_index", {"sort_index": pid})

    def _name_thread(self, pid: int, tid: int, name: str) -> None:
        self._meta(pid, tid, "thread_name", {"name": name})
        self._meta(pid, tid, "thread_sort_index", {"sort_index": tid})

    def _meta(self, pid: int, tid: int, name: str, args: dict[str, Any]) -> None:
        self.names.append({"ph": "M", "ts": 0, "pid": pid, "tid": tid, "name": name, "args": args})

    def _thread(self, lane: str, room: int, rank: int) -> tuple[int, int]:
        """The thread of a room in a lane; ``rank``: the receiver rank that is concerned. Made when first asked for."""
        key = lane, room, -1 if lane in self._ranks else rank
        found = self._threads.get(key)
        if found is None:
            pid = self._lanes[lane]
            tid = pid * THREADS + 1 + sum(one[0] == pid for one in self._threads.values())
            found = self._threads[key] = pid, tid
            name = f"room {room}" if room >= 0 else "no room"
            self._name_thread(pid, tid, name if key[2] < 0 or len(self._ranks) < 2 else f"{name} for receiver {rank}")
        return found

    # --- kinds of events ------------------------------------------------------------------------------

    def _put(self, kind: str, where: tuple[int, int], at_us: float, name: str, **more: Any) -> None:
        self.events.append({"ph": kind, "ts": at_us, "pid": where[0], "tid": where[1], "name": name, **more})

    def _slice(self, where: tuple[int, int], slot: _Slot, name: str, args: dict[str, Any]) -> None:
        self._put("X", where, slot.at_us, name, dur=slot.dur_us, args=args)

    def _point(self, where: tuple[int, int], at_us: float, name: str, scope: str, args: dict[str, Any]) -> None:
        self._put("i", where, at_us, name, s=scope, args=args)

    def _flow(self, what: str, name: str, left: _Left, slot: _Slot, where: tuple[int, int]) -> None:
        """An arrow from the middle of one slice to the middle of another."""
        self._flows += 1
        number = self._base * 1_000_000 + self._flows
        self._put("s", (left.pid, left.tid), left.slot.middle_us, name, cat=what, id=number)
        self._put("f", where, slot.middle_us, name, cat=what, id=number, bp="e")

    # --- a step ---------------------------------------------------------------------------------------

    def _step(self, step: Step, at_us: float, next_us: float) -> None:
        width_us = min(STEP_US, next_us - at_us) * SHOWN_SHARE
        steps = self._where(RUN, STEPS)
        args = {"step": step.number, "action": step.action, "fault": step.fault}
        args |= {f"{said.lane}{f', room {said.room}' if said.room >= 0 else ''}": said.text for said in step.said}
        flags = "".join(f" ({word})" for word in ("skipped", "extra") if getattr(step, word))
        name = (step.text or step.action or f"step {step.number}") + flags
        self._slice(steps, _Slot(at_us, _us(width_us)), name, args)
        for lifecycle in step.lifecycles:
            self._enter(lifecycle, at_us)
        each_us = width_us / max(1, len(step.arrows))
        for index, arrow in enumerate(step.arrows):
            self._arrow(arrow, _Slot(_us(at_us + index * each_us), _us(each_us * SHOWN_SHARE)))
        for touch in step.touches:
            if (touch.wrong or touch.early) and touch.rank in self._receivers:
                lane = next(name for name, rank in self._ranks.items() if rank == touch.rank)
                verb = "written" if touch.what == "write" else "read"
                text = touch.wrong or "what was read had not been written"
                self._point(
                    self._thread(lane, touch.room, touch.rank), at_us, f"block {touch.block} {verb}: wrong", "t",
                    {"wrong": text, "start": touch.start, "tokens": touch.count},
                )  # fmt: skip
        self._count(step, at_us)

    def _enter(self, lifecycle: Lifecycle, at_us: float) -> None:
        """A lifecycle gets into a state: the slice of the one before ends here."""
        where = self._thread(lifecycle.lane, lifecycle.room, lifecycle.rank)
        before = self._state.pop(where, None)
        if before is not None:
            began_us, state = before
            self._slice(where, _Slot(began_us, _us(at_us - began_us)), state.state, _about(state))
        if lifecycle.state in _TERMINAL:
            self._point(where, at_us, lifecycle.state, "t", _about(lifecycle))
        else:
            self._state[where] = at_us, lifecycle

    def _arrow(self, arrow: Arrow, slot: _Slot) -> None:
        """One end of something on its way."""
        network = self._where(NETWORK, FAULTS)
        key = arrow.what, arrow.source, arrow.target, arrow.text
        rank = self._ranks.get(arrow.source, self._ranks.get(arrow.target, -1))
        name = arrow.label if arrow.what == "message" else f"bytes {arrow.label}"
        args = {"what": arrow.text}
        if arrow.end in ("leave", "arrive"):
            lane = arrow.source if arrow.end == "leave" else arrow.target
            where = self._thread(lane, arrow.room, rank)
            self._slice(where, slot, f"{'send' if arrow.end == 'leave' else 'take'} {name}", args)
        else:
            where = network
            self._slice(where, slot, f"{arrow.end} {name}", args)
        if arrow.end in ("leave", "copy"):
            self._left.setdefault(key, deque()).append(_Left(slot, *where))
        elif arrow.end in ("arrive", "lose") and self._left.get(key):
            self._flow(arrow.what, name, self._left[key].popleft(), slot, where)

    def _count(self, step: Step, at_us: float) -> None:
        """Counters, where they change."""
        for told in step.progress:
            counts = {name: getattr(told, name) for name in ("granted", "landed", "watermark", "delivered")}
            if told.rank in self._receivers:
                self._put("C", (self._receivers[told.rank], 0), at_us, f"tokens of room {told.room}", args=counts)
        changed: dict[int, None] = {}
        for block in step.blocks:
            pool = self._blocks.setdefault(block.rank, [])
            pool += [str(BlockState.FREE)] * (block.block + 1 - len(pool))
            pool[block.block] = block.state
            changed[block.rank] = None
        for rank in changed if step.number else self._blocks:
            if rank in self._receivers:
                by_state = {str(state): self._blocks[rank].count(str(state)) for state in BlockState}
                self._put("C", (self._receivers[rank], 0), at_us, "blocks", args=by_state)

    # --- the whole ------------------------------------------------------------------------------------

    def _marks(self, properties: dict[str, str]) -> None:
        at = {step.number: self._times[index] for index, step in enumerate(self.run.steps)}
        for mark in self.run.marks:
            name = f"{mark.kind} {mark.property}".strip()
            args: dict[str, Any] = {"text": mark.text}
            if mark.property:
                args["property"] = properties.get(mark.property, mark.property)
            if mark.room >= 0:
                args["room"] = mark.room
            scope = "p" if mark.kind == "resume" else "g"
            self._point(self._where(RUN, MARKS), at.get(mark.step, self._times[-1]), name, scope, args)


def _about(lifecycle: Lifecycle) -> dict[str, Any]:
    """Where a state came from."""
    told = {"by": lifecycle.event, "from": lifecycle.source, "reason": lifecycle.reason}
    return {name: text for name, text in told.items() if text}


def _times(run: Run) -> list[float]:
    """When each step is shown, in microseconds, and the end: growing, and from 0 up."""
    if run.origin != "worker":
        return [index * STEP_US for index in range(len(run.steps) + 1)]
    first_s = min((step.time_s for step in run.steps), default=0.0)
    times: list[float] = []
    for step in run.steps:
        told_us = _us((step.time_s - first_s) * 1e6)
        times.append(max(told_us, _us(times[-1] + GROW_US)) if times else told_us)
    return [*times, _us((times[-1] if times else 0.0) + STEP_US)]


__all__ = ["write_perfetto"]
