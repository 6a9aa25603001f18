"""A plain search to hold the vector engine against, and small models that Hypothesis draws.

The search visits one state at a time, keeps a set, and knows symmetry only as "try every order and take the lowest".
"""

from __future__ import annotations

from itertools import permutations, product
from typing import Any, NamedTuple

from hypothesis import strategies as st

from sim.model.form import Action, Clause, Field, Model, State, holds, negate, successors


class Plain(NamedTuple):
    levels: tuple[int, ...]
    transitions: int
    broken_at: int | None
    """The distance of the nearest state that breaks a clause (or has no successor)."""


def lowest(model: Model, state: State) -> tuple[int, ...]:
    """The lowest of all states that differ from this one in the order of symmetric records."""
    forms = []
    for orders in product(*(permutations(range(len(group))) for group in model.symmetry)):
        other = dict(state)
        for group, order in zip(model.symmetry, orders, strict=True):
            before = dict(other)
            for record, source in zip(group, order, strict=True):
                for name, wanted in zip(record, group[source], strict=True):
                    other[name] = before[wanted]
        forms.append(tuple(other[field.name] for field in model.fields))
    return min(forms)


def plain_search(model: Model, *, deadlock: bool = False, states_max: int = 4_000) -> Plain | None:
    """Search to the first level that has something wrong; None if there are too many states."""
    names = [field.name for field in model.fields]
    level = list(dict.fromkeys(lowest(model, state) for state in model.start_states()))
    seen = dict.fromkeys(level)
    levels, transitions = [], 0
    while level:
        levels.append(len(level))
        broken, found = False, []
        for key in level:
            state = dict(zip(names, key, strict=True))
            after = [lowest(model, other) for _, other in successors(model, state)]
            broken |= not all(holds(model, clause, state) for clause in model.clauses)
            broken |= deadlock and not after
            transitions += len(after)
            found += after
        if broken:
            return Plain(tuple(levels), transitions, len(levels) - 1)
        level = [key for key in dict.fromkeys(found) if key not in seen]
        seen |= dict.fromkeys(level)
        if len(seen) > states_max:
            return None
    return Plain(tuple(levels), transitions, None)


# --- drawn models ----------------------------------------------------------------------------------------


def _one_of(view: Any, name: str, values: tuple[int, ...]) -> Any:
    truth = view[name] == values[0]
    for value in values[1:]:
        truth = truth | (view[name] == value)
    return truth


def _guard(tests: tuple[tuple[str, tuple[int, ...]], ...]) -> Any:
    def guard(ops: Any, view: Any) -> Any:
        truth = True
        for name, values in tests:
            truth = truth & _one_of(view, name, values)
        return truth

    return guard


def _update(changes: tuple[tuple[str, str, Any], ...], fields: dict[str, Field]) -> Any:
    """Changes of a few kinds: to a number, up or down by some, to another field, one or the other by a test."""

    def update(ops: Any, view: Any) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, kind, value in changes:
            field = fields[name]
            if kind == "set":
                result[name] = value
            elif kind == "add":
                result[name] = ops.maximum(ops.minimum(view[name] + value, field.low + 3), field.low)
            elif kind == "copy":
                result[name] = field.low + (view[value] - fields[value].low) % 3
            else:
                other, number = value
                higher = ops.minimum(view[name] * 2 + 1, field.low + 2)
                result[name] = ops.where(view[other] > number, ops.maximum(higher, field.low), view[name])
        return result

    return update


@st.composite
def _tests(draw: st.DrawFn, fields: list[Field], count: int = 2) -> tuple[tuple[str, tuple[int, ...]], ...]:
    chosen = draw(st.lists(st.sampled_from(fields), max_size=count, unique=True))
    return tuple((field.name, draw(_values(field))) for field in chosen)


def _values(field: Field) -> st.SearchStrategy[tuple[int, ...]]:
    near = list(range(field.low, min(field.high, field.low + 3) + 1))
    return st.lists(st.sampled_from(near), min_size=1, max_size=3, unique=True).map(tuple)


@st.composite
def _changes(draw: st.DrawFn, fields: list[Field], readable: list[Field]) -> tuple[tuple[str, str, Any], ...]:
    changes = []
    for field in draw(st.lists(st.sampled_from(fields), max_size=3, unique=True)):
        kind = draw(st.sampled_from(["set", "set", "add", "copy", "where"]))
        if field.high - field.low < 3:
            kind = "set"
        value: Any = draw(st.integers(-2, 2))
        if kind == "set":
            value = draw(_values(field))[0]
        elif kind == "copy":
            value = draw(st.sampled_from(readable)).name
        elif kind == "where":
            other = draw(st.sampled_from(readable))
            value = (other.name, draw(_values(other))[0])
        changes.append((field.name, kind, value))
    return tuple(changes)


@st.composite
def _fields(draw: st.DrawFn, prefix: str, count: int, wide: bool) -> list[Field]:
    """Fields with bounds anywhere; wide ones are there so that a state takes several words."""
    result = []
    for number in range(count):
        low = draw(st.integers(-130, 5))
        span = draw(st.sampled_from([0, 1, 2, 3, 3, 200, *([1 << 40, 1 << 30, 1 << 45] if wide else [])]))
        result.append(Field(f"{prefix}{number}", low, low + span))
    return result


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Any small model."""
    fields = draw(_fields("f", draw(st.integers(1, 5)), draw(st.booleans())))
    by_name = {field.name: field for field in fields}
    actions = [
        Action(f"action{number}", _guard(draw(_tests(fields))), _update(draw(_changes(fields, fields)), by_name))
        for number in range(draw(st.integers(0, 6)))
    ]
    starts = draw(
        st.lists(st.fixed_dictionaries({f.name: _values(f).map(lambda v: v[0]) for f in fields}), min_size=1, max_size=3)
    )
    return Model("drawn", tuple(fields), tuple(starts), tuple(actions), draw(_clauses(fields)))


@st.composite
def _clauses(draw: st.DrawFn, fields: list[Field]) -> tuple[Clause, ...]:
    """What a conjunction of tests says must never come true, at most twice."""
    result = []
    for number in range(draw(st.integers(0, 2))):
        tests = draw(_tests(fields, 3))
        result.append(Clause(f"clause{number}", "drawn", lambda ops, view, t=tests: negate(_guard(t)(ops, view))))
    return tuple(result)


@st.composite
def symmetric_models(draw: st.DrawFn) -> Model:
    """A few identical records, and fields that they share."""
    shared = draw(_fields("s", draw(st.integers(0, 2)), False))
    pattern = draw(_fields("r", draw(st.integers(1, 3)), draw(st.booleans())))
    count = draw(st.integers(2, 4))
    records = [[Field(f"{f.name}_{number}", f.low, f.high) for f in pattern] for number in range(count)]
    fields = [*shared, *(field for record in records for field in record)]
    steps = [
        (draw(_tests([*shared, *pattern])), draw(_changes([*shared, *pattern], [*shared, *pattern])))
        for _ in range(draw(st.integers(1, 4)))
    ]
    own = {field.name for field in pattern}
    actions = []
    for number in range(count):
        for step, (tests, changes) in enumerate(steps):
            guard, update = _of_record(tests, changes, own, number, {f.name: f for f in fields})
            actions.append(Action(f"step{step}({number})", guard, update))
    return Model(
        "drawn symmetric",
        tuple(fields),
        ({},),
        tuple(actions),
        draw(_clauses(shared)) if shared else (),
        (tuple(tuple(field.name for field in record) for record in records),),
    )


def _of_record(
    tests: Any, changes: Any, own: set[str], number: int, fields: dict[str, Field]
) -> tuple[Any, Any]:
    """A step of the pattern as the step of one record."""

    def named(name: str) -> str:
        return f"{name}_{number}" if name in own else name

    def valued(kind: str, value: Any) -> Any:
        if kind == "copy":
            return named(value)
        return (named(value[0]), value[1]) if kind == "where" else value

    renamed = tuple((named(name), kind, valued(kind, value)) for name, kind, value in changes)
    return _guard(tuple((named(name), values) for name, values in tests)), _update(renamed, fields)


def matrix_model(rows: int, columns: int, *, cell_max: int = 1) -> Model:
    """Requests that take blocks: both can be exchanged, and every pair of them has a field of its own."""
    fields = [Field(f"want{i}", 0, 1) for i in range(rows)] + [Field(f"free{j}", 0, 1) for j in range(columns)]
    fields += [Field(f"has{i}_{j}", 0, cell_max) for i in range(rows) for j in range(columns)]
    actions = []
    for i in range(rows):
        actions.append(Action(f"want({i})", lambda o, v, i=i: v[f"want{i}"] == 0, lambda o, v, i=i: {f"want{i}": 1}))
        for j in range(columns):
            actions.append(_take(i, j))
            actions.append(
                Action(
                    f"back({i},{j})",
                    lambda o, v, i=i, j=j: (v[f"has{i}_{j}"] == cell_max) & (v[f"want{i}"] == 1),
                    lambda o, v, i=i, j=j: {f"has{i}_{j}": 0, f"free{j}": 0},
                )
            )
    requests = tuple((f"want{i}", *(f"has{i}_{j}" for j in range(columns))) for i in range(rows))
    blocks = tuple((f"free{j}", *(f"has{i}_{j}" for i in range(rows))) for j in range(columns))
    return Model("matrix", tuple(fields), ({},), tuple(actions), (), (requests, blocks))


def _take(i: int, j: int) -> Action:
    cell, free = f"has{i}_{j}", f"free{j}"
    return Action(
        f"take({i},{j})",
        lambda o, v: (v[f"want{i}"] == 1) & (v[free] == 0),
        lambda o, v: {cell: o.minimum(v[cell] + 1, 1), free: 1},
    )


def check_trace(model: Model, violation: Any, *, deadlock: bool = False) -> None:
    """The trace is a run of the model that ends where the violation says."""
    state = violation.start
    assert state in model.start_states()
    for step in violation.steps:
        after = [other for action, other in successors(model, state) if action.name == step.action]
        assert step.state in after
        state = step.state
    assert violation.depth == len(violation.steps)
    assert violation.state() == state
    if violation.clause == "deadlock":
        assert deadlock and not list(successors(model, state))
    else:
        (clause,) = (clause for clause in model.clauses if clause.name == violation.clause)
        assert not holds(model, clause, state)
