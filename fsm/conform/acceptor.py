"""An acceptor: reads events in one causal order, and refuses the first that the protocol cannot do.

It holds, for each epoch that lives, where the lifecycle of each side stands (:mod:`fsm.conform.lanes`). An event is
accepted if the lifecycle table has a row for it, under guards that the kernel computes, and if what the protocol asks
for beside the tables has happened: a grant is sent once its row was taken, a write begins once its grant came, a
watermark is what a STATUS said, an answer follows what it answers. What comes in may come at any time and any number
of times; it only makes more possible (R3, R8). All checkers of :mod:`fsm.invariants` see the same events.

Where a precondition was not seen, it is inferred if :mod:`fsm.conform.gaps` has a reason why it may be missing, and
counted; else that is the refusal. What an epoch needs is kept while it lives, and for the last ``KEEP_EPOCHS`` that
have ended; so a trace of any length takes bounded memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from fsm import kernel
from fsm.conform.gaps import Gaps, Process
from fsm.conform.lanes import TABLES, Lane, ReceiverLane, SenderLane, rows_to, target_of
from fsm.conform.messages import HEARD, MessageRules
from fsm.conform.refusal import Refusal, Refused
from fsm.conform.words import could_have, lane_text, why_refused
from fsm.events import (
    Delivered,
    Executed,
    Finished,
    Granted,
    Note,
    Progressed,
    Received,
    Restarted,
    Sent,
    StateChanged,
    Wrote,
)
from fsm.invariants import LIVENESS, Monitors, Violation
from fsm.kernel import INT, UNKNOWN
from fsm.messages import Epoch
from fsm.states import State

KEEP_EPOCHS: Final = 8192
"""So many epochs that have ended are remembered."""

_REMEMBERED_BY: Final = {"receiver": "granted", "sender": "executed"}

_STATES: Final = {side: frozenset(map(str, table.states)) for side, table in TABLES.items()}

HOLE: Final = "hole"
"""The kind of a note that says: events are missing here."""

Key = tuple[int, int, Epoch]
"""(receiver rank, room, epoch)"""


class _Owner(NamedTuple):
    """Whose some blocks are: an epoch, its lane, the grant; and the blocks, in its order."""

    key: Key
    lane: ReceiverLane
    seq: int
    blocks: list[int]


class Acceptor:
    """Reads the events of some processes in one order. ``violations`` are those of liveness, which refuse nothing."""

    def __init__(self, processes: Sequence[Process], *, keep_epochs: int = KEEP_EPOCHS) -> None:
        self.gaps = Gaps(processes)
        self.monitors = Monitors()
        self.receivers: dict[Key, ReceiverLane] = {}
        self.senders: dict[Key, SenderLane] = {}
        self.violations: list[Violation] = []
        self.process = processes[0] if processes else Process()
        self.ended: dict[str, int] = {}
        self.notes = 0
        """So many events were only to be read."""
        self._keep_epochs = keep_epochs
        self._over: deque[tuple[str, Key]] = deque()
        self._alike: dict[tuple[int, Epoch], tuple[int, int, int]] = {}
        self._owners: dict[int, dict[int, _Owner]] = {}
        """By receiver rank: block -> what it was granted for last."""
        self.forgotten: dict[tuple[str, int], Epoch] = {}
        """By side and receiver rank: the newest epoch of which nothing is remembered any more."""
        messages = MessageRules(self)
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            StateChanged: self._changed, Granted: self._granted, Executed: self._executed, Wrote: self._wrote,
            Progressed: self._progressed, Delivered: self._delivered, Finished: self._finished,
            Restarted: self._restarted, Sent: messages.sent, Received: messages.received, Note: self._note,
        }  # fmt: skip

    def take(self, event: Any, process: Process) -> None:
        """Accept the next event, which that process tells. Raises :class:`Refused`."""
        self.process = process
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)
        else:
            self.watch(event)

    def watch(self, event: Any) -> None:
        """Show an event to the checkers. Raises :class:`Refused` for one that breaks a safety property."""
        monitors = self.monitors
        monitors.take(event)
        if monitors.violations:
            found, monitors.violations = monitors.violations, []
            for violation in found:
                if violation.property not in LIVENESS:
                    name, text = violation
                    raise Refused(Refusal(name, text, self._state_of(event), self._could(event), name))
                self.violations.append(violation)

    def begin(self, process: Process) -> None:
        """Another process of that side and rank goes on, with no memory of what was under way."""
        if process.side == "sender":
            ranks = process.served or tuple(sorted({key[0] for key in self.senders}))
            self._restarted(Restarted(ranks))
        elif process.side == "receiver":
            for key in [key for key in self.receivers if key[0] == process.rank]:
                self._forget("receiver", key, mark=False)

    # --- lifecycles -----------------------------------------------------------------------------------

    def _changed(self, event: StateChanged) -> None:
        side = event.side
        self._name(event, side, event.source)
        if event.epoch is None:
            self._changed_unnamed(event)
            return
        key = event.receiver_rank, event.room, event.epoch
        lane: Lane | None = self.receivers.get(key) if side == "receiver" else self.senders.get(key)
        if lane is None:
            lane = self.unseen(side, key, event, begins=event.source == State.BOOTSTRAPPING)
        whole = lane.whole
        if lane.state != event.source:
            self._place(lane, event)
        if side == "receiver":
            self._before_receiver_row(lane, event, whole)  # type: ignore[arg-type]
        else:
            self._before_sender_row(lane, event, whole)  # type: ignore[arg-type]
        if target_of(side, lane.state, event.cause, lane.facts(event.cause, event.target)) != event.target:
            rule, text, property = why_refused(lane, event)
            self.refuse(event, rule, text, property, lane)
        if side == "receiver" and event.cause == "landed":
            lane.handled = lane.watermark  # type: ignore[attr-defined]
        lane.state = event.target
        self.watch(event)

    def _name(self, event: Any, side: str, state: str) -> None:
        """Refuse a side or a state that does not exist."""
        known = _STATES.get(side)
        if known is None:
            self.refuse(event, "table", f"there is no side '{side}'; there are {', '.join(TABLES)}")
        if state not in known:
            self.refuse(event, "table", f"there is no state '{state}'; there are {', '.join(map(str, State))}")

    def _changed_unnamed(self, event: StateChanged) -> None:
        """A lane that no receiver registered has no epoch; it can only fail."""
        target = target_of(event.side, event.source, event.cause, None) if event.cause == "fail" else ""
        if event.side != "sender" or event.source != State.BOOTSTRAPPING or target != event.target:
            self.refuse(event, "R8", "without an epoch a lane of a sender can fail in Bootstrapping, and nothing else")
        self.watch(event)

    def _place(self, lane: Lane, event: StateChanged) -> None:
        """The lane is elsewhere than the event says; its beginning may be missing."""
        if not lane.state:
            if event.source == State.BOOTSTRAPPING:
                lane.begin()
                return
            why = self.gaps.own(self.process)
            for source, cause, target in rows_to(lane.side, event.source):
                self.gaps.infer(f"{lane.side}: {source} -> {target} ({cause})", why)
            lane.state = event.source
            return
        if not lane.live:
            text = f"it had ended in {lane.state}; nothing leads out of there"
            self.refuse(event, "R8", text, "I4", lane)
        if event.cause == "resume" and isinstance(lane, ReceiverLane) and lane.state == State.RESUMING:
            self.refuse(event, "R2", f"watermark {lane.handled} was resumed already, as seq {lane.seq}", "I6", lane)
        self.refuse(event, "table", f"the lifecycle is in {lane.state}, not in {event.source}", "", lane)

    def _before_receiver_row(self, lane: ReceiverLane, event: StateChanged, whole: bool) -> None:
        cause = event.cause
        if cause == "registered":
            if not lane.boots:
                text = "no REGISTER_ACK came that fits"
                self.need_message("Received REGISTER_ACK", event, lane, text, "R8", whole=whole)
        elif cause == "grant":
            if lane.row or (lane.whole and not lane.first_grant_due()):
                self.refuse(event, "R3", "grant 0 is decided once, and was", "I6", lane)
            lane.row = "grant"
        elif cause == "resume":
            lane.row = "resume"
        else:
            lane.row = ""

    def _before_sender_row(self, lane: SenderLane, event: StateChanged, whole: bool) -> None:
        cause = event.cause
        if cause == "registered":
            if not lane.heard & HEARD["REGISTER"]:
                self.need_message("Received REGISTER", event, lane, "no REGISTER of this epoch came", "R8", whole=whole)
        elif cause == "grant":
            if not lane.grants:
                self._grant_unseen(lane, event)
            lane.row = "grant"
        elif cause == "committed":
            self._commit(lane, event)
        else:
            lane.row = ""

    def _grant_unseen(self, lane: SenderLane, event: StateChanged) -> None:
        """The grant came in a message that is not told: what the receiver says of it counts."""
        text = f"no GRANT of seq {lane.executed + 1} came that this process may execute"
        whole = lane.whole or lane.executed != UNKNOWN
        self.need_message("Received GRANT", event, lane, text, "R3", "I6", whole=whole)
        granted = self.receivers.get((event.receiver_rank, event.room, event.epoch))  # type: ignore[arg-type]
        if granted is not None and granted.seq == lane.executed + 1:
            lane.grants[granted.seq] = granted.start, granted.capacity

    def _commit(self, lane: SenderLane, event: StateChanged) -> None:
        if lane.state == State.TRANSFERRING and (lane.whole or lane.executed != UNKNOWN):
            if lane.executed == UNKNOWN or lane.row:
                self.refuse(event, "R3", "no grant was executed since the last was committed", "I6", lane)
            if lane.status is None or lane.status[0] != lane.executed:
                text = f"no STATUS of seq {lane.executed} was sent"
                self.need_message("Sent STATUS", event, lane, text, "R3", whole=True)
        if event.target == State.SUCCESS and lane.total == UNKNOWN:
            lane.total = lane.end  # the row itself tells
        lane.committed = lane.end

    # --- grants and bytes -----------------------------------------------------------------------------

    def _granted(self, event: Granted) -> None:
        key = event.receiver_rank, event.room, event.epoch
        lane = self.receivers.get(key) or self.unseen("receiver", key, event)
        assert isinstance(lane, ReceiverLane)
        seq, start, capacity = event.seq, event.start, event.capacity
        if lane.row != ("resume" if seq else "grant"):
            self._grant_without_row(lane, event)
        lane.row = ""
        if lane.whole or lane.seq != UNKNOWN:
            self._check_grant(lane, event)
        elif seq:
            self.gaps.infer("Granted", self.gaps.own(self.process), seq)
        if not kernel.grant_fits(capacity, len(event.blocks), self.process.block_tokens or capacity):
            text = f"{capacity} tokens do not fit into {len(event.blocks)} blocks of {self.process.block_tokens}"
            self.refuse(event, "R3", text, "I1", lane)
        alike = self._alike.get((event.room, event.epoch))
        if alike is not None and alike[0] == seq and alike != (seq, start, capacity):
            text = (
                f"another rank granted {alike[2]} tokens from {alike[1]} as seq {seq}, this one {capacity} from {start}"
            )
            self.refuse(event, "R7", text, "I7", lane)
        self._alike[event.room, event.epoch] = seq, start, capacity
        self._take_blocks(key, lane, event)
        lane.seq, lane.start, lane.capacity = seq, start, capacity
        lane.open, lane.unsent, lane.word = True, True, UNKNOWN
        lane.last_resume_at = lane.handled = start
        if lane.watermark == UNKNOWN:
            lane.watermark = start  # R10: it says where the watermark is
        self.watch(event)

    def _take_blocks(self, key: Key, lane: ReceiverLane, event: Granted) -> None:
        """R5: a block that is granted, or has landed and is not copied out yet, is nobody else's."""
        size = self.process.block_tokens
        if not size:
            return
        owners, over = self._owners.setdefault(key[0], {}), None
        blocks = [ref[0] for ref in event.blocks]
        for block in blocks:
            before = owners.get(block)
            if before is None or before is over:
                continue
            if not before.lane.live or self.receivers.get(before.key) is not before.lane:
                over = before
            elif before.lane.holds(before.seq, before.blocks.index(block) * size):
                text = f"block {block} is that of room {before.key[1]} seq {before.seq}, not delivered yet"
                self.refuse(event, "R5", text, "I3", lane)
        owners.update(dict.fromkeys(blocks, _Owner(key, lane, event.seq, blocks)))

    def _grant_without_row(self, lane: ReceiverLane, event: Granted) -> None:
        why = self.gaps.own(self.process) if not lane.state else ""
        if why:
            lane.state = str(State.RESUMING if event.seq else State.WAITING)
            for source, cause, target in rows_to("receiver", lane.state):
                self.gaps.infer(f"receiver: {source} -> {target} ({cause})", why)
            if not event.seq:
                self.gaps.infer(f"receiver: {State.WAITING} -> {State.WAITING} (grant)", why)
            return
        if event.seq == 0:
            self.refuse(event, "table", "no row 'grant' was taken before it", "I6", lane)
        if lane.last_resume_at != UNKNOWN and lane.seq > 0 and lane.last_resume_at == lane.handled:
            text = f"watermark {lane.handled} was resumed already, as seq {lane.seq}"
        else:
            text = "no row 'resume' was taken before it"
        self.refuse(event, "R2", text, "I6", lane)

    def _check_grant(self, lane: ReceiverLane, event: Granted) -> None:
        if event.seq != lane.seq + 1:
            self.refuse(event, "R3", f"the next seq is {lane.seq + 1}, not {event.seq}", "I6", lane)
        if event.start != lane.handled and lane.handled != UNKNOWN:
            text = f"a grant starts at the watermark that was reached, {lane.handled}, not at {event.start}"
            self.refuse(event, "R10", text, "I2", lane)
        if event.seq and lane.total != UNKNOWN:
            size = self.process.block_tokens * len(event.blocks) or event.capacity
            most = kernel.grant_capacity(INT, lane.total - event.start, size, 1)
            if event.capacity != most and (event.capacity > most or self.process.block_tokens):
                text = f"{lane.total - event.start} tokens are missing and {len(event.blocks)} blocks are given: " \
                    f"the capacity is {most}, not {event.capacity}"  # fmt: skip
                self.refuse(event, "R3", text, "I1", lane)

    def _executed(self, event: Executed) -> None:
        key = event.receiver_rank, event.room, event.epoch
        lane = self.senders.get(key) or self.unseen("sender", key, event)
        assert isinstance(lane, SenderLane)
        placed = not lane.row
        if placed:
            if lane.state:
                before = event.seq <= lane.executed
                text = f"seq {event.seq} was executed already" if before else "no row 'grant' was taken"
                self.refuse(event, "R3", text, "I6", lane)
            lane.state = str(State.TRANSFERRING)
            for source, cause, target in rows_to("sender", lane.state):
                self.gaps.infer(f"sender: {source} -> {target} ({cause})", self.gaps.own(self.process))
        lane.row = ""
        if not lane.is_next(event.seq):
            self.refuse(event, "R3", f"the next seq is {lane.executed + 1}, not {event.seq}", "I6", lane)
        if lane.committed not in (UNKNOWN, event.start):
            text = f"a grant is executed from what was committed, {lane.committed}, not from {event.start}"
            self.refuse(event, "R3", text, "I2", lane)
        grant = lane.grants.get(event.seq)
        if grant is not None:
            self._check_execution(lane, grant, event)
        elif not lane.whole and (placed or lane.grants):  # those that came are late news
            self.gaps.infer("Received GRANT", self.gaps.own(self.process))
        lane.grants = {}
        lane.executed, lane.start, lane.end = event.seq, event.start, event.start + event.count
        self.watch(event)

    def _check_execution(self, lane: SenderLane, grant: tuple[int, int], event: Executed) -> None:
        start, capacity = grant
        if event.start != start:
            self.refuse(event, "R10", f"the grant starts at {start}, the write at {event.start}", "I2", lane)
        if lane.total != UNKNOWN:
            count = kernel.committed_after(INT, start, capacity, lane.total) - start
            if count != event.count:
                text = f"of {lane.total} tokens a grant of {capacity} takes {count}, and {event.count} are written"
                self.refuse(event, "R3", text, "I1", lane)
        elif not 0 < event.count <= capacity:
            self.refuse(event, "R3", f"{event.count} tokens are written under a grant of {capacity}", "I1", lane)

    def _wrote(self, event: Wrote) -> None:
        key = event.receiver_rank, event.room, event.epoch
        lane = self.receivers.get(key)
        if lane is None:
            lane = self.unseen("receiver", key, event)  # type: ignore[assignment]
        assert lane is not None
        if lane.seq != UNKNOWN and not event.trespass:
            if event.seq > lane.seq or (event.seq == lane.seq and event.start != lane.start):
                text = f"seq {event.seq} from {event.start} was not granted"
                self.refuse(event, "R3", text, "I1", lane)
            if lane.live and not (event.seq == lane.seq and lane.open) and lane.whole:
                text = f"a STATUS closed seq {event.seq}: nothing of it may be written any more"
                self.refuse(event, "R3", text, "I1", lane)
            if event.seq == lane.wrote:
                self.refuse(event, "R3", f"the bytes of seq {event.seq} had come: it was executed once", "I6", lane)
            lane.wrote = event.seq
        if lane.whole or event.trespass:
            self.watch(event)

    def _progressed(self, event: Progressed) -> None:
        key = event.receiver_rank, event.room, event.epoch
        lane = self.receivers.get(key)
        if lane is None:
            lane = self.unseen("receiver", key, event)  # type: ignore[assignment]
        assert lane is not None
        tokens = event.tokens
        if lane.seq == UNKNOWN and not lane.whole:
            lane.watermark = tokens
            return
        if not lane.open:
            self.refuse(event, "R1", "no grant is out, so no STATUS can say that there is more", "I5", lane)
        if lane.word != tokens:
            self._progress_unsaid(lane, event)
        sender = self.senders.get(key)
        if sender is not None and sender.executed < lane.seq and sender.whole:
            why = self.gaps.peer("sender", event.receiver_rank)
            if not why:
                self.refuse(event, "R1", f"its sender has not executed seq {lane.seq}", "I5", lane)
        if sender is not None and sender.executed == lane.seq and sender.end != tokens:
            self.refuse(event, "R1", f"its sender wrote seq {lane.seq} up to {sender.end}, not {tokens}", "I5", lane)
        if lane.total == UNKNOWN and tokens < lane.start + lane.capacity:
            lane.total = tokens
        lane.chunks[lane.seq] = lane.start, tokens - lane.start
        lane.watermark, lane.open, lane.word = tokens, False, UNKNOWN
        if lane.whole:
            self.watch(event)

    def _progress_unsaid(self, lane: ReceiverLane, event: Progressed) -> None:
        """No STATUS was seen that says this."""
        if lane.word != UNKNOWN:
            self.refuse(event, "R1", f"the STATUS of seq {lane.seq} says {lane.word}, not {event.tokens}", "I5", lane)
        text = f"no STATUS of seq {lane.seq} came"
        self.need_message("Received STATUS", event, lane, text, "R1", "I5", whole=True)
        total = lane.total if lane.total != UNKNOWN else max(event.tokens, lane.start + 1)
        if event.tokens != lane.committed_by(total):
            text = f"a grant of {lane.capacity} tokens from {lane.start} cannot be closed at {event.tokens}"
            self.refuse(event, "R3", text, "I5", lane)

    def _delivered(self, event: Delivered) -> None:
        key = event.receiver_rank, event.room, event.epoch
        lane = self.receivers.get(key)
        if lane is None:
            lane = self.unseen("receiver", key, event)  # type: ignore[assignment]
        assert lane is not None
        chunk = lane.chunks.pop(event.seq, None)
        if chunk is None:
            if lane.whole or (lane.watermark != UNKNOWN and event.start + event.count > lane.watermark):
                out = event.seq > lane.seq or (event.seq == lane.seq and lane.open)
                landed = "nothing of it has landed" if out else "it was delivered already"
                self.refuse(event, "R5", f"there is no chunk of seq {event.seq} to be delivered: {landed}", "I2", lane)
        elif chunk != (event.start, event.count):
            text = f"the chunk of seq {event.seq} is [{chunk[0]}, {chunk[0] + chunk[1]})"
            self.refuse(event, "R5", text, "I2", lane)
        elif lane.live and lane.handled < chunk[0] + chunk[1] and lane.total > lane.watermark:
            self.refuse(event, "R5", "the row 'landed' comes before its chunk is copied out", "I7", lane)
        if lane.delivered != UNKNOWN:
            lane.delivered += event.count
            self.watch(event)

    # --- endings --------------------------------------------------------------------------------------

    def _finished(self, event: Finished) -> None:
        self._name(event, event.side, event.state)
        self.ended[event.state] = self.ended.get(event.state, 0) + (event.side == "receiver")
        if event.epoch is None:
            self.watch(event)
            return
        key = event.receiver_rank, event.room, event.epoch
        lane: Lane | None = self.receivers.get(key) if event.side == "receiver" else self.senders.get(key)
        if lane is None:
            if event.reason == "CRASHED":  # told by a world, of a process that is dead
                self.watch(event)
                return
            lane = self.unseen(event.side, key, event)
        if not lane.state:
            for source, cause, target in rows_to(lane.side, event.state):
                self.gaps.infer(f"{lane.side}: {source} -> {target} ({cause})", self.gaps.own(self.process))
            lane.state = event.state
        if event.reason == "CRASHED" and lane.live:
            lane.state = str(State.FAILED)
        if lane.finished or lane.state != event.state:
            text = "it was told that this had ended" if lane.finished else f"the lifecycle is in {lane.state}"
            self.refuse(event, "R8", text, "I4", lane)
        if (event.reason == "NONE") != (event.state == State.SUCCESS):
            self.refuse(event, "R8", f"{event.state} has no reason {event.reason}", "", lane)
        lane.finished = True
        if lane.whole:
            self.watch(event)
        self.is_over(event.side, key)

    def _restarted(self, event: Restarted) -> None:
        ranks = event.receiver_ranks
        for key in [key for key in self.senders if key[0] in ranks]:
            self._forget("sender", key, mark=False)  # it may be told of that epoch anew, as another process
        self.watch(event)

    def is_over(self, side: str, key: Key) -> None:
        """Nothing more is expected of a lane: keep it for a while."""
        self._over.append((side, key))
        if len(self._over) > self._keep_epochs:
            old_side, old = self._over.popleft()
            lane: Lane | None = self.receivers.get(old) if old_side == "receiver" else self.senders.get(old)
            if lane is not None and (lane.finished or lane.state == State.BOOTSTRAPPING):
                self._forget(old_side, old)

    def _forget(self, side: str, key: Key, *, mark: bool = True) -> None:
        """The checkers' keys are (rank, room, epoch), alone or behind a side or a kind."""
        rank, room, epoch = key
        if side == "receiver":
            self.receivers.pop(key, None)
            self._alike.pop((room, epoch), None)
        else:
            self.senders.pop(key, None)
        if mark:
            self.forgotten[side, rank] = max(self.forgotten.get((side, rank), epoch), epoch)
        names = ((side, *key), key, (_REMEMBERED_BY[side], *key))
        for checker in self.monitors.checkers:
            memory = checker.memory
            if memory:
                for name in names if side == "receiver" else (names[0], names[2]):
                    memory.pop(name, None)

    def _note(self, event: Note) -> None:
        self.notes += 1
        if event.kind == "fault" and event.text == "poison":
            self.process.spoilt = True
        elif event.kind == HOLE:
            self._hole(self.process)

    def _hole(self, process: Process) -> None:
        """Events of that process are missing here: what is known of its requests may be true no more."""
        process.holes += 1
        process.born = None
        for side, lanes in (("receiver", self.receivers), ("sender", self.senders)):
            for key in [key for key in lanes if process.is_of(side, key[0])]:
                self._forget(side, key, mark=False)

    # --- what is missing, and what is refused ---------------------------------------------------------

    def is_old(self, side: str, key: Key) -> bool:
        """Whether an epoch may be one of which nothing is remembered any more."""
        return key[2] <= self.forgotten.get((side, key[0]), Epoch(-1, -1))

    def unseen(self, side: str, key: Key, event: Any, *, begins: bool = False) -> Lane:
        """A lane of which nothing was seen so far. ``begins``: the event is the first that it can have."""
        process = self.process
        why = self.gaps.own(process)
        born = process.born
        if side == "receiver" and why and born is not None and key[2] > born and key[2].boot_id == born.boot_id:
            why = ""  # epochs are counted up: the beginning of this one would be in the trace
        silent = self.gaps.silence(process)
        if not why and not (silent and begins):
            if self.is_old(side, key):
                self.refuse(event, "R8", "this epoch has ended, and so long ago that a tombstone is gone", "I4")
            missing = "no REGISTER of this epoch was sent" if side == "receiver" else "no REGISTER of this epoch came"
            self.refuse(event, "R8", f"{missing}: a room comes from a submit, and nothing else makes one", "I4")
        lane = ReceiverLane(whole=not why) if side == "receiver" else SenderLane(whole=not why)
        if silent and not why and side == "receiver":
            self.gaps.infer("Sent REGISTER", silent)
        self.add(side, key, lane)
        return lane

    def living(self) -> list[tuple[str, Key, Lane]]:
        """The epochs that have not ended, with where they stand. A lane that was asked for and never registered is
        none."""
        receivers = [("receiver", key, lane) for key, lane in self.receivers.items() if lane.live and lane.state]
        senders = [("sender", key, lane) for key, lane in self.senders.items() if lane.live and lane.state]
        return [*receivers, *(found for found in senders if found[2].state != State.BOOTSTRAPPING)]

    def add(self, side: str, key: Key, lane: Lane) -> None:
        """Keep a lane."""
        lanes: dict[Key, Any] = self.receivers if side == "receiver" else self.senders
        lanes[key] = lane

    def need_message(
        self, what: str, event: Any, lane: Lane, text: str, rule: str, property: str = "", *, whole: bool | None = None
    ) -> None:
        """A message was not seen: infer it if it may be missing, else refuse. ``whole``: whether everything about the
        lane that matters here must be in the trace (default: as the lane says)."""
        whole = lane.whole if whole is None else whole
        why = self.gaps.silence(self.process) or ("" if whole else self.gaps.own(self.process))
        if not why:
            self.refuse(event, rule, text, property, lane)
        self.gaps.infer(what, why)

    def refuse(self, event: Any, rule: str, text: str, property: str = "", lane: Lane | None = None) -> NoReturn:
        """The protocol cannot do this."""
        where = lane_text(lane) if lane is not None else "no epoch is known by that name"
        raise Refused(Refusal(rule, text, where, could_have(lane), property))

    def _lane_of(self, event: Any) -> Lane | None:
        epoch, room, rank = (getattr(event, name, None) for name in ("epoch", "room", "receiver_rank"))
        if epoch is None or room is None or rank is None:
            return None
        side = getattr(event, "side", "sender" if isinstance(event, Executed) else "receiver")
        lanes: dict[Key, Any] = self.receivers if side == "receiver" else self.senders
        return lanes.get((rank, room, epoch))

    def _state_of(self, event: Any) -> str:
        lane = self._lane_of(event)
        return lane_text(lane) if lane is not None else ""

    def _could(self, event: Any) -> tuple[str, ...]:
        return could_have(self._lane_of(event))

    @property
    def remembered(self) -> int:
        """How many lanes and entries of checkers are held."""
        lanes = len(self.receivers) + len(self.senders) + len(self._alike)
        return lanes + sum(len(checker.memory) for checker in self.monitors.checkers)


__all__ = ["HOLE", "KEEP_EPOCHS", "Acceptor", "Refusal", "Refused"]
