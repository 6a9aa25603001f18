"""Mass simulation: very many random runs of the protocol model, in lanes that go in lock step.

Each run is a function of the sizes, the seed and its number alone: random numbers are counted, not kept
(:mod:`sim.mass.draws`). What a run may do is :mod:`sim.mass.schedule`; after each turn of each
run every clause of the invariant is judged that speaks of what the turn changed, or all at the end of each round. A run
that does not end is L1. Of what is decided each run keeps a digest; the digest of a batch is a sum over its runs, each
bound to its number, so it depends neither on how many lanes there are nor on what runs them: numpy, or machine code
made by LLVM.

A batch that breaks something names the first run that does, which is then made again alone, step by step
(:mod:`sim.mass.replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from fsm.errors import LocalError
from sim.choices import SEED_MAX
from sim.engines.simulate import no_clock
from sim.mass import native
from sim.mass.arrays import FEWEST, LANES, Arrays
from sim.mass.program import STEPS, Program, Stop, Tally, make_program
from sim.mass.replay import RunReplay, replay_run
from sim.mass.schedule import Schedule, mass_schedule
from sim.model.protocol_bounded import Bounds
from sim.model.protocol_rules import PROTOCOL_RULES, ModelRules
from sim.vector import code

RUNS_MAX = 1 << 40
USUAL = Bounds(rooms=2, blocks=2, size=3, crashes=1)
"""The size that is simulated if none is asked for: two requests of 3 tokens that share 2 blocks of one, so that there
are resumes and waits; faults, and one crash of the sender."""

ENGINES = ("llvm", "numpy")
ROUNDS = 1 << 12
"""Rounds between two reports of a group of compiled lanes."""
ARRAY_ROUNDS = 8
COMPILED_RUNS = 100_000
"""From so many runs on it pays to compile."""


class Lanes(Protocol):
    """What runs a program: :class:`Arrays` or :class:`native.Native`."""

    kept: Any
    """The digest of each run, if ``start`` was told to keep them."""

    @property
    def playing(self) -> bool:
        """Whether any run goes on."""

    def start(self, seed: int, runs: int, *, keep: bool = False) -> None:
        """Begin a batch."""

    def play(self, rounds: int) -> Stop | None:
        """Go on for so many rounds, or to the first violation."""

    def stop_at(self, run: int) -> None:
        """Go on with the runs before this one only."""

    def tally(self) -> Tally:
        """What came of it so far."""


@dataclass(frozen=True)
class MassResult:
    """The answer. ``verdict`` is ``holds``, ``violated`` or ``unknown`` (something that could happen never did: it is
    in ``missed``). ``digest`` is empty for a batch that was stopped. ``replay`` is the run that broke something."""

    verdict: str
    bounds: Bounds
    seed: int
    runs: int
    lifecycles: int
    rounds: int
    turns: int
    digest: str
    sometimes: dict[str, int]
    missed: tuple[str, ...]
    engine: str
    judged: str
    clauses: int
    replay: RunReplay | None = None
    property: str = ""
    text: str = ""
    prepared_s: float = 0.0
    elapsed_s: float = 0.0
    coverage: str = "sampled"


class Mass:
    """A size, ready to be simulated. ``engine`` is ``llvm``, ``numpy``, or empty: LLVM where it is there and there are
    runs enough to pay for compiling.

    Raises LocalError for a size that is not held, or an unknown engine.
    """

    def __init__(
        self, bounds: Bounds = USUAL, rules: ModelRules = PROTOCOL_RULES, *, engine: str = "", each_turn: bool = True
    ) -> None:
        if engine and engine not in ENGINES:
            raise LocalError(f"there is no engine '{engine}'; there are {', '.join(ENGINES)}")
        self.engine = engine
        self.schedule: Schedule = mass_schedule(bounds, rules)
        self.program: Program = make_program(self.schedule, each_turn=each_turn)
        self.lanes: Lanes | None = None
        self.prepared_s = 0.0

    def prepare(self, runs: int, clock: Callable[[], float] = no_clock, say: native.Say = None) -> Lanes:
        """What the runs are made on, made once; ``say`` is told what is under way.

        Raises LocalError for an engine that is not installed.
        """
        began = clock()
        if self.lanes is None:
            if not self.engine:
                self.engine = "llvm" if code.available() and runs >= COMPILED_RUNS else "numpy"
            count = min(LANES, max(runs, FEWEST))
            if self.engine == "llvm":
                self.lanes = native.Native(self.program, say)
            else:
                self.lanes = Arrays(self.program, count)
            self.prepared_s = clock() - began
        return self.lanes

    def run(
        self,
        seed: int = 0,
        runs: int = 1000,
        *,
        keep: bool = False,
        progress: Callable[[int, int], None] | None = None,
        clock: Callable[[], float] = no_clock,
    ) -> MassResult:
        """Runs 0 to ``runs - 1`` of a seed, or up to the first that breaks something. ``keep`` keeps the digest of each
        run in ``lanes.kept``. Raises LocalError for numbers out of range."""
        check_batch(seed, runs)
        lanes = self.prepare(runs, clock)
        began = clock()
        lanes.start(seed, runs, keep=keep)
        first: int | None = None
        rounds = ROUNDS if self.engine == "llvm" else ARRAY_ROUNDS
        while lanes.playing:
            stop = lanes.play(rounds)
            if stop is not None:
                first = min([*stop.broken, *stop.late])
                lanes.stop_at(first)
            if progress is not None:
                progress(lanes.tally().runs, runs)
        return self._result(lanes.tally(), seed, runs, first, clock() - began)

    def replay(self, seed: int, run: int, *, judge: bool = True) -> RunReplay:
        """One run alone. Raises LocalError if model, turns and objects do not agree."""
        check_batch(seed, run + 1)
        return replay_run(self.schedule, seed, run, self.program.words, judge=judge)

    def _result(self, tally: Tally, seed: int, runs: int, first: int | None, elapsed_s: float) -> MassResult:
        counts = dict(tally.counts)
        turns = counts.pop(STEPS)
        replay = self.replay(seed, first) if first is not None else None
        missed = tuple(name for name in expected(self.schedule.bounds, counts) if not counts[name])
        verdict = "violated" if replay is not None else ("unknown" if missed else "holds")
        property, text = _finding(replay, self.schedule) if replay is not None else ("", "")
        bounds = self.schedule.bounds
        return MassResult(
            verdict, bounds, seed, runs if first is None else first + 1, tally.runs * bounds.rooms, tally.rounds, turns,
            "" if replay is not None else f"{tally.digest:016x}", counts, () if replay is not None else missed,
            self.engine, "turn" if self.program.each_turn else "round", len(self.schedule.bounded.clauses), replay,
            property, text, self.prepared_s, elapsed_s,
        )  # fmt: skip


def _finding(replay: RunReplay, schedule: Schedule) -> tuple[str, str]:
    if replay.broken is not None:
        return replay.broken.property, f"{replay.broken.name}: {replay.broken.text}"
    if replay.left:
        return "", f"out of bounds: {replay.left}"
    if not replay.ended:
        return "L1", f"{schedule.rounds_max} rounds after its start the run has not ended, and all faults are long over"
    raise LocalError(
        f"run {replay.run} of seed {replay.seed} breaks something in lanes and nothing when it is made again alone; "
        "this is a mistake of the engine"
    )


def check_batch(seed: int, runs: int) -> None:
    """Raise LocalError for numbers out of range."""
    if not 1 <= runs <= RUNS_MAX:
        raise LocalError(f"runs={runs}: expected 1 to {RUNS_MAX}")
    if not 0 <= seed <= SEED_MAX:
        raise LocalError(f"seed={seed}: expected 0 to {SEED_MAX}")


def expected(bounds: Bounds, counters: Mapping[str, int]) -> list[str]:
    """What must occur in a batch, of all that is counted: whatever is bound to. It errs on the side of less."""
    sizes = grant_sizes(bounds)
    unasked = set() if len(sizes) > 1 else {"resume", "starvation"}
    if not any(before == after for before, after in pairwise(sizes)):
        unasked.add("same_blocks")
    if not (bounds.faults or bounds.crashes):
        unasked.add("quarantine")
    return [name for name in counters if name not in unasked]


def grant_sizes(bounds: Bounds) -> list[int]:
    """The blocks of each grant of a request that is alone."""
    most = min(bounds.blocks, bounds.grant_blocks_max or bounds.blocks)
    left, sizes = bounds.size, []
    if bounds.early_tokens:
        early = min(-(-bounds.early_tokens // bounds.block_tokens), most, bounds.blocks - 1)
        sizes = [early] if early else []
        left -= min(bounds.early_tokens, early * bounds.block_tokens)
    while left > 0:
        sizes.append(min(-(-left // bounds.block_tokens), most))
        left -= sizes[-1] * bounds.block_tokens
    return sizes
