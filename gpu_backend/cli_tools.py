"""``resumark soak``, ``resumark bench transfer`` and ``resumark bench record``."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpu_backend.cli_common import (
    EXIT_BROKEN,
    JsonOption,
    SeedOption,
    drawn_seed,
    figures_json,
    output,
    plural,
    print_command,
    print_facts,
    print_figures,
    print_json,
    print_rows,
    progress,
    reports_errors,
)
from gpu_backend.cli_run import DeviceOption, TraceOption, TransportOption, command_again

if TYPE_CHECKING:
    from collections import Counter

    from gpu_backend.soak import SoakResult


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    from gpu_backend.cli import group

    app.command("soak")(soak_command)
    bench = group(app, "bench", "Measure what things cost here, beside what they should.")
    bench.command("transfer")(bench_command)
    bench.command("record")(record_command)


@reports_errors
def soak_command(
    kills: Annotated[int, typer.Option("--kills", metavar="N", min=1, max=1_000_000, help="How many rounds.")] = 20,
    transport: TransportOption = "auto",
    seed: SeedOption = None,
    trace: TraceOption = None,
    json: JsonOption = False,
) -> None:
    """Kill and stop workers in every state, again and again, and see that the other side bears it.

    One of two processes gets SIGKILL, or SIGSTOP and later SIGCONT or SIGKILL. Then every request of the survivor must
    end, with a reason; its blocks must all come back, once nothing can write to them any more; and with a successor at
    the same address the next requests must be right to the byte.
    """
    from gpu_backend.soak import soak

    seed = drawn_seed() if seed is None else seed
    with progress("killing", quiet=json) as say:
        result = soak(
            kills, seed=seed, transport=transport, tell=lambda done: say(f"{done} of {kills} kills", done, kills),
            trace="" if trace is None else str(trace),
        )  # fmt: skip
    command = command_again(seed)
    code = 0 if result.verdict == "holds" else EXIT_BROKEN
    if json:
        print_json(soak_json(result, command, code))
    else:
        console = output()
        print_facts(console, soak_facts(result))
        console.print()
        print_command(console, command)
    if code:
        raise typer.Exit(code)


def _counted(counter: Counter[tuple[str, str]], side: str) -> str:
    return ", ".join(f"{what} {count:,}" for (which, what), count in sorted(counter.items()) if which == side) or "none"


def soak_facts(result: SoakResult) -> list[tuple[str, str]]:
    """A soak for people."""
    facts = [("verdict", result.verdict)]
    facts += [("", problem) for problem in result.problems]
    facts += [
        ("transport", result.transport),
        ("seed", str(result.seed)),
        ("hit", f"{plural(result.kills, 'time')} in {result.elapsed_s:.0f} s"),
    ]
    for side in ("sender", "receiver"):
        facts.append((f"{side} hit", f"{_counted(result.hits, side)}; in {_counted(result.states, side)}"))
    for side in ("sender", "receiver"):
        facts.append((f"{side} bore it", f"requests that failed there, by reason: {_counted(result.reasons, side)}"))
    return [
        *facts,
        ("delivered", f"{plural(result.succeeded, 'request')}, every byte as sent"
         if result.verdict == "holds" else plural(result.succeeded, "request")),
        ("quarantine", f"blocks were held back for want of a proof in {plural(result.quarantined_rounds, 'round')}"),
        ("longest", f"{result.ended_max_s:.2f} s from a hit to the end of the last request, {result.whole_max_s:.3f} s "
         "from the proof to a whole pool"),
    ]  # fmt: skip


def soak_json(result: SoakResult, command: str, code: int) -> dict[str, Any]:
    """A soak for programs."""

    def nested(counter: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
        return {
            side: {what: count for (which, what), count in sorted(counter.items()) if which == side}
            for side in ("sender", "receiver")
        }

    return {
        "engine": "soak", "verdict": result.verdict, "problems": result.problems, "seed": result.seed,
        "transport": result.transport, "kills": result.kills, "hits": nested(result.hits),
        "states": nested(result.states), "failed": nested(result.reasons), "succeeded": result.succeeded,
        "quarantined_rounds": result.quarantined_rounds, "not_reached": result.not_reached,
        "ended_max_s": round(result.ended_max_s, 3), "whole_max_s": round(result.whole_max_s, 3),
        "elapsed_s": round(result.elapsed_s, 3), "exit_code": code, "command": command,
    }  # fmt: skip


class BenchPart(str, Enum):
    """What can be measured alone."""

    large = "large"
    small = "small"
    checksums = "checksums"
    polls = "polls"


@reports_errors
def bench_command(
    device: DeviceOption = "cpu",
    transport: TransportOption = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Few and small measurements: does it work?")] = False,
    part: Annotated[
        list[BenchPart] | None,
        typer.Option("--part", metavar="P", help="Only large, small, checksums or polls.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Whole requests beside raw transport, grants beside one grant, checks beside none: medians, measured in turns.

    Two processes, each on a core of its own. A target is what the figure should reach; nothing fails if it does not.
    """
    from gpu_backend.bench_transfer import measure_all

    parts = [one.value for one in part or BenchPart]
    with progress("measuring", quiet=json) as say:
        groups = measure_all(
            device=device, transport=transport, quick=quick, parts=parts, say=lambda text: say(text, 0, 0)
        )
    if json:
        print_json(figures_json(groups))
    else:
        print_figures(output(), groups)


@reports_errors
def record_command(
    events: Annotated[
        int, typer.Option("--events", metavar="N", min=1000, max=100_000_000, help="About so many, for each way.")
    ] = 200_000,
    json: JsonOption = False,
) -> None:
    """What an event costs a worker in its loop: with nobody looking, in a ring, in a trace; and what a dump takes."""
    from gpu_backend.bench_record import DUMP_KIB, measure_dump, measure_recording

    with progress("measuring", quiet=json) as say:
        figures = measure_recording(events, lambda done, total: say(f"{done} of {total} turns", done, total))
        dump_s = measure_dump()
    if json:
        ways = [
            {"way": one.name, "event_ns": round(one.event_s * 1e9), "events_per_s": round(one.events_per_s),
             "event_bytes": round(one.event_bytes)}
            for one in figures
        ]  # fmt: skip
        print_json({"engine": "bench record", "ways": ways, "dump_kib": DUMP_KIB, "dump_s": round(dump_s, 6)})
        return
    rows = [
        (one.name, f"{one.event_s * 1e9:,.0f} ns", f"{one.events_per_s:,.0f}", f"{one.event_bytes:.0f}")
        for one in figures
    ]
    print_rows(output(), ("written down", "an event", "events a second", "bytes"), rows, left=("written down",))
    output().print(f"\na dump of a ring of {DUMP_KIB:,} KiB takes {dump_s * 1000:.1f} ms")
