"""``resumark run``: real processes, a real transport, every byte checked."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gpu_backend.cli_common import (
    EXIT_BROKEN,
    JsonOption,
    SeedOption,
    drawn_seed,
    need_torch,
    output,
    plural,
    print_command,
    print_facts,
    print_json,
    print_rows,
    progress,
    reports_errors,
    size_text,
)

if TYPE_CHECKING:
    from gpu_backend.plan import Plan
    from gpu_backend.runs import RunResult

REQUESTS_SHOWN_MAX = 12
WATERMARKS_SHOWN_MAX = 6

TransportOption = Annotated[
    str, typer.Option("--transport", metavar="T", help="auto, nixl, gloo, in-process, cuda-ipc or nccl.")
]
ModelOption = Annotated[str, typer.Option("--model", metavar="M", help="Whose token rules and dimensions.")]
WorkloadOption = Annotated[str, typer.Option("--workload", metavar="W", help="images, mixed or video.")]
TokensOption = Annotated[
    list[int] | None,
    typer.Option(
        "--tokens", metavar="N", min=1, help="Requests of that length instead; may be repeated.", show_default=False
    ),
]
TraceOption = Annotated[
    Path | None, typer.Option("--trace", metavar="DIR", help="Write what every process saw there.", show_default=False)
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="D", help="Where the pools lie: cpu, cuda, cuda:N.")]


def count_option(name: str, help: str, low: int = 1) -> Any:
    """An option that counts something."""
    return typer.Option(name, metavar="N", min=low, max=1 << 24, help=help)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("run")(run_command)


@reports_errors
def run_command(
    transport: TransportOption = "auto",
    requests: Annotated[int, count_option("--requests", "How many requests.")] = 16,
    ranks: Annotated[int, count_option("--ranks", "Receiver ranks; each gets every request.")] = 1,
    senders: Annotated[int, count_option("--senders", "Sender ranks.")] = 1,
    pool_blocks: Annotated[int, count_option("--pool-blocks", "Landing blocks of each receiver rank.")] = 64,
    block_tokens: Annotated[int, count_option("--block-tokens", "Tokens in a block.")] = 128,
    source_blocks: Annotated[
        int, count_option("--source-blocks", "Of each sender rank; 0: room for the two longest requests.", 0)
    ] = 0,
    grant_blocks: Annotated[int, count_option("--grant-blocks", "Most blocks in one grant; 0: no limit.", 0)] = 0,
    allocator: Annotated[str, typer.Option("--allocator", metavar="A", help="Who deals out the blocks.")] = "fifo",
    model: ModelOption = "qwen2.5-vl-72b",
    workload: WorkloadOption = "images",
    tokens: TokensOption = None,
    early: Annotated[int, count_option("--early", "Grant so many tokens before the length is known.", 0)] = 0,
    in_flight: Annotated[int, count_option("--in-flight", "Requests under way at one time.")] = 4,
    checksum: Annotated[str, typer.Option("--checksum", metavar="C", help="none, header or full.")] = "none",
    device: DeviceOption = "cpu",
    seed: SeedOption = None,
    trace: TraceOption = None,
    kill: Annotated[
        list[str] | None,
        typer.Option(
            "--kill", metavar="WHO@WHEN", show_default=False,
            help="SIGKILL that process and start it anew, such as sender@3-requests; may be repeated.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Transfer requests of real sizes between real processes, and check every byte that arrives.

    The pool may be as small as one block: what does not fit is resumed, each watermark once.
    """
    from gpu_backend.plan import Plan
    from gpu_backend.runs import run_plan
    from gpu_backend.workload import model_named
    from gpu_backend.workload import workload as make_workload

    need_torch()
    seed = drawn_seed() if seed is None else seed
    chosen = model_named(model)
    plan = Plan(
        model=chosen, prompts=make_workload(chosen.family, requests, mix=workload, tokens=tokens or ()), seed=seed,
        transport=transport, device=device, receivers=ranks, senders=senders, pool_blocks=pool_blocks,
        block_tokens=block_tokens, source_blocks=source_blocks, grant_blocks_max=grant_blocks, allocator=allocator,
        in_flight=in_flight, early_tokens=early, checksum=checksum, trace="" if trace is None else str(trace),
        kills=tuple(kill or ()), undisturbed=not kill,
    )  # fmt: skip
    command = command_again(seed)
    console = output()
    if not json:
        _print_plan(console, plan, workload if not tokens else "")
    with progress("running", quiet=json) as say:
        result = run_plan(plan, lambda ended: say(f"{ended} of {requests} requests", ended, requests))
    code = 0 if result.verdict == "holds" else EXIT_BROKEN
    if json:
        print_json(run_json(plan, result, "" if tokens else workload, command, code))
    else:
        _print_result(console, plan, result)
        print_command(console, command)
    if code:
        raise typer.Exit(code)


def command_again(seed: int) -> str:
    """The command line as it was given, with the seed that was drawn."""
    given = sys.argv[1:]
    if not any(argument.split("=")[0] == "--seed" for argument in given):
        given = [*given, "--seed", str(seed)]
    return shlex.join(["resumark", *(argument for argument in given if argument != "--json")])


# --- for people -----------------------------------------------------------------------------------------


def _print_plan(console: Console, plan: Plan, mix: str) -> None:
    lengths = sorted({request.tokens for request in plan.requests})
    span = f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"
    model = plan.model
    deep = f", {model.deepstack_levels} deepstack levels" if model.deepstack_levels else ""
    ranks = f"{plural(plan.receivers, 'receiver rank')}, {plural(plan.senders, 'sender rank')}"
    if plan.idle_senders:
        ranks += f" ({plan.idle_senders} of them without a receiver)"
    print_facts(
        console,
        [
            ("model", f"{model.name}: dim {model.dim:,}{deep}, {model.token_bytes:,} bytes a token"),
            ("workload", f"{plural(len(plan.requests), 'request')} of {span} tokens"
             + (f" ({mix})" if mix else "") + f", {size_text(plan.payload_bytes)} for each receiver rank"),
            ("ranks", ranks),
            ("pool", f"{plural(plan.pool_blocks, 'block')} of {plan.block_tokens:,} tokens "
             f"({size_text(plan.pool_blocks * plan.block_bytes)}), allocator {plan.allocator}, "
             f"{plan.in_flight} requests in flight"),
            ("seed", str(plan.seed)),
        ],
    )  # fmt: skip
    console.print()


def watermarks_text(starts: tuple[int, ...]) -> str:
    """``256 512 768``; a long row is cut short, and says how many there are."""
    if not starts:
        return "never"
    shown = " ".join(map(str, starts[:WATERMARKS_SHOWN_MAX]))
    if len(starts) > WATERMARKS_SHOWN_MAX:
        shown += f" ... {starts[-1]}"
    each = "each once" if len(set(starts)) == len(starts) else "NOT each once"
    return f"{shown} ({len(starts)}, {each})"


def _print_result(console: Console, plan: Plan, result: RunResult) -> None:
    rows = [
        (
            str(request.room), f"{request.tokens:,}", request.state,
            "WRONG" if request.wrong else ("as sent" if request.state == "Success" else "-"),
            f"{request.time_s * 1000:.0f} ms", watermarks_text(request.resumed_at),
        )
        for request in result.requests[:REQUESTS_SHOWN_MAX]
    ]  # fmt: skip
    if rows:
        columns = ("room", "tokens", "state", "content", "time", "resumed at")
        print_rows(console, columns, rows, left=("state", "content", "resumed at"))
        if len(result.requests) > REQUESTS_SHOWN_MAX:
            console.print(f"and {plural(len(result.requests) - REQUESTS_SHOWN_MAX, 'more request')}")
        console.print()
    facts = [("verdict", result.verdict)]
    facts += [("", problem) for problem in result.problems[:REQUESTS_SHOWN_MAX]]
    facts += kill_facts(plan, result)
    facts.append(("transport", f"{result.transport}: {result.transport_why}"))
    if result.requests:
        facts += _figures(plan, result)
    if plan.trace:
        facts.append(("traces", plan.trace))
    print_facts(console, facts)
    console.print()


def kill_facts(plan: Plan, result: RunResult) -> list[tuple[str, str]]:
    """What came of kills, in words; nothing if none was asked for."""
    if not plan.kills:
        return []
    facts = [
        ("killed" if number == 0 else "",
         f"{one.kill.side} {one.kill.rank} at {one.kill.after} {one.kill.what}, with {one.done} of "
         f"{plural(len(plan.requests), 'request')} delivered; back after {one.back_s:.1f} s")
        for number, one in enumerate(result.kills.killed)
    ]  # fmt: skip
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(result.kills.reasons.items()))
    failed = len(result.kills.failed)
    text = f"{plural(failed, 'attempt')} failed on the way ({reasons})" if failed else "no attempt failed on the way"
    return [*facts, ("asked again", text)]


def _figures(plan: Plan, result: RunResult) -> list[tuple[str, str]]:
    ended = sum(request.state == "Success" for request in result.requests)
    p50_s, p99_s = percentiles([request.time_s for request in result.requests])
    return [
        ("requests", f"{ended} of {len(result.requests)} with every byte as sent" if result.content_ok
         else f"{ended} of {len(result.requests)} ended in Success, with wrong content"),
        ("transferred", f"{plan.tokens:,} tokens, {size_text(result.payload_bytes)} in {result.elapsed_s:.2f} s"),
        ("rate", f"{rate(result) / 1e9:.2f} GB/s, making and checking every byte included"),
        ("time", f"p50 {p50_s * 1000:.0f} ms, p99 {p99_s * 1000:.0f} ms from submit to Success, "
         f"{min(plan.in_flight, len(plan.requests))} in flight"),
        ("resumes", f"{result.resumes:,} in {result.grants:,} grants"),
        ("messages", f"{result.extra_messages:.2f} for each request beyond those of a single shot, "
         f"{result.resends:,} sent again"),
        ("landing", f"at most {plural(result.peak_blocks, 'block')} at one time "
         f"({size_text(result.peak_blocks * plan.block_bytes)} of {size_text(plan.pool_blocks * plan.block_bytes)}), "
         f"{result.quarantined_blocks} quarantined in the end"),
    ]  # fmt: skip


def percentiles(times_s: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile (of few values: the largest)."""
    ordered = sorted(times_s)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]


def rate(result: RunResult) -> float:
    """Bytes a second."""
    return result.payload_bytes / result.elapsed_s if result.elapsed_s > 0 else 0.0


# --- for programs ---------------------------------------------------------------------------------------


def run_json(plan: Plan, result: RunResult, mix: str, command: str, code: int) -> dict[str, Any]:
    """What ``run --json`` answers."""
    p50_s, p99_s = percentiles([request.time_s for request in result.requests] or [0.0])
    return {
        "engine": "run",
        "verdict": result.verdict,
        "content_ok": result.content_ok,
        "transport": result.transport,
        "transport_why": result.transport_why,
        "model": plan.model.name,
        "workload": mix,
        "seed": plan.seed,
        "ranks": plan.receivers,
        "senders": plan.senders,
        "pool_blocks": plan.pool_blocks,
        "block_tokens": plan.block_tokens,
        "allocator": plan.allocator,
        "early_tokens": plan.early_tokens,
        "checksum": plan.checksum,
        "device": plan.device,
        "requests": [
            {
                "room": request.room, "tokens": request.tokens, "state": request.state, "reason": request.reason,
                "wrong": request.wrong, "time_s": round(request.time_s, 6), "resumed_at": list(request.resumed_at),
                "detail": request.detail,
            }
            for request in result.requests
        ],
        "tokens": plan.tokens,
        "payload_bytes": result.payload_bytes,
        "elapsed_s": round(result.elapsed_s, 6),
        "bytes_per_s": round(rate(result)),
        "time_p50_s": round(p50_s, 6),
        "time_p99_s": round(p99_s, 6),
        "grants": result.grants,
        "resumes": result.resumes,
        "resends": result.resends,
        "messages": result.messages,
        "extra_messages_per_request": round(result.extra_messages, 4),
        "peak_landing_blocks": result.peak_blocks,
        "peak_landing_bytes": result.peak_blocks * plan.block_bytes,
        "quarantined_blocks": result.quarantined_blocks,
        "problems": result.problems,
        "violations": [{"property": name, "text": text} for name, text in result.violations],
        "kills": [
            {
                "kill": one.kill.text, "side": one.kill.side, "rank": one.kill.rank, "delivered": one.done,
                "back_s": round(one.back_s, 3),
            }
            for one in result.kills.killed
        ],
        "failed_attempts": [
            {"room": one.room, "rank": one.rank, "reason": one.reason, "detail": one.detail}
            for one in result.kills.failed
        ],
        "trace": plan.trace,
        "exit_code": code,
        "command": command,
    }  # fmt: skip
