"""The machine under every one-sided sender, with an engine whose every slice ends when the test says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from gpu_backend.layout import ArenaMap, Span, make_layout
from gpu_backend.pool import SourcePool
from gpu_backend.transports.base import SenderReport, Sent, Traits, WriteFailed
from gpu_backend.transports.sliced import Flow, Link, NotStarted, Slice, SlicedSender, SliceFailed, cut
from tests.gpu_backend.kit_transports import grant_of, order_of

LAYOUT = make_layout(4, 16)
BLOCKS = 64
BLOCK_BYTES = 4 * (32 + 4 + 12)


@dataclass(eq=False)
class Handle:
    flow: Any
    piece: Slice
    last: bool
    state: str = "under way"


class Engine(SlicedSender[Handle]):
    """Slices stay under way until ``end``; ``start_as`` says how the next one begins."""

    traits = Traits("scripted", True, True, ("cpu",), False, True, "")

    def __init__(self, pool: SourcePool, options: Mapping[str, Any]) -> None:
        super().__init__(pool, rank=0, boot_id=5, options=options)
        self.started: list[Handle] = []
        self.under_way: list[Handle] = []
        self.start_as = "under way"
        self.quiet = False
        self.resets = 0
        self.shut: list[str] = []
        self.destroyed = False

    def _open(self, receiver_rank: int, boot_id: int, descriptors: bytes) -> Link:
        name = descriptors.decode()
        known = [link for link in self._links if link.name == name]
        return known[0] if known else Link(name, receiver_rank, ArenaMap(LAYOUT, BLOCKS))

    def _start(self, flow: Flow[Handle], piece: Slice, *, last: bool) -> Handle | None:
        assert not flow.link.failed, "a slice was started on a link that failed"
        if self.start_as == "refused":
            raise NotStarted("refused")
        handle = Handle(flow, piece, last)
        self.started.append(handle)
        if self.start_as == "failed":
            raise SliceFailed("failed at the start")
        if self.start_as == "done":
            return None
        self.under_way.append(handle)
        return handle

    def _ended(self, handle: Handle) -> bool:
        if handle.state == "failed":
            raise SliceFailed("failed under way")
        return handle.state == "done"

    def end(self, index: int = 0, state: str = "done") -> Handle:
        handle = self.under_way.pop(index)
        handle.state = state
        return handle

    def _reset(self, link: Link) -> bool:
        assert not link.in_flight, "a link was reset with slices under way"
        self.resets += 1
        return True

    def _quiet(self, link: Link) -> bool:
        return self.quiet

    def _shut(self, link: Link) -> bool:
        assert not link.in_flight, "a link was shut with slices under way"
        self.shut.append(link.name)
        return True

    def _destroy(self) -> None:
        self.destroyed = True


@pytest.fixture
def engine() -> Engine:
    return make(2 * BLOCK_BYTES, 2)


def make(slice_bytes: int, window: int) -> Engine:
    side = Engine(SourcePool(LAYOUT, BLOCKS), {"slice_bytes": slice_bytes, "window": window, "close_s": 1})
    side.connect(0, 77, b"first")
    side.connect(1, 88, b"second")
    return side


def settle(engine: Engine) -> list[SenderReport]:
    """End everything well, until nothing is left."""
    reports: list[SenderReport] = []
    for _ in range(1000):
        reports += engine.poll()
        while engine.under_way:
            engine.end()
        if not engine.busy:
            return reports
    raise AssertionError("does not come to an end")


def test_the_last_slice_starts_when_all_others_are_done(engine: Engine) -> None:
    # It carries the word that everything arrived.
    order = order_of(grant_of(range(8), 32), range(8))
    engine.write(order)
    for _ in range(50):
        for _ in range(3):
            engine.poll()
        assert len(engine.under_way) <= 1 or not engine.started[-1].last
        if engine.under_way:
            engine.end(-1)
    assert [handle.last for handle in engine.started].count(True) == 1 and engine.started[-1].last


def test_no_more_than_the_window_is_under_way_on_a_link_and_a_full_one_stops_no_other(engine: Engine) -> None:
    engine.write(order_of(grant_of(range(32), 128, room=1), range(32)))
    engine.write(order_of(grant_of(range(32), 128, room=2, boot_id=88, receiver_rank=1), range(32)))
    for _ in range(20):
        engine.poll()
        assert all(link.in_flight <= 2 for link in engine._links)
    assert [link.in_flight for link in engine._links] == [2, 2]
    for _ in range(4):
        engine.end(next(i for i, one in enumerate(engine.under_way) if one.flow.link.receiver_rank == 1))
        engine.poll()
        engine.poll()
    assert sum(one.flow.link.receiver_rank == 1 for one in engine.started) > 4


def test_one_poll_starts_about_one_slice(engine: Engine) -> None:
    # An engine may copy inside the call; a poll that starts ten slices holds the worker ten times as long.
    engine.start_as = "done"
    engine.write(order_of(grant_of(range(32), 128, room=1), range(32)))
    engine.write(order_of(grant_of(range(32), 128, room=2, boot_id=88, receiver_rank=1), range(32)))
    for polls in range(1, 10):
        engine.poll()
        assert sum(one.piece.bytes for one in engine.started) <= polls * 2 * BLOCK_BYTES
        assert len(engine.started) == polls
    # The two links took turns.
    ranks = [one.flow.link.receiver_rank for one in engine.started]
    assert abs(ranks.count(0) - ranks.count(1)) <= 1


def test_on_one_link_the_oldest_write_goes_first(engine: Engine) -> None:
    engine.start_as = "done"
    orders = [order_of(grant_of(range(8), 32, room=room), range(8)) for room in (5, 3, 4)]
    for order in orders:
        engine.write(order)
    ends = []
    while engine.busy:
        ends += [report.room for report in engine.poll() if isinstance(report, Sent)]
    assert ends == [5, 3, 4]


def test_a_cancelled_write_ends_when_what_was_started_has_ended(engine: Engine) -> None:
    order = order_of(grant_of(range(32), 128), range(32))
    engine.write(order)
    engine.poll()
    engine.poll()
    assert len(engine.under_way) == 2
    engine.cancel(*order.key)
    assert engine.poll() == []
    engine.end()
    assert engine.poll() == [] and engine.busy
    engine.end()
    assert engine.poll() == [WriteFailed(*order.key, "cancelled")]
    assert len(engine.started) == 2 and not engine.busy


def test_a_cancel_that_comes_too_late_is_sent(engine: Engine) -> None:
    order = order_of(grant_of([0], 4), [0])
    engine.write(order)
    engine.poll()
    assert engine.started[0].last
    engine.cancel(*order.key)
    engine.end()
    assert engine.poll() == [Sent(*order.key)]


@pytest.mark.parametrize("at_the_start", [False, True])
def test_a_failed_write_is_reported_when_it_is_proved_quiet_and_not_before(engine: Engine, at_the_start: bool) -> None:
    order = order_of(grant_of(range(32), 128, room=1), range(32))
    engine.write(order)
    engine.poll()
    if at_the_start:
        engine.start_as = "failed"
        engine.poll()
    else:
        engine.poll()
        engine.end(1, "failed")
        engine.poll()
    # The other slice of the link has not ended: no reset, no report, nothing new.
    assert len(engine.under_way) == 1
    for _ in range(3):
        assert engine.poll() == [] and engine.resets == 0
    engine.quiet = True
    assert engine.poll() == []
    engine.quiet = False
    engine.end()
    for _ in range(3):
        assert engine.poll() == []
    assert engine.resets == 1 and len(engine.started) == 2
    # The link was made anew, and serves others while the first waits for its proof.
    engine.start_as = "done"
    other = order_of(grant_of([40], 4, room=2), [4])
    engine.write(other)
    assert engine.poll() == [Sent(*other.key)]
    engine.quiet = True
    (end,) = engine.poll()
    assert isinstance(end, WriteFailed) and end[:4] == order.key and "failed" in end.text


def test_writes_without_a_failed_slice_go_on_over_the_link_made_anew(engine: Engine) -> None:
    bad = order_of(grant_of([0], 4, room=1), [0])
    good = order_of(grant_of(range(1, 9), 32, room=2), range(1, 9))
    engine.write(bad)
    engine.write(good)
    engine.poll()
    assert len(engine.under_way) == 2
    engine.end(0, "failed")
    engine.end(0)
    assert settle(engine) == [Sent(*good.key)]
    assert engine.counts["failed_slices"] == 1


def test_what_was_never_started_needs_no_proof(engine: Engine) -> None:
    engine.start_as = "refused"
    order = order_of(grant_of([0], 4), [0])
    engine.write(order)
    assert engine.poll() == [WriteFailed(*order.key, "refused")]


def test_a_refused_slice_waits_for_those_before_it(engine: Engine) -> None:
    order = order_of(grant_of(range(32), 128), range(32))
    engine.write(order)
    engine.poll()
    engine.start_as = "refused"
    assert engine.poll() == []
    engine.end()
    assert engine.poll() == [WriteFailed(*order.key, "refused")]


def test_a_disconnect_ends_the_writes_of_that_process_and_then_gives_its_link_back(engine: Engine) -> None:
    order = order_of(grant_of(range(32), 128), range(32))
    engine.write(order)
    engine.poll()
    engine.disconnect(0, 76)
    engine.disconnect(9, 77)
    engine.disconnect(0, 77)
    assert engine.poll() == [] and engine.shut == []
    engine.end()
    (end,) = engine.poll()
    assert isinstance(end, WriteFailed)
    engine.poll()
    assert engine.shut == ["first"]
    engine.write(order)
    assert isinstance(engine.poll()[0], WriteFailed)


def test_an_order_under_way_is_not_taken_twice(engine: Engine) -> None:
    order = order_of(grant_of([0], 4), [0])
    engine.write(order)
    with pytest.raises(LocalError, match="under way"):
        engine.write(order)
    assert settle(engine) == [Sent(*order.key)]


def test_close_waits_for_what_was_started_and_starts_nothing(engine: Engine) -> None:
    engine.write(order_of(grant_of(range(32), 128), range(32)))
    engine.poll()
    checks = 0

    def ended_later(handle: Handle) -> bool:
        nonlocal checks
        checks += 1
        return checks > 5

    engine._ended = ended_later  # type: ignore[method-assign]
    engine.close()
    assert checks > 5 and len(engine.started) == 1 and engine.destroyed
    assert "closed_under_way" not in engine.counts
    assert sorted(engine.shut) == ["first", "second"]


def test_close_gives_up_on_what_never_ends_and_says_so(engine: Engine) -> None:
    engine.write(order_of(grant_of([0], 4), [0]))
    engine.poll()
    engine.close()
    assert engine.counts["closed_under_way"] == 1 and engine.destroyed


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 3000)), max_size=30),
    st.integers(1, 2500),
    st.integers(1, 7),
)
def test_cutting_loses_nothing(parts: list[tuple[int, int, int]], slice_bytes: int, spans_max: int) -> None:
    spans = [Span(*part) for part in parts]
    slices = cut(spans, slice_bytes, spans_max)
    assert all(0 < one.bytes <= slice_bytes and len(one) <= spans_max for one in slices)

    def bytes_of(some: Any) -> list[tuple[int, int]]:
        return [(span.source + i, span.target + i) for span in some for i in range(span.bytes)]

    assert bytes_of(span for one in slices for span in one) == bytes_of(spans)
    for one in list(slices)[:-1]:
        assert one.bytes == slice_bytes or len(one) == spans_max


@given(st.data())
def test_whatever_happens_each_write_ends_once_and_truly(data: st.DataObject) -> None:
    # Writes on two links, slices that end in any order and any way, cancels and disconnects in between. At every
    # report nothing of the write is under way and nothing starts afterwards; Sent means that every slice was done.
    engine = make(data.draw(st.sampled_from([BLOCK_BYTES, 3 * BLOCK_BYTES])), data.draw(st.integers(1, 3)))
    ended: dict[Any, SenderReport] = {}
    orders: dict[Any, Any] = {}
    failed: set[Any] = set()

    def turn() -> None:
        before = len(engine.started)
        reports = engine.poll()
        for handle in engine.started[before:]:
            assert handle.flow.key not in ended
        for report in reports:
            key = report[:4]
            assert key in orders and key not in ended
            assert not any(handle.flow.key == key for handle in engine.under_way)
            ended[key] = report
            if isinstance(report, Sent):
                assert key not in failed
                sent = sum(handle.piece.bytes for handle in engine.started if handle.flow.key == key)
                assert sent == orders[key].tokens * BLOCK_BYTES // 4 + 64 * orders[key].first
            elif key in failed:
                assert engine.quiet

    for number in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(["write", "turn", "end", "end", "fail", "cancel", "drop", "quiet", "how"]))
        if action == "write":
            rank, boot_id = data.draw(st.sampled_from([(0, 77), (1, 88)]))
            count = data.draw(st.integers(1, 8))
            grant = grant_of(
                range(count), count * 4, room=number, boot_id=boot_id, receiver_rank=rank,
                start=data.draw(st.integers(0, 9)),
            )  # fmt: skip
            order = order_of(grant, range(count + 3))
            orders[order.key] = order
            engine.write(order)
        elif action in ("end", "fail") and engine.under_way:
            index = data.draw(st.integers(0, len(engine.under_way) - 1))
            handle = engine.end(index, "done" if action == "end" else "failed")
            if action == "fail":
                failed.add(handle.flow.key)
        elif action == "cancel" and orders:
            engine.cancel(*data.draw(st.sampled_from(sorted(orders))))
        elif action == "drop":
            engine.disconnect(0, 77)
        elif action == "quiet":
            engine.quiet = not engine.quiet
        elif action == "how":
            engine.start_as = data.draw(st.sampled_from(["under way", "done"]))
        turn()
    engine.quiet, engine.start_as = True, "under way"
    for _ in range(500):
        while engine.under_way:
            engine.end()
        turn()
    assert ended.keys() == orders.keys()
