"""What is promised of the lease, and what a proof needs besides: clauses over a ``parts.Book``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from itertools import combinations

from examples.own_lifecycle.parts import ASKING, FREE, HELD, HOLDING, IDLE, Book
from sim.model.form import Clause, Number, View, negate

Says = Callable[[View], Number]


def implies(condition: Number, consequence: Number) -> Number:
    """Whether the consequence holds wherever the condition does."""
    return negate(condition) | consequence


def every(truths: Iterable[Number]) -> Number:
    """Whether all of them hold."""
    return reduce(lambda left, right: left & right, truths)


def clause(name: str, text: str, says: Says, property: str = "") -> Clause:
    """A clause that needs no ``ops``."""
    return Clause(name, text, lambda ops, view: says(view), property)


def promises(book: Book) -> tuple[Clause, ...]:
    """What a user cares for. That they hold in every state that can be reached is what is checked, and proved."""
    return (
        clause("a token is given once", "The clerk gives no token twice.", lambda view: view.again == 0, "S1"),
        clause(
            "nothing falls back", "The store never replaces a write by an older one.", lambda view: view.fell == 0, "S2"
        ),
        clause(
            "a write has its own name",
            "No two writes have the same token and number.",
            lambda view: every(view[known.made] <= 1 for known in book.writes),
            "S3",
        ),
    )


def lemmas(book: Book) -> tuple[Clause, ...]:
    """What makes the promises inductive: why they hold, said so exactly that a solver can follow."""

    def asks_differ(view: View) -> Number:
        within = every((view[f"{x}_ask"] >= 0) & (view[f"{x}_ask"] <= view.asks) for x in book.clients)
        pairs = combinations(book.clients, 2)
        return within & every((view[f"{x}_ask"] != view[f"{y}_ask"]) | (view[f"{x}_ask"] == 0) for x, y in pairs)

    def was_given(view: View) -> Number:
        return every(implies(view[f"{x}_state"] == HOLDING, _has_grant(book, view, x)) for x in book.clients)

    def tokens_have_asks(view: View) -> Number:
        return every(
            (view[known.ask] >= 0) & (view[known.ask] <= view.asks)
            & ((view[known.ask] == 0) == (known.value(view) > view.given))
            for known in book.tokens
        )  # fmt: skip

    def used_up(view: View) -> Number:
        return every(
            implies(view[known.made] >= 1, (known.token.value(view) <= view.given) & every(
                implies(view[f"{x}_state"] == ASKING, view[f"{x}_ask"] != view[known.token.ask])
                & implies(
                    (view[f"{x}_state"] == HOLDING) & (view[f"{x}_token"] == known.token.value(view)),
                    view[f"{x}_seq"] >= known.seq(view),
                )
                for x in book.clients
            ))
            for known in book.writes
        )  # fmt: skip

    def states_are_states(view: View) -> Number:
        clients = every((view[f"{x}_state"] >= IDLE) & (view[f"{x}_state"] <= HOLDING) for x in book.clients)
        return clients & (view.lease >= FREE) & (view.lease <= HELD)

    return (
        clause("states", "Every state is one of its table.", states_are_states),
        clause("the clerk remembers", "The clerk's token is the largest that was given.",
               lambda view: (view.token == view.given) & (view.token >= 0)),
        clause("asks differ", "No two clients have asked under one number.", asks_differ),
        clause("holders were granted", "Who holds a token has the ask that it was granted for.", was_given),
        clause("tokens have asks", "A token that was given was granted for an ask, one that was not for none.",
               tokens_have_asks),
        clause("names are used up", "When a write was made, its Grant is taken, and its writer is past its number.",
               used_up),
    )  # fmt: skip


def _has_grant(book: Book, view: View, x: str) -> Number:
    token = view[f"{x}_token"]
    granted = every(implies(token == known.value(view), view[f"{x}_ask"] == view[known.ask]) for known in book.tokens)
    return (view[f"{x}_ask"] >= 1) & (token >= 1) & (token <= view.given) & granted

