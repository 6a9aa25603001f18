"""The control network: a first-in-first-out channel for each direction of each pair, and strays.

A stray is a message that left its channel: a duplicate that was made of it, or the message itself when it is held
back and others overtake it. Strays arrive in any order, at any time. Everything that goes wrong with a message is
one of four things: it is duplicated, held back, lost, or its content is spoilt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from fsm.messages import Message

_RAW = msgspec.msgpack.Encoder()


class Stray(NamedTuple):
    """A message outside its channel. ``repeats`` is the boot_id of the process that took the original, and changed
    its state on it; 0 if this is no duplicate, or one whose original did nothing."""

    channel: int
    message: Message
    repeats: int


class Network:
    """Channel ``2 r`` leads from receiver rank r to its sender, channel ``2 r + 1`` back."""

    def __init__(self, receiver_ranks: int) -> None:
        self.channels: list[tuple[Message, ...]] = [()] * (2 * receiver_ranks)
        self.strays: tuple[Stray, ...] = ()
        self.cut = False

    def send(self, channel: int, message: Message) -> bool:
        """Put a message on its way; returns whether it is under way (a cut network loses it)."""
        if self.cut:
            return False
        self.channels[channel] += (message,)
        return True

    def take(self, channel: int) -> Message:
        """Take the next message out of a channel."""
        head, *rest = self.channels[channel]
        self.channels[channel] = tuple(rest)
        return head

    def add_stray(self, stray: Stray) -> None:
        """Let a message leave its channel. Strays are kept in one order, since their order means nothing."""
        self.strays = _in_order([*self.strays, stray])

    def take_stray(self, index: int) -> Stray:
        """Take a stray off the network."""
        stray = self.strays[index]
        self.strays = self.strays[:index] + self.strays[index + 1 :]
        return stray

    def forget_repeats(self, end: int) -> None:
        """Strays on their way to senders (``end`` 0) or receivers (1) count as messages never seen before."""
        self.strays = _in_order([s._replace(repeats=0) if s.channel % 2 == end else s for s in self.strays])

    def lose_all(self) -> int:
        """Lose everything that is under way; returns how many messages that were."""
        lost = sum(len(channel) for channel in self.channels) + len(self.strays)
        self.channels = [()] * len(self.channels)
        self.strays = ()
        return lost

    @property
    def empty(self) -> bool:
        """Whether nothing is under way."""
        return not self.strays and not any(self.channels)

    def save(self) -> tuple[Any, ...]:
        """Everything under way, hashable."""
        return (tuple(self.channels), self.strays, self.cut)

    def load(self, saved: tuple[Any, ...]) -> None:
        """Take on what ``save`` gave."""
        channels, self.strays, self.cut = saved
        self.channels = list(channels)


def _in_order(strays: list[Stray]) -> tuple[Stray, ...]:
    if len(strays) > 1:
        strays.sort(key=lambda stray: (stray.channel, stray.repeats, _RAW.encode(stray.message)))
    return tuple(strays)
