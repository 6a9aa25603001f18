"""The copier: the right rows and no others, in any number of slices; every job ends once, and harms no other."""

from __future__ import annotations

import select
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import LocalError
from fsm.messages import BlockRef
from gpu_backend import copying
from gpu_backend.checksum import Mode, source_checksum
from gpu_backend.copying import Copier, CopyDone, CopyFault, CopyJob
from gpu_backend.layout import make_layout
from gpu_backend.pool import BlockPool, SourcePool
from gpu_backend.results import Result, ResultArena
from tests.gpu_backend.kit_pool import DEVICES, LAYOUT, NO_CUDA, payload_of, put, raw, same

HANG_S = 60.0
"""Nothing here takes as long; it is how long a test that hangs is waited for."""

THREADS = [pytest.param(1, id="thread"), pytest.param(0, id="inline")]


@contextmanager
def copier_of(pool: BlockPool, **options: Any) -> Iterator[Copier]:
    copier = Copier(pool, **options)
    try:
        yield copier
    finally:
        copier.close()
        copier.poll()


def finished(copier: Copier, count: int = 1) -> list[CopyDone]:
    """Polls, and waits as a worker does, until so many jobs are reported."""
    done: list[CopyDone] = []
    while len(done) < count:
        done += copier.poll()
        if len(done) < count and not copier.busy:
            assert select.select([copier.fd], [], [], HANG_S)[0], f"only {done} in {HANG_S} s"
    return done


def readable(copier: Copier) -> bool:
    return bool(select.select([copier.fd], [], [], 0)[0])


def arena_of(pool: BlockPool, tokens: int) -> ResultArena:
    return ResultArena(pool.layout, tokens, device=pool.device)


def landed(device: str = "cpu", tokens: int = 10) -> tuple[BlockPool, Result]:
    """A pool whose blocks 4, 5, 0 hold ten tokens and their header, and a result for them, filled with 1s."""
    pool = BlockPool(LAYOUT, 6, device=device)
    put(pool, (4, 5, 0), payload_of(tokens), 0, tokens)
    pool.write_header(4, tokens, -3)
    result = arena_of(pool, tokens).take(tokens, has_mrope=True, has_deepstack=True)
    return pool, blank(result)


def blank(result: Result) -> Result:
    for item in result.layout.items:
        tensor = result.tensor(item)
        if tensor is not None:
            tensor.view(-1).view(torch.uint8).fill_(0xEE)
    return result


JOB = (4, 5, 0)


# ---- what is copied -------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("mrope", [True, False])
def test_chunks_become_one_result(device: str, threads: int, mrope: bool) -> None:
    """Three grants, none a multiple of the block, into blocks that are used again (R10)."""
    pool = BlockPool(LAYOUT, 6, device=device)
    payload = payload_of(17, mrope=mrope, deepstack=mrope)
    result = blank(arena_of(pool, 40).take(17, has_mrope=mrope, has_deepstack=mrope))
    with copier_of(pool, threads=threads) as copier:
        for start, tokens, blocks in ((0, 7, (5, 2)), (7, 9, (2, 5, 0)), (16, 1, (3,))):
            put(pool, blocks, payload, start, tokens)
            pool.write_header(blocks[0], 17, -3 if start == 0 else 55)
            copier.submit(CopyJob(start, blocks, start, tokens, result, start == 0))
            assert finished(copier) == [CopyDone(start, -3 if start == 0 else 0)]
            same(result, payload, start, tokens)
    same(result, payload)


@pytest.mark.parametrize("gather", [0, 1 << 30], ids=["runs", "gathered"])
@given(data=st.data())
def test_any_chunk_in_any_slices_is_the_same_and_touches_no_other_row(gather: int, data: st.DataObject) -> None:
    layout = make_layout(data.draw(st.integers(1, 5)), 3, deepstack_levels=data.draw(st.integers(0, 1)))
    total = data.draw(st.integers(1, 24))
    start = data.draw(st.integers(0, total - 1))
    tokens = data.draw(st.integers(1, total - start))
    needed = -(-tokens // layout.block_tokens)
    blocks = data.draw(st.one_of(st.permutations(range(needed + 2)), st.just(list(range(1, needed + 2)))))
    pool = BlockPool(layout, needed + 2)
    payload = payload_of(total, layout)
    put(pool, blocks, payload, start, tokens)
    result = blank(
        arena_of(pool, total).take(total, has_mrope=True, has_deepstack=bool(layout.deepstack_levels))
    )
    before = {item: raw(tensor) for item in layout.items if (tensor := result.tensor(item)) is not None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "GATHER_BYTES", gather)
        with copier_of(pool, threads=0, slice_bytes=data.draw(st.integers(1, 500))) as copier:
            copier.submit(CopyJob(0, blocks, start, tokens, result, False))
            assert finished(copier) == [CopyDone(0, 0)]
    same(result, payload, start, tokens)
    for item, old in before.items():
        found = result.tensor(item)
        assert found is not None
        size = len(old) // total
        assert torch.equal(raw(found)[: start * size], old[: start * size])
        assert torch.equal(raw(found)[(start + tokens) * size :], old[(start + tokens) * size :])


@pytest.mark.parametrize("gather", [0, 1 << 30], ids=["runs", "gathered"])
@pytest.mark.parametrize("slice_bytes", [1, 64, 100, 257, 1000])
def test_one_poll_copies_no_more_than_a_slice(
    gather: int, slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "GATHER_BYTES", gather)
    pool, result = landed()
    pool.arena.fill_(1)

    def copied() -> int:
        tensors = [result.tensor(item) for item in LAYOUT.items]
        return sum(int((raw(tensor) == 1).sum()) for tensor in tensors if tensor is not None)

    with copier_of(pool, threads=0, slice_bytes=slice_bytes) as copier:
        copier.submit(CopyJob(0, JOB, 0, 10, result, False))
        before, polls = 0, 0
        while not copier.poll():
            assert copied() - before <= slice_bytes
            before, polls = copied(), polls + 1
        assert copied() == 640
        assert polls >= 640 // slice_bytes - 1


def test_large_pieces_are_copied_run_by_run_and_small_ones_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gathering is what keeps a thread with small blocks fast, so it must not get lost unseen."""
    layout = make_layout(4, 64)
    pool = BlockPool(layout, 6)
    used: list[str] = []
    for name in ("_gather", "_copy_runs"):
        real = getattr(copying, name)

        def wrapped(*arguments: Any, real: Any = real, name: str = name) -> Any:
            used.append(name)
            return real(*arguments)

        monkeypatch.setattr(copying, name, wrapped)
    monkeypatch.setattr(copying, "GATHER_BYTES", 100)
    result = arena_of(pool, 12).take(12, has_mrope=True, has_deepstack=False)
    with copier_of(pool, threads=0) as copier:
        copier.submit(CopyJob(0, (5, 3, 1), 0, 12, result, False))
        finished(copier)
        assert used == ["_copy_runs", "_gather", "_gather"]
        used.clear()
        copier.submit(CopyJob(0, (1, 2, 3), 0, 12, result, False))
        finished(copier)
        assert used == ["_copy_runs"] * 3, "adjacent blocks are one copy"


@pytest.mark.gpu
@NO_CUDA
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("from_device", "to_device"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_copy_between_host_and_device(threads: int, from_device: str, to_device: str) -> None:
    pool, _ = landed(from_device)
    result = ResultArena(LAYOUT, 10, device=to_device).take(10, has_mrope=True, has_deepstack=True)
    with copier_of(pool, threads=threads) as copier:
        copier.submit(CopyJob(0, JOB, 0, 10, result, True))
        assert finished(copier) == [CopyDone(0, -3)]
    same(result, payload_of(10))


class FakeStream:
    def __init__(self, *_: Any) -> None:
        self.waited_for: list[Any] = []
        self.synchronized = 0

    def wait_event(self, event: Any) -> None:
        self.waited_for.append(event)

    def synchronize(self) -> None:
        self.synchronized += 1


class FakeEvent:
    """Comes to pass at the third question, or when it is waited for."""

    made: list[FakeEvent] = []  # noqa: RUF012  (reset by the test)

    def __init__(self, *, blocking: bool) -> None:
        self.blocking = blocking
        self.stream: Any = None
        self.asked = 0
        FakeEvent.made.append(self)

    def record(self, stream: Any) -> None:
        self.stream = stream

    def query(self) -> bool:
        self.asked += 1
        return self.asked > 2

    def synchronize(self) -> None:
        self.asked = 2


@pytest.mark.parametrize("threads", THREADS)
def test_a_device_copy_waits_for_the_caller_s_stream_and_ends_with_its_event(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of devices with a recorded stream; on a real device the tests above run."""
    pool, result = landed()
    callers = FakeStream()
    FakeEvent.made = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: callers)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    with copier_of(pool, threads=threads, slice_bytes=100) as copier:
        monkeypatch.setattr(copier, "_host", None)
        copier.submit(CopyJob(0, JOB, 0, 10, result, True))
        if not threads:
            while len(FakeEvent.made) < 2:
                assert copier.poll() == []
            assert copier.poll() == [], "reported before its event has come to pass"
            assert copier.busy
        assert finished(copier) == [CopyDone(0, -3)]
        same(result, payload_of(10))
        ready, over = FakeEvent.made
        own: Any = copier._streams[pool.device]
        assert ready.stream is callers
        assert isinstance(own, FakeStream)
        assert own.waited_for == [ready]
        assert over.stream is own
        assert over.blocking, "a thread that waits must not spin"
        copier.submit(CopyJob(1, JOB, 0, 10, result, True))
        copier.cancel(1)
        (done,) = finished(copier)
        if done.fault is not None:
            assert own.synchronized, "what was queued may still run"


# ---- how jobs end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", THREADS)
def test_jobs_end_in_the_order_of_their_submission(threads: int) -> None:
    pool, result = landed()
    with copier_of(pool, threads=threads) as copier:
        for key in range(20):
            copier.submit(CopyJob(key, JOB, 0, 10, result, False))
        assert copier.outstanding == 20
        assert [done.key for done in finished(copier, 20)] == list(range(20))
        assert copier.outstanding == 0


def test_the_descriptor_is_readable_exactly_while_something_waits_for_poll() -> None:
    pool, result = landed()
    with copier_of(pool, threads=1) as copier:
        assert not readable(copier)
        for key in range(3):
            copier.submit(CopyJob(key, JOB, 0, 10, result, False))
            assert select.select([copier.fd], [], [], HANG_S)[0]
            assert readable(copier)
            assert len(copier.poll()) == 1
            assert not readable(copier)
            assert copier.poll() == []
        assert not copier.busy


def test_without_a_thread_only_busy_tells_that_there_is_work() -> None:
    pool, result = landed()
    threads = threading.active_count()
    with copier_of(pool, threads=0) as copier:
        assert threading.active_count() == threads
        states = [(copier.busy, readable(copier))]
        copier.submit(CopyJob(0, JOB, 0, 10, result, False))
        states.append((copier.busy, readable(copier)))
        finished(copier)
        states.append((copier.busy, readable(copier)))
        assert states == [(False, False), (True, False), (False, False)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("mode", ["header", "full"])
@pytest.mark.parametrize("slice_bytes", [None, 50])
def test_the_sender_s_checksum_is_held_against_the_rows(
    device: str, threads: int, mode: Mode, slice_bytes: int | None
) -> None:
    source = SourcePool(LAYOUT, 3, device=device)
    source.store(blocks := source.take(3), payload_of(10))
    pool, result = landed(device)
    with copier_of(pool, threads=threads, checksum=mode, slice_bytes=slice_bytes) as copier:
        whole = source_checksum(source, blocks, 0, 10, mode=mode, first=True)
        copier.submit(CopyJob("good", JOB, 0, 10, result, True, whole))
        assert finished(copier) == [CopyDone("good", -3)]

        pool.view("fill_ids")[5, 2] += 1
        copier.submit(CopyJob("bad id", JOB, 0, 10, result, True, whole))
        (done,) = finished(copier)
        assert (done.key, done.fault, done.position_delta) == ("bad id", CopyFault.CHECKSUM, 0)
        assert done.error is not None
        assert done.error.startswith("tokens 0 to 9: checksum 0x")
        assert f"the sender's is {whole:#018x} (mode {mode}" in done.error
        pool.view("fill_ids")[5, 2] -= 1

        pool.write_header(4, 10, -4)
        copier.submit(CopyJob("bad header", JOB, 0, 10, result, True, whole))
        assert finished(copier)[0].fault == CopyFault.CHECKSUM
        pool.view("input_embeddings")[0, 1, 7] = -1
        part = source_checksum(source, blocks, 4, 6, mode=mode, first=False)
        copier.submit(CopyJob("bad embedding", JOB[1:], 4, 6, result, False, part))
        assert finished(copier)[0].fault == (CopyFault.CHECKSUM if mode == "full" else None)

        copier.submit(CopyJob("unchecked", JOB, 0, 10, result, True, None))
        assert finished(copier) == [CopyDone("unchecked", -4)]


def test_mode_none_holds_nothing_against_anything() -> None:
    pool, result = landed()
    with copier_of(pool, threads=0, checksum="none") as copier:
        copier.submit(CopyJob(0, JOB, 0, 10, result, True, 12345))
        assert finished(copier) == [CopyDone(0, -3)]


@pytest.mark.parametrize("threads", THREADS)
def test_an_exception_in_a_copy_ends_that_job_and_no_other(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, result = landed()

    def broken(*_: Any) -> Generator[int, None, None]:
        yield 1
        raise MemoryError("no memory for the copy")

    with copier_of(pool, threads=threads) as copier:
        with monkeypatch.context() as patch:
            patch.setattr(copying, "_gather", broken)
            copier.submit(CopyJob(0, JOB, 0, 10, result, True))
            assert finished(copier) == [CopyDone(0, 0, "MemoryError: no memory for the copy", CopyFault.INTERNAL)]
        copier.submit(CopyJob(1, JOB, 0, 10, result, True))
        assert finished(copier) == [CopyDone(1, -3)]
        same(result, payload_of(10))


class Endless:
    """A copy without an end, whose steps can be waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.steps = 0
        monkeypatch.setattr(copying, "_gather", self.copy)

    def copy(self, *_: Any) -> Generator[int, None, None]:
        while True:
            self.steps += 1
            self.begun.set()
            yield 1


@pytest.mark.parametrize("threads", THREADS)
def test_a_cancelled_job_ends_within_a_slice_and_the_next_goes_on(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, result = landed()
    endless = Endless(monkeypatch)
    with copier_of(pool, threads=threads) as copier:
        copier.submit(CopyJob("long", JOB, 0, 10, result, True))
        copier.submit(CopyJob("short", (2,), 0, 3, result, False))
        assert copier.poll() == []
        assert endless.begun.wait(HANG_S)
        assert copier.cancel("long")
        assert finished(copier, 2) == [
            CopyDone("long", 0, "the copy was cancelled", CopyFault.CANCELLED),
            CopyDone("short", 0),
        ]
        assert not copier.cancel("long"), "it was reported"
        steps = endless.steps
        copier.submit(CopyJob("other", (2,), 0, 3, result, False))
        finished(copier)
        assert endless.steps == steps


@pytest.mark.parametrize("threads", THREADS)
def test_close_ends_the_thread_and_what_it_was_doing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, result = landed()
    endless = Endless(monkeypatch)
    with copier_of(pool, threads=threads) as copier:
        copier.submit(CopyJob(0, JOB, 0, 10, result, True))
        copier.submit(CopyJob(1, JOB, 0, 10, result, True))
        copier.poll()
        assert endless.begun.wait(HANG_S)
        copier.close()
        copier.close()
        steps = endless.steps
        assert "resumark-copier" not in {thread.name for thread in threading.enumerate()}
        assert [(done.key, str(done.fault)) for done in copier.poll()] == [(0, "cancelled"), (1, "cancelled")]
        assert (copier.poll(), copier.outstanding, copier.busy) == ([], 0, False)
        assert endless.steps == steps
        with pytest.raises(LocalError, match="this copier is closed"):
            copier.submit(CopyJob(2, JOB, 0, 10, result, True))
        with pytest.raises(LocalError, match="closed"):
            _ = copier.fd
        result.release()
        assert result._arena.longest_free == 10, "the rows were held for a job that is over"


@pytest.mark.parametrize("threads", THREADS)
def test_a_result_that_is_released_in_the_middle_of_a_copy_keeps_its_rows_until_poll(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, result = landed()
    arena = result._arena
    with monkeypatch.context() as patch:
        endless = Endless(patch)
        with copier_of(pool, threads=threads) as copier:
            copier.submit(CopyJob(0, JOB, 0, 10, result, True))
            copier.poll()
            assert endless.begun.wait(HANG_S)
            result.release()
            assert (arena.free_tokens, arena.longest_free) == (10, 0)
            copier.cancel(0)
            finished(copier)
            assert arena.longest_free == 10


def test_a_forgotten_copier_does_not_keep_the_interpreter() -> None:
    text = (
        "from gpu_backend.copying import Copier\n"
        "from gpu_backend.layout import make_layout\n"
        "from gpu_backend.pool import BlockPool\n"
        "copier = Copier(BlockPool(make_layout(4, 8), 2))\n"
        "print('end of main')\n"
    )
    root = Path(copying.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=root, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end of main\n", "")


# ---- what is refused ------------------------------------------------------------------------------------


def test_a_job_that_makes_no_sense_is_refused_and_begins_nothing() -> None:
    pool, result = landed()
    other = ResultArena(make_layout(4, 9, deepstack_levels=2), 10).take(10, has_mrope=True, has_deepstack=True)
    gone = arena_of(pool, 10).take(10, has_mrope=True, has_deepstack=True)
    gone.release()
    good = CopyJob(0, JOB, 0, 10, result, True)
    with copier_of(pool, threads=0) as copier:
        for wrong, text in (
            (good._replace(blocks=(4, 6, 0)), "blocks: block 6 is not in this arena"),
            (good._replace(blocks=(BlockRef(4, 0),) * 3), "expected numbers of blocks"),  # type: ignore[arg-type]
            (good._replace(blocks=(4, 5)), "blocks: 2 of 4 tokens cannot hold 10 tokens"),
            (good._replace(blocks=()), "blocks: 0 of 4 tokens cannot hold 10 tokens"),
            (good._replace(tokens=0), "tokens=0"),
            (good._replace(start=-1), "start=-1"),
            (good._replace(start=1), "tokens 1 to 10 do not fit a result of 10 tokens"),
            (good._replace(result=other), "expected the layout of the pool"),
            (good._replace(result=gone), "copy into a released result"),
        ):
            with pytest.raises(LocalError) as error:
                copier.submit(wrong)
            assert text in str(error.value)
        assert copier.outstanding == 0
        copier.submit(good)
        with pytest.raises(LocalError, match=r"submit of 0: a job of this key is not reported yet"):
            copier.submit(good)
        assert finished(copier) == [CopyDone(0, -3)]
        same(result, payload_of(10))


def test_options_that_make_no_sense_are_refused() -> None:
    pool = BlockPool(LAYOUT, 1)
    threads = threading.active_count()
    for options, text in (
        ({"threads": 2}, "threads=2"),
        ({"threads": -1}, "threads=-1"),
        ({"slice_bytes": 0}, "slice_bytes=0"),
        ({"checksum": "md5"}, "checksum='md5': expected one of none, header, full"),
    ):
        with pytest.raises(LocalError, match=text):
            Copier(pool, **options)
    pool.close()
    with pytest.raises(LocalError, match="closed"):
        Copier(pool)
    assert threading.active_count() == threads


def test_a_small_copy_is_made_at_once_though_there_is_a_thread_and_order_is_kept() -> None:
    """What a wake-up costs more than; behind another copy it waits its turn."""
    pool = BlockPool(make_layout(4, 8), 4)
    results = ResultArena(pool.layout, 64)
    result = results.take(16, has_mrope=True, has_deepstack=False)
    copier = Copier(pool, at_once_bytes=1 << 20)
    try:
        pool.rows("fill_ids")[:4] = torch.arange(4, dtype=torch.int32)
        copier.submit(CopyJob("small", [0], 0, 4, result, True, None))
        assert torch.equal(result.fill_ids[:4], torch.arange(4, dtype=torch.int32)), "no poll, no thread was needed"
        copier.submit(CopyJob("next", [1], 4, 4, result, False, None))
        assert [done.key for done in copier.poll()] == ["small", "next"]
    finally:
        copier.close()
