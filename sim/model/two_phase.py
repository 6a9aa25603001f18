"""Two-phase commit, as in Lamport's TLA+ module ``TwoPhase``: the second model, to hold the engines against known
numbers.

A transaction manager asks resource managers whether they can commit. Each prepares, and says so in a message, or
aborts on its own. The transaction manager commits once all have said that they are prepared, or aborts at any time
before. Messages are never removed from the set of messages, so a manager may take one again: such steps lead back to
the same state, and count as transitions.

Distinct states for 2 to 10 resource managers, as TLC and Spin count them: 56, 288, 1,568, 8,832, 50,816, 296,448,
1,745,408, 10,340,352, 61,515,776.
"""

from __future__ import annotations

from functools import reduce

from fsm.errors import LocalError
from fsm.kernel import Ops
from sim.model.form import Action, Clause, Field, Model, Number, View, negate

WORKING, PREPARED, COMMITTED, ABORTED = range(4)
"""States of a resource manager."""
TM_INIT, TM_COMMITTED, TM_ABORTED = range(3)
"""States of the transaction manager."""

MANAGERS_MAX = 15
"""So that a state is one word."""

STATES = {1: 12, 2: 56, 3: 288, 4: 1_568, 5: 8_832, 6: 50_816, 7: 296_448, 8: 1_745_408, 9: 10_340_352, 10: 61_515_776}
"""Distinct states, by the number of resource managers."""


def two_phase(managers: int, *, symmetric: bool = False) -> Model:
    """Two-phase commit with so many resource managers; ``symmetric`` if states that differ in their order are one.

    Raises LocalError for a number outside of 1 to 15.
    """
    if not 1 <= managers <= MANAGERS_MAX:
        raise LocalError(f"managers = {managers}; expected 1 to {MANAGERS_MAX} resource managers")
    records = tuple((f"rm{i}", f"said_prepared{i}", f"tm_prepared{i}") for i in range(managers))
    fields = [Field("tm", TM_INIT, TM_ABORTED), Field("said_commit", 0, 1), Field("said_abort", 0, 1)]
    for manager, message, known in records:
        fields += [Field(manager, WORKING, ABORTED), Field(message, 0, 1), Field(known, 0, 1)]
    actions = [_tm_commit([known for _, _, known in records]), _TM_ABORT]
    for i in range(managers):
        actions += _manager(i)
    return Model(
        name=f"two_phase({managers})",
        fields=tuple(fields),
        initial=({},),
        actions=tuple(actions),
        clauses=(_consistent([manager for manager, _, _ in records]),),
        symmetry=(records,) if symmetric and managers > 1 else (),
    )


def _all(conditions: list[Number]) -> Number:
    return reduce(lambda left, right: left & right, conditions)


def _any(conditions: list[Number]) -> Number:
    return reduce(lambda left, right: left | right, conditions)


def _tm_commit(knowns: list[str]) -> Action:
    def guard(ops: Ops, view: View) -> Number:
        return _all([view.tm == TM_INIT] + [view[known] == 1 for known in knowns])

    return Action("TMCommit", guard, lambda ops, view: {"tm": TM_COMMITTED, "said_commit": 1})


_TM_ABORT = Action(
    "TMAbort", lambda ops, view: view.tm == TM_INIT, lambda ops, view: {"tm": TM_ABORTED, "said_abort": 1}
)


def _manager(i: int) -> list[Action]:
    """What resource manager ``i`` does, and the transaction manager's hearing of it."""
    manager, message, known = f"rm{i}", f"said_prepared{i}", f"tm_prepared{i}"
    return [
        Action(
            f"TMRcvPrepared({i})",
            lambda ops, view: (view.tm == TM_INIT) & (view[message] == 1),
            lambda ops, view: {known: 1},
        ),
        Action(
            f"RMPrepare({i})",
            lambda ops, view: view[manager] == WORKING,
            lambda ops, view: {manager: PREPARED, message: 1},
        ),
        Action(
            f"RMChooseToAbort({i})",
            lambda ops, view: view[manager] == WORKING,
            lambda ops, view: {manager: ABORTED},
            fair=False,
        ),
        Action(f"RMRcvCommitMsg({i})", lambda ops, view: view.said_commit == 1, lambda ops, view: {manager: COMMITTED}),
        Action(f"RMRcvAbortMsg({i})", lambda ops, view: view.said_abort == 1, lambda ops, view: {manager: ABORTED}),
    ]


def _consistent(managers: list[str]) -> Clause:
    def holds(ops: Ops, view: View) -> Number:
        committed = _any([view[manager] == COMMITTED for manager in managers])
        aborted = _any([view[manager] == ABORTED for manager in managers])
        return negate(committed & aborted)

    return Clause("TCConsistent", "no resource manager commits while another aborts", holds)


def two_phase_promela(managers: int) -> str:
    """The same protocol in Promela, written by hand and not derived from the model above: a second opinion.

    Each step is one ``d_step``, so that Spin counts the same states and, but for the initial one, the same transitions.
    Nothing is asserted: Spin has a little less to do than an engine that checks the clause.
    """
    lines = [
        f"byte rm[{managers}];  /* {WORKING} working, {PREPARED} prepared, {COMMITTED} committed, {ABORTED} aborted */",
        f"byte tm;  /* {TM_INIT} init, {TM_COMMITTED} committed, {TM_ABORTED} aborted */",
        f"bit said_prepared[{managers}];  /* messages that were sent */",
        "bit said_commit;",
        "bit said_abort;",
        f"bit tm_prepared[{managers}];  /* whom the transaction manager knows to be prepared */",
        "active proctype all() {",
        "end: do",
    ]
    all_known = " && ".join(f"tm_prepared[{i}]" for i in range(managers))
    steps = [
        f"tm == {TM_INIT} && {all_known} -> tm = {TM_COMMITTED}; said_commit = 1",
        f"tm == {TM_INIT} -> tm = {TM_ABORTED}; said_abort = 1",
    ]
    for i in range(managers):
        steps += [
            f"tm == {TM_INIT} && said_prepared[{i}] -> tm_prepared[{i}] = 1",
            f"rm[{i}] == {WORKING} -> rm[{i}] = {PREPARED}; said_prepared[{i}] = 1",
            f"rm[{i}] == {WORKING} -> rm[{i}] = {ABORTED}",
            f"said_commit -> rm[{i}] = {COMMITTED}",
            f"said_abort -> rm[{i}] = {ABORTED}",
        ]
    return "\n".join([*lines, *(f":: d_step {{ {step} }}" for step in steps), "od }", ""])
