"""Another version beside a run: the same choices, step beside step, and as ``run_guided`` runs them."""

from __future__ import annotations

import pytest

from fsm.errors import LocalError
from fsm.trace import Trace
from sim import zoo
from sim.choices import Seeded
from sim.engines.check import check
from sim.engines.guided import guided_steps, run_guided
from sim.engines.replay import scenario_of
from sim.engines.simulate import run_once
from sim.explorer.page import Run
from sim.explorer.runs import run_of_trace
from sim.explorer.versus import run_versus
from tests.explorer.kit import added_up


def found(variant: str) -> Trace:
    return check(zoo.scenario_for(variant)).violations[0].trace


def beside(trace: Trace, version: str) -> tuple[Run, Run]:
    first = run_of_trace(trace)
    return first, run_versus(trace, first, version, version)


@pytest.mark.parametrize("variant", ["flag", "sent-accumulate", "free-without-quiescence", "max-progress", "none"])
def test_the_protocol_on_the_choices_of_a_mistake(variant: str) -> None:
    trace = found(variant)
    first, second = beside(trace, "watermark")
    told = run_guided(
        scenario_of(trace.header), guided_steps(trace.steps), "watermark",
        broken=trace.ending.property, arrive_any_time=True,
    )  # fmt: skip
    assert (second.origin, second.verdict) == ("guided", "holds") and not told.violations
    assert tuple(step.number for step in second.steps if step.skipped) == told.skipped
    assert len(second.steps) - 1 == told.steps + len(told.skipped)
    assert [step.number for step in second.steps] == list(range(len(second.steps)))
    assert {step.number for step in second.steps if step.extra} == set(range(len(first.steps), len(second.steps)))
    assert not any(step.skipped or step.extra for step in first.steps)
    for step in second.steps:
        changes = step.said or step.arrows or step.blocks or step.touches or step.progress or step.lifecycles
        assert not (step.skipped and changes)
    added_up(second.steps)


def test_the_same_version_takes_every_step_alike() -> None:
    trace = found("free-without-quiescence")
    first, second = beside(trace, "free-without-quiescence")
    assert second.steps == first.steps and second.verdict == "violated"
    violations = [[mark for mark in run.marks if mark.kind == "violation"] for run in (first, second)]
    assert violations[0] == violations[1]


def test_a_run_that_ends_before_the_first_one_is_filled_up() -> None:
    """Every step of the first run has its number in the second, be it that the second is over by then."""
    trace = run_once(zoo.default_scenario(), Seeded(1), record=True, seed=1).trace
    assert trace is not None
    first, second = beside(trace, "sent-accumulate")
    assert second.verdict == "violated" and len(second.steps) == len(first.steps)
    (broken,) = [mark for mark in second.marks if mark.kind == "violation"]
    later = second.steps[broken.step + 1 :]
    assert later and all(step.skipped and step.text.endswith("this run has ended") for step in later)


def test_both_lifecycles_of_a_receiver_are_named() -> None:
    first, second = beside(found("flag"), "watermark")
    assert (first.machine, second.machine) == ("receiver (five states)", "receiver")


def test_a_version_that_is_none_is_refused() -> None:
    trace = found("flag")
    with pytest.raises(LocalError, match="there is no version 'flags'"):
        run_versus(trace, run_of_trace(trace), "flags", "flags")
