"""The two ways to be wrong, and their finer names.

Whoever catches an error must know at once whose fault it was: a :class:`LocalError` says that the
caller misused this package, a :class:`RemoteError` that the peer misbehaved. A remote error harms one
room; a local one is raised before anything was changed.
"""

from __future__ import annotations


class ResumarkError(Exception):
    """The root of every error that this project raises on purpose."""


class LocalError(ResumarkError):
    """The caller asked for something that is not allowed; nothing was changed."""


class RemoteError(ResumarkError):
    """The peer sent something that it must not send.

    ``room`` is the room it concerns (``None`` where it could not be told) and ``code`` the name of the
    NACK code with which it is answered.
    """

    def __init__(self, text: str, *, room: int | None = None, code: str = "INTERNAL") -> None:
        super().__init__(text)
        self.room = room
        self.code = code


class TableError(LocalError):
    """A transition table that was refused when it was built; the text names the table and the row."""


class IllegalEvent(LocalError):
    """An event that the present state does not allow.

    Attributes say what a person needs to mend it: ``table``, ``state``, ``event``, the ``legal`` events of
    that state, and ``refused_by``, the guard that said no (empty where the state has no such event).
    """

    def __init__(
        self, table: str, state: str, event: str, legal: tuple[str, ...], refused_by: str = ""
    ) -> None:
        self.table = table
        self.state = state
        self.event = event
        self.legal = legal
        self.refused_by = refused_by
        reason = f"guard '{refused_by}' said no" if refused_by else "no row for it"
        allowed = ", ".join(legal) if legal else "none (terminal)"
        illegal = f"event '{event}' is illegal in state {state}"
        super().__init__(f"{table}: {illegal}: {reason}; legal events: {allowed}")


class LedgerError(LocalError):
    """The block ledger refused a move; ``property`` is the invariant that the refusal guards."""

    def __init__(self, text: str, *, property: str) -> None:
        super().__init__(text)
        self.property = property
