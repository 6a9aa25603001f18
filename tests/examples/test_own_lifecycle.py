"""The example of a lifecycle of one's own: ours holds, each wrong version is caught, and the parts agree."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from examples.own_lifecycle import __main__ as program
from examples.own_lifecycle.clauses import lemmas
from examples.own_lifecycle.lease import HOLDER, LEASE, RULES, WRONG, Clerk, Grant, Holder, Renew, Rules, Store, Write
from examples.own_lifecycle.model import book_of, bounded
from examples.own_lifecycle.world import simulate
from fsm.errors import IllegalEvent
from sim.model.form import successors
from sim.vector.search import explore

README = Path(program.__file__).with_name("README.md").read_text(encoding="utf-8")
CAUGHT = {"no-fence": ("S2", 7), "fence-by-token": ("S2", 7), "any-grant": ("S3", 7), "forgetful": ("S1", 4)}


def test_the_whole_program(capsys: pytest.CaptureFixture[str]) -> None:
    """What the README shows is what it prints, but for the random runs, of which there are fewer here."""
    pytest.importorskip("z3", reason="the proof needs the extra 'prove'")
    assert program.main(["--runs", "10"]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    for line in shown.group(1).splitlines():
        assert line == "..." or " ".join(line.replace("100 runs", "10 runs").split()) in said, line
    assert said[-1].endswith("Not as expected: none.")


def test_a_version_that_is_not_caught_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program itself can fail: here one of the wrong versions is right."""
    pytest.importorskip("z3", reason="the proof needs the extra 'prove'")
    monkeypatch.setattr(program, "WRONG", {"any-grant": RULES})
    assert program.main(["--runs", "1"]) == 1
    assert capsys.readouterr().out.rstrip().endswith("Not as expected: any-grant.")


def test_every_state_of_a_small_size() -> None:
    result = explore(bounded(asks=2, leases=2, writes=1))
    assert (result.verdict, result.coverage) == ("holds", "exhausted")
    assert explore(replace(bounded(asks=2, leases=2, writes=1), symmetry=())).states > result.states


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_version_is_caught_by_a_shortest_run(name: str) -> None:
    model = bounded(WRONG[name])
    found = explore(model).violation
    assert found is not None
    assert (found.property, found.depth) == CAUGHT[name]
    state = found.start
    for step in found.steps:  # each step is one of the model
        assert (step.action, step.state) in [(action.name, after) for action, after in successors(model, state)]
        state = step.state


def test_the_lemmas_hold_in_every_state_too() -> None:
    """They are about any two clients; a clause that is proved cannot be broken by a run."""
    size = {"clients": 2, "asks": 2, "leases": 2, "writes": 1}
    model = bounded(RULES, **size)
    assert explore(replace(model, clauses=model.clauses + lemmas(book_of(**size)))).verdict == "holds"


def test_objects_and_model_go_side_by_side() -> None:
    batch = simulate(RULES, runs=15, steps_max=60, seed=3)
    assert batch.broken is None and batch.runs == 15
    assert {name for name, count in batch.met.items() if count} == {
        "crashes", "leases that ran out", "messages refused", "messages taken twice or more",
    }  # fmt: skip
    again = simulate(RULES, runs=15, steps_max=60, seed=3)
    assert (again.steps, again.met) == (batch.steps, batch.met)


@pytest.mark.parametrize("name", sorted(WRONG))
def test_random_runs_catch_the_wrong_versions_too(name: str) -> None:
    broken = simulate(WRONG[name], runs=100, steps_max=60, seed=1).broken
    assert broken is not None and broken.property == CAUGHT[name][0]


def test_objects_that_differ_from_the_model_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clerk whose renewal gives no time; and one that takes a renewal of a lease that is over."""

    def forgets(clerk: Clerk, message: Renew) -> None:
        clerk._fire("renew", token=message.token)

    monkeypatch.setattr(Clerk, "renew", forgets)
    with pytest.raises(AssertionError, match=r"the objects have and the model has .*left"):
        simulate(RULES, runs=50, steps_max=60, seed=1)

    def careless(clerk: Clerk, message: Renew) -> None:
        clerk._fire("renew", token=clerk.token)
        clerk.left = 1

    monkeypatch.setattr(Clerk, "renew", careless)
    with pytest.raises(AssertionError, match="'clerk takes Renew 1' is no step of the model, and something came of it"):
        simulate(RULES, runs=50, steps_max=60, seed=1)


def test_the_objects_as_an_application_uses_them() -> None:
    """A client stands still while its lease runs out, and writes when it wakes up."""
    clerk, store, sleeper, other = Clerk(), Store(), Holder(), Holder()
    sleeper.granted(clerk.ask(sleeper.ask(1)))
    late = sleeper.write()
    clerk.tick()
    clerk.expire()
    other.granted(clerk.ask(other.ask(2)))
    assert store.take(other.write())
    assert not store.take(late) and store.top == Write(2, 1)
    with pytest.raises(IllegalEvent, match="lease: event 'renew' is illegal in state Held: guard '!current' said no"):
        clerk.renew(Renew(1))
    with pytest.raises(IllegalEvent, match="holder: event 'granted' is illegal in state Holding"):
        other.granted(Grant(1, 1))


def test_the_pictures_in_the_readme_are_current() -> None:
    for name, table in (("holder", HOLDER), ("lease", LEASE)):
        assert f"<!-- {name} -->\n\n```mermaid\n{table.mermaid()}```\n" in README
    for version in WRONG:
        assert f"| `{version}` |" in README
    assert set(CAUGHT) == set(WRONG) and isinstance(RULES, Rules)
