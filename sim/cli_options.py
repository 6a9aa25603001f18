"""The options of commands that search a model: its sizes, its symmetry, and what ends the search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StatesMaxOption = Annotated[
    int | None,
    typer.Option(
        "--states-max", metavar="N", min=1, help="Give up after the level that passes so many.", show_default=False
    ),
]
TimeMaxOption = Annotated[
    float | None,
    typer.Option("--time-max", metavar="SECONDS", min=0.001, help="Give up after so long.", show_default=False),
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory", metavar="GIB", min=0.001, max=1 << 20,
        help="Give up, or spill, when states and buffers take so much. Left out: no limit.", show_default=False,
    ),
]  # fmt: skip
SpillOption = Annotated[
    Path | None,
    typer.Option(
        "--spill", metavar="DIR", file_okay=False, help="Beyond --memory, write states there.", show_default=False
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="DEVICE", help="Search with torch, on cuda or cpu, instead of numpy.", show_default=False
    ),
]
DeadlockOption = Annotated[bool, typer.Option("--deadlock", help="A state without a next step is a violation.")]

# --- the protocol model --------------------------------------------------------------------------------

RequestsOption = Annotated[int, typer.Option("--requests", metavar="N", min=1, max=8, help="Requests.")]
RanksOption = Annotated[int, typer.Option("--ranks", metavar="N", min=1, max=8, help="Receiver ranks.")]
BlocksOption = Annotated[int, typer.Option("--blocks", metavar="N", min=1, max=8, help="Landing blocks of a rank.")]
TokensOption = Annotated[int, typer.Option("--tokens", metavar="N", min=1, max=64, help="Length of a request.")]
BlockTokensOption = Annotated[
    int, typer.Option("--block-tokens", metavar="N", min=1, max=64, help="Tokens of a block.")
]
GrantBlocksOption = Annotated[
    int, typer.Option("--grant-blocks", metavar="N", min=0, max=8, help="Most blocks in one grant; 0: no limit.")
]
EarlyOption = Annotated[
    int, typer.Option("--early", metavar="N", min=0, max=64, help="Tokens granted before the length is known.")
]
SendersOption = Annotated[
    int, typer.Option("--senders", metavar="N", min=1, max=8, help="Sender processes; rank r has sender r mod N.")
]
CrashesOption = Annotated[
    int, typer.Option("--crashes", metavar="N", min=0, max=8, help="How often a sender crashes, in all.")
]
ResubmitsOption = Annotated[
    bool, typer.Option("--resubmits/--no-resubmits", help="A sender that comes back is given the requests again.")
]
AbortsOption = Annotated[
    int,
    typer.Option(
        "--aborts", metavar="N", min=0, max=8, help="With --no-faults: so many faults that end a request, in all."
    ),
]
FaultsOption = Annotated[
    bool, typer.Option("--faults/--no-faults", help="Whatever ends a request early: aborts, deadlines, failures.")
]
LeasesOption = Annotated[bool, typer.Option("--leases", help="Results may be leased instead of copied.")]
LateOption = Annotated[bool, typer.Option("--late", help="Bytes may land after the word that they did.")]
NoticesOption = Annotated[
    bool, typer.Option("--notices", help="The receiver hears of landed bytes by itself, though it need not.")
]
VariantOption = Annotated[
    str | None,
    typer.Option("--variant", metavar="NAME", help="A version of the zoo instead.", show_default=False),
]
SymmetryOption = Annotated[
    bool | None,
    typer.Option(
        "--symmetry/--no-symmetry", show_default="symmetry, without a wrong version",
        help="Count states as one that differ only in the names of blocks, ranks and requests.",
    ),
]  # fmt: skip
LivenessOption = Annotated[
    bool | None,
    typer.Option(
        "--liveness/--no-liveness", show_default="where the graph is small",
        help="Judge on the finished graph what must happen in the end.",
    ),
]  # fmt: skip
