"""Mass simulation: both ways to run lanes and one run alone say the same, wrong versions are found, much happens."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest

from fsm.errors import LocalError
from fsm.kernel import INT
from sim import bench_mass
from sim.mass import draws, native
from sim.mass.arrays import Arrays
from sim.mass.batch import USUAL, Mass, MassResult, expected, grant_sizes
from sim.mass.program import Program, make_program
from sim.mass.schedule import mass_schedule
from sim.mass.schedule_parts import RATES, decision_code
from sim.model.form import Fields
from sim.model.protocol_bounded import Bounds
from sim.model.symbol import Table
from sim.model.variants import variant_named
from sim.vector import code
from sim.vector.nodes import Nodes, evaluate
from tests.sim.cli_kit import resumark

SMALL = Bounds(rooms=1, blocks=2, size=3, crashes=1, grant_blocks_max=1)
compiled = pytest.mark.skipif(not code.available(), reason="needs llvmlite, of the extra 'fast'")


@cache
def program(bounds: Bounds, each_turn: bool = False) -> Program:
    return make_program(mass_schedule(bounds), each_turn=each_turn)


def played(lanes: Any, seed: int, runs: int) -> Any:
    lanes.start(seed, runs, keep=True)
    while lanes.playing:
        assert lanes.play(50) is None
    return lanes


# --- random numbers --------------------------------------------------------------------------------------


def test_random_words_are_the_same_for_ints_and_for_arrays() -> None:
    random = Random(1)
    numbers = [0, 1, draws.MASK, *(random.getrandbits(64) for _ in range(200))]
    words = np.array(numbers, np.uint64)
    key = draws.seed_key(7)
    for function in (
        draws.mix64,
        lambda value: draws.run_key(key, value),
        lambda value: draws.word(value, value >> (3 if isinstance(value, int) else np.uint64(3))),
        lambda value: draws.fold(value, value),
        lambda value: draws.sealed(value, value),
        lambda value: draws.head(value, 5).start,
        lambda value: draws.head(value, 5).faults,
    ):
        assert [function(number) for number in numbers] == [int(value) for value in function(words)]


def test_every_draw_and_every_start_comes_up_and_half_of_the_runs_have_no_faults() -> None:
    keys = draws.run_key(draws.seed_key(0), np.arange(4000, dtype=np.uint64))
    heads = draws.head(keys, 3)
    assert np.bincount(heads.start.astype(int)).min() > 1200
    assert 1800 < np.count_nonzero(heads.faults == 0) < 2200 and heads.faults.max() == 32
    word = draws.word(keys, np.full(4000, 5, np.uint64))
    for place in range(draws.NIBBLES):
        counts = np.bincount((word >> np.uint64(4 * place) & np.uint64(15)).astype(int))
        assert counts.min() > 180 and counts.max() < 330


# --- nodes -----------------------------------------------------------------------------------------------


def test_nodes_say_what_the_model_says() -> None:
    """The simplified expressions against the model itself, on any values that the fields may have."""
    bounds = Bounds(rooms=2, ranks=2, senders=2, blocks=2, size=5, block_tokens=3, grant_blocks_max=1, crashes=1)
    schedule = mass_schedule(bounds)
    model, table, nodes = schedule.model, Table(schedule.model), Nodes()
    random = Random(3)
    states = [{field.name: random.randint(field.low, field.high) for field in model.fields} for _ in range(3)]
    for action in model.actions:
        guard = nodes.of(table.guard(action))
        update = {name: nodes.of(symbol) for name, symbol in table.update(action).items()}
        for state in states:
            view = Fields(state)
            assert evaluate(guard, state) == bool(action.guard(INT, view)), action.name
            expected_values = {name: int(value) for name, value in action.update(INT, view).items()}
            assert {name: evaluate(node, state) for name, node in update.items()} == expected_values, action.name
    for clause in model.clauses:
        node = nodes.of(table.clause(clause))
        for state in states:
            assert evaluate(node, state) == bool(clause.holds(INT, Fields(state))), clause.name


@compiled
def test_every_operation_is_the_same_in_machine_code_in_numpy_and_with_ints() -> None:
    """Through whole rounds above; here the ones that the protocol hardly uses: division by what is no power of two."""
    bounds = Bounds(rooms=1, blocks=3, size=7, block_tokens=3, grant_blocks_max=2, late=True, crashes=1)
    arrays, machine = Arrays(program(bounds), 64), native.Native(program(bounds))
    played(arrays, 4, 300)
    played(machine, 4, 300)
    assert (arrays.kept == machine.kept).all()
    assert arrays.tally() == machine.tally()


# --- lanes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [5, 200])
def test_the_digest_does_not_depend_on_how_many_lanes_there_are(lanes: int) -> None:
    few, many = played(Arrays(program(SMALL), lanes), 5, 60), played(Arrays(program(SMALL), 60), 5, 60)
    assert few.tally() == many.tally()
    assert (few.kept == many.kept).all()


def test_a_run_is_the_same_in_every_batch_and_another_for_another_seed() -> None:
    lanes = Arrays(program(SMALL), 32)
    long = played(lanes, 5, 90).kept.copy()
    short = played(lanes, 5, 40).kept.copy()
    other = played(lanes, 6, 40).kept.copy()
    assert (long[:40] == short).all()
    assert len(set(long.tolist())) > 15, "not all decide alike"
    assert (short != other).sum() > 5


@compiled
@pytest.mark.parametrize("each_turn", [False, True])
def test_machine_code_and_numpy_agree_on_every_run_and_every_count(each_turn: bool) -> None:
    chosen = program(SMALL, each_turn)
    arrays, machine = played(Arrays(chosen, 500), 9, 3000), played(native.Native(chosen), 9, 3000)
    assert (arrays.kept == machine.kept).all()
    assert arrays.tally() == machine.tally()


def test_a_batch_that_holds_has_met_what_the_properties_speak_of() -> None:
    result = Mass(SMALL, engine="numpy", each_turn=False).run(3, 3000)
    assert (result.verdict, result.coverage, result.lifecycles) == ("holds", "sampled", 3000)
    assert set(result.sometimes) >= {"resume", "same_blocks", "starvation", "quarantine", "stale_status",
                                     "the sender crashes", "a copy fails"}  # fmt: skip
    assert all(result.sometimes.values())


def test_a_batch_in_which_something_never_happened_is_unknown() -> None:
    result = Mass(SMALL, engine="numpy").run(3, 5)
    assert result.verdict == "unknown" and result.missed


def test_what_cannot_happen_is_not_missed() -> None:
    counters = dict.fromkeys(("resume", "same_blocks", "starvation", "quarantine", "stale_status"), 0)
    assert expected(Bounds(size=2, blocks=2, faults=False), counters) == ["stale_status"]
    assert expected(Bounds(size=3, blocks=2), counters) == ["resume", "starvation", "quarantine", "stale_status"]
    assert expected(Bounds(size=4, blocks=2), counters) == list(counters)


@pytest.mark.parametrize(
    ("bounds", "sizes"),
    [
        (Bounds(size=3, blocks=2), [2, 1]),
        (Bounds(size=3, blocks=2, grant_blocks_max=1), [1, 1, 1]),
        (Bounds(size=7, blocks=3, block_tokens=3, early_tokens=2), [1, 2]),
        (Bounds(size=2, blocks=1, early_tokens=2), [1, 1]),
    ],
)
def test_the_grants_of_a_request_that_is_alone(bounds: Bounds, sizes: list[int]) -> None:
    assert grant_sizes(bounds) == sizes


# --- wrong versions --------------------------------------------------------------------------------------

CLAUSES = {
    "free-then-alloc": ("nothing is refused",),
    "alloc-before-free": ("a wait holds nothing",), "no-grant-seq": ("the parked grant",),
    "free-without-quiescence": ("the write", "writes are open"), "late-status": ("ended stays ended",),
    "admission-first": ("data first",),
}  # fmt: skip
TWO_RANKS = Bounds(ranks=2, senders=2, blocks=2, size=3, grant_blocks_max=1)
SIZES = {
    "free-then-alloc": USUAL, "admission-first": USUAL, "max-progress": TWO_RANKS, "first-rank-triggers": TWO_RANKS,
    "no-reserve": Bounds(size=2, blocks=2, early_tokens=2),
    "floor-start": Bounds(size=3, block_tokens=2, early_tokens=1, blocks=2),
}  # fmt: skip
STUCK = ("flag", "indices-after", "sent-accumulate", "sent-cached", "all-or-nothing", "silent-unknown-room")
FOUND = (
    "none", "indices-before", "generation", "free-then-alloc", "alloc-before-free", "max-progress",
    "first-rank-triggers", "no-grant-seq", "free-without-quiescence", "late-status", "floor-start", "admission-first",
    "no-reserve",
)  # fmt: skip


def simulated(name: str) -> MassResult:
    return Mass(SIZES.get(name, SMALL), variant_named(name).rules(), engine="numpy").run(1, 400)


@pytest.mark.parametrize("name", FOUND)
def test_a_wrong_version_is_found_and_named_by_the_first_run_that_shows_it(name: str) -> None:
    result = simulated(name)
    assert result.verdict == "violated" and result.replay is not None and result.digest == ""
    assert result.runs == result.replay.run + 1
    assert (result.replay.broken is None) == bool(result.replay.left)
    assert not CLAUSES.get(name) or any(text in result.text for text in CLAUSES[name]), result.text


@pytest.mark.parametrize("name", STUCK)
def test_a_wrong_version_that_gets_stuck_has_a_run_that_does_not_end(name: str) -> None:
    bounds = replace(SMALL, blocks=1, grant_blocks_max=0) if name == "all-or-nothing" else SMALL
    lanes = Arrays(make_program(mass_schedule(bounds, variant_named(name).rules())), 100)
    lanes.start(1, 100)
    stop = None
    while lanes.playing and stop is None:
        stop = lanes.play(50)
    assert stop is not None and stop.late and not stop.broken


def test_which_run_is_named_does_not_depend_on_the_lanes() -> None:
    rules = variant_named("late-status").rules()
    found = []
    for lanes in (3, 64):
        mass = Mass(SMALL, rules, engine="numpy")
        mass.lanes = Arrays(mass.program, lanes)
        found.append(mass.run(1, 300).runs)
    assert found[0] == found[1] < 300


@compiled
def test_machine_code_names_the_same_run() -> None:
    rules = variant_named("late-status").rules()
    one, other = (Mass(SMALL, rules, engine=engine).run(1, 300) for engine in ("llvm", "numpy"))
    assert (one.runs, one.property, one.text) == (other.runs, other.property, other.text)


# --- one run alone ---------------------------------------------------------------------------------------


def test_a_run_alone_decides_what_its_lane_decided() -> None:
    kept = played(Arrays(program(SMALL), 40), 2, 40).kept
    mass = Mass(SMALL)
    for run in range(40):
        replay = mass.replay(2, run, judge=run % 8 == 0)
        assert (replay.digest, replay.agrees, replay.ended) == (int(kept[run]), True, True), run
        assert replay.broken is None and replay.decisions > 0


def test_decisions_that_differ_anywhere_have_different_codes_and_digests() -> None:
    usual = (5, 1, 1, 2, 3, 4, 2)
    others = [tuple(value + (place == index) for index, value in enumerate(usual)) for place in range(len(usual))]
    codes = [decision_code(decision) for decision in (usual, *others)]
    assert len(set(codes)) == len(codes)
    assert len({draws.fold(0, code) for code in codes}) == len(codes)
    one, other = codes[:2]
    assert draws.fold(draws.fold(0, one), other) != draws.fold(draws.fold(0, other), one), "their order counts"


# --- bad input, and the command --------------------------------------------------------------------------


def test_the_benchmark_measures_both_simulators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_mass.code, "available", lambda: False)
    monkeypatch.setattr(bench_mass, "ARRAY_RUNS", 400)
    (figures,) = bench_mass.measure_all(quick=True).values()
    assert {figure.name for figure in figures} >= {"without llvmlite", "the simulator of the objects"}
    assert all(figure.value > 0 and figure.target is None for figure in figures)


def test_on_a_two_sided_transport_no_single_write_breaks() -> None:
    """Blocks of one that did would wait for a receive that never ends: the connection is lost with it there."""
    names = [turn.deed for turn in mass_schedule(Bounds(late=True)).turns]
    assert "a write breaks" not in names and "a copy fails" in names
    assert "a write breaks" in [turn.deed for turn in mass_schedule(Bounds()).turns]


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Bounds(ranks=2), "senders=1"),
        (Bounds(rooms=2, early_tokens=1), "early_tokens=1"),
        (Bounds(faults=False, aborts=1), "aborts=1"),
        (Bounds(size=61), "size=61"),
    ],
)
def test_sizes_that_are_not_held_are_refused_by_name(bounds: Bounds, words: str) -> None:
    with pytest.raises(LocalError, match=words):
        Mass(bounds)


@pytest.mark.parametrize(("seed", "runs"), [(-1, 5), (1, 0)])
def test_numbers_out_of_range_are_refused(seed: int, runs: int) -> None:
    with pytest.raises(LocalError, match="expected"):
        Mass(SMALL, engine="numpy").run(seed, runs)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(LocalError, match="llvm, numpy"):
        Mass(SMALL, engine="abacus")


def test_rates_are_below_all_draws_so_that_a_lane_without_a_run_rests() -> None:
    assert all(0 < rate < 16 for rate in RATES.values())


def test_the_command_says_what_was_sampled() -> None:
    done = resumark("simulate", "--engine", "vector", "--seed", "4", "--runs", "4000")
    assert done.code == 0, done.out + done.err
    for words in ("holds", "sampled: 4,000 runs, 8,000 lifecycles", "lifecycles a second", "quarantine", "digest"):
        assert words in done.out
    again = json.loads(resumark("simulate", "--engine", "vector", "--seed", "4", "--runs", "4000", "--json").out)
    assert again["digest"] in done.out and again["verdict"] == "holds" and again["exit_code"] == 0


def test_the_command_shows_one_run_with_real_objects() -> None:
    done = resumark("simulate", "--engine", "vector", "--seed", "4", "--run", "9")
    assert done.code == 0, done.out + done.err
    assert "the same digest: real receivers and senders" in done.out
    found = json.loads(resumark("simulate", "--engine", "vector", "--seed", "4", "--run", "9", "--json").out)
    assert found["agrees"] and found["digest"] == found["objects_digest"] and found["digest"] in done.out


def test_the_command_names_the_run_that_breaks_a_clause() -> None:
    command = ("simulate", "--engine", "vector", "--hazard", "free-without-quiescence", "--seed", "1", "--runs", "500")
    done = resumark(*command)
    assert done.code == 1, done.out + done.err
    assert "I1 " in done.out and "--run " in done.out
    (violation,) = json.loads(resumark(*command, "--json").out)["violations"]
    assert violation["property"] == "I1" and len(violation["steps"]) == violation["step"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--run", "1"),
        ("--judge", "turn"),
        ("--engine", "vector", "--jobs", "2"),
        ("--engine", "vector", "--machine", "flat"),
    ],
)
def test_options_of_the_other_engine_are_refused(arguments: tuple[str, ...]) -> None:
    done = resumark("simulate", *arguments)
    assert done.code == 2 and done.err.startswith("error: --")
