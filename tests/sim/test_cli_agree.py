"""``resumark agree``: what it prints, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import cli_agree
from sim.engines.agree import Agreement, Mismatch
from sim.model.correspondence import Cue
from tests.sim.cli_kit import resumark

SCENARIO = """
[pool]
blocks = 1
block_tokens = 1
allocator = "adversary"
refusals_max = 3

[[requests]]
tokens = 2

[schedule]
ticks_free = true
copy_lags = true
staging_lags = true

[faults]
delay_max = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    path.write_text(SCENARIO)
    return str(path)


def test_equal_graphs(file: str) -> None:
    done = resumark("agree", file, "--endless", "delay")
    assert done.code == 0 and not done.err
    assert "equal: each step of either is a step of the other" in done.out
    assert "not: none" in done.out
    assert f"resumark agree {file} --endless delay" in done.out


def test_what_only_the_model_does_is_told_and_is_no_error(file: str) -> None:
    Path(file).write_text(SCENARIO.replace("delay_max = 1", "delay_max = 0"))  # no OFFER overtakes a REGISTER_ACK
    done = resumark("agree", file, "--json")
    assert done.code == 0 and done.data["verdict"] == "followed"
    assert list(done.data["unneeded"]) == ["receive OFFER", "receive REGISTER_ACK"]
    assert done.data["pairs"] >= done.data["states"] > 50 and done.data["mismatch"] is None


def test_too_many_states_are_no_verdict(file: str) -> None:
    done = resumark("agree", file, "--states-max", "20", "--json")
    assert done.code == 4 and done.data["verdict"] == "bounded" and "more than 20 states" in done.data["bound"]


def test_a_difference_is_a_failure(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mismatch = Mismatch("tick", ("deliver Register to sender 0",), Cue((), frozenset()), {"r0k0_state": (1, 0)})
    monkeypatch.setattr(cli_agree, "agree", lambda *_, **__: Agreement(1, 1, 1, 1, 1, {0: 1}, mismatch))
    done = resumark("agree", file)
    assert done.code == 1 and "the model cannot follow 'tick'" in " ".join(done.out.split())
    done = resumark("agree", file, "--json")
    assert done.code == 1 and done.data["mismatch"]["differs"] == {"r0k0_state": [1, 0]}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--endless", "luck"], "--endless luck: expected one of abort, delay, drop, duplicate"),
        (["--endless", "abort"], "give it abort_max = 1 under [faults]"),
        (["--allocator", "fifo"], "an allocator other than 'adversary'"),
    ],
)
def test_mistakes_of_use(file: str, arguments: list[str], named: str) -> None:
    done = resumark("agree", file, *arguments)
    assert done.code == 2 and named in done.err
