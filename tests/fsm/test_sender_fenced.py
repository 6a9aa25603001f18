"""R8: a grant that was made for one sender process must not be executed by its successor.

Found by random runs of the simulator: a duplicated REGISTER talked a restarted sender into an epoch that was over, and
a late GRANT of that epoch then wrote into a block that had been given up when the old process was proved dead.
"""

from __future__ import annotations

from fsm.effects import Send, Write
from fsm.messages import BlockRef, Epoch, Grant, Layout, Nack, NackCode, Register
from fsm.sender import Sender, SenderConfig

LAYOUT = Layout(4, 1, "int64", ("fill_ids",), 0, 1)
EPOCH = Epoch(3, 1)
OLD_BOOT, NEW_BOOT = 10, 11


def registered_sender() -> Sender:
    sender = Sender(SenderConfig(LAYOUT), boot_id=NEW_BOOT)
    for effect in sender.submit(1, 8, 0.0):
        sender.staged(effect.room, 0.0)
    sender.receive(Register(1, EPOCH, 0, 0, LAYOUT), 1.0)
    return sender


def grant_for(boot_id: int) -> Grant:
    return Grant(1, EPOCH, 0, 0, 0, 0, 8, (BlockRef(0, 0), BlockRef(1, 0)), boot_id)


def test_r8_a_grant_for_an_earlier_process_is_stale() -> None:
    sender = registered_sender()
    effects = sender.receive(grant_for(OLD_BOOT), 2.0)
    assert effects == [Send(Nack(1, EPOCH, 0, 0, NackCode.STALE_EPOCH, "GRANT", 0, NEW_BOOT))]


def test_r8_a_grant_for_this_process_is_executed() -> None:
    sender = registered_sender()
    effects = sender.receive(grant_for(NEW_BOOT), 2.0)
    assert [type(effect) for effect in effects if isinstance(effect, Write)] == [Write]
