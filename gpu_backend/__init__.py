"""Real workers: the lifecycle of ``fsm`` moving real tensors between processes.

An encode worker embeds a :class:`SenderWorker`, a language worker one :class:`ReceiverWorker` for each of its ranks::

    from gpu_backend import ReceiverWorker, ReceiverWorkerConfig

    with ReceiverWorker(ReceiverWorkerConfig(...)) as worker:
        worker.submit(room)
        for outcome in worker.poll():
            ...

Importing this package imports neither torch nor a transport; the names below are loaded when they are first used.
Without torch, using them says which extra installs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsm.errors import LocalError

if TYPE_CHECKING:
    from gpu_backend.config import ReceiverWorkerConfig, SenderWorkerConfig
    from gpu_backend.layout import make_layout
    from gpu_backend.outcomes import Lease, Outcome, SenderOutcome
    from gpu_backend.pool import Payload
    from gpu_backend.receiver_worker import ReceiverWorker
    from gpu_backend.sender_worker import SenderWorker

_HOME = {
    "ReceiverWorker": "receiver_worker",
    "ReceiverWorkerConfig": "config",
    "SenderWorker": "sender_worker",
    "SenderWorkerConfig": "config",
    "Payload": "pool",
    "Outcome": "outcomes",
    "SenderOutcome": "outcomes",
    "Lease": "outcomes",
    "make_layout": "layout",
}

_NEEDED = ("torch", "zmq", "xxhash")
"""What the extra "torch" installs."""


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'gpu_backend' has no attribute '{name}'")
    try:
        return getattr(import_module(f"gpu_backend.{home}"), name)
    except ModuleNotFoundError as error:
        if error.name in _NEEDED:
            raise LocalError(f"{name} needs {error.name}: pip install 'resumark[torch]'") from error
        raise


__all__ = [
    "Lease", "Outcome", "Payload", "ReceiverWorker", "ReceiverWorkerConfig", "SenderOutcome", "SenderWorker",
    "SenderWorkerConfig", "make_layout",
]  # fmt: skip
