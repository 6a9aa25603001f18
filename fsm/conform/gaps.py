"""What may be missing from traces, and why: nothing else may be inferred.

A trace may begin late (a ring holds the last events only), end without an ending (its process was killed), lack
messages (an older version told none), or not be there at all. A :class:`Process` says which of these holds for one
trace; :class:`Gaps` answers for whom an event may be missing, in words, and counts what was inferred on that account.
"""

from __future__ import annotations

from collections.abc import Sequence

from fsm.messages import Epoch


class Process:
    """One process that wrote a trace. ``side`` is empty for a trace of a whole world, in which every process tells.

    ``served``: the receiver ranks that a sender serves; empty where its trace does not say. ``dropped``: so many events
    before the first line are not there, and so many ``holes`` are behind it. ``messages``: whether it tells those that
    it sends and takes in. ``over`` is empty while events are left, then ``"whole"`` or ``"cut"`` (no ending was
    written).
    """

    __slots__ = (
        "block_tokens", "boot_id", "boot_last", "born", "dropped", "holes", "messages", "name", "over", "rank",
        "served", "side", "spoilt",
    )  # fmt: skip

    def __init__(
        self,
        side: str = "",
        rank: int = -1,
        *,
        boot_id: int = 0,
        dropped: int = 0,
        messages: bool = True,
        block_tokens: int = 0,
        served: tuple[int, ...] = (),
    ) -> None:
        self.side = side
        self.rank = rank
        self.name = f"{side} {rank}" if side else "the world"
        self.boot_id = boot_id
        self.boot_last = boot_id
        """The greatest that it was seen to use."""
        self.dropped = dropped
        self.messages = messages
        self.block_tokens = block_tokens
        self.served = served
        self.over = ""
        self.holes = 0
        self.spoilt = False
        """The next message that it takes in is one that the network made up (a fault that a simulator tells of)."""
        self.born: Epoch | None = None
        """The newest epoch whose REGISTER it was seen to send."""

    @property
    def starts_late(self) -> bool:
        """Whether events of its own may be missing before what is there."""
        return self.dropped > 0 or self.holes > 0

    def may_be(self, boot_id: int) -> bool:
        """Whether the process may have been that one: it begins under its own boot id, and may go on under greater
        ones, as far as it has told when it is over."""
        return not self.side or (self.boot_id <= boot_id and not (self.over and self.boot_last < boot_id))

    def is_of(self, side: str, rank: int) -> bool:
        """Whether this is that side of receiver rank ``rank``."""
        if not self.side:
            return True
        if side != self.side:
            return False
        return rank == self.rank if side == "receiver" else not self.served or rank in self.served


class Gaps:
    """What may be missing. ``inferred``: (what, why) -> how often, in the order in which it was first needed."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self.processes = tuple(processes)
        self.inferred: dict[tuple[str, str], int] = {}

    def infer(self, what: str, why: str, count: int = 1) -> None:
        """An event that is not there must have happened."""
        key = what, why
        self.inferred[key] = self.inferred.get(key, 0) + count

    def own(self, process: Process) -> str:
        """Why an earlier event of the process itself may be missing; empty if it may not."""
        if process.holes:
            return f"the trace of {process.name} has a hole"
        if process.dropped:
            return f"the trace of {process.name} starts late, {process.dropped:,} events are not in it"
        return ""

    def silence(self, process: Process) -> str:
        """Why a message that the process sent or took in may be missing."""
        if process.messages:
            return ""
        return f"the trace of {process.name} tells no messages"

    def peer(self, side: str, rank: int, *, message: bool = False, boot_id: int = 0) -> str:
        """Why an event of another process may be missing: that side of receiver rank ``rank``. ``message``: one of
        those that some traces do not tell. ``boot_id``: of the process that it was, where that is known."""
        there, other = False, boot_id > 0
        for process in self.processes:
            if process.is_of(side, rank):
                there, other = True, other and not process.may_be(boot_id)
                why = self.own(process) or (self.silence(process) if message else "")
                if why:
                    return why
                if process.over == "cut":
                    return f"the trace of {process.name} has no ending: it may have done more than it wrote down"
        whom = f"receiver {rank}" if side == "receiver" else f"the sender of receiver rank {rank}"
        if there:
            return f"there is no trace of {whom} under boot id {boot_id}, but of another process" if other else ""
        return f"there is no trace of {whom}"

    @property
    def total(self) -> int:
        """How many events were inferred."""
        return sum(self.inferred.values())


__all__ = ["Gaps", "Process"]
