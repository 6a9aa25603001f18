"""``resumark check --engine vector``: a scenario as a model: its answer, what it refuses, what it is freer in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fsm.errors import LocalError
from sim import zoo
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.protocol_scenario import model_of, unit_tokens
from sim.scenario import Faults, Pool, Request, Scenario, Schedule, dump_toml
from sim.vector.search import explore
from tests.sim.cli_kit import refused, resumark

VECTOR = ("--engine", "vector")
SMALL = Scenario(
    pool=Pool(blocks=1, block_tokens=2, allocator="adversary"),
    requests=(Request(tokens=4),),
    faults=Faults(abort_max=1),
)


def written(scenario: Scenario, folder: Path) -> str:
    path = folder / "scenario.toml"
    path.write_text(dump_toml(scenario))
    return str(path)


def but(**sections: Any) -> Scenario:
    return msgspec.structs.replace(SMALL, **sections)


# --- sizes -----------------------------------------------------------------------------------------------


def test_a_scenario_is_a_model_of_its_size() -> None:
    found = model_of(zoo.scenario_named("exhaust-model"))
    assert found.bounds == Bounds(
        rooms=2, ranks=2, senders=2, blocks=1, size=2, crashes=1, resubmits=False, faults=False, aborts=1
    )
    assert found.variant.name == "watermark"


def test_tokens_go_by_what_all_sizes_are_multiples_of() -> None:
    """The graph of the scaled model is that of the model in tokens: nothing depends on the unit."""
    pool = Pool(blocks=2, block_tokens=4, grant_blocks_max=1)
    scenario = but(requests=(Request(tokens=6, grant_tokens=2),), pool=pool, faults=Faults())
    assert unit_tokens(scenario) == 2
    scaled = model_of(scenario).bounds
    assert (scaled.size, scaled.block_tokens, scaled.early_tokens) == (3, 2, 1)
    plain = Bounds(**{**vars(scaled), "size": 6, "block_tokens": 4, "early_tokens": 2})
    one, other = explore(bounded(scaled)), explore(bounded(plain))
    assert one.coverage == other.coverage == "exhausted"
    # Every token has start states of its own, so there are twice as many of everything.
    assert [2 * count for count in one.levels] == list(other.levels)


@pytest.mark.parametrize(
    ("scenario", "named"),
    [
        (but(requests=(Request(tokens=4), Request(tokens=2))), "requests: all of one length"),
        (but(requests=(Request(tokens=4, room=3, count=2),)), "requests.room: two requests have one room"),
        (but(pool=Pool(blocks=1, stale_header_tokens=2)), "pool.stale_header_tokens"),
        (but(faults=Faults(receiver_crash_max=1)), "faults.receiver_crash_max"),
        (but(faults=Faults(clock_jump_max=1)), "faults.clock_jump_max"),
        (but(faults=Faults(poison_max=1)), "faults.poison_max"),
        (but(faults=Faults(duplicate_room_max=1)), "faults.duplicate_room_max"),
        (but(requests=(Request(tokens=400, count=2),)), "source.blocks: the model has no source pool; 400 blocks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_model_does_not_hold_is_refused_by_name(scenario: Scenario, named: str) -> None:
    with pytest.raises(LocalError, match="the model does not hold this scenario") as refusal:
        model_of(scenario)
    assert named in str(refusal.value)


def test_everything_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(LocalError) as refusal:
        model_of(zoo.scenario_named("every-fault"))
    for key in ("source.blocks", "receiver_crash_max", "clock_jump_max", "poison_max"):
        assert key in str(refusal.value)


def test_what_the_model_is_freer_in_is_said() -> None:
    said = " / ".join(model_of(but(pool=Pool(blocks=1, block_tokens=2, allocator="fifo"))).freer)
    assert "delayed, doubled, overtaken and lost without a budget" in said
    assert "whatever the allocator (here fifo)" in said and "tokens go by 2" in said
    lagging = Schedule(copy_lags=True, staging_lags=True)
    assert "copies and stagings" not in " / ".join(model_of(but(schedule=lagging)).freer)


# --- answers ---------------------------------------------------------------------------------------------


def test_it_holds_with_safety_and_liveness(tmp_path: Path) -> None:
    done = resumark("check", written(SMALL, tmp_path), *VECTOR, "--json")
    data = done.data
    assert done.code == data["exit_code"] == 0
    assert (data["engine"], data["verdict"], data["coverage"]) == ("vector", "holds", "exhausted")
    assert data["states"] == data["checked"] == explore(bounded(model_of(SMALL).bounds)).states
    assert {"I1", "I2", "I3", "I4", "I5", "I6"} <= set(data["properties"])
    assert [live["property"] for live in data["liveness"]] == ["L1", "L2", "L3"]
    assert {(live["verdict"], live["coverage"]) for live in data["liveness"]} == {("holds", "exhausted")}


def test_the_text_says_how_the_answer_was_reached(tmp_path: Path) -> None:
    lines = resumark("check", written(SMALL, tmp_path), *VECTOR).out.splitlines()
    assert any(line.startswith("verdict   holds") for line in lines)
    assert any(line.startswith("coverage  exhausted: every reachable state was visited") for line in lines)
    assert any(line.startswith("L1        holds, exhausted") for line in lines)
    assert lines[-1].startswith("reproduce  resumark check") and lines[-1].endswith("--engine vector")


def test_a_broken_clause_ends_with_1_a_trace_and_the_point_of_no_return() -> None:
    done = resumark("check", "--hazard", "free-without-quiescence", *VECTOR, "--json")
    assert (done.code, done.data["verdict"]) == (1, "violated")
    (found,) = done.data["violations"]
    assert found["step"] == len(found["steps"]) > 5
    point = done.data["point_of_no_return"]
    assert (point is not None) == (done.data["no_return"]["coverage"] == "exhausted")
    assert point is None or 0 < point <= found["step"]
    text = resumark("check", "--hazard", "free-without-quiescence", *VECTOR).out
    assert "no shorter way leads to a state like that" in text
    assert ("point of no return" in text) == (point is not None)


def test_a_broken_promise_ends_with_3_a_stem_and_a_cycle(tmp_path: Path) -> None:
    path = written(but(requests=(Request(tokens=6),), faults=Faults()), tmp_path)  # three grants: the third never comes
    done = resumark("check", path, "--detector", "flag", *VECTOR, "--only", "L1", "--json")
    assert (done.code, done.data["verdict"]) == (3, "violated")
    (live,) = done.data["liveness"]
    assert live["verdict"] == "violated" and live["stem"]
    text = resumark("check", path, "--detector", "flag", *VECTOR, "--only", "L1").out
    assert "L1: a fair run on which not: every request ends" in text and "for" in text


def test_bounds_that_run_out_are_never_a_pass(tmp_path: Path) -> None:
    done = resumark("check", "exhaust-model", *VECTOR, "--states-max", "2000", "--json")
    assert (done.code, done.data["verdict"], done.data["coverage"]) == (4, "unknown", "bounded")
    large = resumark("check", written(SMALL, tmp_path), *VECTOR, "--liveness", "--memory", "0.01", "--json")
    assert large.code in (0, 4)
    assert large.data["verdict"] != "holds" or large.code == 0


def test_only_one_property_looks_at_its_clauses(tmp_path: Path) -> None:
    path = written(SMALL, tmp_path)
    data = resumark("check", path, *VECTOR, "--only", "I5", "--no-liveness", "--json").data
    assert data["properties"] == ["I5"] and data["liveness"] == []
    none = resumark("check", path, *VECTOR, "--only", "I8")
    refused(none)
    assert "the model has no clause of that" in none.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--trace", "x.jsonl", *VECTOR), "the run of a model is no trace"),
        (("--memory", "1"), "--memory: only the vector engine has that"),
        (("--liveness",), "--liveness: only the vector engine has that"),
        (("--no-symmetry",), "--symmetry: only the vector engine has that"),
        (("--device", "cpu"), "--device: only the vector engine has that"),
        (("--detector", "sent-cached", "--hazard", "no-grant-seq", *VECTOR), "one wrong version at a time"),
        (("every-fault", *VECTOR), "faults.clock_jump_max"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_misuse_is_one_message_and_exit_code_2(arguments: tuple[str, ...], says: str) -> None:
    done = resumark("check", *arguments)
    refused(done)
    assert says in done.err


def test_a_model_of_a_given_size_marks_the_point_of_no_return_too() -> None:
    sizes = ("--requests", "2", "--blocks", "1", "--tokens", "2", "--variant", "free-then-alloc")
    data = resumark("model", "protocol", *sizes, "--no-faults", "--json").data
    assert data["point_of_no_return"] == data["violations"][0]["step"] == 14
    text = resumark("model", "protocol", *sizes, "--no-faults").out.splitlines()
    at = next(number for number, line in enumerate(text) if line.startswith("*"))
    assert text[at - 1].split()[0] == "14" and "from here every continuation fails" in text[at]
    # With faults without end there would always be one that helps.
    endless = resumark("model", "protocol", *sizes, "--json").data
    assert endless["point_of_no_return"] is None and "no end of faults" in endless["no_return"]["text"]
