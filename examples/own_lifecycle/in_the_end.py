"""What must happen in the end, on the finished graph: the lease comes back, whatever becomes of its holder.

Nothing that is *safe* says so: a clerk that gives the lease once and never again breaks no clause. So it is a promise
of its own, and needs to say what is assumed: time goes on, and the clerk does what it can. Whatever clients and the
network do, they may also never do.
"""

from __future__ import annotations

from examples.own_lifecycle.parts import FREE
from sim.model.form import Action, Model
from sim.model.live import FINITE, WEAK, Promise, Treatment
from sim.model.live import FREE as AS_IT_LIKES
from sim.vector.live import Liveness, judge_model

COMES_BACK = Promise("comes back", "L1", "the lease is free again and again", lambda ops, view: view.lease == FREE)
OF_THE_CLERK = ("a tick", "the lease expires")


def renewals_end(action: Action) -> Treatment:
    """A Renew arrives finitely often, each copy of it counted."""
    if action.name.startswith("clerk takes Renew"):
        return Treatment("a Renew arrives", FINITE)
    return renewals_as_they_like(action)


def renewals_as_they_like(action: Action) -> Treatment:
    """A network may deliver one Renew again and again, for ever."""
    return Treatment(action.name, WEAK) if action.name in OF_THE_CLERK else Treatment("anything else", AS_IT_LIKES)


def judge(model: Model) -> tuple[Liveness, Liveness]:
    """The promise under both assumptions."""
    (ends,) = judge_model(model, (COMES_BACK,), renewals_end)
    (never_ends,) = judge_model(model, (COMES_BACK,), renewals_as_they_like)
    return ends, never_ends
