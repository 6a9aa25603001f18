"""What can be seen of a run, by a checker or by a person: one typed event for each thing that happened.

Simulated and real runs write the same events, so one set of checkers (``fsm.invariants``) reads both. Ranks,
rooms, seqs and tokens are counts; ``side`` is ``"receiver"`` or ``"sender"``.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from fsm.messages import BlockRef, Epoch, Message


class Event(Struct, frozen=True, gc=False, tag_field="event", omit_defaults=True):
    """The root of all events."""


class StateChanged(Event, frozen=True, gc=False, tag="state", omit_defaults=True):
    """A lifecycle took a transition; ``cause`` is the table's event."""

    side: str
    receiver_rank: int
    room: int
    epoch: Epoch | None
    cause: str
    source: str
    target: str


class Granted(Event, frozen=True, gc=False, tag="granted", omit_defaults=True):
    """A receiver rank sent a GRANT for the first time (resends are not told)."""

    receiver_rank: int
    room: int
    epoch: Epoch
    seq: int
    start: int
    capacity: int
    blocks: tuple[BlockRef, ...]


class Executed(Event, frozen=True, gc=False, tag="executed", omit_defaults=True):
    """A sender rank began to write a grant."""

    receiver_rank: int
    room: int
    epoch: Epoch
    seq: int
    start: int
    count: int


class Wrote(Event, frozen=True, gc=False, tag="wrote", omit_defaults=True):
    """Bytes of a grant arrived. ``trespass`` says which block was not open to them, and why; empty if all
    were."""

    receiver_rank: int
    room: int
    epoch: Epoch
    seq: int
    start: int
    count: int
    trespass: str = ""


class Progressed(Event, frozen=True, gc=False, tag="watermark", omit_defaults=True):
    """R1: a receiver rank's progress."""

    receiver_rank: int
    room: int
    epoch: Epoch
    tokens: int


class Delivered(Event, frozen=True, gc=False, tag="delivered", omit_defaults=True):
    """Tokens were copied to the result. ``wrong`` says what was there instead of the source; empty if it was
    equal."""

    receiver_rank: int
    room: int
    epoch: Epoch
    seq: int
    start: int
    count: int
    wrong: str = ""


class Finished(Event, frozen=True, gc=False, tag="finished", omit_defaults=True):
    """A request reached a terminal state on one receiver rank, or on the sender for one."""

    side: str
    receiver_rank: int
    room: int
    epoch: Epoch | None
    state: str
    reason: str
    total_tokens: int
    undisturbed: bool = False
    """Nothing was lost, crashed, cut off, aborted or jumped in this run so far, and the request is not too
    large."""


class Restarted(Event, frozen=True, gc=False, tag="restarted", omit_defaults=True):
    """The sender process that served these receiver ranks died, and came back with no memory of what had
    ended."""

    receiver_ranks: tuple[int, ...]


class Decided(Event, frozen=True, gc=False, tag="decided", omit_defaults=True):
    """What one of ``ranks`` ranks decided in one collective tick: (room, table event) in order. ``ranks`` =
    0: the collective was lost before every rank had come out of it."""

    ranks: int
    receiver_rank: int
    decisions: tuple[tuple[int, str], ...]


class Overtaken(Event, frozen=True, gc=False, tag="overtaken", omit_defaults=True):
    """A newcomer got grant 0 while rooms that hold data waited for blocks and blocks were free."""

    receiver_rank: int
    room: int
    waiting: tuple[int, ...]


class Repeated(Event, frozen=True, gc=False, tag="repeated", omit_defaults=True):
    """A duplicated message was delivered; ``changed`` says what state it changed, empty if none."""

    target: str
    message: str
    changed: str = ""


class LedgerRefused(Event, frozen=True, gc=False, tag="refused", omit_defaults=True):
    """The block ledger refused a move, which guards ``property``."""

    receiver_rank: int
    room: int
    property: str
    text: str


class Audited(Event, frozen=True, gc=False, tag="audited", omit_defaults=True):
    """A ledger audit found something wrong."""

    receiver_rank: int
    text: str


class Sent(Event, frozen=True, gc=False, tag="sent", omit_defaults=True):
    """A process of this side handed a control message to the network. ``lost``: to one that is cut."""

    side: str
    message: Message
    resend: bool = False
    lost: bool = False


class Received(Event, frozen=True, gc=False, tag="received", omit_defaults=True):
    """A process of this side took a control message in. The same message may come more than once."""

    side: str
    message: Message


class Note(Event, frozen=True, gc=False, tag="note", omit_defaults=True):
    """Something to read, that no checker looks at: a message in words, a fault, a refusal."""

    kind: str
    text: str


AnyEvent: TypeAlias = (
    StateChanged
    | Granted
    | Executed
    | Wrote
    | Progressed
    | Delivered
    | Finished
    | Restarted
    | Decided
    | Overtaken
    | Repeated
    | LedgerRefused
    | Audited
    | Sent
    | Received
    | Note
)
"""Everything that can be seen of a run."""
