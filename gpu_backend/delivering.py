"""The half of a receiver worker that puts requests together: copies out of landing blocks, leases, results.

The other half (``gpu_backend.receiver_worker``) hears, ticks and speaks. Whatever becomes of a copy, the receiver is
told of its end, once: only then are the blocks free that it read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fsm.column_receiver import ColumnReceiver
from fsm.effects import CopyOut, Effect, Recycle
from fsm.messages import Epoch, Layout
from fsm.reasons import Reason
from gpu_backend.checksum import Mode, check_mode, source_checksum
from gpu_backend.config import ReceiverWorkerConfig
from gpu_backend.copying import AT_ONCE_BYTES, Copier, CopyDone, CopyFault, CopyJob
from gpu_backend.layout import DEEPSTACK, MROPE_POSITIONS
from gpu_backend.observe import Observer
from gpu_backend.outcomes import Delivery, Lease
from gpu_backend.pool import BlockPool
from gpu_backend.results import Result, ResultArena
from gpu_backend.worker import Released, Worker, log

CopyKey = tuple[int, Epoch, int]
"""Room, epoch and seq of the grant whose chunk is copied."""

MROPE_FLAG: Final = 1
DEEPSTACK_FLAG: Final = 2
"""How a receiver notes what a request has."""


class Request:
    """What the worker keeps of a request besides what the receiver does."""

    __slots__ = (
        "detail",
        "epoch",
        "flags",
        "lease",
        "lease_wanted",
        "position_delta",
        "result",
        "room",
        "total_tokens",
    )

    def __init__(self, room: int, epoch: Epoch, lease_wanted: bool) -> None:
        self.room = room
        self.epoch = epoch
        self.lease_wanted = lease_wanted
        self.total_tokens = -1
        self.flags = 0
        self.result: Result | None = None
        self.position_delta = 0
        self.lease: Lease | None = None
        self.detail = ""


class DeliveringWorker(Worker):
    """The memory of a receiver worker, and the copies between its parts."""

    receiver: ColumnReceiver
    _now: float

    def __init__(
        self,
        config: ReceiverWorkerConfig,
        layout: Layout,
        *,
        clock: Callable[[], float],
        observer: Observer | None,
        boot_id: int,
    ) -> None:
        super().__init__(config, clock=clock, observer=observer, receiver_rank=config.ranks.rank, boot_id=boot_id)
        options = config.pool
        self._requests: dict[int, Request] = {}
        self._copies: dict[CopyKey, tuple[Request, CopyOut]] = {}
        self._copies_due: list[CopyOut] = []
        self._released = Released()
        self._mode: Mode = check_mode(config.checksum)
        self.pool = BlockPool(layout, options.blocks, device=options.device, huge_pages=options.huge_pages)
        self._token_bytes = sum(item.token_bytes for item in self.pool.map.items)
        self.results = ResultArena(layout, config.results.tokens, device=options.device, huge_pages=options.huge_pages)
        self.copier = Copier(
            self.pool, threads=config.results.copy_threads, checksum=config.checksum, at_once_bytes=AT_ONCE_BYTES
        )

    def _perform(self, effects: list[Effect]) -> None:
        raise NotImplementedError

    def _do_copy_out(self, effect: CopyOut) -> None:
        self._copies_due.append(effect)  # what is sent in the same tick leaves first

    def _do_recycle(self, effect: Recycle) -> None:
        if effect.clear_headers:
            self.pool.clear_headers(effect.blocks)

    # --- copies ---------------------------------------------------------------------------------------

    def _begin_copy(self, effect: CopyOut) -> None:
        """Begin a copy out, or hand out a lease. Whatever goes wrong, the receiver is told of the end."""
        key = effect.room, effect.epoch, effect.seq
        try:
            request = self._requests[effect.room]
            self._learn(request)
            if request.lease_wanted and effect.whole:
                self._begin_lease(request, effect)
                return
            if request.result is None:
                flags = request.flags
                request.result = self.results.take(
                    request.total_tokens, has_mrope=bool(flags & MROPE_FLAG), has_deepstack=bool(flags & DEEPSTACK_FLAG)
                )
            blocks = [ref.block for ref in effect.blocks]
            self.copier.submit(
                CopyJob(key, blocks, effect.start, effect.tokens, request.result, effect.first, effect.checksum)
            )
            self._copies[key] = request, effect
        except Exception as error:
            self.reporter.counters.room_errors += 1
            log.error("receiver %d: room %d: cannot copy: %r", self.rank, effect.room, error, exc_info=error)
            self._copy_failed(key, Reason.INTERNAL, f"cannot copy: {type(error).__name__}: {error}")

    def _learn(self, request: Request) -> None:
        live = self.receiver.rooms[request.room]
        request.total_tokens, request.flags = live.total_tokens, live.flags

    def _begin_lease(self, request: Request, effect: CopyOut) -> None:
        key = effect.room, effect.epoch, effect.seq
        blocks = [ref.block for ref in effect.blocks]
        skip = _absent(request.flags)
        if effect.checksum is not None:
            found = source_checksum(self.pool, blocks, 0, effect.tokens, mode=self._mode, skip=skip, first=True)
            if found not in (None, effect.checksum):
                text = f"checksum of the landed blocks {found:#018x}, the sender's is {effect.checksum:#018x}"
                self._copy_failed(key, Reason.CHECKSUM, text)
                return
        _, delta = self.pool.read_header(blocks[0])
        request.lease = Lease(
            effect.room, effect.epoch, effect.seq, effect.tokens, delta, self.pool, effect.blocks, skip,
            self._released.put,
        )  # fmt: skip
        self.reporter.delivered(*key, 0, effect.tokens, effect.tokens * self._token_bytes)
        self._perform(self.receiver.lease(*key, delta, self._now))

    def _copied(self, done: CopyDone) -> None:
        key: CopyKey = done.key  # type: ignore[assignment]  # it was submitted with that key
        request, effect = self._copies.pop(key)
        if done.error is not None:
            reason = Reason.CHECKSUM if done.fault is CopyFault.CHECKSUM else Reason.INTERNAL
            self._copy_failed(key, reason, done.error)
            return
        if effect.first:
            request.position_delta = done.position_delta
        try:
            if self._requests.get(request.room) is request:
                self.reporter.delivered(*key, effect.start, effect.tokens, effect.tokens * self._token_bytes)
            effects = self.receiver.copied(*key, done.position_delta, self._now)
        except Exception as error:
            self._room_error(None, f"room {request.room}: taking the end of a copy", error)
            self._copy_failed(key, Reason.INTERNAL, f"taking the end of a copy: {error}")
            return
        self._perform(effects)

    def _copy_failed(self, key: CopyKey, reason: Reason, text: str) -> None:
        request = self._requests.get(key[0])
        if request is not None and request.epoch == key[1] and not request.detail:
            request.detail = text
        self._perform(self.receiver.copy_failed(*key, reason, self._now))

    def _take_back(self, held: Delivery | Lease) -> None:
        """The caller is done with the memory of a request."""
        if isinstance(held, Delivery):
            held.memory.release()
        else:
            self._perform(self.receiver.copied(held.room, held.epoch, held.seq, 0, self._now))
        self.receiver.release_result(held.room, held.epoch)

    def _fail_room(self, room: int, text: str) -> None:
        request = self._requests.get(room)
        if request is not None:
            request.detail = request.detail or text
            if room in self.receiver.rooms:
                self.receiver.abort(room, Reason.INTERNAL)


def _absent(flags: int) -> frozenset[str]:
    """The items that a request does without, from its flags."""
    names = ((MROPE_POSITIONS, MROPE_FLAG), (DEEPSTACK, DEEPSTACK_FLAG))
    return frozenset(name for name, bit in names if not flags & bit)
