"""The ranking argument: proved of the protocol, broken by each version that goes on or stands still for ever, and the
measure falls in real runs of the bounded model too."""

from __future__ import annotations

from random import Random

import pytest

from fsm.kernel import INT
from sim.model.form import Fields, apply, holds
from sim.model.live import WEAK
from sim.model.protocol import Symbolic, symbolic
from sim.model.protocol_bounded import Bounds, Layout, bounded
from sim.model.protocol_live import FAIRNESS
from sim.model.protocol_parts import Step
from sim.model.variants import MODEL_VARIANTS
from sim.prove import ranking
from sim.prove.conditions import FAILED, PROVED, Condition, Prover
from sim.prove.ranking import CHANGES, CRASH, FALLS, NATURAL, REASON, Ranking, fields_of, measure
from sim.prove.standstill import LEMMAS, MOVES, REASONS, is_done, stands_still_for_a_reason
from tests.sim.cli_kit import resumark

pytest.importorskip("z3")


def proof(variant: str = "watermark") -> Ranking:
    return Ranking(Prover(symbolic(MODEL_VARIANTS[variant].rules()), lambda: 0.0))


def in_ints(model: Symbolic, state: dict[str, int]) -> Step:
    return Step(INT, Fields(state, model.model.name), model.rules)


def test_the_protocol_neither_goes_on_for_ever_nor_stands_still_without_a_reason() -> None:
    argument = proof()
    conditions = list(argument.prove())
    assert {condition.result for condition in conditions} == {PROVED}
    titles = [condition.title for condition in conditions]
    assert set(titles) == {NATURAL, FALLS, CHANGES, REASON, *(name for name, _ in LEMMAS)}
    asked = [action for action in argument.symbolic.model.actions if not action.name.endswith(CRASH)]
    assert titles.count(FALLS) + argument.untouched == len(asked)
    assert argument.untouched == sum(not action.name.startswith("a: ") for action in asked)
    assert titles.count(CHANGES) == len(MOVES)


def test_it_says_something() -> None:
    """The hypothesis can be satisfied, and each reason to wait may be the only one."""
    argument = proof()
    solver, step, place = argument.prover.assuming(), argument._step(), argument.place
    for _, lemma in LEMMAS:
        solver.add(argument._raw(lemma(step, place)))
    z3 = argument.prover.ops.z3
    moves = [argument._raw(move.enabled(argument._step(), place)) for move in MOVES]
    waits = {name: argument._raw(reason(step, place)) for name, reason in REASONS}
    still = z3.Not(z3.Or([*moves, argument._raw(is_done(step, place))]))
    for name, formula in waits.items():
        others = [other for key, other in waits.items() if key != name]
        assert str(solver.check(still, formula, z3.Not(z3.Or(others)))) == "sat", name


GOES_ON = {
    "none": "a: tick: grant",
    "no-grant-seq": "a: receive GRANT",
    "late-status": "a: receive a late STATUS",
}
STANDS_STILL = ("flag", "sent-cached", "all-or-nothing", "silent-unknown-room")


@pytest.mark.parametrize("variant", list(GOES_ON))
def test_a_version_that_goes_on_for_ever_does_not_lower_the_measure(variant: str) -> None:
    argument = proof(variant)
    (failed,) = [condition for condition in argument.falls() if condition.result == FAILED]
    assert (failed.title, failed.action) == (FALLS, GOES_ON[variant])
    assert failed.before is not None  # and plain numbers agree
    model = argument.symbolic
    action = model.model.action(failed.action)
    assert holds(model.model, action, failed.before)
    update = action.update(INT, Fields(failed.before, model.model.name))
    after = {**failed.before, **{name: int(value) for name, value in update.items()}}
    assert any(after[name] != failed.before[name] for name in fields_of(argument.place))
    assert measure(in_ints(model, after), argument.place) >= measure(in_ints(model, failed.before), argument.place)


@pytest.mark.parametrize("variant", STANDS_STILL)
def test_a_version_that_stands_still_has_no_reason(variant: str) -> None:
    argument = proof(variant)
    failed = [condition for condition in argument.standstill() if condition.result == FAILED]
    assert [condition.title for condition in failed] == [REASON]
    state = failed[0].before
    assert state is not None and not stands_still_for_a_reason(in_ints(argument.symbolic, state), argument.place)


def test_a_measure_that_does_not_fall_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what is parked in it, taking a grant lowers it and executing it raises it."""
    receiver = ranking._receiver
    monkeypatch.setattr(ranking, "_receiver", lambda step, room: receiver(step, room) - 4 * room.parked)
    failed: list[Condition] = [condition for condition in proof().falls() if condition.result == FAILED]
    assert [condition.action for condition in failed] == ["a: execute"]


def test_every_step_that_ends_a_standstill_is_assumed_to_be_fair() -> None:
    for move in MOVES:
        assert FAIRNESS[move.name][0] == WEAK, move.name


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(rooms=2, size=2, blocks=1, faults=False, aborts=1, crashes=1),
        Bounds(size=3, blocks=2, block_tokens=2, early_tokens=2, late=True, leases=True, faults=False, aborts=1),
    ],
    ids=["two requests", "late bytes"],
)
def test_the_measure_falls_in_runs_of_the_bounded_model(bounds: Bounds) -> None:
    model, places = bounded(bounds), Layout(bounds).places
    rules, fell = MODEL_VARIANTS["watermark"].rules(), 0
    for seed in range(4):
        random, state = Random(seed), model.start_states()[seed % bounds.size]
        for _ in range(40):
            ways = [(a, apply(model, a, state)) for a in model.actions if holds(model, a, state)]
            ways = [way for way in ways if way[1] != state]
            ways = [way for way in ways if way[0].fair or random.random() < 0.1] or ways
            if not ways:
                break
            action, after = random.choice(ways)
            for place in places:
                changed = any(after[name] != state[name] for name in fields_of(place) if name in state)
                if changed and not action.name.endswith(CRASH):
                    old, new = (measure(Step(INT, Fields(at, model.name), rules), place) for at in (state, after))
                    assert new < old, action.name
                    fell += 1
            state = after
    assert fell > 60


def test_the_command_proves_the_argument_too() -> None:
    done = resumark("prove", "--variant", "watermark-five")
    assert done.code == 0
    assert "97 conditions of the ranking argument proved, in" in done.out
    done = resumark("prove", "--variant", "no-grant-seq")
    assert done.code == 1
    assert "failed: progress a: the measure falls (a: receive GRANT)" in done.out
    assert "95 conditions of the ranking argument proved, 2 not" in done.out
