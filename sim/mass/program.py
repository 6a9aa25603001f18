"""What all lanes do in a round, as nodes: made once from a schedule, read by whatever runs the lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fsm.errors import LocalError
from fsm.kernel import Number
from sim.mass.draws import NIBBLES
from sim.mass.schedule import Schedule
from sim.mass.schedule_parts import Turn
from sim.model.form import Fields, View
from sim.model.symbol import Symbol, Table, parts_of
from sim.vector.nodes import Node, Nodes, fields_of

STEPS = "steps"
"""The counter of all turns that were taken."""


class Stop(NamedTuple):
    """Why lanes stopped: the runs that broke a clause, and those that patience gave up."""

    broken: list[int]
    late: list[int]


class Tally(NamedTuple):
    """What came of a batch: runs that ended, their rounds, the sum of their sealed digests, and the counters."""

    runs: int
    rounds: int
    digest: int
    counts: dict[str, int]


class LaneTurn(NamedTuple):
    """A turn. ``taken`` where it is taken; ``writes`` the new values of columns there; ``decision`` what is folded into
    the digest: seven nodes, of which the first is 0 for nothing. ``counts``: counters, and what is counted there."""

    name: str
    taken: Node
    writes: tuple[tuple[str, Node], ...]
    decision: tuple[Node, ...]
    counts: tuple[tuple[int, Node], ...]
    judged: Node
    """All clauses that speak of anything that the turn writes, where clauses are judged after each turn."""


class Program(NamedTuple):
    """A round. ``columns`` are the fields that may change, with what they start with; those in ``started`` start with
    the number of the start state instead. ``bits`` is how wide a column must be: 8 or 16."""

    schedule: Schedule
    columns: dict[str, int]
    started: tuple[str, ...]
    words: int
    turns: tuple[LaneTurn, ...]
    clauses: tuple[tuple[int, Node], ...]
    """By their number in the bounded model; those that hold of any values at all are left out."""
    bounds: tuple[tuple[str, Node], ...]
    """Fields for which it is not plain that they stay within their bounds, and whether they are."""
    over: Node
    counters: tuple[str, ...]
    bits: int
    nodes: Nodes
    each_turn: bool
    """Whether clauses are judged after each turn, and not only at the end of a round."""

    def judged(self) -> Node:
        """All clauses, and all bounds."""
        return _all(self.nodes, [node for _, node in (*self.clauses, *self.bounds)])


def _after(view: View, update: Mapping[str, Symbol]) -> View:
    values: dict[str, Number] = {}

    class After(Fields):
        __slots__ = ()

        def __getitem__(self, name: str) -> Number:
            return update[name] if name in update else view[name]

        __getattr__ = __getitem__

    return After(values)


def _all(nodes: Nodes, truths: Sequence[Node]) -> Node:
    judged = nodes.true
    for truth in truths:
        judged = nodes.both(judged, truth)
    return judged


def make_program(schedule: Schedule, *, each_turn: bool = False) -> Program:
    """The program of a schedule. Raises LocalError for numbers that 16 bits do not hold."""
    table, nodes = Table(schedule.model), Nodes()
    counters = [STEPS]
    turns = []
    doubtful: dict[str, bool] = {}
    clauses = [(number, nodes.of(table.clause(clause))) for number, clause in enumerate(schedule.bounded.clauses)]
    speaking = [(node, fields_of([node])) for _, node in clauses]
    for turn, action in zip(schedule.turns, schedule.model.actions, strict=True):
        taken = nodes.of(table.guard(action))
        if taken is nodes.false:
            continue  # nobody does this with these rules
        update = table.update(action)
        writes = []
        for name, symbol in update.items():
            node, field = nodes.of(symbol), schedule.model.field(name)
            if node.op == "field" and node.value == name:
                continue
            writes.append((name, node))
            if not field.low <= node.low <= node.high <= field.high:
                doubtful[name] = True
        decision = _decision(turn, table, nodes, update)
        counts = []
        for name, count in turn.counts.items():
            if name not in counters:
                counters.append(name)
            counts.append((counters.index(name), nodes.of(table.symbol(count(table, table.view)))))
        judged = nodes.true
        if each_turn:
            written = [name for name, _ in writes]
            judged = _all(nodes, [node for node, fields in speaking if any(name in fields for name in written)])
        turns.append(LaneTurn(turn.name, taken, tuple(writes), decision, tuple(counts), judged))
    bounds = []
    for name in doubtful:
        field = schedule.model.field(name)
        raw = nodes.raw(name)
        above, below = nodes.less("le", nodes.const(field.low), raw), nodes.less("le", raw, nodes.const(field.high))
        bounds.append((name, nodes.both(above, below)))
    over = nodes.of(table.symbol(schedule.over(table, table.view)))
    roots = [over, *(node for _, node in clauses)]
    roots += [node for turn in turns for node in (turn.taken, *(n for _, n in turn.writes), *turn.decision)]
    roots += [node for turn in turns for _, node in turn.counts]
    draws = max([int(node.value[4:]) for node in parts_of(roots) if is_draw(node)], default=0) + 1
    return Program(
        schedule, *_columns(schedule), -(-draws // NIBBLES), tuple(turns),
        tuple((number, node) for number, node in clauses if node is not nodes.true), tuple(bounds), over,
        tuple(counters), _bits(roots), nodes, each_turn,
    )  # fmt: skip


def is_draw(node: Node) -> bool:
    """Whether a node is a draw of the round, and no column."""
    return node.op == "field" and str(node.value).startswith("draw")


def _decision(turn: Turn, table: Table, nodes: Nodes, update: Mapping[str, Symbol]) -> tuple[Node, ...]:
    if turn.decision is None:
        return ()
    made = turn.decision(table, table.view, _after(table.view, update))
    return tuple(nodes.of(table.symbol(part)) for part in made)


def _columns(schedule: Schedule) -> tuple[dict[str, int], tuple[str, ...]]:
    starts = schedule.model.start_states()
    columns = {
        field.name: starts[0][field.name] for field in schedule.model.fields
        if field.low < field.high and not field.name.startswith("draw")
    }  # fmt: skip
    started = tuple(name for name in columns if any(state[name] != starts[0][name] for state in starts))
    for number, state in enumerate(starts):
        if any(state[name] != number for name in started):
            raise LocalError(f"start state {number} of {schedule.bounded.name} is not told by its number alone")
    return columns, started


def _bits(roots: Sequence[Node]) -> int:
    parts = parts_of(roots)
    low, high = min(node.low for node in parts), max(node.high for node in parts)
    for bits in (8, 16):
        if -(1 << bits - 1) <= low and high < 1 << bits - 1:
            return bits
    raise LocalError(f"numbers from {low} to {high} do not fit 16 bits; take fewer tokens, blocks or requests")
