"""A lease on one resource, and writes that are fenced by it: the tables, the decisions, and the objects that run.

Several clients want to write to a store, and one at a time should. A *clerk* gives the lease to one of them, with a
*token* that grows. The lease runs out unless it is renewed. A client may stand still for long, and wake up when its
lease is over without knowing it; then two of them write. No clock can prevent that. So each write carries the token,
and the store refuses what is older than what it has: it is *fenced*.

Messages may be late, doubled, out of order and lost; clients and the clerk may crash. What is easily done wrong here
stands in :class:`Rules`, one small function each, so that wrong versions can be put in its place (:data:`WRONG`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from fsm.kernel import INT, Number, Ops
from fsm.table import REFUSE, Lifecycle, Row, Table

TERM = 1
"""How often the clerk's clock ticks before a lease that is not renewed is over."""


# --- decisions --------------------------------------------------------------------------------------------


def answers(ops: Ops, own_ask: Number, ask: Number) -> Number:
    """Whether a Grant is the answer to what this client has asked last."""
    return own_ask == ask


def is_newer(ops: Ops, token: Number, seq: Number, top_token: Number, top_seq: Number) -> Number:
    """The fence: a write of a later lease, or a later one of the same lease."""
    return (token > top_token) | ((token == top_token) & (seq > top_seq))


def token_after_restart(ops: Ops, token: Number) -> Number:
    """What a clerk that crashed knows of the tokens that it gave: all of it, for it wrote that down first."""
    return token


@dataclass(frozen=True)
class Rules:
    """The decisions at which an implementation may go wrong. They are read by the objects below with plain ints, and by
    the model with symbols, so they are arithmetic only: no ``if`` on what they are given."""

    answers: Callable[[Ops, Number, Number], Number] = answers
    is_newer: Callable[[Ops, Number, Number, Number, Number], Number] = is_newer
    token_after_restart: Callable[[Ops, Number], Number] = token_after_restart


RULES = Rules()

WRONG = {
    "no-fence": replace(RULES, is_newer=lambda ops, token, seq, top_token, top_seq: token == token),
    "fence-by-token": replace(RULES, is_newer=lambda ops, token, seq, top_token, top_seq: token >= top_token),
    "any-grant": replace(RULES, answers=lambda ops, own_ask, ask: ask == ask),
    "forgetful": replace(RULES, token_after_restart=lambda ops, token: 0),
}
"""What people have written instead. Each breaks something; the last three look harmless."""


# --- tables -----------------------------------------------------------------------------------------------


class HolderFacts(NamedTuple):
    """What the guard of the client's table looks at."""

    answers_me: bool = False


class LeaseFacts(NamedTuple):
    """What the guards of the clerk's table look at."""

    same_ask: bool = False
    current: bool = False
    over: bool = False


HOLDER = Table(
    "holder",
    initial="Idle",
    terminal=(),
    rows={
        "Idle": [Row("ask", "Asking", effect="send_ask", why="with a number that nobody has used before")],
        "Asking": [
            Row("granted", "Holding", "answers_me", "keep_token", "writes begin at 1 again, under this token"),
            Row("granted", REFUSE, "!answers_me", why="it answers an earlier ask, whose lease may be over"),
            Row("give_up", "Idle", why="nobody answered for long; the next ask has a new number"),
        ],
        "Holding": [
            Row("write", "Holding", effect="send_write", why="with token and number"),
            Row("renew", "Holding", effect="send_renew", why="in good time"),
            Row("release", "Idle", effect="send_release", why="done"),
            Row("lapse", "Idle", why="by its own clock, which may be late: the store does not rely on it"),
        ],
    },
    guards={"answers_me": lambda facts: facts.answers_me},
    essay=__doc__,
)

LEASE = Table(
    "lease",
    initial="Free",
    terminal=(),
    rows={
        "Free": [Row("ask", "Held", effect="give", why="under the next token")],
        "Held": [
            Row("ask", "Held", "same_ask", "repeat", "the same Grant again: it may have been lost"),
            Row("ask", REFUSE, "!same_ask", why="somebody has it"),
            Row("renew", "Held", "current", "extend", "it runs for a whole term again"),
            Row("renew", REFUSE, "!current", why="of a lease that is over; somebody else may have it by now"),
            Row("release", "Free", "current", why="the holder says so"),
            Row("release", REFUSE, "!current", why="of a lease that is over: else it would end another's"),
            Row("expire", "Free", "over", why="it was not renewed for a whole term"),
            Row("expire", REFUSE, "!over", why="its term is not over"),
        ],
    },
    guards={
        "same_ask": lambda facts: facts.same_ask,
        "current": lambda facts: facts.current,
        "over": lambda facts: facts.over,
    },
    essay=__doc__,
)


# --- messages, and the objects that run --------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """To the clerk: I want the lease."""

    ask: int


@dataclass(frozen=True)
class Grant:
    """To a client: you have it, under this token."""

    ask: int
    token: int


@dataclass(frozen=True)
class Renew:
    """To the clerk: I still need it."""

    token: int


@dataclass(frozen=True)
class Release:
    """To the clerk: I do not need it any more."""

    token: int


@dataclass(frozen=True)
class Write:
    """To the store: the ``seq``-th write under a token."""

    token: int
    seq: int


Message = Ask | Grant | Renew | Release | Write


class Holder(Lifecycle):
    """A client. Each method is one event; what is to be sent comes back."""

    table: ClassVar[Table] = HOLDER

    def __init__(self, rules: Rules = RULES) -> None:
        super().__init__()
        self.rules = rules
        self.own_ask = self.token = self.seq = 0

    def ask(self, number: int) -> Ask:
        """Begin to want it; ``number`` is one that nobody has used before."""
        self.fire("ask")
        self.own_ask = number
        return Ask(number)

    def granted(self, message: Grant) -> None:
        """A Grant has come. Raises IllegalEvent if it is not for this ask, or none is awaited."""
        self.fire("granted", HolderFacts(answers_me=bool(self.rules.answers(INT, self.own_ask, message.ask))))
        self.token, self.seq = message.token, 0

    def write(self) -> Write:
        """Write something."""
        self.fire("write")
        self.seq += 1
        return Write(self.token, self.seq)

    def renew(self) -> Renew:
        """Ask for more time."""
        self.fire("renew")
        return Renew(self.token)

    def release(self) -> Release:
        """Give it back."""
        self.fire("release")
        return Release(self.token)


class Clerk(Lifecycle):
    """Who gives the lease away."""

    table: ClassVar[Table] = LEASE

    def __init__(self, rules: Rules = RULES, token: int = 0) -> None:
        super().__init__()
        self.rules = rules
        self.token = token
        """That of the latest lease. It is on disk before a Grant leaves."""
        self.holder_ask = self.left = 0

    def _fire(self, event: str, *, ask: int = 0, token: int = 0) -> str:
        facts = LeaseFacts(same_ask=ask == self.holder_ask, current=token == self.token, over=self.left == 0)
        return self.fire(event, facts).effect

    def ask(self, message: Ask) -> Grant:
        """Raises IllegalEvent if somebody else has it."""
        if self._fire("ask", ask=message.ask) == "give":
            self.token, self.holder_ask, self.left = self.token + 1, message.ask, TERM
        return Grant(message.ask, self.token)

    def renew(self, message: Renew) -> None:
        """Raises IllegalEvent for a lease that is over."""
        self._fire("renew", token=message.token)
        self.left = TERM

    def release(self, message: Release) -> None:
        """The same."""
        self._fire("release", token=message.token)

    def tick(self) -> None:
        """Time passes."""
        self.left = max(self.left - 1, 0)

    def expire(self) -> None:
        """Raises IllegalEvent before the term is over."""
        self._fire("expire")

    def restarted(self) -> Clerk:
        """The clerk that comes back after a crash: it knows what is on disk."""
        return Clerk(self.rules, int(self.rules.token_after_restart(INT, self.token)))


@dataclass
class Store:
    """What is written to."""

    rules: Rules = RULES
    top: Write = Write(0, 0)

    def take(self, message: Write) -> bool:
        """Take a write, or refuse it; which."""
        newer = bool(self.rules.is_newer(INT, message.token, message.seq, self.top.token, self.top.seq))
        if newer:
            self.top = message
        return newer
