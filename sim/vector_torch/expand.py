"""All successors of many packed states at once, on a device.

Guards and clauses are computed for a whole chunk into one table of truth values, a row for each action. Then the host
learns, in one answer, how often each action may be taken, whether a clause is broken, and how many steps there are.
From there on every size is known, and the successors of all actions are made without waiting for the device again: what
actions set to constants by one ``and`` and one ``or`` for all of them, what they compute by a few calls for each.

On a GPU both steps are a kernel each (`sim.vector_torch.fused`); what is here is what these are held against, and what
is done where there are none.

What is rare is left to the numpy engine, on the few rows that it is about: which clause is broken, and which value
leaves its bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fsm.errors import LocalError
from sim.model.form import Action, Field, Model
from sim.model.symbol import CONST, FIELD, Symbol, Table
from sim.vector.graph import Graph
from sim.vector.pack import Slot
from sim.vector_torch import fused as torch_fused
from sim.vector_torch.device import Device, Sizes, Tensor, Tensors
from sim.vector_torch.plan import Pool, TorchPlan, pool_row_bytes
from sim.vector_torch.rows import part, size
from sim.vector_torch.words import signed, to_numpy

_ALL_BITS = (1 << 64) - 1
COMPARED_CHUNKS = 16
SEGMENT_CHUNKS = 2
"""Successors are made for so many chunks' rows at once."""


class Seen(NamedTuple):
    """What a chunk comes to. ``moves`` holds, action by action, action number x rows of the chunk + row for every step
    to another state; those of action ``a`` end at ``ends[a]``. ``broken`` is the first row in which something is
    wrong, -1 if none is."""

    moves: Tensor
    ends: list[int]
    transitions: int
    broken: int


class Segment(NamedTuple):
    """Moves ``low`` to ``high`` of a chunk, which are those of some actions, from ``first`` to before ``last``."""

    first: int
    last: int
    low: int
    high: int


class _Effect:
    """The update of one action: bits to clear and to set, and fields to compute."""

    def __init__(self, device: Device, model: Model, action: Action, table: Table, slots: dict[str, Slot]) -> None:
        self.clear: dict[int, int] = {}
        self.fixed: dict[int, int] = {}
        self.wrong = False
        """Whether it leaves its bounds wherever it is taken."""
        self.computed: list[tuple[Field, Slot, Symbol]] = []
        changes = table.symbol(False)
        for name, symbol in table.update(action).items():
            field, slot = model.field(name), slots[name]
            if symbol.kind == FIELD and symbol.value == name:
                continue
            self.clear[slot.word] = self.clear.get(slot.word, _ALL_BITS) & ~slot.mask
            if symbol.kind != CONST:
                self.computed.append((field, slot, symbol))
                self.wrong |= symbol.high < field.low or symbol.low > field.high
                continue
            changes = table.apply("or", changes, table.apply("ne", table.fields[name], symbol))
            if field.low <= int(symbol.value) <= field.high:
                bits = (int(symbol.value) - slot.low) << slot.shift
                self.fixed[slot.word] = self.fixed.get(slot.word, 0) | bits
            else:
                self.wrong = True
        guard = table.guard(action)
        self.moving = guard if self.computed else table.apply("and", guard, changes)
        """Where the action is taken and may lead to another state."""
        self.counted = guard if self.moving is not guard else None
        """The guard, where that is something else."""
        self.plan = TorchPlan(device, [s for _, _, s in self.computed], slots) if self.computed else None
        self.may_leave = any(s.low < field.low or s.high > field.high for field, _, s in self.computed)


class TorchExpander:
    """Makes successors, chunk by chunk, of a model that ``graph`` has read."""

    def __init__(
        self, device: Device, graph: Graph, *, deadlock: bool, memory_bytes: int | None, fused: bool = True
    ) -> None:
        self.device, self.torch, self.graph = device, device.torch, graph
        model, slots = graph.model, graph.packing.slots
        self.words = graph.packing.words
        self._deadlock = deadlock
        self._effects = [_Effect(device, model, action, graph.table, slots) for action in model.actions]
        self._clauses = len(model.clauses)
        roots: list[Symbol] = [graph.table.clause(clause) for clause in model.clauses]
        homes: list[int | None] = [None] * len(roots)
        for number, effect in enumerate(self._effects):
            roots.append(effect.moving)
            homes.append(number)
            if effect.counted is not None or deadlock:
                roots.append(effect.moving if effect.counted is None else effect.counted)
                homes.append(None)
        self._plan = TorchPlan(device, roots, slots, homes)
        plans = [self._plan, *(effect.plan for effect in self._effects if effect.plan is not None)]
        actions = len(self._effects)
        row_bytes = pool_row_bytes(plans) + actions + 9
        self.sizes: Sizes = device.sizes(self.words, row_bytes, memory_bytes)
        self.bytes = row_bytes * self.sizes.rows
        """What registers and the table of truth values take."""
        self._allocate(plans)
        self.kernels = torch_fused.compiled(device, self._written) if fused else None
        self._chunks = 0

    def _allocate(self, plans: list[TorchPlan]) -> None:
        torch, rows = self.torch, self.sizes.rows
        pool = Pool(self.device, rows)
        for plan in plans:
            plan.bind(pool)
        self._bits = pool.bits
        self._table = self.device.empty(max(len(self._effects), 1) * rows, torch.bool)
        self._degree = self.device.empty(rows, torch.int32)
        self._sound = self.device.empty(rows, torch.bool)
        self._every = torch.arange(rows, dtype=torch.int32, device=self.device.device)
        self._starts = torch.arange(1, len(self._effects) + 1, device=self.device.device)
        self._may_leave = any(effect.may_leave for effect in self._effects)
        self._left = torch.zeros(1, dtype=torch.bool, device=self.device.device)
        number, effects, words = self.device.numbers, self._effects, range(self.words)
        self._clear = [number([signed(effect.clear.get(word, _ALL_BITS)) for effect in effects]) for word in words]
        self._fixed = [number([signed(effect.fixed.get(word, 0)) for effect in effects]) for word in words]
        self._set = [any(word in effect.clear for effect in effects) for word in words]

    def _written(self) -> tuple[str, str]:
        """The texts of the kernels that do the same at once."""
        table, slots = self.graph.table, self.graph.packing.slots
        clauses = [table.clause(clause) for clause in self.graph.model.clauses]
        look = torch_fused.look_text(clauses, self._effects, slots, self.words, deadlock=self._deadlock)
        return look, torch_fused.make_text(self._effects, slots, self.words)

    # --- what there is to do ----------------------------------------------------------------------------

    def look(self, columns: Tensors) -> Seen:
        """Compute guards and clauses of at most ``sizes.rows`` rows."""
        rows, actions = size(columns), len(self._effects)
        table = self._table[: actions * rows].view(actions, rows)
        degree, sound = self._degree[:rows].zero_(), self._sound[:rows].fill_(True)
        self._chunks += 1
        if self.kernels is None or not self._fused_look(columns, table, degree, sound):
            self._evaluate(columns, list(table), degree, sound)
        moves = table.view(-1).nonzero().squeeze(1)
        broken = sound.logical_not_()
        if self._deadlock:
            broken.logical_or_(degree == 0)
        first = self.torch.where(broken, self._every[:rows], rows).min()
        ends = (
            self.torch.searchsorted(moves, self._starts * rows) if len(moves) else self.torch.zeros_like(self._starts)
        )
        answer = self.torch.cat((ends, degree.sum(dtype=ends.dtype).view(1), first.to(ends.dtype).view(1))).tolist()
        *found, transitions, at = answer
        for number, effect in enumerate(self._effects):
            count = found[number] - (found[number - 1] if number else 0)
            if effect.wrong and count:
                self._raise_left(columns)
            if effect.counted is None and not self._deadlock:
                transitions += count
        return Seen(moves, found, transitions, at if at < rows else -1)

    def _fused_look(self, columns: Tensors, table: Tensor, degree: Tensor, sound: Tensor) -> bool:
        """By the kernel, and on some chunks by torch too; whether that can be done at all."""
        assert self.kernels is not None
        try:
            self.kernels.look(columns, table, degree, sound)
        except RuntimeError:
            if self._chunks > 1:
                raise
            self.kernels = None  # it could be compiled, but not be launched: all goes on without
            return False
        if self._is_compared:
            mine = [tensor.clone() for tensor in (table, degree, sound)]
            self._evaluate(columns, list(table), degree.zero_(), sound.fill_(True))
            self._compare("guards and clauses", mine, [table, degree, sound])
        return True

    def _evaluate(self, columns: Tensors, table: list[Tensor], degree: Tensor, sound: Tensor) -> None:
        """Clauses into ``sound``, guards into ``table``, and those that are to be counted added up in ``degree``."""
        values = self._plan.run(columns, table)
        for _ in range(self._clauses):
            truths = next(values)
            if self.torch.is_tensor(truths):
                sound.logical_and_(truths)
            elif not truths:
                sound.fill_(False)
        for number, effect in enumerate(self._effects):
            moving = next(values)
            if not self.torch.is_tensor(moving):
                table[number].fill_(bool(moving))
            if effect.counted is not None or self._deadlock:
                degree.add_(next(values))

    def clause_of(self, row: Tensors) -> int:
        """The first clause that one state breaks, -1 if it breaks none (and has no successor)."""
        told = self.graph.expander.judged(to_numpy(row))
        return next((number for number, truths in enumerate(told) if not truths[0]), -1)

    # --- doing it -----------------------------------------------------------------------------------------

    def segments(self, seen: Seen) -> Iterator[Segment]:
        """The moves of a chunk, as many actions together as fit."""
        most, first, low, end = SEGMENT_CHUNKS * self.sizes.rows, 0, 0, 0
        for action, high in enumerate(seen.ends):
            if high - low > most:
                yield Segment(first, action, low, end)
                first, low = action, end
            end = high
        if end > low:
            yield Segment(first, len(seen.ends), low, end)

    def make(self, columns: Tensors, seen: Seen, segment: Segment, out: Tensors) -> None:
        """The states after the moves of a segment into ``out``."""
        if self.kernels is None:
            self._make(columns, seen, segment, out)
            return
        if not self._is_compared:
            self.kernels.make(columns, seen.moves[segment.low : segment.high], out, self._left)
            return
        earlier = self._left.clone()
        self.kernels.make(columns, seen.moves[segment.low : segment.high], out, self._left.zero_())
        mine, left = [column.clone() for column in out], self._left.clone()
        self._left.zero_()
        self._make(columns, seen, segment, out)
        self._compare("updates", [left], [self._left])
        if not bool(left):  # a value that left its bounds may lie anywhere
            self._compare("updates", mine, list(out))
        self._left |= earlier

    @property
    def _is_compared(self) -> bool:
        """Whether this chunk is one of those that are computed both ways: the first, and ever fewer."""
        return self._chunks <= COMPARED_CHUNKS or not self._chunks & (self._chunks - 1)

    def _compare(self, what: str, mine: list[Tensor], torch_s: list[Tensor]) -> None:
        if not all(self.torch.equal(one, other) for one, other in zip(mine, torch_s, strict=True)):
            raise self._differing(what)

    def _differing(self, what: str) -> LocalError:
        return LocalError(
            f"model '{self.graph.model.name}' on {self.device.name}: the kernels written for its {what} and torch's "
            "own operations differ. No answer can be trusted that rests on them; search with fused=False"
        )

    def _make(self, columns: Tensors, seen: Seen, segment: Segment, out: Tensors) -> None:
        torch, rows = self.torch, size(columns)
        moves = seen.moves[segment.low : segment.high]
        actions = torch.div(moves, rows, rounding_mode="floor")
        at = moves - actions * rows
        before = tuple(column.index_select(0, at) for column in columns)
        for word, target in enumerate(out):
            if self._set[word]:
                torch.bitwise_and(before[word], self._clear[word].index_select(0, actions), out=target)
                target |= self._fixed[word].index_select(0, actions)
            else:
                target.copy_(before[word])
        for action in range(segment.first, segment.last):
            low, high = seen.ends[action - 1] if action else 0, seen.ends[action]
            effect = self._effects[action]
            if effect.plan is not None and high > low:
                here = slice(low - segment.low, high - segment.low)
                self._compute(effect, tuple(word[here] for word in before), tuple(word[here] for word in out))

    def _compute(self, effect: _Effect, before: Tensors, out: Tensors) -> None:
        """Put the computed fields of one action into rows in which their bits are 0."""
        assert effect.plan is not None
        bits = self._bits[: size(before)]
        for (field, slot, symbol), values in zip(effect.computed, effect.plan.run(before), strict=True):
            if symbol.low < field.low:
                self._left |= (values < field.low).any()
            if symbol.high > field.high:
                self._left |= (values > field.high).any()
            if not slot.bits:
                continue
            bits.copy_(values)
            if slot.low:
                bits -= slot.low
            if slot.shift:
                bits <<= slot.shift
            target = out[slot.word]
            target |= bits

    def check(self, columns: Tensors) -> None:
        """Raise LocalError if an action has left the bounds of a field on a chunk whose successors were made."""
        if self._may_leave and bool(self._left):
            self._raise_left(columns)

    def _raise_left(self, columns: Tensors) -> None:
        words, step = to_numpy(columns), self.graph.expander.rows_max
        for low in range(0, size(columns), step):
            for _ in self.graph.expander.expand(part(words, low, low + step)):
                pass
        raise self._differing("updates")
