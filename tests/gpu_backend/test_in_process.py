"""The fabric: bytes, its controls, and that it can be as nasty as a real engine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError, RemoteError
from fsm.messages import BlockRef, Epoch
from gpu_backend.layout import make_layout
from gpu_backend.pool import BlockPool
from gpu_backend.transports.base import Landed, Sent, WriteFailed
from gpu_backend.transports.in_process import Arrival, Fabric, InProcessReceiver, InProcessSender
from tests.gpu_backend.kit_transports import arena_of, fill, grant_of, header_of, order_of, source_of, tokens_of

LAYOUT = make_layout(4, 8, deepstack_levels=2)
BLOCKS = 12

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")],
    ),
]


class Pair:
    """One receiver and one sender on a fabric."""

    def __init__(self, *, auto: bool = False, device: str = "cpu", landed_required: bool = False) -> None:
        self.fabric = Fabric(auto=auto, landed_required=landed_required)
        self.source = source_of(LAYOUT, BLOCKS, device=device)
        self.pool = BlockPool(LAYOUT, BLOCKS, device=device)
        options = {"fabric": self.fabric}
        self.receiver = InProcessReceiver(self.pool, rank=0, boot_id=77, options=options)
        self.sender = InProcessSender(self.source, rank=0, boot_id=5, options=options)
        self.sender.connect(0, 77, self.receiver.descriptors())


@pytest.fixture
def pair() -> Pair:
    return Pair()


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_arrive_at_scattered_blocks_from_any_start(device: str) -> None:
    pair = Pair(auto=True, device=device)
    orders = [
        order_of(grant_of([9, 3, 1], 12, room=1), [7, 8, 2]),
        order_of(grant_of([0, 11], 6, room=2, seq=1, start=3), [0, 4, 5], skip=frozenset(["deepstack"])),
    ]
    fill(pair.pool, seed=9)
    before = tokens_of(pair.pool, [0, 11], 0, 8)
    for order in orders:
        pair.sender.write(order)
    reports = []
    while pair.sender.busy:
        reports += pair.sender.poll()
    assert sorted(reports) == [Sent(*order.key) for order in orders]
    assert sorted(pair.receiver.poll()) == [Landed(1, Epoch(77, 1), 0), Landed(2, Epoch(77, 1), 1)]
    assert tokens_of(pair.pool, [9, 3, 1], 0, 12) == tokens_of(pair.source, [7, 8, 2], 0, 12)
    got = tokens_of(pair.pool, [0, 11], 0, 6)
    meant = tokens_of(pair.source, [0, 4, 5], 3, 6)
    assert got.pop("deepstack") == tokens_of(pair.pool, [0, 11], 0, 6)["deepstack"] == before["deepstack"][: 6 * 32]
    assert meant.pop("deepstack") and got == meant
    assert tokens_of(pair.pool, [11], 2, 2) == {name: data[len(data) // 8 * 6 :] for name, data in before.items()}
    assert header_of(pair.pool, 9) == header_of(pair.source, 7)
    assert header_of(pair.pool, 0) != header_of(pair.source, 0)


@given(st.data())
def test_each_piece_is_told_before_it_is_written_and_all_of_them_are_the_write(data: st.DataObject) -> None:
    # The checkers see `Wrote` for exactly the tokens that arrive, block by block, in whatever order writes move.
    pair = Pair()
    pair.fabric.piece_blocks = data.draw(st.integers(1, 3))
    told: dict[int, list[Arrival]] = {}

    def arrived(arrival: Arrival) -> None:
        told.setdefault(arrival.key.room, []).append(arrival)
        blocks = [ref.block for ref in arrival.blocks]
        assert not any(any(rows) for rows in tokens_of(pair.pool, blocks, 0, arrival.tokens).values())

    pair.fabric.on_arrival = arrived
    free = list(data.draw(st.permutations(range(BLOCKS))))
    orders = []
    for room in range(data.draw(st.integers(1, 3))):
        blocks = [free.pop() for _ in range(data.draw(st.integers(1, 4)))]
        capacity = data.draw(st.integers(4 * len(blocks) - 3, 4 * len(blocks)))
        grant = grant_of(blocks, capacity, room=room, start=data.draw(st.integers(0, 9)))
        orders.append(order_of(grant, data.draw(st.permutations(range(BLOCKS)))))
        pair.sender.write(orders[-1])
    while pair.fabric.flights:
        pair.fabric.step(data.draw(st.integers(0, 5)))
    assert sorted(pair.sender.poll()) == [Sent(*order.key) for order in orders]
    for order in orders:
        at = order.grant.start
        refs: list[BlockRef] = []
        for arrival in told[order.grant.room]:
            assert arrival.key == order.key and arrival.start == at and arrival.tokens >= 1
            at += arrival.tokens
            refs += arrival.blocks
        assert at == order.grant.start + order.tokens and tuple(refs) == order.grant.blocks
        blocks = [ref.block for ref in refs]
        assert tokens_of(pair.pool, blocks, 0, order.tokens) == tokens_of(
            pair.source, order.source_blocks, order.source_start, order.tokens
        )


def test_nothing_moves_before_it_is_stepped(pair: Pair) -> None:
    before = arena_of(pair.pool)
    order = order_of(grant_of([1, 2], 8), [1, 2])
    pair.sender.write(order)
    for _ in range(5):
        assert pair.sender.poll() == [] and pair.receiver.poll() == []
    assert arena_of(pair.pool) == before
    assert pair.fabric.step(0) == order.key
    assert pair.fabric.flights[0].done == 4 and arena_of(pair.pool) != before
    assert pair.fabric.step(0) == order.key
    assert pair.sender.poll() == [Sent(*order.key)] and pair.fabric.step(0) is None


def test_steps_choose_among_the_writes_and_hold_keeps_one_out(pair: Pair) -> None:
    orders = [order_of(grant_of([room], 4, room=room), [room]) for room in range(3)]
    for order in orders:
        pair.sender.write(order)
    pair.fabric.hold(orders[1].key)
    assert pair.fabric.step(1) == orders[2].key
    assert pair.fabric.step(7) == orders[0].key
    assert pair.fabric.step(0) is None
    pair.fabric.finish_all()
    assert [flight.key for flight in pair.fabric.flights] == [orders[1].key]
    assert pair.fabric.step(orders[1].key) == orders[1].key
    assert len(pair.sender.poll()) == 3


def test_a_held_write_goes_on_after_a_cancel_and_a_disconnect(pair: Pair) -> None:
    # As a one-sided engine does: who frees its blocks too early finds them written.
    order = order_of(grant_of([1, 2], 8), [1, 2])
    pair.sender.write(order)
    pair.fabric.step(0)
    pair.fabric.hold(order.key)
    pair.sender.cancel(*order.key)
    pair.sender.disconnect(0, 77)
    for _ in range(3):
        assert pair.sender.poll() == []
    assert [flight.key for flight in pair.fabric.flights] == [order.key]
    pair.fabric.free(order.key)
    assert pair.sender.poll() == [WriteFailed(*order.key, "cancelled")]
    assert pair.fabric.flights == () and pair.receiver.poll() == []


def test_a_cancel_after_the_last_piece_changes_nothing(pair: Pair) -> None:
    order = order_of(grant_of([1], 4), [1])
    pair.sender.write(order)
    pair.fabric.finish(order.key)
    pair.sender.cancel(*order.key)
    assert pair.sender.poll() == [Sent(*order.key)]


def test_fail_leaves_what_arrived_and_lands_nothing(pair: Pair) -> None:
    order = order_of(grant_of([1, 2], 8), [3, 4])
    pair.sender.write(order)
    pair.fabric.step(0)
    pair.fabric.fail(order.key, "cable")
    assert pair.sender.poll() == [WriteFailed(*order.key, "cable")] and pair.receiver.poll() == []
    assert tokens_of(pair.pool, [1], 0, 4) == tokens_of(pair.source, [3], 0, 4)
    assert not any(any(rows) for rows in tokens_of(pair.pool, [2], 0, 4).values())
    with pytest.raises(LocalError):
        pair.fabric.fail(order.key)


def test_closed_memory_is_not_written_any_more(pair: Pair) -> None:
    order = order_of(grant_of([1, 2], 8), [3, 4])
    pair.sender.write(order)
    pair.fabric.hold(order.key)
    pair.receiver.close()
    pair.receiver.close()
    (end,) = pair.sender.poll()
    assert isinstance(end, WriteFailed) and "gone" in end.text
    pair.sender.write(order)
    assert isinstance(pair.sender.poll()[0], WriteFailed)
    assert not any(arena_of(pair.pool))


def test_a_new_process_of_a_rank_takes_the_place_of_the_old(pair: Pair) -> None:
    old = order_of(grant_of([1], 4, room=1), [1])
    pair.sender.write(old)
    pool = BlockPool(LAYOUT, BLOCKS)
    second = InProcessReceiver(pool, rank=0, boot_id=78, options={"fabric": pair.fabric})
    pair.sender.connect(0, 78, second.descriptors())
    pair.sender.connect(0, 78, second.descriptors())
    new = order_of(grant_of([1], 4, room=2, boot_id=78), [1])
    pair.sender.write(new)
    stale = order_of(grant_of([1], 4, room=3), [1])
    pair.sender.write(stale)
    ends = {report[0]: report for report in pair.sender.poll()}
    assert isinstance(ends[1], WriteFailed) and isinstance(ends[3], WriteFailed)
    pair.sender.disconnect(0, 77)
    pair.fabric.finish_all()
    assert pair.sender.poll() == [Sent(*new.key)]
    assert tokens_of(pool, [1], 0, 4) == tokens_of(pair.source, [1], 0, 4)
    assert not any(arena_of(pair.pool))


def test_a_dead_sender_writes_nothing_more(pair: Pair) -> None:
    order = order_of(grant_of([1], 4), [1])
    pair.sender.write(order)
    pair.fabric.hold(order.key)
    pair.fabric.sender_died(0, 6)
    assert pair.fabric.flights
    pair.fabric.sender_died(0, 5)
    assert not pair.fabric.flights and pair.sender.poll() == []


def test_close_of_the_sender_ends_even_what_is_held(pair: Pair) -> None:
    order = order_of(grant_of([1], 4), [1])
    pair.sender.write(order)
    pair.fabric.hold(order.key)
    pair.sender.close()
    pair.sender.close()
    assert not pair.fabric.flights


def test_what_the_peer_cannot_mean_fails_and_what_this_side_cannot_mean_raises(pair: Pair) -> None:
    for blocks, capacity in (((BLOCKS,), 4), ((1, 1), 8), ((), 4), ((3,), 5), ((-1,), 4)):
        pair.sender.write(order_of(grant_of(blocks, capacity), [1, 2]))
        assert isinstance(pair.sender.poll()[0], WriteFailed), blocks
    pair.sender.write(order_of(grant_of([1], 4, receiver_rank=3), [1]))
    assert isinstance(pair.sender.poll()[0], WriteFailed)
    good = order_of(grant_of([1], 4), [1])
    for change in ({"tokens": 5}, {"tokens": 0}, {"source_start": 1}, {"source_blocks": (BLOCKS,)}):
        with pytest.raises(LocalError):
            pair.sender.write(good._replace(**change))
    pair.sender.write(good)
    with pytest.raises(LocalError, match="under way"):
        pair.sender.write(good)


def test_descriptors_of_elsewhere_are_refused(pair: Pair) -> None:
    elsewhere = Pair()
    other = BlockPool(make_layout(8, 8), 2)
    strange = InProcessReceiver(other, rank=4, boot_id=1, options={"fabric": pair.fabric})
    for rank, data in (
        (0, b""), (0, b"\xff"), (0, elsewhere.receiver.descriptors()), (1, pair.receiver.descriptors()),
        (4, strange.descriptors()),
    ):  # fmt: skip
        with pytest.raises(RemoteError):
            pair.sender.connect(rank, 77, data)
    elsewhere.receiver.close()
    with pytest.raises(RemoteError, match="not on this fabric"):
        elsewhere.sender.connect(0, 77, elsewhere.receiver.descriptors())


def test_the_sides_say_what_the_fabric_asks_for() -> None:
    pair = Pair(landed_required=True)
    assert pair.receiver.traits.landed_required and pair.sender.traits.landed_required
    assert not InProcessReceiver.traits.landed_required
    for wrong in ({}, {"fabric": None}):
        with pytest.raises(LocalError, match="fabric"):
            InProcessSender(pair.source, rank=0, boot_id=1, options=wrong)
    with pytest.raises(LocalError, match="piece_blocks"):
        Fabric(piece_blocks=0)
    with pytest.raises(LocalError, match="already"):
        InProcessReceiver(pair.pool, rank=0, boot_id=77, options={"fabric": pair.fabric})


def test_busy_follows_what_polling_would_find() -> None:
    pair = Pair(auto=True)
    assert (pair.sender.busy, pair.receiver.busy) == (False, False)
    grant = grant_of([1], 4)
    pair.receiver.expect(grant)
    pair.sender.write(order_of(grant, [1]))
    assert (pair.sender.busy, pair.receiver.busy) == (True, True)
    pair.sender.poll()
    pair.receiver.poll()
    assert (pair.sender.busy, pair.receiver.busy) == (False, True)
    pair.receiver.settle(grant.room, grant.epoch, grant.seq)
    assert (pair.sender.busy, pair.receiver.busy) == (False, False)
