"""The options of each transport by name and type: what ``[transport.options]`` may hold.

They are named here and not in the modules of the transports, so that a configuration can be judged before any of
those, or a library of theirs, is imported. An option that no transport reads would be a promise that nobody keeps, so
it is refused like any other unknown key. Both sides may be given all of a transport's options, also those that only
one side reads: ``[transport]`` is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from gpu_backend.wording import advice, expected, shown

Whole = Annotated[int, Meta(ge=1, le=1 << 40)]
Duration = Annotated[float, Meta(gt=0.0, le=1e9)]
WholeSeconds = Annotated[int, Meta(ge=1, le=1_000_000)]
Name = Annotated[str, Meta(min_length=1)]


class Option(NamedTuple):
    """An option of transports, in the section ``[transport.options]``."""

    name: str
    of: tuple[str, ...]
    hint: Any
    """Its type and range; ``object`` for what only code can give."""
    meaning: str


SLICED: Final = ("nixl", "cuda-ipc")
ORDERED: Final = ("gloo", "nccl")

OPTIONS: Final = (
    Option("slice_bytes", SLICED, Whole, "bytes of one slice of a write; a slice cannot be stopped"),
    Option("window", SLICED, Whole, "slices under way at once, where the engine works by itself"),
    Option("close_s", SLICED, WholeSeconds, "how long `close` waits for what cannot be stopped, in seconds"),
    Option("progress_thread", ("nixl",), bool, "a thread of UCX beside the polling one; slower on few cores"),
    Option(
        "endpoint_proves", ("nixl",), bool,
        "sender: after an error, the destroyed endpoint is the proof that nothing is under way. Only for RDMA",
    ),
    Option("piece_bytes", ORDERED, Annotated[int, Meta(ge=1, le=10**9)],
           "bytes of one message; the receiver's value counts"),
    Option("host", ORDERED, Name, "receiver: the interface on which the two meet; no keys, no encryption"),
    Option("connect_timeout_s", ORDERED, Duration, "how long the peer may take to join a link, in seconds"),
    Option("stall_timeout_s", ORDERED, Duration, "how long one batch may take before the link is given up, in seconds"),
    Option("fabric", ("in-process",), object, "the `Fabric` that both sides share; must be given"),
)  # fmt: skip
"""Every option that a transport reads."""


def problems_with(transports: Collection[str], options: Mapping[str, Any]) -> list[str]:
    """What is wrong with options for one of these transports (several: the choice of ``auto``), a line for each.

    Each line begins with the name of the option.
    """
    known = {option.name: option for option in OPTIONS if set(option.of) & set(transports)}
    problems = []
    for name, given in options.items():
        option = known.get(name)
        if option is None:
            what = f"{name}: not an option of {' or '.join(transports)}"
            others = [whose for one in OPTIONS if one.name == name for whose in one.of]
            if others:
                problems.append(f"{what}, but of {' and '.join(others)}")
            elif known:
                problems.append(f"{what}, {advice(str(name), [], known)}")
            else:
                problems.append(f"{what}, which has none")
        elif option.hint is not object:
            try:
                msgspec.convert(given, option.hint)
            except msgspec.ValidationError:
                problems.append(f"{name}: got {shown(given)}, expected {expected(option.hint)}")
    return problems
