"""The sender worker: a sender of ``fsm`` with a source pool, a transport and a control connection around it.

A payload is handed over whole (``submit(room, payload)``), or made in place in the source pool
(``submit(room, total_tokens, fill=...)``), when the sender says that its source blocks are free. Copying into the
pool is cut into slices of ``limits.staging_bytes`` a poll, so that a large payload keeps nobody waiting.

When a two-sided link breaks, all its writes are over and none of them can be told from the others; so the worker
goes on as if its process had been started anew: a new boot_id, every request failed, an empty pool. To the receivers
that is a restart, which they know how to handle (R8).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch

from fsm.effects import Effect, Ended, Moved, Send, Stage, Unstage, Write
from fsm.errors import LocalError, RemoteError
from fsm.messages import Epoch, Message, Nack, NackCode, Register
from fsm.reasons import Reason
from fsm.sender import SenderConfig
from fsm.states import State
from fsm.timed_sender import TimedSender
from gpu_backend.checksum import Mode, check_mode, source_checksum
from gpu_backend.config import SenderWorkerConfig, validate_config
from gpu_backend.control import ControlServer, CurveKeys, Greeted, Hello, Received, Rejected, Side
from gpu_backend.knocks import Knocks
from gpu_backend.layout import DEEPSTACK, MROPE_POSITIONS, make_layout
from gpu_backend.metrics import Stats
from gpu_backend.observe import Observer
from gpu_backend.outcomes import LaneOutcome, SenderOutcome
from gpu_backend.pool import Payload, SourcePool, SourceView
from gpu_backend.process import ProcessIdentity
from gpu_backend.transports import make_sender
from gpu_backend.transports.base import LinkLost, SenderTransport, Sent, WriteFailed, WriteKey, WriteOrder
from gpu_backend.worker import (
    CLOSE_LINGER_S,
    Ending,
    Progress,
    SenderControl,
    Worker,
    check_room,
    check_tokens,
    log,
    new_boot_id,
)  # fmt: skip

Fill = Callable[[list[SourceView]], None]
"""Makes a payload in place: is given views over the source blocks, one for each run of adjacent ones."""


class _Request:
    """What the worker keeps of a request besides what the sender does."""

    __slots__ = (
        "blocks", "checksums", "detail", "fill", "has_deepstack", "has_mrope", "lanes", "payload", "position_delta",
        "reported", "room", "total_tokens", "writing",
    )  # fmt: skip

    def __init__(
        self, room: int, total_tokens: int, payload: Payload | None, fill: Fill | None, has_mrope: bool,
        has_deepstack: bool, position_delta: int,
    ) -> None:  # fmt: skip
        self.room = room
        self.total_tokens = total_tokens
        self.payload = payload
        self.fill = fill
        self.has_mrope = has_mrope
        self.has_deepstack = has_deepstack
        self.position_delta = position_delta
        self.blocks: tuple[int, ...] = ()
        self.lanes: dict[int, LaneOutcome] = {}
        self.reported = False
        self.detail = ""
        self.writing: dict[int, WriteKey] = {}
        """The last write for each receiver rank."""
        self.checksums: dict[tuple[int, int], int | None] = {}
        """By start and tokens: receiver ranks with equal grants share them."""

    @property
    def skip(self) -> frozenset[str]:
        names = ((MROPE_POSITIONS, self.has_mrope), (DEEPSTACK, self.has_deepstack))
        return frozenset(name for name, has in names if not has)


class _Staging(NamedTuple):
    """A payload on its way into the source pool; ``done`` blocks of it are there."""

    request: _Request
    done: int


class _Writing(NamedTuple):
    """A write that has begun."""

    order: WriteOrder
    checksum: int | None


class SenderWorker(Worker):
    """One rank of an encode worker. See ``gpu_backend.worker`` for threads and blocking.

    ``control``, ``clock``, ``observer`` and ``boot_id`` as for the receiver worker. Raises :class:`LocalError` for a
    wrong configuration or a device or transport that is not present here.
    """

    side = "sender"

    def __init__(
        self,
        config: SenderWorkerConfig,
        *,
        control: Callable[[Hello], SenderControl] | None = None,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
        boot_id: int | None = None,
    ) -> None:
        config = self.config = validate_config(config)
        options = config.pool
        layout = make_layout(
            config.layout.block_tokens, config.layout.dim, dtype=config.layout.dtype,
            deepstack_levels=config.layout.deepstack_levels,
        )  # fmt: skip
        super().__init__(config, clock=clock, observer=observer, receiver_rank=-1, boot_id=boot_id or new_boot_id())
        self.layout = layout
        self._now = clock()
        self._requests: dict[int, _Request] = {}
        self._stagings: deque[_Staging] = deque()
        self._writes: dict[WriteKey, _Writing] = {}
        self._knocks = Knocks(config.timing.bootstrap_s)
        self._outcomes: list[SenderOutcome] = []
        self._queue: deque[Effect] = deque()
        self._performing = False
        self._mode: Mode = check_mode(config.checksum)
        self.pool = SourcePool(layout, options.blocks, device=options.device, huge_pages=options.huge_pages)
        self._token_bytes = sum(item.token_bytes for item in self.pool.map.items)
        self.transport = self._make_transport()
        self.sender = self._make_sender()
        self.control: SenderControl = (control or self._listen)(self._hello())
        self.address: Final = self.control.endpoint
        """Where this worker listens: what goes into the receiver's ``control.address``."""
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            Send: self._do_send, Write: self._do_write, Stage: self._do_stage, Unstage: self._do_unstage,
            Moved: self.reporter.moved, Ended: self._do_ended,
        }  # fmt: skip
        if config.observe.metrics:
            self.show_metrics()

    def _make_transport(self) -> SenderTransport:
        options = self.config.transport
        return make_sender(options.name, self.pool, rank=self.rank, boot_id=self.boot_id, options=options.options)

    def _make_sender(self) -> TimedSender:
        config = self.config
        sender = SenderConfig(
            self.layout,
            rank=config.ranks.rank,
            receiver_ranks=config.ranks.receiver_ranks,
            senders=config.ranks.senders,
            source_blocks=config.pool.blocks,
            total_tokens_max=config.limits.total_tokens_max,
            timing=config.timing.timing(),
        )
        return TimedSender(sender, boot_id=self.boot_id, flat=True)

    def _hello(self) -> Hello:
        return Hello(
            role="sender", rank=self.rank, boot_id=self.boot_id, process=ProcessIdentity.of_self(),
            transport=self.transport.traits.name, data=self.transport.greeting(),
        )  # fmt: skip

    def _listen(self, hello: Hello) -> ControlServer:
        options = self.config.control
        return ControlServer(
            options.address, hello, receiver_ranks=self.config.ranks.receiver_ranks,
            keys=CurveKeys.load(options.keys) if options.keys else None, client_keys=options.client_keys or None,
            insecure=options.insecure, message_bytes_max=options.message_bytes_max,
        )  # fmt: skip

    # --- what the caller says -------------------------------------------------------------------------

    def submit(
        self,
        room: int,
        payload: Payload | int,
        *,
        fill: Fill | None = None,
        has_mrope: bool = True,
        has_deepstack: bool = False,
        position_delta: int = 0,
    ) -> None:
        """Begin to send a request: a whole payload, or a number of tokens and ``fill``.

        A payload's tensors must not change until the request has been staged (``staged``). ``fill(views)`` is
        called from within a later ``poll``, once, with views over source blocks that it must fill completely;
        an exception in it fails the request. ``has_mrope``, ``has_deepstack`` and ``position_delta`` say the rest
        about such a request; a payload says them itself.

        Raises :class:`LocalError` if the room is in use here, a tensor or a number is wrong (naming it, what was
        given and what was expected) or the request is larger than the source pool, and after ``close``; nothing is
        changed then.
        """
        self._check_usable("submit")
        check_room(room)
        request = self._request(room, payload, fill, has_mrope, has_deepstack, position_delta)
        self._now = self._clock()
        effects = self.sender.submit(
            room, request.total_tokens, self._now, has_mrope=request.has_mrope, has_deepstack=request.has_deepstack
        )
        self._requests[room] = request
        self.reporter.submitted(len(self.config.ranks.receiver_ranks))
        self._perform(effects)
        for message in self._knocks.take(room, tuple(self.config.ranks.receiver_ranks), self._now):
            self._take_message(message)

    def _request(
        self, room: int, payload: Payload | int, fill: Fill | None, has_mrope: bool, has_deepstack: bool, delta: Any
    ) -> _Request:
        if isinstance(payload, Payload):
            if fill is not None:
                raise LocalError("fill: given with a whole payload; expected one of the two")
            payload.validate(self.layout)
            return _Request(
                room, payload.tokens, payload, None, payload.has_mrope, payload.has_deepstack, payload.position_delta
            )
        if not callable(fill):
            raise LocalError(
                f"payload={payload!r}, fill={fill!r}: expected a Payload, or a number of tokens and a function to fill "
                "their blocks"
            )
        check_tokens("payload", payload, 1, self.config.limits.total_tokens_max)
        if has_deepstack and not self.config.layout.deepstack_levels:
            raise LocalError("has_deepstack=True: expected False, the layout has no levels of it")
        if not isinstance(delta, int) or not -(2**31) <= delta < 2**31:
            raise LocalError(f"position_delta={delta!r}: expected a whole number of 32 bits")
        return _Request(room, payload, None, fill, bool(has_mrope), bool(has_deepstack), delta)

    def abort(self, room: int) -> None:
        """End a request on this side, and tell the receivers. Raises :class:`LocalError` if there is none."""
        self._check_usable("abort")
        check_room(room)
        if room not in self.sender.rooms:
            raise LocalError(f"room={room}: nothing to abort; expected the room of a request that has not ended")
        self._now = self._clock()
        self._perform(self.sender.abort(room, self._now))

    def staged(self, room: int) -> bool:
        """Whether the payload is in the source pool, so that its own tensors may change or go."""
        request = self._requests.get(room)
        return request is None or (request.payload is None and request.fill is None)

    def poll(self) -> list[SenderOutcome]:
        """Move everything on. Returns the requests that ended, for every receiver rank, since the last call."""
        self._check_usable("poll")
        self._step()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def progress(self, room: int) -> Progress:
        """How far a request is at the receiver rank that is furthest behind (``watermark_tokens``: committed).

        Raises :class:`LocalError` for an unknown room.
        """
        record = self.sender.rooms.get(room)
        if record is not None:
            committed = min(lane.committed_tokens for lane in record.lanes.values())
            return Progress(committed, committed, record.total_tokens)
        self.state(room)
        return self._ended[room].progress

    def _live_state(self, room: int) -> State | None:
        """That of the lane that is furthest behind."""
        record = self.sender.rooms.get(room)
        if record is None or room not in self._requests:
            return None
        order = tuple(State)
        live = [State(lane.state) for lane in record.lanes.values() if lane.live]
        return min(live, key=order.index) if live else None

    def stats(self) -> Stats:
        """Counters, and what is held. May be called from any thread."""
        free = self.pool.free_blocks
        return Stats(
            side=self.side, rank=self.rank, boot_id=self.boot_id, counters=self.reporter.counters,
            rooms=len(self._requests), waiting=0, blocks={"Free": free, "Pinned": self.pool.blocks - free},
            free_result_tokens=0, under_way=len(self._writes), transport=dict(self.transport.counts),
        )  # fmt: skip

    def _sleep(self, timeout_s: float) -> bool:
        timer = self.sender.next_timer_s()
        if timer is not None:
            timeout_s = min(timeout_s, timer - self._clock())
        if self._outcomes or self._stagings or timeout_s < 0:
            return True
        return self._rest(self.control, timeout_s, [], busy=self.transport.busy)

    def close(self) -> None:
        """Abort what is left, tell the receivers, and give everything back; the second call does nothing.
        Waits for writes that cannot be stopped, and at most ``CLOSE_LINGER_S`` for the last messages to leave.
        """
        if self._closed:
            return
        self._check_usable("close")
        self._now = self._clock()
        for room in tuple(self.sender.rooms):
            self._perform(self.sender.abort(room, self._now))
        self._closed = True
        self.transport.close()
        self._flush()
        self.control.close(CLOSE_LINGER_S)
        self.pool.close()
        self._close_watching()

    # --- one round ------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._now = self._clock()
        for incoming in self.control.poll(self.config.limits.messages_per_poll):
            self._take(incoming)
        self._poll_transport()
        self._stage_some()
        effects = self.sender.tick(self._now)
        if effects:
            self._perform(effects)
        self._flush()
        self.reporter.tick()

    def _flush(self) -> None:
        for rank, data in self.transport.take_outbox():
            self.control.send_side(rank, data)

    def _poll_transport(self) -> None:
        lost: LinkLost | None = None
        for report in self.transport.poll():
            if isinstance(report, LinkLost):
                lost = report
            else:
                self._write_ended(report)
        if lost is not None:
            self._restart(lost)

    # --- what is heard --------------------------------------------------------------------------------

    def _take(self, incoming: Any) -> None:
        """One thing from the control plane. Nothing that a peer says ends the loop (R11)."""
        room: int | None = None
        try:
            if isinstance(incoming, Received):
                room = getattr(incoming.message, "room", None)
                self.reporter.counters.messages_received += 1
                self._take_message(incoming.message)
            elif isinstance(incoming, Greeted):
                self.sender.reachable(incoming.hello.rank, self._now)
            elif isinstance(incoming, Side):
                self.transport.on_message(incoming.rank, incoming.boot_id, incoming.data)
            elif isinstance(incoming, Rejected):
                self.reporter.counters.messages_refused += 1
                log.warning("sender %d: refused a message: %s", self.rank, incoming.text)
        except RemoteError as error:
            self.reporter.counters.messages_refused += 1
            log.warning("sender %d: from a receiver: %s", self.rank, error)
        except Exception as error:
            self._room_error(room, "taking a message", error)

    def _take_message(self, message: Message) -> None:
        if isinstance(message, Register):
            if not self._introduce(message):
                return
            if message.room not in self.sender.rooms:
                self._knocks.keep(message, self._now)
        self.reporter.received(message)  # of a REGISTER that came too early: once more when its room is submitted
        self._perform(self.sender.receive(message, self._now))

    def _introduce(self, message: Register) -> bool:
        """Let the transport read the descriptors before the sender sees a REGISTER of one of its receivers.

        Descriptors that make no sense are a malformed message, and are answered as such.
        """
        rank, boot_id = message.receiver_rank, message.boot_id
        known = self.sender.peer_boot_ids.get(rank)
        if known is None or boot_id < known or message.layout != self.layout:
            return True  # refused by the sender itself, with its own words
        try:
            self.transport.connect(rank, boot_id, message.descriptors)
        except RemoteError as error:
            self.reporter.counters.messages_refused += 1
            log.warning("sender %d: room %d: descriptors of receiver %d: %s", self.rank, message.room, rank, error)
            nack = Nack(
                message.room, message.epoch, self.rank, rank, NackCode.INCOMPATIBLE, "REGISTER", boot_id=self.boot_id,
                detail=str(error)[:256],
            )  # fmt: skip
            self._do_send(Send(nack))
            return False
        return True

    # --- effects --------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        """Carry out effects in order, and those that follow from them."""
        if effects:
            self._yields = 0
        self._queue.extend(effects)
        if self._performing:
            return
        self._performing = True
        try:
            while self._queue:
                effect = self._queue.popleft()
                try:
                    self._handlers[type(effect)](effect)
                except Exception as error:
                    self._effect_error(effect, error)
        finally:
            self._performing = False

    def _effect_error(self, effect: Effect, error: Exception) -> None:
        message = effect.message if isinstance(effect, Send) else effect
        room = effect.grant.room if isinstance(effect, Write) else getattr(message, "room", None)
        self._room_error(room, f"carrying out {type(effect).__name__}", error)
        if isinstance(effect, Write):
            grant = effect.grant
            key = WriteKey(grant.room, grant.epoch, grant.receiver_rank, grant.seq)
            if key not in self._writes:  # it never began, so nothing of it is outstanding
                self._queue.extend(self.sender.write_failed(*key, self._now))

    def _do_send(self, effect: Send) -> None:
        self.reporter.sent(effect)
        self.control.send(effect.message.receiver_rank, effect.message)

    def _do_write(self, effect: Write) -> None:
        grant = effect.grant
        request = self._requests[grant.room]
        self.reporter.executed(grant, effect.tokens)
        order = WriteOrder(
            grant, request.blocks, effect.source_start, effect.tokens, effect.total_tokens, request.skip,
            grant.start == 0,
        )  # fmt: skip
        self.transport.write(order)
        self._writes[order.key] = _Writing(order, None)
        request.writing[grant.receiver_rank] = order.key
        self._flush()
        if self._mode != "none":
            self._writes[order.key] = _Writing(order, self._checksum(request, order))

    def _checksum(self, request: _Request, order: WriteOrder) -> int | None:
        """Of a chunk; receiver ranks with equal grants share it."""
        key = order.source_start, order.tokens
        found = request.checksums.get(key)
        if found is None:
            found = request.checksums[key] = source_checksum(
                self.pool, request.blocks, order.source_start, order.tokens, mode=self._mode, skip=request.skip,
                first=order.first,
            )  # fmt: skip
        return found

    def _write_ended(self, report: Sent | WriteFailed) -> None:
        key = WriteKey(report.room, report.epoch, report.receiver_rank, report.seq)
        writing = self._writes.pop(key, None)
        checksum = None
        if isinstance(report, WriteFailed):
            self._note_detail(report.room, report.text)
        elif writing is not None:
            self.reporter.wrote_out(writing.order.tokens, writing.order.tokens * self._token_bytes)
            checksum = writing.checksum
        try:
            if isinstance(report, Sent):
                effects = self.sender.sent(*key, self._now, checksum=checksum)
            else:
                effects = self.sender.write_failed(*key, self._now)
        except Exception as error:
            self._room_error(report.room, "taking the end of a write", error)
            effects = self.sender.write_failed(*key, self._now)  # it is over, whatever became of the news
        self._perform(effects)

    def _do_ended(self, effect: Ended) -> None:
        """One receiver rank's part is over: stop its write if there is one, and tell the caller after the last."""
        request = self._requests.get(effect.room)
        self.reporter.ended(effect, request.total_tokens if request is not None else -1)
        if request is None:
            return
        key = request.writing.get(effect.receiver_rank)
        if key is not None and key in self._writes:
            self.transport.cancel(*key)
        request.lanes[effect.receiver_rank] = LaneOutcome(State(effect.state), effect.reason)
        if len(request.lanes) == len(self.config.ranks.receiver_ranks) and not request.reported:
            self._report(request)

    def _report(self, request: _Request) -> None:
        request.reported = True
        failed = [lane for lane in request.lanes.values() if lane.state is not State.SUCCESS]
        state = State.FAILED if failed else State.SUCCESS
        reason = failed[0].reason if failed else "NONE"
        done = 0 if failed else request.total_tokens
        self._remember(request.room, Ending(state, reason, Progress(done, done, request.total_tokens)))
        self._outcomes.append(
            SenderOutcome(request.room, state, reason, request.total_tokens, dict(request.lanes), request.detail)
        )
        self._let_go(request)

    # --- staging --------------------------------------------------------------------------------------

    def _do_stage(self, effect: Stage) -> None:
        request = self._requests[effect.room]
        request.blocks = self.pool.take(effect.blocks)
        self._stagings.append(_Staging(request, 0))

    def _do_unstage(self, effect: Unstage) -> None:
        request = self._requests.get(effect.room)
        if request is not None:
            self.pool.give_back(request.blocks)
            request.blocks = ()
            self._let_go(request)

    def _let_go(self, request: _Request) -> None:
        """A request is forgotten when it was reported and its source blocks are free."""
        if request.reported and not request.blocks:
            self._requests.pop(request.room, None)

    def _stage_some(self) -> None:
        """Copy at most ``limits.staging_bytes`` into the source pool; oldest first."""
        left_bytes = self.config.limits.staging_bytes
        while self._stagings and left_bytes > 0:
            request, done = self._stagings.popleft()
            try:
                if request.reported:
                    end = len(request.blocks)  # it ended meanwhile: nobody will read this
                elif request.fill is not None:
                    self._fill(request)
                    end = len(request.blocks)
                    left_bytes = 0
                else:
                    end = self._store_some(request, done, left_bytes)
                    left_bytes -= (end - done) * self.layout.block_tokens * self._token_bytes
            except Exception as error:
                self._room_error(request.room, "staging", error)
                end = len(request.blocks)
            if end < len(request.blocks):
                self._stagings.appendleft(_Staging(request, end))
                continue
            request.payload = request.fill = None
            self._perform(self.sender.staged(request.room, self._now))

    def _store_some(self, request: _Request, done: int, bytes_max: int) -> int:
        """Copy some blocks of a payload; returns how many are there now."""
        payload, block_tokens = request.payload, self.layout.block_tokens
        assert payload is not None
        count = max(1, bytes_max // (block_tokens * self._token_bytes))
        end = min(len(request.blocks), done + count)
        first, last = done * block_tokens, min(end * block_tokens, request.total_tokens)
        part = Payload(
            payload.input_embeddings[first:last],
            payload.fill_ids[first:last],
            payload.mrope_positions[first:last] if payload.mrope_positions is not None else None,
            payload.deepstack[first:last] if payload.deepstack is not None else None,
        )
        self.pool.store(request.blocks[done:end], part)
        if end == len(request.blocks):
            self.pool.write_header(request.blocks[0], request.total_tokens, request.position_delta)
        return end

    def _fill(self, request: _Request) -> None:
        assert request.fill is not None
        request.fill(self.pool.views(request.blocks, request.total_tokens))
        self.pool.write_header(request.blocks[0], request.total_tokens, request.position_delta)
        if self.pool.device.type == "cuda":
            torch.cuda.current_stream(self.pool.device).synchronize()

    # --- errors ---------------------------------------------------------------------------------------

    def _note_detail(self, room: int, text: str) -> None:
        request = self._requests.get(room)
        if request is not None and not request.detail:
            request.detail = text

    def _fail_room(self, room: int, text: str) -> None:
        self._note_detail(room, text)
        record = self.sender.rooms.get(room)
        if record is not None and any(lane.live for lane in record.lanes.values()):
            self._perform(self.sender.abort(room, self._now, Reason.INTERNAL))

    def _restart(self, lost: LinkLost) -> None:
        """Go on as a new process would. Closing the transport first proves that nothing of the old one goes on."""
        log.warning("sender %d: link to receiver %d: %s; going on anew", self.rank, lost.receiver_rank, lost.text)
        self._flush()
        self.transport.close()
        ended, self._requests = self._requests, {}
        failed = 0
        self._queue.clear()
        self._stagings.clear()
        self._writes.clear()
        for request in ended.values():
            if request.blocks:
                self.pool.give_back(request.blocks)
                request.blocks = ()
            if not request.reported:
                failed += len(self.config.ranks.receiver_ranks) - len(request.lanes)
                for rank in self.config.ranks.receiver_ranks:
                    request.lanes.setdefault(rank, LaneOutcome(State.FAILED, "PEER_GONE"))
                request.detail = request.detail or f"link to receiver {lost.receiver_rank}: {lost.text}"
                self._report(request)
        self.boot_id = new_boot_id(self.boot_id)
        self.reporter.restarted(self.config.ranks.receiver_ranks, failed, f"link to receiver {lost.receiver_rank} lost")
        self.transport = self._make_transport()
        self.sender = self._make_sender()
        self.control.set_hello(self._hello())


__all__ = ["Epoch", "Fill", "SenderWorker"]
