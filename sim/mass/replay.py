"""One run of a mass simulation, made again alone: with plain numbers, with the bounded model, and with real objects.

Nothing is taken from the arrays but the numbers of seed and run. Each turn is worked out with plain ints; the actions
of the bounded model that it stands for are applied one by one, every clause judged after each; and the same is done to
a real receiver and a real sender for each rank. All three must agree after each turn, and the digests of what was
decided, in the model and by the objects, must be equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fsm.errors import LocalError
from fsm.kernel import INT, UNKNOWN
from sim.mass import draws
from sim.mass.draws import NIBBLES
from sim.mass.lockstep import Objects
from sim.mass.schedule import Schedule
from sim.mass.schedule_parts import FAULTS_LEFT, RATES, Turn, blocks_given, decision_code
from sim.model.form import Clause, Fields, State, apply, holds
from sim.model.protocol_rules import PROTOCOL_RULES


class RunStep(NamedTuple):
    """An action of the bounded model in a run: in which round, and the state after it."""

    round: int
    action: str
    state: State


@dataclass(frozen=True)
class RunReplay:
    """What became of a run. ``digest`` is that of the model's decisions, ``objects_digest`` that of the objects'
    (``None`` where there are none, for a wrong version). ``broken`` is the clause that the last step broke;
    ``left`` says which field a wrong version then took out of its bounds. ``ended`` tells whether the run came to
    its end before patience did.
    """

    seed: int
    run: int
    start: State
    steps: tuple[RunStep, ...]
    rounds: int
    digest: int
    objects_digest: int | None
    broken: Clause | None
    left: str
    ended: bool
    decisions: int

    @property
    def agrees(self) -> bool:
        """Whether the objects decided what the model did; true where there are none."""
        return self.objects_digest is None or self.objects_digest == self.digest


class _Player:
    """The run while it is made."""

    def __init__(self, schedule: Schedule, seed: int, run: int, words: int, judge: bool) -> None:
        self.schedule, self.words = schedule, words
        self.clauses = schedule.bounded.clauses if judge else ()
        self.key = int(draws.run_key(draws.seed_key(seed), run))
        head = draws.head(self.key, len(schedule.model.initial))
        self.state: State = dict(schedule.model.start_states()[int(head.start)])
        self.state[FAULTS_LEFT] = int(head.faults)
        self.names = [field.name for field in schedule.bounded.fields]
        self.start = self.shown()
        self.steps: list[RunStep] = []
        self.codes: list[int] = []
        self.broken: Clause | None = None
        self.left = ""
        self.objects = Objects(schedule.bounds) if schedule.rules == PROTOCOL_RULES else None

    @property
    def stopped(self) -> bool:
        """Whether something was found."""
        return self.broken is not None or bool(self.left)

    def shown(self) -> State:
        """The fields of the bounded model."""
        return {name: self.state[name] for name in self.names}

    def round(self, number: int) -> None:
        """One round, or as much of it as there is before a clause is broken."""
        for index in range(self.words):
            word = int(draws.word(self.key, number * self.words + index))
            for place in range(NIBBLES):
                self.state[f"draw{index * NIBBLES + place}"] = word >> (4 * place) & 15
        given: dict[int, list[list[int]]] = {}
        ticking = self.early = False
        for turn in self.schedule.turns:
            if ticking and not turn.of_tick:
                self._tick(given)
                ticking, given = False, {}
            ticking = ticking or turn.of_tick
            if turn.guard(INT, Fields(self.state)):
                self._take(turn, number, given)
                if self.stopped:
                    return
        self.state[FAULTS_LEFT] = max(self.state[FAULTS_LEFT] - 1, 0)

    def _take(self, turn: Turn, number: int, given: dict[int, list[list[int]]]) -> None:
        before, view = self.state, Fields(self.state)
        numbers = {key: int(value) for key, value in turn.numbers(INT, view).items()}
        changes = {name: int(value) for name, value in turn.update(INT, view).items()}
        after = {**before, **changes}
        self._atoms(turn, number, before, after)
        if turn.decision is not None:
            decision = turn.decision(INT, view, Fields(after))
            if decision[0]:
                self.codes.append(decision_code(decision))
        self.state = after
        if turn.deed == "tick: grant":
            ordered = blocks_given(numbers, self.schedule.layout.rooms[turn.room])
            totals = [before[f"{place.room}_total"] for place in self.schedule.layout.rooms[turn.room]]
            self.early = UNKNOWN in totals
            given[turn.room] = [[int(block.rpartition("b")[2]) for block in blocks] for blocks in ordered]
        elif self.objects is not None and not turn.of_tick and not self.stopped:
            self.objects.do(turn.deed, turn.room, turn.rank, numbers, before)
            if turn.deed not in ("receive GRANT", "stage"):  # the code executes at once, the model in a turn of its own
                self._compare()

    def _atoms(self, turn: Turn, number: int, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """The actions of the bounded model, each judged; together they must do what the turn does."""
        bounded = self.schedule.bounded
        state: State = {name: before[name] for name in self.names}
        for name in turn.atoms(before):
            action = bounded.action(name)
            if not holds(bounded, action, state):
                raise LocalError(f"round {number}, {turn.name}: the bounded model does not allow '{name}' here")
            try:
                state = apply(bounded, action, state)
            except LocalError as error:
                if self.objects is not None:
                    raise  # the protocol itself stays within bounds
                self.left = str(error).partition(", in the state")[0]
                return
            self.steps.append(RunStep(number, name, state))
            self.broken = next((clause for clause in self.clauses if not holds(bounded, clause, state)), None)
            if self.broken is not None:
                return
        wrong = [name for name in self.names if state[name] != after[name]]
        if wrong:
            names = ", ".join(wrong)
            raise LocalError(f"round {number}, {turn.name}: its actions leave {names} otherwise than it does")

    def _tick(self, given: dict[int, list[list[int]]]) -> None:
        if self.objects is not None and self.state[self.schedule.tick_draws[0]] < RATES["tick"]:
            self.objects.tick(given, early=self.early)
            self._compare()

    def _compare(self) -> None:
        if self.objects is not None:
            self.objects.compare(self.state)


def replay_run(schedule: Schedule, seed: int, run: int, words: int, *, judge: bool = True) -> RunReplay:
    """Make run ``run`` of that seed again; ``words`` is how many words a round draws (``Program.words``). Without
    ``judge`` no clause is asked, which is most of the work.

    Raises LocalError if the turns, the bounded model and the objects do not agree on something.
    """
    player = _Player(schedule, seed, run, words, judge)
    rounds, over = 0, False
    while not over and not player.stopped and rounds <= schedule.rounds_max:
        player.round(rounds)
        rounds += 1
        over = bool(schedule.over(INT, Fields(player.state)))
    digest = _digest(player.codes)
    objects = _digest(player.objects.codes) if player.objects is not None else None
    return RunReplay(
        seed, run, player.start, tuple(player.steps), rounds, digest, objects, player.broken,
        player.left, over and not player.stopped, len(player.codes),
    )  # fmt: skip


def _digest(codes: list[int]) -> int:
    digest = 0
    for code in codes:
        digest = int(draws.fold(digest, code))
    return digest
