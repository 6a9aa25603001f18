"""The form of models: what is no model is refused by name, and all readers of one agree on what it means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from fsm.kernel import ARRAY, INT
from sim.model import form
from sim.model.form import Action, Clause, Field, Fields, Model, apply, holds, negate, successors
from sim.model.symbol import Table, check_model
from sim.vector.pack import Packing
from sim.vector.plan import Plan
from tests.sim.model_kit import drawn_model

FIELDS = (Field("a", 0, 3), Field("b", -2, 3))


def model(guard: Any = None, update: Any = None, **changes: Any) -> Model:
    action = Action("step", guard or (lambda o, v: v.a < 3), update or (lambda o, v: {"a": v.a + 1}))
    return Model(**{"name": "m", "fields": FIELDS, "initial": ({},), "actions": (action,), **changes})


def test_fields_start_at_their_lowest_value() -> None:
    assert model(initial=({"a": 2},)).start_states() == ({"a": 2, "b": -2},)


def test_a_view_gives_fields_by_name_either_way() -> None:
    view = Fields({"a": 5})
    assert view.a == view["a"] == 5
    with pytest.raises(LocalError, match="has no field 'c'"):
        view.c  # noqa: B018
    with pytest.raises(LocalError, match="field 'a' is assigned to"):
        view.a = 1


def test_successors_are_the_enabled_actions() -> None:
    assert [(action.name, state) for action, state in successors(model(), {"a": 1, "b": 0})] == [
        ("step", {"a": 2, "b": 0})
    ]
    assert list(successors(model(), {"a": 3, "b": 0})) == []


def test_one_state_out_of_bounds_is_named() -> None:
    with pytest.raises(
        LocalError, match=r"model 'm', action 'step': sets 'a' to 4, outside of its bounds 0\.\.3, in the "
    ):
        apply(model(), model().actions[0], {"a": 3, "b": 0})


def test_negate_means_not_for_all_readers() -> None:
    assert negate(True) is False
    assert negate(False) is True
    assert negate(np.array([True, False])).tolist() == [False, True]


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guard", "text"),
    [
        (lambda o, v: None, "is no expression: None is neither"),
        (lambda o, v: "a", "is no expression: 'a' is neither"),
        (lambda o, v: v.a, "is the number a; expected a truth value"),
        (lambda o, v: 1, "is the number 1; expected a truth value"),
        (lambda o, v: v.a == 1 and v.b == 1, r"decides on \(a == 1\); `if`, `and`"),
        (lambda o, v: not (v.a < 1) & (v.b < 1), "decides on"),
        (lambda o, v: 0 < v.a < 2, "decides on"),
        (lambda o, v: min(v.a, v.b) == 1, "decides on"),
        (lambda o, v: v.a in (1, 2), "decides on"),
        (lambda o, v: [True, False][v.a], "uses a as an index"),
        (lambda o, v: ~(v.a == 1), r"applies ~ to \(a == 1\).*use negate"),
        (lambda o, v: (v.a == 1) + (v.b == 1) == 1, "counts or compares a truth value"),
        (lambda o, v: (v.a == 1) < (v.b == 1), "counts or compares a truth value"),
        (lambda o, v: (v.a == 1) & v.b, "with & or |, and one is a number"),
        (lambda o, v: o.where(v.a, True, False), r"asks ops.where\(a, ...\), and that is a number"),
        (lambda o, v: o.where(v.a == 1, v.b == 1, 0), "chooses between a truth value and a number"),
        (lambda o, v: v.a / 2 == 1, "divides a with /"),
        (lambda o, v: 4 // v.a == 1, "divides by a, which may be 0"),
        (lambda o, v: 4 % v.b == 1, "divides by b, which may be -2"),
        (lambda o, v: v.a * (1 << 61) > 1, "may be as large as"),
        (lambda o, v: v.c == 1, "has no field 'c'"),
        (lambda o, v: 1 // 0 == 1, "raises ZeroDivisionError"),
    ],
)
def test_a_guard_that_is_not_an_expression_is_named(guard: Any, text: str) -> None:
    with pytest.raises(LocalError, match=f"model 'm', guard of action 'step'.*{text}"):
        check_model(model(guard))


@pytest.mark.parametrize(
    ("update", "text"),
    [
        (lambda o, v: None, "gives None; expected a dict"),
        (lambda o, v: {"c": 1}, "sets 'c', which is no field; there are a, b"),
        (lambda o, v: {"a": None}, "'a' is no expression: None"),
        (lambda o, v: {"a": v.b == 1}, r"sets 'a' to a truth value; use ops.where\(condition, 1, 0\)"),
        (lambda o, v: {"a": 1.5}, "is no expression: 1.5"),
    ],
)
def test_an_update_that_is_none_is_named(update: Any, text: str) -> None:
    with pytest.raises(LocalError, match=f"model 'm', update of action 'step': .*{text}"):
        check_model(model(update=update))


def test_a_clause_that_is_not_an_expression_is_named() -> None:
    with pytest.raises(LocalError, match="clause 'odd': is the number"):
        check_model(model(clauses=(Clause("odd", "", lambda o, v: v.a % 2),)))


def test_an_action_that_raises_for_numbers_only_is_named() -> None:
    """As where a list is looked into: there is no symbol in it, so only the numbers show the mistake."""
    odd = Action("odd", lambda o, v: o is not INT or 1 // 0 == 1, lambda o, v: {})
    with pytest.raises(LocalError, match=r"action 'odd': raises ZeroDivisionError: .*, in the state a=0 b=-2"):
        check_model(model(actions=(odd,)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fields": ()}, "has no fields"),
        ({"fields": (*FIELDS, Field("a", 0, 1))}, "two fields are named 'a'"),
        ({"fields": (*FIELDS, Field("not so", 0, 1))}, "a field is named 'not so'"),
        ({"fields": (*FIELDS, Field("c", 1, 0))}, r"field 'c': 1\.\.0 hold no value"),
        ({"fields": (*FIELDS, Field("c", 0, 1 << 48))}, "field 'c': .* does not fit; values span at most 48 bits"),
        ({"fields": (*FIELDS, Field("c", 1 << 50, 1 + (1 << 50)))}, "field 'c': .* does not fit"),
        ({"initial": ()}, "has no initial state"),
        ({"initial": ({"c": 1},)}, "has no field 'c'; it has a, b"),
        ({"initial": ({"a": 4},)}, r"starts with 'a' = 4, outside of its bounds 0\.\.3"),
        ({"actions": (model().actions[0], model().actions[0])}, "two actions are named 'step'"),
        ({"symmetry": ((("a",), ("b",)),)}, "group 1: 'b' and 'a' cannot be exchanged: their bounds differ"),
        ({"symmetry": ((("a",), ("a",)),)}, "group 1: 'a' stands in it twice"),
        ({"symmetry": ((("a",), ("b", "a")),)}, "'a' stands in it twice"),
        ({"symmetry": ((("a",), ()),)}, "has 0 fields, the first has 1"),
        ({"symmetry": ((("c",), ("d",)),)}, "has no field 'c'"),
    ],
)
def test_a_model_that_is_not_well_formed_is_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(LocalError, match=f"^model 'm'.*{text}"):
        check_model(model(**changes))


def test_a_name_that_is_looked_for_and_missing() -> None:
    mine = model()
    assert mine.action("step") is mine.actions[0]
    with pytest.raises(LocalError, match="has no action 'leap'"):
        mine.action("leap")


# --- all readers agree -----------------------------------------------------------------------------------


@given(st.integers(0, 1 << 32).map(drawn_model), st.data())
def test_ints_arrays_and_symbols_agree(drawn: Model, data: st.DataObject) -> None:
    """One text, three readers: plain ints, plain numpy arrays, and the plan made from the symbols."""
    near = {f.name: st.integers(f.low, min(f.high, f.low + 3)) for f in drawn.fields}
    states = data.draw(st.lists(st.fixed_dictionaries(near), min_size=1, max_size=5))
    table, packing = check_model(drawn), Packing(drawn)
    columns = packing.pack(states)
    arrays = Fields({f.name: np.array([state[f.name] for state in states]) for f in drawn.fields})
    symbols: list[Any] = []
    expected: list[list[int]] = []
    for what in (*drawn.actions, *drawn.clauses):
        symbols.append(table.guard(what) if isinstance(what, Action) else table.clause(what))
        expected.append([holds(drawn, what, state) for state in states])
        truths = (what.guard if isinstance(what, Action) else what.holds)(ARRAY, arrays)
        assert np.broadcast_to(truths, len(states)).tolist() == expected[-1]
    for action in drawn.actions:
        for name, symbol in table.update(action).items():
            symbols.append(symbol)
            expected.append([action.update(INT, Fields(state))[name] for state in states])
            values = action.update(ARRAY, arrays)[name]
            assert np.broadcast_to(values, len(states)).tolist() == expected[-1]
    for values, wanted, symbol in zip(Plan(symbols, packing.slots, 8).run(columns), expected, symbols, strict=True):
        assert np.broadcast_to(values, len(states)).tolist() == wanted
        assert symbol.low <= min(wanted)
        assert max(wanted) <= symbol.high


@given(st.integers(-3, 3), st.integers(0, 4), st.integers(-3, 3), st.integers(0, 4), st.data())
def test_intervals_hold_every_value(low: int, span: int, low2: int, span2: int, data: st.DataObject) -> None:
    """Else a sum could overflow without a word."""
    two = Model("two", (Field("a", low, low + span), Field("b", low2, low2 + span2)), ({},), ())
    table = Table(two)
    a, b = data.draw(st.integers(low, low + span)), data.draw(st.integers(low2, low2 + span2))
    operations = [
        lambda o, x, y: x + y,
        lambda o, x, y: x - y,
        lambda o, x, y: x * y,
        lambda o, x, y: o.minimum(x, y),
        lambda o, x, y: o.maximum(x, y),
        lambda o, x, y: o.where(x < y, x, y),
        lambda o, x, y: -x + 3 - y,
    ]
    if low2 > 0:
        operations += [lambda o, x, y: x // y, lambda o, x, y: x % y, lambda o, x, y: 7 // y + 7 % y]
    for operation in operations:
        symbol = operation(table, table.view.a, table.view.b)
        assert symbol.low <= operation(INT, a, b) <= symbol.high
        constant = operation(table, table.symbol(a), table.symbol(b))
        assert (constant.kind, constant.value) == ("const", operation(INT, a, b))


def test_equal_expressions_are_one_symbol() -> None:
    table = Table(model())
    assert (table.view.a + 1) is (table.view.a + 1)
    assert str((table.view.a + 1) * table.view.b) == "((a + 1) * b)"
    assert str(table.minimum(table.view.a, 2)) == "min(a, 2)"
    one = table.view.a == 1
    assert (True & one) is one
    assert (one | False) is one
    assert str(one & False) == "False"
    assert str(True | one) == "True"


def test_a_deep_expression_is_not_written_out() -> None:
    """Shared parts would make the text as long as the number of ways through it."""
    table = Table(model())
    symbol = table.view.a
    for _ in range(40):
        symbol = table.minimum(symbol + symbol, 3)
    assert len(str(symbol)) < 200


def test_the_form_says_what_a_state_is() -> None:
    assert form.describe({"a": 1, "b": -2}) == "a=1 b=-2"
