"""A plain search to hold the vector engine against, and small models drawn from a number.

The search visits one state at a time, keeps a set, and knows symmetry only as "try every order and take the lowest".
"""

from __future__ import annotations

from itertools import permutations, product
from random import Random
from typing import Any, NamedTuple

from sim.model.form import Action, Clause, Field, Model, State, holds, negate, successors

Tests = tuple[tuple[str, tuple[int, ...]], ...]
"""Fields, each with values of which it has one."""
Changes = tuple[tuple[str, str, Any], ...]
"""Fields, how each is changed, and by what."""


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


def _guard(tests: Tests) -> Any:
    def guard(ops: Any, view: Any) -> Any:
        truth = True
        for name, values in tests:
            truth = truth & _one_of(view, name, values)
        return truth

    return guard


def _update(changes: Changes, fields: dict[str, Field]) -> Any:
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


def _tests(dice: Random, fields: list[Field], most: int = 2) -> Tests:
    chosen = dice.sample(fields, min(dice.randint(0, most), len(fields)))
    return tuple((field.name, _values(dice, field)) for field in chosen)


def _values(dice: Random, field: Field) -> tuple[int, ...]:
    near = range(field.low, min(field.high, field.low + 3) + 1)
    return tuple(dice.sample(near, dice.randint(1, min(3, len(near)))))


def _changes(dice: Random, fields: list[Field], readable: list[Field]) -> Changes:
    changes = []
    for field in dice.sample(fields, dice.randint(1, min(3, len(fields)))):
        kind = dice.choice(["set", "add", "add", "copy", "where"])
        if field.high - field.low < 3:
            kind = "set"
        value: Any = dice.choice([-2, -1, 1, 1, 2])
        if kind == "set":
            value = _values(dice, field)[0]
        elif kind == "copy":
            value = dice.choice(readable).name
        elif kind == "where":
            other = dice.choice(readable)
            value = (other.name, _values(dice, other)[0])
        changes.append((field.name, kind, value))
    return tuple(changes)


def _fields(dice: Random, prefix: str, count: int, wide: bool) -> list[Field]:
    """Fields with bounds anywhere; wide ones are there so that a state takes several words."""
    result = []
    for number in range(count):
        low = dice.randint(-130, 5)
        span = dice.choice([0, 1, 2, 3, 3, 3, 200, *([1 << 40, 1 << 30, 1 << 45] if wide else [])])
        result.append(Field(f"{prefix}{number}", low, low + span))
    return result


def drawn_model(seed: int) -> Model:
    """Any small model."""
    dice = Random(seed)
    fields = _fields(dice, "f", dice.randint(2, 6), dice.random() < 0.5)
    by_name = {field.name: field for field in fields}
    actions = tuple(
        Action(f"action{number}", _guard(_tests(dice, fields)), _update(_changes(dice, fields, fields), by_name))
        for number in range(dice.randint(1, 9))
    )
    starts = tuple({f.name: _values(dice, f)[0] for f in fields} for _ in range(dice.choice([1, 1, 2, 3])))
    return Model(f"drawn({seed})", tuple(fields), starts, actions, _clauses(dice, fields))


def _clauses(dice: Random, fields: list[Field]) -> tuple[Clause, ...]:
    """What a conjunction of tests says must never come true, at most twice."""
    result = []
    for number in range(dice.choice([0, 0, 1, 2])):
        tests = tuple((field.name, _values(dice, field)[:1]) for field in dice.sample(fields, min(4, len(fields))))
        result.append(Clause(f"clause{number}", "drawn", lambda ops, view, t=tests: negate(_guard(t)(ops, view))))
    return tuple(result)


def drawn_symmetric_model(seed: int) -> Model:
    """A few identical records, and fields that they share."""
    dice = Random(seed)
    shared = _fields(dice, "s", dice.randint(0, 2), False)
    pattern = _fields(dice, "r", dice.randint(1, 3), dice.random() < 0.4)
    count = dice.randint(2, 4)
    records = [[Field(f"{f.name}_{number}", f.low, f.high) for f in pattern] for number in range(count)]
    fields = [*shared, *(field for record in records for field in record)]
    steps = [
        (_tests(dice, [*shared, *pattern]), _changes(dice, [*shared, *pattern], [*shared, *pattern]))
        for _ in range(dice.randint(1, 4))
    ]
    own = [field.name for field in pattern]
    actions = []
    for number in range(count):
        for step, (tests, changes) in enumerate(steps):
            guard, update = _of_record(tests, changes, own, number, {f.name: f for f in fields})
            actions.append(Action(f"step{step}({number})", guard, update))
    return Model(
        f"drawn_symmetric({seed})",
        tuple(fields),
        ({},),
        tuple(actions),
        _clauses(dice, shared) if shared else (),
        (tuple(tuple(field.name for field in record) for record in records),),
    )


def _of_record(
    tests: Tests, changes: Changes, own: list[str], number: int, fields: dict[str, Field]
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
    # In this order the fields of some blocks lie side by side and those of others do not.
    requests = tuple((f"want{i}", *(f"has{i}_{j}" for j in reversed(range(columns)))) for i in range(rows))
    blocks = tuple((*(f"has{i}_{j}" for i in range(rows)), f"free{j}") for j in range(columns))
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
