"""The transports by name, which of them can run here, and which one to take.

``base.py`` says what a transport is. Importing this package imports none of them, and no library of theirs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fsm.errors import LocalError
from gpu_backend.transports.base import ReceiverTransport, SenderTransport, Transport

if TYPE_CHECKING:
    from gpu_backend.pool import BlockPool, SourcePool

MODULES: Final[dict[str, str]] = {
    "nixl": "gpu_backend.transports.nixl",
    "cuda-ipc": "gpu_backend.transports.cuda_ipc",
    "nccl": "gpu_backend.transports.nccl",
    "gloo": "gpu_backend.transports.gloo",
    "in-process": "gpu_backend.transports.in_process",
}
"""The module of each transport."""

AUTO: Final[dict[str, tuple[str, ...]]] = {
    "cuda": ("nixl", "cuda-ipc", "nccl"),
    "cpu": ("nixl", "gloo"),
}
"""What ``auto`` takes for pools on a kind of device, the best first. ``in-process`` is taken by name only: it
connects nothing but two workers of one process."""


def get(name: str) -> Transport:
    """What the transport of that name offers.

    Raises ``LocalError`` if there is none of that name, or if its module cannot be imported.
    """
    if name not in MODULES:
        raise LocalError(f"transport={name!r}: expected auto or one of {', '.join(MODULES)}")
    try:
        transport = importlib.import_module(MODULES[name]).TRANSPORT
    except ImportError as error:
        raise LocalError(f"transport={name!r} cannot be imported: {error}") from error
    assert isinstance(transport, Transport)
    return transport


def absent(name: str) -> str | None:
    """Why that transport cannot run here, or ``None`` if it can. Raises ``LocalError`` for an unknown name."""
    if name not in MODULES:
        get(name)
    try:
        return get(name).absent()
    except LocalError as error:
        return str(error)


def available() -> dict[str, str | None]:
    """Every transport: ``None`` if it can run here, else why not."""
    return {name: absent(name) for name in MODULES}


def auto(device: str) -> tuple[str, str]:
    """The best transport that can run here for pools on ``device`` (such as ``cpu``, ``cuda:1``), and why.

    Raises ``LocalError`` if there is none, with the reason for each.
    """
    kind = device.partition(":")[0]
    if kind not in AUTO:
        raise LocalError(f"device={device!r}: expected one on {' or '.join(AUTO)}")
    missing: list[str] = []
    for name in AUTO[kind]:
        why = absent(name)
        if why is None:
            better = f"; not {', not '.join(missing)}" if missing else ""
            return name, f"{name} is the best one here for {kind}{better}"
        missing.append(f"{name} ({why})")
    raise LocalError(f"no transport for {kind} can run here: {', '.join(missing)}")


def check(name: str, device: str) -> Transport:
    """The transport of that name. Raises ``LocalError`` if it cannot run here or has nothing to do with ``device``."""
    transport = get(name)
    why = transport.absent()
    if why is not None:
        raise LocalError(f"transport={name!r} cannot run here: {why}; leave it to auto, or see what is missing")
    kind = device.partition(":")[0]
    if kind not in transport.traits.devices:
        raise LocalError(
            f"transport={name!r} with a pool on {device!r}: expected a pool on {' or '.join(transport.traits.devices)}"
        )
    return transport


def _check_options(transport: Transport, options: Mapping[str, Any]) -> None:
    """Refuse options that this one does not read, also where ``auto`` chose it: they would do nothing."""
    from gpu_backend.transports.options import problems_with

    problems = problems_with((transport.traits.name,), options)
    if problems:
        raise LocalError("\n".join(f"transport.options.{problem}" for problem in problems))


def make_receiver(
    name: str, pool: BlockPool, *, rank: int, boot_id: int, options: Mapping[str, Any] | None = None
) -> ReceiverTransport:
    """The receiver's side; ``name`` may be ``auto``. Raises ``LocalError`` as ``check`` and the side itself do."""
    device = str(pool.device)
    transport = check(auto(device)[0] if name == "auto" else name, device)
    _check_options(transport, options or {})
    return transport.receiver(pool, rank=rank, boot_id=boot_id, options=options or {})


def make_sender(
    name: str, pool: SourcePool, *, rank: int, boot_id: int, options: Mapping[str, Any] | None = None
) -> SenderTransport:
    """The sender's side; ``name`` may be ``auto``. Raises ``LocalError`` as ``check`` and the side itself do."""
    device = str(pool.device)
    transport = check(auto(device)[0] if name == "auto" else name, device)
    _check_options(transport, options or {})
    return transport.sender(pool, rank=rank, boot_id=boot_id, options=options or {})
