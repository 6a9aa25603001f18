"""What says that blocks are the sender's no more: the ledger's own moves, and the end of a sender's process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fsm.allocators import Allocator
from fsm.blocks import BlockLedger, Owner
from fsm.messages import BlockRef
from gpu_backend.process import ProcessIdentity, ProcessWatch

WATCHED_MAX: Final = 32
"""So many processes of the sender are watched at one time; there is one, and the predecessors that have not been
proved gone."""


class SettlingLedger(BlockLedger):
    """A ledger that notes which grants are the sender's no more: they landed, or the proof has come."""

    __slots__ = ("landed", "settled")

    def __init__(self, blocks: int, allocator: Allocator) -> None:
        super().__init__(blocks, allocator)
        self.landed: list[Owner] = []
        self.settled: list[Owner] = []

    def land(self, owner: Owner, refs: Sequence[BlockRef]) -> None:
        """See :class:`BlockLedger`."""
        super().land(owner, refs)
        self.landed.append(owner)
        self.settled.append(owner)

    def release(self, owner: Owner, refs: Sequence[BlockRef]) -> None:
        """See :class:`BlockLedger`."""
        super().release(owner, refs)
        self.settled.append(owner)


class SenderProcesses:
    """The processes of the sender that said hello, by their boot_id, until they are proved gone."""

    def __init__(self) -> None:
        self._watches: dict[int, ProcessWatch] = {}

    def watch(self, boot_id: int, process: ProcessIdentity) -> None:
        """That process said hello. The oldest is let go where there are too many: a peer may say anything."""
        if boot_id not in self._watches:
            self._watches[boot_id] = ProcessWatch(process)
            if len(self._watches) > WATCHED_MAX:
                self.forget(min(self._watches))

    def forget(self, boot_id: int) -> None:
        """Something else has proved that nothing of it is outstanding."""
        watch = self._watches.pop(boot_id, None)
        if watch is not None:
            watch.close()

    def gone(self) -> list[int]:
        """Those that have been proved gone since the last call, oldest first."""
        ended = [boot_id for boot_id, watch in self._watches.items() if watch.gone]
        for boot_id in ended:
            self.forget(boot_id)
        return sorted(ended)

    @property
    def fds(self) -> list[int]:
        """Readable when one of them has ended."""
        return [watch.fd for watch in self._watches.values() if watch.fd is not None]

    def close(self) -> None:
        """Watch nobody any more."""
        for boot_id in tuple(self._watches):
            self.forget(boot_id)
