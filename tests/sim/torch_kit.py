"""What the tests of the engine on torch share: both engines side by side, models, and every operation there is."""

from __future__ import annotations

from typing import Any

import pytest

from fsm.errors import LocalError
from sim.model.form import Action, Clause, Field, Model
from sim.vector.search import explore
from sim.vector_torch.search import explore_torch
from tests.sim.model_kit import check_trace


def same(model: Model, *, device: str = "cpu", deadlock: bool = False) -> str:
    """Both engines give the same answer; gives the verdict, or ``error``."""
    try:
        numpy_s = explore(model, deadlock=deadlock)
    except LocalError as refused:
        assert "outside of its bounds" in str(refused)
        with pytest.raises(LocalError, match="outside of its bounds"):
            explore_torch(model, device=device, deadlock=deadlock)
        return "error"
    result = explore_torch(model, device=device, deadlock=deadlock)
    assert (result.verdict, result.coverage) == (numpy_s.verdict, numpy_s.coverage)
    assert (result.levels, result.states, result.depth) == (numpy_s.levels, numpy_s.states, numpy_s.depth)
    if result.verdict == "holds":
        assert (result.transitions, result.checked) == (numpy_s.transitions, numpy_s.checked)
    else:
        assert result.violation is not None and numpy_s.violation is not None
        assert result.violation.depth == numpy_s.violation.depth
        check_trace(model, result.violation, deadlock=deadlock)
    assert numpy_s.bounds.items() <= result.bounds.items()
    return result.verdict


def counters(words: int, clauses: tuple[Clause, ...] = ()) -> Model:
    """Counters that go round, in up to three words."""
    width = (1, 1 << 20, 1 << 40)[words - 1]
    fields = tuple(Field(f"c{i}", -1, 3 * width) for i in range(3))
    actions = tuple(
        Action(
            f"up({i},{by})",
            lambda o, v, i=i, by=by: v[f"c{i}"] + by <= 3,
            lambda o, v, i=i, by=by: {f"c{i}": v[f"c{i}"] + by, f"c{(i + 1) % 3}": -1},
        )
        for i in range(3)
        for by in (1, 2)
    )
    return Model(f"counters({words})", fields, ({},), actions, clauses)


def every_operation(o: Any, v: Any) -> list[Any]:
    """Each operation on fields and numbers, the number on either side."""
    truth, other = v.a > 3, v.b == 2
    pairs = [(v.a, v.b), (v.a, 7), (7, v.a), (v.b, -2), (-2, v.b)]
    result = [truth & other, truth | other, truth == other, truth == False, other != True]  # noqa: E712
    for x, y in pairs:
        result += [x + y, x - y, x * y, o.minimum(x, y), o.maximum(x, y)]
        result += [x == y, x != y, x < y, x <= y, x > y, x >= y]
        result += [o.where(truth, x, y), o.where(other, y, x)]
        result += [x // o.maximum(y, 1), x % o.maximum(y, 2), o.minimum(x, -1) // 3, o.minimum(y, -1) % 5]
    return [*result, o.where(truth, 4, -4), o.where(truth, other, True), o.where(other, False, truth), truth]
