"""The one door through which nondeterminism enters.

Whatever a run leaves open (which action comes next, whether a fault strikes, which blocks an allocator gives) is asked
of an object with one method, ``pick``. Who answers decides what the run is: drawn from a seed, drawn by a property
test, read from a trace, or enumerated. Code on this side of the door never draws, and code behind it never asks
anything else; that is why the same answers always give the same run.

An answer of 0 is always the tamest one: no fault, the first action, the first block. So shorter and smaller lists of
answers are simpler runs, and shrinking a run is shrinking a list.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from fsm.allocators import Choices
from fsm.errors import LocalError
from fsm.trace import Pick

SEED_MAX = 2**63 - 1
"""The largest seed."""

_RARE = {"offer": 0.125}
"""What a seeded run should not do at every chance: an allocator that refuses at once has no refusals left for later."""


class Seeded:
    """Answers drawn from a seed, alike on every machine and Python version; raises LocalError for a negative seed."""

    __slots__ = ("_draw", "seed")

    def __init__(self, seed: int) -> None:
        if not 0 <= seed <= SEED_MAX:
            raise LocalError(f"seed {seed}: expected 0 to {SEED_MAX}")
        self.seed = seed
        # Of all that `random` offers, only the sequence of random() is promised to stay as it is.
        self._draw = random.Random(seed).random

    def pick(self, options: int, label: str) -> int:
        """Any of the options alike; of what should be rare, mostly the first."""
        if label in _RARE and self._draw() >= _RARE[label]:
            return 0
        return int(self._draw() * options)


class Drawn:
    """Answers drawn by a property test: ``draw(options, label)`` gives a number from 0 to ``options - 1``."""

    __slots__ = ("_draw",)

    def __init__(self, draw: Callable[[int, str], int]) -> None:
        self._draw = draw

    def pick(self, options: int, label: str) -> int:
        """What the test draws; nothing is drawn where there is nothing to choose."""
        return self._draw(options, label) if options > 1 else 0


class Replayed:
    """Answers read from a trace, strictly: another question than was asked then is an error."""

    __slots__ = ("_at", "_picks")

    def __init__(self, picks: Sequence[Pick]) -> None:
        self._picks = picks
        self._at = 0

    def pick(self, options: int, label: str) -> int:
        """The answer of then. Raises LocalError if this question was not the next one."""
        if self._at == len(self._picks):
            raise LocalError(f"asked to choose '{label}' of {options}, and the trace has no choice left here")
        was = self._picks[self._at]
        if (was.label, was.options) != (label, options):
            raise LocalError(
                f"asked to choose '{label}' of {options}, and the trace chose '{was.label}' of {was.options} here"
            )
        if not 0 <= was.chosen < options:
            raise LocalError(f"the trace chose {was.chosen} for '{label}': expected 0 to {options - 1}")
        self._at += 1
        return was.chosen

    def finish(self) -> None:
        """Raises LocalError if the trace holds answers to questions that were not asked."""
        if self._at < len(self._picks):
            left = self._picks[self._at]
            raise LocalError(f"the trace chose '{left.label}' of {left.options} here, and nobody asked")


class Recording:
    """Passes questions on, and keeps the answers. ``picks`` may be emptied between steps."""

    __slots__ = ("_inner", "picks")

    def __init__(self, inner: Choices) -> None:
        self._inner = inner
        self.picks: list[Pick] = []

    def pick(self, options: int, label: str) -> int:
        """The answer of the choices behind."""
        chosen = self._inner.pick(options, label)
        self.picks.append(Pick(label, options, chosen))
        return chosen


class Scripted:
    """Answers by a script: a prefix, then zeros. An answer that is too large is cut to the last option.

    ``picks`` holds the questions met and the answers given, ``advance`` goes to the next combination: so all answers
    to all questions can be tried, without knowing beforehand how many there will be.
    """

    __slots__ = ("picks", "prefix")

    def __init__(self, prefix: Sequence[int] = ()) -> None:
        self.prefix = list(prefix)
        self.picks: list[Pick] = []

    def pick(self, options: int, label: str) -> int:
        """The scripted answer, or 0 behind the end of the script."""
        at = len(self.picks)
        chosen = min(self.prefix[at], options - 1) if at < len(self.prefix) else 0
        self.picks.append(Pick(label, options, chosen))
        return chosen

    def restart(self) -> None:
        """Answer from the first question on again."""
        self.picks = []

    def advance(self) -> bool:
        """Go to the next combination of answers; ``False`` when all have been tried."""
        while self.picks and self.picks[-1].chosen == self.picks[-1].options - 1:
            self.picks.pop()
        if not self.picks:
            return False
        self.prefix = [pick.chosen for pick in self.picks]
        self.prefix[-1] += 1
        return True


__all__ = ["SEED_MAX", "Choices", "Drawn", "Recording", "Replayed", "Scripted", "Seeded"]
