"""``resumark diagram``, ``resumark bench core`` and ``resumark bench check``."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from fsm.errors import LocalError
from fsm.lifecycle import BLOCK_TABLE, RECEIVER_TABLE, SENDER_TABLE
from fsm.table import Table
from sim import render
from sim.cli_common import JsonOption, output, print_json, reports_errors
from sim.cli_load import is_file, load
from sim.progress import bar

TABLES = {"receiver": RECEIVER_TABLE, "sender": SENDER_TABLE, "block": BLOCK_TABLE}
"""The tables that can be drawn, by name."""


class TableName(str, Enum):
    """Which table to draw."""

    receiver = "receiver"
    sender = "sender"
    block = "block"


class DiagramFormat(str, Enum):
    """How to draw it."""

    mermaid = "mermaid"
    text = "text"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("diagram")(diagram_command)
    bench = group(app, "bench", "Measure what things cost here, beside what they should.")
    bench.command("core")(bench_command)
    bench.command("check")(bench_check_command)
    bench.command("mass")(bench_mass_command)


def group(app: typer.Typer, name: str, help: str) -> typer.Typer:
    """The group of commands of that name: the one that is there, else a new one. Packages share groups this way."""
    for info in app.registered_groups:
        if info.name == name and info.typer_instance is not None:
            return info.typer_instance
    made = typer.Typer(help=help, no_args_is_help=True, pretty_exceptions_enable=False)
    made.callback()(_group_root)
    app.add_typer(made, name=name)
    return made


def _group_root() -> None:
    """Makes the application a group, though it has one command."""


@reports_errors
def diagram_command(
    table: Annotated[
        str,
        typer.Argument(metavar="TABLE", help=f"Which lifecycle: {', '.join(TABLES)}, or FILE.py:NAME, your own."),
    ] = TableName.receiver.value,
    format: Annotated[
        DiagramFormat, typer.Option("--format", help="A picture, or aligned rows.")
    ] = DiagramFormat.mermaid,
) -> None:
    """Draw a lifecycle from the rows that the code runs on."""
    if is_file(table):
        drawn = load(table, Table)
    elif table in TABLES:
        drawn = TABLES[table]
    else:
        raise LocalError(f"{table}: there is no such table; there are {', '.join(TABLES)}, and path/to/file.py:NAME")
    print(drawn.mermaid() if format is DiagramFormat.mermaid else drawn.text(), end="")


@reports_errors
def bench_command(json: JsonOption = False) -> None:
    """Lifecycles, kernel, simulator and checker, each figure the median of several, beside its target."""
    from sim import bench

    with bar("measuring", quiet=json) as shown:
        groups = bench.measure_all(None if shown is None else lambda text: shown.update(text=text))
    if json:
        print_json(bench.as_json(groups))
    else:
        render.print_figures(output(), groups)


@reports_errors
def bench_check_command(
    quick: Annotated[bool, typer.Option("--quick", help="A small model, once or twice: does it work?")] = False,
    large: Annotated[
        bool, typer.Option("--large", help="Also a model of 61,515,776 states: half a minute or more, and 2 GiB.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="DEVICE", help="The engine on torch instead: 'cpu', 'cuda' or 'cuda:N'; no Spin.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """The engine of `model` beside Spin: the same model, one core, in turns. Without Spin, that engine alone."""
    from sim import bench, bench_check, bench_device
    from sim.engines import spin

    with bar("measuring", quiet=json) as shown:
        say = None if shown is None else lambda text: shown.update(text=text)
        if device is not None:
            groups = bench_device.measure_all(device, say, quick=quick, large=large)
        else:
            groups = bench_check.measure_all(say, quick=quick, large=large)
    if json:
        print_json(bench.as_json(groups))
        return
    render.print_figures(output(), groups)
    missing = spin.missing()
    if missing and device is None:
        output().print(f"Not compared with Spin: {missing}.")


@reports_errors
def bench_mass_command(
    quick: Annotated[bool, typer.Option("--quick", help="Few runs: does it work?")] = False, json: JsonOption = False
) -> None:
    """Lifecycles a second of `simulate --engine vector`, on one core, beside the simulator that drives the objects."""
    from sim import bench, bench_mass

    with bar("measuring", quiet=json) as shown:
        groups = bench_mass.measure_all(None if shown is None else lambda text: shown.update(text=text), quick=quick)
    if json:
        print_json(bench.as_json(groups))
    else:
        render.print_figures(output(), groups)
