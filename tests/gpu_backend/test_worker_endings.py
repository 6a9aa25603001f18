"""How requests end when something goes wrong, and that every block comes back with a proof, and only with one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from fsm.reasons import Reason
from fsm.states import BlockState, State
from gpu_backend.config import LimitConfig
from gpu_backend.process import ProcessIdentity
from gpu_backend.receiver_worker import ReceiverWorker
from gpu_backend.sender_worker import SenderWorker
from gpu_backend.transports.base import Broken, LinkLost
from gpu_backend.transports.in_process import Fabric
from gpu_backend.worker import CLOSE_LINGER_S, new_boot_id
from tests.gpu_backend.kit_wire import ClientEnd, ServerEnd, Wire
from tests.gpu_backend.kit_workers import (
    Clock,
    Pair,
    counted,
    everything_is_free,
    payload_of,
    receiver_config,
    sender_config,
    wrong_with,
)


def test_an_abort_keeps_blocks_until_the_write_under_way_is_over() -> None:
    """R5: the outcome comes at once; the blocks only with the ABORT_ACK, which waits for the write (R11)."""
    pair = Pair(undisturbed=False, fabric=Fabric(auto=False))
    pair.sender.submit(1, payload_of(1, 16))
    pair.receiver.submit(1)
    pair.run(lambda: len(pair.fabric.flights) == 1)
    flight = pair.fabric.flights[0]
    pair.fabric.hold(flight.key)
    pair.fabric.step(flight.key)
    pair.receiver.abort(1)
    pair.run_rooms([1])
    assert (pair.outcomes[1].reason, pair.outcomes[1].state) == ("ABORTED", State.FAILED)
    assert pair.sender_outcomes[1].reason == "PEER_ABORTED"
    for _ in range(20):
        pair.step()
    assert counted(pair, BlockState.QUARANTINED) == 4
    assert pair.sender.pool.free_blocks == pair.sender.pool.blocks - 4, "the source stays pinned as well"
    pair.fabric.free(flight.key)
    assert everything_is_free(pair)
    assert pair.observer.violations == []
    pair.close()


def test_an_abort_at_the_sender_ends_both_sides() -> None:
    pair = Pair(undisturbed=False, fabric=Fabric(auto=False))
    pair.sender.submit(1, payload_of(1, 16))
    pair.receiver.submit(1)
    pair.run(lambda: len(pair.fabric.flights) == 1)
    pair.sender.abort(1)
    pair.run_rooms([1])
    assert pair.sender_outcomes[1].lanes[0] == (State.FAILED, "ABORTED")
    assert pair.outcomes[1].reason == "PEER_ABORTED"
    assert everything_is_free(pair)
    pair.close()


def test_the_end_of_the_senders_process_is_a_proof() -> None:
    """The sender dies in the middle of a write: its blocks come back when the kernel says that it is gone, and the
    request fails; nothing of that takes a clock."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        pair = Pair(undisturbed=False, fabric=Fabric(auto=False))
        hello = pair.sender._hello()
        named = type(hello)(hello.role, hello.rank, hello.boot_id + 1, ProcessIdentity.of(child.pid), hello.transport)
        pair.sender.boot_id = pair.sender.sender.boot_id = named.boot_id
        pair.sender.control.set_hello(named)
        pair.sender.submit(1, payload_of(1, 16))
        pair.receiver.submit(1)
        pair.run(lambda: len(pair.fabric.flights) == 1)
        pair.receiver.poll()
        assert counted(pair, BlockState.GRANTED) == 4
    finally:
        child.kill()
        child.wait()
    pair.fabric.sender_died(0, pair.sender.transport.boot_id)
    outcomes = pair.receiver.poll_until(bool, 30.0)
    assert [(outcome.room, outcome.reason) for outcome in outcomes] == [(1, "PEER_GONE")]
    assert counted(pair, BlockState.FREE) == 4
    assert pair.observer.violations == []
    pair.receiver.close()


def test_a_restarted_sender_fails_what_needed_it_and_serves_what_comes() -> None:
    """R8. The old process's write goes on in the fabric, so its blocks stay out of use; the others are enough."""
    pair = Pair(undisturbed=False, fabric=Fabric(auto=False), receiver={"limits": LimitConfig(grant_blocks_max=2)})
    pair.sender.submit(1, payload_of(1, 16))
    pair.receiver.submit(1)
    pair.run(lambda: len(pair.fabric.flights) == 1)
    old = pair.sender
    pair.sender = SenderWorker(
        sender_config(pair.fabric), control=lambda hello: ServerEnd(pair.wire, hello), clock=pair.clock,
        boot_id=new_boot_id(old.boot_id),
    )  # fmt: skip
    pair.sender.submit(2, payload_of(2, 7))
    pair.receiver.submit(2)
    pair.run(lambda: 1 in pair.outcomes and len(pair.fabric.flights) == 2)
    assert pair.outcomes[1].reason == "PEER_RESTARTED"
    assert counted(pair, BlockState.QUARANTINED) == 2
    pair.fabric.finish(pair.fabric.flights[1].key)
    pair.run_rooms([2])
    assert wrong_with(pair.outcomes[2], payload_of(2, 7)) == ""
    assert counted(pair, BlockState.QUARANTINED) == 2
    assert pair.observer.violations == []
    old.close()
    pair.close()


def test_a_link_that_broke_without_a_proof_gives_nothing_back() -> None:
    """R5: "the connection is gone" says nothing about writes under way; the blocks stay the sender's."""
    pair = Pair(undisturbed=False, fabric=Fabric(auto=False))
    pair.sender.submit(1, payload_of(1, 16))
    pair.receiver.submit(1)
    pair.run(lambda: len(pair.fabric.flights) == 1)
    boot_id = pair.sender.boot_id
    pair.receiver.abort(1)

    def told(quiescent: bool) -> int:
        """Free blocks once the transport has said that."""
        pair.receiver.transport.reports.append(Broken(boot_id, quiescent, "so it says"))  # type: ignore[attr-defined]
        pair.receiver.poll()
        return pair.receiver.ledger.free_count

    assert [told(False), told(False), told(True)] == [0, 0, 4]
    pair.fabric.sender_died(0, boot_id)
    pair.close()


def test_what_was_said_before_anybody_was_there_is_said_when_somebody_is() -> None:
    """The first request of a receiver that starts before its sender does not wait for the protocol to repeat itself:
    no time passes here."""
    fabric, wire, clock = Fabric(), Wire(), Clock()
    with ReceiverWorker(
        receiver_config(fabric), control=lambda hello: ClientEnd(wire, 0, hello), clock=clock
    ) as receiver:
        receiver.submit(1)
        receiver.poll()
        with SenderWorker(sender_config(fabric), control=lambda hello: ServerEnd(wire, hello), clock=clock) as sender:
            sender.submit(1, payload_of(1, 9))
            ended = []
            for _ in range(50):
                sender.poll()
                ended += receiver.poll()
    assert [outcome.state for outcome in ended] == [State.SUCCESS]


def test_a_lost_link_is_a_restart_of_the_sender() -> None:
    """All requests are reported, source blocks come back, and what is submitted afterwards goes through. The receiver's
    end of such a link breaks too, and that is its proof."""
    pair = Pair(undisturbed=False)
    for room in (1, 2):
        pair.sender.submit(room, payload_of(room, 37))
        pair.receiver.submit(room)
    pair.run(lambda: pair.receiver.progress(1).watermark_tokens > 0)
    boot_id, poll = pair.sender.boot_id, pair.sender.transport.poll
    pair.sender.transport.poll = lambda: [*poll(), LinkLost(0, "cut")]  # type: ignore[method-assign]
    received = pair.receiver.transport.poll
    broken = iter([[Broken(boot_id, True, "cut")]])
    pair.receiver.transport.poll = lambda: [*received(), *next(broken, [])]  # type: ignore[method-assign]
    pair.run_rooms([1, 2])
    assert {outcome.reason for outcome in pair.sender_outcomes.values()} == {"PEER_GONE"}
    assert "cut" in pair.sender_outcomes[1].detail
    assert {outcome.reason for outcome in pair.outcomes.values()} <= {"PEER_RESTARTED", "PEER_GONE"}
    assert pair.sender.boot_id > boot_id and pair.sender.stats().counters.restarts == 1
    assert pair.sender.pool.free_blocks == pair.sender.pool.blocks
    pair.sender.submit(3, payload_of(3, 7))
    pair.receiver.submit(3)
    pair.run_rooms([3])
    assert wrong_with(pair.outcomes[3], payload_of(3, 7)) == ""
    assert pair.observer.violations == []
    pair.close()


@pytest.mark.parametrize("granted", [False, True])
def test_a_rank_that_goes_on_anew_gives_up_a_sender_only_where_that_one_must_notice(granted: bool) -> None:
    """R7 on a two-sided link. Where something was granted, the end of the link is the sender's as well: it comes back
    under another boot_id, and this one is over. Where nothing was, the sender knows of no loss; whoever gave it up
    would never hear of it again, and requests would wait for their deadlines."""
    pair = Pair(undisturbed=False, fabric=Fabric(auto=not granted))
    pair.sender.submit(1, payload_of(1, 7))
    pair.receiver.submit(1)
    if granted:
        pair.run(lambda: counted(pair, BlockState.GRANTED) > 0)
    else:
        pair.run_rooms([1])
    traits = dataclasses.replace(pair.receiver.transport.traits, one_sided=False)
    pair.receiver.transport.traits = traits
    pair.receiver._change_boot(new_boot_id(pair.receiver.boot_id))
    assert (pair.receiver.receiver.gone_boot_id == pair.sender.boot_id) == granted
    if not granted:
        pair.sender.submit(2, payload_of(2, 7))
        pair.receiver.submit(2)
        pair.run_rooms([2])
        assert wrong_with(pair.outcomes[2], payload_of(2, 7)) == ""
    pair.close()


def test_a_chunk_that_is_not_what_was_sent_fails_with_a_checksum() -> None:
    """One byte changes after it landed and before it is copied: that request fails, the next does not."""
    pair = Pair(
        undisturbed=False, fabric=Fabric(auto=False), receiver={"checksum": "full"}, sender={"checksum": "full"}
    )
    for lease in (False, True):
        room = 1 + lease
        pair.sender.submit(room, payload_of(room, 9))
        pair.receiver.submit(room, lease=lease)
        pair.run(lambda: len(pair.fabric.flights) == 1)
        block = pair.fabric.flights[0].order.grant.blocks[2].block
        pair.fabric.finish_all()
        pair.receiver.pool.view("fill_ids")[block, 0] += 1
        while room not in pair.outcomes:
            pair.step()
        assert (pair.outcomes[room].reason, pair.outcomes[room].result) == (Reason.CHECKSUM.name, None)
        assert "checksum" in pair.outcomes[room].detail
    pair.fabric.auto = True
    pair.sender.submit(3, payload_of(3, 9))
    pair.receiver.submit(3)
    pair.run(lambda: 3 in pair.outcomes)
    assert wrong_with(pair.outcomes[3], payload_of(3, 9)) == ""
    assert pair.receiver.ledger.free_count == 4
    pair.close()


def test_close_tells_the_other_side() -> None:
    """A receiver that goes away aborts its requests; the sender does not wait for a deadline."""
    pair = Pair(undisturbed=False)
    pair.sender.submit(1, payload_of(1, 100))
    pair.receiver.submit(1)
    pair.run(lambda: pair.receiver.progress(1).watermark_tokens > 0)
    pair.receiver.close(drain_s=0.0)
    pair.receiver.close()
    ended: list[Any] = []
    for _ in range(20):
        ended += pair.sender.poll()
    assert [outcome.reason for outcome in ended] == ["PEER_ABORTED"]
    pair.sender.close()
    pair.sender.close()


@pytest.mark.parametrize("under_way", [False, True])
def test_memory_that_may_still_be_written_is_not_given_up(under_way: bool) -> None:
    """A receiver that closes while a sender may be writing keeps the landing blocks: a late write must not find them
    in other hands. If nothing is under way, the memory goes."""
    pair = Pair(undisturbed=False, fabric=Fabric(auto=False))
    if under_way:
        pair.sender.submit(1, payload_of(1, 16))
        pair.receiver.submit(1)
        pair.run(lambda: len(pair.fabric.flights) == 1)
    pair.receiver.close(drain_s=0.0)
    assert pair.receiver.pool.memory.closed is not under_way
    pair.sender.close()


def test_a_sender_that_closes_lets_its_last_words_leave() -> None:
    """The STATUS of a last write and the ABORTs are in the socket's queue when ``close`` comes. It waits a little, and
    not for ever: the peer may be gone."""
    pair = Pair(undisturbed=False)
    pair.sender.close()
    assert pair.wire.sender is not None and pair.wire.sender.linger_s == CLOSE_LINGER_S
    assert 0 < CLOSE_LINGER_S <= 1
    pair.receiver.close(drain_s=0.0)
