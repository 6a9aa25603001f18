"""The facts of very many requests, a column for each fact and a row for each request.

One call of the decision kernel then answers for the whole queue. A row is written again when its request has changed,
and at no other time.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fsm import kernel
from fsm.kernel import ARRAY, IDLE, UNKNOWN

Rows = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

_INTS: Final = (
    "order", "counter", "room", "state", "failure", "own_failure", "total", "committed", "handled", "delivered",
)  # fmt: skip
_BOOLS: Final = ("live", "known", "registered", "total_agreed", "wants", "may_want")
_TIMES: Final = ("since_s", "limit_s", "resend_at_s")

NEVER: Final = float("inf")


class Columns:
    """Rows by room. ``own_failure`` is what this rank has seen; ``known``, ``registered``, ``failure``, ``total``,
    ``committed`` and ``delivered`` are what all ranks have."""

    def __init__(self) -> None:
        self._row_of: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 0
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._grow(64)

    def _grow(self, rows: int) -> None:
        old, self._arrays = self._arrays, {}
        for names, dtype in ((_INTS, np.int64), (_BOOLS, np.bool_), (_TIMES, np.float64)):
            for name in names:
                array = np.zeros(rows, dtype)
                if old:
                    array[: len(old[name])] = old[name]
                self._arrays[name] = array

    def __len__(self) -> int:
        """How many requests there are."""
        return len(self._row_of)

    def add(self, room: int) -> None:
        """A row for a room that has none; all zero."""
        row = self._free.pop() if self._free else self._used
        if row == self._used:
            self._used += 1
            if row == len(self._arrays["live"]):
                self._grow(2 * row)
        for array in self._arrays.values():
            array[row] = 0
        self._row_of[room] = row
        self._arrays["room"][row] = room
        self.write(room, live=True, total=UNKNOWN, resend_at_s=NEVER, limit_s=NEVER)

    def drop(self, room: int) -> None:
        """The room is over."""
        row = self._row_of.pop(room)
        self._arrays["live"][row] = False
        self._free.append(row)

    def write(self, room: int, **values: Any) -> None:
        """Write facts of one request."""
        row = self._row_of[room]
        for name, value in values.items():
            self._arrays[name][row] = value

    def column(self, name: str) -> npt.NDArray[Any]:
        """One fact, of all rows that were ever used; those that are not ``live`` hold remains."""
        return self._arrays[name][: self._used]

    def rooms(self, mask: Mask, *by: str) -> list[int]:
        """The live rooms in a mask, sorted by columns, the first one first."""
        rows = np.flatnonzero(mask & self.column("live"))
        if len(rows) > 1 and by:
            rows = rows[np.lexsort([self.column(name)[rows] for name in reversed(by)])]
        return [int(room) for room in self.column("room")[rows]]

    # --- questions ------------------------------------------------------------------------------------

    def to_decide(self) -> Mask:
        """One call of the kernel for the whole queue: where there is anything to decide, or a total to note."""
        c = self.column
        step = kernel.verdict(
            ARRAY, c("state"), c("known"), c("registered"), c("failure"), c("total"), c("committed"),
            c("handled"), c("delivered"), False,
        )  # fmt: skip
        mask: Mask = (step != IDLE) | ((c("total") > UNKNOWN) & ~c("total_agreed"))
        return mask

    def overdue(self, now_s: float) -> Mask:
        """Where a deadline has passed that was not noticed yet."""
        passed: Mask = kernel.expired(now_s, self.column("since_s"), self.column("limit_s"))
        mask: Mask = passed & (self.column("own_failure") == 0)
        return mask

    def to_resend(self, now_s: float) -> Mask:
        """Where an answer has been awaited for long enough."""
        mask: Mask = now_s >= self.column("resend_at_s")
        return mask

    def next_s(self) -> float:
        """The earliest deadline or resend; infinite if there is none."""
        live = self.column("live")
        if not live.any():
            return NEVER
        deadline = np.where(self.column("own_failure") == 0, self.column("since_s") + self.column("limit_s"), NEVER)
        return float(np.minimum(deadline, self.column("resend_at_s"))[live].min())
