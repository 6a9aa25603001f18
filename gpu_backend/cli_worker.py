"""``resumark worker``: one side of a run on this machine, from a configuration file; the other side may be far away.

Both sides are told the same requests (``--requests``, ``--workload``, ``--tokens``, ``--seed``), make or check their
content by themselves, and need nothing else from each other than the configured control address. Under ``torchrun``
the rank, the number of ranks, the meeting place and the device of a rank come from its environment.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from fsm.errors import LocalError
from gpu_backend.cli_common import EXIT_BROKEN, JsonOption, output, print_facts, print_json, reports_errors, size_text
from gpu_backend.cli_run import TokensOption, WorkloadOption, count_option

if TYPE_CHECKING:
    from gpu_backend.config import ReceiverWorkerConfig, SenderWorkerConfig
    from gpu_backend.parties import Party
    from gpu_backend.plan import Plan

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LINGER_S = 1.0
STORE_KEY = "resumark/ranks-meet-at"

ConfigOption = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="TOML; docs/workers.md lists the keys.", dir_okay=False)
]
RequestsOption = Annotated[int, count_option("--requests", "How many requests.")]
SharedSeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, max=2**62, help="Of the content; the same on both sides.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    made = typer.Typer(
        help="Run one worker from a configuration file.", no_args_is_help=True, pretty_exceptions_enable=False
    )
    made.command("sender")(sender_command)
    made.command("receiver")(receiver_command)
    app.add_typer(made, name="worker")


@reports_errors
def sender_command(
    config: ConfigOption,
    requests: RequestsOption = 16,
    workload: WorkloadOption = "images",
    tokens: TokensOption = None,
    seed: SharedSeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Send requests to whoever asks for them, until every receiver rank has all of them. Prints where it listens."""
    from gpu_backend.config import SenderWorkerConfig, load_config
    from gpu_backend.parties import SenderParty, prepare
    from gpu_backend.sender_worker import SenderWorker

    prepare()
    settings = with_torchrun(load_config(SenderWorkerConfig, config), os.environ)
    plan = plan_of(settings, requests, workload, tokens, seed)
    with SenderWorker(settings) as worker:
        party = SenderParty(worker, plan)
        if not json:
            print(f"sender {worker.rank} listens at {worker.address}, transport {party.transport[0]}", flush=True)
        _run(party, json)


@reports_errors
def receiver_command(
    config: ConfigOption,
    requests: RequestsOption = 16,
    workload: WorkloadOption = "images",
    tokens: TokensOption = None,
    seed: SharedSeedOption = 0,
    in_flight: Annotated[int, count_option("--in-flight", "Requests under way at one time.")] = 4,
    early: Annotated[int, count_option("--early", "Grant so many tokens before the length is known.", 0)] = 0,
    json: JsonOption = False,
) -> None:
    """Ask the sender for requests, and check every byte of them. Exit code 1 if one fails or is wrong."""
    from gpu_backend.config import ReceiverWorkerConfig, load_config
    from gpu_backend.parties import ReceiverParty, prepare
    from gpu_backend.receiver_worker import ReceiverWorker

    prepare()
    settings = with_torchrun(load_config(ReceiverWorkerConfig, config), os.environ)
    if early and not settings.early_grants:
        raise LocalError(
            f"--early {early}: no early grant can be made: expected results.tokens ({settings.results.tokens}) of at "
            f"least twice limits.total_tokens_max ({settings.limits.total_tokens_max}); lower the limit"
        )
    plan = plan_of(settings, requests, workload, tokens, seed, in_flight=in_flight, early_tokens=early)
    with ReceiverWorker(settings) as worker:
        _run(ReceiverParty(worker, plan), json)


def _run(party: Party, json: bool) -> None:
    """Move a worker on until all is done; print what became of it, and end with the exit code."""
    from gpu_backend.parties import WAIT_S

    party.begin()
    while not party.done:
        if not party.step():
            party.worker.wait(WAIT_S)
    _linger(party)
    report = party.finish()
    ended: Mapping[str, int] = report.counters["ended"]
    wrong = [f"room {one.room}: {one.wrong}" for one in report.requests if one.wrong]
    failed = sum(count for reason, count in ended.items() if reason != "NONE")
    broken = [f"{name}: {text}" for name, text in report.violations]
    verdict = "violated" if wrong or failed or broken else "holds"
    facts: dict[str, Any] = {
        "side": report.side, "rank": report.rank, "verdict": verdict, "ended": dict(ended), "wrong": wrong,
        "violations": broken, "tokens": report.counters["tokens"], "payload_bytes": report.counters["bytes"],
        "resumes": report.counters["resumes"], "messages": report.counters["messages_sent"],
    }  # fmt: skip
    if json:
        print_json(facts)
    else:
        facts["payload_bytes"] = size_text(facts["payload_bytes"])
        print_facts(output(), [(name, _text(value)) for name, value in facts.items()])
    if verdict != "holds":
        raise typer.Exit(EXIT_BROKEN)


def _linger(party: Party) -> None:
    """The peer may not have heard the last word: answer it for a while yet."""
    until_s = monotonic() + LINGER_S
    while monotonic() < until_s:
        party.step()
        party.worker.wait(LINGER_S / 20)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count:,}" for key, count in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plan_of(
    settings: ReceiverWorkerConfig | SenderWorkerConfig,
    requests: int,
    mix: str,
    tokens: list[int] | None,
    seed: int,
    **more: Any,
) -> Plan:
    """The plan that goes with a configuration: the family of models follows from the layout."""
    from gpu_backend.plan import Plan
    from gpu_backend.workload import QWEN3, QWEN25, Model
    from gpu_backend.workload import workload as make_workload

    layout = settings.layout
    family = QWEN3 if layout.deepstack_levels else QWEN25
    model = Model(f"{family.name}, dim {layout.dim}", family, layout.dim, layout.deepstack_levels)
    plan = Plan(
        model=model, prompts=make_workload(family, requests, mix=mix, tokens=tokens or ()), seed=seed,
        transport=settings.transport.name, device=settings.pool.device, receivers=settings.ranks.receivers,
        senders=settings.ranks.senders, block_tokens=layout.block_tokens, pool_blocks=settings.pool.blocks, **more,
    )  # fmt: skip
    if plan.tokens_max > settings.limits.total_tokens_max:
        raise LocalError(
            f"limits.total_tokens_max={settings.limits.total_tokens_max}: this workload has a request of "
            f"{plan.tokens_max} tokens; raise the limit or choose other --tokens"
        )
    return plan


# --- torchrun -------------------------------------------------------------------------------------------

ConfigT = TypeVar("ConfigT", "ReceiverWorkerConfig", "SenderWorkerConfig")


def with_torchrun(settings: ConfigT, environment: Mapping[str, str]) -> ConfigT:
    """The configuration of this rank of a ``torchrun`` job; unchanged where there is none.

    ``RANK`` and ``WORLD_SIZE`` are those of this side. Receiver ranks meet at ``MASTER_ADDR:MASTER_PORT``; where the
    launcher itself listens there, its store is used to agree on another port. ``cuda`` becomes ``cuda:LOCAL_RANK``.
    Raises :class:`LocalError` for an environment that makes no sense.
    """
    if "RANK" not in environment:
        return settings
    missing = [name for name in TORCHRUN if name not in environment]
    if missing:
        raise LocalError(f"RANK is set and {', '.join(missing)} is not: expected all that torchrun sets, or none")
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK"):
        text = environment.get(name, "0")
        if not text.isdigit():
            raise LocalError(f"{name}={text!r} in the environment: expected a whole number")
        numbers[name] = int(text)
    replace = msgspec.structs.replace
    receiver = hasattr(settings, "results")
    count = {"receivers" if receiver else "senders": numbers["WORLD_SIZE"]}
    ranks = replace(settings.ranks, rank=numbers["RANK"], **count)
    if receiver and numbers["WORLD_SIZE"] > 1:
        ranks = replace(ranks, store=_meeting_place(environment, numbers))
    pool = settings.pool
    if pool.device == "cuda":
        pool = replace(pool, device=f"cuda:{numbers['LOCAL_RANK']}")
    return replace(settings, ranks=ranks, pool=pool)


def _meeting_place(environment: Mapping[str, str], numbers: Mapping[str, int]) -> str:
    """``host:port`` for the receiver ranks."""
    host, port = environment["MASTER_ADDR"], numbers["MASTER_PORT"]
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return f"{host}:{port}"
    import torch.distributed as dist

    c10d: Any = dist
    store = c10d.TCPStore(host, port, is_master=False)
    if numbers["RANK"] == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            store.set(STORE_KEY, f"{host}:{probe.getsockname()[1]}")
    place: bytes = store.get(STORE_KEY)
    return place.decode()
