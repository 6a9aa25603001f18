"""Runs for a page, made from traces of the simulator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fsm.events import Granted
from fsm.lifecycle import BLOCK_TABLE, RECEIVER_FIVE_STATE_TABLE, RECEIVER_TABLE, SENDER_TABLE
from fsm.table import REFUSE, Table
from fsm.trace import Trace
from sim.choices import Replayed
from sim.engines.no_return import NoReturn
from sim.engines.replay import scenario_of, world_of
from sim.explorer.fold import span_text
from sim.explorer.page import Machine, Mark, Move, Run, Step
from sim.explorer.record import Recorder, lanes_of, pools_of, requests_of
from sim.render import faults_text, variant_text, world_text
from sim.scenario import Scenario

Facts = Sequence[tuple[str, str]]
"""Labels, and what they stand for."""


def version_name(scenario: Scenario) -> str:
    """What a version is called: its detector, or its hazards."""
    variant = scenario.variant
    if not variant.hazards:
        return variant.detector
    hazards = "+".join(variant.hazards)
    return hazards if variant.detector == "watermark" else f"{variant.detector}+{hazards}"


def machine_of(table: Table, name: str) -> Machine:
    """A lifecycle's table as a diagram. Refused rows are not drawn: a diagram shows what can happen."""
    moves = [
        Move(str(state), row.event, row.guard, str(row.target))
        for state, rows in table.rows.items()
        for row in rows
        if row.target != REFUSE
    ]
    states, terminal = tuple(map(str, table.states)), tuple(map(str, table.terminal))
    return Machine(name, str(table.initial), states, terminal, tuple(moves))


FIVE_STATES = "receiver (five states)"
"""What the historical lifecycle of a receiver is called."""


def machine_name(table: Table) -> str:
    """What the receivers' lifecycle is called."""
    return FIVE_STATES if table is RECEIVER_FIVE_STATE_TABLE else "receiver"


def machines_of(runs: Sequence[Run]) -> tuple[Machine, ...]:
    """The lifecycles of a page."""
    known = [
        machine_of(RECEIVER_TABLE, "receiver"),
        machine_of(SENDER_TABLE, "sender"),
        machine_of(BLOCK_TABLE, "block"),
    ]
    if any(run.machine == FIVE_STATES for run in runs):
        known.append(machine_of(RECEIVER_FIVE_STATE_TABLE, FIVE_STATES))
    return tuple(known)


def scenario_facts(scenario: Scenario) -> list[tuple[str, str]]:
    """What was run."""
    return [("variant", variant_text(scenario)), ("world", world_text(scenario)),
            ("faults", faults_text(scenario, rate=False))]  # fmt: skip


def resume_marks(number: int, events: Iterable[object]) -> list[Mark]:
    """A mark for each resume that was granted."""
    return [
        Mark("resume", number, f"resume: grant {event.seq} {span_text(event.start, event.capacity)} "
             f"on rank {event.receiver_rank}", room=event.room)
        for event in events
        if isinstance(event, Granted) and event.seq > 0
    ]  # fmt: skip


def fault_mark(step: Step) -> list[Mark]:
    """A mark for a fault."""
    return [Mark("fault", step.number, step.text)] if step.fault else []


def no_return_mark(point: NoReturn | None) -> list[Mark]:
    """A mark where a run could go well for the last time."""
    return [] if point is None or point.step is None else [Mark("no-return", point.step, point.text)]


def run_of_trace(trace: Trace, *, command: str = "", facts: Facts = (), point: NoReturn | None = None) -> Run:
    """A trace that fits (see :func:`sim.engines.replay.replay`) as a run, what goes on for ever after it once round."""
    scenario = scenario_of(trace.header)
    world = world_of(trace.header, scenario, notes=True)
    recorder = Recorder(world)
    steps, marks = [recorder.first()], resume_marks(0, world.events)
    for number, step in enumerate((*trace.steps, *trace.ending.endless), start=1):
        steps.append(recorder.step(number, step.action, Replayed(step.picks)))
        marks += [*fault_mark(steps[-1]), *resume_marks(number, world.events)]
    broken, last = trace.ending.property, len(trace.steps)
    if broken:
        marks.append(Mark("violation", last, trace.ending.text, broken))
    if trace.ending.endless and trace.ending.turn:
        first = last + len(trace.ending.endless) - trace.ending.turn + 1
        marks.append(Mark("cycle", first, f"from here {trace.ending.turn} steps repeat for ever"))
    marks += no_return_mark(point)
    marks.sort(key=lambda mark: mark.step)
    told = [*scenario_facts(scenario), *facts]
    if trace.header.seed is not None:
        told.insert(0, ("seed", str(trace.header.seed)))
    return Run(
        version_name(scenario), trace.header.engine, "violated" if broken else "holds", command, tuple(told),
        lanes_of(world), pools_of(world), requests_of(world), tuple(steps), tuple(marks),
        machine_name(world.rules.table),
    )  # fmt: skip
