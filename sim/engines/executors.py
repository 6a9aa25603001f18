"""Who does the work of a sweep: processes of this machine, or a Ray cluster. Results come in the order of the work.

Ray is an extra (``pip install 'resumark[ray]'``). Where ``RAY_ADDRESS`` names a cluster, its machines do the work and
need this package installed as well; else a Ray of this machine alone is started and ended again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from fsm.errors import LocalError
from sim.engines.parallel import in_order

J = TypeVar("J")
R = TypeVar("R")

EXECUTORS = ("process", "ray")

_RAY_LOG_LEVEL = 40
"""Errors only, as ``logging`` counts."""


def check_executor(executor: str) -> None:
    """Raises LocalError for an executor that does not exist, or is not installed."""
    if executor not in EXECUTORS:
        raise LocalError(f"there is no executor '{executor}'; there are {', '.join(EXECUTORS)}")
    if executor == "ray":
        _ray()


def run_jobs(function: Callable[[J], R], jobs: Sequence[J], executor: str, processes: int) -> Generator[R, None, None]:
    """``function`` of each job, in order. ``processes`` is for this machine: a Ray cluster uses all that it has.

    Function, jobs and results must be picklable. Raises LocalError as :func:`check_executor`, RuntimeError if the
    function raises or a worker dies. Closing the iterator ends the work.
    """
    check_executor(executor)
    if executor == "ray":
        return _on_ray(function, jobs, processes)
    return in_order(function, jobs, processes)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise LocalError(
            "executor 'ray' needs Ray, which is not installed: pip install 'resumark[ray]', or take executor 'process'"
        ) from None
    return ray


def _on_ray(function: Callable[[J], R], jobs: Sequence[J], processes: int) -> Generator[R, None, None]:
    ray = _ray()
    started_here = not ray.is_initialized()
    if started_here:
        address = os.environ.get("RAY_ADDRESS", "")
        place = {"address": address} if address else {"address": "local", "num_cpus": processes}
        ray.init(**place, include_dashboard=False, log_to_driver=False, logging_level=_RAY_LOG_LEVEL)
    try:
        task = ray.remote(num_cpus=1, max_retries=0)(function)
        waiting = [task.remote(job) for job in jobs]
        waiting.reverse()
        while waiting:
            try:
                yield ray.get(waiting.pop())
            except ray.exceptions.RayError as error:
                raise RuntimeError(str(error)) from None
    finally:
        if started_here:
            ray.shutdown()
