"""The two workers, joined in one process: what a caller gets, in what order things are done, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fsm.events import Delivered, Executed, Granted, Progressed, Wrote
from fsm.messages import Grant, Offer, decode
from fsm.states import BlockState, KVPoll, State
from gpu_backend import transports
from gpu_backend.config import ControlConfig, LayoutConfig, LimitConfig, PoolConfig, ResultConfig, TransportConfig
from gpu_backend.observe import Observer
from gpu_backend.pool import Payload, SourceView
from gpu_backend.receiver_worker import ReceiverWorker
from gpu_backend.sender_worker import SenderWorker
from gpu_backend.transports.in_process import Fabric
from gpu_backend.worker import new_boot_id
from tests.gpu_backend.kit_wire import Wire
from tests.gpu_backend.kit_workers import (
    BLOCK_TOKENS,
    DIM,
    Pair,
    counted,
    everything_is_free,
    payload_of,
    receiver_config,
    same_bits,
    sender_config,
    wrong_with,
)


@pytest.fixture
def pair() -> Any:
    made = Pair()
    yield made
    assert made.observer.violations == []
    made.close()


# --- content ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 15, 16, 17, 37, 128])
def test_every_byte_arrives_whatever_the_length(pair: Pair, tokens: int) -> None:
    """Shorter than a block, exact blocks, one more; in one grant and in many."""
    payload = payload_of(1, tokens)
    pair.sender.submit(1, payload)
    pair.receiver.submit(1)
    pair.run_rooms([1])
    outcome = pair.outcomes[1]
    assert (outcome.state, outcome.reason, outcome.total_tokens) == (State.SUCCESS, "NONE", tokens)
    assert wrong_with(outcome, payload) == ""
    assert pair.sender_outcomes[1].state is State.SUCCESS
    assert len(pair.seen(Granted)) == -(-tokens // 16), "the pool of 16 tokens is granted whole each time"
    assert outcome.result is not None
    outcome.result.release()
    pair.step()
    assert everything_is_free(pair)


def test_many_requests_share_a_small_pool(pair: Pair) -> None:
    """Requests of all lengths on 4 blocks: nobody gets another's bytes, each watermark is resumed once."""
    payloads = {room: payload_of(room, 3 + 5 * room, mrope=room % 3 > 0) for room in range(8)}
    for room, payload in payloads.items():
        pair.sender.submit(room, payload)
        pair.receiver.submit(room, early_tokens=4 if room % 2 else 0)
    pair.run_rooms(range(8))
    for room, payload in payloads.items():
        assert wrong_with(pair.outcomes[room], payload) == ""
        starts = [event.start for event in pair.seen(Granted) if event.room == room]
        assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("levels, mrope", [(0, False), (2, True), (2, False)])
def test_items_that_a_request_does_without(levels: int, mrope: bool) -> None:
    """An absent item is ``None`` in the result, and never the bytes of whoever had the blocks before."""
    layout = LayoutConfig(dim=DIM, block_tokens=BLOCK_TOKENS, deepstack_levels=2)
    pair = Pair(receiver={"layout": layout}, sender={"layout": layout})
    full, lean = payload_of(1, 30, levels=2), payload_of(2, 21, levels=levels, mrope=mrope)
    for payload, room in ((full, 1), (lean, 2)):
        pair.sender.submit(room, payload)
        pair.receiver.submit(room)
        pair.run_rooms([room])
        assert wrong_with(pair.outcomes[room], payload) == ""
    result = pair.outcomes[2].result
    assert result is not None
    assert (result.mrope_positions is None, result.deepstack is None) == (not mrope, not levels)
    pair.close()


def test_a_payload_made_in_place_arrives(pair: Pair) -> None:
    """``fill`` is given views over the source blocks; nothing else is copied at the sender."""
    payload = payload_of(1, 23)
    given: list[SourceView] = []

    def fill(views: list[SourceView]) -> None:
        given.extend(views)
        for view in views:
            part = slice(view.first, view.first + view.tokens)
            view.input_embeddings.copy_(payload.input_embeddings[part])
            view.fill_ids.copy_(payload.fill_ids[part])
            assert payload.mrope_positions is not None
            view.mrope_positions.copy_(payload.mrope_positions[part])

    pair.sender.submit(1, 23, fill=fill, position_delta=payload.position_delta)
    assert not given, "not before the source blocks are free and the worker polls"
    pair.receiver.submit(1)
    pair.run_rooms([1])
    assert wrong_with(pair.outcomes[1], payload) == ""
    assert sum(view.tokens for view in given) == 23
    arena = pair.sender.pool.arena
    inside = range(arena.data_ptr(), arena.data_ptr() + arena.numel())
    assert all(view.input_embeddings.data_ptr() in inside for view in given)


def test_a_large_payload_is_staged_in_slices() -> None:
    """One poll copies about ``staging_bytes``; the payload may change once it is staged, and not before."""
    pair = Pair(sender={"limits": LimitConfig(staging_bytes=1024)})
    payload, expected = payload_of(1, 100), payload_of(1, 100)
    pair.sender.submit(1, payload)
    polls = 0
    while not pair.sender.staged(1):
        pair.sender.poll()
        polls += 1
    assert polls > 3
    payload.input_embeddings.zero_()
    payload.fill_ids.zero_()
    pair.receiver.submit(1)
    pair.run_rooms([1])
    assert wrong_with(pair.outcomes[1], expected) == ""
    pair.close()


# --- leases ----------------------------------------------------------------------------------------------


def test_a_lease_hands_out_the_landing_blocks_and_they_come_back(pair: Pair) -> None:
    """No copy: the tensors lie in the pool. Until the release nobody else gets the blocks."""
    payload = payload_of(1, 14)
    pair.sender.submit(1, payload)
    pair.receiver.submit(1, lease=True)
    pair.run_rooms([1])
    outcome = pair.outcomes[1]
    assert outcome.result is None and outcome.lease is not None
    assert wrong_with(outcome, payload) == ""
    arena = pair.receiver.pool.arena
    views = outcome.lease.views()
    assert all(arena.data_ptr() <= view.fill_ids.data_ptr() < arena.data_ptr() + arena.numel() for view in views)
    pair.sender.submit(2, payload_of(2, 9))
    pair.receiver.submit(2)
    for _ in range(20):
        pair.step()
    assert 2 not in pair.outcomes and counted(pair, BlockState.READING) == 4
    assert wrong_with(outcome, payload) == "", "what was leased stays as it was"
    outcome.lease.release()
    outcome.lease.release()
    pair.run_rooms([2])
    assert wrong_with(pair.outcomes[2], payload_of(2, 9)) == ""


def test_what_needs_two_grants_is_copied_though_a_lease_was_asked_for(pair: Pair) -> None:
    payload = payload_of(1, 17)
    pair.sender.submit(1, payload)
    pair.receiver.submit(1, lease=True)
    pair.run_rooms([1])
    assert pair.outcomes[1].lease is None
    assert wrong_with(pair.outcomes[1], payload) == ""


def test_a_lease_that_nobody_was_given_comes_back(pair: Pair) -> None:
    """The caller gives the request up after the lease began and before it was told of it."""
    pair.observer.undisturbed = False
    pair.sender.submit(1, payload_of(1, 14))
    pair.receiver.submit(1, lease=True)
    pair.run(lambda: pair.receiver._requests[1].lease is not None)
    pair.receiver.abort(1)
    pair.run_rooms([1])
    assert (pair.outcomes[1].reason, pair.outcomes[1].lease) == ("ABORTED", None)
    assert everything_is_free(pair)


# --- bounded memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits, made", [(LimitConfig(), True), (LimitConfig(total_tokens_max=129), False)])
def test_early_tokens_take_effect_where_no_limit_is_given(limits: LimitConfig, made: bool) -> None:
    """R6 lets an early grant be made only while twice the longest request is free; the default limit leaves that."""
    wire = Wire(auto=False)
    pair = Pair(receiver={"limits": limits}, wire=wire)
    pair.sender.submit(1, payload_of(1, 37))
    pair.receiver.submit(1, early_tokens=4)
    for _ in range(20):
        pair.step()
        for index in reversed(range(len(wire.letters))):
            if not isinstance(decode(wire.letters[index].data), Offer):
                wire.deliver(index)
    # After an early grant the first STATUS tells the length, so more of them follow without any OFFER.
    assert [(grant.seq, grant.capacity) for grant in pair.seen(Granted)][:1] == ([(0, 4)] if made else [])
    wire.auto = True
    wire.deliver_all()
    pair.run_rooms([1])
    assert wrong_with(pair.outcomes[1], payload_of(1, 37)) == ""
    pair.close()


def test_result_memory_is_bounded_until_it_is_released() -> None:
    """R6: a request waits for the result memory that the caller holds, and goes on when it comes back."""
    whole = {"results": ResultConfig(tokens=30, copy_threads=0), "limits": LimitConfig(total_tokens_max=30)}
    pair = Pair(receiver=whole)
    for room in (1, 2):
        pair.sender.submit(room, payload_of(room, 20))
        pair.receiver.submit(room)
    pair.run(lambda: 1 in pair.outcomes)
    for _ in range(50):
        pair.step()
    assert 2 not in pair.outcomes and pair.receiver.stats().free_result_tokens == 10
    held = pair.outcomes[1].result
    assert held is not None
    with held as result:
        assert same_bits(result.fill_ids, payload_of(1, 20).fill_ids)
    pair.run_rooms([2])
    assert wrong_with(pair.outcomes[2], payload_of(2, 20)) == ""
    pair.close()


def test_source_blocks_are_bounded_and_come_back() -> None:
    """R6: with source blocks for one payload, the second is staged when the first has been sent."""
    pair = Pair(sender={"pool": PoolConfig(blocks=5, huge_pages=False)})
    for room in (1, 2, 3):
        pair.sender.submit(room, payload_of(room, 20))
        pair.receiver.submit(room)
    assert not pair.sender.staged(2)
    pair.run_rooms([1, 2, 3])
    for room in (1, 2, 3):
        assert wrong_with(pair.outcomes[room], payload_of(room, 20)) == ""
    pair.close()


# --- order -----------------------------------------------------------------------------------------------


def test_a_grant_leaves_before_the_copy_of_the_same_tick_begins() -> None:
    """What the sender waits for is not kept back by a copy. Two blocks a grant, so that both happen in one tick."""
    pair = Pair(receiver={"limits": LimitConfig(grant_blocks_max=2)})
    done: list[str] = []
    send, submit = pair.receiver.control.send, pair.receiver.copier.submit

    def noted_send(message: Any) -> bool:
        done.append(type(message).__name__)
        return send(message)

    def noted_submit(job: Any) -> None:
        done.append("copy")
        submit(job)

    pair.receiver.control.send = noted_send  # type: ignore[method-assign]
    pair.receiver.copier.submit = noted_submit  # type: ignore[method-assign]
    pair.sender.submit(1, payload_of(1, 16))
    pair.receiver.submit(1)
    pair.run_rooms([1])
    assert done == ["Register", "Grant", "Grant", "copy", "copy"]
    pair.close()


def test_headers_are_clear_and_the_transport_knows_when_a_grant_leaves(pair: Pair) -> None:
    """R4: what a former tenant left in a header is gone. And a transport is never surprised by a grant's bytes."""
    worker = pair.receiver
    expected: list[tuple[int, int]] = []
    checked: list[int] = []
    expect, send = worker.transport.expect, worker.control.send

    def noted_expect(grant: Grant) -> None:
        expected.append((grant.room, grant.seq))
        expect(grant)

    def checking_send(message: Any) -> bool:
        if isinstance(message, Grant):
            checked.append(message.seq)
            assert (message.room, message.seq) in expected
            for ref in message.blocks:
                assert worker.pool.headers[ref.block].count_nonzero() == 0
        return send(message)

    worker.transport.expect = noted_expect  # type: ignore[method-assign]
    worker.control.send = checking_send  # type: ignore[method-assign]
    worker.pool.headers.fill_(77)
    for room in (1, 2):
        pair.sender.submit(room, payload_of(room, 37))
        pair.receiver.submit(room)
    pair.run_rooms([1, 2])
    assert checked == [0, 1, 2] * 2


def test_every_grant_is_settled_once() -> None:
    """A transport that keeps buffers for a grant is told when they are not needed, after success and after abort."""
    pair = Pair(undisturbed=False, fabric=Fabric(auto=False))
    settled: list[tuple[int, int]] = []
    settle = pair.receiver.transport.settle

    def noted(room: int, epoch: Any, seq: int) -> None:
        settled.append((room, seq))
        settle(room, epoch, seq)

    pair.receiver.transport.settle = noted  # type: ignore[method-assign]
    pair.sender.submit(1, payload_of(1, 20))
    pair.receiver.submit(1)
    pair.run(lambda: len(pair.fabric.flights) == 1)
    assert settled == []
    pair.fabric.finish_all()
    pair.run(lambda: len(pair.fabric.flights) == 1)
    assert settled == [(1, 0)]
    pair.receiver.abort(1)
    pair.run(lambda: 1 in pair.outcomes)
    assert settled == [(1, 0)], "the write is under way: the blocks are the sender's still"
    pair.run(lambda: pair.receiver.receiver.resting)
    assert settled == [(1, 0), (1, 1)]
    assert pair.receiver._grants == {}
    pair.close()


# --- what is asked ---------------------------------------------------------------------------------------


def test_states_and_progress_are_told_before_and_after_the_end(pair: Pair) -> None:
    pair.receiver.submit(1)
    assert (pair.receiver.state(1), pair.receiver.kv_poll(1)) == (State.BOOTSTRAPPING, KVPoll.Bootstrapping)
    assert pair.receiver.progress(1) == (0, 0, -1)
    pair.sender.submit(1, payload_of(1, 37))
    assert pair.sender.state(1) is State.BOOTSTRAPPING
    seen = set()
    while 1 not in pair.outcomes or 1 not in pair.sender_outcomes:
        seen |= {pair.receiver.kv_poll(1)}
        pair.step()
    assert seen == {KVPoll.Bootstrapping, KVPoll.WaitingForInput, KVPoll.Transferring}
    for worker in (pair.receiver, pair.sender):
        assert (worker.state(1), worker.kv_poll(1)) == (State.SUCCESS, KVPoll.Success)
        assert worker.progress(1) == (37, 37, 37)


def test_a_room_can_be_used_again_after_its_end(pair: Pair) -> None:
    for tokens in (5, 21):
        pair.outcomes.clear()
        pair.sender_outcomes.clear()
        pair.sender.submit(1, payload_of(1, tokens))
        pair.receiver.submit(1)
        pair.run_rooms([1])
        assert wrong_with(pair.outcomes[1], payload_of(1, tokens)) == ""


def test_wait_returns_at_once_when_there_is_something(pair: Pair) -> None:
    assert pair.sender.wait(3600.0) is True, "the receiver's hello is there"
    pair.step()
    assert pair.sender.wait(0.0) is False and pair.receiver.wait(0.0) is False
    pair.receiver.submit(1)
    assert pair.sender.wait(3600.0) is True


def test_boot_ids_grow_and_are_exact_as_floating_point() -> None:
    """R8, also for readers that know JSON's numbers only, and past the 63 bits of the wire."""
    ids = [new_boot_id() for _ in range(1000)]
    assert ids == sorted(set(ids)) and ids[-1] < 2**53
    assert new_boot_id(after=ids[-1] + 10**9) == ids[-1] + 10**9 + 1


def test_both_sides_emit_what_the_simulator_emits(pair: Pair) -> None:
    """The same events for the same things: grants, writes, watermarks, deliveries, in an order that a checker can
    follow."""
    pair.sender.submit(1, payload_of(1, 20))
    pair.receiver.submit(1)
    pair.run_rooms([1])
    told = [
        (type(event).__name__, getattr(event, "seq", None), getattr(event, "tokens", getattr(event, "count", None)))
        for event in pair.events
        if isinstance(event, Granted | Executed | Wrote | Progressed | Delivered)
    ]
    chunk = [[("Granted", seq, None), ("Executed", seq, tokens), ("Wrote", seq, tokens), ("Progressed", None, mark),
              ("Delivered", seq, tokens)] for seq, tokens, mark in ((0, 16, 16), (1, 4, 20))]  # fmt: skip
    assert told == chunk[0] + chunk[1]


# --- other transports, real sockets ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in-process", "nixl", "gloo"])
def test_over_sockets_and_a_real_transport(name: str) -> None:
    """Nothing is faked here but the distance: ZeroMQ on loopback, the transport's own library, a copying thread."""
    why = transports.absent(name)
    if why is not None:
        pytest.skip(f"{name}: {why}")
    options = {"fabric": Fabric()} if name == "in-process" else {}
    observer = Observer(checks=True)
    config = TransportConfig(name=name, options=options)
    sender = SenderWorker(sender_config(Fabric(), transport=config, checksum="full"), observer=observer)
    receiver = ReceiverWorker(
        receiver_config(
            Fabric(), transport=config, checksum="full", control=ControlConfig(address=sender.address),
            results=ResultConfig(tokens=1000),
        ),
        observer=observer,
    )  # fmt: skip
    payloads = {room: payload_of(room, 5 + 16 * room, mrope=room != 2) for room in range(4)}
    for room, payload in payloads.items():
        receiver.submit(room, lease=room == 0)
        sender.submit(room, payload)
    outcomes: list[Any] = []
    ended: list[Any] = []
    for _ in range(60_000):
        ended += sender.poll()
        outcomes += receiver.poll()
        if len(ended) == len(outcomes) == 4:
            break
        for outcome in outcomes:
            if outcome.lease is not None and not outcome.lease.released:
                assert wrong_with(outcome, payloads[outcome.room]) == ""
                outcome.lease.release()
        receiver.wait(0.0005)
        sender.wait(0.0005)
    assert sorted((outcome.room, outcome.reason) for outcome in ended) == [(room, "NONE") for room in range(4)]
    for outcome in outcomes:
        if outcome.result is not None:
            assert wrong_with(outcome, payloads[outcome.room]) == ""
    assert observer.violations == []
    receiver.close()
    sender.close()


@pytest.mark.gpu
def test_blocks_and_results_on_a_gpu() -> None:
    """The same on device memory, by the copies of the in-process transport."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    pool = PoolConfig(blocks=4, device="cuda")
    pair = Pair(receiver={"pool": pool, "checksum": "full"},
                sender={"pool": PoolConfig(blocks=32, device="cuda"), "checksum": "full"})  # fmt: skip
    payload = payload_of(1, 37, device="cuda")
    pair.sender.submit(1, payload)
    pair.sender.submit(2, Payload(payload.input_embeddings[:9], payload.fill_ids[:9]))
    pair.receiver.submit(1)
    pair.receiver.submit(2, lease=True)
    pair.run(lambda: len(pair.outcomes) == 2, rounds_max=1_000_000)
    assert wrong_with(pair.outcomes[1], payload) == ""
    assert pair.observer.violations == []
    pair.close()


# --- who comes first -------------------------------------------------------------------------------------


def test_a_receiver_that_comes_first_waits_for_no_timer(pair: Pair) -> None:
    """The clock stands still: its REGISTER came before the sender had the room, and is heard again when it has."""
    pair.step()
    pair.step()
    pair.receiver.submit(1)
    for _ in range(5):
        pair.step()
    assert pair.receiver.state(1) is State.BOOTSTRAPPING
    pair.sender.submit(1, payload_of(1, 20))
    pair.run_rooms([1])
    assert pair.outcomes[1].state is State.SUCCESS and pair.receiver.stats().counters.resends == 0


def test_after_a_lease_no_wait_delays_the_end(pair: Pair) -> None:
    """What was handed out is news to the next tick, though no message will tell of it."""
    pair.sender.submit(1, payload_of(1, 16))
    pair.receiver.submit(1, lease=True)
    for _ in range(200):
        if pair.receiver.receiver.rooms[1].leased:
            break
        pair.step()
    assert pair.receiver.wait(3600.0) is True
    pair.run_rooms([1])
