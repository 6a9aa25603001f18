"""What symmetry takes as one, counted by other means: blocks in ranks, ranks, and requests that the ledger names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from fsm.errors import LocalError
from sim.model.form import Action, Clause, Field, Model, Reference, State, without_symmetry
from sim.model.protocol_bounded import Bounds, bounded
from sim.vector.rows import without_key
from sim.vector.search import Search, explore

SIZES = {
    "blocks in ranks": Bounds(ranks=2, blocks=2, size=1, faults=False),
    "requests and ranks": Bounds(rooms=2, ranks=2, size=1, faults=False),
    "requests, blocks": Bounds(rooms=2, blocks=2, size=1, faults=False),
    "ranks with senders": Bounds(ranks=2, senders=2, size=1, faults=False, crashes=1, resubmits=False),
}


def every_state(model: Model) -> list[State]:
    search = Search(model)
    assert search.run().coverage == "exhausted"
    rows = without_key(tuple(np.asarray(column) for column in search.graph.index().columns))
    return [search.graph.packing.unpack(rows, number) for number in range(len(rows[0]))]


def exchanged(model: Model, state: State) -> Iterator[State]:
    """The state with two records exchanged, for every two of every group: one field after the other."""
    for number, group in enumerate(model.symmetry):
        for one in range(len(group)):
            for two in range(one + 1, len(group)):
                other = dict(state)
                for left, right in zip(group[one], group[two], strict=True):
                    other[left], other[right] = state[right], state[left]
                for name, named, first in model.references:
                    if named == number and other[name] - first in (one, two):
                        other[name] = first + one + two - (other[name] - first)
                yield other


def orbits(model: Model, states: list[State]) -> int:
    """How many classes of states there are that exchanges lead between."""
    names = [field.name for field in model.fields]
    number = {tuple(state[name] for name in names): place for place, state in enumerate(states)}
    leader = list(range(len(states)))

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    for place, state in enumerate(states):
        for other in exchanged(model, state):
            found = number.get(tuple(other[name] for name in names))
            assert found is not None, "an exchange leads out of what can be reached"
            leader[find(found)] = find(place)
    return sum(find(place) == place for place in range(len(states)))


@pytest.mark.parametrize("bounds", SIZES.values(), ids=SIZES)
def test_one_state_of_each_orbit_is_kept(bounds: Bounds) -> None:
    model = bounded(bounds)
    states = every_state(without_symmetry(model))
    alike = explore(model)
    assert (alike.verdict, alike.coverage) == ("holds", "exhausted")
    assert alike.states == orbits(model, states) < len(states) <= 20_000


def test_a_clause_about_one_record_is_that_about_another_in_another_order() -> None:
    """The clause that is reported is broken in the state that is shown, whichever of the records stood for it."""
    fields = (Field("a", 0, 2), Field("b", 0, 2))
    up = tuple(Action(f"up {n}", lambda o, v, n=n: v[n] < 2, lambda o, v, n=n: {n: v[n] + 1}) for n in ("a", "b"))
    for names in ("ab", "ba"):  # the clause that is looked at first, and the other
        small = tuple(Clause(f"{n} small", f"{n} is small", lambda o, v, n=n: v[n] < 2) for n in names)
        result = explore(Model("two", fields, ({},), up, small, ((("a",), ("b",)),)))
        found = result.violation
        assert found is not None and found.depth == 2
        assert found.state()[found.clause[0]] == 2


def test_a_reference_follows_the_record_that_it_names() -> None:
    """Three boxes of which one is marked by its number: all choices of number and content alike are one."""
    fields = (Field("a", 0, 1), Field("b", 0, 1), Field("c", 0, 1), Field("mark", 0, 3))
    mark = tuple(Action(f"mark {n}", lambda o, v: v.mark == 0, lambda o, v, n=n: {"mark": n}) for n in (1, 2, 3))
    fill = tuple(
        Action(f"fill {name}", lambda o, v, name=name: v[name] == 0, lambda o, v, name=name: {name: 1})
        for name in "abc"
    )
    group = (("a",), ("b",), ("c",))
    model = Model("boxes", fields, ({},), mark + fill, (), (group,), (Reference("mark", 0, 1),))
    # unmarked: 0 to 3 full. Marked: the marked one empty or full, and 0 to 2 of the others.
    assert explore(model).states == 4 + 2 * 3
    assert explore(without_symmetry(model)).states == 8 * 4


def test_a_name_that_is_not_said_to_be_one_is_found_out() -> None:
    fields = (Field("a", 0, 1), Field("b", 0, 1), Field("mark", 0, 2))
    actions = (
        Action("mark the first", lambda o, v: v.mark == 0, lambda o, v: {"mark": 1}),
        Action("fill the marked", lambda o, v: (v.mark == 1) & (v.a == 0), lambda o, v: {"a": 1}),
    )
    with pytest.raises(LocalError, match="symmetry group 1: exchanging"):
        explore(Model("marked", fields, ({},), actions, (), ((("a",), ("b",)),)))


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (Reference("mark", 1, 1), "reference 'mark': there is no symmetry group 2"),
        (Reference("mark", 0, 2), r"reference 'mark': the records are 2\.\.3, its values are 0\.\.2"),
        (Reference("gone", 0, 1), "has no field 'gone'"),
    ],
)
def test_a_reference_that_names_nothing_is_refused(reference: Reference, text: str) -> None:
    fields = (Field("a", 0, 1), Field("b", 0, 1), Field("mark", 0, 2))
    none = Action("nothing", lambda o, v: v.a == 1, lambda o, v: {})
    model = Model("refused", fields, ({},), (none,), (), ((("a",), ("b",)),), (reference,))
    with pytest.raises(LocalError, match=text):
        explore(model)


def test_a_crash_is_that_of_a_process_with_all_its_lanes() -> None:
    model = bounded(Bounds(rooms=2, ranks=2, size=1, senders=2, crashes=1, faults=False))
    crashes = [action.name for action in model.actions if "crashes" in action.name]
    assert crashes == ["s0: the sender crashes", "s1: the sender crashes"]
    boots = {(s["r0k0_s_boot"], s["r1k0_s_boot"], s["r0k1_s_boot"], s["r1k1_s_boot"], s["crashes_left"])
             for s in every_state(replace(without_symmetry(model), actions=tuple(a for a in model.actions
             if "crashes" in a.name or "REGISTER" in a.name)))}  # fmt: skip
    assert boots == {(1, 1, 1, 1, 1), (2, 2, 1, 1, 0), (1, 1, 2, 2, 0)}


def test_aborts_are_as_many_as_the_budget_says() -> None:
    for aborts, worst in ((0, 0), (1, 1)):
        states = every_state(without_symmetry(bounded(Bounds(rooms=2, size=1, faults=False, aborts=aborts))))
        failed = [sum(5 in (s[f"r{n}k0_state"], s[f"r{n}k0_l_state"]) for n in (0, 1)) for s in states]
        assert max(failed) == worst
        assert {state["aborts_left"] for state in states} == set(range(aborts + 1))
    with pytest.raises(LocalError, match="aborts=1 with faults=True: there is no end of faults"):
        Bounds(aborts=1)
