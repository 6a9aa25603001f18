"""The order of two-sided transfers: what is announced is received, in that order, into the right memory.

A library of this kind matches the n-th send with the n-th receive and nothing else. These tests move the pieces by
hand over a recorded fake, cancel, lose, repeat and break, and look at every byte of the receiver's arena.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm.errors import LocalError, RemoteError
from fsm.messages import BlockRef, Epoch, Grant
from gpu_backend.layout import AUX_BYTES, make_layout
from gpu_backend.pool import BlockPool, SourcePool
from gpu_backend.transports.base import Broken, Landed, LinkLost, Sent, WriteFailed, WriteOrder
from gpu_backend.transports.ordered import ANNOUNCED_MAX, VERSION, Announce, Descriptors, Open, Over
from gpu_backend.transports.pieces import Cut, cut_chunk
from tests.gpu_backend.kit_communicator import FakeReceiver, FakeSender, Link, Network

BLOCK_TOKENS = 4
LAYOUT = make_layout(BLOCK_TOKENS, 256, deepstack_levels=1)
SENDER, RECEIVER = 7, 5
UNTOUCHED = 0xEE


class Pair:
    """A sender with one receiver, a side channel that the test can cut, and arenas whose bytes are all known."""

    def __init__(self, *, blocks: int = 8, source_blocks: int = 8, piece_bytes: int = 1024) -> None:
        self.network = Network()
        self.target = BlockPool(LAYOUT, blocks)
        self.source = SourcePool(LAYOUT, source_blocks)
        self.target.arena.fill_(UNTOUCHED)
        # No byte of the source is UNTOUCHED, and any two tokens of an item differ.
        noise = torch.randint(0, 200, (self.source.map.bytes,), generator=torch.Generator().manual_seed(1))
        self.source.arena.copy_(noise.to(torch.uint8))
        options = {"network": self.network, "piece_bytes": piece_bytes}
        self.receiver = FakeReceiver(self.target, rank=0, boot_id=RECEIVER, options=options)
        self.sender = FakeSender(self.source, rank=0, boot_id=SENDER, options=options)
        self.sender.connect(0, RECEIVER, self.receiver.descriptors())

    @property
    def link(self) -> Link:
        return self.network.link(RECEIVER, SENDER)

    def side(self) -> None:
        """Deliver the side channel, both ways."""
        for _, data in self.sender.take_outbox():
            self.receiver.on_message(SENDER, data)
        for data in self.receiver.take_outbox():
            self.sender.on_message(0, RECEIVER, data)

    def run(self) -> tuple[list[object], list[object]]:
        """Everything that can happen happens; what the sender and what the receiver reported."""
        sent: list[object] = []
        landed: list[object] = []
        for _ in range(64):
            self.side()
            self.link.run()
            sent += self.sender.poll()
            landed += self.receiver.poll()
        return sent, landed

    def expected_arena(self, writes: Sequence[tuple[Grant, WriteOrder]]) -> torch.Tensor:
        """What the target's arena must hold after these writes, computed token by token (R10)."""
        arena = torch.full((self.target.map.bytes,), UNTOUCHED, dtype=torch.uint8)
        for grant, order in writes:
            for token in range(order.tokens):
                source, target = order.source_start + token, grant.blocks[token // BLOCK_TOKENS].block
                source_row = order.source_blocks[source // BLOCK_TOKENS] * BLOCK_TOKENS + source % BLOCK_TOKENS
                target_row = target * BLOCK_TOKENS + token % BLOCK_TOKENS
                for index, item in enumerate(self.target.map.items):
                    if item.name not in order.skip:
                        size = item.token_bytes
                        at = self.target.map.base(index) + target_row * size
                        come = self.source.map.base(index) + source_row * size
                        arena[at : at + size] = self.source.arena[come : come + size]
            if order.first:
                at, come = (
                    self.target.map.aux_offset(grant.blocks[0].block),
                    self.source.map.aux_offset(order.source_blocks[0]),
                )
                arena[at : at + AUX_BYTES] = self.source.arena[come : come + AUX_BYTES]
        return arena

    def check(self, writes: Sequence[tuple[Grant, WriteOrder]]) -> None:
        assert torch.equal(self.target.arena, self.expected_arena(writes))


def grant_of(room: int, blocks: Sequence[int], *, start: int = 0, seq: int = 0, sender: int = SENDER) -> Grant:
    refs = tuple(BlockRef(block, 1) for block in blocks)
    return Grant(room, Epoch(RECEIVER, room), 0, 0, seq, start, len(blocks) * BLOCK_TOKENS, refs, sender)


def order_of(
    grant: Grant,
    source_blocks: Sequence[int],
    *,
    tokens: int | None = None,
    start: int | None = None,
    skip: Sequence[str] = (),
) -> WriteOrder:
    tokens = grant.capacity if tokens is None else tokens
    start = grant.start if start is None else start
    return WriteOrder(grant, tuple(source_blocks), start, tokens, 99, frozenset(skip), grant.start == 0)


def test_a_chunk_lands_whole_and_is_reported_on_both_sides() -> None:
    pair = Pair()
    grant = grant_of(1, [6, 2])
    order = order_of(grant, [0, 1])
    pair.receiver.expect(grant)
    pair.sender.write(order)
    assert pair.run() == ([Sent(1, grant.epoch, 0, 0)], [Landed(1, grant.epoch, 0)])
    pair.check([(grant, order)])


def test_landed_is_not_said_before_the_last_piece() -> None:
    pair = Pair()
    grant = grant_of(1, [0])
    pair.receiver.expect(grant)
    pair.sender.write(order_of(grant, [0]))
    pair.side()
    pieces = len(pair.link.receiver.posted[0])
    assert pieces > 2
    for _ in range(pieces - 1):
        pair.link.step()
        assert pair.receiver.poll() == [] and pair.sender.poll() == []
    pair.link.step()
    assert pair.receiver.poll() == [Landed(1, grant.epoch, 0)]


def test_a_grant_cancelled_after_it_was_announced_is_drained_into_its_own_blocks() -> None:
    """Trace N1: g1(A), g2(B), the receiver gives up g1. Were g1's receive skipped, its bytes would land in B."""
    pair = Pair()
    first, second = grant_of(1, [3]), grant_of(2, [5])
    writes = [(first, order_of(first, [0])), (second, order_of(second, [1]))]
    for grant, order in writes:
        pair.receiver.expect(grant)
        pair.sender.write(order)
    pair.sender.cancel(1, first.epoch, 0, 0)  # announced: too late to stop it
    sent, landed = pair.run()
    assert landed == [Landed(1, first.epoch, 0), Landed(2, second.epoch, 0)], "quarantined blocks wait for this"
    assert [type(report) for report in sent] == [Sent, Sent]
    pair.check(writes)


def test_a_write_cancelled_before_it_was_announced_moves_nothing_and_still_lands_empty() -> None:
    """The receiver was told that this grant is executed, and waits for its end; the bytes need not move."""
    pair = Pair()
    grants = [grant_of(room, [room]) for room in range(ANNOUNCED_MAX + 2)]
    for grant in grants:
        pair.receiver.expect(grant)
        pair.sender.write(order_of(grant, [grant.room]))
    cancelled = grants[ANNOUNCED_MAX]
    pair.sender.cancel(cancelled.room, cancelled.epoch, 0, 0)
    sent, landed = pair.run()
    assert WriteFailed(cancelled.room, cancelled.epoch, 0, 0, "cancelled before it began") in sent
    assert sorted(report.room for report in landed if isinstance(report, Landed)) == list(range(ANNOUNCED_MAX + 2))
    pair.check([(grant, order_of(grant, [grant.room])) for grant in grants if grant is not cancelled])


def test_no_more_than_the_window_is_announced_at_once() -> None:
    pair = Pair()
    for room in range(ANNOUNCED_MAX + 1):
        grant = grant_of(room, [room])
        pair.sender.write(order_of(grant, [room]))
    announced = [data for _, data in pair.sender.take_outbox() if isinstance(side(data), Announce)]
    assert len(announced) == ANNOUNCED_MAX


def side(data: bytes) -> object:
    return msgspec.msgpack.decode(data, type=Open | Announce | Over)


@pytest.mark.parametrize("why", ["never expected", "settled", "of another process", "landed already"])
def test_an_unknown_grant_is_drained_into_scratch(why: str) -> None:
    """Its bytes must go somewhere, and nowhere into the pool; what follows must still land where it belongs."""
    pair = Pair()
    unknown, known = grant_of(1, [3]), grant_of(2, [4])
    if why != "never expected":
        pair.receiver.expect(unknown if why != "of another process" else grant_of(1, [3], sender=SENDER + 1))
    if why == "settled":
        pair.receiver.settle(1, unknown.epoch, 0)
    if why == "landed already":
        pair.sender.write(order_of(unknown, [0]))
        assert pair.run()[1] == [Landed(1, unknown.epoch, 0)]
        pair.target.arena.fill_(UNTOUCHED)
    pair.receiver.expect(known)
    pair.sender.write(order_of(unknown, [0]))
    pair.sender.write(order_of(known, [1]))
    sent, landed = pair.run()
    assert landed == [Landed(2, known.epoch, 0)] and len(sent) == 2
    assert pair.receiver.counts["drained_into_scratch"] == 1
    pair.check([(known, order_of(known, [1]))])


def test_a_repeated_announcement_is_ignored() -> None:
    pair = Pair()
    first, second = grant_of(1, [3]), grant_of(2, [4])
    for grant, block in ((first, 0), (second, 1)):
        pair.receiver.expect(grant)
        pair.sender.write(order_of(grant, [block]))
    for _, data in pair.sender.take_outbox():
        pair.receiver.on_message(SENDER, data)
        pair.receiver.on_message(SENDER, data)
    assert len(pair.link.receiver.posted) == 2 and pair.receiver.counts["duplicate_announcements"] == 2
    assert len(pair.run()[1]) == 2
    pair.check([(first, order_of(first, [0])), (second, order_of(second, [1]))])


def test_a_lost_announcement_ends_the_link_before_a_byte_goes_astray() -> None:
    pair = Pair()
    first, second = grant_of(1, [3]), grant_of(2, [4])
    pair.side()
    pair.receiver.expect(first)
    pair.receiver.expect(second)
    pair.sender.write(order_of(first, [0]))
    pair.sender.take_outbox()  # lost
    pair.sender.write(order_of(second, [1]))
    sent, landed = pair.run()
    text = "order number 1 came where 0 was due"
    assert landed == [Broken(SENDER, True, text)]
    assert sent == [
        WriteFailed(1, first.epoch, 0, 0, text), WriteFailed(2, second.epoch, 0, 0, text), LinkLost(0, text),
    ]  # fmt: skip
    pair.check([])


@pytest.mark.parametrize("data", [b"", b"\xc1", b"garbage", msgspec.msgpack.encode(["announce", 1])])
def test_a_message_that_cannot_be_read_ends_the_link_and_raises_nothing(data: bytes) -> None:
    pair = Pair()
    pair.side()
    pair.receiver.on_message(SENDER, data)
    assert any(isinstance(report, LinkLost) for report in pair.run()[0])
    pair.sender.on_message(0, RECEIVER, data)
    pair.receiver.on_message(999, data)
    assert pair.receiver.poll() == [] and pair.sender.poll() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 5},
        {"room": 9, "tokens": 33},  # more than the pool, for a grant that is not known
        {"skip": ("input_embeddings",)},
        {"aux": True, "seq": 1},
    ],
)
def test_an_announcement_that_the_grant_does_not_allow_ends_the_link(wrong: dict[str, object]) -> None:
    """More tokens than granted would run into blocks of others; the number of pieces must not be the peer's choice."""
    pair = Pair()
    pair.side()
    pair.receiver.expect(grant_of(1, [3]))
    pair.receiver.expect(grant_of(1, [4], seq=1, start=4))
    fields = {"order": 0, "room": 1, "epoch": Epoch(RECEIVER, 1), "seq": 0, "tokens": 4, "skip": (), "aux": False}
    message = Announce(receiver_boot_id=RECEIVER, **{**fields, **wrong})  # type: ignore[arg-type]
    pair.receiver.on_message(SENDER, msgspec.msgpack.encode(message))
    assert pair.link.receiver.posted == [] and pair.link.receiver.closed
    assert [type(report) for report in pair.run()[1]] == [Broken]


def test_the_end_is_reported_only_when_it_is_proved() -> None:
    """A link that is over but not destroyed can still write: nothing may be said before the proof."""
    pair = Pair()
    grant = grant_of(1, [3])
    pair.receiver.expect(grant)
    pair.sender.write(order_of(grant, [0]))
    pair.side()
    pair.link.step()
    pair.link.receiver.hold_quiescence = pair.link.sender.hold_quiescence = True
    pair.link.receiver.failure = pair.link.sender.failure = "the cable was pulled"
    sent, landed = pair.run()
    assert sent == [] and landed == []
    assert [pair.receiver.busy, pair.sender.busy] == [True, True]
    pair.link.receiver.is_quiescent = pair.link.sender.is_quiescent = True
    sent, landed = pair.run()
    assert landed == [Broken(SENDER, True, "the cable was pulled")]
    assert sent == [
        WriteFailed(1, grant.epoch, 0, 0, "the cable was pulled"), LinkLost(0, "the cable was pulled"),
    ]  # fmt: skip
    pair.receiver.settle(1, grant.epoch, 0)  # now it may be settled
    assert pair.run() == ([], [])
    assert [pair.receiver.busy, pair.sender.busy] == [False, False]


def test_what_had_landed_before_the_error_is_reported_as_landed() -> None:
    pair = Pair()
    first, second = grant_of(1, [3]), grant_of(2, [4])
    for grant in (first, second):
        pair.receiver.expect(grant)
        pair.sender.write(order_of(grant, [grant.room]))
    pair.side()
    for _ in pair.link.receiver.posted[0]:
        pair.link.step()
    pair.link.receiver.failure = pair.link.sender.failure = "reset"
    sent, landed = pair.run()
    assert landed == [Landed(1, first.epoch, 0), Broken(SENDER, True, "reset")]
    assert sent == [Sent(1, first.epoch, 0, 0), WriteFailed(2, second.epoch, 0, 0, "reset"), LinkLost(0, "reset")]


def test_to_settle_while_it_is_received_ends_the_link() -> None:
    """The protocol forbids it. If it happened, the blocks would be given away under a receive that goes on."""
    pair = Pair()
    grant = grant_of(1, [3])
    pair.receiver.expect(grant)
    pair.sender.write(order_of(grant, [0]))
    pair.side()
    pair.link.step()
    pair.receiver.settle(1, grant.epoch, 0)
    assert pair.link.receiver.closed and pair.receiver.counts["settled_while_receiving"] == 1
    assert [type(report) for report in pair.run()[1]] == [Broken]


def test_an_ended_link_stays_ended_and_a_new_process_gets_a_new_one() -> None:
    pair = Pair()
    pair.side()
    descriptors = pair.receiver.descriptors()
    opening = msgspec.msgpack.encode(["open", RECEIVER, VERSION, LAYOUT.fingerprint(), 1024])
    pair.link.receiver.failure = pair.link.sender.failure = "reset"
    pair.run()
    pair.sender.connect(0, RECEIVER, descriptors)
    pair.receiver.on_message(SENDER, opening)
    assert pair.run() == ([], []), "the same two processes must not meet again in the middle of an order"
    grant = grant_of(1, [3])
    pair.sender.write(order_of(grant, [0]))
    assert [type(report) for report in pair.sender.poll()] == [WriteFailed]
    pair.receiver.on_message(SENDER + 1, opening)
    assert (RECEIVER, SENDER + 1) in pair.network.links


def test_a_newer_receiver_takes_the_place_of_the_old_one_without_a_lost_link() -> None:
    pair = Pair()
    grant = grant_of(1, [3])
    pair.sender.write(order_of(grant, [0]))
    pair.sender.connect(0, RECEIVER + 1, pair.receiver.descriptors())
    reports = pair.sender.poll()
    assert [type(report) for report in reports] == [WriteFailed] and pair.link.sender.closed
    assert (RECEIVER + 1, SENDER) in pair.network.links
    pair.sender.connect(0, RECEIVER, pair.receiver.descriptors())
    assert not pair.network.link(RECEIVER + 1, SENDER).sender.closed, "a late REGISTER of the old one came"


def test_disconnect_ends_writes_and_loses_no_link() -> None:
    pair = Pair()
    grant = grant_of(1, [3])
    pair.sender.write(order_of(grant, [0]))
    pair.sender.disconnect(0, RECEIVER + 1)
    assert not pair.link.sender.closed
    pair.sender.disconnect(0, RECEIVER)
    assert [type(report) for report in pair.sender.poll()] == [WriteFailed]


def test_the_end_of_the_process_waits_for_the_own_proof() -> None:
    """Bytes of a dead process can still be in the sockets of this machine."""
    pair = Pair()
    pair.side()
    pair.link.receiver.hold_quiescence = True
    pair.receiver.peer_gone(SENDER)
    assert pair.receiver.poll() == [] and pair.link.receiver.closed
    pair.link.receiver.is_quiescent = True
    assert [type(report) for report in pair.receiver.poll()] == [Broken]
    pair.receiver.peer_gone(SENDER)
    assert pair.receiver.poll() == []


def test_a_process_without_a_link_is_quiet_at_once_and_for_ever() -> None:
    pair = Pair()
    pair.receiver.peer_gone(SENDER)
    assert [report.boot_id for report in pair.receiver.poll() if isinstance(report, Broken)] == [SENDER]
    pair.side()  # its `open` was still on the way
    assert pair.network.links.keys() == {(RECEIVER, SENDER)} and not pair.receiver.busy
    assert pair.receiver.counts["stale_side_messages"] == 1


def test_open_is_said_again_until_the_peer_is_there() -> None:
    """The side channel may lose it; REGISTER is repeated for every room."""
    pair = Pair()
    pair.link.sender.is_ready = False
    pair.sender.take_outbox()
    for _ in range(2):
        pair.sender.connect(0, RECEIVER, pair.receiver.descriptors())
        pair.side()
    assert list(pair.receiver.counts) == []
    pair.link.sender.is_ready = True
    pair.sender.connect(0, RECEIVER, pair.receiver.descriptors())
    assert pair.sender.take_outbox() == []


def test_messages_for_an_earlier_process_of_the_receiver_are_ignored() -> None:
    pair = Pair()
    pair.side()
    message = Announce(RECEIVER - 1, 5, 1, Epoch(RECEIVER - 1, 1), 0, 4, (), True)
    pair.receiver.on_message(SENDER, msgspec.msgpack.encode(message))
    pair.receiver.on_message(SENDER + 1, msgspec.msgpack.encode(Announce(RECEIVER, 0, 1, Epoch(5, 1), 0, 4, (), True)))
    assert pair.receiver.counts == {"stale_side_messages": 1, "side_messages_before_open": 1}
    assert not pair.link.receiver.closed


def test_two_sides_that_cut_differently_are_not_linked() -> None:
    pair = Pair(piece_bytes=1024)
    good = msgspec.msgpack.decode(pair.receiver.descriptors(), type=Descriptors)
    for change in ({"version": VERSION + 1}, {"transport": "nccl"}, {"fingerprint": 0}):
        other = msgspec.msgpack.encode(msgspec.structs.replace(good, **change))
        with pytest.raises(RemoteError, match="expected"):
            pair.sender.connect(1, RECEIVER + 1, other)
    with pytest.raises(RemoteError, match="cannot be read"):
        pair.sender.connect(1, RECEIVER + 1, b"?")
    pair.receiver.on_message(
        SENDER + 2, msgspec.msgpack.encode(["open", RECEIVER, VERSION, LAYOUT.fingerprint(), 4096])
    )
    assert pair.receiver.counts["refused_links"] == 1
    assert isinstance(side(pair.receiver.take_outbox()[-1]), Over)


def test_the_smaller_limit_of_a_piece_counts() -> None:
    pair = Pair(piece_bytes=4096)
    smaller = msgspec.msgpack.decode(pair.receiver.descriptors(), type=Descriptors)
    pair.sender.connect(1, RECEIVER + 1, msgspec.msgpack.encode(msgspec.structs.replace(smaller, piece_bytes=512)))
    opening = side(pair.sender.take_outbox()[-1][1])
    assert opening.piece_bytes == 512  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tokens": 0}, "allow 1 to 4"),
        ({"tokens": 5}, "allow 1 to 4"),
        ({"start": 1}, "allow 1 to 3"),
        ({"start": -1}, "allow"),
        ({"skip": ("fill_ids",)}, "only"),
    ],
)
def test_an_order_that_contradicts_itself_is_refused(change: dict[str, object], text: str) -> None:
    pair = Pair()
    pair.sender.take_outbox()
    with pytest.raises(LocalError, match=text):
        pair.sender.write(order_of(grant_of(1, [3]), [0], **change))  # type: ignore[arg-type]
    assert pair.sender.take_outbox() == [] and pair.sender.poll() == []


def test_a_write_under_way_is_not_begun_twice() -> None:
    pair = Pair()
    grant = grant_of(1, [3])
    pair.sender.write(order_of(grant, [0]))
    with pytest.raises(LocalError, match="under way"):
        pair.sender.write(order_of(grant, [0]))


@pytest.mark.parametrize("name", ["piece_bytes"])
@pytest.mark.parametrize("value", [0, -1, "1", True, float("nan"), float("inf")])
def test_an_option_that_is_no_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(LocalError, match=name):
        FakeReceiver(BlockPool(LAYOUT, 1), rank=0, boot_id=1, options={"network": Network(), name: value})


# --- cutting ------------------------------------------------------------------------------------------

shapes = st.tuples(
    st.integers(1, 40),  # block_tokens
    st.sampled_from([1, 32, 128, 300]),  # dim
    st.integers(0, 2),  # deepstack levels
    st.integers(1, 200),  # tokens
    st.sampled_from([1, 64, 100, 1000, 4096, 1 << 20]),  # piece_bytes
)


@given(shapes, st.booleans(), st.sampled_from([frozenset[str](), frozenset({"mrope_positions", "deepstack"})]))
def test_the_pieces_tile_the_chunk(shape: tuple[int, ...], aux: bool, skip: frozenset[str]) -> None:
    """Every token of every item exactly once, within the limit, and no big piece across a border of blocks."""
    block_tokens, dim, levels, tokens, piece_bytes = shape
    layout = make_layout(block_tokens, dim, deepstack_levels=levels)
    pool_items = BlockPool(layout, 1).map.items
    cuts = cut_chunk(layout, tokens, piece_bytes, skip, aux)
    seen = {index: [0] * tokens for index, item in enumerate(pool_items) if item.name not in skip}
    for cut in cuts:
        size = sum(pool_items[index].token_bytes for index in cut.items) * cut.tokens + AUX_BYTES * cut.aux
        assert cut.bytes == size > 0
        assert cut.bytes <= piece_bytes or cut.tokens == 1
        for index in cut.items:
            for token in range(cut.first, cut.first + cut.tokens):
                seen[index][token] += 1
        if len(cut.items) == 1 and pool_items[cut.items[0]].token_bytes >= 256:
            assert cut.first // block_tokens == (cut.first + cut.tokens - 1) // block_tokens
    assert all(count == [1] * tokens for count in seen.values())
    assert sum(cut.aux for cut in cuts) == aux


def test_a_block_is_cut_into_equal_pieces_where_it_can_be() -> None:
    """128 tokens of 16 KiB, at most 100 of them a piece: two of 64, and not one of 100 and one of 28."""
    cuts = cut_chunk(make_layout(128, 8192), 128 + 5, 100 * 16384, frozenset(), False)
    big = [cut for cut in cuts if cut.items == (0,)]
    assert [(cut.first, cut.tokens) for cut in big] == [(0, 64), (64, 64), (128, 5)]
    assert cuts[-1] == Cut(False, (1, 2), 0, 133, 133 * 16)


def test_no_tokens_are_no_pieces() -> None:
    assert cut_chunk(LAYOUT, 0, 1024, frozenset(), True) == ()


# --- any interleaving ---------------------------------------------------------------------------------


ACTS = ["take", "take", "cancel", "forget"]
"""What becomes of a grant on the receiver; most are simply taken."""


@st.composite
def cases(draw: st.DrawFn) -> list[tuple[Grant, WriteOrder, str]]:
    """Grants in disjoint blocks, any start, any length, and what the receiver does with each."""
    blocks = list(draw(st.permutations(range(12))))
    source = list(draw(st.permutations(range(12))))
    planned = []
    for room in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, min(3, len(blocks))))
        mine, blocks = blocks[:count], blocks[count:]
        grant = grant_of(room, mine, start=draw(st.sampled_from([0, 0, 1, 3, 4, 6])), seq=draw(st.integers(0, 2)))
        tokens = draw(st.integers(1, grant.capacity))
        skip = draw(st.sampled_from([(), ("mrope_positions",), ("deepstack", "mrope_positions")]))
        planned.append((grant, order_of(grant, source, tokens=tokens, skip=skip), draw(st.sampled_from(ACTS))))
        if not blocks:
            break
    return planned


@settings(max_examples=150)
@given(cases(), st.data())
def test_in_any_interleaving_every_byte_lands_in_its_own_blocks(
    planned: list[tuple[Grant, WriteOrder, str]], data: st.DataObject
) -> None:
    """Taken or cancelled grants land in their own blocks or not at all, forgotten ones in scratch, none elsewhere."""
    pair = Pair(blocks=12, source_blocks=12, piece_bytes=data.draw(st.sampled_from([128, 600, 1 << 20])))
    expected = {(grant.room, grant.seq) for grant, _, act in planned if act != "forget"}
    for grant, _, act in planned:
        if act != "forget":
            pair.receiver.expect(grant)
    to_write = list(planned)
    to_cancel = [grant for grant, _, act in planned if act == "cancel"]
    landed: set[tuple[int, int]] = set()
    ended: list[object] = []
    for _ in range(400):
        action = data.draw(st.sampled_from(["write", "side", "step", "step", "poll", "cancel"]))
        if action == "write" and to_write:
            pair.sender.write(to_write.pop(0)[1])
        elif action == "cancel" and to_cancel:
            grant = to_cancel.pop()
            pair.sender.cancel(grant.room, grant.epoch, 0, grant.seq)
        elif action == "side":
            pair.side()
        elif action == "step":
            pair.link.step()
        elif action == "poll":
            ended += pair.sender.poll()
            landed |= landed_in(pair.receiver.poll())
        elif not to_write:
            break
    for _, order, _ in to_write:
        pair.sender.write(order)
    sent, reports = pair.run()
    landed |= landed_in(reports)
    ended += sent
    assert landed == expected, "each executed grant ends, so that its blocks come back"
    assert len(ended) == len(planned)
    moved = {(report.room, report.seq) for report in ended if isinstance(report, Sent)}
    writes = [(grant, order) for grant, order, act in planned if act != "forget" and (grant.room, grant.seq) in moved]
    pair.check(writes)


def landed_in(reports: Sequence[object]) -> set[tuple[int, int]]:
    assert all(isinstance(report, Landed) for report in reports)
    return {(report.room, report.seq) for report in reports if isinstance(report, Landed)}
