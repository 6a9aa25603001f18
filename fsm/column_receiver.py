"""The receiver for very many requests at once: the same, but for how it finds what there is to do.

:class:`fsm.receiver.Receiver` looks at every request in every tick and tells the other ranks of all of them, which is
right for a search and too slow for a worker with thousands of requests in flight. Here the facts of all requests stand
in columns (:mod:`fsm.columns`); one call of the decision kernel says which of them to look at, and if no row was
written since the last one found nothing, it is not even made; ranks tell each other what has changed since they last
did, and each keeps a *board* of what all have said. What is then done with a request
is the code of the base class, and a test holds the two against each other, effect by effect. As long as a receiver of
one rank has only a few requests, the base class looks at them itself, if there is any reason to.

A tick of one rank is :meth:`ColumnReceiver.tick`. Among several::

    observation = receiver.observe(now_s)         # what has changed here
    observations = exchange(observation)          # one collective, in rank order
    agreed = receiver.agree(observations)
    effects = receiver.decide(agreed, now_s)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, cast

from fsm.allocators import Choices, FirstChoice
from fsm.blocks import BlockLedger
from fsm.columns import NEVER, Columns
from fsm.effects import Effect, Refused, Send
from fsm.errors import LocalError
from fsm.kernel import MISMATCH, UNKNOWN
from fsm.messages import Abort, Epoch, Heartbeat, Message
from fsm.ranks import Agreed, AgreedRoom, Observation, Observed, fold, fold_room
from fsm.reasons import Reason
from fsm.receiver import STATE_NUMBER, Receiver, no_headers
from fsm.receiver_facts import ReceiverConfig
from fsm.receiver_room import ReceiverRoom, Tombstone
from fsm.rules import Headers
from fsm.wakes import Wakes

ROWS_MAX = 512
"""The most requests that one observation tells of; the others follow with the next."""

FEW = 24
"""So many requests, of a receiver with one rank, are looked at one by one: rows of arrays only pay for more."""

_FIRST = FirstChoice()
_Key = tuple[int, Epoch]


class ColumnReceiver(Receiver):
    """A receiver whose tick costs what has changed, and not what is there.

    ``ranks`` is how many ranks take part in a tick, ``rows_max`` how many requests one observation may tell of.
    Other parameters, methods and effects as for ``Receiver``; it follows the protocol, and no other rules.
    """

    def __init__(
        self,
        config: ReceiverConfig,
        ledger: BlockLedger,
        *,
        boot_id: int,
        ranks: int = 1,
        rows_max: int = ROWS_MAX,
        flat: bool = False,
        room_class: type[ReceiverRoom] | None = None,
    ) -> None:
        super().__init__(config, ledger, boot_id=boot_id, flat=flat, room_class=room_class)
        if ranks < 1 or rows_max < 1:
            raise LocalError(f"ranks={ranks}, rows_max={rows_max}: expected at least 1 of each")
        if config.rank >= ranks:
            raise LocalError(f"rank={config.rank}: expected 0 to {ranks - 1}, for there are ranks={ranks}")
        self.ranks = ranks
        self.rows_max = rows_max
        self.columns = Columns()
        self._changed: dict[int, None] = {}
        """Rooms whose rows are out of date."""
        self._untold: dict[int, None] = {}
        """Rooms that the other ranks may have to be told of."""
        self._told: dict[int, Observed] = {}
        self._board: list[dict[int, Observed]] = [{} for _ in range(ranks)]
        self._wakes: Wakes[_Key] = Wakes()
        self._version = 0
        self._looked = self._decided = -1
        """The versions of the rows when they were looked at as a whole, and when there was nothing to decide."""
        self._timer_due = False
        self._heard = False
        """Something was heard or decided that no tick has looked at (only where there are few requests)."""
        self._hungry = False
        """Somebody wanted blocks after the last tick (likewise)."""
        self._dropped = False
        """A row has gone since the rows were written last."""
        self._wanted = False
        """Whether any request may ask for blocks."""
        self._due_s = NEVER
        """When the next deadline or resend of a request is due, or earlier."""
        self._walked: tuple[int, int, int] | None = None
        """What the last walk over the candidates was made with: with the same, it would do nothing."""
        self._submitted = 0

    # --- what changes a row ---------------------------------------------------------------------------

    def submit(self, room: int, now_s: float, *, early_tokens: int = 0) -> list[Effect]:
        """As for ``Receiver``."""
        out = super().submit(room, now_s, early_tokens=early_tokens)
        self._take_up(room)
        return out

    def _take_up(self, room: int) -> None:
        self._submitted += 1
        self.columns.add(room)
        self.columns.write(room, order=self._submitted)
        self._touch(room)

    def receive(self, message: Message, now_s: float) -> list[Effect]:
        """As for ``Receiver``."""
        known = self.peer_boot_id
        out = super().receive(message, now_s)
        if self.peer_boot_id != known:
            self._touch_all()
        elif not isinstance(message, Heartbeat):
            self._touch(message.room)
        return out

    def landed(self, room: int, epoch: Epoch, seq: int, now_s: float) -> list[Effect]:
        """As for ``Receiver``."""
        out = super().landed(room, epoch, seq, now_s)
        self._touch(room)
        return out

    def copied(self, room: int, epoch: Epoch, seq: int, position_delta: int, now_s: float) -> list[Effect]:
        """As for ``Receiver``."""
        out = super().copied(room, epoch, seq, position_delta, now_s)
        self._touch(room)
        return out

    def lease(self, room: int, epoch: Epoch, seq: int, position_delta: int, now_s: float) -> list[Effect]:
        """As for ``Receiver``."""
        out = super().lease(room, epoch, seq, position_delta, now_s)
        self._touch(room)
        return out

    def copy_failed(self, room: int, epoch: Epoch, seq: int, reason: Reason, now_s: float) -> list[Effect]:
        """As for ``Receiver``."""
        out = super().copy_failed(room, epoch, seq, reason, now_s)
        self._touch(room)
        return out

    def quiesced(self, boot_id: int) -> list[Effect]:
        """As for ``Receiver``."""
        out = super().quiesced(boot_id)
        self._touch_all()
        return out

    def abort(self, room: int, reason: Reason = Reason.ABORTED) -> None:
        """As for ``Receiver``."""
        super().abort(room, reason)
        self._touch(room)

    def reachable(self, now_s: float) -> None:
        """As for ``Receiver``."""
        super().reachable(now_s)
        self._touch_all()
        for key in self.tombstones:
            self._wakes.at(key, now_s)

    def rank_lost(self, boot_id: int) -> None:
        """As for ``Receiver``; what the ranks told each other so far is void."""
        super().rank_lost(boot_id)
        self._forget_board()

    def _forget_board(self) -> None:
        self._board = [{} for _ in range(self.ranks)]
        self._told = {}
        for room in self.rooms:
            self.columns.write(room, known=False, registered=False, failure=0, total=UNKNOWN, committed=0)
        self._touch_all()

    def _touch(self, room: int) -> None:
        self._heard = True
        if room in self.rooms:
            self._changed[room] = None

    def _observe_failure(self, room: ReceiverRoom, reason: Reason) -> None:
        super()._observe_failure(room, reason)
        self._heard = True

    def _touch_all(self) -> None:
        self._heard = True
        self._changed = dict.fromkeys(self.rooms)

    def _refresh(self) -> None:
        """Write the rows of what has changed again."""
        for number in self._changed:
            room = self.rooms[number]
            progress = self._progress(room)
            self.columns.write(
                number, counter=room.epoch.counter, state=STATE_NUMBER[room.state], own_failure=int(room.failure),
                handled=room.handled_tokens, total_agreed=room.total_agreed, wants=self._wants_blocks(room),
                may_want=self._may_want_blocks(room, progress), since_s=room.progress_at, limit_s=self._limit(room)[0],
                resend_at_s=room.resend_at if room.pending is not None else NEVER,
            )  # fmt: skip
            if self.ranks == 1:
                self._note_agreed(number, self._seen(room))
            else:
                self._untold[number] = None
        if self._changed or self._dropped:
            self._changed, self._dropped = {}, False
            self._version += 1

    def _look(self) -> None:
        """What the rows come to as a whole, if any was written since it was looked at."""
        if self._looked != self._version:
            self._looked = self._version
            live = self.columns.column("live")
            self._wanted = bool((self.columns.column("may_want") & live).any())
            self._due_s = self.columns.next_s()

    def _progress(self, room: ReceiverRoom) -> int:
        config = self.config
        return self.rules.progress(room, config.layout.block_tokens, config.landed_required, no_headers)

    def _note_agreed(self, room: int, seen: AgreedRoom) -> None:
        self.columns.write(
            room, known=seen.known, registered=seen.registered, failure=seen.failure, total=seen.total_tokens,
            committed=seen.committed_tokens, delivered=seen.delivered_tokens,
        )  # fmt: skip

    # --- the tick -------------------------------------------------------------------------------------

    def tick(self, now_s: float, choices: Choices = _FIRST, headers: Headers = no_headers) -> list[Effect]:
        """A tick of a receiver of one rank. Raises :class:`LocalError` if there are several."""
        if self.ranks > 1:
            raise LocalError(f"tick: there are {self.ranks} ranks; call observe, exchange, agree and decide")
        if self._few:
            return self._tick_few(now_s, choices)
        self._heard = False
        return self.decide(self.agree((self.observe(now_s, choices),)), now_s, choices)

    def _tick_few(self, now_s: float, choices: Choices) -> list[Effect]:
        """A tick as the base class makes it, if there is any reason for one."""
        if not self._heard and now_s < self._next_few_s() and not (self._hungry and self.ledger.free_count):
            self._out = []
            return self._out
        self._heard = False
        observation = Receiver.observe(self, now_s, choices)
        effects = Receiver.decide(self, fold((observation,), self.rules), now_s, choices)
        self._hungry = any(self._wants_blocks(room) for room in self.rooms.values())
        self._changed = dict.fromkeys(self.rooms)  # their rows are written when there are many again
        return effects

    @property
    def _few(self) -> bool:
        return self.ranks == 1 and len(self.rooms) <= FEW

    def _next_few_s(self) -> float:
        """The next timer of all, without the rows."""
        wake_s = self._wakes.next_s()
        times = [NEVER if wake_s is None else wake_s]
        for room in self.rooms.values():
            times.append(room.progress_at + self._limit(room)[0] if not room.failure else NEVER)
            times.append(room.resend_at if room.pending is not None else NEVER)
        times += [self.heartbeat_at] if self.config.timing.heartbeat_s else []
        return min(times)

    def observe(self, now_s: float, choices: Choices = _FIRST, headers: Headers = no_headers) -> Observation:
        """What this rank brings to the tick: its free memory, and the requests about which something has changed
        (at most ``rows_max``; none if it is the only rank)."""
        self._refresh()
        self._look()
        self._timer_due = now_s >= self._due_s
        if self._timer_due:
            for number in self.columns.rooms(self.columns.overdue(now_s)):
                self.rooms[number].failure = self._overdue(self.rooms[number], now_s)
                self._touch(number)
            self._refresh()
            self._look()
        self._offered = self.ledger.offer(choices) if self._wanted else 0
        return Observation(self.config.rank, tuple(self._news()), self._offered, self.free_result_tokens)

    def _news(self) -> Iterable[Observed]:
        rows: list[Observed] = []
        for number in tuple(self._untold):
            if len(rows) == self.rows_max:
                break
            del self._untold[number]
            room = self.rooms[number]
            row = Observed(
                number, room.epoch, room.registered, room.total_tokens, room.flags, self._progress(room),
                room.delivered_tokens, int(room.failure),
            )  # fmt: skip
            if self._told.get(number) != row:
                self._told[number] = row
                rows.append(row)
        return rows

    def agree(self, observations: tuple[Observation, ...]) -> Agreed:
        """Take up what all ranks told, in rank order, and fold it (R7).

        After the loss of a rank, one's own observation alone will do: failures wait for nobody.
        """
        changed: dict[int, None] = {}
        for observation in observations:
            for row in observation.rooms:
                self._board[observation.rank][row.room] = row
                changed[row.room] = None
        for number in changed:
            seen = self._folded(number)
            if number in self.rooms:
                self._note_agreed(number, seen)
            elif seen.failure or seen.total_tokens == MISMATCH:
                self._clear(number)  # it is over for those that have it, and was never known here
        self._version += bool(changed)
        free_blocks = min(observation.free_blocks for observation in observations)
        free_result_tokens = min(observation.free_result_tokens for observation in observations)
        return Agreed((), free_blocks, free_result_tokens)

    def _folded(self, room: int) -> AgreedRoom:
        return fold_room([rows[room] for rows in self._board if room in rows], self.ranks, self.rules)

    def _clear(self, room: int) -> None:
        for rows in self._board:
            rows.pop(room, None)

    def _seen(self, room: ReceiverRoom) -> AgreedRoom:
        """A request as all ranks see it."""
        if self.ranks > 1:
            return self._folded(room.room)
        return AgreedRoom(
            room.room, room.epoch, True, room.registered, room.total_tokens, room.flags, self._progress(room),
            room.delivered_tokens, int(room.failure),
        )  # fmt: skip

    def decide(self, agreed: Agreed, now_s: float, choices: Choices = _FIRST) -> list[Effect]:
        """Act on what ``agree`` found."""
        out = self._out = []
        order = "order" if self.ranks == 1 else "room"
        if self._decided != self._version:
            self._decided = self._version
            for number in self.columns.rooms(self.columns.to_decide(), order):
                room = self.rooms[number]
                self._guarded(room, self._advance, room, self._seen(room), now_s)
                self._touch(number)
            self._refresh()
        self._walk_columns(agreed, now_s, choices, order)
        self._offered = 0
        self._timers(now_s)
        self._refresh()
        return out

    def _walk_columns(self, agreed: Agreed, now_s: float, choices: Choices, order: str) -> None:
        """As ``_walk``, and no further than there is something left to give."""
        inputs = agreed.free_blocks, agreed.free_result_tokens, self._version
        if inputs == self._walked:
            return
        wants = self.columns.column("wants") & self.columns.column("known")
        candidates = self._candidates(wants, order)
        left = agreed.free_blocks, agreed.free_result_tokens
        waiting: list[int] = []
        for number in candidates:
            room = self.rooms[number]
            if left[0] > 0:
                seqs = room.next_seq
                left, waits = self._serve(room, self._seen(room), left, now_s, choices)
                if room.next_seq > seqs or room.failure:
                    self._touch(number)
            elif room.handled_tokens:
                waits = True
            else:
                break  # newcomers come last, and nothing is left for them
            if waits:
                waiting.append(number)
        self.waiting = tuple(waiting)
        granted = bool(self._changed)
        self._refresh()
        self._walked = None if granted else inputs

    def _candidates(self, wants: Any, order: str) -> list[int]:
        if not wants.any():
            return []
        handled = self.columns.column("handled")
        data = self.columns.rooms(wants & (handled > 0), "counter", order)
        return data + self.columns.rooms(wants & (handled == 0), "counter", order)

    def _guarded(self, whose: ReceiverRoom | Tombstone, action: Callable[..., None], *arguments: Any) -> None:
        """As for ``Receiver``; and whatever else goes wrong in one request harms that one and not the worker (R11).
        The plain receiver lets it through, since to a search it is a find."""
        try:
            super()._guarded(whose, action, *arguments)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self._out.append(Refused(self.config.rank, whose.room, whose.epoch, "R11", text))
            if isinstance(whose, ReceiverRoom):
                self._observe_failure(whose, Reason.INTERNAL)

    # --- time -----------------------------------------------------------------------------------------

    def _close_room(self, room: ReceiverRoom, now_s: float) -> Tombstone:
        tombstone = super()._close_room(room, now_s)
        number = room.room
        self.columns.drop(number)
        self._dropped = True
        self._clear(number)
        for known in (self._changed, self._untold, self._told):
            known.pop(number, None)
        self._wakes.at((number, room.epoch), min(tombstone.expires_at, now_s + self.config.timing.resend_s))
        return tombstone

    def _release(self, tombstone: Tombstone) -> None:
        super()._release(tombstone)
        self._wakes.at((tombstone.room, tombstone.epoch), tombstone.expires_at)

    def _drop_copy(self, tombstone: Tombstone, seq: int) -> None:
        super()._drop_copy(tombstone, seq)
        self._wakes.at((tombstone.room, tombstone.epoch), tombstone.expires_at)

    def _free_result(self, tombstone: Tombstone) -> None:
        super()._free_result(tombstone)
        self._wakes.at((tombstone.room, tombstone.epoch), tombstone.expires_at)

    def _timers(self, now_s: float) -> None:
        timing = self.config.timing
        if self._few:
            due = [n for n, room in self.rooms.items() if room.pending is not None and now_s >= room.resend_at]
        else:
            due = self.columns.rooms(self.columns.to_resend(now_s), "order") if self._timer_due else []
        for number in due:
            room = self.rooms[number]
            room.resend_at = now_s + timing.resend_s
            self._out.append(Send(cast(Message, room.pending), resend=True))  # else its row would say "never"
            self._changed[number] = None  # its row, though nobody has heard anything
        aborting: list[tuple[_Key, Abort]] = []
        for key in self._wakes.due(now_s):
            tombstone = self.tombstones[key]
            if tombstone.expired(now_s):
                del self.tombstones[key]
                continue
            if tombstone.abort is not None and now_s >= tombstone.resend_at:
                tombstone.resend_at = now_s + timing.resend_s
                aborting.append((key, tombstone.abort))
            self._wake(key, tombstone)
        self._out += [Send(abort, resend=True) for _, abort in sorted(aborting, key=itemgetter(0))]
        if timing.heartbeat_s and now_s >= self.heartbeat_at:
            self.heartbeat_at = now_s + timing.heartbeat_s
            self._out.append(Send(Heartbeat(self.boot_id, self.config.sender_rank, self.config.rank)))

    def _wake(self, key: _Key, tombstone: Tombstone) -> None:
        """What holds memory comes up when it gives that back."""
        times = [] if tombstone.holds_memory else [tombstone.expires_at]
        times += [tombstone.resend_at] if tombstone.abort is not None else []
        if times:
            self._wakes.at(key, min(times))

    def next_timer_s(self) -> float | None:
        """When a tick may have something to do though nothing is received; ``None`` if never. It may be too early,
        never too late: 0, that is at once, if something is known that no tick has looked at."""
        if self._few:
            when_s = 0.0 if self._heard else self._next_few_s()
            return when_s if when_s < NEVER else None
        if self._changed or self._untold:
            return 0.0
        times = [time for time in (self._wakes.next_s(),) if time is not None]
        times += [self.heartbeat_at] if self.config.timing.heartbeat_s else []
        self._look()
        times += [self._due_s] if self._due_s < NEVER else []
        return min(times, default=None)

    def load(self, saved: tuple[Any, ...], now_s: float) -> None:
        """As for ``Receiver``."""
        super().load(saved, now_s)
        self.columns, self._submitted = Columns(), 0
        self._changed, self._untold, self._walked = {}, {}, None
        self._looked = self._decided = -1
        self._wakes.clear()
        for room in self.rooms:
            self._take_up(room)
        for key in self.tombstones:
            self._wakes.at(key, now_s)
        self._forget_board()
