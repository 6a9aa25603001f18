"""Words for what the acceptor knows: an event, where a lane stands, what it could do there, and why a row is not taken.

What could be done is read from the lifecycle tables and from the states in which a message awaits its answer.
"""

from __future__ import annotations

from typing import Any, Final

from fsm.conform.lanes import TABLES, Lane, ReceiverLane, SenderLane, target_of
from fsm.events import Received, Sent, StateChanged
from fsm.kernel import UNKNOWN
from fsm.messages import describe
from fsm.states import TERMINAL, State
from fsm.table import REFUSE

RULES: Final[dict[str, str]] = {
    "R1": "the sender's word is the progress",
    "R2": "a resume is decided once for each watermark",
    "R3": "the seq of a grant identifies the work",
    "R4": "length and flags come from OFFER and STATUS",
    "R5": "every block has a state and an owner",
    "R7": "all ranks take the same decisions",
    "R8": "an end is an end, and rooms come from a local submit",
    "R10": "starts are exact",
    "R11": "what is answered was asked, and ABORT_ACK says what was executed",
    "table": "the lifecycle table has no such row",
    "messages": "each side has its own kinds of messages",
    "causality": "an effect follows its cause",
}
"""What a refusal may name, in words; R1 to R11 as in ``docs/protocol.md``."""

_GUARD_RULES: Final = {"resume": ("R2", "I6"), "landed": ("R1", "I5"), "complete": ("R5", "I2")}


def event_words(event: Any) -> str:
    """An event in one line: its kind, and the fields that say something."""
    if isinstance(event, (Sent, Received)):
        message = event.message
        rank = message.receiver_rank if event.side == "receiver" else message.sender_rank
        what = "sends" if isinstance(event, Sent) else "takes in"
        again = " again" if isinstance(event, Sent) and event.resend else ""
        return f"{event.side} {rank} {what}{again}: {describe(message)}{_epoch(getattr(message, 'epoch', None))}"
    if isinstance(event, StateChanged):
        who = f"{event.side} (rank {event.receiver_rank}), room {event.room}{_epoch(event.epoch)}"
        return f"{who}: {event.source} -> {event.target} ({event.cause})"
    parts = []
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if name == "epoch":
            parts.append(_epoch(value).strip())
        elif name == "blocks":
            parts.append("blocks=[" + " ".join(str(ref.block) for ref in value) + "]")
        elif value is not None and value is not False and value != "":
            parts.append(f"{name}={value}")
    return f"{type(event).__name__} " + " ".join(part for part in parts if part)


def _epoch(epoch: Any) -> str:
    return f" epoch={epoch[0]}.{epoch[1]}" if epoch is not None else ""


def lane_text(lane: Lane) -> str:
    """Where a lane stands."""
    return f"{lane.side}: {lane.state or 'state not told yet'}, {lane.known()}"


def could_have(lane: Lane | None) -> tuple[str, ...]:
    """What a lane may do where it stands; for no lane, how one begins."""
    if lane is None:
        return ("a submit at the receiver, and with it the first REGISTER of a new epoch",)
    if not lane.state:
        return ("anything: its beginning is not in the trace",)
    return (*_rows(lane), *_messages(lane)) or ("nothing: it has ended, and that was told",)


def _rows(lane: Lane) -> list[str]:
    rows = []
    for row in TABLES[lane.side].rows[State(lane.state)]:
        if row.target is REFUSE or not _open(lane, row.event):
            continue
        if target_of(lane.side, lane.state, row.event, lane.facts(row.event, str(row.target))) == row.target:
            rows.append(f"{lane.state} -> {row.target} ({row.event})")
    return rows


def _open(lane: Lane, event: str) -> bool:
    """Whether what a row needs beside its guard has happened."""
    if isinstance(lane, ReceiverLane):
        if event == "registered":
            return bool(lane.boots)
        return event != "grant" or lane.first_grant_due()
    assert isinstance(lane, SenderLane)
    if event == "grant":
        return bool(lane.grants)
    return event != "committed" or (lane.status is not None and lane.status[0] == lane.executed)


def _messages(lane: Lane) -> list[str]:
    if isinstance(lane, ReceiverLane):
        return _receiver_could(lane)
    assert isinstance(lane, SenderLane)
    return _sender_could(lane)


def _receiver_could(lane: ReceiverLane) -> list[str]:
    could = []
    if lane.state == State.BOOTSTRAPPING and not lane.boots:
        could.append("send REGISTER again; take in its REGISTER_ACK")
    if lane.row in ("grant", "resume"):
        could.append(f"send the GRANT of seq {lane.seq + 1} from {max(lane.handled, 0)}")
    if lane.open and lane.live:
        if lane.word == UNKNOWN:
            could.append(f"send the GRANT of seq {lane.seq} again; take in its STATUS")
        else:
            could.append(f"progress to {lane.word}, as the STATUS of seq {lane.seq} says")
    could += [f"deliver the chunk of seq {seq}" for seq in lane.chunks]
    if lane.state in TERMINAL and not lane.finished:
        could.append(f"tell that it has ended in {lane.state}")
    if lane.state == State.FAILED:
        could.append("send ABORT; acknowledge one that came")
    return could


def _sender_could(lane: SenderLane) -> list[str]:
    could = []
    if lane.state in (State.WAITING, State.RESUMING) and not lane.grants and not lane.row:
        could.append(f"take in the GRANT of seq {lane.executed + 1} from {max(lane.committed, 0)}")
    if lane.state == State.WAITING:
        could.append("send OFFER")
    if lane.row:
        could.append("execute the GRANT of seq " + " ".join(map(str, lane.grants)))
    elif lane.state == State.TRANSFERRING and (lane.status is None or lane.status[0] != lane.executed):
        could.append(f"send the STATUS of seq {lane.executed}, committed {lane.end}")
    if lane.status is not None:
        could.append(f"send the STATUS of seq {lane.status[0]} again")
    if lane.state in TERMINAL and not lane.finished:
        could.append(f"tell that it has ended in {lane.state}")
    if lane.state == State.FAILED:
        could.append("send ABORT; acknowledge one that came")
    return could


def why_refused(lane: Lane, event: StateChanged) -> tuple[str, str, str]:
    """Why no row leads from where a lane stands to where an event says it went: rule, text, and the property at
    stake."""
    table = TABLES[lane.side]
    rows = [row for row in table.rows[State(lane.state)] if row.event == event.cause]
    if not rows:
        if not lane.live:
            return "R8", f"it had ended in {lane.state}; nothing leads out of there", "I4"
        legal = ", ".join(table.legal(State(lane.state)))
        return "table", f"{lane.state} has no row for '{event.cause}'; it has {legal}", ""
    taken = target_of(lane.side, lane.state, event.cause, lane.facts(event.cause, event.target))
    if taken:
        return "table", f"'{event.cause}' leads from {lane.state} to {taken}, not to {event.target}", ""
    rule, property = _GUARD_RULES.get(event.cause, ("table", ""))
    no = next((row for row in rows if row.target is REFUSE), None)
    return rule, f"the guard '{no.guard}' holds: {no.why}" if no is not None else "its guard says no", property


__all__ = ["RULES", "could_have", "event_words", "lane_text", "why_refused"]
