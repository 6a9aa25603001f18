"""Why a request failed. The numbers order the reasons, so that ranks can fold them by MAX (R7)."""

from __future__ import annotations

from enum import IntEnum

from fsm.messages import NackCode


class Reason(IntEnum):
    """A failure as an observation that ranks can exchange; 0 is "none"."""

    NONE = 0
    DEADLINE = 1
    QUEUE_DEADLINE = 2
    BOOTSTRAP_DEADLINE = 3
    ABORTED = 4
    PEER_ABORTED = 5
    PEER_RESTARTED = 6
    RANK_LOST = 7
    INCOMPATIBLE = 8
    UNKNOWN_ROOM = 9
    STALE_EPOCH = 10
    NOT_READY = 11
    NO_CAPACITY = 12
    CANCELLED = 13
    MISMATCH = 14
    PROTOCOL = 15
    INTERNAL = 16
    PEER_GONE = 17
    CHECKSUM = 18

    @property
    def by_deadline(self) -> bool:
        """Whether a clock, and no event, ended the request."""
        return Reason.DEADLINE <= self <= Reason.BOOTSTRAP_DEADLINE


NACK_REASONS = {
    NackCode.UNKNOWN_ROOM: Reason.UNKNOWN_ROOM,
    NackCode.STALE_EPOCH: Reason.STALE_EPOCH,
    NackCode.INCOMPATIBLE: Reason.INCOMPATIBLE,
    NackCode.NOT_READY: Reason.NOT_READY,
    NackCode.NO_CAPACITY: Reason.NO_CAPACITY,
    NackCode.CANCELLED: Reason.CANCELLED,
    NackCode.INTERNAL: Reason.INTERNAL,
}
"""The failure that a final NACK stands for."""

RETRIED_WHILE_BOOTSTRAPPING = (NackCode.UNKNOWN_ROOM, NackCode.NOT_READY)
"""R9: retried until the bootstrap deadline before REGISTER_ACK or OFFER was seen; final afterwards."""
