"""The copier: landed tokens out of their blocks into the rows of a result, beside the caller's loop.

A chunk is tens to hundreds of megabytes, and the loop that asks for the copy has a protocol to keep: so it
submits a job and hears of the end from ``poll``. There are two ways on the CPU. With ``threads=1`` one thread
copies, job after job in the order of their submission, and wakes a file descriptor when one ends. With
``threads=0`` ``poll`` itself copies, at most ``slice_bytes`` each time. Where a device takes part, the copies are
queued on a stream of their own and an event says that they are over; the thread, if there is one, waits for it.

How bytes are moved on the CPU is chosen for the interpreter's lock as much as for bandwidth. Every call that
lets go of the lock may wait for it afterwards while the loop computes, so many small copies from a thread crawl
(measured: 0.2 instead of 13 GiB/s with blocks of 4 KiB). Hence pieces of a megabyte and more are copied one by
one, adjacent blocks as one, and smaller ones are gathered, many in one call, by ``numpy.take`` into given
memory, which runs at the speed of a plain copy. numpy does this without a pool of threads of its own.

A copy that fails is reported like one that ends; the thread lives on. Until the end of a job is reported,
whatever that end is, its blocks and its rows are in use: a result that is released meanwhile keeps its rows.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Generator, Hashable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fsm.errors import LocalError
from gpu_backend.checksum import Mode, check_mode, digest_steps, result_parts
from gpu_backend.layout import AUX_BYTES, Run, check_int, runs_of
from gpu_backend.pool import BlockPool
from gpu_backend.results import Result

INLINE_SLICE_BYTES: Final = 4 << 20
"""What one ``poll`` copies at most without a thread: a quarter to half a millisecond."""

THREAD_SLICE_BYTES: Final = 16 << 20
"""What the thread copies before it looks whether it should stop."""

GATHER_BYTES: Final = 1 << 20
"""Pieces that are smaller, on average, are gathered."""

_PIECE_BYTES: Final = 16 << 10
"""What a copy costs beside its bytes, in bytes: about a microsecond."""

AT_ONCE_BYTES: Final = 256 << 10
"""A copy of so much is made where it is asked for: waking a thread takes longer (about 0.2 ms, against 0.05)."""

_IDLE_S: Final = 1.0
"""How often an idle thread looks whether the interpreter wants to exit."""

_Bytes: TypeAlias = npt.NDArray[np.uint8]


class CopyFault(str, Enum):
    """Why a job did not end as it should."""

    CHECKSUM = "checksum"
    """Everything was copied, and is not what the sender's checksum says."""
    INTERNAL = "internal"
    """The copy raised an error."""
    CANCELLED = "cancelled"
    """By ``cancel`` or by ``close``."""

    __str__ = str.__str__


class CopyJob(NamedTuple):
    """``tokens`` tokens, token ``i`` in ``blocks[i // block_tokens]`` at ``i % block_tokens``, to row ``start + i``."""

    key: Hashable
    """The caller's name for it, which no other job has that is not reported yet."""
    blocks: Sequence[int]
    """Numbers of blocks; more than are needed may be given."""
    start: int
    tokens: int
    result: Result
    first: bool
    """The first block's aux header carries the position delta, and counts in the checksum."""
    checksum: int | None = None
    """The sender's; ``None``: nothing to hold the copy against."""


class CopyDone(NamedTuple):
    """The end of a job: nothing touches its blocks or its rows any more."""

    key: Hashable
    position_delta: int
    """From the aux header if the job was ``first`` and went well, else 0."""
    error: str | None = None
    """``None``: every byte was copied, and verified if there was a checksum."""
    fault: CopyFault | None = None
    """The kind of error."""


class _Task:
    """A job that is not reported yet."""

    def __init__(self, job: CopyJob, blocks: list[int], tensors: dict[str, torch.Tensor], budget: int) -> None:
        self.job: Final = job
        self.blocks: Final = blocks
        self.tensors: Final = tensors
        self.budget = budget
        """What the next step may move, in bytes."""
        self.cancelled = False
        self.stream: torch.cuda.Stream | None = None
        """Where the copies are queued, if a device takes part."""
        self.over: torch.cuda.Event | None = None
        """Comes to pass when all that this job has queued there is done."""
        self.steps: Generator[int, None, CopyDone]


class Copier:
    """Copies out of one pool. ``submit``, ``poll``, ``cancel`` and ``close`` are for one thread.

    Whoever makes a copier closes it. A copier that was forgotten does not keep the interpreter from exiting: its
    thread, which is no daemon, also ends when the main thread has.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        threads: int = 1,
        checksum: str = "none",
        slice_bytes: int | None = None,
        at_once_bytes: int = 0,
    ) -> None:
        """``checksum``: the mode in which the checksum of a job is verified (``none``: it is not).

        ``slice_bytes``: how much is copied in one go, see ``INLINE_SLICE_BYTES`` and ``THREAD_SLICE_BYTES``.
        ``at_once_bytes``: a copy of no more, on the CPU and with no other before it, is made within ``submit``
        though there is a thread. Raises :class:`LocalError` if an argument is wrong, the pool is closed, or xxhash is
        needed and missing.
        """
        check_int("threads", threads, 0, 1)
        default = THREAD_SLICE_BYTES if threads else INLINE_SLICE_BYTES
        self.slice_bytes: Final = default if slice_bytes is None else slice_bytes
        check_int("slice_bytes", self.slice_bytes, 1)
        check_int("at_once_bytes", at_once_bytes, 0)
        self.at_once_bytes: Final = at_once_bytes
        self.pool: Final = pool
        self.mode: Final[Mode] = check_mode(checksum)
        self._arena: Final = pool.arena
        self._headers: Final = pool.headers
        self._host: Final[_Bytes | None] = self._arena.numpy() if pool.device.type == "cpu" else None
        self._streams: Final[dict[torch.device, torch.cuda.Stream]] = {}
        self._tasks: Final[dict[Hashable, _Task]] = {}
        self._closed = False
        # Both ends of the fd and the list are guarded: it is readable exactly while the list is not empty.
        self._lock: Final = threading.Lock()
        self._ended: Final[deque[CopyDone]] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inline: Final[deque[_Task]] = deque()
        self._queue: Final[queue.SimpleQueue[_Task | None]] = queue.SimpleQueue()
        self._thread: Final = (
            threading.Thread(target=self._work, name="resumark-copier", daemon=False) if threads else None
        )
        if self._thread is not None:
            self._thread.start()

    @property
    def fd(self) -> int:
        """Readable exactly while a job that the thread has ended waits for ``poll``; never without a thread.

        Raises :class:`LocalError` after ``close``.
        """
        if self._closed:
            raise LocalError("this copier is closed and has no descriptor any more")
        return self._fd

    @property
    def outstanding(self) -> int:
        """How many jobs are not reported yet."""
        return len(self._tasks)

    @property
    def busy(self) -> bool:
        """Whether ``poll`` has work to do that the descriptor does not tell of."""
        return bool(self._inline)

    def submit(self, job: CopyJob) -> None:
        """Begins a copy; ``poll`` reports its end. Never blocks; a copy of at most ``at_once_bytes`` on the CPU, with
        no other before it, is made at once.

        On a device the copy waits for what the caller has queued on its current stream. Raises
        :class:`LocalError`, and begins nothing, if the job makes no sense, if the result is released or of
        another layout, or if another job of this key is not reported yet.
        """
        if self._closed:
            raise LocalError(f"submit of {job.key!r}: this copier is closed")
        if job.key in self._tasks:
            raise LocalError(f"submit of {job.key!r}: a job of this key is not reported yet; poll() until it is")
        blocks = self._checked(job)
        job.result.hold()
        found = [(item, job.result.tensor(item)) for item in self.pool.layout.items]
        tensors = {item: tensor for item, tensor in found if tensor is not None}
        task = _Task(job, blocks, tensors, self.slice_bytes)
        if self._host is not None and job.result.device.type == "cpu":
            task.steps = self._host_steps(task, self._host)
        else:
            device = self.pool.device if self._host is None else job.result.device
            task.stream = self._stream(device)
            ready = _event(blocking=False)
            ready.record(torch.cuda.current_stream(device))
            task.steps = self._device_steps(task, task.stream, ready)
        alone = len(self._tasks) == len(self._ended)  # all others have ended, and only wait for poll
        self._tasks[job.key] = task
        if self._thread is None:
            self._inline.append(task)
        elif alone and task.stream is None and self._bytes_of(task) <= self.at_once_bytes:
            self._end(task)
        else:
            self._queue.put(task)

    def _bytes_of(self, task: _Task) -> int:
        return task.job.tokens * sum(item.token_bytes for item in self.pool.map.items)

    def poll(self) -> list[CopyDone]:
        """The jobs that have ended since, in the order of their submission. Never blocks.

        Without a thread this is where the copying happens: at most ``slice_bytes`` of it.
        """
        if self._inline:
            self._advance()
        if not self._ended:
            return []
        with self._lock:
            done = list(self._ended)
            self._ended.clear()
            if not self._closed:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._fd)
        for one in done:
            self._tasks.pop(one.key).job.result.unhold()
        return done

    def cancel(self, key: Hashable) -> bool:
        """Ends a job early, if it is not over; whether there is such a job. ``poll`` reports its end as always."""
        task = self._tasks.get(key)
        if task is not None:
            task.cancelled = True
        return task is not None

    def close(self) -> None:
        """Ends the thread within one slice. Jobs that are not over end as cancelled; ``poll`` still reports them.

        May be called again.
        """
        if self._closed:
            return
        for task in self._tasks.values():
            task.cancelled = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            with contextlib.suppress(queue.Empty):  # left only where the thread ended before, with the main thread
                while (left := self._queue.get_nowait()) is not None:
                    self._inline.append(left)
        while self._inline:
            self._end(self._inline.popleft())
        self._closed = True
        os.close(self._fd)

    # What runs in the thread, or in poll -----------------------------------------------------------------

    def _work(self) -> None:
        """The thread: jobs in their order, until ``None`` comes or the main thread is gone."""
        while True:
            try:
                task = self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                if threading.main_thread().is_alive():
                    continue
                return
            if task is None:
                return
            self._end(task)
            del task  # its tensors must not live until the next job

    def _end(self, task: _Task) -> None:
        """Drives a job to its end."""
        done: CopyDone | None = None
        while done is None:
            done, _ = self._step(task, wait=True)
        self._report(done)

    def _advance(self) -> None:
        """One slice of work, for the first job and perhaps those behind it."""
        left = self.slice_bytes
        while left >= min(_PIECE_BYTES, self.slice_bytes) and self._inline:
            task = self._inline[0]
            task.budget = left
            done, moved = self._step(task, wait=False)
            if done is not None:
                self._inline.popleft()
                self._report(done)
            elif moved == 0:
                return
            left -= moved + _PIECE_BYTES

    def _step(self, task: _Task, *, wait: bool) -> tuple[CopyDone | None, int]:
        """The end of the job if this was its last step, and the bytes that the step moved.

        ``wait``: where nothing is left but to wait for a device, wait.
        """
        key = task.job.key
        try:
            if task.cancelled:
                self._settle(task)
                return CopyDone(key, 0, "the copy was cancelled", CopyFault.CANCELLED), 0
            moved = next(task.steps)
            if wait and moved == 0 and task.over is not None:
                task.over.synchronize()
            return None, moved
        except StopIteration as end:
            done: CopyDone = end.value
            return done, 0
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            try:
                self._settle(task)
            except Exception as second:
                text += f"; then {type(second).__name__}: {second}"
            return CopyDone(key, 0, text, CopyFault.INTERNAL), 0

    def _settle(self, task: _Task) -> None:
        """Waits for what an unfinished job has queued on a device."""
        task.steps.close()
        if task.stream is not None:
            task.stream.synchronize()

    def _report(self, done: CopyDone) -> None:
        with self._lock:
            self._ended.append(done)
            if self._thread is not None:
                os.eventfd_write(self._fd, 1)

    # The copies ------------------------------------------------------------------------------------------

    def _host_steps(self, task: _Task, arena: _Bytes) -> Generator[int, None, CopyDone]:
        job, block_tokens = task.job, self.pool.layout.block_tokens
        header = self._headers[task.blocks[0]].numpy().tobytes() if job.first else b""
        runs = list(runs_of(task.blocks, 0, job.tokens, block_tokens))
        for index, item in enumerate(self.pool.map.items):
            tensor = task.tensors.get(item.name)
            if tensor is None:
                continue
            size = item.token_bytes
            base, rows = self.pool.map.base(index), self.pool.map.rows
            source = arena[base : base + rows * size]
            target = tensor.reshape(-1).view(torch.uint8).numpy()[job.start * size : (job.start + job.tokens) * size]
            block_bytes = block_tokens * size
            if len(runs) > 1 and job.tokens * size < GATHER_BYTES * len(runs) and block_bytes <= self.slice_bytes:
                yield from _gather(task, source, target, block_bytes)
            else:
                yield from _copy_runs(task, source, target, runs, size)
        return (yield from self._verify(task, header))

    def _device_steps(
        self, task: _Task, stream: torch.cuda.Stream, ready: torch.cuda.Event
    ) -> Generator[int, None, CopyDone]:
        job = task.job
        runs = list(runs_of(task.blocks, 0, job.tokens, self.pool.layout.block_tokens))
        stream.wait_event(ready)
        header = torch.zeros(AUX_BYTES // 4, dtype=torch.int32, pin_memory=torch.cuda.is_available())
        if job.first:
            with torch.cuda.stream(stream):
                header.copy_(self._headers[task.blocks[0]], non_blocking=True)
        for item, tensor in task.tensors.items():
            rows = self.pool.rows(item)
            token_bytes = self.pool.map.items[self.pool.map.index(item)].token_bytes
            for run in runs:
                done = 0
                while done < run.tokens:
                    count = min(run.tokens - done, max(1, task.budget // token_bytes))
                    to = job.start + run.first + done
                    with torch.cuda.stream(stream):
                        part = rows[run.row + done : run.row + done + count]
                        tensor[to : to + count].copy_(part, non_blocking=True)
                    done += count
                    yield count * token_bytes
        task.over = over = _event(blocking=True)
        over.record(stream)
        while not over.query():
            yield 0
        words = header.numpy().tobytes() if job.first else b""
        return (yield from self._verify(task, words))

    def _verify(self, task: _Task, header: bytes) -> Generator[int, None, CopyDone]:
        """Holds the rows against the sender's checksum, if both sides have one."""
        job = task.job
        if job.checksum is not None and self.mode != "none":
            parts = result_parts(task.tensors, job.start, job.tokens, self.mode)
            found = yield from digest_steps(header, parts, step_bytes=lambda: task.budget)
            if found != job.checksum:
                return CopyDone(
                    job.key,
                    0,
                    f"tokens {job.start} to {job.start + job.tokens - 1}: checksum {found:#018x}, the sender's is "
                    f"{job.checksum:#018x} (mode {self.mode}, which must be the same on both sides)",
                    CopyFault.CHECKSUM,
                )
        delta = int(np.frombuffer(header, dtype=np.int32)[1]) if job.first else 0
        return CopyDone(job.key, delta)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            make: Any = torch.cuda.Stream
            self._streams[device] = make(device)
        return self._streams[device]

    def _checked(self, job: CopyJob) -> list[int]:
        """The blocks of a job that makes sense."""
        try:
            blocks: list[int] = np.fromiter(job.blocks, dtype=np.int64).tolist()
        except (TypeError, ValueError) as error:
            raise LocalError(f"blocks={job.blocks!r}: expected numbers of blocks ({error})") from error
        check_int("tokens", job.tokens, 1)
        check_int("start", job.start, 0)
        self.pool.map.check_blocks("blocks", blocks)
        block_tokens = self.pool.layout.block_tokens
        if len(blocks) * block_tokens < job.tokens:
            raise LocalError(f"blocks: {len(blocks)} of {block_tokens} tokens cannot hold {job.tokens} tokens")
        if job.start + job.tokens > job.result.tokens:
            raise LocalError(
                f"tokens {job.start} to {job.start + job.tokens - 1} do not fit a result of {job.result.tokens} tokens"
            )
        if job.result.layout != self.pool.layout:
            raise LocalError(f"a result of {job.result.layout}: expected the layout of the pool, {self.pool.layout}")
        return blocks


def _event(*, blocking: bool) -> Any:
    make: Any = torch.cuda.Event
    return make(blocking=blocking)


def _copy_runs(
    task: _Task, source: _Bytes, target: _Bytes, runs: list[Run], token_bytes: int
) -> Generator[int, None, None]:
    """Run by run, cut to what a step may move."""
    for run in runs:
        at, to, left = run.row * token_bytes, run.first * token_bytes, run.tokens * token_bytes
        while left:
            count = min(left, task.budget)
            target[to : to + count] = source[at : at + count]
            at, to, left = at + count, to + count, left - count
            yield count


def _gather(task: _Task, source: _Bytes, target: _Bytes, block_bytes: int) -> Generator[int, None, None]:
    """Whole blocks, many in one call; then what the last block holds."""
    whole = len(target) // block_bytes
    blocks = source.reshape(-1, block_bytes)
    rows = target[: whole * block_bytes].reshape(whole, block_bytes)
    numbers = np.array(task.blocks[:whole], dtype=np.intp)
    done = 0
    while done < whole:
        count = min(whole - done, task.budget // block_bytes)
        if count == 0:  # too little is left for this poll; the next has more
            yield 0
            continue
        # mode="clip" lets numpy write straight into `out`; the numbers were checked when the job was submitted.
        np.take(blocks, numbers[done : done + count], axis=0, out=rows[done : done + count], mode="clip")
        done += count
        yield count * block_bytes
    rest = len(target) - whole * block_bytes
    if rest:
        at = task.blocks[whole] * block_bytes
        target[whole * block_bytes :] = source[at : at + rest]
        yield rest
