"""Liveness on graphs: what counts as a fair run, held against a search that tries every set of edges; and what `check`
shows of a run that never ends."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm.errors import LocalError
from fsm.trace import Trace, TraceEnding, dump_trace, parse_trace
from sim import actions, zoo
from sim.engines.check import check
from sim.engines.check_live import FAIR, CourseEdges, Judgement, group_of, in_words, lost
from sim.engines.liveness import Edges, Groups, Lasso, lasso, reaching, traps
from sim.engines.replay import replay

KINDS = ("weak", "strong", "free", "finite")


class Drawn(NamedTuple):
    """A graph as plain lists: edges as (source, target, group), the kind of each group, and the states of the goal."""

    size: int
    edges: list[tuple[int, int, int]]
    kinds: list[str]
    goal: list[int]

    def arrays(self) -> tuple[int, Edges, Groups, Any]:
        columns = list(zip(*self.edges, strict=True)) if self.edges else [(), (), ()]
        edges = Edges(np.array(columns[0], np.int32), np.array(columns[1], np.int32), np.array(columns[2], np.int16))
        numbers = {kind: tuple(n for n, of in enumerate(self.kinds) if of == kind) for kind in KINDS}
        groups = Groups(
            tuple(map(str, range(len(self.kinds)))), numbers["weak"], numbers["strong"], numbers["finite"]
        )  # fmt: skip
        goal = np.zeros(self.size, np.bool_)
        goal[self.goal] = True
        return self.size, edges, groups, goal

    def solve(self) -> Lasso | None:
        count, edges, groups, goal = self.arrays()
        return lasso(count, edges, groups, traps(count, edges, groups, goal), [0])


def violated(edges: list[tuple[int, int, int]], kinds: list[str], goal: list[int]) -> Lasso:
    count = max([0, *goal, *(max(edge[:2]) for edge in edges)]) + 1
    found = Drawn(count, edges, kinds, goal).solve()
    assert found is not None
    return found


def holds(edges: list[tuple[int, int, int]], kinds: list[str], goal: list[int]) -> bool:
    count = max([0, *goal, *(max(edge[:2]) for edge in edges)]) + 1
    return Drawn(count, edges, kinds, goal).solve() is None


# --- graphs with known answers ----------------------------------------------------------------------------


def test_a_state_that_nothing_changes_is_a_run_without_end() -> None:
    assert violated([(0, 1, 0)], ["weak"], [2]) == Lasso((0,), 1, (), 1)
    assert holds([(0, 1, 0)], ["weak"], [1])


def test_who_is_not_fair_may_stay() -> None:
    assert violated([(0, 1, 0)], ["free"], [1]) == Lasso((), 0, (), 1)
    assert violated([(0, 1, 0)], ["finite"], [1]) == Lasso((), 0, (), 1)


ROUND = [(0, 1, 0), (1, 0, 0)]
"""Two states, and group 0 leads from each to the other."""


def test_a_cycle_is_left_only_by_what_is_always_enabled_in_it() -> None:
    out_of_both = [*ROUND, (0, 2, 1), (1, 2, 1)]
    assert holds(out_of_both, ["weak", "weak"], [2])
    assert violated([*ROUND, (0, 2, 1)], ["weak", "weak"], [2]) == Lasso((), 0, (0, 1), 2)
    assert violated(out_of_both, ["weak", "free"], [2]).cycle == (0, 1)


def test_strong_fairness_leaves_what_is_enabled_again_and_again() -> None:
    assert holds([*ROUND, (0, 2, 1)], ["weak", "strong"], [2])
    assert violated([*ROUND, (2, 0, 1)], ["weak", "strong"], [2]) == Lasso((), 0, (0, 1), 2)


def test_that_it_is_disabled_now_and_then_is_no_excuse_for_what_is_strongly_fair() -> None:
    edges = [(0, 1, 0), (1, 0, 0), (0, 2, 1), (2, 0, 0)]
    assert {edges[edge][2] for edge in violated(edges, ["weak", "strong"], [3]).cycle} == {0, 1}
    assert violated(edges, ["weak", "weak"], [3]).cycle == (0, 1)


def test_without_the_states_that_strong_fairness_takes_away_a_smaller_cycle_is_left() -> None:
    """Round 0-1-2 group 1 is enabled in 0. A run may go round 1-2 only, and leave 0 behind it."""
    edges = [(0, 1, 0), (1, 2, 0), (2, 1, 0), (2, 0, 0), (0, 3, 1)]
    assert violated(edges, ["weak", "strong"], [3]) == Lasso((0,), 1, (1, 2), 2)
    assert holds([*edges, (1, 3, 1)], ["weak", "strong"], [3])


def test_a_group_is_all_that_it_chooses_from() -> None:
    """Group 1 is enabled in both states, by different edges; that one of them is taken is enough."""
    edges = [(0, 1, 0), (1, 0, 1), (0, 2, 1)]
    assert violated(edges, ["weak", "weak"], [2]).cycle == (0, 1)
    assert holds([(0, 1, 0), (1, 0, 0), (0, 2, 1), (1, 3, 1)], ["weak", "weak"], [2, 3])


def test_a_cycle_takes_all_that_fairness_demands() -> None:
    """A flower: every petal has to be visited, and no petal alone is a fair run."""
    edges = [(0, n, n - 1) for n in (1, 2, 3)] + [(n, 0, 3) for n in (1, 2, 3)]
    edges += [(n, m, m - 1) for n in (1, 2, 3) for m in (1, 2, 3) if n != m]
    found = violated(edges, ["weak"] * 4, [4])
    assert {edges[edge][2] for edge in found.cycle} == {0, 1, 2, 3}


def test_faults_lead_to_a_trap_and_are_no_part_of_it() -> None:
    edges = [(0, 3, 0), (0, 1, 1), (1, 2, 0), (2, 1, 0), (2, 0, 1)]
    found = violated(edges, ["weak", "finite"], [3])
    assert found == Lasso((1,), 1, (2, 3), 2)
    count, arrays, groups, goal = Drawn(4, edges, ["weak", "finite"], [3]).arrays()
    assert lasso(count, arrays, groups, traps(count, arrays, groups, goal), [0], faults=False) is None


def test_a_fault_may_not_be_waited_for() -> None:
    assert violated([(0, 1, 0), (1, 0, 0), (1, 2, 1)], ["weak", "finite"], [2]).cycle == (0, 1)


def test_the_stem_is_as_short_as_can_be() -> None:
    edges = [(0, 1, 0), (1, 2, 0), (2, 3, 0), (0, 4, 0), (4, 3, 0)]
    assert violated(edges, ["weak"], [5]).stem == (3, 4)


def test_the_goal_may_be_passed_on_the_way() -> None:
    """A promise is kept again and again: that it was kept once is not enough."""
    assert violated([(0, 1, 0), (1, 2, 0)], ["weak"], [1]) == Lasso((0, 1), 2, (), 1)


def test_what_reaches_a_good_state_past_no_bad_one() -> None:
    count, edges, _, _ = Drawn(5, [(0, 1, 0), (1, 2, 0), (3, 4, 0), (4, 2, 0)], ["weak"], []).arrays()
    good, bad = np.arange(5) == 2, np.arange(5) == 1
    assert reaching(count, edges, good).tolist() == [True, True, True, True, True]
    assert reaching(count, edges, good, bad).tolist() == [False, False, True, True, True]
    assert reaching(count, edges, bad).tolist() == [True, True, False, False, False]


# --- against every set of edges ---------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> Drawn:
    count = draw(st.integers(1, 4))
    state, kinds = st.integers(0, count - 1), draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    edge = st.tuples(state, state, st.integers(0, len(kinds) - 1)).filter(lambda edge: edge[0] != edge[1])
    edges = draw(st.lists(edge, max_size=7)) if count > 1 else []
    return Drawn(count, edges, kinds, draw(st.lists(state, max_size=2)))


def fair(graph: Drawn, states: set[int], taken: list[tuple[int, int, int]]) -> bool:
    """Whether a run is fair that is in just these states, and takes just these edges, again and again."""
    for group, kind in enumerate(graph.kinds):
        enabled = {source for source, _, of in graph.edges if of == group} & states
        happens = any(of == group for *_, of in taken)
        if kind == "weak" and not happens and enabled == states:
            return False
        if kind == "strong" and not happens and enabled:
            return False
        if kind == "finite" and happens:
            return False
    return True


def closed(states: set[int], edges: list[tuple[int, int, int]]) -> bool:
    """Whether each of the states can be reached from each other one by the edges."""
    for start in states:
        reached, todo = {start}, [start]
        while todo:
            at = todo.pop()
            new = {target for source, target, _ in edges if source == at} - reached
            reached |= new
            todo += new
        if reached != states:
            return False
    return True


def distances(graph: Drawn) -> dict[int, int]:
    found, level = {0: 0}, [0]
    while level:
        level = sorted({t for s, t, _ in graph.edges if s in level} - set(found))
        found |= {state: max(found.values()) + 1 for state in level}
    return found


def every_fair_end(graph: Drawn) -> set[int]:
    """The states in which some fair run may go on for ever out of the goal: every set of edges is tried."""
    outside = set(range(graph.size)) - set(graph.goal)
    ends = {state for state in outside if fair(graph, {state}, [])}
    inside = [edge for edge in graph.edges if {*edge[:2]} <= outside]
    for size in range(2, len(inside) + 1):
        for taken in map(list, combinations(inside, size)):
            states = {state for edge in taken for state in edge[:2]}
            if closed(states, taken) and fair(graph, states, taken):
                ends |= states
    return ends


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_a_fair_run_is_found_if_and_only_if_there_is_one(graph: Drawn) -> None:
    reached = distances(graph)
    ends = every_fair_end(graph) & set(reached)
    found = graph.solve()
    assert (found is None) == (not ends)
    if found is None:
        return
    at = 0
    for edge in found.stem:
        assert graph.edges[edge][0] == at
        at = graph.edges[edge][1]
    assert at == found.anchor and len(found.stem) == min(reached[state] for state in ends)
    cycle = [graph.edges[edge] for edge in found.cycle]
    for source, target, _ in cycle:
        assert source == at
        at = target
    assert at == found.anchor
    states = {found.anchor, *(target for _, target, _ in cycle)}
    assert not states & set(graph.goal) and fair(graph, states, cycle)


# --- what `check` makes of it -----------------------------------------------------------------------------


def test_all_that_the_world_does_by_itself_is_in_the_table() -> None:
    faults = {"duplicate", "delay", "drop", "heartbeat_loss", "poison", "abort", "sender_abort", "sender_crash",
              "receiver_crash", "partition", "clock_jump", "duplicate_room"}  # fmt: skip
    assert set(FAIR) == set(actions._DO) - faults
    assert group_of(("land", 0)) == group_of(("vanish", 3)) != group_of(("told", 0))
    assert group_of(("deliver", 0)) != group_of(("deliver", 1))
    assert group_of(("copied", 0)) == group_of(("copied", 1))


def course(*edges: tuple[int, int, Any]) -> CourseEdges:
    made = CourseEdges()
    for source, target, action in edges:
        made.add(source, target, action)
    return made


def test_a_fair_circle_is_found_though_there_is_a_way_out_of_it() -> None:
    """State 2 is over. From 0 it can be reached; a run that always ticks, and delivers on another channel in between,
    need not get there. A search for states without a way out would not see it."""
    circle = [(0, 1, ("tick",)), (1, 0, ("deliver", 0)), (0, 2, ("deliver", 1))]
    judged = Judgement(3, course(*circle), [2])
    assert list(judged.suspects()) == [(0, False), (1, False)]
    endless = judged.endless(0)
    assert (endless.steps, endless.turn) == ((("tick", 1), ("deliver 0", 0)), 2)
    assert list(Judgement(3, course(*circle, (1, 2, ("deliver", 1))), [2]).suspects()) == []
    assert "though there is a way out" in lost(False, False).text
    assert {lost(ended, hopeless).property for ended in (True, False) for hopeless in (True, False)} == {"L1", "L2"}


def test_the_nearest_state_without_a_way_out_comes_first() -> None:
    judged = Judgement(5, course((0, 1, ("tick",)), (0, 4, ("tick",)), (1, 2, ("tick",)), (2, 3, ("heal",)),
                                 (3, 2, ("tick",))), [4])  # fmt: skip
    assert next(judged.suspects()) == (1, True)
    endless = judged.endless(1)
    assert (endless.steps, endless.turn) == ((("tick", 2), ("heal", 3), ("tick", 2)), 2)


@pytest.fixture(scope="module")
def silent() -> Trace:
    """A trace after which messages are sent again for ever."""
    (found,) = check(zoo.scenario_for("silent-unknown-room")).violations
    return found.trace


def test_what_goes_on_for_ever_is_part_of_the_trace_and_replays(silent: Trace) -> None:
    again = parse_trace(dump_trace(silent).splitlines())
    assert (again.steps, again.ending) == (silent.steps, silent.ending)
    done = replay(again)
    assert [step.step for step in done.endless] == list(silent.ending.endless)
    assert len(silent.steps) == 1 and done.endless[0].number == 2
    assert silent.ending.text.endswith(in_words(silent.ending.endless, silent.ending.turn))


@pytest.mark.parametrize("turn", [1, 3, 203])
def test_a_cycle_that_does_not_come_round_is_refused(silent: Trace, turn: int) -> None:
    ending = silent.ending
    wrong = TraceEnding(ending.property, ending.text, ending.digest, ending.endless, turn)
    last = 1 + len(ending.endless)
    with pytest.raises(LocalError, match=f"steps {last - turn + 1} to {last} do not repeat"):
        replay(silent._replace(ending=wrong))


def test_a_cycle_of_more_steps_than_there_are_is_refused(silent: Trace) -> None:
    ending = silent.ending
    wrong = TraceEnding(ending.property, ending.text, ending.digest, ending.endless[:2], 3)
    with pytest.raises(LocalError, match="the ending: 3 steps repeat, of 2 that follow the trace"):
        replay(silent._replace(ending=wrong))


def test_a_step_of_the_cycle_that_cannot_be_done_is_refused(silent: Trace) -> None:
    ending = silent.ending
    steps = (ending.endless[0], *ending.endless)
    wrong = TraceEnding(ending.property, ending.text, ending.digest, steps, ending.turn)
    with pytest.raises(LocalError, match="step 3: "):
        replay(silent._replace(ending=wrong))


def test_a_trace_that_was_written_before_there_were_cycles_is_read() -> None:
    lines = ['{"line":"header","version":1,"engine":"check","scenario":{}}', '{"line":"ending","property":"L1"}']
    assert parse_trace(lines).ending == TraceEnding("L1", "", "", (), 0)
