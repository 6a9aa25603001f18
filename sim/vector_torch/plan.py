"""Expressions of a model as straight lines of torch calls: `sim.vector.plan` for a device.

A :class:`TorchPlan` computes roots in order, what they share once, into registers that are laid out beforehand and used
over and over. Every step is one call that writes where it is told, so nothing is allocated while running and nothing
waits for the device. A root may have a *home*: a tensor of its own into which it is computed, and where it stays.

This is eager torch: one kernel for each operation. What a launch costs is spread over the rows of a chunk, which on a
GPU are millions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sim.model.symbol import CONST, FIELD, Symbol, parts_of
from sim.vector.pack import Slot
from sim.vector.plan import number_type
from sim.vector_torch.device import Device, Tensor, Tensors

_CALLS = {
    "add": "add", "sub": "sub", "mul": "mul", "div": "floor_divide", "mod": "remainder", "min": "minimum",
    "max": "maximum", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "and": "bitwise_and",
    "or": "bitwise_or",
}  # fmt: skip
_WITH_NUMBER = {**_CALLS, "min": "clamp_max", "max": "clamp_min"}
"""The same where the right one is a number."""
_EXCHANGED = ("add", "mul", "min", "max", "eq", "ne")
"""Where left and right may be exchanged."""

Step = Callable[[list[Tensor], Tensors], None]
"""Computes one symbol: from registers and columns."""


class Pool:
    """Registers of ``rows_max`` rows for plans that never run at the same time."""

    def __init__(self, device: Device, rows_max: int) -> None:
        self.device = device
        self.rows_max = rows_max
        self.bits = device.empty(rows_max, device.torch.int64)
        self._registers: dict[Any, list[Tensor]] = {}

    def registers(self, kind: Any, count: int) -> list[Tensor]:
        """So many of a type."""
        made = self._registers.setdefault(kind, [])
        made += [self.device.empty(self.rows_max, kind) for _ in range(count - len(made))]
        return made[:count]


def pool_row_bytes(plans: Sequence[TorchPlan]) -> int:
    """What a pool for these plans takes for each row."""
    most: dict[Any, int] = {}
    for plan in plans:
        for kind, count in plan.needs().items():
            most[kind] = max(most.get(kind, 0), count)
    return 8 + sum(int(kind.itemsize) * count for kind, count in most.items())


class TorchPlan:
    """Computes roots, in order, over rows of packed states. :meth:`bind` has to be called before :meth:`run`.

    ``homes`` gives for every root the number of its home, or None. A root that is a constant is given as a number, and
    put nowhere.
    """

    def __init__(
        self, device: Device, roots: Sequence[Symbol], slots: dict[str, Slot], homes: Sequence[int | None] | None = None
    ) -> None:
        self.device, self.torch = device, device.torch
        self.roots = tuple(roots)
        self.homes = tuple(homes) if homes is not None else (None,) * len(self.roots)
        parts = parts_of(roots)
        self.number_type = number_type(parts)
        self.kind = getattr(self.torch, self.number_type.name)
        self._slots = slots
        self._homes = len([home for home in self.homes if home is not None])
        self._kinds: list[bool] = []
        self._place: dict[int, int] = {}
        self._program = self._compile()
        self._registers: list[Tensor] = []
        self._bits: Tensor = None
        self._bound: list[Tensor] = []
        self._rows = -1

    def needs(self) -> dict[Any, int]:
        """How many registers of each type it uses."""
        truths = sum(self._kinds)
        return {self.torch.bool: truths, self.kind: len(self._kinds) - truths}

    def bind(self, pool: Pool) -> None:
        """Take the registers from a pool. What other plans of the pool have computed is lost when this one runs."""
        free = {kind: pool.registers(kind, count) for kind, count in self.needs().items()}
        self._registers = [free[self.torch.bool if truth else self.kind].pop() for truth in self._kinds]
        self._bits = pool.bits

    def _compile(self) -> list[tuple[Symbol, list[Step], int | None]]:
        """For every root: the steps that it adds to those before, and the register that then holds it."""
        fresh = self._fresh()
        last_use: dict[int, int] = {}
        for position, (root, parts) in enumerate(zip(self.roots, fresh, strict=True)):
            for symbol in (*parts, root):
                last_use |= {used.number: position for used in (symbol, *symbol.args)}
        free: dict[bool, list[int]] = {True: [], False: []}
        alive: dict[int, bool] = {}
        program = []
        for position, (root, parts) in enumerate(zip(self.roots, fresh, strict=True)):
            steps, home = [], self.homes[position]
            for symbol in parts:
                if symbol.kind != CONST:
                    at_home = home is not None and symbol is root
                    self._place[symbol.number] = home if at_home and home is not None else self._register(symbol, free)
                    steps.append(self._step(symbol))
                    if not at_home:
                        alive[symbol.number] = symbol.truth
            if home is not None and root.kind != CONST and self._place[root.number] != home:
                steps.append(_copy_step(self._place[root.number], home))
            program.append((root, steps, None if root.kind == CONST else self._place[root.number]))
            for number in [number for number in alive if last_use[number] == position]:
                free[alive.pop(number)].append(self._place[number])
        return program

    def _fresh(self) -> list[list[Symbol]]:
        """For every root the parts that no root before it has."""
        seen: dict[int, bool] = {}
        result = []
        for root in self.roots:
            result.append([symbol for symbol in parts_of([root]) if symbol.number not in seen])
            seen |= {symbol.number: True for symbol in result[-1]}
        return result

    def _register(self, symbol: Symbol, free: dict[bool, list[int]]) -> int:
        """A register that is free, numbered after the homes."""
        if free[symbol.truth]:
            return free[symbol.truth].pop()
        self._kinds.append(symbol.truth)
        return self._homes + len(self._kinds) - 1

    def _step(self, symbol: Symbol) -> Step:
        out = self._place[symbol.number]
        if symbol.kind == FIELD:
            return self._field_step(self._slots[str(symbol.value)], out)
        if symbol.kind == "where":
            return self._where_step(symbol, out)
        left, right = symbol.args
        kind = symbol.kind
        if left.kind == CONST and kind in _EXCHANGED:
            left, right = right, left
        if right.kind == CONST:
            call, number = getattr(self.torch, _WITH_NUMBER[kind]), _number(right)
            at = self._place[left.number]
            return lambda registers, columns: call(registers[at], number, out=registers[out])
        call = getattr(self.torch, _CALLS[kind])
        (one, one_constant), (other, _) = self._source(left), self._source(right)
        if one_constant is not None:
            return lambda registers, columns: call(one_constant, registers[other], out=registers[out])
        return lambda registers, columns: call(registers[one], registers[other], out=registers[out])

    def _source(self, symbol: Symbol) -> tuple[int, Tensor | None]:
        """The register of a symbol, or a constant of no dimension."""
        if symbol.kind == CONST:
            kind = self.torch.bool if symbol.truth else self.kind
            return -1, self.torch.tensor(_number(symbol), dtype=kind, device=self.device.device)
        return self._place[symbol.number], None

    def _where_step(self, symbol: Symbol, out: int) -> Step:
        condition = self._place[symbol.args[0].number]
        (yes, yes_constant), (no, no_constant) = self._source(symbol.args[1]), self._source(symbol.args[2])
        where = self.torch.where

        def step(registers: list[Tensor], columns: Tensors) -> None:
            first = registers[yes] if yes_constant is None else yes_constant
            second = registers[no] if no_constant is None else no_constant
            where(registers[condition], first, second, out=registers[out])

        return step

    def _field_step(self, slot: Slot, out: int) -> Step:
        torch, word, shift, mask, low = self.torch, slot.word, slot.shift, (1 << slot.bits) - 1, slot.low

        def step(registers: list[Tensor], columns: Tensors) -> None:
            target = registers[out]
            if not mask:
                target.fill_(low)
                return
            bits = columns[word]
            if shift:
                bits = torch.bitwise_right_shift(bits, shift, out=self._bits[: len(bits)])
            target.copy_(torch.bitwise_and(bits, mask, out=self._bits[: len(bits)]))  # modulo the width, then as below
            if low:
                target.add_(low)

        return step

    def run(self, columns: Tensors, homes: Sequence[Tensor] = ()) -> Iterator[Any]:
        """The value of each root in order: a tensor that holds until the next is asked for (that of a home: for good),
        or a constant."""
        rows = len(columns[0])
        if rows != self._rows:
            self._bound = [register[:rows] for register in self._registers]
            self._rows = rows
        registers = [*homes, *self._bound]
        for root, steps, place in self._program:
            for step in steps:
                step(registers, columns)
            yield int(root.value) if place is None else registers[place]


def _number(symbol: Symbol) -> int | bool:
    return bool(symbol.value) if symbol.truth else int(symbol.value)


def _copy_step(source: int, target: int) -> Step:
    return lambda registers, columns: registers[target].copy_(registers[source])
