"""Lanes as numpy arrays: a column for each field, and a turn as calls on whole columns.

Who takes a turn is worked out for all lanes, and what it does for those that take it. Columns are as narrow as they can
be. A choice between two numbers is made of bits, ``((a ^ b) & mask) ^ b``, since numpy's own takes far longer where it
cannot be foreseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.mass import draws
from sim.mass.draws import NIBBLES
from sim.mass.program import LaneTurn, Program, Stop, Tally
from sim.mass.schedule_parts import FAULTS_LEFT
from sim.model.symbol import parts_of
from sim.vector.nodes import Node, fields_of

LANES = 1 << 15
"""Lanes that go side by side: what is computed of them stays in the second level cache."""
FEWEST = 64
"""The smallest part of the lanes that is worked out at a time; larger ones grow by doubling."""

_UFUNCS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.floor_divide, "mod": np.remainder,
    "min": lambda a, b, out: np.minimum(a, b, out=out), "max": lambda a, b, out: np.maximum(a, b, out=out),
    "eq": np.equal, "lt": np.less, "le": np.less_equal,
    "and": np.logical_and, "or": np.logical_or,
}  # fmt: skip

Call = tuple[Callable[..., Any], tuple[Any, ...]]


class _Op(NamedTuple):
    """One call: ``op`` of earlier values, fields or constants, into register ``out``."""

    op: str
    args: tuple[Any, ...]
    out: int
    truth: bool


class Plan:
    """Nodes as a straight line of calls. ``bind`` puts it on arrays of one length."""

    def __init__(self, roots: Sequence[Node], bits: int) -> None:
        self.roots = tuple(roots)
        self.kind: Any = np.int8 if bits == 8 else np.int16
        self.fields = fields_of(roots)
        self._ops: list[_Op] = []
        self._last: dict[Any, int] = {}
        self._masks: dict[int, Any] = {}
        self._place: dict[Any, int] = {}
        self.registers: list[bool] = []
        self._write()

    def _write(self) -> None:
        lowered: list[tuple[Any, str, tuple[Any, ...], bool]] = []
        for node in parts_of(self.roots):
            if node.op in ("field", "raw", "const"):
                continue
            if node.op == "where":
                lowered += self._choice(node)
            else:
                lowered.append((node, node.op, node.args, node.truth))
        for number, (_, _, args, _) in enumerate(lowered):
            for arg in args:
                self._last[arg] = number
        for root in self.roots:
            self._last[root] = len(lowered)
        free: dict[bool, list[int]] = {True: [], False: []}
        for number, (result, op, args, truth) in enumerate(lowered):
            if free[truth]:
                place = free[truth].pop()
            else:
                place = len(self.registers)
                self.registers.append(truth)
            self._place[result] = place
            self._ops.append(_Op(op, args, place, truth))
            for arg in dict.fromkeys(args):
                if self._last[arg] == number and arg in self._place:
                    free[self.registers[self._place[arg]]].append(self._place[arg])

    def _choice(self, node: Node) -> list[tuple[Any, str, tuple[Any, ...], bool]]:
        condition, yes, no = node.args
        steps: list[tuple[Any, str, tuple[Any, ...], bool]] = []
        mask = self._masks.get(condition.number)
        if mask is None:
            mask = self._masks[condition.number] = ("mask", condition.number)
            steps.append((mask, "mask", (condition,), False))
        if no.op == "const" and not no.value:
            return [*steps, (node, "bits", (yes, mask), False)]
        differ, chosen = ("differ", node.number), ("chosen", node.number)
        return [
            *steps, (differ, "xor", (yes, no), False), (chosen, "bits", (differ, mask), False),
            (node, "xor", (chosen, no), False),
        ]  # fmt: skip

    def bind(self, columns: dict[str, NDArray[Any]], length: int, pool: Pool) -> Bound:
        """The calls on these columns, each of that length, with the registers of a pool."""
        used = {True: 0, False: 0}
        registers = []
        for truth in self.registers:
            registers.append(pool.register(length, np.bool_ if truth else self.kind, used[truth]))
            used[truth] += 1

        def source(arg: Any) -> Any:
            if isinstance(arg, Node) and arg.op == "const":
                return np.bool_(arg.value) if arg.truth else self.kind(arg.value)
            if isinstance(arg, Node) and arg.op in ("field", "raw"):
                return columns[arg.value]
            return registers[self._place[arg]]

        calls = [self._call(op, [source(arg) for arg in op.args], registers[op.out]) for op in self._ops]
        return Bound(calls, [source(root) for root in self.roots])

    def _call(self, op: _Op, args: list[Any], out: NDArray[Any]) -> Call:
        if op.op == "mask":
            return np.negative, (args[0].view(np.int8), out)
        if op.op == "num":
            return np.positive, (args[0].view(np.int8), out)
        if op.op == "tru":
            return np.not_equal, (args[0], self.kind(0), out)
        if op.op == "not":
            return np.logical_not, (args[0], out)
        if op.op in ("xor", "bits"):
            return (np.bitwise_xor if op.op == "xor" else np.bitwise_and), (args[0], args[1], out)
        return _UFUNCS[op.op], (args[0], args[1], out)


class Pool:
    """Registers that all plans have in common: one plan is done with them before the next is run, and so they stay in
    the cache."""

    def __init__(self) -> None:
        self._registers: dict[tuple[int, Any], list[NDArray[Any]]] = {}

    def register(self, length: int, kind: Any, number: int) -> NDArray[Any]:
        """The register of that number, of so many lanes."""
        registers = self._registers.setdefault((length, kind), [])
        while number >= len(registers):
            registers.append(np.empty(length, kind))
        return registers[number]


class Bound(NamedTuple):
    """Calls that are ready to be made, and where their results then are."""

    calls: list[Call]
    results: list[Any]

    def run(self) -> list[Any]:
        """Make them."""
        for function, arguments in self.calls:
            function(*arguments)
        return self.results


class _Part:
    """What few lanes do: their columns are gathered, worked out and put back."""

    def __init__(self, roots: Sequence[Node], bits: int, pool: Pool) -> None:
        self.plan, self._pool = Plan(roots, bits), pool
        self._sizes: dict[int, tuple[dict[str, NDArray[Any]], Bound]] = {}

    def run(self, columns: dict[str, NDArray[Any]], rows: NDArray[np.intp]) -> list[Any]:
        """The roots in these rows."""
        size = FEWEST
        while size < len(rows):
            size *= 2
        found = self._sizes.get(size)
        if found is None:
            buffers = {name: np.zeros(size, self.plan.kind) for name in self.plan.fields}
            found = self._sizes[size] = buffers, self.plan.bind(buffers, size, self._pool)
        buffers, bound = found
        for name, buffer in buffers.items():
            columns[name].take(rows, out=buffer[: len(rows)], mode="clip")
        return [value[: len(rows)] if isinstance(value, np.ndarray) else value for value in bound.run()]


class _Turn:
    """One turn: who takes it is worked out for all lanes, what it does for those that do."""

    def __init__(self, lanes: Arrays, turn: LaneTurn) -> None:
        program = lanes.program
        self.turn, self.lanes = turn, lanes
        self.names = [name for name, _ in turn.writes]
        self.counts = [counter for counter, _ in turn.counts]
        told = [*(node for _, node in turn.counts), *turn.decision]
        self.first = Plan([turn.taken], program.bits).bind(lanes.columns, lanes.count, lanes.pool)
        self.part = _Part([*(node for _, node in turn.writes), *told], program.bits, lanes.pool)
        judged = turn.judged is not program.nodes.true
        self.judge = _Part([turn.judged], program.bits, lanes.pool) if judged else None

    def take(self) -> None:
        """Do it."""
        (taken,) = self.first.run()
        if not taken.any():
            return
        lanes, names = self.lanes, self.names
        rows = np.flatnonzero(taken)
        lanes.totals[0] += len(rows)
        results = self.part.run(lanes.columns, rows)
        for name, value in zip(names, results, strict=False):
            lanes.columns[name][rows] = value
        told = results[len(names) :]
        for counter, value in zip(self.counts, told, strict=False):
            lanes.totals[counter] += int(np.count_nonzero(np.broadcast_to(value, len(rows))))
        if self.turn.decision:
            lanes.decide(rows, told[len(self.counts) :])
        if self.judge is not None:
            (good,) = self.judge.run(lanes.columns, rows)
            lanes.broken[rows] |= np.logical_not(good)


class Arrays:
    """Many lanes, in lock step. The same words come out as from :class:`sim.mass.native.Native`."""

    def __init__(self, program: Program, count: int = LANES) -> None:
        self.program, self.count = program, count
        self.pool = Pool()
        kind = np.int8 if program.bits == 8 else np.int16
        names = [*program.columns, *(f"draw{index}" for index in range(program.words * NIBBLES))]
        memory = np.zeros((len(names), count), kind)
        self.columns: dict[str, NDArray[Any]] = dict(zip(names, memory, strict=True))
        self.busy = np.zeros(count, np.bool_)
        self.numbers = np.zeros(count, np.uint64)
        self.keys, self.digests, self.ages = (np.zeros(count, np.uint64) for _ in range(3))
        self._turns = [_Turn(self, turn) for turn in program.turns]
        self.broken = np.zeros(count, np.bool_)
        self._end = Plan([program.judged(), program.over], program.bits).bind(self.columns, count, self.pool)
        self.totals = [0] * len(program.counters)

    def start(self, seed: int, runs: int, *, keep: bool = False) -> None:
        """Begin a batch."""
        self._key, self._runs_end = draws.seed_key(seed), runs
        self.digest = self.runs = self.rounds = 0
        self.broken[:] = False
        self._next = min(runs, self.count)
        self.totals[:] = [0] * len(self.totals)
        self.kept = np.zeros(runs if keep else 1, np.uint64)
        self._keep = keep
        self.busy[:] = False
        for name, value in self.program.columns.items():
            self.columns[name][:] = value
        rows = np.arange(self._next)
        self._begin(rows, rows.astype(np.uint64))

    def _begin(self, rows: NDArray[np.intp], numbers: NDArray[np.uint64]) -> None:
        program = self.program
        for name, value in program.columns.items():
            self.columns[name][rows] = value
        keys = draws.run_key(self._key, numbers)
        drawn = draws.head(keys, len(program.schedule.model.initial))
        for name in program.started:
            self.columns[name][rows] = drawn.start
        self.columns[FAULTS_LEFT][rows] = drawn.faults
        self.keys[rows], self.numbers[rows] = keys, numbers
        self.digests[rows] = self.ages[rows] = 0
        self.busy[rows] = True

    @property
    def playing(self) -> bool:
        """Whether any run goes on."""
        return bool(self.busy.any())

    def play(self, rounds: int) -> Stop | None:
        """Go on for so many rounds, or to the first violation."""
        for _ in range(rounds):
            if not self.busy.any():
                return None
            found = self._round()
            if found is not None:
                return found
        return None

    def _round(self) -> Stop | None:
        self._draw()
        for turn in self._turns:
            turn.take()
        self.ages += self.busy
        left = self.columns[FAULTS_LEFT]
        np.subtract(left, left > 0, out=left, casting="unsafe")
        good, over = self._end.run()
        playing = self.busy
        over = over & playing
        bad = playing & (np.logical_not(good) | self.broken)
        late = playing & (self.ages > np.uint64(self.program.schedule.rounds_max)) & ~over
        if bad.any() or late.any():
            return Stop(self.numbers[bad].tolist(), self.numbers[late].tolist())
        if over.any():
            self._restart(np.flatnonzero(over))
        return None

    def _draw(self) -> None:
        words = self.program.words
        for number in range(words):
            mixed = draws.word(self.keys, self.ages * np.uint64(words) + np.uint64(number))
            parts = mixed.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
            for index in range(8):
                part = parts[:, index]
                for side, half in enumerate((part & 15, part >> 4)):
                    np.copyto(self.columns[f"draw{number * NIBBLES + 2 * index + side}"], half, casting="unsafe")
        if not self.busy.all():
            for index in range(words * NIBBLES):  # who has no run draws what lets nothing happen
                self.columns[f"draw{index}"][~self.busy] = 15

    def _restart(self, rows: NDArray[np.intp]) -> None:
        numbers = self.numbers[rows]
        self.digest = (self.digest + int(draws.sealed(self.digests[rows], numbers).sum(dtype=np.uint64))) & draws.MASK
        self.runs += len(rows)
        self.rounds += int(self.ages[rows].sum())
        if self._keep:
            self.kept[numbers.astype(np.intp)] = self.digests[rows]
        fresh = min(len(rows), self._runs_end - self._next)
        fresh = max(fresh, 0)
        self._begin(rows[:fresh], np.arange(self._next, self._next + fresh, dtype=np.uint64))
        self._next += fresh
        self.busy[rows[fresh:]] = False
        for name, value in self.program.columns.items():
            self.columns[name][rows[fresh:]] = value

    def decide(self, rows: NDArray[np.intp], decision: Sequence[Any]) -> None:
        """Fold a decision into the digests of these rows."""
        what = np.broadcast_to(decision[0], len(rows))
        code = np.zeros(len(rows), np.uint64)
        for value, shift in zip(decision, (0, 4, 8, 12, 20, 28, 36), strict=True):
            part = np.asarray(value, np.int64) & 255
            code |= part.astype(np.uint64) << np.uint64(shift)
        some = what != 0
        where = rows[some]
        self.digests[where] = draws.fold(self.digests[where], code[some])

    def stop_at(self, run: int) -> None:
        """Go on with the runs before this one only."""
        self._runs_end = min(self._runs_end, run)
        self.busy &= self.numbers < np.uint64(run)

    def tally(self) -> Tally:
        """What came of it so far."""
        counts = dict(zip(self.program.counters, self.totals, strict=True))
        return Tally(self.runs, self.rounds, self.digest, counts)
