"""The receiver worker: a receiver of ``fsm`` with a pool, a transport, a copier and a control connection around it.

One ``poll`` is one tick: messages, proofs, landings and ended copies are told to the receiver, then it decides, and
what it decides is carried out. Nothing here walks over the requests: one is looked at when something happened to it,
and what ``fsm`` asks of all of them is one operation on columns.

Memory comes back in three ways, each told by the one who knows. Landing blocks come back when their copy has ended
(or their lease was released), or when the transport or the sender proves that nothing is written to them any more.
Result memory comes back when the caller releases the result. Nothing comes back on account of a clock.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from fsm.allocators import Allocator, Choices, FirstChoice, make_allocator
from fsm.column_receiver import ColumnReceiver
from fsm.effects import CopyOut, Effect, Ended, Moved, Recycle, Refused, Send, Watermark
from fsm.errors import LocalError, RemoteError
from fsm.messages import Grant, Message
from fsm.ranks import Observation
from fsm.receiver_facts import ReceiverConfig
from fsm.states import BlockState, State
from gpu_backend.config import ReceiverWorkerConfig, validate_config
from gpu_backend.control import ControlClient, CurveKeys, Greeted, Hello, Received, Rejected, Side
from gpu_backend.delivering import CopyKey, DeliveringWorker, Request
from gpu_backend.layout import make_layout
from gpu_backend.metrics import Stats
from gpu_backend.observe import Observer
from gpu_backend.outcomes import Delivery, Outcome
from gpu_backend.pool import BlockPool
from gpu_backend.process import ProcessIdentity
from gpu_backend.proofs import SenderProcesses, SettlingLedger
from gpu_backend.transports import make_receiver
from gpu_backend.transports.base import Broken, Landed, ReceiverTransport
from gpu_backend.worker import (
    Ending,
    Progress,
    ReceiverControl,
    check_room,
    check_tokens,
    log,
    new_boot_id,
)

if TYPE_CHECKING:
    from gpu_backend.collective import RankGroup

UNSENT_MAX: Final = 1024
"""So many messages are kept while nobody is there to hear them, so that the first request need not wait for the
protocol to repeat itself; whatever is lost beyond that, it does repeat."""

CLOSE_TICK_S: Final = 0.001

_UNPROVEN: Final[list[BlockPool]] = []
"""Pools that were closed while a sender may still have been writing: their memory is kept for good."""


class ReceiverWorker(DeliveringWorker):
    """One rank of a language worker. See ``gpu_backend.worker`` for threads and blocking.

    ``control`` (makes the control connection from a hello; tests: a wire in memory), ``group``, ``clock`` (seconds,
    monotonic), ``observer``, ``boot_id``, ``allocator`` and ``choices`` (what a hostile allocator asks)
    replace what would be made from the configuration.
    Raises :class:`LocalError` for a wrong configuration or a device or transport that is not present here.
    """

    side = "receiver"

    def __init__(
        self,
        config: ReceiverWorkerConfig,
        *,
        control: Callable[[Hello], ReceiverControl] | None = None,
        group: RankGroup | None = None,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
        boot_id: int | None = None,
        allocator: Allocator | None = None,
        choices: Choices | None = None,
    ) -> None:
        config = self.config = validate_config(config)
        ranks, options = config.ranks, config.pool
        boot_id = boot_id or new_boot_id()
        if ranks.receivers > 1:
            group = group or _meet(config, boot_id)
            boot_id = group.boot_id
        layout = make_layout(
            config.layout.block_tokens, config.layout.dim, dtype=config.layout.dtype,
            deepstack_levels=config.layout.deepstack_levels,
        )  # fmt: skip
        super().__init__(config, layout, clock=clock, observer=observer, boot_id=boot_id)
        self.layout = layout
        self._now = clock()
        self._choices = choices or FirstChoice()
        self._grants: dict[CopyKey, Grant] = {}
        self._unsent: dict[Message, None] = {}
        self._outcomes: list[Outcome] = []
        self._queue: deque[Effect] = deque()
        self._performing = False
        self._senders = SenderProcesses()
        self.transport = self._make_transport()
        self.ledger = SettlingLedger(options.blocks, allocator or make_allocator(options.allocator))
        self.receiver = ColumnReceiver(
            self._receiver_config(), self.ledger, boot_id=self.boot_id, ranks=ranks.receivers, flat=True
        )
        self.group = group
        self.rank_is_lost = False
        """Another rank of this receiver is gone; until :meth:`rejoin` nothing can be submitted."""
        self.control: ReceiverControl = (control or self._connect)(self._hello())
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            Send: self._do_send, CopyOut: self._do_copy_out, Recycle: self._do_recycle,
            Moved: self.reporter.moved, Watermark: self.reporter.watermark, Ended: self._do_ended,
            Refused: self.reporter.refused,
        }  # fmt: skip
        if config.observe.metrics:
            self.show_metrics()

    def _make_transport(self) -> ReceiverTransport:
        options = self.config.transport
        return make_receiver(options.name, self.pool, rank=self.rank, boot_id=self.boot_id, options=options.options)

    def _receiver_config(self) -> ReceiverConfig:
        config, traits = self.config, self.transport.traits
        return ReceiverConfig(
            self.layout,
            rank=config.ranks.rank,
            sender_rank=config.ranks.sender_rank,
            total_tokens_max=config.limits.total_tokens_max,
            grant_blocks_max=config.limits.grant_blocks_max,
            result_tokens=config.results.tokens,
            results_held=True,
            landed_required=traits.landed_required,
            two_sided=not traits.one_sided,
            descriptors=self.transport.descriptors(),
            timing=config.timing.timing(),
        )

    def _hello(self) -> Hello:
        return Hello(
            role="receiver", rank=self.rank, boot_id=self.boot_id, process=ProcessIdentity.of_self(),
            transport=self.transport.traits.name, data=b"",
        )  # fmt: skip

    def _connect(self, hello: Hello) -> ControlClient:
        options = self.config.control
        return ControlClient(
            options.address, hello, keys=CurveKeys.load(options.keys) if options.keys else None,
            server_key=options.server_key or None, sender_rank=self.config.ranks.sender_rank,
            insecure=options.insecure, message_bytes_max=options.message_bytes_max,
        )  # fmt: skip

    # --- what the caller says -------------------------------------------------------------------------

    def submit(self, room: int, *, early_tokens: int = 0, lease: bool = False) -> None:
        """Begin to receive a request.

        ``early_tokens`` > 0 grants that many before its length is known. ``lease``: if it fits into one grant, hand
        out the landing blocks themselves instead of a copy. With several ranks, every rank submits the same
        requests in the same order.

        Raises :class:`LocalError` if the room is in use here or a number is out of range, and after ``close``;
        nothing is changed then.
        """
        self._check_usable("submit")
        check_room(room)
        if self.rank_is_lost:
            raise LocalError("submit: a rank of this receiver was lost; expected rejoin() on every rank first")
        check_tokens("early_tokens", early_tokens, 0, self.config.limits.total_tokens_max)
        self._now = self._clock()
        effects = self.receiver.submit(room, self._now, early_tokens=early_tokens)
        self._requests[room] = Request(room, self.receiver.rooms[room].epoch, lease)
        self.reporter.submitted()
        self._perform(effects)

    def abort(self, room: int) -> None:
        """End a request; its outcome comes with the next poll. Raises :class:`LocalError` if there is none."""
        self._check_usable("abort")
        check_room(room)
        if room not in self._requests:
            raise LocalError(f"room={room}: nothing to abort; expected the room of a request that has not ended")
        self.receiver.abort(room)

    def poll(self) -> list[Outcome]:
        """One tick. Returns the requests that ended since the last one.

        With several ranks this waits for the others, at most ``ranks.timeout_s``.
        """
        self._check_usable("poll")
        self._step()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def progress(self, room: int) -> Progress:
        """How far a request is, or was when it ended. Raises :class:`LocalError` for an unknown room."""
        live = self.receiver.rooms.get(room)
        if live is not None:
            return Progress(live.handled_tokens, live.delivered_tokens, live.total_tokens)
        self.state(room)
        return self._ended[room].progress

    def _live_state(self, room: int) -> State | None:
        live = self.receiver.rooms.get(room)
        return State(live.state) if live is not None else None

    def stats(self) -> Stats:
        """Counters, and what is held. May be called from any thread. It looks at every block once."""
        return Stats(
            side=self.side, rank=self.rank, boot_id=self.boot_id, counters=self.reporter.counters,
            rooms=len(self._requests), waiting=len(self.receiver.waiting),
            blocks={str(state): count for state, count in self.ledger.counts().items()},
            free_result_tokens=self.receiver.free_result_tokens, under_way=len(self._copies),
            rank_is_lost=self.rank_is_lost,
            transport=dict(self.transport.counts),
        )  # fmt: skip

    def _sleep(self, timeout_s: float) -> bool:
        now = self._clock()
        timer = self.receiver.next_timer_s()
        if timer is not None:
            timeout_s = min(timeout_s, timer - now)
        if self._outcomes or self.copier.busy or timeout_s < 0:
            return True
        fds = [*self._senders.fds, self.copier.fd] if self._copies else self._senders.fds
        return self._rest(self.control, timeout_s, fds, busy=self.transport.busy)

    def close(self, drain_s: float = 2.0) -> None:
        """Abort what is left, tell the sender, and give everything back; the second call does nothing.

        Waits at most ``drain_s`` seconds until it is proved that nothing is written to the landing blocks any more.
        If that cannot be had, their memory is kept for as long as this process lives, and the log says so: a
        late write must not find it in other hands.
        """
        if self._closed:
            return
        self._check_usable("close")
        for room in tuple(self._requests):
            self.receiver.abort(room)
        self.rank_is_lost = self.config.ranks.receivers > 1  # no more collectives: this rank is the one that goes
        end = time.monotonic() + drain_s
        self._step()
        while not self._quiet() and time.monotonic() < end:
            time.sleep(CLOSE_TICK_S)
            self._step()
        self._closed = True
        text = self.ledger.audit()
        if text:
            self.reporter.audited(text)
        self.copier.close()
        self.transport.close()
        self.control.close()
        if self.group is not None:
            self.group.close()
        self._senders.close()
        if not self._quiet() and self.transport.traits.one_sided:
            log.warning("receiver %d: closed while writes may be under way; its pool is kept", self.rank)
            _UNPROVEN.append(self.pool)
        else:
            self.pool.close()
        self.results.close()
        self._close_watching()

    def _quiet(self) -> bool:
        counts = self.ledger.counts()
        return not (counts[BlockState.GRANTED] or counts[BlockState.QUARANTINED])

    # --- one tick -------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._now = self._clock()
        heard = self.control.poll(self.config.limits.messages_per_poll)
        for incoming in heard:
            self._take(incoming)
        if heard and self._unsent:
            self._unsent = {message: None for message in self._unsent if not self.control.send(message)}
        self._look_at_processes()
        for report in self.transport.poll():
            self._take_report(report)
        if self._copies:
            os.sched_yield()  # a loop that never waits would keep the interpreter from the copying thread
        for done in self.copier.poll():
            self._copied(done)
        for held in self._released.take():
            self._take_back(held)
        self._tick()
        self._take_small_copies()
        self._flush()
        self.reporter.tick()

    def _take_small_copies(self) -> None:
        """Copies that ended while they were begun: what they free is granted in the same round. Several ranks tick
        together, and only once a round."""
        if self.config.ranks.receivers == 1:
            done = self.copier.poll() if self._copies else []
            for copy in done:
                self._copied(copy)
            if done:
                self._tick()

    def _flush(self) -> None:
        for data in self.transport.take_outbox():
            self.control.send_side(data)

    def _tick(self) -> None:
        receiver = self.receiver
        if self.config.ranks.receivers == 1:
            effects = receiver.tick(self._now, self._choices)
            if effects:
                if self.reporter.active and receiver.waiting:
                    self.reporter.overtaken(effects, receiver.waiting)
                self._perform(effects)
            return
        observations = self._exchange(receiver.observe(self._now, self._choices))
        agreed = receiver.agree(observations)
        effects = receiver.decide(agreed, self._now, self._choices)
        self.reporter.decided(effects, agreed, len(observations), receiver.waiting)
        self._perform(effects)

    def _exchange(self, own: Observation) -> tuple[Observation, ...]:
        """R7: what every rank has seen, in rank order; this rank's own alone once another is lost."""
        from gpu_backend.collective import RankLost

        if self.group is None or self.rank_is_lost:
            return (own,)
        try:
            return self.group.exchange(own)
        except RankLost as error:
            log.error("receiver %d: %s", self.rank, error)
            self.rank_is_lost = True
            self.reporter.collective_lost()
            self.reporter.note("fault", f"a rank was lost: {error}")
            self._change_boot(new_boot_id(self.boot_id))
            return (self.receiver.observe(self._now, self._choices),)

    def _change_boot(self, boot_id: int) -> None:
        """R7: every request fails, and this rank speaks under a new boot_id, with a transport that was not made for
        the old one. What the old one was still receiving stays in quarantine until it is proved quiet."""
        old = self.transport
        old.close()
        self.boot_id = boot_id
        self.transport = self._make_transport()
        self.receiver.rank_lost(boot_id)
        self.receiver.config = self._receiver_config()
        self.control.set_hello(self._hello())
        if not old.traits.one_sided and self._awaits_writes_of(self.receiver.peer_boot_id):
            self._quiesced(self.receiver.peer_boot_id, "the link to it was destroyed")

    def _awaits_writes_of(self, boot_id: int) -> bool:
        """Whether blocks are granted to that sender process, or held back on its account. Only then is there a link
        whose end it notices, and takes another boot_id; of one that did not, nothing would be heard any more."""
        receiver = self.receiver
        return any(
            room.registered and room.peer_boot_id == boot_id and room.grant is not None
            for room in receiver.rooms.values()
        ) or any(tombstone.peer_boot_id == boot_id and tombstone.held for tombstone in receiver.tombstones.values())

    def rejoin(self) -> None:
        """Meet the other ranks again after one was lost. Waits for them, at most ``ranks.timeout_s``.

        Raises :class:`LocalError` if no rank is lost or requests have not ended yet, and
        :class:`gpu_backend.collective.RankLost` if the ranks do not come together in time; call it again then.
        """
        self._check_usable("rejoin")
        if self.group is None or not self.rank_is_lost or self._requests:
            raise LocalError(
                f"rejoin: expected a lost rank and no request that has not ended; there are {len(self._requests)}"
            )
        self.group.rebuild(0, boot_id=self.boot_id)
        if self.group.boot_id > self.boot_id:
            self._change_boot(self.group.boot_id)
        self.rank_is_lost = False

    # --- what is heard --------------------------------------------------------------------------------

    def _take(self, incoming: Any) -> None:
        """One thing from the control plane. Nothing that a peer says ends the loop (R11)."""
        room: int | None = None
        try:
            if isinstance(incoming, Received):
                room = getattr(incoming.message, "room", None)
                self.reporter.counters.messages_received += 1
                self.reporter.received(incoming.message)
                self._perform(self.receiver.receive(incoming.message, self._now))
            elif isinstance(incoming, Side):
                self.transport.on_message(incoming.boot_id, incoming.data)
            elif isinstance(incoming, Greeted):
                self._greeted(incoming.hello)
            elif isinstance(incoming, Rejected):
                self.reporter.counters.messages_refused += 1
                log.warning("receiver %d: refused a message: %s", self.rank, incoming.text)
        except RemoteError as error:
            self.reporter.counters.messages_refused += 1
            log.warning("receiver %d: from the sender: %s", self.rank, error)
        except Exception as error:
            self._room_error(room, "taking a message", error)

    def _greeted(self, hello: Hello) -> None:
        """A sender process said who it is: watch it, for its end is the proof that it writes no more."""
        self._senders.watch(hello.boot_id, hello.process)
        self.transport.peer_up(hello)
        self.receiver.reachable(self._now)

    def _look_at_processes(self) -> None:
        for boot_id in self._senders.gone():
            self.transport.peer_gone(boot_id)
            if self.transport.traits.process_exit_proves:
                self._quiesced(boot_id, "its process is gone")

    def _quiesced(self, boot_id: int, why: str) -> None:
        log.info("receiver %d: nothing of sender process %d is outstanding: %s", self.rank, boot_id, why)
        self.reporter.note("fault", f"nothing of sender process {boot_id} is outstanding: {why}")
        self._perform(self.receiver.quiesced(boot_id))

    def _take_report(self, report: Landed | Broken) -> None:
        if isinstance(report, Landed):
            room, epoch, seq = report
            self._check_trespass(report)
            try:
                self._perform(self.receiver.landed(room, epoch, seq, self._now))
            except Exception as error:
                self._room_error(room, "taking a landing", error)
        elif report.quiescent:
            self._senders.forget(report.boot_id)
            self._quiesced(report.boot_id, report.text)
        else:
            log.warning("receiver %d: link to sender process %d: %s", self.rank, report.boot_id, report.text)

    def _check_trespass(self, report: Landed) -> None:
        """I1, as far as it can be seen here: what landed must have been open to it."""
        grant = self._grants.get((report.room, report.epoch, report.seq))
        if grant is None or not self.reporter.active:
            return
        for ref in grant.blocks:
            if not self.ledger.may_write(ref, *report):
                text = f"a write of room {report.room} seq {report.seq} landed in block {ref.block}, not open to it"
                self.reporter.wrote(*report, grant.start, grant.capacity, text)

    # --- effects --------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        """Carry out effects in order, and those that follow from them; copies begin when all else is done."""
        self._note_settled()
        if effects:
            self._yields = 0
        self._queue.extend(effects)
        if self._performing:
            return
        self._performing = True
        try:
            while self._queue or self._copies_due:
                while self._queue:
                    effect = self._queue.popleft()
                    try:
                        self._handlers[type(effect)](effect)
                    except Exception as error:
                        self._room_error(self._room_of(effect), f"carrying out {type(effect).__name__}", error)
                due, self._copies_due = self._copies_due, []
                for copy in due:
                    self._begin_copy(copy)
        finally:
            self._performing = False

    def _room_of(self, effect: Effect) -> int | None:
        if isinstance(effect, Recycle):
            owner = self.ledger.record(effect.blocks[0]).owner if effect.blocks else None
            return owner.room if owner is not None else None
        return getattr(effect.message if isinstance(effect, Send) else effect, "room", None)

    def _note_settled(self) -> None:
        ledger = self.ledger
        if not ledger.settled:
            return
        for owner in ledger.landed:
            grant, room = self._grants.get(owner), self.receiver.rooms.get(owner.room)
            if grant is not None and room is not None and room.epoch == owner.epoch:
                count = min(grant.capacity, room.total_tokens - grant.start)
                self.reporter.wrote(owner.room, owner.epoch, owner.seq, grant.start, count)
        ledger.landed.clear()
        for owner in ledger.settled:
            self._grants.pop(owner, None)
            self.transport.settle(owner.room, owner.epoch, owner.seq)
        ledger.settled.clear()

    def _do_send(self, effect: Send) -> None:
        message = effect.message
        if type(message) is Grant and not effect.resend:
            self._grants[message.room, message.epoch, message.seq] = message
            self.transport.expect(message)
            self._flush()  # what the transport says of a grant does not come after the grant
        self.reporter.sent(effect)
        if not self.control.send(message) and len(self._unsent) < UNSENT_MAX:
            self._unsent[message] = None

    def _do_ended(self, effect: Ended) -> None:
        request = self._requests.get(effect.room)
        total = request.total_tokens if request is not None else -1
        self.reporter.ended(effect, total)
        if request is None or request.epoch != effect.epoch:
            return
        del self._requests[effect.room]
        delivery, lease = None, None
        state = State(effect.state)
        if state is State.SUCCESS:
            lease = request.lease
            if request.result is not None:
                delivery = Delivery(
                    request.room, request.epoch, request.position_delta, request.result, self._released.put
                )
        else:
            if request.result is not None:
                request.result.release()
            if request.lease is not None:
                request.lease.release()
        done = total if state is State.SUCCESS else 0
        self._remember(effect.room, Ending(state, effect.reason, Progress(done, done, total)))
        self._outcomes.append(Outcome(effect.room, state, effect.reason, total, delivery, lease, request.detail))


def _meet(config: ReceiverWorkerConfig, boot_id: int) -> RankGroup:
    """The group of this receiver's ranks; whatever they must decide alike by is compared first."""
    from gpu_backend.collective import RankGroup, hash_config

    ranks = config.ranks
    alike = (config.layout, config.results.tokens, config.limits, config.timing, ranks.receivers, ranks.senders)
    return RankGroup(
        ranks.rank, ranks.receivers, boot_id=boot_id, config_hash=hash_config(*alike), address=ranks.store,
        timeout_s=ranks.timeout_s, insecure=config.control.insecure,
    )  # fmt: skip
