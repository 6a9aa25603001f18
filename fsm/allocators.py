"""Which free blocks a grant gets, and how many: strategies over a free list.

The protocol must be right whatever the allocator does, since block numbers say nothing about progress. So
there is one strategy for each thing that an allocator has been seen to do, and an adversary for the rest.
None holds the free list: the ledger does, and passes it in, oldest first. None draws at random: where a
strategy is free to choose, it asks the ``choices`` passed in, which the simulator seeds, Hypothesis draws,
the checker enumerates and a replay reads from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, Protocol

from fsm.errors import LocalError

Kind = Callable[[int], Hashable]
"""Tells blocks apart: free blocks of one kind are interchangeable, so only one of them is worth trying."""


class Choices(Protocol):
    """The door through which nondeterminism enters."""

    def pick(self, options: int, label: str) -> int:
        """A number from 0 to ``options - 1``; ``label`` says what is being chosen."""


class FirstChoice:
    """Always 0: for whoever uses a strategy that has nothing to choose."""

    def pick(self, options: int, label: str) -> int:
        """The first option."""
        return 0


class Allocator(Protocol):
    """What the block ledger asks of a strategy."""

    name: str

    def offer(self, free: int, choices: Choices) -> int:
        """How many of the ``free`` blocks it is willing to give now."""

    def take(
        self, free: tuple[int, ...], count: int, room: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[int, ...]:
        """Chooses ``count`` different blocks of ``free``, which has at least as many, oldest first."""

    def given(self, room: int, blocks: tuple[int, ...]) -> None:
        """Is told that the room has got these blocks."""

    def forget(self, room: int) -> None:
        """Is told that the room is over; nothing need be remembered of it."""

    def save(self) -> Hashable:
        """All that it remembers."""

    def load(self, saved: Any) -> None:
        """Goes back to what ``save`` returned."""


class Fifo:
    """The block that was freed first comes first: blocks come back as late as possible."""

    name = "fifo"

    def offer(self, free: int, choices: Choices) -> int:
        """All of them."""
        return free

    def take(
        self, free: tuple[int, ...], count: int, room: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[int, ...]:
        """The first of the list."""
        return free[:count]

    def given(self, room: int, blocks: tuple[int, ...]) -> None:
        """Remembers nothing."""

    def forget(self, room: int) -> None:
        """Remembers nothing."""

    def save(self) -> Hashable:
        """Nothing."""
        return ()

    def load(self, saved: Any) -> None:
        """Nothing to go back to."""


class Lifo(Fifo):
    """The block that was freed last comes first: a freed block is back in use at once."""

    name = "lifo"

    def take(
        self, free: tuple[int, ...], count: int, room: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[int, ...]:
        """The last of the list, backwards."""
        return free[::-1][:count]


class _Remembering(Fifo):
    """Knows which blocks each room was given last."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[int, ...]] = {}

    def given(self, room: int, blocks: tuple[int, ...]) -> None:
        """Remembers them, and no longer those before."""
        self._last[room] = blocks

    def forget(self, room: int) -> None:
        """Forgets the room's; it need not have any."""
        self._last.pop(room, None)

    def save(self) -> Hashable:
        """Rooms and their blocks, in order of the rooms: the order of events does not matter."""
        return tuple(sorted(self._last.items()))

    def load(self, saved: Any) -> None:
        """Takes over what was saved."""
        self._last = dict(saved)


class SameAgain(_Remembering):
    """A room gets the very blocks that it held last, in the same order, as far as they are free."""

    name = "same-again"

    def take(
        self, free: tuple[int, ...], count: int, room: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[int, ...]:
        """Those held last, then the others, oldest first."""
        last = self._last.get(room, ())
        again = [block for block in last if block in free]
        return tuple(again + [block for block in free if block not in last])[:count]


class Disjoint(_Remembering):
    """A room gets blocks that it did not hold last, as far as there are others."""

    name = "disjoint"

    def take(
        self, free: tuple[int, ...], count: int, room: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[int, ...]:
        """Others, oldest first, then those held last, oldest first."""
        last = self._last.get(room, ())
        return tuple(sorted(free, key=last.__contains__))[:count]


class Stingy(Fifo):
    """Gives a few blocks at a time, so that even a short sequence needs many grants."""

    name = "stingy"

    def __init__(self, blocks_max: int = 1) -> None:
        """``blocks_max`` is the most that it offers at once; raises :class:`LocalError` below 1."""
        if blocks_max < 1:
            raise LocalError(
                f"stingy: blocks_max is {blocks_max}, but an allocator must give at least 1 block"
            )
        self._blocks_max = blocks_max

    def offer(self, free: int, choices: Choices) -> int:
        """At most ``blocks_max``."""
        return min(free, self._blocks_max)


class Adversary(Fifo):
    """Chooses as badly as the choices make it: any block, and now and then fewer than it could give, or none.

    It may give fewer ``refusals_max`` times, after which it gives all that are free. Without such a bound no
    request would have to end.
    """

    name = "adversary"

    def __init__(self, refusals_max: int = 1) -> None:
        """Raises :class:`LocalError` for a negative budget."""
        if refusals_max < 0:
            raise LocalError(f"adversary: refusals_max is {refusals_max}, but a budget cannot be negative")
        self._refusals_left = refusals_max

    def offer(self, free: int, choices: Choices) -> int:
        """All of them, or, as long as there is budget, as many fewer as is picked."""
        if not self._refusals_left or not free:
            return free
        fewer = choices.pick(free + 1, "offer")
        if fewer:
            self._refusals_left -= 1
        return free - fewer

    def take(
        self, free: tuple[int, ...], count: int, room: int, choices: Choices, kind: Kind | None = None
    ) -> tuple[int, ...]:
        """Picks block by block: first a kind among those left, then that kind's first block."""
        left = list(free)
        taken = []
        for _ in range(count):
            block = left[0]
            firsts = left if kind is None else _first_of_each_kind(left, kind)
            if len(firsts) > 1:
                block = firsts[choices.pick(len(firsts), "block")]
            left.remove(block)
            taken.append(block)
        return tuple(taken)

    def save(self) -> Hashable:
        """The budget that is left."""
        return self._refusals_left

    def load(self, saved: Any) -> None:
        """Takes over the budget that was left."""
        self._refusals_left = saved


def _first_of_each_kind(blocks: list[int], kind: Kind) -> list[int]:
    firsts: dict[Hashable, int] = {}
    for block in blocks:
        firsts.setdefault(kind(block), block)
    return list(firsts.values())


ALLOCATORS: Final[dict[str, Callable[..., Allocator]]] = {
    "fifo": Fifo,
    "lifo": Lifo,
    "same-again": SameAgain,
    "disjoint": Disjoint,
    "stingy": Stingy,
    "adversary": Adversary,
}
"""Every strategy by name."""


def make_allocator(name: str, **options: int) -> Allocator:
    """A new allocator of that name: ``make_allocator("stingy", blocks_max=2)``.

    Raises :class:`LocalError` for a name or an option that does not exist.
    """
    factory = ALLOCATORS.get(name)
    if factory is None:
        raise LocalError(f"there is no allocator '{name}'; there are {', '.join(ALLOCATORS)}")
    try:
        return factory(**options)
    except TypeError as error:
        raise LocalError(f"allocator '{name}' cannot be made with {options}: {error}") from error
