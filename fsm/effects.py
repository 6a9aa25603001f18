"""What a receiver or a sender asks its surroundings to do; what they are told comes as method calls.

``Send`` goes to the peer on the control plane. ``CopyOut``, ``Recycle`` concern the receiver's landing
blocks, ``Stage``, ``Unstage`` and ``Write`` the sender's payload. ``Moved``, ``Watermark`` and ``Ended`` ask
for nothing: they tell an observer what was decided.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from fsm.messages import BlockRef, Epoch, Grant, Message


class Send(NamedTuple):
    """Send a control message to the peer; ``resend`` marks the same bytes sent once more (R3)."""

    message: Message
    resend: bool = False


class CopyOut(NamedTuple):
    """Copy ``tokens`` tokens out of landed blocks to ``start`` of the request's result, then call ``copied``.

    Token ``start + i`` lies in ``blocks[i // block_tokens]`` at ``i % block_tokens``. ``first`` says that the
    first block's aux header carries the position delta (R4: it is read this once and never again). ``whole``:
    these are all the tokens of the request, so that the caller may keep the blocks instead of a copy, and
    call ``lease``. ``checksum`` is the sender's, of these tokens, if it sent one; where the copy does not
    have it, ``copy_failed`` is called.
    """

    room: int
    epoch: Epoch
    seq: int
    start: int
    tokens: int
    blocks: tuple[BlockRef, ...]
    first: bool
    whole: bool = False
    checksum: int | None = None


class Recycle(NamedTuple):
    """These blocks change hands, on allocation and on free: their content means nothing any more.

    ``clear_headers`` says that their aux headers must be cleared (R4; only wrong rules leave them).
    """

    blocks: tuple[int, ...]
    clear_headers: bool


class Stage(NamedTuple):
    """Bring a request's payload into ``blocks`` blocks of the source pool, then call ``staged``."""

    room: int
    blocks: int


class Unstage(NamedTuple):
    """The payload is needed no more: its source blocks are free."""

    room: int


class Write(NamedTuple):
    """Write ``tokens`` tokens from source token ``source_start`` into the grant's blocks, then call
    ``sent``."""

    grant: Grant
    source_start: int
    tokens: int
    total_tokens: int


class Moved(NamedTuple):
    """A lifecycle took a transition."""

    receiver_rank: int
    room: int
    epoch: Epoch | None
    event: str
    source: str
    target: str


class Watermark(NamedTuple):
    """R1: a rank's progress, in tokens."""

    receiver_rank: int
    room: int
    epoch: Epoch
    tokens: int


class Ended(NamedTuple):
    """A request (on the sender: one receiver rank's part of it) reached a terminal state."""

    receiver_rank: int
    room: int
    epoch: Epoch | None
    state: str
    reason: str


class Refused(NamedTuple):
    """The block ledger refused a move, which guards property ``property``; or, with ``R11``, something else went
    wrong in one room. The room it concerns will fail."""

    receiver_rank: int
    room: int
    epoch: Epoch
    property: str
    text: str


Effect: TypeAlias = Send | CopyOut | Recycle | Stage | Unstage | Write | Moved | Watermark | Ended | Refused
"""Everything that a receiver or a sender may answer with."""
