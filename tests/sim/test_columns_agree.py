"""The fast receiver and the fast sender do what the plain ones do, effect by effect.

The plain ones are those that are searched exhaustively. So each process of a simulated world is made twice, a plain
and a fast one; both are given the same, and whatever they answer must be equal: effects, offers, free memory, who
waits, and the state of the ledger. The fast receivers tell each other only what has changed; the plain ones tell all.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fsm import column_receiver
from fsm.allocators import Choices
from fsm.column_receiver import ColumnReceiver
from fsm.effects import Effect
from fsm.errors import LocalError
from fsm.ranks import Agreed, Observation
from fsm.receiver import Receiver
from fsm.timed_sender import TimedSender
from sim import zoo
from sim.choices import Seeded
from sim.engines.simulate import run_once
from sim.scenario import Scenario
from sim.world import World
from tests.sim.test_world_properties import assert_right, drawn_run, scenarios


class Recorder:
    """Passes choices on, and keeps the answers."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.answers: list[int] = []

    def pick(self, options: int, label: str) -> int:
        self.answers.append(self.choices.pick(options, label))
        return self.answers[-1]


class Repeat:
    """Gives the same answers again; all of them must be asked for."""

    def __init__(self, answers: list[int]) -> None:
        self.left = list(answers)

    def pick(self, options: int, label: str) -> int:
        return self.left.pop(0)


class Both:
    """A plain process and a fast one. Every call of ``CALLS`` goes to both; whatever else, to the plain one."""

    CALLS: tuple[str, ...] = ()

    def __init__(self, plain: Any, fast: Any) -> None:
        self.plain, self.fast = plain, fast

    def __getattr__(self, name: str) -> Any:
        if name not in self.CALLS:
            return getattr(self.plain, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            answers = []
            for process in (self.plain, self.fast):
                try:
                    answers.append(getattr(process, name)(*args, **kwargs))
                except LocalError as error:
                    answers.append(error)
            if isinstance(answers[0], LocalError):
                assert str(answers[0]) == str(answers[1])
                raise answers[0]
            self.same(answers[0], answers[1])
            return answers[0]

        return call

    def same(self, plain: Any, fast: Any) -> None:
        assert plain == fast

    def next_timer_s(self) -> float | None:
        plain, fast = self.plain.next_timer_s(), self.fast.next_timer_s()
        assert plain is None or (fast is not None and fast <= plain), "a timer that would be missed"
        return plain


class BothReceivers(Both):
    CALLS = (
        "submit", "receive", "landed", "copied", "lease", "copy_failed", "quiesced", "abort", "rank_lost",
        "release_result", "load",
    )  # fmt: skip

    def __init__(self, world: World, plain: Receiver, fast: ColumnReceiver) -> None:
        super().__init__(plain, fast)
        self.world = world
        self.news: Observation | None = None
        self.asked: list[int] = []

    def same(self, plain: Any, fast: Any) -> None:
        super().same(plain, fast)
        assert self.plain.ledger.save()[:2] == self.fast.ledger.save()[:2]
        assert self.plain.save(self.world.now) == self.fast.save(self.world.now)

    def observe(self, now_s: float, choices: Choices, headers: Any) -> Observation:
        asked = Recorder(choices)
        seen = self.plain.observe(now_s, asked, headers)
        if self.fast.ranks == 1:
            self.asked = asked.answers  # it ticks in one go
            return seen
        again = Repeat(asked.answers)
        self.news = self.fast.observe(now_s, again)
        assert not again.left
        assert seen[2:] == self.news[2:]
        assert len(self.news.rooms) <= len(seen.rooms), "no more is told than there is"
        return seen

    def decide(self, agreed: Agreed, now_s: float, choices: Choices) -> list[Effect]:
        asked = Recorder(choices)
        effects = self.plain.decide(agreed, now_s, asked)
        news = tuple(receiver.news for receiver in self.world.receivers)
        again = Repeat(self.asked + asked.answers)
        if self.fast.ranks == 1:
            fast = self.fast.tick(now_s, again)
        else:
            fast = self.fast.decide(self.fast.agree(news), now_s, again)
        assert not again.left
        self.same(effects, fast)
        assert self.plain.waiting == self.fast.waiting
        return effects


class BothSenders(Both):
    CALLS = ("submit", "abort", "staged", "sent", "write_failed", "receive", "tick", "load")


class TwiceWorld(World):
    """A world in which every process is there twice."""

    def _new_receiver(self, rank: int, boot_id: int) -> Any:
        plain = super()._new_receiver(rank, boot_id)
        again = super()._new_receiver(rank, boot_id)
        fast = ColumnReceiver(
            again.config, again.ledger, boot_id=boot_id, ranks=self.scenario.ranks.receivers, flat=self.flat
        )
        return BothReceivers(self, plain, fast)

    def _new_sender(self, rank: int, boot_id: int) -> Any:
        plain = super()._new_sender(rank, boot_id)
        return BothSenders(plain, TimedSender(plain.config, boot_id=boot_id, flat=self.flat))


@pytest.fixture(autouse=True)
def everything_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.engines.simulate.World", TwiceWorld)
    monkeypatch.setattr(column_receiver, "FEW", column_receiver.FEW)  # each test says from how many on there are many


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(scenarios(), st.data())
def test_whatever_happens_the_fast_ones_do_the_same(scenario: Scenario, data: st.DataObject) -> None:
    column_receiver.FEW = data.draw(st.sampled_from([0, 1, 24]), label="few")
    if scenario.ranks.receivers > 1:
        # A jump is made by saving and loading, which a fast receiver cannot bear in the middle of a collective: what it
        # has told the others by then is not in what is saved.
        scenario = replace(scenario, faults=replace(scenario.faults, clock_jump_max=0))
    assert_right(scenario, drawn_run(scenario, data))


@pytest.mark.parametrize("seed", range(40))
def test_with_every_fault_the_fast_ones_do_the_same(seed: int) -> None:
    column_receiver.FEW = 24 * (seed % 2)
    scenario = zoo.scenario_named("every-fault")
    assert not run_once(scenario, Seeded(seed), machine="flat").violations
