"""The answer to an event that the protocol cannot do."""

from __future__ import annotations

from typing import NamedTuple


class Refusal(NamedTuple):
    """Why an event cannot be. ``rule`` as in ``docs/protocol.md``, or ``table``, or a property's name; ``state`` where
    the model was, ``could`` what it could have done there, each in words; ``property`` what the rule guards ("" where
    it is none of them)."""

    rule: str
    text: str
    state: str
    could: tuple[str, ...]
    property: str = ""


class Refused(Exception):
    """Raised by :meth:`fsm.conform.acceptor.Acceptor.take` for the first event that the protocol cannot do."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal
