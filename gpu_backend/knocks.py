"""REGISTERs that came too early, kept to be heard once more."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from fsm.messages import Register

KNOCKS_MAX: Final = 16_384
"""So many are kept; of more, the oldest are forgotten, and their receivers ask again."""


class Knocks:
    """REGISTERs for rooms that are not here yet, to be heard once more when they are.

    A receiver often hears of a request first. It is told UNKNOWN_ROOM and asks again after ``resend_s``; this spares it
    that pause. To the protocol it is a message that came twice, the second time late, which it must bear anyway.
    """

    def __init__(self, kept_s: float) -> None:
        self._kept_s = kept_s
        self._kept: OrderedDict[tuple[int, int], tuple[Register, float]] = OrderedDict()

    def keep(self, message: Register, now_s: float) -> None:
        """The newest of each room and rank, and of all no more than ``KNOCKS_MAX``."""
        self._kept.pop((message.room, message.receiver_rank), None)
        self._kept[message.room, message.receiver_rank] = message, now_s
        if len(self._kept) > KNOCKS_MAX:
            self._kept.popitem(last=False)

    def take(self, room: int, ranks: tuple[int, ...], now_s: float) -> list[Register]:
        """Those for a room, as far as they are no older than a receiver may wait."""
        found = [self._kept.pop((room, rank), None) for rank in ranks]
        return [knock[0] for knock in found if knock is not None and now_s - knock[1] <= self._kept_s]
