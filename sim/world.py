"""The world: receivers, senders, memory and network under a virtual clock.

A world offers a list of *actions* and applies the one that is picked. Whatever it leaves open inside an action (which
blocks an allocator gives, say) is asked of ``choices``. There is no other source of nondeterminism: the same
scenario and the same picks give the same run, and the same digest, byte for byte.

Time moves only in the action ``time``, which is offered when nothing else can change anything, and then leaps to the
next timer. So a deadline that fires means that somebody waited for something that was not coming.

The protocol's decisions are all made in ``fsm``; what stands here is physics: messages travel, bytes land,
processes die.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

from fsm.allocators import Choices, make_allocator
from fsm.blocks import BlockLedger
from fsm.effects import CopyOut, Effect, Ended, Moved, Recycle, Refused, Send, Stage, Unstage, Watermark, Write
from fsm.errors import LocalError
from fsm.events import (
    Audited,
    Decided,
    Delivered,
    Executed,
    Finished,
    Granted,
    LedgerRefused,
    Note,
    Overtaken,
    Progressed,
    Received,
    Repeated,
    Sent,
    StateChanged,
)  # fmt: skip
from fsm.invariants import Monitors
from fsm.messages import Epoch, Grant, Message, describe
from fsm.ranks import Agreed, Observation, fold
from fsm.receiver import Receiver
from fsm.rules import Rules, word_progress
from fsm.sender import Sender
from sim import writes
from sim.flight import GONE, Copying, Flight
from sim.memory import Memory
from sim.network import Network, Stray
from sim.plan import plan_of
from sim.scenario import Faults, Scenario

Action = tuple[Any, ...]
"""A kind and what it is done to: ``("deliver", 0)``, ``("tick",)``."""

AUDIT_ALWAYS_BLOCKS = 32
"""Up to this pool size the ledger is audited after every action; larger pools after every sixteenth, and at the end."""


class Observer(Protocol):
    """Looks on where no event tells which blocks are meant: told just before, it reads the world and changes
    nothing."""

    def write_begins(self, flight: Flight) -> None:
        """A sender begins to write."""

    def bytes_land(self, flight: Flight) -> None:
        """The bytes of a write reach the memory that they were for, if it is still there."""

    def copy_ends(self, rank: int, effect: CopyOut) -> None:
        """Blocks have been copied out, or have been used where they are."""


class World:
    """One run. ``rules`` are those in force; ``flat`` drives the lifecycles by flat lookup; ``notes`` also records what
    is only worth reading (messages); ``arrive_any_time`` lets requests that come later come at any moment.
    ``observer`` may be set at any time."""

    def __init__(
        self,
        scenario: Scenario,
        rules: Rules,
        *,
        flat: bool = False,
        notes: bool = False,
        arrive_any_time: bool = False,
    ) -> None:
        self.scenario = scenario
        self.rules = rules
        self.flat = flat
        self.notes = notes
        self.observer: Observer | None = None
        self.arrive_any_time = arrive_any_time
        ranks = scenario.ranks
        plan = self.plan = plan_of(scenario)
        self.receiver_ranks = range(ranks.receivers)
        self.sender_of = plan.sender_of
        self.served_by = plan.served_by
        self.requests = plan.requests
        self.arrivals = plan.arrivals
        self.arrived = 0
        self.sending: dict[int, int] = {}
        self.receiving: dict[tuple[int, Epoch], int] = {}
        self.now: float = 0
        self.ticks = 0
        self.quiet = False
        self.touched = "all"
        """What the last action may have changed: ``sender``, ``memory`` (and senders), ``receiver`` (and its memory),
        or ``all``."""
        self.blind = rules.progress is word_progress
        """No rule looks into memory, so bytes that land are news to nobody before their STATUS comes."""
        self.skews = scenario.schedule.rank_skew_ticks > 0 and ranks.receivers > 1
        self.ticks_free = scenario.schedule.ticks_free or self.skews
        self.hostile = scenario.pool.allocator == "adversary" and scenario.pool.refusals_max > 0
        self.last_boot_id = 1
        self.disturbed = False
        self.incarnations = [1] * ranks.receivers
        """For each rank: the boot_id under which its memory came to be."""
        self.dead_boots: tuple[tuple[int, int], ...] = ()
        self.entered: list[Observation | None] = [None] * ranks.receivers
        self.agreed: Agreed | None = None
        self.left: tuple[int, ...] = ()
        self.skewed = 0
        self.budget = _budget_of(scenario.faults)
        self.network = Network(ranks.receivers)
        self.flights: tuple[Flight, ...] = ()
        self.copies: tuple[Copying, ...] = ()
        self.leases: tuple[Copying, ...] = ()
        """Landed blocks that are kept instead of a copy."""
        self.results: tuple[tuple[int, int, int, Epoch], ...] = ()
        """Results in use: rank, incarnation of its memory, room, epoch."""
        self.stagings: tuple[tuple[int, int, int], ...] = ()
        """Payloads being staged: sender rank, its boot_id, and the room."""
        self.monitors = Monitors()
        self.events: list[Any] = []
        self.receivers = [self._new_receiver(rank, 1) for rank in self.receiver_ranks]
        self.senders = [self._new_sender(rank, 1) for rank in range(ranks.senders)]
        self.memories = [self._new_memory(rank) for rank in self.receiver_ranks]
        self._receiver_effects: dict[type[Any], Callable[[int, Any], None]] = {
            Send: self._receiver_sends, CopyOut: self._copy_out, Recycle: self._recycle,
            Moved: self._receiver_moved, Watermark: self._watermark, Ended: self._receiver_ended,
            Refused: self._refused,
        }  # fmt: skip
        self._sender_effects: dict[type[Any], Callable[[int, Any], None]] = {
            Send: self._sender_sends, Write: self._write, Stage: self._stage, Unstage: self._unstage,
            Moved: self._sender_moved, Ended: self._sender_ended,
        }  # fmt: skip
        self._submit_first()

    # --- making ---------------------------------------------------------------------------------------

    def _new_receiver(self, rank: int, boot_id: int) -> Receiver:
        pool = self.scenario.pool
        options: dict[str, int] = {}
        if pool.allocator == "adversary":
            # One budget for all ranks: what they grant is the smallest offer, so it is all one which of them refuses.
            options = {"refusals_max": 0 if rank else pool.refusals_max}
        elif pool.allocator == "stingy":
            options = {"blocks_max": pool.stingy_blocks}
        ledger = BlockLedger(self.scenario.pool_blocks(rank), make_allocator(pool.allocator, **options))
        config = self.plan.receiver_configs[rank]
        return Receiver(config, ledger, boot_id=boot_id, rules=self.rules, flat=self.flat)

    def _new_sender(self, rank: int, boot_id: int) -> Sender:
        config = self.plan.sender_configs[rank]
        return Sender(config, boot_id=boot_id, rules=self.rules, flat=self.flat)

    def _new_memory(self, rank: int) -> Memory:
        pool = self.scenario.pool
        return Memory(self.scenario.pool_blocks(rank), pool.block_tokens, self.rules, pool.stale_header_tokens or 0)

    def new_boot_id(self) -> int:
        """Boot ids grow, across both sides."""
        self.last_boot_id += 1
        return self.last_boot_id

    # --- arrivals -------------------------------------------------------------------------------------

    def _submit_first(self) -> None:
        first: list[int] = []
        while self.arrived < len(self.arrivals) and self._may_arrive(0) and not self._next_arrival_tick():
            first.append(self.arrivals[self.arrived])
            self.sending[self.requests[first[-1]].room] = first[-1]
            self.arrived += 1
        order = list(reversed(first)) if self.scenario.schedule.sender_order == "reversed" else first
        for index in order:
            self._submit_to_senders(index)
        for index in first:
            self._submit_to_receivers(index)

    def _next_arrival_tick(self) -> int:
        return self.requests[self.arrivals[self.arrived]].arrives_at_tick

    def _may_arrive(self, ticks: int) -> bool:
        """Whether the next request may arrive: its time has come, and its room is free on both sides."""
        if self.arrived >= len(self.arrivals):
            return False
        request = self.requests[self.arrivals[self.arrived]]
        if request.arrives_at_tick > ticks and not self.arrive_any_time:
            return False
        room = request.room
        return room not in self.sending and not any(room in receiver.rooms for receiver in self.receivers)

    def arrive(self) -> None:
        """The next request is submitted on both sides."""
        index = self.arrivals[self.arrived]
        self.arrived += 1
        self._submit_to_senders(index)
        self._submit_to_receivers(index)

    def _submit_to_senders(self, index: int) -> None:
        request = self.requests[index]
        self.sending[request.room] = index
        payload = self.scenario.payload
        for rank, sender in enumerate(self.senders):
            if self.served_by[rank]:
                try:
                    effects = sender.submit(
                        request.room, request.tokens, self.now, has_mrope=payload.mrope,
                        has_deepstack=payload.deepstack_levels > 0,
                    )  # fmt: skip
                except LocalError as error:  # refused at submit: larger than the source pool, say
                    self._note("refused", f"sender {rank}: {error}")
                    self.sending.pop(request.room, None)
                    continue
                self._from_sender(rank, effects)

    def _submit_to_receivers(self, index: int) -> None:
        request = self.requests[index]
        for rank in self.receiver_ranks:
            receiver = self.receivers[rank]
            effects = receiver.submit(request.room, self.now, early_tokens=request.grant_tokens or 0)
            self.receiving[request.room, receiver.rooms[request.room].epoch] = index
            self._from_receiver(rank, effects)

    # --- ticks ----------------------------------------------------------------------------------------

    def tick(self, choices: Choices) -> None:
        """One tick of the receivers' loop, all ranks in step."""
        self.ticks += 1
        before = self.refusals_left() if self.hostile else []
        observations = [
            receiver.observe(self.now, choices, memory.header_total)
            for receiver, memory in zip(self.receivers, self.memories, strict=True)
        ]
        agreed = fold(tuple(observations), self.rules)
        changed = False
        for rank in self.receiver_ranks:
            changed |= self._decide(rank, agreed, choices)
        self.quiet = not changed and (not self.hostile or before == self.refusals_left())

    def refusals_left(self) -> list[Hashable]:
        """What is left of the budget of a hostile allocator: a tick in which it refuses may be worth repeating."""
        return [receiver.ledger.allocator.save() for receiver in self.receivers]

    def _decide(self, rank: int, agreed: Agreed, choices: Choices) -> bool:
        receiver = self.receivers[rank]
        effects = receiver.decide(agreed, self.now, choices)
        if len(self.receivers) > 1:
            self._emit(Decided(len(self.receivers), rank, _decisions(effects, agreed)))
        if receiver.waiting:
            for effect in effects:
                message = effect.message if type(effect) is Send and not effect.resend else None
                if type(message) is Grant and message.seq == 0:
                    self._emit(Overtaken(rank, message.room, receiver.waiting))
        self._from_receiver(rank, effects)
        return bool(effects)

    def enter(self, rank: int, choices: Choices) -> None:
        """A rank enters the collective with what it has seen so far; the last one completes it.

        Whatever reaches a rank from the first entry on, or is refused in it, may need another collective.
        """
        if all(entered is None for entered in self.entered):
            self.quiet = True
        before = self.refusals_left()
        self.entered[rank] = self.receivers[rank].observe(self.now, choices, self.memories[rank].header_total)
        if before != self.refusals_left():
            self.quiet = False
        observations = [entered for entered in self.entered if entered is not None]
        if len(observations) == len(self.receivers):
            self.agreed = fold(tuple(observations), self.rules)
            self.ticks += 1

    def leave(self, rank: int, choices: Choices) -> None:
        """A rank comes out of the collective and acts on what was agreed."""
        if self.agreed is None:
            raise LocalError(f"rank {rank} cannot leave: the collective is not complete")
        if self._decide(rank, self.agreed, choices):
            self.quiet = False
        self.left += (rank,)
        if len(self.left) == len(self.receivers):
            self.reset_collective()

    def reset_collective(self) -> None:
        """The collective is over, or has failed for want of a rank."""
        if self.left and len(self.left) < len(self.receivers):
            self._emit(Decided(0, -1, ()))
        self.entered = [None] * len(self.receivers)
        self.agreed, self.left, self.skewed = None, (), 0

    # --- time -----------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When the next timer of any process fires."""
        times = [receiver.next_timer_s() for receiver in self.receivers]
        times += [sender.next_timer_s() for sender in self.senders]
        return min((time for time in times if time is not None), default=None)

    def pass_time(self, choices: Choices) -> None:
        """Leap to the next timer, and let everybody look at the clock."""
        timer = self.next_timer()
        self.now = self.now if timer is None else max(timer, self.now)
        for rank, sender in enumerate(self.senders):
            self._from_sender(rank, sender.tick(self.now))
        self.reset_collective()
        self.tick(choices)
        self.quiet = False

    # --- messages -------------------------------------------------------------------------------------

    def deliver(self, channel: int, message: Message) -> None:
        """Hand a message to whom it is for."""
        if self.notes:
            self.events.append(Received("receiver" if channel % 2 else "sender", message))
        rank = channel // 2
        if channel % 2:
            self._from_receiver(rank, self.receivers[rank].receive(message, self.now))
        else:
            sender = self.sender_of[rank]
            self._from_sender(sender, self.senders[sender].receive(message, self.now))

    def deliver_stray(self, stray: Stray) -> None:
        """The same for a stray; if it repeats what this process took already, nothing may change (I8)."""
        target = self.target(stray.channel)
        if stray.repeats != target.boot_id:
            self.deliver(stray.channel, stray.message)
            return
        before = target.save(self.now)
        self.deliver(stray.channel, stray.message)
        changed = "" if target.save(self.now) == before else "its state changed"
        self._emit(Repeated(self.target_name(stray.channel), describe(stray.message), changed))

    def target(self, channel: int) -> Receiver | Sender:
        """Who is at the end of a channel."""
        rank = channel // 2
        return self.receivers[rank] if channel % 2 else self.senders[self.sender_of[rank]]

    def target_name(self, channel: int) -> str:
        """The same in words."""
        rank = channel // 2
        return f"receiver {rank}" if channel % 2 else f"sender {self.sender_of[rank]}"

    # --- effects --------------------------------------------------------------------------------------

    def _from_receiver(self, rank: int, effects: list[Effect]) -> None:
        for effect in effects:
            self._receiver_effects[type(effect)](rank, effect)

    def _from_sender(self, rank: int, effects: list[Effect]) -> None:
        for effect in effects:
            self._sender_effects[type(effect)](rank, effect)

    def _receiver_sends(self, rank: int, effect: Send) -> None:
        message = effect.message
        if type(message) is Grant and not effect.resend:
            self._emit(
                Granted(rank, message.room, message.epoch, message.seq, message.start, message.capacity, message.blocks)
            )
        self._send(2 * rank, effect)

    def _sender_sends(self, rank: int, effect: Send) -> None:
        self._send(2 * effect.message.receiver_rank + 1, effect)

    def _send(self, channel: int, effect: Send) -> None:
        under_way = self.network.send(channel, effect.message)
        if self.notes:
            side = "sender" if channel % 2 else "receiver"
            self.events.append(Sent(side, effect.message, effect.resend, not under_way))

    def _copy_out(self, rank: int, effect: CopyOut) -> None:
        if self.scenario.schedule.copy_lags:
            self.copies += (Copying(rank, self.incarnations[rank], effect),)
        else:
            self.end_copy(rank, effect)

    def end_copy(self, rank: int, effect: CopyOut) -> None:
        """A copy out has ended. What is compared is what the blocks hold now, at the very end of it."""
        if self.observer is not None:
            self.observer.copy_ends(rank, effect)
        request = self.receiving[effect.room, effect.epoch]
        memory = self.memories[rank]
        blocks = [ref.block for ref in effect.blocks]
        wrong = memory.wrong(blocks, request, effect.start, effect.tokens)
        delta = memory.headers[blocks[0]].delta if effect.first else 0
        if effect.first and not wrong and delta != request + 1:
            wrong = "the position delta in the first header is not that of this request"
        self._emit(Delivered(rank, effect.room, effect.epoch, effect.seq, effect.start, effect.tokens, wrong))
        name = effect.room, effect.epoch, effect.seq, delta, self.now
        if effect.whole and self.scenario.pool.lease:
            self.leases += (Copying(rank, self.incarnations[rank], effect),)
            self._from_receiver(rank, self.receivers[rank].lease(*name))
        else:
            self._from_receiver(rank, self.receivers[rank].copied(*name))

    def end_lease(self, index: int) -> None:
        """The blocks that were kept come back. What they hold must still be what it was."""
        rank, incarnation, effect = self.leases[index]
        self.leases = self.leases[:index] + self.leases[index + 1 :]
        if self.incarnations[rank] != incarnation:
            return
        if self.observer is not None:
            self.observer.copy_ends(rank, effect)
        request = self.receiving[effect.room, effect.epoch]
        wrong = self.memories[rank].wrong([ref.block for ref in effect.blocks], request, effect.start, effect.tokens)
        if wrong:
            text = f"room {effect.room} rank {rank}: its leased blocks were overwritten: {wrong}"
            self._emit(LedgerRefused(rank, effect.room, "I1", text))
        copied = self.receivers[rank].copied(effect.room, effect.epoch, effect.seq, 0, self.now)
        self._from_receiver(rank, copied)

    def end_result(self, index: int) -> None:
        """The caller has used a result."""
        rank, incarnation, room, epoch = self.results[index]
        self.results = self.results[:index] + self.results[index + 1 :]
        if self.incarnations[rank] == incarnation:
            self.receivers[rank].release_result(room, epoch)

    def _recycle(self, rank: int, effect: Recycle) -> None:
        self.memories[rank].recycle(effect.blocks, effect.clear_headers)

    def _receiver_moved(self, rank: int, effect: Moved) -> None:
        self._emit(
            StateChanged("receiver", rank, effect.room, effect.epoch, effect.event, effect.source, effect.target)
        )

    def _sender_moved(self, rank: int, effect: Moved) -> None:
        self._emit(
            StateChanged(
                "sender", effect.receiver_rank, effect.room, effect.epoch, effect.event, effect.source, effect.target
            )
        )

    def _watermark(self, rank: int, effect: Watermark) -> None:
        self._emit(Progressed(rank, effect.room, effect.epoch, effect.tokens))

    def _receiver_ended(self, rank: int, effect: Ended) -> None:
        if self.scenario.result.held and effect.epoch is not None:
            self.results += ((rank, self.incarnations[rank], effect.room, effect.epoch),)
        self._finished("receiver", effect)

    def _sender_ended(self, rank: int, effect: Ended) -> None:
        self._finished("sender", effect)

    def _finished(self, side: str, effect: Ended) -> None:
        index = self.sending.get(effect.room, -1)
        if side == "receiver" and effect.epoch is not None:
            index = self.receiving.get((effect.room, effect.epoch), -1)
        total = self.requests[index].tokens if index >= 0 else -1
        self._emit(
            Finished(
                side, effect.receiver_rank, effect.room, effect.epoch, effect.state, effect.reason, total,
                not self.disturbed and (index < 0 or self.plan.fits[index]),
            )
        )  # fmt: skip
        self.room_left(effect.room)

    def room_left(self, room: int) -> None:
        """Forget who sends a room once no sender has it any more."""
        if room in self.sending and not any(room in sender.rooms for sender in self.senders):
            del self.sending[room]

    def _refused(self, rank: int, effect: Refused) -> None:
        self._emit(LedgerRefused(rank, effect.room, effect.property, effect.text))

    def _write(self, rank: int, effect: Write) -> None:
        grant = effect.grant
        born = self.incarnations[grant.receiver_rank]
        self._emit(
            Executed(grant.receiver_rank, grant.room, grant.epoch, grant.seq, grant.start, effect.tokens)
        )
        flight = Flight(
            grant, effect.source_start, effect.tokens, effect.total_tokens, self.sending[grant.room],
            self.senders[rank].boot_id, born if grant.epoch.boot_id >= born else GONE, False, False,
            not self.scenario.schedule.notice_lags,
        )  # fmt: skip
        if self.observer is not None:
            self.observer.write_begins(flight)
        if self.scenario.schedule.status_lags_data and not self.scenario.schedule.data_lags_status:
            writes.put(self, flight)
            flight = flight._replace(landed=True)
        self.flights += (flight,)

    def _stage(self, rank: int, effect: Stage) -> None:
        if self.scenario.schedule.staging_lags:
            self.stagings += ((rank, self.senders[rank].boot_id, effect.room),)
        else:
            self.end_staging(rank, effect)

    def end_staging(self, rank: int, effect: Stage) -> None:
        """A payload is staged."""
        self._from_sender(rank, self.senders[rank].staged(effect.room, self.now))

    def _unstage(self, rank: int, effect: Unstage) -> None:
        self.room_left(effect.room)

    # --- seeing ---------------------------------------------------------------------------------------

    def _emit(self, event: Any) -> None:
        self.events.append(event)
        self.monitors.take(event)

    def _note(self, kind: str, text: str) -> None:
        if self.notes:
            self.events.append(Note(kind, text))

    def note_fault(self, text: str) -> None:
        """Record that something went wrong on purpose."""
        self._note("fault", text)

    def audit(self) -> None:
        """I3, on every rank."""
        for rank, receiver in enumerate(self.receivers):
            text = receiver.ledger.audit()
            if text:
                self._emit(Audited(rank, text))

    def all_ended(self) -> bool:
        """Whether every request has arrived and ended on both sides."""
        return (
            self.arrived == len(self.arrivals)
            and not any(receiver.rooms for receiver in self.receivers)
            and not any(sender.rooms for sender in self.senders)
        )

    def done(self) -> bool:
        """Whether the run is over: all have ended, nothing is under way, nothing is awaited."""
        return (
            self.all_ended()
            and self.network.empty
            and not self.network.cut
            and not self.flights
            and not self.copies
            and not self.leases
            and not self.results
            and not self.stagings
            and not self.dead_boots
            and all(receiver.resting for receiver in self.receivers)
            and all(sender.resting for sender in self.senders)
        )

    def left_behind(self) -> str:
        """L2: what is still owned or held now that all is over; empty if nothing is."""
        for rank, receiver in enumerate(self.receivers):
            free, blocks = receiver.ledger.free_count, len(receiver.ledger)
            if free != blocks:
                return f"receiver {rank}: {blocks - free} of {blocks} blocks are not free"
            result_tokens = self.scenario.result.tokens
            if result_tokens and receiver.free_result_tokens != result_tokens:
                return f"receiver {rank}: {result_tokens - receiver.free_result_tokens} result tokens are reserved"
        for rank, sender in enumerate(self.senders):
            source_blocks = self.scenario.source.blocks
            if sender.free_source_blocks != source_blocks:
                return f"sender {rank}: {source_blocks - sender.free_source_blocks} source blocks are pinned"
        return ""


def _budget_of(faults: Faults) -> dict[str, int]:
    """How often each fault may still happen."""
    return {
        "duplicate": faults.duplicate_max, "delay": faults.delay_max, "drop": faults.drop_max,
        "abort": faults.abort_max, "sender_crash": faults.sender_crash_max,
        "receiver_crash": faults.receiver_crash_max, "partition": faults.partition_max,
        "clock_jump": faults.clock_jump_max, "poison": faults.poison_max,
        "heartbeat_loss": faults.heartbeat_loss_max, "duplicate_room": faults.duplicate_room_max,
    }  # fmt: skip


def _decisions(effects: list[Effect], agreed: Agreed) -> tuple[tuple[int, str], ...]:
    """What a rank decided, for comparison with the others. A failure does not wait for a rank that does not have the
    request (it died and came back, say), and that rank has nothing to decide about it."""
    moves = [(effect.room, effect.event) for effect in effects if type(effect) is Moved]
    if not moves:
        return ()
    for effect in effects:
        if type(effect) is Send and type(effect.message) is Grant and not effect.resend:
            grant = effect.message
            moves.append((grant.room, f"seq {grant.seq}: {grant.capacity} tokens from {grant.start}"))
    known = {room.room: room.known for room in agreed.rooms}
    return tuple([move for move in moves if move[1] != "fail" or known.get(move[0], True)])
