"""Liveness of models: the protocol keeps L1 to L3 with finitely many faults, each version of the zoo that breaks L1 is
found with a real run that never ends, and the point of no return is where the last good end goes out of reach."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, reduce
from typing import Any

import pytest

from fsm import kernel
from fsm.errors import LocalError
from sim.model.form import Action, Field, Model, apply, holds
from sim.model.live import FINITE, FREE, STRONG, WEAK, Promise, Treatment, by_flag
from sim.model.protocol import ENTRIES, TICK
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.protocol_live import (
    DEADLINE,
    FAIRNESS,
    LANE_DEADLINE,
    ProtocolFairness,
    disturbed,
    good_end,
    live_model,
    promises,
)
from sim.model.protocol_rules import PROTOCOL_RULES
from sim.model.two_phase import ABORTED, COMMITTED, TM_ABORTED, two_phase
from sim.model.variants import MODEL_VARIANTS
from sim.vector.live import LiveGraph, Liveness, judge_model, no_return, point_of_no_return
from sim.vector.result import ModelStep
from sim.vector.search import Search, explore


@cache
def judged(bounds: Bounds, variant: str = "watermark", states_max: int | None = None) -> dict[str, Liveness]:
    rules, fairness = MODEL_VARIANTS[variant].rules(), ProtocolFairness(bounds)
    answers = judge_model(live_model(bounds, rules), promises(bounds, rules), fairness, states_max=states_max)
    return {answer.promise.name: answer for answer in answers}


def is_real(model: Model, answer: Liveness) -> None:
    """The steps are steps of the model, the cycle comes back to the very state, and is outside of the goal."""
    assert answer.start in model.start_states()
    state = answer.start
    for step in (*answer.stem, *answer.cycle):
        action = model.action(step.action)
        assert holds(model, action, state)
        state = apply(model, action, state)
        assert state == step.state
    end = answer.stem[-1].state if answer.stem else answer.start
    assert state == end
    goal = Action("goal", answer.promise.goal, lambda ops, view: {})
    assert not any(holds(model, goal, at) for at in (end, *(step.state for step in answer.cycle)))


# --- two-phase commit -------------------------------------------------------------------------------------


def ended(managers: int) -> Promise:
    def goal(ops: Any, view: Any) -> Any:
        return reduce(lambda a, b: a & b, [view[f"rm{i}"] >= COMMITTED for i in range(managers)])

    return Promise("ends", "", "every manager commits or aborts", goal)


def nobody_aborts(ops: Any, view: Any) -> Any:
    return (view.rm0 != ABORTED) & (view.rm1 != ABORTED)


@pytest.mark.parametrize("managers", [1, 3, 5])
def test_with_fair_managers_every_run_of_two_phase_commit_ends(managers: int) -> None:
    (answer,) = judge_model(two_phase(managers), [ended(managers)])
    assert (answer.verdict, answer.coverage, answer.stem) == ("holds", "exhausted", ())


def test_a_manager_that_need_not_hear_of_an_abort_may_wait_for_ever() -> None:
    def deaf(action: Action) -> Treatment:
        return Treatment(action.name, FREE) if action.name == "RMRcvAbortMsg(1)" else by_flag(action)

    model = two_phase(2)
    (answer,) = judge_model(model, [ended(2)], deaf)
    is_real(model, answer)
    assert answer.verdict == "violated" and answer.cycle == ()
    assert answer.stem[-1].state["rm0"] == ABORTED and answer.stem[-1].state["rm1"] < COMMITTED
    assert answer.lines()[-1].strip() == (
        "nothing but repeated messages and polls from here on: the state does not change"
    )
    assert any(line.startswith("happens or not") and "RMRcvAbortMsg(1)" in line for line in answer.fairness)


def test_a_group_that_symmetry_tears_apart_is_refused() -> None:
    with pytest.raises(LocalError, match=r"fairness group '.*\(0\)' is not the same when the records \(rm0, ...\)"):
        judge_model(two_phase(3, symmetric=True), [ended(3)])

    def together(action: Action) -> Treatment:
        return Treatment(action.name.partition("(")[0], WEAK if action.fair else FREE)

    (answer,) = judge_model(two_phase(3, symmetric=True), [ended(3)], together)
    assert answer.verdict == "holds"


# --- small models -----------------------------------------------------------------------------------------


def ring(*, records: bool = False) -> Model:
    """A token goes round two places and back. ``records``: the places may be exchanged."""
    fields = (Field("a", 0, 1), Field("b", 0, 1), Field("out", 0, 1))
    actions = (
        Action("move to b", lambda ops, v: v.a == 1, lambda ops, v: {"a": 0, "b": 1}),
        Action("move to a", lambda ops, v: v.b == 1, lambda ops, v: {"a": 1, "b": 0}),
        Action("start", lambda ops, v: v.a + v.b + v.out == 0, lambda ops, v: {"a": 1}),
        Action("start at b", lambda ops, v: v.a + v.b + v.out == 0, lambda ops, v: {"b": 1}),
        Action("leave a", lambda ops, v: v.a == 1, lambda ops, v: {"a": 0, "out": 1}),
        Action("leave b", lambda ops, v: v.b == 1, lambda ops, v: {"b": 0, "out": 1}),
        Action("nothing", lambda ops, v: v.out == 0, lambda ops, v: {"out": 0}),
    )
    return Model("ring", fields, ({},), actions, symmetry=((("a",), ("b",)),) if records else ())


OUT = Promise("out", "L1", "the token leaves", lambda ops, view: view.out == 1)


def leaves(kind: str, *apart: str) -> Any:
    """Fairness of the ring: one group for each name in ``apart``, moves weakly fair, leaving as ``kind`` says."""

    def treat(action: Action) -> Treatment:
        if action.name.startswith("leave"):
            return Treatment(action.name if apart else "leave", kind)
        return Treatment(action.name.partition(" ")[0], WEAK)

    return treat


def test_a_choice_of_one_action_is_one_group_and_choices_apart_are_not() -> None:
    assert judge_model(ring(), [OUT], leaves(WEAK))[0].verdict == "holds"
    (answer,) = judge_model(ring(), [OUT], leaves(WEAK, "a", "b"))
    is_real(ring(), answer)
    assert [step.action for step in answer.cycle] == ["move to b", "move to a"] and answer.component == 2
    assert answer.lines()[-1].strip() == "steps 2 to 3 repeat for ever: the state after step 3 is that after step 1"
    assert judge_model(ring(), [OUT], leaves(STRONG, "a", "b"))[0].verdict == "holds"
    assert judge_model(ring(), [OUT], leaves(FREE))[0].verdict == "violated"


def test_a_cycle_of_states_that_stand_for_others_is_walked_until_the_very_state_comes_again() -> None:
    """With the places exchanged moving changes nothing but names; three records that move on take three turns."""
    model = ring(records=True)
    (answer,) = judge_model(model, [OUT], leaves(FINITE))
    is_real(model, answer)
    assert answer.states == 3  # nobody, somewhere, out

    turn = Action(
        "turn", lambda ops, v: v.on == 1, lambda ops, v: {"a": v.b, "b": v.c, "c": v.a, "side": 1 - v.side}
    )  # fmt: skip
    first = Action("start", lambda ops, v: v.on == 0, lambda ops, v: {"on": 1, "a": 1, "b": 2})
    fields = (*(Field(name, 0, 2) for name in "abc"), Field("on", 0, 1), Field("side", 0, 1))
    turned = Model("turning", fields, ({},), (turn, first), symmetry=((("a",), ("b",), ("c",)),))
    (answer,) = judge_model(turned, [Promise("off", "", "", lambda ops, v: v.on > 1)])
    is_real(turned, answer)
    assert (answer.component, len(answer.cycle)) == (2, 6)


def test_a_step_that_counts_only_in_some_states_is_no_way_out_in_others() -> None:
    def late(action: Action) -> Treatment:
        if action.name.startswith("leave"):
            return Treatment("leave", WEAK, lambda ops, view: view.b == 1)
        return by_flag(action)

    assert judge_model(ring(), [OUT], leaves(WEAK))[0].verdict == "holds"
    (answer,) = judge_model(ring(), [OUT], late)
    assert answer.verdict == "violated" and {step.action for step in answer.cycle} == {"move to a", "move to b"}


def test_what_is_not_said_right_is_refused() -> None:
    with pytest.raises(LocalError, match="'often' is none of weak, strong, free, finite"):
        judge_model(ring(), [OUT], lambda action: Treatment(action.name, "often"))
    with pytest.raises(LocalError, match="fairness group 'all' is weak and free; give all actions of a group one kind"):
        judge_model(ring(), [OUT], lambda action: Treatment("all", FREE if action.name == "start" else WEAK))


# --- bounds -----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_bounded_and_says_why() -> None:
    few = judged(Bounds(size=2, faults=False, aborts=1), states_max=20)["L1"]
    assert (few.verdict, few.coverage) == ("bounded", "bounded") and few.bound.startswith("states_max; ")
    (small,) = judge_model(two_phase(5), [ended(5)], memory_bytes=1 << 20)
    assert (small.verdict, small.coverage, small.stem) == ("bounded", "bounded", ())
    assert small.bound.startswith("memory")
    assert judge_model(two_phase(5), [ended(5)], memory_bytes=64 << 20)[0].verdict == "holds"


def test_a_search_that_did_not_end_is_not_judged() -> None:
    search = Search(two_phase(4))
    result = search.run(states_max=10)
    with pytest.raises(
        LocalError, match=r"the search ended bounded \(states_max; .*judge safety first, or raise the b"
    ):
        LiveGraph(search, result)


# --- the protocol -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(size=3, blocks=2, grant_blocks_max=1, faults=False, aborts=1),
        Bounds(size=2, faults=False, crashes=1, aborts=1, late=True, leases=True),
        Bounds(size=2, faults=False, crashes=1, aborts=1, resubmits=False),
        Bounds(rooms=2, size=2, faults=False),
        Bounds(ranks=2, size=2, faults=False),
        Bounds(size=3, block_tokens=2, blocks=2, early_tokens=1, faults=False, aborts=1),
    ],
    ids=[
        "an abort",
        "a crash, late bytes",
        "a process that knows nothing",
        "two requests",
        "two ranks",
        "early grants",
    ],
)
def test_the_protocol_keeps_what_it_promises(bounds: Bounds) -> None:
    for answer in judged(bounds).values():
        assert (answer.verdict, answer.coverage) == ("holds", "exhausted"), answer.lines()


BROKEN: dict[str, tuple[Bounds, str]] = {
    "flag": (Bounds(size=3, faults=False), "L1"),
    "indices-after": (Bounds(size=3, faults=False), "L1"),
    "sent-accumulate": (Bounds(size=2, faults=False), "L1"),
    "sent-cached": (Bounds(size=3, faults=False), "L1"),
    "alloc-before-free": (Bounds(size=2, faults=False), "L3: r0"),
    "all-or-nothing": (Bounds(size=2, faults=False), "L1"),
    "max-progress": (Bounds(ranks=2, size=2, faults=False), "L1"),
    "no-grant-seq": (Bounds(size=2, faults=False), "L1"),
    "late-status": (Bounds(size=1, faults=False), "L1"),
    "silent-unknown-room": (Bounds(size=1, faults=False, crashes=1, resubmits=False), "L1"),
}
"""Versions of the zoo that break a promise, in which size, and which of them."""


@pytest.mark.parametrize("variant", list(BROKEN))
def test_a_version_that_never_ends_is_found_with_a_real_run(variant: str) -> None:
    bounds, promise = BROKEN[variant]
    answer = judged(bounds, variant)[promise]
    assert (answer.verdict, answer.coverage) == ("violated", "exhausted")
    is_real(live_model(bounds, MODEL_VARIANTS[variant].rules()), answer)
    assert bool(answer.cycle) == (variant == "no-grant-seq")
    assert judged(bounds)[promise].verdict == "holds"  # it is the variant's doing


def test_what_never_leaves_quarantine_is_l2_and_not_l1() -> None:
    """A receiver to which no ABORT_ACK is a proof."""
    bounds = Bounds(size=1, faults=False, aborts=1)
    rules = replace(PROTOCOL_RULES, proof_counts=lambda boot, peer_boot: boot < 0)
    model = live_model(bounds, rules)
    first, second, *_ = judge_model(model, promises(bounds, rules), ProtocolFairness(bounds))
    assert (first.verdict, second.verdict) == ("holds", "violated")
    is_real(model, second)
    assert second.stem[-1].state["r0k0_held"] == 1


def test_an_undisturbed_run_that_fails_is_l1_though_it_ends() -> None:
    """A receiver that believes no STATUS."""
    bounds = Bounds(size=1, faults=False)
    rules = replace(PROTOCOL_RULES, status_exact=lambda ops, tokens, start, capacity, total: tokens < 0)
    model = live_model(bounds, rules)
    first, *_ = judge_model(model, promises(bounds, rules), ProtocolFairness(bounds))
    is_real(model, first)
    assert first.verdict == "violated" and first.stem[-1].state["r0k0_state"] == kernel.FAILED


def test_no_fault_abort_or_deadline_still_to_come_counts_as_a_way_out() -> None:
    """With faults to come the waiting request could be ended, and a deadline would end it after one."""
    for bounds in (Bounds(size=2, faults=False, aborts=1), Bounds(size=2, faults=False, crashes=1)):
        answer = judged(bounds, "all-or-nothing")["L1"]
        undisturbed = Action("undisturbed", disturbed(bounds), lambda ops, view: {})
        model = live_model(bounds, MODEL_VARIANTS["all-or-nothing"].rules())
        assert answer.verdict == "violated" and not holds(model, undisturbed, answer.stem[-1].state)


def test_after_a_fault_a_deadline_does_and_without_one_the_crash_is_not_survived() -> None:
    bounds = Bounds(size=2, faults=False, crashes=1)
    model = live_model(bounds)
    assert judge_model(model, promises(bounds), ProtocolFairness(bounds))[0].verdict == "holds"
    timeless = ProtocolFairness(bounds, ignored=(DEADLINE, LANE_DEADLINE))
    (answer, *_) = judge_model(model, promises(bounds), timeless)
    is_real(model, answer)
    assert "s0: the sender crashes" in [step.action for step in answer.stem]
    with pytest.raises(LocalError, match="there is no action 'a tick'; there are receive REGISTER, "):
        ProtocolFairness(bounds, ignored=("a tick",))


def test_something_is_assumed_of_every_action_and_said_why() -> None:
    kinds = {entry.name for entry in ENTRIES} | {entry.name for entry in TICK}
    assert set(FAIRNESS) - kinds == {LANE_DEADLINE} and kinds <= set(FAIRNESS)
    assert all(reason for _, reason in FAIRNESS.values())
    for bounds in (Bounds(rooms=2, ranks=2, blocks=2, faults=False, aborts=1, crashes=1, leases=True),):
        for action in live_model(bounds).actions:
            treatment = ProtocolFairness(bounds)(action)
            assert (treatment.kind == FINITE) <= (not action.fair), action.name
    with pytest.raises(LocalError, match="nothing is assumed of the action 'r0: dance'"):
        ProtocolFairness(bounds)(Action("r0: dance", lambda ops, view: True, lambda ops, view: {}))


def test_faults_without_end_are_refused() -> None:
    with pytest.raises(LocalError, match="faults=True: liveness is promised for finitely many faults"):
        live_model(Bounds())


def test_the_clauses_say_what_l3_says_of_a_step() -> None:
    """L3 is a safety property: a step that overtakes is a state in which a clause is broken."""
    bounds = Bounds(rooms=2, size=2, faults=False)
    result = explore(replace(bounded(bounds, MODEL_VARIANTS["admission-first"].rules()), symmetry=(), references=()))
    assert result.violation is not None and result.violation.clause.endswith("data first")
    assert judged(bounds, "admission-first")["L3: r0"].verdict == "holds"  # it is served in the end


# --- the point of no return -------------------------------------------------------------------------------


def test_the_point_of_no_return_is_where_the_last_good_end_goes_out_of_reach() -> None:
    """Who aborted cannot commit: of a run in which a manager aborts that is the step."""
    search = Search(replace(two_phase(2), clauses=()))
    live = LiveGraph(search, search.run())
    good = Promise("all commit", "", "", lambda ops, v: (v.rm0 == COMMITTED) & (v.rm1 == COMMITTED)).goal
    start = live.model.start_states()[0]

    def run(*names: str) -> list[ModelStep]:
        state, steps = start, []
        for name in names:
            state = apply(live.model, live.model.action(name), state)
            steps.append(ModelStep(name, state))
        return steps

    assert no_return(live, start, run("RMPrepare(0)", "RMPrepare(1)"), good) is None
    assert no_return(live, start, run("RMPrepare(0)", "RMChooseToAbort(1)", "TMRcvPrepared(0)"), good) == 2
    assert no_return(live, start, run("TMAbort"), good) == 1
    assert no_return(live, start, [], lambda ops, v: v.tm > TM_ABORTED) == 0
    both = Promise("both", "", "", lambda ops, v: v.said_prepared0 + v.said_prepared1 == 2).goal
    assert no_return(live, start, run("RMPrepare(0)"), good, both) == 0  # every way to commit passes there
    wrong = [ModelStep("?", {**start, "tm": TM_ABORTED})]
    with pytest.raises(LocalError, match="step 1 of the run leads to a state that the graph does not have"):
        no_return(live, start, wrong, good)
    search.close()


def test_a_good_end_that_only_a_fault_leads_to_is_out_of_reach() -> None:
    model = ring()
    start = model.start_states()[0]
    for kind, step in ((WEAK, None), (FINITE, 0)):
        assert point_of_no_return(model, start, [], OUT.goal, leaves(kind)).step == step


def test_a_request_is_doomed_long_before_it_stands_still() -> None:
    """``flag``: nothing is lost before the first resume uses the flag up; the run goes on for a while after that."""
    bounds = Bounds(size=3, faults=False)
    rules = MODEL_VARIANTS["flag"].rules()
    answer = judged(bounds, "flag")["L1"]
    assert answer.start is not None
    found = point_of_no_return(
        live_model(bounds, rules), answer.start, answer.stem, good_end(bounds, rules), ProtocolFairness(bounds)
    )
    assert found.bound == "" and found.step is not None and 0 <= found.step < len(answer.stem)
    kept = point_of_no_return(live_model(bounds), answer.start, answer.stem[:3], good_end(bounds))
    assert (kept.step, kept.bound) == (None, "")


def test_a_broken_clause_is_no_part_of_a_good_end() -> None:
    bounds = Bounds(size=2, faults=False, aborts=1)
    rules = MODEL_VARIANTS["free-without-quiescence"].rules()
    model = live_model(bounds, rules)
    violation = explore(replace(model, symmetry=())).violation
    assert violation is not None
    found = point_of_no_return(
        model, violation.start, violation.steps, good_end(bounds, rules), ProtocolFairness(bounds)
    )
    assert found.bound == "" and found.step is not None and 0 < found.step <= len(violation.steps)
    short = point_of_no_return(model, violation.start, violation.steps, good_end(bounds, rules), states_max=5)
    assert short.step is None and short.bound.startswith("states_max")
