"""The times of R3, R8 and R9, in one place, because they depend on each other."""

from __future__ import annotations

from dataclasses import dataclass

from fsm.errors import LocalError


@dataclass(frozen=True)
class Timing:
    """Times in seconds of the injected clock (in the simulator: ticks).

    ``deadline_s`` bounds every wait for the peer, counted from the last progress; ``queue_deadline_s`` the
    wait for one's own blocks, source blocks or result memory, and the peer is told of it at REGISTER, so that
    it waits as long as this side may rightly take. ``tombstone_s`` is the deadline plus the largest delay of
    a message.
    """

    deadline_s: float = 30.0
    queue_deadline_s: float = 300.0
    bootstrap_s: float = 300.0
    resend_s: float = 2.0
    tombstone_s: float = 60.0
    heartbeat_s: float = 5.0

    @property
    def longest_s(self) -> float:
        """Longer than any wait that these times, on both sides, can add up to."""
        return self.deadline_s + 2 * self.queue_deadline_s + self.bootstrap_s

    def __post_init__(self) -> None:
        for name in ("deadline_s", "queue_deadline_s", "bootstrap_s", "resend_s", "tombstone_s"):
            if not getattr(self, name) > 0:
                raise LocalError(f"{name}={getattr(self, name)}: expected more than 0 seconds")
        if self.heartbeat_s < 0:
            raise LocalError(f"heartbeat_s={self.heartbeat_s}: expected 0 (none) or more")
        if self.tombstone_s < self.deadline_s:
            raise LocalError(
                f"tombstone_s={self.tombstone_s}: expected at least deadline_s={self.deadline_s}; "
                "a tombstone must outlive every resend that it answers"
            )
