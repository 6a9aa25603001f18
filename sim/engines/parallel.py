"""Work shared among processes, with the results in the order of the work.

Worker ``w`` of ``n`` does the pieces ``w``, ``w + n``, ``w + 2 n`` and so on, and sends each result through a pipe of
its own; whoever asks reads the pipes in turn. So the order of results does not depend on who is faster, and a pipe that
is full makes its worker wait. Workers are started afresh rather than forked: the parent may have threads, of a
progress bar for one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

J = TypeVar("J")
R = TypeVar("R")


def in_order(function: Callable[[J], R], jobs: Sequence[J], processes: int) -> Generator[R, None, None]:
    """``function`` of each job, in order; with one process it is called right here, when the result is asked for.

    Function and jobs must be picklable if there are more processes. Raises what the function raised, RuntimeError with
    its text if that happened elsewhere. Closing the iterator ends the workers.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        for job in jobs:
            yield function(job)
        return
    context = multiprocessing.get_context("spawn")
    workers = []
    pipes = []
    try:
        for worker in range(processes):
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(sending, function, jobs[worker::processes]), daemon=True
            )
            process.start()
            sending.close()
            workers.append(process)
            pipes.append(receiving)
        for index in range(len(jobs)):
            yield _read(pipes[index % processes])
    finally:
        for process in workers:
            process.terminate()
        for process in workers:
            process.join()


def _read(pipe: Connection) -> Any:
    try:
        result, error = pipe.recv()
    except EOFError:
        raise RuntimeError("a worker process died") from None
    if error:
        raise RuntimeError(error)
    return result


def _work(sending: Connection, function: Callable[[J], R], jobs: Sequence[J]) -> None:
    """What a worker does; an interruption or a reader that is gone ends it without a word."""
    try:
        for job in jobs:
            try:
                answer: tuple[Any, str] = (function(job), "")
            except Exception as error:
                answer = (None, str(error))
            sending.send(answer)
    except (KeyboardInterrupt, BrokenPipeError):
        pass
