"""The parts of the model: every choice of a hostile world as an action, every promise as a clause.

The decisions are those of ``lease.Rules``, and the lifecycles are the rows of ``lease.HOLDER`` and ``lease.LEASE``:
nothing of that is written a second time. What is added here is the world. The network is the set of all messages that
were ever sent: any of them may arrive at any later time, any number of times, or never.

A :class:`Book` says for which tokens and writes the model keeps book, and ``model.py`` puts two of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from examples.own_lifecycle.lease import HOLDER, LEASE, Rules
from fsm.kernel import Ops
from sim.model.form import Action, Number, View, negate
from sim.model.tables import after, numbers_of

IDLE, ASKING, HOLDING = numbers_of(HOLDER).values()
FREE, HELD = numbers_of(LEASE).values()


Value = Callable[[View], Number]


class Token(NamedTuple):
    """A token that the model keeps book of: its value, and the names of the fields."""

    value: Value
    ask: str
    """For which ask it was granted; 0 while it was not."""
    renewed: str = ""
    released: str = ""


class Made(NamedTuple):
    """A write that the model keeps book of. ``made`` counts those under this name, of which there should be one."""

    token: Token
    seq: Value
    made: str


class Pick(NamedTuple):
    """One choice for what a message says; ``text`` is how a trace shows it."""

    ask: Value
    token: Value
    seq: Value
    text: str = ""


@dataclass(frozen=True)
class Book:
    """What is put together: the clients by their prefixes, and what is kept book of. The last two are what limits the
    messages that may arrive; left out, any Renew, Release or Write may arrive that there could be."""

    clients: tuple[str, ...]
    tokens: tuple[Token, ...]
    writes: tuple[Made, ...]
    term: Value
    asks_max: int
    tokens_max: int
    seqs_max: int
    said: tuple[Token, ...] = ()
    sent: tuple[Made, ...] = ()


# --- what is known of messages ----------------------------------------------------------------------------


def was_granted(book: Book, view: View, ask: Number, token: Number) -> Number:
    """Whether that Grant was ever sent."""
    sent = (token >= 1) & (token <= view.given) & (ask >= 1) & (ask <= view.asks)
    for known in book.tokens:
        sent = sent & ((token != known.value(view)) | (ask == view[known.ask]))
    return sent


def was_said(book: Book, view: View, token: Number, what: str) -> Number:
    """Whether a Renew or a Release of that lease was ever sent (``what`` is the name of the field)."""
    sent = (token >= 1) & (token <= view.given)
    for known in book.said:
        sent = sent & ((token != known.value(view)) | (view[getattr(known, what)] == 1))
    return sent


def was_written(book: Book, view: View, token: Number, seq: Number) -> Number:
    """Whether that write was ever sent."""
    sent = (token >= 1) & (token <= view.given) & (seq >= 1)
    for known in book.sent:
        same = (token == known.token.value(view)) & (seq == known.seq(view))
        sent = sent & (negate(same) | (view[known.made] >= 1))
    return sent


# --- the clients ------------------------------------------------------------------------------------------


def moved(ops: Ops, view: View, client: str, event: str, **facts: Number) -> tuple[Number, Number]:
    """What the rows of the client's table say of an event."""
    return after(ops, HOLDER, view[f"{client}_state"], event, facts)


def client_actions(book: Book, client: str) -> list[Action]:
    """What a client does of itself."""
    state, own_ask, token, seq = (f"{client}_{name}" for name in ("state", "ask", "token", "seq"))

    def may(event: str) -> Callable[[Ops, View], Number]:
        return lambda ops, view: moved(ops, view, client, event)[0]

    def plain(event: str) -> Callable[[Ops, View], Mapping[str, Number]]:
        return lambda ops, view: {state: moved(ops, view, client, event)[1]}

    def ask(ops: Ops, view: View) -> Mapping[str, Number]:
        return {state: moved(ops, view, client, "ask")[1], own_ask: view.asks + 1, "asks": view.asks + 1}

    def write(ops: Ops, view: View) -> Mapping[str, Number]:
        number = view[seq] + 1
        changed = {seq: number}
        for known in book.writes:
            same = (view[token] == known.token.value(view)) & (number == known.seq(view))
            changed[known.made] = view[known.made] + ops.where(same & (view[known.made] < 2), 1, 0)
        return changed

    def says(event: str, what: str) -> Callable[[Ops, View], Mapping[str, Number]]:
        def update(ops: Ops, view: View) -> Mapping[str, Number]:
            changed = {state: moved(ops, view, client, event)[1]}
            for known in book.said:
                name = getattr(known, what)
                changed[name] = ops.where(view[token] == known.value(view), 1, view[name])
            return changed

        return update

    return [
        Action(f"{client} asks", lambda ops, view: may("ask")(ops, view) & (view.asks < book.asks_max), ask),
        Action(f"{client} gives up", may("give_up"), plain("give_up"), fair=False),
        Action(f"{client} writes", lambda ops, view: may("write")(ops, view) & (view[seq] < book.seqs_max), write),
        Action(f"{client} renews", may("renew"), says("renew", "renewed"), fair=False),
        Action(f"{client} releases", may("release"), says("release", "released"), fair=False),
        Action(f"{client} lapses", may("lapse"), plain("lapse"), fair=False),
        Action(
            f"{client} crashes",
            lambda ops, view: view[state] != IDLE,
            lambda ops, view: {state: IDLE, own_ask: 0, token: 0, seq: 0},
            fair=False,
        ),
    ]


def takes_grant(book: Book, client: str, pick: Pick, rules: Rules) -> Action:
    """A Grant arrives."""

    def row(ops: Ops, view: View) -> tuple[Number, Number]:
        return moved(ops, view, client, "granted", answers_me=rules.answers(ops, view[f"{client}_ask"], pick.ask(view)))

    return Action(
        f"{client} takes Grant{pick.text}",
        lambda ops, view: was_granted(book, view, pick.ask(view), pick.token(view)) & row(ops, view)[0],
        lambda ops, view: {
            f"{client}_state": row(ops, view)[1],
            f"{client}_token": pick.token(view),
            f"{client}_seq": 0,
        },
    )


# --- the clerk and the store ------------------------------------------------------------------------------


def lease_moved(ops: Ops, view: View, event: str, *, ask: Number = 0, token: Number = 0) -> tuple[Number, Number]:
    """What the rows of the clerk's table say of an event."""
    facts = {"same_ask": ask == view.holder_ask, "current": token == view.token, "over": view.left == 0}
    return after(ops, LEASE, view.lease, event, facts)


def clerk_takes_ask(book: Book, pick: Pick) -> Action:
    """An Ask arrives: the lease is given, or the Grant is sent again."""

    def guard(ops: Ops, view: View) -> Number:
        ask = pick.ask(view)
        gives = (view.lease == HELD) | (view.token < book.tokens_max)
        return (ask >= 1) & (ask <= view.asks) & lease_moved(ops, view, "ask", ask=ask)[0] & gives

    def update(ops: Ops, view: View) -> Mapping[str, Number]:
        ask, gives, token = pick.ask(view), view.lease == FREE, view.token + 1
        changed = {
            "lease": lease_moved(ops, view, "ask", ask=ask)[1],
            "token": ops.where(gives, token, view.token),
            "holder_ask": ops.where(gives, ask, view.holder_ask),
            "left": ops.where(gives, book.term(view), view.left),
            "again": ops.where(gives & (token <= view.given), 1, view.again),
            "given": ops.where(gives, ops.maximum(view.given, token), view.given),
        }
        for known in book.tokens:
            changed[known.ask] = ops.where(gives & (token == known.value(view)), ask, view[known.ask])
        return changed

    return Action(f"clerk takes Ask{pick.text}", guard, update)


def clerk_takes(book: Book, event: str, what: str, pick: Pick) -> Action:
    """A Renew or a Release arrives."""

    def row(ops: Ops, view: View) -> tuple[Number, Number]:
        return lease_moved(ops, view, event, token=pick.token(view))

    return Action(
        f"clerk takes {event.title()}{pick.text}",
        lambda ops, view: was_said(book, view, pick.token(view), what) & row(ops, view)[0],
        lambda ops, view: {"lease": row(ops, view)[1], "left": book.term(view) if event == "renew" else view.left},
    )


def clerk_actions(rules: Rules) -> list[Action]:
    """Time, and the clerk's crash."""
    return [
        Action("a tick", lambda ops, view: view.left > 0, lambda ops, view: {"left": view.left - 1}),
        Action(
            "the lease expires",
            lambda ops, view: lease_moved(ops, view, "expire")[0],
            lambda ops, view: {"lease": lease_moved(ops, view, "expire")[1]},
        ),
        Action(
            "the clerk crashes",
            lambda ops, view: view.given >= 1,
            lambda ops, view: {
                "lease": FREE, "holder_ask": 0, "left": 0, "token": rules.token_after_restart(ops, view.token),
            },
            fair=False,
        ),
    ]  # fmt: skip


def store_takes(book: Book, pick: Pick, rules: Rules) -> Action:
    """A Write arrives and passes the fence. One that does not pass changes nothing."""

    def update(ops: Ops, view: View) -> Mapping[str, Number]:
        token, seq = pick.token(view), pick.seq(view)
        older = (token < view.top_token) | ((token == view.top_token) & (seq < view.top_seq))
        return {"top_token": token, "top_seq": seq, "fell": ops.where(older, 1, view.fell)}

    def guard(ops: Ops, view: View) -> Number:
        token, seq = pick.token(view), pick.seq(view)
        newer = rules.is_newer(ops, token, seq, view.top_token, view.top_seq)
        return was_written(book, view, token, seq) & newer

    return Action(f"store takes Write{pick.text}", guard, update)
