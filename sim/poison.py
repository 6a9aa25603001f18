"""Spoilt messages: what may come out of a wire that does not keep what was put in."""

from __future__ import annotations

import msgspec

from fsm.allocators import Choices
from fsm.errors import RemoteError
from fsm.messages import Epoch, Grant, Message, Offer, Status, decode, encode


def spoil(message: Message, choices: Choices) -> Message | None:
    """The message as it arrives, spoilt in one of three ways; ``None`` if the codec refuses what is left of it.

    Cut short, it must be refused as a :class:`RemoteError`. With a foreign epoch or a wrong number it decodes, and it
    is for the protocol to see through it. Where the blocks lie is never altered: a network that can name any block
    can overwrite it, and no protocol helps.
    """
    way = choices.pick(3, "poison")
    if way == 0:
        data = encode(message)
        try:
            return decode(data[: len(data) // 2])
        except RemoteError:
            return None
    if way == 1 and hasattr(message, "epoch"):
        boot_id, counter = message.epoch
        return msgspec.structs.replace(message, epoch=Epoch(boot_id, counter + 1000))
    if isinstance(message, (Grant, Status)):
        return msgspec.structs.replace(message, seq=message.seq + 7)
    if isinstance(message, Offer):
        return msgspec.structs.replace(message, total_tokens=0)
    return None
