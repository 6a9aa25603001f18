"""The protocol as a model: three readers agree on it, it does what the code does, and its clauses say something."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fsm import kernel, rules
from fsm.allocators import make_allocator
from fsm.blocks import BlockLedger, Owner
from fsm.errors import IllegalEvent, LedgerError, LocalError
from fsm.kernel import ARRAY, INT
from fsm.lifecycle import (
    BLOCK_TABLE,
    RECEIVER_FIVE_STATE_TABLE,
    RECEIVER_TABLE,
    SENDER_TABLE,
    ReceiverFacts,
    SenderFacts,
)
from fsm.messages import BlockRef, Epoch
from fsm.states import BlockState, State
from sim.model.form import LARGE, Fields, Model, holds, successors, without_symmetry
from sim.model.form import State as Values
from sim.model.protocol import symbolic
from sim.model.protocol_bounded import Bounds, bounded
from sim.model.protocol_parts import BLOCK_NUMBERS, STATE_NUMBERS, Step, after, move_block
from sim.model.protocol_rules import PROTOCOL_RULES
from sim.model.symbol import check_model
from sim.model.variants import MODEL_VARIANTS
from sim.vector.search import explore
from tests.sim.protocol_kit import Lockstep

FAULTY = Bounds(size=2, blocks=1, crashes=1, late=True)
LARGER = Bounds(size=3, blocks=2, crashes=1, leases=True, early_tokens=2)


def random_states(model: Model, count: int, seed: int) -> list[Values]:
    """Any values within the bounds; where there are none, small ones."""
    random = Random(seed)
    return [
        {field.name: random.randint(field.low, min(field.high, field.low + 6)) for field in model.fields}
        for _ in range(count)
    ]


def plain_search(model: Model, states_max: int = 10_000) -> tuple[list[Values], set[str]]:
    """Every state that can be reached, one at a time, and the actions that were taken."""
    names = [field.name for field in model.fields]
    found = {tuple(state[name] for name in names): state for state in model.start_states()}
    todo, taken = list(found.values()), set()
    for state in todo:
        for action, following in successors(model, state):
            taken.add(action.name.split(": ", 1)[1])
            key = tuple(following[name] for name in names)
            if key not in found:
                found[key] = following
                todo.append(following)
        assert len(todo) <= states_max
    return todo, taken


# --- three evaluators ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds", [FAULTY, Bounds(rooms=2, ranks=2, blocks=2, size=3, block_tokens=2)], ids=["one", "many"]
)
def test_arrays_read_the_model_as_ints_do(bounds: Bounds) -> None:
    model = bounded(bounds)
    states = random_states(model, 40, 1)
    columns = Fields({name: np.array([state[name] for state in states]) for name in states[0]}, model.name)
    for action in model.actions:
        guards = np.broadcast_to(action.guard(ARRAY, columns), len(states))
        assert list(guards) == [holds(model, action, state) for state in states], action.name
        changed = {name: np.broadcast_to(value, len(states)) for name, value in action.update(ARRAY, columns).items()}
        for number, state in enumerate(states):
            singly = action.update(INT, Fields(state, model.name))
            assert {name: int(values[number]) for name, values in changed.items()} == singly, action.name
    for clause in model.clauses:
        truths = np.broadcast_to(clause.holds(ARRAY, columns), len(states))
        assert list(truths) == [holds(model, clause, state) for state in states], clause.name


def test_z3_reads_the_model_as_ints_do() -> None:
    pytest.importorskip("z3")
    from sim.prove.terms import TermOps

    model = symbolic().model
    ops = TermOps()
    symbols = ops.view(tuple(field.name for field in model.fields))
    view = Fields(symbols, model.name)
    states = random_states(model, 2, 2)
    values = [[(symbols[name].value, ops.z3.IntVal(value)) for name, value in state.items()] for state in states]

    def at(number: int, expression: Any) -> Any:
        return ops.z3.simplify(ops.z3.substitute(ops.raw(expression), *values[number]))

    for action in model.actions:
        guard, update = action.guard(ops, view), action.update(ops, view)
        for number, state in enumerate(states):
            assert ops.z3.is_true(at(number, guard)) == holds(model, action, state), action.name
            singly = action.update(INT, Fields(state, model.name))
            assert {name: at(number, value).as_long() for name, value in update.items()} == singly, action.name
    for clause in model.clauses:
        truth = clause.holds(ops, view)
        for number, state in enumerate(states):
            assert ops.z3.is_true(at(number, truth)) == holds(model, clause, state), clause.name


@pytest.mark.parametrize("bounds", [FAULTY, LARGER, Bounds(rooms=2, ranks=2, blocks=2)], ids=["one", "larger", "many"])
def test_the_bounded_model_is_well_formed(bounds: Bounds) -> None:
    check_model(bounded(bounds))


@pytest.mark.parametrize("name", ["rooms", "ranks", "blocks", "size", "block_tokens"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(LocalError, match=f"{name}=0: expected at least 1"):
        Bounds(**{name: 0})


@pytest.mark.parametrize("name", ["grant_blocks_max", "early_tokens", "crashes"])
def test_negative_sizes_are_refused(name: str) -> None:
    with pytest.raises(LocalError, match=f"{name}=-1: expected 0 or more"):
        Bounds(**{name: -1})


# --- what is reachable satisfies the invariant -----------------------------------------------------------


def test_every_state_that_a_plain_search_reaches_satisfies_all_clauses() -> None:
    model = bounded(Bounds(size=2, blocks=1))
    states, taken = plain_search(model)
    for state in states:
        for clause in model.clauses:
            assert holds(model, clause, state), (clause.name, state)
    assert any(state["r0k0_state"] == kernel.SUCCESS for state in states)
    assert {"release", "tick: complete", "tick: fail", "tick: grant b0", "a write breaks"} <= taken


@pytest.mark.parametrize(
    "bounds",
    [
        FAULTY,
        LARGER,
        Bounds(ranks=2, size=2, faults=False),
        Bounds(rooms=2, size=2, faults=False),
        Bounds(size=4, blocks=2, block_tokens=2, grant_blocks_max=1, early_tokens=3),
    ],
    ids=["crash, late bytes", "leases, early", "two ranks", "two requests", "unaligned"],
)
def test_every_state_that_the_vector_engine_reaches_satisfies_all_clauses(bounds: Bounds) -> None:
    result = explore(bounded(bounds))
    assert (result.verdict, result.coverage) == ("holds", "exhausted")
    assert result.states > 100


@pytest.mark.parametrize(
    ("variant", "bounds"),
    [
        ("free-then-alloc", Bounds(rooms=2, size=2, faults=False)),
        ("alloc-before-free", Bounds(size=3, blocks=2, grant_blocks_max=1)),
        ("max-progress", Bounds(ranks=2, size=2, faults=False)),
        ("first-rank-triggers", Bounds(ranks=2, size=2, faults=False)),
        ("no-grant-seq", Bounds(size=3, blocks=2, grant_blocks_max=1)),
        ("free-without-quiescence", Bounds(size=2)),
        ("late-status", Bounds(size=2)),
        ("admission-first", Bounds(rooms=2, size=2, faults=False)),
        ("no-reserve", Bounds(size=2, early_tokens=1, faults=False)),
        ("none", Bounds(size=3, blocks=2, grant_blocks_max=1)),
        ("floor-start", Bounds(size=3, block_tokens=2, early_tokens=1, blocks=2, faults=False)),
    ],
)
def test_what_a_variant_breaks_can_be_reached(variant: str, bounds: Bounds) -> None:
    """A condition that fails may start from a state that never comes about. Of these the search finds one that does."""
    model = bounded(bounds, MODEL_VARIANTS[variant].rules())
    named = tuple(
        clause for clause in model.clauses if clause.name.rpartition(": ")[2] == MODEL_VARIANTS[variant].breaks
    )
    result = explore(replace(without_symmetry(model), clauses=named), states_max=200_000)
    assert result.verdict == "violated", result


# --- clauses say something -------------------------------------------------------------------------------


def test_each_clause_is_broken_by_a_change_of_one_field() -> None:
    """Taken from states that can be reached: a clause that nothing breaks would be no clause."""
    models = [bounded(bounds) for bounds in (Bounds(size=2, blocks=1), Bounds(rooms=2, size=1, faults=False))]
    searched = [(model, plain_search(model)[0][::11]) for model in models]
    never = {clause.name.rpartition(": ")[2] for model in models for clause in model.clauses}
    for model, states in searched:
        for clause in model.clauses:
            title = clause.name.rpartition(": ")[2]
            if title in never and any(_breaks(model, clause, state) for state in states):
                never.discard(title)
    assert not never


def _breaks(model: Model, clause: Any, state: Values) -> bool:
    for field in model.fields:
        for value in (state[field.name] - 1, state[field.name] + 1):
            if not holds(model, clause, {**state, field.name: value}):
                return True
    return False


# --- the model does what the code does -------------------------------------------------------------------


LOCKSTEP = (
    Bounds(size=3, blocks=2, crashes=1, leases=True),
    Bounds(size=4, blocks=2, block_tokens=2, grant_blocks_max=1, early_tokens=3, crashes=1, late=True),
    Bounds(size=3, blocks=2, late=True, faults=False),
    Bounds(size=5, blocks=3, block_tokens=2, grant_blocks_max=2, faults=False),
)


def test_receiver_and_sender_do_what_the_model_does_step_by_step() -> None:
    done: dict[str, int] = {}
    for seed in range(48):
        walk = Lockstep(LOCKSTEP[seed % len(LOCKSTEP)])
        walk.walk(Random(seed), 60)
        for kind, count in walk.done.items():
            done[kind] = done.get(kind, 0) + count
    expected = {
        "tick: complete", "tick: fail", "tick: grant", "tick: take a chunk", "receive ABORT_ACK", "receive STATUS",
        "the sender crashes", "the process is gone", "the sender fails", "own completion", "a copy ends",
    }  # fmt: skip
    assert not expected - set(done), done


def test_a_model_that_differs_from_the_code_is_noticed() -> None:
    """The comparison above can fail: a model in which a resume starts one token early is told apart."""
    walk = Lockstep(LOCKSTEP[3])
    wrong = replace(PROTOCOL_RULES, resume_start=lambda ops, start, block_tokens: ops.maximum(start - 1, 0))
    walk.model = replace(bounded(LOCKSTEP[3], wrong), clauses=())
    with pytest.raises(AssertionError, match="g_start"):
        for seed in range(20):
            walk.walk(Random(seed), 60)


EVENTS = tuple(dict.fromkeys(row.event for rows in BLOCK_TABLE.rows.values() for row in rows))
MINE, OTHER = Owner(1, Epoch(1, 1), 3), Owner(2, Epoch(1, 1), 3)


def ledger_in(state: BlockState, owner: Owner) -> tuple[BlockLedger, BlockRef]:
    """A ledger whose one block has come to be in that state."""
    ledger = BlockLedger(1, make_allocator("fifo"))
    ways = {
        BlockState.FREE: [], BlockState.RESERVED: ["reserve"], BlockState.GRANTED: ["reserve", "grant"],
        BlockState.LANDED: ["reserve", "grant", "land"], BlockState.READING: ["reserve", "grant", "land", "read"],
        BlockState.QUARANTINED: ["reserve", "grant", "quarantine"],
    }  # fmt: skip
    ref = BlockRef(0, 0)
    for event in ways[state]:
        if event == "reserve":
            (ref,) = ledger.reserve(owner, 1, rules_choices())
        else:
            getattr(ledger, event)(owner, [ref])
    return ledger, ref


def rules_choices() -> Any:
    return SimpleNamespace(pick=lambda options, label: 0)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", list(BlockState))
@pytest.mark.parametrize("owner", [MINE, OTHER], ids=["mine", "another's"])
@pytest.mark.parametrize("stale", [0, 1], ids=["present", "stale"])
def test_the_ledger_of_the_model_is_the_ledger(event: str, state: BlockState, owner: Owner, stale: int) -> None:
    ledger, ref = ledger_in(state, owner)
    before = ledger.record(0)
    values = {"x_state": BLOCK_NUMBERS[before.state], "x_owner": 0 if before.owner is None else before.owner.room,
              "x_seq": 3 if before.owner else -1, "x_generation": before.generation,
              "x_listed": ledger.free_count}  # fmt: skip
    step = Step(INT, Fields(values), PROTOCOL_RULES)
    if event == "reserve" and stale:
        return  # a reservation names no generation
    refused = move_block(step, step.part("x"), event, 1, 3, before.generation - stale, True)
    try:
        if event == "reserve":
            ledger.reserve(MINE, 1, rules_choices())
        else:
            getattr(ledger, event)(MINE, [ref._replace(generation=ref.generation - stale)])
        assert not refused
    except LedgerError:
        assert refused
    record = ledger.record(0)
    after_state = (step.read("x_state"), step.read("x_owner"), step.read("x_generation"), step.read("x_listed"))
    owned = 0 if record.owner is None else record.owner.room
    assert after_state == (BLOCK_NUMBERS[record.state], owned, record.generation, ledger.free_count)


@pytest.mark.parametrize("table", [RECEIVER_TABLE, RECEIVER_FIVE_STATE_TABLE, SENDER_TABLE], ids=lambda t: t.name)
def test_the_tables_of_the_model_are_the_tables(table: Any) -> None:
    facts_class: Any = SenderFacts if table is SENDER_TABLE else ReceiverFacts
    for state, event in product(table.states, table.events):
        for answers in product((False, True), repeat=len(facts_class._fields)):
            facts = facts_class(*answers)
            legal, target = after(INT, table, STATE_NUMBERS[state], event, facts._asdict())
            try:
                expected = STATE_NUMBERS[table.next(state, event, facts).target]
            except IllegalEvent:
                assert not legal
                continue
            assert legal and target == expected, (state, event, facts)


def test_the_rules_of_the_model_are_the_rules() -> None:
    """Every default answers as the rule of that name in ``fsm.rules``."""
    random = Random(5)
    model, real = PROTOCOL_RULES, rules.PROTOCOL
    for _ in range(300):
        a, b, c, d = (random.randint(0, 6) for _ in range(4))
        required = random.random() < 0.5
        room: Any = SimpleNamespace(
            word=a, landed=b, handled=a, last_resume=b, total=c, word_tokens=a, landed_tokens=b, handled_tokens=a,
            last_resume_at=b, total_tokens=c, epoch=Epoch(1, d),
        )  # fmt: skip
        assert model.progress(INT, room, required, None) == real.progress(room, 1, required, lambda block: 0)
        assert model.detect(INT, room) == real.detect(room)
        assert model.order(INT, room) == real.order(room)[0]
        assert model.fold_progress(INT, a, b) == real.fold_progress([a, b])
        assert model.resume_start(INT, a, b) == real.resume_start(a, b)
        assert model.source_start(INT, a, b) == real.source_start(a, b)
        assert model.wanted(INT, a, b) == real.wanted(a, b)
        assert model.take(INT, a, b) == real.take(a, b)
        assert model.early_available(INT, a) == real.early_available(a)
        assert model.equal_capacity(INT, a, b) == real.equal_capacity(a, b)
        grant: Any = SimpleNamespace(start=a, capacity=b, seq=c)
        parked = SimpleNamespace(seq=d) if required else None
        lane: Any = SimpleNamespace(committed_tokens=c, seq=b, parked=parked)
        assert model.status_exact(INT, d, a, b, c) == real.status_exact(grant, d, c)
        assert model.start_check(INT, a, c) == real.start_check(lane, grant)
        assert model.grant_kind(INT, c, b, d if required else -1) == real.grant_kind(lane, grant)
    assert model.table is real.table
    assert model.copy_when_landed() == real.copy_when_landed(room)
    assert model.deadlines() == real.deadlines()
    assert model.unknown_room_answered() == real.unknown_room_answered()
    assert model.boot_change_fences() == real.boot_change_fences()


def test_states_are_numbered_as_the_kernel_numbers_them() -> None:
    assert [STATE_NUMBERS[state] for state in State] == [
        kernel.BOOTSTRAPPING, kernel.WAITING, kernel.TRANSFERRING, kernel.RESUMING, kernel.SUCCESS, kernel.FAILED,
    ]  # fmt: skip


def test_the_symbolic_model_has_no_bound_that_a_run_could_meet() -> None:
    for field in symbolic().model.fields:
        assert field.high in (1, 5, LARGE), field
