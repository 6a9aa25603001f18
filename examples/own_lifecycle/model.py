"""The lease as a model, put together in two ways.

* :func:`bounded`: so many clients, asks, leases and writes, each choice an action of its own::

      resumark model file examples/own_lifecycle/model.py:MODEL        # every state of it
      resumark model file examples/own_lifecycle/model.py:ANY_GRANT    # a wrong version, and the shortest way to see it

* :func:`unbounded`: two clients, any two; one token and one write of it, any; all other messages may say anything. What
  is proved of it holds for any number of clients, leases and writes::

      resumark prove examples/own_lifecycle/model.py:PROOF
      resumark prove examples/own_lifecycle/model.py:PROOF_ANY_GRANT
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from examples.own_lifecycle.clauses import lemmas, promises
from examples.own_lifecycle.lease import RULES, TERM, WRONG, Rules
from examples.own_lifecycle.parts import (
    FREE,
    HELD,
    HOLDING,
    Book,
    Made,
    Pick,
    Token,
    Value,
    clerk_actions,
    clerk_takes,
    clerk_takes_ask,
    client_actions,
    store_takes,
    takes_grant,
)
from sim.model.form import LARGE, Action, Field, Model
from sim.prove.induction import Proof

CLIENT = ("state", "ask", "token", "seq")


def _number(value: int) -> Value:
    return lambda view: value


def _field(name: str) -> Value:
    return lambda view: view[name]


def _fields(book: Book) -> Iterator[Field]:
    """What clerk, store and clients have, and the history that only clauses read."""
    asks, tokens, seqs = book.asks_max, book.tokens_max, book.seqs_max
    yield from (Field("lease", FREE, HELD), Field("token", 0, tokens), Field("holder_ask", 0, asks))
    yield from (Field("left", 0, LARGE if tokens == LARGE else TERM), Field("asks", 0, asks), Field("given", 0, tokens))
    yield from (Field("again", 0, 1), Field("top_token", 0, tokens), Field("top_seq", 0, seqs), Field("fell", 0, 1))
    for client in book.clients:
        for name, high in zip(CLIENT, (HOLDING, asks, tokens, seqs), strict=True):
            yield Field(f"{client}_{name}", 0, high)
    yield from (Field(known.ask, 0, asks) for known in book.tokens)
    yield from (Field(name, 0, 1) for known in book.said for name in (known.renewed, known.released))
    yield from (Field(known.made, 0, 2) for known in book.writes)


# --- so many of each --------------------------------------------------------------------------------------


def book_of(clients: int, asks: int, leases: int, writes: int) -> Book:
    """What a model of that size keeps book of: everything."""
    tokens = tuple(
        Token(_number(token), f"ask_of_{token}", f"renewed_{token}", f"released_{token}")
        for token in range(1, leases + 1)
    )
    made = tuple(
        Made(known, _number(seq), f"made_{token}_{seq}")
        for token, known in enumerate(tokens, 1)
        for seq in range(1, writes + 1)
    )
    names = tuple(f"c{number}" for number in range(1, clients + 1))
    return Book(names, tokens, made, _number(TERM), asks, leases, writes, tokens, made)


def bounded(rules: Rules = RULES, *, clients: int = 2, asks: int = 3, leases: int = 2, writes: int = 2) -> Model:
    """A world of that size. The names of its actions say what is done, so the objects can be made to do the same."""
    book = book_of(clients, asks, leases, writes)
    names = book.clients
    actions = [action for name in names for action in client_actions(book, name)]
    zero = _number(0)
    for ask in range(1, asks + 1):
        actions.append(clerk_takes_ask(book, Pick(_number(ask), zero, zero, f" {ask}")))
    for token in range(1, leases + 1):
        said = Pick(zero, _number(token), zero, f" {token}")
        actions += [clerk_takes(book, "renew", "renewed", said), clerk_takes(book, "release", "released", said)]
    for token, ask, name in product(range(1, leases + 1), range(1, asks + 1), names):
        actions.append(takes_grant(book, name, Pick(_number(ask), _number(token), zero, f" {ask} {token}"), rules))
    for token, seq in product(range(1, leases + 1), range(1, writes + 1)):
        actions.append(store_takes(book, Pick(zero, _number(token), _number(seq), f" {token} {seq}"), rules))
    alike = tuple(tuple(f"{name}_{field}" for field in CLIENT) for name in names)
    return Model(
        "lease", tuple(_fields(book)), ({},), tuple(actions + clerk_actions(rules)), promises(book),
        symmetry=(alike,) if clients > 1 else (),
    )  # fmt: skip


# --- any number of each -----------------------------------------------------------------------------------


def unbounded(rules: Rules = RULES) -> Proof:
    """Any two clients ``a`` and ``b``, any token ``k``, any number ``n`` of a write under it, and everybody else."""
    token = Token(_field("k"), "ask_of_k")
    book = Book(("a", "b"), (token,), (Made(token, _field("n"), "made"),), _field("term"), LARGE, LARGE, LARGE)
    pick = Pick(_field("in_ask"), _field("in_token"), _field("in_seq"))
    actions = [action for client in book.clients for action in client_actions(book, client)]
    actions += [takes_grant(book, client, pick, rules) for client in book.clients]
    actions += [clerk_takes_ask(book, pick), clerk_takes(book, "renew", "renewed", pick)]
    actions += [clerk_takes(book, "release", "released", pick), store_takes(book, pick, rules)]
    actions.append(
        Action("another client asks", lambda ops, view: view.asks >= 0, lambda ops, view: {"asks": view.asks + 1})
    )
    given = [Field("k", 1, LARGE), Field("n", 1, LARGE), Field("term", 1, LARGE)]
    inputs = [Field(name, 0, LARGE) for name in ("in_ask", "in_token", "in_seq")]
    model = Model(
        "lease, any number", (*_fields(book), *given, *inputs), ({},), tuple(actions + clerk_actions(rules)),
        promises(book) + lemmas(book),
    )  # fmt: skip
    return Proof(model, tuple(field.name for field in given), tuple(field.name for field in inputs))


# --- under names, for the command line --------------------------------------------------------------------

MODEL, PROOF = bounded(), unbounded()
NO_FENCE, PROOF_NO_FENCE = bounded(WRONG["no-fence"]), unbounded(WRONG["no-fence"])
FENCE_BY_TOKEN, PROOF_FENCE_BY_TOKEN = bounded(WRONG["fence-by-token"]), unbounded(WRONG["fence-by-token"])
ANY_GRANT, PROOF_ANY_GRANT = bounded(WRONG["any-grant"]), unbounded(WRONG["any-grant"])
FORGETFUL, PROOF_FORGETFUL = bounded(WRONG["forgetful"]), unbounded(WRONG["forgetful"])
